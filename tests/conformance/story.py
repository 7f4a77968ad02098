"""One story: phones, their users and a gateway, some seconds of bad weather, then good weather and the verdict."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.conditions import Conditions
from tests.conformance.front import Front, front
from tests.conformance.judge import Difference, Truth, differences, forgotten, undelivered
from tests.conformance.log import Log
from tests.conformance.phone import Phone, Scene
from tests.conformance.plan import Deed, Plan
from tests.conformance.witness import Finding, Kind, Witness
from tests.running import running_gateway

SETTLE_S = 30.0
"""How long clients may take to agree with the gateway, once nothing goes wrong any more."""

LOOK_S = 0.1
"""How often that is looked at."""

HELD_UP_S = 3.0
"""Where this process has no turn for so long, nothing can be said of who was late or early."""


async def tell(
    plan: Plan, command: Sequence[str], folder: Path, log: Log, *, settle_s: float = SETTLE_S
) -> list[Finding]:
    """Tell the story of a plan with a client, in a folder of its own; what was found. `settle_s`: how long the clients
    may take to agree with the gateway at the end. Raises NotStarted, in groups."""
    async with _measured() as held_up:
        findings = await _told(plan, command, folder, log, settle_s)
    if held_up.most_s > HELD_UP_S:
        return [Finding(Kind.TOO_BUSY, "this machine", f"had no time for {held_up.most_s:.0f} s")]
    return findings


@dataclass(slots=True)
class _HeldUp:
    """For how long this process was without a turn, at the most."""

    most_s: float = 0.0

    async def measure(self) -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(LOOK_S)
            self.most_s = max(self.most_s, time.monotonic() - before_s - LOOK_S)


@asynccontextmanager
async def _measured() -> AsyncIterator[_HeldUp]:
    held_up = _HeldUp()
    measuring = asyncio.create_task(held_up.measure())
    try:
        yield held_up
    finally:
        measuring.cancel()
        await asyncio.wait([measuring])


async def _told(plan: Plan, command: Sequence[str], folder: Path, log: Log, settle_s: float) -> list[Finding]:
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        log.note(finding.who, f"FINDING: {finding.kind}: {finding.text}")

    log.note("", str(plan))
    conditions = Conditions(plan, log, Witness(found))
    async with (
        front(conditions) as (between, port),
        running_gateway(
            folder / "gateway",
            PUBLIC_URL=f"http://127.0.0.1:{port}",
            STATE_URL="memory:",
            VIDEOS_PER_PAIR=str(plan.videos_per_pair),
            ACK_GRACE_S="1",
            PUSH_ON="video,status",
            DRAIN_S="0",
        ) as gateway,
    ):
        conditions.target = gateway.port
        scene = Scene(conditions, gateway, command, f"http://127.0.0.1:{port}", folder, [])
        scene.phones.extend(Phone(name, scene) for name in plan.devices)
        async with _pushes(scene):
            try:
                await _played(plan, between, scene)
                log.note("", "nothing goes wrong any more")
                between.behave()
                await _judged(scene, settle_s)
            finally:
                for phone in scene.phones:
                    await phone.kill()
    return findings


@asynccontextmanager
async def _pushes(scene: Scene) -> AsyncIterator[None]:
    """Pushes reach the phones."""
    hearing = [asyncio.create_task(phone.hear_pushes()) for phone in scene.phones]
    try:
        yield
    finally:
        for task in hearing:
            task.cancel()
        await asyncio.gather(*hearing, return_exceptions=True)


async def _played(plan: Plan, between: Front, scene: Scene) -> None:
    """All that the plan has happen."""
    async with asyncio.TaskGroup() as group:
        for phone in scene.phones:
            group.create_task(phone.begin())
    scene.conditions.log.begin()
    async with asyncio.TaskGroup() as group:
        for phone in scene.phones:
            theirs = [happening for happening in plan.happenings if happening.device == phone.name]
            group.create_task(phone.live(theirs))
        group.create_task(_befall(between, plan))


async def _befall(between: Front, plan: Plan) -> None:
    """What befalls the gateway."""
    log = between.conditions.log
    for happening in plan.happenings:
        if happening.device is None:
            await asyncio.sleep(max(0.0, happening.at_s - log.now_s))
            chance = plan.chance(happening.seed)
            retry_ms = chance.randrange(200, 1500) if happening.deed is Deed.RESTART else None
            log.note("", "the gateway restarts" if retry_ms else "the gateway is gone, without a word")
            await between.restart(chance.uniform(0, 1), retry_ms=retry_ms)
    await asyncio.sleep(max(0.0, plan.seconds - log.now_s))


async def _judged(scene: Scene, settle_s: float) -> None:
    """Whether all agree with the gateway before long, and what was promised was kept."""
    phones, witness = scene.phones, scene.conditions.witness
    async with asyncio.TaskGroup() as group:
        for phone in phones:
            group.create_task(phone.settle())
    for phone, (kind, text) in await _lasting(scene, settle_s):
        witness.found(kind, phone.name, text)
    for phone in phones:
        if (state := await phone.state()) is not None:
            for kind, text in forgotten(state, phone.book):
                witness.found(kind, phone.name, text)
    if not any(phone.mute for phone in phones):
        for account in {phone.account for phone in phones}:
            books = [phone.book for phone in phones if phone.account == account]
            for kind, text in undelivered(account, books, _arrived(phones)):
                witness.found(kind, account, text)
    for phone in phones:
        await phone.exit()


async def _lasting(scene: Scene, settle_s: float) -> list[tuple[Phone, Difference]]:
    """The differences that are still there after so long; none as soon as there are none."""
    ends_s = scene.conditions.log.now_s + settle_s
    while found := await _differing(scene):
        if scene.conditions.log.now_s >= ends_s:
            return found
        await asyncio.sleep(LOOK_S)
    return []


async def _differing(scene: Scene) -> list[tuple[Phone, Difference]]:
    """Who shows something else than the gateway has; nobody only where nothing moved while that was looked at."""
    truths, found = await _truths(scene), []
    for phone in scene.phones:
        if (state := await phone.state()) is None:
            continue
        found += [(phone, difference) for difference in differences(truths[phone.account], state, phone.book)]
        if not phone.awake.is_set():
            found.append((phone, (Kind.UNREGISTERED, "has not registered itself for pushes")))
    later = await _truths(scene)
    moving = [phone for phone in scene.phones if later[phone.account] != truths[phone.account]]
    return found + [(phone, (Kind.LISTS, "has a packet that still changes")) for phone in moving]


async def _truths(scene: Scene) -> dict[str, Truth]:
    """What the gateway has, by account."""
    found = {}
    for account in {phone.account for phone in scene.phones}:
        packet = await scene.gateway.app(account).packet()
        listed = [{video["video_id"]: video["status"] for video in packet[way]} for way in ("outgoing", "incoming")]
        found[account] = Truth(*listed)
    return found


def _arrived(phones: Sequence[Phone]) -> dict[str, set[str]]:
    arrived: dict[str, set[str]] = defaultdict(set)
    for phone in phones:
        arrived[phone.account].update(phone.book.ready.values())
    return arrived

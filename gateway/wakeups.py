"""The worker: clients that are due are looked after, and their devices woken.

A device that has not acknowledged the news has a time at which to wake it, in its client's document. The worker takes
the documents whose time has come, claims each by moving that time on by a lease, and pushes. Whoever wins the
compare-and-set sends; if it dies before it has written down what came of it, the lease runs out. A kick over the bus
only makes it sooner. There may be any number of workers.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, assert_never

from msgspec.structs import replace

from gateway import packet
from gateway.bus.bus import Kick
from gateway.changes import CLIENT_PREFIX, Changes, States, TryAgain, client_key
from gateway.errors import GatewayError
from gateway.journal import Event
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.service import Service
from gateway.transit import devices, receiving
from gateway.transit.decisions import Decision
from gateway.transit.devices import Push
from gateway.transit.policy import DAY_MS, HOUR_MS
from gateway.transit.state import ClientId, ClientState, DeviceId, UnreadableDocument
from push.guard import GuardedSender
from push.sender import (
    Accepted,
    Alert,
    Content,
    Environment,
    Outcome,
    Platform,
    Rejected,
    Retry,
    Sender,
    TokenDead,
    Wakeup,
)
from storage.documents import Conflict, StoreUnavailable

POLL_S = 1.0
"""How often the due index is asked."""

BATCH = 200
"""Due clients taken at a time."""

AT_ONCE = 64
"""Clients claimed at the same time."""

MOST_KICKED = 1_000
"""Kicked clients looked after at the same time; the due time stands in for those beyond."""

_IDS = uuid.UUID("5a0f1d0a-9d4c-4f0e-8f43-0d8a3f1f6c1e")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How much a push tells the provider: the whole packet, or only that there is something (`PUSH_CONTENT`)."""

    with_packet: bool = True


class _Call(NamedTuple):
    """A client to look after, and which of its devices are certainly not connected (None: all)."""

    client_id: ClientId
    absent: Collection[DeviceId] | None


@dataclass(slots=True)
class _Claimed:
    """What one worker has to push to one client's devices, and the state that it tells of."""

    state: ClientState
    pushes: list[Push]
    contents: dict[tuple[bool, bool], Content] = field(default_factory=dict)


class Wakeups:
    """Looks after the clients that are due. `monotonic`: seconds of a clock that never goes back."""

    def __init__(
        self,
        *,
        changes: Changes,
        service: Service,
        registry: Registry,
        senders: Mapping[Platform, Sender],
        options: PushOptions,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changes = changes
        self._service = service
        self._registry = registry
        self._senders = {
            platform: GuardedSender(sender, platform, clock=monotonic) for platform, sender in senders.items()
        }
        self._options = options
        self._metrics = metrics
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._kicked: dict[Kick, None] = {}
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()
        for platform, sender in self._senders.items():
            metrics.push_breaker_open.labels(platform).set_function(partial(_is_open, sender))

    def kick(self, kick: Kick) -> None:
        """Devices of a client's are not connected: wake them at once."""
        if len(self._kicked) < MOST_KICKED:
            self._kicked[kick] = None
            self._woken.set()

    async def run(self) -> None:
        """Look after whoever is kicked or due, until `stop`, and then to the end of what has begun; or until cancelled,
        and what is under way then is for the lease."""
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(self._hear(group)), group.create_task(self._look(group))]
            await self._stopped.wait()
            for loop in loops:
                loop.cancel()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped.set()

    async def round(self) -> int:
        """Look after those who were kicked and those who are due now, a batch at most, to the end; how many of them
        went well."""
        calls = {call.client_id: call for call in (*await self._due(), *self._take_kicks())}
        async with asyncio.TaskGroup() as group:
            return await self._claim_all(group, calls.values())

    # --- Who it is for

    async def _hear(self, group: asyncio.TaskGroup) -> None:
        """Look after the kicked."""
        room = asyncio.Semaphore(MOST_KICKED)

        async def one(call: _Call) -> None:
            try:
                await self._claim_all(group, [call])
            finally:
                room.release()

        while True:
            await self._woken.wait()
            for call in self._take_kicks():
                await room.acquire()
                group.create_task(one(call))

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Look after the due."""
        while True:
            await self._room()
            try:
                if await self._claim_all(group, await self._due()) >= BATCH:
                    continue  # more may be waiting
            except StoreUnavailable as error:
                log.warning("the due index does not answer", extra={"error": str(error)})
            await asyncio.sleep(POLL_S)

    async def _room(self) -> None:
        """Wait, for a little, while a provider that works has more to do than it takes at once: to put its devices off
        would cost a write each."""
        busy = [sender.room() for sender in self._senders.values() if sender.breaker.closed]
        try:
            async with asyncio.timeout(POLL_S):
                await asyncio.gather(*busy)
        except TimeoutError:
            pass

    async def _due(self) -> list[_Call]:
        now = self._changes.now()
        due = await self._changes.documents.due(now, BATCH)
        self._metrics.due_age_seconds.set((now - due[0].due) / 1000 if due else 0)
        return [_Call(ClientId(entry.key.removeprefix(CLIENT_PREFIX)), ()) for entry in due]

    def _take_kicks(self) -> list[_Call]:
        self._woken.clear()
        kicked, self._kicked = self._kicked, {}
        return [_Call(client_id, None if device_id is None else (device_id,)) for client_id, device_id in kicked]

    # --- Claiming

    async def _claim_all(self, group: asyncio.TaskGroup, calls: Iterable[_Call]) -> int:
        """Claim what is due for each of them; the pushes are left to `group`. How many went well."""

        async def one(call: _Call) -> bool:
            async with self._slots:
                claimed = await self._guarded(call)
            if claimed is None:
                return False
            for push in claimed.pushes:
                group.create_task(self._push(claimed, push))
            return True

        return sum(await asyncio.gather(*(one(call) for call in calls)))

    async def _guarded(self, call: _Call) -> _Claimed | None:
        """Claim for one client; None where that fails. What goes wrong stays with it: others do not wait for it."""
        extra = {"client_id": call.client_id}
        try:
            return await self._claim(call)
        except GatewayError as error:
            self._metrics.worker_failures.inc()
            log.warning("a due client must wait", extra={**extra, "error": error.detail})
            if isinstance(error.__cause__, UnreadableDocument):
                await self._put_off(client_key(call.client_id))
        except Exception:
            self._metrics.worker_failures.inc()
            log.exception("a due client could not be handled", extra=extra)
            await self._put_off(client_key(call.client_id))
        return None

    async def _put_off(self, key: str) -> None:
        """Move a document on, without reading it."""
        try:
            [document] = await self._changes.documents.load([key])
            if document.due is not None and document.due <= self._changes.now():
                await self._changes.documents.commit([replace(document, due=self._changes.now() + HOUR_MS)])
        except (Conflict, StoreUnavailable) as error:
            log.warning("a due client could not be put off", extra={"error": str(error)})

    async def _claim(self, call: _Call) -> _Claimed:
        """Do what is due for one client: what has expired first, then the devices that are behind."""
        client_id, tended = call.client_id, False
        pauses: dict[str, int] = {platform: sender.pause_ms() for platform, sender in self._senders.items()}
        claimed = _Claimed(ClientState(client_id), [])
        before = claimed.state

        async def rule(states: States, now: int) -> Decision:
            nonlocal tended, before
            before = states[client_id]
            if 0 < before.check_at <= now and not tended:
                tended = True
                await self._service.tend(client_id)
                raise TryAgain
            absent = before.devices if call.absent is None else call.absent
            state, claimed.pushes = devices.claim(
                before, now=now, policy=self._changes.policy, absent=absent, pauses=pauses
            )
            return Decision(state)

        claimed.state = (await self._changes.run(client_id, rule)).state
        self._count(before, claimed)
        return claimed

    def _count(self, before: ClientState, claimed: _Claimed) -> None:
        pushed = {push.device_id for push in claimed.pushes}
        for device_id, device in claimed.state.devices.items():
            if device != before.devices[device_id]:
                self._metrics.wakeups_due.labels(device.platform).inc()
                if device_id not in pushed:
                    self._metrics.wakeups_held.labels(device.platform).inc()

    # --- Pushing

    async def _push(self, claimed: _Claimed, push: Push) -> None:
        """Push to one device, and write down what came of it. What goes wrong stays with this device: it is due again
        after the lease."""
        state, started = claimed.state, self._changes.now()
        try:
            owner = await self._registry.owner(push.device.token_key)
            if owner is None or owner[:2] != (state.client_id, push.device_id):
                await self._settle(state, push, TokenDead(started))  # the token is another's now, or nobody's
                return
            outcome = await self._send(self._wakeup(claimed, push, owner.token))
            await self._note(state, push, outcome, started)
        except GatewayError as error:
            self._metrics.worker_failures.inc()
            log.warning("a push must wait", extra={"client_id": state.client_id, "error": error.detail})
        except Exception:
            self._metrics.worker_failures.inc()
            log.exception("a push could not be handled", extra={"client_id": state.client_id})

    def _wakeup(self, claimed: _Claimed, push: Push, token: str) -> Wakeup:
        state = claimed.state
        content = claimed.contents.get((push.alert, push.sound))
        if content is None:
            content = claimed.contents[push.alert, push.sound] = self._content(state, push)
        ends = [video.uploaded_at for _, _, video in state.received() if not video.ended]
        lives_ms = self._changes.policy.video_ttl_ms if ends else DAY_MS
        news = devices.news(state, self._changes.policy)
        return Wakeup(
            # The same for every try of one push, though nobody keeps it.
            id=str(uuid.uuid5(_IDS, f"{state.client_id} {push.device.token_key} {news} {push.device.attempts}")),
            platform=Platform(push.device.platform),
            environment=Environment(push.device.environment),
            token=token,
            collapse_id=state.client_id,
            content=content,
            expires_at=max(ends, default=self._changes.now()) + lives_ms,
        )

    def _content(self, state: ClientState, push: Push) -> Content:
        alert = None
        if push.alert:
            waiting = devices.waiting(state)
            args = (str(waiting.videos), str(waiting.newest_sender))
            alert = Alert("VIDEOS_WAITING", args, badge=waiting.videos, sound=push.sound)
        return Content(state.version, packet.encode(state) if self._options.with_packet else None, alert)

    async def _send(self, wakeup: Wakeup) -> Outcome:
        sender = self._senders.get(wakeup.platform)
        if sender is None:
            return Rejected(f"no sender is configured for {wakeup.platform}")
        with self._metrics.push_seconds.labels(wakeup.platform).time():
            return await sender.send(wakeup)

    async def _note(self, state: ClientState, push: Push, outcome: Outcome, started: int) -> None:
        """Count what the provider said, tell the operator where that is for him, and write it down."""
        platform, said = push.device.platform, OUTCOMES[type(outcome)]
        self._metrics.pushes.labels(platform, said).inc()
        self._changes.journal.note(
            state.client_id, Event.PUSHED, platform, said, state.version, device_id=push.device_id
        )
        extra = {"client_id": state.client_id, "device_id": push.device_id, "platform": platform}
        match outcome:
            case Accepted():
                if push.device.attempts == 0:
                    late_ms = self._changes.now() - devices.news(state, self._changes.policy)
                    self._metrics.wakeup_seconds.labels(platform).observe(max(late_ms, 0) / 1000)
            case TokenDead(since, doubtful):
                outcome = TokenDead(since or started, doubtful)
            case Retry(reason):
                log.warning("a push has to be tried again", extra={**extra, "reason": reason})
            case Rejected(reason):
                log.error("a push was rejected", extra={**extra, "reason": reason})
        after = (await self._settle(state, push, outcome)).devices.get(push.device_id)
        if not isinstance(outcome, TokenDead):
            return
        if outcome.doubtful:
            self._metrics.tokens_kept.labels(platform).inc()
        elif after is None or after.token_key != push.device.token_key:  # else it was registered since
            self._metrics.tokens_removed.labels(platform).inc()
            log.info("a push token is dead, and was removed", extra=extra)
            await self._registry.release(
                state.client_id, push.device_id, push.device.token_key, before=outcome.since or started
            )

    async def _settle(self, sent: ClientState, push: Push, outcome: Outcome) -> ClientState:
        """Write down what came of a push. `sent` is the state that it told of."""
        policy = self._changes.policy

        async def rule(states: States, now: int) -> Decision:
            state, senders = states[sent.client_id], frozenset[ClientId]()
            match outcome:
                case Accepted():
                    state, senders = receiving.notified(state, sent.version, now=now)
                    state = devices.tried(state, push, sent.version, now=now, policy=policy)
                case TokenDead(since, False):
                    before, state = state, devices.token_died(state, push, since or now)
                    if state is before:  # it was registered since: the provider has not noticed yet
                        state = devices.tried(state, push, sent.version, now=now, policy=policy)
                case Retry(_, after_ms):
                    state = devices.postponed(state, push, after_ms, now=now, jitter=random.random())
                case Rejected() | TokenDead():
                    state = devices.given_up(state, push, sent.version, policy=policy)
                case _:
                    assert_never(outcome)
            return Decision(state, settle=senders)

        return (await self._changes.run(sent.client_id, rule)).state


def _is_open(sender: GuardedSender) -> float:
    return float(not sender.breaker.closed)


OUTCOMES = {Accepted: "accepted", TokenDead: "token_dead", Retry: "retry", Rejected: "rejected"}
"""What an outcome is called in the metrics."""

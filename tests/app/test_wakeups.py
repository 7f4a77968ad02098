"""Wakeups for real: the program in processes of its own, which are killed, and simulated providers that fail."""

import asyncio
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from push.simulators.answers import Cut, Late
from push.simulators.apns import ApnsPush, ApnsSimulator, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import FcmSimulator, fcm_simulator
from tests.app.program import Program, environment, started
from tests.running import App, until, within

SHORT = """
import push.breaker, push.guard
from gateway import wakeups
from gateway.transit import devices
devices.LEASE_MS = 2_000
devices.RETRY_FIRST_MS, devices.RETRY_MOST_MS = 200, 2_000
push.breaker.FIRST_PAUSE_S, push.breaker.MOST_PAUSE_S = 0.2, 2.0
wakeups.POLL_S = 0.2
from gateway.cli import main
raise SystemExit(main())
"""
"""The program, with the pauses that are no settings shortened."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def apns(tmp_path: Path, authority: Authority) -> AsyncIterator[ApnsSimulator]:
    async with apns_simulator(tmp_path, authority=authority) as simulator:
        yield simulator


@pytest.fixture
async def fcm(tmp_path: Path, authority: Authority) -> AsyncIterator[FcmSimulator]:
    async with fcm_simulator(tmp_path, authority=authority) as simulator:
        yield simulator


@pytest.fixture(scope="module", autouse=True)
async def long_outage(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[asyncio.Task[None] | None]:
    """The longest story goes on in the background of the others; None where nobody will ask how it ended."""
    if not any("twenty_seconds" in item.name for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("outage")
    async with apns_simulator(folder, authority=authority) as apns, fcm_simulator(folder, authority=authority) as fcm:
        task = asyncio.create_task(outage(folder / "data", apns, fcm, authority))
        yield task
        task.cancel()
        await asyncio.wait([task])


def through_apns(apns: ApnsSimulator, authority: Authority) -> dict[str, str]:
    """The settings of a gateway that sends there."""
    return {
        "APNS_KEY_FILE": str(apns.key_file),
        "APNS_KEY_ID": apns.key_id,
        "APNS_TEAM_ID": apns.team_id,
        "APNS_TOPIC": apns.topic,
        "APNS_ENDPOINT": apns.endpoint,
        "APNS_CA_FILE": str(authority.ca_file),
    }


def through_fcm(fcm: FcmSimulator, authority: Authority) -> dict[str, str]:
    return {
        "FCM_CREDENTIALS_FILE": str(fcm.credentials_file),
        "FCM_ENDPOINT": fcm.endpoint,
        "FCM_CA_FILE": str(authority.ca_file),
    }


def token_of(client_id: str) -> str:
    """A client's device's token, with either provider."""
    return hashlib.sha256(client_id.encode()).hexdigest()


async def with_devices(gateway: Program, client_ids: Sequence[str], platform: str) -> None:
    for client_id in client_ids:
        answer = await gateway.app(client_id).register("phone", token_of(client_id), platform=platform)
        assert answer.status_code == 204


async def statuses_of(sender: App) -> Counter[str]:
    return Counter(entry["status"] for entry in (await sender.packet())["outgoing"])


async def all_notified(sender: App, count: int, seconds: float = 20) -> None:
    async def notified() -> bool:
        return (await statuses_of(sender)) == {"notified": count}

    await until(notified, f"all {count} were told", seconds)


async def met(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    async def true() -> bool:
        return condition()

    await until(true, what, seconds)


@asynccontextmanager
async def working(folder: Path, **given: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker of its own; killed at the end."""
    import sys  # noqa: PLC0415

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SHORT, "worker"),
        env=environment(folder, **given),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"working" not in (line := await within(process.stderr.readline(), 20)):
        assert line, "the worker did not start"
    reading = asyncio.create_task(process.stderr.read())
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_device_is_woken_with_the_packet_that_it_would_poll_and_never_reminded_once_it_has_it(
    tmp_path: Path, apns: ApnsSimulator, fcm: FcmSimulator, authority: Authority
) -> None:
    """Bob's phone and Carol's take the packet from the push and sync; Dave's does nothing, and is reminded twice."""
    providers = through_apns(apns, authority) | through_fcm(fcm, authority)
    async with started(tmp_path, command=("-c", SHORT, "serve"), REMIND_AFTER_S="0.5,1", **providers) as gateway:
        alice = gateway.app("alice")
        await with_devices(gateway, ["bob", "dave"], "apns")
        await with_devices(gateway, ["carol"], "fcm")

        async def takes(client_id: str, data: Mapping[str, str]) -> None:
            app = gateway.app(client_id)
            assert data["packet"].encode() == (await app.poll()).content
            assert (await app.sync(device_id="phone", version=int(data["version"]))).status_code == 200

        await alice.send("bob")
        await takes("bob", (await within(apns.receives(1)))[0].data)
        await alice.send("carol")
        await takes("carol", (await within(fcm.receives(1)))[0].data)
        await alice.send("dave")
        await within(apns.receives(4))
        await all_notified(alice, 3)
        await asyncio.sleep(2)  # nothing more comes
        assert Counter(push.collapse_id for push in apns.received) == {"bob": 1, "dave": 3}
        assert len(fcm.received) == 1
        sounds = [push.aps.get("sound") for push in apns.received if push.collapse_id == "dave"]
        assert sounds == ["default", None, None]
        assert len({push.apns_id for push in apns.received}) == 4
        assert apns.refused == fcm.refused == []
        output = "".join(gateway.output)
        assert token_of("bob") not in output
        assert token_of("carol") not in output


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.25])
async def test_a_worker_that_is_killed_in_the_middle_leaves_nobody_asleep(
    after_s: float, tmp_path: Path, apns: ApnsSimulator, authority: Authority
) -> None:
    """It is killed when the provider has the first push, when it has them all, and while the answers come."""
    clients = [f"client{n}" for n in range(30)]
    providers = through_apns(apns, authority)
    apns.react = lambda _: Late(0.2)
    command = ("-m", "gateway", "serve", "--no-worker")
    async with started(tmp_path, command=command, ACK_GRACE_S="0.1") as gateway:
        alice = gateway.app("alice")
        await with_devices(gateway, clients, "apns")
        async with working(tmp_path, **providers) as worker:
            for client_id in clients:
                await alice.send(client_id)
            await within(apns.receives(1))
            await asyncio.sleep(after_s)
            os.kill(worker.pid, signal.SIGKILL)
            await worker.wait()
        # What was noted on the recipient's side alone when the worker died, the sweep tells the sender.
        swept = {"SWEEP_S": "1", "SWEEP_FULL_S": "1"}
        async with working(tmp_path, **providers, **swept), working(tmp_path, **providers):
            await met(lambda: {push.collapse_id for push in apns.received} == set(clients), "all are woken")
            await all_notified(alice, len(clients))
        pushed = Counter(push.collapse_id for push in apns.received)
        assert max(pushed.values()) <= 2
        tries = {(push.collapse_id, push.apns_id) for push in apns.received}
        assert len(tries) == len(clients)
        assert apns.refused == []


async def test_two_workers_wake_each_device_once(tmp_path: Path, apns: ApnsSimulator, authority: Authority) -> None:
    clients = [f"client{n}" for n in range(60)]
    providers = through_apns(apns, authority)
    async with started(tmp_path, command=("-m", "gateway", "serve", "--no-worker"), ACK_GRACE_S="0.1") as gateway:
        alice = gateway.app("alice")
        await with_devices(gateway, clients, "apns")
        async with working(tmp_path, **providers), working(tmp_path, **providers):
            for client_id in clients:
                await alice.send(client_id)
            await all_notified(alice, len(clients))
        assert Counter(push.collapse_id for push in apns.received) == dict.fromkeys(clients, 1)


async def test_a_worker_that_is_told_to_stop_writes_down_what_it_has_sent(
    tmp_path: Path, apns: ApnsSimulator, authority: Authority
) -> None:
    apns.react = lambda _: Late(0.3)
    async with started(tmp_path, command=("-m", "gateway", "serve", "--no-worker"), ACK_GRACE_S="0") as gateway:
        alice = gateway.app("alice")
        await with_devices(gateway, ["bob"], "apns")
        async with working(tmp_path, **through_apns(apns, authority)) as worker:
            await alice.send("bob")
            await within(apns.receives(1))
            worker.terminate()
            assert await within(worker.wait()) == 0
        assert await statuses_of(alice) == {"notified": 1}


async def test_a_provider_that_is_down_for_twenty_seconds_is_nothing_to_the_other_and_forgets_nobody(
    long_outage: asyncio.Task[None],
) -> None:
    await long_outage


async def outage(folder: Path, apns: ApnsSimulator, fcm: FcmSimulator, authority: Authority) -> None:
    """One provider is down for twenty seconds."""
    phones = [f"apple{n}" for n in range(10)]
    others = [f"android{n}" for n in range(10)]
    asked: list[float] = []

    def down(_: ApnsPush) -> Cut:
        asked.append(time.monotonic())
        return Cut()

    providers = through_apns(apns, authority) | through_fcm(fcm, authority)
    async with started(folder, command=("-c", SHORT, "serve"), **providers) as gateway:
        alice = gateway.app("alice")
        await with_devices(gateway, phones, "apns")
        await with_devices(gateway, others, "fcm")
        apns.react = down
        begun = time.monotonic()
        for phone, other in zip(phones, others, strict=True):
            await alice.send(phone)
            sent = time.monotonic()
            before = len(fcm.received)
            await alice.send(other)
            await within(fcm.receives(before + 1))
            assert time.monotonic() - sent < 2
        await asyncio.sleep(begun + 20 - time.monotonic())
        assert 'gateway_push_breaker_open{platform="apns"} 1.0' in (await gateway.http.get("/metrics")).text
        assert apns.received == []
        assert len(asked) <= 40
        apns.react = lambda _: None
        await all_notified(alice, 20, 10)
        assert Counter(push.collapse_id for push in apns.received) == dict.fromkeys(phones, 1)
        assert len(fcm.received) == len(others)
        metrics = (await gateway.http.get("/metrics")).text
        assert 'gateway_push_breaker_open{platform="apns"} 0.0' in metrics
        assert "gateway_wakeups_held_total" in metrics

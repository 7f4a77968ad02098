"""Wakeups while providers and workers fail, in earnest: no time is shortened."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from gateway.changes import CLIENT_PREFIX
from gateway.transit.policy import LEASE_MS, Policy
from gateway.transit.state import ClientId, Status, decode
from push.sender import Platform
from storage.documents import Document
from tests.simulation.backends import Kind
from tests.simulation.process import Process
from tests.simulation.providers import Stage
from tests.simulation.small import Small, small

MANY = 24
EARNEST = Policy()
FEW_S = 3.0
"""How long what is due, or kicked, may take until a provider has its push."""


def clients(gateway: Small, count: int, platform: Platform, name: str = "c") -> list[str]:
    """Clients with a device each, whose token is the client's name."""
    names = [f"{name}{number}" for number in range(count)]
    for client_id in names:
        gateway.register(client_id, client_id, platform)
    return names


def sent(gateway: Small, to: str) -> float:
    """A video is sent to somebody; when its recipient's document had it."""
    before = len(gateway.truth.written)
    gateway.done(gateway.send("alice", to))
    return next(at_s for at_s, key in gateway.truth.written[before:] if key == CLIENT_PREFIX + to)


def taken_s(gateway: Small, token: str) -> list[float]:
    """When a provider took a push to that device."""
    return [at_s for at_s, device in gateway.truth.taken if device == token]


# --- A provider fails


def test_a_provider_that_is_down_for_ten_minutes_is_left_alone_and_costs_nobody_more_than_five() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        names = clients(gateway, MANY, Platform.APNS)
        gateway.providers[Platform.APNS].troubles.open(Kind.DOWN, 600)
        down_s = gateway.scheduler.now_s
        for name in names:
            sent(gateway, name)
        gateway.scheduler.run_until(down_s + 600)
        returned_s = gateway.scheduler.now_s
        _check_left_alone(gateway, down_s + 90, returned_s)
        _check_written(gateway, names, down_s + 90, returned_s)
        assert gateway.truth.taken == []
        gateway.scheduler.run_for(300)
        assert sorted(token for _, token in gateway.truth.taken) == sorted(names)
        assert all(gateway.row(name, name).attempts == 1 for name in names)


def _check_left_alone(gateway: Small, from_s: float, to_s: float) -> None:
    """Once the breakers are open for good, each worker asks a few times a minute."""
    asked = [(at_s, machine) for at_s, machine, _ in gateway.truth.asked if from_s <= at_s < to_s]
    minutes = Counter((machine, int(at_s // 60)) for at_s, machine in asked)
    assert minutes
    assert max(minutes.values()) <= 3, minutes


def _check_written(gateway: Small, names: list[str], from_s: float, to_s: float) -> None:
    """Meanwhile each device that waits costs about a write a minute."""
    keys = {CLIENT_PREFIX + name for name in names}
    counts = Counter(key for at_s, key in gateway.truth.written if key in keys and from_s <= at_s < to_s)
    minutes = (to_s - from_s) / 60
    assert counts.total() <= 1.5 * minutes * len(names), counts
    assert max(counts.values()) <= 2.5 * minutes, counts


def test_while_one_provider_hangs_the_devices_of_the_other_are_woken_as_fast_as_ever() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        hung = clients(gateway, MANY, Platform.APNS, "apns")
        others = clients(gateway, MANY, Platform.FCM, "fcm")
        gateway.providers[Platform.APNS].troubles.open(Kind.HANGING, 300)
        for unlucky, other in zip(hung, others, strict=True):
            sent(gateway, unlucky)
            since_s = sent(gateway, other)
            gateway.scheduler.run_for(1.0)
            [at_s] = taken_s(gateway, other)
            assert at_s - since_s < 1.0


def test_while_one_provider_hangs_the_due_index_is_asked_for_the_other() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        hung = clients(gateway, MANY, Platform.APNS, "apns")
        others = clients(gateway, MANY, Platform.FCM, "fcm")
        for name in (*hung, *others):
            gateway.opened(name, name)  # whoever is connected is not kicked
        gateway.providers[Platform.APNS].troubles.open(Kind.HANGING, 300)
        for unlucky, other in zip(hung, others, strict=True):
            sent(gateway, unlucky)
            since_s = sent(gateway, other)
            gateway.scheduler.run_for(EARNEST.ack_grace_ms / 1000 + FEW_S)
            [at_s] = taken_s(gateway, other)
            assert 3 < at_s - since_s < EARNEST.ack_grace_ms / 1000 + FEW_S


# --- A worker dies

Kill = Callable[[Process], None]


def _before_the_claim(gateway: Small, kill: Kill) -> None:
    def wrote(machine: str, before: Document, after: Document) -> None:
        if after.key == "client:bob" and decode(ClientId("bob"), after.body).due:
            gateway.truth.on_write = lambda *_: None
            for process in gateway.processes:
                gateway.backends.documents.trap(process.loop, 0, lambda process=process: kill(process))  # type: ignore[misc]

    gateway.truth.on_write = wrote


def _at_a_write(gateway: Small, kill: Kill, chosen: Callable[[int, int], bool]) -> None:
    """Kill whoever writes a row of Bob's phone of which that holds, given by how much the time to wake it moved on (ms)
    and how many pushes were accepted."""

    def wrote(machine: str, before: Document, after: Document) -> None:
        if after.key != "client:bob":
            return
        old, new = (decode(ClientId("bob"), document.body).devices for document in (before, after))
        for device_id in old.keys() & new.keys():
            if chosen(new[device_id].next_at - old[device_id].next_at, new[device_id].attempts):
                gateway.truth.on_write = lambda *_: None
                [process] = [process for process in gateway.processes if process.name == machine]
                kill(process)

    gateway.truth.on_write = wrote


def _after_the_claim(gateway: Small, kill: Kill) -> None:
    _at_a_write(gateway, kill, lambda moved_ms, attempts: moved_ms > LEASE_MS / 2 and not attempts)


def _after_the_outcome(gateway: Small, kill: Kill) -> None:
    _at_a_write(gateway, kill, lambda _, attempts: attempts == 1)


def _at_stage(stage: Stage) -> Callable[[Small, Kill], None]:
    def trap(gateway: Small, kill: Kill) -> None:
        for process in gateway.processes:
            gateway.providers[Platform.APNS].at_stage(process.loop, stage, lambda process=process: kill(process))  # type: ignore[misc]

    return trap


def _before_the_outcome(gateway: Small, kill: Kill) -> None:
    def trap(process: Process) -> None:
        gateway.backends.documents.trap(process.loop, 0, lambda: kill(process))

    _at_stage(Stage.ANSWERED)(gateway, trap)


STEPS: dict[str, tuple[Callable[[Small, Kill], None], int]] = {
    "before the claim is written": (_before_the_claim, 1),
    "after the claim is written": (_after_the_claim, 1),
    "before the push leaves": (_at_stage(Stage.LEAVING), 1),
    "after the provider has it": (_at_stage(Stage.TAKEN), 2),
    "after its answer has come": (_at_stage(Stage.ANSWERED), 2),
    "before the outcome is written": (_before_the_outcome, 2),
    "after the outcome is written": (_after_the_outcome, 1),
}
"""Steps of a wakeup at which its worker may die: how that is brought about, and how many pushes are accepted then."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("connected", [False, True])
def test_whenever_a_worker_dies_the_other_wakes_the_device_within_the_lease_and_once_too_often_at_most(
    step: str, connected: bool
) -> None:
    trap, accepted = STEPS[step]
    with small(policy=EARNEST, in_earnest=True) as gateway:
        died_s: list[float] = []

        def kill(process: Process) -> None:
            if not died_s:
                died_s.append(gateway.scheduler.now_s)
                gateway.backends.documents.traps.clear()
                gateway.providers[Platform.APNS].calm_down()
                process.crash()
                gateway.truth.woken.hindered(gateway.scheduler.now_s)

        gateway.register("bob", "phone", Platform.APNS)
        if connected:
            gateway.opened("bob", "phone")
        gateway.scheduler.run_for(10)
        trap(gateway, kill)
        gateway.run(gateway.send("alice", "bob"), 30)
        assert len(died_s) == 1
        gateway.scheduler.run_for(120)
        times_s = taken_s(gateway, "phone")
        assert len(times_s) == accepted
        assert times_s[-1] < died_s[0] + LEASE_MS / 1000 + EARNEST.ack_grace_ms / 1000 + FEW_S
        [(_, _, video)] = gateway.truth.state(ClientId("bob")).received()
        assert (video.status, gateway.row("bob", "phone").attempts) == (Status.NOTIFIED, 1)


def test_of_two_workers_that_race_for_the_same_documents_one_pushes() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        names = clients(gateway, MANY, Platform.FCM)
        for name in names[::2]:
            gateway.opened(name, name)  # these are left to the due index, the others are kicked
        for name in names:
            sent(gateway, name)
        gateway.scheduler.run_for(200)
        assert sorted(token for _, _, token in gateway.truth.asked) == sorted(names)
        assert {machine for _, machine, _ in gateway.truth.asked} == {"one", "two"}


# --- A socket ends


def test_a_device_whose_socket_ends_with_news_is_woken_at_once_and_no_other() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        gateway.register("bob", "phone", Platform.APNS)
        gateway.register("bob", "tablet", Platform.FCM)
        gateway.opened("bob", "tablet")
        other = gateway.network.line("phone's own", gateway.loop)
        gateway.line, tablets = other, gateway.line
        gateway.opened("bob", "phone")
        gateway.line = tablets
        since_s = sent(gateway, "bob")
        other.break_sockets()
        gateway.scheduler.run_for(EARNEST.ack_grace_ms / 1000 + FEW_S)
        [first_s], [second_s] = taken_s(gateway, "phone"), taken_s(gateway, "tablet")
        assert first_s - since_s < 1.0
        assert second_s - since_s > 3


def test_every_try_of_a_push_that_fails_has_one_id_and_comes_later_than_the_one_before() -> None:
    with small(policy=EARNEST, in_earnest=True) as gateway:
        gateway.register("bob", "phone", Platform.APNS)
        gateway.providers[Platform.APNS].troubles.open(Kind.REFUSING, 100)
        sent(gateway, "bob")
        gateway.scheduler.run_for(300)
        times_s = [at_s for at_s, _, _ in gateway.truth.asked]
        assert len(times_s) > 3
        assert all(later - earlier > 0.9 for earlier, later in pairwise(times_s))
        assert len(taken_s(gateway, "phone")) == 1
        assert len({wakeup.id for wakeup in gateway.pushes}) == 1

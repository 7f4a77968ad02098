"""The connected devices of a process: polls that are held until there is something newer, and sockets."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from gateway.bus.bus import Cause, Kick, Publication
from gateway.errors import RateLimited, Unavailable
from gateway.live.frames import text_frame
from gateway.live.hub import CHECK_S, HELD_PER_CLIENT, SENT_BACK_MS, SOCKETS_PER_CLIENT, Connected, Hub, Packet
from gateway.service import Said
from gateway.transit.state import ClientId, DeviceId, Status
from storage.documents import Document, StoreUnavailable
from tests.running import until
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, TABLET, Gateway


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_newer_already_is_answered_at_once(gateway: Gateway) -> None:
    await gateway.send()
    version = (await gateway.state(BOB)).version
    found = await gateway.hub.newer(BOB, version - 1, wait_s=60, device_id=PHONE)
    assert found == Packet(version, await gateway.packet(BOB))


async def test_a_held_poll_is_answered_with_the_packet_that_comes(gateway: Gateway) -> None:
    held = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    await settle()
    await gateway.send(ALICE, CAROL)
    await settle()
    assert not held.done()
    await gateway.send(ALICE, BOB)
    assert await held == Packet((await gateway.state(BOB)).version, await gateway.packet(BOB))


async def test_a_packet_published_while_the_state_is_loaded_is_not_missed(gateway: Gateway) -> None:
    load = gateway.changes.load

    async def overtaken(client_id: str) -> object:
        state = await load(type(BOB)(client_id))
        gateway.changes.load = load  # type: ignore[method-assign]
        await gateway.send(ALICE, BOB)
        return state

    gateway.changes.load = overtaken  # type: ignore[method-assign,assignment]
    found = await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)
    assert found is not None
    assert found.body == await gateway.packet(BOB)


async def test_an_older_packet_answers_nobody(gateway: Gateway) -> None:
    ref = await gateway.send()
    version = (await gateway.state(BOB)).version
    held = asyncio.create_task(gateway.hub.newer(BOB, version, wait_s=60, device_id=PHONE))
    await settle()
    await gateway.service.confirm(ref)  # published once more
    await settle()
    assert not held.done()
    gateway.hub.close()
    assert await held is None


async def test_a_poll_ends_when_its_time_is_over(gateway: Gateway) -> None:
    assert await gateway.hub.newer(BOB, 0, wait_s=0.001, device_id=PHONE) is None
    assert gateway.metrics.held_polls._value.get() == 0


@pytest.mark.parametrize("device_id", [PHONE, None])
async def test_only_a_poll_that_names_its_device_counts_as_listening(
    gateway: Gateway, device_id: DeviceId | None
) -> None:
    kicked: list[Kick] = []
    gateway.bus.on_kick(kicked.append)
    await gateway.register()
    held = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=device_id))
    await settle()
    await gateway.send()
    assert await held is not None
    assert kicked == ([Kick(BOB)] if device_id is None else [])


async def test_a_client_has_only_so_many_polls_held(gateway: Gateway) -> None:
    held = [asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)) for _ in range(HELD_PER_CLIENT)]
    await settle()
    with pytest.raises(RateLimited):
        await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)
    other = asyncio.create_task(gateway.hub.newer(CAROL, 0, wait_s=60, device_id=PHONE))
    await settle()
    held[0].cancel()
    await settle()
    held[0] = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    await settle()
    gateway.hub.close()
    assert await asyncio.gather(*held, other) == [None] * (HELD_PER_CLIENT + 1)


async def test_after_the_end_nothing_is_held(gateway: Gateway) -> None:
    gateway.hub.close()
    assert await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE) is None


async def test_a_device_that_logs_out_has_no_poll_held_any_more(gateway: Gateway) -> None:
    of_phone = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    others = [
        asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=TABLET)),
        asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=None)),
        asyncio.create_task(gateway.hub.newer(CAROL, 0, wait_s=60, device_id=PHONE)),
    ]
    await settle()
    await gateway.hub.log_out(BOB, PHONE)
    assert await of_phone is None
    assert not any(other.done() for other in others)
    await gateway.hub.log_out(BOB)
    assert await asyncio.gather(*others[:2]) == [None, None]
    assert not others[2].done()
    await gateway.hub.log_out(CAROL)
    assert await others[2] is None


# --- Sockets


class Screen:
    """A socket as the hub sees it, and what came of it."""

    def __init__(self, hub: Hub, device_id: DeviceId = PHONE) -> None:
        self.device_id = device_id
        self.rank = hub.rank()
        self.version = 0
        self.acked = 0
        self.opened_at = 7
        self.shown: list[bytes] = []
        self.asked: list[bool] = []
        self.dismissed: list[Cause] = []
        self.retries: list[int] = []

    def offer(self, version: int, frame: bytes, asks: bool) -> bool:
        self.version = version
        self.shown.append(frame)
        self.asked.append(asks)
        return False

    def dismiss(self, cause: Cause) -> None:
        self.dismissed.append(cause)

    def restart(self, retry_ms: int) -> None:
        self.retries.append(retry_ms)

    def abort(self) -> None:
        self.retries.append(-1)


async def joined(gateway: Gateway, device_id: DeviceId = PHONE, client_id: ClientId = BOB) -> Screen:
    screen = Screen(gateway.hub, device_id)
    await gateway.hub.join(client_id, screen)
    return screen


async def test_every_socket_of_a_client_gets_the_packet_framed_once(gateway: Gateway) -> None:
    phone, tablet = await joined(gateway), await joined(gateway, TABLET)
    other = await joined(gateway, client_id=CAROL)
    await gateway.send()
    assert phone.shown == [text_frame(await gateway.packet(BOB))]
    assert phone.shown[0] is tablet.shown[0]
    assert other.shown == []


async def test_a_packet_that_is_published_once_more_goes_to_nobody_who_has_it(gateway: Gateway) -> None:
    phone = await joined(gateway)
    ref = await gateway.send()
    await gateway.service.confirm(ref)
    assert len(phone.shown) == 1
    assert gateway.metrics.packets.count == 1


async def test_a_packet_says_whether_its_acknowledgement_matters(gateway: Gateway) -> None:
    phone, sender = await joined(gateway), await joined(gateway, client_id=ALICE)
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    assert phone.asked == [True, False]
    assert sender.asked == [False, False]


async def test_a_socket_counts_as_listening_until_it_leaves(gateway: Gateway) -> None:
    kicked: list[Kick] = []
    gateway.bus.on_kick(kicked.append)
    await gateway.register()
    phone = await joined(gateway)
    await gateway.send()
    assert kicked == []
    gateway.hub.leave(BOB, phone)
    await gateway.send()
    assert kicked == [Kick(BOB)]
    assert len(phone.shown) == 1


async def test_a_device_whose_socket_is_lost_is_woken_unless_it_has_another(gateway: Gateway) -> None:
    kicked: list[Kick] = []
    gateway.bus.on_kick(kicked.append)
    old, new = await joined(gateway), await joined(gateway)
    gateway.hub.leave(BOB, old)
    await gateway.hub.lost(BOB, PHONE)
    assert kicked == []
    gateway.hub.leave(BOB, new)
    await gateway.hub.lost(BOB, PHONE)
    assert kicked == [Kick(BOB, PHONE)]


async def test_who_leaves_twice_counts_once(gateway: Gateway) -> None:
    phone, tablet = await joined(gateway), await joined(gateway, TABLET)
    gateway.hub.leave(BOB, phone)
    gateway.hub.leave(BOB, phone)
    assert gateway.hub.sockets == 1
    gateway.hub.leave(BOB, tablet)
    assert gateway.hub.sockets == 0
    assert await gateway.bus.publish([gateway.hub.publication(await gateway.state(BOB))]) == [0]


async def test_a_device_that_connects_again_displaces_its_older_socket_alone(gateway: Gateway) -> None:
    older, tablet, other = await joined(gateway), await joined(gateway, TABLET), await joined(gateway, client_id=CAROL)
    gateway.pass_time(0.001)
    newer = await joined(gateway)
    await gateway.hub.displace(BOB, newer)
    assert older.dismissed == [Cause.DISPLACED]
    assert newer.dismissed == tablet.dismissed == other.dismissed == []


async def test_of_two_sockets_that_displace_each_other_exactly_one_stays(gateway: Gateway) -> None:
    """Through two processes at the same moment."""
    other_hub = Hub(gateway.changes, gateway.bus, gateway.metrics, gateway.wheel)
    one = await joined(gateway)
    other = Screen(other_hub)
    await other_hub.join(BOB, other)
    await gateway.hub.displace(BOB, one)
    await other_hub.displace(BOB, other)
    assert [Cause.DISPLACED] in (one.dismissed, other.dismissed)
    assert [] in (one.dismissed, other.dismissed)


async def test_logging_out_ends_the_sockets_that_were_open_by_then(gateway: Gateway) -> None:
    phone, tablet = await joined(gateway), await joined(gateway, TABLET)
    await gateway.hub.log_out(BOB, PHONE)
    assert (phone.dismissed, tablet.dismissed) == ([Cause.LOGGED_OUT], [])
    await gateway.hub.log_out(BOB)
    assert tablet.dismissed == [Cause.LOGGED_OUT]
    gateway.pass_time(0.001)
    again = await joined(gateway)
    assert again.dismissed == []


async def test_a_client_has_only_so_many_sockets_and_a_device_that_comes_back_needs_no_room(gateway: Gateway) -> None:
    screens = [await joined(gateway, DeviceId(f"device-{n}")) for n in range(SOCKETS_PER_CLIENT)]
    again = await joined(gateway, DeviceId("device-3"))
    too_many = Screen(gateway.hub, DeviceId("another"))
    with pytest.raises(RateLimited):
        await gateway.hub.join(BOB, too_many)
    gateway.hub.leave(BOB, too_many)
    await joined(gateway, client_id=CAROL)
    assert gateway.hub.sockets == len([*screens, again]) + 1


# --- Comparing versions


async def compared(gateway: Gateway, seconds: float) -> None:
    """What the hub does in that time."""
    comparing = asyncio.create_task(gateway.hub.run())
    for _ in range(round(seconds)):
        gateway.pass_time(1)
        gateway.wheel.advance()
        await settle()
    comparing.cancel()


async def test_a_packet_that_the_bus_lost_comes_within_five_minutes(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await joined(gateway)
    held = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=3600, device_id=TABLET))
    await settle()

    async def lost(publications: Sequence[Publication]) -> list[int]:
        return [1 for _ in publications]

    monkeypatch.setattr(gateway.bus, "publish", lost)
    await gateway.send()
    await compared(gateway, CHECK_S + 1)
    assert phone.shown == [text_frame(await gateway.packet(BOB))]
    assert held.done()
    assert (await held) == Packet((await gateway.state(BOB)).version, await gateway.packet(BOB))
    assert gateway.metrics.packets_late._value.get() == 1


async def test_clients_are_compared_once_in_five_minutes_each_and_not_all_at_once(gateway: Gateway) -> None:
    for n in range(300):
        await joined(gateway, client_id=ClientId(f"client-{n}"))
    loads: list[list[str]] = []

    def before(method: str, keys: Sequence[str]) -> None:
        if method == "load":
            loads.append(list(keys))

    gateway.documents.before = before
    await compared(gateway, CHECK_S + 1)
    first = [key for keys in loads for key in keys]
    assert len(set(first)) == 300
    loads.clear()
    await compared(gateway, CHECK_S)
    assert len([key for keys in loads for key in keys]) == 300
    assert max(map(len, loads)) < 30


async def test_a_store_that_fails_or_a_damaged_document_does_not_end_the_comparing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await joined(gateway)
    await joined(gateway, client_id=CAROL)
    await gateway.send()
    phone.version = 0
    [document] = await gateway.documents.load(["client:carol"])
    await gateway.documents.commit([Document("client:carol", document.version, b"damaged")])
    phone.shown.clear()

    def down(method: str, keys: Sequence[str]) -> None:
        raise StoreUnavailable("down")

    gateway.documents.before = down
    await gateway.hub.compare([BOB, CAROL])
    assert phone.shown == []
    gateway.documents.heal()
    await gateway.hub.compare([BOB, CAROL])
    assert phone.shown == [text_frame(await gateway.packet(BOB))]


async def shown(phone: Screen) -> None:
    async def anything() -> bool:
        return bool(phone.shown)

    await until(anything, "a packet comes")


async def test_after_a_gap_in_the_bus_whoever_is_served_gets_what_is_newer_but_not_all_at_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.live.hub.CHECK_PAUSE_S", 0.001)
    phone = await joined(gateway)
    clients = [ClientId(f"client-{n}") for n in range(300)]
    for client_id in clients:
        await joined(gateway, client_id=client_id)
    await gateway.send()
    phone.version = 0
    phone.shown.clear()
    loads: list[int] = []
    gateway.documents.before = lambda _, keys: loads.append(len(keys))
    comparing = asyncio.create_task(gateway.hub.run())

    gateway.hub.missed([*clients, BOB, ClientId("somebody else")])
    await shown(phone)
    assert phone.shown == [text_frame(await gateway.packet(BOB))]
    assert loads[:3] == [128, 128, 45]
    comparing.cancel()


async def test_a_gap_is_made_up_for_once_the_store_answers(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.live.hub.CHECK_AGAIN_S", 0.001)
    phone = await joined(gateway)
    await gateway.send()
    phone.version = 0
    phone.shown.clear()
    tries = 0

    def down(method: str, keys: Sequence[str]) -> None:
        nonlocal tries
        tries += 1
        if tries == 4:
            gateway.documents.heal()
        raise StoreUnavailable("down")

    gateway.documents.before = down
    comparing = asyncio.create_task(gateway.hub.run())
    gateway.hub.missed([BOB])
    await shown(phone)
    assert tries == 4
    comparing.cancel()


async def test_nothing_is_compared_for_those_who_have_left(gateway: Gateway) -> None:
    gateway.hub.leave(BOB, await joined(gateway))
    calls: list[str] = []
    gateway.documents.before = lambda *call: calls.append(call[0])
    await compared(gateway, CHECK_S + 1)
    assert calls == []


# --- The operator


async def test_who_is_sent_back_is_told_when_to_come_and_held_polls_are_answered(gateway: Gateway) -> None:
    phone, tablet = await joined(gateway), await joined(gateway, TABLET)
    other = await joined(gateway, client_id=CAROL)
    held = [asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=one)) for one in (PHONE, TABLET)]
    await settle()
    await gateway.hub.send_back(BOB, PHONE)
    await settle()
    assert [held[0].done(), held[1].done()] == [True, False]
    assert (len(phone.retries), tablet.retries) == (1, [])
    await gateway.hub.send_back(BOB)
    assert await asyncio.gather(*held) == [None, None]
    assert all(0 <= retry <= SENT_BACK_MS for retry in phone.retries + tablet.retries)
    assert (len(tablet.retries), other.retries) == (1, [])
    assert not phone.dismissed + tablet.dismissed


async def test_who_is_connected_is_told_by_client(gateway: Gateway) -> None:
    phone = await joined(gateway)
    phone.version = 5
    held = asyncio.create_task(gateway.hub.newer(BOB, 3, wait_s=60, device_id=None))
    await settle()
    assert gateway.hub.connected(BOB) == [
        Connected(True, PHONE, 7, 5, 0),
        Connected(False, None, gateway.clock.now_ms, 3, 0),
    ]
    assert gateway.hub.connected(CAROL) == []
    held.cancel()


# --- How long packets take


def packets_took(gateway: Gateway) -> dict[str, float]:
    """The buckets of the histogram, cumulative, and its sum."""
    [family] = gateway.metrics.packet_seconds.collect()
    return {sample.labels.get("le", sample.name.rpartition("_")[2]): sample.value for sample in family.samples}


async def test_a_packet_counts_once_with_the_time_since_its_change_however_many_sockets_it_goes_to(
    gateway: Gateway,
) -> None:
    await joined(gateway), await joined(gateway, TABLET)
    before = packets_took(gateway)
    version = gateway.clock.now_ms
    gateway.clock.now_s += 0.3
    for _ in range(2):
        gateway.hub.published(Publication(BOB, version, asks=False, encode=lambda: b"{}"))
    gateway.hub.published(Publication(CAROL, version, asks=False, encode=lambda: b"{}"))
    after = packets_took(gateway)
    assert {le: after[le] - before[le] for le in ("0.25", "0.5", "+Inf", "count")} == {
        "0.25": 0,
        "0.5": 1,
        "+Inf": 1,
        "count": 1,
    }
    assert after["sum"] - before["sum"] == pytest.approx(0.3, abs=0.002)


async def test_a_clock_that_is_behind_makes_no_packet_faster_than_at_once(gateway: Gateway) -> None:
    await joined(gateway)
    gateway.hub.published(Publication(BOB, gateway.clock.now_ms + 60_000, asks=False, encode=lambda: b"{}"))
    found = packets_took(gateway)
    assert (found["0.001"], found["+Inf"], found["sum"]) == (1, 1, 0)


async def test_a_packet_that_comes_late_counts_as_late_as_it_is(gateway: Gateway) -> None:
    phone = await joined(gateway)
    await gateway.send()
    phone.version -= 1  # the publication was lost
    gateway.clock.now_s += 40
    assert await gateway.hub.compare([BOB])
    found = packets_took(gateway)
    assert found["+Inf"] - found["30.0"] == 1
    assert found["60.0"] == found["+Inf"]


# --- The end


async def test_sockets_are_closed_in_batches_over_the_time_there_is(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    screens = [await joined(gateway, client_id=ClientId(f"client-{n}")) for n in range(1000)]
    monkeypatch.setattr("gateway.live.hub.DRAIN_STEP_S", 0.002)
    draining = asyncio.create_task(gateway.hub.drain(0.04, most_retry_ms=5000))
    told = [0]
    while told[-1] < len(screens):  # each batch is told at once, and its end is seen
        await asyncio.sleep(0)
        told.append(sum(bool(screen.retries) for screen in screens))
    for n, screen in enumerate(screens):
        gateway.hub.leave(ClientId(f"client-{n}"), screen)
    await draining
    steps = [after - before for before, after in itertools.pairwise(told) if after > before]
    assert len(steps) == 16
    assert max(steps) == 63
    retries = [screen.retries[0] for screen in screens]
    assert all(0 <= retry <= 5000 for retry in retries)
    assert len(set(retries)) > 500


async def test_few_sockets_are_closed_at_once(gateway: Gateway) -> None:
    screens = [await joined(gateway, client_id=ClientId(f"client-{n}")) for n in range(40)]
    draining = asyncio.create_task(gateway.hub.drain(30.0, most_retry_ms=5000))
    await settle()
    assert all(screen.retries for screen in screens)
    gateway.hub.abort()
    assert all(screen.retries[-1] == -1 for screen in screens)
    draining.cancel()


async def test_after_the_end_no_socket_joins(gateway: Gateway) -> None:
    gateway.hub.close()
    with pytest.raises(Unavailable):
        await joined(gateway)
    assert gateway.hub.sockets == 0

"""What the object store says was stored is settled by the same rules, whenever and however often it says so."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway import app
from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.service import Answer, Said
from gateway.transit.decisions import DUPLICATE, VideoRef
from gateway.transit.policy import DAY_MS, Policy
from gateway.transit.state import ClientId, Status
from gateway.uploads import AT_ONCE, RETRY_MOST_S
from push.console import ConsoleSender
from storage.documents import StoreUnavailable
from storage.events import UploadEvent, UploadEvents
from storage.objects import ObjectsUnavailable, UploadGrant
from tests.service.conftest import ALICE, BOB, CAROL, Gateway, chunks


class Events(UploadEvents):
    """Events that the test sends. `down`: so many times `receive` fails. `left`: what was received and is not done."""

    def __init__(self) -> None:
        self.down = 0
        self.done_fails = False
        self.left: dict[str, UploadEvent] = {}
        self.idle = asyncio.Event()
        self._waiting: deque[UploadEvent] = deque()
        self._came = asyncio.Event()
        self._sent = 0

    def send(self, *keys: str) -> None:
        """One event about these."""
        self._sent += 1
        self._waiting.append(UploadEvent(keys, f"receipt {self._sent}"))
        self._came.set()

    def repeat(self) -> None:
        """What is not done comes again."""
        self._waiting += self.left.values()
        self._came.set()

    async def receive(self) -> Sequence[UploadEvent]:
        if self.down:
            self.down -= 1
            raise ObjectsUnavailable("down")
        while not self._waiting:
            self.idle.set()
            self._came.clear()
            await self._came.wait()
            self.idle.clear()
        came = [self._waiting.popleft() for _ in range(min(10, len(self._waiting)))]
        self.left |= {event.receipt: event for event in came}
        return came

    async def done(self, events: Sequence[UploadEvent]) -> None:
        if self.done_fails:
            raise ObjectsUnavailable("down")
        for event in events:
            self.left.pop(event.receipt, None)

    async def close(self) -> None:
        return


@asynccontextmanager
async def taken(gateway: Gateway, events: Events) -> AsyncIterator[None]:
    """What is sent within is seen to at the end, as far as it can be."""
    events.idle.clear()
    task = asyncio.create_task(gateway.uploads.take(events))
    try:
        yield
        await asyncio.sleep(0)
        waiting = asyncio.create_task(events.idle.wait())
        async with asyncio.timeout(10):
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        assert not task.done(), task.exception()
    finally:
        task.cancel()


@pytest.fixture
def events() -> Events:
    return Events()


def counted(gateway: Gateway) -> dict[str, float]:
    """The metric, by result."""
    results = ("kept", "completed", "deleted", "waiting", "failed")
    counts = {result: gateway.metric("gateway_upload_events_total", result=result) for result in results}
    return {result: count for result, count in counts.items() if count}


async def test_an_upload_is_completed_when_its_event_comes(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce()
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.service.confirm(ref)).verdict == DUPLICATE
    assert (events.left, counted(gateway)) == ({}, {"completed": 1})


async def test_an_event_that_comes_twice_or_after_the_confirmation_changes_nothing(
    gateway: Gateway, events: Events
) -> None:
    ref = await gateway.send()
    before = await gateway.packet(BOB)
    async with taken(gateway, events):
        events.send(ref.object_key)
        events.send(ref.object_key, ref.object_key)
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.packet(BOB) == before
    assert await gateway.stored() == [ref.object_key]
    assert (events.left, counted(gateway)) == ({}, {"kept": 2})


async def test_of_two_uploads_whose_events_come_in_the_wrong_order_the_newer_stays(
    gateway: Gateway, events: Events
) -> None:
    older = await gateway.announce()
    gateway.pass_time(1)
    newer = await gateway.announce()
    async with taken(gateway, events):
        events.send(newer.object_key)
    async with taken(gateway, events):
        events.send(older.object_key)
    await gateway.removals.flush()
    assert await gateway.received_status(newer) is Status.UPLOADED
    assert await gateway.received_status(older) is None
    assert await gateway.stored() == [newer.object_key]


async def test_a_late_event_does_not_bring_back_what_was_deleted(gateway: Gateway, events: Events) -> None:
    ref = await gateway.send()
    await gateway.service.delete(ref)  # and the process dies before the object goes
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is None
    assert (events.left, counted(gateway)) == ({}, {"deleted": 1})


async def test_bytes_that_came_after_the_video_was_cancelled_go(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce(put=False)
    await gateway.service.delete(ref)
    await gateway.objects.receive(UploadGrant(ref.object_key, 4, "video/mp4", None), chunks())
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.stored() == []
    assert counted(gateway) == {"deleted": 1}


async def test_an_event_of_a_video_that_was_viewed_takes_its_bytes(gateway: Gateway, events: Events) -> None:
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is Status.VIEWED


async def test_an_event_that_is_later_than_any_upload_may_be_takes_the_bytes(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce()
    gateway.pass_time(gateway.policy.upload_window_ms // 1000 + DAY_MS // 1000)
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None


async def test_an_event_that_never_comes_is_made_up_for_by_the_sweep(gateway: Gateway) -> None:
    ref = await gateway.announce()
    assert (await gateway.sweep.round(full=False)).completed == 1
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_an_event_of_something_that_is_gone_is_done(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce(put=False)
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert (events.left, counted(gateway)) == ({}, {"waiting": 1})


async def test_an_event_about_nothing_is_done(gateway: Gateway, events: Events) -> None:
    async with taken(gateway, events):
        events.send()
    assert events.left == {}


async def test_what_is_no_video_goes_only_from_among_the_videos(gateway: Gateway, events: Events) -> None:
    await gateway.send()
    ours = ["0/what", "f/not-an-id/alice/bob"]
    foreign = ["backups/state.db", "photos/0/what", "00/what", "g/what"]
    for key in (*ours, *foreign):
        await gateway.objects.receive(UploadGrant(key, 4, "video/mp4", None), chunks())
    before = len(await gateway.stored())
    async with taken(gateway, events):
        events.send(*ours)
        events.send(*foreign)
        events.send("", "/", "0/", "0/ä b", "x" * 2000, "0/" + "x" * 2000)
    stored = await gateway.stored()
    assert set(foreign) <= set(stored)
    assert not set(ours) & set(stored)
    assert len(stored) == before - len(ours)
    assert events.left == {}


async def test_a_video_from_a_client_to_itself_goes(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce(put=False)
    own = VideoRef(ref.video_id, ALICE, ALICE).object_key
    await gateway.objects.receive(UploadGrant(own, 4, "video/mp4", None), chunks())
    async with taken(gateway, events):
        events.send(own)
    assert await gateway.stored() == []


async def test_bytes_under_the_id_of_a_video_to_somebody_else_go(gateway: Gateway, events: Events) -> None:
    ref = await gateway.send(ALICE, BOB)
    wrong = VideoRef(ref.video_id, ALICE, CAROL).object_key
    await gateway.objects.receive(UploadGrant(wrong, 4, "video/mp4", None), chunks())
    async with taken(gateway, events):
        events.send(wrong)
        events.send(ref.object_key)
    assert await gateway.stored() == [ref.object_key]


async def test_an_upload_without_room_waits_for_the_sweep(events: Events) -> None:
    gateway = Gateway(Policy(max_incoming=1))
    ref = await gateway.announce(ALICE, BOB)
    other = await gateway.send(CAROL, BOB)
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert (events.left, counted(gateway)) == ({}, {"waiting": 1})
    await gateway.service.delete(other)
    await gateway.sweep.round(full=False)
    assert await gateway.sent_status(ref) is Status.UPLOADED


async def test_an_event_comes_again_until_the_store_is_back(gateway: Gateway, events: Events) -> None:
    ref, other = await gateway.announce(ALICE, BOB), await gateway.announce(CAROL, BOB)

    def down(method: str, keys: Sequence[str]) -> None:
        raise StoreUnavailable("down")

    gateway.documents.before = down
    async with taken(gateway, events):
        events.send(ref.object_key)
        events.send(other.object_key)
    assert len(events.left) == 2
    assert counted(gateway) == {"failed": 2}
    gateway.documents.heal()
    async with taken(gateway, events):
        events.repeat()
    assert events.left == {}
    assert await gateway.received_status(ref) is await gateway.received_status(other) is Status.UPLOADED


async def test_one_that_fails_comes_again_and_the_others_are_done(
    gateway: Gateway, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [await gateway.announce(ClientId(f"sender{number}"), BOB) for number in range(3)]
    failing(gateway, monkeypatch, refs[1], Unavailable("not now"))
    async with taken(gateway, events):
        for ref in refs:
            events.send(ref.object_key)
    assert [event.keys for event in events.left.values()] == [(refs[1].object_key,)]
    assert counted(gateway) == {"completed": 2, "failed": 1}
    monkeypatch.undo()
    async with taken(gateway, events):
        events.repeat()
    assert events.left == {}
    assert await gateway.received_status(refs[1]) is Status.UPLOADED


async def test_an_event_of_many_objects_comes_again_while_one_of_them_fails(
    gateway: Gateway, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [await gateway.announce(ClientId(f"sender{number}"), BOB) for number in range(3)]
    failing(gateway, monkeypatch, refs[1], Unavailable("not now"))
    async with taken(gateway, events):
        events.send(*(ref.object_key for ref in refs))
    assert len(events.left) == 1
    monkeypatch.undo()
    async with taken(gateway, events):
        events.repeat()
    assert events.left == {}
    assert counted(gateway) == {"completed": 3, "failed": 1, "kept": 2}


async def test_a_fault_of_ours_with_one_object_keeps_no_other_waiting_and_does_not_come_again(
    gateway: Gateway, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [await gateway.announce(ClientId(f"sender{number}"), BOB) for number in range(3)]
    failing(gateway, monkeypatch, refs[1], RuntimeError("a bug"))
    async with taken(gateway, events):
        for ref in refs:
            events.send(ref.object_key)
    assert (events.left, counted(gateway)) == ({}, {"completed": 2, "failed": 1})
    monkeypatch.undo()
    await gateway.sweep.round(full=False)
    assert await gateway.received_status(refs[1]) is Status.UPLOADED


async def test_what_is_to_be_deleted_while_the_objects_are_away_comes_again(gateway: Gateway, events: Events) -> None:
    ended, live = await gateway.send(ALICE, BOB), await gateway.announce(CAROL, BOB)
    await gateway.service.delete(ended)
    gateway.objects.down = True
    async with taken(gateway, events):
        events.send(ended.object_key)
        events.send(live.object_key)
    assert [event.keys for event in events.left.values()] == [(ended.object_key,)]
    assert await gateway.received_status(live) is Status.UPLOADED
    gateway.objects.down = False
    async with taken(gateway, events):
        events.repeat()
    assert (events.left, await gateway.stored()) == ({}, [live.object_key])


async def test_while_no_events_can_be_had_it_waits_ever_longer_up_to_a_minute(gateway: Gateway, events: Events) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    gateway.uploads._sleep = sleep
    ref = await gateway.announce()
    events.down = 12
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert len(waits) == 12
    assert 0.5 <= waits[0] <= 1
    assert all(RETRY_MOST_S / 2 <= wait <= RETRY_MOST_S for wait in waits[6:])
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_events_that_could_not_be_ended_come_again_and_do_no_harm(gateway: Gateway, events: Events) -> None:
    ref = await gateway.announce()
    events.done_fails = True
    async with taken(gateway, events):
        events.send(ref.object_key)
    assert len(events.left) == 1
    events.done_fails = False
    async with taken(gateway, events):
        events.repeat()
    assert (events.left, counted(gateway)) == ({}, {"completed": 1, "kept": 1})


async def test_the_senders_of_many_events_are_loaded_together_and_few_uploads_are_completed_at_once(
    gateway: Gateway, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [await gateway.announce(ClientId(f"sender{number}"), BOB) for number in range(3 * AT_ONCE)]
    at_once, most = 0, 0
    confirm = gateway.service.confirm

    async def slow(ref: VideoRef, *, by_sender: bool = True) -> Answer:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        try:
            return await confirm(ref, by_sender=by_sender)
        finally:
            at_once -= 1

    monkeypatch.setattr(gateway.service, "confirm", slow)
    loads: list[int] = []
    gateway.documents.before = lambda method, keys: loads.append(len(keys)) if method == "load" else None
    async with taken(gateway, events):
        events.send(*(ref.object_key for ref in refs))
    assert most == AT_ONCE
    assert loads[0] == len(refs)
    assert counted(gateway) == {"completed": len(refs)}


@pytest.mark.parametrize("worker", [True, False])
async def test_a_worker_takes_the_events_that_it_is_wired_with(gateway: Gateway, events: Events, worker: bool) -> None:
    secret = {"GATEWAY_JWT_SECRET": "0123456789abcdef0123456789abcdef", "GATEWAY_SWEEP_S": "86400"}
    settings = Settings.load(secret)
    wired = app.wired(
        settings,
        documents=gateway.documents,
        objects=gateway.objects,
        bus=gateway.bus,
        senders={},
        console=ConsoleSender(),
        events=events,
        clock=gateway.clock,
    )
    async with app.running(wired, settings, worker=worker):
        for _ in range(100):
            await asyncio.sleep(0)  # the rounds at the start find nothing
        ref = await gateway.announce()
        events.send(ref.object_key)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await gateway.sent_status(ref) is Status.UPLOADED) == worker
    await wired.close()


def failing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, ref: VideoRef, error: Exception) -> None:
    """Confirming this one fails."""
    confirm = gateway.service.confirm

    async def fail(other: VideoRef, *, by_sender: bool = True) -> Answer:
        if other == ref:
            raise error
        return await confirm(other, by_sender=by_sender)

    monkeypatch.setattr(gateway.service, "confirm", fail)

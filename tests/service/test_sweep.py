"""What calls that died left behind is completed or removed."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gateway import mending, processes, progress, sweep
from gateway.changes import CLIENT_PREFIX
from gateway.errors import TooManyInTransit, Unavailable
from gateway.mending import Found
from gateway.progress import FULL_KEY, TURN_KEY, Progress, Turn
from gateway.registry import TOKEN_PREFIX, TokenOwner, encode_owner, hash_token
from gateway.service import Said
from gateway.sweep import Sweep
from gateway.transit.decisions import DUPLICATE, VideoRef
from gateway.transit.policy import DAY_MS, HOUR_MS, Policy
from gateway.transit.state import ClientId, Status
from storage.documents import Document, ScanPage, StoreUnavailable
from storage.objects import UploadGrant
from storage.usage import Usage
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, Clock, Gateway, chunks

DAY_S = DAY_MS // 1000
HOUR_S = HOUR_MS // 1000


def second_half_lost(gateway: Gateway) -> None:
    """The store goes away after the next write of one document."""
    inner = gateway.documents.inner
    commit = inner.commit

    async def half(documents: Sequence[Document]) -> list[Document]:
        inner.commit = commit  # type: ignore[method-assign]
        await commit(documents[:1])
        raise StoreUnavailable("gone")

    inner.commit = half  # type: ignore[method-assign]


@pytest.mark.parametrize("full", [False, True])
async def test_an_upload_that_was_stored_and_never_confirmed_is_completed(gateway: Gateway, full: bool) -> None:
    ref = await gateway.announce()
    found = await gateway.sweep.round(full=full)
    assert (found.objects, found.completed, found.failed) == (1, 1, 0)
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.service.confirm(ref)).verdict == DUPLICATE
    assert (await gateway.sweep.round(full=full)).completed == 0


async def test_what_ended_is_not_completed_and_its_bytes_go(gateway: Gateway) -> None:
    video_id, upload = await gateway.service.announce(ALICE, BOB, size=4, content_type="video/mp4")
    ref = VideoRef(video_id, ALICE, BOB)
    await gateway.service.delete(ref)
    await gateway.put(ref, upload.url)
    assert (await gateway.sweep.round(full=False)).deleted == 1
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None


async def test_bytes_that_nothing_names_go(gateway: Gateway) -> None:
    await gateway.objects.receive(UploadGrant("0/what", 4, "video/mp4", None), chunks())
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []


async def test_an_upload_older_than_any_that_may_be_confirmed_goes(gateway: Gateway) -> None:
    ref = await gateway.announce()
    gateway.pass_time(gateway.policy.upload_window_ms // 1000 + 1)
    assert (await gateway.sweep.round(full=False)).objects == 0
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None


async def test_bytes_that_could_not_be_deleted_go_with_the_next_round(gateway: Gateway) -> None:
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    gateway.objects.down = True
    await gateway.removals.flush()
    gateway.objects.down = False
    assert await gateway.stored() == [ref.object_key]
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []


async def test_an_upload_without_room_waits_and_tells_its_sender_why(gateway: Gateway) -> None:
    full = Gateway(Policy(max_incoming=1))
    ref = await full.announce(ALICE, BOB)
    other = await full.send(CAROL, BOB)
    await full.sweep.round(full=True)
    assert await full.sent_status(ref) is None
    assert ref.object_key in await full.stored()
    await full.service.delete(other)
    await full.sweep.round(full=True)
    assert await full.sent_status(ref) is Status.UPLOADED
    late = await gateway.announce(ALICE, BOB)
    assert await gateway.stored() == [late.object_key]


async def test_a_sender_that_confirms_without_room_hears_it_though_the_sweep_came_first() -> None:
    gateway = Gateway(Policy(max_incoming=1))
    ref = await gateway.announce(ALICE, BOB)
    await gateway.send(CAROL, BOB)
    await gateway.sweep.round(full=True)
    with pytest.raises(TooManyInTransit):
        await gateway.service.confirm(ref)


async def test_a_copy_that_was_never_written_is_made(gateway: Gateway) -> None:
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)
    assert await gateway.received_status(ref) is None
    assert (await gateway.sweep.round(full=True)).mended == 1
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.sweep.round(full=True)).mended == 0


async def test_a_status_that_never_reached_the_sender_does(gateway: Gateway) -> None:
    ref = await gateway.send()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.report(BOB, [Said(ref.video_id, Status.DOWNLOADED)])
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert (await gateway.sweep.round(full=True)).mended == 1
    assert await gateway.sent_status(ref) is Status.DOWNLOADED


@pytest.mark.parametrize("lost", [ALICE, BOB])
async def test_a_lost_record_is_mended_from_the_other_as_the_sender_has_it(gateway: Gateway, lost: str) -> None:
    ref = await gateway.send()
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + lost])
    await gateway.documents.inner.commit([Document(document.key, document.version)])
    gateway.pass_time(1)
    await gateway.sweep.round(full=True)
    await gateway.sweep.round(full=True)
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED


async def test_a_token_that_no_device_has_goes_once_no_registration_can_be_under_way(gateway: Gateway) -> None:
    await gateway.register()
    key = hash_token("stranded")
    body = encode_owner(TokenOwner(BOB, PHONE, "stranded"))
    await gateway.documents.inner.commit([Document(TOKEN_PREFIX + key, 0, body)])
    assert (await gateway.sweep.round(full=True)).tokens == 0
    gateway.pass_time(HOUR_S + 1)
    assert (await gateway.sweep.round(full=True)).tokens == 1
    assert await gateway.registry.owner(key) is None
    assert await gateway.registry.owner(hash_token("token")) is not None


async def test_a_document_that_cannot_be_read_does_not_keep_the_others_from_being_mended(gateway: Gateway) -> None:
    await gateway.send(CAROL, BOB)
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + CAROL])
    await gateway.documents.inner.commit([replace(document, body=b"what")])
    found = await gateway.sweep.round(full=True)
    assert found.failed > 0
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_two_sweeps_at_once_do_no_harm(gateway: Gateway) -> None:
    refs = [await gateway.announce(ALICE, BOB), await gateway.announce(CAROL, BOB), await gateway.announce(BOB, ALICE)]
    await asyncio.gather(gateway.sweep.round(full=True), gateway.sweep.round(full=True))
    for ref in refs:
        assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED


# --- What recent rounds cost


def loads(gateway: Gateway) -> list[Sequence[str]]:
    """What is loaded from now on."""
    loaded: list[Sequence[str]] = []
    gateway.documents.before = lambda method, keys: loaded.append(keys) if method == "load" else None
    return loaded


async def test_a_recent_upload_that_was_seen_to_is_not_read_again(gateway: Gateway) -> None:
    stranded, tracked = await gateway.announce(ALICE, BOB), await gateway.send(CAROL, BOB)
    assert (await gateway.sweep.round(full=False)).completed == 1
    loaded = loads(gateway)
    found = await gateway.sweep.round(full=False)
    assert (found.objects, found.clients, loaded) == (2, 0, [])
    late = await gateway.announce(BOB, ALICE)
    assert (await gateway.sweep.round(full=False)).completed == 1
    assert {key for keys in loaded for key in keys} == {CLIENT_PREFIX + ALICE, CLIENT_PREFIX + BOB}
    for ref in (stranded, tracked, late):
        assert await gateway.received_status(ref) is Status.UPLOADED


async def test_an_upload_that_waits_for_room_is_looked_at_again() -> None:
    gateway = Gateway(Policy(max_incoming=1))
    ref = await gateway.announce(ALICE, BOB)
    other = await gateway.send(CAROL, BOB)
    await gateway.sweep.round(full=False)
    await gateway.service.delete(other)
    assert (await gateway.sweep.round(full=False)).completed == 1
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_the_senders_of_a_page_are_loaded_together(gateway: Gateway) -> None:
    refs = [await gateway.send(ClientId(f"sender{number}"), BOB) for number in range(40)]
    shards = {ref.video_id[-1] for ref in refs}
    for full in (False, True):
        loaded = loads(gateway)
        await gateway.another_sweep().round(full=full)
        senders = [keys for keys in loaded if any("sender" in key for key in keys)]
        assert len(senders) <= len(shards) + (1 if full else 0)


async def test_what_is_no_longer_listed_is_forgotten(gateway: Gateway) -> None:
    await gateway.send(ALICE, BOB)
    await gateway.sweep.round(full=False)
    assert sum(map(len, gateway.sweep._kept.values())) == 1
    gateway.pass_time(gateway.policy.upload_window_ms // 1000 + 1)
    await gateway.sweep.round(full=False)
    assert sum(map(len, gateway.sweep._kept.values())) == 0


async def test_no_more_is_remembered_than_there_is_room_for(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MOST_KEPT", 1)
    for number in range(64):
        await gateway.announce(ClientId(f"sender{number}"), ClientId(f"recipient{number}"))
    assert (await gateway.sweep.round(full=False)).completed == 64
    assert max(map(len, gateway.sweep._kept.values())) == 1
    assert (await gateway.sweep.round(full=False)).objects == 64


async def test_an_upload_whose_second_half_was_lost_is_mended_by_a_recent_round(gateway: Gateway) -> None:
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)
    assert await gateway.received_status(ref) is None
    assert (await gateway.sweep.round(full=False)).mended == 1
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.sweep.round(full=False)).clients == 0


async def test_a_pair_that_could_not_be_mended_is_looked_at_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)

    async def fail(*_: object) -> bool:
        raise Unavailable("not now")

    monkeypatch.setattr(gateway.changes, "repair", fail)
    assert (await gateway.sweep.round(full=False)).failed == 1
    monkeypatch.undo()
    assert (await gateway.sweep.round(full=False)).mended == 1
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_one_sender_that_cannot_be_read_keeps_no_other_upload_waiting(gateway: Gateway) -> None:
    await gateway.announce(CAROL, BOB)
    ref = await gateway.announce(ALICE, BOB)
    await gateway.documents.inner.commit([Document(CLIENT_PREFIX + CAROL, 0, b"what")])
    found = await gateway.sweep.round(full=False)
    assert (found.completed, found.failed) == (1, 1)
    assert await gateway.received_status(ref) is Status.UPLOADED


@pytest.mark.parametrize("full", [False, True])
async def test_what_was_deleted_does_not_come_back_though_the_process_died_before_its_bytes_went(
    gateway: Gateway, full: bool
) -> None:
    ref = await gateway.send()
    await gateway.service.delete(ref)
    assert await gateway.stored() == [ref.object_key]
    assert (await gateway.another_sweep().round(full=full)).deleted == 1
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is None


def test_what_a_sweep_cost_is_said_of_each_store_that_counts() -> None:
    usage = Usage()
    assert [*processes._cost(usage)] == []
    usage.requests.update({("s3", "List"): 16, ("dynamodb", "Scan"): 4, ("dynamodb", "BatchGetItem"): 7})
    usage.units["dynamodb", "Scan", "read"] += 8.5
    usage.units["dynamodb", "BatchGetItem", "read"] += 4
    assert [*processes._cost(usage)] == ["dynamodb: 7 BatchGetItem, 4 Scan, 12.5 read units", "s3: 16 List"]


# --- Time, for many workers at once


class Timeline:
    """A clock that many wait for: it goes from one to the next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        wakes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self._clock.now_s + seconds, self._count, wakes))
        await wakes

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def pass_time(self, seconds: float) -> None:
        end_s = self._clock.now_s + seconds
        await self._settle()
        while self._waiting and self._waiting[0][0] <= end_s:
            self._clock.now_s, _, wakes = heapq.heappop(self._waiting)
            if not wakes.done():
                wakes.set_result(None)
                await self._settle()
        self._clock.now_s = end_s

    async def kill(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await self._settle()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        failures = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(failure, asyncio.CancelledError) for failure in failures), failures

    @staticmethod
    async def _settle() -> None:
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.fixture
async def timeline(gateway: Gateway) -> AsyncIterator[Timeline]:
    timeline = Timeline(gateway.clock)
    yield timeline
    await timeline.close()


def rounds_of(gateway: Gateway) -> list[float]:
    """When rounds over objects begin, from now on, in seconds from now."""
    begun: list[float] = []
    start_s = gateway.clock.now_s

    def before(method: str, keys: Sequence[str]) -> None:
        if (method, *keys) == ("list", "0/"):
            begun.append(round(gateway.clock.now_s - start_s))

    gateway.objects.before = before
    return begun


async def test_of_two_workers_one_sweeps_and_keeps_the_turn(gateway: Gateway, timeline: Timeline) -> None:
    await gateway.send()
    begun, loaded = rounds_of(gateway), loads(gateway)
    for _ in range(2):
        timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    await timeline.pass_time(3600)
    assert begun == [300 * number for number in range(13)]
    turns = [keys for keys in loaded if TURN_KEY in keys]
    assert len(turns) <= 2 * 13
    assert len([keys for keys in loaded if CLIENT_PREFIX + ALICE in keys]) == 1


async def test_a_worker_whose_rounds_take_long_keeps_the_turn_and_rests_in_between(
    gateway: Gateway, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[float, Sweep]] = []
    start_s = gateway.clock.now_s

    async def slow(self: Sweep, _: Found) -> None:
        begun.append((round(gateway.clock.now_s - start_s), self))
        await timeline.sleep(270)

    monkeypatch.setattr(Sweep, "_recent", slow)
    workers = [gateway.another_sweep(sleep=timeline.sleep) for _ in range(2)]
    for worker in workers:
        timeline.start(worker.run(300, turn_s=450))
    await timeline.pass_time(1800)
    assert begun == [(345 * number, workers[0]) for number in range(6)]


async def test_the_turn_of_a_worker_that_died_passes_to_another(gateway: Gateway, timeline: Timeline) -> None:
    begun = rounds_of(gateway)
    first = timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    await timeline.pass_time(10)
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    await timeline.pass_time(600)
    assert begun == [0, 300, 600]
    await timeline.kill(first)
    await timeline.pass_time(600)
    assert len(begun) == 4
    assert 600 + 450 <= begun[3] <= 600 + 450 + 2


async def test_a_lone_worker_that_is_restarted_waits_for_its_own_turn_no_longer_than_that(
    gateway: Gateway, timeline: Timeline
) -> None:
    begun = rounds_of(gateway)
    first = timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=60))
    await timeline.pass_time(10)
    await timeline.kill(first)
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=60))
    await timeline.pass_time(400)
    assert [at // 10 for at in begun] == [0, 6, 36]


async def test_one_round_on_request_asks_nobody_for_the_turn(gateway: Gateway, timeline: Timeline) -> None:
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    await timeline.pass_time(10)
    await gateway.announce()
    assert (await gateway.sweep.round(full=False)).completed == 1


async def test_a_turn_that_cannot_be_read_or_meant_is_nobodys(gateway: Gateway, timeline: Timeline) -> None:
    far = msgspec.json.encode(Turn("somebody", gateway.clock.now_ms + 400 * DAY_MS))
    for body in (b"what", b"{}", b'{"by": 1}', far):
        [document] = await gateway.documents.inner.load([TURN_KEY])
        await gateway.documents.inner.commit([replace(document, body=body)])
        begun = rounds_of(gateway)
        task = timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
        await timeline.pass_time(1)
        assert len(begun) == 1
        await timeline.kill(task)


async def test_a_store_that_is_away_is_waited_for(gateway: Gateway, timeline: Timeline) -> None:
    def down(method: str, keys: Sequence[str]) -> None:
        raise StoreUnavailable("down")

    gateway.documents.before = down
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run_full(DAY_S, look_s=300))
    await timeline.pass_time(1000)
    gateway.documents.heal()
    ref = await gateway.announce()
    await timeline.pass_time(400)
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_a_fault_of_ours_is_not_met_again_at_once(
    gateway: Gateway, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    async def fail(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(Sweep, "_recent", fail)
    timeline.start(gateway.another_sweep(sleep=timeline.sleep).run(300, turn_s=450))
    await timeline.pass_time(3600)
    assert tried == 13


# --- Full passes


def passes_of(gateway: Gateway) -> list[float]:
    """When scans of the documents begin, from now on, in seconds from now."""
    begun: list[float] = []
    start_s = gateway.clock.now_s
    gateway.documents.before = lambda method, _: (
        begun.append(round(gateway.clock.now_s - start_s)) if method == "scan" else None
    )
    return begun


async def full_progress(gateway: Gateway) -> Progress:
    [document] = await gateway.documents.inner.load([FULL_KEY])
    return msgspec.json.decode(document.body, type=Progress)


async def put_progress(gateway: Gateway, told: Progress | bytes) -> None:
    [document] = await gateway.documents.inner.load([FULL_KEY])
    body = told if isinstance(told, bytes) else msgspec.json.encode(told)
    await gateway.documents.inner.commit([replace(document, body=body)])


async def test_everything_is_looked_at_once_a_day_whoever_does_it_and_however_often_they_start(
    gateway: Gateway, timeline: Timeline
) -> None:
    begun = passes_of(gateway)
    for _ in range(5):
        tasks = [
            timeline.start(gateway.another_sweep(sleep=timeline.sleep).run_full(DAY_S, look_s=300)) for _ in range(2)
        ]
        await timeline.pass_time(DAY_S / 2)
        for task in tasks:
            await timeline.kill(task)
    days = sorted({int(at // DAY_S) for at in begun})
    assert days == [0, 1, 2]
    assert len(begun) == 3 * progress.PARTS


async def test_a_pass_that_was_cut_off_is_finished_by_another_worker_within_minutes(
    gateway: Gateway, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 1)
    for number in range(20):
        await gateway.send(ClientId(f"sender{number:02}"), BOB)
    dying = gateway.another_sweep(rate=1, sleep=timeline.sleep)
    first = timeline.start(dying.run_full(DAY_S, look_s=300))
    await timeline.pass_time(30)
    by = (await full_progress(gateway)).by
    timeline.start(gateway.another_sweep(rate=1, sleep=timeline.sleep).run_full(DAY_S, look_s=300))
    await timeline.pass_time(6)
    await timeline.kill(first)
    cut_off = await full_progress(gateway)
    assert (cut_off.by, cut_off.after) == (by, None)  # the second has left it to the first
    assert cut_off.began
    scans: list[str | None] = []
    scan = gateway.documents.inner.scan

    async def noted(*, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        if part == 0:
            scans.append(cursor)
        return await scan(cursor=cursor, limit=limit, part=part, parts=parts)

    monkeypatch.setattr(gateway.documents.inner, "scan", noted)
    await timeline.pass_time(300)
    assert (await full_progress(gateway)).began == 0
    assert scans[0] is not None
    assert scans[0] == cut_off.cursors[0]


async def test_a_pass_on_request_goes_on_where_one_was_cut_off_or_begins_anew(gateway: Gateway) -> None:
    refs = [await gateway.announce(ClientId(f"sender{number}"), BOB) for number in range(30)]
    keys = sorted(ref.object_key for ref in refs)
    now = gateway.clock.now_ms
    await put_progress(gateway, Progress(began=now, saved=now, by="somebody", after=keys[9]))
    assert (await gateway.sweep.round(full=True)).objects == 20
    await put_progress(gateway, Progress(began=now, saved=now, by="somebody", after=keys[9]))
    assert (await gateway.sweep.round(full=True, restart=True)).objects == 30
    assert (await gateway.sweep.round(full=True)).objects == 30
    assert (await full_progress(gateway)).ended == now


@pytest.mark.parametrize(
    "told",
    [
        b"what",
        b"{}",
        b'{"began": "yesterday"}',
        Progress(began=1, saved=1, by="somebody", after="zzz", cursors=(None,) * progress.PARTS),
        "other parts",
    ],
)
async def test_a_place_that_cannot_be_gone_on_from_is_not(gateway: Gateway, told: Progress | bytes | str) -> None:
    now = gateway.clock.now_ms
    if isinstance(told, str):
        told = Progress(began=now, saved=now, by="somebody", after=None, cursors=("", None))
    await gateway.announce()
    await put_progress(gateway, told)
    assert (await gateway.sweep.round(full=True)).completed == 1


async def test_a_cursor_that_the_store_refuses_has_the_pass_begin_anew(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await gateway.announce()
    scan = gateway.documents.inner.scan

    async def picky(*, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        if cursor == "of another store":
            raise ValueError("not a cursor")
        return await scan(cursor=cursor, limit=limit, part=part, parts=parts)

    monkeypatch.setattr(gateway.documents.inner, "scan", picky)
    now = gateway.clock.now_ms
    cursors = ("of another store", *("",) * (progress.PARTS - 1))
    await put_progress(gateway, Progress(began=now, saved=now, by="somebody", after=None, cursors=cursors))
    assert (await gateway.sweep.round(full=True)).completed == 1
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await full_progress(gateway)).ended == now


async def test_a_worker_leaves_off_when_its_pass_is_begun_anew_on_request(
    gateway: Gateway, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 1)
    for number in range(20):
        await gateway.send(ClientId(f"sender{number:02}"), BOB)
    timeline.start(gateway.another_sweep(rate=1, sleep=timeline.sleep).run_full(DAY_S, look_s=300))
    await timeline.pass_time(12)
    found = await gateway.sweep.round(full=True, restart=True)
    assert (found.objects, found.failed) == (20, 0)
    assert (await full_progress(gateway)).began == 0
    begun = passes_of(gateway)
    await timeline.pass_time(3600)
    assert begun == []


async def test_documents_of_nobody_known_are_left_alone(gateway: Gateway) -> None:
    others = [Document("what:ever", 0, b"x"), Document("nothing", 0, b"\xff")]
    await gateway.documents.inner.commit(others)
    await gateway.send()
    found = await gateway.sweep.round(full=True)
    assert (found.documents, found.failed) == (2 + 2 + 1, 0)  # those, two clients, and the sweep's own
    assert [document.body for document in await gateway.documents.inner.load(["what:ever", "nothing"])] == [
        b"x",
        b"\xff",
    ]


async def test_the_peers_of_a_page_are_loaded_together_and_few_of_many_at_a_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await gateway.send(ClientId(f"sender{number:02}"), ClientId(f"recipient{number:02}"))
    loaded = loads(gateway)
    await gateway.sweep._mending.page((await gateway.documents.inner.scan()).documents, Found())
    assert [len(keys) for keys in loaded] == [60]
    monkeypatch.setattr(mending, "MOST_PEERS", 7)
    loaded.clear()
    await gateway.sweep._mending.page((await gateway.documents.inner.scan()).documents, Found())
    assert [len(keys) for keys in loaded] == [7] * 8 + [4]


@pytest.mark.parametrize("rate", [1, 10, 500])
async def test_a_full_pass_takes_no_more_a_second_than_it_may(
    gateway: Gateway, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 5)
    for number in range(40):
        await gateway.send(ClientId(f"sender{number}"), ClientId(f"recipient{number}"))
    before_s = gateway.clock.now_s
    seen: list[tuple[float, int]] = []
    rest = sweep.Pace.rest

    async def noted(pace: sweep.Pace, things: int) -> None:
        seen.append((gateway.clock.now_s - before_s, things))
        await rest(pace, things)

    monkeypatch.setattr(sweep.Pace, "rest", noted)
    found = await gateway.another_sweep(rate=rate).round(full=True)
    things = sum(count for _, count in seen)
    assert things == found.objects + found.documents == 40 + 81
    total = 0
    for at_s, count in seen:
        assert total <= at_s * rate + 5 + 1e-3 * rate  # no more than what the time allows, and the page before
        total += count
    assert abs((gateway.clock.now_s - before_s) * rate - things) <= 10


async def test_recent_rounds_are_as_fast_as_they_can(gateway: Gateway) -> None:
    await gateway.send()
    before_s = gateway.clock.now_s
    await gateway.another_sweep(rate=1).round(full=False)
    assert gateway.clock.now_s == before_s


async def test_two_full_passes_of_two_machines_at_once_are_right(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 2)
    monkeypatch.setattr(progress, "SAVE_MS", 0)
    await broken(gateway)
    await asyncio.gather(
        gateway.another_sweep().round(full=True),
        gateway.another_sweep().round(full=True),
        gateway.another_sweep().round(full=True, restart=True),
        gateway.another_sweep().round(full=False),
    )
    assert await digest(gateway) == await undisturbed()


# --- Cut off anywhere


class Killed(asyncio.CancelledError):
    """The process is gone."""


async def broken(gateway: Gateway) -> None:
    """A small world in which everything has gone wrong that can."""
    await gateway.register(BOB, PHONE, "token")
    stranded = encode_owner(TokenOwner(BOB, PHONE, "stranded"))
    await gateway.documents.inner.commit([Document(TOKEN_PREFIX + hash_token("stranded"), 0, stranded)])
    gateway.pass_time(HOUR_S + 1)
    await gateway.announce(ALICE, BOB)
    await gateway.send(CAROL, ALICE)
    late = await gateway.send(ALICE, CAROL)
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.report(CAROL, [Said(late.video_id, Status.DOWNLOADED)])
    half = await gateway.announce(CAROL, BOB)
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(half)
    await gateway.service.delete(await gateway.send(BOB, ALICE))
    for key in ("0/what", "9/what", "f/what"):
        await gateway.objects.receive(UploadGrant(key, 4, "video/mp4", None), chunks())


async def digest(gateway: Gateway) -> object:
    """What is so in the end, without ids and versions."""
    clients = {}
    for client in (ALICE, BOB, CAROL):
        state = await gateway.state(client)
        clients[client] = [
            {peer: sorted(video.status for video in pair.videos.values()) for peer, pair in side.items() if pair.videos}
            for side in (state.outgoing, state.incoming)
        ]
    documents = (await gateway.documents.inner.scan()).documents
    stored = sorted(ref[1:] if (ref := VideoRef.parse(key)) else key for key in await gateway.stored())
    return clients, sorted(document.key for document in documents), stored


async def undisturbed() -> object:
    gateway = Gateway()
    await broken(gateway)
    await gateway.sweep.round(full=True)
    return await digest(gateway)


@contextlib.contextmanager
def killed_at(gateway: Gateway, call: int) -> Iterator[Callable[[], int]]:
    """From so many calls of stores on, nothing of this process happens any more; every other time the call itself has
    happened by then. How many calls there were."""
    calls = 0

    def before(method: str, keys: Sequence[str]) -> None:
        nonlocal calls
        calls += 1
        if calls > call or (calls == call and call % 2):
            raise Killed

    def after(method: str, keys: Sequence[str]) -> None:
        if calls >= call:
            raise Killed

    gateway.documents.before = gateway.objects.before = before
    gateway.documents.after = gateway.objects.after = after
    yield lambda: calls
    gateway.documents.heal()
    gateway.objects.heal()


async def rest(work: Awaitable[object]) -> bool:
    """Whether this comes to its end; if it is killed, whatever it began has stopped."""
    try:
        await work
    except asyncio.CancelledError:
        for _ in range(100):
            await asyncio.sleep(0)
        return False
    return True


@pytest.mark.parametrize("save_ms", [0, 5_000])
@pytest.mark.parametrize("half", [0, 1])
async def test_a_full_pass_that_is_killed_anywhere_and_gone_on_with_ends_as_if_nothing_had_been(
    monkeypatch: pytest.MonkeyPatch, save_ms: int, half: int
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 2)
    monkeypatch.setattr(progress, "SAVE_MS", save_ms)
    wanted = await undisturbed()
    ended, call = False, half
    while not ended:
        call += 2
        gateway = Gateway()
        await broken(gateway)
        with killed_at(gateway, call):
            ended = await rest(gateway.sweep.round(full=True))
        assert await rest(gateway.another_sweep().round(full=True))
        assert await digest(gateway) == wanted, f"killed at call {call}"
    assert call > 40

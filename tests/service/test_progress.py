"""Whose turn it is, and how far a pass is, as many processes read and write it."""

from dataclasses import replace

import pytest

from gateway.progress import FULL_KEY, PARTS, SAVE_MS, SILENT_MS, Notes, Overtaken, Progress
from gateway.transit.policy import DAY_MS, MINUTE_MS
from storage.documents import Conflict
from storage.memory import MemoryDocuments
from tests.service.conftest import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def documents(clock: Clock) -> MemoryDocuments:
    return MemoryDocuments(clock=clock)


@pytest.fixture
def one(documents: MemoryDocuments, clock: Clock) -> Notes:
    return Notes(documents, lambda: clock.now_ms)


@pytest.fixture
def other(documents: MemoryDocuments, clock: Clock) -> Notes:
    return Notes(documents, lambda: clock.now_ms)


async def begun(notes: Notes, *, restart: bool = False) -> Progress:
    return await notes.begin(await notes.progress(), restart=restart)


async def test_who_has_the_turn_keeps_it_while_it_is_prolonged(one: Notes, other: Notes, clock: Clock) -> None:
    for _ in range(10):
        assert await one.take_turn(90) == 0
        clock.now_s += 60
        assert await other.take_turn(90) == 30
    clock.now_s += 30
    assert await other.take_turn(90) == 0
    assert await one.take_turn(90) == 90


async def test_a_place_is_saved_every_few_seconds_and_not_each_time(
    one: Notes, documents: MemoryDocuments, clock: Clock
) -> None:
    place = await begun(one)
    [before] = await documents.load([FULL_KEY])
    for number in range(10):
        clock.now_s += SAVE_MS / 10_000
        place = await one.reached(replace(place, after=f"{number}"))
    [after] = await documents.load([FULL_KEY])
    assert after.version != before.version
    assert (await one.progress()).after == "9"
    await one.reached(replace(place, after="a"))
    assert (await documents.load([FULL_KEY])) == [after]


async def test_of_two_who_begin_at_once_one_does(one: Notes, other: Notes) -> None:
    mine, theirs = await one.progress(), await other.progress()
    await one.begin(mine)
    with pytest.raises(Conflict):
        await other.begin(theirs)


async def test_a_pass_is_somebody_elses_while_it_is_saved(one: Notes, other: Notes, clock: Clock) -> None:
    await begun(one)
    there = await other.progress()
    assert other.is_others(there)
    assert not one.is_others(there)
    clock.now_s += SILENT_MS / 1000
    assert not other.is_others(there)
    clock.now_s -= 400 * 86_400  # the other clock is wrong
    assert not other.is_others(there)


async def test_of_two_at_the_same_pass_both_may_save_and_the_first_to_end_it_ends_it_for_both(
    one: Notes, other: Notes, clock: Clock
) -> None:
    mine, theirs = await begun(one), await begun(other)
    assert mine.began == theirs.began
    clock.now_s += SAVE_MS / 1000
    mine = await one.reached(replace(mine, after="1"))
    theirs = await other.reached(replace(theirs, after="2"))
    assert (await one.progress()).after == "2"
    await one.end(mine)
    clock.now_s += SAVE_MS / 1000
    with pytest.raises(Overtaken):
        await other.reached(theirs)
    with pytest.raises(Overtaken):
        await other.end(theirs)
    assert (await one.progress()).began == 0


async def test_a_pass_that_is_begun_anew_ends_the_older_one_even_within_a_millisecond(
    one: Notes, other: Notes, clock: Clock
) -> None:
    mine = await begun(one)
    theirs = await begun(other, restart=True)
    assert theirs.began > mine.began
    with pytest.raises(Overtaken):
        await one.end(replace(mine, after=None, cursors=(None,) * PARTS))
    assert (await one.progress()) == theirs
    clock.now_s += SAVE_MS / 1000
    with pytest.raises(Overtaken):
        await one.reached(replace(mine, after="f"))


def test_a_pass_is_due_a_day_after_the_last_one_and_whenever_one_was_cut_off(clock: Clock) -> None:
    now = clock.now_ms
    assert Progress().is_due(now, DAY_MS)
    assert Progress(ended=now, began=now).is_due(now, DAY_MS)
    assert Progress(ended=now - DAY_MS).is_due(now, DAY_MS)
    assert not Progress(ended=now - DAY_MS + 1).is_due(now, DAY_MS)


def test_a_clock_that_is_minutes_behind_begins_no_pass_and_one_that_was_wrong_stops_none(clock: Clock) -> None:
    now = clock.now_ms
    assert not Progress(ended=now + 5 * MINUTE_MS).is_due(now, DAY_MS)
    assert Progress(ended=now + 400 * DAY_MS).is_due(now, DAY_MS)

"""The wheel, with a clock that only the test moves."""

import asyncio
import logging
import random
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from gateway.live.wheel import SLOTS, TICK_S, Wheel

REVOLUTION_S = SLOTS * TICK_S


class Clock:
    """Seconds that pass when the test says so. It does not begin at 0."""

    def __init__(self) -> None:
        self.now_s = 1_000.1

    def __call__(self) -> float:
        return self.now_s


class Item:
    """Notes its turns. `then`: what it does in one, and in how many seconds it wants the next."""

    def __init__(self, then: Callable[[], float] = lambda: 0) -> None:
        self.slot = -1
        self.turns: list[float] = []
        self.then = then

    def turn(self, now_s: float) -> float:
        self.turns.append(now_s)
        return self.then()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wheel(clock: Clock) -> Wheel:
    return Wheel(clock)


def pass_time(wheel: Wheel, clock: Clock, seconds: float, *, step_s: float = TICK_S / 4) -> None:
    """Let time pass in small steps, with a chance for turns after each."""
    end_s = clock.now_s + seconds
    while clock.now_s < end_s:
        clock.now_s += step_s
        wheel.advance()


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.249, 0.25, 0.251, 1, 1.9, 25, 59.4, 59.5])
@pytest.mark.parametrize("later_s", [0, 0.1, 0.25, 61.3])
def test_a_turn_comes_no_earlier_than_asked_and_within_a_tick_after(
    wheel: Wheel, clock: Clock, delay_s: float, later_s: float
) -> None:
    clock.now_s += later_s
    wheel.advance()
    item = Item()
    asked_s = clock.now_s
    wheel.schedule(item, delay_s)
    pass_time(wheel, clock, delay_s + 1, step_s=0.01)
    (came_s,) = item.turns
    assert asked_s + delay_s - 1e-9 <= came_s <= asked_s + delay_s + TICK_S + 0.011


def test_there_is_one_turn_for_each_that_was_asked_for(wheel: Wheel, clock: Clock) -> None:
    item = Item()
    wheel.schedule(item, 1)
    pass_time(wheel, clock, 3 * REVOLUTION_S)
    assert len(item.turns) == 1
    assert item.slot < 0


def test_a_negative_delay_is_as_good_as_none(wheel: Wheel, clock: Clock) -> None:
    item = Item()
    wheel.schedule(item, -100)
    pass_time(wheel, clock, 2 * TICK_S)
    assert len(item.turns) == 1


def test_whoever_answers_with_a_delay_is_given_turns_on_and_on(wheel: Wheel, clock: Clock) -> None:
    item = Item(lambda: 5)
    wheel.schedule(item, 5)
    pass_time(wheel, clock, 300, step_s=0.05)
    gaps = [later - earlier for earlier, later in pairwise(item.turns)]
    assert 57 <= len(item.turns) <= 60
    assert all(5 <= gap <= 5 + TICK_S + 0.051 for gap in gaps)


@pytest.mark.parametrize("delay_s", [0, -1])
def test_whoever_answers_without_one_has_no_more_turns(wheel: Wheel, clock: Clock, delay_s: float) -> None:
    item = Item(lambda: delay_s)
    wheel.schedule(item, 1)
    pass_time(wheel, clock, 130)
    assert len(item.turns) == 1


def test_a_longer_delay_than_a_revolution_has_a_turn_in_each(wheel: Wheel, clock: Clock) -> None:
    due_s = clock.now_s + 300
    item = Item(lambda: max(0, due_s - clock.now_s))
    wheel.schedule(item, 300)
    pass_time(wheel, clock, 400)
    *early, last = item.turns
    assert len(early) == 5
    assert all(turn_s < due_s for turn_s in early)
    assert due_s <= last <= due_s + 2 * TICK_S


def test_whoever_cancels_has_no_turn(wheel: Wheel, clock: Clock) -> None:
    item, other = Item(), Item()
    wheel.schedule(item, 1)
    wheel.schedule(other, 1)
    wheel.cancel(item)
    pass_time(wheel, clock, 70)
    assert item.turns == []
    assert len(other.turns) == 1


def test_to_cancel_twice_or_what_never_waited_does_nothing(wheel: Wheel, clock: Clock) -> None:
    item = Item()
    wheel.cancel(item)
    wheel.schedule(item, 1)
    wheel.cancel(item)
    wheel.cancel(item)
    wheel.schedule(item, 1)
    pass_time(wheel, clock, 2)
    wheel.cancel(item)
    assert len(item.turns) == 1


@pytest.mark.parametrize(("first_s", "second_s"), [(1, 3), (3, 1), (1, 1), (70, 1), (0, 3)])
def test_what_is_said_last_counts(wheel: Wheel, clock: Clock, first_s: float, second_s: float) -> None:
    item = Item()
    asked_s = clock.now_s
    wheel.schedule(item, first_s)
    wheel.schedule(item, second_s)
    pass_time(wheel, clock, 70)
    (came_s,) = item.turns
    assert second_s <= came_s - asked_s <= second_s + 2 * TICK_S


def test_a_turn_may_give_its_own_item_a_new_time(wheel: Wheel, clock: Clock) -> None:
    item = Item()

    def again() -> float:
        if len(item.turns) == 1:
            wheel.schedule(item, 2)
        return 0

    item.then = again
    asked_s = clock.now_s
    wheel.schedule(item, 1)
    pass_time(wheel, clock, 70)
    assert [int(turn_s - asked_s) for turn_s in item.turns] == [1, 3]


def test_what_a_turn_asks_for_at_once_comes_with_the_next_tick(wheel: Wheel, clock: Clock) -> None:
    item = Item(lambda: 0.001)
    wheel.schedule(item, 0.001)
    for count in range(1, 5):
        clock.now_s += TICK_S
        wheel.advance()
        wheel.advance()
        assert len(item.turns) == count


def test_a_turn_may_give_another_whose_time_has_come_a_new_one(wheel: Wheel, clock: Clock) -> None:
    items = [Item(), Item()]

    def postpone() -> float:
        for item in items:
            if not item.turns:
                wheel.schedule(item, 2)
        return 0

    items[0].then = items[1].then = postpone
    asked_s = clock.now_s
    wheel.schedule(items[0], 1)
    wheel.schedule(items[1], 1)
    pass_time(wheel, clock, 70)
    assert sorted(int(turn_s - asked_s) for item in items for turn_s in item.turns) == [1, 3]


def test_a_turn_may_cancel_another_whose_time_has_come(wheel: Wheel, clock: Clock) -> None:
    items = [Item(), Item()]

    def cancel_all() -> float:
        for item in items:
            wheel.cancel(item)
        return 0

    items[0].then = items[1].then = cancel_all
    wheel.schedule(items[0], 1)
    wheel.schedule(items[1], 1)
    pass_time(wheel, clock, 70)
    assert sum(len(item.turns) for item in items) == 1


def test_a_turn_may_schedule_and_cancel_others(wheel: Wheel, clock: Clock) -> None:
    later, never = Item(), Item()
    wheel.schedule(never, 2)

    def arrange() -> float:
        wheel.schedule(later, 1)
        wheel.cancel(never)
        return 0

    wheel.schedule(Item(arrange), 1)
    pass_time(wheel, clock, 70)
    assert len(later.turns) == 1
    assert never.turns == []


def test_a_turn_that_raises_is_logged_and_does_not_stop_the_others(
    wheel: Wheel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> float:
        raise RuntimeError("on purpose")

    bad, good = Item(fail), [Item(lambda: 1) for _ in range(50)]
    for item in (*good[:25], bad, *good[25:]):
        wheel.schedule(item, 1)
    with caplog.at_level(logging.ERROR, "gateway.live.wheel"):
        pass_time(wheel, clock, 3)
    assert len(bad.turns) == 1
    assert bad.slot < 0
    assert all(len(item.turns) >= 2 for item in good)
    assert [record.getMessage() for record in caplog.records] == ["a turn failed"]


def test_turns_that_are_late_are_made_up_for_in_one_go(wheel: Wheel, clock: Clock) -> None:
    items = [Item() for _ in range(40)]
    for number, item in enumerate(items):
        wheel.schedule(item, number / 2)
    clock.now_s += 30
    wheel.advance()
    assert [item.turns for item in items] == [[clock.now_s]] * 40


def test_after_a_late_turn_the_next_is_counted_from_now(wheel: Wheel, clock: Clock) -> None:
    item = Item(lambda: 5)
    wheel.schedule(item, 5)
    clock.now_s += 40
    wheel.advance()
    late_s = clock.now_s
    pass_time(wheel, clock, 6)
    assert len(item.turns) == 2
    assert item.turns[0] == late_s
    assert late_s + 5 <= item.turns[1] <= late_s + 5 + 2 * TICK_S


def test_ten_thousand_items_have_all_their_turns_in_time(wheel: Wheel, clock: Clock) -> None:
    chance = random.Random(1)
    asked_s = clock.now_s
    items = {Item(): chance.uniform(0, 50) for _ in range(10_000)}
    gone = set(chance.sample(list(items), 1_000))
    for item, delay_s in items.items():
        wheel.schedule(item, delay_s)
    for item in gone:
        wheel.cancel(item)
    pass_time(wheel, clock, 55)
    for item, delay_s in items.items():
        if item in gone:
            assert item.turns == []
        else:
            (came_s,) = item.turns
            assert delay_s - 1e-9 <= came_s - asked_s <= delay_s + 1.25 * TICK_S + 1e-9


async def test_it_turns_by_itself_until_it_is_cancelled() -> None:
    wheel = Wheel(asyncio.get_running_loop().time)
    came = asyncio.Event()

    def say() -> float:
        came.set()
        return 0

    running = asyncio.create_task(wheel.run())
    wheel.schedule(Item(say), 0)
    async with asyncio.timeout(5):
        await came.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()


def test_room_that_many_once_took_is_given_back(wheel: Wheel, clock: Clock) -> None:
    empty = sum(map(sys.getsizeof, wheel._slots))
    for _ in range(SLOTS):
        items = [Item() for _ in range(500)]
        for item in items:
            wheel.schedule(item, 30)
        for item in items:
            wheel.cancel(item)
        pass_time(wheel, clock, TICK_S)
    pass_time(wheel, clock, SLOTS * TICK_S)
    assert sum(map(sys.getsizeof, wheel._slots)) == empty

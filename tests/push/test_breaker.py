"""A provider that fails again and again is left alone, a little longer each time, and asked by one push whether it
works again."""

import pytest

from push.breaker import FIRST_PAUSE_S, LONGEST_WORD_S, MOST_FAILURES, MOST_PAUSE_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def is_closed(breaker: Breaker) -> bool:
    return breaker.closed


def fail(breaker: Breaker, times: int = MOST_FAILURES, after_s: float | None = None) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(), after_s=after_s)


def reopen(breaker: Breaker, clock: Clock) -> float:
    """Wait until it lets one through, and have that fail; how long that took."""
    before = clock.now_s
    while breaker.wait_s():
        clock.now_s += 0.25
    fail(breaker, 1)
    return clock.now_s - before


def test_it_opens_after_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, MOST_FAILURES - 1)
    assert is_closed(breaker)
    breaker.succeeded(breaker.begin())
    fail(breaker, MOST_FAILURES - 1)
    assert is_closed(breaker)
    assert breaker.wait_s() == 0
    fail(breaker, 1)
    assert not is_closed(breaker)
    assert breaker.wait_s() > 0


def test_after_a_pause_one_push_is_let_through_and_the_others_wait_for_what_comes_of_it(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker)
    clock.now_s += FIRST_PAUSE_S
    assert breaker.wait_s() == 0
    probe = breaker.begin()
    assert FIRST_PAUSE_S / 2 <= breaker.wait_s() <= FIRST_PAUSE_S
    breaker.succeeded(probe)
    assert is_closed(breaker)
    fail(breaker, MOST_FAILURES - 1)
    assert is_closed(breaker)


def test_each_pause_is_twice_as_long_up_to_a_minute(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    pauses = [reopen(breaker, clock) for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S]
    clock.now_s += MOST_PAUSE_S
    breaker.succeeded(breaker.begin())
    fail(breaker)
    assert reopen(breaker, clock) == FIRST_PAUSE_S


def test_the_providers_own_word_is_kept_within_bounds(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, after_s=30)
    clock.now_s += 29.9
    assert breaker.wait_s() > 0
    clock.now_s += 0.1
    assert breaker.wait_s() == 0
    fail(breaker, 1, after_s=86_400)
    clock.now_s += LONGEST_WORD_S
    assert breaker.wait_s() == 0


def test_not_all_who_wait_come_back_at_once(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    waits = {breaker.wait_s() for _ in range(100)}
    assert len(waits) > 50
    assert all(1.5 * FIRST_PAUSE_S <= wait_s <= 2 * FIRST_PAUSE_S for wait_s in waits)


def test_what_began_before_it_opened_neither_closes_it_nor_opens_it_for_longer(breaker: Breaker, clock: Clock) -> None:
    early = [breaker.begin() for _ in range(20)]
    fail(breaker)
    for begun in early[:10]:
        breaker.failed(begun)
    for begun in early[10:]:
        breaker.succeeded(begun)
    assert not is_closed(breaker)
    assert reopen(breaker, clock) == FIRST_PAUSE_S


def test_a_probe_that_was_cancelled_makes_room_for_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now_s += FIRST_PAUSE_S
    breaker.gave_up(breaker.begin())
    assert breaker.wait_s() == 0
    breaker.succeeded(breaker.begin())
    assert is_closed(breaker)

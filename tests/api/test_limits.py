import pytest

from gateway.api.limits import RateLimiter
from gateway.errors import RateLimited
from gateway.parsers import Rate


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.1

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def calls_until_refused(limiter: RateLimiter, client_id: str) -> int:
    for count in range(10_000):
        try:
            limiter.take(client_id)
        except RateLimited:
            return count
    raise AssertionError("never refused")


@pytest.mark.parametrize("rate", [Rate(20, 100), Rate(0.1, 1), Rate(3, 7), Rate(1000, 5000), Rate(7.3, 333)])
def test_a_burst_can_be_had_whole_and_not_more(clock: Clock, rate: Rate) -> None:
    assert calls_until_refused(RateLimiter(rate, clock=clock), "alice") == rate.burst


@pytest.mark.parametrize("rate", [Rate(20, 100), Rate(3, 7), Rate(7.3, 333)])
def test_one_token_returns_in_the_time_the_rate_says(clock: Clock, rate: Rate) -> None:
    limiter = RateLimiter(rate, clock=clock)
    calls_until_refused(limiter, "alice")
    clock.now_s += 0.9 / rate.per_s
    assert calls_until_refused(limiter, "alice") == 0
    clock.now_s += 0.1 / rate.per_s
    assert calls_until_refused(limiter, "alice") == 1


def test_a_steady_caller_at_the_rate_is_never_refused(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 2), clock=clock)
    for _ in range(1000):
        limiter.take("alice")
        clock.now_s += 0.05


def test_over_a_long_time_no_more_passes_than_rate_and_burst_allow(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    passed = 0
    for _ in range(6000):
        clock.now_s += 0.01
        try:
            limiter.take("alice")
        except RateLimited:
            continue
        passed += 1
    assert passed <= 100 + 60 * 20 + 1


def test_a_client_that_was_away_has_its_whole_burst_again_and_not_more(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    for away_s in (5, 6, 11, 1000):
        calls_until_refused(limiter, "alice")
        clock.now_s += away_s
        assert calls_until_refused(limiter, "alice") == 100


def test_clients_do_not_share_a_bucket(clock: Clock) -> None:
    limiter = RateLimiter(Rate(1, 1), clock=clock)
    limiter.take("alice")
    limiter.take("bob")
    assert calls_until_refused(limiter, "alice") == 0


@pytest.mark.parametrize(("rate", "after_s"), [(Rate(20, 1), 1), (Rate(0.1, 1), 10), (Rate(0.4, 3), 3)])
def test_a_refusal_says_in_whole_seconds_when_to_come_back(clock: Clock, rate: Rate, after_s: int) -> None:
    limiter = RateLimiter(rate, clock=clock)
    calls_until_refused(limiter, "alice")
    with pytest.raises(RateLimited) as refused:
        limiter.take("alice")
    assert refused.value.retry_after_s == after_s
    clock.now_s += after_s
    limiter.take("alice")


def test_a_refused_call_costs_nothing(clock: Clock) -> None:
    limiter = RateLimiter(Rate(1, 1), clock=clock)
    limiter.take("alice")
    for _ in range(100):
        assert calls_until_refused(limiter, "alice") == 0
    clock.now_s += 1
    limiter.take("alice")


@pytest.mark.parametrize("tokens", [1, 2, 7, 100])
def test_many_at_once_are_as_many_calls(clock: Clock, tokens: int) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    for _ in range(100 // tokens):
        limiter.take("alice", tokens)
    assert calls_until_refused(limiter, "alice") == 100 % tokens


def test_more_at_once_than_a_burst_are_refused_and_cost_nothing(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    with pytest.raises(RateLimited) as refused:
        limiter.take("alice", 10_000)
    assert refused.value.retry_after_s == 495
    clock.now_s += 1_000
    with pytest.raises(RateLimited):
        limiter.take("alice", 101)
    assert calls_until_refused(limiter, "alice") == 100


def test_without_a_rate_everybody_may_always_call(clock: Clock) -> None:
    limiter = RateLimiter(None, clock=clock)
    for _ in range(10_000):
        limiter.take("alice")


def test_clients_that_stay_away_are_forgotten(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    for number in range(10_000):
        limiter.take(f"client-{number}")
        clock.now_s += 0.01
    assert len(limiter._full_at) + len(limiter._older) <= 2 * 5 / 0.01 + 2


def test_being_forgotten_gives_nobody_more_than_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(Rate(20, 100), clock=clock)
    calls_until_refused(limiter, "alice")
    for _ in range(200):
        clock.now_s += 0.05
        assert calls_until_refused(limiter, "alice") == 1

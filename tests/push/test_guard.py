"""A guarded sender answers in time, sends so many at once and no more, leaves a failing provider alone, and does not
believe that everybody's token has died."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from push import guard
from push.breaker import MOST_FAILURES, MOST_PAUSE_S
from push.guard import LEAST_DEAD, WINDOW, WINDOW_S, GuardedSender
from push.sender import Accepted, Content, Environment, Outcome, Platform, Rejected, Retry, TokenDead, Wakeup
from tests.running import within

WAKEUP = Wakeup("id", Platform.APNS, Environment.PRODUCTION, "a-secret", "bob", Content(7, None, None), 0)
DOWN = Retry("down", outage=True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Provider:
    """A sender that says what it is told to, once it is let."""

    def __init__(self) -> None:
        self.answer: Callable[[Wakeup], Outcome] = lambda _: Accepted()
        self.let = asyncio.Event()
        self.let.set()
        self.asked = 0
        self.under_way = 0
        self.most = 0

    async def send(self, wakeup: Wakeup) -> Outcome:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.let.wait()
            return self.answer(wakeup)
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        self.answer = lambda _: Rejected("closed")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def sender(provider: Provider, clock: Clock) -> GuardedSender:
    return GuardedSender(provider, Platform.APNS, clock=clock)


async def sent(sender: GuardedSender, times: int = 1) -> list[Outcome]:
    return [await within(sender.send(WAKEUP)) for _ in range(times)]


async def started(provider: Provider, tasks: list[asyncio.Task[Outcome]], asked: int) -> None:
    for _ in range(len(tasks) + 10):
        await asyncio.sleep(0)
    assert provider.asked == asked


@pytest.mark.parametrize("outcome", [Accepted(), TokenDead(5), Rejected("no"), Retry("busy", 7_000), DOWN])
async def test_what_a_provider_says_is_passed_on(outcome: Outcome, sender: GuardedSender, provider: Provider) -> None:
    provider.answer = lambda _: outcome
    assert await sent(sender) == [outcome]


async def test_a_provider_that_does_not_answer_is_given_up(
    sender: GuardedSender, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "DEADLINE_S", 0.01)
    provider.let.clear()
    [outcome] = await sent(sender)
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert provider.under_way == 0


async def test_a_sender_that_breaks_its_contract_is_an_outage(
    sender: GuardedSender, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Wakeup) -> Outcome:
        raise RuntimeError("broken")

    provider.answer = broken
    [outcome] = await sent(sender)
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert "a sender failed" in caplog.text
    assert WAKEUP.token not in caplog.text


async def test_so_many_are_sent_at_once_and_the_others_wait_for_their_turn(
    sender: GuardedSender, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.let.clear()
    tasks = [asyncio.create_task(sender.send(WAKEUP)) for _ in range(guard.MOST_AT_ONCE + 20)]
    await started(provider, tasks, guard.MOST_AT_ONCE)
    assert sender.pause_ms() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sender.room()
    provider.let.set()
    assert set(await within(asyncio.gather(*tasks))) == {Accepted()}
    assert provider.most == guard.MOST_AT_ONCE
    await within(sender.room())


async def test_whoever_comes_when_too_many_wait_is_put_off(
    sender: GuardedSender, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.let.clear()
    tasks = [asyncio.create_task(sender.send(WAKEUP)) for _ in range(guard.MOST_AT_ONCE + guard.MOST_WAITING)]
    await started(provider, tasks, guard.MOST_AT_ONCE)
    assert 1_000 <= sender.pause_ms() <= 2_000
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert sender.pause_ms() == 0
    provider.let.set()
    await within(asyncio.gather(*tasks[1:]))


async def test_a_provider_that_fails_is_asked_no_more_for_a_while(
    sender: GuardedSender, provider: Provider, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider.answer = lambda _: DOWN
    outcomes = await sent(sender, MOST_FAILURES + 10)
    assert provider.asked == MOST_FAILURES
    assert outcomes[: MOST_FAILURES - 1] == [DOWN] * (MOST_FAILURES - 1)
    assert all(isinstance(outcome, Retry) and outcome.after_ms for outcome in outcomes[MOST_FAILURES - 1 :])
    assert sender.pause_ms() > 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    provider.answer = lambda _: Accepted()
    clock.now_s += MOST_PAUSE_S
    assert await sent(sender, 3) == [Accepted()] * 3
    assert sender.pause_ms() == 0
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


async def test_a_provider_that_is_asked_whether_it_works_again_is_asked_once(
    sender: GuardedSender, provider: Provider, clock: Clock
) -> None:
    provider.answer = lambda _: DOWN
    await sent(sender, MOST_FAILURES)
    clock.now_s += MOST_PAUSE_S
    provider.let.clear()
    tasks = [asyncio.create_task(sender.send(WAKEUP)) for _ in range(20)]
    await started(provider, tasks, MOST_FAILURES + 1)
    provider.answer = lambda _: Accepted()
    provider.let.set()
    outcomes = await within(asyncio.gather(*tasks))
    assert outcomes.count(Accepted()) == 1
    assert await sent(sender, 3) == [Accepted()] * 3


async def test_what_one_device_is_told_is_nothing_to_the_others(sender: GuardedSender, provider: Provider) -> None:
    """Whoever floods their own device makes nobody else's wait."""
    provider.answer = lambda _: Retry("too many for this device", 60_000)
    await sent(sender, 10 * MOST_FAILURES)
    assert provider.asked == 10 * MOST_FAILURES
    assert sender.pause_ms() == 0


async def test_cancelling_a_push_is_no_failure(sender: GuardedSender, provider: Provider) -> None:
    provider.let.clear()
    for n in range(2 * MOST_FAILURES):
        task = asyncio.create_task(sender.send(WAKEUP))
        await started(provider, [task], n + 1)
        task.cancel()
        await asyncio.wait([task])
    assert sender.breaker.closed
    assert sender.pause_ms() == 0


async def test_a_push_that_is_cancelled_while_it_asks_whether_the_provider_works_leaves_that_to_the_next(
    sender: GuardedSender, provider: Provider, clock: Clock
) -> None:
    provider.answer = lambda _: DOWN
    await sent(sender, MOST_FAILURES)
    clock.now_s += MOST_PAUSE_S
    provider.let.clear()
    task = asyncio.create_task(sender.send(WAKEUP))
    await started(provider, [task], MOST_FAILURES + 1)
    task.cancel()
    await asyncio.wait([task])
    provider.let.set()
    provider.answer = lambda _: Accepted()
    assert await sent(sender) == [Accepted()]


async def test_a_few_dead_tokens_are_believed(sender: GuardedSender, provider: Provider) -> None:
    provider.answer = lambda _: TokenDead(5)
    assert await sent(sender, LEAST_DEAD - 1) == [TokenDead(5)] * (LEAST_DEAD - 1)


async def test_dead_tokens_among_many_that_live_are_believed(sender: GuardedSender, provider: Provider) -> None:
    turns = iter(range(10**6))
    provider.answer = lambda _: TokenDead(5) if next(turns) % 3 == 0 else Accepted()
    assert TokenDead(5, doubtful=True) not in await sent(sender, 5 * WINDOW)


async def test_when_everybodys_token_is_dead_at_once_none_is_believed_and_the_operator_is_told_once(
    sender: GuardedSender, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    await sent(sender, WINDOW)
    provider.answer = lambda _: TokenDead(5)
    outcomes = await sent(sender, 2 * WINDOW)
    assert outcomes[: WINDOW // 2 - 1] == [TokenDead(5)] * (WINDOW // 2 - 1)
    assert outcomes[WINDOW // 2 - 1 :] == [TokenDead(5, doubtful=True)] * (WINDOW + WINDOW // 2 + 1)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "tokens are dead" in record.message


async def test_doubt_passes_with_the_hour(sender: GuardedSender, provider: Provider, clock: Clock) -> None:
    provider.answer = lambda _: TokenDead(5)
    await sent(sender, LEAST_DEAD)
    assert await sent(sender) == [TokenDead(5, doubtful=True)]
    clock.now_s += WINDOW_S
    assert await sent(sender) == [TokenDead(5)]


async def test_other_answers_say_nothing_of_tokens(sender: GuardedSender, provider: Provider) -> None:
    provider.answer = lambda _: Rejected("never like this")
    await sent(sender, WINDOW)
    provider.answer = lambda _: TokenDead(5)
    assert TokenDead(5, doubtful=True) in await sent(sender, LEAST_DEAD)


async def test_closing_closes_the_sender(sender: GuardedSender) -> None:
    await sender.close()
    assert await sent(sender) == [Rejected("closed")]


async def test_a_guard_is_one_providers(provider: Provider, sender: GuardedSender, clock: Clock) -> None:
    other = Provider()
    others = GuardedSender(other, Platform.FCM, clock=clock)
    provider.answer = lambda _: DOWN
    await sent(sender, 2 * MOST_FAILURES)
    fcm = replace(WAKEUP, platform=Platform.FCM, id=str(uuid.uuid4()))
    assert await within(others.send(fcm)) == Accepted()
    assert others.pause_ms() == 0

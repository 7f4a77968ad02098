"""A sender that can be relied on: it answers in time, does not drown its provider, and leaves one that is down alone.

Each provider has a guard of its own, so what one of them does is nothing to the other.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from push.breaker import Breaker
from push.sender import Accepted, Outcome, Platform, Retry, Sender, TokenDead, Wakeup

DEADLINE_S = 10.0
"""How long a provider may take over one push."""

MOST_AT_ONCE = 256
"""Pushes under way to a provider at a time: at 50 ms each, 5,000 a second."""

MOST_WAITING = 256
"""Pushes that may wait for their turn; those beyond are put off."""

CROWDED_S = 1.0
"""By how much those are put off, at least."""

WINDOW, WINDOW_S = 100, 3600.0
"""So many of a provider's last definite answers are looked at, of the last hour, ..."""

LEAST_DEAD = 10
"""... and this many, and as many as half of them, that say "no such token" are not believed: a wrong key or a wrong
environment looks like that, and people do not all delete the app at once."""

log = logging.getLogger(__name__)


class GuardedSender:
    """`sender` with a deadline, a limit, a circuit breaker, and doubt when suddenly everybody's token is dead."""

    def __init__(self, sender: Sender, platform: Platform, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.breaker = Breaker(clock)
        self.platform = platform
        self._clock = clock
        self._sender = sender
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._under_way = 0
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._answers: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._doubting = False

    def pause_ms(self) -> int:
        """0: a push may be sent now. Else after how long to come back."""
        wait_s = self.breaker.wait_s()
        if not wait_s and self._under_way >= MOST_AT_ONCE + MOST_WAITING:
            wait_s = CROWDED_S * random.uniform(1, 2)
        return math.ceil(wait_s * 1000)

    async def room(self) -> None:
        """Wait until no push waits for its turn."""
        await self._roomy.wait()

    async def send(self, wakeup: Wakeup) -> Outcome:
        """Send `wakeup` and say what became of it, soon after `DEADLINE_S` at the latest once it is its turn. Raises
        nothing but CancelledError."""
        self._count(1)
        try:
            async with self._slots:
                return await self._send(wakeup)
        finally:
            self._count(-1)

    async def close(self) -> None:
        """Release everything."""
        await self._sender.close()

    def _count(self, more: int) -> None:
        self._under_way += more
        if self._under_way <= MOST_AT_ONCE:
            self._roomy.set()
        else:
            self._roomy.clear()

    async def _send(self, wakeup: Wakeup) -> Outcome:
        if wait_s := self.breaker.wait_s():  # it has failed while this waited for its turn
            return Retry("the provider is left alone for now", math.ceil(wait_s * 1000))
        begun = self.breaker.begin()
        try:
            outcome = await self._answer(wakeup)
        except BaseException:
            self.breaker.gave_up(begun)
            raise
        return self._judged(outcome, begun)

    async def _answer(self, wakeup: Wakeup) -> Outcome:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._sender.send(wakeup)
        except TimeoutError:
            return Retry("the provider does not answer in time", outage=True)
        except Exception:  # a sender that breaks its contract must not take the client's other pushes with it
            log.exception("a sender failed", extra={"platform": self.platform})
            return Retry("the sender failed", outage=True)

    def _judged(self, outcome: Outcome, begun: int) -> Outcome:
        match outcome:
            case Retry(_, after_ms, True):
                return self._failed(outcome, after_ms, begun)
            case Accepted() | TokenDead():
                self._answers.append((self._clock(), isinstance(outcome, TokenDead)))
        self._succeeded(begun)
        if isinstance(outcome, TokenDead) and self._doubtful():
            return replace(outcome, doubtful=True)
        return outcome

    def _failed(self, outcome: Retry, after_ms: int | None, begun: int) -> Retry:
        was_closed = self.breaker.closed
        self.breaker.failed(begun, after_s=None if after_ms is None else after_ms / 1000)
        if was_closed and not self.breaker.closed:
            log.error(
                "a push provider fails, and is left alone for a while",
                extra={"platform": self.platform, "reason": outcome.reason},
            )
        if after_ms is None and (wait_s := self.breaker.wait_s()):
            return replace(outcome, after_ms=math.ceil(wait_s * 1000))
        return outcome

    def _succeeded(self, begun: int) -> None:
        was_closed = self.breaker.closed
        self.breaker.succeeded(begun)
        if self.breaker.closed and not was_closed:
            log.info("a push provider works again", extra={"platform": self.platform})

    def _doubtful(self) -> bool:
        oldest_s = self._clock() - WINDOW_S
        answers = [dead for at_s, dead in self._answers if at_s > oldest_s]
        dead = sum(answers)
        doubting = dead >= LEAST_DEAD and 2 * dead >= len(answers)
        if doubting and not self._doubting:
            log.error(
                "too many push tokens are dead at once: they are kept. Is the key or the environment wrong?",
                extra={"platform": self.platform, "dead": dead, "of": len(answers)},
            )
        self._doubting = doubting
        return doubting

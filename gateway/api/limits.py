"""How often a client may call, or send: a token bucket for each, kept as a single number.

The generic cell rate algorithm (ITU-T I.371): instead of tokens and when they were counted, it remembers the moment
at which the bucket will be full again. A call moves that moment on by the time that one token takes.
"""

import math
import time
from collections.abc import Callable

from gateway.errors import RateLimited
from gateway.parsers import Rate

_ROUNDING = 0.001
"""By this part of a token a call may come early: sums of floats are not exact, and a burst must be had whole."""


class RateLimiter:
    """Token buckets of all clients of one process; with `rate` None everybody may always call.

    Memory: one float for each client that called within the last two fill times (burst / rate seconds each; 5 s with
    20/100). A bucket untouched for one fill time is full, which is what an unknown client's is, so whole generations
    are dropped at once and no call ever pays for a clean-up.
    """

    def __init__(self, rate: Rate | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unlimited = rate is None
        self._token_s = 1 / rate.per_s if rate else 0.0
        self._fill_s = self._token_s * rate.burst if rate else 0.0
        self._ahead_s = self._fill_s - self._token_s * (1 - _ROUNDING)
        self._full_at: dict[str, float] = {}
        self._older: dict[str, float] = {}
        self._turn_at = clock() + self._fill_s

    def take(self, client_id: str, tokens: int = 1) -> None:
        """Take tokens of `client_id`. Raises RateLimited, with when there will be so many, if there are not.

        What is refused costs the client nothing.
        """
        if self._unlimited:
            return
        now = self._clock()
        if now >= self._turn_at:
            self._turn(now)
        full_at = self._full_at.get(client_id) or self._older.get(client_id, now)
        wait_s = max(full_at, now) - now - self._ahead_s + (tokens - 1) * self._token_s
        if wait_s > 0:
            raise RateLimited("too many calls", retry_after_s=max(1, math.ceil(wait_s)))
        self._full_at[client_id] = max(full_at, now) + tokens * self._token_s

    def _turn(self, now: float) -> None:
        """Forget the older generation: each of its buckets was last touched a fill time ago or more, and is full."""
        idle = now >= self._turn_at + self._fill_s
        self._older = {} if idle else self._full_at
        self._full_at = {}
        self._turn_at = now + self._fill_s

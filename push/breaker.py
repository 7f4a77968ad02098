"""When a provider is left alone: a circuit breaker. Pure, but for its clock and its dice.

*Closed*, everything is sent. After `MOST_FAILURES` failures in a row it *opens*: nothing is sent for a pause. Then one
push is let through: if that fails too, the next pause is twice as long; if not, the breaker is closed again.
"""

import random
from collections.abc import Callable

MOST_FAILURES = 5
"""So many failures with no success in between open the breaker."""

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
"""How long it stays open: doubling from the first to the most."""

LONGEST_WORD_S = 600.0
"""A provider's own word on when to come back is followed up to this."""


class Breaker:
    """One provider's breaker. `clock`: seconds, never going back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = 0.0
        self._until_s = 0.0
        self._probing = False
        self._opened = 0

    @property
    def closed(self) -> bool:
        """Whether everything is sent."""
        return self._pause_s == 0

    def wait_s(self) -> float:
        """0: a push may begin now. Else how long not, different for each who asks: not all are to come back at once."""
        if self.closed:
            return 0.0
        left_s = self._until_s - self._clock()
        if left_s <= 0 and not self._probing:
            return 0.0
        return max(left_s, 0.0) + self._pause_s * random.uniform(0.5, 1)

    def begin(self) -> int:
        """A push begins; to be handed to one of the three below when it has ended."""
        self._probing = not self.closed
        return self._opened

    def succeeded(self, begun: int) -> None:
        """The provider works."""
        if begun == self._opened:
            self._failures, self._pause_s, self._probing = 0, 0.0, False

    def failed(self, begun: int, *, after_s: float | None = None) -> None:
        """It does not; it may have said after how long it does. What began before the breaker opened says no more than
        what opened it."""
        if begun != self._opened:
            return
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, MOST_PAUSE_S)
            self._until_s = self._clock() + max(self._pause_s, min(after_s or 0.0, LONGEST_WORD_S))
            self._opened += 1
        self._probing = False

    def gave_up(self, begun: int) -> None:
        """Nobody knows: it was cancelled."""
        if begun == self._opened:
            self._probing = False

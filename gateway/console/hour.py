"""What a process remembers of itself, so that a console has lines to begin with."""

from array import array
from collections import deque
from collections.abc import Sequence
from operator import sub

STEP_MS = 10_000
"""How far apart the samples are."""

HOUR_MS = 3_600_000


class Hour:
    """The samples of the last hour. A row costs 8 bytes for each number."""

    def __init__(self) -> None:
        self._rows: deque[array[int]] = deque(maxlen=HOUR_MS // STEP_MS)

    def add(self, at: int, values: Sequence[int]) -> None:
        """Remember a sample taken at `at` (ms since the epoch), unless its step has one."""
        if not self._rows or at // STEP_MS != self._rows[-1][0] // STEP_MS:
            self._rows.append(array("q", (at, *values)))

    def rows(self) -> list[list[int]]:
        """The samples, oldest first, each with its time before its numbers. All but the first are differences from the
        one before: most of them are 0, which makes the whole a quarter as long in JSON."""
        found: list[list[int]] = []
        before: Sequence[int] | None = None
        for row in self._rows:
            found.append(row.tolist() if before is None else list(map(sub, row, before)))
            before = row
        return found

"""What came over one socket, held against what must have come. Pure.

The gateway may skip versions: where two changes meet, the later packet says all. What may not be is that a version of
which an answer told never comes while the socket is open, nor anything after it; that one comes twice; that an older
one follows. A version that was owed for longer than two changes meet, and then was skipped, did not meet another: it
was lost, and only the next change has hidden that.
"""

from collections.abc import Iterator

from scripts.loadtest.tally import Count, Fault

LOST_S = 5.0
"""For so long a version may be owed, and be skipped then. What comes itself is never lost, only late."""


class Deliveries:
    """The packets of one socket. `heard`: the highest version that came, or that it was opened with; of one that was
    opened with none a packet comes in any case, and may be of version 0."""

    __slots__ = ("_owed", "heard")

    def __init__(self, version: int) -> None:
        self.heard = version or -1
        self._owed: dict[int, float] = {}

    def owes(self, version: int, now_s: float) -> None:
        """There is a packet of that version, as an answer says."""
        if version > self.heard:
            self._owed.setdefault(version, now_s)

    def came(self, version: int, now_s: float) -> Iterator[Fault | Count]:
        """A packet came; what is wrong with that, or odd."""
        if version == self.heard:
            yield Fault.DUPLICATE
        elif version < self.heard:
            yield Fault.STALE
        else:
            self.heard = version
        for owed in sorted(owed for owed in self._owed if owed <= version):
            overdue = now_s - self._owed.pop(owed) > LOST_S
            if owed == version and overdue:
                yield Count.LATE
            elif owed < version:
                yield Fault.LOST if overdue else Count.SKIPPED

    @property
    def owed(self) -> tuple[int, ...]:
        """What has not come, nor anything after it."""
        return tuple(sorted(self._owed))

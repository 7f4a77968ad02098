"""What a process of the load counts and measures, and hands over every second."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from scripts.loadtest.histogram import Histogram
from scripts.loadtest.usage import Usage

MOST_FINDINGS = 20
"""So many findings are told in words; all are counted."""


class Count(StrEnum):
    """What is counted."""

    DUE = "videos due"
    ARRIVED = "videos arrived"
    DONE = "videos done"
    REPLACED = "videos replaced"
    ASKED = "calls asked"
    SERVED = "calls served"
    FAILED = "calls failed"
    OPENED = "sockets opened"
    ENDED = "sockets ended"
    PACKETS = "packets"
    PUSHES = "pushes"
    LATE = "packets late"
    SKIPPED = "packets skipped"


class Fault(StrEnum):
    """What must not happen."""

    LOST = "lost"
    DUPLICATE = "duplicate"
    STALE = "stale"
    WRONG = "wrong"
    REFUSED = "refused"


class News(StrEnum):
    """How long news takes: from a call of one phone to what another is told."""

    RECIPIENT = "upload → packet at the recipient"
    SENDER = "upload → packet at the sender"
    REPORT = "report → packet at the sender"
    PUSH = "upload → push"
    WHOLE = "video due → packet at the recipient"


class Opening(StrEnum):
    """How long a phone is without a socket."""

    OPEN = "connect → open"
    FIRST = "connect → first packet"
    STORM = "storm → open again"
    RESTART = "restart → open again"
    OTHER = "other end → open again"


CALLS = ("announce", "upload", "confirm", "report", "sync", "poll", "content", "download", "register", "delete")
"""The calls, by kind: `content` asks where bytes are, `download` fetches them. `confirm` and `report` go by a socket;
in a sync they are part of that."""


@dataclass(slots=True)
class Sample:
    """What happened in one process since the sample before. `at_s`: by the clock of all processes. `late_s`: the most
    that its event loop was behind. `usage`: what the process has used so far."""

    at_s: float
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    latencies: dict[str, Histogram] = field(default_factory=dict)
    phones: int = 0
    sockets: int = 0
    late_s: float = 0.0
    usage: Usage = field(default_factory=lambda: Usage(0.0, 0))


class Tally:
    """Counts for one process."""

    def __init__(self) -> None:
        self._sample = Sample(0.0)
        self._told = 0

    def count(self, what: Count, by: int = 1) -> None:
        """Something happened."""
        self._sample.counts[what] += by

    def fail(self, call: str, why: str) -> None:
        """A call failed, and is tried again or not."""
        self._sample.counts[Count.FAILED] += 1
        self._sample.failures[f"{call}: {why}"] += 1

    def end(self, code: int) -> None:
        """A socket ended that no phone has ended."""
        self._sample.ends[str(code)] += 1

    def fault(self, what: Fault, sentence: str) -> None:
        """Something happened that must not."""
        self._sample.faults[what] += 1
        if self._told < MOST_FINDINGS:
            self._told += 1
            self._sample.findings.append(f"{what}: {sentence}")

    def took(self, what: str, seconds: float) -> None:
        """Something took so long."""
        histogram = self._sample.latencies.get(what)
        if histogram is None:
            histogram = self._sample.latencies[what] = Histogram()
        histogram.add(seconds)

    def late(self, seconds: float) -> None:
        """The event loop was so far behind."""
        self._sample.late_s = max(self._sample.late_s, seconds)

    def take(self, at_s: float) -> Sample:
        """All since it was taken last."""
        taken, self._sample = self._sample, Sample(0.0)
        taken.at_s = at_s
        return taken

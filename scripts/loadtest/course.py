"""What happened in the course of a test, second by second and altogether: what reports are made of."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from scripts.loadtest.histogram import Histogram, merged
from scripts.loadtest.options import Options
from scripts.loadtest.tally import MOST_FINDINGS, Count, News, Sample
from scripts.loadtest.usage import Usage

LOAD = "load"
"""What the processes of the load are called, before their numbers."""

STOPPED = "stopped early"
"""A mark."""

SATURATED = 0.9
"""A process of the load that takes more of a core than this measures itself as well."""


@dataclass(slots=True)
class Second:
    """What all processes of the load said of one second. `cores`: CPU of the busiest of them. `late_s`: how far behind
    its event loop was."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, Histogram] = field(default_factory=dict)
    phones: int = 0
    sockets: int = 0
    cores: float = 0.0
    late_s: float = 0.0


@dataclass(slots=True)
class Course:
    """A test, from its beginning (`began_s`, by `time.monotonic`). `marks`: what was done to it, and when; seconds from
    the beginning. `usage`: of each process, what it had used then. `gave_up`: why it ended early."""

    options: Options
    address: str
    began_s: float = 0.0
    ended_s: float = 0.0
    seconds: dict[int, Second] = field(default_factory=dict)
    total: Second = field(default_factory=Second)
    failures: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    usage: dict[str, list[tuple[float, Usage]]] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    gave_up: list[str] = field(default_factory=list)
    _there: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, process: int, sample: Sample) -> None:
        """A process of the load tells of the time since its sample before."""
        # A sample of the second that has just ended comes at its end, or a little late.
        second = self.seconds.setdefault(max(0, math.floor(sample.at_s - self.began_s - 0.5)), Second())
        self.used(sample.at_s, {f"{LOAD} {process}": sample.usage})
        busy = cores(self.usage[f"{LOAD} {process}"][-2:])
        for part in (second, self.total):
            part.counts.update(sample.counts)
            for what, histogram in sample.latencies.items():
                part.latencies.setdefault(what, Histogram()).merge(histogram)
            part.cores = max([part.cores, *(each for _, each in busy)])
            part.late_s = max(part.late_s, sample.late_s)
        self._there[process] = sample.phones, sample.sockets
        second.phones = sum(phones for phones, _ in self._there.values())
        second.sockets = sum(sockets for _, sockets in self._there.values())
        self.failures.update(sample.failures)
        self.ends.update(sample.ends)
        self.faults.update(sample.faults)
        self.findings = (self.findings + sample.findings)[:MOST_FINDINGS]

    def used(self, at_s: float, usage: dict[str, Usage]) -> None:
        """What processes of the gateway had used at that time."""
        for process, used in usage.items():
            self.usage.setdefault(process, []).append((at_s - self.began_s, used))

    def mark(self, at_s: float, what: str) -> None:
        """Something was done to the gateway, or the phones."""
        self.marks.append((at_s - self.began_s, what))

    @property
    def busy_s(self) -> float:
        """For how long videos began."""
        stopped = [at_s for at_s, what in self.marks if what == STOPPED]
        return max(1.0, min([self.options.total_s, *stopped]))

    @property
    def last(self) -> Second:
        """The last second of which all processes have told, unless they are about to end."""
        known = sorted(self.seconds)[-2:]
        return self.seconds[known[0]] if known else Second()

    def latency(self, *what: str) -> Histogram:
        """How long these took, together."""
        return merged(self.total.latencies[each] for each in what if each in self.total.latencies)

    @property
    def news(self) -> Histogram:
        """From calls to packets, of all kinds."""
        return self.latency(News.RECIPIENT, News.SENDER, News.REPORT)

    @property
    def saturated(self) -> int:
        """In so many seconds in which videos began a process of the load had no CPU to spare."""
        return sum(second.cores > SATURATED for at, second in self.seconds.items() if at <= self.busy_s)

    @property
    def wrong(self) -> list[str]:
        """Why the test has failed; nothing where it has not."""
        reasons = [f"{count:,} {fault}" for fault, count in sorted(self.faults.items())]
        if not self.total.counts[Count.DONE]:
            reasons.append("no video was sent and seen")
        return [*self.gave_up, *reasons]


def cores(samples: Iterable[tuple[float, Usage]]) -> list[tuple[float, float]]:
    """From what a process had used at times: when, and how much of a core it had since the time before."""
    found = []
    before: tuple[float, Usage] | None = None
    for at_s, used in samples:
        if before is not None and at_s > before[0]:
            found.append((at_s, max(0.0, used.cpu_s - before[1].cpu_s) / (at_s - before[0])))
        before = at_s, used
    return found

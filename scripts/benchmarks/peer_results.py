"""What the rounds of `bench_peers.py` found, and ratios of it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson
from fan_out import FanOut
from whole_job import Job

GATEWAY = "gateway"

Value = Callable[[FanOut], float | None]
"""A figure of one server in one round; None where there is none."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and between what the rounds were."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None of nothing."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(slots=True)
class Results:
    """The figures of all rounds, None where a server failed. In `fan_outs` by name and number of sockets; of the
    gateway there are two for each round."""

    fan_outs: dict[str, dict[int, list[FanOut | None]]] = field(default_factory=dict)
    floors: dict[int, list[float]] = field(default_factory=dict)
    """µs that a bare `send` takes for each packet, by number of sockets."""
    idle_ms: list[float] = field(default_factory=list)
    jobs: dict[str, list[Job | None]] = field(default_factory=dict)
    poll_us: list[float] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add_fan_out(self, name: str, sockets: int, found: FanOut | None) -> None:
        self.fan_outs.setdefault(name, {}).setdefault(sockets, []).append(found)

    def measured(self, sockets: int) -> list[str]:
        """Who was measured over so many sockets."""
        return [name for name in self.fan_outs if any(self._found(name, sockets))]

    def _found(self, name: str, sockets: int) -> list[FanOut | None]:
        return self.fan_outs.get(name, {}).get(sockets, [])

    def spread(self, name: str, sockets: int, value: Value) -> Spread | None:
        """A figure of a server."""
        found = [value(each) for each in self._found(name, sockets) if each]
        return Spread.of([each for each in found if each is not None])

    def ratio(self, name: str, sockets: int, value: Value) -> Spread | None:
        """The gateway's figure divided by this server's, round by round."""
        theirs = [value(each) if each else None for each in self._found(name, sockets)]
        ours = self._each_round(sockets, value)
        return None if name == GATEWAY else _ratio(ours, theirs)

    def floor_ratio(self, sockets: int) -> Spread | None:
        """The gateway's CPU for each packet, saturated, divided by that of a bare `send`."""
        return _ratio(self._each_round(sockets, lambda found: found.saturated.cpu_us), self.floors.get(sockets, []))

    def _each_round(self, sockets: int, value: Value) -> list[float | None]:
        """The gateway's figure: the mean of its two, or the one that there is."""
        found = [value(each) if each else None for each in self._found(GATEWAY, sockets)]
        rounds = ([each for each in both if each is not None] for both in zip(found[::2], found[1::2], strict=True))
        return [statistics.mean(both) if both else None for both in rounds]

    def job(self, name: str, value: Callable[[Job], float]) -> Spread | None:
        return Spread.of([value(each) for each in self.jobs.get(name, []) if each])

    def job_ratio(self, name: str, other: str, value: Callable[[Job], float]) -> Spread | None:
        """One way's figure divided by another's, round by round."""
        one, two = ([value(each) if each else None for each in self.jobs.get(way, [])] for way in (name, other))
        return None if name == other else _ratio(one, two)

    def as_json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Spread | None:
    """Of the rounds that have both."""
    return Spread.of([one / two for one, two in zip(ours, theirs, strict=False) if one is not None and two])

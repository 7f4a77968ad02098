"""What a console shows of a process's metrics: a bounded set of whole numbers, each with a name.

A sample is these numbers as they stand, in the order of `SERIES`: whoever has two of them knows rates, and of
histograms quantiles. What is in seconds is told in ms or µs. This is the only place that chooses what is told.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from prometheus_client.registry import Collector

from gateway.metrics import PACKET_MS, SECONDS, VIDEO_SECONDS, WAKEUP_SECONDS, Metrics
from gateway.transit.decisions import Result
from gateway.transit.state import Status
from gateway.wakeups import OUTCOMES
from push.sender import Platform

_NONE: Mapping[str, Sequence[str]] = MappingProxyType({})
_BUCKET, _SUM = "_bucket", "_sum"


class _Told(NamedTuple):
    """A metric that is told: its name in `Metrics`, and how the series is called that a sample of it adds to.

    `series` is a format of the sample's labels: those that it does not name are summed over. `labels`: the values that
    make up the names. `bounds`: of a histogram's buckets. `scale`: in units of which one is so many.
    """

    metric: str
    series: str
    labels: Mapping[str, Sequence[str]] = _NONE
    bounds: Sequence[float] = ()
    scale: int = 1

    def names(self) -> Iterator[str]:
        """Of all its series."""
        for values in product(*self.labels.values()):
            series = self.series.format_map(dict(zip(self.labels, values, strict=True)))
            if self.bounds:
                yield from (_bucket(series, str(float(bound))) for bound in self.bounds)
                yield _bucket(series, "+Inf")
                yield _sum(series)
            else:
                yield series


def _bucket(series: str, bound: str) -> str:
    return f"{series}_le_{bound.lstrip('+').lower()}"


def _sum(series: str) -> str:
    return f"{series}_sum_ms"


_STATUSES = {"status": [*Status]}
_PLATFORMS = {"platform": [*Platform]}
_ANSWERS = {"status": ["2", "3", "4", "5"]}
_HANDSHAKES = {"status": ["1", "4", "5"]}

_TOLD = (
    *(_Told(name, name) for name in ("sockets", "held_polls", "bus_down")),
    _Told("due_age_seconds", "due_age_ms", scale=1000),
    _Told("push_breaker_open", "breaker_open_{platform}", _PLATFORMS),
    *(_Told(name, name) for name in ("packets", "packets_skipped", "packets_late", "frames", "sockets_closed")),
    _Told("handshakes", "handshakes_{status[0]}xx", _HANDSHAKES),
    _Told("calls", "calls_{status[0]}xx", _ANSWERS),
    _Told("results", "results_{result}", {"result": [*Result]}),
    _Told("videos", "videos_{status}", _STATUSES),
    *(_Told(name, name) for name in ("video_bytes", "conflicts")),
    _Told("wakeups_due", "wakeups_due_{platform}", _PLATFORMS),
    _Told("wakeups_held", "wakeups_held_{platform}", _PLATFORMS),
    _Told("pushes", "pushes_{platform}_{outcome}", {**_PLATFORMS, "outcome": [*OUTCOMES.values()]}),
    *(_Told(name, name) for name in ("tokens_removed", "tokens_kept", "worker_failures", "bus_kept", "bus_gaps")),
    *(_Told(name, name) for name in ("cache_hits", "cache_misses")),
    _Told("packet_seconds", "packet_seconds", bounds=[bound / 1000 for bound in PACKET_MS]),
    _Told("call_seconds", "call_seconds", bounds=SECONDS),
    _Told("push_seconds", "push_seconds", bounds=SECONDS),
    _Told("wakeup_seconds", "wakeup_seconds", bounds=WAKEUP_SECONDS),
    _Told("video_seconds", "video_seconds_{status}", _STATUSES, bounds=VIDEO_SECONDS),
)

SERIES = ("cpu_us", "memory_bytes", *(name for told in _TOLD for name in told.names()))
"""The names of a sample's numbers."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Takes samples of one process's metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._places = {name: place for place, name in enumerate(SERIES)}
        self._known: dict[tuple[str, ...], tuple[int, int] | None] = {}

    def read(self) -> list[int]:
        """A sample as of now. It costs under a millisecond, whatever the number of clients."""
        values = [0] * len(SERIES)
        values[0], values[1] = time.process_time_ns() // 1000, _resident_bytes()
        for told in _TOLD:
            collector: Collector = getattr(self._metrics, told.metric)
            for family in collector.collect():
                for name, labels, value, *_ in family.samples:
                    # What a sample adds to is found once: that costs more than the adding.
                    key = (name, *labels.values())
                    if key not in self._known:
                        self._known[key] = self._found(told, name, labels)
                    if (found := self._known[key]) is not None:
                        values[found[0]] += round(value * found[1])
        return values

    def _found(self, told: _Told, sample: str, labels: Mapping[str, str]) -> tuple[int, int] | None:
        """Where a sample belongs, and in units of which one is so many; None where it is not told."""
        series, scale = told.series.format_map(labels), told.scale
        if sample.endswith("_created"):
            return None
        if told.bounds and sample.endswith(_BUCKET):
            series = _bucket(series, labels["le"])
        elif told.bounds:
            series, scale = _sum(series) if sample.endswith(_SUM) else "", 1000
        place = self._places.get(series)
        return None if place is None else (place, scale)


def _resident_bytes() -> int:
    """The process's memory in RAM; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    return 0

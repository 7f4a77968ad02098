"""Every metric there is, with bounded labels. Nothing is registered globally: each application has its own."""

import contextlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from storage.usage import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WAKEUP_SECONDS = (*SECONDS, 30, 60, 300, 1_800, 3_600)
PACKET_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000)
VIDEO_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400, 604_800)
"""The bounds of the histograms' buckets."""


class Tally(Collector):
    """A counter for what happens for each packet: counting is an addition, where the library's takes a lock."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self.count = 0
        self._created = time.time()
        self._name = name
        self._documentation = documentation
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What there is now."""
        return [CounterMetricFamily(self._name, self._documentation, value=self.count, created=self._created)]

    describe = collect


class Timing(Collector):
    """A histogram for what happens for each packet: what a `Tally` is to counters. It is exposed in seconds.

    `bounds_ms`: the longest that each bucket takes, ascending.
    """

    def __init__(self, name: str, documentation: str, bounds_ms: Sequence[int], registry: CollectorRegistry) -> None:
        self._bounds_ms = tuple(map(float, bounds_ms))
        self._least_ms = self._bounds_ms[0]
        self._counts = [0] * (len(bounds_ms) + 1)
        self._total_ms = 0.0
        self._name = name
        self._documentation = documentation
        registry.register(self)

    def observe(self, ms: float) -> None:
        """Something took so long; less than 0 counts as 0: clocks are set back."""
        self._counts[bisect_left(self._bounds_ms, ms) if ms > self._least_ms else 0] += 1
        if ms > 0:
            self._total_ms += ms

    def collect(self) -> Iterable[Metric]:
        """What there is now."""
        bounds = [*(str(bound / 1000) for bound in self._bounds_ms), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return [
            HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._total_ms / 1000)
        ]

    describe = collect


class Reading(Collector):
    """A counter that somebody else keeps: `read` gives what it is at."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self.read: Callable[[], float] = float
        self._name = name
        self._documentation = documentation
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What there is now."""
        return [CounterMetricFamily(self._name, self._documentation, value=self.read())]

    describe = collect


class Readings(Collector):
    """A counter with labels that somebody else keeps in `counts`, by the values of `labels`."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: tuple[str, ...],
        counts: Mapping[tuple[str, str], float] | Mapping[tuple[str, str, str], float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        self._counts = counts
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """What it is, without values."""
        return [CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)]

    def collect(self) -> Iterable[Metric]:
        """What there is now."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, count in sorted(self._counts.items()):
            family.add_metric(values, count)
        return [family]


class PrivateMemory(Collector):
    """The memory that a process shares with no other, read when it is asked for: forked processes share much of what
    counts as resident in each. Nothing where the system does not tell."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """What it is, without a value."""
        return [GaugeMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterable[Metric]:
        """What there is now."""
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()]
            kib = sum(int(row[1]) for row in rows if row[0] in {"Private_Clean:", "Private_Dirty:"})
            return [GaugeMetricFamily(self._name, self._documentation, value=kib * 1024)]
        return []


class Metrics:
    """The metrics of one application. `usage`: what its stores count, if they do."""

    def __init__(self, usage: Usage | None = None) -> None:
        self.registry = CollectorRegistry()
        usage = usage or Usage()
        r = self.registry
        self.calls = Counter("gateway_calls", "HTTP calls answered", ["call", "status"], registry=r)
        self.call_seconds = Histogram(
            "gateway_call_seconds",
            "Time to answer a call, held polls apart",
            ["call"],
            buckets=SECONDS,
            registry=r,
        )
        self.held_polls = Gauge("gateway_held_polls", "Polls that are being held open", registry=r)
        self.sockets = Gauge("gateway_sockets", "Sockets that are open", registry=r)
        self.sockets_closed = Counter(
            "gateway_sockets_closed", "Sockets that ended, by close code", ["code"], registry=r
        )
        self.handshakes = Counter("gateway_handshakes", "Sockets asked for, by HTTP status", ["status"], registry=r)
        self.frames = Counter("gateway_frames", "Messages from apps over sockets", ["type"], registry=r)
        self.packets = Tally("gateway_packets", "Packets for sockets", r)
        self.packets_skipped = Tally("gateway_packets_skipped", "Packets that a newer one took the place of", r)
        self.packets_late = Counter(
            "gateway_packets_late", "Clients who had missed a packet when versions were compared", registry=r
        )
        self.packet_seconds = Timing(
            "gateway_packet_seconds", "Time from a change to its packet being handed to sockets", PACKET_MS, r
        )
        self.results = Counter("gateway_results", "Statuses reported, by what became of them", ["result"], registry=r)
        self.videos = Counter(
            "gateway_videos", "Videos that have reached a status for the first time", ["status"], registry=r
        )
        self.video_seconds = Histogram(
            "gateway_video_seconds",
            "Time that videos took from the status before to this one",
            ["status"],
            buckets=VIDEO_SECONDS,
            registry=r,
        )
        self.video_bytes = Counter("gateway_video_bytes", "Bytes of the videos that were uploaded", registry=r)
        self.conflicts = Counter("gateway_conflicts", "Changes tried again after a conflict", registry=r)
        self.removals_left = Counter(
            "gateway_removals_left", "Objects that could not be deleted at once, left to the sweep", registry=r
        )
        self.uploaded_bytes = Counter("gateway_uploaded_bytes", "Bytes of videos taken in by this process", registry=r)
        self.downloaded_bytes = Counter(
            "gateway_downloaded_bytes", "Bytes of videos given out by this process", registry=r
        )
        self.wakeups_due = Counter(
            "gateway_wakeups_due", "Devices that were behind when their time had come", ["platform"], registry=r
        )
        self.wakeups_held = Counter(
            "gateway_wakeups_held", "Those that were put off: their provider takes nothing", ["platform"], registry=r
        )
        self.pushes = Counter("gateway_pushes", "Pushes sent, by outcome", ["platform", "outcome"], registry=r)
        self.push_seconds = Histogram(
            "gateway_push_seconds", "Time a provider took over a push", ["platform"], buckets=SECONDS, registry=r
        )
        self.wakeup_seconds = Histogram(
            "gateway_wakeup_seconds",
            "Time from news to its first push being accepted",
            ["platform"],
            buckets=WAKEUP_SECONDS,
            registry=r,
        )
        self.push_breaker_open = Gauge(
            "gateway_push_breaker_open", "1 while a provider that fails is left alone", ["platform"], registry=r
        )
        self.tokens_removed = Counter(
            "gateway_tokens_removed", "Push tokens removed: dead, their provider said", ["platform"], registry=r
        )
        self.tokens_kept = Counter(
            "gateway_tokens_kept", "Dead push tokens kept since too many were at once", ["platform"], registry=r
        )
        self.due_age_seconds = Gauge("gateway_due_age_seconds", "How long the oldest due client has waited", registry=r)
        self.worker_failures = Counter("gateway_worker_failures", "Due clients that could not be handled", registry=r)
        self.swept = Counter("gateway_swept", "What the sweep found, by what it did about it", ["action"], registry=r)
        self.upload_events = Counter(
            "gateway_upload_events",
            "Objects that the object store said were stored, by what became of them",
            ["result"],
            registry=r,
        )
        self.bus_down = Gauge("gateway_bus_down", "1 while the bus does not reach other processes", registry=r)
        self.bus_kept = Counter(
            "gateway_bus_kept", "Messages that could not be published at once, and were kept for later", registry=r
        )
        self.bus_gaps = Counter(
            "gateway_bus_gaps", "Clients that were loaded anew, since packets for them may have been lost", registry=r
        )
        self.cache_hits = Reading("gateway_cache_hits", "Documents that the cache had", r)
        self.cache_misses = Reading("gateway_cache_misses", "Documents that the cache was asked for and had not", r)
        self.store_requests = Readings(
            "gateway_store_requests",
            "What the stores were asked, every try counted",
            ("store", "call"),
            usage.requests,
            r,
        )
        self.store_units = Readings(
            "gateway_store_units",
            "What the stores said that it costs, in units of their own",
            ("store", "call", "kind"),
            usage.units,
            r,
        )
        self.siblings_silent = Counter(
            "gateway_siblings_silent", "Processes left out, since they did not hand out their metrics", registry=r
        )
        self.private_memory = PrivateMemory(
            "gateway_private_memory_bytes", "Memory that the process shares with no other", r
        )
        ProcessCollector(registry=r)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)

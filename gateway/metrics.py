"""Every metric there is, with bounded labels. Nothing is registered globally: each application has its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.calls = Counter("gateway_calls", "HTTP calls answered", ["call", "status"], registry=r)
        self.call_seconds = Histogram(
            "gateway_call_seconds",
            "Time to answer a call, held polls apart",
            ["call"],
            buckets=_SECONDS,
            registry=r,
        )
        self.held_polls = Gauge("gateway_held_polls", "Polls that are being held open", registry=r)
        self.results = Counter("gateway_results", "Statuses reported, by what became of them", ["result"], registry=r)
        self.conflicts = Counter("gateway_conflicts", "Changes tried again after a conflict", registry=r)
        self.removals_left = Counter(
            "gateway_removals_left", "Objects that could not be deleted at once, left to the sweep", registry=r
        )
        self.uploaded_bytes = Counter("gateway_uploaded_bytes", "Bytes of videos taken in by this process", registry=r)
        self.downloaded_bytes = Counter(
            "gateway_downloaded_bytes", "Bytes of videos given out by this process", registry=r
        )
        self.pushes = Counter("gateway_pushes", "Wakeups sent, by outcome", ["platform", "outcome"], registry=r)
        self.due_age_seconds = Gauge("gateway_due_age_seconds", "How long the oldest due client has waited", registry=r)
        self.worker_failures = Counter("gateway_worker_failures", "Due clients that could not be handled", registry=r)
        self.swept = Counter("gateway_swept", "What the sweep found, by what it did about it", ["action"], registry=r)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)

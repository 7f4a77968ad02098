"""What is told of a process's metrics: every series is fed by what it is called after."""

import pytest

from gateway.console.series import SERIES, Meter
from gateway.metrics import Metrics
from gateway.transit.state import Status
from gateway.wakeups import OUTCOMES
from push.sender import Platform


def changed(metrics: Metrics, before: list[int]) -> dict[str, int]:
    after = Meter(metrics).read()
    found = {name: new - old for name, new, old in zip(SERIES, after, before, strict=True) if new != old}
    return {name: value for name, value in found.items() if name not in {"cpu_us", "memory_bytes"}}


def test_the_names_are_unique_and_a_sample_has_a_number_for_each() -> None:
    assert len(set(SERIES)) == len(SERIES) == len(Meter(Metrics()).read())


def test_a_process_says_what_it_has_used_of_the_machine() -> None:
    found = dict(zip(SERIES, Meter(Metrics()).read(), strict=True))
    assert found["cpu_us"] > 0
    assert found["memory_bytes"] > 1_000_000


def test_gauges_and_counters_are_told_as_they_stand() -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    metrics.sockets.set(5)
    metrics.due_age_seconds.set(1.25)
    metrics.packets.count += 7
    metrics.bus_down.set_function(lambda: 1.0)
    metrics.cache_hits.read = lambda: 3.0
    assert changed(metrics, before) == {"sockets": 5, "due_age_ms": 1250, "packets": 7, "bus_down": 1, "cache_hits": 3}


def test_calls_and_handshakes_are_told_by_the_kind_of_their_answer() -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    for call, status in (("poll", 200), ("poll", 304), ("sync", 200), ("sync", 503), ("content", 404)):
        metrics.calls.labels(call, status).inc()
    for status in (101, 101, 401, 503):
        metrics.handshakes.labels(status).inc()
    assert changed(metrics, before) == {
        "calls_2xx": 2,
        "calls_3xx": 1,
        "calls_4xx": 1,
        "calls_5xx": 1,
        "handshakes_1xx": 2,
        "handshakes_4xx": 1,
        "handshakes_5xx": 1,
    }


def test_what_has_labels_is_told_by_them_or_summed() -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    for platform in Platform:
        for outcome in OUTCOMES.values():
            metrics.pushes.labels(platform, outcome).inc()
    metrics.tokens_removed.labels("apns").inc()
    metrics.tokens_removed.labels("fcm").inc()
    for code in ("1000", "4409"):
        metrics.sockets_closed.labels(code).inc()
    expected = {f"pushes_{platform}_{outcome}": 1 for platform in Platform for outcome in OUTCOMES.values()}
    assert changed(metrics, before) == expected | {"tokens_removed": 2, "sockets_closed": 2}


def test_buckets_are_cumulative_and_summed_over_calls() -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    metrics.call_seconds.labels("sync").observe(0.004)
    metrics.call_seconds.labels("announce").observe(0.3)
    metrics.call_seconds.labels("announce").observe(60)
    found = changed(metrics, before)
    assert found["call_seconds_sum_ms"] == 60_304
    buckets = {name.removeprefix("call_seconds_le_"): count for name, count in found.items() if "_le_" in name}
    assert buckets == {"0.005": 1, "0.01": 1, "0.025": 1, "0.05": 1, "0.1": 1, "0.25": 1} | {
        "0.5": 2,
        "1.0": 2,
        "2.5": 2,
        "5.0": 2,
        "10.0": 2,
        "inf": 3,
    }


@pytest.mark.parametrize("status", list(Status))
def test_how_long_videos_take_is_told_by_status(status: Status) -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    metrics.video_seconds.labels(status).observe(3_000_000)
    assert changed(metrics, before) == {
        f"video_seconds_{status}_le_inf": 1,
        f"video_seconds_{status}_sum_ms": 3_000_000_000,
    }


def test_a_packets_time_is_told() -> None:
    metrics = Metrics()
    before = Meter(metrics).read()
    metrics.packet_seconds.observe(400_000)
    assert changed(metrics, before) == {"packet_seconds_le_inf": 1, "packet_seconds_sum_ms": 400_000}

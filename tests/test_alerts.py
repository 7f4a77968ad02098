"""Each alert fires when it should and is silent when it should: asked of Prometheus' own evaluation, with promtool.

A gateway that is well is a table of series. A case says which of them are otherwise: in the one way that the alert is
about, and in a way that only looks like it. Time goes by in minutes.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import promql_parser as promql
import pytest

from tests.test_deploy import ALERTS, RULES, sample_of

DAY = 24 * 60
MIB = 1024 * 1024
LONG_AGO_S = 30 * DAY * 60

Values = str
"""What a series is at, minute by minute, in promtool's notation: `0+60x9` begins with 0 and grows by 60, nine times."""

END = "END"
"""Stands in it for as many minutes as the test has."""


def growing(a_minute: float, *, minutes: int | None = None, start: float = 0) -> Values:
    return f"{start}+{a_minute}x{END if minutes is None else minutes - 1}"


def steady(value: float, *, minutes: int | None = None) -> Values:
    return growing(0, start=value, minutes=minutes)


def changing(before: float, after: float, *, at: int) -> Values:
    return f"{steady(before, minutes=at)} {steady(after)}"


def growing_faster(before: float, after: float, *, at: int) -> Values:
    return f"{growing(before, minutes=at)} {growing(after, start=before * at)}"


def for_a_minute(value: float, *, at: int, otherwise: float) -> Values:
    return f"{steady(otherwise, minutes=at)} {value} {steady(otherwise)}"


def appearing(*, at: int) -> Values:
    """A counter with labels that something happens to for the first time: it is not there before."""
    return f"_x{at} {steady(1)}"


def buckets(name: str, labels: str, *, lazy: float, slow: float) -> dict[str, Values]:
    """A histogram that takes in 6,000 a minute: so many of 0.5 to 1 s, so many of 1 to 5 s, the others less."""
    bounds = {"0.5": 6000 - slow - lazy, "1": 6000 - slow, "5": 6000, "+Inf": 6000}
    return {f'{name}_bucket{{{labels},le="{bound}"}}': growing(count) for bound, count in bounds.items()}


GATEWAY = 'job="gateway",instance="one:8000",process="0"'
OTHER = 'job="gateway",instance="one:8000",process="1"'
WORKER = 'job="gateway",instance="one:8000",process="worker"'
TARGET = 'job="gateway",instance="one:8000"'

UP = f"up{{{TARGET}}}"
CALLS = f'gateway_calls_total{{{GATEWAY},call="sync",status="200"}}'
CALLS_503 = f'gateway_calls_total{{{GATEWAY},call="sync",status="503"}}'
HANDSHAKES_503 = f'gateway_handshakes_total{{{GATEWAY},status="503"}}'
FAULTS = f'gateway_sockets_closed_total{{{GATEWAY},code="1011"}}'
RESTARTED = f'gateway_sockets_closed_total{{{GATEWAY},code="1012"}}'
UPLOADED = f'gateway_videos_total{{{GATEWAY},status="uploaded"}}'
DOWNLOADED = f'gateway_videos_total{{{GATEWAY},status="downloaded"}}'
VIEWED = f'gateway_videos_total{{{GATEWAY},status="viewed"}}'
ASKED = f'gateway_store_requests_total{{{WORKER},store="sqlite",call="due"}}'
ASKED_REDIS = f'gateway_store_requests_total{{{WORKER},store="redis",call="ZRANGEBYSCORE"}}'
LOADED = f'gateway_store_requests_total{{{GATEWAY},store="sqlite",call="load"}}'
DYNAMODB = f'gateway_store_requests_total{{{GATEWAY},store="dynamodb",call="PutItem"}}'
DUE_AGE = f"gateway_due_age_seconds{{{WORKER}}}"
BREAKER = f'gateway_push_breaker_open{{{WORKER},platform="apns"}}'
ACCEPTED = f'gateway_pushes_total{{{WORKER},platform="apns",outcome="accepted"}}'
REJECTED = f'gateway_pushes_total{{{WORKER},platform="apns",outcome="rejected"}}'
DEAD = f'gateway_pushes_total{{{WORKER},platform="apns",outcome="token_dead"}}'
RETRIED = f'gateway_pushes_total{{{WORKER},platform="apns",outcome="retry"}}'
TOKENS_KEPT = f'gateway_tokens_kept_total{{{WORKER},platform="apns"}}'
TOKENS_REMOVED = f'gateway_tokens_removed_total{{{WORKER},platform="apns"}}'
WORKER_FAILURES = f"gateway_worker_failures_total{{{WORKER}}}"
BUS_DOWN = f"gateway_bus_down{{{OTHER}}}"
LATE = f"gateway_packets_late_total{{{OTHER}}}"
REMOVALS_LEFT = f"gateway_removals_left_total{{{GATEWAY}}}"
SWEEP_FAILED = f'gateway_swept_total{{{WORKER},action="failed"}}'
MENDED = f'gateway_swept_total{{{WORKER},action="mended"}}'
EVENTS_FAILED = f'gateway_upload_events_total{{{WORKER},result="failed"}}'
SILENT = f"gateway_siblings_silent_total{{{GATEWAY}}}"
STARTED = f"process_start_time_seconds{{{OTHER}}}"
CPU = f"process_cpu_seconds_total{{{GATEWAY}}}"
OPEN_FDS = f"process_open_fds{{{GATEWAY}}}"
MEMORY = f"gateway_private_memory_bytes{{{OTHER}}}"


def call_seconds(*, lazy: float = 0, slow: float = 0) -> dict[str, Values]:
    return buckets("gateway_call_seconds", f'{GATEWAY},call="sync"', lazy=lazy, slow=slow)


def packet_seconds(*, lazy: float = 0, slow: float = 0) -> dict[str, Values]:
    return buckets("gateway_packet_seconds", GATEWAY, lazy=lazy, slow=slow)


WELL: Mapping[str, Values] = {
    UP: steady(1),
    CALLS: growing(6000),
    f'gateway_handshakes_total{{{GATEWAY},status="101"}}': growing(600),
    **call_seconds(),
    **packet_seconds(),
    f'gateway_sockets_closed_total{{{GATEWAY},code="1001"}}': growing(600),
    UPLOADED: growing(60),
    DOWNLOADED: growing(60),
    VIEWED: growing(60),
    ASKED: growing(60),
    LOADED: growing(6000),
    DUE_AGE: steady(0.5),
    BREAKER: steady(0),
    ACCEPTED: growing(60),
    WORKER_FAILURES: steady(0),
    f"gateway_bus_down{{{GATEWAY}}}": steady(0),
    BUS_DOWN: steady(0),
    LATE: steady(0),
    REMOVALS_LEFT: steady(0),
    SWEEP_FAILED: steady(0),
    MENDED: steady(0),
    SILENT: steady(0),
    STARTED: steady(-LONG_AGO_S),
    CPU: growing(20),
    OPEN_FDS: steady(2000),
    f"process_max_fds{{{GATEWAY}}}": steady(16_000),
    MEMORY: steady(300 * MIB),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What `ill` makes of `WELL` has the alert fire, and no other: not yet at the minute `quiet`, but at `fires`, and
    no more at `over`. What `harmless` makes of it has none fire, ever. None leaves a series out."""

    alert: str
    ill: Mapping[str, Values | None]
    harmless: Mapping[str, Values | None]
    quiet: int
    fires: int
    over: int | None = None

    @property
    def ends(self) -> int:
        return max(self.fires, self.over or 0, 90)


def changed(by: Mapping[str, Values | None]) -> dict[str, Values]:
    return {series: values for series, values in {**WELL, **by}.items() if values is not None}


SAME_TIME = DAY + 70  # an hour of yesterday is known by then
ASKED_NO_MORE = f"{growing(60, minutes=60)} {steady(3600)}"
RESTARTS = [steady(3600 + 300 * start, minutes=5) for start in range(3)]

CASES = [
    Case("GatewayDown", {UP: steady(0)}, {UP: for_a_minute(0, at=60, otherwise=1)}, quiet=1, fires=3),
    Case(
        "GatewayNotScraped",
        {UP: None},
        {UP: f"{steady(1, minutes=60)} _x8 {steady(1)}"},
        quiet=4,
        fires=6,
    ),
    Case("GatewayCallsFail", {CALLS_503: growing(80)}, {CALLS_503: growing(45)}, quiet=5, fires=7),
    Case("GatewayHandshakesFail", {HANDSHAKES_503: growing(8)}, {HANDSHAKES_503: growing(4.5)}, quiet=5, fires=7),
    Case("GatewayCallsSlow", call_seconds(slow=200), call_seconds(lazy=300, slow=30), quiet=15, fires=17),
    Case("GatewayPacketsSlow", packet_seconds(slow=200), packet_seconds(lazy=300, slow=30), quiet=15, fires=17),
    Case(
        "GatewaySocketsBreak",
        {FAULTS: appearing(at=60)},
        {FAULTS: steady(0), RESTARTED: growing(60)},
        quiet=60,
        fires=62,
        over=80,
    ),
    Case(
        "GatewaySocketsBreak",
        {FAULTS: changing(0, 1, at=60)},
        {FAULTS: f"_x60 {steady(0)}"},
        quiet=60,
        fires=62,
        over=80,
    ),
    Case(
        "GatewayVideosStuck",
        {DOWNLOADED: steady(0), VIEWED: steady(0)},
        {DOWNLOADED: steady(0), VIEWED: steady(0), UPLOADED: growing(0.7)},
        quiet=15,
        fires=17,
    ),
    Case(
        "GatewayVideosStuck",
        {DOWNLOADED: steady(0), VIEWED: steady(0), UPLOADED: growing(1)},
        {DOWNLOADED: steady(0), VIEWED: changing(0, 1, at=45), UPLOADED: growing(1)},
        quiet=60,
        fires=70,
    ),
    Case("GatewayNoWorker", {ASKED: None}, {ASKED: None, ASKED_REDIS: growing(3840)}, quiet=2, fires=4),
    Case("GatewayNoWorker", {ASKED: ASKED_NO_MORE}, {LOADED: steady(0)}, quiet=64, fires=68),
    Case("GatewayWakeupsLate", {DUE_AGE: steady(61)}, {DUE_AGE: steady(59)}, quiet=4, fires=6),
    Case("GatewayProviderLeftAlone", {BREAKER: steady(1)}, {BREAKER: changing(1, 0, at=4)}, quiet=4, fires=6),
    Case("GatewayPushesRejected", {REJECTED: appearing(at=60)}, {DEAD: appearing(at=60)}, quiet=60, fires=62, over=80),
    Case(
        "GatewayPushesRejected",
        {REJECTED: changing(0, 1, at=60)},
        {REJECTED: f"_x60 {steady(0)}"},
        quiet=60,
        fires=62,
        over=80,
    ),
    Case("GatewayPushesRetried", {RETRIED: growing(9)}, {RETRIED: growing(5)}, quiet=10, fires=12),
    Case(
        "GatewayTokensKept",
        {TOKENS_KEPT: appearing(at=90)},
        {TOKENS_REMOVED: appearing(at=90)},
        quiet=90,
        fires=92,
        over=160,
    ),
    Case(
        "GatewayTokensKept",
        {TOKENS_KEPT: changing(0, 1, at=90)},
        {TOKENS_KEPT: f"_x90 {steady(0)}"},
        quiet=90,
        fires=92,
        over=160,
    ),
    Case(
        "GatewayWorkerFails",
        {WORKER_FAILURES: changing(0, 1, at=60)},
        {WORKER_FAILURES: changing(5, 0, at=60)},
        quiet=60,
        fires=62,
        over=80,
    ),
    Case("GatewayBusDown", {BUS_DOWN: steady(1)}, {BUS_DOWN: for_a_minute(1, at=60, otherwise=0)}, quiet=0, fires=2),
    Case("GatewayPacketsLost", {LATE: growing(0.06)}, {LATE: changing(0, 20, at=60)}, quiet=60, fires=62),
    Case(
        "GatewayRemovalsFail",
        {REMOVALS_LEFT: growing(0.015)},
        {REMOVALS_LEFT: changing(0, 20, at=60)},
        quiet=120,
        fires=122,
    ),
    Case("GatewaySweepFails", {SWEEP_FAILED: growing(0.2)}, {SWEEP_FAILED: changing(0, 9, at=60)}, quiet=15, fires=17),
    Case(
        "GatewayPairsMended",
        {MENDED: growing(0.2)},
        {MENDED: growing(0.2), STARTED: changing(0, 3600, at=60)},
        quiet=120,
        fires=122,
    ),
    Case(
        "GatewayUploadEventsFail",
        {EVENTS_FAILED: growing(0.09)},
        {EVENTS_FAILED: changing(0, 5, at=60)},
        quiet=10,
        fires=12,
    ),
    Case(
        "GatewayStoreRequestsJump",
        {DYNAMODB: growing_faster(40, 100, at=SAME_TIME)},
        {DYNAMODB: growing_faster(40, 100, at=SAME_TIME), UPLOADED: growing_faster(60, 120, at=SAME_TIME)},
        quiet=SAME_TIME + 90,
        fires=SAME_TIME + 110,
    ),
    Case(
        "GatewayStoreRequestsJump",
        {DYNAMODB: growing_faster(40, 100, at=SAME_TIME), UPLOADED: growing_faster(60, 80, at=SAME_TIME)},
        {DYNAMODB: growing_faster(20, 50, at=SAME_TIME)},
        quiet=SAME_TIME + 90,
        fires=SAME_TIME + 110,
    ),
    Case("GatewayProcessSilent", {SILENT: growing(0.6)}, {SILENT: changing(0, 3, at=60)}, quiet=12, fires=17),
    Case(
        "GatewayProcessesDie",
        {STARTED: f"{steady(0, minutes=60)} {' '.join(RESTARTS)} {steady(4200)}"},
        {STARTED: f"{steady(0, minutes=60)} {' '.join(RESTARTS[:2])} {steady(3900)}"},
        quiet=70,
        fires=72,
        over=110,
    ),
    Case("GatewayProcessBusy", {CPU: growing(57)}, {CPU: growing(50)}, quiet=18, fires=21),
    Case("GatewayFileDescriptorsLow", {OPEN_FDS: steady(13_000)}, {OPEN_FDS: steady(12_700)}, quiet=4, fires=6),
    Case(
        "GatewayMemoryGrows",
        {MEMORY: changing(180 * MIB, 370 * MIB, at=DAY + 10), STARTED: steady(-1.5 * DAY * 60)},
        {MEMORY: changing(100 * MIB, 250 * MIB, at=DAY + 10)},
        quiet=DAY + 65,
        fires=DAY + 75,
    ),
    Case(
        "GatewayMemoryGrows",
        {MEMORY: changing(300 * MIB, 700 * MIB, at=DAY + 10)},
        {MEMORY: changing(300 * MIB, 700 * MIB, at=DAY + 10), STARTED: steady(0)},
        quiet=DAY + 65,
        fires=DAY + 75,
    ),
]


# --- Asking promtool


@dataclass(frozen=True, slots=True)
class Question:
    """Which alerts fire at a minute; `ever`: or have fired until then."""

    minute: int
    alerts: frozenset[str]
    ever: bool = False

    def as_test(self) -> dict[str, object]:
        firing = 'ALERTS{alertstate="firing"}'
        selected = f"last_over_time({firing}[{self.minute + 1}m])" if self.ever else firing
        samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(self.alerts)]
        return {"expr": f"group by (alertname) ({selected})", "eval_time": f"{self.minute}m", "exp_samples": samples}


def asked(folder: Path, series: Mapping[str, Values], *questions: Question) -> None:
    """Fails where Prometheus finds other alerts than each question says."""
    minutes = max(question.minute for question in questions)
    group = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values.replace(END, str(minutes))} for name, values in series.items()
        ],
        "promql_expr_test": [question.as_test() for question in questions],
    }
    evaluated = "1m" if minutes < DAY else "5m"
    test = {"rule_files": [str(RULES)], "evaluation_interval": evaluated, "tests": [group]}
    file = folder / "test.yaml"
    file.write_text(json.dumps(test), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


NONE = frozenset[str]()


def test_all_is_quiet_where_all_is_well(tmp_path: Path) -> None:
    asked(tmp_path, WELL, Question(DAY + 90, NONE, ever=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_in_time_and_no_other_does(tmp_path: Path, case: Case) -> None:
    alone = frozenset({case.alert})
    questions = [Question(case.quiet, NONE), Question(case.fires, alone), Question(case.ends, alone, ever=True)]
    if case.over is not None:
        questions.append(Question(case.over, NONE))
    asked(tmp_path, changed(case.ill), *questions)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_what_only_looks_like_it_is_not_told(tmp_path: Path, case: Case) -> None:
    asked(tmp_path, changed(case.harmless), Question(case.ends, NONE, ever=True))


def test_every_alert_has_its_case() -> None:
    assert {case.alert for case in CASES} == {alert["alert"] for alert in ALERTS}


def test_the_series_are_those_that_a_gateway_has() -> None:
    named = {series for case in CASES for series in (*case.ill, *case.harmless)} | WELL.keys()
    for series in named:
        selector = promql.parse(series)
        assert isinstance(selector, promql.VectorSelector)
        assert {matcher.name for matcher in selector.matchers.matchers} == sample_of(selector).labels

"""What stands in `deploy/`: a dashboard and alert rules that name only metrics, labels and values that there are.

What the rules say about a gateway that is ill, and about one that is well, is in `tests/test_alerts.py`.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from gateway.api import asyncapi, calls
from gateway.live.closing import CloseCode
from gateway.mending import ACTIONS
from gateway.metrics import Metrics
from gateway.transit.decisions import Result
from gateway.transit.state import Status
from gateway.uploads import Fate
from gateway.wakeups import OUTCOMES
from push.sender import Platform
from tests.test_docs import METRICS, anchors, blocks, metrics, quoted, rows, section

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "monitoring.md"
RULES = ROOT / "deploy" / "alerts.yaml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

Labels = frozenset[str]

OF_A_TARGET: Labels = frozenset({"job", "instance"})
"""What Prometheus itself puts to every sample."""
OF_A_PROCESS = OF_A_TARGET | {"process"}
"""And what `gateway/siblings.py` puts there."""


def grafana_fills_in(text: str) -> str:
    """What Prometheus is asked where all is chosen in the dashboard's variables."""
    text = text.replace("$__rate_interval", "5m")
    return re.sub(r"\$(job|instance|process)\b", ".*", text)


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and the text beside it in which labels are put in."""

    where: str
    expression: str
    text: str

    @property
    def parsed(self) -> promql.Expr:
        return promql.parse(self.expression)

    @property
    def labels_in_text(self) -> Labels:
        return frozenset(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)[^}]*\}\}", self.text))


OF_PANELS = [
    Query(f"{panel['title']} {target['refId']}", grafana_fills_in(target["expr"]), target["legendFormat"])
    for panel in PANELS
    for target in panel["targets"]
]
OF_ALERTS = [Query(alert["alert"], alert["expr"], " ".join(alert["annotations"].values())) for alert in ALERTS]

every_query = pytest.mark.parametrize("query", [*OF_PANELS, *OF_ALERTS], ids=lambda query: query.where)
of_every_panel = pytest.mark.parametrize("query", OF_PANELS, ids=lambda query: query.where)


# --- What a gateway exposes


@dataclass(frozen=True, slots=True)
class Sample:
    """A name as Prometheus stores it: whether it only grows, and its labels."""

    counts: bool
    labels: Labels


def samples() -> dict[str, Sample]:
    """All that there are, as a gateway's exposition names them."""
    found = {"up": Sample(counts=False, labels=OF_A_TARGET)}
    labelled = {name.removesuffix("_total"): frozenset(labels) for name, (_, labels) in metrics().items()}
    for family in text_string_to_metric_families(Metrics().exposition().decode()):
        labels = OF_A_PROCESS | labelled.get(family.name, frozenset())
        match family.type:
            case "counter":
                found[f"{family.name}_total"] = Sample(counts=True, labels=labels)
            case "histogram":
                found[f"{family.name}_bucket"] = Sample(counts=True, labels=labels | {"le"})
                found |= dict.fromkeys((f"{family.name}_sum", f"{family.name}_count"), Sample(True, labels))
            case _:
                found[family.name] = Sample(counts=False, labels=labels)
    return found


SAMPLES = samples()

STATUS_CODES = {str(status.value) for status in HTTPStatus}
STORES = [row for row in rows(section(METRICS, "What the stores count")) if len(row) == 3]
VALUES: Mapping[tuple[str, str], set[str]] = {
    ("gateway_calls_total", "status"): STATUS_CODES,
    ("gateway_calls_total", "call"): {call.name for call in calls.CALLS},
    ("gateway_handshakes_total", "status"): STATUS_CODES,
    ("gateway_sockets_closed_total", "code"): {str(int(code)) for code in CloseCode},
    ("gateway_frames_total", "type"): {kind.__name__.lower() for kind in asyncapi.FROM_APP},
    ("gateway_results_total", "result"): set(Result),
    ("gateway_videos_total", "status"): set(Status),
    ("gateway_pushes_total", "outcome"): set(OUTCOMES.values()),
    ("gateway_pushes_total", "platform"): set(Platform),
    ("gateway_swept_total", "action"): set(ACTIONS),
    ("gateway_upload_events_total", "result"): set(Fate),
    ("gateway_store_requests_total", "store"): {name for row in STORES for name in quoted(row[0])},
    ("gateway_store_requests_total", "call"): {name for row in STORES for name in quoted(row[1])},
}
"""The values that a label has where the code enumerates them, by sample and label."""


# --- What an expression reads


def parts(expression: promql.Expr) -> Iterator[promql.Expr]:
    """The expression and all within it."""
    found: list[promql.Expr] = []
    promql.walk(expression, found.append)
    return iter(found)


def selectors(expression: promql.Expr) -> list[promql.VectorSelector]:
    ranges = [part.vector_selector for part in parts(expression) if isinstance(part, promql.MatrixSelector)]
    instants = [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]
    return list({str(selector): selector for selector in [*ranges, *instants]}.values())


def sample_of(selector: promql.VectorSelector) -> Sample:
    assert selector.name in SAMPLES, f"there is no metric {selector.name}"
    return SAMPLES[selector.name]


def is_number(expression: promql.Expr) -> bool:
    """Whether it has no labels to match: a number, or arithmetic of numbers."""
    match expression:
        case promql.NumberLiteral():
            return True
        case promql.ParenExpr() | promql.UnaryExpr():
            return is_number(expression.expr)
        case promql.BinaryExpr():
            return is_number(expression.lhs) and is_number(expression.rhs)
        case promql.Call():
            return expression.func.name == "time"
    return False


def labels_of(expression: promql.Expr) -> Labels:
    """The labels that its result may have. Fails where it groups by or matches on one that is not there."""
    match expression:
        case promql.VectorSelector():
            return sample_of(expression).labels
        case promql.MatrixSelector():
            return sample_of(expression.vector_selector).labels
        case promql.ParenExpr() | promql.UnaryExpr():
            return labels_of(expression.expr)
        case promql.AggregateExpr():
            return _aggregated(expression)
        case promql.Call():
            return _called(expression)
        case promql.BinaryExpr():
            return _combined(expression)
    return frozenset()


def _aggregated(expression: promql.AggregateExpr) -> Labels:
    inner, modifier = labels_of(expression.expr), expression.modifier
    if modifier is None:
        return frozenset()
    named = frozenset(modifier.labels)
    assert named <= inner, f"there is no label {set(named - inner)} to group by"
    return named if modifier.type == promql.AggModifierType.By else inner - named


def _called(expression: promql.Call) -> Labels:
    match expression.func.name, expression.args:
        case "histogram_quantile", [_, buckets]:
            return labels_of(buckets) - {"le"}
        case "absent", [selector]:
            return frozenset(matcher.name for matcher in selector.matchers.matchers)
        case "vector" | "time", _:
            return frozenset()
        case _, [argument]:
            return labels_of(argument)
    raise AssertionError(f"{expression.func.name} is not known here")


def _combined(expression: promql.BinaryExpr) -> Labels:
    left, right = labels_of(expression.lhs), labels_of(expression.rhs)
    if is_number(expression.lhs) or is_number(expression.rhs):
        return left | right
    operator, modifier = str(expression.op), expression.modifier
    matching = modifier and modifier.matching
    if matching:
        assert matching.type == promql.LabelModifierType.Include, "match on what is named"
        assert set(matching.labels) <= left & right, f"{matching.labels} are not on both sides"
    elif operator != "or":
        assert left == right, f"{set(left ^ right)} is on one side only: nothing matches"
    if operator in {"and", "unless"} or (modifier and modifier.card == promql.VectorMatchCardinality.ManyToOne):
        return left
    return left & right


# --- Expressions


def test_there_is_something_to_check() -> None:
    assert len(ALERTS) > 20
    assert len(PANELS) > 40
    assert {"gateway_call_seconds_bucket", "gateway_videos_total", "process_open_fds"} < SAMPLES.keys()


@every_query
def test_only_metrics_and_labels_that_there_are_are_asked_for(query: Query) -> None:
    assert selectors(query.parsed)
    for selector in selectors(query.parsed):
        sample = sample_of(selector)
        assert {matcher.name for matcher in selector.matchers.matchers} <= sample.labels
    labels_of(query.parsed)


@every_query
def test_labels_are_compared_with_values_that_there_are(query: Query) -> None:
    for selector in selectors(query.parsed):
        for matcher in selector.matchers.matchers:
            if matcher.name in OF_A_PROCESS:
                continue
            assert matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re)
            possible = VALUES[str(selector.name), matcher.name]
            for wanted in matcher.value.split("|"):
                assert any(re.fullmatch(wanted, value) for value in possible), str(matcher)


@every_query
def test_the_text_beside_a_query_names_labels_that_its_result_has(query: Query) -> None:
    assert query.labels_in_text - {"value"} <= labels_of(query.parsed)


@every_query
def test_rates_are_of_counters_and_changes_of_what_is_not(query: Query) -> None:
    for part in parts(query.parsed):
        if isinstance(part, promql.Call):
            ranges = [argument for argument in part.args if isinstance(argument, promql.MatrixSelector)]
            counts = {sample_of(argument.vector_selector).counts for argument in ranges}
            assert counts <= {part.func.name in {"rate", "increase"}}, part.func.name


@of_every_panel
def test_no_panel_shows_what_a_counter_is_at(query: Query) -> None:
    """It depends on when the process started."""
    within = [part.vector_selector for part in parts(query.parsed) if isinstance(part, promql.MatrixSelector)]
    inside_rates = {str(selector) for selector in within}
    assert not [s for s in selectors(query.parsed) if sample_of(s).counts and str(s) not in inside_rates]


@every_query
def test_quantiles_are_of_rates_of_buckets_whose_bounds_are_kept(query: Query) -> None:
    for part in parts(query.parsed):
        if isinstance(part, promql.Call) and part.func.name == "histogram_quantile":
            quantile, buckets = part.args
            assert 0 < quantile.val < 1
            assert "le" in labels_of(buckets)
            assert isinstance(buckets, promql.AggregateExpr)
            assert isinstance(buckets.expr, promql.Call)
            assert buckets.expr.func.name == "rate"
            assert all(str(selector.name).endswith("_bucket") for selector in selectors(buckets))


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {str(selector.name) for query in OF_PANELS for selector in selectors(query.parsed)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert metrics().keys() - families == set()


# --- The rules


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_prometheus_takes_the_configuration_that_the_page_shows(tmp_path: Path) -> None:
    (example,) = [block.text for block in blocks(PAGE.read_text("utf-8")) if block.language == "yaml"]
    (tmp_path / "prometheus.yaml").write_text(example, "utf-8")
    (tmp_path / "alerts.yaml").write_bytes(RULES.read_bytes())
    (tmp_path / "operator.token").write_text("a token", "utf-8")
    check = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout
    (scraped,) = yaml.safe_load(example)["scrape_configs"]
    jobs = {
        matcher.value
        for query in OF_ALERTS
        for selector in selectors(query.parsed)
        for matcher in selector.matchers.matchers
        if matcher.name == "job"
    }
    assert jobs == {scraped["job_name"]}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert promql.parse_duration(alert["for"]).total_seconds() >= 60
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert len(annotations["summary"]) < 100 < len(annotations["summary"]) + len(annotations["description"])
    page, _, fragment = annotations["runbook_url"].partition("#")
    assert ROOT / page == PAGE
    assert fragment == alert["alert"].lower()


def test_every_alert_has_its_place_on_the_page_and_no_other_has() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert re.findall(r"^### (\w+)$", PAGE.read_text("utf-8"), re.MULTILINE) == names
    assert len(set(names)) == len(names)
    assert {name.lower() for name in names} <= anchors(PAGE)


# --- The dashboard


def test_the_dashboard_belongs_to_no_installation() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] == 42
    assert DASHBOARD.keys().isdisjoint({"__inputs", "__requires"})
    first, *others = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert [variable["name"] for variable in others] == ["job", "instance", "process"]
    sources = [*PANELS, *others, *(target for panel in PANELS for target in panel["targets"])]
    assert all(source["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_each_variable_is_chosen_from_what_those_before_it_leave() -> None:
    _, *variables = DASHBOARD["templating"]["list"]
    for place, variable in enumerate(variables):
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert found is not None
        assert found[2] == variable["name"]
        selector = promql.parse(grafana_fills_in(found[1]))
        assert isinstance(selector, promql.VectorSelector)
        assert found[2] in sample_of(selector).labels
        assert [m.name for m in selector.matchers.matchers] == [each["name"] for each in variables[:place]]
        # One process alone has no label `process`: "All" must let that through.
        assert (variable["includeAll"], variable["allValue"]) == (True, ".*")


@of_every_panel
def test_every_panel_follows_the_variables(query: Query) -> None:
    for selector in selectors(query.parsed):
        names = {matcher.name for matcher in selector.matchers.matchers}
        assert names >= sample_of(selector).labels & OF_A_PROCESS


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["type"] in {"timeseries", "stat"}
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["type"] == "stat" or panel["options"]["legend"]["showLegend"] is True
    assert all(target["legendFormat"] for target in panel["targets"])
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG")[: len(panel["targets"])]
    named = set(re.findall(r"Gateway[A-Z]\w+", panel["description"]))
    assert named <= {alert["alert"] for alert in ALERTS}


def test_panels_are_numbered_and_named_once() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


def test_panels_lie_within_the_grid_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)

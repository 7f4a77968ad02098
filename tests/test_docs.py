"""The documentation says what the code does: every name stands there, nothing else does, and its examples are real."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft7Validator
from prometheus_client import Metric

from gateway import app
from gateway.api import asyncapi, bodies, calls, http, objects, openapi
from gateway.api.auth import LEEWAY_S, MAX_TOKEN
from gateway.api.session import MOST_MALFORMED
from gateway.changes import CALL_DEADLINE_S
from gateway.config import PREFIX, SETTINGS, Settings
from gateway.errors import STATUS, Code
from gateway.live.closing import CloseCode
from gateway.live.connection import MESSAGE_BYTES
from gateway.live.handshake import BEARER, SUBPROTOCOL
from gateway.live.hub import CHECK_S, DRAIN_PART, HELD_PER_CLIENT, SOCKETS_PER_CLIENT
from gateway.mending import ACTIONS
from gateway.metrics import Metrics
from gateway.server import HEAD_BYTES, HEAD_S, KEEP_ALIVE_S, SPARE, UNREAD_S
from gateway.supervisor import HUNG
from gateway.transit.decisions import Reason, Result
from gateway.transit.policy import Policy
from gateway.transit.state import Status
from gateway.uploads import Fate
from gateway.wakeups import OUTCOMES
from push.sender import Environment, Platform
from tests.running import SECRET, gateway_in_a_thread

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
TEXTS = {page: page.read_text("utf-8") for page in PAGES}
PROTOCOL, CONFIGURATION, METRICS = (TEXTS[DOCS / f"{name}.md"] for name in ("protocol", "configuration", "metrics"))
EVERYTHING = "\n".join(TEXTS.values())

AT_HOME = "127.0.0.1:8000"
"""Where the examples find the gateway."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and whether it follows another at once."""

    language: str
    text: str
    follows: bool


def blocks(text: str) -> list[Block]:
    found = []
    end = 0
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(fence[1], fence[2], follows=not text[end : fence.start()].strip() and end > 0))
        end = fence.end()
    return found


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """From a heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|[ |-]+\|\Z", line)]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def quoted(text: str) -> set[str]:
    """What stands between backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def named_in_rows(text: str) -> set[str]:
    """What stands between backquotes in the first cells of tables."""
    return {name for row in rows(text) for name in quoted(row[0])}


# --- Links and examples


def anchors(page: Path) -> set[str]:
    """The fragments that headings have on GitHub."""
    titles = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[page])):
        path, _, fragment = target.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        assert not fragment or fragment in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_examples_are_json(page: Path) -> None:
    for block in blocks(TEXTS[page]):
        if block.language == "json":
            json.loads(block.text)


def test_files_that_are_named_are_there() -> None:
    named = {
        name for name in quoted(EVERYTHING) if re.fullmatch(r"(gateway|storage|push|tests|scripts)/[\w/.-]*", name)
    }
    assert "gateway/changes.py" in named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_module_has_its_place_in_the_architecture() -> None:
    page = TEXTS[DOCS / "architecture.md"]
    modules = {f"gateway/{path.name}" for path in (ROOT / "gateway").iterdir() if not path.name.startswith("_")}
    houses = {f"{name}/" if (ROOT / name).is_dir() else name for name in modules}
    assert houses - quoted(page) == set()


# --- Settings


def setting_rows() -> dict[str, tuple[str, str]]:
    """By setting: the default and the meaning that its row states."""
    found = {}
    for row in rows(CONFIGURATION):
        if row[0].startswith(f"`{PREFIX}"):
            name, default, meaning = row
            found[name.strip("`")] = (default, meaning)
    return found


def test_every_setting_has_one_row_and_its_default() -> None:
    stated = {name: default for name, (default, _) in setting_rows().items()}
    defaults = {None: "not set", "": "empty"}
    assert stated == {setting.variable: defaults.get(setting.default, f"`{setting.default}`") for setting in SETTINGS}


def test_the_defaults_as_stated_are_the_ones_that_are_loaded(tmp_path: Path) -> None:
    stated = {
        name: default.strip("`").replace("<DATA_DIR>", "./data")
        for name, (default, _) in setting_rows().items()
        if default.startswith("`")
    }
    explicit = Settings.load(stated)
    implicit = Settings.load({})
    for setting in SETTINGS:
        assert getattr(explicit, setting.name.lower()) == getattr(implicit, setting.name.lower()), setting.name


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", EVERYTHING)) - {PREFIX}
    assert named - {setting.variable for setting in SETTINGS} == set()


# --- The protocol


def addresses() -> set[str]:
    """Method and path of everything that is answered."""
    described = openapi.document()["paths"]
    found = {f"{call.method} {call.path}" for call in calls.CALLS}
    found |= {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    return found | {"GET /openapi.json", "GET /v1/devices/{device_id}/pushes"}


def test_every_call_has_its_place_in_the_protocol_and_no_other_has() -> None:
    page = section(PROTOCOL, "The calls")
    named = {text.split("?")[0] for text in quoted(page) if re.match(r"(GET|POST|PUT|DELETE|PATCH) /", text)}
    assert named == addresses()


def test_no_page_names_an_address_that_does_not_exist() -> None:
    known = {address.split(" ")[1] for address in addresses()}
    named = set(re.findall(r"(?<![\w./])/(?:v1/)?[a-z.]+(?:/[\w{}-]+)*", prose(EVERYTHING)))
    versioned = {path for path in named if path.startswith("/v1") or path.endswith(("z", ".json"))}
    assert versioned - known == set()
    assert versioned >= {"/v1/poll", "/v1/ws", "/asyncapi.json"}


def test_every_error_code_stands_in_the_protocol_with_its_status() -> None:
    stated = {
        quoted(row[0]).pop(): int(row[1])
        for row in rows(section(PROTOCOL, "The calls"))
        if len(row) == 3 and re.fullmatch(r"\d{3}", row[1])
    }
    assert stated == {code.value: STATUS[code] for code in Code}


def test_the_protocol_names_the_errors_of_each_call() -> None:
    for call in calls.CALLS:
        title = next(found for found in re.findall(r"^### (.+)$", PROTOCOL, re.MULTILINE) if _is_of(found, call))
        page = re.split(r"^##", PROTOCOL.split(f"### {title}\n")[1], flags=re.MULTILINE)[0]
        missing = {code for code in call.errors if code not in quoted(page)} - {Code.TOO_LARGE}
        assert missing == set(), title
        assert call.body is None or quoted(page) >= set(inspect.get_annotations(call.body)), title
        assert {parameter.name for parameter in call.parameters if parameter.place == "query"} <= words(page), title


def _is_of(title: str, call: calls.Call) -> bool:
    return title.strip("`").split("?")[0] == f"{call.method} {call.path}"


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_every_status_stands_in_the_protocol() -> None:
    table = section(PROTOCOL, "Statuses")
    assert named_in_rows(table) == {status.value for status in Status}


def test_every_result_and_reason_stands_in_the_protocol() -> None:
    stated = {(row[0].strip("`"), row[1].strip("`")) for row in rows(PROTOCOL) if row[0].strip("`") in list(Result)}
    expected = {(Result.APPLIED.value, ""), (Result.DUPLICATE.value, "")}
    assert stated == expected | {(Result.IGNORED.value, reason.value) for reason in Reason}


def test_what_a_device_is_registered_with_stands_in_the_protocol() -> None:
    page = section(PROTOCOL, "The calls")
    assert quoted(page) >= {*map(str, Platform), *map(str, Environment)}


def test_every_close_code_stands_in_the_protocol_with_what_the_app_does() -> None:
    stated = rows(section(PROTOCOL, "When it closes"))[1:]
    assert stated == [[str(int(code)), code.meaning, code.then] for code in CloseCode]
    named = {int(text) for text in re.findall(r"\b(?:10\d\d|4[04]\d\d)\b", prose(PROTOCOL)) if text != "4096"}
    assert named <= set(CloseCode)


def test_every_message_over_the_socket_has_an_example_that_is_as_described() -> None:
    described = asyncapi.document()["components"]
    page = section(PROTOCOL, "The WebSocket")
    examples = {}
    for block in blocks(page):
        if block.language == "json":
            message = json.loads(block.text)
            examples[message["type"]] = message
            payload = described["messages"][message["type"]]["payload"]
            Draft7Validator({"allOf": [payload], "components": described}).validate(message)
    assert set(examples) == set(described["messages"])
    for kind in (*asyncapi.TO_APP, *asyncapi.FROM_APP):
        assert words(page) >= set(described["schemas"][kind.__name__]["properties"])


def test_a_handshake_stands_in_the_protocol_with_what_it_takes_and_how_it_is_refused() -> None:
    page = section(PROTOCOL, "Opening it")
    (operation,) = openapi.document()["paths"]["/v1/ws"].values()
    assert named_in_rows(page) >= {parameter["name"] for parameter in operation["parameters"]}
    stated = {row[0].split(" ")[0] for row in rows(page) if re.match(r"\d{3}\b", row[0])}
    assert stated == set(operation["responses"])
    assert {f"`{SUBPROTOCOL}`", f"`{BEARER}<JWT>`"} <= {f"`{name}`" for name in quoted(page)}


def test_the_limits_are_those_of_the_code() -> None:
    policy, defaults = Policy(), Settings.load({})
    limits = {row[0]: row[1] for row in rows(section(PROTOCOL, "Limits"))}

    def numbers(name: str) -> list[int]:
        return [int(text) for text in re.findall(r"\d+", limits[name])]

    assert numbers("token") == [MAX_TOKEN]
    assert numbers("JSON body") == [calls.BODY_BYTES // 1024, calls.SYNC_BYTES // 1024]
    assert numbers("statuses in one sync") == [bodies.MOST_STATUSES]
    assert numbers("`wait` of a poll") == [1, bodies.LONGEST_WAIT_S]
    assert numbers("polls held at once, per client") == [HELD_PER_CLIENT]
    assert numbers("sockets open at once, per client and process") == [SOCKETS_PER_CLIENT]
    assert defaults.rate_frames is not None
    assert numbers("frames, per client") == [defaults.rate_frames.per_s, defaults.rate_frames.burst]
    assert numbers("message to the gateway") == [MESSAGE_BYTES // 1024]
    assert numbers("messages that cannot be read, per socket") == [MOST_MALFORMED]
    assert numbers("ping") == [defaults.ping_s]
    assert numbers("pong") == [defaults.pong_s]
    assert numbers("head of a request, handshakes included") == [HEAD_BYTES // 1024, HEAD_S]
    assert numbers("registered devices, per client") == [policy.max_devices]
    assert numbers("videos in transit from one sender to one recipient") == [defaults.videos_per_pair]
    assert numbers("outgoing videos, per client") == [policy.max_outgoing]
    assert policy.max_incoming == policy.max_outgoing
    assert numbers("size of a video") == [1, defaults.max_video_bytes >> 20]
    assert numbers("life of an upload URL") == [defaults.upload_ttl_s / 3600]
    assert numbers("life of a download URL") == [defaults.download_ttl_s / 60]
    assert numbers("a video that nobody views") == [defaults.video_ttl_s / 86_400]
    assert numbers("`viewed` and `expired` entries") == [defaults.ended_keep_s / 86_400]
    assert defaults.rate_calls is not None
    assert numbers("calls, per client") == [defaults.rate_calls.per_s, defaults.rate_calls.burst]
    assert numbers("time for a JSON body to arrive") == [http.BODY_DEADLINE_S]
    assert numbers("pause within an upload") == [objects.STALL_S]
    assert numbers("time until a call is answered") == [CALL_DEADLINE_S, 503]


def test_what_the_text_says_of_sockets_fits_the_code() -> None:
    defaults = Settings.load({})
    page = " ".join(section(PROTOCOL, "The WebSocket").split())
    assert f"pings every {defaults.ping_s:g} s" in page
    assert f"Without a pong within {defaults.pong_s:g} s" in page
    assert f"expired and {LEEWAY_S} s have passed" in page
    assert MOST_MALFORMED == 10
    assert "The tenth ends the socket" in page
    architecture = TEXTS[DOCS / "architecture.md"]
    assert CHECK_S == 300
    assert "every five minutes each client's version is compared" in architecture
    assert UNREAD_S == 60
    assert "cut after a minute" in architecture


def test_the_advice_to_operators_fits_the_code() -> None:
    page = " ".join(CONFIGURATION.split())
    assert f"Idle connections are kept for {KEEP_ALIVE_S} s" in page
    assert f"and {SPARE + app.OTHER_FILES} more" in page
    assert f"a random time of up to {app.MOST_RETRY_MS // 1000} s" in page
    assert app.CALLS_PART == 0.8
    assert "still there at four fifths of the time are cut" in page
    assert abs(app.CALLS_PART * DRAIN_PART - 2 / 3) < 0.05
    assert "over the first two thirds of the time" in page
    assert f"below {app.LEAST_STOP_S:g} counts as {app.LEAST_STOP_S:g}" in page
    assert f"exit code {HUNG}" in page


# --- Metrics


def metrics() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """By name as it is exposed: type and labels."""
    found = {}
    for collector in vars(Metrics()).values():
        if not hasattr(collector, "describe"):
            continue
        described: Metric = collector.describe()[0]
        name = f"{described.name}_total" if described.type == "counter" else described.name
        found[name] = (described.type, tuple(getattr(collector, "_labelnames", ())))
    return found


def test_every_metric_has_one_row_with_its_type_and_labels() -> None:
    stated = {
        row[0].strip("`"): (row[1], tuple(re.findall(r"`(\w+)`", row[2])))
        for row in rows(METRICS)
        if row[0].startswith("`gateway_")
    }
    assert stated == dict(metrics())


def test_no_page_names_a_metric_that_does_not_exist() -> None:
    assert set(re.findall(r"\bgateway_[a-z_]+\b", EVERYTHING)) - metrics().keys() == set()


def test_the_values_of_labels_are_those_of_the_code() -> None:
    stated = {row[0].strip("`"): quoted(row[1]) for row in rows(METRICS) if len(row) == 2}
    assert stated["call"] == {call.name for call in calls.CALLS} | {"/openapi.json"}
    received = {name.removeprefix("receive_") for name in asyncapi.document()["operations"] if "receive_" in name}
    assert stated["type"] == received | {"malformed"}
    assert stated["platform"] == {platform.value for platform in Platform}
    assert stated["outcome"] == set(OUTCOMES.values())
    assert stated["action"] == set(ACTIONS)
    assert stated["result"] == {*Result, *Fate}


# --- The examples, run


def examples(text: str) -> Iterator[tuple[str, str | None]]:
    """Each shell example that runs as it stands, and what it prints where the block after it says so."""
    found = blocks(text)
    for block, after in zip(found, [*found[1:], Block("", "", follows=False)], strict=True):
        if block.language == "bash":
            yield block.text, after.text if after.follows and after.language in {"json", "text"} else None


def masked(text: str) -> Any:
    """The output without what differs from run to run: ids, times, signatures."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\b1\d{12}\b", "1000000000000", text)
    text = re.sub(r"/objects/[0-9a-f]/", "/objects/X/", re.sub(r"signature=[0-9a-f]{64}", "signature=X", text))
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_the_examples_of_the_protocol_work_and_print_what_they_show(tmp_path: Path) -> None:
    wanted = list(examples(PROTOCOL))
    assert len(wanted) > 10
    with gateway_in_a_thread(tmp_path / "data") as running:
        mark = "=== the next example ==="
        script = "set -euo pipefail\n" + "".join(f"{command}\necho\necho '{mark}'\n" for command, _ in wanted)
        script = script.replace(AT_HOME, f"127.0.0.1:{running.port}")
        programs = {"gateway": f"'{sys.executable}' -m gateway", "python": f"'{sys.executable}'"}
        script = re.sub(r"\.venv/bin/(gateway|python)\b", lambda found: programs[found[1]], script)
        environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environ |= {"PYTHONPATH": str(ROOT), "GATEWAY_JWT_SECRET": SECRET}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout.replace(f"127.0.0.1:{running.port}", AT_HOME).split(f"{mark}\n")
    for (command, output), found in zip(wanted, printed, strict=False):
        if output is not None:
            assert masked(found.strip()) == masked(output.strip()), command

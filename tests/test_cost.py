import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gateway import readings
from gateway.cli import main
from gateway.cost import MONTH_S, NOT_IN_THE_SUM, Bill, Prices, Row, as_json, bill, told
from gateway.readings import BYTES, DOWNLOADS, VIDEOS, Kind, Uncountable, Used
from tests.running import VIDEO, Running, running_gateway

Output = pytest.CaptureFixture[str]

TOKEN = "the operator's own token"
HOUR = Decimal(3600)

PRICES = """
name = "a market"
checked = 2026-01-02

[[price]]
store = "dynamodb"
units = ["write"]
dollars = 0.5
per = 1_000_000
confirmed = true

[[price]]
store = "s3"
calls = ["PutObject", "ListObjectsV2"]
dollars = 5
per = 1_000_000

[[price]]
store = "s3"
calls = ["*"]
dollars = 0.4
per = 1_000_000
confirmed = true

[[price]]
store = "s3"
calls = ["DeleteObjects"]
dollars = 0
per = 1
confirmed = true

[[price]]
store = "s3"
units = ["bytes out"]
dollars = 0.1
per = 1_000_000_000
confirmed = true

[[price]]
store = "s3"
units = ["byte months"]
dollars = 0.0730
per = 1_000_000_000
confirmed = true

[[price]]
store = "sqs"
calls = ["*"]
dollars = 0.4
per = 1_000_000
"""
MARKET = Prices.parse(PRICES, source="the test")

COUNTS = {
    Kind("requests", "dynamodb", "PutItem"): Decimal(800),
    Kind("units", "dynamodb", "write"): Decimal(1000),
    Kind("requests", "s3", "HeadObject"): Decimal(100),
    Kind("requests", "s3", "DeleteObjects"): Decimal(7),
    Kind("requests", "sqs", "ReceiveMessage"): Decimal(180),
    Kind("requests", "cache", "get"): Decimal(40),
    VIDEOS: Decimal(100),
    BYTES: Decimal(500_000_000),
    DOWNLOADS: Decimal(80),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "data"))


def used(counts: dict[Kind, Decimal] = COUNTS, seconds: Decimal = HOUR) -> Used:
    return Used(seconds, 1, counts, {kind: count / seconds for kind, count in counts.items()})


def row(found: Bill, store: str, what: str, *, estimated: bool = False) -> Row:
    (only,) = (row for row in found.rows if (row.store, row.what) == (store, what) and row.estimated == estimated)
    return only


def amounts(row: Row) -> tuple[str, str, str]:
    """How many, their dollars, and those of a million videos."""
    count = row.units if row.requests is None else row.requests
    assert count is not None
    return f"{count:.0f}", f"{row.dollars:.6f}", f"{row.per_million_videos:.2f}"


# --- The sum


def test_units_cost_what_they_cost() -> None:
    found = row(bill(used(), MARKET, days=Decimal(1)), "dynamodb", "write")
    assert found == Row(
        "dynamodb",
        "write",
        units=Decimal(1000),
        dollars=Decimal("0.0005"),
        per_million_videos=Decimal(5),
        per_month=Decimal("0.365"),
    )


def test_requests_cost_what_their_call_costs_else_what_any_does() -> None:
    found = bill(used(), MARKET, days=Decimal(1))
    assert row(found, "s3", "HeadObject").dollars == Decimal("0.00004")
    assert row(found, "s3", "DeleteObjects").dollars == 0
    assert row(found, "sqs", "ReceiveMessage").dollars == Decimal("0.000072")
    assert row(found, "sqs", "ReceiveMessage").per_million_videos == Decimal("0.72")


def test_what_has_no_price_by_the_piece_is_shown_without_one() -> None:
    found = bill(used(), MARKET, days=Decimal(1))
    assert row(found, "dynamodb", "PutItem") == Row("dynamodb", "PutItem", requests=Decimal(800))
    assert row(found, "cache", "get") == Row("cache", "get", requests=Decimal(40))


def test_what_phones_do_at_s3_is_estimated() -> None:
    found = bill(used(), MARKET, days=Decimal(10))
    put = row(found, "s3", "PutObject", estimated=True)
    assert amounts(put) == ("100", "0.000500", "5.00")
    get = row(found, "s3", "GetObject", estimated=True)
    assert amounts(get) == ("80", "0.000032", "0.32")
    out = row(found, "s3", "bytes out", estimated=True)
    assert amounts(out) == ("400000000", "0.040000", "400.00")
    stored = row(found, "s3", "byte months", estimated=True)
    assert stored.units is not None
    assert stored.dollars is not None
    assert stored.units == Decimal(500_000_000) * 240 / 730
    assert round(stored.dollars, 9) == Decimal("0.012")
    event = row(found, "sqs", "SendMessage", estimated=True)
    assert amounts(event) == ("100", "0.000040", "0.40")


def test_without_s3_nothing_is_estimated() -> None:
    counts = {kind: count for kind, count in COUNTS.items() if kind.store not in {"s3", "sqs"}}
    assert not any(row.estimated for row in bill(used(counts), MARKET, days=Decimal(1)).rows)


def test_what_costs_by_the_hour_is_added() -> None:
    found = bill(used(), MARKET, days=Decimal(1), flat={"redis": Decimal("0.25")})
    assert row(found, "flat", "redis") == Row(
        "flat",
        "redis",
        units=Decimal(1),
        dollars=Decimal("0.25"),
        per_million_videos=Decimal(2500),
        per_month=Decimal("182.5"),
    )
    assert found.rows[-1].store == "flat"


def test_the_total_is_the_sum_of_its_parts() -> None:
    found = bill(used(), MARKET, days=Decimal(10), flat={"redis": Decimal("0.25")})
    for name in ("dollars", "per_million_videos", "per_month"):
        assert getattr(found.total, name) == sum(getattr(row, name) or 0 for row in found.rows)
    assert found.total.dollars is not None
    assert round(found.total.dollars, 9) == Decimal("0.303184")


def test_without_a_video_nothing_is_said_of_a_million() -> None:
    found = bill(used({Kind("units", "dynamodb", "write"): Decimal(5)}), MARKET, days=Decimal(1))
    assert found.total.per_million_videos is None
    assert "nothing can be said of a million" in told(found)


def test_without_a_time_nothing_is_said_of_a_month() -> None:
    found = bill(Used(None, 1, COUNTS, {}), MARKET, days=Decimal(1), flat={"redis": Decimal(1)})
    assert row(found, "dynamodb", "write").per_month is None
    assert row(found, "flat", "redis").dollars is None
    assert row(found, "flat", "redis").per_month == 730


# --- The prices


def test_the_prices_that_come_with_it_are_those_of_the_design() -> None:
    prices = Prices.built_in()
    assert prices.of(Kind("units", "dynamodb", "write")) == Decimal("0.000000625")
    assert prices.of(Kind("units", "dynamodb", "read")) == Decimal("0.000000125")
    assert prices.of(Kind("requests", "s3", "PutObject")) == Decimal("0.000005")
    assert prices.of(Kind("requests", "sqs", "ChangeMessageVisibility")) == Decimal("0.0000004")
    assert prices.of(Kind("requests", "dynamodb", "PutItem")) is None


def test_each_price_says_where_it_is_from() -> None:
    text = (files("gateway") / "prices.toml").read_text("utf-8")
    blocks = text.split("[[price]]")[1:]
    assert len(blocks) > 5
    for block in blocks:
        for name in ("official", "source", "confirmed"):
            assert f"\n{name} = " in block


@pytest.mark.parametrize(
    "text", ["", "name = ", "[[price]]\nunits = [1]", PRICES.replace("per = 1_000_000", "per = 0")]
)
def test_what_is_no_list_of_prices_is_refused(text: str) -> None:
    with pytest.raises(Uncountable, match=r"mine\.toml is no list of prices"):
        Prices.parse(text, source="mine.toml")


# --- How it is told


def test_the_table_says_what_is_estimated_unconfirmed_and_left_out() -> None:
    text = told(bill(used(), MARKET, days=Decimal(10)))
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "store"
    assert any(re.fullmatch(r"dynamodb +write units +1,000\.0 +0\.000500 +5\.00 +0\.36", line) for line in lines), text
    assert any(re.fullmatch(r"s3 +~ PutObject +100 +0\.000500 +5\.00 +0\.36", line) for line in lines), text
    assert any(re.fullmatch(r"s3 +~ bytes out +400,000,000\.0 +0\.040000 +400\.00 +29\.20", line) for line in lines)
    assert "100 videos of 500.0 MB together, 1.00 hours, processes: 1." in lines
    assert "Dollars by the prices of a market, 2026-01-02." in lines
    assert "Second-hand prices, not seen at the source: s3 PutObject, sqs ReceiveMessage, sqs SendMessage." in lines
    assert "stored for 240 hours." in text
    for what in NOT_IN_THE_SUM:
        assert f"  - {what}" in lines


def test_where_no_price_is_confirmed_that_is_said_once() -> None:
    assert "Second-hand prices, not seen at the source: all.\n" in told(
        bill(used(), Prices.built_in(), days=Decimal(1))
    )


def test_the_bill_for_machines_has_the_same_numbers() -> None:
    found = json.loads(as_json(bill(used(), MARKET, days=Decimal(1))))
    assert found["prices"] == {"name": "a market", "checked": "2026-01-02"}
    assert (found["videos"], found["bytes"], found["seconds"], found["processes"]) == (100, 5e8, 3600, 1)
    (write,) = (row for row in found["rows"] if row["what"] == "write")
    assert write == {
        "store": "dynamodb",
        "what": "write",
        "requests": None,
        "units": 1000,
        "dollars": 0.0005,
        "per_million_videos": 5,
        "per_month": 0.365,
        "estimated": False,
        "unconfirmed": False,
    }
    assert found["total"]["dollars"] == pytest.approx(sum(row["dollars"] or 0 for row in found["rows"]))
    assert tuple(found["not_in_the_sum"]) == NOT_IN_THE_SUM


# --- The command


METRICS = """\
gateway_store_units_total{store="dynamodb",call="PutItem",kind="write"} 1000
gateway_videos_total{status="uploaded"} 100
process_start_time_seconds 1000
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    file = tmp_path / "metrics"
    file.write_text(METRICS)
    os.utime(file, (4600, 4600))
    return file


def billed(output: Output, *arguments: str) -> Any:
    assert main(["cost", "--json", *arguments]) == 0
    return json.loads(output.readouterr().out)


def refused(output: Output, *arguments: str) -> str:
    assert main(["cost", *arguments]) == 2
    out, err = output.readouterr()
    assert out == ""
    return err


def test_a_saved_file_is_of_the_time_at_which_it_was_saved(metrics: Path, capsys: Output) -> None:
    found = billed(capsys, str(metrics))
    assert found["seconds"] == 3600
    assert found["total"]["per_million_videos"] == 6.25
    assert found["total"]["per_month"] == 0.45625


def test_other_prices_and_prices_by_the_hour_can_be_given(metrics: Path, capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(PRICES)
    found = billed(capsys, str(metrics), "--prices", str(tmp_path / "mine.toml"), "--flat", "redis=0.25")
    assert found["total"]["per_month"] == 0.365 + 182.5


def test_a_file_of_prices_that_is_none_is_a_sentence(metrics: Path, capsys: Output, tmp_path: Path) -> None:
    assert "no list of prices" in refused(capsys, str(metrics), "--prices", str(metrics))
    assert "No such file" in refused(capsys, str(metrics), "--prices", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("wrong", [["--over", "0"], ["--days", "x"], ["--flat", "redis"], ["--flat", "=1"]])
def test_arguments_that_mean_nothing_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["cost", *wrong])
    assert left.value.code == 2


def test_files_do_not_change_while_they_are_measured(metrics: Path, capsys: Output) -> None:
    assert "--over measures gateways that run" in refused(capsys, str(metrics), "--over", "1")


def test_the_gateway_of_the_settings_is_asked(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], str | None]] = []

    def measured(sources: list[str], *, token: str | None, over_s: float | None) -> Used:
        asked.append((sources, token))
        return used()

    monkeypatch.setattr(readings, "measured", measured)
    monkeypatch.setenv("GATEWAY_OPERATOR_TOKEN", TOKEN)
    for host, said in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")):  # noqa: S104
        monkeypatch.setenv("GATEWAY_HOST", host)
        monkeypatch.setenv("GATEWAY_PORT", "81")
        monkeypatch.setenv("GATEWAY_JWT_SECRET", "correct horse battery staple, and more")
        billed(capsys)
        assert asked.pop() == ([f"http://{said}:81/metrics"], TOKEN)
    billed(capsys, "http://there", "--token", "another token")
    assert asked.pop() == (["http://there"], "another token")


def test_the_token_is_for_whoever_was_named_alone(capsys: Output) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/metrics")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        Thread(target=server.handle_request).start()
        assert "answers with 302" in refused(capsys, f"http://127.0.0.1:{server.server_port}", "--token", TOKEN)


# --- A gateway that runs


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path / "data", OPERATOR_TOKEN=TOKEN) as running:
        yield running


async def test_a_running_gateway_is_billed_for_its_videos(gateway: Running, capsys: Output) -> None:
    alice, bob = gateway.app("alice"), gateway.app("bob")
    for _ in range(3):
        video_id = await alice.send("bob")
        assert (await bob.download(video_id)).status_code == 200
        assert (await bob.say(video_id, "viewed")).status_code == 200
    found = await asyncio.to_thread(billed, capsys, gateway.url, "--token", TOKEN, "--flat", "box=0.01")
    assert (found["videos"], found["bytes"]) == (3, 3 * len(VIDEO))
    requests = {(row["store"], row["what"]): row["requests"] for row in found["rows"]}
    assert requests["disk", "put"] == 3
    assert requests["disk", "get"] == 3
    assert 3 <= requests["sqlite", "commit"] <= 12
    assert requests["sqlite", "load"] > 3
    assert found["seconds"] > 0
    assert found["total"]["per_month"] == 7.3


async def test_a_running_gateway_is_measured_for_a_while(
    gateway: Running, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = gateway.app("alice")
    await alice.send("bob")
    loop = asyncio.get_running_loop()

    def wait(_: float) -> None:
        asyncio.run_coroutine_threadsafe(alice.send("carol"), loop).result(20)

    monkeypatch.setattr(readings.measured, "__kwdefaults__", {"sleep": wait})
    found = await asyncio.to_thread(billed, capsys, gateway.url, "--token", TOKEN, "--over", "60")
    assert found["videos"] == 1
    assert {row["requests"] for row in found["rows"] if row["what"] == "put"} == {1}


async def test_without_the_operators_token_nothing_is_told(gateway: Running, capsys: Output) -> None:
    for arguments in ([], ["--token", "a wrong one, long enough"]):
        said = await asyncio.to_thread(refused, capsys, gateway.url, *arguments)
        assert "asks for the operator's token" in said


def test_a_month_is_a_twelfth_of_a_year() -> None:
    assert MONTH_S * 12 == 365 * 24 * 3600

import io
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from gateway import readings
from gateway.readings import BYTES, DOWNLOADS, VIDEOS, Kind, Uncountable, between, measured, parsed, since_start

COUNTED = """\
# HELP gateway_store_requests_total What the stores were asked, every try counted
# TYPE gateway_store_requests_total counter
gateway_store_requests_total{call="PutItem",store="dynamodb"} 800.0
gateway_store_requests_total{store="s3",call="HeadObject"} 1e+02
gateway_store_units_total{store="dynamodb",call="PutItem",kind="write"} 1000.25
gateway_store_units_total{store="dynamodb",call="Other",kind="write"} 0.25
gateway_videos_total{status="uploaded"} 100.0
gateway_videos_created{status="uploaded"} 1.7e+09
gateway_videos_total{status="viewed"} 80.0
gateway_video_bytes_total 5e+08
gateway_calls_total{call="content",status="307"} 20.0
gateway_calls_total{call="content",status="200"} 50.0
gateway_calls_total{call="content",status="404"} 3.0
gateway_due_age_seconds NaN
process_start_time_seconds 1000.0
"""
PUTS, WRITES = Kind("requests", "dynamodb", "PutItem"), Kind("units", "dynamodb", "write")


def told(puts: int, *, process: str = "", started_s: float = 1000) -> str:
    label = f',process="{process}"' if process else ""
    only = f'{{process="{process}"}}' if process else ""
    return (
        f'gateway_store_requests_total{{store="dynamodb",call="PutItem"{label}}} {puts}\n'
        f"process_start_time_seconds{only} {started_s}\n"
    )


def test_what_was_counted_is_read() -> None:
    found = parsed(COUNTED, source="here", at_s=4600.25)
    assert list(found) == ["here"]
    assert found["here"].at_s == Decimal("4600.25")
    assert found["here"].started_s == 1000
    assert found["here"].counts == {
        PUTS: 800,
        Kind("requests", "s3", "HeadObject"): 100,
        WRITES: Decimal("1000.5"),
        VIDEOS: 100,
        BYTES: 500_000_000,
        DOWNLOADS: 70,
    }


def test_processes_are_told_apart_and_counted_together() -> None:
    text = told(10, process="0") + told(20, process="worker", started_s=2000)
    found = parsed(text, source="here", at_s=3000)
    assert set(found) == {"here 0", "here worker"}
    used = since_start(found)
    assert used.seconds == 2000
    assert used.processes == 2
    assert used.counts == {PUTS: 30}


def test_each_process_has_a_rate_of_its_own_since_its_start() -> None:
    text = told(100, process="0", started_s=1000) + told(30, process="1", started_s=1990)
    assert since_start(parsed(text, source="here", at_s=2000)).per_s == {PUTS: Decimal("0.1") + 3}


def test_a_process_that_does_not_say_when_it_started_has_no_rate() -> None:
    used = since_start(parsed("gateway_video_bytes_total 5\n", source="here", at_s=2000))
    assert used.seconds is None
    assert used.counts == {BYTES: 5}
    assert used.per_s == {}


def test_between_two_readings_counts_what_came() -> None:
    before = parsed(told(100), source="here", at_s=2000)
    used = between(before, parsed(told(160), source="here", at_s=2060))
    assert used.seconds == 60
    assert used.counts == {PUTS: 60}
    assert used.per_s == {PUTS: 1}


def test_a_process_that_was_replaced_meanwhile_counts_from_its_start() -> None:
    before = parsed(told(100, process="0") + told(50, process="1"), source="here", at_s=2000)
    after = parsed(told(120, process="0") + told(70, process="1", started_s=2010), source="here", at_s=2020)
    assert between(before, after).counts == {PUTS: 20 + 70}


def test_what_is_no_metrics_of_a_gateway_is_refused() -> None:
    for text in ("", "<html>", "process_start_time_seconds 5\n", "up 1\n"):
        with pytest.raises(Uncountable, match="there has no metrics of a gateway"):
            parsed(text, source="there", at_s=0)


def test_files_and_standard_input_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics"
    file.write_text(told(1))
    monkeypatch.setattr(sys, "stdin", io.StringIO(told(2)))
    used = measured([str(file), "-"], token=None, over_s=None)
    assert used.processes == 2
    assert used.counts == {PUTS: 3}


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "video").write_bytes(b"\xff\xfe")
    with pytest.raises(Uncountable, match="no metrics"):
        measured([str(tmp_path / "video")], token=None, over_s=None)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://127.0.0.1:x/metrics", "http://", "https://[::1"])
def test_an_address_where_nobody_answers_is_a_sentence(address: str) -> None:
    with pytest.raises((Uncountable, ValueError), match=r"cannot be read|Invalid IPv6"):
        readings.measured([address], token=None, over_s=None)

"""Whole tests: of a gateway of its own as somebody runs them, and of one behind a relay that does what must not be."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from scripts.loadtest.course import Course
from scripts.loadtest.options import Refused, parsed
from scripts.loadtest.run import run
from scripts.loadtest.tally import Count, Fault, News, Opening
from tests.load.pages import check_page
from tests.load.relay import Relay, relay
from tests.running import SECRET, Running, running_gateway, within

STALL_S = 1.5


@pytest.fixture(scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("load")) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("GATEWAY_JWT_SECRET", SECRET)
        yield


class Mischief:
    """The first sender whose video is viewed is never told so; the second is told twice."""

    def __init__(self) -> None:
        self.deprived = b""
        self.doubled = b""

    def __call__(self, message: bytes) -> int:
        who = re.search(rb'"client_id":"([^"]+)"', message)
        if who is None or b'"status":"viewed"' not in message:
            return 1
        if not self.deprived:
            self.deprived = who[1]
        if who[1] == self.deprived:
            return 0
        if not self.doubled:
            self.doubled = who[1]
            return 2
        return 1


class Stalling:
    """Has the relay stall once, a second after the phones began to come."""

    def __init__(self, between: Relay) -> None:
        self._between = between
        self._stall: asyncio.Task[None] | None = None

    def __call__(self, course: Course, stage: str) -> None:
        if self._stall is None:
            self._stall = asyncio.ensure_future(self._between.stall(1.0, STALL_S))


@pytest.fixture(scope="module")
async def troubled(gw: Running) -> tuple[Course, Mischief]:
    """A test through a relay that drops a packet, doubles another, and stalls."""
    mischief = Mischief()
    arguments = ["--phones", "20", "--mix", "foreground=1", "--rate", "20", "--even", "--ramp", "0.5", "--seconds", "3"]
    arguments += ["--settle", "2", "--no-html"]
    async with relay(gw.port, mischief) as (between, address):
        course = await within(run(parsed([address, *arguments]), Stalling(between)), 60)
    return course, mischief


async def test_a_packet_that_is_dropped_is_found_out(troubled: tuple[Course, Mischief]) -> None:
    course, mischief = troubled
    assert course.faults[Fault.LOST] >= 1
    lost = [finding for finding in course.findings if finding.startswith("lost: ")]
    assert lost
    assert all(mischief.deprived.decode() in finding for finding in lost)
    assert any("lost" in reason for reason in course.wrong)


async def test_a_packet_that_comes_twice_is_found_out(troubled: tuple[Course, Mischief]) -> None:
    course, mischief = troubled
    assert course.faults[Fault.DUPLICATE] == 1
    assert any(finding.startswith(f"duplicate: {mischief.doubled.decode()},") for finding in course.findings)


async def test_what_was_due_while_the_gateway_stalled_waited_as_long(troubled: tuple[Course, Mischief]) -> None:
    """Of 65 videos, evenly spaced, 30 are due in the stall, and 20 of them have to wait for half a second or more. Who
    waited with the next until the one before is done would have seen one or two."""
    course, _ = troubled
    whole = course.latency(News.WHOLE)
    assert course.total.counts[Count.DUE] == pytest.approx(65, abs=3)
    assert whole.most_s > STALL_S - 0.2
    assert whole.percentile_s(80) > 0.5


async def test_tokens_that_do_not_count_are_told_of(gw: Running) -> None:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("GATEWAY_JWT_SECRET", "another secret that is long enough")
        with pytest.raises(Refused, match="does not accept our tokens"):
            await within(run(parsed([gw.url, "--no-html"]), lambda *_: None))


async def test_a_gateway_of_its_own_is_stormed_and_restarted_and_nothing_is_lost(tmp_path: Path) -> None:
    mix = "foreground=12,background=6,flaky=6,asleep=3,half-open=3"
    arguments = [
        "--phones",
        "30",
        "--mix",
        mix,
        "--rate",
        "10",
        "--ramp",
        "1",
        "--seconds",
        "5.5",
        "--downloads",
        "0.7",
    ]
    arguments += ["--storm", "1", "--restart", "2", "--set", "DRAIN_S=2", "--seed", "3", "--html", "report.html"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "scripts.loadtest", *arguments),
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, progress = (part.decode() for part in await within(process.communicate(), 90))
    assert process.returncode == 0, out + progress
    assert "All is well" in out
    assert "30 phones in 1 process: 12 foreground, 6 background, 6 flaky, 3 asleep, 3 half-open" in out
    for measured in (*News, Opening.OPEN, Opening.FIRST, Opening.STORM, Opening.RESTART, "announce", "upload", "sync"):
        assert re.search(rf"^  {measured} +[1-9]", out, re.MULTILINE), (measured, out)
    assert re.search(r"^  1012 +[1-9]", out, re.MULTILINE)
    assert " s running | 30 phones, " in progress
    page = (tmp_path / "report.html").read_text("utf-8")
    check_page(page)
    assert "eyJ" not in page + out + progress  # what tokens begin with
    assert "signature=" not in page + out + progress


async def test_where_nobody_is_nothing_is_begun() -> None:
    with pytest.raises(Refused, match="there is no gateway at"):
        await within(run(parsed(["http://127.0.0.1:9", "--no-html"]), lambda *_: None))

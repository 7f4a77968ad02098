"""The tour as a stranger runs it, against a gateway of its own and against one that runs already."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.running import SECRET, running_gateway, within

ROOT = Path(__file__).parent.parent

Columns = list[tuple[float, str, str]]


class Toured(NamedTuple):
    """How a tour ended, and what it said."""

    code: int
    said: str
    complained: str

    @property
    def columns(self) -> Columns:
        """Each step: when, what Alice's phone did, what Bob's did."""
        lines = [line for line in self.said.splitlines() if re.match(r" +[0-9]+\.[0-9]{3}  ", line)]
        return [(float(line[:8]), line[10:55].strip(), line[55:].strip()) for line in lines]


async def toured(*arguments: str, **environ: str) -> Toured:
    """Run the tour, with no `GATEWAY_` variable set but those given."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "scripts/tour.py",
        *arguments,
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), **{f"GATEWAY_{name}": text for name, text in environ.items()}},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await within(process.communicate(), 60)
    assert process.returncode is not None
    return Toured(process.returncode, said.decode(), complained.decode())


def assert_shown(told: list[str], *steps: str) -> None:
    """The phone told these steps in this order, others perhaps in between."""
    rest = iter(told)
    for step in steps:
        assert any(line.startswith(step) for line in rest), f"{step!r} is missing, or out of order, in {told}"


def assert_toured(tour: Toured) -> None:
    """Nothing went wrong, and every step was shown."""
    assert (tour.code, tour.complained) == (0, "")
    times = [at for at, _, _ in tour.columns]
    assert times == sorted(times)
    assert_shown(
        [alice for _, alice, _ in tour.columns if alice],
        "registers, opens the app, holds a socket",
        "announces the 1st video, 41,348 bytes",
        "uploads it",
        "hears: the 1st video is notified",
        "hears: the 1st video is downloaded",
        "hears: the 1st video is viewed",
        "announces the 2nd video",
        "hears: the 2nd video is notified",
        "announces the 3rd video",
        "hears: the 3rd video is notified",
        "cancels the 3rd video",
        "hears: the 3rd video is gone",
    )
    assert_shown(
        [bob for _, _, bob in tour.columns if bob],
        "registers",
        "is woken by a push: 1 video",
        "opens the app, which syncs: 1 video",
        "holds a socket",
        "downloads it: the same 41,348 bytes",
        "reports: downloaded",
        "reports: viewed",
        "is cut off",
        "connects again, with the version that it has",
        "hears: the 3rd video waits",
        "hears: the 3rd video is gone",
    )
    assert "hears: the 2nd video" not in " ".join(bob for _, _, bob in tour.columns)
    assert re.search(r"tour-bob-.*: version [0-9]+, [0-9]+ bytes by live, poll, push, sync: equal", tour.said)
    assert re.search(r"tour-alice-.*: version [0-9]+, [0-9]+ bytes by live, poll, sync: equal", tour.said)
    assert "All is as it should be." in tour.said


async def test_the_tour_of_a_gateway_that_runs_can_be_repeated_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "data") as gw:
        first = await toured(gw.url, JWT_SECRET=SECRET)
        second = await toured(PORT=gw.url.rpartition(":")[2], JWT_SECRET=SECRET)
        for tour in (first, second):
            assert_toured(tour)
            assert f"through the gateway at {gw.url}" in tour.said
        names = set(re.findall(r"tour-(?:alice|bob)-[0-9a-f]{4}", first.said + second.said))
        assert len(names) == 4
        for name in names:
            packet = await gw.app(name).packet()
            assert (packet["outgoing"], packet["incoming"]) == ([], [])
        await gw.gateway.removals.flush()
    objects = tmp_path / "data" / "objects"
    assert [path for path in objects.rglob("*") if path.is_file() and path.parent != objects] == []


async def test_without_an_address_the_tour_starts_a_gateway_of_its_own(unused_tcp_port: int) -> None:
    tour = await toured(PORT=str(unused_tcp_port))
    assert_toured(tour)
    assert "started for this tour" in tour.said


async def test_the_tour_says_that_no_gateway_is_where_it_was_sent(unused_tcp_port: int) -> None:
    tour = await toured(f"http://127.0.0.1:{unused_tcp_port}")
    assert tour.code == 1
    assert f"there is no gateway at http://127.0.0.1:{unused_tcp_port}" in tour.complained


async def test_the_tour_says_that_it_lacks_the_secret_and_makes_up_none(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "data") as gw:
        tour = await toured(gw.url, DATA_DIR=str(tmp_path / "elsewhere"))
    assert tour.code == 1
    assert "the tour needs the secret of the gateway" in tour.complained
    assert not (tmp_path / "elsewhere").exists()


async def test_the_tour_says_that_its_tokens_are_not_accepted(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "data") as gw:
        tour = await toured(gw.url, JWT_SECRET=SECRET[::-1])
    assert tour.code == 1
    assert "does not accept our tokens" in tour.complained


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"VIDEOS_PER_PAIR": "2"}, "the 3rd video to replace the 2nd (GATEWAY_VIDEOS_PER_PAIR=1)"),
        ({"PUSH_CONTENT": "wakeup"}, "the push to carry a packet (GATEWAY_PUSH_CONTENT=packet)"),
    ],
)
async def test_a_step_that_is_not_as_it_should_be_ends_the_tour_with_what_was_expected(
    tmp_path: Path, settings: dict[str, str], expected: str
) -> None:
    async with running_gateway(tmp_path / "data", worker=True, **settings) as gw:
        tour = await toured(gw.url, JWT_SECRET=SECRET)
        assert tour.code == 1
        assert "tour: FAILED: expected" in tour.complained
        assert expected in tour.complained
        [name] = re.findall(r"Bob is (tour-bob-[0-9a-f]{4})", tour.said)
        assert (await gw.app(name).packet())["incoming"] == []

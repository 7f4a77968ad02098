"""How the gateway's costs grow: with the sockets of a process, the videos of a client, and what others have stored.

One gateway, as its users run it, on SQLite with its bus on Redis, is started for each size; only the rate limits are
off. Each cost is fitted by a line, cost = a + b * size (least squares), of the sizes in one process. CPU is that of all
threads of the gateway (/proc/PID/task/*/schedstat); memory is what PSS grew by. Figures are medians of the
rounds. What one size costs varies by a tenth or two from start to start: what rises by less than a quarter from the
smallest size to the largest does not grow.
"""

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import letters
import orjson
from bench_calls import Connection, Server, drive, request
from load import Load, Mail, RedisServer, cpu_s, proportional_bytes
from peer_tables import table
from running import OUTSTANDING, WINDOW, gateway, socket_line, token
from seeding import MOST_OF_A_PAIR, Couple, add_others, lay_out, seed

UNANSWERED = 64
COUPLES = 500
"""Whose statuses change, and who hold the first of the sockets."""
MOST_OF_A_LOAD = 18_000
"""Sockets that one process of the load opens: no more file descriptors are allowed."""
MOST_CONNECTIONS = "19500"
STATUSES = ("notified", "downloaded")
PACKETS = 100_000
IDLE_S = 25.0
NOISE = 0.25
"""The share of a cost by which it differs from start to start: a smaller rise is none."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What one size costs, by what is measured; `fitted`: its point belongs to the line."""

    size: int
    named: str
    costs: dict[str, float]
    fitted: bool = True


@dataclass(frozen=True, slots=True)
class Slope:
    """Costs by size. `unit`: how many of the size the slope is told for, and what they are."""

    title: str
    unit: tuple[int, str]
    found: list[Costs]


@contextmanager
def started(seeded: Path, *, processes: int = 1, videos: int = 1) -> Iterator[tuple[Server, RedisServer, Path]]:
    """The gateway on a copy of a seeded folder, its Redis, and that copy."""
    with tempfile.TemporaryDirectory(prefix="gateway-slopes-", dir=seeded.parent) as name, RedisServer() as redis:
        lay_out(seeded, Path(name))
        settings = {
            "BUS_URL": redis.url,
            "MAX_CONNECTIONS": MOST_CONNECTIONS,
            "VIDEOS_PER_PAIR": str(min(videos, MOST_OF_A_PAIR)),
            "SWEEP_RATE": "0",  # the sweep at its start is over before anything is measured
        }
        with gateway(Path(name), settings, processes=processes) as running:
            yield running, redis, Path(name)


def change_us(load: Load, running: Server, couples: Sequence[Couple], *, videos: int = 1) -> float:
    """µs of CPU for each status change over HTTP, of `videos` of each couple. Their sockets need not be open."""
    tokens = {couple.recipient: token(couple.recipient) for couple in couples}
    calls = [
        request("POST", f"/v1/videos/{video_id}/status", tokens[couple.recipient], {"status": status})
        for place in range(videos)
        for status in STATUSES
        for couple in couples
        for video_id in couple.video_ids[place : place + 1]
    ]
    polls = [request("GET", "/v1/poll", bearer) for bearer in tokens.values()]
    drive(running, iter(polls), UNANSWERED, b"200")  # from now on their tokens are known
    cpu = cpu_s(running.pid)
    answered = load.requests(running.port, ((0, call) for call in calls), connections=UNANSWERED, packets=0)
    if answered.unanswered:
        raise RuntimeError(f"{answered.unanswered} status changes were not answered")
    return (cpu_s(running.pid) - cpu) / answered.answered * 1e6


# --- With the sockets of a process


def by_sockets(work: Path, sizes: Sequence[int]) -> Slope:
    """All sizes in one process, and twice the largest in two."""
    seeded = work / "sockets"
    seeded.mkdir()
    couples = asyncio.run(seed(seeded, COUPLES))
    found = [_sockets(work, seeded, couples, size, 1) for size in sizes]
    found.append(_sockets(work, seeded, couples, 2 * max(sizes), 2))
    return Slope("Sockets of one process", (1_000, "connections"), found)


def _sockets(work: Path, seeded: Path, couples: list[Couple], sockets: int, processes: int) -> Costs:
    costs: dict[str, float] = {}
    users = [each for couple in couples for each in (couple.recipient, couple.sender)]
    users += [f"idle-{number}" for number in range(sockets - len(users))]
    shares = [users[start : start + MOST_OF_A_LOAD] for start in range(0, sockets, MOST_OF_A_LOAD)]
    with started(seeded, processes=processes) as (running, redis, _), ExitStack() as stack:
        loads = [stack.enter_context(Load(work, source=f"127.0.0.{2 + n}")) for n in range(len(shares))]
        memory, cpu = proportional_bytes(running.pid), cpu_s(running.pid)
        _together([partial(_open, load, running.port, share) for load, share in zip(loads, shares, strict=True)])
        costs["KB for each connection"] = (proportional_bytes(running.pid) - memory) / sockets / 1000
        costs["connect, µs of CPU"] = (cpu_s(running.pid) - cpu) / sockets * 1e6
        time.sleep(1)
        cpu, began = cpu_s(running.pid), time.monotonic()
        time.sleep(IDLE_S)
        costs["keepalive, ms of CPU a second"] = (cpu_s(running.pid) - cpu) / (time.monotonic() - began) * 1000
        mails = [
            Mail("redis", redis.port, [letters.gateway(number, name=user) for number, user in enumerate(share)])
            for share in shares
        ]
        each = PACKETS // len(shares)
        _together([partial(_publish, load, mail, each) for load, mail in zip(loads, mails, strict=True)])
        cpu = cpu_s(running.pid)
        _together([partial(_publish, load, mail, each) for load, mail in zip(loads, mails, strict=True)])
        costs["packet, saturated, µs of CPU"] = (cpu_s(running.pid) - cpu) / (each * len(shares)) * 1e6
        costs["status change, both told, µs of CPU"] = change_us(loads[0], running, couples)
    named = f"{sockets:,}" + (f" in {processes} processes" if processes > 1 else "")
    return Costs(sockets, named, costs, fitted=processes == 1)


def _open(load: Load, port: int, users: Sequence[str]) -> None:
    load.connect(port, map(socket_line, users), WINDOW)
    load.settle(1.0)


def _publish(load: Load, mail: Mail, count: int) -> None:
    published = load.publish(mail, count=count, outstanding=OUTSTANDING)
    if published.lost or published.stale:
        raise RuntimeError(f"{published.lost} packets were lost, {published.stale} stale")


def _together(calls: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


# --- With the videos of a client


def by_videos(work: Path, sizes: Sequence[int]) -> Slope:
    return Slope(
        f"Videos in transit to a client, {MOST_OF_A_PAIR} at most of one sender",
        (1, "video"),
        [_videos(work, size) for size in sizes],
    )


def _videos(work: Path, videos: int) -> Costs:
    """Fewer couples where each has more, and more of the videos of each change."""
    seeded = work / f"videos-{videos}"
    seeded.mkdir()
    couples = asyncio.run(seed(seeded, max(2 * UNANSWERED, COUPLES // videos), videos=videos))
    with started(seeded, videos=videos) as (running, _redis, folder), Load(work) as load:
        load.connect(running.port, map(socket_line, (couples[0].recipient, couples[0].sender)), WINDOW)
        polls = [request("GET", "/v1/poll", token(couple.recipient)) for couple in couples]
        drive(running, iter(polls), UNANSWERED, b"200")
        costs = {
            "status change, µs of CPU": change_us(load, running, couples, videos=min(4, videos)),
            "poll answered 200, µs of CPU": drive(running, iter(polls * 8), UNANSWERED, b"200").cpu_us,
            "packet, bytes": _packet_bytes(running, couples[0].recipient),
            "recipient's document, bytes": _document_bytes(folder, couples[0].recipient),
        }
    return Costs(videos, f"{videos}", costs)


def _packet_bytes(running: Server, client_id: str) -> float:
    connection = Connection(running.port)
    connection.send(request("GET", "/v1/poll", token(client_id)))
    while not connection.answered():
        pass
    connection.socket.close()
    return len(connection.body)


def _document_bytes(folder: Path, client_id: str) -> float:
    database = sqlite3.connect(folder / "state.db")
    try:
        [[size]] = database.execute("SELECT length(body) FROM documents WHERE key = ?", (f"client:{client_id}",))
        return float(size)
    finally:
        database.close()


# --- With what others have stored


def by_others(work: Path, sizes: Sequence[int]) -> Slope:
    found = []
    for size in sizes:
        seeded = work / f"others-{size}"
        seeded.mkdir()
        couples = asyncio.run(seed(seeded, COUPLES))
        asyncio.run(add_others(seeded, couples[0], size))
        with started(seeded) as (running, _redis, _folder), Load(work) as load:
            load.connect(running.port, map(socket_line, (couples[0].recipient, couples[0].sender)), WINDOW)
            costs = {"status change, µs of CPU": change_us(load, running, couples)}
        found.append(Costs(size, f"{size:,}", costs))
    return Slope("Other clients whose documents are stored", (1_000, "other clients"), found)


# --- The tables


def merged(rounds: Sequence[Slope]) -> Slope:
    """The medians of the rounds."""
    first = rounds[0]
    found = [
        replace(each, costs={name: _median(rounds, place, name) for name in each.costs})
        for place, each in enumerate(first.found)
    ]
    return replace(first, found=found)


def _median(rounds: Sequence[Slope], place: int, name: str) -> float:
    return statistics.median(each.found[place].costs[name] for each in rounds)


def report(slopes: Sequence[Slope]) -> str:
    return "\n\n".join([__doc__ or "", *map(_section, slopes)]) + "\n"


def _section(slope: Slope) -> str:
    head = [slope.title, *(each.named for each in slope.found), f"for each {slope.unit[0]:,} {slope.unit[1]} more"]
    names = list(slope.found[0].costs)
    rows = [[name, *(f"{each.costs[name]:,.1f}" for each in slope.found), _fitted(slope, name)] for name in names]
    return table(head, rows)


def _fitted(slope: Slope, name: str) -> str:
    """What is more for each unit, and whether that is growth: or the costs differ by no more than starts do."""
    points = [each for each in slope.found if each.fitted]
    sizes, costs = [each.size for each in points], [each.costs[name] for each in points]
    if len(points) < 2:
        return "–"
    line = statistics.linear_regression(sizes, costs)
    risen = line.slope * (max(sizes) - min(sizes))
    verdict = "grows" if risen > NOISE * statistics.median(costs) else "does not grow"
    return f"{line.slope * slope.unit[0]:+,.3f} (a = {line.intercept:,.1f}): {verdict}"


def one_round(work: Path, arguments: argparse.Namespace) -> list[Slope]:
    wanted = ((by_sockets, arguments.sockets), (by_videos, arguments.videos), (by_others, arguments.others))
    return [measure(work, sizes) for measure, sizes in wanted if sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sockets", type=int, nargs="*", default=[1_000, 5_000, 18_000], help="in one process")
    parser.add_argument("--videos", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--others", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, help="the tables' file, Markdown; the figures go beside it as JSON")
    arguments = parser.parse_args()
    if any(not 2 * COUPLES <= size <= MOST_OF_A_LOAD for size in arguments.sockets):
        parser.error(f"--sockets: from {2 * COUPLES:,} to {MOST_OF_A_LOAD:,}")
    began = time.monotonic()
    rounds: list[list[Slope]] = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="gateway-slopes-") as name:
            rounds.append(one_round(Path(name), arguments))
        print(f"round {number + 1}: after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    slopes = [merged(each) for each in zip(*rounds, strict=True)]
    text = report(slopes)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
        arguments.out.with_suffix(".json").write_bytes(orjson.dumps(slopes, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()

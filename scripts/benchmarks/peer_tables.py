"""The tables of `bench_peers.py`, in Markdown."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fan_out import FanOut
from peer_results import GATEWAY, Results, Spread, Value
from whole_job import EMBEDDED, UNANSWERED, Job


def report(results: Results, method: str, *, rounds: int, minutes: float) -> str:
    """All of it; `method` says how it was done."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds, {minutes:.0f} minutes."
    parts = ["# Peers", method.strip(), machine]
    for sockets in results.floors:
        parts += [f"## Fan-out, {sockets:,} sockets", *_fan_out(results, sockets)]
    if results.jobs:
        parts += ["## The whole job", _jobs(results)]
    parts += ["## What is to be reached", _design(results)]
    if results.failures:
        parts += ["## Not measured", "\n".join(f"* {name}: {why}" for name, why in results.failures.items())]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(spread: Spread | None, digits: int = 1) -> str:
    return f"{spread.median:,.{digits}f}" if spread else "–"


def ranged(spread: Spread | None, digits: int = 2) -> str:
    """The median, and in brackets between what the rounds were."""
    if not spread:
        return "–"
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f}–{spread.most:.{digits}f})"


# --- Fan-out


def saturated_us(found: FanOut) -> float:
    return found.saturated.cpu_us


KEPT_UP = 0.95
"""The share of a pace that has to be delivered."""


def _paced(rate: int, name: str, found: FanOut) -> float | None:
    """None if it could not keep up."""
    delivered = found.paced.get(rate)
    if delivered is None or delivered.per_s < KEPT_UP * rate:
        return None
    return float(getattr(delivered, name))


def _fan_out(results: Results, sockets: int) -> list[str]:
    us_10, us_2 = partial(_paced, 10_000, "cpu_us"), partial(_paced, 2_000, "cpu_us")
    names = results.measured(sockets)
    cost = table(
        ["µs of CPU for each packet", "saturated", "gateway ÷ it", "packets/s", "10,000/s", "2,000/s",
         "gateway ÷ it, 2,000/s", "Redis, saturated"],
        [
            [
                name,
                ranged(results.spread(name, sockets, saturated_us), 1),
                ranged(results.ratio(name, sockets, saturated_us)),
                number(results.spread(name, sockets, lambda found: found.saturated.per_s), 0),
                number(results.spread(name, sockets, us_10)),
                number(results.spread(name, sockets, us_2)),
                ranged(results.ratio(name, sockets, us_2)),
                number(results.spread(name, sockets, lambda found: found.saturated.redis_us)),
            ]
            for name in names
        ]
        + [["a bare loop of `send` in C", ranged(Spread.of(results.floors[sockets]), 1),
            ranged(results.floor_ratio(sockets)), "", "", "", "", ""]],
    )  # fmt: skip
    rest = table(
        ["latency in ms, connections", "p50 / p99 at 10,000/s", "p50 / p99 at 2,000/s", "KB each", "gateway ÷ it",
         "connect, µs of CPU", "connects/s", "lost"],
        [
            [
                name,
                _latencies(results, name, sockets, 10_000),
                _latencies(results, name, sockets, 2_000),
                number(results.spread(name, sockets, lambda found: found.kb_each)),
                ranged(results.ratio(name, sockets, lambda found: found.kb_each)),
                number(results.spread(name, sockets, lambda found: found.connect_us), 0),
                number(results.spread(name, sockets, lambda found: found.connects_per_s), 0),
                number(results.spread(name, sockets, _lost), 0),
            ]
            for name in names
        ],
    )  # fmt: skip
    return [cost, rest]


def _latencies(results: Results, name: str, sockets: int, rate: int) -> str:
    p50, p99 = (results.spread(name, sockets, partial(_paced, rate, each)) for each in ("p50_ms", "p99_ms"))
    return f"{number(p50, 2)} / {number(p99, 2)}" if p50 else "–"


def _lost(found: FanOut) -> float:
    return sum(each.lost for each in (found.saturated, *found.paced.values()))


# --- The whole job


def _jobs(results: Results) -> str:
    rows = [
        [
            name,
            ranged(results.job(name, cpu_us), 0),
            ranged(results.job_ratio(EMBEDDED, name, cpu_us)),
            number(results.job(name, lambda job: job.per_s), 0),
            number(results.job(name, lambda job: job.redis_us), 0),
            f"{number(results.job(name, half_p50))} / {number(results.job(name, half_p99))}",
        ]
        for name in results.jobs
    ]
    return table(
        [f"a status change, {UNANSWERED} at a time", "µs of CPU", f"{EMBEDDED} ÷ it", "changes/s", "Redis, µs",
         "call to both packets at half of that, p50 / p99 ms"],
        rows,
    )  # fmt: skip


def cpu_us(job: Job) -> float:
    return job.cpu_us


def half_p50(job: Job) -> float:
    return job.half_p50_ms


def half_p99(job: Job) -> float:
    return job.half_p99_ms


# --- What design.md asks for

Row = tuple[str, str, float, Spread | None, Callable[[float, float], bool]]
"""What, to reach as it is said and as a number, what was measured, and when that will do."""


def _at_most(measured: float, bound: float) -> bool:
    return measured <= bound


def _at_least(measured: float, bound: float) -> bool:
    return measured >= bound


def _design(results: Results) -> str:
    rows = [*_fan_out_rows(results), *_job_rows(results), *_other_rows(results)]
    return table(
        ["what", "to reach", "measured", "met"],
        [
            [what, said, ranged(found), ("yes" if will_do(found.median, bound) else "no") if found else "not measured"]
            for what, said, bound, found, will_do in rows
        ],
    )


_SHARES = {
    "node ws + ioredis": 0.7,
    "nchan in memory": 0.5,
    "socket.io + Redis adapter": 0.25,
    "starlette with queues": 0.45,
    "Django Channels": 0.05,
}


def _fan_out_rows(results: Results) -> Iterable[Row]:
    def rows(sockets: int) -> Iterable[Row]:
        at = f"{sockets:,} sockets"
        for name, bound in _SHARES.items():
            found = results.ratio(name, sockets, saturated_us)
            yield f"CPU for each packet, saturated, against {name}, {at}", f"{bound} or less", bound, found, _at_most
        found = results.floor_ratio(sockets)
        yield f"against the bare C loop of `send`, {at}", "2.5 times or less", 2.5, found, _at_most
        wanted: dict[str, tuple[str, float, Value]] = {
            "memory for each idle connection": ("4 KB or less", 4, lambda found: found.kb_each),
            "connect, authorize, subscribe": ("200 µs of CPU or less", 200, lambda found: found.connect_us),
        }
        for what, (said, bound, value) in wanted.items():
            yield f"{what}, {at}", said, bound, results.spread(GATEWAY, sockets, value), _at_most

    for sockets in results.floors:
        yield from rows(sockets)
    yield "10,000 idle sockets, 25 s keepalive", "15 ms/s or less", 15, Spread.of(results.idle_ms), _at_most


def _job_rows(results: Results) -> Iterable[Row]:
    for name, how, bound in (
        (EMBEDDED, "over HTTP", 5_000),
        (f"{EMBEDDED}, over the socket", "over WebSocket", 10_000),
    ):
        per_core = results.job(name, lambda job: 1e6 / job.cpu_us)
        what = f"SQLite, status changes {how}, both packets out, for each core of CPU that the server takes"
        yield what, f"{bound:,}/s", bound, per_core, _at_least
        yield f"call to both packets {how}, at half load, p50", "3 ms", 3, results.job(name, half_p50), _at_most
        yield f"call to both packets {how}, at half load, p99", "20 ms", 20, results.job(name, half_p99), _at_most


def _other_rows(results: Results) -> Iterable[Row]:
    yield "poll answered 304, authorized", "45 µs of CPU or less", 45, Spread.of(results.poll_us), _at_most
    yield "start-up, embedded", "1.5 s or less", 1.5, Spread.of(results.starts_s), _at_most

"""The same work on peers, beside the gateway, in one run: fan-out over sockets, and the whole job of a status change.

Every round measures each server alone, one after the other, with the gateway first and again in the middle. Fan-out:
one message of 600 bytes to one user at a time, through Redis where the peer listens to it. The load (`load.c`) opens
the sockets, publishes what was made before and counts every delivery. CPU is what the kernel's scheduler counted for
all threads of all processes of a server, its proxies and backends included (/proc/PID/task/*/schedstat), Redis in a
column of its own; memory is what PSS grew by from before the first connection until all had settled. Figures are
medians of the rounds; ratios are the medians of each round's, the gateway's figure being the mean of its two. Compare
ratios of one run, never figures of two. The gateway runs as its users run it: one process of `gateway serve`, with
authorization, keepalive, metrics, SQLite, the sweep and the wakeups; only the rate limits are off. A dash stands where
a server could not keep the pace, or was not measured.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import whole_job
from bench_calls import Calls, Server, World, drive
from fan_out import gateway_as_peer, idle_ms, measure
from load import Load, RedisServer
from peer_results import GATEWAY, Results
from peer_servers import PEERS, Kit, Missing, Start
from peer_tables import report
from running import floor_us
from seeding import Couple, seed

STARTS = 5
LEAST_COUPLES = 1_000
"""With fewer the two changes of one video would meet, and the packets of both could be one."""
FAILURES = (Missing, RuntimeError, SystemExit)
"""How a server fails (`bench_calls.py` ends the program): the others go on."""
ROOT = Path(__file__).resolve().parents[2]


class Bench:
    """The rounds, and what they found."""

    def __init__(self, kit: Kit, arguments: argparse.Namespace) -> None:
        self._kit = kit
        self._arguments = arguments
        self.results = Results()
        chosen = arguments.only or PEERS
        self._peers = {name: PEERS[name] for name in PEERS if name in chosen}

    def fan_out(self, sockets: int) -> None:
        """One round over so many sockets."""
        names = list(self._peers)
        middle = len(names) // 2
        floor = floor_us(self._kit.folder, sockets, self._arguments.packets)
        self.results.floors.setdefault(sockets, []).append(floor)
        self._one(GATEWAY, gateway_as_peer, sockets)
        for name in names[:middle]:
            self._one(name, self._peers[name], sockets)
        self._one(GATEWAY, gateway_as_peer, sockets, idle=sockets >= self._arguments.idle_from)
        for name in names[middle:]:
            self._one(name, self._peers[name], sockets)

    def _one(self, name: str, start: Start, sockets: int, *, idle: bool = False) -> None:
        began, found = time.monotonic(), None
        try:
            with RedisServer() as redis, start(self._kit, redis) as peer, Load(self._kit.folder) as load:
                found = measure(peer, load, redis, sockets=sockets, packets=self._arguments.packets)
                if idle:
                    self.results.idle_ms.append(idle_ms(peer, load, self._arguments.idle))
            said = f"{found.saturated.cpu_us:.1f} µs a packet, {found.kb_each:.1f} KB each"
            self._say(f"{name}, {sockets:,} sockets: {said} ({time.monotonic() - began:.0f} s)")
        except FAILURES as error:
            self._failed(name, error)
        self.results.add_fan_out(name, sockets, found)

    def whole_job(self, seeded: Path, couples: list[Couple]) -> None:
        """One round of all ways."""
        for way in whole_job.ways():
            began, found = time.monotonic(), None
            try:
                found = whole_job.measure(way, self._kit, seeded, couples)
                self._say(f"{way.name}: {found.cpu_us:.0f} µs a change ({time.monotonic() - began:.0f} s)")
            except FAILURES as error:
                self._failed(way.name, error)
            self.results.jobs.setdefault(way.name, []).append(found)

    def calls(self) -> None:
        """What a poll costs that is answered 304, and how long a start takes, in a fresh folder."""
        for _ in range(STARTS):
            with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
                server = Server(Path(name))
                server.stop()
                self.results.starts_s.append(server.start_s)
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
            world = World(Path(name))
            asyncio.run(world.seed(200))
            server = Server(Path(name))
            try:
                server.wait_until_idle()
                calls = Calls(world, server, self._arguments.calls)
                for _ in range(self._arguments.rounds + 1):
                    self.results.poll_us.append(drive(server, calls.poll_304(), 32, b"304").cpu_us)
            finally:
                server.stop()
        del self.results.poll_us[0]  # the first tokens were verified in it

    def _failed(self, name: str, error: BaseException) -> None:
        self.results.failures[name] = str(error)
        self._say(f"{name}: {error}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def run(bench: Bench, arguments: argparse.Namespace, began: float) -> None:
    """All rounds; what was found is written after each."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        seeded = Path(name) / "seeded"
        seeded.mkdir()
        couples = asyncio.run(seed(seeded, arguments.couples, videos=whole_job.VIDEOS)) if arguments.couples else []
        bench.calls()
        for number in range(arguments.rounds):
            for sockets in arguments.sockets:
                bench.fan_out(sockets)
            if couples:
                bench.whole_job(seeded, couples)
            written(bench.results, arguments, rounds=number + 1, began=began)
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr, flush=True)


def written(results: Results, arguments: argparse.Namespace, *, rounds: int, began: float) -> str:
    """The tables, which are in the file, too, if there is to be one."""
    text = report(results, __doc__ or "", rounds=rounds, minutes=(time.monotonic() - began) / 60)
    if arguments.out:
        arguments.out.write_text(text)
        arguments.out.with_suffix(".json").write_bytes(results.as_json())
    return text


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sockets", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--packets", type=int, default=200_000, help="published where a server is saturated, at most")
    parser.add_argument(
        "--couples", type=int, default=2_500, help="senders and recipients of the whole job; 0: without"
    )
    parser.add_argument("--calls", type=int, default=8_000, help="polls in a round")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idling")
    parser.add_argument("--idle-from", type=int, default=10_000, help="how many sockets idle at least")
    parser.add_argument("--quick", action="store_true", help="one round over 1,000 sockets")
    parser.add_argument("--keep", type=Path, default=ROOT / ".peers", help="a folder for what is built and installed")
    parser.add_argument("--out", type=Path, help="the tables' file, Markdown; the figures go beside it as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.sockets = 1, [1_000]
        arguments.couples = min(arguments.couples, LEAST_COUPLES)
    if 0 < arguments.couples < LEAST_COUPLES:
        parser.error(f"--couples: {LEAST_COUPLES} or more, or 0")
    return arguments


def main() -> None:
    arguments = parsed()
    kit = Kit(arguments.keep)
    kit.install()
    bench = Bench(kit, arguments)
    began = time.monotonic()
    run(bench, arguments, began)
    print(written(bench.results, arguments, rounds=arguments.rounds, began=began))


if __name__ == "__main__":
    main()

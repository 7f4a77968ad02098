"""What live delivery costs: CPU for each packet, memory for each idle connection, CPU for each connect, and a status
change in and both packets out; node's `ws` with `ioredis` beside it, in turns.

The gateway runs whole, with authorization, keepalive, metrics, log and worker on, and only the rate limits off; packets
come to it over its bus on Redis, one channel for each client, as they do to the peer. The load (`load.c`) opens the
sockets, publishes, and counts every delivery. CPU is what the kernel's scheduler counted for all threads of all
processes of the server (/proc/PID/task/*/schedstat), Redis and the load apart. Figures are medians of the rounds;
compare ratios of one run. With two processes or more the gateway is `gateway serve --workers N`, on one port.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench_calls import SECRET, Pair, Server, World, request
from load import Answered, Load, NodePeer, RedisServer, compiled, cpu_s, resident_bytes

from gateway.api.auth import issue_token

HERE = Path(__file__).resolve().parent
PEERS_PREFIX = "user:"
PREFIX = "gateway:0:c:"
"""What the channels of clients begin with: `gateway/bus/redis.py`."""

PACKET_BYTES = 600
Measure = Callable[[Load, int, list[Pair], int], Answered]
"""From the load, the port, the pairs and the number of the first socket."""

OUTSTANDING = 256
LEAST_PAIRS = 300
EACH = ", µs of CPU for each packet"
SATURATED = "saturated" + EACH
WINDOW = 64
"""Handshakes under way at a time."""


@dataclass
class Figures:
    """What was measured, by name: the values of all rounds, of the gateway and of the peer."""

    gateway: dict[str, list[float]] = field(default_factory=dict)
    peer: dict[str, list[float]] = field(default_factory=dict)
    floor: dict[str, list[float]] = field(default_factory=dict)
    """What the same messages cost a bare C loop of `send` calls."""


@contextmanager
def gateway(folder: Path, *, processes: int = 1, **settings: str) -> Iterator[Server]:
    """The gateway, with these settings."""
    command = ("-m", "gateway", "serve", "--workers", str(processes))
    running = Server(folder, command, {f"GATEWAY_{name}": text for name, text in settings.items() if text})
    try:
        before = -1.0
        while (now := cpu_s(running.pid)) - before > 0.005:  # until the sweep that begins at the start is done
            before = now
            time.sleep(0.3)
        yield running
    finally:
        running.stop()


# --- Delivery


class Delivery:
    """The same rounds against either server."""

    def __init__(self, work: Path, redis: RedisServer, arguments: argparse.Namespace) -> None:
        self._work = work
        self._redis = redis
        self._arguments = arguments

    def round(self, figures: Figures, sockets: int) -> None:
        """The gateway in one process, then the peer, then the gateway in more processes."""
        first, *more = self._arguments.processes
        self._gateway(figures.gateway, sockets, first, f"{sockets:,} sockets")
        with NodePeer(self._work, self._redis.port, prefix=PEERS_PREFIX) as peer, Load(self._work) as load:
            time.sleep(0.5)
            lines = [f"/?c={number}" for number in range(sockets)]
            self._measure(figures.peer, load, peer.pid, peer.port, lines, f"{sockets:,} sockets", framed=False)
        for processes in more:
            self._gateway(figures.gateway, sockets, processes, f"{sockets:,} sockets, {processes} processes")
        figures.floor.setdefault(f"{sockets:,} sockets: {SATURATED}", []).append(self._floor(sockets))

    def _gateway(self, found: dict[str, list[float]], sockets: int, processes: int, named: str) -> None:
        lines = [f"/v1/ws?device_id=phone\tAuthorization: Bearer {_token(str(number))}" for number in range(sockets)]
        bus = f"redis://127.0.0.1:{self._redis.port}"
        with (
            tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder,
            gateway(Path(folder), processes=processes, BUS_URL=bus) as ours,
            Load(self._work) as load,
        ):
            self._measure(found, load, ours.pid, ours.port, lines, named, framed=True)
            if sockets >= self._arguments.idle_from:
                found.setdefault(f"{named}: idle, keepalive, ms of CPU a second", []).append(
                    _idle(load, ours.pid, self._arguments.idle)
                )

    def _floor(self, sockets: int) -> float:
        program = compiled(self._work, "floor")
        words = [sockets, self._arguments.packets, PACKET_BYTES + 4, OUTSTANDING]
        return float(subprocess.run([program, *map(str, words)], check=True, capture_output=True).stdout)

    def _measure(
        self,
        found: dict[str, list[float]],
        load: Load,
        pid: int,
        port: int,
        lines: list[str],
        named: str,
        *,
        framed: bool,
    ) -> None:
        sockets, prefix = len(lines), PREFIX if framed else PEERS_PREFIX

        def note(name: str, value: float) -> None:
            found.setdefault(f"{named}: {name}", []).append(value)

        memory, cpu = resident_bytes(pid), cpu_s(pid)
        connected = load.connect(port, lines, WINDOW)
        note("connect, µs of CPU", (cpu_s(pid) - cpu) / sockets * 1e6)
        note("connects a second", sockets / connected.seconds)
        load.settle(0.5)
        note("KB for each", (resident_bytes(pid) - memory) / sockets / 1000)
        for name, rate in (("saturated", 0), ("10,000/s", 10_000), ("2,000/s", 2_000)):
            count = rate * 3 or self._arguments.packets
            cpu = cpu_s(pid)
            published = load.publish(self._redis.port, prefix, count=count, framed=framed, rate=rate, size=PACKET_BYTES)
            note(f"{name}{EACH}", (cpu_s(pid) - cpu) / published.delivered * 1e6)
            note(f"{name}, p50 ms", published.p50_us / 1000)
            note(f"{name}, p99 ms", published.p99_us / 1000)
            if published.lost or published.stale:
                raise SystemExit(f"{name}: {published.lost} packets were lost, {published.stale} stale")
            if not rate:
                note("saturated, packets a second", published.delivered / published.seconds)


def _idle(load: Load, pid: int, seconds: float) -> float:
    load.settle(1.0)
    cpu, began = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - cpu) / (time.monotonic() - began) * 1000


def _token(client_id: str) -> str:
    return issue_token(SECRET, client_id, ttl_s=86_400, now=time.time())


# --- Status changes


class Changes:
    """A status change in, durable, and both packets out: senders and recipients hold sockets. On SQLite with the bus of
    one process, on SQLite with the bus on Redis, and with everything on Redis (which syncs nothing here)."""

    def __init__(self, work: Path, redis: RedisServer, arguments: argparse.Namespace) -> None:
        self._work = work
        self._redis = redis
        self._pairs: int = arguments.pairs
        self._processes: list[int] = arguments.processes

    def round(self, figures: Figures) -> None:
        redis = f"redis://127.0.0.1:{self._redis.port}"
        for processes in self._processes:
            if processes == 1:
                self._measure(figures, "SQLite", processes)
            self._measure(figures, "SQLite, bus on Redis", processes, BUS_URL=redis)
            self._measure(figures, "all on Redis", processes, BUS_URL=redis, STATE_URL=redis)

    def _measure(self, figures: Figures, on: str, processes: int, **settings: str) -> None:
        named = on if processes == 1 else f"{on}, {processes} processes"
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
            world = World(Path(folder), settings.get("STATE_URL"))
            asyncio.run(world.seed(self._pairs * len(self._ways())))
            with gateway(Path(folder), processes=processes, **settings) as ours, Load(self._work) as load:
                for part, (name, measure) in enumerate(self._ways()):
                    pairs = world.pairs[part * self._pairs : (part + 1) * self._pairs]
                    self._connect(load, ours.port, pairs)
                    cpu = cpu_s(ours.pid)
                    answered = measure(load, ours.port, pairs, part * 2 * self._pairs)
                    if answered.missing or answered.unanswered:
                        raise SystemExit(f"{named}, {name}: {answered}")
                    changes = 2 * self._pairs
                    for what, value in (
                        ("µs of CPU", (cpu_s(ours.pid) - cpu) / changes * 1e6),
                        ("a second", changes / answered.seconds),
                        ("p99 ms", answered.p99_us / 1000),
                    ):
                        figures.gateway.setdefault(f"status change {name}; {named}: {what}", []).append(value)

    def _ways(self) -> list[tuple[str, Measure]]:
        return [
            ("over the socket, 256 at a time", partial(self._frames, 256)),
            ("over HTTP, 64 at a time", partial(self._requests, 64)),
            ("over HTTP, 8 at a time", partial(self._requests, 8)),
        ]

    def _connect(self, load: Load, port: int, pairs: list[Pair]) -> None:
        """A socket for each: recipients have the even numbers."""
        tokens = [token for pair in pairs for token in (pair.recipient_token, pair.sender_token)]
        load.connect(port, [f"/v1/ws?device_id=phone\tAuthorization: Bearer {token}" for token in tokens], WINDOW)
        load.settle(0.5)

    def _frames(self, window: int, load: Load, _port: int, pairs: list[Pair], first: int) -> Answered:
        texts = [
            (
                first + 2 * number,
                json.dumps({"type": "status", "id": 1, "video_id": pair.ref.video_id, "status": status}),
            )
            for status in ("downloaded", "viewed")
            for number, pair in enumerate(pairs)
        ]
        return load.frames(texts, window=window, packets=2 * len(texts))

    def _requests(self, connections: int, load: Load, port: int, pairs: list[Pair], _first: int) -> Answered:
        requests = [
            request("POST", f"/v1/videos/{pair.ref.video_id}/status", pair.recipient_token, {"status": status})
            for status in ("downloaded", "viewed")
            for pair in pairs
        ]
        return load.requests(port, requests, connections=connections, packets=2 * len(requests))


# --- The table


def report(figures: Figures, arguments: argparse.Namespace) -> None:
    print(__doc__)
    print(f"{arguments.rounds} rounds, {os.cpu_count()} cores, packets of {PACKET_BYTES} bytes\n")
    print("| what | gateway | node ws + ioredis | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, values in figures.gateway.items():
        ours = statistics.median(values)
        if name in figures.peer:
            theirs = statistics.median(figures.peer[name])
            ratio = statistics.median(a / b for a, b in zip(values, figures.peer[name], strict=True))
            print(f"| {name} | {ours:,.1f} | {theirs:,.1f} | {ratio:.2f} |")
        else:
            print(f"| {name} | {ours:,.1f} | | |")
    print("\n| what | gateway | bare C loop of `send` calls | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, floor in figures.floor.items():
        ours, bare = statistics.median(figures.gateway[name]), statistics.median(floor)
        print(f"| {name} | {ours:,.1f} | {bare:,.1f} | {ours / bare:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sockets", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="of the gateway; the peer has one")
    parser.add_argument("--packets", type=int, default=200_000, help="published where the server is saturated")
    parser.add_argument("--pairs", type=int, default=1_500, help="senders and recipients of the status changes")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idling")
    parser.add_argument("--idle-from", type=int, default=10_000, help="how many sockets idle at least")
    parser.add_argument("--keep", type=Path, help="a folder for what is built and installed")
    arguments = parser.parse_args()
    if 0 < arguments.pairs < LEAST_PAIRS:
        parser.error(f"--pairs: {LEAST_PAIRS} or more, or 0: the two changes of one video must not meet")
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        work = arguments.keep or Path(name)
        work.mkdir(exist_ok=True)
        for number in range(arguments.rounds):
            for sockets in arguments.sockets:
                with RedisServer() as redis:
                    Delivery(work, redis, arguments).round(figures, sockets)
            if arguments.pairs:
                with RedisServer() as redis:
                    Changes(work, redis, arguments).round(figures)
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    report(figures, arguments)


if __name__ == "__main__":
    main()

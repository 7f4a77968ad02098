"""What the operator's console costs: CPU of a gateway with thousands of connected clients, with and without a console.

The gateway runs whole, as its users run it (embedded: SQLite, disk, the worker inside; with --redis its bus is over
Redis), with an operator's token, and only the rate limits off. Every client holds a socket (`load.c`); recipients
report statuses over HTTP at a fixed rate, and each change makes one packet for either side. Windows with and without a
console take turns; in between nobody looks for so long that the gateway knows it. CPU is what the kernel's scheduler
counted for all threads of the gateway (/proc/PID/task/*/schedstat) in a window, in percent of a core; the share of the
console is the mean of the differences within each round, with its standard error. On a machine that has other things to
do that error is large: so besides it is counted what the console's own coroutines took in the windows with a console
(`timed_console.py`). The same is measured without load.
"""

import argparse
import asyncio
import http.client
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
from bench_calls import SECRET, VIDEO, Pair, Server, request, store, stores
from load import Load, RedisServer
from open_loop import OpenLoop, Script

from gateway.api.auth import issue_token
from gateway.changes import Changes
from gateway.console.watched import LOOKED_S
from gateway.service import Service, UploadLimits
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId
from storage.disk import DiskObjects

TOKEN = "the-token-of-the-operator"
STATUSES = ("notified", "downloaded", "viewed")
CONNECTIONS = 32
WINDOW = 64
"""Handshakes under way at a time."""
SETTLE_S = 1.5
STEPS = "steps.json"
TIMED = (str(Path(__file__).resolve().parent / "timed_console.py"),)
"""What the gateway is started as."""


class Town:
    """Pairs of clients with videos in transit between them: enough for all changes that are to come."""

    def __init__(self, data: Path, clients: int, changes: int) -> None:
        self._data = data
        self._pairs = clients // 2
        self.videos_per_pair = -(-changes // (self._pairs * len(STATUSES)))
        self._requests: Iterator[bytes] = iter(())

    async def seed(self) -> list[str]:
        """Make them, with the product's own parts; the tokens of all clients."""
        async with stores(self._data) as (changes, objects):
            changes.policy = Policy(videos_per_pair=self.videos_per_pair)
            pairs: list[list[Pair]] = []
            for start in range(0, self._pairs, 64):
                numbers = range(start, min(self._pairs, start + 64))
                pairs += await asyncio.gather(*(self._pair(changes, objects, number) for number in numbers))
        self._requests = self._in_turns(pairs)
        return [one for videos in pairs for one in (videos[0].sender_token, videos[0].recipient_token)]

    async def _pair(self, changes: Changes, objects: DiskObjects, number: int) -> list[Pair]:
        service = Service(changes, objects, UploadLimits())
        sender, recipient = ClientId(f"sender-{number}"), ClientId(f"recipient-{number}")
        tokens, made = (_token(sender), _token(recipient)), list[Pair]()
        for _ in range(self.videos_per_pair):
            announced = await service.announce(sender, recipient, size=len(VIDEO), content_type="video/mp4")
            ref = VideoRef(announced.video_id, sender, recipient)
            await store(objects, ref)
            await service.confirm(ref)
            made.append(Pair(ref, *tokens))
        return made

    def _in_turns(self, pairs: list[list[Pair]]) -> Iterator[bytes]:
        """Every change, so that two of one video are far apart."""
        for video in range(self.videos_per_pair):
            for status in STATUSES:
                for pair in random.sample(pairs, len(pairs)):
                    path = f"/v1/videos/{pair[video].ref.video_id}/status"
                    yield request("POST", path, pair[video].recipient_token, {"status": status})

    def scripts(self, rate: int, seconds: float) -> list[tuple[float, Script]]:
        """The changes of one window, and when each begins."""
        return [(number / rate, _once(next(self._requests))) for number in range(int(rate * seconds))]


def _once(asked: bytes) -> Script:
    yield asked


def _token(client_id: ClientId) -> str:
    return issue_token(SECRET, client_id, ttl_s=86_400, now=time.time())


class Console(threading.Thread):
    """A console that reads whatever it is told, in a thread of its own."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.request("GET", "/console/stream", headers={"Authorization": f"Bearer {TOKEN}"})
        self._answer = self._connection.getresponse()
        self.bytes = self.samples = 0

    def run(self) -> None:
        try:
            for line in self._answer:
                self.bytes += len(line)
                self.samples += line.startswith(b"event: samples")
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # it was closed

    def close(self) -> None:
        assert self._connection.sock is not None
        self._connection.sock.shutdown(2)
        self.join()
        self._connection.close()


@contextmanager
def console(server: Server) -> Iterator[None]:
    """A console, open until the block ends; the gateway has forgotten it then."""
    page = Console(server.port)
    page.start()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        told, kib = page.samples, page.bytes / 1024
        page.close()
        if not told:
            raise SystemExit("the console was told nothing")
        print(f"  a console was told {told} times, {kib:,.0f} KiB in all", flush=True)
        time.sleep(LOOKED_S + SETTLE_S)


def own_s(folder: Path) -> float:
    """Seconds of CPU that the console's own coroutines have had, as of half a second ago."""
    spent: dict[str, int] = orjson.loads((folder / STEPS).read_bytes())
    return sum(spent.values()) / 1e9


def percent(server: Server, seconds: float, work: list[tuple[float, Script]], loop: OpenLoop) -> float:
    """What the gateway takes in a window, in percent of a core."""
    cpu, began = server.cpu_s(), time.monotonic()
    loop.run(work)
    left = began + seconds - time.monotonic()
    if left > 0:
        time.sleep(left)
    return (server.cpu_s() - cpu) / (time.monotonic() - began) * 100


def measured(server: Server, town: Town, folder: Path, arguments: argparse.Namespace) -> None:
    loop = OpenLoop(server.port, CONNECTIONS)
    try:
        for rate in (arguments.rate, 0):
            without, with_one, own = list[float](), list[float](), list[float]()

            def window(found: list[float], rate: int = rate) -> None:
                work = town.scripts(rate, arguments.seconds) if rate else []
                found.append(percent(server, arguments.seconds, work, loop))

            window([])  # to warm up
            for number in range(arguments.rounds):
                if number % 2:  # whatever drifts is not taken for the console's
                    window(without)
                with console(server):
                    before_s, began = own_s(folder), time.monotonic()
                    window(with_one)
                    own.append((own_s(folder) - before_s) / (time.monotonic() - began) * 100)
                if not number % 2:
                    window(without)
                print(f"  {rate} changes a second: {without[-1]:.2f} % without, {with_one[-1]:.2f} % with", flush=True)
            shares = [b - a for a, b in zip(without, with_one, strict=True)]
            error = statistics.stdev(shares) / len(shares) ** 0.5
            print(
                f"{rate} changes a second: {statistics.mean(without):.2f} % of a core without a console, "
                f"{statistics.mean(with_one):.2f} % with one: it takes {statistics.mean(shares):.2f} ± {error:.2f} %, "
                f"median {statistics.median(shares):.2f} %. Its own coroutines took {statistics.mean(own):.2f} % "
                f"(at most {max(own):.2f} %)"
            )
    finally:
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=5_000, help="connected clients")
    parser.add_argument("--rate", type=int, default=200, help="status changes a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="a window")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--redis", action="store_true", help="with the bus over Redis")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, or nothing can be said of the error")
    windows = 2 * arguments.rounds + 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        town = Town(folder, arguments.clients, int(arguments.rate * arguments.seconds * windows))
        tokens = asyncio.run(town.seed())
        settings = {"GATEWAY_OPERATOR_TOKEN": TOKEN, "GATEWAY_VIDEOS_PER_PAIR": str(town.videos_per_pair)}
        settings["BENCH_STEPS"] = str(folder / STEPS)
        if arguments.redis:
            settings["GATEWAY_BUS_URL"] = f"redis://127.0.0.1:{stack.enter_context(RedisServer()).port}"
        server = Server(folder, TIMED, settings)
        stack.callback(server.stop)
        server.wait_until_idle()
        load = stack.enter_context(Load(folder))
        lines = [f"/v1/ws?device_id=phone\tAuthorization: Bearer {one}" for one in tokens]
        connected = load.connect(server.port, lines, WINDOW)
        load.settle(1.0)
        print(f"{connected.connected:,} clients, {os.cpu_count()} cores, windows of {arguments.seconds:g} s")
        measured(server, town, folder, arguments)


if __name__ == "__main__":
    main()

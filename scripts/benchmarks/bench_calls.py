"""What a call costs: CPU of the gateway's process, throughput and latency, one kind of call at a time.

The gateway runs as its users run it (`gateway serve`, embedded: SQLite with synchronous=FULL, disk), in its own
process, with authorization, metrics and the worker on, and only the rate limit off. This process is the load: it keeps
a number of connections busy with requests that were built before, one outstanding each (a closed loop). CPU is what
the kernel's scheduler counted for all threads of the gateway (/proc/PID/task/*/schedstat) between the first and the
last answer, divided by the answers. Rounds are interleaved; the table has the median of each figure.
"""

import argparse
import asyncio
import itertools
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.api.auth import issue_token
from gateway.bus.memory import MemoryBus
from gateway.changes import Changes
from gateway.metrics import Metrics
from gateway.removals import Removals
from gateway.service import Service, UploadLimits
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId
from storage import open_documents
from storage.disk import DiskObjects
from storage.documents import Document
from storage.objects import UploadGrant
from storage.sqlite import SqliteDocuments

ROOT = Path(__file__).resolve().parents[2]
SECRET = "b" * 32
VIDEO = b"v" * 100


@dataclass(frozen=True, slots=True)
class Figures:
    """One kind of call in one round: µs of CPU each, calls a second, latencies in ms."""

    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float


# --- The gateway under load


class Server:
    """A gateway in a process of its own, on the data in a folder. `program`: what Python runs. `settings`: more of the
    environment."""

    def __init__(
        self,
        data: Path,
        program: Sequence[str] = ("-m", "gateway", "serve"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)} | {
            "GATEWAY_DATA_DIR": str(data),
            "GATEWAY_PORT": "0",
            "GATEWAY_RATE_CALLS": "0",
            "GATEWAY_RATE_FRAMES": "0",
            "GATEWAY_JWT_SECRET": SECRET,
            "GATEWAY_LOG_FORMAT": "json",
            **(settings or {}),
        }
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *program], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.port = self._address()
        self.start_s = time.monotonic() - started
        self.pid = self._process.pid
        threading.Thread(target=self._read_on, daemon=True).start()

    def _address(self) -> int:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if b'"message": "serving"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        raise SystemExit("the gateway did not start")

    def _read_on(self) -> None:
        """Take its log, which nobody reads; what is no information is shown."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if b'"level": "info"' not in line:
                sys.stderr.buffer.write(line)

    def cpu_s(self) -> float:
        """Seconds of CPU that all its threads have had."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def wait_until_idle(self) -> None:
        """Let the sweep that begins at the start come to its end: it would count as the calls' CPU."""
        before = -1.0
        while (now := self.cpu_s()) - before > 0.005:
            before = now
            time.sleep(0.3)

    def resident_mib(self) -> float:
        """Resident memory."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)


class Connection:
    """One connection of the load: a request out, its answer in."""

    __slots__ = ("_got", "_need", "sent_at", "socket", "status")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.status = b""
        self._got = bytearray()
        self._need = 0

    def send(self, request: bytes) -> None:
        self._got.clear()
        self._need = 0
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Read what is there; whether the answer is whole."""
        received = self.socket.recv(65536)
        if not received:
            raise SystemExit("the gateway has closed a connection")
        self._got += received
        if not self._need:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self._got[:end]).lower()
            self.status = head[9:12]
            found = head.find(b"content-length: ")
            length = int(head[found + 16 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
            self._need = end + 4 + length
        return len(self._got) >= self._need

    @property
    def body(self) -> bytes:
        """The body of the answer, once that is whole."""
        return bytes(self._got).partition(b"\r\n\r\n")[2]


def drive(server: Server, requests: Iterator[bytes], connections: int, expected: bytes) -> Figures:
    """Send all requests, `connections` at a time."""
    selector = selectors.DefaultSelector()
    latencies: list[float] = []
    open_connections = [Connection(server.port) for _ in range(connections)]
    cpu, started = server.cpu_s(), time.perf_counter()
    for connection, request in zip(open_connections, requests, strict=False):
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(request)
    while selector.get_map():
        # It never sleeps: else each answer would first have to wake it, at the gateway's cost (30 µs and more).
        for key, _ in selector.select(0):
            connection = key.data
            if not connection.answered():
                continue
            latencies.append(time.perf_counter() - connection.sent_at)
            if connection.status != expected:
                raise SystemExit(f"answered {connection.status!r}, not {expected!r}: {connection.body!r}")
            following = next(requests, None)
            if following is None:
                selector.unregister(connection.socket)
            else:
                connection.send(following)
    elapsed, cpu = time.perf_counter() - started, server.cpu_s() - cpu
    for connection in open_connections:
        connection.socket.close()
    latencies.sort()
    count = len(latencies)
    return Figures(
        cpu / count * 1e6,
        count / elapsed,
        latencies[count // 2] * 1e3,
        latencies[min(count - 1, count * 99 // 100)] * 1e3,
    )


# --- Requests


def request(method: str, path: str, token: str, body: object = None, *, headers: str = "") -> bytes:
    data = b"" if body is None else orjson.dumps(body)
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n{headers}{length}\r\n"
    return head.encode() + data


@dataclass(frozen=True, slots=True)
class Pair:
    """A sender and a recipient with one video in transit."""

    ref: VideoRef
    sender_token: str
    recipient_token: str


@asynccontextmanager
async def stores(data: Path, state_url: str | None = None) -> AsyncIterator[tuple[Changes, DiskObjects]]:
    """The product's own parts, on the data in a folder; the documents elsewhere, where `state_url` says so."""
    objects = DiskObjects(data / "objects")
    metrics = Metrics()
    async with open_documents(state_url or f"sqlite:///{data}/state.db") as documents:
        yield (
            Changes(
                documents=documents,
                bus=MemoryBus(),
                removals=Removals(objects, metrics),
                policy=Policy(),
                metrics=metrics,
            ),
            objects,
        )
    await objects.close()


class World:
    """Clients with videos in transit, made with the product's own parts before the gateway starts."""

    def __init__(self, data: Path, state_url: str | None = None) -> None:
        self._data = data
        self._state_url = state_url
        self.fresh: Iterator[Pair] = iter(())

    async def seed(self, pairs: int) -> None:
        """`pairs` senders with one uploaded video each, to as many recipients."""
        made: list[Pair] = []
        async with stores(self._data, self._state_url) as (changes, objects):
            service = Service(changes, objects, UploadLimits())
            for start in range(0, pairs, 64):
                made += await asyncio.gather(
                    *(self._pair(service, objects, n) for n in range(start, min(pairs, start + 64)))
                )
        self.fresh = iter(made)
        self.pairs = made

    async def _pair(self, service: Service, objects: DiskObjects, number: int) -> Pair:
        sender, recipient = ClientId(f"sender-{number}"), ClientId(f"recipient-{number}")
        announced = await service.announce(sender, recipient, size=len(VIDEO), content_type="video/mp4")
        ref = VideoRef(announced.video_id, sender, recipient)

        await store(objects, ref)
        await service.confirm(ref)
        return Pair(ref, _token(sender), _token(recipient))


async def store(objects: DiskObjects, ref: VideoRef) -> None:
    """Put the bytes of a video where they belong, past the gateway."""
    await objects.receive(UploadGrant(ref.object_key, len(VIDEO), "video/mp4", None), _bytes())


async def _bytes() -> AsyncIterator[bytes]:
    yield VIDEO


def _token(client_id: str) -> str:
    return issue_token(SECRET, ClientId(client_id), ttl_s=86_400, now=time.time())


class Calls:
    """The kinds of calls that are measured: a name, the requests of one round, and the status of their answers."""

    def __init__(self, world: World, server: Server, count: int) -> None:
        self._world = world
        self._server = server
        self._count = count

    def kinds(self) -> list[tuple[str, Callable[[], Iterator[bytes]], bytes]]:
        return [
            ("poll, 304", self.poll_304, b"304"),
            ("poll, 200", self.poll_200, b"200"),
            ("announce", self.announce, b"201"),
            ("status change", self.status, b"200"),
            ("status repeated", self.repeated, b"200"),
            ("sync, one status", self.sync, b"200"),
        ]

    def poll_304(self) -> Iterator[bytes]:
        pairs = self._world.pairs[:200]
        known = [
            request("GET", "/v1/poll", p.recipient_token, headers='If-None-Match: "9999999999999"\r\n') for p in pairs
        ]
        return itertools.islice(itertools.cycle(known), self._count)

    def poll_200(self) -> Iterator[bytes]:
        return itertools.islice(
            itertools.cycle([request("GET", "/v1/poll", p.recipient_token) for p in self._world.pairs[:200]]),
            self._count,
        )

    def announce(self) -> Iterator[bytes]:
        body = {"recipient_id": "recipient-0", "size": 1000, "content_type": "video/mp4"}
        requests = [request("POST", "/v1/videos", p.sender_token, body) for p in self._world.pairs[1:201]]
        return itertools.islice(itertools.cycle(requests), self._count // 2)

    def _fresh(self) -> list[Pair]:
        """Pairs whose video nobody has touched; their recipients have polled, so that their tokens are known."""
        pairs = list(itertools.islice(self._world.fresh, self._count // 8))
        drive(self._server, iter([request("GET", "/v1/poll", p.recipient_token) for p in pairs]), 32, b"200")
        return pairs

    def status(self) -> Iterator[bytes]:
        """Downloaded, then viewed: every call changes both documents, and the last deletes the object."""
        pairs = self._fresh()
        for status in ("downloaded", "viewed"):
            for pair in pairs:
                yield request(
                    "POST", f"/v1/videos/{pair.ref.video_id}/status", pair.recipient_token, {"status": status}
                )

    def repeated(self) -> Iterator[bytes]:
        requests = [
            request("POST", f"/v1/videos/{p.ref.video_id}/status", p.recipient_token, {"status": "notified"})
            for p in self._world.pairs[:200]
        ]
        return itertools.islice(itertools.cycle(requests), self._count // 2)

    def sync(self) -> Iterator[bytes]:
        pairs = self._fresh()
        for status in ("downloaded", "viewed"):
            for p in pairs:
                body = {
                    "statuses": [{"video_id": p.ref.video_id, "status": status}],
                    "device_id": "phone",
                    "version": 1,
                }
                yield request("POST", "/v1/sync", p.recipient_token, body)


# --- Commits


async def commits(folder: Path, committers: int, count: int) -> tuple[float, float]:
    """Durable commits a second and µs of this process's CPU each: documents of 600 bytes, one to a commit."""
    documents = SqliteDocuments(folder / "commits.db")
    body = b"x" * 600

    async def committer(number: int) -> None:
        key = f"client:{number}"
        [document] = await documents.load([key])
        for _ in range(count // committers):
            [document] = await documents.commit([Document(key, document.version, body)])

    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(committer(number) for number in range(committers)))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    await documents.close()
    return count / elapsed, cpu / count * 1e6


# --- The table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=8000, help="calls of the cheapest kind in a round")
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    figures: dict[str, list[Figures]] = {}
    found: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        data = Path(name)
        world = World(data)
        asyncio.run(world.seed(arguments.rounds * (arguments.calls // 8) * 2 + 400))
        server = Server(data)
        try:
            server.wait_until_idle()
            calls = Calls(world, server, arguments.calls)
            for _ in range(arguments.rounds):
                for kind, requests, expected in calls.kinds():
                    wanted = iter(list(requests()))
                    figures.setdefault(kind, []).append(drive(server, wanted, arguments.connections, expected))
            resident = server.resident_mib()
        finally:
            server.stop()
        for number in range(arguments.rounds):
            folder = data / f"commits-{number}"
            folder.mkdir()
            found.append(asyncio.run(commits(folder, 64, 20_000)))
    report(arguments, figures, found, server.start_s, resident)


def report(
    arguments: argparse.Namespace,
    figures: dict[str, list[Figures]],
    found: list[tuple[float, float]],
    start_s: float,
    resident: float,
) -> None:
    print(__doc__)
    print(f"{arguments.rounds} rounds, {arguments.connections} connections, {os.cpu_count()} cores\n")
    print("| call | CPU µs | calls/s | p50 ms | p99 ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, rounds in figures.items():
        cpu, per_s, p50, p99 = (
            statistics.median(getattr(one, name) for one in rounds) for name in ("cpu_us", "per_s", "p50_ms", "p99_ms")
        )
        print(f"| {kind} | {cpu:.0f} | {per_s:,.0f} | {p50:.1f} | {p99:.1f} |")
    per_s, cpu = (statistics.median(values) for values in zip(*found, strict=True))
    print(f"\nDurable commits, 64 at a time, no HTTP: {per_s:,.0f} a second, {cpu:.0f} µs of CPU each.")
    print(f"Start to first connection: {start_s:.2f} s. Resident at the end: {resident:.0f} MiB.")


if __name__ == "__main__":
    main()

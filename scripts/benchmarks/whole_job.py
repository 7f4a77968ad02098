"""The whole job: a status change in, authorized and durable, and both users' packets out, over the sockets they hold.

The gateway does it in one process. The peers only deliver, so each needs a backend in front: the plainest honest ones
(`peers/fastapi_sqlite.py`, `peers/express_redis.js`), which keep what a recipient says and publish both packets. All
have the same videos: three in transit between each sender and recipient, packets of some 600 bytes.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jwt
from bench_calls import request
from load import Answered, Load, Protocol, RedisServer, cpu_s, free_port
from peer_servers import HERE, SECRET, Kit, Start, socketio, started, ws
from redis.asyncio import Redis
from running import WINDOW, gateway, socket_line, token
from seeding import Couple, copy_documents, lay_out

VIDEOS = 3
"""In transit between a sender and a recipient; the first is reported on."""
STATUSES = ("downloaded", "viewed")
UNANSWERED = 64
EMBEDDED = "gateway, embedded"
"""The way of one box: SQLite, and a bus of one process."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that does the whole job. `socket_port` and `line(client_id)` open a socket, `call_port` takes calls."""

    pids: Sequence[int]
    call_port: int
    socket_port: int
    line: Callable[[str], str]
    token: Callable[[str], str]
    protocol: Protocol = "raw"


@dataclass(frozen=True, slots=True)
class Job:
    """What a status change costs: µs of CPU of everything but Redis, and of Redis, with `UNANSWERED` under way; changes
    a second there; and at half of those, ms from the call to both packets."""

    cpu_us: float
    redis_us: float
    per_s: float
    half_p50_ms: float
    half_p99_ms: float
    half_cpu_us: float


# --- Ways to do it


@dataclass(frozen=True, slots=True)
class Way:
    """`frames`: status changes come over the sockets, not over HTTP. `appendfsync`: how Redis stores; it stores nothing
    where nothing is kept in it."""

    name: str
    start: Callable[[Kit, RedisServer, Path, list[Couple]], AbstractContextManager[Running]]
    appendfsync: str = ""
    frames: bool = False


@contextmanager
def _gateway(
    _kit: Kit, redis: RedisServer, seeded: Path, _couples: list[Couple], *, bus: bool, state: bool
) -> Iterator[Running]:
    settings = {"VIDEOS_PER_PAIR": str(VIDEOS)}
    if bus:
        settings["BUS_URL"] = redis.url
    if state:
        settings["STATE_URL"] = redis.url
    with TemporaryDirectory(prefix="gateway-bench-", dir=seeded.parent) as name:
        lay_out(seeded, Path(name))
        if state:
            asyncio.run(copy_documents(seeded, redis.url))
        with gateway(Path(name), settings) as running:
            tokens = cache(token)  # an app uses one for its socket and its calls, as long as it lasts

            def line(client_id: str) -> str:
                return socket_line(client_id, tokens(client_id))

            yield Running([running.pid], running.port, running.port, line, tokens)


@contextmanager
def _fastapi_and_sqlite(kit: Kit, redis: RedisServer, _seeded: Path, couples: list[Couple]) -> Iterator[Running]:
    port = free_port()
    with TemporaryDirectory(prefix="gateway-bench-") as name, ExitStack() as stack:
        database = Path(name) / "videos.db"
        _make_database(database, couples)
        words = ("-m", "uvicorn", "fastapi_sqlite:app", "--app-dir", str(HERE), "--port", str(port))
        environ = {"DATABASE": str(database), "REDIS_URL": redis.url, "SECRET": SECRET}
        command = kit.python(*words, "--log-level", "warning", "--timeout-keep-alive", "75")
        backend = stack.enter_context(started(command, port, environ))
        peer = stack.enter_context(ws(kit, redis))
        yield Running([backend, *peer.pids], port, peer.port, _line(peer.line), _token)


def _make_database(path: Path, couples: list[Couple]) -> None:
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE videos (video_id TEXT PRIMARY KEY, sender_id TEXT, recipient_id TEXT, status TEXT,"
            " size INTEGER, content_type TEXT, at INTEGER) WITHOUT ROWID"
        )
        database.execute("CREATE INDEX by_sender ON videos (sender_id)")
        database.execute("CREATE INDEX by_recipient ON videos (recipient_id)")
        database.execute("CREATE TABLE versions (version INTEGER)")
        database.execute("INSERT INTO versions VALUES (1)")
        names = ("video_id", "sender_id", "recipient_id", "status", "size", "content_type", "at")
        rows = ([video[name] for name in names] for video in _videos(couples))
        database.executemany("INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    database.close()


@contextmanager
def _express_and_redis(
    kit: Kit, redis: RedisServer, _seeded: Path, couples: list[Couple], *, peer: Start, kind: str
) -> Iterator[Running]:
    port = free_port()
    asyncio.run(_fill_redis(redis.url, couples))
    with ExitStack() as stack:
        command = kit.node("express_redis.js", port, redis.port, SECRET, kind)
        backend = stack.enter_context(started(command, port, kit.modules()))
        behind = stack.enter_context(peer(kit, redis))
        yield Running([backend, *behind.pids], port, behind.port, _line(behind.line), _token, behind.protocol)


async def _fill_redis(url: str, couples: list[Couple]) -> None:
    async with Redis.from_url(url) as redis, redis.pipeline(transaction=False) as pipeline:
        for video in _videos(couples):
            text = json.dumps(video)
            pipeline.hset(f"in:{video['recipient_id']}", str(video["video_id"]), text)
            pipeline.hset(f"out:{video['sender_id']}", str(video["video_id"]), text)
        await pipeline.execute()


def _videos(couples: list[Couple]) -> Iterator[dict[str, str | int]]:
    for couple in couples:
        for video_id in couple.video_ids:
            yield {
                "video_id": video_id,
                "sender_id": couple.sender,
                "recipient_id": couple.recipient,
                "status": "uploaded",
                "size": 4_194_304,
                "content_type": "video/mp4",
                "at": 1_760_000_000_000,
            }


def _token(client_id: str) -> str:
    return jwt.encode({"sub": client_id, "exp": 4_000_000_000}, SECRET, "HS256")


def _line(by_number: Callable[[int], str]) -> Callable[[str], str]:
    """Peers put the user's id where their benchmark has a number."""
    return lambda client_id: by_number(0).removesuffix("c=0") + f"c={client_id}"


def ways() -> list[Way]:
    embedded = partial(_gateway, bus=False, state=False)
    bus = partial(_gateway, bus=True, state=False)
    on_redis = partial(_gateway, bus=True, state=True)
    express = partial(_express_and_redis, peer=ws, kind="ws")
    return [
        Way(EMBEDDED, embedded),
        Way("FastAPI + SQLite, node ws", _fastapi_and_sqlite),
        Way("gateway, bus on Redis", bus),
        Way("express + Redis (fsync always), node ws", express, "always"),
        Way("gateway, all on Redis (fsync always)", on_redis, "always"),
        Way("express + Redis (fsync every second), node ws", express, "everysec"),
        Way("gateway, all on Redis (fsync every second)", on_redis, "everysec"),
        Way(
            "express + Redis (fsync always), socket.io",
            partial(_express_and_redis, peer=socketio, kind="socketio"),
            "always",
        ),
        Way(f"{EMBEDDED}, over the socket", embedded, frames=True),
        Way("gateway, bus on Redis, over the socket", bus, frames=True),
        Way("gateway, all on Redis (fsync always), over the socket", on_redis, "always", frames=True),
    ]


# --- Measuring


def measure(way: Way, kit: Kit, seeded: Path, couples: list[Couple]) -> Job:
    """A tenth of the couples goes ahead, uncounted; half of the others where it is saturated, half at half of that."""
    warm = len(couples) // 10
    half = warm + (len(couples) - warm) // 2
    with (
        RedisServer(appendfsync=way.appendfsync) as redis,
        way.start(kit, redis, seeded, couples) as running,
        Load(kit.folder) as load,
    ):
        _connect(load, running, couples[:half])
        _change(load, way, running, couples[:warm], 0, statuses=STATUSES[:1])
        cpu, theirs = _cpu_s(running), cpu_s(redis.pid)
        answered = _change(load, way, running, couples[warm:half], 2 * warm)
        each = 1e6 / answered.answered
        cpu_us, redis_us = (_cpu_s(running) - cpu) * each, (cpu_s(redis.pid) - theirs) * each
        per_s = answered.answered / answered.seconds
        _connect(load, running, couples[half:])
        cpu = _cpu_s(running)
        paced = _change(load, way, running, couples[half:], 2 * half, rate=int(per_s / 2))
        return Job(
            cpu_us,
            redis_us,
            per_s,
            paced.packets_p50_us / 1000,
            paced.packets_p99_us / 1000,
            (_cpu_s(running) - cpu) / paced.answered * 1e6,
        )


def _cpu_s(running: Running) -> float:
    return sum(map(cpu_s, running.pids))


def _connect(load: Load, running: Running, couples: list[Couple]) -> None:
    """A socket for each: recipients have the even numbers."""
    lines = [running.line(each) for couple in couples for each in (couple.recipient, couple.sender)]
    load.connect(running.socket_port, lines, WINDOW, protocol=running.protocol)
    load.settle(0.5)


def _change(
    load: Load,
    way: Way,
    running: Running,
    couples: list[Couple],
    first: int,
    *,
    rate: int = 0,
    statuses: Sequence[str] = STATUSES,
) -> Answered:
    """`first`: the number of the first couple's first connection."""
    packets = 2 * len(statuses) * len(couples)
    told = [(first + 2 * n, couple, status) for status in statuses for n, couple in enumerate(couples)]
    if way.frames:
        texts = [(number, _frame(couple, status)) for number, couple, status in told]
        answered = load.frames(texts, window=UNANSWERED, packets=packets, rate=rate)
    else:
        tokens = {couple.recipient: running.token(couple.recipient) for couple in couples}
        calls = [(number, _call(couple, status, tokens[couple.recipient])) for number, couple, status in told]
        answered = load.requests(running.call_port, calls, connections=UNANSWERED, packets=packets, rate=rate)
    if answered.missing or answered.unanswered:
        raise RuntimeError(f"{way.name}: {answered.missing} packets and {answered.unanswered} answers are missing")
    return answered


def _frame(couple: Couple, status: str) -> str:
    return json.dumps({"type": "status", "id": 1, "video_id": couple.video_ids[0], "status": status})


def _call(couple: Couple, status: str, bearer: str) -> bytes:
    content = "Content-Type: application/json\r\n"
    target = f"/v1/videos/{couple.video_ids[0]}/status"
    return request("POST", target, bearer, {"status": status}, headers=content)

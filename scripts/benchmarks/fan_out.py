"""What one server's fan-out costs: sockets are opened, stay idle, and get one packet each, over Redis where it can."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import letters
from load import Load, Mail, Published, RedisServer, cpu_s, proportional_bytes
from peer_servers import Kit, Peer
from running import OUTSTANDING, WINDOW, gateway, socket_line

PACES = (10_000, 2_000)
"""Packets a second, where a server is not saturated."""
SECONDS = 3.0
"""How long one measurement lasts, about: slow servers get fewer packets."""
WARMING = 2_000
"""Packets before those that count. They tell how many that are to be, and V8 compiles what it runs often."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What delivering costs: µs of CPU of the server and of Redis for each packet, packets a second, latency in ms from
    publishing to the client."""

    cpu_us: float
    redis_us: float
    per_s: float
    p50_ms: float
    p99_ms: float
    lost: int


@dataclass(frozen=True, slots=True)
class FanOut:
    """One server in one round. `connect_us`: of CPU for each connection, all that follows from it included; `kb_each`:
    more of PSS, in 1,000 bytes; `paced`: by packets a second, without those that it cannot deliver."""

    connect_us: float
    connects_per_s: float
    kb_each: float
    saturated: Delivered
    paced: dict[int, Delivered]


@contextmanager
def gateway_as_peer(_kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    """The gateway with its bus on Redis, everything else as it comes: SQLite, authorization, keepalive, metrics."""
    with (
        TemporaryDirectory(prefix="gateway-bench-") as folder,
        gateway(Path(folder), {"BUS_URL": redis.url}) as running,
    ):
        yield Peer([running.pid], running.port, lambda number: socket_line(str(number)), letters.gateway, redis.port)


def measure(peer: Peer, load: Load, redis: RedisServer, *, sockets: int, packets: int) -> FanOut:
    """At most `packets` packets where it is saturated."""
    mail = peer.mail(sockets)
    memory, cpu = sum(map(proportional_bytes, peer.pids)), _cpu_s(peer)
    connected = load.connect(peer.port, map(peer.line, range(sockets)), WINDOW, protocol=peer.protocol)
    load.settle(0.5)  # most peers subscribe when they have shaken hands
    connect_us = (_cpu_s(peer) - cpu) / sockets * 1e6
    kb_each = (sum(map(proportional_bytes, peer.pids)) - memory) / sockets / 1000
    warm = load.publish(mail, count=WARMING, outstanding=OUTSTANDING)
    speed = warm.delivered / warm.seconds
    count = int(max(WARMING, min(packets, speed * SECONDS)))
    saturated = _deliver(peer, load, mail, redis, count, 0)
    paced = {
        rate: _deliver(peer, load, mail, redis, int(rate * SECONDS), rate)
        for rate in PACES
        if saturated.per_s > 1.1 * rate
    }
    return FanOut(connect_us, sockets / connected.seconds, kb_each, saturated, paced)


def _deliver(peer: Peer, load: Load, mail: Mail, redis: RedisServer, count: int, rate: int) -> Delivered:
    cpu, theirs = _cpu_s(peer), cpu_s(redis.pid)
    published: Published = load.publish(mail, count=count, outstanding=OUTSTANDING, rate=rate)
    each = 1e6 / max(1, published.delivered)
    return Delivered(
        (_cpu_s(peer) - cpu) * each,
        (cpu_s(redis.pid) - theirs) * each,
        published.delivered / published.seconds,
        published.p50_us / 1000,
        published.p99_us / 1000,
        published.lost + published.stale,
    )


def _cpu_s(peer: Peer) -> float:
    return sum(map(cpu_s, peer.pids))


def idle_ms(peer: Peer, load: Load, seconds: float) -> float:
    """ms of CPU that the open sockets cost in a second when nothing is published: what keeps them alive."""
    load.settle(1.0)
    cpu, began = _cpu_s(peer), time.monotonic()
    while time.monotonic() - began < seconds:  # the load answers pings while it waits for a command
        time.sleep(1)
    return (_cpu_s(peer) - cpu) / (time.monotonic() - began) * 1000

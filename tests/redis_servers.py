"""Real Redis servers on free ports, one or a cluster of three: started, killed, frozen, as the test says.

    with redis_server(folder) as server:             server.url; server.kill(); server.start(); server.freeze(); …
    with redis_cluster(folder) as cluster:           cluster.url; cluster.servers; cluster.move_slot(…); …
    async with proxy(server.port) as between:        between.url; between.withhold(…)

Whatever became of them, nothing is left running at the end.
"""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

PATIENCE_S = 20.0


FIRST_PORT = int(os.environ.get("GATEWAY_TEST_PORTS", "20000"))
"""Ports from here on are for servers that have to be told one. They lie below those that the system gives out, so that
nobody is given one before its server has started; tests that run beside these are told to begin elsewhere."""
PORTS = 4000

_ports = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """A port that nobody listens on, and that nobody is given for a while."""
    while True:
        port = FIRST_PORT + next(_ports) % PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_prefixes = itertools.count(1)


def fresh(url: str) -> str:
    """`url` with a prefix that nothing there begins with: as good as an empty server."""
    return f"{url}?prefix=test-{os.getpid()}-{next(_prefixes)}:"


@dataclass
class RedisServer:
    """A redis-server of its own, without persistence unless `options` say so."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--repl-diskless-load", "disabled"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(redis.RedisError):
                self.ask("PING")
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(0.01)

    def ask(self, *command: Any) -> Any:
        """What it answers, as it is, on a connection of its own. Blocks."""
        connection = redis.Connection(port=self.port, protocol=2, socket_timeout=PATIENCE_S)  # type: ignore[no-untyped-call]
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]
            return connection.read_response()
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]

    def kill(self) -> None:
        """SIGKILL it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP it: it takes in what comes, and does nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def clients(self, kind: str) -> list[str]:
        """The ids of its connections of a kind: `normal` or `pubsub`, our own apart."""
        rows = [dict(part.split("=", 1) for part in row.split()) for row in self._listed(kind)]
        return [row["id"] for row in rows if row["cmd"] != "client|list"]

    def _listed(self, kind: str) -> list[str]:
        listed: bytes = self.ask("CLIENT", "LIST", "TYPE", kind)
        return listed.decode().splitlines()

    def calls(self, command: str, *, failed: bool = True) -> int:
        """How often it was asked for `command`; with those that failed, unless told."""
        for row in self.ask("INFO", "commandstats").decode().splitlines():
            name, _, figures = row.partition(":")
            if name == f"cmdstat_{command}":
                told = dict(part.split("=", 1) for part in figures.split(","))
                return int(told["calls"]) - (0 if failed else int(told["failed_calls"]) + int(told["rejected_calls"]))
        return 0

    def errors(self, kind: str) -> int:
        """How often it answered with an error of a kind: MOVED, TRYAGAIN."""
        found = re.search(rf"errorstat_{kind}:count=(\d+)", self.ask("INFO", "errorstats").decode())
        return int(found[1]) if found else 0

    def cut(self, kind: str) -> int:
        """Cut all of its connections of a kind; how many they were."""
        cut = 0
        for client_id in self.clients(kind):
            cut += self.ask("CLIENT", "KILL", "ID", client_id)
        return cut


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server that is up."""
    server = RedisServer(folder, options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class RedisCluster:
    """Three servers that share the slots."""

    servers: list[RedisServer]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def owner(self, key: bytes) -> RedisServer:
        """The server that has `key`, as the others see it now."""
        slot = key_slot(key)
        asked = next(server for server in self.servers if server.process and server.process.poll() is None)
        for first, last, primary, *_ in asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == primary[1])
        raise LookupError(slot)

    def move_slot(self, key: bytes) -> RedisServer:
        """Move the slot of `key`, and all that is in it, to another server, which is returned; as `redis-cli
        --cluster reshard` does."""
        with self.moving_slot(key) as (source, target):
            while keys := source.ask("CLUSTER", "GETKEYSINSLOT", key_slot(key), 100):
                source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return target

    @contextmanager
    def moving_slot(self, key: bytes) -> Iterator[tuple[RedisServer, RedisServer]]:
        """The slot of `key` is on its way from one server to another; at the end it is there. What is in it has to be
        moved meanwhile."""
        slot, source = key_slot(key), self.owner(key)
        target = next(server for server in self.servers if server is not source)
        ids = {server.port: server.ask("CLUSTER", "MYID") for server in (source, target)}
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        yield source, target
        for server in (target, source, *self.servers):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])

    def mend(self) -> None:
        """Start what was killed, thaw what was frozen."""
        dead = [server for server in self.servers if server.process is None or server.process.poll() is not None]
        for server in self.servers:
            server.start() if server in dead else server.thaw()
        if dead:
            wait_for_cluster(self)


@contextmanager
def redis_cluster(folder: Path, *options: str) -> Iterator[RedisCluster]:
    """A cluster that is up: three servers, a third of the slots each, no replicas."""
    servers = []
    try:
        for number in range(3):
            own = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000")
            server = RedisServer(folder / str(number), (*own, *options))
            servers.append(server)
            server.start()
        for number, server in enumerate(servers):
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for one, other in itertools.combinations(servers, 2):  # gossip would take seconds
            one.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.options[3])
        cluster = RedisCluster(servers)
        wait_for_cluster(cluster)
        yield cluster
    finally:
        for server in servers:
            server.kill()


def wait_for_cluster(cluster: RedisCluster) -> None:
    """Return once every server sees the whole cluster."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        infos = [server.ask("CLUSTER", "INFO") for server in cluster.servers]
        if all(b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info for info in infos):
            return
        assert time.monotonic() < deadline_s, infos
        time.sleep(0.02)


class Proxy:
    """Stands between a client and a server, and passes everything on."""

    def __init__(self, port: int, target: int) -> None:
        self.url = f"redis://127.0.0.1:{port}"
        self.connections = 0
        self.withheld = 0
        self._target = target
        self._word = b""
        self._meanwhile: Callable[[], Awaitable[object]] = _nothing
        self._links: set[asyncio.Task[None]] = set()

    def withhold(self, word: bytes, *, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        """Once: when a command with `word` in it was answered, cut the connection instead of passing that on; before
        that, wait for `meanwhile()`."""
        self._word, self._meanwhile = word, meanwhile or _nothing

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's bytes until an end closes it."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            answers = asyncio.create_task(_copy(back, writer))
            while commands := await reader.read(1 << 20):
                if self._word and self._word in commands:
                    answers.cancel()
                    await asyncio.wait([answers])
                    self._word = b""
                    forth.write(commands)
                    assert await back.read(1 << 20)
                    self.withheld += 1
                    await self._meanwhile()
                    break
                forth.write(commands)
            answers.cancel()
            await asyncio.wait([answers])
        finally:
            writer.close()
            forth.close()
            self._links.discard(task)

    async def end(self) -> None:
        for link in self._links:
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 20):
        writer.write(data)


async def _nothing() -> None:
    return


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy to the server at the port `target`."""
    port = free_port()
    between = Proxy(port, target)
    listening = await asyncio.start_server(between.carry, "127.0.0.1", port)
    try:
        yield between
    finally:
        listening.close()
        await between.end()

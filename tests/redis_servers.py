"""Real Redis servers on free ports, one or a cluster of three: started, killed, frozen, as the test says.

    with redis_server(folder) as server:             server.url; server.kill(); server.start(); server.freeze(); …
    with redis_cluster(folder) as cluster:           cluster.url; cluster.servers; await cluster.move_slot(…)

Whatever became of them, nothing is left running at the end.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

PATIENCE_S = 20.0


def free_port() -> int:
    """A port that nobody listens on, now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
        slot, source = key_slot(key), self.owner(key)
        target = next(server for server in self.servers if server is not source)
        ids = {server.port: server.ask("CLUSTER", "MYID") for server in (source, target)}
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *self.servers):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
        return target

    def flush(self) -> None:
        for server in self.servers:
            server.ask("FLUSHALL")


@contextmanager
def redis_cluster(folder: Path) -> Iterator[RedisCluster]:
    """A cluster that is up: three servers, a third of the slots each, no replicas."""
    servers = []
    try:
        for number in range(3):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000"]
            server = RedisServer(folder / str(number), tuple(options))
            servers.append(server)
            server.start()
        for number, server in enumerate(servers):
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, server.options[3])
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

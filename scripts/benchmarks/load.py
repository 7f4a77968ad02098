"""The parts of a live benchmark: the load (`load.c`), Redis, the peer (`peer_ws.js`), and what a process costs.

Everything is on 127.0.0.1. What goes wrong is a RuntimeError with the words of the program that failed.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, TypeVar, cast

import orjson

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Connected:
    """So many WebSockets were opened in so many seconds; info packets that came meanwhile."""

    connected: int
    seconds: float
    packets: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What the WebSockets received since the command before."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Published:
    """Lost are those published and not delivered; stale, those that came after a later one, or twice.

    Latencies are from before PUBLISH to the client; `own_cpu_us` is the load's CPU for each delivery.
    """

    published: int
    delivered: int
    lost: int
    stale: int
    seconds: float
    p50_us: int
    p99_us: int
    own_cpu_us: float


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers, and info packets that came to whatever WebSocket; `missing` are packets, of those that were wanted.

    Latencies are from sending to the answer; `own_cpu_us` is the load's CPU for each answer.
    """

    answered: int
    packets: int
    unanswered: int
    missing: int
    seconds: float
    p50_us: int
    p99_us: int
    own_cpu_us: float


Answer = TypeVar("Answer", Connected, Settled, Published, Answered)


class Failure(TypedDict):
    """What the load says before it ends."""

    error: str


class Load:
    """The load, in a process of its own. `folder` keeps its program, and its files while they are read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen([compiled(folder, "load")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid

    def connect(self, port: int, lines: Iterable[str], window: int = 128) -> Connected:
        """Open one WebSocket for each line: its target, then whole header lines, with tabs between.

        Connections are numbered from 0, through all calls.
        """
        path = self._write(line.encode() + b"\n" for line in lines)
        return self._ask(Connected, "connect", port, path, window)

    def settle(self, seconds: float) -> Settled:
        """Wait until nothing has come for so long. Pings do not count."""
        return self._ask(Settled, "settle", seconds)

    def publish(
        self,
        redis_port: int,
        prefix: str,
        *,
        count: int,
        framed: bool = False,
        outstanding: int = 256,
        rate: int = 0,
        size: int = 600,
    ) -> Published:
        """Publish `count` messages to `prefix` + connection, and wait for them.

        `outstanding` at a time, or `rate` a second if that is not 0. `framed`: with the version as 8 bytes and a zero
        byte before the JSON.
        """
        kind = "framed" if framed else "raw"
        return self._ask(Published, "publish", redis_port, prefix, kind, count, outstanding, rate, size)

    def frames(self, texts: Iterable[tuple[int, str]], *, window: int, packets: int) -> Answered:
        """Send texts on connections, `window` unanswered at a time, and wait for all results and `packets` packets."""
        path = self._write(f"{connection}\t{text}\n".encode() for connection, text in texts)
        return self._ask(Answered, "frames", path, window, packets)

    def requests(self, port: int, requests: Iterable[bytes], *, connections: int, packets: int) -> Answered:
        """Send HTTP requests, one at a time on each connection, and wait for all answers and `packets` packets."""
        path = self._write(b"%d\n%b" % (len(request), request) for request in requests)
        return self._ask(Answered, "requests", port, path, connections, packets)

    def close(self) -> None:
        """End the load, and with it all its connections."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, pieces: Iterable[bytes]) -> Path:
        path = self._folder / f"load-{self.pid}.txt"
        with path.open("wb") as file:
            file.writelines(pieces)
        return path

    def _ask(self, kind: type[Answer], *words: object) -> Answer:
        line = self._exchange(" ".join(map(str, words)))
        if not line:
            raise RuntimeError(f"the load ended without an answer to {words[0]}")
        if line.startswith(b'{"error"'):
            raise RuntimeError(cast("Failure", orjson.loads(line))["error"])
        return kind(**orjson.loads(line))

    def _exchange(self, command: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it failed between commands: its last line says why
        return self._process.stdout.readline()


def compiled(folder: Path, name: str) -> Path:
    """One of the C programs beside this file, in `folder`."""
    source, program = HERE / f"{name}.c", folder / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)])
    return program


class RedisServer:
    """A Redis that stores nothing, while the context lasts."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.mkdtemp(prefix="gateway-redis-")
        self._process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        for _ in range(200):
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)


class NodePeer:
    """The peer in a process of its own; `folder` keeps what npm installs for it."""

    def __init__(self, folder: Path, redis_port: int, *, prefix: str = "user:") -> None:
        modules = _installed(folder)
        self._process = subprocess.Popen(
            ["node", str(HERE / "peer_ws.js"), "0", str(redis_port), prefix],
            env={**os.environ, "NODE_PATH": str(modules), "NODE_ENV": "production"},
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.port = self._listening()

    def _listening(self) -> int:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if words[:1] != [b"listening"]:
            raise RuntimeError("the node peer did not start")
        return int(words[1])

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _installed(folder: Path) -> Path:
    modules = folder / "node_modules"
    if not all((modules / name / "package.json").exists() for name in ("ws", "ioredis")):
        _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "ws@8", "ioredis@5"])
    return modules


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the threads of this process and of its children have had; threads that have ended do not
    count."""
    tasks = [task for each in _family(pid) for task in Path(f"/proc/{each}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of this process and of its children; pages that they share count once for each."""
    return sum(map(_resident, _family(pid)))


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Rss of process {pid}")


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

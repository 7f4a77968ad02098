"""The parts of a live benchmark: the load (`load.c`), Redis, and what processes cost.

Everything is on 127.0.0.1. What goes wrong is a RuntimeError with the words of the program that failed.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypedDict, TypeVar, cast

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

    Latencies are from sending, or from when it was due, to the answer, and until both of a pair have their packet;
    `own_cpu_us` is the load's CPU for each answer.
    """

    answered: int
    packets: int
    unanswered: int
    missing: int
    seconds: float
    p50_us: int
    p99_us: int
    packets_p50_us: int
    packets_p99_us: int
    own_cpu_us: float


Transport = Literal["redis", "http", "zmtp"]


@dataclass(frozen=True, slots=True)
class Mail:
    """What publishes to each connection, in order, and where it is sent (see `publish` in `load.c`).

    `greeting` is what a publisher sends first.
    """

    transport: Transport
    port: int
    letters: Sequence[bytes]
    greeting: bytes = b""


Protocol = Literal["raw", "socketio", "centrifugo"]
"""What is spoken over a WebSocket (see `connect` in `load.c`)."""

Answer = TypeVar("Answer", Connected, Settled, Published, Answered)


class Failure(TypedDict):
    """What the load says before it ends."""

    error: str


class Load:
    """The load, in a process of its own. `folder` keeps its program, and its files while they are read."""

    def __init__(self, folder: Path, *, source: str = "") -> None:
        self._folder = folder
        self._process = subprocess.Popen([compiled(folder, "load")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        self._file = folder / f"load-{self.pid}.txt"
        if source:
            self._answer("from", source)

    def connect(self, port: int, lines: Iterable[str], window: int = 128, *, protocol: Protocol = "raw") -> Connected:
        """Open one WebSocket for each line: its target, then whole header lines, with tabs between.

        Connections are numbered from 0, through all calls.
        """
        path = self._write(line.encode() + b"\n" for line in lines)
        return self._ask(Connected, "connect", port, path, window, protocol)

    def settle(self, seconds: float) -> Settled:
        """Wait until nothing has come for so long. Pings do not count."""
        return self._ask(Settled, "settle", seconds)

    def publish(self, mail: Mail, *, count: int, outstanding: int = 256, rate: int = 0) -> Published:
        """Publish `count` messages, and wait for them. `outstanding` at a time, or `rate` a second if that is not 0."""
        path = self._write(b"%d\n%b" % (len(piece), piece) for piece in (mail.greeting, *mail.letters))
        return self._ask(Published, "publish", mail.transport, mail.port, path, count, outstanding, rate)

    def frames(self, texts: Iterable[tuple[int, str]], *, packets: int, window: int = 64, rate: int = 0) -> Answered:
        """Send texts on connections and wait for all results and `packets` packets. `window` unanswered at a time, or
        `rate` a second if that is not 0."""
        path = self._write(f"{connection}\t{text}\n".encode() for connection, text in texts)
        return self._ask(Answered, "frames", path, window, packets, rate)

    def requests(
        self, port: int, requests: Iterable[tuple[int, bytes]], *, connections: int, packets: int, rate: int = 0
    ) -> Answered:
        """Send HTTP requests, one at a time on each connection, and wait for all answers and `packets` packets.

        Before each request stands the number of a WebSocket that gets a packet for it; its pair gets the other.
        """
        path = self._write(b"%d %d\n%b" % (len(request), number, request) for number, request in requests)
        return self._ask(Answered, "requests", port, path, connections, packets, rate)

    def close(self) -> None:
        """End the load, and with it all its connections."""
        self._process.kill()
        self._process.communicate()
        self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, pieces: Iterable[bytes]) -> Path:
        with self._file.open("wb") as file:
            file.writelines(pieces)
        return self._file

    def _ask(self, kind: type[Answer], *words: object) -> Answer:
        return kind(**orjson.loads(self._answer(*words)))

    def _answer(self, *words: object) -> bytes:
        line = self._exchange(" ".join(map(str, words)))
        if not line:
            raise RuntimeError(f"the load ended without an answer to {words[0]}")
        if line.startswith(b'{"error"'):
            raise RuntimeError(cast("Failure", orjson.loads(line))["error"])
        return line

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
        run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)])
    return program


class RedisServer:
    """A Redis, while the context lasts. It stores nothing, unless `appendfsync` says how it is to: always, everysec."""

    def __init__(self, *, appendfsync: str = "") -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = tempfile.mkdtemp(prefix="gateway-redis-")
        stored = ["--appendonly", "yes", "--appendfsync", appendfsync] if appendfsync else ["--appendonly", "no"]
        self._process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", *stored],
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
        wait_for_port(self.port, self._process, "redis-server")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)


def wait_for_port(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    """Until somebody listens there; a RuntimeError if the process has ended, or after 20 seconds."""
    for _ in range(400):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{name} did not start")


def run(command: list[str]) -> None:
    """Run a program to its end; a RuntimeError with what it said, if that is not 0."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the threads of this process and of its descendants have had; threads that have ended do not
    count."""
    tasks = [task for each in _family(pid) for task in Path(f"/proc/{each}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of this process and of its descendants; pages that they share count once for each."""
    return sum(_memory(each, b"Rss:") for each in _family(pid))


def proportional_bytes(pid: int) -> int:
    """The same; a page that several share counts once, in equal parts (PSS)."""
    return sum(_memory(each, b"Pss:") for each in _family(pid))


def _memory(pid: int, name: bytes) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no memory of process {pid}")


def _family(pid: int) -> list[int]:
    """The process, its children, theirs."""
    family = [pid]
    for each in family:  # it grows meanwhile
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    return family

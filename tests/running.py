"""A real gateway for tests: SQLite and disk in a folder of the test's, HTTP on a free port, nothing left running."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from gateway.api.auth import issue_token
from gateway.app import Gateway, open_gateway, running, server_of
from gateway.config import Settings
from gateway.live.connection import Connection
from gateway.server import Server
from gateway.transit.state import ClientId

SECRET = "correct horse battery staple, and more"
VIDEO = b"a video, as far as anybody here can tell"

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Announced:
    """An upload to be."""

    video_id: str
    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back on a connection of its own, as far as it could be read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        found: Json = orjson.loads(self.body)
        return found


@dataclass(frozen=True, slots=True)
class Socket:
    """An app's socket, once it is open."""

    connection: ClientConnection

    async def text(self) -> str:
        """The next message as it came."""
        found = await within(self.connection.recv())
        assert isinstance(found, str)
        return found

    async def message(self) -> Json:
        """The next message, of whatever kind."""
        found: Json = orjson.loads(await self.text())
        return found

    async def packet(self) -> Json:
        """The next info packet; answers before it are passed over."""
        while (found := await self.message())["type"] != "info":
            pass
        return found

    async def answer(self) -> Json:
        """The next answer; packets before it are passed over."""
        while (found := await self.message())["type"] == "info":
            pass
        return found

    async def send(self, kind: str, **members: object) -> None:
        await within(self.connection.send(orjson.dumps({"type": kind, **members}).decode()))

    async def ask(self, kind: str, **members: object) -> Json:
        """Send a message; its answer."""
        await self.send(kind, **members)
        return await self.answer()

    async def ack(self, version: int) -> None:
        await self.send("ack", version=version)

    async def ended(self) -> tuple[int, str]:
        """The code and the reason with which it was closed; what was still on its way is passed over."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await within(self.connection.recv())
        return self.connection.close_code or 0, self.connection.close_reason or ""


class RawSocket:
    """A TCP connection without manners: it sends what it is told, and reads nothing until it is told."""

    def __init__(self, tcp: socket.socket) -> None:
        self._tcp = tcp
        self._read = b""

    async def send(self, data: bytes) -> None:
        await within(asyncio.get_running_loop().sock_sendall(self._tcp, data))

    async def frame(self, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> None:
        await self.send(masked(opcode, data, fin=fin))

    async def read(self, most: int = 65_536) -> bytes:
        """What is there; nothing at the end of the stream, or when the connection is cut."""
        if self._read:
            found, self._read = self._read[:most], self._read[most:]
            return found
        return await self._receive(most)

    async def exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            await self._more()
        found, self._read = self._read[:size], self._read[size:]
        return found

    async def head_only(self) -> RawAnswer:
        """The next answer, without its body."""
        while b"\r\n\r\n" not in self._read:
            await self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return RawAnswer(int(first.split()[1]), headers, b"")

    async def head(self) -> RawAnswer:
        """The next answer, with its body if it has one."""
        answer = await self.head_only()
        return replace(answer, body=await self.exactly(int(answer.headers.get("content-length", 0))))

    async def next(self) -> tuple[Opcode, bytes]:
        """The next frame; EOFError at the end of the stream."""
        first, second = await self.exactly(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(await self.exactly(2 if size == 126 else 8))
        return Opcode(first & 0x0F), await self.exactly(size)

    async def closed(self) -> tuple[int, str]:
        """The code and the reason of the close frame, whatever comes before it."""
        while True:
            opcode, data = await self.next()
            if opcode is Opcode.CLOSE:
                return int.from_bytes(data[:2]), data[2:].decode()

    async def over(self) -> None:
        """Return when the gateway's side of the connection has ended, whatever comes before that."""
        while await self.read():
            pass

    async def _receive(self, most: int = 65_536) -> bytes:
        try:
            return await within(asyncio.get_running_loop().sock_recv(self._tcp, most))
        except ConnectionError:
            return b""

    async def _more(self) -> None:
        some = await self._receive()
        if not some:
            raise EOFError(self._read)
        self._read += some

    def end_of_writing(self) -> None:
        self._tcp.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Cut TCP: the gateway gets an RST."""
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._tcp.close()


def masked(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def handshake(path: str, *headers: str) -> bytes:
    """What asks for a socket."""
    return request("\n".join([f"GET {path} HTTP/1.1", *UPGRADE, *headers]))


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@dataclass(frozen=True, slots=True)
class App:
    """An app of one client: calls with its token."""

    http: httpx.AsyncClient
    client_id: str
    token: str
    device_id: str | None = None

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)

    async def poll(self, known: str | None = None, **query: object) -> httpx.Response:
        headers = {} if known is None else {"If-None-Match": known}
        return await self.call("GET", "/v1/poll", headers=headers, params=query)

    async def packet(self) -> Json:
        answer = await self.poll()
        assert answer.status_code == 200
        found: Json = answer.json()
        return found

    async def version(self) -> int:
        found: int = (await self.packet())["version"]
        return found

    async def announce(self, recipient_id: str, data: bytes = VIDEO, **members: object) -> Announced:
        body = {"recipient_id": recipient_id, "size": len(data), "content_type": "video/mp4", **members}
        answer = await self.call("POST", "/v1/videos", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        return Announced(found["video_id"], found["upload"]["url"], found["upload"]["headers"])

    async def upload(self, announced: Announced, data: bytes = VIDEO) -> httpx.Response:
        return await self.http.put(announced.url, content=data, headers=announced.headers)

    async def send(self, recipient_id: str, data: bytes = VIDEO, **members: object) -> str:
        """Announce, upload and confirm; the video's id."""
        announced = await self.announce(recipient_id, data, **members)
        assert (await self.upload(announced, data)).status_code == 200
        assert (await self.say(announced.video_id, "uploaded", recipient_id)).status_code == 200
        return announced.video_id

    async def say(self, video_id: str, status: str, recipient_id: str | None = None, **query: object) -> httpx.Response:
        body = {"status": status} | ({} if recipient_id is None else {"recipient_id": recipient_id})
        return await self.call("POST", f"/v1/videos/{video_id}/status", json=body, params=query)

    async def delete(self, video_id: str, recipient_id: str) -> httpx.Response:
        return await self.call("DELETE", f"/v1/videos/{video_id}", params={"recipient_id": recipient_id})

    async def sync(self, *statuses: object, **members: object) -> httpx.Response:
        return await self.call("POST", "/v1/sync", json={"statuses": statuses, **members})

    async def register(self, device_id: str, push_token: str, **members: object) -> httpx.Response:
        body = {"platform": "apns", "token": push_token, **members}
        return await self.call("PUT", f"/v1/devices/{device_id}", json=body)

    async def content_url(self, video_id: str) -> str:
        answer = await self.call("GET", f"/v1/videos/{video_id}/content")
        assert answer.status_code == 307, answer.text
        return answer.headers["Location"]

    async def download(self, video_id: str, **headers: str) -> httpx.Response:
        return await self.http.get(await self.content_url(video_id), headers=headers)

    def socket_url(self, device_id: str | None = None, version: int | None = None) -> str:
        """Where this client's sockets are asked for."""
        given = {"device_id": device_id, "version": version}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return f"{str(self.http.base_url).replace('http', 'ws', 1).rstrip('/')}/v1/ws?{query}"

    @asynccontextmanager
    async def socket(
        self, device_id: str | None = "phone", *, version: int | None = None, **options: Any
    ) -> AsyncIterator[Socket]:
        """A socket of this client; closed at the end."""
        given = {
            "additional_headers": {"Authorization": f"Bearer {self.token}"},
            "compression": None,
            "ping_interval": None,
            "proxy": None,
            **options,
        }
        async with connect(self.socket_url(device_id, version), **given) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def pushes(self, device_id: str) -> AsyncIterator[AsyncIterator[Json]]:
        """What the console sender delivers to this client's device, from now on."""
        path, headers = f"/v1/devices/{device_id}/pushes", {"Authorization": f"Bearer {self.token}"}
        async with self.http.stream("GET", path, headers=headers, timeout=None) as stream:
            assert stream.status_code == 200
            assert stream.headers["Content-Type"] == "text/event-stream"
            lines = stream.aiter_lines()
            assert await anext(lines) == ": listening"
            yield _events(lines)


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[Json]:
    async for line in lines:
        if line.startswith("data: "):
            yield orjson.loads(line.removeprefix("data: "))


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that serves, and a client of it without a token."""

    gateway: Gateway
    server: Server
    port: int
    http: httpx.AsyncClient
    folder: Path
    _names: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fresh(self, name: str) -> str:
        """A client's id that begins with `name` and that nobody had before."""
        self._names[name] = self._names.get(name, 0) + 1
        return f"{name}-{self._names[name]}"

    def app(self, client_id: str, *, device: str | None = None, ttl_s: float = 3600) -> App:
        return App(self.http, client_id, token(client_id, device=device, ttl_s=ttl_s), device)

    async def metric(self, name: str) -> float:
        """The value of a metric; `name` includes its labels, if it has any."""
        for line in (await self.http.get("/metrics")).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise LookupError(name)

    async def polls_held(self, polls: int) -> None:
        """Return when so many polls are held."""

        async def are() -> bool:
            return await self.metric("gateway_held_polls") == polls

        await until(are, f"{polls} polls are held")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A TCP connection to the gateway, cut at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @asynccontextmanager
    async def tcp(self, *, buffers: int | None = None) -> AsyncIterator[RawSocket]:
        """A TCP connection from which nothing is read by itself, cut at the end. `buffers`: bytes that the system
        keeps on this side of what was sent and not taken in."""
        with socket.socket() as tcp:
            if buffers is not None:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            tcp.setblocking(False)
            await within(asyncio.get_running_loop().sock_connect(tcp, ("127.0.0.1", self.port)))
            raw = RawSocket(tcp)
            try:
                yield raw
            finally:
                if tcp.fileno() >= 0:
                    raw.reset()

    @asynccontextmanager
    async def raw_socket(
        self, app: App, device_id: str = "phone", *, version: int | None = None, buffers: int | None = None
    ) -> AsyncIterator[RawSocket]:
        """An open socket, its handshake answered, from which nothing is read by itself."""
        path = "/v1/ws?" + app.socket_url(device_id, version).partition("?")[2]
        async with self.tcp(buffers=buffers) as raw:
            await raw.send(handshake(path, f"Authorization: Bearer {app.token}"))
            assert (await raw.head()).status == 101
            yield raw

    def sockets_of(self, app: App) -> tuple[Any, ...]:
        """The sessions of this client that the hub knows."""
        audience = self.gateway.hub._audiences.get(ClientId(app.client_id))
        return () if audience is None else audience.sockets

    async def nobody_left(self) -> None:
        """Return when nothing is left of any socket: no audience, no task, no turn on the wheel."""
        gateway = self.gateway

        async def nobody() -> bool:
            waiting = {type(item) for slot in gateway.wheel._slots for item in slot}
            return not (
                gateway.hub._audiences or gateway.hub.sockets or gateway.door._desk._tasks or Connection in waiting
            )

        await until(nobody, "nothing is left of the sockets")

    async def raw(self, head: str, *parts: bytes) -> RawAnswer:
        """Send a request as it stands, and read the answer even if the gateway no longer reads."""
        async with self.connection() as (reader, writer):
            with contextlib.suppress(OSError):
                writer.write(request(head))
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            return await answer_from(reader)


def request(head: str) -> bytes:
    """The head of a request: the lines of `head`, and a `Host` after the first one."""
    first, *others = head.strip().splitlines()
    return "\r\n".join([first, "Host: gateway.test", *(line.strip() for line in others), "", ""]).encode("latin-1")


async def answer_from(reader: asyncio.StreamReader) -> RawAnswer:
    """One answer with a Content-Length."""
    lines = (await within(reader.readuntil(b"\r\n\r\n"))).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    body = await within(reader.readexactly(int(headers.get("content-length", 0))))
    return RawAnswer(int(lines[0].split()[1]), headers, body)


def token(client_id: str, *, device: str | None = None, ttl_s: float = 3600) -> str:
    """A token of the gateway's secret; a negative `ttl_s` has expired."""
    return issue_token(SECRET, client_id, device_id=device, ttl_s=ttl_s, now=time.time())


def settings(folder: Path, **given: str) -> Settings:
    """Settings of a gateway in `folder` that no rate limit slows down, unless they are given."""
    defaults = {
        "DATA_DIR": str(folder),
        "PORT": "0",
        "JWT_SECRET": SECRET,
        "RATE_CALLS": "0",
        "RATE_FRAMES": "0",
        "DRAIN_S": "5",
    }
    return Settings.load({f"GATEWAY_{name}": text for name, text in (defaults | given).items()})


@asynccontextmanager
async def running_gateway(folder: Path, *, worker: bool = True, **given: str) -> AsyncIterator[Running]:
    """The gateway, in this event loop, until the block ends; it is drained then as on SIGTERM."""
    chosen = settings(folder, **given)
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with open_gateway(chosen, worker=worker) as gateway, running(gateway, chosen, worker=worker):
        server = server_of(gateway, chosen, listening.set_result)
        serving = asyncio.create_task(server.run_here())
        try:
            await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            port = listening.result()
            limits = httpx.Limits(max_connections=None)
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20, trust_env=False) as http:
                yield Running(gateway, server, port, http, folder)
        finally:
            server.should_exit = True
            await serving


@contextmanager
def gateway_in_a_thread(folder: Path, **given: str) -> Iterator[Running]:
    """The gateway in a thread and an event loop of its own, for tests that block; its `http` is of that loop."""
    started: Future[tuple[Running, Callable[[], object]]] = Future()

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with running_gateway(folder, worker=True, **given) as found:
            started.set_result((found, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    with ThreadPoolExecutor(max_workers=1) as pool:
        serving = pool.submit(asyncio.run, main())
        serving.add_done_callback(lambda _: started.cancel())  # it never started: do not wait for that
        with contextlib.suppress(CancelledError):
            started.exception()
        if started.cancelled():
            serving.result()
        found, stop = started.result()
        try:
            yield found
        finally:
            stop()
            serving.result()


async def within(work: Awaitable[T], seconds: float = 10) -> T:
    """What `work` gives, which must not take longer than a slow machine takes."""
    async with asyncio.timeout(seconds):
        return await work


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 10) -> None:
    """Return when `condition` holds; it is asked again and again, and other tasks run in between."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - what it asks for is on the other side of a socket
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it never happened: {what}") from None


def assert_problem(answer: httpx.Response, status: int, code: str | None, *said: str) -> Json:
    """The answer is the problem document that the protocol promises; `said`: what its detail mentions."""
    assert answer.status_code == status, answer.text
    return assert_problem_body(answer.headers, answer.content, status, code, *said)


def assert_problem_body(headers: Mapping[str, str], body: bytes, status: int, code: str | None, *said: str) -> Json:
    found: Json = orjson.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert found["status"] == status
    assert found.get("code") == code
    assert found["title"]
    assert found["type"] == "about:blank"
    for text in said:
        assert text in found["detail"]
    if status in {429, 503}:
        assert int(headers["retry-after"]) > 0
    assert ("www-authenticate" in headers) == (status == 401)
    assert ("allow" in headers) == (status == 405)
    return found

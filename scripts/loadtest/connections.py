"""HTTP/1.1 for many phones in one process: connections that are kept and shared, and answers that are called back.

No task belongs to a request that is under way, only to a connection that is being opened.
"""

import asyncio
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from scripts.loadtest.options import CALLS, check_address

KEPT_S = 4.0
"""A connection that was idle for so long is not used again: the gateway may be about to close it."""

_Address = tuple[socket.AddressFamily, socket.SocketKind, int, tuple[Any, ...]]

_RESET = struct.pack("ii", 1, 0)
_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT of Linux: the port is chosen when it is clear where to, so that there are enough."""


class Answer(NamedTuple):
    """An answer. `retry_after`: the header, as it came."""

    status: int
    body: bytes
    retry_after: str | None


Done = Callable[[Answer | None], None]
"""Told how a request ended: with its answer, or with None where none came."""


class Origin(NamedTuple):
    """Where connections lead. `source`: the address of this machine that they come from; None: whichever."""

    scheme: str
    host: str
    port: int
    source: str | None

    @classmethod
    def of(cls, url: str, source: str | None) -> "Origin":
        """That of a URL."""
        parts = urlsplit(url)
        return cls(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), source)

    @property
    def authority(self) -> str:
        """As a `Host` header has it."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Dialler:
    """Opens connections."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._addresses: dict[Origin, _Address] = {}

    def dial(
        self, origin: Origin, make: Callable[[], asyncio.Protocol], failed: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Open a connection, for what `make` makes; `failed` is called where there is none. Cancelled: neither."""
        task = self._loop.create_task(self._dial(origin, make, failed))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def _dial(self, origin: Origin, make: Callable[[], asyncio.Protocol], failed: Callable[[], None]) -> None:
        try:
            tcp = await self._connected(origin)
        except OSError:
            failed()
            return
        try:
            name = origin.host if origin.scheme == "https" else None
            await self._loop.create_connection(make, sock=tcp, ssl=self._context(origin), server_hostname=name)
        except OSError:
            tcp.close()
            failed()
        except BaseException:
            tcp.close()
            raise

    async def _connected(self, origin: Origin) -> socket.socket:
        family, kind, protocol, address = await self._resolved(origin)
        tcp = socket.socket(family, kind, protocol)
        try:
            tcp.setblocking(False)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.source is not None and family is socket.AF_INET:
                tcp.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                tcp.bind((origin.source, 0))
            await self._loop.sock_connect(tcp, address)
        except BaseException:
            tcp.close()
            raise
        return tcp

    async def _resolved(self, origin: Origin) -> _Address:
        if (found := self._addresses.get(origin)) is None:
            all_ = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = all_[0]
            found = self._addresses[origin] = (family, kind, protocol, address)
        return found

    def _context(self, origin: Origin) -> ssl.SSLContext | None:
        if origin.scheme != "https":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def close(self) -> None:
        """Give up what is being opened."""
        for task in self._opening:
            task.cancel()


class Exchange:
    """A request, until `done` is called. One that is abandoned is never told of."""

    __slots__ = ("_pool", "connection", "done", "request", "timer")

    def __init__(self, pool: "Pool", request: bytes, done: Done, timer: asyncio.TimerHandle) -> None:
        self._pool = pool
        self.request = request
        self.done: Done | None = done
        self.timer = timer
        self.connection: _Connection | None = None

    def abandon(self) -> None:
        """Cut it off."""
        self.done = None
        self.timer.cancel()
        if self.connection is not None:
            self.connection.cut()
        else:
            self._pool.forget(self)

    def end(self, answer: Answer | None) -> None:
        """It has ended."""
        self.timer.cancel()
        self.connection = None
        done, self.done = self.done, None
        if done is not None:
            done(answer)


class Pool:
    """Connections to one origin. What finds none free waits for one, in turn."""

    def __init__(self, origin: Origin, dialler: Dialler, most: int = CALLS) -> None:
        self.origin = origin
        self._dialler = dialler
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[Exchange] = deque()
        self._connections: set[_Connection] = set()
        self._opening = 0

    def ask(self, request: bytes, done: Done, *, timeout_s: float) -> Exchange:
        """Send a request. `done` is called once, and not before this returns."""
        exchange: Exchange
        timer = self._loop.call_later(timeout_s, lambda: self._timed_out(exchange))
        exchange = Exchange(self, request, done, timer)
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since_s < KEPT_S:
                connection.send(exchange)
                return exchange
            connection.cut()
        self._waiting.append(exchange)
        self._open()
        return exchange

    def _timed_out(self, exchange: Exchange) -> None:
        if exchange.connection is not None:
            exchange.connection.cut()
        else:
            self.forget(exchange)
            exchange.end(None)

    def _open(self) -> None:
        while self._opening < len(self._waiting) and len(self._connections) + self._opening < self._most:
            self._opening += 1
            self._dialler.dial(self.origin, lambda: _Connection(self), self._not_opened)

    def _not_opened(self) -> None:
        """Whoever waits longest hears of it: with nobody to connect to, everybody does in the end."""
        self._opening -= 1
        if self._waiting:
            self._waiting.popleft().end(None)
        self._open()

    def forget(self, exchange: Exchange) -> None:
        """It waits no more."""
        with suppress(ValueError):
            self._waiting.remove(exchange)

    def opened(self, connection: "_Connection") -> None:
        """It is there."""
        self._opening -= 1
        self._connections.add(connection)
        self.free(connection)

    def free(self, connection: "_Connection") -> None:
        """It can take the next request."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            connection.idle_since_s = time.monotonic()
            self._idle.append(connection)

    def lost(self, connection: "_Connection") -> None:
        """It is gone."""
        self._connections.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
        self._open()

    def close(self) -> None:
        """Cut all of it."""
        self._waiting.clear()
        for connection in list(self._connections):
            connection.cut()


class _Connection(asyncio.Protocol):
    """One connection: a request at a time."""

    __slots__ = ("_body", "_exchange", "_parser", "_pool", "_retry_after", "_transport", "idle_since_s")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._retry_after: str | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop does not derive its own from it
        self._transport = transport
        self._pool.opened(self)

    def send(self, exchange: Exchange) -> None:
        """Send a request."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.cut()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, as the others are."""
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), bytes(self._body), self._retry_after)
        if 100 <= answer.status < 200:
            return
        kept = self._parser.should_keep_alive()
        exchange, self._exchange = self._exchange, None
        self._body.clear()
        self._retry_after = None
        if exchange is None or not kept:
            self.cut()
        else:
            self._pool.free(self)
        if exchange is not None:
            exchange.end(answer)

    def cut(self) -> None:
        """Cut TCP; a request that is under way has no answer."""
        if self._transport is not None:
            reset(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        exchange, self._exchange = self._exchange, None
        self._pool.lost(self)
        if exchange is not None:
            exchange.end(None)


class Pools:
    """Connections to the gateway, and to wherever its signed URLs lead."""

    def __init__(self, address: str, *, source: str | None, anywhere: bool) -> None:
        self.dialler = Dialler()
        self._anywhere = anywhere
        self._pools: dict[Origin, Pool] = {}
        self._source = source
        self.gateway = self._pool(Origin.of(address, source))

    def _pool(self, origin: Origin) -> Pool:
        return self._pools.setdefault(origin, Pool(origin, self.dialler))

    def of(self, url: str) -> Pool:
        """Those to where a URL leads. Raises Refused where that is not allowed."""
        origin = Origin.of(url, self._source)
        if (pool := self._pools.get(origin)) is not None:
            return pool
        check_address(f"{origin.scheme}://{origin.authority}", anywhere=self._anywhere)
        return self._pool(origin)

    def close(self) -> None:
        """Cut all of it."""
        self.dialler.close()
        for pool in self._pools.values():
            pool.close()


def reset(transport: asyncio.Transport) -> None:
    """Cut TCP. A reset leaves no port behind that could not be used for a minute."""
    tcp = transport.get_extra_info("socket")
    if tcp is not None and not transport.is_closing():
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def request(method: str, path: str, authority: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """A request with its body. Headers are as they are given; the length is added."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "content-length"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def path_of(url: str) -> str:
    """What a request for a URL has in its first line."""
    parts = urlsplit(url)
    return f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"

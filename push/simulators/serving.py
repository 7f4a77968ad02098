"""What the simulators serve with: requests in, reactions out, over HTTP/2 or HTTP/1.1, whichever TLS agreed on."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

from push.simulators.answers import Reaction

MAX_BODY_BYTES = 64 * 1024
"""A longer body is not read."""

SHUTDOWN_S = 1.0
"""How long a client may take to end TLS once the server has."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read to its end. `headers`: in their order, each as often as it came, names in lower case.
    `came_s`: the loop's time."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    came_s: float

    def header(self, name: str) -> str | None:
        """The value of a header, the first one where there are many."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(slots=True)
class Peer:
    """Who is at the other end of a connection.

    `number`: of this connection among all that its listener had, from 1 on. `http2`: or HTTP/1.1. `user_id`: the UID of
    the client's certificate, where it showed one that its authority has issued. `streams`: how many requests it may
    have under way at once; the service may change it, and the client is told.
    """

    number: int
    http2: bool
    user_id: str | None
    streams: int = 100


class Service(Protocol):
    """What is done about requests. Its methods are called in the event loop; they must not block or raise."""

    def opened(self, peer: Peer) -> None:
        """A connection is there; nothing has been sent on it."""
        ...

    def came(self, request: Request, peer: Peer) -> Reaction:
        """What is done about `request`: a reaction that says None nowhere."""
        ...

    def pinged(self, peer: Peer) -> None:
        """A PING frame came; it is answered."""
        ...

    def overran(self, peer: Peer) -> None:
        """A request came beyond the `streams` that its client knows of; it is refused with REFUSED_STREAM."""
        ...


class Connection(Protocol):
    """A connection as its listener sees it."""

    def allow(self, streams: int) -> None:
        """Let the client have so many requests under way; those that are go on."""
        ...

    def go_away(self, reason: bytes) -> None:
        """Take no more requests; close it once those under way are answered."""
        ...

    def cut(self) -> None:
        """Cut TCP, whatever is under way."""
        ...


class Protocols(Protocol):
    """Makes the connection for a transport that has ended its handshake."""

    def __call__(self, transport: asyncio.Transport, peer: Peer, listener: "Listener") -> asyncio.Protocol: ...


class Listener:
    """A listening socket at a free port of 127.0.0.1, and the connections that came to it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.port = 0
        self.connections = 0
        """How many there were so far."""
        self._open: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def next_number(self) -> int:
        """The number of one more connection."""
        self.connections += 1
        return self.connections

    def add(self, connection: Connection) -> None:
        """A connection has opened."""
        self._open.add(connection)
        self._empty.clear()

    def remove(self, connection: Connection) -> None:
        """A connection has gone."""
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def cut(self) -> None:
        """Cut every connection that is open."""
        for connection in list(self._open):
            connection.cut()

    def allow(self, streams: int) -> None:
        """Let every connection that is open have so many requests under way."""
        for connection in list(self._open):
            connection.allow(streams)

    def go_away(self, reason: bytes) -> None:
        """Have every connection that is open end once what is under way is answered."""
        for connection in list(self._open):
            connection.go_away(reason)

    async def emptied(self) -> None:
        """Return once no connection is open."""
        await self._empty.wait()


@asynccontextmanager
async def listening(
    listener: Listener, context: ssl.SSLContext, *, http2: Protocols, http1: Protocols | None = None
) -> AsyncIterator[None]:
    """Have `listener` serve until the block ends; every connection is cut then. Without `http1`, HTTP/2 is spoken
    whatever TLS agreed on."""
    server = await asyncio.get_running_loop().create_server(
        lambda: _Arriving(listener, http2, http1),
        "127.0.0.1",
        0,
        ssl=context,
        backlog=1024,
        ssl_shutdown_timeout=SHUTDOWN_S,
    )
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        listener.cut()
        await listener.emptied()
        await server.wait_closed()


class _Arriving(asyncio.Protocol):
    """A connection until its protocol is known: only ALPN says, which the transport has once it is connected."""

    def __init__(self, listener: Listener, http2: Protocols, http1: Protocols | None) -> None:
        self._listener = listener
        self._http2 = http2
        self._http1 = http1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is there (asyncio calls this)."""
        transport = cast("asyncio.Transport", transport)  # what uvloop has for TLS is none by its class
        tls = transport.get_extra_info("ssl_object")
        other = None if tls.selected_alpn_protocol() == "h2" else self._http1
        listener = self._listener
        peer = Peer(listener.next_number(), other is None, _user_id(transport))
        listener.service.opened(peer)
        transport.set_protocol((other or self._http2)(transport, peer, listener))


def _user_id(transport: asyncio.Transport) -> str | None:
    """The UID in the subject of the client's certificate."""
    certificate = transport.get_extra_info("peercert") or {}
    return next((value for names in certificate.get("subject", ()) for name, value in names if name == "userId"), None)

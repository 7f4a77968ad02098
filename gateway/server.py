"""The process's HTTP server: uvicorn's, with the limits that it lacks, sockets taken over, and a drain.

What every connection costs is bounded here: the time and the size of a request's head, how long a peer may not read
its answer, and how many connections there are.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import httptools
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.api.http import Reply, problem, problem_reply
from gateway.api.socket import overloaded
from gateway.errors import Code
from gateway.live.wheel import Wheel

KEEP_ALIVE_S = 75
"""How long an idle HTTP connection is kept: longer than load balancers do (60 s), so that they close it, not we."""

HEAD_S = 10.0
"""How long the head of a request may take to arrive, from the connection on or from its first byte."""

HEAD_BYTES = 64 * 1024
"""How large the head of a request may be: tokens and signed queries are some KiB."""

UNREAD_S = 60.0
"""How long a peer may leave an answer unread, without taking a byte, before its connection is cut."""

SPARE = 256
"""So many connections beyond the limit are still told that there is no room; the rest are cut."""

BACKLOG = 4096
"""How many connections may wait to be accepted."""

FORCE_S = 0.1
"""How soon a second signal is noticed."""

TURN_S = 5.0
"""How often a connection is looked at: by so much the two times above may be exceeded."""

log = logging.getLogger(__name__)

Headers = Sequence[tuple[bytes, bytes]]
_CLOSE = (b"connection", b"close")


class Upgrades(Protocol):
    """Takes over connections on which a socket is asked for."""

    @property
    def path(self) -> bytes:
        """Where sockets are asked for."""
        ...

    @property
    def sockets(self) -> int:
        """How many it has taken over that are not over."""
        ...

    def upgrade(
        self, transport: asyncio.Transport, query: bytes, headers: Headers, *, early: bytes, room: bool
    ) -> asyncio.Protocol:
        """What handles the connection from now on. The headers' names are in lower case; `early` came behind them.
        Without `room` it only says so."""
        ...


class NoUpgrades:
    """Takes over no connection: no address has a space in it."""

    path = b" "
    sockets = 0

    def upgrade(self, *_: object, **__: object) -> asyncio.Protocol:
        """Never called: nobody can ask for that path."""
        raise AssertionError("a socket was asked for where there are none")


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection, as uvicorn handles it, until it becomes a socket. The wheel gives it its turns."""

    def __init__(self, *, wheel: Wheel, upgrades: Upgrades, most: int, **given: Any) -> None:
        super().__init__(**given)
        self.slot = -1
        self._wheel = wheel
        self._upgrades = upgrades
        self._most = most
        self._room = True
        self._head_since_s = wheel.now_s()
        self._head_bytes = 0
        self._head_open = True
        self._heads = 0
        self._running: RequestResponseCycle | None = None
        self._refused = False
        self._unread = 0
        self._unread_since_s = 0.0
        self._idle_since_s = wheel.now_s()

    # --- Taken on and let go

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        taken = len(self.connections) + self._upgrades.sockets
        if taken > self._most + SPARE:
            transport.abort()  # not even for an answer is there room
            return
        if taken > self._most:
            self._room = False
            self.app = _no_room
        self._wheel.schedule(self, TURN_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.cancel(self)
        self._unset_keepalive_if_required()  # uvicorn leaves it where TCP was reset: it would keep all of this alive
        if self._running is not None:  # uvicorn tells only the call that came last
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _answering(self) -> bool:
        """Whether a call is not answered yet: those that come behind it begin when it is."""
        return self._running is not None and not self._running.response_complete

    # --- The head of a request

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        heads = self._heads
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._should_upgrade():
                self._become_socket(rest)
            else:
                self._ignore_upgrade(rest)
            return
        except httptools.HttpParserError:
            self._refuse(400, "this is no HTTP request", Code.INVALID)
            return
        if self._head_open and heads == self._heads:  # else some of it belongs to the request before: it is let pass
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the head of a request has at most {HEAD_BYTES} bytes here", Code.TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_open, self._head_bytes, self._head_since_s = True, 0, self._wheel.now_s()

    def on_headers_complete(self) -> None:
        self._head_open = False
        self._heads += 1
        self._idle_since_s = self._wheel.now_s()
        if not self._other_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._other_upgrade():
            super().on_message_complete()

    def _refuse(self, status: int, detail: str, code: Code | None = None) -> None:
        """Answer what is no request, and end the connection: our side of it at once, so that the peer reads the answer
        before it ends the other (RFC 1122, section 4.2.2.13), or is cut."""
        self.transport.write(problem_reply(status, detail, code=code).last())
        if self._answering:
            self.transport.close()
        else:
            self._refused = True
            self.transport.write_eof()

    # --- Sockets

    def _should_upgrade(self) -> bool:
        """Whether this is a handshake at the address of sockets; elsewhere it is answered like any other request."""
        if self.url.partition(b"?")[0] != self._upgrades.path or self.parser.get_method() != b"GET":
            return False
        upgrade = b",".join(value for name, value in self.headers if name == b"upgrade")
        if upgrade.strip().lower() != b"websocket" or self.parser.get_http_version() != "1.1":
            return False
        # An answer on its way would end up among the frames, and what is unread of it would not count as theirs.
        return not self._answering and not self.transport.get_write_buffer_size()

    def _other_upgrade(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Another upgrade than to a socket is ignored, as RFC 9110, section 7.8, allows. The parser takes what comes
        behind the head for another protocol, so a new one reads the request as if nothing had been asked."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(400, "this is no proxy", Code.INVALID)
            return
        head = [method, b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _become_socket(self, early: bytes) -> None:
        self.connections.discard(self)
        self._wheel.cancel(self)
        query = self.url.partition(b"?")[2]
        connection = self._upgrades.upgrade(self.transport, query, self.headers, early=early, room=self._room)
        self.transport.set_protocol(connection)
        self.parser = None  # type: ignore[assignment]  # it refers back to this connection, which nobody needs any more

    # --- Time

    def turn(self, now_s: float) -> float:
        """Cut the connection if its peer keeps it waiting; the wheel calls it."""
        if self._refused:
            self.transport.abort()
            return 0
        if self._head_open and now_s - self._head_since_s >= HEAD_S and not self.transport.is_closing():
            self._refuse(408, "the request did not arrive in time")
        if self._head_open or self._answering:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s >= KEEP_ALIVE_S:
            self.transport.close()  # uvicorn's own timer ends with every byte that comes, whatever it belongs to
        unread = self.transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since_s = unread, now_s
        elif now_s - self._unread_since_s >= UNREAD_S:
            self.transport.abort()
            return 0
        return TURN_S


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
    reply = problem(overloaded())
    await Reply(reply.status, reply.body, content_type=reply.content_type, headers=[*reply.headers, _CLOSE]).send(send)


class Server(uvicorn.Server):
    """uvicorn's server, drained before it waits for connections. `started` is called with the port once it listens.

    `drain`: begun once nobody is let in any more. What was not over after `drain_s` seconds is cut off, sockets by
    calling `cut_off`; calls that run after `cancel_s` are cancelled.
    It takes no signals: uvicorn's own handling raises a signal it has caught once more at the end, which would end the
    process before its backends are closed. Whoever runs it sets `should_exit`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        wheel: Wheel,
        upgrades: Upgrades,
        address: tuple[str, int],
        most: int,
        drain_s: float,
        cancel_s: float,
        started: Callable[[int], None],
        drain: Callable[[], Awaitable[None]],
        cut_off: Callable[[], None],
    ) -> None:
        connection = partial(HttpConnection, wheel=wheel, upgrades=upgrades, most=most)
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", connection),
            ws="none",  # sockets never reach it: see `HttpConnection`
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=cast("int", cancel_s),  # it does not mind a fraction
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._address = address
        self._drain_s = drain_s
        self._tell = started
        self._drain = drain
        self._cut_off_sockets = cut_off
        self._out_of_time = False

    async def run_here(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`, on `sockets` that are bound, or on its address. Raises OSError where it cannot
        listen."""
        await self.serve(await _listen(*self._address) if sockets is None else sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining")
        overdue = asyncio.get_running_loop().call_later(self._drain_s, self._cut_off)
        for server in self.servers:
            server.close()
        draining = asyncio.ensure_future(self._drain())
        try:
            await super().shutdown(sockets)
            while not draining.done() and not self.force_exit and not self._out_of_time:
                await asyncio.wait([draining], timeout=FORCE_S)
            self._cut_off_sockets()
        finally:
            overdue.cancel()
            draining.cancel()
            await asyncio.wait([draining])
        if not draining.cancelled():
            draining.result()

    def _cut_off(self) -> None:
        """End the connections that did not end by themselves: their calls find that the app went away, and clean up."""
        self._out_of_time = True
        self._cut_off_sockets()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def _listen(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`. uvicorn, left to do it, would end the process where one cannot be had."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bound(*address)) for address in dict.fromkeys(found)]
        stack.pop_all()
    return sockets


def listening_shares(host: str, port: int, *, shares: int) -> list[list[socket.socket]]:
    """The sockets of `shares` processes that serve one port, one for each address of `host`: the kernel spreads
    connections evenly over them. All are listening, so that it does from the first one on. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    split: list[list[socket.socket]] = [[] for _ in range(shares)]
    with contextlib.ExitStack() as stack:
        for family, kind, protocol, name, address in dict.fromkeys(found):
            for number, share in enumerate(split):
                there = (address[0], port, *address[2:])
                # Not the first: it finds out whether somebody else is there, who may have said the same.
                listening = stack.enter_context(_bound(family, kind, protocol, name, there, shared=number > 0))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listening.listen(BACKLOG)
                share.append(listening)
                port = port or listening.getsockname()[1]
        stack.pop_all()
    return split


def _bound(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    protocol: int,
    _: str,
    address: tuple[Any, ...],
    *,
    shared: bool = False,
) -> socket.socket:
    # With its protocol, unlike `socket.create_server`: asyncio switches Nagle's algorithm off only where it stands.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening

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
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from gateway.api.http import Reply, problem, problem_reply
from gateway.api.short import LONG, ShortCall, ShortWay
from gateway.api.socket import overloaded
from gateway.errors import Code
from gateway.listening import BACKLOG, listening_sockets
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


class _Never:
    """In place of an event that nobody waits for."""

    def set(self) -> None: ...


class ShortCycle:
    """A call on the short way, with as much of uvicorn's `RequestResponseCycle` as a connection asks of one."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    message_event = _Never()

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection, as uvicorn handles it, until it becomes a socket. The wheel gives it its turns.

    Calls whose request has come whole go the `short` way: see `gateway.api.short`.
    """

    def __init__(self, *, wheel: Wheel, upgrades: Upgrades, short: ShortWay, most: int, **given: Any) -> None:
        super().__init__(**given)
        self.slot = -1
        self._wheel = wheel
        self._upgrades = upgrades
        self._short = short
        self._call: ShortCall | None = None
        self._body = b""
        self._most = most
        self._room = True
        self._head_since_s = wheel.now_s()
        self._head_bytes = 0
        self._head_open = True
        self._heads = 0
        self._running: RequestResponseCycle | ShortCycle | None = None
        self._refused = False
        self._unread = 0
        self._unread_since_s = 0.0
        self._idle_since_s = wheel.now_s()

    # --- Taken on and let go

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn does, but for the addresses, which hardly any request needs: see `_begin_cycle`."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
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
            self._call = None
            self._refuse(400, "this is no HTTP request", Code.INVALID)
            return
        if self._call is not None:
            self._go_the_long_way()  # some of its body is still to come
        if self._head_open and heads == self._heads:  # else some of it belongs to the request before: it is let pass
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the head of a request has at most {HEAD_BYTES} bytes here", Code.TOO_LARGE)

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []
        self._head_open, self._head_bytes, self._head_since_s = True, 0, self._wheel.now_s()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_open = False
        self._heads += 1
        self._idle_since_s = self._wheel.now_s()
        if self.parser.should_upgrade():
            return  # see `data_received`, which is told so when the head has been read
        self._call, self._body = self._short_call(), b""
        if self._call is None:
            self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        if self._call is not None:
            self._body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._call is not None:
            self._begin_short(self._call)
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn does, but for its timer for connections that are idle: the wheel looks after them."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)

    # --- The short way

    def _short_call(self) -> ShortCall | None:
        """The call that may go the short way, where nothing is asked for that only the long one has."""
        parser = self.parser
        if self._answering or not self._room or self.flow.write_paused:
            return None
        if not parser.should_keep_alive() or parser.get_http_version() != "1.1":
            return None
        for name, _ in self.headers:
            if name in LONG:
                return None
        return self._short.find(parser.get_method(), self.url)

    def _begin_short(self, call: ShortCall) -> None:
        self._call = None
        cycle = self._running = self.cycle = ShortCycle()  # type: ignore[assignment]
        task = self.loop.create_task(self._answer(call, cycle, self.headers, self._body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, call: ShortCall, cycle: ShortCycle, headers: Headers, body: bytes) -> None:
        try:
            reply = await call.reply(self.scheme or "http", headers, body)
        except BaseException:
            self.transport.abort()  # the process ends, and has no more patience
            raise
        cycle.response_complete = True
        if reply is None or cycle.disconnected:
            return
        if cycle.keep_alive:
            self.transport.write(reply.whole(self.server_state.default_headers))
        else:
            self.transport.write(reply.last())
            self.transport.close()
        self.on_response_complete()

    def _go_the_long_way(self) -> None:
        self._call = None
        self._begin_cycle()
        if self._body:
            super().on_body(self._body)

    def _begin_cycle(self) -> None:
        """What uvicorn does at the beginning of a request, and at the end of its head."""
        if self.server is None:
            self.server, self.client = get_local_addr(self.transport), get_remote_addr(self.transport)
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers  # the request's scope has this very list
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()

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
            self.transport.close()
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
        short: ShortWay,
        most: int,
        drain_s: float,
        cancel_s: float,
        started: Callable[[int], None],
        drain: Callable[[], Awaitable[None]],
        cut_off: Callable[[], None],
    ) -> None:
        connection = partial(HttpConnection, wheel=wheel, upgrades=upgrades, short=short, most=most)
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
        await self.serve(await listening_sockets(*self._address) if sockets is None else sockets)

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

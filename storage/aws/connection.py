"""HTTP/1.1 connections that are kept: for services that are asked thousands of times a second.

A request costs about a tenth of what the general clients for asyncio take (`scripts/bench-aws`), since nothing here is
general: one host, whole requests, whole answers, no redirects, no cookies, no proxies.
"""

import asyncio
import ssl
from collections import deque
from typing import Any, NamedTuple, cast

import httptools

MAX_BODY_BYTES = 64 * 1024 * 1024
"""The longest answer that is taken: 16 MB of documents are a third longer in JSON."""

CONNECT_S = 2.0
"""How long connecting may take, TLS included."""

IDLE_S = 15.0
"""A connection that was not used for so long is not used again: the other side may be about to close it."""

AGE_S = 300.0
"""A connection older than this is left, so that what a name stands for is looked up again."""


class Answer(NamedTuple):
    """A whole answer. The names of headers are in lower case; of several with one name the last one counts."""

    status: int
    headers: dict[str, str]
    body: bytes


class ConnectionFailed(Exception):
    """No answer came. `unused`: the request went over a connection that had been idle, and was closed without a word:
    the other side may just have closed it, so that a new one is worth a try at once."""

    def __init__(self, message: str, *, unused: bool = False) -> None:
        super().__init__(message)
        self.unused = unused


class Endpoint(NamedTuple):
    """Where a service is: `tls` is None where it speaks plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class HttpPool:
    """Connections to one endpoint, at most `most` at once; who comes when all are busy waits for one."""

    def __init__(self, endpoint: Endpoint, *, most: int) -> None:
        self._endpoint = endpoint
        self._free = most
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def ask(self, request: bytes, *, head: bool, timeout_s: float) -> Answer:
        """The answer to `request`, a whole HTTP/1.1 request; `head`: its method is HEAD.

        Raises ConnectionFailed: what was asked may have happened all the same. When cancelled, the connection goes.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._place()
                try:
                    connection = self._take() or await self._connect()
                    self._busy.add(connection)
                    try:
                        return await connection.ask(request, head)
                    finally:
                        self._busy.discard(connection)
                        self._put(connection)
                finally:
                    self._leave()
        except TimeoutError as error:
            raise ConnectionFailed("no answer in time") from error

    def close(self) -> None:
        """Let all connections go; requests under way fail, and so does whoever asks later."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    async def _place(self) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # it was this one's turn already
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _take(self) -> "_Connection | None":
        """The connection that was used last, so that the others may grow old."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.open and now - connection.used_at < IDLE_S and now - connection.made_at < AGE_S:
                return connection
            connection.abort()
        if self._closed:
            raise ConnectionFailed("the connections are closed")
        return None

    def _put(self, connection: "_Connection") -> None:
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.abort()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        host, port, tls = self._endpoint
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(lambda: _Connection(loop), host, port, ssl=tls)
        except TimeoutError as error:
            raise ConnectionFailed("cannot connect in time") from error
        except (OSError, ssl.SSLError) as error:
            raise ConnectionFailed(f"cannot connect: {error.strerror or type(error).__name__}") from error
        if self._closed:  # meanwhile
            connection.abort()
            raise ConnectionFailed("the connections are closed")
        return connection


class _Connection(asyncio.Protocol):
    """One connection: a request at a time, its answer parsed by httptools, which calls the `on_` methods."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.made_at = self.used_at = loop.time()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._parser: Any = None
        self._head = False
        self._heard = False
        self._asked = 0
        self._keep = False
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        return self.open and self._answer is None and self._keep

    async def ask(self, request: bytes, head: bool) -> Answer:
        if self._transport is None or not self.open:
            raise ConnectionFailed("the connection was closed")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._head, self._heard, self._keep = head, False, False
        self._headers, self._body, self._size = {}, [], 0
        self._asked += 1
        self._transport.write(request)
        return await answer

    def abort(self) -> None:
        self._fail("the connection was closed")
        if self._transport is not None:
            self._transport.abort()

    # --- What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nothing was asked
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("an answer that is no HTTP")
            self.abort()

    def eof_received(self) -> None:
        """An answer without a length ends here; it is not taken, since it may be cut off."""

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._fail("the connection was closed", unused=self._asked > 1 and not self._heard)

    def _fail(self, message: str, *, unused: bool = False) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionFailed(message, unused=unused))

    # --- What the parser says

    def on_message_begin(self) -> None:
        if self._answer is None:  # a second answer, right behind the first: the parser stops, and it is no HTTP
            raise ConnectionFailed("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._head and self._parser.get_status_code() >= 200:
            self._end()

    def on_body(self, body: bytes) -> None:
        if self._answer is None:  # a body behind the answer to a HEAD: where it ends is anybody's guess
            self._keep = False
            return
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._fail("an answer that is too long")
            self.abort()
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # an interim answer, such as 100
            self._headers.clear()
            return
        self._end()

    def _end(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._head:  # the parser takes this for an answer whose body is still to come, so it is not asked
            closing = "close" in self._headers.get("connection", "").lower()
            self._keep = not closing and self._parser.get_http_version() != "1.0"
        else:
            self._keep = self._parser.should_keep_alive()
        self.used_at = self._loop.time()
        if not answer.done():
            answer.set_result(Answer(self._parser.get_status_code(), self._headers, b"".join(self._body)))

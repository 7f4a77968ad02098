"""A connection to a Redis server: commands go out together, answers come in their order. No task, no queue.

redis-py's connection reads each answer with a coroutine and a timer, and its pool and pipeline look after every batch
(`docs/decisions/0010-redis-documents.md` has the figures). What is left without them is the parser, hiredis.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis

from storage.redis_url import Address, RedisUrl

Command = tuple[bytes | str | int, ...]

KEEPALIVE_S = 30
"""A connection that is idle is probed this often, so that one that is gone is noticed before it is needed."""

MOST_UNSENT = 1024 * 1024
"""Bytes that the transport holds before nothing more is given to it."""


class RedisUnavailable(Exception):
    """A server could not do it now. Whether it did is not known."""


class RedisRefusal(RedisUnavailable):
    """A server's error; `kind` is its first word: MOVED, NOSCRIPT, ERR."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(" ")[0]


class Call:
    """A command under way. `since_s`: when it was asked for, on the loop's clock. `repeated`: it is sent again."""

    __slots__ = ("data", "future", "repeated", "since_s")

    def __init__(self, command: Command, future: "asyncio.Future[Any]", since_s: float) -> None:
        # Integers, text and bytes are what it takes; its stub names a tuple of one.
        self.data = cast("bytes", hiredis.pack_command(command))  # type: ignore[arg-type]
        self.future = future
        self.since_s = since_s
        self.repeated = False


class RedisConnection(asyncio.Protocol):
    """`answered`: called when answers have come. `resumed`: it takes commands again. `lost`: it ended, with the calls
    that have no answer, and why; not called once `abort` was."""

    def __init__(
        self,
        *,
        answered: Callable[[], None],
        resumed: Callable[[], None],
        lost: Callable[[list[Call], Exception], None],
    ) -> None:
        self.calls: deque[Call] = deque()
        """What waits for its answer, oldest first."""
        self.paused = False
        """The server does not read what it was sent."""
        self.read_only = False
        """The server has become a replica."""
        self._answered = answered
        self._resumed = resumed
        self._lost = lost
        self._open = False
        self._reader = hiredis.Reader(replyError=RedisRefusal, notEnoughData=_NOTHING)
        self._transport: asyncio.Transport

    @classmethod
    async def open(
        cls,
        address: Address,
        url: RedisUrl,
        *,
        tls: ssl.SSLContext | None,
        answered: Callable[[], None],
        resumed: Callable[[], None],
        lost: Callable[[list[Call], Exception], None],
    ) -> "RedisConnection":
        """Connect and greet. Raises OSError or RedisUnavailable."""
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(answered=answered, resumed=resumed, lost=lost),
            address.host,
            address.port,
            ssl=tls,
            server_hostname=address.host if tls else None,
        )
        try:
            await connection.greet(url)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def greet(self, url: RedisUrl) -> None:
        """Say who we are. From then on its loss is told."""
        loop = asyncio.get_running_loop()
        for command in _greeting(url):
            call = Call(command, loop.create_future(), loop.time())
            self.send([call])
            await call.future
        if self._transport.is_closing():  # nobody was told
            raise ConnectionResetError(_CLOSED)
        self._open = True

    def send(self, calls: Sequence[Call]) -> None:
        """Send these, in one write."""
        self.calls.extend(calls)
        self._transport.write(b"".join([call.data for call in calls]))

    def abort(self) -> list[Call]:
        """End it at once; what has no answer is returned."""
        self._open = False
        self._transport.abort()
        calls, self.calls = list(self.calls), deque()
        return calls

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MOST_UNSENT)
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        reader, calls = self._reader, self.calls
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _NOTHING:
                self._resolve(calls.popleft().future, answer)
        except (hiredis.ProtocolError, IndexError) as error:  # it says what nobody asked for
            self._end(RedisUnavailable(f"not a Redis server: {error}"))
            return
        self._answered()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError(_CLOSED))

    def _resolve(self, future: "asyncio.Future[Any]", answer: Any) -> None:
        if isinstance(answer, RedisRefusal):
            self.read_only |= answer.kind == "READONLY"
            refuse(future, answer)
        elif not future.done():  # else its caller was cancelled
            future.set_result(answer)

    def _end(self, error: Exception) -> None:
        was_open, calls = self._open, self.abort()
        if was_open:
            self._lost(calls, error)
        for call in calls if not was_open else ():  # the greeting
            refuse(call.future, error)


def refuse(future: "asyncio.Future[Any]", error: Exception) -> None:
    """Fail `future`. Whoever does not look need not be told."""
    if not future.done():
        future.set_exception(error)
        future.exception()


def tls_context(url: RedisUrl) -> ssl.SSLContext | None:
    """TLS as the URL asks for it: at least 1.2, by the system's authorities or the one that it names.

    Raises ValueError where that one cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=url.ca_file) if url.tls else None
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"names a certificate authority that cannot be read: {error}") from error


def _greeting(url: RedisUrl) -> Iterable[Command]:
    if url.password is not None:
        yield ("AUTH", url.user, url.password) if url.user is not None else ("AUTH", url.password)
    if url.db:
        yield "SELECT", url.db


def _keep_alive(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL"):  # the second is what macOS calls the first
        if (option := getattr(socket, name, None)) is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, KEEPALIVE_S)


_NOTHING = object()
_CLOSED = "the server closed the connection"

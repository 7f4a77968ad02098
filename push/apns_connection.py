"""A connection to APNs: aioapns' own, mended, and a pool of them for each of the two hosts.

aioapns 4.0 keeps the pool and makes the connections. What is mended here, each with what can be taken out once aioapns
does it itself:

* **An answer that is not as usual** (RST_STREAM, no body, a body that is not JSON) leaves its request waiting for ever
  or ends the connection: `data_received`, `_Stream`.
* **A request that was cancelled** ends the connection, and all under way on it, when its answer comes: the `finally` of
  `post`, which also resets the stream, since nobody answers it otherwise.
* **DATA is never acknowledged**, so some 1,200 error bodies use up the window: `acknowledge_received_data`.
* **More than the peer's window or streams**: what goes beyond the window fails, and leaves a stream half open; whoever
  waits for a stream when the connection is lost gets a ValueError, since its semaphore takes them out twice:
  `_until_room`.
* **GOAWAY** cuts off the requests that were still to be answered (RFC 9113, section 6.8): `_on_goaway`; h2 4.4 reads
  nothing after it: `_H2Connection`.
* **Every connection has a provider token of its own**, and APNs refuses those that come too often: `ProviderToken`.
* **An idle connection is closed after 10 s**, though Apple asks to keep them ("Establishing a connection to APNs"), and
  a dead one is not noticed: `_ping`.
* **A new connection is used before the server said how many streams it takes**: `ready`.
"""

import asyncio
import contextlib
import json
import logging
import math
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Never

from aioapns.connection import (
    APNsBaseClientProtocol,
    APNsBaseConnectionPool,
    APNsTLSClientProtocol,
    AuthorizationHeaderProvider,
)
from aioapns.exceptions import ConnectionClosed
from aioapns.exceptions import ConnectionError as CouldNotConnect
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from hpack import NeverIndexedHeaderTuple
from hyperframe.frame import Frame, GoAwayFrame
from jwt.utils import base64url_encode, der_to_raw_signature

PING_S, PONG_S = 60.0, 10.0
"""How often a connection is pinged, and how long the answer may take."""

CONNECT_S = 5.0
"""How long it may take to connect, TLS and the server's settings included."""

MOST_CONNECTIONS = 4
"""To one host. Each takes 1,000 pushes at a time once it is authorized, but only one before."""

MOST_BODY_BYTES = 16_384
"""Of an answer; an error has some 100."""

TOKEN_REST_S, TOKEN_LIFE_S, TOKEN_LEAST_S = 2 * 60, 30 * 60, 20 * 60
"""How old a provider token is when it is used first, since clocks differ; after how long the next one is issued; how
long a process uses its first one at least. So none is older than 52 minutes: APNs takes it for 60, and a new one every
20 at most ("Establishing a token-based connection to APNs")."""

# Its errors are raised besides; the rest is chatter for each connection.
logging.getLogger("aioapns").setLevel(logging.CRITICAL)


class ProviderToken(AuthorizationHeaderProvider):
    """The JWT that says who we are: one for all connections of all processes. `clock`: seconds since the epoch.

    APNs wants one for a team, and refuses new ones that come too often. So nothing in it is chance: it is issued at
    times that follow from the clock alone, and signed as RFC 6979 says; whoever has the key makes the same bytes. And
    a process that has just begun does not go on to the next one before its time.
    """

    def __init__(
        self, key: EllipticCurvePrivateKey, *, key_id: str, team_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._key_id = key_id
        self._team_id = team_id
        self._clock = clock
        self._issued_s = -1
        self._used_s = -math.inf
        self._header = ""

    def get_header(self) -> str:
        """The `authorization` header; another every `TOKEN_LIFE_S`, but for the first."""
        now_s = self._clock()
        issued_s = int((now_s - TOKEN_REST_S) // TOKEN_LIFE_S * TOKEN_LIFE_S)
        if issued_s != self._issued_s and not 0 <= now_s - self._used_s < TOKEN_LEAST_S:
            self._issued_s, self._used_s, self._header = issued_s, now_s, f"bearer {self._signed(issued_s)}"
        return self._header

    def _signed(self, issued_s: int) -> str:
        header = {"alg": "ES256", "kid": self._key_id, "typ": "JWT"}
        claims = {"iss": self._team_id, "iat": issued_s}
        text = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(text, ECDSA(SHA256(), deterministic_signing=True))
        return (text + b"." + base64url_encode(der_to_raw_signature(signature, self._key.curve))).decode()


class Answer:
    """What APNs answered: the HTTP status, its headers, and the body, whatever that is."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""


class _Stream:
    """A request under way."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if self.answer is None:
            self.fail("no answer")
        elif not self.done.done():
            self.done.set_result(self.answer)

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionClosed(reason))


class _H2Connection(H2Connection):
    """h2 4.4 takes a GOAWAY for the end of all reading; the streams that it names are still answered (RFC 9113, section
    6.8)."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        before = self.state_machine.state
        received: tuple[list[Frame], list[Event]] = super()._receive_goaway_frame(frame)
        self.state_machine.state = before
        return received


class ApnsConnection(APNsTLSClientProtocol):
    """One connection. `authority`: host and port, as requests name them."""

    def __init__(
        self,
        authority: str,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        on_connection_lost: Callable[[Any], Never],  # it returns, whatever aioapns says
        token: AuthorizationHeaderProvider | None,
    ) -> None:
        super().__init__(topic, loop, on_connection_lost, token)
        self.conn = _H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.ready = asyncio.Event()
        """Set once the server has said how many streams it takes, or the connection is gone."""
        self._authority = authority
        self._streams: dict[int, _Stream] = {}
        self._room = asyncio.Event()
        self._leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._ponged = True

    def refresh_inactivity_timer(self) -> None:
        """Connections are kept (aioapns calls this)."""

    @property
    def is_busy(self) -> bool:
        """Whether it takes no request now."""
        return self._leaving or len(self._streams) >= self.conn.remote_settings.max_concurrent_streams

    async def post(self, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """One request and its answer. Raises ConnectionClosed. May be cancelled; the others do not notice."""
        await self._until_room(len(body))
        stream_id, stream = 0, _Stream()
        try:
            stream_id = self.conn.get_next_available_stream_id()
            self._streams[stream_id] = stream
            self.conn.send_headers(stream_id, self._request(path, headers))
            self.conn.send_data(stream_id, body, end_stream=True)
            self.flush()
            return await stream.done
        except H2Error as error:
            self.close()
            raise ConnectionClosed(type(error).__name__) from error
        finally:
            if stream_id in self._streams:
                self._reset(stream_id)

    def _request(self, path: str, headers: Sequence[tuple[str, str]]) -> list[Any]:
        """What differs for each request is kept out of the compression table, which it would fill in vain."""
        request = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self._authority),
            NeverIndexedHeaderTuple(":path", path),
            ("apns-topic", self.apns_topic),
            *headers,
        ]
        if self.auth_provider is not None:
            request.append(("authorization", self.auth_provider.get_header()))
        return request

    async def _until_room(self, size: int) -> None:
        """Wait until the server takes another request with a body of that size."""
        while self.is_busy or self.conn.outbound_flow_control_window < size:
            if self._leaving:
                raise ConnectionClosed("the connection is closing")
            self._room.clear()
            await self._room.wait()

    def _reset(self, stream_id: int) -> None:
        """Nobody waits for its answer any more."""
        with contextlib.suppress(H2Error):  # it has ended just now
            self.conn.reset_stream(stream_id, ErrorCodes.CANCEL)
            self.flush()
        self._end(stream_id)

    def _end(self, stream_id: int) -> _Stream:
        self._room.set()
        stream = self._streams.pop(stream_id)
        if self._leaving and not self._streams:
            self.close()
        return stream

    def flush(self) -> None:
        """Write what h2 has to say."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(self.conn.data_to_send())

    # --- What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP and TLS are there (asyncio calls this)."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(PING_S, self._ping)

    def data_received(self, data: bytes) -> None:
        """Bytes from the server (asyncio calls this)."""
        try:
            for event in self.conn.receive_data(data):
                self._received(event)
        except H2Error:
            self.abort()
            return
        self.flush()

    def _received(self, event: Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        match event:
            case ResponseReceived(headers=headers) if stream is not None and headers is not None:
                fields = dict(headers)
                stream.answer = Answer(int(fields[b":status"]), fields)
            case DataReceived():
                self._take(event, stream)
            case StreamEnded() if stream is not None:
                self._end(event.stream_id).end()
            case StreamReset() if stream is not None:
                self._end(event.stream_id).fail(f"the request was reset ({event.error_code})")
            case RemoteSettingsChanged():
                self.ready.set()
                self._room.set()
            case WindowUpdated():
                self._room.set()
            case PingAckReceived():
                self._ponged = True
            case ConnectionTerminated():
                self._on_goaway(event.last_stream_id or 0)
            case _:
                pass

    def _take(self, event: DataReceived, stream: _Stream | None) -> None:
        if event.flow_controlled_length:
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if stream is not None and stream.answer is not None and len(stream.answer.body) < MOST_BODY_BYTES:
            stream.answer.body += event.data

    def _on_goaway(self, last: int) -> None:
        """Begin nothing more here; what the server will still answer is waited for."""
        self._leaving = True
        self._room.set()
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last]:
            self._end(stream_id).fail("the server goes away")
        if not self._streams:
            self.close()

    # --- Its end

    def _ping(self) -> None:
        self._ponged = False
        self.conn.ping(b"gateway.")
        self.flush()
        self._timer = self.loop.call_later(PONG_S, self._check_pong)

    def _check_pong(self) -> None:
        if self._ponged:
            self._timer = self.loop.call_later(PING_S - PONG_S, self._ping)
        else:
            self.abort()

    def close(self) -> None:
        """Send what is to be sent, and end it."""
        self._leaving = True
        self._room.set()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End it without a word."""
        self._leaving = True
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """TCP is gone (asyncio calls this)."""
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()
        self.ready.set()
        self._room.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail("the connection was lost")
        super().connection_lost(exc)


class ApnsPool(APNsBaseConnectionPool):
    """The connections to one of APNs' hosts. `port`: 443 is Apple's. Made within a running loop."""

    def __init__(
        self, host: str, port: int, *, topic: str, ssl_context: ssl.SSLContext, token: ProviderToken | None
    ) -> None:
        super().__init__(topic=topic, max_connections=MOST_CONNECTIONS)
        self._host = host
        self._port = port
        self._topic = topic
        self._token = token
        self.ssl_context = ssl_context

    async def post(self, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """One request and its answer. Raises ConnectionClosed and CouldNotConnect, and tries nothing twice."""
        connection = await self.acquire()
        assert isinstance(connection, ApnsConnection)  # noqa: S101 - for the type
        return await connection.post(path, headers, body)

    async def create_connection(self) -> ApnsConnection:
        """A connection that can be used (aioapns calls this). Raises OSError and TimeoutError."""
        factory = partial(
            ApnsConnection,
            self._host if self._port == 443 else f"{self._host}:{self._port}",
            self._topic,
            self.loop,
            self.discard_connection,  # type: ignore[arg-type]
            self._token,
        )
        connection: ApnsConnection | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self.loop.create_connection(factory, self._host, self._port, ssl=self.ssl_context)
                await connection.ready.wait()
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        return connection

    def discard_connection(self, connection: APNsBaseClientProtocol) -> None:
        """It is gone (aioapns calls this; it may never have come into use)."""
        if connection in self.connections:
            self.connections.remove(connection)


__all__ = ["Answer", "ApnsPool", "ConnectionClosed", "CouldNotConnect", "ProviderToken"]

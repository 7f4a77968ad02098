"""A connection to a push provider: HTTP/2 by h2, requests beside each other, each of which may be given up.

The clients that there are cannot be used under a deadline:

* **httpx** (httpcore 1.0, below firebase-admin): a request that is cancelled stays open for h2, so that a hundred of
  them end all sending, and one that is cancelled while it writes breaks TLS for all the others (httpcore, issue 1022).
  It notices a connection that was cut only by losing the next request to it.
* **aioapns 4.0**: a request that is cancelled ends the connection, and all under way on it, when its answer comes; so
  does a body that is not JSON. RST_STREAM or an error without a body is waited for for ever, DATA is never
  acknowledged, more than the peer's window fails, a GOAWAY cuts off what is still to be answered, and a connection is
  closed after ten seconds of silence.

Here nothing is awaited between a request and its frames, so cancelling one does nothing to the others; and what comes
is read at once, so a connection that has ended is not used again. What is mended of h2 and hpack:

* **GOAWAY** ends all reading in h2 4.4 (issue 1181), though the requests that it names are still answered (RFC 9113,
  section 6.8), and Google's servers send one every hour: `_H2Connection`. It can go with that issue.
* **hpack 4.2 spends most of a request on compressing it**, and writes its headers, tokens included, to its log at
  DEBUG: `_Literal`. It can go once hpack does neither.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hpack.hpack import encode_integer
from hyperframe.frame import Frame, GoAwayFrame

SILENCE_S = 8.0
"""A connection on which nothing has come for so long since a request or a ping is given up. Less than the deadline of a
push, so that it is known before the next one."""

MOST_BODY_BYTES = 65_536
"""Of an answer; the providers' have some hundred."""

_CONFIG = H2Configuration(
    client_side=True,
    header_encoding=None,
    validate_outbound_headers=False,  # they are our own, and
    normalize_outbound_headers=False,  # in lower case
)

Header = tuple[bytes, bytes]


class Answer(NamedTuple):
    """What was answered, whatever that is. `headers`: names in lower case, the last of each."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Lost(Exception):
    """There will be no answer. `again`: the server has not processed the request, or the connection was cut though it
    had worked before, as servers cut the idle ones: it should be tried once more, on another."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _H2Connection(H2Connection):
    """h2 4.4 takes a GOAWAY for the end of all reading."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        before = self.state_machine.state
        received: tuple[list[Frame], list[Event]] = super()._receive_goaway_frame(frame)
        self.state_machine.state = before
        return received


class _Literal(Encoder):
    """Writes headers as they are. They hardly ever change, so neither do the bytes (RFC 7541, section 6.2.3)."""

    def __init__(self) -> None:
        super().__init__()
        self._headers: list[Header] = []
        self._block = b""

    def encode(self, headers: Iterable[Header], huffman: bool = True) -> bytes:  # type: ignore[override]  # noqa: ARG002
        """The block for `headers`: its own table is of size 0, whatever the server offers, and all are literals that
        nobody is to remember."""
        headers = list(headers)
        if headers != self._headers:
            self._block = b"\x20" + b"".join(b"\x10" + _sized(name) + _sized(value) for name, value in headers)
            self._headers = headers
        return self._block


def _sized(text: bytes) -> bytes:
    return bytes(encode_integer(len(text), 7)) + text


class _Request:
    """A request that is not answered yet. `stream_id`: 0 until it has begun; `unsent`: what of its body is still to be
    sent."""

    __slots__ = ("done", "headers", "parts", "response", "size", "status", "stream_id", "unsent")

    def __init__(self, headers: Sequence[Header], body: bytes) -> None:
        self.headers = headers
        self.unsent = body
        self.stream_id = 0
        self.status = 0
        self.response: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.size = 0
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def take(self, part: bytes) -> bool:
        """One more part of the answer's body; False if that is too long."""
        self.parts.append(part)
        self.size += len(part)
        return self.size <= MOST_BODY_BYTES

    def end(self) -> None:
        """All of it has come."""
        if not self.done.done():
            self.done.set_result(Answer(self.status, self.response, b"".join(self.parts)))

    def fail(self, reason: str, *, again: bool = False) -> None:
        """It will not come."""
        if not self.done.done():
            self.done.set_exception(Lost(reason, again=again))


class Connection(asyncio.Protocol):
    """One connection. `gone`: called once TCP is. `ping_s`: how often it is pinged; None: never."""

    def __init__(self, gone: Callable[["Connection"], None], *, ping_s: float | None = None) -> None:
        self.ready = asyncio.Event()
        """Set once the server has said how many requests it takes at once, or the connection is lost."""
        self.closed = asyncio.Event()
        self.leaving = False
        """Whether it takes no more requests."""
        self._gone = gone
        self._ping_s = ping_s
        self._pinging: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._h2 = _H2Connection(_CONFIG)
        self._h2.encoder = _Literal()
        self._requests: dict[int, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._unsent: dict[int, _Request] = {}
        self.why = "the connection was lost"
        self._worked = False
        self._asked_s: float | None = None
        """Since when nothing has come, though something was asked."""
        self._watch: asyncio.TimerHandle | None = None

    # --- Asking

    @property
    def connected(self) -> bool:
        """Whether there is TCP to end."""
        return self._transport is not None

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return self.ready.is_set() and not self.leaving

    @property
    def load(self) -> int:
        """How many requests it has."""
        return len(self._requests) + len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more would have to wait."""
        return self.load >= self._h2.remote_settings.max_concurrent_streams

    async def post(self, headers: Sequence[Header], body: bytes) -> Answer:
        """One request and its answer. Raises Lost. May be cancelled; the others do not notice."""
        request = _Request(headers, body)
        if self.leaving:
            raise Lost(self.why, again=True)
        self._waiting.append(request)
        self._begin_waiting()
        self._flush()
        try:
            return await request.done
        finally:
            if request.done.cancelled():
                self._give_up(request)

    def _begin_waiting(self) -> None:
        try:
            while self._waiting and not self._unsent and self._has_stream():
                self._begin(self._waiting[0])
                self._waiting.popleft()
        except H2Error as error:  # such as that there are no more numbers for streams
            self._abort(f"no request can be begun ({type(error).__name__})")

    def _has_stream(self) -> bool:
        return not self.leaving and len(self._requests) < self._h2.remote_settings.max_concurrent_streams

    def _begin(self, request: _Request) -> None:
        request.stream_id = self._h2.get_next_available_stream_id()
        self._requests[request.stream_id] = request
        self._h2.send_headers(request.stream_id, request.headers)
        self._send(request)
        self._listen()

    def _send(self, request: _Request) -> None:
        """Send of its body what the windows have room for."""
        while request.unsent:
            room = min(self._h2.local_flow_control_window(request.stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._unsent[request.stream_id] = request
                return
            part, request.unsent = request.unsent[:room], request.unsent[room:]
            self._h2.send_data(request.stream_id, part, end_stream=not request.unsent)
        self._unsent.pop(request.stream_id, None)

    def _give_up(self, request: _Request) -> None:
        """Nobody waits for its answer any more."""
        if request.stream_id in self._requests:
            self._reset(request.stream_id)
        elif request in self._waiting:
            self._waiting.remove(request)
        self._begin_waiting()
        self._flush()

    def _reset(self, stream_id: int) -> _Request:
        with contextlib.suppress(H2Error):  # it has ended just now
            self._h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        return self._end(stream_id)

    def _end(self, stream_id: int) -> _Request:
        request = self._requests.pop(stream_id)
        self._unsent.pop(stream_id, None)
        if self.leaving and not self._requests:
            self.close()
        return request

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and (data := self._h2.data_to_send()):
            self._transport.write(data)

    # --- Hearing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP and TLS are there (asyncio calls this)."""
        self._transport = transport  # type: ignore[assignment]
        if self.leaving:  # given up meanwhile
            self.abort()
            return
        tls = transport.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != "h2":
            self._abort("the server does not speak HTTP/2")
            return
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.ENABLE_PUSH: 0})
        self._h2.initiate_connection()
        self._flush()
        self._ping_later()

    def data_received(self, data: bytes) -> None:
        """Bytes from the server (asyncio calls this)."""
        self._asked_s = None
        try:
            for event in self._h2.receive_data(data):
                self._received(event)
        except (H2Error, ValueError) as error:
            self._flush()  # h2 has written a GOAWAY that says why
            self._abort(f"the server does not keep to HTTP/2 ({type(error).__name__})")
            return
        self._begin_waiting()
        self._flush()

    def _received(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self.ready.set()
                self._send_unsent()
            case WindowUpdated():
                self._send_unsent()
            case ConnectionTerminated():
                self._on_goaway(event.last_stream_id or 0)
            case ResponseReceived() | DataReceived() | StreamEnded() | StreamReset():
                self._on_stream(event)
            case _:
                pass

    def _on_stream(self, event: ResponseReceived | DataReceived | StreamEnded | StreamReset) -> None:
        if isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        request = self._requests.get(event.stream_id)
        if request is None:
            return  # it was given up
        match event:
            case ResponseReceived():
                request.response = dict(event.headers or ())
                request.status = int(request.response.pop(b":status"))
            case DataReceived():
                if not request.take(event.data or b""):
                    self._reset(event.stream_id).fail("the answer is too long")
            case StreamEnded():
                self._worked = True
                (self._reset if request.unsent else self._end)(event.stream_id).end()
            case StreamReset():
                refused = event.error_code == ErrorCodes.REFUSED_STREAM
                self._end(event.stream_id).fail(f"the request was reset ({event.error_code})", again=refused)

    def _send_unsent(self) -> None:
        for request in list(self._unsent.values()):
            self._send(request)

    def _on_goaway(self, last: int) -> None:
        """Begin nothing more here; what the server will still answer is waited for."""
        self.why = "the server goes away"
        self.leaving = True
        for stream_id in [stream_id for stream_id in self._requests if stream_id > last]:
            self._end(stream_id).fail(self.why, again=True)
        self._fail_waiting()
        if not self._requests:
            self.close()

    def _fail_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft().fail(self.why, again=True)

    # --- Silence

    def _ping_later(self) -> None:
        if self._ping_s is not None:
            self._pinging = self._loop.call_later(self._ping_s, self._ping)

    def _ping(self) -> None:
        if self.leaving:
            return
        self._h2.ping(b"gateway.")
        self._listen()
        self._flush()
        self._ping_later()

    def _listen(self) -> None:
        """Something has been asked: notice if nothing comes."""
        if self._asked_s is None:
            self._asked_s = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_at(self._asked_s + SILENCE_S, self._check)

    def _check(self) -> None:
        self._watch = None
        if self._asked_s is None:
            return
        if self._loop.time() - self._asked_s >= SILENCE_S:
            self._worked = False  # it took too long to begin once more
            self._abort("the server is silent")
        else:
            self._watch = self._loop.call_at(self._asked_s + SILENCE_S, self._check)

    # --- Its end

    def close(self) -> None:
        """Begin nothing more, and end it."""
        self.leaving = True
        if self._transport is not None:
            self._transport.close()

    def _abort(self, why: str) -> None:
        self.why = why
        self.abort()

    def abort(self) -> None:
        """End it without a word."""
        self.leaving = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """TCP is gone (asyncio calls this)."""
        self.leaving = True
        for timer in (self._watch, self._pinging):
            if timer is not None:
                timer.cancel()
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.fail(self.why, again=self._worked)
        self._fail_waiting()
        self.ready.set()
        self.closed.set()
        self._gone(self)

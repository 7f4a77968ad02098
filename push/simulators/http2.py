"""One HTTP/2 connection of a simulator (RFC 9113): h2 reads and writes the frames, this decides what is sent.

No task belongs to it. What may wait in it is bounded: bodies by `MAX_BODY_BYTES`, requests by `Peer.streams`; nothing
is read while the client does not read.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, assert_never

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame, SettingsFrame

from push.simulators.answers import (
    ENHANCE_YOUR_CALM,
    REFUSED_STREAM,
    Answer,
    Cut,
    GoAway,
    Late,
    Reaction,
    Reset,
    Silence,
)
from push.simulators.serving import MAX_BODY_BYTES, Listener, Peer, Request

ANY_STREAM: Final = 2**31 - 1
"""The highest number of a stream, and the most that there may be at once."""


class _Stream:
    """A request that is not answered to its end yet."""

    __slots__ = ("body", "headers", "late", "unsent")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.headers = [(_text(name), _text(value)) for name, value in headers]
        self.body = bytearray()
        self.late: asyncio.TimerHandle | None = None
        self.unsent = b""
        """What of the answer's body the client's windows have no room for."""

    def request(self, came_s: float) -> Request:
        """The whole of it; h2 has seen to it that the pseudo-headers are there."""
        pseudo = dict(header for header in self.headers if header[0].startswith(":"))
        headers = tuple(header for header in self.headers if not header[0].startswith(":"))
        return Request(pseudo[":method"], pseudo[":path"], headers, bytes(self.body), came_s)

    def stop(self) -> None:
        if self.late is not None:
            self.late.cancel()


class Http2Connection(asyncio.Protocol):
    """Requests in, reactions out, until TCP is gone."""

    def __init__(self, transport: asyncio.Transport, peer: Peer, listener: Listener) -> None:
        self._transport = transport
        self._peer = peer
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, _Stream] = {}
        self._newest = 0
        self._last = ANY_STREAM
        """The newest request that is processed, once either side has said GOAWAY."""
        self._said = -1
        """How many requests the client was told last that it may have under way."""
        self._unconfirmed: list[int] = []
        """What of that it has not acknowledged, and"""
        self._known = ANY_STREAM
        """what it has acknowledged last."""
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        # At a limit that h2 knows of, it would end the whole connection. So it is told of none, and writes no SETTINGS.
        self._h2.local_settings = Settings(client=False)
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()
        self._tell_limit()
        listener.add(self)

    # --- Receiving

    def data_received(self, data: bytes) -> None:
        """Bytes from the client (asyncio calls this)."""
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self._close()  # h2 has written a GOAWAY that says why
            return
        if any(isinstance(event, ConnectionTerminated) for event in events):
            # h2 would send nothing any more, but a client that leaves still waits for its answers.
            self._h2.state_machine.state = ConnectionState.SERVER_OPEN
        for event in events:
            if self._transport.is_closing():
                return
            self._happened(event)
        self._flush()

    def _happened(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._opened(event)
            case DataReceived():
                self._data_came(event)
            case StreamEnded():
                self._completed(event.stream_id)
            case StreamReset():
                self._drop(event.stream_id)
            case WindowUpdated() | RemoteSettingsChanged():
                self._send_waiting()
            case PingReceived():
                self._listener.service.pinged(self._peer)
            case ConnectionTerminated():
                self._last = min(self._last, self._newest)
                self._close_if_left()
            case SettingsAcknowledged():
                self._known = self._unconfirmed.pop(0) if self._unconfirmed else self._known

    def _opened(self, event: RequestReceived) -> None:
        if event.stream_id > self._last:
            return  # GOAWAY has said that it is not processed
        self._newest = event.stream_id
        if len(self._streams) >= self._peer.streams:
            if len(self._streams) >= self._known:
                self._listener.service.overran(self._peer)
            self._react(event.stream_id, Reset(REFUSED_STREAM))
        else:
            self._streams[event.stream_id] = _Stream(event.headers)

    def _data_came(self, event: DataReceived) -> None:
        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.body += event.data
            if len(stream.body) > MAX_BODY_BYTES:
                self._react(event.stream_id, Reset(ENHANCE_YOUR_CALM))

    def _completed(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            reaction = self._listener.service.came(stream.request(self._loop.time()), self._peer)
            self._tell_limit()
            self._react(stream_id, reaction)

    # --- Reacting

    def _react(self, stream_id: int, reaction: Reaction | None) -> None:
        if self._given_up(stream_id):
            self._drop(stream_id)
        else:
            self._carry_out(stream_id, reaction)

    def _given_up(self, stream_id: int) -> bool:
        """Whether the client wants no answer any more: h2 knows that before its event has its turn."""
        stream = self._h2.streams.get(stream_id)
        return stream is None or stream.closed

    def _carry_out(self, stream_id: int, reaction: Reaction | None) -> None:
        match reaction:
            case Answer():
                self._answer(stream_id, reaction)
            case Late(after_s, then):
                self._streams[stream_id].late = self._loop.call_later(after_s, self._react_late, stream_id, then)
            case Reset(code):
                self._h2.reset_stream(stream_id, code)
                self._drop(stream_id)
            case GoAway(reason):
                self._leave(max(0, stream_id - 2), reason)
            case Cut():
                self.cut()
            case Silence() | None:
                pass
            case _:
                assert_never(reaction)

    def _react_late(self, stream_id: int, reaction: Reaction | None) -> None:
        self._react(stream_id, reaction)
        self._flush()

    def _answer(self, stream_id: int, answer: Answer) -> None:
        headers = [(":status", str(answer.status)), *answer.headers]
        self._h2.send_headers(stream_id, headers, end_stream=not answer.body)
        if answer.body:
            self._streams[stream_id].unsent = answer.body
            self._send(stream_id)
        else:
            self._drop(stream_id)

    def _send_waiting(self) -> None:
        for stream_id in [key for key, stream in self._streams.items() if stream.unsent]:
            if not self._given_up(stream_id):
                self._send(stream_id)

    def _send(self, stream_id: int) -> None:
        """Send of an answer's body what the client's windows have room for."""
        stream = self._streams[stream_id]
        while stream.unsent:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            part, stream.unsent = stream.unsent[:room], stream.unsent[room:]
            self._h2.send_data(stream_id, part, end_stream=not stream.unsent)
        self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        """Forget a request: it is answered, or nobody waits for that any more."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.stop()
            self._close_if_left()

    # --- Ending

    def go_away(self, reason: bytes) -> None:
        """Process no request that is not under way; close the connection once those are answered."""
        self._leave(self._newest, reason)

    def _leave(self, last: int, reason: bytes) -> None:
        self._last = min(self._last, last)
        # Past its own GOAWAY h2 would send nothing any more, so it is not told.
        self._write(GoAwayFrame(last_stream_id=self._last, additional_data=reason))
        for stream_id in [key for key in self._streams if key > self._last]:
            self._streams.pop(stream_id).stop()
        self._close_if_left()

    def _close_if_left(self) -> None:
        if self._last != ANY_STREAM and not self._streams:
            self._close()

    def _close(self) -> None:
        """Nothing is answered any more; what was written still goes out."""
        self._stop()
        self._flush()
        self._transport.close()

    def cut(self) -> None:
        """Cut TCP, whatever is still to be sent."""
        self._stop()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """TCP is gone (asyncio calls this)."""
        self._stop()
        self._listener.remove(self)

    def _stop(self) -> None:
        for stream in self._streams.values():
            stream.stop()
        self._streams.clear()

    # --- Writing

    def allow(self, streams: int) -> None:
        """Let the client have so many requests under way; those that are go on."""
        self._peer.streams = streams
        self._tell_limit()

    def _tell_limit(self) -> None:
        """Say how many requests the client may have under way, if that has changed."""
        if self._said != self._peer.streams:
            self._said = self._peer.streams
            self._unconfirmed.append(self._said)
            self._write(SettingsFrame(settings={SettingCodes.MAX_CONCURRENT_STREAMS: self._said}))

    def _write(self, frame: Frame) -> None:
        """Send a frame that h2 knows nothing of, behind those that it has written."""
        self._flush()
        self._transport.write(frame.serialize())

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def pause_writing(self) -> None:
        """The client does not read (asyncio calls this): nor is it read from, for what it says may want an answer."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads (asyncio calls this)."""
        self._transport.resume_reading()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

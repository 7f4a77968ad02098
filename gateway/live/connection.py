"""One WebSocket, from the moment a client asks for it until TCP is gone: framing, flow control, keepalive, closing.

What travels over it is its session's matter. No task, no queue and no timer belongs to it: packets are written
straight to the transport, at most one waits while the peer does not read, and the process's wheel gives it its turns.
"""

import asyncio
import random
from typing import Final, Protocol

from gateway.live.closing import CloseCode
from gateway.live.frames import (
    Binary,
    Closed,
    Event,
    Failed,
    Opcode,
    Parser,
    Ping,
    Pong,
    Text,
    close_frame,
    frame,
    text_frame,
)
from gateway.live.wheel import Wheel

MESSAGE_BYTES = 16 * 1024
"""The longest message that is read, its fragments together."""

CLOSE_S = 5.0
"""How long a peer may take to answer a close frame before TCP is cut."""

SILENT_CLOSE_S = 1.0
"""The same for a peer that does not answer pings: it will hardly answer that."""

LOST = 1006
"""What is noted for a socket that ended without a close frame: RFC 6455, section 7.4.1."""

_PING = frame(Opcode.PING, b"")


class Session(Protocol):
    """What goes on over an open socket. Its methods are called in the event loop; they must not block or raise."""

    def frames_came(self, frames: int) -> None:
        """So many frames came at once, of whatever kind. Where that is too much, it closes the socket."""
        ...

    def text_came(self, text: bytes) -> None:
        """A text message came; it is UTF-8."""
        ...

    def time_left_s(self) -> float:
        """In how many seconds its authorization ends."""
        ...

    def ended(self, code: int) -> None:
        """The socket is gone; the code with which it was closed, by whichever side."""
        ...


class _State:
    """Where a socket is on its way. Plain numbers, which every packet compares."""

    OPENING: Final = 0
    OPEN: Final = 1
    CLOSING: Final = 2
    """Our close frame is out."""
    DEAF: Final = 3
    """Nothing more is said, and whatever the peer says is ignored."""
    GONE: Final = 4


class Keepalive:
    """What all sockets of a process share: they are pinged every `ping_s`, given up `pong_s` after it, and counted."""

    __slots__ = ("connections", "ping_s", "pong_s", "wheel")

    def __init__(self, wheel: Wheel, *, ping_s: float, pong_s: float) -> None:
        self.wheel = wheel
        self.ping_s = ping_s
        self.pong_s = pong_s
        self.connections = 0
        """How many there are, from the moment they are asked for until TCP is gone."""


class Connection(asyncio.Protocol):
    """A socket on its way through its states. Until `open` it only keeps the newest packet that it is offered.

    `early`: what the peer sent behind its handshake without waiting for the answer. It should have waited (RFC 6455,
    section 4.1), but no harm is done.
    """

    __slots__ = (
        "_busy",
        "_code",
        "_held",
        "_keepalive",
        "_next_s",
        "_parser",
        "_parting",
        "_pinged",
        "_session",
        "_state",
        "_transport",
        "_waiting",
        "slot",
        "version",
    )

    def __init__(self, transport: asyncio.Transport, keepalive: Keepalive, *, early: bytes = b"") -> None:
        self._transport = transport
        self._keepalive = keepalive
        self._parser = Parser(MESSAGE_BYTES, early=early)
        self._session: Session | None = None
        self._state = _State.OPENING
        self._held = True
        self._busy = True
        self._waiting: bytes | None = None
        self._parting: tuple[int, str] | None = None
        self._pinged = False
        self._next_s = 0.0
        self._code = LOST
        self.slot = -1
        self.version = -1
        """Of the newest packet that it was offered, written or waiting."""
        keepalive.connections += 1
        transport.set_write_buffer_limits(high=0)
        transport.pause_reading()

    # --- Opening

    def open(self, session: Session, answer: bytes, *, version: int, packet: bytes | None) -> bool:
        """Answer the handshake, then send the packet of `version`, where there is one and no newer one has been
        offered meanwhile; whether the socket is open now: False where the peer has gone."""
        if self._state != _State.OPENING:
            return False
        self._session = session
        self._state = _State.OPEN
        self._held = False
        waiting, self._waiting = self._waiting, None
        if version > self.version:
            self.version, waiting = version, packet
        self._transport.write(answer + waiting if waiting else answer)
        self.set_busy(busy=False)
        if self._parting is not None:
            self.close(*self._parting)
        self.data_received(b"")  # what came early
        # Not all of those that come back after a restart are to be pinged at the same moment ever after.
        self._next_s = self._now() + self._keepalive.ping_s * random.uniform(0.5, 1)
        if self._state == _State.OPEN:
            self._keepalive.wheel.schedule(self, self._delay_s(session))
        return True

    def refuse(self, answer: bytes) -> None:
        """Answer the handshake with an HTTP error, and end the connection. Where it has opened already, by a fault of
        ours in between, it is closed."""
        if self._state == _State.OPENING:
            self._state = _State.DEAF
            self._transport.write(answer)
            self._end_of_writing()
        else:
            self.close(CloseCode.FAULT, "something is wrong on our side")

    # --- Sending

    def offer(self, version: int, packet: bytes) -> bool:
        """Send a packet, framed already, if it is newer than what was sent; whether one that waited was dropped for it.

        While the peer does not read the newest one waits: never more than one.
        """
        if version <= self.version:
            return False
        self.version = version
        if self._held:
            skipped = self._waiting is not None
            self._waiting = packet
            return skipped
        self._transport.write(packet)
        return False

    def answer(self, text: bytes) -> None:
        """Send a message that is no packet. Bounded by what the peer said: nothing is read while it does not read."""
        if self._state == _State.OPEN:
            self._transport.write(text_frame(text))

    def pause_writing(self) -> None:
        """The peer does not read fast enough (asyncio calls this)."""
        self._held = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer has taken everything in (asyncio calls this)."""
        if self._state == _State.OPEN:
            self._held = False
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._transport.write(waiting)
        self._read_on()

    def set_busy(self, *, busy: bool) -> None:
        """While its session is `busy` nothing more is read."""
        self._busy = busy
        if busy and self._state == _State.OPEN:
            self._transport.pause_reading()
        else:
            self._read_on()

    def _read_on(self) -> None:
        if self._state != _State.OPEN or not (self._held or self._busy):
            self._transport.resume_reading()

    # --- Receiving

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer (asyncio calls this)."""
        if not _State.OPEN <= self._state <= _State.CLOSING:
            return
        before = self._parser.frames
        events = self._parser.feed(data)
        frames = self._parser.frames - before
        if self._pinged and any(isinstance(event, Pong) for event in events):
            self._pinged = False
            self._next_s += self._keepalive.ping_s - self._keepalive.pong_s
            frames -= 1  # it was asked for
        if frames and self._session is not None and self._state == _State.OPEN:
            self._session.frames_came(frames)
        pongs = bytearray()  # written together, and never more bytes than came
        for event in events:
            if isinstance(event, Ping):
                pongs += frame(Opcode.PONG, event.data)
            elif not isinstance(event, Pong):
                self._pong(pongs)
                self._received(event)
        self._pong(pongs)

    def _pong(self, pongs: bytearray) -> None:
        if pongs and self._state == _State.OPEN:
            self._transport.write(bytes(pongs))
        pongs.clear()

    def _received(self, event: Event) -> None:
        if isinstance(event, Text):
            if self._state == _State.OPEN and self._session is not None:
                self._session.text_came(event.data)
        elif isinstance(event, Binary):
            self.fail(CloseCode.NOT_TEXT, "text frames only")
        elif isinstance(event, Closed):
            self._peer_closed(event)
        elif isinstance(event, Failed):
            self.fail(event.code, event.reason)

    def _peer_closed(self, event: Closed) -> None:
        if self._state == _State.OPEN:
            self._code = event.code
            self._transport.write(frame(Opcode.CLOSE, event.data))
        self._state, self._held = _State.DEAF, True
        self._transport.close()
        self._keepalive.wheel.schedule(self, CLOSE_S)  # in case it does not read what is still to be sent

    # --- Closing

    def close(self, code: int, reason: str = "", *, within_s: float = CLOSE_S) -> None:
        """Send a close frame, unless one is out, and cut TCP where the peer has not answered in time. A socket that is
        about to open is closed then: only so does the peer learn why."""
        if self._state == _State.OPENING:
            self._parting = (code, reason)
        elif self._state == _State.OPEN:
            self._state = _State.CLOSING
            self._code = code
            self._held = True
            self._transport.write(close_frame(code, reason))
            self._read_on()  # for its answer
            self._keepalive.wheel.schedule(self, within_s)

    def fail(self, code: int, reason: str) -> None:
        """The peer has broken the protocol: close, and listen to it no more (RFC 6455, section 7.1.7)."""
        self.close(code, reason)
        if self._state == _State.CLOSING:
            self._state = _State.DEAF
            self._end_of_writing()

    def _end_of_writing(self) -> None:
        """End our side of TCP, and leave the other to the peer once it has read all that was sent: to close the socket
        while something is unread in it would take that from the peer (RFC 1122, section 4.2.2.13)."""
        self._transport.write_eof()
        self._transport.resume_reading()
        self._keepalive.wheel.schedule(self, CLOSE_S)

    def abort(self) -> None:
        """Cut TCP, whatever is still to be sent."""
        self._transport.abort()

    def eof_received(self) -> None:
        """The peer will send no more (asyncio calls this): so will we."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """TCP is gone (asyncio calls this)."""
        self._keepalive.connections -= 1
        self._state, self._held = _State.GONE, True
        self._waiting = None
        self._keepalive.wheel.cancel(self)
        session, self._session = self._session, None
        if session is not None:
            session.ended(self._code)

    # --- Time

    @property
    def gone(self) -> bool:
        """Whether TCP is gone, or going: nobody will hear what is said now."""
        return self._state == _State.GONE or self._transport.is_closing()

    def turn(self, now_s: float) -> float:
        """Ping, or give up; the wheel calls it."""
        if self._state != _State.OPEN or self._session is None:
            self.abort()
            return 0
        if self._session.time_left_s() <= 0:
            self.close(CloseCode.UNAUTHORIZED, "the token has expired")
            return 0
        if now_s >= self._next_s:
            if self._pinged and not self._busy:  # else its pong may be among what is not read
                self.close(CloseCode.SILENT, "no pong in time", within_s=SILENT_CLOSE_S)
                return 0
            if not self._pinged:
                self._pinged = True
                self._transport.write(_PING)
            self._next_s = now_s + self._keepalive.pong_s
        return self._delay_s(self._session)

    def time_has_changed(self) -> None:
        """Its session's authorization ends at another time now."""
        if self._state == _State.OPEN and self._session is not None:
            self._keepalive.wheel.schedule(self, self._delay_s(self._session))

    def _delay_s(self, session: Session) -> float:
        return max(0.001, min(self._next_s - self._now(), session.time_left_s()))

    def _now(self) -> float:
        return self._keepalive.wheel.now_s()

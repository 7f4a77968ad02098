"""A socket between a phone and a process: the TCP connection and its two ends.

The process's end is a transport as asyncio gives it to the real connection; the phone's is as much of `websockets`'
ClientConnection as the real client uses. `network.Line` makes and breaks them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING

from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from gateway.client.failures import problem

if TYPE_CHECKING:
    from tests.simulation.network import Line, Served

PING_S, PONG_S = 20.0, 20.0
"""A phone's own keepalive: the defaults of `websockets`."""

CLOSE_S = 5.0
"""How long a phone waits for the other side of a close."""

SOCKET_BUFFER = 4096
"""Bytes that are under way to a phone before its process notices that they are not read."""


class End(Enum):
    """How one end of TCP ends, as the other sees it."""

    FIN = "fin"
    RST = "rst"


class Wire:
    """One TCP connection: what goes in at one end comes out at the other, in order, later, or never."""

    def __init__(self, number: int, line: "Line", process: "Served", socket: "PhoneSocket") -> None:
        self.number = number
        self.line = line
        self.process = process
        self.socket = socket
        self.silent = False
        self.unread = 0
        """Bytes on their way to the phone that it has not read."""
        self.transport: SimulatedTransport | None = None
        self._scheduler = line.network.scheduler
        self._up_s = 0.0
        self._down_s = 0.0
        self._held_up: deque[Callable[[], None]] = deque()
        self._held_down: deque[Callable[[], None]] = deque()

    def ask(self, headers: list[tuple[bytes, bytes]], query: bytes, told: Callable[[], None]) -> None:
        """Ask for the upgrade."""
        self._up(lambda: self._upgrade(headers, query, told))

    def _upgrade(self, headers: list[tuple[bytes, bytes]], query: bytes, told: Callable[[], None]) -> None:
        process = self.process
        if process.loop.dead or process.out_s <= self._scheduler.now_s:
            self.down(End.RST)
            return
        process.wires[self.number] = self

        def upgrade() -> None:
            told()
            transport = self.transport = SimulatedTransport(self)
            protocol = process.door.upgrade(transport, query, headers, early=b"", room=True)
            transport.set_protocol(protocol)

        process.loop.post(upgrade)

    # --- Up: from the phone

    def up(self, data: bytes | End, text: bytes | None = None) -> None:
        """The phone sends something; `text` of the text frame that it is."""
        self._up(lambda: self._came(data, text))

    def _up(self, deliver: Callable[[], None]) -> None:
        network = self.line.network
        self._up_s = max(self._scheduler.now_s + network.latency_s(self.line.slow), self._up_s)
        self._scheduler.at(self._up_s, lambda: self._arrive_up(deliver))

    def _arrive_up(self, deliver: Callable[[], None]) -> None:
        if self.silent:
            return
        if not self.line.online or self._held_up:
            self._held_up.append(deliver)
        else:
            deliver()

    def _came(self, data: bytes | End, text: bytes | None) -> None:
        self.process.loop.post(self._receive, data, text)

    def _receive(self, data: bytes | End, text: bytes | None) -> None:
        if self.transport is not None:
            self.transport.received(data, text)

    # --- Down: to the phone

    def down(self, data: bytes | End) -> None:
        """The process sends something."""
        network = self.line.network
        if isinstance(data, bytes):
            self.unread += len(data)
        self._down_s = max(self._scheduler.now_s + network.latency_s(self.line.slow), self._down_s)
        self._scheduler.at(self._down_s, lambda: self._arrive_down(data))

    def _arrive_down(self, data: bytes | End) -> None:
        if self.silent:
            return
        socket = self.socket
        if not self.line.online or self._held_down or (self.line.stalled and data is not End.RST):
            self._held_down.append(lambda: socket.loop.post(socket.received, data))
        else:
            socket.loop.post(socket.received, data)

    def read(self, count: int) -> None:
        """The phone has read so many bytes."""
        self.unread -= count
        if self.transport is not None and self.transport.waits:
            self.process.loop.post(self.transport.drain)

    def release(self) -> None:
        """What was held comes through."""
        while self._held_up and self.line.online and not self.silent:
            self._held_up.popleft()()
        while self._held_down and self.line.online and not self.line.stalled and not self.silent:
            self._held_down.popleft()()

    # --- The end

    def reset_both(self) -> None:
        """It breaks, and both ends hear of it."""
        self.down(End.RST)
        self.up(End.RST)

    def server_died(self) -> None:
        """The process is gone, and its machine says so."""
        self.line.network.witness.socket_ended(self.number)
        self.transport = None
        self.down(End.RST)

    def phone_died(self) -> None:
        """The app is gone, and its phone says so where it can."""
        if self.line.online:
            self.up(End.RST)
        else:
            self.silent = True
        self.line.forget(self)

    def server_over(self) -> None:
        """The process's end is gone."""
        self.process.wires.pop(self.number, None)
        self.line.network.witness.socket_ended(self.number)


class SimulatedTransport(asyncio.Transport):
    """The process's end of a wire, as asyncio gives it to a protocol."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._loop = wire.process.loop
        self._witness = wire.line.network.witness
        self._frames = FrameReader(head=True)
        self._protocol: asyncio.Protocol | None = None
        self._buffer: deque[bytes] = deque()
        self._unread: deque[tuple[bytes | End, bytes | None]] = deque()
        self._paused = False
        self._reading = True
        self._closing = False
        self._lost = False
        self._eof = False
        self._eof_sent = False

    @property
    def waits(self) -> bool:
        """Whether something waits for the phone to read."""
        return bool(self._buffer)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._buffer))

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closing

    # --- Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._lost or self._eof or not data:
            return
        data = bytes(data)
        unanswered = not self._frames.answer
        frames = self._frames.feed(data)
        if unanswered and self._frames.answer.startswith(b"HTTP/1.1 101"):
            self._witness.socket_opened(self._wire.number)
        for opcode, payload in frames:
            if opcode == TEXT:
                self._witness.frame_left(self._wire.number, payload)
            elif opcode == CLOSE:
                self._witness.socket_closed(self._wire.number, int.from_bytes(payload[:2]))
        if self._wire.line.fragile and any(payload.startswith(b'{"type":"info"') for _, payload in frames):
            self._wire.line.fragile = False
            self._wire.reset_both()  # what was written is lost with it
            return
        if self._buffer or (self._wire.unread and self._wire.unread + len(data) > SOCKET_BUFFER):
            self._buffer.append(data)
            if not self._paused and self._protocol is not None:
                self._paused = True
                self._witness.socket_stalled(self._wire.number, stalled=True)
                self._protocol.pause_writing()
        else:
            self._wire.down(data)

    def drain(self) -> None:
        """The phone has read something: send on."""
        if self._lost:
            return
        wire = self._wire
        while self._buffer and (not wire.unread or wire.unread + len(self._buffer[0]) <= SOCKET_BUFFER):
            wire.down(self._buffer.popleft())
        if self._buffer:
            return
        if self._paused and self._protocol is not None:
            self._paused = False
            self._witness.socket_stalled(self._wire.number, stalled=False)
            self._protocol.resume_writing()
        if not self._buffer:
            if self._closing:
                self._loop.call_soon(self._connection_lost, None)
            elif self._eof:
                self._send_eof()

    def write_eof(self) -> None:
        if not self._eof and not self._closing:
            self._eof = True
            if not self._buffer:
                self._send_eof()

    def _send_eof(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self._wire.down(End.FIN)

    # --- Reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            if self._unread:
                self._loop.call_soon(self._read)

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def received(self, data: bytes | End, text: bytes | None) -> None:
        """Something has come from the phone."""
        if data is End.RST:
            if not self._lost:
                self._closing = True
                self._buffer.clear()
                self._connection_lost(ConnectionResetError("simulated"))
            return
        self._unread.append((data, text))
        self._read()

    def _read(self) -> None:
        while self._unread and self._reading and not self._closing and self._protocol is not None:
            data, text = self._unread.popleft()
            if isinstance(data, End):
                if not self._protocol.eof_received():
                    self.close()
                return
            if text is not None:
                self._witness.frame_came(self._wire.number, text)
            self._protocol.data_received(data)

    # --- The end

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._loop.call_soon(self._connection_lost, None)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._buffer.clear()
            self._loop.call_soon(self._connection_lost, None)
            self._wire.down(End.RST)

    def _connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._send_eof()
        if self._protocol is not None:
            self._protocol.connection_lost(error)
        self._wire.server_over()


TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class FrameReader:
    """The frames in what a gateway writes: never masked, never fragmented. `head`: an HTTP answer comes first."""

    def __init__(self, *, head: bool) -> None:
        self.answer = b""
        """The HTTP answer, its end included, once it is complete."""
        self._head = head
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What is complete with `data`."""
        data = self._rest + data if self._rest else data
        if self._head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return []
            self.answer, data, self._head = data[: end + 4], data[end + 4 :], False
        if not self.answer.startswith(b"HTTP/1.1 101") and self.answer:
            self._rest = data  # the body of a refusal
            return []
        frames, start = [], 0
        while len(data) >= start + 2:
            length, begin = data[start + 1], start + 2
            if length == 126:
                length, begin = int.from_bytes(data[start + 2 : start + 4]), start + 4
            elif length == 127:
                length, begin = int.from_bytes(data[start + 2 : start + 10]), start + 10
            if len(data) < begin + length or len(data) < begin:
                break
            frames.append((data[start] & 15, data[begin : begin + length]))
            start = begin + length
        self._rest = data[start:]
        return frames

    @property
    def rest(self) -> bytes:
        """What is not complete, or the body of a refusal."""
        return self._rest


def masked(opcode: int, payload: bytes) -> bytes:
    """A phone's frame, with a key of zeros."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8)
    return head + b"\0\0\0\0" + payload


class PhoneSocket:
    """A phone's end of a socket: as much of `websockets`' ClientConnection as the client uses."""

    def __init__(self, line: "Line") -> None:
        self.loop = line.loop
        self.wire: Wire | None = None
        self.opened: asyncio.Future[None] = line.loop.create_future()
        self.subprotocol: str | None = None
        self._line = line
        self._frames = FrameReader(head=True)
        self._messages: deque[str] = deque()
        self._stirred: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = line.loop.create_future()
        self._received_close: Close | None = None
        self._sent_close: Close | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = True

    # --- As `websockets` has it

    @property
    def transport(self) -> "PhoneSocket":
        """What has `abort`."""
        return self

    @property
    def close_code(self) -> int | None:
        """Of the gateway's close frame; 1006 where none came; None while it is open."""
        if not self._over.done():
            return None
        return 1006 if self._received_close is None else self._received_close.code

    @property
    def close_reason(self) -> str | None:
        """Likewise."""
        if not self._over.done():
            return None
        return "" if self._received_close is None else self._received_close.reason

    @property
    def is_open(self) -> bool:
        """Whether it has been opened, and has not ended."""
        return self.opened.done() and not self.opened.cancelled() and not self._over.done()

    async def recv(self) -> str:
        """The next text. Raises ConnectionClosed once there will be none."""
        while not self._messages:
            if self._over.done():
                raise self._closed()
            self._stirred = self.loop.create_future()
            await self._stirred
        return self._messages.popleft()

    def _closed(self) -> ConnectionClosedError:
        both = self._received_close is not None and self._sent_close is not None
        return ConnectionClosedError(self._received_close, self._sent_close, True if both else None)

    async def send(self, message: bytes, text: bool | None = None) -> None:
        """Send a text. Raises ConnectionClosed."""
        if self._over.done() or self._sent_close or self._received_close:
            await asyncio.shield(self._over)
            raise self._closed()
        self._send(TEXT, bytes(message))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it, and wait for the other side, but not for long."""
        if self._over.done():
            return
        self._send_close(Close(code, reason))
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(self._over)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cut TCP."""
        if self._over.done() or self._line.network.scheduler.stopped:
            return
        if self.wire is not None:
            self.wire.up(End.RST)
        self.lost()

    # --- What comes

    def received(self, data: bytes | End) -> None:
        """Something has come from the process."""
        if self._over.done():
            return
        if isinstance(data, End):
            if data is End.FIN and self.wire is not None:
                self.wire.up(End.FIN)
            self.lost()
            return
        frames = self._frames.feed(data)
        if not self.opened.done() and self._frames.answer:
            self._open()
        for opcode, payload in frames:
            self._frame(opcode, payload)
        if self.wire is not None:
            self.wire.read(len(data))

    def _open(self) -> None:
        """The handshake is answered."""
        head = self._frames.answer.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        status = int(head[0].split()[1])
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            self.subprotocol = headers.get("sec-websocket-protocol")
            self.opened.set_result(None)
            self._timer = self.loop.call_later(PING_S, self._ping)
        elif len(self._frames.rest) >= int(headers.get("content-length", 0)):
            error = problem(status, self._frames.rest, headers.get("retry-after"))
            self.opened.set_exception(error)

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._messages.append(payload.decode())
            self._stir()
        elif opcode == PING:
            if self._sent_close is None:
                self._send(PONG, payload)
        elif opcode == PONG:
            self._answered = True
        elif opcode == CLOSE:
            self._received_close = Close.parse(payload)
            self._send_close(self._received_close)
            self._wait(CLOSE_S, self.abort)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self.wire is not None:
            self.wire.up(masked(opcode, payload), payload if opcode == TEXT else None)

    def _send_close(self, close: Close) -> None:
        if self._sent_close is None:
            self._sent_close = close
            self._send(CLOSE, close.code.to_bytes(2) + close.reason.encode())

    # --- Keepalive, and the end

    def _wait(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, callback)

    def _ping(self) -> None:
        self._answered = False
        self._send(PING, b"ping")
        self._wait(PONG_S, self._pinged)

    def _pinged(self) -> None:
        if self._answered:
            self._wait(PING_S, self._ping)
        else:
            self.abort()

    def lost(self) -> None:
        """TCP is gone."""
        if self._over.done():
            return
        self._over.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("simulated"))
            self.opened.exception()  # somebody may have given up waiting
        self._stir()
        if self in self._line.sockets:
            self._line.sockets.remove(self)
        if self.wire is not None:
            self._line.forget(self.wire)

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)

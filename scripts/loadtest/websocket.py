"""A WebSocket (RFC 6455) as a phone has it, as cheap as it comes: no task, no queue, no extension."""

import asyncio
import base64
import hashlib
import os
import struct
import time
from typing import Protocol, cast

from scripts.loadtest.connections import Answer, reset

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_FIN, _MASKED = 0x80, 0x80
_NO_MASK = bytes(4)
"""Masks are to be unpredictable, against pages that a browser has (section 10.3). There is none here, and masking with
zeros costs nothing."""

_HEAD_BYTES = 64 * 1024


class Listener(Protocol):
    """Whose socket it is."""

    def socket_opened(self, socket: "Socket") -> None:
        """The gateway has opened it."""
        ...

    def socket_refused(self, socket: "Socket", answer: Answer | None) -> None:
        """It has not: its answer, or None where none came that made sense."""
        ...

    def socket_heard(self, socket: "Socket", text: bytes) -> None:
        """A message came."""
        ...

    def socket_ended(self, socket: "Socket", code: int, reason: str) -> None:
        """It was open, and is gone. 1006: without a close frame."""
        ...


class Socket(asyncio.Protocol):
    """One socket, from when TCP is there. `heard_s`: when something came last, by the clock of `time.monotonic`."""

    __slots__ = ("_buffer", "_close", "_key", "_listener", "_open", "_request", "_transport", "frozen", "heard_s")

    def __init__(self, listener: Listener, request: bytes) -> None:
        """`request`: the handshake without its key and its end."""
        self._listener: Listener | None = listener
        self._request = request
        self._key = b""
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._open = False
        self._close: tuple[int, str] | None = None
        self.frozen = False
        self.heard_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop does not derive its own from it
        self._transport = transport
        self._key = base64.b64encode(os.urandom(16))
        self.heard_s = time.monotonic()
        transport.write(self._request + b"Sec-WebSocket-Key: %b\r\n\r\n" % self._key)
        self._request = b""

    def say(self, text: bytes) -> None:
        """Send a message."""
        self._write(_TEXT, text)

    def freeze(self) -> None:
        """From now on neither read nor answer, and leave TCP open."""
        self.frozen = True
        self._listener = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def close(self) -> None:
        """Say that this is the end, and hear no more."""
        self._listener = None
        self._write(_CLOSE, (1000).to_bytes(2))
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut TCP, and hear no more."""
        self._listener = None
        if self._transport is not None:
            reset(self._transport)

    def cut(self) -> None:
        """Cut TCP; its listener hears that it ended."""
        if self._transport is not None:
            reset(self._transport)

    def _write(self, opcode: int, payload: bytes) -> None:
        if self._transport is None or self.frozen or self._transport.is_closing():
            return
        size = len(payload)
        if size < 126:
            head = bytes((_FIN | opcode, _MASKED | size))
        elif size < 65_536:
            head = struct.pack("!BBH", _FIN | opcode, _MASKED | 126, size)
        else:
            head = struct.pack("!BBQ", _FIN | opcode, _MASKED | 127, size)
        self._transport.write(head + _NO_MASK + payload)

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        if self._buffer:
            data = self._buffer + data
        self._buffer = self._frames(data) if self._open else self._answer(data)

    def _answer(self, data: bytes) -> bytes:
        """Read the answer to the handshake; what is left behind it."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            if len(data) > _HEAD_BYTES:
                self._refused(None)
            return data
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/1.1 ") else 0
        if status == 101 and headers.get("sec-websocket-accept") == self._accept:
            self._open = True
            if self._listener is not None:
                self._listener.socket_opened(self)
            return self._frames(rest)
        size = headers.get("content-length", "0")
        if size.isdecimal() and len(rest) < int(size):
            return data
        self._refused(Answer(status, rest, headers.get("retry-after")) if status >= 300 else None)
        return b""

    @property
    def _accept(self) -> str:
        return base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest()).decode()

    def _refused(self, answer: Answer | None) -> None:
        listener, self._listener = self._listener, None
        self.abort()
        if listener is not None:
            listener.socket_refused(self, answer)

    def _frames(self, data: bytes) -> bytes:
        """Take in all frames that are complete; what is left. Servers' are unmasked, and ours does not fragment."""
        start, size = 0, len(data)
        while size - start >= 2:
            length, begin = data[start + 1], start + 2
            if length == 126:
                begin += 2
                length = int.from_bytes(data[start + 2 : begin])
            elif length == 127:
                begin += 8
                length = int.from_bytes(data[start + 2 : begin])
            end = begin + length
            if end > size:
                break
            self._frame(data[start], data[begin:end])
            start = end
        return data[start:]

    def _frame(self, first: int, payload: bytes) -> None:
        if self._listener is None:
            return
        match first:
            case 0x81:
                self._listener.socket_heard(self, payload)
            case 0x89:
                self._write(_PONG, payload)
            case 0x88:
                code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
                self._close = (code, payload[2:].decode(errors="replace"))
                self._write(_CLOSE, payload[:2])
                if self._transport is not None:
                    self._transport.close()
            case 0x8A:
                pass
            case _:
                self._close = (1006, f"a frame that begins with {first:#x}")
                self.cut()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._open:
            listener.socket_ended(self, *(self._close or (1006, "")))
        else:
            listener.socket_refused(self, None)

"""WebSocket frames (RFC 6455) as a server sees them: bytes in, events out; payloads in, frames out. No extensions.

Where the RFC leaves open which of several mistakes is named, or lets a mistake pass, this does what the library
`websockets` does, so that the one can be tested against the other. It differs in three ways. A mistake that shows in a
frame's header is found there, without waiting for the payload. A control frame has only its own limit of 125 bytes: the
size of the message around it does not matter. And a close frame may come between the fragments of a message, as any
control frame may (section 5.4).
"""

import codecs
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without its C extension: several times as slow
    from websockets.utils import apply_mask

MOST_CONTROL_BYTES = 125
"""The longest payload of a control frame: RFC 6455, section 5.5."""

NO_CODE = 1005
"""Stands for a close frame without a code, and is never sent: RFC 6455, section 7.4.1."""

_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
"""The close codes that may be sent: RFC 6455, section 7.4, and the registry of IANA that it makes."""

_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80


class Opcode(IntEnum):
    """What a frame is: RFC 6455, section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


_OPCODES = frozenset(map(int, Opcode))

_MEDIUM_TEXT = struct.Struct("!HH").pack
_MEDIUM_TEXT_BEGIN = (_FIN | Opcode.TEXT) << 8 | 126


class Text(NamedTuple):
    """A text message, all its fragments together; it is UTF-8."""

    data: bytes


class Binary(NamedTuple):
    """A binary message, all its fragments together."""

    data: bytes


class Ping(NamedTuple):
    """A ping, to be answered with a pong that carries the same."""

    data: bytes


class Pong(NamedTuple):
    """A pong, asked for or not."""

    data: bytes


class Closed(NamedTuple):
    """The peer's close frame. `data`: its payload, to be sent back. Nothing comes after it."""

    code: int
    reason: str
    data: bytes


class Failed(NamedTuple):
    """The peer broke the protocol: close with this code and reason. Nothing comes after it."""

    code: int
    reason: str


Event = Text | Binary | Ping | Pong | Closed | Failed


class Parser:
    """Turns what one peer sends into events.

    `max_size`: bytes of the longest message, its fragments together. `early`: what came already; the first `feed` reads
    it. Memory between two calls: at most that much, a control frame and a frame's header; nothing but the object itself
    while no frame and no message is incomplete.
    """

    __slots__ = ("_ended", "_fragments", "_rest", "frames", "max_size")

    def __init__(self, max_size: int, *, early: bytes = b"") -> None:
        self.max_size = max_size
        self.frames = 0
        """Frames that were complete so far, fragments and control frames included."""
        self._rest = early
        self._fragments: _Fragments | None = None
        self._ended = False

    def feed(self, data: bytes) -> list[Event]:
        """What is complete with `data`, in order. After Closed or Failed everything is ignored."""
        if self._ended:
            return []
        events: list[Event] = []
        if self._rest:
            data = self._rest + data
        try:
            events.extend(self._events(data))
        except _Broken as broken:
            events.append(Failed(*broken.args))
        if events and isinstance(events[-1], Closed | Failed):
            self._ended, self._rest, self._fragments = True, b"", None
        return events

    def _events(self, data: bytes) -> Iterator[Event]:
        start = 0
        while (header := self._header(data, start)) is not None:
            opcode, fin, begin, end = header
            if end > len(data):
                break
            payload = apply_mask(data[begin:end], data[begin - 4 : begin]) if end > begin else b""
            start = end
            self.frames += 1
            if opcode is Opcode.TEXT and fin:
                yield Text(_utf8(payload))
            elif opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION}:
                yield from self._data(opcode, payload, fin=fin)
            elif opcode is Opcode.PING:
                yield Ping(payload)
            elif opcode is Opcode.PONG:
                yield Pong(payload)
            else:
                yield self._closed(payload)
                return
        self._rest = data[start:]

    def _header(self, data: bytes, start: int) -> tuple[Opcode, bool, int, int] | None:
        """Opcode, FIN, and where the payload begins and ends, once the header is complete up to the mask."""
        if len(data) < start + 2:
            return None
        first, second = data[start], data[start + 1]
        if first & 0x0F not in _OPCODES:
            raise _Broken(1002, "invalid opcode")
        if not second & _MASKED:
            raise _Broken(1002, "incorrect masking")
        size, begin = second & 0x7F, start + 2
        if size >= 126:
            form, length = ("!H", 2) if size == 126 else ("!Q", 8)
            if len(data) < begin + length:
                return None
            (size,) = struct.unpack_from(form, data, begin)
            begin += length
        opcode = Opcode(first & 0x0F)
        self._check(opcode, first, size)
        begin += 4
        return opcode, first & _FIN != 0, begin, begin + size

    def _check(self, opcode: Opcode, first: int, size: int) -> None:
        """Raise _Broken for a header that no payload makes right."""
        control = opcode >= Opcode.CLOSE
        if not control and size > self.max_size - (len(self._fragments.data) if self._fragments else 0):
            raise _Broken(1009, f"a message has at most {self.max_size} bytes here")
        if first & _RESERVED:
            raise _Broken(1002, "reserved bits must be 0")
        if control and size > MOST_CONTROL_BYTES:
            raise _Broken(1002, "control frame too long")
        if control and not first & _FIN:
            raise _Broken(1002, "fragmented control frame")
        if opcode is Opcode.CONTINUATION and self._fragments is None:
            raise _Broken(1002, "unexpected continuation frame")
        if opcode in {Opcode.TEXT, Opcode.BINARY} and self._fragments is not None:
            raise _Broken(1002, "expected a continuation frame")

    def _data(self, opcode: Opcode, payload: bytes, *, fin: bool) -> Iterator[Event]:
        """A binary frame, or any that is not a whole text message."""
        if self._fragments is None:
            self._fragments = _Fragments(text=opcode is Opcode.TEXT)
        self._fragments.add(payload, fin=fin)
        if fin:
            message = bytes(self._fragments.data)
            yield Text(message) if self._fragments.decoder else Binary(message)
            self._fragments = None

    def _closed(self, payload: bytes) -> Closed:
        if not payload:
            code, reason = NO_CODE, ""
        elif len(payload) == 1:
            raise _Broken(1002, "close frame too short")
        else:
            code, reason = int.from_bytes(payload[:2]), _utf8(payload[2:]).decode()
            if code not in _CODES:
                raise _Broken(1002, "invalid status code")
        return Closed(code, reason, payload)


class _Fragments:
    """A message that is not complete. `decoder`: finds out early that a text is no UTF-8; None for a binary message."""

    __slots__ = ("data", "decoder")

    def __init__(self, *, text: bool) -> None:
        self.data = bytearray()
        self.decoder = codecs.getincrementaldecoder("utf-8")() if text else None

    def add(self, payload: bytes, *, fin: bool) -> None:
        if self.decoder is not None:
            try:
                self.decoder.decode(payload, fin)
            except UnicodeDecodeError as error:
                raise _Broken(1007, "invalid UTF-8") from error
        self.data += payload


class _Broken(Exception):
    """A close code and the reason for it."""


def _utf8(data: bytes) -> bytes:
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _Broken(1007, "invalid UTF-8") from error
    return data


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """A whole message or a control frame, unmasked as a server's are."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", _FIN | opcode, 126, size) + payload
    return struct.pack("!BBQ", _FIN | opcode, 127, size) + payload


def text_frame(payload: bytes) -> bytes:
    """A text message; `payload` is UTF-8. The short way is for packets of the usual size."""
    size = len(payload)
    if 126 <= size < 65_536:
        return _MEDIUM_TEXT(_MEDIUM_TEXT_BEGIN, size) + payload
    return frame(Opcode.TEXT, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame. Of a reason that is too long, as much as fits."""
    text = reason.encode()[: MOST_CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return frame(Opcode.CLOSE, code.to_bytes(2) + text)

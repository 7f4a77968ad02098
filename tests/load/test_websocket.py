"""A phone's socket, fed with bytes as the gateway sends them, cut anywhere."""

import base64
import hashlib
from typing import Any

import pytest

from gateway.live.frames import Binary, Closed, Opcode, Parser, Pong, Text, close_frame, frame, text_frame
from scripts.loadtest.connections import Answer
from scripts.loadtest.websocket import Socket

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        return

    def get_extra_info(self, name: str) -> None:
        return None


class Heard:
    """Whoever has the socket."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def socket_opened(self, socket: Socket) -> None:
        self.all.append("opened")

    def socket_refused(self, socket: Socket, answer: Answer | None) -> None:
        self.all.append(("refused", answer))

    def socket_heard(self, socket: Socket, text: bytes) -> None:
        self.all.append(text)

    def socket_ended(self, socket: Socket, code: int, reason: str) -> None:
        self.all.append((code, reason))


def made() -> tuple[Socket, Transport, Heard]:
    heard, transport = Heard(), Transport()
    socket = Socket(heard, b"GET /v1/ws HTTP/1.1\r\nHost: here\r\n")
    socket.connection_made(transport)  # type: ignore[arg-type]
    return socket, transport, heard


def accepted(transport: Transport) -> bytes:
    key = transport.written.partition(b"Sec-WebSocket-Key: ")[2].strip()
    accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
    transport.written = b""
    return b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 10**9])
def test_messages_of_any_length_are_heard_however_they_come(size: int) -> None:
    socket, transport, heard = made()
    texts = [b"x" * length for length in (0, 1, 125, 126, 127, 65_535, 65_536)]
    data = accepted(transport) + b"".join(map(text_frame, texts)) + close_frame(1012, '{"retry_ms":5}')
    for start in range(0, len(data), size):
        socket.data_received(data[start : start + size])
    socket.connection_lost(None)
    assert heard.all == ["opened", *texts, (1012, '{"retry_ms":5}')]


def test_what_it_says_is_what_a_server_hears() -> None:
    socket, transport, _ = made()
    socket.data_received(accepted(transport))
    for length in (1, 126, 15_000):
        socket.say(b"x" * length)
    socket.data_received(frame(Opcode.PING, b"there?") + close_frame(1001))
    said = Parser(20_000).feed(transport.written)
    assert said[:3] == [Text(b"x" * length) for length in (1, 126, 15_000)]
    assert said[3] == Pong(b"there?")
    assert isinstance(said[4], Closed)
    assert said[4].code == 1001
    assert transport.closed
    assert not any(isinstance(event, Binary) for event in said)


def test_a_refusal_is_an_answer() -> None:
    socket, _, heard = made()
    socket.data_received(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\n{")
    assert heard.all == []
    socket.data_received(b'"a"')
    assert heard.all == [("refused", Answer(429, b'{"a"', "3"))]


def test_an_answer_with_another_key_is_none() -> None:
    socket, transport, heard = made()
    socket.data_received(accepted(transport).replace(b"Accept: ", b"Accept: x"))
    assert heard.all == [("refused", None)]


def test_one_that_ends_without_a_word_was_lost() -> None:
    socket, transport, heard = made()
    socket.data_received(accepted(transport))
    socket.connection_lost(None)
    assert heard.all == ["opened", (1006, "")]


def test_a_frozen_one_neither_hears_nor_answers() -> None:
    socket, transport, heard = made()
    socket.data_received(accepted(transport))
    socket.freeze()
    socket.data_received(text_frame(b"x") + frame(Opcode.PING, b""))
    assert heard.all == ["opened"]
    assert transport.written == b""
    assert not transport.closed

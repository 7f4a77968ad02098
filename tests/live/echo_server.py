"""A server that echoes whatever a socket says, for conformance suites: `python -m tests.live.echo_server PORT`.

Everything between the handshake and the end of TCP is the gateway's own. Only two things are otherwise: messages may be
long, and binary ones are echoed as well, as suites demand.
"""

import asyncio
import sys
import time
from typing import cast

import uvloop

from gateway.live import handshake
from gateway.live.connection import Connection, Keepalive
from gateway.live.frames import Binary, Event, Opcode, Parser, frame
from gateway.live.wheel import Wheel

LONGEST_MESSAGE = 32 * 1024 * 1024
"""What Autobahn's largest cases need is half of it."""

HEAD_BYTES = 16 * 1024
PING_S, PONG_S = 3600.0, 60.0
"""Suites do not expect to be pinged."""


class EchoConnection(Connection):
    """A connection that takes long messages, and answers a binary message in kind."""

    def __init__(self, transport: asyncio.Transport, keepalive: Keepalive) -> None:
        super().__init__(transport, keepalive)
        self._parser = Parser(LONGEST_MESSAGE)

    def _received(self, event: Event) -> None:
        if isinstance(event, Binary):
            self._transport.write(frame(Opcode.BINARY, event.data))
        else:
            super()._received(event)


class Echo:
    """A session that says what it hears."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def frames_came(self, frames: int) -> None:
        """None are too many."""

    def text_came(self, text: bytes) -> None:
        self._connection.answer(text)

    def time_left_s(self) -> float:
        return 1e9

    def ended(self, code: int) -> None:
        pass


class Head(asyncio.Protocol):
    """Reads the head of one request, and hands its transport over to a socket."""

    def __init__(self, keepalive: Keepalive) -> None:
        self._keepalive = keepalive
        self._transport: asyncio.Transport | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._head += data
        assert self._transport is not None
        if b"\r\n\r\n" in self._head:
            self._open(self._transport)
        elif len(self._head) > HEAD_BYTES:
            self._transport.abort()

    def _open(self, transport: asyncio.Transport) -> None:
        connection = EchoConnection(transport, self._keepalive)
        transport.set_protocol(connection)
        try:
            offer = handshake.read(headers_of(self._head))
        except (handshake.NotAHandshake, handshake.OtherVersion):
            connection.refuse(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        connection.open(Echo(connection), handshake.answer(offer), version=0, packet=None)


def headers_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """The headers in the head of a request, their names in lower case."""
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines)
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]


async def serve(port: int) -> None:
    """Echo until cancelled."""
    wheel = Wheel(time.monotonic)
    keepalive = Keepalive(wheel, ping_s=PING_S, pong_s=PONG_S)
    server = await asyncio.get_running_loop().create_server(lambda: Head(keepalive), "127.0.0.1", port)
    async with server:
        await wheel.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

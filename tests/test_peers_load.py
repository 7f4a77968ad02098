"""The load of the benchmarks (`scripts/benchmarks/load.c`) talks to every protocol and transport that its peers have.

What stands here for the peers is written from their protocols, so that none of them has to be installed.
"""

import asyncio
import importlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve

BENCHMARKS = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks"
SOCKETS, MESSAGES = 6, 60

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the load is compiled")


@pytest.fixture(scope="module")
def benchmarks() -> Any:
    """Imports a module of the benchmarks: they are programs beside each other, and no package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("load")


class Peer:
    """A server of WebSockets; whatever it takes over TCP it delivers to the one that it is for."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self.sockets: dict[str, ServerConnection] = {}

    async def serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        number = socket.request.path.rpartition("=")[2]
        if self._protocol == "socketio":
            await self._join_namespace(socket)
        elif self._protocol == "centrifugo":
            await self._answer_connect(socket)
        self.sockets[number] = socket
        await socket.wait_closed()

    @staticmethod
    async def _join_namespace(socket: ServerConnection) -> None:
        await socket.send('0{"sid":"a","pingInterval":25000}')
        assert await socket.recv() == "40"
        await socket.send('40{"sid":"b"}')
        await socket.send("2")
        assert await socket.recv() == "3"

    @staticmethod
    async def _answer_connect(socket: ServerConnection) -> None:
        assert json.loads(await socket.recv()) == {"id": 1, "connect": {"token": "t"}}
        await socket.send('{"id":1,"connect":{"client":"a"}}\n{}')
        assert await socket.recv() == "{}"

    async def deliver(self, number: str, packet: str) -> None:
        message = {
            "raw": packet,
            "socketio": f'42["info",{packet}]',
            "centrifugo": f'{{"push":{{"channel":"user:{number}","pub":{{"data":{packet}}}}}}}',
        }[self._protocol]
        await self.sockets[number].send(message)


Deliver = Callable[[str, str], Awaitable[None]]


async def take_redis(
    text: Callable[[bytes], str], deliver: Deliver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    parser = hiredis.Reader()
    while data := await reader.read(65536):
        parser.feed(data)
        while command := parser.gets():
            assert isinstance(command, list)
            name, channel, message = command
            assert name == b"PUBLISH"
            await deliver(channel.decode().strip("#").rpartition(":")[2], text(message))
            writer.write(b":1\r\n")


async def take_http(deliver: Deliver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await _head(reader):
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        body = (await reader.readexactly(length)).decode()
        await deliver(head.split()[1].rpartition("=")[2], body)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok")


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


async def take_zmtp(deliver: Deliver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    greeting = await reader.readexactly(64)
    assert greeting[:1] + greeting[9:12] == b"\xff\x7f\x03\x00"
    writer.write(greeting)
    flags, size = await reader.readexactly(2)
    assert flags == 4
    assert (await reader.readexactly(size)).startswith(b"\x05READY")
    writer.write(b"\x04\x06\x05READY")
    while flag := await reader.read(1):
        assert flag == b"\x02"
        frame = await reader.readexactly(int.from_bytes(await reader.readexactly(8), "big"))
        channel, packet = frame.partition(b"user-")[2], frame.partition(b"7:content,")[2]
        await deliver(channel.partition(b",")[0].decode(), packet.partition(b":")[2].partition(b",}")[0].decode())


@asynccontextmanager
async def running(peer: Peer, take: Callable[..., Awaitable[None]]) -> AsyncIterator[tuple[int, int]]:
    """The ports of its WebSockets and of what is published."""

    async def serve_publisher(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await take(peer.deliver, reader, writer)
        finally:
            writer.close()

    async with serve(peer.serve, "127.0.0.1", 0, compression=None) as sockets:
        publishing = await asyncio.start_server(serve_publisher, "127.0.0.1", 0)
        async with publishing:
            yield next(iter(sockets.sockets)).getsockname()[1], publishing.sockets[0].getsockname()[1]
        for socket in peer.sockets.values():
            await socket.close()


def _plain(message: bytes) -> str:
    return message.decode()


def _framed(message: bytes) -> str:
    packet = message[9:].decode()
    assert int.from_bytes(message[:8], "big") == json.loads(packet)["version"]
    return packet


def _emitted(message: bytes) -> str:
    _, event, options = msgspec.msgpack.decode(message)
    assert len(options["rooms"]) == 1
    return json.dumps(event["data"][1], separators=(",", ":"))


@pytest.mark.parametrize(
    ("letter", "transport", "protocol", "take"),
    [
        ("plain", "redis", "raw", partial(take_redis, _plain)),
        ("gateway", "redis", "raw", partial(take_redis, _framed)),
        ("socketio", "redis", "socketio", partial(take_redis, _emitted)),
        ("nchan", "http", "centrifugo", take_http),
        ("pushpin", "zmtp", "raw", take_zmtp),
    ],
)
@pytest.mark.parametrize("rate", [0, 2_000])
async def test_every_message_is_delivered_and_counted(
    letter: str, transport: str, protocol: str, take: Any, rate: int, benchmarks: Any, folder: Path
) -> None:
    load, letters = benchmarks("load"), benchmarks("letters")
    async with running(Peer(protocol), take) as (port, publishing):
        with await asyncio.to_thread(load.Load, folder, source="127.0.0.7") as client:
            first = '\t{"id":1,"connect":{"token":"t"}}' if protocol == "centrifugo" else ""
            lines = [f"/?c={number}{first}" for number in range(SOCKETS)]
            connected = await asyncio.to_thread(client.connect, port, lines, protocol=protocol)
            greeting = letters.ZMTP_GREETING if transport == "zmtp" else b""
            pieces = [getattr(letters, letter)(number) for number in range(SOCKETS)]
            mail = load.Mail(transport, publishing, pieces, greeting)
            published = await asyncio.to_thread(client.publish, mail, count=MESSAGES, outstanding=8, rate=rate)
    assert connected.connected == SOCKETS
    assert (published.published, published.delivered, published.lost, published.stale) == (MESSAGES, MESSAGES, 0, 0)


async def test_a_message_that_comes_to_another_connection_ends_the_run(benchmarks: Any, folder: Path) -> None:
    load, letters = benchmarks("load"), benchmarks("letters")
    async with running(Peer("raw"), partial(take_redis, _plain)) as (port, publishing):
        with await asyncio.to_thread(load.Load, folder) as client:
            await asyncio.to_thread(client.connect, port, ["/?c=0", "/?c=1"])
            mail = load.Mail("redis", publishing, [letters.plain(1), letters.plain(0)])
            with pytest.raises(RuntimeError, match="out of order"):
                await asyncio.to_thread(client.publish, mail, count=2)

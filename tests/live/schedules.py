"""Random schedules: devices come and go over real sockets while packets are published, and every await takes a random
time. At the end every screen shows the packet that is stored.

`python -m tests.live.schedules COUNT SEED` runs as many as you like.
"""

import asyncio
import contextlib
import random
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
import uvloop
from websockets.frames import Frame, Opcode

from gateway import packet
from gateway.app import Gateway
from gateway.service import Said
from gateway.transit.decisions import VideoRef
from gateway.transit.state import ClientId, Status
from storage.memory import MemoryObjects
from tests.running import Running, running_gateway, token

AT_ONCE = 40
"""Schedules that run beside each other, each with clients of its own."""

PATIENCE_S = 20.0

GONE = (OSError, RuntimeError)
"""What writing to a socket raises that the gateway has closed: uvloop's transports the second."""


class Phone:
    """One device: what is on its screen, and the socket it has at the moment, if any."""

    def __init__(self, gw: Running, client_id: str, device_id: str) -> None:
        self._gw = gw
        self._token = token(client_id)
        self.client_id = ClientId(client_id)
        self.device_id = device_id
        self.version = -1
        self.body = b""
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def connect(self) -> None:
        """Open a socket, with the version that is on the screen."""
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._gw.port)
        self._writer.write(
            f"GET /v1/ws?device_id={self.device_id}&version={max(self.version, 0)} HTTP/1.1\r\nHost: gateway\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {self._token}\r\n\r\n".encode()
        )
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101"), head
            while True:
                first, size = await reader.readexactly(2)
                if size == 126:
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                payload = await reader.readexactly(size)
                if first & 0x0F == Opcode.TEXT:
                    self._shown(payload)

    def _shown(self, body: bytes) -> None:
        found = orjson.loads(body)
        if found["type"] != "info":
            return
        assert found["client_id"] == self.client_id, "another's packet"
        assert found["version"] >= self.version, "the screen went back"
        if found["version"] == self.version:
            assert not self.body or body == self.body, "one version, two packets"
        self.version, self.body = found["version"], body

    async def acknowledge(self) -> None:
        await self._say({"type": "ack", "version": self.version})

    async def report(self, video_id: str, status: Status) -> None:
        await self._say({"type": "status", "id": 1, "video_id": video_id, "status": status})

    async def _say(self, message: dict[str, Any]) -> None:
        if self.connected and self._writer is not None:
            with contextlib.suppress(*GONE):
                self._writer.write(Frame(Opcode.TEXT, orjson.dumps(message)).serialize(mask=True))
                await self._writer.drain()

    async def leave(self, *, politely: bool) -> None:
        """The socket ends: with a close frame, or by a reset."""
        if self._writer is None or self._reading is None:
            return
        with contextlib.suppress(*GONE):
            if politely:
                self._writer.write(Frame(Opcode.CLOSE, struct.pack("!H", 1001)).serialize(mask=True))
            else:
                self._writer.transport.abort()
        await asyncio.wait([self._reading], timeout=PATIENCE_S)
        self._reading.result()
        self._writer.transport.abort()
        self._writer = self._reading = None


class Schedule:
    """Alice with a phone, Bob with a phone and a tablet; who does what when is drawn from `seed`."""

    def __init__(self, gw: Running, seed: int) -> None:
        self._gw = gw
        self._service = gw.gateway.service
        self._drawn = random.Random(seed)
        self.seed = seed
        alice, bob = f"alice-{seed}", f"bob-{seed}"
        self.alice, self.bob = ClientId(alice), ClientId(bob)
        self.phones = [Phone(gw, alice, "phone"), Phone(gw, bob, "phone"), Phone(gw, bob, "tablet")]
        self._sent: list[VideoRef] = []

    async def run(self) -> None:
        """The whole of it. Raises AssertionError where a screen is not what it should be."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._traffic())
                for phone in self.phones:
                    group.create_task(self._comes_and_goes(phone))
            for phone in self.phones:
                await self._is_up_to_date(phone)
        finally:
            for phone in self.phones:
                await phone.leave(politely=self._drawn.random() < 0.5)

    async def _comes_and_goes(self, phone: Phone) -> None:
        for _ in range(self._drawn.randint(0, 2)):
            await phone.connect()
            await self._pause()
            if self._drawn.random() < 0.5:
                await phone.acknowledge()
            if self._drawn.random() < 0.2:
                again = Phone(self._gw, phone.client_id, phone.device_id)  # displaces the first
                await again.connect()
                await self._pause()
                await again.leave(politely=True)
            await phone.leave(politely=self._drawn.random() < 0.5)
            await self._pause()
        await phone.connect()

    async def _traffic(self) -> None:
        for _ in range(self._drawn.randint(1, 5)):
            await self._drawn.choice((self._send, self._send, self._advance, self._advance, self._delete))()
            await self._pause()

    async def _send(self) -> None:
        video_id, upload = await self._service.announce(self.alice, self.bob, size=4, content_type="video/mp4")
        ref = VideoRef(video_id, self.alice, self.bob)
        objects = self._gw.gateway.sweep._objects
        assert isinstance(objects, MemoryObjects)
        await objects.receive(
            objects.authorize_upload(ref.object_key, dict(parse_qsl(urlsplit(upload.url).query))), four()
        )
        await self._service.confirm(ref)
        self._sent.append(ref)

    async def _advance(self) -> None:
        if self._sent:
            status = self._drawn.choice((Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED))
            if self._drawn.random() < 0.5:
                await self.phones[1].report(self._sent[-1].video_id, status)
            else:
                await self._service.report(self.bob, [Said(self._sent[-1].video_id, status)])

    async def _delete(self) -> None:
        if self._sent:
            await self._service.delete(self._sent[-1])

    async def _pause(self) -> None:
        await asyncio.sleep(self._drawn.choice((0, 0, 0.001, 0.003)))

    async def _is_up_to_date(self, phone: Phone) -> None:
        """Soon after the last change, and without any further one, the stored packet is on the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            state = await self._service.changes.load(phone.client_id)
            if phone.version == state.version and phone.body in {packet.encode(state), b""}:
                return
            assert phone.connected or time.monotonic() < deadline, "the socket is gone"
            assert time.monotonic() < deadline, f"{phone.device_id} shows {phone.version}, stored is {state.version}"
            await asyncio.sleep(0.002)


async def four() -> AsyncIterator[bytes]:
    yield b"four"


def dawdling(gateway: Gateway, drawn: random.Random) -> None:
    """Every await on the store and the bus takes a random time, so that others come in between."""
    documents = gateway.service.changes.documents
    bus = gateway.hub._bus

    def slowed(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def slow(*arguments: Any) -> Any:
            await asyncio.sleep(drawn.choice((0, 0, 0, 0.001, 0.002, 0.01)))
            result = await call(*arguments)
            await asyncio.sleep(drawn.choice((0, 0, 0, 0.001, 0.002)))
            return result

        return slow

    for part, name in ((documents, "load"), (documents, "commit"), (bus, "subscribe"), (bus, "publish")):
        setattr(part, name, slowed(getattr(part, name)))


@asynccontextmanager
async def gateway_for_schedules(folder: Path, seed: int) -> AsyncIterator[Running]:
    """A gateway that keeps everything in memory, and dawdles."""
    async with running_gateway(folder, STATE_URL="memory:", OBJECTS_URL="memory:", worker=False) as gw:
        dawdling(gw.gateway, random.Random(seed))
        yield gw


async def run(gw: Running, first: int, count: int) -> None:
    """The schedules with these seeds. Raises AssertionError, with the seed, for the first that goes wrong."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with slots:
            try:
                await Schedule(gw, seed).run()
            except Exception as error:
                raise AssertionError(f"schedule {seed} of those from {first}") from error

    async with asyncio.TaskGroup() as group:
        for seed in range(first, first + count):
            group.create_task(one(seed))
    await gw.nobody_left()  # the gateway hears of the last resets a moment later


async def main(count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_for_schedules(Path(folder), seed) as gw:
            began = time.monotonic()
            await run(gw, seed, count)
            print(  # noqa: T201 - a command's output
                f"{count} schedules from seed {seed} in {time.monotonic() - began:.1f} s: every screen is right"
            )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))

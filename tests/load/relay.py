"""Stands between phones and a gateway, and does to their sockets and calls what must not happen."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Treat = Callable[[bytes], int]
"""How often a message of the gateway's reaches a phone."""


class Relay:
    """`treat`: asked about each message on a socket. `stall` holds up everything that comes from the gateway."""

    def __init__(self, port: int, treat: Treat) -> None:
        self._port = port
        self._treat = treat
        self._going = asyncio.Event()
        self._going.set()

    async def stall(self, after_s: float, seconds: float) -> None:
        """Nothing that the gateway says comes through for a while."""
        await asyncio.sleep(after_s)
        self._going.clear()
        await asyncio.sleep(seconds)
        self._going.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_gateway, to_gateway = await asyncio.open_connection("127.0.0.1", self._port)
        except BaseException:
            writer.transport.abort()
            raise
        ways = [
            asyncio.create_task(self._requests(reader, to_gateway)),
            asyncio.create_task(self._answers(from_gateway, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            to_gateway.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(65_536)
        if not data.startswith(b"HTTP/1.1 101 "):
            while data:
                await self._going.wait()
                writer.write(data)
                data = await reader.read(65_536)
            return
        head, _, data = data.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        while True:
            await self._going.wait()
            while (end := _frame_end(data)) is not None:
                writer.write(data[:end] * (self._treat(data[:end]) if data[0] == 0x81 else 1))
                data = data[end:]
            more = await reader.read(65_536)
            if not more:
                return
            data += more


def _frame_end(data: bytes) -> int | None:
    """Where the first frame ends, once it is there."""
    if len(data) < 4:
        return 2 if len(data) >= 2 and data[1] == 0 else None
    size, begin = data[1], 2
    if size == 126:
        size, begin = int.from_bytes(data[2:4]), 4
    return begin + size if len(data) >= begin + size else None


@asynccontextmanager
async def relay(port: int, treat: Treat = lambda _: 1) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to the gateway at that port, and its address."""
    between = Relay(port, treat)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(between.connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield between, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was aborted is closed by then

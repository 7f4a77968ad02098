"""Calls over shared connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from scripts.loadtest.connections import Answer, Dialler, Origin, Pool, Pools, path_of, request
from scripts.loadtest.options import Refused
from tests.running import within

ASKED = request("GET", "/", "here", {})
SERVED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with what `serve` writes; counts connections, and the most at the same time."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.port = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self._serve(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def pooled(serve: Serve, most: int = 9) -> AsyncIterator[tuple[Pool, Server]]:
    server = Server(serve)
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    pool = Pool(Origin("http", "127.0.0.1", server.port, "127.0.0.9"), Dialler(), most)
    try:
        yield pool, server
    finally:
        pool.close()
        listening.close()
        await asyncio.sleep(0.01)


async def answer(pool: Pool, timeout_s: float = 5) -> Answer | None:
    waiting: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
    pool.ask(ASKED, waiting.set_result, timeout_s=timeout_s)
    return await within(waiting)


async def well(writer: asyncio.StreamWriter) -> None:
    writer.write(SERVED)


async def test_a_connection_is_used_again() -> None:
    async with pooled(well) as (pool, server):
        assert [await answer(pool) for _ in range(5)] == [Answer(200, b"ok", None)] * 5
        assert server.connections == 1


async def test_those_that_find_none_free_wait_for_one() -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(SERVED)

    async with pooled(late, most=2) as (pool, server):
        answers = await asyncio.gather(*(answer(pool) for _ in range(10)))
        assert answers == [Answer(200, b"ok", None)] * 10
        assert server.connections == 2


async def test_a_connection_that_is_cut_answers_nothing() -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with pooled(cut) as (pool, _):
        assert await answer(pool) is None


async def test_what_takes_too_long_is_no_answer() -> None:
    async def never(writer: asyncio.StreamWriter) -> None:
        return

    async with pooled(never, most=1) as (pool, _):
        assert await asyncio.gather(*(answer(pool, 0.05) for _ in range(2))) == [None] * 2


async def test_nobody_hears_of_what_was_abandoned() -> None:
    async with pooled(well) as (pool, _):
        heard: list[Answer | None] = []
        pool.ask(ASKED, heard.append, timeout_s=5).abandon()
        assert await answer(pool) is not None
        assert heard == []


async def test_where_nobody_listens_there_is_no_answer() -> None:
    async with pooled(well) as (_, server):
        port = server.port
    pool = Pool(Origin("http", "127.0.0.1", port, None), Dialler())
    assert await asyncio.gather(*(answer(pool) for _ in range(3))) == [None] * 3


async def test_signed_urls_that_lead_elsewhere_are_not_followed() -> None:
    pools = Pools("http://127.0.0.1:1", source=None, anywhere=False)
    assert pools.of("http://127.0.0.1:1/objects/1?signature=x") is pools.gateway
    with pytest.raises(Refused, match=r"192\.0\.2\.1 is not on this machine"):
        pools.of("http://192.0.2.1/objects/1?signature=x")
    assert path_of("http://127.0.0.1:1/objects/1?signature=x") == "/objects/1?signature=x"
    pools.close()

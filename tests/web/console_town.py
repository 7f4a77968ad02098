"""Several processes, and clients that exchange videos through them, for whoever wants to see something happen."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from tests.app.program import Program, started
from tests.redis_servers import redis_server
from tests.running import App, Socket
from tests.web.console_page import OPERATOR

PAIRS = 24
PAUSE_S = 2.0
"""How long somebody takes over a step, on average."""


@dataclass(frozen=True, slots=True)
class Town:
    """Where it is served."""

    url: str


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    """Two processes that serve and a worker, with a Redis between them and an operator; life goes on until the end."""
    with redis_server(folder / "redis") as redis:
        given = {"WORKERS": "2", "BUS_URL": redis.url, "OPERATOR_TOKEN": OPERATOR, "LOG_LEVEL": "info"}
        async with started(folder / "data", **given) as program:
            living = asyncio.gather(*(_pair(program, number) for number in range(PAIRS)))
            try:
                yield Town(str(program.http.base_url).rstrip("/"))
            finally:
                living.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await living


async def _pair(program: Program, number: int) -> None:
    """One sends, the other watches; every third watcher has the app closed, and is woken."""
    chance = random.Random(number)
    sender, watcher = program.app(f"ann-{number}"), program.app(f"ben-{number}")
    await watcher.register("phone", f"{number:064x}", platform="apns" if number % 2 else "fcm")
    async with sender.socket() as socket, asyncio.TaskGroup() as group:
        group.create_task(_acknowledge(socket))
        group.create_task(
            _watch_closed(sender, watcher, chance) if number % 3 == 0 else _watch(sender, watcher, chance)
        )


async def _watch(sender: App, watcher: App, chance: random.Random) -> None:
    async with watcher.socket() as socket, asyncio.TaskGroup() as group:
        group.create_task(_acknowledge(socket))
        group.create_task(_watch_closed(sender, watcher, chance))


async def _watch_closed(sender: App, watcher: App, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.expovariate(1 / PAUSE_S))
        video_id = await sender.send(watcher.client_id)
        for status in ("downloaded", "viewed"):
            await asyncio.sleep(chance.expovariate(1 / PAUSE_S))
            await watcher.say(video_id, status)


async def _acknowledge(socket: Socket) -> None:
    async for text in socket.connection:
        await socket.ack(orjson.loads(text)["version"])

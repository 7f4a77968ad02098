"""Two gateways and a worker on SQLite, with Redis as the bus and the cache: Redis fails, and nobody's call does."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.app.program import Program, started
from tests.faults.deployment import agreed, deployed
from tests.faults.town import Town
from tests.redis_servers import RedisServer, redis_server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@pytest.fixture(scope="module")
async def gateways(folder: Path, redis: RedisServer) -> AsyncIterator[list[Program]]:
    async with deployed(folder, BUS_URL=redis.url, CACHE_URL=redis.url) as serving:
        yield serving


def documents(folder: Path) -> str:
    return f"sqlite:///{folder}/state.db"


async def test_killed_and_restarted(redis: RedisServer, gateways: list[Program], folder: Path) -> None:
    town = Town(gateways)
    async with town.busy("killed"):
        await town.is_live()
        redis.kill()
        await town.goes_on(10)
        redis.start()
        await town.is_live()
    assert town.unanswered == 0
    await agreed(documents(folder), "killed", town)


async def test_flushed(redis: RedisServer, gateways: list[Program], folder: Path) -> None:
    town = Town(gateways)
    async with town.busy("flushed"):
        for _ in range(5):
            await town.goes_on(5)
            redis.ask("FLUSHALL")
            redis.ask("SCRIPT", "FLUSH")
        await town.is_live()
    assert town.unanswered == 0
    await agreed(documents(folder), "flushed", town)


async def test_connections_killed_one_by_one(redis: RedisServer, gateways: list[Program], folder: Path) -> None:
    town = Town(gateways)
    async with town.busy("cut"):
        await town.is_live()
        for _ in range(3):
            for client_id in [*redis.clients("normal"), *redis.clients("pubsub")]:
                redis.ask("CLIENT", "KILL", "ID", client_id)
                await town.goes_on(1)
        await town.is_live()
    assert town.unanswered == 0
    await agreed(documents(folder), "cut", town)


async def test_only_the_publishers_connections_cut(redis: RedisServer, gateways: list[Program], folder: Path) -> None:
    town = Town(gateways)
    async with town.busy("publishers"):
        await town.is_live()
        polled = town.polled
        for _ in range(20):
            redis.cut("normal")
            await town.goes_on(1)
        assert town.polled == polled, "what could not be published was published again"
        await town.is_live()
    assert town.unanswered == 0
    await agreed(documents(folder), "publishers", town)


async def test_a_gateway_killed_between_two_writes(redis: RedisServer, gateways: list[Program], folder: Path) -> None:
    given = {"BUS_URL": redis.url, "CACHE_URL": redis.url, "LOG_LEVEL": "info"}
    dies = """
import os, signal
from storage import sqlite
from storage.sqlite import SqliteDocuments
commit, commits = SqliteDocuments.commit, 0
async def dying(self, documents):
    global commits
    commits += len(documents) > 1
    if commits == 12:
        await commit(self, documents[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    return await commit(self, documents)
SqliteDocuments.commit = dying
from gateway.cli import main
raise SystemExit(main(["serve", "--no-worker"]))
"""
    town = Town(list(gateways))
    async with AsyncExitStack() as stack, town.busy("died"):
        await town.is_live()
        for _ in range(3):
            mortal = await stack.enter_async_context(started(folder, command=("-c", dies), **given))
            town.gateways.append(mortal)
            assert await mortal.ended() == -signal.SIGKILL
            town.gateways.remove(mortal)
            await town.goes_on(5)
        await town.is_live()
    await agreed(documents(folder), "died", town)

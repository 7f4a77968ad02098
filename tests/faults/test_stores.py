"""Two gateways and a worker with everything on Redis, one server or a cluster: it fails, and nothing is lost that was
answered."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.app.program import Program
from tests.faults.deployment import agreed, deployed
from tests.faults.town import Town
from tests.redis_servers import RedisCluster, RedisServer, redis_cluster, redis_server, wait_for_cluster

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), *DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
async def on_server(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Program]]:
    async with deployed(tmp_path_factory.mktemp("data"), STATE_URL=server.url, BUS_URL=server.url) as serving:
        yield serving


async def test_the_server_is_killed_and_restarted(server: RedisServer, on_server: list[Program]) -> None:
    town = Town(on_server)
    async with town.busy("killed"):
        for _ in range(3):
            await town.is_live()
            server.kill()
            await asyncio.sleep(0.2)  # while nothing is answered
            server.start()
            await town.goes_on(5)
        await town.is_live()
    assert town.unanswered > 0
    await agreed(server.url, "killed", town)


async def test_the_server_is_frozen(server: RedisServer, on_server: list[Program]) -> None:
    town = Town(on_server)
    async with town.busy("frozen"):
        await town.is_live()
        server.freeze()
        await asyncio.sleep(4)
        server.thaw()
        await town.is_live()
    assert town.unanswered > 0
    await agreed(server.url, "frozen", town)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(
        tmp_path_factory.mktemp("cluster"), *DURABLE, "--cluster-require-full-coverage", "no"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def on_cluster(cluster: RedisCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Program]]:
    async with deployed(tmp_path_factory.mktemp("data"), STATE_URL=cluster.url, BUS_URL=cluster.url) as serving:
        yield serving


async def test_a_node_of_the_cluster_is_killed_and_restarted(cluster: RedisCluster, on_cluster: list[Program]) -> None:
    town = Town(on_cluster, pairs=8)
    async with town.busy("node"):
        await town.is_live()
        server = cluster.servers[1]
        server.kill()
        await asyncio.sleep(1)  # while a third is not answered
        server.start()
        wait_for_cluster(cluster)
        await town.is_live()
    assert town.unanswered > 0
    await agreed(cluster.url, "node", town)


async def test_slots_move(cluster: RedisCluster, on_cluster: list[Program]) -> None:
    town = Town(on_cluster)
    async with town.busy("slots"):
        await town.is_live()
        for phone in [phone for pair in town.phones for phone in pair]:
            cluster.move_slot(f"gateway:0:c:{phone.client_id}".encode())
            await town.goes_on(1)
        with_documents = cluster.servers[0].ask("KEYS", "gateway:{*}keys")
        assert with_documents
        for key in with_documents:
            await asyncio.to_thread(cluster.move_slot, key)
            await town.goes_on(1)
        await town.is_live()
    await agreed(cluster.url, "slots", town)

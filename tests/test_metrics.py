import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from gateway.siblings import merged
from storage import open_cache, open_documents, open_objects
from storage.documents import Document
from storage.usage import Usage
from tests.redis_servers import RedisServer, fresh, redis_server
from tests.running import VIDEO, Running, running_gateway, until


def exposed(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


# --- What stores count


def test_what_the_stores_counted_is_exposed_as_it_is_now() -> None:
    usage = Usage()
    metrics = Metrics(usage)
    assert not [name for name, _ in exposed(metrics.exposition()) if name.startswith("gateway_store_")]
    usage.requests["dynamodb", "PutItem"] += 3
    usage.units["dynamodb", "PutItem", "write"] += 4.5
    found = exposed(metrics.exposition())
    assert found["gateway_store_requests_total", labels(store="dynamodb", call="PutItem")] == 3
    assert found["gateway_store_units_total", labels(store="dynamodb", call="PutItem", kind="write")] == 4.5
    usage.requests["dynamodb", "PutItem"] += 1
    found = exposed(metrics.exposition())
    assert found["gateway_store_requests_total", labels(store="dynamodb", call="PutItem")] == 4


def test_of_many_processes_each_says_what_it_counted() -> None:
    texts = {}
    for process, count in (("0", 3), ("worker", 5)):
        usage = Usage()
        usage.requests["sqlite", "due"] += count
        texts[process] = Metrics(usage).exposition()
    texts["1"] = Metrics().exposition()
    found = exposed(merged(texts))
    assert found["gateway_store_requests_total", labels(store="sqlite", call="due", process="0")] == 3
    assert found["gateway_store_requests_total", labels(store="sqlite", call="due", process="worker")] == 5


async def test_sqlite_counts_transactions_not_commits(tmp_path: Path) -> None:
    usage = Usage()
    async with open_documents(f"sqlite:///{tmp_path}/state.db", usage=usage) as store:
        await asyncio.gather(*(store.commit([Document(f"client:{number}", body=b"x")]) for number in range(50)))
        await store.load(["client:1"])
        await store.load(["client:1", "client:2"])
        await store.due(0, 10)
        await store.scan()
    assert 1 <= usage.requests.pop(("sqlite", "commit")) < 50
    assert usage.requests == {("sqlite", "load"): 2, ("sqlite", "due"): 1, ("sqlite", "scan"): 1}
    assert not usage.units


async def test_the_disk_counts_objects(tmp_path: Path) -> None:
    usage = Usage()
    async with open_objects(f"file:{tmp_path}/objects", usage=usage) as store:
        assert await store.head("7/x/a/b") is None
        await store.delete(["7/x/a/b", "7/y/a/b"])
        assert [key async for key in store.list("7/")] == []
    assert usage.requests == {("disk", "head"): 1, ("disk", "delete"): 2, ("disk", "list"): 1}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def test_redis_counts_commands(redis: RedisServer) -> None:
    usage = Usage()
    async with open_documents(fresh(redis.url), usage=usage) as store:

        async def inspected() -> bool:
            return usage.requests["redis", "HMGET"] == 1

        await until(inspected, "the server is looked at")
        await store.commit([Document("client:a", body=b"x"), Document("client:b", body=b"x")])
        await store.load(["client:a", "client:b", "client:c"])
        await store.due(0, 10)
        await store.scan(limit=1)
    assert usage.requests["redis", "EVALSHA"] == 1
    assert usage.requests["redis", "HMGET"] == 1 + 3 + 1
    assert usage.requests["redis", "ZRANGEBYSCORE"] == 64
    assert 1 <= usage.requests["redis", "ZRANGEBYLEX"] <= 64


async def test_the_cache_counts_entries(redis: RedisServer) -> None:
    usage = Usage()
    cache = open_cache(fresh(redis.url), usage=usage)
    await cache.get(["a", "b"])
    cache.put([Document("a", 1, b"x")])
    cache.drop(["a", "b", "c"])
    await cache.close()
    assert usage.requests == {("cache", "get"): 2, ("cache", "put"): 1, ("cache", "drop"): 3}


# --- Videos


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path / "data", worker=False) as running:
        yield running


async def videos(gateway: Running) -> dict[str, float]:
    names = ("uploaded", "notified", "downloaded", "viewed", "expired")
    return {name: await gateway.metric(f'gateway_videos_total{{status="{name}"}}') for name in names}


async def test_a_video_counts_once_for_each_status_that_it_reaches(gateway: Running) -> None:
    alice, bob = gateway.app("alice"), gateway.app("bob")
    video_id = await alice.send("bob")
    assert await videos(gateway) == {"uploaded": 1, "notified": 0, "downloaded": 0, "viewed": 0, "expired": 0}
    assert await gateway.metric("gateway_video_bytes_total") == len(VIDEO)
    for status in ("notified", "downloaded", "viewed"):
        for _ in range(2):
            assert (await bob.say(video_id, status)).status_code == 200
    assert (await alice.say(video_id, "uploaded", "bob")).status_code == 200
    assert await videos(gateway) == {"uploaded": 1, "notified": 1, "downloaded": 1, "viewed": 1, "expired": 0}
    assert await gateway.metric("gateway_video_bytes_total") == len(VIDEO)


async def test_of_many_who_say_the_same_at_once_one_counts(gateway: Running) -> None:
    alice, bob = gateway.app("alice"), gateway.app("bob")
    announced = await alice.announce("bob")
    assert (await alice.upload(announced)).status_code == 200
    said = [alice.say(announced.video_id, "uploaded", "bob") for _ in range(8)]
    assert {answer.status_code for answer in await asyncio.gather(*said)} == {200}
    assert {
        answer.status_code
        for answer in await asyncio.gather(*(bob.say(announced.video_id, "viewed") for _ in range(8)))
    } == {200}
    found = await videos(gateway)
    assert (found["uploaded"], found["viewed"]) == (1, 1)


async def test_what_an_account_that_ends_was_sent_expires(gateway: Running) -> None:
    alice, bob = gateway.app("alice"), gateway.app("bob")
    await alice.send("bob")
    assert (await bob.call("DELETE", "/v1/client")).status_code in {200, 204}
    found = await videos(gateway)
    assert (found["uploaded"], found["expired"]) == (1, 1)


async def test_a_video_that_is_replaced_or_deleted_reaches_no_status_by_it(gateway: Running) -> None:
    alice = gateway.app("alice")
    await alice.send("bob")
    second = await alice.send("bob")
    assert (await alice.delete(second, "bob")).status_code == 200
    assert await videos(gateway) == {"uploaded": 2, "notified": 0, "downloaded": 0, "viewed": 0, "expired": 0}

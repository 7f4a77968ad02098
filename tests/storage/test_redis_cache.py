"""The cache in Redis: what it keeps and for how long, and that nobody waits for it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from storage import redis_client
from storage.cache import ENTRY_S
from storage.documents import MAX_DUE, Document
from storage.redis_cache import TIMEOUT_S, RedisCache
from storage.redis_url import RedisUrl
from tests.redis_servers import RedisCluster, RedisServer, free_port, fresh
from tests.running import until

pytestmark = pytest.mark.usefixtures("short_rests")

NEW = 1_750_000_000_000_000
"""A version."""


@pytest.fixture(params=["redis", "redis_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    servers: RedisServer | RedisCluster = request.getfixturevalue(request.param)
    return fresh(servers.url)


@pytest.fixture
async def cache(url: str) -> AsyncIterator[RedisCache]:
    async with opened(url) as cache:
        yield cache


@asynccontextmanager
async def opened(url: str, *, timeout_s: float = 5, entry_s: float = ENTRY_S) -> AsyncIterator[RedisCache]:
    cache = RedisCache(RedisUrl.parse(url), timeout_s=timeout_s, entry_s=entry_s)
    try:
        yield cache
    finally:
        await cache.close()


async def kept(cache: RedisCache, *documents: Document) -> None:
    """Put these until they are there: the first ones of each server are not kept."""
    for document in documents:
        await until(lambda document=document: _is_kept(cache, document), f"{document} is there")  # type: ignore[misc]


async def _is_kept(cache: RedisCache, document: Document) -> bool:
    cache.put([document])
    return await cache.get([document.key]) == [document]


async def test_what_was_put_is_found_in_the_order_of_the_keys(cache: RedisCache) -> None:
    a, b = Document("client:a", NEW, b"\x00\xff" * 500, 17), Document("client:b", NEW + 1, b"b")
    c = Document("client:c", NEW, b"c", MAX_DUE)
    zero = Document("client:zero", 1, b"z", 0)
    await kept(cache, a, b, c, zero)
    assert await cache.get(["client:b", "client:none", "client:a", "client:zero", "client:c"]) == [b, None, a, zero, c]
    assert await cache.get([]) == []


async def test_an_older_version_does_not_replace_a_newer_one(cache: RedisCache, url: str) -> None:
    newer = Document("client:a", NEW + 1, b"newer")
    await kept(cache, newer)
    cache.put([Document("client:a", NEW, b"older")])
    await cache.close()  # what was put is done
    async with opened(url) as other:
        assert await other.get(["client:a"]) == [newer]
        await kept(other, Document("client:a", NEW + 2, b"newest"))


async def test_what_was_dropped_is_not_found(cache: RedisCache) -> None:
    a, b = Document("client:a", NEW, b"a"), Document("client:b", NEW, b"b")
    await kept(cache, a, b)
    cache.drop(["client:a"])
    # The drop was sent before: on the same server it is done before.
    assert await cache.get(["client:a", "client:b"]) == [None, b]


async def test_an_entry_lives_for_half_a_minute_from_when_it_was_put(server: RedisServer) -> None:
    document = Document("client:a", NEW, b"a")
    async with opened(server.url) as cache:
        await kept(cache, document)
        [stored] = server.ask("KEYS", "*")
        assert 25_000 < server.ask("PTTL", stored) <= 30_000
        server.ask("PEXPIRE", stored, 5000)
        cache.put([document])
        assert await cache.get(["client:a"]) == [document]
        assert 25_000 < server.ask("PTTL", stored) <= 30_000


async def test_what_a_frozen_server_takes_in_later_lives_so_much_shorter(server: RedisServer) -> None:
    """Its kernel takes what comes, and it does it when it goes on, though we have long left."""
    async with opened(server.url, timeout_s=0.2, entry_s=1.0) as cache:
        await kept(cache, Document("client:first", NEW, b"x"))
        before = server.calls("evalsha")
        server.freeze()
        put_s = time.monotonic()
        cache.put([Document("client:late", NEW, b"old")])
        assert await cache.get(["client:late"]) == [None]
        server.thaw()
        assert server.calls("evalsha") == before + 1
        [late] = server.ask("KEYS", "*late")
        left_s = server.ask("PTTL", late) / 1000
        assert left_s <= 1.0 - (time.monotonic() - put_s) + 0.01
    async with opened(server.url, timeout_s=0.2, entry_s=0.1) as cache:
        await kept(cache, Document("client:first", NEW + 1, b"x"))
        before = server.calls("evalsha")
        server.freeze()
        cache.put([Document("client:too-late", NEW, b"old")])
        assert await cache.get(["client:too-late"]) == [None]
        server.thaw()
        assert server.calls("evalsha") == before + 1
        assert server.ask("KEYS", "*too-late") == []


async def test_a_server_whose_clock_is_elsewhere_keeps_entries_as_long(server: RedisServer) -> None:
    document = Document("client:a", NEW, b"a")
    async with opened(server.url) as cache:
        await kept(cache, document)
        [stored] = server.ask("KEYS", "*")
        for ahead_ms in (10**9, -(10**9)):
            # What the next server at this address would find that we believe; its answer sets us right.
            cache._ahead_ms = {home: known + ahead_ms for home, known in cache._ahead_ms.items()}
            cache.put([document])
            await cache.get(["client:a"])
            assert server.ask("PTTL", stored) <= 30_000
            server.ask("DEL", stored)
            cache.put([document])
            assert await cache.get(["client:a"]) == [document]
            assert 25_000 < server.ask("PTTL", stored) <= 30_000


async def test_what_is_no_entry_is_not_found(server: RedisServer) -> None:
    async with opened(server.url) as cache:
        await kept(cache, Document("client:a", NEW, b"a"))
        [stored] = server.ask("KEYS", "*")
        server.ask("SET", stored, "short")
        assert await cache.get(["client:a"]) == [None]
        server.ask("DEL", stored)
        server.ask("LPUSH", stored, "a list")
        assert await cache.get(["client:a"]) == [None]


async def test_while_the_server_is_down_nothing_is_found_and_nothing_is_waited_for(server: RedisServer) -> None:
    document = Document("client:a", NEW, b"a")
    async with opened(server.url) as cache:
        await kept(cache, document)
        server.kill()
        began_s = time.monotonic()
        for _ in range(100):
            cache.put([document])
            cache.drop(["client:b"])
            assert await cache.get(["client:a", "client:b"]) == [None, None]
        assert time.monotonic() - began_s < 1
        server.start()
        await until(lambda: _is_kept(cache, document), "it works again")


@pytest.mark.parametrize("cluster", [False, True], ids=["server", "cluster"])
async def test_a_frozen_server_is_waited_for_a_quarter_of_a_second_once(
    server: RedisServer, redis_cluster: RedisCluster, cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "REFRESH_S", 0)  # each server of the cluster is asked for its map
    servers = redis_cluster.servers if cluster else [server]
    url = fresh(redis_cluster.url if cluster else server.url)
    cache = RedisCache(RedisUrl.parse(url))
    document = Document("client:a", NEW, b"a")
    await kept(cache, document)
    for each in servers:
        each.freeze()
    began_s = time.monotonic()
    assert await asyncio.gather(*(cache.get(["client:a"]) for _ in range(20))) == [[None]] * 20
    took_s = time.monotonic() - began_s
    assert TIMEOUT_S * 0.9 <= took_s < TIMEOUT_S + 0.2
    assert await cache.get(["client:a"]) == [None]
    assert time.monotonic() - began_s < 2 * TIMEOUT_S + 0.2
    for each in servers:
        each.thaw()
    await until(lambda: _is_kept(cache, document), "it works again")
    await cache.close()


async def test_a_cache_that_is_nowhere_raises_nothing() -> None:
    for scheme in ("redis", "redis+cluster"):
        async with opened(f"{scheme}://127.0.0.1:{free_port()}") as cache:
            cache.put([Document("client:a", NEW, b"a")])
            cache.drop(["client:a"])
            assert await cache.get(["client:a"]) == [None]
        assert await cache.get(["client:a"]) == [None]
        cache.put([Document("client:a", NEW, b"a")])
        cache.drop(["client:a"])
        await cache.close()

"""What Redis adds to the contract: repeats, servers that come and go, slots that move, and how the servers are set."""

import asyncio
import logging
import operator
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from zlib import crc32

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from storage import open_cache, open_documents
from storage import redis as adapter
from storage.documents import Conflict, Document, DocumentStore, Due, StoreUnavailable
from storage.redis import TAGS, RedisDocuments
from storage.redis_url import RedisUrl
from tests.redis_servers import RedisCluster, RedisServer, fresh, proxy, redis_server
from tests.running import until, within
from tests.storage import children
from tests.storage.conftest import SetClock

pytestmark = pytest.mark.usefixtures("short_rests")

TIMEOUT_S = 0.4
"""How long a store waits for a server that does not answer."""


@asynccontextmanager
async def opened(
    url: str, *, clock: Callable[[], float] = time.time, timeout_s: float = 10
) -> AsyncIterator[RedisDocuments]:
    store = RedisDocuments(RedisUrl.parse(url), clock=clock, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


async def put(store: DocumentStore, key: str, body: bytes = b"x", *, due: int | None = None) -> Document:
    [current] = await store.load([key])
    [written] = await store.commit([Document(key, current.version, body, due)])
    return written


async def bodies(store: DocumentStore, keys: list[str]) -> list[bytes]:
    return [document.body for document in await store.load(keys)]


async def works(store: DocumentStore) -> bool:
    try:
        await put(store, "client:again")
    except StoreUnavailable:
        return False
    return True


def again(store: DocumentStore) -> Awaitable[None]:
    """Return when `store` works again."""
    return until(lambda: works(store), "the store works again")


def in_one_bucket(number: int) -> list[str]:
    """Keys of documents that are in one bucket."""
    found: list[str] = []
    for candidate in range(100 * number):
        if crc32(b"client:%d" % candidate) % len(TAGS) == 7:
            found.append(f"client:{candidate}")
    return found[:number]


def slot_key(key: str) -> bytes:
    """What is in the slot of the document `key`."""
    return b"{%s}" % TAGS[crc32(key.encode()) % len(TAGS)]


# --- Buckets


@pytest.mark.parametrize("servers", range(1, 17))
def test_servers_that_share_the_slots_share_the_buckets(servers: int) -> None:
    held = [0] * servers
    for tag in TAGS:
        held[key_slot(tag) * servers // 16_384] += 1
    assert max(held) - min(held) <= 1


def test_the_buckets_are_shared_evenly_by_the_documents() -> None:
    held = [0] * len(TAGS)
    for number in range(64_000):
        held[crc32(b"client:user-%d" % number) % len(TAGS)] += 1
    assert min(held) > 800
    assert max(held) < 1200


def test_the_bucket_of_a_document_never_changes() -> None:
    assert slot_key("client:alice") == b"{fcu}"
    assert slot_key("token:0123") == b"{cmk}"
    assert len(set(TAGS)) == len(TAGS) == 64


# --- Round trips


async def test_a_commit_is_one_script_on_one_server(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "client:first")
        before = server.calls("evalsha")
        await store.commit([Document(f"client:{number}", 0, b"x") for number in range(10)])
        assert server.calls("evalsha") == before + 1


async def test_bodies_that_are_large_together_are_several_scripts_in_order(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "MOST_BYTES", 2500)
    async with opened(server.url) as store:
        moved = await put(store, "client:4")
        before = server.calls("evalsha")
        with pytest.raises(Conflict) as conflict:
            await store.commit([Document(f"client:{number}", 0, b"x" * 1000) for number in range(8)])
        assert server.calls("evalsha") == before + 3
        assert [document.key for document in conflict.value.written] == [f"client:{number}" for number in range(4)]
        assert await bodies(store, [f"client:{number}" for number in range(8)]) == [b"x" * 1000] * 4 + [
            moved.body,
            b"",
            b"",
            b"",
        ]


async def test_in_a_cluster_a_document_is_written_when_the_one_before_it_stands(redis_cluster: RedisCluster) -> None:
    """The server of the second document does not answer: the first one stands. The other way round nothing does."""
    keys = [f"client:{number}" for number in range(20)]
    frozen = redis_cluster.owner(slot_key("client:0"))
    elsewhere = next(key for key in keys if redis_cluster.owner(slot_key(key)) is not frozen)
    async with opened(fresh(redis_cluster.url), timeout_s=TIMEOUT_S) as store:
        await put(store, "client:0", b"old"), await put(store, elsewhere, b"old")
        at_0, at_other = await store.load(["client:0", elsewhere])
        new = [Document(document.key, document.version, b"new") for document in (at_other, at_0)]
        frozen.freeze()
        with pytest.raises(StoreUnavailable):
            await store.commit(new[::-1])
        assert await bodies(store, [elsewhere]) == [b"old"]
        with pytest.raises(StoreUnavailable):
            await store.commit(new)
        assert await bodies(store, [elsewhere]) == [b"new"]


# --- Repeats


@pytest.mark.parametrize("kind", ["replace", "create", "remove"])
async def test_a_write_whose_answer_was_lost_is_repeated_and_counts_as_ours(server: RedisServer, kind: str) -> None:
    async with proxy(server.port) as between, opened(between.url) as store:
        old = await put(store, "client:a", b"old", due=5)
        new = {
            "replace": Document("client:a", old.version, b"new", 6),
            "create": Document("client:b", 0, b"new", 6),
            "remove": Document("client:a", old.version),
        }[kind]
        between.withhold(b"EVALSHA")
        [written] = await store.commit([new])
        assert (between.withheld, between.connections) == (1, 2)
        assert (written.key, written.body, written.due) == (new.key, new.body, new.due)
        assert await store.load([new.key]) == [written]
        assert server.calls("evalsha", failed=False) == 2


async def test_all_documents_of_a_call_whose_answer_was_lost_count_as_ours(server: RedisServer) -> None:
    async with proxy(server.port) as between, opened(between.url) as store:
        gone = await put(store, "client:gone")
        between.withhold(b"EVALSHA")
        written = await store.commit(
            [Document("client:a", 0, b"a"), Document("client:gone", gone.version), Document("client:none")]
        )
        assert between.withheld == 1
        assert await store.load(["client:a", "client:gone", "client:none"]) == written


async def test_a_conflict_whose_answer_was_lost_is_a_conflict_with_the_same_documents_written(
    server: RedisServer,
) -> None:
    async with proxy(server.port) as between, opened(between.url) as store:
        await put(store, "client:moved")
        between.withhold(b"EVALSHA")
        with pytest.raises(Conflict) as conflict:
            await store.commit([Document("client:a", 0, b"a"), Document("client:moved", 0), Document("client:b", 0)])
        assert between.withheld == 1
        assert conflict.value.key == "client:moved"
        assert conflict.value.written == await store.load(["client:a"])


async def test_a_write_that_somebody_replaced_before_its_repeat_is_a_conflict(server: RedisServer) -> None:
    async with proxy(server.port) as between, opened(between.url) as store, opened(server.url) as other:
        old = await put(store, "client:a", b"old")
        between.withhold(b"EVALSHA", meanwhile=lambda: put(other, "client:a", b"theirs, on top of ours"))
        with pytest.raises(Conflict) as conflict:
            await store.commit([Document("client:a", old.version, b"ours"), Document("client:b", 0, b"b")])
        assert conflict.value.written == []
        # "Was not written" is more than is known: both stand. Whoever loads again sees that.
        assert await bodies(store, ["client:a", "client:b"]) == [b"theirs, on top of ours", b"b"]


async def test_a_removal_that_somebody_undid_before_its_repeat_is_a_conflict(server: RedisServer) -> None:
    async with proxy(server.port) as between, opened(between.url) as store, opened(server.url) as other:
        old = await put(store, "client:a", b"old")
        between.withhold(b"EVALSHA", meanwhile=lambda: put(other, "client:a", b"made anew"))
        with pytest.raises(Conflict):
            await store.commit([Document("client:a", old.version)])
        assert await bodies(store, ["client:a"]) == [b"made anew"]


async def test_a_removal_leaves_a_trace_for_a_minute_that_a_new_document_does_not_inherit(server: RedisServer) -> None:
    async with opened(server.url) as store:
        written = await put(store, "client:a", due=5)
        [stored] = server.ask("KEYS", "*d:client:a")
        await store.commit([Document("client:a", written.version)])
        assert server.ask("HLEN", stored) == 2
        assert 50_000 < server.ask("PTTL", stored) <= 60_000
        await put(store, "client:a")
        assert server.ask("PTTL", stored) == -1
        assert await store.due(10, 10) == []


async def test_a_load_whose_answer_was_lost_is_repeated(server: RedisServer) -> None:
    async with proxy(server.port) as between, opened(between.url) as store:
        written = await put(store, "client:a")
        between.withhold(b"HMGET")
        assert await store.load(["client:a"]) == [written]
        assert between.withheld == 1


async def test_scripts_that_the_server_forgot_are_taught_again(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "client:a", b"1")
        server.ask("SCRIPT", "FLUSH")
        commits = (store.commit([Document(f"client:{number}", 0, b"x")]) for number in range(20))
        assert len(await asyncio.gather(*commits)) == 20


# --- Servers that come and go


async def test_connections_that_are_cut_are_replaced_and_no_call_notices(server: RedisServer) -> None:
    async with opened(server.url) as store:
        done = False

        async def count(key: str) -> int:
            number = 0
            while not done:
                [counter] = await store.load([key])
                assert counter.body == (b"%d" % number if number else b"")
                number += 1
                await store.commit([Document(key, counter.version, b"%d" % number)])
            return number

        counting = [asyncio.create_task(count(f"client:{number}")) for number in range(8)]
        cuts = 0
        while cuts < 20 and not any(task.done() for task in counting):
            # A cut that comes before the last one's repeat was answered would be the second in a row.
            calls = server.calls("evalsha")
            await until(lambda calls=calls: _later(server, calls), "they go on")  # type: ignore[misc]
            cuts += server.cut("normal")
        done = True
        numbers = await within(asyncio.gather(*counting))
        assert await bodies(store, [f"client:{number}" for number in range(8)]) == [b"%d" % n for n in numbers]


async def _later(server: RedisServer, calls: int) -> bool:
    return server.calls("evalsha") > calls + 8


async def test_a_server_that_is_down_is_unavailable_at_once_and_works_again_when_it_is_up(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "client:a")
        server.kill()
        began_s = time.monotonic()
        for call in (store.load(["client:a"]), store.due(1, 1), store.scan(), store.commit([Document("a", 0, b"x")])):
            with pytest.raises(StoreUnavailable):
                await call
        assert time.monotonic() - began_s < TIMEOUT_S
        server.start()
        await again(store)


async def test_a_store_can_be_opened_while_the_server_is_down_and_the_log_says_so_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "INSPECT_S", 0.01)
    server.kill()
    async with open_documents(server.url) as store:
        with pytest.raises(StoreUnavailable):
            await store.load(["client:a"])
        await until(lambda: _told(caplog, "the documents in Redis cannot be had"), "it is told")
        server.start()
        await again(store)
        await until(lambda: _told(caplog, "Redis loses documents when it ends"), "it was looked at")
    assert _messages(caplog, logging.ERROR) == ["the documents in Redis cannot be had"]


async def test_a_frozen_server_is_unavailable_within_the_time_and_works_again_afterwards(server: RedisServer) -> None:
    async with opened(server.url, timeout_s=TIMEOUT_S) as store:
        await put(store, "client:a")
        server.freeze()
        began_s = time.monotonic()
        outcomes = await asyncio.gather(
            *(store.commit([Document(f"client:{number}", 0, b"x")]) for number in range(10)), return_exceptions=True
        )
        took_s = time.monotonic() - began_s
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert TIMEOUT_S <= took_s < TIMEOUT_S + 0.5
        # Whoever asks now is told at once. Of some who ask, one at least: what else runs here may hold up the others.
        waited_s = []
        for _ in range(5):
            began_s = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.load(["client:a"])
            waited_s.append(time.monotonic() - began_s)
        assert min(waited_s) < TIMEOUT_S / 2
        server.thaw()
        await again(store)


async def test_a_server_without_memory_is_unavailable_and_nothing_is_half_done(server: RedisServer) -> None:
    async with opened(server.url) as store:
        old, gone = await put(store, "client:old", b"old", due=5), await put(store, "client:gone", b"gone", due=6)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for document in (
            Document("client:old", old.version, b"new", 7),
            Document("client:gone", gone.version),
            Document("client:new", 0, b"new", 8),
        ):
            with pytest.raises(StoreUnavailable, match="OOM"):
                await store.commit([document])
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await store.load(["client:old", "client:gone", "client:new"]) == [old, gone, Document("client:new")]
        assert await store.due(10, 10) == [Due("client:old", 5), Due("client:gone", 6)]
        scanned = (await store.scan()).documents
        assert sorted(document.key for document in scanned) == ["client:gone", "client:old"]
        assert server.ask("KEYS", "*floor") == []


async def test_a_server_that_became_a_replica_is_left_and_found_again(server: RedisServer) -> None:
    async with opened(server.url) as store:
        written = await put(store, "client:a")
        server.ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailable):
            await store.commit([Document("client:a", written.version, b"no")])
        # A name that leads to the new primary would be looked up for the next connection.
        await until(lambda: _has_no_clients(server), "the connection is closed")
        server.ask("REPLICAOF", "NO", "ONE")
        await again(store)
        assert await store.load(["client:a"]) == [written]


@pytest.mark.parametrize("end", [RedisServer.kill, RedisServer.freeze], ids=["killed", "frozen"])
async def test_a_server_of_a_cluster_that_is_gone_does_not_slow_down_what_the_others_have(
    redis_cluster: RedisCluster, end: Callable[[RedisServer], None]
) -> None:
    keys = [f"client:{number}" for number in range(60)]
    gone = redis_cluster.servers[0]
    theirs = [key for key in keys if redis_cluster.owner(slot_key(key)) is gone]
    others = [key for key in keys if key not in theirs]
    async with opened(fresh(redis_cluster.url), timeout_s=TIMEOUT_S) as store:
        for number, key in enumerate(keys):
            await put(store, key, due=number)
        end(gone)
        longest_s = 0.0
        outcomes: list[Document | StoreUnavailable] = []

        async def keep_asking() -> None:
            for key in theirs * 3:
                try:
                    outcomes.append(await put(store, key))
                except StoreUnavailable as error:
                    outcomes.append(error)

        asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
        while not all(task.done() for task in asking):
            for key in others:
                began_s = time.monotonic()
                await put(store, key, due=1000)
                longest_s = max(longest_s, time.monotonic() - began_s)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert longest_s < TIMEOUT_S / 2
        # Wakeups of the others go on; a scan must not leave anybody out.
        assert {entry.key for entry in await store.due(1000, 100)} == set(others)
        with pytest.raises(StoreUnavailable):
            await store.scan()


async def test_when_no_server_answers_nothing_is_due_but_the_store_is_unavailable(redis_cluster: RedisCluster) -> None:
    async with opened(fresh(redis_cluster.url), timeout_s=TIMEOUT_S) as store:
        await put(store, "client:a", due=1)
        for server in redis_cluster.servers:
            server.freeze()
        with pytest.raises(StoreUnavailable):
            await store.due(10, 10)
        redis_cluster.mend()


# --- Several processes, slots that move


@pytest.mark.parametrize("kind", ["redis", "redis_cluster"])
async def test_no_update_is_lost_between_processes(kind: str, request: pytest.FixtureRequest) -> None:
    servers: RedisServer | RedisCluster = request.getfixturevalue(kind)
    url = fresh(servers.url)
    started = [children.start("increment_at", url, "25") for _ in range(2)]
    await asyncio.to_thread(children.finish, started)
    async with opened(url) as store:
        assert await bodies(store, ["counter"]) == [b"200"]


async def test_nothing_is_lost_and_nothing_conflicts_while_slots_move(redis_cluster: RedisCluster) -> None:
    keys = in_one_bucket(200)
    async with opened(fresh(redis_cluster.url)) as store:
        await store.commit([Document(key, 0, b"0", 1) for key in keys])
        done = False
        numbers = [0] * 8

        async def count(part: int) -> None:
            while not done:
                number = numbers[part] + 1
                documents = await store.load(keys[part::8])
                await store.commit([Document(d.key, d.version, b"%d" % number, number) for d in documents])
                numbers[part] = number

        made: list[str] = []

        async def come_and_go() -> None:
            while not done:
                [written] = await store.commit([Document(f"new:{len(made)}", 0, b"x", 5)])
                if len(made) % 2:
                    await store.commit([Document(written.key, written.version)])
                made.append(written.key)

        counting = [asyncio.create_task(count(part)) for part in range(8)]
        coming = asyncio.create_task(come_and_go())
        for _ in range(4):
            before = list(numbers)
            await asyncio.to_thread(redis_cluster.move_slot, slot_key(keys[0]))

            async def all_go_on(before: list[int] = before) -> bool:
                return all(map(operator.lt, before, numbers))

            await until(all_go_on, "all go on")
        done = True
        await within(asyncio.gather(*counting))
        await within(coming)
        documents = await store.load(keys)
        assert [document.body for document in documents] == [b"%d" % numbers[n % 8] for n in range(200)]
        found = {entry.key: entry.due for entry in await store.due(10**6, 10**6)}
        assert {key: found.pop(key) for key in keys} == {document.key: document.due for document in documents}
        assert set(found) == set(made[::2])


async def test_a_commit_waits_while_half_of_its_keys_have_moved(redis_cluster: RedisCluster) -> None:
    one, other = in_one_bucket(2)
    async with opened(fresh(redis_cluster.url)) as store:
        await put(store, one, b"old", due=1)
        stored = await put(store, other, b"old")
        with redis_cluster.moving_slot(slot_key(one)) as (source, target):
            found = source.ask("CLUSTER", "GETKEYSINSLOT", key_slot(slot_key(one)), 100)
            gone = [key for key in found if key.endswith(one.encode())]
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *gone)
            before = source.errors("TRYAGAIN")
            # Each by itself can be read, wherever it is.
            assert await bodies(store, [one, other]) == [b"old", b"old"]
            commit = asyncio.create_task(store.commit([Document(other, stored.version, b"new")]))
            await until(lambda: _refused(source, before), "the server asks to try again")
            assert not commit.done()
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *(set(found) - set(gone)))
        await commit
        assert await bodies(store, [one, other]) == [b"old", b"new"]


async def _refused(server: RedisServer, before: int) -> bool:
    return server.errors("TRYAGAIN") > before


async def test_a_scan_leaves_nothing_out_though_slots_move_meanwhile(redis_cluster: RedisCluster) -> None:
    keys = {f"client:{number}" for number in range(150)}
    async with opened(fresh(redis_cluster.url)) as store:
        await store.commit([Document(key, 0, b"x") for key in keys])
        seen: list[str] = []
        cursor: str | None = None
        for page_number in range(1000):
            page = await store.scan(cursor=cursor, limit=10)
            seen += [document.key for document in page.documents]
            cursor = page.cursor
            if cursor is None:
                break
            if page_number % 3 == 0:  # what was seen, and what was not
                await asyncio.to_thread(redis_cluster.move_slot, slot_key(seen[-1]))
                await asyncio.to_thread(redis_cluster.move_slot, b"{%s}" % TAGS[-1 - page_number])
        assert set(seen) == keys


# --- Due


async def test_the_oldest_of_all_buckets_come_first(redis: RedisServer) -> None:
    async with opened(fresh(redis.url)) as store:
        documents = [Document(f"client:{number}", 0, b"x", number * 7919 % 1009) for number in range(400)]
        await store.commit(documents)
        expected = sorted((cast("int", document.due), document.key) for document in documents)
        for limit in (1, 10, 64, 200, 400, 1000):
            found = await store.due(600, limit)
            assert [entry.due for entry in found] == [due for due, _ in expected if due <= 600][:limit]


async def test_the_oldest_come_first_though_all_are_in_one_bucket(redis: RedisServer) -> None:
    keys = in_one_bucket(300)
    async with opened(fresh(redis.url)) as store:
        await store.commit([Document(key, 0, b"x", number) for number, key in enumerate(keys)])
        await put(store, "elsewhere", due=50)
        found = await store.due(1000, 200)
        assert found == sorted(
            [*(Due(key, number) for number, key in enumerate(keys[:199])), Due("elsewhere", 50)],
            key=lambda entry: (entry.due, entry.key),
        )


async def test_what_is_removed_leaves_nothing_but_the_highest_version_of_its_bucket(server: RedisServer) -> None:
    async with opened(server.url) as store:
        keys = in_one_bucket(3)
        written = [await put(store, key, due=5) for key in keys]
        await store.commit([Document(document.key, document.version) for document in written])
        left = server.ask("KEYS", "*")
        [floor] = (key for key in left if key.endswith(b"floor"))
        assert int(server.ask("GET", floor)) == max(document.version for document in written)
        assert sorted(key.rpartition(b":")[2] for key in left if key != floor) == sorted(
            key.rpartition(":")[2].encode() for key in keys
        )
        assert all(0 < server.ask("PTTL", key) <= 60_000 for key in left if key != floor)


async def test_documents_of_two_prefixes_do_not_see_each_other(redis: RedisServer) -> None:
    async with opened(fresh(redis.url)) as one, opened(fresh(redis.url)) as other:
        await put(one, "client:a", due=1)
        assert await bodies(other, ["client:a"]) == [b""]
        assert (await other.due(10, 10), (await other.scan()).documents) == ([], [])


async def test_versions_go_on_from_what_is_stored_though_the_clock_is_wrong(redis: RedisServer) -> None:
    clock, late = SetClock(), SetClock()
    late.now_s -= 86_400
    url = fresh(redis.url)
    async with opened(url, clock=clock) as store, opened(url, clock=late) as other:
        first = await put(store, "client:a")
        assert (await put(other, "client:a")).version == first.version + 1
        [gone] = await store.commit([Document("client:a", first.version + 1)])
        assert gone.version == 0
        assert (await put(other, "client:a")).version == first.version + 2


async def test_what_is_removed_with_a_lower_version_does_not_lower_that_of_its_bucket(redis: RedisServer) -> None:
    one, other = in_one_bucket(2)
    clock = SetClock()
    async with opened(fresh(redis.url), clock=clock) as store:
        high = await put(store, one)
        clock.now_s -= 3600
        low = await put(store, other)
        assert low.version < high.version
        await store.commit([Document(one, high.version), Document(other, low.version)])
        assert (await put(store, one)).version == high.version + 1


# --- Closing


async def test_closing_finishes_what_was_committed(redis_cluster: RedisCluster) -> None:
    url = fresh(redis_cluster.url)
    async with opened(url) as store:
        commits = [
            asyncio.create_task(store.commit([Document(f"a:{n}", 0, b"x"), Document(f"b:{n}", 0, b"x")]))
            for n in range(50)
        ]
        await asyncio.sleep(0)
    assert all(commit.done() for commit in commits)
    await asyncio.gather(*commits)
    async with opened(url) as store:
        assert await bodies(store, [f"b:{n}" for n in range(50)]) == [b"x"] * 50


async def test_closing_leaves_no_connection_and_no_task(server: RedisServer) -> None:
    before = asyncio.all_tasks()
    async with opened(server.url) as store:
        await put(store, "client:a")
        assert server.clients("normal")
    assert asyncio.all_tasks() == before
    await until(lambda: _has_no_clients(server), "the connections are closed")


async def _has_no_clients(server: RedisServer) -> bool:
    return server.clients("normal") == []


# --- How the servers are set, and how they are named


async def _told(caplog: pytest.LogCaptureFixture, message: str) -> bool:
    return any(message in record.getMessage() for record in caplog.records)


def _messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def _inspected(store: RedisDocuments) -> None:
    await within(asyncio.wait([store._inspection]))


async def test_what_loses_documents_is_told_to_the_log(
    tmp_path: Path, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with opened(server.url) as store:
        await _inspected(store)
    evicts, loses = _messages(caplog, logging.WARNING)
    assert "maxmemory-policy to noeviction" in evicts
    assert "appendonly to yes" in loses
    caplog.clear()
    with redis_server(tmp_path / "durable", "--appendonly", "yes", "--maxmemory-policy", "volatile-lru") as durable:
        async with opened(durable.url) as store:
            await _inspected(store)
    assert _messages(caplog, logging.WARNING) == []


async def test_every_server_of_a_cluster_is_looked_at(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    last = redis_cluster.servers[2]
    last.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    async with opened(fresh(redis_cluster.url)) as store:
        await _inspected(store)
    last.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    told = [record for record in caplog.records if "maxmemory-policy" in record.getMessage()]
    assert [vars(record)["address"] for record in told] == [f"127.0.0.1:{last.port}"]


async def test_the_rights_that_the_documentation_names_are_enough(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
    [rights] = re.findall(r"ACL SETUSER gateway-documents on >a-password (.*)", page)
    server.ask("ACL", "SETUSER", "gateway-documents", "on", ">a-password", *rights.split())
    async with opened(server.url.replace("//", "//gateway-documents:a-password@") + "/1") as store:
        await _inspected(store)
        assert await _told(caplog, "Redis loses documents when it ends")
        first = await put(store, "client:a", due=1)
        await store.commit([Document("client:a", first.version)])
        again = await put(store, "client:a", due=1)
        assert again.version > first.version
        assert await store.due(1, 1) == [Due("client:a", 1)]
        assert (await store.scan()).documents == [again]
        await store.commit([Document("client:a", again.version, b"x")])


async def test_where_settings_are_not_to_be_known_nothing_is_said(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.ask("ACL", "SETUSER", "gateway", "on", ">secret", "~*", "+@all", "-config")
    async with opened(server.url.replace("//", "//gateway:secret@")) as store:
        await _inspected(store)
        await put(store, "client:a")
    assert caplog.records == []


@pytest.mark.parametrize("given", ["nobody:wrong@", ":wrong@", ""])
async def test_a_wrong_password_is_unavailable_and_told_without_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    server.ask("CONFIG", "SET", "requirepass", "right")
    async with opened(server.url.replace("//", f"//{given}")) as store:
        with pytest.raises(StoreUnavailable, match="NOAUTH" if not given else "WRONGPASS"):
            await store.load(["client:a"])
        await until(lambda: _told(caplog, "the documents in Redis cannot be had"), "it is told")
    told = "\n".join(f"{record.getMessage()} {vars(record)['error']}" for record in caplog.records)
    assert ("NOAUTH" if not given else "WRONGPASS") in told
    assert "wrong@" not in told


async def test_a_cluster_that_is_none_and_a_server_that_is_one_of_a_cluster_are_told(
    redis: RedisServer, redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(redis.url.replace("redis:", "redis+cluster:")) as store:
        with pytest.raises(StoreUnavailable, match="cluster support disabled"):
            await store.load(["client:a"])
        await until(lambda: _told(caplog, "the documents in Redis cannot be had"), "it is told")
    async with opened(redis_cluster.servers[0].url) as store:
        with pytest.raises(StoreUnavailable, match=r"one of a cluster: redis\+cluster://"):
            await store.load([f"client:{number}" for number in range(30)])


async def test_without_the_packages_a_sentence_says_so(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("storage.redis", "storage.redis_cache"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StoreUnavailable, match=r"pip install gateway\[redis\]"):
        async with open_documents(redis.url):
            pass
    with pytest.raises(StoreUnavailable, match=r"pip install gateway\[redis\]"):
        open_cache(redis.url)


@pytest.mark.parametrize("url", ["redis://", "redis://:secret@host/x", "redis+cluster://host/3", "redis://h?ca=x"])
async def test_a_url_that_cannot_be_meant_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="the URL of the documents ") as refused:
        async with open_documents(url):
            pass
    assert "secret" not in str(refused.value)


async def test_what_is_no_document_is_unavailable(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await put(store, "client:a")
        [stored] = server.ask("KEYS", "*d:client:a")
        server.ask("DEL", stored)
        server.ask("SET", stored, "something else")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await store.load(["client:a"])
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await store.commit([Document("client:a", 0, b"x")])
        with pytest.raises(ResponseError):
            server.ask("HGETALL", stored)
        await put(store, "client:b")

"""What a store with a cache before it answers, whatever becomes of the cache.

Who changes the store behind the cache's back, as another process does whose words to the cache are lost, uses `inner`.
"""

from collections.abc import Sequence

import pytest

from storage.cache import ENTRY_S, PUT_WITHIN_S, CachedDocuments
from storage.documents import PEEK_AGE_S, Conflict, Document, DocumentStore, Peeked, StoreUnavailable
from storage.memory import MemoryDocuments
from tests.storage.caches import MemoryCache
from tests.storage.conftest import SetClock


class Slow(MemoryDocuments):
    """A store that takes its time: `takes_s`, half of it before it does what it is asked."""

    def __init__(self, clock: SetClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.takes_s = 0.0

    async def load(self, keys: Sequence[str]) -> list[Document]:
        self.clock.now_s += self.takes_s / 2
        loaded = await super().load(keys)
        self.clock.now_s += self.takes_s / 2
        return loaded

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        self.clock.now_s += self.takes_s / 2
        written = await super().commit(documents)
        self.clock.now_s += self.takes_s / 2
        return written


@pytest.fixture
def inner(clock: SetClock) -> Slow:
    return Slow(clock)


@pytest.fixture
def cache(clock: SetClock) -> MemoryCache:
    return MemoryCache(clock)


@pytest.fixture
def store(inner: Slow, cache: MemoryCache, clock: SetClock) -> CachedDocuments:
    return CachedDocuments(inner, cache, clock=clock)


async def write(store: DocumentStore, key: str, body: bytes, version: int | None = None) -> Document:
    """Replace a document, whatever there is, or the given version of it."""
    if version is None:
        [there] = await store.load([key])
        version = there.version
    [written] = await store.commit([Document(key, version, body)])
    return written


async def test_what_was_written_is_found_in_the_cache(store: CachedDocuments, inner: Slow) -> None:
    written = await write(store, "client:a", b"1")
    await write(inner, "client:a", b"2")
    assert await store.peek(["client:a"]) == Peeked([written], ["client:a"])


async def test_what_is_not_in_the_cache_is_loaded_once_and_kept(store: CachedDocuments, inner: Slow) -> None:
    first = await write(inner, "client:a", b"1")
    assert await store.peek(["client:a"]) == Peeked([first], [])
    await write(inner, "client:a", b"2")
    assert await store.peek(["client:a"]) == Peeked([first], ["client:a"])
    assert (store.hits, store.misses) == (1, 1)


async def test_documents_come_in_the_order_of_the_keys_wherever_they_come_from(
    store: CachedDocuments, inner: Slow
) -> None:
    b, d = await write(store, "client:b", b"b"), await write(store, "client:d", b"d")
    a, c = await write(inner, "client:a", b"a"), await write(inner, "client:c", b"c")
    found = await store.peek(["client:a", "client:b", "client:c", "client:d", "client:b", "client:none"])
    assert found.documents == [a, b, c, d, b, Document("client:none")]
    assert set(found.aged) == {"client:b", "client:d"}


async def test_a_load_is_never_answered_from_the_cache_and_mends_the_entry(store: CachedDocuments, inner: Slow) -> None:
    await write(store, "client:a", b"1")
    newest = await write(inner, "client:a", b"2")
    assert await store.load(["client:a"]) == [newest]
    assert (await store.peek(["client:a"])).documents == [newest]


async def test_a_load_that_finds_nothing_takes_the_entry_away(store: CachedDocuments, inner: Slow) -> None:
    written = await write(store, "client:a", b"1")
    await inner.commit([Document("client:a", written.version)])
    assert await store.load(["client:a"]) == [Document("client:a")]
    assert await store.peek(["client:a"]) == Peeked([Document("client:a")], [])


async def test_what_is_not_there_is_not_kept(store: CachedDocuments, inner: Slow) -> None:
    assert await store.peek(["client:a"]) == Peeked([Document("client:a")], [])
    made = await write(inner, "client:a", b"1")
    assert await store.peek(["client:a"]) == Peeked([made], [])


async def test_a_removed_document_has_no_entry(store: CachedDocuments) -> None:
    written = await write(store, "client:a", b"1")
    await store.commit([Document("client:a", written.version)])
    assert await store.peek(["client:a"]) == Peeked([Document("client:a")], [])


async def test_an_entry_is_over_after_its_time(store: CachedDocuments, inner: Slow, clock: SetClock) -> None:
    old = await write(store, "client:a", b"1")
    new = await write(inner, "client:a", b"2")
    clock.now_s += ENTRY_S - 0.1
    assert (await store.peek(["client:a"])).documents == [old]
    clock.now_s += 0.1
    assert await store.peek(["client:a"]) == Peeked([new], [])


async def test_what_is_found_is_not_kept_for_longer(store: CachedDocuments, inner: Slow, clock: SetClock) -> None:
    await write(store, "client:a", b"1")
    new = await write(inner, "client:a", b"2")
    clock.now_s += ENTRY_S / 2
    await store.peek(["client:a"])
    clock.now_s += ENTRY_S / 2
    assert await store.peek(["client:a"]) == Peeked([new], [])


async def test_what_comes_late_replaces_nothing_newer(store: CachedDocuments, cache: MemoryCache, inner: Slow) -> None:
    cache.holding = True
    first = await write(store, "client:a", b"1", 0)
    cache.holding = False
    second = await write(store, "client:a", b"2", first.version)
    await write(inner, "client:a", b"3")
    cache.arrive()
    assert (await store.peek(["client:a"])).documents == [second]


async def test_what_comes_late_lives_no_longer(store: CachedDocuments, cache: MemoryCache, clock: SetClock) -> None:
    cache.holding = True
    written = await write(store, "client:a", b"1")
    clock.now_s += ENTRY_S
    cache.arrive()
    assert await store.peek(["client:a"]) == Peeked([written], [])


async def test_after_a_conflict_what_was_written_is_in_the_cache(store: CachedDocuments, inner: Slow) -> None:
    old = await write(store, "client:b", b"old")
    await write(inner, "client:b", b"new")
    with pytest.raises(Conflict) as conflict:
        await store.commit([Document("client:a", 0, b"made"), Document("client:b", old.version, b"late")])
    [made] = conflict.value.written
    assert await store.peek(["client:a"]) == Peeked([made], ["client:a"])


@pytest.mark.parametrize("takes_s", [PUT_WITHIN_S - 0.1, PUT_WITHIN_S + 0.1])
async def test_what_was_long_under_way_has_no_entry(
    store: CachedDocuments, inner: Slow, clock: SetClock, takes_s: float
) -> None:
    await write(store, "client:a", b"1")
    inner.takes_s = takes_s
    [loaded] = await store.load(["client:a"])
    [written] = await store.commit([Document("client:b", 0, b"1")])
    inner.takes_s = 0.0
    aged = (await store.peek([loaded.key, written.key])).aged
    assert set(aged) == ({"client:a", "client:b"} if takes_s < PUT_WITHIN_S else set())


@pytest.mark.parametrize("takes_s", [0.0, 0.9, 1.1, 12.0])
async def test_nothing_is_ever_older_than_is_promised(
    store: CachedDocuments, inner: Slow, clock: SetClock, takes_s: float
) -> None:
    await write(inner, "client:a", b"old")
    inner.takes_s = takes_s
    await store.load(["client:a"])  # whose document may be replaced at once, behind the cache's back
    moved_s = clock.now_s - takes_s
    inner.takes_s = 0.0
    await write(inner, "client:a", b"new")
    seen_s = moved_s
    while clock.now_s < moved_s + 2 * PEEK_AGE_S:
        [document] = (await store.peek(["client:a"])).documents
        if document.body == b"old":
            seen_s = clock.now_s
        clock.now_s += 0.25
    assert seen_s - moved_s <= PEEK_AGE_S


async def test_a_cache_that_is_down_costs_nothing_but_reads(store: CachedDocuments, cache: MemoryCache) -> None:
    cache.down = True
    written = await write(store, "client:a", b"1")
    assert await store.peek(["client:a"]) == Peeked([written], [])
    cache.down = False
    assert await store.peek(["client:a"]) == Peeked([written], [])
    assert await store.peek(["client:a"]) == Peeked([written], ["client:a"])


async def test_a_write_of_which_nothing_is_known_is_not_in_the_cache(store: CachedDocuments, inner: Slow) -> None:
    written = await write(store, "client:a", b"1")
    await inner.close()
    with pytest.raises(StoreUnavailable):
        await store.commit([Document("client:a", written.version, b"2")])
    assert await store.peek(["client:a"]) == Peeked([written], ["client:a"])


async def test_only_documents_of_the_prefix_leave_the_store(inner: Slow, cache: MemoryCache, clock: SetClock) -> None:
    store = CachedDocuments(inner, cache, prefix="client:", clock=clock)
    await write(store, "client:a", b"1")
    token = await write(store, "token:a", b"secret")
    assert await cache.get(["token:a"]) == [None]
    assert await store.peek(["token:a", "client:a"]) == Peeked([token, *await store.load(["client:a"])], ["client:a"])


@pytest.mark.parametrize("key", ["", "a b", "ä"])
async def test_an_ill_formed_key_is_a_value_error(store: CachedDocuments, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        await store.peek([key])


async def test_to_close_the_store_closes_the_cache(store: CachedDocuments, cache: MemoryCache) -> None:
    await write(store, "client:a", b"1")
    await store.close()
    assert cache.closed
    with pytest.raises(StoreUnavailable):
        await store.peek(["client:a"])


async def test_a_store_without_a_cache_loads_where_it_is_peeked_at(inner: Slow) -> None:
    written = await write(inner, "client:a", b"1")
    assert await inner.peek(["client:a", "client:b"]) == Peeked([written, Document("client:b")], ())

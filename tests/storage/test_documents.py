"""The contract of a document store, sentence by sentence, over every backend."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage import DOCUMENT_SCHEMES, open_documents
from storage.cache import CachedDocuments
from storage.documents import (
    MAX_BODY_BYTES,
    MAX_DUE,
    MAX_KEY_BYTES,
    MAX_LOAD,
    Conflict,
    Document,
    DocumentStore,
    Due,
    StoreUnavailable,
)
from tests.aws_servers import Ministack
from tests.redis_servers import RedisCluster, RedisServer, fresh
from tests.storage.caches import MemoryCache
from tests.storage.conftest import SetClock

IN_ORDER = ["memory", "cached memory", "sqlite", "redis", "redis+cluster"]
"""Those that decide calls in the order in which they were made. DynamoDB's come over many connections at once."""


@pytest.fixture(params=[*IN_ORDER, "dynamodb"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: SetClock) -> AsyncIterator[DocumentStore]:
    async with open_documents(url_of(request, tmp_path), clock=clock) as store:
        cached = request.param.startswith("cached")
        yield CachedDocuments(store, MemoryCache(clock), clock=clock) if cached else store


def url_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """Of an empty store of the kind that is asked for."""
    match request.param:
        case "memory" | "cached memory":
            return "memory:"
        case "sqlite":
            return f"sqlite:///{folder}/documents.db"
        case "dynamodb":
            aws: Ministack = request.getfixturevalue("aws")
            return f"dynamodb://{aws.fresh_table()}?endpoint={aws.endpoint}"
        case kind:
            servers: RedisServer | RedisCluster = request.getfixturevalue(kind.replace("+", "_"))
            return fresh(servers.url)


def us(clock: SetClock) -> int:
    return int(clock.now_s * 1_000_000)


async def put(store: DocumentStore, key: str, body: bytes = b"x", *, due: int | None = None) -> Document:
    [current] = await store.load([key])
    [written] = await store.commit([Document(key, current.version, body, due)])
    return written


async def remove(store: DocumentStore, key: str) -> None:
    [current] = await store.load([key])
    await store.commit([Document(key, current.version)])


async def scan_all(store: DocumentStore, *, limit: int) -> list[Document]:
    documents: list[Document] = []
    cursor: str | None = None
    while True:
        page = await store.scan(cursor=cursor, limit=limit)
        documents += page.documents
        if page.cursor is None:
            return documents
        cursor = page.cursor


async def test_a_missing_document_comes_back_empty_with_version_0(store: DocumentStore) -> None:
    assert await store.load(["client:nobody"]) == [Document("client:nobody")]


async def test_a_committed_document_comes_back_as_it_was_returned(store: DocumentStore) -> None:
    [written] = await store.commit([Document("client:a", 0, b"\x00\xff body", 17)])
    assert (written.key, written.body, written.due) == ("client:a", b"\x00\xff body", 17)
    assert written.version > 0
    assert await store.load(["client:a"]) == [written]


async def test_documents_are_loaded_in_the_order_of_the_keys(store: DocumentStore) -> None:
    b, a = await put(store, "client:b"), await put(store, "client:a")
    assert await store.load(["client:b", "client:none", "client:a"]) == [b, Document("client:none"), a]


async def test_a_key_may_be_loaded_twice_in_one_call(store: DocumentStore) -> None:
    a = await put(store, "client:a")
    assert await store.load(["client:a", "client:a"]) == [a, a]


async def test_loading_nothing_gives_nothing(store: DocumentStore) -> None:
    assert await store.load([]) == []


async def test_peeking_into_a_store_without_a_cache_loads(store: DocumentStore) -> None:
    a = await put(store, "client:a")
    found = await store.peek(["client:a", "client:none"])
    assert found.documents == [a, Document("client:none")]
    assert not found.aged or isinstance(store, CachedDocuments)


async def test_every_printable_character_may_be_in_a_key(store: DocumentStore) -> None:
    key = "".join(chr(code) for code in range(33, 127))
    written = await put(store, key)
    assert await store.load([key, "other"]) == [written, Document("other")]


async def test_a_new_version_is_the_time_in_microseconds(store: DocumentStore, clock: SetClock) -> None:
    assert (await put(store, "client:a")).version == us(clock)


async def test_a_new_version_is_one_higher_where_the_clock_did_not_move(store: DocumentStore, clock: SetClock) -> None:
    first = await put(store, "client:a")
    assert (await put(store, "client:a")).version == first.version + 1


async def test_versions_grow_though_the_clock_steps_back(store: DocumentStore, clock: SetClock) -> None:
    first = await put(store, "client:a")
    clock.now_s -= 3600
    assert (await put(store, "client:a")).version == first.version + 1


async def test_a_removed_document_returns_version_0_and_is_gone(store: DocumentStore) -> None:
    written = await put(store, "client:a", due=5)
    assert await store.commit([Document("client:a", written.version)]) == [Document("client:a")]
    assert await store.load(["client:a"]) == [Document("client:a")]
    assert await store.due(10, 10) == []
    assert (await store.scan()).documents == []


async def test_a_version_is_not_used_again_after_a_removal_though_the_clock_steps_back(
    store: DocumentStore, clock: SetClock
) -> None:
    first = await put(store, "client:a")
    last = await put(store, "client:a")
    await remove(store, "client:a")
    clock.now_s -= 3600
    again = await put(store, "client:a")
    assert again.version > last.version > first.version


async def test_removing_another_document_does_not_lower_what_versions_start_from(
    store: DocumentStore, clock: SetClock
) -> None:
    high = await put(store, "client:high")
    clock.now_s -= 3600
    await put(store, "client:low")
    await remove(store, "client:high")
    await remove(store, "client:low")
    assert (await put(store, "client:high")).version > high.version


async def test_removing_what_is_not_there_does_nothing(store: DocumentStore) -> None:
    assert await store.commit([Document("client:a")]) == [Document("client:a")]
    assert await store.load(["client:a"]) == [Document("client:a")]


async def test_a_document_that_moved_is_a_conflict_and_stays_as_it_is(store: DocumentStore) -> None:
    first = await put(store, "client:a", b"first")
    second = await put(store, "client:a", b"second")
    with pytest.raises(Conflict) as conflict:
        await store.commit([Document("client:a", first.version, b"late")])
    assert (conflict.value.key, conflict.value.written) == ("client:a", [])
    assert await store.load(["client:a"]) == [second]


@pytest.mark.parametrize("body", [b"", b"body"], ids=["removal", "replacement"])
async def test_a_version_above_the_stored_one_is_a_conflict(store: DocumentStore, body: bytes) -> None:
    written = await put(store, "client:a")
    with pytest.raises(Conflict):
        await store.commit([Document("client:a", written.version + 1, body)])
    assert await store.load(["client:a"]) == [written]


async def test_making_or_removing_what_was_thought_not_to_be_there_is_a_conflict(
    store: DocumentStore, clock: SetClock
) -> None:
    await put(store, "client:a")
    clock.now_s += 1
    for body in (b"new", b""):
        with pytest.raises(Conflict):
            await store.commit([Document("client:a", 0, body)])
    assert [document.body for document in await store.load(["client:a"])] == [b"x"]


async def test_replacing_a_document_that_was_removed_is_a_conflict(store: DocumentStore) -> None:
    written = await put(store, "client:a")
    await remove(store, "client:a")
    with pytest.raises(Conflict):
        await store.commit([Document("client:a", written.version, b"late")])


async def test_at_a_conflict_the_earlier_ones_stay_and_the_later_ones_are_not_touched(store: DocumentStore) -> None:
    moved = await put(store, "client:moved")
    with pytest.raises(Conflict) as conflict:
        await store.commit(
            [
                Document("client:one", 0, b"1"),
                Document("client:two", 0, b"2"),
                Document("client:moved", 1, b"no"),
                Document("client:late", 0, b"no"),
            ]
        )
    assert conflict.value.key == "client:moved"
    one, two = conflict.value.written
    assert (one.key, one.body, two.key, two.body) == ("client:one", b"1", "client:two", b"2")
    stored = await store.load(["client:one", "client:two", "client:moved", "client:late"])
    assert stored == [one, two, moved, Document("client:late")]


async def test_one_commit_replaces_makes_and_removes(store: DocumentStore) -> None:
    old, gone = await put(store, "client:old"), await put(store, "client:gone")
    written = await store.commit(
        [
            Document("client:new", 0, b"new"),
            Document("client:gone", gone.version),
            Document("client:old", old.version, b"o"),
        ]
    )
    assert await store.load(["client:new", "client:gone", "client:old"]) == written
    assert [bool(document.version) for document in written] == [True, False, True]


async def test_committing_nothing_does_nothing(store: DocumentStore) -> None:
    assert await store.commit([]) == []


async def test_of_many_that_replace_one_version_exactly_one_succeeds(store: DocumentStore) -> None:
    base = await put(store, "client:a")
    outcomes = await asyncio.gather(
        *(store.commit([Document("client:a", base.version, b"%d" % number)]) for number in range(50)),
        return_exceptions=True,
    )
    [won] = [outcome for outcome in outcomes if isinstance(outcome, list)]
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 49
    assert await store.load(["client:a"]) == won


async def test_concurrent_commits_of_different_documents_all_succeed(store: DocumentStore) -> None:
    keys = [f"client:{number}" for number in range(200)]
    written = await asyncio.gather(*(store.commit([Document(key, 0, key.encode())]) for key in keys))
    assert await store.load(keys) == [document for [document] in written]


@pytest.mark.parametrize("store", IN_ORDER, indirect=True)
async def test_a_commit_that_was_started_first_is_applied_first(store: DocumentStore) -> None:
    outcomes = await asyncio.gather(
        store.commit([Document("client:a", 0, b"made")]),
        store.commit([Document("client:a", 0, b"made again")]),
        store.commit(
            [Document("client:b", 0, b"made"), Document("client:a", 0, b"no"), Document("client:c", 0, b"no")]
        ),
        store.commit([Document("client:b", 0, b"no")]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [list, Conflict, Conflict, Conflict]
    assert [document.body for document in await store.load(["client:a", "client:b", "client:c"])] == [
        b"made",
        b"made",
        b"",
    ]


async def test_a_load_sees_a_commit_that_returned(store: DocumentStore) -> None:
    for number in range(50):
        written = await put(store, "client:a", b"%d" % number)
        assert await store.load(["client:a"]) == [written]


async def test_a_peek_finds_what_a_load_finds_where_nobody_else_writes(store: DocumentStore) -> None:
    for number in range(3):
        written = await put(store, "client:a", b"%d" % number)
        assert (await store.peek(["client:none", "client:a"])).documents == [Document("client:none"), written]
    await remove(store, "client:a")
    assert (await store.peek(["client:a"])).documents == [Document("client:a")]


async def test_a_cancelled_commit_leaves_the_store_working(store: DocumentStore) -> None:
    commits = [asyncio.ensure_future(store.commit([Document(f"client:{n}", 0, b"x")])) for n in range(20)]
    await asyncio.sleep(0)
    for commit in commits[::2]:
        commit.cancel()
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    assert all(isinstance(outcome, list | asyncio.CancelledError) for outcome in outcomes)
    assert [document.version > 0 for document in await store.load([f"client:{n}" for n in range(1, 20, 2)])] == [
        True
    ] * 10
    await put(store, "client:after")


async def test_due_entries_come_oldest_first_up_to_the_time_and_the_limit(store: DocumentStore) -> None:
    for key, due in [("client:c", 30), ("client:a", 10), ("client:none", None), ("client:b", 20), ("client:zero", 0)]:
        await put(store, key, due=due)
    assert await store.due(20, 10) == [Due("client:zero", 0), Due("client:a", 10), Due("client:b", 20)]
    assert await store.due(MAX_DUE, 2) == [Due("client:zero", 0), Due("client:a", 10)]
    assert await store.due(-1, 10) == []


async def test_a_due_time_moves_with_its_document(store: DocumentStore) -> None:
    await put(store, "client:a", due=10)
    await put(store, "client:a", due=20)
    assert await store.due(100, 10) == [Due("client:a", 20)]
    await put(store, "client:a", due=None)
    assert await store.due(100, 10) == []


async def test_the_latest_due_time_is_kept_exactly(store: DocumentStore) -> None:
    written = await put(store, "client:a", due=MAX_DUE)
    assert await store.load(["client:a"]) == [written]
    assert await store.due(MAX_DUE, 10) == [Due("client:a", MAX_DUE)]


async def test_a_document_that_stays_due_is_named_again(store: DocumentStore) -> None:
    await put(store, "client:a", due=10)
    assert await store.due(10, 10) == await store.due(10, 10) == [Due("client:a", 10)]


@pytest.mark.parametrize("limit", [1, 7, 25, 1000])
async def test_a_scan_returns_every_document(store: DocumentStore, limit: int) -> None:
    written = await store.commit([Document(f"client:{number}", 0, b"%d" % number, number) for number in range(25)])
    scanned = await scan_all(store, limit=limit)
    assert {document.key: document for document in scanned} == {document.key: document for document in written}


async def test_a_scan_returns_what_is_there_all_the_time_though_others_come_and_go(store: DocumentStore) -> None:
    staying = {f"client:{number:02}" for number in range(0, 40, 2)}
    for number in range(40):
        await put(store, f"client:{number:02}")
    page = await store.scan(limit=5)
    seen = {document.key for document in page.documents}
    number = 1
    while page.cursor is not None:
        await remove(store, f"client:{number:02}")
        await put(store, f"client:new-{number:02}")
        page = await store.scan(cursor=page.cursor, limit=5)
        seen |= {document.key for document in page.documents}
        number += 2
    assert staying <= seen


@pytest.mark.parametrize("parts", [1, 2, 4, 7])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_the_parts_of_a_scan_have_every_document_together(store: DocumentStore, parts: int, limit: int) -> None:
    written = await store.commit([Document(f"client:{number}", 0, b"%d" % number, number) for number in range(40)])
    cursors: dict[int, str | None] = dict.fromkeys(range(parts))
    scanned: dict[str, Document] = {}
    while cursors:  # each part goes on with its own cursor, whatever the others do in between
        for part, cursor in [*cursors.items()]:
            page = await store.scan(cursor=cursor, limit=limit, part=part, parts=parts)
            scanned |= {document.key: document for document in page.documents}
            cursors[part] = page.cursor
            assert page.cursor != ""
            if page.cursor is None:
                del cursors[part]
    assert scanned == {document.key: document for document in written}


@pytest.mark.parametrize(("part", "parts"), [(-1, 4), (4, 4), (1, 1), (0, 0)])
async def test_a_part_that_there_is_not_is_a_value_error(store: DocumentStore, part: int, parts: int) -> None:
    with pytest.raises(ValueError, match="part"):
        await store.scan(part=part, parts=parts)


async def test_scanning_an_empty_store_ends_at_once(store: DocumentStore) -> None:
    page = await store.scan()
    assert (page.documents, page.cursor) == ([], None)


async def test_keys_and_bodies_of_the_greatest_size_are_kept(store: DocumentStore) -> None:
    written = await put(store, "k" * MAX_KEY_BYTES, b"x" * MAX_BODY_BYTES)
    assert await store.load(["k" * MAX_KEY_BYTES]) == [written]


async def test_the_most_documents_of_one_call_are_committed_and_loaded(store: DocumentStore) -> None:
    written = await store.commit([Document(f"client:{number}", 0, b"x") for number in range(MAX_LOAD)])
    assert await store.load([document.key for document in written]) == written


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ä", "a\x7f", "k" * (MAX_KEY_BYTES + 1)])
async def test_an_ill_formed_key_is_a_value_error(store: DocumentStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        await store.load([key])
    with pytest.raises(ValueError, match="not a key"):
        await store.commit([Document("client:good", 0, b"x"), Document(key, 0, b"x")])
    assert await store.load(["client:good"]) == [Document("client:good")]


@pytest.mark.parametrize(
    "documents",
    [
        [Document("client:a", 0, b"x" * (MAX_BODY_BYTES + 1))],
        [Document("client:a", 0, b"", 5)],
        [Document("client:a", 0, b"x", -1)],
        [Document("client:a", 0, b"x", MAX_DUE + 1)],
        [Document("client:a", 0, b"x"), Document("client:a", 0, b"y")],
        [Document(f"client:{number}", 0, b"x") for number in range(MAX_LOAD + 1)],
    ],
    ids=["body too large", "removed and due", "due before the epoch", "due too late", "key twice", "too many"],
)
async def test_documents_beyond_the_limits_are_a_value_error(store: DocumentStore, documents: list[Document]) -> None:
    with pytest.raises(ValueError, match=r"."):
        await store.commit(documents)
    assert await store.load(["client:a"]) == [Document("client:a")]


async def test_too_many_keys_are_a_value_error(store: DocumentStore) -> None:
    with pytest.raises(ValueError, match="at most"):
        await store.load(["client:a"] * (MAX_LOAD + 1))


async def test_a_closed_store_is_unavailable(store: DocumentStore) -> None:
    await store.close()
    for call in (
        store.load(["client:a"]),
        store.peek(["client:a"]),
        store.due(1, 1),
        store.scan(),
        store.scan(part=1, parts=2),
        store.commit([Document("client:a", 0, b"x")]),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    await store.close()


def test_the_body_is_not_shown() -> None:
    assert "secret" not in repr(Document("client:a", 1, b"secret"))


def test_the_schemes_are_named() -> None:
    redis = {"redis", "rediss", "redis+cluster", "rediss+cluster"}
    assert set(DOCUMENT_SCHEMES) == {"memory", "sqlite", "dynamodb"} | redis


@pytest.mark.parametrize("url", ["mysql://x", "", "sqlite", "path/to.db"])
async def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(", ".join(DOCUMENT_SCHEMES))):
        async with open_documents(url):
            pass


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:/a", "sqlite:///a?mode=ro", "sqlite:///a#b", "memory:x"]
)
async def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"memory:|sqlite:///"):
        async with open_documents(url):
            pass


async def test_a_relative_path_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_documents("sqlite:///new/folder%20x/documents.db") as store:
        await put(store, "client:a")
    assert (tmp_path / "new" / "folder x" / "documents.db").is_file()

"""The contract of an object store that the gateway serves itself, sentence by sentence, over memory and disk."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage import OBJECT_SCHEMES, open_objects
from storage.objects import (
    MAX_CONTENT_TYPE_LENGTH,
    MAX_KEY_LENGTH,
    AlreadyStored,
    BytesRefused,
    ObjectInfo,
    ObjectsUnavailable,
    ServedObjectStore,
    UploadGrant,
)
from tests.storage.conftest import DATA, KEY, TYPE, cut, grant_for, keys, put, read, stream


@pytest.mark.parametrize("size", [1, 65_536, 1_048_575, 1_048_576, 1_048_577, 3_000_000])
async def test_an_upload_is_stored_whole(objects: ServedObjectStore, size: int) -> None:
    data = (DATA * 3)[:size]
    await objects.receive(grant_for(data, sha256=hashlib.sha256(data).hexdigest()), cut(data))
    assert await objects.head(KEY) == ObjectInfo(KEY, size, TYPE)
    assert await read(objects, KEY, 0, size) == data


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_chunks_may_be_of_any_size(objects: ServedObjectStore, size: int) -> None:
    data = DATA[:5000] if size < 100 else DATA
    await objects.receive(grant_for(data), cut(data, size))
    assert await read(objects, KEY, 0, len(data)) == data


async def test_empty_chunks_are_nothing(objects: ServedObjectStore) -> None:
    await objects.receive(grant_for(b"ab"), stream([b"", b"a", b"", b"b", b""]))
    assert await read(objects, KEY, 0, 2) == b"ab"


async def test_the_longest_key_and_content_type_are_kept(objects: ServedObjectStore) -> None:
    key = "a/" + "b" * (MAX_KEY_LENGTH - 2)
    content_type = "v/" + "m" * (MAX_CONTENT_TYPE_LENGTH - 2)
    grant = UploadGrant(key, 1, content_type, None)
    await objects.receive(grant, cut(b"x"))
    assert await objects.head(key) == ObjectInfo(key, 1, content_type)
    assert await keys(objects) == [key]


async def test_what_is_stored_is_not_replaced_and_no_chunk_is_taken(objects: ServedObjectStore) -> None:
    await put(objects, KEY, b"first")

    taken: list[bytes] = []

    async def watched() -> AsyncIterator[bytes]:
        taken.append(b"other")
        yield b"other"

    with pytest.raises(AlreadyStored):
        await objects.receive(grant_for(b"other"), watched())
    assert taken == []
    assert await read(objects, KEY, 0, 5) == b"first"


async def test_bytes_that_are_too_many_are_refused_before_the_next_chunk(objects: ServedObjectStore) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"12345"

    chunks = endless()
    with pytest.raises(BytesRefused):
        await objects.receive(grant_for(b"x" * 12), chunks)
    assert taken == 3
    assert await objects.head(KEY) is None


@pytest.mark.parametrize("data", [b"", DATA[:-1]])
async def test_bytes_that_are_too_few_are_refused(objects: ServedObjectStore, data: bytes) -> None:
    with pytest.raises(BytesRefused):
        await objects.receive(grant_for(DATA), cut(data))
    assert await objects.head(KEY) is None
    assert await keys(objects) == []


@pytest.mark.parametrize("size", [100, 2_500_000])
async def test_bytes_with_another_hash_are_refused(objects: ServedObjectStore, size: int) -> None:
    data = bytearray((DATA * 3)[:size])
    sha256 = hashlib.sha256(data).hexdigest()
    data[size // 2] ^= 1
    with pytest.raises(BytesRefused):
        await objects.receive(grant_for(bytes(data), sha256=sha256), cut(bytes(data)))
    assert await objects.head(KEY) is None


async def test_a_broken_connection_leaves_nothing_and_the_next_upload_succeeds(objects: ServedObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await objects.receive(grant_for(DATA), broken())
    assert await objects.head(KEY) is None
    await put(objects, KEY, DATA)
    assert await read(objects, KEY, 0, len(DATA)) == DATA


async def test_a_cancelled_upload_leaves_nothing_and_the_next_upload_succeeds(objects: ServedObjectStore) -> None:
    waiting = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        waiting.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(objects.receive(grant_for(DATA), stalled()))
    await waiting.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert await objects.head(KEY) is None
    await put(objects, KEY, DATA)


async def test_of_many_uploads_of_one_key_exactly_one_succeeds(objects: ServedObjectStore) -> None:
    def data(number: int) -> bytes:
        return bytes([number]) * 100_000

    everyone = asyncio.Barrier(8)

    async def together(number: int) -> AsyncIterator[bytes]:
        await everyone.wait()  # so that all have begun before one ends
        async for chunk in cut(data(number)):
            yield chunk

    outcomes = await asyncio.gather(
        *(objects.receive(grant_for(data(number)), together(number)) for number in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, AlreadyStored) for outcome in outcomes) == 7
    assert await read(objects, KEY, 0, 100_000) == data(outcomes.index(None))


async def test_an_upload_becomes_visible_only_when_it_is_whole(objects: ServedObjectStore) -> None:
    async def watched() -> AsyncIterator[bytes]:
        async for chunk in cut(DATA):
            assert await objects.head(KEY) is None
            assert await keys(objects) == []
            yield chunk

    await objects.receive(grant_for(DATA), watched())
    assert await keys(objects) == [KEY]


async def test_a_missing_object_is_none(objects: ServedObjectStore) -> None:
    assert await objects.head(KEY) is None
    assert await objects.open(KEY) is None


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (0, 1), (len(DATA) - 1, 1), (len(DATA), 0), (1, 262_144), (100_000, 700_001), (0, len(DATA))],
)
async def test_any_range_within_the_object_is_read(objects: ServedObjectStore, start: int, length: int) -> None:
    await put(objects, KEY, DATA)
    assert await read(objects, KEY, start, length) == DATA[start : start + length]


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 5), (4, 1), (2, -1)])
async def test_a_range_beyond_the_object_is_a_value_error(objects: ServedObjectStore, start: int, length: int) -> None:
    await put(objects, KEY, b"data")
    with pytest.raises(ValueError, match="within"):
        await read(objects, KEY, start, length)


async def test_two_reads_of_one_open_object_do_not_disturb_each_other(objects: ServedObjectStore) -> None:
    await put(objects, KEY, DATA)
    found = await objects.open(KEY)
    assert found is not None
    first, second = found.read(0, len(DATA)), found.read(1, len(DATA) - 1)
    pieces: tuple[list[bytes], list[bytes]] = ([], [])
    for _ in range(4):
        pieces[0].append(await anext(first))
        pieces[1].append(await anext(second))
    assert (b"".join(pieces[0]), b"".join(pieces[1])) == (DATA, DATA[1:])
    await found.close()
    await found.close()


async def test_an_open_object_stays_readable_though_it_is_deleted(objects: ServedObjectStore) -> None:
    await put(objects, KEY, DATA)
    found = await objects.open(KEY)
    assert found is not None
    await objects.delete([KEY])
    assert await objects.open(KEY) is None
    assert b"".join([chunk async for chunk in found.read(0, len(DATA))]) == DATA
    await found.close()


async def test_deleted_objects_are_gone_and_missing_ones_are_no_error(objects: ServedObjectStore) -> None:
    for key in ("a/1", "a/2", "b/1"):
        await put(objects, key)
    await objects.delete(["a/1", "a/none", "none/1", "b/1"])
    assert await keys(objects) == ["a/2"]
    assert await objects.head("a/1") is None
    await objects.delete([])
    await objects.delete(["a/1"])


async def test_a_deleted_key_can_be_stored_anew(objects: ServedObjectStore) -> None:
    await put(objects, KEY, b"first")
    await objects.delete([KEY])
    await put(objects, KEY, b"second")
    assert await read(objects, KEY, 0, 6) == b"second"


MANY = ["a-b/1", "a/b/c", "a/b", "a/b-c", "a/b.c", "a/b/c/d", "a/b/", "a/B", "a/_", "b/0", "0/x/y/z/1/2/3/4"]


async def test_keys_are_listed_in_their_own_order(objects: ServedObjectStore) -> None:
    stored = [key for key in MANY if not key.endswith("/")]
    for key in stored:
        await put(objects, key)
    assert await keys(objects) == sorted(stored)
    assert await keys(objects, "a/") == sorted(key for key in stored if key.startswith("a/"))
    assert await keys(objects, "c/") == []


async def test_a_listing_goes_on_after_any_key(objects: ServedObjectStore) -> None:
    stored = sorted(key for key in MANY if not key.endswith("/"))
    for key in stored:
        await put(objects, key)
    for after in [*stored, "", "a", "a/", "a/b~", "zzz"]:
        assert await keys(objects, after=after) == [key for key in stored if key > after]
        assert await keys(objects, "a/", after=after) == [key for key in stored if key > after and key.startswith("a/")]


async def test_objects_may_come_and_go_while_they_are_listed(objects: ServedObjectStore) -> None:
    for number in range(10):
        await put(objects, f"{number}/x")
    listed = []
    async for key in objects.list(""):
        listed.append(key)
        await objects.delete([key])
        await put(objects, f"{key}-new")
    assert {f"{number}/x" for number in range(10)} <= set(listed)


@pytest.mark.parametrize("prefix", ["a", "a/b/", "/", "../", "a//", "ä/"])
async def test_an_ill_formed_prefix_is_a_value_error(objects: ServedObjectStore, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        await keys(objects, prefix)


BAD_KEYS = [
    "", "a", "/a", "a/", "a//b", "a/.", "a/..", "./a", "../a", "a/../b", "a/b~c", "a/b c", "a/b\n", "a/\0", "a/ä",
    "a\\b/c", "a/b%2f", "a/b/c/d/e/f/g/h/i", "a/" + "b" * (MAX_KEY_LENGTH - 1),
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_an_ill_formed_key_is_a_value_error(objects: ServedObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        await objects.sign_upload(key, size=1, content_type=TYPE, sha256=None, expires_at=1)
    with pytest.raises(ValueError, match="not a key"):
        await objects.sign_download(key, expires_at=1)
    with pytest.raises(ValueError, match="not a key"):
        await objects.head(key)
    with pytest.raises(ValueError, match="not a key"):
        await objects.open(key)
    with pytest.raises(ValueError, match="not a key"):
        await objects.delete([key])
    with pytest.raises(ValueError, match="not a key"):
        await objects.receive(UploadGrant(key, 1, TYPE, None), cut(b"x"))


async def test_there_is_nothing_stale_to_discard_at_first(objects: ServedObjectStore) -> None:
    assert await objects.discard_stale() == 0


async def test_a_closed_store_is_unavailable(objects: ServedObjectStore) -> None:
    await objects.close()
    calls = (
        objects.head(KEY),
        objects.open(KEY),
        objects.delete([KEY]),
        objects.discard_stale(),
        keys(objects),
        put(objects, KEY),
    )
    for call in calls:
        with pytest.raises(ObjectsUnavailable):
            await call
    await objects.close()


@pytest.mark.parametrize("url", ["ftp://x", "", "file", "/path"])
async def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(ValueError, match=", ".join(OBJECT_SCHEMES)):
        async with open_objects(url):
            pass


@pytest.mark.parametrize("url", ["file:", "file://", "file://host/path", "file:///a?b", "memory:x", "memory://"])
async def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"file:|memory:"):
        async with open_objects(url):
            pass


async def test_a_relative_folder_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_objects("file:some/where%20else") as objects:
        assert isinstance(objects, ServedObjectStore)
        await put(objects, KEY)
    assert (tmp_path / "some" / "where else" / "objects").is_dir()

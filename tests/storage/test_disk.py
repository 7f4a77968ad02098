"""What the disk adds to the contract: its files, several processes, and what goes wrong with a disk."""

import asyncio
import errno
import hashlib
import os
import resource
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.disk import PIECE_BYTES, STALE_S, DiskObjects
from storage.disk_files import IncomingFile, ObjectFiles
from storage.objects import AlreadyStored, BytesRefused, ObjectInfo, ObjectsUnavailable
from tests.storage import children
from tests.storage.conftest import (
    DATA,
    KEY,
    NAME,
    TYPE,
    SetClock,
    cut,
    file_of,
    grant_for,
    keys,
    put,
    query_of,
    read,
    stream,
)


def incoming(root: Path) -> list[Path]:
    return list((root / "incoming").iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """The disk is full, as far as this process is concerned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_object_is_one_file_with_its_bytes_first(disk: DiskObjects, root: Path) -> None:
    await put(disk, KEY, DATA)
    data = await asyncio.to_thread(file_of(root).read_bytes)
    assert data.startswith(DATA)
    assert TYPE.encode() in data[len(DATA) :]
    assert incoming(root) == []


async def test_only_the_owner_can_read_what_is_stored(disk: DiskObjects, root: Path) -> None:
    modes: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        yield b"da"
        modes.extend(mode_of(path) for path in incoming(root))
        yield b"ta"

    await disk.receive(grant_for(b"data"), watched())
    modes += [mode_of(file_of(root)), mode_of(root / "secret")]
    assert modes == [0o600] * 3
    assert [mode_of(root / name) for name in ("objects", "incoming", "objects/7")] == [0o700] * 3


async def test_objects_and_urls_survive_a_restart(root: Path, clock: SetClock) -> None:
    before = DiskObjects(root, clock=clock)
    await put(before, KEY, DATA)
    download = await before.sign_download(KEY, expires_at=clock.now_ms + 1000)
    await before.close()
    after = DiskObjects(root, clock=clock)
    after.authorize_download(KEY, query_of(download.url), method="GET")
    assert await read(after, KEY, 0, len(DATA)) == DATA
    await after.close()


async def test_two_stores_on_one_folder_are_one(disk: DiskObjects, root: Path, clock: SetClock) -> None:
    other = DiskObjects(root, clock=clock)
    upload = await disk.sign_upload(KEY, size=4, content_type=TYPE, sha256=None, expires_at=clock.now_ms + 1000)
    await other.receive(other.authorize_upload(KEY, query_of(upload.url)), cut(b"data"))
    assert await disk.head(KEY) == ObjectInfo(KEY, 4, TYPE)
    with pytest.raises(AlreadyStored):
        await put(disk, KEY)
    await disk.delete([KEY])
    assert await other.head(KEY) is None
    await other.close()


async def test_urls_of_another_folder_are_worth_nothing(disk: DiskObjects, tmp_path: Path, clock: SetClock) -> None:
    other = DiskObjects(tmp_path / "other", clock=clock)
    assert (tmp_path / "other" / "secret").stat().st_size == 32
    ours, theirs = [await store.sign_download(KEY, expires_at=clock.now_ms + 1000) for store in (disk, other)]
    assert query_of(ours.url)["signature"] != query_of(theirs.url)["signature"]
    await other.close()


async def test_processes_that_start_at_once_agree_on_one_secret(root: Path) -> None:
    urls = children.finish([children.start("sign", root) for _ in range(8)])
    assert len(set(urls)) == 1
    assert incoming(root) == []


async def test_a_damaged_secret_is_refused_and_left_alone(root: Path) -> None:
    await asyncio.to_thread(root.mkdir, parents=True)
    (root / "secret").touch()
    with pytest.raises(ObjectsUnavailable, match="32 bytes"):
        DiskObjects(root)
    assert (root / "secret").stat().st_size == 0


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ObjectsUnavailable, match="cannot use"):
        DiskObjects(tmp_path / "file")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "objects").symlink_to(tmp_path)
    with pytest.raises(ObjectsUnavailable, match="cannot use"):
        DiskObjects(tmp_path / "linked")


async def test_a_root_that_is_a_link_is_followed(tmp_path: Path, clock: SetClock) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    disk = DiskObjects(tmp_path / "link", clock=clock)
    await put(disk, KEY)
    await disk.close()
    assert (tmp_path / "real" / "objects" / "7" / NAME).is_file()


@pytest.mark.parametrize("size", [1000, PIECE_BYTES + 1])
@pytest.mark.parametrize("fault", ["too many", "too few", "another hash", "broken"])
async def test_a_refused_upload_leaves_no_file(disk: DiskObjects, root: Path, fault: str, size: int) -> None:
    data = b"x" * size

    async def broken() -> AsyncIterator[bytes]:
        yield data
        raise ConnectionResetError

    grant = grant_for(data, sha256=hashlib.sha256(b"other" if fault == "another hash" else data).hexdigest())
    chunks = {
        "too many": stream([data, b"x"]),
        "too few": stream([data[1:]]),
        "another hash": stream([data]),
        "broken": broken(),
    }[fault]
    with pytest.raises((BytesRefused, ConnectionResetError)):
        await disk.receive(grant, chunks)
    assert incoming(root) == []
    assert await keys(disk) == []


@pytest.mark.parametrize("step", ["create", "write", "publish"])
async def test_an_upload_that_is_cancelled_while_it_waits_for_the_disk_leaves_no_file(
    disk: DiskObjects, root: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    started, go_on = threading.Event(), threading.Event()
    real: Callable[..., None] = getattr(IncomingFile, step)

    def slow(*arguments: object) -> None:
        started.set()
        assert go_on.wait(30)
        real(*arguments)

    monkeypatch.setattr(IncomingFile, step, slow)
    upload = asyncio.create_task(put(disk, KEY, b"x" * (PIECE_BYTES + 1)))
    assert await asyncio.to_thread(started.wait, 30)
    upload.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert incoming(root) == []
    # Cancelled at the very end, the object is whole or not there.
    assert await disk.head(KEY) == (ObjectInfo(KEY, PIECE_BYTES + 1, TYPE) if step == "publish" else None)


async def test_uploads_that_died_are_discarded_after_a_day(disk: DiskObjects, root: Path, clock: SetClock) -> None:
    ages_s = {"older": STALE_S + 1, "younger": STALE_S - 1, "future": -STALE_S}
    for name, age_s in ages_s.items():
        (root / "incoming" / name).touch()
        os.utime(root / "incoming" / name, (clock.now_s - age_s, clock.now_s - age_s))
    (root / "incoming" / "folder").mkdir()
    os.utime(root / "incoming" / "folder", (0, 0))
    await put(disk, KEY)
    assert await disk.discard_stale() == 1
    assert sorted(path.name for path in incoming(root)) == ["folder", "future", "younger"]
    assert await disk.discard_stale() == 0
    assert await disk.head(KEY) is not None


async def test_an_upload_whose_file_was_discarded_is_unavailable(disk: DiskObjects, root: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"da"
        for path in incoming(root):
            path.unlink()
        yield b"ta"

    with pytest.raises(ObjectsUnavailable):
        await disk.receive(grant_for(b"data"), slow())
    assert await keys(disk) == []


async def test_an_upload_that_outlives_the_store_leaves_no_file(root: Path, clock: SetClock) -> None:
    disk = DiskObjects(root, clock=clock)

    async def closing() -> AsyncIterator[bytes]:
        yield b"da"
        await disk.close()
        yield b"ta"

    with pytest.raises(ObjectsUnavailable):
        await disk.receive(grant_for(b"data"), closing())
    assert incoming(root) == []


@pytest.mark.parametrize("limit", [0, 100_000, PIECE_BYTES, len(DATA) * 2])
async def test_a_full_disk_is_unavailable_and_leaves_nothing(disk: DiskObjects, root: Path, limit: int) -> None:
    data = DATA * 2
    with no_file_grows_beyond(limit):
        with pytest.raises(ObjectsUnavailable) as unavailable:
            await put(disk, KEY, data)
        assert isinstance(unavailable.value.__cause__, OSError)
    assert incoming(root) == []
    assert await disk.head(KEY) is None
    await put(disk, KEY, data)


async def test_an_object_that_could_not_be_synced_is_not_there(
    disk: DiskObjects, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if file_of(root).exists():
            raise OSError(errno.EIO, "the disk is gone")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ObjectsUnavailable, match="the disk is gone"):
        await put(disk, KEY)
    assert incoming(root) == []
    assert await disk.head(KEY) is None


async def test_an_answered_upload_was_synced_with_its_folders(
    disk: DiskObjects, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root)
        synced.append(path.parts[0] if path.parts[0] == "incoming" else str(path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await put(disk, KEY)
    assert synced == ["objects", "incoming", "objects/7"]
    await put(disk, KEY + "-2")
    assert synced[3:] == ["incoming", "objects/7"]


async def test_no_file_stays_open_when_an_open_is_cancelled(
    disk: DiskObjects, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(disk, KEY)
    started, go_on = threading.Event(), threading.Event()
    real = ObjectFiles.open

    def slow(files: ObjectFiles, key: str) -> object:
        started.set()
        assert go_on.wait(30)
        return real(files, key)

    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the numbers, not what they lead to
    monkeypatch.setattr(ObjectFiles, "open", slow)
    opening = asyncio.create_task(disk.open(KEY))
    assert await asyncio.to_thread(started.wait, 30)
    opening.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # noqa: PTH208

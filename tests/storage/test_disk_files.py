"""What may stand in the folder of a disk store besides its objects: damaged files, foreign ones, links."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.disk import CHUNK_BYTES, DiskObjects
from storage.objects import AlreadyStored, ObjectsUnavailable, UploadGrant
from tests.storage.conftest import DATA, KEY, TYPE, cut, file_of, keys, put, read


@pytest.mark.parametrize("size", [0, 1, 17, len(DATA) - 1, len(DATA), len(DATA) + 1, -1])
async def test_a_truncated_file_is_not_there_but_can_be_deleted(disk: DiskObjects, root: Path, size: int) -> None:
    await put(disk, KEY, DATA)
    os.truncate(file_of(root), size if size >= 0 else file_of(root).stat().st_size - 1)
    assert await disk.head(KEY) is None
    assert await disk.open(KEY) is None
    assert await keys(disk) == [KEY]
    await disk.delete([KEY])
    await put(disk, KEY, DATA)
    assert await read(disk, KEY, 0, len(DATA)) == DATA


async def test_an_object_that_is_truncated_while_it_is_read_is_unavailable(disk: DiskObjects, root: Path) -> None:
    await put(disk, KEY, DATA)
    found = await disk.open(KEY)
    assert found is not None
    chunks = found.read(0, len(DATA))
    assert len(await anext(chunks)) == CHUNK_BYTES
    os.truncate(file_of(root), CHUNK_BYTES + 1)
    with pytest.raises(ObjectsUnavailable):
        await anext(chunks)
    await found.close()


async def test_appended_and_foreign_files_are_not_there(disk: DiskObjects, root: Path) -> None:
    await put(disk, KEY)
    with file_of(root).open("ab") as file:
        file.write(b"more")
    assert await disk.head(KEY) is None
    forged = b"x" + b"\xff" * 3 + (3).to_bytes(2, "big") + (1).to_bytes(8, "big") + b"object/1"
    for name, data in [("foreign", b"x" * 5000), ("forged", forged)]:
        await asyncio.to_thread((root / "objects" / "7" / name).write_bytes, data)
        assert await disk.head(f"7/{name}") is None


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    working_folder = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
    finally:
        os.chdir(working_folder)
    (path.parent / "s").rename(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [make_folder, make_pipe, make_socket, make_dangling_link])
async def test_what_is_no_file_is_not_there_and_in_nobodys_way(
    disk: DiskObjects, root: Path, make: Callable[[Path], None]
) -> None:
    await put(disk, "7/good")
    make(root / "objects" / "7" / "odd")
    assert await disk.head("7/odd") is None
    assert await disk.open("7/odd") is None
    with pytest.raises(AlreadyStored):
        await put(disk, "7/odd")
    assert await keys(disk) == ["7/good"]
    await disk.delete(["7/odd", "7/good"])
    assert await keys(disk) == []


async def test_links_are_not_followed_out_of_the_folder(disk: DiskObjects, root: Path, tmp_path: Path) -> None:
    await put(disk, KEY)
    outside = tmp_path / "outside"
    outside.mkdir()
    for link in (root / "objects" / "out", root / "objects" / "7" / "out"):
        link.symlink_to(outside if link.parent.name == "objects" else file_of(root))
    os.link(file_of(root), outside / "secret")
    assert await disk.head("out/secret") is None
    assert await disk.head("7/out") is None
    assert await disk.open("out/secret") is None
    with pytest.raises(ObjectsUnavailable):
        await put(disk, "out/new")
    await disk.delete(["out/secret", "7/out"])
    assert await keys(disk) == [KEY]
    assert await keys(disk, "out/") == []
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert file_of(root).is_file()


async def test_names_that_are_no_keys_are_not_listed(disk: DiskObjects, root: Path) -> None:
    await put(disk, KEY)
    for path in ("7/with space", "7/~", "7/a~", "7/ä", "7/a~..", "with space/x", "x"):
        (root / "objects" / path).parent.mkdir(exist_ok=True)
        (root / "objects" / path).touch()
    assert await keys(disk) == [KEY]


async def test_a_listing_of_very_many_is_sorted_and_complete(disk: DiskObjects, root: Path) -> None:
    folder = root / "objects" / "7"
    folder.mkdir()
    stored = [f"7/{number * 7919 % 20_011:05}/a/b" for number in range(20_011)]
    for key in stored:
        os.close(os.open(folder / key.partition("/")[2].replace("/", "~"), os.O_CREAT))
    assert await keys(disk) == sorted(stored)
    assert await keys(disk, "7/", after="7/20000/a/b") == [f"7/{number}/a/b" for number in range(20_001, 20_011)]


async def test_a_grant_for_a_key_that_leaves_the_folder_stores_nothing(disk: DiskObjects, tmp_path: Path) -> None:
    for key in ("../../../evil", "7/../../../evil", "7/a/../../evil", str(tmp_path / "evil")):
        with pytest.raises(ValueError, match="not a key"):
            await disk.receive(UploadGrant(key, 1, TYPE, None), cut(b"x"))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name == "evil"]

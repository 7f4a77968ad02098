"""Where a device keeps its record: one suite for every store, and what a file is asked besides."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path

import pytest

from gateway.client import FileStore, MemoryStore, Store, StoreInUse
from tests.running import within

ROUNDS = 8
PATIENCE = 30

Opening = Callable[[], Store]


@pytest.fixture(params=["file", "memory"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens the same place every time."""
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    return lambda: FileStore(tmp_path / "folder" / "record")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record"


def body_of(path: Path) -> bytes:
    return path.read_bytes()


def rights_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def leave(path: Path, body: bytes, *, rights: int = 0o600) -> None:
    path.write_bytes(body)
    path.chmod(rights)


# --- Every store


async def test_nothing_is_there_before_something_was_saved(opening: Opening) -> None:
    store = opening()
    assert await store.load() is None
    await store.close()
    again = opening()
    assert await again.load() is None
    await again.close()


async def test_what_was_saved_is_there_when_it_is_opened_again(opening: Opening) -> None:
    store = opening()
    await store.load()
    await store.save(b"first")
    assert await store.load() == b"first"
    await store.close()
    again = opening()
    assert await again.load() == b"first"
    await again.close()


async def test_a_save_replaces_all_of_what_was_saved_before(opening: Opening) -> None:
    store = opening()
    await store.load()
    for body in (b"a long record, this one", b"short", b"", b"x" * 300_000):
        await store.save(body)
        assert await store.load() == body
    await store.close()


async def test_a_store_that_saved_nothing_can_be_closed(opening: Opening) -> None:
    await opening().close()


# --- A file


async def test_the_folders_are_made_where_they_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "one" / "another" / "record"
    store = FileStore(path)
    assert await store.load() is None
    await store.save(b"record")
    assert body_of(path) == b"record"
    await store.close()


@pytest.mark.parametrize("left", [None, 0o666, 0o000])
async def test_only_its_owner_may_read_it_whatever_a_save_that_was_cut_off_left(path: Path, left: int | None) -> None:
    if left is not None:
        for there in (path, path.with_name(".record.new")):
            leave(there, b"left" * 100, rights=left)
    store = FileStore(path)
    await store.load()
    await store.save(b"record")
    await store.close()
    assert body_of(path) == b"record"
    assert rights_of(path) == 0o600
    assert rights_of(path.with_name(".record.lock")) & 0o077 == 0
    assert {entry.name for entry in os.scandir(path.parent)} == {"record", ".record.lock"}


async def test_what_a_save_that_was_cut_off_left_is_not_the_record(path: Path) -> None:
    leave(path, b"old")
    leave(path.with_name(".record.new"), b"half of the n")
    store = FileStore(path)
    assert await store.load() == b"old"
    await store.close()


async def test_a_name_that_is_a_folder_cannot_be_loaded(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(OSError, match="directory"):
        await store.load()
    await store.close()


# --- One at a time


async def test_a_second_opener_is_refused_until_the_first_has_closed(path: Path) -> None:
    first, second = FileStore(path), FileStore(path)
    await first.load()
    await first.save(b"record")
    with pytest.raises(StoreInUse):
        await second.load()
    await second.close()
    await first.save(b"another")  # it was not disturbed
    with pytest.raises(StoreInUse):
        await second.load()
    await first.close()
    assert await second.load() == b"another"
    with pytest.raises(StoreInUse):
        await first.load()
    await second.close()


async def test_another_process_is_refused_too_until_the_owner_is_killed(path: Path) -> None:
    child = start("hold", path)
    try:
        assert child.stdout is not None
        assert await within(asyncio.to_thread(child.stdout.readline)) == b"held\n"
        store = FileStore(path)
        with pytest.raises(StoreInUse):
            await store.load()
        child.kill()
        await within(asyncio.to_thread(child.wait))
        assert await store.load() == b"held"
        await store.close()
    finally:
        end(child)


async def test_this_process_keeps_another_out(path: Path) -> None:
    store = FileStore(path)
    await store.load()
    child = start("hold", path)
    output, _ = await within(asyncio.to_thread(child.communicate), PATIENCE)
    assert output == b"in use\n"
    await store.close()


# --- Cancelled


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 10])
async def test_a_save_that_is_cancelled_leaves_a_whole_record_and_closing_waits_for_it(path: Path, ticks: int) -> None:
    old, new = b"old" * 50_000, b"new" * 100_000
    store = FileStore(path)
    await store.load()
    await store.save(old)
    saving = asyncio.create_task(store.save(new))
    for _ in range(ticks):
        await asyncio.sleep(0)
    saving.cancel()
    await asyncio.wait([saving])
    assert body_of(path) in {old, new}
    await store.close()
    assert body_of(path) == (new if ticks else old)
    again = FileStore(path)
    assert await again.load() == body_of(path)
    await again.close()


async def test_closing_waits_for_a_save_that_goes_on_after_it_was_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(path)
    await store.load()
    disk = SlowDisk(monkeypatch)
    saving = asyncio.create_task(store.save(b"record"))
    await disk.reached()
    saving.cancel()
    await asyncio.wait([saving])
    closing = asyncio.create_task(store.close())
    assert (await asyncio.wait([closing], timeout=0.05))[1] == {closing}
    with pytest.raises(StoreInUse):
        await FileStore(path).load()
    disk.go_on()
    await within(closing)
    assert body_of(path) == b"record"


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
async def test_a_save_after_one_that_was_cancelled_is_what_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A device that is closed does that: its driver is cancelled as it saves, and what changed since is saved."""
    store = FileStore(path)
    await store.load()
    disk = SlowDisk(monkeypatch, step)
    others = asyncio.all_tasks()
    older = asyncio.create_task(store.save(b"older" * 10_000))
    await disk.reached()
    writing = asyncio.all_tasks() - others
    older.cancel()
    await asyncio.wait([older])
    newer = asyncio.create_task(store.save(b"newer" * 10_000))
    await asyncio.wait([newer], timeout=0.2)  # as far as it comes while the disk is slow
    disk.go_on()
    await within(newer)
    await store.close()
    await within(asyncio.wait(writing))  # whatever may still come of the older one
    assert body_of(path) == b"newer" * 10_000


class SlowDisk:
    """A disk that takes its time with the first call of one kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "fsync") -> None:
        self._call: Callable[..., object] = getattr(os, name)
        self._first = threading.Lock()
        self._reached, self._may = threading.Event(), threading.Event()
        monkeypatch.setattr(os, name, self._slow)

    def _slow(self, *arguments: object) -> object:
        if self._first.acquire(blocking=False):
            self._reached.set()
            assert self._may.wait(PATIENCE)
        return self._call(*arguments)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)

    def go_on(self) -> None:
        self._may.set()


# --- A disk that is full


async def test_a_record_that_has_no_room_is_an_oserror_and_leaves_the_old_one(path: Path) -> None:
    child = start("fill", path)
    output, _ = await within(asyncio.to_thread(child.communicate), PATIENCE)
    assert output == b"OSError\nsmall\nagain\n"
    store = FileStore(path)
    assert await store.load() == b"again"
    await store.close()


# --- Killed


async def test_a_process_that_is_killed_while_it_saves_leaves_the_record_that_it_was_answered_or_a_newer_one(
    path: Path,
) -> None:
    dice = random.Random(11)
    highest = answered = 0
    for _ in range(ROUNDS):
        child = start("save", path, str(highest + 1))
        size = int(10 ** dice.uniform(0, 3.2))
        output = await within(asyncio.to_thread(kill_after, child, size), PATIENCE)
        said = [int(line) for line in output[: output.rfind(b"\n") + 1].split()]
        assert said == list(range(highest + 1, highest + 1 + len(said)))
        answered += len(said)
        store = FileStore(path)
        body = await store.load()
        await store.close()
        if body is not None:
            number = int(body.split(b" ", 1)[0])
            assert body == numbered(number)
            assert number >= highest + len(said)
            highest = number
        assert not said or highest >= said[-1]
    assert answered > 10 * ROUNDS


def numbered(number: int) -> bytes:
    """A record that shows whether it is whole: of another length each time, and written in several goes."""
    return (b"%d " % number) * (5_000 + number % 7_000)


def kill_after(child: subprocess.Popen[bytes], size: int) -> bytes:
    """The child's output up to its death, which comes when it has written about `size` bytes."""
    assert child.stdout is not None
    with child.stdout as pipe:
        output = pipe.read(size)
        child.send_signal(signal.SIGKILL)
        output += pipe.read()
    assert child.wait() == -signal.SIGKILL
    return output


# --- Other processes: `python -m tests.client.test_store NAME PATH`


def start(name: str, path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.client.test_store", name, str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


async def hold(path: str) -> None:
    """Hold the store until killed, if it is not in use."""
    store = FileStore(Path(path))
    try:
        await store.load()
    except StoreInUse:
        os.write(1, b"in use\n")
        return
    await store.save(b"held")
    os.write(1, b"held\n")
    await asyncio.Event().wait()


async def fill(path: str) -> None:
    """Save more than fits."""
    store = FileStore(Path(path))
    await store.load()
    await store.save(b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        await store.save(b"large" * 10_000)
    except OSError as error:
        os.write(1, f"{type(error).__name__}\n".encode())
    os.write(1, body_of(Path(path)) + b"\n")
    await store.save(b"again")
    os.write(1, body_of(Path(path)) + b"\n")
    await store.close()


async def save(path: str, first: str) -> None:
    """Save records that are numbered, and print the number of each that is saved, until killed."""
    store = FileStore(Path(path))
    await store.load()
    for number in count(int(first)):
        await store.save(numbered(number))
        os.write(1, b"%d\n" % number)


CHILDREN: dict[str, Callable[..., Coroutine[None, None, None]]] = {"hold": hold, "fill": fill, "save": save}

if __name__ == "__main__":
    asyncio.run(CHILDREN[sys.argv[1]](*sys.argv[2:]))

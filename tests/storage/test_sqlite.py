"""What SQLite adds to the contract: batches, several processes, faults of the file, and a log that stays short."""

import asyncio
import random
import resource
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from storage import sqlite as adapter
from storage import sqlite_file
from storage.documents import Document, DocumentStore, StoreUnavailable
from storage.sqlite import SqliteDocuments
from tests.storage import children
from tests.storage.conftest import SetClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "documents.db"


@asynccontextmanager
async def opened(
    path: Path, *, clock: SetClock | None = None, busy_timeout_s: float = 5.0, wal_limit: int = 64 * 1024 * 1024
) -> AsyncIterator[SqliteDocuments]:
    store = SqliteDocuments(path, clock=clock or time.time, busy_timeout_s=busy_timeout_s, wal_limit=wal_limit)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock."""
    with connected(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """The disk is full, as far as this process is concerned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def contents(path: Path) -> bytes:
    return path.read_bytes()


def start_commits(store: DocumentStore, number: int, *, body: bytes = b"x") -> list[asyncio.Task[list[Document]]]:
    return [asyncio.create_task(store.commit([Document(f"client:{n}", 0, body)])) for n in range(number)]


async def bodies(store: DocumentStore, number: int) -> list[bytes]:
    return [document.body for document in await store.load([f"client:{n}" for n in range(number)])]


async def test_everything_that_waits_goes_into_one_transaction(path: Path) -> None:
    async with opened(path) as store:
        statements: list[str] = []
        store._writer._connection.set_trace_callback(statements.append)
        with locked(path):
            commits = start_commits(store, 200)
            await asyncio.sleep(0)
        await asyncio.gather(*commits)
        # The writer may have taken the first one before the others came.
        assert statements.count("COMMIT") in {1, 2}
        assert await bodies(store, 200) == [b"x"] * 200


async def test_documents_survive_closing_and_opening(path: Path) -> None:
    async with opened(path) as store:
        written = await store.commit([Document("client:a", 0, b"body", 7), Document("client:b", 0, b"body")])
    async with opened(path) as store:
        assert await store.load(["client:a", "client:b"]) == written


async def test_closing_finishes_what_was_committed(path: Path) -> None:
    async with opened(path) as store:
        commits = start_commits(store, 100)
        await asyncio.sleep(0)
    assert all(commit.done() for commit in commits)
    async with opened(path) as store:
        assert await bodies(store, 100) == [b"x"] * 100
    await asyncio.gather(*commits)


async def test_after_closing_only_the_database_is_left(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*start_commits(store, 10))
        assert wal_of(path).stat().st_size > 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_a_version_is_not_used_again_after_removal_and_restart_though_the_clock_steps_back(
    path: Path, clock: SetClock
) -> None:
    async with opened(path, clock=clock) as store:
        [first] = await store.commit([Document("client:a", 0, b"x")])
        await store.commit([Document("client:a", first.version)])
    clock.now_s -= 3600
    async with opened(path, clock=clock) as store:
        [again] = await store.commit([Document("client:a", 0, b"x")])
    assert again.version > first.version


async def test_one_process_sees_what_another_committed(path: Path) -> None:
    async with opened(path) as one, opened(path) as other:
        for number in range(20):
            [current] = await other.load(["client:a"])
            [written] = await one.commit([Document("client:a", current.version, b"%d" % number)])
            assert await other.load(["client:a"]) == [written]


async def test_no_update_is_lost_between_processes(path: Path) -> None:
    outputs = children.finish([children.start("increment", path, "50") for _ in range(4)])
    assert len(outputs) == 4
    async with opened(path) as store:
        [counter] = await store.load(["counter"])
    assert counter.body == b"800"


async def test_processes_that_start_at_once_make_one_database(path: Path) -> None:
    children.finish([children.start("increment", path, "1") for _ in range(8)])
    async with opened(path) as store:
        [counter] = await store.load(["counter"])
    assert counter.body == b"32"


def test_a_process_that_makes_the_database_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(path) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(time, "sleep", lambda _: other.execute("ROLLBACK"))
        sqlite_file.prepare(path, busy_timeout_s=5.0)
        assert other.execute("PRAGMA user_version").fetchall() == [(sqlite_file.SCHEMA_VERSION,)]


def test_a_process_that_makes_the_database_for_too_long_is_unavailable(path: Path) -> None:
    with locked(path), pytest.raises(StoreUnavailable, match="locked"):
        sqlite_file.prepare(path, busy_timeout_s=0.02)


async def test_a_database_that_stays_locked_is_unavailable_and_later_works_again(path: Path) -> None:
    async with opened(path, busy_timeout_s=0.02) as store:
        with locked(path):
            with pytest.raises(StoreUnavailable) as unavailable:
                await store.commit([Document("client:0", 0, b"no")])
            assert isinstance(unavailable.value.__cause__, sqlite3.OperationalError)
            assert await bodies(store, 1) == [b""]
        await asyncio.gather(*start_commits(store, 2))
        assert await bodies(store, 2) == [b"x"] * 2


async def test_a_full_disk_is_unavailable_and_writes_nothing_and_later_works_again(path: Path) -> None:
    async with opened(path) as store:
        [old] = await store.commit([Document("client:old", 0, b"old")])
        with no_file_grows_beyond(100_000):
            outcomes = await asyncio.gather(*start_commits(store, 20, body=b"x" * 50_000), return_exceptions=True)
            assert any(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        stored = await bodies(store, 20)
        assert [bool(body) for body in stored] == [isinstance(outcome, list) for outcome in outcomes]
        await store.commit([Document("client:old", old.version, b"new")])


async def test_cancelled_commits_do_not_disturb_those_beside_them(path: Path) -> None:
    async with opened(path) as store:
        with locked(path):
            commits = start_commits(store, 30)
            await asyncio.sleep(0)
            for commit in commits[::3]:
                commit.cancel()
            await asyncio.wait(commits[::3])
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, False] * 10
        assert await bodies(store, 30) == [b"x"] * 30


async def test_commits_are_refused_while_too_many_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MAX_WAITING_BYTES", 10_000)
    async with opened(path) as store:
        with locked(path):
            commits = start_commits(store, 30, body=b"x" * 1000)
            done, _ = await asyncio.wait(commits, return_when=asyncio.FIRST_COMPLETED)
            assert done == set(commits[7:])
            assert all(isinstance(commit.exception(), StoreUnavailable) for commit in done)
            assert store.refused == 23
        await asyncio.gather(*commits[:7])
        await asyncio.gather(*start_commits(store, 0))
        [written] = await store.commit([Document("client:after", 0, b"x")])
        assert written.version > 0


async def test_the_log_stays_short_though_writers_never_pause(path: Path) -> None:
    limit = 1024 * 1024
    longest = 0

    async def write(store: SqliteDocuments, key: str) -> None:
        nonlocal longest
        document = Document(key)
        for number in range(100):
            [document] = await store.commit([Document(key, document.version, b"%d" % number * 1500, number)])
            longest = max(longest, wal_of(path).stat().st_size)

    async with opened(path, wal_limit=limit) as store:
        async with asyncio.TaskGroup() as tasks:
            for number in range(64):
                tasks.create_task(write(store, f"client:{number}"))
        # 6,400 documents of two pages each went through the log, more than 20 times its limit. It may be a bit longer
        # at times, because a checkpoint that is running delays the cut.
        assert limit <= longest < 4 * limit
        assert set(await bodies(store, 64)) == {b"99" * 1500}


async def test_a_reader_that_stays_does_not_hold_up_commits_and_the_log_shrinks_after_it(path: Path) -> None:
    limit = 256 * 1024

    async def write(store: SqliteDocuments, key: str) -> None:
        for _ in range(30):
            [current] = await store.load([key])
            await store.commit([Document(key, current.version, random.randbytes(20_000))])

    async with opened(path, wal_limit=limit) as store:
        await write(store, "client:a")
        with connected(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM documents").fetchall()
            await write(store, "client:a")
            grown = wal_of(path).stat().st_size
            reader.execute("ROLLBACK")
        await write(store, "client:a")
        assert grown > 2 * limit
        assert wal_of(path).stat().st_size < grown


async def test_commits_get_their_turn_though_the_loop_never_rests(path: Path) -> None:
    async with opened(path) as store, asyncio.timeout(30):
        done = False

        async def never_rest() -> None:
            while not done:
                until_s = time.perf_counter() + 0.0002
                while time.perf_counter() < until_s:
                    pass
                await asyncio.sleep(0)

        busy = asyncio.create_task(never_rest())
        for number in range(200):
            await store.commit([Document(f"client:{number}", 0, b"x")])
        done = True
        await busy


async def test_due_documents_are_found_in_the_index(path: Path) -> None:
    async with opened(path):
        with connected(path) as connection:
            [plan] = connection.execute(f"EXPLAIN QUERY PLAN {adapter._DUE}", (1, 1)).fetchall()
    assert "COVERING INDEX documents_due (due<?)" in plan[-1]


async def test_only_the_owner_can_read_the_files(path: Path) -> None:
    async with opened(path) as store:
        await store.commit([Document("client:a", 0, b"x")])
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}


async def test_a_database_of_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    with connected(path) as connection:
        connection.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    before = contents(path)
    with pytest.raises(StoreUnavailable, match=f"newer version .*schema {sqlite_file.SCHEMA_VERSION + 1}"):
        SqliteDocuments(path)
    assert contents(path) == before


async def test_what_is_no_database_is_refused(path: Path) -> None:
    fill(path, b"something else, and long enough to be looked at" * 100)
    with pytest.raises(StoreUnavailable, match="cannot open"):
        SqliteDocuments(path)


async def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "file", b"")
    for path in (tmp_path, tmp_path / "file" / "documents.db"):
        with pytest.raises(StoreUnavailable, match="cannot open"):
            SqliteDocuments(path)


async def test_a_damaged_database_is_unavailable_and_the_writer_lives_on(path: Path) -> None:
    async with opened(path) as store:
        await store.commit([Document("client:a", 0, b"x")])
        with connected(path) as connection:
            connection.execute("ALTER TABLE documents RENAME TO lost")
        for call in (store.load(["client:a"]), store.due(1, 1), store.scan(), store.commit([Document("a", 0, b"x")])):
            with pytest.raises(StoreUnavailable):
                await call
        with connected(path) as connection:
            connection.execute("ALTER TABLE lost RENAME TO documents")
        await store.commit([Document("a", 0, b"x")])

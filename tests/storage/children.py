"""Other processes for the tests: `python -m tests.storage.children NAME ARGUMENTS`, see `CHILDREN`."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from pathlib import Path

from storage import open_documents, open_objects
from storage.documents import Conflict, Document, DocumentStore, StoreUnavailable
from storage.sqlite import SqliteDocuments

COMMITTERS = 32


def start(name: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a child; its output is a pipe."""
    command = [sys.executable, "-m", "tests.storage.children", name, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def finish(children: list[subprocess.Popen[bytes]]) -> list[bytes]:
    """What each of the children wrote; all must end well."""
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    return outputs


async def increment(path: str, times: str) -> None:
    """Add one to a counter that others add to as well, `times` times in each of four tasks."""
    # On a busy machine a single sync takes seconds, and here eight processes wait for each other's.
    store = SqliteDocuments(Path(path), busy_timeout_s=60)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(_increment(store, int(times)))
    await store.close()


async def increment_at(url: str, times: str) -> None:
    """The same in the store at `url`."""
    async with open_documents(url) as store, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(_increment(store, int(times)))


async def _increment(store: DocumentStore, times: int) -> None:
    done = 0
    while done < times:
        [counter] = await store.load(["counter"])
        try:
            await store.commit([Document("counter", counter.version, b"%d" % (int(counter.body or b"0") + 1))])
        except Conflict:
            continue
        done += 1


async def commit(path: str, after: str) -> None:
    """Commit as fast as it goes until killed; print `key version number` for each commit that was answered."""
    await commit_at(f"sqlite:///{path}", after)


async def commit_at(url: str, after: str) -> None:
    """The same in the store at `url`, until it is unavailable."""
    async with open_documents(url) as store:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                for committer in range(COMMITTERS):
                    tasks.create_task(_commit(store, f"client:{committer}", int(after)))


async def commit_in_turn(url: str, after: str) -> None:
    """The same, one document after the other, round and round."""
    async with open_documents(url) as store:
        with suppress(StoreUnavailable):
            for number in count(int(after)):
                await _put(store, f"client:{number % COMMITTERS}", number)


async def _commit(store: DocumentStore, key: str, after: int) -> None:
    for number in count(after):
        await _put(store, key, number)


async def _put(store: DocumentStore, key: str, number: int) -> None:
    [current] = await store.load([key])
    [written] = await store.commit([Document(key, current.version, b"%d" % number, number)])
    os.write(1, b"%s %d %d\n" % (key.encode(), written.version, number))


async def sign(root: str) -> None:
    """Open a store of objects, which may make its secret, and print a signed URL."""
    async with open_objects(f"file://{root}") as store:
        download = await store.sign_download("a/b", expires_at=10**15)
        os.write(1, download.url.encode())


CHILDREN: dict[str, Callable[..., Coroutine[None, None, None]]] = {
    "increment": increment,
    "increment_at": increment_at,
    "commit": commit,
    "commit_at": commit_at,
    "commit_in_turn": commit_in_turn,
    "sign": sign,
}

if __name__ == "__main__":
    asyncio.run(CHILDREN[sys.argv[1]](*sys.argv[2:]))

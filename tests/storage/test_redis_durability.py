"""What survives SIGKILL of the server, for each way its append-only file can be set: what `docs/redis.md` promises."""

import asyncio
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import open_documents
from storage.documents import Document
from tests.redis_servers import RedisServer, redis_server
from tests.storage import children

ROUNDS = 6

LATE_S = 2.0
"""With `everysec` Redis holds back what it has to write for so long at most, while the disk is slow."""


@contextmanager
def started(name: str, server: RedisServer, after: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that commits until the server is gone."""
    child = children.start(name, server.url, str(after))
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read(child: subprocess.Popen[bytes], size: int) -> list[tuple[str, int, int, float]]:
    """What was answered: key, version, number and when we read it, up to about `size` bytes, or to its end."""
    assert child.stdout is not None
    lines = []
    while size > 0 and (line := child.stdout.readline()):
        key, version, number = line.split()
        lines.append((key.decode(), int(version), int(number), time.monotonic()))
        size -= len(line)
    return lines


async def stored_in(server: RedisServer) -> dict[str, Document]:
    async with open_documents(server.url) as store:
        found = {document.key: document for document in (await store.scan(limit=1000)).documents}
        # The index of a scan and the documents are one: what is there can be found, and the other way round.
        documents = await store.load([f"client:{number}" for number in range(children.COMMITTERS)])
        assert found == {document.key: document for document in documents if document.version}
        due = {entry.key: entry.due for entry in await store.due(2**53 - 1, 1000)}
        assert due == {document.key: document.due for document in found.values() if document.due is not None}
    return found


async def test_with_always_every_commit_that_was_answered_survives_and_no_version_goes_back(tmp_path: Path) -> None:
    dice = random.Random(7)
    newest: dict[str, tuple[int, int]] = {}
    highest = commits = 0
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        for _ in range(ROUNDS):
            with started("commit_at", server, highest + 1) as child:
                answered = await asyncio.to_thread(read, child, int(10 ** dice.uniform(1, 5)))
                server.kill()
                answered += await asyncio.to_thread(read, child, 2**60)
            server.start()
            for key, version, number, _ in answered:
                assert version > newest.get(key, (0, 0))[0]
                newest[key] = (version, number)
            stored = await stored_in(server)
            for key, (version, number) in newest.items():
                document = stored[key]
                assert document.version >= version
                assert int(document.body) == number if document.version == version else int(document.body) > number
            commits += len(answered)
            highest = max(int(document.body) for document in stored.values())
    assert len(newest) == children.COMMITTERS
    assert commits > 20 * ROUNDS


async def test_with_everysec_what_survives_is_all_up_to_some_moment_of_the_last_two_seconds(tmp_path: Path) -> None:
    highest = 0
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "everysec") as server:
        for size in (100, 10_000, 100_000):
            with started("commit_in_turn", server, highest + 1) as child:
                answered = await asyncio.to_thread(read, child, size)
                killed_s = time.monotonic()
                server.kill()
                answered += await asyncio.to_thread(read, child, 2**60)
            server.start()
            stored = await stored_in(server)
            sure = [number for _, _, number, read_s in answered if read_s < killed_s - LATE_S]
            numbers = sorted((int(document.body) for document in stored.values()), reverse=True)
            last = numbers[0] if numbers else 0
            # One was under way at the most when the server ended.
            assert max(sure, default=highest) <= last <= answered[-1][2] + 1
            # They were written one after the other: of all up to the last one that is there, none is missing.
            assert numbers == list(range(last, max(last - children.COMMITTERS, 0), -1))
            versions = {(key, number): version for key, version, number, _ in answered}
            for key, document in stored.items():
                assert document.version == versions.get((key, int(document.body)), document.version)
            highest = last


def mend(folder: Path) -> None:
    """As `docs/redis.md` has it."""
    command = ["redis-check-aof", "--fix", "appendonlydir/appendonly.aof.manifest"]
    subprocess.run(command, cwd=folder, input=b"y\n", check=True, capture_output=True)


async def test_a_commit_that_is_torn_at_the_end_of_the_file_is_gone_as_a_whole(tmp_path: Path) -> None:
    """As after a crash of the machine, while the file was written.

    Redis is told not to load such a file: 7.0 would drop the torn script, leave a part of it in the file, and make it
    whole with the next one, at the start after that.
    """
    states: list[dict[str, Document]] = [{}]
    options = ("--appendonly", "yes", "--appendfsync", "no", "--aof-load-truncated", "no")
    with redis_server(tmp_path, *options) as server:
        async with open_documents(server.url) as store:
            documents = await store.commit([Document(f"client:{number}", 0, b"0", number) for number in range(4)])
            states.append({document.key: document for document in documents})
            for due in (7, None, 8):
                changed = [Document(one.key, one.version, b"%d" % len(states), due) for one in documents]
                documents = await store.commit(changed)
                states.append({document.key: document for document in documents})
            await store.commit([Document(one.key, one.version) for one in documents[:2]])
            states.append({document.key: document for document in documents[2:]})
        assert await stored_in(server) == states.pop()
        for cut in (1, 100, 7, 300, 30):
            server.kill()
            [log] = (tmp_path / "appendonlydir").glob("*.incr.aof")
            with log.open("r+b") as file:
                file.truncate(log.stat().st_size - cut)
            await asyncio.to_thread(mend, tmp_path)
            server.start()
            assert await stored_in(server) == states.pop()
        assert states == []


async def test_without_a_file_nothing_survives_and_versions_start_above_all_that_were(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with open_documents(server.url) as store:
            [before] = await store.commit([Document("client:a", 0, b"x", 1)])
        server.kill()
        server.start()
        assert await stored_in(server) == {}
        async with open_documents(server.url) as store:
            [after] = await store.commit([Document("client:a", 0, b"x", 1)])
        assert after.version > before.version


async def test_the_highest_version_of_what_was_removed_survives(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with open_documents(server.url) as store:
            [written] = await store.commit([Document("client:a", 0, b"x")])
            await store.commit([Document("client:a", written.version)])
        server.kill()
        server.start()
        async with open_documents(server.url, clock=lambda: 0.0) as store:
            [again] = await store.commit([Document("client:a", 0, b"x")])
        assert again.version == written.version + 1

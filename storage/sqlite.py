"""Documents in one SQLite file: durable on one machine, shared by its processes, nothing to install."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from storage.documents import (
    Document,
    DocumentStore,
    Due,
    ScanPage,
    StoreUnavailable,
    check_documents,
    check_keys,
    check_part,
)
from storage.sqlite_file import connect, prepare
from storage.sqlite_writer import Answers, Call, Writer
from storage.threads import ThreadTurns
from storage.usage import Usage

MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Commits are refused while this much waits for the writer, more than a second's work: it cannot keep up."""

_CALL_BYTES = 512
_READER_WAIT_S = 0.1  # readers wait only while a database is recovered after a crash; the loop stands still meanwhile

_LOAD_ONE = "SELECT key, version, body, due FROM documents WHERE key = ?"
_LOAD = """
SELECT stored.key, stored.version, stored.body, stored.due
FROM json_each(?) AS wanted CROSS JOIN documents AS stored ON stored.key = wanted.value
"""
_DUE = "SELECT key, due FROM documents WHERE due <= ? ORDER BY due, key LIMIT ?"
_SCAN = "SELECT key, version, body, due FROM documents WHERE key > ? ORDER BY key LIMIT ?"

_Row = tuple[str, int, bytes, int | None]


class SqliteDocuments(DocumentStore):
    """Documents in the file at `path`, which is made if need be.

    A commit that returned survives the crash of the process and of the machine (as far as its disk keeps what it
    synced). A thread of its own writes, and takes everything that waits into one transaction. Reads run on the event
    loop: they are a few µs out of the page cache, a thread would cost ten times as much. Use it from the loop that it
    was made in.

    `usage` counts loads, pages of a scan, questions for what is due, and transactions: each is one sync, however many
    commits are in it. `busy_timeout_s`: how long a commit waits for other processes that write. `wal_limit`: the size
    in bytes at which the write-ahead log is cut. Raises StoreUnavailable if the file cannot be opened or a newer
    version wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        usage: Usage | None = None,
        clock: Callable[[], float] = time.time,
        busy_timeout_s: float = 5.0,
        wal_limit: int = 64 * 1024 * 1024,
    ) -> None:
        self.refused = 0
        """How many commits were refused because too many waited."""
        self._path = path.absolute()
        self._requests = (usage or Usage()).requests
        self._loop = asyncio.get_running_loop()
        self._turns = ThreadTurns(self._loop, interval_s=0.001)
        self._waiting_bytes = 0
        self._closed = False
        self._ended = asyncio.Event()
        prepare(self._path, busy_timeout_s=busy_timeout_s)
        try:
            self._reader = connect(self._path, busy_timeout_s=_READER_WAIT_S)
            self._writer = Writer(
                self._path,
                clock=clock,
                busy_timeout_s=busy_timeout_s,
                wal_limit=wal_limit,
                answer=self._answer,
                ended=self._end,
            )
        except sqlite3.Error as error:
            raise StoreUnavailable(f"cannot open {path}: {error}") from error

    async def load(self, keys: Sequence[str]) -> list[Document]:
        check_keys(keys)
        self._requests["sqlite", "load"] += 1
        # One key is the usual case, and cheaper when asked for directly.
        query, parameter = (_LOAD_ONE, keys[0]) if len(keys) == 1 else (_LOAD, json.dumps(list(keys)))
        stored = {row[0]: Document(*row) for row in self._read(query, (parameter,))}
        return [stored.get(key) or Document(key) for key in keys]

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        self._check_open()
        if not documents:
            return []
        if self._waiting_bytes >= MAX_WAITING_BYTES:
            self.refused += 1
            raise StoreUnavailable("too many commits are waiting")
        call = Call(tuple(documents), self._loop.create_future())
        self._waiting_bytes += _weight(call)
        self._turns.begin()
        self._writer.put(call)
        try:
            return await call.future
        except sqlite3.Error as error:
            raise StoreUnavailable(f"commit: {error}") from error

    async def due(self, before: int, limit: int) -> list[Due]:
        self._check_open()
        self._requests["sqlite", "due"] += 1
        try:
            return [Due(key, due) for key, due in self._reader.execute(_DUE, (before, limit)).fetchall()]
        except sqlite3.Error as error:
            raise StoreUnavailable(f"due: {error}") from error

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        check_part(part, parts)
        self._check_open()
        if part:
            return ScanPage([], None)
        self._requests["sqlite", "scan"] += 1
        documents = [Document(*row) for row in self._read(_SCAN, (cursor or "", limit))]
        return ScanPage(documents, documents[-1].key if len(documents) == limit else None)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reader.close()
            self._writer.finish()
        await self._ended.wait()
        self._writer.join()
        self._turns.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _read(self, query: str, parameters: tuple[str | int, ...]) -> list[_Row]:
        self._check_open()
        try:
            # `fetchall` also ends the read: a statement left half-way would pin its moment, and the log with it.
            return self._reader.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"load: {error}") from error

    def _answer(self, answers: Answers) -> None:
        with suppress(RuntimeError):  # the loop was closed before the store: nobody is left to be answered
            self._loop.call_soon_threadsafe(self._resolve, answers)

    def _resolve(self, answers: Answers) -> None:
        self._requests["sqlite", "commit"] += 1  # what is answered together was one transaction
        for call, outcome in answers:
            self._waiting_bytes -= _weight(call)
            if call.future.done():  # its caller was cancelled
                continue
            if isinstance(outcome, Exception):
                call.future.set_exception(outcome)
            else:
                call.future.set_result(outcome)
        self._turns.end(len(answers))

    def _end(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)


def _weight(call: Call) -> int:
    return _CALL_BYTES + sum(len(document.body) for document in call.documents)

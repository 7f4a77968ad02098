"""The one thread that writes to SQLite: everything that waits goes into one transaction, and so into one sync."""

import asyncio
import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.batch import Batch
from storage.documents import Conflict, Document
from storage.sqlite_file import PAGE_BYTES, WRITER_CACHE_KIB, Checkpointer, connect, insist

log = logging.getLogger(__name__)

# Each of these is one step for a whole batch. The interpreter lock is given up and taken again for every step, and
# under load each taking costs up to a millisecond: with `executemany`, a step for each row, a busy process commits
# half as much.
_BEGIN = """
SELECT version, (SELECT json_group_object(stored.key, stored.version)
                 FROM json_each(?) AS wanted CROSS JOIN documents AS stored ON stored.key = wanted.value)
FROM removed
"""
_UPSERT = """
INSERT INTO documents (key, version, body, due)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
       substr(?2, json_extract(value, '$[2]'), json_extract(value, '$[3]')), json_extract(value, '$[4]')
FROM json_each(?1) WHERE true
ON CONFLICT (key) DO UPDATE SET version = excluded.version, body = excluded.body, due = excluded.due
"""
_DELETE = "DELETE FROM documents WHERE key IN (SELECT value FROM json_each(?))"
_FLOOR = "UPDATE removed SET version = ?"

_ROW_BYTES = 2 * PAGE_BYTES
"""What a document adds to the log besides its body, at a guess: a page of the table, and one of the due index."""

_CUT_WAIT_S = 0.1
"""How long the writer waits for readers of the log before it gives up and lets the log grow."""


@dataclass(slots=True)
class Call:
    """One call of `commit`, and where its answer goes."""

    documents: Sequence[Document]
    future: asyncio.Future[list[Document]]


Outcome = list[Document] | Exception
Answers = list[tuple[Call, Outcome]]


class Writer:
    """Takes calls from `put`, commits them, and hands them to `answer`, batch by batch, on its own thread.

    An answer is what `commit` returns, a Conflict, or what went wrong (sqlite3.Error as a rule). Whatever goes wrong
    with a batch, its calls are answered, nothing of it is written, and the thread goes on with the next one.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
        busy_timeout_s: float,
        wal_limit: int,
        answer: Callable[[Answers], None],
        ended: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._busy_timeout_s = busy_timeout_s
        self._answer = answer
        self._ended = ended
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._connection = connect(path, busy_timeout_s=0, cache_kib=WRITER_CACHE_KIB)
        self._log = LogKeeper(path, wal_limit=wal_limit)
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Have `call` committed with the next batch."""
        self._calls.put(call)

    def finish(self) -> None:
        """Commit what was put before, release everything, then say `ended`."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait for the thread; it is all but gone once it said `ended`."""
        self._thread.join()

    def _run(self) -> None:
        try:
            last = False
            while not last:
                calls, last = self._take()
                if calls:
                    self._answer(list(zip(calls, self._commit(calls), strict=True)))
                    self._log.keep_short(self._connection)
        finally:
            self._log.close()
            # The last connection of all processes to a database copies the rest of the log before it goes.
            self._connection.close()
            self._ended()

    def _take(self) -> tuple[list[Call], bool]:
        """Everything that waits, at least one; and whether it is the last."""
        calls: list[Call] = []
        call = self._calls.get()
        with suppress(queue.Empty):
            while call is not None:
                calls.append(call)
                call = self._calls.get_nowait()
            return calls, True
        return calls, False

    def _commit(self, calls: list[Call]) -> list[Outcome]:
        try:
            insist(self._connection, "BEGIN IMMEDIATE", for_s=self._busy_timeout_s)
            batch = self._begin(calls)
            floor = batch.removed
            outcomes = [_decide(batch, call) for call in calls]
            self._write(batch)
            if batch.removed != floor:
                self._connection.execute(_FLOOR, (batch.removed,))
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back(error)
            return [error] * len(calls)
        return outcomes

    def _begin(self, calls: list[Call]) -> Batch:
        keys = json.dumps([document.key for call in calls for document in call.documents])
        ((removed, versions),) = self._connection.execute(_BEGIN, (keys,)).fetchall()
        return Batch(json.loads(versions), removed=removed, now_us=int(self._clock() * 1_000_000))

    def _write(self, batch: Batch) -> None:
        rows: list[tuple[str, int, int, int, int | None]] = []
        bodies: list[bytes] = []
        gone: list[str] = []
        offset = 1  # `substr` counts from one
        for document in batch.written.values():
            size = len(document.body)
            if not size:
                gone.append(document.key)
                continue
            rows.append((document.key, document.version, offset, size, document.due))
            bodies.append(document.body)
            offset += size
        if rows:
            self._connection.execute(_UPSERT, (json.dumps(rows), b"".join(bodies)))
        if gone:
            self._connection.execute(_DELETE, (json.dumps(gone),))
        self._log.grew(offset + _ROW_BYTES * len(batch.written))

    def _roll_back(self, reason: Exception) -> None:
        log.warning("commit failed: %s", reason)
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # a failed rollback ends the transaction too
                self._connection.execute("ROLLBACK")


def _decide(batch: Batch, call: Call) -> Outcome:
    try:
        return batch.apply(call.documents)
    except Conflict as conflict:
        return conflict


class LogKeeper:
    """Keeps the write-ahead log short: has it copied in the background, and cuts it when it is at `wal_limit` bytes.

    Cutting is for the writer, between two batches: then nobody writes, and all but the last of the log is copied.
    """

    def __init__(self, path: Path, *, wal_limit: int) -> None:
        self._wal = path.with_name(path.name + "-wal")
        self._limit = wal_limit
        self._step = wal_limit // 8
        self._grown = 0
        self._checkpointer = Checkpointer(path)

    def grew(self, size: int) -> None:
        """About `size` bytes were appended."""
        self._grown += size

    def keep_short(self, connection: sqlite3.Connection) -> None:
        """See to the log, if it has grown by an eighth of its limit since the last time."""
        if self._grown < self._step:
            return
        self._grown = 0
        try:
            if self._wal.stat().st_size < self._limit:
                self._checkpointer.want()
            else:
                _cut(connection)
        except (sqlite3.Error, OSError) as error:
            log.warning("the log of the database stays long: %s", error)

    def close(self) -> None:
        """End the background checkpoints."""
        self._checkpointer.close()


def _cut(connection: sqlite3.Connection) -> None:
    """A reader that stays in the log (a backup, say) must not hold up commits: then the log grows until it is done."""
    connection.execute(f"PRAGMA busy_timeout = {int(_CUT_WAIT_S * 1000)}")
    try:
        ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.execute("PRAGMA busy_timeout = 0")
    if busy:
        log.warning("the log of the database stays long: something is reading it")

"""The SQLite file: how it is opened, what is in it, and how its write-ahead log is kept short."""

import logging
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

from storage.documents import StoreUnavailable

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_OPEN_WAIT_S = 30.0

PAGE_BYTES = 2048
"""Of a new file. A change writes whole pages, and most documents are a few hundred bytes: with SQLite's usual 4096 a
commit of two documents of 1,000 bytes takes a third more."""

WRITER_CACHE_KIB = 16 * 1024
"""How much of the database the connection that writes keeps, as far as there is so much: readers have what the system
keeps, since each commit makes what they kept themselves old."""

_SCHEMA = (
    # Bodies outgrow what an index page keeps of a row, so this is a table with a rowid: a replaced document then
    # touches one page of the table and none of the key's index.
    "CREATE TABLE documents (key TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL, due INTEGER)",
    "CREATE INDEX documents_due ON documents (due, key) WHERE due IS NOT NULL",
    # One row: the highest version that any document had when it was removed. See `storage.batch.Batch`.
    "CREATE TABLE removed (version INTEGER NOT NULL)",
    "INSERT INTO removed VALUES (0)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def connect(path: Path, *, busy_timeout_s: float, cache_kib: int | None = None) -> sqlite3.Connection:
    """A connection in autocommit mode, on which every commit is synced to the disk. Raises sqlite3.Error.

    `busy_timeout_s`: how long its statements wait for locks once it is open. `cache_kib`: instead of SQLite's 2,000. It
    may be handed from one thread to another, but is never used by two at once.
    """
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        # The first statement opens the log, which another process may just be removing as the last one to leave.
        insist(connection, "PRAGMA synchronous = FULL", for_s=_OPEN_WAIT_S)
        # Otherwise every so many commits one of them would copy the log into the database before it is answered.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        if cache_kib is not None:
            connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def insist(connection: sqlite3.Connection, statement: str, *, for_s: float) -> sqlite3.Cursor:
    """Execute `statement`, again and again for `for_s` seconds while another process holds the lock that it needs.

    SQLite's own waiting asks less and less often, down to ten times a second: a process that finds the lock taken by a
    busy one gets it after seconds, or never. And for some locks it does not wait at all.
    """
    deadline_s = time.monotonic() + for_s
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
        time.sleep(random.uniform(0.0005, 0.0015))


def prepare(path: Path, *, busy_timeout_s: float) -> None:
    """Make the database, or check that it is one that this version knows. Raises StoreUnavailable.

    Several processes may do this at once.
    """
    try:
        _make_file(path)
        connection = connect(path, busy_timeout_s=0)
        try:
            _check_schema(connection, path, busy_timeout_s)
            _make_schema(connection, path, busy_timeout_s)
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"cannot open {path}: {error}") from error


def _make_file(path: Path) -> None:
    """Only the owner reads it: push tokens are in it. SQLite gives its log and index the same permissions.

    An existing file is not opened here: closing it again would drop the locks that this process holds on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return


def _check_schema(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    ((version,),) = insist(connection, "PRAGMA user_version", for_s=busy_timeout_s)
    if version > SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path} was written by a newer version of this program (schema {version}, known is {SCHEMA_VERSION})"
        )


def _make_schema(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # a file that is not empty stays as it is
    ((mode,),) = insist(connection, "PRAGMA journal_mode = WAL", for_s=busy_timeout_s)
    if mode != "wal":
        raise StoreUnavailable(f"{path} is on a file system without shared memory: SQLite cannot keep a log there")
    insist(connection, "BEGIN IMMEDIATE", for_s=busy_timeout_s)
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in _SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


class Checkpointer:
    """A thread that copies the log into the database whenever it is told to, holding up neither readers nor the writer.

    Where the writer never pauses it never quite gets to the end, and the log goes on growing: that is for the writer
    to notice (`storage.sqlite_writer`).
    """

    def __init__(self, path: Path) -> None:
        self._connection = connect(path, busy_timeout_s=0)
        self._wanted = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="sqlite-checkpoints", daemon=True)
        self._thread.start()

    def want(self) -> None:
        """The log has grown."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread and its connection; waits for a running checkpoint."""
        self._ending = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._ending:
            self._wanted.clear()
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                # Nothing is lost: what could not be copied stays in the log, and is copied next time.
                log.warning("checkpoint failed: %s", error)
        self._connection.close()

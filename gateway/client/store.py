"""Where a device keeps its record: in a file that is whole after every crash, or in memory."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Protocol

if sys.platform != "win32":
    import fcntl


class Store(Protocol):
    """One record, of some hundred bytes to some hundred KiB. It holds secrets."""

    async def load(self) -> bytes | None:
        """What was saved last; None where nothing was."""
        ...

    async def save(self, body: bytes) -> None:
        """Replace it. Once this returns, that is durable; after a crash before, one of the two is there, whole.

        Raises OSError where that is not possible now. Called by one task at a time.
        """
        ...

    async def close(self) -> None:
        """Whoever opens it next may, once this returns; what was being saved is saved by then."""
        ...


class MemoryStore:
    """A record that lasts as long as this object, for tests and tools."""

    def __init__(self, body: bytes | None = None) -> None:
        self.body = body

    async def load(self) -> bytes | None:
        return self.body

    async def save(self, body: bytes) -> None:
        self.body = body

    async def close(self) -> None:
        return


class StoreInUse(OSError):
    """Another process, or another device of this one, has the file open."""


class FileStore:
    """A record in a file that only its owner may read. Its folder is made where it is missing.

    It is opened by `load`, which raises StoreInUse where it is open already: two that write to it would each undo what
    the other did. (Where files cannot be locked, as on Windows, nobody notices.)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(f".{path.name}.new")
        self._lock: int | None = None
        self._saving: asyncio.Future[None] | None = None

    async def load(self) -> bytes | None:
        return await asyncio.to_thread(self._load)

    async def save(self, body: bytes) -> None:
        # Whoever is cancelled meanwhile leaves a thread behind that writes on: it comes first.
        if self._saving is not None and not self._saving.done():
            await asyncio.wait([self._saving])
        self._saving = asyncio.ensure_future(asyncio.to_thread(self._save, body))
        await asyncio.shield(self._saving)

    async def close(self) -> None:
        if self._saving is not None:
            await asyncio.wait([self._saving])
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load(self) -> bytes | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _take_lock(self) -> None:
        """On a file of its own: the record's is another one after every save."""
        if self._lock is not None:
            return
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                raise StoreInUse(f"{self._path} is in use") from error
        self._lock = lock

    def _save(self, body: bytes) -> None:
        """First the whole of it under another name, then that name becomes the record's: rename(2) does it at once."""
        with open(self._new, "wb", opener=_private) as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._new, self._path)  # noqa: PTH105
        if sys.platform != "win32":
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # else the new name may be lost with the power
            finally:
                os.close(folder)


def _private(path: str, flags: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - of a save that was cut off, with whatever rights it had
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)

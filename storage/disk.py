"""Objects as files on this machine, through URLs that this gateway signs and answers."""

import io
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from storage.disk_files import IncomingFile, ObjectFiles, read_range
from storage.objects import (
    ObjectInfo,
    ObjectsUnavailable,
    ServedObjectStore,
    SignedDownload,
    SignedUpload,
    StoredObject,
    UploadGrant,
    check_key,
    check_prefix,
)
from storage.signing import UrlSigner
from storage.threads import WorkerPool
from storage.uploads import UploadCheck
from storage.usage import Usage

THREADS = 4
PIECE_BYTES = 1024 * 1024
"""How much of an upload goes to the disk at a time: a thread for each chunk of the network would cost more than it."""
CHUNK_BYTES = 256 * 1024
STALE_S = 24 * 60 * 60
"""An upload that wrote nothing for a day is dead: its URL is too."""

Result = TypeVar("Result")


class DiskObjects(ServedObjectStore):
    """Objects in the folder `root`, which is made if need be; several processes may share it.

    An upload that was answered is synced to the disk. Opening waits for the disk for a moment; later all work on it is
    done in threads of the store's own. `usage` counts what is done to objects: one that is deleted, one that is opened
    to be read (`get`), one folder that is listed. Raises ObjectsUnavailable if the folder cannot be used.
    """

    def __init__(self, root: Path, *, usage: Usage | None = None, clock: Callable[[], float] = time.time) -> None:
        try:
            self._files = ObjectFiles(root.resolve())
            self._signer = UrlSigner(self._files.secret(), clock=clock)
        except OSError as error:
            raise ObjectsUnavailable(f"cannot use {root}: {error}") from error
        self._clock = clock
        self._requests = (usage or Usage()).requests
        self._disk = _Disk()

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        return self._signer.sign_upload(key, size=size, content_type=content_type, sha256=sha256, expires_at=expires_at)

    async def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        return self._signer.sign_download(key, expires_at=expires_at)

    def authorize_upload(self, key: str, query: Mapping[str, str]) -> UploadGrant:
        return self._signer.authorize_upload(key, query)

    def authorize_download(self, key: str, query: Mapping[str, str], *, method: Literal["GET", "HEAD"]) -> None:
        self._signer.authorize_download(key, query, method=method)

    async def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        self._requests["disk", "head"] += 1
        return await self._disk.work(partial(_head, self._files, key))

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        self._requests["disk", "delete"] += len(keys)
        await self._disk.work(partial(_delete, self._files, tuple(keys)))

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        check_prefix(prefix)
        segments = [prefix[:-1]] if prefix else await self._disk.work(self._files.segments)
        for segment in segments:
            self._requests["disk", "list"] += 1
            for key in await self._disk.work(partial(self._files.keys, segment, after)):
                yield key

    async def receive(self, grant: UploadGrant, chunks: AsyncIterator[bytes]) -> None:
        self._requests["disk", "put"] += 1
        check = UploadCheck(grant)
        file = self._files.incoming()
        try:
            await self._disk.work(partial(_begin, self._files, file, grant.key))
            rest = await self._write_pieces(file, check, chunks)
            await self._disk.work(partial(self._files.publish, file, grant, check, rest))
        finally:
            await self._disk.clear(file.discard)

    async def open(self, key: str) -> StoredObject | None:
        check_key(key)
        self._requests["disk", "get"] += 1
        stored = _DiskObject(self._disk)
        try:
            found = await self._disk.work(partial(stored.find, self._files, key))
        except BaseException:
            await stored.close()  # cancelled, the file may be open all the same
            raise
        return stored if found else None

    async def discard_stale(self) -> int:
        return await self._disk.work(partial(self._files.discard_stale, self._clock() - STALE_S))

    async def close(self) -> None:
        await self._disk.close()

    async def _write_pieces(
        self, file: IncomingFile, check: UploadCheck, chunks: AsyncIterator[bytes]
    ) -> Sequence[bytes]:
        """Write the chunks; what is left over at the end, less than a piece, comes back."""
        piece: list[bytes] = []
        held = 0
        async for chunk in chunks:
            check.count(len(chunk))
            piece.append(chunk)
            held += len(chunk)
            if held >= PIECE_BYTES:
                await self._disk.work(partial(_append, file, check, piece))
                piece = []
                held = 0
        return piece


class _Disk:
    """The threads in which a store waits for its disk; what goes wrong there is ObjectsUnavailable."""

    def __init__(self) -> None:
        self._pool = WorkerPool(threads=THREADS, name="objects")
        self._closed = False

    async def work(self, job: Callable[[], Result]) -> Result:
        """The result of `job`; see `WorkerPool.run` for what cancelling does."""
        if self._closed:
            raise ObjectsUnavailable("the store is closed")
        try:
            return await self._pool.run(job)
        except OSError as error:
            raise ObjectsUnavailable(str(error)) from error

    async def clear(self, job: Callable[[], None]) -> None:
        """Do `job`, which releases something, even if the store is closed by now."""
        if self._closed:
            job()
        else:
            await self.work(job)

    async def close(self) -> None:
        """Wait for what is running, then end the threads."""
        self._closed = True
        await self._pool.close()


class _DiskObject(StoredObject):
    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self._file: io.FileIO | None = None

    def find(self, files: ObjectFiles, key: str) -> bool:
        """Open the file, in a thread; whether it is there."""
        found = files.open(key)
        if found is not None:
            self.info, self._file = found
        return found is not None

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        if not 0 <= start <= start + length <= self.info.size:
            raise ValueError(f"{length} bytes from {start} on are not within {self.info.size}")
        if self._file is None:
            raise ObjectsUnavailable("the object is closed")
        end = start + length
        for offset in range(start, end, CHUNK_BYTES):
            size = min(CHUNK_BYTES, end - offset)
            yield await self._disk.work(partial(read_range, self._file, offset, size))

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # The last one who has a deleted file open waits for the file system to free it.
            await self._disk.clear(file.close)


def _begin(files: ObjectFiles, file: IncomingFile, key: str) -> None:
    files.check_new(key)
    file.create()


def _append(file: IncomingFile, check: UploadCheck, chunks: Sequence[bytes]) -> None:
    data = b"".join(chunks)
    check.digest(data)
    file.write(data)


def _head(files: ObjectFiles, key: str) -> ObjectInfo | None:
    found = files.open(key)
    if found is None:
        return None
    info, file = found
    file.close()
    return info


def _delete(files: ObjectFiles, keys: Sequence[str]) -> None:
    for key in keys:
        files.delete(key)

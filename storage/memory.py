"""Both stores in the memory of this process: for tests and simulations. Nothing survives it."""

import secrets
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal

from storage.batch import Batch
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
from storage.objects import (
    AlreadyStored,
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
from storage.signing import SECRET_BYTES, UrlSigner
from storage.uploads import UploadCheck

CHUNK_BYTES = 256 * 1024


class MemoryDocuments(DocumentStore):
    """Documents in a dict."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._stored: dict[str, Document] = {}
        self._removed = 0
        self._closed = False

    async def load(self, keys: Sequence[str]) -> list[Document]:
        check_keys(keys)
        self._check_open()
        return [self._stored.get(key) or Document(key) for key in keys]

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        self._check_open()
        keys = (document.key for document in documents)
        versions = {key: self._stored[key].version for key in keys if key in self._stored}
        batch = Batch(versions, removed=self._removed, now_us=int(self._clock() * 1_000_000))
        try:
            return batch.apply(documents)
        finally:
            self._removed = batch.removed
            self._keep(batch.written)

    async def due(self, before: int, limit: int) -> list[Due]:
        self._check_open()
        entries = [(document.due, key) for key, document in self._stored.items() if document.due is not None]
        return [Due(key, due) for due, key in sorted(entries) if due <= before][:limit]

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        check_part(part, parts)
        self._check_open()
        if part:
            return ScanPage([], None)
        keys = sorted(self._stored)
        first = bisect_right(keys, cursor or "")
        page = keys[first : first + limit]
        return ScanPage([self._stored[key] for key in page], page[-1] if len(page) == limit else None)

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _keep(self, written: Mapping[str, Document]) -> None:
        for key, document in written.items():
            if document.body:
                self._stored[key] = document
            else:
                self._stored.pop(key, None)


class MemoryObjects(ServedObjectStore):
    """Objects in a dict; their URLs are valid in this process only."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._signer = UrlSigner(secrets.token_bytes(SECRET_BYTES), clock=clock)
        self._stored: dict[str, tuple[ObjectInfo, bytes]] = {}
        self._closed = False

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
        self._check_open()
        stored = self._stored.get(key)
        return stored[0] if stored else None

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        self._check_open()
        for key in keys:
            self._stored.pop(key, None)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        check_prefix(prefix)
        self._check_open()
        for key in sorted(self._stored):
            if key.startswith(prefix) and key > after:
                yield key

    async def receive(self, grant: UploadGrant, chunks: AsyncIterator[bytes]) -> None:
        self._check_new(grant.key)
        check = UploadCheck(grant)
        taken = bytearray()
        async for chunk in chunks:
            check.count(len(chunk))
            check.digest(chunk)
            taken += chunk
        check.finish()
        self._check_new(grant.key)  # another upload may have been faster
        info = ObjectInfo(grant.key, grant.size, grant.content_type)
        self._stored[grant.key] = (info, bytes(taken))

    async def open(self, key: str) -> StoredObject | None:
        check_key(key)
        self._check_open()
        stored = self._stored.get(key)
        return _MemoryObject(*stored) if stored else None

    async def discard_stale(self) -> int:
        """Uploads that died left nothing behind."""
        self._check_open()
        return 0

    async def close(self) -> None:
        self._closed = True
        self._stored.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ObjectsUnavailable("the store is closed")

    def _check_new(self, key: str) -> None:
        check_key(key)
        self._check_open()
        if key in self._stored:
            raise AlreadyStored(key)


class _MemoryObject(StoredObject):
    def __init__(self, info: ObjectInfo, data: bytes) -> None:
        self.info = info
        self._data = data

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        if not 0 <= start <= start + length <= self.info.size:
            raise ValueError(f"{length} bytes from {start} on are not within {self.info.size}")
        for offset in range(start, start + length, CHUNK_BYTES):
            yield self._data[offset : min(offset + CHUNK_BYTES, start + length)]

    async def close(self) -> None:
        return

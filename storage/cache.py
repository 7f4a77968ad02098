"""A cache before a document store, where a read costs more there than in memory: what it promises, and how it is used.

Whatever the cache does (loses entries, keeps old ones, fails, hangs), the store behind it stays as exact as it is: only
`peek` looks into the cache, and it says what it found there.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from storage.documents import Conflict, Document, DocumentStore, Due, Peeked, ScanPage, check_keys

ENTRY_S = 30.0
"""How long an entry lives, counted from when it was handed to `Cache.put`."""

PUT_WITHIN_S = 1.0
"""A document whose load or commit took longer than that is not put: it may be old already."""


class Cache(Protocol):
    """Copies of documents, for a short time. Nothing here raises: a cache that fails has nothing."""

    async def get(self, keys: Sequence[str]) -> list[Document | None]:
        """The entries of `keys`, in that order; None where there is none.

        An entry is a document as it was put, no longer than `ENTRY_S` ago. Never waits long: no answer in a fraction
        of a second is none.
        """
        ...

    def put(self, documents: Sequence[Document]) -> None:
        """Keep these for `ENTRY_S` from now, each unless there is an entry with a higher version.

        Returns at once. May be lost, late or repeated; one that comes late lives so much shorter.
        """
        ...

    def drop(self, keys: Sequence[str]) -> None:
        """Keep nothing of these. Returns at once; may be lost, late or repeated."""
        ...

    async def close(self) -> None:
        """Release everything. After that there is nothing, and nothing is kept."""
        ...


class CachedDocuments(DocumentStore):
    """A store with a cache before it: what is written and loaded is put there, what is peeked at comes from there.

    `prefix`: only documents whose keys begin like this are put: what nobody peeks at need not leave the store.
    `clock`: seconds of a clock that never goes back. `hits`, `misses`: how many keys `peek` found, and did not.
    """

    def __init__(
        self, store: DocumentStore, cache: Cache, *, prefix: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._store = store
        self._cache = cache
        self._prefix = prefix
        self._clock = clock

    async def load(self, keys: Sequence[str]) -> list[Document]:
        began_s = self._clock()
        loaded = await self._store.load(keys)
        self._remember(loaded, began_s)
        return loaded

    async def peek(self, keys: Sequence[str]) -> Peeked:
        check_keys(keys)
        found = await self._cache.get(keys)
        aged = [document.key for document in found if document is not None]
        missing = [key for key, document in zip(keys, found, strict=True) if document is None]
        self.hits += len(aged)
        self.misses += len(missing)
        loaded = iter(await self.load(missing) if missing else ())
        return Peeked([next(loaded) if document is None else document for document in found], aged)

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        began_s = self._clock()
        try:
            written = await self._store.commit(documents)
        except Conflict as conflict:
            self._remember(conflict.written, began_s)  # the one that moved is put by whoever loads it now
            raise
        self._remember(written, began_s)
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        return await self._store.due(before, limit)

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        return await self._store.scan(cursor=cursor, limit=limit, part=part, parts=parts)

    async def close(self) -> None:
        try:
            await self._cache.close()
        finally:
            await self._store.close()

    def _remember(self, documents: Sequence[Document], began_s: float) -> None:
        """Put these, which were the newest at some moment since `began_s`. Where that is too long ago, or a document is
        gone, there is better no entry."""
        if self._clock() - began_s > PUT_WITHIN_S:
            self._forget([document.key for document in documents])
            return
        mine = [document for document in documents if document.key.startswith(self._prefix)]
        if there := [document for document in mine if document.body]:
            self._cache.put(there)
        self._forget([document.key for document in mine if not document.body])

    def _forget(self, keys: Sequence[str]) -> None:
        if mine := [key for key in keys if key.startswith(self._prefix)]:
            self._cache.drop(mine)

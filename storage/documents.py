"""The contract of a document store: small versioned documents, replaced by compare-and-set.

A store knows nothing of what its documents mean. It promises exactly what stands below, and one contract suite
(`tests/storage/test_documents.py`) holds every backend to every sentence of it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

MAX_KEY_BYTES = 256
MAX_BODY_BYTES = 256 * 1024
MAX_LOAD = 512
"""The most keys that one `load` and the most documents that one `commit` take."""
MAX_DUE = 2**53 - 1
"""The latest due time: every backend keeps integers up to here exactly."""
_is_key = re.compile(rf"[!-~]{{1,{MAX_KEY_BYTES}}}\Z").match

PEEK_AGE_S = 31.0
"""How old a document that is only peeked at may be: the 30 s of an entry in a cache, and a second on its way there."""


class Document(msgspec.Struct, frozen=True):
    """One document as it was loaded, or as it is to be written.

    `key`: 1 to 256 bytes of printable ASCII without spaces.
    `version`: the store's own; 0 where nothing is stored. In a document to be written, the version it was loaded with.
    `body`: at most 256 KiB, opaque. An empty body removes the document (its `due` must then be None).
    `due`: when a worker must look at the document, in milliseconds since the Unix epoch (0 to `MAX_DUE`), or None.
    """

    key: str
    version: int = 0
    body: bytes = b""
    due: int | None = None

    def __repr__(self) -> str:
        return f"Document(key={self.key!r}, version={self.version}, due={self.due})"


@dataclass(frozen=True, slots=True)
class Due:
    """An entry of the due index: the document `key` asked to be looked at, at `due` (ms since the epoch)."""

    key: str
    due: int


@dataclass(frozen=True, slots=True)
class ScanPage:
    """A page of a scan; `cursor` continues it, is not empty, and is None after the last page."""

    documents: list[Document]
    cursor: str | None


class Peeked(NamedTuple):
    """Documents that may be old. `aged`: the keys of those that came from a cache; the others were loaded."""

    documents: list[Document]
    aged: Collection[str] = ()


class Conflict(Exception):
    """The document `key` had moved, so it and those after it were not written.

    `written`: the documents before it in the same call, in order, with their new versions. They stay written.
    """

    def __init__(self, key: str, written: Sequence[Document] = ()) -> None:
        super().__init__(key)
        self.key = key
        self.written = list(written)


class StoreUnavailable(Exception):
    """The store could not do it now. Whether a write landed is not known; nothing was half-applied to one document."""


class DocumentStore(Protocol):
    """Where documents are kept.

    Every method may raise `StoreUnavailable`; no driver's exception leaves an adapter. A cancelled `commit` may still
    be applied. Arguments outside the limits of `Document` raise ValueError before anything is sent.
    """

    async def load(self, keys: Sequence[str]) -> list[Document]:
        """The documents of `keys`, in that order; a missing one comes back empty with version 0.

        Strongly consistent: it sees every commit that returned before the load began, from whichever process.
        Each document is whole; two documents of one load may be of different moments. At most `MAX_LOAD` keys.
        """
        ...

    async def peek(self, keys: Sequence[str]) -> Peeked:
        """Like `load`, but documents may be old, and older than those of a peek before.

        Each is whole, and was committed: it is what a `load` would have given at some moment no more than `PEEK_AGE_S`
        before this call. If it is not the newest any more, a `commit` with its version is a conflict; nothing else
        proves that it is. A store without a cache loads.
        """
        return Peeked(await self.load(keys))

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        """Replace each document if its version is still the one given; return them with their new versions.

        * A new version is `max(previous + 1, now in µs)`, or more for a document that is made anew; a version is
          never used twice for a key, not even after the document was removed or the store was restored from a copy
          (the latter as far as the clock is right). A removed document returns version 0; removing one that is not
          there does nothing.
        * They are applied in the order given. At the first that moved: `Conflict`, which carries the earlier ones;
          they stay written, the later ones are not touched. There is no transaction over the call.
        * When it returns, what it wrote is as durable as the backend promises, and every later `load` sees it.
        * A write of this very call that a driver repeated, because the first answer was lost, counts as ours.
        * The keys of one call differ (ValueError otherwise). An empty sequence does nothing.
        """
        ...

    async def due(self, before: int, limit: int) -> list[Due]:
        """At most `limit` entries whose due time is at or before `before` (ms), oldest first.

        May repeat an entry, may lag behind commits by a second, may name a document that is due no longer: who acts on
        an entry loads its document first. A document that stays due is never left out for ever.
        """
        ...

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        """About `limit` documents from `cursor` on, in no particular order; start with None.

        `parts`: how many scans share the work, `part` (from 0) which of them this is; a cursor goes on with its own. A
        document that is there during the whole scan of all parts is returned at least once. A store that gains nothing
        by parts has everything in part 0. ValueError for a part that there is not, and for a cursor that is none.
        """
        ...

    async def close(self) -> None:
        """Finish what was committed, release everything. Further calls raise `StoreUnavailable`."""
        ...


def check_documents(documents: Sequence[Document]) -> None:
    """Raise ValueError where `documents` break the contract of `DocumentStore.commit`."""
    if len(documents) > MAX_LOAD:
        raise ValueError(f"at most {MAX_LOAD} documents in one commit, not {len(documents)}")
    if len(documents) > 1 and len({document.key for document in documents}) != len(documents):
        raise ValueError("a commit names each key once")
    for document in documents:
        if not _is_key(document.key):
            raise ValueError(f"not a key: {document.key!r}")
        if len(document.body) > MAX_BODY_BYTES:
            raise ValueError(f"{document.key}: a body has at most {MAX_BODY_BYTES} bytes, not {len(document.body)}")
        if not document.body and document.due is not None:
            raise ValueError(f"{document.key}: a removed document cannot be due")
        if document.due is not None and not 0 <= document.due <= MAX_DUE:
            raise ValueError(f"{document.key}: not a due time: {document.due}")


def check_part(part: int, parts: int) -> None:
    """Raise ValueError where there is no such part of a scan."""
    if not 0 <= part < parts:
        raise ValueError(f"not a part of {parts}: {part}")


def check_keys(keys: Sequence[str]) -> None:
    """Raise ValueError where `keys` break the contract of `DocumentStore.load`."""
    if len(keys) > MAX_LOAD:
        raise ValueError(f"at most {MAX_LOAD} keys in one load, not {len(keys)}")
    for key in keys:
        if not _is_key(key):
            raise ValueError(f"not a key: {key!r}")

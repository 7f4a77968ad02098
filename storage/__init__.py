"""Where things are kept. It knows nothing of videos; `documents` and `objects` are the two contracts.

A store is opened by its URL, and closed when the `async with` ends. Each adapter is imported when its scheme is used.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from storage.cache import Cache
from storage.documents import DocumentStore, StoreUnavailable
from storage.objects import ObjectStore
from storage.redis_url import REDIS_SCHEMES, RedisUrl

Clock = Callable[[], float]

_NO_HIREDIS = "documents in Redis need the package hiredis: pip install gateway[redis]"


@asynccontextmanager
async def open_documents(url: str, *, clock: Clock = time.time) -> AsyncIterator[DocumentStore]:
    """The document store at `url`: `memory:`, `sqlite:///path` (`sqlite:////path` for an absolute one), or
    `redis://host:port` and its like (`storage/redis_url.py`).

    ValueError for a URL that is none of these, `StoreUnavailable` if the store cannot be opened. A Redis server that
    is down can be opened nevertheless: what is asked is unavailable until it is up. `clock` gives seconds since the
    epoch.
    """
    store = await _opener(url, _DOCUMENTS)(url, clock)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_objects(url: str, *, clock: Clock = time.time) -> AsyncIterator[ObjectStore]:
    """The object store at `url`: `memory:`, or `file:///path` (`file:path` for a relative one).

    ValueError for a URL that is none of these, `ObjectsUnavailable` if the store cannot be opened. `clock` gives
    seconds since the epoch.
    """
    store = await _opener(url, _OBJECTS)(url, clock)
    try:
        yield store
    finally:
        await store.close()


def open_cache(url: str) -> Cache:
    """The cache of documents at `url`, Redis (`storage/redis_url.py`); closed by the caller. ValueError for another.

    `StoreUnavailable` if the package is missing; a server that is down can be opened.
    """
    try:
        from storage.redis_cache import RedisCache  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailable(_NO_HIREDIS) from error
    return RedisCache(RedisUrl.parse(url))


async def _memory_documents(url: str, clock: Clock) -> DocumentStore:
    from storage.memory import MemoryDocuments  # noqa: PLC0415

    _check_memory(url)
    return MemoryDocuments(clock=clock)


async def _sqlite_documents(url: str, clock: Clock) -> DocumentStore:
    from storage.sqlite import SqliteDocuments  # noqa: PLC0415

    return SqliteDocuments(_path(url, after="sqlite:///"), clock=clock)


async def _redis_documents(url: str, clock: Clock) -> DocumentStore:
    try:
        from storage.redis import RedisDocuments  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailable(_NO_HIREDIS) from error
    try:
        return RedisDocuments(RedisUrl.parse(url), clock=clock)
    except ValueError as error:  # it does not repeat the URL, in which a password may stand
        raise ValueError(f"the URL of the documents {error}") from error


async def _memory_objects(url: str, clock: Clock) -> ObjectStore:
    from storage.memory import MemoryObjects  # noqa: PLC0415

    _check_memory(url)
    return MemoryObjects(clock=clock)


async def _disk_objects(url: str, clock: Clock) -> ObjectStore:
    from storage.disk import DiskObjects  # noqa: PLC0415

    path = _path(url, after="file://" if url.startswith("file://") else "file:")
    if url.startswith("file://") and not path.is_absolute():
        raise ValueError(f"{url!r} names a host: a folder is file:///path, or file:path where it is relative")
    return DiskObjects(path, clock=clock)


StoreT = TypeVar("StoreT")
Openers = Mapping[str, Callable[[str, Clock], Awaitable[StoreT]]]

_DOCUMENTS: Openers[DocumentStore] = {
    "memory": _memory_documents,
    "sqlite": _sqlite_documents,
    **dict.fromkeys(REDIS_SCHEMES, _redis_documents),
}
_OBJECTS: Openers[ObjectStore] = {"file": _disk_objects, "memory": _memory_objects}

DOCUMENT_SCHEMES = tuple(_DOCUMENTS)
"""The schemes of the URLs that `open_documents` knows."""
OBJECT_SCHEMES = tuple(_OBJECTS)
"""The schemes of the URLs that `open_objects` knows."""


def _opener(url: str, openers: Openers[StoreT]) -> Callable[[str, Clock], Awaitable[StoreT]]:
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in openers:
        raise ValueError(f"unknown scheme {scheme!r}; known are: {', '.join(openers)}")
    return openers[scheme]


def _check_memory(url: str) -> None:
    if url != "memory:":
        raise ValueError(f"{url!r}: memory: takes nothing after it")


def _path(url: str, *, after: str) -> Path:
    """The path in `url`, percent-decoded. There is nothing to set, so a `?` is a mistake, not a part of it."""
    path = unquote(url.removeprefix(after))
    if not url.startswith(after) or not path or "?" in url or "#" in url:
        raise ValueError(f"not a URL of a file: {url!r}; it is {after}path, without parameters")
    return Path(path)

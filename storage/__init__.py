"""Where things are kept. It knows nothing of videos; `documents`, `objects` and `events` are the contracts.

A store is opened by its URL, and closed when the `async with` ends. Each adapter is imported when its scheme is used.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from storage.aws.url import AwsMisconfigured, AwsUrl
from storage.cache import Cache
from storage.documents import DocumentStore, StoreUnavailable
from storage.events import UploadEvents
from storage.objects import ObjectStore, ObjectsUnavailable
from storage.redis_url import REDIS_SCHEMES, RedisUrl
from storage.usage import Usage

Clock = Callable[[], float]

_NO_HIREDIS = "documents in Redis need the package hiredis: pip install gateway[redis]"

_NO_BOTOCORE = "Amazon's services need the package botocore: pip install gateway[aws]"


@asynccontextmanager
async def open_documents(
    url: str, *, usage: Usage | None = None, clock: Clock = time.time
) -> AsyncIterator[DocumentStore]:
    """The document store at `url`: `memory:`, `sqlite:///path` (`sqlite:////path` for an absolute one),
    `redis://host:port` and its like (`storage/redis_url.py`), or `dynamodb://table` (`storage/aws/url.py`).

    ValueError for a URL that is none of these, `StoreUnavailable` if the store cannot be opened. One elsewhere that is
    down can be opened nevertheless: what is asked is unavailable until it is up. What it is asked is counted in
    `usage`. `clock` gives seconds since the epoch.
    """
    store = await _opener(url, _DOCUMENTS)(url, usage or Usage(), clock)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_objects(url: str, *, usage: Usage | None = None, clock: Clock = time.time) -> AsyncIterator[ObjectStore]:
    """The object store at `url`: `memory:`, `file:///path` (`file:path` for a relative one), or `s3://bucket/prefix`
    (`storage/aws/url.py`).

    ValueError for a URL that is none of these, `ObjectsUnavailable` if the store cannot be opened. What it is asked is
    counted in `usage`. `clock` gives seconds since the epoch.
    """
    store = await _opener(url, _OBJECTS)(url, usage or Usage(), clock)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_upload_events(
    url: str, *, objects_url: str, usage: Usage | None = None, clock: Clock = time.time
) -> AsyncIterator[UploadEvents]:
    """The events of the object store at `objects_url` from the queue at `url`: `sqs://queue` (`storage/aws/url.py`).

    ValueError for a URL that is none, `ObjectsUnavailable` if it cannot be opened.
    """
    events = await _opener(url, _EVENTS)(url, objects_url, usage or Usage(), clock)
    try:
        yield events
    finally:
        await events.close()


def open_cache(url: str, *, usage: Usage | None = None) -> Cache:
    """The cache of documents at `url`, Redis (`storage/redis_url.py`); closed by the caller. ValueError for another.

    `StoreUnavailable` if the package is missing; a server that is down can be opened. What it is asked is counted in
    `usage`.
    """
    try:
        from storage.redis_cache import RedisCache  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailable(_NO_HIREDIS) from error
    return RedisCache(RedisUrl.parse(url), usage=usage)


async def _memory_documents(url: str, _usage: Usage, clock: Clock) -> DocumentStore:
    from storage.memory import MemoryDocuments  # noqa: PLC0415

    _check_memory(url)
    return MemoryDocuments(clock=clock)


async def _sqlite_documents(url: str, usage: Usage, clock: Clock) -> DocumentStore:
    from storage.sqlite import SqliteDocuments  # noqa: PLC0415

    return SqliteDocuments(_path(url, after="sqlite:///"), usage=usage, clock=clock)


async def _redis_documents(url: str, usage: Usage, clock: Clock) -> DocumentStore:
    try:
        from storage.redis import RedisDocuments  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailable(_NO_HIREDIS) from error
    try:
        return RedisDocuments(RedisUrl.parse(url), usage=usage, clock=clock)
    except ValueError as error:  # it does not repeat the URL, in which a password may stand
        raise ValueError(f"the URL of the documents {error}") from error


async def _memory_objects(url: str, _usage: Usage, clock: Clock) -> ObjectStore:
    from storage.memory import MemoryObjects  # noqa: PLC0415

    _check_memory(url)
    return MemoryObjects(clock=clock)


async def _disk_objects(url: str, usage: Usage, clock: Clock) -> ObjectStore:
    from storage.disk import DiskObjects  # noqa: PLC0415

    path = _path(url, after="file://" if url.startswith("file://") else "file:")
    if url.startswith("file://") and not path.is_absolute():
        raise ValueError(f"{url!r} names a host: a folder is file:///path, or file:path where it is relative")
    return DiskObjects(path, usage=usage, clock=clock)


async def _dynamodb_documents(url: str, usage: Usage, clock: Clock) -> DocumentStore:
    try:
        from storage.dynamodb import DynamoDocuments  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailable(_NO_BOTOCORE) from error
    try:
        return DynamoDocuments(_aws_url(url, "documents"), usage=usage, clock=clock)
    except AwsMisconfigured as error:
        raise StoreUnavailable(str(error)) from error


async def _s3_objects(url: str, usage: Usage, clock: Clock) -> ObjectStore:
    try:
        from storage.s3 import S3Objects  # noqa: PLC0415
    except ImportError as error:
        raise ObjectsUnavailable(_NO_BOTOCORE) from error
    try:
        return S3Objects(_aws_url(url, "objects"), usage=usage, clock=clock)
    except AwsMisconfigured as error:
        raise ObjectsUnavailable(str(error)) from error


async def _sqs_events(url: str, objects_url: str, usage: Usage, clock: Clock) -> UploadEvents:
    try:
        from storage.sqs import SqsUploadEvents  # noqa: PLC0415
    except ImportError as error:
        raise ObjectsUnavailable(_NO_BOTOCORE) from error
    try:
        return SqsUploadEvents(
            _aws_url(url, "upload events"), _aws_url(objects_url, "objects"), usage=usage, clock=clock
        )
    except AwsMisconfigured as error:
        raise ObjectsUnavailable(str(error)) from error


def _aws_url(url: str, what: str) -> AwsUrl:
    try:
        return AwsUrl.parse(url)
    except ValueError as error:
        raise ValueError(f"the URL of the {what} {error}") from error


OpenerT = TypeVar("OpenerT")
StoreT = TypeVar("StoreT")
Openers = Mapping[str, Callable[[str, Usage, Clock], Awaitable[StoreT]]]

_DOCUMENTS: Openers[DocumentStore] = {
    "memory": _memory_documents,
    "sqlite": _sqlite_documents,
    **dict.fromkeys(REDIS_SCHEMES, _redis_documents),
    "dynamodb": _dynamodb_documents,
}
_OBJECTS: Openers[ObjectStore] = {"file": _disk_objects, "memory": _memory_objects, "s3": _s3_objects}
_EVENTS = {"sqs": _sqs_events}

DOCUMENT_SCHEMES = tuple(_DOCUMENTS)
"""The schemes of the URLs that `open_documents` knows."""
OBJECT_SCHEMES = tuple(_OBJECTS)
"""The schemes of the URLs that `open_objects` knows."""
EVENT_SCHEMES = tuple(_EVENTS)
"""The schemes of the URLs that `open_upload_events` knows."""


def _opener(url: str, openers: Mapping[str, OpenerT]) -> OpenerT:
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

"""Documents in a Redis server or cluster: shared by many machines, as durable as its append-only file is set."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from itertools import chain
from typing import NamedTuple
from zlib import crc32

from storage.documents import (
    Conflict,
    Document,
    DocumentStore,
    Due,
    ScanPage,
    StoreUnavailable,
    check_documents,
    check_keys,
    check_part,
)
from storage.redis_client import RedisClient, Script
from storage.redis_connection import RedisRefusal, RedisUnavailable
from storage.redis_url import Address, RedisUrl
from storage.under_way import UnderWay
from storage.usage import Usage

TIMEOUT_S = 2.0
"""How long a server may take to answer."""

TOMBSTONE_MS = 60_000
"""So long a removal is remembered: longer than any repeat of it can take."""

MOST_BYTES = 4 * 1024 * 1024
"""Bodies that one script writes; the server does nothing else meanwhile."""

INSPECT_S = 5.0
"""How often a server that could not be looked at yet is tried again."""

TAGS = tuple(
    b"""
    53t j3j if5 kec 574 74b akm 6bk 96a frw 0ip oin d1i 38o 0m0 xw he6 box 40w c9q hav 7ah 447 67a 1js fcu 0xr m5 1n3
    3me e2j iu 712 52d cmk 4dm 75r h5l 7av ice 3y7 1za 2k6 8ax wu7 931 yg 8e8 7d8 5gn 621 41g jc0 qkn 66q i6o 3h5 1kc
    2z4 0yb 3lu des he 802
    """.split()
)
"""The buckets: a document's is the one at CRC-32 of its key, modulo their number, for ever.

What is in a bucket has its tag in braces, so that it is in one slot of a cluster. The slots of the tags lie 256 apart,
so that servers which share the slots evenly share the documents evenly.
"""

# For each document four keys (itself, its bucket's keys, its bucket's due times, the highest version removed from its
# bucket) and five arguments (key, version it was loaded with, new version, due, body). The answer is the versions
# written: where there are fewer than documents, the next one had moved. Versions are below 2^53, so Lua counts them
# exactly; they are compared as text, and printed as "%.0f" because Lua would print 1.75e+15.
#
# A server that is out of memory refuses the first write of a script, if it asks for memory, and no later one: so the
# first one for each document asks for memory, and nothing is half-done.
_COMMIT = Script.of("""
local written = {}
for i = 1, #KEYS / 4 do
  local document, keys, dues, floor = KEYS[4 * i - 3], KEYS[4 * i - 2], KEYS[4 * i - 1], KEYS[4 * i]
  local key, expected, version = ARGV[5 * i - 2], ARGV[5 * i - 1], ARGV[5 * i]
  local due, body = ARGV[5 * i + 1], ARGV[5 * i + 2]
  local had = redis.call('HMGET', document, 'v', 'n', 'd')
  local stored = had[1] or '0'
  if stored ~= expected then
    if had[2] ~= ARGV[1] then return written end
    version = stored
  elseif body ~= '' then
    if stored == '0' then
      local removed = redis.call('GET', floor)
      if removed and tonumber(removed) >= tonumber(version) then
        version = string.format('%.0f', tonumber(removed) + 1)
      end
    end
    redis.call('HSET', document, 'v', version, 'n', ARGV[1], 'd', due, 'b', body)
    if stored == '0' then
      if had[1] then redis.call('PERSIST', document) end
      redis.call('ZADD', keys, 0, key)
    end
    if due ~= (had[3] or '') then
      if due ~= '' then redis.call('ZADD', dues, due, key) else redis.call('ZREM', dues, key) end
    end
  else
    version = '0'
    if stored ~= '0' then
      redis.call('HSET', document, 'v', '0', 'n', ARGV[1])
      redis.call('HDEL', document, 'd', 'b')
      redis.call('PEXPIRE', document, ARGV[2])
      redis.call('ZREM', keys, key)
      redis.call('ZREM', dues, key)
      local removed = redis.call('GET', floor)
      if not removed or tonumber(removed) < tonumber(stored) then redis.call('SET', floor, stored) end
    end
  end
  written[i] = version
end
return written
""")

log = logging.getLogger(__name__)


class _Bucket(NamedTuple):
    """The keys of a bucket: `document` begins each document's."""

    document: bytes
    keys: bytes
    due: bytes
    floor: bytes


class RedisDocuments(DocumentStore):
    """Documents in the server or cluster at `url`, each in a hash.

    A commit is a script. On one server it is one for all documents of the call, in one round trip. In a cluster it is
    one for each document, sent when the one before is known to stand.

    A commit that returned survives what the server's append-only file survives (`docs/redis.md`). Nothing is connected
    before it is needed, so a store can be made while the server is down: it is unavailable until the server is up.

    **Repeats.** A command whose answer was lost is sent again. Each call has a nonce, which stays in what it wrote, so
    what it finds to be its own counts as written; a removed document leaves its nonce for a minute. There is one case
    left: this call's write stood, and before the repeat somebody else replaced it. That is a `Conflict`. It says more
    than is known ("was not written"), but asks for the right thing: load again, and decide on what is there now, in
    which the write has its effect. That is what the callers' rules have to bear anyway, because a call whose answer
    was lost on the way to the app is repeated too.

    `usage` counts commands by their name, which is what they cost a server; those that a cluster sends on, or that are
    repeated to teach it a script, count once. `clock` gives seconds since the epoch. `timeout_s`: how long a server may
    take to answer.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        usage: Usage | None = None,
        clock: Callable[[], float] = time.time,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._requests = (usage or Usage()).requests
        self._client = RedisClient(url, timeout_s=timeout_s)
        self._clock = clock
        prefix = url.prefix.encode()
        self._buckets = [_bucket(b"%s{%s}" % (prefix, tag)) for tag in TAGS]
        self._under_way = UnderWay()
        self._inspection = asyncio.create_task(self._inspect())

    async def load(self, keys: Sequence[str]) -> list[Document]:
        check_keys(keys)
        with self._call():
            return await self._load(keys)

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        nonce, now_us = secrets.token_bytes(8), int(self._clock() * 1_000_000)
        written: list[Document] = []
        with self._call():
            for run in self._runs(documents):
                versions = await self._commit(run, nonce, now_us)
                written += map(_written, run, versions)
                if len(versions) < len(run):
                    raise Conflict(run[len(versions)].key, written)
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        """As the contract says; while some server of a cluster does not answer, what the others have."""
        first = min(limit, 1 + 4 * limit // len(TAGS))
        with self._call():
            found = await self._due_in(self._buckets, before, first)
            # A bucket that gave as much as it was asked for may have more that belongs among the oldest.
            full = [bucket for bucket, entries in found.items() if len(entries) == first < limit]
            found |= await self._due_in(full, before, limit) if full else {}
        return nsmallest(limit, chain.from_iterable(found.values()), key=lambda entry: (entry.due, entry.key))

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        """Bucket by bucket, each in the order of its keys: neither a slot that moves nor a restart leaves one out."""
        check_part(part, parts)
        number, after = _position(cursor)
        if not 0 <= number < len(self._buckets):
            raise ValueError(f"not a cursor of this store: {cursor!r}")
        keys: list[str] = []
        with self._call():
            if part:
                return ScanPage([], None)
            while number < len(self._buckets) and len(keys) < limit:
                some = await self._keys_in(self._buckets[number], after, limit - len(keys))
                keys += some
                number, after = (number, some[-1]) if len(keys) == limit else (number + 1, "")
            found = await self._load(keys)
        ended = number == len(self._buckets)
        return ScanPage([document for document in found if document.version], None if ended else f"{number}:{after}")

    async def close(self) -> None:
        self._inspection.cancel()
        await self._under_way.close()
        await asyncio.wait([self._inspection])
        await self._client.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._under_way:
            try:
                yield
            except RedisUnavailable as error:
                raise StoreUnavailable(str(error)) from error

    def _bucket_of(self, key: bytes) -> _Bucket:
        return self._buckets[crc32(key) % len(self._buckets)]

    async def _load(self, keys: Sequence[str]) -> list[Document]:
        self._requests["redis", "HMGET"] += len(keys)
        answers = await self._client.run_all(self._reads(keys))
        return list(map(_loaded, keys, answers))

    def _reads(self, keys: Sequence[str]) -> Iterator[tuple[bytes, tuple[bytes | str, ...]]]:
        for text in keys:
            key = text.encode()
            stored = self._bucket_of(key).document + key
            yield stored, ("HMGET", stored, "v", "b", "d")

    def _runs(self, documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
        """Documents that one script may write."""
        if self._client.cluster:
            yield from ([document] for document in documents)
            return
        run: list[Document] = []
        size = 0
        for document in documents:
            if run and size + len(document.body) > MOST_BYTES:
                yield run
                run, size = [], 0
            run.append(document)
            size += len(document.body)
        if run:
            yield run

    async def _commit(self, documents: Sequence[Document], nonce: bytes, now_us: int) -> list[int]:
        """The new versions, of those that had not moved."""
        keys: list[bytes] = []
        arguments: list[bytes | int] = [nonce, TOMBSTONE_MS]
        for document in documents:
            key = document.key.encode()
            bucket = self._bucket_of(key)
            keys += (bucket.document + key, bucket.keys, bucket.due, bucket.floor)
            due = b"" if document.due is None else document.due
            arguments += (key, document.version, max(document.version + 1, now_us), due, document.body)
        self._requests["redis", "EVALSHA"] += 1
        return list(map(int, await self._client.run_script(_COMMIT, keys, *arguments)))

    async def _due_in(self, buckets: Sequence[_Bucket], before: int, limit: int) -> dict[_Bucket, list[Due]]:
        ask = ("-inf", before, "WITHSCORES", "LIMIT", 0, limit)
        self._requests["redis", "ZRANGEBYSCORE"] += len(buckets)
        answers = await self._client.run_all((bucket.due, ("ZRANGEBYSCORE", bucket.due, *ask)) for bucket in buckets)
        found = {
            bucket: [Due(key.decode(), int(float(due))) for key, due in zip(answer[::2], answer[1::2], strict=True)]
            for bucket, answer in zip(buckets, answers, strict=True)
            if not isinstance(answer, RedisUnavailable)
        }
        if not found:
            raise answers[0]
        return found

    async def _keys_in(self, bucket: _Bucket, after: str, limit: int) -> list[str]:
        least = f"({after}" if after else "-"
        self._requests["redis", "ZRANGEBYLEX"] += 1
        found = await self._client.run(bucket.keys, "ZRANGEBYLEX", bucket.keys, least, "+", "LIMIT", 0, limit)
        return [key.decode() for key in found]

    # --- How the servers are set

    async def _inspect(self) -> None:
        """Tell the log once what is set in a way that loses documents, and why they cannot be had, if so."""
        told = ""
        while True:
            try:
                await self._load(["inspection"])
                for address in await self._client.servers():
                    await self._inspect_server(address)
            except RedisUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    log.error("the documents in Redis cannot be had", extra={"error": told})
                await asyncio.sleep(INSPECT_S)
            else:
                return

    async def _inspect_server(self, address: Address) -> None:
        if (await self._setting(address, "maxmemory-policy")).startswith("allkeys"):
            log.warning(
                "Redis removes documents when it is full: set maxmemory-policy to noeviction",
                extra={"address": str(address)},
            )
        if await self._setting(address, "appendonly") == "no":
            log.warning(
                "Redis loses documents when it ends: set appendonly to yes and appendfsync to always",
                extra={"address": str(address)},
            )

    async def _setting(self, address: Address, name: str) -> str:
        """What is set, or nothing where it is not to be known: who rents a server may not ask."""
        try:
            _, value = await self._client.run_at(address, "CONFIG", "GET", name)
        except (RedisRefusal, ValueError):
            return ""
        return str(value.decode())


def _bucket(start: bytes) -> _Bucket:
    return _Bucket(start + b"d:", start + b"keys", start + b"due", start + b"floor")


def _loaded(key: str, answer: Sequence[bytes | None] | RedisUnavailable) -> Document:
    if isinstance(answer, RedisUnavailable):
        raise answer
    version, body, due = answer
    if body is None or version is None:
        return Document(key)
    return Document(key, int(version), body, int(due) if due else None)


def _written(document: Document, version: int) -> Document:
    return Document(document.key, version, document.body, document.due)


def _position(cursor: str | None) -> tuple[int, str]:
    """Which bucket a scan is in, and after which key."""
    number, _, after = (cursor or "0:").partition(":")
    return int(number), after

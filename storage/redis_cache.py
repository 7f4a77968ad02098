"""The cache of documents in Redis."""

import asyncio
import struct
import time
from collections.abc import Sequence
from functools import partial

from storage.cache import ENTRY_S, Cache
from storage.documents import Document
from storage.redis_client import RedisClient, Script
from storage.redis_connection import RedisUnavailable
from storage.redis_url import Address, RedisUrl
from storage.usage import Usage

TIMEOUT_S = 0.25
"""How long a read waits for Redis. Then the store is asked."""

_HEAD = struct.Struct(">QQ")
"""An entry begins with the version and the due time."""

_NEVER = 2**64 - 1

# Until when the entry is to live is given by the server's own clock: a server that was frozen does what it was sent
# before, however late. Versions are below 2^53, so Lua compares them exactly. The answer is the server's time in ms.
_PUT = Script.of("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = math.min(tonumber(ARGV[2]) - now, tonumber(ARGV[3]))
local had = redis.call('GETRANGE', KEYS[1], 0, 7)
if left >= 1 and (had == '' or struct.unpack('>I8', had) <= struct.unpack('>I8', ARGV[1])) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', left))
end
return now
""")


class RedisCache(Cache):
    """The cache in the server or cluster at `url`; `timeout_s`: how long `get` waits.

    While Redis is away nothing is found, and nothing is waited for: after the first read that was in vain it is left
    alone for half a second at a time. Of each server, the first that is put only tells what time it has there. `usage`
    counts the entries that are asked for, put and dropped: a command each.
    """

    def __init__(
        self, url: RedisUrl, *, usage: Usage | None = None, timeout_s: float = TIMEOUT_S, entry_s: float = ENTRY_S
    ) -> None:
        self._requests = (usage or Usage()).requests
        self._client = RedisClient(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._entry_ms = int(entry_s * 1000)
        self._prefix = f"{url.prefix}cache:".encode()
        self._ahead_ms: dict[Address, int] = {}
        """How much a server's clock is ahead of ours, or less: its answer was on its way for some time."""

    async def get(self, keys: Sequence[str]) -> list[Document | None]:
        self._requests["cache", "get"] += len(keys)
        stored = [self._prefix + key.encode() for key in keys]
        try:
            # In a cluster a command may be sent on; each server would have its time.
            async with asyncio.timeout(self._timeout_s):
                answers = await self._client.run_all((key, ("GET", key)) for key in stored)
        except (RedisUnavailable, TimeoutError):
            return [None] * len(keys)
        return [_entry(key, answer) for key, answer in zip(keys, answers, strict=True)]

    def put(self, documents: Sequence[Document]) -> None:
        self._requests["cache", "put"] += len(documents)
        for document in documents:
            key = self._prefix + document.key.encode()
            home = self._client.home(key)
            ahead_ms = self._ahead_ms.get(home) if home else None
            # Of a server whose clock is not known it is said to be too late.
            until_ms = 0 if ahead_ms is None else _now_ms() + ahead_ms + self._entry_ms
            due = _NEVER if document.due is None else document.due
            value = _HEAD.pack(document.version, due) + document.body
            learn = partial(self._learn, home)
            self._client.post_script(_PUT, [key], value, until_ms, self._entry_ms, returned=learn)

    def drop(self, keys: Sequence[str]) -> None:
        self._requests["cache", "drop"] += len(keys)
        for key in keys:
            stored = self._prefix + key.encode()
            self._client.post(stored, "DEL", stored)

    async def close(self) -> None:
        await self._client.close()

    def _learn(self, home: Address | None, server_ms: int) -> None:
        if home is not None:
            self._ahead_ms[home] = server_ms - _now_ms()


def _now_ms() -> int:
    """Of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def _entry(key: str, answer: bytes | RedisUnavailable | None) -> Document | None:
    if not isinstance(answer, bytes) or len(answer) < _HEAD.size:
        return None
    version, due = _HEAD.unpack_from(answer)
    return Document(key, version, answer[_HEAD.size :], None if due == _NEVER else due)

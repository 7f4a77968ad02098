"""Documents in a DynamoDB table: shared by many machines, kept alive by somebody else.

A document is an item. `k`: its key, the table's; `v`: its version; `b`: its body; `n`: the nonce of the call that wrote
it; `d` and `s`: when it is due, and in which shard of the index `due`, where it is. A removed document is a tombstone:
`k`, `v` and `n`, and `x`, the time in seconds after which DynamoDB removes it for good (time to live).
"""

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from itertools import chain
from typing import Any, TypeVar, cast
from zlib import crc32

from storage.aws.client import AwsClient, AwsJson, AwsRefusal, AwsUnavailable, jitter_s, parsed
from storage.aws.url import AwsUrl
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
from storage.under_way import UnderWay
from storage.usage import Usage

INDEX = "due"
"""The index of due documents: partition key `s`, sort key `d`, keys only."""

TIMEOUT_S = 1.5
"""How long DynamoDB may take to answer one try."""
DEADLINE_S = 6.0
"""How long a call may take, its repeats included."""

MOST_KEYS = 100
"""Items that one BatchGetItem takes."""

TOMBSTONE_S = 24 * 60 * 60
"""So long a removal is remembered: a clock that is set back by less uses no version twice."""

_CONDITION_FAILED = "ConditionalCheckFailedException"
_VERSION = "v = :v"
_ABSENT = "attribute_not_exists(k) OR (attribute_exists(x) AND v < :v)"

Result = TypeVar("Result")
Item = Mapping[str, Mapping[str, str]]


class DynamoDocuments(DocumentStore):
    """Documents in the table at `url`, which `gateway setup` makes.

    A commit is a conditional PutItem for each document, sent when the one before is known to stand. A commit that
    returned is in the storage of several data centres. What it is asked, and the capacity that DynamoDB says it took,
    is counted in `usage`. `clock` gives seconds since the epoch.

    **Repeats.** A request whose answer was lost is sent again. Each call has a nonce, which stays in what it wrote, and
    DynamoDB hands out the item on which a condition failed, so what it finds to be its own counts as written. One case
    is left, as in `RedisDocuments`: this call's write stood, and before the repeat somebody else replaced it.

    Raises AwsMisconfigured where the machine's AWS configuration will not do.
    """

    def __init__(self, url: AwsUrl, *, usage: Usage, clock: Callable[[], float] = time.time) -> None:
        self._client = AwsClient(url, usage=usage, timeout_s=TIMEOUT_S, deadline_s=DEADLINE_S)
        self._dynamodb = AwsJson(self._client, target="DynamoDB_20120810")
        self._table = url.name
        self._shards = url.shards
        self._units = usage.units
        self._clock = clock
        self._under_way = UnderWay()

    async def load(self, keys: Sequence[str]) -> list[Document]:
        check_keys(keys)
        with self._call():
            if len(keys) == 1:
                return [await self._load_one(keys[0])]
            wanted = list(dict.fromkeys(keys))
            batches = [wanted[start : start + MOST_KEYS] for start in range(0, len(wanted), MOST_KEYS)]
            found = dict(chain.from_iterable(await _all(*(self._load_batch(batch) for batch in batches))))
        return [found.get(key) or Document(key) for key in keys]

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        nonce, written = base64.b64encode(secrets.token_bytes(6)).decode(), list[Document]()
        with self._call():
            for document in documents:
                version = await self._replace(document, nonce)
                if version is None:
                    raise Conflict(document.key, written)
                written.append(Document(document.key, version if document.body else 0, document.body, document.due))
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        """As the contract says. The index follows the table, most often within a second."""
        first = min(limit, 1 + 4 * limit // self._shards)
        with self._call():
            shards = range(self._shards)
            found = dict(
                zip(shards, await _all(*(self._due_in(shard, before, first) for shard in shards)), strict=True)
            )
            # A shard that gave as much as it was asked for may have more that belongs among the oldest.
            full = [shard for shard in shards if len(found[shard]) == first < limit]
            found |= zip(full, await _all(*(self._due_in(shard, before, limit) for shard in full)), strict=True)
        return nsmallest(limit, chain.from_iterable(found.values()), key=lambda entry: (entry.due, entry.key))

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        check_part(part, parts)
        asked: dict[str, Any] = {"Limit": limit, "ConsistentRead": True, "Segment": part, "TotalSegments": parts}
        if cursor is not None:
            asked["ExclusiveStartKey"] = {"k": {"S": cursor}}
        with self._call():
            try:
                answer = await self._ask("Scan", asked)
            except AwsRefusal as error:
                if cursor is None or error.code != "ValidationException":
                    raise
            else:
                found = [document for document in map(_document, answer["Items"]) if document.version]
                last = answer.get("LastEvaluatedKey")
                return ScanPage(found, last and last["k"]["S"])
        raise ValueError("not a cursor of this part of this table")

    async def close(self) -> None:
        await self._under_way.close()
        await self._client.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._under_way:
            try:
                yield
            except (AwsUnavailable, AwsRefusal) as error:
                self._client.tell(error)
                missing = isinstance(error, AwsRefusal) and error.code == "ResourceNotFoundException"
                told = f"there is no table {self._table}: `gateway setup` makes it" if missing else str(error)
                raise StoreUnavailable(told) from error
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise StoreUnavailable("dynamodb: an answer that makes no sense") from error

    async def _ask(self, call: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self._dynamodb.call(
            call, {"TableName": self._table, "ReturnConsumedCapacity": "TOTAL", **parameters}
        )
        self._count(call, answer.get("ConsumedCapacity"))
        return answer

    def _count(self, call: str, consumed: Mapping[str, Any] | None) -> None:
        if consumed is not None:
            kind = "write" if call == "PutItem" else "read"
            self._units["dynamodb", call, kind] += consumed.get("CapacityUnits", 0)

    # --- Reading

    async def _load_one(self, key: str) -> Document:
        answer = await self._ask("GetItem", {"Key": {"k": {"S": key}}, "ConsistentRead": True})
        item = answer.get("Item")
        return Document(key) if item is None else _document(item)

    async def _load_batch(self, keys: Sequence[str]) -> list[tuple[str, Document]]:
        """What is there of at most `MOST_KEYS` keys. DynamoDB may answer a part, and ask for the others again."""
        wanted: Any = {self._table: {"Keys": [{"k": {"S": key}} for key in keys], "ConsistentRead": True}}
        found: list[tuple[str, Document]] = []
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        tries = 0
        while True:
            answer = await self._dynamodb.call(
                "BatchGetItem", {"RequestItems": wanted, "ReturnConsumedCapacity": "TOTAL"}
            )
            for consumed in answer.get("ConsumedCapacity", ()):
                self._count("BatchGetItem", consumed)
            items = answer["Responses"].get(self._table, ())
            found += [(document.key, document) for document in map(_document, items)]
            wanted = answer.get("UnprocessedKeys")
            if not wanted:
                return found
            tries = 0 if items else tries + 1
            pause = jitter_s(tries)
            if asyncio.get_running_loop().time() + pause >= deadline:
                raise AwsUnavailable("dynamodb BatchGetItem: some items were not to be had")
            await asyncio.sleep(pause)

    async def _due_in(self, shard: int, before: int, limit: int) -> list[Due]:
        answer = await self._ask(
            "Query",
            {
                "IndexName": INDEX,
                "KeyConditionExpression": "s = :s AND d <= :d",
                "ExpressionAttributeValues": {":s": {"S": str(shard)}, ":d": {"N": str(before)}},
                "Limit": limit,
            },
        )
        return [Due(item["k"]["S"], int(item["d"]["N"])) for item in answer["Items"]]

    # --- Writing

    async def _replace(self, document: Document, nonce: str) -> int | None:
        """The new version, or None where the document had moved."""
        version = max(document.version + 1, int(self._clock() * 1_000_000))
        if not document.version and not document.body:
            return await self._absent(document.key)
        # Made anew: above any version that it had before it was removed.
        condition, compared = (_VERSION, document.version) if document.version else (_ABSENT, version)
        while True:
            had = await self._put(self._item(document, version, nonce), condition, compared)
            if had is None:
                return version
            if had.get("n", {}).get("B") == nonce:
                return int(had["v"]["N"])
            if document.version or not had or "x" not in had:
                return None
            # Removed by somebody whose clock is ahead of this one's.
            compared = int(had["v"]["N"])
            version, condition = compared + 1, _VERSION  # which no document has had

    async def _absent(self, key: str) -> int | None:
        """Removing what is not there writes nothing."""
        return None if (await self._load_one(key)).version else 0

    def _item(self, document: Document, version: int, nonce: str) -> Item:
        item = {"k": {"S": document.key}, "n": {"B": nonce}}
        if not document.body:
            # The version that is gone stays in `v`: nobody reads a tombstone's as that of a document.
            return {**item, "v": {"N": str(version)}, "x": {"N": str(int(self._clock()) + TOMBSTONE_S)}}
        item |= {"v": {"N": str(version)}, "b": {"B": base64.b64encode(document.body).decode()}}
        if document.due is not None:
            item |= {"s": {"S": str(crc32(document.key.encode()) % self._shards)}, "d": {"N": str(document.due)}}
        return item

    async def _put(self, item: Item, condition: str, compared: int) -> Item | None:
        """Put `item` under `condition`; None if it was, else the item on which the condition failed."""
        try:
            await self._ask(
                "PutItem",
                {
                    "Item": item,
                    "ConditionExpression": condition,
                    "ExpressionAttributeValues": {":v": {"N": str(compared)}},
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                },
            )
        except AwsRefusal as error:
            if error.code != _CONDITION_FAILED:
                raise
            had: Item = parsed(error.answer).get("Item") or {}
            # It is paid for, though the answer does not say so ("Read/write capacity mode", DynamoDB Developer Guide).
            self._units["dynamodb", "PutItem", "write"] += _write_units(had)
            return had
        return None


def _write_units(item: Item) -> int:
    """About what writing over `item` costs: a unit for each KB begun."""
    return 1 + len(item.get("b", {}).get("B", "")) * 3 // 4 // 1024


def _document(item: Item) -> Document:
    """The document of an item; a tombstone is as good as nothing."""
    key = item["k"]["S"]
    if "x" in item:
        return Document(key)
    due = int(item["d"]["N"]) if "d" in item else None
    return Document(key, int(item["v"]["N"]), base64.b64decode(item["b"]["B"]), due)


async def _all(*calls: Coroutine[Any, Any, Result]) -> list[Result]:
    """What all of them give. Where some fail, the first failure is raised when all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[Result]", results)

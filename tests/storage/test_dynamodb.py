"""What DynamoDB adds to the contract: lost answers, throttles, parts of batches, tombstones, and what it costs."""

import asyncio
import base64
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from zlib import crc32

import pytest

from storage import dynamodb, open_documents
from storage.aws import client
from storage.aws.url import DEFAULT_SHARDS
from storage.documents import MAX_BODY_BYTES, Conflict, Document, DocumentStore, Due, StoreUnavailable
from storage.usage import Usage
from tests.aws_proxy import (
    Answer,
    Exchange,
    Fault,
    Held,
    Proxy,
    Request,
    always,
    answered,
    cut_after,
    cut_before,
    cut_within,
    first,
    passed,
    proxy,
    refused,
    trickled,
    twice,
)
from tests.aws_servers import Ministack
from tests.running import within
from tests.storage.conftest import START_S, SetClock

THROTTLES = ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]


class Table:
    """A table of its own, and a store on it that comes to it through a proxy."""

    def __init__(self, aws: Ministack, name: str, store: DocumentStore, between: Proxy, usage: Usage) -> None:
        self.aws, self.name, self.store, self.between, self.usage = aws, name, store, between, usage

    @property
    def writes(self) -> float:
        return self.usage.units["dynamodb", "PutItem", "write"]

    def item(self, key: str) -> dict[str, dict[str, str]]:
        """What is stored, tombstone or not."""
        found = self.aws.client("dynamodb").get_item(TableName=self.name, Key={"k": {"S": key}})
        return dict(found.get("Item", {}))


@asynccontextmanager
async def opened(aws: Ministack, clock: Callable[[], float] = time.time) -> AsyncIterator[Table]:
    name, usage = aws.fresh_table(), Usage()
    async with (
        proxy(aws.port) as between,
        open_documents(f"dynamodb://{name}?endpoint={between.url}", usage=usage, clock=clock) as store,
    ):
        yield Table(aws, name, store, between, usage)


@pytest.fixture
async def table(aws: Ministack, clock: SetClock) -> AsyncIterator[Table]:
    async with opened(aws, clock) as table:
        yield table


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(dynamodb, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(dynamodb, "DEADLINE_S", 0.8)


def each_once(fault: Fault) -> Callable[[Request], Fault | None]:
    """`fault` for every other request."""
    turns = itertools.cycle([fault, None])
    return lambda _: next(turns)


async def make(store: DocumentStore, key: str = "client:a", body: bytes = b"x", due: int | None = None) -> Document:
    [made] = await store.commit([Document(key, 0, body, due)])
    return made


# --- Lost answers


@pytest.mark.parametrize("fault", [cut_before, cut_after, cut_within, twice, refused(500, "InternalServerError")])
async def test_a_write_whose_answer_is_lost_is_done_once_and_counts_as_ours(table: Table, fault: Fault) -> None:
    for number, document in enumerate([Document("client:a", 0, b"made"), None, None]):
        [current] = await table.store.load(["client:a"])
        table.between.fault = first(1, "PutItem", fault)
        wanted = document or Document("client:a", current.version, b"" if number == 2 else b"replaced")
        [written] = await within(table.store.commit([wanted]))
        assert [written] == await table.store.load(["client:a"])
        assert written.version > current.version or number == 2


async def test_a_write_that_was_lost_and_then_overtaken_is_a_conflict(table: Table) -> None:
    made = await make(table.store)

    async def overtaken(exchange: Exchange) -> None:
        await exchange.forward()
        table.between.fault = lambda _: None
        [stored] = await table.store.load([made.key])
        await table.store.commit([Document(made.key, stored.version, b"theirs")])
        exchange.cut()

    table.between.fault = first(1, "PutItem", overtaken)
    with pytest.raises(Conflict):
        await table.store.commit([Document(made.key, made.version, b"ours")])
    assert [document.body for document in await table.store.load([made.key])] == [b"theirs"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("body", [b"late", b""])
async def test_a_write_that_arrives_late_undoes_nothing(aws: Ministack, body: bytes) -> None:
    async with opened(aws) as table:
        made = await make(table.store)
        held = Held(cut=True)
        table.between.fault = always("PutItem", held)
        with pytest.raises(StoreUnavailable):
            await table.store.commit([Document(made.key, made.version, body)])
        table.between.fault = lambda _: None
        [newer] = await table.store.commit([Document(made.key, made.version, b"newer")])
        [newest] = await table.store.commit([Document(made.key, newer.version)])
        held.release()
        assert (await within(held.answered())).status == 400
        assert await table.store.load([made.key]) == [newest]


@pytest.mark.usefixtures("impatient")
async def test_a_document_whose_making_arrives_after_its_removal_stays_removed(aws: Ministack) -> None:
    async with opened(aws) as table:
        held = Held(cut=True)
        table.between.fault = always("PutItem", held)
        with pytest.raises(StoreUnavailable):
            await make(table.store, body=b"late")
        table.between.fault = lambda _: None
        made = await make(table.store)
        await table.store.commit([Document(made.key, made.version)])
        held.release()
        assert (await within(held.answered())).status == 400
        assert await table.store.load([made.key]) == [Document(made.key)]


async def test_whatever_is_read_is_what_was_written_last(table: Table) -> None:
    """Amazon answers from any copy, unless it is asked for the newest; the index has no such promise."""
    asked: list[tuple[str, bool]] = []

    async def watched(exchange: Exchange) -> None:
        body = json.loads(exchange.request.body)
        [wanted] = body["RequestItems"].values() if "RequestItems" in body else [body]
        asked.append((exchange.request.operation, wanted["ConsistentRead"]))
        await passed(exchange)

    table.between.fault = lambda _: watched
    await table.store.load(["client:a"])
    await table.store.load(["client:a", "client:b"])
    await table.store.scan()
    assert asked == [("GetItem", True), ("BatchGetItem", True), ("Scan", True)]


async def test_a_slow_answer_is_waited_for(table: Table) -> None:
    made = await make(table.store, body=b"x" * 3000)
    table.between.fault = always("GetItem", trickled(0.01, 500))
    assert await table.store.load([made.key]) == [made]


# --- Throttles and failures


@pytest.mark.parametrize("code", THROTTLES)
async def test_what_is_throttled_is_tried_again(table: Table, code: str) -> None:
    table.between.fault = each_once(refused(400, code))
    made = await make(table.store, due=5)
    assert await table.store.load([made.key]) == [made]
    assert await table.store.load([made.key, "client:b"]) == [made, Document("client:b")]
    assert await table.store.due(5, 3) == [Due(made.key, 5)]
    assert (await table.store.scan()).documents == [made]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [refused(400, THROTTLES[0]), refused(503, "ServiceUnavailable"), cut_before, Held()])
async def test_what_goes_on_failing_is_unavailable_before_the_callers_time_is_over(
    aws: Ministack, fault: Fault
) -> None:
    async with opened(aws) as table:
        table.between.fault = lambda _: fault
        began = time.monotonic()
        for call in (table.store.load(["client:a"]), table.store.load(["client:a", "client:b"]), make(table.store)):
            with pytest.raises(StoreUnavailable):
                await call
        assert time.monotonic() - began < 5
        table.between.fault = lambda _: None
        assert (await make(table.store)).version


@pytest.mark.usefixtures("impatient")
async def test_where_everything_fails_hardly_anything_is_repeated(aws: Ministack) -> None:
    async with opened(aws) as table:
        table.between.fault = lambda _: refused(500, "InternalServerError")
        await asyncio.gather(*(table.store.load(["client:a"]) for _ in range(300)), return_exceptions=True)
        assert len(table.between.seen) <= 300 + client.REPEATS / client.REPEAT_COST


async def test_what_is_refused_is_unavailable_at_once_and_told(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    table.between.fault = always("GetItem", refused(400, "AccessDeniedException", "not you, AKIAEXAMPLE"))
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="dynamodb GetItem: AccessDeniedException"):
            await table.store.load(["client:a"])
    assert table.between.seen == ["GetItem"] * 3
    [told] = [record for record in caplog.records if record.name == "storage.aws.client"]
    assert (told.levelno, told.__dict__["error"]) == (logging.ERROR, "dynamodb GetItem: AccessDeniedException")


async def test_a_table_that_is_not_there_is_unavailable(aws: Ministack) -> None:
    async with open_documents(f"dynamodb://nothing?endpoint={aws.endpoint}") as store:
        with pytest.raises(StoreUnavailable, match="there is no table nothing: `gateway setup` makes it"):
            await store.load(["client:a"])


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"Responses":1}', b"what"])
async def test_an_answer_that_makes_no_sense_is_not_taken_for_nothing(table: Table, body: bytes) -> None:
    made = await make(table.store)
    table.between.fault = lambda _: answered(200, body)
    for call in (table.store.load([made.key, "client:b"]), table.store.due(1, 1), table.store.scan()):
        with pytest.raises(StoreUnavailable):
            await call
    table.between.fault = lambda _: None
    assert await table.store.load([made.key]) == [made]


async def test_an_answer_that_was_damaged_is_asked_for_again(table: Table) -> None:
    made = await make(table.store, body=b"x" * 300)

    async def damaged(exchange: Exchange) -> None:
        answer = await exchange.forward()
        await exchange.send(answer.head + answer.body.replace(b"eHh4", b"eXh4", 1))

    table.between.fault = first(1, "GetItem", damaged)
    assert await table.store.load([made.key]) == [made]
    assert table.between.seen[1:] == ["GetItem", "GetItem"]


# --- Batches


async def test_what_a_batch_leaves_out_is_asked_for_again(table: Table) -> None:
    made = [await make(table.store, f"client:{number}") for number in range(20)]
    parts = 0

    async def part(exchange: Exchange) -> None:
        """As Amazon does where a batch is throttled or too large."""
        nonlocal parts
        parts += 1
        [(name, wanted)] = json.loads(exchange.request.body)["RequestItems"].items()
        some, rest = wanted["Keys"][:6], wanted["Keys"][6:]
        found = aws_items(table, some)
        left = {name: {**wanted, "Keys": rest}} if rest else {}
        body = {"Responses": {name: found[::-1]}, "UnprocessedKeys": left}
        answer = Answer.of(200, json.dumps(body).encode())
        await exchange.send(answer.head + answer.body)

    table.between.fault = always("BatchGetItem", part)
    assert await table.store.load([document.key for document in made]) == made
    assert parts == 4


def aws_items(table: Table, keys: list[dict[str, dict[str, str]]]) -> list[dict[str, dict[str, str]]]:
    """The items of these, as JSON has them."""
    found = []
    for key in keys:
        item = table.item(key["k"]["S"])
        found.append({name: {kind: _json(value) for kind, value in typed.items()} for name, typed in item.items()})
    return found


def _json(value: str | bytes) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@pytest.mark.usefixtures("impatient")
async def test_a_batch_of_which_nothing_comes_is_unavailable(aws: Ministack) -> None:
    async with opened(aws) as table:

        async def nothing(exchange: Exchange) -> None:
            wanted = json.loads(exchange.request.body)["RequestItems"]
            await answered(200, json.dumps({"Responses": {}, "UnprocessedKeys": wanted}).encode())(exchange)

        table.between.fault = always("BatchGetItem", nothing)
        with pytest.raises(StoreUnavailable):
            await within(table.store.load(["client:a", "client:b"]))


async def test_many_keys_are_loaded_in_few_requests(table: Table) -> None:
    await table.store.load([f"client:{number}" for number in range(250)])
    assert table.usage.requests == {("dynamodb", "BatchGetItem"): 3}


# --- Tombstones


async def test_a_removed_document_leaves_a_tombstone_that_dynamodb_clears_away(table: Table, clock: SetClock) -> None:
    made = await make(table.store, due=5)
    await table.store.commit([Document(made.key, made.version)])
    item = table.item(made.key)
    assert sorted(item) == ["k", "n", "v", "x"]
    assert int(item["x"]["N"]) == int(START_S) + dynamodb.TOMBSTONE_S
    assert (await table.store.scan()).documents == []


async def test_a_document_is_made_anew_in_one_write_where_clocks_agree(table: Table, clock: SetClock) -> None:
    made = await make(table.store)
    await table.store.commit([Document(made.key, made.version)])
    clock.now_s += 1
    before = len(table.between.seen)
    again = await make(table.store, body=b"again", due=7)
    assert table.between.seen[before:] == ["PutItem"]
    assert await table.store.load([made.key]) == [again]
    assert sorted(table.item(made.key)) == ["b", "d", "k", "n", "s", "v"]


async def test_a_removal_is_not_taken_for_another_document_with_the_same_nonce_gone(table: Table) -> None:
    """Two removals of one version: the second is a conflict, whoever asks."""
    made = await make(table.store)
    await table.store.commit([Document(made.key, made.version)])
    with pytest.raises(Conflict):
        await table.store.commit([Document(made.key, made.version)])


# --- The index


async def test_due_documents_are_spread_over_the_shards_and_come_oldest_first(table: Table) -> None:
    documents = [Document(f"client:{number}", 0, b"x", 1000 - number) for number in range(200)]
    await asyncio.gather(*(table.store.commit([document]) for document in documents))
    assert {table.item(document.key)["s"]["S"] for document in documents} == set("01234567")
    expected = [Due(document.key, document.due or 0) for document in reversed(documents)]
    for limit in (1, 7, 64, 200, 300):
        assert await table.store.due(1000, limit) == expected[:limit]


async def test_the_oldest_come_first_though_all_are_in_one_shard(table: Table) -> None:
    keys = [key for number in range(600) if crc32((key := f"client:{number}").encode()) % DEFAULT_SHARDS == 3][:40]
    for due, key in enumerate(keys):
        await make(table.store, key, due=due)
    for limit in (1, 10, 30, 50):
        assert await table.store.due(1000, limit) == [Due(key, due) for due, key in enumerate(keys)][:limit]


async def test_more_shards_can_be_had_at_any_time(aws: Ministack, clock: SetClock) -> None:
    url = f"dynamodb://{aws.fresh_table()}?endpoint={aws.endpoint}"
    async with (
        open_documents(f"{url}&shards=2", clock=clock) as few,
        open_documents(f"{url}&shards=16", clock=clock) as many,
    ):
        for number in range(20):
            await make(few, f"client:{number}", due=number)
        assert [entry.due for entry in await many.due(100, 100)] == list(range(20))


async def test_only_what_is_due_is_in_the_index(table: Table) -> None:
    made = await make(table.store, due=5)
    [made] = await table.store.commit([Document(made.key, made.version, b"x")])
    assert await table.store.due(10, 10) == []
    assert not {"s", "d"} & table.item(made.key).keys()


# --- What it costs


async def test_the_store_counts_what_a_commit_costs(table: Table) -> None:
    costs = []
    made = Document("client:a")
    for body, due in (
        (b"x" * 900, None),
        (b"x" * 900, 5),
        (b"y" * 900, 5),
        (b"y" * 900, 6),
        (b"y" * 900, None),
        (b"z" * 1100, None),
    ):
        before = table.writes
        [made] = await table.store.commit([Document(made.key, made.version, body, due)])
        costs.append(table.writes - before)
    assert costs == [1, 2, 1, 3, 2, 2]
    before = table.writes
    with pytest.raises(Conflict):
        await table.store.commit([Document(made.key, 5, b"x")])
    assert table.writes - before == 2


async def test_the_overhead_of_an_item_is_small(table: Table) -> None:
    """A body of so many bytes still costs one unit: what it is wrapped in takes no more than 80."""
    before = table.writes
    await make(table.store, "client:" + "a" * 20, b"x" * (1024 - 80))
    assert table.writes - before == 1


async def test_what_is_too_large_is_refused_before_it_is_sent(table: Table) -> None:
    with pytest.raises(ValueError, match="a body has at most"):
        await make(table.store, body=b"x" * (MAX_BODY_BYTES + 1))
    assert table.between.seen == []


async def test_parts_of_a_scan_are_scanned_apart(table: Table) -> None:
    for number in range(40):
        await make(table.store, f"client:{number}")
    parts: list[set[str]] = []
    for part in range(4):
        cursor, found = None, set[str]()
        while True:
            page = await table.store.scan(cursor=cursor, limit=3, part=part, parts=4)
            found |= {document.key for document in page.documents}
            if (cursor := page.cursor) is None:
                break
        parts.append(found)
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


async def test_a_cursor_that_the_table_does_not_take_is_a_value_error(table: Table) -> None:
    table.between.fault = always("Scan", refused(400, "ValidationException", "The provided starting key is invalid"))
    with pytest.raises(ValueError, match="not a cursor"):
        await table.store.scan(cursor="client:a")
    with pytest.raises(StoreUnavailable):
        await table.store.scan()


async def test_closing_waits_for_what_is_under_way(aws: Ministack) -> None:
    async with opened(aws) as table:
        held = Held()
        table.between.fault = always("PutItem", held)
        writing = asyncio.create_task(make(table.store))
        await within(held.arrived())
        closing = asyncio.create_task(table.store.close())
        held.release()
        await within(closing)
        assert (await writing).version

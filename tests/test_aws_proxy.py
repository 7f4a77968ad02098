"""The proxy before a ministack: what it passes on stays as it was signed, and each fault is what it says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests import aws_proxy
from tests.aws_proxy import Held, Proxy, always, first, refused
from tests.aws_servers import Ministack, make_client
from tests.redis_servers import free_port

Call = Callable[..., Awaitable[Any]]
"""Makes a call of a client of botocore's through the proxy: `call("put_item", TableName=…)`."""

KEY = {"k": {"S": "a"}}


@pytest.fixture
async def between(aws: Ministack) -> AsyncIterator[Proxy]:
    async with aws_proxy.proxy(aws.port) as between:
        yield between


@pytest.fixture
async def call(aws: Ministack, between: Proxy) -> AsyncIterator[Call]:
    """Calls of the user, whose signatures are verified."""
    with contextlib.ExitStack() as clients:
        made = {}
        for service in ("dynamodb", "s3"):
            made[service] = clients.enter_context(
                contextlib.closing(make_client(service, between.url, aws.environment))
            )

        async def call(name: str, **parameters: Any) -> Any:
            client = made["s3" if "Bucket" in parameters else "dynamodb"]
            return await asyncio.to_thread(getattr(client, name), **parameters)

        yield call


async def stored(aws: Ministack, table: str) -> bool:
    """Whether the item is there, past the proxy."""
    answer = await asyncio.to_thread(aws.client("dynamodb").get_item, TableName=table, Key=KEY)
    return "Item" in answer


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    code: str = error.value.response["Error"]["Code"]
    return code


async def test_what_passes_is_as_it_was_signed_and_is_named(aws: Ministack, between: Proxy, call: Call) -> None:
    table, bucket = aws.fresh_table(), aws.fresh_bucket()
    await call("put_item", TableName=table, Item=KEY)
    assert (await call("get_item", TableName=table, Key=KEY))["Item"] == KEY
    await call("put_object", Bucket=bucket, Key="a/ü b", Body=bytes(100_000))
    assert (await call("head_object", Bucket=bucket, Key="a/ü b"))["ContentLength"] == 100_000
    answer = await call("get_object", Bucket=bucket, Key="a/ü b")
    assert await asyncio.to_thread(answer["Body"].read) == bytes(100_000)
    assert (await call("list_objects_v2", Bucket=bucket))["KeyCount"] == 1
    await call("delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": "a/ü b"}]})
    with pytest.raises(ClientError, match="Not Found"):
        await call("head_object", Bucket=bucket, Key="a/ü b")
    named = ["PutItem", "GetItem", "PUT object", "HEAD object", "GET object", "list", "delete", "HEAD object"]
    assert between.seen == between.passed == named
    assert between.connections == 2, "one for each client"


async def test_what_is_refused_is_not_passed_on(aws: Ministack, between: Proxy, call: Call) -> None:
    table, bucket = aws.fresh_table(), aws.fresh_bucket()
    between.fault = first(1, "PutItem", refused(400, "ProvisionedThroughputExceededException"))
    with pytest.raises(ClientError) as throttled:
        await call("put_item", TableName=table, Item=KEY)
    assert code_of(throttled) == "ProvisionedThroughputExceededException"
    between.fault = always("PUT object", refused(503, "SlowDown", Retry_After="1"))
    with pytest.raises(ClientError) as slowed:
        await call("put_object", Bucket=bucket, Key="a", Body=b"")
    assert code_of(slowed) == "SlowDown"
    between.fault = always("HEAD object", refused(403, "AccessDenied"))
    with pytest.raises(ClientError, match="Forbidden"):
        await call("head_object", Bucket=bucket, Key="a")
    assert not between.passed
    await call("put_item", TableName=table, Item=KEY)
    assert await stored(aws, table)


@pytest.mark.parametrize("fault", [aws_proxy.cut_before, aws_proxy.cut_after])
async def test_an_answer_that_is_cut_off_says_nothing_of_the_write(
    aws: Ministack, between: Proxy, call: Call, fault: aws_proxy.Fault
) -> None:
    table = aws.fresh_table()
    between.fault = always("PutItem", fault)
    with pytest.raises(ConnectionClosedError):
        await call("put_item", TableName=table, Item=KEY)
    assert await stored(aws, table) == (fault is aws_proxy.cut_after)


async def test_an_answer_ends_in_the_middle_of_its_body(aws: Ministack, between: Proxy, call: Call) -> None:
    bucket = aws.fresh_bucket()
    await call("put_object", Bucket=bucket, Key="a", Body=bytes(1000))
    between.fault = always("GET object", aws_proxy.cut_within)
    answer = await call("get_object", Bucket=bucket, Key="a")
    assert answer["ContentLength"] == 1000
    with pytest.raises(ResponseStreamingError, match=r"500 bytes read, 500 more expected"):
        await asyncio.to_thread(answer["Body"].read)


@pytest.mark.parametrize("fault", [aws_proxy.trickled(0.001, 3), aws_proxy.delayed(0.001)])
async def test_an_answer_that_comes_slowly_is_whole(
    aws: Ministack, between: Proxy, call: Call, fault: aws_proxy.Fault
) -> None:
    table = aws.fresh_table()
    await call("put_item", TableName=table, Item=KEY)
    between.fault = always("GetItem", fault)
    assert (await call("get_item", TableName=table, Key=KEY))["Item"] == KEY


async def test_what_is_done_twice_meets_itself(aws: Ministack, between: Proxy, call: Call) -> None:
    table = aws.fresh_table()
    between.fault = always("PutItem", aws_proxy.twice)
    with pytest.raises(ClientError) as failed:
        await call("put_item", TableName=table, Item=KEY, ConditionExpression="attribute_not_exists(k)")
    assert code_of(failed) == "ConditionalCheckFailedException"
    assert await stored(aws, table)
    assert between.seen == ["PutItem"]
    assert between.passed == ["PutItem", "PutItem"]


@pytest.mark.parametrize("cut", [False, True])
async def test_what_is_held_is_done_when_it_is_let_go(aws: Ministack, between: Proxy, call: Call, *, cut: bool) -> None:
    table, held = aws.fresh_table(), Held(cut=cut)
    between.fault = always("PutItem", held)
    putting = asyncio.ensure_future(call("put_item", TableName=table, Item=KEY))
    assert (await held.arrived()).operation == "PutItem"
    assert not await stored(aws, table)
    if cut:
        with pytest.raises(ConnectionClosedError):
            await putting
    held.release()
    assert (await held.answered()).status == 200
    assert await stored(aws, table)
    if not cut:
        await putting


async def test_a_server_that_is_not_there_is_a_connection_that_is_cut() -> None:
    async with aws_proxy.proxy(free_port()) as between:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(between.url.rpartition(":")[2]))
        writer.write(b"GET /a/b HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert between.seen == ["GET object"]

"""Requests to Amazon's services: signed, repeated while that makes sense, and mended where keys or clocks are wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from storage.aws import client as adapter
from storage.aws import credentials
from storage.aws.client import AwsClient, AwsJson, AwsRefusal, AwsUnavailable, amazon_host, error_code
from storage.aws.connection import Answer
from storage.aws.signing import Keys
from storage.aws.url import AwsMisconfigured, AwsUrl
from storage.usage import Usage
from tests.aws_proxy import Held, Proxy, always, answered, cut_before, first, proxy, refused
from tests.aws_servers import Environment, Ministack
from tests.running import within


@asynccontextmanager
async def dynamodb(
    aws: Ministack, *, clock: Callable[[], float] = time.time, deadline_s: float = 5.0, usage: Usage | None = None
) -> AsyncIterator[tuple[AwsJson, Proxy]]:
    async with proxy(aws.port) as between:
        url = AwsUrl.parse(f"dynamodb://table?endpoint={between.url}")
        client = AwsClient(url, usage=usage or Usage(), timeout_s=1.0, deadline_s=deadline_s, clock=clock)
        try:
            yield AwsJson(client, target="DynamoDB_20120810"), between
        finally:
            await client.close()


def keys_of(found: Environment, *, ends: float | None = None) -> Keys:
    return Keys(found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"], found.get("AWS_SESSION_TOKEN"), ends)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Keys]]:
    """Have these keys found, one after the other, the last one for ever; which are left."""

    def give(*keys: Keys) -> list[Keys]:
        left = list(keys)
        monkeypatch.setattr(credentials, "find_keys", lambda: left.pop(0) if len(left) > 1 else left[0])
        return left

    return give


# --- Credentials


async def test_credentials_that_the_service_has_let_expire_are_replaced(
    aws: Ministack, given: Callable[..., list[Keys]]
) -> None:
    given(keys_of(await expired(aws)), keys_of(aws.environment))
    async with dynamodb(aws) as (service, between):
        assert (await service.call("ListTables", {}))["TableNames"] is not None
        assert between.seen == ["ListTables"] * 2


async def expired(aws: Ministack) -> Environment:
    """A session's credentials that are over."""
    found = aws.session(1)
    await asyncio.sleep(1.1)  # nothing says when they end but the clock
    return found


async def test_credentials_that_were_never_right_are_refused(aws: Ministack, given: Callable[..., list[Keys]]) -> None:
    good = keys_of(aws.environment)
    for wrong in (Keys(good.access_key, "wrong"), Keys("AKIAWRONG", good.secret_key)):
        given(wrong)
        async with dynamodb(aws) as (service, between):
            with pytest.raises(AwsRefusal, match=r"InvalidSignatureException|UnrecognizedClientException"):
                await service.call("ListTables", {})
            assert len(between.seen) <= 3


async def test_without_credentials_it_is_unavailable_and_nothing_is_sent(
    aws: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "find_keys", lambda: None)
    async with dynamodb(aws) as (service, between):
        with pytest.raises(AwsUnavailable, match="dynamodb: there are no AWS credentials now"):
            await service.call("ListTables", {})
        assert between.seen == []


# --- Clocks


@pytest.mark.parametrize("off_s", [-7200, 7200])
async def test_a_clock_that_is_wrong_is_told_and_set_right(
    aws: Ministack, off_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with dynamodb(aws, clock=lambda: time.time() + off_s) as (service, between):
        for _ in range(3):
            await service.call("ListTables", {})
        assert between.seen == ["ListTables"] * 4
    [told] = [record for record in caplog.records if record.message == "this machine's clock is wrong"]
    assert abs(told.__dict__["by_s"] - off_s) < 5


# --- Repeats


async def test_what_cannot_be_done_again_and_again_is_given_up_in_time(aws: Ministack) -> None:
    usage = Usage()
    async with dynamodb(aws, deadline_s=0.5, usage=usage) as (service, between):
        between.fault = lambda _: refused(500, "InternalServerError")
        began = time.monotonic()
        with pytest.raises(AwsUnavailable, match="dynamodb ListTables: InternalServerError"):
            await service.call("ListTables", {})
        assert time.monotonic() - began < 1
        assert usage.requests["dynamodb", "ListTables"] == len(between.seen) > 2


async def test_one_try_that_hangs_takes_no_longer_than_all_may(aws: Ministack) -> None:
    async with dynamodb(aws, deadline_s=0.3) as (service, between):
        between.fault = always("ListTables", Held())
        began = time.monotonic()
        with pytest.raises(AwsUnavailable, match="no answer in time"):
            await service.call("ListTables", {})
        assert time.monotonic() - began < 0.9


async def test_what_succeeds_pays_for_repeats_again(aws: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "REPEATS", 10.0)
    async with dynamodb(aws) as (service, between):

        async def tries() -> int:
            between.fault, before = always("GetItem", refused(500, "InternalServerError")), len(between.seen)
            with pytest.raises(AwsUnavailable):
                await service.call("GetItem", {})
            return len(between.seen) - before

        assert [await tries(), await tries()] == [3, 1]
        for _ in range(5):
            await service.call("ListTables", {})
        assert [await tries(), await tries()] == [2, 1]


async def test_one_try_that_hangs_is_not_all_there_is(aws: Ministack) -> None:
    async with dynamodb(aws) as (service, between):
        between.fault = first(1, "ListTables", Held())
        await within(service.call("ListTables", {}))


async def test_what_is_refused_is_not_repeated(aws: Ministack) -> None:
    async with dynamodb(aws) as (service, between):
        between.fault = always("GetItem", refused(400, "ValidationException"))
        with pytest.raises(AwsRefusal) as refusal:
            await service.call("GetItem", {})
        assert (refusal.value.code, between.seen) == ("ValidationException", ["GetItem"])


async def test_a_connection_that_the_service_has_closed_costs_no_pause(
    aws: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PAUSE_S", 60.0)
    monkeypatch.setattr(adapter, "MOST_PAUSE_S", 60.0)
    async with dynamodb(aws) as (service, between):
        await service.call("ListTables", {})
        between.fault = first(1, "ListTables", cut_before)  # as if it had closed it just before
        await within(service.call("ListTables", {}))


async def test_a_great_many_at_once_share_the_connections(aws: Ministack) -> None:
    async with dynamodb(aws) as (service, between):
        await asyncio.gather(*(service.call("ListTables", {}) for _ in range(300)))
        assert between.connections <= adapter.CONNECTIONS
        assert len(between.seen) == 300


async def test_failures_are_told_once_a_minute(aws: Ministack, caplog: pytest.LogCaptureFixture) -> None:
    client = AwsClient(AwsUrl.parse("dynamodb://table"), usage=Usage(), timeout_s=1, deadline_s=1)
    for message in ("one", "one", "other", "other", "one"):
        client.tell(AwsUnavailable(message))
    assert [record.__dict__["error"] for record in caplog.records] == ["one", "other", "one"]
    await client.close()


async def test_a_client_that_is_closed_gives_up_at_once(aws: Ministack) -> None:
    async with proxy(aws.port) as between:
        url = AwsUrl.parse(f"dynamodb://table?endpoint={between.url}")
        client = AwsClient(url, usage=Usage(), timeout_s=30, deadline_s=60)
        service, held = AwsJson(client, target="DynamoDB_20120810"), Held()
        between.fault = always("ListTables", held)
        asking = asyncio.create_task(service.call("ListTables", {}))
        await within(held.arrived())
        await client.close()
        for call in (asking, service.call("ListTables", {})):
            with pytest.raises(AwsUnavailable, match="the client is closed"):
                await within(call)


@pytest.mark.parametrize("body", [b"", b"[]", b"what"])
async def test_an_answer_that_is_no_object_is_none(aws: Ministack, body: bytes) -> None:
    async with dynamodb(aws) as (service, between):
        between.fault = lambda _: answered(200, body)
        with pytest.raises(AwsUnavailable, match="dynamodb ListTables: an answer that is no object of JSON"):
            await service.call("ListTables", {})


# --- Pure parts


def test_pauses_are_random_and_grow_to_a_limit() -> None:
    pauses = {tries: [adapter.jitter_s(tries) for _ in range(200)] for tries in (0, 3, 50)}
    for tries, longest in ((0, adapter.PAUSE_S), (3, adapter.PAUSE_S * 8), (50, adapter.MOST_PAUSE_S)):
        assert len(set(pauses[tries])) > 100
        assert longest / 2 < max(pauses[tries]) <= longest


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (
            b'{"__type":"com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"}',
            "ConditionalCheckFailedException",
        ),
        (b'{"__type":"ThrottlingException","Message":"x"}', "ThrottlingException"),
        (b"<?xml?><Error><Code>SlowDown</Code></Error>", "SlowDown"),
        (b"<html>Bad Gateway</html>", ""),
        (b"", ""),
        (b"[]", ""),
        (b'{"__type":7}', "7"),
    ],
)
def test_the_word_for_an_error_is_found(body: bytes, code: str) -> None:
    assert error_code(Answer(400, {}, body)) == code


def test_hosts_are_those_of_the_partition() -> None:
    assert amazon_host("dynamodb", "eu-west-1") == "dynamodb.eu-west-1.amazonaws.com"
    assert amazon_host("s3", "cn-north-1") == "s3.cn-north-1.amazonaws.com.cn"


async def test_certificate_authorities_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nothing/here.pem")
    with pytest.raises(AwsMisconfigured, match=r"the certificate authorities in /nothing/here\.pem cannot be used"):
        AwsClient(AwsUrl.parse("dynamodb://table?region=eu-west-1"), usage=Usage(), timeout_s=1, deadline_s=1)

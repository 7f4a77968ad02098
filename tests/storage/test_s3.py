"""The contract of an object store over S3, and what S3 adds: what a URL allows is checked by whoever has the bytes."""

import hashlib
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from storage import open_objects
from storage.aws import credentials
from storage.aws.signing import Keys
from storage.objects import ObjectInfo, ObjectStore, ObjectsUnavailable, SignedUpload
from storage.usage import Usage
from tests.aws_proxy import (
    Exchange,
    Fault,
    Proxy,
    Request,
    always,
    answered,
    cut_after,
    cut_before,
    cut_within,
    first,
    proxy,
    refused,
)
from tests.aws_servers import Ministack
from tests.running import until
from tests.storage.conftest import KEY, TYPE

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
HOUR_MS = 3_600_000


def soon() -> int:
    """An hour from now, in ms."""
    return int(time.time() * 1000) + HOUR_MS


BOTH = ["", "/videos/live"]


@pytest.fixture
async def bucket(request: pytest.FixtureRequest, aws: Ministack) -> str:
    """The URL of an empty folder in a bucket, or of the whole of one (`BOTH`)."""
    return f"s3://{aws.fresh_bucket()}{getattr(request, 'param', BOTH[1])}?endpoint={aws.endpoint}"


@pytest.fixture
def usage() -> Usage:
    return Usage()


@pytest.fixture
async def objects(bucket: str, usage: Usage) -> AsyncIterator[ObjectStore]:
    async with open_objects(bucket, usage=usage) as objects:
        yield objects


@pytest.fixture
async def phone() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as phone:
        yield phone


async def signed(
    objects: ObjectStore, key: str = KEY, *, size: int = len(DATA), sha256: str | None = SHA256, type_: str = TYPE
) -> SignedUpload:
    return await objects.sign_upload(key, size=size, content_type=type_, sha256=sha256, expires_at=soon())


async def put(objects: ObjectStore, phone: httpx.AsyncClient, key: str = KEY, data: bytes = DATA) -> None:
    upload = await signed(objects, key, size=len(data), sha256=None)
    assert (await phone.put(upload.url, content=data, headers=upload.headers)).status_code == 200


async def keys(objects: ObjectStore, prefix: str = "", *, after: str = "") -> list[str]:
    return [key async for key in objects.list(prefix, after=after)]


# --- Uploads


@pytest.mark.parametrize("sha256", [None, SHA256])
@pytest.mark.parametrize("bucket", BOTH, indirect=True)
async def test_what_was_signed_can_be_uploaded_and_is_there(
    objects: ObjectStore, phone: httpx.AsyncClient, sha256: str | None
) -> None:
    upload = await signed(objects, sha256=sha256)
    assert (await phone.put(upload.url, content=DATA, headers=upload.headers)).status_code == 200
    assert await objects.head(KEY) == ObjectInfo(KEY, len(DATA), TYPE)
    download = await objects.sign_download(KEY, expires_at=soon())
    assert (await phone.get(download.url)).content == DATA


@pytest.mark.parametrize("sha256", [None, SHA256])
@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (DATA + b"x", {}),
        (DATA[:-1], {}),
        (DATA, {"Content-Type": "text/html"}),
        (DATA, {"If-None-Match": "other"}),
    ],
)
async def test_anything_else_is_refused_and_nothing_is_stored(
    objects: ObjectStore, phone: httpx.AsyncClient, sha256: str | None, data: bytes, headers: dict[str, str]
) -> None:
    upload = await signed(objects, sha256=sha256)
    assert (await phone.put(upload.url, content=data, headers=upload.headers | headers)).status_code == 403
    assert await objects.head(KEY) is None


async def test_other_bytes_of_the_same_length_are_refused_where_their_hash_was_signed(
    objects: ObjectStore, phone: httpx.AsyncClient
) -> None:
    upload = await signed(objects)
    assert (await phone.put(upload.url, content=DATA[::-1], headers=upload.headers)).status_code == 400
    assert await objects.head(KEY) is None


async def test_what_is_stored_is_not_replaced(objects: ObjectStore, phone: httpx.AsyncClient) -> None:
    upload = await signed(objects, sha256=None)
    assert (await phone.put(upload.url, content=DATA, headers=upload.headers)).status_code == 200
    assert (await phone.put(upload.url, content=DATA[::-1], headers=upload.headers)).status_code == 412
    download = await objects.sign_download(KEY, expires_at=soon())
    assert (await phone.get(download.url)).content == DATA


@pytest.mark.parametrize("bucket", BOTH, indirect=True)
async def test_a_url_is_good_for_nothing_else(objects: ObjectStore, phone: httpx.AsyncClient) -> None:
    await put(objects, phone)
    upload, download = await signed(objects), await objects.sign_download(KEY, expires_at=soon())
    assert (await phone.get(upload.url)).status_code == 403
    assert (await phone.delete(upload.url, headers=upload.headers)).status_code == 403
    assert (await phone.put(download.url, content=DATA)).status_code == 403
    assert (await phone.get(download.url.replace("alice", "carol"))).status_code == 403


async def test_a_download_can_be_had_in_parts(objects: ObjectStore, phone: httpx.AsyncClient) -> None:
    await put(objects, phone)
    download = await objects.sign_download(KEY, expires_at=soon())
    part = await phone.get(download.url, headers={"Range": "bytes=3-6"})
    assert (part.status_code, part.content) == (206, DATA[3:7])


async def test_a_url_ends_when_it_says(objects: ObjectStore, phone: httpx.AsyncClient) -> None:
    await put(objects, phone)
    download = await objects.sign_download(KEY, expires_at=int(time.time() * 1000) + 1900)
    assert download.expires_at <= time.time() * 1000 + 1900
    assert (await phone.get(download.url)).status_code == 200

    async def ended() -> bool:
        return (await phone.get(download.url)).status_code == 403

    await until(ended, "the URL ends")
    assert 0 <= time.time() * 1000 - download.expires_at < 1500


async def test_no_url_lives_longer_than_a_week(objects: ObjectStore) -> None:
    download = await objects.sign_download(KEY, expires_at=soon() + 30 * 24 * HOUR_MS)
    assert 6.9 * 24 * HOUR_MS < download.expires_at - time.time() * 1000 <= 7 * 24 * HOUR_MS
    assert parse_qs(urlsplit(download.url).query)["X-Amz-Expires"] == ["604800"]


async def test_a_url_ends_with_the_credentials_that_signed_it(
    aws: Ministack, bucket: str, phone: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = aws.session(900)
    keys = Keys(
        found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"], found["AWS_SESSION_TOKEN"], time.time() + 900
    )
    monkeypatch.setattr(credentials, "find_keys", lambda: keys)
    async with open_objects(bucket) as objects:
        upload = await signed(objects)
        assert (await phone.put(upload.url, content=DATA, headers=upload.headers)).status_code == 200
        for expires_at in (upload.expires_at, (await objects.sign_download(KEY, expires_at=soon())).expires_at):
            assert 890 < expires_at / 1000 - time.time() <= 900


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"content_type": "no type"}, {"sha256": "short"}, {"key": "alone"}, {"key": "a/../b"}],
)
async def test_what_cannot_be_meant_is_a_value_error(objects: ObjectStore, wrong: dict[str, object]) -> None:
    given = {"key": KEY, "size": 1, "content_type": TYPE, "sha256": None, **wrong}
    key = given.pop("key")
    with pytest.raises(ValueError, match=r"not|one byte"):
        await objects.sign_upload(key, expires_at=soon(), **given)  # type: ignore[arg-type]


async def test_phones_are_sent_to_the_public_address(aws: Ministack, phone: httpx.AsyncClient) -> None:
    public = aws.endpoint.replace("127.0.0.1", "localhost")
    url = f"s3://{aws.fresh_bucket()}?endpoint={aws.endpoint}&public_endpoint={public}"
    async with open_objects(url) as objects:
        upload = await signed(objects)
        assert upload.url.startswith(public)
        assert (await phone.put(upload.url, content=DATA, headers=upload.headers)).status_code == 200
        assert await objects.head(KEY) is not None


# --- What is there


async def test_what_is_not_there_is_none(objects: ObjectStore) -> None:
    assert await objects.head(KEY) is None


@pytest.mark.parametrize("bucket", BOTH, indirect=True)
async def test_deleted_objects_are_gone_and_missing_ones_are_no_error(
    objects: ObjectStore, phone: httpx.AsyncClient, usage: Usage
) -> None:
    names = [f"7/{number}" for number in range(5)]
    for name in names:
        await put(objects, phone, name)
    await objects.delete(names[:1])
    await objects.delete(["7/nothing"])
    await objects.delete([*names[:2], "7/nothing"])
    await objects.delete([])
    assert await keys(objects) == names[2:]
    assert await objects.head(names[1]) is None
    assert (usage.requests["s3", "DeleteObject"], usage.requests["s3", "DeleteObjects"]) == (2, 1)


async def test_a_great_many_objects_are_deleted_in_few_requests(objects: ObjectStore, usage: Usage) -> None:
    await objects.delete([f"7/{number}" for number in range(2001)])
    assert usage.requests == {("s3", "DeleteObjects"): 3}


@pytest.mark.parametrize("bucket", BOTH, indirect=True)
async def test_keys_are_listed_in_order_from_where_one_asks(objects: ObjectStore, phone: httpx.AsyncClient) -> None:
    for key in ("a/3", "a/1/x", "b/1", "a/2"):
        await put(objects, phone, key)
    assert await keys(objects) == ["a/1/x", "a/2", "a/3", "b/1"]
    assert await keys(objects, "a/") == ["a/1/x", "a/2", "a/3"]
    assert await keys(objects, "a/", after="a/2") == ["a/3"]
    assert await keys(objects, "a/", after="a/1") == ["a/1/x", "a/2", "a/3"]
    assert await keys(objects, "c/") == []


async def test_more_than_a_page_is_listed_whole(aws: Ministack) -> None:
    bucket, names = aws.fresh_bucket(), [f"7/{number:05}" for number in range(1005)]
    for name in names:
        aws.client("s3").put_object(Bucket=bucket, Key=f"in/here/{name}", Body=b"x")
    usage = Usage()
    async with open_objects(f"s3://{bucket}/in/here?endpoint={aws.endpoint}", usage=usage) as objects:
        assert await keys(objects, "7/") == names
        assert await keys(objects, "7/", after=names[1001]) == names[1002:]
    assert usage.requests == {("s3", "ListObjectsV2"): 3}


async def test_what_others_keep_in_the_bucket_is_not_listed(aws: Ministack) -> None:
    bucket = aws.fresh_bucket()
    for name in ("videos/7/x", "videos/7/a b", "videos/", "videosx/7/x", "7/x"):
        aws.client("s3").put_object(Bucket=bucket, Key=name, Body=b"x")
    async with open_objects(f"s3://{bucket}/videos?endpoint={aws.endpoint}") as objects:
        assert await keys(objects) == ["7/x"]


@pytest.mark.parametrize("prefix", ["a", "/", "a/b/", "../"])
async def test_a_prefix_is_a_first_segment(objects: ObjectStore, prefix: str) -> None:
    with pytest.raises(ValueError, match="not a prefix"):
        await keys(objects, prefix)


@asynccontextmanager
async def behind(aws: Ministack) -> AsyncIterator[tuple[ObjectStore, Proxy]]:
    """An empty bucket behind a proxy."""
    async with proxy(aws.port) as between, open_objects(f"s3://{aws.fresh_bucket()}?endpoint={between.url}") as objects:
        yield objects, between


def without(*rights: str) -> Callable[[Request], Fault | None]:
    """As Amazon answers who lacks these: of what is not there it says no more to who may not list (ministack says 404
    all the same)."""

    async def hidden(exchange: Exchange) -> None:
        answer = await exchange.forward()
        if answer.status == 404:
            await refused(403, "AccessDenied")(exchange)
        else:
            await exchange.send(answer.head + answer.body)

    def fault(request: Request) -> Fault | None:
        if request.operation in rights:
            return refused(403, "AccessDenied")
        return hidden if "list" in rights and request.operation in {"HEAD object", "GET object"} else None

    return fault


async def test_what_is_not_there_is_none_to_who_may_not_list_too(aws: Ministack, phone: httpx.AsyncClient) -> None:
    async with behind(aws) as (objects, between):
        await put(objects, phone)
        between.fault = without("list")
        assert await objects.head("7/other") is None
        assert await objects.head("7/another") is None
        assert await objects.head(KEY) == ObjectInfo(KEY, len(DATA), TYPE)
        assert between.seen.count("list") == 1


async def test_what_may_not_be_read_is_not_taken_for_missing(aws: Ministack, phone: httpx.AsyncClient) -> None:
    async with behind(aws) as (objects, between):
        await put(objects, phone)
        between.fault = without("HEAD object", "GET object")
        with pytest.raises(ObjectsUnavailable, match="GetObject: AccessDenied"):
            await objects.head(KEY)


async def test_what_is_not_there_is_none_to_who_may_list_only_what_he_names(
    aws: Ministack, phone: httpx.AsyncClient
) -> None:
    """Where the right to list is bound to a prefix, a HEAD is answered as if there were none."""
    async with behind(aws) as (objects, between):
        await put(objects, phone)
        hidden = without("list")
        between.fault = lambda request: None if request.operation == "list" else hidden(request)
        assert await objects.head("7/other") is None
        assert await objects.head(KEY[:-1]) is None
        assert await objects.head(KEY) is not None


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"])
async def test_wrong_credentials_are_not_taken_for_a_missing_object(aws: Ministack, code: str) -> None:
    async with behind(aws) as (objects, between):
        between.fault = lambda _: refused(403, code)
        with pytest.raises(ObjectsUnavailable, match=code):
            await objects.head(KEY)


async def test_a_head_that_was_refused_for_a_moment_is_answered_by_a_get(
    aws: Ministack, phone: httpx.AsyncClient
) -> None:
    async with behind(aws) as (objects, between):
        await put(objects, phone)
        between.fault = first(1, "HEAD object", refused(403, "ExpiredToken"))
        assert await objects.head(KEY) == ObjectInfo(KEY, len(DATA), TYPE)


async def test_an_upload_that_was_stored_though_its_answer_was_lost_is_there(
    aws: Ministack, phone: httpx.AsyncClient
) -> None:
    async with behind(aws) as (objects, between):
        upload = await signed(objects)
        between.fault = first(1, "PUT object", cut_after)
        with pytest.raises(httpx.HTTPError):
            await phone.put(upload.url, content=DATA, headers=upload.headers)
        assert await objects.head(KEY) == ObjectInfo(KEY, len(DATA), TYPE)
        assert (await phone.put(upload.url, content=DATA, headers=upload.headers)).status_code == 412


async def test_objects_of_which_one_could_not_be_deleted_are_told(aws: Ministack) -> None:
    body = b"<DeleteResult><Error><Key>7/b</Key><Code>InternalError</Code></Error></DeleteResult>"
    async with behind(aws) as (objects, between):
        between.fault = always("delete", answered(200, body))
        with pytest.raises(ObjectsUnavailable, match="DeleteObjects: 1 of 2 failed, the first with InternalError"):
            await objects.delete(["7/a", "7/b"])


@pytest.mark.parametrize(
    "fault", [cut_before, cut_after, cut_within, refused(503, "SlowDown"), refused(500, "InternalError")]
)
async def test_a_fault_that_passes_is_not_noticed(aws: Ministack, phone: httpx.AsyncClient, fault: Fault) -> None:
    async with behind(aws) as (objects, between):
        await put(objects, phone)
        between.fault = each_once(fault)
        assert await objects.head(KEY) is not None
        assert await keys(objects) == [KEY]
        await objects.delete([KEY])
        await objects.delete([KEY, "7/b"])
        assert await objects.head(KEY) is None


def each_once(fault: Fault) -> Callable[[Request], Fault | None]:
    """`fault` for every other request."""
    turns = itertools.cycle([fault, None])
    return lambda _: next(turns)


@pytest.mark.parametrize("operation", ["HEAD object", "GET object"])
async def test_an_answer_without_a_size_is_unavailable(
    aws: Ministack, phone: httpx.AsyncClient, operation: str
) -> None:
    async def sizeless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if exchange.request.method == "GET":
            await exchange.send(b"0\r\n\r\n")

    async with behind(aws) as (objects, between):
        await put(objects, phone)
        faults = {"HEAD object": refused(403, "AccessDenied"), operation: sizeless}
        between.fault = lambda request: faults.get(request.operation)
        with pytest.raises(ObjectsUnavailable, match="s3: an answer that makes no sense"):
            await objects.head(KEY)


async def test_a_list_that_is_no_xml_is_unavailable(aws: Ministack) -> None:
    async with behind(aws) as (objects, between):
        between.fault = always("list", answered(200, b"<ListBucketResult>"))
        with pytest.raises(ObjectsUnavailable):
            await keys(objects)


# --- What it is asked, and what is said of it


async def test_signing_asks_nobody(objects: ObjectStore, usage: Usage) -> None:
    await signed(objects)
    await objects.sign_download(KEY, expires_at=soon())
    assert not usage.requests


async def test_a_closed_store_is_unavailable(bucket: str) -> None:
    async with open_objects(bucket) as objects:
        pass
    for call in (objects.head(KEY), objects.delete([KEY]), keys(objects), objects.sign_download(KEY, expires_at=1)):
        with pytest.raises(ObjectsUnavailable):
            await call


async def test_neither_urls_nor_secrets_are_shown(objects: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        upload = await signed(objects)
        await objects.head(KEY)
    shown = f"{caplog.text} {upload!r} {objects!r}"
    assert not re.search(r"X-Amz|Signature|Credential", shown)


async def test_a_region_that_nobody_names_is_asked_for(aws: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(ObjectsUnavailable, match=r"no AWS region is configured: add \?region=… to the URL"):
        async with open_objects("s3://bucket"):
            pass
    async with open_objects(f"s3://{aws.fresh_bucket()}?endpoint={aws.endpoint}&region=eu-central-1") as objects:
        assert await objects.head(KEY) is None

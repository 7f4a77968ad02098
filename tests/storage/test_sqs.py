"""Upload events from a queue: every upload is told of, whatever else is in the queue."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from storage import open_objects, open_upload_events, sqs
from storage.events import UploadEvent, UploadEvents
from storage.objects import ObjectStore, ObjectsUnavailable
from storage.usage import Usage
from tests.aws_proxy import always, answered, cut_after, first, proxy, refused
from tests.aws_servers import Ministack, fresh
from tests.running import within
from tests.storage.conftest import TYPE

KEYS = [f"{number:x}/01890000-0000-7000-8000-00000000000{number:x}/alice/bob" for number in range(12)]


@dataclass
class Uploads:
    """A bucket, or a folder in one, with a queue that hears of it."""

    aws: Ministack
    bucket: str
    queue: str
    objects: ObjectStore
    events: UploadEvents
    phone: httpx.AsyncClient
    usage: Usage

    async def put(self, key: str) -> None:
        """Upload as a phone does."""
        expires_at = int(time.time() * 1000) + 60_000
        upload = await self.objects.sign_upload(key, size=4, content_type=TYPE, sha256=None, expires_at=expires_at)
        assert (await self.phone.put(upload.url, content=b"data", headers=upload.headers)).status_code == 200

    def send(self, body: str) -> None:
        """Somebody puts something into the queue."""
        client = self.aws.client("sqs")
        client.send_message(QueueUrl=client.get_queue_url(QueueName=self.queue)["QueueUrl"], MessageBody=body)

    async def all(self) -> list[UploadEvent]:
        """Every event there is now."""
        found: list[UploadEvent] = []
        while some := await within(self.events.receive()):
            found += some
        return found

    async def keys(self) -> list[str]:
        return sorted(key for event in await self.all() for key in event.keys)


@pytest.fixture
async def uploads(
    request: pytest.FixtureRequest, aws: Ministack, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Uploads]:
    monkeypatch.setattr(sqs, "WAIT_S", 0)
    bucket, queue, usage = aws.fresh_bucket(), fresh(), Usage()
    aws.queue(queue, bucket)
    folder = getattr(request, "param", "in/here")
    objects_url = f"s3://{bucket}/{folder}?endpoint={aws.endpoint}"
    url = f"sqs://{queue}?endpoint={aws.endpoint}"
    async with (
        open_objects(objects_url) as objects,
        open_upload_events(url, objects_url=objects_url, usage=usage) as events,
        httpx.AsyncClient() as phone,
    ):
        yield Uploads(aws, bucket, queue, objects, events, phone, usage)


@pytest.mark.parametrize("uploads", ["", "in/here"], indirect=True)
async def test_every_upload_is_told_of(uploads: Uploads) -> None:
    for key in KEYS:
        await uploads.put(key)
    assert await uploads.keys() == KEYS


async def test_what_is_done_comes_no_more_and_what_is_not_comes_again(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqs, "VISIBILITY_S", 1)
    for key in KEYS:
        await uploads.put(key)
    found = await uploads.all()
    done = [event for event in found if event.keys and event.keys[0] != KEYS[3]]
    await uploads.events.done(done)
    again: list[str] = []
    async with asyncio.timeout(10):
        while not again:
            again = await uploads.keys()
    assert again == [KEYS[3]]


async def test_a_test_event_names_no_key(uploads: Uploads) -> None:
    assert [event.keys for event in await uploads.all()] == [()]


@pytest.mark.parametrize("uploads", ["", "in/here"], indirect=True)
async def test_objects_of_others_are_not_named(uploads: Uploads) -> None:
    for key in ("in/elsewhere/x", "in/here/", "a b/c"):
        uploads.aws.client("s3").put_object(Bucket=uploads.bucket, Key=key, Body=b"x")
    in_whole_bucket = ["in/elsewhere/x"]
    assert await uploads.keys() == ([] if "here" in str(uploads.events.__dict__["_prefix"]) else in_whole_bucket)


@pytest.mark.parametrize(
    "body",
    [
        "what",
        "[]",
        "{}",
        '{"Records": 1}',
        '{"Records": [1]}',
        '{"Records": [{"eventName": "ObjectRemoved:Delete"}]}',
        '{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "x"}, "object": ELSEWHERE}}]}',
    ],
)
async def test_messages_about_anything_else_name_no_key(uploads: Uploads, body: str) -> None:
    uploads.send(body.replace("ELSEWHERE", '{"key": "in/here/a/b"}'))
    found = await uploads.all()
    assert [event.keys for event in found] == [(), ()]
    await uploads.events.done(found)


async def test_one_record_that_cannot_be_read_does_not_hide_the_others(uploads: Uploads) -> None:
    def record(key: object) -> dict[str, object]:
        bucket = {"name": uploads.bucket}
        return {"eventName": "ObjectCreated:Put", "s3": {"bucket": bucket, "object": {"key": key}}}

    prefix = uploads.events.__dict__["_prefix"]
    uploads.send(json.dumps({"Records": [record(7), {}, record(f"{prefix}a/b%2Bc"), record(f"{prefix}{KEYS[0]}")]}))
    assert await uploads.keys() == [KEYS[0]]


async def test_a_queue_that_fails_for_a_moment_is_asked_again(uploads: Uploads) -> None:
    await uploads.put(KEYS[0])
    url = f"s3://{uploads.bucket}"
    async with (
        proxy(uploads.aws.port) as between,
        open_upload_events(f"sqs://{uploads.queue}?endpoint={between.url}", objects_url=url) as events,
    ):
        between.fault = first(1, "ReceiveMessage", refused(503, "ServiceUnavailable"))
        found = await within(events.receive())
        between.fault = first(1, "DeleteMessageBatch", cut_after)
        await within(events.done(found))
        between.fault = always("ReceiveMessage", refused(403, "AccessDeniedException"))
        with pytest.raises(ObjectsUnavailable, match="sqs ReceiveMessage: AccessDeniedException"):
            await events.receive()


@pytest.mark.parametrize("body", [b"{}", b'{"QueueUrl": "x", "Messages": [{}]}', b'{"QueueUrl": "x", "Messages": 7}'])
async def test_answers_that_make_no_sense_are_unavailable(uploads: Uploads, body: bytes) -> None:
    async with (
        proxy(uploads.aws.port) as between,
        open_upload_events(f"sqs://queue?endpoint={between.url}", objects_url="s3://bucket") as events,
    ):
        between.fault = lambda _: answered(200, body)
        with pytest.raises(ObjectsUnavailable, match="sqs: an answer that makes no sense"):
            await events.receive()


async def test_a_queue_that_is_not_there_is_unavailable(uploads: Uploads) -> None:
    url = f"sqs://nothing?endpoint={uploads.aws.endpoint}"
    async with open_upload_events(url, objects_url=f"s3://{uploads.bucket}") as events:
        with pytest.raises(ObjectsUnavailable, match="QueueDoesNotExist"):
            await events.receive()


async def test_an_idle_queue_is_asked_once_in_twenty_seconds(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    await uploads.events.receive()  # the test event
    monkeypatch.setattr(sqs, "WAIT_S", 20)
    waiting = asyncio.create_task(within(uploads.events.receive()))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await uploads.put(KEYS[0])
    assert [event.keys for event in await waiting] == [(KEYS[0],)]
    assert uploads.usage.requests["sqs", "ReceiveMessage"] == 2


async def test_a_closed_queue_is_unavailable(uploads: Uploads) -> None:
    await uploads.events.close()
    with pytest.raises(ObjectsUnavailable):
        await uploads.events.receive()

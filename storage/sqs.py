"""What S3 says about uploads, from the SQS queue that it says it to."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_plus

import orjson

from storage.aws.client import AwsClient, AwsJson, AwsRefusal, AwsUnavailable
from storage.aws.url import AwsUrl
from storage.events import UploadEvent, UploadEvents
from storage.objects import ObjectsUnavailable, is_key
from storage.usage import Usage

WAIT_S = 20
"""How long SQS holds a request while there is nothing: the longest it takes, and so the cheapest."""

MOST = 10
"""Messages that one request takes, or ends."""

VISIBILITY_S = 60
"""A message that is not deleted within this comes again."""

log = logging.getLogger(__name__)


class SqsUploadEvents(UploadEvents):
    """Events of the objects at `objects`, from the queue at `url`.

    Events of other buckets or outside the prefix name no keys. What it is asked is counted in `usage`. Raises
    AwsMisconfigured where the machine's AWS configuration will not do.
    """

    def __init__(self, url: AwsUrl, objects: AwsUrl, *, usage: Usage, clock: Callable[[], float] = time.time) -> None:
        self._client = AwsClient(url, usage=usage, timeout_s=WAIT_S + 5.0, deadline_s=WAIT_S + 10.0, clock=clock)
        self._sqs = AwsJson(self._client, target="AmazonSQS")
        self._name = url.name
        self._bucket = objects.name
        self._prefix = f"{objects.prefix}/" if objects.prefix else ""
        self._queue: str | None = None
        self._closed = False

    async def receive(self) -> Sequence[UploadEvent]:
        with self._call():
            answer = await self._sqs.call(
                "ReceiveMessage",
                {
                    "QueueUrl": await self._queue_url(),
                    "MaxNumberOfMessages": MOST,
                    "WaitTimeSeconds": WAIT_S,
                    "VisibilityTimeout": VISIBILITY_S,
                },
            )
            return [self._event(message) for message in answer.get("Messages", ())]

    async def done(self, events: Sequence[UploadEvent]) -> None:
        with self._call():
            for start in range(0, len(events), MOST):
                entries = [
                    {"Id": str(number), "ReceiptHandle": event.receipt}
                    for number, event in enumerate(events[start : start + MOST])
                ]
                await self._sqs.call("DeleteMessageBatch", {"QueueUrl": await self._queue_url(), "Entries": entries})

    async def close(self) -> None:
        self._closed = True
        await self._client.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if self._closed:
            raise ObjectsUnavailable("the queue is closed")
        try:
            yield
        except (AwsUnavailable, AwsRefusal) as error:
            self._client.tell(error)
            raise ObjectsUnavailable(str(error)) from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ObjectsUnavailable("sqs: an answer that makes no sense") from error

    async def _queue_url(self) -> str:
        if self._queue is None:
            self._queue = str((await self._sqs.call("GetQueueUrl", {"QueueName": self._name}))["QueueUrl"])
        return self._queue

    def _event(self, message: dict[str, str]) -> UploadEvent:
        return UploadEvent(tuple(self._keys(message.get("Body", ""))), message["ReceiptHandle"])

    def _keys(self, body: str) -> Iterator[str]:
        """The keys in a notification ("Event message structure" in the Amazon S3 User Guide)."""
        try:
            records = orjson.loads(body).get("Records", ())
        except (AttributeError, ValueError):
            records = None
        if not isinstance(records, list | tuple):
            log.warning("a message in the queue is none about uploads")
            return
        for record in records:
            key = _key(record, self._bucket)
            if key.startswith(self._prefix) and is_key(key := key.removeprefix(self._prefix)):
                yield key


def _key(record: Any, bucket: str) -> str:
    """The key of an object that came into `bucket`; empty where the record is about anything else."""
    try:
        if record["eventName"].startswith("ObjectCreated:") and record["s3"]["bucket"]["name"] == bucket:
            return unquote_plus(record["s3"]["object"]["key"])
    except (AttributeError, KeyError, TypeError) as error:
        log.warning("a record in the queue cannot be read", extra={"error": type(error).__name__})
    return ""

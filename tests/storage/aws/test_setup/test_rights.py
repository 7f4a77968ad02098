"""The rights that the gateway needs, and those that its setup needs, where rights are checked."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from gateway.cli import main
from storage.aws.setup import NotSetUp, Setup, Wanted, policy
from storage.aws.url import AwsUrl
from storage.documents import Document, StoreUnavailable
from storage.dynamodb import DynamoDocuments
from storage.events import UploadEvent
from storage.objects import ObjectsUnavailable
from storage.s3 import S3Objects
from storage.sqs import SqsUploadEvents
from storage.usage import Usage
from tests.aws_servers import REGION, Environment, Ministack, fresh, make_client
from tests.storage.aws.test_setup.places import ACCOUNT, Place, as_user, configure, new_place

ROOT = Path(__file__).resolve().parents[4]


class User:
    """Somebody whose rights change, which is quicker than somebody new with others. `environment`: their keys."""

    def __init__(self, aws: Ministack) -> None:
        self._iam, self._name = aws.client("iam"), fresh()
        self._iam.create_user(UserName=self._name)
        key = self._iam.create_access_key(UserName=self._name)["AccessKey"]
        keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        self.environment: Environment = {**aws.environment, **keys}

    def may(self, *statements: Any) -> None:
        """These are all the rights from now on."""
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self._iam.put_user_policy(UserName=self._name, PolicyName="all", PolicyDocument=document)


def without(document: Any, action: str) -> Any:
    left = json.loads(json.dumps(document))
    for statement in left["Statement"]:
        statement["Action"] = [each for each in statement["Action"] if each != action]
    left["Statement"] = [statement for statement in left["Statement"] if statement["Action"]]
    return left


def actions(document: Any) -> list[str]:
    return [action for statement in document["Statement"] for action in statement["Action"]]


async def use(place: Place, user: User, document: Any) -> set[str]:
    """With the rights of `document`, do all that the gateway does, as the user; what of it was refused."""
    wanted, usage = place.wanted, Usage()
    assert wanted.documents
    assert wanted.objects
    assert wanted.events
    user.may(*document["Statement"], *batches(document))
    documents = DynamoDocuments(wanted.documents, usage=usage)
    objects = S3Objects(wanted.objects, usage=usage)
    events = SqsUploadEvents(wanted.events, wanted.objects, usage=usage)
    there = f"0/{fresh()}"
    place.s3.put_object(Bucket=place.name, Key=f"live/{there}", Body=b"x")  # and so there is an event to receive

    async def upload() -> None:
        signed = await objects.sign_upload(
            f"0/{fresh()}", size=1, content_type="video/mp4", sha256=None, expires_at=soon()
        )
        await fetch("PUT", signed.url, data=b"x", headers=signed.headers)

    async def download() -> None:
        await fetch("GET", (await objects.sign_download(there, expires_at=soon())).url)

    async def list_objects() -> None:
        assert there in [key async for key in objects.list("0/")]

    async def hear() -> None:
        heard = await events.receive()
        assert heard
        received.extend(heard)

    received: list[UploadEvent] = []
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "load": lambda: documents.load(["a"]),
        "load many": lambda: documents.load(["a", "b"]),
        "commit": lambda: documents.commit([Document(fresh(), body=b"{}", due=1)]),
        "due": lambda: documents.due(2, 10),
        "scan": documents.scan,
        "upload": upload,
        "download": download,
        "head": lambda: objects.head(there),
        "head of nothing": lambda: objects.head(f"0/{fresh()}"),
        "list": list_objects,
        "delete": lambda: objects.delete([there]),
        "delete many": lambda: objects.delete(["0/a", "0/b"]),
        "receive": hear,
        "done": lambda: events.done(received or [UploadEvent((), receipt_of(place))]),
    }
    refused = set()
    for name, call in calls.items():
        try:
            await call()
        except (StoreUnavailable, ObjectsUnavailable, HTTPError) as error:
            if not re.search("AccessDenied|403", str(error)):
                raise
            refused.add(name)
    for store in (documents, objects, events):
        await store.close()
    return refused


def batches(document: Any) -> list[dict[str, object]]:
    """At Amazon's the right to delete a message is that to delete a batch ("Actions, resources, and condition keys for
    Amazon SQS" in the Service Authorization Reference); ministack takes them for two."""
    deletes = "sqs:DeleteMessage" in actions(document)
    return [{"Effect": "Allow", "Action": "sqs:DeleteMessageBatch", "Resource": "*"}] if deletes else []


def soon() -> int:
    return int(time.time() * 1000) + 60_000


async def fetch(method: str, url: str, *, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
    """What a phone does with a URL."""
    request = Request(url, data=data, headers=dict(headers or {}), method=method)  # noqa: S310
    (await asyncio.to_thread(urlopen, request, timeout=10)).close()


def receipt_of(place: Place) -> str:
    """Somebody else may receive, and says what for."""
    place.sqs.send_message(QueueUrl=place.queue_url, MessageBody="{}")
    return str(place.sqs.receive_message(QueueUrl=place.queue_url)["Messages"][0]["ReceiptHandle"])


NEEDED = {
    "dynamodb:GetItem": {"load"},
    "dynamodb:BatchGetItem": {"load many"},
    "dynamodb:PutItem": {"commit"},
    "dynamodb:Scan": {"scan"},
    "dynamodb:Query": {"due"},
    "s3:GetObject": {"download", "head"},
    "s3:PutObject": {"upload"},
    "s3:DeleteObject": {"delete", "delete many"},
    "s3:ListBucket": {"list"},
    "sqs:GetQueueUrl": {"receive", "done"},
    "sqs:ReceiveMessage": {"receive"},
    "sqs:DeleteMessage": {"done"},
}
"""What the gateway cannot do without each of the rights."""


async def test_the_policy_suffices_and_nothing_of_it_can_be_left_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Setup(place.wanted)
    list(work.run(dry=False))
    document = json.loads(work.policy())
    assert sorted(actions(document)) == sorted(NEEDED)
    user = User(place.aws)
    as_user(monkeypatch, user.environment)
    assert await use(place, user, document) == set()
    for action, refused in NEEDED.items():
        assert await use(place, user, without(document, action)) == refused, action


def test_the_policy_reaches_nothing_outside_the_prefix(place: Place) -> None:
    work = Setup(place.wanted)
    list(work.run(dry=False))
    user = place.aws.user(*json.loads(work.policy())["Statement"])
    s3 = make_client("s3", place.aws.endpoint, user)
    place.s3.put_object(Bucket=place.name, Key="other/1", Body=b"x")
    asked: list[Callable[[], object]] = [
        lambda: s3.get_object(Bucket=place.name, Key="other/1"),
        lambda: s3.delete_object(Bucket=place.name, Key="other/1"),
        lambda: s3.put_object(Bucket=place.name, Key="lively", Body=b"x"),
        lambda: s3.list_objects_v2(Bucket=place.name, Prefix="other/"),
    ]
    for ask in asked:
        with pytest.raises(ClientError, match="AccessDenied"):
            ask()
    s3.close()


def test_the_policy_names_what_is_known_and_needs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, objects = AwsUrl.parse("dynamodb://videos"), AwsUrl.parse("s3://videos?region=cn-north-1")
    events = AwsUrl.parse("sqs://uploads?region=us-gov-west-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION"):
        monkeypatch.delenv(name)
    told = json.loads(policy(Wanted(documents, objects, events, (), 1)))
    assert [statement["Resource"] for statement in told["Statement"]] == [
        "arn:aws:dynamodb:*:*:table/videos",
        "arn:aws:dynamodb:*:*:table/videos/index/due",
        "arn:aws-cn:s3:::videos/*",
        "arn:aws-cn:s3:::videos",
        "arn:aws-us-gov:sqs:us-gov-west-1:*:uploads",
    ]
    assert not any("Condition" in statement for statement in told["Statement"])


def in_the_page(section: str) -> str:
    """The policy in a section of the documentation."""
    page = (ROOT / "docs/aws.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(section)}\n.*?^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_page_shows_the_policy_that_is_printed() -> None:
    urls = ("dynamodb://videos", "s3://example-videos/live", "sqs://video-uploads")
    documents, objects, events = (AwsUrl.parse(f"{url}?region={REGION}") for url in urls)
    wanted = Wanted(documents, objects, events, (), 1)
    account = f"{REGION}:123456789012"
    told = policy(
        wanted,
        table=f"arn:aws:dynamodb:{account}:table/videos",
        queue=f"arn:aws:sqs:{account}:video-uploads",
    )
    assert in_the_page("Rights of the gateway") == f"{told}\n"


def test_setup_needs_the_rights_that_the_page_says_and_names_the_one_that_is_missing(
    aws: Ministack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fresh_one() -> tuple[Place, Any]:
        place = new_place(aws)
        text = in_the_page("Rights of `gateway setup`").replace("123456789012", ACCOUNT)
        for example in ("table/videos", "example-videos", "video-uploads"):
            text = text.replace(example, example.replace(example.rpartition("/")[2], place.name))
        return place, json.loads(text)

    place, document = fresh_one()
    configure(place, monkeypatch, tmp_path / "data")
    user = User(aws)
    user.may(*document["Statement"])
    as_user(monkeypatch, user.environment)
    assert main(["setup"]) == 0
    assert not place.lines()
    for action in actions(document):
        if action == "dynamodb:GetItem":  # of the check, which is the gateway's
            continue
        place, document = fresh_one()
        place.only(*(["documents"] if action.startswith("dynamodb:") else ["objects", "events"]))
        if action == "s3:PutBucketPublicAccessBlock":
            aws.bucket(place.name)
            place.s3.delete_public_access_block(Bucket=place.name)
        user.may(*without(document, action)["Statement"])
        with pytest.raises(NotSetUp, match=f"AWS refuses {action} on the (table|bucket|queue) {place.name}"):
            place.run()

"""Setting up a queue, and what the bucket sends to it."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from storage.aws.setup import NotSetUp, queue
from storage.aws.url import AwsUrl
from tests.aws_servers import REGION
from tests.storage.aws.test_setup.places import ACCOUNT, Place


def test_the_queue_lets_only_the_bucket_in_and_hears_of_uploads_under_the_prefix(place: Place) -> None:
    place.only("objects", "events")
    place.run()
    attributes = place.state("queue")["queue"]["Attributes"]
    settings = ("VisibilityTimeout", "MessageRetentionPeriod", "ReceiveMessageWaitTimeSeconds")
    assert [attributes[name] for name in settings] == ["60", "86400", "20"]
    (statement,) = json.loads(attributes["Policy"])["Statement"]
    assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{place.name}"},
        "StringEquals": {"aws:SourceAccount": ACCOUNT},
    }
    for key in ("elsewhere/1", "live/1"):
        place.s3.put_object(Bucket=place.name, Key=key, Body=b"x")
    heard: list[str] = []
    ends_s = time.monotonic() + 10
    while not heard and time.monotonic() < ends_s:
        found = place.sqs.receive_message(QueueUrl=place.queue_url, WaitTimeSeconds=1).get("Messages", [])
        records = [record for message in found for record in json.loads(message["Body"]).get("Records", [])]
        heard += [record["s3"]["object"]["key"] for record in records]
    assert heard == ["live/1"]


def test_a_queue_that_does_not_take_what_the_bucket_sends_yet_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.only("objects", "events")
    set_attributes = queue.Queue._set

    def later(seconds: float) -> None:
        for held_queue, attributes in held:
            set_attributes(held_queue, attributes)

    held: list[tuple[queue.Queue, Mapping[str, str]]] = []
    monkeypatch.setattr(queue, "GRANTED_S", 20.0)
    monkeypatch.setattr(queue.Queue, "_set", lambda queue, attributes: held.append((queue, attributes)))
    monkeypatch.setattr(time, "sleep", later)
    place.run()
    assert not place.lines()


def test_a_notification_of_somebody_else_for_the_same_uploads_is_a_sentence(place: Place) -> None:
    place.only("objects", "events")
    place.run()
    attributes = place.state("queue")["queue"]["Attributes"]
    rule: dict[str, Any] = {"Id": "theirs", "QueueArn": attributes["QueueArn"], "Events": ["s3:ObjectCreated:Put"]}
    for prefix in ("", "live/", "live/a/", "l"):
        rule["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
        place.s3.put_bucket_notification_configuration(
            Bucket=place.name, NotificationConfiguration={"QueueConfigurations": [rule]}
        )
        for dry in (True, False):
            with pytest.raises(NotSetUp, match=r"tells somebody else of the same uploads \(notification theirs\)"):
                place.run(dry=dry)


def test_a_notification_that_does_the_same_is_as_it_should_be_whoever_made_it(place: Place) -> None:
    place.only("objects", "events")
    place.run()
    (rule,) = place.state("notification")["notification"]["QueueConfigurations"]
    rule["Id"] = "theirs"
    rule["Filter"]["Key"]["FilterRules"][0]["Name"] = "Prefix"  # so S3 answers
    place.s3.put_bucket_notification_configuration(
        Bucket=place.name, NotificationConfiguration={"QueueConfigurations": [rule]}
    )
    assert not place.lines()


def test_a_destination_of_others_that_is_gone_is_a_sentence(place: Place) -> None:
    place.only("objects", "events")
    place.run()
    filters = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "logs/"}]}}
    gone = {"Id": "gone", "QueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:gone", "Events": ["s3:ObjectCreated:*"]}
    place.s3.put_bucket_notification_configuration(
        Bucket=place.name,
        NotificationConfiguration={"QueueConfigurations": [{**gone, "Filter": filters}]},
        SkipDestinationValidation=True,
    )
    with pytest.raises(NotSetUp, match=r"Unable to validate the following destination configurations: .*:gone"):
        place.run()


def test_a_queue_in_another_region_than_the_bucket_is_a_sentence(place: Place) -> None:
    place.change(objects=AwsUrl.parse("s3://videos?region=eu-west-1"))
    place.change(events=AwsUrl.parse("sqs://videos?region=eu-west-2"))
    with pytest.raises(NotSetUp, match="only to a queue of its own region"):
        place.run()

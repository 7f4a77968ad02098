"""Setting up as a whole: from nothing, again, dry, after a drift, among what others made."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from storage.aws.setup import access
from storage.aws.url import AwsUrl
from tests.aws_servers import REGION
from tests.storage.aws.test_setup.places import Place


def test_from_nothing_everything_is_made(place: Place) -> None:
    said = place.run()
    assert f"table {place.name}: create it, with the index due, paid by request" in said
    state = place.state()
    table = state["table"]["Table"]
    assert table["KeySchema"] == [{"AttributeName": "k", "KeyType": "HASH"}]
    kinds = {given["AttributeName"]: given["AttributeType"] for given in table["AttributeDefinitions"]}
    assert kinds == {"k": "S", "s": "S", "d": "N"}
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"] is True
    (index,) = table["GlobalSecondaryIndexes"]
    assert (index["IndexName"], index["Projection"]["ProjectionType"]) == ("due", "KEYS_ONLY")
    assert [(key["AttributeName"], key["KeyType"]) for key in index["KeySchema"]] == [("s", "HASH"), ("d", "RANGE")]
    assert state["ttl"]["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "x"}
    assert state["location"]["LocationConstraint"] == REGION
    assert set(state["public"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert "Status" not in state["versioning"]


def test_again_nothing_changes_and_everything_is_as_it_should_be(place: Place) -> None:
    place.run()
    before = place.state()
    said = place.run()
    assert len(said) == 12
    assert all(line.endswith(": as it should be") for line in said)
    assert place.state() == before


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(place: Place) -> None:
    before = place.state()
    said = place.run(dry=True)
    assert f"bucket {place.name}: would create it in {REGION}" in said
    assert f"queue {place.name}: would create it" in said
    assert place.state() == before
    place.run()
    before = place.state()
    place.change(origins=(), expire_days=7)
    assert [": would " in line for line in place.lines(dry=True)] == [True, True]
    assert place.state() == before


def test_whatever_drifted_is_put_right_and_told(place: Place) -> None:
    place.run()
    before = place.state()
    bucket = {"Bucket": place.name}
    place.dynamodb.update_table(TableName=place.name, DeletionProtectionEnabled=False)
    place.dynamodb.update_time_to_live(
        TableName=place.name, TimeToLiveSpecification={"Enabled": False, "AttributeName": "x"}
    )
    place.s3.delete_public_access_block(**bucket)
    rule = before["cors"]["CORSRules"][0]
    place.s3.put_bucket_cors(**bucket, CORSConfiguration={"CORSRules": [{**rule, "AllowedOrigins": ["*"]}]})
    rule = before["lifecycle"]["Rules"][0]
    short = [{**rule, "Expiration": {"Days": 1}}]
    place.s3.put_bucket_lifecycle_configuration(**bucket, LifecycleConfiguration={"Rules": short})
    place.s3.put_bucket_notification_configuration(**bucket, NotificationConfiguration={})
    place.sqs.set_queue_attributes(QueueUrl=place.queue_url, Attributes={"VisibilityTimeout": "5", "Policy": ""})

    said = place.lines()
    changed = [line.partition(": ")[0].removeprefix(f"table {place.name}, ") for line in said]
    assert changed == [
        "deletion protection",
        "time to live",
        f"bucket {place.name}, public access",
        f"bucket {place.name}, CORS",
        f"bucket {place.name}, lifecycle",
        f"queue {place.name}",
        f"queue {place.name}, policy",
        f"bucket {place.name}, notification",
    ]
    assert f"queue {place.name}: set VisibilityTimeout to 60, not 5" in said
    after = place.state()
    for state in (before, after):
        state["queue"]["Attributes"].pop("LastModifiedTimestamp")
        for name in [name for name in state["queue"]["Attributes"] if name.startswith("Approximate")]:
            del state["queue"]["Attributes"][name]
    assert after == before


def test_rules_of_others_are_kept(place: Place) -> None:
    bucket = {"Bucket": place.name}
    place.s3.create_bucket(**bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    made = place.sqs.create_queue(QueueName=f"{place.name}-others")["QueueUrl"]
    arn = place.sqs.get_queue_attributes(QueueUrl=made, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
    open_to_all = json.dumps({"Version": "2012-10-17", "Statement": everybody})
    place.sqs.set_queue_attributes(QueueUrl=made, Attributes={"Policy": open_to_all})
    own = place.sqs.create_queue(QueueName=place.name, Attributes={"Policy": open_to_all})
    cors = {"ID": "theirs", "AllowedOrigins": ["https://z.example"], "AllowedMethods": ["GET"]}
    place.s3.put_bucket_cors(**bucket, CORSConfiguration={"CORSRules": [cors]})
    expire = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    neighbour = {**expire, "ID": "gateway-expire:test", "Filter": {"Prefix": "test/"}}
    place.s3.put_bucket_lifecycle_configuration(**bucket, LifecycleConfiguration={"Rules": [expire, neighbour]})
    filters = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "logs/"}]}}
    tells = {"Id": "theirs", "QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": filters}
    gone = {"Id": "gone", "QueueArn": arn, "Events": ["s3:ObjectRemoved:*"]}
    place.s3.put_bucket_notification_configuration(
        **bucket, NotificationConfiguration={"QueueConfigurations": [tells, gone], "EventBridgeConfiguration": {}}
    )

    place.run()
    state = place.state("cors", "lifecycle", "notification")
    assert [rule["ID"] for rule in state["cors"]["CORSRules"]] == ["theirs", "gateway-web:live"]
    rules = [rule["ID"] for rule in state["lifecycle"]["Rules"]]
    assert rules == ["theirs", "gateway-expire:test", "gateway-expire:live"]
    notifications = state["notification"]
    assert [rule["Id"] for rule in notifications["QueueConfigurations"]] == ["theirs", "gone", "gateway-uploads:live"]
    assert "EventBridgeConfiguration" in notifications
    attributes = place.sqs.get_queue_attributes(QueueUrl=own["QueueUrl"], AttributeNames=["Policy"])["Attributes"]
    assert json.loads(attributes["Policy"])["Statement"][0] == everybody
    assert not place.lines()
    place.change(origins=())
    place.run()
    assert place.state("cors")["cors"]["CORSRules"] == [cors]


def test_what_an_endpoint_does_not_know_is_skipped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {
        "dynamodb.DescribeTimeToLive": "UnknownOperationException",
        "s3.GetPublicAccessBlock": "NotImplemented",
        "s3.GetBucketVersioning": "501",
        "s3.PutBucketCors": "MethodNotAllowed",
    }

    def refuse(model: Any, **_: Any) -> None:
        code = unknown[f"{model.service_model.service_name}.{model.name}"]
        raise ClientError({"Error": {"Code": code, "Message": ""}}, model.name)

    def lacking(asked: access.Access, url: AwsUrl, region: str) -> Any:
        client = make(asked, url, region)
        for call in unknown:
            client.meta.events.register(f"before-call.{call}", refuse)
        return client

    make = access.Access.client
    monkeypatch.setattr(access.Access, "client", lacking)
    said = place.run()
    assert [line.partition(": skipped")[0] for line in said if ": skipped: the endpoint does not know" in line] == [
        f"table {place.name}, time to live",
        f"bucket {place.name}, public access",
        f"bucket {place.name}, versioning",
        f"bucket {place.name}, CORS",
    ]
    assert place.state("notification")["notification"]["QueueConfigurations"]

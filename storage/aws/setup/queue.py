"""The queue, and what the bucket sends to it."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from storage.aws.setup.bucket import Bucket, key_prefix
from storage.aws.setup.changes import Change, NotSetUp, Part, added_or_righted
from storage.aws.setup.service import Service

GRANTED_S = 90.0
"""How long S3 may take to see that it may send to a queue: a queue's new attributes are everywhere within a minute."""
AGAIN_S = 2.0
"""How often it is asked meanwhile."""

MADE_S = 1.0
"""How long a new queue takes until it can be used."""

VISIBLE_S = 60
KEPT_S = 24 * 60 * 60
LONG_POLL_S = 20

EVENTS = "s3:ObjectCreated:*"
_STATEMENT = "gatewayUploadEvents"
"""The name of our statement in a queue's policy: letters and digits are all that such a name may have."""

_NO_QUEUE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")


class Queue:
    def __init__(self, service: Service, bucket: Bucket) -> None:
        self._service = service
        self._name = service.url.name
        self._bucket = bucket
        self._url: str | None = None
        self.arn: str | None = None
        ours, theirs = service, bucket.service
        if not (ours.url.endpoint or bucket.url.endpoint) and ours.region != theirs.region:
            raise NotSetUp(
                f"the {ours.on} is in {ours.region}, and the {theirs.on} in {theirs.region}: S3 sends only to a queue "
                "of its own region"
            )

    def parts(self) -> list[Part]:
        on = self._service.on
        return [
            (on, self._itself),
            (f"{on}, policy", self._grant),
            (f"{self._bucket.service.on}, notification", self._notification),
        ]

    def _attributes(self) -> dict[str, str] | None:
        if self._url is None:
            found = self._service.ask("GetQueueUrl", absent=_NO_QUEUE, QueueName=self._name)
            if found is None:
                return None
            self._url = found["QueueUrl"]
        found = self._service.ask("GetQueueAttributes", QueueUrl=self._url, AttributeNames=["All"])
        attributes: dict[str, str] = (found or {}).get("Attributes", {})
        self.arn = attributes["QueueArn"]
        return attributes

    def _itself(self) -> Iterator[Change]:
        wanted = {
            "VisibilityTimeout": str(VISIBLE_S),
            "MessageRetentionPeriod": str(KEPT_S),
            "ReceiveMessageWaitTimeSeconds": str(LONG_POLL_S),
        }
        attributes = self._attributes()
        if attributes is None:
            yield Change("create it", lambda: self._create(wanted))
            return
        drifted = {name: value for name, value in wanted.items() if attributes.get(name) != value}
        if drifted:
            told = ", ".join(f"{name} to {value}, not {attributes.get(name)}" for name, value in drifted.items())
            yield Change(f"set {told}", lambda: self._set(drifted))

    def _create(self, attributes: Mapping[str, str]) -> None:
        made = self._service.ask("CreateQueue", needed=True, QueueName=self._name, Attributes=attributes)
        self._url = (made or {}).get("QueueUrl")
        time.sleep(MADE_S)

    def _set(self, attributes: Mapping[str, str]) -> None:
        self._service.ask("SetQueueAttributes", needed=True, QueueUrl=self._url, Attributes=attributes)

    def _grant(self) -> Iterator[Change]:
        what = f"let the {self._bucket.service.on} send to it"
        attributes = self._attributes()
        if attributes is None or self.arn is None:
            yield Change(what, lambda: None)
            return
        has = json.loads(attributes.get("Policy") or "{}")
        given = has.get("Statement", [])
        statements = given if isinstance(given, list) else [given]
        wanted = {
            "Sid": _STATEMENT,
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": self.arn,
            "Condition": {
                "ArnEquals": {"aws:SourceArn": self._bucket.arn},
                "StringEquals": {"aws:SourceAccount": self.arn.split(":")[4]},
            },
        }
        ours = [statement for statement in statements if statement.get("Sid") == _STATEMENT]
        if ours == [wanted]:
            return
        others = [statement for statement in statements if statement.get("Sid") != _STATEMENT]
        right = {"Version": "2012-10-17", **has, "Statement": [*others, wanted]}
        yield Change(added_or_righted(what, ours), lambda: self._set({"Policy": json.dumps(right)}))

    def _notification(self) -> Iterator[Change]:
        found = self._bucket.ask("GetBucketNotificationConfiguration")
        found.pop("ResponseMetadata", None)
        mark, under = self._bucket.mark("uploads"), key_prefix(self._bucket.url)
        wanted: dict[str, Any] = {"Id": mark, "QueueArn": self.arn, "Events": [EVENTS]}
        if under:
            wanted["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": under}]}}
        queues = found.get("QueueConfigurations", [])
        if any(_notifies(rule) == _notifies(wanted) for rule in queues):  # whoever made that rule
            return
        ours = [rule for rule in queues if rule.get("Id") == mark]
        others = [rule for rule in queues if rule.get("Id") != mark]
        foreign = [*others, *found.get("TopicConfigurations", []), *found.get("LambdaFunctionConfigurations", [])]
        for rule in foreign:
            if _overlaps(rule, under):
                raise NotSetUp(
                    f"the {self._bucket.service.on} tells somebody else of the same uploads (notification "
                    f"{rule.get('Id', 'without a name')}), and S3 takes only one notification for each: narrow that "
                    "one's prefix, remove it, or have both fed through a topic"
                )
        what = f"send word of uploads under {under or 'any key'} to the {self._service.on}"
        right = {**found, "QueueConfigurations": [*others, wanted]}
        yield Change(added_or_righted(what, ours), lambda: self._notify(right))

    def _notify(self, configuration: Mapping[str, Any]) -> None:
        ends_s = time.monotonic() + GRANTED_S
        while True:
            try:
                self._bucket.service.ask(
                    "PutBucketNotificationConfiguration",
                    needed=True,
                    Bucket=self._bucket.url.name,
                    NotificationConfiguration=configuration,
                )
                return
            except NotSetUp as error:
                if "Unable to validate" not in str(error) or time.monotonic() > ends_s:
                    raise
            time.sleep(AGAIN_S)


def _notifies(rule: Mapping[str, Any]) -> tuple[object, ...]:
    """What a notification does, whatever it is called."""
    return rule["QueueArn"], sorted(rule["Events"]), _filters(rule)


def _filters(rule: Mapping[str, Any]) -> dict[str, str]:
    """S3 answers with `Prefix` where it was given `prefix`."""
    rules = rule.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    return {given["Name"].lower(): given["Value"] for given in rules if given.get("Value")}


def _overlaps(rule: Mapping[str, Any], under: str) -> bool:
    prefix = _filters(rule).get("prefix", "")
    created = any(event.startswith(EVENTS.rstrip("*")) for event in rule["Events"])
    return created and (prefix.startswith(under) or under.startswith(prefix))

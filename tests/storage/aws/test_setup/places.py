"""Places to set up: names that nobody uses yet, and how to look at what they name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from storage.aws.setup import Setup, Wanted
from storage.aws.url import AwsUrl
from tests.aws_servers import REGION, Environment, Ministack, fresh

ACCOUNT = "000000000000"


def as_user(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    for name, text in environment.items():
        monkeypatch.setenv(name, text)


@dataclass
class Place:
    """Names nobody uses yet, and clients of the account's owner to look at what they name."""

    aws: Ministack
    name: str
    wanted: Wanted

    def __post_init__(self) -> None:
        self.dynamodb, self.s3, self.sqs = map(self.aws.client, ("dynamodb", "s3", "sqs"))

    def run(self, *, dry: bool = False) -> list[str]:
        return list(Setup(self.wanted).run(dry=dry))

    def change(self, **wanted: Any) -> None:
        self.wanted = replace(self.wanted, **wanted)

    def only(self, *kept: str) -> None:
        """Nothing else is wanted."""
        self.change(**{name: None for name in ("documents", "objects", "events") if name not in kept})

    def lines(self, *, dry: bool = False) -> list[str]:
        """What it says of all that is not as it should be."""
        return [line for line in self.run(dry=dry) if not line.endswith(": as it should be")]

    @property
    def queue_url(self) -> str:
        return str(self.sqs.get_queue_url(QueueName=self.name)["QueueUrl"])

    def state(self, *names: str) -> dict[str, Any]:
        """What there is of these, or of everything, as the services describe it."""
        bucket = {"Bucket": self.name}
        asked: dict[str, Callable[[], Any]] = {
            "table": lambda: self.dynamodb.describe_table(TableName=self.name),
            "ttl": lambda: self.dynamodb.describe_time_to_live(TableName=self.name),
            "location": lambda: self.s3.get_bucket_location(**bucket),
            "public": lambda: self.s3.get_public_access_block(**bucket),
            "versioning": lambda: self.s3.get_bucket_versioning(**bucket),
            "cors": lambda: self.s3.get_bucket_cors(**bucket),
            "lifecycle": lambda: self.s3.get_bucket_lifecycle_configuration(**bucket),
            "notification": lambda: self.s3.get_bucket_notification_configuration(**bucket),
            "queue": lambda: self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["All"]),
        }
        return {name: _told(asked[name]) for name in names or asked}


def _told(ask: Callable[[], Any]) -> Any:
    try:
        answer = ask()
    except ClientError as error:
        return error.response["Error"]["Code"]
    del answer["ResponseMetadata"]
    answer.get("Attributes", {}).pop("ApproximateNumberOfMessages", None)
    return answer


def new_place(aws: Ministack) -> Place:
    name = fresh()
    options = f"region={REGION}&endpoint={aws.endpoint}"
    return Place(
        aws,
        name,
        Wanted(
            documents=AwsUrl.parse(f"dynamodb://{name}?{options}"),
            objects=AwsUrl.parse(f"s3://{name}/live?{options}"),
            events=AwsUrl.parse(f"sqs://{name}?{options}"),
            origins=("https://a.example",),
            expire_days=40,
        ),
    )


def configure(place: Place, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The settings of a gateway that keeps everything there."""
    options = f"region={REGION}&endpoint={place.aws.endpoint}"
    for name, value in {
        "DATA_DIR": str(folder),
        "STATE_URL": f"dynamodb://{place.name}?{options}",
        "OBJECTS_URL": f"s3://{place.name}/live?{options}",
        "UPLOAD_EVENTS_URL": f"sqs://{place.name}?{options}",
        "CORS_ORIGINS": "https://a.example",
    }.items():
        monkeypatch.setenv(f"GATEWAY_{name}", value)

"""What stands in for Amazon checks what Amazon would check, and leaves nothing behind."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.aws_servers import Environment, Ministack, make_client, ministack


def refusal(aws: Ministack, environment: Environment, table: str) -> str:
    """Why a program with that environment may not read a table; empty where it may."""
    with closing(make_client("dynamodb", aws.endpoint, environment)) as client:
        try:
            client.get_item(TableName=table, Key={"k": {"S": "a"}})
        except ClientError as error:
            code: str = error.response["Error"]["Code"]
            return code
        return ""


def test_signatures_are_verified_and_rights_are_kept(aws: Ministack) -> None:
    table = aws.fresh_table()
    assert not refusal(aws, aws.environment, table)
    forged = {**aws.environment, "AWS_SECRET_ACCESS_KEY": "another"}
    assert refusal(aws, forged, table) == "InvalidSignatureException"
    puts = {"Effect": "Allow", "Action": "dynamodb:PutItem", "Resource": "*"}
    assert refusal(aws, aws.user(puts), table) == "AccessDeniedException"


def test_credentials_of_a_session_expire(aws: Ministack) -> None:
    table, session = aws.fresh_table(), aws.session(1)
    assert refusal(aws, {**session, "AWS_SESSION_TOKEN": "another"}, table) == "UnrecognizedClientException"
    deadline_s = time.monotonic() + 10
    while not (code := refusal(aws, session, table)):
        assert time.monotonic() < deadline_s, "it does not expire"
    assert code == "ExpiredTokenException"


def test_a_queue_hears_of_what_comes_into_a_bucket(aws: Ministack) -> None:
    bucket = aws.fresh_bucket()
    aws.queue(bucket, bucket, "v/")
    url = aws.client("sqs").get_queue_url(QueueName=bucket)["QueueUrl"]
    for key in ("other", "v/a b"):
        aws.client("s3").put_object(Bucket=bucket, Key=key, Body=b"")
    found: list[Any] = []
    while messages := aws.client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        found += [json.loads(message["Body"]) for message in messages]
    tested, heard = found
    assert tested["Event"] == "s3:TestEvent"
    assert [record["s3"]["object"]["key"] for record in heard["Records"]] == ["v/a+b"]


def test_it_ends_and_its_folder_is_all_that_it_wrote_to(tmp_path: Path) -> None:
    with ministack(tmp_path / "one") as server:
        server.fresh_bucket()
        assert server.process is not None
        assert server.process.poll() is None
    assert server.process.poll() is not None
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"log", f"ministack-{server.port}.pid"}

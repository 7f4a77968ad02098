"""A real ministack, which does what Amazon's S3, DynamoDB and SQS do, on a free port and with its checks on.

    with ministack(folder) as aws:      aws.endpoint; aws.environment; aws.fresh_table(); aws.user(…); aws.kill(); …

It keeps everything in memory. Whatever became of it, it is not left running at the end.
"""

import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from tests.redis_servers import PATIENCE_S, free_port

PROGRAM = Path(__file__).resolve().parent.parent / ".venv-ministack" / "bin" / "ministack"
REGION = "eu-central-1"
NOTHING = "/dev/null"

Environment = Mapping[str, str]
"""The variables with which a program finds its credentials and its region."""

EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}

_ROOT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""May do everything. What is signed with it in headers is not verified: it is for the making of things only."""

_numbers = itertools.count(1)


@dataclass
class Ministack:
    """A ministack of its own. `environment` is that of a user who may do everything."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    environment: Environment = field(default_factory=dict)
    _clients: dict[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, wait until it answers, and make the user. What it had before is gone."""
        assert PROGRAM.exists(), "ministack is not installed: scripts/test does that"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Nothing of our environment reaches it, so nothing but the folder is where it may write.
        environ = {"PATH": os.defpath, "HOME": str(self.folder), "TMPDIR": str(self.folder), **_ROOT}
        environ |= {"AUTH": "true", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port), "LOG_LEVEL": "WARNING"}
        environ |= {"SERVICES": "s3,dynamodb,sqs,iam,sts", "MINISTACK_REGION": REGION, "IOT_MTLS_ENABLED": "0"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([PROGRAM], env=environ, cwd=self.folder, stdout=log, stderr=log)
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline_s, "ministack does not answer"
            time.sleep(0.01)
        self.environment = self.user(EVERYTHING)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/_ministack/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL it: all that it had is gone."""
        while self._clients:
            self._clients.popitem()[1].close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP it: it takes in what comes, and does nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self, service: str) -> Any:
        """A client of botocore's that may do everything. Blocks. Made once: that takes long."""
        if service not in self._clients:
            self._clients[service] = make_client(service, self.endpoint, _ROOT)
        return self._clients[service]

    def user(self, *statements: Mapping[str, Any]) -> Environment:
        """A new user, who may do what the statements of a policy say, and nothing else."""
        name = fresh()
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.client("iam").create_user(UserName=name)
        self.client("iam").put_user_policy(UserName=name, PolicyName="all", PolicyDocument=policy)
        return _environment(self.client("iam").create_access_key(UserName=name)["AccessKey"])

    def session(self, seconds: int) -> Environment:
        """Credentials of the user's that expire after so many seconds; with a session token."""
        with contextlib.closing(make_client("sts", self.endpoint, self.environment)) as client:
            return _environment(client.get_session_token(DurationSeconds=seconds)["Credentials"])

    def table(self, name: str) -> None:
        """A table for documents, at once ready."""
        attributes = {"k": "S", "s": "S", "d": "N"}
        self.client("dynamodb").create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind in attributes.items()],
            KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "due",
                    "KeySchema": [
                        {"AttributeName": "s", "KeyType": "HASH"},
                        {"AttributeName": "d", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            ],
        )
        self.client("dynamodb").update_time_to_live(
            TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"}
        )

    def bucket(self, name: str) -> None:
        """A bucket."""
        self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def queue(self, name: str, bucket: str, prefix: str = "") -> None:
        """A queue that hears of each object that comes into `bucket` under `prefix`. The first message in it is a
        test event, as at Amazon's."""
        arn = f"arn:aws:sqs:{REGION}:000000000000:{name}"
        sends = {
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:s3:::{bucket}"}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [sends]})
        self.client("sqs").create_queue(QueueName=name, Attributes={"Policy": policy})
        rules = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
        heard = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": rules}
        self.client("s3").put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [heard]}
        )

    def fresh_table(self) -> str:
        """The name of a table that nobody else has."""
        name = fresh()
        self.table(name)
        return name

    def fresh_bucket(self) -> str:
        """The name of a bucket that nobody else has."""
        name = fresh()
        self.bucket(name)
        return name


def fresh() -> str:
    """A name that nothing has yet, good for everything."""
    return f"test-{os.getpid()}-{next(_numbers)}"


def make_client(service: str, endpoint: str, environment: Environment) -> Any:
    """A client of botocore's, which tries everything once. Whoever makes it closes it."""
    return _botocore().create_client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
        # What parameters may be is left to the service: it gives credentials for a second, which Amazon would not.
        config=Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}, parameter_validation=False
        ),
    )


@cache
def _botocore() -> Any:
    """Botocore, which knows nothing of this machine, and what it has read about the services."""
    no_file = (None, None, NOTHING, None)
    settings = {"profile": (None, None, None, None), "config_file": no_file, "credentials_file": no_file}
    return botocore.session.Session(settings)


def _environment(key: Mapping[str, Any]) -> Environment:
    found = {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": NOTHING,
        "AWS_SHARED_CREDENTIALS_FILE": NOTHING,
    }
    return found | ({"AWS_SESSION_TOKEN": key["SessionToken"]} if "SessionToken" in key else {})


@contextmanager
def ministack(folder: Path) -> Iterator[Ministack]:
    """A ministack that is up."""
    server = Ministack(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()

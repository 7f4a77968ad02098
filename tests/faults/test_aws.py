"""Two gateways and a worker on DynamoDB, S3 and SQS, with credentials that expire every few seconds: requests go wrong
in every way, and nothing is lost that was answered."""

import asyncio
import datetime
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from tests.app.program import Program
from tests.aws_proxy import (
    Fault,
    Proxy,
    Request,
    cut_after,
    cut_before,
    cut_within,
    delayed,
    proxy,
    refused,
    trickled,
    twice,
)
from tests.aws_servers import Ministack, fresh
from tests.faults.deployment import agreed, deployed
from tests.faults.town import Town
from tests.redis_servers import redis_server

SESSION_S = 5
"""How long credentials are good."""

SHARE = 0.12
"""So many of all requests go wrong."""

WRONG = (cut_before, cut_after, cut_within, twice, delayed(0.3), trickled(0.005, 200))
"""What goes wrong with any of them."""


class Role:
    """Gives credentials as a container's role does, over HTTP; each is good for `SESSION_S`."""

    def __init__(self, aws: Ministack) -> None:
        self.given = 0
        self._aws = aws

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        found = await asyncio.to_thread(self._aws.session, SESSION_S)
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=SESSION_S)
        body = json.dumps(
            {
                "AccessKeyId": found["AWS_ACCESS_KEY_ID"],
                "SecretAccessKey": found["AWS_SECRET_ACCESS_KEY"],
                "Token": found["AWS_SESSION_TOKEN"],
                "Expiration": ends.isoformat(),
            }
        ).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()
        self.given += 1


@dataclass
class Cloud:
    """The gateways, what lies between them and Amazon, and where the documents are."""

    gateways: list[Program]
    documents: Proxy
    objects: Proxy
    state_url: str
    role: Role
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    def weather(self) -> Callable[[Request], Fault | None]:
        """Some requests go wrong, in whatever way there is for them."""

        def choose(request: Request) -> Fault | None:
            if self.rng.random() > SHARE:
                return None
            if "x-amz-target" in request.headers:
                own = (refused(400, "ProvisionedThroughputExceededException"), refused(500, "InternalServerError"))
            else:
                own = (refused(503, "SlowDown"), refused(500, "InternalError"))
            return self.rng.choice([*WRONG, *own])

        return choose


@pytest.fixture(scope="module")
async def cloud(aws: Ministack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    folder, role = tmp_path_factory.mktemp("cloud"), Role(aws)
    table, bucket, queue = aws.fresh_table(), aws.fresh_bucket(), fresh()
    aws.queue(queue, bucket)
    async with AsyncExitStack() as stack:
        environ = stack.enter_context(pytest.MonkeyPatch.context())
        giving = await stack.enter_async_context(await asyncio.start_server(role.answer, "127.0.0.1", 0))
        for name in [name for name in os.environ if name.startswith(("AWS_ACCESS", "AWS_SECRET"))]:
            environ.delenv(name)
        port = giving.sockets[0].getsockname()[1]
        environ.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/role")
        redis = stack.enter_context(redis_server(folder / "redis"))
        documents, objects = [await stack.enter_async_context(proxy(aws.port)) for _ in range(2)]
        state_url = f"dynamodb://{table}?endpoint={documents.url}"
        gateways = await stack.enter_async_context(
            deployed(
                folder,
                STATE_URL=state_url,
                OBJECTS_URL=f"s3://{bucket}?endpoint={objects.url}",
                UPLOAD_EVENTS_URL=f"sqs://{queue}?endpoint={aws.endpoint}",
                BUS_URL=redis.url,
                CACHE_URL=redis.url,
            )
        )
        yield Cloud(gateways, documents, objects, state_url, role)


async def test_every_eighth_request_goes_wrong(cloud: Cloud) -> None:
    town, given = Town(cloud.gateways), cloud.role.given
    async with town.busy("weather"):
        await town.is_live()
        cloud.documents.fault = cloud.objects.fault = cloud.weather()
        await town.goes_on(30, within_s=40)
        cloud.documents.fault = cloud.objects.fault = lambda _: None
        await town.is_live()
    await agreed(cloud.state_url, "weather", town)
    assert cloud.role.given > given


async def test_dynamodb_is_away_for_a_moment(cloud: Cloud) -> None:
    """Calls wait for it: nobody has to repeat one, and credentials expire all the while."""
    town, given, seen = Town(cloud.gateways), cloud.role.given, len(cloud.documents.seen)
    async with town.busy("moment"):
        await town.is_live()
        cloud.documents.fault = lambda _: cut_before
        await asyncio.sleep(2)
        cloud.documents.fault = lambda _: None
        await town.is_live()
    assert town.unanswered == 0
    assert len(cloud.documents.seen) > seen
    assert cloud.role.given > given
    await agreed(cloud.state_url, "moment", town)


async def test_s3_is_away_for_a_while(cloud: Cloud) -> None:
    """Videos wait, and whatever else is asked is answered."""
    town = Town(cloud.gateways)
    async with town.busy("away"):
        await town.is_live()
        cloud.objects.fault = lambda _: cut_before
        await asyncio.sleep(2)
        for gateway in cloud.gateways:
            assert (await gateway.app("somebody").poll()).status_code == 200
        cloud.objects.fault = lambda _: None
        await town.is_live()
    assert town.unanswered > 0
    await agreed(cloud.state_url, "away", town)

"""The gateway where others keep its documents and the bytes: DynamoDB, S3, and its events through SQS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.app.program import run
from tests.app.test_load_balancer import balanced
from tests.aws_servers import Ministack, fresh
from tests.running import SECRET, App, Running, running_gateway, until
from tests.test_tour import assert_toured, toured


def urls(aws: Ministack) -> dict[str, str]:
    """The settings of a table, a bucket and a queue that are not there yet."""
    at = f"endpoint={aws.endpoint}"
    return {
        "STATE_URL": f"dynamodb://{fresh()}?{at}",
        "OBJECTS_URL": f"s3://{fresh()}/videos?{at}",
        "UPLOAD_EVENTS_URL": f"sqs://{fresh()}?{at}",
    }


@asynccontextmanager
async def gateway(aws: Ministack, folder: Path, **given: str) -> AsyncIterator[Running]:
    """A gateway on what `gateway setup` made."""
    settings = {name: text for name, text in (urls(aws) | given).items() if text}
    code, said = await run(folder, "setup", **settings)
    assert code == 0, said
    async with running_gateway(folder, worker=True, **settings) as running:
        yield running


async def test_two_gateways_a_worker_and_what_setup_made_pass_the_tour(aws: Ministack, tmp_path: Path) -> None:
    settings = urls(aws)
    code, said = await run(tmp_path / "data", "setup", **settings)
    assert code == 0, said
    async with balanced(tmp_path, **settings) as (url, _):
        for _ in range(2):
            assert_toured(await toured(url, JWT_SECRET=SECRET))


async def test_an_upload_is_completed_though_its_app_is_gone(aws: Ministack, tmp_path: Path) -> None:
    async with gateway(aws, tmp_path, SWEEP_S="3600") as running:
        alice, bob = running.app("alice"), running.app("bob")
        announced = await alice.announce("bob")
        async with bob.socket("phone") as socket:
            assert (await socket.packet())["incoming"] == []
            assert (await alice.upload(announced)).status_code == 200
            assert [entry["video_id"] for entry in (await socket.packet())["incoming"]] == [announced.video_id]


# --- What a video costs


class Bill:
    """What DynamoDB and S3 were asked for since it was begun."""

    def __init__(self, running: Running) -> None:
        self._usage = running.gateway.usage
        self._units, self._requests = self._usage.units.copy(), self._usage.requests.copy()

    def units(self, kind: str) -> float:
        now, before = self._usage.units, self._units
        return sum(now[key] - before[key] for key in list(now) if key[2] == kind)

    def requests(self, *calls: str) -> int:
        changed = self._usage.requests - self._requests
        return sum(changed[key] for key in changed if key[1] in calls)


@asynccontextmanager
async def two_phones(aws: Ministack, folder: Path) -> AsyncIterator[tuple[Running, App, App]]:
    """Alice's and Bob's phones, which are registered. Nothing else goes on, since all that there was is swept."""
    async with gateway(aws, folder, UPLOAD_EVENTS_URL="", SWEEP_S="3600") as running:
        alice, bob = running.app("alice-" + "a" * 14), running.app("bob-" + "b" * 16)
        for app in (alice, bob):
            await app.register("phone", "token-of-" + app.client_id)

        async def swept() -> bool:
            [document] = await running.gateway.service.changes.documents.load(["sweep:full"])
            return b'"ended":0' not in document.body and bool(document.body)

        await until(swept, "the first sweep has ended")
        yield running, alice, bob


async def sent_online(running: Running, alice: App, bob: App) -> Bill:
    """A video goes all the way while both are connected, a step at a time."""
    async with alice.socket("phone") as a, bob.socket("phone") as b:
        await a.packet()
        await b.packet()
        bill = Bill(running)
        video_id = await alice.send(bob.client_id)
        await a.packet()
        await b.ack((await b.packet())["version"])
        for status in ("downloaded", "viewed"):
            await a.packet()
            await b.ask("status", video_id=video_id, status=status)
        assert [entry["status"] for entry in (await a.packet())["outgoing"]] == ["viewed"]
    await running.gateway.removals.flush()
    return bill


async def sent_offline(running: Running, alice: App, bob: App) -> Bill:
    """A video goes all the way while nobody is connected: Bob's phone is woken, and syncs when it has something."""
    bill = Bill(running)
    async with bob.pushes("phone") as pushes:
        video_id = await alice.send(bob.client_id)
        push = await anext(pushes)
    await sees(alice, video_id, "notified")
    for status in ("downloaded", "viewed"):
        said = {"video_id": video_id, "status": status}
        assert (await bob.sync(said, device_id="phone", version=int(push["version"]))).status_code == 200
    await sees(alice, video_id, "viewed")
    await running.gateway.removals.flush()
    return bill


async def sees(app: App, video_id: str, status: str) -> None:
    async def listed() -> bool:
        return any(
            video["video_id"] == video_id and video["status"] == status for video in (await app.packet())["outgoing"]
        )

    await until(listed, f"the video is {status}")


async def test_a_video_to_somebody_online_costs_ten_write_units(aws: Ministack, tmp_path: Path) -> None:
    async with two_phones(aws, tmp_path) as (running, alice, bob):
        first = await sent_online(running, alice, bob)
        assert first.units("write") <= 10 + 3  # when to look at what the sender has sent is new, and then sooner
        for _ in range(2):
            bill = await sent_online(running, alice, bob)
            assert bill.units("write") <= 10
            assert bill.requests("PutItem") == 8
            assert bill.requests("GetItem", "BatchGetItem") <= 12
            assert bill.requests("HeadObject") == 1
            assert bill.requests("DeleteObject", "DeleteObjects") <= 2  # when it is viewed, and when it is replaced


async def test_a_video_to_somebody_offline_costs_sixteen(aws: Ministack, tmp_path: Path) -> None:
    async with two_phones(aws, tmp_path) as (running, alice, bob):
        first = await sent_offline(running, alice, bob)
        assert first.units("write") <= 16 + 3
        for _ in range(2):
            bill = await sent_offline(running, alice, bob)
            assert bill.units("write") <= 16
            assert bill.requests("PutItem") <= 10

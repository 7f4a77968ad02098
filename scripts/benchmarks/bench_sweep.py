"""A full sweep over a great many objects and documents: whether it is right, and what it costs.

In a ministack (in memory, one core) a world is made of clients with videos in transit, of which some went wrong as
crashes leave them. Then `gateway sweep --full` runs twice at once, one of the two is killed in the middle, and the
other goes on to the end; then it runs once more, and must find nothing to do. At last every object and document is
looked at.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import uvloop

from gateway.bus.memory import MemoryBus
from gateway.changes import CLIENT_PREFIX, Changes
from gateway.metrics import Metrics
from gateway.removals import Removals
from gateway.service import Said, Service, UploadLimits
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import DAY_MS, MINUTE_MS, Policy
from gateway.transit.state import ClientId, Status, decode
from storage import open_documents, open_objects
from storage.aws.client import AwsClient, Request
from storage.aws.signing import sha256_of
from storage.aws.url import AwsUrl
from storage.documents import Document
from storage.memory import MemoryDocuments, MemoryObjects
from storage.objects import ObjectInfo
from storage.usage import Usage
from tests.aws_servers import ministack

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 32

Item = TypeVar("Item")


class Fate(StrEnum):
    """What is to become of a video's object."""

    KEPT = "in transit: stays"
    UNCONFIRMED = "stored, and never confirmed: completed"
    HALF = "the recipient's document was never written: mended"
    VIEWED = "viewed, and its bytes left: deleted"
    ENDED = "deleted by its sender, and its bytes left: deleted"
    ORPHAN = "stored long ago, and of no document: deleted"


SHARES = {Fate.UNCONFIRMED: 0.02, Fate.HALF: 0.01, Fate.VIEWED: 0.01, Fate.ENDED: 0.01, Fate.ORPHAN: 0.02}
STAYS = {Fate.KEPT, Fate.UNCONFIRMED, Fate.HALF}


class Everything(MemoryObjects):
    """An object store in which whatever is asked for is there."""

    async def head(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, 4, "video/mp4")

    async def delete(self, keys: Sequence[str]) -> None:
        """It goes on being there."""


@dataclass
class World:
    """Videos by what is to become of them, and the documents as they are left."""

    videos: dict[VideoRef, Fate] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)


class Maker:
    """Makes a world with the product's own rules, in memory."""

    def __init__(self, seed: int) -> None:
        self.world = World()
        self._rng = random.Random(seed)
        self._now_ms = 0
        self._documents = MemoryDocuments(clock=self._clock)
        metrics, objects = Metrics(), Everything(clock=self._clock)
        self._changes = Changes(
            documents=self._documents,
            bus=MemoryBus(),
            removals=Removals(objects, metrics),
            policy=Policy(),
            metrics=metrics,
            clock=self._clock,
        )
        self._service = Service(self._changes, objects, UploadLimits())

    def _clock(self) -> float:
        return self._now_ms / 1000

    async def make(self, videos: int) -> World:
        """So many videos: each sender has sent two, each recipient was sent two."""
        now = int(time.time() * 1000)
        fates = self._rng.choices([*SHARES, Fate.KEPT], [*SHARES.values(), 1 - sum(SHARES.values())], k=videos)
        recent = {Fate.UNCONFIRMED: now - 10 * MINUTE_MS}
        for number in sorted(range(videos), key=lambda number: recent.get(fates[number], now - 2 * DAY_MS)):
            self._now_ms = recent.get(fates[number], now - 2 * DAY_MS) + number
            sender = ClientId(f"sender-{number // 2}")
            await self._video(sender, ClientId(f"recipient-{(number + 1) // 2}"), fates[number])
        page = await self._documents.scan(limit=10 * videos)
        self.world.documents = {document.key: document for document in page.documents}
        return self.world

    async def _video(self, sender: ClientId, recipient: ClientId, fate: Fate) -> None:
        announced = await self._service.announce(sender, recipient, size=4, content_type="video/mp4")
        ref = VideoRef(announced.video_id, sender, recipient)
        self.world.videos[ref] = fate
        if fate in {Fate.ORPHAN, Fate.UNCONFIRMED}:
            return
        [before] = await self._documents.load([CLIENT_PREFIX + recipient])
        await self._service.confirm(ref)
        match fate:
            case Fate.HALF:
                [after] = await self._documents.load([before.key])
                await self._documents.commit([Document(before.key, after.version, before.body, before.due)])
            case Fate.VIEWED:
                await self._service.report(recipient, [Said(ref.video_id, Status.VIEWED)])
            case Fate.ENDED:
                await self._service.delete(ref)


async def pour(world: World, state_url: str, objects_url: str) -> None:
    """Put the world into the stores."""
    url, body = AwsUrl.parse(objects_url), b"data"
    s3 = AwsClient(url, usage=Usage(), timeout_s=10, deadline_s=60)

    async def put(ref: VideoRef) -> None:
        headers = {"content-type": "video/mp4", "x-amz-content-sha256": sha256_of(body)}
        path = f"/{url.name}/{url.prefix}/{ref.object_key}"
        await s3.send(Request("PutObject", "PUT", path, "", headers, body, sha256_of(body)))

    async with open_documents(state_url) as documents:

        async def commit(document: Document) -> None:
            await documents.commit([Document(document.key, 0, document.body, document.due)])

        await in_turns(world.documents.values(), commit)
    await in_turns(world.videos, put)
    await s3.close()


async def in_turns(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Work on all of them, some at a time."""
    rest = iter(items)

    async def some() -> None:
        for item in rest:
            await work(item)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


# --- Sweeping


def sweeping(settings: dict[str, str]) -> subprocess.Popen[str]:
    """`gateway sweep --full`, begun."""
    command = [sys.executable, "-m", "gateway", "sweep", "--full"]
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True)


def swept(process: subprocess.Popen[str], began: float, cpu_before: float) -> float:
    """Wait for its end, and show what it says; the CPU of all that have ended so far."""
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the sweep failed: {process.returncode}")
    times = os.times()
    cpu = times.children_user + times.children_system
    print(f"{said.strip()}\n({time.monotonic() - began:.0f} s, {cpu - cpu_before:.0f} s of CPU)\n", flush=True)
    return cpu


def sweep_twice(settings: dict[str, str], kill_after_s: float) -> None:
    """Two at once, of which one is killed; then one more."""
    began = time.monotonic()
    first, second = sweeping(settings), sweeping(settings)
    time.sleep(kill_after_s)
    if first.poll() is not None:
        raise SystemExit("the first had ended before it could be killed: --kill-after is too long")
    first.kill()
    first.wait()
    times = os.times()
    print(f"Two at once; after {kill_after_s:.0f} s one was killed. The other:\n")
    cpu = swept(second, began, times.children_user + times.children_system)
    print("And one more:\n")
    swept(sweeping(settings), time.monotonic(), cpu)


async def verify(world: World, state_url: str, objects_url: str) -> None:
    """Look at everything. Raises SystemExit where something is not as it must be."""
    wrong: Counter[str] = Counter()
    states = {}
    async with open_documents(state_url) as documents, open_objects(objects_url) as objects:
        cursor: str | None = None
        while True:
            page = await documents.scan(cursor=cursor)
            for document in page.documents:
                if document.key.startswith(CLIENT_PREFIX):
                    client_id = ClientId(document.key.removeprefix(CLIENT_PREFIX))
                    states[client_id] = decode(client_id, document.body)
            if (cursor := page.cursor) is None:
                break
        stored = {key async for key in objects.list("")}
    for ref, fate in world.videos.items():
        if (ref.object_key in stored) != (fate in STAYS):
            wrong[f"bytes: {fate}"] += 1
        sender, recipient = states.get(ref.sender_id), states.get(ref.recipient_id)
        sent = sender.find_sent(ref.video_id) if sender else None
        received = recipient.find_received(ref.video_id) if recipient else None
        statuses = {video[1].status for video in (sent, received) if video is not None}
        expected = {Status.UPLOADED} if fate in STAYS else {Status.VIEWED} if fate is Fate.VIEWED else set()
        listed = {sent is not None, received is not None} == {bool(expected)}
        if statuses != expected or not listed:
            wrong[f"documents: {fate}"] += 1
    if len(stored) != sum(fate in STAYS for fate in world.videos.values()):
        wrong["objects that are of no video"] += 1
    if wrong:
        raise SystemExit(f"not as it must be: {dict(wrong)}")
    print(f"All {len(world.videos):,} videos and {len(states):,} documents are as they must be.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--kill-after", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-sweep-") as folder, ministack(Path(folder) / "aws") as aws:
        os.environ.update(aws.environment)
        at = f"endpoint={aws.endpoint}"
        state_url = f"dynamodb://{aws.fresh_table()}?{at}"
        objects_url = f"s3://{aws.fresh_bucket()}/videos?{at}"
        began = time.monotonic()
        world = uvloop.run(Maker(arguments.seed).make(arguments.objects))
        for fate, count in Counter(world.videos.values()).most_common():
            print(f"{count:8,} {fate}")
        print(f"{len(world.documents):8,} documents\n({time.monotonic() - began:.0f} s to make them)\n", flush=True)
        began = time.monotonic()
        uvloop.run(pour(world, state_url, objects_url))
        print(f"({time.monotonic() - began:.0f} s to store them)\n", flush=True)
        settings = {
            "GATEWAY_STATE_URL": state_url,
            "GATEWAY_OBJECTS_URL": objects_url,
            "GATEWAY_DATA_DIR": folder,
            "GATEWAY_SWEEP_RATE": "0",
            "GATEWAY_JWT_SECRET": "s" * 32,
            "PYTHONPATH": str(ROOT),
        }
        sweep_twice(settings, arguments.kill_after)
        uvloop.run(verify(world, state_url, objects_url))


if __name__ == "__main__":
    main()

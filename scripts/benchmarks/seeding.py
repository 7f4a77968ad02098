"""Videos in transit, made with the product's own parts before a server starts, and laid out for as many starts as there
are."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench_calls import VIDEO, store

from gateway.bus.memory import MemoryBus
from gateway.changes import Changes
from gateway.metrics import Metrics
from gateway.removals import Removals
from gateway.service import Service, UploadLimits
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId
from storage import open_documents
from storage.disk import DiskObjects
from storage.documents import Document

TOGETHER = 64
MOST_OF_A_PAIR = 16
"""The most that `GATEWAY_VIDEOS_PER_PAIR` may be."""


@dataclass(frozen=True, slots=True)
class Couple:
    """A sender and a recipient, and what is in transit between them."""

    sender: str
    recipient: str
    video_ids: tuple[str, ...]


@asynccontextmanager
async def _service(data: Path, videos_per_pair: int) -> AsyncIterator[tuple[Service, DiskObjects]]:
    objects, metrics = DiskObjects(data / "objects"), Metrics()
    async with open_documents(f"sqlite:///{data}/state.db") as documents:
        changes = Changes(
            documents=documents,
            bus=MemoryBus(),
            removals=Removals(objects, metrics),
            policy=Policy(videos_per_pair=videos_per_pair),
            metrics=metrics,
        )
        yield Service(changes, objects, UploadLimits()), objects
    await objects.close()


async def seed(data: Path, count: int, *, videos: int = 1) -> list[Couple]:
    """Couples with so many uploaded videos each, in a data folder of the gateway.

    Where they are more than one sender may have in transit to a recipient, further senders have the rest.
    """
    couples: list[Couple] = []
    async with _service(data, min(videos, MOST_OF_A_PAIR)) as (service, objects):
        for start in range(0, count, TOGETHER):
            numbers = range(start, min(count, start + TOGETHER))
            couples += await asyncio.gather(*(_couple(service, objects, number, videos) for number in numbers))
    return couples


async def _couple(service: Service, objects: DiskObjects, number: int, videos: int) -> Couple:
    sender, recipient = ClientId(f"sender-{number}"), ClientId(f"recipient-{number}")
    video_ids = []
    for place in range(videos):
        further = place // MOST_OF_A_PAIR
        each = ClientId(f"{sender}-{further}") if further else sender
        announced = await service.announce(each, recipient, size=len(VIDEO), content_type="video/mp4")
        ref = VideoRef(announced.video_id, each, recipient)
        await store(objects, ref)
        await service.confirm(ref)
        video_ids.append(announced.video_id)
    return Couple(sender, recipient, tuple(video_ids))


def lay_out(seeded: Path, data: Path) -> None:
    """A copy of a seeded folder, which is left as it is: objects are replaced, never written to, so they are linked."""
    shutil.copytree(seeded / "objects", data / "objects", copy_function=os.link, dirs_exist_ok=True)
    for database in seeded.glob("state.db*"):
        shutil.copy(database, data / database.name)


async def copy_documents(seeded: Path, url: str) -> None:
    """All documents of a seeded folder, into the store at `url`, which has none of them."""
    async with open_documents(f"sqlite:///{seeded}/state.db") as source, open_documents(url) as target:
        cursor: str | None = None
        while True:
            page = await source.scan(cursor=cursor)
            await target.commit([Document(each.key, 0, each.body, each.due) for each in page.documents])
            cursor = page.cursor
            if cursor is None:
                return


async def add_others(data: Path, model: Couple, count: int) -> None:
    """Documents of `count` other clients, in a seeded folder: couples like one that is there, under other names."""
    ids = (f"client:{model.sender}", f"client:{model.recipient}")
    async with open_documents(f"sqlite:///{data}/state.db") as documents:
        models = await documents.load(ids)
        for start in range(0, count // 2, TOGETHER):
            await documents.commit(
                [
                    Document(_renamed(each.key, model, number), 0, _renamed(each.body.decode(), model, number).encode())
                    for number in range(start, min(count // 2, start + TOGETHER))
                    for each in models
                ]
            )


def _renamed(text: str, model: Couple, number: int) -> str:
    return text.replace(model.sender, f"other-{number}-s").replace(model.recipient, f"other-{number}-r")

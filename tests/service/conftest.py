"""A gateway in memory, with a clock that the test sets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import pytest

from gateway import packet
from gateway.bus.bus import Dismissal, Publication
from gateway.bus.memory import MemoryBus
from gateway.changes import CLIENT_PREFIX, Changes
from gateway.live.hub import Hub
from gateway.live.wheel import Wheel
from gateway.mending import Mending
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.removals import Removals
from gateway.service import Service, UploadLimits
from gateway.sweep import Sweep
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, ClientState, DeviceId, Status, VideoId, decode
from gateway.uploads import Uploads
from gateway.wakeups import PushOptions, Wakeups
from push.sender import Accepted, Outcome, Platform, Sender, Wakeup
from storage.cache import CachedDocuments
from storage.documents import Document, DocumentStore, Due, ScanPage
from storage.memory import MemoryDocuments, MemoryObjects
from storage.objects import ObjectInfo, ObjectsUnavailable
from tests.storage.caches import MemoryCache

START_S = 1_750_000_000.0
ALICE, BOB, CAROL = ClientId("alice"), ClientId("bob"), ClientId("carol")
PHONE, TABLET = DeviceId("phone"), DeviceId("tablet")


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Let them pass, and others do something."""
        self.now_s += seconds
        await asyncio.sleep(0)

    @property
    def now_ms(self) -> int:
        return round(self.now_s * 1000)


class Documents(DocumentStore):
    """A store that calls `before` ahead of each of its calls: to fail there, or to have another writer win."""

    def __init__(self, inner: MemoryDocuments) -> None:
        self.inner = inner
        self.before: Callable[[str, Sequence[str]], None] = _nothing
        self.after: Callable[[str, Sequence[str]], None] = _nothing

    def heal(self) -> None:
        self.before = self.after = _nothing

    async def load(self, keys: Sequence[str]) -> list[Document]:
        self.before("load", keys)
        loaded = await self.inner.load(keys)
        self.after("load", keys)
        return loaded

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        keys = [document.key for document in documents]
        self.before("commit", keys)
        written = await self.inner.commit(documents)
        self.after("commit", keys)
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        self.before("due", ())
        return await self.inner.due(before, limit)

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        self.before("scan", ())
        return await self.inner.scan(cursor=cursor, limit=limit, part=part, parts=parts)

    async def close(self) -> None:
        await self.inner.close()


def _nothing(method: str, keys: Sequence[str]) -> None:
    return


class Objects(MemoryObjects):
    """Objects whose deletion can be made to fail. `before` and `after`: as for documents."""

    down = False
    before: Callable[[str, Sequence[str]], None] = staticmethod(_nothing)
    after: Callable[[str, Sequence[str]], None] = staticmethod(_nothing)

    def heal(self) -> None:
        self.before = self.after = _nothing

    async def head(self, key: str) -> ObjectInfo | None:
        self.before("head", [key])
        found = await super().head(key)
        self.after("head", [key])
        return found

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        self.before("list", [prefix])
        async for key in super().list(prefix, after=after):
            yield key

    async def delete(self, keys: Sequence[str]) -> None:
        if self.down:
            raise ObjectsUnavailable("down")
        self.before("delete", keys)
        await super().delete(keys)
        self.after("delete", keys)


@dataclass
class Provider:
    """A push provider that answers what the test says, and keeps what it was sent."""

    answer: Callable[[Wakeup], Outcome] = lambda _: Accepted()
    sent: list[Wakeup] = field(default_factory=list)

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def send(self, wakeup: Wakeup) -> Outcome:
        self.sent.append(wakeup)
        for _ in range(20):
            await asyncio.sleep(0)  # others come in between, as they do while a provider answers
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.answer(wakeup)

    async def close(self) -> None:
        return


class Ears:
    """A process's connections, as the bus sees them: one device listens, and what it hears is kept."""

    def __init__(self) -> None:
        self.news: list[Publication] = []
        self.dismissals: list[Dismissal] = []

    def published(self, news: Publication) -> int:
        self.news.append(news)
        return 1

    def dismissed(self, dismissal: Dismissal) -> None:
        self.dismissals.append(dismissal)

    def missed(self, client_ids: Collection[ClientId]) -> None:
        return


class Gateway:
    """One process, and what an app would do with it."""

    def __init__(
        self,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        *,
        with_packet: bool = True,
        senders: Mapping[Platform, Sender] | None = None,
        cached: bool = False,
        recent: int = 0,
    ) -> None:
        self.clock = Clock()
        self.policy = policy
        self.metrics = Metrics()
        self.documents = Documents(MemoryDocuments(clock=self.clock))
        self.cache = MemoryCache(self.clock)
        cached_documents = CachedDocuments(self.documents, self.cache, prefix=CLIENT_PREFIX, clock=self.clock)
        self.objects = Objects(clock=self.clock)
        self.bus = MemoryBus()
        self.provider = Provider()
        self.removals = Removals(self.objects, self.metrics)
        self.changes = Changes(
            documents=cached_documents if cached else self.documents,
            bus=self.bus,
            removals=self.removals,
            policy=policy,
            metrics=self.metrics,
            clock=self.clock,
            recent=recent,
        )
        self.service = Service(self.changes, self.objects, UploadLimits())
        self.registry = Registry(self.changes)
        self.wakeups = Wakeups(
            changes=self.changes,
            service=self.service,
            registry=self.registry,
            senders=senders or {Platform.APNS: self.provider},
            options=PushOptions(with_packet=with_packet),
            metrics=self.metrics,
            monotonic=self.clock,
        )
        self.uploads = Uploads(
            changes=self.changes,
            service=self.service,
            objects=self.objects,
            metrics=self.metrics,
            sleep=self.clock.sleep,
        )
        self.sweep = self.another_sweep()
        self.wheel = Wheel(self.clock)
        self.hub = Hub(self.changes, self.bus, self.metrics, self.wheel)

    def another_sweep(self, *, rate: int = 0, sleep: Callable[[float], Awaitable[None]] | None = None) -> Sweep:
        """The sweep of another worker, or of this one after a restart."""
        return Sweep(
            changes=self.changes,
            uploads=self.uploads,
            mending=Mending(self.changes, self.registry),
            objects=self.objects,
            metrics=self.metrics,
            rate=rate,
            monotonic=self.clock,
            sleep=sleep or self.clock.sleep,
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds

    async def announce(self, sender: ClientId = ALICE, recipient: ClientId = BOB, *, put: bool = True) -> VideoRef:
        """A video that was announced, and uploaded where `put` says so."""
        video_id, upload = await self.service.announce(sender, recipient, size=4, content_type="video/mp4")
        ref = VideoRef(video_id, sender, recipient)
        if put:
            await self.put(ref, upload.url)
        return ref

    async def put(self, ref: VideoRef, url: str) -> None:
        grant = self.objects.authorize_upload(ref.object_key, dict(parse_qsl(urlsplit(url).query)))
        await self.objects.receive(grant, chunks())

    async def send(self, sender: ClientId = ALICE, recipient: ClientId = BOB) -> VideoRef:
        """A video in transit."""
        ref = await self.announce(sender, recipient)
        await self.service.confirm(ref)
        return ref

    async def register(self, client: ClientId = BOB, device: DeviceId = PHONE, token: str = "token") -> None:
        await self.registry.register(client, device, platform="apns", environment="production", token=token)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def state(self, client: ClientId) -> ClientState:
        [document] = await self.documents.inner.load([CLIENT_PREFIX + client])
        return decode(client, document.body)

    async def sent_status(self, ref: VideoRef) -> Status | None:
        found = (await self.state(ref.sender_id)).find_sent(ref.video_id)
        return found[1].status if found else None

    async def received_status(self, ref: VideoRef) -> Status | None:
        found = (await self.state(ref.recipient_id)).find_received(ref.video_id)
        return found[1].status if found else None

    async def stored(self) -> list[str]:
        return [key async for key in self.objects.list("")]

    async def packet(self, client: ClientId) -> bytes:
        return packet.encode(await self.state(client))

    async def due(self, client: ClientId) -> int | None:
        [document] = await self.documents.inner.load([CLIENT_PREFIX + client])
        return document.due


async def chunks() -> AsyncIterator[bytes]:
    yield b"data"


def ids(*refs: VideoRef) -> list[VideoId]:
    return [ref.video_id for ref in refs]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()

"""A phone: the client's core decides, and this carries it out, with as little as a phone can cost."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gateway.client import DownloadError, GatewayError, Packet, Record, Remedy, Result, Synced, UploadError
from gateway.client.core import Core
from gateway.client.delivery import Delivery
from gateway.client.messages import Announced
from gateway.client.record import Registration
from gateway.client.tasks import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Connect,
    Download,
    Leave,
    Op,
    Put,
    Register,
    Task,
    Tell,
)
from gateway.client.tasks import Answer as Outcome
from gateway.transit.state import ClientId, DeviceId, Status, VideoId
from scripts.loadtest.calls import CALL_S, Call, Caller, Http, location
from scripts.loadtest.connections import Answer, Exchange, Pool, Pools, path_of, request
from scripts.loadtest.line import Line
from scripts.loadtest.options import Kind, Refused
from scripts.loadtest.tally import Count, Fault, Tally
from scripts.loadtest.videos import Book, Video, sha256_of

DEVICE = "phone"
CONTENT_TYPE = "video/mp4"

VIEWED_S = (0.2, 2.0)
"""How long a user takes to look at a video that is there, at least and at most."""


@dataclass(slots=True)
class World:
    """What the phones of a process share. `failed` is told what makes it pointless to go on."""

    pools: Pools
    tally: Tally
    book: "Book[Phone]"
    rng: random.Random
    downloads: float
    failed: Callable[[str], None]


class Phone:
    """One phone with its app. `name`: of its client."""

    __slots__ = (
        "_alarm",
        "_exchanges",
        "_loop",
        "_over",
        "_stirred",
        "caller",
        "core",
        "kind",
        "line",
        "name",
        "record",
        "world",
    )

    def __init__(self, world: World, name: str, kind: Kind, token: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.world = world
        self.name = name
        self.kind = kind
        self.caller = Caller(world.pools.gateway.origin.authority, token, DEVICE)
        self.record = Record(ClientId(name), DeviceId(DEVICE))
        self.core = Core(self.record, clock=time.monotonic, jitter=world.rng.random)
        self.line = Line(self)
        self._exchanges: dict[Op, tuple[Task, Exchange]] = {}
        self._stirred = False
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None

    # --- What its user and its system do

    def start(self, registration: Registration | None) -> None:
        """The app is installed. `registration`: how it is woken."""
        if registration is not None:
            self.record.register(registration)
        self.core.foreground(active=self.kind.connected)
        self.stir()

    def send(self, video: "Video[Phone]") -> None:
        """Its user sends a video."""
        delivery = Delivery(video.key, video.size, CONTENT_TYPE, sha256_of(video))
        self.record.send(video.key, ClientId(video.recipient.name), delivery)
        self.stir()

    def pushed(self, packet: Packet | None) -> None:
        """A push is looked at."""
        if packet is not None:
            self.world.book.saw(self, packet, time.monotonic())
        self.core.pushed(packet)
        self.stir()

    def reopen(self) -> None:
        """Its user leaves the app, and opens it again."""
        self.core.foreground(active=False)
        self.core.foreground(active=True)
        self.stir()

    def _view(self, video_id: VideoId, due_s: float) -> None:
        self.world.book.reported(video_id, Status.VIEWED, due_s)
        self.record.viewed(video_id)
        self.stir()

    # --- What becomes of its network

    def lose_network(self, *, silently: bool) -> None:
        """It has no network any more. `silently`: as far as its socket goes, TCP is not told of that."""
        self.line.drop(silently=silently)
        for task, exchange in list(self._exchanges.values()):
            exchange.abandon()
            self.core.failed(task, GatewayError(None, None, "the network is gone"))
        self._exchanges.clear()
        self.core.network(online=False)
        self.stir()

    def find_network(self) -> None:
        """It has one again."""
        self.line.bury()
        self.core.network(online=True)
        self.stir()

    def end(self) -> None:
        """It is switched off."""
        self._over = True
        self.line.drop(silently=False)
        self.line.bury()
        for _, exchange in self._exchanges.values():
            exchange.abandon()
        self._exchanges.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    # --- The core

    def stir(self) -> None:
        """Something has happened: soon the core is asked what is to be done."""
        if not self._stirred:
            self._stirred = True
            self._loop.call_soon(self._drive)

    def _drive(self) -> None:
        self._stirred = False
        if self._over:
            return
        for action in self.core.next():
            self._begin(action)
        self.record.changed = False  # there is no disk
        if self._alarm is not None:
            self._alarm.cancel()
        at_s = self.core.next_s
        self._alarm = self._loop.call_later(max(0.0, at_s - time.monotonic()), self.stir) if at_s < math.inf else None

    def _begin(self, action: Action) -> None:
        match action:
            case Abandon(Connect() as task):
                self.line.abandon(task)
            case Abandon(Put()):
                pass  # the socket was faster than the answer, which is on its way: the connection is of further use
            case Abandon(task):
                if (begun := self._exchanges.pop(task.op, None)) is not None:
                    begun[1].abandon()
            case Acknowledge(version):
                self.line.acknowledge(version)
            case Connect():
                self.line.connect(action)
            case Tell():
                self.line.tell(action)
            case Put():
                self._put(action)
            case Leave():
                raise AssertionError("nobody logs out")
            case Download(video_id) if self.world.rng.random() >= self.world.downloads:
                self._loop.call_soon(self._downloaded, action, video_id)
            case _:
                self._call(action)

    # --- Calls

    def _call(self, task: Http) -> None:
        due_s = time.monotonic()
        if isinstance(task, Announce):
            video = self.world.book.of_key(task.key)
            if video is not None and video.video_id is None and self.kind is Kind.FOREGROUND:
                due_s = video.due_s  # others may have no network on purpose
        self._ask(task, self.caller(task, self.record.version), self.world.pools.gateway, due_s)

    def _ask(self, task: Task, call: Call, pool: Pool, due_s: float) -> None:
        self.world.tally.count(Count.ASKED)
        done = partial(self._asked, task, call, due_s)
        self._exchanges[task.op] = task, pool.ask(call.request, done, timeout_s=CALL_S + call.held_s)

    def _asked(self, task: Task, call: Call, due_s: float, answer: Answer | None) -> None:
        self._exchanges.pop(task.op, None)
        try:
            outcome = call.outcome(answer)
        except GatewayError as error:
            self.failed(task, call.kind, error)
            return
        self.world.tally.count(Count.SERVED)
        if not call.held_s:
            self.world.tally.took(call.kind, time.monotonic() - due_s)
        match task:
            case Download() if call.kind == "content":
                assert answer is not None
                self._fetch(task, location(answer))
            case Download(video_id):
                assert answer is not None
                self._fetched(task, video_id, answer.body)
            case _:
                self.answered(task, outcome)

    def answered(self, task: Task, outcome: Outcome) -> None:
        """A task went well."""
        now_s = time.monotonic()
        match outcome:
            case Synced(packet=packet) | (Packet() as packet):
                self.world.book.saw(self, packet, now_s)
                self.line.owes(packet.version)
            case Result(version=version):
                self.line.owes(version)
            case Announced(video_id=video_id) if isinstance(task, Announce):
                self.world.book.announced(task.key, video_id, now_s)
            case _:
                pass
        if isinstance(task, Register):
            self.core.registered(task, now_s)
        else:
            self.core.answered(task, outcome)
        self.stir()

    def failed(self, task: Task, kind: str, error: GatewayError) -> None:
        """A task failed; most are tried again."""
        why = " ".join([str(error.status or "no answer"), *([error.code] if error.code else [])])
        self.world.tally.fail(kind, why)
        self.core.failed(task, error)
        if isinstance(task, Announce) and error.remedy is Remedy.NONE:
            self.world.book.refused(task.key, why)
        elif error.remedy in {Remedy.NONE, Remedy.RENEW}:
            self.world.tally.fault(Fault.REFUSED, f"{kind} of {self.name}: {why}")
        self.stir()

    # --- Bytes

    def _put(self, task: Put) -> None:
        video = self.world.book.of_key(task.key)
        there = task.announced.upload
        body = video.body if video is not None else None
        if body is None:  # it was replaced before it was sent
            self._loop.call_soon(self._given_up, task)
            return
        pool = self._pool(there.url)
        if pool is None:
            return
        asked = request(there.method, path_of(there.url), pool.origin.authority, there.headers, body)
        self._ask(task, Call("upload", asked, lambda _: None, UploadError), pool, time.monotonic())

    def _given_up(self, task: Put) -> None:
        self.core.failed(task, OSError("its user has thought better of it"))
        self.stir()

    def _fetch(self, task: Download, url: str) -> None:
        pool = self._pool(url)
        if pool is not None:
            asked = request("GET", path_of(url), pool.origin.authority, {})
            self._ask(task, Call("download", asked, lambda _: None, DownloadError), pool, time.monotonic())

    def _fetched(self, task: Download, video_id: VideoId, body: bytes) -> None:
        video = self.world.book.of_id(video_id)
        if video is not None and body != video.body:
            self.world.tally.fault(Fault.WRONG, f"{self.name} was given other bytes than were uploaded for it")
        self._downloaded(task, video_id)

    def _downloaded(self, task: Download, video_id: VideoId) -> None:
        now_s = time.monotonic()
        self.world.book.reported(video_id, Status.DOWNLOADED, now_s)
        looks_s = self.world.rng.uniform(*VIEWED_S)
        self._loop.call_later(looks_s, self._view, video_id, now_s + looks_s)
        self.answered(task, None)

    def _pool(self, url: str) -> Pool | None:
        try:
            return self.world.pools.of(url)
        except Refused as refused:
            self.world.failed(f"a signed URL leads elsewhere: {refused}")
            return None

"""A device that never loses a status: what its core decides is carried out, what it remembers is stored before."""

import asyncio
import base64
import contextlib
import logging
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Self, assert_never

import orjson

from gateway.client.client import Client
from gateway.client.core import AGAIN_S, Core
from gateway.client.delivery import Delivery
from gateway.client.failures import GatewayError, SocketClosed
from gateway.client.fields import Fields
from gateway.client.live import Live
from gateway.client.messages import Packet, Push
from gateway.client.record import Change, Environment, Farewell, Platform, Received, Record, Registration, Sent
from gateway.client.store import Store
from gateway.client.tasks import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Answer,
    Connect,
    Delete,
    Download,
    Leave,
    Poll,
    Put,
    Register,
    Sync,
    Task,
    Tell,
)
from gateway.client.videos import Videos
from gateway.transit.state import ClientId, DeviceId, VideoId

PUSH_S = 25.0
"""How long a push may keep an app awake: iOS gives it 30 s."""

RENEW_S = 20.0
"""So long before its token expires a socket is given a new one, and not more often."""

REST_S = 1.0
"""After a record that could not be stored, before it is tried again."""

Watch = Callable[[str, int, int], None]
"""Told which video moves (a sent one's key, a received one's id), how many bytes have moved, and how many there are."""

log = logging.getLogger(__name__)


class Device:
    """One device of one account, from start to end: use it as a context manager.

    What a method that is awaited was told is stored when it returns, and happens sooner or later, whatever becomes of
    this process and of the network. `client`: names the account and the device; one that names none is for an app in
    which nobody is logged in, and only says what a log-out left to be said. `watch`: sees bytes move. `foreground`:
    whether the app is, at first. `clock`: seconds since the epoch.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        videos: Videos,
        *,
        watch: Watch | None = None,
        foreground: bool = True,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if client.client_id is not None and client.device_id is None:
            raise ValueError("this client does not say which device it speaks for")
        self._client = client
        self._store = store
        self._videos = videos
        self._watch = watch
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._record = Record(ClientId(""), DeviceId(""))
        self._core = Core(self._record, clock=self._loop.time, jitter=jitter)
        self._jitter = jitter
        self._foreground = foreground
        self._live: Live | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._stirred = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._stored: list[asyncio.Future[None]] = []
        self._pushes: list[asyncio.Future[None]] = []
        self._storing = False
        self._told = False
        self._news = asyncio.Event()
        self._round = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Go on where this device was. Raises OSError where the record cannot be read."""
        self._record = _read(await self._store.load())
        self._record.log_in(self._client.client_id, self._client.device_id)
        self._client.remembers(self._record.version)
        self._core = Core(self._record, clock=self._loop.time, jitter=self._jitter)
        self._core.foreground(active=self._foreground)
        self._driver = asyncio.create_task(self._drive())
        self._stir()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it. What is unsaid is said when it is opened again."""
        tasks = [task for task in (self._driver, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._alarm is not None:
            self._alarm.cancel()
        try:
            if self._record.changed or self._storing:
                await self._store.save(self._record.encode())
            _resolve(self._stored)
        finally:
            for future in (*self._stored, *self._pushes):
                future.cancel()
            await self._store.close()

    # --- What there is

    @property
    def version(self) -> int:
        """Of the packet that was applied last."""
        return self._record.version

    @property
    def sent(self) -> tuple[Sent, ...]:
        """The videos that this client sends or has sent, until they are over and that has been told."""
        return tuple(self._record.sent.values())

    @property
    def received(self) -> tuple[Received, ...]:
        """The videos that this client has received, until they are viewed or have ended."""
        return tuple(received for received in self._record.received.values() if not received.viewed)

    async def changes(self) -> AsyncIterator[Change]:
        """What changes, as it happens; of one video only the newest, where more came than was asked for.

        Nothing comes twice. What the app was told and had not taken in when it was killed, which it shows by asking for
        the next, comes again when it is started anew. RuntimeError for a second iteration at the same time.
        """
        if self._told:
            raise RuntimeError("the changes of this device are being told already")
        self._told = True
        try:
            while True:
                while self._record.changed or self._storing:
                    await self._kept()  # what is not stored may never have been
                self._news.clear()
                change = self._record.untold()
                if change is None:
                    await self._news.wait()
                    continue
                yield change
                self._record.told(change)
                await self._kept()
        finally:
            self._told = False

    async def settled(self) -> None:
        """Wait until the gateway has answered everything that this device has to say."""
        await self._until(lambda: self._settled)

    async def _until(self, holds: Callable[[], bool]) -> None:
        await self._kept()
        while not holds():
            self._round.clear()
            await self._round.wait()

    @property
    def _settled(self) -> bool:
        record = self._record
        delivered = all(video.delivery is None for video in record.sent.values())
        registered = record.registration is None or record.registration.answered_s is not None
        said = not any(record.reports()) and not any(record.unanswered_deletions())
        return delivered and registered and said and not record.farewells

    # --- What the user does

    async def send(self, source: str, recipient_id: str, *, content_type: str = "video/mp4") -> str:
        """Have a video sent; what it is called from now on. `source`: the path of its file, which stays as it is until
        the video is uploaded. Raises OSError where it cannot be read."""
        size, sha256 = await self._videos.measure(source)
        key = str(uuid.uuid4())
        self._record.send(key, ClientId(recipient_id), Delivery(source, size, content_type, sha256))
        await self._kept()
        return key

    async def delete(self, key: str) -> None:
        """Have a sent video deleted, in whatever state it is, and forget it; nothing happens where there is none."""
        self._record.delete(key)
        await self._kept()

    async def viewed(self, video_id: str) -> None:
        """The user has seen a received video. Its file is the app's to remove."""
        self._record.viewed(VideoId(video_id))
        await self._kept()

    # --- What the phone does

    async def register(self, platform: Platform, push_token: str, environment: Environment = "production") -> None:
        """Have this device woken with that token. An app says so at every start, as it is told the token: the gateway
        hears of it where it is new, or where that is a day ago."""
        new = Registration(platform, push_token, environment)
        old = self._record.registration
        fresh = old is not None and (old.answered_s is None or self._clock() < old.answered_s + AGAIN_S)
        if (
            old is None
            or not fresh
            or (old.platform, old.token, old.environment) != (platform, push_token, environment)
        ):
            self._record.register(new)
        await self._kept()

    async def log_out(self, *, token: str | None = None) -> None:
        """Forget everything of this account, and have the gateway told of what was unsaid and of the log-out: now, or
        whenever this store is opened next, by whichever account. `token`: what to say that with, else the one in use.
        """
        self._record.log_out(token or await self._client.token())
        await self._kept()

    async def end_account(self, *, token: str | None = None) -> None:
        """End the account at the gateway; else as `log_out`."""
        self._record.log_out(token or await self._client.token(), ends_account=True)
        await self._kept()

    def foreground(self, *, active: bool) -> None:
        """The app is in the foreground now, and holds a socket; or it is no more, and holds none."""
        self._core.foreground(active=active)
        self._stir()

    def network(self, *, online: bool) -> None:
        """The phone has a network (another one, perhaps), or has none. Who never says so has one."""
        self._core.network(online=online)
        self._stir()

    async def handle_push(self, payload: Mapping[str, object], *, within_s: float = PUSH_S) -> None:
        """A push arrived: what APNs calls its user info, or the data of an FCM message. Returns once the gateway has
        been asked and what is new has been fetched and said, as far as that went well, or after `within_s` seconds:
        the system may let the app sleep then."""
        if self._record.logged_out:
            return
        asked = self._loop.create_future()
        self._pushes.append(asked)
        self._core.pushed(_packet(payload))
        self._stir()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asked
                await self._until(lambda: self._core.quiet)

    # --- The driver

    async def _drive(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            actions = self._core.next()
            stored, self._stored = self._stored, []
            try:
                await self._keep()
            except BaseException:
                self._stored += stored  # it ends: they are looked after there
                raise
            for action in actions:
                self._begin(action)
            if not self._core.stale:
                stored, self._pushes = [*stored, *self._pushes], []  # a socket has brought what a call would
            _resolve(stored)
            self._set_alarm()
            self._news.set()
            self._round.set()

    async def _keep(self) -> None:
        """Store the record, if it has changed: nothing follows from it before that."""
        while self._record.changed:
            version, body = self._record.version, self._record.encode()
            self._record.changed = False
            self._storing = True
            try:
                await self._store.save(body)
            except OSError as error:
                self._record.changed = True
                log.warning("the record cannot be stored, and is tried again", extra={"error": str(error)})
                await asyncio.sleep(REST_S)
            else:
                self._client.remembers(version)
                self._storing = False
                return

    async def _kept(self) -> None:
        future = self._loop.create_future()
        self._stored.append(future)
        self._stir()
        await future

    def _stir(self) -> None:
        """Something has happened."""
        self._stirred.set()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        at_s = self._core.next_s
        self._alarm = self._loop.call_at(at_s, self._stir) if at_s < math.inf else None

    def _begin(self, action: Action) -> None:
        match action:
            case Abandon(task):
                if (running := self._running.get(id(task))) is not None:
                    running.cancel()
            case Acknowledge(version):
                # While it could not be stored the account may have logged out, and then it never was.
                if version <= self._client.version:
                    self._start(action, self._acknowledge(version))
            case Sync():
                pushes, self._pushes = self._pushes, []
                self._start(action, self._carry(action, pushes))
            case _:
                self._start(action, self._carry(action))

    def _start(self, action: Action, work: Coroutine[object, object, None]) -> None:
        running = self._running[id(action)] = asyncio.create_task(work)
        # The action is held as well: its id is its own for as long.
        running.add_done_callback(lambda _, action=action: self._running.pop(id(action)))  # type: ignore[misc]

    async def _carry(self, task: Task, waiting: Iterable[asyncio.Future[None]] = ()) -> None:
        """Carry a task out, and say what came of it."""
        try:
            answer = await self._carried(task)
        except SocketClosed as closed:
            if isinstance(task, Connect):
                self._core.closed(task, closed)
            else:
                self._core.failed(task, closed)
        except Exception as error:
            if not isinstance(error, GatewayError | OSError):
                log.warning("a task failed", extra={"task": task.op[0], "error": type(error).__name__})
            self._core.failed(task, error)
        else:
            if isinstance(task, Register):
                self._core.registered(task, self._clock())
            else:
                self._core.answered(task, answer)
        finally:
            _resolve(waiting)
            self._stir()

    async def _carried(self, task: Task) -> Answer:
        client = self._client
        match task:
            case Sync(reports):
                return await client.sync(reports)
            case Poll(version, wait_s):
                return await client.poll(version, wait_s or None)
            case Connect():
                await self._listen(task)
            case Tell(report):
                return await self._socket.tell(report)
            case Announce(_, recipient_id, delivery):
                size, content_type, sha256 = delivery.size, delivery.content_type, delivery.sha256
                return await client.announce(recipient_id, size=size, content_type=content_type, sha256=sha256)
            case Put(key, source, announced):
                await self._videos.upload(announced, source, self._progress(key))
            case Delete(video_id, recipient_id):
                return await client.delete(video_id, recipient_id)
            case Download(video_id):
                await self._download(video_id)
            case Register(new):
                await client.register(new.platform, new.token, new.environment)
            case Leave(farewell):
                await self._leave(farewell)
            case _:
                assert_never(task)
        return None

    async def _listen(self, task: Connect) -> None:
        async with self._client.live(min(task.version, self._client.version)) as live:
            self._live = live
            renewing = asyncio.create_task(self._renew(live))
            try:
                self._core.opened(task)
                self._stir()
                async for packet in live:
                    self._core.came(task, packet)
                    self._stir()
            finally:
                self._live = None
                renewing.cancel()
                await asyncio.wait([renewing])

    async def _renew(self, live: Live) -> None:
        """Hand a new token over before the socket's expires. Where that does not go well the socket ends with it, and
        the next one is opened with a new token."""
        with contextlib.suppress(Exception):
            token = await self._client.token()
            while (expires_s := expiry_s(token)) is not None:
                await asyncio.sleep(max(expires_s - self._clock() - RENEW_S, RENEW_S))
                new = await self._client.token(instead_of=token)
                if new == token:
                    return
                await live.renew(new)
                token = new

    @property
    def _socket(self) -> Live:
        if self._live is None:
            raise GatewayError(None, None, "the socket has just ended")
        return self._live

    async def _acknowledge(self, version: int) -> None:
        with contextlib.suppress(GatewayError):  # the socket has ended: the next one says it
            await self._socket.acknowledge(version)

    async def _download(self, video_id: VideoId) -> None:
        try:
            await self._videos.download(video_id, self._progress(video_id))
        finally:
            received = self._record.received.get(video_id)
            if received is None or not received.listed:
                await self._videos.discard(video_id)

    async def _leave(self, farewell: Farewell) -> None:
        client = self._client.speaking_for(farewell.client_id, farewell.device_id, farewell.token)
        if farewell.reports:
            with _final():
                synced = await client.sync(farewell.reports)
                for result in synced.results:
                    if result.error is not None:
                        with _final():
                            raise result.error
        for video_id, recipient_id in farewell.deletions:
            with _final():
                await client.delete(video_id, recipient_id)
        if farewell.ends_account:
            await client.end()
        else:
            await client.unregister()

    def _progress(self, what: str) -> Callable[[int, int], None]:
        def moved(so_far: int, size: int) -> None:
            if self._watch is not None:
                self._watch(what, so_far, size)

        return moved


@contextlib.contextmanager
def _final() -> Iterator[None]:
    """A refusal that is final ends the message, not those behind it."""
    try:
        yield
    except GatewayError as error:
        if error.retryable:
            raise


def _resolve(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


def expiry_s(token: str) -> float | None:
    """When a JWT expires, in seconds since the epoch (RFC 7519, section 4.1.4), as far as can be read without its key;
    None where it cannot."""
    try:
        claims = token.split(".")[1]
        return float(orjson.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _read(body: bytes | None) -> Record:
    """The record that was stored. One that cannot be read is as a new installation: what is in transit comes again."""
    if body is not None:
        try:
            return Record.decode(body)
        except ValueError:
            log.error("the record cannot be read, and a new one is begun")
    return Record(ClientId(""), DeviceId(""))


def _packet(payload: Mapping[str, object]) -> Packet | None:
    """The packet in a push, where it has one."""
    try:
        return Push.read(Fields(dict(payload))).packet
    except ValueError:
        return None  # whatever it is: whoever gets a push syncs

"""The bus over Redis: packets reach every process on every machine. A cluster shards its channels (Redis 7).

Redis is disposable. While it is away everything goes on, only packets for other processes wait: what could not be
published is kept, the newest for each client, and published when Redis is back; and whoever is served is loaded anew
after every gap (`Listener.missed`). Connections of this very process hear of a packet without Redis.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from itertools import compress, count
from typing import Any, NamedTuple

from gateway.bus import wire
from gateway.bus.bus import Dismissal, Kick, Listener, Publication
from gateway.bus.subscriber import Subscriber
from gateway.metrics import Metrics
from gateway.transit.state import ClientId
from storage.redis_client import RedisClient
from storage.redis_connection import RedisUnavailable
from storage.redis_url import Address, RedisUrl

TIMEOUT_S = 1.0
"""How long Redis may take to answer before it counts as away."""

SUBSCRIBE_S = 1.0
"""How long a connection waits for its subscription before it is served without one."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Before what failed is published again it waits a random time up to this: twice as long after each failure."""

TOGETHER = 256
"""Messages of one server that are published again at a time."""

MOST_KEPT = 10_000
"""Messages that are kept. Whoever would have heard of one beyond them loads its state when Redis is back anyway."""

MOST_KICKS = 1_000
"""Kicks that wait for a worker; the due time stands in for those beyond."""

KICK_LIVES_MS = 5_000
"""A kick that no worker took by then is forgotten: the device may be connected again."""

log = logging.getLogger(__name__)


class _Message(NamedTuple):
    """What is to be published: where, and what makes it."""

    channel: bytes
    version: int
    encode: Callable[[], bytes]


_Named = tuple[object, _Message]
"""A message, and what it is the newest of."""


def _packet(channel: bytes, news: Publication) -> _Message:
    return _Message(channel, news.version, lambda: wire.publication(news))


class RedisBus:
    """A `Bus` over the server or cluster at `url`. Made within a running loop; it connects by itself."""

    def __init__(self, url: RedisUrl, metrics: Metrics) -> None:
        metrics.bus_down.set_function(lambda: float(not self.connected))
        self._metrics = metrics
        self._url = url
        self._client = RedisClient(url, timeout_s=TIMEOUT_S)
        self._client.moved = self._rehome
        self._publish_command = "SPUBLISH" if url.cluster else "PUBLISH"
        # Channels are not of a database: processes that use another one must not hear them.
        prefix = f"{url.prefix}{url.db}:"
        self._clients = f"{prefix}c:".encode()
        self._named_from = len(self._clients)
        self._kicked_channel = f"{prefix}{{kicks}}".encode()
        self._kicks_key = f"{url.prefix}{{kicks}}".encode()
        self._topics = prefix.encode()
        self._beats = f"{prefix}beat:{secrets.token_hex(8)}:"
        self._listeners: dict[bytes, tuple[Listener, ...]] = {}
        self._homes: dict[bytes, Subscriber] = {}
        self._homeless: set[bytes] = set()
        self._subscribers: dict[Address, Subscriber] = {}
        self._kept: dict[object, _Message] = {}
        self._away: set[Address | None] = set()
        """Servers that do not answer; None: no map of the cluster can be had."""
        self._kicks: list[bytes] = []
        self._workers: list[Callable[[Kick], None]] = []
        self._hearing: dict[bytes, tuple[Callable[[bytes], None], ...]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._once_more: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether every server that this process needs to hear is connected."""
        return not self._homeless and all(subscriber.connected for subscriber in self._subscribers.values())

    # --- Publishing

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        heard = [self._deliver(news) for news in publications]
        elsewhere = await self._send(
            [(news.client_id, _packet(self._channel(news.client_id), news)) for news in publications]
        )
        return [here + there if there >= 0 else here or there for here, there in zip(heard, elsewhere, strict=True)]

    async def dismiss(self, dismissal: Dismissal) -> None:
        channel = self._channel(dismissal.client_id)
        for listener in self._listeners.get(channel, ()):
            listener.dismissed(dismissal)
        await self._send([(dismissal, _Message(channel, 0, lambda: wire.dismissal(dismissal)))])

    def _deliver(self, news: Publication) -> int:
        return sum(listener.published(news) for listener in self._listeners.get(self._channel(news.client_id), ()))

    async def _send(self, messages: Sequence[_Named]) -> list[int]:
        """To how many other processes each went; below 0: that is not known, and it is published again later."""
        there = [self._client.home(message.channel) not in self._away for _, message in messages]
        went = iter(await self._publish_now(list(compress(messages, there))))
        heard = [next(went) if is_there else -1 for is_there in there]
        for (name, message), number in zip(messages, heard, strict=True):
            if number < 0:
                self._keep(name, message)
        return heard

    async def _publish_now(self, messages: Sequence[_Named]) -> list[int]:
        """To how many other processes each went; below 0: Redis does not answer."""
        commands = (
            (message.channel, (self._publish_command, message.channel, message.encode())) for _, message in messages
        )
        try:
            answers = await self._client.run_all(commands)
        except RedisUnavailable:
            return [-1] * len(messages)
        return [self._elsewhere(message, heard) for (_, message), heard in zip(messages, answers, strict=True)]

    def _elsewhere(self, message: _Message, heard: int | RedisUnavailable) -> int:
        """Of those who heard, as Redis counts them, who are not this process."""
        if isinstance(heard, RedisUnavailable):
            return -1
        here = self._homes.get(message.channel)
        return max(heard - 1, 0) if here is not None and here.has(message.channel) else heard

    def _keep(self, name: object, message: _Message) -> None:
        """Have it published later, unless something newer of that name is to be."""
        known = self._kept.get(name)
        if known is None and len(self._kept) >= MOST_KEPT:
            return
        if known is None or known.version <= message.version:
            self._kept[name] = message
        self._metrics.bus_kept.inc()
        self._away.add(self._client.home(message.channel))
        self._start("publish again", self._publish_again)

    async def _publish_again(self) -> None:
        """Publish what is kept, until nothing is."""
        pause_s = FIRST_PAUSE_S
        while self._kept:
            await asyncio.sleep(random.uniform(0, pause_s))
            some = self._some()
            went = [entry for entry, heard in zip(some, await self._publish_now(some), strict=True) if heard >= 0]
            for name, message in went:
                self._has_gone(name, message)
            pause_s = FIRST_PAUSE_S if went else min(2 * pause_s, LONGEST_PAUSE_S)
        self._away.clear()

    def _some(self) -> list[_Named]:
        """What is kept, but not too much of it for one server."""
        taken: dict[Address | None, list[_Named]] = {}
        for name, message in self._kept.items():
            some = taken.setdefault(self._client.home(message.channel), [])
            if len(some) < TOGETHER:
                some.append((name, message))
        return [entry for some in taken.values() for entry in some]

    def _has_gone(self, name: object, message: _Message) -> None:
        if self._kept.get(name) is message:
            del self._kept[name]
        self._away.discard(self._client.home(message.channel))

    # --- Subscribing

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        channel = self._channel(client_id)
        listeners = self._listeners.get(channel, ())
        if listener not in listeners:
            self._listeners[channel] = (*listeners, listener)
        await self._join(channel)

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        channel = self._channel(client_id)
        left = tuple(other for other in self._listeners.get(channel, ()) if other is not listener)
        if left:
            self._listeners[channel] = left
        elif self._listeners.pop(channel, None) is not None:
            self._leave(channel)

    async def _join(self, channel: bytes) -> None:
        """Subscribe to `channel`; where that takes too long, without waiting for it."""
        try:
            async with asyncio.timeout(SUBSCRIBE_S):
                if await self._is_heard(channel):
                    return
        except TimeoutError:
            pass
        if (subscriber := self._homes.get(channel)) is not None:
            subscriber.doubt(channel)
        elif self._is_wanted(channel):
            self._homeless.add(channel)
            self._misplaced()

    async def _is_heard(self, channel: bytes) -> bool:
        if self._client.home(channel) is None:
            await self._client.refresh()
        address = self._client.home(channel)
        if address is None or not self._is_wanted(channel):
            return False
        subscriber = self._settle(channel, address)
        confirmed = subscriber.want(channel)
        if confirmed is not None:
            if subscriber.down:
                return False
            await confirmed
        return True

    def _is_wanted(self, channel: bytes) -> bool:
        return channel in self._listeners or channel in self._hearing or channel == self._kicked_channel

    def _leave(self, channel: bytes) -> None:
        self._homeless.discard(channel)
        subscriber = self._homes.pop(channel, None)
        if subscriber is not None:
            subscriber.drop(channel)

    def _settle(self, channel: bytes, address: Address) -> Subscriber:
        """The subscriber of the server that has `channel`."""
        self._homeless.discard(channel)
        subscriber = self._subscribers.get(address)
        if subscriber is None:
            subscriber = self._subscribers[address] = Subscriber(
                address,
                self._url,
                sharded=self._url.cluster,
                received=self._received,
                restored=self._restored,
                misplaced=self._misplaced,
                beat_channel=self._beat_channel(address),
                beat=lambda beat: self._client.run(beat, self._publish_command, beat, b""),
            )
        self._homes[channel] = subscriber
        return subscriber

    def _beat_channel(self, address: Address) -> bytes:
        """A channel of this process's own that is at this server."""
        channels = (f"{self._beats}{number}".encode() for number in count())
        return next(channel for channel in channels if self._client.home(channel) == address)

    def _misplaced(self) -> None:
        """A server is gone, or has given channels away: look where they are now."""
        if self._url.cluster:
            self._start("find the servers", self._find_servers)

    async def _find_servers(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            await self._client.refresh()
            self._rehome()
            if not self._homeless:
                return
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _rehome(self) -> None:
        """Hear each channel from the server that has it now."""
        for channel in [*self._homes, *self._homeless]:
            address, before = self._client.home(channel), self._homes.get(channel)
            if address is None or (before is not None and before.address == address):
                continue
            if before is not None:
                before.drop(channel)
            self._settle(channel, address).want(channel, missed=True)
        self._tidy()

    def _tidy(self) -> None:
        """Leave the servers at which nothing is heard any more, and keep the beats at theirs."""
        used = set(self._homes.values())
        for address, subscriber in list(self._subscribers.items()):
            if subscriber not in used:
                del self._subscribers[address]
                self._start(f"leave {address}", subscriber.close)
            elif self._client.home(subscriber.beat_channel) not in {None, address}:
                subscriber.change_beat(self._beat_channel(address))

    # --- What comes

    def _received(self, channel: bytes, message: bytes) -> None:
        listeners = self._listeners.get(channel)
        if listeners is None:
            self._received_besides(channel, message)
            return
        found = wire.read(channel[self._named_from :].decode(), message)  # type: ignore[arg-type]  # a call saved
        for listener in listeners:
            if isinstance(found, Publication):
                listener.published(found)
            elif found is not None:
                listener.dismissed(found)

    def _received_besides(self, channel: bytes, message: bytes) -> None:
        """What is no client's."""
        if channel == self._kicked_channel:
            self._start("take kicks", self._take_kicks)
        else:
            self._told(channel, message)

    def _told(self, channel: bytes, body: bytes) -> bool:
        """Tell this process; whether anybody here hears of it."""
        listeners = self._hearing.get(channel, ())
        for listener in listeners:
            listener(body)
        return bool(listeners)

    def _restored(self, channels: Sequence[bytes]) -> None:
        missed: dict[Listener, list[ClientId]] = {}
        for channel in channels:
            for listener in self._listeners.get(channel, ()):
                missed.setdefault(listener, []).append(ClientId(channel[len(self._clients) :].decode()))
        log.info("subscribed anew after a gap", extra={"channels": len(channels)})
        self._metrics.bus_gaps.inc(sum(map(len, missed.values())))
        for listener, client_ids in missed.items():
            listener.missed(client_ids)

    # --- Workers

    async def kick(self, kick: Kick) -> None:
        if self._workers:
            for worker in self._workers:
                worker(kick)
            return
        if len(self._kicks) < MOST_KICKS:
            self._kicks.append(wire.kick(kick))
        self._start("kick", self._send_kicks)

    async def _send_kicks(self) -> None:
        """Put the kicks where a worker takes them, and say so: each is taken by one."""
        key, channel = self._kicks_key, self._kicked_channel
        while self._kicks:
            kicks, self._kicks = self._kicks, []
            try:
                await asyncio.gather(
                    self._client.run(key, "LPUSH", key, *kicks),
                    self._client.run(key, "LTRIM", key, 0, MOST_KICKS - 1),
                    self._client.run(key, "PEXPIRE", key, KICK_LIVES_MS),
                    self._client.run(channel, self._publish_command, channel, b""),
                )
            except RedisUnavailable:
                log.debug("kicks are lost: the due times stand in", extra={"kicks": len(kicks)})

    def on_kick(self, listener: Callable[[Kick], None]) -> None:
        self._workers.append(listener)
        self._start("hear kicks", lambda: self._join(self._kicked_channel))

    async def _take_kicks(self) -> None:
        try:
            while taken := await self._client.run(self._kicks_key, "RPOP", self._kicks_key, TOGETHER):
                for message in taken:
                    kick = wire.read_kick(message)
                    for worker in self._workers:
                        worker(kick)
        except RedisUnavailable:
            log.debug("no kicks can be had: the due times stand in")

    # --- Topics

    async def tell(self, topic: str, body: bytes) -> int:
        channel = self._topics + topic.encode()
        try:
            return int(await self._client.run(channel, self._publish_command, channel, body))
        except RedisUnavailable:
            log.debug("only this process is told", extra={"topic": topic})
            return self._told(channel, body)

    async def hear(self, topic: str, listener: Callable[[bytes], None]) -> None:
        channel = self._topics + topic.encode()
        self._hearing[channel] = (*self._hearing.get(channel, ()), listener)
        await self._join(channel)

    def hear_no_more(self, topic: str, listener: Callable[[bytes], None]) -> None:
        channel = self._topics + topic.encode()
        left = tuple(other for other in self._hearing.get(channel, ()) if other != listener)
        if left:
            self._hearing[channel] = left
        elif self._hearing.pop(channel, None) is not None:
            self._leave(channel)

    # --- Tasks

    def _start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have this done; while it is being done, once more after that: it may be past what is new."""
        if self._closed:
            return
        if name in self._tasks:
            self._once_more[name] = work
            return
        task = self._tasks[name] = asyncio.create_task(work(), name=name)
        task.add_done_callback(lambda _: self._ended(name, task))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the bus failed", exc_info=error, extra={"task": name})
        if (work := self._once_more.pop(name, None)) is not None:
            self._start(name, work)

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(subscriber.close() for subscriber in self._subscribers.values()))
        await self._client.close()

    def _channel(self, client_id: ClientId) -> bytes:
        return self._clients + client_id.encode()

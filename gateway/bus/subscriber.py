"""A connection to one Redis server that only subscribes: it is read by hiredis, without a task or a queue.

What is asked for in one turn of the event loop goes out in one write. A server that has frozen keeps its connections,
so one that is silent is left: it is pinged every second, and a beat is published through it, which must come back.
After every new connection all channels are subscribed again, and `restored` says which: what was published meanwhile
is lost.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import hiredis

from storage.redis_connection import tls_context
from storage.redis_url import Address, RedisUrl

BEAT_S = 1.0
"""How often the connection is looked after."""

SILENT_S = 3.0
"""A server that says nothing for so long, pinged every second, is left; so is one that loses a beat for so long."""

CONNECT_S = 2.0
"""How long connecting may take."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Before it connects again it waits a random time up to this: twice as long after each failure, up to the longest."""

_ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")
"""What a server says of a channel that it does not have now."""

_CONFIRMED = {b"subscribe": True, b"ssubscribe": True, b"unsubscribe": False, b"sunsubscribe": False}

log = logging.getLogger(__name__)


class _Channel:
    """A channel that is wanted."""

    __slots__ = ("confirmed", "missed", "waiting")

    def __init__(self) -> None:
        self.confirmed = False
        self.missed = False
        """Whether something may have been lost by the time it is confirmed."""
        self.waiting: list[asyncio.Future[None]] = []


class Subscriber:
    """What one server publishes on the channels that are wanted.

    `received(channel, message)` is called with each message, in the event loop; `restored(channels)` with those that
    are subscribed again after a time in which messages may have been lost; `misplaced()` where the server says that it
    does not have a channel, or is gone. `beat(channel)` publishes on a channel of this subscriber's own, and raises
    where that fails. `sharded`: the server is one of a cluster.
    """

    def __init__(
        self,
        address: Address,
        url: RedisUrl,
        *,
        sharded: bool,
        received: Callable[[bytes, bytes], None],
        restored: Callable[[Sequence[bytes]], None],
        misplaced: Callable[[], None],
        beat_channel: bytes,
        beat: Callable[[bytes], Awaitable[object]],
    ) -> None:
        self.address = address
        self.connected = False
        self.down = False
        """Whether connecting has failed, or the connection was lost, and there is none since."""
        self._url = url
        self._tls = tls_context(url)
        self._subscribe, self._unsubscribe = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE") if sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        )
        self._sharded = sharded
        self._received = received
        self._restored = restored
        self._misplaced = misplaced
        self._beat_channel = beat_channel
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[bytes, _Channel] = {beat_channel: _Channel()}
        self._told: set[bytes] = set()
        self._touched: dict[bytes, None] = {}
        self._due: dict[bytes, int] = {}
        self._expected: deque[tuple[bool, bytes]] = deque()
        self._again: list[bytes] = []
        self._strays: set[bytes] = set()
        self._link: _Link | None = None
        self._heard_s = 0.0
        self._beats_s: float | None = None
        self._failures = 0
        self._beating: asyncio.Task[None] | None = None
        self._running = asyncio.create_task(self._run(), name=f"subscriber {address}")

    async def close(self) -> None:
        """End the connection; nobody is told anything more."""
        self._running.cancel()
        await asyncio.wait([self._running])
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    # --- Channels

    def want(self, channel: bytes, *, missed: bool = False) -> "asyncio.Future[None] | None":
        """Subscribe to `channel`; what is done when the server has confirmed it, or None where it has already.

        `missed`: messages may have been lost, so `restored` is to name it.
        """
        found = self._wanted.get(channel)
        if found is None:
            found = self._wanted[channel] = _Channel()
            self._touch(channel)
        if found.confirmed:
            return None
        found.missed = found.missed or missed
        confirmed = self._loop.create_future()
        found.waiting.append(confirmed)
        return confirmed

    def doubt(self, channel: bytes) -> None:
        """Nobody waits for the confirmation any longer: `restored` is to name this channel when it comes."""
        found = self._wanted.get(channel)
        if found is not None and not found.confirmed:
            found.missed = True

    def drop(self, channel: bytes) -> None:
        """`channel` is no longer wanted."""
        found = self._wanted.pop(channel, None)
        if found is not None:
            self._settle(found)
            self._touch(channel)

    def has(self, channel: bytes) -> bool:
        """Whether the server has confirmed that it is subscribed."""
        found = self._wanted.get(channel)
        return found is not None and found.confirmed

    def _touch(self, channel: bytes) -> None:
        if not self._touched and self.connected:
            self._loop.call_soon(self._flush)
        self._touched[channel] = None

    def _flush(self) -> None:
        """Tell the server what has changed since the last time."""
        touched, self._touched = self._touched, {}
        link = self._link
        if link is None or not self.connected:
            return
        on = [channel for channel in touched if channel in self._wanted and channel not in self._told]
        off = [channel for channel in touched if channel not in self._wanted and channel in self._told]
        self._told.update(on)
        self._told.difference_update(off)
        for channel in on:
            self._due[channel] = self._due.get(channel, 0) + 1
        for channel in touched:
            if channel in self._told and channel not in self._due:
                self._sure(channel)  # it was let go of and wanted again in one turn
        self._expected.extend((False, channel) for channel in off)
        self._expected.extend((True, channel) for channel in on)
        link.write(self._commands(self._unsubscribe, off) + self._commands(self._subscribe, on))

    def _commands(self, name: bytes, channels: Sequence[bytes]) -> bytes:
        """One command for all; in a cluster one for each, since their slots differ."""
        if not channels:
            return b""
        if self._sharded:
            return b"".join(_packed(name, channel) for channel in channels)
        return _packed(name, *channels)

    @staticmethod
    def _settle(channel: _Channel) -> None:
        waiting, channel.waiting = channel.waiting, []
        for confirmed in waiting:
            if not confirmed.done():
                confirmed.set_result(None)

    @property
    def beat_channel(self) -> bytes:
        """Where its beats are published."""
        return self._beat_channel

    def change_beat(self, channel: bytes) -> None:
        """Have the beats published there from now on."""
        self.drop(self._beat_channel)
        self._beat_channel, self._beats_s = channel, None
        self.want(channel)

    # --- What the server says

    def data_came(self, replies: Iterable[Any]) -> None:
        """All that has arrived: called by the connection."""
        self._heard_s = self._loop.time()
        received, beat_channel = self._received, self._beat_channel
        for reply in replies:
            if isinstance(reply, list) and len(reply) == 3:
                kind, channel, message = reply
                if kind == b"message" or kind == b"smessage":  # noqa: PLR1714 - a set would hash it first
                    if channel == beat_channel:
                        self._beats_s = None
                    else:
                        received(channel, message)
                elif (on := _CONFIRMED.get(kind)) is not None:
                    self._confirmed(channel, on=on)
            elif isinstance(reply, hiredis.ReplyError):
                self._refused(str(reply))
        if self._again:
            again, self._again = self._again, []
            self._restored(again)

    def _confirmed(self, channel: bytes, *, on: bool) -> None:
        ours = bool(self._expected) and self._expected[0] == (on, channel)
        if ours:
            self._expected.popleft()
        if on:
            left = self._due.get(channel, 1) - 1
            if left:
                self._due[channel] = left
            else:
                self._due.pop(channel, None)
                self._sure(channel)
        elif not ours:
            self._lost(channel)

    def _sure(self, channel: bytes) -> None:
        found = self._wanted.get(channel)
        if found is None or channel not in self._told:
            return
        found.confirmed = True
        self._settle(found)
        if found.missed:
            found.missed = False
            if channel != self._beat_channel:
                self._again.append(channel)

    def _refused(self, reason: str) -> None:
        """A command failed: in a cluster the order of the replies says for which channel. Anything else is about the
        connection: a wrong password, a channel that is forbidden, a server that is loading its data."""
        if not self._expected or not self._sharded or not reason.startswith(_ELSEWHERE):
            log.warning("Redis refuses a subscriber", extra={"address": str(self.address), "error": reason})
            if self._link is not None:
                self._link.abort()
            return
        on, channel = self._expected.popleft()
        if on:
            self._due.pop(channel, None)
            self._lost(channel)

    def _lost(self, channel: bytes) -> None:
        """The server does not have this channel, or no longer: it is asked for again within a second, and whoever
        knows where else it could be is told."""
        self._told.discard(channel)
        found = self._wanted.get(channel)
        if found is not None:
            found.confirmed = False
            found.missed = True
            self._strays.add(channel)
            self._misplaced()

    # --- The connection

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._connect()
                    await self._watch()
                except (OSError, ValueError) as error:  # ValueError: a name that is no host's
                    log.warning(
                        "the connection to Redis is lost", extra={"address": str(self.address), "error": str(error)}
                    )
                self._disconnected()
                pause_s = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
                self._failures += 1
                self._misplaced()
                await asyncio.sleep(random.uniform(0, pause_s))
        finally:
            self._disconnected()

    async def _connect(self) -> None:
        async with asyncio.timeout(CONNECT_S):
            _, link = await self._loop.create_connection(lambda: _Link(self), *self.address, ssl=self._tls)
        self._link = link
        self._heard_s = self._loop.time()
        if self._url.password is not None:
            link.write(_packed(b"AUTH", *([self._url.user] if self._url.user else []), self._url.password))
        self.connected, self.down = True, False
        self._touched = dict.fromkeys(self._wanted)
        self._flush()

    async def _watch(self) -> None:
        """Look after the connection until it is gone. Raises TimeoutError where the server is silent."""
        link = self._link
        while link is not None and not link.lost.done():
            await asyncio.wait([link.lost], timeout=BEAT_S * random.uniform(0.9, 1.1))
            now_s = self._loop.time()
            if now_s - self._heard_s > SILENT_S:
                raise TimeoutError("it is silent")
            if self._beats_s is not None and now_s - self._beats_s > SILENT_S:
                raise TimeoutError("what is published through it does not arrive")
            if now_s - self._heard_s < BEAT_S:
                self._failures = 0
            link.write(_packed(b"PING"))
            self._touched |= dict.fromkeys(self._strays)
            self._strays.clear()
            self._flush()
            self._start_beat()
        if link is not None:
            link.lost.result()

    def _start_beat(self) -> None:
        under_way = self._beating is not None and not self._beating.done()
        if self._beats_s is None and not under_way and self.has(self._beat_channel):
            self._beating = asyncio.create_task(self._send_beat())

    async def _send_beat(self) -> None:
        """Publish a beat. Where that fails nothing is known of this connection."""
        sent_s = self._loop.time()
        self._beats_s = sent_s
        try:
            await self._beat(self._beat_channel)
        except Exception as error:
            log.debug("no beat could be published", extra={"address": str(self.address), "error": str(error)})
            self._beats_s = None

    def _disconnected(self) -> None:
        link, self._link = self._link, None
        self.connected, self.down = False, True
        if link is not None:
            link.abort()
        self._told.clear()
        self._due.clear()
        self._expected.clear()
        self._touched.clear()
        self._strays.clear()
        self._beats_s = None
        for channel in self._wanted.values():
            channel.confirmed = False
            channel.missed = True
            self._settle(channel)  # nobody is kept waiting: `restored` tells them


class _Link(asyncio.Protocol):
    """A connection: bytes in, replies out."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._subscriber = subscriber
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    def write(self, data: bytes) -> None:
        """Send this, unless the connection is gone."""
        if data and self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._subscriber.data_came(iter(self._reader.gets, False))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)


def _packed(*words: bytes | str) -> bytes:
    return cast("bytes", hiredis.pack_command(words))  # type: ignore[arg-type]

"""The connected devices of this process: who gets which client's packets, over a socket or a poll that is held."""

import asyncio
import logging
import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

from gateway import packet
from gateway.bus.bus import Bus, Cause, Dismissal, Kick, Publication
from gateway.changes import Changes
from gateway.errors import GatewayError, RateLimited, Unavailable
from gateway.journal import Event
from gateway.live.frames import text_frame
from gateway.live.wheel import Wheel
from gateway.metrics import Metrics
from gateway.transit import devices
from gateway.transit.state import ClientId, ClientState, DeviceId, UnreadableDocument

HELD_PER_CLIENT = 16
"""Polls that one client may have held at a time in one process: two for each device it can register."""

SOCKETS_PER_CLIENT = 16
"""Sockets that one client may have open at a time in one process, each of another device."""

CHECK_S = 300.0
"""How often a client's version is compared with the store's: a publication that was lost has no other witness."""

CHECKED_TOGETHER, CHECK_PAUSE_S = 128, 0.05
"""After a gap in the bus every process loads all whom it serves: so many at a time, and so long apart (2,500 a second),
that calls and other packets pass between them."""

CHECK_AGAIN_S = 1.0
"""How soon it is tried again where the store does not answer."""

DRAIN_STEP_S = 0.1
DRAIN_LEAST = 50
"""A process that ends closes sockets this often, and at least so many at a time."""

DRAIN_PART = 0.8
"""The part of the drain after which the last socket has been told; the rest is for those that are slow to go."""

SENT_BACK_MS = 5_000
"""Apps whose sockets the operator closes are told to come back after a random time of up to this."""

_RANK_BITS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Packet:
    """An info packet as it goes out: its version and its bytes."""

    version: int
    body: bytes


class Socket(Protocol):
    """An open socket of a device, as the hub sees it. Nothing here blocks or raises."""

    device_id: DeviceId
    rank: int
    """Of two sockets of one device the one with the higher rank stays."""

    @property
    def version(self) -> int:
        """Of the newest packet that it was offered."""
        ...

    @property
    def acked(self) -> int:
        """The newest version that it acknowledged, as far as that mattered (0: none)."""
        ...

    @property
    def opened_at(self) -> int:
        """When it opened, in ms since the epoch; 0 where it is only about to."""
        ...

    def offer(self, version: int, frame: bytes, asks: bool) -> bool:
        """Send this packet, whose acknowledgement matters if it `asks`, unless it is not newer; whether another that
        waited was dropped for it."""
        ...

    def dismiss(self, cause: Cause) -> None:
        """End it."""
        ...

    def restart(self, retry_ms: int) -> None:
        """End it once what it asked for is answered: the process ends, and the app comes back after `retry_ms`."""
        ...

    def abort(self) -> None:
        """Cut it off."""
        ...


class _Audience:
    """Who in this process waits for one client's packets. The wheel gives it the turn to compare versions."""

    __slots__ = ("_check_at_s", "_hub", "client_id", "polls", "slot", "sockets")

    def __init__(self, hub: "Hub", client_id: ClientId, check_at_s: float) -> None:
        self.client_id = client_id
        self.sockets: tuple[Socket, ...] = ()
        self.polls: tuple[_Poll, ...] = ()
        self.slot = -1
        self._hub = hub
        self._check_at_s = check_at_s

    def turn(self, now_s: float) -> float:
        if now_s >= self._check_at_s:
            self._check_at_s = now_s + CHECK_S
            self._hub.doubt(self.client_id)
        return self._check_at_s - now_s


class _Poll:
    """A poll that is held: since when (ms), by which device, if it says so, and until what is newer than `version`."""

    __slots__ = ("arrived", "device_id", "since", "version")

    def __init__(self, version: int, device_id: DeviceId | None, since: int) -> None:
        self.version = version
        self.since = since
        self.device_id = device_id
        self.arrived: asyncio.Future[Packet | None] = asyncio.get_running_loop().create_future()

    def answer(self, found: Packet | None) -> None:
        if not self.arrived.done():
            self.arrived.set_result(found)


class Connected(NamedTuple):
    """A device that waits for its client's packets: over a socket (since it opened), or by a poll that is held. Times
    are ms since the epoch; `version`: what it has been offered, or says that it has; `acked` as of sockets."""

    by_socket: bool
    device_id: DeviceId | None
    since: int
    version: int
    acked: int


class Hub:
    """Who in this process waits for which client's packets: a `Listener` of the bus."""

    def __init__(self, changes: Changes, bus: Bus, metrics: Metrics, wheel: Wheel) -> None:
        self.sockets = 0
        """How many are open or about to be."""
        self._changes = changes
        self._bus = bus
        self._metrics = metrics
        self._packets = metrics.packets
        self._took = metrics.packet_seconds
        self._clock = changes.clock
        self._wheel = wheel
        self._audiences: dict[ClientId, _Audience] = {}
        self._doubted: dict[ClientId, None] = {}
        self._doubts = asyncio.Event()
        self._closing = False
        self._rank = 0

    # --- What the bus brings

    def published(self, news: Publication) -> int:
        """Pass a packet on; to how many devices."""
        audience = self._audiences.get(news.client_id)
        if audience is None:
            return 0
        version, frame = news.version, b""
        for socket in audience.sockets:
            if socket.version < version:
                frame = frame or text_frame(news.packet)
                self._packets.count += 1
                if socket.offer(version, frame, news.asks):
                    self._metrics.packets_skipped.count += 1
        if frame:
            self._took.observe(self._clock() * 1000 - version)  # a version is the time of the change
        heard = len(audience.sockets)
        if not audience.polls:
            return heard
        for poll in audience.polls:
            heard += poll.device_id is not None
            if poll.version < version:
                poll.answer(Packet(version, news.packet))
        return heard

    def dismissed(self, dismissal: Dismissal) -> None:
        """End the connections that are meant, of those that this process has."""
        audience = self._audiences.get(dismissal.client_id)
        if audience is None:
            return
        displaced = dismissal.cause is Cause.DISPLACED
        for socket in audience.sockets:
            if dismissal.device_id in {None, socket.device_id} and (not displaced or socket.rank < dismissal.rank):
                _end(socket, dismissal.cause)
        if not displaced:
            for poll in audience.polls:
                if dismissal.device_id in {None, poll.device_id}:
                    poll.answer(None)

    def missed(self, client_ids: Collection[ClientId]) -> None:
        """Packets for these clients may have been lost: load their states, soon but not all at once."""
        for client_id in client_ids:
            self.doubt(client_id)

    # --- Sockets

    def rank(self) -> int:
        """A rank above that of every socket that joined before through this process; between two processes the clocks
        decide, and within a millisecond chance does."""
        self._rank = max(self._rank + 1, self._changes.now() << _RANK_BITS | random.getrandbits(_RANK_BITS))
        return self._rank

    async def join(self, client_id: ClientId, socket: Socket) -> None:
        """From now on `socket` is offered all of the client's packets. Load after this: nothing is missed then.

        Raises RateLimited where the client has too many, and Unavailable at the end. Whoever joined, or tried to,
        leaves.
        """
        if self._closing:
            raise Unavailable("this process is about to end")
        audience = self._audience(client_id)
        others = {other.device_id for other in audience.sockets} - {socket.device_id}
        audience.sockets = (*audience.sockets, socket)
        self.sockets += 1
        if len(others) >= SOCKETS_PER_CLIENT:
            raise RateLimited("too many sockets are open for this client already", retry_after_s=5)
        await self._bus.subscribe(client_id, self)

    def leave(self, client_id: ClientId, socket: Socket) -> None:
        """`socket` is offered nothing more; nothing happens where it has not joined."""
        audience = self._audiences.get(client_id)
        if audience is not None and socket in audience.sockets:
            audience.sockets = tuple(other for other in audience.sockets if other is not socket)
            self.sockets -= 1
            self._tidy(audience)

    async def displace(self, client_id: ClientId, socket: Socket) -> None:
        """The device's other sockets, through whichever process, end in favour of this one."""
        await self._bus.dismiss(Dismissal(client_id, socket.device_id, Cause.DISPLACED, socket.rank))

    async def log_out(self, client_id: ClientId, device_id: DeviceId | None = None) -> None:
        """A device has logged out, or, where none is named, the client has ended: its connections end, wherever."""
        await self._bus.dismiss(Dismissal(client_id, device_id, Cause.LOGGED_OUT))

    async def send_back(self, client_id: ClientId, device_id: DeviceId | None = None) -> None:
        """The client's connections end, wherever, or those of one device; its apps come back soon."""
        await self._bus.dismiss(Dismissal(client_id, device_id, Cause.SENT_BACK))

    async def lost(self, client_id: ClientId, device_id: DeviceId) -> None:
        """A device's socket has ended before it acknowledged the news: have it woken, unless another is open here."""
        audience = self._audiences.get(client_id)
        if not (audience and any(one.device_id == device_id for one in audience.sockets)):
            await self._bus.kick(Kick(client_id, device_id))

    # --- Polls that are held

    async def newer(
        self, client_id: ClientId, version: int, *, wait_s: float, device_id: DeviceId | None
    ) -> Packet | None:
        """The client's packet as soon as it is newer than `version`, or None after `wait_s` seconds or at the end.

        A poll that names its device counts as a live socket of it. Subscribes, then loads: nothing
        published in between is missed. Raises RateLimited where the client has too many polls held already.
        """
        audience = self._audience(client_id)
        if len(audience.polls) >= HELD_PER_CLIENT:
            raise RateLimited("too many polls are held for this client already", retry_after_s=5)
        poll = _Poll(version, device_id, self._changes.now())
        audience.polls = (*audience.polls, poll)
        self._metrics.held_polls.inc()
        try:
            await self._bus.subscribe(client_id, self)
            state = await self._changes.load(client_id)
            if state.version > version:
                return Packet(state.version, packet.encode(state))
            if self._closing:
                return None
            async with asyncio.timeout(wait_s):
                return await poll.arrived
        except TimeoutError:
            return None
        finally:
            self._metrics.held_polls.dec()
            audience.polls = tuple(other for other in audience.polls if other is not poll)
            self._tidy(audience)

    # --- Audiences

    def connected(self, client_id: ClientId) -> list[Connected]:
        """The client's devices that wait for packets in this process."""
        audience = self._audiences.get(client_id)
        if audience is None:
            return []
        return [
            *(Connected(True, one.device_id, one.opened_at, one.version, one.acked) for one in audience.sockets),
            *(Connected(False, poll.device_id, poll.since, poll.version, 0) for poll in audience.polls),
        ]

    def _audience(self, client_id: ClientId) -> _Audience:
        audience = self._audiences.get(client_id)
        if audience is None:
            # The first time at random: not all that came at once are to be compared at once.
            delay_s = CHECK_S * random.uniform(0.5, 1)
            audience = self._audiences[client_id] = _Audience(self, client_id, self._wheel.now_s() + delay_s)
            self._wheel.schedule(audience, delay_s)
        return audience

    def _tidy(self, audience: _Audience) -> None:
        """Hear no more of a client of whom nobody is connected."""
        if not (audience.sockets or audience.polls):
            self._wheel.cancel(audience)
            self._audiences.pop(audience.client_id, None)
            self._bus.unsubscribe(audience.client_id, self)

    # --- Comparing versions

    def doubt(self, client_id: ClientId) -> None:
        """A publication for this client may have been lost: compare its version with the store's soon."""
        self._doubted[client_id] = None
        self._doubts.set()

    async def run(self) -> None:
        """Compare the versions of those in doubt, until cancelled."""
        while True:
            await self._doubts.wait()
            self._doubts.clear()
            while self._doubted:
                some = list(islice(self._doubted, CHECKED_TOGETHER))
                for client_id in some:
                    del self._doubted[client_id]
                if not await self.compare([client_id for client_id in some if client_id in self._audiences]):
                    self._doubted |= dict.fromkeys(some)
                    await asyncio.sleep(CHECK_AGAIN_S)
                elif self._doubted:
                    await asyncio.sleep(CHECK_PAUSE_S)

    async def compare(self, client_ids: list[ClientId]) -> bool:
        """Whoever has an older packet than the store gets that one. Whether the store answered."""
        try:
            states = await self._changes.load_all(client_ids)
        except GatewayError as error:
            if isinstance(error.__cause__, UnreadableDocument) and len(client_ids) > 1:
                # One that is damaged must not hide the others.
                return all([await self.compare([client_id]) for client_id in client_ids])
            log.warning("versions could not be compared", extra={"clients": len(client_ids), "error": error.detail})
            return isinstance(error.__cause__, UnreadableDocument)
        for state in states:
            audience = self._audiences.get(state.client_id)
            if audience is not None and any(socket.version < state.version for socket in audience.sockets):
                self._metrics.packets_late.inc()
                self._changes.journal.note(state.client_id, Event.LATE, state.version)
            self.published(self.publication(state))
        return True

    def publication(self, state: ClientState) -> Publication:
        """What would be published of this state."""
        asks = devices.asks(state, self._changes.policy)
        return Publication(state.client_id, state.version, asks=asks, encode=partial(packet.encode, state))

    # --- The end

    def close(self) -> None:
        """Answer every poll that is held, and let no socket join: the process ends."""
        self._closing = True
        for audience in self._audiences.values():
            for poll in audience.polls:
                poll.answer(None)

    async def drain(self, within_s: float, *, most_retry_ms: int) -> None:
        """Have the sockets closed, in batches spread over `within_s`; few of them, at once. Cancel it to have no more
        patience: `abort` cuts off those that are left."""
        sockets = list(self._sockets())
        random.shuffle(sockets)
        size = max(DRAIN_LEAST, math.ceil(len(sockets) * DRAIN_STEP_S / max(within_s * DRAIN_PART, DRAIN_STEP_S)))
        for start in range(0, len(sockets), size):
            for socket in sockets[start : start + size]:
                socket.restart(random.randint(0, most_retry_ms))
            await asyncio.sleep(DRAIN_STEP_S)
        while self.sockets:  # noqa: ASYNC110 - it is the end: nothing is won by an event
            await asyncio.sleep(DRAIN_STEP_S)

    def abort(self) -> None:
        """Cut off the sockets that are left."""
        for socket in list(self._sockets()):
            socket.abort()

    def _sockets(self) -> Iterator[Socket]:
        return (socket for audience in self._audiences.values() for socket in audience.sockets)


def _end(socket: Socket, cause: Cause) -> None:
    if cause is Cause.SENT_BACK:
        socket.restart(random.randint(0, SENT_BACK_MS))
    else:
        socket.dismiss(cause)

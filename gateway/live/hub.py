"""The connected devices of this process: polls that are held until there is something newer."""

import asyncio
from dataclasses import dataclass

from gateway import packet
from gateway.bus.bus import Bus, Publication
from gateway.changes import Changes
from gateway.errors import RateLimited
from gateway.metrics import Metrics
from gateway.transit.state import ClientId, DeviceId

HELD_PER_CLIENT = 16
"""Polls that one client may have held at a time in one process: two for each device it can register."""


@dataclass(frozen=True, slots=True)
class Packet:
    """An info packet as it goes out: its version and its bytes."""

    version: int
    body: bytes


class Hub:
    """Who in this process waits for which client's packets."""

    def __init__(self, changes: Changes, bus: Bus, metrics: Metrics) -> None:
        self._changes = changes
        self._bus = bus
        self._metrics = metrics
        self._held: dict[ClientId, dict[asyncio.Future[Packet | None], DeviceId | None]] = {}
        self._closing = False

    async def newer(
        self, client_id: ClientId, version: int, *, wait_s: float, device_id: DeviceId | None
    ) -> Packet | None:
        """The client's packet as soon as it is newer than `version`, or None after `wait_s` seconds or at the end.

        A poll that names its device counts as a live socket of it. Subscribes, then loads: nothing
        published in between is missed. Raises RateLimited where the client has too many polls held already.
        """
        held = self._held.setdefault(client_id, {})
        if len(held) >= HELD_PER_CLIENT:
            raise RateLimited("too many polls are held for this client already", retry_after_s=5)
        arrived: asyncio.Future[Packet | None] = asyncio.get_running_loop().create_future()

        def listener(news: Publication) -> None:
            if news.version > version and not arrived.done():
                arrived.set_result(Packet(news.version, news.packet))

        held[arrived] = device_id
        self._metrics.held_polls.inc()
        try:
            await self._bus.subscribe(client_id, listener, counted=device_id is not None)
            state = await self._changes.load(client_id)
            if state.version > version:
                return Packet(state.version, packet.encode(state))
            if self._closing:
                return None
            async with asyncio.timeout(wait_s):
                return await arrived
        except TimeoutError:
            return None
        finally:
            await self._bus.unsubscribe(client_id, listener)
            self._metrics.held_polls.dec()
            held.pop(arrived)
            if not held:
                self._held.pop(client_id, None)

    def end(self, client_id: ClientId, device_id: DeviceId | None = None) -> None:
        """Answer the polls that this process holds for a device that has logged out, or for a client that has ended."""
        for arrived, device in self._held.get(client_id, {}).items():
            if device_id in (None, device) and not arrived.done():
                arrived.set_result(None)

    def close(self) -> None:
        """Answer every poll that is held: the process ends."""
        self._closing = True
        for client_id in self._held:
            self.end(client_id)

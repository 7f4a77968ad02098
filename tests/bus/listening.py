"""A listener that remembers, and publications to it."""

import asyncio
from collections.abc import Collection, Sequence

from gateway.bus.bus import Bus, Cause, Dismissal, Publication
from gateway.transit.state import ClientId, DeviceId
from tests.running import until

ALICE, BOB = ClientId("alice"), ClientId("bob")


class Heard:
    """A process's connections, as a bus sees them: `devices` are listening, say, for each client."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.packets: list[tuple[str, int, bytes, bool]] = []
        self.dismissals: list[Dismissal] = []
        self.gaps: list[ClientId] = []

    def published(self, news: Publication) -> int:
        self.packets.append((news.client_id, news.version, news.packet, news.asks))
        return self.devices

    def dismissed(self, dismissal: Dismissal) -> None:
        self.dismissals.append(dismissal)

    def missed(self, client_ids: Collection[ClientId]) -> None:
        self.gaps += client_ids

    def versions(self, client_id: ClientId = ALICE) -> list[int]:
        """Of what has come for a client, each once."""
        return list(dict.fromkeys(version for owner, version, _, _ in self.packets if owner == client_id))

    async def has(self, version: int, client_id: ClientId = ALICE, *, within_s: float = 10) -> None:
        """Return when this version has come."""

        async def came() -> bool:
            return version in self.versions(client_id)

        await until(came, f"version {version} comes", within_s)

    async def missed_some(self, client_id: ClientId = ALICE, *, within_s: float = 20) -> None:
        """Return when it was told of a gap for this client."""

        async def told() -> bool:
            return client_id in self.gaps

        await until(told, f"a gap is told for {client_id}", within_s)


def news(version: int, client_id: ClientId = ALICE, *, asks: bool = False, size: int = 0) -> Publication:
    body = b'{"version":%d}' % version + b" " * size
    return Publication(client_id, version, asks=asks, encode=lambda: body)


def logged_out(client_id: ClientId = ALICE, device_id: str | None = None) -> Dismissal:
    return Dismissal(client_id, DeviceId(device_id) if device_id else None, Cause.LOGGED_OUT)


async def publish_until_heard(bus: Bus, listener: Heard, versions: Sequence[int], client_id: ClientId = ALICE) -> int:
    """Publish one after the other until one is heard, which it returns; each may be lost."""
    for version in versions:
        await bus.publish([news(version, client_id)])
        try:
            await listener.has(version, client_id, within_s=0.5)
        except AssertionError:
            await asyncio.sleep(0)
            continue
        return version
    raise AssertionError("nothing is heard")

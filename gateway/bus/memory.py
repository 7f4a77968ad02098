"""The bus of one process."""

from collections.abc import Callable, Sequence

from gateway.bus.bus import Listener, Publication
from gateway.transit.state import ClientId


class MemoryBus:
    """A `Bus` within this process: loses nothing, and calls the listeners before `publish` returns."""

    def __init__(self) -> None:
        self._listeners: dict[ClientId, dict[Listener, bool]] = {}
        self._kicked: list[Callable[[ClientId], None]] = []

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        return [self._deliver(publication) for publication in publications]

    def _deliver(self, publication: Publication) -> int:
        listeners = self._listeners.get(publication.client_id)
        if not listeners:
            return 0
        for listener in tuple(listeners):
            listener(publication)
        return sum(listeners.values())

    async def subscribe(self, client_id: ClientId, listener: Listener, *, counted: bool) -> None:
        self._listeners.setdefault(client_id, {})[listener] = counted

    async def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        listeners = self._listeners.get(client_id, {})
        listeners.pop(listener, None)
        if not listeners:
            self._listeners.pop(client_id, None)

    async def kick(self, client_id: ClientId) -> None:
        for listener in self._kicked:
            listener(client_id)

    def on_kick(self, listener: Callable[[ClientId], None]) -> None:
        self._kicked.append(listener)

    async def close(self) -> None:
        self._listeners.clear()
        self._kicked.clear()

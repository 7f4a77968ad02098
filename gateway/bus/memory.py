"""The bus of one process."""

from collections.abc import Callable, Sequence

from gateway.bus.bus import Dismissal, Kick, Listener, Publication
from gateway.transit.state import ClientId


class MemoryBus:
    """A `Bus` within this process: loses nothing, and calls the listeners before `publish` returns."""

    def __init__(self) -> None:
        self._listeners: dict[ClientId, tuple[Listener, ...]] = {}
        self._kicked: list[Callable[[Kick], None]] = []
        self._shown: list[Callable[[str, bytes], None]] = []

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        return [
            sum(listener.published(news) for listener in self._listeners.get(news.client_id, ()))
            for news in publications
        ]

    async def dismiss(self, dismissal: Dismissal) -> None:
        for listener in self._listeners.get(dismissal.client_id, ()):
            listener.dismissed(dismissal)

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        listeners = self._listeners.get(client_id, ())
        if listener not in listeners:
            self._listeners[client_id] = (*listeners, listener)

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        left = tuple(other for other in self._listeners.get(client_id, ()) if other is not listener)
        if left:
            self._listeners[client_id] = left
        else:
            self._listeners.pop(client_id, None)

    async def kick(self, kick: Kick) -> None:
        for listener in self._kicked:
            listener(kick)

    def on_kick(self, listener: Callable[[Kick], None]) -> None:
        self._kicked.append(listener)

    async def show(self, token_key: str, body: bytes) -> None:
        for listener in self._shown:
            listener(token_key, body)

    def on_show(self, listener: Callable[[str, bytes], None]) -> None:
        self._shown.append(listener)

    async def close(self) -> None:
        self._listeners.clear()
        self._kicked.clear()
        self._shown.clear()

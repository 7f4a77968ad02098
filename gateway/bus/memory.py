"""The bus of one process."""

from collections.abc import Callable, Sequence

from gateway.bus.bus import Dismissal, Kick, Listener, Publication
from gateway.transit.state import ClientId


class MemoryBus:
    """A `Bus` within this process: loses nothing, and calls the listeners before `publish` returns."""

    def __init__(self) -> None:
        self._listeners: dict[ClientId, tuple[Listener, ...]] = {}
        self._kicked: list[Callable[[Kick], None]] = []
        self._heard: dict[str, tuple[Callable[[bytes], None], ...]] = {}

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        heard = []
        for news in publications:
            count = 0
            for listener in self._listeners.get(news.client_id, ()):
                count += listener.published(news)
            heard.append(count)
        return heard

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

    async def tell(self, topic: str, body: bytes) -> int:
        listeners = self._heard.get(topic, ())
        for listener in listeners:
            listener(body)
        return int(bool(listeners))

    async def hear(self, topic: str, listener: Callable[[bytes], None]) -> None:
        self._heard[topic] = (*self._heard.get(topic, ()), listener)

    def hear_no_more(self, topic: str, listener: Callable[[bytes], None]) -> None:
        left = tuple(other for other in self._heard.get(topic, ()) if other != listener)
        if left:
            self._heard[topic] = left
        else:
            self._heard.pop(topic, None)

    async def close(self) -> None:
        self._listeners.clear()
        self._kicked.clear()
        self._heard.clear()

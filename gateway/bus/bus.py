"""The contract of the bus: a packet goes to whoever is connected, in whichever process.

A bus may lose what it carries: every packet is the full state, and whoever missed one gets the next, or is woken.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.transit.state import ClientId


class Publication:
    """A client's new packet: its version, whether it asks for an acknowledgement, and its bytes, made when needed."""

    __slots__ = ("_encode", "_packet", "asks", "client_id", "version")

    def __init__(self, client_id: ClientId, version: int, *, asks: bool, encode: Callable[[], bytes]) -> None:
        self.client_id = client_id
        self.version = version
        self.asks = asks
        self._encode = encode
        self._packet: bytes | None = None

    @property
    def packet(self) -> bytes:
        """The info packet's bytes; encoded once, however many connections it goes to."""
        if self._packet is None:
            self._packet = self._encode()
        return self._packet


Listener = Callable[[Publication], None]
"""Called in the event loop with every publication that arrives; must not block or raise."""


class Bus(Protocol):
    """Publish and subscribe, one channel for each client."""

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        """Hand each to the listeners of its client, wherever they are; how many devices are listening, one by one.

        At most once, in no promised order between calls. 0: certainly nobody. Never raises for a bus that is down:
        what could not be published is published again later, the newest for each client.
        """
        ...

    async def subscribe(self, client_id: ClientId, listener: Listener, *, counted: bool) -> None:
        """Once this returns, `listener` hears every publication for the client that begins afterwards, unless the bus
        loses it. `counted`: it stands for a device, so that nobody else need be woken at once."""
        ...

    async def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        """`listener` hears no more; nothing happens where it was not subscribed."""
        ...

    async def kick(self, client_id: ClientId) -> None:
        """Tell a worker, any one, that this client's devices are to be woken at once. May be lost."""
        ...

    def on_kick(self, listener: Callable[[ClientId], None]) -> None:
        """`listener` is called in the event loop for every kick that reaches this process."""
        ...

    async def close(self) -> None: ...

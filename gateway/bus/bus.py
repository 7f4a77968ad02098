"""The contract of the bus: a packet goes to whoever is connected, in whichever process.

A bus may lose what it carries: every packet is the full state, and whoever missed one gets the next, or is woken.
"""

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.transit.state import ClientId, DeviceId


class Publication:
    """A client's new packet: its version, whether it asks for an acknowledgement, and its bytes: those that there are,
    or made when needed."""

    __slots__ = ("_encode", "_packet", "asks", "client_id", "version")

    def __init__(
        self,
        client_id: ClientId,
        version: int,
        asks: bool,
        encode: Callable[[], bytes] = bytes,
        packet: bytes | None = None,
    ) -> None:
        self.client_id = client_id
        self.version = version
        self.asks = asks
        self._encode = encode
        self._packet = packet

    @property
    def packet(self) -> bytes:
        """The info packet's bytes; encoded once, however many connections it goes to."""
        if self._packet is None:
            self._packet = self._encode()
        return self._packet


class Cause(StrEnum):
    """Why connections are to end."""

    DISPLACED = "displaced"
    """The same device has connected again."""
    LOGGED_OUT = "logged out"
    """The device or the account is gone."""
    SENT_BACK = "sent back"
    """The operator has them come back, through whichever process."""


class Dismissal(NamedTuple):
    """A client's connections that are to end: those of one device, or all of them.

    `rank`: where they are displaced, only those of a lower one: of a device that connects twice at the same moment one
    stays, and a dismissal that comes late does no harm. Where the clocks of two processes differ, an older socket may
    stay until it answers no ping: the device has two for so long, which is better than none.
    """

    client_id: ClientId
    device_id: DeviceId | None
    cause: Cause
    rank: int = 0


class Kick(NamedTuple):
    """Devices of a client that are certainly not connected, to be woken at once if they are behind: one, or (None) all
    of them."""

    client_id: ClientId
    device_id: DeviceId | None = None


TOPIC_OF_PUSHES = "shown"
"""Pushes that were shown on the console of some process: the key of the token, a space, the payload."""


class Listener(Protocol):
    """A process's connections. Called in the event loop with all that arrives; must not block or raise."""

    def published(self, news: Publication) -> int:
        """Pass it on; to how many devices, polls that name none apart."""
        ...

    def dismissed(self, dismissal: Dismissal) -> None:
        """End those connections."""
        ...

    def missed(self, client_ids: Collection[ClientId]) -> None:
        """Publications for these may have been lost, and none that begins from now on will be: load their states."""
        ...


class Bus(Protocol):
    """Publish and subscribe, one channel for each client."""

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        """Hand each to the listeners of its client, wherever they are; how many devices are listening, one by one.

        In no promised order between calls; twice, it may be, to those in this process. 0: certainly nobody, below 0: it
        is not known. Never raises for a bus that is down, nor waits for it: what could not be published is published
        again later, the newest for each client.
        """
        ...

    async def dismiss(self, dismissal: Dismissal) -> None:
        """Have connections ended, wherever they are. May be late or lost; never raises for a bus that is down."""
        ...

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        """Once this returns, `listener` hears all for the client that begins afterwards, unless the bus loses it.

        Repeatable: whoever is subscribed stays so. Where the bus does not answer within a second this returns all the
        same, and `listener.missed` is told once it does.
        """
        ...

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        """`listener` need hear no more; nothing happens where it was not subscribed."""
        ...

    async def kick(self, kick: Kick) -> None:
        """Tell a worker, any one. May be lost; never raises for a bus that is down."""
        ...

    def on_kick(self, listener: Callable[[Kick], None]) -> None:
        """This process has a worker: `listener` is called in the event loop with every kick that reaches it."""
        ...

    async def tell(self, topic: str, body: bytes) -> int:
        """Tell every process that hears of this topic, this one too; how many those are.

        May be late, lost, or come twice; never raises for a bus that is down: only this process is told then.
        """
        ...

    async def hear(self, topic: str, listener: Callable[[bytes], None]) -> None:
        """From now on `listener` is called in the event loop with whatever is told of this topic, in whichever process;
        it must not block or raise. Where the bus does not answer within a second, from when it does."""
        ...

    def hear_no_more(self, topic: str, listener: Callable[[bytes], None]) -> None:
        """`listener` need not be called any more; nothing happens where it was not."""
        ...

    async def close(self) -> None: ...

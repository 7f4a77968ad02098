"""The client for Python, broken on purpose in one way: `python -m tests.conformance.broken_client FLAW`."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from unittest.mock import patch

from gateway.client import Live, MemoryStore, Packet, Received
from gateway.client.failures import Backoff
from gateway.client.record import Record
from gateway.transit.state import Status
from tests.conformance import python_client


def _put(owner: object, name: str, instead: object) -> None:
    patch.object(owner, name, instead).start()


def drops_a_status() -> None:
    """It never says that a video was downloaded."""
    unsaid: Callable[[Received], Status | None] = vars(Received)["unsaid"].fget

    def dropped(self: Received) -> Status | None:
        status = unsaid(self)
        return None if status is Status.DOWNLOADED else status

    _put(Received, "unsaid", property(dropped))


def applies_older_packets() -> None:
    """A packet that comes late undoes what a newer one said."""
    apply = Record.apply

    def applied(self: Record, packet: Packet) -> bool:
        self.version = min(self.version, packet.version)
        return apply(self, packet)

    _put(Record, "apply", applied)


def acknowledges_too_much() -> None:
    """It acknowledges what it expects, not what it has."""
    acknowledge = Live.acknowledge

    async def acknowledged(self: Live, version: int) -> None:
        await acknowledge(self, version + 1)

    _put(Live, "acknowledge", acknowledged)


def never_pauses() -> None:
    """What fails it tries again at once."""
    _put(Backoff, "pause_s", lambda *_, **__: 0.0)


def comes_back_too_soon() -> None:
    """It takes no notice of Retry-After."""
    pause_s = Backoff.pause_s

    def paused_s(self: Backoff, tries: int, _: float | None, *, jitter: float) -> float:
        return pause_s(self, tries, None, jitter=jitter)

    _put(Backoff, "pause_s", paused_s)


def forgets_its_record() -> None:
    """A new process knows nothing of what the one before had taken on."""
    _put(python_client, "FileStore", lambda _: MemoryStore())


FLAWS: Mapping[str, Callable[[], None]] = {
    flaw.__name__: flaw
    for flaw in (
        drops_a_status,
        applies_older_packets,
        acknowledges_too_much,
        never_pauses,
        comes_back_too_soon,
        forgets_its_record,
    )
}

if __name__ == "__main__":
    FLAWS[sys.argv[1]]()
    asyncio.run(python_client.main())

"""What happened to clients lately, in this process: for the operator who looks one up. Bounded, and never durable."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from gateway.transit.state import ClientId, DeviceId


class Event(StrEnum):
    """What can happen to a client. `members` says what is noted of it, in this order."""

    members: tuple[str, ...]

    def __new__(cls, value: str, *members: str) -> "Event":
        event = str.__new__(cls, value)
        event._value_ = value
        event.members = members
        return event

    OPENED = "opened"
    """A socket."""
    CLOSED = "closed", "code"
    STATUS = "status", "video_id", "status", "result"
    """A status was reported; `result` is the answer's, or an error code."""
    DELETED = "deleted", "video_id", "result"
    """The sender deleted a video."""
    COMPLETED = "completed", "video_id"
    """An upload that its sender had not confirmed."""
    ACKNOWLEDGED = "acknowledged", "version"
    PACKET = "packet", "version", "devices"
    """A packet was published; to how many devices, below 0 where that is not known."""
    LATE = "late", "version"
    """A packet had been missed, and was handed on late."""
    PUSHED = "pushed", "platform", "outcome", "version"
    REGISTERED = "registered", "platform"
    UNREGISTERED = "unregistered"
    LEFT = "left"
    """The account ended."""


class Note(NamedTuple):
    """One thing that happened. `at`: ms since the epoch; `what`: the values of the event's members."""

    at: int
    client_id: ClientId
    device_id: DeviceId | None
    event: Event
    what: tuple[str | int, ...]


class Journal:
    """The last `most` things that happened; with 0 nothing is noted. `clock`: seconds since the epoch."""

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began_s = clock()
        self._most = most
        # Plain rows: to make a `Note` of each would take as long again, and hardly any is ever read.
        self._rows: deque[tuple[float, ClientId, DeviceId | None, Event, tuple[str | int, ...]]] = deque(maxlen=most)

    @property
    def since(self) -> int:
        """From when on it has everything: ms since the epoch."""
        full = len(self._rows) == self._most > 0
        return int((self._rows[0][0] if full else self._began_s) * 1000)

    def note(self, client_id: ClientId, event: Event, *what: str | int, device_id: DeviceId | None = None) -> None:
        """This happened to the client now, to one of its devices where that is known."""
        if self._most:
            self._rows.append((self._clock(), client_id, device_id, event, what))

    def of(self, client_id: ClientId) -> Iterator[Note]:
        """What happened to one client, the newest first."""
        for at_s, owner_id, device_id, event, what in reversed(self._rows):
            if owner_id == client_id:
                yield Note(int(at_s * 1000), owner_id, device_id, event, what)

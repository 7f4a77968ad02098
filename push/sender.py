"""The contract of a push sender: one wakeup to one device, and what the provider said of it.

A sender knows nothing of videos. A provider's "no" is a value; so is its silence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MAX_PAYLOAD_BYTES = 4096
"""The most that a push carries in all, with either provider (developer.apple.com, "Generating a remote notification";
firebase.google.com, "About FCM messages")."""


class Platform(StrEnum):
    """Which provider reaches a device."""

    APNS = "apns"
    FCM = "fcm"


class Environment(StrEnum):
    """Which of APNs' two hosts a token belongs to."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True)
class Alert:
    """What the user sees: the app's localized string `loc_key` with `loc_args`, the number on its icon, and a sound."""

    loc_key: str
    loc_args: tuple[str, ...]
    badge: int
    sound: bool


@dataclass(frozen=True, slots=True)
class Content:
    """What a push says: the same for all of a client's devices that are told it, so a payload is made once of it.

    `packet`: JSON to carry whole where it fits, or None to carry only `version`. `alert`: None for a background push.
    """

    version: int
    packet: bytes | None = field(repr=False)
    alert: Alert | None


@dataclass(frozen=True, slots=True)
class Wakeup:
    """One push to one device.

    `id`: a UUID, the same for every try of one wakeup. `collapse_id`: at most 64 bytes; a newer push with the same one
    replaces the older. `expires_at`: ms since the epoch; the provider drops it then.
    """

    id: str
    platform: Platform
    environment: Environment
    token: str = field(repr=False)
    collapse_id: str
    content: Content
    expires_at: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider took it; whether the device ever gets it is not known."""


@dataclass(frozen=True, slots=True)
class TokenDead:
    """No app has this token any more; `since` (ms) where the provider says since when.

    `doubtful`: too many are said to be dead at once, so this is not to be believed yet.
    """

    since: int | None = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: try again, after `after_ms` where the provider asks for that. `reason` is for the log.

    `outage`: it would take nobody's push now, be that its fault, the network's or the configuration's.
    """

    reason: str
    after_ms: int | None = None
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """Never like this, to this device: the push or its token is wrong. `reason` is for the operator."""

    reason: str


Outcome = Accepted | TokenDead | Retry | Rejected


def carried(content: Content, encode: Callable[[dict[str, str]], bytes]) -> dict[str, str]:
    """The data of a push: `version` as a decimal string, and the packet as a string where what `encode` makes of it all
    stays within `MAX_PAYLOAD_BYTES`."""
    data = {"version": str(content.version)}
    if content.packet is not None:
        whole = data | {"packet": content.packet.decode()}
        if len(encode(whole)) <= MAX_PAYLOAD_BYTES:
            return whole
    return data


class Sender(Protocol):
    """Sends wakeups of one provider."""

    async def send(self, wakeup: Wakeup) -> Outcome:
        """Hand `wakeup` to the provider and say what became of it. Raises nothing but CancelledError."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...

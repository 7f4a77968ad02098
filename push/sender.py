"""The contract of a push sender: one wakeup to one device, and what the provider said of it.

A sender knows nothing of videos. A provider's "no" is a value; so is its silence.
"""

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
class Wakeup:
    """One push to one device.

    `id`: a UUID, the same for every try of one wakeup. `collapse_id`: at most 64 bytes; a newer push with the same one
    replaces the older. `packet`: JSON to carry whole where it fits, or None to carry only `version`. `alert`: None for
    a background push. `expires_at`: ms since the epoch; the provider drops it then.
    """

    id: str
    platform: Platform
    environment: Environment
    token: str = field(repr=False)
    collapse_id: str
    version: int
    packet: bytes | None = field(repr=False)
    alert: Alert | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider took it; whether the device ever gets it is not known."""


@dataclass(frozen=True, slots=True)
class TokenDead:
    """No app has this token any more; `since` (ms) where the provider says since when."""

    since: int | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: try again, after `after_ms` where the provider asks for that. `reason` is for the log."""

    reason: str
    after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Never like this: the payload or the configuration is wrong. `reason` is for the operator."""

    reason: str


Outcome = Accepted | TokenDead | Retry | Rejected


class Sender(Protocol):
    """Sends wakeups of one provider."""

    async def send(self, wakeup: Wakeup) -> Outcome:
        """Hand `wakeup` to the provider and say what became of it. Raises nothing but CancelledError."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...

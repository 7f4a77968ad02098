"""What a device does that takes time, as its core decides it and its driver carries it out."""

from dataclasses import dataclass

from gateway.client.delivery import Delivery
from gateway.client.messages import Announced, Packet, Report, Result, Synced
from gateway.client.record import Farewell, Registration
from gateway.transit.state import ClientId, VideoId

Op = tuple[str, str]
"""What is done at most once at a time: a kind, and of what."""


@dataclass(frozen=True, slots=True)
class Sync:
    """Report all this, and get the packet."""

    reports: tuple[Report, ...]
    version: int
    op: Op = ("sync", "")


@dataclass(frozen=True, slots=True)
class Poll:
    """Get the packet that is newer than `version`, within `wait_s` seconds."""

    version: int
    wait_s: int
    op: Op = ("poll", "")


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a socket, and take in what comes until it ends. `version`: what that acknowledges."""

    version: int
    op: Op = ("socket", "")


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Say over the socket that the packet of this version is applied. There is no answer to that."""

    version: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Report this over the socket."""

    report: Report

    @property
    def op(self) -> Op:
        return ("tell", self.report.video_id)


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce a video."""

    key: str
    recipient_id: ClientId
    delivery: Delivery

    @property
    def op(self) -> Op:
        return ("send", self.key)


@dataclass(frozen=True, slots=True)
class Put:
    """Upload the bytes of a video."""

    key: str
    source: str
    announced: Announced

    @property
    def op(self) -> Op:
        return ("send", self.key)


@dataclass(frozen=True, slots=True)
class Delete:
    """Have a sent video deleted."""

    video_id: VideoId
    recipient_id: ClientId

    @property
    def op(self) -> Op:
        return ("delete", self.video_id)


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the bytes of a received video."""

    video_id: VideoId

    @property
    def op(self) -> Op:
        return ("download", self.video_id)


@dataclass(frozen=True, slots=True)
class Register:
    """Have this device woken with that token."""

    registration: Registration
    op: Op = ("register", "")


@dataclass(frozen=True, slots=True)
class Leave:
    """Say with the token that goes with it what was unsaid at a log-out, and then the log-out."""

    farewell: Farewell
    op: Op = ("leave", "")


Task = Sync | Poll | Connect | Tell | Announce | Put | Delete | Download | Register | Leave
"""What takes time, and of which the core is told how it ended: `answered`, `failed`, and `closed` for a socket."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up a task that is under way; the core wants to hear no more of it."""

    task: Task


Action = Task | Acknowledge | Abandon

Answer = Synced | Packet | Result | Announced | None
"""What a task may end with that went well."""

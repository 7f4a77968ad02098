"""What a device remembers: what it sends and has received that is still in transit, and what it has to say still.

All of it is pure. A message is no entry of its own: what the gateway does not know yet is told from the lists, and is
said again until it is answered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import orjson

from gateway.client.delivery import Delivery, Step
from gateway.client.messages import Incoming, Outcome, Outgoing, Packet, Report, Result, Upload
from gateway.transit.state import ClientId, DeviceId, Status, VideoId

FORMAT = 1

FOR_EVER = 1 << 53
"""A version that no packet has."""

MOST_UNTOLD = 1_000
"""So many sent videos that have ended may wait to be told of; the oldest beyond that are forgotten."""

Platform = Literal["apns", "fcm"]
Environment = Literal["production", "sandbox"]


class SentStatus(StrEnum):
    """How far a sent video has come, as its sender is shown it. It only moves forward."""

    QUEUED = "queued"
    """It is on its way to the gateway, or waits for that."""
    UPLOADED = "uploaded"
    NOTIFIED = "notified"
    DOWNLOADED = "downloaded"
    VIEWED = "viewed"
    EXPIRED = "expired"
    COMPLETE = "complete"
    """It is in transit no more: viewed, replaced, or deleted by another device of this account."""
    FAILED = "failed"
    """It was not sent and will not be; the change that tells it has the reason."""


_RANK = {
    SentStatus.QUEUED: 0,
    SentStatus.UPLOADED: 1,
    SentStatus.NOTIFIED: 2,
    SentStatus.DOWNLOADED: 3,
    **dict.fromkeys((SentStatus.VIEWED, SentStatus.EXPIRED, SentStatus.COMPLETE, SentStatus.FAILED), 4),
}
_REACHED = {Status.UPLOADED: 0, Status.NOTIFIED: 1, Status.DOWNLOADED: 2, Status.VIEWED: 3, Status.EXPIRED: 4}


class ReceivedStatus(StrEnum):
    """What a received video is to its recipient."""

    ARRIVED = "arrived"
    """It is there, and its bytes are being fetched."""
    READY = "ready"
    """Its bytes are on this device."""
    GONE = "gone"
    """It ended before its bytes were here: viewed on another device, replaced, deleted or expired."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A video that this client sends or has sent.

    `key`: what the app calls it, from the moment it asks for it to be sent; the video's id where another device sent
    it. `at`: when its status was reached, in ms since the epoch, 0 where the gateway has not said. `listed`: by the
    packet that was applied last. `silence`: the least version of a packet whose silence about it says that it is
    complete. `over_at`: from that version on no packet lists it. `told`: the status that the app was told last.
    """

    key: str
    recipient_id: ClientId
    status: SentStatus = SentStatus.QUEUED
    video_id: VideoId | None = None
    at: int = 0
    reason: str | None = None
    delivery: Delivery | None = None
    listed: bool = False
    silence: int | None = None
    over_at: int = 0
    told: SentStatus | None = None

    @property
    def ended(self) -> bool:
        return _RANK[self.status] == _RANK[SentStatus.VIEWED]

    def moved(self, status: SentStatus, at: int = 0, *, reason: str | None = None) -> "Sent":
        """With that status, if it comes after the present one. The only place that decides it."""
        if _RANK[status] <= _RANK[self.status]:
            return self
        moved = replace(self, status=status, at=max(at, self.at), reason=reason)
        return replace(moved, delivery=None) if moved.ended else moved

    def seen(self, entry: Outgoing, version: int) -> "Sent":
        """A packet of that version lists it: it is stored, whatever this device has heard of that."""
        silence = version + 1 if self.silence is None else min(self.silence, version + 1)
        moved = self.moved(SentStatus(entry.status), entry.at)
        return replace(moved, video_id=entry.video_id, listed=True, silence=silence, delivery=None)

    def unseen(self, version: int) -> "Sent":
        """A packet of that version does not list it."""
        unlisted = replace(self, listed=False)
        return unlisted.moved(SentStatus.COMPLETE) if self.silence is not None and version >= self.silence else unlisted

    def confirmed(self, result: Result, version: int) -> "Sent":
        """The gateway has answered that it is uploaded. `version`: of the packet that was applied last."""
        if result.outcome is Outcome.IGNORED:
            over = replace(self, delivery=None, over_at=max(self.over_at, result.version))
            ended = SentStatus.FAILED if self.silence is None else SentStatus.COMPLETE
            return over.moved(ended, reason=result.reason)
        silence = result.version if self.silence is None else min(self.silence, result.version)
        moved = replace(self.moved(SentStatus.UPLOADED), delivery=None, silence=silence)
        return moved if moved.listed else moved.unseen(version)


@dataclass(frozen=True, slots=True)
class Received:
    """A video that this client has received and not viewed.

    `here`: its bytes are on this device. `viewed`: its user has seen it. `known`: the status that the gateway has.
    `known_at`: the version from which packets show that. `listed`: by the packet that was applied last. `told`: what
    the app was told last.
    """

    video_id: VideoId
    sender_id: ClientId
    size: int
    content_type: str
    at: int
    here: bool = False
    viewed: bool = False
    known: Status = Status.UPLOADED
    known_at: int = 0
    listed: bool = True
    told: ReceivedStatus | None = None

    @property
    def status(self) -> ReceivedStatus:
        if self.here:
            return ReceivedStatus.READY
        return ReceivedStatus.ARRIVED if self.listed else ReceivedStatus.GONE

    @property
    def unsaid(self) -> Status | None:
        """The status that the gateway is still to be told. That it was viewed is said until that is answered, listed or
        not: a repetition may complete what was cut short."""
        if self.viewed:
            return None if self.known is Status.VIEWED else Status.VIEWED
        return Status.DOWNLOADED if self.here and self.listed and self.known is Status.UPLOADED else None

    def seen(self, entry: Incoming, version: int) -> "Received":
        """A packet of that version lists it. Where that packet is from before an answer, the answer counts."""
        known = entry.status if version >= self.known_at else self.known
        return replace(self, known=known, listed=True, at=entry.at)

    def said(self, status: Status, version: int) -> "Received":
        """The gateway has answered to that status; packets from `version` on show it."""
        known = status if _REACHED[status] > _REACHED[self.known] else self.known
        return replace(self, known=known, known_at=max(self.known_at, version))

    @property
    def over(self) -> bool:
        """Whether nothing is to be done about it any more, nor to be told of it."""
        if self.listed or self.unsaid is not None:
            return False
        return self.viewed or (not self.here and self.told in {None, ReceivedStatus.GONE})


@dataclass(frozen=True, slots=True)
class Deletion:
    """A video that is to be shown no more, and deleted.

    `over_at`: once the gateway has answered, the version from which no packet lists it.
    """

    recipient_id: ClientId
    over_at: int | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """How this device is to be woken. `answered_s`: when the gateway answered, in seconds since the epoch."""

    platform: Platform
    token: str = field(repr=False)
    environment: Environment = "production"
    answered_s: float | None = None


@dataclass(frozen=True, slots=True)
class Farewell:
    """A log-out that the gateway is still to be told, or the end of an account: the token that this needs, and what was
    unanswered at that moment."""

    client_id: ClientId
    device_id: DeviceId
    token: str = field(repr=False)
    ends_account: bool = False
    reports: tuple[Report, ...] = ()
    deletions: tuple[tuple[VideoId, ClientId], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What the app is told of one video: each at most once, the newest where several came before it was asked for.

    `key`: what `send` returned, else the video's id. `peer_id`: the recipient of a sent video, the sender of a received
    one. `at`: when, in ms since the epoch, 0 where the gateway has not said. `reason`: why it failed.
    """

    key: str
    video_id: VideoId | None
    peer_id: ClientId
    status: SentStatus | ReceivedStatus
    at: int
    reason: str | None = None


class Record:
    """All that a device of a client remembers. `changed`: whether that is more than what was stored last."""

    def __init__(self, client_id: ClientId, device_id: DeviceId) -> None:
        self.client_id = client_id
        self.device_id = device_id
        self.version = 0
        self.sent: dict[str, Sent] = {}
        self.received: dict[VideoId, Received] = {}
        self.deletions: dict[VideoId, Deletion] = {}
        self.registration: Registration | None = None
        self.farewells: tuple[Farewell, ...] = ()
        self.logged_out = False
        self.changed = False

    # --- What the gateway says

    def apply(self, packet: Packet) -> bool:
        """Take in a packet; whether it was: one that is older than what was applied, or somebody else's, is dropped."""
        if packet.client_id != self.client_id or packet.version < self.version or self.logged_out:
            return False
        before = (self.version, dict(self.sent), dict(self.received), dict(self.deletions))
        self.version = packet.version
        self._apply_sent(packet)
        self._apply_received(packet)
        self._tidy()
        self.changed = self.changed or before != (self.version, self.sent, self.received, self.deletions)
        return True

    def _apply_sent(self, packet: Packet) -> None:
        keys = {video.video_id: key for key, video in self.sent.items()}
        shown = [entry for entry in packet.outgoing if entry.video_id not in self.deletions]
        listed = {keys.get(entry.video_id, entry.video_id): entry for entry in shown}
        for key, entry in listed.items():
            video = self.sent.get(key) or Sent(key, entry.recipient_id)
            self.sent[key] = video.seen(entry, packet.version)
        for key in self.sent.keys() - listed.keys():
            self.sent[key] = self.sent[key].unseen(packet.version)

    def _apply_received(self, packet: Packet) -> None:
        listed = {entry.video_id: entry for entry in packet.incoming}
        for video_id, entry in listed.items():
            video = self.received.get(video_id) or _new(entry)
            self.received[video_id] = video.seen(entry, packet.version)
        for video_id in self.received.keys() - listed.keys():
            self.received[video_id] = replace(self.received[video_id], listed=False)

    def answered(self, report: Report, result: Result) -> None:
        """The gateway has answered to a status: the message is done."""
        if report.status is Status.UPLOADED:
            video = self.sent_as(report.video_id)
            if video is not None and not video.ended:
                self.put_sent(video.confirmed(result, self.version))
        elif (received := self.received.get(VideoId(report.video_id))) is not None:
            self._put_received(received.said(report.status, result.version))

    def refused(self, report: Report, reason: str) -> None:
        """The gateway will not have that status: the message ends, whatever packets list from now on."""
        if report.status is Status.UPLOADED:
            video = self.sent_as(report.video_id)
            if video is not None:
                self.fail(video.key, reason)
        elif (received := self.received.get(VideoId(report.video_id))) is not None:
            self._put_received(received.said(report.status, FOR_EVER))

    def deleted(self, video_id: VideoId, version: int) -> None:
        """The gateway has answered that a video is deleted: packets from `version` on do not list it."""
        if (deletion := self.deletions.get(video_id)) is not None:
            self.deletions[video_id] = replace(deletion, over_at=version)
            self._tidy()
            self.changed = True

    def registered(self, registration: Registration, at_s: float) -> None:
        """The gateway has taken a registration, at that time in seconds since the epoch."""
        if self.registration is registration:
            self.registration = replace(registration, answered_s=at_s)
            self.changed = True

    def left(self, farewell: Farewell) -> None:
        """The gateway has been told of a log-out."""
        self.farewells = tuple(other for other in self.farewells if other is not farewell)
        self.changed = True

    # --- What the user does

    def send(self, key: str, recipient_id: ClientId, delivery: Delivery) -> None:
        """A video is to be sent."""
        self.put_sent(Sent(key, recipient_id, delivery=delivery, told=SentStatus.QUEUED))

    def announced(self, key: str, video_id: VideoId, upload: Upload) -> None:
        """A video that is to be sent has an id now."""
        video = self.sent.get(key)
        if video is not None and video.delivery is not None:
            self.put_sent(replace(video, video_id=video_id, delivery=video.delivery.announced(upload)))

    def delete(self, key: str) -> None:
        """A sent video is to be deleted, wherever it is by now; nothing happens where there is none."""
        video = self.sent.get(key)
        if video is not None:
            del self.sent[key]
            self._cancel(video)
            self.changed = True

    def fail(self, key: str, reason: str) -> None:
        """A video will not be sent."""
        if (video := self.sent.get(key)) is not None and not video.ended:
            self._cancel(video)  # an upload that has no answer may still arrive
            self.put_sent(video.moved(SentStatus.FAILED, reason=reason))

    def announce_anew(self, key: str) -> None:
        """The URL of an upload is of no use any more."""
        if (video := self.sent.get(key)) is not None and video.delivery is not None:
            if video.delivery.late:
                self._cancel(video)
            self.put_sent(
                replace(video, video_id=None, delivery=replace(video.delivery, step=Step.ANNOUNCE, upload=None))
            )

    def _cancel(self, video: Sent) -> None:
        """Have the gateway delete whatever it may have of it."""
        if video.video_id is not None and video.status not in {SentStatus.COMPLETE, SentStatus.FAILED}:
            self.deletions[video.video_id] = Deletion(video.recipient_id)

    def arrived(self, video_id: VideoId) -> None:
        """The bytes of a received video are on this device."""
        if (video := self.received.get(video_id)) is not None:
            self._put_received(replace(video, here=True))

    def viewed(self, video_id: VideoId) -> None:
        """The user has seen a received video. Nothing happens where there is none, or where it ended meanwhile."""
        if (video := self.received.get(video_id)) is not None and not video.viewed:
            seen = replace(video, viewed=True, told=video.status)
            # One that has ended is the gateway's matter no more.
            self._put_received(seen if video.listed else replace(seen, known=Status.VIEWED))

    def register(self, registration: Registration | None) -> None:
        """This device is to be woken like this from now on; None: the app is to say again how."""
        self.registration = registration
        self.changed = True

    def log_out(self, token: str, *, ends_account: bool = False) -> None:
        """Forget everything of this client, but for what the gateway is to be told with this token."""
        reports = () if ends_account else tuple(self.reports())
        deletions = () if ends_account else tuple(self.unanswered_deletions())
        farewell = Farewell(self.client_id, self.device_id, token, ends_account, reports, deletions)
        self.farewells = (*self.farewells, farewell)
        self._forget()
        self.logged_out = True

    def log_in(self, client_id: ClientId | None, device_id: DeviceId | None) -> None:
        """This client uses the device from now on, or nobody does: what was another's is forgotten, log-outs apart."""
        logged_out = client_id is None or device_id is None
        if logged_out != self.logged_out or (client_id, device_id) != (self.client_id, self.device_id):
            self._forget()
            self.client_id, self.device_id = client_id or self.client_id, device_id or self.device_id
            self.logged_out = logged_out

    def _forget(self) -> None:
        self.version, self.registration = 0, None
        self.sent.clear()
        self.received.clear()
        self.deletions.clear()
        self.changed = True

    # --- What is to be said and told

    def reports(self) -> Iterator[Report]:
        """The statuses that the gateway has not answered."""
        for received in self.received.values():
            if (status := received.unsaid) is not None:
                yield Report(received.video_id, status)
        for video in self.sent.values():
            if video.delivery is not None and video.delivery.step is Step.CONFIRM and video.video_id is not None:
                yield Report(video.video_id, Status.UPLOADED, video.recipient_id)

    def unanswered_deletions(self) -> Iterator[tuple[VideoId, ClientId]]:
        """The videos that the gateway is still to delete, and their recipients."""
        return ((key, deletion.recipient_id) for key, deletion in self.deletions.items() if deletion.over_at is None)

    def untold(self) -> Change | None:
        """What the app is to be told next."""
        for sent in self.sent.values():
            if sent.told != sent.status:
                return Change(sent.key, sent.video_id, sent.recipient_id, sent.status, sent.at, sent.reason)
        for received in self.received.values():
            if received.told != received.status and not received.viewed:
                return Change(received.video_id, received.video_id, received.sender_id, received.status, received.at)
        return None

    def told(self, change: Change) -> None:
        """The app has taken in a change."""
        if isinstance(change.status, SentStatus):
            if (sent := self.sent.get(change.key)) is not None:
                self.put_sent(replace(sent, told=change.status))
        elif (received := self.received.get(VideoId(change.key))) is not None:
            self._put_received(replace(received, told=change.status))

    # --- Entries

    def sent_as(self, video_id: str) -> Sent | None:
        """The sent video with that id."""
        return next((video for video in self.sent.values() if video.video_id == video_id), None)

    def put_sent(self, video: Sent) -> None:
        """Put a sent video in the place of the one with its key."""
        self.sent[video.key] = video
        self._tidy()
        self.changed = True

    def _put_received(self, video: Received) -> None:
        self.received[video.video_id] = video
        self._tidy()
        self.changed = True

    def _tidy(self) -> None:
        """Forget what is over and has been told."""
        over = [video for video in self.sent.values() if self._over(video)]
        untold = [video.key for video in over if video.told != video.status]
        too_many = set(untold[: max(0, len(untold) - MOST_UNTOLD)])
        for video in over:
            if video.told == video.status or video.key in too_many:
                del self.sent[video.key]
        for received in [received for received in self.received.values() if received.over]:
            del self.received[received.video_id]
        for video_id, deletion in list(self.deletions.items()):
            if deletion.over_at is not None and self.version >= deletion.over_at:
                del self.deletions[video_id]

    def _over(self, video: Sent) -> bool:
        return video.ended and not video.listed and self.version >= video.over_at

    # --- As it is stored

    def encode(self) -> bytes:
        """As JSON. It holds secrets: tokens, and URLs that uploads go to."""
        return orjson.dumps(
            {
                "format": FORMAT,
                "client_id": self.client_id,
                "device_id": self.device_id,
                "version": self.version,
                "sent": list(self.sent.values()),
                "received": list(self.received.values()),
                "deletions": self.deletions,
                "registration": self.registration,
                "farewells": self.farewells,
                "logged_out": self.logged_out,
            }
        )

    @classmethod
    def decode(cls, body: bytes) -> "Record":
        """Raises ValueError for what is none."""
        try:
            return cls._decode(orjson.loads(body))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError("not a device's record") from error

    @classmethod
    def _decode(cls, members: dict[str, Any]) -> "Record":
        if members["format"] != FORMAT or not isinstance(members["version"], int):
            raise ValueError("a record of another format")
        record = cls(members["client_id"], members["device_id"])
        record.version = members["version"]
        record.sent = {entry["key"]: _sent(**entry) for entry in members["sent"]}
        record.received = {entry["video_id"]: _received(**entry) for entry in members["received"]}
        record.deletions = {video_id: Deletion(**entry) for video_id, entry in members["deletions"].items()}
        record.registration = None if (entry := members["registration"]) is None else Registration(**entry)
        record.farewells = tuple(_farewell(**entry) for entry in members["farewells"])
        record.logged_out = members["logged_out"]
        return record


def _new(entry: Incoming) -> Received:
    return Received(entry.video_id, entry.sender_id, entry.size, entry.content_type, entry.at)


def _sent(*, status: str, told: str | None, delivery: dict[str, Any] | None, **members: Any) -> Sent:
    return Sent(
        status=SentStatus(status),
        told=None if told is None else SentStatus(told),
        delivery=None if delivery is None else _delivery(**delivery),
        **members,
    )


def _delivery(*, step: str, upload: dict[str, Any] | None, **members: Any) -> Delivery:
    return Delivery(step=Step(step), upload=None if upload is None else Upload(**upload), **members)


def _received(*, known: str, told: str | None, **members: Any) -> Received:
    return Received(known=Status(known), told=None if told is None else ReceivedStatus(told), **members)


def _farewell(*, reports: list[dict[str, Any]], deletions: list[list[str]], **members: Any) -> Farewell:
    return Farewell(
        reports=tuple(Report(entry["video_id"], Status(entry["status"]), entry["recipient_id"]) for entry in reports),
        deletions=tuple((VideoId(video_id), ClientId(recipient_id)) for video_id, recipient_id in deletions),
        **members,
    )

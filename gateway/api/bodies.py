"""What travels in HTTP bodies, as types: requests are decoded into them, and the OpenAPI document is made from them.

JSON types are exact: "1" is no integer, 1.0 neither. Unknown members are ignored.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.errors import Code
from gateway.transit.decisions import Reason, Result
from gateway.transit.state import Status, valid_id, valid_video_id
from storage.objects import MAX_CONTENT_TYPE_LENGTH

ID_PATTERN = r"^([A-Za-z0-9_-][A-Za-z0-9._-]{0,63}|\.[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}|\.\.[A-Za-z0-9._-]{1,62})$"
"""1 to 64 of these characters, and not `.` or `..`; without lookaheads, so that every validator understands it."""

VIDEO_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"

CONTENT_TYPE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}$"
"""A bare type and subtype: RFC 6838, section 4.2, half as long each."""

LONGEST_WAIT_S = 60
"""The longest that a poll is held."""

MOST_STATUSES = 256
"""The most statuses that one sync reports."""

Id = Annotated[str, Meta(pattern=ID_PATTERN, description="1 to 64 of `A-Z a-z 0-9 . _ -`, not `.` or `..`")]
Uuid = Annotated[str, Meta(pattern=VIDEO_ID_PATTERN, description="A UUIDv7 in canonical lower-case form")]
ContentType = Annotated[
    str,
    Meta(
        pattern=CONTENT_TYPE_PATTERN,
        max_length=MAX_CONTENT_TYPE_LENGTH,
        description="A bare `type/subtype`, of those that this gateway takes",
    ),
]
Version = Annotated[int, Meta(ge=0, le=2**63 - 1, description="The version of an info packet")]
Wait = Annotated[int, Meta(ge=1, le=LONGEST_WAIT_S)]
Milliseconds = Annotated[int, Meta(ge=0, description="Milliseconds since the Unix epoch")]
Reported = Literal["uploaded", "notified", "downloaded", "viewed"]


def check_id(member: str, text: str) -> None:
    """Raise ValueError unless `text` is an id; a pattern alone would let a newline at its end pass in Python."""
    if not valid_id(text):
        raise ValueError(f"{member}: must be 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..")


def check_video_id(text: str) -> None:
    """Raise ValueError unless `text` is a video's id."""
    if not valid_video_id(text):
        raise ValueError("video_id: must be a UUIDv7 in canonical lower-case form")


# --- Requests


class Announcement(Struct):
    """An upload to be."""

    recipient_id: Id
    size: Annotated[int, Meta(ge=1, le=2**63 - 1, description="Bytes")]
    content_type: ContentType
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="Of the bytes, in hex")] | UnsetType = UNSET

    def __post_init__(self) -> None:
        check_id("recipient_id", self.recipient_id)


class StatusReport(Struct):
    """A status that a video reached; `recipient_id` goes with `uploaded`, and is required there."""

    status: Reported
    recipient_id: Id | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.recipient_id is not UNSET:
            check_id("recipient_id", self.recipient_id)


class SyncStatus(Struct):
    """One status of a sync."""

    video_id: Uuid
    status: Reported
    recipient_id: Id | UnsetType = UNSET

    def __post_init__(self) -> None:
        check_video_id(self.video_id)
        if self.recipient_id is not UNSET:
            check_id("recipient_id", self.recipient_id)


class SyncRequest(Struct):
    """All that a client still has to report, and what its device has applied."""

    statuses: Annotated[list[SyncStatus], Meta(max_length=MOST_STATUSES)]
    device_id: Id | UnsetType = UNSET
    version: Version | UnsetType = UNSET


class DeviceRegistration(Struct):
    """How to wake a device."""

    platform: Literal["apns", "fcm"]
    token: Annotated[str, Meta(min_length=1, max_length=4096, description="The push token; a secret")]
    environment: Literal["production", "sandbox"] = "production"


# --- Answers


class Upload(Struct):
    """How to upload: send the bytes with this method and these headers (and Content-Length) to `url`."""

    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    expires_at: Milliseconds


class Announced(Struct):
    """A video was announced."""

    video_id: Uuid
    upload: Upload


class Reached(Struct, omit_defaults=True):
    """What became of a status. All three results mean: done, do not retry."""

    result: Result
    version: Version
    reason: Reason | UnsetType = UNSET


class Download(Struct):
    """Where the bytes are."""

    url: str
    expires_at: Milliseconds


class OutgoingVideo(Struct):
    """A video that this client sent."""

    video_id: Uuid
    recipient_id: Id
    status: Status
    at: Milliseconds


class IncomingVideo(Struct):
    """A video that was sent to this client."""

    video_id: Uuid
    sender_id: Id
    status: Literal["uploaded", "downloaded"]
    url: str
    size: int
    content_type: str
    at: Milliseconds


class InfoPacket(Struct):
    """The whole of what a client needs to know."""

    type: Literal["info"]
    client_id: Id
    version: Version
    outgoing: list[OutgoingVideo]
    incoming: list[IncomingVideo]


class SyncResult(Struct):
    """What became of one status of a sync: a result as of a status call, or `failed` with the error it is."""

    result: Literal["applied", "duplicate", "ignored", "failed"]
    version: Version | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET
    code: Code | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class Synced(Struct):
    """The results of a sync, in order, and the packet that includes them."""

    results: list[SyncResult]
    packet: InfoPacket


class Problem(Struct):
    """An error: RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: Code | UnsetType = UNSET


class Health(Struct):
    """Whether the gateway is ready, and which of its backends do not answer."""

    status: str
    faults: list[str]

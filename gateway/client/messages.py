"""What an app and its gateway say to each other, and how that is read from JSON."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.client.failures import GatewayError
from gateway.client.fields import Fields, verbatim
from gateway.errors import STATUS, Code
from gateway.transit.state import ClientId, Status, VideoId


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A video that this client sent, and how far it has come. `at`: when, in ms since the epoch."""

    video_id: VideoId
    recipient_id: ClientId
    status: Status
    at: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A video that was sent to this client: `uploaded` or `downloaded`. `at`: since when, in ms since the epoch."""

    video_id: VideoId
    sender_id: ClientId
    status: Status
    url: str
    size: int
    content_type: str
    at: int


@dataclass(frozen=True, slots=True)
class Packet:
    """An info packet: the whole of what a client needs to know. `body`: its bytes, exactly as they came."""

    client_id: ClientId
    version: int
    outgoing: tuple[Outgoing, ...]
    incoming: tuple[Incoming, ...]
    body: bytes = field(repr=False)

    @classmethod
    def parse(cls, body: bytes) -> "Packet":
        """Raises ValueError for what is no info packet. Members that it does not know are ignored."""
        with _readable("not an info packet"):
            fields = Fields.parse(body)
            if fields.text("type") != "info":
                raise ValueError
            return cls(
                ClientId(fields.text("client_id")),
                fields.number("version"),
                tuple(_outgoing(entry) for entry in fields.entries("outgoing")),
                tuple(_incoming(entry) for entry in fields.entries("incoming")),
                body,
            )

    def sent(self, video_id: str) -> Outgoing | None:
        """The outgoing video with that id, if it is listed."""
        return next((video for video in self.outgoing if video.video_id == video_id), None)

    def received(self, video_id: str) -> Incoming | None:
        """The incoming video with that id, if it is listed."""
        return next((video for video in self.incoming if video.video_id == video_id), None)


@dataclass(frozen=True, slots=True)
class Upload:
    """How to upload: `method` and `headers` to `url`, until `expires_at` (ms since the epoch). The URL is a secret."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True)
class Announced:
    """A video to be: its id, what was announced of it, and how to upload it."""

    video_id: VideoId
    recipient_id: ClientId
    size: int
    upload: Upload

    @classmethod
    def parse(cls, body: bytes, recipient_id: str, size: int) -> "Announced":
        """The answer to an announcement. Raises ValueError for what is none."""
        fields = Fields.parse(body)
        return cls(VideoId(fields.text("video_id")), ClientId(recipient_id), size, _upload(fields.fields("upload")))


class Outcome(StrEnum):
    """What became of a status. `FAILED` is only ever seen in a sync; the others all mean: done, do not repeat."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the status of a video.

    `version`: of the caller's packet that includes it (0 where it failed). `reason`: why it was ignored. `error`: what
    it failed with, to be treated as that error.
    """

    video_id: VideoId
    outcome: Outcome
    version: int
    reason: str | None = None
    error: GatewayError | None = None

    @classmethod
    def parse(cls, body: bytes, video_id: str) -> "Result":
        """The answer to a status. Raises ValueError for what is none."""
        return _result(Fields.parse(body), video_id)


@dataclass(frozen=True, slots=True)
class Report:
    """A status that a client still has to report; `recipient_id` goes with `uploaded`."""

    video_id: str
    status: Status
    recipient_id: str | None = None

    @property
    def members(self) -> dict[str, str]:
        """As JSON has it."""
        members = {"video_id": self.video_id, "status": str(self.status)}
        return members if self.recipient_id is None else {**members, "recipient_id": self.recipient_id}


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of each report of a sync, in their order, and the packet that includes them."""

    results: tuple[Result, ...]
    packet: Packet

    @classmethod
    def parse(cls, body: bytes, reports: Sequence[Report]) -> "Synced":
        """The answer to a sync with those reports. Raises ValueError for what is none."""
        results = zip(Fields.parse(body).entries("results"), reports, strict=True)
        return cls(
            tuple(_result(fields, report.video_id) for fields, report in results),
            Packet.parse(verbatim(body, "packet")),
        )


@dataclass(frozen=True, slots=True)
class Alert:
    """What the user is shown: a text to be looked up with its arguments, the number on the app's icon, with a sound?"""

    loc_key: str
    loc_args: tuple[str, ...]
    badge: int
    sound: bool


@dataclass(frozen=True, slots=True)
class Push:
    """What arrived at a device. `packet`: None where it had no room. `alert`: None where the user is shown nothing."""

    version: int
    packet: Packet | None
    alert: Alert | None

    @classmethod
    def parse(cls, body: bytes) -> "Push":
        """As the gateway's console shows it. Raises ValueError for what is no push."""
        with _readable("not a push"):
            return cls.read(Fields.parse(body))

    @classmethod
    def read(cls, fields: Fields) -> "Push":
        """Its members: of what APNs hands to an app, or of the data that FCM does. Raises ValueError likewise."""
        with _readable("not a push"):
            return cls(
                int(fields.text("version")),
                Packet.parse(fields.text("packet").encode()) if "packet" in fields else None,
                _alert(fields.fields("alert")) if "alert" in fields else None,
            )


@contextlib.contextmanager
def _readable(sentence: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(sentence) from error


def _outgoing(entry: Fields) -> Outgoing:
    return Outgoing(
        VideoId(entry.text("video_id")),
        ClientId(entry.text("recipient_id")),
        Status(entry.text("status")),
        entry.number("at"),
    )


def _incoming(entry: Fields) -> Incoming:
    return Incoming(
        VideoId(entry.text("video_id")),
        ClientId(entry.text("sender_id")),
        Status(entry.text("status")),
        entry.text("url"),
        entry.number("size"),
        entry.text("content_type"),
        entry.number("at"),
    )


def _upload(fields: Fields) -> Upload:
    return Upload(fields.text("method"), fields.text("url"), fields.headers("headers"), fields.number("expires_at"))


def _alert(fields: Fields) -> Alert:
    return Alert(fields.text("loc-key"), fields.texts("loc-args"), fields.number("badge"), fields.flag("sound"))


def _result(fields: Fields, video_id: str) -> Result:
    outcome = Outcome(fields.text("result"))
    if outcome is Outcome.FAILED:
        return Result(VideoId(video_id), outcome, 0, error=refused(fields))
    reason = fields.text("reason") if "reason" in fields else None
    return Result(VideoId(video_id), outcome, fields.number("version"), reason)


def refused(fields: Fields) -> GatewayError:
    """The error that has no answer of its own: with the HTTP status that it would have had, and 400 for a code that is
    new here. Raises ValueError for what is none."""
    code = fields.text("code")
    return GatewayError(STATUS[Code(code)] if code in list(Code) else 400, code, fields.text("detail"))

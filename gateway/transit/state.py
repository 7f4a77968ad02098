"""What the gateway keeps of one client: the record behind its info packet, and its stored form.

One client is one document. Two clients that exchange videos agree through the `Pair` that each keeps of the other: the
sender's is the list, the recipient's a copy of it with the recipient's own statuses. The rules that change all this
stand in `transit` (videos) and `devices` (acknowledgements and wakeups); this module only says what there is.

Entries are NamedTuples, not dataclasses: every call decodes them from rows, and a NamedTuple takes a row in a quarter
of the time.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, NewType

import orjson

ClientId = NewType("ClientId", str)
DeviceId = NewType("DeviceId", str)
VideoId = NewType("VideoId", str)

_ID = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,64}\Z")
_VIDEO_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


def valid_id(text: str) -> bool:
    """Whether `text` has the form of a client's or a device's id."""
    return _ID.match(text) is not None


def valid_video_id(text: str) -> bool:
    """Whether `text` is a UUIDv7 in canonical lower-case form (RFC 9562, sections 4 and 5.7)."""
    return _VIDEO_ID.match(text) is not None


def minted_at(video_id: VideoId) -> int:
    """When a video's id was minted, in ms since the epoch: the first 48 bits of a UUIDv7 (RFC 9562, section 5.7)."""
    return int(video_id[:8] + video_id[9:13], 16)


class Status(StrEnum):
    """How far a video has come."""

    UPLOADED = "uploaded"
    NOTIFIED = "notified"
    DOWNLOADED = "downloaded"
    VIEWED = "viewed"
    EXPIRED = "expired"


ENDED = frozenset({Status.VIEWED, Status.EXPIRED})
"""Statuses that nothing follows."""

_NEXT: dict[Status, frozenset[Status]] = {
    Status.UPLOADED: frozenset({Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED, Status.EXPIRED}),
    Status.NOTIFIED: frozenset({Status.DOWNLOADED, Status.VIEWED, Status.EXPIRED}),
    Status.DOWNLOADED: frozenset({Status.VIEWED, Status.EXPIRED}),
    Status.VIEWED: frozenset(),
    Status.EXPIRED: frozenset(),
}


class Video(NamedTuple):
    """One video in transit, as one of its two clients knows it. Times are ms since the epoch.

    `at`: when `status` was reached. `size`: bytes. `came`: the version of the recipient's packet that brought the video
    (0 in the sender's list): a device that has applied that version has learnt of it.
    """

    status: Status
    at: int
    uploaded_at: int
    size: int
    content_type: str
    came: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def shown_status(self) -> Status:
        """The status in the recipient's own packet: that it was notified is the sender's to see."""
        return Status.UPLOADED if self.status is Status.NOTIFIED else self.status

    @property
    def shown_at(self) -> int:
        """When `shown_status` was reached."""
        return self.uploaded_at if self.status is Status.NOTIFIED else self.at

    def moves_to(self, status: Status) -> bool:
        """Whether `status` comes after the present one. The only place that decides it."""
        return status in _NEXT[self.status]

    def moved(self, status: Status, at: int) -> "Video":
        """This video with a status that `moves_to` allowed; time never runs back, whatever a machine's clock says."""
        return self._replace(status=status, at=max(at, self.at))


class Pair(NamedTuple):
    """The videos from one sender to one recipient, by id.

    `version`: that of the sender's packet when it last changed which videos are in the list. Sender and recipient agree
    on the list where they carry the same version; a copy of an older one changes nothing.
    """

    version: int
    videos: Mapping[VideoId, Video]


class Device(NamedTuple):
    """One registered device. Times are ms since the epoch, 0 for never.

    `token_key`: which `token:` document holds its push token. `heard_at`: when it was last heard of, to within a week.
    `acked`: the version it acknowledged last, as far as that mattered. `attempts`: pushes that a provider accepted
    since the newest news. `failures`: tries since the last that was accepted. `next_at`: when to push next.
    `background_at`: when the last background push was sent.
    """

    platform: str
    environment: str
    token_key: str
    registered_at: int
    heard_at: int
    acked: int = 0
    attempts: int = 0
    failures: int = 0
    next_at: int = 0
    background_at: int = 0


class ClientState(NamedTuple):
    """Everything the gateway knows of one client. Empty, with version 0, for a client it has never heard of.

    `version`: that of the info packet; it moves only when the packet's content does. `outgoing` by recipient,
    `incoming` by sender. `ended`: ids of videos it sent that are over, oldest first; `ended_floor`: ids up to it count
    as ended too (the list was full). `status_news`: the version that brought the newest status of an outgoing video.
    `check_at`: when something expires, at the latest (0: nothing does).
    """

    client_id: ClientId
    version: int = 0
    outgoing: Mapping[ClientId, Pair] = {}
    incoming: Mapping[ClientId, Pair] = {}
    ended: tuple[VideoId, ...] = ()
    ended_floor: str = ""
    devices: Mapping[DeviceId, Device] = {}
    status_news: int = 0
    check_at: int = 0

    @property
    def due(self) -> int | None:
        """When the worker must look at this client (ms), or None: a device to wake, or something that expires."""
        due = self.check_at
        for device in self.devices.values():
            if device.next_at and not 0 < due <= device.next_at:
                due = device.next_at
        return due or None

    @property
    def blank(self) -> bool:
        """Whether nothing is left to remember, but for the packet's version."""
        return not (self.outgoing or self.incoming or self.ended or self.ended_floor or self.devices)

    def received(self) -> Iterator[tuple[ClientId, VideoId, Video]]:
        """Every incoming video with its sender, ended ones included."""
        for sender_id, pair in self.incoming.items():
            for video_id, video in pair.videos.items():
                yield sender_id, video_id, video

    def sent(self) -> Iterator[tuple[ClientId, VideoId, Video]]:
        """Every outgoing video with its recipient, ended ones included."""
        for recipient_id, pair in self.outgoing.items():
            for video_id, video in pair.videos.items():
                yield recipient_id, video_id, video

    def find_received(self, video_id: VideoId) -> tuple[ClientId, Video] | None:
        """The incoming video with that id, and who sent it."""
        for sender_id, pair in self.incoming.items():
            if (video := pair.videos.get(video_id)) is not None:
                return sender_id, video
        return None

    def find_sent(self, video_id: VideoId) -> tuple[ClientId, Video] | None:
        """The outgoing video with that id, and whom it is for."""
        for recipient_id, pair in self.outgoing.items():
            if (video := pair.videos.get(video_id)) is not None:
                return recipient_id, video
        return None


# --- The stored form ---------------------------------------------------------------------------------------------
#
# {"f":1,"v":version,"o":{recipient:pair},"i":{sender:pair},"e":[ids],"x":floor,"d":{device:row},"s":status_news,
#  "c":check_at}; a pair is [version,{id:row}], a row positional. Members that are empty or 0 are left out, times stand
# as differences from the first of their row, and the usual content type as 0: DynamoDB charges by the started KB.

_FORMAT = 1
_USUAL_TYPE = "video/mp4"
_LETTER = {
    Status.UPLOADED: "u",
    Status.NOTIFIED: "n",
    Status.DOWNLOADED: "d",
    Status.VIEWED: "v",
    Status.EXPIRED: "x",
}
_STATUS = {letter: status for status, letter in _LETTER.items()}


class UnreadableDocument(Exception):
    """A stored document is not one of ours, or of a newer format than this version reads."""


def encode(state: ClientState) -> bytes:
    """The stored form of `state`; empty for a client never heard of, whose document can go."""
    if state.blank and not state.version:
        return b""
    body: dict[str, Any] = {"f": _FORMAT, "v": state.version}
    if state.outgoing:
        body["o"] = {client_id: _pair_row(pair) for client_id, pair in state.outgoing.items()}
    if state.incoming:
        body["i"] = {client_id: _pair_row(pair) for client_id, pair in state.incoming.items()}
    if state.ended:
        body["e"] = state.ended
    if state.ended_floor:
        body["x"] = state.ended_floor
    if state.devices:
        body["d"] = {device_id: _device_row(device) for device_id, device in state.devices.items()}
    if state.status_news:
        body["s"] = state.status_news
    if state.check_at:
        body["c"] = state.check_at
    return orjson.dumps(body)


def decode(client_id: ClientId, body: bytes) -> ClientState:
    """The state that `encode` made; an empty body is a client never heard of. Raises UnreadableDocument."""
    if not body:
        return ClientState(client_id)
    try:
        fields = orjson.loads(body)
        if fields["f"] != _FORMAT:
            raise UnreadableDocument(f"format {fields['f']!r}, and this version reads {_FORMAT}")
        return ClientState(
            client_id,
            fields["v"],
            {peer: _pair(row) for peer, row in fields.get("o", {}).items()},
            {peer: _pair(row) for peer, row in fields.get("i", {}).items()},
            tuple(fields.get("e", ())),
            fields.get("x", ""),
            {device: _device(*row) for device, row in fields.get("d", {}).items()},
            fields.get("s", 0),
            fields.get("c", 0),
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnreadableDocument(f"not a client's document: {type(error).__name__}") from error


def _pair_row(pair: Pair) -> list[Any]:
    rows: dict[VideoId, list[Any]] = {}
    for video_id, (status, at, uploaded_at, size, content_type, came) in pair.videos.items():
        kind = 0 if content_type == _USUAL_TYPE else content_type
        row = [_LETTER[status], uploaded_at, at - uploaded_at, size, kind]
        rows[video_id] = [*row, came - uploaded_at] if came else row
    return [pair.version, rows]


def _pair(row: list[Any]) -> Pair:
    return Pair(row[0], {video_id: _video(*video) for video_id, video in row[1].items()})


def _video(letter: str, uploaded_at: int, elapsed: int, size: int, kind: str | int, came: int | None = None) -> Video:
    return Video(
        _STATUS[letter],
        uploaded_at + elapsed,
        uploaded_at,
        size,
        kind or _USUAL_TYPE,  # type: ignore[arg-type]
        0 if came is None else uploaded_at + came,
    )


def _device_row(device: Device) -> list[Any]:
    since = device.registered_at
    return [
        device.platform,
        device.environment,
        device.token_key,
        since,
        device.heard_at - since,
        device.acked,
        device.attempts,
        device.failures,
        device.next_at,
        device.background_at,
    ]


def _device(platform: str, environment: str, token_key: str, since: int, heard: int, *rest: int) -> Device:
    return Device(platform, environment, token_key, since, since + heard, *rest)

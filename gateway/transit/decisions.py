"""What a rule answers: the owner's new document, a verdict for the app, and what has to follow."""

from enum import StrEnum
from typing import NamedTuple

from gateway.transit.state import ClientId, ClientState, VideoId, valid_id, valid_video_id


class VideoRef(NamedTuple):
    """Which video, from whom, to whom: enough to find its bytes."""

    video_id: VideoId
    sender_id: ClientId
    recipient_id: ClientId

    @property
    def object_key(self) -> str:
        """Where its bytes are kept. Who and when can be read from the key, keys of one shard sort by time, and the
        random last digit spreads the load."""
        return f"{self.video_id[-1]}/{self.video_id}/{self.sender_id}/{self.recipient_id}"

    @classmethod
    def parse(cls, object_key: str) -> "VideoRef | None":
        """The video whose bytes are kept under this key, or None where it is not such a key."""
        shard, _, rest = object_key.partition("/")
        parts = rest.split("/")
        if len(parts) != 3 or not valid_video_id(parts[0]) or not (valid_id(parts[1]) and valid_id(parts[2])):
            return None
        ref = cls(VideoId(parts[0]), ClientId(parts[1]), ClientId(parts[2]))
        return ref if shard == ref.video_id[-1] else None


class Result(StrEnum):
    """What became of a call. All three mean: done, do not retry."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"


class Reason(StrEnum):
    """Why a call was ignored."""

    UNKNOWN_VIDEO = "unknown_video"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"


class Verdict(NamedTuple):
    """What a call about one video is answered."""

    result: Result
    reason: Reason | None = None


APPLIED = Verdict(Result.APPLIED)
DUPLICATE = Verdict(Result.DUPLICATE)
UNKNOWN = Verdict(Result.IGNORED, Reason.UNKNOWN_VIDEO)
SUPERSEDED = Verdict(Result.IGNORED, Reason.SUPERSEDED)
TOO_LATE = Verdict(Result.IGNORED, Reason.EXPIRED)


class Stored(NamedTuple):
    """What the object store has of an upload: bytes and type."""

    size: int
    content_type: str


class Decision(NamedTuple):
    """The first half of a change: the owner's new state, and what has to follow once it is committed.

    `settle`: the clients whose documents are then to agree with it. `gone`: videos that ended, whose bytes can go.
    A decision that changed nothing lists both all the same, so that a retry completes what a crash cut short.
    """

    state: ClientState
    verdicts: tuple[Verdict, ...] = ()
    settle: frozenset[ClientId] = frozenset()
    gone: tuple[VideoRef, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return self.verdicts[0]

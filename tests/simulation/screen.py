"""What one phone shows its user, held to what really happened.

A device stores its record before anything follows from it, so each record that is stored is a screen. Beside it stands
what the app was told by `Device.changes`.
"""

from collections.abc import Callable

from gateway.client.record import Change, Received, ReceivedStatus, Record, Sent, SentStatus
from gateway.transit.state import ClientId, Status
from tests.simulation.truth import Clip, Truth

OVER = frozenset({SentStatus.VIEWED, SentStatus.EXPIRED, SentStatus.COMPLETE, SentStatus.FAILED})
RANK = {
    SentStatus.QUEUED: 0,
    SentStatus.UPLOADED: 1,
    SentStatus.NOTIFIED: 2,
    SentStatus.DOWNLOADED: 3,
    **dict.fromkeys(OVER, 4),
}
TOLD = {ReceivedStatus.ARRIVED: 0, ReceivedStatus.READY: 1, ReceivedStatus.GONE: 1}


class Screen:
    """The screen of one account on one phone, from its log-in to its log-out."""

    def __init__(self, truth: Truth, name: str, client_id: ClientId) -> None:
        self._truth = truth
        self._name = name
        self._client_id = client_id
        self._version = 0
        self._sent: dict[str, Sent] = {}
        self._received: dict[str, Received] = {}
        self.shown: dict[str, SentStatus | ReceivedStatus] = {}
        """What the app was told last, of each video."""
        self.left = False
        """Whether its account has logged out of the phone."""
        self.deleted: set[str] = set()
        """The keys of sent videos that the user had deleted."""
        self.seen: set[str] = set()
        """The ids of received videos that the user has seen."""

    def stored(self, body: bytes) -> None:
        """The device has stored this record."""
        record = Record.decode(body)
        if record.logged_out or record.client_id != self._client_id:
            return
        if record.version < self._version:
            self._broken("screen goes back", f"from version {self._version} to {record.version}")
        self._version = record.version
        durable, device = self._truth.durable, (self._client_id, record.device_id)
        durable[device] = max(durable[device], record.version)
        for video in record.sent.values():
            before = self._sent.get(video.key)
            if video != before:
                self._check_sent(before, video)
        for key, video in self._sent.items():
            if key not in record.sent and video.status not in OVER and key not in self.deleted:
                self._broken("sent video vanishes", f"{key} was {video.status}")
        for received in record.received.values():
            if received != self._received.get(received.video_id):
                self._check_received(self._received.get(received.video_id), received)
        self._sent, self._received = dict(record.sent), {str(key): video for key, video in record.received.items()}

    def _check_sent(self, before: Sent | None, video: Sent) -> None:
        clip = None if video.video_id is None else self._clip(video.video_id)
        if clip is not None and clip.ref[1:] != (self._client_id, video.recipient_id):
            self._broken("another's video", f"{video.video_id} of {clip.ref} is shown as sent to {video.recipient_id}")
        if before is not None and not self._follows(before.status, video.status):
            self._broken("status goes back", f"{video.key} from {before.status} to {video.status}")
        if before is None or before.status != video.status:
            self._check_status(video, clip)

    @staticmethod
    def _follows(before: SentStatus, after: SentStatus) -> bool:
        return before == after or (before not in OVER and RANK[after] > RANK[before])

    def _check_status(self, video: Sent, clip: Clip | None) -> None:
        truth = self._truth
        if video.status is SentStatus.QUEUED:
            return
        if video.status is SentStatus.FAILED:
            self._check_failed(video, clip)
            return
        if clip is None or not clip.tracked:
            self._broken("status that is not", f"{video.key} is {video.status}, and was never in transit")
            return
        possible: dict[SentStatus, Callable[[Clip], bool]] = {
            SentStatus.DOWNLOADED: lambda clip: bool({Status.DOWNLOADED, Status.VIEWED} & clip.reported),
            SentStatus.VIEWED: lambda clip: Status.VIEWED in clip.reported,
            SentStatus.EXPIRED: truth.may_be_expired,
            SentStatus.COMPLETE: truth.may_be_gone,
        }
        if video.status in possible and not possible[video.status](clip):
            self._broken("status that is not", f"{clip.id} is shown as {video.status}")

    def _check_failed(self, video: Sent, clip: Clip | None) -> None:
        match video.reason:
            case "superseded":
                # Of ids that ended long ago only the highest is remembered: what is below it counts as ended too.
                floor = self._truth.state(self._client_id).ended_floor
                # And who had no answer that there was no room hears the next time only that it is over.
                holds = clip is not None and (self._truth.may_be_gone(clip) or clip.id <= floor or clip.refused)
            case "too_many_in_transit":
                holds = True  # whether there was room at that moment is the rules' matter
            case _:
                holds = False
        if not holds:
            self._broken("fails for no reason", f"{video.key}: {video.reason}")

    def _check_received(self, before: Received | None, video: Received) -> None:
        clip = self._clip(video.video_id)
        if (clip.ref.sender_id, clip.ref.recipient_id) != (video.sender_id, self._client_id):
            self._broken("another's video", f"{video.video_id} of {clip.ref} is shown as received")
        if not clip.tracked:
            self._broken("status that is not", f"{video.video_id} is shown, and was never in transit")
        if before is not None and (before.viewed > video.viewed or before.here > video.here):
            self._broken("status goes back", f"{video.video_id} from {before} to {video}")

    def told(self, change: Change) -> None:
        """The app is told of a change, and has taken in the one before."""
        before = self.shown.get(change.key)
        if isinstance(change.status, ReceivedStatus):
            forward = not isinstance(before, ReceivedStatus) or TOLD[change.status] > TOLD[before]
        else:
            forward = not isinstance(before, SentStatus) or self._follows(before, change.status)
        if before == change.status or not forward:
            self._broken("told twice", f"{change.key}: {before}, then {change.status}")
        self.shown[change.key] = change.status

    def _clip(self, video_id: str) -> Clip:
        clip = self._truth.clips.get(video_id)
        if clip is None:
            self._broken("video that is not", f"{video_id} was never announced")
            raise RuntimeError(video_id)
        return clip

    def _broken(self, name: str, text: str) -> None:
        self._truth.broken(name, f"{self._name}, {self._client_id}: {text}")

"""The videos that are under way between the phones of a process: when each was due, and how far it has come."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gateway.client import Packet
from gateway.transit.state import Status
from scripts.loadtest.options import Kind
from scripts.loadtest.tally import Count, Fault, News, Tally

FRIENDS = 4
"""To so many others a phone sends. Viewed videos stay listed for days, one for each recipient: with everybody as a
friend, packets would grow with the length of the test."""

_RANK = {status: rank for rank, status in enumerate(Status)}
_TRIES = 8


class Party(Protocol):
    """A sender, or a recipient."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...


P = TypeVar("P", bound=Party)


@dataclass(slots=True)
class Video(Generic[P]):
    """One video. Times are by `time.monotonic`, and when something was due, whenever it happened.

    `upload_s`: when its bytes were. `reported_s`: when its recipient's reports were. `listed`: its sender was told of
    it; `arrived`: its recipient was; `rank`: of the status that its sender was told last.
    """

    key: str
    sender: P
    recipient: P
    due_s: float
    size: int
    video_id: str | None = None
    upload_s: float | None = None
    reported_s: dict[Status, float] = field(default_factory=dict)
    listed: bool = False
    arrived: bool = False
    rank: int = -1

    @property
    def body(self) -> bytes:
        """Its bytes, which no other video has."""
        return _body(self.key, self.size)

    @property
    def measured(self) -> bool:
        """Whether what its sender hears says something of the gateway alone: neither side is away on purpose."""
        return self.sender.kind is Kind.FOREGROUND and self.recipient.kind in {Kind.FOREGROUND, Kind.BACKGROUND}


def _body(key: str, size: int) -> bytes:
    head = key.encode()
    return (head + _FILLING * (size // len(_FILLING) + 1))[:size]


_FILLING = bytes(range(256)) * 4


def sha256_of(video: Video[P]) -> str:
    """The hash of its bytes."""
    return hashlib.sha256(video.body).hexdigest()


class Book(Generic[P]):
    """All videos of a process that are not done."""

    def __init__(self, tally: Tally, rng: random.Random, *, mark: str, size: int) -> None:
        self._tally = tally
        self._rng = rng
        self._mark = mark
        self._size = size
        self._count = 0
        self._present: set[int] = set()
        self._senders: list[P] = []
        self._friends: dict[int, Sequence[P]] = {}
        self._pairs: dict[tuple[int, int], Video[P]] = {}
        self._keys: dict[str, Video[P]] = {}
        self._ids: dict[str, Video[P]] = {}

    # --- Who sends to whom

    def introduce(self, phones: Sequence[P]) -> None:
        """These phones there will be."""
        for phone in phones:
            some = self._rng.sample(phones, min(FRIENDS + 1, len(phones)))
            self._friends[id(phone)] = [each for each in some if each is not phone][:FRIENDS]

    def present(self, phone: P) -> None:
        """This one is there now."""
        self._present.add(id(phone))
        if phone.kind.sends:
            self._senders.append(phone)

    def begin(self, due_s: float) -> Video[P] | None:
        """A video that is due; None where no two are there yet. If possible between two who have none under way: a new
        one replaces that."""
        pairs = [pair for _ in range(_TRIES) if (pair := self._pair()) is not None]
        if not pairs:
            return None
        self._tally.count(Count.DUE)
        sender, recipient = next((pair for pair in pairs if self._pair_key(*pair) not in self._pairs), pairs[0])
        if (old := self._pairs.get(self._pair_key(sender, recipient))) is not None:
            self._tally.count(Count.REPLACED)
            self._forget(old)
        self._count += 1
        video = Video(f"{self._mark}-{self._count:x}", sender, recipient, due_s, self._size)
        self._pairs[self._pair_key(sender, recipient)] = self._keys[video.key] = video
        return video

    def _pair(self) -> tuple[P, P] | None:
        if not self._senders:
            return None
        sender = self._rng.choice(self._senders)
        friends = [friend for friend in self._friends[id(sender)] if id(friend) in self._present]
        return (sender, self._rng.choice(friends)) if friends else None

    @staticmethod
    def _pair_key(sender: P, recipient: P) -> tuple[int, int]:
        return id(sender), id(recipient)

    def _forget(self, video: Video[P]) -> None:
        self._keys.pop(video.key, None)
        if video.video_id is not None:
            self._ids.pop(video.video_id, None)
        if self._pairs.get(self._pair_key(video.sender, video.recipient)) is video:
            del self._pairs[self._pair_key(video.sender, video.recipient)]

    # --- What becomes of them

    def of_key(self, key: str) -> Video[P] | None:
        """The one that its sender calls so, unless it is done."""
        return self._keys.get(key)

    def of_id(self, video_id: str) -> Video[P] | None:
        """The one with that id, unless it is done."""
        return self._ids.get(video_id)

    def announced(self, key: str, video_id: str, now_s: float) -> None:
        """It has an id, and its bytes are due."""
        if (video := self._keys.get(key)) is not None:
            if video.video_id is not None:
                self._ids.pop(video.video_id, None)
            video.video_id = video_id
            video.upload_s = now_s if video.upload_s is None else video.upload_s
            self._ids[video_id] = video

    def reported(self, video_id: str, status: Status, due_s: float) -> None:
        """Its recipient's report is due."""
        if (video := self._ids.get(video_id)) is not None:
            video.reported_s.setdefault(status, due_s)

    def refused(self, key: str, why: str) -> None:
        """It will never be sent."""
        if (video := self._keys.get(key)) is not None:
            self._tally.fault(Fault.REFUSED, f"a video of {video.sender.name} was refused: {why}")
            self._forget(video)

    def saw(self, phone: P, packet: Packet, now_s: float) -> None:
        """A phone has a packet, however it came."""
        for entry in packet.incoming:
            video = self._ids.get(entry.video_id)
            if video is not None and not video.arrived:
                self._arrived(phone, video, now_s)
        for sent in packet.outgoing:
            video = self._ids.get(sent.video_id)
            if video is not None and _RANK[sent.status] > video.rank:
                self._advanced(phone, video, sent.status, now_s)

    def pushed(self, packet: Packet, at_s: float) -> None:
        """A push with that packet arrived, at a phone that holds no socket."""
        for entry in packet.incoming:
            video = self._ids.get(entry.video_id)
            if video is not None and not video.arrived:
                video.arrived = True
                self._tally.count(Count.ARRIVED)
                if video.upload_s is not None:
                    self._tally.took(News.PUSH, at_s - video.upload_s)

    def _arrived(self, phone: P, video: Video[P], now_s: float) -> None:
        if phone is not video.recipient:
            self._tally.fault(Fault.WRONG, f"{phone.name} was told of a video to {video.recipient.name}")
            return
        video.arrived = True
        self._tally.count(Count.ARRIVED)
        if phone.kind is Kind.FOREGROUND and video.upload_s is not None:
            self._tally.took(News.RECIPIENT, now_s - video.upload_s)
            if video.sender.kind is Kind.FOREGROUND:
                self._tally.took(News.WHOLE, now_s - video.due_s)

    def _advanced(self, phone: P, video: Video[P], status: Status, now_s: float) -> None:
        if phone is not video.sender:
            self._tally.fault(Fault.WRONG, f"{phone.name} was told of a video from {video.sender.name}")
            return
        video.rank = _RANK[status]
        if not video.listed:
            video.listed = True
            if phone.kind is Kind.FOREGROUND and video.upload_s is not None:
                self._tally.took(News.SENDER, now_s - video.upload_s)
        due_s = video.reported_s.get(status)
        if due_s is not None and video.measured:
            self._tally.took(News.REPORT, now_s - due_s)
        if status is Status.VIEWED:
            if due_s is None:
                self._tally.fault(Fault.WRONG, f"a video of {phone.name} is viewed, and nobody has said so")
            self._tally.count(Count.DONE)
            self._forget(video)
        elif status is Status.EXPIRED:
            self._tally.fault(Fault.WRONG, f"a video of {phone.name} is expired")
            self._forget(video)

    @property
    def left(self) -> list[Video[P]]:
        """Those that are not done."""
        return list(self._keys.values())

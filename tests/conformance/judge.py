"""Whether what a client tells, and what it shows in the end, is what happened."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.conformance.witness import Kind

SENT = {"queued": 0, "uploaded": 1, "notified": 2, "downloaded": 3} | dict.fromkeys(
    ("viewed", "expired", "complete", "failed"), 4
)
RECEIVED = {"arrived": 0, "ready": 1, "gone": 1}
ENDED = SENT["viewed"]

FAIR_REASONS = {"superseded", "too_many_in_transit"}
"""Why a video may fail though nobody made a mistake."""


class Change(NamedTuple):
    """What a client told of a video. `file`: where the bytes of one are that is ready."""

    key: str
    video_id: str | None
    peer: str
    status: str
    reason: str | None
    file: str | None

    @classmethod
    def parse(cls, said: Mapping[str, object]) -> "Change":
        """Raises ValueError for what is none."""
        texts = {name: said.get(name) for name in cls._fields}
        if not all(isinstance(text, str | None) for text in texts.values()) or None in {
            texts["key"],
            texts["peer"],
            texts["status"],
        }:
            raise ValueError(f"a change has other members than it should: {sorted(said)}")
        return cls(**texts)  # type: ignore[arg-type]  # they have just been looked at


class Shown(NamedTuple):
    """A video that a client shows. `key`: of a sent one. `video_id`: None while it has none."""

    key: str | None
    video_id: str | None
    status: str


class State(NamedTuple):
    """What a client shows when it is asked."""

    sent: tuple[Shown, ...]
    received: tuple[Shown, ...]

    @classmethod
    def parse(cls, said: Mapping[str, object]) -> "State":
        """Raises ValueError for what is none."""
        return cls(tuple(_shown(said.get("sent"))), tuple(_shown(said.get("received"))))


def _shown(entries: object) -> Iterator[Shown]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("`sent` and `received` are lists of objects")
    for entry in entries:
        key, video_id, status = (entry.get(name) for name in Shown._fields)
        if not isinstance(status, str) or not isinstance(video_id, str | None) or not isinstance(key, str | None):
            raise ValueError("an entry of `sent` or `received` has other members than it should")
        yield Shown(key, video_id, status)


@dataclass(slots=True)
class Sending:
    """A video that a user had sent. `key`: what the client called it, None where it never answered. `deleted`: whether
    it was told to delete it."""

    recipient: str
    digest: str
    key: str | None = None
    deleted: bool = False


class Book:
    """What a client was told to do, and what it told; changes are judged as they come.

    `found`: is told what is wrong. `sent_to`: the digests of all that one account has sent to another.
    """

    def __init__(
        self, account: str, found: Callable[[Kind, str], None], sent_to: Callable[[str, str], set[str]]
    ) -> None:
        self.sendings: list[Sending] = []
        self.viewed: set[str] = set()
        self.ready: dict[str, str] = {}
        """The digests of received videos, by their ids."""
        self.statuses: dict[str, Change] = {}
        """Of each video the last change, by its key."""
        self._account = account
        self._found = found
        self._sent_to = sent_to
        self._last: Change | None = None
        self._again: Change | None = None

    def killed(self) -> None:
        """The client was killed: what it told last it may tell again."""
        self._again, self._last = self._last, None

    def tells(self, change: Change) -> None:
        """The client tells a change."""
        again = self._again is not None and (change.key, change.status) == (self._again.key, self._again.status)
        if again:
            self._again = None
        else:
            self._judge(change)
        if change.status == "ready":
            self._read(change)
        self.statuses[change.key] = self._last = change

    def _judge(self, change: Change) -> None:
        before, ranks = self.statuses.get(change.key), RECEIVED if change.status in RECEIVED else SENT
        if change.status not in ranks:
            self._found(Kind.BACKWARDS, f"tells a status that there is not: {change.status}")
        elif before is not None and before.status == change.status:
            self._found(Kind.TOLD_TWICE, f"tells twice that {change.key} is {change.status}")
        elif before is not None and ranks.get(before.status, 0) >= ranks[change.status]:
            self._found(Kind.BACKWARDS, f"tells that {change.key} is {change.status}, after {before.status}")
        if change.status == "failed" and change.reason not in FAIR_REASONS:
            self._found(Kind.ENDED, f"gives up {change.key}: {change.reason}")

    def _read(self, change: Change) -> None:
        try:
            digest = hashlib.sha256(Path(change.file or "").read_bytes()).hexdigest()
        except OSError:
            self._found(Kind.BYTES, f"tells that {change.key} is ready, and has no file of it")
            return
        if digest not in self._sent_to(change.peer, self._account):
            self._found(Kind.BYTES, f"has other bytes of {change.key} than {change.peer} sent")
        self.ready[change.video_id or change.key] = digest


class Truth(NamedTuple):
    """A client's packet at the gateway: the statuses of its videos by their ids."""

    outgoing: Mapping[str, str]
    incoming: Mapping[str, str]


Difference = tuple[Kind, str]


def differences(truth: Truth, state: State, book: Book) -> Iterator[Difference]:
    """What a client shows that the gateway has not, and the other way round."""
    yield from _outgoing(truth, state)
    yield from _incoming(truth, state)
    listed = truth.incoming.keys() | {video.video_id for video in state.received}
    for video_id in sorted(book.viewed & listed):
        yield Kind.VIEWED, f"has {video_id} listed, which its user has viewed"


def _outgoing(truth: Truth, state: State) -> Iterator[Difference]:
    shown = {video.video_id: video.status for video in state.sent if video.video_id is not None}
    for video_id, status in truth.outgoing.items():
        if (mine := shown.get(video_id)) != status:
            yield Kind.LISTS, f"has {video_id} as {mine or 'not sent'}, which is {status} at the gateway"
    for video in state.sent:
        if SENT.get(video.status, 0) < ENDED and video.video_id not in truth.outgoing:
            yield Kind.LISTS, f"has {video.key} as {video.status}, which is not listed at the gateway"


def _incoming(truth: Truth, state: State) -> Iterator[Difference]:
    shown = {video.video_id or "": video.status for video in state.received}
    for video_id, status in truth.incoming.items():
        mine = shown.get(video_id)
        if mine != "ready":
            yield Kind.LISTS, f"has {video_id} as {mine or 'not received'}, which is listed at the gateway"
        elif status != "downloaded":
            yield Kind.LISTS, f"has the bytes of {video_id}, and the gateway has it as {status}"
    for video_id in shown.keys() - truth.incoming.keys():
        if shown[video_id] == "arrived":
            yield Kind.LISTS, f"waits for {video_id}, which is not listed at the gateway"


def forgotten(state: State, book: Book) -> Iterator[Difference]:
    """Videos that a client took on, and that it neither shows nor has told the end of."""
    shown = {video.key for video in state.sent}
    for sending in book.sendings:
        if sending.key is None or sending.deleted or sending.key in shown:
            continue
        told = book.statuses.get(sending.key)
        if told is None or SENT.get(told.status, 0) < ENDED:
            yield Kind.LOST, f"has forgotten {sending.key}, which it had taken on"


def undelivered(account: str, books: Iterable[Book], arrived: Mapping[str, set[str]]) -> Iterator[Difference]:
    """The newest videos of an account, of those that nothing replaced and nobody deleted, that did not arrive.
    `arrived`: the digests of all that came to each account."""
    senders = [book for book in books if book.sendings]
    for recipient in arrived.keys() - {account}:
        to_them = [[sending for sending in book.sendings if sending.recipient == recipient] for book in senders]
        to_them = [sendings for sendings in to_them if sendings]
        if len(to_them) != 1:
            continue  # of two devices, either's may be the newest
        newest = to_them[0][-1]
        if newest.key is not None and not newest.deleted and newest.digest not in arrived[recipient]:
            yield Kind.LOST, f"sent {newest.key} to {recipient}, where it never arrived"

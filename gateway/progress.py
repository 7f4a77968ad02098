"""What workers tell each other of the sweep: whose turn it is, and how far a pass over everything has come.

Two small documents in the store that all of them share, replaced by compare-and-set. What cannot be read there counts
as nothing, and so does a time that cannot be meant: the worst that follows is work that is done twice.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from gateway.transit.policy import CLOCK_SKEW_MS, DAY_MS, MINUTE_MS
from storage.documents import Conflict, Document, DocumentStore

TURN_KEY = "sweep:turn"
FULL_KEY = "sweep:full"

PARTS = 4
"""In how many parts the documents are looked at, all at once."""

SAVE_MS = 5_000
"""How often the place of a pass is saved."""

SILENT_MS = MINUTE_MS
"""A pass whose place was not saved for this long was cut off."""

STALE_MS = 2 * DAY_MS
"""A place older than this is not gone on from: it may be of another store, and little of the work would be spared."""

NoteT = TypeVar("NoteT")


class Overtaken(Exception):
    """The pass is over, or was begun anew: somebody else has done it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Who looks after recent uploads, and until when (ms since the epoch)."""

    by: str = ""
    until: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the passes over everything are; times in ms since the epoch.

    `ended`: when the last one came to its end; 0: never. `began`: the unfinished one, by its beginning; 0: there is
    none. `saved`, `by`: when its place was saved, by whom. `after`: the last object that was looked at, "" before the
    first, None after the last one. `cursors`: for each part of the documents, where it goes on: "" at its beginning,
    None after its end.
    """

    ended: int = 0
    began: int = 0
    saved: int = 0
    by: str = ""
    after: str | None = ""
    cursors: tuple[str | None, ...] = ("",) * PARTS

    def is_due(self, now: int, every_ms: int) -> bool:
        """Whether a pass is to be finished, or begun. One that ended hours from now has another clock's time."""
        return bool(self.began) or not -CLOCK_SKEW_MS <= now - self.ended < every_ms

    def can_go_on(self, now: int) -> bool:
        """Whether there is a place to go on from."""
        return bool(self.began) and len(self.cursors) == PARTS and abs(now - self.saved) < STALE_MS


class Notes:
    """The two documents, as one process reads and writes them. All of it may raise `StoreUnavailable`.

    `now`: the time in ms since the epoch.
    """

    def __init__(self, documents: DocumentStore, now: Callable[[], int]) -> None:
        self._documents = documents
        self._now = now
        self._name = uuid.uuid4().hex
        self._full = Document(FULL_KEY)
        self._there = Progress()

    async def take_turn(self, turn_s: float) -> float:
        """Have the turn for `turn_s` seconds from now on; 0.0, or in how many seconds to ask again.

        Whoever has it may prolong it, and so keeps it. It ends by itself where its holder dies. One read, and a write
        where it was to be had.
        """
        [document] = await self._documents.load([TURN_KEY])
        turn, turn_ms = _read(document.body, Turn), round(turn_s * 1000)
        left = turn.until - self._now()
        if turn.by != self._name and 0 < left <= 2 * turn_ms:  # longer than that is a clock that went wrong
            return left / 1000
        taken = Turn(self._name, self._now() + turn_ms)
        try:
            await self._documents.commit([Document(TURN_KEY, document.version, msgspec.json.encode(taken))])
        except Conflict:
            return turn_s
        return 0.0

    async def progress(self) -> Progress:
        """How far everybody is."""
        [self._full] = await self._documents.load([FULL_KEY])
        self._there = _read(self._full.body, Progress)
        return self._there

    def is_others(self, progress: Progress) -> bool:
        """Whether somebody else is at the pass now, and alive."""
        return bool(progress.began) and progress.by != self._name and abs(self._now() - progress.saved) < SILENT_MS

    async def begin(self, progress: Progress, *, restart: bool = False) -> Progress:
        """Go on from where the unfinished pass is, if there is one and not `restart`, else begin one. `progress`: as it
        was read last; Conflict where it is no longer so."""
        now = self._now()
        if restart or not progress.can_go_on(now):
            # Two that began within a millisecond must not be taken for one.
            progress = Progress(ended=progress.ended, began=max(now, progress.began + 1, progress.ended + 1))
        return await self._write(progress)

    async def reached(self, progress: Progress) -> Progress:
        """All before this place was looked at. Saved every few seconds; Overtaken where it was found then.

        Of two at the same pass either may save its place: before each of them everything was looked at.
        """
        return progress if abs(self._now() - progress.saved) < SAVE_MS else await self._replace(progress, progress)

    async def end(self, progress: Progress) -> None:
        """The pass has come to its end. Overtaken where somebody else's had before."""
        await self._replace(progress, Progress(ended=self._now()))

    async def _replace(self, mine: Progress, wanted: Progress) -> Progress:
        while self._there.began == mine.began:
            try:
                return await self._write(wanted)
            except Conflict:
                await self.progress()
        raise Overtaken

    async def _write(self, progress: Progress) -> Progress:
        written = replace(progress, saved=self._now(), by=self._name)
        body = msgspec.json.encode(written)
        [self._full] = await self._documents.commit([Document(FULL_KEY, self._full.version, body)])
        self._there = written
        return written


def _read(body: bytes, kind: type[NoteT]) -> NoteT:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:  # nothing, or damaged, or of another version
        return kind()

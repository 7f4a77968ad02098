"""How a change becomes durable: load, apply a rule, commit, settle the other side, publish.

Two documents are two compare-and-set writes, the owner's first. Whoever meets a conflict before its first write begins
again; whoever meets it after, repeats the second half only. No transactions: see `docs/decisions/0001-two-writes.md`.

Where the store has a cache, the first try may begin with documents that are old, as long as only its own writes can
make anything of them: see `docs/decisions/0009-cache.md`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

from gateway import packet
from gateway.bus.bus import Bus, Kick, Publication
from gateway.deadlines import Deadline, Deadlines
from gateway.errors import Unavailable
from gateway.journal import Event, Journal
from gateway.metrics import Metrics
from gateway.removals import Removals
from gateway.transit import devices, pairs
from gateway.transit.decisions import Decision, Result
from gateway.transit.policy import Policy
from gateway.transit.state import (
    ClientId,
    ClientState,
    Pair,
    Status,
    UnreadableDocument,
    Video,
    VideoId,
    decode,
    encode,
    minted_at,
)
from storage.documents import MAX_LOAD, Conflict, Document, DocumentStore, StoreUnavailable
from storage.objects import ObjectsUnavailable

CALL_DEADLINE_S = 10.0
"""How long one call may take, its retries included; then it is answered `unavailable`, and the app repeats it."""

CONFLICT_PAUSE_S = 0.002
"""The longest pause after a first conflict; it doubles with each, up to a hundred times as much."""

CLIENT_PREFIX = "client:"

MOST_RECENT = 8_192
"""Clients whose state a process that is alone keeps as it wrote it last: some 2 KB each."""

log = logging.getLogger(__name__)

States = Mapping[ClientId, ClientState]
Rule = Callable[[States, int], Awaitable[Decision]]
"""From the states that were asked for and the time in ms, what is decided. Called again after a conflict, and where
what it was given may be old. What it raises stands: a rule that refuses names somebody beside the owner, so that it is
given nothing old."""


class TryAgain(Exception):
    """A rule did something else first, so the states it was given are no longer true: load them again."""


class _Entry(NamedTuple):
    """A client as it was loaded."""

    document: Document
    state: ClientState


class CallDeadline(Deadline):
    """A time limit within which a backend's failure becomes `Unavailable`. A class, because every call passes it: a
    generator's context costs twice as much."""

    __slots__ = ()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise Unavailable("a backend does not answer in time") from late
        match error:
            case None:
                return
            case TimeoutError():
                raise Unavailable("a backend does not answer in time") from error
            case StoreUnavailable():
                raise Unavailable("the document store does not answer") from error
            case ObjectsUnavailable():
                raise Unavailable("the object store does not answer") from error
            case UnreadableDocument():
                log.error("a stored document cannot be read", exc_info=error)
                raise Unavailable("a stored document cannot be read", retry_after_s=60) from error


class Changes:
    """Loads and changes clients' documents. All of it raises `Unavailable` where a backend does not answer in time.

    `recent`: how many clients are remembered as they were written last, so that the next change of theirs need not load
    them. For a process that is alone: where others write too, what is remembered is old too often.
    """

    def __init__(
        self,
        *,
        documents: DocumentStore,
        bus: Bus,
        removals: Removals,
        policy: Policy,
        metrics: Metrics,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.time,
        recent: int = 0,
    ) -> None:
        self.documents = documents
        self.policy = policy
        self.journal = journal or Journal(0)
        """Where whoever changes something notes what happened to the client."""
        self._bus = bus
        self._removals = removals
        self.clock = clock
        self._deadlines = Deadlines()
        self._most_recent = recent
        self._recent: dict[ClientId, _Entry] = {}
        self._metrics = metrics
        self._results = {result: metrics.results.labels(result) for result in Result}
        self._videos = {status: metrics.videos.labels(status) for status in Status}
        self._video_seconds = {status: metrics.video_seconds.labels(status) for status in Status}

    def now(self) -> int:
        """The time in ms since the epoch."""
        return int(self.clock() * 1000)

    async def load(self, client_id: ClientId) -> ClientState:
        """The client as every answered call left it."""
        async with self.deadline():
            entries = await self._load((client_id,))
        return entries[client_id].state

    async def peek(self, client_id: ClientId, *, least: int = 0) -> ClientState:
        """The client as it was some time within `PEEK_AGE_S`, but no older than its packet's version `least`."""
        async with self.deadline():
            entries, aged = await self._peek((client_id,))
            if aged and entries[client_id].state.version < least:
                entries = await self._load((client_id,))
        return entries[client_id].state

    async def load_both(self, one: ClientId, other: ClientId) -> tuple[ClientState, ClientState]:
        """Two different clients at once."""
        async with self.deadline():
            entries = await self._load((one, other))
        return entries[one].state, entries[other].state

    async def load_all(self, client_ids: Collection[ClientId]) -> list[ClientState]:
        """Any number of clients, in no particular order."""
        async with self.deadline():
            entries = await self._load(sorted(client_ids))
        return [entry.state for entry in entries.values()]

    async def run(
        self, owner_id: ClientId, rule: Rule, *, beside: Sequence[ClientId] = (), least: int | None = None
    ) -> Decision:
        """Let `rule` decide on the owner's state (and see those `beside` it, loaded at the same time), and make it so.

        Returns when both halves are durable and published. What the decision lists as gone is deleted after that.
        Where nothing is to be written or settled, and a state will do that is `PEEK_AGE_S` old, `least` is the least
        version of its packet that will do.
        """
        async with self.deadline():
            decision, changed, repeated = await self._commit(owner_id, rule, beside, least)
            await self._publish(changed, repeated)
        for verdict in decision.verdicts:
            self._results[verdict.result].inc()
        if decision.gone:
            self._removals.add(ref.object_key for ref in decision.gone)
        return decision

    async def repair(self, recipient_id: ClientId, sender_id: ClientId) -> bool:
        """Make the two documents of a pair agree, whatever became of the writes; whether anything was amiss.

        The recipient is read first, so that what the sender does not list then was ended, not overtaken.
        """
        async with self.deadline():
            tries = 0
            while True:
                now = self.now()
                entries = await self._load((recipient_id,))
                entries |= await self._load((sender_id,))
                recipient, sender = entries[recipient_id].state, entries[sender_id].state
                recipient = pairs.reconcile(recipient, sender, now=now, policy=self.policy)
                sender = pairs.raised(sender, recipient, now=now, policy=self.policy)
                states = {recipient_id: recipient, sender_id: sender}
                try:
                    changed = await self._write(entries, states)
                except Conflict:
                    tries = await self._pause(tries)
                    continue
                await self._publish([states[client_id] for client_id in changed])
                return bool(changed)

    def deadline(self) -> CallDeadline:
        """Whatever happens within has `CALL_DEADLINE_S`, and a backend's failure becomes `Unavailable`."""
        return CallDeadline(self._deadlines, CALL_DEADLINE_S)

    async def _commit(
        self, owner_id: ClientId, rule: Rule, beside: Sequence[ClientId], least: int | None
    ) -> tuple[Decision, list[ClientState], list[ClientState]]:
        """The decision once both halves are written; the states whose packet it changed, and those that are to be
        published once more.

        The first try may recall or peek. At the owner: if that was old, its write, which comes first, is a conflict. At
        those who are only settled: if they were old, that half is repeated. What a rule sees beside the owner is
        loaded, since the owner's write makes the decision stand before theirs could fail.
        """
        tries, recalls = 0, not beside
        begin = self._recall if least is None else self._peek  # what is remembered is of any age
        while True:
            now = self.now()
            first, recalls = recalls, False
            entries, aged = await begin((owner_id,)) if first else (await self._load((owner_id, *beside)), ())
            try:
                decision = await rule({client_id: entry.state for client_id, entry in entries.items()}, now)
            except TryAgain:
                tries = await self._pause(tries)
                continue
            if aged and decision.state == entries[owner_id].state and not _will_do(decision, least):
                continue  # nothing will be written that would prove it
            settled = sorted(decision.settle - {owner_id})
            others = [peer for peer in settled if peer not in entries]
            more, aged = await self._recall(others) if first else (await self._load(others), ())
            entries |= more
            states = {owner_id: decision.state} | self._agreeing(settled, entries, decision.state, now)
            if aged and (idle := [peer for peer in aged if states[peer] == entries[peer].state]):
                entries |= await self._load(idle)  # nothing will be written that would prove theirs
                states |= self._agreeing(idle, entries, decision.state, now)
            repeated = Result.DUPLICATE in (verdict.result for verdict in decision.verdicts)
            try:
                changed = await self._write(entries, states)
            except Conflict as conflict:
                written = {document.key for document in conflict.written}
                if entries[owner_id].document.key not in written:
                    tries = await self._pause(tries)  # nothing of this decision stands
                    continue
                unsettled = [peer for peer in settled if entries[peer].document.key not in written]
                states |= await self._settle(owner_id, unsettled)
                changed = [owner_id, *settled]
            self._count(entries[owner_id].state, decision.state)
            moved = [key for key in changed if states[key].version != entries[key].state.version]
            again = [key for key in states if key not in moved] if repeated else []
            return decision, [states[key] for key in moved], [states[key] for key in again]

    def _agreeing(
        self, peers: Sequence[ClientId], entries: Mapping[ClientId, _Entry], owner: ClientState, now: int
    ) -> dict[ClientId, ClientState]:
        """What the peers' documents are to say, so that they agree with the owner's."""
        return {peer: pairs.settle(entries[peer].state, owner, now=now, policy=self.policy) for peer in peers}

    async def _settle(self, owner_id: ClientId, peers: Collection[ClientId]) -> dict[ClientId, ClientState]:
        """The second half alone, until it is written."""
        settled: dict[ClientId, ClientState] = {}
        tries = 0
        while True:
            now = self.now()
            entries = await self._load((owner_id, *(peer for peer in peers if peer not in settled)))
            owner = entries.pop(owner_id).state
            states = self._agreeing([*entries], entries, owner, now)
            try:
                await self._write(entries, states)
            except Conflict as conflict:
                written = {document.key for document in conflict.written}
                settled |= {peer: states[peer] for peer in states if entries[peer].document.key in written}
                tries = await self._pause(tries)
                continue
            return settled | states

    def _count(self, before: ClientState, after: ClientState) -> None:
        """Count the statuses that a change brought, once it stands.

        Only the owner's write decides one, and one alone of all tries and repeats makes that write: each counts once.
        """
        for video_id, video in _entered(before, after):
            self._count_one(Status.UPLOADED, video.uploaded_at - minted_at(video_id))
            self._metrics.video_bytes.inc(video.size)
        for was, video in _moved(before, after):
            self._count_one(video.status, video.at - was.at)

    def _count_one(self, status: Status, took_ms: int) -> None:
        self._videos[status].inc()
        self._video_seconds[status].observe(max(took_ms, 0) / 1000)  # an id may be minted by a clock that is ahead

    async def _pause(self, tries: int) -> int:
        """Wait a random time before the next try, the longer the more there were: conflicts come in crowds. The call's
        deadline ends it all."""
        self._metrics.conflicts.inc()
        await asyncio.sleep(random.uniform(0, CONFLICT_PAUSE_S * min(2**tries, 100)))
        return tries + 1

    async def _load(self, client_ids: Sequence[ClientId]) -> dict[ClientId, _Entry]:
        entries: dict[ClientId, _Entry] = {}
        for some in batched(client_ids, MAX_LOAD):
            loaded = await self.documents.load([client_key(client_id) for client_id in some])
            for client_id, document in zip(some, loaded, strict=True):
                entries[client_id] = _Entry(document, decode(client_id, document.body))
        return entries

    async def _peek(self, client_ids: Sequence[ClientId]) -> tuple[dict[ClientId, _Entry], Collection[ClientId]]:
        """As `_load`, and who of them may be old."""
        entries: dict[ClientId, _Entry] = {}
        aged: list[ClientId] = []
        for some in batched(client_ids, MAX_LOAD):
            peeked = await self.documents.peek([client_key(client_id) for client_id in some])
            for client_id, document in zip(some, peeked.documents, strict=True):
                entries[client_id] = _Entry(document, decode(client_id, document.body))
            if peeked.aged:
                aged += [client_id for client_id in some if client_key(client_id) in peeked.aged]
        return entries, aged

    async def _recall(self, client_ids: Sequence[ClientId]) -> tuple[dict[ClientId, _Entry], Collection[ClientId]]:
        """As `_peek`, and whoever is remembered may be old too, of any age: for what only a write can make good."""
        known = {client_id: self._recent[client_id] for client_id in client_ids if client_id in self._recent}
        if len(known) == len(client_ids):
            return known, client_ids
        entries, aged = await self._peek([client_id for client_id in client_ids if client_id not in known])
        return entries | known, [*aged, *known]

    def _remember(self, client_ids: Sequence[ClientId], written: Sequence[Document], states: States) -> None:
        """How these were written; of too many those are forgotten that have not been written for longest."""
        recent = self._recent
        for client_id, document in zip(client_ids, written, strict=True):
            recent.pop(client_id, None)
            recent[client_id] = _Entry(document, states[client_id])
        while len(recent) > self._most_recent:
            del recent[next(iter(recent))]

    async def _write(self, entries: Mapping[ClientId, _Entry], states: States) -> list[ClientId]:
        """Commit what changed, in the order of `states`; which clients that were."""
        changed = [client_id for client_id, state in states.items() if state != entries[client_id].state]
        written: list[Document] = []
        for some in batched(changed, MAX_LOAD):
            try:
                written += await self.documents.commit([_document(entries[key].document, states[key]) for key in some])
            except Conflict as conflict:
                for client_id in changed:
                    self._recent.pop(client_id, None)
                raise Conflict(conflict.key, [*written, *conflict.written]) from None
        if self._most_recent:
            self._remember(changed, written, states)
        return changed

    async def _publish(self, changed: Sequence[ClientState], repeated: Sequence[ClientState] = ()) -> None:
        """Tell whoever is connected; where nobody is, have the devices woken without waiting for anyone.

        What is only told once more wakes nobody: a device that was told the first time may be between two polls.
        """
        listeners = await self._bus.publish(
            [
                Publication(
                    state.client_id,
                    state.version,
                    asks=devices.asks(state, self.policy),
                    encode=partial(packet.encode, state),
                )
                for state in (*changed, *repeated)
            ]
        )
        for state, heard in zip(changed, listeners, strict=False):
            self.journal.note(state.client_id, Event.PACKET, state.version, heard)
            if heard == 0 and devices.wakes_soon(state, self.now(), self.policy):
                await self._bus.kick(Kick(state.client_id))


def _document(loaded: Document, state: ClientState) -> Document:
    return Document(loaded.key, loaded.version, encode(state), state.due)


def _entered(before: ClientState, after: ClientState) -> Iterator[tuple[VideoId, Video]]:
    """The videos that a sender's change has put on its lists."""
    for had, pair in _touched(before.outgoing, after.outgoing):
        yield from ((video_id, video) for video_id, video in pair.videos.items() if video_id not in had)


def _moved(before: ClientState, after: ClientState) -> Iterator[tuple[Video, Video]]:
    """The videos that a recipient's change has moved to another status, as they were and as they are."""
    for had, pair in _touched(before.incoming, after.incoming):
        for video_id, video in pair.videos.items():
            if (known := had.get(video_id)) is not None and known.status != video.status:
                yield known, video


def _touched(
    before: Mapping[ClientId, Pair], after: Mapping[ClientId, Pair]
) -> Iterator[tuple[Mapping[VideoId, Video], Pair]]:
    """The pairs that are not the same objects, with the videos that they had: rules make only those anew."""
    if after is not before:
        for peer, pair in after.items():
            had = before.get(peer)
            if had is not pair:
                yield had.videos if had else {}, pair


def _will_do(decision: Decision, least: int | None) -> bool:
    """Whether a decision that changes nothing may stand on an old state."""
    return least is not None and least <= decision.state.version and not decision.settle


def batched(items: Sequence[ClientId], most: int) -> Sequence[Sequence[ClientId]]:
    """The items in order, at most `most` at a time."""
    if len(items) <= most:
        return (items,) if items else ()
    return [items[start : start + most] for start in range(0, len(items), most)]


def client_key(client_id: ClientId) -> str:
    """The key of a client's document."""
    return CLIENT_PREFIX + client_id

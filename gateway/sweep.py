"""The sweep: what calls that died left behind is completed or removed, by the same rules.

An upload that was stored and never confirmed is completed. An object that nothing tracks is deleted, a pair whose
second half was never written is mended, a push token that no device has any more is removed. Recent uploads are looked
at every few minutes, by one worker of all; everything that is kept, every hour or day, slowly, from where it was cut
off.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic as system_monotonic

from gateway.changes import Changes
from gateway.mending import ACTIONS, Found, Mending
from gateway.metrics import Metrics
from gateway.progress import PARTS, Notes, Overtaken, Progress
from gateway.transit.decisions import VideoRef
from gateway.transit.state import ClientId, ClientState
from gateway.uploads import SHARDS, Fate, Settled, Uploads, senders_of
from storage.documents import Conflict, ScanPage, StoreUnavailable
from storage.objects import ObjectStore, ObjectsUnavailable, ServedObjectStore

PAGE = 100
"""Objects that are looked at together, and documents of each part."""

MOST_KEPT = 1_000_000 // len(SHARDS)
"""Recent objects of a shard that are remembered as seen to; others are looked at again every round. 250,000 of them,
of all shards, take 17 MB."""

LOOK_S = 60.0
"""How soon to look again at a full pass that another worker is at, or that had to wait."""

log = logging.getLogger(__name__)


class RefusedCursor(Exception):
    """The store does not know the place at which a pass was to go on."""


class Pace:
    """So many things a second, evenly: a rest after each page. `rate`: 0 for as many as there are."""

    def __init__(self, rate: int, monotonic: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._sleep = sleep
        self._free_s = 0.0

    async def rest(self, things: int) -> None:
        """What so many may take, less what was used since the last rest; at least others come in between."""
        now_s = self._monotonic()
        if self._rate:
            # What was saved up while the stores were slow is not made up for in a rush.
            self._free_s = max(self._free_s + things / self._rate, now_s)
        await self._sleep(max(self._free_s - now_s, 0.0))


class Sweep:
    """Completes and removes what was left behind. Safe to run twice at once, or to be cut off anywhere.

    `rate`: how many objects, and how many documents, a full pass takes a second; 0: no limit. `monotonic`: seconds of a
    clock that never goes back; `sleep` lets them pass.
    """

    def __init__(
        self,
        *,
        changes: Changes,
        uploads: Uploads,
        mending: Mending,
        objects: ObjectStore,
        metrics: Metrics,
        rate: int = 0,
        monotonic: Callable[[], float] = system_monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changes = changes
        self._uploads = uploads
        self._mending = mending
        self._objects = objects
        self._metrics = metrics
        self._notes = Notes(changes.documents, changes.now)
        self._rate = rate
        self._monotonic = monotonic
        self._sleep = sleep
        self._kept: dict[str, set[int]] = {}

    async def run(self, every_s: float, *, turn_s: float) -> None:
        """A round over recent uploads every `every_s` seconds, while this worker has the turn, until cancelled.

        `turn_s`: how long a turn lasts that is not prolonged. Where it is longer than `every_s`, who has it keeps it,
        and with it what this process remembers of uploads.
        """
        while True:
            await self._sleep(await _or_later(self._recent_turn(every_s, turn_s), every_s))

    async def _recent_turn(self, every_s: float, turn_s: float) -> float:
        """One round, if it is this worker's turn; in how many seconds to ask again."""
        began_s = self._monotonic()
        if left_s := await self._notes.take_turn(turn_s):
            return left_s + random.random()
        _tell("swept", await self.round(full=False))
        # Counted from the beginning, so that a long round does not lose the turn, but not without a rest.
        return max(every_s - (self._monotonic() - began_s), every_s / 4)

    async def run_full(self, every_s: float, *, look_s: float) -> None:
        """A full pass `every_s` seconds after the last one ended, whoever did that, until cancelled.

        What was cut off is finished first. `look_s`: how often to look whether there is anything to do.
        """
        while True:
            await self._sleep(min(look_s, await _or_later(self._full_turn(every_s), LOOK_S)))

    async def _full_turn(self, every_s: float) -> float:
        """A full pass, if one is due and nobody is at it; in how many seconds to look again, at most."""
        progress = await self._notes.progress()
        if self._notes.is_others(progress):
            return LOOK_S
        if progress.is_due(self._changes.now(), round(every_s * 1000)):
            _tell("swept everything", await self._whole(await self._notes.begin(progress)))
        return every_s

    async def round(self, *, full: bool, restart: bool = False) -> Found:
        """Look once at recent uploads, or at everything, whoever else does.

        A full pass goes on from where one was cut off, or from where another process is; with `restart` it begins anew.
        Raises StoreUnavailable and ObjectsUnavailable.
        """
        if full:
            return await self._whole(await self._join(restart=restart))
        found = Found()
        try:
            await self._recent(found)
            await self._discard(found)
        finally:
            self._count(found)
        return found

    def _count(self, found: Found) -> None:
        for action in ACTIONS:
            self._metrics.swept.labels(action).inc(getattr(found, action))

    async def _discard(self, found: Found) -> None:
        if isinstance(self._objects, ServedObjectStore):
            found.partial = await self._objects.discard_stale()

    # --- Recent uploads

    async def _recent(self, found: Found) -> None:
        """Look at every upload that may still be confirmed, but for those that this process has seen to before."""
        oldest = self._oldest_upload()
        for shard in SHARDS:
            seen = self._kept.get(shard, set())
            kept: set[int] = set()
            new: list[str] = []
            async for key in self._objects.list(f"{shard}/", after=f"{shard}/{oldest}"):
                found.objects += 1
                if hash(key) in seen:
                    kept.add(hash(key))
                    continue
                new.append(key)
                if len(new) == PAGE:
                    kept.update(map(hash, await self._look_at_new(new, found)))
                    new = []
            kept.update(map(hash, await self._look_at_new(new, found)))
            # What is not listed any more is forgotten. Two keys with one hash: a full pass looks at both.
            self._kept[shard] = kept if len(kept) <= MOST_KEPT else set(list(kept)[:MOST_KEPT])

    def _oldest_upload(self) -> str:
        """The least id that an upload may still be confirmed with: ids begin with their time."""
        digits = f"{self._changes.now() - self._changes.policy.upload_window_ms:012x}"
        return f"{digits[:8]}-{digits[8:]}"

    async def _look_at_new(self, keys: Sequence[str], found: Found) -> list[str]:
        """Settle objects that are seen for the first time, and the pairs of those that stay; which need no other look.

        An upload whose second half was lost is mended here, within minutes.
        """
        senders = await self._mending.load(senders_of(keys), found)
        settled = await self._settle(keys, senders, found)
        refs = {item.key: ref for item in settled if item.fate is Fate.KEPT and (ref := VideoRef.parse(item.key))}
        # Loaded after the senders: a call that is between its two writes has mostly done the second by now.
        recipients = await self._mending.load({ref.recipient_id for ref in refs.values()}, found)
        done = [item.key for item in settled if item.fate is Fate.COMPLETED]
        for key, ref in refs.items():
            recipient = recipients.get(ref.recipient_id)
            if recipient is not None and await self._mending.pair(recipient, senders[ref.sender_id], found):
                done.append(key)
        return done

    # --- Everything

    async def _join(self, *, restart: bool) -> Progress:
        """Go on with the pass that there is, or begin one."""
        while True:
            progress = await self._notes.progress()
            if self._notes.is_others(progress):
                log.warning(
                    "another process is at a full sweep: %s",
                    "this one begins it anew" if restart else "this one goes on from there as well",
                )
            elif progress.can_go_on(self._changes.now()) and not restart:
                log.warning("this full sweep goes on from where one was cut off")
            try:
                return await self._notes.begin(progress, restart=restart)
            except Conflict:
                continue

    async def _whole(self, progress: Progress) -> Found:
        """All objects, then all documents, from there on."""
        found = Found()
        pace = Pace(self._rate, self._monotonic, self._sleep)
        try:
            try:
                await self._rest_of(progress, found, pace)
            except RefusedCursor:
                log.warning("the store does not know where the full sweep was: it begins anew")
                await self._rest_of(await self._join(restart=True), found, pace)
            await self._discard(found)
        except Overtaken:
            log.info("another process ended this full sweep, or began it anew")
        finally:
            self._count(found)
        return found

    async def _rest_of(self, progress: Progress, found: Found, pace: Pace) -> None:
        progress = await self._all_objects(progress, found, pace)
        progress = await self._all_documents(progress, found, pace)
        await self._notes.end(progress)

    async def _all_objects(self, progress: Progress, found: Found, pace: Pace) -> Progress:
        after = progress.after
        if after is None:
            return progress
        for shard in SHARDS:
            if shard < after[:1]:
                continue
            page: list[str] = []
            async for key in self._objects.list(f"{shard}/", after=after if after.startswith(shard) else ""):
                page.append(key)
                if len(page) == PAGE:
                    progress = await self._objects_page(progress, page, found, pace)
                    page = []
            if page:
                progress = await self._objects_page(progress, page, found, pace)
        return await self._notes.reached(replace(progress, after=None))

    async def _objects_page(self, progress: Progress, keys: Sequence[str], found: Found, pace: Pace) -> Progress:
        found.objects += len(keys)
        await self._settle(keys, await self._mending.load(senders_of(keys), found), found)
        progress = await self._notes.reached(replace(progress, after=keys[-1]))
        await pace.rest(len(keys))
        return progress

    async def _settle(
        self, keys: Sequence[str], senders: Mapping[ClientId, ClientState], found: Found
    ) -> Sequence[Settled]:
        settled = await self._uploads.settle(keys, senders)
        for item in settled:
            found.completed += item.fate is Fate.COMPLETED
            found.deleted += item.fate is Fate.DELETED
            found.failed += item.fate is Fate.FAILED
        return settled

    async def _all_documents(self, progress: Progress, found: Found, pace: Pace) -> Progress:
        """A page of each part at once, and all of them together."""
        while unfinished := [part for part, cursor in enumerate(progress.cursors) if cursor is not None]:
            pages = await asyncio.gather(*(self._scan(part, progress.cursors[part]) for part in unfinished))
            documents = [document for page in pages for document in page.documents]
            await self._mending.page(documents, found)
            cursors = {part: page.cursor for part, page in zip(unfinished, pages, strict=True)}
            progress = replace(progress, cursors=tuple(cursors.get(part) for part in range(PARTS)))
            progress = await self._notes.reached(progress)
            await pace.rest(len(documents))
        return progress

    async def _scan(self, part: int, cursor: str | None) -> ScanPage:
        try:
            return await self._changes.documents.scan(cursor=cursor or None, limit=PAGE, part=part, parts=PARTS)
        except ValueError as error:
            if cursor:
                raise RefusedCursor from error
            raise


async def _or_later(work: Awaitable[float], later_s: float) -> float:
    """In how many seconds to go on, as `work` says, or later where it fails."""
    try:
        return await work
    except Conflict:
        pass  # another worker was faster
    except (StoreUnavailable, ObjectsUnavailable) as error:
        log.warning("the sweep must wait", extra={"error": str(error)})
    except Exception:
        # A fault of ours that comes again each time must not have everything read again at once.
        log.exception("the sweep failed, and goes on later")
    return later_s


def _tell(what: str, found: Found) -> None:
    log.log(logging.INFO if found.did_something else logging.DEBUG, what, extra={"found": str(found)})

"""Stored uploads that nobody may have confirmed: what becomes of each, and the object store's own word of them.

One rule for the sweep and for upload events. An event that is lost, late or repeated costs nothing but time: the sweep
comes behind it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.changes import Changes, batched, client_key
from gateway.errors import GatewayError, NotStored, TooManyInTransit
from gateway.metrics import Metrics
from gateway.service import Service
from gateway.transit import expiry
from gateway.transit.decisions import Result, VideoRef
from gateway.transit.state import ClientId, ClientState, UnreadableDocument, decode
from storage.documents import StoreUnavailable
from storage.events import UploadEvent, UploadEvents
from storage.objects import ObjectStore, ObjectsUnavailable, is_key

SHARDS = "0123456789abcdef"
"""The first segment of every object's key: the last digit of its video's id. What is elsewhere is not ours."""

LOADED_TOGETHER = 100
"""Clients in one request."""

AT_ONCE = 16
"""Uploads that are completed at the same time."""

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
"""How long to wait while no events can be had, doubling from the first to the most."""

log = logging.getLogger(__name__)


class Fate(StrEnum):
    """What became of a stored object."""

    KEPT = "kept"
    COMPLETED = "completed"
    DELETED = "deleted"
    WAITING = "waiting"
    """For room, or for bytes that are not there yet or no more."""
    FAILED = "failed"


class Settled(NamedTuple):
    """What became of one object. `again`: whether trying again soon is of use."""

    key: str
    fate: Fate
    again: bool = False


class Uploads:
    """Keeps, completes or deletes stored objects. Safe to be done twice, at once, or late."""

    def __init__(
        self,
        *,
        changes: Changes,
        service: Service,
        objects: ObjectStore,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changes = changes
        self._service = service
        self._objects = objects
        self._metrics = metrics
        self._sleep = sleep

    # --- What becomes of an object

    async def settle(self, keys: Sequence[str], senders: Mapping[ClientId, ClientState]) -> list[Settled]:
        """Settle these objects, each by itself; those that go are deleted together.

        `senders`: theirs, as `readable` has them. They may be old by now: what was not wanted once never is again, and
        anything else is looked at anew.
        """
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(key: str) -> Settled:
            async with turns:
                return await self._decide(key, senders)

        settled = await asyncio.gather(*map(one, keys))
        doomed = [item.key for item in settled if item.fate is Fate.DELETED]
        if doomed and not await self._delete(doomed):
            return [Settled(item.key, Fate.FAILED, True) if item.fate is Fate.DELETED else item for item in settled]
        return settled

    async def _decide(self, key: str, senders: Mapping[ClientId, ClientState]) -> Settled:
        try:
            return Settled(key, await self._fate(key, senders))
        except GatewayError as error:
            log.warning("an object must wait", extra={"error": error.detail})
            return Settled(key, Fate.FAILED, again=True)
        except Exception:
            # A fault of ours with one object must not keep the others waiting; it would only happen again.
            log.exception("an object could not be settled")
            return Settled(key, Fate.FAILED)

    async def _fate(self, key: str, senders: Mapping[ClientId, ClientState]) -> Fate:
        """What is to become of the object; where it is to be deleted, that is still to be done."""
        ref = VideoRef.parse(key)
        if ref is None:
            return Fate.DELETED if _is_ours(key) else Fate.KEPT
        if ref.sender_id == ref.recipient_id:
            return Fate.DELETED
        sender = senders.get(ref.sender_id)
        if sender is None:
            return Fate.FAILED  # unreadable
        sent = sender.find_sent(ref.video_id)
        if sent is not None and sent[0] == ref.recipient_id:
            wanted = expiry.bytes_wanted(sent[1], now=self._changes.now(), policy=self._changes.policy)
            return Fate.KEPT if wanted else Fate.DELETED
        try:
            answer = await self._service.confirm(ref, by_sender=False)
        except (NotStored, TooManyInTransit):
            return Fate.WAITING  # deleted meanwhile, or waiting for room until its time is over
        match answer.verdict.result:
            case Result.APPLIED:
                return Fate.COMPLETED
            case Result.DUPLICATE:
                return Fate.KEPT
            case Result.IGNORED:
                return Fate.DELETED

    async def _delete(self, keys: Sequence[str]) -> bool:
        try:
            async with self._changes.deadline():
                await self._objects.delete(keys)
        except GatewayError as error:
            log.warning("objects could not be deleted now", extra={"objects": len(keys), "error": error.detail})
            return False
        return True

    # --- Events

    async def take(self, events: UploadEvents) -> None:
        """Settle what the object store says was stored, until cancelled."""
        failures = 0
        while True:
            try:
                came = await events.receive()
                if came:
                    await self._see_to(events, came)
                failures = 0
            except (ObjectsUnavailable, StoreUnavailable) as error:
                log.warning("upload events must wait", extra={"error": str(error)})
                await self._sleep(random.uniform(0.5, 1) * min(RETRY_FIRST_S * 2**failures, RETRY_MOST_S))
                failures = min(failures + 1, 16)

    async def _see_to(self, events: UploadEvents, came: Sequence[UploadEvent]) -> None:
        """Settle what these events name. Those that have to wait are not done, and come again."""
        keys = list(dict.fromkeys(key for event in came for key in event.keys))
        try:
            settled = await self.settle(keys, await readable(self._changes, senders_of(keys)))
        except StoreUnavailable:
            self._metrics.upload_events.labels(Fate.FAILED).inc(len(keys))
            raise
        for item in settled:
            self._metrics.upload_events.labels(item.fate).inc()
        waiting = {item.key for item in settled if item.again}
        if done := [event for event in came if waiting.isdisjoint(event.keys)]:
            await events.done(done)


async def readable(changes: Changes, client_ids: Collection[ClientId]) -> dict[ClientId, ClientState]:
    """These clients, loaded together; without those whose documents cannot be read. Raises StoreUnavailable."""
    states: dict[ClientId, ClientState] = {}
    for some in batched(sorted(client_ids), LOADED_TOGETHER):
        documents = await changes.documents.load([client_key(client_id) for client_id in some])
        for client_id, document in zip(some, documents, strict=True):
            try:
                states[client_id] = decode(client_id, document.body)
            except UnreadableDocument as error:
                log.error("a stored document cannot be read", extra={"client_id": client_id, "error": str(error)})
    return states


def senders_of(keys: Iterable[str]) -> set[ClientId]:
    """Who sent what is stored under these keys, as far as that can be read from them."""
    return {ref.sender_id for ref in map(VideoRef.parse, keys) if ref is not None}


def _is_ours(key: str) -> bool:
    """Whether something that is no video lies among them, under a key that can be deleted."""
    return key[1:2] == "/" and key[0] in SHARDS and is_key(key)

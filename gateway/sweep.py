"""The sweep: what calls that died left behind is completed or removed, by the same rules.

An upload that was stored and never confirmed is completed. An object that nothing tracks is deleted, a pair whose
second half was never written is mended, a push token that no device has any more is removed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.changes import CLIENT_PREFIX, Changes, States
from gateway.errors import GatewayError, NotStored, TooManyInTransit, Unavailable
from gateway.metrics import Metrics
from gateway.registry import TOKEN_PREFIX, Registry, decode_owner
from gateway.service import Service
from gateway.transit import expiry, pairs, sealing
from gateway.transit.decisions import Decision, Result, VideoRef
from gateway.transit.policy import HOUR_MS
from gateway.transit.state import ClientId, ClientState, UnreadableDocument, decode
from storage.documents import Document, StoreUnavailable
from storage.objects import ObjectStore, ObjectsUnavailable, ServedObjectStore

SHARDS = "0123456789abcdef"
"""The first segment of every object's key: the last digit of its video's id."""

FULL_EVERY = 12
"""Every so many rounds everything is looked at, else only uploads that may still be unconfirmed."""

TOKEN_REST_MS = HOUR_MS
"""A token's document younger than this may belong to a registration that is still under way."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Found:
    """What one round saw and did."""

    objects: int = 0
    documents: int = 0
    completed: int = 0
    deleted: int = 0
    mended: int = 0
    tidied: int = 0
    tokens: int = 0
    partial: int = 0
    failed: int = 0

    @property
    def did_something(self) -> bool:
        """Whether there was anything to do."""
        return any((self.completed, self.deleted, self.mended, self.tidied, self.tokens, self.partial, self.failed))

    def __str__(self) -> str:
        return (
            f"{self.objects} objects and {self.documents} documents read: {self.completed} uploads completed, "
            f"{self.deleted} objects deleted, {self.mended} pairs mended, {self.tidied} documents tidied, "
            f"{self.tokens} tokens removed, "
            f"{self.partial} broken uploads discarded, {self.failed} failed"
        )


class Sweep:
    """Completes and removes what was left behind. Safe to run twice at once, or to be cut off anywhere."""

    def __init__(
        self, *, changes: Changes, service: Service, registry: Registry, objects: ObjectStore, metrics: Metrics
    ) -> None:
        self._changes = changes
        self._service = service
        self._registry = registry
        self._objects = objects
        self._metrics = metrics

    async def run(self, every_s: float) -> None:
        """A full round now, then a round every `every_s` seconds, until cancelled."""
        rounds = 0
        while True:
            try:
                found = await self.round(full=rounds % FULL_EVERY == 0)
                log.log(logging.INFO if found.did_something else logging.DEBUG, "swept", extra={"found": str(found)})
            except (StoreUnavailable, ObjectsUnavailable) as error:
                log.warning("the sweep must wait", extra={"error": str(error)})
            rounds += 1
            await asyncio.sleep(every_s)

    async def round(self, *, full: bool) -> Found:
        """Look at recent uploads, or at everything. Raises StoreUnavailable and ObjectsUnavailable."""
        found = Found()
        await self._objects_round(found, full=full)
        if full:
            await self._documents_round(found)
        if isinstance(self._objects, ServedObjectStore):
            found.partial = await self._objects.discard_stale()
        for action in ("completed", "deleted", "mended", "tidied", "tokens", "partial", "failed"):
            self._metrics.swept.labels(action).inc(getattr(found, action))
        return found

    # --- Objects

    async def _objects_round(self, found: Found, *, full: bool) -> None:
        for shard in SHARDS:
            after = "" if full else f"{shard}/{self._oldest_upload()}"
            async for key in self._objects.list(f"{shard}/", after=after):
                found.objects += 1
                ref = VideoRef.parse(key)
                try:
                    if ref is None or ref.sender_id == ref.recipient_id:
                        await self._delete(key, found)
                    else:
                        await self._object(ref, found)
                except GatewayError as error:
                    found.failed += 1
                    log.warning("an object must wait", extra={"error": error.detail})

    def _oldest_upload(self) -> str:
        """The least id that an upload may still be confirmed with: ids begin with their time."""
        digits = f"{self._changes.now() - self._changes.policy.upload_window_ms:012x}"
        return f"{digits[:8]}-{digits[8:]}"

    async def _object(self, ref: VideoRef, found: Found) -> None:
        """Keep, complete or delete the bytes of one video."""
        sender = await self._changes.load(ref.sender_id)
        sent = sender.find_sent(ref.video_id)
        if sent is not None and sent[0] == ref.recipient_id:
            if not expiry.bytes_wanted(sent[1], now=self._changes.now(), policy=self._changes.policy):
                await self._delete(ref.object_key, found)
            return
        try:
            answer = await self._service.confirm(ref, by_sender=False)
        except (NotStored, TooManyInTransit):
            return  # deleted meanwhile, or waiting for room until its time is over
        if answer.verdict.result is Result.APPLIED:
            found.completed += 1
        elif answer.verdict.result is Result.IGNORED:
            await self._delete(ref.object_key, found)

    async def _delete(self, key: str, found: Found) -> None:
        await self._objects.delete([key])
        found.deleted += 1

    # --- Documents

    async def _documents_round(self, found: Found) -> None:
        async for document in self._scan():
            found.documents += 1
            try:
                if document.key.startswith(TOKEN_PREFIX):
                    await self._token(document, found)
                elif document.key.startswith(CLIENT_PREFIX):
                    await self._client(document, found)
            except UnreadableDocument as error:
                found.failed += 1
                log.error("a stored document cannot be read", extra={"key": document.key[:6], "error": str(error)})
            except Unavailable as error:
                found.failed += 1
                log.warning("a document must wait", extra={"error": error.detail})

    async def _scan(self) -> AsyncIterator[Document]:
        cursor: str | None = None
        while True:
            page = await self._changes.documents.scan(cursor=cursor)
            for document in page.documents:
                yield document
            if (cursor := page.cursor) is None:
                return
            await asyncio.sleep(0)  # a page at a time: calls come in between

    async def _client(self, document: Document, found: Found) -> None:
        """Mend the pairs of one client whose two documents do not agree."""
        client_id = ClientId(document.key.removeprefix(CLIENT_PREFIX))
        state = decode(client_id, document.body)
        await self._tidy(state, found)
        for peer in await self._changes.load_all({*state.incoming, *state.outgoing}):
            for recipient, sender in ((state, peer), (peer, state)):
                if pairs.agree(recipient, sender):
                    continue
                # They were not read together, so they may only seem to differ: `repair` looks again, in order.
                if await self._changes.repair(recipient.client_id, sender.client_id):
                    found.mended += 1

    async def _tidy(self, state: ClientState, found: Found) -> None:
        """Let a client that nothing happens to any more forget what it need not remember; at last its document goes."""
        policy = self._changes.policy
        if sealing.sealed(state, now=self._changes.now(), policy=policy) == state:
            return

        async def rule(states: States, now: int) -> Decision:
            return Decision(sealing.sealed(states[state.client_id], now=now, policy=policy))

        await self._changes.run(state.client_id, rule)
        found.tidied += 1

    async def _token(self, document: Document, found: Found) -> None:
        """Remove a token that its owner's device does not have (any more)."""
        owner = decode_owner(document.body)
        resting = self._changes.now() - TOKEN_REST_MS
        if owner is None or document.version > resting * 1000:
            return
        key = document.key.removeprefix(TOKEN_PREFIX)
        device = (await self._changes.load(owner.client_id)).devices.get(owner.device_id)
        if device is None or device.token_key != key:
            await self._registry.release(owner.client_id, owner.device_id, key, before=resting)
            found.tokens += 1

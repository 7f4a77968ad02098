"""What the sweep does about documents: pairs that disagree are mended, memories and push tokens let go."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.changes import CLIENT_PREFIX, Changes, States
from gateway.errors import Unavailable
from gateway.registry import TOKEN_PREFIX, Registry, TokenOwner, decode_owner
from gateway.transit import pairs, sealing
from gateway.transit.decisions import Decision
from gateway.transit.policy import HOUR_MS
from gateway.transit.state import ClientId, ClientState, UnreadableDocument, decode
from gateway.uploads import readable
from storage.documents import Document

MOST_PEERS = 500
"""Pairs' other halves that are held at a time, or those of one more client."""

TOKEN_REST_MS = HOUR_MS
"""A token's document younger than this may belong to a registration that is still under way."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Found:
    """What one round saw and did. `objects` were listed, `documents` scanned, `clients` loaded besides."""

    objects: int = 0
    documents: int = 0
    clients: int = 0
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
        return any(getattr(self, action) for action in ACTIONS)

    def __str__(self) -> str:
        return (
            f"{self.objects} objects, {self.documents} documents and {self.clients} clients read: "
            f"{self.completed} uploads completed, {self.deleted} objects deleted, {self.mended} pairs mended, "
            f"{self.tidied} documents tidied, {self.tokens} tokens removed, "
            f"{self.partial} broken uploads discarded, {self.failed} failed"
        )


ACTIONS = ("completed", "deleted", "mended", "tidied", "tokens", "partial", "failed")
"""What of `Found` was done; the rest was only read."""


class Mending:
    """Puts documents right by the same rules as calls do. Safe to be done twice, at once, or late."""

    def __init__(self, changes: Changes, registry: Registry) -> None:
        self._changes = changes
        self._registry = registry

    async def page(self, documents: Sequence[Document], found: Found) -> None:
        """Look after these documents, as they were scanned. Those of nobody known, such as the sweep's own, are counted
        and left alone. Raises StoreUnavailable."""
        found.documents += len(documents)
        clients: list[ClientState] = []
        tokens: dict[str, TokenOwner] = {}
        for document in documents:
            try:
                if document.key.startswith(CLIENT_PREFIX):
                    clients.append(decode(ClientId(document.key.removeprefix(CLIENT_PREFIX)), document.body))
                elif document.key.startswith(TOKEN_PREFIX):
                    owner = decode_owner(document.body)
                    if owner is not None and document.version <= self._resting() * 1000:
                        tokens[document.key.removeprefix(TOKEN_PREFIX)] = owner
            except UnreadableDocument as error:
                found.failed += 1
                log.error("a stored document cannot be read", extra={"key": document.key[:6], "error": str(error)})
        for state in clients:
            await self._tidy(state, found)
        for some in _few_peers(clients):
            await self._mend_all(some, found)
        await self._tokens(tokens, found)

    async def _mend_all(self, states: Sequence[ClientState], found: Found) -> None:
        """Mend the pairs of these clients whose two documents do not agree."""
        peers = await self.load({peer for state in states for peer in _peers(state)}, found)
        for state in states:
            for peer in sorted(_peers(state) & peers.keys()):
                await self.pair(state, peers[peer], found)
                await self.pair(peers[peer], state, found)

    async def pair(self, recipient: ClientState, sender: ClientState, found: Found) -> bool:
        """Have the two documents of a pair agree; whether they do, as far as one could tell."""
        if pairs.agree(recipient, sender):
            return True
        try:
            # They were not read together, so they may only seem to differ: `repair` looks again, in order.
            if await self._changes.repair(recipient.client_id, sender.client_id):
                found.mended += 1
        except Unavailable as error:
            _failed(found, error)
            return False
        return True

    async def _tidy(self, state: ClientState, found: Found) -> None:
        """Let a client that nothing happens to any more forget what it need not remember; at last its document goes."""
        policy = self._changes.policy
        if sealing.sealed(state, now=self._changes.now(), policy=policy) == state:
            return

        async def rule(states: States, now: int) -> Decision:
            return Decision(sealing.sealed(states[state.client_id], now=now, policy=policy))

        try:
            await self._changes.run(state.client_id, rule)
        except Unavailable as error:
            _failed(found, error)
        else:
            found.tidied += 1

    async def _tokens(self, tokens: Mapping[str, TokenOwner], found: Found) -> None:
        """Remove tokens that their owners' devices do not have (any more). `tokens`: by key, none of them young."""
        owners = await self.load({owner.client_id for owner in tokens.values()}, found)
        for key, owner in tokens.items():
            state = owners.get(owner.client_id)
            device = state.devices.get(owner.device_id) if state else None
            if state is None or (device is not None and device.token_key == key):
                continue
            try:
                await self._registry.release(owner.client_id, owner.device_id, key, before=self._resting())
            except Unavailable as error:
                _failed(found, error)
            else:
                found.tokens += 1

    def _resting(self) -> int:
        """A token's document that was written before this time (ms) is no registration under way."""
        return self._changes.now() - TOKEN_REST_MS

    async def load(self, client_ids: Collection[ClientId], found: Found) -> dict[ClientId, ClientState]:
        """These clients, counted, without those whose documents cannot be read. Raises StoreUnavailable."""
        found.clients += len(client_ids)
        return await readable(self._changes, client_ids)


def _peers(state: ClientState) -> set[ClientId]:
    return {*state.incoming, *state.outgoing}


def _few_peers(states: Iterable[ClientState]) -> Iterator[list[ClientState]]:
    """The same clients in parts whose peers can be held at a time."""
    some: list[ClientState] = []
    held = 0
    for state in states:
        some.append(state)
        held += len(_peers(state))
        if held >= MOST_PEERS:
            yield some
            some, held = [], 0
    if some:
        yield some


def _failed(found: Found, error: Unavailable) -> None:
    found.failed += 1
    log.warning("a document must wait", extra={"error": error.detail})

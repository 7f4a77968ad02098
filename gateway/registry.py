"""Registered devices and their push tokens.

A token is kept apart from its client's document: it is large, secret and seldom changes. Its own document says which
device of which client has it, and that word is final: whoever pushes asks it first. So a phone that changed
accounts never gets the other's pushes, whatever became of the write that takes the device out of the other's list.
"""

import contextlib
import hashlib
from typing import NamedTuple

import orjson

from gateway.changes import Changes, States
from gateway.journal import Event
from gateway.transit import devices
from gateway.transit.decisions import Decision
from gateway.transit.state import ClientId, ClientState, DeviceId, UnreadableDocument
from storage.documents import Conflict, Document

_FORMAT = 1
TOKEN_PREFIX = "token:"  # noqa: S105 - a prefix of keys, not a token


class TokenOwner(NamedTuple):
    """Who has a push token, and the token itself, which is a secret."""

    client_id: ClientId
    device_id: DeviceId
    token: str

    def __repr__(self) -> str:
        return f"TokenOwner({self.client_id}, {self.device_id})"


class Registry:
    """Registers devices. Every method may raise `Unavailable`, and may be repeated."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def register(
        self, client_id: ClientId, device_id: DeviceId, *, platform: str, environment: str, token: str
    ) -> None:
        """The device takes pushes with `token` from now on; whoever had that token before does not."""
        key = hash_token(token)
        owner = TokenOwner(client_id, device_id, token)
        before = await self.owner(key)
        if before != owner or key != await self._token_of(client_id, device_id):
            before = await self._take(key, owner)
        replaced: set[tuple[DeviceId, str]] = set()

        async def rule(states: States, now: int) -> Decision:
            old = states[client_id]
            new = devices.register(
                old,
                device_id,
                platform=platform,
                environment=environment,
                token_key=key,
                now=now,
                policy=self._changes.policy,
            )
            replaced.clear()
            replaced.update(tokens(old) - tokens(new))
            return Decision(new)

        await self._changes.run(client_id, rule)
        self._changes.journal.note(client_id, Event.REGISTERED, platform, device_id=device_id)
        if before is not None and before[:2] != (client_id, device_id):
            await self._take_out(before.client_id, before.device_id, key)
        for device, other in replaced:
            await self.release(client_id, device, other)

    async def unregister(self, client_id: ClientId, device_id: DeviceId) -> None:
        """Log-out: no more pushes to the device."""
        await self._take_out(client_id, device_id, None)
        self._changes.journal.note(client_id, Event.UNREGISTERED, device_id=device_id)

    async def owner(self, key: str) -> TokenOwner | None:
        """Who has the token with that key, if anyone."""
        async with self._changes.deadline():
            [document] = await self._changes.documents.load([TOKEN_PREFIX + key])
            return decode_owner(document.body)

    async def release(self, client_id: ClientId, device_id: DeviceId, key: str, *, before: int | None = None) -> None:
        """Remove a token's document if it is still this device's, and not taken anew since `before` (ms)."""
        newest = (self._changes.now() if before is None else before) * 1000
        async with self._changes.deadline():
            while True:
                [document] = await self._changes.documents.load([TOKEN_PREFIX + key])
                owner = decode_owner(document.body)
                if owner is None or owner[:2] != (client_id, device_id) or document.version > newest:
                    return
                try:
                    await self._changes.documents.commit([Document(document.key, document.version)])
                except Conflict:
                    continue
                return

    async def _token_of(self, client_id: ClientId, device_id: DeviceId) -> str | None:
        device = (await self._changes.load(client_id)).devices.get(device_id)
        return device.token_key if device else None

    async def _take(self, key: str, owner: TokenOwner) -> TokenOwner | None:
        """Make `owner` the token's, and its document as young as this call, so that no release in flight removes it;
        who had it before."""
        async with self._changes.deadline():
            while True:
                [document] = await self._changes.documents.load([TOKEN_PREFIX + key])
                try:
                    await self._changes.documents.commit(
                        [Document(document.key, document.version, encode_owner(owner))]
                    )
                except Conflict:
                    continue
                return decode_owner(document.body)

    async def _take_out(self, client_id: ClientId, device_id: DeviceId, token_key: str | None) -> None:
        """Take a device out of its client's list (if it still has that token), and its token with it.

        The token's document is read first and removed only as it was then: an app that had no answer may have logged
        out by another call and in again, before this one comes to that.
        """
        document = await self._token_document(client_id, device_id)
        gone: set[tuple[DeviceId, str]] = set()

        async def rule(states: States, now: int) -> Decision:  # noqa: ARG001
            old = states[client_id]
            new = devices.unregister(old, device_id, token_key=token_key)
            gone.clear()
            gone.update(tokens(old) - tokens(new))
            return Decision(new)

        await self._changes.run(client_id, rule)
        if document is not None and (device_id, document.key.removeprefix(TOKEN_PREFIX)) in gone:
            async with self._changes.deadline():
                with contextlib.suppress(Conflict):  # taken anew: what nobody has in the end the sweep removes
                    await self._changes.documents.commit([Document(document.key, document.version)])

    async def _token_document(self, client_id: ClientId, device_id: DeviceId) -> Document | None:
        """The document of the token that this device has, if it is its own."""
        key = await self._token_of(client_id, device_id)
        if key is None:
            return None
        async with self._changes.deadline():
            [document] = await self._changes.documents.load([TOKEN_PREFIX + key])
            owner = decode_owner(document.body)
        return document if owner is not None and owner[:2] == (client_id, device_id) else None


def hash_token(token: str) -> str:
    """The key of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def encode_owner(owner: TokenOwner) -> bytes:
    """The stored form of a token's document."""
    return orjson.dumps({"f": _FORMAT, "c": owner.client_id, "d": owner.device_id, "t": owner.token})


def decode_owner(body: bytes) -> TokenOwner | None:
    """What `encode_owner` made; None for a document that is not there. Raises UnreadableDocument."""
    if not body:
        return None
    try:
        fields = orjson.loads(body)
        if fields["f"] == _FORMAT:
            return TokenOwner(fields["c"], fields["d"], fields["t"])
    except (ValueError, TypeError, LookupError):
        pass
    raise UnreadableDocument("not a token's document, or of a newer format")


def tokens(state: ClientState) -> set[tuple[DeviceId, str]]:
    """The keys of all tokens of a client's devices."""
    return {(device_id, device.token_key) for device_id, device in state.devices.items()}

"""The use cases: everything an app can ask for, without a framework or a driver.

Callers are authorized already; ids have the form of the protocol. Refusals are `gateway.errors`; any method may raise
`Unavailable`. A call that returned is durable and published, and may be repeated.
"""

import fnmatch
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.changes import Changes, States, TryAgain
from gateway.errors import GatewayError, Invalid, NotStored, NotTracked, TooLarge, TooManyInTransit
from gateway.journal import Event
from gateway.transit import expiry, receiving, sealing, sending
from gateway.transit.decisions import APPLIED, DUPLICATE, Decision, Stored, Verdict, VideoRef
from gateway.transit.receiving import Acknowledgement, Report
from gateway.transit.state import ClientId, ClientState, Status, Video, VideoId
from storage.objects import ObjectStore, SignedDownload, SignedUpload

_CONTENT_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}\Z")
"""A bare type and subtype: RFC 6838, section 4.2, half as long each."""

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What may be uploaded: the most bytes, patterns such as `video/*`, and how long URLs live (ms)."""

    max_video_bytes: int = 100 * 1024 * 1024
    content_types: tuple[str, ...] = ("video/*",)
    download_ttl_ms: int = 900_000


class Announced(NamedTuple):
    """A video to be: its id, and how to upload it."""

    video_id: VideoId
    upload: SignedUpload


class Answer(NamedTuple):
    """What became of a call, and the caller's state that includes it."""

    verdict: Verdict
    state: ClientState


class Said(NamedTuple):
    """One status that an app reports; `recipient_id` where it reports an upload."""

    video_id: VideoId
    status: Status
    recipient_id: ClientId | None = None


class Service:
    """What apps can ask for."""

    def __init__(self, changes: Changes, objects: ObjectStore, limits: UploadLimits) -> None:
        self.changes = changes
        self._objects = objects
        self._limits = limits

    # --- Senders

    async def announce(
        self, sender_id: ClientId, recipient_id: ClientId, *, size: int, content_type: str, sha256: str | None = None
    ) -> Announced:
        """Mint an id and sign a URL for the upload; nothing is stored yet.

        Raises Invalid, TooLarge, TooManyInTransit.
        """
        content_type = content_type.lower()
        self._check_upload(sender_id, recipient_id, size, content_type, sha256)
        sender, recipient = await self.changes.load_both(sender_id, recipient_id)
        if sending.room(sender, recipient, self.changes.policy).full:
            raise _full()
        now = self.changes.now()
        video_id = sending.mint(sender, now=now, random_bits=random.getrandbits(74))
        async with self.changes.deadline():
            upload = await self._objects.sign_upload(
                VideoRef(video_id, sender_id, recipient_id).object_key,
                size=size,
                content_type=content_type,
                sha256=sha256,
                expires_at=now + self.changes.policy.upload_ttl_ms,
            )
        return Announced(video_id, upload)

    def _check_upload(
        self, sender_id: ClientId, recipient_id: ClientId, size: int, content_type: str, sha256: str | None
    ) -> None:
        if recipient_id == sender_id:
            raise Invalid("recipient_id: a video is sent to somebody else")
        if not _CONTENT_TYPE.match(content_type):
            raise Invalid("content_type: must be a bare type and subtype, such as video/mp4")
        if not any(fnmatch.fnmatchcase(content_type, pattern) for pattern in self._limits.content_types):
            raise Invalid(f"content_type: this gateway takes {', '.join(self._limits.content_types)}")
        if sha256 is not None and not _SHA256.match(sha256):
            raise Invalid("sha256: must be 64 lower-case hex digits")
        if size < 1:
            raise Invalid("size: must be an integer from 1")
        if size > self._limits.max_video_bytes:
            raise TooLarge(f"size: a video has at most {self._limits.max_video_bytes} bytes")

    async def confirm(self, ref: VideoRef, *, by_sender: bool = True) -> Answer:
        """The bytes of `ref` are uploaded: track it, replace the one before, tell the recipient. Repeatable.

        Raises NotStored, and TooManyInTransit: where the sender itself confirmed, the video has ended then as if it had
        been deleted. Where the gateway completes an upload by itself the video stays as it is: there may be room
        later, and the sender that confirms is to learn why it is refused.
        """
        full = False

        async def rule(states: States, now: int) -> Decision:
            nonlocal full
            sender, recipient = states[ref.sender_id], states[ref.recipient_id]
            policy = self.changes.policy
            stored, full = None, False
            if sending.awaits_upload(sender, ref.recipient_id, ref.video_id, now=now, policy=policy):
                stored = await self._stored(ref)
                room = sending.room(sender, recipient, policy)
                if full := room.full:
                    ended = sending.end(sender, ref, now=now, policy=policy)
                    return ended._replace(verdicts=()) if by_sender else Decision(sender)
                if room.drop:
                    await self._make_room(room.drop)
                    raise TryAgain
            return sending.upload(sender, ref.recipient_id, ref.video_id, stored, now=now, policy=policy)

        decision = await self.changes.run(ref.sender_id, rule, beside=(ref.recipient_id,))
        if full:
            raise _full()
        if not by_sender and decision.verdict == APPLIED:
            self.changes.journal.note(ref.sender_id, Event.COMPLETED, ref.video_id)
        return Answer(decision.verdict, decision.state)

    async def _stored(self, ref: VideoRef) -> Stored:
        info = await self._objects.head(ref.object_key)
        if info is None:
            raise NotStored("nothing is stored for this video: upload it while its URL lives, or announce it anew")
        return Stored(info.size, info.content_type)

    async def _make_room(self, refs: Sequence[VideoRef]) -> None:
        """Drop videos that have ended. A pair whose documents disagree about one is mended first."""
        for sender_id, recipient_id in sorted({(ref.sender_id, ref.recipient_id) for ref in refs}):
            await self.changes.repair(recipient_id, sender_id)
            ids = {ref.video_id for ref in refs if (ref.sender_id, ref.recipient_id) == (sender_id, recipient_id)}
            await self.drop(sender_id, recipient_id, frozenset(ids))

    async def delete(self, ref: VideoRef) -> Answer:
        """End the video in whatever state, announced only or long in transit, and delete its bytes. Repeatable."""
        self._check_pair(ref)

        async def rule(states: States, now: int) -> Decision:
            return sending.end(states[ref.sender_id], ref, now=now, policy=self.changes.policy)

        decision = await self.changes.run(ref.sender_id, rule, beside=(ref.recipient_id,))
        if decision.verdict == DUPLICATE:
            # An hour after it ended, the sender's document has forgotten the pair, and no longer says so by itself.
            await self.changes.repair(ref.recipient_id, ref.sender_id)
        self.changes.journal.note(ref.sender_id, Event.DELETED, ref.video_id, decision.verdict.result)
        return Answer(decision.verdict, decision.state)

    async def leave(self, client_id: ClientId) -> Decision:
        """The account ends: what it sent is deleted, what it was sent expires for the senders. Repeatable."""

        async def rule(states: States, now: int) -> Decision:
            return sending.leave(states[client_id], now=now, policy=self.changes.policy)

        decision = await self.changes.run(client_id, rule)
        self.changes.journal.note(client_id, Event.LEFT)
        return decision

    # --- Recipients

    async def poll(self, client_id: ClientId, seen: Acknowledgement | None = None, *, known: int = 0) -> ClientState:
        """The client's state, once what its device has applied is acknowledged.

        For a device that has version `known` already, where that acknowledges nothing new, it may be half a minute old
        (`PEEK_AGE_S`), but never older than what the device has.
        """
        if seen is not None:
            return (await self._report(client_id, Report((), seen), least=known or None)).state
        return await (self.changes.peek(client_id, least=known) if known else self.changes.load(client_id))

    async def report(
        self, client_id: ClientId, said: Sequence[Said], seen: Acknowledgement | None = None
    ) -> tuple[list[Verdict | GatewayError], ClientState]:
        """Everything an app has to report, in order, and what its device has applied; each may fail by itself.

        Statuses that the client reached as a recipient are one change; an upload is a change of its own.
        """
        reached = tuple((item.video_id, item.status) for item in said if item.status is not Status.UPLOADED)
        state: ClientState | None = None
        verdicts: Iterator[Verdict] = iter(())
        if reached or seen is not None:
            decision = await self._report(client_id, Report(reached, seen))
            state, verdicts = decision.state, iter(decision.verdicts)
        answers: list[Verdict | GatewayError] = []
        for item in said:
            if item.status is not Status.UPLOADED:
                answers.append(next(verdicts))
                continue
            try:
                verdict, state = await self._confirm_said(client_id, item)
                answers.append(verdict)
            except GatewayError as error:
                answers.append(error)
        for item, answer in zip(said, answers, strict=True):
            self._note(client_id, item, answer, seen)
        return answers, await self.changes.load(client_id) if state is None else state

    def _note(
        self, client_id: ClientId, item: Said, answer: Verdict | GatewayError, seen: Acknowledgement | None
    ) -> None:
        became = answer.code if isinstance(answer, GatewayError) else answer.result
        device_id = seen.device_id if seen else None
        self.changes.journal.note(client_id, Event.STATUS, item.video_id, item.status, became, device_id=device_id)

    async def _confirm_said(self, client_id: ClientId, item: Said) -> Answer:
        if item.recipient_id is None:
            raise Invalid("recipient_id: is required with the status uploaded")
        ref = VideoRef(item.video_id, client_id, item.recipient_id)
        self._check_pair(ref)
        return await self.confirm(ref)

    async def _report(self, client_id: ClientId, report: Report, *, least: int | None = None) -> Decision:
        async def rule(states: States, now: int) -> Decision:
            return receiving.report(states[client_id], report, now=now, policy=self.changes.policy)

        decision = await self.changes.run(client_id, rule, least=least)
        if (seen := report.acknowledgement) is not None and decision.settle:
            self.changes.journal.note(client_id, Event.ACKNOWLEDGED, seen.version, device_id=seen.device_id)
        return decision

    async def content(self, client_id: ClientId, video_id: VideoId) -> SignedDownload:
        """Where the bytes are, for the sender and the recipient of a video in transit. Raises NotTracked."""
        state = await self.changes.load(client_id)
        now = self.changes.now()
        ref = _find(state, video_id)
        if ref is None or not expiry.bytes_wanted(ref[1], now=now, policy=self.changes.policy):
            raise NotTracked("this video is not in transit to or from this client")
        async with self.changes.deadline():
            return await self._objects.sign_download(ref[0].object_key, expires_at=now + self._limits.download_ttl_ms)

    # --- What time asks for

    async def tend(self, client_id: ClientId) -> None:
        """Expire, drop and delete what is overdue of what this client sent, and note when to look again."""
        policy = self.changes.policy
        state = await self.changes.load(client_id)
        due = expiry.overdue(state, now=self.changes.now(), policy=policy)
        for recipient_id in sorted({*due.expire, *due.drop}):
            try:
                if recipient_id in due.expire:
                    await self._expire(client_id, recipient_id)
                if recipient_id in due.drop:
                    await self.drop(client_id, recipient_id, due.drop[recipient_id])
            except GatewayError as error:  # one correspondent's trouble is not the others', nor the devices'
                log.warning("what is overdue must wait", extra={"client_id": client_id, "error": error.detail})

        async def rule(states: States, now: int) -> Decision:
            return Decision(sealing.checked(states[client_id], now=now, policy=policy), gone=due.gone)

        await self.changes.run(client_id, rule)

    async def _expire(self, sender_id: ClientId, recipient_id: ClientId) -> None:
        async def rule(states: States, now: int) -> Decision:
            return expiry.expire(states[recipient_id], states[sender_id], now=now, policy=self.changes.policy)

        await self.changes.run(recipient_id, rule, beside=(sender_id,))

    async def drop(self, sender_id: ClientId, recipient_id: ClientId, video_ids: frozenset[VideoId]) -> None:
        """Let go of videos of a pair that have ended."""

        async def rule(states: States, now: int) -> Decision:
            sender, recipient = states[sender_id], states[recipient_id]
            return sending.drop(sender, recipient, video_ids, now=now, policy=self.changes.policy)

        await self.changes.run(sender_id, rule, beside=(recipient_id,))

    @staticmethod
    def _check_pair(ref: VideoRef) -> None:
        if ref.sender_id == ref.recipient_id:
            raise Invalid("recipient_id: a video is sent to somebody else")


def _find(state: ClientState, video_id: VideoId) -> tuple[VideoRef, Video] | None:
    if (received := state.find_received(video_id)) is not None:
        return VideoRef(video_id, received[0], state.client_id), received[1]
    if (sent := state.find_sent(video_id)) is not None:
        return VideoRef(video_id, state.client_id, sent[0]), sent[1]
    return None


def _full() -> TooManyInTransit:
    return TooManyInTransit("the sender or the recipient has as many videos in transit as it may")

"""What a sender's document decides: which of its videos there are, to whom. Pure."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from gateway.transit.decisions import APPLIED, DUPLICATE, SUPERSEDED, UNKNOWN, Decision, Stored, VideoRef
from gateway.transit.pairs import raised
from gateway.transit.policy import CLOCK_SKEW_MS, Policy
from gateway.transit.sealing import merged, next_version, sealed, surplus, with_list, without
from gateway.transit.state import ClientId, ClientState, Pair, Status, Video, VideoId, minted_at


def mint(sender: ClientState, *, now: int, random_bits: int) -> VideoId:
    """A new UUIDv7 (RFC 9562, section 5.7), later than every id that this sender's document tracks or remembers.

    `random_bits`: 74 random bits.
    """
    known = [*(video_id for _, video_id, _ in sender.sent()), *sender.ended[-1:], sender.ended_floor]
    newest = max(known)
    time = max(now, minted_at(VideoId(newest)) + 1) if newest else now
    number = time << 80 | 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    digits = f"{number:032x}"
    return VideoId("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))


def last_id(now: int) -> VideoId:
    """The greatest id that can be minted at a time."""
    digits = f"{now:012x}"
    return VideoId(f"{digits[:8]}-{digits[8:]}-7fff-bfff-ffffffffffff")


def is_over(sender: ClientState, video_id: VideoId, *, now: int, policy: Policy) -> bool:
    """Whether an id that the sender does not track can never be tracked again.

    It was ended (replaced, deleted, cancelled, dropped), or it is too old for an upload to be still on its way.
    """
    if video_id in sender.ended or video_id <= sender.ended_floor:
        return True
    return not now - policy.upload_window_ms <= minted_at(video_id) <= now + CLOCK_SKEW_MS


class Room(NamedTuple):
    """Whether one more video from one client to another fits, and what has to be dropped for it first."""

    full: bool
    drop: tuple[VideoRef, ...] = ()


def room(sender: ClientState, recipient: ClientState, policy: Policy) -> Room:
    """Whether both documents can take one more video of this pair. Only videos that have not ended fill them up."""
    pair = sender.outgoing.get(recipient.client_id)
    replaced = surplus(pair.videos, policy.videos_per_pair - 1) if pair else frozenset()
    sent = [
        VideoRef(video_id, sender.client_id, recipient_id)
        for recipient_id, video_id, _ in sender.sent()
        if video_id not in replaced
    ]
    received = [
        VideoRef(video_id, sender_id, recipient.client_id)
        for sender_id, video_id, _ in recipient.received()
        if video_id not in replaced
    ]
    full_there, drop_there = _excess(sent, sender.outgoing, policy.max_outgoing, side=2)
    full_here, drop_here = _excess(received, recipient.incoming, policy.max_incoming, side=1)
    return Room(full_there or full_here, tuple({*drop_there, *drop_here}))


def _excess(
    refs: list[VideoRef], pairs: Mapping[ClientId, Pair], most: int, *, side: int
) -> tuple[bool, list[VideoRef]]:
    """Whether `most` live videos are there already, and else the oldest ended ones that make room for one more."""
    ended = sorted(ref for ref in refs if pairs[ClientId(ref[side])].videos[ref.video_id].ended)
    return len(refs) - len(ended) >= most, ended[: max(0, len(refs) + 1 - most)]


def upload(
    sender: ClientState,
    recipient_id: ClientId,
    video_id: VideoId,
    stored: Stored | None,
    *,
    now: int,
    policy: Policy,
) -> Decision:
    """The bytes are there: track the video, and replace what is one too many of that pair.

    `stored` may be None where nothing new would be tracked: see `awaits_upload`. The caps are the caller's to check.
    """
    ref = VideoRef(video_id, sender.client_id, recipient_id)
    both = frozenset({recipient_id})
    if (found := sender.find_sent(video_id)) is not None:
        if found[0] != recipient_id:
            return Decision(sender, (UNKNOWN,))
        return Decision(sender, (DUPLICATE,), both)
    if is_over(sender, video_id, now=now, policy=policy):
        return Decision(sender, (SUPERSEDED,), both, (ref,))
    pair = sender.outgoing.get(recipient_id)
    others = pair.videos if pair else {}
    if sum(other > video_id for other in others) >= policy.videos_per_pair:
        return end(sender, ref, now=now, policy=policy)._replace(verdicts=(SUPERSEDED,))
    if stored is None:
        raise ValueError("an upload that would be tracked needs what was stored: ask `awaits_upload` first")
    videos = {**others, video_id: Video(Status.UPLOADED, now, now, stored.size, stored.content_type)}
    replaced = surplus(videos, policy.videos_per_pair)
    state = with_list(sender, recipient_id, without(videos, replaced), replaced, now=now)
    gone = tuple(VideoRef(other, sender.client_id, recipient_id) for other in sorted(replaced))
    return Decision(sealed(state, now=now, policy=policy), (APPLIED,), both, gone)


def awaits_upload(sender: ClientState, recipient_id: ClientId, video_id: VideoId, *, now: int, policy: Policy) -> bool:
    """Whether a confirmation of this video would track it, so that its bytes and the caps have to be checked."""
    if sender.find_sent(video_id) is not None or is_over(sender, video_id, now=now, policy=policy):
        return False
    pair = sender.outgoing.get(recipient_id)
    return pair is None or sum(other > video_id for other in pair.videos) < policy.videos_per_pair


def end(sender: ClientState, ref: VideoRef, *, now: int, policy: Policy) -> Decision:
    """The sender deletes or cancels a video, tracked or only announced. No confirmation brings it back afterwards."""
    both = frozenset({ref.recipient_id})
    found = sender.find_sent(ref.video_id)
    if found is None:
        if is_over(sender, ref.video_id, now=now, policy=policy):
            return Decision(sender, (DUPLICATE,), both, (ref,))
        state = sender._replace(ended=merged(sender.ended, {ref.video_id}))
    elif found[0] != ref.recipient_id:
        return Decision(sender, (UNKNOWN,))
    else:
        videos = without(sender.outgoing[ref.recipient_id].videos, {ref.video_id})
        state = with_list(sender, ref.recipient_id, videos, {ref.video_id}, now=now)
    return Decision(sealed(state, now=now, policy=policy), (APPLIED,), both, (ref,))


def drop(
    sender: ClientState, recipient: ClientState, video_ids: Collection[VideoId], *, now: int, policy: Policy
) -> Decision:
    """The sender's document lets go of videos that have ended, for age or for room. Those that have not, stay."""
    known = raised(sender, recipient, now=now, policy=policy)
    pair = known.outgoing.get(recipient.client_id)
    over = {video_id for video_id in video_ids if pair and video_id in pair.videos and pair.videos[video_id].ended}
    if pair is None or not over:
        return Decision(sender, settle=frozenset({recipient.client_id}))
    state = with_list(known, recipient.client_id, without(pair.videos, over), over, now=now)
    gone = tuple(VideoRef(video_id, sender.client_id, recipient.client_id) for video_id in sorted(over))
    return Decision(sealed(state, now=now, policy=policy), settle=frozenset({recipient.client_id}), gone=gone)


def leave(client: ClientState, *, now: int, policy: Policy) -> Decision:
    """The account ends: no devices, nothing sent; what it was sent expires for the senders. Repeatable.

    What it has announced until now ends too, though nothing of that is known here. The pairs stay for a while, empty or
    ended, so that a repeated call still knows with whom to settle.
    """
    version = next_version(client, now)
    gone = [VideoRef(video_id, client.client_id, to) for to, video_id, _ in client.sent()]
    outgoing = {to: Pair(version, {}) if pair.videos else pair for to, pair in client.outgoing.items()}
    incoming = dict(client.incoming)
    for sender_id, pair in client.incoming.items():
        live = {video_id: video for video_id, video in pair.videos.items() if not video.ended}
        if live:
            ended = {video_id: video.moved(Status.EXPIRED, now) for video_id, video in live.items()}
            incoming[sender_id] = Pair(pair.version, {**pair.videos, **ended})
            gone += [VideoRef(video_id, sender_id, client.client_id) for video_id in live]
    peers = frozenset({*client.outgoing, *client.incoming})
    state = client._replace(
        version=version if gone else client.version,
        outgoing=outgoing,
        incoming=incoming,
        ended=merged(client.ended, {video_id for _, video_id, _ in client.sent()}),
        ended_floor=max(client.ended_floor, last_id(now)),
        devices={},
    )
    return Decision(sealed(state, now=now, policy=policy), settle=peers, gone=tuple(gone))

"""What time decides: videos that nobody viewed expire, ended ones are dropped, kept bytes go. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.transit.decisions import Decision, VideoRef
from gateway.transit.pairs import copied
from gateway.transit.policy import Policy
from gateway.transit.sealing import next_version, sealed
from gateway.transit.state import ClientId, ClientState, Pair, Status, Video, VideoId


def expire(recipient: ClientState, sender: ClientState, *, now: int, policy: Policy) -> Decision:
    """End the videos of this pair that were not viewed in time. The recipient's document decides, so that what it
    has viewed can never expire."""
    client = copied(recipient, sender, now=now, policy=policy)
    pair = client.incoming.get(sender.client_id)
    late = {
        video_id: video.moved(Status.EXPIRED, now)
        for video_id, video in (pair.videos if pair else {}).items()
        if not video.ended and video.uploaded_at + policy.video_ttl_ms <= now
    }
    if pair is None or not late:
        return Decision(client, settle=frozenset({sender.client_id}))
    incoming = {**client.incoming, sender.client_id: Pair(pair.version, {**pair.videos, **late})}
    state = client._replace(version=next_version(client, now), incoming=incoming)
    gone = tuple(VideoRef(video_id, sender.client_id, recipient.client_id) for video_id in late)
    return Decision(sealed(state, now=now, policy=policy), settle=frozenset({sender.client_id}), gone=gone)


class Overdue(NamedTuple):
    """What time asks of a sender's document: pairs with videos to expire, ended ones to drop, bytes to delete."""

    expire: frozenset[ClientId]
    drop: Mapping[ClientId, frozenset[VideoId]]
    gone: tuple[VideoRef, ...]


def overdue(sender: ClientState, *, now: int, policy: Policy) -> Overdue:
    """What is to be done now; the state afterwards is checked again no later than `check_at`."""
    late: set[ClientId] = set()
    drops: dict[ClientId, frozenset[VideoId]] = {}
    gone: list[VideoRef] = []
    for recipient_id, video_id, video in sender.sent():
        if not video.ended:
            if video.uploaded_at + policy.video_ttl_ms <= now:
                late.add(recipient_id)
        elif video.at + policy.ended_keep_ms <= now:
            drops[recipient_id] = drops.get(recipient_id, frozenset()) | {video_id}
        elif video.at + policy.viewed_keep_ms <= now:
            gone.append(VideoRef(video_id, sender.client_id, recipient_id))
    return Overdue(frozenset(late), drops, tuple(gone) if policy.viewed_keep_ms else ())


def bytes_wanted(video: Video, *, now: int, policy: Policy) -> bool:
    """Whether a tracked video's bytes are still to be had: until it is over, or kept a while after it was viewed."""
    if video.status is Status.VIEWED:
        return now < video.at + policy.viewed_keep_ms
    return not video.ended

"""The second half of every change: making one client's document agree with what the other's decided. Pure.

Repeatable, and safe when it comes late: a write that was held up cannot bring back what was replaced meanwhile.
"""

from collections.abc import Mapping

from gateway.transit.policy import Policy
from gateway.transit.sealing import next_version, sealed
from gateway.transit.state import ClientState, Pair, Status, Video, VideoId


def settle(peer: ClientState, owner: ClientState, *, now: int, policy: Policy) -> ClientState:
    """Make `peer` agree with what `owner` decided: the videos that the owner sent it, the statuses of those it sent.

    Repeatable, in any order with others like it: an older list changes nothing, and a status only moves forward.
    """
    return raised(copied(peer, owner, now=now, policy=policy), owner, now=now, policy=policy)


def agree(recipient: ClientState, sender: ClientState) -> bool:
    """Whether the two documents of a pair list the same videos, and the sender knows how far each has come."""
    mine = recipient.incoming.get(sender.client_id)
    theirs = sender.outgoing.get(recipient.client_id)
    copies = mine.videos if mine else {}
    listed = theirs.videos if theirs else {}
    if copies.keys() != listed.keys():
        return False
    return not any(listed[video_id].moves_to(video.status) for video_id, video in copies.items())


def reconcile(recipient: ClientState, sender: ClientState, *, now: int, policy: Policy) -> ClientState:
    """The sweep's `settle`: the recipient's copy is made anew where the lists differ, even if a record was lost.

    The sender must have been loaded after the recipient: then a list that lacks a video does so for good.
    """
    mine = recipient.incoming.get(sender.client_id)
    pair = sender.outgoing.get(recipient.client_id, Pair(sender.version, {}))
    if pair.videos.keys() == (mine.videos.keys() if mine else set()):
        return recipient
    version = max(pair.version, mine.version + 1) if mine else pair.version
    renewed = sender._replace(outgoing={recipient.client_id: Pair(version, pair.videos)})
    return copied(recipient, renewed, now=now, policy=policy)


def copied(recipient: ClientState, sender: ClientState, *, now: int, policy: Policy) -> ClientState:
    """The recipient with the sender's list: new videos have come, others are gone, its own statuses stay."""
    theirs = sender.outgoing.get(recipient.client_id)
    mine = recipient.incoming.get(sender.client_id)
    if theirs is None or theirs.version <= (mine.version if mine else 0):
        return recipient
    known = mine.videos if mine else {}
    version = next_version(recipient, now)
    videos = {video_id: _copy(video, known.get(video_id), version) for video_id, video in theirs.videos.items()}
    fresh = any(not video.ended for video_id, video in videos.items() if video_id not in known)
    state = recipient._replace(
        version=version if _shown(videos) != _shown(known) else recipient.version,
        incoming={**recipient.incoming, sender.client_id: Pair(theirs.version, videos)},
    )
    return sealed(state, now=now, policy=policy, fresh=fresh)


def _copy(video: Video, known: Video | None, version: int) -> Video:
    """The recipient's entry of a listed video: its own status, unless only the sender knows of the end."""
    if known is None:
        status, at = (video.status, video.at) if video.ended else (Status.UPLOADED, video.uploaded_at)
        return video._replace(status=status, at=at, came=version)
    return known.moved(video.status, video.at) if video.ended and not known.ended else known


def _shown(videos: Mapping[VideoId, Video]) -> dict[VideoId, tuple[Status, int]]:
    return {video_id: (video.shown_status, video.shown_at) for video_id, video in videos.items() if not video.ended}


def raised(sender: ClientState, recipient: ClientState, *, now: int, policy: Policy) -> ClientState:
    """The sender with the statuses that the recipient's document has reached."""
    mine = sender.outgoing.get(recipient.client_id)
    theirs = recipient.incoming.get(sender.client_id)
    if mine is None or theirs is None:
        return sender
    higher = {
        video_id: video.moved(other.status, other.at)
        for video_id, video in mine.videos.items()
        if (other := theirs.videos.get(video_id)) is not None and video.moves_to(other.status)
    }
    if not higher:
        return sender
    version = next_version(sender, now)
    pair = Pair(mine.version, {**mine.videos, **higher})
    state = sender._replace(
        version=version,
        outgoing={**sender.outgoing, recipient.client_id: pair},
        status_news=version,
    )
    return sealed(state, now=now, policy=policy, fresh=policy.push_on_status)

"""What every new state has in common: versions grow, memories are bounded, times follow from what is there. Pure."""

from collections.abc import Collection, Iterable, Mapping

from gateway.transit import devices
from gateway.transit.policy import FORGET_MS, MINUTE_MS, MOST_EMPTY_PAIRS, PAIR_KEEP_MS, Policy
from gateway.transit.state import ENDED, ClientId, ClientState, Pair, Video, VideoId, minted_at


def sealed(state: ClientState, *, now: int, policy: Policy, fresh: bool = False) -> ClientState:
    """What every change ends with: old memories go, `check_at` and the devices' times follow from what is there."""
    ended, floor = _remembered(state.ended, state.ended_floor, now, policy)
    state = state._replace(
        outgoing=_kept(state.outgoing, now),
        incoming=_kept(state.incoming, now),
        ended=ended,
        ended_floor=floor,
        check_at=_check_at(state, now, policy),
    )
    if state.blank and state.version + FORGET_MS <= now:
        return ClientState(state.client_id)
    return devices.rescheduled(state, fresh=fresh, now=now, policy=policy)


def _remembered(ended: tuple[VideoId, ...], floor: str, now: int, policy: Policy) -> tuple[tuple[VideoId, ...], str]:
    """The ended ids that an upload may still name; of too many the newest, and the rest as a floor."""
    oldest = now - policy.upload_window_ms
    if ended and minted_at(ended[0]) < oldest:
        ended = tuple(video_id for video_id in ended if minted_at(video_id) >= oldest)
    if floor and minted_at(VideoId(floor)) < oldest:
        floor = ""
    if len(ended) > policy.max_ended:
        floor = max(floor, ended[-policy.max_ended - 1])
        ended = ended[-policy.max_ended :]
    return ended, floor


def _kept(pairs: Mapping[ClientId, Pair], now: int) -> Mapping[ClientId, Pair]:
    empty = [pair.version for pair in pairs.values() if not pair.videos]
    if not empty:
        return pairs
    empty.sort()
    oldest = max(now - PAIR_KEEP_MS + 1, *empty[-MOST_EMPTY_PAIRS:][:1])
    return {peer: pair for peer, pair in pairs.items() if pair.videos or pair.version >= oldest}


def with_list(
    sender: ClientState,
    recipient_id: ClientId,
    videos: Mapping[VideoId, Video],
    ended: Collection[VideoId],
    *,
    now: int,
) -> ClientState:
    version = next_version(sender, now)
    return sender._replace(
        version=version,
        outgoing={**sender.outgoing, recipient_id: Pair(version, videos)},
        ended=merged(sender.ended, ended),
    )


def next_version(state: ClientState, now: int) -> int:
    return max(state.version + 1, now)


def merged(ended: tuple[VideoId, ...], more: Iterable[VideoId]) -> tuple[VideoId, ...]:
    return tuple(sorted({*ended, *more}))


def surplus(videos: Mapping[VideoId, Video], most: int) -> frozenset[VideoId]:
    """The ids beyond the `most` newest."""
    return frozenset(sorted(videos)[: max(0, len(videos) - most)])


def without(videos: Mapping[VideoId, Video], ids: Collection[VideoId]) -> dict[VideoId, Video]:
    return {video_id: video for video_id, video in videos.items() if video_id not in ids}


def checked(state: ClientState, *, now: int, policy: Policy) -> ClientState:
    """The state after what is overdue was dealt with: checked again when the next thing expires, or in a minute if
    something could not be done."""
    state = sealed(state._replace(check_at=0), now=now, policy=policy)
    return state._replace(check_at=max(state.check_at, now + MINUTE_MS)) if 0 < state.check_at <= now else state


def _check_at(state: ClientState, now: int, policy: Policy) -> int:
    """When something of what this client sent expires, at the latest.

    An earlier time that was set before stays: it costs one look too many then, where moving it would cost an index
    write at every upload.
    """
    first = min(
        (_expires_at(video, now, policy) for pair in state.outgoing.values() for video in pair.videos.values()),
        default=0,
    )
    return state.check_at if 0 < state.check_at <= first else first


def _expires_at(video: Video, now: int, policy: Policy) -> int:
    if video.status not in ENDED:
        return video.uploaded_at + policy.video_ttl_ms
    bytes_go = video.at + policy.viewed_keep_ms
    return bytes_go if policy.viewed_keep_ms and bytes_go > now else video.at + policy.ended_keep_ms

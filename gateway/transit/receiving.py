"""What a recipient's document decides: how far the videos it was sent have come. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.transit import devices
from gateway.transit.decisions import APPLIED, DUPLICATE, TOO_LATE, UNKNOWN, Decision, Verdict, VideoRef
from gateway.transit.policy import Policy
from gateway.transit.sealing import next_version, sealed
from gateway.transit.state import ClientId, ClientState, DeviceId, Pair, Status, Video, VideoId


class Acknowledgement(NamedTuple):
    """A device has applied a version of its client's packet."""

    device_id: DeviceId
    version: int


class Report(NamedTuple):
    """What a recipient's app has to say, all at once: statuses that videos reached, and what its device applied."""

    statuses: tuple[tuple[VideoId, Status], ...] = ()
    acknowledgement: Acknowledgement | None = None


def report(client: ClientState, said: Report, *, now: int, policy: Policy) -> Decision:
    """Move the statuses forward and take the acknowledgement; a verdict for each status, in order."""
    changes = _Changes(client)
    for video_id, status in said.statuses:
        changes.advance(video_id, status, now=now)
    state = changes.state(now)
    if said.acknowledgement is not None:
        state = _acknowledge(changes, state, said.acknowledgement, now=now, policy=policy)
    if state is not client:
        state = sealed(state, now=now, policy=policy)
    gone = tuple(
        VideoRef(video_id, sender_id, client.client_id)
        for video_id, _ in said.statuses
        if (sender_id := changes.viewed.get(video_id)) is not None
    )
    return Decision(
        state, tuple(changes.verdicts), frozenset(changes.senders), gone if policy.viewed_keep_ms == 0 else ()
    )


@dataclass(slots=True)
class _Changes:
    """The incoming videos of one client while several statuses are applied to them."""

    client: ClientState
    pairs: dict[ClientId, dict[VideoId, Video]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    senders: set[ClientId] = field(default_factory=set)
    viewed: dict[VideoId, ClientId] = field(default_factory=dict)
    visible: bool = False

    def advance(self, video_id: VideoId, status: Status, *, now: int) -> None:
        found = self.client.find_received(video_id)
        if found is None:
            self.verdicts.append(UNKNOWN)
            return
        sender_id, original = found
        video = self.pairs.get(sender_id, {}).get(video_id, original)
        self.senders.add(sender_id)
        if video.status is Status.EXPIRED:
            self.verdicts.append(TOO_LATE)
            return
        if moves := video.moves_to(status):
            self.put(sender_id, video_id, video.moved(status, now))
            self.visible = self.visible or status is not Status.NOTIFIED
        self.verdicts.append(APPLIED if moves else DUPLICATE)
        if Status.VIEWED in (status, video.status):
            self.viewed[video_id] = sender_id

    def put(self, sender_id: ClientId, video_id: VideoId, video: Video) -> None:
        changed = self.pairs.setdefault(sender_id, dict(self.client.incoming[sender_id].videos))
        changed[video_id] = video

    def state(self, now: int) -> ClientState:
        """The client with these changes; its packet's version moves if they show in it."""
        if not self.pairs:
            return self.client
        pairs = {sender: Pair(self.client.incoming[sender].version, videos) for sender, videos in self.pairs.items()}
        version = next_version(self.client, now) if self.visible else self.client.version
        return self.client._replace(version=version, incoming={**self.client.incoming, **pairs})


def _acknowledge(
    changes: _Changes, state: ClientState, seen: Acknowledgement, *, now: int, policy: Policy
) -> ClientState:
    version = min(seen.version, changes.client.version)
    for sender_id, video_id, video in state.received():
        if video.status is Status.UPLOADED and video.came <= version:
            changes.put(sender_id, video_id, video.moved(Status.NOTIFIED, now))
            changes.senders.add(sender_id)
    return devices.applied(changes.state(now), seen.device_id, version, now=now, policy=policy)


def notified(client: ClientState, carried: int, *, now: int) -> tuple[ClientState, frozenset[ClientId]]:
    """A provider accepted a push that told of version `carried`: what had come by then was told of. And its senders."""
    changes = _Changes(client)
    for sender_id, video_id, video in client.received():
        if video.status is Status.UPLOADED and video.came <= carried:
            changes.put(sender_id, video_id, video.moved(Status.NOTIFIED, now))
    return changes.state(now), frozenset(changes.pairs)

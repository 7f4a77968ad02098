"""What really happened, and what may be seen of it: the oracle.

    truth = Truth(scheduler, policy, skews_s=(0.0, 5.0))     a `Witness`: hand it to every part of the simulation
    scheduler.noted = truth.broken
    truth.violation                        the first one, (name, text), or None; it stops the scheduler
    truth.clips[video_id]                  what became of each announced video
    truth.states[client_id], truth.tokens[key], truth.stored      the documents and the bytes as they are
    truth.may_be_gone(clip), truth.may_be_over(clip), truth.may_be_expired(clip)
    truth.story()                          what happened, a line each

At the end, once faults have stopped, everyone has repeated what was not answered, and some time has passed:

    truth.check_agreement(lag_s=60)        documents agree, bytes are there if and only if they are wanted
    truth.check_woken()                    after the last reminder: whoever is behind was told
    truth.check_tokens()                   no token is left that no device has
    truth.check_delivered()                every open socket was sent the newest packet
    truth.check_empty()                    after everything has expired: nothing is left

Every write of a document, every answer and every packet is held to the protocol when it happens. Each thing that must
not be has a name of its own, in `broken`. It is told nothing of what the code under test thinks: only of what reached
it, what left it, and what it wrote.
"""

import base64
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from gateway import packet
from gateway.bus.bus import Publication
from gateway.changes import CALL_DEADLINE_S, CLIENT_PREFIX
from gateway.live.closing import CloseCode
from gateway.registry import TOKEN_PREFIX, TokenOwner, decode_owner, hash_token
from gateway.transit import expiry, sending
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, ClientState, DeviceId, Status, Video, VideoId, decode, encode
from push.sender import Accepted, Outcome, TokenDead, Wakeup
from storage.cache import PUT_WITHIN_S
from storage.documents import PEEK_AGE_S, Document
from tests.simulation.backends import LATEST_WRITE_S
from tests.simulation.loops import Scheduler
from tests.simulation.process import START_S
from tests.simulation.witness import Line, Witness
from tests.simulation.woken import Woken

RANK = {"uploaded": 0, "notified": 1, "downloaded": 2, "viewed": 3, "expired": 3}
NEVER = 1 << 62
SILENT_S = 10.0
"""Less than the time between silent pushes in a story, by as much as the first may have been under way."""

STAYING = frozenset({int(CloseCode.DISPLACED), int(CloseCode.RESTART)})
"""Close codes of sockets whose device is connected elsewhere, or will be in a moment."""

FULL = "too_many_in_transit"
"""The code with which a video is refused for which there is no room."""

PUT_S = 3.0
"""How long it may take until what was written or read is in the cache, where nothing is wrong."""

PUSHED_S = 45.0
"""How long a push may be under way: a call and a provider, each within its deadline."""

Key = tuple[ClientId, DeviceId]
"""One device."""


class Whose(NamedTuple):
    """What a bearer token says."""

    client_id: ClientId
    device_id: DeviceId | None


@dataclass(eq=False, slots=True)
class Clip:
    """What became of one announced video, as far as anyone knows. Times are counted in events, versions are packets'.

    `began`, `born`: when its announcement reached a process, and when the answer left. `confirmed`, `deleted`,
    `viewed`: the version with which that was answered first. `reported`: the statuses that its recipient has sent,
    answered or not. `tracked`, `untracked`: whether it has been in its sender's document, and has been taken out.
    `refused`: whether it has ended for want of room instead.
    """

    ref: VideoRef
    began: int
    born: int
    confirmed: int | None = None
    delete_began: bool = False
    deleted: int | None = None
    reported: set[Status] = field(default_factory=set)
    viewed: int | None = None
    answered: int = 0
    tracked: bool = False
    untracked: bool = False
    refused: bool = False
    uploaded_at: int = 0

    @property
    def id(self) -> VideoId:
        """The video's id."""
        return self.ref.video_id


class _Said(NamedTuple):
    """A status that somebody reported: of which video, and whether the gateway must know that one."""

    clip: Clip | None
    status: str
    known: bool


@dataclass(eq=False, slots=True)
class _Call:
    """A request that reached a process. `least`: the client had been shown that version before. `claimed`: the version
    that it acknowledges. `named`: the version that it says it has; `tagged`: the one in `If-None-Match`."""

    number: int
    machine: str
    whose: Whose
    method: str
    path: str
    query: dict[str, str]
    body: Any
    began: int
    least: int
    newest_id: str
    claimed: int = 0
    named: int = 0
    tagged: int = 0
    came_s: float = 0.0
    device_id: DeviceId | None = None
    said: list[_Said] = field(default_factory=list)
    ended: int = NEVER
    answered: bool = False

    @property
    def is_held(self) -> bool:
        """Whether this is a poll that waits for news."""
        return "wait" in self.query


class _Registration(NamedTuple):
    """A call that gives a token to a device, or takes one away (`token` None)."""

    device: Key
    token: str | None
    call: _Call


@dataclass(eq=False, slots=True)
class _Socket:
    """A socket: the newest version that its device is known to have been sent, or to have had before. `asked`: by the
    id of a message with a status, what it says and acknowledges, and when it came."""

    whose: Whose
    device_id: DeviceId
    asked_s: float
    version: int = -1
    opened_s: float | None = None
    closed: int | None = None
    stalled: bool = False
    asked: dict[Any, tuple[list[_Said], int, float]] = field(default_factory=dict)

    @property
    def opened(self) -> bool:
        """Whether the handshake was answered."""
        return self.opened_s is not None


class _Seen(NamedTuple):
    """A packet that was seen somewhere."""

    client_id: ClientId
    version: int
    outgoing: frozenset[str]
    incoming: frozenset[str]


class Truth(Witness):
    """Knows what really happened, and what follows from it."""

    def __init__(
        self, scheduler: Scheduler, policy: Policy, *, skews_s: Sequence[float] = (0.0,), cached: bool = False
    ) -> None:
        self.policy = policy
        self.violation: tuple[str, str] | None = None
        self.clips: dict[str, Clip] = {}
        self.states: dict[ClientId, ClientState] = {}
        self.tokens: dict[str, TokenOwner] = {}
        self.stored: dict[str, None] = {}
        self.events = 0
        self.pushes = 0
        self.shaky_until_s = 0.0
        """Until then packets and dismissals may be late or lost: the world knows why."""
        self.durable: defaultdict[Key, int] = defaultdict(int)
        """The highest version that each device has ever stored: what it may say that it has applied."""
        self.changed_s = 0.0
        """When a packet changed last."""
        self.scheduler = scheduler
        self.woken = Woken(self, spread_s=max(skews_s) - min(skews_s))
        self.troubled_until_s = float("inf")
        """Until then a backend may not answer: a world knows why, and says so."""
        self.forgetful_until_s = 0.0
        """Until then the cache may lose what it is given: the world knows why."""
        self._read_s: defaultdict[ClientId, float] = defaultdict(float)
        self._peek_age_s = PEEK_AGE_S if cached else 0.0
        self._history: defaultdict[ClientId, list[tuple[float, ClientState]]] = defaultdict(list)
        self._skewed = any(skews_s)
        self._ahead_ms = round(1000 * max(0.0, *skews_s))
        self._story: list[tuple[float, str, Line]] = []
        self._of: defaultdict[ClientId, list[Clip]] = defaultdict(list)
        self._pairs: defaultdict[tuple[ClientId, ClientId], list[Clip]] = defaultdict(list)
        self._highest: defaultdict[str, int] = defaultdict(int)
        self._calls: dict[int, _Call] = {}
        self._leaves: defaultdict[ClientId, list[_Call]] = defaultdict(list)
        self._sockets: dict[int, _Socket] = {}
        self._claimed: defaultdict[Key, int] = defaultdict(int)
        self._claimed_by: defaultdict[ClientId, int] = defaultdict(int)
        self._pushed_to: defaultdict[ClientId, int] = defaultdict(int)
        self._told_dead: set[str] = set()
        self._registrations: defaultdict[Key, list[_Registration]] = defaultdict(list)
        self._by_token: defaultdict[str, list[_Registration]] = defaultdict(list)
        self._token_of: dict[str, str] = {}
        self._owned_s: dict[str, float] = {}
        self._left_s: dict[tuple[ClientId, DeviceId | None], float] = {}
        self._silent_s: dict[tuple[str, ClientId], float] = {}
        self._packets: dict[tuple[ClientId, int], bytes] = {}
        self._seen: dict[bytes, _Seen] = {}
        self._shown: defaultdict[ClientId, int] = defaultdict(int)
        self._whose: dict[str, Whose] = {}

    # --- The story

    @property
    def now_s(self) -> float:
        """The time since the beginning, in seconds."""
        return self.scheduler.now_s

    @property
    def now_ms(self) -> int:
        """The true time."""
        return START_S * 1000 + round(self.now_s * 1000)

    @property
    def latest_ms(self) -> int:
        """The time by the clock that is furthest ahead."""
        return self.now_ms + self._ahead_ms

    def say(self, machine: str, line: Line) -> None:
        self._story.append((self.now_s, machine, line))

    def broken(self, name: str, text: str) -> None:
        if self.scheduler.disposed:
            return
        self.say("truth", f"VIOLATION: {name}: {text}")
        if self.violation is None:
            self.violation = (name, text)
        self.scheduler.stop()

    def story(self) -> list[str]:
        """What happened, a line each, with the time in ms."""
        return [
            f"{round(now_s * 1000):>8} {machine:<10} {line if isinstance(line, str) else line()}"
            for now_s, machine, line in self._story
        ]

    def state(self, client_id: ClientId) -> ClientState:
        """What the documents say of a client."""
        return self.states.get(client_id) or ClientState(client_id)

    def versions(self, client_id: ClientId) -> list[int]:
        """The versions that the packets of a client have had, in order."""
        return sorted({state.version for _, state in self._history[client_id]})

    # --- Documents

    def wrote(self, machine: str, before: Document, after: Document) -> None:
        self.events += 1
        if after.body and not after.version > max(before.version, self._highest[after.key]):
            self.broken("document version", f"that of {after.key} did not grow")
        self._highest[after.key] = max(self._highest[after.key], after.version)
        if after.key.startswith(CLIENT_PREFIX):
            self._client_written(machine, before, after)
        elif after.key.startswith(TOKEN_PREFIX):
            self._token_written(machine, before, after)

    def _client_written(self, machine: str, before: Document, after: Document) -> None:
        client_id = ClientId(after.key.removeprefix(CLIENT_PREFIX))
        old, new = decode(client_id, before.body), decode(client_id, after.body)
        self.states[client_id] = new
        self._history[client_id].append((self.now_s, new))
        if new.version != old.version:
            self.changed_s = self.now_s
        self.say(machine, lambda: f"wrote {show(new)}")
        if after.due != new.due:
            self.broken("due time", f"{client_id}: due at {after.due}, its state says {new.due}")
        if encode(new) != after.body:
            self.broken("stored form", f"{client_id}: not stored as it is")
        self._check_packet(client_id, old, new)
        self._check_moves(old, new)
        self._check_bounds(new)
        self.woken.written(machine, old, new)
        self._check_devices(new)
        self._check_truth(client_id)
        self._check_registrations(client_id)

    def _token_written(self, machine: str, before: Document, after: Document) -> None:
        key = after.key.removeprefix(TOKEN_PREFIX)
        owner = decode_owner(after.body)
        self.say(machine, lambda: f"wrote token {key[:6]} of {owner!r}")
        before_owner = self.tokens.get(key)
        if owner is None:
            self.tokens.pop(key, None)
        else:
            self.tokens[key] = owner
        if owner is None or before_owner is None or owner.client_id != before_owner.client_id:
            self._owned_s[key] = self.now_s
        for registration in self._by_token.get(self._token_of.get(key, ""), ()):
            self._check_registration(registration.device)

    def _check_packet(self, client_id: ClientId, old: ClientState, new: ClientState) -> None:
        same = content(old) == content(new)
        if new == ClientState(client_id):
            if not same:
                self.broken("removed document", f"{client_id}: removed with something to show")
            return
        highest = self._highest[f"packet {client_id}"]
        if not same and new.version <= max(old.version, highest):
            self.broken("packet version stood still", f"{client_id}: the packet changed, its version did not grow")
        # A video that comes when its time is over already is never shown.
        known = {video_id for _, video_id, _ in new.received()} <= {video_id for _, video_id, _ in old.received()}
        if same and known and not old.blank and new.version != old.version:
            self.broken("packet version moved", f"{client_id}: the packet's version moved for nothing")
        self._highest[f"packet {client_id}"] = max(highest, new.version)
        self._same_packet(client_id, packet.encode(new))

    def _check_moves(self, old: ClientState, new: ClientState) -> None:
        client_id = new.client_id
        before = {video_id: video for _, video_id, video in old.sent()}
        sent = {video_id: (to, video) for to, video_id, video in new.sent()}
        for video_id in before.keys() - sent.keys():
            self.clips[video_id].untracked = True
        for video_id in {*new.ended} - {*old.ended} - before.keys():
            self._check_refused(self.clips[video_id], old)
        for video_id, (to, video) in sent.items():
            clip = self.clips.get(video_id)
            if clip is None or clip.ref[1:] != (client_id, to):
                self.broken("video of others", f"{client_id} lists {short(video_id)} as its own to {to}")
                return
            if clip.untracked:
                self.broken("ended video came back", f"{client_id}: {short(video_id)} was ended and came back")
            if not clip.tracked:
                clip.tracked, clip.uploaded_at = True, video.uploaded_at
                self._check_room(old, to)
            self._check_move(client_id, video_id, before.get(video_id), video)
        mine = {video_id: video for _, video_id, video in old.received()}
        for sender_id, video_id, video in new.received():
            clip = self.clips.get(video_id)
            if clip is None or clip.ref[1:] != (sender_id, client_id):
                self.broken("video of others", f"{client_id} lists {short(video_id)} as from {sender_id}")
                return
            self._check_move(client_id, video_id, mine.get(video_id), video)

    def _check_move(self, client_id: ClientId, video_id: VideoId, old: Video | None, new: Video) -> None:
        if old is not None and old.status != new.status and not RANK[new.status] > RANK[old.status]:
            text = f"{client_id}: {short(video_id)} moved from {old.status} to {new.status}"
            self.broken("status went back", text)
        if old is not None and new.at < old.at:
            self.broken("time ran back", f"{client_id}: the time of {short(video_id)} ran back")

    def _check_bounds(self, state: ClientState) -> None:
        policy, who = self.policy, state.client_id
        sent = list(state.sent())
        live_in = sum(not video.ended for _, _, video in state.received())
        if len(sent) > policy.max_outgoing:
            self.broken("too many sent", f"{who} sends {len(sent)} videos")
        # Several senders may fill a recipient's last places at once; each pair is bounded all the same.
        senders = len({clip.ref.sender_id for clip in self._of[who] if clip.ref.recipient_id == who})
        if live_in > policy.max_incoming + max(0, senders - 1) * policy.videos_per_pair:
            self.broken("too many received", f"{who} receives {live_in} videos")
        for pair in (*state.outgoing.values(), *state.incoming.values()):
            if len(pair.videos) > policy.videos_per_pair:
                self.broken("too many of a pair", f"{who}: {len(pair.videos)} videos of one pair")
        if len(state.ended) > policy.max_ended or len(state.devices) > policy.max_devices:
            self.broken("too much remembered", f"{who}: {len(state.ended)} ended, {len(state.devices)} devices")
        if list(state.ended) != sorted(set(state.ended)):
            self.broken("ended ids", f"{who}: ended ids are not in order")

    def _check_refused(self, clip: Clip, sender: ClientState) -> None:
        """A video ended that was never tracked: deleted, superseded, or there was no room when that was decided."""
        late_s = LATEST_WRITE_S if self.now_s <= self.troubled_until_s else 0.0
        clip.refused = self._was_full(sender, clip.ref.recipient_id, self.now_s - CALL_DEADLINE_S - late_s)
        if not clip.refused and not self.may_be_gone(clip):
            self.broken("refused for nothing", f"{short(clip.id)} has ended, and there was room for it")

    def _check_room(self, sender: ClientState, recipient_id: ClientId) -> None:
        """A video came to be tracked, for which there was room when that was decided. Where a backend is slow, that may
        be long ago."""
        if self.now_s > self.troubled_until_s:
            recipients = self._since(recipient_id, self.now_s - CALL_DEADLINE_S)
            if all(sending.room(sender, recipient, self.policy).full for recipient in recipients):
                self.broken("no room", f"{sender.client_id} sends to {recipient_id}, who has had no room for a while")

    def _check_devices(self, state: ClientState) -> None:
        client_id = state.client_id
        for device_id, row in state.devices.items():
            if row.acked > self._claimed[client_id, device_id]:
                self.broken("acknowledged unsaid", f"{device_id} never said that it applied {row.acked}")
        heard = max(self._claimed_by[client_id], self._pushed_to[client_id])
        for _, video_id, video in state.received():
            if video.status is Status.NOTIFIED and heard < video.came and not self.clips[video_id].reported:
                self.broken("notified unheard", f"{short(video_id)} is notified, and nobody was")

    # --- What may be

    def may_be_gone(self, clip: Clip) -> bool:
        """Whether the sender's document may lack the video."""
        if clip.delete_began or self._left_since(clip.ref.sender_id, clip.began) or self.may_be_over(clip):
            return True
        pair = self._pairs[clip.ref.sender_id, clip.ref.recipient_id]
        return sum(other.tracked and other.id > clip.id for other in pair) >= self.policy.videos_per_pair

    def may_be_over(self, clip: Clip) -> bool:
        """Whether the video may have ended."""
        return Status.VIEWED in clip.reported or self.may_be_expired(clip)

    def may_be_expired(self, clip: Clip) -> bool:
        """Whether the video may have expired: too old by the fastest clock, or its recipient has left."""
        late = clip.tracked and clip.uploaded_at + self.policy.video_ttl_ms <= self.latest_ms
        return late or self._left_since(clip.ref.recipient_id, clip.began)

    def left(self, client_id: ClientId) -> bool:
        """Whether the account has ended at any time, and with it devices that may not know."""
        return self._left_since(client_id, 0)

    def _left_since(self, client_id: ClientId, event: int) -> bool:
        return any(call.ended >= event for call in self._leaves.get(client_id, ()))

    # --- What must be

    def _check_truth(self, client_id: ClientId) -> None:
        for clip in self._of[client_id]:
            self._check_clip(clip, client_id)

    def _check_clip(self, clip: Clip, client_id: ClientId) -> None:
        if client_id == clip.ref.sender_id:
            self._check_sender(clip)
        else:
            self._check_recipient(clip)

    def _check_sender(self, clip: Clip) -> None:
        name, client_id = short(clip.id), clip.ref.sender_id
        pair = self.state(client_id).outgoing.get(clip.ref.recipient_id)
        video = pair.videos.get(clip.id) if pair else None
        if video is None:
            if clip.confirmed is not None and not self.may_be_gone(clip):
                self.broken("upload lost", f"{name}: its upload was answered, and {client_id} lost it")
            return
        if video.status is Status.VIEWED and Status.VIEWED not in clip.reported:
            self.broken("told viewed", f"{name} was not viewed, but {client_id} is told so")
        if video.status is Status.EXPIRED and not self.may_be_expired(clip):
            self.broken("told expired", f"{name} has not expired, but {client_id} is told so")
        if RANK[video.status] < clip.answered:
            self.broken("status lost", f"{name}: {client_id} has {video.status}, and more than that was answered")
        if clip.viewed is not None and video.status is not Status.VIEWED:
            text = f"{name}: that it was viewed was answered, and {client_id} has {video.status}"
            self.broken("view lost", text)
        if not video.ended and clip.ref.object_key not in self.stored:
            self.broken("tracked without bytes", f"{name} is tracked, and its bytes are gone")
        if clip.deleted is not None:
            self.broken("deletion undone", f"{name}: its deletion was answered, and {client_id} lists it")
        # Whether an id is from before that, only one clock can tell.
        if not self._skewed and any(
            call.answered and call.began > clip.born for call in self._leaves.get(client_id, ())
        ):
            self.broken("tracked after leaving", f"{name}: {client_id} left after announcing it, and it is tracked")

    def _check_recipient(self, clip: Clip) -> None:
        name, client_id = short(clip.id), clip.ref.recipient_id
        pair = self.state(client_id).incoming.get(clip.ref.sender_id)
        video = pair.videos.get(clip.id) if pair else None
        live = video is not None and not video.ended
        if live and clip.deleted is not None:
            self.broken("deletion undone", f"{name}: its deletion was answered, and {client_id} lists it")
        if live and clip.viewed is not None:
            self.broken("view undone", f"{name}: that it was viewed was answered, and {client_id} lists it")
        if not live and clip.confirmed is not None and not self.may_be_gone(clip):
            self.broken("upload not received", f"{name}: its upload was answered, and {client_id} lacks it")

    def _answered(self, clip: Clip) -> None:
        self._check_sender(clip)
        self._check_recipient(clip)

    # --- Bytes

    def object_stored(self, key: str) -> None:
        self.events += 1
        self.stored[key] = None
        self.say("objects", f"bytes of {short_key(key)} stored")

    def object_deleted(self, key: str) -> None:
        self.events += 1
        self.stored.pop(key, None)
        self.say("objects", f"bytes of {short_key(key)} deleted")
        ref = VideoRef.parse(key)
        found = self.state(ref.sender_id).find_sent(ref.video_id) if ref is not None else None
        if found is not None and not found[1].ended:
            self.broken("tracked without bytes", f"{short_key(key)} is tracked, and its bytes were deleted")

    # --- Calls

    def request_came(
        self,
        call: int,
        machine: str,
        method: str,
        path: str,
        *,
        query: dict[str, str],
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        self.events += 1
        whose = self._identity(headers.get("authorization", "").removeprefix("Bearer "))
        state = self.state(whose.client_id)
        found = _Call(
            number=call,
            machine=machine,
            whose=whose,
            method=method,
            path=path,
            query=query,
            body=orjson.loads(body) if body else None,
            began=self.events,
            least=self._shown[whose.client_id],
            newest_id=max((*state.ended[-1:], *(video_id for _, video_id, _ in state.sent())), default=""),
        )
        found.came_s = self.now_s
        self._calls[call] = found
        self.say(machine, lambda: f"#{call} {whose.client_id}: {method} {path} {query or ''} {_text(body)}")
        self._hear(found, headers)

    def _hear(self, call: _Call, headers: dict[str, str]) -> None:
        """Note what a request says."""
        client_id, body = call.whose.client_id, call.body
        device_id = call.whose.device_id or call.query.get("device_id")
        if call.path.endswith("/sync"):
            device_id = device_id or body.get("device_id")
        call.device_id = None if device_id is None else DeviceId(device_id)
        match call.method, call.path.split("/")[2:]:
            case "GET", ["poll"]:
                etag = headers.get("if-none-match", "").strip('"')
                call.claimed = self._claim(client_id, device_id, call.query.get("version", etag))
                call.tagged = int(etag or 0)
                call.named = max(call.tagged, int(call.query.get("version", 0)))
            case "POST", ["videos", video_id, "status"]:
                call.claimed = self._claim(client_id, device_id, call.query.get("version"))
                call.said = [self._say_status(client_id, video_id, body.get("status"))]
            case "POST", ["sync"]:
                call.claimed = self._claim(client_id, device_id, body.get("version"))
                for item in body["statuses"]:
                    call.said.append(self._say_status(client_id, item["video_id"], item["status"]))
            case "DELETE", ["videos", video_id]:
                clip = self.clips.get(video_id)
                if clip is not None and clip.ref[1:] == (client_id, call.query.get("recipient_id")):
                    clip.delete_began = True
                    call.said = [_Said(clip, "deleted", True)]
            case "PUT", ["devices", device]:
                self._register(call, (client_id, DeviceId(device)), body["token"])
            case "DELETE", ["devices", device]:
                self._register(call, (client_id, DeviceId(device)), None)
            case "DELETE", ["client"]:
                self._leaves[client_id].append(call)

    def _claim(self, client_id: ClientId, device_id: str | None, version: object) -> int:
        """A device says that it has applied a version; which, or 0."""
        number = int(version) if isinstance(version, str | int) and str(version).isdecimal() else 0
        if device_id is None:
            return 0
        if number:
            key = (client_id, DeviceId(device_id))
            if number > self.durable[key]:
                self.broken("acknowledged unstored", f"{device_id} says {number}, and has stored {self.durable[key]}")
            self._claimed[key] = max(self._claimed[key], number)
            self._claimed_by[client_id] = max(self._claimed_by[client_id], number)
        return number

    def _say_status(self, client_id: ClientId, video_id: str, status: str) -> _Said:
        """A client reports a status. It counts where it is the recipient's to report, from now on."""
        clip = self.clips.get(video_id)
        if clip is None or client_id not in clip.ref[1:]:
            return _Said(None, status, False)
        if client_id == clip.ref.sender_id:
            return _Said(clip if status == "uploaded" else None, status, False)
        if status == "uploaded":
            return _Said(None, status, False)
        known = clip.confirmed is not None or self.state(client_id).find_received(clip.id) is not None
        clip.reported.add(Status(status))
        return _Said(clip, status, known)

    def answer_left(self, call: int, status: int, body: bytes) -> None:
        self.events += 1
        asked = self._calls[call]
        asked.answered = 200 <= status < 300
        self.say(asked.machine, lambda: f"#{call} answered {status} {_text(body)}")
        if status == 500:
            self.broken("answered 500", f"{asked.method} {asked.path}")
        if status == 304:
            self._check_age(asked, asked.tagged, looked_again=asked.is_held)
        if not asked.answered:
            self._refused(asked, status, body)
            return
        client_id = asked.whose.client_id
        if asked.device_id is not None and asked.claimed:
            self.woken.acknowledged((client_id, asked.device_id), asked.claimed, asked.came_s)
        for _, video_id, video in self.state(client_id).received():
            if video.status is Status.UPLOADED and video.came <= asked.claimed:
                self.broken(
                    "not notified", f"{client_id} has acknowledged {asked.claimed}, and {short(video_id)} is not"
                )
        match asked.method, asked.path.split("/")[2:]:
            case "GET", ["poll"]:
                self._packet_answered(asked, body)
            case "POST", ["videos"]:
                self._announced(asked, orjson.loads(body))
            case "POST", ["videos", _, "status"]:
                self._judge(client_id, asked.said, [orjson.loads(body)])
            case "POST", ["sync"]:
                found = orjson.loads(body)
                for item, result in zip(asked.body["statuses"], found["results"], strict=False):
                    if result.get("code") == FULL:
                        self._check_full(asked, ClientId(item["recipient_id"]))
                self._judge(client_id, asked.said, found["results"])
                self._packet_answered(asked, body.partition(b',"packet":')[2][:-1])
            case "DELETE", ["videos", _]:
                self._deleted(asked, orjson.loads(body))
            case "PUT" | "DELETE", ["devices", device]:
                self._check_registration((client_id, DeviceId(device)))
            case "DELETE", ["client"]:
                self._check_truth(client_id)
        match asked.method, asked.path.split("/")[2:]:
            case _ if self.now_s < self.shaky_until_s:
                pass  # the bus may lose a dismissal
            case "DELETE", ["devices", device]:
                self._left_s[client_id, DeviceId(device)] = asked.came_s
            case "DELETE", ["client"]:
                self._left_s[client_id, None] = asked.came_s

    def _packet_answered(self, call: _Call, body: bytes) -> None:
        seen = self._packet_left(call.whose.client_id, body)
        if seen is None:
            return
        self._check_age(call, seen.version)
        if not call.named and call.method == "GET" and self.now_s - call.came_s < PUT_WITHIN_S:
            self._read_s[call.whose.client_id] = self.now_s
        least = call.named if call.named and self._peek_age_s else call.least
        if seen.version < least:
            text = f"{seen.client_id} is answered version {seen.version}, and had seen {least} before it asked"
            self.broken("answer went back", text)

    def _check_age(self, call: _Call, version: int, *, looked_again: bool = False) -> None:
        """An answer that says `version`, or that there is nothing newer, is as new as the call. Only a poll by somebody
        who has a version may be answered from the cache; one that is held looks once more into the store."""
        client_id = call.whose.client_id
        age_s = self._may_be_old_s(call) if call.named and not looked_again else 0.0
        least = min(state.version for state in self._since(client_id, call.came_s - age_s))
        if version < least:
            text = f"{client_id} is answered {version}; {least} was there {age_s:.0f} s before it asked"
            self.broken("answer too old", text)

    def _since(self, client_id: ClientId, since_s: float) -> list[ClientState]:
        """The states of a client from then on, the one at that moment included."""
        found: list[ClientState] = []
        for at_s, state in reversed(self._history[client_id]):
            found.append(state)
            if at_s < since_s:
                return found
        return [*found, ClientState(client_id)]

    def _refused(self, call: _Call, status: int, body: bytes) -> None:
        """A call was refused, for a reason that was one."""
        if status == 503 and self.now_s > self.troubled_until_s:
            self.broken("unavailable for nothing", f"{call.method} {call.path}: nothing was wrong with the backends")
        if status >= 400 and orjson.loads(body)["code"] == FULL:
            self._check_full(call, ClientId(call.body["recipient_id"]))

    def _check_full(self, call: _Call, recipient_id: ClientId) -> None:
        """At some moment while it was asked there was no room."""
        senders = self._since(call.whose.client_id, call.came_s)
        if not any(self._was_full(sender, recipient_id, call.came_s) for sender in senders):
            self.broken(
                "refused for nothing", f"{call.whose.client_id} is not to send to {recipient_id}; there is room"
            )

    def _was_full(self, sender: ClientState, recipient_id: ClientId, since_s: float) -> bool:
        """Whether there was no room for a video of that sender, at some moment since then."""
        return any(sending.room(sender, other, self.policy).full for other in self._since(recipient_id, since_s))

    def _may_be_old_s(self, call: _Call) -> float:
        """How old what the cache has may be. Once nothing is wrong, the first who reads from the store mends it, and
        whoever writes keeps it right."""
        client_id, calm_s = call.whose.client_id, max(self.shaky_until_s, self.forgetful_until_s)
        times_s = [self._read_s[client_id], *(at_s for at_s, _ in self._history[client_id])]
        mended = any(calm_s < at_s < call.came_s - PUT_S for at_s in times_s)
        return min(self._peek_age_s, PUT_S) if mended else self._peek_age_s

    def _announced(self, call: _Call, answer: dict[str, Any]) -> None:
        ref = VideoRef(VideoId(answer["video_id"]), call.whose.client_id, ClientId(call.body["recipient_id"]))
        if ref.video_id <= call.newest_id:
            self.broken("id out of order", f"{ref.video_id} does not sort behind {call.newest_id}")
        if ref.video_id in self.clips:
            self.broken("id minted twice", ref.video_id)
        clip = self.clips[ref.video_id] = Clip(ref, call.began, self.events)
        self._of[ref.sender_id].append(clip)
        self._of[ref.recipient_id].append(clip)
        self._pairs[ref.sender_id, ref.recipient_id].append(clip)

    def _judge(self, client_id: ClientId, said: Sequence[_Said], results: Sequence[dict[str, Any]]) -> None:
        """Statuses were answered."""
        if len(said) != len(results):
            self.broken("wrong number of results", f"{client_id}: {len(results)} for {len(said)}")
        for item, result in zip(said, results, strict=False):
            if item.clip is not None:
                self._judge_one(client_id, item, item.clip, result)
                self._answered(item.clip)
            self._version_left(client_id, result.get("version", 0))

    def _judge_one(self, client_id: ClientId, item: _Said, clip: Clip, result: dict[str, Any]) -> None:
        name, what, reason = short(clip.id), result["result"], result.get("reason")
        if item.status == "uploaded":
            if what in {"applied", "duplicate"}:
                if clip.confirmed is None:
                    clip.confirmed = result["version"]
            elif what == "ignored" and clip.confirmed is not None and not self.may_be_gone(clip):
                self.broken("confirmed is ignored", f"{name}: answered {reason}, and is tracked")
        elif what == "failed":
            self.broken("status refused", f"{name} {item.status}: {result}")
        elif what != "ignored":
            clip.answered = max(clip.answered, RANK[item.status])
            if item.status == "viewed" and clip.viewed is None:
                clip.viewed = result["version"]
        elif reason == "unknown_video" and item.known and not self.may_be_gone(clip):
            self.broken("known is unknown", f"{name} is unknown to {client_id}")
        elif reason == "expired" and not self.may_be_expired(clip):
            self.broken("said to have expired", f"{name} is said to have expired")

    def _deleted(self, call: _Call, result: dict[str, Any]) -> None:
        for item in call.said:
            clip = item.clip
            if clip is None:
                continue
            if result["result"] == "ignored":
                self.broken("deletion ignored", f"the deletion of {short(clip.id)} was answered {result}")
            if clip.deleted is None:
                clip.deleted = result["version"]
            self._answered(clip)
        self._version_left(call.whose.client_id, result["version"])

    def call_ended(self, call: int) -> None:
        self.events += 1
        ended = self._calls.pop(call, None)
        if ended is None:
            return
        ended.ended = self.events
        if ended.is_held and ended.device_id is not None:
            self.woken.parted((ended.whose.client_id, ended.device_id), 0, alone=False)

    def _identity(self, token: str) -> Whose:
        """Whose token that is, or claims to be."""
        whose = self._whose.get(token)
        if whose is None:
            claims = orjson.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")) if "." in token else {}
            whose = self._whose[token] = Whose(ClientId(claims.get("sub", "?")), claims.get("device"))
        return whose

    # --- Sockets

    def socket_asked(self, socket: int, machine: str, token: str, query: dict[str, str]) -> None:
        self.events += 1
        whose = self._identity(token)
        device_id = DeviceId(query.get("device_id") or whose.device_id or "?")
        version = int(query.get("version") or 0)
        self._sockets[socket] = _Socket(whose, device_id, self.now_s, version or -1)
        self._claim(whose.client_id, device_id, version)
        self.say(machine, lambda: f"socket {socket} {whose.client_id} {device_id}: asked for, {query}")

    def frame_came(self, socket: int, text: bytes) -> None:
        self.events += 1
        found = self._sockets[socket]
        self.say(found.whose.client_id, lambda: f"socket {socket} up: {_text(text)}")
        message = orjson.loads(text)
        client_id = found.whose.client_id
        version = 0
        if message["type"] in {"ack", "status"}:
            version = self._claim(client_id, found.device_id, message.get("version"))
        if message["type"] == "status":
            said = self._say_status(client_id, message["video_id"], message["status"])
            found.asked[message["id"]] = ([said], version, self.now_s)

    def frame_left(self, socket: int, text: bytes) -> None:
        self.events += 1
        found = self._sockets[socket]
        self.say(found.whose.client_id, lambda: f"socket {socket} down: {_text(text)}")
        if text.startswith(b'{"type":"info"'):
            seen = self._packet_left(found.whose.client_id, text)
            found.version = max(found.version, seen.version if seen is not None else -1)
            return
        message = orjson.loads(text)
        said, version, came_s = found.asked.pop(message["id"], ([], 0, 0.0))
        if message["type"] == "result" and said:
            self.woken.acknowledged((found.whose.client_id, found.device_id), version, came_s)
            self._judge(found.whose.client_id, said, [message])

    def socket_opened(self, socket: int) -> None:
        if (found := self._sockets.get(socket)) is not None:
            found.opened_s = self.now_s

    def socket_closed(self, socket: int, code: int) -> None:
        self.events += 1
        if (found := self._sockets.get(socket)) is not None:
            found.closed = code

    def socket_stalled(self, socket: int, *, stalled: bool) -> None:
        if (found := self._sockets.get(socket)) is not None:
            found.stalled = stalled

    def socket_ended(self, socket: int) -> None:
        self.events += 1
        found = self._sockets.pop(socket, None)
        if found is None:
            return
        self.say("network", f"socket {socket} has ended")
        key = (found.whose.client_id, found.device_id)
        others = any((other.whose.client_id, other.device_id) == key for other in self._sockets.values())
        alone = found.opened and found.closed not in STAYING and not others
        self.woken.parted(key, found.version, alone=alone)

    def is_connected(self, client_id: ClientId) -> bool:
        """Whether some device of the client's has a socket, asks for one, or holds a poll, as far as the gateway can
        know."""
        return any(socket.whose.client_id == client_id for socket in self._sockets.values()) or any(
            call.is_held and call.whose.client_id == client_id for call in self._calls.values()
        )

    def connected_before(self, device: Key, seconds: float) -> bool:
        """Whether this device has had a socket for so long, and has it still."""
        return any(
            (socket.whose.client_id, socket.device_id) == device
            and socket.closed is None
            and socket.opened_s is not None
            and socket.opened_s + seconds < self.now_s
            for socket in self._sockets.values()
        )

    # --- Packets

    def published(self, machine: str, publication: Publication) -> None:
        self.events += 1
        self._same_packet(publication.client_id, publication.packet)

    def push_left(self, push: int, machine: str, wakeup: Wakeup) -> None:
        self.events += 1
        self.pushes += 1
        client_id, content = ClientId(wakeup.collapse_id), wakeup.content
        kind = "alert" if content.alert else "background"
        text = f"push {push} to {wakeup.token}: {client_id} version {content.version % 1_000_000_000}, {kind}"
        self.say(machine, text)
        self.woken.left(push, machine, wakeup)
        if content.packet is not None:
            self._packet_left(client_id, content.packet)
        token_key = hash_token(wakeup.token)
        owner = self.tokens.get(token_key)
        # Whose it is was asked before the push, which may have taken its time.
        late = self._owned_s.get(token_key, 0.0) + PUSHED_S < self.now_s
        if late and owner is not None and owner.client_id != client_id:
            self.broken("push to another", f"{client_id} is pushed to with a token that is {owner.client_id}'s")

    def pushed(self, push: int, outcome: Outcome) -> None:
        self.events += 1
        self.say("provider", lambda: f"push {push}: {outcome}")
        wakeup = self.woken.pushed(push, outcome)
        if wakeup is not None and isinstance(outcome, Accepted):
            client_id = ClientId(wakeup.collapse_id)
            self._pushed_to[client_id] = max(self._pushed_to[client_id], wakeup.content.version)
            if wakeup.content.alert is None:
                self._check_background(wakeup.token, client_id)

    def push_heard(self, push: int, outcome: Outcome | None) -> None:
        self.events += 1
        wakeup, outcome = self.woken.heard(push, outcome)
        self.say("provider", lambda: f"push {push} heard: {outcome}")
        if wakeup is not None and isinstance(outcome, TokenDead) and not outcome.doubtful:
            self._told_dead.add(wakeup.token)

    def _check_background(self, token: str, client_id: ClientId) -> None:
        """Silent pushes are rare, whatever changes in between: Apple's rule, in the time that stories have for it."""
        now_s = self.now_s
        before_s = self._silent_s.get((token, client_id))
        self._silent_s[token, client_id] = now_s
        newest_s = max((registration.call.came_s for registration in self._by_token.get(token, ())), default=0.0)
        if before_s is not None and now_s < before_s + SILENT_S and newest_s < before_s and not self._skewed:
            self.broken("silent pushes at once", f"{client_id}, {token}: after {now_s - before_s:.1f} s")

    def _same_packet(self, client_id: ClientId, body: bytes) -> _Seen | None:
        """There is one packet of one version of one client, and it names no video of others."""
        seen = self._seen.get(body)
        if seen is None:
            said = orjson.loads(body)
            version = said["version"]
            if self._packets.setdefault((client_id, version), body) != body:
                self.broken("two packets", f"{client_id}: version {version} has two packets")
            seen = self._seen[body] = _Seen(
                said["client_id"],
                version,
                frozenset(entry["video_id"] for entry in said["outgoing"]),
                frozenset(entry["video_id"] for entry in said["incoming"]),
            )
            self._check_named(client_id, said)
        if seen.client_id != client_id:
            self.broken("packet of another", f"{client_id} gets a packet of {seen.client_id}")
            return None
        return seen

    def _check_named(self, client_id: ClientId, said: dict[str, Any]) -> None:
        for entry in said["outgoing"]:
            clip = self.clips.get(entry["video_id"])
            if clip is None or clip.ref[1:] != (client_id, entry["recipient_id"]):
                self.broken("video of others", f"a packet of {client_id} lists {short(entry['video_id'])} as sent")
        for entry in said["incoming"]:
            clip = self.clips.get(entry["video_id"])
            if clip is None or clip.ref[1:] != (entry["sender_id"], client_id):
                self.broken("video of others", f"a packet of {client_id} lists {short(entry['video_id'])} as received")
            if entry["status"] not in {"uploaded", "downloaded"}:
                self.broken("incoming status", f"a packet of {client_id} lists a video as {entry['status']}")

    def _packet_left(self, client_id: ClientId, body: bytes) -> _Seen | None:
        """A packet leaves for somebody: it has all that was answered before its version."""
        seen = self._same_packet(client_id, body)
        if seen is None:
            return None
        self._version_left(client_id, seen.version)
        for clip in self._of[client_id]:
            name, version = short(clip.id), seen.version
            if clip.ref.sender_id == client_id:
                if clip.deleted is not None and version >= clip.deleted and clip.id in seen.outgoing:
                    self.broken("packet lists deleted", f"a packet from after the deletion of {name} lists it")
                sure = clip.confirmed is not None and version >= clip.confirmed
                if sure and clip.id not in seen.outgoing and not self.may_be_gone(clip):
                    self.broken("packet lacks upload", f"a packet from after the upload of {name} lacks it")
            elif clip.viewed is not None and version >= clip.viewed and clip.id in seen.incoming:
                self.broken("packet lists viewed", f"a packet from after {name} was viewed lists it")
        return seen

    def _version_left(self, client_id: ClientId, version: int) -> None:
        self._shown[client_id] = max(self._shown[client_id], version)

    # --- Registrations

    def _register(self, call: _Call, device: Key, token: str | None) -> None:
        registration = _Registration(device, token, call)
        self._registrations[device].append(registration)
        if token is not None:
            self._by_token[token].append(registration)
            self._token_of[hash_token(token)] = token

    def registered(self, device: Key) -> str | None:
        """The token that an answered call gave this device, where nothing can have taken it away since."""
        mine = self._registrations.get(device, [])
        kept = [registration for registration in mine if registration.token and registration.call.answered]
        if not kept:
            return None
        last = max(kept, key=lambda registration: registration.call.began)
        token, since = last.token or "", last.call.began
        if token in self._told_dead or self._left_since(device[0], since):
            return None
        if any(r.token != token and r.call.ended >= since for r in mine):
            return None
        if any(r.device != device and r.call.ended >= since for r in self._by_token[token]):
            return None
        # A device too many takes the place of another, by what the gateway knows of when each was heard of.
        others = sum(bool(found) for key, found in self._registrations.items() if key[0] == device[0])
        return token if others <= self.policy.max_devices else None

    def logged_out_late(self, device: Key) -> bool:
        """Whether a log-out that came before a registration was still under way when that began. It may take effect
        last: nothing in the protocol says which of them its app said later."""
        mine = self._registrations.get(device, [])
        return any(
            out.token is None and out.call.began < again.call.began <= out.call.ended
            for out in mine
            for again in mine
            if again.token is not None
        )

    def devices_of(self, client_id: ClientId) -> int:
        """How many devices an account has ever registered."""
        return sum(key[0] == client_id for key in self._registrations)

    def _check_registrations(self, client_id: ClientId) -> None:
        for device in [key for key in self._registrations if key[0] == client_id]:
            self._check_registration(device)

    def _check_registration(self, device: Key) -> None:
        token = self.registered(device)
        if token is None:
            return
        row = self.state(device[0]).devices.get(device[1])
        if row is None or row.token_key != hash_token(token):
            self.broken("registration lost", f"{device[1]} is registered with {token}, and is not listed")
        owner = self.tokens.get(hash_token(token))
        if owner is None or owner[:2] != device:
            self.broken("token lost", f"{device[1]} is registered with {token}, and the token is not its own")

    # --- The end

    def check_agreement(self, *, lag_s: float = 60.0) -> None:
        """Documents and bytes agree. `lag_s`: how late what time asks for may come, clocks that differ included."""
        lag_ms = round(lag_s * 1000)
        must: set[str] = set()
        may: set[str] = set()
        for client_id in sorted(self.states):
            state = self.states[client_id]
            for peer in sorted({*state.outgoing, *state.incoming}):
                self._check_pair(client_id, peer)
                self._check_pair(peer, client_id)
            for to, video_id, video in state.sent():
                key = VideoRef(video_id, client_id, to).object_key
                if expiry.bytes_wanted(video, now=self.now_ms + lag_ms, policy=self.policy):
                    must.add(key)
                if expiry.bytes_wanted(video, now=self.now_ms - lag_ms, policy=self.policy):
                    may.add(key)
            self._check_truth(client_id)
            if state.due is not None and state.due <= self.now_ms - lag_ms:
                self.broken("due still", f"{client_id} is due still: {show(state)}")
            if state.check_at and not list(state.sent()):
                self.broken("checked for nothing", f"{client_id} is to be checked for nothing")
        left = [key for key in self.stored if key not in may and not self._waits_for_room(key)]
        lost = sorted(must - self.stored.keys())
        if left:
            self.broken("bytes left", f"stored, and not wanted: {[short_key(key) for key in left]}")
        if lost:
            self.broken("tracked without bytes", f"wanted, and not stored: {[short_key(key) for key in lost]}")

    def _check_pair(self, sender_id: ClientId, recipient_id: ClientId) -> None:
        mine = self.state(sender_id).outgoing.get(recipient_id)
        theirs = self.state(recipient_id).incoming.get(sender_id)
        sent = {short(video_id): str(video.status) for video_id, video in (mine.videos if mine else {}).items()}
        copy = {short(video_id): str(video.status) for video_id, video in (theirs.videos if theirs else {}).items()}
        if sent != copy:
            self.broken("no agreement", f"{sender_id} has {sent} for {recipient_id}, who has {copy}")

    def _waits_for_room(self, key: str) -> bool:
        """Whether these are the bytes of an upload that was never confirmed, and has no room yet."""
        ref = VideoRef.parse(key)
        if ref is None:
            return False
        sender, recipient = self.state(ref.sender_id), self.state(ref.recipient_id)
        untracked = sending.awaits_upload(
            sender, ref.recipient_id, ref.video_id, now=self.now_ms - self._ahead_ms, policy=self.policy
        )
        return untracked and sending.room(sender, recipient, self.policy).full

    def check_woken(self) -> None:
        """After the last reminder: whoever is behind was told of the news."""
        self.woken.check_end()

    def was_told_dead(self, token: str) -> bool:
        """Whether a provider has said so, and was to be believed."""
        return token in self._told_dead

    def check_delivered(self, *, within_s: float = 5.0) -> None:
        """Every socket that is older than that was sent the newest packet. Nothing may have changed for so long either;
        where the bus lost something without a word, not for as long as the hub takes to compare versions."""
        for socket in self._sockets.values():
            client_id = socket.whose.client_id
            left_s = max(self._left_s.get((client_id, device), -1.0) for device in (socket.device_id, None))
            if socket.opened and socket.closed is None and socket.asked_s < left_s < self.now_s - within_s:
                self.broken("open after log-out", f"{client_id}, {socket.device_id} has logged out, and has a socket")
        newest_of = {(socket.whose.client_id, socket.device_id): socket for socket in self._sockets.values()}
        for socket in newest_of.values():  # the ones before are displaced, whoever knows that already
            newest = self.state(socket.whose.client_id).version
            if (
                socket.opened
                and socket.closed is None
                and not socket.stalled
                and socket.version < newest
                and socket.asked_s + within_s < self.now_s
            ):
                text = f"{socket.device_id} has an open socket and version {socket.version}; the newest is {newest}"
                self.broken("not delivered", text)

    def check_tokens(self) -> None:
        """Every token that is kept is a device's."""
        for key in sorted(self.tokens):
            owner = self.tokens[key]
            row = self.state(owner.client_id).devices.get(owner.device_id)
            if row is None or row.token_key != key:
                self.broken("token left", f"a token of {owner} is left, which no device has")
        for device in self._registrations:
            self._check_registration(device)

    def check_empty(self) -> None:
        """After everything has expired: nothing is left."""
        for client_id in sorted(self.states):
            state = self.states[client_id]
            if list(state.sent()) or list(state.received()) or state.due is not None:
                self.broken("something left", f"something is left: {show(state)}")
        if self.stored:
            self.broken("bytes left", f"bytes are left: {[short_key(key) for key in self.stored]}")


def content(state: ClientState) -> bytes:
    """What a packet shows, its version apart."""
    return packet.encode(state._replace(version=0))


def short(video_id: str) -> str:
    """An id as stories show it."""
    return video_id[-6:]


def short_key(key: str) -> str:
    """An object's key likewise."""
    ref = VideoRef.parse(key)
    return key if ref is None else f"{short(ref.video_id)} {ref.sender_id}>{ref.recipient_id}"


def show(state: ClientState) -> str:
    """A client's state in a line; long numbers are cut."""
    out = {f"{short(video_id)}>{to}": str(video.status) for to, video_id, video in state.sent()}
    received = {f"{short(i)}<{who}": f"{v.status}@{v.came % 1_000_000_000}" for who, i, v in state.received()}
    pairs = {to: pair.version % 1_000_000_000 for to, pair in state.outgoing.items()}
    rows = {
        device_id: (row.token_key[:4], row.acked % 1_000_000_000, row.attempts, row.next_at % 1_000_000_000)
        for device_id, row in state.devices.items()
    }
    ended = [short(video_id) for video_id in state.ended]
    version = state.version % 1_000_000_000
    return f"{state.client_id} v{version} out{out} in{received} pairs{pairs} ended{ended} devices{rows}"


def _text(body: bytes) -> str:
    """A body in the story: signed URLs differ from run to run, so they are cut."""
    text = body.decode(errors="replace")
    return text.partition("?method=")[0][:400]

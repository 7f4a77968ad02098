"""A world for the use cases: clients with two devices each, two processes of the gateway, backends that fail.

`World` drives the real code through whatever schedule it is given, and knows what really happened: which calls were
begun, which were answered, and with what. After every step it holds the documents, the packets and the devices'
screens to the protocol; at the end, once faults have stopped and everyone has retried, to agreement.
"""

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gateway import packet
from gateway.bus.bus import Publication
from gateway.changes import CLIENT_PREFIX, Changes
from gateway.errors import GatewayError, NotStored, TooManyInTransit
from gateway.metrics import Metrics
from gateway.registry import TOKEN_PREFIX, Registry, decode_owner, hash_token, tokens
from gateway.removals import Removals
from gateway.service import Answer, Said, Service, UploadLimits
from gateway.sweep import Sweep
from gateway.transit import devices, expiry, sending
from gateway.transit.decisions import Reason, Result, Verdict, VideoRef
from gateway.transit.policy import HOUR_MS, MINUTE_MS, Policy
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, ClientState, DeviceId, Status, Video, VideoId, decode, encode
from gateway.wakeups import PushOptions, Wakeups
from push.sender import Accepted, Outcome, Platform, TokenDead, Wakeup
from storage.documents import Document, StoreUnavailable
from storage.memory import MemoryDocuments, MemoryObjects
from storage.objects import AlreadyStored, ObjectsUnavailable, SignatureRefused
from tests.service.simulated import (
    Pending,
    SimulatedBus,
    SimulatedDocuments,
    SimulatedLoop,
    SimulatedObjects,
    SimulatedSender,
    Traffic,
    at_once,
    current_call,
)

START_S = 1_750_000_000
METRICS = Metrics()
RANK = {"uploaded": 0, "notified": 1, "downloaded": 2, "viewed": 3, "expired": 3}
REPORTED = (Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED)
NEVER = 1 << 62
LATEST_WRITE_S = 30
"""How long a write may be on its way after its caller has given up."""

Step = tuple[int, int, int]
"""What happens next, and two numbers to choose by."""


class Violation(AssertionError):
    """Something was seen that the protocol rules out."""


@dataclass(frozen=True)
class Setting:
    """What differs between worlds. `skew_ms`: how far the second process's clock is ahead. `retried`: whether apps live
    to repeat what was not answered."""

    policy: Policy
    skew_ms: int = 0
    retried: bool = True
    with_packet: bool = True
    devices: bool = False


@dataclass(eq=False)
class Call:
    """One call of an app, or a round of the gateway's own; times are steps."""

    name: str
    client: ClientId
    make: Callable[["Process"], Awaitable[Any]]
    done: Callable[[Any], None]
    began: int = 0
    ended: int = NEVER
    task: "asyncio.Task[Any] | None" = None
    process: "Process | None" = None
    answered: bool = False


@dataclass(eq=False)
class Clip:
    """What became of one announced video, as far as anyone knows. Times are steps."""

    ref: VideoRef
    url: str
    born: int
    put: bool = False
    confirming: bool = False
    confirmed: int | None = None
    over: bool = False
    delete_began: bool = False
    deleted: int | None = None
    reported: set[Status] = field(default_factory=set)
    viewed: int | None = None
    tracked: bool = False
    untracked: bool = False
    uploaded_at: int = 0
    ended_by_gateway: bool = False

    @property
    def id(self) -> VideoId:
        return self.ref.video_id


@dataclass(eq=False)
class Screen:
    """What one device shows: it applies packets as the protocol tells apps to."""

    client: ClientId
    id: DeviceId
    version: int = 0
    sent: dict[str, str] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    received: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    claimed: int = 0
    connected: bool = False
    wanted: str | None = None
    pending: "Call | None" = None


@dataclass
class Registration:
    """A call that gives a token to a device, or takes one away (`token` None)."""

    screen: Screen
    token: str | None
    call: Call


class Process:
    """One process of the gateway."""

    def __init__(self, world: "World", skew_ms: int) -> None:
        self.changes = Changes(
            documents=world.documents,
            bus=SimulatedBus(world.published, self.kicked),
            removals=(removals := Removals(world.objects, METRICS)),
            policy=world.setting.policy,
            metrics=METRICS,
            clock=lambda: (world.now_ms + skew_ms) / 1000,
        )
        self.removals = removals
        self.service = Service(self.changes, world.objects, UploadLimits())
        self.registry = Registry(self.changes)
        self.wakeups = Wakeups(
            changes=self.changes,
            service=self.service,
            registry=self.registry,
            senders={Platform.APNS: SimulatedSender(world.traffic, world.push)},
            options=PushOptions(with_packet=world.setting.with_packet),
            metrics=METRICS,
        )
        self.sweep = Sweep(
            changes=self.changes,
            service=self.service,
            registry=self.registry,
            objects=world.objects,
            metrics=METRICS,
        )
        self.calls: list[Call] = []

    def kicked(self, client_id: ClientId) -> None:
        self.wakeups.kick(client_id)


class _Errors(logging.Handler):
    """Errors that the code logs: in a simulation each of them is a fault of its own."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() != "a sender failed":
            error = record.exc_info[1] if record.exc_info else None
            self._seen(f"{record.getMessage()}: {error!r}")


class World:
    """Clients, devices, processes and backends, moved one step at a time."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.policy = setting.policy
        self.loop = SimulatedLoop()
        self.log: list[str] = []
        self.broken: str | None = None
        self.clock = 0
        self.traffic = Traffic()
        self._real = MemoryDocuments(clock=lambda: self.now_ms / 1000)
        self._bytes = MemoryObjects(clock=lambda: self.now_ms / 1000)
        self.documents = SimulatedDocuments(self.traffic, self._real, self._wrote)
        self.objects = SimulatedObjects(self.traffic, self._bytes, self._object_deleted)
        self.clients = [ClientId(name) for name in ("alice", "bob", "carol")]
        self.screens = [Screen(client, DeviceId(f"{client[0]}{n}")) for client in self.clients for n in (1, 2)]
        self.clips: dict[str, Clip] = {}
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.leaves: list[Call] = []
        self.leaving: dict[ClientId, Call] = {}
        self.registrations: list[Registration] = []
        self.air: list[tuple[ClientId, DeviceId | None, bytes]] = []
        self.packets: dict[tuple[ClientId, int], bytes] = {}
        self.highest: dict[str, int] = {}
        self.pushed: dict[tuple[str, ClientId], int] = {}
        self.dead: dict[str, int] = {}
        self.told_dead: dict[str, int] = {}
        self.fresh_tokens = 0
        self._errors = _Errors(self._fail_later)
        self.processes = [Process(self, 0), Process(self, setting.skew_ms)]

    # --- Running

    @property
    def now_ms(self) -> int:
        return START_S * 1000 + round(self.loop.time() * 1000)

    @property
    def latest_ms(self) -> int:
        return self.now_ms + max(0, self.setting.skew_ms)

    def __enter__(self) -> "World":
        random.seed(0)
        logger = logging.getLogger("gateway")
        self._before = (logger.level, logger.propagate)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(self._errors)
        return self

    def __exit__(self, *failure: object) -> None:
        logger = logging.getLogger("gateway")
        logger.removeHandler(self._errors)
        logger.setLevel(self._before[0])
        logger.propagate = self._before[1]
        for call in list(self.running):
            if call.task is not None:
                call.task.cancel()
        self.loop.settle()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def say(self, text: str) -> None:
        self.log.append(f"{self.clock:4} {self.now_ms - START_S * 1000:>9} {text}")

    def fail(self, what: str) -> None:
        self._fail_later(what)
        raise Violation(self.story())

    def _fail_later(self, what: str) -> None:
        self.say(f"VIOLATION: {what}")
        self.broken = self.broken or what

    def story(self) -> str:
        return f"{self.broken}\n" + "\n".join(self.log)

    def check(self) -> None:
        if self.broken is not None:
            raise Violation(self.story())

    def step(self, step: Step) -> None:
        """Let one thing happen."""
        kind, a, b = step
        self.clock += 1
        table = ACTIONS[self.setting.devices]
        table[kind % len(table)](self, a, b)
        self.loop.pass_time(0.001)
        self.check()

    def start(self, call: Call, process: Process) -> None:
        """Have a process begin with a call."""
        call.began = self.clock
        call.process = process
        if not self.traffic.calm:
            self.say(f"{call.client} {call.name} begins (process {self.processes.index(process)})")
        self.running.append(call)
        process.calls.append(call)

        async def work() -> None:
            current_call.set(call)
            outcome: Any = None
            try:
                outcome = await call.make(process)
            except asyncio.CancelledError:
                self._ended(call, "was cut off")
                raise
            except (NotStored, TooManyInTransit) as error:
                outcome = error
            except (GatewayError, StoreUnavailable, ObjectsUnavailable) as error:
                self._ended(call, f"failed: {error}")
                return
            except Violation:
                self._ended(call, "saw a violation")
                return
            except Exception as error:
                self._ended(call, f"failed: {error!r}")
                self._fail_later(f"{call.name} raised {error!r}")
                return
            self._ended(call, "done")
            if not self.traffic.calm and (self.clock * 7 + len(self.log)) % 5 == 0:
                self.say(f"{call.client} {call.name}: the answer is lost")
                return
            try:
                call.done(outcome)
            except Violation:
                return  # noted: `check` raises it

        call.task = self.loop.create_task(work())
        self.loop.settle()

    def _ended(self, call: Call, how: str) -> None:
        call.ended = self.clock
        self.running.remove(call)
        if call.process is not None:
            call.process.calls.remove(call)
        if not self.traffic.calm or how != "done":
            self.say(f"{call.client} {call.name} {how}")

    def again(self, call: Call) -> Call:
        """The same call once more."""
        return Call(call.name, call.client, call.make, call.done)

    def submit(self, call: Call, b: int) -> Call:
        self.calls.append(call)
        self.start(call, self.processes[b % 2])
        return call

    # --- What the documents say

    def state(self, client: ClientId) -> ClientState:
        [document] = at_once(self._real.load([CLIENT_PREFIX + client]))
        return decode(client, document.body)

    def _wrote(self, before: Document, after: Document) -> None:
        if after.body and not after.version > max(before.version, self.highest.get(after.key, 0)):
            self.fail(f"the version of {after.key} did not grow")
        self.highest[after.key] = max(self.highest.get(after.key, 0), after.version)
        if after.key.startswith(CLIENT_PREFIX):
            client = ClientId(after.key.removeprefix(CLIENT_PREFIX))
            old, new = decode(client, before.body), decode(client, after.body)
            self.say(f"wrote {show(new)}")
            if after.due != new.due:
                self.fail(f"{client}: due at {after.due}, its state says {new.due}")
            if decode(client, encode(new)) != new:
                self.fail(f"{client}: not stored as it is")
            self._check_packet(client, old, new)
            self._check_moves(old, new)
            self._check_bounds(new)
            self._check_devices(new)
            self._check_truth(client)
        else:
            self.say(f"wrote {after.key[:10]} {decode_owner(after.body)!r}")
            self._check_registrations()

    def _check_packet(self, client: ClientId, old: ClientState, new: ClientState) -> None:
        same = content(old) == content(new)
        if new == ClientState(client):
            if not same:
                self.fail(f"{client}: removed with something to show")
            return
        if not same and new.version <= max(old.version, self.highest.get(f"packet {client}", 0)):
            self.fail(f"{client}: the packet changed, its version did not grow")
        # A video that comes when its time is over already is never shown.
        known = {video_id for _, video_id, _ in new.received()} <= {video_id for _, video_id, _ in old.received()}
        if same and known and not old.blank and new.version != old.version:
            self.fail(f"{client}: the packet's version moved for nothing")
        self.highest[f"packet {client}"] = max(self.highest.get(f"packet {client}", 0), new.version)
        self._same_packet(client, packet.encode(new))

    def _same_packet(self, client: ClientId, body: bytes) -> None:
        version = json.loads(body)["version"]
        if self.packets.setdefault((client, version), body) != body:
            self.fail(f"{client}: version {version} has two packets")

    def _check_moves(self, old: ClientState, new: ClientState) -> None:
        client = new.client_id
        sent = {video_id: (to, video) for to, video_id, video in new.sent()}
        received = {video_id: (who, video) for who, video_id, video in new.received()}
        for video_id, (to, _) in sent.items():
            if self.clips[video_id].ref[1:] != (client, to):
                self.fail(f"{client} lists {short(video_id)} as its own to {to}")
        for video_id, (who, _) in received.items():
            if self.clips[video_id].ref[1:] != (who, client):
                self.fail(f"{client} lists {short(video_id)} as from {who}")
        before = {video_id: video for _, video_id, video in old.sent()}
        for video_id in before.keys() - sent.keys():
            self.clips[video_id].untracked = True
        for video_id, (_, video) in sent.items():
            clip = self.clips[video_id]
            if clip.untracked:
                self.fail(f"{client}: {short(video_id)} was ended and came back")
            if not clip.tracked:
                clip.tracked, clip.uploaded_at = True, video.uploaded_at
            self._check_move(client, video_id, before.get(video_id), video)
        mine = {video_id: video for _, video_id, video in old.received()}
        for video_id, (_, video) in received.items():
            self._check_move(client, video_id, mine.get(video_id), video)

    def _check_move(self, client: ClientId, video_id: VideoId, old: Video | None, new: Video) -> None:
        if old is not None and old.status != new.status and not RANK[new.status] > RANK[old.status]:
            self.fail(f"{client}: {short(video_id)} moved from {old.status} to {new.status}")
        if old is not None and new.at < old.at:
            self.fail(f"{client}: the time of {short(video_id)} ran back")

    def _check_bounds(self, state: ClientState) -> None:
        racing = len(self.calls)
        policy = self.policy
        live_out = sum(not video.ended for _, _, video in state.sent())
        live_in = sum(not video.ended for _, _, video in state.received())
        if live_out > policy.max_outgoing or len(list(state.sent())) > policy.max_outgoing:
            self.fail(f"{state.client_id} sends {live_out} videos")
        # Two senders may fill a recipient's last place at once; each pair is bounded all the same.
        if live_in > policy.max_incoming + min(racing, 2 * policy.videos_per_pair):
            self.fail(f"{state.client_id} receives {live_in} videos")
        for pair in (*state.outgoing.values(), *state.incoming.values()):
            if len(pair.videos) > policy.videos_per_pair:
                self.fail(f"{state.client_id}: {len(pair.videos)} videos of one pair")
        if len(state.ended) > policy.max_ended or len(state.devices) > policy.max_devices:
            self.fail(f"{state.client_id}: too much is remembered")
        if list(state.ended) != sorted(set(state.ended)):
            self.fail(f"{state.client_id}: ended ids are not in order")

    def _check_devices(self, state: ClientState) -> None:
        newest = devices.news(state, self.policy)
        for device_id, row in state.devices.items():
            screen = self.screen(state.client_id, device_id)
            if row.next_at and row.acked >= newest:
                self.fail(f"{device_id} is up to date and scheduled")
            if not row.next_at and row.acked < newest and not row.attempts:
                self.fail(f"{device_id} is behind and not scheduled")
            if row.attempts > 1 + len(self.policy.remind_after_ms):
                self.fail(f"{device_id} was pushed to {row.attempts} times")
            if row.acked > screen.claimed:
                self.fail(f"{device_id} never said that it applied {row.acked}")
        claimed = max(screen.claimed for screen in self.screens if screen.client == state.client_id)
        told = max((version for (_, who), version in self.pushed.items() if who == state.client_id), default=0)
        for _, video_id, video in state.received():
            unheard = not self.clips[video_id].reported and max(claimed, told) < video.came
            if video.status is Status.NOTIFIED and unheard:
                self.fail(f"{short(video_id)} is notified, and nobody was")

    # --- What really happened

    def may_be_gone(self, clip: Clip) -> bool:
        """Whether the sender's document may lack the video."""
        newer = [
            other
            for other in self.clips.values()
            if other.ref[1:] == clip.ref[1:] and other.tracked and other.id > clip.id
        ]
        return (
            clip.delete_began
            or len(newer) >= self.policy.videos_per_pair
            or self.left_since(clip.ref.sender_id, clip.born)
            or self.may_be_over(clip)
        )

    def may_be_over(self, clip: Clip) -> bool:
        return Status.VIEWED in clip.reported or self.may_be_expired(clip)

    def may_be_expired(self, clip: Clip) -> bool:
        late = clip.tracked and clip.uploaded_at + self.policy.video_ttl_ms <= self.latest_ms
        return late or self.left_since(clip.ref.recipient_id, clip.born)

    def left_since(self, client: ClientId, step: int) -> bool:
        return any(call.client == client and call.ended >= step for call in self.leaves)

    def _check_truth(self, client: ClientId) -> None:
        for clip in self.clips.values():
            if client in clip.ref[1:]:
                self._check_clip(clip, client)

    def _check_clip(self, clip: Clip, client: ClientId) -> None:
        name = short(clip.id)
        state = self.state(client)
        if client == clip.ref.sender_id:
            found = state.find_sent(clip.id)
            video = found[1] if found else None
            if video is None:
                if clip.confirmed is not None and not self.may_be_gone(clip):
                    self.fail(f"{name}: its upload was answered, and {client} lost it")
                return
            if video.status is Status.VIEWED and Status.VIEWED not in clip.reported:
                self.fail(f"{name} was not viewed, but {client} is told so")
            if video.status is Status.EXPIRED and not self.may_be_expired(clip):
                self.fail(f"{name} has not expired, but {client} is told so")
            if clip.viewed is not None and video.status is not Status.VIEWED:
                self.fail(f"{name}: that it was viewed was answered, and {client} has {video.status}")
            if not video.ended and not self.has_bytes(clip.ref):
                self.fail(f"{name} is tracked, and its bytes are gone")
            if clip.deleted is not None:
                self.fail(f"{name}: its deletion was answered, and {client} lists it")
            # Whether an id is from before that, only one clock can tell.
            if not self.setting.skew_ms and any(
                leave.ended < NEVER and leave.began > clip.born for leave in self._answered_leaves(client)
            ):
                self.fail(f"{name}: {client} left after announcing it, and it is tracked")
        else:
            here = state.find_received(clip.id)
            live = here is not None and not here[1].ended
            if live and clip.deleted is not None:
                self.fail(f"{name}: its deletion was answered, and {client} lists it")
            if live and clip.viewed is not None:
                self.fail(f"{name}: that it was viewed was answered, and {client} lists it")
            if not live and clip.confirmed is not None and not self.may_be_gone(clip):
                self.fail(f"{name}: its upload was answered, and {client} lacks it")

    def _answered_leaves(self, client: ClientId) -> list[Call]:
        return [call for call in self.leaves if call.client == client and call.answered]

    def has_bytes(self, ref: VideoRef) -> bool:
        return at_once(self._bytes.head(ref.object_key)) is not None

    def _object_deleted(self, key: str) -> None:
        self.say(f"bytes of {key.split('/')[1][-6:]} deleted")
        ref = VideoRef.parse(key)
        if ref is not None:
            found = self.state(ref.sender_id).find_sent(ref.video_id)
            if found is not None and not found[1].ended:
                self.fail(f"{short(ref.video_id)} is tracked, and its bytes were deleted")

    # --- Registrations

    def registered(self, screen: Screen) -> str | None:
        """The token that an answered call gave this device, where nothing can have taken it away since."""
        mine = [r for r in self.registrations if r.screen is screen]
        kept = [r for r in mine if r.token and r.call.answered]
        if not kept:
            return None
        last = max(kept, key=lambda r: r.call.began)
        token = last.token or ""
        others = [r for r in self.registrations if r.call is not last.call and r.call.ended >= last.call.began]
        if any(
            (r.screen is screen and r.token != token) or (r.token == token and r.screen is not screen) for r in others
        ):
            return None
        if self.told_dead.get(token, -1) >= last.call.began or self.left_since(screen.client, last.call.began):
            return None
        if self.policy.max_devices < 2:
            return None
        return token

    def _check_registrations(self) -> None:
        for screen in self.screens:
            token = self.registered(screen)
            if token is None:
                continue
            row = self.state(screen.client).devices.get(screen.id)
            if row is None or row.token_key != hash_token(token):
                self.fail(f"{screen.id} is registered with {token}, and is not listed")
            [document] = at_once(self._real.load([TOKEN_PREFIX + hash_token(token)]))
            owner = decode_owner(document.body)
            if owner is None or owner[:2] != (screen.client, screen.id):
                self.fail(f"{screen.id} is registered with {token}, and the token is not known as its own")

    def screen(self, client: ClientId, device_id: DeviceId) -> Screen:
        return next(screen for screen in self.screens if (screen.client, screen.id) == (client, device_id))

    # --- What travels

    def published(self, publication: Publication) -> int:
        self._same_packet(publication.client_id, publication.packet)
        self.air.append((publication.client_id, None, publication.packet))
        return sum(s.connected for s in self.screens if s.client == publication.client_id)

    def push(self, wakeup: Wakeup) -> Outcome:
        token, client = wakeup.token, ClientId(wakeup.collapse_id)
        if token in self.dead:
            self.told_dead[token] = self.clock
            self.say(f"push to {token}: dead")
            return TokenDead(None if self.traffic.calm else self.dead[token])
        if wakeup.packet is not None:
            self._same_packet(client, wakeup.packet)
            self.air.append((client, None, wakeup.packet))
        key = (token, client)
        self.pushed[key] = max(self.pushed.get(key, 0), wakeup.version)
        self.say(f"push to {token}: {client} version {wakeup.version} {'alert' if wakeup.alert else 'background'}")
        return Accepted()

    def show(self, screen: Screen, body: bytes) -> None:
        """A device applies a packet, as the protocol tells it to."""
        self._same_packet(screen.client, body)
        said = json.loads(body)
        version = said["version"]
        if said["client_id"] != screen.client or version < screen.version:
            return
        screen.version = version
        outgoing = {entry["video_id"]: entry["status"] for entry in said["outgoing"]}
        incoming = {entry["video_id"]: entry["status"] for entry in said["incoming"]}
        self._show_sent(screen, outgoing, version)
        self._show_received(screen, incoming, version)
        self._check_answers(screen.client, outgoing, incoming, version)

    def _show_sent(self, screen: Screen, outgoing: dict[str, str], version: int) -> None:
        for video_id, status in outgoing.items():
            known = screen.sent.get(video_id, "uploaded")
            if known == "complete" or RANK[status] < RANK[known] or (RANK[known] == 3 and status != known):
                self.fail(f"screen {screen.id}: {short(video_id)} went from {known} to {status}")
            screen.sent[video_id] = status
            screen.listed[video_id] = version
        for video_id in screen.sent.keys() - outgoing.keys():
            clip = self.clips[video_id]
            sure = version > screen.listed.get(video_id, NEVER) or version >= (clip.confirmed or NEVER)
            if sure and screen.sent[video_id] != "complete":
                screen.sent[video_id] = "complete"
                if not self.may_be_gone(clip):
                    self.fail(f"screen {screen.id}: {short(video_id)} seems complete, and is not")

    def _show_received(self, screen: Screen, incoming: dict[str, str], version: int) -> None:
        for video_id, status in incoming.items():
            if video_id in screen.gone:
                self.fail(f"screen {screen.id}: {short(video_id)} came back")
            if status not in {"uploaded", "downloaded"}:
                self.fail(f"screen {screen.id}: an incoming video is {status}")
            if RANK[status] < RANK[screen.received.get(video_id, "uploaded")]:
                self.fail(f"screen {screen.id}: {short(video_id)} went back to {status}")
            screen.received[video_id] = status
        for video_id in screen.received.keys() - incoming.keys():
            screen.gone.add(video_id)
            del screen.received[video_id]

    def _check_answers(
        self, client: ClientId, outgoing: dict[str, str], incoming: dict[str, str], version: int
    ) -> None:
        for clip in self.clips.values():
            name = short(clip.id)
            if clip.ref.sender_id == client:
                if clip.deleted is not None and version >= clip.deleted and clip.id in outgoing:
                    self.fail(f"a packet from after the deletion of {name} lists it")
                sure = clip.confirmed is not None and version >= clip.confirmed
                if sure and clip.id not in outgoing and not self.may_be_gone(clip):
                    self.fail(f"a packet from after the upload of {name} lacks it")
            seen = clip.viewed is not None and version >= clip.viewed
            if clip.ref.recipient_id == client and seen and clip.id in incoming:
                self.fail(f"a packet from after {name} was viewed lists it")

    # --- What apps do

    def idle(self, client: ClientId) -> bool:
        return client not in self.leaving

    def announce(self, a: int, b: int) -> None:
        """Most often from alice to bob, and most often uploaded right away. It only reads, so nothing comes between."""
        sender = self.clients[(0, 0, 0, 1, 2)[a % 5]]
        recipient = self.clients[(self.clients.index(sender) + (1, 1, 2)[a // 5 % 3]) % 3]
        if not self.idle(sender) or len(self.clips) >= 16:
            return
        born = self.clock
        calm, self.traffic.calm = self.traffic.calm, True
        service = self.processes[b % 2].service
        try:
            work = service.announce(sender, recipient, size=4, content_type="video/mp4")
            answer = self.loop.run_until_complete(work)
        except TooManyInTransit:
            self.say(f"{sender} may not announce a video to {recipient}")
            return
        finally:
            self.traffic.calm = calm
        ref = VideoRef(answer.video_id, sender, recipient)
        self.say(f"{sender} announced {short(ref.video_id)} to {recipient}")
        state = self.state(sender)
        if answer.video_id <= max((*state.ended, *(video_id for _, video_id, _ in state.sent())), default=""):
            self.fail("an id was minted that does not sort last")
        if answer.video_id in self.clips:
            self.fail("an id was minted twice")
        self.clips[ref.video_id] = Clip(ref, answer.upload.url, born)
        if b % 4:
            self.put(0, 1)

    def pick_clip(self, a: int, want: Callable[[Clip], bool]) -> Clip | None:
        clips = [clip for clip in self.clips.values() if want(clip)]
        return clips[-1 - a % len(clips)] if clips else None

    def put(self, a: int, b: int) -> None:
        clip = self.pick_clip(a, lambda clip: not clip.put or b % 4 == 0)
        if clip is None:
            return
        query = dict(parse_qsl(urlsplit(clip.url).query))
        try:
            grant = self._bytes.authorize_upload(clip.ref.object_key, query)
            at_once(self._bytes.receive(grant, _chunks(b"data")))
        except (SignatureRefused, AlreadyStored) as error:
            self.say(f"PUT {short(clip.id)}: {type(error).__name__}")
            return
        clip.put = True
        self.say(f"PUT {short(clip.id)}")

    def confirm(self, a: int, b: int) -> None:
        clip = self.pick_clip(a, lambda clip: clip.put and not clip.over and self.idle(clip.ref.sender_id))
        if clip is not None and not clip.delete_began:
            self._confirm(clip, b)

    def _confirm(self, clip: Clip, b: int) -> None:
        clip.confirming = True
        ref = clip.ref

        def done(outcome: Answer | GatewayError) -> None:
            if isinstance(outcome, NotStored):
                clip.put = False
            elif isinstance(outcome, GatewayError) or outcome.verdict.result is Result.IGNORED:
                clip.over = True
                if isinstance(outcome, Answer) and clip.confirmed is not None and not self.may_be_gone(clip):
                    self.fail(f"{short(clip.id)}: answered {outcome.verdict}, and is tracked")
            else:
                clip.over = True
                if clip.confirmed is None:
                    clip.confirmed = outcome.state.version
                self._answered(clip)

        self.submit(Call(f"confirm {short(clip.id)}", ref.sender_id, lambda p: p.service.confirm(ref), done), b)

    def event(self, a: int, b: int) -> None:
        """The object store tells the gateway that an upload is there, maybe late, maybe twice."""
        clip = self.pick_clip(a, lambda clip: clip.put)
        if clip is not None:
            ref = clip.ref
            self.start(
                Call(
                    f"event {short(clip.id)}",
                    ref.sender_id,
                    lambda p: p.service.confirm(ref, by_sender=False),
                    _nothing,
                ),
                self.processes[b % 2],
            )

    def delete(self, a: int, b: int) -> None:
        clip = self.pick_clip(a, lambda clip: self.idle(clip.ref.sender_id))
        if clip is not None:
            self._delete(clip, b)

    def _delete(self, clip: Clip, b: int) -> None:
        clip.delete_began = True
        ref = clip.ref

        def done(answer: Answer) -> None:
            if answer.verdict.result is Result.IGNORED:
                self.fail(f"the deletion of {short(clip.id)} was answered {answer.verdict}")
            if clip.deleted is None:
                clip.deleted = answer.state.version
            self._answered(clip)

        self.submit(Call(f"delete {short(clip.id)}", ref.sender_id, lambda p: p.service.delete(ref), done), b)

    def report(self, a: int, b: int) -> None:
        clip = self.pick_clip(a, lambda clip: clip.tracked and self.idle(clip.ref.recipient_id))
        if clip is not None:
            self._report([(clip, REPORTED[b % 3])], None, b // 3)

    def _report(self, said: Sequence[tuple[Clip, Status]], screen: Screen | None, b: int) -> None:
        client = said[0][0].ref.recipient_id if said else (screen.client if screen else self.clients[0])
        seen = None
        if screen is not None and screen.version:
            screen.claimed = max(screen.claimed, screen.version)
            seen = Acknowledgement(screen.id, screen.version)
        seen_by = [(clip, clip.confirmed is not None or self.knows(clip)) for clip, _ in said]
        for clip, status in said:
            clip.reported.add(status)
        items = [Said(clip.id, status) for clip, status in said]
        names = " ".join(f"{short(clip.id)} {status}" for clip, status in said)
        if seen is not None:
            names += f" ack {seen.device_id} {seen.version}"

        def done(answer: tuple[list[Verdict | GatewayError], ClientState]) -> None:
            verdicts, state = answer
            for (clip, status), verdict, (_, known) in zip(said, verdicts, seen_by, strict=True):
                if isinstance(verdict, GatewayError):
                    self.fail(f"a status was refused: {verdict!r}")
                elif verdict.result is not Result.IGNORED and status is Status.VIEWED and clip.viewed is None:
                    clip.viewed = state.version
                elif verdict.reason is Reason.UNKNOWN_VIDEO and known and not self.may_be_gone(clip):
                    self.fail(f"{short(clip.id)} is unknown to {client}")
                elif verdict.reason is Reason.EXPIRED and not self.may_be_expired(clip):
                    self.fail(f"{short(clip.id)} is said to have expired")
                self._answered(clip)
            if screen is not None:
                self.show(screen, packet.encode(state))

        self.submit(Call(f"report {names}", client, lambda p: p.service.report(client, items, seen), done), b)

    def knows(self, clip: Clip) -> bool:
        return self.state(clip.ref.recipient_id).find_received(clip.id) is not None

    def _answered(self, clip: Clip) -> None:
        self._check_clip(clip, clip.ref.sender_id)
        self._check_clip(clip, clip.ref.recipient_id)

    def poll(self, a: int, b: int) -> None:
        screen = self.screens[a % 6]
        if not self.idle(screen.client):
            return
        if b % 4 == 0:
            self.start(
                Call(
                    f"poll {screen.id}",
                    screen.client,
                    lambda p: p.service.poll(screen.client),
                    lambda state: self.show(screen, packet.encode(state)),
                ),
                self.processes[b % 2],
            )
        else:
            self._poll(screen, b)

    def _poll(self, screen: Screen, b: int = 0) -> None:
        screen.claimed = max(screen.claimed, screen.version)
        seen = Acknowledgement(screen.id, screen.version) if screen.version else None
        self.submit(
            Call(
                f"poll {screen.id} {screen.version}",
                screen.client,
                lambda p: p.service.poll(screen.client, seen),
                lambda state: self.show(screen, packet.encode(state)),
            ),
            b,
        )

    def sync(self, a: int, b: int) -> None:
        """A device reports all that it knows of, and says what it has applied."""
        screen = self.screens[a % 6]
        if not self.idle(screen.client):
            return
        ids = sorted(set(screen.received))
        said = [(self.clips[video_id], REPORTED[(b + n) % 3]) for n, video_id in enumerate(ids)]
        self._report(said, screen, b)

    def register(self, a: int, b: int) -> None:
        screen = self.screens[a % 6]
        if not self.idle(screen.client):
            return
        match b % 5:
            case 0:  # a phone on which somebody else was logged in before
                given = [r.token for r in self.registrations if r.token and r.token not in self.dead]
                token = given[b % len(given)] if given else self._new_token()
            case 1:
                token = self._new_token()
            case _:
                token = screen.wanted or self._new_token()
        if token in self.dead:
            token = self._new_token()
        for other in self.screens:
            if other.wanted == token:
                other.wanted = None
        screen.wanted = token
        self._register(screen, token, b)

    def _new_token(self) -> str:
        self.fresh_tokens += 1
        return f"token-{self.fresh_tokens}"

    def _register(self, screen: Screen, token: str, b: int) -> None:
        client, device_id = screen.client, screen.id

        def done(_: None) -> None:
            call.answered = True
            self._check_registrations()

        call = Call(
            f"register {device_id} {token}",
            client,
            lambda p: p.registry.register(client, device_id, platform="apns", environment="production", token=token),
            done,
        )
        self.registrations.append(Registration(screen, token, call))
        screen.pending = self.submit(call, b)

    def unregister(self, a: int, b: int) -> None:
        screen = self.screens[a % 6]
        if self.idle(screen.client):
            screen.wanted = None
            self._unregister(screen, b)

    def _unregister(self, screen: Screen, b: int) -> None:
        client, device_id = screen.client, screen.id
        call = Call(f"unregister {device_id}", client, lambda p: p.registry.unregister(client, device_id), _nothing)

        def done(_: None) -> None:
            call.answered = True

        call.done = done
        self.registrations.append(Registration(screen, None, call))
        screen.pending = self.submit(call, b)

    def leave(self, a: int, b: int) -> None:
        client = self.clients[a % 3]
        if b % 3 == 0 and self.idle(client):
            self._leave(client, b // 3)

    def _leave(self, client: ClientId, b: int) -> None:
        for screen in self.screens:
            if screen.client == client:
                screen.wanted = None

        async def work(process: Process) -> None:
            held = tokens(await process.changes.load(client))
            await process.service.leave(client)
            for device_id, key in held:
                await process.registry.release(client, device_id, key)

        def done(_: None) -> None:
            call.answered = True
            self.leaving.pop(client, None)
            for clip in self.clips.values():
                if clip.ref.sender_id == client and clip.born < call.began:
                    clip.over = True
            self._check_truth(client)

        call = Call("leave", client, work, done)
        self.leaves.append(call)
        self.leaving[client] = call
        self.calls.append(call)
        self.start(call, self.processes[b % 2])

    def repeat(self, a: int, b: int) -> None:
        """An old call arrives once more, or an app repeats one that it had no answer to."""
        if not self.calls:
            return
        old = self.calls[a % len(self.calls)]
        if old in self.leaves:
            if self.leaving.get(old.client) is old and old.ended < NEVER:
                self._leave(old.client, b)
            return
        if any(r.call is old for r in self.registrations):
            return  # the one thing that apps send in order
        self.say(f"once more: {old.name}")
        self.start(self.again(old), self.processes[b % 2])

    # --- What the gateway does by itself

    def work(self, name: str, make: Callable[[Process], Coroutine[Any, Any, Any]], b: int) -> None:
        self.start(Call(name, ClientId("-"), make, _nothing), self.processes[b % 2])

    def worker(self, a: int, b: int) -> None:
        self.work("worker", lambda p: p.wakeups.round(), b)

    def sweep(self, a: int, b: int) -> None:
        self.work("sweep", lambda p: p.sweep.round(full=b % 4 != 0), b)

    def tend(self, a: int, b: int) -> None:
        client = self.clients[a % 3]
        self.work(f"tend {client}", lambda p: p.service.tend(client), b)

    def flush(self, a: int, b: int) -> None:
        self.work("flush", lambda p: p.removals.flush(), b)

    # --- What happens to backends and processes

    def go(self, a: int, b: int) -> None:
        """One backend call happens."""
        if (pending := self.pick_pending(a, b)) is not None:
            pending.perform(1 if b % 2 == 0 else 1_000)

    def finish(self, a: int, b: int) -> None:
        """One call goes on until it is through."""
        if (pending := self.pick_pending(a, b)) is None:
            return
        call = pending.call
        for _ in range(200):
            mine = [other for other in self.traffic.pending if other.call is call]
            if mine:
                mine[a % len(mine)].perform()
                self.loop.settle()
            elif call in self.running:
                self.loop.pass_time(0.2)  # it pauses after a conflict
            else:
                return
            self.check()

    def pick_pending(self, a: int, b: int) -> Pending | None:
        waiting = self.traffic.pending
        if not waiting:
            return None
        return waiting[(-1, 0, a)[b % 3] % len(waiting)]

    def hiccup(self, a: int, b: int) -> None:
        """A backend does not answer; what it was asked has happened, or not, or half."""
        if (pending := self.pick_pending(a, b)) is not None:
            after = (0, 1, 1_000)[a % 3]
            self.say(f"FAULT: {pending.name}, {after} parts done")
            pending.fail(after=after)

    def crash(self, a: int, b: int) -> None:
        """A call is cut off, before or after what it waits for has happened."""
        if (pending := self.pick_pending(a, b)) is not None and isinstance(pending.call, Call):
            call = pending.call
            self.say(f"CRASH: {call.client} {call.name}")
            if a % 2:
                pending.fail(after=1 + a // 2 % 2)
            if call.task is not None:
                call.task.cancel()
            self.loop.settle()

    def kill(self, a: int, b: int) -> None:
        """A whole process dies, with all that it had in memory."""
        index = a % 2
        process = self.processes[index]
        self.say(f"KILL: process {index}")
        for call in list(process.calls):
            if call.task is not None:
                call.task.cancel()
        self.loop.settle()
        self.processes[index] = Process(self, self.setting.skew_ms if index else 0)
        del b

    def orphan(self, a: int, b: int) -> None:
        """A write whose caller died lands after all, seconds late."""
        orphans = self.traffic.orphans
        orphans[:] = [pending for pending in orphans if self.loop.time() - pending.began_s < LATEST_WRITE_S]
        if orphans:
            pending = orphans.pop(a % len(orphans))
            self.say(f"LATE: {pending.name}")
            pending.perform()
        del b

    def deliver(self, a: int, b: int) -> None:
        """A packet reaches a device, by whatever channel, in whatever order."""
        if not self.air:
            return
        client, _, body = self.air[-1 - (a % len(self.air) if b % 2 else 0)]
        screens = [screen for screen in self.screens if screen.client == client]
        self.show(screens[b // 2 % 2], body)
        if b % 3 == 0:
            self.show(screens[1 - b // 2 % 2], body)

    def connect(self, a: int, b: int) -> None:
        screen = self.screens[a % 6]
        screen.connected = not screen.connected
        self.say(f"{screen.id} is {'connected' if screen.connected else 'offline'}")
        del b

    def die(self, a: int, b: int) -> None:
        """An app is removed from its phone: its token is no more."""
        screen = self.screens[a % 6]
        if b % 3 == 0 and screen.wanted is not None:
            self.say(f"{screen.wanted} dies")
            self.dead[screen.wanted] = self.now_ms
            screen.wanted = None

    def wait(self, a: int, b: int) -> None:
        seconds = (*[6] * 12, *[3_700] * 4, 8 * 3_600, 90_000, 90_000, 8 * 86_400, 31 * 86_400)
        self.say(f"wait {seconds[a % len(seconds)]} s")
        self.loop.pass_time(seconds[a % len(seconds)])
        del b

    def nothing(self, a: int, b: int) -> None:
        return

    # --- The end

    def finale(self) -> None:
        """Faults stop, apps repeat what was not answered, time passes: everything is as it should be."""
        self.say("--- faults stop")
        self.traffic.calm = True
        self.traffic.orphans.clear()
        for _ in range(50):
            for pending in list(self.traffic.pending):
                pending.perform()
            self.loop.pass_time(0.3)
            self.check()
            if not self.running:
                break
        else:
            self.fail(f"{[call.name for call in self.running]} never end")
        if self.setting.retried:
            self._retry_all()
        self._look_after((6, 60, 3_700))
        self._check_agreement()
        self._look_after((2 * 3_600, 8 * 3_600, 17 * 3_600, 25 * 3_600))
        self._check_agreement()
        self._check_woken()
        self._check_tokens()
        for screen in self.screens:
            self._poll(screen)
        self._look_after((31 * 86_400, 60, 8 * 86_400, 60, 60))
        for client in self.clients:
            state = self.state(client)
            if list(state.sent()) or list(state.received()) or state.due is not None:
                self.fail(f"something is left: {show(state)}")
        if keys := self.stored_keys():
            self.fail(f"bytes are left: {keys}")
        for screen in self.screens:
            self._poll(screen)
            self.check()
            if screen.received or any(status != "complete" for status in screen.sent.values()):
                self.fail(f"screen {screen.id} shows {screen.sent} and {screen.received}, and hears of nothing newer")

    def _retry_all(self) -> None:
        for client in list(self.leaving):
            self._leave(client, 0)
        for clip in list(self.clips.values()):
            if clip.delete_began and clip.deleted is None:
                self._delete(clip, 0)
            elif clip.confirming and clip.put and not clip.over and not clip.delete_began:
                self._confirm(clip, 0)
            if Status.VIEWED in clip.reported and clip.viewed is None:
                self._report([(clip, Status.VIEWED)], None, 0)
        for screen in self.screens:
            call = screen.pending
            if call is not None and not call.answered:
                if screen.wanted is not None and "unregister" not in call.name:
                    self._register(screen, screen.wanted, 0)
                elif screen.wanted is None and "unregister" in call.name:
                    self._unregister(screen, 0)
        self.check()

    def _look_after(self, waits: Sequence[float]) -> None:
        for seconds in waits:
            self.say(f"wait {seconds} s")
            self.loop.pass_time(seconds + 600)  # clocks differ
            for process in range(2):
                self.flush(0, process)
                for _ in range(3):
                    self.worker(0, process)
                    self.loop.pass_time(0.01)
                self.sweep(0, process + 2)
                self.flush(0, process)
                self.loop.pass_time(0.01)
                self.check()

    def stored_keys(self) -> list[str]:
        async def keys() -> list[str]:
            return [key async for key in self._bytes.list("")]

        return at_once(keys())

    def _check_agreement(self) -> None:
        wanted: set[str] = set()
        states = {client: self.state(client) for client in self.clients}
        for client, state in states.items():
            for peer, other in states.items():
                sent = {i: v for to, i, v in state.sent() if to == peer}
                received = {i: v for who, i, v in other.received() if who == client}
                ours = {i: v.status for i, v in sent.items()}
                theirs = {i: v.status for i, v in received.items()}
                if ours != theirs:
                    self.fail(f"{client} and {peer} do not agree: {ours} and {theirs}")
            for to, video_id, video in state.sent():
                if expiry.bytes_wanted(video, now=self.now_ms, policy=self.policy):
                    wanted.add(VideoRef(video_id, client, to).object_key)
            self._check_truth(client)
            if state.due is not None and state.due <= self.now_ms - self.setting.skew_ms - 10:
                self.fail(f"{client} is due still: {show(state)}")
            if state.check_at and not list(state.sent()):
                self.fail(f"{client} is to be checked for nothing")
        stored = {key for key in self.stored_keys() if not self._waits_for_room(key, states)}
        if stored != wanted:
            self.fail(f"stored: {sorted(stored)}, wanted: {sorted(wanted)}")

    def _waits_for_room(self, key: str, states: dict[ClientId, ClientState]) -> bool:
        """Whether these are the bytes of an upload that was never confirmed, and has no room yet."""
        ref = VideoRef.parse(key)
        if ref is None:
            return False
        sender, recipient = states[ref.sender_id], states[ref.recipient_id]
        untracked = sending.awaits_upload(sender, ref.recipient_id, ref.video_id, now=self.now_ms, policy=self.policy)
        return untracked and sending.room(sender, recipient, self.policy).full

    def _check_woken(self) -> None:
        for client in self.clients:
            state = self.state(client)
            newest = devices.news(state, self.policy)
            by_key = {hash_token(token): token for token in (r.token for r in self.registrations) if token}
            for device_id, row in state.devices.items():
                if by_key[row.token_key] in self.dead:
                    continue
                if row.next_at:
                    self.fail(f"{device_id} is scheduled after the last reminder")
                if row.acked < newest and self.pushed.get((by_key[row.token_key], client), 0) < newest:
                    self.fail(f"{device_id} is behind, and was not woken")

    def _check_tokens(self) -> None:
        page = at_once(self._real.scan(limit=256))
        for document in page.documents:
            if document.key.startswith(TOKEN_PREFIX) and (owner := decode_owner(document.body)) is not None:
                row = self.state(owner.client_id).devices.get(owner.device_id)
                if row is None or row.token_key != document.key.removeprefix(TOKEN_PREFIX):
                    self.fail(f"a token of {owner} is left, which no device has")
        self._check_registrations()


def _nothing(outcome: object) -> None:
    return


async def _chunks(data: bytes) -> Any:
    yield data


def short(video_id: str) -> str:
    return video_id[-6:]


def content(state: ClientState) -> dict[str, Any]:
    """What a packet shows, its version apart."""
    said: dict[str, Any] = json.loads(packet.encode(state))
    del said["version"]
    return said


def show(state: ClientState) -> str:
    out = {f"{short(i)}>{to}": f"{v.status}" for to, i, v in state.sent()}
    inc = {f"{short(i)}<{who}": f"{v.status}@{v.came % 1_000_000_000}" for who, i, v in state.received()}
    pairs = {to: pair.version % 1_000_000_000 for to, pair in state.outgoing.items()}
    rows = {
        d: (r.token_key[:4], r.acked % 1_000_000_000, r.attempts, r.next_at % 1_000_000_000)
        for d, r in state.devices.items()
    }
    ended = [short(i) for i in state.ended]
    version = state.version % 1_000_000_000
    return f"{state.client_id} v{version} out{out} in{inc} pairs{pairs} ended{ended} devices{rows}"


_WEIGHTS: list[tuple[int, Callable[[World, int, int], None]]] = [
    (1, World.nothing),
    (44, World.go),
    (22, World.finish),
    (8, World.announce),
    (2, World.put),
    (9, World.confirm),
    (3, World.event),
    (5, World.delete),
    (9, World.report),
    (6, World.poll),
    (4, World.sync),
    (5, World.register),
    (2, World.unregister),
    (1, World.leave),
    (4, World.repeat),
    (4, World.worker),
    (3, World.sweep),
    (2, World.tend),
    (1, World.flush),
    (3, World.hiccup),
    (3, World.crash),
    (1, World.kill),
    (1, World.orphan),
    (10, World.deliver),
    (1, World.connect),
    (1, World.die),
    (4, World.wait),
]
_DEVICES: list[tuple[int, Callable[[World, int, int], None]]] = [
    (1, World.nothing),
    (50, World.go),
    (12, World.finish),
    (3, World.announce),
    (4, World.confirm),
    (2, World.report),
    (5, World.poll),
    (18, World.register),
    (4, World.unregister),
    (1, World.leave),
    (10, World.worker),
    (2, World.sweep),
    (2, World.hiccup),
    (3, World.crash),
    (2, World.connect),
    (2, World.die),
    (5, World.wait),
]
"""What happens in a world where it is mostly devices that come and go."""


def _table(
    weights: Sequence[tuple[int, Callable[[World, int, int], None]]],
) -> list[Callable[[World, int, int], None]]:
    return [action for weight, action in weights for _ in range(weight)]


ACTIONS = {False: _table(_WEIGHTS), True: _table(_DEVICES)}
KINDS = 1_000
"""Numbers for what happens next: taken modulo the number of entries in a table, 0 being nothing."""


def setting_of(a: int, b: int, c: int) -> Setting:
    """One of the worlds."""
    small = Policy(
        max_outgoing=2,
        max_incoming=2,
        max_devices=2,
        max_ended=3,
        video_ttl_ms=6_000,
        ended_keep_ms=MINUTE_MS,
    )
    policies = (
        Policy(max_devices=2),
        small,
        Policy(videos_per_pair=2, max_outgoing=3, max_incoming=3, max_devices=2, max_ended=4),
        Policy(push_on_status=True, max_devices=2, viewed_keep_ms=HOUR_MS),
    )
    skews = (0, 0, 2 * MINUTE_MS, -2 * MINUTE_MS)
    return Setting(
        policies[a % 4], skew_ms=skews[b % 4], retried=c % 2 == 0, with_packet=c % 5 != 2, devices=c % 3 == 2
    )


def run(setting: Setting, schedule: Sequence[Step]) -> World:
    """One history: the schedule, and the end of it."""
    with World(setting) as world:
        for step in schedule:
            world.step(step)
        world.finale()
    return world

"""A gateway in miniature, and a phone with a core: every loss, delay, repetition and death that a schedule has.

The gateway keeps the protocol's rules for the accounts that use the phone; everybody else is a script. Requests are
carried out when the schedule says so, if ever, and answers arrive likewise. A request that the phone has given up may
still be carried out later.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gateway.client import (
    Change,
    Core,
    DownloadError,
    GatewayError,
    Outcome,
    Packet,
    ReceivedStatus,
    Record,
    Report,
    Result,
    SentStatus,
    SocketClosed,
    Synced,
    Upload,
    UploadError,
)
from gateway.client.delivery import Delivery
from gateway.client.messages import Announced, Incoming, Outgoing
from gateway.client.record import Registration
from gateway.client.tasks import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Answer,
    Connect,
    Delete,
    Download,
    Leave,
    Poll,
    Put,
    Register,
    Sync,
    Task,
    Tell,
)
from gateway.transit.state import ClientId, DeviceId, Status, VideoId

Step = tuple[int, int, int]

ACCOUNTS = (ClientId("alice"), ClientId("dora"))
PEERS = (ClientId("bob"), ClientId("carol"))
PHONE = DeviceId("phone")
SENT = (Status.UPLOADED, Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED)
CLOSE_CODES = (1000, 1006, 1006, 1011, 1012, 1013, 4400, 4401, 4408, 4409, 4429)
ENDS = {SentStatus.VIEWED, SentStatus.EXPIRED, SentStatus.COMPLETE, SentStatus.FAILED}


def lost() -> GatewayError:
    return GatewayError(None, None, "ConnectError")


def rank(status: SentStatus) -> int:
    return min(list(SentStatus).index(status), 4)


# --- The gateway


@dataclass(slots=True)
class Account:
    """What the gateway keeps of one account, and whatever became of its videos."""

    client_id: ClientId
    version: int = 0
    outgoing: dict[VideoId, tuple[ClientId, Status]] = field(default_factory=dict)
    incoming: dict[VideoId, tuple[ClientId, Status]] = field(default_factory=dict)
    announced: set[VideoId] = field(default_factory=set)
    stored: dict[VideoId, ClientId] = field(default_factory=dict)
    deleted: set[VideoId] = field(default_factory=set)
    newest: dict[ClientId, VideoId] = field(default_factory=dict)
    tracked: set[VideoId] = field(default_factory=set)
    reached: dict[VideoId, set[Status]] = field(default_factory=dict)
    registered: str | None = None
    packets: list[Packet] = field(default_factory=list)
    acknowledged: int = 0
    news: dict[VideoId, int] = field(default_factory=dict)

    def packet(self) -> Packet:
        outgoing = tuple(Outgoing(key, peer, status, 1) for key, (peer, status) in sorted(self.outgoing.items()))
        incoming = tuple(
            Incoming(key, peer, status, "/content", 9, "video/mp4", 1)
            for key, (peer, status) in sorted(self.incoming.items())
        )
        found = Packet(self.client_id, self.version, outgoing, incoming, b"")
        if not self.packets or self.packets[-1] != found:
            self.packets.append(found)
        return found

    def changed(self, jump: int = 0) -> Result:
        self.version += 1 + jump
        self.packet()
        return Result(VideoId(""), Outcome.APPLIED, self.version)

    def unchanged(self, outcome: Outcome = Outcome.DUPLICATE, reason: str | None = None) -> Result:
        return Result(VideoId(""), outcome, self.version, reason)

    def track(self, video_id: VideoId, recipient_id: ClientId) -> Result:
        """A video is stored: it replaces the one before."""
        if video_id in self.outgoing:
            return self.unchanged()
        if video_id in self.deleted or video_id <= self.newest.get(recipient_id, ""):
            return self.unchanged(Outcome.IGNORED, "superseded")
        for key, (peer, _) in list(self.outgoing.items()):
            if peer == recipient_id:
                del self.outgoing[key]
        self.newest[recipient_id] = video_id
        self.tracked.add(video_id)
        self.outgoing[video_id] = (recipient_id, Status.UPLOADED)
        self.reached[video_id] = {Status.UPLOADED}
        return self.changed()

    def report(self, report: Report) -> Result:
        video_id = VideoId(report.video_id)
        if report.status is Status.UPLOADED:
            recipient_id = ClientId(report.recipient_id or "")
            if video_id not in self.stored and video_id not in self.deleted:
                raise GatewayError(409, "not_stored", "so it is")
            return self.track(video_id, recipient_id)
        if video_id not in self.incoming:
            return self.unchanged(Outcome.IGNORED, "unknown_video")
        peer, status = self.incoming[video_id]
        if report.status is Status.VIEWED:
            del self.incoming[video_id]
            return self.changed()
        if status is Status.DOWNLOADED:
            return self.unchanged()
        self.incoming[video_id] = (peer, Status.DOWNLOADED)
        return self.changed()

    def delete(self, video_id: VideoId) -> Result:
        self.deleted.add(video_id)
        return self.changed() if self.outgoing.pop(video_id, None) else self.unchanged()

    def complete_uploads(self) -> None:
        """What is stored and was never confirmed is completed by the gateway itself."""
        for video_id, recipient_id in sorted(self.stored.items()):
            if video_id not in self.tracked:
                self.track(video_id, recipient_id)

    def end(self) -> None:
        self.deleted.update(self.outgoing, self.stored, self.announced)
        self.outgoing.clear()
        self.incoming.clear()
        self.registered = None
        self.changed()


# --- What the phone has begun


@dataclass(slots=True)
class Begun:
    """A task under way. `answer`: what the gateway has answered, on its way to the phone."""

    task: Task
    client_id: ClientId
    at: float
    answer: Answer | Exception = None
    answered: bool = False
    opened: bool = False
    heard: int = 0


class World:
    """One phone, which two accounts use in turn, and their gateway. Each method is something that may happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jitter = 0.0
        self.gateway = {client_id: Account(client_id) for client_id in ACCOUNTS}
        self.minted = 0
        self.account = ACCOUNTS[0]
        self.session = 0
        self.out = False
        self.active, self.online = False, True
        self.running: list[Begun] = []
        self.ghosts: list[Begun] = []
        self.known = 0
        self.strays: list[Callable[[], object]] = []
        self.stored = b""
        self.stored_version = 0
        # What the app was promised, and what it was told.
        self.meant: list[Callable[[], None]] = []
        self.keys: dict[str, list[VideoId]] = {}
        self.sent: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.dropped: dict[str, int] = {}
        self.viewed: list[tuple[ClientId, VideoId]] = []
        self.registration: str | None = None
        self.left: dict[ClientId, bool] = {}
        self.told: dict[tuple[int, str], list[str]] = {}
        self.handed: Change | None = None
        self.taken = False
        self.again: Change | None = None
        self.begun = self.asked = 0
        self.statuses: dict[str, SentStatus] = {}
        self.record = Record(ClientId(""), DeviceId(""))
        self._start()

    # --- The phone's process

    def _start(self) -> None:
        if self.stored:
            self.record = Record.decode(self.stored)
        self.record.log_in(*((None, None) if self.out else (self.account, PHONE)))
        self.core = Core(self.record, clock=lambda: self.now, jitter=lambda: self.jitter)
        self.core.foreground(active=self.active)
        self.core.network(online=self.online)
        self.statuses = {}
        self.stored_version = 0
        self._is_to_ask()
        self.store()

    def store(self) -> None:
        if self.record.changed:
            self.stored, self.record.changed = self.record.encode(), False
        self.stored_version = self.record.version
        for happened in self.meant:
            happened()
        self.meant.clear()
        if self.taken:
            self.handed, self.taken = None, False

    def drive(self, _one: int = 0, other: int = 0) -> None:
        """What is to be done is begun, once the record is stored; the phone may die at any point of that."""
        actions = self.core.next()
        if other == 991:
            self.die()
            return
        self.store()
        if other == 992:
            self.die()
            return
        for action in actions:
            self._begin(action)

    def _begin(self, action: Action) -> None:
        if isinstance(action, Abandon):
            self._forget(action.task)
            return
        if isinstance(action, Sync | Poll | Connect | Acknowledge):
            assert action.version <= self.stored_version, "a version is acknowledged that is not stored"
        if isinstance(action, Acknowledge):
            if any(begun.opened for begun in self.running):
                self._acknowledge(self.account, action.version)
            return
        self.begun += 1
        if isinstance(action, Leave):
            client_id = action.farewell.client_id
        else:
            client_id = self.account
            mine = [farewell for farewell in self.record.farewells if farewell.client_id == client_id]
            assert not mine, "something is said before the log-out that came before it"
        assert self.online
        assert all(other.task.op != action.op for other in self.running), "something is under way twice"
        if isinstance(action, Announce | Put):
            self._in_order(action)
        if isinstance(action, Put):
            ids = self.keys.setdefault(action.key, [])
            if action.announced.video_id not in ids:
                ids.append(action.announced.video_id)
        self.running.append(Begun(action, client_id, self.now))

    def _acknowledge(self, client_id: ClientId, version: int) -> None:
        account = self.gateway[client_id]
        account.acknowledged = max(account.acknowledged, min(version, account.version))

    def _in_order(self, begun: Announce | Put) -> None:
        uploads = [other.task for other in self.running if isinstance(other.task, Announce | Put)]
        assert len(uploads) < 2, "too many uploads at once"
        recipient_id = self.record.sent[begun.key].recipient_id
        keys = [key for key, video in self.record.sent.items() if video.recipient_id == recipient_id and video.delivery]
        assert keys[0] == begun.key, "a video overtakes another one"

    def _forget(self, task: Task) -> None:
        for begun in self.running:
            if begun.task is task:
                self.running.remove(begun)
                self.ghosts.append(begun)
                self._strand(begun)
                return

    def ghost(self, one: int, other: int) -> None:
        """What was given up ends nevertheless, and the core is told."""
        if not self.ghosts:
            return
        task = self.ghosts.pop(one % len(self.ghosts)).task
        if isinstance(task, Connect) and other % 3:
            self.core.opened(task)
            if packets := self.gateway[self.account].packets:
                self.core.came(task, packets[-1])
            self.core.closed(task, SocketClosed(1011, ""))
        elif isinstance(task, Download) and other % 3:
            self.core.answered(task, None)
        else:
            self.core.failed(task, lost())

    def _strand(self, begun: Begun) -> None:
        """The phone has given it up: it may be carried out nevertheless."""
        if not begun.answered and isinstance(begun.task, Put | Sync | Tell | Delete):
            self.strays.append(lambda: self._carried(begun))

    def die(self, _one: int = 0, _other: int = 0) -> None:
        for begun in self.running:
            self._strand(begun)
        self.running.clear()
        self.ghosts.clear()
        self.meant.clear()
        if self.handed is not None:
            self.again, self.handed, self.taken = self.handed, None, False
        self._start()

    # --- Requests and answers

    def carry(self, one: int, other: int) -> None:
        """The gateway carries out a request."""
        waiting = [begun for begun in self.running if not begun.answered]
        if one % 3 == 0:  # those that take several steps are seldom else
            waiting = [begun for begun in waiting if isinstance(begun.task, Put | Announce | Sync)] or waiting
        if waiting:
            begun = waiting[one % len(waiting)]
            self.carry_out(begun, other)

    def carry_out(self, begun: Begun, other: int = 0) -> None:
        task = begun.task
        if isinstance(task, Connect):
            self._open(begun, other)
            return
        if isinstance(task, Poll) and not self._polled(begun, task):
            return
        begun.answered = True
        try:
            begun.answer = self._refused(task, other) or self._carried(begun)
        except GatewayError as error:
            begun.answer = error

    def _polled(self, begun: Begun, task: Poll) -> bool:
        """Whether a poll is answered now, rather than held."""
        newer = self.gateway[begun.client_id].version > task.version
        return newer or self.now >= begun.at + task.wait_s

    def _open(self, begun: Begun, other: int) -> None:
        if not begun.opened:
            if other % 7 == 1:
                self.running.remove(begun)
                self.core.failed(begun.task, GatewayError(503, "unavailable", "full", 3.0))
                return
            assert isinstance(begun.task, Connect)
            begun.opened, begun.heard = True, begun.task.version
            self._acknowledge(begun.client_id, begun.task.version)
            if not begun.heard:
                begun.heard = -1
            self.core.opened(begun.task)
        self.hear(begun)

    def hear(self, begun: Begun) -> bool:
        """The socket brings the newest packet, if that is newer."""
        account = self.gateway[begun.client_id]
        if not begun.opened or account.version <= begun.heard:
            return False
        begun.heard = account.version
        assert isinstance(begun.task, Connect)
        self.core.came(begun.task, account.packet())
        return True

    @staticmethod
    def _refused(task: Task, other: int) -> GatewayError | OSError | None:
        """What goes wrong now and then, without having been carried out."""
        match task, other % 23:
            case Announce(), 1:
                return GatewayError(413, "too_large", "so it is")
            case Put(), 1 | 2 | 10 | 11 | 12:
                return UploadError(403, None, "expired")
            case Put(), 3:
                return UploadError(409, None, "conflict")
            case Put(), 4 | 13 | 14:
                return FileNotFoundError()
            case Download(), 1:
                return DownloadError(403, None, "expired")
            case ((Tell() | Delete() | Register() | Announce() | Sync() | Poll() | Leave()), 5):
                return GatewayError(503, "unavailable", "so it is", 2.0)
            case ((Tell() | Delete() | Register() | Announce() | Sync() | Poll()), 6):
                return GatewayError(401, "unauthorized", "so it is")
            case ((Tell() | Delete() | Register() | Announce() | Sync() | Poll() | Leave()), 7):
                return GatewayError(429, "rate_limited", "so it is", 1.0)
        return None

    def _carried(self, begun: Begun) -> Answer:
        account = self.gateway[begun.client_id]
        if isinstance(begun.task, Sync | Poll):
            self._acknowledge(begun.client_id, begun.task.version)
        match begun.task:
            case Sync(reports):
                return Synced(tuple(self._synced(account, report) for report in reports), account.packet())
            case Poll(version):
                return account.packet() if account.version > version else None
            case Tell(report):
                return account.report(report)
            case Announce(_, recipient_id):
                video_id = self._mint()
                account.announced.add(video_id)
                return Announced(video_id, recipient_id, 9, Upload("PUT", "https://store.test/", {}, 9))
            case Put(_, _, announced):
                if announced.video_id not in account.deleted:
                    account.stored[announced.video_id] = announced.recipient_id
            case Delete(video_id, _):
                return account.delete(video_id)
            case Download(video_id):
                if video_id not in account.incoming:
                    raise DownloadError(404, "not_tracked", "so it is")
            case Register(new):
                account.registered = new.token
            case Leave(farewell):
                for report in farewell.reports:
                    self._synced(account, report)
                    account.news.pop(VideoId(report.video_id), None)
                for video_id, _ in farewell.deletions:
                    account.delete(video_id)
                account.registered = None
                if farewell.ends_account:
                    account.end()
        return None

    @staticmethod
    def _synced(account: Account, report: Report) -> Result:
        try:
            return account.report(report)
        except GatewayError as error:
            return Result(VideoId(report.video_id), Outcome.FAILED, 0, error=error)

    def _mint(self) -> VideoId:
        self.minted += 1
        return VideoId(f"0199c0de-0000-7000-8000-{self.minted:012}")

    def answer(self, one: int, _other: int = 0) -> None:
        """An answer arrives."""
        waiting = [begun for begun in self.running if begun.answered]
        if waiting:
            self.hand_over(waiting[one % len(waiting)])

    def hand_over(self, begun: Begun) -> None:
        self.running.remove(begun)
        task, answer = begun.task, begun.answer
        if isinstance(answer, Exception):
            self.core.failed(task, answer)
        elif isinstance(task, Register):
            self.core.registered(task, self.now)
        else:
            self.core.answered(task, answer)

    def lose(self, one: int, other: int) -> None:
        """A request or its answer gets lost, or a socket ends."""
        if not self.running:
            return
        begun = self.running.pop(one % len(self.running))
        if isinstance(begun.task, Connect) and begun.opened:
            code = CLOSE_CODES[other % len(CLOSE_CODES)]
            self.core.closed(begun.task, SocketClosed(code, '{"retry_ms":1500}'))
            return
        self._strand(begun)
        match begun.task:
            case Put():
                self.core.failed(begun.task, UploadError((None, None, 502)[other % 3], None, "no answer"))
            case Download():
                self.core.failed(begun.task, DownloadError(None, None, "no answer"))
            case _:
                self.core.failed(begun.task, lost())

    def stray(self, one: int, _other: int) -> None:
        """What was given up is carried out after all."""
        if self.strays:
            self._stray(self.strays.pop(one % len(self.strays)))

    @staticmethod
    def _stray(carried: Callable[[], object]) -> None:
        try:
            carried()
        except GatewayError:
            return

    # --- Packets, again and again

    def socket(self, one: int, other: int) -> None:
        """A packet comes over the socket: the newest, or one that came before."""
        sockets = [begun for begun in self.running if begun.opened]
        packets = self.gateway[self.account].packets
        if sockets and not self.hear(sockets[0]) and packets and one % 3 == 0:
            assert isinstance(sockets[0].task, Connect)
            self.core.came(sockets[0].task, packets[other % len(packets)])

    def push(self, one: int, other: int) -> None:
        """A push arrives: with whatever packet there was, or without, or another account's."""
        packets = self.gateway[ACCOUNTS[one % 5 == 4] if one % 5 > 2 else self.account].packets
        self.core.pushed(packets[-1 - other % len(packets)] if packets and one % 2 else None)
        self.online = True
        self._is_to_ask()

    def _is_to_ask(self) -> None:
        """Whatever the gateway has now the phone is to know, sooner or later."""
        self.known = self.gateway[self.account].version

    # --- The others

    def peer(self, one: int, other: int) -> None:
        """Somebody else does something, or another device of this account."""
        account = self.gateway[ACCOUNTS[one % 7 == 6]]
        outgoing, incoming = sorted(account.outgoing), sorted(account.incoming)
        match other % 8:
            case 0 | 1 | 2:
                peer = PEERS[one % 2]
                for key in [key for key, (sender, _) in account.incoming.items() if sender == peer]:
                    del account.incoming[key]
                account.incoming[video_id := self._mint()] = (peer, Status.UPLOADED)
                account.news[video_id] = account.changed(one % 3).version
            case 3 | 4 | 5 if outgoing:
                self._move(account, outgoing[one % len(outgoing)], one, other)
            case 6 if incoming:
                key = incoming[one % len(incoming)]
                peer, _ = account.incoming.pop(key)  # deleted, or viewed on another device
                if one % 3 == 0:
                    account.incoming[key] = (peer, Status.DOWNLOADED)
                    account.news.pop(key, None)
                account.changed()
            case 7 if one % 3:
                video_id = self._mint()
                account.stored[video_id] = PEERS[one % 2]
                account.track(video_id, PEERS[one % 2])
            case 7:
                account.complete_uploads()

    @staticmethod
    def _move(account: Account, video_id: VideoId, one: int, other: int) -> None:
        recipient_id, status = account.outgoing[video_id]
        if status in {Status.VIEWED, Status.EXPIRED}:
            if one % 2:
                del account.outgoing[video_id]
                account.changed()
            return
        to = Status.EXPIRED if one % 9 == 8 else SENT[min(3, SENT.index(status) + 1 + one % 3)]
        account.outgoing[video_id] = (recipient_id, to)
        account.reached[video_id].add(to)
        account.changed(other % 2)

    # --- The user

    def send(self, one: int, _other: int) -> None:
        if self.record.logged_out:
            return
        self.asked += 1
        key = f"key-{self.asked}"
        self.record.send(key, PEERS[one % 2], Delivery("/videos/x", 9, "video/mp4", "5a"))
        session = self.session
        self.meant.append(lambda: self.sent.update({key: session}))

    def delete(self, one: int, _other: int) -> None:
        keys = sorted(self.record.sent)
        if keys:
            key = keys[one % len(keys)]
            video = self.record.sent[key]
            if video.video_id is not None and video.video_id not in self.keys.setdefault(key, []):
                self.keys[key].append(video.video_id)
            self.record.delete(key)
            self.statuses.pop(key, None)
            session = self.session
            self.meant.append(lambda: self.dropped.update({key: session}))

    def view(self, one: int, _other: int) -> None:
        there = [video for video in self.record.received.values() if not video.viewed]
        if there:
            video_id, account = there[one % len(there)].video_id, self.account
            self.record.viewed(video_id)
            self.meant.append(lambda: self.viewed.append((account, video_id)))

    def register(self, one: int, _other: int) -> None:
        if not self.record.logged_out:
            token = f"push-token-{one % 3}"
            self.record.register(Registration("fcm", token))
            self.meant.append(lambda: setattr(self, "registration", token))

    def log_out(self, one: int, _other: int) -> None:
        if self.record.logged_out:
            return
        account, ends = self.account, one % 5 == 0
        self.store()
        for key in self.record.sent:
            self.sent.pop(key, None)
        self.record.log_out("a-token", ends_account=ends)
        self.statuses = {}

        def out() -> None:
            self.registration = None
            self.left[account] = True

        self.meant.append(out)
        self.store()  # an app waits for that
        self.out = True
        self.handed, self.taken, self.again = None, False, None

    def log_in(self, one: int, _other: int) -> None:
        """The app is started anew, by this account or the other."""
        if not self.record.logged_out:
            return
        self.session, self.out = self.session + 1, False
        for begun in self.running:
            self._strand(begun)
        self.running.clear()
        self.ghosts.clear()
        self.account = ACCOUNTS[one % 2]
        self.left.pop(self.account, None)
        self.store()
        self._start()

    def foreground(self, one: int, _other: int) -> None:
        self.active = bool(one % 2)
        self.core.foreground(active=self.active)
        if self.active:
            self._is_to_ask()

    def network(self, one: int, _other: int) -> None:
        self.online = bool(one % 3)
        self.core.network(online=self.online)
        if self.online:
            self._is_to_ask()

    def later(self, one: int, other: int) -> None:
        self.jitter = other % 11 / 10
        self.now += (0.1, 0.5, 2.0, 5.0, 60.0, 400.0)[one % 6]

    def consume(self, _one: int = 0, _other: int = 0) -> None:
        """The app takes in what it was told, and asks for the next."""
        if self.handed is not None:
            if not self.taken:
                self.record.told(self.handed)
                self.taken = True
            return
        change = self.record.untold()
        if change is None or self.record.changed:  # nothing follows from what is not stored
            return
        told = self.told.setdefault((self.session, change.key), [])
        if self.again is not None and (change.key, change.status) == (self.again.key, self.again.status):
            self.again = None
        else:
            assert str(change.status) not in told, f"a change is told twice: {told}"
            told.append(str(change.status))
        self._credible(change)
        self.handed = change

    def _credible(self, change: Change) -> None:
        told = self.told[self.session, change.key]
        if isinstance(change.status, SentStatus):
            ranks = [rank(SentStatus(status)) for status in told]
            assert ranks == sorted(set(ranks)), f"a status went back: {told}"
            if change.status is SentStatus.FAILED:
                self.failed[change.key] = change.reason or ""

    # --- What holds at every moment

    def check(self) -> None:
        account = self.gateway[self.account]
        for key, video in self.record.sent.items():
            before = self.statuses.get(key, video.status)
            assert rank(video.status) > rank(before) or video.status is before, f"{before} became {video.status}"
            self.statuses[key] = video.status
            self._true(account, key)
        deleted = [key for key, session in self.dropped.items() if session == self.session]
        dropped = {video_id for key in deleted for video_id in self.keys.get(key, [])}
        assert not dropped & {video.video_id for video in self.record.sent.values()}, "a deleted video is shown"
        for received in self.record.received.values():
            if received.status is ReceivedStatus.GONE:
                assert received.video_id not in account.incoming, "a video is gone that is there"

    def _true(self, account: Account, key: str) -> None:
        video = self.record.sent[key]
        if video.status in {SentStatus.QUEUED, SentStatus.FAILED}:
            return
        assert video.video_id in account.tracked, "a video is shown as sent that is not"
        if video.status is SentStatus.COMPLETE:
            assert video.video_id not in account.outgoing, "a video is complete that is in transit"
        else:
            reached = account.reached[video.video_id]
            assert Status(video.status) in reached, f"a video is shown as {video.status} that is not"

    # --- The end, when losses stop and time passes

    def settle(self) -> None:
        while self.strays:
            self._stray(self.strays.pop())
        for account in self.gateway.values():
            account.complete_uploads()
        if self.record.logged_out:
            self.log_in(0, 0)
        self.jitter = 0.5
        if not self.online:
            self.online = True
            self.core.network(online=True)
            self._is_to_ask()
        self._until_all_is_said()
        assert self.record.version >= self.known, "the gateway was not asked"
        if not self.active:
            self.core.pushed(None)
            self._is_to_ask()
            self._until_all_is_said()
        self._agree()
        self._rest()

    def _until_all_is_said(self) -> None:
        for _ in range(600):
            self._round()
            if not any(self._missing()):
                return
        raise AssertionError(f"it never happens: {list(self._missing())}")

    def _round(self) -> None:
        """Everything that can happen now happens, else time passes."""
        before = self.begun
        self.drive()
        for begun in list(self.running):
            if begun in self.running and not begun.answered:
                self.carry_out(begun)
            if begun.answered and begun in self.running:
                self.hand_over(begun)
        self.consume()
        self.check()
        if self.begun == before:
            at_s = self.core.next_s
            self.now = max(self.now, at_s) if at_s < math.inf else self.now + 50.0

    def _pass(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self._round()

    def _missing(self) -> Iterator[str]:
        record, account = self.record, self.gateway[self.account]
        if any(record.reports()) or any(video.delivery for video in record.sent.values()):
            yield "something is unsaid"
        if any(record.unanswered_deletions()):
            yield "something is not deleted"
        if record.farewells:
            yield "a log-out is not said"
        if record.registration is not None and record.registration.answered_s is None:
            yield "the registration is not said"
        if record.version < self.known or (self.active and record.version != account.version):
            yield "the last packet is missing"
        if any(account.acknowledged < account.news.get(key, 0) for key in record.received):
            yield "news is not acknowledged"
        if record.untold() is not None or self.handed is not None:
            yield "something is untold"
        if any(video.listed and not video.here and not video.viewed for video in record.received.values()):
            yield "a video is not fetched"

    def _agree(self) -> None:
        record, account = self.record, self.gateway[self.account]
        listed = {video.video_id: Status(video.status) for video in record.sent.values() if video.listed}
        assert listed == {key: status for key, (_, status) in account.outgoing.items()}
        received = {video.video_id: video.known for video in record.received.values() if video.listed}
        assert received == {key: status for key, (_, status) in account.incoming.items()}
        assert not record.deletions
        for client_id, video_id in self.viewed:
            assert video_id not in self.gateway[client_id].incoming, "a viewed video is not viewed"
        for key in self.dropped:
            for video_id in self.keys.get(key, []):
                assert not any(video_id in other.outgoing for other in self.gateway.values()), "a deletion was lost"
        for client_id in self.left:
            assert self.gateway[client_id].registered is None, "a log-out was lost"
        if self.registration is not None:
            assert account.registered == self.registration, "a registration was lost"
        for key in self.sent.keys() - self.dropped.keys():
            self._delivered(account, key)

    def _delivered(self, account: Account, key: str) -> None:
        """A video was sent once, or has failed, and the app was told."""
        ids = [video_id for video_id in self.keys.get(key, []) if video_id in account.tracked - account.deleted]
        told = self.told.get((self.sent[key], key), [])
        assert told, "nothing was told of a video"
        if key in self.failed:
            # One that was replaced as its confirmation got lost was sent, and nobody can tell.
            assert ids == [] or self.failed[key] == "superseded", "a video has failed that was sent"
            return
        assert len(ids) == 1, f"a video was sent {len(ids)} times"
        if ids[0] in account.outgoing:
            assert told[-1] == str(account.outgoing[ids[0]][1])
        else:
            assert SentStatus(told[-1]) in ENDS, f"the end of a video was not told: {told}"

    def _rest(self) -> None:
        """When there is nothing to do, nothing is done: no more than a poll is held and a socket tried."""
        self._pass(100)  # what is under way still ends first
        before = self.begun
        self._pass(400)
        assert self.begun - before <= (20 if self.active else 0), "the phone does not come to rest"


HAPPENINGS: tuple[Callable[[World, int, int], None], ...] = (
    *[World.drive] * 6,
    *[World.carry] * 5,
    *[World.answer] * 5,
    *[World.lose] * 2,
    World.stray,
    *[World.socket] * 2,
    World.push,
    *[World.peer] * 4,
    *[World.send] * 2,
    World.delete,
    World.view,
    World.register,
    World.log_out,
    World.log_in,
    World.foreground,
    World.network,
    *[World.later] * 2,
    *[World.consume] * 4,
    World.die,
    World.ghost,
)
KINDS = len(HAPPENINGS)


def run(schedule: list[Step]) -> None:
    world = World()
    for kind, one, other in schedule:
        HAPPENINGS[kind](world, one, other)
        world.check()
    world.settle()

"""What a good client does, and when: packets, answers and the time go in, what is to be done comes out. No I/O.

Whoever drives a `Core` tells it everything that happens, and after each thing asks `next` what is to be begun. The
record is stored first, if it has `changed`: then a device that is killed at any moment goes on where it was.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gateway.client.delivery import Step
from gateway.client.failures import LOST, Backoff, GatewayError, Remedy, SocketClosed
from gateway.client.messages import Announced, Outcome, Packet, Report, Result, Synced
from gateway.client.record import Record
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
    Op,
    Poll,
    Put,
    Register,
    Sync,
    Task,
    Tell,
)
from gateway.transit.state import ClientId, Status, VideoId

BACKOFF = Backoff(base_s=0.5, cap_s=60.0, deadline_s=math.inf)

MOST_UPLOADS = 2
"""Videos that are announced or uploaded at the same time, of one recipient only one: they are to arrive in order."""

MOST_DOWNLOADS = 2
"""Videos that are fetched at the same time."""

MOST_REPORTS = 256
"""Statuses in one sync."""

FEW_REPORTS = 16
"""So many statuses go by the socket; more are a sync, which is one message."""

SOCKET_FIRST_S = 2.0
"""How long a socket that is being opened may hold up what would else be a call."""

SOCKET_TRIES = 3
"""After so many sockets that got no answer from a gateway, where calls do, polls are held instead."""

POLLS_S = 300.0
"""For so long; then a socket is tried again."""

STEADY_S = 30.0
"""A socket that was open for so long is no reason to wait before the next one."""

HELD_S = 50
"""How long a poll is held."""

ACKNOWLEDGE_S = 2.0
"""How long news that came by a call may stay without an acknowledgement of its own: most often a status that
acknowledges it too is sent before."""

EXPECTED_S = 5.0
"""How long the packet that an answer speaks of may stay away from a socket before the gateway is asked for it: it may
have got lost on its way to the gateway's process."""

AGAIN_S = 86_400.0
"""A registration that the gateway answered longer ago than this is repeated when the app asks for it again."""

MOST_PAUSES = 1_000
"""So many things that failed are remembered; the oldest are tried again without a pause."""

UNREADABLE = "unreadable"
"""Why a video fails whose bytes are not as they were when it was to be sent."""


@dataclass(slots=True)
class _Pause:
    """After a failure: how many there were in a row, until when nothing is tried, and until when the gateway asked for
    that."""

    tries: int = 0
    until_s: float = 0.0
    asked_s: float = 0.0


@dataclass(slots=True)
class _Socket:
    """The socket and what there is instead of it."""

    task: Connect | None = None
    began_s: float = 0.0
    opened_s: float | None = None
    stopped: bool = False
    unanswered: int = 0
    unanswered_since_s: float = 0.0
    polls_until_s: float = 0.0

    @property
    def open(self) -> bool:
        return self.opened_s is not None


class Core:
    """Decides what a device does. `clock`: seconds, of any clock that does not go back. `jitter`: random numbers from 0
    to 1."""

    def __init__(
        self,
        record: Record,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
        backoff: Backoff = BACKOFF,
    ) -> None:
        self.record = record
        self.next_s = math.inf
        """When to ask `next` again at the latest, whatever happens till then."""
        self._jitter = jitter
        self._backoff = backoff
        self._clock = clock
        self._tasks: dict[Op, Task] = {}
        self._pauses: dict[Op, _Pause] = {}
        self._socket = _Socket()
        self._foreground = False
        self._online = True
        self._stale = True
        self._acked = 0
        self._news = 0
        self._acknowledge_at_s = math.inf
        self._doubted: set[VideoId] = set()
        self._expected = 0
        self._expected_at_s = math.inf
        self._called_s = -math.inf
        self._abandoned: list[Task] = []

    # --- What the phone and its user do. What the user does to videos is told to the record.

    def foreground(self, *, active: bool) -> None:
        """The app is in the foreground now, or is no more."""
        if active and not self._foreground:
            self._look_afresh()
            self._try_sockets()
        self._foreground = active

    def network(self, *, online: bool) -> None:
        """The phone has a network now, a new one perhaps, or has none."""
        self._give_up(("socket", ""))  # of a network that is gone
        self._give_up(("poll", ""))
        self._online = online
        if online:
            self._look_afresh()
            self._try_sockets()

    def pushed(self, packet: Packet | None) -> None:
        """A push arrived: with the packet or without, whoever gets one syncs. And there is a network."""
        self._online = True
        if packet is not None:
            self._apply(packet)
        self._look_afresh()

    def _try_sockets(self) -> None:
        """Whatever kept the app from holding a socket may be over."""
        self._socket.stopped = False
        self._socket.polls_until_s = 0.0

    def _look_afresh(self) -> None:
        """Ask the gateway soon, and try at once whatever waits after a failure, unless the gateway asked for that."""
        self._stale = True
        asked = {op: pause.asked_s for op, pause in self._pauses.items() if pause.asked_s > self._clock()}
        self._pauses = {op: _Pause(0, until_s, until_s) for op, until_s in asked.items()}

    @property
    def stale(self) -> bool:
        """Whether the gateway is to be asked, and has not been."""
        return self._stale

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way but what waits for news."""
        waits = math.isfinite(self._acknowledge_at_s) or (self._stale and self._ready(("sync", "")))
        return not waits and all(isinstance(task, Connect | Poll) for task in self._tasks.values())

    # --- What is to be done

    def next(self) -> list[Action]:
        """What to begin now, once the record is stored. All that is returned counts as begun."""
        self.next_s = math.inf
        actions: list[Action] = [Abandon(task) for task in self._unwanted()]
        if self._online:
            for task in self._wanted():
                self._tasks[task.op] = task
                actions.append(task)
            actions += self._acknowledgement()
        return actions

    def _unwanted(self) -> list[Task]:
        """What is under way, and of no use any more."""
        for task in list(self._tasks.values()):
            if not self._of_use(task):
                self._give_up(task.op)
        unwanted, self._abandoned = self._abandoned, []
        return unwanted

    def _of_use(self, task: Task) -> bool:
        record = self.record
        match task:
            case Leave():
                return True
            case _ if record.logged_out:
                return False
            case Connect():
                return self._foreground
            case Poll():
                return self._foreground or not task.wait_s
            case Announce() | Put():
                video = record.sent.get(task.key)
                return video is not None and video.delivery is not None
            case Download():
                received = record.received.get(task.video_id)
                return received is not None and received.listed and not received.here
            case _:
                # A registration too, though another has been asked for: two under way could overtake each other.
                return True

    def _wanted(self) -> Iterator[Task]:
        record = self.record
        if record.farewells:
            if self._ready(("leave", "")):
                yield Leave(record.farewells[0])
            if any(farewell.client_id == record.client_id for farewell in record.farewells):
                return  # what this client said when it left comes before what it says now
        if record.logged_out:
            return
        if self._foreground and not self._socket.stopped and self._due(self._socket.polls_until_s):
            yield from self._connect()
        yield from self._messages()
        yield from self._sends()
        for video_id, recipient_id in record.unanswered_deletions():
            if self._ready(("delete", video_id)):
                yield Delete(video_id, recipient_id)
        if (new := record.registration) is not None and new.answered_s is None and self._ready(("register", "")):
            yield Register(new)
        yield from self._downloads()

    def _connect(self) -> Iterator[Task]:
        if self._ready(("socket", "")):
            self._socket.task, self._socket.began_s = Connect(self.record.version), self._clock()
            yield self._socket.task

    def _messages(self) -> Iterator[Task]:
        if self._due(self._expected_at_s):
            self._expected_at_s, self._stale = math.inf, True
        reports = [report for report in self.record.reports() if self._sayable(report)]
        if self._socket.open and len(reports) <= FEW_REPORTS:
            yield from (Tell(report) for report in reports)
            reports = []
        wanted = bool(reports) or self._stale
        if wanted and self._ready(("sync", "")) and not self._socket_comes():
            self._stale = False
            yield Sync(tuple(reports[:MOST_REPORTS]), self.record.version)
        if self._polls and self._ready(("poll", "")):
            yield Poll(self.record.version, HELD_S)
        elif self._due(self._acknowledge_at_s) and self._ready(("poll", "")):
            yield Poll(self.record.version, 0)

    @property
    def _polls(self) -> bool:
        """Whether polls are held, since no socket gets through."""
        return self._foreground and (self._socket.stopped or self._clock() < self._socket.polls_until_s)

    def _sayable(self, report: Report) -> bool:
        """Whether to send this now: it is not on its way, nor waits after a failure, nor are its bytes being sent."""
        if any(report in task.reports for task in self._tasks.values() if isinstance(task, Sync)):
            return False
        if report.status is Status.UPLOADED:
            video = self.record.sent_as(report.video_id)
            if video is None or ("send", video.key) in self._tasks:
                return False
        return self._ready(("tell", report.video_id))

    def _socket_comes(self) -> bool:
        """Whether a socket is about to be open, which then brings what a call would."""
        socket = self._socket
        return socket.task is not None and not socket.open and not self._due(socket.began_s + SOCKET_FIRST_S)

    def _sends(self) -> Iterator[Task]:
        recipients: set[ClientId] = set()
        room = MOST_UPLOADS - sum(isinstance(task, Announce | Put) for task in self._tasks.values())
        for video in list(self.record.sent.values()):
            delivery = video.delivery
            if delivery is None or video.recipient_id in recipients:
                continue
            recipients.add(video.recipient_id)
            if room > 0 and delivery.step is not Step.CONFIRM and self._ready(("send", video.key)):
                room -= 1
                if delivery.step is Step.ANNOUNCE:
                    yield Announce(video.key, video.recipient_id, delivery)
                elif video.video_id is not None and delivery.upload is not None:
                    self.record.put_sent(replace(video, delivery=delivery.uploading()))
                    announced = Announced(video.video_id, video.recipient_id, delivery.size, delivery.upload)
                    yield Put(video.key, delivery.source, announced)

    def _downloads(self) -> Iterator[Task]:
        room = MOST_DOWNLOADS - sum(isinstance(task, Download) for task in self._tasks.values())
        for received in self.record.received.values():
            new = received.listed and not received.here and not received.viewed
            if received.video_id in self._doubted:
                continue
            if new and room > 0 and self._ready(("download", received.video_id)):
                room -= 1
                yield Download(received.video_id)

    def _acknowledgement(self) -> list[Action]:
        version = self.record.version
        if not self._socket.open or version <= self._acked:
            return []
        self._has_acked(version)
        return [Acknowledge(version)]

    def _ready(self, op: Op) -> bool:
        """Whether to begin with this: it is not under way, and waits for nothing."""
        if op in self._tasks:
            return False
        pause = self._pauses.get(op)
        return pause is None or self._due(pause.until_s)

    def _due(self, at_s: float) -> bool:
        """Whether that time has come; if not, it is thought of."""
        if self._clock() < at_s:
            self.next_s = min(self.next_s, at_s)
            return False
        return True

    # --- What became of it

    def opened(self, task: Connect) -> None:
        """The socket is open."""
        if self._tasks.get(task.op) is task:
            self._socket.opened_s = self._clock()
            self._has_acked(task.version)
            # A packet comes, if there is a newer one. Where there is none, nobody has said what became of refused
            # downloads.
            self._stale = bool(self._doubted)

    def came(self, task: Connect, packet: Packet) -> None:
        """A packet came over the socket."""
        if self._tasks.get(task.op) is task:
            self._apply(packet)

    def answered(self, task: Task, answer: Answer) -> None:
        """A task went well, and this is what came of it."""
        if not self._ended(task):
            return
        self._pauses.pop(task.op, None)
        if not isinstance(task, Put | Download):
            self._called_s = self._clock()
        match task, answer:
            case Sync(), Synced():
                self._doubted.clear()
                self._synced(task, answer)
                self._has_acked(task.version)
            case Poll(), _:
                if isinstance(answer, Packet):
                    self._apply(answer)
                self._has_acked(task.version)
            case Tell(), Result():
                self._expect(answer.version)
                self.record.answered(task.report, answer)
            case Announce(), Announced():
                self.record.announced(task.key, answer.video_id, answer.upload)
            case Delete(), Result():
                self._expect(answer.version)
                self.record.deleted(task.video_id, answer.version)
            case Download(), _:
                self.record.arrived(task.video_id)
            case Leave(), _:
                self.record.left(task.farewell)

    def registered(self, task: Register, at_s: float) -> None:
        """The gateway has taken the registration. `at_s`: seconds since the epoch."""
        if self._ended(task):
            self._pauses.pop(task.op, None)
            self._called_s = self._clock()
            self.record.registered(task.registration, at_s)

    def failed(self, task: Task, error: Exception) -> None:
        """A task failed. What is no GatewayError is a fault of this phone: a file that cannot be read, a full disk."""
        if not self._ended(task):
            return
        known = error if isinstance(error, GatewayError) else GatewayError(None, None, type(error).__name__)
        self._pause(task.op, known.retry_after_s)
        match task:
            case Sync():
                self._stale = True
            case Connect():
                self._stale = True
                self._no_socket(answered=known.code is not None)
            case Tell():
                self._not_told(task.report, known)
            case Put():
                self._not_put(task, error)
            case Download() if known.remedy is Remedy.POLL:
                self._doubted.add(task.video_id)
                self._stale = True
            case Leave() if known.remedy is Remedy.RENEW:
                self.record.left(task.farewell)  # there is no other token to try it with
            case Announce() | Delete() | Register() | Leave() if known.remedy is Remedy.NONE:
                self._refused(task, str(known.code))

    def _refused(self, task: Announce | Delete | Register | Leave, code: str) -> None:
        """The same again would be refused again; something else need not wait for it."""
        self._pauses.pop(task.op, None)
        match task:
            case Announce():
                self.record.fail(task.key, code)
            case Delete():
                self.record.deleted(task.video_id, self.record.version)
            case Register() if self.record.registration is task.registration:
                self.record.register(None)
            case Leave():
                self.record.left(task.farewell)

    def closed(self, task: Connect, closed: SocketClosed) -> None:
        """The socket was open, and has ended."""
        opened_s = self._socket.opened_s
        if not self._ended(task):
            return
        steady = opened_s is not None and self._clock() - opened_s >= STEADY_S
        if steady:
            self._pauses.pop(task.op, None)
        self._no_socket(answered=steady or closed.code != LOST)
        if closed.remedy is Remedy.NONE:
            # A client that is to be mended can still ask. So can one whose socket was displaced: by another app that
            # says it is this device, or by a socket of its own that it gave up long ago and that was opened late.
            self._socket.stopped = True
        elif closed.retry_s is not None:
            until_s = self._clock() + closed.retry_s
            self._pauses[task.op] = _Pause(0, until_s, until_s)
        else:
            self._pause(task.op, None)

    def _ended(self, task: Task) -> bool:
        """Take note that a task has ended; whether anybody still wants to know."""
        if self._tasks.get(task.op) is not task:
            return False
        self._drop(task.op)
        return True

    def _drop(self, op: Op) -> None:
        del self._tasks[op]
        if op == ("socket", ""):
            self._socket.task = self._socket.opened_s = None

    def _give_up(self, op: Op) -> None:
        if (task := self._tasks.get(op)) is not None:
            self._drop(op)
            self._abandoned.append(task)

    def _pause(self, op: Op, retry_after_s: float | None) -> None:
        if len(self._pauses) >= MOST_PAUSES:
            del self._pauses[next(iter(self._pauses))]
        pause = self._pauses.setdefault(op, _Pause())
        pause.tries += 1
        pause.asked_s = self._clock() + (retry_after_s or 0.0)
        pause.until_s = self._clock() + self._backoff.pause_s(pause.tries, retry_after_s, jitter=self._jitter())

    def _has_acked(self, version: int) -> None:
        self._acked = max(self._acked, version)
        if self._acked >= self._news:
            self._acknowledge_at_s = math.inf

    def _expect(self, version: int) -> None:
        """There is a packet of that version."""
        self._expected = max(self._expected, version)
        if self._expected > self.record.version:
            self._expected_at_s = min(self._expected_at_s, self._clock() + EXPECTED_S)

    def _apply(self, packet: Packet) -> None:
        before = self.record.version
        if not self.record.apply(packet):
            return
        if self.record.version >= self._expected:
            self._expected_at_s = math.inf
        new = any(video.listed and video.known is Status.UPLOADED for video in self.record.received.values())
        if new and self.record.version > before and not self._socket.open:
            self._news = self.record.version
            self._acknowledge_at_s = min(self._acknowledge_at_s, self._clock() + ACKNOWLEDGE_S)

    def _synced(self, task: Sync, synced: Synced) -> None:
        for report, result in zip(task.reports, synced.results, strict=True):
            if result.outcome is Outcome.FAILED:
                error = result.error or GatewayError(None, None, "it failed")
                self._pause(("tell", report.video_id), error.retry_after_s)
                self._not_told(report, error)
            else:
                self._pauses.pop(("tell", report.video_id), None)
                self.record.answered(report, result)
        self._apply(synced.packet)

    def _not_told(self, report: Report, error: GatewayError) -> None:
        if error.remedy is Remedy.UPLOAD:
            video = self.record.sent_as(report.video_id)
            if video is not None and video.delivery is not None:
                self.record.put_sent(replace(video, delivery=video.delivery.not_stored()))
        elif error.remedy is Remedy.NONE:
            self.record.refused(report, str(error.code))

    def _not_put(self, task: Put, error: Exception) -> None:
        video = self.record.sent.get(task.key)
        if video is None or video.delivery is None:
            return
        if not isinstance(error, GatewayError):
            self.record.fail(task.key, UNREADABLE)
        elif error.remedy is Remedy.ANNOUNCE:
            self.record.announce_anew(task.key)
        else:
            self.record.put_sent(replace(video, delivery=video.delivery.not_uploaded(error)))

    def _no_socket(self, *, answered: bool) -> None:
        """A socket could not be opened, or has ended. Where again and again no gateway says why, though calls are
        answered, something on the way lets none through."""
        socket = self._socket
        if answered:
            socket.unanswered = 0
            return
        if socket.unanswered == 0:
            socket.unanswered_since_s = self._clock()
        socket.unanswered += 1
        if socket.unanswered >= SOCKET_TRIES and self._called_s >= socket.unanswered_since_s:
            socket.unanswered = 0
            socket.polls_until_s = self._clock() + POLLS_S

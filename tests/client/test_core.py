"""What a good client does, and when: plain sentences, with a clock that is moved by hand and jitter that is known."""

import math
from typing import TypeVar

import pytest

from gateway.client import (
    Core,
    DownloadError,
    GatewayError,
    Outcome,
    Packet,
    Record,
    Report,
    Result,
    SentStatus,
    SocketClosed,
    Synced,
    Upload,
    UploadError,
)
from gateway.client.core import (
    ACKNOWLEDGE_S,
    EXPECTED_S,
    FEW_REPORTS,
    HELD_S,
    MOST_DOWNLOADS,
    MOST_PAUSES,
    MOST_REPORTS,
    POLLS_S,
    SOCKET_FIRST_S,
    SOCKET_TRIES,
    STEADY_S,
)
from gateway.client.delivery import Delivery, Step
from gateway.client.messages import Announced, Incoming, Outgoing
from gateway.client.record import Deletion, Registration
from gateway.client.tasks import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
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
from gateway.live.closing import CloseCode
from gateway.transit.state import ClientId, DeviceId, Status, VideoId

T = TypeVar("T")

ALICE, BOB, CAROL = ClientId("alice"), ClientId("bob"), ClientId("carol")
ONE, TWO, THREE = (VideoId(f"0199c0de-0000-7000-8000-00000000000{number}") for number in (1, 2, 3))
UPLOAD = Upload("PUT", "https://store.test/one", {}, 99)
LOST = GatewayError(None, None, "ConnectError")
FIX_THE_CLIENT = {code for code in CloseCode if code.then == "fix the client"}


class Phone:
    """A core, its clock, and what it has begun. `jitter`: what it is to draw."""

    def __init__(self, *, foreground: bool = False, jitter: float = 1.0, record: Record | None = None) -> None:
        self.now = 1000.0
        self.jitter = jitter
        self.record = record or Record(ALICE, DeviceId("phone"))
        self.core = Core(self.record, clock=lambda: self.now, jitter=lambda: self.jitter)
        self.core.foreground(active=foreground)

    def next(self) -> list[Action]:
        return self.core.next()

    def one(self, kind: type[T]) -> T:
        """The only thing that is begun now."""
        [action] = self.next()
        assert isinstance(action, kind), action
        return action

    def of(self, kind: type[T]) -> list[T]:
        """What of this kind is begun now."""
        return [action for action in self.next() if isinstance(action, kind)]

    def idle(self) -> bool:
        return self.next() == []

    def later(self, seconds: float) -> None:
        self.now += seconds

    def waits_for(self) -> float:
        """How long nothing is begun, whatever the time; the core knows it."""
        assert self.idle()
        wait_s = self.core.next_s - self.now
        assert wait_s > 0
        self.later(wait_s * 0.99)
        assert self.idle()
        self.later(wait_s * 0.01 + 1e-6)
        return wait_s

    def synced(self, *, version: int = 10) -> "Phone":
        """It has asked the gateway once, which had nothing."""
        self.core.answered(self.one(Sync), Synced((), packet(version)))
        return self

    def connected(self, *, version: int = 10) -> Connect:
        """It holds a socket, over which a packet came."""
        task = self.one(Connect)
        self.core.opened(task)
        self.core.came(task, packet(version))
        self.next()
        return task

    def send(self, key: str, recipient_id: ClientId = BOB) -> None:
        self.record.send(key, recipient_id, Delivery(f"/videos/{key}", 9, "video/mp4", "5a"))

    def uploading(self, key: str = "key", video_id: VideoId = ONE) -> Put:
        """A video that is being uploaded."""
        self.send(key)
        [announce] = self.of(Announce)
        self.core.answered(announce, announced(video_id))
        [put] = self.of(Put)
        return put

    def status(self, key: str = "key") -> str:
        return str(self.record.sent[key].status)


def reachable(*, jitter: float = 1.0) -> Phone:
    """In the background, and it knows all there is."""
    return Phone(jitter=jitter).synced()


def packet(version: int, *entries: Outgoing | Incoming) -> Packet:
    outgoing = tuple(entry for entry in entries if isinstance(entry, Outgoing))
    incoming = tuple(entry for entry in entries if isinstance(entry, Incoming))
    return Packet(ALICE, version, outgoing, incoming, b"")


def came(video_id: VideoId, status: Status = Status.UPLOADED) -> Incoming:
    return Incoming(video_id, CAROL, status, "/v1/videos/x/content", 9, "video/mp4", 5)


def out(video_id: VideoId, status: Status = Status.UPLOADED) -> Outgoing:
    return Outgoing(video_id, BOB, status, 5)


def numbered(number: int) -> VideoId:
    return VideoId(f"0199c0de-0000-7000-8000-{number:012}")


def announced(video_id: VideoId = ONE) -> Announced:
    return Announced(video_id, BOB, 9, UPLOAD)


def result(version: int = 12, outcome: Outcome = Outcome.APPLIED, reason: str | None = None) -> Result:
    return Result(ONE, outcome, version, reason)


def failed(status: int, code: str, retry_after_s: float | None = None) -> Result:
    return Result(ONE, Outcome.FAILED, 0, error=GatewayError(status, code, "so it is", retry_after_s))


def said(task: Sync) -> list[tuple[str, Status]]:
    return [(report.video_id, report.status) for report in task.reports]


# --- In the background


def test_a_start_in_the_background_is_one_sync_and_nothing_else() -> None:
    phone = Phone()
    task = phone.one(Sync)
    assert (task.reports, task.version) == ((), 0)
    assert phone.idle()
    phone.core.answered(task, Synced((), packet(10)))
    assert phone.idle()
    assert phone.core.next_s == math.inf
    assert phone.core.quiet


def test_what_is_unsaid_at_the_start_goes_with_that_sync() -> None:
    record = Record(ALICE, DeviceId("phone"))
    record.apply(packet(7, came(ONE), came(TWO)))
    record.arrived(ONE)
    record.viewed(TWO)
    phone = Phone(record=record)
    task = phone.of(Sync)[0]
    assert said(task) == [(ONE, Status.DOWNLOADED), (TWO, Status.VIEWED)]
    assert task.version == 7


def test_a_push_without_a_packet_is_a_sync_with_the_version_that_it_has() -> None:
    phone = reachable()
    phone.core.pushed(None)
    assert not phone.core.quiet
    assert phone.one(Sync).version == 10


def test_a_push_with_a_packet_is_a_sync_with_the_version_that_it_then_has() -> None:
    phone = reachable()
    phone.core.pushed(packet(11, came(ONE)))
    sync, download = phone.next()
    assert isinstance(sync, Sync)
    assert (sync.version, download) == (11, Download(ONE))


def test_a_push_while_a_sync_is_under_way_is_another_one_after_it() -> None:
    phone = Phone()
    task = phone.one(Sync)
    phone.core.pushed(packet(8))
    assert phone.idle()
    phone.core.answered(task, Synced((), packet(9)))
    assert phone.one(Sync).version == 9


@pytest.mark.parametrize("kind", ["old", "of another"])
def test_the_packet_of_a_push_that_does_not_count_is_dropped_but_the_push_is_not(kind: str) -> None:
    phone = reachable()
    dropped = packet(9, came(ONE)) if kind == "old" else Packet(BOB, 99, (), (came(ONE),), b"")
    phone.core.pushed(dropped)
    assert phone.one(Sync).version == 10


def test_a_sync_that_failed_is_repeated_with_what_is_unsaid_then() -> None:
    phone = Phone()
    phone.core.failed(phone.one(Sync), LOST)
    assert phone.waits_for() == pytest.approx(0.5)
    assert phone.one(Sync).reports == ()


# --- Backoff


def test_pauses_are_full_jitter_that_doubles_up_to_the_cap() -> None:
    phone = Phone()
    for wait_s in (0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60):
        phone.core.failed(phone.one(Sync), LOST)
        assert phone.waits_for() == pytest.approx(wait_s)


def test_jitter_goes_down_to_nothing() -> None:
    phone = Phone(jitter=0.0)
    for _ in range(5):
        phone.core.failed(phone.one(Sync), LOST)
    phone.jitter = 0.25
    phone.core.failed(phone.one(Sync), LOST)
    assert phone.waits_for() == pytest.approx(4)


def test_a_success_ends_the_row() -> None:
    phone = Phone()
    for _ in range(5):
        phone.core.failed(phone.one(Sync), LOST)
        phone.waits_for()
    phone.synced()
    phone.core.pushed(None)
    phone.core.failed(phone.one(Sync), LOST)
    assert phone.waits_for() == pytest.approx(0.5)


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "unavailable"), (503, None)])
def test_what_the_gateway_asks_for_is_waited_and_the_jitter_besides(status: int, code: str | None) -> None:
    phone = Phone()
    phone.core.failed(phone.one(Sync), GatewayError(status, code, "too much", 30.0))
    assert phone.waits_for() == pytest.approx(30.5)


def test_what_failed_is_not_forgotten_without_a_bound() -> None:
    phone = reachable()
    for number in range(MOST_PAUSES + 10):
        phone.record.deletions[numbered(number)] = _deletion()
    tasks = phone.of(Delete)
    assert len(tasks) == MOST_PAUSES + 10
    for task in tasks:
        phone.core.failed(task, LOST)
    assert len(phone.of(Delete)) == 10


def _deletion() -> Deletion:
    return Deletion(BOB)


# --- The socket


def test_the_foreground_opens_a_socket_and_syncs_not_where_that_opens_in_time() -> None:
    phone = Phone(foreground=True)
    task = phone.one(Connect)
    assert task.version == 0
    phone.later(SOCKET_FIRST_S - 0.1)
    assert phone.idle()
    phone.core.opened(task)
    phone.later(10)
    assert phone.idle()
    phone.core.came(task, packet(10))
    assert phone.one(Acknowledge) == Acknowledge(10)
    assert phone.idle()


def test_the_foreground_syncs_where_the_socket_takes_longer() -> None:
    phone = Phone(foreground=True)
    phone.one(Connect)
    assert phone.waits_for() == pytest.approx(SOCKET_FIRST_S)
    phone.one(Sync)
    assert phone.idle()


def test_the_foreground_syncs_where_the_socket_fails() -> None:
    phone = Phone(foreground=True)
    phone.core.failed(phone.one(Connect), LOST)
    phone.one(Sync)


def test_a_socket_says_which_version_is_applied() -> None:
    record = Record(ALICE, DeviceId("phone"))
    record.apply(packet(7))
    phone = Phone(record=record, foreground=True)
    task = phone.one(Connect)
    assert task.version == 7
    phone.core.opened(task)
    assert phone.idle()


def test_what_came_by_another_way_while_the_socket_opened_is_acknowledged_over_it() -> None:
    phone = Phone(foreground=True)
    task = phone.one(Connect)
    phone.later(SOCKET_FIRST_S)
    phone.core.answered(phone.one(Sync), Synced((), packet(10)))
    phone.core.opened(task)
    assert phone.one(Acknowledge) == Acknowledge(10)


def test_an_app_that_leaves_the_foreground_gives_its_socket_up() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.foreground(active=False)
    assert phone.one(Abandon) == Abandon(task)
    assert phone.idle()
    phone.core.foreground(active=True)
    assert phone.one(Connect).version == 10


def test_being_told_of_the_foreground_twice_is_nothing_new() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    phone.core.foreground(active=True)
    assert phone.idle()


BACKED_OFF = sorted(set(CloseCode) - FIX_THE_CLIENT - {CloseCode.DISPLACED, CloseCode.RESTART})


@pytest.mark.parametrize("code", [*BACKED_OFF, 1006, 3000, 4999])
def test_a_socket_that_ends_is_opened_again_after_a_pause_of_jitter(code: int) -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.closed(task, SocketClosed(code, ""))
    assert phone.waits_for() == pytest.approx(0.5)
    again = phone.one(Connect)
    assert again.version == 10


@pytest.mark.parametrize("code", BACKED_OFF)
def test_sockets_that_end_at_once_again_and_again_are_backed_off(code: int) -> None:
    phone = Phone(foreground=True)
    for wait_s in (0.5, 1, 2, 4):
        phone.core.closed(phone.connected(), SocketClosed(code, ""))
        assert phone.waits_for() == pytest.approx(wait_s)


def test_a_socket_that_was_open_for_long_ends_the_row() -> None:
    phone = Phone(foreground=True)
    for _ in range(4):
        phone.core.closed(phone.connected(), SocketClosed(1011, ""))
        phone.waits_for()
    task = phone.connected()
    phone.later(STEADY_S)
    phone.core.closed(task, SocketClosed(1011, ""))
    assert phone.waits_for() == pytest.approx(0.5)


def test_a_gateway_that_restarts_is_met_when_it_says() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.closed(task, SocketClosed(1012, '{"retry_ms":7250}'))
    assert phone.waits_for() == pytest.approx(7.25)
    phone.one(Connect)


def test_a_gateway_that_restarts_and_does_not_say_when_is_backed_off() -> None:
    phone = Phone(foreground=True)
    phone.core.closed(phone.connected(), SocketClosed(1012, ""))
    assert phone.waits_for() == pytest.approx(0.5)


def test_what_is_said_while_the_gateway_restarts_is_a_call() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.closed(task, SocketClosed(1012, '{"retry_ms":7250}'))
    phone.record.apply(packet(11, came(ONE)))
    phone.record.arrived(ONE)
    assert said(phone.of(Sync)[0]) == [(ONE, Status.DOWNLOADED)]


@pytest.mark.parametrize("code", sorted({*FIX_THE_CLIENT, CloseCode.DISPLACED}))
def test_after_a_code_that_forbids_it_no_socket_is_opened_until_the_app_comes_back(code: int) -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.closed(task, SocketClosed(code, ""))
    for _ in range(5):
        assert phone.of(Connect) == []
        phone.later(1000)
    phone.core.foreground(active=False)
    assert phone.of(Connect) == []
    phone.core.foreground(active=True)
    assert len(phone.of(Connect)) == 1


@pytest.mark.parametrize("code", sorted({*FIX_THE_CLIENT, CloseCode.DISPLACED}))
def test_where_no_socket_may_be_opened_polls_are_held(code: int) -> None:
    phone = Phone(foreground=True)
    phone.core.closed(phone.connected(), SocketClosed(code, ""))
    [poll] = phone.of(Poll)
    assert poll == Poll(10, HELD_S)
    phone.core.answered(poll, packet(11))
    assert phone.of(Poll) == [Poll(11, HELD_S)]


def test_a_refused_handshake_is_repeated_later_as_it_says() -> None:
    phone = Phone(foreground=True)
    phone.core.failed(phone.one(Connect), GatewayError(503, "unavailable", "too many connections", 20.0))
    phone.synced()
    assert phone.waits_for() == pytest.approx(20.5)
    phone.one(Connect)


# --- Held polls


def unreachable_by_socket(*, called: bool = True) -> Phone:
    """A phone whose sockets were tried as often as it takes, where calls go well or do not."""
    phone = Phone(foreground=True)
    for tried in range(SOCKET_TRIES):
        phone.later(60 if tried else 0)
        phone.core.failed(phone.one(Connect), LOST)
        for sync in phone.of(Sync) if tried < SOCKET_TRIES - 1 else ():
            if called:
                phone.core.answered(sync, Synced((), packet(10)))
            else:
                phone.core.failed(sync, LOST)
    return phone


def test_polls_are_held_where_sockets_get_no_answer_and_calls_do() -> None:
    phone = unreachable_by_socket()
    [poll] = phone.of(Poll)
    assert poll == Poll(10, HELD_S)
    phone.core.answered(poll, None)
    assert phone.of(Poll) == [Poll(10, HELD_S)]


def test_no_poll_is_held_where_calls_get_no_answer_either() -> None:
    phone = unreachable_by_socket(called=False)
    assert phone.of(Poll) == []
    phone.later(60)
    assert phone.of(Poll) == []


def test_no_poll_is_held_where_the_gateway_itself_refuses_sockets() -> None:
    phone = Phone(foreground=True)
    for _ in range(2 * SOCKET_TRIES):
        for action in phone.next():
            if isinstance(action, Connect):
                phone.core.failed(action, GatewayError(503, "unavailable", "too many"))
            elif isinstance(action, Sync):
                phone.core.answered(action, Synced((), packet(10)))
        assert phone.of(Poll) == []
        phone.later(60)


def test_a_socket_that_is_cut_at_once_every_time_counts_as_one_without_an_answer() -> None:
    phone = Phone(foreground=True)
    for tried in range(SOCKET_TRIES):
        phone.later(60 if tried else 0)
        task = phone.one(Connect)
        phone.core.opened(task)
        phone.core.closed(task, SocketClosed(1006, ""))
        if tried == 0:
            phone.record.deletions[ONE] = Deletion(BOB)
            phone.core.answered(phone.one(Delete), result(0))  # a call that goes well
    assert phone.of(Poll) == [Poll(0, HELD_S)]


def test_a_socket_is_tried_again_after_a_while_of_polls() -> None:
    phone = unreachable_by_socket()
    phone.of(Poll)
    assert phone.waits_for() == pytest.approx(POLLS_S)
    task = phone.one(Connect)
    phone.core.opened(task)
    assert phone.idle()


def test_polls_are_not_held_in_the_background() -> None:
    phone = unreachable_by_socket()
    [poll] = phone.of(Poll)
    phone.core.foreground(active=False)
    assert phone.one(Abandon) == Abandon(poll)
    assert phone.idle()


def test_a_poll_that_failed_is_backed_off() -> None:
    phone = unreachable_by_socket()
    for wait_s in (0.5, 1.0):
        [poll] = phone.of(Poll)
        phone.core.failed(poll, LOST)
        assert phone.of(Poll) == []
        phone.later(wait_s)


def test_another_network_is_a_reason_to_try_a_socket_again() -> None:
    phone = unreachable_by_socket()
    phone.of(Poll)
    phone.core.network(online=True)
    assert len(phone.of(Connect)) == 1


# --- What is said, and how


def receiving(phone: Phone, count: int) -> None:
    """So many videos have come and been fetched."""
    phone.record.apply(packet(11, *(came(numbered(number)) for number in range(1, count + 1))))
    for video_id in list(phone.record.received):
        phone.record.arrived(video_id)


def test_a_few_statuses_go_by_the_socket() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    receiving(phone, FEW_REPORTS)
    actions = phone.next()
    tells = [action for action in actions if isinstance(action, Tell)]
    assert len(tells) == FEW_REPORTS
    assert not any(isinstance(action, Sync) for action in actions)
    assert phone.idle()  # each is under way
    for task in tells:
        phone.core.answered(task, result(12))
    assert phone.idle()


def test_many_statuses_are_one_sync() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    receiving(phone, FEW_REPORTS + 1)
    actions = phone.next()
    assert not any(isinstance(action, Tell) for action in actions)
    [sync] = [action for action in actions if isinstance(action, Sync)]
    assert len(sync.reports) == FEW_REPORTS + 1


def test_a_sync_has_as_many_statuses_as_it_may_and_the_rest_follow() -> None:
    phone = reachable()
    receiving(phone, MOST_REPORTS + 5)
    [first] = phone.of(Sync)
    assert len(first.reports) == MOST_REPORTS
    phone.core.answered(first, Synced(tuple(result(12) for _ in first.reports), packet(11, *_listed(phone))))
    [second] = phone.of(Sync)
    assert len(second.reports) == 5
    assert not set(second.reports) & set(first.reports)


def _listed(phone: Phone) -> list[Incoming]:
    return [came(video_id) for video_id in phone.record.received]


def test_a_status_that_was_told_over_a_socket_that_ended_is_said_again() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    receiving(phone, 1)
    [tell] = phone.of(Tell)
    phone.core.closed(task, SocketClosed(1006, ""))
    phone.core.failed(tell, LOST)
    phone.next()
    phone.later(0.5)
    actions = phone.next()
    [sync] = [action for action in actions if isinstance(action, Sync)] or phone.of(Sync) or _after_the_socket(phone)
    assert said(sync) == [(numbered(1), Status.DOWNLOADED)]


def _after_the_socket(phone: Phone) -> list[Sync]:
    """A socket that is being opened holds up what would be a call."""
    phone.later(SOCKET_FIRST_S)
    return phone.of(Sync)


def test_a_later_status_waits_for_the_answer_to_the_one_before() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    receiving(phone, 1)
    [first] = phone.of(Tell)
    phone.record.viewed(numbered(1))
    assert phone.of(Tell) == []
    phone.core.answered(first, result(12))
    assert [task.report.status for task in phone.of(Tell)] == [Status.VIEWED]


def test_a_status_that_fails_in_a_sync_waits_by_itself() -> None:
    phone = reachable()
    receiving(phone, 2)
    [sync] = phone.of(Sync)
    phone.core.answered(sync, Synced((failed(503, "unavailable", 10.0), result(12)), packet(11, *_listed(phone))))
    assert phone.waits_for() == pytest.approx(10.5)
    [again] = phone.of(Sync)
    assert said(again) == [(numbered(1), Status.DOWNLOADED)]


def test_a_status_that_is_refused_in_a_sync_is_done() -> None:
    phone = reachable()
    receiving(phone, 1)
    phone.record.viewed(numbered(1))
    [sync] = phone.of(Sync)
    phone.core.answered(sync, Synced((failed(422, "invalid"),), packet(11)))
    assert phone.idle()
    assert not phone.record.received


def test_a_status_that_is_refused_in_a_sync_is_not_said_again_because_of_the_packet_in_the_same_answer() -> None:
    phone = reachable()
    receiving(phone, 1)
    [sync] = phone.of(Sync)
    phone.core.answered(sync, Synced((failed(422, "invalid"),), packet(12, came(numbered(1)))))
    phone.later(60)
    assert phone.of(Sync) == []


def test_a_status_that_is_refused_over_the_socket_is_done() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    receiving(phone, 1)
    [tell] = phone.of(Tell)
    phone.core.failed(tell, GatewayError(422, "invalid", "so it is"))
    assert phone.idle()


# --- Acknowledgements


def test_a_packet_that_came_over_the_socket_is_acknowledged_over_it_once() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.came(task, packet(11, came(ONE)))
    assert phone.of(Acknowledge) == [Acknowledge(11)]
    phone.core.came(task, packet(11, came(ONE)))
    phone.core.came(task, packet(10))
    assert phone.of(Acknowledge) == []


def test_of_two_packets_the_newer_is_acknowledged() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    phone.core.came(task, packet(11))
    phone.core.came(task, packet(12))
    assert phone.of(Acknowledge) == [Acknowledge(12)]


def test_news_that_came_by_a_call_is_acknowledged_by_the_next_call() -> None:
    phone = reachable()
    phone.core.pushed(None)
    phone.core.answered(phone.one(Sync), Synced((), packet(11, came(ONE))))
    download = phone.one(Download)
    phone.later(ACKNOWLEDGE_S / 2)
    phone.core.answered(download, None)
    sync = phone.one(Sync)
    assert (said(sync), sync.version) == ([(ONE, Status.DOWNLOADED)], 11)
    phone.core.answered(sync, Synced((result(12),), packet(12, came(ONE, Status.DOWNLOADED))))
    phone.later(ACKNOWLEDGE_S)
    assert phone.idle()
    assert phone.core.quiet


def test_news_that_came_by_a_call_is_acknowledged_by_a_poll_where_no_call_follows_soon() -> None:
    phone = reachable()
    phone.core.pushed(None)
    phone.core.answered(phone.one(Sync), Synced((), packet(11, came(ONE))))
    phone.one(Download)
    assert not phone.core.quiet
    assert phone.waits_for() == pytest.approx(ACKNOWLEDGE_S)
    poll = phone.one(Poll)
    assert poll == Poll(11, 0)
    phone.core.answered(poll, None)
    assert phone.idle()
    assert phone.core.next_s == math.inf


@pytest.mark.parametrize("entries", [[], [came(ONE, Status.DOWNLOADED)], [out(ONE, Status.NOTIFIED)]])
def test_what_is_no_news_needs_no_acknowledgement_of_its_own(entries: list[Outgoing | Incoming]) -> None:
    phone = reachable()
    phone.core.pushed(None)
    phone.core.answered(phone.one(Sync), Synced((), packet(11, *entries)))
    phone.next()
    phone.later(ACKNOWLEDGE_S)
    assert phone.idle()


def test_a_call_that_began_before_does_not_count_as_the_acknowledgement() -> None:
    phone = Phone()
    task = phone.one(Sync)
    phone.core.pushed(packet(11, came(ONE)))
    phone.core.answered(task, Synced((), packet(10)))
    assert phone.of(Sync)[0].version == 11


def test_a_packet_that_an_answer_spoke_of_and_that_does_not_come_is_asked_for() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    receiving(phone, 1)
    [tell] = phone.of(Tell)
    phone.core.answered(tell, result(12))
    assert phone.waits_for() == pytest.approx(EXPECTED_S)
    phone.one(Sync)


def test_a_packet_that_an_answer_spoke_of_and_that_comes_is_enough() -> None:
    phone = Phone(foreground=True)
    task = phone.connected()
    receiving(phone, 1)
    [tell] = phone.of(Tell)
    phone.core.answered(tell, result(12))
    phone.core.came(task, packet(12, came(numbered(1), Status.DOWNLOADED)))
    phone.next()
    phone.later(EXPECTED_S)
    assert phone.idle()


# --- Uploads


def test_a_video_is_announced_uploaded_and_confirmed_and_each_step_is_remembered_before_it_is_taken() -> None:
    phone = reachable()
    phone.send("key")
    announce = phone.one(Announce)
    assert (announce.key, announce.recipient_id, announce.delivery.sha256) == ("key", BOB, "5a")
    phone.core.answered(announce, announced())
    assert step_of(phone) is Step.UPLOAD
    put = phone.one(Put)
    assert (put.source, put.announced) == ("/videos/key", announced())
    assert step_of(phone) is Step.CONFIRM
    assert phone.idle()  # nothing is confirmed while the bytes go
    phone.core.answered(put, None)
    sync = phone.one(Sync)
    assert sync.reports == (Report(ONE, Status.UPLOADED, BOB),)
    phone.core.answered(sync, Synced((result(12),), packet(12, out(ONE))))
    assert phone.status() == "uploaded"
    assert phone.idle()


def step_of(phone: Phone, key: str = "key") -> Step:
    delivery = phone.record.sent[key].delivery
    assert delivery is not None
    return delivery.step


def test_videos_to_one_recipient_go_one_after_the_other() -> None:
    phone = reachable()
    for key in ("first", "second", "third"):
        phone.send(key)
    for number, key in enumerate(("first", "second", "third"), 1):
        announce = phone.one(Announce)
        assert announce.key == key
        assert phone.idle()
        phone.core.answered(announce, announced(numbered(number)))
        put = phone.one(Put)
        assert phone.idle()
        phone.core.answered(put, None)
        sync = phone.one(Sync)
        assert phone.idle()
        phone.core.answered(sync, Synced((result(11 + number),), packet(11 + number, out(numbered(number)))))


def test_videos_to_several_recipients_go_two_at_a_time() -> None:
    phone = reachable()
    for number in range(4):
        phone.send(str(number), ClientId(f"recipient-{number}"))
    first, second = phone.of(Announce)
    assert phone.idle()
    phone.core.answered(first, announced(ONE))
    [put] = phone.of(Put)
    assert put.key == first.key
    assert phone.idle()
    phone.core.answered(put, None)
    assert [task.key for task in phone.of(Announce)] == ["2"]
    phone.core.failed(second, GatewayError(413, "too_large", "so it is"))
    assert [task.key for task in phone.of(Announce)] == ["3"]


def test_a_video_that_waits_after_a_failure_holds_up_the_next_to_its_recipient_but_nobody_else() -> None:
    phone = reachable()
    phone.send("first")
    phone.send("second")
    phone.send("to carol", CAROL)
    first, other = phone.of(Announce)
    assert (first.key, other.key) == ("first", "to carol")
    phone.core.failed(first, LOST)
    assert phone.waits_for() == pytest.approx(0.5)
    assert phone.one(Announce).key == "first"


def test_an_upload_without_an_answer_is_confirmed_first_and_sent_again_only_where_nothing_is_stored() -> None:
    phone = reachable()
    phone.core.failed(phone.uploading(), UploadError(None, None, "ReadTimeout"))
    sync = phone.one(Sync)
    assert sync.reports == (Report(ONE, Status.UPLOADED, BOB),)
    phone.core.answered(sync, Synced((failed(409, "not_stored"),), packet(10)))
    assert phone.waits_for() == pytest.approx(0.5)
    put = phone.one(Put)
    assert put.announced.video_id == ONE
    phone.core.answered(put, None)
    phone.later(60)
    assert phone.one(Sync).reports == (Report(ONE, Status.UPLOADED, BOB),)


def test_nothing_stored_is_heard_over_the_socket_too() -> None:
    phone = Phone(foreground=True)
    phone.connected()
    phone.core.answered(phone.uploading(), None)
    [tell] = phone.of(Tell)
    phone.core.failed(tell, GatewayError(409, "not_stored", "so it is"))
    assert [task.announced.video_id for task in phone.of(Put)] == [ONE]


def test_an_upload_whose_url_is_dead_is_announced_anew() -> None:
    phone = reachable()
    phone.core.failed(phone.uploading(), UploadError(403, None, "expired"))
    assert phone.waits_for() == pytest.approx(0.5)
    phone.core.answered(phone.one(Announce), announced(TWO))
    assert phone.one(Put).announced.video_id == TWO


@pytest.mark.parametrize("status", [None, 408, 500, 502, 504])
def test_where_an_upload_may_have_arrived_the_old_id_is_deleted_when_it_is_announced_anew(status: int | None) -> None:
    phone = reachable()
    phone.core.failed(phone.uploading(), UploadError(status, None, "who knows how far it came"))
    if status is None:
        phone.core.answered(phone.one(Sync), Synced((failed(409, "not_stored"),), packet(10)))
    phone.later(60)
    phone.core.failed(phone.one(Put), UploadError(403, None, "expired"))
    assert phone.one(Delete) == Delete(ONE, BOB)
    phone.later(60)
    phone.core.answered(phone.one(Announce), announced(TWO))
    assert phone.one(Put).announced.video_id == TWO


@pytest.mark.parametrize("status", [409, 500, 503, 408, 429])
def test_an_upload_that_the_store_answers_with_a_failure_is_sent_again(status: int) -> None:
    phone = reachable()
    phone.core.failed(phone.uploading(), UploadError(status, None, "conflict"))
    assert phone.waits_for() == pytest.approx(0.5)
    assert phone.one(Put).announced.video_id == ONE


@pytest.mark.parametrize(("status", "code"), [(413, "too_large"), (409, "too_many_in_transit"), (422, "invalid")])
def test_a_refused_announcement_fails_the_video_with_its_code(status: int, code: str) -> None:
    phone = reachable()
    phone.send("key")
    phone.core.failed(phone.one(Announce), GatewayError(status, code, "so it is"))
    assert phone.idle()
    assert (phone.status(), phone.record.sent["key"].reason) == ("failed", code)


@pytest.mark.parametrize("error", [LOST, GatewayError(429, "rate_limited", ""), GatewayError(401, "unauthorized", "")])
def test_an_announcement_that_fails_otherwise_is_repeated(error: GatewayError) -> None:
    phone = reachable()
    phone.send("key")
    phone.core.failed(phone.one(Announce), error)
    assert phone.waits_for() == pytest.approx(0.5)
    phone.one(Announce)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), ValueError("9 bytes were announced")])
def test_a_file_that_cannot_be_read_fails_the_video_and_whatever_came_of_it_is_deleted(error: Exception) -> None:
    phone = reachable()
    phone.core.failed(phone.uploading(), error)
    assert phone.one(Delete) == Delete(ONE, BOB)
    assert (phone.status(), phone.record.sent["key"].reason) == ("failed", "unreadable")


def test_a_refused_confirmation_fails_the_video_with_its_code() -> None:
    phone = reachable()
    phone.core.answered(phone.uploading(), None)
    sync = phone.one(Sync)
    phone.core.answered(sync, Synced((failed(409, "too_many_in_transit"),), packet(10)))
    assert phone.one(Delete) == Delete(ONE, BOB)
    assert (phone.status(), phone.record.sent["key"].reason) == ("failed", "too_many_in_transit")


def test_a_video_that_was_replaced_before_it_was_confirmed_has_failed() -> None:
    phone = reachable()
    phone.core.answered(phone.uploading(), None)
    sync = phone.one(Sync)
    phone.core.answered(sync, Synced((result(12, Outcome.IGNORED, "superseded"),), packet(12, out(TWO))))
    assert phone.idle()
    assert (phone.status(), phone.record.sent["key"].reason) == ("failed", "superseded")


def test_an_upload_that_a_packet_lists_meanwhile_is_given_up() -> None:
    phone = reachable()
    put = phone.uploading()
    phone.core.pushed(packet(11, out(ONE)))
    abandon, _ = phone.next()
    assert abandon == Abandon(put)
    phone.core.failed(put, FileNotFoundError())
    assert phone.status() == "uploaded"


def test_a_video_whose_upload_was_cut_off_by_a_restart_is_confirmed_first() -> None:
    phone = reachable()
    phone.uploading()
    restarted = Phone(record=Record.decode(phone.record.encode()))
    assert restarted.one(Sync).reports == (Report(ONE, Status.UPLOADED, BOB),)


# --- Deletions


def test_a_deleted_video_is_given_up_and_deleted_until_that_is_answered() -> None:
    phone = reachable()
    put = phone.uploading()
    phone.record.delete("key")
    abandon, delete = phone.next()
    assert (abandon, delete) == (Abandon(put), Delete(ONE, BOB))
    assert isinstance(delete, Delete)
    phone.core.failed(delete, LOST)
    assert phone.waits_for() == pytest.approx(0.5)
    phone.core.answered(phone.one(Delete), result(12))
    assert phone.of(Delete) == []
    phone.core.pushed(packet(12))
    phone.next()
    assert not phone.record.deletions


def test_a_refused_deletion_is_done() -> None:
    phone = reachable()
    phone.record.apply(packet(11, out(ONE)))
    phone.record.delete(ONE)
    phone.core.failed(phone.one(Delete), GatewayError(422, "invalid", "so it is"))
    assert phone.idle()


# --- Downloads


def test_videos_are_fetched_so_many_at_a_time() -> None:
    phone = reachable()
    videos = [came(numbered(number)) for number in range(MOST_DOWNLOADS + 2)]
    phone.core.pushed(packet(11, *videos))
    first, *_ = phone.of(Download)
    assert phone.of(Download) == []
    phone.core.answered(first, None)
    assert len(phone.of(Download)) == 1


@pytest.mark.parametrize("jitter", [0.0, 1.0])
@pytest.mark.parametrize("status", [403, 404])
def test_a_download_that_is_refused_asks_the_gateway_first_whether_it_is_still_listed(
    status: int, jitter: float
) -> None:
    phone = reachable(jitter=jitter)
    phone.record.apply(packet(11, came(ONE), came(TWO)))
    one, two = phone.of(Download)
    for task in (one, two):
        phone.core.failed(task, DownloadError(status, "not_tracked", "so it is"))
    sync = phone.one(Sync)
    phone.later(60)
    assert phone.of(Download) == []
    phone.core.answered(sync, Synced((), packet(12, came(TWO))))
    assert phone.of(Download) == [Download(TWO)]


def test_a_download_that_is_refused_as_a_socket_opens_that_has_nothing_new_is_tried_again() -> None:
    phone = reachable()
    phone.core.pushed(packet(11, came(ONE)))
    sync, download = phone.next()
    assert isinstance(sync, Sync)
    assert isinstance(download, Download)
    phone.core.answered(sync, Synced((), packet(11, came(ONE))))
    phone.core.foreground(active=True)
    [connect] = phone.of(Connect)
    phone.core.failed(download, DownloadError(403, None, "expired"))
    assert phone.of(Sync) == []  # the socket is about to open
    phone.core.opened(connect)
    found: list[Action] = []
    for _ in range(5):
        for action in phone.next():
            found.append(action)
            if isinstance(action, Sync):
                phone.core.answered(action, Synced((), packet(11, came(ONE))))
        phone.later(60)
    assert Download(ONE) in found


@pytest.mark.parametrize("error", [DownloadError(None, None, "cut"), DownloadError(503, None, ""), OSError("full")])
def test_a_download_that_fails_otherwise_is_repeated(error: Exception) -> None:
    phone = reachable()
    phone.record.apply(packet(11, came(ONE)))
    phone.core.failed(phone.one(Download), error)
    assert phone.waits_for() == pytest.approx(0.5)
    phone.one(Download)


def test_a_download_that_is_listed_no_more_is_given_up() -> None:
    phone = reachable()
    phone.core.pushed(packet(11, came(ONE)))
    sync, download = phone.next()
    assert isinstance(sync, Sync)
    phone.core.answered(sync, Synced((), packet(12)))
    assert phone.one(Abandon).task is download


def test_a_video_that_was_viewed_already_is_not_fetched() -> None:
    phone = reachable()
    phone.record.apply(packet(11, came(ONE)))
    phone.record.viewed(ONE)
    assert said(phone.one(Sync)) == [(ONE, Status.VIEWED)]


# --- Registrations


def test_a_registration_is_said_until_it_is_answered_and_then_no_more() -> None:
    phone = reachable()
    phone.record.register(Registration("fcm", "push-token"))
    phone.core.failed(phone.one(Register), LOST)
    assert phone.waits_for() == pytest.approx(0.5)
    phone.core.registered(phone.one(Register), 77.0)
    assert phone.idle()
    assert phone.record.registration == Registration("fcm", "push-token", answered_s=77.0)
    assert Phone(record=phone.record).of(Register) == []


def test_a_new_push_token_is_said_when_the_one_before_is_answered_or_they_could_overtake_each_other() -> None:
    phone = reachable()
    phone.record.register(Registration("fcm", "old"))
    old = phone.one(Register)
    phone.record.register(Registration("fcm", "new"))
    assert phone.idle()
    phone.core.registered(old, 77.0)
    assert phone.record.registration == Registration("fcm", "new")
    phone.core.registered(phone.one(Register), 78.0)
    assert phone.record.registration == Registration("fcm", "new", answered_s=78.0)


def test_a_registration_that_is_refused_is_dropped() -> None:
    phone = reachable()
    phone.record.register(Registration("fcm", "push-token"))
    phone.core.failed(phone.one(Register), GatewayError(422, "invalid", "so it is"))
    assert phone.idle()
    assert phone.record.registration is None


def test_the_refusal_of_an_old_push_token_does_not_drop_the_new_one() -> None:
    phone = reachable()
    phone.record.register(Registration("fcm", "old"))
    old = phone.one(Register)
    phone.record.register(Registration("fcm", "new"))
    phone.core.failed(old, GatewayError(422, "invalid", "so it is"))  # before it is given up
    assert phone.record.registration == Registration("fcm", "new")
    assert phone.of(Register) == [Register(Registration("fcm", "new"))]


# --- Log-out


def test_a_log_out_gives_everything_else_up_and_says_what_was_unsaid() -> None:
    phone = Phone(foreground=True)
    connect = phone.connected()
    phone.core.came(connect, packet(11, came(ONE), came(TWO)))
    _, one, two = sorted(phone.next(), key=lambda action: not isinstance(action, Acknowledge))
    phone.record.viewed(ONE)
    phone.record.log_out("the-token")
    actions = phone.next()
    assert [action for action in actions if isinstance(action, Abandon)] == [
        Abandon(connect),
        *(Abandon(task) for task in (one, two) if isinstance(task, Download)),
    ]
    [leave] = [action for action in actions if isinstance(action, Leave)]
    assert leave.farewell.reports == (Report(ONE, Status.VIEWED),)
    assert len(actions) == 4
    phone.core.answered(leave, None)
    assert phone.idle()
    assert phone.core.quiet
    assert not phone.record.farewells


def left(*, error: GatewayError | None = None) -> tuple[Phone, Leave]:
    """A phone that was logged out and in again, with its log-out under way, or failed."""
    record = Record(ALICE, DeviceId("phone"))
    record.log_out("the-token")
    record.log_in(ALICE, DeviceId("phone"))
    phone = Phone(record=record)
    leave = phone.one(Leave)
    if error is not None:
        phone.core.failed(leave, error)
    return phone, leave


def test_a_log_out_is_said_before_anything_else_of_the_same_account() -> None:
    phone, leave = left()
    phone.send("key")
    phone.core.pushed(None)
    assert phone.idle()
    phone.core.answered(leave, None)
    sync, announce = phone.next()
    assert isinstance(sync, Sync)
    assert isinstance(announce, Announce)


def test_a_log_out_of_another_account_holds_nothing_up() -> None:
    record = Record(BOB, DeviceId("phone"))
    record.log_out("the-token")
    record.log_in(ALICE, DeviceId("phone"))
    leave, sync = Phone(record=record).next()
    assert isinstance(leave, Leave)
    assert isinstance(sync, Sync)


def test_a_log_out_that_fails_is_repeated() -> None:
    phone, _ = left(error=LOST)
    assert phone.waits_for() == pytest.approx(0.5)
    phone.one(Leave)


@pytest.mark.parametrize("status", [401, 403, 422])
def test_a_log_out_that_is_refused_is_given_up(status: int) -> None:
    phone, _ = left(error=GatewayError(status, "unauthorized" if status == 401 else "forbidden", "so it is"))
    assert not phone.record.farewells
    phone.later(60)
    phone.one(Sync)


def test_log_outs_are_said_one_after_the_other() -> None:
    record = Record(BOB, DeviceId("phone"))
    record.log_out("one")
    record.log_in(CAROL, DeviceId("phone"))
    record.log_out("two")
    record.log_in(ALICE, DeviceId("phone"))
    phone = Phone(record=record)
    [first] = phone.of(Leave)
    assert first.farewell.token == "one"
    phone.core.answered(first, None)
    [second] = phone.of(Leave)
    assert second.farewell.token == "two"


# --- The network


def test_without_a_network_nothing_is_begun() -> None:
    phone = reachable()
    phone.core.network(online=False)
    phone.send("key")
    phone.later(1000)
    assert phone.idle()
    assert phone.core.next_s == math.inf
    phone.core.network(online=True)
    sync, announce = phone.next()
    assert isinstance(sync, Sync)
    assert isinstance(announce, Announce)


def test_what_waits_after_a_failure_is_tried_when_the_network_is_back() -> None:
    phone = Phone()
    for _ in range(8):
        phone.core.failed(phone.one(Sync), LOST)
        phone.waits_for()
    phone.core.failed(phone.one(Sync), LOST)
    phone.core.network(online=True)
    phone.one(Sync)


def test_another_network_is_another_socket() -> None:
    phone = Phone(foreground=True)
    old = phone.connected()
    phone.core.network(online=True)
    abandon, new = phone.next()
    assert abandon == Abandon(old)
    assert isinstance(new, Connect)
    phone.core.closed(old, SocketClosed(1006, ""))
    phone.core.came(old, packet(99))
    assert phone.record.version == 10
    assert phone.idle()


def test_a_push_shows_that_there_is_a_network() -> None:
    phone = reachable()
    phone.core.network(online=False)
    phone.core.pushed(None)
    phone.one(Sync)


# --- What nobody wants to know any more


def test_answers_to_tasks_that_were_given_up_are_ignored() -> None:
    phone = Phone()
    receiving(phone, 1)
    sync = phone.one(Sync)
    phone.record.log_out("the-token")
    abandon, leave = phone.next()
    assert abandon == Abandon(sync)
    before = phone.record.encode()
    phone.core.answered(sync, Synced((result(12),), packet(12, came(TWO))))
    phone.core.failed(sync, LOST)
    assert phone.record.encode() == before
    assert isinstance(leave, Leave)


def test_each_task_ends_once() -> None:
    phone = Phone()
    task = phone.one(Sync)
    phone.core.answered(task, Synced((), packet(10, came(ONE))))
    phone.core.failed(task, LOST)
    phone.core.answered(task, Synced((), packet(99)))
    assert phone.record.version == 10
    phone.one(Download)


def test_an_answer_to_a_task_does_not_end_its_successor() -> None:
    phone = Phone(foreground=True)
    first = phone.one(Connect)
    phone.core.network(online=True)
    _, second = phone.next()
    tasks: list[Task] = [first]
    assert second is not tasks[0]
    phone.core.opened(first)
    phone.core.failed(first, LOST)
    assert isinstance(second, Connect)
    phone.core.opened(second)
    assert phone.idle()


def test_a_download_of_a_video_that_went_away_meanwhile_is_not_missed() -> None:
    phone = reachable()
    phone.record.apply(packet(11, came(ONE)))
    download = phone.one(Download)
    phone.record.apply(packet(12))
    phone.core.answered(download, None)
    assert phone.of(Sync) == []


def test_statuses_are_shown_as_the_packets_say() -> None:
    phone = reachable()
    phone.core.answered(phone.uploading(), None)
    sync = phone.one(Sync)
    phone.core.answered(sync, Synced((result(12),), packet(12, out(ONE))))
    seen = [phone.record.sent["key"].status]
    for version, status in enumerate((Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED), 13):
        phone.core.pushed(packet(version, out(ONE, status)))
        seen.append(phone.record.sent["key"].status)
    assert seen == [SentStatus.UPLOADED, SentStatus.NOTIFIED, SentStatus.DOWNLOADED, SentStatus.VIEWED]


def test_what_the_gateway_asked_to_wait_for_is_waited_for_whatever_the_phone_does() -> None:
    phone = reachable()
    phone.core.pushed(None)
    phone.core.failed(phone.one(Sync), GatewayError(503, "unavailable", "busy", 30.0))
    phone.core.pushed(None)
    phone.core.network(online=True)
    assert phone.of(Sync) == []
    phone.later(31)
    phone.one(Sync)

"""One socket in all its states: over a transport that only notes what it is told, in time that only the test passes."""

import asyncio
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gateway.live.closing import CloseCode
from gateway.live.connection import CLOSE_S, LOST, MESSAGE_BYTES, SILENT_CLOSE_S, Connection, Keepalive
from gateway.live.frames import Opcode, close_frame, frame, text_frame
from gateway.live.wheel import TICK_S, Wheel
from tests.live.differential import Made

PING_S, PONG_S = 20.0, 5.0
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
LATE_S = 2 * TICK_S
"""How late something may be seen: the wheel's tick, and the step in which time passes."""


class Heard(NamedTuple):
    """A frame of ours as the peer gets it."""

    opcode: int
    data: bytes


class Transport(asyncio.Transport):
    """What a peer would see. Like uvloop's, it takes nothing any more once its end was written or it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.dropped: list[bytes] = []
        self.taken = 0
        self.full = False
        self.paused = False
        self.reading = True
        self.ended = False
        self.closing = False
        self.aborted = False
        self.lost = False
        self.high: int | None = None
        self.protocol: Connection | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.ended or self.lost:
            raise RuntimeError("nothing can be written here any more")
        if self.closing:
            self.dropped.append(bytes(data))
            return
        self.writes.append(bytes(data))
        if self.full and not self.paused and self.protocol is not None:
            self.paused = True
            self.protocol.pause_writing()

    def take_in(self) -> None:
        """The peer reads everything."""
        self.full = False
        if self.paused and self.protocol is not None:
            self.paused = False
            self.protocol.resume_writing()

    def write_eof(self) -> None:
        if self.lost:
            raise RuntimeError("nothing can be written here any more")
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = not self.closing

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing, self.reading = True, False

    def abort(self) -> None:
        self.closing, self.aborted, self.reading = True, True, False

    def settle(self) -> None:
        """As an event loop would: say that the connection is lost once it is closed and nothing is to be sent."""
        if self.closing and not self.lost and (self.aborted or not self.paused) and self.protocol is not None:
            self.lost = True
            self.protocol.connection_lost(None)


class Noted:
    """A session that notes what it is told. `says`: what it does with a text; `counts`: with frames."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.texts: list[bytes] = []
        self.frames: list[int] = []
        self.codes: list[int] = []
        self.authorized_until_s = float("inf")
        self.counts: Callable[[], None] = lambda: None
        self.says: Callable[[bytes], None] = lambda _: None
        self._clock = clock

    def frames_came(self, frames: int) -> None:
        self.frames.append(frames)
        self.counts()

    def text_came(self, text: bytes) -> None:
        self.texts.append(text)
        self.says(text)

    def time_left_s(self) -> float:
        return self.authorized_until_s - self._clock()

    def ended(self, code: int) -> None:
        self.codes.append(code)


class World:
    """A socket, its peer and its time."""

    def __init__(self) -> None:
        self.now_s = 500.0
        self.wheel = Wheel(self.clock)
        self.transport = Transport()
        self.connection = Connection(self.transport, Keepalive(self.wheel, ping_s=PING_S, pong_s=PONG_S))
        self.transport.protocol = self.connection
        self.session = Noted(self.clock)

    def clock(self) -> float:
        return self.now_s

    def open(self, version: int = 1, packet: bytes | None = None) -> bool:
        """Open it; what is written from now on is `heard`."""
        opened = self.connection.open(self.session, ANSWER, version=version, packet=packet)
        self.transport.taken = 1 if packet is None else 0
        return opened

    def reads(self) -> bool:
        """Whether what the peer sends is read now."""
        return self.transport.reading

    def says(self, data: bytes) -> None:
        """The peer sends this, and it is read."""
        assert self.transport.reading, "nothing is read now"
        self.connection.data_received(data)

    def hangs_up(self) -> None:
        """The peer ends its side."""
        if not self.connection.eof_received():  # type: ignore[func-returns-value]
            self.transport.close()
        self.transport.settle()

    def heard(self) -> list[Heard]:
        """The frames that were written since it was asked last."""
        data = b"".join(self.transport.writes[self.transport.taken :])
        self.transport.taken = len(self.transport.writes)
        return frames_of(data)

    def passes(self, seconds: float) -> None:
        """Time passes."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.transport.settle()
            self.now_s += TICK_S
            self.wheel.advance()
        self.transport.settle()

    def until(self, happened: Callable[[], object]) -> float:
        """Time passes until this has happened; how long that took."""
        began_s = self.now_s
        while not happened():
            assert self.now_s - began_s < 300, "it never happens"
            self.passes(TICK_S)
        return self.now_s - began_s

    def next(self) -> tuple[float, list[Heard]]:
        """What is written next, and in how many seconds."""
        took_s = self.until(lambda: len(self.transport.writes) > self.transport.taken)
        return took_s, self.heard()


def frames_of(data: bytes) -> list[Heard]:
    """A server's frames: not masked."""
    found, start = list[Heard](), 0
    while start < len(data):
        size, begin = data[start + 1], start + 2
        if size >= 126:
            form, length = ("!H", 2) if size == 126 else ("!Q", 8)
            (size,) = struct.unpack_from(form, data, begin)
            begin += length
        assert data[start] & 0x80, "no frame of ours is a fragment"
        found.append(Heard(data[start] & 0x0F, data[begin : begin + size]))
        start = begin + size
    assert start == len(data)
    return found


def sent(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    return Made(opcode, payload, fin=fin).encode(random.Random(1))


def closing(code: int, reason: str = "") -> Heard:
    """The close frame with this code."""
    return Heard(Opcode.CLOSE, close_frame(code, reason)[2:])


def packet(version: int) -> bytes:
    """A packet, framed."""
    return text_frame(b"packet %d" % version)


def heard_packet(version: int) -> Heard:
    return Heard(Opcode.TEXT, b"packet %d" % version)


PING = Heard(Opcode.PING, b"")
BAD = b"\x83\x80"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def opened(world: World) -> World:
    assert world.open()
    return world


# --- Opening


def test_nothing_is_read_or_written_before_it_opens(world: World) -> None:
    assert not world.reads()
    assert world.transport.high == 0
    world.connection.offer(1, packet(1))
    world.connection.answer(b"no")
    world.connection.data_received(sent(Opcode.PING) + sent(Opcode.CLOSE))
    world.passes(100)
    assert world.transport.writes == []
    assert not world.transport.closing


def test_it_opens_with_the_answer_and_the_packet_in_one_write(world: World) -> None:
    assert world.open(7, packet(7))
    assert world.transport.writes == [ANSWER + packet(7)]
    assert world.connection.version == 7
    assert world.reads()


def test_it_opens_with_the_answer_alone_where_the_peer_has_the_newest_packet(world: World) -> None:
    assert world.open(7, None)
    assert world.transport.writes == [ANSWER]
    assert world.connection.version == 7
    assert not world.connection.offer(7, packet(7))
    assert world.transport.writes == [ANSWER]


@pytest.mark.parametrize(
    ("offered", "loaded", "goes_out"),
    [([5], 3, 5), ([3], 5, 5), ([4, 6], 5, 6), ([6, 4], 5, 6), ([5], 5, 5), ([1, 2, 3], 0, 3)],
)
def test_the_newest_packet_wins_while_it_opens(world: World, offered: list[int], loaded: int, goes_out: int) -> None:
    for version in offered:
        world.connection.offer(version, packet(version))
    assert world.open(loaded, packet(loaded))
    assert world.transport.writes == [ANSWER + packet(goes_out)]
    assert world.connection.version == goes_out
    assert not world.connection.offer(goes_out, packet(goes_out))
    assert len(world.transport.writes) == 1


def test_a_packet_that_was_offered_goes_out_where_the_peer_had_the_newest_loaded_one(world: World) -> None:
    world.connection.offer(8, packet(8))
    assert world.open(7, None)
    assert world.transport.writes == [ANSWER + packet(8)]


def test_an_older_packet_that_was_offered_does_not_go_out_where_the_peer_has_a_newer_one(world: World) -> None:
    world.connection.offer(6, packet(6))
    assert world.open(7, None)
    assert world.transport.writes == [ANSWER]


def test_whether_a_packet_is_dropped_while_it_opens_is_told(world: World) -> None:
    assert not world.connection.offer(1, packet(1))
    assert world.connection.offer(2, packet(2))
    assert not world.connection.offer(1, packet(1))


def test_it_does_not_open_once_the_peer_has_gone(world: World) -> None:
    world.transport.abort()
    world.transport.settle()
    assert not world.open()
    assert world.transport.writes == []
    assert world.session.codes == []
    assert world.connection.gone


def test_closed_while_it_opens_it_opens_and_says_why_it_closes(world: World) -> None:
    world.connection.close(CloseCode.DISPLACED, "another")
    assert not world.transport.aborted
    assert world.open(1, packet(1))
    world.connection.offer(2, packet(2))
    assert world.transport.writes == [ANSWER + packet(1), close_frame(CloseCode.DISPLACED, "another")]


def test_closed_while_it_opens_it_may_still_be_refused(world: World) -> None:
    world.connection.close(CloseCode.DISPLACED, "another")
    world.connection.refuse(b"no")
    assert world.transport.writes == [b"no"]
    assert not world.open()
    assert world.session.codes == []


def test_where_the_answer_does_not_fit_nothing_is_read_until_it_does(world: World) -> None:
    world.transport.full = True
    assert world.open(1, packet(1))
    assert not world.reads()
    world.connection.offer(2, packet(2))
    world.transport.take_in()
    assert world.reads()
    assert world.transport.writes == [ANSWER + packet(1), packet(2)]


# --- Refusing


def test_refused_it_says_why_and_ends(world: World) -> None:
    world.connection.offer(1, packet(1))
    world.connection.refuse(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    assert world.transport.writes == [b"HTTP/1.1 401 Unauthorized\r\n\r\n"]
    assert world.transport.ended
    assert world.reads()
    assert not world.transport.closing


def test_refused_it_hears_and_says_nothing_more(world: World) -> None:
    world.connection.refuse(b"no")
    world.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + sent(Opcode.CLOSE))
    assert not world.connection.offer(1, packet(1))
    world.connection.answer(b"a")
    world.connection.close(CloseCode.NORMAL)
    world.connection.fail(CloseCode.PROTOCOL_ERROR, "?")
    world.connection.refuse(b"again")
    assert not world.open()
    assert world.transport.writes == [b"no"]
    assert not world.transport.closing


def test_refused_it_goes_when_the_peer_goes(world: World) -> None:
    world.connection.refuse(b"no")
    world.hangs_up()
    assert world.transport.lost
    assert not world.transport.aborted


def test_refused_it_is_cut_off_where_the_peer_stays(world: World) -> None:
    world.connection.refuse(b"no")
    took_s = world.until(lambda: world.transport.aborted)
    assert CLOSE_S <= took_s <= CLOSE_S + LATE_S


def test_one_that_has_gone_cannot_be_refused(opened: World) -> None:
    opened.transport.abort()
    opened.transport.settle()
    opened.connection.refuse(b"no")
    assert opened.heard() == []


# --- Packets


def test_a_packet_goes_out_at_once(opened: World) -> None:
    assert not opened.connection.offer(2, packet(2))
    assert not opened.connection.offer(3, packet(3))
    assert opened.heard() == [heard_packet(2), heard_packet(3)]


def test_a_packet_that_is_not_newer_does_not_go_out(opened: World) -> None:
    opened.connection.offer(5, packet(5))
    assert not opened.connection.offer(5, packet(5))
    assert not opened.connection.offer(4, packet(4))
    assert opened.heard() == [heard_packet(5)]


def test_while_the_peer_does_not_read_only_the_newest_packet_waits(opened: World) -> None:
    opened.transport.full = True
    opened.connection.offer(2, packet(2))
    assert not opened.connection.offer(3, packet(3))
    assert opened.connection.offer(4, packet(4))
    assert not opened.connection.offer(3, packet(3))
    assert opened.connection.offer(5, packet(5))
    assert opened.heard() == [heard_packet(2)]
    assert opened.connection.version == 5
    opened.transport.take_in()
    assert opened.heard() == [heard_packet(5)]
    opened.connection.offer(6, packet(6))
    assert opened.heard() == [heard_packet(6)]


def test_what_waited_may_fill_the_buffer_again(opened: World) -> None:
    opened.transport.full = True
    opened.connection.offer(2, packet(2))
    opened.connection.offer(3, packet(3))
    opened.transport.paused = False
    opened.connection.resume_writing()
    assert not opened.reads()
    opened.connection.offer(4, packet(4))
    assert opened.heard() == [heard_packet(2), heard_packet(3)]
    opened.transport.take_in()
    assert opened.heard() == [heard_packet(4)]
    assert opened.reads()


def test_nothing_is_read_while_the_peer_does_not_read(opened: World) -> None:
    opened.transport.full = True
    opened.connection.answer(b"a")
    assert not opened.reads()
    opened.transport.take_in()
    assert opened.reads()


def test_answers_go_out_in_order_even_while_the_peer_does_not_read(opened: World) -> None:
    opened.transport.full = True
    opened.connection.answer(b"a")
    opened.connection.answer(b"b")
    assert opened.heard() == [Heard(Opcode.TEXT, b"a"), Heard(Opcode.TEXT, b"b")]


# --- A busy session


def test_nothing_is_read_while_the_session_is_busy(opened: World) -> None:
    opened.connection.set_busy(busy=True)
    assert not opened.reads()
    opened.connection.offer(2, packet(2))
    assert opened.heard() == [heard_packet(2)]
    opened.connection.set_busy(busy=False)
    assert opened.reads()


@pytest.mark.parametrize("busy_first", [True, False])
def test_it_reads_on_once_it_is_neither_busy_nor_full(opened: World, busy_first: bool) -> None:
    opened.transport.full = True
    opened.connection.answer(b"a")
    opened.connection.set_busy(busy=True)
    if busy_first:
        opened.transport.take_in()
    else:
        opened.connection.set_busy(busy=False)
    assert not opened.reads()
    opened.connection.set_busy(busy=False)
    opened.transport.take_in()
    assert opened.reads()


def test_a_session_may_become_busy_with_what_it_is_told(opened: World) -> None:
    opened.session.says = lambda _: opened.connection.set_busy(busy=True)
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.TEXT, b"b"))
    assert opened.session.texts == [b"a", b"b"]
    assert not opened.reads()


def test_closed_while_busy_it_reads_the_answer(opened: World) -> None:
    opened.connection.set_busy(busy=True)
    opened.connection.close(CloseCode.NORMAL)
    assert opened.reads()
    opened.says(sent(Opcode.CLOSE, b"\x03\xe8"))
    assert opened.transport.closing


def test_busy_only_after_the_close_frame_it_reads_the_answer_nevertheless(opened: World) -> None:
    opened.connection.close(CloseCode.DISPLACED, "another")
    opened.connection.set_busy(busy=True)
    opened.says(sent(Opcode.CLOSE, b"\x0f\xa0"))
    assert opened.transport.closing


def test_an_open_socket_that_is_refused_all_the_same_is_closed_as_a_fault_of_ours(opened: World) -> None:
    opened.connection.refuse(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    assert opened.heard() == [closing(CloseCode.FAULT, "something is wrong on our side")]
    opened.says(sent(Opcode.CLOSE))
    opened.transport.settle()
    assert opened.session.codes == [CloseCode.FAULT]


# --- Receiving


def test_texts_are_passed_on_in_order_whole_and_in_fragments(opened: World) -> None:
    data = sent(Opcode.TEXT, b"a") + sent(Opcode.TEXT, b"b", fin=False) + sent(Opcode.CONTINUATION, b"c")
    for byte in data:
        opened.says(bytes((byte,)))
    opened.says(data)
    assert opened.session.texts == [b"a", b"bc"] * 2
    assert opened.heard() == []


def test_frames_are_counted_as_they_come_whatever_their_kind(opened: World) -> None:
    opened.says(sent(Opcode.TEXT, b"a", fin=False) + sent(Opcode.PING) + sent(Opcode.CONTINUATION))
    opened.says(sent(Opcode.PONG)[:3])
    opened.says(sent(Opcode.PONG)[3:])
    assert opened.session.frames == [3, 1]


def test_a_pong_that_was_asked_for_is_not_counted(opened: World) -> None:
    opened.next()
    opened.says(sent(Opcode.PONG))
    assert opened.session.frames == []
    opened.says(sent(Opcode.PONG))
    assert opened.session.frames == [1]


def test_of_too_many_frames_none_is_looked_at(opened: World) -> None:
    opened.session.counts = lambda: opened.connection.close(CloseCode.TOO_FAST, "too many frames")
    opened.says(sent(Opcode.PING) + sent(Opcode.TEXT, b"a"))
    opened.says(sent(Opcode.TEXT, b"b"))
    assert opened.session.texts == []
    assert opened.session.frames == [2]
    assert opened.heard() == [closing(CloseCode.TOO_FAST, "too many frames")]
    opened.says(sent(Opcode.CLOSE))
    assert opened.transport.closing


def test_the_peers_close_frame_counts_even_behind_too_many_frames(opened: World) -> None:
    opened.session.counts = lambda: opened.connection.close(CloseCode.TOO_FAST, "too many frames")
    opened.says(sent(Opcode.PING) * 5 + sent(Opcode.CLOSE))
    assert opened.heard() == [closing(CloseCode.TOO_FAST, "too many frames")]
    assert opened.transport.closing


def test_once_closed_in_the_middle_of_many_texts_the_others_are_not_passed_on(opened: World) -> None:
    opened.session.says = lambda text: opened.connection.close(CloseCode.MALFORMED, text.decode())
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.TEXT, b"b") + sent(Opcode.PING))
    assert opened.session.texts == [b"a"]
    assert opened.heard() == [closing(CloseCode.MALFORMED, "a")]


def test_a_ping_is_answered_with_what_it_carries(opened: World) -> None:
    opened.says(sent(Opcode.PING))
    opened.says(sent(Opcode.PING, b"p" * 125))
    assert opened.heard() == [Heard(Opcode.PONG, b""), Heard(Opcode.PONG, b"p" * 125)]


def test_a_flood_of_pings_is_answered_in_one_write(opened: World) -> None:
    writes = len(opened.transport.writes)
    opened.says(b"".join(sent(Opcode.PING, b"%d" % number) for number in range(1000)))
    assert len(opened.transport.writes) == writes + 1
    assert opened.heard() == [Heard(Opcode.PONG, b"%d" % number) for number in range(1000)]
    assert opened.session.frames == [1000]


def test_a_ping_is_answered_before_what_came_behind_it(opened: World) -> None:
    opened.session.says = opened.connection.answer
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + sent(Opcode.TEXT, b"b"))
    assert [heard.opcode for heard in opened.heard()] == [Opcode.TEXT, Opcode.PONG, Opcode.TEXT]


def test_a_pong_is_not_answered(opened: World) -> None:
    opened.says(sent(Opcode.PONG, b"p"))
    assert opened.heard() == []


def test_the_longest_message_is_passed_on_and_no_longer_one(opened: World) -> None:
    opened.says(sent(Opcode.TEXT, b"." * MESSAGE_BYTES))
    assert opened.session.texts == [b"." * MESSAGE_BYTES]
    opened.says(sent(Opcode.TEXT, b"." * (MESSAGE_BYTES + 1)))
    (close,) = opened.heard()
    assert close.data[:2] == CloseCode.TOO_LARGE.to_bytes(2)


# --- Keepalive


def test_it_pings_when_it_is_time_and_not_before(opened: World) -> None:
    took_s, heard = opened.next()
    assert heard == [PING]
    assert PING_S / 2 <= took_s <= PING_S + LATE_S
    for _ in range(5):
        opened.passes(1)
        opened.says(sent(Opcode.PONG))
        took_s, heard = opened.next()
        assert heard == [PING]
        assert PING_S <= took_s + 1 <= PING_S + LATE_S


def test_the_first_pings_of_many_sockets_are_spread() -> None:
    firsts = set()
    for _ in range(40):
        world = World()
        world.open()
        firsts.add(world.next()[0])
    assert len(firsts) > 5
    assert PING_S / 2 <= min(firsts) <= max(firsts) <= PING_S + LATE_S


@pytest.mark.parametrize("pong_after_s", [0, 1, PONG_S - 1])
def test_the_next_ping_does_not_depend_on_when_the_pong_came(opened: World, pong_after_s: float) -> None:
    opened.next()
    opened.passes(pong_after_s)
    opened.says(sent(Opcode.PONG, b"anything"))
    took_s, heard = opened.next()
    assert heard == [PING]
    assert PING_S <= took_s + pong_after_s <= PING_S + LATE_S


def test_without_a_pong_it_is_closed_and_cut_off_a_second_later(opened: World) -> None:
    opened.next()
    took_s, heard = opened.next()
    assert heard == [closing(CloseCode.SILENT, "no pong in time")]
    assert PONG_S <= took_s <= PONG_S + LATE_S
    assert not opened.transport.aborted
    took_s = opened.until(lambda: opened.transport.aborted)
    assert SILENT_CLOSE_S <= took_s <= SILENT_CLOSE_S + LATE_S
    assert opened.session.codes == [CloseCode.SILENT]


def test_whoever_answers_the_close_for_silence_goes_in_peace(opened: World) -> None:
    opened.next()
    opened.next()
    opened.says(sent(Opcode.CLOSE, CloseCode.SILENT.to_bytes(2)))
    opened.transport.settle()
    assert opened.session.codes == [CloseCode.SILENT]
    assert not opened.transport.aborted


def test_only_a_pong_is_a_sign_of_life(opened: World) -> None:
    opened.next()
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING))
    assert opened.heard() == [Heard(Opcode.PONG, b"")]
    took_s, heard = opened.next()
    assert heard == [closing(CloseCode.SILENT, "no pong in time")]
    assert took_s <= PONG_S + LATE_S


def test_a_pong_that_nobody_asked_for_changes_nothing(opened: World) -> None:
    opened.passes(PING_S / 4)
    opened.says(sent(Opcode.PONG))
    took_s, heard = opened.next()
    assert heard == [PING]
    assert took_s <= PING_S * 3 / 4 + LATE_S
    took_s, heard = opened.next()
    assert heard == [closing(CloseCode.SILENT, "no pong in time")]


def test_it_pings_even_while_the_peer_does_not_read(opened: World) -> None:
    opened.transport.full = True
    opened.connection.offer(2, packet(2))
    opened.heard()
    assert opened.next()[1] == [PING]
    assert opened.next()[1] == [closing(CloseCode.SILENT, "no pong in time")]
    opened.until(lambda: opened.transport.lost)
    assert opened.session.codes == [CloseCode.SILENT]


# --- Authorization


@pytest.mark.parametrize("left_s", [3.0, PING_S + 1, 3 * PING_S + 7])
def test_it_is_closed_when_its_authorization_ends(world: World, left_s: float) -> None:
    world.session.authorized_until_s = world.now_s + left_s
    world.open()
    took_s, heard = world.next()
    while heard == [PING]:
        world.says(sent(Opcode.PONG))
        more_s, heard = world.next()
        took_s += more_s
    assert heard == [closing(CloseCode.UNAUTHORIZED, "the token has expired")]
    assert left_s <= took_s <= left_s + LATE_S


def test_with_its_authorization_ended_it_is_cut_off_where_the_peer_does_not_answer(world: World) -> None:
    world.session.authorized_until_s = world.now_s + 3
    world.open()
    took_s, heard = world.next()
    assert heard == [closing(CloseCode.UNAUTHORIZED, "the token has expired")]
    assert 3 <= took_s <= 3 + LATE_S
    took_s = world.until(lambda: world.transport.aborted)
    assert CLOSE_S <= took_s <= CLOSE_S + LATE_S
    assert world.session.codes == [CloseCode.UNAUTHORIZED]


def test_opened_with_an_authorization_that_has_ended_it_is_closed_at_once(world: World) -> None:
    world.session.authorized_until_s = world.now_s
    world.open()
    took_s, heard = world.next()
    assert heard == [closing(CloseCode.UNAUTHORIZED, "the token has expired")]
    assert took_s <= LATE_S


def test_a_new_authorization_keeps_it_open(world: World) -> None:
    world.session.authorized_until_s = world.now_s + 3
    world.open()
    world.passes(2)
    world.session.authorized_until_s += 1000
    assert world.next()[1] == [PING]


# --- Closing from our side


def test_closed_it_sends_a_close_frame_and_waits_for_the_answer(opened: World) -> None:
    opened.connection.close(CloseCode.RESTART, "soon back")
    assert opened.heard() == [closing(CloseCode.RESTART, "soon back")]
    assert opened.reads()
    assert not opened.connection.gone
    assert not opened.transport.ended
    opened.says(sent(Opcode.CLOSE, b"\x03\xe8"))
    assert opened.heard() == []
    assert opened.transport.closing
    opened.transport.settle()
    assert opened.session.codes == [CloseCode.RESTART]
    assert not opened.transport.aborted


def test_what_it_is_told_after_its_close_frame_is_ignored_but_for_the_answer(opened: World) -> None:
    opened.connection.close(CloseCode.NORMAL)
    opened.heard()
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + sent(Opcode.PONG))
    assert opened.session.texts == []
    assert opened.session.frames == []
    assert opened.heard() == []
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.CLOSE))
    assert opened.transport.closing


def test_nothing_is_written_after_the_close_frame(opened: World) -> None:
    opened.connection.close(CloseCode.NORMAL)
    opened.heard()
    opened.connection.offer(2, packet(2))
    opened.connection.answer(b"a")
    opened.connection.close(CloseCode.FAULT)
    opened.passes(CLOSE_S - 1)
    assert opened.heard() == []


def test_a_packet_that_waits_does_not_follow_the_close_frame(opened: World) -> None:
    opened.transport.full = True
    opened.connection.offer(2, packet(2))
    opened.connection.offer(3, packet(3))
    opened.connection.close(CloseCode.NORMAL)
    assert opened.heard() == [heard_packet(2), closing(CloseCode.NORMAL)]
    assert opened.reads()
    opened.transport.take_in()
    assert opened.heard() == []
    assert opened.reads()


def test_closed_twice_the_first_code_counts(opened: World) -> None:
    opened.connection.close(CloseCode.DISPLACED)
    opened.connection.close(CloseCode.RESTART)
    assert opened.heard() == [closing(CloseCode.DISPLACED)]
    opened.until(lambda: opened.transport.lost)
    assert opened.session.codes == [CloseCode.DISPLACED]


@pytest.mark.parametrize("within_s", [0.5, CLOSE_S, 12.0])
def test_without_an_answer_it_is_cut_off_in_time(opened: World, within_s: float) -> None:
    opened.connection.close(CloseCode.NORMAL, within_s=within_s)
    took_s = opened.until(lambda: opened.transport.aborted)
    assert within_s <= took_s <= within_s + LATE_S
    assert opened.session.codes == [CloseCode.NORMAL]


def test_where_the_peer_hangs_up_instead_of_answering_our_code_counts(opened: World) -> None:
    opened.connection.close(CloseCode.DISPLACED)
    opened.hangs_up()
    assert opened.session.codes == [CloseCode.DISPLACED]


# --- Closing from the peer's side


@pytest.mark.parametrize(
    ("payload", "code"), [(b"", 1005), (b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"\x13\x87" + b"." * 123, 4999)]
)
def test_the_peer_s_close_frame_is_sent_back(opened: World, payload: bytes, code: int) -> None:
    opened.says(sent(Opcode.CLOSE, payload))
    assert opened.heard() == [Heard(Opcode.CLOSE, payload)]
    assert opened.transport.closing
    assert not opened.transport.aborted
    opened.transport.settle()
    assert opened.session.codes == [code]


def test_what_came_before_the_peers_close_frame_is_passed_on_and_answered(opened: World) -> None:
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + sent(Opcode.CLOSE) + sent(Opcode.TEXT, b"b"))
    assert opened.session.texts == [b"a"]
    assert opened.heard() == [Heard(Opcode.PONG, b""), Heard(Opcode.CLOSE, b"")]


def test_a_text_may_be_answered_before_the_close_frame_that_came_with_it(opened: World) -> None:
    opened.session.says = opened.connection.answer
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.CLOSE))
    assert opened.heard() == [Heard(Opcode.TEXT, b"a"), Heard(Opcode.CLOSE, b"")]


def test_after_the_peer_s_close_frame_nothing_more_is_said(opened: World) -> None:
    opened.says(sent(Opcode.CLOSE))
    opened.heard()
    opened.connection.offer(2, packet(2))
    opened.connection.answer(b"a")
    opened.connection.close(CloseCode.FAULT)
    opened.connection.fail(CloseCode.PROTOCOL_ERROR, "?")
    opened.connection.set_busy(busy=False)
    assert opened.heard() == []
    assert opened.transport.dropped == []
    opened.transport.settle()
    assert opened.session.codes == [1005]


def test_where_the_peer_closes_but_reads_nothing_it_is_cut_off(opened: World) -> None:
    opened.transport.full = True
    opened.session.says = opened.connection.answer
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.CLOSE))
    assert not opened.transport.lost
    took_s = opened.until(lambda: opened.transport.aborted)
    assert CLOSE_S <= took_s <= CLOSE_S + LATE_S
    assert opened.session.codes == [1005]


def test_a_peer_that_hangs_up_without_a_close_frame_is_lost(opened: World) -> None:
    opened.hangs_up()
    assert not opened.transport.aborted
    assert opened.session.codes == [LOST]
    assert opened.heard() == []


# --- A peer that breaks the protocol


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (BAD, CloseCode.PROTOCOL_ERROR),
        (frame(Opcode.TEXT, b"not masked"), CloseCode.PROTOCOL_ERROR),
        (sent(Opcode.CONTINUATION), CloseCode.PROTOCOL_ERROR),
        (sent(Opcode.CLOSE, b"\x03"), CloseCode.PROTOCOL_ERROR),
        (sent(Opcode.TEXT, b"\xff"), CloseCode.INVALID_UTF8),
        (sent(Opcode.BINARY, b"a"), CloseCode.NOT_TEXT),
        (b"\x81\xff" + bytes(5) + b"\x01\0\0", CloseCode.TOO_LARGE),
    ],
)
def test_a_mistake_ends_it_with_a_close_frame_and_the_end_of_writing(opened: World, wrong: bytes, code: int) -> None:
    opened.says(wrong)
    (close,) = opened.heard()
    assert close.opcode == Opcode.CLOSE
    assert close.data[:2] == code.to_bytes(2)
    assert opened.transport.ended
    assert opened.reads()
    assert not opened.transport.closing
    opened.hangs_up()
    assert opened.session.codes == [code]
    assert not opened.transport.aborted


def test_after_a_mistake_nothing_is_heard_or_said(opened: World) -> None:
    opened.says(BAD + sent(Opcode.TEXT, b"a") + sent(Opcode.PING))
    assert len(opened.heard()) == 1
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + sent(Opcode.CLOSE) + BAD)
    opened.connection.offer(2, packet(2))
    opened.connection.answer(b"a")
    opened.connection.close(CloseCode.FAULT)
    opened.connection.fail(CloseCode.FAULT, "?")
    assert opened.heard() == []
    assert opened.session.texts == []
    assert not opened.transport.closing


def test_failed_by_its_session_it_hears_nothing_more(opened: World) -> None:
    opened.connection.fail(CloseCode.MALFORMED, "?")
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.CLOSE))
    assert opened.session.texts == []
    assert not opened.transport.closing


def test_what_came_before_a_mistake_is_passed_on(opened: World) -> None:
    opened.session.says = opened.connection.answer
    opened.says(sent(Opcode.TEXT, b"a") + sent(Opcode.PING) + BAD)
    assert opened.session.texts == [b"a"]
    assert opened.heard() == [Heard(Opcode.TEXT, b"a"), Heard(Opcode.PONG, b""), closing(1002, "invalid opcode")]


def test_after_a_binary_message_the_texts_that_came_with_it_are_not_passed_on(opened: World) -> None:
    opened.says(sent(Opcode.BINARY) + sent(Opcode.TEXT, b"a") + sent(Opcode.BINARY))
    assert opened.session.texts == []
    assert opened.heard() == [closing(CloseCode.NOT_TEXT, "text frames only")]


def test_after_a_mistake_it_is_cut_off_where_the_peer_stays(opened: World) -> None:
    opened.says(BAD)
    took_s = opened.until(lambda: opened.transport.aborted)
    assert CLOSE_S <= took_s <= CLOSE_S + LATE_S
    assert opened.session.codes == [CloseCode.PROTOCOL_ERROR]


def test_after_a_mistake_it_reads_even_where_the_peer_does_not(opened: World) -> None:
    opened.transport.full = True
    opened.connection.offer(2, packet(2))
    opened.connection.fail(CloseCode.MALFORMED, "?")
    assert opened.reads()


def test_a_mistake_in_place_of_the_answer_to_our_close_frame_ends_it_without_another(opened: World) -> None:
    opened.connection.close(CloseCode.DISPLACED)
    opened.heard()
    opened.says(BAD)
    assert opened.heard() == []
    assert opened.transport.ended
    opened.until(lambda: opened.transport.aborted)
    assert opened.session.codes == [CloseCode.DISPLACED]


# --- The end


def test_cut_off_it_is_lost(opened: World) -> None:
    opened.connection.abort()
    assert opened.connection.gone
    opened.transport.settle()
    assert opened.connection.gone
    assert opened.session.codes == [LOST]


def test_once_gone_it_has_no_more_turns(opened: World) -> None:
    opened.connection.abort()
    opened.transport.settle()
    assert opened.connection.slot < 0
    opened.passes(200)
    assert opened.heard() == []


def test_once_gone_nothing_harms_it(opened: World) -> None:
    opened.connection.abort()
    opened.transport.settle()
    opened.connection.answer(b"a")
    opened.connection.close(CloseCode.NORMAL)
    opened.connection.fail(CloseCode.PROTOCOL_ERROR, "?")
    opened.connection.set_busy(busy=True)
    opened.connection.set_busy(busy=False)
    opened.connection.data_received(sent(Opcode.TEXT, b"a"))
    opened.connection.abort()
    assert not opened.open()
    assert opened.heard() == []
    assert opened.session.texts == []
    assert opened.session.codes == [LOST]


def test_once_gone_it_takes_no_packet(opened: World) -> None:
    opened.connection.abort()
    opened.transport.settle()
    opened.connection.offer(2, packet(2))


def test_it_knows_that_it_is_going_before_it_has_gone(opened: World) -> None:
    opened.connection.close(CloseCode.NORMAL)
    going = opened.connection.gone
    opened.says(sent(Opcode.CLOSE))
    assert (going, opened.connection.gone) == (False, True)


# --- Everything in any order


class Chance:
    """Does anything to a socket, in an order of its own, and sees that it keeps what it promises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.version = 1
        self.busy = False
        self.close_frames = 0
        self.code = LOST

    def run(self, steps: int) -> None:
        world = self.world
        deeds = [self.offer, self.offer, self.answer, self.text, self.ping, self.pong, self.wait, self.wait, self.fill]
        deeds += [self.take, self.take, self.become_busy, self.become_idle, self.become_idle]
        rare = [self.close, self.fail, self.peer_closes, self.peer_errs, self.peer_goes, world.connection.abort]
        world.open()
        for _ in range(steps):
            rarely = self.random.random() < 0.08
            self.random.choice(rare if rarely else deeds)()
            if self.random.random() < 0.5:
                world.transport.settle()
            self.check()
        world.transport.take_in()
        self.become_idle()
        world.passes(PING_S + PONG_S + CLOSE_S + 4 * LATE_S)  # nobody answers the ping
        self.check()
        assert world.transport.lost
        assert len(world.session.codes) == 1

    def check(self) -> None:
        for heard in self.world.heard():
            assert not self.close_frames, "something follows the close frame"
            self.close_frames += heard.opcode == Opcode.CLOSE
            if heard.opcode == Opcode.CLOSE:
                self.code = int.from_bytes(heard.data[:2])
        transport = self.world.transport
        if not self.close_frames and not transport.closing:
            assert transport.reading is not (transport.paused or self.busy)
        if self.world.session.codes:
            assert self.world.session.codes == [self.code]

    def offer(self) -> None:
        if not self.world.transport.lost:
            self.version += 1
            self.world.connection.offer(self.version, packet(self.version))

    def answer(self) -> None:
        self.world.connection.answer(b"answer")

    def arrives(self, data: bytes) -> None:
        if self.world.reads():
            self.world.says(data)

    def text(self) -> None:
        self.arrives(sent(Opcode.TEXT, b"text"))

    def ping(self) -> None:
        self.arrives(sent(Opcode.PING, b"ping") * 3)

    def pong(self) -> None:
        self.arrives(sent(Opcode.PONG))

    def wait(self) -> None:
        self.world.passes(self.random.choice((TICK_S, 1.0, PONG_S)))

    def fill(self) -> None:
        self.world.transport.full = True

    def take(self) -> None:
        self.world.transport.take_in()

    def become_busy(self) -> None:
        if not self.close_frames:
            self.busy = True
            self.world.connection.set_busy(busy=True)

    def become_idle(self) -> None:
        self.busy = False
        self.world.connection.set_busy(busy=False)

    def close(self) -> None:
        if self.world.connection.gone:
            return
        self.world.connection.close(self.random.choice(list(CloseCode)), "ours")

    def fail(self) -> None:
        if self.world.connection.gone:
            return
        self.world.connection.fail(CloseCode.PROTOCOL_ERROR, "ours")

    def peer_closes(self) -> None:
        self.arrives(sent(Opcode.PING) + sent(Opcode.CLOSE, b"\x0f\xa1theirs"))

    def peer_errs(self) -> None:
        self.arrives(sent(Opcode.TEXT, b"text") + BAD)

    def peer_goes(self) -> None:
        if self.world.reads():
            self.world.hangs_up()


def test_whatever_happens_nothing_follows_a_close_frame_and_it_ends_once_with_its_code() -> None:
    for seed in range(400):
        try:
            Chance(seed).run(40)
        except Exception as error:
            raise AssertionError(f"with seed {seed}") from error

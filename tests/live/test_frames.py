"""Frames: every rule of RFC 6455, section 5, by itself, and then all of them against the library `websockets`."""

import random
import struct
import sys

import pytest
from websockets.frames import Close, Frame
from websockets.frames import Opcode as TheirOpcode

from gateway.live import frames
from gateway.live.frames import Binary, Closed, Event, Failed, Opcode, Parser, Ping, Pong, Text
from tests.live import differential

MOST = 70_000
MASK = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
SPLIT = "€".encode()


def sent(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, form: int | None = None) -> bytes:
    """A client's frame; `form`: how many bytes its length takes beyond the first two, where it is not the least."""
    made = differential.Made(opcode, payload, fin=fin, reserved=reserved, form=form)
    return made.encode(random.Random(0))


def heard(data: bytes, max_size: int = MOST) -> list[Event]:
    """What a parser says to `data`, which is the same whether it arrives whole or byte by byte."""
    whole = Parser(max_size).feed(data)
    parser = Parser(max_size)
    events = [event for byte in data for event in parser.feed(bytes((byte,)))]
    assert events == whole
    return whole


def failure(data: bytes, max_size: int = MOST) -> int:
    """The code for the mistake in `data`, before which nothing is said."""
    (event,) = heard(data, max_size)
    assert isinstance(event, Failed)
    return event.code


def kept(parser: Parser) -> int:
    """Bytes that a parser keeps."""
    return len(parser._rest) + (len(parser._fragments.data) if parser._fragments else 0)


# --- Whole messages


def test_the_examples_of_the_rfc_are_understood() -> None:
    assert heard(bytes.fromhex("818537fa213d7f9f4d5158")) == [Text(b"Hello")]
    assert heard(bytes.fromhex("898537fa213d7f9f4d5158")) == [Ping(b"Hello")]
    assert heard(bytes.fromhex("8a8537fa213d7f9f4d5158")) == [Pong(b"Hello")]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 1, 2, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536, 65_537])
def test_a_message_of_any_length_is_understood(opcode: Opcode, size: int) -> None:
    payload = bytes(number % 128 for number in range(size))
    kind = Text if opcode is TEXT else Binary
    parser = Parser(MOST)
    assert parser.feed(sent(opcode, payload)) == [kind(payload)]
    data = sent(opcode, payload)
    for cut in {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, len(data) - 1} - set(range(len(data), 20)):
        assert parser.feed(data[:cut]) == []
        assert parser.feed(data[cut:]) == [kind(payload)]


@pytest.mark.parametrize("size", [0, 5, 125, 126, 300])
@pytest.mark.parametrize("form", [2, 8])
def test_a_length_may_take_more_bytes_than_it_needs(size: int, form: int) -> None:
    assert heard(sent(TEXT, b"." * size, form=form)) == [Text(b"." * size)]


def test_many_frames_that_arrive_together_come_in_their_order() -> None:
    data = sent(TEXT, b"one") + sent(Opcode.PING, b"two") + sent(BINARY, b"three") + sent(Opcode.PONG) + sent(TEXT)
    assert heard(data) == [Text(b"one"), Ping(b"two"), Binary(b"three"), Pong(b""), Text(b"")]


def test_bytes_that_stay_incomplete_say_nothing() -> None:
    assert heard(b"") == []
    assert heard(sent(TEXT, b"Hello")[:-1]) == []


@pytest.mark.parametrize("mask", [bytes(4), b"\xff\xff\xff\xff", MASK])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 8, 9, 63, 64, 65])
def test_every_mask_is_taken_off_whatever_the_length(mask: bytes, size: int) -> None:
    payload = bytes(range(size))
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    assert heard(bytes((0x82, 0x80 | size)) + mask + masked) == [Binary(payload)]


def test_frames_are_counted_once_each_is_complete() -> None:
    parser = Parser(MOST)
    data = sent(TEXT, b"a", fin=False) + sent(Opcode.PING) + sent(CONTINUATION, b"b") + sent(Opcode.CLOSE)
    parser.feed(data[:-1])
    assert parser.frames == 3
    parser.feed(data[-1:])
    assert parser.frames == 4


# --- Fragments


def test_fragments_are_put_together() -> None:
    data = sent(TEXT, b"Hel", fin=False) + sent(CONTINUATION, b"l", fin=False) + sent(CONTINUATION, b"o")
    assert heard(data) == [Text(b"Hello")]
    data = sent(BINARY, b"\xff", fin=False) + sent(CONTINUATION, b"\xfe")
    assert heard(data) == [Binary(b"\xff\xfe")]


def test_fragments_may_be_empty() -> None:
    assert heard(sent(TEXT, fin=False) + sent(CONTINUATION, fin=False) + sent(CONTINUATION)) == [Text(b"")]
    data = sent(TEXT, fin=False) + sent(CONTINUATION, b"a", fin=False) + sent(CONTINUATION)
    assert heard(data) == [Text(b"a")]
    assert heard(sent(BINARY, fin=False) + sent(CONTINUATION)) == [Binary(b"")]


def test_control_frames_may_come_between_fragments() -> None:
    data = sent(TEXT, b"a", fin=False) + sent(Opcode.PING, b"p") + sent(CONTINUATION, b"b", fin=False)
    data += sent(Opcode.PONG, b"q") + sent(CONTINUATION, b"c")
    assert heard(data) == [Ping(b"p"), Pong(b"q"), Text(b"abc")]


def test_a_fragmented_message_leaves_nothing_to_the_next() -> None:
    data = sent(BINARY, b"\xff", fin=False) + sent(CONTINUATION) + sent(TEXT, b"a") + sent(TEXT, b"b", fin=False)
    assert heard(data + sent(CONTINUATION, b"c")) == [Binary(b"\xff"), Text(b"a"), Text(b"bc")]


def test_a_continuation_of_nothing_is_a_mistake() -> None:
    assert failure(sent(CONTINUATION, b"a")) == 1002
    assert failure(sent(CONTINUATION, b"a", fin=False)) == 1002
    whole = sent(TEXT, b"a", fin=False) + sent(CONTINUATION, b"b")
    assert heard(whole + sent(CONTINUATION)) == [Text(b"ab"), Failed(1002, "unexpected continuation frame")]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_message_within_another_is_a_mistake(opcode: Opcode, fin: bool) -> None:
    assert failure(sent(TEXT, b"a", fin=False) + sent(opcode, b"b", fin=fin)) == 1002


# --- Headers


@pytest.mark.parametrize("opcode", sorted(set(range(16)) - set(Opcode)))
def test_a_reserved_opcode_is_a_mistake(opcode: int) -> None:
    assert failure(sent(opcode)) == 1002


@pytest.mark.parametrize("reserved", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_a_reserved_bit_is_a_mistake(opcode: Opcode, reserved: int) -> None:
    assert failure(sent(opcode, reserved=reserved)) == 1002
    assert failure(sent(TEXT, b"a", fin=False) + sent(CONTINUATION, reserved=reserved)) == 1002


@pytest.mark.parametrize("opcode", list(Opcode))
def test_a_frame_without_a_mask_is_a_mistake(opcode: Opcode) -> None:
    assert failure(frames.frame(opcode, b"")) == 1002


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (b"\x83\x80", 1002),
        (b"\x81\x00", 1002),
        (b"\xc1\x85", 1002),
        (b"\x80\x85", 1002),
        (b"\x09\x80", 1002),
        (b"\x89\xfe\x00\x7e", 1002),
        (b"\x89\xff" + bytes(7) + b"\x7e", 1002),
        (b"\x89\xff\xff" + bytes(7), 1002),
        (b"\x81\xfe\x01\x2d", 1009),
        (b"\x81\xff\x80" + bytes(7), 1009),
        (b"\x82\xff" + b"\xff" * 8, 1009),
    ],
)
def test_a_mistake_in_a_header_is_found_without_the_mask_and_the_payload(wrong: bytes, code: int) -> None:
    assert failure(wrong, 300) == code
    assert heard(wrong[:-1], 300) == []


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_mistake_about_fragments_is_found_without_the_payload(opcode: Opcode) -> None:
    assert failure(sent(TEXT, b"a", fin=False) + bytes((0x80 | opcode, 0x85))) == 1002


# --- The longest message


@pytest.mark.parametrize("max_size", [0, 1, 125, 126, 300, 65_535, 65_536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_may_have_the_greatest_size_and_no_more(opcode: Opcode, max_size: int) -> None:
    assert len(Parser(max_size).feed(sent(opcode, b"." * max_size))) == 1
    (event,) = Parser(max_size).feed(sent(opcode, b"." * (max_size + 1)))
    assert isinstance(event, Failed)
    assert event.code == 1009


@pytest.mark.parametrize(("parts", "fits"), [((150, 150), True), ((299, 0, 1), True), ((150, 151), False)])
def test_the_greatest_size_is_that_of_all_fragments_together(parts: tuple[int, ...], fits: bool) -> None:
    data = b""
    for number, size in enumerate(parts):
        data += sent(CONTINUATION if number else TEXT, b"." * size, fin=number == len(parts) - 1)
    assert heard(data, 300) == ([Text(b"." * 300)] if fits else [Failed(1009, "a message has at most 300 bytes here")])


def test_a_message_starts_to_count_anew_after_the_one_before() -> None:
    message = sent(TEXT, b"." * 200, fin=False) + sent(CONTINUATION, b"." * 100)
    assert heard(message + message + sent(TEXT, b"." * 300), 300) == [Text(b"." * 300)] * 3


def test_control_frames_do_not_count_for_the_message_around_them() -> None:
    full = sent(TEXT, b"." * 300, fin=False)
    assert heard(full + sent(Opcode.PING, b"p" * 125) + sent(CONTINUATION), 300) == [Ping(b"p" * 125), Text(b"." * 300)]
    assert heard(sent(Opcode.PONG, b"p" * 125), 0) == [Pong(b"p" * 125)]
    assert heard(sent(Opcode.CLOSE, b"\x03\xe8bye"), 0) == [Closed(1000, "bye", b"\x03\xe8bye")]


# --- UTF-8

NO_UTF8 = [
    *(
        b"\x80",
        b"\xbf",
        b"\xff",
        b"\xfe",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
    ),
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),
    *(b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xe2(\xa1"),
]
LETTERS = "\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\ufeff\uffff\U00010000\U0010ffff"


@pytest.mark.parametrize("letter", LETTERS)
def test_every_character_passes_whole_and_cut_across_fragments(letter: str) -> None:
    text = f"a{letter}b".encode()
    assert heard(sent(TEXT, text)) == [Text(text)]
    for cut in range(len(text) + 1):
        assert heard(sent(TEXT, text[:cut], fin=False) + sent(CONTINUATION, text[cut:])) == [Text(text)]
    single = [sent(CONTINUATION, bytes((byte,)), fin=False) for byte in text]
    assert heard(sent(TEXT, fin=False) + b"".join(single) + sent(CONTINUATION)) == [Text(text)]


@pytest.mark.parametrize("wrong", NO_UTF8)
def test_a_text_that_is_no_utf_8_is_a_mistake_wherever_it_is_wrong(wrong: bytes) -> None:
    assert failure(sent(TEXT, wrong)) == 1007
    assert failure(sent(TEXT, b"abc" + wrong)) == 1007
    for cut in range(len(wrong) + 1):
        assert failure(sent(TEXT, wrong[:cut], fin=False) + sent(CONTINUATION, wrong[cut:])) == 1007


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc0", b"\xe0\x9f", b"\xf4\x90", b"\xed\xa0\x80", SPLIT[:2] + b"a"])
def test_what_cannot_become_utf_8_is_found_in_the_fragment_that_shows_it(wrong: bytes) -> None:
    assert failure(sent(TEXT, b"abc" + wrong, fin=False)) == 1007
    assert failure(sent(TEXT, wrong[:-1], fin=False) + sent(CONTINUATION, wrong[-1:], fin=False)) == 1007


def test_a_character_may_stay_incomplete_until_the_last_fragment_only() -> None:
    begun = sent(TEXT, SPLIT[:2], fin=False) + sent(Opcode.PING)
    assert heard(begun) == [Ping(b"")]
    assert heard(begun + sent(CONTINUATION, SPLIT[2:])) == [Ping(b""), Text(SPLIT)]
    assert heard(begun + sent(CONTINUATION)) == [Ping(b""), Failed(1007, "invalid UTF-8")]


def test_a_surrogate_is_found_with_its_third_byte_at_the_latest() -> None:
    begun = sent(TEXT, b"\xed\xa0", fin=False)  # Python's decoder waits for one byte more than it would have to
    assert failure(begun + sent(CONTINUATION, b"a", fin=False)) == 1007
    assert failure(begun + sent(CONTINUATION)) == 1007


def test_binary_messages_and_pings_need_not_be_utf_8() -> None:
    assert heard(sent(BINARY, b"\xff", fin=False) + sent(CONTINUATION, b"\xff")) == [Binary(b"\xff\xff")]
    assert heard(sent(Opcode.PING, b"\xff") + sent(Opcode.PONG, b"\xff")) == [Ping(b"\xff"), Pong(b"\xff")]


# --- Control frames


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_control_frame_may_have_125_bytes(opcode: Opcode, size: int) -> None:
    kind = Ping if opcode is Opcode.PING else Pong
    assert heard(sent(opcode, b"\x01" * size)) == [kind(b"\x01" * size)]


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
@pytest.mark.parametrize("size", [126, 127, 65_535, 65_536])
def test_a_longer_one_is_a_mistake(opcode: Opcode, size: int) -> None:
    assert failure(sent(opcode, b"\x03\xe8" + b"." * (size - 2))[:20]) == 1002


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_a_control_frame_cannot_be_fragmented(opcode: Opcode) -> None:
    assert failure(sent(opcode, fin=False)) == 1002


# --- Close frames

BORDERS = sorted({code + near for code in (0, 1000, 1003, 1007, 1014, 3000, 4999) for near in (-1, 0, 1)} - {-1})
SAMPLED = [*BORDERS, 1004, 1005, 1006, 1010, 1011, 1012, 1016, 1100, 2000, 2999, 3500, 4000, 4408, 5000, 65_535]


def may_be_sent(code: int) -> bool:
    """RFC 6455, section 7.4: not those that only stand for something, nor those that nobody has defined."""
    return code in range(1000, 5000) and code not in {1004, 1005, 1006} and code not in range(1015, 3000)


@pytest.mark.parametrize("code", SAMPLED)
def test_a_close_code_is_understood_where_it_may_be_sent(code: int) -> None:
    payload = struct.pack("!H", code)
    if may_be_sent(code):
        assert heard(sent(Opcode.CLOSE, payload)) == [Closed(code, "", payload)]
    else:
        assert failure(sent(Opcode.CLOSE, payload)) == 1002


def test_every_close_code_is_judged_alike_by_both() -> None:
    for code in range(5001):
        (event,) = Parser(MOST).feed(sent(Opcode.CLOSE, struct.pack("!H", code)))
        assert isinstance(event, Closed) is may_be_sent(code)


def test_a_close_frame_without_a_code_stands_for_1005() -> None:
    assert heard(sent(Opcode.CLOSE)) == [Closed(1005, "", b"")]


@pytest.mark.parametrize("reason", ["", "bye", "ü€😀", "." * 123])
def test_a_reason_is_passed_on_with_the_payload(reason: str) -> None:
    payload = b"\x0f\xa0" + reason.encode()
    assert heard(sent(Opcode.CLOSE, payload)) == [Closed(4000, reason, payload)]


def test_a_close_frame_of_one_byte_is_a_mistake() -> None:
    assert failure(sent(Opcode.CLOSE, b"\x03")) == 1002


@pytest.mark.parametrize("wrong", NO_UTF8)
def test_a_reason_that_is_no_utf_8_is_a_mistake(wrong: bytes) -> None:
    assert failure(sent(Opcode.CLOSE, b"\x03\xe8" + wrong)) == 1007


def test_a_close_frame_may_come_within_a_message() -> None:
    data = sent(TEXT, b"a", fin=False) + sent(Opcode.CLOSE, b"\x03\xe9")
    assert heard(data) == [Closed(1001, "", b"\x03\xe9")]


# --- The end, and what is kept


@pytest.mark.parametrize("last", [sent(Opcode.CLOSE), sent(Opcode.CLOSE, b"\x03"), sent(3), sent(TEXT, b"\xff")])
def test_nothing_comes_after_the_end(last: bytes) -> None:
    parser = Parser(MOST)
    more = sent(TEXT, b"more") + sent(Opcode.PING)
    assert len(parser.feed(last + more)) == 1
    assert parser.feed(more) == []
    assert parser.feed(sent(3)) == []
    assert kept(parser) == 0


def test_what_came_before_a_mistake_is_not_lost() -> None:
    data = sent(TEXT, b"a") + sent(Opcode.PING) + sent(TEXT, b"\xff")
    assert heard(data) == [Text(b"a"), Ping(b""), Failed(1007, "invalid UTF-8")]


def test_nothing_is_kept_while_nothing_is_incomplete() -> None:
    parser = Parser(MOST)
    parser.feed(sent(TEXT, b"a") + sent(BINARY, b"b", fin=False) + sent(CONTINUATION, b"c"))
    assert kept(parser) == 0
    assert parser._fragments is None


@pytest.mark.parametrize("max_size", [0, 300, 16 * 1024])
@pytest.mark.parametrize("form", [2, 8])
def test_at_most_the_greatest_message_and_a_header_are_kept(max_size: int, form: int) -> None:
    for parts in ((max_size,), (max_size // 2, max_size - max_size // 2), (max_size, 0)):
        parser, most = Parser(max_size), 0
        for number, size in enumerate(parts):
            data = sent(CONTINUATION if number else TEXT, b"." * size, fin=number == len(parts) - 1, form=form)
            for start in range(0, len(data), 7):
                parser.feed(data[start : start + 7])
                most = max(most, kept(parser))
        assert most <= max_size + 14


def test_beside_a_message_a_control_frame_may_be_kept_too() -> None:
    parser = Parser(300)
    parser.feed(sent(TEXT, b"." * 300, fin=False) + sent(Opcode.PING, b"p" * 125)[:-1])
    assert kept(parser) == 300 + 6 + 124


def test_any_number_of_empty_fragments_takes_no_memory() -> None:
    parser = Parser(300)
    parser.feed(sent(TEXT, b"a", fin=False))
    assert parser._fragments is not None
    before = sys.getsizeof(parser._fragments.data)
    parser.feed(sent(CONTINUATION, fin=False) * 10_000)
    assert sys.getsizeof(parser._fragments.data) == before
    assert kept(parser) == 1


# --- What is sent


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG, Opcode.CLOSE])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_a_frame_is_written_as_theirs_is(opcode: Opcode, size: int) -> None:
    if opcode < Opcode.CLOSE or size <= frames.MOST_CONTROL_BYTES:
        assert frames.frame(opcode, b"." * size) == Frame(TheirOpcode(opcode), b"." * size).serialize(mask=False)


def test_a_text_frame_is_a_whole_text_message() -> None:
    assert frames.text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")


@pytest.mark.parametrize("reason", ["", "bye", "ü€😀", "." * 123])
def test_a_close_frame_is_written_as_theirs_is(reason: str) -> None:
    theirs = Frame(TheirOpcode.CLOSE, Close(4408, reason).serialize()).serialize(mask=False)
    assert frames.close_frame(4408, reason) == theirs


@pytest.mark.parametrize("lead", range(4))
def test_a_reason_that_is_too_long_is_cut_between_characters(lead: int) -> None:
    data = frames.close_frame(1000, "." * (119 + lead) + "😀" * 40)
    assert data[1] == len(data) - 2 <= frames.MOST_CONTROL_BYTES
    assert len(data) > 2 + frames.MOST_CONTROL_BYTES - 4
    Close.parse(data[2:])


# --- Against theirs


def test_whatever_is_sent_both_say_the_same() -> None:
    found: list[str] = []
    counts = differential.compare_many(3000, 1, found.append)
    assert not found, "\n".join(found)
    assert {"Text", "Binary", "Ping", "Pong", "Closed", "Failed 1002", "Failed 1007", "Failed 1009"} <= set(counts)
    assert counts["found early"]
    assert counts["control frames in large messages"]

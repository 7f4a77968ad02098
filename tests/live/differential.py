"""Our frame parser against the one of the library `websockets`: the same bytes, cut in the same places.

`python -m tests.live.differential COUNT SEED` compares COUNT streams and prints what differs. A stream is made of
frames that are mostly right, then bent in a few places; the same seed and number give the same stream anywhere.
"""

import codecs
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from gateway.live.frames import NO_CODE, Binary, Closed, Event, Failed, Opcode, Parser, Ping, Pong, Text

SMALL, LARGE = 300, 16 * 1024
CONTROL = 70_000
"""The limit that control frames are given in `Lenient`; no stream has it for its messages."""

MOST_FILLER = 4 + CONTROL
"""What a frame with a wrong header can still lack, where its size is not the mistake."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one peer sends: `pieces`, together `data`, to a parser of messages of `max_size` bytes."""

    max_size: int
    data: bytes
    pieces: tuple[bytes, ...]


# --- Theirs


class Lenient(ServerProtocol):
    """Theirs, but a control frame has its own limit, whatever the size of the message around it."""

    max_size = 0

    @property
    def max_message_size(self) -> int | None:
        """The limit of the frame whose first byte has come: theirs asks for it then."""
        control = self.reader.buffer and self.reader.buffer[0] & 0x08
        return CONTROL + (self.current_size or 0) if control else self.max_size

    @max_message_size.setter
    def max_message_size(self, given: int | None) -> None:
        self.max_size = given or 0


class Theirs:
    """Their server's protocol, and the check of UTF-8 that their asyncio layer makes frame by frame."""

    def __init__(self, max_size: int, *, lenient: bool = False) -> None:
        kind = Lenient if lenient else ServerProtocol
        self._protocol = kind(state=State.OPEN, max_size=max_size)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._parts: list[bytes] = []
        self.frames = 0
        self.events: list[Event] = []

    def over(self) -> bool:
        """Whether nothing can come any more."""
        return bool(self.events) and isinstance(self.events[-1], Closed | Failed)

    @property
    def too_big(self) -> bool:
        """Whether it ended for the size of a frame."""
        return isinstance(self._protocol.parser_exc, PayloadTooBig)

    def feed(self, data: bytes) -> None:
        """Collect what is complete with `data`."""
        if self.over():
            return
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            assert isinstance(frame, Frame)
            self.frames += 1
            self._take(frame)
            if self.over():
                return
        if self._protocol.parser_exc is not None:
            self.events.append(self._failure())

    def _failure(self) -> Event:
        within = self._protocol.close_rcvd
        if within is not None:  # a close frame between fragments: theirs calls that a mistake
            code = struct.pack("!H", within.code) if within.code != NO_CODE else b""
            return Closed(within.code, within.reason, code + within.reason.encode())
        sent = self._protocol.close_sent
        assert sent is not None
        error = self._protocol.parser_exc
        if isinstance(error, PayloadTooBig) and (error.max_size or 0) >= CONTROL:
            return Failed(1002, "")  # of whatever is wrong with it as well, theirs names the size first
        return Failed(sent.code, sent.reason)

    def _take(self, frame: Frame) -> None:
        data = bytes(frame.data)
        if frame.opcode is TheirOpcode.PING:
            self.events.append(Ping(data))
        elif frame.opcode is TheirOpcode.PONG:
            self.events.append(Pong(data))
        elif frame.opcode is TheirOpcode.CLOSE:
            close = self._protocol.close_rcvd
            assert close is not None
            self.events.append(Closed(close.code, close.reason, data))
        else:
            self._take_data(frame, data)

    def _take_data(self, frame: Frame, data: bytes) -> None:
        if frame.opcode is not TheirOpcode.CONT:
            self._decoder = codecs.getincrementaldecoder("utf-8")() if frame.opcode is TheirOpcode.TEXT else None
            self._parts = []
        if self._decoder is not None:
            try:
                self._decoder.decode(data, frame.fin)
            except UnicodeDecodeError:
                self.events.append(Failed(1007, "invalid UTF-8"))
                return
        self._parts.append(data)
        if frame.fin:
            message = b"".join(self._parts)
            self.events.append(Text(message) if self._decoder is not None else Binary(message))


# --- Comparing


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a comparison ended. `difference`: None where there is none but what is intended."""

    events: list[Event]
    difference: str | None
    early: bool = False
    """Ours found a wrong header without its payload."""
    lenient: bool = False
    """Theirs ended for a control frame in a large message."""


def compare(stream: Stream) -> Outcome:
    """Both over one stream."""
    outcome = _compare(stream, Theirs(stream.max_size))
    if outcome.difference is not None:
        theirs = Theirs(stream.max_size)
        theirs.feed(stream.data)
        again = _compare(stream, Theirs(stream.max_size, lenient=True))
        if theirs.too_big and _ended_at_control(stream, theirs) and again.difference is None:
            return replace(again, lenient=True)
    return outcome


def _compare(stream: Stream, theirs: Theirs) -> Outcome:
    parser, ours = Parser(stream.max_size), list[Event]()
    for number, piece in enumerate(stream.pieces):
        ours += parser.feed(piece)
        theirs.feed(piece)
        if not _agree(ours, theirs.events) and not _early(ours, theirs.events):
            return Outcome(ours, f"after piece {number}: ours {ours[-3:]}, theirs {theirs.events[-3:]}")
    early = _early(ours, theirs.events)
    if early:
        theirs.feed(bytes(MOST_FILLER))
        if not _agree(ours, theirs.events):
            return Outcome(ours, f"with filler: ours {ours[-3:]}, theirs {theirs.events[-3:]}", early)
    elif parser.frames != theirs.frames and not theirs.over():
        return Outcome(ours, f"frames: ours {parser.frames}, theirs {theirs.frames}")
    if theirs.over() and parser.feed(b"\x89\x80\0\0\0\0"):
        return Outcome(ours, "ours says something after its end")
    return Outcome(ours, None, early)


def _early(ours: list[Event], theirs: list[Event]) -> bool:
    return len(ours) == len(theirs) + 1 and isinstance(ours[-1], Failed) and ours[:-1] == theirs


def _agree(ours: list[Event], theirs: list[Event]) -> bool:
    """Of failures the codes are compared, and the reasons where they are about the protocol and theirs has one."""
    if len(ours) == len(theirs) and ours and isinstance(ours[-1], Failed) and isinstance(theirs[-1], Failed):
        a, b = ours[-1], theirs[-1]
        same = a.code == b.code and (a.reason == b.reason or a.code != 1002 or not b.reason)
        return same and ours[:-1] == theirs[:-1]
    return ours == theirs


def _ended_at_control(stream: Stream, theirs: Theirs) -> bool:
    """Whether the frame after those that theirs took is a control frame."""
    start = 0
    for _ in range(theirs.frames):
        size, start = stream.data[start + 1] & 0x7F, start + 2
        if size >= 126:
            length = 2 if size == 126 else 8
            size, start = int.from_bytes(stream.data[start : start + length]), start + length
        start += 4 + size
    return stream.data[start] & 0x08 != 0


# --- Making streams


@dataclass(slots=True)
class Made:
    """A frame to be written, right or wrong. `form`: the bytes its length takes beyond the header's two."""

    opcode: int
    payload: bytes
    fin: bool = True
    reserved: int = 0
    masked: bool = True
    form: int | None = None
    claimed: int | None = None

    def encode(self, random: Random) -> bytes:
        """Its bytes."""
        size = len(self.payload) if self.claimed is None else self.claimed
        form = (0 if size < 126 else 2 if size < 65_536 else 8) if self.form is None else self.form
        first = self.fin << 7 | self.reserved << 4 | self.opcode
        second = (self.masked << 7) | (size & 0x7F if form == 0 else 126 if form == 2 else 127)
        length = b"" if form == 0 else struct.pack("!H", size & 0xFFFF) if form == 2 else struct.pack("!Q", size)
        if not self.masked:
            return bytes((first, second)) + length + self.payload
        mask = random.randbytes(4) if random.random() < 0.9 else bytes(4)
        return bytes((first, second)) + length + mask + apply_mask(self.payload, mask)


_LETTERS = (
    "a",
    "Z",
    " ",
    "{",
    "\x00",
    "\x7f",
    "é",
    "ß",
    "\u07ff",
    "€",
    "\u0800",
    "\ud7ff",
    "\uffff",
    "😀",
    "\U0010ffff",
)
_NO_UTF8 = (
    *(
        b"\xff",
        b"\xfe",
        b"\x80",
        b"\xbf",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x80\x80\x80",
    ),
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80"),
    *(b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf4\x8f", b"\xe2(\xa1", b"\xf0\x9f(\x80"),
)
_CODES = (
    *(0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1011, 1012, 1013, 1014, 1015, 1016, 1100),
    *(1999, 2000, 2999, 3000, 3999, 4000, 4408, 4999, 5000, 5001, 9999, 65_535),
)


def make(seed: int, number: int) -> Stream:
    """The stream with this number."""
    random = Random(f"{seed}/{number}")
    max_size = random.choice((SMALL, SMALL, SMALL, LARGE, LARGE, random.choice((0, 1, 125, 126, 127, 65_535, 65_536))))
    if random.random() < 0.06:
        data = random.randbytes(random.randrange(200))
    else:
        data = _bent_bytes(random, b"".join(made.encode(random) for made in _frames(random, max_size)))
    return Stream(max_size, data, tuple(_pieces(random, data)))


def _frames(random: Random, max_size: int) -> list[Made]:
    frames: list[Made] = []
    for _ in range(random.choice((1, 1, 2, 3, 5, 8))):
        if random.random() < 0.25:
            frames.append(_control(random))
        else:
            frames += _message(random, max_size)
    if random.random() < 0.35:
        frames.append(_close(random))
        if random.random() < 0.2:
            frames += _message(random, max_size)
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        random.choice(_BENDS)(random, frames)
    return frames


def _message(random: Random, max_size: int) -> list[Made]:
    size = _size(random, max_size)
    if random.random() < 0.75:
        opcode, payload = Opcode.TEXT, _text(random, size)
        if random.random() < 0.12:
            place = random.randrange(len(payload) + 1)
            payload = payload[:place] + random.choice(_NO_UTF8) + payload[place:]
        elif random.random() < 0.03:
            payload = payload[:-1]
    else:
        opcode, payload = Opcode.BINARY, random.randbytes(size)
    if random.random() < 0.5:
        return [Made(opcode, payload)]
    return list(_fragments(random, opcode, payload))


def _fragments(random: Random, opcode: Opcode, payload: bytes) -> Iterator[Made]:
    places = sorted(random.randrange(len(payload) + 1) for _ in range(random.choice((0, 1, 1, 2, 3, 6))))
    borders = [0, *places, len(payload)]
    parts = [payload[start:end] for start, end in pairwise(borders)]
    if random.random() < 0.3:
        parts.insert(random.randrange(len(parts) + 1), b"")
    for number, part in enumerate(parts):
        yield Made(opcode if number == 0 else Opcode.CONTINUATION, part, fin=number == len(parts) - 1)
        while random.random() < 0.2 and number < len(parts) - 1:
            yield _control(random)


def _size(random: Random, max_size: int) -> int:
    choice = random.random()
    if choice < 0.55:
        return random.randrange(40)
    if choice < 0.7:
        return random.choice((0, 1, 2, 123, 124, 125, 126, 127, 128))
    if choice < 0.85:
        return max(0, max_size + random.choice((-2, -1, 0, 0, 1, 2)))
    if choice < 0.98:
        return random.randrange(max_size + 1)
    return random.choice((65_534, 65_535, 65_536, 65_537))


def _text(random: Random, size: int) -> bytes:
    """Valid UTF-8 of `size` bytes; a character that would be too long is replaced with some of one byte."""
    some = "".join(random.choices(_LETTERS, k=min(size, 24))).encode()
    whole = some * (size // len(some) + 1) if some else b""
    text = whole[:size].decode(errors="ignore").encode()
    return text + b"." * (size - len(text))


def _control(random: Random) -> Made:
    size = random.choice((0, 0, 1, 4, random.randrange(126), 124, 125))
    return Made(random.choice((Opcode.PING, Opcode.PONG)), random.randbytes(size))


def _close(random: Random) -> Made:
    choice = random.random()
    if choice < 0.12:
        return Made(Opcode.CLOSE, b"")
    if choice < 0.2:
        return Made(Opcode.CLOSE, random.randbytes(1))
    code = random.choice(_CODES) if choice < 0.7 else random.randrange(5100)
    reason = _text(random, random.choice((0, 0, 1, 10, 122, 123, 123, 124)))
    if random.random() < 0.2:
        reason = (reason + random.choice(_NO_UTF8))[: random.choice((2, 123, 130))]
    return Made(Opcode.CLOSE, struct.pack("!H", code) + reason)


# --- Bending what is right


def _one(random: Random, frames: list[Made]) -> Made:
    return random.choice(frames)


def _bend_opcode(random: Random, frames: list[Made]) -> None:
    _one(random, frames).opcode = random.randrange(16)


def _bend_reserved(random: Random, frames: list[Made]) -> None:
    _one(random, frames).reserved = random.randrange(8)


def _unmask(random: Random, frames: list[Made]) -> None:
    _one(random, frames).masked = False


def _bend_form(random: Random, frames: list[Made]) -> None:
    """A length that takes more bytes than it needs, or has lost some."""
    _one(random, frames).form = random.choice((0, 2, 8, 8))


def _bend_claim(random: Random, frames: list[Made]) -> None:
    made = _one(random, frames)
    near = len(made.payload) + random.choice((-1, 1, 2, 10))
    made.claimed = max(0, random.choice((near, near, random.randrange(70_000), 2**31, 2**63 - 1, 2**63, 2**64 - 1)))


def _bend_fin(random: Random, frames: list[Made]) -> None:
    made = _one(random, frames)
    made.fin = not made.fin


def _lengthen_control(random: Random, frames: list[Made]) -> None:
    size = random.choice((126, 127, 200, 299, 300, 301, 16_384, 16_385, 65_535, 65_536))
    made = Made(random.choice((Opcode.PING, Opcode.PONG, Opcode.CLOSE)), random.randbytes(size))
    frames.insert(random.randrange(len(frames) + 1), made)


def _drop(random: Random, frames: list[Made]) -> None:
    if len(frames) > 1:
        del frames[random.randrange(len(frames))]


def _repeat(random: Random, frames: list[Made]) -> None:
    frames.insert(random.randrange(len(frames) + 1), replace(_one(random, frames)))


def _swap(random: Random, frames: list[Made]) -> None:
    a, b = random.randrange(len(frames)), random.randrange(len(frames))
    frames[a], frames[b] = frames[b], frames[a]


def _insert(random: Random, frames: list[Made]) -> None:
    """A frame where it may not belong: a continuation, a message, a close frame."""
    opcode = random.choice((Opcode.CONTINUATION, Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY))
    made = Made(opcode, _text(random, random.randrange(8)), fin=random.random() < 0.6)
    frames.insert(random.randrange(len(frames) + 1), _close(random) if random.random() < 0.3 else made)


def _spoil(random: Random, frames: list[Made]) -> None:
    """One byte of a payload."""
    made = _one(random, frames)
    if made.payload:
        place = random.choice((0, len(made.payload) - 1, random.randrange(len(made.payload))))
        made.payload = made.payload[:place] + random.randbytes(1) + made.payload[place + 1 :]


_BENDS: tuple[Callable[[Random, list[Made]], None], ...] = (
    *(_bend_opcode, _bend_reserved, _unmask, _bend_form, _bend_form, _bend_claim, _bend_fin, _bend_fin),
    *(_lengthen_control, _drop, _drop, _repeat, _swap, _insert, _insert, _spoil, _spoil),
)


def _bent_bytes(random: Random, data: bytes) -> bytes:
    """Now and then an end that is cut off, rubbish after it, or a byte too much, too little or wrong."""
    choice, place = random.random(), random.randrange(len(data) + 1)
    if choice < 0.1:
        return data[:place]
    if choice < 0.14:
        return data[: random.randrange(min(16, len(data)) + 1)]
    if choice < 0.18:
        return data + random.randbytes(random.randrange(1, 20))
    if choice < 0.26:
        lost, given = random.choice(((1, 0), (0, 1), (1, 1)))
        return data[:place] + random.randbytes(given) + data[place + lost :]
    return data


def _pieces(random: Random, data: bytes) -> Iterator[bytes]:
    """The data as it arrives: whole, byte by byte, in small pieces, or cut in a few places."""
    choice = random.random()
    if choice < 0.2:
        yield data
        return
    if choice < 0.35 and len(data) < 1500:
        places: list[int] = list(range(1, len(data)))
    elif choice < 0.6 and len(data) < 3000:
        places = []
        while (place := (places[-1] if places else 0) + random.randrange(1, 12)) < len(data):
            places.append(place)
    else:
        places = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 8)))
    borders = [0, *places, len(data)]
    for start, end in pairwise(borders):
        yield data[start:end]


# --- The program


def compare_many(count: int, seed: int, report: Callable[[str], None]) -> Counter[str]:
    """Compare so many streams; every difference is reported. What happened is counted."""
    counts: Counter[str] = Counter()
    for number in range(count):
        outcome = compare(make(seed, number))
        if outcome.difference is not None:
            counts["differences"] += 1
            report(f"seed {seed}, stream {number}: {outcome.difference}")
        counts["found early"] += outcome.early
        counts["control frames in large messages"] += outcome.lenient
        for event in outcome.events:
            code = f" {event.code}" if isinstance(event, Failed) else ""
            counts[type(event).__name__ + code] += 1
    return counts


def main(count: int, seed: int) -> int:
    """Print differences, then what happened; 1 where something differs."""
    began = time.monotonic()
    counts = compare_many(count, seed, lambda line: print(line, flush=True))  # noqa: T201
    print(f"{count} streams, seed {seed}, {time.monotonic() - began:.0f} s: {dict(counts)}")  # noqa: T201
    return 1 if counts["differences"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

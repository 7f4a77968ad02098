"""What a client must not do on the wire, whatever is done to it, and who has done it."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import orjson
from websockets.frames import Opcode

from tests.conformance.wire import Message, Request

MOST_A_SECOND = 20
"""So many requests with the same method and address, a second, are what no backoff explains. (The address of a call
about a video has its id.)"""

SLACK_S = 0.1
"""A request may have been on its way when the answer came that asks for a pause."""

FRESH_S = 1.0
"""For so long after a client was opened, or got another network, it may have given up what it listened to before it
heard what came by that."""

_LISTENING = frozenset({"GET /v1/ws", "GET /v1/poll"})

FRAME_BYTES, BODY_BYTES, SYNC_BYTES = 16 * 1024, 16 * 1024, 64 * 1024


class Kind(StrEnum):
    """What a finding is about. `docs/conformance.md` explains each."""

    # Seen on the wire.
    AUTHORIZATION = "authorization"
    TOKEN_IN_QUERY = "token in query"
    TOO_LARGE = "too large"
    FRAME = "frame"
    NO_PAUSE = "no pause"
    TOO_SOON = "too soon"
    DISPLACED = "displaced"
    ACKNOWLEDGED = "acknowledged"
    # Told by the client, or not told.
    BACKWARDS = "backwards"
    TOLD_TWICE = "told twice"
    BYTES = "bytes"
    ENDED = "ended"
    MUTE = "mute"
    # How it ended.
    LOST = "lost"
    VIEWED = "viewed"
    LISTS = "lists"
    UNREGISTERED = "unregistered"
    # Nothing of the client's.
    TOO_BUSY = "too busy"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a client did wrong. `who`: `account/device`, or the account where more is not known."""

    kind: Kind
    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.who} {self.text}"


def is_signed(request: Request) -> bool:
    """Whether a request is for a signed URL, and not a call."""
    return request.path.startswith("/objects/")


def members(data: bytes) -> Mapping[str, object]:
    """The members of a JSON object; none of anything else."""
    try:
        found = orjson.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Witness:
    """Sees what goes to and fro in a story. `tell`: is told each finding, once for each kind and client."""

    def __init__(self, tell: Callable[[Finding], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._found: set[tuple[Kind, str]] = set()
        self._asked: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=MOST_A_SECOND))
        self._waits: dict[tuple[str, str], float] = {}
        self._delivered: dict[str, set[int]] = defaultdict(lambda: {0})
        self._displaced: set[str] = set()
        self._nudged: dict[str, float] = {}

    def found(self, kind: Kind, who: str, text: str) -> None:
        """Tell a finding, unless there is one of that kind about that client."""
        if (kind, who) not in self._found:
            self._found.add((kind, who))
            self._tell(Finding(kind, who, text))

    # --- What happens to a client

    def delivered(self, who: str, version: int) -> None:
        """The packet of that version is on its way to it, whole."""
        self._delivered[who].add(version)

    def told_to_wait(self, who: str, request: Request, body: bytes, seconds: float) -> None:
        """The answer to a request asks for a pause before the next like it."""
        if str(request) not in _LISTENING or not self._fresh(who):
            self._waits[who, _like(request, body)] = self._clock() + seconds

    def displaced(self, who: str) -> None:
        """Its socket was closed with 4409."""
        if not self._fresh(who):
            self._displaced.add(who)

    def nudged(self, who: str) -> None:
        """It may try sockets again: it was opened, or has another network."""
        self._nudged[who] = self._clock()
        self._displaced.discard(who)
        for request in _LISTENING:
            self._waits.pop((who, request), None)

    def restarted(self, who: str) -> None:
        """It begins anew, and need not remember pauses."""
        self.nudged(who)
        account = who.partition("/")[0]
        self._waits = {key: until_s for key, until_s in self._waits.items() if key[0] not in {who, account}}

    # --- What a client does

    def asks(self, who: str, request: Request) -> None:
        """The head of a request has come. `who`: at a signed URL only an account."""
        now_s = self._clock()
        asked = self._asked[who, str(request)]
        if len(asked) == MOST_A_SECOND and now_s - asked[0] < 1:
            self.found(Kind.NO_PAUSE, who, f"repeats {request} more than {MOST_A_SECOND} times within a second")
        asked.append(now_s)
        if is_signed(request) and "authorization" in request.headers:
            self.found(Kind.AUTHORIZATION, who, f"shows its token at a signed URL: {request}")
        if not is_signed(request) and "eyJ" in request.target:
            self.found(Kind.TOKEN_IN_QUERY, who, f"has a token in the address of {request}")
        if request.asks_for_a_socket:
            self._waited(who, request, b"")
            self._acknowledges(who, request.query.get("version", "0"))
            if who in self._displaced:
                self.found(Kind.DISPLACED, who, "connects again after 4409, though nothing has changed")

    def asks_with(self, who: str, request: Request, body: bytes) -> None:
        """All of a request has come."""
        self._waited(who, request, body)
        if is_signed(request):
            return
        if len(body) > (SYNC_BYTES if request.path == "/v1/sync" else BODY_BYTES):
            self.found(Kind.TOO_LARGE, who, f"sends {len(body)} bytes with {request}")
        known, query = request.headers.get("if-none-match", "0").strip('"'), request.query
        for version in (known, query.get("version", "0"), members(body).get("version", 0)):
            self._acknowledges(who, version)

    def says(self, who: str, message: Message) -> None:
        """A frame has come over its socket."""
        if not message.masked or message.opcode is Opcode.BINARY:
            what = "a binary message" if message.masked else "a frame without a mask"
            self.found(Kind.FRAME, who, f"sends {what}")
        if len(message.data) > FRAME_BYTES:
            self.found(Kind.TOO_LARGE, who, f"sends a frame of {len(message.data)} bytes")
        if message.opcode is Opcode.TEXT and message.fin:
            said = members(message.data)
            if said.get("type") not in {"ack", "status", "token"}:
                self.found(Kind.FRAME, who, f"sends a message of the type {said.get('type')!r}")
            self._acknowledges(who, said.get("version", 0))

    def _fresh(self, who: str) -> bool:
        return self._clock() < self._nudged.get(who, -FRESH_S) + FRESH_S

    def _waited(self, who: str, request: Request, body: bytes) -> None:
        short_s = self._waits.pop((who, _like(request, body)), 0) - self._clock()
        if short_s > SLACK_S:
            self.found(Kind.TOO_SOON, who, f"repeats {request} {short_s:.1f} s before the time that it was told")

    def _acknowledges(self, who: str, version: object) -> None:
        number = int(version) if isinstance(version, int) or (isinstance(version, str) and version.isdecimal()) else -1
        if number not in self._delivered[who]:
            self.found(Kind.ACKNOWLEDGED, who, f"acknowledges the version {version}, which never came to it")


def _like(request: Request, body: bytes) -> str:
    """What is the same for requests that repeat each other: announcements differ in what they announce, and what is
    signed in its signature."""
    if str(request) == "POST /v1/videos":
        return f"{request}:{hash(body)}"
    return request.target if is_signed(request) else str(request)

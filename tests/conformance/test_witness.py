"""What a client must not do on the wire is seen, and what it may do is not taken for it."""

import re
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from websockets.frames import Opcode

from tests.conformance.wire import Message, Request
from tests.conformance.witness import MOST_A_SECOND, Finding, Kind, Witness

ANN = "ann/phone"
SYNC = Request("POST", "/v1/sync", {})
SOCKET = Request("GET", "/v1/ws?device_id=phone&version=0", {"upgrade": "websocket"})


class Seen:
    """A witness, what it has found, and the time that it sees."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.now_s = 100.0
        self.witness = Witness(self.findings.append, lambda: self.now_s)

    @property
    def kinds(self) -> list[Kind]:
        return [finding.kind for finding in self.findings]


@pytest.fixture
def seen() -> Seen:
    return Seen()


def spoken(text: object, opcode: Opcode = Opcode.TEXT, *, masked: bool = True) -> Message:
    return Message(opcode, orjson.dumps(text), fin=True, masked=masked)


def test_a_token_is_no_business_of_the_store(seen: Seen) -> None:
    seen.witness.asks("ann", Request("PUT", "/objects/1/2/ann/bob?signature=1", {}))
    assert not seen.kinds
    seen.witness.asks("ann", Request("PUT", "/objects/1/2/ann/bob?signature=1", {"authorization": "Bearer x"}))
    assert seen.kinds == [Kind.AUTHORIZATION]


def test_a_token_does_not_belong_in_an_address(seen: Seen) -> None:
    seen.witness.asks(ANN, Request("GET", "/v1/ws?token=eyJhbGciOiJIUzI1NiJ9.e30.x", SOCKET.headers))
    assert seen.kinds == [Kind.TOKEN_IN_QUERY]


@pytest.mark.parametrize(
    ("path", "size", "kinds"),
    [
        ("/v1/videos", 16 * 1024, []),
        ("/v1/videos", 16 * 1024 + 1, [Kind.TOO_LARGE]),
        ("/v1/sync", 64 * 1024, []),
        ("/v1/sync", 64 * 1024 + 1, [Kind.TOO_LARGE]),
    ],
)
def test_bodies_have_limits(seen: Seen, path: str, size: int, kinds: list[Kind]) -> None:
    seen.witness.asks_with(ANN, Request("POST", path, {}), bytes(size))
    assert seen.kinds == kinds


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        (spoken({"type": "ack", "version": 0}), []),
        (spoken({"type": "status", "id": 1, "video_id": "x", "status": "viewed"}), []),
        (spoken({"type": "token", "token": "x"}), []),
        (spoken({"type": "weather"}), [Kind.FRAME]),
        (spoken([]), [Kind.FRAME]),
        (spoken({}, Opcode.BINARY), [Kind.FRAME]),
        (spoken({"type": "ack", "version": 0}, masked=False), [Kind.FRAME]),
        (spoken({"type": "token", "token": "x" * 16 * 1024}), [Kind.TOO_LARGE]),
        (spoken({}, Opcode.PONG), []),
    ],
)
def test_frames_are_as_the_protocol_has_them(seen: Seen, message: Message, kinds: list[Kind]) -> None:
    seen.witness.says(ANN, message)
    assert seen.kinds == kinds


def test_what_no_backoff_explains_is_a_loop(seen: Seen) -> None:
    for _ in range(3 * MOST_A_SECOND):
        seen.witness.asks(ANN, SYNC)
        seen.now_s += 1 / MOST_A_SECOND + 0.001
    assert not seen.kinds
    for _ in range(2 * MOST_A_SECOND):
        seen.witness.asks(ANN, SYNC)
        seen.now_s += 0.9 / MOST_A_SECOND
    assert seen.kinds == [Kind.NO_PAUSE]


def test_a_pause_that_is_asked_for_is_kept(seen: Seen) -> None:
    seen.witness.told_to_wait(ANN, SYNC, b"", 2)
    seen.now_s += 2
    seen.witness.asks_with(ANN, SYNC, b"")
    assert not seen.kinds
    seen.witness.told_to_wait(ANN, SYNC, b"", 2)
    seen.now_s += 1
    seen.witness.asks_with("bob/phone", SYNC, b"")
    seen.witness.asks_with(ANN, Request("GET", "/v1/poll", {}), b"")
    assert not seen.kinds
    seen.witness.asks_with(ANN, SYNC, b"")
    assert seen.kinds == [Kind.TOO_SOON]


def test_another_announcement_is_not_the_one_that_has_to_wait(seen: Seen) -> None:
    announce = Request("POST", "/v1/videos", {})
    seen.witness.told_to_wait(ANN, announce, b"one", 2)
    seen.witness.asks_with(ANN, announce, b"another")
    assert not seen.kinds
    seen.witness.asks_with(ANN, announce, b"one")
    assert seen.kinds == [Kind.TOO_SOON]


def test_a_new_process_knows_of_no_pause(seen: Seen) -> None:
    seen.witness.told_to_wait(ANN, SYNC, b"", 2)
    seen.witness.restarted(ANN)
    seen.witness.asks_with(ANN, SYNC, b"")
    assert not seen.kinds


@pytest.mark.parametrize(("may", "kinds"), [(Witness.nudged, []), (Witness.restarted, []), (None, [Kind.DISPLACED])])
def test_who_is_displaced_opens_no_socket_until_something_changes(
    seen: Seen, may: Callable[[Witness, str], None] | None, kinds: list[Kind]
) -> None:
    seen.witness.displaced(ANN)
    if may is not None:
        may(seen.witness, ANN)
    seen.witness.asks(ANN, SOCKET)
    assert seen.kinds == kinds


def test_a_socket_that_was_just_given_up_has_told_nothing(seen: Seen) -> None:
    seen.witness.nudged(ANN)
    seen.witness.told_to_wait(ANN, SOCKET, b"", 5)
    seen.witness.displaced(ANN)
    seen.witness.asks(ANN, SOCKET)
    assert not seen.kinds


@pytest.mark.parametrize(
    "acknowledge",
    [
        lambda witness: witness.says(ANN, spoken({"type": "ack", "version": 7})),
        lambda witness: witness.asks(ANN, Request("GET", "/v1/ws?version=7", SOCKET.headers)),
        lambda witness: witness.asks_with(ANN, SYNC, b'{"version":7}'),
        lambda witness: witness.asks_with(ANN, Request("GET", "/v1/poll", {"if-none-match": '"7"'}), b""),
        lambda witness: witness.asks_with(ANN, Request("POST", "/v1/videos/x/status?version=7", {}), b""),
    ],
)
def test_only_what_came_is_acknowledged(seen: Seen, acknowledge: Callable[[Witness], None]) -> None:
    seen.witness.delivered(ANN, 7)
    acknowledge(seen.witness)
    assert not seen.kinds
    other = Seen()
    other.witness.delivered(ANN, 6)
    other.witness.delivered("bob/phone", 7)
    acknowledge(other.witness)
    assert other.kinds == [Kind.ACKNOWLEDGED]


def test_of_one_kind_there_is_one_finding_about_a_client(seen: Seen) -> None:
    for who in (ANN, ANN, "bob/phone"):
        seen.witness.says(who, spoken({"type": "ack", "version": 7}))
    assert [finding.who for finding in seen.findings] == [ANN, "bob/phone"]


def test_every_kind_of_finding_is_explained_and_no_other() -> None:
    page = Path(__file__).parents[2] / "docs" / "conformance.md"
    table = page.read_text("utf-8").partition("## What is looked at")[2].partition("## ")[0]
    assert re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE)[1:] == list(Kind)

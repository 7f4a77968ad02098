"""The opening handshake: what is an offer, and how it is answered."""

import base64

import pytest

from gateway.live import handshake
from gateway.live.handshake import NotAHandshake, Offer, OtherVersion

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
VERSION = (b"sec-websocket-version", b"13")


def headers(*more: tuple[bytes, bytes], key: bytes = KEY) -> list[tuple[bytes, bytes]]:
    """The headers of an offer, and `more`."""
    usual = [(b"host", b"example.org"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    return [*usual, (b"sec-websocket-key", key), VERSION, *more]


def offering(*lines: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of an offer with these lines of subprotocols."""
    return headers(*((b"sec-websocket-protocol", line) for line in lines))


def test_the_example_of_the_rfc_is_answered_as_there() -> None:
    assert handshake.answer(handshake.read(headers())) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_an_offer_needs_no_subprotocol_and_no_token() -> None:
    assert handshake.read(headers()) == Offer(KEY, subprotocol=False, token=None)


def test_the_order_of_headers_does_not_matter() -> None:
    given = offering(b"info.v1, bearer.abc")
    assert handshake.read(given[::-1]) == handshake.read(given)


# --- The key


@pytest.mark.parametrize("octets", [bytes(16), b"\xff" * 16, bytes(range(16))])
def test_sixteen_bytes_in_base64_are_a_key(octets: bytes) -> None:
    key = base64.b64encode(octets)
    assert handshake.read(headers(key=key)).key == key


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"=",
        b"dGhlIHNhbXBsZSBub25jZQ",
        b"dGhlIHNhbXBsZSBub25jZQ=",
        b"dGhlIHNhbXBsZSBub25jZQ===",
        b"dGhlIHNhbXBsZSBub25jZQ==x",
        b"dGhlIHNhbXBs ZSBub25jZQ==",
        b"dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        b"_-_-IHNhbXBsZSBub25jZQ==",
        b"\xe4GhlIHNhbXBsZSBub25jZQ==",
        base64.b64encode(bytes(15)),
        base64.b64encode(bytes(17)),
        base64.b64encode(bytes(16)) * 2,
    ],
)
def test_anything_else_is_none(key: bytes) -> None:
    with pytest.raises(NotAHandshake, match="Sec-WebSocket-Key"):
        handshake.read(headers(key=key))


def test_a_key_must_be_there_once() -> None:
    with pytest.raises(NotAHandshake, match="Sec-WebSocket-Key"):
        handshake.read([VERSION])
    with pytest.raises(NotAHandshake, match="Sec-WebSocket-Key"):
        handshake.read(headers((b"sec-websocket-key", KEY)))


# --- The version


@pytest.mark.parametrize(
    "versions", [(), (b"",), (b"8",), (b"14",), (b"013",), (b"13, 8",), (b"13", b"13"), (b"8", b"13")]
)
def test_only_version_13_alone_is_spoken(versions: tuple[bytes, ...]) -> None:
    given = [(b"sec-websocket-key", KEY), *((b"sec-websocket-version", version) for version in versions)]
    with pytest.raises(OtherVersion, match="13"):
        handshake.read(given)


def test_another_version_is_named_before_its_key_is_looked_at() -> None:
    with pytest.raises(OtherVersion):
        handshake.read([(b"sec-websocket-version", b"8"), (b"sec-websocket-key", b"?")])


# --- Subprotocols


@pytest.mark.parametrize(
    "lines",
    [
        (b"info.v1",),
        (b"other, info.v1",),
        (b"info.v1,other",),
        (b" other ,\tinfo.v1 ",),
        (b"other", b"info.v1"),
        (b"a, b", b"c", b"d, info.v1"),
        (b",,info.v1,",),
    ],
)
def test_our_subprotocol_is_found_among_any_and_answered(lines: tuple[bytes, ...]) -> None:
    offer = handshake.read(offering(*lines))
    assert offer.subprotocol
    assert handshake.answer(offer).endswith(b"\r\nSec-WebSocket-Protocol: info.v1\r\n\r\n")


@pytest.mark.parametrize(
    "lines", [(), (b"",), (b"other",), (b"INFO.V1",), (b"info.v10",), (b"info", b"v1"), (b"info.v1 x",)]
)
def test_another_is_not_answered(lines: tuple[bytes, ...]) -> None:
    offer = handshake.read(offering(*lines))
    assert not offer.subprotocol
    assert b"Protocol:" not in handshake.answer(offer)


def test_extensions_are_declined_by_not_mentioning_them() -> None:
    offer = handshake.read(headers((b"sec-websocket-extensions", b"permessage-deflate")))
    assert b"Extensions" not in handshake.answer(offer)


# --- The token


@pytest.mark.parametrize(
    ("lines", "token"),
    [
        ((b"info.v1, bearer.abc.def",), "abc.def"),
        ((b"bearer.abc, info.v1",), "abc"),
        ((b"info.v1", b"bearer.abc"), "abc"),
        ((b"info.v1,bearer.abc",), "abc"),
        ((b"bearer.",), ""),
        ((b"bearer.first, bearer.second",), "first"),
        ((b"bearer.bearer.abc",), "bearer.abc"),
        ((b"info.v1, bearer",), None),
        ((b"Bearer.abc",), None),
        ((b"xbearer.abc",), None),
    ],
)
def test_a_token_is_what_follows_the_first_bearer(lines: tuple[bytes, ...], token: str | None) -> None:
    assert handshake.read(offering(*lines)).token == token


def test_a_token_is_never_in_the_answer() -> None:
    answer = handshake.answer(handshake.read(offering(b"info.v1, bearer.secret")))
    assert b"secret" not in answer
    assert answer.count(b"Sec-WebSocket-Protocol") == 1


def test_bytes_that_no_name_has_are_no_error() -> None:
    assert handshake.read(offering(b"\xff\x00\xe9, info.v1")).subprotocol

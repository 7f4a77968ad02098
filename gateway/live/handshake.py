"""The opening handshake of a WebSocket (RFC 6455, section 4.2) and its answer. Pure."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

SUBPROTOCOL = "info.v1"
BEARER = "bearer."
"""Before a token that a browser offers as a subprotocol: its scripts cannot set a header."""

VERSION = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

Headers = Sequence[tuple[bytes, bytes]]


class NotAHandshake(Exception):
    """What is wrong with it, naming the header."""


class OtherVersion(Exception):
    """The client speaks another version of the WebSocket protocol."""


class Offer(NamedTuple):
    """What a client offers: its key, whether it knows our subprotocol, and the token among its subprotocols."""

    key: bytes
    subprotocol: bool
    token: str | None


def read(headers: Headers) -> Offer:
    """The offer in the headers of a GET that asks for the upgrade; their names are in lower case.

    Extensions that are offered are declined by not mentioning them. Raises NotAHandshake and OtherVersion.
    """
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    versions = [value for name, value in headers if name == b"sec-websocket-version"]
    offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol")
    if versions != [VERSION]:
        raise OtherVersion("the WebSocket protocol is spoken here in version 13")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise NotAHandshake("Sec-WebSocket-Key: must be 16 bytes in base64, once")
    names = [name.strip() for name in offered.decode("latin-1").split(",")]
    tokens = [name.removeprefix(BEARER) for name in names if name.startswith(BEARER)]
    return Offer(keys[0], SUBPROTOCOL in names, tokens[0] if tokens else None)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def answer(offer: Offer) -> bytes:
    """The answer that opens the socket."""
    accept = base64.b64encode(hashlib.sha1(offer.key + _GUID, usedforsecurity=False).digest())
    chosen = f"\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}".encode() if offer.subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b%b\r\n\r\n" % (accept, chosen)
    )

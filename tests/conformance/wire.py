"""HTTP/1.1 and WebSocket frames as they go over a wire: read whole, and written down again.

Only as much of either as stands between a client and a gateway needs: what is ill-formed ends the connection.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from websockets.frames import Frame, Opcode

HEAD_BYTES = 64 * 1024
"""As much as the head of a request or an answer may have: the limit of every stream reader here."""

_FRAMING = {"content-length", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request. `target`: path and query. `headers`: by names in lower case. It shows no query, which may
    be a signature, and no header, which may be a token."""

    method: str
    target: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """Its parameters; of one that is there several times the last."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def asks_for_a_socket(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"

    def encode(self, size: int | None = None) -> bytes:
        """As it goes over the wire, for a body of `size` bytes; None: as it came."""
        kept = self.headers if size is None else _without_framing(self.headers) | {"content-length": str(size)}
        return _head(f"{self.method} {self.target} HTTP/1.1", kept.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole. `headers`: by names in lower case, those apart that frame the body. `bare`: it has no body,
    whatever its headers say."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    bare: bool = False

    @property
    def is_json(self) -> bool:
        return self.headers.get("content-type", "").startswith("application/json")

    def with_body(self, body: bytes) -> "Answer":
        return replace(self, body=body)

    def encode(self) -> bytes:
        """As it goes over the wire."""
        bare = self.bare or self.status < 200 or self.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        framing = {} if bare else {"content-length": str(len(self.body))}
        first = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"
        return _head(first, (dict(self.headers) | framing).items()) + self.body


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request's head. Raises EOFError at the end of the stream, ValueError for what is none."""
    first, headers = await _read_head(reader)
    method, target, _ = first.split(" ", 2)
    return Request(method, target, headers)


async def read_head(reader: asyncio.StreamReader) -> tuple[Answer, Mapping[str, str]]:
    """The next answer's head, those before it that only say to go on passed over; and all of its headers."""
    while True:
        first, headers = await _read_head(reader)
        status = int(first.split(" ", 2)[1])
        if status != HTTPStatus.CONTINUE:
            return Answer(status, _without_framing(headers)), headers


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    """The next answer, to a request with that method, with its body."""
    answer, headers = await read_head(reader)
    if method == "HEAD":
        return Answer(answer.status, headers, bare=True)
    if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        return answer
    return answer.with_body(await read_body(reader, headers))


async def read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """What follows a head with these headers."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write it, once there is room. Raises ConnectionError where the connection has ended, which uvloop says in another
    way."""
    if writer.is_closing():
        raise ConnectionResetError("the connection has ended")
    writer.write(data)
    await writer.drain()


class Message(NamedTuple):
    """A frame of a WebSocket: `data` unmasked, `masked` whether it came masked."""

    opcode: Opcode
    data: bytes
    fin: bool
    masked: bool

    def encode(self) -> bytes:
        """As it goes over the wire, masked anew where it was."""
        return Frame(self.opcode, self.data, fin=self.fin).serialize(mask=self.masked)


async def read_message(reader: asyncio.StreamReader) -> Message:
    """The next frame (RFC 6455, section 5.2). EOFError at the end, ValueError for an unknown opcode."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    masked = bool(second & 0x80)
    key = await reader.readexactly(4) if masked else bytes(4)
    data = await reader.readexactly(size)
    return Message(Opcode(first & 0x0F), _unmasked(data, key), bool(first & 0x80), masked)


def _unmasked(data: bytes, key: bytes) -> bytes:
    repeated = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(len(data))


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    return first, {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}


def _head(first: str, headers: Iterable[tuple[str, str]]) -> bytes:
    return "\r\n".join([first, *(f"{name}: {text}" for name, text in headers), "", ""]).encode("latin-1")


def _without_framing(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if name not in _FRAMING}

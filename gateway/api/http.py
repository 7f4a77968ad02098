"""The plumbing of a call: from ASGI to a typed request, from an answer or an error to ASGI.

Calls are plain ASGI under starlette's router: what a request object and a response object of a framework cost is more
than the whole of a status change.
"""

import asyncio
import http
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import orjson
from starlette.types import Receive, Scope, Send

from gateway.errors import STATUS, Code, GatewayError, Invalid, MethodNotAllowed, TooLarge, UpgradeRequired

BODY_DEADLINE_S = 20.0
"""How long a body of some KiB may take to arrive."""

_INTEGER = re.compile(r"[0-9]{1,19}\Z", re.ASCII)
_BROKEN_DETAIL = re.compile(r"^(.*?) - at `\$\.?(.*?)`$", re.DOTALL)

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}

T = TypeVar("T")

Headers = Iterable[tuple[bytes, bytes]]


class Reply:
    """An answer: status, body and its type, further headers."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, status: int, body: bytes = b"", *, content_type: bytes = b"application/json", headers: Headers = ()
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers

    async def send(self, send: Send, *, head: bool = False) -> None:
        """Send it; to a HEAD request without the body (RFC 9110, section 9.3.2)."""
        headers = [*self.headers]
        if self.status not in {204, 304}:
            headers.append((b"content-length", b"%d" % len(self.body)))
        if self.body:
            headers.append((b"content-type", self.content_type))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else self.body})

    def whole(self, further: Headers) -> bytes:
        """It as it goes over a connection that stays, with further headers; to a request that has a body in answer."""
        parts = [_STATUS_LINES[self.status]]
        for name, value in (*further, *self.headers):
            parts += (name, b": ", value, b"\r\n")
        if self.body:
            parts += (b"content-length: %d\r\ncontent-type: " % len(self.body), self.content_type, b"\r\n")
        elif self.status not in {204, 304}:
            parts.append(b"content-length: 0\r\n")
        parts += (b"\r\n", self.body)
        return b"".join(parts)

    def last(self) -> bytes:
        """It as it goes over a connection that ends with it."""
        lines = [
            b"HTTP/1.1 %d %b" % (self.status, http.HTTPStatus(self.status).phrase.encode()),
            *(b"%b: %b" % header for header in self.headers if header[0] != b"connection"),
            b"content-type: " + self.content_type,
            b"content-length: %d" % len(self.body),
            b"connection: " + b", ".join([b"close", *(value for name, value in self.headers if name == b"connection")]),
        ]
        return b"\r\n".join([*lines, b"", self.body])


def problem(error: GatewayError) -> Reply:
    """The answer that an error is: a problem document (RFC 9457) with our `code`."""
    status = STATUS[error.code]
    headers = [(b"cache-control", b"no-store")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.code is Code.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, UpgradeRequired):  # RFC 9110, section 15.5.22; RFC 6455, section 4.2.2
        headers += [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-version", b"13")]
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    return problem_reply(status, error.detail, code=error.code, headers=headers)


def problem_reply(status: int, detail: str, *, code: Code | None = None, headers: Headers = ()) -> Reply:
    """A problem document with any status."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if code is not None:
        body["code"] = code
    return Reply(status, orjson.dumps(body), content_type=b"application/problem+json", headers=headers)


class Request:
    """One HTTP request. Members of the query and of bodies that break the protocol raise Invalid."""

    __slots__ = ("_body", "_headers", "_query", "_receive", "_whole", "scope")

    def __init__(self, scope: Scope, receive: Receive, *, body: bytes | None = None) -> None:
        """`body`: where all of it has come already."""
        self.scope = scope
        self._receive = receive
        self._body = body
        self._headers: dict[bytes, bytes] | None = None
        self._query: dict[str, str] | None = None
        self._whole = False

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in the path."""
        params: Mapping[str, str] = self.scope["path_params"]
        return params

    def header(self, name: bytes) -> str | None:
        """A header by its lower-case name; repeated ones are joined (RFC 9110, section 5.3)."""
        if self._headers is None:
            headers: dict[bytes, bytes] = {}
            for key, value in self.scope["headers"]:
                headers[key] = headers[key] + b", " + value if key in headers else value
            self._headers = headers
        found = self._headers.get(name)
        return None if found is None else found.decode("latin-1")

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of repeated ones the last."""
        if self._query is None:
            text = self.scope["query_string"]
            try:
                pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict") if text else ()
            except ValueError as error:
                raise Invalid("the query is not well-formed UTF-8") from error
            self._query = dict(pairs)
        return self._query

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A parameter of the query that is an integer, or None where it is not given."""
        text = self.query.get(name)
        if text is None:
            return None
        number = int(text) if _INTEGER.match(text) else None
        if number is None or not least <= number <= most:
            raise Invalid(f"{name}: must be an integer from {least} to {most}")
        return number

    async def body(self, most: int) -> bytes:
        """The whole body. Raises TooLarge beyond `most` bytes, and Disconnected if the app goes away."""
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length[:19]) > most:
            raise TooLarge(f"a body has at most {most} bytes here")
        if self._body is not None:
            if len(self._body) > most:
                raise TooLarge(f"a body has at most {most} bytes here")
            return self._body
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                async for chunk in self.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > most:
                        raise TooLarge(f"a body has at most {most} bytes here")
        except TimeoutError as error:
            raise RequestTimeout from error
        return b"".join(chunks)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes, or what is left of it. Raises Disconnected if the app goes away."""
        while not self._whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self._whole = not message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; it is cancelled, and Disconnected raised, if the app goes away before.

        For calls that take long. The body must have been read, or not matter.
        """
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Disconnected
            return working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Disconnected(Exception):
    """The app went away before it had an answer: there is nobody to answer."""


class RequestTimeout(Exception):
    """The request did not arrive in time."""


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as its type. Raises Invalid with a detail that names the member."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(_named(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid("this is not well-formed JSON in UTF-8") from error
    except RecursionError as error:
        raise Invalid("this is nested too deeply") from error


def _named(message: str) -> str:
    """The decoder's message, the member first: "size: expected `int`, got `str`"."""
    found = _BROKEN_DETAIL.match(message)
    if found is None:
        return message
    what, where = found.groups()
    if not where or what.startswith(f"{where}: "):
        return what
    return f"{where}: {what[0].lower()}{what[1:]}"

"""The signed URLs of an object store that this process serves itself: a disk on the one box.

No authorization but the signature; S3 would answer the same calls itself. What somebody uploaded never runs on this
origin: it is sent as an attachment, its type is not guessed, and it may load nothing.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send

from gateway.api.endpoint import refusal
from gateway.api.http import Disconnected, Reply, Request, RequestTimeout, problem, problem_reply
from gateway.errors import Code, Forbidden, MethodNotAllowed, NotFound, Unavailable
from gateway.metrics import Metrics
from storage.objects import (
    AlreadyStored,
    BytesRefused,
    ObjectsUnavailable,
    ServedObjectStore,
    SignatureRefused,
    StoredObject,
)

STALL_S = 60.0
"""How long an upload or a download may pause before it is given up."""

LINGER_S = 10.0
"""How long the rest of an upload that was refused is taken, so that its app gets to read the answer."""

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z", re.ASCII)

log = logging.getLogger(__name__)


class Objects:
    """ASGI application for `/objects/{key}`: PUT, GET and HEAD with a signed query.

    `stored` is called with the key of every object that was stored, before its upload is answered.
    """

    def __init__(self, store: ServedObjectStore, stored: Callable[[str], Awaitable[None]], metrics: Metrics) -> None:
        self._store = store
        self._stored = stored
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            match scope["method"]:
                case "PUT":
                    reply = await self._put(request)
                case "GET" | "HEAD":
                    await self._get(request, send)
                    return
                case _:
                    raise MethodNotAllowed(["GET", "HEAD", "PUT"])
        except Disconnected:
            return
        except SignatureRefused as error:
            reply = problem(Forbidden(str(error)))
        except ObjectsUnavailable:
            log.exception("the object store failed")
            reply = problem(Unavailable("the object store does not answer", retry_after_s=5))
        except RequestTimeout as error:
            await refusal(error).send(send)
            return
        except Exception as error:
            reply = refusal(error)
        if scope["method"] == "PUT" and reply.status != 200:
            await _refuse_upload(reply, request, send)
        else:
            await reply.send(send, head=scope["method"] == "HEAD")

    async def _put(self, request: Request) -> Reply:
        key = request.path["key"]
        grant = self._store.authorize_upload(key, request.query)
        length = request.header(b"content-length")
        if length is None:
            return problem_reply(411, "Content-Length is required", code=Code.INVALID)
        if length != str(grant.size):
            return problem_reply(403, "Content-Length is not what was signed", code=Code.FORBIDDEN)
        if (request.header(b"content-type") or "").strip().lower() != grant.content_type:
            return problem_reply(403, "Content-Type is not what was signed", code=Code.FORBIDDEN)
        try:
            await self._store.receive(grant, self._steady(request))
        except AlreadyStored:
            return problem_reply(412, "it is stored already: go on and confirm it")
        except BytesRefused as error:
            return problem_reply(400, str(error), code=Code.INVALID)
        self._metrics.uploaded_bytes.inc(grant.size)
        await self._stored(key)
        return Reply(200)

    @staticmethod
    async def _steady(request: Request) -> AsyncIterator[bytes]:
        """The body, as long as it keeps coming."""
        chunks = request.stream()
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise RequestTimeout from error
            yield chunk

    async def _get(self, request: Request, send: Send) -> None:
        key, method = request.path["key"], request.scope["method"]
        self._store.authorize_download(key, request.query, method=method)
        found = await self._store.open(key)
        if found is None:
            await problem(NotFound("nothing is stored here (any more)")).send(send, head=method == "HEAD")
            return
        try:
            await self._send(found, request, send)
        finally:
            await found.close()

    async def _send(self, found: StoredObject, request: Request, send: Send) -> None:
        size = found.info.size
        part = _range(request.header(b"range"), size) if request.scope["method"] == "GET" else None
        if part == (0, 0):
            reply = problem_reply(416, "the range is not within the object")
            reply.headers = [(b"content-range", b"bytes */%d" % size)]
            await reply.send(send)
            return
        start, length = part or (0, size)
        headers = [
            (b"content-type", found.info.content_type.encode()),
            (b"content-length", b"%d" % length),
            (b"accept-ranges", b"bytes"),
            (b"cache-control", b"private, max-age=31536000, immutable"),
            (b"content-disposition", f"attachment; filename*=UTF-8''{quote(found.info.key.split('/')[1])}".encode()),
            (b"content-security-policy", b"default-src 'none'; sandbox"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if part is not None:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, start + length - 1, size)))
        await send({"type": "http.response.start", "status": 206 if part else 200, "headers": headers})
        if request.scope["method"] == "GET":
            # An app that has left, or that does not read, is sent nothing more: the file is not read for nobody.
            await request.while_connected(_stream(found.read(start, length), send))
            self._metrics.downloaded_bytes.inc(length)
        await send({"type": "http.response.body", "body": b""})


async def _stream(chunks: AsyncIterator[bytes], send: Send) -> None:
    """Send the chunks. Raises Disconnected when one of them is not taken in time."""
    async for chunk in chunks:
        try:
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError as error:
            raise Disconnected from error


async def _refuse_upload(reply: Reply, request: Request, send: Send) -> None:
    """Answer an upload whose bytes may still be on their way, and close the connection when they have come.

    Closed with bytes unread, it would be reset, and the answer lost with it for an app that sends first and reads then.
    """

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    reply.headers = [*reply.headers, (b"connection", b"close")]
    await reply.send(unfinished)
    with contextlib.suppress(TimeoutError, Disconnected):
        async with asyncio.timeout(LINGER_S):
            async for _ in request.stream():
                pass
    await send({"type": "http.response.body", "body": b""})


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and length of a single byte range (RFC 9110, section 14.1.2); None for the whole, (0, 0) where it cannot be
    satisfied. Several ranges are answered with the whole, as section 14.2 allows."""
    found = _RANGE.match(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        return (size - length, length) if length else (0, 0)
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None  # not a valid range: ignored
    return (start, end - start + 1) if start < size else (0, 0)

"""What may become of a request: done or not, answered or not, by the gateway or by something in between."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from random import Random
from typing import Protocol

import orjson

from tests.conformance.plan import Fault
from tests.conformance.wire import Answer, Request

FOREVER_S = 3600.0

ANY = frozenset({Fault.LOST, Fault.SILENT, Fault.UNAVAILABLE, Fault.BUSY, Fault.LIMITED, Fault.HTML, Fault.DELAYED})
HANDSHAKE = ANY | {Fault.REVOKED}
CALL = ANY | {
    Fault.UNANSWERED,
    Fault.CUT_ANSWER,
    Fault.LATE,
    Fault.TRICKLED,
    Fault.TWICE,
    Fault.TIMED_OUT,
    Fault.REVOKED,
}
JSON_CALL = CALL | {Fault.HALF_JSON, Fault.PORTAL, Fault.REDIRECTED, Fault.NEW_MEMBERS}
SIGNED = (CALL | {Fault.EXPIRED}) - {Fault.REVOKED, Fault.LIMITED}
UPLOAD = SIGNED | {Fault.CONFLICT, Fault.CUT_UPLOAD, Fault.EARLY_ANSWER}
DOWNLOAD = SIGNED | {Fault.GONE}

_PAGE = b"<!doctype html><html><head><title>Sorry</title></head><body><h1>Sorry</h1></body></html>"
_XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%b</Code><Message>so it is</Message></Error>'


class Exchange(Protocol):
    """A request, and what may be done with it."""

    request: Request
    chance: Random

    async def forward(self) -> Answer:
        """Pass it on, as often as that is asked for; what the gateway answers. Raises OSError and EOFError."""
        ...

    async def read(self, share: float = 1.0) -> None:
        """Read that share of its body."""
        ...

    async def send(self, answer: Answer, *, share: float = 1.0, pieces: int = 1) -> None:
        """Answer it, with so much of the answer's bytes, in so many pieces."""
        ...

    def cut(self) -> None:
        """End the connection, without a word."""
        ...

    def revoke(self) -> None:
        """The token that it came with counts no more."""
        ...


def problem(status: int, code: str, **headers: str) -> Answer:
    """A refusal as the gateway words it. An underscore in a header's name is a hyphen."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": "so it is"}
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, {"content-type": "application/problem+json", **given}, orjson.dumps({**body, "code": code}))


def page(status: int, **headers: str) -> Answer:
    """A page of something in between."""
    return Answer(status, {"content-type": "text/html", **headers}, _PAGE)


def unauthorized() -> Answer:
    """The refusal of a token."""
    return problem(401, "unauthorized", www_authenticate='Bearer error="invalid_token"')


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long a pause an answer asks for, which one of ours says in seconds; 0 where it asks for none."""
    text = headers.get("retry-after", "0")
    return float(text) if text.isdecimal() else 0.0


async def passed(exchange: Exchange) -> None:
    """No fault."""
    await exchange.send(await exchange.forward())


async def lost(exchange: Exchange) -> None:
    """It never arrives, and the connection ends."""
    await exchange.read()
    exchange.cut()


async def silent(exchange: Exchange) -> None:
    """Nothing comes back, ever: it was done, or not."""
    if exchange.chance.random() < 0.5:
        await exchange.forward()
    await asyncio.sleep(FOREVER_S)


async def unavailable(exchange: Exchange) -> None:
    """503, and when to come again."""
    await exchange.read()
    await exchange.send(problem(503, "unavailable", retry_after=exchange.chance.choice("12")))


async def busy(exchange: Exchange) -> None:
    """503 of a proxy, which may name a date (RFC 9110, section 10.2.3) or nothing."""
    await exchange.read()
    date = {"retry-after": formatdate(time.time() + 1, usegmt=True)}
    await exchange.send(page(503, **exchange.chance.choice(({}, date))))


async def limited(exchange: Exchange) -> None:
    """429."""
    await exchange.read()
    await exchange.send(problem(429, "rate_limited", retry_after="1"))


async def html(exchange: Exchange) -> None:
    """A page of a proxy that does not reach the gateway. At signed URLs, 400 and 404 are answers of the store."""
    await exchange.read()
    path = exchange.request.path
    statuses = (500, 502, 504) if path.startswith("/objects/") else (500, 502, 504, 400, 404)
    await exchange.send(page(exchange.chance.choice(statuses)))


async def redirected(exchange: Exchange) -> None:
    """To a page where one is to sign in, which is of no use to an app; and no part of this protocol."""
    await exchange.read()
    await exchange.send(page(302, location="/sign-in"))


async def delayed(exchange: Exchange) -> None:
    """It arrives late, whether or not the client still waits."""
    await exchange.read()
    await asyncio.sleep(exchange.chance.uniform(0.05, 2))
    await passed(exchange)


async def unanswered(exchange: Exchange) -> None:
    """It is done, and the connection ends before the answer."""
    await exchange.forward()
    exchange.cut()


async def cut_answer(exchange: Exchange) -> None:
    """It is done, and the connection ends in the middle of the answer."""
    await exchange.send(await exchange.forward(), share=exchange.chance.uniform(0.05, 0.95))
    exchange.cut()


async def late(exchange: Exchange) -> None:
    """It is done at once, and answered late."""
    answer = await exchange.forward()
    await asyncio.sleep(exchange.chance.uniform(0.05, 2))
    await exchange.send(answer)


async def trickled(exchange: Exchange) -> None:
    """The answer comes in pieces."""
    await exchange.send(await exchange.forward(), pieces=20)


async def twice(exchange: Exchange) -> None:
    """It is done twice, as where something in between repeats it; the client hears of the second: of an upload, 412."""
    await exchange.forward()
    await passed(exchange)


async def timed_out(exchange: Exchange) -> None:
    """408 or 425, without a code."""
    await exchange.read()
    await exchange.send(Answer(exchange.chance.choice((408, 425))))


async def revoked(exchange: Exchange) -> None:
    """Its token counts no more, for this call and all that follow."""
    await exchange.read()
    exchange.revoke()
    await exchange.send(unauthorized())


async def half_json(exchange: Exchange) -> None:
    """It is done, and half of the answer is missing, though it says that it is whole."""
    answer = await exchange.forward()
    await exchange.send(answer.with_body(answer.body[: len(answer.body) // 2]) if answer.is_json else answer)


async def portal(exchange: Exchange) -> None:
    """200, and a page that is no answer at all."""
    await exchange.read()
    await exchange.send(page(200))


async def new_members(exchange: Exchange) -> None:
    """The answer of a newer gateway: it has members that nobody knows yet."""
    answer = await exchange.forward()
    await exchange.send(answer.with_body(enriched(answer.body)) if answer.is_json else answer)


def enriched(body: bytes) -> bytes:
    """A JSON document in which every object has one member more; the same bytes where it is none."""
    try:
        return orjson.dumps(_enriched(orjson.loads(body)))
    except ValueError:
        return body


def _enriched(value: object) -> object:
    match value:
        case dict():
            return {"x-mood": {"of": ["late", None, 1.5]}} | {name: _enriched(inner) for name, inner in value.items()}
        case list():
            return [_enriched(inner) for inner in value]
    return value


async def expired(exchange: Exchange) -> None:
    """403 of a signed URL, before its time."""
    await exchange.read()
    await exchange.send(Answer(403, {"content-type": "application/xml"}, _XML % b"AccessDenied"))


async def gone(exchange: Exchange) -> None:
    """404 of a signed URL, though the bytes are there."""
    await exchange.read()
    await exchange.send(Answer(404, {"content-type": "application/xml"}, _XML % b"NoSuchKey"))


async def conflict(exchange: Exchange) -> None:
    """409 of an upload, as S3 says where two of one video meet."""
    await exchange.read()
    await exchange.send(Answer(409, {"content-type": "application/xml"}, _XML % b"ConditionalRequestConflict"))


async def cut_upload(exchange: Exchange) -> None:
    """The connection ends within the upload."""
    await exchange.read(exchange.chance.random())
    exchange.cut()


async def early_answer(exchange: Exchange) -> None:
    """503 before all of the upload has come, and the connection ends."""
    await exchange.read(exchange.chance.random() * 0.8)
    await exchange.send(Answer(503, {"content-type": "application/xml", "connection": "close"}, _XML % b"SlowDown"))
    exchange.cut()


FAULTS: Mapping[Fault, Callable[[Exchange], Awaitable[None]]] = {
    Fault.LOST: lost,
    Fault.SILENT: silent,
    Fault.UNAVAILABLE: unavailable,
    Fault.BUSY: busy,
    Fault.LIMITED: limited,
    Fault.HTML: html,
    Fault.DELAYED: delayed,
    Fault.UNANSWERED: unanswered,
    Fault.CUT_ANSWER: cut_answer,
    Fault.LATE: late,
    Fault.TRICKLED: trickled,
    Fault.TWICE: twice,
    Fault.TIMED_OUT: timed_out,
    Fault.REVOKED: revoked,
    Fault.HALF_JSON: half_json,
    Fault.PORTAL: portal,
    Fault.REDIRECTED: redirected,
    Fault.NEW_MEMBERS: new_members,
    Fault.EXPIRED: expired,
    Fault.GONE: gone,
    Fault.CONFLICT: conflict,
    Fault.CUT_UPLOAD: cut_upload,
    Fault.EARLY_ANSWER: early_answer,
}
"""What each does to a request. Those that only sockets have are in `relay.py`."""

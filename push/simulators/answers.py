"""How a simulator may treat a request: everything that a provider, or the network in between, does to one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

INTERNAL_ERROR: Final = 0x2
REFUSED_STREAM: Final = 0x7
ENHANCE_YOUR_CALM: Final = 0xB
"""Error codes of HTTP/2 that a `Reset` often has (RFC 9113, section 7)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answered. `headers`: beyond those that the simulator always sends."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Late:
    """What `then` says, after so many seconds; with None, it is accepted.

    A push that is accepted in the end has been received at once: only its answer is late.
    """

    after_s: float
    then: "Reaction | None" = None


@dataclass(frozen=True, slots=True)
class Reset:
    """RST_STREAM with this error code: only this request ends. Over HTTP/1.1 the connection is cut."""

    code: int = INTERNAL_ERROR


@dataclass(frozen=True, slots=True)
class GoAway:
    """GOAWAY with this debug data that leaves this request, and all that were opened after it, unprocessed; the
    connection is closed once those before it are answered. Over HTTP/1.1 it is closed."""

    reason: bytes = b""


@dataclass(frozen=True, slots=True)
class Cut:
    """TCP is cut without a word, with all that is under way on the connection."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Never answered. The request stays open until its client gives it up."""


Reaction = Answer | Late | Reset | GoAway | Cut | Silence


def resolved(reaction: Reaction | None, accept: Callable[[], Answer]) -> Reaction:
    """`reaction`, with what `accept` answers where it says None."""
    if isinstance(reaction, Late):
        return Late(reaction.after_s, resolved(reaction.then, accept))
    return accept() if reaction is None else reaction


def accepts(reaction: Reaction | None) -> bool:
    """Whether the request is accepted in the end: answered 200, however late."""
    while isinstance(reaction, Late):
        reaction = reaction.then
    return reaction is None or (isinstance(reaction, Answer) and reaction.status == 200)


def html(status: int) -> Answer:
    """An HTML page with this status, such as a proxy in between sends."""
    page = f"<!DOCTYPE html><html lang=en><title>Error {status}</title><p><b>{status}.</b> That’s an error.</html>\n"
    return Answer(status, page.encode(), (("content-type", "text/html; charset=UTF-8"),))

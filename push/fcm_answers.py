"""What FCM's answers say, and what that makes of a push. Pure.

The form and the codes: firebase.google.com, "FCM Error Codes", and the reference's "ErrorCode". When to come back:
"Best practices when sending FCM messages at scale".

firebase-admin 7.7 reads them, and what it cannot read (an HTML page, JSON of another form) makes it raise
AttributeError, TypeError or UnicodeDecodeError, quote all of it, or take a proxy's 400 for INVALID_ARGUMENT. So it is
shown only answers of the documented form: `refused`. That can go once it tells the two apart.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import orjson
from firebase_admin import exceptions, messaging

from push.http2 import Answer
from push.retry_after import retry_after_ms
from push.sender import Outcome, Rejected, Retry, TokenDead

QUOTA_PAUSE_MS = 60_000
"""After a 429 that does not say how long."""

MOST_SAID = 200
"""Characters of somebody else's text in a reason."""

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_OTHER_PROVIDERS = frozenset({"THIRD_PARTY_AUTH_ERROR", "APNS_AUTH_ERROR"})
_EVERYBODYS = frozenset({401, 403, 404, 408})
"""Of the statuses that blame a request, those that the next one would get too."""

_OPAQUE = re.compile(r"[\w.:~+-]{32,}")
_UNSEEN = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202f-\ud7ff]+")
_FIELD = re.compile(r"[A-Za-z_]{1,40}(?:\.[A-Za-z_]{1,40}|\[[0-9]{1,4}\]){0,8}")

Json = dict[str, Any]


class NoAnswer(httpx.TransportError):
    """Nothing came that only FCM could have said; why, in words that may be logged."""

    def __init__(self, reason: str, *, after_ms: int | None = None) -> None:
        super().__init__(reason)
        self.after_ms = after_ms


class Refusal(NamedTuple):
    """An error of FCM's. `status`: of HTTP; `name`: its canonical one; `codes`: FCM's own; `fields`: what a BadRequest
    finds wrong, "" where it does not say; `after_ms`: when to come back. The message may quote anything."""

    status: int
    name: str
    message: str
    codes: frozenset[str]
    fields: frozenset[str]
    after_ms: int | None


def name_of(answer: Answer) -> str:
    """The name of a message that was accepted, from an answer with status 200. Raises NoAnswer.

    Only the name proves that FCM has written the answer. Without it the push may have been taken or not: one that comes
    twice replaces itself, while one that never comes is missed.
    """
    name = (_json(answer.body) or {}).get("name")
    if not isinstance(name, str) or not name:
        raise NoAnswer("HTTP 200, but not of FCM's form")
    return name


def refused(answer: Answer, clock: Callable[[], float]) -> httpx.HTTPError:
    """Any other answer, as what firebase-admin takes for its HTTP client's: NoAnswer where it is not of FCM's form."""
    after_ms = retry_after_ms(answer.headers.get(b"retry-after", b"").decode("latin-1"), clock=clock)
    refusal = _refusal(answer, after_ms)
    if refusal is None:
        return NoAnswer(f"HTTP {answer.status}, but not of FCM's form", after_ms=after_ms)
    details = [{"@type": _FCM_ERROR, "errorCode": code} for code in sorted(refusal.codes)]
    request = httpx.Request("POST", "https://fcm.googleapis.com")
    response = httpx.Response(
        answer.status,
        content=orjson.dumps({"error": {"status": refusal.name, "message": "refused", "details": details}}),
        extensions={"refusal": refusal},
        request=request,
    )
    return httpx.HTTPStatusError("refused", request=request, response=response)


def denies_access(answer: Answer) -> bool:
    """Whether it refuses the access token. FCM says 401 too where another provider refuses the project's key."""
    if answer.status != httpx.codes.UNAUTHORIZED:
        return False
    refusal = _refusal(answer, None)
    return refusal is None or not refusal.codes & _OTHER_PROVIDERS


def outcome_of(error: exceptions.FirebaseError, token: str) -> Outcome:
    """What becomes of the push to `token`, from what firebase-admin made of `refused` or of a NoAnswer."""
    if error.http_response is None:
        return Retry(str(error.cause), getattr(error.cause, "after_ms", None), outage=True)
    refusal: Refusal = error.http_response.extensions["refusal"]
    match error:
        case messaging.UnregisteredError():
            return TokenDead()
        case messaging.SenderIdMismatchError():
            return Rejected("the token belongs to another Firebase project (SENDER_ID_MISMATCH)")
        case exceptions.InvalidArgumentError():
            return Rejected(_invalid(refusal))
        case exceptions.ResourceExhaustedError():
            # It may be the quota of the device alone, and is then nothing to the others.
            return Retry(_reason(refusal, token), refusal.after_ms or QUOTA_PAUSE_MS)
        case _:
            outage = refusal.status >= 500 or refusal.status in _EVERYBODYS
            return Retry(_reason(refusal, token), refusal.after_ms, outage=outage)


def _refusal(answer: Answer, after_ms: int | None) -> Refusal | None:
    """The error in an answer; None if it is not of the documented form."""
    error = (_json(answer.body) or {}).get("error")
    if not isinstance(error, dict) or not isinstance(error.get("status"), str):
        return None
    message, details = error.get("message"), list(_objects(error.get("details")))
    return Refusal(
        answer.status,
        error["status"],
        message if isinstance(message, str) else "",
        frozenset(_strings(one.get("errorCode") for one in details if one.get("@type") == _FCM_ERROR)),
        frozenset(field for one in details if one.get("@type") == _BAD_REQUEST for field in _fields(one)),
        after_ms,
    )


def _fields(bad_request: Json) -> list[str]:
    fields = _strings(one.get("field") for one in _objects(bad_request.get("fieldViolations")))
    return [field if _FIELD.fullmatch(field) else "" for field in fields] or [""]


def _json(body: bytes) -> Json | None:
    """A JSON object; None if it is none."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _objects(value: object) -> Iterator[Json]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _strings(values: Iterator[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))


def _reason(refusal: Refusal, token: str) -> str:
    names = ", ".join(sorted({refusal.name, *refusal.codes}))
    message = said(refusal.message.replace(token, "[hidden]"))
    return f"HTTP {refusal.status}, {said(names)}" + (f": {message}" if message else "")


def _invalid(refusal: Refusal) -> str:
    """Which of the two it is. FCM's own sentence is left out: it quotes what is wrong.

    Details of type FcmError alone mean the token; a BadRequest names the member, which may be the token as well. Where
    there are neither, the message is too big, as a rule.
    """
    if refusal.fields == {"message.token"} or (not refusal.fields and "INVALID_ARGUMENT" in refusal.codes):
        return "the token is no registration token (INVALID_ARGUMENT)"
    where = said(", ".join(sorted(filter(None, refusal.fields)))) or "it is not said where"
    return f"the payload is wrong (INVALID_ARGUMENT): {where}"


def said(text: str) -> str:
    """Somebody else's text, such as may be logged: short, of one line, and without what could be a token, a key or a
    packet."""
    plain = _UNSEEN.sub(" ", text[: 4 * MOST_SAID]).partition("{")[0]
    return _OPAQUE.sub(_hidden, plain)[:MOST_SAID].strip()


def _hidden(found: re.Match[str]) -> str:
    """Names of hosts may be long too, but they are written in lower case."""
    return found[0] if found[0].islower() and len(found[0]) < 64 else "[hidden]"

"""The right to send through FCM: an access token that is always at hand.

The rules: developers.google.com, "Using OAuth 2.0 for Server to Server Applications"; firebase.google.com, "Send a
message using FCM HTTP v1 API", "Authorize HTTP v1 send requests". google-auth makes and reads what is said. What is
mended of it, and of how firebase-admin uses it:

* **It asks within the event loop**, each request for itself, and only once the token has expired; after a 401 every
  request renews it, twice. Here it asks in a thread, once for all, ahead of time: `Access`. That can go once
  firebase-admin's asynchronous client does no more than await.
* **It sleeps between tries, and waits 120 s for each**, in a thread that nothing can stop. What it sends goes through
  the event loop here, where it has a deadline and can be ended, and what is not a token is an exception at once:
  `_Asking`. That can go once google-auth takes a deadline. (Not through httpx: httpcore 1.0 leaves the socket open when
  it is cancelled in the middle of the TLS handshake.)
* **Its errors quote the answer**, in which there may be a token: none is passed on.
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from google.auth import transport
from google.oauth2.service_account import Credentials

from push.fcm_account import https_address
from push.fcm_answers import said
from push.http2 import Answer, Header, Lost
from push.http2_pool import Pool

AHEAD_S = 8 * 60.0
"""A token is renewed when so much of its life is left, or a quarter where that is less. Google's live for an hour."""

SPARE_S = 10.0
"""One with less left is not used: it might expire on its way."""

LEAST_LIFE_S = 60.0
"""Taken for its life where the server says less, so that nobody is asked all the time; a 401 has it renewed."""

USUAL_LIFE_S = 3600.0
"""Where it says nothing."""

ASK_S = 5.0
"""How long it may take to get a token."""

PAUSE_S = 5.0
"""How long after a failure to ask again."""

REFUSED_PAUSE_S = 60.0
"""How long after a token was renewed since FCM refused it to do so again: another one is refused too, it seems."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")

log = logging.getLogger(__name__)


def path_of(url: str) -> str:
    """What stands behind host and port in an address."""
    return "/" + "".join(url.split("/", 3)[3:])


def headers_of(headers: Mapping[str, str]) -> list[Header]:
    """Headers as HTTP/2 has them."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


class Denied(Exception):
    """There is no access token now; why, in words that may be logged."""


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """An access token, as the header that carries it. `renew_s`, `expires_s`: seconds since the epoch."""

    header: bytes = field(repr=False)
    renew_s: float
    expires_s: float


class Access:
    """Access tokens of a service account, one at a time. `clock`: seconds since the epoch."""

    def __init__(self, credentials: Credentials, context: ssl.SSLContext, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._context = context
        self._clock = clock
        self._token: Token | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked: _Asking | None = None
        self._failed_s: float | None = None
        self._failure = ""
        self._refused_s: float | None = None
        self._closed = False

    async def token(self) -> Token:
        """A token that has not expired; once it will soon, it is renewed while it is still used. Raises Denied.

        May be cancelled; whoever waits for the same token does not notice.
        """
        now_s = self._clock()
        token = self._token
        if token is None or now_s >= token.expires_s - SPARE_S:
            return await self._another(token)
        if now_s >= token.renew_s and self._asking is None and not self._paused(self._failed_s, PAUSE_S):
            self._ask()
        return token

    async def renewed(self, refused: Token) -> Token | None:
        """Another token than this one, which FCM has refused though it should be good; None if it did so with another
        just now. Raises Denied."""
        if self._token is not refused:
            return await self.token()
        if self._asking is None and self._paused(self._refused_s, REFUSED_PAUSE_S):
            return None
        another = await self._another(refused)
        self._refused_s = self._clock()
        return another

    async def close(self) -> None:
        """Stop asking."""
        self._closed = True
        if self._asking is not None:
            if self._asked is not None:
                self._asked.stop()
            await asyncio.wait([self._asking])

    def _paused(self, since_s: float | None, pause_s: float) -> bool:
        return since_s is not None and 0 <= self._clock() - since_s < pause_s

    async def _another(self, old: Token | None) -> Token:
        """The token after this one."""
        if self._asking is None and self._paused(self._failed_s, PAUSE_S):
            raise Denied(self._failure)
        await asyncio.wait([self._ask()])
        if self._token is None or self._token is old:
            raise Denied(self._failure)
        return self._token

    def _ask(self) -> asyncio.Task[None]:
        """Ask for a token, if that is not being done already."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._get())
            self._asking.add_done_callback(self._has_asked)
        return self._asking

    def _has_asked(self, _: asyncio.Task[None]) -> None:
        self._asking = self._asked = None

    async def _get(self) -> None:
        """Get a token; raises nothing."""
        try:
            self._token = await self._fresh()
            self._failed_s = None
        except Denied as denied:
            self._note(str(denied))
        except Exception as error:  # google-auth has many, and some quote the answer
            self._note(f"the answer could not be used ({type(error).__name__})")

    async def _fresh(self) -> Token:
        if self._closed:
            raise Denied("the sender is closed")
        self._asked = _Asking(asyncio.get_running_loop(), self._context)
        await asyncio.to_thread(self._credentials.refresh, self._asked)
        token, expiry = self._credentials.token, self._credentials.expiry
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise Denied("the answer has no access token")
        life_s = max(_left_s(expiry), LEAST_LIFE_S)
        now_s = self._clock()
        return Token(f"Bearer {token}".encode(), now_s + life_s - min(AHEAD_S, life_s / 4), now_s + life_s)

    def _note(self, reason: str) -> None:
        self._failed_s = self._clock()
        self._failure = f"no access token: {reason}"
        if self._token is not None and (left_s := self._token.expires_s - self._failed_s) > 0 and not self._closed:
            log.warning(
                "the access token of FCM could not be renewed; the old one is still used",
                extra={"reason": reason, "left_s": round(left_s)},
            )


def _left_s(expiry: datetime | None) -> float:
    """google-auth says when by the clock of the machine, in UTC but without saying so."""
    return USUAL_LIFE_S if expiry is None else expiry.replace(tzinfo=UTC).timestamp() - time.time()


class _Said(transport.Response):
    """An answer, as google-auth reads it."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._parts = status, headers, data

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._parts[0]

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers."""
        return self._parts[1]

    @property
    def data(self) -> bytes:
        """The body."""
        return self._parts[2]


class _Asking(transport.Request):
    """How google-auth, in its thread, sends its one request: by `loop`, within `ASK_S`.

    It raises Denied for whatever is no answer with status 200, so that nothing is tried again, or slept for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext) -> None:
        self._loop = loop
        self._context = context
        self._sending: Future[_Said] | None = None
        self._stopped = False

    def __call__(
        self,
        url: str,
        method: str = "GET",  # noqa: ARG002 - google-auth's signature; it is always POST
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: int | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> transport.Response:
        """Send it, in whatever thread but the loop's."""
        sending = asyncio.run_coroutine_threadsafe(self._send(url, headers or {}, body or b""), self._loop)
        self._sending = sending
        try:
            return sending.result(2 * ASK_S)  # the deadline is `_send`'s, but its loop may be gone
        except (CancelledError, TimeoutError):
            raise Denied("the sender is closed") from None

    def stop(self) -> None:
        """End it, in the loop's thread."""
        self._stopped = True
        if self._sending is not None:
            self._sending.cancel()

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> _Said:
        address = https_address(url)
        if self._stopped or address is None:
            raise Denied("the sender is closed")
        pool = Pool(*address, self._context)
        try:
            async with asyncio.timeout(ASK_S):
                return _said(await pool.post(path_of(url), headers_of(headers), body))
        except TimeoutError:
            raise Denied(f"no answer within {ASK_S:g} s") from None
        except Lost as lost:
            raise Denied(said(str(lost))) from lost
        finally:
            await pool.close()


def _said(answer: Answer) -> _Said:
    if answer.status != 200:
        raise Denied(f"HTTP {answer.status}{_why(answer.body)}")
    return _Said(answer.status, {}, answer.body)


def _why(data: bytes) -> str:
    """What an error says of itself (RFC 6749, section 5.2)."""
    try:
        error = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ""
    found = [error.get(name) for name in ("error", "error_description")] if isinstance(error, dict) else []
    return "".join(f", {said(text)}" for text in found if isinstance(text, str))

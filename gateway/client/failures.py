"""What goes wrong between an app and its gateway, what the protocol has the app do about it, and how it tries again."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import ClassVar, TypeVar

import httpx

from gateway.client.fields import Fields
from gateway.errors import Code

T = TypeVar("T")

LOST = 1006
"""Stands for a close frame that never came: RFC 6455, section 7.4.1."""


class Remedy(StrEnum):
    """What an app does about an error."""

    RETRY = "retry"
    """The same again, after a pause."""
    RENEW = "renew"
    """Get a new token, then the same again."""
    UPLOAD = "upload"
    """Put the bytes again while the URL lives, else announce anew."""
    ANNOUNCE = "announce"
    """Announce the video anew: this upload URL is of no use any more."""
    POLL = "poll"
    """Poll, and download again only what is still listed."""
    NONE = "none"
    """Give it up: the same again would fail again."""


class GatewayError(Exception):
    """A call that failed. `status`: of the answer, or None where none came. `code`: one of the protocol's, if any."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {401: Remedy.RENEW}

    def __init__(self, status: int | None, code: str | None, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(status, code, detail, retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return " ".join([str(self.status or "no answer"), *([self.code] if self.code else [])]) + f": {self.detail}"

    @property
    def remedy(self) -> Remedy:
        """What the protocol has an app do about it."""
        if self.status is None:
            return Remedy.RETRY
        if self.status in self._BY_STATUS:
            return self._BY_STATUS[self.status]
        if self.code == Code.NOT_STORED:
            return Remedy.UPLOAD
        if self.code in {None, Code.RATE_LIMITED} or self.status in {408, 425, 429}:
            return Remedy.RETRY
        return Remedy.NONE if 400 <= self.status < 500 else Remedy.RETRY

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later, with a new token perhaps: a message stays queued."""
        return self.remedy in {Remedy.RETRY, Remedy.RENEW}


class SocketClosed(Exception):
    """A socket that has ended, whoever ended it.

    `code`: of the gateway's close frame, or 1006 where none came. `retry_s`: how long it wants the app to stay away, if
    it said so.
    """

    _REMEDIES: ClassVar[Mapping[int, Remedy]] = {
        **dict.fromkeys((1002, 1003, 1007, 1009, 4400), Remedy.NONE),
        4401: Remedy.RENEW,
        4409: Remedy.NONE,
    }

    def __init__(self, code: int, reason: str, *, logged_out: bool = False) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.retry_s = _restart_s(reason) if code == 1012 else None
        self._logged_out = logged_out

    def __str__(self) -> str:
        return f"the socket was closed with {self.code}" + (f": {self.reason}" if self.reason else "")

    @property
    def remedy(self) -> Remedy:
        """What the protocol has an app do about it that wants to hear more: connect again, with a new token if need be,
        or not at all."""
        return Remedy.NONE if self._logged_out else self._REMEDIES.get(self.code, Remedy.RETRY)


def _restart_s(reason: str) -> float | None:
    with contextlib.suppress(ValueError):
        return max(0, Fields.parse(reason.encode()).number("retry_ms")) / 1000
    return None


class UploadError(GatewayError):
    """The object store did not take a video."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {403: Remedy.ANNOUNCE, 409: Remedy.RETRY}


class DownloadError(GatewayError):
    """A video could not be downloaded."""

    _BY_STATUS: ClassVar[Mapping[int, Remedy]] = {401: Remedy.RENEW, 403: Remedy.POLL, 404: Remedy.POLL}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How calls are repeated: with pauses of full jitter that double from `base_s` to `cap_s`, none of them ending
    later than `deadline_s` after the first try."""

    base_s: float = 0.5
    cap_s: float = 30.0
    deadline_s: float = 60.0

    def pause_s(self, tries: int, retry_after_s: float | None, *, jitter: float) -> float:
        """How long to pause after that many tries; `jitter` from 0 to 1. Never shorter than the gateway asked for, and
        a little longer, since it asked everybody."""
        return (retry_after_s or 0.0) + jitter * min(self.cap_s, self.base_s * 2.0 ** min(tries - 1, 60))


BACKOFF = Backoff()

REPEATED = frozenset({Remedy.RETRY})


async def retrying(
    call: Callable[[], Awaitable[T]], *, backoff: Backoff = BACKOFF, remedies: Iterable[Remedy] = REPEATED
) -> T:
    """What `call` returns, at the first try that succeeds.

    Raises the error of the last try once its remedy is none of `remedies`, or no time is left. A 401 is not repeated:
    a `Client` has tried a new token by then.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + backoff.deadline_s
    tries = 0
    while True:
        tries += 1
        try:
            return await call()
        except GatewayError as error:
            pause_s = backoff.pause_s(tries, error.retry_after_s, jitter=random.random())
            if error.remedy not in remedies or clock() + pause_s > ends_at:
                raise
        await asyncio.sleep(pause_s)


@contextlib.contextmanager
def reaching(error: type[GatewayError] = GatewayError) -> Iterator[None]:
    """Turns what httpx raises into `error`: no answer came."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError) as failure:
        # Not chained, and only named: it holds the request, and with it the token or the signed URL.
        raise error(None, None, type(failure).__name__) from None


def refusal(answer: httpx.Response, error: type[GatewayError] = GatewayError) -> GatewayError:
    """The error that an answer is."""
    return problem(answer.status_code, answer.content, answer.headers.get("retry-after"), error)


def problem(
    status: int, body: bytes, retry_after: str | None, error: type[GatewayError] = GatewayError
) -> GatewayError:
    """The error in a body. Only a problem document of ours is repeated: S3 echoes what was signed."""
    code: str | None = None
    detail = "without a code"
    with contextlib.suppress(ValueError):
        fields = Fields.parse(body)
        code, detail = fields.text("code"), fields.text("detail")
    return error(status, code, detail, _retry_after_s(retry_after))


def _retry_after_s(header: str | None) -> float | None:
    """Seconds from now (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header[:9])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


@contextlib.contextmanager
def understood(answer: httpx.Response) -> Iterator[None]:
    """A success that does not read as one came from something else on the way: an error without a code."""
    try:
        yield
    except ValueError:
        raise GatewayError(answer.status_code, None, "the answer is not what the protocol says") from None

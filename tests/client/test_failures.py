import time
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import httpx
import pytest

from gateway.client import Backoff, DownloadError, GatewayError, Remedy, UploadError, retrying
from gateway.errors import STATUS, Code
from tests.client.played import QUICK, VIDEO, Played, an_upload, problem
from tests.running import within


def failing(*errors: Exception) -> tuple[Callable[[], Awaitable[str]], list[float]]:
    """A call that fails so often and then succeeds, and when it was called."""
    waiting, called = deque(errors), list[float]()

    async def call() -> str:
        called.append(time.monotonic())
        if waiting:
            raise waiting.popleft()
        return "done"

    return call, called


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (None, None, Remedy.RETRY),
        (200, None, Remedy.RETRY),
        (302, None, Remedy.RETRY),
        (400, None, Remedy.RETRY),
        (403, None, Remedy.RETRY),
        (404, None, Remedy.RETRY),
        (408, None, Remedy.RETRY),
        (408, "new", Remedy.RETRY),
        (425, "new", Remedy.RETRY),
        (429, "new", Remedy.RETRY),
        (429, Code.RATE_LIMITED, Remedy.RETRY),
        (500, None, Remedy.RETRY),
        (500, "new", Remedy.RETRY),
        (503, Code.UNAVAILABLE, Remedy.RETRY),
        (401, Code.UNAUTHORIZED, Remedy.RENEW),
        (401, None, Remedy.RENEW),
        (409, Code.NOT_STORED, Remedy.UPLOAD),
        (409, Code.TOO_MANY_IN_TRANSIT, Remedy.NONE),
        (403, Code.FORBIDDEN, Remedy.NONE),
        (404, Code.NOT_TRACKED, Remedy.NONE),
        (404, Code.NOT_FOUND, Remedy.NONE),
        (405, Code.METHOD_NOT_ALLOWED, Remedy.NONE),
        (413, Code.TOO_LARGE, Remedy.NONE),
        (422, Code.INVALID, Remedy.NONE),
        (426, Code.UPGRADE_REQUIRED, Remedy.NONE),
        (418, "new", Remedy.NONE),
    ],
)
def test_each_error_has_the_remedy_of_the_protocol(status: int | None, code: str | None, remedy: Remedy) -> None:
    error = GatewayError(status, code, "so it is")
    assert error.remedy is remedy
    assert error.retryable == (remedy in {Remedy.RETRY, Remedy.RENEW})


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (UploadError(403, None, ""), Remedy.ANNOUNCE),
        (UploadError(403, Code.FORBIDDEN, ""), Remedy.ANNOUNCE),
        (UploadError(409, None, ""), Remedy.RETRY),
        (UploadError(400, Code.INVALID, ""), Remedy.NONE),
        (UploadError(400, None, ""), Remedy.RETRY),
        (UploadError(503, None, ""), Remedy.RETRY),
        (UploadError(None, None, ""), Remedy.RETRY),
        (DownloadError(403, None, ""), Remedy.POLL),
        (DownloadError(404, Code.NOT_TRACKED, ""), Remedy.POLL),
        (DownloadError(401, Code.UNAUTHORIZED, ""), Remedy.RENEW),
        (DownloadError(416, None, ""), Remedy.RETRY),
        (DownloadError(None, None, ""), Remedy.RETRY),
    ],
)
def test_the_store_s_answers_have_remedies_of_their_own(error: GatewayError, remedy: Remedy) -> None:
    assert error.remedy is remedy


def test_every_code_of_the_protocol_has_a_remedy() -> None:
    assert {GatewayError(status, code, "").remedy for code, status in STATUS.items()} == {
        Remedy.RETRY,
        Remedy.RENEW,
        Remedy.UPLOAD,
        Remedy.NONE,
    }


def test_pauses_double_up_to_a_cap_with_full_jitter() -> None:
    backoff = Backoff(base_s=0.5, cap_s=30)
    longest = [backoff.pause_s(tries, None, jitter=1) for tries in (1, 2, 3, 6, 7, 8, 10_000)]
    assert longest == [0.5, 1, 2, 16, 30, 30, 30]
    assert backoff.pause_s(5, None, jitter=0) == 0


def test_no_pause_is_shorter_than_the_gateway_asked_for() -> None:
    assert Backoff().pause_s(1, 7, jitter=0) == 7
    assert 7 < Backoff().pause_s(1, 7, jitter=0.5) < 8


async def test_a_call_is_repeated_until_it_succeeds() -> None:
    call, called = failing(*[GatewayError(503, "unavailable", "")] * 3, GatewayError(None, None, ""))
    assert await retrying(call, backoff=QUICK) == "done"
    assert len(called) == 5


async def test_what_would_fail_again_is_not_repeated() -> None:
    call, called = failing(GatewayError(422, Code.INVALID, "size: must be"))
    with pytest.raises(GatewayError, match="422 invalid: size: must be"):
        await retrying(call, backoff=QUICK)
    assert len(called) == 1


async def test_repeating_waits_as_long_as_it_was_asked_to() -> None:
    call, called = failing(GatewayError(429, Code.RATE_LIMITED, "", 0.05))
    await retrying(call, backoff=QUICK)
    assert called[1] - called[0] >= 0.05


async def test_repeating_ends_at_once_where_the_next_try_would_be_too_late() -> None:
    call, called = failing(GatewayError(503, Code.UNAVAILABLE, "", 60))
    with pytest.raises(GatewayError):
        await within(retrying(call, backoff=QUICK), 1)
    assert len(called) == 1


async def test_repeating_ends_at_the_deadline() -> None:
    call, called = failing(*[GatewayError(500, None, "")] * 10_000)
    with pytest.raises(GatewayError):
        await within(retrying(call, backoff=Backoff(base_s=0.005, cap_s=0.005, deadline_s=0.05)), 2)
    assert len(called) > 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("in an hour", 3600), (formatdate(0, usegmt=True), 0), ("soon", None)],
)
async def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    if header == "in an hour":
        header = formatdate(time.time() + 3600, usegmt=True)
    with pytest.raises(GatewayError) as caught:
        await Played(problem(503, "unavailable", retry_after=header)).client().poll()
    assert caught.value.retry_after_s == (seconds if seconds is None else pytest.approx(seconds, abs=30))


async def test_what_is_no_problem_document_is_not_repeated_in_the_error() -> None:
    answer = httpx.Response(403, text="<Error><SignatureProvided>5ec4e7</SignatureProvided></Error>")
    with pytest.raises(UploadError) as caught:
        await Played(answer).client().upload(an_upload(), VIDEO)
    assert "5ec4e7" not in str(caught.value)
    assert caught.value.code is None

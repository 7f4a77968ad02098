from pathlib import Path

import httpx
import orjson
import pytest

from gateway.client import GatewayError, Outcome
from tests.client.played import FIRST, QUICK, SECOND, VIDEO, Played, Step, announced_as, problem, result

PUT, CONFIRM, ANNOUNCE = "PUT /objects/video", "confirm", "POST /v1/videos"


async def test_a_video_is_announced_uploaded_and_confirmed(video: Path) -> None:
    played = Played(announced_as(FIRST), httpx.Response(200), result())
    sent = await played.client().send_video(video, "bob", backoff=QUICK)
    assert (sent.video_id, sent.outcome, sent.version) == (FIRST, Outcome.APPLIED, 7)
    assert played.calls == ["POST /v1/videos", "PUT /objects/video", f"POST /v1/videos/{FIRST}/status"]
    assert orjson.loads(played.asked[0].content) == {
        "recipient_id": "bob",
        "size": len(VIDEO),
        "content_type": "video/mp4",
        "sha256": "fbbab289f7f94b25736c58be46a994c441fd02552cc6022352e3d86d2fab7c83",
    }
    assert orjson.loads(played.asked[2].content) == {"status": "uploaded", "recipient_id": "bob"}


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        # An announcement is repeated until it is answered.
        (
            [problem(503, "unavailable"), httpx.ReadTimeout(""), announced_as(FIRST), httpx.Response(200), result()],
            [ANNOUNCE, ANNOUNCE, ANNOUNCE, PUT, CONFIRM],
        ),
        # The store failed: the bytes go again.
        (
            [announced_as(FIRST), httpx.Response(500), httpx.Response(200), result()],
            [ANNOUNCE, PUT, PUT, CONFIRM],
        ),
        # A PUT that was answered 409 is repeated.
        ([announced_as(FIRST), httpx.Response(409), httpx.Response(200), result()], [ANNOUNCE, PUT, PUT, CONFIRM]),
        # An upload without an answer may be there: it is confirmed first, and only then sent again.
        (
            [announced_as(FIRST), httpx.WriteError(""), result("duplicate")],
            [ANNOUNCE, PUT, CONFIRM],
        ),
        (
            [announced_as(FIRST), httpx.WriteError(""), problem(409, "not_stored"), httpx.Response(200), result()],
            [ANNOUNCE, PUT, CONFIRM, PUT, CONFIRM],
        ),
        # A confirmation is repeated without sending the bytes again.
        (
            [announced_as(FIRST), httpx.Response(200), problem(429, "rate_limited"), httpx.ReadError(""), result()],
            [ANNOUNCE, PUT, CONFIRM, CONFIRM, CONFIRM],
        ),
        # The bytes got lost.
        (
            [announced_as(FIRST), httpx.Response(200), problem(409, "not_stored"), httpx.Response(412), result()],
            [ANNOUNCE, PUT, CONFIRM, PUT, CONFIRM],
        ),
        # The URL is dead: the video is announced anew.
        (
            [announced_as(FIRST), problem(403, "forbidden"), announced_as(SECOND), httpx.Response(200), result()],
            [ANNOUNCE, PUT, ANNOUNCE, PUT, CONFIRM],
        ),
        (
            [
                announced_as(FIRST),
                httpx.ReadError(""),
                problem(409, "not_stored"),
                httpx.Response(403),
                announced_as(SECOND),
                httpx.Response(200),
                result(),
            ],
            [ANNOUNCE, PUT, CONFIRM, PUT, ANNOUNCE, PUT, CONFIRM],
        ),
    ],
)
async def test_sending_goes_on_where_it_failed(video: Path, steps: list[Step], calls: list[str]) -> None:
    played = Played(*steps)
    sent = await played.client().send_video(video, "bob", backoff=QUICK)
    assert [CONFIRM if call.endswith("/status") else call for call in played.calls] == calls
    assert sent.video_id == (SECOND if calls.count(ANNOUNCE) == 2 and calls[1] == PUT else FIRST)
    assert not played.steps


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([problem(413, "too_large")], "too_large"),
        ([problem(409, "too_many_in_transit")], "too_many_in_transit"),
        ([announced_as(FIRST), problem(400, "invalid")], "invalid"),
        ([announced_as(FIRST), httpx.Response(200), problem(409, "too_many_in_transit")], "too_many_in_transit"),
    ],
)
async def test_sending_ends_with_a_refusal(video: Path, steps: list[Step], code: str) -> None:
    played = Played(*steps)
    with pytest.raises(GatewayError) as caught:
        await played.client().send_video(video, "bob", backoff=QUICK)
    assert caught.value.code == code
    assert not played.steps

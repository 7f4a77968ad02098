"""The short way of a call and the long one: the same answers, whatever a request looks like and however it comes."""

import re
from collections.abc import Sequence

import orjson
import pytest

from gateway.api.short import ShortCall
from tests.running import App, RawAnswer, Running

LONG = "Origin: https://example.org"
"""A header with which a request goes the long way, and which means nothing here."""

UNKNOWN = "01977421-cac5-76bd-a1b0-ee095ae6a228"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which calls went the short way."""
    taken: list[str] = []
    reply = ShortCall.reply

    async def noted(self: ShortCall, *given: object) -> object:
        taken.append(self.call.name)
        return await reply(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ShortCall, "reply", noted)
    return taken


def request(app: App, method: str, target: str, body: object = None, *, further: Sequence[str] = ()) -> bytes:
    data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {app.token}", *further]
    if body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


async def answers(gw: Running, app: App, *pieces: bytes, number: int = 1) -> list[RawAnswer]:
    """What a new connection is answered, once it has sent these one after the other."""
    async with gw.tcp() as raw:
        for piece in pieces:
            await raw.send(piece)
        return [await raw.head() for _ in range(number)]


REQUESTS = [
    ("GET", "/v1/poll", None),
    ("GET", "/v1/poll?device_id=phone&version=3", None),
    ("GET", "/v1/poll?device_id=..", None),
    ("GET", "/v1/poll?version=x", None),
    ("GET", "/v1/poll?x=%ff", None),
    ("POST", f"/v1/videos/{UNKNOWN}/status", {"status": "viewed"}),
    ("POST", "/v1/videos/nonsense/status", {"status": "viewed"}),
    ("POST", f"/v1/videos/{UNKNOWN}/status", {"status": "what"}),
    ("POST", f"/v1/videos/{UNKNOWN}/status", b"{"),
    ("POST", f"/v1/videos/{UNKNOWN}/status", b""),
    ("POST", f"/v1/videos/{UNKNOWN}/status", b" " * 20_000),
    ("POST", "/v1/sync", {"statuses": [{"video_id": UNKNOWN, "status": "viewed"}]}),
    ("GET", f"/v1/videos/{UNKNOWN}/content", None),
    ("DELETE", f"/v1/videos/{UNKNOWN}?recipient_id=bob", None),
    ("DELETE", "/v1/devices/phone", None),
    ("POST", "/v1/videos", {"recipient_id": "bob", "size": 0, "content_type": "video/mp4"}),
]


@pytest.mark.parametrize(("method", "target", "body"), REQUESTS)
async def test_both_ways_give_the_same_answer(
    gw: Running, alice: App, ways: list[str], method: str, target: str, body: object
) -> None:
    [short] = await answers(gw, alice, request(alice, method, target, body))
    assert len(ways) == 1
    [long] = await answers(gw, alice, request(alice, method, target, body, further=[LONG]))
    assert len(ways) == 1
    assert short.status == long.status
    assert _comparable(short) == _comparable(long)


def _comparable(answer: RawAnswer) -> tuple[dict[str, str], bytes]:
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    return headers, re.sub(rb'"version":[1-9][0-9]*', b'"version":1', answer.body)


@pytest.mark.parametrize(
    "further",
    [["Connection: close"], ["Expect: 100-continue"], ["Transfer-Encoding: identity"], ["Upgrade: h2c"], [LONG]],
)
async def test_what_is_not_simple_goes_the_long_way(
    gw: Running, alice: App, ways: list[str], further: list[str]
) -> None:
    [answer] = await answers(gw, alice, request(alice, "GET", "/v1/poll", further=further))
    assert ways == []
    assert answer.status in {200, 400}


@pytest.mark.parametrize("target", ["/v1/p%6fll", "/v1/poll?wait=1", "/v1/devices/a/b", "/nothing", "/healthz"])
async def test_so_does_what_has_to_be_decoded_or_waits_or_is_no_call(
    gw: Running, alice: App, ways: list[str], target: str
) -> None:
    [answer] = await answers(gw, alice, request(alice, "GET", target))
    assert ways == []
    assert answer.status in {200, 404}


async def test_a_body_that_comes_in_pieces_is_read(gw: Running, alice: App, ways: list[str]) -> None:
    whole = request(alice, "POST", f"/v1/videos/{UNKNOWN}/status", {"status": "viewed"})
    head = whole.index(b"\r\n\r\n") + 4
    for cut in (10, head - 1, head, head + 1, len(whole) - 1):
        [answer] = await answers(gw, alice, whole[:cut], whole[cut:])
        assert orjson.loads(answer.body)["reason"] == "unknown_video"
    assert len(ways) <= 5


async def test_requests_that_come_together_are_answered_in_their_order(
    gw: Running, alice: App, ways: list[str]
) -> None:
    many = [
        request(alice, "POST", f"/v1/videos/{UNKNOWN}/status", {"status": "viewed"}),
        request(alice, "GET", "/v1/poll"),
        request(alice, "GET", "/healthz"),
        request(alice, "GET", "/v1/poll?version=x"),
        request(alice, "GET", "/v1/poll"),
    ]
    found = await answers(gw, alice, b"".join(many), number=len(many))
    assert [answer.status for answer in found] == [200, 200, 200, 422, 200]
    assert b"unknown_video" in found[0].body
    assert ways == ["report_status"]  # those behind it wait until it is answered, and go the long way


async def test_one_connection_serves_both_ways_in_turns(gw: Running, alice: App, ways: list[str]) -> None:
    async with gw.tcp() as raw:
        for further in ([], [LONG], [], [LONG], []):
            await raw.send(request(alice, "GET", "/v1/poll", further=further))
            answer = await raw.head()
            assert (answer.status, orjson.loads(answer.body)["client_id"]) == (200, alice.client_id)
    assert ways == ["poll"] * 3


async def test_head_is_answered_without_a_body(gw: Running, alice: App, ways: list[str]) -> None:
    async with gw.tcp() as raw:
        await raw.send(request(alice, "HEAD", "/v1/poll"))
        answer = await raw.head_only()
        assert answer.status == 200
        await raw.send(request(alice, "GET", "/v1/poll"))
        again = await raw.head()
    assert answer.headers["content-length"] == again.headers["content-length"]
    assert ways == ["poll"]


async def test_an_answer_says_when_it_was_made(gw: Running, alice: App, ways: list[str]) -> None:
    [answer] = await answers(gw, alice, request(alice, "GET", "/v1/poll"))
    assert answer.headers["date"].endswith(" GMT")
    assert ways == ["poll"]

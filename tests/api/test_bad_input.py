"""Whatever an app sends, it gets a documented answer; it is never a fault of ours, and nobody else is affected."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import orjson
import pytest

from gateway.api.calls import CALLS, Call
from tests.running import App, Running, answer_from, assert_problem, assert_problem_body, request, within

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
HASH = "0" * 64

WITH_BODY = {call.name: call for call in CALLS if call.body is not None}
VALID: dict[str, dict[str, Any]] = {
    "announce": {"recipient_id": "somebody", "size": 1, "content_type": "video/mp4", "sha256": HASH},
    "report_status": {"status": "viewed", "recipient_id": "somebody"},
    "sync": {"statuses": [], "device_id": "phone", "version": 1},
    "register_device": {"platform": "apns", "token": "x", "environment": "sandbox"},
}
MOST = {name: 65536 if name == "sync" else 16384 for name in WITH_BODY}
EVERY_BODY = pytest.mark.parametrize("name", sorted(WITH_BODY))


def path_of(call: Call, **given: str) -> str:
    return call.path.format(**({"video_id": UNKNOWN_ID, "device_id": "phone"} | given))


async def posted(app: App, name: str, content: bytes | AsyncIterator[bytes], **headers: str) -> httpx.Response:
    call = WITH_BODY[name]
    given = {"Content-Type": "application/json", **headers}
    return await app.call(call.method, path_of(call), content=content, headers=given)


async def posted_json(app: App, name: str, body: object) -> httpx.Response:
    return await posted(app, name, json.dumps(body).encode())


def accepted(answer: httpx.Response) -> None:
    assert answer.status_code in {200, 201, 204}, answer.text


# --- JSON types

VALUES: Mapping[str, object] = {
    "null": None,
    "true": True,
    "a string": "x",
    "a number as a string": "1",
    "an integer": 7,
    "a negative integer": -1,
    "a float": 1.5,
    "an array": [],
    "an object": {},
    "a nested array": [["x"]],
}


def takes(kind: Any, value: object) -> bool:
    """Whether the type of a member takes that value; what its pattern and the rules say comes on top."""
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def members() -> list[tuple[str, str, Any]]:
    """Every member of every body, with its type."""
    return [
        (name, field.encode_name, list if field.name == "statuses" else field.type)  # a broken item fails by itself
        for name, call in sorted(WITH_BODY.items())
        for field in msgspec.structs.fields(call.body)  # type: ignore[arg-type]
    ]


WRONG = [
    pytest.param(name, member, value, id=f"{name}-{member}-{what}")
    for name, member, kind in members()
    for what, value in VALUES.items()
    if not takes(kind, value)
]


def test_every_body_is_tried_and_its_example_is_whole() -> None:
    assert set(VALID) == set(WITH_BODY)
    for name, member, kind in members():
        assert takes(kind, VALID[name][member])
    assert len(WRONG) > 80


@EVERY_BODY
async def test_the_examples_are_accepted(bob: App, name: str) -> None:
    accepted(await posted_json(bob, name, VALID[name]))


@pytest.mark.parametrize(("name", "member", "value"), WRONG)
async def test_a_member_of_another_type_is_refused_by_name(bob: App, name: str, member: str, value: object) -> None:
    assert_problem(await posted_json(bob, name, VALID[name] | {member: value}), 422, "invalid", member)


@pytest.mark.parametrize(
    ("name", "member"),
    [
        (name, field.encode_name)
        for name, call in sorted(WITH_BODY.items())
        for field in msgspec.structs.fields(call.body)  # type: ignore[arg-type]
        if field.required
    ],
)
async def test_a_member_that_is_missing_is_named(bob: App, name: str, member: str) -> None:
    body = {other: value for other, value in VALID[name].items() if other != member}
    assert_problem(await posted_json(bob, name, body), 422, "invalid", member)


@EVERY_BODY
async def test_members_that_nobody_knows_are_ignored(bob: App, name: str) -> None:
    accepted(await posted_json(bob, name, VALID[name] | {"more": {"of": [1, None, "x"]}, "": 1, "\ud83d\ude00": 2}))


@EVERY_BODY
@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"[]", b'"x"', b"7", b"true", b"{", b"}", b"{}}", b"{}{}", b"\xef\xbb\xbf{}"]
)
async def test_a_body_that_is_no_object_is_refused(bob: App, name: str, body: bytes) -> None:
    assert_problem(await posted(bob, name, body), 422, "invalid")


@EVERY_BODY
@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"])
async def test_what_a_body_calls_itself_does_not_matter(bob: App, name: str, kind: str) -> None:
    accepted(await posted(bob, name, orjson.dumps(VALID[name]), **{"Content-Type": kind}))


# --- Numbers


@pytest.mark.parametrize(
    "number",
    [
        *(
            "1.0",
            "1.5",
            "1e3",
            "1E0",
            "1e400",
            "-1",
            "0",
            "-0",
            "01",
            "+1",
            "0x1",
            '"1"',
            "NaN",
            "Infinity",
            "-Infinity",
        ),
        *("10" + "0" * 400, "1" * 5000, "9223372036854775808", "18446744073709551616"),
    ],
)
async def test_a_size_is_an_integer_from_1(bob: App, number: str) -> None:
    body = f'{{"recipient_id":"somebody","content_type":"video/mp4","size":{number}}}'
    problem = assert_problem(await posted(bob, "announce", body.encode()), 422, "invalid")
    if number in {"0", "-1", "1.5", "9223372036854775808", '"1"'}:
        assert "size" in problem["detail"]


@pytest.mark.parametrize("number", ["1.0", "1e3", "-1", "10" + "0" * 400, "NaN", "9223372036854775808", '"1"', "null"])
async def test_a_version_is_an_integer_from_0(bob: App, number: str) -> None:
    body = f'{{"statuses":[],"device_id":"phone","version":{number}}}'
    assert_problem(await posted(bob, "sync", body.encode()), 422, "invalid")


async def test_the_largest_version_is_no_fault(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    assert (await bob.sync(device_id="phone", version=2**63 - 1)).status_code == 200
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"


# --- Strings

BAD_IDS = {
    "empty": "",
    "dot": ".",
    "two dots": "..",
    "a path": "../x",
    "slash": "a/b",
    "backslash": "a\\b",
    "NUL": "a\x00b",
    "NUL at the end": "a\x00",
    "newline at the end": "a\n",
    "newline": "a\nb",
    "space": "a b",
    "emoji": "\U0001f4f1",
    "umlaut": "ü",
    "digits of another script": "١٢",
    "too long": "a" * 65,
    "very long": "a" * 5000,
    "percent": "%2e%2e",
    "quote": "a'\"b",
    "star": "*",
    "colon": "a:b",
    "tilde": "a~b",
}
EVERY_BAD_ID = pytest.mark.parametrize("what", sorted(BAD_IDS))


@EVERY_BAD_ID
async def test_an_id_that_is_none_is_refused_in_bodies(bob: App, what: str) -> None:
    bad = BAD_IDS[what]
    for name, member in (("announce", "recipient_id"), ("report_status", "recipient_id"), ("sync", "device_id")):
        assert_problem(await posted_json(bob, name, VALID[name] | {member: bad}), 422, "invalid", member)
    item = {"video_id": bad, "status": "viewed"}
    [result] = (await bob.sync(item)).json()["results"]
    assert (result["code"], "video_id" in result["detail"]) == ("invalid", True)


@EVERY_BAD_ID
async def test_an_id_that_is_none_is_refused_in_queries(bob: App, what: str) -> None:
    bad = BAD_IDS[what]
    assert_problem(await bob.poll(device_id=bad), 422, "invalid", "device_id")
    assert_problem(await bob.say(UNKNOWN_ID, "viewed", device_id=bad), 422, "invalid", "device_id")
    assert_problem(await bob.delete(UNKNOWN_ID, bad), 422, "invalid", "recipient_id")


@EVERY_BAD_ID
async def test_an_id_that_is_none_is_refused_in_paths(gw: Running, bob: App, what: str) -> None:
    bad = quote(BAD_IDS[what], safe="").replace(".", "%2E")
    for method, path in (
        ("PUT", f"/v1/devices/{bad}"),
        ("DELETE", f"/v1/devices/{bad}"),
        ("GET", f"/v1/devices/{bad}/pushes"),
        ("POST", f"/v1/videos/{bad}/status"),
        ("DELETE", f"/v1/videos/{bad}?recipient_id=somebody"),
        ("GET", f"/v1/videos/{bad}/content"),
    ):
        content = orjson.dumps(VALID["register_device"] | VALID["report_status"])
        head = f"{method} {path} HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: {len(content)}"
        answer = await gw.raw(head, content)
        found = {422: "invalid", 404: "not_found", 405: "method_not_allowed"}
        assert_problem_body(answer.headers, answer.body, answer.status, found[answer.status])
        assert answer.status == 422 or "%2F" in bad or not bad


@pytest.mark.parametrize(
    "bad",
    [
        UNKNOWN_ID.upper(),
        UNKNOWN_ID.replace("-", ""),
        "{" + UNKNOWN_ID + "}",
        "urn:uuid:" + UNKNOWN_ID,
        UNKNOWN_ID.replace("-7", "-4"),
        UNKNOWN_ID.replace("-8", "-c"),
        UNKNOWN_ID + "0",
        UNKNOWN_ID[:-1],
        UNKNOWN_ID + "%0A",
        UNKNOWN_ID + "%00",
        "%20" + UNKNOWN_ID,
    ],
)
async def test_a_video_id_is_a_uuidv7_in_canonical_form(bob: App, bad: str) -> None:
    for answer in (
        await bob.call("GET", f"/v1/videos/{bad}/content"),
        await bob.call("DELETE", f"/v1/videos/{bad}?recipient_id=somebody"),
        await bob.call("POST", f"/v1/videos/{bad}/status", json={"status": "viewed"}),
    ):
        assert_problem(answer, 422, "invalid", "video_id")


@EVERY_BODY
@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\udfff\ud800", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88", b"\x00", b"\n"]
)
async def test_text_that_is_no_unicode_is_refused_wherever_it_stands(bob: App, name: str, text: bytes) -> None:
    for member, value in VALID[name].items():
        if isinstance(value, str):
            body = orjson.dumps(VALID[name] | {member: "@"}).replace(b"@", text)
            assert_problem(await posted(bob, name, body), 422, "invalid")
    body = orjson.dumps(VALID[name])[:-1] + b',"more":"%b"}' % text
    answer = await posted(bob, name, body)
    assert answer.status_code in {200, 201, 204, 422}


@pytest.mark.parametrize(
    "query", ["device_id=%FF", "device_id=%ED%A0%80", "%FF=1", "device_id=%00", "wait=%00", "version=%F0%9F%93%B1"]
)
async def test_a_query_that_is_no_text_is_refused(bob: App, query: str) -> None:
    assert_problem(await bob.call("GET", f"/v1/poll?{query}"), 422, "invalid")


@pytest.mark.parametrize(
    "query", ["", "?", "&&&", "=", "x", "x=1&x=2", "a=" + "b" * 20_000, "&".join(["a=1"] * 3000), "%"]
)
async def test_parameters_that_nobody_knows_are_ignored(bob: App, query: str) -> None:
    assert (await bob.call("GET", f"/v1/poll?{query}")).status_code == 200


async def test_of_repeated_parameters_and_members_the_last_counts(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    version = await bob.version()
    assert (await bob.call("GET", "/v1/poll?device_id=..&device_id=phone")).status_code == 200
    body = f'{{"statuses":7,"version":"x","version":{version},"statuses":[],"device_id":"phone","device_id":"tablet"}}'
    answer = await posted(bob, "sync", body.encode())
    assert answer.status_code in {200, 422}  # RFC 8259 leaves it open; it is the same for all parts of the gateway
    body = '{"recipient_id":"somebody","size":1,"size":2,"content_type":"video/mp4"}'
    answer = await posted(bob, "announce", body.encode())
    assert "size=2&" in answer.json()["upload"]["url"]


# --- Large and deep


@EVERY_BODY
async def test_a_body_may_be_as_large_as_documented_and_no_larger(bob: App, name: str) -> None:
    body = orjson.dumps(VALID[name])
    for size, status in ((MOST[name], None), (MOST[name] + 1, 413), (1_000_000, 413)):
        answer = await posted(bob, name, body + b" " * (size - len(body)))
        if status is None:
            accepted(answer)
        else:
            assert_problem(answer, 413, "too_large", str(MOST[name]))


@EVERY_BODY
async def test_a_chunked_body_is_measured_as_it_comes(bob: App, name: str) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        body = orjson.dumps(VALID[name])
        yield body
        for _ in range(0, size - len(body), 997):
            yield b" " * 997

    accepted(await posted(bob, name, chunks(MOST[name] - 2000)))
    assert_problem(await posted(bob, name, chunks(MOST[name] + 2000)), 413, "too_large")


@EVERY_BODY
async def test_a_body_that_would_be_too_large_is_refused_before_it_comes(gw: Running, bob: App, name: str) -> None:
    call = WITH_BODY[name]
    for length in (MOST[name] + 1, 10**12, 10**18):
        head = f"{call.method} {path_of(call)} HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: {length}"
        answer = await gw.raw(head)
        assert answer.status == 413
        assert_problem_body(answer.headers, answer.body, 413, "too_large")


async def test_a_length_that_is_more_than_what_comes_is_an_app_that_went_away(gw: Running, bob: App) -> None:
    async with gw.connection() as (reader, writer):
        body = orjson.dumps(VALID["register_device"])
        head = f"PUT /v1/devices/phone HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: {len(body) + 1}"
        writer.write(request(head) + body)
        writer.write_eof()
        assert await within(reader.read()) == b""
    assert_problem(await bob.call("GET", "/v1/devices/phone/pushes"), 404, "not_found")


async def test_a_length_that_is_less_than_what_comes_is_refused(gw: Running, bob: App) -> None:
    body = orjson.dumps(VALID["register_device"])
    head = f"PUT /v1/devices/phone HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: {len(body) - 1}"
    answer = await gw.raw(head, body)
    assert answer.status in {422, 400}  # 400: what came behind it was read first, as a request, which it is not
    assert_problem(await bob.call("GET", "/v1/devices/phone/pushes"), 404, "not_found")


@EVERY_BODY
@pytest.mark.parametrize("nested", [b"[" * 8000, b'{"a":' * 3000, b"[" * 5000 + b"]" * 5000, b'[{"a":' * 2000])
async def test_a_body_may_be_nested_as_deep_as_it_fits(bob: App, name: str, nested: bytes) -> None:
    assert_problem(await posted(bob, name, nested), 422, "invalid")
    whole = orjson.dumps(VALID[name])[:-1] + b',"more":%b}' % nested
    assert (await posted(bob, name, whole)).status_code in {200, 201, 204, 422}
    for member in VALID[name]:
        body = orjson.dumps(VALID[name] | {member: "@"}).replace(b'"@"', nested)
        answer = await posted(bob, name, body)
        if answer.status_code != 200 or member != "statuses":  # there it may be an item, which fails by itself
            assert_problem(answer, 422, "invalid")


async def test_items_of_a_sync_may_be_nested_as_deep_as_they_fit(bob: App) -> None:
    for item in (b"[" * 10_000 + b"]" * 10_000, b'{"video_id":' * 3000 + b"1" + b"}" * 3000):
        answer = await posted(bob, "sync", b'{"statuses":[%b]}' % item)
        assert answer.status_code in {200, 422}


# --- Slow


@EVERY_BODY
async def test_a_body_may_come_a_byte_at_a_time(gw: Running, bob: App, name: str) -> None:
    call, body = WITH_BODY[name], orjson.dumps(VALID[name])
    head = f"{call.method} {path_of(call)} HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: {len(body)}"
    answer = await gw.raw(head, *(body[at : at + 1] for at in range(len(body))))
    assert answer.status in {200, 201, 204}


@EVERY_BODY
async def test_a_body_that_never_comes_is_given_up(
    gw: Running, bob: App, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.api.http.BODY_DEADLINE_S", 0.05)
    call = WITH_BODY[name]
    async with gw.connection() as (reader, writer):
        head = f"{call.method} {path_of(call)} HTTP/1.1\nAuthorization: Bearer {bob.token}\nContent-Length: 9"
        writer.write(request(head) + b"{")
        answer = await answer_from(reader)
        assert answer.status == 408
        assert_problem_body(answer.headers, answer.body, 408, None)
        assert answer.headers["connection"] == "close"
        assert await within(reader.read()) == b""
    assert (await bob.poll()).status_code == 200


# --- Somebody else's


async def test_somebody_elses_video_is_answered_exactly_as_an_unknown_one(alice: App, bob: App, carol: App) -> None:
    video_id = await alice.send(bob.client_id)
    before = (await alice.packet()), (await bob.packet())
    for status in ("notified", "downloaded", "viewed"):
        assert (await carol.say(video_id, status)).content == (await carol.say(UNKNOWN_ID, status)).content
    answer = await carol.sync({"video_id": video_id, "status": "viewed"}, {"video_id": UNKNOWN_ID, "status": "viewed"})
    results = answer.json()["results"]
    assert results[0] == results[1] == {"result": "ignored", "reason": "unknown_video", "version": 0}
    theirs = await carol.call("GET", f"/v1/videos/{video_id}/content")
    unknown = await carol.call("GET", f"/v1/videos/{UNKNOWN_ID}/content")
    assert (theirs.status_code, theirs.content) == (unknown.status_code, unknown.content)
    assert_problem(await carol.say(video_id, "uploaded", bob.client_id), 409, "not_stored")
    assert (await carol.delete(video_id, bob.client_id)).json()["result"] == "applied"
    assert ((await alice.packet()), (await bob.packet())) == before


async def test_a_recipient_that_nobody_heard_of_is_as_good_as_any(gw: Running, alice: App) -> None:
    nobody = gw.fresh("nobody")
    video_id = await alice.send(nobody)
    assert [video["video_id"] for video in (await gw.app(nobody).packet())["incoming"]] == [video_id]


async def test_a_flood_of_nonsense_changes_nothing_for_others(gw: Running, alice: App, bob: App, carol: App) -> None:
    holding = asyncio.create_task(bob.poll('"0"', wait=60))
    await gw.polls_held(1)
    nonsense = [posted(carol, name, body) for name in WITH_BODY for body in (b"", b"[[[", b"\xff" * 999) * 10]
    answers = await asyncio.gather(*nonsense)
    assert {answer.status_code for answer in answers} == {422}
    assert not holding.done()
    video_id = await alice.send(bob.client_id)
    assert (await within(holding)).json()["incoming"][0]["video_id"] == video_id


# --- Lost answers


LOST = ["confirm", "downloaded", "viewed", "delete", "sync", "register", "unregister", "leave", "upload", "announce"]


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "cut at once"])
@pytest.mark.parametrize("kind", LOST)
async def test_a_call_whose_answer_was_lost_is_repeated_with_the_documented_result(
    gw: Running, alice: App, bob: App, kind: str, answered: bool
) -> None:
    announced = await alice.announce(bob.client_id)
    if kind != "upload":
        await alice.upload(announced)
    if kind == "unregister":
        await bob.register("phone", gw.fresh("token"))
    video = f"/v1/videos/{announced.video_id}"
    viewed = [{"video_id": announced.video_id, "status": "viewed"}]
    app, method, path, body = {
        "confirm": (alice, "POST", f"{video}/status", {"status": "uploaded", "recipient_id": bob.client_id}),
        "downloaded": (bob, "POST", f"{video}/status", {"status": "downloaded"}),
        "viewed": (bob, "POST", f"{video}/status", {"status": "viewed"}),
        "delete": (alice, "DELETE", f"{video}?recipient_id={bob.client_id}", None),
        "sync": (bob, "POST", "/v1/sync", {"statuses": viewed}),
        "register": (bob, "PUT", "/v1/devices/phone", {"platform": "fcm", "token": gw.fresh("token")}),
        "unregister": (bob, "DELETE", "/v1/devices/phone", None),
        "leave": (alice, "DELETE", "/v1/client", None),
        "upload": (alice, "PUT", announced.url.removeprefix(gw.url), None),
        "announce": (alice, "POST", "/v1/videos", VALID["announce"]),
    }[kind]
    content = b"" if body is None else orjson.dumps(body)
    if kind == "upload":
        content = b"a video, as far as anybody here can tell"
    head = f"{method} {path} HTTP/1.1\nContent-Length: {len(content)}\nContent-Type: video/mp4"
    head += "" if kind == "upload" else f"\nAuthorization: Bearer {app.token}"
    async with gw.connection() as (reader, writer):
        writer.write(request(head) + content)
        if answered:
            assert await within(reader.read(1)) == b"H"

    again = await gw.raw(head, content)
    if kind == "upload":
        assert again.status == 412 if answered else again.status in {200, 412}
    elif kind in {"confirm", "downloaded", "viewed", "delete", "sync"}:
        result = again.json["results"][0] if kind == "sync" else again.json
        assert again.status == 200
        assert result["result"] == "duplicate" if answered else result["result"] in {"applied", "duplicate"}
    else:
        assert again.status == (201 if kind == "announce" else 204)
    sent, received = (await alice.packet())["outgoing"], (await bob.packet())["incoming"]
    over = kind in {"delete", "leave"}
    assert [video["video_id"] for video in sent] == ([] if over else [announced.video_id])
    assert len(received) == (0 if over or kind in {"viewed", "sync"} else 1)


async def test_an_announcement_that_is_repeated_is_another_video(alice: App, bob: App) -> None:
    one, other = await alice.announce(bob.client_id), await alice.announce(bob.client_id)
    assert one.video_id < other.video_id
    await alice.upload(other)
    await alice.upload(one)
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [other.video_id]

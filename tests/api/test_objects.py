import asyncio
import contextlib
import hashlib
import logging
import os
import re
import socket
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from tests.running import (
    VIDEO,
    Announced,
    App,
    RawAnswer,
    Running,
    answer_from,
    assert_problem,
    assert_problem_body,
    request,
    running_gateway,
    until,
    within,
)

LARGE = 20 * 1024 * 1024


def target(url: str) -> str:
    """Path and query of a URL."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def put(announced: Announced, *, length: int | None = len(VIDEO), **headers: str) -> str:
    """The head of an upload."""
    lines = [f"PUT {target(announced.url)} HTTP/1.1", *(f"{name}: {text}" for name, text in announced.headers.items())]
    lines += [f"Content-Length: {length}"] if length is not None else []
    return "\n".join([*lines, *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items())])


def refused(answer: RawAnswer, status: int, code: str | None) -> None:
    assert answer.status == status
    assert_problem_body(answer.headers, answer.body, status, code)


def partial_uploads(gw: Running) -> list[str]:
    return [path.name for path in (gw.folder / "objects" / "incoming").iterdir()]


def names(folder: Path) -> list[str]:
    """What is in a folder, but for the journals of the database."""
    return sorted(path.name for path in folder.iterdir() if "-" not in path.name)


async def nothing_left(gw: Running) -> None:
    async def is_empty() -> bool:
        return not partial_uploads(gw)

    await until(is_empty, "no upload that was broken off is left")


async def not_stored(sender: App, announced: Announced, recipient: App) -> None:
    answer = await sender.say(announced.video_id, "uploaded", recipient.client_id)
    assert_problem(answer, 409, "not_stored")


# --- Uploads


async def test_a_stored_upload_is_complete_at_once_without_the_app(alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    answer = await alice.upload(announced)
    assert (answer.status_code, answer.content) == (200, b"")
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [announced.video_id]
    assert (await bob.download(announced.video_id)).content == VIDEO
    version = await alice.version()
    confirmed = await alice.say(announced.video_id, "uploaded", bob.client_id)
    assert confirmed.json() == {"result": "duplicate", "version": version}


async def test_an_upload_that_cannot_be_completed_at_once_is_stored_all_the_same(
    gw: Running, alice: App, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(_: object) -> None:
        await asyncio.sleep(60)

    announced = await alice.announce(bob.client_id)
    with monkeypatch.context() as patch:
        patch.setattr("gateway.changes.CALL_DEADLINE_S", 0.05)
        patch.setattr(gw.gateway.service.changes.documents, "load", hangs)
        assert (await alice.upload(announced)).status_code == 200
    assert (await alice.say(announced.video_id, "uploaded", bob.client_id)).json()["result"] == "applied"


async def test_a_url_stores_once(alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    assert (await alice.upload(announced)).status_code == 200
    other = VIDEO[::-1]
    assert_problem(await alice.upload(announced, other), 412, None)
    assert (await bob.download(announced.video_id)).content == VIDEO


async def test_of_uploads_at_once_exactly_one_is_stored(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    bodies = [bytes([number]) * len(VIDEO) for number in range(8)]
    answers = await asyncio.gather(*(alice.upload(announced, body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    [stored] = [body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 200]
    assert (await bob.download(announced.video_id)).content == stored
    await nothing_left(gw)


async def test_the_hash_that_was_announced_must_fit(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id, sha256=hashlib.sha256(VIDEO).hexdigest())
    assert_problem(await alice.upload(announced, VIDEO[::-1]), 400, "invalid", "SHA-256")
    await not_stored(alice, announced, bob)
    await nothing_left(gw)
    assert (await alice.upload(announced)).status_code == 200


@pytest.mark.parametrize("length", [len(VIDEO) - 1, len(VIDEO) + 1, 0, 10**9])
async def test_another_length_than_announced_is_refused_before_the_bytes(
    gw: Running, alice: App, bob: App, length: int
) -> None:
    announced = await alice.announce(bob.client_id)
    answer = await gw.raw(put(announced, length=length))
    refused(answer, 403, "forbidden")
    assert answer.headers["connection"] == "close"
    await not_stored(alice, announced, bob)


@pytest.mark.parametrize("kind", ["video/webm", "", "text/html", "video/mp4; x=y"])
async def test_another_type_than_announced_is_refused(alice: App, bob: App, kind: str) -> None:
    announced = await alice.announce(bob.client_id)
    answer = await alice.http.put(announced.url, content=VIDEO, headers={"Content-Type": kind})
    assert_problem(answer, 403, "forbidden")
    await not_stored(alice, announced, bob)


async def test_an_upload_without_a_length_is_refused(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    head = put(announced, length=None, Transfer_Encoding="chunked")
    refused(await gw.raw(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(VIDEO), VIDEO)), 411, "invalid")
    refused(await gw.raw(put(announced, length=None)), 411, "invalid")
    await not_stored(alice, announced, bob)


@pytest.mark.parametrize("sent", [0, 1, len(VIDEO) - 1])
async def test_an_upload_that_is_cut_off_leaves_nothing(gw: Running, alice: App, bob: App, sent: int) -> None:
    announced = await alice.announce(bob.client_id)
    async with gw.connection() as (_, writer):
        writer.write(request(put(announced)) + VIDEO[:sent])

        async def arrived() -> bool:
            return bool(partial_uploads(gw))

        await until(arrived, "the upload begins")
    await nothing_left(gw)
    await not_stored(alice, announced, bob)
    assert (await alice.upload(announced)).status_code == 200


async def test_an_upload_that_pauses_too_long_is_given_up(
    gw: Running, alice: App, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.api.objects.STALL_S", 0.1)
    announced = await alice.announce(bob.client_id)
    async with gw.connection() as (reader, writer):
        writer.write(request(put(announced)) + VIDEO[:5])
        answer = await answer_from(reader)
        refused(answer, 408, None)
        assert await within(reader.read()) == b""
    await nothing_left(gw)
    await not_stored(alice, announced, bob)


async def test_an_upload_may_come_a_byte_at_a_time(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    answer = await gw.raw(put(announced), *(VIDEO[at : at + 1] for at in range(len(VIDEO))))
    assert answer.status == 200
    assert (await bob.download(announced.video_id)).content == VIDEO


async def test_an_app_that_asks_first_is_told_to_go_on_or_refused_without_sending(
    gw: Running, alice: App, bob: App
) -> None:
    announced = await alice.announce(bob.client_id)
    async with gw.connection() as (reader, writer):
        writer.write(request(put(announced, Expect="100-continue")))
        assert await within(reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(VIDEO)
        assert (await answer_from(reader)).status == 200
    refused(await gw.raw(put(announced, Expect="100-continue")), 412, None)


async def test_a_refusal_reaches_an_app_that_is_still_sending(gw: Running, alice: App, bob: App) -> None:
    data = os.urandom(LARGE)
    announced = await alice.announce(bob.client_id, data)
    assert (await alice.upload(announced, data)).status_code == 200
    head = put(announced, length=LARGE)
    refused(await gw.raw(head, *(data[at : at + 65536] for at in range(0, LARGE, 65536))), 412, None)
    wrong = put(announced, length=LARGE, X_Content_Type="x").replace("video/mp4", "video/webm")
    refused(await gw.raw(wrong, *(data[at : at + 65536] for at in range(0, LARGE, 65536))), 403, "forbidden")


async def test_a_large_video_streams_both_ways_in_bounded_memory(gw: Running, alice: App, bob: App) -> None:
    piece = os.urandom(64 * 1024)
    pieces = LARGE // len(piece)
    hashed = hashlib.sha256(piece * pieces)
    body = {"recipient_id": bob.client_id, "size": LARGE, "content_type": "video/mp4", "sha256": hashed.hexdigest()}
    found = (await alice.call("POST", "/v1/videos", json=body)).json()

    async def sent() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    tracemalloc.start()
    try:
        headers = {**found["upload"]["headers"], "Content-Length": str(LARGE)}
        assert (await gw.http.put(found["upload"]["url"], content=sent(), headers=headers)).status_code == 200
        received = hashlib.sha256()
        async with gw.http.stream("GET", await bob.content_url(found["video_id"])) as answer:
            async for chunk in answer.aiter_raw():
                received.update(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received.hexdigest() == hashed.hexdigest()
    assert peak < 8 * 1024 * 1024


# --- Signatures


def tampered(url: str, **changes: str | None) -> str:
    """`url` with other parameters; None takes one away."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | changes
    return parts._replace(query=urlencode({name: text for name, text in query.items() if text is not None})).geturl()


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "41"},
        {"type": "text/html"},
        {"expires": "99999999999999"},
        {"expires": "x"},
        {"method": "GET"},
        {"sha256": "0" * 64},
        {"signature": None},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "ü\U0001f4f1\x00"},
        {"more": "1"},
        {"size": None},
        {"method": None},
    ],
    ids=str,
)
async def test_a_url_that_was_changed_stores_nothing(alice: App, bob: App, changes: dict[str, str | None]) -> None:
    announced = await alice.announce(bob.client_id)
    answer = await alice.http.put(tampered(announced.url, **changes), content=VIDEO, headers=announced.headers)
    assert_problem(answer, 403, "forbidden")
    await not_stored(alice, announced, bob)


async def test_a_url_stores_nothing_under_another_key(gw: Running, alice: App, bob: App) -> None:
    one, other = await alice.announce(bob.client_id), await alice.announce(bob.client_id)
    url = urlsplit(one.url)._replace(path=urlsplit(other.url).path).geturl()
    assert_problem(await gw.http.put(url, content=VIDEO, headers=one.headers), 403, "forbidden")
    path = urlsplit(one.url).path.replace(alice.client_id, bob.client_id)
    url = urlsplit(one.url)._replace(path=path).geturl()
    assert_problem(await gw.http.put(url, content=VIDEO, headers=one.headers), 403, "forbidden")


async def test_urls_expire(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("expired"), UPLOAD_TTL_S="0.001", DOWNLOAD_TTL_S="0.001") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        announced = await alice.announce("bob")
        assert_problem(await alice.upload(announced), 403, "forbidden", "expired")
    async with running_gateway(gw.folder, DOWNLOAD_TTL_S="0.001") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        video_id = await alice.send("bob")
        assert_problem(await bob.download(video_id), 403, "forbidden", "expired")


async def test_a_url_is_for_its_method_only(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    for method in ("GET", "HEAD"):
        assert (await gw.http.request(method, announced.url)).status_code == 403
    await alice.upload(announced)
    url = await bob.content_url(announced.video_id)
    assert_problem(await gw.http.put(url, content=VIDEO, headers=announced.headers), 403, "forbidden")
    for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
        answer = await gw.http.request(method, url)
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "GET, HEAD, PUT"


async def test_urls_outlive_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("restarted")
    async with running_gateway(folder) as gw:
        announced = await gw.app("alice").announce("bob")
    async with running_gateway(folder) as gw:
        assert (await gw.http.put(target(announced.url), content=VIDEO, headers=announced.headers)).status_code == 200
        assert (await gw.app("bob").download(announced.video_id)).content == VIDEO


# --- Downloads


async def test_what_was_uploaded_never_runs_on_this_origin(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    headers = (await bob.download(video_id)).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["Content-Type"] == "video/mp4"
    assert headers["Accept-Ranges"] == "bytes"


SIZE = len(VIDEO)


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-4", 0, 5),
        ("bytes=5-", 5, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes={SIZE - 1}-{SIZE - 1}", SIZE - 1, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE}", 0, SIZE),
        ("bytes=-999", 0, SIZE),
        ("bytes=3-999", 3, SIZE),
        (f"bytes=0-{'9' * 18}", 0, SIZE),
    ],
)
async def test_a_range_is_answered_with_just_that(alice: App, bob: App, given: str, start: int, end: int) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await bob.download(video_id, Range=given)
    assert answer.status_code == 206
    assert answer.content == VIDEO[start:end]
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("given", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=999-1000"])
async def test_a_range_beyond_the_end_is_refused_with_the_size(alice: App, bob: App, given: str) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await bob.download(video_id, Range=given)
    assert_problem(answer, 416, None)
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "given",
    [
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=x-y",
        "bytes=0-1,3-4",
        "lines=0-1",
        "0-1",
        "",
        "bytes=1.0-2",
        "bytes=٠-١",
        f"bytes={'9' * 400}-",
        "bytes=0-0-0",
        "bytes=+1-2",
    ],
)
async def test_a_range_that_is_none_and_several_get_the_whole(alice: App, bob: App, given: str) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await alice.http.get(await bob.content_url(video_id), headers={b"Range": given.encode()})
    assert (answer.status_code, answer.content) == (200, VIDEO)
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}, {"Range": "bytes=999-"}])
async def test_head_tells_what_is_there(alice: App, bob: App, headers: dict[str, str]) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await alice.http.head(await bob.content_url(video_id), headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(SIZE)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_url_of_bytes_that_are_gone_is_not_found(alice: App, bob: App, method: str) -> None:
    video_id = await alice.send(bob.client_id)
    url = await bob.content_url(video_id)
    await alice.delete(video_id, bob.client_id)

    async def deleted() -> bool:
        return (await alice.http.request(method, url)).status_code == 404

    await until(deleted, "the bytes are deleted")
    if method == "GET":
        assert_problem(await alice.http.get(url), 404, "not_found")


async def test_a_download_goes_on_while_the_video_is_deleted(gw: Running, alice: App, bob: App) -> None:
    data = os.urandom(LARGE)
    video_id = await alice.send(bob.client_id, data)
    url = await bob.content_url(video_id)
    received = b""
    async with gw.http.stream("GET", url) as answer:
        chunks = answer.aiter_raw()
        received += await anext(chunks)
        await alice.delete(video_id, bob.client_id)

        async def deleted() -> bool:
            return (await gw.http.head(url)).status_code == 404

        await until(deleted, "the bytes are deleted")
        async for chunk in chunks:
            received += chunk
    assert received == data


async def test_a_download_that_is_broken_off_releases_its_file(gw: Running, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id, os.urandom(LARGE))
    url = await bob.content_url(video_id)

    async def closed() -> bool:
        return not any(video_id in name for name in open_files())

    async with gw.connection() as (reader, writer):
        writer.write(request(f"GET {target(url)} HTTP/1.1"))
        assert await within(reader.read(1)) == b"H"
        assert not await closed()
    await until(closed, "the file is closed")


async def test_a_download_that_nobody_reads_is_given_up(
    gw: Running, alice: App, bob: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.api.objects.STALL_S", 0.1)
    video_id = await alice.send(bob.client_id, os.urandom(LARGE))
    url = await bob.content_url(video_id)

    async def closed() -> bool:
        return not any(video_id in name for name in open_files())

    with socket.create_connection(("127.0.0.1", gw.port)) as silent:
        silent.sendall(request(f"GET {target(url)} HTTP/1.1"))

        async def opened() -> bool:
            return not await closed()

        await until(opened, "the file is opened")
        await until(closed, "the file is closed, though the app is still connected")
    # uvicorn says that the answer was not completed, which is so.
    caplog.clear()


def open_files() -> list[str]:
    """The names of the files that this process has open."""
    names = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            names.append(str(path.readlink()))
    return names


# --- Paths


@pytest.mark.parametrize(
    "path",
    [
        "/objects/",
        "/objects/a",
        "/objects/../state.db",
        "/objects/../../jwt.secret",
        "/objects/%2e%2e/secret",
        "/objects/%2e%2e%2f%2e%2e%2fjwt.secret",
        "/objects/..%5c..%5csecret",
        "/objects//etc/passwd",
        "/objects/%2Fetc%2Fpasswd",
        "/objects/a/b%00c",
        "/objects/%00",
        "/objects/a/b%0Ac",
        "/objects/a/" + "b" * 5000,
        "/objects/" + "a/" * 2000,
        "/objects/%ff%fe/x",
        "/objects/a/%F0%9F%93%B1",
        "/objects/..",
        "/objects/.",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_no_path_leads_out_of_the_folder(gw: Running, method: str, path: str) -> None:
    before = names(gw.folder)
    for query in ("", "?signature=" + "0" * 64, "?method=GET&expires=99999999999999&signature=%00"):
        async with gw.connection() as (reader, writer):
            writer.write(request(f"{method} {path}{query} HTTP/1.1\nContent-Length: 1\nConnection: close") + b"x")
            answer = await within(reader.read())
        assert re.match(rb"HTTP/1.1 (403|404|405) ", answer)
        assert b"application/problem+json" in answer
    assert names(gw.folder) == before


async def test_odd_ids_keep_their_bytes_apart(gw: Running) -> None:
    sender, recipients = gw.app("..."), ["a.b", "a..b", ".a", "-a", "_", "...-", "A.B", "a" * 64]
    for number, recipient in enumerate(recipients):
        await sender.send(recipient, bytes([number]) * 3)
    for number, recipient in enumerate(recipients):
        [incoming] = (await gw.app(recipient).packet())["incoming"]
        assert (await gw.app(recipient).download(incoming["video_id"])).content == bytes([number]) * 3


# --- What is told of them


async def test_no_url_is_ever_logged(
    gw: Running, alice: App, bob: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `gateway.log` has it: pytest gives the logger a handler, which switches uvicorn's access log on.
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "disabled", True)
    caplog.set_level(logging.DEBUG)
    announced = await alice.announce(bob.client_id)
    urls = [announced.url, tampered(announced.url, signature="f" * 64), tampered(announced.url, method="GET")]
    for url in urls:
        await gw.http.put(url, content=VIDEO, headers=announced.headers)
        await gw.http.get(url)
    urls.append(await bob.content_url(announced.video_id))
    answers: list[httpx.Response] = [await gw.http.get(urls[-1]), await gw.http.post(urls[-1])]
    assert [answer.status_code for answer in answers] == [200, 405]
    await gw.raw(f"GET {target(urls[-1])} HTTP/1.1\nContent-Length: x")
    secrets = {dict(parse_qsl(urlsplit(url).query))["signature"] for url in urls} | {alice.token, bob.token}
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]  # the app's side
    for record in own:
        for secret in secrets:
            assert secret not in f"{record.getMessage()} {vars(record)}"

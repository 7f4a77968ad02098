from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.client import Client, DownloadError, Outcome, Remedy, retrying
from tests.client.played import (
    ADDRESS,
    FIRST,
    QUICK,
    VIDEO,
    Played,
    Step,
    an_upload,
    client_of,
    located,
    moved_to,
    named,
    problem,
    ranged,
    whole,
)
from tests.running import Running


def partly(to: Path, video_id: str = FIRST) -> Path:
    return to.with_name(f".{to.name}.{video_id}.part")


def begun(to: Path, data: bytes) -> None:
    partly(to).write_bytes(data)


async def cut_short() -> AsyncIterator[bytes]:
    yield VIDEO[:1000]
    raise httpx.ReadError("the connection broke")


async def test_an_upload_carries_its_length_and_the_headers_it_was_told_but_no_token() -> None:
    played = Played(httpx.Response(200))
    moved: list[tuple[int, int]] = []
    await played.client().upload(an_upload(), VIDEO, progress=moved_to(moved))
    [request] = played.asked
    assert request.content == VIDEO
    assert request.headers["content-length"] == str(len(VIDEO))
    assert request.headers["content-type"] == "video/mp4"
    assert "authorization" not in request.headers
    assert "transfer-encoding" not in request.headers
    assert dict(request.url.params) == {"X-Signature": "5ec4e7"}
    assert moved == [(part * len(VIDEO) // 4, len(VIDEO)) for part in (1, 2, 3, 4)]


async def test_a_token_that_is_a_default_of_the_http_client_does_not_reach_the_store() -> None:
    played = Played(httpx.Response(200))
    http = httpx.AsyncClient(transport=httpx.MockTransport(played), headers={"authorization": "Bearer x"})
    await Client(ADDRESS, "a-token", http=http).upload(an_upload(), VIDEO)
    assert "authorization" not in played.asked[0].headers


async def test_bytes_a_file_and_an_iterator_are_uploaded_alike(video: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(VIDEO), 100_000):
            yield VIDEO[start : start + 100_000]

    played = Played(*[httpx.Response(200)] * 3)
    for source in (VIDEO, video, pieces()):
        await played.client().upload(an_upload(), source)
    assert [request.content for request in played.asked] == [VIDEO] * 3


async def test_an_upload_that_is_stored_already_is_done() -> None:
    await Played(problem(412)).client().upload(an_upload(), VIDEO)


@pytest.mark.parametrize("size", [len(VIDEO) - 1, len(VIDEO) + 1])
async def test_an_upload_of_another_size_than_announced_is_a_mistake_of_the_caller(gw: Running, size: int) -> None:
    async with client_of(gw, "alice") as alice:
        announced = await alice.announce("bob", size=size)
        with pytest.raises(ValueError, match=f"{size} bytes were announced"):
            await alice.upload(announced, VIDEO)


async def test_a_download_is_fetched_without_the_token_and_appears_when_it_is_whole(tmp_path: Path) -> None:
    played = Played(located(), whole())
    moved: list[tuple[int, int]] = []
    to = tmp_path / "video.mp4"
    size = await played.client().download(FIRST, to, progress=moved_to(moved))
    assert size == len(VIDEO)
    assert to.read_bytes() == VIDEO
    assert moved[-1] == (len(VIDEO), len(VIDEO))
    assert not partly(to).exists()
    asked, fetched = played.asked
    assert asked.headers["authorization"] == "Bearer secret-token"
    assert "authorization" not in fetched.headers
    assert dict(fetched.url.params) == {"X-Signature": "5ec4e7"}


async def test_a_download_that_broke_goes_on_where_it_was(tmp_path: Path) -> None:
    length = str(len(VIDEO))
    broken = httpx.Response(200, content=cut_short(), headers={"content-length": length})
    rest = ranged(206, VIDEO[1000:], f"bytes 1000-{len(VIDEO) - 1}/{length}")
    played = Played(located(), broken, located(), rest)
    client, to = played.client(), tmp_path / "video.mp4"
    with pytest.raises(DownloadError) as caught:
        await client.download(FIRST, to)
    assert caught.value.remedy is Remedy.RETRY
    assert not to.exists()
    assert await client.download(FIRST, to) == len(VIDEO)
    assert to.read_bytes() == VIDEO
    assert played.asked[3].headers["range"] == "bytes=1000-"


async def test_a_download_of_which_all_was_there_already_is_done(tmp_path: Path) -> None:
    to = tmp_path / "video.mp4"
    begun(to, VIDEO)
    played = Played(located(), ranged(416, b"", f"bytes */{len(VIDEO)}"))
    assert await played.client().download(FIRST, to) == len(VIDEO)
    assert to.read_bytes() == VIDEO


async def test_a_store_without_ranges_sends_the_whole(tmp_path: Path) -> None:
    to = tmp_path / "video.mp4"
    begun(to, b"something else")
    await Played(located(), whole()).client().download(FIRST, to)
    assert to.read_bytes() == VIDEO


async def test_what_is_longer_than_the_video_is_thrown_away_and_fetched_anew(tmp_path: Path) -> None:
    to = tmp_path / "video.mp4"
    begun(to, VIDEO + b"!")
    played = Played(located(), ranged(416, b"", f"bytes */{len(VIDEO)}"), located(), whole())
    client = played.client()
    await retrying(lambda: client.download(FIRST, to), backoff=QUICK)
    assert to.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "answer",
    [
        ranged(206, b"abc", "bytes 5-7/9"),
        ranged(206, b"abc", ""),
        whole("nine", b"abc"),
        whole(9, b"abc"),
    ],
)
async def test_bytes_that_are_not_those_asked_for_are_not_kept(tmp_path: Path, answer: httpx.Response) -> None:
    to = tmp_path / "video.mp4"
    with pytest.raises(DownloadError) as caught:
        await Played(located(), answer).client().download(FIRST, to)
    assert caught.value.remedy is Remedy.RETRY
    assert not to.exists()


@pytest.mark.parametrize(
    "steps", [[problem(404, "not_tracked")], [located(), problem(404, "not_found")], [located(), httpx.Response(403)]]
)
async def test_a_download_that_is_refused_asks_for_a_poll(tmp_path: Path, steps: list[Step]) -> None:
    with pytest.raises(DownloadError) as caught:
        await Played(*steps).client().download(FIRST, tmp_path / "video.mp4")
    assert caught.value.remedy is Remedy.POLL


async def test_a_repeated_upload_is_done_already(gw: Running) -> None:
    async with client_of(gw, "alice") as alice:
        announced = await alice.announce("bob", size=len(VIDEO))
        await alice.upload(announced, VIDEO)
        await alice.upload(announced, VIDEO)
        assert (await alice.confirm(announced.video_id, "bob")).outcome is Outcome.DUPLICATE


async def test_a_real_download_goes_on_from_what_is_there(gw: Running, video: Path, tmp_path: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        sent = await alice.send_video(video, named(bob))
        to = tmp_path / "received.mp4"
        for have in (1, len(VIDEO) - 1, len(VIDEO)):
            partly(to, sent.video_id).write_bytes(VIDEO[:have])
            moved: list[tuple[int, int]] = []
            await bob.download(sent.video_id, to, progress=moved_to(moved))
            assert to.read_bytes() == VIDEO
            assert all(so_far > have for so_far, _ in moved)

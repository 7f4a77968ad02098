import asyncio
import hashlib
import time
import uuid
from dataclasses import replace

import pytest

from gateway.transit.decisions import VideoRef
from gateway.transit.state import ClientId, VideoId
from tests.running import VIDEO, App, Running, assert_problem, running_gateway, until

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"


async def stored(gw: Running, sender: App, recipient: App, video_id: str) -> bool:
    """Whether the bytes of a video are on the disk."""
    key = VideoRef(VideoId(video_id), ClientId(sender.client_id), ClientId(recipient.client_id)).object_key
    shard, _, name = key.partition("/")
    return (gw.folder / "objects" / "objects" / shard / name.replace("/", "~")).exists()


async def gone(gw: Running, sender: App, recipient: App, video_id: str) -> None:
    async def is_gone() -> bool:
        return not await stored(gw, sender, recipient, video_id)

    await until(is_gone, "the bytes are deleted")


# --- POST /v1/videos


async def test_an_announcement_gives_an_id_and_how_to_upload(gw: Running, alice: App, bob: App) -> None:
    body = {"recipient_id": bob.client_id, "size": 7, "content_type": "video/mp4"}
    before = int(time.time() * 1000)
    answer = await alice.call("POST", "/v1/videos", json=body)
    assert answer.status_code == 201
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    found = answer.json()
    minted = uuid.UUID(found["video_id"])
    assert (minted.version, str(minted)) == (7, found["video_id"])
    assert minted.int >> 80 >= before
    upload = found["upload"]
    assert (upload["method"], upload["headers"]) == ("PUT", {"Content-Type": "video/mp4"})
    assert upload["url"].startswith(f"{gw.url}/objects/")
    assert 0 < upload["expires_at"] - before - 6 * 3_600_000 < 60_000


async def test_ids_sort_by_age(alice: App, bob: App) -> None:
    announced = [(await alice.announce(bob.client_id)).video_id for _ in range(5)]
    sent = await alice.send(bob.client_id)
    assert sorted([*announced[-1:], sent]) == [announced[-1], sent]
    again = await alice.announce(bob.client_id)
    assert again.video_id > sent


async def test_nothing_is_known_of_a_video_that_is_only_announced(alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    assert (await alice.packet())["version"] == 0
    assert (await bob.packet())["version"] == 0
    assert_problem(await alice.call("GET", f"/v1/videos/{announced.video_id}/content"), 404, "not_tracked")


async def test_upload_urls_are_made_against_the_public_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("public")
    async with running_gateway(folder, PUBLIC_URL="https://videos.example.com") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        announced = await alice.announce("bob")
        assert announced.url.startswith("https://videos.example.com/objects/")
        path = announced.url.removeprefix("https://videos.example.com")
        assert (await gw.http.put(path, content=VIDEO, headers=announced.headers)).status_code == 200
        assert (await bob.content_url(announced.video_id)).startswith("https://videos.example.com/objects/")


async def test_a_video_may_be_as_large_as_allowed_and_no_larger(alice: App, bob: App) -> None:
    most = 32 * 1024 * 1024
    body = {"recipient_id": bob.client_id, "size": most, "content_type": "video/mp4"}
    assert (await alice.call("POST", "/v1/videos", json=body)).status_code == 201
    answer = await alice.call("POST", "/v1/videos", json=body | {"size": most + 1})
    assert_problem(answer, 413, "too_large", "size", str(most))


@pytest.mark.parametrize("content_type", ["video/mp4", "Video/MP4", "video/x-matroska", "video/vnd.a+b.c_d-e!f"])
async def test_a_video_may_be_of_any_configured_type(alice: App, bob: App, content_type: str) -> None:
    video_id = await alice.send(bob.client_id, content_type=content_type)
    assert (await bob.packet())["incoming"][0]["content_type"] == content_type.lower()
    assert (await bob.download(video_id)).headers["Content-Type"] == content_type.lower()


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "video/",
        "video",
        "/mp4",
        "video/*",
        "*/*",
        "video/mp4; codecs=avc1",
        "video/mp4,video/webm",
        " video/mp4",
        "video/mp4\n",
        "video/mp4\r\nX-Evil: 1",
        "video/mp4/x",
        "vidéo/mp4",
        "video/" + "x" * 100,
    ],
)
async def test_a_type_that_is_none_or_not_configured_is_refused(alice: App, bob: App, content_type: str) -> None:
    body = {"recipient_id": bob.client_id, "size": 1, "content_type": content_type}
    assert_problem(await alice.call("POST", "/v1/videos", json=body), 422, "invalid", "content_type")


async def test_types_of_the_greatest_length_are_taken_and_longer_ones_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind = "a" * 63
    async with running_gateway(tmp_path_factory.mktemp("types"), CONTENT_TYPES=f"{kind}/*") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await alice.send("bob", content_type=f"{kind}/{'b' * 63}")
        assert (await bob.packet())["incoming"][0]["content_type"] == f"{kind}/{'b' * 63}"
        body = {"recipient_id": "bob", "size": 1, "content_type": f"{kind}/{'b' * 64}"}
        assert_problem(await alice.call("POST", "/v1/videos", json=body), 422, "invalid", "content_type")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
async def test_a_hash_that_is_none_is_refused(alice: App, bob: App, sha256: str) -> None:
    body = {"recipient_id": bob.client_id, "size": 1, "content_type": "video/mp4", "sha256": sha256}
    assert_problem(await alice.call("POST", "/v1/videos", json=body), 422, "invalid", "sha256")


async def test_a_video_to_oneself_is_refused_everywhere(alice: App) -> None:
    me = alice.client_id
    body = {"recipient_id": me, "size": 1, "content_type": "video/mp4"}
    assert_problem(await alice.call("POST", "/v1/videos", json=body), 422, "invalid", "recipient_id")
    assert_problem(await alice.say(UNKNOWN_ID, "uploaded", me), 422, "invalid", "recipient_id")
    assert_problem(await alice.delete(UNKNOWN_ID, me), 422, "invalid", "recipient_id")
    [result] = (await alice.sync({"video_id": UNKNOWN_ID, "status": "uploaded", "recipient_id": me})).json()["results"]
    assert (result["result"], result["code"]) == ("failed", "invalid")


# --- POST /v1/videos/{id}/status


async def test_a_confirmed_upload_is_told_to_both_sides_with_the_callers_version(alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    await alice.upload(announced)
    answer = await alice.say(announced.video_id, "uploaded", bob.client_id)
    assert answer.status_code == 200
    assert answer.json() == {"result": "duplicate", "version": await alice.version()}
    assert [video["video_id"] for video in (await alice.packet())["outgoing"]] == [announced.video_id]
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [announced.video_id]


async def test_an_upload_is_refused_as_long_as_nothing_is_stored(alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    assert_problem(await alice.say(announced.video_id, "uploaded", bob.client_id), 409, "not_stored")
    await alice.upload(announced)
    assert (await alice.say(announced.video_id, "uploaded", bob.client_id)).status_code == 200


async def test_uploaded_needs_the_recipient(alice: App) -> None:
    assert_problem(await alice.say(UNKNOWN_ID, "uploaded"), 422, "invalid", "recipient_id")


async def test_an_upload_confirmed_to_another_recipient_is_unknown(alice: App, bob: App, carol: App) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await alice.say(video_id, "uploaded", carol.client_id)
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "unknown_video")
    assert (await carol.packet())["incoming"] == []


async def test_each_status_moves_the_video_and_tells_the_sender(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    for status in ("notified", "downloaded", "viewed"):
        answer = await bob.say(video_id, status)
        assert answer.json() == {"result": "applied", "version": await bob.version()}
        assert (await alice.packet())["outgoing"][0]["status"] == status
        answer = await bob.say(video_id, status)
        assert answer.json() == {"result": "duplicate", "version": await bob.version()}


async def test_steps_may_be_skipped_but_never_taken_back(gw: Running, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    assert (await bob.say(video_id, "viewed")).json()["result"] == "applied"
    for status in ("notified", "downloaded", "viewed"):
        assert (await bob.say(video_id, status)).json()["result"] == "duplicate"
    assert (await alice.packet())["outgoing"][0]["status"] == "viewed"
    assert (await bob.packet())["incoming"] == []
    await gone(gw, alice, bob, video_id)
    assert_problem(await bob.call("GET", f"/v1/videos/{video_id}/content"), 404, "not_tracked")


async def test_a_downloaded_video_stays_listed_until_it_is_viewed(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    await bob.say(video_id, "downloaded")
    [incoming] = (await bob.packet())["incoming"]
    assert (incoming["video_id"], incoming["status"]) == (video_id, "downloaded")


@pytest.mark.parametrize("status", ["notified", "downloaded", "viewed"])
async def test_a_status_of_the_recipients_said_by_the_sender_is_unknown(alice: App, bob: App, status: str) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await alice.say(video_id, status)
    assert answer.json() == {"result": "ignored", "reason": "unknown_video", "version": await alice.version()}
    assert (await alice.packet())["outgoing"][0]["status"] == "uploaded"


async def test_a_new_upload_replaces_the_one_before(gw: Running, alice: App, bob: App) -> None:
    first = await alice.announce(bob.client_id)
    second = await alice.send(bob.client_id)
    third = await alice.send(bob.client_id)
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [third]
    assert [video["video_id"] for video in (await alice.packet())["outgoing"]] == [third]
    await gone(gw, alice, bob, second)
    await alice.upload(first)
    answer = await alice.say(first.video_id, "uploaded", bob.client_id)
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "superseded")
    await gone(gw, alice, bob, first.video_id)
    answer = await alice.say(second, "uploaded", bob.client_id)
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "superseded")


async def test_as_many_as_configured_are_kept_of_a_pair(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("pairs"), VIDEOS_PER_PAIR="3") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        sent = [await alice.send("bob") for _ in range(5)]
        assert [video["video_id"] for video in (await bob.packet())["incoming"]] == sent[2:]


async def test_a_status_call_acknowledges_what_its_device_has_applied(alice: App, bob: App, carol: App) -> None:
    video_id = await alice.send(bob.client_id)
    await carol.send(bob.client_id)
    version = await bob.version()
    await bob.say(video_id, "downloaded", device_id="phone", version=version)
    assert (await carol.packet())["outgoing"][0]["status"] == "notified"


async def test_a_call_that_is_ignored_acknowledges_all_the_same(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    answer = await bob.say(UNKNOWN_ID, "viewed", device_id="phone", version=await bob.version())
    assert answer.json()["reason"] == "unknown_video"
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"


async def test_an_expired_video_is_reported_so_to_whoever_comes_late(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("late"), VIDEO_TTL_S="0.2", UPLOAD_TTL_S="0.2") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        video_id = await alice.send("bob")

        async def expired() -> bool:
            return bool((await alice.packet())["outgoing"][0]["status"] == "expired")

        await until(expired, "the video expires")
        answer = await bob.say(video_id, "viewed")
        assert answer.json() == {"result": "ignored", "reason": "expired", "version": await bob.version()}
        assert (await alice.packet())["outgoing"][0]["status"] == "expired"
        assert (await bob.packet())["incoming"] == []


async def test_many_devices_of_one_client_may_say_the_same_at_once(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    answers = await asyncio.gather(*(bob.say(video_id, "viewed") for _ in range(12)))
    assert sorted(answer.json()["result"] for answer in answers) == ["applied"] + ["duplicate"] * 11


async def test_many_senders_at_once_all_arrive(gw: Running, bob: App) -> None:
    senders = [gw.app(gw.fresh("sender")) for _ in range(12)]
    sent = await asyncio.gather(*(sender.send(bob.client_id) for sender in senders))
    assert {video["video_id"] for video in (await bob.packet())["incoming"]} == set(sent)


# --- As many as fit


async def test_too_many_in_transit_are_refused_when_announced_and_when_confirmed(
    gw: Running, alice: App, bob: App, carol: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = gw.gateway.service.changes
    monkeypatch.setattr(changes, "policy", replace(changes.policy, max_incoming=1))
    announced = await alice.announce(bob.client_id)
    first = await carol.send(bob.client_id)
    body = {"recipient_id": bob.client_id, "size": 1, "content_type": "video/mp4"}
    assert_problem(await alice.call("POST", "/v1/videos", json=body), 409, "too_many_in_transit")
    assert (await alice.upload(announced)).status_code == 200
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [first]
    assert_problem(await alice.say(announced.video_id, "uploaded", bob.client_id), 409, "too_many_in_transit")
    await gone(gw, alice, bob, announced.video_id)
    await bob.say(first, "viewed")
    answer = await alice.say(announced.video_id, "uploaded", bob.client_id)  # it ended as if deleted
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "superseded")
    second = await alice.send(bob.client_id)  # for which the viewed one makes room
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [second]
    assert (await carol.packet())["outgoing"] == []


# --- DELETE /v1/videos/{id}


async def test_deleting_ends_a_video_for_both_and_its_bytes(gw: Running, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await alice.delete(video_id, bob.client_id)
    assert answer.json() == {"result": "applied", "version": await alice.version()}
    assert (await alice.packet())["outgoing"] == []
    assert (await bob.packet())["incoming"] == []
    await gone(gw, alice, bob, video_id)
    assert (await alice.delete(video_id, bob.client_id)).json()["result"] == "duplicate"
    answer = await bob.say(video_id, "viewed")
    assert answer.json()["reason"] == "unknown_video"


async def test_nothing_brings_a_cancelled_upload_back(gw: Running, alice: App, bob: App) -> None:
    announced = await alice.announce(bob.client_id)
    assert (await alice.delete(announced.video_id, bob.client_id)).json()["result"] == "applied"
    assert (await alice.upload(announced)).status_code == 200
    answer = await alice.say(announced.video_id, "uploaded", bob.client_id)
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "superseded")
    assert (await bob.packet())["incoming"] == []
    await gone(gw, alice, bob, announced.video_id)
    await gw.gateway.sweep.round(full=True)
    assert (await bob.packet())["incoming"] == []


async def test_deleting_what_was_viewed_takes_it_off_the_list(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    await bob.say(video_id, "viewed")
    assert (await alice.delete(video_id, bob.client_id)).json()["result"] == "applied"
    assert (await alice.packet())["outgoing"] == []


@pytest.mark.parametrize("query", [{}, {"recipient_id": ""}, {"recipient_id": ".."}, {"recipient_id": "a b"}])
async def test_deleting_needs_the_recipient(alice: App, query: dict[str, str]) -> None:
    answer = await alice.call("DELETE", f"/v1/videos/{UNKNOWN_ID}", params=query)
    assert_problem(answer, 422, "invalid", "recipient_id")


async def test_only_the_sender_deletes(alice: App, bob: App, carol: App) -> None:
    video_id = await alice.send(bob.client_id)
    await bob.delete(video_id, alice.client_id)
    await carol.delete(video_id, bob.client_id)
    await alice.delete(video_id, carol.client_id)
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [video_id]
    assert (await bob.download(video_id)).content == VIDEO


# --- GET /v1/videos/{id}/content


async def test_content_redirects_sender_and_recipient_to_the_bytes(gw: Running, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    for app in (alice, bob):
        answer = await app.call("GET", f"/v1/videos/{video_id}/content")
        assert (answer.status_code, answer.content) == (307, b"")
        assert answer.headers["Cache-Control"] == "no-store"
        download = await gw.http.get(answer.headers["Location"])
        assert (download.status_code, download.content) == (200, VIDEO)


@pytest.mark.parametrize("accept", ["application/json", "text/html, application/json;q=0.9"])
async def test_whoever_asks_for_json_gets_the_url_in_a_body(gw: Running, alice: App, bob: App, accept: str) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await bob.call("GET", f"/v1/videos/{video_id}/content", headers={"Accept": accept})
    assert answer.status_code == 200
    assert list(answer.json()) == ["url", "expires_at"]
    assert 0 < answer.json()["expires_at"] - time.time() * 1000 < 901_000
    assert (await gw.http.get(answer.json()["url"])).content == VIDEO


async def test_content_is_for_nobody_else(alice: App, bob: App, carol: App) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await carol.call("GET", f"/v1/videos/{video_id}/content")
    unknown = await carol.call("GET", f"/v1/videos/{UNKNOWN_ID}/content")
    assert_problem(answer, 404, "not_tracked")
    assert answer.content == unknown.content


async def test_viewed_bytes_can_be_had_for_as_long_as_configured(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("kept"), VIEWED_KEEP_S="3600") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        video_id = await alice.send("bob", sha256=hashlib.sha256(VIDEO).hexdigest())
        await bob.say(video_id, "viewed")
        assert (await bob.download(video_id)).content == VIDEO

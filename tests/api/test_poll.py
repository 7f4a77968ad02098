import asyncio

import httpx
import pytest

from tests.running import App, Running, assert_problem, request, running_gateway, within


async def test_a_client_that_nobody_heard_of_gets_version_0_and_empty_lists(alice: App) -> None:
    answer = await alice.poll()
    assert answer.status_code == 200
    assert answer.headers["ETag"] == '"0"'
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.content == (
        b'{"type":"info","client_id":"%b","version":0,"outgoing":[],"incoming":[]}' % alice.client_id.encode()
    )


async def test_the_packet_has_the_members_and_the_order_of_the_protocol(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    sent, received = await alice.poll(), await bob.poll()
    [outgoing], [incoming] = sent.json()["outgoing"], received.json()["incoming"]
    assert list(sent.json()) == ["type", "client_id", "version", "outgoing", "incoming"]
    assert list(outgoing) == ["video_id", "recipient_id", "status", "at"]
    assert list(incoming) == ["video_id", "sender_id", "status", "url", "size", "content_type", "at"]
    assert (outgoing["video_id"], outgoing["recipient_id"], outgoing["status"]) == (video_id, bob.client_id, "uploaded")
    assert (incoming["video_id"], incoming["sender_id"], incoming["status"]) == (video_id, alice.client_id, "uploaded")
    assert incoming["url"] == f"/v1/videos/{video_id}/content"
    assert (incoming["size"], incoming["content_type"]) == (40, "video/mp4")
    assert b" " not in received.content


async def test_both_lists_are_in_the_order_of_the_ids(gw: Running, alice: App) -> None:
    others = [gw.app(gw.fresh(name)) for name in ("zoe", "mia", "ann", "kim")]
    for other in others:
        await alice.send(other.client_id)
        await other.send(alice.client_id)
    packet = await alice.packet()
    for videos in (packet["outgoing"], packet["incoming"]):
        ids = [video["video_id"] for video in videos]
        assert len(ids) == len(others)
        assert ids == sorted(ids)


async def test_the_version_grows_with_every_change_of_the_packet_and_with_nothing_else(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    before = await alice.version(), await bob.version()
    await bob.poll(f'"{before[1]}"', device_id="phone")  # the sender sees `notified`, the recipient nothing new
    between = await alice.version(), await bob.version()
    assert between[0] > before[0]
    assert between[1] == before[1]
    await bob.say(video_id, "downloaded")
    after = await alice.version(), await bob.version()
    assert after[0] > between[0]
    assert after[1] > between[1]


# --- If-None-Match


async def version_of(alice: App, bob: App) -> int:
    await alice.send(bob.client_id)
    return await bob.version()


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"1", "{}"', 'W/"x" , W/"{}"', '"{}",', "{}"])
async def test_an_entity_tag_of_the_newest_version_gets_304(alice: App, bob: App, form: str) -> None:
    version = await version_of(alice, bob)
    answer = await bob.poll(form.format(version))
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{version}"'
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("form", ['"1"', 'W/"1"', '"0"', '"1", "2"'])
async def test_an_entity_tag_of_an_older_version_gets_the_packet(alice: App, bob: App, form: str) -> None:
    await version_of(alice, bob)
    assert (await bob.poll(form)).status_code == 200


@pytest.mark.parametrize(
    "form",
    ["*", '""', "", '"x"', "garbage", '"-1"', '"1.5"', '"٣"'.encode().decode("latin-1"), '"' + "9" * 20 + '"', ",,,"],
)
async def test_what_is_no_version_of_ours_is_as_good_as_none(alice: App, bob: App, form: str) -> None:
    await version_of(alice, bob)
    answer = await bob.call(
        "GET", "/v1/poll", headers={"If-None-Match": form.encode("latin-1")}, params={"wait": 1, "device_id": "phone"}
    )
    assert answer.status_code == 200


async def test_a_version_above_the_current_one_counts_as_the_current_one(alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    answer = await bob.poll('"9223372036854775807"', device_id="phone")
    assert answer.status_code == 304
    assert answer.headers["ETag"] == f'"{version}"'
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"
    await alice.send(bob.client_id)
    assert (await bob.packet())["version"] > version
    assert (await alice.packet())["outgoing"][0]["status"] == "uploaded"


async def test_without_if_none_match_the_answer_comes_at_once(bob: App) -> None:
    answer = await within(bob.poll(wait=60, version=0), 5)
    assert answer.status_code == 200


# --- Acknowledgements


@pytest.mark.parametrize("how", ["version", "etag"])
async def test_a_poll_that_names_device_and_version_acknowledges_before_it_is_answered(
    alice: App, bob: App, how: str
) -> None:
    version = await version_of(alice, bob)
    if how == "version":
        await bob.poll(device_id="phone", version=version)
    else:
        await bob.poll(f'"{version}"', device_id="phone")
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"
    assert (await bob.packet())["incoming"][0]["status"] == "uploaded"


async def test_without_a_device_nothing_is_acknowledged(alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    await bob.poll(f'"{version}"')
    await bob.poll(version=version)
    await bob.sync(version=version)
    assert (await alice.packet())["outgoing"][0]["status"] == "uploaded"


async def test_an_answer_on_its_way_acknowledges_nothing(alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    assert (await bob.poll(device_id="phone")).json()["version"] == version
    assert (await bob.poll(f'"{version - 1}"', device_id="phone")).json()["version"] == version
    assert (await alice.packet())["outgoing"][0]["status"] == "uploaded"


async def test_an_older_version_acknowledges_only_what_had_come_by_then(gw: Running, bob: App) -> None:
    one, other = gw.app(gw.fresh("one")), gw.app(gw.fresh("other"))
    version = await version_of(one, bob)
    await other.send(bob.client_id)
    await bob.poll(device_id="phone", version=version)
    assert (await one.packet())["outgoing"][0]["status"] == "notified"
    assert (await other.packet())["outgoing"][0]["status"] == "uploaded"


async def test_a_bound_token_names_its_device_by_itself(gw: Running, alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    await gw.app(bob.client_id, device="phone").poll(f'"{version}"')
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"


# --- Held polls


async def test_a_held_poll_gets_the_packet_as_soon_as_it_changes(gw: Running, alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    holding = asyncio.create_task(bob.poll(f'"{version}"', wait=60))
    await gw.polls_held(1)
    video_id = await alice.send(bob.client_id)
    answer = await within(holding)
    assert answer.status_code == 200
    assert answer.json()["incoming"][0]["video_id"] == video_id
    assert answer.headers["ETag"] == f'"{answer.json()["version"]}"'
    assert answer.content == (await bob.poll()).content
    await gw.polls_held(0)


async def test_a_held_poll_without_news_ends_with_304_after_its_wait(bob: App) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await bob.poll('"0"', wait=1)
    assert answer.status_code == 304
    assert answer.headers["ETag"] == '"0"'
    assert 0.9 < loop.time() - started < 5


async def test_an_app_that_goes_away_is_held_no_longer(gw: Running, bob: App) -> None:
    async with gw.connection() as (_, writer):
        writer.write(request(f'GET /v1/poll?wait=60 HTTP/1.1\nAuthorization: Bearer {bob.token}\nIf-None-Match: "0"'))
        await gw.polls_held(1)
    await gw.polls_held(0)


async def test_an_app_that_only_stops_sending_still_gets_what_it_waits_for_or_frees_it(gw: Running, bob: App) -> None:
    async with gw.connection() as (_, writer):
        writer.write(request(f'GET /v1/poll?wait=60 HTTP/1.1\nAuthorization: Bearer {bob.token}\nIf-None-Match: "0"'))
        await gw.polls_held(1)
        writer.write_eof()
        await gw.polls_held(0)


async def test_all_devices_of_a_client_are_told_and_nobody_else(gw: Running, alice: App, bob: App, carol: App) -> None:
    polls = [asyncio.create_task(bob.poll('"0"', wait=60, device_id=f"phone-{number}")) for number in range(3)]
    other = asyncio.create_task(carol.poll('"0"', wait=60))
    await gw.polls_held(4)
    await alice.send(bob.client_id)
    answers = await within(asyncio.gather(*polls))
    assert len({answer.content for answer in answers}) == 1
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])
    await gw.polls_held(0)


async def test_one_client_cannot_hold_any_number_of_polls(gw: Running, bob: App, carol: App) -> None:
    polls = [asyncio.create_task(bob.poll('"0"', wait=60)) for _ in range(16)]
    await gw.polls_held(16)
    assert_problem(await bob.poll('"0"', wait=60), 429, "rate_limited")
    polls.append(asyncio.create_task(carol.poll('"0"', wait=60)))
    await gw.polls_held(17)
    polls.pop(0).cancel()
    await gw.polls_held(16)
    polls.append(asyncio.create_task(bob.poll('"0"', wait=60)))
    await gw.polls_held(17)
    for poll in polls:
        poll.cancel()
    await asyncio.wait(polls)
    await gw.polls_held(0)


async def test_a_held_poll_is_answered_when_the_gateway_drains(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("drained")) as gw:
        bob = gw.app("bob")
        holding = asyncio.create_task(bob.poll('"0"', wait=60))
        await gw.polls_held(1)
        gw.server.should_exit = True
        assert (await within(holding)).status_code == 304


@pytest.mark.parametrize("wait", ["0", "61", "-1", "1.0", "1e1", "+1", " 1", "x", "", "9" * 30, "١"])
async def test_a_wait_that_is_none_is_refused(bob: App, wait: str) -> None:
    assert_problem(await bob.poll('"0"', wait=wait), 422, "invalid", "wait")


@pytest.mark.parametrize("version", ["-1", "1.0", "1e3", "x", "", "9" * 19, "9" * 400, "0x1", "1_0", "\n1"])
async def test_a_version_that_is_none_is_refused(bob: App, version: str) -> None:
    assert_problem(await bob.poll(version=version, device_id="phone"), 422, "invalid", "version")


async def test_head_answers_like_get_without_the_body(alice: App, bob: App) -> None:
    version = await version_of(alice, bob)
    answer: httpx.Response = await bob.call("HEAD", "/v1/poll")
    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"{version}"'
    assert int(answer.headers["Content-Length"]) == len((await bob.poll()).content)
    assert answer.content == b""

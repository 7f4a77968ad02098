import pytest

from tests.running import App, Running, assert_problem, until


async def test_an_account_that_ends_takes_its_devices_and_videos_with_it(gw: Running, alice: App, bob: App) -> None:
    sent = await alice.send(bob.client_id)
    received = await bob.send(alice.client_id)
    await alice.register("phone", gw.fresh("token"))
    url = await bob.content_url(sent)
    answer = await alice.call("DELETE", "/v1/client")
    assert (answer.status_code, answer.content) == (204, b"")
    packet = await alice.packet()
    assert (packet["outgoing"], packet["incoming"]) == ([], [])
    packet = await bob.packet()
    assert packet["incoming"] == []
    assert [(video["video_id"], video["status"]) for video in packet["outgoing"]] == [(received, "expired")]
    assert_problem(await alice.call("GET", "/v1/devices/phone/pushes"), 404, "not_found")
    assert_problem(await bob.call("GET", f"/v1/videos/{sent}/content"), 404, "not_tracked")

    async def deleted() -> bool:
        return (await gw.http.get(url)).status_code == 404

    await until(deleted, "the bytes are deleted")


@pytest.mark.parametrize("known", [True, False])
async def test_ending_an_account_is_repeatable(alice: App, bob: App, known: bool) -> None:
    if known:
        await alice.send(bob.client_id)
    for _ in range(3):
        assert (await alice.call("DELETE", "/v1/client")).status_code == 204


async def test_a_push_token_of_an_account_that_ended_can_be_had_by_another(gw: Running, alice: App, bob: App) -> None:
    token = gw.fresh("token")
    await alice.register("phone", token)
    await alice.call("DELETE", "/v1/client")
    await bob.register("phone", token)
    async with bob.pushes("phone"):
        pass


async def test_an_account_may_begin_anew_and_its_version_goes_on(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    before = await alice.version()
    await alice.call("DELETE", "/v1/client")
    between = await alice.version()
    assert between > before
    video_id = await alice.send(bob.client_id)
    assert [video["video_id"] for video in (await bob.packet())["incoming"]] == [video_id]
    assert await alice.version() > between


async def test_an_upload_announced_before_the_account_ended_leaves_no_trace_of_others(alice: App, bob: App) -> None:
    other = await bob.send(alice.client_id)
    await alice.call("DELETE", "/v1/client")
    answer = await alice.say(other, "viewed")
    assert (answer.json()["result"], answer.json()["reason"]) == ("ignored", "expired")
    assert (await bob.packet())["outgoing"][0]["status"] == "expired"

import asyncio

import pytest

from tests.running import App, Running, assert_problem, running_gateway, until, within


async def test_a_registered_device_is_pushed_what_came(gw: Running, alice: App, bob: App) -> None:
    answer = await bob.register("phone", gw.fresh("token"))
    assert (answer.status_code, answer.content) == (204, b"")
    async with bob.pushes("phone") as pushes:
        await alice.send(bob.client_id)
        push = await within(anext(pushes))
    assert push["alert"]["loc-key"] == "VIDEOS_WAITING"
    assert push["alert"]["loc-args"] == ["1", alice.client_id]
    assert push["alert"]["badge"] == 1


async def test_a_device_that_registers_late_is_pushed_what_waits(gw: Running, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    token = gw.fresh("token")
    await bob.register("phone", token)
    async with bob.pushes("phone") as pushes:
        await bob.call("DELETE", "/v1/devices/phone")
        await bob.register("phone", token)
        assert video_id in (await within(anext(pushes)))["packet"]


async def test_registering_again_replaces_the_push_token(gw: Running, alice: App, bob: App) -> None:
    await bob.register("phone", gw.fresh("token"))
    await bob.register("phone", gw.fresh("token"), platform="fcm")
    async with bob.pushes("phone") as pushes:
        await alice.send(bob.client_id)
        assert (await within(anext(pushes)))["alert"]["badge"] == 1


async def test_a_token_that_another_client_had_moves_here(gw: Running, alice: App, bob: App, carol: App) -> None:
    token = gw.fresh("token")
    await bob.register("phone", token)
    await carol.register("phone", token)
    assert_problem(await bob.call("GET", "/v1/devices/phone/pushes"), 404, "not_found")
    async with carol.pushes("phone") as pushes:
        await alice.send(bob.client_id)
        await alice.send(carol.client_id)
        push = await within(anext(pushes))
    assert f'"client_id":"{carol.client_id}"' in push["packet"]


async def test_a_token_that_another_device_had_moves_here(gw: Running, bob: App) -> None:
    token = gw.fresh("token")
    await bob.register("old", token)
    await bob.register("new", token)
    assert_problem(await bob.call("GET", "/v1/devices/old/pushes"), 404, "not_found")
    async with bob.pushes("new"):
        pass


async def test_a_ninth_device_replaces_the_one_heard_of_longest_ago(gw: Running, bob: App) -> None:
    for number in range(9):
        assert (await bob.register(f"phone-{number}", gw.fresh("token"))).status_code == 204
    assert_problem(await bob.call("GET", "/v1/devices/phone-0/pushes"), 404, "not_found")
    for number in range(1, 9):
        async with bob.pushes(f"phone-{number}"):
            pass


@pytest.mark.parametrize("how", ["known", "unknown", "twice"])
async def test_logging_out_is_always_answered_204(gw: Running, bob: App, how: str) -> None:
    if how != "unknown":
        await bob.register("phone", gw.fresh("token"))
    for _ in range(2 if how == "twice" else 1):
        answer = await bob.call("DELETE", "/v1/devices/phone")
        assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(await bob.call("GET", "/v1/devices/phone/pushes"), 404, "not_found")


async def test_push_tokens_of_one_to_4096_characters_are_taken(bob: App) -> None:
    for token in ("x", "ü" * 4096, "\x00\n", "\U0001f4f1" * 4096):
        assert len(token) <= 4096
        if len(token.encode()) < 16_000:
            assert (await bob.register("phone", token)).status_code == 204
    for token in ("", "x" * 4097):
        assert_problem(await bob.register("phone", token), 422, "invalid", "token")


@pytest.mark.parametrize("member", ["platform", "environment"])
@pytest.mark.parametrize("value", ["web", "", None, 1, ["apns"], "APNS"])
async def test_platform_and_environment_are_the_documented_ones(bob: App, member: str, value: object) -> None:
    body = {"platform": "apns", "token": "x", "environment": "sandbox", member: value}
    assert_problem(await bob.call("PUT", "/v1/devices/phone", json=body), 422, "invalid", member)


# --- Tokens bound to a device


async def test_a_bound_token_that_names_another_device_is_forbidden_everywhere(gw: Running, bob: App) -> None:
    bound = gw.app(bob.client_id, device="phone")
    unknown = "01234567-89ab-7cde-8f01-23456789abcd"
    for answer in (
        await bound.poll(device_id="tablet"),
        await bound.poll('"0"', device_id="tablet", wait=60),
        await bound.sync(device_id="tablet"),
        await bound.say(unknown, "viewed", device_id="tablet"),
        await bound.register("tablet", "x"),
        await bound.call("DELETE", "/v1/devices/tablet"),
        await bound.call("GET", "/v1/devices/tablet/pushes"),
    ):
        assert_problem(answer, 403, "forbidden")


async def test_a_bound_token_may_name_its_own_device(gw: Running, bob: App) -> None:
    bound = gw.app(bob.client_id, device="phone")
    assert (await bound.poll(device_id="phone")).status_code == 200
    assert (await bound.sync(device_id="phone")).status_code == 200
    assert (await bound.register("phone", gw.fresh("token"))).status_code == 204
    async with bound.pushes("phone"):
        pass
    assert (await bound.call("DELETE", "/v1/devices/phone")).status_code == 204


# --- Acknowledging, and being woken


async def test_nobody_is_woken_for_what_its_device_acknowledges(gw: Running, alice: App, bob: App) -> None:
    await bob.register("phone", gw.fresh("token"))
    async with bob.pushes("phone") as pushes:
        holding = asyncio.create_task(bob.poll('"0"', wait=60, device_id="phone"))
        await gw.polls_held(1)
        await alice.upload(await alice.announce(bob.client_id))
        assert (await bob.poll((await within(holding)).headers["ETag"], device_id="phone")).status_code == 304
        video_id = await alice.send(bob.client_id)  # nobody is connected: this one is pushed, and no other was
        assert video_id in (await within(anext(pushes)))["packet"]


async def test_confirming_what_is_complete_already_wakes_nobody_who_was_just_told(
    gw: Running, alice: App, bob: App
) -> None:
    await bob.register("phone", gw.fresh("token"))
    async with bob.pushes("phone") as pushes:
        holding = asyncio.create_task(bob.poll('"0"', wait=60, device_id="phone"))
        await gw.polls_held(1)
        announced = await alice.announce(bob.client_id)
        await alice.upload(announced)
        told = await within(holding)
        await alice.say(announced.video_id, "uploaded", bob.client_id)
        await bob.poll(told.headers["ETag"], device_id="phone")
        video_id = await alice.send(bob.client_id)
        assert video_id in (await within(anext(pushes)))["packet"]


async def test_logging_out_ends_the_polls_that_the_device_has_held(gw: Running, bob: App) -> None:
    await bob.register("phone", gw.fresh("token"))
    holding = asyncio.create_task(bob.poll('"0"', wait=60, device_id="phone"))
    await gw.polls_held(1)
    await bob.call("DELETE", "/v1/devices/phone")
    assert (await within(holding)).status_code == 304


async def test_a_connected_device_that_does_not_acknowledge_is_woken(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("asleep"), ACK_GRACE_S="0.1") as gw:
        alice, bob = gw.app("alice"), gw.app("bob", device="phone")
        await bob.register("phone", "token")
        async with bob.pushes("phone") as pushes:
            holding = asyncio.create_task(bob.poll('"0"', wait=60))
            await gw.polls_held(1)
            await alice.send("bob")
            polled = (await within(holding)).content
            push = await within(anext(pushes))
        assert push["packet"].encode() == polled

        async def is_told() -> bool:  # once what the provider said of the push is written down
            return bool((await alice.packet())["outgoing"][0]["status"] == "notified")

        await until(is_told, "the sender is told")


async def test_a_push_may_carry_the_version_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("wakeup"), PUSH_CONTENT="wakeup") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("phone", "token")
        async with bob.pushes("phone") as pushes:
            await alice.send("bob")
            push = await within(anext(pushes))
        assert "packet" not in push
        assert push["version"] == str(await bob.version())


async def test_a_push_stream_ends_when_the_gateway_drains(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("drained")) as gw:
        bob = gw.app("bob")
        await bob.register("phone", "token")
        async with bob.pushes("phone") as pushes:
            gw.server.should_exit = True
            with pytest.raises(StopAsyncIteration):
                await within(anext(pushes))

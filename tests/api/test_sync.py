import asyncio

import pytest

from tests.running import App, Running, assert_problem, within

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"


async def test_a_sync_without_statuses_is_a_poll(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    answer = await bob.sync()
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.content == b'{"results":[],"packet":%b}' % (await bob.poll()).content


async def test_a_sync_reports_everything_in_order_and_its_packet_includes_it(alice: App, bob: App, carol: App) -> None:
    received = await alice.send(bob.client_id)
    announced = await bob.announce(carol.client_id)
    await bob.upload(announced)
    unstored = await bob.announce(alice.client_id)
    answer = await bob.sync(
        {"video_id": received, "status": "downloaded"},
        {"video_id": announced.video_id, "status": "uploaded", "recipient_id": carol.client_id},
        {"video_id": UNKNOWN_ID, "status": "viewed"},
        {"video_id": unstored.video_id, "status": "uploaded", "recipient_id": alice.client_id},
        {"video_id": received, "status": "viewed"},
        {"video_id": received, "status": "downloaded"},
    )
    results, packet = answer.json()["results"], answer.json()["packet"]
    version = packet["version"]
    assert results[:3] == [
        {"result": "applied", "version": version},
        {"result": "duplicate", "version": version},
        {"result": "ignored", "version": version, "reason": "unknown_video"},
    ]
    assert list(results[3]) == ["result", "code", "detail"]
    assert (results[3]["result"], results[3]["code"]) == ("failed", "not_stored")
    assert [result["result"] for result in results[4:]] == ["applied", "duplicate"]
    assert packet["incoming"] == []
    assert [video["video_id"] for video in packet["outgoing"]] == [announced.video_id]
    assert b'"packet":' + (await bob.poll()).content + b"}" in answer.content
    assert (await alice.packet())["outgoing"][0]["status"] == "viewed"


@pytest.mark.parametrize(
    "broken",
    [
        None,
        7,
        "x",
        [],
        {},
        {"video_id": UNKNOWN_ID},
        {"status": "viewed"},
        {"video_id": UNKNOWN_ID, "status": "expired"},
        {"video_id": UNKNOWN_ID.upper(), "status": "viewed"},
        {"video_id": UNKNOWN_ID + "\n", "status": "viewed"},
        {"video_id": 7, "status": "viewed"},
        {"video_id": UNKNOWN_ID, "status": "uploaded"},
        {"video_id": UNKNOWN_ID, "status": "uploaded", "recipient_id": ".."},
        {"video_id": UNKNOWN_ID, "status": "uploaded", "recipient_id": None},
        {"video_id": UNKNOWN_ID, "status": "viewed", "recipient_id": "bob\n"},
    ],
)
async def test_a_broken_item_does_not_keep_the_others_from_being_applied(alice: App, bob: App, broken: object) -> None:
    video_id = await alice.send(bob.client_id)
    answer = await bob.sync(broken, {"video_id": video_id, "status": "viewed"}, broken)
    first, applied, last = answer.json()["results"]
    assert answer.status_code == 200
    assert applied["result"] == "applied"
    assert first == last
    assert list(first) == ["result", "code", "detail"]
    assert (first["result"], first["code"]) == ("failed", "invalid")
    assert first["detail"]
    assert (await alice.packet())["outgoing"][0]["status"] == "viewed"


@pytest.mark.parametrize(
    ("item", "member"),
    [
        ({"status": "viewed"}, "video_id"),
        ({"video_id": "x", "status": "viewed"}, "video_id"),
        ({"video_id": UNKNOWN_ID}, "status"),
        ({"video_id": UNKNOWN_ID, "status": "gone"}, "status"),
        ({"video_id": UNKNOWN_ID, "status": "uploaded"}, "recipient_id"),
        ({"video_id": UNKNOWN_ID, "status": "uploaded", "recipient_id": 1}, "recipient_id"),
    ],
)
async def test_the_detail_of_a_broken_item_names_the_member(bob: App, item: object, member: str) -> None:
    [result] = (await bob.sync(item)).json()["results"]
    assert member in result["detail"]


async def test_as_many_as_256_statuses_fit_and_no_more(alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    item = {"video_id": video_id, "status": "downloaded"}
    answer = await bob.sync(*[item] * 256)
    assert [result["result"] for result in answer.json()["results"]] == ["applied"] + ["duplicate"] * 255
    for many in (257, 300):
        assert_problem(await bob.sync(*[item | {"status": "viewed"}] * many), 422, "invalid", "statuses", "256")
    assert (await alice.packet())["outgoing"][0]["status"] == "downloaded"


@pytest.mark.parametrize("body", [{}, {"statuses": None}, {"statuses": {}}, {"statuses": "[]"}, {"statuses": 0}])
async def test_statuses_are_required(bob: App, body: object) -> None:
    assert_problem(await bob.call("POST", "/v1/sync", json=body), 422, "invalid", "statuses")


async def test_a_sync_acknowledges_what_its_device_has_applied(gw: Running, alice: App, bob: App, carol: App) -> None:
    await alice.send(bob.client_id)
    version = await bob.version()
    await carol.send(bob.client_id)
    assert (await bob.sync(device_id="phone", version=version)).status_code == 200
    assert (await alice.packet())["outgoing"][0]["status"] == "notified"
    assert (await carol.packet())["outgoing"][0]["status"] == "uploaded"
    await gw.app(bob.client_id, device="phone").sync(version=await bob.version())
    assert (await carol.packet())["outgoing"][0]["status"] == "notified"


async def test_syncs_of_two_devices_at_once_lose_nothing(gw: Running, bob: App) -> None:
    senders = [gw.app(gw.fresh("sender")) for _ in range(6)]
    sent = [await sender.send(bob.client_id) for sender in senders]
    items = [{"video_id": video_id, "status": "viewed"} for video_id in sent]
    answers = await asyncio.gather(*(bob.sync(*items) for _ in range(4)))
    results = [[result["result"] for result in answer.json()["results"]] for answer in answers]
    assert all(sorted(column) == ["applied"] + ["duplicate"] * 3 for column in zip(*results, strict=True))
    assert [(await sender.packet())["outgoing"][0]["status"] for sender in senders] == ["viewed"] * 6


async def test_the_packet_is_byte_for_byte_the_same_on_every_channel(gw: Running, alice: App, bob: App) -> None:
    await bob.register("phone", gw.fresh("push-token"))
    version = await bob.version()
    async with bob.pushes("phone") as pushes:
        await alice.send(bob.client_id)
        push = await within(anext(pushes))
    polled = (await bob.poll()).content
    assert push["packet"].encode() == polled
    assert push["version"] == str((await bob.packet())["version"])
    assert (await bob.sync()).content == b'{"results":[],"packet":%b}' % polled
    assert (await bob.poll(f'"{version}"', wait=60)).content == polled

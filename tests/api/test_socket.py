"""The WebSocket, over the client of another project: everything that the protocol says of it."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson
import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from gateway.bus.bus import Cause, Dismissal, Kick
from gateway.transit.state import ClientId, DeviceId
from storage.documents import Document, StoreUnavailable
from tests.running import (
    UPGRADE,
    VIDEO,
    App,
    RawSocket,
    Running,
    Socket,
    assert_problem_body,
    handshake,
    masked,
    running_gateway,
    token,
    until,
    within,
)

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
LAST_VERSION = 2**63 - 1


@pytest.fixture(autouse=True)
async def nothing_is_left(gw: Running) -> AsyncIterator[None]:
    yield
    await gw.nobody_left()


@asynccontextmanager
async def gateway_with(factory: pytest.TempPathFactory, **given: Any) -> AsyncIterator[Running]:
    """A gateway with settings of its own, which leaves nothing behind either."""
    async with running_gateway(factory.mktemp("gateway"), **given) as gw:
        yield gw
        await gw.nobody_left()


class Store(Counter[str]):
    """How often documents of one client were loaded and committed."""


@pytest.fixture
def store(gw: Running, bob: App, monkeypatch: pytest.MonkeyPatch) -> Store:
    counted, documents, key = Store(), gw.gateway.service.changes.documents, f"client:{bob.client_id}"
    load, commit = documents.load, documents.commit

    async def counting_load(keys: Any) -> Any:
        counted["loads"] += key in keys
        return await load(keys)

    async def counting_commit(changed: Any) -> Any:
        counted["commits"] += key in {document.key for document in changed}
        return await commit(changed)

    monkeypatch.setattr(documents, "load", counting_load)
    monkeypatch.setattr(documents, "commit", counting_commit)
    return counted


async def settled(socket: Socket, app: App) -> None:
    """Return when all that was sent before has been looked after."""
    for _ in range(2):  # an acknowledgement that comes with a token is looked after behind it
        assert (await socket.ask("token", token=app.token))["result"] == "applied"


async def status_at_sender(alice: App) -> str:
    [video] = (await alice.packet())["outgoing"]
    status: str = video["status"]
    return status


async def sent_to(alice: App, bob: App) -> tuple[str, int]:
    """A video that waits for its recipient, and the version of the packet that says so."""
    video_id = await alice.send(bob.client_id)
    return video_id, await bob.version()


# --- The first packet


async def test_the_first_packet_of_a_client_that_nobody_heard_of_is_empty(bob: App) -> None:
    async with bob.socket() as socket:
        text = await socket.text()
    assert text == f'{{"type":"info","client_id":"{bob.client_id}","version":0,"outgoing":[],"incoming":[]}}'
    assert text.encode() == (await bob.poll()).content


@pytest.mark.parametrize("version", [None, 0, 1])
async def test_whoever_has_nothing_or_something_older_gets_the_packet_that_a_poll_gets(
    alice: App, bob: App, version: int | None
) -> None:
    await alice.send(bob.client_id)
    async with bob.socket(version=version) as socket:
        assert (await socket.text()).encode() == (await bob.poll()).content


async def test_version_0_gets_a_packet_even_where_there_is_nothing(bob: App) -> None:
    async with bob.socket(version=0) as socket:
        assert (await socket.packet())["version"] == 0


@pytest.mark.parametrize("beyond", [0, 1, LAST_VERSION])
async def test_whoever_has_the_newest_version_or_claims_a_newer_one_gets_only_what_comes_then(
    alice: App, bob: App, beyond: int
) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket(version=min(version + beyond, LAST_VERSION)) as socket:
        assert (await socket.ask("nothing"))["type"] == "error"
        video_id = await alice.send(bob.client_id)
        text = await socket.text()
        assert orjson.loads(text)["incoming"][0]["video_id"] == video_id
        assert orjson.loads(text)["version"] > version
        assert text.encode() == (await bob.poll()).content


async def test_each_change_comes_as_the_bytes_of_a_poll(alice: App, bob: App) -> None:
    async with alice.socket() as sender, bob.socket() as recipient:
        await sender.packet()
        await recipient.packet()
        video_id = await alice.send(bob.client_id)
        for app, socket in ((alice, sender), (bob, recipient)):
            assert (await socket.text()).encode() == (await app.poll()).content
        for status in ("downloaded", "viewed"):
            await bob.say(video_id, status)
            for app, socket in ((alice, sender), (bob, recipient)):
                assert (await socket.text()).encode() == (await app.poll()).content


async def test_all_devices_of_a_client_get_every_packet_and_nobody_else(alice: App, bob: App, carol: App) -> None:
    async with bob.socket("phone") as phone, bob.socket("tablet") as tablet, carol.socket() as other:
        for socket in (phone, tablet, other):
            await socket.packet()
        for _ in range(3):
            await alice.send(bob.client_id)
            assert await phone.text() == await tablet.text()
        await alice.send(carol.client_id)
        assert (await other.packet())["client_id"] == carol.client_id


async def test_a_packet_that_changes_while_the_socket_opens_is_not_missed(
    gw: Running, alice: App, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, poll, sent = gw.gateway.service, gw.gateway.service.poll, list[None]()

    async def overtaken(*given: Any) -> Any:
        state = await poll(*given)
        if not sent:
            sent.append(None)
            await alice.send(bob.client_id)
        return state

    monkeypatch.setattr(service, "poll", overtaken)
    async with bob.socket() as socket:
        assert len((await socket.packet())["incoming"]) == 1


# --- Acknowledgements


async def test_an_acknowledgement_shows_the_sender_notified(alice: App, bob: App) -> None:
    async with alice.socket() as sender, bob.socket() as recipient:
        await alice.send(bob.client_id)
        while not (packet := await recipient.packet())["incoming"]:
            pass
        await recipient.ack(packet["version"])
        while not (sent := (await sender.packet())["outgoing"]) or sent[0]["status"] == "uploaded":
            pass
        assert sent[0]["status"] == "notified"


@pytest.mark.parametrize("beyond", [0, 5, LAST_VERSION])
async def test_the_version_in_the_address_acknowledges_before_the_socket_opens(
    alice: App, bob: App, beyond: int
) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket(version=min(version + beyond, LAST_VERSION)):
        assert await status_at_sender(alice) == "notified"


async def test_a_status_with_a_version_acknowledges_too(alice: App, bob: App) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket() as socket:
        answer = await socket.ask("status", id=1, video_id=UNKNOWN_ID, status="viewed", version=version)
        assert answer["result"] == "ignored"
        assert await status_at_sender(alice) == "notified"


async def test_a_packet_that_was_sent_is_acknowledged_by_nobody_but_the_device(alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    async with bob.socket() as socket:
        await socket.packet()
        await settled(socket, bob)
        assert await status_at_sender(alice) == "uploaded"


async def test_an_older_version_acknowledges_only_what_had_come_by_then(gw: Running, bob: App) -> None:
    one, other = gw.app(gw.fresh("one")), gw.app(gw.fresh("other"))
    _, version = await sent_to(one, bob)
    await other.send(bob.client_id)
    async with bob.socket() as socket:
        await socket.ack(version)
        await settled(socket, bob)
        assert await status_at_sender(one) == "notified"
        assert await status_at_sender(other) == "uploaded"
        await socket.ack(await bob.version())
        await settled(socket, bob)
        assert await status_at_sender(other) == "notified"


async def test_a_version_above_the_current_one_acknowledges_no_more_than_that(alice: App, bob: App, carol: App) -> None:
    await alice.send(bob.client_id)
    async with bob.socket() as socket:
        await socket.ack(LAST_VERSION)
        await settled(socket, bob)
        assert await status_at_sender(alice) == "notified"
        _, version = await sent_to(carol, bob)
        assert await status_at_sender(carol) == "uploaded"
        await socket.ack(version)
        await settled(socket, bob)
        assert await status_at_sender(carol) == "notified"


async def test_an_acknowledgement_costs_its_writes_and_a_second_one_nothing(alice: App, bob: App, store: Store) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket() as socket:
        await socket.packet()
        store.clear()
        await socket.ack(version)
        await settled(socket, bob)
        assert store == {"commits": 1}
        for again in (version, version - 1, 0, version):
            await socket.ack(again)
        await settled(socket, bob)
        assert store == {"commits": 1}


async def test_an_acknowledgement_that_nothing_asks_for_costs_nothing(alice: App, bob: App, store: Store) -> None:
    video_id, _ = await sent_to(alice, bob)
    await bob.say(video_id, "downloaded")
    async with bob.socket() as socket:
        version = (await socket.packet())["version"]
        await settled(socket, bob)
        store.clear()
        for given in (version, version + 1, LAST_VERSION):
            await socket.ack(given)
        await settled(socket, bob)
        assert not store


async def test_a_version_that_the_address_acknowledged_costs_nothing_more(alice: App, bob: App, store: Store) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket(version=version) as socket:
        store.clear()
        await socket.ack(version)
        await settled(socket, bob)
        assert not store


# --- Statuses


async def test_a_status_is_answered_with_its_result_and_both_sides_get_their_packets(alice: App, bob: App) -> None:
    async with alice.socket() as sender, bob.socket() as recipient:
        video_id = await alice.send(bob.client_id)
        for status in ("notified", "downloaded", "viewed"):
            answer = await recipient.ask("status", id=status, video_id=video_id, status=status)
            assert answer == {"type": "result", "id": status, "result": "applied", "version": await bob.version()}
            assert list(answer) == ["type", "id", "result", "version"]
            while not (sent := (await sender.packet())["outgoing"]) or sent[0]["status"] != status:
                pass
        assert (await bob.packet())["incoming"] == []


async def test_a_status_that_was_reached_already_is_a_duplicate(alice: App, bob: App) -> None:
    video_id, _ = await sent_to(alice, bob)
    async with bob.socket() as socket:
        for status, result in (("viewed", "applied"), ("viewed", "duplicate"), ("downloaded", "duplicate")):
            answer = await socket.ask("status", id=1, video_id=video_id, status=status)
            assert answer == {"type": "result", "id": 1, "result": result, "version": await bob.version()}


@pytest.mark.parametrize("status", ["notified", "downloaded", "viewed"])
async def test_a_status_of_a_video_that_is_not_the_clients_is_ignored(
    alice: App, bob: App, carol: App, status: str
) -> None:
    video_id, _ = await sent_to(alice, carol)
    async with bob.socket() as socket:
        for unknown in (video_id, UNKNOWN_ID):
            answer = await socket.ask("status", id=1, video_id=unknown, status=status)
            assert answer == {"type": "result", "id": 1, "result": "ignored", "reason": "unknown_video", "version": 0}


async def test_a_sender_confirms_its_uploads(alice: App, bob: App, carol: App) -> None:
    async with alice.socket() as socket:
        announced = await alice.announce(bob.client_id)
        confirm = {"id": 1, "video_id": announced.video_id, "status": "uploaded", "recipient_id": bob.client_id}
        answer = await socket.ask("status", **confirm)
        assert (answer["type"], answer["id"], answer["code"]) == ("error", 1, "not_stored")
        await alice.upload(announced)  # the gateway completes it by itself
        answer = await socket.ask("status", **confirm)
        assert answer == {"type": "result", "id": 1, "result": "duplicate", "version": await alice.version()}
        await alice.send(bob.client_id)
        answer = await socket.ask("status", **confirm)
        assert (answer["result"], answer["reason"]) == ("ignored", "superseded")


@pytest.mark.parametrize("member", ["recipient_id", "itself"])
async def test_an_upload_without_a_recipient_or_to_oneself_is_refused(alice: App, member: str) -> None:
    given = {"recipient_id": alice.client_id} if member == "itself" else {}
    async with alice.socket() as socket:
        answer = await socket.ask("status", id=7, video_id=UNKNOWN_ID, status="uploaded", **given)
    assert list(answer) == ["type", "id", "code", "detail"]
    assert (answer["type"], answer["id"], answer["code"]) == ("error", 7, "invalid")
    assert "recipient_id" in answer["detail"]


IDS = (
    *("1", "-1", "0", "1.50", "1e400", "12345678901234567890123456789", "true", "false", "null", "[]", "{}", '""'),
    *('"x"', '"é\U0001f4f1"', r'"\u00e9\ud83d\udcf1"', r'"\"}{,"', '{"a":[1,{"b":null}]}', "[ 1 , 2 ]"),
    *("[" * 200 + "]" * 200, f'"{"x" * 8000}"'),
)


@pytest.mark.parametrize("given", IDS)
async def test_an_id_comes_back_as_it_was_sent(bob: App, given: str) -> None:
    async with bob.socket() as socket:
        await socket.packet()
        ignored = f'{{"type":"status","id":{given},"video_id":"{UNKNOWN_ID}","status":"viewed"}}'
        refused = f'{{"type":"status","id":{given},"video_id":"{UNKNOWN_ID}","status":"uploaded"}}'
        malformed = f'{{"type":"status","id":{given},"video_id":"x","status":"viewed"}}'
        unknown = f'{{"type":"unknown","id":{given}}}'
        renewal = f'{{"type":"token","id":{given},"token":"{bob.token}"}}'
        kinds = [(ignored, "result"), (refused, "error"), (malformed, "error"), (unknown, "error"), (renewal, "result")]
        for message, kind in kinds:
            await socket.connection.send(message)
            assert (await socket.text()).startswith(f'{{"type":"{kind}","id":{given},')


async def test_a_missing_id_is_null_in_the_answer(bob: App) -> None:
    async with bob.socket() as socket:
        for members in ({"status": "viewed"}, {"status": "uploaded"}, {"status": "seen"}):
            assert (await socket.ask("status", video_id=UNKNOWN_ID, **members))["id"] is None


async def test_many_statuses_at_once_are_answered_in_order_and_written_together(
    gw: Running, alice: App, bob: App, carol: App, store: Store
) -> None:
    videos = [await alice.send(bob.client_id), await carol.send(bob.client_id), UNKNOWN_ID]
    said = [(video_id, status) for status in ("notified", "downloaded", "viewed") for video_id in videos] * 12
    async with gw.raw_socket(bob) as raw:
        store.clear()
        await raw.send(b"".join(status_frame(number, *item) for number, item in enumerate(said)))
        answers = await answers_from(raw, len(said))
    assert [answer["id"] for answer in answers] == list(range(len(said)))
    assert {answer["type"] for answer in answers} == {"result"}
    ignored = [answer["id"] for answer in answers if answer["result"] == "ignored"]
    assert ignored == [number for number, (video_id, _) in enumerate(said) if video_id == UNKNOWN_ID]
    assert [answer["result"] for answer in answers[:9]].count("applied") == 6
    assert store["commits"] <= 3
    assert store["loads"] <= 8
    for app in (alice, carol):
        assert await status_at_sender(app) == "viewed"


async def test_one_that_fails_among_many_keeps_no_other_from_being_applied(gw: Running, alice: App, bob: App) -> None:
    video_id, _ = await sent_to(alice, bob)
    async with gw.raw_socket(bob) as raw:
        said = [(UNKNOWN_ID, "uploaded"), (video_id, "downloaded"), (UNKNOWN_ID, "seen"), (video_id, "viewed")]
        await raw.send(b"".join(status_frame(number, *item) for number, item in enumerate(said)))
        answers = {answer["id"]: answer for answer in await answers_from(raw, len(said))}
    assert [answers[number].get("result", answers[number].get("code")) for number in range(4)] == [
        "invalid",
        "applied",
        "invalid",
        "applied",
    ]


async def test_statuses_that_were_sent_before_the_socket_closed_are_applied(gw: Running, alice: App, bob: App) -> None:
    video_id, _ = await sent_to(alice, bob)
    async with gw.raw_socket(bob) as raw:
        await raw.send(status_frame(1, video_id, "viewed") + masked(Opcode.CLOSE, b"\x03\xe8"))
        assert await raw.closed() == (1000, "")
    await gw.nobody_left()
    assert await status_at_sender(alice) == "viewed"


async def test_statuses_are_refused_while_the_store_is_down_and_applied_after_it(
    gw: Running, alice: App, bob: App
) -> None:
    video_id, version = await sent_to(alice, bob)
    async with bob.socket() as socket:
        with store_down(gw):
            answer = await socket.ask("status", id="x", video_id=video_id, status="viewed", version=version)
            assert (answer["type"], answer["id"], answer["code"]) == ("error", "x", "unavailable")
        answer = await socket.ask("status", id="x", video_id=video_id, status="viewed")
        assert answer["result"] == "applied"


async def test_what_ended_for_age_is_ignored_as_expired(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with gateway_with(tmp_path_factory, VIDEO_TTL_S="1", UPLOAD_TTL_S="1") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        video_id = await alice.send("bob")
        async with bob.socket() as socket:
            while (await socket.packet())["incoming"]:
                pass
            answer = await socket.ask("status", id=1, video_id=video_id, status="viewed")
            assert (answer["result"], answer.get("reason")) == ("ignored", "expired")


def status_frame(number: int, video_id: str, status: str) -> bytes:
    return masked(Opcode.TEXT, orjson.dumps({"type": "status", "id": number, "video_id": video_id, "status": status}))


async def answers_from(raw: RawSocket, most: int) -> list[Mapping[str, Any]]:
    """So many answers; packets are passed over."""
    answers: list[Mapping[str, Any]] = []
    while len(answers) < most:
        opcode, data = await raw.next()
        assert opcode is Opcode.TEXT
        if (found := orjson.loads(data))["type"] != "info":
            answers.append(found)
    return answers


@contextmanager
def store_down(gw: Running) -> Iterator[None]:
    """Within it every document is out of reach."""

    async def down(*_: object) -> None:
        raise StoreUnavailable("it is down")

    with pytest.MonkeyPatch.context() as patch:
        for call in ("load", "commit"):
            patch.setattr(gw.gateway.service.changes.documents, call, down)
        yield


# --- Authorization while the socket is open


@pytest.fixture
def no_leeway(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("session", "auth"):
        monkeypatch.setattr(f"gateway.api.{module}.LEEWAY_S", 0)


async def test_a_socket_ends_with_its_token_unless_a_new_one_came(gw: Running, bob: App, no_leeway: None) -> None:
    brief = gw.app(bob.client_id, ttl_s=2)
    async with brief.socket("phone") as phone, brief.socket("tablet") as tablet:
        assert await tablet.ask("token", id=1, token=bob.token) == {
            "type": "result",
            "id": 1,
            "result": "applied",
            "version": 0,
        }
        code, reason = await phone.ended()
        assert (code, reason) == (4401, "the token has expired")
        await settled(tablet, bob)


async def test_a_socket_outlives_its_token_by_the_leeway(gw: Running, bob: App) -> None:
    async with gw.app(bob.client_id, ttl_s=-5).socket():
        [session] = gw.sockets_of(bob)
        assert 20 < session.time_left_s() < 26


async def test_a_shorter_token_shortens_the_life_of_the_socket(gw: Running, bob: App, no_leeway: None) -> None:
    async with bob.socket() as socket:
        assert (await socket.ask("token", token=token(bob.client_id, ttl_s=2)))["result"] == "applied"
        assert (await within(socket.ended(), 6))[0] == 4401


BAD_TOKENS: dict[str, Callable[[str], str]] = {
    "of another client": lambda _: token("somebody-else"),
    "of another device": lambda client_id: token(client_id, device="tablet"),
    "expired": lambda client_id: token(client_id, ttl_s=-100),
    "without a signature": lambda client_id: token(client_id).rpartition(".")[0] + ".",
    "garbage": lambda _: "garbage",
    "empty": lambda _: "",
    "no ASCII": lambda _: "é",
    "far too long": lambda _: "x" * 9000,
}


@pytest.mark.parametrize("what", BAD_TOKENS)
async def test_a_token_that_is_not_good_for_this_socket_ends_it(bob: App, what: str) -> None:
    given = BAD_TOKENS[what](bob.client_id)
    async with bob.socket("phone") as socket:
        await socket.packet()
        await socket.send("token", id=1, token=given)
        code, reason = await socket.ended()
    assert code == 4401
    assert reason
    assert not given or given not in reason


async def test_a_bound_token_renews_the_socket_of_its_device(gw: Running, bob: App) -> None:
    async with bob.socket("phone") as socket:
        answer = await socket.ask("token", id=1, token=token(bob.client_id, device="phone"))
        assert answer["result"] == "applied"


async def test_a_bound_token_names_its_device_by_itself(gw: Running, alice: App, bob: App) -> None:
    bound = gw.app(bob.client_id, device="phone")
    _, version = await sent_to(alice, bob)
    async with bound.socket(None) as socket:
        [session] = gw.sockets_of(bob)
        assert session.device_id == "phone"
        await socket.ack(version)
        await settled(socket, bound)
        assert await status_at_sender(alice) == "notified"


@pytest.mark.parametrize("given", [None, 1, [], {}])
async def test_a_token_message_without_a_token_is_malformed(bob: App, given: object) -> None:
    async with bob.socket() as socket:
        answer = await socket.ask("token", id=1, token=given)
        assert (answer["type"], answer["id"], answer["code"]) == ("error", 1, "invalid")
        assert "token" in answer["detail"]


# --- Sockets that end before the news is acknowledged


@pytest.fixture
async def kicks(gw: Running, bob: App, monkeypatch: pytest.MonkeyPatch) -> list[Kick]:
    """Which of bob's devices are to be woken since their socket has ended."""
    found: list[Kick] = []
    gw.gateway.hub._bus.on_kick(lambda kick: found.append(kick) if kick.client_id == bob.client_id else None)
    return found


async def ended(gw: Running, bob: App) -> None:
    async def none() -> bool:
        return not gw.sockets_of(bob) and not gw.gateway.desk._tasks

    await until(none, "bob has no socket, and all that was said is looked after")


@pytest.mark.parametrize("how", ["closed", "cut"])
async def test_a_device_that_goes_without_acknowledging_is_woken_at_once(
    how: str, gw: Running, alice: App, bob: App, kicks: list[Kick]
) -> None:
    async with bob.socket("tablet") as tablet, bob.socket("phone") as phone:
        await alice.send(bob.client_id)
        for socket in (phone, tablet):
            while not (await socket.packet())["incoming"]:
                pass
        assert kicks == []
        if how == "cut":
            phone.connection.transport.abort()
        else:
            await phone.connection.close()

        async def kicked() -> bool:
            return bool(kicks)

        await until(kicked, "the phone is to be woken")
        assert kicks == [Kick(ClientId(bob.client_id), DeviceId("phone"))]
        await tablet.ack(await bob.version())
    await ended(gw, bob)
    assert len(kicks) == 1


async def test_a_push_goes_out_at_once_when_a_socket_with_news_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with gateway_with(tmp_path_factory, ACK_GRACE_S="3600") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("phone", "a-token")
        async with bob.pushes("phone") as pushes:
            async with bob.socket("phone") as phone:
                await alice.send("bob")
                while not (packet := await phone.packet())["incoming"]:
                    pass
            push = await within(anext(pushes))
            assert orjson.loads(push["packet"]) == packet


async def test_a_device_that_acknowledged_and_goes_is_not_woken(
    gw: Running, alice: App, bob: App, kicks: list[Kick]
) -> None:
    for _ in range(20):
        async with bob.socket("phone") as phone:
            _, version = await sent_to(alice, bob)
            await phone.ack(version)  # and goes, while that is being written
        await ended(gw, bob)
    assert kicks == []


async def test_a_device_that_has_nothing_to_acknowledge_and_goes_is_not_woken(
    gw: Running, bob: App, kicks: list[Kick]
) -> None:
    async with bob.socket("phone") as phone:
        await phone.packet()
    await ended(gw, bob)
    assert kicks == []


async def test_a_device_that_is_connected_again_is_not_woken(
    gw: Running, alice: App, bob: App, kicks: list[Kick]
) -> None:
    async with bob.socket("phone") as old:
        await sent_to(alice, bob)
        async with bob.socket("phone"):
            assert await old.ended() == (4409, "displaced")

            async def one() -> bool:
                return len(gw.sockets_of(bob)) == 1

            await until(one, "one is left")
            assert kicks == []
    await ended(gw, bob)
    assert len(kicks) == 1


async def test_a_device_that_is_connected_again_through_another_process_is_not_woken(
    gw: Running, alice: App, bob: App, kicks: list[Kick]
) -> None:
    async with bob.socket("phone") as phone:
        await sent_to(alice, bob)
        newer = Dismissal(ClientId(bob.client_id), DeviceId("phone"), Cause.DISPLACED, gw.gateway.hub.rank())
        gw.gateway.hub.dismissed(newer)
        assert await phone.ended() == (4409, "displaced")
    await ended(gw, bob)
    assert kicks == []


async def test_a_device_that_goes_while_its_acknowledgement_fails_is_woken(
    gw: Running, alice: App, bob: App, kicks: list[Kick], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, asked, failing = gw.gateway.service.changes.documents, asyncio.Event(), asyncio.Event()

    async def commit(written: Sequence[Document]) -> list[Document]:
        asked.set()
        await failing.wait()
        raise StoreUnavailable("gone")

    async with bob.socket("phone") as phone:
        _, version = await sent_to(alice, bob)
        monkeypatch.setattr(documents, "commit", commit)
        await phone.ack(version)
        await within(asked.wait())
    assert kicks == []
    failing.set()
    await ended(gw, bob)
    assert len(kicks) == 1


async def test_a_device_that_is_told_to_come_back_is_not_woken(tmp_path_factory: pytest.TempPathFactory) -> None:
    kicks: list[Kick] = []
    async with gateway_with(tmp_path_factory) as gw:
        gw.gateway.hub._bus.on_kick(kicks.append)
        alice, bob = gw.app("alice"), gw.app("bob")
        async with bob.socket("phone") as phone:
            await sent_to(alice, bob)
            gw.server.should_exit = True
            code, _ = await phone.ended()
            assert code == 1012
    assert kicks == []


# --- One socket for each device


async def test_the_same_device_again_ends_the_socket_before_it(gw: Running, alice: App, bob: App) -> None:
    async with bob.socket("phone") as old, bob.socket("tablet") as tablet:
        await old.packet()
        async with bob.socket("phone") as new:
            assert await old.ended() == (4409, "displaced")

            async def two() -> bool:
                return gw.gateway.hub.sockets == len(gw.sockets_of(bob)) == 2

            await until(two, "two sockets are left")
            for socket in (new, tablet):
                await socket.packet()
            await alice.send(bob.client_id)
            for socket in (new, tablet):
                assert len((await socket.packet())["incoming"]) == 1


@pytest.mark.parametrize("round_", range(5))
async def test_of_many_sockets_that_a_device_opens_at_once_one_stays(gw: Running, bob: App, round_: int) -> None:
    async def opened() -> int:
        async with bob.socket("phone") as socket:
            return (await socket.ended())[0]

    opening = [asyncio.create_task(opened()) for _ in range(8)]

    async def one_is_left() -> bool:
        return sum(task.done() for task in opening) == 7 and len(gw.sockets_of(bob)) == 1

    try:
        await until(one_is_left, "all but one have ended", 3)
        assert {task.result() for task in opening if task.done()} == {4409}
    finally:
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)


async def test_the_devices_of_other_clients_are_not_displaced(bob: App, carol: App) -> None:
    async with bob.socket("phone") as one, carol.socket("phone") as other:
        for app, socket in ((bob, one), (carol, other)):
            await settled(socket, app)


async def test_logging_out_ends_the_devices_socket_and_no_other(bob: App) -> None:
    async with bob.socket("phone") as phone, bob.socket("tablet") as tablet:
        assert (await bob.call("DELETE", "/v1/devices/phone")).status_code == 204
        assert await phone.ended() == (4401, "logged out")
        await settled(tablet, bob)


async def test_the_end_of_the_account_ends_all_its_sockets(bob: App, carol: App) -> None:
    async with bob.socket("phone") as phone, bob.socket("tablet") as tablet, carol.socket("phone") as other:
        assert (await bob.call("DELETE", "/v1/client")).status_code == 204
        assert (await phone.ended())[0] == (await tablet.ended())[0] == 4401
        await settled(other, carol)


async def test_a_client_has_a_bounded_number_of_sockets(bob: App, carol: App) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(16):
            await stack.enter_async_context(bob.socket(f"phone-{number}"))
        assert_refused(await refused(bob, "phone-16"), 429, "rate_limited")
        async with carol.socket() as other, bob.socket("phone-3") as again:
            await other.packet()
            await again.packet()


# --- Messages that cannot be read

MALFORMED = (
    *("", " ", "x", "null", "1", "[]", '"ack"', "{", "{}", '{"type":null}', '{"type":"hello"}', '{"type":"ack"}'),
    *('{"type":"ack","version":"1"}', '{"type":"ack","version":-1}', '{"type":"ack","version":1.0}'),
    *('{"type":"ack","version":9223372036854775808}', '{"type":"status"}', '{"type":"info"}', "\x00", "[" * 8000),
    '{"type":"ack","version":' + "9" * 8000 + "}",
    r'{"type":"ack","version":1,"id":"\ud800"}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID.upper()}","status":"viewed"}}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID}\\n","status":"viewed"}}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID}","status":"expired"}}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID}","status":"uploaded","recipient_id":".."}}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID}","status":"uploaded","recipient_id":"x\\n"}}',
    f'{{"type":"status","video_id":"{UNKNOWN_ID}","status":"viewed","version":"1"}}',
)


@pytest.mark.parametrize("text", MALFORMED, ids=[text[:60] for text in MALFORMED])
async def test_a_message_that_cannot_be_read_is_answered_with_an_error(bob: App, text: str) -> None:
    async with bob.socket() as socket:
        await socket.packet()
        await socket.connection.send(text)
        answer = await socket.message()
        assert list(answer) == ["type", "id", "code", "detail"]
        assert (answer["type"], answer["id"], answer["code"]) == ("error", None, "invalid")
        await settled(socket, bob)


async def test_the_tenth_message_that_cannot_be_read_ends_the_socket(bob: App) -> None:
    async with bob.socket() as socket:
        for number in range(9):
            assert (await socket.ask("nothing", id=number))["id"] == number
            await socket.ask("token", token=bob.token)  # one that can be read does not make up for it
        await socket.send("nothing", id=9)
        assert (await socket.answer())["id"] == 9
        assert (await socket.ended())[0] == 4400


async def test_members_that_nobody_knows_are_ignored(alice: App, bob: App) -> None:
    _, version = await sent_to(alice, bob)
    async with bob.socket() as socket:
        await socket.send("ack", version=version, more=[1], id="x")
        await settled(socket, bob)
        assert await status_at_sender(alice) == "notified"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(Opcode.BINARY, b"{}"), 1003),
        (masked(Opcode.TEXT, b"\xff"), 1007),
        (masked(Opcode.TEXT, b'{"type":"\xc3'), 1007),
        (masked(Opcode.TEXT, b" " * (16 * 1024 + 1)), 1009),
        (masked(Opcode.TEXT, b" " * 16_000, fin=False) + masked(Opcode.CONT, b" " * 385), 1009),
        (masked(Opcode.BINARY, b" " * (16 * 1024 + 1)), 1009),
        (masked(Opcode.TEXT, b"{}")[:1] + b"\x02{}", 1002),
    ],
    ids=["binary", "no UTF-8", "half UTF-8", "too long", "too long together", "too long and binary", "unmasked"],
)
async def test_a_frame_that_breaks_the_protocol_ends_the_socket(gw: Running, bob: App, data: bytes, code: int) -> None:
    async with gw.raw_socket(bob) as raw:
        await raw.send(data)
        assert (await raw.closed())[0] == code
        await raw.over()


async def test_a_message_of_16_kib_is_read(bob: App) -> None:
    async with bob.socket() as socket:
        message = orjson.dumps({"type": "token", "id": 1, "token": bob.token})
        await socket.connection.send((message + b" " * (16 * 1024 - len(message))).decode())
        assert (await socket.answer())["result"] == "applied"


async def test_pings_are_answered_and_pongs_that_nobody_asked_for_ignored(bob: App) -> None:
    async with bob.socket() as socket:
        await within(await socket.connection.ping(b"x" * 125))
        await socket.connection.pong(b"y")
        await settled(socket, bob)


async def test_the_apps_own_close_is_answered_with_its_code(gw: Running, bob: App) -> None:
    for code in (1000, 1001, 3000, 4999):
        async with bob.socket() as socket:
            await socket.packet()
            await socket.connection.close(code, "bye")
            assert (socket.connection.close_code, socket.connection.close_reason) == (code, "bye")
    async with gw.raw_socket(bob) as raw:
        await raw.frame(Opcode.CLOSE)
        while (found := await raw.next())[0] is not Opcode.CLOSE:
            pass
        assert found[1] == b""
        await raw.over()


# --- How many frames


async def test_whoever_sends_too_many_frames_is_closed_and_nobody_else(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with gateway_with(tmp_path_factory, RATE_FRAMES="5/10") as gw:
        bob, carol = gw.app("bob"), gw.app("carol")
        async with bob.socket("phone") as phone, bob.socket("tablet") as tablet, carol.socket() as other:
            for _ in range(10):
                await phone.ack(0)
            await phone.ack(0)
            await phone.ack(0)
            assert (await phone.ended())[0] == 4429
            await tablet.packet()
            assert not tablet.connection.close_code
            await settled(other, carol)


async def test_pings_and_fragments_are_frames_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    fragments = masked(Opcode.TEXT, fin=False) + masked(Opcode.CONT, fin=False) * 20
    async with gateway_with(tmp_path_factory, RATE_FRAMES="5/10") as gw:
        for client_id, data in (("a", masked(Opcode.PING) * 11), ("b", masked(Opcode.PONG) * 11), ("c", fragments)):
            async with gw.raw_socket(gw.app(client_id)) as raw:
                await raw.send(data)
                assert (await raw.closed())[0] == 4429


# --- Refused handshakes


async def refused(app: App, device_id: str | None = "phone", **options: Any) -> InvalidStatus:
    """How this handshake was refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with app.socket(device_id, **options):
            pass
    return caught.value


def assert_refused(error: InvalidStatus, status: int, code: str, *said: str) -> None:
    answer = error.response
    assert answer.status_code == status
    headers = {name.lower(): value for name, value in answer.headers.raw_items()}
    assert_problem_body(headers, bytes(answer.body or b""), status, code, *said)
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer garbage", "Basic YTpi", "{expired}", "{other secret}"]
)
async def test_a_handshake_without_a_good_token_is_unauthorized(bob: App, authorization: str | None) -> None:
    if authorization == "{expired}":
        authorization = f"Bearer {token(bob.client_id, ttl_s=-100)}"
    elif authorization == "{other secret}":
        authorization = f"Bearer {bob.token[:-4]}AAAA"
    headers = {} if authorization is None else {"Authorization": authorization}
    assert_refused(await refused(bob, additional_headers=headers), 401, "unauthorized")


async def test_a_token_in_the_query_opens_nothing(gw: Running, bob: App) -> None:
    async with gw.tcp() as raw:
        await raw.send(handshake(f"/v1/ws?device_id=phone&token={bob.token}&access_token={bob.token}"))
        assert (await raw.head()).status == 401


async def test_a_token_of_another_device_is_forbidden(gw: Running, bob: App) -> None:
    bound = gw.app(bob.client_id, device="phone")
    assert_refused(await refused(bound, "tablet"), 403, "forbidden")


@pytest.mark.parametrize("device_id", [None, "", ".", "..", "a b", "é", "x" * 65, "a/b", "a\n"])
async def test_a_device_is_required_and_has_the_form_of_one(bob: App, device_id: str | None) -> None:
    assert_refused(await refused(bob, device_id), 422, "invalid", "device_id")


@pytest.mark.parametrize("version", [-1, "x", "", "1.0", 2**63, "9" * 400, " 1"])
async def test_a_version_has_the_form_of_one(bob: App, version: Any) -> None:
    assert_refused(await refused(bob, version=version), 422, "invalid", "version")


@pytest.mark.parametrize("key", [None, "", "x", "AAAA", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ= ="])
async def test_a_handshake_has_a_key_of_16_bytes(gw: Running, bob: App, key: str | None) -> None:
    theirs = b"" if key is None else f"Sec-WebSocket-Key: {key}\r\n".encode()
    async with gw.tcp() as raw:
        asked = handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}")
        await raw.send(asked.replace(UPGRADE[3].encode() + b"\r\n", theirs))
        answer = await raw.head()
        assert_problem_body(answer.headers, answer.body, 422, "invalid", "Sec-WebSocket-Key")
        await raw.over()


@pytest.mark.parametrize("version", ["8", "14", "", "13, 8", None])
async def test_another_version_of_websocket_is_told_the_right_one(gw: Running, bob: App, version: str | None) -> None:
    theirs = b"" if version is None else f"Sec-WebSocket-Version: {version}\r\n".encode()
    async with gw.tcp() as raw:
        asked = handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}")
        await raw.send(asked.replace(b"Sec-WebSocket-Version: 13\r\n", theirs))
        answer = await raw.head()
        assert_problem_body(answer.headers, answer.body, 426, "upgrade_required")
        assert answer.headers["sec-websocket-version"] == "13"
        assert answer.headers["upgrade"] == "websocket"
        await raw.over()


async def test_a_plain_call_is_told_to_upgrade(gw: Running, bob: App) -> None:
    answer = await bob.call("GET", "/v1/ws", params={"device_id": "phone"})
    assert_problem_body(answer.headers, answer.content, 426, "upgrade_required")
    assert answer.headers["Upgrade"] == "websocket"
    assert answer.headers["Sec-WebSocket-Version"] == "13"


async def test_a_handshake_counts_as_a_call(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with gateway_with(tmp_path_factory, RATE_CALLS="0.1/2") as gw:
        bob = gw.app("bob")
        for _ in range(2):
            async with bob.socket() as socket:
                await socket.packet()
        assert_refused(await refused(bob), 429, "rate_limited")
        async with gw.app("carol").socket() as socket:
            await socket.packet()


async def test_beyond_the_most_connections_a_handshake_is_refused_until_there_is_room(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with gateway_with(tmp_path_factory, MAX_CONNECTIONS="2") as gw:
        bob = gw.app("bob")
        async with bob.socket("one"), bob.socket("two"):
            assert_refused(await refused(bob, "three"), 503, "unavailable")
        await gw.nobody_left()
        async with bob.socket("three") as socket:
            await socket.packet()


async def test_while_the_store_is_down_a_handshake_is_refused(gw: Running, bob: App) -> None:
    with store_down(gw):
        assert_refused(await refused(bob), 503, "unavailable")
        assert_refused(await refused(bob, version=1), 503, "unavailable")
    async with bob.socket() as socket:
        await socket.packet()


# --- Subprotocols


async def test_a_browsers_token_comes_as_a_subprotocol_and_is_never_echoed(bob: App) -> None:
    offered = ["info.v1", f"bearer.{bob.token}"]
    async with bob.socket(additional_headers={}, subprotocols=offered) as socket:
        assert socket.connection.subprotocol == "info.v1"
        response = socket.connection.response
        assert response is not None
        assert bob.token not in str(response.headers)
        await socket.packet()


@pytest.mark.parametrize(("offered", "echoed"), [(["info.v1"], "info.v1"), (["other", "info.v1"], "info.v1")])
async def test_the_subprotocol_is_echoed_where_it_is_offered(bob: App, offered: Any, echoed: str) -> None:
    async with bob.socket(subprotocols=offered) as socket:
        assert socket.connection.subprotocol == echoed


@pytest.mark.parametrize("offered", [None, ["info.v2"], ["info"]])
async def test_no_subprotocol_is_echoed_where_ours_is_not_offered(bob: App, offered: Any) -> None:
    async with bob.socket(subprotocols=offered) as socket:
        assert socket.connection.subprotocol is None


async def test_a_token_alone_opens_a_socket_but_is_no_subprotocol(bob: App) -> None:
    async with bob.socket(additional_headers={}, subprotocols=[f"bearer.{bob.token}"]) as socket:
        assert socket.connection.subprotocol is None
        await socket.packet()


async def test_a_bad_token_as_a_subprotocol_is_unauthorized(bob: App) -> None:
    error = await refused(bob, additional_headers={}, subprotocols=["info.v1", "bearer.garbage"])
    assert_refused(error, 401, "unauthorized")


async def test_no_extension_is_agreed_on(bob: App) -> None:
    async with bob.socket(compression="deflate") as socket:
        assert socket.connection.protocol.extensions == []
        await socket.packet()


# --- Pushes


async def test_nobody_is_woken_for_what_a_socket_acknowledges(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with gateway_with(tmp_path_factory, ACK_GRACE_S="0.5") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("phone", "push-token")
        async with bob.pushes("phone") as pushes:
            async with bob.socket("phone") as socket:
                await alice.upload(await alice.announce("bob"))
                while not (packet := await socket.packet())["incoming"]:
                    pass
                await socket.ack(packet["version"])
                await settled(socket, bob)
            await gw.nobody_left()
            video_id = await alice.send("bob")  # nobody is connected: this one is pushed, and no other was
            assert video_id in (await within(anext(pushes)))["packet"]


async def test_a_device_that_does_not_acknowledge_over_its_socket_is_woken(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with gateway_with(tmp_path_factory, ACK_GRACE_S="0.2") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("phone", "push-token")
        async with bob.pushes("phone") as pushes, bob.socket("phone") as socket:
            await socket.packet()
            await alice.send("bob")
            text = await socket.text()
            assert (await within(anext(pushes)))["packet"] == text


async def test_a_device_without_a_socket_is_woken_though_another_has_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with gateway_with(tmp_path_factory, ACK_GRACE_S="0.2") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        await bob.register("tablet", "push-token")
        async with bob.pushes("tablet") as pushes, bob.socket("phone") as socket:
            await socket.packet()
            video_id = await alice.send("bob")
            await socket.ack((await socket.packet())["version"])
            assert video_id in (await within(anext(pushes)))["packet"]


# --- The end of the process


async def test_a_gateway_that_ends_says_when_to_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("drained")) as gw:
        bob = gw.app("bob")
        async with bob.socket("phone") as phone, bob.socket("tablet") as tablet:
            gw.server.should_exit = True
            for socket in (phone, tablet):
                code, reason = await socket.ended()
                assert code == 1012
                assert list(found := orjson.loads(reason)) == ["retry_ms"]
                assert 0 <= found["retry_ms"] <= 5000


async def test_a_status_that_came_before_the_end_is_answered_before_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_gateway(tmp_path_factory.mktemp("drained")) as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        video_id, _ = await sent_to(alice, bob)
        async with bob.socket() as socket:
            await socket.packet()
            documents, waiting, going_on = gw.gateway.service.changes.documents, asyncio.Event(), asyncio.Event()
            commit = documents.commit

            async def slow(written: Any) -> Any:
                waiting.set()
                await going_on.wait()
                return await commit(written)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(documents, "commit", slow)
                await socket.send("status", id=1, video_id=video_id, status="viewed")
                await within(waiting.wait())
                gw.server.should_exit = True

                async def told() -> bool:
                    return gw.sockets_of(bob)[0]._leaving is not None

                await until(told, "the socket is told to end")
                going_on.set()
                assert (await socket.answer())["result"] == "applied"
                assert (await socket.ended())[0] == 1012


# --- Metrics and the log


async def counted(gw: Running, name: str) -> float:
    try:
        return await gw.metric(name)
    except LookupError:
        return 0


async def test_sockets_handshakes_messages_and_packets_are_counted(gw: Running, alice: App, bob: App) -> None:
    names = (
        "gateway_sockets",
        'gateway_handshakes_total{status="101"}',
        'gateway_handshakes_total{status="401"}',
        'gateway_frames_total{type="ack"}',
        'gateway_frames_total{type="status"}',
        'gateway_frames_total{type="token"}',
        'gateway_frames_total{type="malformed"}',
        'gateway_sockets_closed_total{code="1000"}',
        'gateway_sockets_closed_total{code="4409"}',
        'gateway_sockets_closed_total{code="1006"}',
        'gateway_sockets_closed_total{code="other"}',
        "gateway_packets_total",
    )

    async def all_of_them() -> list[float]:
        return [await counted(gw, name) for name in names]

    before = await all_of_them()
    async with bob.socket() as old, bob.socket() as socket:
        await old.ended()
        await refused(bob, additional_headers={})
        await socket.packet()
        await socket.ack(0)
        await socket.ask("status", video_id=UNKNOWN_ID, status="viewed")
        await socket.ask("token", token=bob.token)
        await socket.ask("nothing")
        await alice.send(bob.client_id)
        await socket.packet()
        assert await gw.metric("gateway_sockets") == before[0] + 1
        async with gw.raw_socket(bob, "tablet"):
            pass  # it is cut
        async with bob.socket("other") as other:
            await other.connection.close(4999)
    await gw.nobody_left()
    after = await all_of_them()
    assert [now - then for now, then in zip(after, before, strict=True)] == [0, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


async def test_a_socket_is_two_lines_in_the_log_for_who_debugs_and_they_give_nothing_away(
    gw: Running, alice: App, bob: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    video_id, version = await sent_to(alice, bob)
    caplog.clear()
    async with bob.socket(additional_headers={}, subprotocols=["info.v1", f"bearer.{bob.token}"]) as socket:
        await socket.packet()
        await socket.ask("status", id="an-id", video_id=video_id, status="viewed", version=version)
        await socket.ask("token", token=bob.token)
        await socket.ask("nothing", id="a-body")
        await socket.connection.send('{"type":"unreadable-body"')
        await socket.answer()
    await gw.nobody_left()
    records = [record for record in caplog.records if record.name.startswith(("gateway", "uvicorn"))]
    assert not [record for record in records if record.levelno > logging.DEBUG]
    opened, ended = [record for record in records if record.getMessage().startswith("a socket ")]
    for record in (opened, ended):
        assert record.__dict__["client_id"] == bob.client_id
        assert record.__dict__["device_id"] == "phone"
    assert ended.__dict__["code"] == 1000
    assert 0 <= ended.__dict__["seconds"] < 60
    everything = "".join(f"{record.getMessage()} {record.__dict__}" for record in records)
    for secret in (bob.token, "bearer.", "/v1/", "an-id", "a-body", "unreadable-body", video_id):
        assert secret not in everything


async def test_a_refused_handshake_is_no_line_in_the_log(
    gw: Running, bob: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    await refused(bob, additional_headers={})
    await refused(bob, None)
    assert not [record for record in caplog.records if record.name.startswith(("gateway", "uvicorn"))]


# --- What a socket is for


async def test_a_video_is_seen_through_by_two_sockets(gw: Running, alice: App, bob: App) -> None:
    async with alice.socket() as sender, bob.socket() as recipient:
        begun = time.monotonic()
        video_id = await alice.send(bob.client_id)
        while not (packet := await recipient.packet())["incoming"]:
            pass
        await recipient.ack(packet["version"])
        assert (await bob.download(video_id)).content == VIDEO
        for status in ("downloaded", "viewed"):
            assert (await recipient.ask("status", id=status, video_id=video_id, status=status))["result"] == "applied"
        seen: list[str] = []
        while not seen or seen[-1] != "viewed":
            seen += [video["status"] for video in (await sender.packet())["outgoing"]]
        assert seen[0] == "uploaded"
        assert seen == sorted(seen, key=["uploaded", "notified", "downloaded", "viewed"].index)
        assert time.monotonic() - begun < 5

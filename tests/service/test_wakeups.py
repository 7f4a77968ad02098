"""The worker: who is due is woken, once, and nobody's failure keeps the others waiting."""

import asyncio
import uuid
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway import wakeups
from gateway.bus.bus import Kick
from gateway.changes import CLIENT_PREFIX
from gateway.registry import TOKEN_PREFIX, TokenOwner, hash_token
from gateway.transit.policy import HOUR_MS
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, Status
from push.sender import Accepted, Outcome, Platform, Rejected, Retry, TokenDead, Wakeup
from storage.documents import StoreUnavailable
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, TABLET, Ears, Gateway, Provider

HOUR_S = HOUR_MS // 1000


async def pushes(gateway: Gateway) -> list[Wakeup]:
    """What one round of the worker sends."""
    gateway.provider.sent.clear()
    await gateway.wakeups.round()
    return list(gateway.provider.sent)


async def test_a_device_is_woken_when_it_has_not_acknowledged_in_time(gateway: Gateway) -> None:
    await gateway.register()
    ref = await gateway.send()
    assert await pushes(gateway) == []
    gateway.pass_time(5)
    [push] = await pushes(gateway)
    assert (push.token, push.collapse_id) == ("token", BOB)
    assert push.content.packet == await gateway.packet(BOB)
    assert push.content.version == (await gateway.state(BOB)).version
    assert push.content.alert is not None
    assert (push.content.alert.loc_args, push.content.alert.badge, push.content.alert.sound) == (
        ("1", "alice"),
        1,
        True,
    )
    assert await gateway.sent_status(ref) is Status.NOTIFIED
    assert await pushes(gateway) == []


async def test_a_device_that_acknowledged_is_not_woken(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    await gateway.service.poll(BOB, Acknowledgement(PHONE, (await gateway.state(BOB)).version))
    gateway.pass_time(5)
    assert await pushes(gateway) == []
    assert await gateway.due(BOB) is None


async def test_a_kick_wakes_at_once(gateway: Gateway) -> None:
    gateway.bus.on_kick(gateway.wakeups.kick)
    await gateway.register()
    await gateway.send()
    assert len(await pushes(gateway)) == 1


async def test_a_kick_for_one_device_wakes_that_one_alone(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE, "token")
    await gateway.register(BOB, TABLET, "other")
    await gateway.send()
    gateway.wakeups.kick(Kick(BOB, TABLET))
    assert [push.token for push in await pushes(gateway)] == ["other"]
    gateway.pass_time(5)
    assert [push.token for push in await pushes(gateway)] == ["token"]


async def test_a_kick_for_a_device_that_is_up_to_date_wakes_nobody_and_costs_no_write(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    await gateway.service.poll(BOB, Acknowledgement(PHONE, (await gateway.state(BOB)).version))
    [before] = await gateway.documents.inner.load([CLIENT_PREFIX + BOB])
    gateway.wakeups.kick(Kick(BOB, PHONE))
    assert await pushes(gateway) == []
    assert await gateway.documents.inner.load([CLIENT_PREFIX + BOB]) == [before]


async def test_nobody_is_kicked_while_a_device_listens(gateway: Gateway) -> None:
    gateway.bus.on_kick(gateway.wakeups.kick)
    await gateway.bus.subscribe(BOB, Ears())
    await gateway.register()
    await gateway.send()
    assert await pushes(gateway) == []


async def test_reminders_come_without_a_sound_one_eight_and_24_hours_after_the_first_push(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    [first] = await pushes(gateway)
    assert first.content.alert is not None
    assert first.content.alert.sound
    for hours in (1, 7, 16):
        gateway.pass_time(hours * HOUR_S - 1)
        assert await pushes(gateway) == []
        gateway.pass_time(1)
        [push] = await pushes(gateway)
        assert push.content.alert is not None
        assert not push.content.alert.sound
    gateway.pass_time(100 * HOUR_S)
    assert await pushes(gateway) == []


async def test_one_of_two_workers_wins_the_claim(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    await asyncio.gather(gateway.wakeups.round(), gateway.wakeups.round())
    assert len(gateway.provider.sent) == 1


async def test_a_worker_that_died_with_a_push_costs_a_minute(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)

    async def dies() -> None:
        gateway.provider.meanwhile = None
        raise asyncio.CancelledError

    gateway.provider.meanwhile = dies
    await gateway.wakeups.round()
    gateway.pass_time(59)
    assert await pushes(gateway) == []
    gateway.pass_time(1)
    [push] = await pushes(gateway)
    assert push.content.alert is not None
    assert push.content.alert.sound


async def test_every_try_of_one_push_has_the_same_id_and_a_reminder_another(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: Retry("busy", 1_000)
    [first] = await pushes(gateway)
    gateway.pass_time(1)
    gateway.provider.answer = lambda _: Accepted()
    [again] = await pushes(gateway)
    gateway.pass_time(HOUR_S)
    [reminder] = await pushes(gateway)
    assert first.id == again.id != reminder.id
    assert str(uuid.UUID(first.id)) == first.id
    await gateway.send(CAROL, BOB)
    gateway.pass_time(5)
    [fresh] = await pushes(gateway)
    assert fresh.id not in {first.id, reminder.id}


async def test_devices_of_one_client_are_told_the_same_content(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE, "token")
    await gateway.register(BOB, TABLET, "other")
    await gateway.send()
    gateway.pass_time(5)
    one, other = await pushes(gateway)
    assert one.content is other.content
    assert one.id != other.id


async def test_a_push_is_not_kept_for_longer_than_the_newest_video_lives(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send(CAROL, BOB)
    gateway.pass_time(100)
    ref = await gateway.send(ALICE, BOB)
    gateway.pass_time(5)
    found = (await gateway.state(BOB)).find_received(ref.video_id)
    assert found is not None
    [push] = await pushes(gateway)
    assert push.expires_at == found[1].uploaded_at + gateway.policy.video_ttl_ms


async def test_a_dead_token_is_forgotten(gateway: Gateway) -> None:
    await gateway.register()
    ref = await gateway.send()
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: TokenDead()
    await gateway.wakeups.round()
    assert (await gateway.state(BOB)).devices == {}
    assert await gateway.registry.owner(hash_token("token")) is None
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert gateway.metric("gateway_tokens_removed_total", platform="apns") == 1


async def test_a_token_that_was_registered_again_while_its_push_was_under_way_is_kept(gateway: Gateway) -> None:
    """The provider gives no time, so what counts is when it was asked."""
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)

    async def registers() -> None:
        gateway.pass_time(0.1)
        await gateway.register()
        gateway.pass_time(0.1)

    gateway.provider.meanwhile = registers
    gateway.provider.answer = lambda _: TokenDead()
    await gateway.wakeups.round()
    assert PHONE in (await gateway.state(BOB)).devices
    assert await gateway.registry.owner(hash_token("token")) is not None
    assert gateway.metric("gateway_tokens_removed_total", platform="apns") is None


async def test_when_everybodys_token_is_dead_tokens_are_kept_until_there_is_fresh_news(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [ClientId(f"client{n}") for n in range(30)]
    for client in clients:
        await gateway.register(client, token=client)
        await gateway.send(ALICE, client)
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: TokenDead()
    await gateway.wakeups.round()
    kept = [client for client in clients if PHONE in (await gateway.state(client)).devices]
    assert len(kept) == 21
    assert gateway.metric("gateway_tokens_removed_total", platform="apns") == 9
    assert gateway.metric("gateway_tokens_kept_total", platform="apns") == 21
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    gateway.pass_time(48 * HOUR_S)
    assert await pushes(gateway) == []
    gateway.provider.answer = lambda _: Accepted()
    await gateway.send(CAROL, kept[0])
    gateway.pass_time(5)
    assert [push.token for push in await pushes(gateway)] == [kept[0]]


async def test_a_token_that_died_before_it_was_registered_is_kept(gateway: Gateway) -> None:
    since = gateway.clock.now_ms - 1
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: TokenDead(since)
    await gateway.wakeups.round()
    assert PHONE in (await gateway.state(BOB)).devices


async def test_a_token_that_was_registered_again_after_it_died_is_kept(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(60)
    since = gateway.clock.now_ms
    gateway.pass_time(60)
    await gateway.register()
    gateway.provider.answer = lambda _: TokenDead(since)
    await gateway.wakeups.round()
    assert PHONE in (await gateway.state(BOB)).devices


async def test_a_phone_that_changed_accounts_gets_no_push_for_the_old_one(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE)
    await gateway.send(ALICE, BOB)
    before = await gateway.documents.inner.load([CLIENT_PREFIX + BOB])
    await gateway.register(CAROL, PHONE)
    # The write that takes the phone out of bob's list was lost.
    [after] = await gateway.documents.inner.load([CLIENT_PREFIX + BOB])
    await gateway.documents.inner.commit([replace(before[0], version=after.version)])
    gateway.pass_time(5)
    assert await pushes(gateway) == []
    assert (await gateway.state(BOB)).devices == {}
    assert await gateway.registry.owner(hash_token("token")) == (CAROL, PHONE, "token")


async def test_a_token_that_came_back_while_the_worker_found_it_gone_stays_registered(gateway: Gateway) -> None:
    """Carol logged in on bob's phone, and bob again, between the worker's look at the token and what it writes."""
    await gateway.register(BOB, PHONE)
    await gateway.send(ALICE, BOB)
    before = await gateway.documents.inner.load([CLIENT_PREFIX + BOB])
    await gateway.register(CAROL, PHONE)
    [after] = await gateway.documents.inner.load([CLIENT_PREFIX + BOB])
    await gateway.documents.inner.commit([replace(before[0], version=after.version)])
    gateway.pass_time(5)
    owner = gateway.registry.owner

    async def overtaken(key: str) -> TokenOwner | None:
        gateway.registry.owner = owner  # type: ignore[method-assign]
        found = await owner(key)
        gateway.pass_time(0.01)
        await gateway.register(BOB, PHONE)
        return found

    gateway.registry.owner = overtaken  # type: ignore[method-assign]
    await gateway.wakeups.round()
    assert PHONE in (await gateway.state(BOB)).devices


@pytest.mark.parametrize("answer", [Retry("down"), Retry("busy", 1_500)])
async def test_a_push_that_a_provider_could_not_take_is_tried_again(gateway: Gateway, answer: Outcome) -> None:
    await gateway.register()
    ref = await gateway.send()
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: answer
    assert len(await pushes(gateway)) == 1
    assert await gateway.sent_status(ref) is Status.UPLOADED
    gateway.pass_time(2)
    gateway.provider.answer = lambda _: Accepted()
    [push] = await pushes(gateway)
    assert push.content.alert is not None
    assert push.content.alert.sound


async def test_a_sender_that_breaks_its_contract_is_tried_again(gateway: Gateway) -> None:
    def broken(_: Wakeup) -> Outcome:
        raise RuntimeError("broken")

    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    gateway.provider.answer = broken
    await gateway.wakeups.round()
    gateway.provider.answer = lambda _: Accepted()
    gateway.pass_time(2)
    assert len(await pushes(gateway)) == 1


async def test_a_rejected_push_is_repeated_only_for_fresh_news_and_the_token_is_kept(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.provider.answer = lambda _: Rejected("never like this")
    await gateway.register()
    ref = await gateway.send()
    sent = 0
    for _ in range(100):
        gateway.pass_time(HOUR_S)
        sent += len(await pushes(gateway))
    assert sent == 1
    assert PHONE in (await gateway.state(BOB)).devices
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert "never like this" in str([vars(record) for record in caplog.records])
    await gateway.send(CAROL, BOB)
    gateway.pass_time(5)
    assert len(await pushes(gateway)) == 1


async def test_a_device_whose_platform_nobody_sends_to_is_given_up(gateway: Gateway) -> None:
    await gateway.registry.register(BOB, PHONE, platform="fcm", environment="production", token="token")
    await gateway.send()
    gateway.pass_time(5)
    assert await pushes(gateway) == []
    assert await gateway.due(BOB) is None
    assert PHONE in (await gateway.state(BOB)).devices


async def test_while_a_provider_is_left_alone_its_devices_are_put_off_with_a_write_each(gateway: Gateway) -> None:
    """Ten minutes of outage: the provider is asked now and then, and everybody is woken soon after it works again."""
    clients = [ClientId(f"client{n}") for n in range(20)]
    for client in clients:
        await gateway.register(client, token=client)
        await gateway.send(ALICE, client)
    gateway.pass_time(5)
    gateway.provider.answer = lambda _: Retry("down", outage=True)
    commits = 0

    def counted(method: str, keys: Sequence[str]) -> None:
        nonlocal commits
        commits += method == "commit"

    gateway.documents.before = counted
    asked = 0
    for _ in range(600):
        asked += len(await pushes(gateway))
        gateway.pass_time(1)
    assert asked <= 40
    assert commits <= 23 * len(clients)  # when is up to chance: 380 ± 11 of them, in thirty runs
    assert gateway.metric("gateway_push_breaker_open", platform="apns") == 1
    gateway.provider.answer = lambda _: Accepted()
    woken: set[str] = set()
    for _ in range(300):
        woken |= {push.token for push in await pushes(gateway)}
        gateway.pass_time(1)
    assert woken == set(clients)
    assert gateway.metric("gateway_push_breaker_open", platform="apns") == 0


async def test_one_provider_that_hangs_keeps_no_device_of_the_other_waiting() -> None:
    hanging, works = asyncio.Event(), Provider()
    stuck = Provider(meanwhile=hanging.wait)
    gateway = Gateway(senders={Platform.FCM: stuck, Platform.APNS: works})
    gateway.bus.on_kick(gateway.wakeups.kick)
    for n in range(50):
        client = ClientId(f"android{n}")
        await gateway.registry.register(client, PHONE, platform="fcm", environment="production", token=client)
        await gateway.send(ALICE, client)
    running = asyncio.create_task(gateway.wakeups.run())
    async with asyncio.timeout(10):
        while len(stuck.sent) < 50:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await gateway.register()
        await gateway.send()
        while not works.sent:  # noqa: ASYNC110
            await asyncio.sleep(0)
    hanging.set()
    gateway.wakeups.stop()
    async with asyncio.timeout(10):
        await running


async def test_stopping_ends_what_has_begun_and_begins_nothing(gateway: Gateway) -> None:
    gateway.bus.on_kick(gateway.wakeups.kick)
    await gateway.register()
    ref = await gateway.send()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answers() -> None:
        asked.set()
        await answered.wait()

    gateway.provider.meanwhile = answers
    running = asyncio.create_task(gateway.wakeups.run())
    async with asyncio.timeout(10):
        await asked.wait()
        gateway.wakeups.stop()
        await asyncio.sleep(0)
        await gateway.register(CAROL, PHONE, "other")
        await gateway.send(ALICE, CAROL)
        answered.set()
        await running
    assert [push.collapse_id for push in gateway.provider.sent] == [BOB]
    assert await gateway.sent_status(ref) is Status.NOTIFIED


async def test_wakeups_are_counted_and_timed(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)
    await gateway.wakeups.round()
    gateway.pass_time(HOUR_S)
    await gateway.wakeups.round()
    assert gateway.metric("gateway_wakeups_due_total", platform="apns") == 2
    assert gateway.metric("gateway_wakeups_held_total", platform="apns") is None
    assert gateway.metric("gateway_pushes_total", platform="apns", outcome="accepted") == 2
    assert gateway.metric("gateway_push_seconds_count", platform="apns") == 2
    assert gateway.metric("gateway_wakeup_seconds_count", platform="apns") == 1
    assert gateway.metric("gateway_wakeup_seconds_sum", platform="apns") == pytest.approx(5, abs=0.01)
    assert gateway.metric("gateway_push_breaker_open", platform="apns") == 0


async def test_a_push_may_tell_the_provider_nothing() -> None:
    gateway = Gateway(with_packet=False)
    await gateway.register()
    ref = await gateway.send()
    gateway.pass_time(5)
    [push] = await pushes(gateway)
    assert push.content.packet is None
    assert push.content.version == (await gateway.state(BOB)).version
    assert await gateway.sent_status(ref) is Status.NOTIFIED


async def test_a_document_that_cannot_be_read_does_not_block_the_others(gateway: Gateway) -> None:
    await gateway.register(CAROL, TABLET, "other")
    await gateway.send(ALICE, CAROL)
    await gateway.register(BOB, PHONE)
    await gateway.send(ALICE, BOB)
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + CAROL])
    await gateway.documents.inner.commit([replace(document, body=b"what")])
    gateway.pass_time(5)
    assert [push.collapse_id for push in await pushes(gateway)] == [BOB]
    assert await gateway.due(CAROL) == gateway.clock.now_ms + HOUR_MS


async def test_a_token_that_cannot_be_read_does_not_block_the_clients_other_devices(gateway: Gateway) -> None:
    await gateway.register(BOB, PHONE, "token")
    await gateway.register(BOB, TABLET, "other")
    await gateway.send()
    [document] = await gateway.documents.inner.load([TOKEN_PREFIX + hash_token("token")])
    await gateway.documents.inner.commit([replace(document, body=b"what")])
    for _ in range(3):
        gateway.pass_time(HOUR_S + 5)
        await gateway.wakeups.round()
    state = await gateway.state(BOB)
    assert state.devices[TABLET].attempts > 0


async def test_a_store_that_fails_while_a_push_is_noted_holds_up_no_fresh_news(gateway: Gateway) -> None:
    """The store fails after the push; meanwhile a new video has come, which is due in five seconds, not in an hour."""
    await gateway.register()
    await gateway.send()
    gateway.pass_time(5)

    async def news() -> None:
        gateway.provider.meanwhile = None
        await gateway.send(CAROL, BOB)
        gateway.documents.before = failing

    def failing(method: str, keys: Sequence[str]) -> None:
        gateway.documents.heal()
        raise StoreUnavailable("gone")

    gateway.provider.meanwhile = news
    await gateway.wakeups.round()
    state = await gateway.state(BOB)
    assert state.due == gateway.clock.now_ms + gateway.policy.ack_grace_ms
    assert await gateway.due(BOB) == state.due


async def test_a_steady_stream_of_news_does_not_put_the_push_off(gateway: Gateway) -> None:
    """A device that looks connected and is not: every four seconds a video comes, and nobody acknowledges any."""
    await gateway.bus.subscribe(BOB, Ears())
    await gateway.register()
    sent = 0
    for n in range(15):
        await gateway.send(type(ALICE)(f"sender{n}"), BOB)
        gateway.pass_time(4)
        sent += len(await pushes(gateway))
    assert sent > 0


async def test_a_video_that_nobody_viewed_in_time_expires_and_is_pushed_no_more(gateway: Gateway) -> None:
    ref = await gateway.send()
    gateway.pass_time(gateway.policy.video_ttl_ms / 1000)
    await gateway.wakeups.round()
    assert await gateway.sent_status(ref) is Status.EXPIRED
    await gateway.register()
    assert await pushes(gateway) == []


async def test_what_a_peers_document_hides_does_not_keep_a_client_from_being_woken(gateway: Gateway) -> None:
    """Bob's own video is to expire, but its recipient's document cannot be read: he is woken all the same."""
    await gateway.register()
    await gateway.send(BOB, CAROL)
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + CAROL])
    await gateway.documents.inner.commit([replace(document, body=b"what")])
    gateway.pass_time(31 * 24 * HOUR_S)
    await gateway.wakeups.round()
    await gateway.send(ALICE, BOB)
    sent = 0
    for _ in range(3):
        gateway.pass_time(HOUR_S + 5)
        sent += len(await pushes(gateway))
    assert sent > 0


async def test_more_than_a_batch_of_due_clients_is_woken_without_a_pause(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "BATCH", 2)
    monkeypatch.setattr(wakeups, "POLL_S", 3600)
    clients = [ClientId(f"client{n}") for n in range(7)]
    for client in clients:
        await gateway.register(client, token=client)
        await gateway.send(ALICE, client)
    gateway.pass_time(5)
    all_sent = asyncio.Event()

    async def counted() -> None:
        if len(gateway.provider.sent) == len(clients):
            all_sent.set()

    gateway.provider.meanwhile = counted
    running = asyncio.create_task(gateway.wakeups.run())
    async with asyncio.timeout(10):
        await all_sent.wait()
    running.cancel()
    await asyncio.wait([running])
    assert {push.collapse_id for push in gateway.provider.sent} == set(clients)

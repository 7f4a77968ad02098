"""Which device has learnt what, and when it is woken."""

import pytest

from gateway.transit import devices
from gateway.transit.devices import Push
from gateway.transit.policy import BACKGROUND_SPACING_MS, HEARD_STEP_MS, HOUR_MS, LEASE_MS, MINUTE_MS, Policy
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Pair, Status, Video, VideoId

BOB, ALICE = ClientId("bob"), ClientId("alice")
PHONE, TABLET = DeviceId("phone"), DeviceId("tablet")
NOW = 1_763_914_800_000
CAME = NOW - 10
POLICY = Policy()
STATUSES = Policy(push_on_status=True)
ROW = Device("apns", "production", "key", NOW - 100, NOW - 100)


def client(status: Status = Status.UPLOADED, /, **rows: Device) -> ClientState:
    """Bob, to whom one video has come, and his devices."""
    video = Video(status, CAME, CAME, 4, "video/mp4", CAME)
    pairs = {ALICE: Pair(1, {VideoId("019ab000-0000-7000-8000-000000000000"): video})}
    return ClientState(BOB, NOW, incoming=pairs, devices={DeviceId(name): row for name, row in rows.items()})


def registered(state: ClientState, device: DeviceId = PHONE, key: str = "key", now: int = NOW) -> ClientState:
    return devices.register(
        state, device, platform="apns", environment="production", token_key=key, now=now, policy=POLICY
    )


def claimed(state: ClientState, now: int = NOW, policy: Policy = POLICY) -> tuple[ClientState, Push]:
    state, [push] = devices.claim(state, now=now, policy=policy)
    return state, push


def test_a_device_registered_while_there_is_news_is_due_at_once() -> None:
    assert registered(client()).due == NOW
    assert registered(client(Status.VIEWED)).due is None


def test_registering_again_says_that_the_token_is_still_good_and_nothing_else() -> None:
    state = registered(client())
    row = state.devices[PHONE]
    again = registered(state, now=NOW + 5)
    assert again.devices[PHONE] == row._replace(registered_at=NOW + 5, heard_at=NOW + 5)
    assert registered(again, now=NOW).devices[PHONE].registered_at == NOW + 5
    assert registered(again, now=NOW + 5) == again


def test_registering_again_revives_a_device_that_was_given_up() -> None:
    state = client(phone=ROW._replace(attempts=4))
    row = registered(state).devices[PHONE]
    assert (row.next_at, row.attempts) == (NOW, 0)


def test_a_new_token_replaces_the_old_and_keeps_what_was_acknowledged() -> None:
    state = registered(client(phone=ROW._replace(acked=CAME)), key="other")
    row = state.devices[PHONE]
    assert (row.token_key, row.acked, row.next_at) == ("other", CAME, 0)


def test_a_ninth_device_replaces_the_one_heard_of_longest_ago() -> None:
    rows = {f"d{n}": ROW._replace(heard_at=NOW - 100 + (n + 3) % 8) for n in range(8)}
    state = registered(client(Status.UPLOADED, **rows))
    assert len(state.devices) == 8
    assert PHONE in state.devices
    assert DeviceId("d5") not in state.devices


def test_a_device_is_taken_out_only_if_it_still_has_that_token() -> None:
    state = client(phone=ROW)
    assert devices.unregister(state, PHONE, token_key="other") is state
    assert devices.unregister(state, TABLET) is state
    assert devices.unregister(state, PHONE, token_key="key").devices == {}
    assert devices.unregister(state, PHONE).devices == {}


def test_an_acknowledgement_counts_up_to_the_current_version() -> None:
    state = devices.applied(client(phone=ROW), PHONE, 2**60, now=NOW, policy=POLICY)
    assert state.devices[PHONE].acked == NOW


def test_an_acknowledgement_that_changes_nothing_costs_no_write() -> None:
    state = client(phone=ROW._replace(acked=CAME, heard_at=NOW))
    assert devices.applied(state, PHONE, NOW, now=NOW, policy=POLICY) is state
    assert devices.applied(state, TABLET, NOW, now=NOW, policy=POLICY) is state


def test_a_device_is_heard_of_once_a_week() -> None:
    state = client(phone=ROW._replace(acked=CAME, heard_at=NOW))
    assert devices.heard(state, PHONE, NOW + HEARD_STEP_MS - 1) is state
    assert devices.heard(state, PHONE, NOW + HEARD_STEP_MS).devices[PHONE].heard_at == NOW + HEARD_STEP_MS


def test_pushes_come_at_once_and_after_one_eight_and_24_hours_and_no_more() -> None:
    state = client(phone=ROW._replace(next_at=NOW))
    now, times, sounds = NOW, [], []
    while state.devices[PHONE].next_at:
        now = state.devices[PHONE].next_at
        state, push = claimed(state, now)
        times.append(now - NOW)
        sounds.append(push.sound)
        assert push.alert
        state = devices.tried(state, push, state.version, now=now, policy=POLICY)
    assert times == [0, HOUR_MS, 8 * HOUR_MS, 24 * HOUR_MS]
    assert sounds == [True, False, False, False]


def test_without_reminders_there_is_one_push() -> None:
    policy = Policy(remind_after_ms=())
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)), policy=policy)
    assert devices.tried(state, push, NOW, now=NOW, policy=policy).due is None


def test_whoever_claims_first_sends_and_has_a_minute_for_it() -> None:
    state, _ = claimed(client(phone=ROW._replace(next_at=NOW)))
    assert devices.claim(state, now=NOW + LEASE_MS - 1, policy=POLICY) == (state, [])
    _, again = claimed(state, NOW + LEASE_MS)
    assert again.sound


def test_an_absent_devices_acknowledgement_is_not_waited_for() -> None:
    state = client(phone=ROW._replace(next_at=NOW + 5_000), tablet=ROW._replace(next_at=NOW + 5_000))
    assert devices.claim(state, now=NOW, policy=POLICY)[1] == []
    _, [push] = devices.claim(state, now=NOW, policy=POLICY, absent={TABLET})
    assert push.device_id == TABLET
    assert len(devices.claim(state, now=NOW, policy=POLICY, absent=state.devices)[1]) == 2
    reminded = client(phone=ROW._replace(next_at=NOW + 5_001))
    assert devices.claim(reminded, now=NOW, policy=POLICY, absent={PHONE})[1] == []


def test_devices_of_a_provider_that_takes_nothing_are_put_off_and_the_others_are_not() -> None:
    state = client(phone=ROW._replace(next_at=NOW), tablet=ROW._replace(platform="fcm", next_at=NOW))
    state, [push] = devices.claim(state, now=NOW, policy=POLICY, pauses={"apns": 7_000, "fcm": 0})
    assert push.device_id == TABLET
    assert state.devices[PHONE] == ROW._replace(next_at=NOW + 7_000)


def test_an_accepted_push_does_not_count_for_newer_news() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = state._replace(devices={PHONE: state.devices[PHONE]._replace(next_at=NOW + 5_000)})
    after = devices.tried(state, push, CAME - 1, now=NOW, policy=POLICY)
    assert (after.devices[PHONE].attempts, after.devices[PHONE].next_at) == (0, NOW + 5_000)
    assert devices.given_up(state, push, CAME - 1, policy=POLICY) is state


def test_a_device_that_acknowledged_while_it_was_pushed_to_is_not_reminded() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = devices.applied(state, PHONE, NOW, now=NOW, policy=POLICY)
    state = devices.rescheduled(state, fresh=False, now=NOW, policy=POLICY)
    assert devices.tried(state, push, NOW, now=NOW, policy=POLICY).due is None
    assert devices.postponed(state, push, None, now=NOW, jitter=0).due is None
    assert devices.given_up(state, push, NOW, policy=POLICY).due is None


def test_a_push_that_no_provider_will_take_is_not_repeated_before_fresh_news() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = devices.given_up(state, push, NOW, policy=POLICY)
    assert state.due is None
    assert devices.rescheduled(state, fresh=False, now=NOW, policy=POLICY).due is None
    assert devices.rescheduled(state, fresh=True, now=NOW, policy=POLICY).due == NOW + POLICY.ack_grace_ms
    assert registered(state).due == NOW


@pytest.mark.parametrize("key", ["other", None])
def test_what_a_provider_says_of_a_replaced_token_changes_nothing(key: str | None) -> None:
    _, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = client(phone=ROW._replace(token_key=key, next_at=NOW)) if key else client()
    assert devices.tried(state, push, NOW, now=NOW, policy=POLICY) is state
    assert devices.given_up(state, push, NOW, policy=POLICY) is state
    assert devices.postponed(state, push, None, now=NOW, jitter=0) is state
    assert devices.token_died(state, push, NOW) is state


def test_a_failed_push_waits_as_the_provider_says_or_twice_as_long_each_time() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    said = devices.postponed(state, push, 7_000, now=NOW, jitter=0.5)
    assert said.devices[PHONE].next_at == NOW + 7_000
    now, waits = NOW, []
    for _ in range(14):
        state = devices.postponed(state, push, None, now=now, jitter=0)
        waits.append(state.devices[PHONE].next_at - now)
        now = state.devices[PHONE].next_at
        state, push = claimed(state, now)
    assert waits[:4] == [2_000, 4_000, 8_000, 16_000]
    assert waits[-1] == 5 * MINUTE_MS
    assert state.devices[PHONE].attempts == 0


def test_jitter_shortens_a_wait_by_half_at_most() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    after = devices.postponed(state, push, None, now=NOW, jitter=1)
    assert after.devices[PHONE].next_at == NOW + 1_000


def test_fresh_news_does_not_bring_a_failed_push_forward() -> None:
    """The provider has said when to come back, and it would meet the same."""
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = devices.postponed(state, push, 60_000, now=NOW, jitter=0)
    state = devices.rescheduled(state, fresh=True, now=NOW, policy=POLICY)
    assert state.due == NOW + 60_000
    for now in (NOW, NOW + 59_999):
        assert devices.claim(state, now=now, policy=POLICY, absent={PHONE})[1] == []


def test_a_failure_is_forgotten_once_a_push_is_accepted() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state = devices.postponed(state, push, 60_000, now=NOW, jitter=0)
    state, push = claimed(state, NOW + 60_000)
    state = devices.tried(state, push, NOW, now=NOW + 60_000, policy=POLICY)
    assert (state.devices[PHONE].failures, state.devices[PHONE].attempts) == (0, 1)


def test_a_failure_that_is_told_late_does_not_repeat_a_push_that_was_accepted_meanwhile() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state, second = claimed(state, NOW + LEASE_MS)
    state = devices.tried(state, second, NOW, now=NOW + LEASE_MS, policy=POLICY)
    assert devices.postponed(state, push, None, now=NOW + LEASE_MS, jitter=0) is state


def test_a_failure_that_is_told_late_does_not_end_the_claim_of_another_push() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    state, _ = claimed(state, NOW + LEASE_MS)
    assert devices.postponed(state, push, None, now=NOW + LEASE_MS, jitter=0) is state


def test_a_dead_token_goes_unless_it_was_registered_since() -> None:
    state, push = claimed(client(phone=ROW._replace(next_at=NOW)))
    assert devices.token_died(state, push, ROW.registered_at) is state
    assert devices.token_died(state, push, ROW.registered_at + 1).devices == {}


def test_a_status_alone_is_a_silent_push_once_and_at_most_every_half_hour() -> None:
    row = ROW._replace(acked=CAME, background_at=NOW - 60_000)
    state = client(phone=row)._replace(status_news=NOW)
    assert devices.rescheduled(state, fresh=True, now=NOW, policy=POLICY).due is None
    state = devices.rescheduled(state, fresh=True, now=NOW, policy=STATUSES)
    assert state.due == NOW - 60_000 + BACKGROUND_SPACING_MS
    sent = state.due
    state, push = claimed(state, sent, STATUSES)
    assert not push.alert
    assert not push.sound
    under_way = devices.rescheduled(state._replace(status_news=NOW + 9), fresh=True, now=sent, policy=STATUSES)
    assert under_way.due == sent + BACKGROUND_SPACING_MS
    state = devices.tried(state, push, NOW, now=NOW + 5, policy=STATUSES)
    assert state.due is None
    assert state.devices[PHONE].background_at == sent


def test_a_push_that_has_become_a_silent_one_waits_for_the_half_hour_too() -> None:
    """A video and a status were news; the video was learnt of, and what is left would be pushed at the video's time."""
    row = ROW._replace(next_at=NOW + 5_000, background_at=NOW - 60_000)
    state = client(phone=row)._replace(status_news=NOW)
    state = devices.applied(state, PHONE, CAME, now=NOW, policy=STATUSES)
    state = devices.rescheduled(state, fresh=False, now=NOW, policy=STATUSES)
    assert state.due == NOW - 60_000 + BACKGROUND_SPACING_MS
    state = devices.rescheduled(state, fresh=True, now=NOW, policy=STATUSES)
    assert state.due == NOW - 60_000 + BACKGROUND_SPACING_MS


def test_a_silent_push_that_failed_was_none() -> None:
    row = ROW._replace(acked=CAME, next_at=NOW)
    state, push = claimed(client(phone=row)._replace(status_news=NOW), policy=STATUSES)
    state = devices.postponed(state, push, 2_000, now=NOW, jitter=0)
    assert devices.rescheduled(state, fresh=False, now=NOW, policy=STATUSES).due == NOW + 2_000


def test_while_videos_wait_every_push_is_an_alert() -> None:
    state = client(phone=ROW._replace(next_at=NOW))._replace(status_news=NOW)
    _, push = claimed(state, policy=STATUSES)
    assert push.alert
    assert not push.sound


def test_a_device_that_is_up_to_date_has_no_time() -> None:
    state = client(Status.VIEWED, phone=ROW._replace(next_at=NOW + 5, attempts=2, failures=1))
    row = devices.rescheduled(state, fresh=False, now=NOW, policy=POLICY).devices[PHONE]
    assert (row.next_at, row.attempts, row.failures) == (0, 0, 0)


def test_news_does_not_put_off_a_push_that_was_due_before() -> None:
    state = client(phone=ROW._replace(next_at=NOW + 1_000))
    assert devices.rescheduled(state, fresh=True, now=NOW, policy=POLICY).due == NOW + 1_000


def test_an_alert_says_how_many_wait_and_who_came_last() -> None:
    assert devices.waiting(client()) == devices.Waiting(1, ALICE, CAME)
    assert devices.waiting(client(Status.VIEWED)) == devices.Waiting(0, None, 0)
    assert devices.news(client(Status.EXPIRED), POLICY) == 0


def test_a_packet_asks_for_an_acknowledgement_only_while_one_would_change_something() -> None:
    assert devices.asks(client(), POLICY)
    assert not devices.asks(client(Status.NOTIFIED), POLICY)
    assert devices.asks(client(Status.NOTIFIED, phone=ROW), POLICY)
    assert not devices.asks(client(Status.NOTIFIED, phone=ROW._replace(acked=CAME)), POLICY)

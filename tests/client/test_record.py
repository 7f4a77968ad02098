"""What a device remembers: sentences about the record alone, without a clock and without I/O."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.client import Change, Outcome, Packet, ReceivedStatus, Record, Report, Result, Sent, SentStatus
from gateway.client.delivery import Delivery, Step
from gateway.client.messages import Incoming, Outgoing, Upload
from gateway.client.record import MOST_UNTOLD, Deletion, Farewell, Registration
from gateway.transit.state import ClientId, DeviceId, Status, VideoId

ALICE, BOB, CAROL = ClientId("alice"), ClientId("bob"), ClientId("carol")
PHONE, TABLET = DeviceId("phone"), DeviceId("tablet")
ONE, TWO, THREE = (VideoId(f"0199c0de-0000-7000-8000-00000000000{number}") for number in (1, 2, 3))
DELIVERY = Delivery("/videos/one.mp4", 9, "video/mp4", "5a")
UPLOAD = Upload("PUT", "https://store.test/one?signature=5ec4e7", {"content-type": "video/mp4"}, 99)
UPLOADED, NOTIFIED, DOWNLOADED, VIEWED = Status.UPLOADED, Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED
EXPIRED = Status.EXPIRED


def alices() -> Record:
    return Record(ALICE, PHONE)


def packet(version: int, *entries: Outgoing | Incoming, client_id: ClientId = ALICE) -> Packet:
    outgoing = tuple(entry for entry in entries if isinstance(entry, Outgoing))
    incoming = tuple(entry for entry in entries if isinstance(entry, Incoming))
    return Packet(client_id, version, outgoing, incoming, b"")


def out(video_id: VideoId, status: Status = UPLOADED, *, to: ClientId = BOB, at: int = 5) -> Outgoing:
    return Outgoing(video_id, to, status, at)


def came(video_id: VideoId, status: Status = UPLOADED, *, at: int = 5) -> Incoming:
    return Incoming(video_id, CAROL, status, f"/v1/videos/{video_id}/content", 9, "video/mp4", at)


def applied(version: int) -> Result:
    return Result(ONE, Outcome.APPLIED, version)


def ignored(version: int, reason: str) -> Result:
    return Result(ONE, Outcome.IGNORED, version, reason)


def confirming(key: str = "key", video_id: VideoId = ONE) -> Record:
    """A record with a video that is uploaded and to be confirmed."""
    record = alices()
    send(record, key, video_id)
    return record


def send(record: Record, key: str = "key", video_id: VideoId = ONE) -> None:
    record.send(key, BOB, DELIVERY)
    record.announced(key, video_id, UPLOAD)
    record.put_sent(Sent(key, BOB, video_id=video_id, delivery=DELIVERY.announced(UPLOAD).uploading(), told=QUEUED))


def receiving(*, here: bool = False) -> Record:
    """A record with a video that came with version 10."""
    record = alices()
    record.apply(packet(10, came(ONE)))
    if here:
        record.arrived(ONE)
    return record


QUEUED = SentStatus.QUEUED
CONFIRM = Report(ONE, UPLOADED, BOB)


def said(record: Record) -> list[tuple[str, Status]]:
    return [(report.video_id, report.status) for report in record.reports()]


def tell_all(record: Record) -> list[tuple[str, str]]:
    """All that the app is told now."""
    found = []
    while (change := record.untold()) is not None:
        found.append((change.key, str(change.status)))
        record.told(change)
    return found


def again(record: Record) -> Record:
    """As it is after a restart."""
    return Record.decode(record.encode())


# --- Which packets count


def test_a_packet_that_is_older_than_what_was_applied_is_dropped() -> None:
    record = alices()
    assert record.apply(packet(10, out(ONE)))
    assert not record.apply(packet(9, out(ONE, VIEWED), came(TWO)))
    assert record.version == 10
    assert record.sent[ONE].status is SentStatus.UPLOADED
    assert not record.received


def test_the_packet_of_another_client_is_dropped() -> None:
    record = alices()
    assert not record.apply(packet(10, out(ONE), client_id=BOB))
    assert (record.version, record.sent, record.changed) == (0, {}, False)


def test_a_packet_that_comes_again_changes_nothing() -> None:
    record = alices()
    record.apply(packet(10, out(ONE, NOTIFIED), came(TWO)))
    record.arrived(TWO)
    tell_all(record)
    before, record.changed = record.encode(), False
    assert record.apply(packet(10, out(ONE, NOTIFIED), came(TWO)))
    assert (record.encode(), record.changed) == (before, False)


def test_nobody_is_told_anything_by_packets_after_a_log_out() -> None:
    record = alices()
    record.log_out("a-token")
    assert not record.apply(packet(10, out(ONE), came(TWO)))
    assert record.untold() is None


# --- Sent videos that are absent


def test_a_video_that_no_packet_has_listed_yet_is_not_complete_by_a_packet_from_before_its_upload() -> None:
    record = confirming()
    record.apply(packet(10))  # built just before the upload was recorded
    record.answered(CONFIRM, applied(12))
    assert record.sent["key"].status is SentStatus.UPLOADED
    record.apply(packet(11))
    assert record.sent["key"].status is SentStatus.UPLOADED
    record.apply(packet(12, out(ONE)))
    assert record.sent["key"].status is SentStatus.UPLOADED


@pytest.mark.parametrize("version", [12, 13, 99])
def test_a_confirmed_video_that_a_packet_from_its_confirmation_on_does_not_list_is_complete(version: int) -> None:
    record = confirming()
    record.answered(CONFIRM, applied(12))
    record.apply(packet(version))
    assert record.sent["key"].status is SentStatus.COMPLETE


def test_a_video_that_is_confirmed_after_a_packet_that_need_not_list_it_any_more_is_complete() -> None:
    record = confirming()
    record.apply(packet(12))
    record.answered(CONFIRM, applied(12))
    assert record.sent["key"].status is SentStatus.COMPLETE


def test_a_video_that_was_never_confirmed_nor_listed_is_never_complete_by_silence() -> None:
    record = confirming()
    for version in (10, 11, 1_000_000):
        record.apply(packet(version))
    assert record.sent["key"].status is QUEUED
    assert said(record) == [(ONE, UPLOADED)]


def test_a_listed_video_is_complete_with_the_first_later_packet_without_it_whatever_its_confirmation_says() -> None:
    record = confirming()
    record.apply(packet(11, out(ONE)))
    record.answered(CONFIRM, Result(ONE, Outcome.DUPLICATE, 15))
    record.apply(packet(12))
    assert record.sent["key"].status is SentStatus.COMPLETE


def test_a_listed_video_needs_no_confirmation_any_more() -> None:
    record = confirming()
    record.apply(packet(11, out(ONE, NOTIFIED)))
    assert said(record) == []
    assert record.sent["key"].delivery is None
    assert record.sent["key"].status is SentStatus.NOTIFIED


def test_the_rule_holds_over_a_restart() -> None:
    record = confirming()
    record.answered(CONFIRM, applied(12))
    record = again(record)
    record.apply(packet(11))
    assert record.sent["key"].status is SentStatus.UPLOADED
    record = again(record)
    record.apply(packet(12))
    assert record.sent["key"].status is SentStatus.COMPLETE


def test_a_video_that_is_not_announced_yet_is_not_touched_by_packets() -> None:
    record = alices()
    record.send("key", BOB, DELIVERY)
    record.apply(packet(10, out(TWO)))
    record.apply(packet(11))
    assert record.sent["key"].status is QUEUED
    assert record.sent["key"].delivery == DELIVERY


# --- Sent videos that are listed


def test_a_video_that_another_device_sent_is_known_by_its_id() -> None:
    record = alices()
    record.apply(packet(10, out(ONE, NOTIFIED, at=7)))
    assert record.untold() == Change(ONE, ONE, BOB, SentStatus.NOTIFIED, 7)
    record.apply(packet(11))
    assert tell_all(record) == [(ONE, "complete")]
    assert not record.sent


@pytest.mark.parametrize("last", [VIEWED, EXPIRED])
def test_a_video_moves_on_with_each_packet_and_is_forgotten_when_it_is_over_and_told(last: Status) -> None:
    record = confirming()
    record.answered(CONFIRM, applied(12))
    steps = (UPLOADED, NOTIFIED, DOWNLOADED, last)
    seen = []
    for version, status in enumerate(steps, 12):
        record.apply(packet(version, out(ONE, status)))
        seen += tell_all(record)
    assert seen == [("key", str(status)) for status in steps]
    assert "key" in record.sent
    record.apply(packet(20))
    assert not record.sent


def test_of_several_steps_the_app_is_told_the_last() -> None:
    record = confirming()
    record.apply(packet(12, out(ONE, NOTIFIED)))
    record.apply(packet(13, out(ONE, VIEWED)))
    record.apply(packet(14))
    assert tell_all(record) == [("key", "viewed")]
    assert not record.sent


STATUSES = list(SentStatus)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("to", STATUSES)
def test_no_status_goes_back_and_none_follows_an_end(status: SentStatus, to: SentStatus) -> None:
    ranks = [QUEUED, SentStatus.UPLOADED, SentStatus.NOTIFIED, SentStatus.DOWNLOADED]
    rank = {status: ranks.index(status) if status in ranks else 4 for status in STATUSES}
    moved = Sent("key", BOB, status, at=7).moved(to, 5)
    assert moved.status is (to if rank[to] > rank[status] else status)
    assert moved.at == 7


def test_what_is_listed_with_less_than_is_known_stays_what_it_is() -> None:
    record = alices()
    record.apply(packet(10, out(ONE, VIEWED)))
    tell_all(record)
    record.apply(packet(11, out(ONE, UPLOADED)))
    assert tell_all(record) == []


def test_a_video_that_was_replaced_before_it_was_confirmed_has_failed() -> None:
    record = confirming()
    record.answered(CONFIRM, ignored(12, "superseded"))
    assert record.untold() == Change("key", ONE, BOB, SentStatus.FAILED, 0, "superseded")
    assert said(record) == []


def test_a_listed_video_whose_confirmation_comes_too_late_is_complete() -> None:
    record = confirming()
    record.apply(packet(11, out(ONE)))
    tell_all(record)
    record.answered(CONFIRM, ignored(12, "superseded"))
    assert tell_all(record) == [("key", "complete")]
    record.apply(packet(11, out(ONE)))  # from before: it is not shown anew
    assert tell_all(record) == []
    record.apply(packet(12))
    assert not record.sent


def test_an_answer_for_a_video_that_is_over_changes_nothing() -> None:
    record = confirming()
    record.apply(packet(11, out(ONE, VIEWED)))
    record.answered(CONFIRM, ignored(12, "superseded"))
    assert tell_all(record) == [("key", "viewed")]


# --- Received videos


def test_a_received_video_is_arrived_then_ready_then_gone_from_sight_when_it_is_viewed() -> None:
    record = receiving()
    assert tell_all(record) == [(ONE, "arrived")]
    assert said(record) == []
    record.arrived(ONE)
    assert tell_all(record) == [(ONE, "ready")]
    assert said(record) == [(ONE, DOWNLOADED)]
    record.viewed(ONE)
    assert tell_all(record) == []
    assert said(record) == [(ONE, VIEWED)]
    record.answered(Report(ONE, VIEWED), applied(13))
    record.apply(packet(13))
    assert not record.received


def test_what_was_answered_is_not_said_again() -> None:
    record = receiving(here=True)
    record.answered(Report(ONE, DOWNLOADED), applied(12))
    assert said(record) == []


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("status", [DOWNLOADED, VIEWED])
def test_a_packet_from_before_the_answer_is_no_reason_to_say_it_again(status: Status, restart: bool) -> None:
    record = receiving(here=True)
    if status is VIEWED:
        record.viewed(ONE)
    record.answered(Report(ONE, status), applied(12))
    record = again(record) if restart else record
    record.apply(packet(11, came(ONE)))
    assert said(record) == []


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("status", "lists"), [(DOWNLOADED, UPLOADED), (VIEWED, UPLOADED), (VIEWED, DOWNLOADED)])
@pytest.mark.parametrize("version", [12, 13])
def test_a_packet_from_after_the_answer_that_lists_less_has_it_said_again(
    version: int, status: Status, lists: Status, restart: bool
) -> None:
    record = receiving(here=True)
    if status is VIEWED:
        record.viewed(ONE)
    record.answered(Report(ONE, status), applied(12))
    record = again(record) if restart else record
    record.apply(packet(version, came(ONE, lists)))
    assert said(record) == [(ONE, status)]


def test_an_answer_to_the_status_before_does_not_undo_the_later_one() -> None:
    record = receiving(here=True)
    record.viewed(ONE)
    record.answered(Report(ONE, VIEWED), applied(13))
    record.answered(Report(ONE, DOWNLOADED), Result(ONE, Outcome.DUPLICATE, 13))
    assert said(record) == []


def test_a_downloaded_video_that_is_listed_no_more_stays_until_its_user_has_seen_it() -> None:
    record = receiving(here=True)
    tell_all(record)
    record.apply(packet(11))
    assert record.received[ONE].status is ReceivedStatus.READY
    assert (tell_all(record), said(record)) == ([], [])
    record.viewed(ONE)
    assert said(record) == []  # it has ended: there is nothing to be said of it
    assert not record.received


def test_what_was_viewed_is_said_though_it_is_listed_no_more_until_that_is_answered() -> None:
    record = receiving(here=True)
    record.viewed(ONE)
    record.apply(packet(11))
    assert said(record) == [(ONE, VIEWED)]
    record.answered(Report(ONE, VIEWED), ignored(11, "unknown_video"))
    assert not record.received


def test_a_video_that_ended_before_its_bytes_were_here_is_gone() -> None:
    record = receiving()
    tell_all(record)
    record.apply(packet(11))
    assert tell_all(record) == [(ONE, "gone")]
    assert not record.received


def test_a_video_that_came_and_went_untold_is_never_mentioned() -> None:
    record = receiving()
    record.apply(packet(11))
    assert record.untold() is None
    assert not record.received


def test_a_video_may_be_viewed_before_its_bytes_are_here() -> None:
    record = receiving()
    record.viewed(ONE)
    assert said(record) == [(ONE, VIEWED)]
    record.arrived(ONE)
    assert (said(record), tell_all(record)) == ([(ONE, VIEWED)], [])


def test_what_another_device_downloaded_is_fetched_but_not_said() -> None:
    record = alices()
    record.apply(packet(10, came(ONE, DOWNLOADED)))
    record.arrived(ONE)
    assert said(record) == []
    assert tell_all(record) == [(ONE, "ready")]


def test_a_refused_status_is_done() -> None:
    record = receiving(here=True)
    record.refused(Report(ONE, DOWNLOADED), "invalid")
    assert said(record) == []


def test_answers_and_events_of_videos_that_are_not_there_are_passed_over() -> None:
    record = alices()
    before = record.encode()
    record.arrived(ONE)
    record.viewed(ONE)
    record.answered(Report(ONE, VIEWED), applied(5))
    record.answered(CONFIRM, applied(5))
    record.refused(Report(ONE, VIEWED), "invalid")
    record.refused(CONFIRM, "invalid")
    record.deleted(ONE, 5)
    record.delete("key")
    record.fail("key", "no reason")
    record.announced("key", ONE, UPLOAD)
    record.announce_anew("key")
    record.told(Change("key", ONE, BOB, SentStatus.VIEWED, 0))
    record.told(Change(ONE, ONE, BOB, ReceivedStatus.READY, 0))
    assert (record.encode(), record.changed) == (before, False)


# --- Deletions


def test_a_deleted_video_is_to_be_deleted_and_is_not_shown_again_by_older_packets() -> None:
    record = alices()
    record.apply(packet(10, out(ONE)))
    tell_all(record)
    record.delete(ONE)
    assert list(record.unanswered_deletions()) == [(ONE, BOB)]
    record.apply(packet(11, out(ONE, NOTIFIED)))
    assert record.untold() is None
    record.deleted(ONE, 13)
    assert list(record.unanswered_deletions()) == []
    record = again(record)
    record.apply(packet(12, out(ONE, DOWNLOADED)))
    assert record.untold() is None
    assert not record.sent
    record.apply(packet(13))
    assert not record.deletions


def test_a_deletion_whose_packet_was_there_first_is_forgotten_when_it_is_answered() -> None:
    record = confirming()
    record.delete("key")
    record.apply(packet(13))
    assert list(record.unanswered_deletions()) == [(ONE, BOB)]
    record.deleted(ONE, 13)
    assert not record.deletions


def test_a_video_that_has_no_id_yet_is_just_forgotten() -> None:
    record = alices()
    record.send("key", BOB, DELIVERY)
    record.delete("key")
    assert (record.sent, record.deletions) == ({}, {})
    record.announced("key", ONE, UPLOAD)
    assert not record.sent


def test_a_deleted_video_is_not_told_of_by_an_answer_that_comes_later() -> None:
    record = confirming()
    record.delete("key")
    record.answered(CONFIRM, applied(12))
    assert (record.untold(), record.sent) == (None, {})


# --- Failures


def test_a_video_that_fails_is_deleted_too_since_its_upload_may_still_arrive() -> None:
    record = confirming()
    record.fail("key", "unreadable")
    assert list(record.unanswered_deletions()) == [(ONE, BOB)]
    record.apply(packet(11, out(ONE)))
    assert record.untold() == Change("key", ONE, BOB, SentStatus.FAILED, 0, "unreadable")
    assert said(record) == []


def test_a_refused_confirmation_fails_the_video_with_its_code() -> None:
    record = confirming()
    record.refused(CONFIRM, "too_many_in_transit")
    assert record.untold() == Change("key", ONE, BOB, SentStatus.FAILED, 0, "too_many_in_transit")


def test_a_video_that_has_ended_does_not_fail() -> None:
    record = alices()
    record.apply(packet(10, out(ONE, VIEWED)))
    record.fail(ONE, "whatever")
    assert record.sent[ONE].status is SentStatus.VIEWED
    assert not record.deletions


def test_a_video_that_is_announced_anew_has_an_old_id_that_may_still_arrive_deleted_and_never_shown() -> None:
    record = confirming()
    record.put_sent(replace(record.sent["key"], delivery=DELIVERY.announced(UPLOAD).uploading().not_stored()))
    record.announce_anew("key")
    assert list(record.unanswered_deletions()) == [(ONE, BOB)]
    assert record.sent["key"].video_id is None
    delivery = record.sent["key"].delivery
    assert delivery is not None
    assert (delivery.step, delivery.upload) == (Step.ANNOUNCE, None)
    record.apply(packet(11, out(ONE)))  # it arrived after all
    assert list(record.sent) == ["key"]
    record.announced("key", TWO, UPLOAD)
    record.answered(CONFIRM, applied(12))  # of the old id
    assert record.sent["key"].status is QUEUED
    record.apply(packet(13, out(TWO)))
    assert record.sent["key"].status is SentStatus.UPLOADED


# --- The bound


def test_of_the_videos_that_ended_untold_only_so_many_are_kept_the_newest() -> None:
    record = alices()
    for number in range(MOST_UNTOLD + 3):
        record.send(str(number), BOB, DELIVERY)
        record.fail(str(number), "too_large")
    assert len(record.sent) == MOST_UNTOLD
    assert next(iter(record.sent)) == "3"
    record.send("unfinished", BOB, DELIVERY)
    record.send("another", BOB, DELIVERY)
    record.fail("another", "too_large")
    assert len(record.sent) == MOST_UNTOLD + 1
    assert "unfinished" in record.sent


# --- Log-out and log-in


def test_a_log_out_forgets_everything_and_takes_along_what_was_unsaid() -> None:
    record = receiving(here=True)
    record.apply(packet(11, came(ONE), came(TWO), out(THREE)))
    record.viewed(TWO)
    record.delete(THREE)
    send(record, video_id=VideoId("announced"))
    record.register(Registration("fcm", "push-token"))
    record.log_out("the-token")
    [farewell] = record.farewells
    assert farewell == Farewell(
        ALICE,
        PHONE,
        "the-token",
        reports=(Report(ONE, DOWNLOADED), Report(TWO, VIEWED), Report("announced", UPLOADED, BOB)),
        deletions=((THREE, BOB),),
    )
    assert (record.version, record.sent, record.received, record.deletions) == (0, {}, {}, {})
    assert record.registration is None
    assert record.logged_out
    assert (said(record), record.untold()) == ([], None)
    assert again(record).farewells == (farewell,)


def test_the_end_of_an_account_takes_nothing_along() -> None:
    record = receiving(here=True)
    record.log_out("the-token", ends_account=True)
    assert record.farewells == (Farewell(ALICE, PHONE, "the-token", ends_account=True),)


def test_a_log_out_that_was_said_is_forgotten_and_only_that_one() -> None:
    record = alices()
    record.log_out("one")
    record.log_in(BOB, PHONE)
    record.log_out("two")
    one, two = record.farewells
    record.left(one)
    assert record.farewells == (two,)
    record.left(one)
    assert record.farewells == (two,)


def test_another_account_on_the_same_device_sees_nothing_of_the_one_before() -> None:
    record = receiving(here=True)
    record.log_in(BOB, PHONE)
    assert (record.client_id, record.version, record.received, record.untold()) == (BOB, 0, {}, None)
    assert not record.farewells
    assert not record.apply(packet(20, came(ONE)))
    assert record.apply(packet(1, came(TWO), client_id=BOB))


def test_a_log_in_after_a_log_out_keeps_what_is_still_to_be_said() -> None:
    record = receiving(here=True)
    record.viewed(ONE)
    record.log_out("the-token")
    record = again(record)
    record.log_in(BOB, TABLET)
    assert not record.logged_out
    assert [(left.client_id, left.device_id) for left in record.farewells] == [(ALICE, PHONE)]


def test_whoever_uses_it_already_goes_on() -> None:
    record = receiving(here=True)
    before, record.changed = record.encode(), False
    record.log_in(ALICE, PHONE)
    assert (record.encode(), record.changed) == (before, False)


@pytest.mark.parametrize(("client_id", "device_id"), [(ALICE, TABLET), (BOB, PHONE)])
def test_another_device_or_account_begins_anew(client_id: ClientId, device_id: DeviceId) -> None:
    record = receiving(here=True)
    record.log_in(client_id, device_id)
    assert (record.version, record.received) == (0, {})
    assert record.changed


def test_the_same_account_begins_anew_after_its_log_out() -> None:
    record = receiving()
    record.log_out("the-token")
    record.log_in(ALICE, PHONE)
    assert not record.logged_out
    assert record.apply(packet(1, came(ONE)))


# --- Registrations


def test_a_registration_that_was_replaced_is_not_the_one_that_is_answered() -> None:
    record = alices()
    old, new = Registration("fcm", "old"), Registration("fcm", "new")
    record.register(old)
    record.register(new)
    record.registered(old, 5.0)
    assert record.registration is new
    record.registered(new, 6.0)
    assert record.registration == Registration("fcm", "new", answered_s=6.0)


# --- As it is stored


def test_secrets_are_not_shown() -> None:
    record = confirming()
    record.register(Registration("fcm", "5ec4e7"))
    record.log_out("5ec4e7")
    record.log_in(ALICE, PHONE)
    send(record)
    record.register(Registration("fcm", "5ec4e7"))
    assert "5ec4e7" not in f"{record.sent} {record.farewells} {record.registration}"
    assert b"5ec4e7" in record.encode()


WHOLE = receiving(here=True)
send(WHOLE)
WHOLE.register(Registration("apns", "push-token", "sandbox", 5.0))
WHOLE.deletions[TWO] = Deletion(BOB, 7)
WHOLE.farewells = (Farewell(BOB, TABLET, "a-token", reports=(CONFIRM,), deletions=((THREE, CAROL),)),)


def same(one: Record, other: Record) -> bool:
    return {name: value for name, value in vars(one).items() if name != "changed"} == {
        name: value for name, value in vars(other).items() if name != "changed"
    }


def test_a_record_is_read_as_it_was_written() -> None:
    found = again(WHOLE)
    assert same(found, WHOLE)
    assert found.encode() == WHOLE.encode()
    assert not found.changed
    assert found.sent["key"].delivery is not None
    assert found.sent["key"].delivery.step is Step.CONFIRM
    assert list(found.reports()) == list(WHOLE.reports())


@settings(max_examples=300, deadline=None, database=None)
@given(body=st.binary(max_size=40))
def test_bytes_that_are_no_record_are_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a device's record"):
        Record.decode(body)


@settings(max_examples=300, deadline=None, database=None)
@given(cut=st.integers(0, len(WHOLE.encode()) - 1), flip=st.integers(0, 255))
def test_a_record_that_was_cut_off_or_damaged_raises_a_value_error_at_most(cut: int, flip: int) -> None:
    body = WHOLE.encode()
    with pytest.raises(ValueError, match="not a device's record"):
        Record.decode(body[:cut])
    with contextlib.suppress(ValueError):  # a digit for a digit is still a record
        Record.decode(body[:cut] + bytes([flip]) + body[cut + 1 :])


def test_a_record_without_a_member_or_with_one_too_many_or_of_another_format_is_refused() -> None:
    members = orjson.loads(WHOLE.encode())
    for name in members:
        with pytest.raises(ValueError, match="not a device's record"):
            Record.decode(orjson.dumps({key: value for key, value in members.items() if key != name}))
    members["format"] = 2
    with pytest.raises(ValueError, match="not a device's record"):
        Record.decode(orjson.dumps(members))


# --- Whatever happens


IDS = [ONE, TWO, THREE]
Happening = Callable[[Record, int, int], None]


def _apply(record: Record, one: int, other: int) -> None:
    statuses = (UPLOADED, NOTIFIED, DOWNLOADED, VIEWED, EXPIRED)
    outgoing = [out(IDS[number], statuses[(one + number) % 5], at=other) for number in range(3) if one >> number & 1]
    incoming = [came(IDS[number], (UPLOADED, DOWNLOADED)[one % 2]) for number in range(3) if other >> number & 1]
    record.apply(packet(record.version + one % 4 - 1, *outgoing, *incoming))


def _answer(record: Record, one: int, other: int) -> None:
    results = (applied(record.version + other % 3), ignored(record.version + other % 3, "superseded"))
    for report in list(record.reports())[: one % 3]:
        record.answered(report, results[one % 2])


def _refuse(record: Record, one: int, other: int) -> None:
    for report in list(record.reports())[: one % 2]:
        record.refused(report, "invalid")


def _delete_answered(record: Record, one: int, other: int) -> None:
    for video_id, _ in list(record.unanswered_deletions())[: one % 3]:
        record.deleted(video_id, record.version + other % 3)


def _tell(record: Record, one: int, other: int) -> None:
    if (change := record.untold()) is not None:
        record.told(change)


def _log_in(record: Record, one: int, other: int) -> None:
    record.log_in((ALICE, BOB, None)[one % 3], (PHONE, TABLET)[other % 2])


def _step(record: Record, one: int, other: int) -> None:
    for video in list(record.sent.values()):
        if video.delivery is not None and video.delivery.step is Step.UPLOAD:
            send(record, video.key, IDS[one % 3])


def _registered(record: Record, one: int, other: int) -> None:
    if record.registration is not None:
        record.registered(record.registration, other / 2)


def _send(record: Record, one: int, other: int) -> None:
    record.send(f"key-{one}", BOB, DELIVERY)


HAPPENINGS: tuple[Happening, ...] = (
    _apply,
    _apply,
    _answer,
    _refuse,
    _delete_answered,
    _tell,
    _log_in,
    _step,
    _send,
    lambda record, one, other: record.announced(f"key-{one}", IDS[other % 3], UPLOAD),
    lambda record, one, _other: record.announce_anew(f"key-{one}"),
    lambda record, one, _other: record.fail(f"key-{one}", "unreadable"),
    lambda record, one, other: record.delete((f"key-{one}", IDS[one % 3])[other % 2]),
    lambda record, one, _other: record.arrived(IDS[one % 3]),
    lambda record, one, _other: record.viewed(IDS[one % 3]),
    lambda record, one, _other: record.register(Registration("fcm", f"token-{one}")),
    _registered,
    lambda record, one, other: record.log_out(f"token-{one}", ends_account=other == 1),
    lambda record, _one, _other: record.left(record.farewells[0]) if record.farewells else None,
)
STEPS = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 7), st.integers(0, 7)), max_size=40)


@settings(max_examples=300, deadline=None, database=None)
@given(steps=STEPS)
def test_whatever_has_happened_is_read_as_it_was_written(steps: list[tuple[Happening, int, int]]) -> None:
    record = alices()
    for happens, one, other in steps:
        before, record.changed = record.encode(), False
        happens(record, one, other)
        assert record.changed or record.encode() == before, "what is to be stored is not known to be"
        found = again(record)
        assert same(found, record)
        assert found.encode() == record.encode()
        assert found.untold() == record.untold()
        assert list(found.reports()) == list(record.reports())


@settings(max_examples=300, deadline=None, database=None)
@given(steps=STEPS)
def test_whatever_happens_no_status_goes_back(steps: list[tuple[Happening, int, int]]) -> None:
    record = alices()
    last: dict[str, SentStatus] = {}
    for happens, one, other in steps:
        happens(record, one, other)
        now = {key: video.status for key, video in record.sent.items()}
        if happens not in {_send, _log_in}:  # no app uses a key twice
            for key, status in now.items():
                before = last.get(key, QUEUED)
                assert status is before or min(STATUSES.index(before), 4) < min(STATUSES.index(status), 4)
        last = now

"""What a recipient's document decides."""

import pytest

from gateway.transit import pairs, receiving, sending
from gateway.transit.decisions import APPLIED, DUPLICATE, TOO_LATE, UNKNOWN, Decision, Stored, VideoRef
from gateway.transit.policy import Policy
from gateway.transit.receiving import Acknowledgement, Report
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Pair, Status, VideoId

ALICE, BOB, CAROL = ClientId("alice"), ClientId("bob"), ClientId("carol")
PHONE = DeviceId("phone")
NOW = 1_763_914_800_000
POLICY = Policy()
FIRST = sending.mint(ClientState(ALICE), now=NOW, random_bits=0)
SECOND = sending.mint(ClientState(CAROL), now=NOW, random_bits=1)
ROW = Device("apns", "production", "key", NOW, NOW)


def bob(*, row: Device | None = None) -> ClientState:
    """Bob, to whom alice and then carol have sent a video."""
    state = ClientState(BOB, devices={PHONE: row} if row else {})
    for n, (sender, video_id) in enumerate([(ALICE, FIRST), (CAROL, SECOND)]):
        stored = Stored(4, "video/mp4")
        other = sending.upload(ClientState(sender), BOB, video_id, stored, now=NOW + n, policy=POLICY).state
        state = pairs.settle(state, other, now=NOW + n, policy=POLICY)
    return state


def said(state: ClientState, *statuses: tuple[VideoId, Status], now: int = NOW + 9) -> Decision:
    return receiving.report(state, Report(statuses), now=now, policy=POLICY)


def acked(state: ClientState, version: int) -> Decision:
    return receiving.report(state, Report((), Acknowledgement(PHONE, version)), now=NOW + 9, policy=POLICY)


def statuses(state: ClientState) -> dict[ClientId, Status]:
    return {sender: video.status for sender, _, video in state.received()}


def test_a_status_moves_and_is_settled_with_its_sender_alone() -> None:
    decision = said(bob(), (FIRST, Status.DOWNLOADED))
    assert decision.verdicts == (APPLIED,)
    assert decision.settle == {ALICE}
    assert decision.state.version == NOW + 9
    assert statuses(decision.state) == {ALICE: Status.DOWNLOADED, CAROL: Status.UPLOADED}
    assert decision.gone == ()


def test_that_it_was_notified_does_not_show_in_the_recipients_own_packet() -> None:
    decision = said(bob(), (FIRST, Status.NOTIFIED))
    assert decision.verdicts == (APPLIED,)
    assert decision.state.version == bob().version


@pytest.mark.parametrize("status", [Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED])
def test_a_status_without_effect_leaves_the_very_same_state_and_is_settled_all_the_same(status: Status) -> None:
    state = said(bob(), (FIRST, Status.VIEWED)).state
    decision = said(state, (FIRST, status))
    assert decision.state is state
    assert decision.verdicts == (DUPLICATE,)
    assert decision.settle == {ALICE}
    assert decision.gone == (VideoRef(FIRST, ALICE, BOB),)


def test_several_statuses_of_one_video_in_one_report_are_taken_in_order() -> None:
    decision = said(bob(), (FIRST, Status.DOWNLOADED), (FIRST, Status.NOTIFIED), (FIRST, Status.VIEWED))
    assert decision.verdicts == (APPLIED, DUPLICATE, APPLIED)
    assert statuses(decision.state)[ALICE] is Status.VIEWED


def test_an_unknown_video_changes_nothing() -> None:
    state = bob()
    unknown = sending.mint(ClientState(ALICE), now=NOW + 99, random_bits=0)
    decision = said(state, (unknown, Status.VIEWED))
    assert decision == Decision(state, (UNKNOWN,))
    assert decision.state is state


def test_a_video_that_expired_stays_so() -> None:
    state = bob()
    pair = state.incoming[ALICE]
    late = {video_id: video.moved(Status.EXPIRED, NOW) for video_id, video in pair.videos.items()}
    state = state._replace(incoming={**state.incoming, ALICE: Pair(pair.version, late)})
    decision = said(state, (FIRST, Status.VIEWED))
    assert decision.verdicts == (TOO_LATE,)
    assert decision.state is state
    assert decision.gone == ()


def test_viewed_bytes_go_unless_they_are_kept() -> None:
    assert said(bob(), (FIRST, Status.VIEWED)).gone == (VideoRef(FIRST, ALICE, BOB),)
    kept = Report(((FIRST, Status.VIEWED),))
    assert receiving.report(bob(), kept, now=NOW, policy=Policy(viewed_keep_ms=1)).gone == ()


def test_an_acknowledgement_notifies_of_what_had_come_by_then() -> None:
    first = acked(bob(), NOW)
    assert statuses(first.state) == {ALICE: Status.NOTIFIED, CAROL: Status.UPLOADED}
    assert first.settle == {ALICE}
    assert first.state.version == bob().version
    both = acked(bob(), 2**60)
    assert statuses(both.state) == {ALICE: Status.NOTIFIED, CAROL: Status.NOTIFIED}


def test_a_device_that_is_not_registered_acknowledges_too() -> None:
    assert PHONE not in bob().devices
    assert statuses(acked(bob(), NOW + 1).state)[CAROL] is Status.NOTIFIED


def test_an_acknowledgement_without_effect_leaves_the_very_same_state() -> None:
    state = acked(bob(row=ROW), NOW + 1).state
    assert acked(state, NOW + 1).state is state
    assert acked(state, 1).state is state
    assert acked(state, NOW + 1).settle == frozenset()


def test_a_device_that_acknowledged_the_newest_is_not_due_any_more() -> None:
    behind = bob(row=ROW)
    assert behind.due == NOW + POLICY.ack_grace_ms
    assert acked(behind, NOW).state.due == behind.due
    assert acked(behind, NOW + 1).state.due is None


def test_a_viewed_video_wakes_nobody() -> None:
    state = bob(row=ROW)
    for video_id in (FIRST, SECOND):
        state = said(state, (video_id, Status.VIEWED)).state
    assert state.due is None


def test_an_accepted_push_notifies_of_what_it_told_of_alone() -> None:
    state, senders = receiving.notified(bob(), NOW, now=NOW + 9)
    assert statuses(state) == {ALICE: Status.NOTIFIED, CAROL: Status.UPLOADED}
    assert senders == {ALICE}
    assert state.version == bob().version
    same, nobody = receiving.notified(state, NOW, now=NOW + 10)
    assert same is state
    assert not nobody

"""What a sender's document decides."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transit import pairs, sealing, sending
from gateway.transit.decisions import DUPLICATE, SUPERSEDED, UNKNOWN, Decision, Result, Stored, VideoRef
from gateway.transit.policy import CLOCK_SKEW_MS, DAY_MS, Policy
from gateway.transit.state import ClientId, ClientState, Status, VideoId, minted_at, valid_video_id

ALICE, BOB, CAROL = ClientId("alice"), ClientId("bob"), ClientId("carol")
NOW = 1_763_914_800_000
POLICY = Policy()
TWO = Policy(videos_per_pair=2)
STORED = Stored(4, "video/mp4")
BITS = st.integers(0, 2**74 - 1)


def minted(at: int, n: int = 0) -> VideoId:
    return sending.mint(ClientState(ALICE), now=at, random_bits=n)


def uploaded(
    state: ClientState, video_id: VideoId, *, to: ClientId = BOB, now: int = NOW, policy: Policy = POLICY
) -> Decision:
    return sending.upload(state, to, video_id, STORED, now=now, policy=policy)


def sent(state: ClientState) -> list[VideoId]:
    return sorted(video_id for _, video_id, _ in state.sent())


# --- Minting


@given(BITS)
def test_a_minted_id_is_a_uuid_of_version_7_with_the_time_in_front(bits: int) -> None:
    video_id = minted(NOW, bits)
    parsed = uuid.UUID(video_id)
    assert valid_video_id(video_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == NOW == minted_at(video_id)
    assert parsed.int >> 64 & 0xFFF == bits >> 62
    assert parsed.int & (1 << 62) - 1 == bits & (1 << 62) - 1


@given(BITS, BITS, st.integers(-5 * 60_000, 5 * 60_000))
def test_a_minted_id_sorts_after_all_that_is_tracked_whatever_the_clock_says(one: int, two: int, skew: int) -> None:
    state = uploaded(ClientState(ALICE), minted(NOW, one)).state
    assert sending.mint(state, now=NOW + skew, random_bits=two) > minted(NOW, one)


@given(BITS, BITS)
def test_a_minted_id_sorts_after_all_that_is_remembered(one: int, two: int) -> None:
    ref = VideoRef(minted(NOW, one), ALICE, BOB)
    ended = sending.end(ClientState(ALICE), ref, now=NOW, policy=POLICY).state
    assert sending.mint(ended, now=NOW - 60_000, random_bits=two) > ref.video_id
    floor = ClientState(ALICE, ended_floor=ref.video_id)
    assert sending.mint(floor, now=NOW - 60_000, random_bits=two) > ref.video_id


def test_an_id_minted_by_a_clock_a_few_minutes_off_is_believed() -> None:
    for skew in (-5 * 60_000, 5 * 60_000):
        assert not sending.is_over(ClientState(ALICE), minted(NOW + skew), now=NOW, policy=POLICY)


# --- Uploading


def test_an_upload_is_tracked_and_changes_the_packet() -> None:
    decision = uploaded(ClientState(ALICE, NOW + 5), minted(NOW))
    assert decision.verdict.result is Result.APPLIED
    assert decision.settle == {BOB}
    assert decision.state.version == NOW + 6
    assert decision.state.outgoing[BOB].version == NOW + 6
    assert decision.state.check_at == NOW + POLICY.video_ttl_ms


@pytest.mark.parametrize("policy", [POLICY, TWO, Policy(videos_per_pair=5)])
def test_the_newest_of_a_pair_are_kept_and_what_they_replace_is_over(policy: Policy) -> None:
    ids = [minted(NOW + n) for n in range(7)]
    state, gone = ClientState(ALICE), set[VideoId]()
    for n, video_id in enumerate(ids):
        decision = uploaded(state, video_id, now=NOW + n, policy=policy)
        state, gone = decision.state, gone | {ref.video_id for ref in decision.gone}
    kept = ids[-policy.videos_per_pair :]
    assert sent(state) == kept
    assert gone == set(ids) - set(kept)
    for video_id in gone:
        again = uploaded(state, video_id, policy=policy)
        assert again.verdict == SUPERSEDED
        assert again.state == state
        assert again.gone == (VideoRef(video_id, ALICE, BOB),)


def test_pairs_do_not_replace_each_others_videos() -> None:
    one, two = minted(NOW), minted(NOW + 1)
    state = uploaded(uploaded(ClientState(ALICE), one).state, two, to=CAROL).state
    assert sent(state) == [one, two]


def test_an_upload_older_than_what_is_tracked_is_superseded_and_never_comes_back() -> None:
    old, new = minted(NOW), minted(NOW + 1)
    decision = uploaded(uploaded(ClientState(ALICE), new).state, old)
    assert decision.verdict == SUPERSEDED
    assert decision.gone == (VideoRef(old, ALICE, BOB),)
    assert old in decision.state.ended


def test_a_second_confirmation_is_a_duplicate_and_changes_nothing() -> None:
    state = uploaded(ClientState(ALICE), minted(NOW)).state
    again = uploaded(state, minted(NOW), now=NOW + 9)
    assert again.verdict == DUPLICATE
    assert again.state is state
    assert again.settle == {BOB}


def test_the_same_id_for_another_recipient_is_unknown() -> None:
    state = uploaded(ClientState(ALICE), minted(NOW)).state
    assert uploaded(state, minted(NOW), to=CAROL) == Decision(state, (UNKNOWN,))


@pytest.mark.parametrize("age", [POLICY.upload_window_ms + 1, -CLOCK_SKEW_MS - 1])
def test_an_id_too_old_or_from_the_future_is_over(age: int) -> None:
    assert uploaded(ClientState(ALICE), minted(NOW - age)).verdict == SUPERSEDED
    assert not sending.awaits_upload(ClientState(ALICE), BOB, minted(NOW - age), now=NOW, policy=POLICY)


@pytest.mark.parametrize("age", [POLICY.upload_window_ms, -CLOCK_SKEW_MS])
def test_an_id_just_within_the_window_is_taken_in(age: int) -> None:
    assert uploaded(ClientState(ALICE), minted(NOW - age)).verdict.result is Result.APPLIED


# --- Ending


def test_a_deleted_video_is_remembered() -> None:
    ref = VideoRef(minted(NOW), ALICE, BOB)
    state = uploaded(ClientState(ALICE), ref.video_id).state
    decision = sending.end(state, ref, now=NOW + 1, policy=POLICY)
    assert decision.verdict.result is Result.APPLIED
    assert decision.gone == (ref,)
    assert decision.state.version > state.version
    assert sent(decision.state) == []
    again = sending.end(decision.state, ref, now=NOW + 2, policy=POLICY)
    assert (again.verdict, again.state, again.gone, again.settle) == (
        DUPLICATE,
        decision.state,
        (ref,),
        frozenset({BOB}),
    )


def test_cancelling_an_announcement_does_not_change_the_packet() -> None:
    decision = sending.end(ClientState(ALICE, 7), VideoRef(minted(NOW), ALICE, BOB), now=NOW, policy=POLICY)
    assert decision.verdict.result is Result.APPLIED
    assert decision.state.version == 7
    assert decision.state.ended == (minted(NOW),)


def test_ended_ids_are_forgotten_when_no_upload_can_name_them_any_more() -> None:
    old, new = VideoRef(minted(NOW), ALICE, BOB), VideoRef(minted(NOW + DAY_MS), ALICE, BOB)
    state = sending.end(ClientState(ALICE), old, now=NOW, policy=POLICY).state
    later = NOW + POLICY.upload_window_ms + 1
    state = sending.end(state, new, now=later, policy=POLICY).state
    assert state.ended == (new.video_id,)
    assert sending.is_over(state, old.video_id, now=later, policy=POLICY)


def test_of_too_many_ended_ids_the_newest_are_kept_and_the_rest_is_a_floor() -> None:
    policy = Policy(max_ended=3)
    state = ClientState(ALICE)
    ids = [minted(NOW + n) for n in range(5)]
    for n in (4, 0, 3, 1, 2):
        state = sending.end(state, VideoRef(ids[n], ALICE, BOB), now=NOW, policy=policy).state
    assert state.ended == tuple(ids[2:])
    assert state.ended_floor == ids[1]
    assert all(sending.is_over(state, video_id, now=NOW, policy=policy) for video_id in ids)
    later = NOW + policy.upload_window_ms + DAY_MS
    assert sealing.sealed(state, now=later, policy=policy).ended_floor == ""


# --- Room


def test_a_full_side_refuses_only_while_its_videos_are_live() -> None:
    policy = Policy(max_outgoing=2, max_incoming=1)
    sender = uploaded(uploaded(ClientState(ALICE), minted(NOW)).state, minted(NOW + 1), to=CAROL).state
    dave = ClientState(ClientId("dave"))
    assert sending.room(sender, dave, policy).full
    viewed = {video_id: video.moved(Status.VIEWED, NOW) for video_id, video in sender.outgoing[BOB].videos.items()}
    sender = sender._replace(outgoing={**sender.outgoing, BOB: sender.outgoing[BOB]._replace(videos=viewed)})
    assert sending.room(sender, dave, policy) == sending.Room(False, (VideoRef(minted(NOW), ALICE, BOB),))


def test_what_the_upload_replaces_takes_no_room() -> None:
    policy = Policy(max_outgoing=1, max_incoming=1)
    sender = uploaded(ClientState(ALICE), minted(NOW)).state
    recipient = pairs.settle(ClientState(BOB), sender, now=NOW, policy=policy)
    assert sending.room(sender, recipient, policy) == sending.Room(False)
    assert sending.room(ClientState(CAROL), recipient, policy).full


# --- Dropping


def test_only_what_has_ended_is_dropped() -> None:
    sender = uploaded(ClientState(ALICE), minted(NOW)).state
    recipient = pairs.settle(ClientState(BOB), sender, now=NOW, policy=POLICY)
    kept = sending.drop(sender, recipient, {minted(NOW)}, now=NOW, policy=POLICY)
    assert kept.state is sender
    viewed = {i: video.moved(Status.VIEWED, NOW) for i, video in recipient.incoming[ALICE].videos.items()}
    recipient = recipient._replace(incoming={ALICE: recipient.incoming[ALICE]._replace(videos=viewed)})
    dropped = sending.drop(sender, recipient, {minted(NOW)}, now=NOW, policy=POLICY)
    assert sent(dropped.state) == []
    assert dropped.state.ended == (minted(NOW),)
    assert dropped.gone == (VideoRef(minted(NOW), ALICE, BOB),)

"""What time decides."""

from gateway.transit import expiry, pairs, sealing, sending
from gateway.transit.decisions import Stored, VideoRef
from gateway.transit.policy import HOUR_MS, MINUTE_MS, Policy
from gateway.transit.state import ClientId, ClientState, Pair, Status, VideoId

ALICE, BOB = ClientId("alice"), ClientId("bob")
NOW = 1_763_914_800_000
POLICY = Policy()
KEPT = Policy(viewed_keep_ms=HOUR_MS)
FIRST = sending.mint(ClientState(ALICE), now=NOW, random_bits=0)
LATE = NOW + POLICY.video_ttl_ms
REF = VideoRef(FIRST, ALICE, BOB)


def alice(policy: Policy = POLICY) -> ClientState:
    return sending.upload(ClientState(ALICE), BOB, FIRST, Stored(4, "video/mp4"), now=NOW, policy=policy).state


def bob() -> ClientState:
    return pairs.settle(ClientState(BOB), alice(), now=NOW, policy=POLICY)


def moved(state: ClientState, status: Status, at: int = NOW) -> ClientState:
    def with_status(kept: dict[ClientId, Pair]) -> dict[ClientId, Pair]:
        return {
            peer: Pair(pair.version, {video_id: video.moved(status, at) for video_id, video in pair.videos.items()})
            for peer, pair in kept.items()
        }

    return state._replace(outgoing=with_status(dict(state.outgoing)), incoming=with_status(dict(state.incoming)))


def status(state: ClientState, video_id: VideoId = FIRST) -> Status:
    found = state.find_received(video_id) or state.find_sent(video_id)
    assert found is not None
    return found[1].status


def test_a_video_expires_when_its_time_is_over_and_not_before() -> None:
    early = expiry.expire(bob(), alice(), now=LATE - 1, policy=POLICY)
    assert early.state == bob()
    assert early.settle == {ALICE}
    assert early.gone == ()
    decision = expiry.expire(bob(), alice(), now=LATE, policy=POLICY)
    assert status(decision.state) is Status.EXPIRED
    assert decision.gone == (REF,)
    assert decision.state.version == LATE
    assert status(pairs.settle(alice(), decision.state, now=LATE, policy=POLICY)) is Status.EXPIRED


def test_what_was_viewed_never_expires_whatever_the_sender_was_told() -> None:
    decision = expiry.expire(moved(bob(), Status.VIEWED), alice(), now=LATE, policy=POLICY)
    assert status(decision.state) is Status.VIEWED
    assert status(pairs.settle(alice(), decision.state, now=LATE, policy=POLICY)) is Status.VIEWED


def test_a_video_that_never_reached_its_recipient_expires_too() -> None:
    decision = expiry.expire(ClientState(BOB), alice(), now=LATE, policy=POLICY)
    assert status(decision.state) is Status.EXPIRED
    assert decision.settle == {ALICE}


def test_expiring_again_settles_again() -> None:
    state = expiry.expire(bob(), alice(), now=LATE, policy=POLICY).state
    again = expiry.expire(state, alice(), now=LATE + 1, policy=POLICY)
    assert again.state is state
    assert again.settle == {ALICE}


def test_what_is_overdue() -> None:
    assert expiry.overdue(alice(), now=LATE - 1, policy=POLICY) == expiry.Overdue(frozenset(), {}, ())
    assert expiry.overdue(alice(), now=LATE, policy=POLICY).expire == {BOB}
    viewed = moved(alice(), Status.VIEWED, NOW + 5)
    over = NOW + 5 + POLICY.ended_keep_ms
    assert expiry.overdue(viewed, now=over - 1, policy=POLICY).drop == {}
    assert expiry.overdue(viewed, now=over, policy=POLICY).drop == {BOB: {FIRST}}


def test_kept_bytes_go_when_their_time_is_over() -> None:
    viewed = moved(alice(), Status.VIEWED)
    assert expiry.overdue(viewed, now=NOW + HOUR_MS - 1, policy=KEPT).gone == ()
    assert expiry.overdue(viewed, now=NOW + HOUR_MS, policy=KEPT).gone == (REF,)
    assert expiry.overdue(viewed, now=NOW + HOUR_MS, policy=POLICY).gone == ()


def test_bytes_are_wanted_until_a_video_is_over_or_kept_a_while_after_it_was_viewed() -> None:
    for before in (Status.UPLOADED, Status.NOTIFIED, Status.DOWNLOADED):
        [(_, _, video)] = moved(alice(), before).sent()
        assert expiry.bytes_wanted(video, now=LATE, policy=POLICY)
    [(_, _, video)] = moved(alice(), Status.VIEWED).sent()
    assert not expiry.bytes_wanted(video, now=NOW, policy=POLICY)
    assert expiry.bytes_wanted(video, now=NOW + HOUR_MS - 1, policy=KEPT)
    assert not expiry.bytes_wanted(video, now=NOW + HOUR_MS, policy=KEPT)
    [(_, _, video)] = moved(alice(), Status.EXPIRED).sent()
    assert not expiry.bytes_wanted(video, now=NOW, policy=KEPT)


def test_a_check_is_due_when_the_first_thing_expires_and_an_earlier_one_stays() -> None:
    assert alice().due == LATE
    second = sending.mint(alice(), now=NOW + HOUR_MS, random_bits=0)
    later = sending.upload(alice(), BOB, second, Stored(4, "video/mp4"), now=NOW + HOUR_MS, policy=POLICY).state
    assert later.check_at == LATE
    checked = sealing.checked(later, now=LATE, policy=POLICY)
    assert checked.check_at == LATE + HOUR_MS


def test_what_could_not_be_done_is_tried_again_in_a_minute() -> None:
    assert sealing.checked(alice(), now=LATE + 5, policy=POLICY).check_at == LATE + 5 + MINUTE_MS


def test_nothing_is_checked_where_nothing_expires() -> None:
    gone = sending.end(alice(), REF, now=NOW, policy=POLICY).state
    assert gone.check_at == 0
    assert gone.due is None


def test_a_viewed_video_is_checked_when_its_bytes_go_and_then_when_it_is_dropped() -> None:
    viewed = sealing.checked(moved(alice(KEPT), Status.VIEWED), now=NOW, policy=KEPT)
    assert viewed.check_at == NOW + HOUR_MS
    later = sealing.checked(viewed, now=NOW + HOUR_MS, policy=KEPT)
    assert later.check_at == NOW + KEPT.ended_keep_ms

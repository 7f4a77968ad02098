"""The second half of every change."""

from gateway.transit import pairs, sending
from gateway.transit.decisions import Stored
from gateway.transit.policy import MOST_EMPTY_PAIRS, PAIR_KEEP_MS, Policy
from gateway.transit.sealing import sealed
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Pair, Status, VideoId

ALICE, BOB = ClientId("alice"), ClientId("bob")
PHONE = DeviceId("phone")
NOW = 1_763_914_800_000
POLICY = Policy()


def minted(at: int) -> VideoId:
    return sending.mint(ClientState(ALICE), now=at, random_bits=0)


def sender(*at: int, policy: Policy = POLICY) -> ClientState:
    """Alice, who has sent Bob a video at each of these times."""
    state = ClientState(ALICE)
    for time in at:
        state = sending.upload(state, BOB, minted(time), Stored(4, "video/mp4"), now=time, policy=policy).state
    return state


def settled(peer: ClientState, owner: ClientState, now: int = NOW) -> ClientState:
    return pairs.settle(peer, owner, now=now, policy=POLICY)


def with_status(recipient: ClientState, status: Status, at: int = NOW) -> ClientState:
    pair = recipient.incoming[ALICE]
    videos = {video_id: video.moved(status, at) for video_id, video in pair.videos.items()}
    return recipient._replace(incoming={ALICE: Pair(pair.version, videos)})


def test_a_new_video_comes_with_the_version_that_brings_it() -> None:
    bob = settled(ClientState(BOB, NOW + 7), sender(NOW))
    [(_, _, video)] = bob.received()
    assert bob.version == video.came == NOW + 8
    assert bob.incoming[ALICE].version == sender(NOW).version


def test_settling_again_changes_nothing() -> None:
    alice = sender(NOW)
    bob = settled(ClientState(BOB), alice)
    assert settled(bob, alice, NOW + 5) is bob
    assert settled(alice, bob, NOW + 5) is alice


def test_an_older_copy_changes_nothing() -> None:
    old, new = sender(NOW), sender(NOW, NOW + 1)
    bob = settled(ClientState(BOB), new)
    assert settled(bob, old) is bob


def test_a_copy_keeps_the_recipients_own_statuses() -> None:
    policy = Policy(videos_per_pair=2)
    bob = with_status(settled(ClientState(BOB), sender(NOW)), Status.DOWNLOADED)
    bob = settled(bob, sender(NOW, NOW + 1, policy=policy))
    assert {video.status for _, _, video in bob.received()} == {Status.DOWNLOADED, Status.UPLOADED}


def test_a_copy_made_anew_does_not_bring_back_what_the_sender_knows_to_be_over() -> None:
    alice = sender(NOW)
    alice = settled(alice, with_status(settled(ClientState(BOB), alice), Status.VIEWED))
    bob = settled(ClientState(BOB), alice)
    assert [video.status for _, _, video in bob.received()] == [Status.VIEWED]
    assert bob.version == 0


def test_the_senders_status_is_raised_never_lowered() -> None:
    alice = sender(NOW)
    bob = settled(ClientState(BOB), alice)
    viewed = settled(alice, with_status(bob, Status.VIEWED, NOW + 5), NOW + 6)
    assert [(video.status, video.at) for _, _, video in viewed.sent()] == [(Status.VIEWED, NOW + 5)]
    assert viewed.version == NOW + 6 == viewed.status_news
    assert settled(viewed, with_status(bob, Status.DOWNLOADED)) is viewed
    assert settled(viewed, with_status(bob, Status.EXPIRED)) is viewed


def test_both_directions_of_two_clients_settle_at_once() -> None:
    alice = sender(NOW)
    bob = settled(ClientState(BOB), alice)
    bob = sending.upload(bob, ALICE, minted(NOW + 1), Stored(4, "video/mp4"), now=NOW + 1, policy=POLICY).state
    alice = settled(alice, with_status(bob, Status.DOWNLOADED), NOW + 2)
    assert [video.status for _, _, video in alice.sent()] == [Status.DOWNLOADED]
    assert [video.status for _, _, video in alice.received()] == [Status.UPLOADED]


def test_news_gives_every_device_that_is_behind_its_time() -> None:
    row = Device("apns", "production", "key", NOW, NOW, attempts=4)
    bob = settled(ClientState(BOB, devices={PHONE: row}), sender(NOW))
    assert (bob.devices[PHONE].next_at, bob.devices[PHONE].attempts) == (NOW + POLICY.ack_grace_ms, 0)


def test_pairs_agree_when_the_sender_knows_all_that_the_recipient_does() -> None:
    alice = sender(NOW)
    bob = settled(ClientState(BOB), alice)
    assert pairs.agree(bob, alice)
    assert not pairs.agree(ClientState(BOB), alice)
    assert not pairs.agree(bob, ClientState(ALICE))
    assert not pairs.agree(with_status(bob, Status.NOTIFIED), alice)
    assert pairs.agree(ClientState(BOB), ClientState(ALICE))


def test_the_sweep_takes_out_what_a_sender_whose_record_was_lost_does_not_list() -> None:
    bob = settled(ClientState(BOB), sender(NOW))
    mended = pairs.reconcile(bob, ClientState(ALICE), now=NOW + 1, policy=POLICY)
    assert list(mended.received()) == []
    assert mended.version > bob.version


def test_the_sweep_makes_a_lost_copy_anew() -> None:
    alice = sender(NOW)
    mended = pairs.reconcile(ClientState(BOB), alice, now=NOW + 1, policy=POLICY)
    assert [video_id for _, video_id, _ in mended.received()] == [minted(NOW)]
    assert pairs.reconcile(mended, alice, now=NOW + 2, policy=POLICY) is mended


def test_an_upload_after_a_record_was_lost_reaches_the_mended_copy() -> None:
    bob = settled(ClientState(BOB), sender(NOW))
    mended = pairs.reconcile(bob, ClientState(ALICE), now=NOW + 1, policy=POLICY)
    later = settled(mended, sender(NOW + 2), NOW + 2)
    assert [video_id for _, video_id, _ in later.received()] == [minted(NOW + 2)]


def test_an_empty_pair_is_remembered_for_an_hour() -> None:
    alice = sender(NOW)._replace(outgoing={BOB: Pair(NOW, {})})
    assert BOB in sealed(alice, now=NOW + PAIR_KEEP_MS - 1, policy=POLICY).outgoing
    assert BOB not in sealed(alice, now=NOW + PAIR_KEEP_MS, policy=POLICY).outgoing


def test_of_many_empty_pairs_the_newest_are_remembered_beside_those_with_videos() -> None:
    alice = sender(NOW)
    empty = {ClientId(f"peer{n}"): Pair(NOW + n, {}) for n in range(MOST_EMPTY_PAIRS + 10)}
    kept = sealed(alice._replace(outgoing={**alice.outgoing, **empty}), now=NOW + 1000, policy=POLICY).outgoing
    assert set(kept) == {BOB, *list(empty)[10:]}

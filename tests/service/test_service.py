"""What each call of an app is answered, and what it leaves behind when it is cut off and repeated."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from gateway.errors import GatewayError, Invalid, NotStored, NotTracked, TooLarge, TooManyInTransit, Unavailable
from gateway.service import Said
from gateway.transit.decisions import DUPLICATE, SUPERSEDED, TOO_LATE, UNKNOWN, Result, VideoRef
from gateway.transit.policy import DAY_MS, HOUR_MS, Policy
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import Status, VideoId
from storage.documents import StoreUnavailable
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, Gateway

DAY_S = DAY_MS // 1000
HOUR_S = HOUR_MS // 1000
APPLIED = Result.APPLIED


async def report(gateway: Gateway, ref: VideoRef, status: Status) -> tuple[object, int]:
    [answer], state = await gateway.service.report(ref.recipient_id, [Said(ref.video_id, status)])
    return answer, state.version


# --- Announcing


async def test_an_announced_video_is_stored_nowhere(gateway: Gateway) -> None:
    ref = await gateway.announce(put=False)
    assert (await gateway.state(ALICE)).blank
    assert await gateway.stored() == []
    assert ref.object_key == f"{ref.video_id[-1]}/{ref.video_id}/alice/bob"


async def test_the_upload_url_lives_as_long_as_the_policy_says(gateway: Gateway) -> None:
    _, upload = await gateway.service.announce(ALICE, BOB, size=4, content_type="video/mp4")
    assert upload.expires_at == gateway.clock.now_ms + gateway.policy.upload_ttl_ms


@pytest.mark.parametrize(
    ("recipient", "size", "content_type", "sha256", "error"),
    [
        (ALICE, 4, "video/mp4", None, Invalid),
        (BOB, 0, "video/mp4", None, Invalid),
        (BOB, 4, "video", None, Invalid),
        (BOB, 4, "video/mp4; codecs=avc1", None, Invalid),
        (BOB, 4, "image/png", None, Invalid),
        (BOB, 4, "video/mp4\n", None, Invalid),
        (BOB, 4, "video/mp4", "A" * 64, Invalid),
        (BOB, 4, "video/mp4", "a" * 63, Invalid),
        (BOB, 100 * 1024 * 1024 + 1, "video/mp4", None, TooLarge),
    ],
)
async def test_what_may_not_be_uploaded_is_refused(
    gateway: Gateway, recipient: str, size: int, content_type: str, sha256: str | None, error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await gateway.service.announce(
            ALICE, type(ALICE)(recipient), size=size, content_type=content_type, sha256=sha256
        )


async def test_the_largest_video_may_be_uploaded_and_types_are_taken_in_any_case(gateway: Gateway) -> None:
    await gateway.service.announce(ALICE, BOB, size=100 * 1024 * 1024, content_type="Video/MP4", sha256="a" * 64)


# --- Confirming


async def test_a_confirmed_upload_is_tracked_by_both(gateway: Gateway) -> None:
    ref = await gateway.announce()
    verdict, state = await gateway.service.confirm(ref)
    assert verdict.result is APPLIED
    assert state == await gateway.state(ALICE)
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_an_upload_without_bytes_is_not_tracked(gateway: Gateway) -> None:
    ref = await gateway.announce(put=False)
    with pytest.raises(NotStored):
        await gateway.service.confirm(ref)
    assert (await gateway.state(ALICE)).blank


async def test_a_second_confirmation_is_a_duplicate_of_the_same_version(gateway: Gateway) -> None:
    ref = await gateway.announce()
    first = await gateway.service.confirm(ref)
    gateway.pass_time(1)
    again = await gateway.service.confirm(ref)
    assert again.verdict == DUPLICATE
    assert again.state.version == first.state.version


async def test_a_new_upload_replaces_the_one_before_and_its_bytes_go(gateway: Gateway) -> None:
    old = await gateway.send()
    gateway.pass_time(1)
    new = await gateway.send()
    await gateway.removals.flush()
    assert [video_id for _, video_id, _ in (await gateway.state(ALICE)).sent()] == [new.video_id]
    assert [video_id for _, video_id, _ in (await gateway.state(BOB)).received()] == [new.video_id]
    assert await gateway.stored() == [new.object_key]
    assert (await gateway.service.confirm(old)).verdict == SUPERSEDED


async def test_an_upload_confirmed_after_a_newer_one_is_superseded(gateway: Gateway) -> None:
    old = await gateway.announce()
    gateway.pass_time(1)
    new = await gateway.send()
    assert (await gateway.service.confirm(old)).verdict == SUPERSEDED
    await gateway.removals.flush()
    assert await gateway.stored() == [new.object_key]


async def test_a_confirmation_for_another_recipient_is_of_an_unknown_video(gateway: Gateway) -> None:
    ref = await gateway.send()
    assert (await gateway.service.confirm(VideoRef(ref.video_id, ALICE, CAROL))).verdict == UNKNOWN
    assert (await gateway.state(CAROL)).blank


async def test_nothing_is_sent_to_oneself(gateway: Gateway) -> None:
    ref = await gateway.announce()
    [answer], _ = await gateway.service.report(ALICE, [Said(ref.video_id, Status.UPLOADED, ALICE)])
    assert isinstance(answer, Invalid)
    with pytest.raises(Invalid):
        await gateway.service.delete(VideoRef(ref.video_id, ALICE, ALICE))


# --- Statuses


async def test_a_status_moves_forward_at_both(gateway: Gateway) -> None:
    ref = await gateway.send()
    for status in (Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED):
        gateway.pass_time(1)
        verdict, version = await report(gateway, ref, status)
        assert verdict == (APPLIED, None)
        assert version == (await gateway.state(BOB)).version
        assert await gateway.sent_status(ref) is status


async def test_a_status_that_was_passed_is_a_duplicate(gateway: Gateway) -> None:
    ref = await gateway.send()
    _, version = await report(gateway, ref, Status.VIEWED)
    for status in (Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED):
        assert await report(gateway, ref, status) == (DUPLICATE, version)
    assert await gateway.sent_status(ref) is Status.VIEWED


async def test_the_bytes_go_when_the_video_was_viewed(gateway: Gateway) -> None:
    ref = await gateway.send()
    await report(gateway, ref, Status.DOWNLOADED)
    await gateway.removals.flush()
    assert await gateway.stored() == [ref.object_key]
    await report(gateway, ref, Status.VIEWED)
    await gateway.removals.flush()
    assert await gateway.stored() == []


async def test_whoever_is_neither_sender_nor_recipient_knows_no_video(gateway: Gateway) -> None:
    ref = await gateway.send()
    for client in (ALICE, CAROL):
        [answer], state = await gateway.service.report(client, [Said(ref.video_id, Status.VIEWED)])
        assert answer == UNKNOWN
        assert state == await gateway.state(client)
    with pytest.raises(NotTracked):
        await gateway.service.content(CAROL, ref.video_id)
    assert await gateway.sent_status(ref) is Status.UPLOADED


async def test_a_video_that_expired_is_viewed_too_late(gateway: Gateway) -> None:
    ref = await gateway.send()
    gateway.pass_time(31 * DAY_S)
    await gateway.service.tend(ALICE)
    assert await gateway.sent_status(ref) is Status.EXPIRED
    assert (await report(gateway, ref, Status.VIEWED))[0] == TOO_LATE


async def test_many_statuses_are_one_change_and_each_has_its_answer(gateway: Gateway) -> None:
    one, two = await gateway.send(ALICE, BOB), await gateway.send(CAROL, BOB)
    mine = await gateway.announce(BOB, ALICE)
    never = await gateway.announce(BOB, CAROL, put=False)
    unknown = VideoId("01890000-0000-7000-8000-000000000000")
    before = (await gateway.state(BOB)).version
    answers, state = await gateway.service.report(
        BOB,
        [
            Said(one.video_id, Status.DOWNLOADED),
            Said(mine.video_id, Status.UPLOADED, ALICE),
            Said(unknown, Status.VIEWED),
            Said(never.video_id, Status.UPLOADED, CAROL),
            Said(mine.video_id, Status.UPLOADED),
            Said(two.video_id, Status.VIEWED),
        ],
    )
    assert [answers[0], answers[1], answers[2], answers[5]] == [
        (APPLIED, None),
        (APPLIED, None),
        UNKNOWN,
        (APPLIED, None),
    ]
    assert isinstance(answers[3], NotStored)
    assert isinstance(answers[4], Invalid)
    assert state == await gateway.state(BOB)
    assert state.version > before


# --- Acknowledging


async def test_what_a_device_applied_is_notified_before_the_answer(gateway: Gateway) -> None:
    ref = await gateway.send()
    version = (await gateway.state(BOB)).version
    state = await gateway.service.poll(BOB, Acknowledgement(PHONE, version))
    assert await gateway.sent_status(ref) is Status.NOTIFIED
    assert state.version == version


async def test_an_answer_on_its_way_acknowledges_nothing(gateway: Gateway) -> None:
    ref = await gateway.send()
    await gateway.service.poll(BOB)
    await gateway.service.poll(BOB, Acknowledgement(PHONE, 1))
    assert await gateway.sent_status(ref) is Status.UPLOADED


async def test_an_acknowledgement_of_a_version_above_the_current_counts_as_the_current(gateway: Gateway) -> None:
    ref = await gateway.send()
    await gateway.service.poll(BOB, Acknowledgement(PHONE, 2**62))
    later = await gateway.send(CAROL, BOB)
    assert await gateway.sent_status(ref) is Status.NOTIFIED
    assert await gateway.sent_status(later) is Status.UPLOADED


# --- Deleting


async def test_a_deleted_video_is_gone_from_everywhere_and_stays_so(gateway: Gateway) -> None:
    ref = await gateway.send()
    verdict, state = await gateway.service.delete(ref)
    assert verdict.result is APPLIED
    assert (await gateway.service.delete(ref)) == (DUPLICATE, state)
    await gateway.removals.flush()
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None
    assert await gateway.received_status(ref) is None
    assert (await gateway.service.confirm(ref)).verdict == SUPERSEDED


async def test_a_cancelled_announcement_is_never_tracked(gateway: Gateway) -> None:
    ref = await gateway.announce()
    assert (await gateway.service.delete(ref)).verdict.result is APPLIED
    assert (await gateway.service.confirm(ref)).verdict == SUPERSEDED
    await gateway.removals.flush()
    assert await gateway.stored() == []


async def test_a_deletion_that_names_another_recipient_deletes_nothing(gateway: Gateway) -> None:
    ref = await gateway.send()
    assert (await gateway.service.delete(VideoRef(ref.video_id, ALICE, CAROL))).verdict == UNKNOWN
    assert await gateway.sent_status(ref) is Status.UPLOADED


async def test_deleting_again_deletes_bytes_that_came_late(gateway: Gateway) -> None:
    video_id, upload = await gateway.service.announce(ALICE, BOB, size=4, content_type="video/mp4")
    ref = VideoRef(video_id, ALICE, BOB)
    await gateway.service.delete(ref)
    await gateway.put(ref, upload.url)
    await gateway.service.delete(ref)
    await gateway.removals.flush()
    assert await gateway.stored() == []


async def test_a_deletion_repeated_a_day_later_still_reaches_the_recipient(gateway: Gateway) -> None:
    ref = await gateway.send()
    _fail_at(gateway, commit_after=("client:alice",))
    with pytest.raises(Unavailable):
        await gateway.service.delete(ref)
    _heal(gateway)
    gateway.pass_time(DAY_S + HOUR_S)
    await gateway.register(ALICE)  # whatever writes the document next lets it forget the pair
    await gateway.send(ALICE, CAROL)
    await gateway.service.delete(ref)
    assert await gateway.received_status(ref) is None


# --- Content


async def test_sender_and_recipient_are_told_where_the_bytes_are_until_the_video_is_over(gateway: Gateway) -> None:
    ref = await gateway.send()
    for client in (ALICE, BOB):
        found = await gateway.service.content(client, ref.video_id)
        assert ref.object_key in found.url
    await report(gateway, ref, Status.VIEWED)
    for client in (ALICE, BOB):
        with pytest.raises(NotTracked):
            await gateway.service.content(client, ref.video_id)


async def test_viewed_bytes_are_kept_as_long_as_the_policy_says() -> None:
    gateway = Gateway(Policy(viewed_keep_ms=HOUR_MS))
    ref = await gateway.send()
    await report(gateway, ref, Status.VIEWED)
    await gateway.service.content(BOB, ref.video_id)
    gateway.pass_time(HOUR_S)
    with pytest.raises(NotTracked):
        await gateway.service.content(BOB, ref.video_id)
    await gateway.service.tend(ALICE)
    await gateway.removals.flush()
    assert await gateway.stored() == []


# --- Caps


async def test_the_257th_video_finds_no_room_and_has_ended(gateway: Gateway) -> None:
    refs = []
    for n in range(255):
        refs.append(await gateway.send(type(ALICE)(f"s{n}"), BOB))
        gateway.pass_time(0.001)  # ids of one millisecond are in no order
    late = await gateway.announce(CAROL, BOB)
    refs.append(await gateway.send(ALICE, BOB))
    with pytest.raises(TooManyInTransit):
        await gateway.announce(type(ALICE)("dave"), BOB)
    with pytest.raises(TooManyInTransit):
        await gateway.service.confirm(late)
    assert (await gateway.service.confirm(late)).verdict == SUPERSEDED
    for ref in refs:
        await report(gateway, ref, Status.VIEWED)
    await gateway.send(CAROL, BOB)
    state = await gateway.state(BOB)
    assert len(list(state.received())) == 256
    assert await gateway.sent_status(refs[0]) is None


async def test_the_257th_video_of_one_sender_finds_room_once_others_were_viewed(gateway: Gateway) -> None:
    refs = [await gateway.send(ALICE, type(ALICE)(f"r{n}")) for n in range(256)]
    with pytest.raises(TooManyInTransit):
        await gateway.announce(ALICE, BOB)
    await report(gateway, refs[7], Status.VIEWED)
    await gateway.send(ALICE, BOB)
    assert len(list((await gateway.state(ALICE)).sent())) == 256
    assert await gateway.sent_status(refs[7]) is None


async def test_a_full_pair_replaces_its_own_and_needs_no_room() -> None:
    gateway = Gateway(Policy(max_outgoing=1, max_incoming=1))
    await gateway.send()
    new = await gateway.send()
    assert await gateway.sent_status(new) is Status.UPLOADED


async def test_a_refusal_that_a_conflict_overtook_is_decided_anew() -> None:
    """The first look finds no room; before the refusal is written, room is made, and the sweep completes the upload."""
    gateway = Gateway(Policy(max_incoming=1))
    ref = await gateway.announce(ALICE, BOB)
    other = await gateway.send(CAROL, BOB)
    rivals: list[Callable[[], Awaitable[object]]] = [
        lambda: gateway.service.delete(other),
        lambda: gateway.service.confirm(ref),
    ]
    inner = gateway.documents.inner
    commit = gateway.documents.commit

    async def overtaken(documents: Sequence[object]) -> object:
        gateway.documents.commit = commit  # type: ignore[method-assign]
        for rival in rivals:
            await rival()
        return await commit(documents)  # type: ignore[arg-type]

    gateway.documents.commit = overtaken  # type: ignore[method-assign,assignment]
    assert (await gateway.service.confirm(ref)).verdict == DUPLICATE
    assert await gateway.sent_status(ref) is Status.UPLOADED
    await inner.close()


# --- The end of an account


async def test_an_account_that_ends_takes_along_what_it_sent_and_what_it_was_sent_expires(gateway: Gateway) -> None:
    sent, received = await gateway.send(ALICE, BOB), await gateway.send(CAROL, ALICE)
    await gateway.register(ALICE)
    await gateway.service.leave(ALICE)
    await gateway.removals.flush()
    state = await gateway.state(ALICE)
    assert state.devices == {}
    assert list(state.sent()) == []
    assert await gateway.received_status(sent) is None
    assert await gateway.sent_status(received) is Status.EXPIRED
    assert await gateway.stored() == []
    before = await gateway.state(ALICE)
    await gateway.service.leave(ALICE)
    assert await gateway.state(ALICE) == before


async def test_what_an_account_had_uploaded_before_it_ended_is_not_completed_afterwards(gateway: Gateway) -> None:
    ref = await gateway.announce(ALICE, BOB)
    await gateway.service.leave(ALICE)
    gateway.pass_time(60)
    await gateway.sweep.round(full=True)
    assert await gateway.sent_status(ref) is None
    assert await gateway.received_status(ref) is None
    assert await gateway.stored() == []


async def test_an_account_with_hundreds_of_correspondents_can_end(gateway: Gateway) -> None:
    for n in range(256):
        await gateway.service.delete(await gateway.send(ALICE, type(ALICE)(f"once{n}")))
    for n in range(256):
        await gateway.send(ALICE, type(ALICE)(f"to{n}"))
    for n in range(20):
        await gateway.send(type(ALICE)(f"from{n}"), ALICE)
    await gateway.service.leave(ALICE)
    assert list((await gateway.state(ALICE)).sent()) == []


# --- Versions


async def test_a_device_that_was_away_while_everything_was_forgotten_still_learns_that_it_is_over(
    gateway: Gateway,
) -> None:
    """Bob has no registered device; his other one viewed the video. This one listed it, and was away for a while."""
    ref = await gateway.send()
    listed = (await gateway.state(BOB)).version
    await report(gateway, ref, Status.VIEWED)
    gateway.pass_time(8 * DAY_S)
    await gateway.wakeups.round()
    gateway.pass_time(2 * DAY_S)
    await gateway.sweep.round(full=True)
    for client in (BOB, ALICE):
        assert (await gateway.service.poll(client, Acknowledgement(PHONE, listed))).version > listed


async def test_a_deletion_settled_a_day_late_leaves_the_recipient_a_newer_version(gateway: Gateway) -> None:
    ref = await gateway.send()
    listed = (await gateway.state(BOB)).version
    _fail_at(gateway, commit_after=("client:alice",))
    with pytest.raises(Unavailable):
        await gateway.service.delete(ref)
    _heal(gateway)
    gateway.pass_time(DAY_S + HOUR_S)
    await gateway.service.delete(ref)
    assert (await gateway.service.poll(BOB)).version > listed


# --- Cut off and repeated


def _fail_at(gateway: Gateway, *, commit_after: Sequence[str]) -> None:
    """The store is gone as soon as it has written the first of these; what follows in the same call is not written."""
    inner = gateway.documents.inner

    async def commit(documents: Sequence[object]) -> object:
        for document in documents:
            await inner.commit([document])  # type: ignore[list-item]
            if getattr(document, "key", None) in commit_after:
                raise StoreUnavailable("gone")
        return list(documents)

    gateway.documents.commit = commit  # type: ignore[method-assign,assignment]


def _heal(gateway: Gateway) -> None:
    del gateway.documents.commit


Call = Callable[[Gateway, VideoRef], Awaitable[object]]


def _confirm(gateway: Gateway, ref: VideoRef) -> Awaitable[object]:
    return gateway.service.confirm(ref)


def _viewed(gateway: Gateway, ref: VideoRef) -> Awaitable[object]:
    return gateway.service.report(ref.recipient_id, [Said(ref.video_id, Status.VIEWED)])


def _delete(gateway: Gateway, ref: VideoRef) -> Awaitable[object]:
    return gateway.service.delete(ref)


def _leave(gateway: Gateway, ref: VideoRef) -> Awaitable[object]:
    return gateway.service.leave(ref.sender_id)


def _recipient_leaves(gateway: Gateway, ref: VideoRef) -> Awaitable[object]:
    return gateway.service.leave(ref.recipient_id)


async def _picture(gateway: Gateway, ref: VideoRef) -> object:
    await gateway.removals.flush()
    await gateway.sweep.round(full=True)
    await gateway.removals.flush()
    stored = await gateway.stored()
    return await gateway.sent_status(ref), await gateway.received_status(ref), len(stored), ref.object_key in stored


@pytest.mark.parametrize("call", [_confirm, _viewed, _delete, _leave, _recipient_leaves])
@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
async def test_a_call_cut_off_at_any_step_and_repeated_ends_like_one_that_was_not(
    call: Call, landed: bool, tracked: bool
) -> None:
    async def begin() -> tuple[Gateway, VideoRef]:
        gateway = Gateway()
        await gateway.send()  # one to be replaced
        gateway.pass_time(1)
        ref = await gateway.announce()
        if tracked:
            await gateway.service.confirm(ref)
        return gateway, ref

    gateway, ref = await begin()
    await call(gateway, ref)
    whole = await _picture(gateway, ref)
    for step in range(20):
        gateway, ref = await begin()
        left = step

        def cut(method: str, keys: Sequence[str]) -> None:
            nonlocal left
            if left == 0:
                raise StoreUnavailable("cut")
            left -= 1

        setattr(gateway.documents, "after" if landed else "before", cut)
        try:
            await call(gateway, ref)
        except Unavailable:
            pass
        else:
            break
        finally:
            gateway.documents.heal()
        await call(gateway, ref)
        assert await _picture(gateway, ref) == whole, f"cut at step {step}"
    else:
        pytest.fail("the call never ends")

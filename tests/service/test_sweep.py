"""What calls that died left behind is completed or removed."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gateway.changes import CLIENT_PREFIX
from gateway.errors import TooManyInTransit, Unavailable
from gateway.registry import TOKEN_PREFIX, TokenOwner, encode_owner, hash_token
from gateway.service import Said
from gateway.transit.decisions import DUPLICATE, VideoRef
from gateway.transit.policy import DAY_MS, HOUR_MS, Policy
from gateway.transit.state import Status
from storage.documents import Document, StoreUnavailable
from storage.objects import UploadGrant
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, Gateway, chunks

DAY_S = DAY_MS // 1000
HOUR_S = HOUR_MS // 1000


def second_half_lost(gateway: Gateway) -> None:
    """The store goes away after the next write of one document."""
    inner = gateway.documents.inner
    commit = inner.commit

    async def half(documents: Sequence[Document]) -> list[Document]:
        inner.commit = commit  # type: ignore[method-assign]
        await commit(documents[:1])
        raise StoreUnavailable("gone")

    inner.commit = half  # type: ignore[method-assign]


@pytest.mark.parametrize("full", [False, True])
async def test_an_upload_that_was_stored_and_never_confirmed_is_completed(gateway: Gateway, full: bool) -> None:
    ref = await gateway.announce()
    found = await gateway.sweep.round(full=full)
    assert (found.objects, found.completed, found.failed) == (1, 1, 0)
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.service.confirm(ref)).verdict == DUPLICATE
    assert (await gateway.sweep.round(full=full)).completed == 0


async def test_what_ended_is_not_completed_and_its_bytes_go(gateway: Gateway) -> None:
    video_id, upload = await gateway.service.announce(ALICE, BOB, size=4, content_type="video/mp4")
    ref = VideoRef(video_id, ALICE, BOB)
    await gateway.service.delete(ref)
    await gateway.put(ref, upload.url)
    assert (await gateway.sweep.round(full=False)).deleted == 1
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None


async def test_bytes_that_nothing_names_go(gateway: Gateway) -> None:
    await gateway.objects.receive(UploadGrant("0/what", 4, "video/mp4", None), chunks())
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []


async def test_an_upload_older_than_any_that_may_be_confirmed_goes(gateway: Gateway) -> None:
    ref = await gateway.announce()
    gateway.pass_time(gateway.policy.upload_window_ms // 1000 + 1)
    assert (await gateway.sweep.round(full=False)).objects == 0
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []
    assert await gateway.sent_status(ref) is None


async def test_bytes_that_could_not_be_deleted_go_with_the_next_round(gateway: Gateway) -> None:
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    gateway.objects.down = True
    await gateway.removals.flush()
    gateway.objects.down = False
    assert await gateway.stored() == [ref.object_key]
    assert (await gateway.sweep.round(full=True)).deleted == 1
    assert await gateway.stored() == []


async def test_an_upload_without_room_waits_and_tells_its_sender_why(gateway: Gateway) -> None:
    full = Gateway(Policy(max_incoming=1))
    ref = await full.announce(ALICE, BOB)
    other = await full.send(CAROL, BOB)
    await full.sweep.round(full=True)
    assert await full.sent_status(ref) is None
    assert ref.object_key in await full.stored()
    await full.service.delete(other)
    await full.sweep.round(full=True)
    assert await full.sent_status(ref) is Status.UPLOADED
    late = await gateway.announce(ALICE, BOB)
    assert await gateway.stored() == [late.object_key]


async def test_a_sender_that_confirms_without_room_hears_it_though_the_sweep_came_first() -> None:
    gateway = Gateway(Policy(max_incoming=1))
    ref = await gateway.announce(ALICE, BOB)
    await gateway.send(CAROL, BOB)
    await gateway.sweep.round(full=True)
    with pytest.raises(TooManyInTransit):
        await gateway.service.confirm(ref)


async def test_a_copy_that_was_never_written_is_made(gateway: Gateway) -> None:
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)
    assert await gateway.received_status(ref) is None
    assert (await gateway.sweep.round(full=True)).mended == 1
    assert await gateway.received_status(ref) is Status.UPLOADED
    assert (await gateway.sweep.round(full=True)).mended == 0


async def test_a_status_that_never_reached_the_sender_does(gateway: Gateway) -> None:
    ref = await gateway.send()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.report(BOB, [Said(ref.video_id, Status.DOWNLOADED)])
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert (await gateway.sweep.round(full=True)).mended == 1
    assert await gateway.sent_status(ref) is Status.DOWNLOADED


@pytest.mark.parametrize("lost", [ALICE, BOB])
async def test_a_lost_record_is_mended_from_the_other_as_the_sender_has_it(gateway: Gateway, lost: str) -> None:
    ref = await gateway.send()
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + lost])
    await gateway.documents.inner.commit([Document(document.key, document.version)])
    gateway.pass_time(1)
    await gateway.sweep.round(full=True)
    await gateway.sweep.round(full=True)
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED


async def test_a_token_that_no_device_has_goes_once_no_registration_can_be_under_way(gateway: Gateway) -> None:
    await gateway.register()
    key = hash_token("stranded")
    body = encode_owner(TokenOwner(BOB, PHONE, "stranded"))
    await gateway.documents.inner.commit([Document(TOKEN_PREFIX + key, 0, body)])
    assert (await gateway.sweep.round(full=True)).tokens == 0
    gateway.pass_time(HOUR_S + 1)
    assert (await gateway.sweep.round(full=True)).tokens == 1
    assert await gateway.registry.owner(key) is None
    assert await gateway.registry.owner(hash_token("token")) is not None


async def test_a_document_that_cannot_be_read_does_not_keep_the_others_from_being_mended(gateway: Gateway) -> None:
    await gateway.send(CAROL, BOB)
    ref = await gateway.announce()
    second_half_lost(gateway)
    with pytest.raises(Unavailable):
        await gateway.service.confirm(ref)
    [document] = await gateway.documents.inner.load([CLIENT_PREFIX + CAROL])
    await gateway.documents.inner.commit([replace(document, body=b"what")])
    found = await gateway.sweep.round(full=True)
    assert found.failed > 0
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_two_sweeps_at_once_do_no_harm(gateway: Gateway) -> None:
    refs = [await gateway.announce(ALICE, BOB), await gateway.announce(CAROL, BOB), await gateway.announce(BOB, ALICE)]
    await asyncio.gather(gateway.sweep.round(full=True), gateway.sweep.round(full=True))
    for ref in refs:
        assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED

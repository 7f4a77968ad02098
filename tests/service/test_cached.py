"""A gateway with a cache before its documents: whatever old entry there is, what is answered is done, and is so.

An entry is old where whatever replaced it did not come to the cache: `meanwhile`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from gateway.changes import client_key
from gateway.errors import TooManyInTransit
from gateway.service import Said
from gateway.transit.decisions import APPLIED, DUPLICATE, UNKNOWN, VideoRef
from gateway.transit.policy import Policy
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, ClientState, Status
from storage.documents import PEEK_AGE_S, Document
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, Ears, Gateway

DAVE = ClientId("dave")


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(cached=True)


@contextmanager
def unseen(gateway: Gateway) -> Iterator[None]:
    """What is written or loaded within does not come to the cache, and nothing is taken from there."""
    gateway.cache.down = True
    yield
    gateway.cache.down = False


async def cached(gateway: Gateway, *clients: ClientId) -> None:
    """Have entries of these as they are now."""
    for client in clients:
        await gateway.changes.load(client)


async def report(gateway: Gateway, ref: VideoRef, status: Status) -> object:
    [answer], state = await gateway.service.report(ref.recipient_id, [Said(ref.video_id, status)])
    assert state == await gateway.state(ref.recipient_id)
    return answer


def reads(gateway: Gateway) -> list[Sequence[str]]:
    """The keys of each load that the store is asked for from now on."""
    found: list[Sequence[str]] = []

    def note(method: str, keys: Sequence[str]) -> None:
        if method == "load":
            found.append(keys)

    gateway.documents.before = note
    return found


# --- What is answered is done


async def test_a_status_of_a_video_that_the_old_entry_lacks_is_not_lost(gateway: Gateway) -> None:
    await gateway.send(CAROL, BOB)
    with unseen(gateway):
        ref = await gateway.send()
    assert await report(gateway, ref, Status.VIEWED) == APPLIED
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.VIEWED


async def test_a_status_of_a_video_that_only_the_old_entry_lists_is_ignored(gateway: Gateway) -> None:
    ref = await gateway.send()
    with unseen(gateway):
        await gateway.service.delete(ref)
    assert await report(gateway, ref, Status.VIEWED) == UNKNOWN
    assert await gateway.received_status(ref) is None


async def test_the_sender_is_told_of_a_status_though_its_entry_is_old(gateway: Gateway) -> None:
    await gateway.send(ALICE, CAROL)
    with unseen(gateway):
        ref = await gateway.send()
    await cached(gateway, BOB)
    assert await report(gateway, ref, Status.DOWNLOADED) == APPLIED
    assert await gateway.sent_status(ref) is Status.DOWNLOADED


async def test_a_duplicate_is_one_whatever_the_old_entry_says(gateway: Gateway) -> None:
    ref = await gateway.send()
    with unseen(gateway):
        await report(gateway, ref, Status.DOWNLOADED)
    at = (await gateway.state(BOB)).find_received(ref.video_id)
    gateway.pass_time(1)
    assert await report(gateway, ref, Status.DOWNLOADED) == DUPLICATE
    assert (await gateway.state(BOB)).find_received(ref.video_id) == at


async def test_a_duplicate_completes_what_a_crash_cut_short_though_both_entries_are_old(gateway: Gateway) -> None:
    ref = await gateway.send()
    commit = gateway.documents.inner.commit

    async def first_only(documents: Sequence[Document]) -> list[Document]:
        return await commit(documents[:1])

    with unseen(gateway):
        gateway.documents.inner.commit = first_only  # type: ignore[method-assign]
        await report(gateway, ref, Status.DOWNLOADED)
        gateway.documents.inner.commit = commit  # type: ignore[method-assign]
    assert await gateway.sent_status(ref) is Status.UPLOADED
    assert await report(gateway, ref, Status.DOWNLOADED) == DUPLICATE
    assert await gateway.sent_status(ref) is Status.DOWNLOADED


async def test_a_confirmation_that_is_repeated_is_a_duplicate_though_the_old_entry_lacks_the_video(
    gateway: Gateway,
) -> None:
    ref = await gateway.announce()
    await cached(gateway, ALICE, BOB)
    with unseen(gateway):
        await gateway.service.confirm(ref)
        await report(gateway, ref, Status.VIEWED)
        await gateway.removals.flush()
    assert (await gateway.service.confirm(ref)).verdict == DUPLICATE


async def test_a_video_that_the_old_entries_lack_is_deleted(gateway: Gateway) -> None:
    await gateway.send(ALICE, CAROL)
    await gateway.send(CAROL, BOB)
    with unseen(gateway):
        ref = await gateway.send()
    assert (await gateway.service.delete(ref)).verdict == APPLIED
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is None


async def test_a_recipient_that_is_full_by_an_old_entry_only_takes_the_video() -> None:
    gateway = Gateway(Policy(max_incoming=1), cached=True)
    before = await gateway.send(CAROL, BOB)
    with unseen(gateway):
        await gateway.service.delete(before)
    ref = await gateway.send()
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_a_recipient_whose_old_entry_is_full_and_has_another_list_takes_the_video() -> None:
    """The sender's write would come first, and end the video: what the recipient's says then comes too late."""
    gateway = Gateway(Policy(max_incoming=1), cached=True)
    before = await gateway.send()
    ref = await gateway.announce()
    with unseen(gateway):
        await gateway.service.delete(before)
        other = await gateway.send(CAROL, BOB)
    await cached(gateway, ALICE)
    with unseen(gateway):
        await gateway.service.delete(other)
    assert (await gateway.service.confirm(ref)).verdict == APPLIED
    assert await gateway.received_status(ref) is Status.UPLOADED


async def test_a_recipient_that_is_full_takes_nothing_though_the_old_entry_has_room() -> None:
    gateway = Gateway(Policy(max_incoming=2), cached=True)
    await gateway.send(DAVE, BOB)
    ref = await gateway.announce()
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    with pytest.raises(TooManyInTransit):
        await gateway.service.confirm(ref)
    assert await gateway.received_status(ref) is None


async def test_an_announcement_is_refused_by_what_is_so(gateway: Gateway) -> None:
    gateway = Gateway(Policy(max_outgoing=1), cached=True)
    before = await gateway.send(ALICE, CAROL)
    with unseen(gateway):
        await gateway.service.delete(before)
    await gateway.announce()
    await cached(gateway, ALICE)
    with unseen(gateway):
        await gateway.send(ALICE, CAROL)
    with pytest.raises(TooManyInTransit):
        await gateway.announce(ALICE, DAVE)


async def test_a_new_id_sorts_behind_one_that_the_old_entry_lacks(gateway: Gateway) -> None:
    await gateway.send(ALICE, CAROL)
    with unseen(gateway):
        gateway.pass_time(100)
        newer = await gateway.send(ALICE, CAROL)
        gateway.pass_time(-90)
    assert (await gateway.announce()).video_id > newer.video_id


async def test_nobody_is_woken_whose_acknowledgement_the_old_entry_lacks(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    version = (await gateway.state(BOB)).version
    gateway.pass_time(10)
    await cached(gateway, BOB)
    due = await gateway.due(BOB)
    assert due is not None
    with unseen(gateway):
        await gateway.service.poll(BOB, Acknowledgement(PHONE, version))
    gateway.documents.inner._stored[client_key(BOB)] = await named_due(gateway, due)
    await gateway.wakeups.round()
    assert gateway.provider.sent == []


async def named_due(gateway: Gateway, due: int) -> Document:
    """Bob's document as a due index that lags would name it."""
    [document] = await gateway.documents.inner.load([client_key(BOB)])
    return Document(document.key, document.version, document.body, due)


async def test_what_is_published_is_what_is_so(gateway: Gateway) -> None:
    ears = Ears()
    await gateway.send(ALICE, CAROL)
    await gateway.send(CAROL, BOB)
    with unseen(gateway):
        ref = await gateway.send()
    for client in (ALICE, BOB):
        await gateway.bus.subscribe(client, ears)
    await report(gateway, ref, Status.DOWNLOADED)
    await gateway.service.confirm(ref)
    newest = {client: await gateway.packet(client) for client in (ALICE, BOB)}
    assert ears.news
    assert all(news.packet == newest[news.client_id] for news in ears.news)


# --- What may be old


async def poll(gateway: Gateway, known: int, *, acked: int = 0) -> ClientState:
    seen = Acknowledgement(PHONE, acked) if acked else None
    return await gateway.service.poll(BOB, seen, known=known)


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_a_poll_that_names_its_version_hears_of_news_within_half_a_minute(
    gateway: Gateway, acknowledges: bool
) -> None:
    await gateway.register()
    await gateway.send()
    version = (await gateway.state(BOB)).version
    await poll(gateway, version, acked=version)
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    acked = version if acknowledges else 0
    assert (await poll(gateway, version, acked=acked)).version == version
    gateway.pass_time(PEEK_AGE_S)
    assert await poll(gateway, version, acked=acked) == await gateway.state(BOB)


async def test_a_poll_without_a_version_is_right_at_once_and_mends_the_entry(gateway: Gateway) -> None:
    await gateway.send()
    version = (await gateway.state(BOB)).version
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    assert await gateway.service.poll(BOB) == await gateway.state(BOB)
    assert await poll(gateway, version) == await gateway.state(BOB)


async def test_a_poll_that_acknowledges_without_a_version_to_begin_with_is_right_at_once(gateway: Gateway) -> None:
    """So it is for a socket that opens."""
    await gateway.register()
    await gateway.send()
    version = (await gateway.state(BOB)).version
    await poll(gateway, version, acked=version)
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    assert await poll(gateway, 0, acked=version) == await gateway.state(BOB)


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_nobody_is_told_less_than_they_have(gateway: Gateway, acknowledges: bool) -> None:
    await gateway.send()
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    newest = await gateway.state(BOB)
    assert await poll(gateway, newest.version, acked=newest.version if acknowledges else 0) == await gateway.state(BOB)


async def test_what_a_poll_acknowledges_is_noted_though_the_entry_is_old(gateway: Gateway) -> None:
    await gateway.register()
    await gateway.send()
    with unseen(gateway):
        ref = await gateway.send(CAROL, BOB)
    version = (await gateway.state(BOB)).version
    await poll(gateway, version, acked=version)
    assert await gateway.received_status(ref) is await gateway.sent_status(ref) is Status.NOTIFIED
    assert (await gateway.state(BOB)).devices[PHONE].acked == version


async def test_a_held_poll_hears_of_what_the_old_entry_lacks(gateway: Gateway) -> None:
    await gateway.send()
    version = (await gateway.state(BOB)).version
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    assert (await poll(gateway, version)).version == version
    found = await gateway.hub.newer(BOB, version, wait_s=60, device_id=None)
    assert found is not None
    assert found.body == await gateway.packet(BOB)


# --- What it costs


async def ready(gateway: Gateway) -> VideoRef:
    ref = await gateway.send()
    await cached(gateway, ALICE, BOB)
    return ref


async def test_a_status_costs_no_read(gateway: Gateway) -> None:
    ref = await ready(gateway)
    found = reads(gateway)
    await report(gateway, ref, Status.DOWNLOADED)
    assert found == []


async def test_a_poll_of_somebody_who_comes_back_costs_no_read(gateway: Gateway) -> None:
    await gateway.register()
    await ready(gateway)
    version = (await gateway.state(BOB)).version
    await poll(gateway, version, acked=version)
    found = reads(gateway)
    await poll(gateway, version, acked=version)
    await poll(gateway, version)
    await poll(gateway, version - 1)
    assert found == []


@pytest.mark.parametrize("cached", [True, False])
async def test_a_status_that_changes_nothing_costs_one_read_of_each_with_a_cache_and_without(cached: bool) -> None:
    gateway = Gateway(cached=cached)
    ref = await ready(gateway)
    await report(gateway, ref, Status.DOWNLOADED)
    found = reads(gateway)
    await report(gateway, ref, Status.DOWNLOADED)
    assert found == [[client_key(BOB)], [client_key(ALICE)]]


async def test_what_the_cache_has_not_costs_one_read_of_each(gateway: Gateway) -> None:
    ref = await gateway.send()
    gateway.pass_time(PEEK_AGE_S)
    found = reads(gateway)
    await report(gateway, ref, Status.DOWNLOADED)
    assert found == [[client_key(BOB)], [client_key(ALICE)]]
    gateway.pass_time(PEEK_AGE_S)
    found.clear()
    await report(gateway, ref, Status.DOWNLOADED)
    assert found == [[client_key(BOB)], [client_key(ALICE)]]


async def test_an_old_entry_costs_a_conflict_and_a_read(gateway: Gateway) -> None:
    ref = await gateway.send()
    with unseen(gateway):
        await gateway.send(CAROL, BOB)
    found = reads(gateway)
    await report(gateway, ref, Status.DOWNLOADED)
    assert found == [[client_key(BOB)], [client_key(ALICE)]]
    assert gateway.metrics.conflicts._value.get() == 1

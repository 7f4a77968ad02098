"""How a change becomes durable, whoever else writes at the same time."""

from collections.abc import Sequence

from gateway.service import Said
from gateway.transit.decisions import Result
from gateway.transit.state import Status
from storage.documents import Document
from tests.service.conftest import ALICE, BOB, CAROL, Ears, Gateway


def overtaken(gateway: Gateway, key: str, *, times: int = 1) -> None:
    """Another writer touches the document just before each of the next commits that name it."""
    inner = gateway.documents.inner
    commit = inner.commit
    left = times

    async def late(documents: Sequence[Document]) -> list[Document]:
        nonlocal left
        if left and any(document.key == key for document in documents):
            left -= 1
            [there] = await inner.load([key])
            if there.body:
                await commit([there])
        return await commit(documents)

    inner.commit = late  # type: ignore[method-assign]


async def test_a_conflict_before_the_first_write_begins_again(gateway: Gateway) -> None:
    await gateway.send(ALICE, CAROL)
    ref = await gateway.announce()
    overtaken(gateway, "client:alice", times=3)
    assert (await gateway.service.confirm(ref)).verdict.result is Result.APPLIED
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED
    assert gateway.metrics.conflicts._value.get() == 3


async def test_a_conflict_after_the_first_write_repeats_the_second_half_only(gateway: Gateway) -> None:
    old = await gateway.send()
    gateway.pass_time(1)
    ref = await gateway.announce()
    overtaken(gateway, "client:bob", times=3)
    assert (await gateway.service.confirm(ref)).verdict.result is Result.APPLIED
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.UPLOADED
    await gateway.removals.flush()
    assert old.object_key not in await gateway.stored()


async def test_both_packets_are_published_once_both_halves_are_written(gateway: Gateway) -> None:
    ears = Ears()
    for client in (ALICE, BOB):
        await gateway.bus.subscribe(client, ears)
    ref = await gateway.send()
    packets = [(ALICE, await gateway.packet(ALICE)), (BOB, await gateway.packet(BOB))]
    assert [(news.client_id, news.packet) for news in ears.news] == packets
    ears.news.clear()
    await gateway.service.confirm(ref)
    assert [(news.client_id, news.packet) for news in ears.news] == packets


async def test_a_call_that_changes_nothing_writes_nothing(gateway: Gateway) -> None:
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    writes: list[str] = []
    gateway.documents.before = lambda *call: writes.append(call[0])
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED)])
    await gateway.service.poll(BOB)
    await gateway.service.confirm(ref)
    assert "commit" not in writes

"""Bytes that can go, go soon; what cannot be deleted is left to the sweep."""

import asyncio

import pytest

from gateway import removals
from tests.service.conftest import Gateway


async def test_what_is_added_is_deleted_together(gateway: Gateway) -> None:
    refs = [await gateway.announce(), await gateway.announce()]
    gateway.removals.add(ref.object_key for ref in refs)
    assert len(await gateway.stored()) == 2
    await gateway.removals.flush()
    assert await gateway.stored() == []


async def test_it_works_until_it_is_cancelled(gateway: Gateway) -> None:
    working = asyncio.create_task(gateway.removals.run())
    ref = await gateway.announce()
    gateway.removals.add([ref.object_key])
    for _ in range(10):
        await asyncio.sleep(0)
    assert await gateway.stored() == []
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_what_cannot_be_deleted_is_counted_and_not_tried_again(gateway: Gateway) -> None:
    ref = await gateway.announce()
    gateway.objects.down = True
    gateway.removals.add([ref.object_key])
    await gateway.removals.flush()
    gateway.objects.down = False
    await gateway.removals.flush()
    assert await gateway.stored() == [ref.object_key]
    assert gateway.metrics.removals_left._value.get() == 1


async def test_no_more_than_a_bounded_number_wait(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "MOST_WAITING", 2)
    refs = [await gateway.announce() for _ in range(3)]
    gateway.removals.add(ref.object_key for ref in refs)
    await gateway.removals.flush()
    assert await gateway.stored() == [refs[2].object_key]
    assert gateway.metrics.removals_left._value.get() == 1

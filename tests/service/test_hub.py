"""Polls that are held until there is something newer."""

import asyncio

import pytest

from gateway.errors import RateLimited
from gateway.live.hub import HELD_PER_CLIENT, Packet
from gateway.transit.state import DeviceId
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, TABLET, Gateway


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_newer_already_is_answered_at_once(gateway: Gateway) -> None:
    await gateway.send()
    version = (await gateway.state(BOB)).version
    found = await gateway.hub.newer(BOB, version - 1, wait_s=60, device_id=PHONE)
    assert found == Packet(version, await gateway.packet(BOB))


async def test_a_held_poll_is_answered_with_the_packet_that_comes(gateway: Gateway) -> None:
    held = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    await settle()
    await gateway.send(ALICE, CAROL)
    await settle()
    assert not held.done()
    await gateway.send(ALICE, BOB)
    assert await held == Packet((await gateway.state(BOB)).version, await gateway.packet(BOB))


async def test_a_packet_published_while_the_state_is_loaded_is_not_missed(gateway: Gateway) -> None:
    load = gateway.changes.load

    async def overtaken(client_id: str) -> object:
        state = await load(type(BOB)(client_id))
        gateway.changes.load = load  # type: ignore[method-assign]
        await gateway.send(ALICE, BOB)
        return state

    gateway.changes.load = overtaken  # type: ignore[method-assign,assignment]
    found = await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)
    assert found is not None
    assert found.body == await gateway.packet(BOB)


async def test_an_older_packet_answers_nobody(gateway: Gateway) -> None:
    ref = await gateway.send()
    version = (await gateway.state(BOB)).version
    held = asyncio.create_task(gateway.hub.newer(BOB, version, wait_s=60, device_id=PHONE))
    await settle()
    await gateway.service.confirm(ref)  # published once more
    await settle()
    assert not held.done()
    gateway.hub.close()
    assert await held is None


async def test_a_poll_ends_when_its_time_is_over(gateway: Gateway) -> None:
    assert await gateway.hub.newer(BOB, 0, wait_s=0.001, device_id=PHONE) is None
    assert gateway.metrics.held_polls._value.get() == 0


@pytest.mark.parametrize("device_id", [PHONE, None])
async def test_only_a_poll_that_names_its_device_counts_as_listening(
    gateway: Gateway, device_id: DeviceId | None
) -> None:
    kicked: list[str] = []
    gateway.bus.on_kick(kicked.append)
    await gateway.register()
    held = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=device_id))
    await settle()
    await gateway.send()
    assert await held is not None
    assert kicked == ([BOB] if device_id is None else [])


async def test_a_client_has_only_so_many_polls_held(gateway: Gateway) -> None:
    held = [asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)) for _ in range(HELD_PER_CLIENT)]
    await settle()
    with pytest.raises(RateLimited):
        await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE)
    other = asyncio.create_task(gateway.hub.newer(CAROL, 0, wait_s=60, device_id=PHONE))
    await settle()
    held[0].cancel()
    await settle()
    held[0] = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    await settle()
    gateway.hub.close()
    assert await asyncio.gather(*held, other) == [None] * (HELD_PER_CLIENT + 1)


async def test_after_the_end_nothing_is_held(gateway: Gateway) -> None:
    gateway.hub.close()
    assert await gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE) is None


async def test_a_device_that_logs_out_has_no_poll_held_any_more(gateway: Gateway) -> None:
    of_phone = asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=PHONE))
    others = [
        asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=TABLET)),
        asyncio.create_task(gateway.hub.newer(BOB, 0, wait_s=60, device_id=None)),
        asyncio.create_task(gateway.hub.newer(CAROL, 0, wait_s=60, device_id=PHONE)),
    ]
    await settle()
    await gateway.hub.log_out(BOB, PHONE)
    assert await of_phone is None
    assert not any(other.done() for other in others)
    await gateway.hub.log_out(BOB)
    assert await asyncio.gather(*others[:2]) == [None, None]
    assert not others[2].done()
    await gateway.hub.log_out(CAROL)
    assert await others[2] is None

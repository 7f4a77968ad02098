import asyncio

import pytest

from gateway.deadlines import Deadline, Deadlines

TICK_S = 0.002
"""How far the loop's own clock may be behind."""


async def test_what_is_in_time_is_left_alone() -> None:
    deadlines = Deadlines()
    async with Deadline(deadlines, 0.05):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_is_late_is_cancelled_and_times_out() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(TimeoutError):
        async with Deadline(deadlines, 0.05):
            await asyncio.sleep(60)
    assert 0.05 - TICK_S <= loop.time() - began_s < 5
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_has_its_own_time_whichever_began_first() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()

    async def late(seconds: float) -> float:
        began_s = loop.time()
        with pytest.raises(TimeoutError):
            async with Deadline(deadlines, seconds):
                await asyncio.sleep(60)
        return loop.time() - began_s

    took_s = await asyncio.gather(late(0.3), late(0.05), late(0.15))
    assert sorted(took_s) == [took_s[1], took_s[2], took_s[0]]
    assert all(took >= least - TICK_S for took, least in zip(took_s, (0.3, 0.05, 0.15), strict=True))


async def test_one_within_another_ends_by_itself() -> None:
    deadlines = Deadlines()
    async with Deadline(deadlines, 30):
        with pytest.raises(TimeoutError):
            async with Deadline(deadlines, 0.02):
                await asyncio.sleep(60)
        await asyncio.sleep(0)


async def test_who_is_cancelled_meanwhile_is_cancelled() -> None:
    deadlines, inside = Deadlines(), asyncio.Event()

    async def work() -> None:
        async with Deadline(deadlines, 0.05):
            inside.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.shield(asyncio.sleep(0.1))  # it is late as well by then
                raise

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_an_error_passes_as_it_is() -> None:
    with pytest.raises(LookupError):
        async with Deadline(Deadlines(), 30):
            raise LookupError


async def test_nothing_is_kept_of_what_is_over() -> None:
    deadlines = Deadlines()
    for _ in range(100):
        async with Deadline(deadlines, 30):
            await asyncio.sleep(0)
    assert not deadlines._running

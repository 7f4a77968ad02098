"""Work in threads: who waits for it, and what cancelling does."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from storage.threads import WorkerPool


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(threads=2, name="test")
    yield pool
    await pool.close()


async def test_a_job_runs_in_another_thread_and_its_result_comes_back(pool: WorkerPool) -> None:
    assert await pool.run(threading.get_ident) != threading.get_ident()


async def test_what_a_job_raises_comes_back(pool: WorkerPool) -> None:
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancelled_caller_waits_until_its_job_has_ended(pool: WorkerPool, cancellations: int) -> None:
    started, go_on = threading.Event(), threading.Event()
    ended = False

    def job() -> None:
        nonlocal ended
        started.set()
        assert go_on.wait(30)
        ended = True

    caller = asyncio.create_task(pool.run(job))
    await pool.run(lambda: started.wait(30))
    for _ in range(cancellations):
        caller.cancel()
        done, _ = await asyncio.wait({caller}, timeout=0)
        await asyncio.sleep(0)
        assert not done
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended


async def test_a_job_that_fails_after_its_caller_was_cancelled_is_no_unseen_error(pool: WorkerPool) -> None:
    started, go_on = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert go_on.wait(30)
        raise OSError("nobody asks")

    caller = asyncio.create_task(pool.run(job))
    await pool.run(lambda: started.wait(30))
    caller.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_closing_waits_for_running_jobs(pool: WorkerPool) -> None:
    started, go_on = threading.Event(), threading.Event()

    def job() -> bool:
        started.set()
        return go_on.wait(30)

    caller = asyncio.create_task(pool.run(job))
    await pool.run(lambda: started.wait(30))
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert await caller

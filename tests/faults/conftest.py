"""The longest fault, half a minute of a Redis that is frozen, goes on in the background of the others."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults import test_the_long_freeze


@pytest.fixture(scope="package", autouse=True)
async def long_freeze(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[asyncio.Task[None] | None]:
    """That story, on servers of its own; None where nobody will ask how it ended."""
    asked = any(item.path.name == "test_the_long_freeze.py" for item in request.session.items)
    task = asyncio.create_task(test_the_long_freeze.story(tmp_path_factory.mktemp("freeze"))) if asked else None
    yield task
    if task is not None:
        task.cancel()
        await asyncio.wait([task])

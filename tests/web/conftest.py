"""A gateway, two who use it, and a browser to look at it with."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.browser import chromium
from tests.running import App, Running, running_gateway


@pytest.fixture(scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture
def alice(gw: Running) -> App:
    return gw.app(gw.fresh("alice"))


@pytest.fixture
def bob(gw: Running) -> App:
    return gw.app(gw.fresh("bob"))


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started

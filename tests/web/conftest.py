"""A gateway, and a browser to look at it with."""

import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import async_playwright

from tests.running import Running, running_gateway

CHROMIUM = shutil.which("chromium")
FAR = "gateway.test"
"""A name of this machine that a browser does not take for it: what comes from there over HTTP is not secure."""

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {FAR} 127.0.0.1",
)


@pytest.fixture(scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield started
        finally:
            await started.close()

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.running import App, Running, running_gateway


@pytest.fixture(scope="session")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for all tests; each has clients of its own."""
    async with running_gateway(tmp_path_factory.mktemp("gateway"), MAX_VIDEO_BYTES="32MiB") as started:
        yield started


@pytest.fixture
def alice(gw: Running) -> App:
    return gw.app(gw.fresh("alice"))


@pytest.fixture
def bob(gw: Running) -> App:
    return gw.app(gw.fresh("bob"))


@pytest.fixture
def carol(gw: Running) -> App:
    return gw.app(gw.fresh("carol"))


@pytest.fixture(autouse=True)
def no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does to the gateway over HTTP, it is no reason for an error in the log."""
    yield
    errors = [
        record.getMessage()
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.ERROR and record.name.startswith(("gateway", "storage", "push", "uvicorn"))
    ]
    assert not errors

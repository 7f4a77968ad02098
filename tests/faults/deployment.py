"""Two gateways and a worker, for the tests of faults."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from storage import open_documents
from tests.app.program import Program, started
from tests.faults.town import Town, agree

SERVE = ("-m", "gateway", "serve", "--no-worker")
WORK = ("-m", "gateway", "worker")


@asynccontextmanager
async def deployed(folder: Path, **given: str) -> AsyncIterator[list[Program]]:
    """The two gateways; their worker runs beside them. `folder` has the bytes, and the documents, unless `given` says
    where those are."""
    settings = {"LOG_LEVEL": "info", "DRAIN_S": "2"} | given
    async with AsyncExitStack() as stack:
        serving = [await stack.enter_async_context(started(folder, command=SERVE, **settings)) for _ in range(2)]
        await stack.enter_async_context(started(folder, command=WORK, WORKER_PORT="0", **settings))
        yield serving


async def agreed(url: str, name: str, town: Town) -> None:
    """The documents of every pair of that town agree."""
    async with open_documents(url) as store:
        assert await agree(store, name) == 2 * town.pairs

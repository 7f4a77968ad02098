"""Redis, the bus and the cache, is frozen for half a minute: nobody's call fails, and packets come again after it."""

import asyncio
import contextlib
from pathlib import Path

from tests.faults.deployment import agreed, deployed
from tests.faults.town import Town
from tests.redis_servers import redis_server

FROZEN_S = 30.0


async def story(folder: Path) -> None:
    """Two gateways and a worker live through it."""
    with redis_server(folder / "redis") as redis:
        async with deployed(folder / "data", BUS_URL=redis.url, CACHE_URL=redis.url) as gateways:
            town = Town(gateways, pairs=3)
            async with town.busy("frozen"):
                await town.is_live()
                redis.freeze()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FROZEN_S):
                        while True:
                            await town.goes_on(1)
                redis.thaw()
                await town.is_live()
            assert town.viewed > 15
            assert town.unanswered == 0
            await agreed(f"sqlite:///{folder}/data/state.db", "frozen", town)


async def test_redis_is_frozen_for_half_a_minute(long_freeze: asyncio.Task[None]) -> None:
    await long_freeze

"""Publishing a packet to whoever is connected, wherever: `bus` is the contract. A bus is opened by its URL."""

from gateway.bus.bus import Bus
from gateway.metrics import Metrics
from storage.redis_url import REDIS_SCHEMES, RedisUrl

BUS_SCHEMES = ("memory", *REDIS_SCHEMES)
"""The schemes of the URLs that `open_bus` knows."""


def open_bus(url: str, metrics: Metrics) -> Bus:
    """The bus at `url`: `memory:`, or Redis (see `storage.redis_url`); closed by the caller.

    Made within a running loop. A Redis that is not there is no error: it is connected when it is. Raises ValueError for
    another URL.
    """
    # Each is imported when its scheme is used: redis is an extra.
    if url == "memory:":
        from gateway.bus.memory import MemoryBus  # noqa: PLC0415

        return MemoryBus()
    from gateway.bus.redis import RedisBus  # noqa: PLC0415

    return RedisBus(RedisUrl.parse(url), metrics)

"""Bytes that can go: deleted soon, in batches, without keeping anyone waiting.

Only what a commit that succeeded put out is added here. What is lost with the process, the sweep finds.
"""

import asyncio
import logging
from collections.abc import Iterable

from gateway.metrics import Metrics
from storage.objects import ObjectStore, ObjectsUnavailable

MOST_WAITING = 10_000
"""Keys that may wait; what comes beyond them is left to the sweep."""

BATCH = 500
"""Keys deleted together."""

log = logging.getLogger(__name__)


class Removals:
    """Objects that are to be deleted. `add` returns at once; `run` does the work."""

    def __init__(self, objects: ObjectStore, metrics: Metrics) -> None:
        self._objects = objects
        self._metrics = metrics
        self._waiting: dict[str, None] = {}
        self._added = asyncio.Event()

    def add(self, keys: Iterable[str]) -> None:
        """Have these deleted."""
        for key in keys:
            if len(self._waiting) < MOST_WAITING:
                self._waiting[key] = None
            else:
                self._metrics.removals_left.inc()
        if self._waiting:
            self._added.set()

    async def run(self) -> None:
        """Delete what is added, until cancelled."""
        while True:
            await self._added.wait()
            await self.flush()

    async def flush(self) -> None:
        """Delete all that waits now. What cannot be deleted is left to the sweep."""
        self._added.clear()
        while self._waiting:
            batch = list(self._waiting)[:BATCH]
            for key in batch:
                del self._waiting[key]
            try:
                await self._objects.delete(batch)
            except ObjectsUnavailable as error:
                self._metrics.removals_left.inc(len(batch))
                log.warning("objects could not be deleted now", extra={"objects": len(batch), "error": str(error)})

"""Calls that are under way, so that a store is closed behind the last of them."""

import asyncio
from types import TracebackType

from storage.documents import StoreUnavailable


class UnderWay:
    """Counts the calls of a store: each runs within it. Reentrant; raises StoreUnavailable once it is closed."""

    def __init__(self) -> None:
        self._calls = 0
        self._closed = False
        self._ended = asyncio.Event()

    def __enter__(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._calls -= 1
        if self._closed and not self._calls:
            self._ended.set()

    async def close(self) -> None:
        """Let no more begin, and wait for those that have."""
        self._closed = True
        if self._calls:
            await self._ended.wait()

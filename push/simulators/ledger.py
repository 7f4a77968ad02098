"""What a simulator has accepted and what it has refused, and waiting for it."""

import asyncio
from typing import Generic, TypeVar

Push = TypeVar("Push")


class Ledger(Generic[Push]):
    """`received`: what was accepted, in order. `refused`: the reason of each request that broke a rule, in order."""

    def __init__(self) -> None:
        self.received: list[Push] = []
        self.refused: list[str] = []
        self._more = asyncio.Event()

    def accept(self, push: Push) -> None:
        """A push is accepted."""
        self.received.append(push)
        self._more.set()

    def refuse(self, reason: str) -> None:
        """A request broke a rule."""
        self.refused.append(reason)

    async def receives(self, count: int) -> list[Push]:
        """What was accepted, once that are so many in all."""
        while len(self.received) < count:
            self._more.clear()
            await self._more.wait()
        return list(self.received)

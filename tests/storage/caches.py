"""A cache in memory that fails as the test says."""

from collections.abc import Callable, Sequence

from storage.cache import ENTRY_S, Cache
from storage.documents import Document


class MemoryCache(Cache):
    """Entries in a dict. `down`: nothing is found, and what is put or dropped is lost. `losing`: only the latter.
    `holding`: what is put or dropped waits for `arrive`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.down = self.losing = self.holding = self.closed = False
        self._clock = clock
        self._entries: dict[str, tuple[Document, float]] = {}
        self._held: list[Callable[[], None]] = []

    async def get(self, keys: Sequence[str]) -> list[Document | None]:
        return [None if self.down or self.closed else self._entry(key) for key in keys]

    def put(self, documents: Sequence[Document]) -> None:
        until_s = self._clock() + ENTRY_S

        def keep() -> None:
            for document in documents:
                there = self._entry(document.key)
                if there is None or there.version <= document.version:
                    self._entries[document.key] = (document, until_s)

        self._send(keep)

    def drop(self, keys: Sequence[str]) -> None:
        def forget() -> None:
            for key in keys:
                self._entries.pop(key, None)

        self._send(forget)

    async def close(self) -> None:
        self.closed = True

    def arrive(self) -> None:
        """What was held up comes now, in order."""
        held, self._held = self._held, []
        for work in held:
            work()

    def _entry(self, key: str) -> Document | None:
        document, until_s = self._entries.get(key, (None, 0.0))
        return document if self._clock() < until_s else None

    def _send(self, work: Callable[[], None]) -> None:
        if self.holding:
            self._held.append(work)
        elif not (self.down or self.losing or self.closed):
            work()

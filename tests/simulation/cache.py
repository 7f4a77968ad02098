"""A simulated cache, shared by all processes, that does whatever a cache may.

cache = CacheState(scheduler, seed, witness)         cache.view(loop) -> SimulatedCache
cache.troubles.open(Kind.LOSSY, for_s, …)            puts and drops are lost
                    Kind.SLOW                        they come up to `LATE_S` late, and gets are in vain
                    Kind.REPEATING                   they come once more, up to `LATE_S` later
                    Kind.CUT                         the process does not reach it
cache.flush()                                        it has nothing any more
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from storage import cache
from storage.documents import Document
from tests.simulation.backends import LEAVES_S, Backend, Kind, resolve
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.witness import Witness

GET_S = 0.25
"""How long a get waits."""

SENT_S = 0.02
"""How long a put is on its way as a rule."""

LATE_S = 20.0
"""How late a put or a drop may come."""


class CacheState(Backend):
    """The entries: each a document, and the time when it is over."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness) -> None:
        super().__init__(scheduler, seed, witness)
        self._entries: dict[str, tuple[Document, float]] = {}

    def view(self, loop: MachineLoop) -> "SimulatedCache":
        """The cache as one process sees it."""
        return SimulatedCache(self, loop)

    def flush(self) -> None:
        """All entries are gone."""
        self.witness.say("cache", "FLUSHED")
        self._entries.clear()

    def get(self, key: str) -> Document | None:
        """The entry, if there is one."""
        document, until_s = self._entries.get(key, (None, 0.0))
        return document if self.scheduler.now_s < until_s else None

    def put(self, document: Document, until_s: float) -> None:
        """Keep a document until then, unless a newer one is there."""
        there = self.get(document.key)
        if there is None or there.version <= document.version:
            self._entries[document.key] = (document, until_s)

    def drop(self, key: str) -> None:
        """Keep nothing of this one."""
        self._entries.pop(key, None)


class SimulatedCache:
    """A `Cache` as one process sees it."""

    def __init__(self, state: CacheState, loop: MachineLoop) -> None:
        self._state = state
        self._loop = loop

    async def get(self, keys: Sequence[str]) -> list[Document | None]:
        state, troubles, name = self._state, self._state.troubles, self._loop.name
        answer: asyncio.Future[list[Document | None]] = self._loop.create_future()

        def serve() -> None:
            found = [state.get(key) for key in keys]
            state.scheduler.after(state.latency_s(), lambda: self._loop.post(resolve, answer, found))

        if not (troubles and (troubles.strike(Kind.CUT, name) or troubles.strike(Kind.SLOW, name))):
            state.scheduler.after(state.latency_s(), serve)
        try:
            async with asyncio.timeout(GET_S):
                return await answer
        except TimeoutError:
            return [None] * len(keys)

    def put(self, documents: Sequence[Document]) -> None:
        until_s = self._state.scheduler.now_s + cache.ENTRY_S
        for document in documents:
            self._send(f"{document.key} version {document.version}", partial(self._state.put, document, until_s))

    def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._send(f"{key} dropped", partial(self._state.drop, key))

    async def close(self) -> None:
        return

    def _send(self, what: str, work: Callable[[], None]) -> None:
        state, name = self._state, self._loop.name
        left_s, delay_s = state.scheduler.now_s + LEAVES_S, state.rng.uniform(LEAVES_S, SENT_S)
        if troubles := state.troubles:
            if troubles.strike(Kind.CUT, name) or troubles.strike(Kind.LOSSY, name):
                state.witness.say(name, f"LOST on its way to the cache: {what}")
                return
            if troubles.strike(Kind.SLOW, name):
                delay_s = state.rng.uniform(0.1, LATE_S)
                state.witness.say(name, f"LATE on its way to the cache: {what}, {delay_s:.1f} s")
            if troubles.strike(Kind.REPEATING, name):
                state.scheduler.after(state.rng.uniform(0.1, LATE_S), work)

        def arrive() -> None:
            if self._loop.died_s >= left_s:
                work()

        state.scheduler.after(delay_s, arrive)

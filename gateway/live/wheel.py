"""One timer for everybody: a wheel of slots, one of which has its turn at every tick.

A timer for each socket costs a heap entry and a handle each; ten thousand sockets that are pinged every 25 s are 400
turns a second here, and four timers.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

TICK_S = 0.25
"""How late a turn may come."""

SLOTS = 240
"""A whole revolution takes a minute; a longer delay is given a turn once in each."""

_DUE = -2
"""The slot of an item whose time has come, until it has its turn."""

log = logging.getLogger(__name__)


class Timed(Protocol):
    """Something that has a turn now and then."""

    slot: int
    """Kept by the wheel: where it is waiting; below 0 it is not."""

    def turn(self, now_s: float) -> float:
        """Its time has come, or a minute has passed; in how many seconds it wants the next turn, 0 or less: none."""
        ...


class Wheel:
    """Gives turns. `clock`: seconds, of a clock that never goes back. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.now_s = clock
        self._slots: list[set[Timed]] = [set() for _ in range(SLOTS)]
        self._tick = 0
        self._tick_s = TICK_S
        self._began_s = clock()

    def schedule(self, item: Timed, delay_s: float) -> None:
        """Give `item` its turn in `delay_s` seconds or within a tick after, instead of when it had been said before."""
        self.cancel(item)
        ticks = int((self.now_s() - self._began_s + delay_s) / self._tick_s) + 1 - self._tick
        slot = (self._tick + min(max(1, ticks), SLOTS - 1)) % SLOTS
        self._slots[slot].add(item)
        item.slot = slot

    def cancel(self, item: Timed) -> None:
        """No more turns for `item`; nothing happens where it waits for none."""
        if item.slot >= 0:
            self._slots[item.slot].discard(item)
        item.slot = -1

    def advance(self) -> None:
        """Give all turns whose time has come."""
        now_s = self.now_s()
        last = int((now_s - self._began_s) / self._tick_s)
        self._tick = max(self._tick, last - SLOTS)  # after a standstill each has one turn, not one for each it missed
        while self._tick < last:
            self._tick += 1
            slot = self._tick % SLOTS
            items, self._slots[slot] = self._slots[slot], set()  # even an empty one: sets keep the room they once had
            for item in items:
                item.slot = _DUE
            for item in items:
                if item.slot == _DUE:  # else another's turn gave it a new time, or cancelled it
                    item.slot = -1
                    self._turn(item, now_s)

    def _turn(self, item: Timed, now_s: float) -> None:
        try:
            delay_s = item.turn(now_s)
        except Exception:
            log.exception("a turn failed")
            return
        if delay_s > 0:
            self.schedule(item, delay_s)

    async def run(self) -> None:
        """Turn, until cancelled."""
        while True:
            self.advance()
            await asyncio.sleep(self._tick_s)

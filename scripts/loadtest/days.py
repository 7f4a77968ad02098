"""What a phone of each kind goes through, beside what its app does: networks go and come, and pushes are looked at, now
or later."""

import asyncio
from typing import Protocol

from gateway.client import Packet
from scripts.loadtest.options import Kind
from scripts.loadtest.phone import Phone

ONLINE_S = 20.0
"""How long a network lasts where it is cut now and then, in the mean."""

AWAY_S = (1.0, 8.0)
"""How long it is away then, at least and at most."""

ASLEEP_S = (5.0, 30.0)
"""How long a push may lie before somebody looks at the phone, at least and at most."""


class Day(Protocol):
    """What happens to one phone."""

    phone: Phone

    def begin(self) -> None:
        """Its phone is there."""
        ...

    def pushed(self, packet: Packet | None) -> None:
        """A push arrived."""
        ...

    def settle(self) -> None:
        """The test is about to end: the phone has a network, its user looks at it, and all stays like that."""
        ...


class Steady:
    """Nothing happens to this phone."""

    __slots__ = ("phone",)

    def __init__(self, phone: Phone) -> None:
        self.phone = phone

    def begin(self) -> None:
        return

    def pushed(self, packet: Packet | None) -> None:
        self.phone.pushed(packet)

    def settle(self) -> None:
        return


class Fickle:
    """The network of this phone goes and comes. Pushes wait for it: the newest, as providers have it."""

    __slots__ = ("_away", "_loop", "_timer", "_waiting", "phone")

    def __init__(self, phone: Phone) -> None:
        self._loop = asyncio.get_running_loop()
        self.phone = phone
        self._away = False
        self._waiting: list[Packet | None] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._timer = self._loop.call_later(self.phone.world.rng.expovariate(1 / ONLINE_S), self._lose)

    def _lose(self) -> None:
        self._away = True
        self.phone.lose_network(silently=self.phone.kind is Kind.HALF_OPEN)
        self._timer = self._loop.call_later(self.phone.world.rng.uniform(*AWAY_S), self._find)

    def _find(self) -> None:
        self._back()
        self.begin()

    def _back(self) -> None:
        self._away = False
        self.phone.find_network()
        for packet in self._waiting:
            self.phone.pushed(packet)
        self._waiting.clear()

    def pushed(self, packet: Packet | None) -> None:
        if self._away:
            self._waiting = [packet]
        else:
            self.phone.pushed(packet)

    def settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._away:
            self._back()


class Sleeper:
    """Nobody looks at this phone for a while after a push."""

    __slots__ = ("_loop", "_settled", "_timer", "_waiting", "phone")

    def __init__(self, phone: Phone) -> None:
        self._loop = asyncio.get_running_loop()
        self.phone = phone
        self._settled = False
        self._waiting: Packet | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        return

    def pushed(self, packet: Packet | None) -> None:
        self._waiting = packet
        if self._settled:
            self.phone.pushed(packet)
        elif self._timer is None:
            self._timer = self._loop.call_later(self.phone.world.rng.uniform(*ASLEEP_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.phone.pushed(self._waiting)

    def settle(self) -> None:
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
            self._wake()


def day_of(phone: Phone) -> Day:
    """What happens to a phone of its kind."""
    match phone.kind:
        case Kind.FOREGROUND | Kind.BACKGROUND:
            return Steady(phone)
        case Kind.FLAKY | Kind.HALF_OPEN:
            return Fickle(phone)
        case Kind.ASLEEP:
            return Sleeper(phone)

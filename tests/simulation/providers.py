"""Simulated push providers: APNs and FCM, each with troubles of its own.

    providers = providers_of(scheduler, seeds, witness, deliver)     one for each platform
    providers[platform].view(loop) -> SimulatedSender
    providers[platform].troubles.open(Kind.DOWN, for_s, probability=0.5)
    providers[platform].dead[token] = since_ms                       no app has that token any more
    providers[platform].at_stage(loop, Stage.TAKEN, spring)          calls `spring` at that step of a push: a crash

    troubles             DOWN, HANGING, SLOW, REFUSING, REJECTING, DISOWNING, LOSING, REPEATING

A push leaves its process, the provider does what it does, and its answer comes back: late where the process is frozen,
never where it is dead.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count

from push.sender import Accepted, Outcome, Platform, Rejected, Retry, TokenDead, Wakeup
from tests.simulation.backends import LEAVES_S, Backend, Kind
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.witness import Witness

Deliver = Callable[[Wakeup], None]
"""Called when a push arrives at a phone."""


class Stage(Enum):
    """A step of a push at which its process may die."""

    LEAVING = "leaving"
    """It is about to leave: the provider has nothing."""
    TAKEN = "taken"
    """The provider has it, and its answer is on its way."""
    ANSWERED = "answered"
    """Its answer has come, and nothing is made of it yet."""


def providers_of(
    scheduler: Scheduler, seeds: random.Random, witness: Witness, deliver: Deliver
) -> dict[Platform, "ProviderState"]:
    """Both of them."""
    numbers = count(1)
    return {
        platform: ProviderState(scheduler, seeds.getrandbits(32), witness, deliver, numbers) for platform in Platform
    }


class ProviderState(Backend):
    """One provider, and the tokens that it gave to phones."""

    def __init__(
        self, scheduler: Scheduler, seed: int, witness: Witness, deliver: Deliver, numbers: Iterator[int]
    ) -> None:
        super().__init__(scheduler, seed, witness)
        self.numbers = numbers
        self.dead: dict[str, int] = {}
        """Tokens that no app has any more, with since when (ms)."""
        self.dying: dict[str, Callable[[], None]] = {}
        """What to call when a push to that token is asked for: the phone gets another at that very moment."""
        self.calm = False
        """Whether dead tokens are called dead for good, whenever they were registered: at the end of a run."""
        self._deliver = deliver
        self._stages: dict[MachineLoop, tuple[Stage, Callable[[], None]]] = {}

    def view(self, loop: MachineLoop) -> "SimulatedSender":
        """The provider as one process sees it."""
        return SimulatedSender(self, loop)

    def at_stage(self, loop: MachineLoop, stage: Stage, spring: Callable[[], None]) -> None:
        """Call `spring` when the next push of that process has come so far."""
        self._stages[loop] = (stage, spring)

    def has_come_to(self, stage: Stage, loop: MachineLoop) -> None:
        """A push of that process has come so far."""
        waiting = self._stages.get(loop)
        if waiting is not None and waiting[0] is stage:
            del self._stages[loop]
            waiting[1]()

    def calm_down(self) -> None:
        """No more trouble, and no more traps."""
        self.calm = True
        self.troubles.end()
        self.dying.clear()
        self._stages.clear()

    def ask(self, machine: str, push: int, wakeup: Wakeup) -> Outcome:
        """What the provider says, and does."""
        if (dies := self.dying.pop(wakeup.token, None)) is not None:
            dies()
        outcome = self._outcome(machine, wakeup)
        self.witness.pushed(push, outcome)
        if isinstance(outcome, Accepted) and not self.troubles.strike(Kind.LOSING, machine):
            self.scheduler.after(self._travel_s(), lambda: self._deliver(wakeup))
            if self.troubles.strike(Kind.REPEATING, machine):
                self.scheduler.after(self.rng.uniform(1, 60), lambda: self._deliver(wakeup))
        return outcome

    def _outcome(self, machine: str, wakeup: Wakeup) -> Outcome:
        strike, draw = self.troubles.strike, self.rng
        if strike(Kind.DOWN, machine):
            return Retry("down", draw.choice((None, None, 3_000, 30_000)), outage=True)
        if strike(Kind.REFUSING, machine):
            return Retry("refused", draw.choice((None, None, 1_000, 20_000)))
        if strike(Kind.REJECTING, machine):
            return Rejected("rejected")
        if wakeup.token in self.dead:
            return TokenDead(None if self.calm or draw.random() < 0.2 else self.dead[wakeup.token])
        if strike(Kind.DISOWNING, machine):
            return TokenDead()
        return Accepted()

    def way_s(self) -> float:
        """How long a push takes to the provider, or its answer back."""
        draw = self.rng.random()
        return 0.02 + 0.1 * draw if draw < 0.99 else self.rng.uniform(0.1, 1.5)

    def _travel_s(self) -> float:
        draw = self.rng.random()
        return 0.05 + 2 * draw * draw if draw < 0.95 else self.rng.uniform(2, 20)


class SimulatedSender:
    """A `Sender` whose provider says what the simulation has it say."""

    def __init__(self, state: ProviderState, loop: MachineLoop) -> None:
        self._state = state
        self._loop = loop

    async def send(self, wakeup: Wakeup) -> Outcome:
        state, loop = self._state, self._loop
        push = next(state.numbers)
        answer: asyncio.Future[Outcome] = loop.create_future()
        state.has_come_to(Stage.LEAVING, loop)
        if not loop.dead:
            state.witness.push_left(push, loop.name, wakeup)
            left_s = state.scheduler.now_s + LEAVES_S
            state.scheduler.after(state.way_s(), lambda: self._arrive(push, wakeup, answer, left_s))
        try:
            outcome = await answer
        except asyncio.CancelledError:
            state.witness.push_heard(push, None)
            raise
        state.witness.push_heard(push, outcome)
        state.has_come_to(Stage.ANSWERED, loop)
        if loop.dead:
            await loop.create_future()
        return outcome

    def _arrive(self, push: int, wakeup: Wakeup, answer: asyncio.Future[Outcome], left_s: float) -> None:
        state, loop = self._state, self._loop
        if loop.died_s < left_s:
            return
        if state.troubles.strike(Kind.HANGING, loop.name):
            if state.rng.random() < 0.3:
                state.ask(loop.name, push, wakeup)
            return
        slow = state.troubles.strike(Kind.SLOW, loop.name)
        outcome = state.ask(loop.name, push, wakeup)
        back_s = state.rng.uniform(1, 15) if slow else state.way_s()
        state.scheduler.after(back_s, lambda: loop.post(_settle, answer, outcome))
        state.has_come_to(Stage.TAKEN, loop)

    async def close(self) -> None:
        return


def _settle(answer: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not answer.done():
        answer.set_result(outcome)

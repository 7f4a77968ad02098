"""What the front and its sockets have in common: the plan, what has come of it so far, and the way to the gateway."""

import asyncio
from collections import Counter, defaultdict, deque
from random import Random

from tests.conformance.log import Log
from tests.conformance.plan import Fault, Plan
from tests.conformance.wire import HEAD_BYTES, Message
from tests.conformance.witness import Witness

KEPT_PACKETS = 8


class Conditions:
    """Of one story. `target`: the gateway's port. `behaving`: nothing goes wrong any more. `packets`: the latest that
    came over each client's sockets."""

    def __init__(self, plan: Plan, log: Log, witness: Witness) -> None:
        self.plan = plan
        self.log = log
        self.witness = witness
        self.target = 0
        self.behaving = False
        self.packets: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=KEPT_PACKETS))
        self._revoked: set[str] = set()
        self._occasions: Counter[str] = Counter()

    def revoke(self, token: str) -> None:
        """That token counts no more."""
        self._revoked.add(token)

    def counts(self, token: str) -> bool:
        """Whether a token was not revoked."""
        return token not in self._revoked

    def chosen(self, among: frozenset[Fault], who: str, what: str) -> tuple[Fault | None, Random]:
        """What goes wrong with the next of what a client does of that kind, which is logged; and its chance."""
        occasion = f"{who}:{what}"
        self._occasions[occasion] += 1
        of = (occasion, self._occasions[occasion])
        fault = None if self.behaving else self.plan.fault(among, *of)
        if fault is not None:
            self.log.note(who, f"{what}: {fault}")
        return fault, self.plan.chance(*of)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the gateway."""
        return await asyncio.open_connection("127.0.0.1", self.target, limit=HEAD_BYTES)

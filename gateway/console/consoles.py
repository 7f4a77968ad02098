"""The consoles that this process serves: what all processes tell is gathered, and handed to each as events.

It asks only while there is a console, and each event is encoded once for all of them.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson

from gateway.bus.bus import Bus
from gateway.console.charges import Charges, reading
from gateway.console.messages import ASKED, TOLD, Ask, Tell, message, split
from gateway.console.watched import FACTS_S
from gateway.errors import RateLimited, Unavailable
from gateway.transit.state import ClientId

MOST_CONSOLES = 8
"""How many consoles one process serves at a time."""

MOST_WAITING_BYTES = 16 * 1024 * 1024
"""What may wait for a console that does not read before it is ended: it comes back and is told the hour anew."""

MOST_SAMPLES = 4_096
"""Samples that are handed on at a time: more processes than that, each second, are not shown."""

EVERY_S = 1.0
"""How often a console is told something."""

AFTER_S = 0.25
"""How long after the whole second, at which samples are taken."""

ASK_S = 3.0
"""How often processes are told that somebody looks: they believe it for ten seconds."""

GONE_S = 15.0
"""After so long without facts a process is gone."""

ANSWER_S = 1.0
"""How long processes may take to say what they know of a client."""

log = logging.getLogger(__name__)


class Console:
    """One console: an async iterator of the events that it is still to be told, until it is ended."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, event: bytes) -> None:
        """One more event. A console that has let too much wait is ended instead."""
        self._bytes += len(event)
        if self._bytes > MOST_WAITING_BYTES:
            self.end()
        if not self._ended:
            self._events.append(event)
            self._changed.set()

    def end(self) -> None:
        """Nothing more is told, what waits neither."""
        self._ended = True
        self._events.clear()
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._events:
                event = self._events.popleft()
                self._bytes -= len(event)
                yield event
            if self._ended:
                return


class Answers(NamedTuple):
    """What processes know of a client, by their names, and how many did not say it in time."""

    known: dict[str, dict[str, Any]]
    silent: int


class _Facts(NamedTuple):
    heard_s: float
    backends: object


class Consoles:
    """The consoles of the process called `name`. `clock`: seconds since the epoch; `monotonic`: of one that never goes
    back."""

    def __init__(
        self,
        name: str,
        *,
        bus: Bus,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._bus = bus
        self._clock = clock
        self._monotonic = monotonic
        self._consoles: list[Console] = []
        self._closed = False
        self._opened = asyncio.Event()
        self._samples: list[bytes] = []
        self._facts: dict[str, _Facts] = {}
        self._charges = Charges()

    @contextmanager
    def open(self) -> Iterator[Console]:
        """A console more, until the block ends. Raises RateLimited where there are too many, Unavailable at the end."""
        if self._closed:
            raise Unavailable("this process is about to end")
        if len(self._consoles) >= MOST_CONSOLES:
            raise RateLimited("too many consoles are open at this process already", retry_after_s=5)
        console = Console()
        self._consoles.append(console)
        self._opened.set()
        try:
            yield console
        finally:
            self._consoles.remove(console)

    def close(self) -> None:
        """End every console: the process ends."""
        self._closed = True
        for console in self._consoles:
            console.end()

    async def run(self) -> None:
        """Serve whoever opens a console, until cancelled."""
        while True:
            await self._opened.wait()
            await self._bus.hear(TOLD, self._told)
            try:
                await self._serve()
            finally:
                self._bus.hear_no_more(TOLD, self._told)
                self._samples, self._facts, self._charges = [], {}, Charges()
                if self._consoles:
                    self._opened.set()  # a fault of ours: those that are open are served on

    async def _serve(self) -> None:
        """Until there is no console left: ask, and hand on what is told."""
        asked_s = facts_s = float("-inf")
        while self._consoles or self._opened.is_set():
            if self._opened.is_set():
                self._opened.clear()
                await self._bus.tell(ASKED, message(Ask.HOUR))
                asked_s = self._monotonic()
            elif self._monotonic() >= asked_s + ASK_S:
                await self._bus.tell(ASKED, message(Ask.WATCH))
                asked_s = self._monotonic()
            if not await self._new_one_before_the_turn():
                self._put("samples", self._gathered())
                if self._facts and self._monotonic() >= facts_s + FACTS_S:
                    facts_s = self._monotonic()
                    self._put("facts", self._found())

    async def _new_one_before_the_turn(self) -> bool:
        """Wait until it is time to tell something; whether a console was opened before."""
        left_s = EVERY_S - (self._clock() - AFTER_S) % EVERY_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._opened.wait()
                return True
        return False

    # --- What processes tell

    def _told(self, text: bytes) -> None:
        word, members = split(text)
        match word:
            case Tell.PROCESS:
                self._put("process", members)
            case Tell.SAMPLE if len(self._samples) < MOST_SAMPLES:
                self._samples.append(members)
            case Tell.FACTS:
                self._note(members)

    def _note(self, members: bytes) -> None:
        try:
            facts = orjson.loads(members)
            process, backends = facts["process"], facts["backends"]
            self._charges.add(process, reading(facts))
            self._facts[process] = _Facts(self._monotonic(), backends)
        except (ArithmeticError, ValueError, TypeError, LookupError):
            log.warning("what a process tells consoles cannot be read")

    # --- What consoles are told

    def _put(self, name: str, data: bytes) -> None:
        event = b"event: %b\ndata: %b\n\n" % (name.encode(), data)
        for console in self._consoles:
            console.put(event)

    def _gathered(self) -> bytes:
        samples, self._samples = self._samples, []
        head = orjson.dumps({"at": int(self._clock() * 1000), "here": self._name}).removesuffix(b"}")
        return b'%b,"samples":[%b]}' % (head, b",".join(samples))

    def _found(self) -> bytes:
        oldest_s = self._monotonic() - GONE_S
        self._facts = {name: facts for name, facts in self._facts.items() if facts.heard_s >= oldest_s}
        self._charges.keep(self._facts)
        backends = {name: facts.backends for name, facts in self._facts.items()}
        return orjson.dumps({"at": int(self._clock() * 1000), "backends": backends, "cost": self._charges.told()})

    # --- Clients

    async def ask_for(self, client_id: ClientId) -> Answers:
        """What every process knows of a client, as far as it answers within a second."""
        ask, known, came = secrets.token_hex(8), dict[str, dict[str, Any]](), asyncio.Event()

        def told(text: bytes) -> None:
            word, members = split(text)
            if word == Tell.CLIENT and (answer := _parsed(members)).pop("ask", None) == ask:
                known[answer["process"]] = answer
                came.set()

        await self._bus.hear(TOLD, told)
        try:
            asked = await self._bus.tell(ASKED, message(Ask.CLIENT, {"ask": ask, "client_id": client_id}))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    while len(known) < asked:
                        await came.wait()
                        came.clear()
        finally:
            self._bus.hear_no_more(TOLD, told)
        return Answers(known, max(asked - len(known), 0))


def _parsed(members: bytes) -> dict[str, Any]:
    """Members as they came; none where they cannot be read."""
    try:
        found = orjson.loads(members)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

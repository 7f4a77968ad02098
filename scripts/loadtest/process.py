"""One process of the load: its share of the phones, from the first to the last, and what it tells the parent."""

import asyncio
import contextlib
import gc
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

import uvloop

from gateway.api.auth import issue_token
from gateway.client.record import Platform, Registration
from scripts.loadtest.connections import Pools
from scripts.loadtest.days import Day, day_of
from scripts.loadtest.options import Kind, Options, shares
from scripts.loadtest.phone import Phone, World
from scripts.loadtest.pushes import Arrival, Streams, arriving, push_token
from scripts.loadtest.schedule import due_times
from scripts.loadtest.tally import Count, Opening, Tally
from scripts.loadtest.usage import of_this_process
from scripts.loadtest.verifying import farewells, verify
from scripts.loadtest.videos import Book

SAMPLE_S = 1.0
"""How often the parent is told how it goes."""

LATE_S = 0.1
"""How often it is looked whether the event loop is behind."""

REST_S = 0.1
"""How often it is looked whether everything has come to rest."""

HURRY_S = 5.0
"""How long that may take where somebody wants the test to end."""

DEAD_S = 60.0
"""A socket that has brought nothing for so long, pings included, is taken for dead, as the protocol says."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What makes the phones' tokens."""

    secret: str = field(repr=False)
    audience: str | None
    issuer: str | None

    def issue(self, client_id: str, ttl_s: float) -> str:
        """A token of that client."""
        now_s = time.time()
        return issue_token(self.secret, client_id, ttl_s=ttl_s, now=now_s, audience=self.audience, issuer=self.issuer)


@dataclass(frozen=True, slots=True)
class Orders:
    """What one process is to do. `mark`: what the names of the run's clients begin with. `source`: the address of this
    machine that its connections come from. `pushes`: where the simulators hand pushes on; None: the gateway's console
    shows them. `platforms`: of the phones' registrations."""

    number: int
    options: Options
    address: str
    tokens: Tokens
    mark: str
    source: str | None
    pushes: str | None
    platforms: tuple[Platform, ...]

    @property
    def phones(self) -> list[tuple[int, Kind]]:
        """The number of each phone of this process, and its kind."""
        kinds = kinds_of(self.options)
        return [(number, kinds[number]) for number in range(self.number, len(kinds), self.options.processes)]


def kinds_of(options: Options) -> list[Kind]:
    """What each phone of a test is. Of those of each process, one sends."""
    kinds = shares(options.mix, options.phones)
    random.Random(options.seed).shuffle(kinds)
    for first in range(options.processes):
        if not any(kind.sends for kind in kinds[first :: options.processes]):
            kinds[first] = next(kind for kind in options.mix if kind.sends)
    return kinds


@dataclass(frozen=True, slots=True)
class Word:
    """What a process says beside its samples. `text`: why it gives up."""

    kind: Literal["ready", "settling", "verifying", "done", "failed"]
    text: str = ""


def work(orders: Orders, pipe: "Connection[Any, Any]") -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent is gone
        uvloop.run(_run(orders, pipe))


async def _run(orders: Orders, pipe: "Connection[Any, Any]") -> None:
    process = Process(orders, pipe)
    try:
        async with process.hearing():
            pipe.send(Word("ready"))
            began_s: float = await asyncio.to_thread(pipe.recv)
            await process.test(began_s)
        pipe.send(Word("done"))
    finally:
        process.close()


class Process:
    """The phones of a process, and what happens to all of them."""

    def __init__(self, orders: Orders, pipe: "Connection[Any, Any]") -> None:
        options = orders.options
        self._orders = orders
        self._options = options
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(f"{options.seed} {orders.number}")
        self._tally = Tally()
        self._stopped = asyncio.Event()
        self._began_s = 0.0
        self._looked_s = 0.0
        pools = Pools(orders.address, source=orders.source, anywhere=options.anywhere)
        book = Book[Phone](self._tally, self._rng, mark=f"v{orders.number}", size=options.video_bytes)
        self._world = World(pools, self._tally, book, self._rng, options.downloads, self._give_up)
        self._streams = Streams(pools.dialler, pools.gateway.origin)
        self._phones = [self._phone(number, kind) for number, kind in orders.phones]
        self._days = [day_of(phone) for phone in self._phones]
        self._there: list[Phone] = []
        self._tokens: dict[str, Day] = {}
        book.introduce(self._phones)

    def _phone(self, number: int, kind: Kind) -> Phone:
        name = f"{self._orders.mark}-{number}"
        return Phone(self._world, name, kind, self._orders.tokens.issue(name, self._options.longest_s))

    # --- From the first phone to the last

    async def test(self, began_s: float) -> None:
        """All of it. `began_s`: when it begins, by `time.monotonic`."""
        self._began_s = began_s
        self._loop.add_reader(self._pipe.fileno(), self._told)
        self._looked_s = time.monotonic()
        self._sample()
        samples = _ticking(SAMPLE_S, self._sample, from_s=began_s)
        async with samples, _ticking(LATE_S, self._look, from_s=self._looked_s):
            await self._traffic()
            self._pipe.send(Word("settling"))
            await self._settle()
            self._pipe.send(Word("verifying"))
            await verify(self._world, self._there)
            if self._options.address is not None and not self._options.keep_accounts:
                await farewells(self._world, self._there)
        self._loop.remove_reader(self._pipe.fileno())
        self._sample()

    async def _traffic(self) -> None:
        options = self._options
        storms = [self._began_s + options.ramp_s + at_s for at_s in options.storms_s]
        timers = [self._loop.call_later(at_s - time.monotonic(), self._storm) for at_s in storms]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ramp())
            tasks.create_task(self._send())
        for timer in timers:
            timer.cancel()

    async def _ramp(self) -> None:
        """The phones come, one after the other."""
        options = self._options
        for index, (phone, day) in enumerate(zip(self._phones, self._days, strict=True)):
            if await self._until(self._began_s + options.ramp_s * index / len(self._phones)):
                return
            self._start(phone, day)
        # What is there now stays: a collection that looks at all of it takes as long as many calls.
        gc.collect()
        gc.freeze()

    def _start(self, phone: Phone, day: Day) -> None:
        self._there.append(phone)
        self._world.book.present(phone)
        registration = None
        if phone.kind.woken:
            platform = self._orders.platforms[len(self._tokens) % len(self._orders.platforms)]
            token = push_token(platform, self._orders.number, phone.name)
            self._tokens[token] = day
            registration = Registration(platform, token)
            if self._orders.pushes is None:
                self._streams.listen(phone.caller.pushes(), partial(self._arrived, phone, day))
        phone.start(registration)
        day.begin()

    async def _send(self) -> None:
        """Videos begin when they are due, however the gateway is doing."""
        options = self._options
        rate = options.rate / options.processes
        for due_s in due_times(
            rate=rate, ramp_s=options.ramp_s, seconds=options.seconds, even=options.even, rng=self._rng
        ):
            if await self._until(self._began_s + due_s):
                return
            video = self._world.book.begin(self._began_s + due_s)
            if video is not None:
                video.sender.send(video)
        await self._until(self._began_s + options.ramp_s + options.seconds)

    async def _until(self, at_s: float) -> bool:
        """Wait until then; whether it is all to stop before."""
        if at_s > time.monotonic():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(at_s - time.monotonic()):
                    await self._stopped.wait()
        return self._stopped.is_set()

    def _storm(self) -> None:
        for phone in self._there:
            phone.line.cut(Opening.STORM)

    async def _settle(self) -> None:
        """What has begun comes to its end, as far as there is time for it."""
        for day in self._days:
            day.settle()
        began_s = time.monotonic()
        for _ in range(round(self._options.settle_s / REST_S)):
            if self._at_rest or (self._stopped.is_set() and time.monotonic() > began_s + HURRY_S):
                return
            await asyncio.sleep(REST_S)

    @property
    def _at_rest(self) -> bool:
        back = all(phone.line.deliveries is not None for phone in self._there if phone.kind.connected)
        return back and not self._world.book.left

    # --- What comes

    @asynccontextmanager
    async def hearing(self) -> AsyncIterator[None]:
        """Hear of pushes until the block ends."""
        if self._orders.pushes is None:
            yield
        else:
            async with arriving(self._orders.pushes, self._orders.number, self._pushed):
                yield

    def _pushed(self, token: str, arrival: Arrival) -> None:
        if (day := self._tokens.get(token)) is not None:
            self._arrived(day.phone, day, arrival)

    def _arrived(self, phone: Phone, day: Day, arrival: Arrival | None) -> None:
        if arrival is None:
            phone.pushed(None)  # whatever it has missed, as its provider would have kept that
            return
        self._tally.count(Count.PUSHES)
        if arrival.packet is not None and not phone.kind.connected:
            self._world.book.pushed(arrival.packet, arrival.at_s)
        day.pushed(arrival.packet)

    def _told(self) -> None:
        """The parent says that it is to stop, or is gone."""
        with contextlib.suppress(EOFError):
            self._pipe.recv()
        self._loop.remove_reader(self._pipe.fileno())
        self._stopped.set()

    def _give_up(self, why: str) -> None:
        if not self._stopped.is_set():
            self._pipe.send(Word("failed", why))
            self._stopped.set()

    # --- What it says

    def _sample(self) -> None:
        now_s = time.monotonic()
        sample = self._tally.take(now_s)
        sample.phones = len(self._there)
        sample.sockets = sum(phone.line.deliveries is not None for phone in self._there)
        sample.usage = of_this_process()
        self._pipe.send(sample)
        for phone in self._there:
            heard_s = phone.line.heard_s
            if heard_s is not None and heard_s < now_s - DEAD_S:
                phone.line.cut(Opening.OTHER)

    def _look(self) -> None:
        now_s = time.monotonic()
        self._tally.late(now_s - self._looked_s - LATE_S)
        self._looked_s = now_s

    def close(self) -> None:
        """Switch everything off."""
        self._streams.close()
        for phone in self._phones:
            phone.end()
        self._world.pools.close()


@asynccontextmanager
async def _ticking(every_s: float, tick: Callable[[], None], *, from_s: float) -> AsyncIterator[None]:
    """Call `tick` at each multiple of `every_s` after `from_s`, until the block ends."""

    async def go_on() -> None:
        while True:
            left_s = every_s - (time.monotonic() - from_s) % every_s
            # A timer may be a little early.
            await asyncio.sleep(left_s if left_s > every_s / 10 else left_s + every_s)
            tick()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""A load test, from the first process to the report: what the parent of the processes does."""

import asyncio
import contextlib
import multiprocessing
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import httpx

from scripts.loadtest.course import STOPPED, Course
from scripts.loadtest.options import Options, Refused, check_descriptors, loopback
from scripts.loadtest.process import Orders, Word, work
from scripts.loadtest.tally import Sample
from scripts.loadtest.target import Target, target_of

READY_S = 60.0
"""How long the processes of the load may take to make their phones, beside 1 s for each 1000 of them."""

LEAD_S = 0.3
"""All processes begin so long after they were told when."""

USAGE_S = 1.0
"""How often it is looked what the gateway's processes use."""

SLACK_S = 90.0
"""How much longer than planned a process of the load may take before it is taken to hang."""

Tell = Callable[[Course, str], None]
"""Told how it goes, and in which stage it is."""


class _Member:
    """One process of the load."""

    def __init__(self, orders: Orders) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = orders.number
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(orders, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.stage = "starting"


async def run(options: Options, tell: Tell) -> Course:
    """All of it. Raises Refused for what cannot be done."""
    check_descriptors(options, arrivals=options.address is not None)
    async with target_of(options) as target:
        course = Course(options, target.address)
        crew = _Crew(options, target, course, tell)
        try:
            await crew.run()
        finally:
            crew.close()
        if target.own is not None:
            course.said = target.own.said
        return course


class _Crew:
    """All processes of the load, and what is done beside them."""

    def __init__(self, options: Options, target: Target, course: Course, tell: Tell) -> None:
        self._options = options
        self._target = target
        self._course = course
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._stirred = asyncio.Event()
        self._killed = False
        mark = f"load-{secrets.token_hex(3)}"
        local = loopback(httpx.URL(target.address).host)
        self._members = [_Member(self._orders(number, mark, local=local)) for number in range(options.processes)]

    def _orders(self, number: int, mark: str, *, local: bool) -> Orders:
        target = self._target
        source = f"127.0.{(number + 2) // 256}.{(number + 2) % 256}" if local else None
        return Orders(
            number, self._options, target.address, target.tokens, mark, source, target.pushes, target.platforms
        )

    async def run(self) -> None:
        """From the first word of all processes to the last."""
        for member in self._members:
            self._loop.add_reader(member.pipe.fileno(), self._heard, member)
        await self._all("ready", READY_S + self._options.phones / 1000)
        course = self._course
        course.began_s = time.monotonic() + LEAD_S
        for member in self._members:
            member.pipe.send(course.began_s)
        async with self._interruptible(), _beside(self._watch()), _beside(self._restarts()):
            longest_s = self._options.total_s + self._options.settle_s + SLACK_S
            await self._all("done", longest_s + self._options.phones / 100)
        course.ended_s = time.monotonic()

    async def _all(self, stage: str, within_s: float) -> None:
        """Wait until all are in that stage, or have given up. Raises Refused for those that hang, or have died."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._killed and any(member.stage not in {stage, "done", "dead"} for member in self._members):
                    self._stirred.clear()
                    await self._stirred.wait()
        if self._killed:
            raise KeyboardInterrupt
        if any(member.stage == "dead" for member in self._members):
            raise Refused("a process of the load has died")
        if any(member.stage not in {stage, "done"} for member in self._members):
            raise Refused(f"a process of the load hangs: it is {self.stage}")

    @property
    def stage(self) -> str:
        """What the last of them is doing."""
        order = ("starting", "ready", "settling", "verifying", "done", "dead")
        return min((member.stage for member in self._members), key=order.index)

    def _heard(self, member: _Member) -> None:
        try:
            said: Sample | Word = member.pipe.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(member.pipe.fileno())
            member.stage = member.stage if member.stage == "done" else "dead"
            self._stirred.set()
            return
        match said:
            case Sample():
                self._course.add(member.number, said)
            case Word("failed", text):
                if text not in self._course.gave_up:
                    self._course.gave_up.append(text)
                self._stop()
            case Word(stage):
                member.stage = stage
        self._stirred.set()

    # --- Beside

    @asynccontextmanager
    async def _interruptible(self) -> AsyncIterator[None]:
        """The first Ctrl-C ends the test early, the second at once."""
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                self._killed = True
                self._stirred.set()
                return
            interrupted = True
            self._course.mark(time.monotonic(), STOPPED)
            self._stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self._over.set()
        for member in self._members:
            with contextlib.suppress(OSError):
                member.pipe.send("stop")

    async def _watch(self) -> None:
        """What processes use, and how it goes."""
        course, options = self._course, self._options
        storms = [course.began_s + options.ramp_s + at_s for at_s in options.storms_s]
        async with httpx.AsyncClient(timeout=USAGE_S, trust_env=False) as http:
            while True:
                course.used(time.monotonic(), await self._target.usage(http))
                self._tell(course, self.stage)
                while storms and storms[0] <= time.monotonic() and not self._over.is_set():
                    course.mark(storms.pop(0), "storm")
                await asyncio.sleep(USAGE_S)

    async def _restarts(self) -> None:
        course, options = self._course, self._options
        for at_s in options.restarts_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(course.began_s + options.ramp_s + at_s - time.monotonic()):
                    await self._over.wait()
            if self._over.is_set():
                return
            course.mark(time.monotonic(), "restart")
            try:
                await self._target.restart()
            except Refused as refused:
                course.gave_up.append(str(refused))
                self._stop()
                return
            course.mark(time.monotonic(), "restarted")

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for member in self._members:
            self._loop.remove_reader(member.pipe.fileno())
            member.pipe.close()
        for member in self._members:
            member.process.join(3)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Something that goes on until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

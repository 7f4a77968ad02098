"""`scripts/conformance`: a gateway that misbehaves on purpose, by seed, and a client that has to get along with it.

What the client is told and asked, what is looked at, and how a failed seed is read: docs/conformance.md.
"""

# ruff: noqa: T201 - what it prints is what it is for

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import uvloop

from tests.conformance import story
from tests.conformance.log import Log
from tests.conformance.plan import plan_of
from tests.conformance.process import NotStarted
from tests.conformance.witness import Finding


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a seed: what was found, and all that happened."""

    seed: int
    seconds: float
    findings: tuple[Finding, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        found = "; ".join(map(str, self.findings))
        return f"seed {self.seed}: {found or 'all is well'} ({self.seconds:.1f} s)"


async def try_seed(seed: int, seconds: float, command: Sequence[str]) -> Verdict:
    """Tell the story of a seed. Raises NotStarted, in groups."""
    log = Log()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        findings = await story.tell(plan_of(seed, seconds), command, Path(folder), log)
    return Verdict(seed, log.now_s, tuple(findings), tuple(log.lines))


async def try_seeds(
    seeds: range, seconds: float, jobs: int, command: Sequence[str], show: Callable[[Verdict], None]
) -> None:
    """Try them, so many at a time, and show each when it is done."""
    room = asyncio.Semaphore(jobs)

    async def tried(seed: int) -> None:
        async with room:
            show(await try_seed(seed, seconds, command))

    async with asyncio.TaskGroup() as group:
        for seed in seeds:
            group.create_task(tried(seed))


def until_told_to_stop(work: Awaitable[None]) -> int:
    """Do it; the exit code. A signal ends it in order: clients are killed, folders removed."""
    stopped: list[int] = []

    def stop(number: int, task: asyncio.Future[None]) -> None:
        stopped.append(number)
        task.cancel()

    async def main() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number, task)
        await task

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except asyncio.CancelledError:
        return 128 + stopped[0]
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/conformance", description=__doc__, usage="%(prog)s [options] -- COMMAND…"
    )
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument("--from", type=int, default=0, metavar="S", dest="first", help="the first of them (default: 0)")
    parser.add_argument("--seconds", type=float, default=6, metavar="T", help="of misbehaviour in each (default: 6)")
    parser.add_argument("--jobs", type=int, default=4, metavar="J", help="stories at a time (default: 4)")
    parser.add_argument("--log", action="store_true", help="tell the stories of seeds that go well, too")
    parser.add_argument("command", nargs="+", help="how the client is started")
    return parser.parse_args(arguments)


@dataclass(slots=True)
class Tally:
    """How many seeds were tried, and which of them went wrong. Each is shown, and its story told where it went wrong,
    or where `tells_all`."""

    tells_all: bool
    shown: TextIO
    done: int = 0
    wrong: list[int] = field(default_factory=list)

    def show(self, verdict: Verdict) -> None:
        self.done += 1
        if verdict.findings:
            self.wrong.append(verdict.seed)
        print(verdict, file=self.shown, flush=True)
        if verdict.findings or self.tells_all:
            print("\n".join([f"--- seed {verdict.seed}", *verdict.lines, ""]), file=sys.stderr, flush=True)

    def __str__(self) -> str:
        what = f"{len(self.wrong)} went wrong: {sorted(self.wrong)}" if self.wrong else "all is well"
        return f"{self.done} seeds: {what}"


def innermost(errors: BaseException) -> BaseException:
    """The first error of a group, however deep it is."""
    return innermost(errors.exceptions[0]) if isinstance(errors, BaseExceptionGroup) else errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 where the client did everything right, 1 where it did not, 2 where it cannot be tried at all;
    130 and 143 after a signal."""
    given = parsed(arguments)
    tally = Tally(given.log, sys.stdout)
    seeds = range(given.first, given.first + given.seeds)
    # What the gateway says of broken connections, and of pushes, is what was meant to happen.
    logging.disable(logging.CRITICAL)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            code = until_told_to_stop(try_seeds(seeds, given.seconds, given.jobs, given.command, tally.show))
    except ExceptionGroup as errors:
        if not errors.subgroup(NotStarted):
            raise
        print(f"scripts/conformance: the client cannot be started: {innermost(errors)}", file=sys.stderr)
        return 2
    finally:
        logging.disable(logging.NOTSET)
    print(f"stopped early; {tally}" if code else tally)
    return code or bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())

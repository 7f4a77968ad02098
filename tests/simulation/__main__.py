"""`python -m tests.simulation`: as many stories as one likes, each from its seed; the first that goes wrong is told."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.simulation import world
from tests.simulation.plan import Plan, plan_of
from tests.simulation.shrink import shrink

BATCH = 10
"""Seeds that a process takes at a time."""


@dataclass(frozen=True, slots=True)
class Round:
    """What became of some seeds: how many steps they took, and those that went wrong, with what."""

    seeds: int
    steps: int
    wrong: tuple[tuple[int, str], ...]


def tried(seeds: range) -> Round:
    """Run these, up to the first that goes wrong."""
    steps = 0
    for count, seed in enumerate(seeds, 1):
        outcome = world.run(plan_of(seed))
        steps += outcome.steps
        if outcome.violation is not None:
            return Round(count, steps, ((seed, outcome.violation),))
    return Round(len(seeds), steps, ())


def rounds(first: int, count: int, jobs: int) -> Iterator[Round]:
    """Run `count` seeds from `first` on."""
    gc.freeze()  # what is there already is not to be gone through at the end of every story
    batches = [range(start, min(start + BATCH, first + count)) for start in range(first, first + count, BATCH)]
    if jobs == 1:
        yield from map(tried, batches)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(tried, batches)


def told(seed: int, *, shorten: bool) -> str:
    """The story of a seed; of one that goes wrong, the shortest that goes wrong in the same way."""
    plan = plan_of(seed)
    outcome = world.run(plan)
    if outcome.violation is None or not shorten:
        return _story(plan, outcome)

    def still(shorter: Plan) -> bool:
        return world.run(shorter).violation == outcome.violation

    short = shrink(plan, still)
    head = f"{len(plan.happenings)} things happen in this story; {len(short.happenings)} of them are enough:\n\n"
    return head + _story(short, world.run(short))


def _story(plan: Plan, outcome: world.Outcome) -> str:
    return "\n".join([f"seed {plan.seed}: {outcome.violation or 'all is well'}", str(plan), "", *outcome.story()])


def progress(results: Iterable[Round], count: int) -> tuple[int, list[tuple[int, str]]]:
    """Follow them, a line every few seconds (on a terminal one that is written over), up to the first that went wrong;
    how many seeds were run, and which went wrong."""
    began = shown = time.monotonic()
    seeds = steps = 0
    terminal = sys.stderr.isatty()
    wrong: list[tuple[int, str]] = []
    for result in results:
        seeds, steps = seeds + result.seeds, steps + result.steps
        wrong += result.wrong
        now = time.monotonic()
        if wrong or seeds == count or now - shown >= (0.2 if terminal else 10):
            shown = now
            rate = f"{seeds / (now - began):.0f} seeds and {steps / (now - began):,.0f} steps a second"
            line = f"{seeds:,} of {count:,} seeds, {steps:,} steps, {rate}"
            print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        if wrong:
            break
    if terminal:
        print(file=sys.stderr)
    return seeds, wrong


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 where all went well."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--from", type=int, default=0, metavar="S", dest="first", help="the first of them (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: cores)")
    parser.add_argument("--story", type=int, metavar="S", help="tell the story of this seed, whatever becomes of it")
    parser.add_argument("--whole", action="store_true", help="do not shorten a story that goes wrong")
    given = parser.parse_args(arguments)
    if given.story is not None:
        print(told(given.story, shorten=not given.whole))
        return 0
    seeds, wrong = progress(rounds(given.first, given.seeds, given.jobs), given.seeds)
    if not wrong:
        print(f"all is well in {seeds:,} stories, seeds {given.first} to {given.first + given.seeds - 1}")
        return 0
    seed, violation = min(wrong)
    print(f"seed {seed} goes wrong: {violation}")
    if not given.whole:
        print(told(seed, shorten=True))
    print(f"\nscripts/simulate --story {seed} tells it again")
    return 1


if __name__ == "__main__":
    sys.exit(main())

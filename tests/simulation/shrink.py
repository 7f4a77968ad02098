"""From a long story that went wrong to a short one: the same violation with as little as possible happening."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.plan import Happening, Plan

MOST_RUNS = 400
"""So many stories are tried."""


def shrink(plan: Plan, still: Callable[[Plan], bool], *, most_runs: int = MOST_RUNS) -> Plan:
    """The shortest plan found that is `still` wrong in the same way: parts of it are left out, large ones first, for as
    long as that goes well (delta debugging: Zeller and Hildebrandt, 2002)."""
    runs = 0

    def wrong(happenings: Sequence[Happening]) -> bool:
        nonlocal runs
        runs += 1
        return still(replace(plan, happenings=tuple(happenings)))

    kept = list(plan.happenings)
    size = max(1, len(kept) // 2)
    while runs < most_runs:
        before = len(kept)
        start = len(kept)  # from the end: what came last is the least likely to matter to what came before
        while start > 0 and runs < most_runs:
            start = max(0, start - size)
            rest = kept[:start] + kept[start + size :]
            if len(rest) < len(kept) and wrong(rest):
                kept = rest
        if size == 1 and len(kept) == before:
            break
        size = max(1, size // 2)
    return replace(plan, happenings=tuple(kept))

"""When videos are due."""

import random
from itertools import pairwise

import pytest

from scripts.loadtest.schedule import due_times


@pytest.mark.parametrize("even", [True, False])
def test_as_many_are_due_as_the_rate_says(even: bool) -> None:
    times = list(due_times(rate=100, ramp_s=10, seconds=20, even=even, rng=random.Random(1)))
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 30
    ramped = sum(at < 10 for at in times)
    assert ramped == pytest.approx(500, abs=1 if even else 100)
    assert len(times) - ramped == pytest.approx(2000, abs=1 if even else 200)
    assert sum(at < 5 for at in times) == pytest.approx(125, abs=1 if even else 50)


def test_even_ones_are_evenly_spaced() -> None:
    times = list(due_times(rate=50, ramp_s=0, seconds=2, even=True, rng=random.Random(1)))
    assert all(after - before == pytest.approx(0.02) for before, after in pairwise(times))


def test_a_seed_says_when() -> None:
    first, second = (list(due_times(rate=9, ramp_s=1, seconds=9, even=False, rng=random.Random(4))) for _ in range(2))
    assert first == second

"""A histogram says what the values themselves would, to within what it promises."""

import math
import random

import pytest

from scripts.loadtest.histogram import Histogram, merged

PERCENTS = (0.1, 1, 25, 50, 75, 90, 99, 99.9, 99.99, 100)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def exact(values: list[float], percent: float) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@pytest.mark.parametrize("spread", [1e-5, 1e-3, 1.0, 100.0])
def test_percentiles_are_those_of_the_values(spread: float) -> None:
    rng = random.Random(spread)
    values = [rng.lognormvariate(0, 2) * spread for _ in range(10_000)]
    for percent, found in zip(PERCENTS, filled(values).percentiles_s(PERCENTS), strict=True):
        assert found == pytest.approx(exact(values, percent), rel=0.017, abs=1.1e-6)


def test_the_most_is_exact() -> None:
    assert filled([0.1, 7.123456, 0.2]).percentile_s(100) == 7.123456


def test_of_nothing_nothing_is_known() -> None:
    assert math.isnan(Histogram().percentile_s(50))


def test_negative_values_count_as_none() -> None:
    assert filled([-1.0, -0.5]).percentile_s(50) == 0


def test_together_they_say_what_one_would() -> None:
    rng = random.Random(1)
    values = [rng.expovariate(10) for _ in range(2_000)]
    together = merged([filled(values[::2]), filled(values[1::2])])
    assert list(together.percentiles_s(PERCENTS)) == list(filled(values).percentiles_s(PERCENTS))
    assert together.count == 2_000
    assert together.sum_s == pytest.approx(sum(values))

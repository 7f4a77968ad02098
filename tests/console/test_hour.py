import itertools

from gateway.console.hour import HOUR_MS, STEP_MS, Hour


def samples(rows: list[list[int]]) -> list[list[int]]:
    """The rows as they were added."""
    return list(itertools.accumulate(rows, lambda before, row: [a + b for a, b in zip(before, row, strict=True)]))


def test_the_first_row_stands_and_the_others_are_differences() -> None:
    hour = Hour()
    hour.add(STEP_MS, [5, 100])
    hour.add(2 * STEP_MS, [7, 90])
    hour.add(3 * STEP_MS, [7, 90])
    assert hour.rows() == [[STEP_MS, 5, 100], [STEP_MS, 2, -10], [STEP_MS, 0, 0]]


def test_each_step_has_one_sample_the_first() -> None:
    hour = Hour()
    for at in range(0, 3 * STEP_MS, 1000):
        hour.add(at, [at])
    assert samples(hour.rows()) == [[step * STEP_MS, step * STEP_MS] for step in range(3)]


def test_after_an_hour_the_oldest_go() -> None:
    hour = Hour()
    for step in range(1000):
        hour.add(step * STEP_MS, [step])
    found = samples(hour.rows())
    assert len(found) == HOUR_MS // STEP_MS
    assert found[-1] == [999 * STEP_MS, 999]
    assert found[-1][0] - found[0][0] == HOUR_MS - STEP_MS


def test_an_empty_hour_has_no_rows() -> None:
    assert Hour().rows() == []

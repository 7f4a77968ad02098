"""What the tests of the stores share: a clock that they set."""

import pytest

START_S = 1_750_000_000.0


class SetClock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()

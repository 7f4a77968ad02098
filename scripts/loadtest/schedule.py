"""When videos are due: an open loop, which does not ask how the gateway is doing. Pure."""

import math
import random
from collections.abc import Iterator


def due_times(*, rate: float, ramp_s: float, seconds: float, even: bool, rng: random.Random) -> Iterator[float]:
    """Seconds after the beginning: while phones come, for `ramp_s`, at a rate that grows with them, then `rate` a
    second for `seconds`. At random (a Poisson process), or evenly spaced."""
    ramped = rate * ramp_s / 2
    most = ramped + rate * seconds
    expected = rng.random() if even else rng.expovariate(1)
    while expected < most:
        yield math.sqrt(2 * ramp_s * expected / rate) if expected < ramped else (expected - ramped) / rate + ramp_s
        expected += 1 if even else rng.expovariate(1)

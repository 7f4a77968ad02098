"""A histogram of latencies that needs little room whatever comes: buckets that grow with what they hold, as HDR
histograms have them (Gil Tene). A value is known to within 1.6 %."""

import math
from collections.abc import Iterable, Iterator

_BITS = 5
_STEPS = 1 << _BITS
"""Buckets for each doubling: the middle of one is at most half of 1/32 away from what it holds."""

US = 1e6


class Histogram:
    """Counts values in seconds, to the microsecond; negative ones count as 0."""

    __slots__ = ("count", "counts", "most_s", "sum_s")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0
        self.most_s = 0.0

    def add(self, value_s: float) -> None:
        """One value more."""
        bucket = _bucket(max(0, int(value_s * US)))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += value_s
        self.most_s = max(self.most_s, value_s)

    def merge(self, other: "Histogram") -> None:
        """All that `other` has as well."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s
        self.most_s = max(self.most_s, other.most_s)

    def percentile_s(self, percent: float) -> float:
        """The value that so many percent do not exceed; NaN where there is none."""
        return next(iter(self.percentiles_s((percent,))))

    def percentiles_s(self, percents: Iterable[float]) -> Iterator[float]:
        """Likewise for several, in ascending order."""
        buckets = iter(sorted(self.counts.items()))
        so_far, bucket = 0, 0
        for percent in percents:
            if not self.count:
                yield math.nan
                continue
            rank = max(1, math.ceil(self.count * percent / 100))
            while so_far < rank:
                bucket, count = next(buckets)
                so_far += count
            yield self.most_s if rank == self.count else min(_middle_us(bucket) / US, self.most_s)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them together."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _bucket(us: int) -> int:
    """Values below 64 µs have a bucket each; from there on each doubling has 32."""
    shift = max(0, us.bit_length() - _BITS - 1)
    return (shift << _BITS) + (us >> shift)


def _middle_us(bucket: int) -> float:
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS)) + 0.5) * (1 << shift) if shift else float(bucket)

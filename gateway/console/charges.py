"""What the stores of all processes cost so far, and at this pace in a month: what `gateway cost` says."""

from collections import deque
from collections.abc import Collection, Mapping
from decimal import Decimal
from functools import cache

from gateway.cost import Bill, Prices, bill
from gateway.readings import Kind, Reading, Used, between, since_start

PACE_S = 60
"""How far back the pace is taken from."""

_DAYS = Decimal(1)
"""How long a video's bytes lie in S3: as `gateway cost` assumes unless it is told."""


class Charges:
    """What each process had counted in the last minute, again and again."""

    def __init__(self) -> None:
        self._readings: dict[str, deque[Reading]] = {}

    def add(self, process: str, newest: Reading) -> None:
        """This is what a process has counted by now."""
        readings = self._readings.setdefault(process, deque())
        readings.append(newest)
        while len(readings) > 1 and readings[1].at_s <= newest.at_s - PACE_S:
            readings.popleft()

    def keep(self, processes: Collection[str]) -> None:
        """The other processes are gone."""
        self._readings = {name: readings for name, readings in self._readings.items() if name in processes}

    def told(self) -> dict[str, object] | None:
        """The cost as the console's page is told; None where nothing here has a price."""
        so_far = bill(
            since_start({name: readings[-1] for name, readings in self._readings.items()}), _prices(), days=_DAYS
        )
        if so_far.total.dollars is None:
            return None
        return {
            "dollars": float(so_far.total.dollars),
            "seconds": _plain(so_far.seconds),
            "per_month": _plain(bill(self._pace(), _prices(), days=_DAYS).total.per_month),
            "per_million_videos": _plain(so_far.total.per_million_videos),
            "prices": f"{so_far.prices.name}, {so_far.prices.checked}",
            "stores": [{"store": store, "dollars": float(dollars)} for store, dollars in _by_store(so_far).items()],
        }

    def _pace(self) -> Used:
        """How fast the processes count: each over its own time, since none is heard of at the same moment."""
        per_s: dict[Kind, Decimal] = {}
        for name, readings in self._readings.items():
            for kind, count in between({name: readings[0]}, {name: readings[-1]}).per_s.items():
                per_s[kind] = per_s.get(kind, Decimal(0)) + count
        return Used(None, len(self._readings), per_s, per_s)


def _by_store(found: Bill) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for row in found.rows:
        if row.dollars is not None:
            sums[row.store] = sums.get(row.store, Decimal(0)) + row.dollars
    return sums


def _plain(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


@cache
def _prices() -> Prices:
    return Prices.built_in()


def reading(members: Mapping[str, object]) -> Reading:
    """What a process had counted, as its facts tell it. Raises ValueError, TypeError or LookupError."""
    counts = members["counts"]
    if not isinstance(counts, list):
        raise TypeError("counts")
    return Reading(
        Decimal(str(members["at_s"])),
        Decimal(str(members["started_s"])),
        {Kind(metric, store, what): Decimal(str(count)) for metric, store, what, count in counts},
    )

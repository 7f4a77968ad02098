"""What a plan is, and how its dollars are added up. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from gateway.cost import MILLION, MONTH_S
from gateway.readings import Kind
from scripts.costing.demand import Demand
from scripts.costing.inputs import GB, TB, TIERS, Inputs, Unreckonable

HOURS = Decimal(MONTH_S) / 3600
"""Of a month."""

BYTES_OUT = "video bytes out"
"""The line that counts most."""


def whole(count: Decimal) -> str:
    """To read: a number."""
    return f"{count:,.0f}"


def tenths(count: Decimal) -> str:
    """To read: a small number."""
    return f"{count:,.1f}"


def millions(count: Decimal) -> str:
    """To read: a large number."""
    return f"{count / MILLION:,.1f} M"


def size(count: Decimal) -> str:
    """To read: so many bytes."""
    for unit, least in (("PB", TB * 1024), ("TB", TB), ("GB", GB)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / GB * 1024:,.0f} MB"


class Figure:
    """One number or several, or words, that go together; `form` writes numbers for people."""

    def __init__(self, *values: Decimal | int | str, form: Callable[[Decimal], str] = whole) -> None:
        self.values = tuple(value if isinstance(value, str) else Decimal(value) for value in values)
        self._form = form

    def __str__(self) -> str:
        return ", ".join(value if isinstance(value, str) else self._form(value) for value in self.values)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a preset takes, by name; what it costs, in dollars a month, by line.

    `refused`: why it does not fit; then nothing is said of what it costs. `remarks`: what else to know.
    """

    preset: str
    demand: Demand
    figures: Mapping[str, Figure]
    dollars: Mapping[str, Decimal]
    refused: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def total(self) -> Decimal:
        return sum(self.dollars.values(), Decimal(0))

    @property
    def per_thousand(self) -> Decimal:
        return self.total / self.demand.users * 1000

    @property
    def share_of_bytes(self) -> Decimal:
        return self.dollars[BYTES_OUT] / self.total if self.total else Decimal(0)


@dataclass(slots=True)
class Sheet:
    """Lines, while they are added up."""

    inputs: Inputs
    dollars: dict[str, Decimal] = field(default_factory=dict)

    def add(self, line: str, kind: Kind, count: Decimal) -> None:
        price = self.inputs.prices.of(kind)
        if price is None:
            raise Unreckonable(f"there is no price for {kind.store} {kind.what}")
        self.dollars[line] = self.dollars.get(line, Decimal(0)) + count * price

    def units(self, line: str, store: str, unit: str, count: Decimal) -> None:
        self.add(line, Kind("units", store, unit), count)

    def requests(self, line: str, store: str, call: str, count: Decimal) -> None:
        self.add(line, Kind("requests", store, call), count)

    def machines(self, line: str, vcpus: Decimal) -> None:
        self.units(line, "ec2", "vcpu hours", vcpus * HOURS)

    def out(self, videos: Decimal, others: Decimal) -> None:
        """Bytes to the internet, in a month; both share the prices of the whole volume."""
        total = videos + others
        dollars = tiered(total, self.inputs)
        for line, part in ((BYTES_OUT, videos), ("packets, answers, pings out", others)):
            self.dollars[line] = dollars * part / total if total else Decimal(0)


def tiered(count: Decimal, inputs: Inputs) -> Decimal:
    """Dollars for so many bytes out in a month."""
    ends = [*(from_tb * TB for from_tb, _ in TIERS), Decimal("Infinity")]
    dollars = Decimal(0)
    for (start, end), (_, unit) in zip(pairwise(ends), TIERS, strict=True):
        if count > start:
            dollars += (min(count, end) - start) * inputs.prices.each[Kind("units", "s3", unit)]
    return dollars

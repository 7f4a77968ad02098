"""What the stores of a gateway cost, in dollars: what its processes counted, by a list of prices. Pure.

Amounts are decimal, so that a sum is what its parts say.
"""

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any

from gateway.readings import BYTES, DOWNLOADS, VIDEOS, Kind, Uncountable, Used

MONTH_S = 730 * 3600
"""A month as prices have it: a twelfth of 365 days."""

DAY_S = 24 * 3600

MILLION = Decimal(1_000_000)

OUT, STORED = "bytes out", "byte months"
"""The units of S3 that are estimated: what phones download, and what lies there, for how long."""

NOT_IN_THE_SUM = (
    "processes, load balancer, Redis (bus, cache, documents): what has a price by the hour can be given with --flat",
    "traffic between them, and what passes the gateway itself",
    "pushes: APNs and FCM take nothing for them",
    "documents that lie in DynamoDB, their backups, logs",
    "uploads that were refused, broken off or never confirmed; downloads that were broken off or repeated",
    "free allowances, the lower prices of high volumes, taxes",
)


def estimated(counts: Mapping[Kind, Decimal], *, days: Decimal) -> dict[Kind, Decimal]:
    """What phones do at S3, and S3 at the queue, without the gateway. `days`: how long a video's bytes lie there.

    A video is one PUT, and one event where there is a queue. Who is given the address of a download gets it once, and
    all the bytes of an average video.
    """
    stores = {kind.store for kind in counts}
    videos, size, downloads = (counts.get(kind, Decimal(0)) for kind in (VIDEOS, BYTES, DOWNLOADS))
    found: dict[Kind, Decimal] = {}
    if "s3" in stores:
        found |= {
            Kind("requests", "s3", "PutObject"): videos,
            Kind("requests", "s3", "GetObject"): downloads,
            Kind("units", "s3", OUT): downloads * size / videos if videos else Decimal(0),
            Kind("units", "s3", STORED): size * days * DAY_S / MONTH_S,
        }
    if "sqs" in stores:
        found[Kind("requests", "sqs", "SendMessage")] = videos
    return found


# --- What it costs


@dataclass(frozen=True, slots=True)
class Prices:
    """What one of each kind costs, in dollars. `unconfirmed`: those kinds whose price nobody has seen at the source."""

    name: str
    checked: str
    each: Mapping[Kind, Decimal]
    unconfirmed: Collection[Kind]

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Prices":
        """The prices in a file like `gateway/prices.toml`. Raises Uncountable."""
        each: dict[Kind, Decimal] = {}
        unconfirmed: list[Kind] = []
        try:
            table = tomllib.loads(text, parse_float=Decimal)
            for price in table["price"]:
                for kind in _priced(price):
                    each[kind] = Decimal(price["dollars"]) / Decimal(price["per"])
                    if not price.get("confirmed", False):
                        unconfirmed.append(kind)
            return cls(str(table["name"]), str(table["checked"]), each, tuple(unconfirmed))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise Uncountable(f"{source} is no list of prices like gateway/prices.toml: {error!r}") from error

    @classmethod
    def built_in(cls) -> "Prices":
        """Those that come with the program."""
        return cls.parse((files("gateway") / "prices.toml").read_text("utf-8"), source="gateway/prices.toml")

    def of(self, kind: Kind) -> Decimal | None:
        """What one costs; None where it has no price by the piece."""
        price = self.each.get(kind)
        return self.each.get(kind._replace(what="*")) if price is None and kind.metric == "requests" else price


def _priced(price: Mapping[str, Any]) -> Iterator[Kind]:
    yield from (Kind("requests", price["store"], call) for call in price.get("calls", ()))
    yield from (Kind("units", price["store"], unit) for unit in price.get("units", ()))


@dataclass(frozen=True, slots=True)
class Row:
    """What one thing cost. None for what is not known, or has no price by the piece."""

    store: str
    what: str
    requests: Decimal | None = None
    units: Decimal | None = None
    dollars: Decimal | None = None
    per_million_videos: Decimal | None = None
    per_month: Decimal | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """What everything cost, in `seconds`."""

    prices: Prices
    seconds: Decimal | None
    processes: int
    videos: Decimal
    bytes: Decimal
    days: Decimal
    rows: Sequence[Row]
    total: Row


def bill(used: Used, prices: Prices, *, days: Decimal, flat: Mapping[str, Decimal] | None = None) -> Bill:
    """What was used, by these prices. `days`: how long a video's bytes lie in S3. `flat`: dollars an hour, by name."""
    videos = used.counts.get(VIDEOS, Decimal(0))

    def row(kind: Kind, count: Decimal, per_s: Mapping[Kind, Decimal], *, guessed: bool) -> Row:
        price = prices.of(kind)
        dollars = None if price is None else count * price
        return Row(
            kind.store,
            kind.what,
            requests=count if kind.metric == "requests" else None,
            units=count if kind.metric == "units" else None,
            dollars=dollars,
            per_million_videos=_per_million(dollars, videos),
            per_month=None if price is None or not used.per_s else per_s.get(kind, Decimal(0)) * price * MONTH_S,
            estimated=guessed,
        )

    counted = {kind: count for kind, count in used.counts.items() if kind.store}
    guesses = estimated(used.counts, days=days)
    guessed_per_s = estimated(used.per_s, days=days)
    rows = [row(kind, count, used.per_s, guessed=False) for kind, count in counted.items()]
    rows += [row(kind, count, guessed_per_s, guessed=True) for kind, count in guesses.items()]
    rows.sort(key=lambda row: (row.store, row.estimated, row.units is not None, row.what))
    rows += [_flat(name, per_hour, used.seconds, videos) for name, per_hour in (flat or {}).items()]
    size = used.counts.get(BYTES, Decimal(0))
    return Bill(prices, used.seconds, used.processes, videos, size, days, rows, _total(rows))


def _flat(name: str, per_hour: Decimal, seconds: Decimal | None, videos: Decimal) -> Row:
    hours = None if seconds is None else seconds / 3600
    dollars = None if hours is None else hours * per_hour
    per_month = per_hour * MONTH_S / 3600
    return Row("flat", name, None, hours, dollars, _per_million(dollars, videos), per_month)


def _per_million(dollars: Decimal | None, videos: Decimal) -> Decimal | None:
    return None if dollars is None or not videos else dollars * MILLION / videos


def _total(rows: Sequence[Row]) -> Row:
    def total(name: str) -> Decimal | None:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        return sum(known, Decimal(0)) if known else None

    return Row(
        "total",
        "",
        dollars=total("dollars"),
        per_million_videos=total("per_million_videos"),
        per_month=total("per_month"),
    )


# --- How it is told

_HEADS = ("store", "call or unit", "requests", "units", "dollars", "per million videos", "per month")


def told(found: Bill) -> str:
    """The bill as a table, and what to know about it."""
    lines = [_HEADS, *map(_cells, found.rows), _cells(found.total)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) if left < 2 else cell.rjust(width) for left, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([*(line.rstrip() for line in table), "", *_remarks(found)])


def _cells(row: Row) -> tuple[str, ...]:
    what = f"hours of {row.what}" if row.store == "flat" else row.what
    if row.units is not None and " " not in what:
        what = f"{what} units"
    return (
        row.store,
        f"~ {what}" if row.estimated else what,
        _number(row.requests, 0),
        _number(row.units, 1),
        _number(row.dollars, 6),
        _number(row.per_million_videos, 2),
        _number(row.per_month, 2),
    )


def _number(value: Decimal | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _remarks(found: Bill) -> Iterator[str]:
    within = "an unknown time" if found.seconds is None else f"{found.seconds / 3600:,.2f} hours"
    videos = f"{found.videos:,.0f} videos of {found.bytes / MILLION:,.1f} MB together"
    yield f"{videos}, {within}, processes: {found.processes}."
    yield f"Dollars by the prices of {found.prices.name}, {found.prices.checked}."
    priced = [row for row in found.rows if row.dollars is not None and row.store != "flat"]
    if wild := [f"{row.store} {row.what}" for row in priced if _unconfirmed(row, found.prices)]:
        which = "all" if len(wild) == len(priced) else ", ".join(wild)
        yield f"Second-hand prices, not seen at the source: {which}."
    if any(row.estimated for row in found.rows):
        yield (
            "~ is estimated, since phones talk to S3 themselves: a PUT for each video, a GET of an average video for "
            f"each download, stored for {found.days * 24:,.0f} hours."
        )
    if not found.videos:
        yield "No video was uploaded meanwhile, so nothing can be said of a million."
    yield "Not in the sum:"
    yield from (f"  - {what}" for what in NOT_IN_THE_SUM)


def _unconfirmed(row: Row, prices: Prices) -> bool:
    kind = Kind("units" if row.requests is None else "requests", row.store, row.what)
    return kind in prices.unconfirmed or (kind not in prices.each and kind._replace(what="*") in prices.unconfirmed)


def as_json(found: Bill) -> str:
    """The bill for machines. Numbers are rounded to a millionth of a millionth."""
    return json.dumps(
        {
            "prices": {"name": found.prices.name, "checked": found.prices.checked},
            "seconds": _plain(found.seconds),
            "processes": found.processes,
            "videos": _plain(found.videos),
            "bytes": _plain(found.bytes),
            "rows": [
                {name: _plain(value) for name, value in asdict(row).items()}
                | {"unconfirmed": _unconfirmed(row, found.prices)}
                for row in found.rows
            ],
            "total": {
                name: _plain(getattr(found.total, name)) for name in ("dollars", "per_million_videos", "per_month")
            },
            "not_in_the_sum": NOT_IN_THE_SUM,
        },
        indent=2,
    )


def _plain(value: object) -> object:
    return round(float(value), 12) if isinstance(value, Decimal) else value

"""How plans are told: tables to read, Markdown, and for machines."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal

from scripts.costing.bill import Figure, Plan
from scripts.costing.inputs import EGRESS, EGRESS_NAMES, SHARES, Inputs, Unreckonable, name_of
from scripts.costing.presets import OBJECTS, PRESETS, plan

CHEAP = Decimal("0.01")
"""Dollars for a GB out, at a host that takes little for it: what the tables compare with."""

NOT_IN_THE_SUM = (
    "traffic between zones; NAT; logs, monitoring, backups, people; taxes; free allowances",
    "replicas of Redis; TLS on one box, TLS to Redis; tries that are repeated; 3 units more for a sender's first video",
    "discounts: reserved capacity, savings plans, a contract for bytes out. Machines run all month as for the peak",
)

LEAST = Decimal("0.001")
"""The least change of the total that is told."""

Table = list[tuple[str, ...]]


def table(plans: Sequence[Plan], inputs: Inputs, objects: str | None) -> Table:
    """Plans of one preset side by side: a row for each figure and each line of dollars."""
    rows: Table = [("", *map(heading, plans))]
    for name in plans[0].figures:
        rows.append((name, *(str(found.figures[name]) for found in plans)))
    lines = list(dict.fromkeys(line for found in plans for line in found.dollars))
    for line in lines:
        rows.append((f"$ {line}", *(_dollars(found.dollars.get(line)) for found in plans)))
    rows.append(("$ a month, in all", *("does not fit" if found.refused else _dollars(found.total) for found in plans)))
    if lines:
        rows.append(
            ("$ a month for 1,000 daily users", *(_when(found, f"{found.per_thousand:,.2f}") for found in plans))
        )
        rows.append(("share of the video bytes out", *(_when(found, f"{found.share_of_bytes:.0%}") for found in plans)))
        rows += _otherwise(plans, inputs, objects)
    return rows


def heading(found: Plan) -> str:
    """The number of daily users, and of connected devices where that was given."""
    users = f"{found.demand.users:,.0f}"
    return f"{users}, {found.demand.sockets:,.0f} connected" if found.demand.given else users


def _otherwise(plans: Sequence[Plan], inputs: Inputs, objects: str | None) -> Iterator[tuple[str, ...]]:
    """What it would cost if bytes out cost less, since they dominate."""
    cheap = inputs.changed({EGRESS: CHEAP})
    yield f"$ in all, bytes out at {CHEAP} a GB", *(_total(found, cheap, objects) for found in plans)
    if "r2" in OBJECTS[plans[0].preset] and objects != "r2":
        yield "$ in all, bytes in R2, nothing for bytes out", *(_total(found, inputs, "r2") for found in plans)


def _total(found: Plan, inputs: Inputs, objects: str | None) -> str:
    connected = found.demand.sockets if found.demand.given else None
    other = plan(found.preset, found.demand.users, inputs, connected=connected, objects=objects)
    return _when(other, _dollars(other.total))


def _when(found: Plan, said: str) -> str:
    return "" if found.refused else said


def _dollars(value: Decimal | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def remarks(plans: Sequence[Plan]) -> Iterator[str]:
    """What else to know of plans of one preset."""
    for found in plans:
        if found.refused:
            yield f"{heading(found)}: {found.refused}."
        yield from (f"{heading(found)}: {remark}." for remark in found.remarks)


def told(presets: Sequence[Sequence[Plan]], inputs: Inputs, objects: str | None, *, markdown: bool) -> str:
    """Everything, a table for each preset."""
    parts = []
    for plans in presets:
        rows = table(plans, inputs, objects)
        title = PRESETS[plans[0].preset]
        said = list(remarks(plans))
        if markdown:
            parts += [f"**{title[0].upper()}{title[1:]}**", _marked(rows), "\n".join(f"* {remark}" for remark in said)]
        else:
            parts += [f"{title}\n\n{_aligned(rows)}", *said]
        parts.append("")
    return "\n\n".join(parts[:-1]) if markdown else "\n".join([*parts, *_ending(inputs)])


def _ending(inputs: Inputs) -> Iterator[str]:
    yield f"Dollars by the prices of {inputs.prices.name}, {inputs.prices.checked}."
    count = len(inputs.prices.unconfirmed)
    yield f"Of {len(inputs.prices.each)} prices {count} are second hand, not seen at the source: --inputs says which."
    yield "What people do is assumed, what the gateway takes was measured. Not in the sum:"
    yield from (f"  - {what}" for what in NOT_IN_THE_SUM)


def _aligned(rows: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _marked(rows: Table) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *body])


# --- Which assumption matters


Effect = tuple[str, Decimal, Decimal]


def sensitivity(preset: str, users: Decimal, inputs: Inputs, objects: str | None) -> Iterator[Effect]:
    """Each input with its value, and the part by which the total grows where it is doubled, a share at most 1.

    The largest first; those that cannot be doubled, or then do not fit, are left out.
    """
    before = plan(preset, users, inputs, objects=objects)
    if before.refused:
        raise Unreckonable(f"{preset} {before.refused}")
    found = []
    for name in inputs.names():
        value = inputs.value(name)
        try:
            after = plan(preset, users, inputs.changed(doubled(name, inputs)), objects=objects)
        except Unreckonable:
            continue
        if not after.refused:
            found.append((name, value, after.total / before.total - 1))
    yield from sorted(found, key=lambda row: -abs(row[2]))


def doubled(name: str, inputs: Inputs) -> dict[str, Decimal]:
    """What is to change, so that an input is twice as large; a share is no more than 1."""
    if name == EGRESS:
        return {tier: inputs.value(tier) * 2 for tier in EGRESS_NAMES}
    value = inputs.value(name) * 2
    return {name: min(value, Decimal(1)) if name in SHARES else value}


def told_sensitivity(rows: Sequence[Effect], *, markdown: bool) -> str:
    """Those inputs that change the total by a thousandth or more."""
    cells: Table = [("input", "value", "doubled, the total changes by")]
    cells += [(name, f"{value:f}", f"{by:+.1%}") for name, value, by in rows if abs(by) >= LEAST]
    return _marked(cells) if markdown else _aligned(cells)


def listed(inputs: Inputs) -> str:
    """All inputs, as they can be set."""
    wild = {name_of(kind) for kind in inputs.prices.unconfirmed}
    return "\n".join(
        f"{name} = {inputs.value(name):f}{'  # not seen at the source' if name in wild else ''}"
        for name in inputs.names()
    )


def as_json(presets: Sequence[Sequence[Plan]]) -> str:
    """Plans for machines, dollars as numbers."""
    return json.dumps([_plain(found) for plans in presets for found in plans], indent=2)


def _plain(found: Plan) -> dict[str, object]:
    return {
        "preset": found.preset,
        "daily_users": float(found.demand.users),
        "connected": float(found.demand.sockets),
        "fits": not found.refused,
        "refused": found.refused or None,
        "figures": {name: _values(figure) for name, figure in found.figures.items()},
        "dollars_a_month": {line: round(float(value), 2) for line, value in found.dollars.items()},
        "total": None if found.refused else round(float(found.total), 2),
        "per_1000_daily_users": None if found.refused else round(float(found.per_thousand), 4),
        "share_of_video_bytes_out": None if found.refused else round(float(found.share_of_bytes), 4),
        "remarks": list(found.remarks),
    }


def _values(figure: Figure) -> object:
    found = [value if isinstance(value, str) else round(float(value), 3) for value in figure.values]
    return found[0] if len(found) == 1 else found

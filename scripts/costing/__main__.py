"""What the gateway takes, and costs a month, for so many daily users: machines, shards, units, bytes, dollars.

Paper, on measured figures: scripts/costing/inputs.toml has every input with where it is from, and --set changes any of
them for once. Without --users: 100,000, a million and ten million daily users, and those ten million connected all at
once.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from scripts.costing.inputs import EGRESS, Inputs, Unreckonable
from scripts.costing.presets import OBJECTS, PRESETS, plan
from scripts.costing.told import as_json, listed, sensitivity, told, told_sensitivity

MILLION = Decimal(1_000_000)
USUAL = ((MILLION / 10, None), (MILLION, None), (MILLION * 10, None), (MILLION * 10, MILLION * 10))
"""Daily users, and how many devices are connected where that is not a share of them."""


def number(text: str) -> Decimal:
    try:
        return Decimal(text.replace(",", "").replace("_", ""))
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def setting(text: str) -> tuple[str, Decimal]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=VALUE")
    return name, number(value)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--preset", action="append", choices=PRESETS, help="repeatable; all of them by default")
    made.add_argument("--users", action="append", type=number, help="daily users, repeatable")
    made.add_argument("--connected", type=number, help="devices connected at the peak, whatever connected_share says")
    places = sorted({place for presets in OBJECTS.values() for place in presets})
    made.add_argument("--objects", choices=places, help="where the bytes of videos are; the preset's usual place")
    made.add_argument("--set", action="append", type=setting, default=[], metavar="NAME=VALUE", help="repeatable")
    made.add_argument("--egress-dollars-per-gb", type=number, metavar="DOLLARS", help=f"the same as --set {EGRESS}=")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true")
    how.add_argument("--markdown", action="store_true")
    made.add_argument("--sensitivity", action="store_true", help="what doubling each input does to the total")
    made.add_argument("--inputs", action="store_true", help="list all inputs, and leave it at that")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0, or 2 with a sentence on stderr where an input means nothing."""
    given = parser().parse_args(arguments)
    try:
        print(_answer(given))
    except Unreckonable as error:
        print(f"scripts/cost: {error}", file=sys.stderr)
        return 2
    return 0


def _answer(given: argparse.Namespace) -> str:
    changes = dict(given.set)
    if given.egress_dollars_per_gb is not None:
        changes[EGRESS] = given.egress_dollars_per_gb
    inputs = Inputs.load().changed(changes)
    if given.inputs:
        return listed(inputs)
    presets = given.preset or [name for name in PRESETS if given.objects in {None, *OBJECTS[name]}]
    if given.sensitivity:
        return "\n\n".join(_sensitive(given, name, inputs) for name in given.preset or ["aws"])
    asked = [(users, given.connected) for users in given.users] if given.users else _usual(given.connected)
    plans = [
        [plan(name, users, inputs, connected=connected, objects=given.objects) for users, connected in asked]
        for name in presets
    ]
    return as_json(plans) if given.json else told(plans, inputs, given.objects, markdown=given.markdown)


def _usual(connected: Decimal | None) -> Sequence[tuple[Decimal, Decimal | None]]:
    return USUAL if connected is None else [(users, connected) for users, own in USUAL if own is None]


def _sensitive(given: argparse.Namespace, preset: str, inputs: Inputs) -> str:
    users = given.users[0] if given.users else MILLION
    rows = list(sensitivity(preset, users, inputs, given.objects))
    return f"{PRESETS[preset]}, {users:,.0f} daily users\n\n{told_sensitivity(rows, markdown=given.markdown)}"


if __name__ == "__main__":
    # Whoever reads only the beginning is no fault.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

"""What is said of a thing that is looked at: what is to be done about it, or why that cannot be."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done, and how; or, where there is no `apply`, what is worth knowing and left as it is."""

    what: str
    apply: Callable[[], object] | None = None


Part = tuple[str, Callable[[], Iterator[Change]]]
"""One thing, as it is called in what is said, and how to look at it. It may raise NotSetUp."""


class NotSetUp(Exception):
    """Why it cannot be done, in a sentence without its end."""


class UnknownCall(NotSetUp):
    """Whoever speaks like Amazon there does not know this call, or not these arguments."""


def added_or_righted(what: str, ours: Sequence[object]) -> str:
    """`what`, of a rule among others: in words that tell whether ours is there already, and wrong."""
    return f"put the rule right: {what}" if ours else what

"""What the stores were asked to do and what they said it costs, counted where it is sent."""

from collections import Counter, defaultdict


class Usage:
    """Counts of one process, from its start.

    `requests`: by store (`dynamodb`, `s3`, …) and call, every try counted, since every try is paid for.
    `units`: by store, call and kind (`read`, `write`), as the store itself counted them; only stores that do.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.units: defaultdict[tuple[str, str, str], float] = defaultdict(float)

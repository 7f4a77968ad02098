"""When a provider says to come back: RFC 9110, section 10.2.3."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

MOST_MS = 3_600_000
"""A word for longer than that is taken for this long."""


def retry_after_ms(text: str, *, clock: Callable[[], float] = time.time) -> int | None:
    """How many ms from now the header's `text` (seconds, or a date) is; None where it says nothing that makes sense."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:9]) * 1000, MOST_MS)
    try:
        left_s = parsedate_to_datetime(text).timestamp() - clock()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(round(left_s * 1000), MOST_MS) if left_s > 0 else None

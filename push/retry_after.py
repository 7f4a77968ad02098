"""When a provider says to come back: RFC 9110, sections 10.2.3 and 5.6.7."""

import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

MOST_MS = 3_600_000
"""A word for longer than that is taken for this long."""


def retry_after_ms(text: str, *, clock: Callable[[], float] = time.time) -> int | None:
    """How many ms from now the header's `text` (seconds, or a date) is; None where it says nothing that makes sense, or
    that it was."""
    text = text.strip()
    try:
        if text.isascii() and text.isdigit():
            left_s = float(text[:9])
        else:
            date = parsedate_to_datetime(text)
            left_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(round(left_s * 1000), MOST_MS) if left_s > 0 else None

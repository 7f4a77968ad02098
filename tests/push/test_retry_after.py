"""When a provider says to come back."""

import pytest

from push.retry_after import MOST_MS, retry_after_ms

NOW_S = 1_445_412_450.0  # Wed, 21 Oct 2015 07:27:30 GMT


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("7", 7_000),
        (" 120 ", 120_000),
        ("999999999999999", MOST_MS),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 30_000),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 30_000),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 30_000),
        ("Wed Oct 21 07:28:00 2015", 30_000),
        ("Thu, 22 Oct 2015 07:28:00 GMT", MOST_MS),
        ("Wed, 21 Oct 2015 07:27:00 GMT", None),
        ("0", None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("\u0667", None),
        ("Wed, 99 Oct 9999999 07:28:00 GMT", None),
    ],
)
def test_seconds_or_a_date_within_an_hour(text: str, ms: int | None) -> None:
    assert retry_after_ms(text, clock=lambda: NOW_S) == ms

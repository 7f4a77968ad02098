"""The numbers that the rules follow: how many, how long. All times are milliseconds."""

from dataclasses import dataclass

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

SWEEP_MARGIN_MS = DAY_MS
"""How long after an upload URL died a sweep may still come and complete what was stored with it."""

CLOCK_SKEW_MS = HOUR_MS
"""How far another machine's clock may run ahead before an id that it minted is not believed."""

PAIR_KEEP_MS = HOUR_MS
MOST_EMPTY_PAIRS = 256
"""How long an empty pair is remembered, and how many, the newest. Its version keeps writes that were held up from
bringing back what went; no call lives for more than seconds."""

FORGET_MS = 400 * DAY_MS
"""How long a client of whom nothing else is known keeps its packet's version. A device that comes back later would be
told nothing: whatever it has is higher than the version of a client never heard of."""

HEARD_STEP_MS = 7 * DAY_MS
"""A device that asks nothing costs one write in this time, so that it is not taken for one that is gone."""

BACKGROUND_SPACING_MS = 30 * MINUTE_MS
"""The least time between background pushes to one device: Apple allows two or three an hour
(developer.apple.com, "Pushing background updates to your App")."""

RETRY_FIRST_MS = 2_000
RETRY_MOST_MS = 5 * MINUTE_MS
"""How long a failed push waits before the next try: doubling from the first to the most. No longer, since a recipient
is to be told at once; what spares a provider that is down is the worker's circuit breaker."""

LEASE_MS = MINUTE_MS
"""How long a push may be under way, its token looked up and its outcome written down, before it is taken for lost."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits and times of one installation; the defaults are those of the protocol."""

    videos_per_pair: int = 1
    max_outgoing: int = 256
    max_incoming: int = 256
    max_devices: int = 8
    max_ended: int = 256
    video_ttl_ms: int = 30 * DAY_MS
    ended_keep_ms: int = 7 * DAY_MS
    viewed_keep_ms: int = 0
    upload_ttl_ms: int = 6 * HOUR_MS
    ack_grace_ms: int = 5_000
    remind_after_ms: tuple[int, ...] = (HOUR_MS, 8 * HOUR_MS, 24 * HOUR_MS)
    push_on_status: bool = False

    @property
    def upload_window_ms(self) -> int:
        """How old an id may be and still be taken in: its URL has died, and a sweep has passed."""
        return self.upload_ttl_ms + SWEEP_MARGIN_MS

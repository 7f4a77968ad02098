"""How a test goes, in a line every few seconds."""

import time
from typing import TextIO

from scripts.loadtest.course import Course
from scripts.loadtest.report import in_ms
from scripts.loadtest.tally import Count

EVERY_S = 2.0


class Progress:
    """Writes it."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._told_s = 0.0
        self._before: tuple[float, int, int] | None = None

    def __call__(self, course: Course, stage: str) -> None:
        now_s = time.monotonic()
        if now_s > max(course.began_s, self._told_s) + EVERY_S:
            self._told_s = now_s
            self._to.write(self.line(course, stage, now_s) + "\n")
            self._to.flush()

    def line(self, course: Course, stage: str, now_s: float) -> str:
        """How it goes at that time, by `time.monotonic`."""
        counts, last = course.total.counts, course.last
        at_s, asked, served = self._before or (course.began_s, 0, 0)
        since_s = max(now_s - at_s, 0.001)
        asked_s, served_s = (counts[Count.ASKED] - asked) / since_s, (counts[Count.SERVED] - served) / since_s
        self._before = now_s, counts[Count.ASKED], counts[Count.SERVED]
        p50, p99 = (in_ms(seconds) or "-" for seconds in course.news.percentiles_s((50, 99)))
        parts = [
            f"{now_s - course.began_s:4.0f} s {_STAGES.get(stage, stage)}",
            f"{last.phones:,} phones, {last.sockets:,} sockets",
            f"calls/s {asked_s:,.0f} asked, {served_s:,.0f} served",
            f"call → packet p50 {p50} ms, p99 {p99} ms",
            f"{counts[Count.DONE]:,} of {counts[Count.DUE]:,} videos done",
            f"{counts[Count.FAILED]:,} calls failed",
            *(f"{count:,} {fault}" for fault, count in sorted(course.faults.items())),
        ]
        return " | ".join(parts)


_STAGES = {"ready": "running"}
"""What a stage is called where it says little."""

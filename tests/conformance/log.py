"""What happened in a story, in order, with the time of each: what a failed seed is understood by."""

import time


class Log:
    """Lines of a story. Nothing in it is a secret: no token, no signed URL, no body."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self.lines: list[str] = []

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began_s

    def begin(self) -> None:
        """The story begins now."""
        self._began_s = time.monotonic()

    def note(self, who: str, text: str) -> None:
        """Something happened to somebody, or was done by them."""
        self.lines.append(f"{self.now_s:8.3f}  {who:13}  {text}")

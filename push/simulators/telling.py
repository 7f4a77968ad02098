"""A ledger for somebody who watches: it tells of each push in a line, or of many in numbers, and keeps none."""

from collections import Counter
from collections.abc import Callable
from typing import Generic

from push.simulators.apns import ApnsPush
from push.simulators.fcm import FcmPush
from push.simulators.ledger import Ledger, Push


class Telling(Ledger[Push], Generic[Push]):
    """Tells with `tell`, a line each, unless it is None. Tokens are told by their last four characters."""

    def __init__(self, provider: str, describe: Callable[[Push], str], tell: Callable[[str], None] | None) -> None:
        super().__init__()
        self._provider = provider
        self._describe = describe
        self._tell = tell
        self._counts = Counter[str]()

    def accept(self, push: Push) -> None:
        """A push is accepted."""
        self._note("received", self._describe(push))

    def answered(self, push: Push, reason: str) -> None:
        """A push is not accepted, because somebody wanted that."""
        self._note(reason, f"{self._describe(push)}: {reason}")

    def refuse(self, reason: str) -> None:
        """A request broke a rule."""
        self._note("refused", f"refused: {reason}")

    def _note(self, what: str, line: str) -> None:
        self._counts[what] += 1
        if self._tell is not None:
            self._tell(f"{self._provider} {line}")

    @property
    def counts(self) -> str:
        """All so far, in numbers."""
        counted = ", ".join(f"{count} {what}" for what, count in self._counts.items())
        return f"{self._provider} {counted or 'nothing'}"


def apns_line(push: ApnsPush) -> str:
    """A push to an iPhone, in a few words."""
    return f"{_end(push.token)} {push.push_type}, priority {push.priority}, {len(push.payload)} bytes"


def fcm_line(push: FcmPush) -> str:
    """A push to an Android phone, in a few words."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in push.data.items())
    return f"{_end(push.token)} {push.priority}, kept {push.ttl_s:.0f} s, {size} bytes of data"


def _end(token: str) -> str:
    return f"…{token[-4:]}" if len(token) > 4 else "…"

"""How long something may take: one timer for all of a loop's, since one for each costs more than loading a document."""

import asyncio
from types import TracebackType


class Deadlines:
    """Ends what has had its time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._running: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, deadline: "Deadline") -> None:
        """From now on it is looked after."""
        self._running.add(deadline)
        if self._timer is None or deadline.at_s < self._timer.when():
            self._look_at(deadline.at_s)

    def end(self, deadline: "Deadline") -> None:
        """It need not be looked after any more."""
        self._running.discard(deadline)

    def _look_at(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for deadline in [one for one in self._running if one.at_s <= now_s]:
            self._running.discard(deadline)
            deadline.expire()
        if self._running:
            self._look_at(min(one.at_s for one in self._running))


class Deadline:
    """A context: what is done within is cancelled after `seconds`, and TimeoutError raised, as by `asyncio.timeout`."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_seconds", "_task", "at_s")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self.at_s = 0.0
        self._deadlines = deadlines
        self._seconds = seconds
        self._expired = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def expire(self) -> None:
        """The time is over."""
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> None:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for what a task does")
        self._cancelling = task.cancelling()
        self.at_s = task.get_loop().time() + self._seconds
        self._deadlines.begin(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.end(self)
        if self._expired and self._task is not None:
            # Whoever else has cancelled the task meanwhile is to have it cancelled.
            others = self._task.uncancel() > self._cancelling
            if not others and kind is asyncio.CancelledError:
                raise TimeoutError from error

"""Virtual time, and an event loop for every machine.

`Scheduler(seed)` owns the one clock and all that is to come:

    scheduler.now_s                               virtual seconds, from 0
    scheduler.at(when_s, callback)                call it then; an `Event` that can be cancelled
    scheduler.after(delay_s, callback)
    scheduler.run_until(t_s, most_steps=None)     whether `t_s` was reached; ends at once where `stopped`
    scheduler.run_for(seconds)
    scheduler.rng                                 decides which machine goes next
    scheduler.noted(name, text)                   a violation: replace it with what takes them down
    scheduler.stop()                              nothing more happens

`MachineLoop(scheduler, name)` is the loop of one machine. Code runs on it as on any other; from outside:

    loop.post(callback, *args)                    run it on this machine: late where it is frozen
    loop.start(coroutine, name=None)              a task on it
    loop.freeze(for_s)                            nothing runs; what falls due meanwhile runs behind it
    loop.kill()                                   nothing runs ever again, and nothing is cleaned up: a crash

Wrap a whole run in `quiet()`: the garbage collector finalizes nothing in the middle of it. `dispose(scheduler)` at its
end lets go of everything without a word.
"""

import asyncio
import contextlib
import gc
import heapq
import logging
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Event:
    """Something that is to come. Cancelled, it does not."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """It does not come."""
        self.callback = None


class Scheduler:
    """The one clock, and what is to come: things at their times, and handles of loops, one at a time."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.stopped = False
        self.disposed = False
        """Whether the run is over, and what happens now is only its end."""
        self.rng = random.Random(seed)
        self.loops: list[MachineLoop] = []
        self.noted: Callable[[str, str], None] = _raise_noted
        self._heap: list[tuple[float, int, Event | asyncio.TimerHandle, MachineLoop | None]] = []
        self._order = 0
        self._runnable: list[MachineLoop] = []

    def at(self, when_s: float, callback: Callable[[], object]) -> Event:
        """Call `callback` at that time, or now where that has passed."""
        event = Event(callback)
        self.push(when_s, event, None)
        return event

    def after(self, delay_s: float, callback: Callable[[], object]) -> Event:
        """Call `callback` in so many seconds."""
        return self.at(self.now_s + delay_s, callback)

    def push(self, when_s: float, thing: Event | asyncio.TimerHandle, loop: "MachineLoop | None") -> None:
        """Have something come: an event of its own, or a timer of `loop`."""
        self._order += 1
        heapq.heappush(self._heap, (max(when_s, self.now_s), self._order, thing, loop))

    def wake(self, loop: "MachineLoop") -> None:
        """`loop` has something to run, and had not before."""
        self._runnable.append(loop)

    def stop(self) -> None:
        """Nothing more happens."""
        self.stopped = True

    def run_for(self, seconds: float, most_steps: int | None = None) -> bool:
        """Let so many seconds pass."""
        return self.run_until(self.now_s + seconds, most_steps)

    def run_until(self, t_s: float, most_steps: int | None = None) -> bool:
        """Let things happen until that time, which comes whether or not anything does. Whether it was reached."""
        last = sys.maxsize if most_steps is None else self.steps + most_steps
        heap, runnable, draw = self._heap, self._runnable, self.rng.random
        set_running = asyncio._set_running_loop
        pop = heapq.heappop
        while not self.stopped:
            if self.steps >= last:
                return False
            while heap and heap[0][0] <= self.now_s and not self.stopped:
                _, _, thing, loop = pop(heap)
                self._came(thing, loop)
            if runnable and not self.stopped:
                index = int(draw() * len(runnable)) if len(runnable) > 1 else 0
                loop = runnable[index]
                if not loop.ready or loop.dead or loop.frozen:
                    loop.waiting = False
                    runnable[index] = runnable[-1]
                    runnable.pop()
                    continue
                handle = loop.ready.popleft()
                if handle._cancelled:
                    continue
                self.steps += 1
                set_running(loop)
                try:
                    handle._run()
                finally:
                    set_running(None)
                continue
            if not heap or heap[0][0] > t_s:
                self.now_s = max(self.now_s, t_s)
                return True
            self.now_s = heap[0][0]
        return False

    def _came(self, thing: Event | asyncio.TimerHandle, loop: "MachineLoop | None") -> None:
        """The time of something has come."""
        if loop is None:
            callback = thing.callback if isinstance(thing, Event) else None
            if callback is not None:
                self.steps += 1
                callback()
        elif not thing._cancelled and not loop.dead:  # type: ignore[union-attr]
            loop.append(thing)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Nothing is to come any more."""
        self._heap.clear()
        self._runnable.clear()


def _raise_noted(name: str, text: str) -> None:
    raise AssertionError(f"{name}: {text}")


class MachineLoop(asyncio.BaseEventLoop):
    """The event loop of one machine. The scheduler runs its handles, one at a time."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.waiting = False
        """Whether the scheduler knows that something is ready."""
        self.frozen = False
        self.dead = False
        self.died_s = float("inf")
        self._tasks: list[asyncio.Task[Any]] = []
        self._most_tasks = 256
        self._thawing: Event | None = None
        self._disposed = False
        scheduler.loops.append(self)

    # --- What asyncio asks of it

    def time(self) -> float:
        return self.scheduler.now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.scheduler.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self.scheduler.push(when, timer, self)
        return timer

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """A task that is kept: what waits for an answer that never comes is not to be finalized because of it."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._most_tasks:
            self._forget_done()
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._disposed:
            error = context.get("exception")
            self.scheduler.noted("unhandled exception", f"{self.name}: {context.get('message')}: {error!r}")

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("nothing in the simulation runs in a thread")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return

    def _process_events(self, event_list: list[object]) -> None:
        return

    def _write_to_self(self) -> None:
        return

    # --- From outside

    def append(self, handle: asyncio.Handle) -> None:
        """Have a handle run when it is this loop's turn."""
        self.ready.append(handle)
        if not self.waiting and not self.frozen and not self.dead:
            self.waiting = True
            self.scheduler.wake(self)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run this on the machine: late where it is frozen, never where it is dead."""
        if not self.dead:
            self.append(asyncio.Handle(callback, args, self))

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
        """A task on this machine."""
        return self.create_task(work, name=name)

    def freeze(self, for_s: float) -> None:
        """Nothing runs for so long: a machine that swaps, a process that was stopped."""
        self.frozen = True
        if self._thawing is not None:
            self._thawing.cancel()
        self._thawing = self.scheduler.after(for_s, self.thaw)

    def thaw(self) -> None:
        """Run what has become due meanwhile, and go on."""
        self.frozen = False
        if self.ready and not self.waiting and not self.dead:
            self.waiting = True
            self.scheduler.wake(self)

    def kill(self) -> None:
        """Nothing runs here ever again. Nothing is cancelled and no `finally` runs: that is what a crash is."""
        if not self.dead:
            self.dead = True
            self.died_s = self.scheduler.now_s

    def _forget_done(self) -> None:
        self.check_tasks()
        self._tasks = [task for task in self._tasks if not task.done()]
        self._most_tasks = max(256, 2 * len(self._tasks))

    def check_tasks(self) -> None:
        """Note what tasks failed with that nobody asked for it."""
        for task in self._tasks:
            if task.done() and task._log_traceback and not task.cancelled():
                error = task.exception()
                self.scheduler.noted("unhandled exception", f"{self.name}: {task.get_name()}: {error!r}")

    def dispose(self) -> None:
        """Let go of everything, whatever state it is in."""
        self._disposed = True
        self.dead = True
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close(task.get_coro())
            elif not task.cancelled():
                task.exception()
        self._tasks.clear()
        self.ready.clear()
        self.close()


def _close(coroutine: Any) -> None:
    """End a coroutine here, however often it waits on its way out."""
    for _ in range(100):
        try:
            coroutine.close()
        except BaseException:  # noqa: S112 - it is the end: whatever it says is of no interest
            continue
        return


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage is collected within: when it is differs from run to run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def dispose(scheduler: Scheduler) -> None:
    """The end of a run: nothing that it leaves behind says a word, or finds anything of it alive."""
    scheduler.stop()
    scheduler.disposed = True
    hook, disabled = sys.unraisablehook, logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None
        logging.disable()
        try:
            for loop in scheduler.loops:
                loop.dispose()
            scheduler.clear()
            scheduler.loops.clear()
            gc.collect()
        finally:
            sys.unraisablehook = hook
            logging.disable(disabled)

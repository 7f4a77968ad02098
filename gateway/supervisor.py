"""Many processes of one program: forked from one that has imported everything, watched, replaced, stopped together.

The parent runs no event loop and no thread, so that it can fork at any time: it waits for signals and for what its
children say through their pipes. It knows nothing of what they do.
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from gateway.parsers import ConfigError

BEAT_S = 1.0
"""How often a child says that its event loop turns."""

HANG_S = 15.0
"""A child that serves and is silent for so long is killed."""

FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 10.0
"""Before a child is replaced: nothing the first time, then the first of these, twice as long each time, at most the
second."""

SETTLED_S = 60.0
"""A child that has lived for so long is replaced at once again: it ended for a reason of its own."""

KILL_S = 5.0
"""So much longer than they may take children have to stop, before they are killed."""

HUNG = 70
"""The exit code where something did not stop in time: EX_SOFTWARE in sysexits.h."""

_BEAT, _SERVING, _REFUSED = b".", b"s", b"!"
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_READ = 65_536

log = logging.getLogger(__name__)


class Pulse:
    """A child's side of its pipe: what it says to its parent. Nothing here blocks or raises."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe

    def serving(self) -> None:
        """It does from now on what it is there for."""
        self._say(_SERVING)

    def beat(self) -> bool:
        """It lives. Whether there is still a parent to hear of it."""
        return self._say(_BEAT)

    def refuse(self, sentences: Sequence[str]) -> None:
        """It cannot begin, since what it was given is wrong. The last that it says."""
        self._say(_REFUSED + "\n".join(sentences).encode())

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Beat from this event loop. A child whose parent is gone ends as if it had been told to."""
        task = asyncio.create_task(self._beat_on(), name="pulse")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _beat_on(self) -> None:
        while self.beat():  # noqa: ASYNC110 - a beat is no waiting
            await asyncio.sleep(BEAT_S)
        log.warning("the parent is gone: the process ends")
        signal.raise_signal(signal.SIGTERM)

    def _say(self, word: bytes) -> bool:
        try:
            os.write(self._pipe, word)
        except BlockingIOError:
            return True  # the parent is stopped, and has hours of beats to read
        except OSError:
            return False
        return True


class Child(NamedTuple):
    """What one of the processes is called and does. `run` is called in it, with the signals' handlers as they are by
    default but for SIGINT, which is ignored: from a terminal it reaches the parent too, which tells all to stop with
    SIGTERM. The exit code is what it returns; 2, and the parent is told why, where it raises ConfigError."""

    name: str
    run: Callable[[Pulse], int]


@dataclass(slots=True, eq=False)
class _Post:
    """A child's place: who is in it now, and how it went with those before."""

    child: Child
    pid: int = 0
    pipe: int = -1
    since_s: float = 0.0
    serves: bool = False
    silent_s: float = 0.0
    said: bytearray = field(default_factory=bytearray)
    generation: int = 0
    ever_served: bool = False
    ends: int = 0
    due_s: float = 0.0
    """When the next is forked, where there is none."""

    @property
    def told(self) -> dict[str, object]:
        """What a line in the log says of it."""
        return {"child": self.child.name, "pid": self.pid}


class _Failure(NamedTuple):
    """How the first that never served ended."""

    code: int
    sentences: list[str]


class Supervisor:
    """Keeps one process for each of `children` running.

    `serving` is called once, when all of them serve; `stopping` before they are told to stop, which each may take
    `stop_s` for. `hang_s` and `settled_s`: see the constants.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        serving: Callable[[], None],
        stopping: Callable[[], None],
        stop_s: float,
        hang_s: float = HANG_S,
        settled_s: float = SETTLED_S,
    ) -> None:
        self._posts = [_Post(child) for child in children]
        self._serving = serving
        self._before_stop = stopping
        self._stop_s = stop_s
        self._hang_s = hang_s
        self._settled_s = settled_s
        self._announced = False
        self._stopping = False
        self._kill_s = float("inf")
        self._now_s = time.monotonic()
        self._failure: _Failure | None = None
        self._hung = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT, and then until all children have ended: the exit code, `HUNG` if one had to be
        killed. A second signal, if it is SIGINT, kills them at once.

        A child of the first generation that ends before it served ends all of it, since one that takes its place would
        meet the same: its exit code; ConfigError with what it had to say. Called in the main thread, where no other is.
        """
        with _signals() as signals:
            gc.collect()
            gc.freeze()  # what is there is not looked through any more, which would copy it into every process
            try:
                for post in self._posts:
                    self._fork(post, signals)
                while not self._stopping or any(post.pid for post in self._posts):
                    self._turn(signals)
            finally:
                self._kill()
        if self._failure is None:
            return HUNG if self._hung else 0
        if self._failure.sentences:
            raise ConfigError(self._failure.sentences)
        return self._failure.code

    # --- The loop

    def _turn(self, signals: "_Signals") -> None:
        """Wait until there is something to do, for a beat at most, and do it."""
        self._wait(signals)
        before_s, self._now_s = self._now_s, time.monotonic()
        for number in signals.read():
            self._heed(number)
        for post in self._posts:
            # If this process was held up itself, the children may have been too: that does not count as their silence.
            post.silent_s += min(self._now_s - before_s, BEAT_S)
            self._listen(post)
        self._announce()
        self._reap()
        self._kill_whoever_hangs()
        if not self._stopping:
            self._replace(signals)

    def _wait(self, signals: "_Signals") -> None:
        waiting = select.poll()
        waiting.register(signals.reading, select.POLLIN)
        for post in self._posts:
            if post.pipe >= 0:
                waiting.register(post.pipe, select.POLLIN)
        due_s = [post.due_s - time.monotonic() for post in self._posts if not post.pid]
        waiting.poll(1000 * max(0.0, min([BEAT_S, *due_s])))

    def _heed(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        if not self._stopping:
            self._stop()
        elif number == signal.SIGINT:
            self._kill()

    def _listen(self, post: _Post) -> None:
        """Take in what a child has said."""
        if post.pipe < 0:
            return
        with contextlib.suppress(BlockingIOError):
            if said := os.read(post.pipe, _READ):
                post.silent_s = 0.0
                post.said += said
            else:
                self._hang_up(post)  # it has ended, or is about to
        beats, _, _ = post.said.partition(_REFUSED)
        if _SERVING in beats and not post.serves:
            post.serves = post.ever_served = True
            log.info("a process serves", extra=post.told | {"after_s": round(self._now_s - post.since_s, 3)})
        if len(beats) == len(post.said):
            post.said.clear()

    @staticmethod
    def _hang_up(post: _Post) -> None:
        if post.pipe >= 0:
            os.close(post.pipe)
            post.pipe = -1

    def _announce(self) -> None:
        if not self._announced and not self._stopping and all(post.ever_served for post in self._posts):
            self._announced = True
            self._serving()

    # --- Beginnings and ends

    def _fork(self, post: _Post, signals: "_Signals") -> None:
        """Raises OSError where the system has no room for another process."""
        _flush()  # what waits to be written would be written by both
        reading, writing = os.pipe()
        try:
            with signals.held_back():
                pid = os.fork()
                if not pid:
                    self._become(post, signals, reading, writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        post.pid, post.pipe, post.since_s = pid, reading, time.monotonic()
        post.serves, post.silent_s, post.generation = False, 0.0, post.generation + 1
        post.said.clear()

    def _become(self, post: _Post, signals: "_Signals", reading: int, writing: int) -> NoReturn:
        """In the new process: let go of what is the parent's, do what a child does, and end."""
        code = 1
        try:
            os.close(reading)
            for other in self._posts:
                self._hang_up(other)  # else a parent that is gone would still seem to listen
            signals.let_go()
            code = _run(post.child, Pulse(writing))
            _flush()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for post in self._posts:
            if post.pid:
                pid, status, usage = os.wait4(post.pid, os.WNOHANG)
                if pid:
                    self._listen(post)  # its last words
                    self._ended(post, os.waitstatus_to_exitcode(status), peak_mib=usage.ru_maxrss // 1024)

    def _ended(self, post: _Post, code: int, *, peak_mib: int) -> None:
        self._hang_up(post)
        sentences = _sentences(post.said)
        how = {"code": code} if code >= 0 else {"signal": signal.Signals(-code).name}
        why = {"why": " ".join(sentences)} if sentences else {}
        level = logging.INFO if self._stopping else logging.WARNING
        log.log(level, "a process ended", extra={**post.told, **how, "peak_mib": peak_mib, **why})
        post.pid = 0
        if self._stopping:
            # By the signal, or without having served: then it has left nothing undone.
            self._hung |= code == HUNG or (post.serves and code not in {0, -signal.SIGTERM})
        elif post.generation == 1 and not post.ever_served:
            self._failure = _Failure(code if code > 0 else 128 - code if code else 1, sentences)
            self._stop()
        else:
            self._put_off(post)

    def _put_off(self, post: _Post) -> None:
        """Have the next one come, after the pause that is due."""
        if self._now_s - post.since_s >= self._settled_s:
            post.ends = 0
        pause_s = min(FIRST_PAUSE_S * 2 ** (post.ends - 1), MOST_PAUSE_S) if post.ends else 0.0
        post.ends += 1
        post.due_s = self._now_s + pause_s

    def _replace(self, signals: "_Signals") -> None:
        for post in self._posts:
            if not post.pid and post.due_s <= self._now_s:
                try:
                    self._fork(post, signals)
                except OSError as error:
                    post.since_s = self._now_s
                    self._put_off(post)
                    log.error("no process can be made", extra={"child": post.child.name, "error": str(error)})
                else:
                    log.info("a process takes the place of one that ended", extra=post.told)

    def _kill_whoever_hangs(self) -> None:
        if self._now_s >= self._kill_s:
            self._kill()
        if self._stopping:
            return
        for post in self._posts:
            if post.pid and post.serves and post.silent_s >= self._hang_s:
                log.error("a process hangs, and is killed", extra=post.told | {"silent_s": round(post.silent_s, 1)})
                os.kill(post.pid, signal.SIGKILL)
                post.serves = False  # once is enough

    # --- The end

    def _stop(self) -> None:
        log.info("stopping")
        self._stopping = True
        self._kill_s = self._now_s + self._stop_s + KILL_S
        self._before_stop()
        for post in self._posts:
            if post.pid:
                os.kill(post.pid, signal.SIGTERM)

    def _kill(self) -> None:
        """Whoever is left. None has been waited for yet, so each number is still that of a child."""
        self._kill_s = float("inf")
        for post in self._posts:
            if post.pid:
                self._hung = True
                log.error("a process is killed at the end", extra=post.told)
                os.kill(post.pid, signal.SIGKILL)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()


def _run(child: Child, pulse: Pulse) -> int:
    """The exit code of what a child does."""
    try:
        return child.run(pulse)
    except ConfigError as error:
        pulse.refuse(error.sentences)
        return 2
    except Exception:
        log.exception("the process failed")
        return 1


def _sentences(said: bytearray) -> list[str]:
    refusal = said.partition(_REFUSED)[2]
    return refusal.decode(errors="replace").split("\n") if refusal else []


class _Signals:
    """The signals of a parent, as bytes that can be waited for."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self._writing = writing

    def read(self) -> bytes:
        """The numbers of those that have come."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.reading, _READ)
        return b""

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """None comes within the block: a child would take it with the parent's handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)

    def let_go(self) -> None:
        """In a child: none of it any more."""
        signal.set_wakeup_fd(-1)
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(self.reading)
        os.close(self._writing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    before = {number: signal.signal(number, lambda *_: None) for number in _HEARD}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield _Signals(reading, writing)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)

"""`gateway serve` that says what the operator's console takes of it: the CPU of the console's own coroutines, step by
step, in the file that BENCH_STEPS names, twice a second.

The difference between a gateway with and without a console is lost in the noise of a machine that has other things to
do; this is not.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import orjson

from gateway import cli
from gateway.api import console as api
from gateway.console import consoles, watched

WATCHED = {watched.Watched: ("_sample", "_find_facts", "_tell_all"), consoles.Consoles: ("_serve",), api: ("_events",)}
"""The coroutines that work while somebody looks, by what has them; what they call is within their steps, and what comes
over the bus of one process too."""
CALLED = {watched.Watched: ("_asked",), consoles.Consoles: ("_told",)}
"""What a bus over Redis calls."""

spent_ns: dict[str, int] = {}


class Steps:
    """A coroutine whose steps are timed under a name."""

    def __init__(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        self._name = name
        self._work = work

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, value, error = self._work.__await__(), None, None
        while True:
            began = time.thread_time_ns()
            try:
                waits_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                _spent(self._name, began)
            value = error = None
            try:
                value = yield waits_for
            except BaseException as thrown:
                error = thrown


def _spent(name: str, began: int) -> None:
    spent_ns[name] = spent_ns.get(name, 0) + time.thread_time_ns() - began


def time_steps(owner: object, name: str) -> None:
    """Time a function of `owner` that makes coroutines."""
    make: Callable[..., Coroutine[Any, Any, Any]] = getattr(owner, name)

    async def timed(*given: Any) -> Any:
        return await Steps(name, make(*given))

    setattr(owner, name, timed)


def time_calls(owner: object, name: str) -> None:
    """Time a plain function of `owner`."""
    call: Callable[..., Any] = getattr(owner, name)

    def timed(*given: Any) -> Any:
        began = time.thread_time_ns()
        try:
            return call(*given)
        finally:
            _spent(name, began)

    setattr(owner, name, timed)


def report(file: Path) -> None:
    """Say what was spent, again and again; the file is always whole."""
    while True:
        new = file.with_suffix(".new")
        new.write_bytes(orjson.dumps(spent_ns))
        new.replace(file)
        time.sleep(0.5)


def main() -> int:
    for owner, names in WATCHED.items():
        for name in names:
            time_steps(owner, name)
    if os.environ.get("GATEWAY_BUS_URL"):  # else they are called within the steps of `_tell_all` and `_serve`
        for owner, names in CALLED.items():
            for name in names:
                time_calls(owner, name)
    threading.Thread(target=report, args=(Path(os.environ["BENCH_STEPS"]),), daemon=True).start()
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())

"""What all tests have in common: the event loop that the program runs on."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Transports differ between loops in when they write, pause and end: the tests are to see what users see."""
    return {"uvloop": uvloop.new_event_loop}

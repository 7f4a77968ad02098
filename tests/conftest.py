"""What all tests have in common: the event loop that the program runs on, and what stands in for Amazon."""

import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.aws_servers import Ministack, ministack


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Transports differ between loops in when they write, pause and end: the tests are to see what users see."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    """A ministack for all who leave it as it is, each with tables, buckets and queues of its own. From now on this
    process finds the keys to it, and none to anything else."""
    with ministack(tmp_path_factory.mktemp("aws")) as started, pytest.MonkeyPatch.context() as environ:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environ.delenv(name)
        for name, text in started.environment.items():
            environ.setenv(name, text)
        yield started

"""The stories are told in the background of all other tests, by what these leave of the machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SEEDS = int(os.environ.get("GATEWAY_TEST_SEEDS", "300"))
ROOT = Path(__file__).parents[2]

_TELLING = pytest.StashKey["subprocess.Popen[str]"]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin, where somebody will ask how it ended."""
    if session.config.option.collectonly or not any("stories" in names_of(item) for item in session.items):
        return
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.simulation", "--seeds", str(SEEDS)]
    session.config.stash[_TELLING] = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def names_of(item: pytest.Item) -> list[str]:
    """The fixtures that a test asks for."""
    return list(getattr(item, "fixturenames", ()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nobody asks any more."""
    if (telling := config.stash.get(_TELLING, None)) is not None and telling.poll() is None:
        os.killpg(telling.pid, 9)
        telling.communicate()


@pytest.fixture
def stories(request: pytest.FixtureRequest) -> Callable[[], tuple[int, str]]:
    """Waits until all are told: the exit code, and what was said."""

    def told() -> tuple[int, str]:
        telling = request.config.stash[_TELLING]
        said, _ = telling.communicate()
        return telling.returncode, said

    return told

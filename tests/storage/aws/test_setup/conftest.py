"""What all tests of the setup have in common: a place to set up, and no patience."""

import os
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.loaders import create_loader

from storage.aws.setup import queue, table
from tests.aws_servers import Ministack
from tests.storage.aws.test_setup.places import Place, as_user, new_place


@pytest.fixture(autouse=True)
def environment(aws: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, no patience, and one botocore session for all who look at the same environment: making one takes as
    long as a few calls."""
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    as_user(monkeypatch, aws.environment)
    monkeypatch.setattr(botocore.session, "Session", _session_of_the_environment)
    monkeypatch.setattr(botocore.session, "create_loader", _loader)
    monkeypatch.setattr(queue, "MADE_S", 0.0)
    monkeypatch.setattr(queue, "AGAIN_S", 0.01)
    monkeypatch.setattr(queue, "GRANTED_S", 0.0)
    monkeypatch.setattr(table, "LOOK_S", 0.01)


_Session = botocore.session.Session
_sessions: dict[str, Any] = {}


def _session_of_the_environment(**given: Any) -> Any:
    """Whatever a session reads, it reads from the environment: there are no files."""
    seen = sorted((name, text) for name, text in os.environ.items() if name.startswith("AWS_"))
    key = repr((seen, given))
    if key not in _sessions:
        _sessions[key] = _Session(**given)
    return _sessions[key]


@cache
def _loader(_path: str | None) -> Any:
    return create_loader()


@pytest.fixture
def place(aws: Ministack) -> Place:
    return new_place(aws)

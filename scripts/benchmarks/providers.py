"""The push providers of a benchmark: both simulators in a process of their own, whose CPU is not the sender's.

They note when each push was whole, by `time.monotonic`, which is the same in all processes (CLOCK_MONOTONIC).
"""

import asyncio
import contextlib
import hashlib
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson
import uvloop

from push.sender import Platform
from push.simulators.apns import ApnsPush, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import FcmPush, fcm_simulator
from push.simulators.ledger import Ledger, Push


class Receipt(NamedTuple):
    """A push that was accepted: its token and collapse id, the videos in its packet, and when all of it was there."""

    token: str
    collapse_id: str | None
    video_ids: tuple[str, ...]
    at_s: float


class Received(NamedTuple):
    """What has come since the last time, and why requests were refused."""

    receipts: list[Receipt]
    refused: list[str]


class Providers:
    """The simulators, while the context lasts. `settings`: what a gateway needs to push there."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_simulate, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.settings: dict[str, str] = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the simulators did not start") from None
        self.pid = self._process.pid or 0

    def received(self, count: int, *, wait_s: float) -> Received:
        """All that came since the last call, once that are `count` pushes, or after `wait_s`."""
        until_s = time.monotonic() + wait_s
        while self._ask("count") < count and time.monotonic() < until_s:
            time.sleep(0.05)
        received: Received = self._ask("take")
        return received

    def _ask(self, command: str) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join()


def push_token(platform: Platform, client_id: str) -> str:
    """A push token of a client's, of the form that its provider demands."""
    digest = hashlib.sha256(client_id.encode()).hexdigest()
    return digest if platform is Platform.APNS else f"{digest[:22]}:APA91b{digest}{digest}"


class _Ledger(Ledger[Push]):
    """Notes when each push was accepted, which is when all of its request was there."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s: list[float] = []

    def accept(self, push: Push) -> None:
        """A push is accepted."""
        self.at_s.append(time.monotonic())
        super().accept(push)

    def take(self) -> Iterator[tuple[Push, float]]:
        """All so far, which it forgets."""
        taken = zip(self.received, self.at_s, strict=True)
        self.received, self.at_s = [], []
        return taken


def _simulate(pipe: "Connection[Any, Any]") -> None:
    """The process of the simulators; it ends with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="gateway-providers-") as folder:
        uvloop.run(_serve(Path(folder), pipe))


async def _serve(folder: Path, pipe: "Connection[Any, Any]") -> None:
    authority = Authority(folder)
    of_apns, of_fcm = _Ledger[ApnsPush](), _Ledger[FcmPush]()
    async with (
        # aioapns has a provider token for each connection, and here that is no reason to wait 20 minutes.
        apns_simulator(folder, authority=authority, update_s=0, ledger=of_apns) as apple,
        fcm_simulator(folder, authority=authority, ledger=of_fcm) as google,
    ):

        def take() -> Received:
            receipts = [Receipt(push.token, push.collapse_id, _videos(push.data), at) for push, at in of_apns.take()]
            receipts += [Receipt(push.token, push.collapse_key, _videos(push.data), at) for push, at in of_fcm.take()]
            refused = of_apns.refused + of_fcm.refused
            of_apns.refused, of_fcm.refused = [], []
            return Received(receipts, refused)

        pipe.send(
            {
                "GATEWAY_APNS_ENDPOINT": apple.endpoint,
                "GATEWAY_APNS_CA_FILE": str(authority.ca_file),
                "GATEWAY_APNS_KEY_FILE": str(apple.key_file),
                "GATEWAY_APNS_KEY_ID": apple.key_id,
                "GATEWAY_APNS_TEAM_ID": apple.team_id,
                "GATEWAY_APNS_TOPIC": apple.topic,
                "GATEWAY_FCM_ENDPOINT": google.endpoint,
                "GATEWAY_FCM_CA_FILE": str(authority.ca_file),
                "GATEWAY_FCM_CREDENTIALS_FILE": str(google.credentials_file),
            }
        )
        with contextlib.suppress(EOFError):  # the end of the context
            while True:
                command = await asyncio.to_thread(pipe.recv)
                pipe.send(take() if command == "take" else len(of_apns.received) + len(of_fcm.received))


def _videos(data: Any) -> tuple[str, ...]:
    """The videos that the packet in a push tells of."""
    return tuple(video["video_id"] for video in orjson.loads(data["packet"])["incoming"])

"""Both simulators for somebody who builds an app: started, configured by options, watched in the terminal."""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from push.simulators import apns, fcm
from push.simulators.answers import Answer, Cut, Late, Reaction
from push.simulators.apns import ApnsPush, ApnsSimulator, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import FcmPush, FcmSimulator, fcm_simulator
from push.simulators.ledger import Push
from push.simulators.telling import Telling, apns_line, fcm_line

COUNT_S = 1.0
"""How often counts are told."""


@dataclass(frozen=True, slots=True)
class Mood:
    """How pushes are to be treated: `share` of those to the provider that knows `reason` get it; all answers are
    `late_s` late; or nothing is answered (`down`)."""

    reason: str | None = None
    share: float = 1.0
    late_s: float = 0.0
    down: bool = False

    def reacts(self, refusal: Callable[[str], Answer], *, known: bool) -> tuple[str | None, Reaction | None]:
        """The reason that one push is not accepted for, and what is done about it. `known`: its provider knows it."""
        if self.down:
            return "cut", Cut()
        refused = self.reason if known and random.random() < self.share else None
        answer = None if refused is None else refusal(refused)
        return refused, Late(self.late_s, answer) if self.late_s else answer


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run until somebody ends it."""
    options = _options()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        uvloop.run(_run(folder, options.mood, quiet=options.quiet))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="push-simulators", description="Simulators of APNs and FCM on this machine.")
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where keys and certificates go; a temporary one if not given"
    )
    parser.add_argument("--late", type=float, default=0.0, metavar="SECONDS", help="answer so late")
    parser.add_argument("--answer", type=_answer, default=(None, 1.0), metavar="REASON[:SHARE]", help=_answer.__doc__)
    parser.add_argument("--down", action="store_true", help="answer nothing: cut the connection instead")
    parser.add_argument("--quiet", action="store_true", help="counts once a second, in place of a line for each push")
    options = parser.parse_args()
    reason, share = options.answer
    options.mood = Mood(reason, share, options.late, options.down)
    return options


def _answer(text: str) -> tuple[str, float]:
    """refuse pushes, or a share of them from 0 to 1, with a reason of APNs' or an error code of FCM's"""
    reason, _, share = text.partition(":")
    if reason not in apns.REASONS and reason not in fcm.ERROR_CODES:
        known = ", ".join([*apns.REASONS, *fcm.ERROR_CODES])
        raise argparse.ArgumentTypeError(f"{reason} is none of {known}")
    if not 0 <= float(share or 1) <= 1:
        raise argparse.ArgumentTypeError(f"{share} of {reason} is no share from 0 to 1")
    return reason, float(share or 1)


async def _run(folder: Path, mood: Mood, *, quiet: bool) -> None:
    tell = None if quiet else _write
    of_apns = Telling[ApnsPush]("apns", apns_line, tell)
    of_fcm = Telling[FcmPush]("fcm", fcm_line, tell)
    authority = Authority(folder)
    async with (
        # A gateway that is started again has a new provider token, and here that is no reason to wait 20 minutes.
        apns_simulator(folder, authority=authority, update_s=0, ledger=of_apns) as apple,
        fcm_simulator(folder, authority=authority, ledger=of_fcm) as google,
    ):
        apple.react = _reaction(mood, of_apns, refusal=_apns_refusal, known=mood.reason in apns.REASONS)
        google.react = _reaction(mood, of_fcm, refusal=fcm.refusal, known=mood.reason in fcm.ERROR_CODES)
        google.oauth_react = lambda _: Cut() if mood.down else None
        _tell_settings(apple, google)
        await _until_ended(lambda: f"{of_apns.counts}; {of_fcm.counts}" if quiet else None)


def _reaction(
    mood: Mood, telling: Telling[Push], *, refusal: Callable[[str], Answer], known: bool
) -> Callable[[Push], Reaction | None]:
    def react(push: Push) -> Reaction | None:
        reason, reaction = mood.reacts(refusal, known=known)
        if reason is not None:
            telling.answered(push, reason)
        return reaction

    return react


def _apns_refusal(reason: str) -> Answer:
    dead = apns.REASONS[reason] == 410
    return apns.refusal(reason, timestamp_ms=int(time.time() * 1000) if dead else None)


def _tell_settings(apple: ApnsSimulator, google: FcmSimulator) -> None:
    settings = {
        "APNS_ENDPOINT": apple.endpoint,
        "APNS_CA_FILE": apple.authority.ca_file,
        "APNS_KEY_FILE": apple.key_file,
        "APNS_KEY_ID": apple.key_id,
        "APNS_TEAM_ID": apple.team_id,
        "APNS_TOPIC": apple.topic,
        "FCM_ENDPOINT": google.endpoint,
        "FCM_CA_FILE": google.authority.ca_file,
        "FCM_CREDENTIALS_FILE": google.credentials_file,
    }
    for name, value in settings.items():
        _write(f"GATEWAY_{name}={value}")


async def _until_ended(counts: Callable[[], str | None]) -> None:
    """Return at SIGINT or SIGTERM; until then, tell the counts when they have changed."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    told = None
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), COUNT_S)
        if (now := counts()) != told and now is not None:
            told = now
            _write(now)


if __name__ == "__main__":
    main()

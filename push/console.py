"""The sender of the one-box gateway: it shows each push as a phone would, instead of sending it anywhere.

Whoever plays a phone (the tour, the demo) can listen for what "arrives" at a token.
"""

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable
from typing import Self
from weakref import WeakSet

import orjson

from push.sender import Accepted, Alert, Content, Outcome, Wakeup, carried

MOST_WAITING = 64
"""Pushes that may wait for a listener that does not read; the oldest goes first, as collapsing would have it."""


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class ConsoleSender:
    """Accepts every push, and shows it with `show`, a line each. The token itself is never shown.

    `spread(key, body)`: instead of having it arrive here, have `arrive` called wherever there may be listeners.
    """

    def __init__(
        self,
        show: Callable[[str], None] = _write,
        *,
        spread: Callable[[str, bytes], Awaitable[None]] | None = None,
    ) -> None:
        self._show = show
        self._spread = spread
        self._listeners: WeakSet[Listening] = WeakSet()
        self._closed = False

    async def send(self, wakeup: Wakeup) -> Outcome:
        self._show(describe(wakeup))
        key, body = _key(wakeup.token), payload(wakeup.content)
        if self._spread is None:
            self.arrive(key, body)
        else:
            await self._spread(key, body)
        return Accepted()

    def arrive(self, key: str, body: bytes) -> None:
        """A push has been shown: whoever listens at the token of this key gets its payload."""
        for listening in self._listeners:
            if listening.key == key:
                listening.put(body)

    def listen(self, token: str) -> "Listening":
        """The payloads that arrive at `token` from now on, until the sender is closed: JSON, one each."""
        listening = Listening(_key(token))
        self._listeners.add(listening)
        if self._closed:
            listening.put(None)
        return listening

    async def close(self) -> None:
        self._closed = True
        for listening in self._listeners:
            listening.put(None)


class Listening:
    """What arrives at one token, an async iterator of payloads. Whoever lets go of it has stopped listening."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_WAITING)
        self._ended = False

    def put(self, body: bytes | None) -> None:
        """Have `body` arrive, or (None) the end."""
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body = None if self._ended else await self._waiting.get()
        if body is None:
            self._ended = True
            raise StopAsyncIteration
        return body


def _key(token: str) -> str:
    """What stands for a token between processes."""
    return hashlib.sha256(token.encode()).hexdigest()


def describe(wakeup: Wakeup) -> str:
    """What a push looks like on the phone, in a line."""
    content = wakeup.content
    what = f"a packet of {len(content.packet)} bytes" if content.packet is not None else "no packet"
    carries = f"version {content.version}, {what}"
    return f"[push] {wakeup.platform} to {wakeup.collapse_id}: {_shown(content.alert)} ({carries})"


def _shown(alert: Alert | None) -> str:
    if alert is None:
        return "in the background, nothing to see"
    sound = "with a sound" if alert.sound else "silently"
    return f"{alert.loc_key} {', '.join(alert.loc_args)}, badge {alert.badge}, {sound}"


def payload(content: Content) -> bytes:
    """What the app on the phone is handed: `version` as a decimal string, the packet as a JSON string where the whole
    is not more than providers carry, the alert."""
    alert: dict[str, object] = {}
    if (shown := content.alert) is not None:
        alert["alert"] = {
            "loc-key": shown.loc_key,
            "loc-args": shown.loc_args,
            "badge": shown.badge,
            "sound": shown.sound,
        }
    return orjson.dumps(carried(content, lambda data: orjson.dumps(data | alert)) | alert)

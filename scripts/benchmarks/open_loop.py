"""A load that does not wait: whatever is to begin begins when its time has come, however long the rest takes (an open
loop)."""

import selectors
import time
from collections import deque
from collections.abc import Generator, Iterable
from typing import NamedTuple

from bench_calls import Connection


class Answer(NamedTuple):
    """An answer with a status of 2xx, and when its request was sent and it was there, by `time.monotonic`."""

    body: bytes
    sent_s: float
    answered_s: float


Script = Generator[bytes, Answer, None]
"""One request after the other, each made of the answers so far."""


class _Call(NamedTuple):
    script: Script
    connection: Connection
    sent_s: float


class OpenLoop:
    """A number of connections, opened and kept as a proxy in front of the gateway does; more where all are in use."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._free = deque(Connection(port) for _ in range(connections))
        self._selector = selectors.DefaultSelector()

    def run(self, scripts: Iterable[tuple[float, Script]]) -> None:
        """Run them all to their end. `scripts`: each with the seconds from now on after which it begins."""
        waiting = deque(sorted(scripts, key=lambda script: script[0]))
        began_s = time.monotonic()
        while waiting or self._selector.get_map():
            while waiting and waiting[0][0] <= time.monotonic() - began_s:
                _, script = waiting.popleft()
                self._ask(script, next(script))
            left_s = waiting[0][0] - (time.monotonic() - began_s) if waiting else None
            for key, _ in self._selector.select(left_s if left_s is None else max(left_s, 0)):
                self._hear(key.data)

    def _ask(self, script: Script, request: bytes) -> None:
        connection = self._free.popleft() if self._free else Connection(self._port)
        call = _Call(script, connection, time.monotonic())
        connection.send(request)
        self._selector.register(connection.socket, selectors.EVENT_READ, call)

    def _hear(self, call: _Call) -> None:
        connection = call.connection
        if not connection.answered():
            return
        answer = Answer(connection.body, call.sent_s, time.monotonic())
        if not connection.status.startswith(b"2"):
            raise SystemExit(f"answered {connection.status!r}: {answer.body!r}")
        self._selector.unregister(connection.socket)
        self._free.append(connection)
        try:
            request = call.script.send(answer)
        except StopIteration:
            return
        self._ask(call.script, request)

    def close(self) -> None:
        """End the connections."""
        for connection in self._free:
            connection.socket.close()
        self._selector.close()

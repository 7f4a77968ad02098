"""What a device says and hears over its open socket."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, assert_never

import orjson
from prometheus_client import Counter

from gateway.api import messages
from gateway.api.auth import LEEWAY_S, Authorizer, Identity
from gateway.api.limits import RateLimiter
from gateway.api.messages import Ack, StatusMessage, TokenMessage
from gateway.bus.bus import Cause
from gateway.errors import GatewayError, Invalid, RateLimited, Unauthorized
from gateway.journal import Event
from gateway.live.closing import CloseCode
from gateway.live.connection import Connection
from gateway.live.hub import Hub
from gateway.metrics import Metrics
from gateway.service import Service
from gateway.transit.decisions import APPLIED
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, DeviceId

MOST_MALFORMED = 10
"""So many messages that cannot be read end a socket."""

BATCH = 64
"""Messages that are looked after at once. While as many wait behind them, nothing more is read."""

_CLOSE_CODES = {Cause.DISPLACED: CloseCode.DISPLACED, Cause.LOGGED_OUT: CloseCode.UNAUTHORIZED}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Desk:
    """What the sessions of a process work with."""

    service: Service
    hub: Hub
    authorizer: Authorizer
    limiter: RateLimiter
    metrics: Metrics
    clock: Callable[[], float] = time.time
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _frames: dict[object, Counter] = field(default_factory=dict)

    def count(self, kind: object) -> None:
        """Count an app's message. What a label leads to is looked up once: that costs more than the counting."""
        counter = self._frames.get(kind)
        if counter is None:
            counter = self._frames[kind] = self.metrics.frames.labels(kind)
        counter.inc()

    def note(self, session: "Session", event: Event, *what: int) -> None:
        """Note what happened to a device's socket."""
        self.service.changes.journal.note(session.client_id, event, *what, device_id=session.device_id)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have this done; the process's end waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up whatever is still being done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Session:
    """One device's socket: a `Session` to its connection, a `Socket` to the hub.

    Statuses that come while others are being written are written together, in one change. Acknowledgements join them,
    and cost nothing where the newest packet asks for none.
    """

    __slots__ = (
        "_acked",
        "_asks",
        "_connection",
        "_desk",
        "_ended",
        "_identity",
        "_leaving",
        "_malformed",
        "_newest_ack",
        "_opened_s",
        "_waiting",
        "_working",
        "device_id",
        "rank",
    )

    def __init__(self, desk: Desk, connection: Connection, identity: Identity, device_id: DeviceId) -> None:
        self.device_id = device_id
        self.rank = desk.hub.rank()
        self._desk = desk
        self._connection = connection
        self._identity = identity
        self._waiting: list[StatusMessage | TokenMessage] | None = None
        self._working = False
        self._acked = 0
        self._newest_ack = 0
        self._asks = False
        self._malformed = 0
        self._leaving: bytes | None = None
        self._ended: int | None = None
        self._opened_s = 0.0

    @property
    def client_id(self) -> ClientId:
        """Whose it is."""
        return self._identity.client_id

    @property
    def opened_at(self) -> int:
        return int(self._opened_s * 1000)

    @property
    def acked(self) -> int:
        return self._acked

    def begins(self, *, acked: int, asks: bool) -> None:
        """The socket is about to open. `acked`: what its address acknowledged; `asks`: whether there is more to."""
        self._acked = acked
        self._asks = self._asks or asks

    def opened(self) -> None:
        """The socket is open."""
        self._opened_s = self._desk.clock()
        self._desk.metrics.sockets.inc()
        self._desk.note(self, Event.OPENED)
        log.debug("a socket opened", extra=self._names())

    # --- To the hub

    @property
    def version(self) -> int:
        return self._connection.version

    def offer(self, version: int, frame: bytes, asks: bool) -> bool:
        self._asks = asks
        return self._connection.offer(version, frame)

    def dismiss(self, cause: Cause) -> None:
        self._connection.close(_CLOSE_CODES[cause], cause)

    def restart(self, retry_ms: int) -> None:
        self._leaving = orjson.dumps({"retry_ms": retry_ms})
        self._connection.set_busy(busy=True)  # what comes now is for another process
        self._leave_when_idle()

    def abort(self) -> None:
        self._connection.abort()

    # --- To its connection

    def frames_came(self, frames: int) -> None:
        try:
            self._desk.limiter.take(self.client_id, frames)
        except RateLimited:
            self._connection.close(CloseCode.TOO_FAST, "too many frames")

    def text_came(self, text: bytes) -> None:
        try:
            message = messages.read(text)
        except Invalid as error:
            self._refuse(text, error)
            return
        self._desk.count(message.__struct_config__.tag)
        match message:
            case Ack(version):
                self._acknowledge(version)
            case StatusMessage() | TokenMessage():
                if self._waiting is None:
                    self._waiting = []
                self._waiting.append(message)
                if isinstance(message, StatusMessage) and isinstance(message.version, int):
                    self._acknowledge(message.version)
                if len(self._waiting) >= BATCH:
                    self._connection.set_busy(busy=True)
            case _:
                assert_never(message)
        self._work_on()

    def time_left_s(self) -> float:
        return self._identity.expires_at + LEEWAY_S - self._desk.clock()

    def ended(self, code: int) -> None:
        self._desk.hub.leave(self.client_id, self)
        self._desk.metrics.sockets.dec()
        self._desk.metrics.sockets_closed.labels(_label(code)).inc()
        self._desk.note(self, Event.CLOSED, code)
        if log.isEnabledFor(logging.DEBUG):
            seconds = round(self._desk.clock() - self._opened_s, 3)
            log.debug("a socket ended", extra={**self._names(), "code": code, "seconds": seconds})
        self._ended = code
        self._wake_when_idle()

    # --- What is asked

    def _refuse(self, text: bytes, error: Invalid) -> None:
        self._desk.count("malformed")
        self._connection.answer(messages.refused(messages.echo(text), error))
        self._malformed += 1
        if self._malformed >= MOST_MALFORMED:
            self._connection.close(CloseCode.MALFORMED, "too many messages that cannot be read")

    def _acknowledge(self, version: int) -> None:
        if self._asks and version > self._acked:
            self._newest_ack = max(self._newest_ack, version)

    def _work_on(self) -> None:
        """Look after what waits, unless that is being done."""
        if not self._working and (self._waiting or self._newest_ack):
            self._working = True
            self._desk.start(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting or self._newest_ack:
                waiting = self._waiting or []
                self._waiting = waiting[BATCH:] or None
                self._connection.set_busy(busy=self._leaving is not None or len(waiting) >= 2 * BATCH)
                await self._look_after(waiting[:BATCH])
        except Exception:
            log.exception("a socket's session failed", extra=self._names())
            self._connection.close(CloseCode.FAULT, "something is wrong on our side")
        finally:
            self._working = False
            self._leave_when_idle()
            self._wake_when_idle()

    async def _look_after(self, waiting: list[StatusMessage | TokenMessage]) -> None:
        """Statuses in a row together, a token by itself."""
        statuses: list[StatusMessage] = []
        for message in waiting:
            if isinstance(message, StatusMessage):
                statuses.append(message)
                continue
            if statuses:
                await self._report(statuses)
                statuses = []
            await self._renew(message)
        if statuses or self._newest_ack:
            await self._report(statuses)

    async def _report(self, statuses: list[StatusMessage]) -> None:
        version, self._newest_ack = self._newest_ack, 0
        acked = min(version, self.version)  # a claim beyond that says nothing of packets to come
        seen = Acknowledgement(self.device_id, version) if version else None
        said = [status.said for status in statuses]
        try:
            answers, state = await self._desk.service.report(self.client_id, said, seen)
        except GatewayError as error:
            # An acknowledgement that fails with it is made up for by the push that it would have kept away.
            for status in statuses:
                self._connection.answer(messages.refused_message(status, error))
            return
        self._acked = max(self._acked, acked)
        for status, verdict in zip(statuses, answers, strict=True):
            if isinstance(verdict, GatewayError):
                self._connection.answer(messages.refused_message(status, verdict))
            else:
                self._connection.answer(messages.result(status, verdict, state.version))

    async def _renew(self, message: TokenMessage) -> None:
        try:
            identity = await self._desk.authorizer.verify(message.token)
        except Unauthorized as error:
            self._connection.close(CloseCode.UNAUTHORIZED, error.detail)
            return
        except GatewayError as error:
            self._connection.answer(messages.refused_message(message, error))
            return
        if identity.client_id != self.client_id or identity.device_id not in {None, self.device_id}:
            self._connection.close(CloseCode.UNAUTHORIZED, "the token is of another client or device")
            return
        self._identity = identity
        self._connection.time_has_changed()
        self._connection.answer(messages.result(message, APPLIED, max(self.version, 0)))

    def _leave_when_idle(self) -> None:
        if self._leaving is not None and not self._working:
            self._connection.close(CloseCode.RESTART, self._leaving.decode())

    def _wake_when_idle(self) -> None:
        """The socket has ended, and what was said over it is written down: if there was news that the device did not
        acknowledge, it is woken without waiting for that."""
        told = not self._asks or self._acked >= self.version
        if self._ended in {None, *_STAYS} or self._working or told:
            return
        self._desk.start(self._desk.hub.lost(self.client_id, self.device_id))

    def _names(self) -> dict[str, object]:
        return {"client_id": self.client_id, "device_id": self.device_id}


_STAYS = frozenset({CloseCode.DISPLACED, CloseCode.RESTART})
"""Close codes of devices that are connected elsewhere, or will be in a moment."""

_KNOWN = frozenset(map(int, CloseCode))


def _label(code: int) -> str:
    """A close code as a label: those that only apps invent are one."""
    return str(code) if code < 3000 or code in _KNOWN else "other"

"""A phone's socket: opened, listened to, and checked, as the phone's core wants it."""

import asyncio
import time
from typing import TYPE_CHECKING

import orjson

from gateway.client import GatewayError, Packet, Result, SocketClosed
from gateway.client.failures import problem
from gateway.client.fields import Fields
from gateway.client.messages import refused
from gateway.client.tasks import Connect, Tell
from gateway.transit.state import Status
from scripts.loadtest.calls import CALL_S
from scripts.loadtest.connections import Answer
from scripts.loadtest.deliveries import Deliveries
from scripts.loadtest.tally import Count, Fault, Opening
from scripts.loadtest.websocket import Socket

if TYPE_CHECKING:
    from scripts.loadtest.phone import Phone

RESTARTING, DISPLACED = 1012, 4409

REOPENED_S = 5.0
"""A phone whose socket was displaced holds polls until its app is opened again, which its user does after this time.
It is displaced by a handshake of its own that it gave up, and that a process took up late."""

_PACKET = b'{"type":"info",'
"""How a packet begins as a rule; then it need not be read twice."""


class Line:
    """The socket of one phone, and the one that it left behind."""

    __slots__ = (
        "_began_s",
        "_dialling",
        "_first",
        "_frozen",
        "_gone",
        "_last_id",
        "_loop",
        "_phone",
        "_socket",
        "_task",
        "_tells",
        "deliveries",
    )

    def __init__(self, phone: "Phone") -> None:
        self._loop = asyncio.get_running_loop()
        self._phone = phone
        self._task: Connect | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._socket: Socket | None = None
        self._frozen: Socket | None = None
        self._tells: dict[int, tuple[Tell, float, asyncio.TimerHandle]] = {}
        self._last_id = 0
        self._began_s = 0.0
        self._first = False
        self._gone: tuple[Opening, float] | None = None
        self.deliveries: Deliveries | None = None
        """Of the socket that is open."""

    # --- What the core wants

    def connect(self, task: Connect) -> None:
        """Open it."""
        self._task = task
        self._began_s = time.monotonic()
        self._first = task.version == 0
        asked = self._phone.caller.handshake(task.version)
        self._socket = Socket(self, asked)
        made = self._socket
        pools = self._phone.world.pools
        self._dialling = pools.dialler.dial(pools.gateway.origin, lambda: made, lambda: self.socket_refused(made, None))

    def abandon(self, task: Connect) -> None:
        """The core has given that one up."""
        if self._task is task:
            self.drop(silently=False)

    def acknowledge(self, version: int) -> None:
        """Say that a packet is applied."""
        if self._socket is not None:
            self._socket.say(b'{"type":"ack","version":%d}' % version)

    def tell(self, task: Tell) -> None:
        """Report a status."""
        self._phone.world.tally.count(Count.ASKED)
        self._last_id += 1
        id_ = self._last_id
        timer = self._loop.call_later(CALL_S, self._unanswered, id_)
        self._tells[id_] = task, time.monotonic(), timer
        if self._socket is not None:
            self._socket.say(orjson.dumps({"type": "status", "id": id_, **task.report.members}))

    def owes(self, version: int) -> None:
        """An answer tells of a packet of that version."""
        if self.deliveries is not None:
            self.deliveries.owes(version, time.monotonic())

    # --- What becomes of the network

    @property
    def heard_s(self) -> float | None:
        """When the socket that is open brought something last."""
        return None if self._socket is None or self.deliveries is None else self._socket.heard_s

    def cut(self, why: Opening) -> None:
        """TCP is cut, and the core hears of that."""
        if self._socket is not None and self.deliveries is not None:
            self._gone = self._gone or (why, time.monotonic())
            self._socket.cut()

    def drop(self, *, silently: bool) -> None:
        """It is over, and the core knows. `silently`: TCP stays as it is, and is neither read nor answered."""
        socket, self._socket, self._task = self._socket, None, None
        opened, self.deliveries, self._gone = self.deliveries is not None, None, None
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if socket is not None and silently and opened:
            self._frozen = socket
            socket.freeze()
        elif socket is not None:
            socket.abort()
        self._ended(opened=opened)

    def bury(self) -> None:
        """What was left behind is gone for good."""
        if self._frozen is not None:
            self._frozen.abort()
            self._frozen = None

    def _ended(self, *, opened: bool) -> None:
        if opened:
            self._phone.world.tally.count(Count.ENDED)
        for id_ in list(self._tells):
            self._unanswered(id_)

    def _unanswered(self, id_: int) -> None:
        if (asked := self._tells.pop(id_, None)) is not None:
            asked[2].cancel()
            self._phone.failed(asked[0], _kind(asked[0]), GatewayError(None, None, "no answer came"))

    # --- What the socket hears

    def socket_opened(self, socket: Socket) -> None:
        task, now_s = self._task, time.monotonic()
        if socket is not self._socket or task is None:
            return
        self._dialling = None
        tally = self._phone.world.tally
        tally.count(Count.OPENED)
        tally.took(Opening.OPEN, now_s - self._began_s)
        if self._gone is not None:
            tally.took(self._gone[0], now_s - self._gone[1])
            self._gone = None
        self.deliveries = Deliveries(task.version)
        self._phone.core.opened(task)
        self._phone.stir()

    def socket_refused(self, socket: Socket, answer: Answer | None) -> None:
        task = self._task
        if socket is not self._socket or task is None:
            return
        self._socket = self._task = self._dialling = None
        if answer is None:
            error = GatewayError(None, None, "no answer came")
        else:
            error = problem(answer.status, answer.body, answer.retry_after)
        self._phone.failed(task, "socket", error)

    def socket_ended(self, socket: Socket, code: int, reason: str) -> None:
        task = self._task
        if socket is not self._socket or task is None:
            return
        if self._gone is None:
            why = Opening.RESTART if code == RESTARTING else Opening.OTHER
            self._gone = (why, time.monotonic())
            self._phone.world.tally.end(code)
        self._socket = self._task = self.deliveries = None
        self._phone.core.closed(task, SocketClosed(code, reason))
        self._ended(opened=True)
        if code == DISPLACED:
            self._loop.call_later(REOPENED_S, self._phone.reopen)
        self._phone.stir()

    def socket_heard(self, socket: Socket, text: bytes) -> None:
        if socket is not self._socket or self._task is None:
            return
        try:
            if text.startswith(_PACKET):
                self._came(Packet.parse(text))
                return
            fields = Fields.parse(text)
            match fields.text("type"):
                case "info":
                    self._came(Packet.parse(text))
                case "result":
                    self._told(fields, text)
                case "error":
                    self._told(fields, None)
        except ValueError:
            self._phone.world.tally.fault(Fault.WRONG, f"{self._phone.name} heard what the protocol does not have")
            socket.cut()

    def _came(self, packet: Packet) -> None:
        assert self._task is not None
        assert self.deliveries is not None
        now_s = time.monotonic()
        phone = self._phone
        tally = phone.world.tally
        tally.count(Count.PACKETS)
        if packet.client_id != phone.name:
            tally.fault(Fault.WRONG, f"{phone.name} heard a packet of another client")
            return
        if self._first:
            self._first = False
            tally.took(Opening.FIRST, now_s - self._began_s)
        for found in self.deliveries.came(packet.version, now_s):
            if isinstance(found, Fault):
                tally.fault(found, f"{phone.name}, at version {packet.version} on its socket")
            else:
                tally.count(found)
        phone.world.book.saw(phone, packet, now_s)
        phone.core.came(self._task, packet)
        phone.stir()

    def _told(self, fields: Fields, result: bytes | None) -> None:
        """An answer; None: it is an error."""
        id_ = fields.value("id")
        asked = self._tells.pop(id_, None) if isinstance(id_, int) else None
        if asked is None:
            return
        task, since_s, timer = asked
        timer.cancel()
        if result is None:
            self._phone.failed(task, _kind(task), refused(fields))
            return
        outcome = Result.parse(result, task.report.video_id)
        self._phone.world.tally.count(Count.SERVED)
        self._phone.world.tally.took(_kind(task), time.monotonic() - since_s)
        self._phone.answered(task, outcome)


def _kind(task: Tell) -> str:
    return "confirm" if task.report.status is Status.UPLOADED else "report"

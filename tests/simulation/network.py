"""The network between phones and processes, and the phone's side of it: the interface of the client's `Calls`.

    network = Network(scheduler, seed, witness, objects)
    network.processes                           those that the load balancer knows; the world keeps this list
    network.uploads = Uploads.DISK              how the gateway hears of bytes that were stored
    line = network.line(name, loop)             a phone's line; `line.loop = …` where the app starts anew

    await line.request(method, path, query=…, headers=…, body=…)  -> Answer(status, headers, body)
    await line.socket(path, query, token)       -> PhoneSocket; GatewayError where it is refused
    await line.put(url, data)                   -> status of an upload to a signed URL
    await line.get(url)                         -> (status, bytes) of a download

`request`, `put` and `get` raise httpx.ConnectError and httpx.ReadError, or wait until their caller gives up.

    SimulatedCalls(line, token, call_s)         in place of `gateway.client.calls.Calls`: `client._calls = …`

What a line does to its phone:

    line.go_offline() / line.go_online(survive=0.5)   sockets live on with that probability; else one side knows nothing
    line.lose_request, line.lose_answer, line.duplicate, line.slow     probabilities
    line.stall(for_s)                           the phone reads nothing of its sockets
    line.break_sockets()                        both ends notice
    line.silence_sockets()                      neither end notices
    line.die()                                  the app ends without a word: its loop is killed
    line.sockets                                those that are open or about to be
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum, StrEnum
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import httpx
import orjson
from starlette.types import ASGIApp
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from gateway.api.socket import SocketDoor
from gateway.client.calls import Bearer, Token
from gateway.client.failures import GatewayError, problem, reaching, refusal
from gateway.live.handshake import SUBPROTOCOL
from tests.simulation.backends import ObjectsState
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.witness import Witness

PING_S, PONG_S = 20.0, 20.0
"""A phone's own keepalive: the defaults of `websockets`."""

CLOSE_S = 5.0
"""How long a phone waits for the other side of a close."""

SOCKET_BUFFER = 4096
"""Bytes that are under way to a phone before its process notices that they are not read."""

NOTICE_S = 2.0
"""After so long the load balancer knows that a process is not there."""

LATEST_COPY_S = 30.0

_KEY = b"c2ltdWxhdGlvbi1vbi1pdA=="  # 16 bytes in base64


class Answer(NamedTuple):
    """What a call was answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Uploads(StrEnum):
    """How the gateway hears that bytes were stored."""

    DISK = "disk"
    """Through it they came: it completes the upload before it answers."""
    EVENTS = "events"
    """The store tells one of the processes, seconds later, maybe twice, maybe never."""
    NOTHING = "nothing"
    """It does not, but by the app and the sweep."""


class Served(Protocol):
    """A process, as the network sees it."""

    name: str
    loop: MachineLoop
    out_s: float
    """Since when it takes nothing new."""
    calls: "dict[int, _Call]"
    wires: "dict[int, Wire]"

    @property
    def asgi(self) -> ASGIApp: ...

    @property
    def door(self) -> SocketDoor: ...

    async def stored(self, key: str) -> None:
        """Bytes were stored under `key`: complete the upload."""
        ...


class Network:
    """All lines, and the load balancer."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness, objects: ObjectsState) -> None:
        self.scheduler = scheduler
        self.rng = random.Random(seed)
        self.witness = witness
        self.objects = objects
        self.processes: Sequence[Served] = []
        self.uploads = Uploads.DISK
        self.numbers = 0

    def line(self, name: str, loop: MachineLoop) -> "Line":
        """The line of a phone."""
        return Line(self, name, loop)

    def number(self) -> int:
        """A number for a call or a socket."""
        self.numbers += 1
        return self.numbers

    def pick(self) -> Served | None:
        """The process that the load balancer chooses."""
        now_s = self.scheduler.now_s
        known = [process for process in self.processes if process.out_s + NOTICE_S > now_s]
        return self.rng.choice(known) if known else None

    def latency_s(self, slow: float = 0.0) -> float:
        """One way: mostly 10 to 100 ms, now and then seconds."""
        draw = self.rng.random()
        if draw < slow or draw > 0.998:
            return self.rng.uniform(0.3, 8)
        return 0.01 + 0.09 * draw * draw

    def crashed(self, process: Served) -> None:
        """A process is gone: TCP says so to whoever is connected to it."""
        for call in list(process.calls.values()):
            self.witness.call_ended(call.number)
            if call.exchange is not None:
                call.exchange.fail(httpx.ReadError("the process is gone"))
        process.calls.clear()
        for wire in list(process.wires.values()):
            wire.server_died()
        process.wires.clear()

    def event(self, key: str) -> None:
        """The store tells one of the processes that there are bytes."""
        alive = [process for process in self.processes if process.out_s > self.scheduler.now_s]
        if alive:
            process = self.rng.choice(alive)
            process.loop.post(lambda: process.loop.start(process.stored(key)))


class Line:
    """A phone's way to the gateway."""

    def __init__(self, network: Network, name: str, loop: MachineLoop) -> None:
        self.network = network
        self.name = name
        self.loop = loop
        self.online = True
        self.stalled = False
        self.lose_request = 0.0
        self.lose_answer = 0.0
        self.duplicate = 0.0
        self.slow = 0.0
        self.sockets: list[PhoneSocket] = []
        self.late: set[str] = set()
        """Requests that arrived when the app that sent them was gone: another may have said other things since."""
        self._wires: list[Wire] = []

    # --- Calls

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One HTTP request to whichever process."""
        lower = {name.lower(): value for name, value in (headers or {}).items()}
        request = _Request(method, path, dict(query or {}), lower, body)
        exchange = _Exchange(self)
        exchange.send(request)
        try:
            return await exchange.answer
        finally:
            exchange.over()

    async def put(self, url: str, data: bytes) -> int:
        """Store bytes at a signed URL; the status of the answer."""
        exchange = _Exchange(self)
        exchange.carry(lambda answers: self._store(url, data, exchange if answers else None))
        return (await exchange.answer).status

    async def get(self, url: str) -> tuple[int, bytes]:
        """Status and bytes of what a signed URL leads to."""
        exchange = _Exchange(self)

        def fetch(answers: bool) -> None:
            status, data = self.network.objects.get(url)
            if answers:
                exchange.reply(Answer(status, [], data))

        exchange.carry(fetch)
        answer = await exchange.answer
        return answer.status, answer.body

    def _store(self, url: str, data: bytes, exchange: "_Exchange | None") -> None:
        """The bytes have arrived. On a disk they came through a process, which has to be there."""
        network = self.network
        process = network.pick() if network.uploads is Uploads.DISK else None
        if network.uploads is Uploads.DISK and (process is None or process.loop.dead or process.loop.frozen):
            if exchange is not None:
                exchange.fail(httpx.ReadError("there is no process"))
            return
        status = network.objects.put(url, data)
        key = url.partition("/objects/")[2].partition("?")[0]
        answer = Answer(status, [], b"")
        if status == 200 and process is not None:
            process.loop.post(_complete, process, key, exchange, answer)
            return
        if status == 200 and network.uploads is Uploads.EVENTS:
            for _ in range(network.rng.choice((0, 1, 1, 1, 2))):
                network.scheduler.after(network.rng.uniform(0.1, 20), lambda: network.event(key))
        if exchange is not None:
            exchange.reply(answer)

    # --- Sockets

    async def socket(self, path: str, query: Mapping[str, str], token: str, *, within_s: float = 20.0) -> "PhoneSocket":
        """A socket that the gateway has opened. Raises GatewayError."""
        socket = PhoneSocket(self)
        try:
            async with asyncio.timeout(within_s):
                await self._connect(socket, path, query, token)
        except (OSError, TimeoutError) as failure:
            raise GatewayError(None, None, type(failure).__name__) from None
        finally:
            if not socket.is_open:
                socket.abort()
        if socket.subprotocol != SUBPROTOCOL:
            socket.abort()
            raise GatewayError(None, None, "what answers speaks another protocol")
        return socket

    async def _connect(self, socket: "PhoneSocket", path: str, query: Mapping[str, str], token: str) -> None:
        network = self.network
        process = network.pick()
        if not self.online or process is None:
            await asyncio.sleep(network.rng.uniform(0.01, 3))
            raise ConnectionError("no way")
        number = network.number()
        wire = Wire(number, self, process, socket)
        self._wires.append(wire)
        self.sockets.append(socket)
        socket.wire = wire
        headers = [
            (b"host", b"gateway"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", _KEY),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-protocol", SUBPROTOCOL.encode()),
            (b"authorization", f"Bearer {token}".encode()),
        ]
        wire.ask(headers, urlencode(query).encode(), lambda: self._told(number, process, token, query))
        await socket.opened

    def _told(self, number: int, process: Served, token: str, query: Mapping[str, str]) -> None:
        self.network.witness.socket_asked(number, process.name, token, dict(query))

    def forget(self, wire: "Wire") -> None:
        """Both ends of it are gone."""
        if wire in self._wires:
            self._wires.remove(wire)

    # --- What happens to it

    def go_offline(self) -> None:
        """Nothing comes through, either way."""
        self.online = False

    def go_online(self, *, survive: float = 0.5) -> None:
        """Something comes through again. What TCP kept sending arrives at last, or only the phone knows that its socket
        is gone."""
        self.online = True
        for wire in list(self._wires):
            if self.network.rng.random() < survive:
                wire.release()
            else:
                wire.silent = True
                wire.socket.loop.post(wire.socket.lost)

    def stall(self, for_s: float) -> None:
        """The phone reads nothing for so long."""
        self.stalled = True
        self.network.scheduler.after(for_s, self._read_on)

    def _read_on(self) -> None:
        self.stalled = False
        for wire in list(self._wires):
            wire.release()

    def break_sockets(self) -> None:
        """Its sockets break, and both ends hear of it."""
        for wire in list(self._wires):
            wire.reset_both()

    def silence_sockets(self) -> None:
        """Its sockets carry nothing any more, and nobody hears of it."""
        for wire in self._wires:
            wire.silent = True

    def die(self) -> None:
        """The app ends as if it had never been; the phone's TCP says so where it can."""
        self.loop.kill()
        for wire in list(self._wires):
            wire.phone_died()
        self.sockets.clear()


def _complete(process: Served, key: str, exchange: "_Exchange | None", answer: Answer) -> None:
    """Complete an upload that came through this process, then answer it."""

    async def work() -> None:
        await process.stored(key)
        if exchange is not None:
            exchange.reply(answer)

    process.loop.start(work())


# --- HTTP


class _Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class _Exchange:
    """One request of a phone, and its answer, which may never come."""

    __slots__ = ("answer", "call", "line", "loop", "network", "process")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.network = line.network
        self.loop = line.loop
        self.answer: asyncio.Future[Answer] = line.loop.create_future()
        self.process: Served | None = None
        self.call: _Call | None = None

    def carry(self, deliver: Callable[[bool], None]) -> None:
        """Take something through the network: `deliver(True)` what is to be answered, `deliver(False)` a copy."""
        network, line = self.network, self.line
        if not line.online:
            if network.rng.random() < 0.5:
                network.scheduler.after(
                    network.rng.uniform(0.01, 3), lambda: self._raise(httpx.ConnectError("offline"))
                )
            return
        latency_s = network.latency_s(line.slow)
        if line.duplicate and network.rng.random() < line.duplicate:
            copy_s = latency_s + LATEST_COPY_S * network.rng.random() ** 2
            network.scheduler.after(copy_s, lambda: deliver(False))
        if line.lose_request and network.rng.random() < line.lose_request:
            if network.rng.random() < 0.5:
                network.scheduler.after(latency_s, lambda: self._raise(httpx.ReadError("lost")))
            return
        network.scheduler.after(latency_s, lambda: deliver(True) if line.online else None)

    def send(self, request: _Request) -> None:
        """Have a process answer this request."""
        process = self.process = self.network.pick()

        def deliver(answers: bool) -> None:
            if process is None or process.loop.dead or process.out_s <= self.network.scheduler.now_s:
                if answers:
                    self.fail(httpx.ConnectError("refused"))
            else:
                if self.loop.dead:
                    self.line.late.add(f"{request.method} {request.path}")
                process.loop.post(_serve, self.network, process, request, self if answers else None)

        self.carry(deliver)

    def reply(self, answer: Answer) -> None:
        """The answer leaves for the phone."""
        network, line = self.network, self.line
        if line.lose_answer and network.rng.random() < line.lose_answer:
            if network.rng.random() < 0.5:
                self.fail(httpx.ReadError("the answer is lost"))
            return
        network.scheduler.after(network.latency_s(line.slow), lambda: self._arrive(answer))

    def _arrive(self, answer: Answer) -> None:
        if self.line.online:
            self.loop.post(self._settle, answer, None)

    def fail(self, error: Exception) -> None:
        """The phone learns that no answer comes."""
        self.network.scheduler.after(self.network.latency_s(), lambda: self._raise(error) if self.line.online else None)

    def _raise(self, error: Exception) -> None:
        self.loop.post(self._settle, None, error)

    def _settle(self, answer: Answer | None, error: Exception | None) -> None:
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        elif answer is not None:
            self.answer.set_result(answer)

    def over(self) -> None:
        """The phone waits no longer: where it has given up, its process hears of that."""
        call = self.call
        if call is not None and not call.answered and self.line.online and not self.network.scheduler.stopped:
            self.network.scheduler.after(self.network.latency_s(), call.disconnect)


class _Call:
    """A request as a process handles it."""

    __slots__ = ("_asked", "_gone", "answered", "exchange", "number", "process", "request")

    def __init__(self, number: int, process: Served, request: _Request, exchange: _Exchange | None) -> None:
        self.number = number
        self.process = process
        self.request = request
        self.exchange = exchange
        self.answered = False
        self._asked = False
        self._gone: asyncio.Future[None] = process.loop.create_future()

    def disconnect(self) -> None:
        """The peer has gone."""
        self.process.loop.post(self._disconnect)

    def _disconnect(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the request, then the end."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.request.body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    def scope(self) -> dict[str, Any]:
        """ASGI: the connection."""
        request = self.request
        headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
        headers.append((b"host", b"gateway"))
        if request.body:
            headers.append((b"content-length", b"%d" % len(request.body)))
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.path.encode(),
            "query_string": urlencode(request.query).encode(),
            "root_path": "",
            "headers": headers,
            "client": ("phone", 1),
            "server": ("gateway", 80),
        }


def _serve(network: Network, process: Served, request: _Request, exchange: _Exchange | None) -> None:
    """A request reaches its process."""
    call = _Call(network.number(), process, request, exchange)
    process.calls[call.number] = call
    if exchange is not None:
        exchange.call = call
        if exchange.answer.done():
            call.disconnect()
    network.witness.request_came(
        call.number,
        process.name,
        request.method,
        request.path,
        query=request.query,
        headers=request.headers,
        body=request.body,
    )
    process.loop.start(_handle(network, call))


async def _handle(network: Network, call: _Call) -> None:
    status, headers, body = 0, [], bytearray()

    async def send(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
            return
        body.extend(message.get("body", b""))
        if not message.get("more_body", False):
            call.answered = True
            answer = Answer(status, headers, bytes(body))
            network.witness.answer_left(call.number, status, answer.body)
            if call.exchange is not None:
                call.exchange.reply(answer)

    try:
        await call.process.asgi(call.scope(), call.receive, send)
    except Exception as error:
        network.witness.broken("the application raised", f"{call.request.method} {call.request.path}: {error!r}")
    if call.process.calls.pop(call.number, None) is not None:
        network.witness.call_ended(call.number)


# --- Sockets


class End(Enum):
    """How one end of TCP ends, as the other sees it."""

    FIN = "fin"
    RST = "rst"


class Wire:
    """One TCP connection: what goes in at one end comes out at the other, in order, later, or never."""

    def __init__(self, number: int, line: Line, process: Served, socket: "PhoneSocket") -> None:
        self.number = number
        self.line = line
        self.process = process
        self.socket = socket
        self.silent = False
        self.unread = 0
        """Bytes on their way to the phone that it has not read."""
        self.transport: SimulatedTransport | None = None
        self._scheduler = line.network.scheduler
        self._up_s = 0.0
        self._down_s = 0.0
        self._held_up: deque[Callable[[], None]] = deque()
        self._held_down: deque[Callable[[], None]] = deque()

    def ask(self, headers: list[tuple[bytes, bytes]], query: bytes, told: Callable[[], None]) -> None:
        """Ask for the upgrade."""
        self._up(lambda: self._upgrade(headers, query, told))

    def _upgrade(self, headers: list[tuple[bytes, bytes]], query: bytes, told: Callable[[], None]) -> None:
        process = self.process
        if process.loop.dead or process.out_s <= self._scheduler.now_s:
            self.down(End.RST)
            return
        process.wires[self.number] = self

        def upgrade() -> None:
            told()
            transport = self.transport = SimulatedTransport(self)
            protocol = process.door.upgrade(transport, query, headers, early=b"", room=True)
            transport.set_protocol(protocol)

        process.loop.post(upgrade)

    # --- Up: from the phone

    def up(self, data: bytes | End, text: bytes | None = None) -> None:
        """The phone sends something; `text` of the text frame that it is."""
        self._up(lambda: self._came(data, text))

    def _up(self, deliver: Callable[[], None]) -> None:
        network = self.line.network
        self._up_s = max(self._scheduler.now_s + network.latency_s(self.line.slow), self._up_s)
        self._scheduler.at(self._up_s, lambda: self._arrive_up(deliver))

    def _arrive_up(self, deliver: Callable[[], None]) -> None:
        if self.silent:
            return
        if not self.line.online or self._held_up:
            self._held_up.append(deliver)
        else:
            deliver()

    def _came(self, data: bytes | End, text: bytes | None) -> None:
        self.process.loop.post(self._receive, data, text)

    def _receive(self, data: bytes | End, text: bytes | None) -> None:
        if self.transport is not None:
            self.transport.received(data, text)

    # --- Down: to the phone

    def down(self, data: bytes | End) -> None:
        """The process sends something."""
        network = self.line.network
        if isinstance(data, bytes):
            self.unread += len(data)
        self._down_s = max(self._scheduler.now_s + network.latency_s(self.line.slow), self._down_s)
        self._scheduler.at(self._down_s, lambda: self._arrive_down(data))

    def _arrive_down(self, data: bytes | End) -> None:
        if self.silent:
            return
        socket = self.socket
        if not self.line.online or self._held_down or (self.line.stalled and data is not End.RST):
            self._held_down.append(lambda: socket.loop.post(socket.received, data))
        else:
            socket.loop.post(socket.received, data)

    def read(self, count: int) -> None:
        """The phone has read so many bytes."""
        self.unread -= count
        if self.transport is not None and self.transport.waits:
            self.process.loop.post(self.transport.drain)

    def release(self) -> None:
        """What was held comes through."""
        while self._held_up and self.line.online and not self.silent:
            self._held_up.popleft()()
        while self._held_down and self.line.online and not self.line.stalled and not self.silent:
            self._held_down.popleft()()

    # --- The end

    def reset_both(self) -> None:
        """It breaks, and both ends hear of it."""
        self.down(End.RST)
        self.up(End.RST)

    def server_died(self) -> None:
        """The process is gone, and its machine says so."""
        self.line.network.witness.socket_ended(self.number)
        self.transport = None
        self.down(End.RST)

    def phone_died(self) -> None:
        """The app is gone, and its phone says so where it can."""
        if self.line.online:
            self.up(End.RST)
        else:
            self.silent = True
        self.line.forget(self)

    def server_over(self) -> None:
        """The process's end is gone."""
        self.process.wires.pop(self.number, None)
        self.line.network.witness.socket_ended(self.number)


class SimulatedTransport(asyncio.Transport):
    """The process's end of a wire, as asyncio gives it to a protocol."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._loop = wire.process.loop
        self._witness = wire.line.network.witness
        self._frames = FrameReader(head=True)
        self._protocol: asyncio.Protocol | None = None
        self._buffer: deque[bytes] = deque()
        self._unread: deque[tuple[bytes | End, bytes | None]] = deque()
        self._paused = False
        self._reading = True
        self._closing = False
        self._lost = False
        self._eof = False
        self._eof_sent = False

    @property
    def waits(self) -> bool:
        """Whether something waits for the phone to read."""
        return bool(self._buffer)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._buffer))

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closing

    # --- Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._lost or self._eof or not data:
            return
        data = bytes(data)
        unanswered = not self._frames.answer
        frames = self._frames.feed(data)
        if unanswered and self._frames.answer.startswith(b"HTTP/1.1 101"):
            self._witness.socket_opened(self._wire.number)
        for opcode, payload in frames:
            if opcode == TEXT:
                self._witness.frame_left(self._wire.number, payload)
            elif opcode == CLOSE:
                self._witness.socket_closed(self._wire.number)
        if self._buffer or (self._wire.unread and self._wire.unread + len(data) > SOCKET_BUFFER):
            self._buffer.append(data)
            if not self._paused and self._protocol is not None:
                self._paused = True
                self._witness.socket_stalled(self._wire.number, stalled=True)
                self._protocol.pause_writing()
        else:
            self._wire.down(data)

    def drain(self) -> None:
        """The phone has read something: send on."""
        if self._lost:
            return
        wire = self._wire
        while self._buffer and (not wire.unread or wire.unread + len(self._buffer[0]) <= SOCKET_BUFFER):
            wire.down(self._buffer.popleft())
        if self._buffer:
            return
        if self._paused and self._protocol is not None:
            self._paused = False
            self._witness.socket_stalled(self._wire.number, stalled=False)
            self._protocol.resume_writing()
        if not self._buffer:
            if self._closing:
                self._loop.call_soon(self._connection_lost, None)
            elif self._eof:
                self._send_eof()

    def write_eof(self) -> None:
        if not self._eof and not self._closing:
            self._eof = True
            if not self._buffer:
                self._send_eof()

    def _send_eof(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self._wire.down(End.FIN)

    # --- Reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            if self._unread:
                self._loop.call_soon(self._read)

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def received(self, data: bytes | End, text: bytes | None) -> None:
        """Something has come from the phone."""
        if data is End.RST:
            if not self._lost:
                self._closing = True
                self._buffer.clear()
                self._connection_lost(ConnectionResetError("simulated"))
            return
        self._unread.append((data, text))
        self._read()

    def _read(self) -> None:
        while self._unread and self._reading and not self._closing and self._protocol is not None:
            data, text = self._unread.popleft()
            if isinstance(data, End):
                if not self._protocol.eof_received():
                    self.close()
                return
            if text is not None:
                self._witness.frame_came(self._wire.number, text)
            self._protocol.data_received(data)

    # --- The end

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._loop.call_soon(self._connection_lost, None)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._buffer.clear()
            self._loop.call_soon(self._connection_lost, None)
            self._wire.down(End.RST)

    def _connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._send_eof()
        if self._protocol is not None:
            self._protocol.connection_lost(error)
        self._wire.server_over()


TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class FrameReader:
    """The frames in what a gateway writes: never masked, never fragmented. `head`: an HTTP answer comes first."""

    def __init__(self, *, head: bool) -> None:
        self.answer = b""
        """The HTTP answer, its end included, once it is complete."""
        self._head = head
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What is complete with `data`."""
        data = self._rest + data if self._rest else data
        if self._head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return []
            self.answer, data, self._head = data[: end + 4], data[end + 4 :], False
        if not self.answer.startswith(b"HTTP/1.1 101") and self.answer:
            self._rest = data  # the body of a refusal
            return []
        frames, start = [], 0
        while len(data) >= start + 2:
            length, begin = data[start + 1], start + 2
            if length == 126:
                length, begin = int.from_bytes(data[start + 2 : start + 4]), start + 4
            elif length == 127:
                length, begin = int.from_bytes(data[start + 2 : start + 10]), start + 10
            if len(data) < begin + length or len(data) < begin:
                break
            frames.append((data[start] & 15, data[begin : begin + length]))
            start = begin + length
        self._rest = data[start:]
        return frames

    @property
    def rest(self) -> bytes:
        """What is not complete, or the body of a refusal."""
        return self._rest


def masked(opcode: int, payload: bytes) -> bytes:
    """A phone's frame, with a key of zeros."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8)
    return head + b"\0\0\0\0" + payload


class PhoneSocket:
    """A phone's end of a socket: as much of `websockets`' ClientConnection as the client uses."""

    def __init__(self, line: Line) -> None:
        self.loop = line.loop
        self.wire: Wire | None = None
        self.opened: asyncio.Future[None] = line.loop.create_future()
        self.subprotocol: str | None = None
        self._line = line
        self._frames = FrameReader(head=True)
        self._messages: deque[str] = deque()
        self._stirred: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = line.loop.create_future()
        self._received_close: Close | None = None
        self._sent_close: Close | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = True

    # --- As `websockets` has it

    @property
    def transport(self) -> "PhoneSocket":
        """What has `abort`."""
        return self

    @property
    def close_code(self) -> int | None:
        """Of the gateway's close frame; 1006 where none came; None while it is open."""
        if not self._over.done():
            return None
        return 1006 if self._received_close is None else self._received_close.code

    @property
    def close_reason(self) -> str | None:
        """Likewise."""
        if not self._over.done():
            return None
        return "" if self._received_close is None else self._received_close.reason

    @property
    def is_open(self) -> bool:
        """Whether it has been opened, and has not ended."""
        return self.opened.done() and not self.opened.cancelled() and not self._over.done()

    async def recv(self) -> str:
        """The next text. Raises ConnectionClosed once there will be none."""
        while not self._messages:
            if self._over.done():
                raise self._closed()
            self._stirred = self.loop.create_future()
            await self._stirred
        return self._messages.popleft()

    def _closed(self) -> ConnectionClosedError:
        both = self._received_close is not None and self._sent_close is not None
        return ConnectionClosedError(self._received_close, self._sent_close, True if both else None)

    async def send(self, message: bytes, text: bool | None = None) -> None:
        """Send a text. Raises ConnectionClosed."""
        if self._over.done() or self._sent_close or self._received_close:
            await asyncio.shield(self._over)
            raise self._closed()
        self._send(TEXT, bytes(message))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it, and wait for the other side, but not for long."""
        if self._over.done():
            return
        self._send_close(Close(code, reason))
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(self._over)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cut TCP."""
        if self._over.done() or self._line.network.scheduler.stopped:
            return
        if self.wire is not None:
            self.wire.up(End.RST)
        self.lost()

    # --- What comes

    def received(self, data: bytes | End) -> None:
        """Something has come from the process."""
        if self._over.done():
            return
        if isinstance(data, End):
            if data is End.FIN and self.wire is not None:
                self.wire.up(End.FIN)
            self.lost()
            return
        frames = self._frames.feed(data)
        if not self.opened.done() and self._frames.answer:
            self._open()
        for opcode, payload in frames:
            self._frame(opcode, payload)
        if self.wire is not None:
            self.wire.read(len(data))

    def _open(self) -> None:
        """The handshake is answered."""
        head = self._frames.answer.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        status = int(head[0].split()[1])
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            self.subprotocol = headers.get("sec-websocket-protocol")
            self.opened.set_result(None)
            self._timer = self.loop.call_later(PING_S, self._ping)
        elif len(self._frames.rest) >= int(headers.get("content-length", 0)):
            error = problem(status, self._frames.rest, headers.get("retry-after"))
            self.opened.set_exception(error)

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._messages.append(payload.decode())
            self._stir()
        elif opcode == PING:
            if self._sent_close is None:
                self._send(PONG, payload)
        elif opcode == PONG:
            self._answered = True
        elif opcode == CLOSE:
            self._received_close = Close.parse(payload)
            self._send_close(self._received_close)
            self._wait(CLOSE_S, self.abort)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self.wire is not None:
            self.wire.up(masked(opcode, payload), payload if opcode == TEXT else None)

    def _send_close(self, close: Close) -> None:
        if self._sent_close is None:
            self._sent_close = close
            self._send(CLOSE, close.code.to_bytes(2) + close.reason.encode())

    # --- Keepalive, and the end

    def _wait(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, callback)

    def _ping(self) -> None:
        self._answered = False
        self._send(PING, b"ping")
        self._wait(PONG_S, self._pinged)

    def _pinged(self) -> None:
        if self._answered:
            self._wait(PING_S, self._ping)
        else:
            self.abort()

    def lost(self) -> None:
        """TCP is gone."""
        if self._over.done():
            return
        self._over.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("simulated"))
            self.opened.exception()  # somebody may have given up waiting
        self._stir()
        if self in self._line.sockets:
            self._line.sockets.remove(self)
        if self.wire is not None:
            self._line.forget(self.wire)

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)


# --- The client's calls


class SimulatedCalls:
    """`gateway.client.calls.Calls` over a simulated line."""

    def __init__(self, line: Line, token: Token, call_s: float = 20.0) -> None:
        self.call_s = call_s
        self._line = line
        self._bearer = Bearer(token)

    def bearing(self, token: Token) -> "SimulatedCalls":
        """Calls with another token."""
        return SimulatedCalls(self._line, token, self.call_s)

    async def token(self, *, instead_of: str | None = None) -> str:
        """The token in use, or a new one where it is that one."""
        return await self._bearer.token(instead_of=instead_of)

    async def close(self) -> None:
        """There is nothing to close."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        held_s: float = 0,
        error: type[GatewayError] = GatewayError,
    ) -> httpx.Response:
        """The answer of a call that succeeded; once more with a new token where the one it had is refused."""

        async def attempt(token: str) -> httpx.Response:
            sent = {**(headers or {}), "authorization": f"Bearer {token}"}
            if body is not None:
                sent["content-type"] = "application/json"
            data = b"" if body is None else orjson.dumps(body)
            with reaching(error):
                async with asyncio.timeout(self.call_s + held_s):
                    found = await self._line.request(method, path, query=query, headers=sent, body=data)
            answer = httpx.Response(found.status, headers=found.headers, content=found.body)
            if answer.is_success or answer.status_code == HTTPStatus.NOT_MODIFIED:
                return answer
            raise refusal(answer, error)

        return await self._bearer.accepted(attempt)

    async def socket(self, path: str, query: Mapping[str, str]) -> PhoneSocket:
        """A socket that the gateway has opened; likewise."""

        async def attempt(token: str) -> PhoneSocket:
            return await self._line.socket(path, query, token, within_s=self.call_s)

        return await self._bearer.accepted(attempt)

    async def signed(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: AsyncIterator[bytes] | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """Whatever a signed URL answers. Raises what httpx raises."""
        data = b"" if content is None else b"".join([chunk async for chunk in content])
        async with asyncio.timeout(60.0):
            if method == "PUT":
                return httpx.Response(await self._line.put(url, data))
            status, found = await self._line.get(url)
            return httpx.Response(status, headers={"content-length": str(len(found))}, content=found)

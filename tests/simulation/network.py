"""The network between phones and processes.

    network = Network(scheduler, seed, witness, objects)
    network.processes                           those that the load balancer knows; the world keeps this list
    network.uploads = Uploads.DISK              how the gateway hears of bytes that were stored
    line = network.line(name, loop)             a phone's line; `line.loop = …` where the app starts anew

    await line.request(method, path, query=…, headers=…, body=…)  -> Answer(status, headers, body)
    await line.socket(path, query, token)       -> PhoneSocket; GatewayError where it is refused
    await line.put(url, data)                   -> status of an upload to a signed URL
    await line.get(url)                         -> (status, bytes) of a download

`request`, `put` and `get` raise httpx.ConnectError and httpx.ReadError, or wait until their caller gives up.

What a line does to its phone:

    line.go_offline() / line.go_online(survive=0.5)   sockets live on with that probability; else one side knows nothing
    line.lose_request, line.lose_answer, line.duplicate, line.slow     probabilities
    line.stall(for_s)                           the phone reads nothing of its sockets
    line.break_sockets()                        both ends notice
    line.fragile = True                         likewise, the next that carries a packet, which is lost
    line.silence_sockets()                      neither end notices
    line.die()                                  the app ends without a word: its loop is killed
    line.sockets                                those that are open or about to be
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import httpx
from starlette.types import ASGIApp

from gateway.api.socket import SocketDoor
from gateway.client.failures import GatewayError
from gateway.live.handshake import SUBPROTOCOL
from tests.simulation.backends import ObjectsState
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.sockets import PhoneSocket, Wire
from tests.simulation.witness import Witness

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
        self.fragile = False
        """Whether the socket breaks that is the next to carry a packet."""
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

"""Stands between the clients of a story and their gateway, and misbehaves as the plan says."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from tests.conformance import faults
from tests.conformance.conditions import Conditions
from tests.conformance.plan import Fault
from tests.conformance.relay import Relay
from tests.conformance.wire import HEAD_BYTES, Answer, Request, read_answer, read_body, read_request, write
from tests.conformance.witness import is_signed, members


class Front:
    """Terminates HTTP and WebSockets. Every client is known by its token, which is bound to its device."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._relays: dict[str, Relay] = {}
        self._away = False
        self._errors: list[Exception] = []
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    # --- What happens to the gateway

    def behave(self) -> None:
        """Misbehave no more; whatever is under way ends, what hangs too."""
        self.conditions.behaving, self._away = True, False
        self.cut()

    def cut(self) -> None:
        """End all connections, without a word."""
        for task, writer in self._links.items():
            writer.transport.abort()
            task.cancel()

    async def restart(self, seconds: float, *, retry_ms: int | None) -> None:
        """The gateway is away for so long. It told the sockets when to come back, if it could: `retry_ms`."""
        if retry_ms is not None:
            await asyncio.gather(*(relay.restart(retry_ms) for relay in self._relays.values()))
        self._away = True
        self.cut()
        await asyncio.sleep(seconds)
        self._away = False

    # --- Connections

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the requests of one connection, until something ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = writer
        try:
            with contextlib.suppress(OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                while not self._away and await self._carried(reader, writer):
                    pass
        except asyncio.CancelledError:
            return  # it is cut; asyncio's streams would tell the log of it
        except Exception as error:  # told at the end
            self._errors.append(error)
        finally:
            del self._links[task]
            writer.close()

    async def _carried(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carry the next request; whether there may be another one."""
        conditions, request = self.conditions, await read_request(reader)
        link = Link(conditions, request, reader, writer)
        conditions.witness.asks(link.who, request)
        if not is_signed(request) and not conditions.counts(link.token):
            conditions.log.note(link.who, f"{request}: its token was revoked")
            await link.read()
            await link.send(faults.unauthorized())
            return not link.over
        fault, link.chance = conditions.chosen(link.possible, link.who, str(request))
        if request.asks_for_a_socket and fault in {None, Fault.DELAYED}:
            await asyncio.sleep(link.chance.uniform(0.05, 2.5) if fault else 0)
            await self._relay(link, reader, writer)
            return False
        await (faults.passed if fault is None else faults.FAULTS[fault])(link)
        return not link.over

    async def _relay(self, link: "Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (older := self._relays.get(link.who)) is not None:
            older.outlived = True
        relay = self._relays[link.who] = Relay(self.conditions, link.who, link.token, reader, writer)
        try:
            await relay.run(link.request)
        finally:
            if self._relays.get(link.who) is relay:
                del self._relays[link.who]

    async def end(self) -> None:
        """Cut all connections, and wait until nothing of them is left. Raises what went wrong here, which is nothing
        that a client did."""
        self.cut()
        if self._links:
            await asyncio.wait(list(self._links))
        if self._errors:
            raise ExceptionGroup("the front has a fault", self._errors)


class Link:
    """A request on a connection: what faults act on."""

    def __init__(
        self, conditions: Conditions, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.request = request
        self.chance = Random(0)
        self.over = False
        self.token = request.headers.get("authorization", "").partition(" ")[2] or _offered(request)
        self.who = asking(request) if is_signed(request) else named(self.token)
        self._conditions = conditions
        self._reader = reader
        self._writer = writer
        self._body: bytes | None = None

    @property
    def possible(self) -> frozenset[Fault]:
        """What may go wrong with it."""
        if self.request.asks_for_a_socket:
            return faults.HANDSHAKE
        if is_signed(self.request):
            return faults.UPLOAD if self.request.method == "PUT" else faults.DOWNLOAD
        if self.request.path.startswith("/v1/devices/"):
            return faults.CALL
        if self.request.path.endswith("/content"):
            return faults.JSON_CALL - {Fault.REDIRECTED}  # there it would be the way to the bytes
        return faults.JSON_CALL

    async def read(self, share: float = 1.0) -> None:
        """Read that share of its body."""
        if self._body is not None:
            return
        if self.request.headers.get("expect", "").lower() == "100-continue":
            await write(self._writer, b"HTTP/1.1 100 Continue\r\n\r\n")
        if share < 1:
            await self._reader.readexactly(int(int(self.request.headers.get("content-length", "0")) * share))
            return
        self._body = await read_body(self._reader, self.request.headers)
        self._conditions.witness.asks_with(self.who, self.request, self._body)

    async def forward(self) -> Answer:
        """What the gateway answers to it."""
        await self.read()
        assert self._body is not None
        reader, writer = await self._conditions.connect()
        try:
            await write(writer, self.request.encode(len(self._body)) + self._body)
            return await read_answer(reader, self.request.method)
        finally:
            writer.close()

    async def send(self, answer: Answer, *, share: float = 1.0, pieces: int = 1) -> None:
        """Answer it. What asks for a pause, or has a packet, the witness is told before: the client may be quick."""
        if (pause_s := faults.retry_after_s(answer.headers)) and self._readable:
            self._conditions.witness.told_to_wait(self.who, self.request, self._body or b"", pause_s)
        if share == 1:
            self._deliver(answer.body)
        data = answer.encode()
        data = data[: int(len(data) * share)]
        size = len(data) // pieces + 1
        for start in range(0, len(data), size):
            await write(self._writer, data[start : start + size])
            await asyncio.sleep(0.02 if pieces > 1 else 0)

    @property
    def _readable(self) -> bool:
        """Whether the client can see an answer: a browser shows a script nothing of a handshake that is refused."""
        return not self.request.asks_for_a_socket or "authorization" in self.request.headers

    def _deliver(self, body: bytes) -> None:
        found = members(body)
        packet = found.get("packet", found)
        if isinstance(packet, dict) and isinstance(version := packet.get("version"), int) and "incoming" in packet:
            self._conditions.witness.delivered(self.who, version)

    def cut(self) -> None:
        """End the connection: what was sent arrives, or not."""
        self.over = True
        self._writer.close()

    def revoke(self) -> None:
        self._conditions.revoke(self.token)


def named(token: str) -> str:
    """Whose token it is, as far as it says so itself: `account/device`."""
    with contextlib.suppress(IndexError, ValueError, KeyError):
        claims = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return f"{found['sub']}/{found['device']}"
    return "somebody"


def asking(request: Request) -> str:
    """The account that uses a signed URL, which is of the form `/objects/shard/video/sender/recipient`."""
    sender, recipient = request.path.rpartition("/objects/")[2].split("/")[2:]
    return sender if request.method == "PUT" else recipient


def _offered(request: Request) -> str:
    """The token that a browser offers as a subprotocol."""
    protocols = [text.strip() for text in request.headers.get("sec-websocket-protocol", "").split(",")]
    return next((text.removeprefix("bearer.") for text in protocols if text.startswith("bearer.")), "")


@asynccontextmanager
async def front(conditions: Conditions) -> AsyncIterator[tuple[Front, int]]:
    """A front that listens, and its port."""
    between = Front(conditions)
    listening = await asyncio.start_server(between.carry, "127.0.0.1", 0, limit=HEAD_BYTES)
    try:
        yield between, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await between.end()

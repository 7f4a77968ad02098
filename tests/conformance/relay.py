"""A socket between a client and the gateway: what goes wrong with it, and with the messages on it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from random import Random

import orjson
from websockets.frames import Close, Opcode

from tests.conformance.conditions import Conditions
from tests.conformance.faults import enriched
from tests.conformance.plan import Fault
from tests.conformance.wire import Message, Request, read_body, read_head, read_message, write
from tests.conformance.witness import members

FAREWELL_S = 1.0
"""How long a client may take to answer a close frame before its connection ends."""

CODES = (1000, 1001, 1011, 1013, 4408, 4429, 4999)
"""With which a socket may be closed, and after which a client connects again."""

DISPLACED, UNAUTHORIZED, RESTARTING = 4409, 4401, 1012
STRANGER = "a-stranger"

ANY_MESSAGE = frozenset(
    {
        Fault.UNKNOWN_TYPE,
        Fault.STRAY_ANSWER,
        Fault.HELD_UP,
        Fault.FRAGMENTED,
        Fault.CUT_FRAME,
        Fault.CUT_SOCKET,
        Fault.CLOSED,
        Fault.RESTARTED,
        Fault.DISPLACED,
        Fault.DEAF,
        Fault.REVOKED,
        Fault.NEW_MEMBERS,
    }
)
PACKET = ANY_MESSAGE | {Fault.DROPPED, Fault.REPEATED, Fault.OVERTAKEN, Fault.FOREIGN}

_SOCKET = Request("GET", "/v1/ws", {})


class Relay:
    """One socket, from its handshake on. `token`: the client's. `outlived`: the client has opened another one since."""

    def __init__(
        self,
        conditions: Conditions,
        who: str,
        token: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.outlived = False
        self._conditions = conditions
        self._who = who
        self._token = token
        self._reader = reader
        self._writer = writer
        self._deaf = False
        self._closed = False
        self._ended = asyncio.Event()
        self._back_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, request: Request) -> None:
        """Open it, if the gateway does, and carry messages until either side ends it."""
        from_gateway, to_gateway = await self._conditions.connect()
        try:
            await write(to_gateway, request.encode())
            answer, headers = await read_head(from_gateway)
            if answer.status != 101:
                await self._write(answer.with_body(await read_body(from_gateway, headers)).encode())
                return
            await self._write(answer.encode())
            ends = [self._start(self._down(from_gateway)), self._start(self._up(to_gateway))]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_gateway.close()
            for task in self._tasks:
                task.cancel()
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                raise error  # an end is gone, as a rule; whoever carries the connection knows which errors say so

    async def restart(self, retry_ms: int) -> None:
        """The gateway restarts, and leaves the client some time to hear of it."""
        self._back_s = time.monotonic() + retry_ms / 1000
        with contextlib.suppress(ConnectionError):  # who is gone need not hear of it
            await self._close(RESTARTING, orjson.dumps({"retry_ms": retry_ms}).decode())
            await self._farewell()

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    # --- To the gateway

    async def _up(self, to_gateway: asyncio.StreamWriter) -> None:
        while True:
            message = await read_message(self._reader)
            self._conditions.witness.says(self._who, message)
            if message.opcode is Opcode.CLOSE:
                self._note_close(message)
            if self._deaf or self._closed:
                continue
            said = members(message.data) if message.opcode is Opcode.TEXT else {}
            if said.get("type") == "token":
                self._token = str(said.get("token"))
                if not self._conditions.counts(self._token):
                    await self._close(UNAUTHORIZED)
                    return
            await write(to_gateway, message.encode())

    # --- To the client

    async def _down(self, from_gateway: asyncio.StreamReader) -> None:
        while True:
            message = await read_message(from_gateway)
            if self._deaf or self._closed:
                continue
            if message.opcode is not Opcode.TEXT:
                await self._send(message)
                continue
            is_packet = members(message.data).get("type") == "info"
            what, among = ("packet", PACKET) if is_packet else ("answer", ANY_MESSAGE)
            fault, chance = self._conditions.chosen(among, self._who, f"{what} on its socket")
            if fault is None:
                await self._send(message)
            else:
                await FAULTS[fault](self, message, chance)
            if is_packet:
                self._conditions.packets[self._who].append(message)

    async def _send(self, message: Message) -> None:
        self._deliver(message)
        await self._write(message.encode())

    def _deliver(self, message: Message) -> None:
        found = members(message.data) if message.opcode is Opcode.TEXT else {}
        if found.get("type") == "info" and isinstance(version := found["version"], int):
            self._conditions.witness.delivered(self._who, version)

    async def _write(self, data: bytes) -> None:
        await write(self._writer, data)

    def _note_close(self, message: Message) -> None:
        """The client closes it too. What it repeats it has read: only then it counts."""
        code = Close.parse(message.data).code if message.data else None
        if code == DISPLACED and not self.outlived:
            self._conditions.witness.displaced(self._who)
        if code == RESTARTING:
            self._conditions.witness.told_to_wait(self._who, _SOCKET, b"", self._back_s - time.monotonic())
        self._ended.set()

    async def _close(self, code: int, reason: str = "") -> None:
        """Close it like the gateway, and end TCP a little later."""
        self._closed = True
        await self._write(Message(Opcode.CLOSE, Close(code, reason).serialize(), fin=True, masked=False).encode())
        self._start(self._end_later())

    async def _end_later(self) -> None:
        await self._farewell()
        self._writer.close()

    async def _farewell(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._ended.wait()

    # --- What goes wrong

    async def dropped(self, _message: Message, _chance: Random) -> None:
        """It is lost inside the gateway."""

    async def repeated(self, message: Message, _chance: Random) -> None:
        """It comes twice."""
        await self._send(message)
        await self._send(message)

    async def overtaken(self, message: Message, chance: Random) -> None:
        """One that came earlier comes again, after it."""
        await self._send(message)
        if earlier := self._conditions.packets[self._who]:
            await self._send(chance.choice(earlier))

    async def foreign(self, message: Message, _chance: Random) -> None:
        """One of somebody else's comes before it."""
        found = members(message.data)
        version = found["version"]
        assert isinstance(version, int)
        entry = {
            "video_id": "01a00000-0000-7000-8000-000000000000",
            "sender_id": "carol",
            "status": "uploaded",
            "url": "/v1/videos/01a00000-0000-7000-8000-000000000000/content",
            "size": 1,
            "content_type": "video/mp4",
            "at": 1,
        }
        theirs = {**found, "client_id": STRANGER, "version": version + 1, "outgoing": [], "incoming": [entry]}
        await self._write(_text(theirs).encode())
        await self._send(message)

    async def unknown_type(self, message: Message, _chance: Random) -> None:
        """One of a newer gateway comes before it."""
        await self._write(_text({"type": "weather", "version": 1, "of": ["rain"]}).encode())
        await self._send(message)

    async def stray_answer(self, message: Message, chance: Random) -> None:
        """Answers come before it to what was not asked."""
        error = {"type": "error", "id": None, "code": "invalid", "detail": "so it is"}
        result = {"type": "result", "id": "never asked", "result": "applied", "version": 1}
        await self._write(_text(chance.choice((error, result))).encode())
        await self._send(message)

    async def held_up(self, message: Message, chance: Random) -> None:
        """It comes late, and what follows overtakes it."""

        async def later() -> None:
            await asyncio.sleep(chance.uniform(0.05, 1.5))
            if not self._deaf and not self._closed:
                await self._send(message)

        self._start(later())

    async def fragmented(self, message: Message, chance: Random) -> None:
        """It comes in two fragments, a ping between them."""
        half = chance.randrange(len(message.data) + 1)
        first = message._replace(data=message.data[:half], fin=False)
        ping = Message(Opcode.PING, b"?", fin=True, masked=False)
        second = message._replace(data=message.data[half:], opcode=Opcode.CONT)
        self._deliver(message)
        await self._write(b"".join(part.encode() for part in (first, ping, second)))

    async def cut_frame(self, message: Message, chance: Random) -> None:
        """TCP ends within it."""
        data = message.encode()
        await self._write(data[: chance.randrange(len(data))])
        self._closed = True
        self._writer.close()

    async def cut_socket(self, message: Message, _chance: Random) -> None:
        """TCP ends after it."""
        await self._send(message)
        self._writer.transport.abort()

    async def closed(self, message: Message, chance: Random) -> None:
        """It comes, and then the socket is closed."""
        await self._send(message)
        await self._close(chance.choice(CODES), "so it is")

    async def restarted(self, _message: Message, chance: Random) -> None:
        """The gateway restarts, before it comes."""
        await self.restart(chance.randrange(100, 1500))

    async def displaced(self, _message: Message, _chance: Random) -> None:
        """Another socket of this device has taken over, they say."""
        await self._close(DISPLACED)

    async def deaf(self, _message: Message, _chance: Random) -> None:
        """From now on nothing comes or goes, pings neither, and TCP says nothing of it."""
        self._deaf = True

    async def revoked(self, _message: Message, _chance: Random) -> None:
        """The token counts no more."""
        self._conditions.revoke(self._token)
        await self._close(UNAUTHORIZED)

    async def new_members(self, message: Message, _chance: Random) -> None:
        """It is of a newer gateway."""
        await self._send(message._replace(data=enriched(message.data)))


def _text(members_: Mapping[str, object]) -> Message:
    return Message(Opcode.TEXT, orjson.dumps(members_), fin=True, masked=False)


FAULTS: Mapping[Fault, Callable[[Relay, Message, Random], Awaitable[None]]] = {
    Fault.DROPPED: Relay.dropped,
    Fault.REPEATED: Relay.repeated,
    Fault.OVERTAKEN: Relay.overtaken,
    Fault.FOREIGN: Relay.foreign,
    Fault.UNKNOWN_TYPE: Relay.unknown_type,
    Fault.STRAY_ANSWER: Relay.stray_answer,
    Fault.HELD_UP: Relay.held_up,
    Fault.FRAGMENTED: Relay.fragmented,
    Fault.CUT_FRAME: Relay.cut_frame,
    Fault.CUT_SOCKET: Relay.cut_socket,
    Fault.CLOSED: Relay.closed,
    Fault.RESTARTED: Relay.restarted,
    Fault.DISPLACED: Relay.displaced,
    Fault.DEAF: Relay.deaf,
    Fault.REVOKED: Relay.revoked,
    Fault.NEW_MEMBERS: Relay.new_members,
}

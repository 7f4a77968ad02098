"""Live delivery: packets as they come over a WebSocket, and what goes back by it."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Self

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from gateway.client.failures import LOST, GatewayError, SocketClosed, problem, reaching
from gateway.client.fields import Fields
from gateway.client.messages import Packet, Report, Result, refused
from gateway.errors import Code
from gateway.transit.state import Status

SUBPROTOCOL = Subprotocol("info.v1")

CLOSE_S = 5.0
"""How long the gateway may take to answer a close frame before TCP is cut."""

PROTOCOL_ERROR = 1002
UNAUTHORIZED = 4401

_SCHEMES = {"http": "ws", "https": "wss"}


class Live:
    """An open socket. Iterating over it gives the packets as they come: while nobody asks, only the newest is kept.

    The iteration never just ends: it raises SocketClosed. Calls raise GatewayError; one whose answer the end of the
    socket took away is to be repeated, over another one or over HTTP.
    """

    def __init__(self, socket: ClientConnection, *, call_s: float, logged_out: Callable[[], bool]) -> None:
        self._socket = socket
        self._call_s = call_s
        self._logged_out = logged_out
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bytes | GatewayError]] = {}
        self._newest: Packet | None = None
        self._over = False
        self._stirred = asyncio.Event()

    # --- Packets

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        while self._newest is None:
            if self._over:
                raise self._closed()
            self._stirred.clear()
            await self._stirred.wait()
        packet, self._newest = self._newest, None
        return packet

    async def acknowledge(self, version: int) -> None:
        """This device has applied the packet of that version. There is no answer to that."""
        with reaching():
            async with asyncio.timeout(self._call_s):
                await self._send({"type": "ack", "version": version})

    # --- Calls

    async def report(self, video_id: str, status: Status) -> Result:
        """A video that was received has been `notified`, `downloaded` or `viewed`."""
        return await self.tell(Report(video_id, status))

    async def confirm(self, video_id: str, recipient_id: str) -> Result:
        """The upload is done."""
        return await self.tell(Report(video_id, Status.UPLOADED, recipient_id))

    async def tell(self, report: Report) -> Result:
        """Whichever of the two it is."""
        answer = await self._ask({"type": "status", **report.members})
        try:
            return Result.parse(answer, report.video_id)
        except ValueError:
            raise GatewayError(None, None, "the answer is not what the protocol says") from None

    async def renew(self, token: str) -> None:
        """Have the socket last as long as this token does, which is of the same client and device."""
        await self._ask({"type": "token", "token": token})

    def abort(self) -> None:
        """Cut TCP, without a word: what a network does that is gone."""
        self._socket.transport.abort()

    async def _ask(self, message: Mapping[str, object]) -> bytes:
        """The answer to a message, found by its id."""
        id_ = next(self._ids)
        answer: asyncio.Future[bytes | GatewayError] = asyncio.get_running_loop().create_future()
        self._asked[id_] = answer
        try:
            with reaching():
                async with asyncio.timeout(self._call_s):
                    await self._send({**message, "id": id_})
                    found = await answer
        finally:
            del self._asked[id_]
        if isinstance(found, GatewayError):
            raise found
        return found

    async def _send(self, message: Mapping[str, object]) -> None:
        try:
            await self._socket.send(orjson.dumps(message), text=True)
        except ConnectionClosed:
            raise self._unanswered() from None

    # --- What comes

    async def listen(self) -> None:
        """Take in whatever comes, until the socket is closed."""
        try:
            while True:
                self._hear(await self._socket.recv())
        except ConnectionClosed:
            pass
        except ValueError:
            await self._socket.close(PROTOCOL_ERROR, "a message is not what the protocol says")
        finally:
            self._end()

    def _hear(self, message: str | bytes) -> None:
        """Raises ValueError for what the protocol does not have."""
        if isinstance(message, bytes):
            raise ValueError("a binary message")
        body = message.encode()
        fields = Fields.parse(body)
        match fields.text("type"):
            case "info":
                self._newest = Packet.parse(body)
                self._stirred.set()
            case "result":
                self._answer(fields, body)
            case "error":
                self._answer(fields, refused(fields))

    def _answer(self, fields: Fields, found: bytes | GatewayError) -> None:
        """Hand it to whoever waits for it; to nobody where that has given up, or the gateway could read no id."""
        id_ = fields.value("id")
        waiting = self._asked.get(id_) if isinstance(id_, int) else None
        if waiting is not None and not waiting.done():
            waiting.set_result(found)

    # --- The end

    def _end(self) -> None:
        self._over = True
        self._stirred.set()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_result(self._unanswered())

    def _closed(self) -> SocketClosed:
        code, reason = self._socket.close_code, self._socket.close_reason
        return SocketClosed(code or LOST, reason or "", logged_out=self._logged_out())

    def _unanswered(self) -> GatewayError:
        """The error of a call that got no answer, since the socket was closed."""
        closed = self._closed()
        if closed.code == UNAUTHORIZED:
            return GatewayError(401, Code.UNAUTHORIZED, closed.reason)
        return GatewayError(None, None, str(closed))


@asynccontextmanager
async def listening(socket: ClientConnection, *, call_s: float, logged_out: Callable[[], bool]) -> AsyncIterator[Live]:
    """What goes on over an open socket; it is closed at the end."""
    live = Live(socket, call_s=call_s, logged_out=logged_out)
    listener = asyncio.create_task(live.listen())
    try:
        yield live
    finally:
        try:
            await socket.close()
        finally:
            socket.transport.abort()  # whatever became of the farewell: this ends the listener
            await asyncio.wait([listener])


async def opened(address: str, query: Mapping[str, str], token: str, *, within_s: float) -> ClientConnection:
    """An open socket. Raises GatewayError: what its answer says where it is refused."""
    try:
        socket = await Unredirected(
            _socket_url(address, query),
            subprotocols=[SUBPROTOCOL],
            compression=None,
            additional_headers={"Authorization": f"Bearer {token}"},
            proxy=None,
            open_timeout=within_s,
            close_timeout=CLOSE_S,
            logger=Discreet(logging.getLogger(__name__)),
        )
    except InvalidStatus as refusal:
        answer = refusal.response
        retry_after = next(iter(answer.headers.get_all("retry-after")), None)
        raise problem(answer.status_code, bytes(answer.body), retry_after) from None
    except (WebSocketException, OSError) as failure:
        raise GatewayError(None, None, type(failure).__name__) from None
    if socket.subprotocol != SUBPROTOCOL:
        socket.transport.abort()
        raise GatewayError(None, None, "what answers speaks another protocol")
    return socket


def _socket_url(address: str, query: Mapping[str, str]) -> str:
    with reaching():
        url = httpx.URL(address, params=query)
    return str(url.copy_with(scheme=_SCHEMES.get(url.scheme, url.scheme)))


class Unredirected(connect):
    """Takes the token to the gateway, and nowhere else."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class Discreet(logging.LoggerAdapter[logging.Logger]):
    """Is not for debugging, whatever is configured: then it would be told the headers and messages that have tokens."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - its name in logging
        return level > logging.DEBUG and super().isEnabledFor(level)

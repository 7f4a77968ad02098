"""How pushes reach the phones: through simulators of both providers, or as the gateway's own console shows them."""

import asyncio
import contextlib
import hashlib
import multiprocessing
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import httptools
import orjson
import uvloop

from gateway.client import Packet, Push
from gateway.client.fields import Fields
from gateway.client.record import Platform
from push.simulators.apns import ApnsPush, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import FcmPush, fcm_simulator
from push.simulators.ledger import Ledger
from scripts.loadtest.connections import Dialler, Origin

AGAIN_S = 1.0
"""After this time a stream of pushes that has ended is asked for again."""

MOST_LINE = 1 << 20


class Arrival(NamedTuple):
    """A push, when it was whole at the device or its provider, and the packet in it."""

    at_s: float
    packet: Packet | None


Hear = Callable[[str, Arrival], None]
"""Told the push token that a push is for."""


def push_token(platform: Platform, process: int, client_id: str) -> str:
    """A push token of the form that its provider demands. It begins with whose phone it is: of which process."""
    digest = f"{process:04x}{hashlib.sha256(client_id.encode()).hexdigest()[4:]}"
    return digest if platform == "apns" else f"{digest[:22]}:APA91b{digest}{digest}"


# --- The providers, in a process of their own


class Providers:
    """Both simulators, while the context lasts. `settings`: what a gateway needs to push there. `path`: where the
    processes of the load connect to."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_simulate, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.settings: dict[str, str]
            self.path: str
            self.settings, self.path = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the simulators of the push providers did not start") from None
        self.pid = self._process.pid or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join()


class _Apple(Ledger[ApnsPush]):
    """Hands on what APNs is pushed."""

    def __init__(self, switch: "_Switch") -> None:
        super().__init__()
        self._switch = switch

    def accept(self, push: ApnsPush) -> None:
        self._switch.hand_on(push.token, push.data)


class _Google(Ledger[FcmPush]):
    """Hands on what FCM is pushed."""

    def __init__(self, switch: "_Switch") -> None:
        super().__init__()
        self._switch = switch

    def accept(self, push: FcmPush) -> None:
        self._switch.hand_on(push.token, push.data)


class _Switch:
    """Hands a push to the process whose phone it is for."""

    def __init__(self) -> None:
        self._writers: dict[int, asyncio.StreamWriter] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A process of the load says which it is, and stays."""
        process = int(await reader.readline())
        self._writers[process] = writer
        writer.write(b"{}\n")
        await reader.read()
        del self._writers[process]
        writer.close()

    def hand_on(self, token: str, payload: Mapping[str, Any]) -> None:
        """A push was accepted."""
        writer = self._writers.get(int(token[:4], 16))
        if writer is not None:
            arrived = {"token": token, "at_s": time.monotonic(), "packet": payload.get("packet")}
            writer.write(orjson.dumps(arrived) + b"\n")


def _simulate(pipe: "Connection[Any, Any]") -> None:
    """The process of the simulators; it ends with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="gateway-load-") as folder:
        uvloop.run(_serve(Path(folder), pipe))


async def _serve(folder: Path, pipe: "Connection[Any, Any]") -> None:
    authority = Authority(folder)
    switch = _Switch()
    path = str(folder / "pushes")
    async with (
        await asyncio.start_unix_server(switch.connected, path),
        # A gateway that is started again has a new provider token, and here that is no reason to wait 20 minutes.
        apns_simulator(folder, authority=authority, update_s=0, ledger=_Apple(switch)) as apple,
        fcm_simulator(folder, authority=authority, ledger=_Google(switch)) as google,
    ):
        settings = {
            "GATEWAY_APNS_ENDPOINT": apple.endpoint,
            "GATEWAY_APNS_CA_FILE": str(authority.ca_file),
            "GATEWAY_APNS_KEY_FILE": str(apple.key_file),
            "GATEWAY_APNS_KEY_ID": apple.key_id,
            "GATEWAY_APNS_TEAM_ID": apple.team_id,
            "GATEWAY_APNS_TOPIC": apple.topic,
            "GATEWAY_FCM_ENDPOINT": google.endpoint,
            "GATEWAY_FCM_CA_FILE": str(authority.ca_file),
            "GATEWAY_FCM_CREDENTIALS_FILE": str(google.credentials_file),
        }
        pipe.send((settings, path))
        with contextlib.suppress(EOFError):  # the end of the context
            await asyncio.to_thread(pipe.recv)


@asynccontextmanager
async def arriving(path: str, process: int, hear: Hear) -> AsyncIterator[None]:
    """Hear of what the simulators are pushed for this process's phones, until the block ends."""
    reader, writer = await asyncio.open_unix_connection(path, limit=MOST_LINE)
    writer.write(b"%d\n" % process)
    await reader.readline()  # from now on nothing is missed
    listening = asyncio.create_task(_listen(reader, hear))
    try:
        yield
    finally:
        listening.cancel()
        writer.close()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(reader: asyncio.StreamReader, hear: Hear) -> None:
    while line := await reader.readline():
        found = orjson.loads(line)
        body = found["packet"]
        hear(found["token"], Arrival(found["at_s"], None if body is None else Packet.parse(body.encode())))


# --- The gateway's console


class Streams:
    """The pushes that the gateway's own console shows, a connection for each device."""

    def __init__(self, dialler: Dialler, origin: Origin) -> None:
        self._dialler = dialler
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._open: set[_Stream] = set()
        self.broken = 0
        """So often one was refused, or ended."""

    def listen(self, request: bytes, hear: Callable[[Arrival | None], None]) -> None:
        """Hear of the pushes to a device until the end; `request` asks for them. None: only from now on, since nothing
        keeps what was pushed before."""
        if not self._over:
            stream = _Stream(request, hear, lambda: self._ended(stream, request, hear))
            self._open.add(stream)
            self._dialler.dial(self._origin, lambda: stream, lambda: self._ended(stream, request, hear))

    def _ended(self, stream: "_Stream", request: bytes, hear: Callable[[Arrival | None], None]) -> None:
        self._open.discard(stream)
        if not self._over:
            self.broken += 1
            self._loop.call_later(AGAIN_S, self.listen, request, hear)

    def close(self) -> None:
        """Hear no more."""
        self._over = True
        for stream in self._open:
            stream.cut()


class _Stream(asyncio.Protocol):
    """Server-sent events: `data:` lines, an empty line behind each."""

    def __init__(self, request: bytes, hear: Callable[[Arrival | None], None], ended: Callable[[], None]) -> None:
        self._request = request
        self._hear = hear
        self._ended = ended
        self._parser = httptools.HttpResponseParser(self)
        self._text = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop does not derive its own from it
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self.cut()

    def on_body(self, body: bytes) -> None:
        """Called by the parser, as the other one is."""
        if self._parser.get_status_code() != 200:
            return
        *events, self._text = (self._text + body).split(b"\n\n")
        for event in events:
            if event == b": listening":
                self._hear(None)
            elif event.startswith(b"data: "):
                push = Push.read(Fields.parse(event.removeprefix(b"data: ")))
                self._hear(Arrival(time.monotonic(), push.packet))

    def on_message_complete(self) -> None:
        self.cut()

    def cut(self) -> None:
        """Hear no more."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._ended()

"""The gateway of the live benchmark: the whole of it, fed with packets from Redis as the peer is.

`python fed_gateway.py REDIS_PORT CHANNEL_PREFIX`, with the usual GATEWAY_ settings. A message on the channel
of a client is what the load publishes as `framed`: the version as 8 bytes, a byte, and the packet.
"""

import asyncio
import os
import sys
from functools import partial
from typing import cast

import hiredis

from gateway import app, log
from gateway.bus.bus import Listener, Publication
from gateway.bus.memory import MemoryBus
from gateway.config import Settings
from gateway.transit.state import ClientId


class FedBus(MemoryBus):
    """The bus of one process, into which others publish through Redis."""

    def __init__(self, redis_port: int, prefix: bytes) -> None:
        super().__init__()
        self._redis_port = redis_port
        self._feed = Feed(self, prefix)
        self._connected: asyncio.Task[object] | None = None

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        await super().subscribe(client_id, listener)
        if self._connected is None:
            loop = asyncio.get_running_loop()
            self._connected = asyncio.ensure_future(
                loop.create_connection(lambda: self._feed, "127.0.0.1", self._redis_port)
            )
        await asyncio.shield(self._connected)
        await self._feed.subscribe(client_id)

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        super().unsubscribe(client_id, listener)
        self._feed.unsubscribe(client_id)

    def arrived(self, client_id: ClientId, message: bytes) -> None:
        """A message from Redis."""
        version, asks = int.from_bytes(message[:8]), message[8] != 0
        news = Publication(client_id, version, asks=asks, encode=lambda: message[9:])
        for listener in self._listeners.get(client_id, ()):
            listener.published(news)


class Feed(asyncio.Protocol):
    """One connection to Redis, which only subscribes. What is to be sent goes out once in each turn of the loop."""

    def __init__(self, bus: FedBus, prefix: bytes) -> None:
        self._bus = bus
        self._prefix = prefix
        self._reader = hiredis.Reader()
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._commands: dict[bytes, list[bytes]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            kind, channel, message = reply
            if kind == b"message":
                self._bus.arrived(ClientId(channel[len(self._prefix) :].decode()), message)
            elif kind == b"subscribe" and (waiting := self._waiting.pop(channel, None)) is not None:
                waiting.set_result(None)

    async def subscribe(self, client_id: ClientId) -> None:
        channel = self._prefix + client_id.encode()
        if channel not in self._waiting:
            self._waiting[channel] = asyncio.get_running_loop().create_future()
            self._send(b"SUBSCRIBE", channel)
        await asyncio.shield(self._waiting[channel])

    def unsubscribe(self, client_id: ClientId) -> None:
        self._send(b"UNSUBSCRIBE", self._prefix + client_id.encode())

    def _send(self, command: bytes, channel: bytes) -> None:
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._flush)
        self._commands.setdefault(command, []).append(channel)

    def _flush(self) -> None:
        commands, self._commands = self._commands, {}
        for command, channels in commands.items():
            self._transport.write(hiredis.pack_command((command, *channels)))  # type: ignore[arg-type]


def main() -> int:
    """Serve until told to stop."""
    redis_port, prefix = int(sys.argv[1]), sys.argv[2].encode()
    app.MemoryBus = partial(FedBus, redis_port, prefix)  # type: ignore[assignment,attr-defined]
    settings = Settings.load(os.environ)
    log.configure(settings.log_format, settings.log_level)
    return app.serve(settings, worker=True)


if __name__ == "__main__":
    sys.exit(main())

"""The connections to a push provider: a few, kept open.

When one is lost that had worked, or goes away, the requests that it has not processed are sent once more on another:
servers end connections that are idle, or an hour old, and that is no outage.
"""

import asyncio
import ssl
from collections.abc import Sequence

from push.http2 import Answer, Connection, Header, Lost

CONNECT_S = 5.0
"""How long it may take to connect, TLS and the server's settings included."""

CLOSE_S = 1.0
"""How long the server may take to end TLS."""

MOST_CONNECTIONS = 3
"""Open at a time and taking requests. Google's servers take 100 at once on each, Apple's 1,000, but one until it knows
who asks."""

TRIES = 3
"""How often a request is begun at most, where the server has not processed it."""


class Pool:
    """The connections to one server. What it answers is whatever the server says; who it is, `context` decides.
    `ping_s`: how often each is pinged; None: never."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, *, ping_s: float | None = None) -> None:
        context.set_alpn_protocols(["h2"])
        self._host = host
        self._port = port
        self._authority = (host if port == 443 else f"{host}:{port}").encode()
        self._context = context
        self._ping_s = ping_s
        self._open: set[Connection] = set()
        self._connecting: asyncio.Task[str | None] | None = None
        self._closed = False

    async def post(self, path: str, headers: Sequence[Header], body: bytes) -> Answer:
        """One request and its answer. Raises Lost. May be cancelled; the others do not notice."""
        request = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", self._authority),
            (b":path", path.encode()),
            *headers,
        ]
        for _ in range(TRIES - 1):
            try:
                return await (await self._connection()).post(request, body)
            except Lost as lost:
                if not lost.again:
                    raise
        return await (await self._connection()).post(request, body)

    async def _connection(self) -> Connection:
        """The one with the least to do. Another is opened if there is none; if all are full, in the background."""
        while True:
            usable = [connection for connection in self._open if connection.usable]
            if usable:
                best = min(usable, key=lambda connection: connection.load)
                if best.full and len(usable) < MOST_CONNECTIONS:
                    self._connect()
                return best
            connecting = self._connect()
            await asyncio.wait([connecting])
            reason = "the sender is closed" if connecting.cancelled() else connecting.result()
            if reason is not None:
                raise Lost(reason)

    def _connect(self) -> asyncio.Task[str | None]:
        """Connect, if that is not being done already. Who waits for it may be cancelled; it goes on."""
        if self._closed:
            raise Lost("the sender is closed")
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connected())
            self._connecting.add_done_callback(self._has_connected)
        return self._connecting

    def _has_connected(self, _: asyncio.Task[str | None]) -> None:
        self._connecting = None

    async def _connected(self) -> str | None:
        """Why there is no new connection; None if there is one."""
        connection = Connection(self._open.discard, ping_s=self._ping_s)
        self._open.add(connection)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, self._host, self._port, ssl=self._context, ssl_shutdown_timeout=CLOSE_S
                )
                await connection.ready.wait()
        except TimeoutError:
            return f"no connection within {CONNECT_S:g} s"
        except OSError as error:
            return f"no connection: {error}"
        else:
            return None if connection.usable else connection.why
        finally:
            if not connection.usable:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        if not connection.connected:
            self._open.discard(connection)

    async def close(self) -> None:
        """Cut what is under way, and release everything."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        connections = list(self._open)
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.closed.wait()

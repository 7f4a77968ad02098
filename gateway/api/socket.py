"""The door for sockets: who asks for one is authorized, joins the hub, and hears the newest packet.

In this order: subscribe, load, send. Nothing that is published in between is missed.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from prometheus_client import Counter

from gateway.api.calls import Backends, Caller
from gateway.api.endpoint import Gate, refusal
from gateway.api.http import Request
from gateway.api.session import Desk, Session
from gateway.errors import Invalid, Unavailable, UpgradeRequired
from gateway.live import handshake
from gateway.live.connection import Connection, Keepalive
from gateway.live.frames import text_frame

PATH = "/v1/ws"

FULL_RETRY_S = 10
"""When to come back where this process has as many connections as it may."""


class SocketDoor:
    """Opens sockets: takes connections over from the server."""

    path = PATH.encode()

    def __init__(self, gate: Gate, backends: Backends, desk: Desk, keepalive: Keepalive) -> None:
        self._gate = gate
        self._backends = backends
        self._desk = desk
        self._keepalive = keepalive
        self._counters: dict[int, Counter] = {}

    @property
    def sockets(self) -> int:
        """How many there are: open, about to be, or refused and not over."""
        return self._keepalive.connections

    def upgrade(
        self,
        transport: asyncio.Transport,
        query: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        *,
        early: bytes,
        room: bool,
    ) -> asyncio.Protocol:
        """Take over a transport on which a socket was asked for; what handles it from now on. `early`: what came behind
        the request. Where there is no `room` for more, that is what it is told."""
        connection = Connection(transport, self._keepalive, early=early)
        self._desk.start(self._open(connection, query, [*headers], room=room))
        return connection

    async def _open(
        self, connection: Connection, query: bytes, headers: list[tuple[bytes, bytes]], *, room: bool
    ) -> None:
        try:
            if not room:
                raise overloaded()
            status = await self._admit(connection, query, headers)
        except Exception as error:
            reply = refusal(error)
            connection.refuse(reply.last())
            status = reply.status
        counter = self._counters.get(status)
        if counter is None:
            counter = self._counters[status] = self._desk.metrics.handshakes.labels(status)
        counter.inc()

    async def _admit(self, connection: Connection, query: bytes, headers: list[tuple[bytes, bytes]]) -> int:
        """Raises GatewayError."""
        offer = _offer(headers)
        if offer.token is not None and not any(name == b"authorization" for name, _ in headers):
            headers.append((b"authorization", b"Bearer " + offer.token.encode()))
        request = Request({"headers": headers, "query_string": query}, _nothing_more)
        caller = await self._gate.admit(request, self._backends)
        device_id = caller.device(request.query.get("device_id"))
        if device_id is None:
            raise Invalid("device_id: is required")
        session = Session(self._desk, connection, caller.identity, device_id)
        await self._begin(connection, session, caller, handshake.answer(offer))
        return HTTPStatus.SWITCHING_PROTOCOLS

    async def _begin(self, connection: Connection, session: Session, caller: Caller, answer: bytes) -> None:
        hub, client_id = self._desk.hub, caller.client_id
        joined = False
        seen = caller.seen_in_query()
        try:
            await hub.join(client_id, session)
            state = await self._desk.service.poll(client_id, seen)
            known = seen.version if seen else 0
            news = hub.publication(state)
            frame = text_frame(news.packet) if state.version > known or not known else None
            session.begins(acked=min(known, state.version), asks=news.asks)
            joined = connection.open(session, answer, version=state.version, packet=frame)
        finally:
            if not joined:
                hub.leave(client_id, session)
        if joined:
            session.opened()
            await hub.displace(client_id, session)


def overloaded() -> Unavailable:
    """What connections are told that a process has no room for."""
    return Unavailable("this process has as many connections as it may", retry_after_s=FULL_RETRY_S)


def _offer(headers: Sequence[tuple[bytes, bytes]]) -> handshake.Offer:
    try:
        return handshake.read(headers)
    except handshake.OtherVersion as error:
        raise UpgradeRequired(str(error)) from error
    except handshake.NotAHandshake as error:
        raise Invalid(str(error)) from error


async def _nothing_more() -> dict[str, object]:
    return {"type": "http.disconnect"}

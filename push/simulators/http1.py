"""One HTTP/1.1 connection of a simulator: h11 reads and writes the messages, this decides what is sent.

One request is under way at a time; the next one waits in TCP.
"""

import asyncio
from http import HTTPStatus
from typing import assert_never

import h11

from push.simulators.answers import Answer, Cut, GoAway, Late, Reaction, Reset, Silence
from push.simulators.serving import MAX_BODY_BYTES, Listener, Peer, Request


class Http1Connection(asyncio.Protocol):
    """Requests in, reactions out, until TCP is gone."""

    def __init__(self, transport: asyncio.Transport, peer: Peer, listener: Listener) -> None:
        self._transport = transport
        self._peer = peer
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._late: asyncio.TimerHandle | None = None
        self._leaving = False
        listener.add(self)

    # --- Receiving

    def data_received(self, data: bytes) -> None:
        """Bytes from the client (asyncio calls this)."""
        self._h11.receive_data(data)
        self._read()

    def _read(self) -> None:
        try:
            while not self._transport.is_closing():
                event = self._h11.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                self._happened(event)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)
        self._read_on()

    def _read_on(self) -> None:
        """Read more, unless a request is under way."""
        if self._h11.their_state is h11.SEND_BODY or self._h11.their_state is h11.IDLE:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _happened(self, event: object) -> None:
        match event:
            case h11.Request():
                self._head = event
                self._body.clear()
            case h11.Data():
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            case h11.EndOfMessage():
                self._react(self._listener.service.came(self._request(), self._peer))

    def _request(self) -> Request:
        assert self._head is not None  # noqa: S101 - h11 gives no end without a beginning
        headers = tuple((name.decode(), value.decode("latin-1")) for name, value in self._head.headers)
        method, path = self._head.method.decode(), self._head.target.decode()
        return Request(method, path, headers, bytes(self._body), self._loop.time())

    # --- Reacting

    def _react(self, reaction: Reaction | None) -> None:
        match reaction:
            case Answer():
                self._answer(reaction)
            case Late(after_s, then):
                self._late = self._loop.call_later(after_s, self._react_late, then)
            case Reset() | Cut():
                self.cut()
            case GoAway():
                self._transport.close()
            case Silence() | None:
                pass
            case _:
                assert_never(reaction)

    def _react_late(self, reaction: Reaction | None) -> None:
        self._late = None
        self._react(reaction)
        if not self._transport.is_closing():
            self._read()

    def _answer(self, answer: Answer) -> None:
        headers = [*answer.headers, ("content-length", str(len(answer.body)))]
        head = self._h11.send(h11.Response(status_code=answer.status, headers=headers))
        body = self._h11.send(h11.Data(data=answer.body))
        end = self._h11.send(h11.EndOfMessage())
        self._transport.write((head or b"") + (body or b"") + (end or b""))
        if self._leaving or self._h11.our_state is h11.MUST_CLOSE:
            self._transport.close()
        else:
            self._h11.start_next_cycle()

    def _refuse(self, status: int) -> None:
        """Answer what is no request, or one that is too long, and end the connection."""
        if self._h11.our_state is h11.IDLE or self._h11.our_state is h11.SEND_RESPONSE:
            head = h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
            self._transport.write(self._h11.send(head) or b"")
        self._transport.close()

    # --- Ending

    def allow(self, streams: int) -> None:
        """One request is under way at a time, whatever is allowed."""

    def go_away(self, reason: bytes) -> None:  # noqa: ARG002 - HTTP/1.1 has no word for it
        """Close the connection once the request under way is answered."""
        self._leaving = True
        if self._h11.our_state is h11.IDLE:
            self._transport.close()

    def cut(self) -> None:
        """Cut TCP, whatever is still to be sent."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """TCP is gone (asyncio calls this)."""
        if self._late is not None:
            self._late.cancel()
        self._listener.remove(self)

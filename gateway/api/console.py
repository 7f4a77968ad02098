"""What the operator's console asks: the stream of all that processes tell, and a client looked up. All of it is behind
the operator's token."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.api.endpoint import refusal
from gateway.api.http import Disconnected, Reply, Request
from gateway.api.operator import NO_STORE, admit
from gateway.console.clients import Clients
from gateway.console.consoles import Console, Consoles
from gateway.console.watched import Watched
from gateway.errors import Invalid, MethodNotAllowed
from gateway.transit.state import ClientId, DeviceId, valid_id


@dataclass(frozen=True, slots=True)
class ConsoleApi:
    """The operator's console: what this process tells of itself, the consoles that it serves, whom they look up."""

    operator_token: str
    watched: Watched
    consoles: Consoles
    clients: Clients


def console_routes(api: ConsoleApi) -> list[BaseRoute]:
    """The addresses of the console, its page apart."""

    async def look_up(request: Request) -> Reply:
        return Reply(200, orjson.dumps(await api.clients.look_up(_client(request))), headers=NO_STORE)

    async def send_back(request: Request) -> Reply:
        await api.clients.send_back(_client(request), _device(request))
        return Reply(204, headers=NO_STORE)

    return [
        Route("/console/stream", _Stream(api)),
        Route("/console/clients/{client_id}", _Asked(api, "GET", look_up)),
        Route("/console/clients/{client_id}/close", _Asked(api, "POST", send_back)),
    ]


def _client(request: Request) -> ClientId:
    """The client that the path names. Raises Invalid."""
    named = request.path["client_id"]
    if not valid_id(named):
        raise Invalid("client_id: must be 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..")
    return ClientId(named)


def _device(request: Request) -> DeviceId | None:
    """The device that the query names, if it does. Raises Invalid."""
    named = request.query.get("device_id")
    if named is not None and not valid_id(named):
        raise Invalid("device_id: must be 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..")
    return None if named is None else DeviceId(named)


def _admitted(scope: Scope, receive: Receive, method: str, api: ConsoleApi) -> Request:
    """The request, if it is the operator's. Raises MethodNotAllowed, Unauthorized."""
    request = Request(scope, receive)
    if scope["method"] != method:
        raise MethodNotAllowed([method])
    admit(request, api.operator_token)
    return request


class _Asked:
    """An address of the operator's, with one method."""

    def __init__(self, api: ConsoleApi, method: str, handler: Callable[[Request], Awaitable[Reply]]) -> None:
        self._api = api
        self._method = method
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._handler(_admitted(scope, receive, self._method, self._api))
        except Exception as error:
            reply = refusal(error)
        await reply.send(send)


class _Stream:
    """What all processes tell, as server-sent events, until the console is closed or the process ends."""

    def __init__(self, api: ConsoleApi) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as stack:
            try:
                request = _admitted(scope, receive, "GET", self._api)
                console = stack.enter_context(self._api.consoles.open())
            except Exception as error:
                await refusal(error).send(send)
                return
            with contextlib.suppress(Disconnected):
                await request.while_connected(_events(console, send))


async def _events(console: Console, send: Send) -> None:
    # The last is for nginx: it would hold events back until it has some KB of them.
    headers = [(b"content-type", b"text/event-stream"), *NO_STORE, (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b": watching\n\n", "more_body": True})
    async for event in console:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

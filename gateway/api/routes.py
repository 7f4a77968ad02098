"""The addresses of the gateway, and what answers at each."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api import asyncapi, openapi, operator, socket
from gateway.api.calls import CALLS, Backends, Call
from gateway.api.console import ConsoleApi, console_routes
from gateway.api.endpoint import Endpoint, Gate, refusal
from gateway.api.http import Disconnected, Reply, Request, problem
from gateway.api.objects import Objects
from gateway.api.pages import Pages
from gateway.api.short import ShortWay
from gateway.errors import MethodNotAllowed, NotFound, UpgradeRequired
from gateway.live.arrivals import Arrivals
from gateway.siblings import Siblings
from storage.objects import SERVED_PATH


@dataclass(frozen=True, slots=True)
class Api:
    """Everything that the addresses need."""

    gate: Gate
    backends: Backends
    readiness: operator.Readiness
    operator_token: str | None = None
    siblings: Siblings | None = None
    objects: Objects | None = None
    arrivals: Arrivals | None = None
    console: ConsoleApi | None = None
    pages: Pages | None = None
    cors_origins: tuple[str, ...] = ()


class Application(NamedTuple):
    """What answers requests: all of them, and the short way for calls."""

    asgi: ASGIApp
    short: ShortWay


def application(api: Api) -> Application:
    """What answers at the gateway's addresses."""
    endpoints = _endpoints(api)
    routes = [Route(path, endpoint) for path, endpoint in endpoints]
    router = Router([*routes, *_other_routes(api)], redirect_slashes=False, default=_nothing_here)
    return Application(_with_cors(router, api), ShortWay(endpoints))


def _with_cors(router: Router, api: Api) -> ASGIApp:
    if not api.cors_origins:
        return router
    return CORSMiddleware(
        router,
        allow_origins=api.cors_origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "If-None-Match", "Range"],
        expose_headers=["Content-Range", "ETag", "Retry-After"],
        max_age=86_400,
    )


def operator_pages(api: Api) -> ASGIApp:
    """The operator's addresses alone, for a process that serves no apps."""
    return Router(_operator_routes(api), redirect_slashes=False, default=_nothing_here)


def _endpoints(api: Api) -> list[tuple[str, Endpoint]]:
    """One for each path, in the order of the table: what is called most is found first."""
    by_path: dict[str, list[Call]] = {}
    for call in CALLS:
        by_path.setdefault(call.path, []).append(call)
    return [(path, Endpoint(calls, api.gate, api.backends)) for path, calls in by_path.items()]


def _operator_routes(api: Api) -> list[BaseRoute]:
    async def healthz(_: Request) -> Reply:
        return operator.alive()

    async def readyz(_: Request) -> Reply:
        return await api.readiness.reply()

    async def metrics(request: Request) -> Reply:
        return await operator.metrics(request, api.gate.metrics, api.siblings, api.operator_token)

    return [
        Route("/healthz", _Page(healthz)),
        Route("/readyz", _Page(readyz)),
        Route("/metrics", _Page(metrics)),
    ]


def _other_routes(api: Api) -> list[BaseRoute]:
    async def plain(_: Request) -> Reply:
        raise UpgradeRequired("this address takes WebSockets only")

    routes: list[BaseRoute] = [
        *_operator_routes(api),
        Route("/openapi.json", _description(openapi.document())),
        Route("/asyncapi.json", _description(asyncapi.document())),
        Route(socket.PATH, _Page(plain)),
    ]
    if api.objects is not None:
        routes.append(Route(SERVED_PATH + "{key:path}", api.objects))
    if api.arrivals is not None:
        routes.append(Route("/v1/devices/{device_id}/pushes", _PushStream(api, api.arrivals)))
    if api.console is not None:
        routes += console_routes(api.console)
    if api.pages is not None:
        routes += api.pages.routes()
        if api.pages.demo is not None:
            routes.append(Route("/demo/token", _Page(api.pages.demo.token, methods=("POST",))))
    return routes


class _Page:
    """An address that is read with GET, or takes the `methods` it is given."""

    def __init__(
        self, handler: Callable[[Request], Awaitable[Reply]], *, methods: Sequence[str] = ("GET", "HEAD")
    ) -> None:
        self._handler = handler
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] not in self._methods:
                raise MethodNotAllowed(self._methods)
            reply = await self._handler(Request(scope, receive))
        except Disconnected:
            return
        except Exception as error:
            reply = refusal(error)
        await reply.send(send, head=scope["method"] == "HEAD")


def _description(document: dict[str, Any]) -> _Page:
    text = orjson.dumps(document)

    async def description(_: Request) -> Reply:
        return Reply(200, text, headers=[(b"cache-control", b"public, max-age=300")])

    return _Page(description)


class _PushStream:
    """What the console sender delivers to a device, as server-sent events, for whoever plays the phone."""

    def __init__(self, api: Api, arrivals: Arrivals) -> None:
        self._api = api
        self._arrivals = arrivals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if scope["method"] != "GET":
                raise MethodNotAllowed(["GET"])
            caller = await self._api.gate.admit(request, self._api.backends)
            arriving = await self._arrivals.at(caller.client_id, caller.device_in_path())
        except Exception as error:
            await refusal(error).send(send)
            return
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await request.while_connected(_stream(arriving, send))
            await send({"type": "http.response.body", "body": b""})
        except Disconnected:
            return


async def _stream(arriving: AsyncIterator[bytes], send: Send) -> None:
    await send({"type": "http.response.body", "body": b": listening\n\n", "more_body": True})
    async for body in arriving:
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % body, "more_body": True})


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
    if scope["type"] == "http":
        await problem(NotFound("there is nothing at this address")).send(send, head=scope["method"] == "HEAD")
    else:
        await send({"type": "websocket.close", "code": 1000})

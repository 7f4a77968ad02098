"""The client's real calls over a simulated line: below `gateway.client.calls` only httpx's transport is another."""

import asyncio
from collections.abc import Mapping
from typing import cast

import httpx
from websockets.asyncio.client import ClientConnection

from gateway.client.calls import CALL_S, Calls, Token
from storage.objects import SERVED_PATH
from tests.simulation.network import Line

ADDRESS = "https://gateway.test"


class LineTransport(httpx.AsyncBaseTransport):
    """Takes requests of httpx to where the line leads: to the gateway, and to signed URLs."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises what httpx's own transport raises, its read timeout included."""
        timeout_s = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answered(request, await request.aread())
        except TimeoutError:
            raise httpx.ReadTimeout("simulated", request=request) from None

    async def _answered(self, request: httpx.Request, body: bytes) -> httpx.Response:
        line, path = self._line, request.url.path
        if SERVED_PATH in path and request.method == "PUT":
            return httpx.Response(await line.put(_whole(request.url), body))
        if SERVED_PATH in path:
            status, data = await line.get(_whole(request.url))
            return httpx.Response(status, content=data)
        query, headers = dict(request.url.params), dict(request.headers)
        found = await line.request(request.method, path, query=query, headers=headers, body=body)
        return httpx.Response(found.status, headers=found.headers, content=found.body)


def _whole(url: httpx.URL) -> str:
    """A signed URL with its signature, which it does not show by itself."""
    return str(httpx.URL(url))


class SimulatedCalls(Calls):
    """Calls over a line; sockets are the line's own."""

    def __init__(self, line: Line, token: Token, call_s: float = CALL_S) -> None:
        super().__init__(ADDRESS, token, httpx.AsyncClient(transport=LineTransport(line), trust_env=False), call_s)
        self._line = line

    def bearing(self, token: Token) -> "SimulatedCalls":
        return SimulatedCalls(self._line, token, self.call_s)

    async def socket(self, path: str, query: Mapping[str, str]) -> ClientConnection:
        async def attempt(token: str) -> ClientConnection:
            return cast("ClientConnection", await self._line.socket(path, query, token, within_s=self.call_s))

        return await self._bearer.accepted(attempt)

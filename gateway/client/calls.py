"""How calls are made: to the gateway with its token, to signed URLs without it."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar

import httpx
import orjson
from websockets.asyncio.client import ClientConnection

from gateway.client.failures import GatewayError, reaching, refusal
from gateway.client.live import opened

T = TypeVar("T")

CALL_S = 20.0
"""How long a call may take unless a client is told otherwise; a held poll may take its wait longer."""

STALL_S = 60.0
"""How long bytes of a video may fail to move before the transfer is given up."""

Token = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or what gets one: it is asked again after a 401."""


class Calls:
    """Calls to one gateway, and to the signed URLs that it hands out. Closes only connections that it opened itself."""

    def __init__(self, address: str, token: Token, http: httpx.AsyncClient | None, call_s: float) -> None:
        self._address = address
        self._bearer = Bearer(token, call_s)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None
        self.call_s = call_s

    def bearing(self, token: Token) -> "Calls":
        """Calls with another token over the same connections."""
        return Calls(self._address, token, self._http, self.call_s)

    async def token(self, *, instead_of: str | None = None) -> str:
        """The token in use, or a new one where it is that one."""
        return await self._bearer.token(instead_of=instead_of)

    async def close(self) -> None:
        """Close the connections that it opened itself."""
        if self._owns_http:
            await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        held_s: float = 0,
        error: type[GatewayError] = GatewayError,
    ) -> httpx.Response:
        """The answer of a call that succeeded; once more with a new token where the one it had is refused."""
        timeout_s = self.call_s + held_s

        async def attempt(token: str) -> httpx.Response:
            request = self._request(method, path, token, timeout_s, query=query, body=body, headers=headers)
            with reaching(error):
                async with asyncio.timeout(timeout_s):
                    answer = await self._http.send(request)
            if answer.is_success or answer.status_code == HTTPStatus.NOT_MODIFIED:
                return answer
            raise refusal(answer, error)

        return await self._bearer.accepted(attempt)

    async def socket(self, path: str, query: Mapping[str, str]) -> ClientConnection:
        """A socket that the gateway has opened; likewise."""

        async def attempt(token: str) -> ClientConnection:
            return await opened(self._address + path, query, token, within_s=self.call_s)

        return await self._bearer.accepted(attempt)

    @asynccontextmanager
    async def streamed(self, path: str, *, idle_s: float) -> AsyncIterator[httpx.Response]:
        """The answer of a GET that succeeded, its bytes still to come, with at most `idle_s` seconds between them."""
        timeout = httpx.Timeout(self.call_s, read=idle_s)
        request = self._request("GET", path, await self._bearer.token(), timeout)
        with reaching():
            async with asyncio.timeout(self.call_s):
                answer = await self._http.send(request, stream=True)
        try:
            if not answer.is_success:
                with reaching():
                    await answer.aread()
                raise refusal(answer)
            yield answer
        finally:
            await answer.aclose()

    async def signed(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: AsyncIterator[bytes] | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """Whatever a signed URL answers. The call goes without the token, which is none of the store's business, and
        shows its URL in no log. Raises what httpx raises."""
        timeout = httpx.Timeout(STALL_S, connect=self.call_s)
        request = self._http.build_request(method, url, headers=headers, content=content, timeout=timeout)
        request.headers.pop("authorization", None)
        request.url = SignedUrl(request.url)
        return await self._http.send(request, auth=None, stream=stream)

    def _request(
        self,
        method: str,
        path: str,
        token: str,
        timeout: float | httpx.Timeout,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        return self._http.build_request(
            method,
            self._address + path,
            params=query,
            content=None if body is None else orjson.dumps(body),
            headers={
                **(headers or {}),
                **({} if body is None else {"content-type": "application/json"}),
                "authorization": f"Bearer {token}",
            },
            timeout=timeout,
        )


class Bearer:
    """The token in use, and where the next one comes from, which may take `within_s` seconds."""

    def __init__(self, token: Token, within_s: float) -> None:
        self._source = token
        self._within_s = within_s
        self._renewing = asyncio.Lock()
        self._current: str | None = None

    async def accepted(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """What comes of trying with the token; once more with a new one where it is refused and can be renewed."""
        token = await self.token()
        try:
            return await attempt(token)
        except GatewayError as error:
            if error.status != HTTPStatus.UNAUTHORIZED or not callable(self._source):
                raise
        return await attempt(await self.token(instead_of=token))

    async def token(self, *, instead_of: str | None = None) -> str:
        """The token in use, or a new one where that is the one that was refused. Calls that fail together share it."""
        async with self._renewing:
            if self._current is None or self._current == instead_of:
                self._current = await self._get()
            return self._current

    async def _get(self) -> str:
        with reaching():
            async with asyncio.timeout(self._within_s):  # everybody waits for it
                got = self._source() if callable(self._source) else self._source
                token = await got if inspect.isawaitable(got) else got
        if not re.fullmatch(r"[!-~]+", token):
            # A header cannot carry it; what would refuse it otherwise repeats it in its message.
            raise ValueError("the token is empty, or has white space or control characters in it")
        return token


class SignedUrl(httpx.URL):
    """A URL whose query opens a door: shown without it, since httpx logs every URL that it calls."""

    def __str__(self) -> str:
        return str(httpx.URL(self).copy_with(query=None))

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"

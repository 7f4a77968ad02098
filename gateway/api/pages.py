"""The pages that come with the gateway: the demo and the operator's console. Static files, without a build step.

They load nothing from elsewhere, and run no script but their own: that is the content security policy, and their
videos come from wherever the object store's signed URLs lead.
"""

import posixpath
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from gateway.api.demo import Demo
from gateway.api.endpoint import refusal
from gateway.errors import MethodNotAllowed, NotFound
from storage.objects import ObjectStore

WEB = Path(__file__).parents[1] / "web"

_DEMO, _CONSOLE = ("demo", "client.js"), ("console", "vendor")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'{elsewhere}; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """Which pages there are: with `demo` its own, with `console` the operator's.

    `objects`: where the demo's videos go. `public_url`: where apps reach the gateway, if it is not where pages do.
    """

    objects: ObjectStore
    public_url: str | None = None
    demo: Demo | None = None
    console: bool = False

    def routes(self) -> list[BaseRoute]:
        """Their addresses; none where there are no pages."""
        pages = {}
        if self.demo is not None:
            pages["/"] = "demo/index.html"
        if self.console:
            pages["/console"] = "console/index.html"
        if not pages:
            return []
        files = _Files(pages, (*(_DEMO if self.demo else ()), *(_CONSOLE if self.console else ())), self._policy)
        return [*(Route(address, files) for address in pages), Route("/web/{path:path}", files)]

    async def _policy(self) -> str:
        """The policy of a page (https://www.w3.org/TR/CSP3/)."""
        signed = await self.objects.sign_download("pages/policy", expires_at=round(time.time() * 1000) + 60_000)
        found = {_origin(url) for url in (signed.url, self.public_url or "")}
        return _POLICY.format(elsewhere="".join(f" {origin}" for origin in sorted(found) if origin))


class _Files:
    """ASGI application for `/web/{path}`, as far as it begins with one of `opened`, and for `pages`, by address."""

    def __init__(self, pages: Mapping[str, str], opened: Collection[str], policy: Callable[[], Awaitable[str]]) -> None:
        self._pages = pages
        self._opened = opened
        self._policy = policy
        self._files = StaticFiles(directory=WEB)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._response(scope)
        except Exception as error:
            await refusal(error).send(send, head=scope["method"] == "HEAD")
            return
        await response(scope, receive, send)

    async def _response(self, scope: Scope) -> Response:
        if scope["method"] not in {"GET", "HEAD"}:
            raise MethodNotAllowed(["GET", "HEAD"])
        path = self._pages.get(scope["path"]) or posixpath.normpath(scope["path_params"]["path"])
        if path.split("/")[0] not in self._opened:
            raise NotFound("there is nothing at this address")
        try:
            response = await self._files.get_response(path, scope)
        except HTTPException as error:
            raise NotFound("there is nothing at this address") from error
        response.headers.update({**_HEADERS, "content-security-policy": await self._policy()})
        return response


def _origin(url: str) -> str:
    """Where a URL leads, as a policy names it; nothing for one that is relative to the page."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""

"""The short way of a call: one whose request has come whole is answered without ASGI.

What ASGI costs (a scope, a cycle of messages, the router) is more than what most calls do themselves. Whatever is not
as simple as nearly every request of every app goes the long way; both lead to the same `Endpoint`, by the same table.
"""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.routing import compile_path

from gateway.api.calls import Call
from gateway.api.endpoint import Endpoint
from gateway.api.http import Reply, Request

Headers = Sequence[tuple[bytes, bytes]]

LONG = frozenset({b"expect", b"origin", b"transfer-encoding", b"upgrade"})
"""Headers with which a request goes the long way."""


class ShortCall(NamedTuple):
    """A call that may go the short way, once its body is there."""

    endpoint: Endpoint
    call: Call
    params: dict[str, str]
    query: bytes

    async def reply(self, scheme: str, headers: Headers, body: bytes) -> Reply | None:
        """Its answer. `headers`: their names in lower case."""
        scope = {
            "path_params": self.params,
            "query_string": self.query,
            "scheme": scheme,
            "headers": headers,
        }
        return await self.endpoint.reply(self.call, Request(scope, _nothing_more, body=body))


class ShortWay:
    """Finds calls. `endpoints`: by their paths, as starlette has them."""

    def __init__(self, endpoints: Sequence[tuple[str, Endpoint]]) -> None:
        self._fixed = {path.encode(): endpoint for path, endpoint in endpoints if "{" not in path}
        self._patterns = [(compile_path(path)[0], endpoint) for path, endpoint in endpoints if "{" in path]

    def find(self, method: bytes, target: bytes) -> ShortCall | None:
        """The call that a request asks for, or None where it is to go the long way: another path, or method, anything
        that would have to be decoded, and polls that are held, which notice that the app goes away."""
        path, _, query = target.partition(b"?")
        if b"%" in path or b"#" in target or b"wait" in query or not path.isascii():
            return None
        endpoint, params = self._at(path)
        call = endpoint.calls.get(method.decode()) if endpoint is not None else None
        return None if endpoint is None or call is None else ShortCall(endpoint, call, params, query)

    def _at(self, path: bytes) -> tuple[Endpoint | None, dict[str, str]]:
        """What is at a path, and the parameters in it."""
        if (endpoint := self._fixed.get(path)) is not None:
            return endpoint, {}
        text = path.decode()
        for pattern, endpoint in self._patterns:
            if (found := pattern.match(text)) is not None:
                return endpoint, found.groupdict()
        return None, {}


async def _nothing_more() -> dict[str, object]:
    return {"type": "http.disconnect"}

"""What operators and apps' developers ask: is it alive, is it ready, its metrics, its OpenAPI document."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping

import orjson

from gateway.api.http import Reply, Request
from gateway.errors import Unauthorized
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.siblings import Siblings

PROBE_S = 2.0
"""How long a backend may take to answer before it counts as faulty."""

_NO_STORE = ((b"cache-control", b"no-store"),)

Probe = Callable[[], Awaitable[object]]


class Readiness:
    """Whether this process wants calls. A backend that does not answer is told, but does not take it out of service:
    the others' calls still work, and every process would be out at once."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self.serving = False

    async def reply(self) -> Reply:
        """200, or 503 while starting or draining; the body names the backends that do not answer."""
        faults = sorted(await asyncio.gather(*(self._fault(name) for name in self._probes)))
        body = {"status": "ready" if self.serving else "not serving", "faults": [fault for fault in faults if fault]}
        return Reply(200 if self.serving else 503, orjson.dumps(body), headers=_NO_STORE)

    async def _fault(self, name: str) -> str:
        try:
            async with asyncio.timeout(PROBE_S):
                await self._probes[name]()
        except Exception:  # whatever it is, it is a fault of that backend
            return name
        return ""


def alive() -> Reply:
    """The process answers."""
    return Reply(200, b'{"status":"alive","faults":[]}', headers=_NO_STORE)


async def metrics(request: Request, found: Metrics, siblings: Siblings | None, operator_token: str | None) -> Reply:
    """The metrics, of all processes where there are more, in Prometheus' text format. Raises Unauthorized without the
    operator's token, where one is set."""
    if operator_token is not None:
        given = (request.header(b"authorization") or "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), operator_token.encode()):
            raise Unauthorized("the operator's token is required")
    text = found.exposition() if siblings is None else await siblings.exposition(found)
    return Reply(200, text, content_type=CONTENT_TYPE.encode(), headers=_NO_STORE)

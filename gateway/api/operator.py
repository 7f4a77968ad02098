"""What operators and apps' developers ask: is it alive, is it ready, its metrics, its OpenAPI document."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson

from gateway.api.http import Reply, Request
from gateway.errors import Unauthorized
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.siblings import Siblings

PROBE_S = 2.0
"""How long a backend may take to answer before it counts as faulty."""

NO_STORE = ((b"cache-control", b"no-store"),)

Probe = Callable[[], Awaitable[object]]


class Readiness:
    """Whether this process wants calls. A backend that does not answer is told, but does not take it out of service:
    the others' calls still work, and every process would be out at once."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self.serving = False

    async def reply(self) -> Reply:
        """200, or 503 while starting or draining; the body names the backends that do not answer."""
        faults = sorted(name for name, took_ms in (await self.times()).items() if took_ms is None)
        body = {"status": "ready" if self.serving else "not serving", "faults": faults}
        return Reply(200 if self.serving else 503, orjson.dumps(body), headers=NO_STORE)

    async def times(self) -> dict[str, float | None]:
        """How long each backend takes to answer now, in ms; None where it does not."""
        took = await asyncio.gather(*map(_probed_ms, self._probes.values()))
        return dict(zip(self._probes, took, strict=True))


async def _probed_ms(probe: Probe) -> float | None:
    began_s = time.perf_counter()
    try:
        async with asyncio.timeout(PROBE_S):
            await probe()
    except Exception:  # whatever it is, it is a fault of that backend
        return None
    return round((time.perf_counter() - began_s) * 1000, 1)


def admit(request: Request, operator_token: str) -> None:
    """Let the operator pass. Raises Unauthorized without the token."""
    given = (request.header(b"authorization") or "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), operator_token.encode()):
        raise Unauthorized("the operator's token is required")


def alive() -> Reply:
    """The process answers."""
    return Reply(200, b'{"status":"alive","faults":[]}', headers=NO_STORE)


async def metrics(request: Request, found: Metrics, siblings: Siblings | None, operator_token: str | None) -> Reply:
    """The metrics, of all processes where there are more, in Prometheus' text format. Raises Unauthorized without the
    operator's token, where one is set."""
    if operator_token is not None:
        admit(request, operator_token)
    text = found.exposition() if siblings is None else await siblings.exposition(found)
    return Reply(200, text, content_type=CONTENT_TYPE.encode(), headers=NO_STORE)

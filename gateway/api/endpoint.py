"""One address: method, authorization, rate limit, the call, and its answer or problem."""

import logging
import time
from collections.abc import Sequence

from prometheus_client import Counter
from starlette.types import Receive, Scope, Send

from gateway.api.auth import Authorizer
from gateway.api.calls import Backends, Call, Caller
from gateway.api.http import Disconnected, Reply, Request, RequestTimeout, problem, problem_reply
from gateway.api.limits import RateLimiter
from gateway.errors import GatewayError, MethodNotAllowed
from gateway.metrics import Metrics

log = logging.getLogger(__name__)


class Gate:
    """What every call passes first."""

    def __init__(self, authorizer: Authorizer, limiter: RateLimiter, metrics: Metrics) -> None:
        self._authorizer = authorizer
        self._limiter = limiter
        self.metrics = metrics

    async def admit(self, request: Request, backends: Backends) -> Caller:
        """The caller. Raises Unauthorized, RateLimited, Unavailable."""
        identity = await self._authorizer.authorize(request.header(b"authorization"))
        self._limiter.take(identity.client_id)
        return Caller(request, identity, backends)


class Endpoint:
    """The ASGI application behind one path: the calls that this path has, by method (`calls`)."""

    def __init__(self, calls: Sequence[Call], gate: Gate, backends: Backends) -> None:
        self.calls = {call.method: call for call in calls}
        self._gate = gate
        self._backends = backends
        self._counters: dict[tuple[str, int], Counter] = {}
        self._histograms = {
            call.name: gate.metrics.call_seconds.labels(call.name)
            for call in calls
            if call.name != "poll"  # a poll that was held would count as slow
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = scope["method"] == "HEAD"
        call = self.calls.get("GET" if head else scope["method"])
        if call is None:
            allowed = [*self.calls, "HEAD"] if "GET" in self.calls else self.calls
            await problem(MethodNotAllowed(sorted(allowed))).send(send, head=head)
            return
        reply = await self.reply(call, Request(scope, receive))
        if reply is not None:
            await reply.send(send, head=head)

    async def reply(self, call: Call, request: Request) -> Reply | None:
        """The answer to one of its calls; None where the app went away."""
        started = time.perf_counter()
        try:
            caller = await self._gate.admit(request, self._backends)
            reply = await call.handler(caller)
        except Disconnected:
            return None
        except Exception as error:
            reply = refusal(error)
        self._count(call, reply.status, time.perf_counter() - started)
        return reply

    def _count(self, call: Call, status: int, seconds: float) -> None:
        """Count the call. What a label leads to is looked up once: that costs more than the counting."""
        counter = self._counters.get((call.name, status))
        if counter is None:
            counter = self._counters[call.name, status] = self._gate.metrics.calls.labels(call.name, status)
        counter.inc()
        if (histogram := self._histograms.get(call.name)) is not None:
            histogram.observe(seconds)


def refusal(error: Exception) -> Reply:
    """The answer to a call that raised. Whatever is not a refusal is a fault of ours: logged, and answered 500."""
    if isinstance(error, GatewayError):
        return problem(error)
    if isinstance(error, RequestTimeout):
        return problem_reply(408, "the request did not arrive in time", headers=[(b"connection", b"close")])
    log.error("a call failed", exc_info=error)
    return problem_reply(500, "something is wrong on our side")

"""One process of the gateway, wired of its real parts, on a loop of its own.

    config = Config(policy, with_packet=True, sweep_s=20.0, …)   what all processes have in common
    backends = Backends(documents, objects, bus, providers, cache)   the shared states of `backends`; a cache, or None
    process = Process(name, scheduler, config, backends, network, skew_s=0.0, worker=True)
    process.start()                        it serves within a tenth of a second; put it into `network.processes`
    process.crash()                        it is gone, and TCP says so
    process.freeze(for_s)
    process.drain()                        it ends in peace; it is `gone` some seconds later
    process.gone                           crashed, or drained
    process.gateway                        the parts, once it has started

A process does not come back: restart by making another (with another name, for the story's sake).

    with steady(seed), scaled(worker_s=1.0), errors_noted(witness): …

`steady` makes runs repeatable: chance is seeded, and sets in the code under test are kept in order. `scaled` shortens
the times that no setting has, so that minutes see them pass, all of them well above the two minutes by which clocks
differ. `errors_noted`
takes each error that is logged as a fault. `token(client_id, now_s, device_id=None, ttl_s=3600)` issues a bearer token.
"""

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping, MutableSet
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from starlette.types import ASGIApp

import gateway.api.calls
import gateway.live.wheel
import gateway.registry
from gateway import app, mending, wakeups
from gateway.api.auth import issue_token
from gateway.api.socket import SocketDoor
from gateway.app import Gateway
from gateway.changes import CLIENT_PREFIX
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.live import hub
from gateway.transit import devices, policy, sealing
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.transit.state import ClientState, DeviceId
from push import breaker, guard
from push.console import ConsoleSender
from push.sender import Platform
from storage.cache import CachedDocuments
from storage.documents import DocumentStore
from tests.simulation.backends import BusState, DocumentsState, ObjectsState
from tests.simulation.cache import CacheState
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.network import Network, _Call
from tests.simulation.providers import ProviderState
from tests.simulation.sockets import Wire
from tests.simulation.witness import Witness

START_S = 1_750_000_000
"""The time at which every run begins, in seconds since the epoch."""

SECRET = "the secret of the simulation, which is no secret"

WHEEL_S = 4.0
"""How late a turn of the wheel may come: sixteen times as late as in earnest, which saves steps."""

CHECK_S = 60.0
"""How often a hub compares its versions with the store's."""

DRAIN_S = 10.0


def token(client_id: str, now_s: float, *, device_id: str | None = None, ttl_s: float = 3600) -> str:
    """A bearer token that is good from virtual time `now_s` on."""
    return issue_token(SECRET, client_id, device_id=device_id, ttl_s=ttl_s, now=START_S + now_s)


@dataclass(frozen=True, slots=True)
class Config:
    """What all processes of a run have in common."""

    policy: Policy
    with_packet: bool = True
    sweep_s: float = 30.0
    rate: str = "0"
    ping_s: float = 25.0
    pong_s: float = 20.0
    drain_s: float = DRAIN_S

    def settings(self) -> Settings:
        """Those that the policy does not hold."""
        given = {
            "JWT_SECRET": SECRET,
            "STATE_URL": "memory:",
            "OBJECTS_URL": "memory:",
            "PUBLIC_URL": "http://gateway",
            "PUSH_CONTENT": "packet" if self.with_packet else "wakeup",
            "SWEEP_S": str(self.sweep_s),
            "SWEEP_FULL_S": str(3 * self.sweep_s),
            "RATE_CALLS": self.rate,
            "RATE_FRAMES": self.rate,
            "PING_S": str(self.ping_s),
            "PONG_S": str(self.pong_s),
            "DRAIN_S": str(self.drain_s),
        }
        return Settings.load({f"GATEWAY_{name}": text for name, text in given.items()})


@dataclass(frozen=True, slots=True)
class Backends:
    """The shared states that all processes work on."""

    documents: DocumentsState
    objects: ObjectsState
    bus: BusState
    providers: Mapping[Platform, ProviderState]
    cache: CacheState | None = None


class Process:
    """One process of the gateway."""

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        config: Config,
        backends: Backends,
        network: Network,
        *,
        skew_s: float = 0.0,
        worker: bool = True,
    ) -> None:
        self.name = name
        self.skew_s = skew_s
        self.loop = MachineLoop(scheduler, name)
        self.out_s = 0.0
        self.calls: dict[int, _Call] = {}
        self.wires: dict[int, Wire] = {}
        self.gone = False
        self._worker = worker
        self._scheduler = scheduler
        self._config = config
        self._backends = backends
        self._network = network
        self._witness = network.witness
        self._gateway: Gateway | None = None
        self._stopping = asyncio.Event()

    # --- As the network sees it

    @property
    def gateway(self) -> Gateway:
        """Its parts, once it has started."""
        assert self._gateway is not None
        return self._gateway

    @property
    def asgi(self) -> ASGIApp:
        """The application."""
        return self.gateway.asgi

    @property
    def door(self) -> SocketDoor:
        """What opens sockets."""
        return self.gateway.door

    async def stored(self, key: str) -> None:
        """Bytes were stored under `key`: complete the upload, as `gateway.app` does."""
        ref = VideoRef.parse(key)
        if ref is not None:
            with contextlib.suppress(GatewayError):
                await self.gateway.service.confirm(ref, by_sender=False)

    # --- Its life

    def start(self) -> None:
        """Begin: wire everything, and serve."""
        self._witness.say(self.name, f"starts, its clock {self.skew_s:+.0f} s off" if self.skew_s else "starts")
        self._wire()
        self.loop.start(self._run(), name=self.name)

    def _wire(self) -> None:
        loop, backends = self.loop, self._backends
        bus = backends.bus.view(loop)
        self._gateway = app.wired(
            self._config.settings(),
            documents=self._documents(),
            objects=backends.objects.view(loop),
            bus=bus,
            senders={platform: provider.view(loop) for platform, provider in backends.providers.items()},
            console=ConsoleSender(),
            policy=self._config.policy,
            clock=self.clock,
            monotonic=loop.time,
        )
        if not self._worker:
            bus.kicked.clear()
        self._gateway.wheel._tick_s = WHEEL_S
        self._gateway.desk._tasks = Ordered()  # type: ignore[assignment]
        self.out_s = float("inf")

    def _documents(self) -> DocumentStore:
        store, loop, cache = self._backends.documents.view(self.loop), self.loop, self._backends.cache
        if cache is None:
            return store
        return CachedDocuments(store, cache.view(loop), prefix=CLIENT_PREFIX, clock=loop.time)

    def clock(self) -> float:
        """The time by its own clock, in seconds since the epoch."""
        return START_S + self._scheduler.now_s + self.skew_s

    async def _run(self) -> None:
        async with app.running(self.gateway, self._config.settings(), worker=self._worker):
            self.gateway.readiness.serving = True
            await self._stopping.wait()
            await self._drain()
        await self.gateway.close()
        self._end()
        self._witness.say(self.name, "is gone")

    async def _drain(self) -> None:
        """As the server does it: no more connections, sockets closed, calls finished."""
        self.gateway.readiness.serving = False
        self.gateway.hub.close()
        try:
            async with asyncio.timeout(self._config.drain_s * app.CALLS_PART):
                await self.gateway.hub.drain(self._config.drain_s * app.CALLS_PART, most_retry_ms=app.MOST_RETRY_MS)
                while self.calls:  # noqa: ASYNC110 - virtual time
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.gateway.hub.abort()

    def crash(self) -> None:
        """It is gone from one step to the next, with all that it had in memory."""
        if not self.loop.dead:
            self._witness.say(self.name, "CRASHES")
            self._end()

    def freeze(self, for_s: float) -> None:
        """Nothing happens in it for so long."""
        self._witness.say(self.name, f"FROZEN for {for_s:.1f} s")
        self.loop.freeze(for_s)

    def drain(self) -> None:
        """Have it end in peace."""
        if not self.loop.dead and not self._stopping.is_set():
            self._witness.say(self.name, "is told to stop")
            self.out_s = self._scheduler.now_s
            self.loop.post(self._stopping.set)

    def _end(self) -> None:
        if self._scheduler.stopped:
            return
        self.out_s = min(self.out_s, self._scheduler.now_s)
        self.gone = True
        self.loop.kill()
        self._network.crashed(self)


# --- What makes runs repeatable


class Ordered(MutableSet[Any]):
    """A set that is iterated in the order in which things came. Python's own depends on addresses and hash seeds."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter([*self._items])

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        """Put it behind the others, unless it is there."""
        self._items[value] = None

    def discard(self, value: Any) -> None:
        """Take it out."""
        self._items.pop(value, None)

    def clear(self) -> None:
        """Take all out."""
        self._items.clear()

    def update(self, items: Iterable[Any]) -> None:
        """Add them all."""
        self._items.update(dict.fromkeys(items))


def _tokens(state: ClientState) -> Ordered:
    """`gateway.registry.tokens`, in order."""
    pairs: list[tuple[DeviceId, str]] = [(device_id, device.token_key) for device_id, device in state.devices.items()]
    return Ordered(pairs)


@contextlib.contextmanager
def steady(seed: int) -> Iterator[None]:
    """Make what happens within depend on the seed alone."""
    before = random.getstate()
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        for module in (gateway.live.wheel, gateway.registry, asyncio.taskgroups):
            stack.enter_context(patch.object(module, "set", Ordered, create=True))
        for module in (gateway.registry, gateway.api.calls):
            stack.enter_context(patch.object(module, "tokens", _tokens))
        stack.enter_context(patch.object(uuid, "uuid4", lambda: uuid.UUID(int=random.getrandbits(128), version=4)))
        try:
            yield
        finally:
            random.setstate(before)


@contextlib.contextmanager
def scaled(*, worker_s: float = 2.0) -> Iterator[None]:
    """Shorten the times that are not settings, and lower what it takes to give up a provider, or to believe no dead
    token: there are few devices in a story. `worker_s`: how often the due index is asked."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (policy, "SWEEP_MARGIN_MS", 300_000),
            (sealing, "PAIR_KEEP_MS", 180_000),
            (policy, "BACKGROUND_SPACING_MS", 60_000),
            (devices, "BACKGROUND_SPACING_MS", 60_000),
            (policy, "RETRY_MOST_MS", 60_000),
            (devices, "RETRY_MOST_MS", 60_000),
            (mending, "TOKEN_REST_MS", 300_000),
            (wakeups, "HOUR_MS", 60_000),
            (wakeups, "POLL_S", worker_s),
            (breaker, "MOST_FAILURES", 3),
            (guard, "LEAST_DEAD", 3),
            (hub, "CHECK_S", CHECK_S),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


FOR_OPERATORS = (
    "a push was rejected",
    "a push provider fails, and is left alone for a while",
    "too many push tokens are dead at once",
)
"""How errors begin that are no faults of ours: a provider's words, which an operator has to read."""


class _Errors(logging.Handler):
    """Errors that the code logs: in a simulation each of them is a fault of its own."""

    def __init__(self, witness: Witness) -> None:
        super().__init__(logging.ERROR)
        self._witness = witness

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(FOR_OPERATORS):
            return
        error = record.exc_info[1] if record.exc_info else None
        self._witness.broken("error logged", f"{record.getMessage()}: {error!r}")


@contextlib.contextmanager
def errors_noted(witness: Witness) -> Iterator[None]:
    """Take each error that the gateway and its senders log as a fault; anything less is not logged."""
    handler, loggers = _Errors(witness), [logging.getLogger(name) for name in ("gateway", "push")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

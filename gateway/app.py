"""The application: every adapter picked, every part wired, opened in order and closed in reverse.

The only place that knows which adapters there are behind the settings.
"""

import asyncio
import contextlib
import importlib
import logging
import resource
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from gateway.api.auth import Authorizer
from gateway.api.calls import Backends
from gateway.api.console import ConsoleApi
from gateway.api.demo import Demo
from gateway.api.endpoint import Gate
from gateway.api.keys import FixedKey, KeySource, PublishedKeys
from gateway.api.limits import RateLimiter
from gateway.api.objects import Objects
from gateway.api.operator import Readiness
from gateway.api.pages import Pages
from gateway.api.routes import Api, application, operator_pages
from gateway.api.session import Desk
from gateway.api.short import ShortWay
from gateway.api.socket import SocketDoor
from gateway.bus import open_bus
from gateway.bus.bus import TOPIC_OF_PUSHES, Bus
from gateway.changes import CLIENT_PREFIX, MOST_RECENT, Changes
from gateway.config import Settings
from gateway.console.clients import Clients
from gateway.console.consoles import Consoles
from gateway.console.watched import Watched
from gateway.errors import GatewayError
from gateway.journal import Journal
from gateway.live.arrivals import Arrivals
from gateway.live.connection import Keepalive
from gateway.live.hub import Hub
from gateway.live.wheel import Wheel
from gateway.mending import Mending
from gateway.metrics import Metrics
from gateway.parsers import PushContent, scheme_of
from gateway.registry import Registry
from gateway.removals import Removals
from gateway.senders import open_senders, platforms_on_console
from gateway.server import SPARE, Server
from gateway.service import Service, UploadLimits
from gateway.siblings import Siblings
from gateway.sweep import Sweep
from gateway.transit.decisions import VideoRef
from gateway.transit.policy import Policy
from gateway.uploads import Uploads
from gateway.wakeups import PushOptions, Wakeups
from push.console import ConsoleSender
from push.sender import Platform, Sender
from storage import open_cache, open_documents, open_objects, open_upload_events
from storage.cache import CachedDocuments
from storage.documents import DocumentStore
from storage.events import UploadEvents
from storage.objects import ObjectStore, ServedObjectStore
from storage.redis_url import REDIS_SCHEMES
from storage.usage import Usage

RESTART_PAUSE_S = 1.0
"""How long a loop in the background rests after a fault of ours, before it goes on."""

MOST_RETRY_MS = 5_000
"""When a process ends, its apps are told to come back after a random time of up to this."""

CALLS_PART, CANCEL_PART = 0.8, 0.9
"""The parts of `DRAIN_S` after which connections are cut off, and calls that do not end by that are cancelled; the rest
is for closing what they used."""

FINISH_PART = 0.05
"""So much of that rest is left to pushes that are still under way: what is written down of them is not sent again."""

LEAST_STOP_S = 2.0
"""So long a process that is told to stop may take whatever `DRAIN_S` says."""

TURN_ROUNDS = 1.5
"""For so many rounds a worker has the turn to sweep: longer than one, so that it keeps it."""

LONE_TURN_S = 60.0
"""The most of that where one process is all there is: its own turn before a crash must not be in its way for long."""

JOURNALED = 10_000
"""What a process remembers of what happened to its clients, where an operator can ask: 4 MB."""

OTHER_FILES = 256
"""File descriptors for all that is no connection of an app."""

_ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "sqlite": ("storage.sqlite",),
    "file": ("storage.disk",),
    "dynamodb": ("storage.dynamodb",),
    "s3": ("storage.s3",),
    "sqs": ("storage.sqs",),
    **dict.fromkeys(REDIS_SCHEMES, ("gateway.bus.redis", "storage.redis", "storage.redis_cache")),
}
"""What is imported late, by the scheme that asks for it: see `import_adapters`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running gateway."""

    asgi: ASGIApp
    short: ShortWay
    pages: ASGIApp
    """The operator's addresses alone."""
    metrics: Metrics
    authorizer: Authorizer
    service: Service
    uploads: Uploads
    events: UploadEvents | None
    """Of uploads, where the object store has them."""
    sweep: Sweep
    usage: Usage
    """What the stores were asked to do."""
    wakeups: Wakeups
    removals: Removals
    hub: Hub
    desk: Desk
    door: SocketDoor
    wheel: Wheel
    readiness: Readiness
    console: ConsoleSender
    operators_console: ConsoleApi | None
    """Where there is an operator's token."""

    async def close(self) -> None:
        """Give up what sessions still do, delete what waits for it, let the keys go."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.authorizer.close)
            stack.push_async_callback(self.removals.flush)
            stack.push_async_callback(self.desk.close)


@asynccontextmanager
async def open_gateway(
    settings: Settings, *, worker: bool = True, siblings: Siblings | None = None, role: str = "serve"
) -> AsyncIterator[Gateway]:
    """Open the backends that the settings name and wire everything; nothing runs in the background yet.

    Without `worker` it can wake nobody: the senders are not opened, which spares a process 80 MiB. `siblings`: the
    other processes of this program, where there are any. `role`: what it is called among all processes, with its
    machine.
    """
    async with contextlib.AsyncExitStack() as stack:
        usage = Usage()
        metrics = Metrics(usage)
        documents = await stack.enter_async_context(open_documents(settings.state_url, usage=usage))
        if settings.cache_url is not None:
            documents = _cached(documents, settings.cache_url, metrics, usage)
            stack.push_async_callback(documents.close)
        objects = await stack.enter_async_context(open_objects(settings.objects_url, usage=usage))
        events = await _events(settings, usage, stack) if worker else None
        bus = open_bus(settings.bus_url, metrics)
        stack.push_async_callback(bus.close)
        console = ConsoleSender(spread=partial(_spread, bus))
        if platforms_on_console(settings):
            await bus.hear(TOPIC_OF_PUSHES, partial(_arrive, console))
        stack.push_async_callback(console.close)
        senders = open_senders(settings, console) if worker else {}
        for sender in senders.values():
            stack.push_async_callback(sender.close)
        gateway = wired(
            settings,
            documents=documents,
            objects=objects,
            bus=bus,
            senders=senders,
            console=console,
            worker=worker,
            siblings=siblings,
            events=events,
            metrics=metrics,
            usage=usage,
            name=f"{socket.gethostname()}/{role}.{secrets.token_hex(2)}",
            monotonic=asyncio.get_running_loop().time,
        )
        stack.push_async_callback(gateway.close)
        yield gateway


def wired(
    settings: Settings,
    *,
    documents: DocumentStore,
    objects: ObjectStore,
    bus: Bus,
    senders: Mapping[Platform, Sender],
    console: ConsoleSender,
    worker: bool = True,
    siblings: Siblings | None = None,
    events: UploadEvents | None = None,
    metrics: Metrics | None = None,
    usage: Usage | None = None,
    policy: Policy | None = None,
    name: str = "",
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Gateway:
    """The parts of a gateway, on backends that are open and stay the caller's.

    `worker`: kicks are for it too. `siblings`: whose metrics are told besides its own. `policy`: instead of what the
    settings say. `name`: the process's, among all. `clock`: seconds since the epoch; `monotonic`: seconds of a clock
    that never goes back.
    """
    metrics = metrics or Metrics(usage)
    authorizer = Authorizer(_keys(settings), audience=settings.jwt_audience, issuer=settings.jwt_issuer, clock=clock)
    removals = Removals(objects, metrics)
    changes = Changes(
        documents=documents,
        bus=bus,
        removals=removals,
        policy=policy or _policy(settings),
        metrics=metrics,
        journal=Journal(JOURNALED if settings.operator_token else 0, clock),
        clock=clock,
        recent=MOST_RECENT if settings.bus_is_in_process else 0,
    )
    service = Service(changes, objects, _limits(settings))
    registry = Registry(changes)
    uploads = Uploads(changes=changes, service=service, objects=objects, metrics=metrics)
    sweep = Sweep(
        changes=changes,
        uploads=uploads,
        mending=Mending(changes, registry),
        objects=objects,
        metrics=metrics,
        rate=settings.sweep_rate,
        monotonic=monotonic,
    )
    wakeups = Wakeups(
        changes=changes,
        service=service,
        registry=registry,
        senders=senders,
        options=PushOptions(with_packet=settings.push_content is PushContent.PACKET),
        metrics=metrics,
        monotonic=monotonic,
    )
    if worker:
        bus.on_kick(wakeups.kick)
    wheel = Wheel(monotonic)
    hub = Hub(changes, bus, metrics, wheel)
    readiness = Readiness(
        {"documents": lambda: documents.load(["ready"]), "objects": lambda: objects.head("ready/ready")}
    )
    gate = Gate(authorizer, RateLimiter(settings.rate_calls, clock=monotonic), metrics)
    backends = Backends(service, registry, hub, settings.public_url, settings.shows_demo)
    desk = Desk(service, hub, authorizer, RateLimiter(settings.rate_frames, clock=monotonic), metrics, clock)
    keepalive = Keepalive(wheel, ping_s=settings.ping_s, pong_s=settings.pong_s)
    operators_console = None
    if (token := settings.operator_token) is not None:
        clocks = {"clock": clock, "monotonic": monotonic}
        watched = Watched(
            name, bus=bus, metrics=metrics, hub=hub, journal=changes.journal, probes=readiness.times, **clocks
        )
        consoles = Consoles(name, bus=bus, **clocks)
        operators_console = ConsoleApi(token, watched, consoles, Clients(changes, hub, consoles))
    api = Api(
        gate=gate,
        backends=backends,
        readiness=readiness,
        operator_token=settings.operator_token,
        siblings=siblings,
        objects=_served(objects, service, metrics),
        arrivals=Arrivals(service, registry, console.listen, platforms_on_console(settings)),
        cors_origins=settings.cors_origins,
        console=operators_console,
        pages=Pages(
            objects=objects,
            public_url=settings.public_url,
            demo=_demo(settings, clock),
            console=settings.operator_token is not None,
        ),
    )
    answering = application(api)
    return Gateway(
        asgi=answering.asgi,
        short=answering.short,
        pages=operator_pages(api),
        metrics=metrics,
        authorizer=authorizer,
        service=service,
        uploads=uploads,
        events=events,
        sweep=sweep,
        usage=usage or Usage(),
        wakeups=wakeups,
        removals=removals,
        hub=hub,
        desk=desk,
        door=SocketDoor(gate, backends, desk, keepalive),
        wheel=wheel,
        readiness=readiness,
        console=console,
        operators_console=operators_console,
    )


@asynccontextmanager
async def running(gateway: Gateway, settings: Settings, *, worker: bool) -> AsyncIterator[None]:
    """Run what works in the background; with `worker` the wakeups, the sweep and upload events too."""
    loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("removals", gateway.removals.run),
        ("wheel", gateway.wheel.run),
        ("versions", gateway.hub.run),
    ]
    if (operators := gateway.operators_console) is not None:
        loops += [("watched", operators.watched.run), ("consoles", operators.consoles.run)]
    if worker:
        loops.append(("wakeups", gateway.wakeups.run))
        loops.append(("sweep", lambda: gateway.sweep.run(settings.sweep_s, turn_s=_turn_s(settings))))
        loops.append(("full sweep", lambda: gateway.sweep.run_full(settings.full_sweep_s, look_s=settings.sweep_s)))
    if worker and (events := gateway.events) is not None:
        loops.append(("upload events", lambda: gateway.uploads.take(events)))
    tasks = {name: asyncio.create_task(_forever(name, loop), name=name) for name, loop in loops}
    try:
        yield
    finally:
        if worker:
            gateway.wakeups.stop()
            await asyncio.wait([tasks["wakeups"]], timeout=stop_s(settings) * FINISH_PART)
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop until it ends, whatever it meets: a fault of ours in one must not end the process's calls."""
    while True:
        try:
            await loop()
            return
        except Exception:
            log.exception("a loop in the background failed, and goes on", extra={"loop": name})
            await asyncio.sleep(RESTART_PAUSE_S)


# --- The server


def server_of(gateway: Gateway, settings: Settings, started: Callable[[int], None]) -> Server:
    """The server of a gateway; `started` is called with the port once it listens."""
    drain_s = stop_s(settings) * CALLS_PART

    def listening(port: int) -> None:
        gateway.readiness.serving = True
        started(port)

    async def drain() -> None:
        gateway.readiness.serving = False
        gateway.wakeups.stop()
        gateway.hub.close()
        await gateway.console.close()
        if gateway.operators_console is not None:
            gateway.operators_console.consoles.close()
        await gateway.hub.drain(drain_s, most_retry_ms=MOST_RETRY_MS)

    return Server(
        gateway.asgi,
        short=gateway.short,
        wheel=gateway.wheel,
        upgrades=gateway.door,
        address=(settings.host, settings.port),
        most=_room_for(settings.max_connections),
        drain_s=drain_s,
        cancel_s=stop_s(settings) * CANCEL_PART,
        started=listening,
        drain=drain,
        cut_off=gateway.hub.abort,
    )


def stop_s(settings: Settings) -> float:
    """How long a process that is told to stop may take."""
    return max(settings.drain_s, LEAST_STOP_S)


def _room_for(connections: int) -> int:
    """How many connections this process can have, of those that it may: each takes a file descriptor."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE + OTHER_FILES
    raised = 2 * wanted if most == resource.RLIM_INFINITY else most  # a transfer of bytes takes a file besides
    if files != resource.RLIM_INFINITY and files < raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
        files = raised
    if files == resource.RLIM_INFINITY or files >= wanted:
        return connections
    room = max(files - SPARE - OTHER_FILES, 1)
    log.warning("fewer connections than GATEWAY_MAX_CONNECTIONS: too few file descriptors", extra={"room": room})
    return room


# --- From settings to parts


def import_adapters(settings: Settings) -> None:
    """What is imported before there are many processes is in the memory once."""
    urls = (settings.state_url, settings.objects_url, settings.upload_events_url, settings.bus_url, settings.cache_url)
    for url in urls:
        for module in _ADAPTERS.get(scheme_of(url or ""), ()):
            with contextlib.suppress(ImportError):  # told by whoever needs it
                importlib.import_module(module)


async def _spread(bus: Bus, key: str, body: bytes) -> None:
    """Have a push that is shown here arrive wherever somebody listens for it."""
    await bus.tell(TOPIC_OF_PUSHES, key.encode() + b" " + body)


def _arrive(console: ConsoleSender, message: bytes) -> None:
    key, _, body = message.partition(b" ")
    console.arrive(key.decode(errors="replace"), body)


def _cached(documents: DocumentStore, url: str, metrics: Metrics, usage: Usage) -> DocumentStore:
    """The documents behind the cache at `url`. Only clients' are looked at often enough to be worth an entry."""
    cached = CachedDocuments(documents, open_cache(url, usage=usage), prefix=CLIENT_PREFIX)
    metrics.cache_hits.read = lambda: cached.hits
    metrics.cache_misses.read = lambda: cached.misses
    return cached


async def _events(settings: Settings, usage: Usage, stack: contextlib.AsyncExitStack) -> UploadEvents | None:
    url = settings.upload_events_url
    if url is None:
        return None
    return await stack.enter_async_context(open_upload_events(url, objects_url=settings.objects_url, usage=usage))


def _turn_s(settings: Settings) -> float:
    """How long a worker's turn to sweep lasts, unless it prolongs it."""
    turn_s = settings.sweep_s * TURN_ROUNDS
    return min(turn_s, LONE_TURN_S) if settings.bus_is_in_process else turn_s


def _policy(settings: Settings) -> Policy:
    return Policy(
        videos_per_pair=settings.videos_per_pair,
        video_ttl_ms=_ms(settings.video_ttl_s),
        ended_keep_ms=_ms(settings.ended_keep_s),
        viewed_keep_ms=_ms(settings.viewed_keep_s),
        upload_ttl_ms=_ms(settings.upload_ttl_s),
        ack_grace_ms=_ms(settings.ack_grace_s),
        remind_after_ms=tuple(_ms(after) for after in settings.remind_after_s),
        push_on_status="status" in settings.push_on,
    )


def _limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_video_bytes=settings.max_video_bytes,
        content_types=settings.content_types,
        download_ttl_ms=_ms(settings.download_ttl_s),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _keys(settings: Settings) -> KeySource:
    if settings.jwks_url is not None:
        return PublishedKeys(settings.jwks_url)
    if settings.jwt_public_key is not None:
        return FixedKey.from_pem(settings.jwt_public_key)
    return FixedKey.from_secret(settings.signing_secret() or "")


def _demo(settings: Settings, clock: Callable[[], float]) -> Demo | None:
    if not settings.shows_demo:
        return None
    return Demo(settings.signing_secret() or "", settings.jwt_audience, settings.jwt_issuer, clock)


def _served(objects: ObjectStore, service: Service, metrics: Metrics) -> Objects | None:
    """The address under which a store that this process serves is mounted; each upload is completed at once."""
    if not isinstance(objects, ServedObjectStore):
        return None

    async def stored(key: str) -> None:
        ref = VideoRef.parse(key)
        if ref is None:
            return
        try:
            await service.confirm(ref, by_sender=False)
        except GatewayError as error:
            # The app's own confirmation says the same again, and the sweep comes behind it.
            log.warning(
                "a stored upload could not be completed at once",
                extra={"video_id": ref.video_id, "error": error.detail},
            )

    return Objects(objects, stored, metrics)

"""The program's processes: one that serves, one that works, or many together, each until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

import uvloop

from gateway.api.short import ShortWay
from gateway.app import FINISH_PART, Gateway, import_adapters, open_gateway, running, server_of, stop_s
from gateway.config import Settings
from gateway.listening import listening_shares
from gateway.parsers import ConfigError, scheme_of
from gateway.server import NoUpgrades, Server
from gateway.siblings import Siblings
from gateway.supervisor import HUNG, Child, Pulse, Supervisor
from storage.aws.url import AWS_SCHEMES, AwsUrl
from storage.documents import StoreUnavailable
from storage.objects import ObjectsUnavailable
from storage.usage import Usage

if TYPE_CHECKING:
    from storage.aws.setup import Wanted

TELL_S = 1.0
"""How long the log of a process that hangs may take to take in that it ends."""

OPERATORS = 64
"""How many connections the pages of a worker take."""

WORKER = "worker"
"""What the process that wakes and sweeps is called; those that serve are called by numbers."""

GARBAGE = (50_000, 20, 50)
"""Objects that are left over before Python looks which of them refer only to each other; how often the older ones are
looked through, and all."""

_STOPPING = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _stopped_by_signals(
    stop: Callable[[int], None],
    last_resort: "LastResort",
    numbers: tuple[signal.Signals, ...] = _STOPPING,
    *,
    to_the_end: bool = False,
) -> Iterator[None]:
    """`stop` is called with each of these signals. `to_the_end`: whoever sends one once more afterwards is not heard:
    the process is about to end by itself, and is not to be killed in its last steps."""

    def stopped(number: int) -> None:
        last_resort.arm()
        stop(number)

    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stopped, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            if to_the_end:
                signal.signal(number, signal.SIG_IGN)


class LastResort:
    """Ends a process that was told to stop and does not come to its end, because something that it uses hangs.

    Whatever was answered is durable by then; what is cut off finds a gateway that starts as after a crash. A thread of
    its own: the event loop may be what hangs.
    """

    def __init__(self, after_s: float) -> None:
        self._timer = threading.Timer(after_s, self._end)
        self._timer.daemon = True

    def arm(self) -> None:
        """From now on the time counts."""
        with contextlib.suppress(RuntimeError):  # it counts already
            self._timer.start()

    def disarm(self) -> None:
        """The process comes to its end by itself."""
        self._timer.cancel()

    @staticmethod
    def _end() -> None:
        # What hangs may be whoever takes the log in, so that is not waited for either.
        telling = threading.Thread(
            target=log.critical, args=("something hangs: the process ends without closing it",), daemon=True
        )
        telling.start()
        telling.join(TELL_S)
        os._exit(HUNG)


def serve(settings: Settings, *, worker: bool) -> int:
    """Serve until told to stop; the program's exit code. Raises ConfigError, and OSError where it cannot listen."""
    if settings.workers > 1:
        return _serve_together(settings, worker=worker)
    return _run(settings, lambda last_resort: _serve(settings, last_resort, worker=worker))


def _run(settings: Settings, main: Callable[[LastResort], Coroutine[None, None, None]]) -> int:
    last_resort = LastResort(stop_s(settings))
    _collect_rarely()
    uvloop.run(main(last_resort))
    last_resort.disarm()
    return 0


def _collect_rarely() -> None:
    """Look for garbage that refers to itself only once there could be much of it.

    Python does after every 700 objects that are left over from any work, which calls that wait for a commit are too:
    that took a fifth of a status change. What is imported by now is not looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


async def _serve(settings: Settings, last_resort: LastResort, *, worker: bool) -> None:
    role = "serve" if worker else "serve-0"  # like one of many: somebody else wakes devices
    async with open_gateway(settings, worker=worker, role=role) as gateway, running(gateway, settings, worker=worker):
        server = server_of(gateway, settings, lambda port: _greet(settings, port, worker=worker))
        # A second SIGINT ends it at once.
        with _stopped_by_signals(lambda number: server.handle_exit(number, None), last_resort):
            await server.run_here()


def work(settings: Settings) -> int:
    """Send wakeups and sweep until told to stop; the program's exit code. Raises OSError where it cannot listen."""
    return _run(settings, lambda last_resort: _work(settings, last_resort))


async def _work(settings: Settings, last_resort: LastResort) -> None:
    stopped = asyncio.Event()
    if settings.bus_is_in_process:
        log.warning(
            "the bus reaches only its own process: devices are woken when they are due, not at once, and open sockets "
            "are told minutes later; `gateway serve` has the worker inside",
            extra={"bus": settings.bus_url},
        )
    with _stopped_by_signals(lambda _: stopped.set(), last_resort):
        async with (
            open_gateway(settings, role=WORKER) as gateway,
            _pages(gateway, settings),
            running(gateway, settings, worker=True),
        ):
            gateway.readiness.serving = True
            log.info("working")
            await stopped.wait()
            gateway.readiness.serving = False


@asynccontextmanager
async def _pages(gateway: Gateway, settings: Settings) -> AsyncIterator[None]:
    """Answer the operator, where a port is set for that. Raises OSError where it cannot listen there."""
    if settings.worker_port is None:
        yield
        return
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = _pages_server(gateway, settings, settings.worker_port, listening.set_result)
    serving = asyncio.create_task(server.run_here())
    try:
        await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        address = f"http://{_in_url(settings.host)}:{listening.result()}"
        log.info("answering the operator", extra={"address": address})
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([serving])


def _pages_server(gateway: Gateway, settings: Settings, port: int, started: Callable[[int], None]) -> Server:
    async def drain() -> None:
        """Nothing is held here."""

    return Server(
        gateway.pages,
        wheel=gateway.wheel,
        upgrades=NoUpgrades(),
        address=(settings.host, port),
        short=ShortWay([]),
        most=OPERATORS,
        drain_s=stop_s(settings) * FINISH_PART,
        cancel_s=stop_s(settings) * FINISH_PART,
        started=started,
        drain=drain,
        cut_off=lambda: None,
    )


# --- Many processes


@dataclass(frozen=True, slots=True)
class Place:
    """A process's place among those of one program: its line to their parent, and the others."""

    name: str
    pulse: Pulse
    siblings: Siblings


def _serve_together(settings: Settings, *, worker: bool) -> int:
    """Serve with many processes, the worker in one of its own, until told to stop; the program's exit code."""
    import_adapters(settings)
    shares = listening_shares(settings.host, settings.port, shares=settings.workers)
    port = shares[0][0].getsockname()[1]
    sockets = [each for share in shares for each in share]
    names = [*map(str, range(settings.workers)), *([WORKER] if worker else [])]

    def close() -> None:
        for each in sockets:
            each.close()

    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:

        def child(name: str) -> Child:
            def run(pulse: Pulse) -> int:
                share = [] if name == WORKER else shares[int(name)]
                for each in sockets:
                    if each not in share:
                        each.close()  # else it would take connections in that nobody here accepts
                place = Place(name, pulse, Siblings(Path(folder), name, names))
                return _run_in(place, settings, share)

            return Child(name, run)

        return Supervisor(
            [child(name) for name in names],
            serving=lambda: _greet(settings, port, worker=worker),
            stopping=close,
            stop_s=stop_s(settings),
        ).run()


def _run_in(place: Place, settings: Settings, share: list[socket]) -> int:
    """One of the processes: it serves its share of the port, or is the worker. Raises ConfigError."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: _named(record, place.name))
    try:
        if place.name == WORKER:
            return _run(settings, lambda last_resort: _work_in(place, settings, last_resort))
        return _run(settings, lambda last_resort: _serve_in(place, settings, last_resort, share))
    except (StoreUnavailable, ObjectsUnavailable) as error:
        raise ConfigError([f"{error}."]) from error
    finally:
        if not place.pulse.beat():
            place.siblings.tidy_up()


def _named(record: logging.LogRecord, name: str) -> bool:
    record.child = name
    return True


async def _serve_in(place: Place, settings: Settings, last_resort: LastResort, share: list[socket]) -> None:
    stopped = asyncio.Event()
    # From first to last: systemd tells every process to stop, and then the parent tells it again.
    with _stopped_by_signals(lambda _: stopped.set(), last_resort, (signal.SIGTERM,), to_the_end=True):
        async with (
            place.pulse.beating(),
            open_gateway(settings, worker=False, siblings=place.siblings, role=f"serve-{place.name}") as gateway,
            running(gateway, settings, worker=False),
            place.siblings.listening(gateway.metrics.exposition),
        ):
            server = server_of(gateway, settings, lambda _: place.pulse.serving())
            stopping = asyncio.create_task(_stop(server, stopped))
            try:
                await server.run_here(share)
            finally:
                stopping.cancel()


async def _stop(server: Server, stopped: asyncio.Event) -> None:
    await stopped.wait()
    server.should_exit = True


async def _work_in(place: Place, settings: Settings, last_resort: LastResort) -> None:
    stopped = asyncio.Event()
    with _stopped_by_signals(lambda _: stopped.set(), last_resort, (signal.SIGTERM,), to_the_end=True):
        async with (
            place.pulse.beating(),
            open_gateway(settings, role=WORKER) as gateway,
            running(gateway, settings, worker=True),
            place.siblings.listening(gateway.metrics.exposition),
        ):
            place.pulse.serving()
            await stopped.wait()


# --- What is said, and what is done once


def _greet(settings: Settings, port: int, *, worker: bool) -> None:
    """Say where it is, and what to try next."""
    address = settings.public_url or f"http://{_in_url(settings.host)}:{port}"
    log.info("serving", extra={"address": address, "processes": settings.workers, "worker": worker})
    if sys.stdout.isatty():
        sys.stdout.write(_NEXT.format(address=address, pages="".join(_worth_a_look(settings, address))))
        sys.stdout.flush()


_NEXT = """
  {address} is up.
{pages}
  Try in another terminal:

    scripts/tour                        two phones exchange a video
    .venv/bin/gateway token alice       a token for the client alice
    curl {address}/openapi.json    every call
    curl {address}/asyncapi.json   what travels over a socket
    .venv/bin/gateway config            every setting

"""


def _worth_a_look(settings: Settings, address: str) -> Iterator[str]:
    """A line for each page that is worth a look."""
    if settings.shows_demo:
        yield f"  Open {address}/ in a browser: two phones exchange videos.\n"
    if settings.operator_token is not None:
        yield f"  Open {address}/console to see how it is doing.\n"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def sweep(settings: Settings, *, full: bool, restart: bool = False) -> str:
    """One round of the sweep; what it found, and what the stores say that it cost."""

    async def once() -> str:
        async with open_gateway(settings) as gateway:
            found = await gateway.sweep.round(full=full, restart=restart)
            return "\n".join([str(found), *_cost(gateway.usage)])

    return uvloop.run(once())


def _cost(usage: Usage) -> Iterator[str]:
    """A line for each store that counts: requests by call, and the units that it charges."""
    for store in sorted({store for store, _ in usage.requests}):
        requests = [f"{count} {call}" for (of, call), count in sorted(usage.requests.items()) if of == store]
        units: defaultdict[str, float] = defaultdict(float)
        for (of, _, kind), count in usage.units.items():
            if of == store:
                units[kind] += count
        yield f"{store}: {', '.join([*requests, *(f'{units[kind]:g} {kind} units' for kind in sorted(units))])}"


def setup(settings: Settings) -> Iterator[str]:
    """Create what is missing, put right what drifted, and check that it can be used; a line for each, as it is done.

    Raises ConfigError where Amazon, or what is there, does not let it.
    """

    async def once() -> None:
        async with open_gateway(settings) as gateway:
            await gateway.service.changes.documents.load(["setup"])  # a store elsewhere is connected only now

    policy = yield from _set_up_at_amazon(settings, dry=False)
    uvloop.run(once())
    yield f"documents: {settings.shown('STATE_URL')}"
    yield f"objects: {settings.shown('OBJECTS_URL')}"
    yield from policy


def plan(settings: Settings) -> Iterator[str]:
    """What `setup` would do elsewhere than on this machine; nothing is done. Raises ConfigError."""
    yield from (yield from _set_up_at_amazon(settings, dry=True))


def rights(settings: Settings) -> str:
    """The IAM policy that the gateway needs: JSON. Needs no connection. Raises ConfigError where it needs none."""
    wanted = _at_amazon(settings)
    if wanted is None:
        raise ConfigError(["Nothing is kept at Amazon's, so there are no rights to give."])
    from storage.aws import setup as amazon  # noqa: PLC0415 - botocore is there only for those who need it

    return amazon.policy(wanted)


def _set_up_at_amazon(settings: Settings, *, dry: bool) -> Generator[str, None, list[str]]:
    """Do, or say, what is to be done there; what the gateway needs as rights, in the end."""
    wanted = _at_amazon(settings)
    if wanted is None:
        return []
    from storage.aws import setup as amazon  # noqa: PLC0415

    try:
        work = amazon.Setup(wanted)
        yield from work.run(dry=dry)
        return ["", "The gateway needs these rights, and no others:", work.policy()]
    except amazon.NotSetUp as error:
        raise ConfigError([f"{error}."]) from error


def _at_amazon(settings: Settings) -> "Wanted | None":
    """What is to be at Amazon's, or None where nothing is. Raises ConfigError where botocore is missing."""
    urls = [settings.state_url, settings.objects_url, settings.upload_events_url]
    documents, objects, events = (AwsUrl.parse(url) if url and scheme_of(url) in AWS_SCHEMES else None for url in urls)
    if not (documents or objects or events):
        return None
    try:
        from storage.aws.setup import Wanted  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(["Amazon's services need the package botocore: pip install gateway[aws]."]) from error
    return Wanted(documents, objects, events, settings.cors_origins, _most_days(settings))


def _most_days(settings: Settings) -> int:
    """After so many days the last sweep that could find an object to be of use has passed, and a day more."""
    life_s = settings.upload_ttl_s + settings.video_ttl_s + max(settings.ended_keep_s, settings.viewed_keep_s)
    return math.ceil((life_s + settings.full_sweep_s) / 86_400) + 1

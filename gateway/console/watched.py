"""What this process tells of itself, while somebody looks, in whichever process they do."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain, islice

import orjson

from gateway.bus.bus import Bus
from gateway.console.hour import STEP_MS, Hour
from gateway.console.messages import ASKED, TOLD, Ask, Tell, message, split
from gateway.console.series import SERIES, Meter
from gateway.journal import Journal
from gateway.live.hub import Hub
from gateway.metrics import Metrics
from gateway.readings import Kind, kind_of
from gateway.transit.state import ClientId

LIVE_MS = 1_000
"""How often a sample is told."""

FACTS_S = 5.0
"""How often backends are probed, and prices counted: some stores take money for an answer."""

LOOKED_S = 10.0
"""So long after it was last said that somebody looks, somebody does."""

MOST_UNTOLD = 64
"""Messages that wait for the bus. More are not told: a console asks again."""

MOST_EVENTS = 200
"""What is told of a client's last events."""

Probes = Callable[[], Awaitable[Mapping[str, float | None]]]
"""How long (ms) each backend takes to answer; None where it does not."""

log = logging.getLogger(__name__)


class Watched:
    """One process, called `name`, as consoles see it. `clock`: seconds since the epoch; `monotonic`: of a clock that
    never goes back.

    While nobody looks it takes a sample every ten seconds, and tells nothing.
    """

    def __init__(
        self,
        name: str,
        *,
        bus: Bus,
        metrics: Metrics,
        hub: Hub,
        journal: Journal,
        probes: Probes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._bus = bus
        self._metrics = metrics
        self._meter = Meter(metrics)
        self._hour = Hour()
        self._hub = hub
        self._journal = journal
        self._probes = probes
        self._clock = clock
        self._monotonic = monotonic
        self._started_s = clock()
        self._sampled_at = 0
        self._looked = asyncio.Event()
        self._looked_until_s = 0.0
        self._untold: asyncio.Queue[bytes] = asyncio.Queue(MOST_UNTOLD)

    async def run(self) -> None:
        """Take samples, and tell what is asked, until cancelled."""
        await self._bus.hear(ASKED, self._asked)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sample())
                group.create_task(self._find_facts())
                group.create_task(self._tell_all())
        finally:
            self._bus.hear_no_more(ASKED, self._asked)

    # --- What consoles ask

    def _asked(self, text: bytes) -> None:
        word, members = split(text)
        match word:
            case Ask.WATCH:
                self._be_watched(anew=False)
            case Ask.HOUR:
                self._be_watched(anew=True)
            case Ask.CLIENT:
                self._tell_of_client(members)

    def _be_watched(self, *, anew: bool) -> None:
        self._looked_until_s = self._monotonic() + LOOKED_S
        if anew or not self._looked.is_set():
            self._tell(Tell.PROCESS, self._self())
        self._looked.set()

    def _tell_of_client(self, members: bytes) -> None:
        try:
            asked = orjson.loads(members)
            ask, client_id = asked["ask"], ClientId(asked["client_id"])
        except (ValueError, TypeError, LookupError):
            log.warning("a console asks what cannot be read")
            return
        self._tell(Tell.CLIENT, {"ask": ask, **self._known_of(client_id)})

    # --- What is told

    def _tell(self, word: Tell, members: dict[str, object]) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._untold.put_nowait(message(word, {"process": self.name, **members}))

    async def _tell_all(self) -> None:
        while True:
            await self._bus.tell(TOLD, await self._untold.get())

    def _self(self) -> dict[str, object]:
        return {
            "started_at": int(self._started_s * 1000),
            "step_ms": STEP_MS,
            "series": SERIES,
            "hour": self._hour.rows(),
        }

    def _known_of(self, client_id: ClientId) -> dict[str, object]:
        connected = self._hub.connected(client_id)
        return {
            "remembers_since": self._journal.since,
            "sockets": [
                {"device_id": one.device_id, "opened_at": one.since, "version": one.version, "acked": one.acked}
                for one in connected
                if one.by_socket
            ],
            "polls": [
                {"device_id": one.device_id, "since": one.since, "version": one.version}
                for one in connected
                if not one.by_socket
            ],
            "events": [
                {
                    "at": note.at,
                    "process": self.name,
                    "event": note.event,
                    "device_id": note.device_id,
                    **dict(zip(note.event.members, note.what, strict=True)),
                }
                for note in islice(self._journal.of(client_id), MOST_EVENTS)
            ],
        }

    # --- Samples

    async def _sample(self) -> None:
        while True:
            at = await self._next()
            if at is None:
                continue
            values = self._meter.read()
            self._hour.add(at, values)
            if self._looked.is_set():
                self._tell(Tell.SAMPLE, {"at": at, "values": values})
                if self._monotonic() > self._looked_until_s:
                    self._looked.clear()

    async def _next(self) -> int | None:
        """Wait for when the next sample is to be taken: that time in ms, a multiple of the step, so that processes
        take theirs together. None: somebody has begun to look, so it is sooner."""
        looked = self._looked.is_set()
        step = LIVE_MS if looked else STEP_MS
        now_ms = self._clock() * 1000
        at = int(now_ms // step + 1) * step
        if at <= self._sampled_at < at + step:
            at += step  # the timer was early
        if looked:
            await asyncio.sleep((at - now_ms) / 1000)
        elif await self._begins_within((at - now_ms) / 1000):
            return None
        self._sampled_at = at
        return at

    async def _begins_within(self, seconds: float) -> bool:
        """Whether somebody begins to look within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._looked.wait()
        return False

    # --- Facts

    async def _find_facts(self) -> None:
        while True:
            await self._looked.wait()
            self._tell(
                Tell.FACTS,
                {
                    "at_s": self._clock(),
                    "started_s": self._started_s,
                    "backends": dict(await self._probes()),
                    "counts": [[*kind, count] for kind, count in self._counts().items()],
                },
            )
            await asyncio.sleep(FACTS_S)

    def _counts(self) -> dict[Kind, float]:
        """What has a price, or what prices are reckoned by."""
        metrics = self._metrics
        counted = (metrics.store_requests, metrics.store_units, metrics.videos, metrics.video_bytes, metrics.calls)
        counts: dict[Kind, float] = {}
        for family in chain.from_iterable(metric.collect() for metric in counted):
            for sample in family.samples:
                if (kind := kind_of(sample.name, sample.labels)) is not None:
                    counts[kind] = counts.get(kind, 0) + sample.value
        return counts

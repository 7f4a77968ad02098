"""Simulated backends: one shared state behind a view for each process.

    documents = DocumentsState(scheduler, seed, witness, clock=…)    documents.view(loop) -> SimulatedDocuments
    objects = ObjectsState(scheduler, seed, witness, clock=…)        objects.view(loop) -> SimulatedObjects
    bus = BusState(scheduler, seed, witness)                         bus.view(loop) -> SimulatedBus

Push providers are in `providers`, the cache is in `cache`.

Trouble comes in windows, which the world opens; `machine`: the name of the one process (its loop's) that it is about:

    state.troubles.open(Kind.THROTTLE, for_s, probability=0.5, machine=None)
    state.troubles.end()                         all of them
    state.trap(loop, writes, spring)             calls `spring` between two writes of that process: a crash there

    documents, objects   THROTTLE, LOST_ANSWER, SLOW, CUT (they do not reach it), documents also STALE (the due index)
    bus                  LOSSY; and bus.freeze(for_s), bus.flush(), bus.cut(loop, for_s)

Uploads: `objects.put(url, data) -> int` stores at once and answers a status; `objects.get(url)` likewise.
`documents.inner`, `objects.inner` are the stores in memory: `at_once(documents.inner.load([key]))`.

A call leaves its process, takes effect part by part at the backend, and its answer comes back: late where the process
is frozen, never where it is dead. What has left takes effect whatever becomes of the caller, 30 s later at most.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from zlib import crc32

from gateway.bus.bus import Dismissal, Kick, Listener, Publication
from gateway.transit.state import ClientId
from storage.documents import Conflict, Document, DocumentStore, Due, ScanPage, StoreUnavailable, check_documents
from storage.memory import MemoryDocuments, MemoryObjects
from storage.objects import (
    SERVED_PATH,
    AlreadyStored,
    BytesRefused,
    ObjectInfo,
    ObjectsUnavailable,
    SignatureRefused,
    SignedDownload,
    SignedUpload,
)
from tests.simulation.loops import MachineLoop, Scheduler
from tests.simulation.witness import Witness

T = TypeVar("T")

LEAVES_S = 0.0002
"""How long a call takes to leave its process: one that dies before takes it along."""

LATEST_WRITE_S = 30.0
"""How long a write may be on its way after its caller has given up."""

LAG_S = 1.0
"""How far a stale due index lags behind."""

PUBLISH_S = 2.0
SUBSCRIBE_S = 3.0
"""How long a process waits for the bus."""

PAGE = 16
"""Documents in a page of a scan."""


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("it waits")


class Kind(StrEnum):
    """A kind of trouble."""

    THROTTLE = "throttle"
    """It says no, and has done nothing."""
    LOST_ANSWER = "lost answer"
    """It does all or part of it, and the process hears that it could not."""
    SLOW = "slow"
    """It takes seconds, more of them than the caller waits."""
    CUT = "cut"
    """The process does not reach it."""
    STALE = "stale"
    LOSSY = "lossy"
    DOWN = "down"
    """A provider takes nobody's push now."""
    HANGING = "hanging"
    """A provider never answers; it may have taken the push all the same."""
    REFUSING = "refusing"
    """A provider takes this push another time."""
    REJECTING = "rejecting"
    """A provider takes this push never."""
    DISOWNING = "disowning"
    """A provider says of every token that it is dead: a wrong key, or a wrong environment."""
    LOSING = "losing"
    REPEATING = "repeating"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A window of trouble."""

    kind: Kind
    until_s: float
    probability: float
    machine: str | None


class Troubles:
    """The windows that are open for one backend."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self._open: list[Trouble] = []

    def open(self, kind: Kind, for_s: float, *, probability: float = 1.0, machine: str | None = None) -> None:
        """Open a window of trouble, for all processes or for one."""
        self._open.append(Trouble(kind, self._scheduler.now_s + for_s, probability, machine))

    def end(self) -> None:
        """Close all windows."""
        self._open.clear()

    def __bool__(self) -> bool:
        return bool(self._open)

    def strike(self, kind: Kind, machine: str) -> bool:
        """Whether this call of that process meets trouble of that kind."""
        if not self._open:
            return False
        now_s = self._scheduler.now_s
        self._open = [trouble for trouble in self._open if trouble.until_s > now_s]
        return any(
            self._rng.random() < trouble.probability
            for trouble in self._open
            if trouble.kind is kind and trouble.machine in {None, machine}
        )


class Backend:
    """What all of them have: a stream of random numbers, latencies, troubles."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness) -> None:
        self.scheduler = scheduler
        self.rng = random.Random(seed)
        self.witness = witness
        self.troubles = Troubles(scheduler, self.rng)
        self.traps: dict[MachineLoop, list[Callable[[], None] | None]] = {}

    def trap(self, loop: MachineLoop, writes: int, spring: Callable[[], None]) -> None:
        """Call `spring` right before the write that comes after so many of that process; what the same call would have
        written after that is not written."""
        self.traps[loop] = [*[None] * writes, spring]

    def sprung(self, loop: MachineLoop) -> bool:
        """Whether a trap closes on the next write of this process."""
        waiting = self.traps.get(loop)
        spring = waiting.pop(0) if waiting else None
        if spring is None:
            return False
        del self.traps[loop]
        spring()
        return True

    def latency_s(self) -> float:
        """Mostly half a millisecond to fifteen, now and then a second."""
        draw = self.rng.random()
        if draw > 0.997:
            return 0.05 + 1.5 * self.rng.random()
        return 0.0005 + 0.015 * draw * draw * draw


class _Operation:
    """A call on its way to a store: its parts take effect one after the other, then the caller goes on."""

    __slots__ = ("backend", "failure", "future", "left_s", "loop", "lost", "next", "parts", "result", "slow", "what")

    def __init__(
        self,
        backend: Backend,
        loop: MachineLoop,
        what: str,
        parts: Sequence[Callable[[], None]],
        result: object,
        failure: type[Exception],
    ) -> None:
        self.backend = backend
        self.loop = loop
        self.what = what
        self.parts = parts
        self.next = 0
        self.lost: int | None = None
        self.slow = False
        self.result = result
        self.failure = failure
        self.left_s = backend.scheduler.now_s + LEAVES_S
        self.future: asyncio.Future[Any] = loop.create_future()

    async def run(self) -> Any:
        backend = self.backend
        self.slow = bool(backend.troubles) and backend.troubles.strike(Kind.SLOW, self.loop.name)
        latency_s = backend.rng.uniform(0.1, 15) if self.slow else backend.latency_s()
        if self.slow:
            self.backend.witness.say(self.loop.name, f"SLOW: {self.what} takes {latency_s:.1f} s")
        backend.scheduler.after(max(latency_s, LEAVES_S), self.arrive)
        return await self.future

    def arrive(self) -> None:
        if self.loop.died_s < self.left_s:
            return
        backend, name = self.backend, self.loop.name
        if backend.troubles:
            if backend.troubles.strike(Kind.CUT, name):
                backend.witness.say(name, f"CUT OFF: {self.what}")
                backend.scheduler.after(backend.rng.uniform(0.5, 12), self.fail)
                return
            if backend.troubles.strike(Kind.THROTTLE, name):
                backend.witness.say(name, f"THROTTLED: {self.what}")
                self.fail()
                return
            if backend.troubles.strike(Kind.LOST_ANSWER, name):
                self.lost = backend.rng.randint(0, len(self.parts))
                backend.witness.say(name, f"ANSWER LOST: {self.what}, {self.lost} parts done")
        self.perform()

    def perform(self) -> None:
        """Let the next part happen, and the others after it."""
        while self.next < len(self.parts) and self.next != self.lost:
            part = self.parts[self.next]
            self.next += 1
            if self.backend.traps and self.what == "commit" and self.backend.sprung(self.loop):
                return
            try:
                part()
            except Conflict as conflict:
                self.end(self.failure("simulated") if self.lost is not None else conflict)
                return
            if self.next < len(self.parts) and self.backend.rng.random() < 0.5:
                self.backend.scheduler.after(self.pause_s() * self.backend.rng.random(), self.perform)
                return
        if self.lost is not None:
            self.fail()
        else:
            self.end(None)

    def pause_s(self) -> float:
        """The longest time between two parts: whatever has left takes effect within `LATEST_WRITE_S`."""
        if not self.slow:
            return 0.004
        return max(0.0, min(4.0, self.left_s + LATEST_WRITE_S - self.backend.scheduler.now_s))

    def fail(self) -> None:
        self.end(self.failure("simulated"))

    def end(self, error: Exception | None) -> None:
        self.backend.scheduler.after(self.backend.latency_s(), lambda: self.loop.post(self.settle, error))

    def settle(self, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(error)


# --- Documents


class DocumentsState(Backend):
    """The documents that all processes share."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness, *, clock: Callable[[], float]) -> None:
        super().__init__(scheduler, seed, witness)
        self.inner = MemoryDocuments(clock=clock)
        self._moved: deque[tuple[float, str, int | None]] = deque()

    def view(self, loop: MachineLoop) -> "SimulatedDocuments":
        """The store as one process sees it."""
        return SimulatedDocuments(self, loop)

    def write(self, machine: str, document: Document) -> Document:
        """Replace one document. Raises Conflict."""
        [before] = at_once(self.inner.load([document.key]))
        [after] = at_once(self.inner.commit([document]))
        if before.due != after.due:
            self._moved.append((self.scheduler.now_s, document.key, before.due))
        self.witness.wrote(machine, before, after)
        return after

    def due(self, machine: str, before: int, limit: int) -> list[Due]:
        """What is due; in a window of that trouble what was a moment ago, or twice."""
        while self._moved and self._moved[0][0] < self.scheduler.now_s - LAG_S:
            self._moved.popleft()
        found = at_once(self.inner.due(before, limit))
        if not self.troubles or not self.troubles.strike(Kind.STALE, machine):
            return found
        lag_s = LAG_S * self.rng.random()
        times = {entry.key: entry.due for entry in at_once(self.inner.due(1 << 53, 1 << 20))}
        for moved_s, key, due in reversed(self._moved):
            if moved_s >= self.scheduler.now_s - lag_s:
                times.pop(key, None)
                if due is not None:
                    times[key] = due
        stale = [Due(key, due) for due, key in sorted((due, key) for key, due in times.items()) if due <= before]
        if stale and self.rng.random() < 0.3:
            stale.append(self.rng.choice(stale))
        return stale[:limit]


class SimulatedDocuments(DocumentStore):
    """A `DocumentStore` over memory: each document of a call is read or written by itself, at a moment of its own."""

    def __init__(self, state: DocumentsState, loop: MachineLoop) -> None:
        self._state = state
        self._loop = loop

    async def load(self, keys: Sequence[str]) -> list[Document]:
        loaded: list[Document] = []
        inner = self._state.inner

        def part(key: str) -> Callable[[], None]:
            return lambda: loaded.extend(at_once(inner.load([key])))

        await self._call("load", [part(key) for key in keys], loaded)
        return loaded

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        written: list[Document] = []
        machine = self._loop.name

        def part(document: Document) -> Callable[[], None]:
            def write() -> None:
                try:
                    written.append(self._state.write(machine, document))
                except Conflict as conflict:
                    raise Conflict(conflict.key, [*written]) from None

            return write

        if documents:
            await self._call("commit", [part(document) for document in documents], written)
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        found: list[Due] = []
        name = self._loop.name
        await self._call("due", [lambda: found.extend(self._state.due(name, before, limit))], found)
        return found

    async def scan(self, *, cursor: str | None = None, limit: int = 256, part: int = 0, parts: int = 1) -> ScanPage:
        """Each part has the documents whose keys' checksums say so, as in a store whose parts are parts."""
        pages: list[ScanPage] = []
        inner = self._state.inner
        few = min(limit, PAGE)
        await self._call("scan", [lambda: pages.append(at_once(inner.scan(cursor=cursor, limit=few)))], pages)
        [page] = pages
        mine = [document for document in page.documents if crc32(document.key.encode()) % parts == part]
        return ScanPage(mine, page.cursor)

    async def close(self) -> None:
        return

    async def _call(self, what: str, parts: Sequence[Callable[[], None]], result: object) -> None:
        await _Operation(self._state, self._loop, what, parts, result, StoreUnavailable).run()


# --- Objects


class ObjectsState(Backend):
    """The bytes that phones and processes share."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness, *, clock: Callable[[], float]) -> None:
        super().__init__(scheduler, seed, witness)
        self.inner = MemoryObjects(clock=clock)

    def view(self, loop: MachineLoop) -> "SimulatedObjects":
        """The store as one process sees it."""
        return SimulatedObjects(self, loop)

    def put(self, url: str, data: bytes) -> int:
        """What a PUT to a signed URL is answered: 200, 403 (signature), 412 (stored already), 400, 503."""
        key, query = parsed(url)
        if self.troubles and self.troubles.strike(Kind.THROTTLE, "phones"):
            return 503
        try:
            grant = self.inner.authorize_upload(key, query)
            at_once(self.inner.receive(grant, _chunks(data)))
        except SignatureRefused:
            return 403
        except AlreadyStored:
            return 412
        except BytesRefused:
            return 400
        self.witness.object_stored(key)
        if self.troubles and self.troubles.strike(Kind.LOST_ANSWER, "phones"):
            return 503
        return 200

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and bytes of a download: 200, 403 (signature), 404."""
        key, query = parsed(url)
        if self.troubles and self.troubles.strike(Kind.THROTTLE, "phones"):
            return 503, b""
        try:
            self.inner.authorize_download(key, query, method="GET")
        except SignatureRefused:
            return 403, b""
        stored = self.inner._stored.get(key)
        return (200, stored[1]) if stored else (404, b"")

    def has(self, key: str) -> bool:
        """Whether bytes are stored under that key."""
        return key in self.inner._stored

    def stored_keys(self) -> list[str]:
        """All keys that are stored."""
        return sorted(self.inner._stored)

    def delete(self, key: str) -> None:
        """Delete one object."""
        there = self.has(key)
        at_once(self.inner.delete([key]))
        if there:
            self.witness.object_deleted(key)


def parsed(url: str) -> tuple[str, dict[str, str]]:
    """The key and the query of a signed URL."""
    parts = urlsplit(url)
    return unquote(parts.path.partition(SERVED_PATH)[2]), dict(parse_qsl(parts.query))


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


class SimulatedObjects:
    """An `ObjectStore` over memory."""

    def __init__(self, state: ObjectsState, loop: MachineLoop) -> None:
        self._state = state
        self._loop = loop

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        return await self._state.inner.sign_upload(
            key, size=size, content_type=content_type, sha256=sha256, expires_at=expires_at
        )

    async def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        return await self._state.inner.sign_download(key, expires_at=expires_at)

    async def head(self, key: str) -> ObjectInfo | None:
        found: list[ObjectInfo | None] = []
        inner = self._state.inner
        await self._call("head", [lambda: found.append(at_once(inner.head(key)))])
        return found[0]

    async def delete(self, keys: Sequence[str]) -> None:
        def part(key: str) -> Callable[[], None]:
            return lambda: self._state.delete(key)

        await self._call("delete", [part(key) for key in keys])

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        found: list[str] = []

        def part() -> None:
            found.extend(key for key in self._state.stored_keys() if key.startswith(prefix) and key > after)

        if self._state.troubles or self._state.inner._stored:  # to ask for nothing costs steps, and shows nothing
            await self._call("list", [part])
        for key in found:
            yield key

    async def close(self) -> None:
        return

    async def _call(self, what: str, parts: Sequence[Callable[[], None]]) -> None:
        await _Operation(self._state, self._loop, what, parts, None, ObjectsUnavailable).run()


# --- The bus


class BusState(Backend):
    """A bus as Redis would be one: subscriptions at the server, one connection of each process, first in first out."""

    def __init__(self, scheduler: Scheduler, seed: int, witness: Witness) -> None:
        super().__init__(scheduler, seed, witness)
        self.views: list[SimulatedBus] = []
        self.frozen_until_s = 0.0
        self._subscribed: dict[ClientId, dict[SimulatedBus, None]] = {}

    def view(self, loop: MachineLoop) -> "SimulatedBus":
        """The bus as one process sees it."""
        view = SimulatedBus(self, loop)
        self.views.append(view)
        return view

    # --- Trouble

    def freeze(self, for_s: float) -> None:
        """The server does nothing for so long, and then everything at once."""
        self.witness.say("bus", f"FROZEN for {for_s:.1f} s")
        self.frozen_until_s = max(self.frozen_until_s, self.scheduler.now_s + for_s)

    def flush(self) -> None:
        """The server begins anew: whatever was on its way is lost, and whoever subscribed has to do it again."""
        self.witness.say("bus", "FLUSHED")
        self._subscribed.clear()
        for view in self._alive():
            view.disconnect(self.rng.uniform(0.1, 3))

    def cut(self, loop: MachineLoop, for_s: float) -> None:
        """One process does not reach the server for so long. The server does not notice."""
        self.witness.say(loop.name, f"CUT OFF from the bus for {for_s:.1f} s")
        for view in self.views:
            if view.loop is loop:
                view.disconnect(for_s)

    def calm(self) -> None:
        """No more trouble: what is frozen thaws, who is cut off comes back."""
        self.troubles.end()
        self.frozen_until_s = min(self.frozen_until_s, self.scheduler.now_s)
        for view in self._alive():
            view.connect_now()

    # --- What the server does

    def serve(self, work: Callable[[], None], not_before_s: float = 0.0) -> float:
        """Have the server do something once it is there, which is when."""
        when_s = max(self.scheduler.now_s + self.latency_s(), not_before_s, self.frozen_until_s)
        self.scheduler.at(when_s, lambda: self._thawed(work))
        return when_s

    def _thawed(self, work: Callable[[], None]) -> None:
        """Do it now, or once the server thaws."""
        if self.frozen_until_s > self.scheduler.now_s:
            self.scheduler.at(self.frozen_until_s, lambda: self._thawed(work))
        else:
            work()

    def subscribe(self, view: "SimulatedBus", client_id: ClientId, ticket: int) -> None:
        self._subscribed.setdefault(client_id, {})[view] = None
        view.bring(lambda: view.confirmed(client_id, ticket))

    def unsubscribe(self, view: "SimulatedBus", client_id: ClientId) -> None:
        views = self._subscribed.get(client_id)
        if views is not None:
            views.pop(view, None)
            if not views:
                del self._subscribed[client_id]

    def forget(self, view: "SimulatedBus") -> None:
        """A process has connected anew: the server finds that its connection before is no more."""
        for client_id in [key for key, views in self._subscribed.items() if view in views]:
            self.unsubscribe(view, client_id)

    def fan_out(self, client_id: ClientId, bring: Callable[["SimulatedBus"], None]) -> int:
        """Bring something to whoever subscribed; how many they are."""
        views = self._alive(self._subscribed.get(client_id, ()))
        for view in views:
            if not self.troubles or not self.troubles.strike(Kind.LOSSY, view.loop.name):
                view.bring(lambda view=view: bring(view))  # type: ignore[misc]
        return len(views)

    def kick(self, kick: Kick) -> None:
        """Reach one worker, or all."""
        workers = [view for view in self._alive() if view.kicked]
        if workers and self.rng.random() < 0.5:
            workers = [self.rng.choice(workers)]
        for view in workers:
            if not self.troubles or not self.troubles.strike(Kind.LOSSY, view.loop.name):
                view.bring(lambda view=view: view.deliver_kick(kick))  # type: ignore[misc]

    def _alive(self, views: "Sequence[SimulatedBus] | dict[SimulatedBus, None] | None" = None) -> "list[SimulatedBus]":
        return [view for view in (self.views if views is None else views) if not view.loop.dead]


class SimulatedBus:
    """A `Bus` as one process sees it."""

    def __init__(self, state: BusState, loop: MachineLoop) -> None:
        self.loop = loop
        self.kicked: list[Callable[[Kick], None]] = []
        self._state = state
        self._connected = True
        self._connection = 0
        self._sent: deque[Callable[[], None]] = deque()
        self._sent_s = 0.0
        self._brought_s = 0.0
        self._ticket = 0
        self._listeners: dict[ClientId, Listener] = {}
        self._tickets: dict[ClientId, int] = {}
        self._sure: set[ClientId] = set()
        self._waiting: dict[ClientId, list[asyncio.Future[None]]] = {}
        self._again: set[ClientId] = set()
        self._unpublished: dict[ClientId, Publication] = {}

    # --- The contract

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        for publication in publications:
            self._state.witness.published(self.loop.name, publication)
            self.deliver(publication)  # those of this process need no server; what it brings back is not newer
        if not publications:
            return []
        if not self._connected:
            self._keep(publications)
            await asyncio.sleep(PUBLISH_S * self._state.rng.random())
            return [-1] * len(publications)
        answer: asyncio.Future[list[int]] = self.loop.create_future()

        def serve() -> None:
            counts = [self._fan_out(publication) for publication in publications]
            self.bring(lambda: resolve(answer, counts), in_order=False)

        self._send(serve, in_order=False)
        try:
            async with asyncio.timeout(PUBLISH_S):
                return await answer
        except TimeoutError:
            self._keep(publications)
            thaw_s = max(self._state.frozen_until_s, self._state.scheduler.now_s)
            self._state.scheduler.at(thaw_s + self._state.rng.random(), lambda: self.loop.post(self._publish_again))
            return [self._state.rng.choice((-1, 1))] * len(publications)

    async def dismiss(self, dismissal: Dismissal) -> None:
        self.deliver_dismissal(dismissal)

        def serve() -> None:
            self._state.fan_out(dismissal.client_id, lambda view: view.deliver_dismissal(dismissal))

        self._send(serve, in_order=False)

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        self._listeners[client_id] = listener
        if client_id in self._sure:
            return
        heard: asyncio.Future[None] = self.loop.create_future()
        if client_id not in self._tickets:
            self._ask(client_id)
        self._waiting.setdefault(client_id, []).append(heard)
        try:
            async with asyncio.timeout(SUBSCRIBE_S):
                await heard
        except TimeoutError:
            self._again.add(client_id)  # it is served without, and told of the gap once it is confirmed

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        if self._listeners.get(client_id) is not listener:
            return
        del self._listeners[client_id]
        self._sure.discard(client_id)
        self._tickets.pop(client_id, None)
        self._again.discard(client_id)
        self._send(lambda: self._state.unsubscribe(self, client_id))

    async def kick(self, kick: Kick) -> None:
        if self._state.frozen_until_s <= self._state.scheduler.now_s:
            self._send(lambda: self._state.kick(kick), in_order=False)

    def on_kick(self, listener: Callable[[Kick], None]) -> None:
        self.kicked.append(listener)

    async def tell(self, topic: str, body: bytes) -> int:
        return 0  # nobody in a story looks at a console

    async def hear(self, topic: str, listener: Callable[[bytes], None]) -> None:
        return

    def hear_no_more(self, topic: str, listener: Callable[[bytes], None]) -> None:
        return

    async def close(self) -> None:
        return

    # --- The connection

    def _send(self, work: Callable[[], None], *, in_order: bool = True) -> None:
        """Have the server do something, unless the connection breaks before."""
        if not self._connected:
            return
        connection, left_s = self._connection, self._state.scheduler.now_s + LEAVES_S

        def serve() -> None:
            if connection == self._connection and self.loop.died_s >= left_s:
                work()

        if not in_order:
            self._state.serve(serve)
            return
        # First in, first out, however a server that freezes again and again puts them off.
        self._sent.append(serve)
        self._sent_s = self._state.serve(self._serve_next, self._sent_s)

    def _serve_next(self) -> None:
        self._sent.popleft()()

    def bring(self, work: Callable[[], object], *, in_order: bool = True) -> None:
        """Have something done in the process, unless the connection breaks before."""
        connection = self._connection

        def arrive() -> None:
            if connection == self._connection:
                self.loop.post(work)

        when_s = max(self._state.scheduler.now_s + self._state.latency_s(), self._brought_s if in_order else 0.0)
        if in_order:
            self._brought_s = when_s
        self._state.scheduler.at(when_s, lambda: self._state._thawed(arrive))

    def disconnect(self, for_s: float) -> None:
        """The connection breaks, with whatever was on its way; another is there in so many seconds."""
        self._connection += 1
        self._connected = False
        self._sure.clear()
        self._tickets.clear()
        connection = self._connection
        self._state.scheduler.after(for_s, lambda: self._connect(connection))

    def connect_now(self) -> None:
        """Wait no longer for the next connection."""
        if not self._connected:
            self._connect(self._connection)

    def _connect(self, connection: int) -> None:
        if connection == self._connection and not self._connected:
            self._connected = True
            self._state.forget(self)
            self.loop.post(self._begin_again)

    def _begin_again(self) -> None:
        """On a new connection: subscribe to all that is served, tell of the gap then, publish what could not be."""
        self._again.update(self._listeners)
        for client_id in self._listeners:
            if client_id not in self._tickets:
                self._ask(client_id)
        self._publish_again()

    def _ask(self, client_id: ClientId) -> None:
        if not self._connected:
            return
        self._ticket += 1
        ticket = self._tickets[client_id] = self._ticket
        self._send(lambda: self._state.subscribe(self, client_id, ticket))

    def confirmed(self, client_id: ClientId, ticket: int) -> None:
        """The server has subscribed this process, unless it has asked for something else since."""
        if self._tickets.get(client_id) != ticket:
            return
        self._sure.add(client_id)
        for heard in self._waiting.pop(client_id, ()):
            if not heard.done():
                heard.set_result(None)
        if client_id in self._again:
            self._again.discard(client_id)
            self._listeners[client_id].missed([client_id])

    # --- Publications

    def _fan_out(self, publication: Publication) -> int:
        return self._state.fan_out(publication.client_id, lambda view: view.deliver(publication))

    def deliver(self, publication: Publication) -> None:
        listener = self._listeners.get(publication.client_id)
        if listener is not None:
            listener.published(publication)

    def deliver_dismissal(self, dismissal: Dismissal) -> None:
        listener = self._listeners.get(dismissal.client_id)
        if listener is not None:
            listener.dismissed(dismissal)

    def deliver_kick(self, kick: Kick) -> None:
        for listener in self.kicked:
            listener(kick)

    def _keep(self, publications: Sequence[Publication]) -> None:
        """Publish these again later, the newest for each client."""
        for publication in publications:
            known = self._unpublished.get(publication.client_id)
            if known is None or known.version < publication.version:
                self._unpublished[publication.client_id] = publication

    def _publish_again(self) -> None:
        if self._connected and self._unpublished:
            kept, self._unpublished = self._unpublished, {}
            self.loop.start(self.publish(list(kept.values())))


def resolve(answer: asyncio.Future[T], value: T) -> None:
    """Set a result, unless nobody waits for it any more."""
    if not answer.done():
        answer.set_result(value)

"""Simulated time and simulated backends: an event loop whose clock only the test moves, and stores whose every call
waits until the test lets it happen, fail, or be lost.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gateway.bus.bus import Dismissal, Listener, Publication
from gateway.transit.state import ClientId
from push.sender import Outcome, Wakeup
from storage.documents import Conflict, Document, Due, ScanPage, StoreUnavailable, check_documents
from storage.memory import MemoryDocuments, MemoryObjects
from storage.objects import ObjectInfo, ObjectsUnavailable, SignedDownload, SignedUpload

T = TypeVar("T")


class _Nothing:
    """A selector that nothing is registered with."""

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None or timeout > 0:
            raise RuntimeError("the simulation waits for something that is not simulated")
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop in which nothing happens, and no time passes, but at the test's word."""

    _ready: deque[object]

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Nothing()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def settle(self) -> None:
        """Run whatever is ready, timers that are due included, until nothing is."""
        self._once()
        while self._ready:
            self._once()

    def pass_time(self, seconds: float) -> None:
        self._now_s += seconds
        self.settle()

    def _once(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def _process_events(self, event_list: list[object]) -> None:
        return

    def _write_to_self(self) -> None:
        return


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("it waits")


current_call: ContextVar[object] = ContextVar("current_call", default=None)
"""On whose behalf a backend is called."""


@dataclass(eq=False)
class Pending:
    """A backend call on its way: `parts` take effect one after the other, then the caller goes on with `result`."""

    name: str
    parts: list[Callable[[], None]]
    result: Callable[[], Any]
    failure: type[Exception]
    writes: bool
    call: object = field(default_factory=current_call.get)
    future: "asyncio.Future[Any] | None" = None
    began_s: float = 0.0

    def perform(self, most: int = 1_000) -> None:
        """Let the next `most` parts happen; after the last the caller goes on."""
        for part in self.parts[:most]:
            self.parts.remove(part)
            try:
                part()
            except Conflict as error:
                self.parts.clear()
                self._end(error)
                return
        if not self.parts:
            self._end(None)

    def fail(self, *, after: int) -> None:
        """Let `after` parts happen, and the caller hear that the backend does not answer."""
        for part in self.parts[:after]:
            try:
                part()
            except Conflict:
                break
        self.parts.clear()
        self._end(self.failure("simulated"))

    def _end(self, error: Exception | None) -> None:
        if self.future is None or self.future.done():
            return
        if error is None:
            self.future.set_result(self.result())
        else:
            self.future.set_exception(error)


class Traffic:
    """Every backend call that waits for the test's word. `calm`: they happen at once, and none fails."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self.orphans: list[Pending] = []
        self.calm = False

    async def pass_through(self, pending: Pending) -> Any:
        if self.calm:
            pending.future = asyncio.get_running_loop().create_future()
            pending.perform()
            return await pending.future
        loop = asyncio.get_running_loop()
        pending.future, pending.began_s = loop.create_future(), loop.time()
        self.pending.append(pending)
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending.writes and pending.parts:
                self.orphans.append(pending)  # a cancelled commit may still be applied
            raise
        finally:
            self.pending.remove(pending)


class SimulatedDocuments:
    """A `DocumentStore` over memory: each document of a call is read or written by itself, at a moment of its own."""

    def __init__(self, traffic: Traffic, inner: MemoryDocuments, wrote: Callable[[Document, Document], None]) -> None:
        self.inner = inner
        self._traffic = traffic
        self._wrote = wrote

    async def load(self, keys: Sequence[str]) -> list[Document]:
        loaded: list[Document] = []

        def part(key: str) -> Callable[[], None]:
            return lambda: loaded.extend(at_once(self.inner.load([key])))

        await self._traffic.pass_through(
            Pending(f"load {' '.join(keys)}", [part(key) for key in keys], lambda: loaded, StoreUnavailable, False)
        )
        return loaded

    async def commit(self, documents: Sequence[Document]) -> list[Document]:
        check_documents(documents)
        written: list[Document] = []

        def part(document: Document) -> Callable[[], None]:
            def write() -> None:
                [before] = at_once(self.inner.load([document.key]))
                try:
                    [after] = at_once(self.inner.commit([document]))
                except Conflict as conflict:
                    raise Conflict(conflict.key, written) from conflict
                written.append(after)
                self._wrote(before, after)

            return write

        name = f"commit {' '.join(document.key for document in documents)}"
        await self._traffic.pass_through(
            Pending(name, [part(document) for document in documents], lambda: written, StoreUnavailable, True)
        )
        return written

    async def due(self, before: int, limit: int) -> list[Due]:
        found: list[Due] = []
        await self._traffic.pass_through(
            Pending(
                "due",
                [lambda: found.extend(at_once(self.inner.due(before, limit)))],
                lambda: found,
                StoreUnavailable,
                False,
            )
        )
        return found

    async def scan(self, *, cursor: str | None = None, limit: int = 256) -> ScanPage:
        found: list[ScanPage] = []
        few = min(limit, 4)
        await self._traffic.pass_through(
            Pending(
                "scan",
                [lambda: found.append(at_once(self.inner.scan(cursor=cursor, limit=few)))],
                lambda: found,
                StoreUnavailable,
                False,
            )
        )
        return found[0]

    async def close(self) -> None:
        return


class SimulatedObjects:
    """An `ObjectStore` over memory."""

    def __init__(self, traffic: Traffic, inner: MemoryObjects, deleted: Callable[[str], None]) -> None:
        self.inner = inner
        self._traffic = traffic
        self._deleted = deleted

    async def sign_upload(
        self, key: str, *, size: int, content_type: str, sha256: str | None, expires_at: int
    ) -> SignedUpload:
        return await self.inner.sign_upload(
            key, size=size, content_type=content_type, sha256=sha256, expires_at=expires_at
        )

    async def sign_download(self, key: str, *, expires_at: int) -> SignedDownload:
        return await self.inner.sign_download(key, expires_at=expires_at)

    async def head(self, key: str) -> ObjectInfo | None:
        found: list[ObjectInfo | None] = []
        await self._traffic.pass_through(
            Pending(
                f"head {key}",
                [lambda: found.append(at_once(self.inner.head(key)))],
                lambda: found,
                ObjectsUnavailable,
                False,
            )
        )
        return found[0]

    async def delete(self, keys: Sequence[str]) -> None:
        def part(key: str) -> Callable[[], None]:
            def remove() -> None:
                at_once(self.inner.delete([key]))
                self._deleted(key)

            return remove

        await self._traffic.pass_through(
            Pending(f"delete {' '.join(keys)}", [part(key) for key in keys], lambda: None, ObjectsUnavailable, True)
        )

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[str]:
        keys = [key async for key in self.inner.list(prefix, after=after)]
        if keys:
            await self._traffic.pass_through(
                Pending(f"list {prefix}", [lambda: None], lambda: None, ObjectsUnavailable, False)
            )
        for key in keys:
            yield key

    async def close(self) -> None:
        return


class SimulatedBus:
    """A `Bus` whose publications go to the test."""

    def __init__(self, publish: Callable[[Publication], int], kick: Callable[[ClientId], None]) -> None:
        self._publish = publish
        self._kick = kick

    async def publish(self, publications: Sequence[Publication]) -> list[int]:
        return [self._publish(publication) for publication in publications]

    async def dismiss(self, dismissal: Dismissal) -> None:
        return

    async def subscribe(self, client_id: ClientId, listener: Listener) -> None:
        return

    def unsubscribe(self, client_id: ClientId, listener: Listener) -> None:
        return

    async def kick(self, client_id: ClientId) -> None:
        self._kick(client_id)

    def on_kick(self, listener: Callable[[ClientId], None]) -> None:
        return

    async def close(self) -> None:
        return


class ProviderBroken(Exception):
    """A sender that breaks its contract."""


class SimulatedSender:
    """A `Sender` whose provider says what the test says."""

    def __init__(self, traffic: Traffic, answer: Callable[[Wakeup], Outcome]) -> None:
        self._traffic = traffic
        self._answer = answer

    async def send(self, wakeup: Wakeup) -> Outcome:
        said: list[Outcome] = []
        await self._traffic.pass_through(
            Pending("push", [lambda: said.append(self._answer(wakeup))], lambda: said, ProviderBroken, False)
        )
        return said[0]

    async def close(self) -> None:
        return

"""A small world without a plan: a gateway of two processes and a phone's line, for tests that direct what happens."""

import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, Device, DeviceId
from push.sender import Accepted, Outcome, Platform, Wakeup
from storage.documents import Document
from tests.simulation.backends import BusState, DocumentsState, ObjectsState
from tests.simulation.calls import SimulatedCalls
from tests.simulation.loops import MachineLoop, Scheduler, dispose, quiet
from tests.simulation.network import Answer, Network
from tests.simulation.process import START_S, Backends, Config, Process, errors_noted, scaled, steady, token
from tests.simulation.providers import providers_of
from tests.simulation.sockets import PhoneSocket
from tests.simulation.truth import Truth

T = TypeVar("T")

POLICY = Policy(video_ttl_ms=120_000, ended_keep_ms=60_000, upload_ttl_ms=90_000, remind_after_ms=(100_000, 160_000))


def outcome_of(scheduler: Scheduler, machine: MachineLoop, work: Awaitable[object], within_s: float = 60) -> object:
    """What becomes of it: the result, the exception, or None where it never ends."""
    ends: list[object] = []

    async def run() -> None:
        try:
            ends.append(await work)
        except Exception as error:
            ends.append(error)

    machine.start(run())
    scheduler.run_for(within_s)
    return ends[0] if ends else None


class Noting(Truth):
    """Also keeps what happened, each with its time.

    `came`: the requests, and which process each came to. `asked`: which process pushed to which token.
    `taken`: the tokens of pushes that a provider accepted. `written`: the keys of documents.
    """

    def __init__(self, scheduler: Scheduler, policy: Policy) -> None:
        super().__init__(scheduler, policy)
        self.came: list[str] = []
        self.asked: list[tuple[float, str, str]] = []
        self.taken: list[tuple[float, str]] = []
        self.written: list[tuple[float, str]] = []
        self.on_write: Callable[[str, Document, Document], None] = _nothing
        """Called with each write, once it is done: by which process, and the document before and after."""
        self._tokens: dict[int, str] = {}

    def request_came(
        self,
        call: int,
        machine: str,
        method: str,
        path: str,
        *,
        query: dict[str, str],
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        self.came.append(f"{machine} {method}")
        super().request_came(call, machine, method, path, query=query, headers=headers, body=body)

    def push_left(self, push: int, machine: str, wakeup: Wakeup) -> None:
        self._tokens[push] = wakeup.token
        self.asked.append((self.now_s, machine, wakeup.token))
        super().push_left(push, machine, wakeup)

    def pushed(self, push: int, outcome: Outcome) -> None:
        if isinstance(outcome, Accepted):
            self.taken.append((self.now_s, self._tokens[push]))
        super().pushed(push, outcome)

    def wrote(self, machine: str, before: Document, after: Document) -> None:
        self.written.append((self.now_s, after.key))
        super().wrote(machine, before, after)
        self.on_write(machine, before, after)


def _nothing(machine: str, before: Document, after: Document) -> None:
    return


class Small:
    """A gateway of two processes, and a phone. `pushes`: those that have arrived at phones."""

    def __init__(self, seed: int, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.scheduler = Scheduler(seed)
        self.truth = Noting(self.scheduler, policy)
        self.scheduler.noted = self.truth.broken
        self.pushes: list[Wakeup] = []
        documents = DocumentsState(self.scheduler, seed, self.truth, clock=self.clock)
        objects = ObjectsState(self.scheduler, seed, self.truth, clock=self.clock)
        bus = BusState(self.scheduler, seed, self.truth)
        self.providers = providers_of(self.scheduler, random.Random(seed), self.truth, self.pushes.append)
        self.backends = Backends(documents, objects, bus, self.providers)
        self.network = Network(self.scheduler, seed, self.truth, objects)
        self.processes = [self.process("one"), self.process("two")]
        self.network.processes = self.processes
        self.loop = MachineLoop(self.scheduler, "phone")
        self.line = self.network.line("phone", self.loop)

    def clock(self) -> float:
        return START_S + self.scheduler.now_s

    def process(self, name: str) -> Process:
        process = Process(name, self.scheduler, Config(self.policy), self.backends, self.network)
        process.start()
        return process

    def run(self, work: Awaitable[object], within_s: float = 60) -> object:
        return outcome_of(self.scheduler, self.loop, work, within_s)

    def done(self, work: Coroutine[Any, Any, T]) -> T:
        """Let time pass until this is done."""
        task = self.loop.start(work)
        while not task.done():
            assert not self.scheduler.stopped, self.truth.violation
            self.scheduler.run_for(0.01)
        return task.result()

    async def poll(self) -> Answer:
        return await self.line.request("GET", "/v1/poll", headers=self.headers("alice"))

    def headers(self, client_id: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token(client_id, self.scheduler.now_s)}"}

    async def socket(self, client_id: str = "alice", device_id: str = "a1") -> PhoneSocket:
        query = {"device_id": device_id, "version": "0"}
        return await self.line.socket("/v1/ws", query, token(client_id, self.scheduler.now_s))

    def opened(self, client_id: str = "alice", device_id: str = "a1") -> PhoneSocket:
        return self.done(self.socket(client_id, device_id))

    async def send(self, client_id: str, to: str) -> str:
        """A video from one to the other; its id."""
        calls = SimulatedCalls(self.line, token(client_id, self.scheduler.now_s))
        body = {"recipient_id": to, "size": 4, "content_type": "video/mp4"}
        announced = (await calls.call("POST", "/v1/videos", body=body)).json()
        video_id: str = announced["video_id"]
        await self.line.put(announced["upload"]["url"], b"data")
        confirmed = {"status": "uploaded", "recipient_id": to}
        await calls.call("POST", f"/v1/videos/{video_id}/status", body=confirmed)
        return video_id

    def register(self, client_id: str, device_id: str, platform: Platform) -> None:
        """A device that takes pushes from now on, with its name for a token."""
        body = {"platform": platform.value, "token": device_id}
        calls = SimulatedCalls(self.line, token(client_id, self.scheduler.now_s))
        self.done(calls.call("PUT", f"/v1/devices/{device_id}", body=body))
        assert self.row(client_id, device_id).platform == platform

    def row(self, client_id: str, device_id: str) -> Device:
        """What the gateway knows of a device."""
        return self.truth.state(ClientId(client_id)).devices[DeviceId(device_id)]


@contextlib.contextmanager
def small(seed: int = 1, policy: Policy = POLICY, *, in_earnest: bool = False) -> Iterator[Small]:
    """One that is held to everything that the oracle knows. `in_earnest`: no time is shortened."""
    gateway = Small(seed, policy)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(steady(seed))
        if not in_earnest:
            stack.enter_context(scaled())
        stack.enter_context(errors_noted(gateway.truth))
        try:
            yield gateway
        finally:
            violation = gateway.truth.violation
            dispose(gateway.scheduler)
            assert violation is None, violation

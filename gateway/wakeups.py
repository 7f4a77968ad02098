"""The worker: clients that are due are looked after, and their devices woken.

A device that has not acknowledged the news has a time at which to wake it, in its client's document. The worker takes
the documents whose time has come, claims each by moving that time to the next reminder, and pushes. Whoever wins the
compare-and-set sends; if it dies before it did, the reminder does. A kick over the bus only makes it sooner.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from gateway import packet
from gateway.changes import CLIENT_PREFIX, Changes, States, client_key
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.service import Service
from gateway.transit import devices, receiving
from gateway.transit.decisions import Decision
from gateway.transit.devices import Push
from gateway.transit.policy import DAY_MS, HOUR_MS
from gateway.transit.state import ClientId, ClientState, UnreadableDocument
from push.sender import Accepted, Alert, Environment, Outcome, Platform, Rejected, Retry, Sender, TokenDead, Wakeup
from storage.documents import Conflict, Due, StoreUnavailable

POLL_S = 1.0
"""How often the due index is asked."""

BATCH = 200
"""Due clients taken at a time."""

AT_ONCE = 32
"""Clients looked after at the same time."""

MOST_KICKS = 10_000
"""Kicks that may wait; the due time stands in for those beyond."""

SEND_DEADLINE_S = 30.0
"""How long a provider may take over one push."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How much a push tells the provider: the whole packet, or only that there is something (`PUSH_CONTENT`)."""

    with_packet: bool = True


class Wakeups:
    """Looks after the clients that are due."""

    def __init__(
        self,
        *,
        changes: Changes,
        service: Service,
        registry: Registry,
        senders: Mapping[Platform, Sender],
        options: PushOptions,
        metrics: Metrics,
    ) -> None:
        self._changes = changes
        self._service = service
        self._registry = registry
        self._senders = senders
        self._options = options
        self._metrics = metrics
        self._kicked: dict[ClientId, None] = {}
        self._woken = asyncio.Event()

    def kick(self, client_id: ClientId) -> None:
        """Nobody of this client's is connected: wake its devices at once."""
        if len(self._kicked) < MOST_KICKS:
            self._kicked[client_id] = None
            self._woken.set()

    async def run(self) -> None:
        """Look after whoever is due, until cancelled."""
        while True:
            try:
                if await self.round() >= BATCH:
                    continue  # more may be waiting
            except StoreUnavailable as error:
                log.warning("the due index does not answer", extra={"error": str(error)})
            try:
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def round(self) -> int:
        """Look after those who were kicked and those who are due now, a batch at most; how many that went well for."""
        self._woken.clear()
        kicked, self._kicked = self._kicked, {}
        now = self._changes.now()
        due = await self._changes.documents.due(now, BATCH)
        self._metrics.due_age_seconds.set((now - due[0].due) / 1000 if due else 0)
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            tasks = [
                *(group.create_task(self._guarded(slots, client_key(one), at_once=True)) for one in kicked),
                *(
                    group.create_task(self._guarded(slots, entry.key, at_once=False))
                    for entry in due
                    if _client_of(entry) not in kicked
                ),
            ]
        return sum(task.result() for task in tasks)

    async def _guarded(self, slots: asyncio.Semaphore, key: str, *, at_once: bool) -> bool:
        """Look after one client, and whether that went well; what goes wrong stays with it, and does not block those
        behind it."""
        async with slots:
            client_id = ClientId(key.removeprefix(CLIENT_PREFIX))
            try:
                await self.look_after(client_id, at_once=at_once)
                return True
            except GatewayError as error:
                self._metrics.worker_failures.inc()
                log.warning("a due client must wait", extra={"client_id": client_id, "error": error.detail})
                if isinstance(error.__cause__, UnreadableDocument):
                    await self._put_off(key)
            except Exception:
                self._metrics.worker_failures.inc()
                log.exception("a due client could not be handled", extra={"client_id": client_id})
                await self._put_off(key)
            return False

    async def _put_off(self, key: str) -> None:
        """Move a document on, without reading it."""
        try:
            [document] = await self._changes.documents.load([key])
            if document.due is not None and document.due <= self._changes.now():
                await self._changes.documents.commit([replace(document, due=self._changes.now() + HOUR_MS)])
        except (Conflict, StoreUnavailable) as error:
            log.warning("a due client could not be put off", extra={"error": str(error)})

    async def look_after(self, client_id: ClientId, *, at_once: bool = False) -> None:
        """Do what is due for one client: what has expired first, then the devices that are behind."""
        state = await self._changes.load(client_id)
        if 0 < state.check_at <= self._changes.now():
            await self._service.tend(client_id)
        state, pushes = await self._claim(client_id, at_once=at_once)
        await asyncio.gather(*(self._push(state, push) for push in pushes))

    async def _claim(self, client_id: ClientId, *, at_once: bool) -> tuple[ClientState, list[Push]]:
        pushes: list[Push] = []

        async def rule(states: States, now: int) -> Decision:
            nonlocal pushes
            state, pushes = devices.claim(states[client_id], now=now, policy=self._changes.policy, at_once=at_once)
            return Decision(state)

        decision = await self._changes.run(client_id, rule)
        return decision.state, pushes

    async def _push(self, state: ClientState, push: Push) -> None:
        """Push to one device, and write down what came of it. What goes wrong stays with this device: its next time is
        set already."""
        started = self._changes.now()
        try:
            owner = await self._registry.owner(push.device.token_key)
            if owner is None or owner[:2] != (state.client_id, push.device_id):
                outcome: Outcome = TokenDead(started)  # the token is another's now, or nobody's
            else:
                outcome = await self._send(self._wakeup(state, push, owner.token))
            await self._note(state, push, outcome, started)
        except GatewayError as error:
            self._metrics.worker_failures.inc()
            log.warning("a push must wait", extra={"client_id": state.client_id, "error": error.detail})
        except Exception:
            self._metrics.worker_failures.inc()
            log.exception("a push could not be handled", extra={"client_id": state.client_id})

    async def _note(self, state: ClientState, push: Push, outcome: Outcome, started: int) -> None:
        self._metrics.pushes.labels(push.device.platform, type(outcome).__name__.lower()).inc()
        await self._settle(state, push, outcome)
        if isinstance(outcome, TokenDead):
            await self._registry.release(
                state.client_id, push.device_id, push.device.token_key, before=outcome.since or started
            )

    def _wakeup(self, state: ClientState, push: Push, token: str) -> Wakeup:
        waiting = devices.waiting(state)
        alert = None
        if push.alert:
            args = (str(waiting.videos), str(waiting.newest_sender))
            alert = Alert("VIDEOS_WAITING", args, badge=waiting.videos, sound=push.sound)
        ends = [video.uploaded_at for _, _, video in state.received() if not video.ended]
        lives_ms = self._changes.policy.video_ttl_ms if ends else DAY_MS
        return Wakeup(
            id=str(uuid.uuid4()),
            platform=Platform(push.device.platform),
            environment=Environment(push.device.environment),
            token=token,
            collapse_id=state.client_id,
            version=state.version,
            packet=packet.encode(state) if self._options.with_packet else None,
            alert=alert,
            expires_at=max(ends, default=self._changes.now()) + lives_ms,
        )

    async def _send(self, wakeup: Wakeup) -> Outcome:
        sender = self._senders.get(wakeup.platform)
        if sender is None:
            return Rejected(f"no sender is configured for {wakeup.platform}")
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                return await sender.send(wakeup)
        except TimeoutError:
            return Retry("the provider does not answer in time")
        except Exception:  # a sender that breaks its contract must not take the client's other pushes with it
            log.exception("a sender failed", extra={"platform": wakeup.platform})
            return Retry("the sender failed")

    async def _settle(self, sent: ClientState, push: Push, outcome: Outcome) -> None:
        """Write down what the provider said. `sent` is the state that the push told of."""
        policy = self._changes.policy

        async def rule(states: States, now: int) -> Decision:
            state, senders = states[sent.client_id], frozenset[ClientId]()
            match outcome:
                case Accepted():
                    state, senders = receiving.notified(state, sent.version, now=now)
                    state = devices.answered(state, push, sent.version, now=now, policy=policy)
                case TokenDead(since):
                    state = devices.token_died(state, push, since)
                case Retry(_, after_ms):
                    state = devices.postponed(
                        state, push, sent.version, after_ms, now=now, jitter=random.random(), policy=policy
                    )
                case Rejected(reason):
                    state = devices.answered(state, push, sent.version, now=now, policy=policy)
                    log.error("a push was rejected", extra={"platform": push.device.platform, "reason": reason})
                case _:
                    assert_never(outcome)
            return Decision(state, settle=senders)

        await self._changes.run(sent.client_id, rule)


def _client_of(entry: Due) -> ClientId:
    return ClientId(entry.key.removeprefix(CLIENT_PREFIX))

"""How a story of the test vectors is played on the core: an event goes in, what is to be seen of it comes out.

What the members of events and of what is seen mean is told in `tests/vectors/README.md`.
"""

import itertools
import math
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import orjson

from gateway.client import (
    Change,
    Core,
    DownloadError,
    GatewayError,
    Packet,
    ReceivedStatus,
    Record,
    Result,
    SentStatus,
    SocketClosed,
    Synced,
    UploadError,
)
from gateway.client.delivery import Delivery
from gateway.client.messages import Announced
from gateway.client.record import Registration
from gateway.client.tasks import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Answer,
    Connect,
    Delete,
    Download,
    Leave,
    Poll,
    Put,
    Register,
    Sync,
    Task,
    Tell,
)
from gateway.transit.state import ClientId, DeviceId, VideoId

Members = dict[str, Any]
"""A JSON object."""

KINDS: Mapping[type[Action], str] = {
    Sync: "sync",
    Poll: "poll",
    Connect: "connect",
    Acknowledge: "acknowledge",
    Tell: "tell",
    Announce: "announce",
    Put: "put",
    Delete: "delete",
    Download: "download",
    Register: "register",
    Leave: "leave",
    Abandon: "abandon",
}

ERRORS: Mapping[str, type[GatewayError]] = {"gateway": GatewayError, "upload": UploadError, "download": DownloadError}


class Replay:
    """A device that a story happens to: a core on a record, its clock, and what it has begun."""

    def __init__(self, story: Members) -> None:
        self._now_s = 0.0
        self._jitter = itertools.cycle(story["jitter"])
        self._tasks: list[Task] = []
        self._shown: Members = {}
        self._untold: Members | EllipsisType | None = ...
        client_id, device_id = story["client_id"], story["device_id"]
        found = (
            Record(client_id, device_id) if story["record"] is None else Record.decode(orjson.dumps(story["record"]))
        )
        self._start(found, client_id, device_id)

    def _start(self, record: Record, client_id: str | None, device_id: str | None) -> None:
        self.record = record
        self.record.log_in(
            None if client_id is None else ClientId(client_id), None if device_id is None else DeviceId(device_id)
        )
        self._core = Core(self.record, clock=lambda: self._now_s, jitter=lambda: next(self._jitter))

    def play(self, at_s: float, event: Members) -> None:
        """Something happens at that time."""
        self._now_s = at_s
        members = {name: value for name, value in event.items() if name != "do"}
        getattr(self, f"_{event['do']}")(**members)

    def follow(self, step: Members) -> None:
        """Play a step of a file. Raises AssertionError where something else follows than it says."""
        if "for" in step:
            first, last = step["for"]
            self.repeat(first, last, step["steps"])
        else:
            self.play(step["at_s"], step["event"])
            seen = self.seen(asked="actions" in step)
            assert seen == {name: value for name, value in step.items() if name not in {"at_s", "event"}}

    def seen(self, *, asked: bool) -> Members:
        """What is to be seen after an event; `asked`: what is to be done, too, and then the record is stored."""
        seen = self._asked() if asked else {}
        before, self._shown = self._shown, self._memory()
        if changed := {name: value for name, value in self._shown.items() if before.get(name, ...) != value}:
            seen["record"] = changed
        untold, self._untold = self._untold, as_json(self.record.untold())
        if untold != self._untold:
            seen["untold"] = self._untold
        facts = {"changed": self.record.changed, "stale": self._core.stale, "quiet": self._core.quiet}
        seen["is"] = [name for name, holds in facts.items() if holds]
        if asked:
            self.record.changed = False
        return seen

    def _memory(self) -> Members:
        found: Members = orjson.loads(self.record.encode())
        return found

    def repeat(self, first: int, last: int, steps: list[Members]) -> None:
        """Play these steps for each number. Raises AssertionError where other actions follow than they have."""
        text = orjson.dumps(steps).decode()
        for number in range(first, last + 1):
            for step in orjson.loads(text.replace('"{n}"', str(number)).replace("{n}", str(number))):
                self.play(step["at_s"], step["event"])
                if "actions" in step:
                    assert self._asked()["actions"] == step["actions"]
                    self.record.changed = False
        self._shown, self._untold = self._memory(), ...

    def _asked(self) -> Members:
        actions = [self._action(action) for action in self._core.next()]
        next_s = self._core.next_s
        return {"actions": actions, "next_s": short(next_s) if next_s < math.inf else None}

    def _action(self, action: Action) -> Members:
        kind = KINDS[type(action)]
        if isinstance(action, Abandon):
            return {"kind": kind, "task": next(n for n, task in enumerate(self._tasks, 1) if task is action.task)}
        members = as_json(action)
        members.pop("op", None)
        if isinstance(action, Acknowledge):
            return {"kind": kind, **members}
        self._tasks.append(action)
        return {"n": len(self._tasks), "kind": kind, **members}

    # --- What may happen: to the phone

    def _wait(self) -> None:
        pass

    def _foreground(self, active: bool) -> None:
        self._core.foreground(active=active)

    def _network(self, online: bool) -> None:
        self._core.network(online=online)

    def _push(self, packet: str | None) -> None:
        self._core.pushed(None if packet is None else Packet.parse(packet.encode()))

    def _restart(self, client_id: str | None, device_id: str | None) -> None:
        self._start(Record.decode(self.record.encode()), client_id, device_id)

    # --- To its user

    def _send(self, key: str, recipient_id: str, delivery: Members) -> None:
        self.record.send(key, ClientId(recipient_id), Delivery(**delivery))

    def _delete(self, key: str) -> None:
        self.record.delete(key)

    def _viewed(self, video_id: str) -> None:
        self.record.viewed(VideoId(video_id))

    def _register(self, registration: Members) -> None:
        self.record.register(Registration(**registration))

    def _log_out(self, token: str, ends_account: bool) -> None:
        self.record.log_out(token, ends_account=ends_account)

    def _told(self, change: Members) -> None:
        self.record.told(_change(change))

    # --- To its tasks

    def _opened(self, task: int) -> None:
        self._core.opened(self._connect(task))

    def _came(self, task: int, packet: str) -> None:
        self._core.came(self._connect(task), Packet.parse(packet.encode()))

    def _closed(self, task: int, code: int, reason: str, logged_out: bool) -> None:
        self._core.closed(self._connect(task), SocketClosed(code, reason, logged_out=logged_out))

    def _answered(self, task: int, answer: str | None) -> None:
        found = self._tasks[task - 1]
        self._core.answered(found, None if answer is None else _answer(found, answer.encode()))

    def _registered(self, task: int, answered_s: float) -> None:
        found = self._tasks[task - 1]
        assert isinstance(found, Register)
        self._core.registered(found, answered_s)

    def _failed(self, tasks: list[int], error: Members) -> None:
        for task in tasks:
            self._core.failed(self._tasks[task - 1], error_of(**error))

    def _connect(self, task: int) -> Connect:
        found = self._tasks[task - 1]
        assert isinstance(found, Connect)
        return found


def _change(members: Members) -> Change:
    sent = members["status"] in set(SentStatus)
    status = SentStatus(members["status"]) if sent else ReceivedStatus(members["status"])
    return Change(**{**members, "status": status})


def _answer(task: Task, body: bytes) -> Answer:
    match task:
        case Sync(reports):
            return Synced.parse(body, reports)
        case Poll():
            return Packet.parse(body)
        case Announce(_, recipient_id, delivery):
            return Announced.parse(body, recipient_id, delivery.size)
        case Tell(report):
            return Result.parse(body, report.video_id)
        case Delete(video_id):
            return Result.parse(body, video_id)
        case _:
            raise AssertionError(f"a {KINDS[type(task)]} has no answer that is read")


def error_of(kind: str, status: int | None, code: str | None, retry_after_s: float | None) -> Exception:
    return OSError() if kind == "local" else ERRORS[kind](status, code, "so it is", retry_after_s)


def as_json(value: object) -> Any:
    """What JSON makes of it."""
    return orjson.loads(orjson.dumps(value))


def short(value: float) -> float:
    """A number that is written as short as it can be."""
    return int(value) if value == int(value) else value

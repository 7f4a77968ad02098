"""Test vectors for cores in any language: what happens to a device, and what must follow, as JSON in `tests/vectors/`.

`python -m tests.client.vectors` writes the files anew: stories that are told, walks through the gateway in miniature by
seed, and texts to be read. What the files say is explained in `tests/vectors/README.md`.
"""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import orjson

from gateway.client import Change, Core, GatewayError, Packet, Record, Result, SocketClosed, Synced
from gateway.client.delivery import Delivery
from gateway.client.messages import Announced
from gateway.client.record import Registration
from gateway.client.tasks import Abandon, Acknowledge, Action, Answer, Task
from tests.client.model_gateway import HAPPENINGS, KINDS, PHONE, World
from tests.client.replay import ERRORS, Members, Replay, as_json, short
from tests.client.stories import STORIES, synced
from tests.client.texts import texts

HERE = Path(__file__).parents[1] / "vectors"

SEEDS = range(1, 7)
"""The walks that are kept; any other number gives one, too."""

STEPS = 100
"""So many things happen in a walk."""


def files() -> dict[str, bytes]:
    """Every file of the vectors, by its path below `tests/vectors/`."""
    stories = {f"stories/{story.file}.json": written(story.members(), "steps") for story in STORIES}
    walks = {f"walks/seed-{seed}.json": written(walk(seed), "steps") for seed in SEEDS}
    cases = {f"texts/{name}.json": written(members, "cases") for name, members in texts().items()}
    return {**stories, **walks, **cases}


def written(members: Members, rows: str) -> bytes:
    """JSON to be read by people, too: a member a line, and of `rows` each."""
    lines = b",\n".join(orjson.dumps(row) for row in members[rows])
    head = b"".join(b'"%b": %b,\n' % (name.encode(), orjson.dumps(members[name])) for name in members if name != rows)
    return b'{\n%b"%b": [\n%b\n]\n}\n' % (head, rows.encode(), lines)


# --- Walks


def walk(seed: int, *, steps: int = STEPS) -> Members:
    """A story that nobody has thought of: whatever happens to a phone in the gateway in miniature."""
    numbers = random.Random(seed)
    world = Overheard()
    for _ in range(steps):
        happening = HAPPENINGS[numbers.randrange(KINDS)].__name__
        getattr(world, happening)(numbers.randrange(1000), numbers.randrange(1000))
    story: Members = {
        "name": f"Whatever happens: the walk of seed {seed}",
        "client_id": "alice",
        "device_id": PHONE,
        "jitter": world.drawn or [1],
        "record": None,
    }
    replay = Replay(story)
    played = [_step(replay, *heard) for heard in world.heard]
    assert replay.record.encode() == world.record.encode(), "the walk went another way"
    return {**story, "steps": played}


def _step(replay: Replay, at_s: float, event: Members, asked: bool) -> Members:
    replay.play(at_s, event)
    return {"at_s": short(at_s), "event": event, **replay.seen(asked=asked)}


class Overheard(World):
    """A world that writes down what its core and its record are told."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, Members, bool]] = []
        """When, what, and whether it was asked then what is to be done."""
        self.drawn: list[float] = []
        self._tasks: list[Task] = []
        super().__init__()

    @property
    def jitter(self) -> float:
        self.drawn.append(short(self._jitter))
        return self._jitter

    @jitter.setter
    def jitter(self, jitter: float) -> None:
        self._jitter = jitter

    def _start(self) -> None:
        super()._start()
        whose = {"client_id": None, "device_id": None} if self.out else {"client_id": self.account, "device_id": PHONE}
        self._hear({"do": "restart", **whose})
        self._hear({"do": "foreground", "active": self.active})
        self._hear({"do": "network", "online": self.online})
        self.core = cast("Core", Listener(self.core, self._told_the_core))
        self.record = cast("Record", Listener(self.record, self._told_the_record))

    def die(self, _one: int = 0, _other: int = 0) -> None:
        self.store()  # what is lost with what was not stored is a matter of those who drive a core
        super().die()

    def later(self, one: int, other: int) -> None:
        self.jitter = other % 9 / 8
        self.now += (0.125, 0.5, 2.0, 5.0, 60.0, 400.0)[one % 6]

    def _hear(self, event: Members) -> None:
        self.heard.append((self.now, event, False))

    def _told_the_core(self, name: str, args: tuple[Any, ...], named: Members, found: object) -> None:
        match name, args:
            case "next", ():
                self._asked(cast("list[Action]", found))
            case (("foreground" | "network"), ()):
                self._hear({"do": name, **named})
            case "pushed", (packet,):
                self._hear({"do": "push", "packet": None if packet is None else _packet(packet)})
            case "opened", (task,):
                self._hear({"do": name, "task": self._number(task)})
            case "came", (task, packet):
                self._hear({"do": name, "task": self._number(task), "packet": _packet(packet)})
            case "answered", (task, answer):
                self._hear({"do": name, "task": self._number(task), "answer": _answer(answer)})
            case "registered", (task, at_s):
                self._hear({"do": name, "task": self._number(task), "answered_s": short(at_s)})
            case "failed", (task, error):
                self._hear({"do": name, "tasks": [self._number(task)], "error": _error(error)})
            case "closed", (task, SocketClosed() as closed):
                frame = {"code": closed.code, "reason": closed.reason, "logged_out": False}
                self._hear({"do": name, "task": self._number(task), **frame})

    def _told_the_record(self, name: str, args: tuple[Any, ...], named: Members, _found: object) -> None:
        match name, args:
            case "send", (key, recipient_id, Delivery() as delivery):
                members = {name: getattr(delivery, name) for name in ("source", "size", "content_type", "sha256")}
                self._hear({"do": name, "key": key, "recipient_id": recipient_id, "delivery": members})
            case "delete", (key,):
                self._hear({"do": name, "key": key})
            case "viewed", (video_id,):
                self._hear({"do": name, "video_id": video_id})
            case "register", (Registration() as new,):
                members = {"platform": new.platform, "token": new.token, "environment": new.environment}
                self._hear({"do": name, "registration": members})
            case "log_out", (token,):
                self._hear({"do": name, "token": token, **named})
            case "told", (Change() as change,):
                self._hear({"do": name, "change": as_json(change)})

    def _asked(self, actions: list[Action]) -> None:
        at_s, event, asked = self.heard[-1]
        if asked or at_s != self.now:
            at_s, event = self.now, {"do": "wait"}
        else:
            self.heard.pop()
        self.heard.append((at_s, event, True))
        self._tasks += [action for action in actions if not isinstance(action, Acknowledge | Abandon)]

    def _number(self, task: Task) -> int:
        return next(number for number, begun in enumerate(self._tasks, 1) if begun is task)


class Listener:
    """Stands before an object: hands everything on, and tells of each call, and of what it returned."""

    def __init__(self, target: object, tell: Callable[[str, tuple[Any, ...], Members, object], None]) -> None:
        super().__setattr__("_target", target)
        super().__setattr__("_tell", tell)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._target, name, value)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return self._heard(name, found) if callable(found) else found

    def _heard(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        def heard(*args: Any, **named: Any) -> object:
            found = method(*args, **named)
            self._tell(name, args, named, found)
            return found

        return heard


def _packet(packet: Packet) -> str:
    members = {"type": "info", "client_id": packet.client_id, "version": packet.version}
    return _text({**members, "outgoing": packet.outgoing, "incoming": packet.incoming})


def _answer(answer: Answer) -> str | None:
    match answer:
        case Packet():
            return _packet(answer)
        case Result():
            return _text(_result(answer))
        case Synced(results, packet):
            return synced(_packet(packet), *(_text(_result(each)) for each in results))
        case Announced():
            return _text({"video_id": answer.video_id, "upload": answer.upload})
        case None:
            return None


def _result(found: Result) -> Members:
    if found.error is not None:
        return {"result": found.outcome, "code": found.error.code, "detail": found.error.detail}
    reason = {} if found.reason is None else {"reason": found.reason}
    return {"result": found.outcome, **reason, "version": found.version}


def _error(error: Exception) -> Members:
    if not isinstance(error, GatewayError):
        return {"kind": "local", "status": None, "code": None, "retry_after_s": None}
    kind = next(kind for kind, found in ERRORS.items() if found is type(error))
    return {"kind": kind, "status": error.status, "code": error.code, "retry_after_s": error.retry_after_s}


def _text(members: Members) -> str:
    return orjson.dumps(members).decode()


def write(folder: Path, found: Iterable[tuple[str, bytes]]) -> None:
    """Write these files below a folder."""
    for path, body in found:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)


if __name__ == "__main__":
    found = files()
    for stale in HERE.glob("*/*.json"):
        stale.unlink()
    write(HERE, found.items())

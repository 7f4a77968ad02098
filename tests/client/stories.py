"""What a good client does, told as stories for the test vectors: each names a rule, and is played as it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from tests.client.replay import Members, Replay, as_json, short

Tell = Callable[["Teller"], None]

STORIES: list["Story"] = []
"""In the order in which they are told here."""

LOST: Members = {"kind": "gateway", "status": None, "code": None, "retry_after_s": None}
LOCAL: Members = {**LOST, "kind": "local"}
FINAL_CODES = (1002, 1003, 1007, 1009, 4400, 4409)
OTHER_CODES = (1000, 1001, 1006, 1011, 1012, 1013, 3000, 4401, 4408, 4429, 4999)


@dataclass(frozen=True, slots=True)
class Story:
    """A story: the name of its file, how it is told, and how it begins."""

    file: str
    tell: Tell
    beginning: Members

    def members(self) -> Members:
        """As its file has it."""
        teller = Teller({"name": " ".join((self.tell.__doc__ or "").split()), **self.beginning})
        self.tell(teller)
        return teller.story


def story(
    *, client_id: str = "alice", device_id: str = "phone", jitter: Sequence[float] = (1,), record: Members | None = None
) -> Callable[[Tell], Tell]:
    """What a function tells is a story; its docstring is the name."""

    def add(tell: Tell) -> Tell:
        beginning = {"client_id": client_id, "device_id": device_id, "jitter": list(jitter), "record": record}
        STORIES.append(Story(tell.__name__.replace("_", "-"), tell, beginning))
        return tell

    return add


class Teller:
    """Tells a story step by step: whatever happens is played, and what followed is written down.

    `ask`: whether it is asked then what is to be done. A task is named by its number, or by its kind: then it is the
    one of that kind that was begun last.
    """

    def __init__(self, beginning: Members) -> None:
        self.story: Members = {**beginning, "steps": []}
        self._now_s = 1000.0
        self._replay = Replay(beginning)
        self._begun: dict[str, list[int]] = {}

    def step(self, event: Members, *, ask: bool = True) -> None:
        self._replay.play(self._now_s, event)
        seen = self._replay.seen(asked=ask)
        self.story["steps"].append({"at_s": short(self._now_s), "event": event, **seen})
        for action in seen.get("actions", ()):
            if "n" in action:
                self._begun.setdefault(action["kind"], []).append(action["n"])

    def repeat(self, first: int, last: int, *steps: Members) -> None:
        """These steps for each number."""
        timed = [{"at_s": short(self._now_s), **step} for step in steps]
        self._replay.repeat(first, last, timed)
        self.story["steps"].append({"for": [first, last], "steps": timed})

    def tasks(self, kind: str) -> list[int]:
        """The numbers of all tasks of that kind, in their order."""
        return self._begun[kind]

    def pass_time(self, seconds: float) -> None:
        """What is told next happens so much later."""
        self._now_s += seconds

    # --- To the phone

    def wait(self, seconds: float = 0) -> None:
        """Nothing happens for so long."""
        self.pass_time(seconds)
        self.step({"do": "wait"})

    def foreground(self, active: bool = True, *, ask: bool = True) -> None:
        self.step({"do": "foreground", "active": active}, ask=ask)

    def network(self, online: bool = True) -> None:
        self.step({"do": "network", "online": online})

    def push(self, packet: str | None = None, *, ask: bool = True) -> None:
        self.step({"do": "push", "packet": packet}, ask=ask)

    def restart(self, client_id: str | None = "alice", device_id: str | None = "phone") -> None:
        self.step({"do": "restart", "client_id": client_id, "device_id": device_id})

    # --- To its user

    def send(self, key: str, recipient_id: str = "bob", *, ask: bool = True) -> None:
        delivery = {"source": f"/videos/{key}", "size": 9, "content_type": "video/mp4", "sha256": "5a"}
        self.step({"do": "send", "key": key, "recipient_id": recipient_id, "delivery": delivery}, ask=ask)

    def delete(self, key: str, *, ask: bool = True) -> None:
        self.step({"do": "delete", "key": key}, ask=ask)

    def viewed(self, video_id: str, *, ask: bool = True) -> None:
        self.step({"do": "viewed", "video_id": video_id}, ask=ask)

    def register(self, token: str) -> None:
        self.step({"do": "register", "registration": {"platform": "fcm", "token": token, "environment": "production"}})

    def log_out(self, token: str = "the-token", *, ends_account: bool = False, ask: bool = True) -> None:
        self.step({"do": "log_out", "token": token, "ends_account": ends_account}, ask=ask)

    def told(self, change: Members | None = None) -> None:
        """The app has taken in a change: the one that it was to be told next, where none is named."""
        self.step({"do": "told", "change": change or self.untold})

    @property
    def untold(self) -> Members:
        """What the app is to be told next."""
        found: Members = next(step["untold"] for step in reversed(self.story["steps"]) if "untold" in step)
        return found

    # --- To its tasks

    def opened(self, task: str | int = "connect", *, ask: bool = True) -> None:
        self.step({"do": "opened", "task": self._number(task)}, ask=ask)

    def came(self, packet: str, task: str | int = "connect", *, ask: bool = True) -> None:
        self.step({"do": "came", "task": self._number(task), "packet": packet}, ask=ask)

    def closed(self, code: int, reason: str = "", *, task: str | int = "connect", logged_out: bool = False) -> None:
        self.step(
            {"do": "closed", "task": self._number(task), "code": code, "reason": reason, "logged_out": logged_out}
        )

    def answered(self, task: str | int, answer: str | None = None, *, ask: bool = True) -> None:
        self.step({"do": "answered", "task": self._number(task), "answer": answer}, ask=ask)

    def registered(self, task: str | int = "register") -> None:
        self.step({"do": "registered", "task": self._number(task), "answered_s": 1763914800.5})

    def failed(self, task: str | int | list[int], error: Members = LOST) -> None:
        tasks = task if isinstance(task, list) else [self._number(task)]
        self.step({"do": "failed", "tasks": tasks, "error": error})

    def _number(self, task: str | int) -> int:
        return task if isinstance(task, int) else self._begun[task][-1]

    # --- What stories often begin with

    def synced(self, version: int = 10) -> None:
        """It has asked the gateway, which had nothing."""
        self.wait()
        self.answered("sync", synced(packet(version)))

    def connected(self, version: int = 10) -> None:
        """In the foreground it holds a socket, over which a packet came."""
        self.foreground()
        self.reconnected(version)

    def reconnected(self, version: int = 10) -> None:
        """The socket that it was opening is open, and a packet came."""
        self.opened(ask=False)
        self.came(packet(version))

    def uploading(self, key: str = "key", video_id: str = "video-1") -> None:
        """The bytes of a video are on their way."""
        self.send(key)
        self.answered("announce", announced(video_id))


# --- What the gateway says


def packet(version: int, *entries: Members, client_id: str = "alice") -> str:
    """An info packet with these entries."""
    return _text(
        {
            "type": "info",
            "client_id": client_id,
            "version": version,
            "outgoing": [entry for entry in entries if "recipient_id" in entry],
            "incoming": [entry for entry in entries if "sender_id" in entry],
        }
    )


def numbered(*entries: Members) -> str:
    """An info packet with these entries, for steps that are repeated; its version is their number."""
    return packet(0, *entries).replace('"version":0', '"version":{n}')


def out(video_id: str, status: str = "uploaded", *, recipient_id: str = "bob", at: int = 5) -> Members:
    """A video that was sent, as a packet lists it."""
    return {"video_id": video_id, "recipient_id": recipient_id, "status": status, "at": at}


def came(video_id: str, status: str = "uploaded", *, sender_id: str = "carol", at: int = 5) -> Members:
    """A video that was received, as a packet lists it."""
    return {
        "video_id": video_id,
        "sender_id": sender_id,
        "status": status,
        "url": f"/v1/videos/{video_id}/content",
        "size": 9,
        "content_type": "video/mp4",
        "at": at,
    }


def synced(newest: str, *results: str) -> str:
    """The answer to a sync."""
    return f'{{"results":[{",".join(results)}],"packet":{newest}}}'


def result(version: int = 12, outcome: str = "applied", reason: str | None = None) -> str:
    """The answer to a status or a deletion."""
    return _text({"result": outcome, **({"reason": reason} if reason else {}), "version": version})


def refusal(code: str) -> str:
    """What stands in a sync for a status that failed."""
    return _text({"result": "failed", "code": code, "detail": "so it is"})


def announced(video_id: str = "video-1") -> str:
    """The answer to an announcement."""
    headers = {"content-type": "video/mp4"}
    upload = {"method": "PUT", "url": f"https://store.test/{video_id}", "headers": headers, "expires_at": 99}
    return _text({"video_id": video_id, "upload": upload})


def error(status: int | None, code: str | None = None, retry_after_s: float | None = None) -> Members:
    """A call that failed."""
    return {"kind": "gateway", "status": status, "code": code, "retry_after_s": retry_after_s}


def upload_error(status: int | None, code: str | None = None) -> Members:
    """An upload that failed."""
    return {**error(status, code), "kind": "upload"}


def download_error(status: int | None, code: str | None = None) -> Members:
    """A download that failed."""
    return {**error(status, code), "kind": "download"}


def _text(members: Members) -> str:
    return orjson.dumps(members).decode()


# --- What is remembered


def record(version: int = 10, client_id: str = "alice", **members: object) -> Members:
    """A record as it was stored."""
    return {
        "format": 1,
        "client_id": client_id,
        "device_id": "phone",
        "version": version,
        "sent": [],
        "received": [],
        "deletions": {},
        "registration": None,
        "farewells": [],
        "logged_out": False,
        **as_json(members),
    }


def received(video_id: str, *, here: bool = True, viewed: bool = False) -> Members:
    """A video that has come, and that the app was told of."""
    return {
        "video_id": video_id,
        "sender_id": "carol",
        "size": 9,
        "content_type": "video/mp4",
        "at": 5,
        "here": here,
        "viewed": viewed,
        "known": "uploaded",
        "known_at": 0,
        "listed": True,
        "told": "ready" if here else "arrived",
    }


def some_received(count: int) -> Members:
    """A record with so many videos whose bytes are here, which the gateway has not been told."""
    return record(received=[received(f"video-{number}") for number in range(1, count + 1)])


def farewell(token: str, client_id: str = "alice") -> Members:
    """A log-out that is still to be said."""
    members = {"client_id": client_id, "device_id": "phone", "token": token, "ends_account": False}
    return {**members, "reports": [], "deletions": []}


# --- In the background


@story()
def a_start(s: Teller) -> None:
    """A start in the background is one sync, and nothing else."""
    s.wait()
    s.wait(100)
    s.answered("sync", synced(packet(10)))
    s.wait(1000)


@story(record=record(received=[received("video-1"), received("video-2", viewed=True), received("video-3", here=False)]))
def unsaid_at_the_start(s: Teller) -> None:
    """What is unsaid at the start goes with the first sync, and what is not yet here is fetched."""
    s.wait()
    s.answered(
        "sync", synced(packet(12, came("video-1", "downloaded"), came("video-3")), result(11), result(12, "duplicate"))
    )


@story()
def a_push_without_a_packet(s: Teller) -> None:
    """A push without a packet is a sync with the version that the device has."""
    s.synced()
    s.push()
    s.answered("sync", synced(packet(11, came("video-1"))))


@story()
def a_push_with_a_packet(s: Teller) -> None:
    """A push with a packet is a sync with the version that the device then has."""
    s.synced()
    s.push(packet(11, came("video-1")))


@story()
def a_push_during_a_sync(s: Teller) -> None:
    """A push while a sync is under way is another sync after it."""
    s.wait()
    s.push(packet(8))
    s.answered("sync", synced(packet(9)))


@story()
def packets_that_do_not_count(s: Teller) -> None:
    """A packet that is older than the one that was applied, or of another client, is dropped; its push is not."""
    s.synced()
    s.push(packet(9, came("video-1")))
    s.answered("sync", synced(packet(10)))
    s.push(packet(99, came("video-1"), client_id="bob"))
    s.answered("sync", synced(packet(10, came("video-2"))))


@story(jitter=[1, 0.5, 0.25])
def a_sync_that_fails(s: Teller) -> None:
    """A sync that fails is repeated, after pauses of full jitter that double up to a minute."""
    s.wait()
    for wait_s in (0.5, 0.5, 0.5, 4, 4, 4, 32, 30, 15, 60, 30, 15):
        s.failed("sync")
        s.wait(wait_s - 0.125)
        s.wait(0.125)
    s.answered("sync", synced(packet(10)))
    s.push()
    s.failed("sync")


@story()
def an_answer_ends_the_row_of_failures(s: Teller) -> None:
    """A failure after a success waits as short as the first one did."""
    s.connected()
    s.send("key")
    for wait_s in (0.5, 1):
        s.failed("announce")
        s.wait(wait_s)
    s.answered("announce", announced())
    s.failed("put", upload_error(503))


@story()
def what_the_gateway_asks_for(s: Teller) -> None:
    """How long the gateway asks to wait is waited, and the jitter besides, whatever the phone does meanwhile."""
    s.wait()
    s.failed("sync", error(503, "unavailable", 30))
    s.push()
    s.network()
    s.wait(29)
    s.wait(1.5)
    s.failed("sync", error(429, "rate_limited", 7.5))
    s.foreground()
    s.wait(7.5)


@story()
def what_need_not_wait(s: Teller) -> None:
    """Whatever waits after a failure is tried at once when a push comes, the network is back or the app is opened."""
    s.wait()
    for _ in range(7):
        s.failed("sync")
        s.wait(60)
    s.failed("sync")
    s.push()
    s.failed("sync")
    s.network()
    s.failed("sync")
    s.foreground()
    s.wait(2)
    s.failed("sync", error(401, "unauthorized"))


@story()
def a_thousand_failures(s: Teller) -> None:
    """Of the things that failed a thousand are remembered; the oldest beyond that are tried again without a pause."""
    s.connected(1)
    download = {"n": "{n}", "kind": "download", "video_id": "v{n}"}
    acknowledge = {"kind": "acknowledge", "version": "{n}"}
    s.repeat(
        2,
        1002,
        {"event": {"do": "came", "task": 1, "packet": numbered(came("v{n}"))}, "actions": [download, acknowledge]},
        {"event": {"do": "failed", "tasks": ["{n}"], "error": LOST}},
    )
    s.came(packet(2000, came("v2"), came("v3")))


# --- The socket


@story()
def the_foreground(s: Teller) -> None:
    """In the foreground a socket is opened, and no call made where that opens in time; what comes is acknowledged."""
    s.foreground()
    s.wait(1.875)
    s.opened()
    s.wait(10)
    s.came(packet(10))


@story()
def a_slow_socket(s: Teller) -> None:
    """A socket that is not open after two seconds holds no sync up; what that brings is acknowledged over it."""
    s.foreground()
    s.wait(1.875)
    s.wait(0.125)
    s.answered("sync", synced(packet(10, came("video-1"))))
    s.opened()
    s.wait(2)


@story(record=record(7))
def a_socket_acknowledges(s: Teller) -> None:
    """A socket says which version is applied, and where there is nothing newer nothing comes."""
    s.foreground()
    s.opened()
    s.wait(100)


@story()
def leaving_the_foreground(s: Teller) -> None:
    """An app that leaves the foreground gives its socket up; being told of the foreground twice is nothing new."""
    s.connected()
    s.foreground()
    s.foreground(active=False)
    s.foreground(active=False)
    s.came(packet(11))
    s.foreground()


@story()
def sockets_that_end(s: Teller) -> None:
    """A socket that ends is opened again, after pauses that double while sockets end at once."""
    s.foreground()
    for code, wait_s in zip(OTHER_CODES, (0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60), strict=True):
        s.reconnected()
        s.pass_time(29.875)
        s.closed(code)
        s.wait(wait_s - 0.125)
        s.wait(0.125)


@story()
def a_steady_socket(s: Teller) -> None:
    """A socket that was open for half a minute ends the row: the next one waits as short as after the first failure."""
    s.foreground()
    for wait_s in (0.5, 1):
        s.reconnected()
        s.closed(1011)
        s.wait(wait_s)
    s.reconnected()
    s.pass_time(30)
    s.closed(1011)
    s.wait(0.5)


@story()
def a_restarting_gateway(s: Teller) -> None:
    """A gateway that restarts is met when it says, and backed off where it does not say."""
    s.connected()
    s.closed(1012, '{"retry_ms":7250}')
    s.push(packet(11, came("video-1")))
    s.wait(7.125)
    s.wait(0.125)
    s.reconnected(11)
    s.closed(1012, '{"retry_ms":-1}')
    s.reconnected(11)
    s.closed(1012, '{"retry_ms":"soon"}')
    s.wait(0.5)


@story()
def what_is_said_while_there_is_no_socket(s: Teller) -> None:
    """A status that is to be said between two sockets is said by a sync."""
    s.connected()
    s.came(packet(11, came("video-1")))
    s.closed(1012, '{"retry_ms":7250}')
    s.answered("download")


@story()
def codes_that_forbid(s: Teller) -> None:
    """After a code that says so no socket is opened until the app comes back; polls are held instead."""
    s.foreground()
    for code in FINAL_CODES:
        s.reconnected()
        s.closed(code)
        s.wait(1000)
        s.foreground(active=False)
        s.wait(1000)
        s.foreground()


@story()
def logged_out_socket(s: Teller) -> None:
    """A socket whose token was refused after a log-out is not opened again; a new network is a reason to try."""
    s.connected()
    s.closed(4401, logged_out=True)
    s.answered("poll")
    s.network()


@story()
def a_refused_handshake(s: Teller) -> None:
    """A handshake that is refused is repeated as the answer says, and a sync asks meanwhile."""
    s.foreground()
    s.failed("connect", error(503, "unavailable", 20))
    s.answered("sync", synced(packet(10)))
    s.wait(20)
    s.wait(0.5)


# --- Held polls


def unreachable(s: Teller, *, called: bool = True) -> None:
    """Three sockets get no answer, while calls go well or do not."""
    s.foreground()
    for _ in range(2):
        s.failed("connect")
        if called:
            s.answered("sync", synced(packet(10)))
        else:
            s.failed("sync")
        s.wait(60)
    s.failed("connect")


@story()
def no_socket_gets_through(s: Teller) -> None:
    """Polls are held where three sockets got no answer and calls did; after five minutes a socket is tried again."""
    unreachable(s)
    s.answered("poll")
    s.answered("poll", packet(11, came("video-1")))
    s.failed("poll")
    s.wait(0.5)
    s.failed("poll", error(401, "unauthorized"))
    s.wait(1)
    s.wait(298.375)
    s.wait(0.125)
    s.opened()
    s.answered("poll")


@story()
def a_poll_in_the_background(s: Teller) -> None:
    """No poll is held in the background, and another network is a reason to try a socket again."""
    unreachable(s)
    s.foreground(active=False)
    s.foreground()
    s.wait(60)


@story()
def another_network_while_polls_are_held(s: Teller) -> None:
    """Another network is a reason to try a socket again, and the poll that is held is given up."""
    unreachable(s)
    s.network()
    s.answered(s.tasks("poll")[0], packet(99))


@story()
def nothing_gets_through(s: Teller) -> None:
    """No poll is held where calls get no answer either."""
    unreachable(s, called=False)
    s.failed("sync")
    s.wait(60)


@story()
def a_call_before_the_sockets_failed(s: Teller) -> None:
    """A call that was answered before the first of the sockets failed does not show that calls get through."""
    s.synced()
    s.pass_time(1)
    s.foreground()
    for _ in range(3):
        s.failed("connect")
        s.wait(60)


@story()
def an_upload_is_no_call(s: Teller) -> None:
    """That the store took an upload does not show that the gateway's calls get through."""
    s.connected()
    s.uploading()
    s.pass_time(1)
    s.closed(1006)
    s.answered("put")
    for _ in range(2):
        s.wait(60)
        s.failed("connect")
        s.failed("sync")
    s.wait(60)


@story()
def refused_by_something_between(s: Teller) -> None:
    """A handshake refused by something on the way counts as one without an answer, and so does a fault of the phone."""
    s.foreground()
    s.failed("connect", error(502))
    s.answered("sync", synced(packet(10)))
    for failure in (error(403), LOCAL):
        s.wait(60)
        s.failed("connect", failure)
        s.failed("sync")


@story()
def after_a_while_of_polls(s: Teller) -> None:
    """After a while of polls it takes three sockets again until polls are held."""
    unreachable(s)
    s.wait(300)
    for _ in range(2):
        s.failed("connect")
        s.answered("sync", synced(packet(10)))
        s.wait(60)
    s.failed("connect")


@story()
def sockets_that_the_gateway_refuses(s: Teller) -> None:
    """No poll is held where the gateway itself refuses the sockets, however often."""
    s.foreground()
    for number in range(4):
        s.failed("connect", error(503, "unavailable") if number != 2 else LOST)
        s.answered("sync", synced(packet(10)))
        s.wait(60)


@story()
def sockets_that_are_cut_at_once(s: Teller) -> None:
    """A socket that is cut at once every time counts as one without an answer; one that was steady, or closed with a
    code, begins the count anew."""
    s.foreground()
    for held_s, code in ((0, 1006), (0, 1006), (30, 1006), (0, 1006), (0, 1006), (0, 1011), (0, 1006), (0, 1006)):
        s.opened(ask=False)
        s.pass_time(held_s)
        s.closed(code)
        s.register("push-token")
        s.registered()
        s.wait(60)
    s.opened(ask=False)
    s.closed(1006)


# --- What is said, and how


@story(record=some_received(16))
def a_few_statuses(s: Teller) -> None:
    """Sixteen statuses go by the socket, each once."""
    s.foreground()
    s.opened()
    s.answered(s.tasks("tell")[0], result(11))
    s.came(packet(10, *(came(f"video-{number}") for number in range(1, 17))))


@story(record=some_received(17))
def many_statuses(s: Teller) -> None:
    """Seventeen statuses are one sync, even with a socket."""
    s.foreground()
    s.opened()


@story()
def very_many_statuses(s: Teller) -> None:
    """A sync has 256 statuses at most, and the rest follow."""
    s.wait()
    s.repeat(
        1,
        257,
        {"event": {"do": "push", "packet": numbered(came("v{n}"))}},
        {"event": {"do": "viewed", "video_id": "v{n}"}},
    )
    s.answered("sync", synced(packet(1)))
    s.answered("sync", synced(packet(300), *[result(300)] * 256))
    s.answered("sync", synced(packet(300), result(300)))


@story(record=some_received(1))
def a_status_over_a_socket_that_ended(s: Teller) -> None:
    """A status that was told over a socket that ended is said again, over the next one if that opens in time."""
    s.foreground()
    s.opened()
    s.closed(1006)
    s.failed("tell")
    s.wait(0.5)
    s.opened()


@story(record=some_received(1))
def a_later_status(s: Teller) -> None:
    """A later status over the socket waits for the answer to the one before."""
    s.foreground()
    s.opened()
    s.viewed("video-1")
    s.answered("tell", result(11))
    s.answered("tell", result(12))
    s.came(packet(12))


@story(record=some_received(1))
def a_status_while_a_sync_has_it(s: Teller) -> None:
    """A status that is on its way in a sync is not said over the socket that opens meanwhile; a later one is."""
    s.foreground()
    s.wait(2)
    s.opened()
    s.viewed("video-1")
    s.answered("sync", synced(packet(11, came("video-1", "downloaded")), result(11)))
    s.answered("tell", result(12))


@story(record=some_received(1))
def answers_that_overtake_each_other(s: Teller) -> None:
    """The answer to an earlier status that comes after the answer to a later one takes nothing back."""
    s.foreground()
    s.wait(2)
    s.opened()
    s.viewed("video-1")
    s.answered("tell", result(12))
    s.answered("sync", synced(packet(10, came("video-1")), result(11)))
    s.came(packet(12))


@story(record=some_received(2))
def a_status_that_fails_in_a_sync(s: Teller) -> None:
    """A status that fails in a sync waits by itself; the others are done."""
    s.wait()
    listed = (came("video-1"), came("video-2", "downloaded"))
    s.answered("sync", synced(packet(11, *listed), refusal("unavailable"), result(11)))
    s.wait(0.5)
    s.answered("sync", synced(packet(11, *listed), refusal("unauthorized")))
    s.wait(1)
    listed = (came("video-1", "downloaded"), came("video-2", "downloaded"))
    s.answered("sync", synced(packet(12, *listed), result(12)))
    s.viewed("video-1")
    s.answered("sync", synced(packet(12, *listed), refusal("rate_limited")))


@story(record=some_received(2))
def a_status_that_is_refused(s: Teller) -> None:
    """A status that is refused is done, whatever packets list from then on, and so is one with a code that is new."""
    s.wait()
    s.answered("sync", synced(packet(11, came("video-1"), came("video-2")), refusal("invalid"), refusal("brand_new")))
    s.push(packet(12, came("video-1"), came("video-2")))
    s.wait(60)
    s.viewed("video-1")
    s.answered("sync", synced(packet(12, came("video-1"))))
    s.answered("sync", synced(packet(13, came("video-1")), result(13)))


@story(record=some_received(1))
def a_status_that_is_refused_over_the_socket(s: Teller) -> None:
    """A status that is refused over the socket is done."""
    s.foreground()
    s.opened()
    s.failed("tell", error(422, "invalid"))
    s.wait(60)


@story(record=some_received(1))
def an_answer_that_packets_are_behind(s: Teller) -> None:
    """Where a packet is from before the answer to a status, the answer counts; from then on the packet does."""
    s.foreground()
    s.opened()
    s.answered("tell", result(13))
    s.came(packet(12, came("video-1")))
    s.came(packet(13, came("video-1")))


@story(record=some_received(1))
def a_status_that_went_back(s: Teller) -> None:
    """A status that a packet lists as if it had never been said is said again."""
    s.wait()
    s.answered("sync", synced(packet(11, came("video-1", "downloaded")), result(11)))
    s.push(packet(12, came("video-1")))


# --- Acknowledgements


@story()
def acknowledgements_over_the_socket(s: Teller) -> None:
    """A packet that came over the socket is acknowledged over it once, and of two the newer."""
    s.connected()
    s.came(packet(11, came("video-1")))
    s.came(packet(11, came("video-1")))
    s.came(packet(10))
    s.came(packet(12, came("video-1")), ask=False)
    s.came(packet(13, came("video-1")))


@story()
def acknowledged_by_the_next_call(s: Teller) -> None:
    """News that came by a call is acknowledged by the next call, if that comes within two seconds."""
    s.synced()
    s.push()
    s.answered("sync", synced(packet(11, came("video-1"))))
    s.pass_time(1)
    s.answered("download")
    s.answered("sync", synced(packet(12, came("video-1", "downloaded")), result(12)))
    s.wait(60)


@story()
def acknowledged_by_a_poll(s: Teller) -> None:
    """News that came by a call is acknowledged by a poll that is not held, where no call follows for two seconds."""
    s.synced()
    s.push()
    s.answered("sync", synced(packet(11, came("video-1"))))
    s.wait(1.875)
    s.wait(0.125)
    s.wait(1)
    s.answered("poll")
    s.wait(60)


@story()
def two_packets_with_news(s: Teller) -> None:
    """Two packets with news are acknowledged together, two seconds after the first."""
    s.synced()
    s.push()
    s.answered("sync", synced(packet(11, came("video-1"))))
    s.pass_time(1)
    s.push(packet(12, came("video-1"), came("video-2")), ask=False)
    s.wait(0.875)
    s.wait(0.125)
    s.answered("poll")
    s.answered("sync", synced(packet(12, came("video-1"), came("video-2"))))


@story()
def acknowledged_by_an_older_call(s: Teller) -> None:
    """A call that began before the news came does not acknowledge it."""
    s.wait()
    s.push(packet(11, came("video-1")))
    s.answered("sync", synced(packet(10)))
    s.failed("sync")
    s.wait(2)


@story()
def no_news(s: Teller) -> None:
    """What is no news needs no acknowledgement of its own: statuses of sent videos, and videos that are known."""
    s.synced()
    for number, entries in enumerate(([], [came("video-1", "downloaded")], [out("video-2", "notified")])):
        s.push()
        s.answered("sync", synced(packet(11 + number, *entries)))
        s.wait(60)
    s.push(packet(13, out("video-2", "notified"), came("video-3")))
    s.answered("sync", synced(packet(13)))


@story(record=some_received(2))
def a_packet_that_does_not_come(s: Teller) -> None:
    """A packet that an answer spoke of, and that has not come after five seconds, is asked for."""
    s.foreground()
    s.opened()
    s.answered(s.tasks("tell")[0], result(11))
    s.pass_time(1)
    s.answered(s.tasks("tell")[1], result(12))
    s.wait(3.875)
    s.came(packet(11, came("video-1", "downloaded"), came("video-2")))
    s.wait(0.125)


@story(record=some_received(1))
def a_packet_that_comes(s: Teller) -> None:
    """A packet that an answer spoke of, and that comes, is enough; one that had come before, too."""
    s.foreground()
    s.opened()
    s.came(packet(11, came("video-1", "downloaded")))
    s.answered("tell", result(11))
    s.viewed("video-1")
    s.answered("tell", result(12))
    s.came(packet(12))
    s.wait(60)


@story()
def a_deletion_that_packets_do_not_show(s: Teller) -> None:
    """The packet that the answer to a deletion spoke of is asked for, if it does not come."""
    s.connected()
    s.came(packet(11, out("video-1")))
    s.delete("video-1")
    s.answered("delete", result(12))
    s.wait(5)
    s.answered("sync", synced(packet(12)))


# --- Uploads


@story()
def an_upload(s: Teller) -> None:
    """A video is announced, uploaded and confirmed, and each step is remembered before it is taken."""
    s.synced()
    s.send("key")
    s.answered("announce", announced())
    s.wait(60)
    s.answered("put")
    s.answered("sync", synced(packet(12, out("video-1")), result(12)))
    s.told()
    for version, status in ((13, "notified"), (14, "downloaded"), (15, "viewed")):
        s.push(packet(version, out("video-1", status, at=version)))
        s.answered("sync", synced(packet(version, out("video-1", status, at=version))))
        s.told()
    s.push(packet(16))


@story()
def an_upload_over_the_socket(s: Teller) -> None:
    """With a socket the confirmation is a frame; its answer shows the video as uploaded, before a packet comes."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.answered("tell", result(12))
    s.came(packet(11))
    s.came(packet(12, out("video-1", "notified")))


@story()
def one_recipient(s: Teller) -> None:
    """Videos to one recipient go one after the other, in the order in which they were sent."""
    s.synced()
    for key in ("first", "second"):
        s.send(key)
    s.answered("announce", announced("video-1"))
    s.answered("put")
    s.answered("sync", synced(packet(12, out("video-1")), result(12)))
    s.answered("announce", announced("video-2"))
    s.answered("put")
    s.answered("sync", synced(packet(13, out("video-2")), result(13)))


@story()
def several_recipients(s: Teller) -> None:
    """Videos to several recipients go two at a time; one that is refused makes room."""
    s.synced()
    for number in range(1, 5):
        s.send(f"key-{number}", f"recipient-{number}")
    s.answered(s.tasks("announce")[0], announced("video-1"))
    s.answered("put")
    s.failed(s.tasks("announce")[1], error(413, "too_large"))


@story()
def a_video_that_waits(s: Teller) -> None:
    """A video that waits after a failure holds up the next one to its recipient, and nobody else's."""
    s.synced()
    s.send("first", ask=False)
    s.send("second", ask=False)
    s.send("to-carol", "carol")
    s.failed(s.tasks("announce")[0])
    s.wait(0.5)


@story()
def an_upload_without_an_answer(s: Teller) -> None:
    """An upload without an answer is confirmed first, and sent again only where nothing is stored; where it is then
    announced anew, the old id is deleted."""
    s.synced()
    s.uploading()
    s.failed("put", upload_error(None))
    s.answered("sync", synced(packet(10), refusal("not_stored")))
    s.wait(0.5)
    s.failed("put", upload_error(403))
    s.wait(1)
    s.answered("delete", result(10, "duplicate"))
    s.answered("announce", announced("video-2"))


@story()
def an_upload_that_arrived_all_the_same(s: Teller) -> None:
    """An upload without an answer that had arrived is confirmed, and not sent again."""
    s.synced()
    s.uploading()
    s.failed("put", upload_error(None))
    s.answered("sync", synced(packet(11, out("video-1")), result(11, "duplicate")))


@story()
def nothing_stored_over_the_socket(s: Teller) -> None:
    """Nothing stored is heard over the socket, too."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.failed("tell", error(409, "not_stored"))


@story()
def a_dead_url(s: Teller) -> None:
    """An upload whose URL is dead is announced anew, and its old id is not deleted: nothing can have arrived."""
    s.synced()
    s.uploading()
    s.failed("put", upload_error(409))
    s.wait(0.5)
    s.failed("put", upload_error(429, "rate_limited"))
    s.wait(1)
    s.failed("put", upload_error(403, "forbidden"))
    s.wait(2)
    s.answered("announce", announced("video-2"))


@story()
def an_upload_that_may_have_arrived(s: Teller) -> None:
    """After 408 and 5xx an upload may have arrived: it is sent again, and announced anew its old id is deleted."""
    s.synced()
    for number, status in enumerate((408, 500, 504), 1):
        s.uploading(f"key-{number}", f"video-{number}")
        s.failed("put", upload_error(status))
        s.wait(60)
        s.failed("put", upload_error(412))
        s.wait(60)
        s.failed("put", upload_error(403))
        s.answered("delete", result(10, "duplicate"))
        s.delete(f"key-{number}")


@story()
def a_refused_announcement(s: Teller) -> None:
    """A refused announcement fails the video with its code; one that fails otherwise is repeated."""
    s.synced()
    s.send("key")
    s.failed("announce", error(429, "rate_limited"))
    s.wait(0.5)
    s.failed("announce", error(401, "unauthorized"))
    s.wait(1)
    s.failed("announce", error(400))
    s.wait(2)
    s.failed("announce", error(409, "too_many_in_transit"))
    s.told()
    s.send("next")


@story()
def a_file_that_cannot_be_read(s: Teller) -> None:
    """A file that cannot be read fails the video, and whatever the gateway may have of it is deleted."""
    s.synced()
    s.uploading()
    s.failed("put", LOCAL)
    s.answered("delete", result(10, "duplicate"))
    s.told()


@story()
def a_refused_confirmation(s: Teller) -> None:
    """A refused confirmation fails the video with its code, and its bytes are deleted."""
    s.synced()
    s.uploading()
    s.answered("put")
    s.answered("sync", synced(packet(10), refusal("too_many_in_transit")))
    s.answered("delete", result(11))


@story()
def a_superseded_upload(s: Teller) -> None:
    """A video that was replaced before it was confirmed has failed, and is remembered until no packet lists it."""
    s.synced()
    s.uploading()
    s.answered("put")
    s.answered("sync", synced(packet(12, out("video-2")), result(13, "ignored", "superseded")))
    s.told()
    s.told()
    s.push(packet(13, out("video-2")))


@story()
def a_confirmation_of_what_was_listed(s: Teller) -> None:
    """A video that a packet listed before its confirmation was ignored was sent, and is complete."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.came(packet(11, out("video-1")))
    s.answered("tell", result(12, "ignored", "expired"))
    s.came(packet(12))
    s.told()


@story()
def an_answer_after_the_end(s: Teller) -> None:
    """The answer to the confirmation of a video that has ended meanwhile changes nothing."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.came(packet(12, out("video-1", "viewed")))
    s.answered("tell", result(12))
    s.told()
    s.came(packet(13))


@story()
def a_refusal_after_the_end(s: Teller) -> None:
    """The refusal of the confirmation of a video that has ended meanwhile changes nothing."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.came(packet(12, out("video-1", "viewed")))
    s.failed("tell", error(422, "invalid"))


@story()
def an_upload_that_is_listed_meanwhile(s: Teller) -> None:
    """An upload that a packet lists meanwhile is given up; what becomes of it then does not matter."""
    s.synced()
    s.uploading()
    s.push(packet(11, out("video-1")))
    s.failed("put", LOCAL)
    s.answered("sync", synced(packet(11, out("video-1"))))


@story()
def a_restart_during_an_upload(s: Teller) -> None:
    """A video whose upload was cut off by a restart is confirmed first."""
    s.synced()
    s.uploading()
    s.restart()
    s.answered("sync", synced(packet(10), refusal("not_stored")))
    s.wait(60)


# --- What is shown of sent videos


@story()
def silence(s: Teller) -> None:
    """A sent video that a packet does not list is complete only from the version on that its confirmation was answered
    with."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.answered("tell", result(13))
    s.told()
    s.came(packet(11))
    s.came(packet(12))
    s.came(packet(13))
    s.told()


@story()
def silence_before_the_answer(s: Teller) -> None:
    """A sent video is complete at once where its confirmation is answered with a version that was applied by then."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.came(packet(13))
    s.answered("tell", result(12))


@story()
def silence_after_a_list_and_an_answer(s: Teller) -> None:
    """Of the version after a packet that listed a video and the one that its confirmation was answered with, the lower
    one counts."""
    s.connected()
    s.uploading()
    s.answered("put")
    s.came(packet(11, out("video-1")))
    s.answered("tell", result(13))
    s.came(packet(12))


@story()
def silence_after_it_was_listed(s: Teller) -> None:
    """A sent video is complete once a packet does not list it that is newer than one which did."""
    s.connected()
    s.came(packet(11, out("video-1"), out("video-2", recipient_id="carol")))
    s.came(packet(11, out("video-1")))
    s.came(packet(12, out("video-1", "expired")))
    s.told()
    s.told()
    s.came(packet(13))


@story()
def of_another_device(s: Teller) -> None:
    """A video that another device of the client sent is shown by its id, and its end once; then it is forgotten."""
    s.synced()
    s.push(packet(11, out("video-1", "notified", at=7)))
    s.told()
    s.push(packet(12))
    s.told()


@story()
def statuses_move_forward(s: Teller) -> None:
    """What is shown only moves forward, and steps may be skipped: of several changes the app is told the newest."""
    s.synced()
    s.push(packet(11, out("video-1", "downloaded", at=9)))
    held = s.untold
    s.push(packet(12, out("video-1", "notified", at=7)))
    s.push(packet(13, out("video-1", "viewed", at=8)))
    s.told(held)
    s.told()
    s.push(packet(14, out("video-1", "expired", at=99)))


@story()
def a_thousand_untold(s: Teller) -> None:
    """Of sent videos that have ended a thousand wait to be told of; the oldest beyond that are forgotten."""
    entries = (out(f"v{{n}}-{number}", "viewed") for number in range(1, 101))
    s.repeat(1, 12, {"event": {"do": "push", "packet": numbered(*entries)}})
    s.wait()
    s.log_out()


# --- Deletions


@story()
def a_deletion(s: Teller) -> None:
    """A deleted video is given up and shown no more, and its deletion is said until it is answered; packets from before
    that are behind."""
    s.synced()
    s.uploading()
    s.delete("key")
    s.failed("delete")
    s.push(packet(11, out("video-1")))
    s.wait(0.5)
    s.answered("delete", result(13))
    s.push(packet(12, out("video-1")))
    s.push(packet(13))
    s.delete("key")


@story()
def deletions_that_need_not_be_said(s: Teller) -> None:
    """What was never announced, has failed or is complete is deleted without a word; what was viewed is not."""
    s.synced()
    s.push(packet(11, out("video-1"), out("video-2", "viewed", recipient_id="carol")))
    s.delete("video-2")
    s.push(packet(12))
    s.delete("video-1")
    s.send("key")
    s.delete("key")
    s.answered("announce", announced("video-3"))
    s.uploading("refused", "video-4")
    s.failed("put", LOCAL)
    s.answered("delete", result(12, "duplicate"))
    s.delete("refused")


@story()
def a_refused_deletion(s: Teller) -> None:
    """A deletion that is refused is done, and the packet that was applied is enough."""
    s.synced()
    s.push(packet(11, out("video-1")))
    s.delete("video-1")
    s.failed("delete", error(401, "unauthorized"))
    s.wait(0.5)
    s.failed("delete", error(422, "invalid"))


# --- Downloads


@story()
def downloads(s: Teller) -> None:
    """Videos are fetched two at a time, in the order in which they came."""
    s.synced()
    s.push(packet(11, *(came(f"video-{number}") for number in range(1, 5))))
    s.answered(s.tasks("download")[0])
    s.answered(s.tasks("download")[1])


@story()
def a_refused_download(s: Teller) -> None:
    """A download that answers 403 or 404 asks the gateway first, and is tried again only where it is still listed."""
    s.synced()
    s.push(packet(11, came("video-1"), came("video-2")))
    s.answered("sync", synced(packet(11, came("video-1"), came("video-2"))))
    one, two = s.tasks("download")
    s.failed(one, download_error(403))
    s.failed(two, download_error(404, "not_tracked"))
    s.wait(60)
    s.answered("sync", synced(packet(12, came("video-2"))))
    s.answered("sync", synced(packet(12, came("video-2"))))


@story()
def a_refused_download_and_a_socket(s: Teller) -> None:
    """Where a socket opens that has nothing new, nobody has said what became of a refused download: a sync asks."""
    s.synced()
    s.push(packet(11, came("video-1")))
    s.answered("sync", synced(packet(11, came("video-1"))))
    s.foreground()
    s.failed("download", download_error(403))
    s.opened()
    s.answered("sync", synced(packet(11, came("video-1"))))
    s.wait(0.5)


@story()
def a_download_that_fails(s: Teller) -> None:
    """A download that fails otherwise is repeated, and so is one for which this phone has no room."""
    s.synced()
    s.push(packet(11, came("video-1")))
    s.answered("sync", synced(packet(11, came("video-1"))))
    for wait_s, failure in (
        (0.5, download_error(None)),
        (1, download_error(503)),
        (2, LOCAL),
        (4, download_error(401, "unauthorized")),
        (8, download_error(416, "invalid")),
    ):
        s.failed("download", failure)
        s.wait(wait_s)


@story()
def a_download_that_is_listed_no_more(s: Teller) -> None:
    """A download that is listed no more is given up, and the app is told that it is gone, if it was told of it."""
    s.synced()
    s.push(packet(11, came("video-1"), came("video-2")))
    s.told()
    s.push(packet(12))
    s.answered(s.tasks("download")[0])
    s.told()


@story()
def a_download_that_ends_as_it_went_away(s: Teller) -> None:
    """A video whose bytes came as it went away is ready until its user has seen it, and nothing is said of it."""
    s.synced()
    s.push(packet(11, came("video-1")))
    s.told()
    s.push(packet(12), ask=False)
    s.answered("sync", synced(packet(12)), ask=False)
    s.answered("download")
    s.answered("sync", synced(packet(12)))
    s.told()
    s.viewed("video-1")


@story()
def a_received_video(s: Teller) -> None:
    """A received video arrives, is ready, and is shown no more once it was viewed; that is said until answered."""
    s.connected()
    s.came(packet(11, came("video-1")))
    s.told()
    s.answered("download")
    s.told()
    s.answered("tell", result(12))
    s.came(packet(12, came("video-1", "downloaded", at=7)))
    s.viewed("video-1")
    s.came(packet(13))
    s.failed("tell", error(503, "unavailable"))
    s.wait(0.5)
    s.answered("tell", result(13, "ignored", "unknown_video"))
    s.viewed("video-1")


@story()
def viewed_before_it_was_fetched(s: Teller) -> None:
    """A video that was viewed is not fetched, and the app is told nothing of it any more."""
    s.synced()
    s.push(packet(11, came("video-1")), ask=False)
    s.viewed("video-1")
    s.viewed("video-1")
    s.answered("sync", synced(packet(12), result(12)))


@story()
def viewed_on_another_device(s: Teller) -> None:
    """A video that is gone before the app was told of it is never told of, even if its bytes come then."""
    s.synced()
    s.push(packet(11, came("video-1")))
    s.push(packet(12), ask=False)
    s.answered("download")


# --- Registrations


@story()
def a_registration(s: Teller) -> None:
    """A registration is said until it is answered, and then no more."""
    s.synced()
    s.register("push-token")
    s.failed("register")
    s.wait(0.5)
    s.registered()
    s.restart()
    s.register("new")
    s.failed("register")
    s.wait(0.5)
    s.registered()
    s.register("newer")
    s.failed("register")


@story()
def a_new_push_token(s: Teller) -> None:
    """A new push token is said when the one before is answered: two under way could overtake each other."""
    s.synced()
    s.register("old")
    s.register("new")
    s.registered()
    s.registered()
    s.failed(s.tasks("register")[0], error(422, "invalid"))


@story()
def a_refused_registration(s: Teller) -> None:
    """A registration that is refused is dropped; the refusal of an old push token does not drop the new one."""
    s.synced()
    s.register("old")
    s.register("new")
    s.failed("register", error(422, "invalid"))
    s.failed("register", error(422, "invalid"))


# --- Log-out


@story()
def a_log_out(s: Teller) -> None:
    """A log-out gives everything else up, and says what was unsaid with the token that this needs."""
    s.connected()
    s.came(packet(11, came("video-1"), came("video-2"), out("video-3"), out("video-4", recipient_id="dora")))
    s.viewed("video-1", ask=False)
    s.delete("video-3", ask=False)
    s.delete("video-4", ask=False)
    s.uploading()
    s.answered("delete", result(12))
    s.log_out()
    s.push(packet(99))
    s.foreground(active=False)
    s.answered("leave")
    s.restart(None, None)
    s.restart("alice")


@story(record=some_received(1))
def the_end_of_an_account(s: Teller) -> None:
    """The end of an account needs nothing else to be said."""
    s.wait()
    s.push(packet(11, came("video-1"), out("video-2")))
    s.delete("video-2")
    s.log_out(ends_account=True)
    s.failed("leave", error(503, "unavailable", 3))
    s.wait(3.5)
    s.answered("leave")


@story(record=record(farewells=[farewell("one")]))
def a_log_out_before_all_else(s: Teller) -> None:
    """A log-out is said before anything else of the same client."""
    s.foreground()
    s.send("key")
    s.failed("leave")
    s.wait(0.5)
    s.answered("leave")


@story(record=record(farewells=[farewell("one", "bob"), farewell("two", "carol")]))
def log_outs_of_others(s: Teller) -> None:
    """A log-out of another client holds nothing up, and log-outs are said one after the other."""
    s.wait()
    s.failed("leave", error(401, "unauthorized"))
    s.wait(0.5)
    s.failed("leave", error(403, "forbidden"))


@story(client_id="bob", record=some_received(1))
def another_client(s: Teller) -> None:
    """What a device remembers of another client is forgotten, and nothing is said of it."""
    s.wait()
    s.restart("bob", "tablet")
    s.restart(None, None)


# --- The network


@story()
def no_network(s: Teller) -> None:
    """Without a network nothing is begun; when it is back, everything is. A push shows that there is one."""
    s.synced()
    s.network(online=False)
    s.send("key")
    s.wait(1000)
    s.network()
    s.network(online=False)
    s.push()


@story()
def another_network(s: Teller) -> None:
    """Another network is another socket, and nobody wants to hear of the old one any more."""
    s.connected()
    s.network()
    old = s.tasks("connect")[0]
    s.came(packet(99), old)
    s.opened(old)
    s.closed(1006, task=old)
    s.failed(old)
    s.opened()
    s.network(online=False)


# --- What nobody wants to know any more


@story(record=some_received(1))
def answers_after_a_log_out(s: Teller) -> None:
    """Answers that come after a log-out change nothing, whether their tasks were given up by then or not."""
    s.wait()
    s.push(packet(11, came("video-1"), out("video-2")))
    s.delete("video-2")
    s.log_out(ask=False)
    s.answered("delete", result(12))
    s.answered("sync", synced(packet(12, came("video-2")), result(12)))
    s.failed("sync")


@story()
def each_task_ends_once(s: Teller) -> None:
    """Each task ends once: what is said of it afterwards changes nothing, and does not end its successor."""
    s.synced()
    s.failed("sync")
    s.answered("sync", synced(packet(99)))
    s.push()
    s.failed(s.tasks("sync")[0])
    s.register("push-token")
    s.registered()
    s.registered()


@story()
def what_a_deleted_video_leaves_behind(s: Teller) -> None:
    """Answers that come for a video which its user has just deleted change nothing."""
    s.synced()
    s.send("announced", ask=False)
    s.send("refused", "carol")
    s.delete("announced", ask=False)
    s.delete("refused", ask=False)
    s.answered(s.tasks("announce")[0], announced(), ask=False)
    s.failed(s.tasks("announce")[1], error(413, "too_large"))
    s.uploading("put", "video-2")
    s.delete("put", ask=False)
    s.failed("put", LOCAL)
    for number, answer in enumerate((result(12), refusal("invalid"), refusal("not_stored")), 3):
        s.uploading(f"key-{number}", f"video-{number}")
        s.answered("put")
        s.delete(f"key-{number}", ask=False)
        s.answered("sync", synced(packet(12), answer))


@story(record=some_received(2))
def what_a_viewed_video_leaves_behind(s: Teller) -> None:
    """Answers that come late for videos which were viewed and are gone change nothing."""
    s.foreground()
    s.wait(2)
    s.opened()
    s.viewed("video-1")
    s.viewed("video-2")
    for task in s.tasks("tell"):
        s.answered(task, result(11))
    s.came(packet(12))
    s.answered("sync", synced(packet(12), result(12), refusal("invalid")))


@story()
def what_is_told_too_late(s: Teller) -> None:
    """What the app was told of a video that is gone meanwhile, or whose status has moved on, is told no further."""
    s.synced()
    s.push(packet(11, out("video-1"), came("video-2")), ask=False)
    of_sent = s.untold
    s.told()
    of_received = s.untold
    s.push(packet(12, out("video-1", "viewed")))
    s.told(of_received)
    s.told(of_sent)
    s.answered("download")
    s.delete("video-1", ask=False)
    s.told(of_sent)


@story(record=record(sent=[], deletions={"constructor": {"recipient_id": "toString", "over_at": None}}))
def odd_names(s: Teller) -> None:
    """Names are names, whatever a language calls by them; lists stay in their order, whatever is in them."""
    s.push(packet(11, came("__proto__"), came("10"), came("9"), out("valueOf", recipient_id="__proto__")))
    s.send("__proto__", "constructor")
    s.send("7", "hasOwnProperty")
    s.answered(s.tasks("announce")[0], announced("__proto__"))
    s.delete("__proto__")
    s.delete("valueOf")
    s.restart()


@story()
def an_incoming_video_that_has_expired(s: Teller) -> None:
    """An incoming video is never listed as expired; one that is counts as past everything, and nothing breaks."""
    s.synced()
    s.push(packet(11, came("video-1", "expired")), ask=False)
    s.viewed("video-1")
    s.answered("sync", synced(packet(11, came("video-1", "expired")), result(11)))

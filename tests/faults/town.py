"""Phones that exchange videos through several gateways while something goes wrong, and what must hold at the end.

town = Town(gateways, pairs=6)
async with town.busy("name"):      every pair sends, downloads and views, one video after the other
    ...                            the fault, and its end
    await town.is_live()           packets come over sockets again
                                   at the end everybody has, byte for byte, what a poll answers,
                                   and nothing that was answered was lost, nothing went back
await agree(store, "name")         the documents of every pair agree, as the rules want it
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from gateway.transit import pairs
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, ClientState, decode
from storage.documents import DocumentStore
from storage.objects import SERVED_PATH
from tests.app.program import Program
from tests.running import VIDEO, App, Json, token, until

GONE = (httpx.TransportError, AttributeError)
"""What a call meets at a gateway that has been killed. The second is anyio's, of which httpx is made: it looks at the
socket of a connection that has gone by then."""

STEPS = ("uploaded", "notified", "downloaded", "viewed")
PATIENCE_S = 1.5
"""How long a phone waits for a packet before it polls, as one in the background would."""

INSISTS_S = 60.0
"""How long it repeats a call that is not answered."""


@dataclass
class Phone:
    """A client's one device: a socket that comes back, and calls that are repeated until they are answered."""

    town: "Town"
    client_id: str
    newest: Json = field(default_factory=lambda: {"version": 0, "outgoing": [], "incoming": []})
    text: str = ""
    polled: int = 0
    """How often it had to poll, because no packet came."""
    faults: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> App:
        """One call is made through one gateway, the next through another."""
        http = random.choice(self.town.gateways).http
        return App(http, self.client_id, token(self.client_id))

    # --- What comes

    async def listen(self) -> None:
        """Hold a socket, of whichever gateway, until cancelled."""
        while True:
            app = self.app()
            given: dict[str, Any] = {"additional_headers": {"Authorization": f"Bearer {app.token}"}}
            url = app.socket_url("phone", self.newest["version"] or None)
            with contextlib.suppress(OSError, TimeoutError, WebSocketException, InvalidHandshake):
                async with connect(url, compression=None, proxy=None, open_timeout=3, **given) as socket:
                    async for text in socket:
                        assert isinstance(text, str)
                        packet = orjson.loads(text)
                        if packet["type"] == "info":
                            self.take(packet, text)
                            await socket.send(orjson.dumps({"type": "ack", "version": packet["version"]}).decode())
            await asyncio.sleep(random.uniform(0, 0.2))

    def take(self, packet: Json, text: str) -> None:
        """Apply a packet, unless it is old."""
        before, after = self.newest, packet
        if after["version"] < before["version"]:
            return
        if after["version"] == before["version"] and self.text and text != self.text:
            self.faults.append(f"two packets of one version: {self.text} and {text}")
        for side in ("outgoing", "incoming"):
            known = {entry["video_id"]: entry["status"] for entry in before[side]}
            for entry in after[side]:
                was = known.get(entry["video_id"])
                if was in STEPS and entry["status"] in STEPS and STEPS.index(entry["status"]) < STEPS.index(was):
                    self.faults.append(f"{entry['video_id']} went from {was} back to {entry['status']}")
        self.newest, self.text = packet, text
        self.news.set()

    async def poll(self) -> None:
        answer = await self.insist(lambda app: app.poll(), 200)
        self.take(answer.json(), answer.text)

    async def sees(self, side: str, video_id: str, *statuses: str) -> None:
        """Return when a packet lists the video with one of these statuses."""
        while not any(entry["video_id"] == video_id and entry["status"] in statuses for entry in self.newest[side]):
            self.news.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.news.wait()
            except TimeoutError:
                self.polled += 1
                await self.poll()

    # --- What is asked

    async def insist(self, call: Callable[[App], Awaitable[httpx.Response]], *expected: int) -> httpx.Response:
        """Make a call until it is answered with one of `expected`; 5xx and a broken connection are no answers."""
        async with asyncio.timeout(INSISTS_S):
            while True:
                with contextlib.suppress(*GONE):
                    answer = await call(self.app())
                    if answer.status_code in expected:
                        return answer
                    if answer.status_code < 500:
                        raise AssertionError(f"{self.client_id}: {answer.request.url}: {answer.text}")
                self.town.unanswered += 1
                await asyncio.sleep(random.uniform(0, 0.2))

    async def send(self, recipient_id: str) -> str:
        """A video is on its way when this returns: the gateway has said so."""
        body = {"recipient_id": recipient_id, "size": len(VIDEO), "content_type": "video/mp4"}
        announced = (await self.insist(lambda app: app.call("POST", "/v1/videos", json=body), 201)).json()
        headers = announced["upload"]["headers"]

        async def put(app: App) -> httpx.Response:
            url = httpx.URL(announced["upload"]["url"])
            if url.path.startswith(SERVED_PATH):  # any gateway takes it
                url = url.copy_with(host=app.http.base_url.host, port=app.http.base_url.port)
            return await app.http.put(url, content=VIDEO, headers=headers)

        await self.insist(put, 200, 409, 412)
        video_id: str = announced["video_id"]
        await self.say(video_id, "uploaded", recipient_id)
        return video_id

    async def say(self, video_id: str, status: str, recipient_id: str | None = None) -> None:
        answer = await self.insist(lambda app: app.say(video_id, status, recipient_id), 200)
        if answer.json()["result"] not in {"applied", "duplicate"}:
            self.faults.append(f"{status} of {video_id} was answered {answer.json()}")


@dataclass
class Town:
    """Pairs of phones; `gateways` may be replaced while they are busy."""

    gateways: list[Program]
    pairs: int = 6
    unanswered: int = 0
    """Calls that had to be repeated."""
    viewed: int = 0
    """Videos that went all the way."""
    unready: list[str] = field(default_factory=list)
    phones: list[tuple[Phone, Phone]] = field(default_factory=list)

    @asynccontextmanager
    async def busy(self, name: str) -> AsyncIterator[None]:
        """They go on to the end of the videos that are on their way; then all is checked. At first, each sends a video
        to somebody who is not there: it must still wait at the end."""
        stop = asyncio.Event()
        self.phones = [(Phone(self, f"{name}-{n}-a"), Phone(self, f"{name}-{n}-b")) for n in range(self.pairs)]
        listening = [asyncio.create_task(phone.listen()) for pair in self.phones for phone in pair]
        watching = asyncio.create_task(self._watch())
        absent = [Phone(self, f"{name}-{n}-absent") for n in range(self.pairs)]
        waiting = [await alice.send(phone.client_id) for (alice, _), phone in zip(self.phones, absent, strict=True)]
        working = [asyncio.create_task(self._exchange(*pair, stop)) for pair in self.phones]
        try:
            yield
            stop.set()
            async with asyncio.timeout(INSISTS_S):
                await asyncio.gather(*working)
            await self.settle()
            self.check()
            for phone, video_id in zip(absent, waiting, strict=True):
                await phone.poll()
                assert [entry["video_id"] for entry in phone.newest["incoming"]] == [video_id], "it was lost"
        finally:
            tasks = [watching, *working, *listening]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _exchange(self, alice: Phone, bob: Phone, stop: asyncio.Event) -> None:
        while not stop.is_set():
            video_id = await alice.send(bob.client_id)
            await bob.sees("incoming", video_id, "uploaded")
            await bob.say(video_id, "downloaded")
            await alice.sees("outgoing", video_id, "downloaded", "viewed")
            await bob.say(video_id, "viewed")
            await alice.sees("outgoing", video_id, "viewed")
            self.viewed += 1
            await asyncio.sleep(random.uniform(0.05, 0.15))

    async def _watch(self) -> None:
        """Every gateway wants calls, all the time."""
        while True:
            for gateway in list(self.gateways):
                with contextlib.suppress(*GONE):
                    answer = await gateway.http.get("/readyz")
                    if answer.status_code != 200:
                        self.unready.append(answer.text)
            await asyncio.sleep(0.1)

    async def goes_on(self, videos: int, *, within_s: float = 20) -> None:
        """Return when so many more videos went all the way."""
        before = self.viewed

        async def went() -> bool:
            return self.viewed >= before + videos

        await until(went, f"{videos} more videos go all the way", within_s)

    async def is_live(self, *, within_s: float = 20) -> None:
        """Return when some videos in a row went all the way without anybody having to poll."""
        async with asyncio.timeout(within_s):
            while True:
                before = self.polled
                await self.goes_on(self.pairs)
                if self.polled == before:
                    return

    async def settle(self, *, within_s: float = 20) -> None:
        """Return when every phone has, byte for byte, what a poll answers."""
        for phone in [phone for pair in self.phones for phone in pair]:

            async def has_all(phone: Phone = phone) -> bool:
                answer = await phone.insist(lambda app: app.poll(), 200)
                return answer.text == phone.text

            await until(has_all, f"{phone.client_id} has the newest packet", within_s)

    def check(self) -> None:
        """Nothing that was answered was lost, nothing went back, and everybody wanted calls."""
        assert [fault for pair in self.phones for phone in pair for fault in phone.faults] == []
        assert self.unready == []

    @property
    def polled(self) -> int:
        """How often a phone had to poll, because no packet came."""
        return sum(phone.polled for pair in self.phones for phone in pair)


async def agree(store: DocumentStore, prefix: str) -> int:
    """The two documents of every pair agree, whatever became of the writes; how many pairs there are."""
    states: dict[str, ClientState] = {}
    cursor: str | None = None
    while True:
        page = await store.scan(cursor=cursor)
        for document in page.documents:
            if document.key.startswith(f"client:{prefix}"):
                client_id = document.key.removeprefix("client:")
                states[client_id] = decode(ClientId(client_id), document.body)
        cursor = page.cursor
        if cursor is None:
            break
    found = 0
    for recipient in states.values():
        for sender in states.values():
            if ClientId(recipient.client_id) in sender.outgoing or ClientId(sender.client_id) in recipient.incoming:
                found += 1
                now, policy = 1 << 52, Policy()
                assert pairs.reconcile(recipient, sender, now=now, policy=policy) == recipient
                assert pairs.raised(sender, recipient, now=now, policy=policy) == sender
    return found

"""A device against a real gateway: it goes on after every end, and the app is told everything once."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.client import (
    Change,
    Client,
    Device,
    FileStore,
    MemoryStore,
    Record,
    SentStatus,
    Store,
    StoreInUse,
    Token,
    VideoFolder,
    Watch,
)
from gateway.client import device as device_module
from tests.client.played import VIDEO
from tests.running import App, Running, running_gateway, token, until, within

ALL = ["uploaded", "notified", "downloaded", "viewed"]


class Phone:
    """A phone of one user: what it keeps, and what its app was told. A device is opened on it, again and again."""

    def __init__(self, gw: Running, folder: Path, name: str, *, url: str | None = None) -> None:
        self.gw = gw
        self.url = url or gw.url
        self.client_id = gw.fresh(name)
        self.videos = folder / f"videos of {name}"
        self.store: Callable[[], Store] = lambda: FileStore(folder / f"record of {name}")
        self.bearer: Token = token(self.client_id)
        self.http = gw.http
        self.told: list[Change] = []

    @property
    def app(self) -> App:
        return self.gw.app(self.client_id)

    @asynccontextmanager
    async def open(self, *, foreground: bool = True, watch: Watch | None = None) -> AsyncIterator[Device]:
        """The device, while an app takes in what changes."""
        client = Client(self.url, self.bearer, "phone", self.http, client_id=self.client_id)
        device = Device(
            client,
            self.store(),
            VideoFolder(client, self.videos),
            foreground=foreground,
            watch=watch,
            jitter=lambda: 0.05,
        )
        async with device:
            listening = asyncio.create_task(self._listen(device))
            try:
                yield device
            finally:
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self, device: Device) -> None:
        async for change in device.changes():
            self.told.append(change)

    def of(self, key: str) -> list[str]:
        """What the app was told of one video."""
        return [str(change.status) for change in self.told if change.key == key]

    async def hears(self, status: str, key: str | None = None) -> Change:
        """The change to that status, once it is told."""
        found: list[Change] = []

        async def told() -> bool:
            found.extend(change for change in self.told if change.status == status and key in {None, change.key})
            return bool(found)

        await until(told, f"the app is told {status}: {self.told}")
        return found[0]

    def file_of(self, video_id: str) -> bytes:
        return (self.videos / video_id).read_bytes()


@pytest.fixture
def alice(gw: Running, tmp_path: Path) -> Phone:
    return Phone(gw, tmp_path, "alice")


@pytest.fixture
def bob(gw: Running, tmp_path: Path) -> Phone:
    return Phone(gw, tmp_path, "bob")


async def applied(device: Device, app: App) -> None:
    """Return when the device has applied the newest packet that there is."""

    async def newest() -> bool:
        return device.version == await app.version()

    await until(newest, "the newest packet is applied")


# --- From start to end


async def test_a_video_goes_from_one_device_to_another_and_each_status_is_told_once(
    alice: Phone, bob: Phone, video: Path
) -> None:
    async with alice.open() as sender, bob.open() as recipient:
        key = await sender.send(str(video), bob.client_id)
        ready = await bob.hears("ready")
        await alice.hears("downloaded", key)
        assert bob.file_of(ready.key) == VIDEO
        assert (ready.video_id, ready.peer_id) == (ready.key, alice.client_id)
        assert [received.video_id for received in recipient.received] == [ready.key]
        await recipient.viewed(ready.key)
        viewed = await alice.hears("viewed", key)
        assert (viewed.video_id, viewed.peer_id) == (ready.key, bob.client_id)
        await within(sender.settled())
        await within(recipient.settled())
        assert recipient.received == ()
    steps = alice.of(key)
    assert steps == [status for status in ALL if status in steps]
    assert bob.of(ready.key)[-1] == "ready"
    assert len(set(bob.of(ready.key))) == len(bob.of(ready.key))


async def test_every_status_is_told_in_order_while_the_recipient_takes_its_time(
    alice: Phone, bob: Phone, video: Path
) -> None:
    async with alice.open() as sender:
        key = await sender.send(str(video), bob.client_id)
        change = await alice.hears("uploaded", key)
        video_id = change.video_id or ""
        for status in ("notified", "downloaded", "viewed"):
            await bob.app.say(video_id, status)
            await alice.hears(status, key)
    assert alice.of(key) == ALL
    async with alice.open() as sender:
        await applied(sender, alice.app)
        await within(sender.settled())
    assert alice.of(key) == ALL


async def test_a_deleted_video_is_gone_for_its_recipient(alice: Phone, bob: Phone, video: Path) -> None:
    async with alice.open() as sender, bob.open():
        key = await sender.send(str(video), bob.client_id)
        await alice.hears("downloaded", key)
        ready = await bob.hears("ready")
        await sender.delete(key)
        await within(sender.settled())
        assert sender.sent == ()
        assert (await bob.app.packet())["incoming"] == []
        assert bob.file_of(ready.key) == VIDEO  # what is here stays until it is seen
    assert alice.of(key)[-1] == "downloaded"


async def test_a_newer_video_completes_the_one_before(alice: Phone, bob: Phone, video: Path) -> None:
    async with alice.open() as sender:
        first = await sender.send(str(video), bob.client_id)
        await alice.hears("uploaded", first)
        second = await sender.send(str(video), bob.client_id)
        await alice.hears("complete", first)
        await alice.hears("uploaded", second)
    assert alice.of(first) == ["uploaded", "complete"]


async def test_a_file_that_is_not_there_cannot_be_sent(alice: Phone, bob: Phone, tmp_path: Path) -> None:
    async with alice.open() as sender:
        with pytest.raises(FileNotFoundError):
            await sender.send(str(tmp_path / "none.mp4"), bob.client_id)
        assert sender.sent == ()


async def test_a_refused_video_fails_with_the_code(alice: Phone, video: Path) -> None:
    async with alice.open() as sender:
        key = await sender.send(str(video), alice.client_id)  # to oneself
        failed = await alice.hears("failed", key)
        assert failed.reason == "invalid"
        await within(sender.settled())


async def test_progress_is_seen_on_both_sides(alice: Phone, bob: Phone, video: Path) -> None:
    up: list[tuple[str, int, int]] = []
    down: list[tuple[str, int, int]] = []
    async with (
        alice.open(watch=lambda *moved: up.append(moved)) as sender,
        bob.open(watch=lambda *moved: down.append(moved)),
    ):
        key = await sender.send(str(video), bob.client_id)
        ready = await bob.hears("ready")
    for name, moves in ((key, up), (ready.key, down)):
        assert {move[0] for move in moves} == {name}
        assert [move[1] for move in moves] == sorted(move[1] for move in moves)
        assert moves[-1][1:] == (len(VIDEO), len(VIDEO))


async def test_two_iterations_at_once_are_refused(alice: Phone) -> None:
    async with alice.open() as device:
        await within(device.settled())
        with pytest.raises(RuntimeError, match="told already"):
            await anext(device.changes())


async def test_a_device_speaks_for_somebody(gw: Running) -> None:
    client = Client(gw.url, "a-token", http=gw.http, client_id="alice")
    with pytest.raises(ValueError, match="which device"):
        Device(client, MemoryStore(), VideoFolder(client, Path("videos")))


async def test_a_second_device_on_the_same_file_is_refused(alice: Phone) -> None:
    async with alice.open():
        with pytest.raises(StoreInUse):
            async with alice.open():
                pass


# --- Killed, and opened again


class Mortal(MemoryStore):
    """What a phone keeps, in whose process nothing happens any more once it is dead."""

    dead = False

    async def save(self, body: bytes) -> None:
        if not self.dead:
            await super().save(body)


class Deadline:
    """Calls like any others, up to the last one: it is never made, or its answer never seen."""

    def __init__(self, calls: int, *, answered: bool) -> None:
        self.left = calls
        self.reached = asyncio.Event()
        hook = "response" if answered else "request"
        self.http = httpx.AsyncClient(trust_env=False, event_hooks={hook: [self._hook]})

    async def _hook(self, _: object) -> None:
        self.left -= 1
        if self.left < 0:
            self.reached.set()
            await asyncio.Event().wait()


@asynccontextmanager
async def until_killed(phone: Phone, calls: int, *, answered: bool) -> AsyncIterator[Device]:
    """The device in the background, killed at that call at the end of the block."""
    deadline, store = Deadline(calls, answered=answered), phone.store()
    assert isinstance(store, Mortal)
    phone.http, usual = deadline.http, phone.http
    async with deadline.http, phone.open(foreground=False) as device:
        yield device
        await within(deadline.reached.wait())
        store.dead = True
    phone.http = usual
    store.dead = False


def taken_in(phone: Phone, key: str) -> list[str]:
    """What the app was told of one video. What it had not taken in when it was killed may have come again."""
    told = phone.of(key)
    return [status for status, before in zip(told, [None, *told], strict=False) if status != before]


def keep_in(phone: Phone) -> None:
    store = Mortal()
    phone.store = lambda: store


# sync, announce, upload, sync with the confirmation
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("calls", range(4))
async def test_a_sender_that_is_killed_at_any_call_goes_on_and_sends_once(
    alice: Phone, bob: Phone, video: Path, calls: int, answered: bool
) -> None:
    keep_in(alice)
    async with until_killed(alice, calls, answered=answered) as device:
        if calls:
            await within(device.settled())
        key = await device.send(str(video), bob.client_id)
    async with alice.open() as device, bob.open() as recipient:
        ready = await bob.hears("ready")
        await recipient.viewed(ready.key)
        await alice.hears("viewed", key)
        await within(device.settled())
        assert [change.key for change in bob.told if change.status == "ready"] == [ready.key]
        assert [entry["video_id"] for entry in (await alice.app.packet())["outgoing"]] == [ready.key]
    steps = taken_in(alice, key)
    assert steps == [status for status in ALL if status in steps]


# sync, where the bytes are, the bytes, sync with the status
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("calls", range(4))
async def test_a_recipient_that_is_killed_at_any_call_goes_on_and_says_it(
    alice: Phone, bob: Phone, calls: int, answered: bool
) -> None:
    keep_in(bob)
    video_id = await alice.app.send(bob.client_id, VIDEO)
    async with until_killed(bob, calls, answered=answered):
        pass
    async with bob.open() as recipient:
        ready = await bob.hears("ready")
        assert ready.key == video_id
        assert bob.file_of(video_id) == VIDEO
        await within(recipient.settled())
        [entry] = (await alice.app.packet())["outgoing"]
        assert entry["status"] == "downloaded"
        await recipient.viewed(video_id)
        await within(recipient.settled())
        [entry] = (await alice.app.packet())["outgoing"]
        assert entry["status"] == "viewed"
    assert taken_in(bob, video_id) in (["ready"], ["arrived", "ready"])


async def test_what_the_user_did_without_a_network_is_said_by_the_next_process(
    alice: Phone, bob: Phone, video: Path
) -> None:
    video_id = await alice.app.send(bob.client_id, VIDEO)
    async with bob.open() as device:
        await bob.hears("ready", video_id)
        await within(device.settled())
        device.network(online=False)
        await device.viewed(video_id)
        key = await device.send(str(video), alice.client_id)
    assert [entry["status"] for entry in (await alice.app.packet())["outgoing"]] == ["downloaded"]
    async with bob.open() as device:
        await within(device.settled())
    packet = await alice.app.packet()
    assert [entry["status"] for entry in packet["outgoing"]] == ["viewed"]
    assert [entry["sender_id"] for entry in packet["incoming"]] == [bob.client_id]
    assert bob.of(key)[-1:] in ([], ["uploaded"])


async def test_half_a_download_goes_on_where_it_was_after_a_restart(alice: Phone, bob: Phone) -> None:
    video_id = await alice.app.send(bob.client_id, VIDEO)
    half = len(VIDEO) // 2
    cutting = Cutting(half)
    usual = bob.http
    async with httpx.AsyncClient(transport=cutting) as bob.http, bob.open(foreground=False):
        await within(cutting.cut.wait())
    asked: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        asked.append(request)

    moves: list[int] = []
    hooks = {"request": [note]}
    async with (
        httpx.AsyncClient(trust_env=False, event_hooks=hooks) as bob.http,
        bob.open(watch=lambda _, so_far, __: moves.append(so_far)),
    ):
        await bob.hears("ready", video_id)
    bob.http = usual
    assert bob.file_of(video_id) == VIDEO
    ranges = [request.headers["range"] for request in asked if "range" in request.headers]
    assert len(ranges) == 1
    begun = int(ranges[0].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begun <= half
    assert min(moves) > begun
    assert moves[-1] == len(VIDEO)


class Cutting(httpx.AsyncHTTPTransport):
    """A network that goes away in the middle of a video, and does not come back."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.cut = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.cut.is_set():
            raise httpx.ConnectError("no network")
        response = await super().handle_async_request(request)
        if request.method == "GET" and not request.url.path.startswith("/v1/"):
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = CutShort(response.stream, self._size, self.cut)
        return response


class CutShort(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, size: int, cut: asyncio.Event) -> None:
        self._stream, self._size, self._cut = stream, size, cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        moved = 0
        async for chunk in self._stream:
            if moved + len(chunk) > self._size:
                self._cut.set()
                raise httpx.ReadError("cut")
            moved += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


# --- Stored before anything follows


class Reluctant(MemoryStore):
    """A store that takes its time, or has no room. `gate`: how many saves may still go through."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.failures = 0
        self.slow = False
        self.gate = asyncio.Semaphore(0)
        self.waiting = 0
        self.dead = False

    async def save(self, body: bytes) -> None:
        if self.broken:
            self.failures += 1
            raise OSError("no space left on device")
        if self.slow:
            self.waiting += 1
            try:
                await self.gate.acquire()
            finally:
                self.waiting -= 1
        if not self.dead:
            await super().save(body)

    async def is_waiting(self) -> bool:
        return self.waiting == 1

    @property
    def record(self) -> Record:
        assert self.body is not None
        return Record.decode(self.body)


async def test_nothing_is_done_before_it_is_stored_and_then_it_goes_on(
    alice: Phone, bob: Phone, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "REST_S", 0.005)
    asked: list[str] = []

    async def note(request: httpx.Request) -> None:
        asked.append(request.url.path)

    store = Reluctant()
    alice.store = lambda: store
    async with (
        httpx.AsyncClient(trust_env=False, event_hooks={"request": [note]}) as alice.http,
        alice.open() as device,
    ):
        await applied(device, alice.app)
        await within(device.settled())
        store.broken = True
        sending = asyncio.create_task(device.send(str(video), bob.client_id))

        async def tried() -> bool:
            return store.failures > 5

        await until(tried, "it is tried to store it again and again")
        assert not sending.done()
        assert asked == []
        store.broken = False
        key = await within(sending)
        assert store.record.sent[key].status is SentStatus.QUEUED
        await alice.hears("uploaded", key)


async def test_what_is_told_is_stored_so_that_no_status_goes_back_when_the_phone_dies(
    alice: Phone, bob: Phone, video: Path
) -> None:
    store = Reluctant()
    alice.store = lambda: store
    async with alice.open() as device:
        key = await device.send(str(video), bob.client_id)
        video_id = (await alice.hears("uploaded", key)).video_id or ""
        await applied(device, alice.app)
        await within(device.settled())
        store.slow = True
        await bob.app.say(video_id, "downloaded")
        await until(store.is_waiting, "a packet is being stored")
        await bob.app.say(video_id, "viewed")

        async def viewed() -> bool:
            return device.sent[0].status is SentStatus.VIEWED

        await until(viewed, "another packet came meanwhile")
        store.gate.release()
        await until(store.is_waiting, "that is being stored")
        for _ in range(20):
            await asyncio.sleep(0)  # whoever could go on has gone on
        store.dead = True
        store.slow = False
        store.gate.release()
    store.dead = False
    async with alice.open() as device:
        await applied(device, alice.app)
        await alice.hears("viewed", key)
        await within(device.settled())
    steps = [ALL.index(status) for status in alice.of(key)]
    assert steps == sorted(steps), alice.of(key)


async def test_whoever_waits_for_something_to_be_stored_does_not_wait_for_ever_when_the_device_ends(
    alice: Phone, bob: Phone, video: Path
) -> None:
    store = Reluctant()
    alice.store = lambda: store
    async with alice.open() as device:
        await applied(device, alice.app)
        await within(device.settled())
        store.slow = True
        sending = asyncio.create_task(device.send(str(video), bob.client_id))
        await until(store.is_waiting, "it is being stored")
        store.slow = False
    ended, _ = await asyncio.wait([sending], timeout=1)
    sending.cancel()
    assert ended == {sending}


# --- In the background


async def test_a_push_is_handled_when_its_video_is_here_and_that_is_said(gw: Running, alice: Phone, bob: Phone) -> None:
    async with bob.open(foreground=False) as device:
        await device.register("apns", gw.fresh("push-token"))
        await within(device.settled())
        client = Client(gw.url, token(bob.client_id), "phone", gw.http)
        async with client.pushes() as pushes:
            video_id = await alice.app.send(bob.client_id, VIDEO)
            push = await within(anext(pushes))
        payload: dict[str, object] = {"version": str(push.version), "aps": {"content-available": 1}}
        assert push.packet is not None
        payload["packet"] = push.packet.body.decode()
        await within(device.handle_push(payload))
        assert bob.file_of(video_id) == VIDEO
        [entry] = (await alice.app.packet())["outgoing"]
        assert entry["status"] == "downloaded"
        await bob.hears("ready", video_id)
        assert gw.sockets_of(bob.app) == ()


@pytest.mark.parametrize("payload", [{}, {"version": "7"}, {"version": 7, "packet": []}, {"packet": "{"}])
async def test_whatever_a_push_says_the_gateway_is_asked(alice: Phone, bob: Phone, payload: dict[str, object]) -> None:
    async with bob.open(foreground=False) as device:
        await within(device.settled())
        await applied(device, bob.app)
        video_id = await alice.app.send(bob.client_id, VIDEO)
        await within(device.handle_push(payload))
        assert bob.file_of(video_id) == VIDEO
        [entry] = (await alice.app.packet())["outgoing"]
        assert entry["status"] == "downloaded"


async def test_a_push_that_cannot_be_handled_lets_the_app_sleep_in_time(bob: Phone) -> None:
    async with bob.open(foreground=False) as device:
        await within(device.settled())
        device.network(online=False)
        bob.url = "http://127.0.0.1:9"
        await within(device.handle_push({"version": "7"}, within_s=0.05))


async def test_a_push_that_comes_as_the_app_is_opened_is_handled_by_its_socket(bob: Phone) -> None:
    async with bob.open() as device:
        await within(device.handle_push({"version": "1"}), 5)


async def test_a_push_to_nobody_is_handled(bob: Phone) -> None:
    async with bob.open() as device:
        await device.log_out()
        await within(device.settled())
        await within(device.handle_push({"version": "7"}))


async def test_an_app_in_the_background_holds_no_socket(gw: Running, bob: Phone) -> None:
    async def sockets() -> int:
        return len(gw.sockets_of(bob.app))

    async def one() -> bool:
        return await sockets() == 1

    async def none() -> bool:
        return await sockets() == 0

    async with bob.open() as device:
        await until(one, "a socket is open")
        device.foreground(active=False)
        await until(none, "no socket is open")
        device.foreground(active=True)
        await until(one, "a socket is open again")


# --- Networks that come and go


async def test_a_socket_that_is_cut_is_opened_again_and_nothing_is_missed(
    gw: Running, alice: Phone, bob: Phone
) -> None:
    async def connected() -> bool:
        return device._live is not None and len(gw.sockets_of(bob.app)) == 1

    async with bob.open() as device:
        for cut in ("abort", "network", "network lost and back", "by the gateway"):
            await until(connected, "a socket is open")
            live = device._live
            assert live is not None
            if cut == "abort":
                live.abort()
            elif cut == "by the gateway":
                await bob.app.call("DELETE", "/v1/devices/phone")
            else:
                device.network(online=cut == "network")
            video_id = await alice.app.send(bob.client_id, VIDEO)
            if cut == "network lost and back":
                device.network(online=True)
            await bob.hears("ready", video_id)

            async def another(live: object = live) -> bool:
                return device._live is not None and device._live is not live

            await until(another, "another socket is open")
        await within(device.settled())


async def test_a_gateway_that_stops_and_starts_again_is_found_again(
    gw: Running, tmp_path: Path, video: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gateway"
    async with httpx.AsyncClient(trust_env=False) as http:
        async with running_gateway(folder, PORT=str(unused_tcp_port)) as first:
            alice, bob = Phone(first, tmp_path, "alice"), Phone(first, tmp_path, "bob")
            alice.http = bob.http = http
            opened = alice.open()
            device = await opened.__aenter__()
            await applied(device, alice.app)
        try:
            key = await device.send(str(video), bob.client_id)
            async with running_gateway(folder, PORT=str(unused_tcp_port)) as second:
                alice.gw = bob.gw = second
                device.network(online=True)  # else it comes when the gateway that went said it should
                await alice.hears("uploaded", key)
                async with bob.open():
                    await alice.hears("downloaded", key)
                await within(device.settled())
                await opened.__aexit__(None, None, None)
        except BaseException:
            await opened.__aexit__(None, None, None)
            raise


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
async def test_where_no_socket_gets_through_polls_are_held(
    gw: Running, tmp_path: Path, alice: Phone, answer: bytes
) -> None:
    async with without_sockets(gw, answer) as url:
        bob = Phone(gw, tmp_path, "bob", url=url)
        async with bob.open() as device:
            await gw.polls_held(1)
            for _ in range(3):
                video_id = await alice.app.send(bob.client_id, VIDEO)
                await bob.hears("ready", video_id)
                await within(device.settled())
                [entry] = (await alice.app.packet())["outgoing"]
                assert entry["status"] == "downloaded"
            assert gw.sockets_of(bob.app) == ()


@asynccontextmanager
async def without_sockets(gw: Running, answer: bytes) -> AsyncIterator[str]:
    """Where a proxy hands all but sockets on to the gateway; those it answers, or cuts."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        if b"upgrade: websocket" in head.lower():
            writer.write(answer)
            writer.close()
            return
        there, to = await asyncio.open_connection("127.0.0.1", gw.port)
        to.write(head)
        pumps = [asyncio.create_task(pump(reader, to)), asyncio.create_task(pump(there, writer))]
        tasks.update(pumps)
        await asyncio.wait(pumps)
        for end in (to, writer):
            end.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- Tokens


async def test_a_socket_whose_token_expires_is_opened_again_with_a_new_one(
    gw: Running, alice: Phone, bob: Phone
) -> None:
    asked = 0

    def source() -> str:
        nonlocal asked
        asked += 1
        # The gateway grants 30 s of leeway.
        return token(bob.client_id, ttl_s=-29.3 if asked == 1 else 3600)

    async def renewed() -> bool:
        return asked > 1 and device._live is not None

    bob.bearer = source
    async with bob.open() as device:
        await until(renewed, "the token is renewed")
        video_id = await alice.app.send(bob.client_id, VIDEO)
        await bob.hears("ready", video_id)
    assert asked == 2


async def test_a_token_that_has_expired_already_is_renewed_by_every_way(alice: Phone, bob: Phone, video: Path) -> None:
    for foreground in (False, True):
        tokens = [token(alice.client_id), token(alice.client_id, ttl_s=-3600)]
        alice.bearer = tokens.pop
        async with alice.open(foreground=foreground) as device:
            await device.send(str(video), bob.client_id)
            await within(device.settled())
        assert tokens == []


async def test_a_token_that_cannot_be_had_for_a_while_holds_things_up_and_no_more(
    alice: Phone, bob: Phone, video: Path
) -> None:
    asked = 0

    def source() -> str:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise RuntimeError("the token server is down")
        return token(alice.client_id)

    alice.bearer = source
    async with alice.open() as device:
        key = await device.send(str(video), bob.client_id)
        await within(device.settled())
        await alice.hears("uploaded", key)


# --- Registrations


async def test_a_device_registers_once_a_day_and_at_once_where_the_token_is_new(gw: Running, bob: Phone) -> None:
    asked: list[str] = []

    async def note(request: httpx.Request) -> None:
        if request.method == "PUT":
            asked.append(request.url.path)

    push_token = gw.fresh("push-token")
    now = 1_000_000.0
    async with httpx.AsyncClient(trust_env=False, event_hooks={"request": [note]}) as bob.http:
        for later_s, given, count in ((0, push_token, 1), (80_000, push_token, 1), (7_000, push_token, 2), (1, "n", 3)):
            now += later_s
            async with bob.open(foreground=False) as device:
                device._clock = lambda: now  # noqa: B023 - it is read within this round
                await device.register("apns", given if given == push_token else gw.fresh("push-token"))
                await within(device.settled())
            assert len(asked) == count


# --- Log-out


async def test_a_log_out_on_a_shared_phone_loses_nothing_and_shows_nothing(
    gw: Running, tmp_path: Path, alice: Phone, bob: Phone
) -> None:
    carol = gw.app(gw.fresh("carol"))
    bob.store = alice.store
    async with alice.open() as device:
        await device.register("apns", gw.fresh("push-token"))
        video_id = await carol.send(alice.client_id, VIDEO)
        await alice.hears("ready", video_id)
        await within(device.settled())
        device.network(online=False)
        await device.viewed(video_id)
        await device.log_out()
        assert (device.sent, device.received, device.version) == ((), (), 0)
    [entry] = (await carol.packet())["outgoing"]
    assert entry["status"] == "downloaded"
    async with bob.open() as device:
        await device.register("apns", gw.fresh("push-token"))
        await within(device.settled())
        await applied(device, bob.app)
        assert (device.sent, device.received) == ((), ())
        [entry] = (await carol.packet())["outgoing"]
        assert entry["status"] == "viewed"
        assert await is_registered(bob.app)
        assert not await is_registered(alice.app)
        another = await carol.send(alice.client_id, VIDEO)
        mine = await carol.send(bob.client_id, VIDEO)
        await bob.hears("ready", mine)
    assert {change.key for change in bob.told} == {mine}
    async with alice.open() as device:  # bob did not log out: he is forgotten
        await alice.hears("ready", another)
        assert [received.video_id for received in device.received] == [another]


async def is_registered(app: App) -> bool:
    async with app.http.stream(
        "GET", "/v1/devices/phone/pushes", headers={"Authorization": f"Bearer {app.token}"}
    ) as answer:
        return answer.status_code == 200


async def test_a_log_out_is_said_at_once_where_there_is_a_network(gw: Running, bob: Phone) -> None:
    async with bob.open() as device:
        await device.register("apns", gw.fresh("push-token"))
        await within(device.settled())
        assert await is_registered(bob.app)
        await device.log_out()
        await within(device.settled())
        assert not await is_registered(bob.app)


async def test_a_log_out_is_said_with_the_token_that_it_was_given_by_a_device_of_nobody(
    gw: Running, bob: Phone
) -> None:
    async with bob.open() as device:
        await device.register("apns", gw.fresh("push-token"))
        await within(device.settled())
        device.network(online=False)
        await device.log_out(token=token(bob.client_id))
    client = Client(gw.url, "no-token", http=gw.http)
    async with Device(client, bob.store(), VideoFolder(client, bob.videos)) as device:
        await within(device.settled())
    assert not await is_registered(bob.app)


async def test_the_end_of_an_account_takes_its_videos_along(alice: Phone, bob: Phone, video: Path) -> None:
    async with alice.open() as device:
        key = await device.send(str(video), bob.client_id)
        await alice.hears("uploaded", key)
        await device.end_account()
        await within(device.settled())
        assert (await bob.app.packet())["incoming"] == []


# --- What it needs

ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(name + " is of the server")
sys.meta_path.insert(0, Blocker())
import gateway.client
gateway.client.Device, gateway.client.FileStore
"""
SERVERS = {
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "msgspec",
    "jwt",
    "prometheus_client",
    "redis",
    "storage",
    "push",
    "hypothesis",
    "pytest",
}


async def test_the_client_needs_httpx_orjson_and_websockets_and_nothing_of_the_server() -> None:
    command = [sys.executable, "-c", ALONE % SERVERS]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_what_could_not_be_stored_before_a_log_out_is_never_acknowledged(
    alice: Phone, bob: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "REST_S", 0.005)
    store = Reluctant()
    bob.store = lambda: store

    async def has_failed() -> bool:
        return store.failures > 0

    async with bob.open() as device:
        await applied(device, bob.app)
        await within(device.settled())
        store.broken = True
        video_id = await alice.app.send(bob.client_id, VIDEO)
        await until(has_failed, "a packet could not be stored")
        leaving = asyncio.create_task(device.log_out())
        await asyncio.sleep(0)
        store.broken = False
        await within(leaving)
        await within(device.settled())
    listed = (await alice.app.packet())["outgoing"]
    assert [entry["status"] for entry in listed if entry["video_id"] == video_id] == ["uploaded"]

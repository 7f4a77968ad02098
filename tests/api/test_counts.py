"""What things cost, in counts that are the same on every machine: whoever makes one of them larger is to notice.

Times are for `scripts/bench`, `scripts/peers` and `scripts/slopes`.
"""

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway import packet
from gateway.bus.bus import Publication
from gateway.service import Said
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, DeviceId, Status, VideoId
from tests.running import App, RawSocket, Running, handshake, running_gateway

SOCKETS = 200


@pytest.fixture(scope="module")
async def lone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A gateway that nobody else uses, without a rate limit and without background work that falls into a count."""
    async with running_gateway(tmp_path_factory.mktemp("counted"), RATE_CALLS="0", RATE_FRAMES="0") as started:
        yield started


# --- Connections


@asynccontextmanager
async def open_sockets(gw: Running, number: int) -> AsyncIterator[list[RawSocket]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(gw.raw_socket(gw.app(gw.fresh("idle")))) for _ in range(number)]


def ours() -> Counter[str]:
    """The objects of ours, and of what runs them, that there are now, by their types. What the collector does not track
    is not among them."""
    gc.collect()
    names = [f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects()]
    return Counter(name for name in names if name.startswith(("gateway.", "uvicorn.", "_asyncio.", "httptools.")))


async def test_an_idle_socket_is_a_handful_of_objects_and_no_task(lone: Running) -> None:
    async with open_sockets(lone, 5):
        before = ours()
        async with open_sockets(lone, SOCKETS):
            more = ours() - before
    each = {name: count for name, count in more.items() if count >= SOCKETS // 2}
    assert each == dict.fromkeys(
        (
            "gateway.live.connection.Connection",
            "gateway.live.frames.Parser",
            "gateway.live.hub._Audience",
            "gateway.api.session.Session",
        ),
        SOCKETS,
    ) | {"gateway.api.auth.Identity": each.get("gateway.api.auth.Identity", SOCKETS)}


async def test_an_idle_socket_takes_little_memory_of_ours(lone: Running) -> None:
    async with open_sockets(lone, 5):
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.take_snapshot()
            async with open_sockets(lone, SOCKETS):
                gc.collect()
                now = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    code = str(Path(packet.__file__).parent)
    grown = sum(
        change.size_diff
        for change in now.compare_to(before, "filename")
        if change.traceback[0].filename.startswith(code)
    )
    assert 500 < grown / SOCKETS < 2_600


async def test_a_handshake_and_a_ping_are_few_bytes(lone: Running) -> None:
    app = lone.app(lone.fresh("bytes"))
    async with lone.tcp() as raw:
        path = "/v1/ws?" + app.socket_url("phone", None).partition("?")[2]
        await raw.send(handshake(path, f"Authorization: Bearer {app.token}"))
        answer = await raw.head()
        assert answer.status == 101
        assert sum(len(name) + len(value) + 4 for name, value in answer.headers.items()) < 120
        _, data = await raw.next()
        assert len(data) < 80 + len(app.client_id)  # a packet of nothing


# --- Calls


class Costs:
    """What a call makes the gateway do."""

    def __init__(self, gw: Running, patch: pytest.MonkeyPatch) -> None:
        changes = gw.gateway.service.changes
        self.counts: Counter[str] = Counter()
        self._note(patch, changes.documents, "load", len)
        self._note(patch, changes.documents, "commit", len)
        encode, frame = packet.encode, sys.modules["gateway.live.hub"].text_frame

        def encoded(state: object) -> bytes:
            self.counts["packets"] += 1
            return encode(state)  # type: ignore[arg-type]

        def framed(payload: bytes) -> bytes:
            self.counts["frames"] += 1
            result: bytes = frame(payload)
            return result

        patch.setattr(packet, "encode", encoded)
        patch.setattr("gateway.live.hub.text_frame", framed)

    def _note(self, patch: pytest.MonkeyPatch, of: object, name: str, size: Callable[[list[object]], int]) -> None:
        method = getattr(of, name)

        async def noted(given: list[object]) -> object:
            self.counts[f"{name}s"] += 1
            self.counts[f"documents of {name}s"] += size(given)
            return await method(given)

        patch.setattr(of, name, noted)

    async def of(self, call: Awaitable[object]) -> dict[str, int]:
        """What this one does."""
        self.counts.clear()
        await call
        return dict(self.counts)


@pytest.fixture
def costs(lone: Running, monkeypatch: pytest.MonkeyPatch) -> Costs:
    return Costs(lone, monkeypatch)


@pytest.fixture
def alice(lone: Running) -> App:
    return lone.app(lone.fresh("alice"))


@pytest.fixture
def bob(lone: Running) -> App:
    return lone.app(lone.fresh("bob"))


def forget(gw: Running) -> None:
    """As in a process that has not written these clients lately."""
    gw.gateway.service.changes._recent.clear()


def commits(documents: int) -> dict[str, int]:
    return {"commits": 1, "documents of commits": documents}


def loads(number: int, documents: int) -> dict[str, int]:
    return {"loads": number, "documents of loads": documents}


async def test_each_call_reads_and_writes_so_much_and_no_more(
    lone: Running, alice: App, bob: App, costs: Costs
) -> None:
    assert await costs.of(alice.announce(bob.client_id)) == loads(1, 2)
    announced = await alice.announce(bob.client_id)
    uploaded = await costs.of(alice.upload(announced))
    assert uploaded == loads(1, 2) | commits(2)  # which completes it
    forget(lone)
    video_id = announced.video_id
    assert await costs.of(alice.say(video_id, "uploaded", bob.client_id)) == loads(1, 2)
    version = await bob.version()
    assert await costs.of(bob.poll(f'"{version}"')) == loads(1, 1)
    assert await costs.of(bob.poll()) == loads(1, 1) | {"packets": 1}
    forget(lone)
    assert await costs.of(bob.poll(f'"{version}"', device_id="phone")) == loads(2, 2) | commits(2)  # acknowledges
    assert await costs.of(bob.content_url(video_id)) == loads(1, 1)
    forget(lone)
    assert await costs.of(bob.say(video_id, "downloaded")) == loads(2, 2) | commits(2)
    assert await costs.of(bob.say(video_id, "viewed")) == commits(2)  # remembered
    assert await costs.of(alice.delete(video_id, bob.client_id)) == loads(1, 2) | commits(2)


async def test_a_packet_is_encoded_and_framed_once_for_all_of_a_clients_devices(
    lone: Running, alice: App, bob: App, costs: Costs
) -> None:
    video_id = await alice.send(bob.client_id)
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(bob.socket(f"device-{number}")) for number in range(5)]
        for socket in sockets:
            await socket.packet()
        done = await costs.of(bob.say(video_id, "viewed"))
        assert [len((await socket.packet())["incoming"]) for socket in sockets] == [0] * 5
    assert (done["packets"], done["frames"]) == (1, 1)


async def test_what_nobody_listens_to_is_neither_encoded_nor_framed(
    lone: Running, alice: App, bob: App, costs: Costs
) -> None:
    video_id = await alice.send(bob.client_id)
    done = await costs.of(bob.say(video_id, "downloaded"))
    assert "packets" not in done
    assert "frames" not in done


# --- Work


async def calls_of(work: Awaitable[object]) -> int:
    """How many functions are called until it is done, those in C included: what CPU it takes, but for their speed."""
    count = 0

    def counted(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        await work
    finally:
        sys.setprofile(None)
    return count


async def test_the_work_of_a_status_does_not_grow_with_others(lone: Running, alice: App, bob: App) -> None:
    service = lone.gateway.service

    async def work() -> int:
        video_id = VideoId(await alice.send(bob.client_id))
        said = [Said(video_id, Status.DOWNLOADED)]
        return await calls_of(service.report(ClientId(bob.client_id), said, Acknowledgement(DeviceId("phone"), 1)))

    async def least() -> int:
        """Of some tries: other tasks have a turn in some of them."""
        return min([await work() for _ in range(5)])

    few = await least()
    for number in range(30):
        await lone.app(f"other-{number}").send(f"another-{number}")
    async with open_sockets(lone, 50):
        many = await least()
    assert few < 400
    assert abs(many - few) < 30


def test_a_packet_from_elsewhere_passes_through_few_functions(lone: Running) -> None:
    hub, client_id = lone.gateway.hub, ClientId("nobody-here")
    news = Publication(client_id, 1, asks=False, packet=b"{}")
    count = 0

    def counted(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(counted)
    try:
        hub.published(news)
    finally:
        sys.setprofile(None)
    assert count <= 4


async def test_a_poll_that_brings_nothing_is_a_short_answer(lone: Running, bob: App) -> None:
    version = await bob.version()
    async with lone.tcp() as raw:
        lines = [
            "GET /v1/poll HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {bob.token}",
            f'If-None-Match: "{version}"',
        ]
        await raw.send("\r\n".join([*lines, "", ""]).encode())
        answer = await raw.head()
    assert answer.status == 304
    assert sum(len(name) + len(value) + 4 for name, value in answer.headers.items()) < 130

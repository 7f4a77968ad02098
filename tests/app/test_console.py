"""What the operator's console is told, on real gateways: alone, and with another and a worker over Redis."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson
import pytest
import redis as redis_py

from gateway.api.operator import Readiness
from gateway.console import consoles, watched
from gateway.console.consoles import MOST_CONSOLES, Console
from gateway.console.messages import ASKED, TOLD
from gateway.console.series import SERIES
from gateway.cost import Prices
from gateway.live.hub import SENT_BACK_MS
from gateway.readings import Kind
from tests.app.program import started
from tests.redis_servers import RedisServer, redis_server
from tests.running import Json, Running, assert_problem, running_gateway, until, within

TOKEN = "the-token-of-the-operator"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
WORKER = ("-m", "gateway", "worker")


class Page:
    """A console's page: what it was told."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.processes: dict[str, Json] = {}
        self.samples: dict[str, list[Json]] = {}
        self.facts: Json = {}
        self.here = ""
        self.ended = False

    async def event(self) -> str:
        """Take in the next event; its name, or nothing at the end of the stream."""
        name = ""
        async with asyncio.timeout(20):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self._take(name, orjson.loads(line.removeprefix("data: ")))
                    return name
        self.ended = True
        return ""

    def _take(self, name: str, data: Json) -> None:
        if name == "process":
            self.processes[data["process"]] = data
        elif name == "samples":
            self.here = data["here"]
            for sample in data["samples"]:
                self.samples.setdefault(sample["process"], []).append(sample)
        elif name == "facts":
            self.facts = data

    async def next(self, name: str) -> None:
        """Return when the next event of that name has come."""
        while (found := await self.event()) != name:
            assert found, "the stream has ended"

    async def shows(self, processes: int) -> None:
        """Return when so many processes have told who they are and what they count."""
        while len(self.processes) < processes or len(self.samples) < processes:
            await self.next("samples")

    async def is_up_to_date(self) -> None:
        """Return when every process has told what it counts after this."""
        now = time.time() * 1000 + 5  # timers may be early by that
        while any(samples[-1]["at"] < now for samples in self.samples.values()):
            await self.next("samples")

    def of(self, role: str) -> str:
        """The name of the one process with that role."""
        [name] = [name for name in self.processes if name.split("/")[1].split(".")[0] == role]
        return name

    def latest(self, series: str, process: str | None = None) -> int:
        """A number as it stands, of one process or summed over all."""
        names = [*self.samples] if process is None else [process]
        return sum(self.samples[name][-1]["values"][self.processes[name]["series"].index(series)] for name in names)


@asynccontextmanager
async def page(http: httpx.AsyncClient) -> AsyncIterator[Page]:
    """A console, open at this gateway until the block ends."""
    async with http.stream("GET", "/console/stream", headers=OPERATOR, timeout=20) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        lines = answer.aiter_lines()
        assert await anext(lines) == ": watching"
        yield Page(lines)


async def looked_up(running: Running, client_id: str) -> Json:
    answer = await running.http.get(f"/console/clients/{client_id}", headers=OPERATOR)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def send_back(running: Running, client_id: str, **query: str) -> None:
    answer = await running.http.post(f"/console/clients/{client_id}/close", headers=OPERATOR, params=query)
    assert answer.status_code == 204, answer.text


async def nobody_looks(running: Running) -> None:
    """Return when this gateway serves no console any more."""
    operators = running.gateway.operators_console
    assert operators is not None

    async def none() -> bool:
        return not operators.consoles._consoles

    await until(none, "nobody looks")


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Facts are told more often than they are: the tests wait for them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("watched", "consoles"):
            patch.setattr(f"gateway.console.{module}.FACTS_S", 0.5)
        yield


# --- One gateway


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("data"), OPERATOR_TOKEN=TOKEN) as running:
        yield running


ADDRESSES = [
    ("GET", "/console/stream"),
    ("GET", "/console/clients/bob"),
    ("POST", "/console/clients/bob/close"),
]


async def test_without_an_operators_token_there_is_no_console(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "data") as running:
        for method, path in ADDRESSES:
            assert_problem(await running.http.request(method, path, headers=OPERATOR), 404, "not_found")
        assert running.gateway.operators_console is None
        app = running.app("alice")
        await app.send("bob")
        assert not list(running.gateway.service.changes.journal.of("alice"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
async def test_the_console_is_the_operators_alone(gateway: Running, method: str, path: str) -> None:
    app = gateway.app("bob")
    for given in ("", "Bearer x", f"Bearer {TOKEN}x", f"Bearer {app.token}", TOKEN[:-1]):
        answer = await gateway.http.request(method, path, headers={"Authorization": given} if given else {})
        assert_problem(answer, 401, "unauthorized")
    assert_problem(await gateway.http.request("PUT", path, headers=OPERATOR), 405, "method_not_allowed", method)


async def test_the_stream_begins_with_who_the_process_is_and_tells_its_counts_every_second(gateway: Running) -> None:
    alice, bob = gateway.app(gateway.fresh("alice")), gateway.app(gateway.fresh("bob"))
    async with bob.socket() as socket, page(gateway.http) as console:
        await socket.packet()
        await console.shows(1)
        [me] = console.processes.values()
        assert me["series"] == list(SERIES)
        assert me["process"] == console.here
        before = {series: console.latest(series) for series in SERIES}
        video_id = await alice.send(bob.client_id)
        await bob.say(video_id, "viewed")
        await console.is_up_to_date()
        after = {series: console.latest(series) for series in SERIES}
    grown = {series: after[series] - before[series] for series in SERIES}
    assert after["sockets"] == 1
    assert grown["videos_uploaded"] == grown["videos_viewed"] == 1
    assert grown["video_seconds_viewed_le_inf"] == grown["video_seconds_uploaded_le_inf"] == 1
    assert grown["packets"] == grown["packet_seconds_le_inf"] == 2
    assert grown["packet_seconds_le_10.0"] == 2
    assert grown["calls_2xx"] == 3
    assert grown["results_applied"] == 2
    assert grown["results_duplicate"] == 1, "the confirmation: the gateway had completed the upload by itself"
    assert after["cpu_us"] > before["cpu_us"] > 0
    assert after["memory_bytes"] > 1_000_000
    times = [sample["at"] for sample in console.samples[console.here]]
    assert all(at % 1000 == 0 for at in times)
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {1000}


async def test_the_numbers_are_those_of_the_metrics(gateway: Running) -> None:
    alice = gateway.app(gateway.fresh("alice"))
    assert (await alice.say("no-id", "viewed")).status_code == 422
    await alice.send(gateway.fresh("bob"))
    exposed = (await gateway.http.get("/metrics", headers=OPERATOR)).text
    lines = [line.rpartition(" ") for line in exposed.splitlines() if not line.startswith("#")]
    metrics = {name: float(value) for name, _, value in lines}
    async with page(gateway.http) as console:
        await console.shows(1)
        await console.is_up_to_date()
        for series, metric in {
            "packets": "gateway_packets_total",
            "video_bytes": "gateway_video_bytes_total",
            "videos_uploaded": 'gateway_videos_total{status="uploaded"}',
            "packet_seconds_le_0.005": 'gateway_packet_seconds_bucket{le="0.005"}',
            "video_seconds_uploaded_le_inf": 'gateway_video_seconds_bucket{le="+Inf",status="uploaded"}',
        }.items():
            assert console.latest(series) == metrics[metric], series
        of_calls = {name: value for name, value in metrics.items() if name.startswith("gateway_calls_total")}
        refused = sum(value for name, value in of_calls.items() if 'status="4' in name)
        assert console.latest("calls_4xx") == refused > 0
        seconds = sum(value for name, value in metrics.items() if name.startswith("gateway_call_seconds_sum"))
        assert console.latest("call_seconds_sum_ms") == pytest.approx(seconds * 1000, abs=10)


async def test_the_hour_is_remembered_while_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("watched", "hour"):
        monkeypatch.setattr(f"gateway.console.{module}.STEP_MS", 200)
    async with running_gateway(tmp_path / "data", OPERATOR_TOKEN=TOKEN) as running:
        operators = running.gateway.operators_console
        assert operators is not None

        async def remembers_some() -> bool:
            return len(operators.watched._hour.rows()) >= 3

        await until(remembers_some, "it remembers some samples")
        await running.app("alice").send("bob")
        async with page(running.http) as console:
            await console.shows(1)
            [me] = console.processes.values()
            rows = [list(itertools.accumulate(column)) for column in zip(*me["hour"], strict=True)]
            times, uploaded = rows[0], rows[1 + SERIES.index("videos_uploaded")]
            assert len(times) >= 3
            assert all(at % 200 == 0 for at in times)
            assert times == sorted(set(times))
            assert uploaded[0] == 0
            assert rows[1 + SERIES.index("cpu_us")][-1] <= console.latest("cpu_us")


async def test_backends_are_told_with_the_time_they_took_and_without_prices_there_is_no_cost(gateway: Running) -> None:
    async with page(gateway.http) as console:
        await console.next("facts")
        [took] = console.facts["backends"].values()
        assert set(took) == {"documents", "objects"}
        assert all(0 <= ms < 2000 for ms in took.values())
        assert console.facts["cost"] is None


async def test_a_backend_that_does_not_answer_is_told_as_such() -> None:
    async def fails() -> None:
        raise OSError("gone")

    async def answers() -> None:
        return

    found = await Readiness({"documents": fails, "objects": answers}).times()
    assert found["documents"] is None
    assert found["objects"] is not None


async def test_what_has_a_price_is_told_in_dollars(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "data", OPERATOR_TOKEN=TOKEN) as running:
        running.gateway.usage.units["dynamodb", "GetItem", "read"] += 1_000_000
        async with page(running.http) as console:
            while not (cost := console.facts.get("cost")):
                await console.next("facts")
    each = Prices.built_in().of(Kind("units", "dynamodb", "read"))
    assert each is not None
    assert cost["dollars"] == pytest.approx(float(each * 1_000_000))
    assert cost["stores"] == [{"store": "dynamodb", "dollars": cost["dollars"]}]
    assert not cost["per_month"], "nothing more was counted since"
    assert 0 < cost["seconds"] < 60


# --- A client


async def test_a_client_is_looked_up_without_its_push_tokens(gateway: Running) -> None:
    alice, bob = gateway.app(gateway.fresh("alice")), gateway.app(gateway.fresh("bob"))
    secret = "f00d" * 16
    await bob.register("phone", secret)
    async with bob.socket("phone") as socket:
        await socket.packet()
        video_id = await alice.send(bob.client_id)
        version = (await socket.packet())["version"]
        held = asyncio.create_task(bob.poll(f'"{version}"', wait=20, device_id="tablet"))

        async def is_held() -> bool:
            return bool((await looked_up(gateway, bob.client_id))["processes"][0]["polls"])

        await until(is_held, "the poll is held")
        answer = await gateway.http.get(f"/console/clients/{bob.client_id}", headers=OPERATOR)
        found = answer.json()
        packet = (await bob.poll()).text
        await send_back(gateway, bob.client_id)
        await within(held)
    assert secret not in answer.text
    assert found["packet"] == packet
    [device] = found["devices"]
    assert (device["device_id"], device["platform"], device["behind"]) == ("phone", "apns", True)
    assert device["next_push_at"] > version
    [process] = found["processes"]
    assert [(one["device_id"], one["version"], one["acked"]) for one in process["sockets"]] == [("phone", version, 0)]
    assert [(one["device_id"], one["version"]) for one in process["polls"]] == [("tablet", version)]
    assert found["silent"] == 0
    texts = [wait["text"] for wait in found["waits"]]
    assert texts == [
        f"device phone has not acknowledged version {version}",
        f"video {video_id} from {alice.client_id} is notified, and waits to be downloaded",
    ]
    assert [event["event"] for event in found["events"]] == ["acknowledged", "packet", "opened", "registered"]
    assert found["events"][1] | {"at": 0} == {
        "at": 0,
        "process": process["process"],
        "event": "packet",
        "device_id": None,
        "version": version,
        "devices": 1,
    }


async def test_what_happens_to_a_client_is_among_its_last_events(gateway: Running) -> None:
    alice, bob = gateway.app(gateway.fresh("alice")), gateway.app(gateway.fresh("bob"))
    await bob.register("phone", "beef" * 16)
    async with bob.pushes("phone") as pushes:
        video_id = await alice.send(bob.client_id)
        await within(anext(pushes))
        async with bob.socket("phone") as socket:
            version = (await socket.packet())["version"]
            assert (await socket.ask("status", id=1, video_id=video_id, status="viewed"))["result"] == "applied"

    async def has_closed() -> bool:
        return [event["event"] for event in (await looked_up(gateway, bob.client_id))["events"][:1]] == ["closed"]

    await until(has_closed, "its socket has ended")
    events = (await looked_up(gateway, bob.client_id))["events"]
    assert [event["event"] for event in events] == [
        "closed",
        "status",
        "packet",
        "opened",
        "pushed",
        "packet",
        "registered",
    ]
    assert events[0]["code"] == 1000
    assert (events[1]["video_id"], events[1]["status"], events[1]["result"]) == (video_id, "viewed", "applied")
    assert (events[4]["platform"], events[4]["outcome"], events[4]["version"]) == ("apns", "accepted", version)
    assert (await alice.delete(video_id, bob.client_id)).status_code == 200
    newest = (await looked_up(gateway, alice.client_id))["events"][0]
    assert (newest["event"], newest["video_id"], newest["result"]) == ("deleted", video_id, "applied")


async def test_a_client_never_heard_of_is_empty(gateway: Running) -> None:
    found = await looked_up(gateway, gateway.fresh("nobody"))
    assert orjson.loads(found["packet"])["version"] == 0
    assert (found["devices"], found["waits"], found["events"]) == ([], [], [])


async def test_what_is_no_id_is_refused(gateway: Running) -> None:
    for path in ("/console/clients/a%20b", "/console/clients/" + "x" * 65):
        assert_problem(await gateway.http.get(path, headers=OPERATOR), 422, "invalid", "client_id")
    answer = await gateway.http.post("/console/clients/bob/close?device_id=a%20b", headers=OPERATOR)
    assert_problem(answer, 422, "invalid", "device_id")


# --- Limits


async def test_there_are_so_many_consoles_at_a_time_and_no_more(gateway: Running) -> None:
    await nobody_looks(gateway)
    async with AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(page(gateway.http)) for _ in range(MOST_CONSOLES)]
        answer = await gateway.http.get("/console/stream", headers=OPERATOR)
        assert_problem(answer, 429, "rate_limited", "consoles")
        for console in pages:
            await console.shows(1)
    await nobody_looks(gateway)
    async with page(gateway.http) as console:
        await console.shows(1)


async def test_a_console_that_does_not_read_is_ended(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles, "MOST_WAITING_BYTES", 100_000)
    operators = gateway.gateway.operators_console
    assert operators is not None
    await nobody_looks(gateway)
    async with gateway.tcp(buffers=4096) as tcp:
        await tcp.send(f"GET /console/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())

        async def is_open() -> bool:
            return bool(operators.consoles._consoles)

        await until(is_open, "the console is open")
        [console] = operators.consoles._consoles
        while not console._ended:
            console.put(b"x" * 10_000)
            await asyncio.sleep(0)
        assert sum(map(len, console._events)) == 0
        read = b""
        while not read.endswith(b"\r\n0\r\n\r\n"):  # it reads again, and finds the end
            read = read[-8:] + await tcp.read()
    await nobody_looks(gateway)


def test_what_waits_for_a_console_is_bounded() -> None:
    console, event = Console(), bytes(1024 * 1024)
    for _ in range(100):
        console.put(event)
        assert sum(map(len, console._events)) <= consoles.MOST_WAITING_BYTES
    assert not console._events


async def test_when_the_process_ends_its_consoles_end(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_gateway(tmp_path / "data", OPERATOR_TOKEN=TOKEN))
        lines = asyncio.Event()

        async def watch() -> bool:
            async with page(running.http) as console:
                await console.shows(1)
                lines.set()
                while await console.event():
                    pass
                return console.ended

        watching = asyncio.create_task(watch())
        await within(lines.wait())
        running.server.should_exit = True
        assert await within(watching, 4)


# --- Many processes


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Fleet(NamedTuple):
    """Two gateways that serve, and a worker in a process of its own."""

    here: Running
    there: Running


@pytest.fixture(scope="module")
async def fleet(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("data")
    given = {"BUS_URL": redis.url, "OPERATOR_TOKEN": TOKEN}
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running_gateway(folder, worker=False, **given))
        there = await stack.enter_async_context(running_gateway(folder, worker=False, **given))
        await stack.enter_async_context(started(folder, command=WORKER, WORKER_PORT="0", **given))
        yield Fleet(here, there)


async def test_every_process_is_seen_at_each_and_the_worker_too(fleet: Fleet) -> None:
    alice = fleet.there.app(fleet.there.fresh("alice"))
    bob = fleet.here.app(fleet.here.fresh("bob"))
    async with page(fleet.here.http) as one, page(fleet.there.http) as other, alice.socket() as open_one:
        await open_one.packet()
        await bob.register("phone", "cafe" * 16)
        await alice.send(bob.client_id)
        for console in (one, other):
            await console.shows(3)
            await console.is_up_to_date()
        for console in (one, other):
            while console.latest("pushes_apns_accepted", console.of("worker")) < 1:
                await console.next("samples")
            assert {name: console.latest("sockets", name) for name in console.processes} == {
                one.here: 0,
                other.here: 1,
                console.of("worker"): 0,
            }
            while len(console.facts.get("backends", {})) < 3:
                await console.next("facts")
        assert one.here != other.here


async def test_processes_of_one_program_are_called_by_what_they_do(redis: RedisServer, tmp_path: Path) -> None:
    command = ("-m", "gateway", "serve", "--workers", "2")
    given = {"BUS_URL": f"{redis.url}?prefix=together:", "OPERATOR_TOKEN": TOKEN}
    async with started(tmp_path, command=command, **given) as program, page(program.http) as console:
        await console.shows(3)
    machines, names = zip(*(process.split("/") for process in console.processes), strict=True)
    assert set(machines) == {socket.gethostname()}
    assert {name.partition(".")[0] for name in names} == {"serve-0", "serve-1", "worker"}


async def test_a_client_is_put_together_from_all_processes(fleet: Fleet) -> None:
    client_id = fleet.here.fresh("carol")
    here, there = fleet.here.app(client_id), fleet.there.app(client_id)
    async with here.socket("phone") as phone, there.socket("tablet") as tablet:
        await phone.packet(), await tablet.packet()
        for running in fleet:
            found = await looked_up(running, client_id)
            sockets = {
                process["process"]: [one["device_id"] for one in process["sockets"]] for process in found["processes"]
            }
            assert sorted(sockets.values()) == [[], ["phone"], ["tablet"]]
            assert found["silent"] == 0
            opened = [(event["process"], event["device_id"]) for event in found["events"]]
            assert opened == [
                (process, device)
                for device in ("tablet", "phone")
                for process, devices in sockets.items()
                if device in devices
            ]


async def test_sockets_are_closed_through_the_other_process_and_come_back(fleet: Fleet) -> None:
    client_id = fleet.here.fresh("dave")
    there = fleet.there.app(client_id)
    async with there.socket("phone") as phone, there.socket("tablet") as tablet:
        await phone.packet(), await tablet.packet()
        held = asyncio.create_task(there.poll(f'"{1 << 50}"', wait=20, device_id="tablet"))
        await _polls_held(fleet.there, client_id)
        await send_back(fleet.here, client_id, device_id="phone")
        code, reason = await phone.ended()
        assert code == 1012
        assert 0 <= orjson.loads(reason)["retry_ms"] <= SENT_BACK_MS
        assert not held.done()
        await send_back(fleet.here, client_id)
        assert (await tablet.ended())[0] == 1012
        assert (await within(held)).status_code == 304
    async with there.socket("phone") as again:
        assert (await again.packet())["client_id"] == client_id


async def _polls_held(running: Running, client_id: str) -> None:
    async def is_held() -> bool:
        found = await looked_up(running, client_id)
        return any(process["polls"] for process in found["processes"])

    await until(is_held, "the poll is held")


async def test_what_cannot_be_read_is_left(fleet: Fleet) -> None:
    operators = fleet.here.gateway.operators_console
    assert operators is not None
    bus = operators.consoles._bus
    nonsense = [
        b"",
        b"nonsense",
        b"client",
        b"client []",
        b"client {}",
        b"facts {}",
        b"facts [1]",
        b"facts \xff",
        b"\xff {}",
    ]
    async with page(fleet.here.http) as console:
        await console.shows(3)
        looking_up = asyncio.create_task(looked_up(fleet.here, "bob"))
        for topic, text in itertools.product((ASKED, TOLD), nonsense):
            await bus.tell(topic, text)
        assert (await looking_up)["silent"] == 0
        for _ in range(2):
            await console.next("samples")
    assert (await looked_up(fleet.here, "bob"))["silent"] == 0


async def test_a_process_that_does_not_answer_is_counted(fleet: Fleet) -> None:
    operators = fleet.here.gateway.operators_console
    assert operators is not None
    bus, deaf = operators.consoles._bus, list[bytes]()
    await bus.hear(ASKED, deaf.append)  # in this process somebody else hears it, too: no other answers for it
    bus.hear_no_more(ASKED, operators.watched._asked)
    try:
        found = await looked_up(fleet.there, "bob")
        assert (len(found["processes"]), found["silent"]) == (2, 1)
    finally:
        bus.hear_no_more(ASKED, deaf.append)
        await bus.hear(ASKED, operators.watched._asked)


async def test_while_nobody_looks_nothing_is_told(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LIVE_MS", 50)
    monkeypatch.setattr(watched, "LOOKED_S", 0.2)
    for module in ("watched", "hour"):
        monkeypatch.setattr(f"gateway.console.{module}.STEP_MS", 100)
    url = f"{redis.url}?prefix=quiet:"
    async with running_gateway(tmp_path / "data", BUS_URL=url, OPERATOR_TOKEN=TOKEN) as running:
        with _eavesdropper(redis, "quiet:") as heard:
            await _some_samples(running)
            await running.app("alice").send("bob")
            assert heard() == [], "before anybody has looked"
            async with page(running.http) as console:
                await console.shows(1)
            await nobody_looks(running)
            await _forgotten(running)
            words = {message.partition(b" ")[0] for message in heard()}
            assert words >= {b"hour", b"process", b"sample", b"facts"}, "while somebody looked"
            await _some_samples(running)
            assert heard() == [], "and when nobody does any more"


async def _some_samples(running: Running) -> None:
    """Return when the process has taken some more samples."""
    operators = running.gateway.operators_console
    assert operators is not None
    before = operators.watched._sampled_at

    async def has() -> bool:
        return operators.watched._sampled_at >= before + 500

    await until(has, "some samples are taken")


async def _forgotten(running: Running) -> None:
    """Return when the process believes no more that somebody looks, and has told all that it had to."""
    operators = running.gateway.operators_console
    assert operators is not None

    async def has() -> bool:
        return not operators.watched._looked.is_set() and operators.watched._untold.empty()

    await until(has, "it is over")
    await _some_samples(running)


@contextlib.contextmanager
def _eavesdropper(redis: RedisServer, prefix: str) -> Iterator[Callable[[], list[bytes]]]:
    """What is said of consoles over the bus: each call gives what was said since the one before."""
    client = redis_py.Redis(port=redis.port)
    try:
        with client.pubsub(ignore_subscribe_messages=True) as listening:  # type: ignore[no-untyped-call]
            listening.psubscribe(f"{prefix}0:console.*")

            def heard() -> list[bytes]:
                client.publish(f"{prefix}0:console.mark", b"mark")
                found = list[bytes]()
                while (message := listening.get_message(timeout=5)) is None or message["data"] != b"mark":
                    if message is not None:
                        found.append(message["data"])
                return found

            yield heard
    finally:
        client.close()

"""The front passes on what it is to pass on, and each fault is what a client sees of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import orjson
import pytest
import pytest_asyncio

from tests.conformance import faults, relay
from tests.conformance.conditions import Conditions
from tests.conformance.front import Front, front
from tests.conformance.log import Log
from tests.conformance.plan import Fault, Plan
from tests.conformance.witness import Finding, Kind, Witness
from tests.running import VIDEO, App, Json, Running, Socket, running_gateway, token, until, within


@dataclass(frozen=True, slots=True)
class Bad:
    """A front where one kind of fault meets every request or message, from when it is told to."""

    front: Front
    log: Log
    findings: list[Finding]
    http: httpx.AsyncClient
    gateway: Running

    def app(self, name: str) -> App:
        """An app that goes through the front, with a device."""
        client_id = self.gateway.fresh(name)
        return App(self.http, client_id, token(client_id, device="phone"), "phone")

    def begin(self) -> None:
        self.front.conditions.behaving = False


@pytest_asyncio.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("gateway"), STATE_URL="memory:") as running:
        yield running


@asynccontextmanager
async def weather(gateway: Running, *chosen: Fault) -> AsyncIterator[Bad]:
    findings: list[Finding] = []
    log = Log()
    conditions = Conditions(Plan(1, 1, (), 1, frozenset(chosen), 1.0, ()), log, Witness(findings.append))
    conditions.target, conditions.behaving = gateway.port, True
    async with (
        front(conditions) as (between, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http,
    ):
        yield Bad(between, log, findings, http, gateway)


def through(url: str, bad: Bad) -> str:
    """A signed URL, by way of the front."""
    return str(httpx.URL(url).copy_with(port=bad.http.base_url.port))


def test_there_is_something_to_each_fault() -> None:
    assert set(Fault) == faults.FAULTS.keys() | relay.FAULTS.keys()
    met = faults.HANDSHAKE | faults.JSON_CALL | faults.UPLOAD | faults.DOWNLOAD | relay.PACKET
    assert met == set(Fault)
    assert faults.FAULTS.keys() >= faults.HANDSHAKE | faults.JSON_CALL | faults.UPLOAD | faults.DOWNLOAD
    assert relay.FAULTS.keys() >= relay.PACKET


async def test_without_faults_a_client_meets_the_gateway(gateway: Running) -> None:
    async with weather(gateway) as bad:
        bad.begin()
        ann, bob = bad.app("ann"), bad.app("bob")
        announced = await ann.announce(bob.client_id)
        stored = await bad.http.put(through(announced.url, bad), content=VIDEO, headers=announced.headers)
        assert stored.status_code == 200
        url = await bob.content_url(announced.video_id)
        assert (await bad.http.get(through(url, bad))).content == VIDEO
        async with bob.socket() as socket:
            packet = await socket.packet()
            await socket.ack(packet["version"])
            assert (await socket.ask("status", id=7, video_id=announced.video_id, status="viewed"))["id"] == 7
        assert (await ann.register("phone", "a-push-token")).status_code == 204
        assert not bad.findings


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.UNANSWERED, Fault.CUT_ANSWER])
async def test_a_connection_ends_before_all_of_the_answer_is_there(gateway: Running, fault: Fault) -> None:
    async with weather(gateway, fault) as bad:
        bad.begin()
        with pytest.raises(httpx.TransportError):
            await bad.app("ann").poll()


async def test_what_is_silent_never_answers(gateway: Running) -> None:
    async with weather(gateway, Fault.SILENT) as bad:
        bad.begin()
        with pytest.raises(httpx.ReadTimeout):
            await bad.http.get("/healthz", timeout=0.2)


@pytest.mark.parametrize(
    ("fault", "statuses", "code"),
    [
        (Fault.UNAVAILABLE, {503}, "unavailable"),
        (Fault.LIMITED, {429}, "rate_limited"),
        (Fault.REVOKED, {401}, "unauthorized"),
        (Fault.BUSY, {503}, None),
        (Fault.HTML, {400, 404, 500, 502, 504}, None),
        (Fault.TIMED_OUT, {408, 425}, None),
        (Fault.PORTAL, {200}, None),
        (Fault.REDIRECTED, {302}, None),
    ],
)
async def test_something_else_answers(gateway: Running, fault: Fault, statuses: set[int], code: str | None) -> None:
    async with weather(gateway, fault) as bad:
        bad.begin()
        answer = await bad.app("ann").poll()
        assert answer.status_code in statuses
        assert (code is None) == (answer.headers.get("content-type") != "application/problem+json")
        assert code is None or answer.json()["code"] == code


async def test_a_token_that_was_revoked_stays_so(gateway: Running) -> None:
    async with weather(gateway, Fault.REVOKED) as bad:
        ann = bad.app("ann")
        assert (await ann.poll()).status_code == 200
        bad.begin()
        assert (await ann.poll()).status_code == 401
        bad.front.conditions.behaving = True
        assert (await ann.poll()).status_code == 401
        assert (await replace(ann, token=token(ann.client_id, device="phone", ttl_s=60)).poll()).status_code == 200


@pytest.mark.parametrize("fault", [Fault.LATE, Fault.DELAYED, Fault.TRICKLED, Fault.TWICE])
async def test_what_is_late_or_done_twice_is_answered_all_the_same(gateway: Running, fault: Fault) -> None:
    async with weather(gateway, fault) as bad:
        ann = bad.app("ann")
        packet = (await ann.poll()).content
        bad.begin()
        assert (await ann.poll()).content == packet


async def test_half_of_the_json_is_missing(gateway: Running) -> None:
    async with weather(gateway, Fault.HALF_JSON) as bad:
        bad.begin()
        answer = await bad.app("ann").poll()
        assert answer.status_code == 200
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(answer.content)


async def test_there_are_members_that_nobody_knows(gateway: Running) -> None:
    async with weather(gateway, Fault.NEW_MEMBERS) as bad:
        ann = bad.app("ann")
        packet = (await ann.poll()).json()
        bad.begin()
        assert {name: value for name, value in (await ann.poll()).json().items() if name in packet} == packet
        assert "x-mood" in (await ann.poll()).json()


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        (Fault.EXPIRED, {403}),
        (Fault.CONFLICT, {409}),
        (Fault.EARLY_ANSWER, {503, None}),
        (Fault.CUT_UPLOAD, {None}),
        (Fault.TWICE, {412}),
    ],
)
async def test_an_upload_does_not_go_as_it_should(gateway: Running, fault: Fault, statuses: set[int | None]) -> None:
    async with weather(gateway, fault) as bad:
        ann = bad.app("ann")
        video = VIDEO * 50_000
        announced = await ann.announce("bob", video)
        bad.begin()
        try:
            answer = await bad.http.put(through(announced.url, bad), content=video, headers=announced.headers)
        except httpx.TransportError:
            assert None in statuses
        else:
            assert answer.status_code in statuses


@pytest.mark.parametrize(("fault", "status"), [(Fault.EXPIRED, 403), (Fault.GONE, 404)])
async def test_a_download_is_refused(gateway: Running, fault: Fault, status: int) -> None:
    async with weather(gateway, fault) as bad:
        ann, bob = bad.app("ann"), bad.app("bob")
        announced = await ann.announce(bob.client_id)
        await bad.http.put(through(announced.url, bad), content=VIDEO, headers=announced.headers)
        url = await bob.content_url(announced.video_id)
        bad.begin()
        assert (await bad.http.get(through(url, bad))).status_code == status


# --- Sockets


@asynccontextmanager
async def listening(bad: Bad, *, messages: int = 1) -> AsyncIterator[tuple[Socket, App]]:
    """A socket on which so many packets are about to come, one after the other."""
    ann = bad.app("ann")
    async with ann.socket(close_timeout=0.1) as socket:
        await socket.packet()
        bad.begin()
        for _ in range(messages):
            await bad.gateway.app("a-friend").send(ann.client_id)
        yield socket, ann


async def heard(socket: Socket, app: App) -> list[Json]:
    """What comes until the answer to a question that is asked now."""
    found: list[Json] = []
    await socket.send("token", id="last", token=app.token)
    while (message := await socket.message()).get("id") != "last":
        found.append(message)
    return found


def versions(messages: list[Json]) -> list[int]:
    return [message["version"] for message in messages]


async def test_packets_are_lost_or_come_again_or_after_newer_ones(gateway: Running) -> None:
    async with weather(gateway, Fault.DROPPED) as bad, listening(bad) as (socket, ann):
        assert await heard(socket, ann) == []
    async with weather(gateway, Fault.REPEATED) as bad, listening(bad) as (socket, ann):
        first, second = await heard(socket, ann)
        assert first == second
    async with weather(gateway, Fault.OVERTAKEN) as bad, listening(bad) as (socket, ann):
        found = versions(await heard(socket, ann))
        assert found != sorted(found)


async def test_somebody_elses_packet_comes(gateway: Running) -> None:
    async with weather(gateway, Fault.FOREIGN) as bad, listening(bad) as (socket, ann):
        first, second = await heard(socket, ann)
        assert (first["client_id"] != ann.client_id, second["client_id"] == ann.client_id) == (True, True)


@pytest.mark.parametrize(
    ("fault", "kinds"), [(Fault.UNKNOWN_TYPE, {"weather"}), (Fault.STRAY_ANSWER, {"error", "result"})]
)
async def test_something_comes_that_nobody_expects(gateway: Running, fault: Fault, kinds: set[str]) -> None:
    async with weather(gateway, fault) as bad, listening(bad) as (socket, ann):
        first, second, *_ = await heard(socket, ann)
        assert first["type"] in kinds
        assert second["type"] == "info"


@pytest.mark.parametrize("fault", [Fault.FRAGMENTED, Fault.HELD_UP])
async def test_a_packet_in_pieces_or_late_is_the_same(gateway: Running, fault: Fault) -> None:
    async with weather(gateway, fault) as bad, listening(bad) as (socket, ann):
        assert (await socket.packet())["client_id"] == ann.client_id


async def test_a_packet_has_members_that_nobody_knows(gateway: Running) -> None:
    async with weather(gateway, Fault.NEW_MEMBERS) as bad, listening(bad) as (socket, _):
        assert "x-mood" in await socket.packet()


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        (Fault.CUT_FRAME, {0, 1006}),
        (Fault.CUT_SOCKET, {0, 1006}),
        (Fault.CLOSED, set(relay.CODES)),
        (Fault.RESTARTED, {1012}),
        (Fault.DISPLACED, {4409}),
        (Fault.REVOKED, {4401}),
    ],
)
async def test_a_socket_ends(gateway: Running, fault: Fault, codes: set[int]) -> None:
    async with weather(gateway, fault) as bad, listening(bad) as (socket, _):
        code, reason = await socket.ended()
        assert code in codes
        assert code != 1012 or orjson.loads(reason)["retry_ms"] >= 100


async def test_a_socket_that_is_deaf_answers_no_ping(gateway: Running) -> None:
    async with weather(gateway, Fault.DEAF) as bad, listening(bad) as (socket, _):
        pong = await socket.connection.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pong, 0.2)


async def test_who_comes_back_before_the_time_that_a_restart_names_is_found(gateway: Running) -> None:
    async with weather(gateway, Fault.RESTARTED) as bad, listening(bad) as (socket, ann):
        code, reason = await socket.ended()
        retry_s = orjson.loads(reason)["retry_ms"] / 1000
        bad.front.conditions.behaving = True
        async with ann.socket():
            found = [finding.kind for finding in bad.findings]
        assert found == ([Kind.TOO_SOON] if retry_s > 0.3 else found)
        assert code == 1012


async def refused(app: App) -> None:
    """Return once calls of this app get no answer any more."""

    async def gone() -> bool:
        try:
            await app.poll()
        except httpx.TransportError:
            return True
        return False

    await until(gone, "the gateway is gone")


async def test_a_restart_of_the_gateway_ends_all_and_says_when_to_come_back(gateway: Running) -> None:
    async with weather(gateway) as bad:
        ann = bad.app("ann")
        async with ann.socket() as socket:
            await socket.packet()
            restart = asyncio.create_task(bad.front.restart(0.2, retry_ms=500))
            assert (await socket.ended())[0] == 1012
            await refused(ann)
            await within(restart)
        assert (await ann.poll()).status_code == 200


async def test_whatever_hangs_ends_when_it_behaves(gateway: Running) -> None:
    async with weather(gateway, Fault.SILENT) as bad:
        bad.begin()
        asking = asyncio.create_task(bad.app("ann").poll())

        async def arrived() -> bool:
            return bool(bad.log.lines)

        await until(arrived, "the request has come to the front")
        bad.front.behave()
        with pytest.raises(httpx.TransportError):
            await within(asking)


async def test_the_log_has_no_secrets(gateway: Running, tmp_path: Path) -> None:
    async with weather(gateway, Fault.LATE, Fault.TWICE) as bad:
        bad.begin()
        ann, bob = bad.app("ann"), bad.app("bob")
        announced = await ann.announce(bob.client_id)
        await bad.http.put(through(announced.url, bad), content=VIDEO, headers=announced.headers)
        async with bob.socket() as socket:
            await socket.packet()
        told = "\n".join(bad.log.lines)
        assert announced.video_id in told
        assert not [secret for secret in ("signature", "eyJ", ann.token) if secret in told]

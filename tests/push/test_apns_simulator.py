"""The simulator of APNs on real sockets: what it refuses and takes, how it may be told to answer, and its HTTP/2."""

import asyncio
import contextlib
import gc
import socket
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import jwt
import orjson
import pytest
from aioapns import APNs, NotificationRequest, PushType
from aioapns.connection import APNsTLSClientProtocol
from cryptography.hazmat.primitives.asymmetric import ec
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from push.simulators.answers import (
    ENHANCE_YOUR_CALM,
    REFUSED_STREAM,
    Answer,
    Cut,
    GoAway,
    Late,
    Reaction,
    Reset,
    Silence,
    html,
)
from push.simulators.apns import REASONS, ApnsPush, ApnsSimulator, apns_simulator, refusal
from push.simulators.certificates import Authority, private_pem
from push.simulators.ledger import Ledger
from push.simulators.serving import MAX_BODY_BYTES, SHUTDOWN_S
from tests.running import within

TOKEN = "0123456789abcdef" * 4
ALERT = b'{"aps":{"alert":{"loc-key":"VIDEOS_WAITING"},"badge":2},"version":"7"}'
BACKGROUND = b'{"aps":{"content-available":1},"version":"7"}'
AN_ID = "01234567-89ab-cdef-8f01-23456789abcd"
NOW_S = 1_800_000_000.0


class Clock:
    """The simulator's time: it passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Provider:
    """Somebody who sends pushes through one connection, each right unless it is told otherwise."""

    def __init__(self, simulator: ApnsSimulator, http: httpx.AsyncClient, clock: Clock) -> None:
        self.simulator = simulator
        self.http = http
        self.clock = clock
        self._token = self.token()

    def token(self, *, key: str | None = None, kid: str | None = None, **claims: object) -> str:
        """A new provider token, issued now."""
        return jwt.encode(
            {"iss": self.simulator.team_id, "iat": int(self.clock()), **claims},
            self.simulator.key_file.read_text() if key is None else key,
            algorithm="ES256",
            headers={"kid": self.simulator.key_id if kid is None else kid},
        )

    def headers(self, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """What a right push has, with what is to be different; None takes one away."""
        usual = {
            "authorization": f"bearer {self._token}",
            "apns-topic": self.simulator.topic,
            "apns-push-type": "alert",
        }
        given = {**usual, **(changes or {})}
        return {name: value for name, value in given.items() if value is not None}

    async def push(
        self, payload: bytes = ALERT, *, method: str = "POST", path: str = f"/3/device/{TOKEN}", **changes: str | None
    ) -> httpx.Response:
        """Send one; headers are named with underscores."""
        headers = self.headers({name.replace("_", "-"): value for name, value in changes.items()})
        return await within(self.http.request(method, path, content=payload, headers=headers))


def as_bytes(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in headers.items()}


def client_context(authority: Authority, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


@asynccontextmanager
async def provider_of(
    simulator: ApnsSimulator, clock: Clock, certificate: Path | None = None
) -> AsyncIterator[Provider]:
    context = client_context(simulator.authority, certificate)
    async with httpx.AsyncClient(http2=True, http1=False, verify=context, base_url=simulator.endpoint) as http:
        yield Provider(simulator, http, clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def simulator(tmp_path: Path, clock: Clock) -> AsyncIterator[ApnsSimulator]:
    async with apns_simulator(tmp_path, clock=clock) as simulator:
        yield simulator


@pytest.fixture
async def provider(simulator: ApnsSimulator, clock: Clock) -> AsyncIterator[Provider]:
    async with provider_of(simulator, clock) as provider:
        yield provider


def assert_refused(answer: httpx.Response, reason: str) -> None:
    """It has the reason's status, the reason and nothing else in its body, and an id."""
    assert (answer.status_code, answer.json()) == (REASONS[reason], {"reason": reason})
    assert answer.headers["content-type"] == "application/json"
    assert_uuid(answer.headers["apns-id"])


def assert_uuid(text: str) -> None:
    assert str(UUID(text)) == text.lower()


# --- What is taken


async def test_a_push_is_received_as_it_was_sent(provider: Provider) -> None:
    answer = await provider.push(
        apns_id=AN_ID, apns_priority="10", apns_expiration="1800000600", apns_collapse_id="bob"
    )

    assert (answer.status_code, answer.content, answer.http_version) == (200, b"", "HTTP/2")
    assert answer.headers["apns-id"] == AN_ID
    [push] = await within(provider.simulator.receives(1))
    assert (push.token, push.payload, push.connection) == (TOKEN, ALERT, 1)
    assert (push.aps["badge"], push.data["version"]) == (2, "7")
    assert (push.push_type, push.priority, push.collapse_id, push.apns_id) == ("alert", 10, "bob", AN_ID)
    assert push.expiration == 1_800_000_600
    assert push.headers["apns-topic"] == "org.example.app"
    assert 0 <= asyncio.get_running_loop().time() - push.came_s < 10


async def test_what_is_left_out_has_its_default(provider: Provider) -> None:
    answer = await provider.push()

    [push] = provider.simulator.received
    assert (push.priority, push.collapse_id, push.expiration) == (10, None, None)
    assert_uuid(push.apns_id)
    assert push.apns_id == answer.headers["apns-id"]


async def test_a_push_does_not_show_what_is_secret_about_it(provider: Provider) -> None:
    await provider.push()

    shown = repr(provider.simulator.received)
    assert TOKEN not in shown
    assert "bearer" not in shown


GOOD: list[tuple[bytes, dict[str, str | None]]] = [
    (ALERT, {"apns_priority": "1"}),
    (ALERT, {"apns_priority": "5"}),
    (ALERT, {"apns_priority": "10"}),
    (ALERT, {"apns_id": AN_ID.upper()}),
    (ALERT, {"apns_expiration": "0"}),
    (ALERT, {"apns_collapse_id": "x" * 64}),
    (ALERT, {"path": f"/3/device/{TOKEN.upper()}"}),
    (ALERT, {"path": f"/3/device/{'ab' * 100}"}),
    (b'{"aps":{"badge":0}}', {}),
    (b'{"aps":{"sound":"default"}}', {}),
    (b'{"aps":{"alert":"' + b"x" * (4096 - 20) + b'"}}', {}),
    (BACKGROUND, {"apns_push_type": "background", "apns_priority": "5"}),
]


@pytest.mark.parametrize(("payload", "changes"), GOOD)
async def test_every_good_form_is_taken(provider: Provider, payload: bytes, changes: dict[str, Any]) -> None:
    answer = await provider.push(payload, **changes)

    assert answer.status_code == 200, answer.text
    assert [push.payload for push in provider.simulator.received] == [payload]
    assert provider.simulator.refused == []


# --- What is refused


def background(payload: bytes = BACKGROUND, *, priority: str | None = "5") -> dict[str, Any]:
    return {"payload": payload, "apns_push_type": "background", "apns_priority": priority}


BAD: list[tuple[str, dict[str, Any]]] = [
    ("MethodNotAllowed", {"method": "GET"}),
    ("MethodNotAllowed", {"method": "PUT"}),
    ("BadPath", {"path": f"/2/device/{TOKEN}"}),
    ("BadPath", {"path": f"/3/device/{TOKEN}/more"}),
    ("BadPath", {"path": f"/3/device/{TOKEN}?more"}),
    ("BadPath", {"path": "/3/device"}),
    ("MissingDeviceToken", {"path": "/3/device/"}),
    ("BadDeviceToken", {"path": "/3/device/not-hexadecimal"}),
    ("BadDeviceToken", {"path": f"/3/device/{TOKEN[:-2]}"}),
    ("BadDeviceToken", {"path": f"/3/device/{TOKEN}0"}),
    ("BadDeviceToken", {"path": f"/3/device/{'ab' * 101}"}),
    ("BadMessageId", {"apns_id": "7"}),
    ("BadMessageId", {"apns_id": AN_ID.replace("-", "")}),
    ("BadMessageId", {"apns_id": f"{AN_ID}0"}),
    ("MissingTopic", {"apns_topic": None}),
    ("BadTopic", {"apns_topic": "org/example"}),
    ("TopicDisallowed", {"apns_topic": "org.example.other"}),
    ("InvalidPushType", {"apns_push_type": None}),
    ("InvalidPushType", {"apns_push_type": "voip"}),
    ("BadPriority", {"apns_priority": "7"}),
    ("BadPriority", {"apns_priority": "high"}),
    ("BadPriority", background(priority="10")),
    ("BadPriority", background(priority="1")),
    ("BadPriority", background(priority=None)),
    ("BadExpirationDate", {"apns_expiration": "-1"}),
    ("BadExpirationDate", {"apns_expiration": "1.5"}),
    ("BadExpirationDate", {"apns_expiration": "soon"}),
    ("BadCollapseId", {"apns_collapse_id": "x" * 65}),
    ("PayloadEmpty", {"payload": b""}),
    ("PayloadEmpty", {"payload": b"{}"}),
    ("PayloadEmpty", {"payload": b"[]"}),
    ("PayloadEmpty", {"payload": b"[1]"}),
    ("PayloadEmpty", {"payload": b"{"}),
    ("PayloadEmpty", {"payload": b'{"aps":"x"}'}),
    ("PayloadTooLarge", {"payload": b'{"aps":{"alert":"' + b"x" * (4097 - 20) + b'"}}'}),
    ("InvalidPushType", {"payload": BACKGROUND}),
    ("InvalidPushType", background(b'{"aps":{}}')),
    ("InvalidPushType", background(b'{"aps":{"content-available":0}}')),
    ("InvalidPushType", background(b'{"aps":{"content-available":1,"alert":"x"}}')),
    ("InvalidPushType", background(b'{"aps":{"content-available":1,"badge":1}}')),
    ("InvalidPushType", background(b'{"aps":{"content-available":1,"sound":"x"}}')),
]


@pytest.mark.parametrize(("reason", "changes"), BAD)
async def test_every_broken_rule_has_its_reason(provider: Provider, reason: str, changes: dict[str, Any]) -> None:
    answer = await provider.push(**changes)

    assert_refused(answer, reason)
    assert provider.simulator.refused == [reason]
    assert provider.simulator.received == []


@pytest.mark.parametrize("name", ["apns-topic", "apns-id", "authorization", "apns-push-type"])
async def test_a_header_may_be_there_once_only(provider: Provider, name: str) -> None:
    headers = provider.headers({"apns-id": AN_ID})

    answer = await provider.http.post(
        f"/3/device/{TOKEN}", content=ALERT, headers=[*headers.items(), (name, headers[name])]
    )

    assert_refused(answer, "DuplicateHeaders")


async def test_a_collapse_id_is_measured_in_bytes(provider: Provider) -> None:
    for collapse_id, status in (("ü" * 32, 200), ("ü" * 32 + "x", 400)):
        headers = as_bytes({**provider.headers(), "apns-collapse-id": collapse_id})

        answer = await within(provider.http.post(f"/3/device/{TOKEN}", content=ALERT, headers=headers))

        assert answer.status_code == status
    assert [push.collapse_id for push in provider.simulator.received] == ["ü" * 32]


async def test_a_refusal_names_the_push_by_its_id(provider: Provider) -> None:
    answer = await provider.push(apns_id=AN_ID, apns_topic="org.example.other")

    assert answer.headers["apns-id"] == AN_ID


async def test_what_is_refused_is_not_asked_about(provider: Provider) -> None:
    asked: list[ApnsPush] = []

    def react(push: ApnsPush) -> None:
        asked.append(push)

    provider.simulator.react = react

    await provider.push(apns_topic="org.example.other")
    await provider.push()

    assert len(asked) == 1


# --- Provider tokens


def another_key() -> str:
    return private_pem(ec.generate_private_key(ec.SECP256R1())).decode()


@pytest.mark.parametrize("authorization", [None, "", "bearer", "bearer ", "basic eHg6eXk="])
async def test_a_push_needs_a_provider_token(provider: Provider, authorization: str | None) -> None:
    assert_refused(await provider.push(authorization=authorization), "MissingProviderToken")


@pytest.mark.parametrize(
    "parts",
    [
        {"kid": "ANOTHERKEY"},
        {"iss": "ANOTHERONE"},
        {"iss": None},
        {"iat": None},
        {"iat": "yesterday"},
        {"iat": True},
    ],
)
async def test_a_provider_token_must_say_whose_it_is_and_since_when(provider: Provider, parts: dict[str, Any]) -> None:
    claims = {"iss": provider.simulator.team_id, "iat": int(NOW_S), **parts}
    claims = {name: value for name, value in claims.items() if value is not None}
    key, kid = provider.simulator.key_file.read_text(), claims.pop("kid", provider.simulator.key_id)
    token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})

    assert_refused(await provider.push(authorization=f"bearer {token}"), "InvalidProviderToken")
    assert provider.simulator.provider_tokens == set()


@pytest.mark.parametrize("token", ["x", "x.y.z", "e30.e30.e30"])
async def test_what_is_no_token_is_none(provider: Provider, token: str) -> None:
    assert_refused(await provider.push(authorization=f"bearer {token}"), "InvalidProviderToken")


async def test_headers_need_not_be_text(provider: Provider) -> None:
    headers = as_bytes(provider.headers()) | {b"authorization": b"bearer \xff.\xff.\xff"}

    answer = await within(provider.http.post(f"/3/device/{TOKEN}", content=ALERT, headers=headers))

    assert_refused(answer, "InvalidProviderToken")


async def test_a_provider_token_must_be_signed_with_the_key(provider: Provider) -> None:
    token = provider.token(key=another_key())

    assert_refused(await provider.push(authorization=f"bearer {token}"), "InvalidProviderToken")


async def test_a_provider_token_must_be_signed_by_es256(provider: Provider) -> None:
    claims = {"iss": provider.simulator.team_id, "iat": int(NOW_S)}
    headers = {"kid": provider.simulator.key_id}
    token = jwt.encode(claims, "a secret that is long enough for it", algorithm="HS256", headers=headers)

    assert_refused(await provider.push(authorization=f"bearer {token}"), "InvalidProviderToken")


async def test_a_provider_token_lives_for_an_hour(provider: Provider) -> None:
    token = provider.token()
    assert (await provider.push(authorization=f"bearer {token}")).status_code == 200

    provider.clock.now_s += 3600
    assert (await provider.push(authorization=f"Bearer {token}")).status_code == 200
    provider.clock.now_s += 1
    assert_refused(await provider.push(authorization=f"bearer {token}"), "ExpiredProviderToken")


async def test_a_provider_token_of_the_future_is_not_of_the_last_hour(provider: Provider) -> None:
    token = provider.token(iat=int(NOW_S) + 1)

    assert_refused(await provider.push(authorization=f"bearer {token}"), "ExpiredProviderToken")


async def test_a_team_has_a_new_provider_token_every_20_minutes_at_most(provider: Provider) -> None:
    first = provider.token()
    assert (await provider.push(authorization=f"bearer {first}")).status_code == 200

    provider.clock.now_s += 20 * 60 - 1
    second = provider.token()
    assert_refused(await provider.push(authorization=f"bearer {second}"), "TooManyProviderTokenUpdates")
    assert (await provider.push(authorization=f"bearer {first}")).status_code == 200
    provider.clock.now_s += 1
    assert (await provider.push(authorization=f"bearer {second}")).status_code == 200
    assert (await provider.push(authorization=f"bearer {first}")).status_code == 200
    assert provider.simulator.provider_tokens == {first, second}


async def test_the_team_s_tokens_are_counted_over_all_connections(simulator: ApnsSimulator, clock: Clock) -> None:
    async with provider_of(simulator, clock) as one, provider_of(simulator, clock) as another:
        await one.push(authorization=f"bearer {one.token()}")
        answer = await another.push(authorization=f"bearer {another.token()}")

    assert_refused(answer, "TooManyProviderTokenUpdates")
    assert simulator.connections == 2


# --- Certificates


async def test_a_certificate_for_the_topic_takes_the_place_of_a_token(simulator: ApnsSimulator, clock: Clock) -> None:
    certificate = simulator.authority.client_certificate(simulator.topic)
    async with provider_of(simulator, clock, certificate) as provider:
        assert (await provider.push(authorization=None)).status_code == 200
        assert (await provider.push(authorization=None, apns_topic=None)).status_code == 200
        assert (await provider.push(authorization="bearer what nobody looks at")).status_code == 200
        assert_refused(await provider.push(apns_topic="org.example.other"), "TopicDisallowed")

    assert simulator.provider_tokens == set()


async def test_a_certificate_for_another_topic_does_not(simulator: ApnsSimulator, clock: Clock) -> None:
    certificate = simulator.authority.client_certificate("org.example.other")
    async with provider_of(simulator, clock, certificate) as provider:
        assert_refused(await provider.push(), "BadCertificate")


async def test_a_certificate_of_another_authority_gets_no_connection(
    simulator: ApnsSimulator, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    certificate = Authority(tmp_path / "other").client_certificate(simulator.topic)
    async with provider_of(simulator, clock, certificate) as provider:
        with pytest.raises(httpx.TransportError):
            await provider.push()

    assert (simulator.connections, simulator.received, simulator.refused) == (0, [], [])


async def test_the_server_is_trusted_by_its_authority_only(simulator: ApnsSimulator) -> None:
    async with httpx.AsyncClient(http2=True) as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(simulator.endpoint)


def test_keys_are_nobody_else_s_to_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    simulator = ApnsSimulator(tmp_path, authority, topic="org.example.app", clock=Clock(), update_s=0, ledger=Ledger())

    for path in (simulator.key_file, authority.client_certificate(simulator.topic)):
        assert b"PRIVATE KEY" in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in authority.ca_file.read_bytes()


# --- How it may be told to answer


@pytest.mark.parametrize("reason", REASONS)
async def test_every_reason_can_be_given(provider: Provider, reason: str) -> None:
    provider.simulator.react = lambda _: refusal(reason)

    assert_refused(await provider.push(), reason)
    assert (provider.simulator.received, provider.simulator.refused) == ([], [])


def test_the_reasons_are_those_of_the_documentation() -> None:
    numbers = {status: sorted(reason for reason in REASONS if REASONS[reason] == status) for status in REASONS.values()}

    assert {status: len(reasons) for status, reasons in numbers.items()} == {
        400: 14, 403: 9, 404: 1, 405: 1, 410: 2, 413: 1, 429: 2, 500: 1, 503: 2,
    }  # fmt: skip


async def test_a_refusal_can_say_since_when_and_until_when(provider: Provider) -> None:
    provider.simulator.react = lambda _: refusal("Unregistered", timestamp_ms=1_700_000_000_123, retry_after=7)

    answer = await provider.push(apns_id=AN_ID)

    assert (answer.status_code, answer.json()) == (410, {"reason": "Unregistered", "timestamp": 1_700_000_000_123})
    assert (answer.headers["retry-after"], answer.headers["apns-id"]) == ("7", AN_ID)


async def test_anything_can_be_answered(provider: Provider) -> None:
    provider.simulator.react = lambda _: Answer(502, b"\xff no JSON", (("x-cache", "miss"),))

    answer = await provider.push()

    assert (answer.status_code, answer.content, answer.headers["x-cache"]) == (502, b"\xff no JSON", "miss")


async def test_what_is_answered_200_is_received(provider: Provider) -> None:
    provider.simulator.react = lambda _: Late(0.01, Answer(200, b"what nobody expects"))

    assert (await provider.push()).content == b"what nobody expects"
    assert len(provider.simulator.received) == 1


async def test_a_proxy_in_between_sends_html(provider: Provider) -> None:
    provider.simulator.react = lambda _: html(503)

    answer = await provider.push()

    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html; charset=UTF-8")
    assert answer.text.startswith("<!DOCTYPE html>")


async def test_each_push_can_be_treated_for_itself(provider: Provider) -> None:
    provider.simulator.react = lambda push: refusal("TooManyRequests") if push.collapse_id == "bob" else None

    answers = [await provider.push(apns_collapse_id=name) for name in ("alice", "bob", "carol")]

    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert [push.collapse_id for push in provider.simulator.received] == ["alice", "carol"]


async def test_a_late_answer_holds_up_no_other(provider: Provider) -> None:
    provider.simulator.react = lambda push: Late(0.1) if push.collapse_id == "bob" else None
    await provider.push()
    began_s = asyncio.get_running_loop().time()

    late = asyncio.create_task(provider.push(apns_collapse_id="bob"))
    await within(provider.simulator.receives(2))
    await provider.push()
    assert not late.done()
    answer = await late

    assert answer.status_code == 200
    assert asyncio.get_running_loop().time() - began_s >= 0.1
    assert [push.collapse_id for push in provider.simulator.received] == [None, "bob", None]


async def test_a_late_refusal_is_no_push_received(provider: Provider) -> None:
    provider.simulator.react = lambda _: Late(0.01, Late(0.01, refusal("InternalServerError")))

    assert_refused(await provider.push(), "InternalServerError")
    assert provider.simulator.received == []


# --- HTTP/2, seen from close by


@dataclass(slots=True)
class Heard:
    """What came of a request so far."""

    headers: dict[bytes, bytes]
    body: bytes = b""
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers[b":status"])


class Wire:
    """An HTTP/2 connection that sends what it is told, reads when it is told, and remembers what it heard."""

    def __init__(self, provider: Provider, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection()
        self.heard: dict[int, Heard] = {}
        self.resets: dict[int, int] = {}
        self.left: ConnectionTerminated | None = None
        self.over = False
        self.pongs = 0
        self.acknowledges = True
        self._unread = b""
        self._provider = provider
        self._reader = reader
        self._writer = writer
        self.h2.initiate_connection()

    @property
    def limit(self) -> int:
        """How many requests it may have under way, as far as it was told."""
        return self.h2.remote_settings.max_concurrent_streams

    @property
    def answered(self) -> int:
        return sum(heard.ended for heard in self.heard.values())

    def open(self, payload: bytes | None = ALERT, **changes: str | None) -> int:
        """Begin a request; with None its body is still to come."""
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        headers = self._provider.headers(named)
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = {":method": "POST", ":scheme": "https", ":authority": "127.0.0.1", ":path": f"/3/device/{TOKEN}"}
        self.h2.send_headers(stream_id, [*pseudo.items(), *headers.items()])
        if payload is not None:
            self.h2.send_data(stream_id, payload, end_stream=True)
        return stream_id

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Send what is to be sent and read until `condition` holds."""
        self.flush()
        while not condition():
            assert not self.over, "the connection has ended before"
            await within(self._read())

    async def _read(self) -> None:
        try:
            data = await self._reader.read(65_536)
        except ConnectionError:
            data = b""
        self.over = not data
        self._unread += data
        while len(self._unread) >= 9 and len(self._unread) >= (size := 9 + int.from_bytes(self._unread[:3])):
            frame, self._unread = self._unread[:size], self._unread[size:]
            for event in self.h2.receive_data(frame):
                self._happened(event)
        self.flush()

    def _happened(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self.heard[event.stream_id] = Heard(dict(event.headers))
        elif isinstance(event, DataReceived):
            self.heard[event.stream_id].body += event.data
            if self.acknowledges:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.heard[event.stream_id].ended = True
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, ConnectionTerminated):
            self.left = event
            # h2 would take nothing more, not even the answers that the server still owes.
            self.h2.state_machine.state = ConnectionState.CLIENT_OPEN
        elif isinstance(event, PingAckReceived):
            self.pongs += 1

    async def push(self, payload: bytes = ALERT, **changes: str | None) -> Heard:
        """Send one push and wait for its answer."""
        stream_id = self.open(payload, **changes)
        await self.until(lambda: stream_id in self.heard and self.heard[stream_id].ended)
        return self.heard[stream_id]

    async def reset(self, stream_id: int) -> int:
        """The code with which a request is reset."""
        await self.until(lambda: stream_id in self.resets)
        return self.resets[stream_id]

    async def ended(self) -> None:
        await self.until(lambda: self.over)


@asynccontextmanager
async def wire_of(
    provider: Provider, certificate: Path | None = None, *, buffer: int | None = None
) -> AsyncIterator[Wire]:
    """A connection, cut at the end. `buffer`: bytes that the system keeps of what was not read."""
    context = client_context(provider.simulator.authority, certificate)
    context.set_alpn_protocols(["h2"])
    tcp = socket.socket()
    tcp.setblocking(False)
    if buffer is not None:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(tcp, ("127.0.0.1", provider.simulator.listener.port))
    reader, writer = await asyncio.open_connection(sock=tcp, ssl=context, server_hostname="127.0.0.1")
    try:
        yield Wire(provider, reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def wire(provider: Provider) -> AsyncIterator[Wire]:
    async with wire_of(provider) as wire:
        yield wire


async def test_a_connection_has_one_request_at_a_time_until_a_token_was_right(wire: Wire) -> None:
    await wire.until(lambda: wire.limit == 1)

    assert (await wire.push(authorization="bearer x.y.z")).status == 403
    assert wire.limit == 1
    assert (await wire.push()).status == 200
    assert wire.limit == 1000


async def test_a_connection_may_be_allowed_less_and_then_more(provider: Provider, wire: Wire) -> None:
    await wire.push()
    for streams in (2, 1):
        provider.simulator.allow(streams)
        await wire.until(lambda streams=streams: wire.limit == streams)  # type: ignore[misc]
        assert (await wire.push()).status == 200
        assert wire.limit == (1000 if streams == 1 else streams)

    assert provider.simulator.refused == []


async def test_a_right_token_opens_the_connection_whatever_else_is_wrong(wire: Wire) -> None:
    assert (await wire.push(b"")).status == 400
    assert wire.limit == 1000


async def test_a_connection_with_a_certificate_has_a_thousand_at_once(provider: Provider) -> None:
    certificate = provider.simulator.authority.client_certificate(provider.simulator.topic)
    async with wire_of(provider, certificate) as wire:
        await wire.until(lambda: wire.limit == 1000)


async def test_a_request_beyond_the_limit_is_refused_and_noted(provider: Provider, wire: Wire) -> None:
    await wire.until(lambda: wire.limit == 1)
    wire.h2.remote_settings.max_concurrent_streams = 2
    wire.h2.remote_settings.acknowledge()

    first, second = wire.open(None), wire.open()

    assert await wire.reset(second) == REFUSED_STREAM
    wire.h2.send_data(first, ALERT, end_stream=True)
    await wire.until(lambda: wire.answered == 1)
    assert wire.heard[first].status == 200
    assert provider.simulator.refused == ["REFUSED_STREAM"]
    assert (await wire.push()).status == 200


async def test_a_client_that_cannot_know_the_limit_yet_is_not_to_blame(provider: Provider, wire: Wire) -> None:
    first, second = wire.open(None), wire.open()

    assert await wire.reset(second) == REFUSED_STREAM
    wire.h2.send_data(first, ALERT, end_stream=True)
    await wire.until(lambda: wire.answered == 1)
    assert provider.simulator.refused == []


async def test_2000_pushes_of_4_kb_go_through_one_connection(provider: Provider, wire: Wire) -> None:
    payload = b'{"aps":{"alert":"' + b"x" * 4000 + b'"}}'
    await wire.push()

    for sent in range(1, 2001):
        await wire.until(lambda: wire.h2.outbound_flow_control_window >= len(payload))
        wire.open(payload)
        await wire.until(lambda sent=sent: sent - wire.answered < 100)  # type: ignore[misc]
    await wire.until(lambda: wire.answered == 2001)

    assert {heard.status for heard in wire.heard.values()} == {200}
    assert len(provider.simulator.received) == 2001


async def test_2000_errors_come_through_one_connection(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda _: refusal("BadDeviceToken")
    await wire.push()

    for sent in range(1, 2001):
        wire.open()
        await wire.until(lambda sent=sent: sent - wire.answered < 100)  # type: ignore[misc]
    await wire.until(lambda: wire.answered == 2001)

    assert {(heard.status, heard.body) for heard in wire.heard.values()} == {(400, b'{"reason":"BadDeviceToken"}')}


async def test_an_answer_waits_for_room_in_the_client_s_windows(provider: Provider, wire: Wire) -> None:
    page = b"x" * 200_000
    provider.simulator.react = lambda _: Answer(500, page)
    wire.acknowledges = False

    stream_id = wire.open()
    await wire.until(lambda: stream_id in wire.heard and len(wire.heard[stream_id].body) == 65_535)
    wire.acknowledges = True
    wire.h2.acknowledge_received_data(65_535, stream_id)
    await wire.until(lambda: wire.heard[stream_id].ended)

    assert wire.heard[stream_id].body == page


async def test_a_client_may_change_the_size_of_its_windows(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda _: Answer(500, b"x" * 1000)
    wire.acknowledges = False
    wire.h2.update_settings({4: 10})  # SETTINGS_INITIAL_WINDOW_SIZE

    stream_id = wire.open()
    await wire.until(lambda: stream_id in wire.heard and len(wire.heard[stream_id].body) == 10)
    wire.h2.update_settings({4: 2000})
    await wire.until(lambda: wire.heard[stream_id].ended)

    assert len(wire.heard[stream_id].body) == 1000


async def test_a_body_that_is_far_too_long_is_not_read(wire: Wire) -> None:
    stream_id = wire.open(None)
    sent = 0
    while sent <= MAX_BODY_BYTES and stream_id not in wire.resets:
        await wire.until(lambda: wire.h2.local_flow_control_window(stream_id) >= 10_000)
        wire.h2.send_data(stream_id, b"x" * 10_000)
        sent += 10_000

    assert await wire.reset(stream_id) == ENHANCE_YOUR_CALM
    assert (await wire.push()).status == 200


async def test_a_reset_ends_one_request_only(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda push: Reset() if push.collapse_id == "bob" else None

    bob = wire.open(apns_collapse_id="bob")

    assert await wire.reset(bob) == ErrorCodes.INTERNAL_ERROR
    assert (await wire.push()).status == 200
    assert [push.collapse_id for push in provider.simulator.received] == [None]


async def test_a_reset_has_the_code_that_it_is_told(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda _: Reset(REFUSED_STREAM)

    assert await wire.reset(wire.open()) == REFUSED_STREAM


async def test_goaway_leaves_its_request_unprocessed_and_answers_those_before(provider: Provider, wire: Wire) -> None:
    reactions: dict[str, Reaction] = {"early": Late(0.05), "last": GoAway(b'{"reason":"Shutdown"}')}
    provider.simulator.react = lambda push: reactions.get(push.collapse_id or "")
    await wire.push()

    early, last, after = [wire.open(apns_collapse_id=name) for name in ("early", "last", "after")]
    await wire.ended()

    assert wire.left is not None
    assert (wire.left.last_stream_id, wire.left.error_code) == (early, ErrorCodes.NO_ERROR)
    assert wire.left.additional_data == b'{"reason":"Shutdown"}'
    assert wire.heard[early].status == 200
    assert last not in wire.heard
    assert after not in wire.heard
    assert [push.collapse_id for push in provider.simulator.received] == [None, "early"]


async def test_goaway_can_be_the_first_thing_that_is_said(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda _: GoAway()

    wire.open()
    await wire.ended()

    assert wire.left is not None
    assert (wire.left.last_stream_id, wire.left.additional_data) == (0, None)


async def test_what_is_cut_says_nothing_more(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda push: Cut() if push.collapse_id == "bob" else Late(60)
    wire.open()
    wire.flush()
    await within(provider.simulator.receives(1))

    wire.open(apns_collapse_id="bob")
    await wire.ended()

    assert wire.left is None
    assert wire.heard == {}
    assert [push.collapse_id for push in provider.simulator.received] == [None]


async def test_what_is_cut_does_not_wait_for_a_client_that_does_not_read(provider: Provider) -> None:
    provider.simulator.react = lambda push: Answer(500, b"x" * 60_000) if push.collapse_id is None else None
    async with wire_of(provider, buffer=16_384) as wire:
        wire.h2.increment_flow_control_window(2**30)
        await wire.push()
        for _ in range(200):
            wire.open()
        wire.open(apns_collapse_id="bob")
        wire.flush()
        await within(provider.simulator.receives(1))
        began_s = asyncio.get_running_loop().time()

        provider.simulator.cut()
        await within(provider.simulator.listener.emptied())

    assert asyncio.get_running_loop().time() - began_s < SHUTDOWN_S / 2


async def test_silence_leaves_the_rest_of_the_connection_alone(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda push: Silence() if push.collapse_id == "bob" else None
    await wire.push()

    bob = wire.open(apns_collapse_id="bob")
    assert (await wire.push()).status == 200

    assert bob not in wire.heard
    assert bob not in wire.resets


async def test_a_request_that_its_client_gives_up_makes_room(wire: Wire) -> None:
    given_up = wire.open(None)
    await wire.until(lambda: wire.limit == 1)

    wire.h2.reset_stream(given_up)
    wire.flush()

    assert (await wire.push()).status == 200


async def test_a_late_answer_to_a_request_that_was_given_up_is_not_sent(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda push: Late(0.05 if push.collapse_id == "bob" else 0.1)
    await wire.push()

    late = wire.open(apns_collapse_id="bob")
    wire.flush()
    await within(provider.simulator.receives(2))
    wire.h2.reset_stream(late)

    assert (await wire.push()).status == 200
    assert late not in wire.heard


async def test_a_request_given_up_in_the_same_breath_is_no_trouble(provider: Provider, wire: Wire) -> None:
    await wire.push()

    given_up = wire.open()
    wire.h2.reset_stream(given_up)
    assert (await wire.push()).status == 200

    assert given_up not in wire.heard


async def test_a_ping_is_answered_and_counted(provider: Provider, wire: Wire) -> None:
    wire.h2.ping(b"12345678")
    await wire.until(lambda: wire.pongs == 1)

    assert provider.simulator.pings == 1


async def test_a_client_that_leaves_still_gets_its_answers(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda push: Late(0.05) if push.collapse_id == "bob" else None
    await wire.push()

    late, at_once = wire.open(apns_collapse_id="bob"), wire.open()
    wire.h2.close_connection()
    wire.h2.state_machine.state = ConnectionState.CLIENT_OPEN
    await wire.ended()

    assert [wire.heard[stream_id].status for stream_id in (late, at_once)] == [200, 200]


async def test_a_client_that_leaves_with_nothing_under_way_is_let_go(wire: Wire) -> None:
    await wire.push()

    wire.h2.close_connection()
    await wire.ended()


async def test_a_broken_frame_ends_the_connection_with_an_error(wire: Wire) -> None:
    await wire.push()

    wire._writer.write(b"\x00\x00\x00\x08\x00\x00\x00\x00\x00")  # WINDOW_UPDATE without its increment
    await wire.ended()

    assert wire.left is not None
    assert wire.left.error_code == ErrorCodes.FRAME_SIZE_ERROR


async def test_http_1_is_not_spoken(simulator: ApnsSimulator) -> None:
    async with httpx.AsyncClient(verify=client_context(simulator.authority), base_url=simulator.endpoint) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(f"/3/device/{TOKEN}", content=ALERT)


async def test_a_client_without_alpn_speaks_http_2_all_the_same(provider: Provider) -> None:
    context = client_context(provider.simulator.authority)
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.simulator.listener.port, ssl=context)
    wire = Wire(provider, reader, writer)

    assert (await wire.push()).status == 200
    writer.close()
    await writer.wait_closed()


async def test_pushes_tell_their_connections_apart(simulator: ApnsSimulator, clock: Clock) -> None:
    async with provider_of(simulator, clock) as one, provider_of(simulator, clock) as another:
        token = f"bearer {one.token()}"
        for provider in (one, another, one):
            await provider.push(authorization=token)
        assert simulator.open_connections == 2

    assert [push.connection for push in simulator.received] == [1, 2, 1]
    assert simulator.connections == 2


async def test_all_connections_can_be_cut(provider: Provider, wire: Wire) -> None:
    await wire.push()

    provider.simulator.cut()
    await wire.ended()

    assert wire.left is None


async def test_all_connections_can_be_sent_away(provider: Provider, wire: Wire) -> None:
    provider.simulator.react = lambda _: Late(0.05)
    under_way = wire.open()
    wire.flush()
    await within(provider.simulator.receives(1))

    provider.simulator.go_away("IdleTimeout")
    await wire.ended()

    assert wire.left is not None
    assert wire.left.last_stream_id == under_way
    assert orjson.loads(wire.left.additional_data or b"") == {"reason": "IdleTimeout"}
    assert wire.heard[under_way].status == 200


async def test_a_client_that_does_not_read_is_not_read_from(provider: Provider) -> None:
    asked: list[ApnsPush] = []

    def react(push: ApnsPush) -> Reaction | None:
        asked.append(push)
        return Answer(500, b"x" * 60_000)

    provider.simulator.react = react
    async with wire_of(provider, buffer=16_384) as wire:
        wire.h2.increment_flow_control_window(2**30)
        await wire.push()
        for _ in range(150):
            wire.open()
            wire.flush()
            await provider.push(apns_topic=None)  # when this is answered, the simulator has had its turn
        assert len(asked) < 120

        await wire.until(lambda: wire.answered == 151)
        assert len(asked) == 151


# --- The library


@asynccontextmanager
async def library(simulator: ApnsSimulator, **authorized: str) -> AsyncIterator[APNs]:
    """aioapns, as its users have it."""

    class Protocol(APNsTLSClientProtocol):
        APNS_SERVER = "127.0.0.1"
        APNS_PORT = simulator.listener.port

    apns = APNs(topic=simulator.topic, ssl_context=client_context(simulator.authority), max_connections=1, **authorized)  # type: ignore[arg-type]
    apns.pool.protocol_class = Protocol
    try:
        yield apns
    finally:
        apns.pool.close()


async def test_aioapns_gets_a_push_through(tmp_path: Path) -> None:
    async with apns_simulator(tmp_path) as simulator:
        key = simulator.key_file.read_text()
        async with library(simulator, key=key, key_id=simulator.key_id, team_id=simulator.team_id) as apns:
            payload, alert = {"aps": {"alert": "x"}}, PushType.ALERT
            pushes = [NotificationRequest(TOKEN, payload, push_type=alert, time_to_live=60) for _ in range(20)]
            answers = [await within(apns.send_notification(pushes[0]))]
            answers += await within(asyncio.gather(*(apns.send_notification(push) for push in pushes[1:])))
            simulator.react = lambda _: refusal("Unregistered", timestamp_ms=1_700_000_000_123)
            refused = await within(apns.send_notification(pushes[0]))

    assert {answer.status for answer in answers} == {"200"}
    assert [push.aps for push in simulator.received] == [{"alert": "x"}] * 20
    assert (refused.status, refused.description, refused.timestamp) == ("410", "Unregistered", 1_700_000_000_123)
    assert (simulator.refused, len(simulator.provider_tokens)) == ([], 1)


async def test_aioapns_gets_a_push_through_with_a_certificate(tmp_path: Path) -> None:
    async with apns_simulator(tmp_path) as simulator:
        certificate = str(simulator.authority.client_certificate(simulator.topic))
        async with library(simulator, client_cert=certificate) as apns:
            push = NotificationRequest(TOKEN, {"aps": {"alert": "x"}}, push_type=PushType.ALERT)
            answer = await within(apns.send_notification(push))

    assert (answer.status, simulator.refused) == ("200", [])


# --- Beginning and end


async def test_receives_waits_for_as_many_as_are_asked_for(provider: Provider) -> None:
    waiting = asyncio.create_task(provider.simulator.receives(2))
    await provider.push()
    assert not waiting.done()
    await provider.push()

    assert await within(waiting) == provider.simulator.received


async def test_nothing_is_left_at_the_end(tmp_path: Path, clock: Clock) -> None:
    before = asyncio.all_tasks()
    async with apns_simulator(tmp_path, clock=clock) as simulator, provider_of(simulator, clock) as provider:
        simulator.react = lambda _: Late(60)
        async with wire_of(provider) as wire:
            wire.open()
            wire.flush()
            await within(simulator.receives(1))
            began_s = time.monotonic()

    assert time.monotonic() - began_s < 5
    assert simulator.open_connections == 0
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", simulator.listener.port)


async def test_nothing_keeps_a_connection_that_is_gone(provider: Provider) -> None:
    provider.simulator.react = lambda _: Late(60)
    async with wire_of(provider) as wire:
        wire.open()
        wire.flush()
        await within(provider.simulator.receives(1))
        [connection] = [weakref.ref(connection) for connection in provider.simulator.listener._open]
    await within(provider.simulator.listener.emptied())

    gc.collect()
    assert connection() is None


async def test_an_open_connection_is_cut_at_the_end(tmp_path: Path, clock: Clock) -> None:
    async with contextlib.AsyncExitStack() as after:
        async with apns_simulator(tmp_path, clock=clock) as simulator:
            provider = await after.enter_async_context(provider_of(simulator, clock))
            wire = await after.enter_async_context(wire_of(provider))
            await wire.push()
        await wire.ended()
        assert simulator.open_connections == 0

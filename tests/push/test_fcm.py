import asyncio
import json
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any

import firebase_admin
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes, Settings

from push import fcm_access, http2, http2_pool
from push.fcm import FcmSender
from push.fcm_access import AHEAD_S, PAUSE_S, REFUSED_PAUSE_S
from push.fcm_account import SCOPE
from push.fcm_answers import said
from push.http2_pool import MOST_CONNECTIONS, TRIES
from push.sender import (
    MAX_PAYLOAD_BYTES,
    Accepted,
    Alert,
    Content,
    Environment,
    Outcome,
    Platform,
    Rejected,
    Retry,
    Sender,
    TokenDead,
    Wakeup,
)
from push.simulators.answers import REFUSED_STREAM, Answer, Cut, GoAway, Late, Reaction, Reset, Silence, html
from push.simulators.certificates import Authority, private_pem
from push.simulators.fcm import (
    FcmPush,
    FcmSimulator,
    fcm_simulator,
    invalid_value,
    permission_denied,
    refusal,
    unauthenticated,
)
from push.simulators.oauth import TokenRequest, oauth_refusal
from push.simulators.serving import Peer

PACKET = (
    '{"type":"info","client_id":"bob","version":7,"outgoing":[],"incoming":[],"x":"ü\\"\\u0000\U0001f4f1"}'.encode()
)
TOKEN = "dQw4w9WgXcQ:APA91b" + "Hk3_-Zt" * 20
ALERT = Alert("VIDEOS_WAITING", ("2", "alice"), badge=2, sound=True)
WAKEUP = Wakeup(
    id="01234567-89ab-7cde-8f01-23456789abcd",
    platform=Platform.FCM,
    environment=Environment.PRODUCTION,
    token=TOKEN,
    collapse_id="bob",
    content=Content(7, PACKET, ALERT),
    expires_at=4_000_000_000_000,
)
LIFE_S = 3000
"""Of the simulator's access tokens. Clocks are set ahead by less than the hour that an assertion lives."""


class Clock:
    """The machine's, set ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Noted(list[str]):
    """What came, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def note(self, one: str) -> None:
        self.append(one)
        self._more.set()

    async def has(self, number: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(5):
            while len(self) < number:
                self._more.clear()
                await self._more.wait()


class Network:
    """A simulator that knows nothing yet, and senders to it, closed in the end."""

    def __init__(self, simulator: FcmSimulator) -> None:
        self.simulator = simulator
        for known in (simulator.received, simulator.refused, simulator.access_tokens):
            known.clear()
        self.clock = Clock()
        self.asked = Noted()
        """Requests for access tokens: the scope of each."""
        self.came = Noted()
        """Messages: the access token of each."""
        self._carried: set[int] = set()
        self._senders: list[FcmSender] = []
        self.oauth()
        self.messages()

    def sender(self, *, endpoint: str | None = None, ca_file: Path | None = None) -> FcmSender:
        simulator = self.simulator
        sender = FcmSender(
            simulator.credentials_file,
            endpoint=endpoint or simulator.endpoint,
            ca_file=ca_file or simulator.authority.ca_file,
            clock=self.clock,
        )
        self._senders.append(sender)
        return sender

    def oauth(self, *reactions: Reaction | None) -> None:
        """Answer requests for access tokens like this, one after the other, and all after them as usual."""
        waiting = list(reactions)

        def react(request: TokenRequest) -> Reaction | None:
            self.asked.note(request.claims["scope"])
            return waiting.pop(0) if waiting else None

        self.simulator.oauth_react = react

    def messages(self, react: Callable[[FcmPush], Reaction | None] = lambda _: None) -> None:
        """React to messages like this."""

        def noted(push: FcmPush) -> Reaction | None:
            self._carried.add(push.connection)
            self.came.note(push.access_token)
            return react(push)

        self.simulator.react = noted

    def answer(self, *reactions: Reaction | None) -> None:
        """Answer messages like this, one after the other, and all after them as usual."""
        waiting = list(reactions)
        self.messages(lambda _: waiting.pop(0) if waiting else None)

    @property
    def only(self) -> FcmSender:
        """Its one sender."""
        [sender] = self._senders
        return sender

    @property
    def connections(self) -> int:
        """How many have carried messages."""
        return len(self._carried)

    async def close(self) -> None:
        for sender in self._senders:
            await sender.close()


@pytest.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FcmSimulator]:
    """A simulator for all tests: keys take long to make."""
    async with fcm_simulator(tmp_path_factory.mktemp("fcm"), token_life_s=LIFE_S) as simulator:
        yield simulator


@pytest.fixture
async def network(kept: FcmSimulator) -> AsyncIterator[Network]:
    network = Network(kept)
    yield network
    await network.close()


@pytest.fixture
def simulator(network: Network) -> FcmSimulator:
    return network.simulator


@pytest.fixture
def sender(network: Network) -> FcmSender:
    return network.sender()


@pytest.fixture(scope="module")
async def used(kept: FcmSimulator) -> AsyncIterator[Network]:
    """The network of a sender that many tests use, one after the other."""
    network = Network(kept)
    network.sender()
    yield network
    await network.close()


def to(device: int) -> Wakeup:
    return replace(WAKEUP, token=f"device-{device}")


async def within(awaited: Awaitable[object]) -> None:
    async with asyncio.timeout(10):
        await awaited


async def all_of(sends: Iterable[Awaitable[Outcome]]) -> list[Outcome]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*sends)


async def renewed(sender: FcmSender) -> None:
    """Wait until the request for a token that is under way has ended."""
    assert sender._access._asking is not None
    await asyncio.wait([sender._access._asking])


async def connecting(sender: FcmSender) -> None:
    """Let those who have begun to send come to where they wait for a connection."""
    for _ in range(20):
        if sender._pool._connecting is not None:
            return
        await asyncio.sleep(0)
    raise AssertionError("nobody has come there")


async def test_it_is_a_sender(network: Network) -> None:
    sender: Sender = network.sender()
    assert sender is not None


# --- What is sent


async def test_a_push_carries_the_version_and_the_packets_very_bytes(
    sender: FcmSender, simulator: FcmSimulator
) -> None:
    assert await sender.send(WAKEUP) == Accepted()
    [push] = simulator.received
    assert push.token == TOKEN
    assert push.data == {"version": "7", "packet": PACKET.decode()}
    assert push.data["packet"].encode() == PACKET
    assert set(push.message) == {"token", "data", "android"}
    assert simulator.refused == []


def packet_of(size: int) -> bytes:
    """A packet with which the whole data takes `size` bytes."""
    data = {"version": "7", "packet": '{"x":"ü"}'}
    return f'{{"x":"ü{"." * (size - len(orjson.dumps(data)))}"}}'.encode()


async def test_a_packet_that_just_fits_is_carried(sender: FcmSender, simulator: FcmSimulator) -> None:
    packet = packet_of(MAX_PAYLOAD_BYTES)
    assert await sender.send(replace(WAKEUP, content=Content(7, packet, ALERT))) == Accepted()
    assert simulator.received[0].data["packet"].encode() == packet
    assert simulator.refused == []


async def test_a_packet_that_does_not_fit_is_left_out(sender: FcmSender, simulator: FcmSimulator) -> None:
    packet = packet_of(MAX_PAYLOAD_BYTES + 1)
    assert await sender.send(replace(WAKEUP, content=Content(7, packet, ALERT))) == Accepted()
    assert simulator.received[0].data == {"version": "7"}
    assert simulator.refused == []


async def test_without_a_packet_only_the_version_is_carried(sender: FcmSender, simulator: FcmSimulator) -> None:
    assert await sender.send(replace(WAKEUP, content=Content(7, None, None))) == Accepted()
    assert simulator.received[0].data == {"version": "7"}


async def test_an_alert_has_high_priority_and_a_background_push_normal(
    sender: FcmSender, simulator: FcmSimulator
) -> None:
    await sender.send(WAKEUP)
    await sender.send(replace(WAKEUP, content=Content(8, PACKET, None)))
    assert [push.priority for push in simulator.received] == ["HIGH", "NORMAL"]
    assert [push.collapse_key for push in simulator.received] == ["bob", "bob"]


@pytest.mark.parametrize(("left_s", "ttl_s"), [(3600.5, 3600), (0.4, 0), (-100, 0), (40 * 86400, 28 * 86400)], ids=str)
async def test_fcm_keeps_a_push_until_it_expires(
    network: Network, sender: FcmSender, left_s: float, ttl_s: float
) -> None:
    now_s = time.time()
    sender._clock = lambda: now_s
    await sender.send(replace(WAKEUP, expires_at=int((now_s + left_s) * 1000)))
    assert network.simulator.received[0].ttl_s == pytest.approx(ttl_s, abs=1)
    assert network.simulator.received[0].message["android"]["ttl"].removesuffix("s").isdigit()
    assert network.simulator.refused == []


async def test_the_data_of_a_content_is_made_once_for_all_devices(sender: FcmSender, simulator: FcmSimulator) -> None:
    content = Content(7, PACKET, ALERT)
    await all_of(sender.send(replace(to(device), content=replace(content))) for device in range(8))
    await sender.send(replace(WAKEUP, content=replace(content, version=8)))
    assert [push.data["version"] for push in simulator.received] == ["7"] * 8 + ["8"]
    assert sender._data.cache_info().misses == 2


async def test_the_right_to_send_is_all_that_is_asked_for(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    assert network.asked == [SCOPE]


@pytest.mark.parametrize(
    "wakeup",
    [
        replace(WAKEUP, token=""),
        replace(WAKEUP, token="half a pair \ud83d"),
        replace(WAKEUP, collapse_id="half a pair \ud83d"),
        replace(WAKEUP, content=Content(7, b'{"x":"\xff"}', ALERT)),
    ],
    ids=["no token", "token", "collapse id", "packet"],
)
async def test_what_cannot_be_sent_is_rejected_and_not_sent(
    network: Network, sender: FcmSender, wakeup: Wakeup
) -> None:
    outcome = await sender.send(wakeup)
    assert isinstance(outcome, Rejected)
    assert "half" not in outcome.reason
    assert network.came == network.simulator.refused == []


# --- What becomes of it


def named(value: object) -> str:
    """What a parameter is called."""
    return str(value.status) if isinstance(value, Answer) else type(value).__name__


def error(status: int, name: str, *details: object, message: str = "Sorry.") -> Answer:
    body = {"error": {"code": status, "status": name, "message": message, "details": details}}
    return Answer(status, orjson.dumps(body), (("content-type", "application/json"),))


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (refusal("UNREGISTERED"), TokenDead()),
        (refusal("INVALID_ARGUMENT"), Rejected("the token is no registration token (INVALID_ARGUMENT)")),
        (
            invalid_value("message.token", "Invalid registration token", fcm_error=True),
            Rejected("the token is no registration token (INVALID_ARGUMENT)"),
        ),
        (
            invalid_value("message.data[0].value", "Invalid value: 12"),
            Rejected("the payload is wrong (INVALID_ARGUMENT): message.data[0].value"),
        ),
        (
            invalid_value("message.android.ttl", "Invalid value: 12", fcm_error=True),
            Rejected("the payload is wrong (INVALID_ARGUMENT): message.android.ttl"),
        ),
        (
            invalid_value("", "Message is too big", fcm_error=True),
            Rejected("the payload is wrong (INVALID_ARGUMENT): it is not said where"),
        ),
        (
            error(400, "INVALID_ARGUMENT"),
            Rejected("the payload is wrong (INVALID_ARGUMENT): it is not said where"),
        ),
        (
            refusal("SENDER_ID_MISMATCH"),
            Rejected("the token belongs to another Firebase project (SENDER_ID_MISMATCH)"),
        ),
        (
            permission_denied(),
            Retry(
                "HTTP 403, PERMISSION_DENIED: Permission 'cloudmessaging.messages.create' denied on the project, or it "
                "may not exist.",
                outage=True,
            ),
        ),
        (
            refusal("THIRD_PARTY_AUTH_ERROR"),
            Retry(
                "HTTP 401, THIRD_PARTY_AUTH_ERROR, UNAUTHENTICATED: Auth error from APNS or Web Push Service",
                outage=True,
            ),
        ),
        (
            refusal("QUOTA_EXCEEDED"),
            Retry("HTTP 429, QUOTA_EXCEEDED, RESOURCE_EXHAUSTED: Sending quota exceeded.", 60_000),
        ),
        (
            refusal("QUOTA_EXCEEDED", retry_after=7),
            Retry("HTTP 429, QUOTA_EXCEEDED, RESOURCE_EXHAUSTED: Sending quota exceeded.", 7_000),
        ),
        (
            refusal("UNAVAILABLE"),
            Retry("HTTP 503, UNAVAILABLE: The service is currently unavailable.", outage=True),
        ),
        (
            refusal("UNAVAILABLE", retry_after=120),
            Retry("HTTP 503, UNAVAILABLE: The service is currently unavailable.", 120_000, outage=True),
        ),
        (
            refusal("UNAVAILABLE", retry_after="soon"),
            Retry("HTTP 503, UNAVAILABLE: The service is currently unavailable.", outage=True),
        ),
        (refusal("INTERNAL"), Retry("HTTP 500, INTERNAL: Internal error encountered.", outage=True)),
        (refusal("UNSPECIFIED_ERROR"), Retry("HTTP 500, UNKNOWN, UNSPECIFIED_ERROR: Unknown error.", outage=True)),
        (error(404, "NOT_FOUND"), Retry("HTTP 404, NOT_FOUND: Sorry.", outage=True)),
        (error(504, "DEADLINE_EXCEEDED"), Retry("HTTP 504, DEADLINE_EXCEEDED: Sorry.", outage=True)),
        (error(409, "ABORTED"), Retry("HTTP 409, ABORTED: Sorry.")),
        (error(400, "FAILED_PRECONDITION"), Retry("HTTP 400, FAILED_PRECONDITION: Sorry.")),
    ],
    ids=named,
)
async def test_what_fcm_says_decides_what_becomes_of_a_push(used: Network, answer: Answer, outcome: Outcome) -> None:
    used.came.clear()
    used.answer(answer)
    assert await used.only.send(WAKEUP) == outcome
    assert len(used.came) == 1
    assert await used.only.send(WAKEUP) == Accepted()
    assert used.simulator.refused == []


@pytest.mark.parametrize("status", [400, 403, 404, 413, 429, 500, 502, 503, 504])
async def test_a_page_of_somebody_in_between_is_an_outage_whatever_its_status(used: Network, status: int) -> None:
    used.came.clear()
    used.answer(html(status))
    assert await used.only.send(WAKEUP) == Retry(f"HTTP {status}, but not of FCM's form", outage=True)
    assert len(used.came) == 1


async def test_a_page_that_says_when_to_come_back_is_believed(used: Network) -> None:
    used.answer(replace(html(503), headers=(("retry-after", "30"),)))
    assert await used.only.send(WAKEUP) == Retry("HTTP 503, but not of FCM's form", 30_000, outage=True)


ODD = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"error":"invalid_token"}',
    b'{"error":null}',
    b'{"error":{"status":7}}',
    b"[",
]


@pytest.mark.parametrize("status", [200, 400, 404, 503])
@pytest.mark.parametrize("body", ODD, ids=str)
async def test_json_of_another_form_is_an_outage(used: Network, status: int, body: bytes) -> None:
    used.answer(Answer(status, body))
    assert await used.only.send(WAKEUP) == Retry(f"HTTP {status}, but not of FCM's form", outage=True)


@pytest.mark.parametrize("details", [None, "x", {}, [1, None, "x"], [{"@type": 7}], [{"errorCode": "UNREGISTERED"}]])
async def test_details_of_another_form_are_none(used: Network, details: object) -> None:
    body = {"error": {"status": "UNAVAILABLE", "message": 7, "details": details}}
    used.answer(Answer(503, orjson.dumps(body)))
    assert await used.only.send(WAKEUP) == Retry("HTTP 503, UNAVAILABLE", outage=True)


@pytest.mark.parametrize("body", [b"{}", b'{"name":""}', b'{"name":7}', b'{"error":{"status":"UNAVAILABLE"}}'], ids=str)
async def test_only_the_messages_name_proves_that_fcm_has_taken_it(used: Network, body: bytes) -> None:
    used.answer(Answer(200, body))
    assert await used.only.send(WAKEUP) == Retry("HTTP 200, but not of FCM's form", outage=True)


async def test_another_success_is_none(used: Network) -> None:
    used.answer(Answer(202, b'{"name":"x"}'))
    assert await used.only.send(WAKEUP) == Retry("HTTP 202, but not of FCM's form", outage=True)


async def test_an_answer_that_does_not_end_is_not_read_to_its_end(used: Network) -> None:
    used.answer(Answer(503, b"x" * (http2.MOST_BODY_BYTES + 1)))
    assert await used.only.send(WAKEUP) == Retry("the answer is too long", outage=True)
    assert await used.only.send(WAKEUP) == Accepted()
    assert used.connections == 1


@pytest.mark.parametrize(
    ("value", "after_ms"),
    [
        (" 120 ", 120_000),
        ("86400", 3_600_000),
        ("9" * 5000, 3_600_000),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("\xb2", None),
        ("Mon, 99 Foo 2026 10:00:00 GMT", None),
        ("Mon, 24 Nov 2025 10:00:00 GMT", None),
        ("Mon, 23 Nov 2099 10:00:00 GMT", 3_600_000),
    ],
)
async def test_fcms_word_on_when_to_come_back_is_kept_if_it_makes_sense(
    used: Network, value: str, after_ms: int | None
) -> None:
    for name, otherwise in (("UNAVAILABLE", None), ("QUOTA_EXCEEDED", 60_000)):
        used.answer(refusal(name, retry_after=value))
        outcome = await used.only.send(WAKEUP)
        assert isinstance(outcome, Retry)
        assert outcome.after_ms == (after_ms or otherwise)


async def test_a_date_in_retry_after_is_counted_from_now(used: Network) -> None:
    used.answer(refusal("UNAVAILABLE", retry_after=formatdate(used.clock() + 90, usegmt=True)))
    outcome = await used.only.send(WAKEUP)
    assert isinstance(outcome, Retry)
    assert outcome.after_ms == pytest.approx(90_000, abs=2_000)


async def test_a_reason_tells_nothing_that_is_secret(network: Network, sender: FcmSender) -> None:
    for name in ("UNAVAILABLE", "PERMISSION_DENIED", "INVALID_ARGUMENT", "INTERNAL"):
        for wakeup in (WAKEUP, to(1)):
            await sender.send(WAKEUP)
            access = network.simulator.access_tokens[-1]
            message = f"Hm\r\n\x1b[31m {wakeup.token} and Bearer {access} and {PACKET.decode()} and {'long ' * 999}"
            bad = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": message}]}
            network.answer(error(503, name, bad, message=message))
            outcome = await sender.send(wakeup)
            assert isinstance(outcome, Retry | Rejected)
            assert wakeup.token not in outcome.reason
            assert access not in outcome.reason
            assert "client_id" not in outcome.reason
            assert outcome.reason.isprintable()
            assert len(outcome.reason) < 300


def test_what_is_said_is_short_of_one_line_and_without_secrets() -> None:
    address = "https://console.developers.google.com/apis/api/fcm.googleapis.com/overview?project=123456789012"
    assert said(f"Enable it by visiting {address} then retry.") == f"Enable it by visiting {address} then retry."
    assert said(f"No: {TOKEN}.") == "No: [hidden]"
    assert said("a\r\nb\x1bc\u2028d\ud83de") == "a b c d e"
    assert said('Invalid {"version":7}') == "Invalid"
    assert len(said("ab " * 999)) <= 200
    assert said("x" * 100_000) == "[hidden]"


async def test_what_nobody_has_foreseen_is_logged_without_its_text(
    sender: FcmSender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError(f"about {TOKEN}")

    monkeypatch.setattr(sender._pool, "post", fail)
    assert await sender.send(WAKEUP) == Retry("unforeseen: RuntimeError")
    [record] = [record for record in caplog.records if record.name == "push.fcm"]
    assert "in fail" in vars(record)["where"]
    assert TOKEN not in str(vars(record))


# --- The account


def written(path: Path, value: object) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else orjson.dumps(value))
    return path


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        ({"type": "authorized_user"}, 'its "type" is not "service_account"'),
        ({"project_id": None}, '"project_id" is missing or wrong'),
        ({"project_id": "../x"}, '"project_id" is missing or wrong'),
        ({"token_uri": None}, '"token_uri" is no https:// address'),
        ({"token_uri": "http://127.0.0.1/token"}, '"token_uri" is no https:// address'),
        ({"token_uri": "https://["}, '"token_uri" is no https:// address'),
        ({"client_email": None}, '"client_email" is missing'),
        ({"private_key": None}, '"private_key" is no RSA key'),
        ({"private_key": "secret"}, '"private_key" is no RSA key'),
        (
            {"private_key": private_pem(ec.generate_private_key(ec.SECP256R1())).decode()},
            '"private_key" is no RSA key',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_credentials_that_cannot_be_used_are_refused_with_a_sentence(
    simulator: FcmSimulator, tmp_path: Path, change: dict[str, Any], said_of_it: str
) -> None:
    known = json.loads(simulator.credentials_file.read_bytes())
    path = written(tmp_path / "changed.json", known | change)
    with pytest.raises(ValueError, match=said_of_it) as caught:
        FcmSender(path)
    assert caught.value.__cause__ is None
    assert "secret" not in str(caught.value)
    assert known["private_key"][100:150] not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said_of_it"), [(b"{secret", "is no JSON"), (b'["secret"]', "is no JSON object"), (b"\xff", "no JSON")]
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, said_of_it: str) -> None:
    with pytest.raises(ValueError, match=said_of_it) as caught:
        FcmSender(written(tmp_path / "x.json", content))
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        FcmSender(tmp_path / "none.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        FcmSender(tmp_path)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "127.0.0.1", "https://", "https://[", "https://x:99999"])
async def test_an_endpoint_that_is_no_address_is_refused(simulator: FcmSimulator, endpoint: str) -> None:
    with pytest.raises(ValueError, match="is no https:// address"):
        FcmSender(simulator.credentials_file, endpoint=endpoint)


async def test_a_file_without_certificates_is_refused(simulator: FcmSimulator, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", written(tmp_path / "some.pem", b"nothing")):
        with pytest.raises(ValueError, match="holds no certificates"):
            FcmSender(simulator.credentials_file, ca_file=path)


async def test_the_environment_decides_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "FIREBASE_CONFIG", "SSL_CERT_FILE", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await network.sender().send(WAKEUP) == Accepted()


async def test_senders_do_not_know_of_each_other(network: Network) -> None:
    apps = dict(firebase_admin._apps)
    one, other = network.sender(), network.sender()
    assert await all_of([one.send(to(1)), other.send(to(2))]) == [Accepted()] * 2
    await one.close()
    assert await other.send(to(3)) == Accepted()
    assert firebase_admin._apps == apps == {}
    assert network.connections == 2


# --- Access tokens


async def test_all_sends_wait_for_the_same_access_token(network: Network, sender: FcmSender) -> None:
    network.oauth(Late(0.05))
    assert await all_of(sender.send(to(device)) for device in range(50)) == [Accepted()] * 50
    assert len(network.asked) == 1


async def test_a_token_is_renewed_ahead_of_time_while_the_old_one_is_used(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    network.clock.ahead_s = LIFE_S - AHEAD_S - 60
    await sender.send(WAKEUP)
    assert len(network.asked) == 1
    network.clock.ahead_s = LIFE_S - AHEAD_S + 60
    network.oauth(Late(0.05))
    assert await all_of(sender.send(to(device)) for device in range(20)) == [Accepted()] * 20
    await renewed(sender)
    await sender.send(WAKEUP)
    first, second = network.simulator.access_tokens
    assert network.came == [first] * 22 + [second]
    assert len(network.asked) == 2
    assert network.simulator.refused == []


async def test_a_token_that_has_expired_is_not_used(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    network.clock.ahead_s = LIFE_S - 5
    assert await all_of(sender.send(to(device)) for device in range(20)) == [Accepted()] * 20
    assert network.came[1:] == network.simulator.access_tokens[1:] * 20


@pytest.mark.parametrize("life", [None, 0, -5, 30, 300, 1200])
async def test_a_token_of_a_short_life_is_not_asked_for_with_every_send(
    network: Network, sender: FcmSender, life: int | None
) -> None:
    await sender.send(WAKEUP)
    known = network.simulator.access_tokens[0]
    network.clock.ahead_s = LIFE_S
    body = {"access_token": known, "token_type": "Bearer"} | ({} if life is None else {"expires_in": life})
    network.oauth(Answer(200, orjson.dumps(body)))
    assert await all_of(sender.send(to(device)) for device in range(5)) == [Accepted()] * 5
    assert await sender.send(WAKEUP) == Accepted()
    assert sender._access._asking is None
    assert len(network.asked) == 2


async def test_a_renewal_that_fails_is_only_logged_while_the_old_token_is_good(
    network: Network, sender: FcmSender, caplog: pytest.LogCaptureFixture
) -> None:
    await sender.send(WAKEUP)
    network.clock.ahead_s = LIFE_S - AHEAD_S + 10
    network.oauth(oauth_refusal("server_error", status=503), None)
    await sender.send(WAKEUP)
    await renewed(sender)
    assert await all_of(sender.send(to(device)) for device in range(20)) == [Accepted()] * 20
    assert sender._access._asking is None
    assert len(network.asked) == 2
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert vars(warning)["reason"] == "HTTP 503, server_error"
    assert vars(warning)["left_s"] == pytest.approx(AHEAD_S - 10, abs=5)
    network.clock.ahead_s += PAUSE_S + 1
    await sender.send(WAKEUP)
    await renewed(sender)
    await sender.send(WAKEUP)
    assert len(network.asked) == 3
    assert network.came[-1] == network.simulator.access_tokens[-1] != network.came[0]


async def test_without_a_token_pushes_wait_and_nobody_is_asked_with_every_send(
    network: Network, sender: FcmSender
) -> None:
    refused = oauth_refusal("invalid_grant", "Invalid JWT Signature.")
    network.oauth(refused, refused)
    denied = Retry("no access token: HTTP 400, invalid_grant, Invalid JWT Signature.", outage=True)
    assert await all_of(sender.send(to(device)) for device in range(20)) == [denied] * 20
    assert await sender.send(WAKEUP) == denied
    assert len(network.asked) == 1
    network.clock.ahead_s += PAUSE_S + 1
    assert await sender.send(WAKEUP) == denied
    network.clock.ahead_s += PAUSE_S + 1
    assert await sender.send(WAKEUP) == Accepted()
    assert len(network.asked) == 3


async def test_a_clock_that_is_set_back_does_not_lengthen_the_pause(network: Network, sender: FcmSender) -> None:
    network.clock.ahead_s = 1000
    network.oauth(html(503))
    assert await sender.send(WAKEUP) == Retry("no access token: HTTP 503", outage=True)
    network.clock.ahead_s = 0
    assert await sender.send(WAKEUP) == Accepted()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (html(200), "the answer could not be used (TypeError)"),
        (Answer(200, b"{}"), "the answer could not be used (RefreshError)"),
        (Answer(200, b'{"id_token":"secret-one"}'), "the answer could not be used (RefreshError)"),
        (Answer(200, b'{"access_token":7}'), "the answer has no access token"),
        (Answer(200, b'{"access_token":""}'), "the answer has no access token"),
        (Answer(200, b'{"access_token":"a b"}'), "the answer has no access token"),
        (Answer(200, b'{"access_token":"a\\r\\nx: y"}'), "the answer has no access token"),
        (Answer(200, b'{"access_token":"a","expires_in":"x"}'), "the answer could not be used (ValueError)"),
        (Answer(200, b'{"access_token":"a","expires_in":1e99}'), "the answer could not be used (OverflowError)"),
        (Answer(200, b" " * 70_000), "the answer is too long"),
        (Answer(302, headers=(("location", "https://127.0.0.1:1/"),)), "HTTP 302"),
        (html(404), "HTTP 404"),
        (Answer(400, b'{"error":["secret-one"]}'), "HTTP 400"),
        (oauth_refusal("server_error", "x" * 999, status=500), "HTTP 500, server_error, [hidden]"),
        (Cut(), "the connection was lost"),
        (Reset(), "the request was reset (2)"),
    ],
    ids=named,
)
async def test_whatever_is_no_access_token_is_an_outage_and_nobody_is_asked_again_for_it(
    network: Network, sender: FcmSender, answer: Reaction, reason: str
) -> None:
    network.oauth(answer)
    assert await sender.send(WAKEUP) == Retry(f"no access token: {reason}", outage=True)
    assert len(network.asked) == 1
    assert network.came == []


async def test_whoever_issues_tokens_has_a_deadline(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcm_access, "ASK_S", 0.1)
    network.oauth(Silence())
    async with asyncio.timeout(3):
        assert await sender.send(WAKEUP) == Retry("no access token: no answer within 0.1 s", outage=True)


async def test_the_loop_goes_on_while_a_token_is_waited_for(network: Network, sender: FcmSender) -> None:
    network.oauth(Late(0.6))
    beats = 0

    async def beat() -> None:
        nonlocal beats
        for beats in count():  # noqa: B007 - it is told below
            await asyncio.sleep(0.005)

    beating = asyncio.ensure_future(beat())
    assert await sender.send(WAKEUP) == Accepted()
    beating.cancel()
    await asyncio.wait([beating])
    assert beats > 10  # a hundred and more where nothing else is to be done; one or two where the loop stands still


async def test_a_send_that_is_cancelled_does_not_take_the_token_from_the_others(
    network: Network, sender: FcmSender
) -> None:
    network.oauth(Late(0.05))
    first, *others = [asyncio.ensure_future(sender.send(to(device))) for device in range(5)]
    await network.asked.has(1)
    first.cancel()
    assert await all_of(others) == [Accepted()] * 4
    assert first.cancelled()
    assert len(network.asked) == 1
    assert len(network.simulator.received) == 4


async def test_a_token_that_fcm_refuses_is_renewed_once_and_the_push_tried_once_more(
    network: Network, sender: FcmSender
) -> None:
    network.answer(unauthenticated())
    assert await sender.send(WAKEUP) == Accepted()
    assert network.came == network.simulator.access_tokens
    assert len(network.came) == 2
    network.answer(html(401))
    network.clock.ahead_s += REFUSED_PAUSE_S + 1
    assert await sender.send(WAKEUP) == Accepted()
    assert network.came[2:] == network.simulator.access_tokens[1:]
    assert len(network.came) == 4


async def test_a_second_401_is_an_outage_and_tokens_are_not_renewed_with_every_send(
    network: Network, sender: FcmSender
) -> None:
    network.messages(lambda _: unauthenticated())
    denied = Retry("HTTP 401, UNAUTHENTICATED: Request had invalid authentication credentials.", outage=True)
    assert await sender.send(WAKEUP) == denied
    assert (len(network.came), len(network.asked)) == (2, 2)
    for _ in range(5):
        assert await sender.send(WAKEUP) == denied
    assert (len(network.came), len(network.asked)) == (7, 2)
    network.clock.ahead_s += REFUSED_PAUSE_S + 1
    assert await sender.send(WAKEUP) == denied
    assert (len(network.came), len(network.asked)) == (9, 3)


async def test_many_that_are_refused_at_once_share_one_renewal(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    first = network.simulator.access_tokens[0]
    late = count()
    network.messages(lambda push: Late(next(late) % 7 / 100, unauthenticated()) if push.access_token == first else None)
    assert await all_of(sender.send(to(device)) for device in range(60)) == [Accepted()] * 60
    assert len(network.asked) == 2


async def test_another_providers_401_renews_nothing(network: Network, sender: FcmSender) -> None:
    network.messages(lambda _: refusal("THIRD_PARTY_AUTH_ERROR"))
    outcome = await sender.send(WAKEUP)
    assert isinstance(outcome, Retry)
    assert (len(network.came), len(network.asked)) == (1, 1)


async def test_a_renewal_that_fails_after_a_401_is_an_outage(network: Network, sender: FcmSender) -> None:
    network.oauth(None, html(500))
    network.answer(unauthenticated(), None, unauthenticated())
    assert await sender.send(WAKEUP) == Retry("no access token: HTTP 500", outage=True)
    assert await sender.send(WAKEUP) == Accepted()
    network.clock.ahead_s += PAUSE_S + 1
    assert await sender.send(WAKEUP) == Accepted()
    assert len(network.asked) == 3


# --- Connections


async def test_one_connection_is_kept_for_all(network: Network, sender: FcmSender) -> None:
    for device in range(5):
        assert await sender.send(to(device)) == Accepted()
    assert await all_of(sender.send(to(device)) for device in range(50)) == [Accepted()] * 50
    assert network.connections == 1
    assert network.simulator.pings == 0


async def test_hundreds_at_once_take_few_connections_and_never_more_than_they_bear(
    network: Network, sender: FcmSender
) -> None:
    network.messages(lambda _: Late(0.01))
    assert await all_of(sender.send(to(device)) for device in range(300)) == [Accepted()] * 300
    assert len({push.token for push in network.simulator.received}) == 300
    assert 1 <= network.connections <= MOST_CONNECTIONS
    assert await all_of(sender.send(to(device)) for device in range(600)) == [Accepted()] * 600
    assert 1 < network.connections <= MOST_CONNECTIONS
    assert network.simulator.refused == []


async def test_a_server_that_takes_few_at_once_gets_few_at_once(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(peer: Peer) -> None:
        peer.streams = 3

    monkeypatch.setattr(network.simulator, "opened", opened)
    network.messages(lambda _: Late(0.001))
    assert await all_of(sender.send(to(device)) for device in range(100)) == [Accepted()] * 100
    assert network.simulator.refused == []


async def test_an_answer_that_is_late_holds_nobody_up(network: Network, sender: FcmSender) -> None:
    network.messages(lambda push: Silence() if push.token == "device-0" else None)
    slow = asyncio.ensure_future(sender.send(to(0)))
    assert await all_of(sender.send(to(device)) for device in range(1, 100)) == [Accepted()] * 99
    assert not slow.done()
    slow.cancel()
    await asyncio.wait([slow])
    assert network.connections == 1


async def test_a_send_that_is_cancelled_leaves_the_others_alone(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    network.messages(lambda push: Late(0.1, Silence() if push.token.endswith("0") else None))
    sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(50)]
    await network.came.has(51)
    for send in sends[::10]:
        send.cancel()
    assert await all_of(send for index, send in enumerate(sends) if index % 10) == [Accepted()] * 45
    assert all(send.cancelled() for send in sends[::10])
    assert network.connections == 1


async def test_a_send_may_be_cancelled_at_any_step(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    steady = asyncio.ensure_future(sender.send(to(0)))
    for steps in range(25):
        sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(1, 6)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for send in sends:
            send.cancel()
        await asyncio.wait(sends)
        assert await sender.send(to(99)) == Accepted()
    assert await steady == Accepted()
    assert network.connections == 1
    assert network.simulator.refused == []


async def test_hundreds_that_were_cancelled_are_nothing_to_those_that_come_after(
    network: Network, sender: FcmSender
) -> None:
    network.messages(lambda _: Silence())
    for rounds in range(1, 5):
        sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(90)]
        await network.came.has(90 * rounds)
        for send in sends:
            send.cancel()
        await asyncio.wait(sends)
    network.messages()
    assert await all_of(sender.send(to(device)) for device in range(90)) == [Accepted()] * 90
    assert network.connections == 1
    assert network.simulator.refused == []


async def test_who_waits_for_a_turn_may_be_cancelled_too(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_pool, "MOST_CONNECTIONS", 1)
    network.messages(lambda _: Silence())
    first, *sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(150)]
    await network.came.has(100)
    for send in sends[99:]:
        send.cancel()
    await asyncio.wait(sends[99:])
    last = asyncio.ensure_future(sender.send(WAKEUP))
    [connection] = sender._pool._open
    for _ in range(20):
        await asyncio.sleep(0)
    assert connection.load == 101
    network.messages()
    first.cancel()  # so that it is the turn of the last
    assert await last == Accepted()
    for send in sends[:99]:
        send.cancel()
    await asyncio.wait(sends)
    assert len(network.simulator.received) == 1
    assert network.simulator.refused == []


async def test_cancelled_sends_do_not_take_the_connection_from_those_that_wait_for_it(
    network: Network, sender: FcmSender
) -> None:
    await sender._access.token()
    sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(10)]
    await connecting(sender)
    for send in sends[:5]:
        send.cancel()
    assert await all_of(sends[5:]) == [Accepted()] * 5
    assert network.connections == 1


async def test_a_connection_that_was_cut_while_idle_is_nothing_to_the_next_send(
    network: Network, sender: FcmSender
) -> None:
    for _ in range(5):
        assert await sender.send(WAKEUP) == Accepted()
        network.simulator.cut()
    assert await sender.send(WAKEUP) == Accepted()
    assert len(network.came) == 6


async def test_what_was_under_way_on_a_connection_that_was_cut_is_sent_once_more(
    network: Network, sender: FcmSender
) -> None:
    await sender.send(WAKEUP)
    network.answer(Silence(), Silence(), Cut())
    assert await all_of(sender.send(to(device)) for device in range(3)) == [Accepted()] * 3
    assert len(network.came) == 7


async def test_a_server_that_cuts_every_connection_is_an_outage_and_not_asked_for_ever(
    network: Network, sender: FcmSender
) -> None:
    network.messages(lambda _: Cut())
    assert await sender.send(WAKEUP) == Retry("the connection was lost", outage=True)
    assert len(network.came) == 1
    network.messages(lambda _: GoAway())
    assert await sender.send(WAKEUP) == Retry("the server goes away", outage=True)
    assert len(network.came) == 1 + TRIES
    network.messages()
    assert await sender.send(WAKEUP) == Accepted()


async def test_what_a_server_has_not_processed_is_sent_once_more(network: Network, sender: FcmSender) -> None:
    for reaction in (GoAway(b"session_timed_out"), Reset(REFUSED_STREAM)):
        network.answer(reaction)
        assert await sender.send(WAKEUP) == Accepted()
    assert network.connections == 2


async def test_a_request_that_was_reset_is_an_outage_and_the_connection_stays(
    network: Network, sender: FcmSender
) -> None:
    network.answer(Reset())
    assert await sender.send(WAKEUP) == Retry("the request was reset (2)", outage=True)
    assert await sender.send(WAKEUP) == Accepted()
    assert network.connections == 1


async def test_a_server_that_goes_away_still_answers_what_it_has_begun(network: Network, sender: FcmSender) -> None:
    await sender.send(WAKEUP)
    [old] = sender._pool._open
    network.messages(lambda _: Late(0.1))
    sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(20)]
    await network.came.has(21)
    network.simulator.go_away("max_age")
    network.messages()
    assert await sender.send(to(99)) == Accepted()
    assert await all_of(sends) == [Accepted()] * 20
    assert len(network.came) == 22
    assert network.connections == 2
    await within(old.closed.wait())


async def test_a_server_that_went_away_while_nothing_was_under_way_is_nothing_to_the_next_send(
    network: Network, sender: FcmSender
) -> None:
    for _ in range(3):
        assert await sender.send(WAKEUP) == Accepted()
        network.simulator.go_away()
        await within(network.simulator.listener.emptied())
    assert await sender.send(WAKEUP) == Accepted()
    assert network.connections == 4


async def test_a_connection_on_which_nothing_comes_is_given_up(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "SILENCE_S", 0.3)
    await sender.send(WAKEUP)
    network.answer(Silence(), Silence())
    assert (
        await all_of(sender.send(to(device)) for device in range(2)) == [Retry("the server is silent", outage=True)] * 2
    )
    assert await sender.send(WAKEUP) == Accepted()
    assert network.connections == 2


async def test_silence_is_noticed_though_every_send_was_cancelled_before(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "SILENCE_S", 0.3)
    network.messages(lambda _: Silence())
    send = asyncio.ensure_future(sender.send(WAKEUP))
    await network.came.has(1)
    [connection] = sender._pool._open
    send.cancel()
    await asyncio.wait([send])
    await within(connection.closed.wait())
    network.messages()
    assert await sender.send(WAKEUP) == Accepted()
    assert network.connections == 2


async def test_a_server_that_is_slow_but_not_silent_is_waited_for(
    network: Network, sender: FcmSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "SILENCE_S", 0.35)
    network.messages(lambda push: Late(int(push.token.removeprefix("device-")) / 10))
    assert await all_of(sender.send(to(device)) for device in range(6)) == [Accepted()] * 6
    assert network.connections == 1


async def test_where_nobody_listens_there_is_an_outage(network: Network) -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    outcome = await network.sender(endpoint=f"https://127.0.0.1:{port}").send(WAKEUP)
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert outcome.reason.startswith("no connection: ")


async def test_a_server_that_nobody_vouches_for_is_told_nothing(network: Network, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    async with fcm_simulator(tmp_path / "other", authority=stranger) as other:
        sender = network.sender(endpoint=other.endpoint)
        outcome = await sender.send(WAKEUP)
        assert isinstance(outcome, Retry)
        assert outcome.outage
        assert "certificate verify failed" in outcome.reason
        assert other.connections == 0


async def test_who_issues_tokens_must_be_vouched_for_too(network: Network, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sender = network.sender(ca_file=Authority(tmp_path / "other").ca_file)
    outcome = await sender.send(WAKEUP)
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert "certificate verify failed" in outcome.reason
    assert len(network.asked) == 0


@asynccontextmanager
async def served(protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """The address of a server that is not quite FCM."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_server_that_does_not_end_the_handshake_has_a_deadline(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(asyncio.Protocol, None) as endpoint:
        sender = network.sender(endpoint=endpoint)
        await sender._access.token()
        monkeypatch.setattr(http2_pool, "CONNECT_S", 0.1)
        assert await sender.send(WAKEUP) == Retry("no connection within 0.1 s", outage=True)
        await sender.close()


async def test_a_server_that_never_says_what_it_takes_has_a_deadline(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(asyncio.Protocol, network.simulator.authority.server_context()) as endpoint:
        sender = network.sender(endpoint=endpoint)
        await sender._access.token()
        monkeypatch.setattr(http2_pool, "CONNECT_S", 0.1)
        assert await sender.send(WAKEUP) == Retry("no connection within 0.1 s", outage=True)
        await sender.close()


class Saying(asyncio.Protocol):
    """Says something at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._data)  # type: ignore[attr-defined]


async def test_a_server_that_does_not_speak_http_2_is_an_outage(network: Network) -> None:
    context = network.simulator.authority.server_context()
    async with served(lambda: Saying(bytes.fromhex("00 00 01 00 00 00 00 00 00 78")), context) as endpoint:
        outcome = await network.sender(endpoint=endpoint).send(WAKEUP)
        assert isinstance(outcome, Retry)
        assert outcome.outage
        assert "does not keep to HTTP/2" in outcome.reason
    context.set_alpn_protocols(["http/1.1"])
    async with served(asyncio.Protocol, context) as endpoint:
        outcome = await network.sender(endpoint=endpoint).send(WAKEUP)
        assert outcome == Retry("the server does not speak HTTP/2", outage=True)


class Peculiar(asyncio.Protocol):
    """A server with a window of a few bytes, that says 103 before it answers. `hasty`: it does not read bodies."""

    def __init__(self, status: bytes = b"200", *, hasty: bool = False) -> None:
        self._status = status
        self._hasty = hasty
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self._h2.local_settings = Settings(client=False, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: 100})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._h2.initiate_connection()
        self._write()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            match event:
                case RequestReceived() if self._hasty:
                    self._answer(event.stream_id)
                case DataReceived() if not self._hasty:
                    self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                case StreamEnded():
                    self._answer(event.stream_id)
        self._write()

    @property
    def open(self) -> int:
        """How many requests have not ended."""
        return self._h2.open_inbound_streams

    def _answer(self, stream_id: int) -> None:
        self._h2.send_headers(stream_id, [(b":status", b"103"), (b"link", b"x")])
        self._h2.send_headers(stream_id, [(b":status", self._status)])
        self._h2.send_data(stream_id, b'{"name":"x"}', end_stream=True)

    def _write(self) -> None:
        self._transport.write(self._h2.data_to_send())


async def test_a_small_window_is_kept_to(network: Network) -> None:
    async with served(Peculiar, network.simulator.authority.server_context()) as endpoint:
        sender = network.sender(endpoint=endpoint)
        big = replace(WAKEUP, content=Content(7, packet_of(4000), ALERT))
        assert await all_of(sender.send(big) for _ in range(20)) == [Accepted()] * 20
        await sender.close()


async def test_a_status_that_is_none_is_an_outage(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    async with served(lambda: Peculiar(b"fine"), network.simulator.authority.server_context()) as endpoint:
        sender = network.sender(endpoint=endpoint)
        outcome = await sender.send(WAKEUP)
        assert isinstance(outcome, Retry)
        assert outcome.outage
        assert "does not keep to HTTP/2" in outcome.reason
        await sender.close()
    assert caplog.records == []


async def test_an_answer_may_come_before_all_has_been_sent(network: Network) -> None:
    servers: list[Peculiar] = []

    def hasty() -> Peculiar:
        servers.append(Peculiar(hasty=True))
        return servers[-1]

    async with served(hasty, network.simulator.authority.server_context()) as endpoint:
        sender = network.sender(endpoint=endpoint)
        for _ in range(5):
            assert await sender.send(WAKEUP) == Accepted()
        [server] = servers
        assert server.open <= 1  # the last one's end is on its way
        await sender.close()


class OneAtATime(asyncio.Protocol):
    """Takes one request at a time, and says nothing of any."""

    def __init__(self, came: Noted) -> None:
        self._came = came
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.local_settings = Settings(client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: 1})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._came.note("a request")


async def test_when_a_send_is_cancelled_it_is_the_turn_of_the_next(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_pool, "MOST_CONNECTIONS", 1)
    came = Noted()
    async with served(lambda: OneAtATime(came), network.simulator.authority.server_context()) as endpoint:
        sender = network.sender(endpoint=endpoint)
        sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(4)]
        for number, send in enumerate(sends, 1):
            await came.has(number)
            send.cancel()
        await asyncio.wait(sends)
        await sender.close()


# --- The end


async def test_nothing_is_left_after_closing(network: Network) -> None:
    before = asyncio.all_tasks()
    sender = network.sender()
    await all_of(sender.send(to(device)) for device in range(150))
    await sender.close()
    await sender.close()
    assert not sender._pool._open
    await within(network.simulator.listener.emptied())
    assert asyncio.all_tasks() <= before
    assert await sender.send(WAKEUP) == Retry("the sender is closed", outage=True)
    assert network.simulator.open_connections == 0


async def test_what_is_under_way_when_it_is_closed_is_to_be_tried_again(network: Network) -> None:
    sender = network.sender()
    network.messages(lambda _: Silence())
    sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(120)]
    await network.came.has(100)
    await sender.close()
    outcomes = await all_of(sends)
    assert all(isinstance(outcome, Retry) and outcome.outage for outcome in outcomes)


async def test_closing_does_not_wait_for_a_token(network: Network) -> None:
    before = asyncio.all_tasks()
    sender = network.sender()
    network.oauth(Silence())
    sends = [asyncio.ensure_future(sender.send(to(device))) for device in range(3)]
    await network.asked.has(1)
    async with asyncio.timeout(2):
        await sender.close()
        assert await asyncio.gather(*sends) == [Retry("no access token: the sender is closed", outage=True)] * 3
    assert asyncio.all_tasks() <= before


async def test_closing_does_not_wait_for_a_connection(network: Network) -> None:
    before = asyncio.all_tasks()
    async with served(asyncio.Protocol, None) as endpoint:
        sender = network.sender(endpoint=endpoint)
        await sender._access.token()
        send = asyncio.ensure_future(sender.send(WAKEUP))
        await connecting(sender)
        async with asyncio.timeout(2):
            await sender.close()
            assert await send == Retry("the sender is closed", outage=True)
    assert asyncio.all_tasks() <= before


class Mute(asyncio.Protocol):
    """Says nothing, and notes who comes and goes."""

    def __init__(self, came: asyncio.Event, left: asyncio.Event) -> None:
        self._came = came
        self._left = left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.set()


async def test_closing_in_the_middle_of_a_handshake_leaves_no_socket_open(network: Network, tmp_path: Path) -> None:
    simulator, came, left = network.simulator, asyncio.Event(), asyncio.Event()
    async with served(lambda: Mute(came, left), None) as endpoint, asyncio.timeout(5):
        account = json.loads(simulator.credentials_file.read_bytes()) | {"token_uri": f"{endpoint}/token"}
        sender = FcmSender(written(tmp_path / "account.json", account), endpoint=simulator.endpoint)
        send = asyncio.ensure_future(sender.send(WAKEUP))
        await came.wait()
        await sender.close()
        assert await send == Retry("no access token: the sender is closed", outage=True)
        await left.wait()


async def test_a_sender_that_never_sent_can_be_closed(network: Network) -> None:
    await network.sender().close()


# --- What is logged

LOUD = """
import asyncio, logging, sys
from pathlib import Path
from push.fcm import FcmSender
from push.sender import Alert, Content, Environment, Platform, Wakeup
endpoint, credentials, ca, token, packet = sys.argv[1:]
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
content = Content(7, packet.encode(), Alert("VIDEOS_WAITING", ("2", "alice"), 2, True))
wakeup = Wakeup("id", Platform.FCM, Environment.PRODUCTION, token, "bob", content, 4_000_000_000_000)
async def main():
    sender = FcmSender(Path(credentials), endpoint=endpoint, ca_file=Path(ca))
    for _ in range(6):
        print(await sender.send(wakeup))
    await sender.close()
asyncio.run(main())
"""


async def test_nothing_secret_is_logged_at_any_level(network: Network) -> None:
    simulator = network.simulator
    network.oauth(None, oauth_refusal("server_error", TOKEN, status=500), None)
    echo = refusal("UNAVAILABLE", message=f"{TOKEN} {PACKET.decode()}")
    network.answer(None, echo, unauthenticated(), GoAway(), Cut(), Reset())
    # A process of its own: the simulator's HTTP/2 has the same loggers, and says there what it decodes.
    arguments = (simulator.endpoint, str(simulator.credentials_file), str(simulator.authority.ca_file), TOKEN, PACKET)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOUD, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text
    assert text.count("Accepted()") >= 1
    assert "hpack" in text
    key = json.loads(simulator.credentials_file.read_bytes())["private_key"].splitlines()[1:-1]
    for secret in (TOKEN, "client_id", "assertion", *simulator.access_tokens, *key):
        assert secret not in text

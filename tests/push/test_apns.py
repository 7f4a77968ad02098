"""Pushes through APNs, to a simulator that checks what APNs checks: what leaves, and what the answers mean. What
becomes of one push is nothing to the others."""

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from push import apns as apns_module
from push import http2, http2_pool
from push.apns import HOSTS, ApnsCertificate, ApnsKey, ApnsSender, payload
from push.apns_token import ProviderToken
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
    TokenDead,
    Wakeup,
)
from push.simulators.answers import REFUSED_STREAM, Answer, Cut, GoAway, Late, Reaction, Reset, Silence, html
from push.simulators.apns import REASONS, ApnsPush, ApnsSimulator, apns_simulator, refusal
from push.simulators.certificates import Authority, private_pem
from tests.running import within

PACKET = '{"type":"info","client_id":"bob","version":7,"outgoing":[],"incoming":[],"x":"ü\U0001f4f1\\"\\\\"}'.encode()
ALERT = Content(7, PACKET, Alert("VIDEOS_WAITING", ("2", "alice"), badge=2, sound=True))
WAKEUP = Wakeup(
    id="01234567-89ab-4cde-8f01-23456789abcd",
    platform=Platform.APNS,
    environment=Environment.PRODUCTION,
    token="0123456789abcdef" * 4,
    collapse_id="bob",
    content=ALERT,
    expires_at=1_800_000_000_999,
)
BACKGROUND = replace(WAKEUP, content=replace(ALERT, alert=None))
NOW_S = 1_800_000_000.0


class Clock:
    """The time of the sender and the simulator: it passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def apns(tmp_path: Path, authority: Authority, clock: Clock) -> AsyncIterator[ApnsSimulator]:
    async with apns_simulator(tmp_path, authority=authority, clock=clock) as simulator:
        yield simulator


@pytest.fixture
async def sender(apns: ApnsSimulator, authority: Authority, clock: Clock) -> AsyncIterator[ApnsSender]:
    sender = ApnsSender(key_of(apns), endpoint=apns.endpoint, ca_file=authority.ca_file, clock=clock)
    yield sender
    await sender.close()


def key_of(apns: ApnsSimulator) -> ApnsKey:
    return ApnsKey.load(apns.key_file, key_id=apns.key_id, team_id=apns.team_id, topic=apns.topic)


def wakeups(count: int) -> list[Wakeup]:
    return [replace(WAKEUP, id=str(uuid.uuid4()), token=f"{n:064x}") for n in range(count)]


async def until(true: Callable[[], bool]) -> None:
    """Return once it is `true`."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what is waited for happens at the other end
            await asyncio.sleep(0.005)


async def all_sent(sender: ApnsSender, pushes: list[Wakeup]) -> list[Outcome]:
    return await within(asyncio.gather(*(sender.send(push) for push in pushes)))


def once(reaction: Reaction | None) -> Callable[[ApnsPush], Reaction | None]:
    """This to the first push, and the others are accepted."""
    reactions = itertools.chain([reaction], itertools.repeat(None))
    return lambda _: next(reactions)


# --- What leaves


async def test_an_alert_says_how_many_wait_and_who_sent_the_newest(sender: ApnsSender, apns: ApnsSimulator) -> None:
    assert await within(sender.send(WAKEUP)) == Accepted()
    [push] = apns.received
    assert push.token == WAKEUP.token
    assert push.headers["apns-topic"] == apns.topic
    assert (push.push_type, push.priority, push.collapse_id) == ("alert", 10, "bob")
    assert (push.apns_id.lower(), push.expiration) == (WAKEUP.id, 1_800_000_000)
    assert push.aps == {
        "alert": {"loc-key": "VIDEOS_WAITING", "loc-args": ["2", "alice"]},
        "badge": 2,
        "sound": "default",
        "mutable-content": 1,
        "content-available": 1,
    }
    assert push.data["version"] == "7"
    assert push.data["packet"].encode() == PACKET
    assert apns.refused == []


async def test_a_reminder_makes_no_sound(sender: ApnsSender, apns: ApnsSimulator) -> None:
    quiet = replace(ALERT, alert=Alert("VIDEOS_WAITING", ("1", "alice"), badge=1, sound=False))
    await within(sender.send(replace(WAKEUP, content=quiet)))
    assert "sound" not in apns.received[0].aps


async def test_a_background_push_is_content_available_alone_at_priority_5(
    sender: ApnsSender, apns: ApnsSimulator
) -> None:
    assert await within(sender.send(BACKGROUND)) == Accepted()
    [push] = apns.received
    assert (push.push_type, push.priority, push.aps) == ("background", 5, {"content-available": 1})
    assert push.data["packet"].encode() == PACKET
    assert apns.refused == []


@pytest.mark.parametrize("content", [ALERT, BACKGROUND.content])
def test_a_packet_is_carried_up_to_the_last_byte_that_fits(content: Content) -> None:
    room = MAX_PAYLOAD_BYTES - len(payload(replace(content, packet=b"")))
    for packet, carries in ((b"x" * room, True), (b"x" * (room + 1), False), (b'"' * (room // 2 + 1), False)):
        body = payload(replace(content, packet=packet))
        assert len(body) <= MAX_PAYLOAD_BYTES
        assert ("packet" in json.loads(body)) is carries
        assert json.loads(body)["version"] == "7"


async def test_the_largest_payload_is_accepted(sender: ApnsSender, apns: ApnsSimulator) -> None:
    long = Alert("VIDEOS_WAITING", ("256", "s" * 64), badge=256, sound=True)
    content = Content(2**53, b"", long)
    whole = replace(content, packet=b"x" * (MAX_PAYLOAD_BYTES - len(payload(content))))
    assert await within(sender.send(replace(WAKEUP, content=whole, collapse_id="c" * 64))) == Accepted()
    assert len(apns.received[0].payload) == MAX_PAYLOAD_BYTES
    assert apns.refused == []


def test_a_push_without_a_packet_says_its_version_alone() -> None:
    assert json.loads(payload(Content(7, None, None))) == {"aps": {"content-available": 1}, "version": "7"}


def test_a_payload_is_made_once_for_all_of_a_clients_devices() -> None:
    assert payload(replace(ALERT)) is payload(replace(ALERT))


@pytest.mark.parametrize("token", ["", "xyz", "0123/../..", "01 23", "0123\r\nx: y", "é" * 8, "ab" * 300])
async def test_a_token_that_is_none_of_apns_is_rejected_without_asking(
    token: str, sender: ApnsSender, apns: ApnsSimulator
) -> None:
    outcome = await within(sender.send(replace(WAKEUP, token=token)))
    assert isinstance(outcome, Rejected)
    assert apns.connections == 0


async def test_the_sandbox_is_another_host(
    apns: ApnsSimulator, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sandbox").mkdir()
    async with apns_simulator(tmp_path / "sandbox", authority=authority) as sandbox:
        monkeypatch.setitem(HOSTS, Environment.PRODUCTION, apns.endpoint)
        monkeypatch.setitem(HOSTS, Environment.SANDBOX, sandbox.endpoint)
        sender = ApnsSender(key_of(sandbox), ca_file=authority.ca_file)
        assert await within(sender.send(replace(WAKEUP, environment=Environment.SANDBOX))) == Accepted()
        assert (len(sandbox.received), apns.connections) == (1, 0)
        await within(sender.send(WAKEUP))
        assert apns.connections == 1
        await sender.close()


def test_apples_hosts_are_those_of_its_documentation() -> None:
    assert HOSTS == {"production": "https://api.push.apple.com", "sandbox": "https://api.sandbox.push.apple.com"}


# --- What the answers mean

_REJECTED = {
    "BadCollapseId", "BadDeviceToken", "BadExpirationDate", "BadMessageId", "BadPriority", "DeviceTokenNotForTopic",
    "DuplicateHeaders", "InvalidPushType", "MissingDeviceToken", "PayloadEmpty", "PayloadTooLarge",
}  # fmt: skip
_DEAD = {"ExpiredToken", "Unregistered"}


@pytest.mark.parametrize("reason", REASONS)
async def test_every_documented_answer_has_its_outcome(reason: str, sender: ApnsSender, apns: ApnsSimulator) -> None:
    """The token dies with 410 alone; what is wrong with the push is not repeated; the rest waits, and where it has to
    do with us rather than with the device, so does everybody's."""
    apns.react = lambda _: refusal(reason, timestamp_ms=1_700_000_000_000 if reason in _DEAD else None)
    outcome = await within(sender.send(WAKEUP))
    if reason in _DEAD:
        assert outcome == TokenDead(1_700_000_000_000)
    elif reason in _REJECTED:
        assert outcome == Rejected(reason)
    elif reason == "TooManyRequests":
        assert outcome == Retry(reason)
    else:
        assert isinstance(outcome, Retry)
        assert outcome.outage
        assert outcome.reason.startswith(reason)


async def test_a_token_that_died_at_an_unknown_time_is_dead(sender: ApnsSender, apns: ApnsSimulator) -> None:
    apns.react = lambda _: refusal("Unregistered")
    assert await within(sender.send(WAKEUP)) == TokenDead(None)


@pytest.mark.parametrize("reason", ["TooManyRequests", "ServiceUnavailable", "InternalServerError"])
@pytest.mark.parametrize(("said", "after_ms"), [("7", 7_000), ("nonsense", None), ("999999", 3_600_000)])
async def test_apns_word_on_when_to_come_back_is_kept(
    reason: str, said: str, after_ms: int | None, sender: ApnsSender, apns: ApnsSimulator
) -> None:
    apns.react = lambda _: refusal(reason, retry_after=said)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert outcome.after_ms == after_ms


@pytest.mark.parametrize(
    "answer",
    [
        html(502),
        html(403),
        html(400),
        Answer(500),
        Answer(400),
        Answer(418, b'{"reason":"x\\r\\nforged"}'),
        Answer(403, b'{"reason":7}'),
        Answer(400, b"[]"),
        Answer(503, b'{"reason":'),
        Answer(404, b'{"reason":"NewReason"}'),
    ],
)
async def test_what_is_no_answer_of_apns_is_an_outage(answer: Answer, sender: ApnsSender, apns: ApnsSimulator) -> None:
    apns.react = once(answer)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert "\n" not in outcome.reason
    assert await within(sender.send(WAKEUP)) == Accepted()
    assert apns.connections == 1


async def test_a_reason_that_is_not_known_yet_rejects_the_push_alone(sender: ApnsSender, apns: ApnsSimulator) -> None:
    apns.react = lambda _: Answer(400, b'{"reason":"BadMood"}')
    assert await within(sender.send(WAKEUP)) == Rejected("BadMood")


# --- What the network does


@pytest.mark.parametrize("reaction", [Reset(), Cut()])
async def test_a_push_that_is_not_answered_is_an_outage_and_the_next_goes_through(
    reaction: Reaction, sender: ApnsSender, apns: ApnsSimulator
) -> None:
    apns.react = once(reaction)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert await within(sender.send(WAKEUP)) == Accepted()


@pytest.mark.parametrize("reaction", [Reset(REFUSED_STREAM), GoAway(b'{"reason":"Shutdown"}')])
async def test_a_push_that_apns_has_not_looked_at_is_sent_once_more(
    reaction: Reaction, sender: ApnsSender, apns: ApnsSimulator
) -> None:
    apns.react = once(reaction)
    assert await within(sender.send(WAKEUP)) == Accepted()


async def test_a_reset_is_nothing_to_the_others(sender: ApnsSender, apns: ApnsSimulator) -> None:
    await within(sender.send(WAKEUP))
    pushes = wakeups(20)
    apns.react = lambda push: Reset() if push.token == pushes[7].token else Late(0.02)
    outcomes = await all_sent(sender, pushes)
    assert [isinstance(outcome, Accepted) for outcome in outcomes] == [n != 7 for n in range(20)]
    assert apns.connections == 1


async def test_whoever_goes_away_still_answers_what_it_took(sender: ApnsSender, apns: ApnsSimulator) -> None:
    """h2 4.4 reads nothing after a GOAWAY."""
    await within(sender.send(WAKEUP))
    pushes = wakeups(10)
    apns.react = lambda push: GoAway() if push.token == pushes[-1].token else Late(0.05)
    sending = asyncio.create_task(all_sent(sender, pushes))
    await within(apns.receives(10))
    apns.react = lambda _: None
    assert await sending == [Accepted()] * 10
    assert apns.connections == 2
    assert len(apns.received) == 11


async def test_a_push_that_is_given_up_leaves_the_others_alone(sender: ApnsSender, apns: ApnsSimulator) -> None:
    await within(sender.send(WAKEUP))
    pushes = wakeups(10)
    asked = asyncio.Event()

    def react(push: ApnsPush) -> Reaction | None:
        if push.token == pushes[0].token:
            asked.set()
            return Late(0.05)
        return Late(0.15)

    apns.react = react
    sending = [asyncio.create_task(sender.send(push)) for push in pushes]
    await within(asked.wait())
    sending[0].cancel()
    outcomes = await within(asyncio.gather(*sending, return_exceptions=True))
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [Accepted()] * 9
    assert apns.connections == 1


async def test_pushes_that_are_given_up_take_no_room_for_ever(sender: ApnsSender, apns: ApnsSimulator) -> None:
    await within(sender.send(WAKEUP))
    apns.react = lambda _: Silence()
    for _ in range(12):  # 1,200 are more than a connection takes at a time
        sending = [asyncio.create_task(sender.send(push)) for push in wakeups(100)]
        await asyncio.sleep(0)
        for task in sending:
            task.cancel()
        await within(asyncio.gather(*sending, return_exceptions=True))
    apns.react = lambda _: None
    assert await within(sender.send(WAKEUP)) == Accepted()
    assert apns.connections == 1


async def test_thousands_of_errors_do_not_use_up_the_connection(sender: ApnsSender, apns: ApnsSimulator) -> None:
    """Each has a body, which has to be acknowledged."""
    long = Answer(400, b'{"reason":"BadDeviceToken","detail":"%s"}' % (b"x" * 500))
    apns.react = lambda _: long
    for _ in range(5):
        assert set(await all_sent(sender, wakeups(200))) == {Rejected("BadDeviceToken")}
    assert apns.connections <= http2_pool.MOST_CONNECTIONS


async def test_more_than_the_window_takes_goes_out_as_it_opens(sender: ApnsSender, apns: ApnsSimulator) -> None:
    """256 payloads of 4 KiB are sixteen times the window of a new connection."""
    large = replace(ALERT, packet=b"x" * 3_800)
    pushes = [replace(push, content=large) for push in wakeups(256)]
    assert set(await all_sent(sender, pushes)) == {Accepted()}
    assert len(apns.received) == 256
    assert apns.refused == []


async def test_a_new_connection_takes_one_push_until_it_is_authorized(sender: ApnsSender, apns: ApnsSimulator) -> None:
    assert set(await all_sent(sender, wakeups(100))) == {Accepted()}
    assert apns.refused == []
    assert apns.connections <= http2_pool.MOST_CONNECTIONS


async def test_whoever_waits_for_room_hears_that_the_connection_is_lost(
    sender: ApnsSender, apns: ApnsSimulator
) -> None:
    apns.react = lambda _: Cut()
    outcomes = await all_sent(sender, wakeups(20))
    assert all(isinstance(outcome, Retry) and outcome.outage for outcome in outcomes)


async def test_no_connection_is_an_outage(authority: Authority, tmp_path: Path) -> None:
    async with apns_simulator(tmp_path, authority=authority) as apns:
        sender = ApnsSender(key_of(apns), endpoint=apns.endpoint, ca_file=authority.ca_file)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert outcome.outage
    assert "no connection" in outcome.reason
    await sender.close()


async def test_a_server_of_another_authority_is_not_talked_to(apns: ApnsSimulator) -> None:
    sender = ApnsSender(key_of(apns), endpoint=apns.endpoint)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert "certificate" in outcome.reason.lower()
    assert apns.received == []
    await sender.close()


async def test_a_server_that_never_says_what_it_takes_is_given_up(
    authority: Authority, apns: ApnsSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_pool, "CONNECT_S", 0.1)
    silent = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, "127.0.0.1", 0, ssl=authority.server_context()
    )
    port = silent.sockets[0].getsockname()[1]
    sender = ApnsSender(key_of(apns), endpoint=f"https://127.0.0.1:{port}", ca_file=authority.ca_file)
    outcome = await within(sender.send(WAKEUP))
    assert isinstance(outcome, Retry)
    assert outcome.outage
    await sender.close()
    silent.close()
    await silent.wait_closed()


# --- Connections


@pytest.fixture
async def impatient(
    apns: ApnsSimulator, authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ApnsSender]:
    """A sender that pings twenty times a second."""
    monkeypatch.setattr(apns_module, "PING_S", 0.05)
    monkeypatch.setattr(http2, "SILENCE_S", 0.2)
    sender = ApnsSender(key_of(apns), endpoint=apns.endpoint, ca_file=authority.ca_file, clock=clock)
    yield sender
    await sender.close()


async def test_a_connection_is_kept_while_nothing_is_sent_and_pinged(
    impatient: ApnsSender, apns: ApnsSimulator
) -> None:
    await within(impatient.send(WAKEUP))
    await until(lambda: apns.pings >= 10)
    assert await within(impatient.send(WAKEUP)) == Accepted()
    assert apns.connections == 1


async def test_a_connection_that_answers_no_ping_is_given_up(
    impatient: ApnsSender, apns: ApnsSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await within(impatient.send(WAKEUP))
    [connection] = impatient._pools[Environment.PRODUCTION]._open
    monkeypatch.setattr(connection, "data_received", lambda _: None)
    assert connection._transport is not None
    connection._transport.set_protocol(connection)  # asyncio keeps the method of the one that was set
    await until(lambda: not impatient._pools[Environment.PRODUCTION]._open)
    assert await within(impatient.send(WAKEUP)) == Accepted()
    assert apns.connections == 2


async def test_closing_ends_every_connection(sender: ApnsSender, apns: ApnsSimulator) -> None:
    await within(sender.send(WAKEUP))
    await sender.close()
    await until(lambda: not apns.open_connections)


# --- Who we are


@pytest.mark.parametrize("begun_min", [0, 11, 25, 29])
async def test_all_connections_of_all_processes_share_one_provider_token_for_half_an_hour(
    begun_min: int, apns: ApnsSimulator, authority: Authority, clock: Clock
) -> None:
    """APNs refuses new ones that come too often."""
    clock.now_s += 60 * begun_min
    senders = [
        ApnsSender(key_of(apns), endpoint=apns.endpoint, ca_file=authority.ca_file, clock=clock) for _ in range(2)
    ]
    sandbox = replace(WAKEUP, environment=Environment.SANDBOX)
    for _ in range(0, 180, 4):
        for sender in senders:
            assert await within(sender.send(WAKEUP)) == Accepted()
            assert await within(sender.send(sandbox)) == Accepted()
        clock.now_s += 4 * 60
    assert 6 <= len(apns.provider_tokens) <= 7
    assert (apns.refused, apns.connections) == ([], 4)
    for sender in senders:
        await sender.close()


@pytest.mark.parametrize("skew_s", [-100, 100])
async def test_a_clock_that_is_off_by_a_minute_or_two_does_no_harm(
    skew_s: float, apns: ApnsSimulator, authority: Authority, clock: Clock
) -> None:
    sender = ApnsSender(
        key_of(apns), endpoint=apns.endpoint, ca_file=authority.ca_file, clock=lambda: clock.now_s + skew_s
    )
    for _ in range(90):
        assert await within(sender.send(WAKEUP)) == Accepted()
        clock.now_s += 60
    assert apns.refused == []
    await sender.close()


async def test_a_certificate_says_who_we_are_and_for_which_app(apns: ApnsSimulator, authority: Authority) -> None:
    certificate = ApnsCertificate.load(authority.client_certificate(apns.topic))
    assert certificate.topic == apns.topic
    sender = ApnsSender(certificate, endpoint=apns.endpoint, ca_file=authority.ca_file)
    assert set(await all_sent(sender, wakeups(50))) == {Accepted()}
    assert apns.provider_tokens == set()
    assert apns.refused == []
    await sender.close()


def test_a_file_that_holds_no_signing_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "key.p8"
    for content in (
        b"nonsense",
        private_pem(rsa.generate_private_key(65537, 2048)),
        private_pem(ec.generate_private_key(ec.SECP384R1())),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"\.p8 file that Apple gave out"):
            ApnsKey.load(file, key_id="ABCDEFGHIJ", team_id="ABCDEFGHIJ", topic="org.example.app")


def test_a_file_that_holds_no_certificate_with_its_key_is_refused_with_the_reason(
    tmp_path: Path, authority: Authority
) -> None:
    file = tmp_path / "certificate.pem"
    file.write_bytes(authority.ca_file.read_bytes())
    with pytest.raises(ValueError, match="a certificate and its private key"):
        ApnsCertificate.load(file)
    key = private_pem(ec.generate_private_key(ec.SECP256R1()))
    file.write_bytes(authority.ca_file.read_bytes() + key)
    with pytest.raises(ValueError, match="names no topic"):
        ApnsCertificate.load(file)


# --- Secrets


async def test_nothing_secret_is_logged_or_said(
    sender: ApnsSender, apns: ApnsSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    """But for what the simulator's hpack logs, at a level that the gateway never sets for it."""
    caplog.set_level(logging.DEBUG)
    await within(sender.send(WAKEUP))
    outcomes: list[Outcome] = []
    for reaction in (refusal("BadDeviceToken"), Reset(), Cut(), html(502)):
        apns.react = once(reaction)
        outcomes.append(await within(sender.send(WAKEUP)))
    logged = "".join(str(vars(record)) for record in caplog.records if not record.name.startswith("hpack"))
    said = logged + repr(outcomes) + repr(WAKEUP) + repr(apns.received)
    assert WAKEUP.token not in said
    assert "eyJ" not in said
    assert "incoming" not in said


def test_a_provider_token_is_a_jwt_of_the_key_issued_a_little_while_ago() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    token = ProviderToken(key, key_id="K", team_id="T").header.removeprefix("bearer ")
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "kid": "K", "typ": "JWT"}
    claims = jwt.decode(token, key.public_key(), algorithms=["ES256"], options={"verify_iat": False})
    assert claims["iss"] == "T"
    assert 100 < time.time() - claims["iat"] < 33 * 60

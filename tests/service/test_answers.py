"""Every documented answer of both providers, over real HTTP/2 and TLS: what becomes of the wakeup, of the token, and of
the video's status."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.registry import hash_token
from gateway.transit.policy import HOUR_MS, RETRY_MOST_MS
from gateway.transit.state import Status
from push.apns import ApnsKey, ApnsSender
from push.fcm import FcmSender
from push.sender import Platform, Sender
from push.simulators import apns, fcm
from push.simulators.answers import Answer, html
from push.simulators.apns import ApnsSimulator, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import FcmSimulator, fcm_simulator, invalid_value, permission_denied, unauthenticated
from tests.service.conftest import BOB, PHONE, Gateway

_DIGEST = hashlib.sha256(b"bob's phone").hexdigest()
TOKENS = {Platform.APNS: _DIGEST, Platform.FCM: f"{_DIGEST[:22]}:APA91b{_DIGEST}{_DIGEST}"}

_WRONG = {
    "BadCollapseId", "BadDeviceToken", "BadExpirationDate", "BadMessageId", "BadPriority", "DeviceTokenNotForTopic",
    "DuplicateHeaders", "InvalidPushType", "MissingDeviceToken", "PayloadEmpty", "PayloadTooLarge",
    "INVALID_ARGUMENT", "SENDER_ID_MISMATCH",
}  # fmt: skip
"""Answers that concern this push or its token alone: it is given up, and nothing else."""

_DEAD = {"ExpiredToken", "Unregistered", "UNREGISTERED"}


@pytest.fixture(scope="module")
async def simulators(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ApnsSimulator, FcmSimulator]]:
    folder = tmp_path_factory.mktemp("providers")
    authority = Authority(folder)
    async with (
        apns_simulator(folder, authority=authority) as apple,
        fcm_simulator(folder, authority=authority) as google,
    ):
        yield apple, google


@pytest.fixture(scope="module")
async def senders(simulators: tuple[ApnsSimulator, FcmSimulator]) -> AsyncIterator[dict[Platform, Sender]]:
    apple, google = simulators
    key = ApnsKey.load(apple.key_file, key_id=apple.key_id, team_id=apple.team_id, topic=apple.topic)
    ca_file: Path = apple.authority.ca_file
    senders: dict[Platform, Sender] = {
        Platform.APNS: ApnsSender(key, endpoint=apple.endpoint, ca_file=ca_file),
        Platform.FCM: FcmSender(google.credentials_file, endpoint=google.endpoint, ca_file=ca_file),
    }
    yield senders
    for sender in senders.values():
        await sender.close()


async def follows(gateway: Gateway, platform: Platform, kind: str) -> None:
    """Bob has registered, a video has come, and the answer to the push is such a one: what must follow."""
    await gateway.registry.register(BOB, PHONE, platform=platform, environment="production", token=TOKENS[platform])
    ref = await gateway.send()
    gateway.pass_time(5)
    await gateway.wakeups.round()
    device = (await gateway.state(BOB)).devices.get(PHONE)
    owner = await gateway.registry.owner(hash_token(TOKENS[platform]))
    assert (device is None, owner is None) == ((True, True) if kind == "dead" else (False, False))
    accepted = kind == "accepted"
    assert await gateway.sent_status(ref) is (Status.NOTIFIED if accepted else Status.UPLOADED)
    if device is not None:
        after_ms = device.next_at - gateway.clock.now_ms
        match kind:
            case "accepted":
                assert (device.attempts, after_ms) == (1, HOUR_MS)
            case "wrong":
                assert (device.attempts, device.next_at) == (0, 0)
            case _:
                assert (device.attempts, device.failures) == (0, 1)
                assert 0 < after_ms <= RETRY_MOST_MS


def kind_of(reason: str) -> str:
    return "dead" if reason in _DEAD else "wrong" if reason in _WRONG else "later"


@pytest.mark.parametrize("reason", apns.REASONS)
async def test_what_follows_from_every_answer_of_apns(
    reason: str, simulators: tuple[ApnsSimulator, FcmSimulator], senders: dict[Platform, Sender]
) -> None:
    gateway, apple = Gateway(senders=senders), simulators[0]
    gone_ms = gateway.clock.now_ms + 4_000 if reason in _DEAD else None
    apple.react = lambda _: apns.refusal(reason, timestamp_ms=gone_ms)
    await follows(gateway, Platform.APNS, kind_of(reason))
    assert apple.refused == []


@pytest.mark.parametrize("code", fcm.ERROR_CODES)
async def test_what_follows_from_every_answer_of_fcm(
    code: str, simulators: tuple[ApnsSimulator, FcmSimulator], senders: dict[Platform, Sender]
) -> None:
    simulators[1].react = lambda _: fcm.refusal(code)
    await follows(Gateway(senders=senders), Platform.FCM, kind_of(code))
    assert simulators[1].refused == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (None, "accepted"),
        (html(502), "later"),
        (Answer(500), "later"),
        (Answer(400, b"{"), "later"),
        (unauthenticated(), "later"),
        (permission_denied(), "later"),
        (invalid_value("message.data", "too big"), "wrong"),
    ],
)
async def test_what_follows_from_other_answers_of_fcm(
    answer: Answer | None, kind: str, simulators: tuple[ApnsSimulator, FcmSimulator], senders: dict[Platform, Sender]
) -> None:
    simulators[1].react = lambda _: answer
    await follows(Gateway(senders=senders), Platform.FCM, kind)


@pytest.mark.parametrize(
    ("answer", "kind"), [(None, "accepted"), (html(502), "later"), (Answer(403), "later"), (Answer(400, b"{"), "later")]
)
async def test_what_follows_from_other_answers_of_apns(
    answer: Answer | None, kind: str, simulators: tuple[ApnsSimulator, FcmSimulator], senders: dict[Platform, Sender]
) -> None:
    simulators[0].react = lambda _: answer
    await follows(Gateway(senders=senders), Platform.APNS, kind)


async def test_a_timestamp_from_before_the_registration_kills_no_token(
    simulators: tuple[ApnsSimulator, FcmSimulator], senders: dict[Platform, Sender]
) -> None:
    gateway = Gateway(senders=senders)
    before_ms = gateway.clock.now_ms - 1
    simulators[0].react = lambda _: apns.refusal("Unregistered", timestamp_ms=before_ms)
    await gateway.register(token=TOKENS[Platform.APNS])
    await gateway.send()
    gateway.pass_time(5)
    await gateway.wakeups.round()
    device = (await gateway.state(BOB)).devices[PHONE]
    assert (device.attempts, device.next_at) == (1, gateway.clock.now_ms + HOUR_MS)
    assert await gateway.registry.owner(hash_token(TOKENS[Platform.APNS])) is not None

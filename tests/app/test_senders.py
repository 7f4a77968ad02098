"""Which push senders the settings ask for, and what is said of files that will not do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.parsers import ConfigError
from gateway.senders import open_senders
from push.console import ConsoleSender
from push.sender import Platform, Sender
from push.simulators.apns import ApnsSimulator, apns_simulator
from push.simulators.certificates import Authority
from push.simulators.fcm import fcm_simulator
from tests.running import assert_problem, running_gateway, settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def apns_settings(apns: ApnsSimulator) -> dict[str, Any]:
    return {
        "APNS_KEY_FILE": str(apns.key_file),
        "APNS_KEY_ID": apns.key_id,
        "APNS_TEAM_ID": apns.team_id,
        "APNS_TOPIC": apns.topic,
    }


async def opened(chosen: Settings, console: ConsoleSender) -> dict[Platform, Sender]:
    senders = open_senders(chosen, console)
    for sender in senders.values():
        await sender.close()
    return senders


def complaints(chosen: Settings) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        open_senders(chosen, ConsoleSender())
    return refused.value.sentences


async def test_without_a_provider_the_console_shows_all_pushes(tmp_path: Path) -> None:
    console = ConsoleSender()
    assert await opened(settings(tmp_path), console) == {Platform.APNS: console, Platform.FCM: console}


async def test_with_one_provider_the_devices_of_the_other_are_not_woken_and_the_operator_is_told(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with apns_simulator(tmp_path, authority=authority) as apns:
        senders = await opened(settings(tmp_path, **apns_settings(apns)), ConsoleSender())
    assert [*senders] == [Platform.APNS]
    assert "no push provider is configured" in caplog.text


async def test_both_providers(tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async with apns_simulator(tmp_path, authority=authority) as apns, fcm_simulator(tmp_path) as fcm:
        chosen = settings(tmp_path, FCM_CREDENTIALS_FILE=str(fcm.credentials_file), **apns_settings(apns))
        assert set(await opened(chosen, ConsoleSender())) == set(Platform)
    assert caplog.records == []


async def test_whoever_plays_a_phone_is_told_that_its_pushes_go_to_a_provider(
    tmp_path: Path, authority: Authority
) -> None:
    async with (
        apns_simulator(tmp_path, authority=authority) as apns,
        running_gateway(tmp_path, **apns_settings(apns)) as gw,
    ):
        bob = gw.app("bob")
        await bob.register("phone", "ab" * 32)
        answer = await bob.call("GET", "/v1/devices/phone/pushes")
        assert_problem(answer, 404, "not_found", "go to its provider")


async def test_a_certificate_will_do(tmp_path: Path, authority: Authority) -> None:
    file = authority.client_certificate("org.example.app")
    assert set(await opened(settings(tmp_path, APNS_CERT_FILE=str(file)), ConsoleSender())) == {Platform.APNS}


async def test_every_file_that_will_not_do_is_named_at_once(tmp_path: Path, authority: Authority) -> None:
    file = tmp_path / "nonsense"
    file.write_text("nonsense")
    named = {"APNS_KEY_ID": "ABCDEFGHIJ", "APNS_TEAM_ID": "ABCDEFGHIJ", "APNS_TOPIC": "org.example.app"}
    found = complaints(settings(tmp_path, APNS_KEY_FILE=str(file), FCM_CREDENTIALS_FILE=str(file), **named))
    assert [sentence.split(":")[0] for sentence in found] == ["GATEWAY_APNS_KEY_FILE", "GATEWAY_FCM_CREDENTIALS_FILE"]
    assert all(sentence.endswith(".") and str(file) in sentence for sentence in found)
    [found_one] = complaints(settings(tmp_path, APNS_CERT_FILE=str(file)))
    assert found_one.startswith("GATEWAY_APNS_CERT_FILE")
    certificate = authority.client_certificate("org.example.app")
    [found_one] = complaints(settings(tmp_path, APNS_CERT_FILE=str(certificate), APNS_CA_FILE=str(file)))
    assert found_one.startswith("GATEWAY_APNS_CA_FILE")


async def test_a_certificate_authority_of_fcm_that_is_none_is_named(tmp_path: Path, authority: Authority) -> None:
    file = tmp_path / "nonsense"
    file.write_text("nonsense")
    async with fcm_simulator(tmp_path, authority=authority) as fcm:
        chosen = settings(tmp_path, FCM_CREDENTIALS_FILE=str(fcm.credentials_file), FCM_CA_FILE=str(file))
    [found] = complaints(chosen)
    assert str(file) in found


def test_what_a_provider_needs_is_imported_only_where_it_is_asked_for() -> None:
    heavy = ("aioapns", "firebase_admin", "google", "h2", "httpx", "requests")
    code = f"import gateway.app, sys; print([name for name in {heavy} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == "[]"


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "push.fcm", None)
    file = tmp_path / "account.json"
    file.write_text("{}")
    [found] = complaints(settings(tmp_path, FCM_CREDENTIALS_FILE=str(file)))
    assert "gateway[push]" in found

"""Credentials: found once for all who ask, renewed ahead of their end, from wherever this machine has them."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.aws import credentials as module
from storage.aws.credentials import (
    LEAST_S,
    RENEW_S,
    RETRY_S,
    URGENT_RETRY_S,
    URGENT_S,
    Configuration,
    Credentials,
    CredentialsUnavailable,
    find_keys,
)
from storage.aws.signing import Keys
from storage.aws.url import AwsMisconfigured
from tests.running import until, within
from tests.storage.conftest import START_S, SetClock

HOUR_S = 3600.0
SECRET = "hidden-key"
TOKEN = "hidden-token"


class Broken(Exception):
    """It says more than may be logged."""


@dataclass(slots=True)
class Source:
    """Gives what it is told to, when it is let."""

    gives: Keys | Exception | None
    looks: int = 0
    may: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may.set()

    def __call__(self) -> Keys | None:
        self.looks += 1
        assert self.may.wait(10)
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


def until_s(expires_at: float | None, name: str = "AK") -> Keys:
    return Keys(name, SECRET, TOKEN, expires_at)


@asynccontextmanager
async def of(source: Source, clock: SetClock) -> AsyncIterator[Credentials]:
    credentials = Credentials(source, clock=clock)
    try:
        yield credentials
    finally:
        source.may.set()
        await credentials.close()


async def renewed(credentials: Credentials) -> None:
    """Return when nothing is looked for any more."""

    async def is_renewed() -> bool:
        return credentials._renewal is None

    await until(is_renewed, "it has been looked")


def unavailable() -> pytest.RaisesExc[CredentialsUnavailable]:
    return pytest.raises(CredentialsUnavailable, match="there are no AWS credentials now")


# --- Found once


async def test_nothing_is_looked_for_before_it_is_needed(clock: SetClock) -> None:
    source = Source(until_s(None))
    async with of(source, clock):
        assert source.looks == 0


async def test_all_who_ask_at_the_same_time_wait_for_one_look(clock: SetClock) -> None:
    source = Source(until_s(START_S + HOUR_S))
    source.may.clear()
    async with of(source, clock) as credentials:
        asking = [asyncio.create_task(credentials.keys()) for _ in range(50)]
        done, _ = await asyncio.wait(asking, timeout=0.02)
        assert not done
        source.may.set()
        found = await within(asyncio.gather(*asking))
        assert all(keys is source.gives for keys in found)
        assert source.looks == 1


async def test_keys_that_do_not_end_are_never_looked_for_again(clock: SetClock) -> None:
    source = Source(until_s(None))
    async with of(source, clock) as credentials:
        for _ in range(3):
            assert await credentials.keys() is source.gives
            clock.now_s += 1000 * HOUR_S
        assert (source.looks, credentials._renewal) == (1, None)


async def test_whoever_asks_and_is_cancelled_takes_nothing_from_the_others(clock: SetClock) -> None:
    source = Source(until_s(None))
    source.may.clear()
    async with of(source, clock) as credentials:
        first, second = (asyncio.create_task(credentials.keys()) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        source.may.set()
        assert await within(second) is source.gives
        assert (first.cancelled(), source.looks) == (True, 1)


# --- Renewed


async def test_keys_are_renewed_ahead_of_their_end_while_the_old_ones_are_used(clock: SetClock) -> None:
    old, new = until_s(START_S + HOUR_S, "old"), until_s(START_S + 2 * HOUR_S, "new")
    source = Source(old)
    async with of(source, clock) as credentials:
        assert await credentials.keys() is old
        clock.now_s = START_S + HOUR_S - RENEW_S
        assert await credentials.keys() is old
        assert credentials._renewal is None  # not yet
        clock.now_s += 1
        source.gives = new
        source.may.clear()
        for _ in range(10):
            assert await within(credentials.keys(), 1) is old
        source.may.set()
        await renewed(credentials)
        assert await credentials.keys() is new
        assert source.looks == 2


async def test_keys_that_are_about_to_end_are_not_used_but_waited_for(clock: SetClock) -> None:
    old, new = until_s(START_S + HOUR_S, "old"), until_s(START_S + 2 * HOUR_S, "new")
    source = Source(old)
    async with of(source, clock) as credentials:
        await credentials.keys()
        clock.now_s = START_S + HOUR_S - LEAST_S + 1
        source.gives = new
        source.may.clear()
        asking = [asyncio.create_task(credentials.keys()) for _ in range(5)]
        done, _ = await asyncio.wait(asking, timeout=0.02)
        assert not done
        source.may.set()
        assert [keys.access_key for keys in await within(asyncio.gather(*asking))] == ["new"] * 5
        assert source.looks == 2


@pytest.mark.parametrize("failure", [Broken(SECRET), None], ids=["it breaks", "it has none"])
async def test_a_source_that_fails_leaves_the_old_keys_in_use_until_they_end(
    clock: SetClock, failure: Exception | None
) -> None:
    old = until_s(START_S + HOUR_S, "old")
    source = Source(old)
    async with of(source, clock) as credentials:
        await credentials.keys()
        source.gives = failure
        for left_s in (RENEW_S - 1, LEAST_S + 1, LEAST_S - 1, 0.5):
            clock.now_s = START_S + HOUR_S - left_s
            assert await within(credentials.keys()) is old
            await renewed(credentials)
        clock.now_s = START_S + HOUR_S
        with unavailable():
            await within(credentials.keys())
        source.gives = new = until_s(START_S + 2 * HOUR_S, "new")
        clock.now_s += RETRY_S
        assert await within(credentials.keys()) is new


@pytest.mark.parametrize(
    ("left_s", "rest_s"),
    [(RENEW_S - 1, RETRY_S), (URGENT_S + RETRY_S, RETRY_S), (URGENT_S - 1, URGENT_RETRY_S), (0.0, URGENT_RETRY_S)],
)
async def test_a_source_that_fails_is_asked_the_more_often_the_sooner_the_keys_end(
    clock: SetClock, left_s: float, rest_s: float
) -> None:
    source = Source(until_s(START_S + HOUR_S))

    async def looks() -> int:
        with contextlib.suppress(CredentialsUnavailable):
            await within(credentials.keys())
        await renewed(credentials)
        return source.looks

    async with of(source, clock) as credentials:
        assert await looks() == 1
        source.gives = Broken(SECRET)
        clock.now_s = START_S + HOUR_S - left_s
        for _ in range(5):
            assert await looks() == 2
        clock.now_s += rest_s - 0.5
        assert await looks() == 2
        clock.now_s += 0.5
        assert await looks() == 3


async def test_a_clock_that_is_set_back_does_not_end_the_looking(clock: SetClock) -> None:
    source = Source(None)
    async with of(source, clock) as credentials:
        with unavailable():
            await within(credentials.keys())
        clock.now_s -= HOUR_S
        source.gives = until_s(None)
        assert await within(credentials.keys()) is source.gives


async def test_keys_that_have_ended_when_they_are_found_are_not_used(clock: SetClock) -> None:
    source = Source(until_s(START_S))
    async with of(source, clock) as credentials:
        with unavailable():
            await within(credentials.keys())


# --- Refused


async def test_keys_that_were_refused_are_looked_for_at_once_though_they_were_just_found(clock: SetClock) -> None:
    old, new = until_s(None, "old"), until_s(None, "new")
    source = Source(old)
    async with of(source, clock) as credentials:
        await credentials.keys()
        source.gives = new
        credentials.refuse(old)
        assert await within(asyncio.gather(*(credentials.keys() for _ in range(5)))) == [new] * 5
        assert source.looks == 2
        credentials.refuse(old)  # of an answer that was late
        clock.now_s += RETRY_S
        assert await credentials.keys() is new
        assert (source.looks, credentials._renewal) == (2, None)


async def test_if_the_same_keys_are_found_again_and_refused_again_it_is_looked_no_more_often_than_so(
    clock: SetClock,
) -> None:
    source = Source(until_s(None))
    async with of(source, clock) as credentials:
        for looks in (2, 3, 4):  # the first time they were not refused yet
            for _ in range(4):
                source.gives = until_s(None)
                credentials.refuse(await within(credentials.keys()))
            assert source.looks == looks
            clock.now_s += RETRY_S


async def test_others_that_are_refused_as_well_do_not_have_it_looked_without_a_rest(clock: SetClock) -> None:
    """Each look may be a call to somebody who gives new ones every time."""
    source = Source(until_s(None, "AK0"))
    async with of(source, clock) as credentials:
        for number in range(1, 20):
            source.gives = until_s(None, f"AK{number}")
            credentials.refuse(await within(credentials.keys()))
        assert source.looks == 2
        clock.now_s += RETRY_S
        await within(credentials.keys())
        assert source.looks == 3


async def test_that_there_are_none_is_told_once(clock: SetClock, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(None)
    async with of(source, clock) as credentials:
        for _ in range(5):
            with unavailable():
                await within(credentials.keys())
            clock.now_s += RETRY_S
        assert source.looks == 5
        assert [record.message for record in caplog.records] == ["there are no AWS credentials"]
        source.gives = until_s(None)
        await within(credentials.keys())


async def test_keys_that_were_refused_are_all_there_is_while_the_source_fails(clock: SetClock) -> None:
    old = until_s(None, "old")
    source = Source(old)
    async with of(source, clock) as credentials:
        await credentials.keys()
        source.gives = Broken(SECRET)
        credentials.refuse(old)
        for looks in (2, 3):
            clock.now_s += RETRY_S
            for _ in range(3):
                assert await within(credentials.keys()) is old
            assert source.looks == looks
        clock.now_s += RETRY_S
        source.gives = new = until_s(None, "new")
        assert await within(credentials.keys()) is new


# --- Closing, and what is shown


async def test_a_source_that_hangs_is_not_waited_for_for_ever(clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    source = Source(until_s(START_S + HOUR_S))
    source.may.clear()
    async with of(source, clock) as credentials:
        with unavailable():
            await within(credentials.keys())
        source.may.set()
        await renewed(credentials)
        assert await within(credentials.keys()) == source.gives
        assert source.looks == 1


async def test_closing_waits_for_no_source(clock: SetClock) -> None:
    source = Source(until_s(None))
    source.may.clear()
    async with of(source, clock) as credentials:
        asking = asyncio.create_task(credentials.keys())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await within(credentials.close(), 1)
        with unavailable():
            await within(asking, 1)
        await credentials.close()


async def test_no_secret_is_logged_or_shown(clock: SetClock, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(until_s(START_S + HOUR_S))
    with caplog.at_level(logging.DEBUG):
        async with of(source, clock) as credentials:
            shown = repr(await credentials.keys()) + repr(credentials)
            clock.now_s += HOUR_S
            for failure in (Broken(f"{SECRET} {TOKEN}"), None):
                source.gives = failure
                with unavailable() as refused:
                    await within(credentials.keys())
                shown += repr(refused.value)
                clock.now_s += RETRY_S
    said = [record for record in caplog.records if record.name == "storage.aws.credentials"]
    assert [record.levelname for record in said] == ["WARNING", "ERROR"]
    assert vars(said[0])["error"] == "Broken"
    everything = shown + caplog.text + "".join(str(vars(record)) for record in said)
    assert "hidden" not in everything


# --- From this machine's configuration


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any AWS configuration; where it would be: `config` and `credentials` in this folder."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BOTO_CONFIG", str(tmp_path / "boto"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@asynccontextmanager
async def answering(answer: Callable[[str, str], bytes]) -> AsyncIterator[str]:
    """The URL of a server that answers with what `answer` makes of the head and the body of a request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lengths = [line.partition(":")[2] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = answer(head, (await reader.readexactly(int(lengths[0]) if lengths else 0)).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


def ends_in(seconds: float) -> tuple[str, float]:
    """A time as Amazon writes it, and as it is kept."""
    ends_at = float(round(time.time() + seconds))
    return datetime.fromtimestamp(ends_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), ends_at


async def test_where_there_are_none_there_are_none(machine: Path) -> None:
    assert find_keys() is None
    credentials = Configuration().credentials()
    with unavailable():
        await within(credentials.keys())
    await credentials.close()


@pytest.mark.parametrize("token", [None, TOKEN])
def test_keys_of_the_environment_do_not_end(machine: Path, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    assert find_keys() == Keys("AK", SECRET, token)


def test_keys_of_a_profile_are_read_anew_whenever_they_are_looked_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = machine / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = AK\naws_secret_access_key = sk\n"
        f"[other]\naws_access_key_id = OTHER\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
    )
    assert find_keys() == Keys("AK", "sk")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert find_keys() == Keys("OTHER", SECRET, TOKEN)
    file.write_text("[other]\naws_access_key_id = NEW\naws_secret_access_key = new\n")
    assert find_keys() == Keys("NEW", "new")


def test_keys_of_a_process_end_when_it_says(machine: Path) -> None:
    ends, ends_at = ends_in(HOUR_S)
    said = {"Version": 1, "AccessKeyId": "AK", "SecretAccessKey": SECRET, "SessionToken": TOKEN, "Expiration": ends}
    (machine / "keys.py").write_text(f"print({json.dumps(said)!r})")
    (machine / "config").write_text(f"[default]\ncredential_process = {sys.executable} -SI {machine}/keys.py\n")
    assert find_keys() == Keys("AK", SECRET, TOKEN, ends_at)


async def test_keys_of_a_container_end_when_it_says(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, ends_at = ends_in(6 * HOUR_S)
    heads: list[str] = []

    def answer(head: str, _: str) -> bytes:
        heads.append(head)
        return json.dumps(
            {"AccessKeyId": f"AK{len(heads)}", "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": ends}
        ).encode()

    async with answering(answer) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "who-i-am")
        clock = SetClock()
        clock.now_s = ends_at - 2 * HOUR_S
        credentials = Configuration().credentials(clock=clock)
        for _ in range(3):
            assert await within(credentials.keys()) == Keys("AK1", SECRET, TOKEN, ends_at)
        clock.now_s = ends_at - LEAST_S / 2
        assert await within(credentials.keys()) == Keys("AK2", SECRET, TOKEN, ends_at)
        await credentials.close()
    assert [head.split()[1] for head in heads] == ["/role"] * 2
    assert "authorization: who-i-am\r\n" in heads[0].lower()


async def test_a_container_that_does_not_answer_has_no_keys(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(lambda _, __: b"secret nonsense") as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        credentials = Configuration().credentials()
        with unavailable():
            await within(credentials.keys())
        await credentials.close()
    [said] = [record for record in caplog.records if record.name == "storage.aws.credentials"]
    assert (said.levelname, vars(said)["error"]) == ("WARNING", "CredentialRetrievalError")
    assert "nonsense" not in caplog.text


ROLE = """\
<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ROLE</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken>
<Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>
"""


async def test_a_role_is_assumed_in_the_region_that_is_configured(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, ends_at = ends_in(HOUR_S)
    (machine / "config").write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/gateway\nsource_profile = base\n"
        "[profile base]\naws_access_key_id = AK\naws_secret_access_key = sk\n"
    )
    heads: list[str] = []

    def answer(head: str, _: str) -> bytes:
        heads.append(head)
        return (ROLE % (SECRET, TOKEN, ends)).encode()

    async with answering(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        monkeypatch.setenv("AWS_REGION", "eu-central-2")
        assert await asyncio.to_thread(find_keys) == Keys("ROLE", SECRET, TOKEN, ends_at)
    assert "/eu-central-2/sts/aws4_request" in heads[0]


# --- Regions, and what else is configured


def test_the_region_that_is_given_comes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-2")
    assert Configuration().region("eu-central-1") == "eu-central-1"


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({"AWS_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ({}, "eu-north-1"),
        ({"AWS_PROFILE": "other"}, "eu-south-1"),
        ({"AWS_PROFILE": "other", "AWS_REGION": "eu-west-1"}, "eu-west-1"),
    ],
)
def test_the_region_is_the_environments_or_the_profiles(
    machine: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], region: str
) -> None:
    (machine / "config").write_text("[default]\nregion = eu-north-1\n[profile other]\nregion = eu-south-1\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Configuration().region(None) == region


def test_without_a_region_there_is_a_sentence_that_says_what_to_do(machine: Path) -> None:
    with pytest.raises(
        AwsMisconfigured, match=r"no AWS region is configured: add \?region=… to the URL, or set AWS_REGION"
    ):
        Configuration().region(None)


def test_a_profile_that_there_is_not_is_a_sentence(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    configuration = Configuration()
    for configured in (lambda: configuration.region(None), configuration.ca_bundle):
        with pytest.raises(AwsMisconfigured, match=r"the AWS configuration cannot be used: .*\(nobody\)"):
            configured()


def test_a_file_that_cannot_be_read_is_a_sentence_without_what_stands_in_it(machine: Path) -> None:
    (machine / "config").write_text(f"aws_secret_access_key = {SECRET}\n[default")
    with pytest.raises(AwsMisconfigured, match="the AWS configuration cannot be used: ") as refused:
        Configuration().region(None)
    assert SECRET not in str(refused.value)


def test_the_authorities_are_those_that_are_configured(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Configuration().ca_bundle() is None
    (machine / "config").write_text("[default]\nca_bundle = /etc/ours.pem\n")
    assert Configuration().ca_bundle() == "/etc/ours.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/theirs.pem")
    assert Configuration().ca_bundle() == "/etc/theirs.pem"

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from push.console import MOST_WAITING, ConsoleSender, describe, payload
from push.sender import Accepted, Alert, Content, Environment, Platform, Sender, Wakeup

PACKET = '{"type":"info","client_id":"bob","version":7,"outgoing":[],"incoming":[],"x":"ü\U0001f4f1"}'.encode()
WAKEUP = Wakeup(
    id="01234567-89ab-7cde-8f01-23456789abcd",
    platform=Platform.APNS,
    environment=Environment.SANDBOX,
    token="a-secret-token",
    collapse_id="bob",
    content=Content(7, PACKET, Alert("VIDEOS_WAITING", ("2", "alice"), badge=2, sound=True)),
    expires_at=1_800_000_000_000,
)

CONTENT = WAKEUP.content


def saying(**changes: Any) -> Wakeup:
    """The wakeup, with something else to say."""
    return replace(WAKEUP, content=replace(CONTENT, **changes))


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
async def sender(shown: list[str]) -> AsyncIterator[ConsoleSender]:
    sender = ConsoleSender(shown.append)
    yield sender
    await sender.close()


async def next_of(arriving: AsyncIterator[bytes]) -> dict[str, Any]:
    async with asyncio.timeout(5):
        found: dict[str, Any] = json.loads(await anext(arriving))
        return found


async def all_of(arriving: AsyncIterator[bytes]) -> list[dict[str, Any]]:
    async with asyncio.timeout(5):
        return [json.loads(body) async for body in arriving]


def test_it_is_a_sender() -> None:
    sender: Sender = ConsoleSender()
    assert sender is not None


async def test_every_push_is_accepted_and_shown_as_one_line(sender: ConsoleSender, shown: list[str]) -> None:
    assert await sender.send(WAKEUP) == Accepted()
    assert await sender.send(replace(saying(alert=None, packet=None), platform=Platform.FCM)) == Accepted()
    assert len(shown) == 2
    assert not any("\n" in line for line in shown)


async def test_by_default_pushes_are_shown_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    await ConsoleSender().send(WAKEUP)
    out, err = capsys.readouterr()
    assert (out, err) == (describe(WAKEUP) + "\n", "")


def test_what_the_user_would_see_is_told() -> None:
    line = describe(WAKEUP)
    for part in ("apns", "bob", "VIDEOS_WAITING", "2, alice", "badge 2", "with a sound", "version 7"):
        assert part in line
    assert f"{len(PACKET)} bytes" in line
    quiet = describe(saying(alert=Alert("VIDEOS_WAITING", ("1", "alice"), badge=1, sound=False)))
    assert "silently" in quiet
    background = describe(saying(alert=None, packet=None))
    assert "in the background" in background
    assert "no packet" in background


@pytest.mark.parametrize("alert", [CONTENT.alert, None])
def test_neither_token_nor_packet_is_shown(alert: Alert | None) -> None:
    line = describe(saying(alert=alert))
    assert "a-secret-token" not in line
    assert "outgoing" not in line
    assert "a-secret-token" not in repr(WAKEUP)
    assert "outgoing" not in repr(WAKEUP)


def test_the_payload_is_what_the_protocol_says() -> None:
    found = json.loads(payload(CONTENT))
    assert found["version"] == "7"
    assert found["packet"].encode() == PACKET
    assert found["alert"] == {"loc-key": "VIDEOS_WAITING", "loc-args": ["2", "alice"], "badge": 2, "sound": True}
    assert "a-secret-token" not in payload(CONTENT).decode()


def test_the_payload_of_a_background_push_has_no_alert_and_without_packet_only_the_version() -> None:
    assert set(json.loads(payload(replace(CONTENT, alert=None)))) == {"version", "packet"}
    assert json.loads(payload(replace(CONTENT, alert=None, packet=None))) == {"version": "7"}


def test_a_payload_is_one_line_and_so_one_event() -> None:
    assert b"\n" not in payload(replace(CONTENT, packet=b'{\n"a":\r\n1}'))


# --- Listening


async def test_a_listener_gets_what_arrives_at_its_token_in_order(sender: ConsoleSender) -> None:
    arriving = sender.listen("a-secret-token")
    for version in (1, 2, 3):
        await sender.send(saying(version=version))
    assert [(await next_of(arriving))["version"] for _ in range(3)] == ["1", "2", "3"]


async def test_a_listener_hears_nothing_of_other_tokens(sender: ConsoleSender) -> None:
    arriving = sender.listen("another")
    await sender.send(WAKEUP)
    await sender.send(replace(saying(version=8), token="another"))
    assert (await next_of(arriving))["version"] == "8"


async def test_a_listener_hears_what_is_sent_after_it_was_made_and_before_it_reads(sender: ConsoleSender) -> None:
    await sender.send(saying(version=1))
    arriving = sender.listen("a-secret-token")
    await sender.send(saying(version=2))
    assert (await next_of(arriving))["version"] == "2"


async def test_all_listeners_of_a_token_hear_the_same(sender: ConsoleSender) -> None:
    listeners = [sender.listen("a-secret-token") for _ in range(3)]
    await sender.send(WAKEUP)
    assert [await next_of(arriving) for arriving in listeners] == [json.loads(payload(CONTENT))] * 3


async def test_a_listener_that_does_not_read_loses_the_oldest_and_holds_nobody_up(sender: ConsoleSender) -> None:
    slow, quick = sender.listen("a-secret-token"), sender.listen("a-secret-token")
    for version in range(MOST_WAITING + 10):
        await sender.send(saying(version=version))
        assert (await next_of(quick))["version"] == str(version)
    found = [(await next_of(slow))["version"] for _ in range(MOST_WAITING)]
    assert found == [str(version) for version in range(10, MOST_WAITING + 10)]


async def test_a_listener_that_stops_is_forgotten(sender: ConsoleSender) -> None:
    arriving = sender.listen("a-secret-token")
    await sender.send(WAKEUP)
    await next_of(arriving)
    waiting = asyncio.ensure_future(next_of(arriving))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del arriving, waiting
    gc.collect()
    assert not sender._listeners
    assert await sender.send(WAKEUP) == Accepted()


async def test_a_listener_that_never_read_is_forgotten_too(sender: ConsoleSender) -> None:
    arriving = sender.listen("a-secret-token")
    await sender.send(WAKEUP)
    del arriving
    gc.collect()
    assert not sender._listeners


async def test_closing_ends_every_listener(sender: ConsoleSender) -> None:
    listeners = [sender.listen(token) for token in ("a", "b", "b")]
    reading = [asyncio.ensure_future(all_of(arriving)) for arriving in listeners]
    await asyncio.sleep(0)
    await sender.close()
    assert await asyncio.gather(*reading) == [[], [], []]


async def test_closing_ends_a_listener_whose_queue_is_full(sender: ConsoleSender) -> None:
    arriving = sender.listen("a-secret-token")
    for _ in range(MOST_WAITING):
        await sender.send(WAKEUP)
    await sender.close()
    assert len(await all_of(arriving)) <= MOST_WAITING


async def test_whoever_listens_after_the_end_hears_that_it_is_the_end(sender: ConsoleSender) -> None:
    await sender.close()
    await sender.close()
    assert await all_of(sender.listen("a-secret-token")) == []
    assert await sender.send(WAKEUP) == Accepted()


async def test_what_is_shown_arrives_in_other_processes_through_whoever_spreads_it() -> None:
    there = ConsoleSender(lambda _: None)
    spread: list[tuple[str, bytes]] = []

    async def to_others(key: str, body: bytes) -> None:
        spread.append((key, body))
        there.arrive(key, body)

    here = ConsoleSender(lambda _: None, spread=to_others)
    arriving, elsewhere = there.listen(WAKEUP.token), there.listen("another")
    await here.send(WAKEUP)
    assert await anext(arriving) == payload(WAKEUP.content)
    assert elsewhere._waiting.empty()
    assert WAKEUP.token not in str(spread)

"""The description of the socket.

`asyncapi-3.0.0.schema.json` is AsyncAPI's official JSON schema, unchanged, as it comes in the package `@asyncapi/specs`
6.11.1: copyright 2016-2025 AsyncAPI Initiative (http://www.asyncapi.com/), Apache-2.0.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema_rs import Draft7Validator
from websockets.asyncio.client import ClientConnection, connect

from gateway.api import messages
from gateway.api.asyncapi import document
from gateway.config import SETTINGS
from gateway.errors import Invalid
from gateway.live.closing import CloseCode
from gateway.live.handshake import SUBPROTOCOL
from tests.running import App, Running, within

OFFICIAL = Path(__file__).with_name("asyncapi-3.0.0.schema.json")
UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
DOCUMENT: dict[str, Any] = document()


def validator(name: str) -> Draft7Validator:
    """Of the payload of a message."""
    payload = DOCUMENT["components"]["messages"][name]["payload"]
    return Draft7Validator({"allOf": [payload], "components": DOCUMENT["components"]})


def references(found: object) -> Iterator[str]:
    if isinstance(found, dict):
        yield from (value for name, value in found.items() if name == "$ref" and isinstance(value, str))
        for value in found.values():
            yield from references(value)
    elif isinstance(found, list):
        for value in found:
            yield from references(value)


def at(reference: str) -> Any:
    """What a reference leads to."""
    found: Any = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


async def test_the_document_is_served_to_everybody(gw: Running) -> None:
    answer = await gw.http.get("/asyncapi.json")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == orjson.loads(orjson.dumps(DOCUMENT))


def test_the_document_is_asyncapi_3() -> None:
    official = Draft7Validator(orjson.loads(OFFICIAL.read_bytes()))
    official.validate(DOCUMENT)
    assert not official.is_valid(DOCUMENT | {"operations": {"say": {"action": "shout"}}})


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        assert at(reference), reference


def test_every_message_has_a_schema_that_says_what_it_is_and_one_operation() -> None:
    said = DOCUMENT["components"]["messages"]
    assert set(DOCUMENT["channels"]["socket"]["messages"]) == set(said)
    used = [operation["messages"] for operation in DOCUMENT["operations"].values()]
    assert sorted(reference["$ref"].split("/")[-1] for (reference,) in used) == sorted(said)
    for name in said:
        assert said[name]["summary"]
        assert at(said[name]["payload"]["$ref"])["properties"]["type"] == {"enum": [name]}


def test_what_is_received_and_sent_is_what_the_code_reads_and_writes() -> None:
    actions = {action: set[str]() for action in ("send", "receive")}
    for operation in DOCUMENT["operations"].values():
        actions[operation["action"]] |= {at(at(message["$ref"])["$ref"])["name"] for message in operation["messages"]}
    received = {kind.__struct_config__.tag for kind in (messages.Ack, messages.StatusMessage, messages.TokenMessage)}
    assert actions == {"receive": received, "send": {"info", "result", "error"}}


def test_what_carries_an_id_is_answered_and_an_acknowledgement_is_not() -> None:
    answered = {name for name, operation in DOCUMENT["operations"].items() if "reply" in operation}
    assert answered == {"receive_status", "receive_token"}
    for name in answered:
        replies = DOCUMENT["operations"][name]["reply"]["messages"]
        assert [reply["$ref"].split("/")[-1] for reply in replies] == ["result", "error"]


def test_every_close_code_and_no_other_is_described() -> None:
    channel = DOCUMENT["channels"]["socket"]
    described = {row["code"]: (row["name"], row["meaning"], row["then"]) for row in channel["x-close-codes"]}
    assert described == {int(code): (code.name, code.meaning, code.then) for code in CloseCode}
    in_prose = re.findall(r"^\| (\d{4}) \|", channel["description"], re.MULTILINE)
    assert in_prose == [str(int(code)) for code in CloseCode]
    assert all(code.meaning and code.then for code in CloseCode)


def test_the_settings_that_are_named_exist() -> None:
    named = set(re.findall(rb"GATEWAY_[A-Z_]+", orjson.dumps(DOCUMENT)))
    assert named
    assert named <= {setting.variable.encode() for setting in SETTINGS}


def test_a_handshake_is_described_as_it_is_read() -> None:
    handshake = DOCUMENT["channels"]["socket"]["bindings"]["ws"]
    assert handshake["query"]["required"] == ["device_id"]
    query = Draft7Validator(handshake["query"])
    assert query.is_valid({"device_id": "phone", "version": 0})
    assert not query.is_valid({"device_id": ".."})
    assert SUBPROTOCOL in handshake["headers"]["properties"]["Sec-WebSocket-Protocol"]["description"]


@pytest.mark.parametrize(
    ("name", "message", "good"),
    [
        ("ack", {"type": "ack", "version": 1}, True),
        ("ack", {"type": "ack", "version": -1}, False),
        ("status", {"type": "status", "video_id": UNKNOWN_ID, "status": "viewed", "id": {"any": []}}, True),
        ("status", {"type": "status", "video_id": UNKNOWN_ID, "status": "viewed"}, True),
        ("status", {"type": "status", "video_id": UNKNOWN_ID, "status": "expired"}, False),
        ("status", {"type": "status", "video_id": "x", "status": "viewed"}, False),
        ("token", {"type": "token", "token": "x", "id": None}, True),
        ("token", {"type": "token", "token": 1}, False),
    ],
)
def test_messages_are_described_as_they_are_read(name: str, message: dict[str, Any], good: bool) -> None:
    assert validator(name).is_valid(message) is good
    try:
        messages.read(orjson.dumps(message))
    except Invalid:
        assert not good
    else:
        assert good


# --- What really travels


async def heard(socket: ClientConnection) -> dict[str, Any]:
    """The next message; it is as described."""
    message: dict[str, Any] = orjson.loads(await within(socket.recv()))
    validator(message["type"]).validate(message)
    return message


async def test_what_the_gateway_says_is_as_described(gw: Running, alice: App, bob: App) -> None:
    address = f"ws://127.0.0.1:{gw.port}/v1/ws?device_id=phone"
    video_id = await alice.send(bob.client_id)
    headers = {"Authorization": f"Bearer {bob.token}"}
    async with connect(address, additional_headers=headers, proxy=None) as socket:
        assert [video["video_id"] for video in (await heard(socket))["incoming"]] == [video_id]
        for status, said in (
            ({"video_id": video_id, "status": "downloaded"}, ("applied", None)),
            ({"video_id": video_id, "status": "downloaded"}, ("duplicate", None)),
            ({"video_id": UNKNOWN_ID, "status": "viewed"}, ("ignored", "unknown_video")),
        ):
            await socket.send(orjson.dumps({"type": "status", "id": ["any", 1]} | status).decode())
            answer = await heard(socket)
            if answer["type"] == "info":
                answer = await heard(socket)
            assert (answer["id"], answer["result"], answer.get("reason")) == (["any", 1], *said)
        await socket.send(orjson.dumps({"type": "token", "id": 2, "token": bob.token}).decode())
        assert (await heard(socket))["result"] == "applied"
        await socket.send("{")
        answer = await heard(socket)
        assert (answer["type"], answer["id"], answer["code"]) == ("error", None, "invalid")

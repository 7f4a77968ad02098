import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
from jsonschema_rs import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from starlette.routing import Route, Router

from gateway.api import bodies
from gateway.api.calls import CALLS
from gateway.api.openapi import document
from gateway.errors import STATUS, Code
from gateway.transit import sending
from tests.running import App, Running, answer_from, request, running_gateway, token

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
DOCUMENT: dict[str, Any] = document()


def operations() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Every described operation: method and path by its id, and the description."""
    return {
        operation["operationId"]: (method.upper(), path, operation)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }


async def test_the_document_is_served_to_everybody(gw: Running) -> None:
    answer = await gw.http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == orjson.loads(orjson.dumps(DOCUMENT))


def test_the_document_is_openapi_3_1() -> None:
    OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator(schema | {"components": DOCUMENT["components"]})
        assert schema.get("description"), name
    for name in re.findall(rb'"#/components/schemas/(\w+)"', orjson.dumps(DOCUMENT)):
        assert name.decode() in DOCUMENT["components"]["schemas"]


def test_every_operation_has_an_id_of_its_own_and_says_what_it_does() -> None:
    described = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(operations()) == len(described)
    assert all(operation["summary"] for operation in described)


def test_every_address_is_described(gw: Running) -> None:
    router = gw.gateway.asgi
    assert isinstance(router, Router)
    served = {route.path for route in router.routes if isinstance(route, Route)}
    # The object store's own addresses: a store elsewhere answers them itself, and apps only follow signed URLs.
    assert served - set(DOCUMENT["paths"]) == {"/objects/{key:path}"}
    assert set(DOCUMENT["paths"]) <= served


def test_what_the_document_requires_of_a_path_is_in_it() -> None:
    for _, path, operation in operations().values():
        named = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize(("text", "good"), [("a", True), ("...", True), (".", False), ("..", False), ("", False)])
def test_ids_are_described_as_they_are_checked(text: str, good: bool) -> None:
    assert Draft202012Validator({"pattern": bodies.ID_PATTERN}).is_valid(text) is good


# --- Every documented status is real

Provoke = Callable[[Running, App, App], Awaitable[httpx.Response | int]]
PATHS = {"video_id": UNKNOWN_ID, "device_id": "phone"}
BODIES: dict[str, Any] = {
    "announce": {"recipient_id": "somebody", "size": 1, "content_type": "video/mp4"},
    "report_status": {"status": "viewed"},
    "sync": {"statuses": []},
    "register_device": {"platform": "apns", "token": "x"},
}
QUERIES = {"delete_video": {"recipient_id": "somebody"}, "socket": {"device_id": "phone"}}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


async def call(name: str, app: App, **options: Any) -> httpx.Response:
    """The operation as it is described, with what it requires."""
    method, path, _ = operations()[name]
    if name in BODIES:
        options.setdefault("json", BODIES[name])
    if name in QUERIES:
        options.setdefault("params", QUERIES[name])
    if name == "socket":
        options.setdefault("headers", HANDSHAKE)
    return await app.call(method, path.format(**PATHS | options.pop("path", {})), **options)


async def invalid(name: str, app: App) -> httpx.Response:
    if name in BODIES:
        return await call(name, app, content=b"{", json=None)
    return await call(name, app, params={"wait": "x"}, path={"video_id": "x", "device_id": "x y"})


async def late(name: str, gw: Running, app: App) -> int:
    method, path, _ = operations()[name]
    async with gw.connection() as (reader, writer):
        head = f"{method} {path.format(**PATHS)} HTTP/1.1\nAuthorization: Bearer {app.token}\nContent-Length: 9"
        writer.write(request(head))
        return (await answer_from(reader)).status


async def full(name: str, alice: App, bob: App) -> httpx.Response:
    announced = await alice.announce(bob.client_id)
    return await call(
        name, alice, path={"video_id": announced.video_id}, json={"status": "uploaded", "recipient_id": bob.client_id}
    )


async def hang(*_: object) -> None:
    await asyncio.sleep(60)


@pytest.fixture(scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("limited")
    async with running_gateway(folder, RATE_CALLS="0.001/1", OPERATOR_TOKEN="the operator's own") as started:
        await started.app("flood").poll()
        yield started


DOCUMENTED = [
    pytest.param(name, int(status), id=f"{name}-{status}")
    for name, (_, _, operation) in operations().items()
    for status in operation["responses"]
]


@pytest.mark.parametrize(("name", "status"), DOCUMENTED)
async def test_every_documented_status_is_real_and_its_body_is_as_described(
    gw: Running, limited: Running, alice: App, bob: App, name: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await provoked(name, status, gw, limited, alice, bob, monkeypatch)
    if isinstance(answer, int):
        assert answer == status
        return
    assert answer.status_code == status, answer.text
    described = operations()[name][2]["responses"][str(status)]
    for header in described.get("headers", ()):
        assert header in answer.headers
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    assert ([kind] if kind else []) == list(described.get("content", ()))
    if kind.endswith("json"):
        schema = described["content"][kind]["schema"] | {"components": DOCUMENT["components"]}
        Draft202012Validator(schema).validate(answer.json())
    if "code" in (answer.json() if kind == "application/problem+json" else {}):
        code = Code(answer.json()["code"])
        assert STATUS[code] == status
        assert f"`{code}`" in described["description"]


async def provoked(
    name: str, status: int, gw: Running, limited: Running, alice: App, bob: App, monkeypatch: pytest.MonkeyPatch
) -> httpx.Response | int:
    """The answer of an operation with that status."""
    match name, status:
        case "metrics", 401:
            return await limited.http.get("/metrics")
        case "readyz", 503:
            monkeypatch.setattr(gw.gateway.readiness, "serving", False)
            return await call(name, alice)
        case "pushes", 200:
            await bob.register("phone", gw.fresh("token"))
            async with bob.pushes("phone"):
                return 200
        case "socket", 426:
            return await call(name, bob, headers={})
        case "content", 200 | 307:
            video_id = await alice.send(bob.client_id)
            accept = "application/json" if status == 200 else "*/*"
            return await call(name, bob, path={"video_id": video_id}, headers={"Accept": accept})
        case _, 304:
            return await call(name, bob, headers={"If-None-Match": '"0"'})
        case _, 401:
            return await call(name, App(gw.http, "bob", token("bob", ttl_s=-60)))
        case "poll" | "report_status", 403:
            return await call(name, gw.app(bob.client_id, device="phone"), params={"device_id": "tablet"})
        case "sync", 403:
            body = {"statuses": [], "device_id": "tablet"}
            return await call(name, gw.app(bob.client_id, device="phone"), json=body)
        case "announce", 403:
            async with running_gateway(gw.folder / "demo", DEMO="true") as demo:
                return await call(name, demo.app("demo.mallory"))
        case _, 403:
            return await call(name, gw.app(bob.client_id, device="tablet"))
        case _, 408:
            monkeypatch.setattr("gateway.api.http.BODY_DEADLINE_S", 0.02)
            return await late(name, gw, bob)
        case "announce", 409:
            monkeypatch.setattr("gateway.transit.sending.room", lambda *_: sending.Room(full=True))
            return await call(name, alice)
        case _, 409:
            return await full(name, alice, bob)
        case _, 413:
            return await call(name, alice, content=b" " * 100_000, json=None)
        case _, 422:
            return await invalid(name, alice)
        case _, 429:
            return await call(name, limited.app("flood"))
        case _, 503:
            monkeypatch.setattr("gateway.changes.CALL_DEADLINE_S", 0.02)
            monkeypatch.setattr(gw.gateway.service.changes.documents, "load", hang)
            return await call(name, bob)
        case _:
            return await call(name, bob)


def test_every_call_describes_what_all_calls_may_answer() -> None:
    for one in CALLS:
        described = set(operations()[one.name][2]["responses"])
        assert {"401", "429", "503"} <= described
        assert ("422" in described) == bool(one.body or one.parameters or "{" in one.path)
        assert ("408" in described) == ("413" in described) == (one.body is not None)

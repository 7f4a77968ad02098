"""What all calls have in common: authorization, problem documents, methods, limits, CORS; and what operators ask."""

import asyncio
import time

import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.api.calls import CALLS, Call
from tests.running import SECRET, App, Running, assert_problem, request, running_gateway, token, within

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


def path_of(call: Call) -> str:
    return call.path.format(video_id=UNKNOWN_ID, device_id="phone")


# --- Authorization

WRONG_TOKENS = {
    "none": None,
    "no scheme": token("bob"),
    "another scheme": "Basic Ym9iOmJvYg==",
    "no token": "Bearer",
    "garbage": "Bearer x.y.z",
    "not ASCII": "Bearer \xe9\xff",
    "very long": "Bearer " + "x" * 20_000,
    "expired": "Bearer " + token("bob", ttl_s=-31),
    "another secret": "Bearer " + jwt.encode({"sub": "bob", "exp": time.time() + 43_200}, "x" * 32, "HS256"),
    "no algorithm": "Bearer " + jwt.encode({"sub": "bob", "exp": time.time() + 43_200}, None, "none"),  # type: ignore[arg-type]
    "no exp": "Bearer " + jwt.encode({"sub": "bob"}, SECRET, "HS256"),
    "no sub": "Bearer " + jwt.encode({"exp": time.time() + 43_200}, SECRET, "HS256"),
    "ill-formed sub": "Bearer " + jwt.encode({"sub": "../bob", "exp": time.time() + 43_200}, SECRET, "HS256"),
    "a sub of another type": "Bearer " + jwt.encode({"sub": ["bob"], "exp": time.time() + 43_200}, SECRET, "HS256"),
    "not valid yet": "Bearer "
    + jwt.encode({"sub": "b", "exp": time.time() + 86_400, "nbf": time.time() + 43_200}, SECRET),
    "an ill-formed device": "Bearer " + jwt.encode({"sub": "b", "exp": time.time() + 86_400, "device": ""}, SECRET),
}


def authorization(given: str | None) -> dict[bytes, bytes]:
    return {} if given is None else {b"Authorization": given.encode("latin-1")}


@EVERY_CALL
async def test_every_call_needs_a_token(gw: Running, call: Call) -> None:
    answer = await gw.http.request(call.method, path_of(call))
    problem = assert_problem(answer, 401, "unauthorized")
    assert problem["title"] == "Unauthorized"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("why", WRONG_TOKENS)
async def test_a_token_that_is_none_is_refused_and_not_repeated(gw: Running, why: str) -> None:
    given = WRONG_TOKENS[why]
    answer = await gw.http.get("/v1/poll", headers=authorization(given))
    assert_problem(answer, 401, "unauthorized")
    assert len(str(given)) < 20 or str(given).split()[-1][:40] not in answer.text


async def test_two_tokens_are_none(gw: Running) -> None:
    given = ("Authorization", f"Bearer {token('bob')}")
    assert_problem(await gw.http.get("/v1/poll", headers=[given, given]), 401, "unauthorized")


async def test_a_token_in_the_query_is_none(gw: Running) -> None:
    answer = await gw.http.get("/v1/poll", params={"access_token": token("bob"), "token": token("bob")})
    assert_problem(answer, 401, "unauthorized")


async def test_clocks_may_differ_by_half_a_minute(gw: Running, bob: App) -> None:
    assert (await gw.app(bob.client_id, ttl_s=-25).poll()).status_code == 200
    early = jwt.encode({"sub": bob.client_id, "exp": time.time() + 99, "nbf": time.time() + 25}, SECRET)
    assert (await App(gw.http, bob.client_id, early).poll()).status_code == 200


async def test_audience_and_issuer_are_checked_where_they_are_configured(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("issuer")
    async with running_gateway(folder, JWT_AUDIENCE="videos", JWT_ISSUER="https://id.example.com") as gw:
        right = {"sub": "bob", "exp": time.time() + 60, "aud": ["x", "videos"], "iss": "https://id.example.com"}
        for claims, status in (
            (right, 200),
            (right | {"aud": "other"}, 401),
            (right | {"iss": "https://evil.example.com"}, 401),
            ({"sub": "bob", "exp": time.time() + 60}, 401),
        ):
            answer = await App(gw.http, "bob", jwt.encode(claims, SECRET)).poll()
            assert answer.status_code == status


async def test_a_token_that_expires_in_the_middle_of_a_queue_stops_it_until_there_is_a_new_one(
    gw: Running, alice: App, carol: App
) -> None:
    """The queue of an app: each message until it is answered, and a new token after 401."""
    bob = gw.app(gw.fresh("bob"), ttl_s=-29)  # good for its leeway's last second
    senders = [gw.app(gw.fresh("sender")) for _ in range(4)]
    queue = [(await sender.send(bob.client_id), status) for status in ("downloaded", "viewed") for sender in senders]
    renewed = gw.app(bob.client_id)

    async def expired() -> None:
        while True:
            answer = await bob.poll()
            if answer.status_code == 401:
                assert_problem(answer, 401, "unauthorized")
                return
            assert answer.status_code == 200
            assert (await carol.poll()).status_code == 200

    for video_id, status in queue[:3]:
        assert (await bob.say(video_id, status)).status_code in {200, 401}
    await within(expired())
    for video_id, status in queue[3:]:
        assert_problem(await bob.say(video_id, status), 401, "unauthorized")
    for video_id, status in queue:
        assert (await renewed.say(video_id, status)).status_code == 200
    assert (await carol.poll()).status_code == 200
    assert (await alice.poll()).status_code == 200


# --- Addresses and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v2/poll",
        "/v1/poll/",
        "//v1/poll",
        "/v1/videos/",
        "/v1/videos/x/y/z",
        "/V1/poll",
        "/v1/devices",
        "/objects",
        "/favicon.ico",
        "/%00",
        "/v1/%2e%2e/healthz",
        "/" + "x" * 8000,
    ],
)
async def test_there_is_a_problem_document_where_there_is_nothing(gw: Running, bob: App, path: str) -> None:
    assert_problem(await bob.call("GET", path), 404, "not_found")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path", [*sorted({call.path for call in CALLS}), "/healthz", "/readyz", "/metrics", "/openapi.json"]
)
async def test_a_method_that_an_address_does_not_know_is_told_those_it_does(
    gw: Running, bob: App, path: str, method: str
) -> None:
    known = {call.method for call in CALLS if call.path == path} or {"GET"}
    known |= {"HEAD"} if "GET" in known else set()
    if method in known:
        return
    answer = await bob.call(method, path.format(video_id=UNKNOWN_ID, device_id="phone"))
    assert answer.status_code == 405
    assert answer.headers["Allow"] == ", ".join(sorted(known))
    if method != "HEAD":
        assert_problem(answer, 405, "method_not_allowed", *known)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/poll"])
async def test_head_is_get_without_a_body(gw: Running, bob: App, path: str) -> None:
    whole, head = await bob.call("GET", path), await bob.call("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0
    assert await bob.call("HEAD", "/nothing") is not None


async def test_a_head_that_is_refused_has_no_body_either(gw: Running, bob: App) -> None:
    for path, status in (("/nothing", 404), (f"/v1/videos/{UNKNOWN_ID}/content", 404), ("/v1/poll?wait=x", 422)):
        answer = await bob.call("HEAD", path)
        assert (answer.status_code, answer.content) == (status, b"")


# --- Requests that are no HTTP


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /v1/poll\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_gateway_lives_on(gw: Running, garbage: bytes) -> None:
    async with gw.connection() as (reader, writer):
        writer.write(garbage)
        writer.write_eof()
        answer = await within(reader.read())
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await gw.http.get("/healthz")).status_code == 200


async def test_requests_may_come_before_their_answers_were_read(gw: Running) -> None:
    async with gw.connection() as (reader, writer):
        writer.write(request("GET /healthz HTTP/1.1") * 20 + request("GET /healthz HTTP/1.1\nConnection: close"))
        answers = await within(reader.read())
    assert answers.count(b"HTTP/1.1 200 OK") == 21


async def test_small_answers_are_not_held_back(gw: Running) -> None:
    """Head and body are two writes: with Nagle's algorithm the second would wait until the first is acknowledged."""
    async with gw.connection() as (reader, writer):
        writer.write(request("GET /healthz HTTP/1.1"))
        assert await within(reader.read(1)) == b"H"
        own = writer.get_extra_info("sockname")
        [theirs] = [
            connection.transport.get_extra_info("socket")
            for connection in gw.server.server_state.connections
            if connection.transport.get_extra_info("peername") == own
        ]
        assert theirs.getsockopt(6, 1)  # IPPROTO_TCP, TCP_NODELAY


# --- Rate limit


async def test_who_calls_too_often_is_slowed_down_and_nobody_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("limited"), RATE_CALLS="0.5/5") as gw:
        flood, other = gw.app("flood"), gw.app("other")
        answers = [await flood.poll() for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert_problem(answers[-1], 429, "rate_limited")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 2
        for answer in (
            await flood.sync(),
            await flood.register("phone", "x"),
            await flood.call("DELETE", "/v1/client"),
            await flood.call("GET", "/v1/devices/phone/pushes"),
            await gw.app("flood", device="tablet").poll(),
        ):
            assert_problem(answer, 429, "rate_limited")
        assert [(await other.poll()).status_code for _ in range(5)] == [200] * 5
        assert (await gw.http.get("/healthz")).status_code == 200


# --- CORS


async def test_without_origins_no_answer_carries_cors(gw: Running, bob: App) -> None:
    origin = {"Origin": "https://app.example.com"}
    answer = await bob.call("GET", "/v1/poll", headers=origin)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = await gw.http.options("/v1/poll", headers=origin | {"Access-Control-Request-Method": "GET"})
    assert_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("origins", ["https://app.example.com,http://localhost:3000", "*"])
async def test_configured_origins_may_call(tmp_path_factory: pytest.TempPathFactory, origins: str) -> None:
    async with running_gateway(tmp_path_factory.mktemp("cors"), CORS_ORIGINS=origins) as gw:
        bob = gw.app("bob")
        origin = "http://localhost:3000"
        allowed = "*" if origins == "*" else origin
        for method, path in (("GET", "/v1/poll"), ("PUT", "/v1/devices/phone"), ("PUT", "/objects/a/b")):
            asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization, range"}
            answer = await gw.http.options(path, headers={"Origin": origin} | asked)
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == allowed
            assert method in answer.headers["Access-Control-Allow-Methods"]
            named = answer.headers["Access-Control-Allow-Headers"].lower()
            assert "authorization" in named
            assert "range" in named  # a download that broke off is resumed
        answer = await bob.call("GET", "/v1/poll", headers={"Origin": origin})
        assert answer.headers["Access-Control-Allow-Origin"] == allowed
        assert {"Content-Range", "ETag"} <= set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        answer = await gw.http.get("/v1/poll", headers={"Origin": origin})
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["Access-Control-Allow-Origin"] == allowed


async def test_other_origins_may_not_call(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("cors"), CORS_ORIGINS="https://app.example.com") as gw:
        origin = {"Origin": "https://app.example.com.evil.example"}
        answer = await gw.http.options("/v1/poll", headers=origin | {"Access-Control-Request-Method": "GET"})
        assert answer.status_code == 400
        assert "Access-Control-Allow-Origin" not in answer.headers
        answer = await gw.app("bob").call("GET", "/v1/poll", headers=origin)
        assert "Access-Control-Allow-Origin" not in answer.headers


# --- Operators


async def test_healthz_says_that_the_process_answers(gw: Running) -> None:
    answer = await gw.http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive", "faults": []})


async def test_readyz_says_that_calls_are_welcome(gw: Running) -> None:
    answer = await gw.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "faults": []})
    assert answer.headers["Cache-Control"] == "no-store"


async def test_readyz_lists_what_does_not_answer_and_stays_200(gw: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs() -> None:
        await asyncio.sleep(60)

    async def fails() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("gateway.api.operator.PROBE_S", 0.05)
    monkeypatch.setattr(gw.gateway.readiness, "_probes", {"objects": hangs, "documents": fails})
    answer = await gw.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "faults": ["documents", "objects"]})


async def test_readyz_is_503_while_draining(gw: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gw.gateway.readiness, "serving", False)
    answer = await gw.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not serving", "faults": []})
    assert (await gw.http.get("/healthz")).status_code == 200


async def test_metrics_are_what_prometheus_reads(gw: Running, alice: App, bob: App) -> None:
    before = await gw.metric('gateway_calls_total{call="announce",status="201"}') if await had(gw, "announce") else 0
    await alice.send(bob.client_id)
    answer = await gw.http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {"gateway_calls", "gateway_call_seconds", "gateway_held_polls", "gateway_uploaded_bytes"} <= set(families)
    assert alice.client_id not in answer.text
    assert await gw.metric('gateway_calls_total{call="announce",status="201"}') == before + 1


async def had(gw: Running, call: str) -> bool:
    return f'gateway_calls_total{{call="{call}",status="201"}}' in (await gw.http.get("/metrics")).text


async def test_metrics_are_the_operators_where_a_token_is_set(tmp_path_factory: pytest.TempPathFactory) -> None:
    operator = "the operator's own secret"
    async with running_gateway(tmp_path_factory.mktemp("operator"), OPERATOR_TOKEN=operator) as gw:
        for given in (None, "Bearer", "Bearer x", "Basic x", f"Bearer {token('bob')}", f"Bearer {operator}x"):
            answer = await gw.http.get("/metrics", headers=authorization(given))
            assert_problem(answer, 401, "unauthorized")
        assert_problem(await gw.http.get("/metrics", headers=authorization("Bearer \xff")), 401, "unauthorized")
        assert (await gw.http.get("/metrics", headers={"Authorization": f"Bearer {operator}"})).status_code == 200
        assert (await gw.http.get("/healthz")).status_code == 200


async def test_the_operators_token_opens_no_account(tmp_path_factory: pytest.TempPathFactory) -> None:
    operator = "the operator's own secret"
    async with running_gateway(tmp_path_factory.mktemp("operator"), OPERATOR_TOKEN=operator) as gw:
        answer = await gw.http.get("/v1/poll", headers={"Authorization": f"Bearer {operator}"})
        assert_problem(answer, 401, "unauthorized")


async def test_a_backend_that_does_not_answer_is_503_and_the_app_may_come_back(
    gw: Running, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(_: object) -> None:
        await asyncio.sleep(60)

    changes = gw.gateway.service.changes
    with monkeypatch.context() as patch:
        patch.setattr("gateway.changes.CALL_DEADLINE_S", 0.05)
        patch.setattr(changes.documents, "load", hangs)
        for answer in (await bob.poll(), await bob.sync(), await bob.register("phone", "x")):
            assert_problem(answer, 503, "unavailable")
    assert (await bob.poll()).status_code == 200

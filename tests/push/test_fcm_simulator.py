"""The simulator of FCM on real sockets: tokens, messages, what is refused of them, and how it may be told to answer."""

import asyncio
import contextlib
import gc
import re
import signal
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import firebase_admin
import httpx
import jwt
import orjson
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from firebase_admin import credentials, messaging
from google.auth.transport.requests import Request as Transport
from google.oauth2.service_account import Credentials

from push.simulators.answers import Answer, Cut, GoAway, Late, Reset, Silence, html
from push.simulators.fcm import (
    ERROR_CODES,
    FcmSimulator,
    fcm_simulator,
    invalid_value,
    permission_denied,
    refusal,
    unauthenticated,
)
from push.simulators.oauth import GRANT_TYPE, TokenRequest, oauth_refusal
from push.simulators.serving import MAX_BODY_BYTES
from tests.push.test_apns_simulator import ALERT, TOKEN, Clock
from tests.running import within

DEVICE = "fXy_0-9:APA91b"
NOW_S = 1_800_000_000
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"

Json = dict[str, Any]


class Server:
    """Somebody's server that has the service account, over one connection for messages and one for tokens."""

    def __init__(self, simulator: FcmSimulator, http: httpx.AsyncClient, oauth: httpx.AsyncClient) -> None:
        self.simulator = simulator
        self.http = http
        self.oauth = oauth
        self.account: Json = orjson.loads(simulator.credentials_file.read_bytes())
        # To prove that the numbers are prime takes longer than all the rest of a test.
        key = load_pem_private_key(self.account["private_key"].encode(), None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey)
        self.key = key
        self.bearer = ""

    def assertion(self, changes: Mapping[str, Any] | None = None, *, key: rsa.RSAPrivateKey | None = None) -> str:
        """What a token is asked for with; None takes a claim away."""
        claims = {
            "iss": self.account["client_email"],
            "aud": self.account["token_uri"],
            "scope": SCOPE,
            "iat": NOW_S,
            "exp": NOW_S + 3600,
            **(changes or {}),
        }
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, self.key if key is None else key, algorithm="RS256")

    async def ask(self, assertion: str | None = None, grant_type: str = GRANT_TYPE) -> httpx.Response:
        """Ask for an access token."""
        form = {"grant_type": grant_type, "assertion": self.assertion() if assertion is None else assertion}
        return await within(self.oauth.post("/token", data=form))

    async def log_in(self) -> str:
        answer = await self.ask()
        assert answer.status_code == 200, answer.text
        self.bearer = f"Bearer {answer.json()['access_token']}"
        return self.bearer

    async def send(
        self,
        message: object = None,
        *,
        method: str = "POST",
        path: str = "/v1/projects/example-project/messages:send",
        body: bytes | None = None,
        **headers: str,
    ) -> httpx.Response:
        """Send a message, or another body."""
        if body is None:
            body = orjson.dumps(
                {"message": {"token": DEVICE, "data": {"version": "7"}} if message is None else message}
            )
        headers = {"authorization": self.bearer, "content-type": "application/json"} | headers
        return await within(self.http.request(method, path, content=body, headers=headers))


@asynccontextmanager
async def server_of(simulator: FcmSimulator) -> AsyncIterator[Server]:
    context = ssl.create_default_context(cafile=str(simulator.authority.ca_file))
    async with (
        httpx.AsyncClient(http2=True, verify=context, base_url=simulator.endpoint) as http,
        httpx.AsyncClient(verify=context, base_url=simulator.endpoint) as oauth,
    ):
        yield Server(simulator, http, oauth)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def simulator(tmp_path: Path, clock: Clock) -> AsyncIterator[FcmSimulator]:
    async with fcm_simulator(tmp_path, clock=clock) as simulator:
        yield simulator


@pytest.fixture
async def stranger(simulator: FcmSimulator) -> AsyncIterator[Server]:
    """A server that has no access token yet."""
    async with server_of(simulator) as server:
        yield server


@pytest.fixture
async def server(stranger: Server) -> Server:
    await stranger.log_in()
    return stranger


def assert_error(answer: httpx.Response, code: int, status: str, details: list[Json]) -> None:
    """The body has the shape that Google's errors have."""
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    [(name, error)] = answer.json().items()
    assert (name, error["code"], error["status"]) == ("error", code, status)
    assert error["message"]
    assert error.get("details", []) == details


def fcm_error(code: str) -> Json:
    return {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}


def bad_request(where: str, description: str) -> Json:
    violation = ({"field": where} if where else {}) | {"description": description}
    return {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}


# --- Access tokens


async def test_a_service_account_gets_access_tokens(stranger: Server) -> None:
    answers = [await stranger.ask(), await stranger.ask()]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.http_version for answer in answers} == {"HTTP/1.1"}
    for answer in answers:
        assert answer.json() | {"access_token": ""} == {"access_token": "", "expires_in": 3600, "token_type": "Bearer"}
    tokens = [answer.json()["access_token"] for answer in answers]
    assert tokens == stranger.simulator.access_tokens
    assert len(set(tokens)) == 2
    assert (stranger.simulator.refused, stranger.simulator.connections) == ([], 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://oauth2.googleapis.com/token"},
        {"scope": "https://www.googleapis.com/auth/cloud-platform"},
        {"scope": f"openid {SCOPE}"},
        {"exp": NOW_S + 60},
        {"iat": NOW_S - 3599, "exp": NOW_S + 1},
    ],
)
async def test_every_good_request_gets_a_token(stranger: Server, changes: Json) -> None:
    assert (await stranger.ask(stranger.assertion(changes))).status_code == 200
    assert stranger.simulator.refused == []


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        ("invalid_grant", {"iss": "somebody@example-project.iam.gserviceaccount.com"}),
        ("invalid_grant", {"iss": None}),
        ("invalid_grant", {"aud": "https://example.org/token"}),
        ("invalid_grant", {"aud": None}),
        ("invalid_grant", {"iat": NOW_S + 1}),
        ("invalid_grant", {"iat": None}),
        ("invalid_grant", {"exp": NOW_S}),
        ("invalid_grant", {"exp": NOW_S + 3601}),
        ("invalid_grant", {"exp": None}),
        ("invalid_scope", {"scope": "https://www.googleapis.com/auth/drive"}),
        ("invalid_scope", {"scope": f"{SCOPE}.more"}),
        ("invalid_scope", {"scope": None}),
    ],
)
async def test_every_broken_rule_of_a_token_has_its_error(stranger: Server, error: str, changes: Json) -> None:
    answer = await stranger.ask(stranger.assertion(changes))

    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.json()["error_description"]
    assert (stranger.simulator.refused, stranger.simulator.access_tokens) == ([error], [])


async def test_a_token_is_asked_for_with_the_key_of_the_account(stranger: Server) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    answer = await stranger.ask(stranger.assertion(key=key))

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("assertion", ["", "x", "x.y.z"])
async def test_what_is_no_assertion_gets_no_token(stranger: Server, assertion: str) -> None:
    assert (await stranger.ask(assertion)).json()["error"] == "invalid_grant"


async def test_only_one_grant_type_is_known(stranger: Server) -> None:
    answer = await stranger.ask(grant_type="client_credentials")

    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


async def test_an_access_token_lives_as_long_as_it_says(tmp_path: Path, clock: Clock) -> None:
    async with fcm_simulator(tmp_path, clock=clock, token_life_s=60) as simulator, server_of(simulator) as server:
        answer = await server.ask()
        server.bearer = f"Bearer {answer.json()['access_token']}"
        assert answer.json()["expires_in"] == 60

        clock.now_s += 59
        assert (await server.send()).status_code == 200
        clock.now_s += 1
        assert (await server.send()).status_code == 401
        clock.now_s -= 60
        await server.log_in()
        assert (await server.send()).status_code == 200


async def test_a_message_needs_an_access_token_that_was_issued(server: Server) -> None:
    for authorization in ("", "Bearer", "Bearer ", "Bearer ya29.mine", server.bearer.replace("Bearer", "Basic")):
        answer = await server.send(authorization=authorization)

        assert answer.status_code == 401
        assert answer.json()["error"]["status"] == "UNAUTHENTICATED"
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert server.simulator.refused == ["UNAUTHENTICATED"] * 5
    assert server.simulator.received == []


async def test_the_oauth_endpoint_can_be_told_to_answer(stranger: Server) -> None:
    asked: list[TokenRequest] = []

    def react(request: TokenRequest) -> Answer:
        asked.append(request)
        return oauth_refusal("temporarily_unavailable", status=503)

    stranger.simulator.oauth_react = react
    answer = await stranger.ask()

    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert [request.claims["scope"] for request in asked] == [SCOPE]
    assert (stranger.simulator.access_tokens, stranger.simulator.refused) == ([], [])


async def test_an_access_token_may_come_late(stranger: Server) -> None:
    stranger.simulator.oauth_react = lambda _: Late(0.05)
    began_s = asyncio.get_running_loop().time()

    bearer = await stranger.log_in()

    assert asyncio.get_running_loop().time() - began_s >= 0.05
    assert bearer == f"Bearer {stranger.simulator.access_tokens[0]}"


# --- What is taken


async def test_a_message_is_received_as_it_was_sent(server: Server) -> None:
    android = {"priority": "HIGH", "ttl": "600s", "collapse_key": "bob"}
    message = {"token": DEVICE, "data": {"version": "7"}, "android": android}

    answer = await server.send(message)

    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
    assert answer.json()["name"].startswith("projects/example-project/messages/0:")
    [push] = await within(server.simulator.receives(1))
    assert (push.token, push.message, push.data) == (DEVICE, message, {"version": "7"})
    assert (push.priority, push.ttl_s, push.collapse_key) == ("HIGH", 600.0, "bob")
    assert f"Bearer {push.access_token}" == server.bearer
    assert 0 <= asyncio.get_running_loop().time() - push.came_s < 10


async def test_each_message_has_a_name_of_its_own(server: Server) -> None:
    names = [(await server.send()).json()["name"] for _ in range(3)]

    assert len(set(names)) == 3


async def test_a_push_does_not_show_what_is_secret_about_it(server: Server) -> None:
    await server.send()

    shown = repr(server.simulator.received)
    assert DEVICE not in shown
    assert "ya29" not in shown


@pytest.mark.parametrize(
    ("android", "expected"),
    [
        ({}, ("NORMAL", 2_419_200.0, None)),
        ({"notification": {"title": "x"}}, ("HIGH", 2_419_200.0, None)),
        ({"priority": "high"}, ("HIGH", 2_419_200.0, None)),
        ({"priority": "normal", "notification": {"title": "x"}}, ("NORMAL", 2_419_200.0, None)),
        ({"ttl": "0s"}, ("NORMAL", 0.0, None)),
        ({"ttl": "3.500000001s"}, ("NORMAL", 3.500000001, None)),
        ({"ttl": "2419200s"}, ("NORMAL", 2_419_200.0, None)),
        ({"collapseKey": "bob", "directBootOk": True}, ("NORMAL", 2_419_200.0, "bob")),
        ({"collapse_key": None, "direct_boot_ok": False}, ("NORMAL", 2_419_200.0, None)),
        ({"restricted_package_name": "org.example.app", "fcm_options": {}}, ("NORMAL", 2_419_200.0, None)),
    ],
)
async def test_every_good_form_is_taken(server: Server, android: Json, expected: tuple[object, ...]) -> None:
    answer = await server.send({"token": DEVICE, "android": android})

    assert answer.status_code == 200, answer.text
    [push] = server.simulator.received
    assert (push.priority, push.ttl_s, push.collapse_key) == expected
    assert server.simulator.refused == []


async def test_data_for_android_replaces_the_other(server: Server) -> None:
    await server.send({"token": DEVICE, "data": {"version": "7"}, "android": {"data": {"version": "8"}}})

    assert server.simulator.received[0].data == {"version": "8"}


async def test_data_may_have_4096_bytes(server: Server) -> None:
    data = {"key": "x" * (4096 - 3 - 2 - 2), "ö": "ü"}

    assert (await server.send({"token": DEVICE, "data": data})).status_code == 200


async def test_a_message_that_is_only_to_be_checked_is_not_received(server: Server) -> None:
    answer = await server.send(body=orjson.dumps({"validate_only": True, "message": {"token": DEVICE}}))

    assert answer.json() == {"name": "projects/example-project/messages/fake_message_id"}
    assert server.simulator.received == []


async def test_messages_may_come_over_http_1(server: Server) -> None:
    server.http = server.oauth

    answer = await server.send()

    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")


# --- What is refused


def android(**members: object) -> Json:
    return {"token": DEVICE, "android": members}


BAD: list[tuple[str, Json]] = [
    ("message", {"token": DEVICE, "to": "x"}),
    ("message.android", android(time_to_live="60s")),
    ("message.android", {"token": DEVICE, "android": "x"}),
    ("message", {}),
    ("message", {"data": {"version": "7"}}),
    ("message", {"topic": "news"}),
    ("message", {"condition": "'news' in topics"}),
    ("message", {"fid": "x"}),
    ("message", {"token": DEVICE, "topic": "news"}),
    ("message.data", {"token": DEVICE, "data": ["version"]}),
    ("message.data[1].value", {"token": DEVICE, "data": {"a": "b", "version": 7}}),
    ("message.data[0].value", {"token": DEVICE, "data": {"version": None}}),
    ("message.android.data[0].value", android(data={"version": 7})),
    ("message.data", {"token": DEVICE, "data": {"from": "x"}}),
    ("message.data", {"token": DEVICE, "data": {"message_type": "x"}}),
    ("message.data", {"token": DEVICE, "data": {"google.x": "x"}}),
    ("message.data", {"token": DEVICE, "data": {"gcm.x": "x"}}),
    ("message.android.data", android(data={"from": "x"})),
    ("message.data", {"token": DEVICE, "data": {"key": "x" * 4094}}),
    ("message.data", {"token": DEVICE, "data": {"key": "ü" * 2047}}),
    ("message.android.data", android(data={"key": "x" * 4094})),
    ("message.android.priority", android(priority="URGENT")),
    ("message.android.priority", android(priority=10)),
    ("message.android.ttl", android(ttl="60")),
    ("message.android.ttl", android(ttl=60)),
    ("message.android.ttl", android(ttl="-1s")),
    ("message.android.ttl", android(ttl="2419201s")),
    ("message.android.ttl", android(ttl="1m")),
    ("message.android.collapse_key", android(collapse_key=7)),
    ("message.android.restricted_package_name", android(restricted_package_name=["x"])),
    ("message.android.direct_boot_ok", android(direct_boot_ok="yes")),
]


@pytest.mark.parametrize(("where", "message"), BAD)
async def test_every_broken_rule_is_told_with_its_place(server: Server, where: str, message: Json) -> None:
    answer = await server.send(message)

    assert_error(answer, 400, "INVALID_ARGUMENT", [bad_request(where, answer.json()["error"]["message"])])
    assert server.simulator.refused == [f"INVALID_ARGUMENT: {where}"]
    assert server.simulator.received == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"token":"x"}', b'{"Message":{"token":"x"}}'])
async def test_what_is_no_request_is_refused_as_a_whole(server: Server, body: bytes) -> None:
    answer = await server.send(body=body)

    assert_error(answer, 400, "INVALID_ARGUMENT", [bad_request("", answer.json()["error"]["message"])])
    assert server.simulator.refused == ["INVALID_ARGUMENT: the request"]


@pytest.mark.parametrize("token", ["", "a token", "tökén", 7, ["x"]])
async def test_what_is_no_token_is_told_as_the_error_of_a_token(server: Server, token: object) -> None:
    answer = await server.send({"token": token})

    assert_error(answer, 400, "INVALID_ARGUMENT", [fcm_error("INVALID_ARGUMENT")])
    assert server.simulator.refused == ["INVALID_ARGUMENT: message.token"]


async def test_a_device_has_four_collapse_keys_at_a_time(server: Server, clock: Clock) -> None:
    async def send(key: str, token: str = DEVICE) -> int:
        return (await server.send({"token": token, "android": {"collapse_key": key, "ttl": "60s"}})).status_code

    assert [await send(key) for key in "abcda"] == [200] * 5
    assert await send("e") == 400
    assert await send("e", "another") == 200
    assert (await server.send()).status_code == 200
    clock.now_s += 30
    assert await send("a") == 200
    clock.now_s += 30
    assert [await send(key) for key in "efg"] == [200] * 3
    assert await send("h") == 400
    assert server.simulator.refused == ["INVALID_ARGUMENT: message.android.collapse_key"] * 2


async def test_what_is_not_accepted_takes_up_no_collapse_key(server: Server) -> None:
    server.simulator.react = lambda _: refusal("UNAVAILABLE")
    for key in "abcd":
        await server.send(android(collapse_key=key))
    server.simulator.react = lambda _: None

    assert (await server.send(android(collapse_key="e"))).status_code == 200


async def test_another_project_is_none_of_its_own(server: Server) -> None:
    answer = await server.send(path="/v1/projects/another/messages:send")

    assert_error(answer, 403, "PERMISSION_DENIED", [])
    assert answer.content == permission_denied().body
    assert server.simulator.refused == ["PERMISSION_DENIED"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/projects/example-project/messages:send"),
        ("POST", "/v1/projects/example-project/messages"),
        ("POST", "/v2/projects/example-project/messages:send"),
        ("GET", "/token"),
        ("POST", "/"),
    ],
)
async def test_what_is_not_there_is_told_by_a_page(server: Server, method: str, path: str) -> None:
    answer = await server.send(method=method, path=path)

    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=UTF-8")
    assert server.simulator.refused == ["NOT_FOUND"]


# --- How it may be told to answer

STATUSES = {
    "UNSPECIFIED_ERROR": (500, "UNKNOWN"),
    "INVALID_ARGUMENT": (400, "INVALID_ARGUMENT"),
    "UNREGISTERED": (404, "NOT_FOUND"),
    "SENDER_ID_MISMATCH": (403, "PERMISSION_DENIED"),
    "QUOTA_EXCEEDED": (429, "RESOURCE_EXHAUSTED"),
    "UNAVAILABLE": (503, "UNAVAILABLE"),
    "INTERNAL": (500, "INTERNAL"),
    "THIRD_PARTY_AUTH_ERROR": (401, "UNAUTHENTICATED"),
}


@pytest.mark.parametrize("code", STATUSES)
async def test_every_error_code_can_be_given(server: Server, code: str) -> None:
    server.simulator.react = lambda _: refusal(code)

    answer = await server.send()

    quota = {"subject": "project", "description": "Messages per minute"}
    more = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [quota]}]
    assert_error(answer, *STATUSES[code], [fcm_error(code), *(more if code == "QUOTA_EXCEEDED" else [])])
    assert "retry-after" not in answer.headers
    assert (server.simulator.received, server.simulator.refused) == ([], [])


def test_the_error_codes_are_those_of_the_documentation() -> None:
    assert {code: status for code, (status, _) in STATUSES.items()} == ERROR_CODES


async def test_a_refusal_can_say_until_when_and_why(server: Server) -> None:
    server.simulator.react = lambda _: refusal("QUOTA_EXCEEDED", retry_after=30, message="Too much for this device")

    answer = await server.send()

    assert (answer.headers["retry-after"], answer.json()["error"]["message"]) == ("30", "Too much for this device")


async def test_a_bad_value_has_details_of_another_type_or_of_both(server: Server) -> None:
    details = [bad_request("message.data", "Message is too big")]
    server.simulator.react = lambda _: invalid_value("message.data", "Message is too big")
    assert_error(await server.send(), 400, "INVALID_ARGUMENT", details)

    server.simulator.react = lambda _: invalid_value("message.data", "Message is too big", fcm_error=True)
    assert_error(await server.send(), 400, "INVALID_ARGUMENT", [fcm_error("INVALID_ARGUMENT"), *details])


async def test_a_token_can_be_taken_for_expired(server: Server) -> None:
    server.simulator.react = lambda _: unauthenticated()

    answer = await server.send()

    assert answer.status_code == 401
    assert answer.json()["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


async def test_a_proxy_in_between_sends_html(server: Server) -> None:
    server.simulator.react = lambda _: html(502)

    answer = await server.send()

    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=UTF-8")


async def test_a_late_answer_holds_up_no_other(server: Server) -> None:
    server.simulator.react = lambda push: Late(0.1) if push.collapse_key == "bob" else None
    late = asyncio.create_task(server.send(android(collapse_key="bob")))
    await within(server.simulator.receives(1))

    await server.send()
    assert not late.done()

    assert (await late).status_code == 200
    assert [push.collapse_key for push in server.simulator.received] == ["bob", None]


@pytest.mark.parametrize("reaction", [Reset(), GoAway(b"bye"), Cut(), Late(0.01, Cut())])
async def test_a_message_can_end_without_an_answer(server: Server, reaction: Reset | GoAway | Cut | Late) -> None:
    server.simulator.react = lambda _: reaction
    with pytest.raises(httpx.TransportError):
        await server.send()

    server.simulator.react = lambda _: None
    assert (await server.send()).status_code == 200
    assert len(server.simulator.received) == 1


async def test_silence_lasts_until_the_client_gives_up(server: Server) -> None:
    server.simulator.react = lambda _: Silence()
    with pytest.raises(httpx.ReadTimeout):
        await server.http.post(
            "/v1/projects/example-project/messages:send",
            json={"message": {"token": DEVICE}},
            headers={"authorization": server.bearer},
            timeout=0.05,
        )

    server.simulator.react = lambda _: None
    assert (await server.send()).status_code == 200


async def test_a_hundred_messages_may_be_under_way_at_once(server: Server) -> None:
    answers = await asyncio.gather(*(server.send() for _ in range(300)))

    assert {answer.status_code for answer in answers} == {200}
    assert (server.simulator.connections, server.simulator.refused) == (1, [])


async def test_all_connections_can_be_cut(server: Server) -> None:
    await server.send()
    assert server.simulator.open_connections == 2

    server.simulator.cut()
    await within(server.simulator.listener.emptied())


# --- HTTP/1.1, seen from close by


@asynccontextmanager
async def tls_of(simulator: FcmSimulator) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection without ALPN, cut at the end."""
    context = ssl.create_default_context(cafile=str(simulator.authority.ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.listener.port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


HEAD = b"POST /token HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n"


async def test_requests_on_one_connection_are_answered_in_their_order(simulator: FcmSimulator) -> None:
    simulator.oauth_react = lambda _: Late(0.01)
    async with tls_of(simulator) as (reader, writer), server_of(simulator) as server:
        form = f"grant_type={GRANT_TYPE}&assertion={server.assertion()}".encode()
        first, second, last = (
            HEAD % (len(form), b"") + form,
            HEAD % (1, b"") + b"x",
            HEAD % (1, b"Connection: close\r\n") + b"x",
        )
        writer.write(first + second + last)
        answered = await within(reader.read())

    assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"200", b"400", b"400"]


async def test_what_is_no_http_is_answered_and_ended(simulator: FcmSimulator) -> None:
    async with tls_of(simulator) as (reader, writer):
        writer.write(b"what is this?\r\n\r\n")
        answered = await within(reader.read())

    assert answered.startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_is_far_too_long_is_not_read(simulator: FcmSimulator) -> None:
    async with tls_of(simulator) as (reader, writer):
        writer.write(HEAD % (10 * MAX_BODY_BYTES, b"") + b"x" * (MAX_BODY_BYTES + 1))
        answered = await within(reader.read())

    assert answered.startswith(b"HTTP/1.1 413 ")


async def test_all_connections_can_be_sent_away(simulator: FcmSimulator, server: Server) -> None:
    asked = asyncio.Event()

    def react(_: TokenRequest) -> Late:
        asked.set()
        return Late(0.05)

    simulator.oauth_react = react
    async with tls_of(simulator) as (reader, writer), tls_of(simulator) as (idle, _):
        form = f"grant_type={GRANT_TYPE}&assertion={server.assertion()}".encode()
        writer.write(HEAD % (len(form), b"") + form)
        await within(asked.wait())

        simulator.go_away()
        assert await within(idle.read()) == b""
        assert (await within(reader.read())).startswith(b"HTTP/1.1 200 ")


async def test_nothing_keeps_a_connection_that_is_gone(simulator: FcmSimulator) -> None:
    asked = asyncio.Event()

    def react(request: TokenRequest) -> Late:
        asked.set()
        return Late(60)

    simulator.oauth_react = react
    async with tls_of(simulator) as (_, writer), server_of(simulator) as server:
        form = f"grant_type={GRANT_TYPE}&assertion={server.assertion()}".encode()
        writer.write(HEAD % (len(form), b"") + form)
        await within(asked.wait())
        [connection] = [weakref.ref(connection) for connection in simulator.listener._open]
    await within(simulator.listener.emptied())

    gc.collect()
    assert connection() is None


# --- The libraries


async def test_google_auth_gets_a_token(tmp_path: Path) -> None:
    async with fcm_simulator(tmp_path) as simulator:
        found = Credentials.from_service_account_file(str(simulator.credentials_file), scopes=[SCOPE])  # type: ignore[no-untyped-call]
        with requests.Session() as session:
            session.trust_env = False  # the environment's authorities would go before this one
            session.verify = str(simulator.authority.ca_file)
            await within(asyncio.to_thread(found.refresh, Transport(session)))

    assert [found.token] == simulator.access_tokens
    assert simulator.refused == []


@asynccontextmanager
async def library(simulator: FcmSimulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[firebase_admin.App]:
    """firebase-admin, as its users have it, with an access token already: it would get one in the event loop."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(simulator.authority.ca_file))
    url = simulator.endpoint + "/v1/projects/{0}/messages:send"
    monkeypatch.setattr(messaging._MessagingService, "FCM_URL", url)
    certificate = credentials.Certificate(str(simulator.credentials_file))
    app = firebase_admin.initialize_app(certificate, name="simulated")
    await within(asyncio.to_thread(certificate.get_credential().refresh, Transport()))
    try:
        yield app
    finally:
        await messaging._get_messaging_service(app)._async_client.aclose()
        await asyncio.to_thread(firebase_admin.delete_app, app)


@pytest.mark.filterwarnings("ignore:Message.token is deprecated")
async def test_firebase_admin_gets_a_push_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fcm_simulator(tmp_path) as simulator, library(simulator, monkeypatch) as app:
        android = messaging.AndroidConfig(priority="high", ttl=60.5, collapse_key="bob")
        message = messaging.Message({"version": "7"}, android=android, token=DEVICE)
        taken = await within(messaging.send_each_async([message], app=app))
        simulator.react = lambda _: refusal("UNREGISTERED")
        refused = await within(messaging.send_each_async([message], app=app))

    assert [response.success for response in taken.responses] == [True]
    [push] = simulator.received
    assert (push.priority, push.ttl_s, push.collapse_key, push.data) == ("HIGH", 60.5, "bob", {"version": "7"})
    assert isinstance(refused.responses[0].exception, messaging.UnregisteredError)
    assert simulator.refused == []


# --- Beginning and end


def test_the_key_of_the_account_is_nobody_else_s_to_read(simulator: FcmSimulator) -> None:
    assert simulator.credentials_file.stat().st_mode & 0o777 == 0o600


async def test_nothing_is_left_at_the_end(tmp_path: Path, clock: Clock) -> None:
    before = asyncio.all_tasks()
    async with fcm_simulator(tmp_path, clock=clock) as simulator, server_of(simulator) as server:
        await server.log_in()
        simulator.react = lambda _: Late(60)
        sending = asyncio.create_task(server.send())
        await within(simulator.receives(1))
        sending.cancel()

    assert simulator.open_connections == 0
    await asyncio.wait([sending])
    assert asyncio.all_tasks() == before


# --- The script


class Script:
    """Both simulators in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process, settings: Mapping[str, str]) -> None:
        self.settings = settings
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await within(self._process.stdout.readline())).decode().rstrip("\n")

    @asynccontextmanager
    async def client(self, provider: str) -> AsyncIterator[httpx.AsyncClient]:
        context = ssl.create_default_context(cafile=self.settings[f"GATEWAY_{provider}_CA_FILE"])
        endpoint = self.settings[f"GATEWAY_{provider}_ENDPOINT"]
        async with httpx.AsyncClient(http2=True, verify=context, base_url=endpoint) as http:
            yield http

    async def push(self, **headers: str) -> httpx.Response:
        """Send one through APNs."""
        usual = {"authorization": f"bearer {self._provider_token()}", "apns-topic": self.settings["GATEWAY_APNS_TOPIC"]}
        async with self.client("APNS") as http:
            return await within(http.post(f"/3/device/{TOKEN}", content=ALERT, headers=usual | headers))

    async def ask(self, http: httpx.AsyncClient) -> httpx.Response:
        """Ask for an access token of FCM's."""
        return await within(http.post("/token", data={"grant_type": GRANT_TYPE, "assertion": self._assertion()}))

    async def send(self) -> httpx.Response:
        """Send one through FCM."""
        async with self.client("FCM") as http:
            answer = await self.ask(http)
            return await within(
                http.post(
                    "/v1/projects/example-project/messages:send",
                    json={"message": {"token": DEVICE, "data": {"version": "7"}}},
                    headers={"authorization": f"Bearer {answer.json()['access_token']}"},
                )
            )

    def read(self, name: str) -> bytes:
        """The file that a setting names."""
        return Path(self.settings[name]).read_bytes()

    def _provider_token(self) -> str:
        claims = {"iss": self.settings["GATEWAY_APNS_TEAM_ID"], "iat": int(time.time())}
        kid = self.settings["GATEWAY_APNS_KEY_ID"]
        return jwt.encode(claims, self.read("GATEWAY_APNS_KEY_FILE"), algorithm="ES256", headers={"kid": kid})

    def _assertion(self) -> str:
        account, now_s = orjson.loads(self.read("GATEWAY_FCM_CREDENTIALS_FILE")), int(time.time())
        claims = {"iss": account["client_email"], "aud": account["token_uri"], "scope": SCOPE}
        return jwt.encode(claims | {"iat": now_s, "exp": now_s + 3600}, account["private_key"], algorithm="RS256")

    async def end(self, how: int = signal.SIGINT) -> tuple[int | None, bytes]:
        """The exit code, and what was said of errors."""
        self._process.send_signal(how)
        _, errors = await within(self._process.communicate())
        return self._process.returncode, errors


@asynccontextmanager
async def script(*options: str) -> AsyncIterator[Script]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "push.simulators", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        lines = [(await within(process.stdout.readline())).decode().strip() for _ in range(9)]
        yield Script(process, dict(line.split("=", 1) for line in lines))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_script_tells_the_settings_and_what_comes(tmp_path: Path) -> None:
    async with script(str(tmp_path / "new")) as running:
        pushed = await running.push(**{"apns-push-type": "alert"})
        refused = await running.push()
        sent = await running.send()

        assert [pushed.status_code, refused.status_code, sent.status_code] == [200, 400, 200]
        assert list(running.settings) == [
            "GATEWAY_APNS_ENDPOINT",
            "GATEWAY_APNS_CA_FILE",
            "GATEWAY_APNS_KEY_FILE",
            "GATEWAY_APNS_KEY_ID",
            "GATEWAY_APNS_TEAM_ID",
            "GATEWAY_APNS_TOPIC",
            "GATEWAY_FCM_ENDPOINT",
            "GATEWAY_FCM_CA_FILE",
            "GATEWAY_FCM_CREDENTIALS_FILE",
        ]
        assert await running.line() == f"apns …cdef alert, priority 10, {len(ALERT)} bytes"
        assert await running.line() == "apns refused: InvalidPushType"
        assert await running.line() == "fcm …A91b NORMAL, kept 2419200 s, 8 bytes of data"
        assert await running.end() == (0, b"")
    assert running.read("GATEWAY_APNS_CA_FILE") == (tmp_path / "new" / "ca.pem").read_bytes()


async def test_the_script_refuses_late_when_it_is_told_to_and_counts() -> None:
    async with script("--answer", "Unregistered:1", "--late", "0.05", "--quiet") as running:
        answer = await running.push(**{"apns-push-type": "alert"})
        assert (answer.status_code, answer.json()["reason"]) == (410, "Unregistered")
        assert abs(answer.json()["timestamp"] / 1000 - time.time()) < 60
        assert answer.elapsed.total_seconds() >= 0.05
        assert (await running.send()).status_code == 200

        while (line := await running.line()) != "apns 1 Unregistered; fcm 1 received":
            assert line.startswith("apns ")
        assert await running.end(signal.SIGTERM) == (0, b"")
    with pytest.raises(FileNotFoundError):
        running.read("GATEWAY_APNS_KEY_FILE")


async def test_the_script_refuses_a_share_of_the_other_provider_s() -> None:
    async with script("--answer", "UNAVAILABLE:0") as running:
        assert (await running.send()).status_code == 200
        await running.end()
    async with script("--answer", "UNAVAILABLE") as running:
        assert (await running.send()).status_code == 503
        assert await running.line() == "fcm …A91b NORMAL, kept 2419200 s, 8 bytes of data: UNAVAILABLE"
        await running.end()


async def test_the_script_cuts_what_comes_when_it_is_down() -> None:
    async with script("--down") as running:
        with pytest.raises(httpx.TransportError):
            await running.push(**{"apns-push-type": "alert"})
        async with running.client("FCM") as http:
            with pytest.raises(httpx.TransportError):
                await running.ask(http)
        assert await running.line() == f"apns …cdef alert, priority 10, {len(ALERT)} bytes: cut"
        assert await running.end() == (0, b"")


@pytest.mark.parametrize("option", ["Unknown", "Unregistered:2", "Unregistered:x"])
async def test_the_script_knows_which_reasons_there_are(option: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "push.simulators", "--answer", option, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _, errors = await within(process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 2
    assert option.partition(":")[0].encode() in errors

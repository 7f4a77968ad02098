"""Pages that come with the gateway: who gets them, with which headers, and who gets tokens of the demo."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.config import Settings
from gateway.parsers import ConfigError
from tests.running import SECRET, Running, running_gateway

OPERATOR_TOKEN = "an operator's token, long enough"
DEMO = ("/", "/web/demo/index.html", "/web/client.js")
CONSOLE = ("/console", "/web/console/index.html")


@pytest.fixture(scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("demo"), DEMO="true") as gw:
        yield gw


@pytest.fixture(scope="module")
async def console(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("console"), OPERATOR_TOKEN=OPERATOR_TOKEN) as gw:
        yield gw


async def status(gw: Running, path: str, method: str = "GET") -> int:
    async with httpx.AsyncClient(base_url=gw.url) as http:
        return (await http.request(method, path)).status_code


async def ask(gw: Running, body: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gw.url) as http:
        return await http.post("/demo/token", json=body)


# --- Which pages there are


@pytest.mark.parametrize("path", DEMO)
async def test_the_demo_has_its_pages(demo: Running, path: str) -> None:
    assert await status(demo, path) == await status(demo, path, "HEAD") == 200
    assert await status(demo, path, "POST") == 405


@pytest.mark.parametrize("path", CONSOLE)
async def test_the_console_is_there_for_whoever_has_set_an_operators_token(
    demo: Running, console: Running, path: str
) -> None:
    assert await status(console, path) == 200
    assert await status(demo, path) == 404


async def test_without_a_demo_there_is_neither_page_nor_token(console: Running) -> None:
    for path in DEMO:
        assert await status(console, path) == 404
    assert (await ask(console, {"client_id": "demo.alice"})).status_code == 404


@pytest.mark.parametrize(
    "path", ["..", "../api/pages.py", "demo/../../api/pages.py", "demo/none.js", "demo", "demo/%00", "x" * 5000]
)
async def test_nothing_else_is_served(demo: Running, path: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{demo.url}/web/{path.replace('..', '%2e%2e')}")
    assert answer.status_code in {404, 414, 431}, answer.text


async def test_an_unchanged_file_is_not_sent_twice(demo: Running) -> None:
    async with httpx.AsyncClient(base_url=demo.url) as http:
        first = await http.get("/web/client.js")
        again = await http.get("/web/client.js", headers={"if-none-match": first.headers["etag"]})
    assert first.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


# --- What they may do


def directives(policy: str) -> dict[str, list[str]]:
    parts = [part.split() for part in policy.split(";")]
    return {name: values for name, *values in parts}


@pytest.mark.parametrize("path", DEMO)
async def test_pages_run_their_own_scripts_alone_and_load_nothing_from_elsewhere(demo: Running, path: str) -> None:
    async with httpx.AsyncClient(base_url=demo.url) as http:
        headers = (await http.get(path)).headers
    policy = directives(headers["content-security-policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert policy["frame-ancestors"] == ["'self'"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_pages_reach_the_gateways_public_address_and_the_object_store(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("AWS_ACCESS_KEY_ID", "key")
        environ.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        async with (
            running_gateway(
                tmp_path,
                DEMO="true",
                PUBLIC_URL="https://gateway.example.com",
                OBJECTS_URL="s3://videos?region=eu-central-1&endpoint=http://127.0.0.1:9",
            ) as gw,
            httpx.AsyncClient(base_url=gw.url) as http,
        ):
            policy = directives((await http.get("/")).headers["content-security-policy"])
    assert set(policy["connect-src"]) == {"'self'", "https://gateway.example.com", "http://127.0.0.1:9"}


# --- Tokens


async def test_the_demos_tokens_work_for_a_quarter_of_an_hour(demo: Running) -> None:
    answer = await ask(demo, {"client_id": "demo.alice"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert 800 < answer.json()["expires_at"] / 1000 - time.time() < 901
    async with httpx.AsyncClient(base_url=demo.url) as http:
        polled = await http.get("/v1/poll", headers={"authorization": f"Bearer {answer.json()['token']}"})
    assert polled.json()["client_id"] == "demo.alice"


@pytest.mark.parametrize("client_id", ["alice", "Demo.alice", "demo", "demoalice", " demo.alice"])
async def test_nobody_else_gets_a_token(demo: Running, client_id: str) -> None:
    assert (await ask(demo, {"client_id": client_id})).status_code in {403, 422}


@pytest.mark.parametrize(
    "body", [{}, {"client_id": 1}, [], {"client_id": "demo.\n"}, {"client_id": "demo." + "a" * 60}]
)
async def test_a_body_that_names_no_client_is_invalid(demo: Running, body: object) -> None:
    answer = await ask(demo, body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


async def test_the_demo_and_the_apps_users_do_not_reach_one_another(demo: Running) -> None:
    stranger, user = demo.app("demo.mallory"), demo.app("alice")
    for sender, recipient in ((stranger, "alice"), (user, "demo.mallory")):
        body = {"recipient_id": recipient, "size": 1, "content_type": "video/mp4"}
        answer = await sender.call("POST", "/v1/videos", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await stranger.send("demo.bob")


async def test_without_a_demo_its_ids_are_like_any_others(console: Running) -> None:
    assert await console.app("demo.alice").send("bob")


# --- When there is a demo


def shown(**environ: str) -> bool:
    return Settings.load({f"GATEWAY_{name}": text for name, text in environ.items()}).shows_demo


def test_there_is_a_demo_on_the_first_start() -> None:
    assert shown()
    assert shown(HOST="::1")
    assert not shown(DEMO="false")


def test_there_is_no_demo_where_others_may_reach_it_unless_it_is_asked_for() -> None:
    assert not shown(HOST="::", JWT_SECRET=SECRET)
    assert not shown(JWT_SECRET=SECRET)  # behind a proxy, it may be
    assert not shown(PUBLIC_URL="https://gateway.example.com")
    assert shown(HOST="::", JWT_SECRET=SECRET, DEMO="true")


@pytest.mark.parametrize(
    "environ",
    [
        {"DEMO": "yes"},
        {"DEMO": "true", "JWKS_URL": "https://example.com/keys"},
        {"DEMO": "true", "FCM_CREDENTIALS_FILE": __file__},
    ],
)
def test_a_demo_that_cannot_work_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="GATEWAY_DEMO"):
        shown(**environ)

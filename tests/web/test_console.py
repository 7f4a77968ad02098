"""The operator's console in a browser, on real gateways."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from gateway.live.closing import CloseCode
from tests.redis_servers import RedisServer, free_port, redis_server
from tests.running import App, Running, Socket, running_gateway
from tests.web.console_page import OPERATOR, board, console
from tests.web.node import HERE, NODE, WEB

PUSH_TOKEN = "a1" * 32
KEPT = "sessionStorage.getItem('operator-token')"

COUNTED = """
window.asked = 0;
const real = requestAnimationFrame;
window.requestAnimationFrame = call => { window.asked += 1; return real(call); };
"""
SPOKEN = """
window.spoken = [];
for (const region of document.querySelectorAll("[aria-live], [role=status], [role=alert]"))
  new MutationObserver(() => window.spoken.push(region.id))
    .observe(region, {subtree: true, childList: true, characterData: true});
"""
ONLINE = "dispatchEvent(new Event('online'))"
PICTURE = "document.querySelector('#chart-memory canvas').toDataURL()"


@asynccontextmanager
async def connected(*apps: App) -> AsyncIterator[list[Socket]]:
    """A socket for each, its first packet read."""
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(app.socket("phone")) for app in apps]
        for socket in sockets:
            await socket.packet()
        yield sockets


@pytest.fixture(scope="module")
async def operated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A gateway with an operator."""
    async with running_gateway(tmp_path_factory.mktemp("operated"), OPERATOR_TOKEN=OPERATOR) as started:
        yield started


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


# --- What it is made of


def test_the_numbers_pass_in_node() -> None:
    file = HERE / "numbers.test.js"
    command = [str(NODE), "--test", "--test-reporter=tap", "--test-timeout=60000", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout
    counts = {name: int(count) for name, count in re.findall(r"^# (\w+) (\d+)$", found.stdout, re.MULTILINE)}
    declared = len(re.findall(r"^test\(", file.read_text(), re.MULTILINE))
    assert declared > 0
    assert (counts["tests"], counts["pass"], counts["skipped"], counts["todo"]) == (declared, declared, 0, 0)


def test_the_charting_library_is_the_version_that_is_named() -> None:
    named = re.search(r"uPlot, by Leon Sorokin \| ([0-9.]+) \| MIT", (WEB / "vendor" / "README.md").read_text())
    shipped = re.search(r"\(v([0-9.]+)\)", (WEB / "vendor" / "uPlot.js").read_text())
    assert named
    assert shipped
    assert named[1] == shipped[1]
    assert "MIT License" in (WEB / "vendor" / "uPlot.LICENSE").read_text()


def test_nothing_is_inserted_as_markup() -> None:
    for file in (WEB / "console").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser", file.read_text()), (
            file
        )


# --- Signing in


async def test_only_the_operators_token_opens_it(browser: Browser, operated: Running) -> None:
    app = operated.app(operated.fresh("alice"))
    async with console(browser, operated.url, expected="401") as opened:
        for wrong in ("not the token", app.token):
            await opened.sign_in(wrong)
            await expect(opened.page.get_by_role("alert")).to_have_text("That is not the operator's token.")
            await expect(opened.page.get_by_label("The operator's token")).to_be_focused()
            assert await opened.page.evaluate(KEPT) is None
        await expect(opened.headline).to_be_hidden()
        await opened.sign_in()
        await opened.is_live()
        await expect(opened.page.get_by_label("The operator's token")).to_be_hidden()
        assert OPERATOR not in opened.page.url
        assert OPERATOR not in await opened.page.content()
        assert await opened.page.evaluate("localStorage.length + document.cookie.length") == 0


async def test_it_is_kept_in_the_tab_until_the_operator_signs_out(browser: Browser, operated: Running) -> None:
    async with board(browser, operated.url) as opened:
        await opened.page.reload()
        await opened.is_live()
        await opened.press("Sign out")
        await expect(opened.page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert await opened.page.evaluate("sessionStorage.length") == 0
        await opened.page.reload()
        await expect(opened.page.get_by_role("heading", name="Sign in")).to_be_visible()


# --- The numbers


async def test_it_shows_what_happens_as_it_happens(browser: Browser, operated: Running) -> None:
    alice, bob = (operated.app(operated.fresh(name)) for name in ("alice", "bob"))
    async with board(browser, operated.url) as opened, connected(alice, bob):
        await expect(opened.tile("sockets")).to_contain_text("2")
        await expect(opened.tile("videos")).to_contain_text("0 /min")
        video_id = await alice.send(bob.client_id)
        await bob.say(video_id, "viewed")
        await expect(opened.tile("videos")).to_contain_text("1 /min")
        await expect(opened.tile("videos")).to_contain_text("1 viewed")
        await expect(opened.tile("latency")).to_contain_text(re.compile(r"\d ms"))
        await expect(opened.tile("memory")).to_contain_text("1 process")
        await expect(opened.page.locator("#cost")).to_contain_text("Nothing that this gateway keeps things in has a")
        await expect(opened.headline).to_have_text("Users are served.")
        await expect(opened.verdict("Backends")).to_contain_text("answer in")
        row = opened.page.locator("#processes tr")
        await expect(row).to_have_count(1)
        await expect(row.locator("td").nth(1)).to_have_text("2")
        await expect(row).to_contain_text("tells you this")
        await opened.page.get_by_text("5 minutes", exact=True).click()
        await expect(opened.chart("videos")).to_have_attribute("aria-valuetext", re.compile("uploaded 1, .*viewed 1,"))
        await expect(opened.chart("sockets")).to_have_attribute("aria-valuetext", re.compile("sockets 2,"))
        await opened.page.get_by_text("Hour", exact=True).click()
        await expect(opened.page.locator("#videos tr[data-key=viewed] td").first).to_have_text("1")


async def test_it_draws_once_a_second_and_says_nothing_by_itself(browser: Browser, operated: Running) -> None:
    async with board(browser, operated.url) as opened:
        await expect(opened.headline).to_have_text("Users are served.")
        await expect(opened.page.locator("#processes td").nth(7)).to_contain_text("ms")
        await opened.page.evaluate(COUNTED + SPOKEN)
        started_s = time.monotonic()
        await opened.comes_true("window.asked >= 3")
        assert time.monotonic() - started_s > 1.5
        assert await opened.page.evaluate("window.spoken") == []


async def test_charts_follow_when_the_light_goes_out(browser: Browser, operated: Running) -> None:
    async with board(browser, operated.url, color_scheme="light") as opened:
        await expect(opened.chart("memory").locator("canvas")).to_be_visible()
        light = await opened.page.evaluate(PICTURE)
        await opened.page.emulate_media(color_scheme="dark")
        await opened.comes_true(f"{PICTURE} !== {json.dumps(light)}")


async def test_a_gateway_that_goes_is_missed_and_found_again(browser: Browser, tmp_path: Path) -> None:
    port = str(free_port())
    async with AsyncExitStack() as first:
        gateway = await first.enter_async_context(running_gateway(tmp_path, OPERATOR_TOKEN=OPERATOR, PORT=port))
        async with board(browser, gateway.url, expected="ERR_") as opened:
            await expect(opened.headline).to_have_text("Users are served.")
            await opened.look_up("alice")
            await expect(opened.message).to_contain_text("Nothing is known of this client")
            await first.aclose()
            await expect(opened.connection).to_contain_text("Not connected since")
            await expect(opened.headline).to_have_text("Nothing is known of now.")
            await expect(opened.message).to_contain_text("the gateway does not answer")
            assert await opened.barriers("color-contrast") == []
            async with running_gateway(tmp_path, OPERATOR_TOKEN=OPERATOR, PORT=port):
                await opened.comes_true(f"{ONLINE}, document.querySelector('#connection').textContent === 'Live'")
                await expect(opened.headline).to_have_text("Users are served.")
                await expect(opened.message).to_contain_text("Nothing is known of this client")


# --- A client


async def test_a_client_is_looked_up(browser: Browser, operated: Running) -> None:
    alice, bob = (operated.app(operated.fresh(name)) for name in ("alice", "bob"))
    await bob.register("tablet", PUSH_TOKEN)
    video_id = await alice.send(bob.client_id)
    async with board(browser, operated.url) as opened, connected(bob):
        await opened.look_up(bob.client_id)
        packet = (await bob.poll()).text
        await expect(opened.client.locator(".facts")).to_contain_text(f"Version {json.loads(packet)['version']}")
        await expect(opened.client.locator(".facts")).to_contain_text(f"{len(packet.encode())} bytes")
        shown = await opened.client.locator("pre").text_content()
        assert json.loads(shown or "") == json.loads(packet)
        await expect(opened.client.locator(".waits")).to_contain_text(video_id)
        device = opened.client.get_by_role("row", name="tablet")
        await expect(device.first).to_contain_text("apns")
        await expect(opened.client.get_by_role("row", name="socket opened")).to_contain_text("phone")
        exact = opened.client.get_by_role("row", name="socket opened").locator("time")
        await expect(exact).to_have_attribute("title", re.compile(r"\d{4}, \d\d:\d\d:\d\d\.\d{3}"))
        assert PUSH_TOKEN not in await opened.page.content()
        await bob.say(video_id, "viewed")
        await expect(opened.client.get_by_role("row", name="status reported")).to_contain_text("viewed")
        await expect(opened.client.locator(".facts")).to_contain_text("0 incoming")


async def test_a_client_has_an_address_and_the_way_back_works(browser: Browser, operated: Running) -> None:
    bob = operated.app(operated.fresh("bob"))
    async with board(browser, operated.url) as opened:
        await opened.open(f"#client={bob.client_id}")
        await expect(opened.page.get_by_role("heading", name=f"Client {bob.client_id}")).to_be_focused()
        await expect(opened.message).to_have_text("Nothing is known of this client: it has not been heard of.")
        await opened.page.get_by_role("link", name="Back to all").click()
        await expect(opened.tile("sockets")).to_be_visible()
        await expect(opened.client).to_be_hidden()
        await opened.page.go_back()
        await expect(opened.page.get_by_role("heading", name=f"Client {bob.client_id}")).to_be_visible()


async def test_what_cannot_be_a_client_is_said_to_be_none(browser: Browser, operated: Running) -> None:
    async with board(browser, operated.url, expected="422") as opened:
        await opened.look_up("not an id")
        await expect(opened.message).to_have_text("That is not the id of a client.")


async def test_its_sockets_are_closed_after_a_question(browser: Browser, operated: Running) -> None:
    bob = operated.app(operated.fresh("bob"))
    async with board(browser, operated.url) as opened, connected(bob) as [socket]:
        await opened.look_up(bob.client_id)
        button = opened.page.get_by_role("button", name="Close its sockets")
        await button.focus()
        await opened.page.keyboard.press("Enter")
        await expect(opened.dialog).to_contain_text(f"This closes all sockets of {bob.client_id}")
        assert await opened.barriers() == []
        await opened.page.keyboard.press("Escape")
        await expect(opened.dialog).to_be_hidden()
        await expect(button).to_be_focused()
        assert len(operated.sockets_of(bob)) == 1, "no is no"
        await button.click()
        await opened.dialog.get_by_role("button", name="Close", exact=True).click()
        assert (await socket.ended())[0] == CloseCode.RESTART
        await expect(opened.message).to_contain_text(f"Told all sockets of {bob.client_id} to close")
        await expect(opened.client).to_contain_text("It is not connected")
        await expect(opened.client.get_by_role("row", name="socket closed")).to_contain_text("1012")


async def test_the_sockets_of_one_device_are_closed_alone(browser: Browser, operated: Running) -> None:
    bob = operated.app(operated.fresh("bob"))
    async with board(browser, operated.url) as opened, connected(bob) as [phone], bob.socket("tablet") as tablet:
        await tablet.packet()
        await opened.look_up(bob.client_id)
        await opened.press("Close the socket of device tablet")
        await opened.dialog.get_by_role("button", name="Close", exact=True).click()
        assert (await tablet.ended())[0] == CloseCode.RESTART
        await expect(opened.client.get_by_role("row", name="socket closed")).to_contain_text("tablet")
        assert (await phone.ask("ack?"))["type"] == "error", "the other one is still open"


async def test_what_is_foreign_is_shown_as_text(browser: Browser, operated: Running) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    bob = operated.app(operated.fresh("bob"))

    async def spoil(route: Route) -> None:
        found = await (await route.fetch()).json()
        found["waits"] = [{"text": markup, "since": None, "next_at": None}]
        found["events"] = [{"at": found["at"], "process": markup, "event": markup, "device_id": markup, markup: markup}]
        await route.fulfill(json=found)

    async with board(browser, operated.url) as opened:
        await opened.page.route("**/console/clients/*", spoil)
        await opened.look_up(bob.client_id)
        await expect(opened.client.locator(".waits")).to_contain_text(markup)
        await expect(opened.client.get_by_role("row", name="now").first).to_contain_text(markup)
        assert await opened.client.locator("img, script").count() == 0


# --- Several processes


async def test_many_processes_are_one_and_each_is_reached(browser: Browser, redis: RedisServer, tmp_path: Path) -> None:
    given = {"BUS_URL": redis.url, "CACHE_URL": redis.url, "OPERATOR_TOKEN": OPERATOR}
    async with (
        running_gateway(tmp_path, worker=True, **given) as here,
        running_gateway(tmp_path, worker=False, **given) as there,
        board(browser, here.url) as opened,
    ):
        alice, bob = here.app("alice"), there.app("bob")
        async with connected(alice, bob) as [_, socket]:
            rows = opened.page.locator("#processes tr")
            await expect(rows).to_have_count(2)
            await expect(opened.verdict("Bus")).to_contain_text("2 processes")
            await expect(opened.tile("sockets")).to_contain_text("2")
            await expect(rows.locator("td:nth-child(3)")).to_have_text(["1", "1"])
            name = await rows.filter(has_not_text="tells you this").locator("th").inner_text()
            await opened.look_up("bob")
            await expect(opened.client.get_by_role("row", name="socket").first).to_contain_text(name)
            await opened.press("Close its sockets")
            await opened.dialog.get_by_role("button", name="Close", exact=True).click()
            assert (await socket.ended())[0] == CloseCode.RESTART
            await expect(opened.client).to_contain_text("It is not connected")


# --- Whoever looks


@pytest.mark.parametrize(("scheme", "rules"), [("light", []), ("dark", ["color-contrast"])])
async def test_nobody_meets_a_barrier(browser: Browser, operated: Running, scheme: str, rules: list[str]) -> None:
    alice, bob = (operated.app(operated.fresh(name)) for name in ("alice", "bob"))
    await bob.register("tablet", PUSH_TOKEN)
    await alice.send(bob.client_id)
    async with console(browser, operated.url, color_scheme=scheme) as opened, connected(bob):
        assert await opened.barriers(*rules) == []
        await opened.sign_in()
        await opened.is_live()
        await expect(opened.headline).to_have_text("Users are served.")
        assert await opened.barriers(*rules) == []
        await opened.look_up(bob.client_id)
        await expect(opened.client.get_by_role("row", name="socket opened")).to_be_visible()
        assert await opened.barriers(*rules) == []


async def test_it_fits_on_a_phone(browser: Browser, operated: Running) -> None:
    bob = operated.app(operated.fresh("bob"))
    async with console(browser, operated.url, viewport={"width": 360, "height": 740}) as opened, connected(bob):
        assert await opened.overhang() == 0
        await opened.sign_in()
        await opened.is_live()
        await opened.verdict("Wakeups").focus()
        assert await opened.overhang() == 0
        await opened.look_up(bob.client_id)
        await expect(opened.client.get_by_role("row", name="socket opened")).to_be_attached()
        assert await opened.overhang() == 0


async def test_the_keyboard_does_it_all(browser: Browser, operated: Running) -> None:
    async with console(browser, operated.url) as opened:
        keyboard = opened.page.keyboard
        await opened.page.get_by_label("The operator's token").focus()
        await keyboard.type(OPERATOR)
        await keyboard.press("Enter")
        await opened.is_live()
        await opened.verdict("Faults").focus()
        rule = opened.page.get_by_role("tooltip")
        await expect(rule).to_contain_text("answered with 5xx. Fair from 0.1 %, bad from 1 %.")
        await keyboard.press("Escape")
        await expect(rule).to_have_count(0)
        await opened.chart("memory").focus()
        last = await opened.chart("memory").get_attribute("aria-valuenow")
        assert last is not None
        await keyboard.press("ArrowLeft")
        await expect(opened.chart("memory")).to_have_attribute("aria-valuenow", str(int(last) - 1))
        await keyboard.press("Home")
        await expect(opened.chart("memory")).to_have_attribute("aria-valuenow", "0")
        await expect(opened.chart("memory")).to_have_attribute("aria-valuetext", re.compile(r"^\d\d:\d\d:\d\d: "))
        await opened.page.get_by_role("radio", name="Hour").focus()
        await keyboard.press("ArrowRight")
        await expect(opened.page.get_by_role("radio", name="5 minutes")).to_be_checked()
        await expect(opened.chart("memory")).to_have_attribute("aria-valuemax", "300")
        await opened.page.get_by_label("Id of a client").focus()
        await keyboard.type("somebody")
        await keyboard.press("Enter")
        await expect(opened.page.get_by_role("heading", name="Client somebody")).to_be_focused()


async def test_the_ninth_console_is_told_to_wait(browser: Browser, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running_gateway(tmp_path, OPERATOR_TOKEN=OPERATOR))
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        streams = [gateway.http.stream("GET", "/console/stream", headers=headers) for _ in range(8)]
        answers = await asyncio.gather(*(stack.enter_async_context(stream) for stream in streams))
        async with console(browser, gateway.url, expected="429") as opened:
            await opened.sign_in()
            await expect(opened.connection).to_contain_text("Not connected since")
            await answers[0].aclose()
            await opened.press("Try now")
            await opened.is_live()

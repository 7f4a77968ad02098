"""A browser's own WebSocket: what a page can do with it, and what it sees."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from tests.browser import chromium
from tests.running import App, Json, Running, running_gateway, until, within

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"

SCRIPT = """
window.Talk = class Talk {
  constructor(url, protocols) {
    this.messages = [];
    this.events = [];
    this.waiting = [];
    this.closed = null;
    this.socket = new WebSocket(url, protocols);
    this.socket.onopen = () => { this.events.push("open"); this.wake(); };
    this.socket.onerror = () => { this.events.push("error"); this.wake(); };
    this.socket.onmessage = event => { this.messages.push(event.data); this.wake(); };
    this.socket.onclose = event => {
      this.events.push("close");
      this.closed = {code: event.code, reason: event.reason, clean: event.wasClean};
      this.wake();
    };
  }
  wake() { this.waiting.splice(0).forEach(resolve => resolve()); }
  async when(condition) { while (!condition()) await new Promise(resolve => this.waiting.push(resolve)); }
  async send(text) { await this.when(() => this.socket.readyState !== 0); this.socket.send(text); }
  async next() { await this.when(() => this.messages.length || this.closed); return this.messages.shift() ?? null; }
  async end() { await this.when(() => this.closed); return {...this.closed, events: this.events}; }
};
window.talks = {};
"""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


class Page:
    """A page of the gateway's own origin, and the sockets that its script opens, by name."""

    def __init__(self, page: Any) -> None:
        self._page = page

    async def open(
        self,
        app: App,
        device_id: str | None = "phone",
        *,
        name: str = "it",
        version: int | None = None,
        protocols: Sequence[str] | None = None,
    ) -> None:
        """Ask for a socket; whether it opens is seen later."""
        protocols = ["info.v1", f"bearer.{app.token}"] if protocols is None else protocols
        url = app.socket_url(device_id, version)
        await self.run(
            "([name, url, protocols]) => { talks[name] = new Talk(url, protocols); }", [name, url, protocols]
        )

    async def text(self, name: str = "it") -> str:
        """The next message as it came."""
        found: str = await self.run("name => talks[name].next()", name)
        assert isinstance(found, str)
        return found

    async def message(self, name: str = "it") -> Json:
        found: Json = orjson.loads(await self.text(name))
        return found

    async def send(self, message: object, name: str = "it") -> None:
        await self.send_text(orjson.dumps(message).decode(), name)

    async def send_text(self, text: str, name: str = "it") -> None:
        await self.run("([name, text]) => talks[name].send(text)", [name, text])

    async def ended(self, name: str = "it") -> tuple[int, str, bool]:
        """Code, reason, and whether it was a clean close, once it is closed."""
        found = await self.run("name => talks[name].end()", name)
        return found["code"], found["reason"], found["clean"]

    async def events(self, name: str = "it") -> list[str]:
        found: list[str] = (await self.run("name => talks[name].end()", name))["events"]
        return found

    async def run(self, script: str, argument: object = None) -> Any:
        return await within(self._page.evaluate(script, argument), 20)


@asynccontextmanager
async def opened_page(browser: Any, gw: Running) -> AsyncIterator[Page]:
    """A page of this gateway's origin; its sockets end with it."""
    page = await browser.new_page()
    await page.goto(f"{gw.url}/healthz")
    await page.evaluate(SCRIPT)
    try:
        yield Page(page)
    finally:
        await page.close()


@pytest.fixture
async def page(browser: Any, gw: Running) -> AsyncIterator[Page]:
    async with opened_page(browser, gw) as found:
        yield found
    await gw.nobody_left()


async def test_a_page_gets_the_bytes_that_it_polls(page: Page, alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    await page.open(bob)
    polled = await page.run(
        "async token => (await fetch('/v1/poll', {headers: {Authorization: 'Bearer ' + token}})).text()", bob.token
    )
    assert await page.text() == polled == (await bob.poll()).text
    assert await page.run("() => [talks.it.socket.protocol, talks.it.socket.extensions]") == ["info.v1", ""]


async def test_a_page_acknowledges_and_reports_and_hears_what_comes(page: Page, alice: App, bob: App) -> None:
    video_id = await alice.send(bob.client_id)
    await page.open(bob)
    await page.send({"type": "ack", "version": (await page.message())["version"]})

    async def notified() -> bool:
        return (await alice.packet())["outgoing"][0]["status"] == "notified"  # type: ignore[no-any-return]

    await until(notified, "the sender is told")
    given = 'é\U0001f4f1\u2028"\\/'
    await page.send({"type": "status", "id": given, "video_id": video_id, "status": "downloaded"})
    messages = [await page.message(), await page.message()]
    [answer] = [message for message in messages if message["type"] == "result"]
    assert answer == {"type": "result", "id": given, "result": "applied", "version": await bob.version()}
    [packet] = [message for message in messages if message["type"] == "info"]
    assert packet == await bob.packet()
    await page.send({"type": "token", "id": {"a": [1, None]}, "token": bob.token})
    assert (await page.message())["id"] == {"a": [1, None]}


async def test_a_page_that_has_the_newest_version_gets_what_comes_then(page: Page, alice: App, bob: App) -> None:
    await alice.send(bob.client_id)
    await page.open(bob, version=await bob.version())
    await page.send({"type": "nothing", "id": 1})
    assert (await page.message())["type"] == "error"
    video_id = await alice.send(bob.client_id)
    assert (await page.message())["incoming"][0]["video_id"] == video_id


async def deliver(sender: App, recipient: App) -> None:
    await sender.upload(await sender.announce(recipient.client_id))


async def test_large_messages_pass_both_ways(page: Page, gw: Running, bob: App) -> None:
    senders = [gw.app(gw.fresh("s" * 55)) for _ in range(250)]
    for some in range(0, len(senders), 25):
        await asyncio.gather(*(deliver(sender, bob) for sender in senders[some : some + 25]))
    await page.open(bob)
    text = await page.text()
    assert len(text) > 65_536
    assert text.encode() == (await bob.poll()).content
    # The longest message that is read; its answer repeats nearly all of it.
    message = orjson.dumps({"type": "status", "id": "", "video_id": UNKNOWN_ID, "status": "viewed"})
    given = "é" * ((16 * 1024 - len(message)) // 2)
    await page.send({"type": "status", "id": given, "video_id": UNKNOWN_ID, "status": "viewed"})
    assert (await page.message())["id"] == given


async def test_a_page_sees_that_its_device_has_connected_again(page: Page, bob: App) -> None:
    await page.open(bob, name="old")
    await page.message("old")
    await page.open(bob, name="new")
    await page.message("new")
    assert await page.ended("old") == (4409, "displaced", True)
    await page.send({"type": "token", "token": bob.token}, "new")
    assert (await page.message("new"))["result"] == "applied"


async def test_a_page_sees_that_its_messages_were_unreadable(page: Page, bob: App) -> None:
    await page.open(bob)
    await page.message()
    for number in range(10):
        await page.send({"type": "nothing", "id": number})
        assert (await page.message())["id"] == number
    code, reason, clean = await page.ended()
    assert (code, clean) == (4400, True)
    assert reason


async def test_a_page_sees_that_it_was_logged_out(page: Page, bob: App) -> None:
    await page.open(bob)
    await page.message()
    await bob.call("DELETE", "/v1/devices/phone")
    assert await page.ended() == (4401, "logged out", True)


async def test_a_page_sees_that_its_token_has_expired(
    page: Page, gw: Running, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("session", "auth"):
        monkeypatch.setattr(f"gateway.api.{module}.LEEWAY_S", 0)
    await page.open(gw.app(bob.client_id, ttl_s=2))
    await page.message()
    assert await page.ended() == (4401, "the token has expired", True)


@pytest.mark.parametrize(
    ("script", "code"),
    [("new Uint8Array(3)", 1003), ("' '.repeat(16 * 1024 + 1)", 1009), ("'é'.repeat(16 * 1024)", 1009)],
)
async def test_a_page_sees_which_rule_it_broke(page: Page, bob: App, script: str, code: int) -> None:
    await page.open(bob)
    await page.message()
    await page.run(f"() => talks.it.socket.send({script})")
    assert (await page.ended())[0] == code


async def test_a_page_closes_with_a_code_of_its_own(page: Page, bob: App) -> None:
    for code in (1000, 3000, 4999):
        await page.open(bob)
        await page.message()
        await page.run("code => talks.it.socket.close(code, 'bye')", code)
        assert await page.ended() == (code, "bye", True)
        assert await page.events() == ["open", "close"]


async def test_a_page_that_goes_away_leaves_nothing(browser: Any, gw: Running, bob: App) -> None:
    async with opened_page(browser, gw) as page:
        await page.open(bob)
        await page.message()
    await gw.nobody_left()


@pytest.mark.parametrize("why", ["a bad token", "no token", "no device"])
async def test_a_page_whose_handshake_is_refused_sees_an_error_and_learns_why_by_polling(
    page: Page, bob: App, why: str
) -> None:
    token = {"a bad token": "garbage", "no token": "", "no device": bob.token}[why]
    protocols = ["info.v1", f"bearer.{token}"] if token else ["info.v1"]
    await page.open(bob, None if why == "no device" else "phone", protocols=protocols)
    assert (await page.ended())[0] == 1006
    assert await page.events() == ["error", "close"]
    status = await page.run(
        "async token => (await fetch('/v1/poll', {headers: {Authorization: 'Bearer ' + token}})).status", token
    )
    assert status == (200 if why == "no device" else 401)


async def test_a_page_must_offer_our_subprotocol_beside_its_token(page: Page, bob: App) -> None:
    """A browser gives up a socket that echoes none of the subprotocols it offered."""
    await page.open(bob, protocols=[f"bearer.{bob.token}"])
    assert (await page.ended())[0] == 1006


async def test_a_page_that_sends_too_much_sees_that(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("hasty"), RATE_FRAMES="5/10") as gw:
        async with opened_page(browser, gw) as page:
            await page.open(gw.app("bob"))
            await page.message()
            await page.run(
                '() => { for (let n = 0; n < 50; n++) talks.it.socket.send(\'{"type":"ack","version":0}\') }'
            )
            assert (await page.ended())[0] == 4429
        await gw.nobody_left()


async def test_a_page_is_told_when_to_come_back_after_a_restart(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with running_gateway(tmp_path_factory.mktemp("drained")) as gw, opened_page(browser, gw) as page:
        await page.open(gw.app("bob"))
        await page.message()
        gw.server.should_exit = True
        code, reason, clean = await page.ended()
        assert (code, clean) == (1012, True)
        assert 0 <= orjson.loads(reason)["retry_ms"] <= 5000


async def test_a_page_is_pinged_without_noticing(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with running_gateway(tmp_path_factory.mktemp("pinged"), PING_S="0.5", PONG_S="0.5") as gw:
        alice, bob = gw.app("alice"), gw.app("bob")
        async with opened_page(browser, gw) as page:
            await page.open(bob)
            await page.message()
            [session] = gw.sockets_of(bob)
            turns: set[float] = set()

            async def twice() -> bool:  # a second ping goes out only where the first was answered
                turns.add(session._connection._next_s)
                return len(turns) >= 4

            await until(twice, "it was pinged and has answered")
            await alice.send("bob")
            assert len((await page.message())["incoming"]) == 1
        await gw.nobody_left()

"""The client for JavaScript in a browser: what pages keep, and what becomes of it when they end."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Error, Request, Route

from tests.browser import FAR
from tests.client.played import VIDEO
from tests.running import App, until, within
from tests.web.node import WEB

SCRIPT = """
async ([clientId, token]) => {
  const { Client, Device, IndexedDbStore, VideoDatabase } = await import("/client/client.js");
  const client = new Client(location.origin, token, { deviceId: "browser", clientId });
  window.videos = new VideoDatabase(client, clientId);
  window.told = [];
  window.heard = [];
  window.moves = [];
  window.device = new Device(client, new IndexedDbStore(clientId), window.videos, {
    jitter: () => 0.05,
    heard: (channel, packet, applied) => window.heard.push({ channel, text: packet.text, applied }),
    watch: (key, soFar, size) => window.moves.push([key, soFar, size]),
  });
  await device.open();
  void (async () => { for await (const change of device.changes()) told.push(change); })();
}
"""
SEND = """
async ([recipientId, size]) => {
  const bytes = Uint8Array.from({ length: size }, (_, at) => at % 256);
  return device.send(await videos.add(new Blob([bytes], { type: "video/mp4" })), recipientId);
}
"""
RECEIVED = """
async videoId => {
  const blob = await videos.blob(videoId);
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return [blob.type, bytes.length, bytes.every((byte, at) => byte === at % 256)];
}
"""
KEPT = """
async name => {
  const request = indexedDB.open(name);
  const database = await new Promise(resolve => { request.onsuccess = () => resolve(request.result); });
  const count = store => new Promise(resolve => {
    const counted = database.transaction(store).objectStore(store).count();
    counted.onsuccess = () => resolve([store, counted.result]);
  });
  return Object.fromEntries(await Promise.all([...database.objectStoreNames].map(count)));
}
"""


class Tab:
    """A page with one device of one client."""

    def __init__(self, page: Any, app: App) -> None:
        self.page = page
        self.app = app

    async def open(self) -> None:
        """Open the device. Raises Error with the name of what JavaScript throws."""
        await self.run(SCRIPT, [self.app.client_id, self.app.token])

    async def send(self, recipient: App, size: int = len(VIDEO)) -> str:
        key: str = await self.run(SEND, [recipient.client_id, size])
        return key

    async def hears(self, status: str, key: str | None = None) -> dict[str, Any]:
        """The change to that status, once the app is told it."""
        found: list[dict[str, Any]] = []

        async def told() -> bool:
            changes = await self.run("() => told")
            found.extend(change for change in changes if change["status"] == status and key in {None, change["key"]})
            return bool(found)

        await until(told, f"the page is told {status}", 20)
        return found[0]

    async def moved(self) -> list[int]:
        """How many bytes had moved, each time that some did."""
        return [move[1] for move in await self.run("() => moves")]

    async def kept(self) -> dict[str, int]:
        """How many entries each part of the videos' database has."""
        found: dict[str, int] = await self.run(KEPT, f"videos of {self.app.client_id}")
        return found

    async def slow(self, *, bytes_per_s: int) -> None:
        """Give this page a network that moves no more than that."""
        session = await self.page.context.new_cdp_session(self.page)
        limits = {"offline": False, "latency": 0, "downloadThroughput": bytes_per_s, "uploadThroughput": bytes_per_s}
        await session.send("Network.enable")
        await session.send("Network.emulateNetworkConditions", limits)

    async def run(self, script: str, argument: object = None) -> Any:
        return await within(self.page.evaluate(script, argument), 30)


@asynccontextmanager
async def browsing(browser: Any) -> AsyncIterator[Any]:
    """A browser's profile, whose pages find the client beside the gateway."""
    context = await browser.new_context()

    async def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        await route.fulfill(path=WEB / name, content_type="text/javascript")

    await context.route("**/client/*.js", serve)
    try:
        yield context
    finally:
        await context.close()


@pytest.fixture
async def profile(browser: Any) -> AsyncIterator[Any]:
    async with browsing(browser) as context:
        yield context


async def tab_of(profile: Any, app: App, *, host: str = "127.0.0.1") -> Tab:
    page = await profile.new_page()
    await page.goto(f"http://{host}:{app.http.base_url.port}/healthz")
    return Tab(page, app)


async def opened(profile: Any, app: App, *, host: str = "127.0.0.1") -> Tab:
    tab = await tab_of(profile, app, host=host)
    await tab.open()
    return tab


async def test_a_video_goes_from_one_page_to_another(profile: Any, alice: App, bob: App) -> None:
    sender, recipient = await opened(profile, alice), await opened(profile, bob)
    key = await sender.send(bob)
    ready = await recipient.hears("ready")
    await sender.hears("downloaded", key)
    assert await recipient.run(RECEIVED, ready["key"]) == ["video/mp4", len(VIDEO), True]
    # The sender may have heard that it is stored before its browser said that the bytes have moved.
    assert (await recipient.moved())[-1] == len(VIDEO)
    await recipient.run(
        "async videoId => { await device.viewed(videoId); await videos.remove(videoId); }", ready["key"]
    )
    await sender.hears("viewed", key)
    for tab in (sender, recipient):
        await tab.run("() => device.settled()")
        assert await tab.kept() == {"outgoing": 0, "parts": 0, "whole": 0}


async def test_the_gateway_checks_the_hash_that_a_page_has_computed(profile: Any, alice: App, bob: App) -> None:
    tab = await tab_of(profile, alice)
    announced: list[dict[str, Any]] = []
    tab.page.on("request", lambda request: announced.append(request.post_data_json) if _announces(request) else None)
    await tab.open()
    await tab.hears("uploaded", await tab.send(bob))
    [body] = announced
    assert len(body["sha256"]) == 64


def _announces(request: Request) -> bool:
    return request.method == "POST" and request.url.endswith("/v1/videos")


async def test_a_page_hears_packets_byte_for_byte(profile: Any, alice: App, bob: App) -> None:
    tab = await opened(profile, bob)
    await alice.send(bob.client_id, VIDEO)
    ready = await tab.hears("ready")
    await tab.run("() => device.settled()")
    await tab.run("packet => device.handlePush({ version: '1', packet })", (await bob.poll()).text)
    text = (await bob.poll()).text
    heard = await tab.run("() => heard")
    assert [found["channel"] for found in heard if found["text"] == text and found["applied"]][-1] in {"push", "sync"}
    assert {found["channel"] for found in heard} >= {"socket", "push"}
    assert json.loads(text)["incoming"][0]["video_id"] == ready["key"]
    assert all(json.loads(found["text"])["client_id"] == bob.client_id for found in heard)


async def test_a_second_tab_is_told_that_the_store_is_in_use_until_the_first_is_closed(profile: Any, bob: App) -> None:
    first, second = await opened(profile, bob), await tab_of(profile, bob)
    with pytest.raises(Error, match="StoreInUse"):
        await second.open()
    await first.page.close()
    await second.open()
    await second.page.reload()
    await second.open()
    await second.run("() => device.close()")
    third = await tab_of(profile, bob)
    await third.open()


async def test_a_page_that_is_closed_in_the_middle_of_an_upload_finishes_it_when_it_is_opened_again(
    profile: Any, alice: App, bob: App
) -> None:
    size = 4 * len(VIDEO)
    first = await opened(profile, alice)
    await first.slow(bytes_per_s=300_000)
    key = await first.send(bob, size)

    async def half_way() -> bool:
        return any(0 < soFar < size for soFar in await first.moved())

    await until(half_way, "some of it is uploaded", 20)
    await first.page.close()
    assert (await bob.packet())["incoming"] == []
    second = await opened(profile, alice)
    await second.hears("uploaded", key)
    [entry] = (await bob.packet())["incoming"]
    assert (await bob.download(entry["video_id"])).content == VIDEO * 4
    assert (await second.kept())["outgoing"] == 0


async def test_a_page_that_is_closed_in_the_middle_of_a_download_goes_on_where_it_was(
    profile: Any, alice: App, bob: App
) -> None:
    video_id = await alice.send(bob.client_id, VIDEO * 4)
    first = await tab_of(profile, bob)
    await first.slow(bytes_per_s=300_000)
    await first.open()

    async def half_way() -> bool:
        return (await first.kept())["parts"] > 1

    await until(half_way, "some of it is kept", 20)
    await first.page.close()
    second = await tab_of(profile, bob)
    asked: list[str] = []
    second.page.on("request", lambda request: asked.append(request.headers.get("range", "")))
    await second.open()
    await second.hears("ready", video_id)
    assert await second.run(RECEIVED, video_id) == ["video/mp4", 4 * len(VIDEO), True]
    [begun] = [int(text.removeprefix("bytes=").removesuffix("-")) for text in asked if text]
    assert 0 < begun < 4 * len(VIDEO)
    assert min(await second.moved()) > begun
    assert await second.kept() == {"outgoing": 0, "parts": 0, "whole": 1}


async def test_what_was_kept_to_be_sent_and_never_was_goes_when_the_page_is_opened_anew(
    profile: Any, alice: App, bob: App
) -> None:
    first = await opened(profile, alice)
    await first.run("() => device.network(false)")
    await first.run("() => videos.add(new Blob(['never sent']))")
    key = await first.send(bob)
    assert (await first.kept())["outgoing"] == 2
    await first.page.close()
    second = await opened(profile, alice)
    await second.hears("uploaded", key)
    assert (await second.kept())["outgoing"] == 0


async def test_a_page_that_comes_over_plain_http_has_no_hash_and_sends_and_receives_all_the_same(
    browser: Any, profile: Any, alice: App, bob: App
) -> None:
    async with browsing(browser) as other:
        sender, recipient = await opened(profile, alice, host=FAR), await opened(other, bob, host=FAR)
        assert await sender.run("() => [isSecureContext, typeof crypto.subtle, typeof navigator.locks]") == [
            False,
            "undefined",
            "undefined",
        ]
        key = await sender.send(bob)
        ready = await recipient.hears("ready")
        assert await recipient.run(RECEIVED, ready["key"]) == ["video/mp4", len(VIDEO), True]
        await sender.hears("downloaded", key)


async def test_a_page_whose_socket_is_refused_is_told_why(profile: Any, bob: App) -> None:
    tab = await tab_of(profile, bob)
    refused = """
    async clientId => {
      const { Client } = await import("/client/client.js");
      const client = new Client(location.origin, "garbage", { deviceId: "browser", clientId });
      return client.live().catch(error => [error.name, error.status, error.code, error.remedy]);
    }
    """
    assert await tab.run(refused, bob.client_id) == ["GatewayError", 401, "unauthorized", "renew"]


async def test_a_page_polls_for_what_is_newer_than_what_it_has(profile: Any, alice: App, bob: App) -> None:
    tab = await tab_of(profile, bob)
    poll = """
    async ([token, version]) => {
      const { Client } = await import("/client/client.js");
      const packet = await new Client(location.origin, token).poll(version);
      return packet && packet.text;
    }
    """
    await alice.send(bob.client_id, VIDEO)
    packet = await bob.poll()
    version = packet.json()["version"]
    assert await tab.run(poll, [bob.token, version]) is None
    assert await tab.run(poll, [bob.token, version - 1]) == packet.text

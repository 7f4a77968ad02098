"""The demo: two phones in a page, on a real gateway and in a real browser."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from gateway.transit.state import ClientId, DeviceId
from tests.browser import chromium
from tests.running import Running, running_gateway, until
from tests.web.demo_page import Demo, Phone, Watched, context_of, fresh_room, open_page, open_pair, watched

CAMERA = "--use-fake-device-for-media-stream"
LARGEST = 1_000_000


@pytest.fixture(scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("demo")
    async with running_gateway(folder, DEMO="true", ACK_GRACE_S="0.5", MAX_VIDEO_BYTES=str(LARGEST)) as started:
        yield started
        await started.nobody_left()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium(CAMERA) as started:
        yield started


@pytest.fixture(scope="module")
async def shared(browser: Browser, gw: Running) -> AsyncIterator[Watched]:
    async with watched(browser, gw.url) as opened:
        yield opened


@pytest.fixture
async def context(shared: Watched) -> AsyncIterator[BrowserContext]:
    """A browser that has been here before. Its pages are closed at the end, and nothing was wrong in them."""
    yield shared.context
    for page in shared.context.pages:
        await page.close()
    shared.assert_nothing_wrong()


@pytest.fixture
async def demo(context: BrowserContext) -> AsyncIterator[Demo]:
    """Two phones. However packets came to them, at the end it is seen that they were the same."""
    opened, _, _ = await open_pair(context)
    yield opened
    await opened.same_version_same_bytes()


@pytest.fixture
def alice(demo: Demo) -> Phone:
    return demo.phones[0]


@pytest.fixture
def bob(demo: Demo) -> Phone:
    return demo.phones[1]


async def watches(phone: Phone) -> None:
    """Play the one video on a phone to its end."""
    await phone.play()
    await phone.has_ready(0)
    await expect(phone.app.locator("#player")).to_be_hidden()


# --- A video on its way


async def test_a_sample_is_sent_and_watched_and_its_sender_sees_every_step(
    demo: Demo, alice: Phone, bob: Phone
) -> None:
    await alice.app.get_by_role("button", name="Sample").click()
    await alice.has_sent("downloaded")
    await bob.has_ready(1)
    await expect(bob.app.get_by_text("From Alice")).to_be_visible()
    await watches(bob)
    await alice.has_sent("viewed")
    await bob.has_ready(0)
    for sentence in ("Alice sends Bob a video.", "Alice hears: Bob has watched it."):
        await demo.is_told(sentence)
    await expect(demo.page.locator(".tries .done")).to_have_count(2)


async def test_what_arrives_is_the_video_that_was_sent(alice: Phone, bob: Phone) -> None:
    await alice.send()
    await bob.has_ready(1)
    shown = await bob.received.locator("video").evaluate(
        """async video => {
            if (video.readyState < 1) await new Promise(resolve => video.addEventListener("loadedmetadata", resolve));
            return [video.videoWidth, video.videoHeight, video.duration];
        }"""
    )
    assert shown == [360, 640, pytest.approx(2, abs=0.2)]


async def test_a_video_that_was_not_seen_waits_still(alice: Phone, bob: Phone) -> None:
    await alice.send(data=b"nothing that plays")
    await bob.has_ready(1)
    await bob.play()
    await expect(bob.app.locator("#player")).to_be_visible()
    await bob.app.get_by_role("button", name="Close").click()
    await bob.has_ready(1)
    await alice.has_sent("downloaded")


async def test_what_plays_ends_when_the_app_leaves_the_screen(alice: Phone, bob: Phone) -> None:
    await alice.send(data=b"nothing that plays")
    await bob.has_ready(1)
    await bob.play()
    await expect(bob.app.locator("#player")).to_be_visible()
    await bob.press("Background")
    await bob.launch()
    await expect(bob.app.locator("#player")).to_be_hidden()
    await bob.has_ready(1)


async def test_the_camera_records_until_it_is_stopped_and_sends_what_its_user_has_seen(
    alice: Phone, bob: Phone
) -> None:
    await bob.app.get_by_role("button", name="Record").click()
    progress = bob.app.locator("#camera progress")
    await expect(progress).not_to_have_js_property("value", 0)
    await bob.app.get_by_role("button", name="Stop").click()
    await expect(bob.app.get_by_role("heading", name="Send it?")).to_be_visible()
    await bob.has_sent()
    await bob.app.get_by_role("button", name="Send", exact=True).click()
    await bob.has_sent("downloaded")
    await watches(alice)
    await bob.has_sent("viewed")


async def test_nothing_is_sent_of_a_recording_that_was_cancelled(bob: Phone) -> None:
    for stage in ("Recording", "Send it?"):
        await bob.app.get_by_role("button", name="Record").click()
        if stage == "Send it?":
            await expect(bob.app.locator("#camera progress")).not_to_have_js_property("value", 0)
            await bob.app.get_by_role("button", name="Stop").click()
        await expect(bob.app.get_by_role("heading", name=stage)).to_be_visible()
        await bob.app.get_by_role("button", name="Cancel").click()
        await expect(bob.app.locator("#camera")).to_be_hidden()
    await bob.has_sent()


async def test_a_newer_video_replaces_the_one_before(alice: Phone, bob: Phone) -> None:
    await alice.send()
    await alice.has_sent("downloaded")
    await alice.send()
    await alice.has_sent("downloaded", "complete")
    await expect(alice.sent.nth(1)).to_contain_text("Replaced by a newer one")


async def test_a_deleted_video_is_gone_on_both_phones(gw: Running, browser: Browser) -> None:
    """The push that was kept lists it still: whoever tries to download it then is told that it is gone."""
    async with context_of(browser, gw.url, expected="404") as context:
        _, alice, bob = await open_pair(context)
        await bob.press("No network")
        await alice.send()
        await alice.has_sent("notified")
        await alice.app.get_by_role("button", name="Delete the video to bob").click()
        await alice.has_sent()
        await bob.press("No network")
        await bob.is_live()
        await bob.has_ready(0)


@pytest.mark.parametrize(
    ("content_type", "size", "status", "reason"),
    [
        ("text/plain", 1, "422", "it takes no files of this type"),
        ("video/mp4", LARGEST + 1, "413", "it is too large for this gateway"),
    ],
)
async def test_what_the_gateway_does_not_take_says_so(
    gw: Running, browser: Browser, content_type: str, size: int, status: str, reason: str
) -> None:
    async with context_of(browser, gw.url, expected=status) as context:
        _, alice, _ = await open_pair(context)
        await alice.send("a file", content_type, bytes(size))
        await alice.has_sent("failed")
        await expect(alice.sent).to_contain_text(reason)


# --- A phone that is away


async def test_a_push_on_the_lock_screen_is_tapped_and_the_phone_is_up_to_date(
    demo: Demo, alice: Phone, bob: Phone
) -> None:
    await bob.press("Background")
    await alice.send()
    await expect(bob.notification).to_contain_text("A video from Alice")
    await expect(bob.notification).to_contain_text("with sound")
    await expect(bob.badge).to_have_text("1 video waits")
    await demo.is_told("Bob's app is in the background: the gateway sends a push.")
    await alice.has_sent("notified")
    await bob.tap()
    await bob.has_ready(1)
    await alice.has_sent("downloaded")


async def test_the_same_packet_comes_by_a_push_a_call_and_a_socket(alice: Phone, bob: Phone) -> None:
    await bob.press("Background")
    await alice.send()
    await bob.tap()
    await bob.has_ready(1)
    await bob.is_live()
    version = (await bob.newest("push", "shown")).version
    same = {line for line in await bob.lines() if line.version == version}
    assert {(line.channel, line.fate) for line in same} >= {("push", "shown"), ("push", "applied"), ("sync", "applied")}
    assert len({(line.bytes, line.hash) for line in same}) == 1


async def test_a_newer_push_takes_the_place_of_the_one_before(alice: Phone, bob: Phone) -> None:
    await bob.press("Background")
    await alice.send()
    await alice.has_sent("notified")
    await bob.newest("push", "shown")
    await alice.send()
    await alice.has_sent("notified", "complete")
    await expect(bob.element.locator(".inspector tr", has_text="shown")).to_have_count(2)
    await expect(bob.notification).to_have_count(1)


async def test_a_phone_without_a_network_hears_nothing_and_then_everything(
    gw: Running, demo: Demo, alice: Phone, bob: Phone
) -> None:
    await bob.press("No network")
    await expect(bob.app.locator("#link")).to_have_text("No network")
    before = await bob.lines()
    await alice.send()
    await demo.is_told("The push service keeps it.")
    await alice.has_sent("notified")
    assert len(gw.sockets_of(gw.app(await client_id_of(bob)))) == 1  # half open: its end has not been seen
    assert await bob.lines() == before
    await bob.press("No network")
    await bob.has_ready(1)
    await alice.has_sent("downloaded")


async def test_a_push_that_was_kept_appears_on_the_lock_screen_once_there_is_a_network(
    demo: Demo, alice: Phone, bob: Phone
) -> None:
    await bob.press("Background")
    await bob.press("No network")
    await alice.send()
    await demo.is_told("The push service keeps it.")
    await expect(bob.notification).to_have_count(0)
    await bob.press("No network")
    await bob.tap()
    await bob.has_ready(1)


async def test_what_is_sent_without_a_network_goes_when_there_is_one(alice: Phone, bob: Phone) -> None:
    await alice.press("No network")
    await alice.send()
    await alice.has_sent("queued")
    await alice.press("No network")
    await alice.has_sent("downloaded")
    await bob.has_ready(1)


async def test_a_dead_app_is_woken_by_a_push_and_goes_on_where_it_was(demo: Demo, alice: Phone, bob: Phone) -> None:
    await bob.send()
    await bob.has_sent("downloaded")
    await bob.press("Kill")
    await expect(bob.element.locator("iframe")).to_have_count(0)
    await alice.send()
    await demo.is_told("Bob's app is dead: the gateway sends a push.")
    await bob.tap()
    await bob.has_ready(1)
    await bob.has_sent("downloaded")
    await alice.has_sent("downloaded")


async def test_a_dead_app_that_is_started_needs_no_push(alice: Phone, bob: Phone) -> None:
    await bob.press("Kill")
    await alice.send()
    await alice.has_sent("notified")
    await bob.launch()
    await bob.has_ready(1)
    await expect(bob.notification).to_have_count(0)


async def test_an_app_that_is_installed_afresh_gets_back_what_is_in_transit(
    gw: Running, demo: Demo, alice: Phone, bob: Phone
) -> None:
    await alice.send()
    await alice.has_sent("downloaded")
    await bob.send()
    await bob.has_sent("downloaded")
    before = await devices_of(gw, bob)
    await bob.press("Reinstall")
    await bob.has_ready(1)
    await bob.has_sent("downloaded")
    await watches(bob)
    await alice.has_sent("viewed")

    async def moved() -> bool:
        return len(after := await devices_of(gw, bob)) == 1 and not after & before

    await until(moved, "the push token belongs to the new device alone")
    await bob.press("Background")
    await alice.send()
    await expect(bob.notification).to_be_visible()


async def devices_of(gw: Running, phone: Phone) -> set[DeviceId]:
    """The devices that the gateway would wake for this phone's user."""
    state = await gw.gateway.service.changes.load(ClientId(await client_id_of(phone)))
    return set(state.devices)


async def client_id_of(phone: Phone) -> str:
    return await phone.element.locator(".account").inner_text()


async def test_a_phone_that_the_gateway_has_forgotten_is_registered_anew(gw: Running, browser: Browser) -> None:
    """Whoever throws the gateway's data away keeps the page's."""
    async with context_of(browser, gw.url, expected="404") as context:
        demo, alice, bob = await open_pair(context, room := fresh_room())
        await is_registered(gw, bob)
        for name in ("alice", "bob"):
            await gw.app(f"demo.{name}.{room}").call("DELETE", "/v1/client")
        assert await devices_of(gw, bob) == set()
        await demo.page.reload()
        await is_registered(gw, bob)
        await alice.is_live()
        await bob.press("Background")
        await alice.send()
        await expect(bob.notification).to_be_visible()


async def is_registered(gw: Running, phone: Phone) -> None:
    """Return when the gateway knows how to wake a phone."""

    async def known() -> bool:
        return bool(await devices_of(gw, phone))

    await until(known, "the phone is registered")


# --- An app that is killed while it sends


@asynccontextmanager
async def slow_uploads(page: Page) -> AsyncIterator[None]:
    """What the page sends takes its time until the block ends."""
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": LARGEST / 60}
    await session.send("Network.emulateNetworkConditions", slow)
    yield
    if not page.is_closed():
        await session.detach()


async def is_in_the_middle_of_an_upload(phone: Phone) -> None:
    """Return when a part of a video is uploaded."""
    await phone.send(data=os.urandom(LARGEST))
    await expect(phone.sent.locator("progress")).not_to_have_js_property("value", 0)
    await phone.has_sent("queued")
    part = await phone.sent.locator("progress").evaluate("progress => progress.value")
    assert 0 < part < 1


async def test_an_app_that_is_killed_in_the_middle_of_an_upload_finishes_it(
    demo: Demo, alice: Phone, bob: Phone
) -> None:
    async with slow_uploads(demo.page):
        await is_in_the_middle_of_an_upload(alice)
        await alice.press("Kill")
    await bob.has_ready(0)
    await alice.launch()
    await alice.has_sent("downloaded")
    await bob.has_ready(1)


async def test_a_page_that_is_closed_in_the_middle_of_an_upload_finishes_it_when_it_is_opened_again(
    context: BrowserContext,
) -> None:
    demo, alice, _ = await open_pair(context, room := fresh_room())
    async with slow_uploads(demo.page):
        await is_in_the_middle_of_an_upload(alice)
        await demo.page.close()
    _, alice, bob = await open_pair(context, room)
    await alice.has_sent("downloaded")
    await bob.has_ready(1)


async def test_an_upload_that_loses_its_network_goes_on_later(demo: Demo, alice: Phone, bob: Phone) -> None:
    async with slow_uploads(demo.page):
        await is_in_the_middle_of_an_upload(alice)
        await alice.press("No network")
        await expect(alice.app.locator("#link")).to_have_text("No network")
    await alice.has_sent("queued")
    await alice.press("No network")
    await alice.has_sent("downloaded")
    await bob.has_ready(1)


# --- Other ways to open it


async def test_one_phone_alone_sends_to_whoever_is_in_its_room(context: BrowserContext) -> None:
    _, _, bob = await open_pair(context, room := fresh_room())
    carol = (await open_page(context, f"/?as=Carol&room={room}", "carol")).phones[0]
    await carol.is_live()
    recipient = carol.app.get_by_label("To")
    await expect(recipient).to_have_value("alice")
    for nobody, answer in (("carol", "Somebody else"), ("not a name", "1 to 20 characters")):
        await recipient.fill(nobody)
        await carol.send()
        await expect(carol.app.locator("#notice")).to_contain_text(answer)
    await recipient.fill("bob")
    await carol.send()
    await carol.has_sent("downloaded")
    await expect(carol.app.locator("#notice")).to_be_empty()
    await expect(bob.app.get_by_text("From Carol")).to_be_visible()


async def test_a_phone_is_open_in_one_tab_at_a_time(context: BrowserContext) -> None:
    demo, _, _ = await open_pair(context, room := fresh_room())
    second = (await open_page(context, f"/?as=bob&room={room}", "bob")).phones[0]
    await expect(second.app.get_by_text("Bob's phone is open in another tab.")).to_be_visible()
    await expect(second.element.get_by_role("button", name="Reinstall")).to_be_disabled()
    await demo.page.close()
    await second.app.get_by_role("button", name="Try again").click()
    await second.is_live()


async def test_a_room_is_kept_until_another_is_asked_for(gw: Running, browser: Browser) -> None:
    async with context_of(browser, gw.url) as context:
        demo = await open_page(context, "/", "alice", "bob")
        room = await demo.page.locator("#room").inner_text()
        assert re.fullmatch("[a-z2-9]{6}", room)
        await demo.page.reload()
        await expect(demo.page.locator("#room")).to_have_text(room)
        await demo.page.get_by_role("link", name="New room").click()
        await expect(demo.page.locator("#room")).not_to_have_text(room)


async def test_a_name_that_nobody_can_have_says_so(context: BrowserContext) -> None:
    demo = await open_page(context, "/?as=<b>")
    await expect(demo.page.get_by_text("Nobody can be called that")).to_be_visible()


async def test_the_app_without_a_phone_leads_to_the_demo(context: BrowserContext) -> None:
    demo = await open_page(context, "/web/demo/app.html", "alice")
    await demo.phones[0].is_live()


async def test_whoever_does_not_let_it_use_the_camera_is_told_what_else_there_is(context: BrowserContext) -> None:
    await context.clear_permissions()
    try:
        _, alice, _ = await open_pair(context)
        await alice.app.get_by_role("button", name="Record").click()
        await expect(alice.app.locator("#notice")).to_contain_text("choose a file, or send a sample")
    finally:
        await context.grant_permissions(["camera", "microphone"])


# --- Whoever uses it


async def test_everything_is_done_with_the_keyboard(demo: Demo, alice: Phone, bob: Phone) -> None:
    async def press(key: str, target: Locator) -> None:
        await target.focus()
        await demo.page.keyboard.press(key)

    await press("Enter", bob.element.get_by_role("button", name="Background"))
    await press("Space", alice.app.get_by_role("button", name="Sample"))
    await expect(bob.notification).to_be_visible()
    await press("Enter", bob.notification)
    await bob.has_ready(1)
    await press("Enter", bob.received.get_by_role("button"))
    await alice.has_sent("viewed")
    await press("Enter", alice.app.get_by_role("button", name="Record"))
    await expect(alice.app.locator("#camera")).to_be_visible()
    await demo.page.keyboard.press("Escape")
    await expect(alice.app.locator("#camera")).to_be_hidden()
    await alice.has_sent("viewed")


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))])
async def test_nothing_is_in_the_way_of_whoever_sees_or_hears_badly(
    gw: Running, browser: Browser, scheme: str, rules: tuple[str, ...]
) -> None:
    """All rules in the light, and in the dark those that depend on it."""
    look = {"color_scheme": scheme, "reduced_motion": "reduce"}
    async with context_of(browser, gw.url, expected="422", **look) as context:
        demo, alice, bob = await open_pair(context)
        await bob.press("No network")
        await alice.send(data=b"nothing that plays")
        await alice.has_sent("notified")
        assert await demo.barriers(*rules) == []
        await bob.press("No network")
        await bob.has_ready(1)
        await alice.press("Background")
        await bob.send()
        await expect(alice.notification).to_be_visible()
        await bob.app.get_by_role("button", name="Record").click()
        await expect(bob.app.locator("#camera")).to_be_visible()
        assert await demo.barriers(*rules) == []
        await bob.app.get_by_role("button", name="Cancel").click()
        await alice.press("Kill")
        await bob.play()
        await expect(bob.app.locator("#player")).to_be_visible()
        assert await demo.barriers(*rules) == []
        await demo.page.close()
        single = await open_page(context, f"/?as=carol&room={fresh_room()}", "carol")
        await single.phones[0].is_live()
        await single.phones[0].send("notes.txt", "text/plain")
        await single.phones[0].has_sent("failed")
        assert await single.barriers(*rules) == []


@pytest.mark.parametrize("address", ["/", "/?as=alice"])
async def test_a_narrow_screen_shows_all_of_it(gw: Running, browser: Browser, address: str) -> None:
    viewport = {"width": 360, "height": 740}
    async with context_of(browser, gw.url, viewport=viewport, has_touch=True) as context:
        demo = await open_page(context, address, "alice")
        await demo.phones[0].is_live()
        for frame in demo.page.frames:
            assert await frame.evaluate("document.documentElement.scrollWidth <= innerWidth")

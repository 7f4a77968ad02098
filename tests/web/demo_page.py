"""The demo's page as its user has it: what they press, and what they see."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from tests.web.node import MODULES

SAMPLE = Path(__file__).parents[2] / "scripts" / "sample.mp4"
AXE = (MODULES / "axe-core" / "axe.min.js").read_text()
SERIOUS = {"serious", "critical"}

_rooms = count(1)

expect.set_options(timeout=40_000)


class Line(NamedTuple):
    """What the table under a phone says of a packet."""

    channel: str
    version: int
    bytes: str
    hash: str
    fate: str


class Phone:
    """One phone on the page."""

    def __init__(self, page: Page, name: str) -> None:
        self.name = name
        self.element = page.locator(f".phone[data-person={name}]")
        self.app = self.element.frame_locator("iframe")
        self.notification = self.element.locator(".notification")
        self.badge = self.element.locator(".badge")
        self.sent = self.app.locator(".sent")
        self.received = self.app.locator(".received")

    # --- What its user does

    async def press(self, switch: str) -> None:
        """Press one of the buttons under the phone."""
        await self.element.get_by_role("button", name=switch, exact=True).click()

    async def launch(self) -> None:
        """Open the app from the lock screen."""
        await self.element.locator(".launch").click()

    async def tap(self) -> None:
        """Tap the push on the lock screen."""
        await self.notification.click()

    async def send(self, name: str = "clip.mp4", content_type: str = "video/mp4", data: bytes | None = None) -> None:
        """Send a file; the sample where no bytes are given."""
        buffer = SAMPLE.read_bytes() if data is None else data
        file = {"name": name, "mimeType": content_type, "buffer": buffer}
        await self.app.locator("#file").set_input_files(file)  # type: ignore[arg-type]

    async def play(self) -> None:
        await self.received.first.get_by_role("button").click()

    # --- What one sees

    async def is_live(self) -> None:
        """Return when the app has a socket."""
        await expect(self.app.locator("#link")).to_have_text("Live")

    async def has_sent(self, *statuses: str) -> None:
        """Return when these are the statuses of the videos that it sends, newest first."""
        await expect(self.sent).to_have_count(len(statuses))
        for index, status in enumerate(statuses):
            await expect(self.sent.nth(index)).to_have_attribute("data-status", status)

    async def has_ready(self, videos: int) -> None:
        """Return when so many videos wait on it, and can be played."""
        await expect(self.app.locator(".tile:enabled")).to_have_count(videos)
        await expect(self.received).to_have_count(videos)

    async def lines(self) -> list[Line]:
        """What came in, newest first."""
        rows = await self.element.locator(".inspector tbody tr").all()
        found = [[text.strip() for text in await row.locator("td").all_inner_texts()] for row in rows]
        return [Line(channel, int(version), size, mark, fate) for channel, version, size, mark, fate in found]

    async def newest(self, channel: str, fate: str) -> Line:
        """The newest packet that came in by that channel with that fate, once there is one."""
        row = self.element.locator(".inspector tr", has_text=channel).filter(has_text=fate).first
        await expect(row).to_be_visible()
        return next(line for line in await self.lines() if (line.channel, line.fate) == (channel, fate))


class Watched:
    """A browser of somebody's own, `context`, and what must not be seen in it.

    `expected`: what a line on its console may have in it.
    """

    def __init__(self, context: BrowserContext, origin: str, expected: str | None) -> None:
        self.context = context
        self._origin = origin
        self._expected = expected
        self._faults: list[str] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self._faults.append(f"uncaught: {error.error}"))
        context.on("request", self._request)

    def assert_nothing_wrong(self) -> None:
        """It has shown no error since this was asked last, and has asked nobody but the gateway."""
        faults, self._faults = self._faults, []
        assert faults == []

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not (self._expected and self._expected in message.text):
            self._faults.append(f"{message.type}: {message.text} {message.location}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._origin}/", f"blob:{self._origin}/")):
            self._faults.append(f"a request to elsewhere: {request.url}")


class Demo:
    """A page of the demo, and the phones on it."""

    def __init__(self, page: Page, names: Sequence[str]) -> None:
        self.page = page
        self.phones = [Phone(page, name) for name in names]
        self.tries = page.locator(".tries li")
        self.story = page.locator(".told li")

    async def is_told(self, sentence: str) -> None:
        """Return when the page has told that."""
        await expect(self.story.filter(has_text=sentence).first).to_be_attached()

    async def same_version_same_bytes(self) -> None:
        """However packets came to a phone, those of one version are the same."""
        for phone in self.phones:
            prints: dict[int, set[tuple[str, str]]] = {}
            for line in await phone.lines():
                prints.setdefault(line.version, set()).add((line.bytes, line.hash))
            assert all(len(found) == 1 for found in prints.values()), prints

    async def barriers(self, *rules: str) -> list[str]:
        """What axe-core takes for serious in any frame of the page, by all its rules or by these."""
        options = {"iframes": False, "resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        found = []
        for frame in self.page.frames:
            await frame.evaluate(AXE)
            result: Any = await frame.evaluate("options => axe.run(document, options)", options)
            for violation in result["violations"]:
                if violation["impact"] in SERIOUS:
                    nodes = [f"{node['html']} {node['failureSummary']}" for node in violation["nodes"]]
                    found.append(f"{violation['id']}: {nodes}")
        return found


@asynccontextmanager
async def watched(
    browser: Browser, origin: str, *, expected: str | None = None, **options: Any
) -> AsyncIterator[Watched]:
    """A browser of somebody's own, who lets pages use the camera. `expected`: what its console may show."""
    context = await browser.new_context(base_url=origin, permissions=["camera", "microphone"], **options)
    try:
        yield Watched(context, origin, expected)
    finally:
        await context.close()


@asynccontextmanager
async def context_of(
    browser: Browser, origin: str, *, expected: str | None = None, **options: Any
) -> AsyncIterator[BrowserContext]:
    """The same, in which nothing has been wrong at its end."""
    async with watched(browser, origin, expected=expected, **options) as found:
        yield found.context
    found.assert_nothing_wrong()


async def open_pair(context: BrowserContext, room: str | None = None) -> tuple[Demo, Phone, Phone]:
    """Alice's phone and Bob's, in a room of their own, both with a socket."""
    demo = await open_page(context, f"/?room={room or fresh_room()}", "alice", "bob")
    for phone in demo.phones:
        await phone.is_live()
    return demo, demo.phones[0], demo.phones[1]


async def open_page(context: BrowserContext, address: str, *names: str) -> Demo:
    page = await context.new_page()
    await page.goto(address)
    return Demo(page, names)


def fresh_room() -> str:
    """A room in which nobody was."""
    return f"room-{next(_rooms)}"

"""The operator's console as its operator has it: what they press, and what they see."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from tests.running import until
from tests.web.node import MODULES

OPERATOR = "the operator's own token, and nobody else's"
AXE = (MODULES / "axe-core" / "axe.min.js").read_text()
SERIOUS = {"serious", "critical"}

expect.set_options(timeout=15_000)


class Console:
    """The console in a tab of somebody's own, `page`, and what must not be seen there.

    `origin`: where the gateway is, if the page's context does not say it. `expected`: what a line on the browser's
    console may have in it.
    """

    def __init__(self, page: Page, origin: str = "", expected: str | None = None) -> None:
        self.page = page
        self.headline = page.locator("#headline")
        self.connection = page.locator("#connection")
        self.client = page.locator("#client")
        self.message = page.locator("#client .message")
        self.dialog = page.get_by_role("dialog")
        self._origin = origin
        self._expected = expected
        self._faults: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._faults.append(f"uncaught: {error}"))
        page.on("request", self._request)

    # --- What the operator does

    async def open(self, fragment: str = "") -> None:
        await self.page.goto(f"{self._origin}/console{fragment}")

    async def sign_in(self, token: str = OPERATOR) -> None:
        await self.page.get_by_label("The operator's token").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()

    async def look_up(self, client_id: str) -> None:
        await self.page.get_by_label("Id of a client").fill(client_id)
        await self.page.get_by_role("button", name="Look up").click()

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    # --- What the operator sees

    def tile(self, key: str) -> Locator:
        return self.page.locator(f".tile[data-key={key}]")

    def verdict(self, label: str) -> Locator:
        return self.page.locator("#verdicts button", has_text=label)

    def chart(self, key: str) -> Locator:
        return self.page.locator(f"#chart-{key} .plot")

    async def comes_true(self, expression: str) -> None:
        """Return when it is so in the page. (The page's policy forbids what playwright waits with.)"""

        async def is_true() -> bool:
            return bool(await self.page.evaluate(expression))

        await until(is_true, expression, 15)

    async def is_live(self) -> None:
        """Return when there are numbers."""
        await expect(self.connection).to_have_text("Live")
        await expect(self.page.locator("#processes tr").first).to_be_attached()

    async def barriers(self, *rules: str) -> list[str]:
        """What axe-core takes for serious, by all its rules or by these."""
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        await self.page.evaluate(AXE)
        found = await self.page.evaluate(f"axe.run({json.dumps(options)})")
        return [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in found["violations"]
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]

    async def overhang(self) -> int:
        """By how many pixels the page is wider than its window."""
        found: int = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return found

    def assert_nothing_wrong(self) -> None:
        """No error was shown, and nobody but the gateway was asked for anything."""
        assert self._faults == []

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not (self._expected and self._expected in message.text):
            self._faults.append(f"{message.type}: {message.text} {message.location}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith(f"{self._origin}/") or OPERATOR in request.url:
            self._faults.append(f"a request to elsewhere, or with the token: {request.url}")


@asynccontextmanager
async def console(browser: Browser, url: str, *, expected: str | None = None, **options: Any) -> AsyncIterator[Console]:
    """A tab with the sign-in; at its end nothing wrong must have been seen in it."""
    context = await browser.new_context(**options)
    try:
        opened = Console(await context.new_page(), url, expected)
        await opened.open()
        yield opened
        opened.assert_nothing_wrong()
    finally:
        await context.close()


@asynccontextmanager
async def board(browser: Browser, url: str, **options: Any) -> AsyncIterator[Console]:
    """A tab in which the operator has signed in, and sees numbers."""
    async with console(browser, url, **options) as opened:
        await opened.sign_in()
        await opened.is_live()
        yield opened

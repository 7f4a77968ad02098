"""The pictures of the documentation, taken of real pages: a gateway runs, a browser looks at it, things happen.

A picture is a function that brings a page to where it is worth looking at, and a row of `PICTURES`.
"""

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from playwright.async_api import Browser, BrowserContext, Page, ViewportSize, async_playwright, expect

from tests.running import running_gateway
from tests.web.console_page import Console
from tests.web.console_town import town
from tests.web.demo_page import open_page, open_pair

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LARGEST = 300_000
"""So many bytes a picture may have: whoever reads the documentation loads all of them."""

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars")
ROOM = "k3x9qa"
LINES_S = 180
"""So long things happen until there is something to see of them in lines."""


class Served(Protocol):
    """A gateway that runs."""

    @property
    def url(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """What is shown, of which gateway, and what it is looked at with: a screen of that size, light or dark."""

    show: Callable[[BrowserContext], Awaitable[Page]]
    gateway: Callable[[Path], AbstractAsyncContextManager[Served]]
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"


async def a_push(context: BrowserContext) -> Page:
    """The demo: Bob has watched one video, put his phone away, and is told of another."""
    demo, alice, bob = await open_pair(context, ROOM)
    await alice.app.get_by_role("button", name="Sample").click()
    await bob.has_ready(1)
    await bob.play()
    await alice.has_sent("viewed")
    await bob.press("Background")
    await alice.app.get_by_role("button", name="Sample").click()
    await alice.has_sent("notified", "viewed")
    await expect(bob.notification).to_be_visible()
    await bob.newest("push", "shown")
    return demo.page


async def a_video(context: BrowserContext) -> Page:
    """The demo: Bob's app was dead, he has tapped the push, and watches."""
    demo, alice, bob = await open_pair(context, ROOM)
    await bob.press("Kill")
    await alice.app.get_by_role("button", name="Sample").click()
    await bob.tap()
    await bob.has_ready(1)
    await alice.has_sent("downloaded")
    await bob.play()
    video = bob.app.locator("#player video")
    await video.evaluate("async video => { while (video.currentTime < 0.5) await new Promise(requestAnimationFrame); }")
    await video.evaluate("video => video.pause()")
    return demo.page


async def one_phone(context: BrowserContext) -> Page:
    """The demo on a real phone's screen."""
    demo, alice, bob = await open_pair(context, ROOM)
    single = await open_page(context, f"/?as=carol&room={ROOM}", "carol")
    carol = single.phones[0]
    await carol.is_live()
    await alice.app.get_by_role("button", name="Sample").click()
    await bob.has_ready(1)
    await carol.app.get_by_label("To").fill("bob")
    await carol.app.get_by_role("button", name="Sample").click()
    await carol.has_sent("downloaded")
    await demo.page.close()
    return single.page


async def the_console(context: BrowserContext) -> Page:
    """The operator's console: two processes that serve and a worker, a few dozen clients, five minutes at most."""
    page = await context.new_page()
    opened = Console(page)
    await opened.open()
    await opened.sign_in()
    await opened.is_live()
    await page.get_by_text("5 minutes", exact=True).click()
    await asyncio.sleep(LINES_S)
    await expect(page.locator("#cost")).not_to_contain_text("Not told yet")
    return page


DEMO = partial(running_gateway, DEMO="true")

PICTURES: Mapping[str, Picture] = {
    "demo": Picture(a_push, DEMO, 1280, 980),
    "demo-dark": Picture(a_video, DEMO, 1280, 980, "dark"),
    "demo-phone": Picture(one_phone, DEMO, 390, 844),
    "console": Picture(the_console, town, 1280, 1000),
    "console-dark": Picture(the_console, town, 1280, 1000, "dark"),
}


async def take(name: str, picture: Picture, browser: Browser) -> None:
    """Take one picture, of a gateway that nobody has used."""
    path = IMAGES / f"{name}.png"
    screen: ViewportSize = {"width": picture.width, "height": picture.height}
    with tempfile.TemporaryDirectory() as folder:
        async with picture.gateway(Path(folder)) as gw:
            context = await browser.new_context(base_url=gw.url, viewport=screen, color_scheme=picture.scheme)
            page = await picture.show(context)
            await page.evaluate("scrollTo(0, 0)")
            await page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished))")
            await page.screenshot(path=path, full_page=picture.width > picture.height)
            await context.close()
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"{path.name} is larger than {LARGEST:,} bytes: look at less of it")


async def main(names: Sequence[str]) -> None:
    """Take these pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        try:
            for name in names:
                await take(name, PICTURES[name], browser)
        finally:
            await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes the pictures of the documentation.")
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PICTURES)}; without, all of them")
    chosen = parser.parse_args().name or list(PICTURES)
    if unknown := set(chosen) - PICTURES.keys():
        parser.error(f"there is no picture called {', '.join(sorted(unknown))}")
    asyncio.run(main(chosen))

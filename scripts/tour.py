"""The tour: Alice's phone sends Bob's phone a real video through a gateway, and every step is shown as it happens.

Both phones are played by the reference client, against a gateway over real sockets. Nothing is taken on trust: each
step is checked, and the first that is not as it should be ends the tour with exit code 1 and what was expected.
"""

import argparse
import asyncio
import contextlib
import filecmp
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.api.auth import issue_token
from gateway.client import (
    Announced,
    Client,
    GatewayError,
    Incoming,
    Live,
    Outcome,
    Outgoing,
    Packet,
    Push,
    SocketClosed,
)
from gateway.config import Settings
from gateway.parsers import ConfigError
from gateway.transit.state import Status

VIDEO = Path(__file__).with_name("sample.mp4")
DEVICE = "phone"
PATIENCE_S = 5.0
"""How long a step may take before it counts as failed."""

START_S = 20.0
"""How long a gateway of our own may take to start, and to stop."""

COLUMN = 45

Issue = Callable[[str], str]
"""Makes the token of a client."""


class TourFailed(Exception):
    """Something is not as it should be; the message says what."""


def expect(holds: bool, expected: str, got: object) -> None:
    """Raise TourFailed unless it `holds`."""
    if not holds:
        raise TourFailed(f"expected {expected}, but got {got}")


# --- What is shown


class Story:
    """Tells what happens: seconds since the start, then a column for each phone."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._acted = self._began
        self.videos: dict[str, str] = {}
        """What each video is called."""

    def chapter(self, title: str) -> None:
        print(f"\n{title}")

    def tell(self, column: int, text: str) -> None:
        """Something that happened just now to the phone of that column."""
        print(f"{time.monotonic() - self._began:8.3f}  {' ' * COLUMN * column}{text}", flush=True)

    def acts(self) -> None:
        """A phone begins now what both will hear of."""
        self._acted = time.monotonic()

    @property
    def since(self) -> str:
        """How long ago a phone last did something."""
        return f"{(time.monotonic() - self._acted) * 1000:.0f} ms"

    def call(self, video_id: str) -> str:
        return self.videos.get(video_id, video_id)


@dataclass(frozen=True, slots=True)
class Got:
    """A packet, and how it came."""

    channel: str
    packet: Packet


class Phone:
    """One phone: the app on it, its column, and every packet that it got."""

    def __init__(self, story: Story, column: int, name: str, client: Client) -> None:
        self._story = story
        self._column = column
        self._news: asyncio.Queue[Packet | GatewayError | SocketClosed] = asyncio.Queue()
        self._live: Live | None = None
        self.name = name
        self.client = client
        self.got: list[Got] = []

    def tell(self, text: str) -> None:
        self._story.tell(self._column, text)

    def acts(self, text: str) -> None:
        """It begins what both phones will hear of."""
        self._story.acts()
        self.tell(text)

    @property
    def live(self) -> Live:
        """The socket of the app, which is open."""
        assert self._live is not None
        return self._live

    def take(self, channel: str, packet: Packet) -> Packet:
        """A packet came, and is applied unless a newer one was."""
        self.got.append(Got(channel, packet))
        if self.client.wants(packet):
            self.client.applied(packet)
        return packet

    async def poll(self) -> Packet:
        """The packet of now."""
        packet = await self.client.poll()
        if packet is None:
            raise TourFailed("expected a packet from a poll that knows none, but got 304")
        return self.take("poll", packet)

    async def sync(self) -> Packet:
        """The packet of a sync."""
        return self.take("sync", (await self.client.sync()).packet)

    @asynccontextmanager
    async def app_open(self, version: int = 0) -> AsyncIterator[None]:
        """The app is open: it holds a socket, tells of every change that it hears of, and acknowledges it.

        `version`: of the packet that it has; without one it hears first how things are.
        """
        self._news = asyncio.Queue()
        async with self.client.live(version) as self._live:
            listener = asyncio.create_task(self._listen(self._live, self._latest))
            try:
                yield
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    @property
    def _latest(self) -> Packet | None:
        """The packet that it has."""
        return max((got.packet for got in self.got), key=lambda packet: packet.version, default=None)

    async def _listen(self, live: Live, before: Packet | None) -> None:
        try:
            async for packet in live:
                self.take("live", packet)
                for change in changes(before or packet, packet, self._story):
                    self.tell(f"hears: {change} ({self._story.since})")
                self._news.put_nowait(packet)
                await live.acknowledge(packet.version)
                before = packet
        except (GatewayError, SocketClosed) as error:
            self._news.put_nowait(error)

    async def hears(self, expected: str, holds: Callable[[Packet], bool]) -> Packet:
        """The first packet to come to the open app of which that `holds`."""
        packet: Packet | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while packet is None or not holds(packet):
                    news = await self._news.get()
                    if not isinstance(news, Packet):
                        raise news
                    packet = news
        except TimeoutError:
            raise TourFailed(f"expected {self.name} to hear that {expected}, but got {packet}") from None
        return packet


def changes(before: Packet, after: Packet, story: Story) -> Iterator[str]:
    """What is different in a newer packet, in words."""
    for sent in after.outgoing:
        if sent not in before.outgoing:
            yield f"{story.call(sent.video_id)} video is {sent.status}"
    for received in after.incoming:
        if before.received(received.video_id) is None:
            yield f"{story.call(received.video_id)} video waits"
    before_ids, after_ids = (
        {video.video_id for video in packet.outgoing} | {video.video_id for video in packet.incoming}
        for packet in (before, after)
    )
    for video_id in sorted(before_ids - after_ids):
        yield f"{story.call(video_id)} video is gone"


# --- The tour


async def tour(story: Story, alice: Phone, bob: Phone) -> None:
    """All of it."""
    await alice.client.register("apns", f"push-token-of-{alice.name}")
    await bob.client.register("fcm", f"push-token-of-{bob.name}")
    async with alice.app_open(), pushes_of(bob) as pushes:
        alice.tell("registers, opens the app, holds a socket")
        bob.tell("registers, and closes the app")
        story.chapter("Bob's app is closed: a push wakes it")
        first = await first_video(story, alice, bob, pushes)
        async with bob.app_open():
            bob.tell("holds a socket")
            await seen_video(alice, bob, first)
            story.chapter("Bob is cut off while a video is on its way, and a newer one replaces it")
            await second_video(story, alice, bob)
        third = await sent_video(story, alice, bob, "the 3rd")
        bob.tell("connects again, with the version that it has")
        async with bob.app_open(bob.client.version):
            await third_video(alice, bob, third)
            story.chapter("Alice changes her mind")
            await cancelled_video(alice, bob, third)


@asynccontextmanager
async def pushes_of(phone: Phone) -> AsyncIterator[AsyncIterator[Push]]:
    """What wakes that phone, whether its app is open or not."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            pushes = await stack.enter_async_context(phone.client.pushes())
        except GatewayError as error:
            if error.status != 404:
                raise
            raise TourFailed(
                "this gateway does not show its pushes on its own console, so nobody can play a phone that is woken"
            ) from error
        yield pushes


async def first_video(story: Story, alice: Phone, bob: Phone, pushes: AsyncIterator[Push]) -> str:
    """A video comes to a phone whose app is closed; its id."""
    video_id = await sent_video(story, alice, bob, "the 1st")
    push = await woken(story, bob, pushes)
    await alice.hears("Bob was notified", lambda packet: status(packet, video_id) is Status.NOTIFIED)
    expect(push.packet is not None, "the push to carry a packet (GATEWAY_PUSH_CONTENT=packet)", push)
    packet = await bob.sync()
    expect(only(packet.incoming) == video_id, "Bob's sync to list the 1st video alone", packet)
    bob.tell("opens the app, which syncs: 1 video waits")
    return video_id


async def seen_video(alice: Phone, bob: Phone, video_id: str) -> None:
    """The rest of a video's life, in apps that are open."""
    await bob.hears("the 1st video waits", lambda packet: only(packet.incoming) == video_id)
    await bob.poll()
    await downloaded(bob, video_id)
    await reached(alice, bob, video_id, Status.DOWNLOADED)
    await reached(alice, bob, video_id, Status.VIEWED)
    await bob.hears("nothing waits once he has seen it", lambda packet: not packet.incoming)
    await alice.sync()
    await alice.poll()


async def second_video(story: Story, alice: Phone, bob: Phone) -> None:
    """A video of which the phone that it is for hears nothing: a push is sent at once, and never looked at."""
    announced = await announced_video(story, alice, bob, "the 2nd")
    bob.live.abort()
    bob.tell("is cut off: its TCP connection is gone")
    await uploaded_video(alice, announced)
    video_id = announced.video_id
    await alice.hears("a push was sent to Bob", lambda packet: status(packet, video_id) is Status.NOTIFIED)


async def third_video(alice: Phone, bob: Phone, third: str) -> None:
    """The video that replaced one that was not seen: a phone that comes back hears of what is, not of what was."""
    packet = await bob.hears("the 3rd video waits", lambda _: True)
    expect(only(packet.incoming) == third, "the 3rd video to replace the 2nd (GATEWAY_VIDEOS_PER_PAIR=1)", packet)
    newest = await bob.poll()
    expect(packet.body == newest.body, "the first packet that Bob hears to be the newest", packet)
    packet = await alice.hears("Bob was notified", lambda packet: status(packet, third) is Status.NOTIFIED)
    expect(only(packet.outgoing) == third, "the 3rd video to be on its way alone", packet)


async def cancelled_video(alice: Phone, bob: Phone, video_id: str) -> None:
    """A video that is on its way is called back."""
    alice.acts("cancels the 3rd video")
    result = await alice.client.delete(video_id, bob.name)
    expect(result.outcome is Outcome.APPLIED, "the cancellation to be applied", result)
    await bob.hears("nothing waits", lambda packet: not packet.incoming)
    await alice.hears("nothing is on its way", lambda packet: not packet.outgoing)


async def sent_video(story: Story, alice: Phone, bob: Phone, called: str) -> str:
    """Alice sends Bob the video; its id."""
    announced = await announced_video(story, alice, bob, called)
    await uploaded_video(alice, announced)
    return announced.video_id


async def announced_video(story: Story, alice: Phone, bob: Phone, called: str) -> Announced:
    """Alice is about to send Bob the video."""
    announced = await alice.client.announce(bob.name, size=VIDEO.stat().st_size)
    story.videos[announced.video_id] = called
    alice.tell(f"announces {called} video, {announced.size:,} bytes")
    return announced


async def uploaded_video(alice: Phone, announced: Announced) -> None:
    """Alice's phone stores the bytes, and says so."""
    alice.acts("uploads it to the signed URL")
    await alice.client.upload(announced, VIDEO)
    result = await alice.live.confirm(announced.video_id, announced.recipient_id)
    expect(result.outcome in {Outcome.APPLIED, Outcome.DUPLICATE}, "the upload to be confirmed", result)
    alice.tell("confirms it" + (" (the gateway had seen it)" if result.outcome is Outcome.DUPLICATE else ""))


async def woken(story: Story, bob: Phone, pushes: AsyncIterator[Push]) -> Push:
    """The push that wakes Bob's phone."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            push = await anext(pushes)
    except (TimeoutError, StopAsyncIteration):
        raise TourFailed("expected a push to wake Bob's phone, but got none") from None
    expect(push.alert is not None and push.alert.badge == 1, "a push that shows 1 video", push)
    bob.tell(f"is woken by a push: 1 video ({story.since})")
    if push.packet:
        bob.take("push", push.packet)
    return push


async def downloaded(bob: Phone, video_id: str) -> None:
    """Bob's phone has the very bytes that Alice's phone sent."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "video.mp4")
        size = await bob.client.download(video_id, to)
        same = filecmp.cmp(VIDEO, to, shallow=False)
    expect(same, f"the {VIDEO.stat().st_size} bytes that were sent", f"{size} bytes that differ")
    bob.tell(f"downloads it: the same {size:,} bytes")


async def reached(alice: Phone, bob: Phone, video_id: str, state: Status) -> None:
    """Bob reports a status, and Alice hears of it."""
    bob.acts(f"reports: {state}")
    result = await bob.live.report(video_id, state)
    expect(result.outcome is Outcome.APPLIED, f"{state} to be applied", result)
    await alice.hears(f"her video is {state}", lambda packet: status(packet, video_id) is state)


def status(packet: Packet, video_id: str) -> Status | None:
    """How far a video has come, as its sender is told."""
    sent = packet.sent(video_id)
    return sent.status if sent else None


def only(videos: Sequence[Outgoing | Incoming]) -> str | None:
    """The id of the one video that is listed; None where it is not exactly one."""
    return videos[0].video_id if len(videos) == 1 else None


# --- What was got, compared


def equal_bytes(phone: Phone, channels: set[str]) -> str:
    """A sentence about a version that came by all those channels; every version is compared, however it came."""
    versions: dict[int, list[Got]] = {}
    for got in phone.got:
        versions.setdefault(got.packet.version, []).append(got)
    for version, gots in versions.items():
        bodies = {got.packet.body for got in gots}
        expect(len(bodies) == 1, f"one and the same packet of version {version} for {phone.name}", gots)
    found = [gots for gots in versions.values() if channels <= {got.channel for got in gots}]
    expect(bool(found), f"a version that {phone.name} got by {' and '.join(sorted(channels))}", versions.keys())
    packet = found[-1][0].packet
    return f"{phone.name}: version {packet.version}, {len(packet.body)} bytes by {', '.join(sorted(channels))}: equal"


# --- The gateway


@dataclass(frozen=True, slots=True)
class Visited:
    """The gateway that is toured."""

    address: str
    issue: Issue
    ours: bool


@asynccontextmanager
async def visited(address: str | None) -> AsyncIterator[Visited]:
    """The gateway at `address`; without one the usual, or, where nothing runs there, one of our own."""
    usual = f"http://127.0.0.1:{os.environ.get('GATEWAY_PORT', '8000')}"
    if await answers(address or usual):
        yield Visited(address or usual, issuer(os.environ), ours=False)
    elif address is not None:
        raise TourFailed(f"there is no gateway at {address}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            environ = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
            environ["GATEWAY_DATA_DIR"] = folder
            async with own_gateway(environ) as started:
                yield Visited(started, issuer(environ), ours=True)


async def answers(address: str) -> bool:
    """Whether a gateway is there. Raises TourFailed where something else is."""
    try:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            answer = await http.get(f"{address}/healthz")
    except httpx.ConnectError:
        return False
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TourFailed(f"expected a gateway at {address}, but got {type(error).__name__}") from error
    expect(answer.status_code == 200, f"a gateway at {address}", f"{answer.status_code} for its /healthz")
    return True


@asynccontextmanager
async def own_gateway(environ: Mapping[str, str]) -> AsyncIterator[str]:
    """A gateway with the settings of `environ` on a free port; where it is."""
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        yield await told_address(process.stdout)
    finally:
        await stopped(process)


async def told_address(output: asyncio.StreamReader) -> str:
    """Where a gateway that starts says that it is."""
    said = ""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            async for line in output:
                said += line.decode()
                if found := re.search(r"http://127\.0\.0\.1:\d+", said):
                    return found[0]
    raise TourFailed(f"expected a gateway to start, but it said:\n{said}")


async def stopped(process: asyncio.subprocess.Process) -> None:
    """Stop it as an operator would, and only if that does not help the hard way."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(START_S):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()


def issuer(environ: Mapping[str, str]) -> Issue:
    """Makes tokens as `gateway token` does, with the gateway's own settings."""
    settings = Settings.load(environ)
    if settings.secret_file is not None and not settings.secret_file.exists():
        raise TourFailed(
            f"the tour needs the secret of the gateway, and {settings.secret_file} is not there: run it where the "
            "gateway runs, with the same GATEWAY_DATA_DIR or GATEWAY_JWT_SECRET"
        )
    secret = settings.signing_secret()
    if secret is None:
        raise TourFailed("this gateway verifies tokens with a public key, so the tour cannot make any for its phones")
    audience, issuer_ = settings.jwt_audience, settings.jwt_issuer

    def issue(client_id: str) -> str:
        return issue_token(secret, client_id, ttl_s=600, now=time.time(), audience=audience, issuer=issuer_)

    return issue


@asynccontextmanager
async def account(visit: Visited, client_id: str, http: httpx.AsyncClient) -> AsyncIterator[Client]:
    """An account of the gateway, for the time of the tour."""
    async with Client(visit.address, visit.issue(client_id), DEVICE, http, client_id=client_id) as client:
        try:
            await client.poll()
        except GatewayError as error:
            if error.status != 401:
                raise
            raise TourFailed(
                f"the gateway at {visit.address} does not accept our tokens: run the tour with its GATEWAY_ settings"
            ) from error
        try:
            yield client
        except BaseException:
            with contextlib.suppress(GatewayError):  # what went wrong before is what to tell
                await client.end()
            raise
        await client.end()


# --- The command


async def run(address: str | None) -> None:
    """The whole tour. Raises TourFailed, GatewayError, SocketClosed, ConfigError."""
    async with visited(address) as visit:
        mark = secrets.token_hex(2)
        names = (f"tour-alice-{mark}", f"tour-bob-{mark}")
        print(f"A video goes from Alice's phone to Bob's, through the gateway at {visit.address}")
        if visit.ours:
            print("(started for this tour, and stopped at its end)")
        print("In brackets: how long it took from the step that caused it.")
        print(f"\n seconds  {'Alice is ' + names[0]:{COLUMN}}Bob is {names[1]}")
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            account(visit, names[0], http) as alices,
            account(visit, names[1], http) as bobs,
        ):
            story = Story()
            alice, bob = Phone(story, 0, names[0], alices), Phone(story, 1, names[1], bobs)
            await tour(story, alice, bob)
            story.chapter("However a packet came, it was the same")
            print(equal_bytes(bob, {"live", "push", "poll", "sync"}))
            print(equal_bytes(alice, {"live", "poll", "sync"}))
        print("\nAll is as it should be. Both accounts are gone again.")


@contextmanager
def failures_told() -> Iterator[None]:
    """Ends the process with 1, and a sentence, where something is not as it should be."""
    try:
        yield
    except (TourFailed, GatewayError, SocketClosed) as error:
        sys.exit(f"tour: FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        sys.exit("\n".join(f"tour: {sentence}" for sentence in error.sentences))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/tour", description="Two phones, one video, every step shown.")
    parser.add_argument("address", nargs="?", help="of a gateway; by default http://127.0.0.1:$GATEWAY_PORT (8000)")
    address: str | None = parser.parse_args().address
    with failures_told():
        asyncio.run(run(address.rstrip("/") if address else None))


if __name__ == "__main__":
    main()

"""What happens at one gateway is felt at another: two of them, with one store and one Redis between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.live.closing import CloseCode
from tests.app.program import run
from tests.redis_servers import RedisServer, free_port, redis_server
from tests.running import App, Running, running_gateway, settings, until, within


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Two(NamedTuple):
    """A gateway without a worker, and another one with it."""

    here: Running
    there: Running

    def apps(self, name: str) -> tuple[App, App]:
        """One client's app, at either gateway."""
        client_id = self.here.fresh(name)
        return self.here.app(client_id), self.there.app(client_id)


@pytest.fixture(scope="module")
async def two(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    folder = tmp_path_factory.mktemp("data")
    given = {"BUS_URL": redis.url, "CACHE_URL": redis.url}
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running_gateway(folder, worker=False, **given))
        there = await stack.enter_async_context(running_gateway(folder, worker=True, **given))
        yield Two(here, there)


async def test_a_packet_is_the_same_bytes_at_every_gateway_and_by_every_way(two: Two) -> None:
    (alice, _), (bob_here, bob_there) = two.apps("alice"), two.apps("bob")
    async with bob_here.socket("phone") as near, bob_there.socket("tablet") as far:
        await near.packet(), await far.packet()
        held = asyncio.create_task(bob_there.poll('"0"', wait=20, device_id="watch"))
        await two.there.polls_held(1)
        await alice.send(bob_here.client_id)
        texts = {await near.text(), await far.text(), (await within(held)).text}
        texts |= {(await bob_here.poll()).text, (await bob_there.poll()).text}
    assert len(texts) == 1


async def test_a_status_reported_at_one_gateway_is_heard_at_the_other(two: Two) -> None:
    (alice, _), (_, bob) = two.apps("alice"), two.apps("bob")
    video_id = await alice.send(bob.client_id)
    async with alice.socket("phone") as socket:
        await socket.packet()
        for status in ("downloaded", "viewed"):
            assert (await bob.say(video_id, status)).status_code == 200
            [entry] = (await socket.packet())["outgoing"]
            assert entry["status"] == status


async def test_a_device_that_connects_elsewhere_is_displaced(two: Two) -> None:
    here, there = two.apps("alice")
    async with here.socket("phone") as before, here.socket("tablet") as another:
        await before.packet(), await another.packet()
        async with there.socket("phone") as after:
            await after.packet()
            assert (await before.ended())[0] == CloseCode.DISPLACED
            await there.send(two.there.fresh("bob"))
            assert (await after.packet())["outgoing"], "the one that came later stays"
            assert (await another.packet())["outgoing"], "the other device too"


async def test_of_a_device_that_connects_everywhere_at_once_one_socket_stays(two: Two) -> None:
    here, there = two.apps("alice")
    for _ in range(5):
        async with AsyncExitStack() as stack:
            sockets = await asyncio.gather(
                *(stack.enter_async_context(app.socket("phone")) for app in (here, there, here, there))
            )
            endings = [asyncio.create_task(socket.ended()) for socket in sockets]
            await within(_all_but_one(endings))
            await here.send(two.here.fresh("bob"))
            assert sum(ending.done() for ending in endings) == len(endings) - 1
            for ending in endings:
                ending.cancel()


async def _all_but_one(endings: list[asyncio.Task[tuple[int, str]]]) -> None:
    left = set(endings)
    while len(left) > 1:
        _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)


async def test_a_log_out_ends_the_devices_socket_and_polls_wherever_they_are(two: Two) -> None:
    here, there = two.apps("alice")
    await here.register("phone", "a" * 64)
    async with here.socket("phone") as phone, here.socket("tablet") as tablet:
        await phone.packet(), await tablet.packet()
        held = asyncio.create_task(here.poll(f'"{1 << 50}"', wait=20, device_id="phone"))
        await two.here.polls_held(1)
        assert (await there.call("DELETE", "/v1/devices/phone")).status_code == 204
        assert (await phone.ended())[0] == CloseCode.UNAUTHORIZED
        assert (await within(held)).status_code == 304
        await there.send(two.there.fresh("bob"))
        assert (await tablet.packet())["outgoing"]


async def test_the_end_of_an_account_ends_its_sockets_wherever_they_are(two: Two) -> None:
    here, there = two.apps("alice")
    async with here.socket("phone") as socket:
        await socket.packet()
        assert (await there.call("DELETE", "/v1/client")).status_code == 204
        assert (await socket.ended())[0] == CloseCode.UNAUTHORIZED


async def test_a_video_for_nobody_connected_kicks_the_worker_of_the_other_gateway(two: Two) -> None:
    """Long before the grace is over after which the due time would have it pushed."""
    (alice, _), (bob, bob_there) = two.apps("alice"), two.apps("bob")
    await bob.register("phone", "b" * 64)
    async with bob.pushes("phone") as pushes:
        started_s = time.monotonic()
        await alice.send(bob.client_id)
        push = await within(anext(pushes))
        assert time.monotonic() - started_s < 4
    assert push["packet"] == (await bob_there.poll()).text


async def test_a_stale_cache_entry_says_nothing_wrong_to_whoever_asks_for_certain(two: Two, redis: RedisServer) -> None:
    (alice, _), (bob, bob_there) = two.apps("alice"), two.apps("bob")
    entry = f"gateway:cache:client:{bob.client_id}"
    first = await alice.send(bob.client_id)
    known = f'"{await bob.version()}"'

    async def kept() -> bool:
        await bob.poll(known)
        return bool(redis.ask("EXISTS", entry))

    await until(kept, "the document is in the cache")
    stale = redis.ask("GET", entry)
    second = await alice.send(bob.client_id)
    redis.ask("SET", entry, stale, "PX", 30_000)

    assert (await bob_there.poll(known)).status_code == 304, "it may say so for half a minute"
    assert (await bob_there.say(second, "downloaded")).json()["result"] == "applied", (
        "though the entry has no such video"
    )
    redis.ask("SET", entry, stale, "PX", 30_000)
    assert (await bob_there.say(first, "downloaded")).json()["result"] == "ignored", "though the entry has it"
    assert (await bob_there.packet())["incoming"][0]["video_id"] == second
    assert (await bob_there.poll(known)).status_code == 200, "that poll has healed it"
    assert 0 < redis.ask("PTTL", entry) <= 30_000


async def test_setup_checks_the_stores_and_shows_no_password(redis: RedisServer, tmp_path: Path) -> None:
    redis.ask("ACL", "SETUSER", "owner", "on", ">the-password", "~*", "+@all")
    url = redis.url.replace("//", "//owner:the-password@")
    wrong, nowhere = url.replace("the-password", "a-wrong-one"), f"redis://owner:the-password@127.0.0.1:{free_port()}"
    outcomes = ((url, 0, "documents: redis://(hidden)@"), (wrong, 2, "WRONGPASS"), (nowhere, 2, "127.0.0.1"))
    for state_url, code, said in outcomes:
        ended, output = await run(tmp_path / "data", "setup", STATE_URL=state_url, BUS_URL=url, CACHE_URL=url)
        assert (ended, said in output) == (code, True), output
        assert "the-password" not in output
        assert "a-wrong-one" not in output
    loaded = settings(tmp_path, STATE_URL=url, BUS_URL=url, CACHE_URL=url)
    assert "the-password" not in repr(loaded)

"""What becomes of the bus when Redis is in trouble: real servers, killed, frozen, cut off, moved about."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from gateway.bus import open_bus, subscriber
from gateway.bus.bus import Kick
from gateway.bus.redis import RedisBus
from gateway.metrics import Metrics
from gateway.transit.state import ClientId
from tests.bus.listening import ALICE, BOB, Heard, logged_out, news
from tests.redis_servers import RedisCluster, RedisServer, redis_cluster, redis_server, wait_for_cluster
from tests.running import until, within


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def two(url: str) -> AsyncIterator[tuple[RedisBus, RedisBus]]:
    """The buses of two processes."""
    async with AsyncExitStack() as stack:
        buses = [cast("RedisBus", open_bus(url, Metrics())) for _ in range(2)]
        for bus in buses:
            stack.push_async_callback(bus.close)
        yield buses[0], buses[1]


async def is_connected(bus: RedisBus, *, connected: bool = True, within_s: float = 20) -> None:
    async def as_said() -> bool:
        return bus.connected == connected

    await until(as_said, f"the bus is {'' if connected else 'not '}connected", within_s)


async def test_after_a_restart_what_could_not_be_published_comes_and_the_gap_is_told(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        await publishing.publish([news(1)])
        await listener.has(1)

        server.kill()
        assert await publishing.publish([news(2)]) == [-1]
        assert await publishing.publish([news(3), news(1, BOB)]) == [-1, -1]
        server.start()

        await listener.missed_some()
        await publishing.publish([news(4)])
        await listener.has(4)
        assert set(listener.versions()) <= {1, 3, 4}, "only the newest is published again"

        async def all_went() -> bool:
            return not publishing._kept

        await until(all_went, "what was kept is published")
        assert publishing._metrics.bus_kept._value.get() in {3, 4}, "the one after the start may be kept too"
        assert hearing._metrics.bus_gaps._value.get() == 1


async def test_while_redis_is_away_only_the_first_waits_for_it(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        await publishing.publish([news(1)])
        server.freeze()
        started_s = time.monotonic()
        await publishing.publish([news(2)])
        assert time.monotonic() - started_s < 2.5

        started_s = time.monotonic()
        for version in range(3, 103):
            await publishing.publish([news(version)])
            await publishing.dismiss(logged_out())
            await publishing.kick(Kick(ALICE))
        assert time.monotonic() - started_s < 0.5

        server.thaw()
        await listener.has(102)

        async def told() -> bool:
            return logged_out() in listener.dismissals

        await until(told, "the log-out is told")


async def test_a_frozen_server_is_noticed_within_five_seconds(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        started_s = time.monotonic()
        server.freeze()
        await is_connected(hearing, connected=False, within_s=5)
        assert time.monotonic() - started_s > 1, "a moment's silence is nothing"
        server.thaw()

        await listener.missed_some()
        await publishing.publish([news(9)])
        await listener.has(9)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are left five times as soon."""
    monkeypatch.setattr(subscriber, "BEAT_S", subscriber.BEAT_S / 5)
    monkeypatch.setattr(subscriber, "SILENT_S", subscriber.SILENT_S / 5)


@pytest.mark.usefixtures("quick")
async def test_a_server_that_loses_what_is_published_is_left(server: RedisServer, tmp_path: Path) -> None:
    """Such as one that is no longer the one to which others publish: it answers pings for ever."""
    with redis_server(tmp_path / "another") as another:
        async with two(server.url) as (hearing, _):
            listener = Heard()
            await hearing.subscribe(ALICE, listener)
            [listening] = hearing._subscribers.values()
            elsewhere = cast("RedisBus", open_bus(another.url, Metrics()))
            try:
                listening._beat = lambda channel: elsewhere._client.run(channel, "PUBLISH", channel, b"")
                await listener.missed_some()
            finally:
                await elsewhere.close()


@pytest.mark.usefixtures("quick")
async def test_a_silent_bus_that_works_is_left_alone(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, _):
        await hearing.subscribe(ALICE, listener)
        await asyncio.sleep(2 * subscriber.SILENT_S)  # longer than silence would be borne
        assert hearing.connected
        assert listener.gaps == []


async def test_who_subscribes_while_redis_is_away_is_served_and_told_later(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(BOB, listener)
        server.kill()
        await is_connected(hearing, connected=False)

        started_s = time.monotonic()
        await hearing.subscribe(ALICE, listener)
        assert time.monotonic() - started_s < 0.2
        await hearing.publish([news(1)])
        assert listener.versions() == [1], "a packet of the same process needs no Redis"

        server.start()
        await listener.missed_some(ALICE)
        await publishing.publish([news(2)])
        await listener.has(2)


async def test_a_process_that_starts_while_redis_is_away_is_connected_when_it_is_there(tmp_path: Path) -> None:
    server, listener = RedisServer(tmp_path), Heard()
    async with two(server.url) as (hearing, publishing):
        await within(hearing.subscribe(ALICE, listener), 2)
        taken: list[Kick] = []
        hearing.on_kick(taken.append)
        try:
            server.start()
            await listener.missed_some()
            await publishing.publish([news(1)])
            await listener.has(1)

            async def kicked() -> bool:
                await publishing.kick(Kick(ALICE))
                return bool(taken)

            await until(kicked, "a kick is taken")
        finally:
            server.kill()


async def test_connections_that_are_cut_one_by_one_are_replaced(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        await publishing.publish([news(1)])
        version = 1
        for kind in ("normal", "pubsub", "normal", "pubsub"):
            listener.gaps.clear()
            assert server.cut(kind) > 0
            if kind == "pubsub":
                await listener.missed_some()
            version += 1
            await publishing.publish([news(version)])
            await listener.has(version)


async def test_a_cut_of_the_publishers_connection_loses_nothing(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        for version in range(1, 40):
            server.cut("normal")
            await publishing.publish([news(version)])
        await listener.has(39)
        assert listener.versions() == list(range(1, 40))
        assert listener.gaps == []


async def test_a_flush_changes_nothing(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        server.ask("FLUSHALL")
        await publishing.publish([news(1)])
        await listener.has(1)


async def test_subscriptions_of_one_turn_are_one_command(server: RedisServer) -> None:
    listener = Heard()
    async with two(server.url) as (hearing, _):
        await hearing.subscribe(ALICE, listener)
        before = commands(server, "subscribe")
        await asyncio.gather(*(hearing.subscribe(ClientId(f"client-{n}"), listener) for n in range(500)))
        assert commands(server, "subscribe") == before + 1
        for n in range(500):
            hearing.unsubscribe(ClientId(f"client-{n}"), listener)

        async def told() -> bool:
            return commands(server, "unsubscribe") == 1

        await until(told, "they are let go of in one command")


def commands(server: RedisServer, name: str) -> int:
    info: bytes = server.ask("INFO", "commandstats")
    for line in info.decode().splitlines():
        if line.startswith(f"cmdstat_{name}:calls="):
            return int(line.partition("=")[2].partition(",")[0])
    return 0


async def test_a_kick_that_nobody_takes_is_forgotten(server: RedisServer) -> None:
    async with two(server.url) as (kicking, _):
        for number in range(1_200):
            await kicking.kick(Kick(ClientId(f"client-{number}")))

        async def there() -> bool:
            return bool(server.ask("EXISTS", "gateway:{kicks}"))

        await until(there, "the kicks wait")
        assert server.ask("LLEN", "gateway:{kicks}") <= 1_000
        assert 0 < server.ask("PTTL", "gateway:{kicks}") <= 5_000


async def test_of_two_workers_one_takes_each_kick(server: RedisServer) -> None:
    async with two(server.url) as workers, two(server.url) as (kicking, _):
        taken: list[Kick] = []
        for worker in workers:
            worker.on_kick(taken.append)

        async def both_listen() -> bool:
            return all(worker._homes and worker.connected for worker in workers)

        await until(both_listen, "both listen")
        kicks = [Kick(ClientId(f"client-{number}")) for number in range(300)]
        for kick in kicks:
            await kicking.kick(kick)

        async def all_taken() -> bool:
            return len(taken) >= len(kicks)

        await until(all_taken, "all are taken")
        assert sorted(taken) == sorted(kicks)


async def test_a_wrong_password_is_told_and_not_shown(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    server.ask("CONFIG", "SET", "requirepass", "the right one")
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("redis://", "redis://:the-wrong-one@")
    async with two(url) as (hearing, publishing):
        await hearing.subscribe(ALICE, Heard())
        assert await publishing.publish([news(1)]) == [-1]

        async def told() -> bool:
            return "WRONGPASS" in str([record.__dict__ for record in caplog.records])

        await until(told, "it is told")
    assert "the-wrong-one" not in str([record.__dict__ for record in caplog.records])


async def test_a_password_and_a_prefix_are_used(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "requirepass", "the right one")
    listener, stranger = Heard(), Heard()
    url = server.url.replace("redis://", "redis://default:the%20right%20one@")
    async with two(f"{url}/2?prefix=ours:") as (hearing, publishing), two(f"{url}/2?prefix=theirs:") as (other, _):
        await hearing.subscribe(ALICE, listener)
        await other.subscribe(ALICE, stranger)
        await publishing.publish([news(1)])
        await listener.has(1)
    async with two(f"{url}/3?prefix=theirs:") as (publishing, _):
        assert await publishing.publish([news(2)]) == [0]
    assert stranger.packets == []


async def test_the_rights_that_the_documentation_names_are_enough(server: RedisServer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    [rights] = re.findall(r"ACL SETUSER gateway-bus on >a-password (.*)", page)
    server.ask("ACL", "SETUSER", "gateway-bus", "on", ">a-password", *rights.split())
    server.ask("ACL", "SETUSER", "default", "resetpass", "off")
    listener, taken = Heard(), list[Kick]()
    async with two(server.url.replace("redis://", "redis://gateway-bus:a-password@")) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        await publishing.publish([news(1)])
        await listener.has(1)
        hearing.unsubscribe(ALICE, listener)
        hearing.on_kick(taken.append)

        async def kicked() -> bool:
            await publishing.kick(Kick(BOB))
            return bool(taken)

        await until(kicked, "a kick is taken")


async def test_nobody_waits_for_a_cluster_of_which_nothing_can_be_had(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with two(f"redis+cluster://127.0.0.1:{server.port},127.0.0.1:{server.port + 1}") as (publishing, _):
        await publishing.publish([news(1)])
        started_s = time.monotonic()
        for version in range(2, 52):
            assert await publishing.publish([news(version)]) == [-1]
        assert time.monotonic() - started_s < 0.2


# --- A cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def channel(client_id: ClientId) -> bytes:
    return f"gateway:0:c:{client_id}".encode()


async def test_a_channel_whose_slot_moves_is_heard_where_it_is(cluster: RedisCluster) -> None:
    listener = Heard()
    async with two(cluster.url) as (hearing, publishing):
        await hearing.subscribe(ALICE, listener)
        await hearing.subscribe(BOB, listener)
        await publishing.publish([news(1)])
        await listener.has(1)

        for version in (2, 3):
            listener.gaps.clear()
            cluster.move_slot(channel(ALICE))
            await listener.missed_some()
            await publishing.publish([news(version)])
            await listener.has(version)
        assert BOB not in listener.gaps or cluster.owner(channel(BOB)) is cluster.owner(channel(ALICE))


async def test_a_node_that_is_killed_takes_only_its_own_channels_along(cluster: RedisCluster) -> None:
    lost = cluster.owner(channel(ALICE))
    others = [ClientId(f"client-{n}") for n in range(20) if cluster.owner(channel(ClientId(f"client-{n}"))) is not lost]
    listener = Heard()
    for server in cluster.servers:
        server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    async with two(cluster.url) as (hearing, publishing):
        for client_id in (ALICE, *others):
            await hearing.subscribe(client_id, listener)
        await publishing.publish([news(1)])
        await listener.has(1)

        lost.kill()
        assert await publishing.publish([news(2)]) == [-1]
        started_s = time.monotonic()
        for number, client_id in enumerate(others):
            assert await publishing.publish([news(number + 1, client_id), news(3 + number)]) == [1, -1]
        assert time.monotonic() - started_s < 1, "those of the others do not wait"
        for number, client_id in enumerate(others):
            await listener.has(number + 1, client_id)

        lost.start()
        wait_for_cluster(cluster)
        await listener.missed_some()
        await listener.has(2 + len(others))
        assert set(listener.gaps) <= {ALICE}

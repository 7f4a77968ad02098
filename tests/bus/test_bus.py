"""What every bus promises, in one process or over Redis, one server or a cluster."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from gateway.bus import open_bus
from gateway.bus.bus import Bus, Cause, Dismissal, Kick
from gateway.metrics import Metrics
from gateway.transit.state import ClientId, DeviceId
from tests.bus.listening import ALICE, BOB, Heard, logged_out, news
from tests.redis_servers import redis_cluster, redis_server
from tests.running import until

Open = Callable[[], Bus]


@pytest.fixture(scope="module", params=["memory", "redis", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "memory":
        yield "memory:"
    elif request.param == "redis":
        with redis_server(tmp_path_factory.mktemp("redis")) as server:
            yield server.url
    else:
        with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
            yield cluster.url


@pytest.fixture
async def open_one(url: str) -> AsyncIterator[Open]:
    """Opens the bus as one more process; within one process it is the same."""
    async with AsyncExitStack() as stack:
        opened: list[Bus] = []

        def one() -> Bus:
            if url == "memory:" and opened:
                return opened[0]
            bus = open_bus(url, Metrics())
            opened.append(bus)
            stack.push_async_callback(bus.close)
            return bus

        yield one


async def test_a_packet_reaches_whoever_subscribed_in_every_process(open_one: Open) -> None:
    one, other, publisher = open_one(), open_one(), open_one()
    here, there = Heard(), Heard()
    await one.subscribe(ALICE, here)
    await other.subscribe(ALICE, there)

    await publisher.publish([news(7, asks=True)])

    for listener in (here, there):
        await listener.has(7)
        assert listener.packets == [("alice", 7, b'{"version":7}', True)]


async def test_all_bytes_arrive_as_they_are(open_one: Open) -> None:
    bus, publisher, listener = open_one(), open_one(), Heard()
    await bus.subscribe(ALICE, listener)

    await publisher.publish([news(1, size=300_000)])
    await publisher.publish([news((1 << 53) - 1)])

    await listener.has((1 << 53) - 1)
    assert {len(body) for _, version, body, _ in listener.packets if version == 1} == {300_013}
    assert not any(asks for _, _, _, asks in listener.packets)


async def test_it_says_how_many_listen_and_is_sure_when_nobody_does(open_one: Open) -> None:
    bus, publisher, listener = open_one(), open_one(), Heard()
    await bus.subscribe(ALICE, listener)

    [alice, bob] = await publisher.publish([news(1), news(1, BOB)])

    assert alice > 0
    assert bob == 0
    bus.unsubscribe(ALICE, listener)

    async def nobody() -> bool:
        return await publisher.publish([news(2)]) == [0]

    await until(nobody, "nobody listens")


async def test_listeners_that_have_no_device_do_not_count_in_their_own_process(open_one: Open) -> None:
    bus, listener = open_one(), Heard(devices=0)
    await bus.subscribe(ALICE, listener)

    assert await bus.publish([news(1)]) == [0]
    await listener.has(1)


async def test_publishing_nothing_is_nothing(open_one: Open) -> None:
    assert await open_one().publish([]) == []


async def test_whoever_subscribed_hears_only_its_own_client(open_one: Open) -> None:
    bus, publisher, listener = open_one(), open_one(), Heard()
    await bus.subscribe(BOB, listener)

    await publisher.publish([news(1), news(2, BOB)])

    await listener.has(2, BOB)
    assert listener.versions(ALICE) == []


async def test_of_two_listeners_of_a_process_the_other_goes_on_hearing(open_one: Open) -> None:
    bus, publisher, leaves, stays = open_one(), open_one(), Heard(), Heard()
    await bus.subscribe(ALICE, leaves)
    await bus.subscribe(ALICE, stays)
    await bus.subscribe(ALICE, stays)

    bus.unsubscribe(ALICE, leaves)
    bus.unsubscribe(ALICE, leaves)
    await publisher.publish([news(1)])

    await stays.has(1)
    assert leaves.packets == []
    assert len(stays.packets) == 1


async def test_unsubscribing_and_subscribing_at_once_is_being_subscribed(open_one: Open) -> None:
    bus, publisher, listener = open_one(), open_one(), Heard()
    for version in range(1, 30):
        await bus.subscribe(ALICE, listener)
        await publisher.publish([news(version)])
        await listener.has(version)
        bus.unsubscribe(ALICE, listener)


async def test_hundreds_of_clients_are_subscribed_together(open_one: Open) -> None:
    bus, publisher, listener = open_one(), open_one(), Heard()
    clients = [ClientId(f"client-{number}") for number in range(300)]
    for client_id in clients:
        await bus.subscribe(client_id, listener)

    heard = await publisher.publish([news(5, client_id) for client_id in clients])

    assert min(heard) > 0
    for client_id in clients:
        await listener.has(5, client_id)


@pytest.mark.parametrize(
    "meant",
    [
        logged_out(),
        logged_out(device_id="a-phone"),
        Dismissal(ALICE, DeviceId("a-phone"), Cause.DISPLACED, 1_700_000_000_000 << 20),
        Dismissal(ALICE, None, Cause.SENT_BACK),
    ],
    ids=["the whole client", "one device", "displaced", "sent back"],
)
async def test_a_dismissal_reaches_every_process(open_one: Open, meant: Dismissal) -> None:
    one, other, asking = open_one(), open_one(), open_one()
    here, there = Heard(), Heard()
    await one.subscribe(ALICE, here)
    await other.subscribe(ALICE, there)

    await asking.dismiss(meant)

    for listener in (here, there):

        async def told(listener: Heard = listener) -> bool:
            return meant in listener.dismissals

        await until(told, "the dismissal arrives")
        assert set(listener.dismissals) == {meant}


async def test_a_kick_is_taken_by_one_worker(open_one: Open) -> None:
    kicking, taken = open_one(), list[Kick]()
    open_one().on_kick(taken.append)
    kicks = [Kick(ALICE), Kick(BOB, DeviceId("a-phone"))]

    async def kicked() -> bool:  # a worker that has only just begun may miss one
        for kick in kicks:
            await kicking.kick(kick)
        return set(kicks) <= set(taken)

    await until(kicked, "the kicks are taken")


async def test_what_is_told_reaches_every_process_that_hears_of_it(open_one: Open) -> None:
    telling, hearing = open_one(), open_one()
    told, other = list[bytes](), list[bytes]()
    await telling.hear("weather", told.append)
    await hearing.hear("weather", told.append)
    await hearing.hear("traffic", other.append)

    processes = await telling.tell("weather", b"rain\n")

    async def all_told() -> bool:
        return told == [b"rain\n"] * 2

    await until(all_told, "both are told")
    assert processes == len({telling, hearing})
    assert not other


async def test_what_nobody_hears_of_is_told_to_none(open_one: Open) -> None:
    assert await open_one().tell("weather", b"rain") == 0


async def test_whoever_hears_no_more_is_told_no_more(open_one: Open) -> None:
    one, other = open_one(), open_one()
    told, gone = list[bytes](), list[bytes]()
    await one.hear("weather", gone.append)
    await one.hear("weather", told.append)
    one.hear_no_more("weather", gone.append)
    one.hear_no_more("weather", gone.append)
    await other.tell("weather", b"rain")

    async def all_told() -> bool:
        return told == [b"rain"]

    await until(all_told, "the other one is told")
    one.hear_no_more("weather", told.append)

    async def to_nobody() -> bool:
        return await other.tell("weather", b"sun") == 0

    await until(to_nobody, "nobody hears of it any more")
    assert (told[0], gone) == (b"rain", [])


async def test_an_unknown_bus_is_refused() -> None:
    for text in ("kafka://x", "redis://", "redis://h/one", "redis://a,b", "redis+cluster://a/1", "redis://h?x=1"):
        with pytest.raises(ValueError, match=r"must|has a parameter"):
            open_bus(text, Metrics())

"""Commands for Redis: URLs, batches, timeouts, connections that break, TLS and passwords, redirections of a cluster."""

import asyncio
import random
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from storage import redis_client as module
from storage import redis_connection, redis_node
from storage.redis_client import RedisClient, Script
from storage.redis_connection import RedisConnection, RedisRefusal, RedisUnavailable
from storage.redis_node import REST_S, RedisNode
from storage.redis_url import Address, RedisUrl
from tests.redis_servers import RedisCluster, RedisServer, free_port, fresh, proxy, redis_server
from tests.running import until, within

pytestmark = pytest.mark.usefixtures("short_rests")

TIMEOUT_S = 0.4


@asynccontextmanager
async def opened(url: str, *, timeout_s: float = 10) -> AsyncIterator[RedisClient]:
    client = RedisClient(RedisUrl.parse(url), timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of something that is no Redis server."""
    port = free_port()
    listener = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        listener.close()


def reads(server: RedisServer) -> int:
    """How often the server found something to read."""
    return int(server.ask("INFO", "stats").split(b"total_reads_processed:")[1].split()[0])


async def answers(client: RedisClient) -> bool:
    try:
        return bool(await client.run(b"x", "PING") == b"PONG")
    except RedisUnavailable:
        return False


def again(client: RedisClient) -> Awaitable[None]:
    return until(lambda: answers(client), "it answers again")


# --- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", RedisUrl((Address("host", 6379),))),
        ("redis://host:1/", RedisUrl((Address("host", 1),))),
        ("redis://host/3", RedisUrl((Address("host", 6379),), db=3)),
        ("redis://[::1]:7", RedisUrl((Address("::1", 7),))),
        ("redis://:p%40ss@host", RedisUrl((Address("host", 6379),), password="p@ss")),
        ("rediss://me:pass@host", RedisUrl((Address("host", 6379),), tls=True, user="me", password="pass")),
        ("rediss://host?ca=/etc/ca.pem", RedisUrl((Address("host", 6379),), tls=True, ca_file="/etc/ca.pem")),
        ("redis://host?prefix=a.b:", RedisUrl((Address("host", 6379),), prefix="a.b:")),
        ("redis+cluster://a:1,b:2", RedisUrl((Address("a", 1), Address("b", 2)), cluster=True)),
        ("rediss+cluster://a", RedisUrl((Address("a", 6379),), cluster=True, tls=True)),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: RedisUrl) -> None:
    assert RedisUrl.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis:", "must be redis://host:port/db"),
        ("http://:secret@host", "must be redis://host:port/db"),
        ("redis://:secret@host/db", "must be redis://host:port/db"),
        ("redis://:secret@host:0", "must name a host and a port"),
        ("redis://:secret@host:65536", "must name a host and a port"),
        ("redis://:secret@ho st", "must name a host and a port"),
        ("redis://:secret@a,b", "must name one server"),
        ("redis+cluster://:secret@a/1", "must name no database"),
        ("redis://:secret@host?timeout=3", "a parameter that means nothing: timeout"),
        ("redis://:secret@host?ca=/a", "a parameter that means nothing: ca"),
        ("redis://:secret@host?prefix=", "must have a prefix"),
        ("redis://:secret@host?prefix={a}", "must have a prefix"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        RedisUrl.parse(url)
    assert "secret" not in str(refused.value)


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(RedisUrl.parse("redis://me:secret@host"))


def test_an_address_is_written_as_in_a_url() -> None:
    assert [str(Address("host", 1)), str(Address("::1", 2))] == ["host:1", "[::1]:2"]


# --- One server


async def test_each_caller_gets_the_answer_to_its_command(redis: RedisServer) -> None:
    async with opened(redis.url) as client:
        answered = await asyncio.gather(*(client.run(b"x", "ECHO", number) for number in range(1000)))
        assert answered == [b"%d" % number for number in range(1000)]


async def test_commands_of_one_turn_go_out_in_one_write(server: RedisServer) -> None:
    async with opened(server.url) as client:
        await client.run(b"x", "PING")
        before = reads(server)
        await asyncio.gather(*(client.run(b"x", "ECHO", number) for number in range(200)))
        # Two of them are the questions how many there were.
        assert reads(server) - before < 10


async def test_commands_are_done_in_the_order_in_which_they_were_asked_for(redis: RedisServer) -> None:
    key = fresh("").encode()
    async with opened(redis.url) as client:
        pushes = []
        for number in range(100):
            pushes.append(asyncio.create_task(client.run(key, "RPUSH", key, number)))
            if number % 7 == 0:
                await asyncio.sleep(0)
        assert await asyncio.gather(*pushes) == list(range(1, 101))
        assert await client.run(key, "LRANGE", key, 0, -1) == [b"%d" % number for number in range(100)]


async def test_what_the_server_refuses_is_an_error_of_that_command_alone(redis: RedisServer) -> None:
    async with opened(redis.url) as client:
        good, bad, after = await client.run_all([(b"x", ("PING",)), (b"x", ("NONSENSE",)), (b"x", ("PING",))])
        assert (good, after) == (b"PONG", b"PONG")
        assert isinstance(bad, RedisRefusal)
        assert (bad.kind, "NONSENSE" in str(bad)) == ("ERR", True)
        with pytest.raises(RedisRefusal, match="unknown command"):
            await client.run(b"x", "NONSENSE")


async def test_callers_that_were_cancelled_do_not_disturb_the_others(redis: RedisServer) -> None:
    async with opened(redis.url) as client:
        asking = [asyncio.create_task(client.run(b"x", "ECHO", number)) for number in range(60)]
        await asyncio.sleep(0)
        for task in asking[::3]:
            task.cancel()
        await asyncio.sleep(0)
        for task in asking[1::3]:
            task.cancel()
        answered = await asyncio.gather(*asking, return_exceptions=True)
        assert answered[2::3] == [b"%d" % number for number in range(2, 60, 3)]
        assert await client.run(b"x", "ECHO", "after") == b"after"


async def test_beyond_so_many_commands_the_server_counts_as_gone(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_node, "MOST_WAITING", 10)
    async with opened(server.url) as client:
        await client.run(b"x", "PING")
        server.freeze()
        asking = [asyncio.create_task(client.run(b"x", "ECHO", number)) for number in range(6)]
        await asyncio.wait(asking, timeout=0.02)  # they are sent
        asking += [asyncio.create_task(client.run(b"x", "ECHO", number)) for number in range(6, 25)]
        done, waiting = await asyncio.wait(asking, timeout=0.1)
        assert (done, waiting) == (set(asking[10:]), set(asking[:10]))
        assert {str(task.exception()) for task in done} == {f"127.0.0.1:{server.port}: too many commands are under way"}
        server.thaw()
        assert await asyncio.gather(*asking[:10]) == [b"%d" % number for number in range(10)]
        assert await client.run(b"x", "ECHO", "after") == b"after"


async def test_beyond_so_many_bytes_the_server_counts_as_gone(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_node, "MOST_WAITING_BYTES", 10_000)
    async with opened(server.url) as client:
        asking = [asyncio.create_task(client.run(b"x", "ECHO", b"x" * 1000)) for number in range(25)]
        answered = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(answer, bytes) for answer in answered] == [True] * 10 + [False] * 15
        assert await client.run(b"x", "ECHO", "after") == b"after"


async def test_what_a_server_does_not_read_waits_here_and_is_sent_later(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "MOST_UNSENT", 100_000)
    async with opened(server.url, timeout_s=10) as client:
        await client.run(b"x", "PING")
        [node] = client._nodes.values()
        server.freeze()
        asking: list[asyncio.Task[bytes]] = []
        while not (node._connection and node._connection.paused):
            asking.append(asyncio.create_task(client.run(b"x", "ECHO", b"%d" % len(asking) * 20_000)))
            await asyncio.sleep(0)
        asking += [asyncio.create_task(client.run(b"x", "ECHO", number)) for number in range(50)]
        for _ in range(3):  # they are asked for, and would be sent
            await asyncio.sleep(0)
        assert len(node._waiting) >= 50
        server.thaw()
        answered = await within(asyncio.gather(*asking))
        assert answered[-50:] == [b"%d" % number for number in range(50)]
        assert answered[:-50] == [b"%d" % number * 20_000 for number in range(len(asking) - 50)]


async def test_a_frozen_server_is_given_up_and_what_waits_is_told(server: RedisServer) -> None:
    async with opened(server.url, timeout_s=TIMEOUT_S) as client:
        await client.run(b"x", "PING")
        server.freeze()
        began_s = time.monotonic()
        with pytest.raises(RedisUnavailable, match=r"no answer within 0\.4 s"):
            await client.run(b"x", "PING")
        assert TIMEOUT_S <= time.monotonic() - began_s < TIMEOUT_S + 0.5
        server.thaw()
        await again(client)


async def test_a_loop_that_is_late_does_not_take_the_server_for_silent(redis: RedisServer) -> None:
    async with opened(redis.url, timeout_s=0.1) as client:
        await client.run(b"x", "PING")
        for _ in range(3):
            asking = asyncio.create_task(client.run(b"x", "ECHO", "late"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # it is written
            time.sleep(0.15)  # noqa: ASYNC251 - nothing runs in this loop
            assert await asking == b"late"


async def test_a_server_that_failed_is_asked_nothing_for_a_while(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_node, "REST_S", REST_S)
    async with opened(server.url) as client:
        server.kill()
        with pytest.raises(RedisUnavailable):
            await client.run(b"x", "PING")
        failed_s = time.monotonic()
        server.start()
        while time.monotonic() < failed_s + REST_S / 2:
            with pytest.raises(RedisUnavailable):
                await client.run(b"x", "PING")
            await asyncio.sleep(0.01)
        assert server.ask("INFO", "commandstats").count(b"cmdstat_ping") == 1  # `start` asks so
        await again(client)
        assert time.monotonic() >= failed_s + REST_S - 0.05


async def test_commands_whose_connection_was_cut_are_repeated_once(server: RedisServer) -> None:
    async with proxy(server.port) as between, opened(between.url) as client:
        await client.run(b"x", "PING")
        between.withhold(b"INCR")
        asked = [client.run(b"n", "INCR", "n"), client.run(b"x", "ECHO", "beside it")]
        assert await asyncio.gather(*asked) == [2, b"beside it"]
        assert between.connections == 2

        async def withhold_again() -> None:
            between.withhold(b"INCR")

        between.withhold(b"INCR", meanwhile=withhold_again)
        with pytest.raises(RedisUnavailable):
            await client.run(b"n", "INCR", "n")
        assert server.ask("GET", "n") == b"4"


async def test_a_connection_that_the_server_closed_while_idle_is_replaced(server: RedisServer) -> None:
    async with opened(server.url) as client:
        await client.run(b"x", "PING")
        server.cut("normal")
        assert await client.run(b"x", "PING") == b"PONG"


async def test_a_server_that_hangs_up_at_once_is_not_tried_for_ever() -> None:
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with listening(hang_up) as url, opened(url) as client:
        with pytest.raises(RedisUnavailable):
            await within(client.run(b"x", "PING"))
        assert connections in {1, 2}


@pytest.mark.parametrize("answer", [b"", b"+OK\r\n"], ids=["without an answer", "after the answer"])
async def test_a_server_that_hangs_up_at_the_greeting_is_not_waited_for(answer: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    async with listening(greet) as url, opened(url.replace("//", "//:secret@")) as client:
        with pytest.raises(RedisUnavailable, match=r"closed the connection|reset"):
            await within(client.run(b"x", "PING"), 5)


async def test_a_connection_that_was_lost_before_it_was_greeted_is_none(redis: RedisServer) -> None:
    def make() -> RedisConnection:
        return RedisConnection(answered=lambda: None, resumed=lambda: None, lost=lambda _, __: None)

    transport, connection = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", redis.port)
    transport.abort()
    with pytest.raises(ConnectionResetError):
        await connection.greet(RedisUrl.parse(redis.url))


async def test_what_is_no_redis_server_is_unavailable() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with listening(serve) as url, opened(url) as client:
        with pytest.raises(RedisUnavailable, match="not a Redis server"):
            await within(client.run(b"x", "PING"))


async def test_a_server_that_does_not_answer_the_greeting_is_given_up() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # to the end
        writer.close()
        ended.set()

    async with listening(serve) as url, opened(url.replace("//", "//:secret@"), timeout_s=TIMEOUT_S) as client:
        with pytest.raises(RedisUnavailable, match=r"no (connection|answer) within 0\.4 s"):
            await within(client.run(b"x", "PING"))
        await within(ended.wait())


async def test_closing_waits_for_what_was_asked_for_and_refuses_what_comes(redis: RedisServer) -> None:
    client = RedisClient(RedisUrl.parse(redis.url), timeout_s=10)
    asking = [asyncio.create_task(client.run(b"x", "ECHO", number)) for number in range(30)]
    await asyncio.sleep(0)
    await client.close()
    assert await asyncio.gather(*asking) == [b"%d" % number for number in range(30)]
    with pytest.raises(RedisUnavailable, match="closed"):
        await client.run(b"x", "PING")
    await client.close()


async def test_closing_takes_no_longer_than_a_frozen_server_may_take(server: RedisServer) -> None:
    async with opened(server.url, timeout_s=TIMEOUT_S) as client:
        await client.run(b"x", "PING")
        server.freeze()
        asking = asyncio.create_task(client.run(b"x", "PING"))
        await asyncio.sleep(0)
    with pytest.raises(RedisUnavailable):
        await asking


async def test_a_script_is_taught_once_and_then_called_by_its_name(server: RedisServer) -> None:
    script = Script.of("return {KEYS[1], ARGV[1]}")
    async with opened(server.url) as client:
        for number in range(5):
            assert await client.run_script(script, [b"k"], number) == [b"k", b"%d" % number]
    assert (server.calls("eval"), server.calls("evalsha")) == (1, 5)


async def test_what_is_posted_is_done_though_the_server_does_not_know_the_script(server: RedisServer) -> None:
    script = Script.of("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    async with opened(server.url) as client:
        for number in range(5):
            client.post_script(script, [b"n"], 10**number)
        client.post(b"m", "INCR", "m")
        await until(lambda: _is(client, b"n", b"11111"), "all were done")
        await until(lambda: _is(client, b"m", b"1"), "it was done")


async def _is(client: RedisClient, key: bytes, value: bytes) -> bool:
    return bool(await client.run(key, "GET", key) == value)


async def test_what_is_posted_to_a_server_that_is_down_is_forgotten(server: RedisServer) -> None:
    script = Script.of("return redis.call('INCR', KEYS[1])")
    async with opened(server.url) as client:
        server.kill()
        client.post_script(script, [b"n"])
        with pytest.raises(RedisUnavailable):
            await client.run(b"x", "PING")
        client.post_script(script, [b"n"])
        server.start()
        await again(client)
        assert await client.run(b"n", "GET", "n") is None
    client.post_script(script, [b"n"])


# --- Who we are


async def test_the_user_the_password_and_the_database_are_said_to_every_connection(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "gateway", "on", ">p@ss/word", "~*", "+@all")
    async with opened(f"redis://gateway:p%40ss%2Fword@127.0.0.1:{server.port}/5") as client:
        for _ in range(2):
            assert await client.run(b"x", "ACL", "WHOAMI") == b"gateway"
            assert b"db=5" in await client.run(b"x", "CLIENT", "INFO")
            server.cut("normal")


@pytest.mark.parametrize("given", ["gateway:wrong", ":wrong"])
async def test_a_wrong_password_is_unavailable_and_commands_are_not_sent_without_it(
    server: RedisServer, given: str
) -> None:
    """The user of those who say nothing may do everything here."""
    async with opened(f"redis://{given}@127.0.0.1:{server.port}") as client:
        with pytest.raises(RedisUnavailable, match=r"WRONGPASS|without any password configured") as refused:
            await client.run(b"n", "INCR", "n")
        assert "wrong@" not in str(refused.value)
        assert server.ask("GET", "n") is None


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, `ca.crt`, and a server's certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    new = [
        "openssl",
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-x509",
    ]
    by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    for name, subject, options in (
        ("ca", "/CN=authority", []),
        ("server", "/CN=server", [*by, "-addext", "subjectAltName=IP:127.0.0.1"]),
    ):
        command = [*new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", subject, *options]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


async def test_tls_by_an_authority_of_ones_own(tmp_path: Path, certificates: Path) -> None:
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", f"{certificates}/ca.crt"]
    options += ["--tls-cert-file", f"{certificates}/server.crt", "--tls-key-file", f"{certificates}/server.key"]
    with redis_server(tmp_path, *options):
        async with opened(f"rediss://127.0.0.1:{port}?ca={certificates}/ca.crt") as client:
            assert await client.run(b"x", "ECHO", b"x" * 300_000) == b"x" * 300_000
        async with opened(f"rediss://localhost:{port}?ca={certificates}/ca.crt") as client:
            with pytest.raises(RedisUnavailable, match="mismatch"):
                await client.run(b"x", "PING")
        async with opened(f"rediss://127.0.0.1:{port}") as client:
            with pytest.raises(RedisUnavailable, match=r"self[- ]signed"):
                await client.run(b"x", "PING")
        async with opened(f"redis://127.0.0.1:{port}") as client:
            with pytest.raises(RedisUnavailable):
                await client.run(b"x", "PING")


def test_an_authority_that_cannot_be_read_is_a_value_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", Path(__file__)):
        with pytest.raises(ValueError, match="names a certificate authority that cannot be read"):
            RedisClient(RedisUrl.parse(f"rediss://host?ca={path}"), timeout_s=1)


# --- Clusters


@pytest.mark.parametrize("seed", range(3))
def test_a_key_is_in_the_slot_that_redis_says(seed: int) -> None:
    dice = random.Random(seed)
    keys = [bytes(dice.choices(b"{}ab:", k=dice.randrange(12))) for _ in range(2000)]
    assert [module._slot(key) for key in keys] == [key_slot(key) for key in keys]


async def test_commands_go_to_the_servers_that_have_the_keys(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url) as client:
        before = sum(server.errors("MOVED") for server in redis_cluster.servers)
        keys = [b"spread:%d" % number for number in range(50)]
        assert await client.run_all((key, ("SET", key, key)) for key in keys) == [b"OK"] * 50
        assert {client.home(key) for key in keys} == set(await client.servers())
        assert sum(server.errors("MOVED") for server in redis_cluster.servers) == before
        for key in keys:
            assert redis_cluster.owner(key).ask("GET", key) == key
            assert client.home(key) == Address("127.0.0.1", redis_cluster.owner(key).port)


async def test_the_map_is_had_from_whichever_server_answers(redis_cluster: RedisCluster) -> None:
    nobody = f"redis+cluster://127.0.0.1:{free_port()},"
    async with opened(redis_cluster.url.replace("redis+cluster://", nobody)) as client:
        assert await client.run(b"x", "SET", b"x", 1) == b"OK"
    async with opened(nobody.rstrip(",")) as client:
        assert client.home(b"x") is None
        with pytest.raises(RedisUnavailable):
            await client.run(b"x", "GET", b"x")
        await client.refresh()
        client.post(b"x", "INCR", b"x")


async def test_a_slot_that_moved_is_followed_and_remembered(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url) as client:
        moves: list[Address | None] = []
        await client.run(b"{away}", "SET", "{away}", 1)
        client.moved = lambda: moves.append(client.home(b"{away}"))
        source = redis_cluster.owner(b"{away}")
        target = redis_cluster.move_slot(b"{away}")
        before = source.errors("MOVED")
        answered = await asyncio.gather(*(client.run(b"{away}", "INCR", "{away}") for _ in range(20)))
        assert sorted(answered) == list(range(2, 22))
        assert moves
        assert set(moves) == {Address("127.0.0.1", target.port)}
        assert source.errors("MOVED") == before + 20
        assert await client.run(b"{away}", "INCR", "{away}") == 22
        assert source.errors("MOVED") == before + 20


async def test_a_key_that_moved_before_its_slot_did_is_asked_for_where_it_is(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url) as client:
        await client.run(b"{ask}1", "SET", "{ask}1", "here")
        with redis_cluster.moving_slot(b"{ask}") as (source, target):
            home = client.home(b"{ask}")
            # What is not there yet is made where the slot is going.
            assert await client.run(b"{ask}2", "SET", "{ask}2", "there") == b"OK"
            assert target.ask("CLUSTER", "COUNTKEYSINSLOT", key_slot(b"{ask}")) == 1
            got = await client.run_all((key, ("GET", key)) for key in (b"{ask}1", b"{ask}2", b"{ask}1"))
            assert got == [b"here", b"there", b"here"]
            assert client.home(b"{ask}") == home
            source.ask("MIGRATE", "127.0.0.1", target.port, "{ask}1", 0, 5000)
        assert await client.run(b"{ask}1", "GET", "{ask}1") == b"here"


async def test_half_of_the_keys_have_moved_for_too_long(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url, timeout_s=0.2) as client:
        await client.run(b"{half}", "MSET", "{half}1", 1, "{half}2", 2)
        with redis_cluster.moving_slot(b"{half}") as (source, target):
            source.ask("MIGRATE", "127.0.0.1", target.port, "{half}1", 0, 5000)
            with pytest.raises(RedisRefusal, match="TRYAGAIN"):
                await client.run(b"{half}", "MGET", "{half}1", "{half}2")
            source.ask("MIGRATE", "127.0.0.1", target.port, "{half}2", 0, 5000)
        assert await client.run(b"{half}", "MGET", "{half}1", "{half}2") == [b"1", b"2"]


async def test_of_many_commands_only_those_for_a_server_that_is_gone_fail(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url, timeout_s=TIMEOUT_S) as client:
        keys = [b"some:%d" % number for number in range(60)]
        await client.run_all((key, ("SET", key, key)) for key in keys)
        gone = redis_cluster.servers[1]
        theirs = {key for key in keys if redis_cluster.owner(key) is gone}
        gone.freeze()
        got = await client.run_all((key, ("GET", key)) for key in keys)
        silent = f"127.0.0.1:{gone.port}: no answer within 0.4 s"
        assert [silent if key in theirs else key for key in keys] == [
            str(answer) if isinstance(answer, RedisUnavailable) else answer for answer in got
        ]
        gone.thaw()


async def test_a_cluster_without_all_its_slots_is_unavailable(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        async with opened(server.url.replace("redis:", "redis+cluster:")) as client:
            with pytest.raises(RedisUnavailable, match="does not cover all slots"):
                await client.run(b"x", "GET", "x")


async def test_a_server_that_is_in_no_map_any_more_is_disconnected(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url) as client:
        await client.servers()
        [stranger, *_] = client._nodes
        some: Any = [stranger] * module.SLOTS
        client._take(some)
        assert set(client._nodes) == {stranger}
        await until(lambda: _no_tasks(client), "the others are closed")


async def _no_tasks(client: RedisClient) -> bool:
    return not client._tasks


async def test_a_node_has_one_connection_however_many_ask(server: RedisServer) -> None:
    node = RedisNode(Address("127.0.0.1", server.port), RedisUrl.parse(server.url), timeout_s=10)
    await asyncio.gather(*(node.send(("PING",)) for _ in range(100)))
    assert len(server.clients("normal")) == 1
    await node.close()

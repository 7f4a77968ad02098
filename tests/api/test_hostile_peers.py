"""Peers that mean harm, or are broken, or gone: what they cost is bounded, and nobody else notices."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.frames import Opcode

from gateway.live.connection import Connection
from gateway.server import HttpConnection
from tests.running import (
    App,
    RawSocket,
    Running,
    assert_problem_body,
    handshake,
    masked,
    request,
    running_gateway,
    until,
    within,
)

UNKNOWN_ID = "01234567-89ab-7cde-8f01-23456789abcd"
MESSAGE_BYTES = 16 * 1024
LAST_VERSION = 2**63 - 1
SMALL = 4096
"""Bytes that the system may buffer for a connection, each way, where a test is about buffers."""


@pytest.fixture(autouse=True)
def no_complaint_of_the_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a peer does, it is no line in the log of an operator who wants warnings."""
    yield
    said = [
        f"{record.name}: {record.getMessage()}"
        for record in caplog.get_records("call")
        if record.levelno >= logging.WARNING and record.name.startswith(("asyncio", "gateway", "uvicorn"))
    ]
    assert not said


@pytest.fixture
def gateway(tmp_path: Path) -> Callable[..., Any]:
    """A gateway of the test's own, which leaves nothing behind."""

    @asynccontextmanager
    async def started(*, buffers: int | None = None, **given: Any) -> AsyncIterator[Running]:
        async with running_gateway(tmp_path, **given) as gw:
            if buffers is not None:
                shrink(gw, buffers)
            yield gw
            await nothing_is_left(gw)

    return started


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of HTTP connections and the answers to closes are waited for briefly."""
    for name, value in (("HEAD_S", 0.2), ("UNREAD_S", 0.3), ("TURN_S", 0.05)):
        monkeypatch.setattr(f"gateway.server.{name}", value)
    monkeypatch.setattr("gateway.live.wheel.TICK_S", 0.02)
    monkeypatch.setattr("gateway.live.connection.SILENT_CLOSE_S", 0.2)


@pytest.fixture
def idle_briefly(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """Idle connections are let go soon as well. Not where the test's own client keeps some: a request of its could meet
    the end of one."""
    monkeypatch.setattr("gateway.server.KEEP_ALIVE_S", 0.5)


def shrink(gw: Running, size: int) -> None:
    """What the system buffers for connections that are accepted from now on."""
    for server in gw.server.servers:
        for listening in server.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
                same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


async def nothing_is_left(gw: Running) -> None:
    await gw.nobody_left()
    await only_ours_are_left(gw)


async def only_ours_are_left(gw: Running) -> None:
    """Return when the server has no connections but those that the test's own client keeps, and works on nothing."""
    state, pool = gw.server.server_state, gw.http._transport._pool  # type: ignore[attr-defined]

    async def are() -> bool:
        return len(state.connections) <= len(pool.connections) and not state.tasks

    await until(are, "only the connections of the test's client are left")


@asynccontextmanager
async def others_served(gw: Running) -> AsyncIterator[None]:
    """Meanwhile others are served as fast as ever: calls are answered, packets come."""
    sender, recipient = gw.app(gw.fresh("sender")), gw.app(gw.fresh("recipient"))
    loop, over, times_s, work_s = asyncio.get_running_loop(), asyncio.Event(), list[float](), list[float]()

    async def use() -> None:
        async with recipient.socket() as socket:
            await socket.packet()
            while not over.is_set() or len(times_s) < 3:
                begun_s, worked_s = loop.time(), time.process_time()
                video_id = await sender.send(recipient.client_id)
                while [video["video_id"] for video in (await socket.packet())["incoming"]] != [video_id]:
                    pass
                times_s.append(loop.time() - begun_s)
                work_s.append(time.process_time() - worked_s)

    using = asyncio.create_task(use())
    try:
        yield
    finally:
        over.set()
        await within(using, 20)
    # What is done for others in between is counted as CPU, which tests that run beside these take nothing from.
    assert max(work_s) < 1
    assert max(times_s) < 3


def held_by(gw: Running, app: App) -> tuple[int, int]:
    """Bytes that the gateway has in store for this client's socket: on its way, and waiting."""
    [session] = gw.sockets_of(app)
    connection = session._connection
    return connection._transport.get_write_buffer_size(), len(connection._waiting or b"")


async def gone(gw: Running, app: App, seconds: float = 10) -> None:
    async def is_gone() -> bool:
        return not gw.sockets_of(app)

    await until(is_gone, "the socket is gone", seconds)


async def correspondents(gw: Running, app: App, number: int) -> list[App]:
    """So many clients who have each sent a video to this one: its packets are not small."""
    senders = [gw.app(gw.fresh("s" * 60)) for _ in range(number)]
    await asyncio.gather(*(sender.send(app.client_id) for sender in senders))
    return senders


# --- Peers that do not read


async def test_a_peer_that_never_reads_costs_two_packets_and_gets_the_newest_once_it_reads(
    gateway: Callable[..., Any],
) -> None:
    async with gateway(buffers=SMALL) as gw:
        bob = gw.app("bob")
        senders = await correspondents(gw, bob, 10)
        async with gw.raw_socket(bob, buffers=SMALL) as raw, others_served(gw):
            most = len((await bob.poll()).content) + 4
            published = 0
            for _ in range(4):
                for sender in senders:
                    await sender.send(bob.client_id)
                    published += 1
                    on_its_way, waiting = held_by(gw, bob)
                    assert on_its_way <= most
                    assert waiting <= most
            assert held_by(gw, bob)[1] > 0
            assert await gw.metric("gateway_packets_skipped_total") > 0
            newest = (await bob.poll()).content
            received = 0
            while (await raw.next())[1] != newest:
                received += 1
            assert received < published
            assert held_by(gw, bob) == (0, 0)


async def test_a_peer_that_reads_a_byte_at_a_time_gets_whole_packets_and_the_newest(
    gateway: Callable[..., Any],
) -> None:
    async with gateway(buffers=SMALL) as gw:
        bob = gw.app("bob")
        senders = await correspondents(gw, bob, 4)
        async with gw.raw_socket(bob, buffers=SMALL) as raw, others_served(gw):
            for sender in senders * 3:
                await sender.send(bob.client_id)
            newest = (await bob.poll()).content
            read = bytearray()
            while not read.endswith(newest):
                read += await raw.read(1)
            versions = []
            while read:
                size = int.from_bytes(read[2:4]) if read[1] == 126 else read[1]
                begin = 4 if read[1] == 126 else 2
                versions.append(orjson.loads(read[begin : begin + size])["version"])
                del read[: begin + size]
            assert versions == sorted(set(versions))


@pytest.mark.parametrize("full", [False, True])
async def test_a_peer_that_neither_reads_nor_answers_pings_is_gone_soon(
    gateway: Callable[..., Any], impatient: None, full: bool
) -> None:
    async with gateway(buffers=SMALL, PING_S="1", PONG_S="0.3") as gw:
        bob = gw.app("bob")
        senders = await correspondents(gw, bob, 10) if full else []
        async with gw.raw_socket(bob, buffers=SMALL), others_served(gw):
            for sender in senders:
                await sender.send(bob.client_id)
                if held_by(gw, bob)[1] > 0:
                    break
            assert (held_by(gw, bob)[0] > 0) == full
            await gone(gw, bob, 6)
            assert await gw.metric('gateway_sockets_closed_total{code="4408"}') == 1


async def test_a_peer_is_kept_as_long_as_it_answers_pings(gateway: Callable[..., Any], impatient: None) -> None:
    async with gateway(PING_S="0.3", PONG_S="0.3") as gw:
        bob = gw.app("bob")
        async with gw.raw_socket(bob) as raw:
            for _ in range(3):
                while (found := await raw.next())[0] is not Opcode.PING:
                    pass
                await raw.frame(Opcode.PONG, found[1])
            assert len(gw.sockets_of(bob)) == 1
            assert await raw.closed() == (4408, "no pong in time")
            await raw.over()


async def test_a_peer_that_asks_but_does_not_read_the_answers_is_not_read_from(gateway: Callable[..., Any]) -> None:
    asked = 20_000
    async with gateway(buffers=SMALL) as gw:
        bob = gw.app("bob")
        data = b"".join(status(number) for number in range(asked))
        async with gw.raw_socket(bob, buffers=SMALL) as raw, others_served(gw):
            asking = asyncio.create_task(raw.send(data))
            [session] = gw.sockets_of(bob)
            most = waited = 0

            async def stands_still() -> bool:
                nonlocal most, waited
                most, waited = max(most, held_by(gw, bob)[0]), max(waited, len(session._waiting or ()))
                return session._connection._held and not session._working and not session._waiting

            await until(stands_still, "it is not read from")
            assert not asking.done()
            assert not session._connection._transport.is_reading()
            for number in range(asked):
                while (found := orjson.loads((await raw.next())[1]))["type"] == "info":
                    pass
                assert found["id"] == number
                if number % 500 == 0:
                    await stands_still()
            await asking
            assert most < 512 * 1024
            assert waited < 4096


def status(number: int) -> bytes:
    """A message that is answered `ignored`."""
    return masked(
        Opcode.TEXT, b'{"type":"status","id":%d,"video_id":"%b","status":"viewed"}' % (number, UNKNOWN_ID.encode())
    )


async def test_an_http_peer_that_does_not_read_its_answer_is_cut(gateway: Callable[..., Any], impatient: None) -> None:
    async with gateway(buffers=SMALL) as gw:
        alice, data = gw.app("alice"), os.urandom(1_000_000)
        url = await alice.content_url(await alice.send("bob", data))
        async with gw.tcp(buffers=SMALL) as raw, others_served(gw):
            await raw.send(request(f"GET {url.removeprefix(gw.url)} HTTP/1.1"))
            await begun(gw)
            await only_ours_are_left(gw)
        async with gw.tcp(buffers=SMALL) as raw:  # one that reads slowly is not
            await raw.send(request(f"GET {url.removeprefix(gw.url)} HTTP/1.1"))
            answer = await raw.head()
            assert answer.body == data


async def begun(gw: Running) -> None:
    async def works() -> bool:
        return bool(gw.server.server_state.tasks)

    await until(works, "a call is worked on")


# --- Half a request


PARTS = {
    "a byte": b"G",
    "half a head": b"GET /v1/ws?device_id=phone HTTP/1.1\r\nHost: x\r\n",
    "half a handshake": handshake("/v1/ws?device_id=phone")[:-2],
}


@pytest.mark.parametrize("what", ["nothing", *PARTS])
async def test_a_head_that_does_not_arrive_in_time_is_answered_408(
    gateway: Callable[..., Any], impatient: None, what: str
) -> None:
    async with gateway() as gw, gw.tcp() as raw, others_served(gw):
        await raw.send(PARTS.get(what, b""))
        answer = await raw.head()
        assert_problem_body(answer.headers, answer.body, 408, None)
        await raw.over()


@pytest.mark.parametrize("what", PARTS)
async def test_so_is_one_behind_another_request(gateway: Callable[..., Any], impatient: None, what: str) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(request("GET /healthz HTTP/1.1") + PARTS[what])
        assert (await raw.head()).status == 200
        assert (await raw.head()).status == 408
        await raw.over()


NO_HTTP = {
    "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"x" * 160,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": b"\x00" * 100,
    "a frame": masked(Opcode.PING, b"x"),
    "two lengths": b"POST /v1/sync HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_HTTP)
async def test_what_is_no_http_is_answered_400_and_let_go(gateway: Callable[..., Any], what: str) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(NO_HTTP[what])
        assert (await raw.head()).status == 400
        await raw.over()


async def test_a_head_that_drips_is_not_waited_for_any_longer(gateway: Callable[..., Any], impatient: None) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(b"GET /healthz HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                await raw.send(b"x: y\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert (await raw.head()).status == 408
        dripping.cancel()
        await asyncio.wait([dripping])
        with contextlib.suppress(asyncio.CancelledError, OSError):
            dripping.result()


@pytest.mark.parametrize("what", ["a header", "many headers", "a path", "blank lines"])
async def test_a_head_without_an_end_is_answered_431(gateway: Callable[..., Any], what: str) -> None:
    size = 64 * 1024 + 1
    data = {
        "a header": b"GET / HTTP/1.1\r\nx: " + b"y" * size,
        "many headers": b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (size // 6 + 1),
        "a path": b"GET /" + b"x" * size,
        "blank lines": b"\r\n" * (size // 2 + 1),
    }[what]
    async with gateway() as gw:
        async with gw.tcp() as raw, others_served(gw):
            await raw.send(data)
            answer = await raw.head()
            assert_problem_body(answer.headers, answer.body, 431, "too_large")
            await raw.over()
        await only_ours_are_left(gw)


@pytest.mark.parametrize("more", [b"\r\n", b"\r\n\r\n"])
async def test_blank_lines_after_an_answer_do_not_keep_a_connection_for_ever(
    gateway: Callable[..., Any], idle_briefly: None, more: bytes
) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(request("GET /healthz HTTP/1.1"))
        assert (await raw.head()).status == 200
        await raw.send(more)
        await within(raw.over(), 4)


async def test_a_body_that_goes_on_after_its_answer_does_not_keep_a_connection_for_ever(
    gateway: Callable[..., Any], idle_briefly: None
) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(request("POST /v1/videos HTTP/1.1\nContent-Length: 1000000"))
        assert (await raw.head()).status == 401
        await raw.send(b"x")
        await within(raw.over(), 4)


async def test_a_handshake_that_announces_a_body_and_never_sends_it_is_not_waited_for(
    gateway: Callable[..., Any], idle_briefly: None
) -> None:
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(handshake("/v1/ws?device_id=phone", "Content-Length: 1000000"))
        await within(raw.over(), 4)


async def test_a_body_and_half_the_next_head_at_once_are_no_head_that_is_too_large(
    gateway: Callable[..., Any],
) -> None:
    async with gateway() as gw:
        alice, data = gw.app("alice"), os.urandom(100_000)
        announced = await alice.announce("bob", data)
        headers = "\n".join(f"{name}: {value}" for name, value in announced.headers.items())
        put = request(
            f"PUT {announced.url.removeprefix(gw.url)} HTTP/1.1\nContent-Length: {len(data)}\n{headers}".strip()
        )
        async with gw.tcp() as raw:
            await raw.send(put + data + b"GET /healthz HTTP/1.1\r\n")
            assert (await raw.head()).status == 200
            await raw.send(b"Host: x\r\n\r\n")
            assert (await raw.head()).status == 200


# --- Frames around the limits


async def test_ten_thousand_pings_at_once_are_answered_and_cost_little(gateway: Callable[..., Any]) -> None:
    pings = b"".join(masked(Opcode.PING, b"%d" % number) for number in range(10_000))
    async with gateway() as gw:
        bob = gw.app("bob")
        async with gw.raw_socket(bob) as raw, others_served(gw):
            sending = asyncio.create_task(raw.send(pings))
            pongs = list[bytes]()
            while not pongs or pongs[-1] != b"9999":
                opcode, data = await raw.next()
                if opcode is Opcode.PONG:
                    pongs.append(data)
                    assert held_by(gw, bob)[0] < 256 * 1024
            await sending
            assert [int(pong) for pong in pongs] == sorted({int(pong) for pong in pongs})


async def test_a_flood_of_frames_ends_the_socket_by_default(gateway: Callable[..., Any]) -> None:
    empty = masked(Opcode.TEXT, fin=False) + masked(Opcode.CONT, fin=False) * 10_000
    floods = [masked(Opcode.PING) * 10_000, masked(Opcode.PONG) * 10_000, empty, status(1) * 10_000]
    async with gateway(RATE_FRAMES="20/100") as gw, others_served(gw):
        for flood in floods:
            async with gw.raw_socket(gw.app(gw.fresh("bob"))) as raw:
                sending = asyncio.create_task(raw.send(flood))
                assert (await raw.closed())[0] == 4429
                await asyncio.wait([sending])
                with contextlib.suppress(OSError):
                    sending.result()


@pytest.mark.parametrize("size", [0, 1, 2, 124, 125, 126, 127, 128, MESSAGE_BYTES - 1, MESSAGE_BYTES])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_message_of_any_length_up_to_the_limit_is_answered(
    gw: Running, bob: App, size: int, at_once: bool
) -> None:
    data = masked(Opcode.TEXT, b" " * size)
    async with gw.raw_socket(bob) as raw:
        for part in [data] if at_once else [data[:1], data[1:5], data[5:-1], data[-1:]]:
            await raw.send(part)
        while (answer := orjson.loads((await raw.next())[1]))["type"] == "info":
            pass
        assert (answer["type"], answer["code"]) == ("error", "invalid")


@pytest.mark.parametrize("size", [MESSAGE_BYTES + 1, 65_535, 65_536, 2**31, 2**32, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
async def test_a_message_that_says_it_is_longer_is_refused_before_it_comes(
    gw: Running, bob: App, opcode: Opcode, size: int
) -> None:
    length = b"\xfe" + size.to_bytes(2) if size < 65_536 else b"\xff" + size.to_bytes(8)
    async with gw.raw_socket(bob) as raw:
        await raw.send(bytes([0x80 | opcode]) + length)
        assert (await raw.closed())[0] == 1009
        await raw.over()


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
async def test_a_control_frame_has_at_most_125_bytes(gw: Running, bob: App, opcode: Opcode) -> None:
    payload = (b"\x03\xe8" if opcode is Opcode.CLOSE else b"xx") + b"x" * 123
    async with gw.raw_socket(bob) as raw:
        await raw.send(masked(opcode, payload) + masked(Opcode.CLOSE, b"\x03\xe8"))
        assert (await raw.closed())[0] == 1000
    async with gw.raw_socket(bob) as raw:
        await raw.send(bytes([0x80 | opcode]) + b"\xfe\x00\x7e")
        assert (await raw.closed())[0] == 1002
        await raw.over()


async def test_a_message_in_fragments_of_a_byte_is_read_and_one_byte_more_is_too_much(gw: Running, bob: App) -> None:
    byte = masked(Opcode.CONT, b" ", fin=False)
    fragments = masked(Opcode.TEXT, b" ", fin=False) + byte * (MESSAGE_BYTES - 2)
    async with gw.raw_socket(bob) as raw, others_served(gw):
        await raw.send(fragments + masked(Opcode.CONT, b" "))
        while (answer := orjson.loads((await raw.next())[1]))["type"] == "info":
            pass
        assert answer["code"] == "invalid"
        await raw.send(fragments + byte + byte)
        assert (await raw.closed())[0] == 1009
        await raw.over()


async def test_empty_fragments_without_end_cost_nothing(gw: Running, bob: App) -> None:
    empty = masked(Opcode.CONT, fin=False) * 5_000
    async with gw.raw_socket(bob) as raw, others_served(gw):
        await raw.send(masked(Opcode.TEXT, fin=False))
        for _ in range(5):
            await raw.send(empty + masked(Opcode.PING, b"are you there"))
            while (await raw.next()) != (Opcode.PONG, b"are you there"):
                pass
            [session] = gw.sockets_of(bob)
            parser = session._connection._parser
            assert len(parser._fragments.data) == len(parser._rest) == 0
        await raw.send(masked(Opcode.CONT, b"x"))
        assert orjson.loads((await raw.next())[1])["code"] == "invalid"


@pytest.mark.parametrize(
    "fragments",
    [
        [b"\xff"],
        [b"{", b"\xc3\x28"],
        [b"\xe2\x82", b"\x28"],
        [b"\xed\xa0\x80"],
        [b"\xf4\x90\x80\x80"],
        [b"\xc0\xaf"],
    ],
)
async def test_invalid_utf8_is_found_in_the_fragment_in_which_it_comes(
    gw: Running, bob: App, fragments: list[bytes]
) -> None:
    async with gw.raw_socket(bob) as raw:
        for number, fragment in enumerate(fragments):
            await raw.frame(Opcode.CONT if number else Opcode.TEXT, fragment, fin=False)
        assert (await raw.closed())[0] == 1007
        await raw.over()


async def test_a_character_may_be_cut_in_two_by_fragments(gw: Running, bob: App) -> None:
    async with gw.raw_socket(bob) as raw:
        await raw.frame(Opcode.TEXT, b'{"type":"x","id":"\xe2', fin=False)
        await raw.frame(Opcode.PING, b"between")
        await raw.frame(Opcode.CONT, b"\x82", fin=False)
        await raw.frame(Opcode.CONT, b'\xac"}')
        while (found := await raw.next())[0] is Opcode.PONG or b'"info"' in found[1]:
            pass
        assert orjson.loads(found[1])["id"] == "€"


# --- Handshakes that are none


async def test_what_is_sent_before_the_handshake_is_answered_does_no_harm(gw: Running, bob: App) -> None:
    asked = handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}")
    ping = masked(Opcode.PING, b"early")
    async with others_served(gw):
        for parts in ([asked + ping], [asked, ping], [asked, ping[:3], ping[3:]]):
            async with gw.tcp() as raw:
                for part in parts:
                    await raw.send(part)
                assert (await raw.head()).status == 101
                await raw.frame(Opcode.PING, b"late")
                while (await raw.next()) != (Opcode.PONG, b"late"):
                    pass


UPGRADES = ("Upgrade: websocket", "Upgrade: h2c", "Upgrade: TLS/1.3, HTTP/2.0")


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_an_upgrade_elsewhere_is_answered_like_any_other_request(gw: Running, bob: App, upgrade: str) -> None:
    lines = f"Connection: Upgrade\n{upgrade}\nAuthorization: Bearer {bob.token}\nSec-WebSocket-Version: 13"
    async with gw.tcp() as raw:
        for path, expected in (("/healthz", 200), ("/v1/poll", 200), ("/v1/wsx", 404), ("/v1/ws/", 404)):
            await raw.send(request(f"GET {path} HTTP/1.1\n{lines}"))
            assert (await raw.head()).status == expected
        body = b'{"statuses":[]}'
        await raw.send(request(f"POST /v1/sync HTTP/1.1\n{lines}\nContent-Length: {len(body)}") + body)
        assert (await raw.head()).status == 200
        await raw.send(request("GET /healthz HTTP/1.1"))
        assert (await raw.head()).status == 200


async def test_a_connect_is_refused(gw: Running) -> None:
    for line in ("CONNECT example.com:443 HTTP/1.1", "CONNECT / HTTP/1.1", "CONNECT /v1/ws HTTP/1.1"):
        async with gw.tcp() as raw:
            await raw.send(request(line) + b"x" * 1000)
            assert (await raw.head()).status in {400, 404, 405}


async def test_requests_in_a_row_of_which_one_asks_for_an_upgrade_are_all_answered(gw: Running) -> None:
    plain, other = request("GET /healthz HTTP/1.1"), request("GET /healthz HTTP/1.1\nConnection: Upgrade\nUpgrade: h2c")
    async with gw.tcp() as raw:
        await raw.send(plain + other + plain)
        for _ in range(3):
            assert (await raw.head()).status == 200


@pytest.mark.parametrize(
    ("replace", "by", "expected"),
    [
        (b"HTTP/1.1", b"HTTP/1.0", 426),
        (b"GET", b"POST", 405),
        (b"GET", b"PUT", 405),
        (b"GET", b"HEAD", 426),
        (b"Connection: Upgrade\r\n", b"", 426),
        (b"Connection: Upgrade\r\n", b"Connection: keep-alive\r\n", 426),
        (b"Upgrade: websocket\r\n", b"", 426),
        (b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", 426),
    ],
)
async def test_what_is_no_handshake_is_answered_like_a_plain_request(
    gw: Running, bob: App, replace: bytes, by: bytes, expected: int
) -> None:
    asked = handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}")
    async with gw.tcp() as raw:
        await raw.send(asked.replace(replace, by, 1))
        assert (await raw.head_only()).status == expected


@pytest.mark.parametrize(
    ("replace", "by"),
    [
        (b"Upgrade: websocket", b"UPGRADE:   WebSocket  "),
        (b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"),
        (b"Connection: Upgrade", b"connection: keep-alive\r\nConnection: UPGRADE"),
        (b"HTTP/1.1", b"HTTP/1.1\r\nContent-Length: 0"),
    ],
)
async def test_a_handshake_may_be_spelled_otherwise(gw: Running, bob: App, replace: bytes, by: bytes) -> None:
    asked = handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}")
    async with gw.tcp() as raw:
        await raw.send(asked.replace(replace, by, 1))
        assert (await raw.head()).status == 101


async def test_a_handshake_after_other_requests_of_the_connection_opens_a_socket(gw: Running, bob: App) -> None:
    async with gw.tcp() as raw:
        polled = b""
        for _ in range(2):
            await raw.send(request(f"GET /v1/poll HTTP/1.1\nAuthorization: Bearer {bob.token}"))
            polled = (await raw.head()).body
        await raw.send(handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}"))
        assert (await raw.head()).status == 101
        assert (await raw.next())[1] == polled


async def test_a_handshake_behind_a_call_that_is_not_answered_yet_does_not_come_in_between(
    gw: Running, bob: App
) -> None:
    bearer = f"Authorization: Bearer {bob.token}"
    async with gw.tcp() as raw:
        await raw.send(
            request(f'GET /v1/poll?wait=1 HTTP/1.1\nIf-None-Match: "0"\n{bearer}')
            + handshake("/v1/ws?device_id=phone", bearer)
        )
        assert (await raw.head()).status in {304, 400}  # never the 101, and then a 304 between the frames


async def test_a_handshake_behind_a_download_does_not_undo_its_flow_control(gateway: Callable[..., Any]) -> None:
    async with gateway(buffers=SMALL) as gw:
        alice = gw.app("alice")
        url = await alice.content_url(await alice.send("bob", os.urandom(8_000_000)))
        asked = request(f"GET {url.removeprefix(gw.url)} HTTP/1.1")
        async with gw.tcp(buffers=SMALL) as raw, others_served(gw):
            await raw.send(asked + handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {alice.token}"))
            for _ in range(60):
                for session in gw.sockets_of(alice):
                    assert session._connection._transport.get_write_buffer_size() < 1_000_000
                await asyncio.sleep(0.005)


async def test_what_answers_before_it_left_unread_does_not_undo_the_flow_control_of_a_socket(
    gateway: Callable[..., Any],
) -> None:
    async with gateway(buffers=SMALL) as gw:
        bob = gw.app("bob")
        senders = await correspondents(gw, bob, 10)
        bearer = f"Authorization: Bearer {bob.token}"
        async with gw.tcp(buffers=SMALL) as raw:
            for _ in range(4):  # polls whose answers fill the buffers
                await raw.send(request(f"GET /v1/poll HTTP/1.1\n{bearer}"))

            async def polled() -> bool:
                return bool(await gw.metric('gateway_calls_total{call="poll",status="200"}') >= 4)

            await until(polled, "the polls are answered")
            await raw.send(handshake("/v1/ws?device_id=phone", bearer))
            for sender in senders * 2:
                await sender.send(bob.client_id)
                if gw.sockets_of(bob):
                    assert held_by(gw, bob)[0] < 2 * len((await bob.poll()).content) + 1000
            for _ in range(4):
                assert (await raw.head()).status == 200
            assert (await raw.head_only()).status in {101, 426}


# --- Connections that are cut


PHASES = ("before the answer", "right after", "in a frame", "in a message", "while a packet waits", "after its close")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_reset_leaves_nothing_whenever_it_comes(gateway: Callable[..., Any], phase: str) -> None:
    async with gateway(buffers=SMALL) as gw, others_served(gw):
        for _ in range(3):
            bob = gw.app(gw.fresh("bob"))
            senders = await correspondents(gw, bob, 8) if phase == "while a packet waits" else []
            if phase == "before the answer":
                async with slow_store(gw, bob) as going_on, gw.tcp() as raw:
                    await raw.send(handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}"))
                    await within(going_on.wait())
                    raw.reset()
            else:
                async with gw.raw_socket(bob, buffers=SMALL) as raw:
                    if phase == "in a frame":
                        await raw.send(masked(Opcode.TEXT, b"x" * 100)[:20])
                    elif phase == "in a message":
                        await raw.frame(Opcode.TEXT, b"x", fin=False)
                    elif phase == "while a packet waits":
                        for sender in senders:
                            await sender.send(bob.client_id)
                        assert held_by(gw, bob)[0] > 0
                    elif phase == "after its close":
                        await raw.frame(Opcode.CLOSE, b"\x03\xe8")
                    raw.reset()
            await gone(gw, bob)


@asynccontextmanager
async def slow_store(gw: Running, app: App) -> AsyncIterator[asyncio.Event]:
    """Whoever loads this client's document waits until the end of the block; the event: somebody does."""
    documents, waits, going_on = gw.gateway.service.changes.documents, asyncio.Event(), asyncio.Event()
    load = documents.load

    async def slow(keys: Any) -> Any:
        if f"client:{app.client_id}" in keys:
            waits.set()
            await going_on.wait()
        return await load(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "load", slow)
        try:
            yield waits
        finally:
            going_on.set()


async def test_of_connections_that_were_cut_nothing_is_kept(gateway: Callable[..., Any], bob: App) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(found, HttpConnection | Connection) for found in gc.get_objects())

    async with gateway() as gw:
        before = kept()
        for number in range(30):
            async with gw.tcp() as raw:
                if number % 3:
                    await raw.send(request("GET /healthz HTTP/1.1"))
                    assert (await raw.head()).status == 200
                if number % 3 == 2:
                    await raw.send(handshake("/v1/ws?device_id=phone", f"Authorization: Bearer {bob.token}"))
                    assert (await raw.head()).status == 101

        async def is_gone() -> bool:
            return kept() <= before

        await until(is_gone, "nothing is kept")


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize("what", ["pushes", "a held poll", "a download"])
async def test_a_peer_that_is_gone_ends_what_it_asked_for_though_it_asked_for_more(
    gateway: Callable[..., Any], what: str, behind: int
) -> None:
    async with gateway(buffers=SMALL) as gw:
        bob = gw.app("bob")
        await bob.register("phone", "push-token")
        url = await gw.app("alice").content_url(await gw.app("alice").send("bob", os.urandom(3_000_000)))
        path = {
            "pushes": "/v1/devices/phone/pushes",
            "a held poll": "/v1/poll?wait=60",
            "a download": url.removeprefix(gw.url),
        }[what]
        async with gw.tcp(buffers=SMALL) as raw:
            asked = f'GET {path} HTTP/1.1\nAuthorization: Bearer {bob.token}\nIf-None-Match: "{LAST_VERSION}"'
            await raw.send(request(asked) + request("GET /healthz HTTP/1.1") * behind)
            await begun(gw)
        await only_ours_are_left(gw)


async def test_a_peer_that_only_stops_writing_is_let_go(gw: Running, bob: App) -> None:
    async with gw.raw_socket(bob) as raw:
        raw.end_of_writing()
        await raw.over()
        await gone(gw, bob)


async def test_a_peer_that_does_not_answer_a_close_is_cut(
    gw: Running, bob: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.live.connection.CLOSE_S", 0.3)
    async with gw.raw_socket(bob) as refused, gw.raw_socket(bob, "tablet") as raw:
        await refused.frame(Opcode.BINARY)
        await raw.frame(Opcode.TEXT, b"\xff")
        for peer in (refused, raw):
            await peer.closed()
        await gone(gw, bob)


async def test_a_peer_that_is_refused_and_stays_is_cut(
    gateway: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.live.connection.CLOSE_S", 0.3)
    async with gateway() as gw, gw.tcp() as raw:
        await raw.send(handshake("/v1/ws?device_id=phone"))
        assert (await raw.head()).status == 401
        await gw.nobody_left()
        await raw.over()


# --- Too many connections


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.SPARE", 2)


async def test_beyond_the_most_connections_the_next_are_told_and_the_rest_cut(
    gateway: Callable[..., Any], little_room: None
) -> None:
    async with gateway(MAX_CONNECTIONS="3") as gw:
        bob = gw.app("bob")
        asked = handshake("/v1/ws?device_id=tablet", f"Authorization: Bearer {bob.token}")
        async with contextlib.AsyncExitStack() as stack:
            first = [await stack.enter_async_context(gw.raw_socket(bob, f"phone-{number}")) for number in range(3)]
            for data in (request("GET /healthz HTTP/1.1"), request("GET /v1/poll HTTP/1.1"), asked):
                async with gw.tcp() as raw:
                    await raw.send(data)
                    answer = await raw.head()
                    assert_problem_body(answer.headers, answer.body, 503, "unavailable")
                    await raw.over()
            for _ in range(2):
                await stack.enter_async_context(gw.tcp())
            await connected(gw, 2)
            async with gw.tcp() as raw:
                assert await raw.read() == b""
            for peer in first:
                await peer.frame(Opcode.PING, b"still there")
                while (await peer.next()) != (Opcode.PONG, b"still there"):
                    pass


async def connected(gw: Running, connections: int) -> None:
    async def are() -> bool:
        return len(gw.server.server_state.connections) == connections

    await until(are, f"{connections} are connected")


async def test_handshakes_that_are_refused_count_as_connections_until_they_are_over(
    gateway: Callable[..., Any], little_room: None
) -> None:
    async with gateway(MAX_CONNECTIONS="3") as gw, contextlib.AsyncExitStack() as stack:
        answered = 0
        for _ in range(20):
            raw = await stack.enter_async_context(gw.tcp())
            with contextlib.suppress(OSError, EOFError):
                await raw.send(handshake("/v1/ws?device_id=phone"))
                await raw.head()
                answered += 1
        assert answered <= 5


async def test_handshakes_that_are_being_looked_at_count_as_connections(
    gateway: Callable[..., Any], little_room: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(MAX_CONNECTIONS="3") as gw, contextlib.AsyncExitStack() as stack:
        authorizer, going_on = gw.gateway.door._gate._authorizer, asyncio.Event()
        authorize = authorizer.authorize

        async def slow(authorization: str | None) -> Any:  # as while keys are fetched
            await going_on.wait()
            return await authorize(authorization)

        monkeypatch.setattr(authorizer, "authorize", slow)
        peers = []
        for number in range(8):
            peers.append(await stack.enter_async_context(gw.tcp()))
            with contextlib.suppress(OSError):
                await peers[-1].send(handshake("/v1/ws?device_id=phone"))

            async def taken_over(least: int = min(number + 1, 3)) -> bool:
                tasks = len(gw.gateway.door._desk._tasks)
                return tasks >= least and not gw.server.server_state.connections

            await until(taken_over, "it is taken over")
        looked_at = len(gw.gateway.door._desk._tasks)
        going_on.set()
        assert looked_at <= 3


# --- The end of the process


async def test_peers_that_do_not_read_do_not_put_off_the_end(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        gw = await stack.enter_async_context(running_gateway(tmp_path, DRAIN_S="1"))
        shrink(gw, SMALL)
        bob = gw.app("bob")
        senders = await correspondents(gw, bob, 10)
        for number in range(3):
            await stack.enter_async_context(gw.raw_socket(bob, f"phone-{number}", buffers=SMALL))
        for sender in senders * 2:
            await sender.send(bob.client_id)
        begun_s = loop.time()
        gw.server.should_exit = True
        await gone(gw, bob, 5)
        assert loop.time() - begun_s < 3


# --- Peers that come and go


async def test_a_crowd_that_comes_and_goes_leaves_nothing(gateway: Callable[..., Any]) -> None:
    async def visit(gw: Running, number: int) -> None:
        app = gw.app(f"client-{number % 20}")
        async with gw.raw_socket(app, f"phone-{number % 7}") as raw:
            await ways[number % len(ways)](raw)

    async def asks(raw: RawSocket) -> None:
        await raw.send(status(1))

    async def leaves(raw: RawSocket) -> None:
        await raw.frame(Opcode.CLOSE, b"\x03\xe8")
        with contextlib.suppress(EOFError):
            await raw.closed()

    async def breaks(raw: RawSocket) -> None:
        await raw.frame(Opcode.BINARY, b"x")

    async def stops(raw: RawSocket) -> None:
        raw.end_of_writing()
        await raw.over()

    ways = (asks, leaves, breaks, stops)
    async with gateway() as gw, others_served(gw):
        for _ in range(5):
            visits = [visit(gw, number) for number in range(60)]
            for found in await asyncio.gather(*visits, return_exceptions=True):
                assert not isinstance(found, AssertionError)
        assert await gw.metric("gateway_sockets") == 1

"""HTTP connections: kept and used again, whole answers only, whatever the other side does."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from storage.aws import connection as module
from storage.aws.connection import Answer, ConnectionFailed, Endpoint, HttpPool
from tests.redis_servers import free_port
from tests.running import until, within

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SOON_S = 0.05
"""For what is to run out."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The server's side of a connection."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> str:
        """What the next request asks for. IncompleteReadError where there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        return head.split()[1].decode().removeprefix("/")

    def say(self, *pieces: bytes) -> None:
        self.writer.writelines(pieces)

    async def gone(self) -> None:
        """Return when the other side is gone, however."""
        with contextlib.suppress(OSError):
            await self.reader.read()


@dataclass(slots=True)
class HttpServer:
    """What `serve` makes of each connection; it is closed when that returns."""

    serve: Callable[[Peer], Awaitable[None]]
    endpoint: Endpoint = field(init=False)
    connections: int = 0
    gone: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.create_task(self._serve(Peer(self.connections, reader, writer))))
        self.connections += 1

    async def _serve(self, peer: Peer) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                await self.serve(peer)
        finally:
            self.gone += 1
            peer.writer.close()

    async def all_gone(self) -> None:
        """Return when no connection is left."""

        async def are() -> bool:
            return self.gone == self.connections

        await until(are, "all connections are gone")


@asynccontextmanager
async def serving(
    serve: Callable[[Peer], Awaitable[None]], *, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> AsyncIterator[HttpServer]:
    server = HttpServer(serve)
    theirs, ours = tls or (None, None)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=theirs)
    server.endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], ours)
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        for task in server.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def pool_of(server: HttpServer | Endpoint, *, most: int = 4) -> AsyncIterator[HttpPool]:
    """Connections to `server`; whatever was done with them, every place is back at the end."""
    pool = HttpPool(server if isinstance(server, Endpoint) else server.endpoint, most=most)
    try:
        yield pool
        assert (pool._free, pool._busy) == (most, set())
    finally:
        pool.close()


def answers(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Every request gets this answer."""

    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(*pieces)

    return serve


def closes(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    """The first request on a connection gets this answer, and the connection is closed."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(*pieces)

    return serve


async def echo(peer: Peer) -> None:
    """Every request gets what it asks for, and the number of the connection."""
    while True:
        peer.say(written(f"{await peer.request()} {peer.number}".encode()))


async def silent(peer: Peer) -> None:
    await peer.gone()


def written(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def ask(pool: HttpPool, path: str = "", *, head: bool = False, timeout_s: float = 10) -> Answer:
    request = f"{'HEAD' if head else 'GET'} /{path} HTTP/1.1\r\nhost: test\r\n\r\n".encode()
    return await within(pool.ask(request, head=head, timeout_s=timeout_s), 15)


async def body_of(pool: HttpPool, path: str = "") -> str:
    return (await ask(pool, path)).body.decode()


async def bodies_of(pool: HttpPool, paths: Iterable[object]) -> list[str]:
    return list(await asyncio.gather(*(body_of(pool, str(path)) for path in paths)))


def failing(sentence: str, *, unused: bool = False) -> pytest.RaisesExc[ConnectionFailed]:
    return pytest.raises(ConnectionFailed, match=f"^{sentence}$", check=lambda failed: failed.unused is unused)


def cut_off(*, unused: bool = False) -> pytest.RaisesExc[ConnectionFailed]:
    return failing("the connection was closed", unused=unused)


async def busy(pool: HttpPool, connections: int = 1) -> list[module._Connection]:
    """The connections that are busy, when there are so many."""
    async with asyncio.timeout(10):
        while len(pool._busy) != connections:  # noqa: ASYNC110 - nothing there tells
            await asyncio.sleep(0)
    return list(pool._busy)


# --- Connections are kept


async def test_a_connection_is_kept_and_used_again() -> None:
    async with serving(echo) as server, pool_of(server) as pool:
        for number in range(5):
            assert await body_of(pool, str(number)) == f"{number} 0"
        assert server.connections == 1


async def test_the_connection_that_was_used_last_is_used_next() -> None:
    async with serving(echo) as server, pool_of(server) as pool:
        await bodies_of(pool, range(3))
        assert server.connections == 3
        last = await body_of(pool)
        assert {await body_of(pool) for _ in range(5)} == {last}


async def test_the_status_the_headers_and_the_body_are_handed_out() -> None:
    said = written(b"\x00\xff", "Content-Type: a/b", "X-Empty:", "x-two: 1", "X-Two: 2", "x-y: ü", status="418 No")
    async with serving(answers(said)) as server, pool_of(server) as pool:
        status, headers, body = await ask(pool)
        assert (status, body) == (418, b"\x00\xff")
        assert headers == {
            "content-type": "a/b",
            "x-empty": "",
            "x-two": "2",
            "x-y": "ü".encode().decode("latin-1"),
            "content-length": "2",
        }


async def test_answers_keep_their_headers_to_themselves() -> None:
    async def serve(peer: Peer) -> None:
        for number in range(2):
            await peer.request()
            peer.say(written(b"", f"x-{number}: {number}"))
        await peer.gone()

    async with serving(serve) as server, pool_of(server) as pool:
        first, second = await ask(pool), await ask(pool)
        assert first.headers == {"x-0": "0", "content-length": "0"}
        assert second.headers == {"x-1": "1", "content-length": "0"}


async def test_the_headers_of_an_interim_answer_are_not_those_of_the_answer() -> None:
    said = b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" + OK
    async with serving(answers(said)) as server, pool_of(server) as pool:
        for _ in range(2):
            assert (await ask(pool)).headers == {"content-length": "2"}


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\ncontent-type: video/mp4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
    ],
    ids=["a length", "chunked", "a length of 0", "no length", "a status that has no body", "an interim answer"],
)
async def test_after_the_answer_to_a_head_the_connection_is_good(said: bytes) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            peer.say(said if await peer.request() == "head" else OK)

    async with serving(serve) as server, pool_of(server) as pool:
        for _ in range(3):
            answer = await ask(pool, "head", head=True)
            assert (answer.status, answer.body) == (int(said.rpartition(b"HTTP/1.1 ")[2][:3]), b"")
            assert await body_of(pool) == "ok"
        assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "head"),
    [
        (written(b"ok", "Connection: close"), False),
        (written(b"ok", "connection: x, Close"), False),
        (written(b"", "connection: Close"), True),
        (written(b"", "connection: x, close"), True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n", True),
        # Whatever comes behind the answer, nobody asked for it.
        (OK + b"x", False),
        (OK + OK, False),
        (OK + b"HTTP/1.1 2", False),
        (CHUNKED + chunked(b"ok") + b"HTTP/1.1 500 X\r\nx: y\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo", True),
    ],
)
async def test_a_connection_that_is_no_good_after_the_answer_is_not_used_again(said: bytes, head: bool) -> None:
    async with serving(answers(said)) as server, pool_of(server) as pool:
        for connections in (1, 2, 3):
            answer = await ask(pool, head=head)
            assert (answer.status, answer.body) == (200, b"" if head else b"ok")
            assert server.connections == connections
            assert answer.headers.keys() <= {"connection", "content-length", "transfer-encoding"}
        await server.all_gone()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", OK + b"\r\n"]
)
async def test_a_connection_that_the_other_side_keeps_is_kept(said: bytes) -> None:
    async with serving(answers(said)) as server, pool_of(server) as pool:
        assert [await body_of(pool) for _ in range(3)] == ["ok"] * 3
        assert server.connections == 1


async def test_what_is_said_without_being_asked_for_ends_the_connection() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await within(said.wait())
        peer.say(written(b"not yours"))
        await peer.gone()

    said = asyncio.Event()
    async with serving(serve) as server, pool_of(server) as pool:
        assert await body_of(pool) == "ok"
        said.set()
        await server.all_gone()
        assert await body_of(pool) == "ok"
        assert server.connections == 2


@pytest.mark.parametrize("what", ["IDLE_S", "AGE_S"])
async def test_a_connection_that_is_too_old_is_not_used_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo) as server, pool_of(server) as pool:
        await bodies_of(pool, range(3))
        monkeypatch.setattr(module, what, 0.0)
        assert await body_of(pool, "x") == "x 3"
        monkeypatch.undo()
        assert await body_of(pool, "y") == "y 3"
        pool.close()
        await server.all_gone()


# --- Answers in pieces


ANSWERS = {
    "a length": (written(b"some body", "x: y"), False, 200, b"some body"),
    "no body": (written(b"", status="400 Bad Request"), False, 400, b""),
    "a status without a body": (b"HTTP/1.1 204 No Content\r\n\r\n", False, 204, b""),
    "chunks": (CHUNKED + chunked(b"some", b" ", b"body" * 5), False, 200, b"some " + b"body" * 5),
    "no chunks": (CHUNKED + chunked(), False, 200, b""),
    "a chunk with an extension, and a trailer": (CHUNKED + b"2;a=b\r\nok\r\n0\r\nx: y\r\n\r\n", False, 200, b"ok"),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" + OK,
        False,
        200,
        b"ok",
    ),
    "the answer to a HEAD": (b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 9\r\n\r\n", True, 200, b""),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_may_be_cut_anywhere(name: str) -> None:
    """What the socket would hand over is handed over here, so that the cuts are where they are said to be."""
    said, head, status, body = ANSWERS[name]
    cuts = [[said[:place], said[place:]] for place in range(1, len(said))]
    async with serving(silent) as server, pool_of(server, most=1) as pool:
        for pieces in ([said], [said[place : place + 1] for place in range(len(said))], *cuts):
            asking = asyncio.create_task(ask(pool, head=head))
            [connection] = await busy(pool)
            for piece in pieces:
                assert connection._answer is not None
                connection.data_received(piece)
            answer = await asking
            assert (answer.status, answer.body) == (status, body)
        assert server.connections == 1


async def test_a_long_answer_comes_whole() -> None:
    body = bytes(range(256)) * 8000
    said = {
        "length": written(body),
        "chunks": CHUNKED + chunked(*(body[at : at + 70_001] for at in range(0, len(body), 70_001))),
    }

    async def serve(peer: Peer) -> None:
        while True:
            peer.say(said[await peer.request()])

    async with serving(serve) as server, pool_of(server) as pool:
        for path in said:
            assert (await ask(pool, path)).body == body
        assert server.connections == 1


@pytest.mark.parametrize("name", ["a length", "chunks", "interim answers"])
async def test_an_answer_that_is_cut_off_is_none(name: str) -> None:
    """Wherever that is: the first request says after how many bytes."""
    said = ANSWERS[name][0]

    async def serve(peer: Peer) -> None:
        peer.say(said[: int(await peer.request())])

    async with serving(serve) as server, pool_of(server, most=3) as pool:
        for size in range(0, len(said), 3):
            with cut_off():
                await ask(pool, str(size))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_without_a_length_is_not_taken_since_nobody_knows_whether_it_is_whole(version: str) -> None:
    async with serving(closes(f"HTTP/{version} 200 OK\r\n\r\nwhole?".encode())) as server, pool_of(server) as pool:
        with cut_off():
            await ask(pool)


async def test_an_answer_without_a_length_or_an_end_is_waited_for_until_time_is_over() -> None:
    async with serving(answers(b"HTTP/1.1 200 OK\r\n\r\nand so on")) as server, pool_of(server) as pool:
        with failing("no answer in time"):
            await ask(pool, timeout_s=SOON_S)
        await server.all_gone()


@pytest.mark.parametrize(
    "said",
    [
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"2\r\nokay\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_failure_at_once(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(answers(said)) as server, pool_of(server, most=1) as pool:
        for _ in range(2):
            with failing("an answer that is no HTTP"):
                await ask(pool)
        await server.all_gone()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("how", ["at once", "in chunks"])
async def test_an_answer_that_is_too_long_is_not_taken(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 10)
    long = {"at once": written(b"x" * 11), "in chunks": CHUNKED + chunked(b"x" * 6, b"x" * 5)}[how]
    just = {"at once": written(b"x" * 10), "in chunks": CHUNKED + chunked(b"x" * 6, b"x" * 4)}[how]

    async def serve(peer: Peer) -> None:
        while True:
            peer.say(long if await peer.request() == "long" else just)

    async with serving(serve) as server, pool_of(server, most=1) as pool:
        assert (await ask(pool, "just")).body == b"x" * 10
        with failing("an answer that is too long"):
            await ask(pool, "long")
        await server.all_gone()
        assert (await ask(pool, "just")).body == b"x" * 10


# --- What the other side does to connections


async def test_a_server_that_does_not_answer_is_given_up_and_the_connection_with_it() -> None:
    async def serve(peer: Peer) -> None:
        if peer.number == 0:
            await peer.gone()
        await echo(peer)

    async with serving(serve) as server, pool_of(server, most=1) as pool:
        with failing("no answer in time"):
            await ask(pool, "a", timeout_s=SOON_S)
        assert await body_of(pool, "b") == "b 1"


async def test_a_connection_that_was_closed_while_idle_is_replaced_without_a_word() -> None:
    async with serving(closes(OK)) as server, pool_of(server) as pool:
        for connections in (1, 2, 3):
            assert await body_of(pool) == "ok"
            [idle] = pool._idle
            await server.all_gone()

            async def noticed(idle: module._Connection = idle) -> bool:
                return not idle.open

            await until(noticed, "it is known to be closed")
            assert server.connections == connections


async def test_a_connection_that_is_closed_as_it_is_used_again_is_worth_a_try_at_once() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.request()

    async with serving(serve) as server, pool_of(server) as pool:
        await bodies_of(pool, range(3))
        for _ in range(3):
            with cut_off(unused=True):
                await ask(pool)
        assert await body_of(pool) == "ok"
        assert server.connections == 4


async def test_a_new_connection_that_is_closed_without_a_word_is_not_worth_another_try_at_once() -> None:
    async with serving(closes()) as server, pool_of(server) as pool:
        for _ in range(2):
            with cut_off():
                await ask(pool)


async def test_a_connection_that_was_used_before_and_cut_within_an_answer_is_not_worth_another_try_at_once() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.request()
        peer.say(OK[:20])

    async with serving(serve) as server, pool_of(server) as pool:
        assert await body_of(pool) == "ok"
        with cut_off():
            await ask(pool)


async def test_a_connection_that_was_reset_is_a_failure() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK[:20])
        peer.writer.transport.abort()

    async with serving(serve) as server, pool_of(server) as pool:
        with cut_off():
            await ask(pool)


async def test_a_server_that_hangs_up_at_once_is_a_failure() -> None:
    async def serve(peer: Peer) -> None:
        peer.writer.transport.abort()

    async with serving(serve) as server, pool_of(server, most=1) as pool:
        for _ in range(20):
            with failing(r"(the connection was closed|cannot connect: .*)"):
                await ask(pool)


@pytest.mark.parametrize("why", ["it was closed", "it spoke first"])
async def test_a_connection_that_was_lost_between_being_made_and_being_used_is_a_failure(why: str) -> None:
    async with serving(silent) as server, pool_of(server) as pool:
        connection = await pool._connect()
        if why == "it was closed":
            connection.abort()
        else:
            connection.data_received(b"220 mail.example ESMTP\r\n")
        for _ in range(2):
            with cut_off():
                await connection.ask(b"GET / HTTP/1.1\r\n\r\n", False)
            await server.all_gone()


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with pool_of(Endpoint("127.0.0.1", free_port(), None), most=1) as pool:
        for _ in range(3):
            with failing("cannot connect: Connection refused"):
                await ask(pool)


async def test_a_server_that_accepts_nobody_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", SOON_S)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(10):  # until the queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(SOON_S)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            pytest.skip("here the queue of a listening socket has no end")
        async with pool_of(Endpoint("127.0.0.1", port, None), most=1) as pool:
            with failing("cannot connect in time"):
                await ask(pool)


# --- More requests than connections


async def test_requests_beyond_the_most_wait_and_none_is_lost() -> None:
    async with serving(echo) as server, pool_of(server, most=3) as pool:
        found = await bodies_of(pool, range(200))
        assert [body.split()[0] for body in found] == [str(number) for number in range(200)]
        assert server.connections == 3


async def test_who_came_first_is_served_first_though_others_come_all_the_time() -> None:
    served: list[str] = []

    async def serve(peer: Peer) -> None:
        while True:
            served.append(await peer.request())
            peer.say(OK)

    async with serving(serve) as server, pool_of(server, most=1) as pool:
        asking = []
        for number in range(30):
            asking.append(asyncio.create_task(ask(pool, str(number))))
            for _ in range(number % 4):
                await asyncio.sleep(0)
        await asyncio.gather(*asking)
        assert served == [str(number) for number in range(30)]


async def test_the_time_includes_the_wait_for_a_connection() -> None:
    async with serving(silent) as server, pool_of(server, most=1) as pool:
        first = asyncio.create_task(ask(pool, "first"))
        await asyncio.sleep(0)
        with failing("no answer in time"):
            await ask(pool, "second", timeout_s=SOON_S)
        assert not first.done()
        first.cancel()
        await asyncio.wait([first])


async def test_a_failure_lets_the_next_one_have_its_place() -> None:
    async def serve(peer: Peer) -> None:
        if await peer.request() == "good":
            peer.say(OK)

    async with serving(serve) as server, pool_of(server, most=2) as pool:
        paths = ["bad", "bad", "good", "bad", "good", "good"]
        found = await asyncio.gather(*(ask(pool, path) for path in paths), return_exceptions=True)
        assert [isinstance(answer, Answer) for answer in found] == [path == "good" for path in paths]


async def test_cancelled_requests_harm_no_other_and_leave_their_places() -> None:
    """Wherever they are: being connected for, asked, waiting, given their turn a moment ago, or answered."""
    async with serving(echo) as server, pool_of(server, most=2) as pool:
        for turns in range(25):
            asking = [asyncio.create_task(body_of(pool, str(number))) for number in range(9)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asking[::3]:
                task.cancel()
            await asyncio.sleep(0)
            for task in asking[1::3]:
                task.cancel()
            found = await asyncio.gather(*asking, return_exceptions=True)
            for number, body in enumerate(found):
                assert isinstance(body, asyncio.CancelledError) or str(body).split()[0] == str(number)
            assert all(isinstance(body, str) for body in found[2::3])
            assert (pool._free, len(pool._busy)) == (2, 0)
        assert [body.split()[0] for body in await bodies_of(pool, "ab")] == ["a", "b"]


async def test_a_request_that_is_cancelled_under_way_takes_its_connection_along() -> None:
    """Its answer may still come, and is nobody else's."""

    async def serve(peer: Peer) -> None:
        if peer.number == 0:
            await peer.request()
            asked.set()
            await peer.gone()
        await echo(peer)

    asked = asyncio.Event()
    async with serving(serve) as server, pool_of(server, most=1) as pool:
        first, second = asyncio.create_task(body_of(pool, "first")), asyncio.create_task(body_of(pool, "second"))
        await within(asked.wait())
        first.cancel()
        assert await second == "second 1"
        assert first.cancelled()


async def test_a_request_that_is_cancelled_as_its_answer_is_there_leaves_a_good_connection() -> None:
    async with serving(silent) as server, pool_of(server, most=1) as pool:
        for _ in range(2):
            asking = asyncio.create_task(ask(pool))
            [connection] = await busy(pool)
            connection.data_received(OK)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            assert pool._idle == [connection]
        assert server.connections == 1


async def test_a_request_that_is_cancelled_when_its_turn_has_come_passes_it_on() -> None:
    async with serving(silent) as server, pool_of(server, most=1) as pool:
        first, second, third = (asyncio.create_task(ask(pool, str(number))) for number in range(3))
        [connection] = await busy(pool)
        connection.data_received(OK)
        await busy(pool, 0)
        assert len(pool._waiting) == 1
        second.cancel()
        await busy(pool)
        connection.data_received(written(b"third"))
        assert [(await first).body, (await third).body] == [b"ok", b"third"]
        assert second.cancelled()


async def test_a_request_that_is_cancelled_while_connecting_leaves_nothing(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(silent) as server:
        endpoint = server.endpoint._replace(tls=certificates[1])  # hands are never shaken
        async with pool_of(endpoint, most=1) as pool:
            asking = asyncio.create_task(ask(pool))

            async def connected() -> bool:
                return server.connections == 1

            await until(connected, "it is being connected to")
            asking.cancel()
            await asyncio.wait([asking])
            await server.all_gone()


# --- Closing


async def test_closing_fails_what_is_under_way_and_what_waits() -> None:
    async with serving(silent) as server, pool_of(server, most=2) as pool:
        asking = [asyncio.create_task(ask(pool, str(number))) for number in range(5)]
        await busy(pool, 2)
        pool.close()
        found = await within(asyncio.gather(*asking, return_exceptions=True), 1)
        assert [str(failed) for failed in found] == ["the connection was closed"] * 2 + [
            "the connections are closed"
        ] * 3
        assert not any(isinstance(failed, ConnectionFailed) and failed.unused for failed in found)
        await server.all_gone()
        assert server.connections == 2


async def test_closing_is_not_taken_for_a_connection_that_was_closed_while_idle() -> None:
    """Or it would be tried again at once, with a new connection."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.gone()

    async with serving(serve) as server, pool_of(server) as pool:
        await ask(pool)
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        pool.close()
        with cut_off():
            await asking


async def test_closing_lets_idle_connections_go_and_makes_no_new_ones() -> None:
    async with serving(echo) as server, pool_of(server, most=3) as pool:
        await bodies_of(pool, range(3))
        pool.close()
        await server.all_gone()
        for _ in range(4):
            with failing("the connections are closed"):
                await ask(pool)
        pool.close()
        assert server.connections == 3


async def test_a_connection_that_is_being_made_when_all_are_closed_is_not_used() -> None:
    async with serving(echo) as server, pool_of(server) as pool:
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        pool.close()
        with failing("the connections are closed"):
            await asking
        await server.all_gone()


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server on 127.0.0.1 shows, and what trusts it."""
    file = tmp_path_factory.mktemp("certificates") / "server.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(file)
    return theirs, ssl.create_default_context(cafile=str(file))


async def test_connections_over_tls_are_kept(certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with serving(echo, tls=certificates) as server, pool_of(server, most=2) as pool:
        found = await bodies_of(pool, range(50))
        assert [body.split()[0] for body in found] == [str(number) for number in range(50)]
        assert server.connections == 2
        pool.close()
        await server.all_gone()


async def test_over_tls_answers_that_are_cut_off_are_none(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def serve(peer: Peer) -> None:
        path = await peer.request()
        peer.say(OK[:-1] if path == "cut" else b"HTTP/1.1 200 OK\r\n\r\nwhole?")

    async with serving(serve, tls=certificates) as server, pool_of(server) as pool:
        for path in ("cut", "endless"):
            with cut_off():
                await ask(pool, path)


async def test_over_tls_too_a_connection_that_is_closed_as_it_is_used_again_is_worth_a_try_at_once(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.request()

    async with serving(serve, tls=certificates) as server, pool_of(server, most=1) as pool:
        assert await body_of(pool) == "ok"
        with cut_off(unused=True):
            await ask(pool)
        assert await body_of(pool) == "ok"


async def test_a_server_whose_certificate_is_not_trusted_is_asked_nothing(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(echo, tls=certificates) as server:
        for endpoint in (
            server.endpoint._replace(tls=ssl.create_default_context()),
            server.endpoint._replace(host="localhost"),
        ):
            async with pool_of(endpoint, most=1) as pool:
                for _ in range(2):
                    with failing(r"cannot connect: .*certificate verify failed.*"):
                        await ask(pool)
        assert server.connections == 0


async def test_a_server_that_does_not_speak_tls_is_a_failure(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.reader.read(1)
        peer.say(OK)

    async with serving(serve) as server, pool_of(server.endpoint._replace(tls=certificates[1]), most=1) as pool:
        with failing(r"cannot connect: .*(?i:wrong.version|record).*"):
            await ask(pool)


async def test_the_time_for_connecting_includes_tls(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", SOON_S)
    async with serving(silent) as server, pool_of(server.endpoint._replace(tls=certificates[1]), most=1) as pool:
        with failing("cannot connect in time"):
            await ask(pool)
        await server.all_gone()

"""A proxy before a ministack, in which what goes wrong in a network or at Amazon goes wrong as the test says.

    async with proxy(aws.port) as between:
        between.fault = first(2, "PutItem", refused(400, "ProvisionedThroughputExceededException"))
        …                             a client whose endpoint is between.url; between.seen; between.passed

A request is passed on as it came, Host and all, so that its signature holds. A fault is a function that does something
else with one: those below, or the test's own.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from tests.redis_servers import free_port


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `path`: with its query. `headers`: by names in lower case. `head`: all before the body, as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    head: bytes

    @property
    def operation(self) -> str:
        """What is asked for: `PutItem`, `ReceiveMessage`; of S3 `PUT object`, `HEAD object`, `list`, `delete`."""
        if target := self.headers.get("x-amz-target"):
            return target.rpartition(".")[2]
        place = urlsplit(self.path)
        if place.path.strip("/").count("/"):
            return f"{self.method} object"
        if self.method == "POST" and "delete" in place.query:
            return "delete"
        return "list" if "list-type" in place.query else f"{self.method} bucket"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its head and its body, as they go over the wire."""

    head: bytes
    body: bytes = b""

    @classmethod
    def of(cls, status: int, body: bytes, **headers: str) -> "Answer":
        """An answer of our own. An underscore in a header's name is a hyphen."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        return cls("\r\n".join([*lines, "", ""]).encode("latin-1"), body)

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])


class Exchange:
    """A request, and what may be done with it."""

    def __init__(self, request: Request, upstream: "Upstream", writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.over = False
        self._upstream = upstream
        self._writer = writer

    async def forward(self) -> Answer:
        """Pass the request on; what comes back."""
        return await self._upstream.ask(self.request)

    async def send(self, data: bytes) -> None:
        """Send something of an answer to the client, which may be gone."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    def cut(self) -> None:
        """Close the client's connection, behind what was sent."""
        self.over = True
        self._writer.close()


Fault = Callable[[Exchange], Awaitable[None]]


async def passed(exchange: Exchange) -> None:
    """No fault."""
    answer = await exchange.forward()
    await exchange.send(answer.head + answer.body)


async def cut_before(exchange: Exchange) -> None:
    """The request is lost."""
    exchange.cut()


async def cut_after(exchange: Exchange) -> None:
    """It is done, and the answer is lost."""
    await exchange.forward()
    exchange.cut()


async def cut_within(exchange: Exchange) -> None:
    """It is done, and the connection ends in the middle of the answer's body; of the head, where that is all."""
    answer = await exchange.forward()
    sent = answer.head + answer.body
    await exchange.send(sent[: -max(1, len(answer.body or sent) // 2)])
    exchange.cut()


async def twice(exchange: Exchange) -> None:
    """It is done twice, one after the other; the client hears of the second."""
    await exchange.forward()
    await passed(exchange)


def answered(status: int, body: bytes, **headers: str) -> Fault:
    """It is not done; the answer is this."""

    async def fault(exchange: Exchange) -> None:
        answer = Answer.of(status, body, **headers)
        await exchange.send(answer.head if exchange.request.method == "HEAD" else answer.head + answer.body)

    return fault


def refused(status: int, code: str, message: str = "so says the test", **headers: str) -> Fault:
    """It is not done; the answer is an error in the words of the service: `SlowDown`, `ExpiredTokenException`."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    told = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message})

    async def fault(exchange: Exchange) -> None:
        if "x-amz-target" in exchange.request.headers:
            answer = answered(status, told.encode(), Content_Type="application/x-amz-json-1.0", **headers)
        else:
            answer = answered(status, xml.encode(), Content_Type="application/xml", **headers)
        await answer(exchange)

    return fault


def delayed(seconds: float) -> Fault:
    """It is done at once, and the answer comes late."""

    async def fault(exchange: Exchange) -> None:
        answer = await exchange.forward()
        await asyncio.sleep(seconds)
        await exchange.send(answer.head + answer.body)

    return fault


def trickled(pause_s: float, piece: int = 1) -> Fault:
    """It is done at once, and the body of the answer comes in pieces of so many bytes, with a pause before each."""

    async def fault(exchange: Exchange) -> None:
        answer = await exchange.forward()
        await exchange.send(answer.head)
        for start in range(0, len(answer.body), piece):
            await asyncio.sleep(pause_s)
            await exchange.send(answer.body[start : start + piece])

    return fault


class Held:
    """A fault: requests wait here until they are let go, then are done, whether or not the client still waits. With
    `cut` it does not: its connection is cut first, and what it asked for is done late."""

    def __init__(self, *, cut: bool = False) -> None:
        self._cut = cut
        self._arrived: asyncio.Queue[Request] = asyncio.Queue()
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._released = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        self._arrived.put_nowait(exchange.request)
        if self._cut:
            exchange.cut()
        await self._released.wait()
        answer = await exchange.forward()
        self._answers.put_nowait(answer)
        if not self._cut:
            await exchange.send(answer.head + answer.body)

    async def arrived(self) -> Request:
        """The next request that is held; waits for it."""
        return await self._arrived.get()

    async def answered(self) -> Answer:
        """The server's next answer to one that was let go; waits for it."""
        return await self._answers.get()

    def release(self) -> None:
        """Let all go, and those that come."""
        self._released.set()


def first(count: int, operation: str, fault: Fault) -> Callable[[Request], Fault | None]:
    """`fault` for the first so many requests of an operation."""
    left = count

    def choose(request: Request) -> Fault | None:
        nonlocal left
        if request.operation != operation or not left:
            return None
        left -= 1
        return fault

    return choose


def always(operation: str, fault: Fault) -> Callable[[Request], Fault | None]:
    """`fault` for all requests of an operation."""
    return lambda request: fault if request.operation == operation else None


class Upstream:
    """A connection to the server, opened when it is needed."""

    def __init__(self, port: int, passed: list[str]) -> None:
        self._port = port
        self._passed = passed
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: Request) -> Answer:
        """The server's answer. Raises OSError or EOFError without one."""
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._passed.append(request.operation)
        self._writer.write(request.head + request.body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head = await self._reader.readuntil(b"\r\n\r\n")
        answer = Answer(head)
        if request.method != "HEAD" and answer.status not in {204, 304}:
            answer = Answer(head, await _body(self._reader, _headers(head)))
        if _headers(head).get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Proxy:
    """Stands between clients and a server."""

    def __init__(self, port: int, target: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.fault: Callable[[Request], Fault | None] = lambda _: None
        """What to do with a request; None: pass it on."""
        self.seen: list[str] = []
        """The operations that clients asked for, in order."""
        self.passed: list[str] = []
        """Those that the server was asked for."""
        self.connections = 0
        self._target = target
        self._links: set[asyncio.Task[None]] = set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's requests, one after the other, until an end closes it."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        upstream = Upstream(self._target, self.passed)
        try:
            while True:
                request = await _request(reader, writer)
                self.seen.append(request.operation)
                exchange = Exchange(request, upstream, writer)
                await (self.fault(request) or passed)(exchange)
                if exchange.over:
                    return
        except (OSError, EOFError):
            return  # an end is gone, and with it the other
        except asyncio.CancelledError:
            return  # the proxy ends; asyncio's streams would tell the log of it
        finally:
            writer.close()
            upstream.close()
            self._links.discard(task)

    async def end(self) -> None:
        for link in self._links:
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    headers = _headers(head)
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    method, path, _ = head.decode("latin-1").split(" ", 2)
    return Request(method, path, headers, await _body(reader, headers), head)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """The body as it goes over the wire; in chunks, if it comes so."""
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body, size = b"", -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line, 16)
        body += line + await reader.readexactly(size + 2)
    return body


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy to the server at the port `target`."""
    port = free_port()
    between = Proxy(port, target)
    listening = await asyncio.start_server(between.carry, "127.0.0.1", port)
    try:
        yield between
    finally:
        listening.close()
        await between.end()

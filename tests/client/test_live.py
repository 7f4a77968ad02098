"""Live delivery against a gateway, and against servers that do what no gateway does."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.client import Client, GatewayError, Live, Outcome, Packet, Remedy, SocketClosed, Token
from gateway.errors import Code
from gateway.live.hub import SOCKETS_PER_CLIENT
from gateway.transit.state import Status
from tests.client.played import FIRST, VIDEO, client_of, named, packet_of
from tests.running import Running, running_gateway, token, within

INFO = Subprotocol("info.v1")

Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def talking(
    handler: Handler,
    *,
    answer: Callable[[ServerConnection, Request], Response | None] | None = None,
    subprotocols: tuple[Subprotocol, ...] | None = (INFO,),
    bearer: Token = "a-token",
    call_s: float = 20.0,
) -> AsyncIterator[Client]:
    """A client of a server that talks as `handler` has it, to whom `answer` lets in."""
    async with serve(handler, "127.0.0.1", 0, subprotocols=subprotocols, process_request=answer) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}", bearer, "phone", call_s=call_s) as client:
            yield client


def saying(*messages: str | bytes) -> Handler:
    """Says this, and then listens until the app has gone."""

    async def handler(socket: ServerConnection) -> None:
        for message in messages:
            await socket.send(message)
        await socket.wait_closed()

    return handler


def answering(*answers: str) -> Handler:
    """Gives these answers, one to each message, and no more after that; `ID` stands for the id of the message."""

    async def handler(socket: ServerConnection) -> None:
        for answer in answers:
            message = json.loads(await socket.recv())
            await socket.send(answer.replace("ID", str(message["id"])))
        await socket.wait_closed()

    return handler


async def closed(live: Live) -> SocketClosed:
    """How the socket ended, after whatever packets."""

    async def to_the_end() -> None:
        async for _ in live:
            pass

    with pytest.raises(SocketClosed) as caught:
        await within(to_the_end())
    return caught.value


async def current(client: Client) -> Packet:
    packet = await client.poll()
    assert packet is not None
    return packet


# --- Packets


async def test_a_packet_has_the_bytes_that_a_poll_has(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob, bob.live() as live:
        empty = await within(anext(live))
        assert empty.body == (await current(bob)).body
        sent = await alice.send_video(video, named(bob))
        packet = await within(anext(live))
        assert packet.received(sent.video_id) is not None
        assert packet.body == (await current(bob)).body


async def test_the_first_packet_is_newer_than_what_was_applied(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        await alice.send_video(video, named(bob))
        known = await current(bob)
        async with bob.live(known.version) as live:
            sent = await alice.send_video(video, named(bob))
            packet = await within(anext(live))
            assert packet.version > known.version
            assert packet.received(sent.video_id) is not None
        async with bob.live(known.version) as live:
            assert (await within(anext(live))).body == packet.body


async def test_what_was_acknowledged_is_notified(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob, alice.live() as news, bob.live() as live:
        sent = await alice.send_video(video, named(bob))
        async for packet in live:
            if packet.received(sent.video_id):
                await live.acknowledge(packet.version)
                break
        assert await heard(news, sent.video_id, Status.NOTIFIED)


async def heard(news: Live, video_id: str, status: Status) -> bool:
    """Whether the sender of a video hears that it has come so far."""
    async with asyncio.timeout(10):
        async for packet in news:
            sent = packet.sent(video_id)
            if sent and sent.status is status:
                return True
    return False


async def test_the_version_that_the_socket_is_opened_with_is_acknowledged(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob, alice.live() as news:
        sent = await alice.send_video(video, named(bob))
        version = (await current(bob)).version
        async with bob.live(version):
            assert await heard(news, sent.video_id, Status.NOTIFIED)


async def test_who_does_not_look_finds_the_newest_packet_alone() -> None:
    async def handler(socket: ServerConnection) -> None:
        for version in (5, 6, 7):
            await socket.send(packet_of(version).decode())
        await answering('{"type":"result","id":ID,"result":"applied","version":7}')(socket)

    async with talking(handler) as client, client.live() as live:
        await live.report(FIRST, Status.VIEWED)
        assert (await within(anext(live))).version == 7
        live.abort()
        with pytest.raises(SocketClosed):
            await within(anext(live))


async def test_a_packet_that_came_before_the_end_is_not_lost() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.send(packet_of(5).decode())
        await socket.close(1001)

    async with talking(handler) as client, client.live() as live:
        with pytest.raises(GatewayError):
            await within(live.renew("a-token"))
        assert (await within(anext(live))).version == 5
        assert (await closed(live)).code == 1001
        assert (await closed(live)).code == 1001


async def test_messages_of_an_unknown_type_are_ignored() -> None:
    news = '{"type":"weather","id":1,"temperature":20}'
    async with talking(saying(news, packet_of(5).decode())) as client, client.live() as live:
        assert (await within(anext(live))).version == 5


@pytest.mark.parametrize("message", ["", "[]", "{}", '{"type":1}', '{"type":"info"}', '{"type":"error","id":1}', b"{}"])
async def test_a_message_that_is_not_what_the_protocol_says_ends_the_socket(message: str | bytes) -> None:
    async with talking(saying(message)) as client, client.live() as live:
        end = await closed(live)
        assert (end.code, end.remedy) == (1002, Remedy.NONE)


# --- Calls


async def test_a_video_is_confirmed_and_reported(gw: Running) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob, alice.live() as news, bob.live() as live:
        announced = await alice.announce(named(bob), size=len(VIDEO))
        await alice.upload(announced, VIDEO)
        confirmed = await news.confirm(announced.video_id, named(bob))
        assert confirmed.outcome in {Outcome.APPLIED, Outcome.DUPLICATE}
        for status in (Status.DOWNLOADED, Status.VIEWED):
            result = await live.report(announced.video_id, status)
            assert (result.video_id, result.outcome) == (announced.video_id, Outcome.APPLIED)
            assert await heard(news, announced.video_id, status)
        assert (await live.report(announced.video_id, Status.VIEWED)).outcome is Outcome.DUPLICATE
        unknown = await live.report(FIRST, Status.VIEWED)
        assert (unknown.outcome, unknown.reason) == (Outcome.IGNORED, "unknown_video")


async def test_what_is_refused_raises_the_error_that_the_call_would_have(gw: Running) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob, alice.live() as live:
        announced = await alice.announce(named(bob), size=len(VIDEO))
        with pytest.raises(GatewayError) as caught:
            await live.confirm(announced.video_id, named(bob))
        assert (caught.value.status, caught.value.code) == (409, Code.NOT_STORED)
        assert caught.value.remedy is Remedy.UPLOAD
        with pytest.raises(GatewayError, match="422 invalid: video_id") as caught:
            await live.report("no-uuid", Status.VIEWED)


async def test_every_call_gets_its_own_answer(gw: Running) -> None:
    async with client_of(gw, "bob") as bob, bob.live() as live:
        calls = [
            live.report(FIRST, Status.VIEWED),
            live.report("no-uuid", Status.VIEWED),
            live.renew(token(named(bob))),
        ]
        ignored, refused, renewed = await within(asyncio.gather(*calls, return_exceptions=True))
        assert getattr(ignored, "outcome", None) is Outcome.IGNORED
        assert isinstance(refused, GatewayError)
        assert renewed is None


async def test_answers_to_nobody_are_ignored() -> None:
    nobody_s = [f'{{"type":"error","id":{id_},"code":"invalid","detail":""}}' for id_ in ("null", "7", '"1"', "[1]")]
    answer = '{"type":"result","id":ID,"result":"duplicate","version":7}'

    async def handler(socket: ServerConnection) -> None:
        for message in nobody_s:
            await socket.send(message)
        await answering(answer)(socket)

    async with talking(handler) as client, client.live() as live:
        assert (await within(live.report(FIRST, Status.VIEWED))).outcome is Outcome.DUPLICATE


async def test_an_answer_that_does_not_come_is_not_waited_for_too_long() -> None:
    async with talking(saying(), call_s=0.05) as client, client.live() as live:
        with pytest.raises(GatewayError, match="no answer: TimeoutError") as caught:
            await within(live.report(FIRST, Status.VIEWED))
        assert caught.value.remedy is Remedy.RETRY


async def test_a_result_that_nobody_understands_is_retried() -> None:
    handler = answering('{"type":"result","id":ID,"result":"maybe","version":7}')
    async with talking(handler) as client, client.live() as live:
        with pytest.raises(GatewayError, match="not what the protocol says") as caught:
            await within(live.report(FIRST, Status.VIEWED))
        assert caught.value.remedy is Remedy.RETRY


async def test_a_call_whose_answer_the_end_takes_away_is_retried() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.close(4409, "displaced")

    async with talking(handler) as client, client.live() as live:
        for call in (live.report(FIRST, Status.VIEWED), live.report(FIRST, Status.VIEWED), live.acknowledge(5)):
            with pytest.raises(GatewayError, match="no answer: the socket was closed with 4409: displaced") as caught:
                await within(call)
            assert caught.value.remedy is Remedy.RETRY


async def test_a_new_token_keeps_a_socket_open_and_a_bad_one_ends_it(gw: Running) -> None:
    async with client_of(gw, "bob") as bob, bob.live() as live:
        await within(live.renew(token(named(bob), ttl_s=60)))
        with pytest.raises(GatewayError, match="401 unauthorized") as caught:
            await within(live.renew(token("somebody-else")))
        assert caught.value.remedy is Remedy.RENEW
        end = await closed(live)
        assert (end.code, end.remedy) == (4401, Remedy.RENEW)


# --- Opening


async def test_a_refused_token_is_renewed_once(gw: Running) -> None:
    client_id = gw.fresh("bob")
    tokens = iter([token(client_id, ttl_s=-3600), token(client_id)])
    async with Client(gw.url, lambda: next(tokens), "phone") as bob, bob.live() as live:
        assert (await within(anext(live))).client_id == client_id


async def test_a_refused_handshake_raises_what_its_answer_says(gw: Running) -> None:
    async with Client(gw.url, "a-token", "phone") as stranger, Client(gw.url, token("bob")) as nowhere:
        with pytest.raises(GatewayError, match="401 unauthorized") as caught:
            async with stranger.live():
                pass
        assert caught.value.remedy is Remedy.RENEW
        with pytest.raises(GatewayError, match="422 invalid: device_id"):
            async with nowhere.live():
                pass


async def test_a_handshake_that_is_put_off_says_until_when(gw: Running) -> None:
    bearer = token(gw.fresh("bob"))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(SOCKETS_PER_CLIENT):
            await stack.enter_async_context(Client(gw.url, bearer, f"phone-{number}", gw.http).live())
        with pytest.raises(GatewayError, match="429 rate_limited") as caught:
            await stack.enter_async_context(Client(gw.url, bearer, "one-more", gw.http).live())
        assert caught.value.remedy is Remedy.RETRY
        assert caught.value.retry_after_s == 5


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_the_token_does_not_follow_a_redirect(status: int) -> None:
    asked: list[str] = []

    def elsewhere(socket: ServerConnection, request: Request) -> Response:
        asked.append(request.path)
        response = socket.respond(HTTPStatus(status), "over there")
        response.headers["Location"] = "/elsewhere"
        return response

    async with talking(saying(), answer=elsewhere) as client:
        with pytest.raises(GatewayError, match=f"{status}: without a code") as caught:
            async with client.live():
                pass
        assert caught.value.code is None
    assert asked == ["/v1/ws?version=0&device_id=phone"]


async def test_a_socket_goes_past_the_proxies_of_the_environment(gw: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "SOCKS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    async with client_of(gw, "bob") as bob, bob.live() as live:
        assert (await within(anext(live))).version == 0


async def test_no_compression_is_offered() -> None:
    offered: list[Request] = []

    def look(_: ServerConnection, request: Request) -> None:
        offered.append(request)

    async with talking(saying(), answer=look) as client, client.live():
        [request] = offered
        assert "Sec-WebSocket-Extensions" not in request.headers
        assert request.headers["Sec-WebSocket-Protocol"] == "info.v1"
        assert request.headers["Authorization"] == "Bearer a-token"


async def test_a_server_that_does_not_speak_the_protocol_is_left_alone() -> None:
    async with talking(saying(), subprotocols=None) as client:
        with pytest.raises(GatewayError, match="no answer") as caught:
            async with client.live():
                pass
        assert caught.value.remedy is Remedy.RETRY


async def test_a_handshake_without_an_answer_is_an_error_without_a_status(unused_tcp_port: int) -> None:
    async with Client(f"http://127.0.0.1:{unused_tcp_port}", "secret-token", "phone") as client:
        with pytest.raises(GatewayError, match="no answer: ConnectionRefusedError"):
            async with client.live():
                pass

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}", "secret-token", "phone", call_s=0.05) as client:
        with pytest.raises(GatewayError, match="no answer: TimeoutError"):
            async with client.live():
                pass
        gone.set()


# --- The end


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (1000, Remedy.RETRY),
        (1001, Remedy.RETRY),
        (1002, Remedy.NONE),
        (1003, Remedy.NONE),
        (1005, Remedy.RETRY),
        (1006, Remedy.RETRY),
        (1007, Remedy.NONE),
        (1009, Remedy.NONE),
        (1011, Remedy.RETRY),
        (1012, Remedy.RETRY),
        (1013, Remedy.RETRY),
        (3000, Remedy.RETRY),
        (4400, Remedy.NONE),
        (4401, Remedy.RENEW),
        (4408, Remedy.RETRY),
        (4409, Remedy.NONE),
        (4429, Remedy.RETRY),
        (4999, Remedy.RETRY),
    ],
)
def test_each_close_code_has_the_remedy_of_the_protocol(code: int, remedy: Remedy) -> None:
    assert SocketClosed(code, "").remedy is remedy


@pytest.mark.parametrize(
    ("code", "reason", "retry_s"),
    [
        (1012, '{"retry_ms":1500}', 1.5),
        (1012, '{"retry_ms":-1}', 0),
        (1012, '{"retry_ms":"soon"}', None),
        (1012, "soon", None),
        (1012, "", None),
        (1013, '{"retry_ms":1500}', None),
    ],
)
def test_a_restart_says_when_to_come_back(code: int, reason: str, retry_s: float | None) -> None:
    assert SocketClosed(code, reason).retry_s == retry_s


async def test_a_gateway_that_restarts_says_when_to_come_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gw, client_of(gw, "bob") as bob, bob.live() as live:
        gw.server.should_exit = True
        end = await closed(live)
        assert (end.code, end.remedy) == (1012, Remedy.RETRY)
        assert end.retry_s is not None


async def test_of_two_sockets_of_a_device_the_older_is_not_opened_again(gw: Running) -> None:
    async with client_of(gw, "bob") as bob, bob.live() as older, bob.live() as newer:
        end = await closed(older)
        assert (end.code, end.remedy) == (4409, Remedy.NONE)
        assert (await within(anext(newer))).version == 0


async def test_whoever_logs_out_does_not_come_back(gw: Running) -> None:
    async with client_of(gw, "bob") as bob:
        for leave in (bob.unregister, bob.end):
            await bob.register("apns", f"push-token-of-{named(bob)}")
            async with bob.live() as live:
                await leave()
                end = await closed(live)
                assert (end.code, end.remedy) == (4401, Remedy.NONE)


async def test_a_device_that_was_logged_out_by_another_needs_a_new_token(gw: Running) -> None:
    async with client_of(gw, "bob") as bob, bob.live() as live:
        await Client(gw.url, token(named(bob)), "phone", gw.http).unregister()
        end = await closed(live)
        assert (end.code, end.remedy) == (4401, Remedy.RENEW)


async def test_a_connection_that_is_cut_off_ends_without_a_close_frame() -> None:
    async def handler(socket: ServerConnection) -> None:
        socket.transport.abort()

    async with talking(handler) as client, client.live() as live:
        assert (await closed(live)).code == 1006
    async with talking(saying()) as client, client.live() as live:
        live.abort()
        assert (await closed(live)).code == 1006


@pytest.mark.parametrize("failure", [None, RuntimeError("the app has failed"), asyncio.CancelledError()])
async def test_a_socket_is_closed_at_the_end_of_its_block(failure: BaseException | None) -> None:
    codes: asyncio.Queue[int | None] = asyncio.Queue()

    async def handler(socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await socket.recv()
        codes.put_nowait(socket.close_code)

    async with talking(handler) as client:
        with contextlib.suppress(RuntimeError, asyncio.CancelledError):
            async with client.live() as live:
                if failure is not None:
                    raise failure
        assert await within(codes.get()) == 1000
        assert (await closed(live)).code == 1000


# --- Secrets


async def test_tokens_are_neither_shown_nor_logged(gw: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client_id = gw.fresh("bob")
    first, second, bad = token(client_id), token(client_id, ttl_s=60), token("somebody-else")
    shown: list[str] = []
    async with Client(gw.url, first, "phone") as bob, bob.live() as live:
        await live.renew(second)
        shown.append(repr(live))
        with pytest.raises(GatewayError) as caught:
            await live.renew(bad)
        shown += [str(caught.value), repr(caught.value), repr(await closed(live))]
    async with Client(gw.url, bad[:-1], "phone") as stranger:
        with pytest.raises(GatewayError) as caught:
            async with stranger.live():
                pass
        shown += [str(caught.value), repr(caught.value)]
    records = [record for record in caplog.records if record.name.startswith(("websockets", "gateway.client"))]
    for text in [*shown, *(f"{record.getMessage()} {record.args}" for record in records)]:
        for secret in (first, second, bad[:-1]):
            assert secret not in text

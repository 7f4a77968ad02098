import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from gateway.client import Client, GatewayError, Remedy
from tests.client.played import ADDRESS, VIDEO, Played, client_of, named, packet_of, problem
from tests.running import Running, token, within


async def test_a_refused_token_is_renewed_once_and_the_call_repeated() -> None:
    played = Played(problem(401, "unauthorized"), httpx.Response(200, content=packet_of()), problem(404, "not_found"))
    tokens = iter(["old", "new"])
    client = played.client(lambda: next(tokens))
    assert await client.poll() is not None
    with pytest.raises(GatewayError):
        await client.poll()
    sent = [request.headers["authorization"] for request in played.asked]
    assert sent == ["Bearer old", "Bearer new", "Bearer new"]


async def test_a_token_that_is_refused_again_is_an_error() -> None:
    played = Played(problem(401, "unauthorized"), problem(401, "unauthorized"))
    tokens = iter(["old", "new"])
    with pytest.raises(GatewayError) as caught:
        await played.client(lambda: next(tokens)).poll()
    assert caught.value.remedy is Remedy.RENEW


async def test_a_token_that_cannot_be_renewed_is_an_error_at_once() -> None:
    played = Played(problem(401, "unauthorized"))
    with pytest.raises(GatewayError, match="401 unauthorized"):
        await played.client("a-token").poll()
    assert len(played.asked) == 1


async def test_calls_that_are_refused_together_share_one_new_token() -> None:
    asked = 0

    async def provide() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return f"token-{asked}"

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] == "Bearer token-1":
            return problem(401, "unauthorized")
        return httpx.Response(200, content=packet_of())

    client = Client(ADDRESS, provide, http=httpx.AsyncClient(transport=httpx.MockTransport(answer)))
    await asyncio.gather(*(client.poll() for _ in range(5)))
    assert asked == 2


@pytest.mark.parametrize("bad", ["", "two words", "with-newline\n", "caf\u00e9"])
async def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it(bad: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or has") as caught:
        await Played().client(bad).poll()
    assert not bad or bad not in str(caught.value)


async def test_a_call_without_an_answer_is_an_error_without_a_status() -> None:
    with pytest.raises(GatewayError, match="no answer: ConnectError") as caught:
        await Played(httpx.ConnectError("Bearer secret-token")).client().poll()
    assert caught.value.status is None
    assert caught.value.retryable


async def test_a_gateway_that_never_answers_is_given_up(gw: Running) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}", "a-token", call_s=0.05) as client:
        with pytest.raises(GatewayError, match="no answer"):
            await within(client.poll())
        with pytest.raises(GatewayError, match="no answer"):
            await within(client.end())
        gone.set()


async def test_a_success_that_nobody_understands_is_retried() -> None:
    portal = httpx.Response(200, text="<html>Please log in to this wireless network</html>")
    with pytest.raises(GatewayError, match="not what the protocol says") as caught:
        await Played(portal).client().poll()
    assert caught.value.remedy is Remedy.RETRY


async def test_neither_tokens_nor_signed_urls_are_shown_or_logged(
    gw: Running, video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bearer = token("alice")
    shown: list[str] = []
    async with Client(gw.url, bearer) as alice, client_of(gw, "bob") as bob:
        announced = await alice.announce(named(bob), size=len(VIDEO))
        shown += [repr(alice), repr(announced)]
        await alice.upload(announced, video)
        await bob.download(announced.video_id, tmp_path / "received.mp4")
    query = announced.upload.url.partition("?")[2]
    assert query
    ours = ("httpx", "httpcore", "gateway.client")
    records = [record for record in caplog.records if record.name.startswith(ours)]
    assert {"httpx", "httpcore.http11"} <= {record.name for record in records}
    said = [*shown, *(f"{record.getMessage()} {record.args}" for record in records)]
    for text in said:
        assert bearer not in text
        assert query not in text
        assert "sig=" not in text.lower()


async def test_whoever_issues_tokens_and_does_not_answer_holds_up_nobody_for_ever() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    played = Played()
    http = httpx.AsyncClient(transport=httpx.MockTransport(played))
    client = Client(ADDRESS, never, "phone", http, call_s=0.05)
    one, other = await within(asyncio.gather(client.poll(), client.poll(), return_exceptions=True), 2)
    assert isinstance(one, GatewayError)
    assert isinstance(other, GatewayError)
    assert one.remedy is Remedy.RETRY
    assert played.asked == []

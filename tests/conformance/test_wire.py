"""HTTP and frames are read as they go over a wire, and written down again."""

import asyncio

import pytest
from websockets.frames import Opcode

from tests.conformance.wire import Answer, Message, Request, read_answer, read_body, read_message, read_request


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_a_request_is_written_down_as_it_was_read() -> None:
    head = b'GET /v1/poll?wait=5&version=7 HTTP/1.1\r\nhost: here\r\nif-none-match: "7"\r\n\r\n'
    request = await read_request(reader_of(head))
    assert (request.method, request.path, request.query["version"]) == ("GET", "/v1/poll", "7")
    assert request.encode() == head


async def test_a_body_in_chunks_is_passed_on_in_one_piece() -> None:
    head = b"POST /v1/sync HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    reader = reader_of(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    request = await read_request(reader)
    assert await read_body(reader, request.headers) == b"abcde"
    assert request.encode(5) == b"POST /v1/sync HTTP/1.1\r\ncontent-length: 5\r\n\r\n"


async def test_what_is_secret_in_a_request_is_not_shown() -> None:
    request = Request("PUT", "/objects/1?signature=5ec4e7", {"authorization": "Bearer 5ec4e7"})
    assert "5ec4e7" not in f"{request} {request!r}"


@pytest.mark.parametrize("answer", [Answer(200, {"a": "b"}, b"abc"), Answer(204), Answer(304, {"etag": '"7"'})])
async def test_an_answer_is_read_as_it_was_written_down(answer: Answer) -> None:
    assert await read_answer(reader_of(b"HTTP/1.1 100 Continue\r\n\r\n" + answer.encode())) == answer


async def test_the_answer_to_head_says_how_long_the_body_would_be() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert (await read_answer(reader_of(head), "HEAD")).encode() == head


async def test_the_end_of_a_connection_is_an_error() -> None:
    with pytest.raises(EOFError):
        await read_answer(reader_of(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc"))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("masked", [False, True])
async def test_a_frame_is_read_as_it_was_written_down(size: int, masked: bool) -> None:
    message = Message(Opcode.TEXT, bytes(range(256)) * (size // 256) + bytes(size % 256), fin=True, masked=masked)
    assert await read_message(reader_of(message.encode())) == message

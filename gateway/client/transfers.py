"""The bytes of videos, up and down: from and to files, counted, and resumed where they broke off."""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx

from gateway.client.calls import Calls
from gateway.client.failures import DownloadError, UploadError, reaching, refusal
from gateway.client.messages import Announced

CHUNK_BYTES = 256 * 1024

Source = bytes | Path | AsyncIterator[bytes]
"""The bytes of a video. An iterator is good for one try."""

Progress = Callable[[int, int], None]
"""Told how many bytes have moved, and how many there are."""


async def upload(calls: Calls, announced: Announced, source: Source, progress: Progress | None) -> None:
    """Store the bytes; done, too, where the store has them already. Raises UploadError, and ValueError where the source
    has not as many bytes as were announced."""
    there = announced.upload
    with reaching(UploadError):
        answer = await calls.signed(
            there.method,
            there.url,
            headers={**there.headers, "content-length": str(announced.size)},
            content=_counted(_chunks(source), announced.size, progress),
        )
    if not answer.is_success and answer.status_code != HTTPStatus.PRECONDITION_FAILED:
        raise refusal(answer, UploadError)


def measured(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


async def _chunks(source: Source) -> AsyncIterator[bytes]:
    if isinstance(source, Path):
        with await asyncio.to_thread(source.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
    elif isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
    else:
        async for chunk in source:
            yield chunk


async def _counted(chunks: AsyncIterator[bytes], size: int, progress: Progress | None) -> AsyncIterator[bytes]:
    """The chunks. Raises ValueError as soon as it is clear that they are not `size` bytes."""
    moved = 0
    async for chunk in chunks:
        moved += len(chunk)
        if moved > size:
            break
        yield chunk
        if progress:
            progress(moved, size)
    if moved != size:
        raise ValueError(f"{size} bytes were announced, and the source has {'more' if moved > size else moved}")


def part_of(to: Path, video_id: str) -> Path:
    """The file in which a video is kept until it is complete, and then becomes `to`."""
    return to.with_name(f".{to.name}.{video_id}.part")


async def download(calls: Calls, url: str, part: Path, progress: Progress | None) -> int:
    """Fetch the bytes of a video into the file `part`, going on from what is there; how many they are. Raises
    DownloadError, after which the next try goes on from what came."""
    have = await asyncio.to_thread(_length, part)
    asked = {"accept-encoding": "identity", **({"range": f"bytes={have}-"} if have else {})}
    with reaching(DownloadError):
        response = await calls.signed("GET", url, headers=asked, stream=True)
    try:
        return await _received(response, part, have, progress)
    finally:
        await response.aclose()


def _length(path: Path) -> int:
    """How many bytes a file has; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _received(response: httpx.Response, part: Path, have: int, progress: Progress | None) -> int:
    """Write what comes to `part`, behind the `have` bytes there where that is what comes; how many it then has."""
    start, size = await _extent(response, have)
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if start == size:
            return size
        await asyncio.to_thread(part.unlink)  # it is longer than the video, so it is none of it
        raise DownloadError(416, None, "what was there already is not of this video, and was removed")
    with await asyncio.to_thread(part.open, "ab" if start else "wb") as file:
        await _written(response, file, start, size, progress)
        await asyncio.to_thread(_make_durable, file)
    return size


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def _extent(response: httpx.Response, have: int) -> tuple[int, int]:
    """Where in the video the bytes begin that come, and how many it has in all (RFC 9110, section 14.4)."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("content-range", ""))
    length = response.headers.get("content-length", "")
    match response.status_code:
        case HTTPStatus.OK if length.isdecimal():
            return 0, int(length)
        case HTTPStatus.PARTIAL_CONTENT if found and found[1] == str(have):
            return have, int(found[2])
        case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE if found and have:
            return have, int(found[2])
        case HTTPStatus.OK | HTTPStatus.PARTIAL_CONTENT:
            raise DownloadError(response.status_code, None, "the answer does not say which bytes it has")
    with reaching(DownloadError):
        await response.aread()
    raise refusal(response, DownloadError)


async def _written(response: httpx.Response, file: BinaryIO, start: int, size: int, progress: Progress | None) -> None:
    moved = start
    chunks = response.aiter_raw()  # as they come: what a full chunk waits for would be lost
    while True:
        with reaching(DownloadError):
            chunk = await anext(chunks, None)
        if chunk is None:
            break
        await asyncio.to_thread(file.write, chunk)
        moved += len(chunk)
        if progress:
            progress(moved, size)
    if moved != size:
        raise DownloadError(None, None, f"{moved} of {size} bytes came")

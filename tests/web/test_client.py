"""The client for JavaScript on a real gateway: in Node, and beside the client for Python."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.client import Client, Device, FileStore, VideoFolder
from tests.client.played import VIDEO
from tests.running import SECRET, App, Running, token, until, within
from tests.web.node import HERE, NODE


def declared(file: Path) -> int:
    """How many tests a file has: each begins its line."""
    return len(re.findall(r"^test\(", file.read_text(), re.MULTILINE))


async def node(*arguments: str | Path, **environment: str) -> str:
    """What Node prints, which ends well, and by itself."""
    process = await asyncio.create_subprocess_exec(
        *(NODE, *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await within(process.communicate(), 240)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("name", ["client-calls.test.js", "client-device.test.js"])
async def test_everything_passes_in_node(gw: Running, name: str) -> None:
    given = {"TEST_GATEWAY": gw.url, "TEST_SECRET": SECRET, "TEST_PYTHON": sys.executable}
    how = ("--test", "--test-reporter=tap", "--test-timeout=60000", "--test-force-exit")
    output = await node(*how, HERE / name, **given)
    counts = {name: int(count) for name, count in re.findall(r"^# (\w+) (\d+)$", output, re.MULTILINE)}
    tests = declared(HERE / name)
    assert tests > 0
    assert (counts["tests"], counts["pass"], counts["skipped"], counts["todo"]) == (tests, tests, 0, 0)


# --- Beside the client for Python


async def node_device(gw: Running, phone: Path, client_id: str, **send: str) -> None:
    """Open a device in Node on what this phone keeps, until it has said everything."""
    order = {"address": gw.url, "clientId": client_id, "bearer": token(client_id), "folder": str(phone)}
    await node(
        HERE / "client-process.js", json.dumps({**order, "offline": bool(send), **({"send": send} if send else {})})
    )


@asynccontextmanager
async def python_device(gw: Running, phone: Path, client_id: str) -> AsyncIterator[Device]:
    client = Client(gw.url, token(client_id), "phone", gw.http, client_id=client_id)
    async with Device(client, FileStore(phone / "record"), VideoFolder(client, phone / "videos")) as device:
        yield device


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(VIDEO)
    return path


async def bytes_for(app: App) -> bytes:
    """The bytes of the one video that waits for somebody."""
    [entry] = (await app.packet())["incoming"]
    return (await app.download(entry["video_id"])).content


async def test_node_goes_on_with_what_python_has_stored(
    gw: Running, alice: App, bob: App, tmp_path: Path, video: Path
) -> None:
    received = await bob.send(alice.client_id, VIDEO)
    async with python_device(gw, tmp_path, alice.client_id) as device:

        async def ready() -> bool:
            return any(entry.here for entry in device.received)

        await until(ready, "a video is here")
        await within(device.settled())
        device.network(online=False)
        await device.viewed(received)
        await device.send(str(video), bob.client_id)
    await node_device(gw, tmp_path, alice.client_id)
    assert [entry["status"] for entry in (await bob.packet())["outgoing"]] == ["viewed"]
    assert await bytes_for(bob) == VIDEO


async def test_python_goes_on_with_what_node_has_stored(
    gw: Running, alice: App, bob: App, tmp_path: Path, video: Path
) -> None:
    await node_device(gw, tmp_path, alice.client_id, source=str(video), recipientId=bob.client_id)
    assert (await bob.packet())["incoming"] == []
    async with python_device(gw, tmp_path, alice.client_id) as device:
        [sent] = device.sent
        assert sent.recipient_id == bob.client_id
        await within(device.settled())
    assert await bytes_for(bob) == VIDEO

"""The client for Python as a client under test, and an example for whoever writes another one.

What is asked of it, and what it answers, stands in `docs/conformance.md`.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway.client import Client, Device, FileStore, ReceivedStatus, VideoFolder


class Tokens:
    """Where tokens come from: the first from the environment, each other one is asked for."""

    def __init__(self, first: str) -> None:
        self._given: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._given.set_result(first)
        self._asked = False

    async def __call__(self) -> str:
        if self._asked:
            self._given = asyncio.get_running_loop().create_future()
            tell({"tell": "token"})
        self._asked = True
        return await self._given

    def give(self, token: str) -> None:
        if not self._given.done():
            self._given.set_result(token)


def tell(members: Mapping[str, object]) -> None:
    """Say a line."""
    sys.stdout.buffer.write(orjson.dumps(members) + b"\n")
    sys.stdout.buffer.flush()


async def tell_changes(device: Device, videos: VideoFolder) -> None:
    async for change in device.changes():
        told = {"tell": "change", "key": change.key, "video_id": change.video_id, "peer": change.peer_id}
        told |= {"status": change.status, "reason": change.reason}
        if change.status is ReceivedStatus.READY:
            told["file"] = str(videos.path(change.key))
        tell(told)


def state(device: Device) -> dict[str, object]:
    """What an app would show."""
    return {
        "sent": [{"key": video.key, "video_id": video.video_id, "status": video.status} for video in device.sent],
        "received": [{"video_id": video.video_id, "status": video.status} for video in device.received],
    }


async def do(device: Device, tokens: Tokens, command: Mapping[str, Any]) -> None:
    """Do as one line says, and answer it once that is stored."""
    answer: dict[str, object] = {"answer": command.get("id")}
    match command["do"]:
        case "send":
            answer["key"] = await device.send(command["file"], command["to"])
        case "viewed":
            await device.viewed(command["video_id"])
        case "delete":
            await device.delete(command["key"])
        case "foreground":
            device.foreground(active=command["active"])
        case "network":
            device.network(online=command["online"])
        case "register":
            await device.register(command["platform"], command["token"])
        case "push":
            await device.handle_push(command["payload"])
        case "state":
            answer |= state(device)
        case "token":
            tokens.give(command["token"])
            return
    tell(answer)


async def obey(device: Device, tokens: Tokens) -> None:
    """Do as the lines say, in their order, until one says to exit or there are no more. A push may take a while."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    pushes: set[asyncio.Task[None]] = set()
    async for line in reader:
        command = orjson.loads(line)
        if command["do"] == "exit":
            break
        if command["do"] == "push":
            push = asyncio.create_task(do(device, tokens, command))
            pushes.add(push)
            push.add_done_callback(pushes.discard)
        else:
            await do(device, tokens, command)
    for push in pushes:
        push.cancel()


async def main(environment: Mapping[str, str] = os.environ) -> None:
    folder, tokens = Path(environment["CONFORMANCE_STATE"]), Tokens(environment["CONFORMANCE_TOKEN"])
    me, device_id = environment["CONFORMANCE_CLIENT_ID"], environment["CONFORMANCE_DEVICE_ID"]
    client = Client(environment["CONFORMANCE_ADDRESS"], tokens, device_id, client_id=me)
    videos = VideoFolder(client, folder / "videos")
    async with client, Device(client, FileStore(folder / "record"), videos) as device:
        telling = asyncio.create_task(tell_changes(device, videos))
        try:
            await obey(device, tokens)
        finally:
            telling.cancel()


if __name__ == "__main__":
    asyncio.run(main())

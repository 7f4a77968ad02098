"""Starlette the usual way: one reader of redis-py's pub/sub for the process, a queue and a sending task for each
socket.

REDIS_URL says where Redis is. A client connects to /?c=<index> and gets what is published to user:<index>.
"""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

redis = Redis.from_url(os.environ["REDIS_URL"])
pubsub = redis.pubsub(ignore_subscribe_messages=True)
queues: dict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def read() -> None:
    async for message in pubsub.listen():
        for queue in queues.get(message["channel"].decode(), ()):
            queue.put_nowait(message["data"].decode())


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    await pubsub.subscribe("nobody")  # listen() ends at once where nothing is subscribed
    reader = asyncio.create_task(read())
    yield
    reader.cancel()


async def send(websocket: WebSocket, queue: asyncio.Queue[str]) -> None:
    while True:
        await websocket.send_text(await queue.get())


async def endpoint(websocket: WebSocket) -> None:
    channel = f"user:{websocket.query_params['c']}"
    queue: asyncio.Queue[str] = asyncio.Queue()
    await websocket.accept()
    queues[channel].add(queue)
    await pubsub.subscribe(channel)
    sender = asyncio.create_task(send(websocket, queue))
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        sender.cancel()
        queues[channel].discard(queue)
        if not queues[channel]:
            del queues[channel]
            await pubsub.unsubscribe(channel)


app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan)

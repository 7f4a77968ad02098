# mypy: ignore-errors
# (its packages are in an environment of their own)
"""python-socketio with its manager for Redis, as its documentation has it: a room for each user.

REDIS_URL says where Redis is. WebSockets only, since long polling is not measured.
"""

import os
from urllib.parse import parse_qs

import socketio

server = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]), transports=["websocket"]
)
app = socketio.ASGIApp(server)


@server.event
async def connect(sid, environ):
    await server.enter_room(sid, f"user:{parse_qs(environ['QUERY_STRING'])['c'][0]}")

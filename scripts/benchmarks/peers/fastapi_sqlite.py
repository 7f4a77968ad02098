# mypy: ignore-errors
# (its packages are in an environment of their own)
"""The plainest backend in Python that does the whole job: a status change in, kept in SQLite, both users' packets out.

DATABASE, REDIS_URL and SECRET say what it works with. SQLite is called where the request is handled: on one worker a
commit of a fraction of a millisecond costs less than handing it to a thread and back. Every change is one transaction,
with synchronous=FULL, so it is on the disk before the call is answered. Packets are published on user:<user>.
"""

import os
import sqlite3
from contextlib import asynccontextmanager
from typing import Annotated, Literal

import jwt
import orjson
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from redis.asyncio import Redis

RANKS = {"uploaded": 0, "notified": 1, "downloaded": 2, "viewed": 3}
COLUMNS = ("video_id", "sender_id", "recipient_id", "status", "size", "content_type", "at")

database = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
redis = Redis.from_url(os.environ["REDIS_URL"])
bearer = HTTPBearer()


@asynccontextmanager
async def lifespan(_app):
    yield
    await redis.aclose()


app = FastAPI(lifespan=lifespan)


class Change(BaseModel):
    status: Literal["notified", "downloaded", "viewed"]


def user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> str:
    try:
        return jwt.decode(credentials.credentials, os.environ["SECRET"], algorithms=["HS256"])["sub"]
    except jwt.InvalidTokenError as error:
        raise HTTPException(401) from error


def advance(video_id: str, recipient_id: str, status: str) -> list[tuple[str, bytes]]:
    """Keep it, and answer the packets of both users; none if it is no news."""
    database.execute("BEGIN IMMEDIATE")
    try:
        found = database.execute(
            "SELECT sender_id, status FROM videos WHERE video_id = ? AND recipient_id = ?", (video_id, recipient_id)
        ).fetchone()
        if found is None:
            raise HTTPException(404)
        sender_id, before = found
        if RANKS[status] <= RANKS[before]:
            return []
        database.execute("UPDATE videos SET status = ? WHERE video_id = ?", (status, video_id))
        ((version,),) = database.execute("UPDATE versions SET version = version + 1 RETURNING version")
        return [(each, packet(each, version)) for each in (recipient_id, sender_id)]
    finally:
        database.execute("COMMIT")


def packet(client_id: str, version: int) -> bytes:
    return orjson.dumps(
        {
            "type": "info",
            "client_id": client_id,
            "version": version,
            "outgoing": videos("sender_id", client_id),
            "incoming": videos("recipient_id", client_id),
        }
    )


def videos(column: Literal["sender_id", "recipient_id"], client_id: str) -> list[dict[str, object]]:
    found = database.execute(f"SELECT {', '.join(COLUMNS)} FROM videos WHERE {column} = ?", (client_id,))  # noqa: S608
    return [dict(zip(COLUMNS, row, strict=True)) for row in found]


@app.post("/v1/videos/{video_id}/status")
async def status(video_id: str, change: Change, user_id: Annotated[str, Depends(user)]):
    for client_id, body in advance(video_id, user_id, change.status):
        await redis.publish(f"user:{client_id}", body)
    return {"result": "ok"}

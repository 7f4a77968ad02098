"""The other side of a client in tests: answers that a test plays, and real ones from a gateway."""

from collections import deque
from collections.abc import AsyncIterator

import httpx

from gateway.client import Announced, Backoff, Client, Progress, Token, Upload
from gateway.transit.state import ClientId, VideoId
from tests.running import Running, token

VIDEO = bytes(range(256)) * 4096
"""A MiB: several chunks."""

ADDRESS = "https://gateway.test"
FIRST = "0199c0de-0000-7000-8000-000000000001"
SECOND = "0199c0de-0000-7000-8000-000000000002"
SECRET_URL = "https://store.test/objects/video?X-Signature=5ec4e7"
QUICK = Backoff(base_s=0.001, cap_s=0.002, deadline_s=5)

Step = httpx.Response | Exception


def client_of(gw: Running, name: str, device_id: str | None = "phone") -> Client:
    client_id = gw.fresh(name)
    return Client(gw.url, token(client_id), device_id, gw.http, client_id=client_id)


def named(client: Client) -> str:
    assert client.client_id is not None
    return client.client_id


class Played:
    """Plays the gateway and its store: answers what it was told to, in order, and remembers what was asked."""

    def __init__(self, *steps: Step) -> None:
        self.steps = deque(steps)
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        step = self.steps.popleft()
        if isinstance(step, Exception):
            raise step
        return step

    def client(self, bearer: Token = "secret-token") -> Client:
        return Client(ADDRESS, bearer, "phone", httpx.AsyncClient(transport=httpx.MockTransport(self)))

    @property
    def calls(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.asked]


def problem(status: int, code: str | None = None, **headers: str) -> httpx.Response:
    body = {"type": "about:blank", "status": status, "detail": "so it is", **({"code": code} if code else {})}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


def announced_as(video_id: str) -> httpx.Response:
    upload = {"method": "PUT", "url": SECRET_URL, "headers": {"content-type": "video/mp4"}, "expires_at": 5}
    return httpx.Response(201, json={"video_id": video_id, "upload": upload})


def an_upload(size: int = len(VIDEO)) -> Announced:
    return Announced(VideoId(FIRST), ClientId("bob"), size, Upload("PUT", SECRET_URL, {"content-type": "video/mp4"}, 5))


def result(outcome: str = "applied") -> httpx.Response:
    return httpx.Response(200, json={"result": outcome, "version": 7})


def located() -> httpx.Response:
    return httpx.Response(200, json={"url": SECRET_URL, "expires_at": 5})


def whole(length: int | str = len(VIDEO), content: bytes = VIDEO) -> httpx.Response:
    return httpx.Response(200, content=streamed(content), headers={"content-length": str(length)})


async def streamed(content: bytes) -> AsyncIterator[bytes]:
    yield content


def ranged(status: int, content: bytes, content_range: str) -> httpx.Response:
    return httpx.Response(status, content=streamed(content), headers={"content-range": content_range})


def packet_of(version: int = 5, client_id: str = "bob") -> bytes:
    return b'{"type":"info","client_id":"%b","version":%d,"outgoing":[],"incoming":[]}' % (client_id.encode(), version)


def moved_to(progress: list[tuple[int, int]]) -> Progress:
    return lambda so_far, size: progress.append((so_far, size))

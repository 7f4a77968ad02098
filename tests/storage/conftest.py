"""What the tests of the stores share: a clock that they set, the stores of objects, and uploads to them."""

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from storage import open_objects, redis_node
from storage.disk import DiskObjects
from storage.objects import ServedObjectStore, UploadGrant
from tests import redis_servers

START_S = 1_750_000_000.0

KEY = "7/01890000-0000-7000-8000-000000000007/alice/bob"
DATA = bytes(range(256)) * 4000
TYPE = "video/mp4"
NAME = KEY.partition("/")[2].replace("/", "~")
"""The name of the file in which the disk keeps `KEY`."""


class SetClock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.RedisServer]:
    """A server for all who leave it as it is; each with a prefix of its own."""
    with redis_servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[redis_servers.RedisServer]:
    """A server that the test may do anything to."""
    with redis_servers.redis_server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that failed is asked again sooner."""
    monkeypatch.setattr(redis_node, "REST_S", 0.05)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_servers.RedisCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with redis_servers.redis_cluster(folder, "--cluster-require-full-coverage", "no") as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(shared_cluster: redis_servers.RedisCluster) -> redis_servers.RedisCluster:
    """A cluster for all, each with a prefix of its own. Whoever breaks it leaves it so; what is left of it goes on."""
    shared_cluster.mend()
    return shared_cluster


@pytest.fixture(params=["memory", "file"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: SetClock) -> AsyncIterator[ServedObjectStore]:
    urls = {"memory": "memory:", "file": f"file://{tmp_path}/objects"}
    async with open_objects(urls[request.param], clock=clock) as objects:
        assert isinstance(objects, ServedObjectStore)
        yield objects


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def cut(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    return stream(data[start : start + size] for start in range(0, len(data), size))


def grant_for(data: bytes, *, key: str = KEY, sha256: str | None = None) -> UploadGrant:
    return UploadGrant(key, len(data), TYPE, sha256)


async def put(objects: ServedObjectStore, key: str, data: bytes = b"data") -> None:
    await objects.receive(grant_for(data, key=key), cut(data))


async def read(objects: ServedObjectStore, key: str, start: int, length: int) -> bytes:
    found = await objects.open(key)
    assert found is not None
    try:
        return b"".join([chunk async for chunk in found.read(start, length)])
    finally:
        await found.close()


async def keys(objects: ServedObjectStore, prefix: str = "", *, after: str = "") -> list[str]:
    return [key async for key in objects.list(prefix, after=after)]


def query_of(url: str) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "root"


@pytest.fixture
async def disk(root: Path, clock: SetClock) -> AsyncIterator[DiskObjects]:
    disk = DiskObjects(root, clock=clock)
    yield disk
    await disk.close()


def file_of(root: Path) -> Path:
    return root / "objects" / "7" / NAME

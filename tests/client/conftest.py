from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.played import VIDEO
from tests.running import Running, running_gateway


@pytest.fixture(scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(VIDEO)
    return path

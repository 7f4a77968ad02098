"""Where the bytes of videos are on this device."""

import asyncio
from pathlib import Path
from typing import Protocol

from gateway.client import transfers
from gateway.client.client import Client
from gateway.client.messages import Announced
from gateway.client.transfers import Progress
from gateway.transit.state import VideoId, valid_video_id


class Videos(Protocol):
    """Measures and moves videos. What cannot be read or written raises OSError."""

    async def measure(self, source: str) -> tuple[int, str]:
        """Size and SHA-256 of a video that is to be sent."""
        ...

    async def upload(self, announced: Announced, source: str, progress: Progress) -> None:
        """Store the bytes. Raises UploadError, and ValueError where they are not as many as were announced."""
        ...

    async def download(self, video_id: VideoId, progress: Progress) -> None:
        """Fetch a video; it is durable once this returns. What came before a failure need not come again. Raises
        DownloadError."""
        ...

    async def discard(self, video_id: VideoId) -> None:
        """Remove what has come of a video that is not wanted any more."""
        ...


class VideoFolder:
    """Received videos as files in a folder, which is made where it is missing. A video that is there whole is the app's
    from then on: to show, to move, to remove."""

    def __init__(self, client: Client, path: Path) -> None:
        self._client = client
        self._path = path

    def path(self, video_id: str) -> Path:
        """Where a received video is, once it is ready. ValueError for what is no video's id: it must not lead out of
        the folder, whoever made it up."""
        if not valid_video_id(video_id):
            raise ValueError("no video's id")
        return self._path / video_id

    async def measure(self, source: str) -> tuple[int, str]:
        return await asyncio.to_thread(transfers.measured, Path(source))

    async def upload(self, announced: Announced, source: str, progress: Progress) -> None:
        await self._client.upload(announced, Path(source), progress=progress)

    async def download(self, video_id: VideoId, progress: Progress) -> None:
        to = self.path(video_id)
        # It may be there already, where the device was killed before it noted that.
        if not await asyncio.to_thread(self._there, to):
            await self._client.download(video_id, to, progress=progress)

    async def discard(self, video_id: VideoId) -> None:
        part = transfers.part_of(self.path(video_id), video_id)
        await asyncio.to_thread(part.unlink, missing_ok=True)

    def _there(self, path: Path) -> bool:
        self._path.mkdir(parents=True, exist_ok=True)
        return path.exists()

from pathlib import Path

import pytest

from gateway.client import VideoFolder
from gateway.transit.state import VideoId
from tests.client.played import FIRST, VIDEO, Played, located, moved_to, whole


@pytest.mark.parametrize("made_up", ["../../etc/passwd", "..", "", "/etc/passwd", f"{FIRST}/../x", FIRST.upper()])
async def test_no_made_up_id_leads_out_of_the_folder(tmp_path: Path, made_up: str) -> None:
    played = Played()
    folder = VideoFolder(played.client(), tmp_path / "videos")
    with pytest.raises(ValueError, match="no video's id"):
        folder.path(made_up)
    with pytest.raises(ValueError, match="no video's id"):
        await folder.download(VideoId(made_up), moved_to([]))
    with pytest.raises(ValueError, match="no video's id"):
        await folder.discard(VideoId(made_up))
    assert played.asked == []


async def test_a_video_that_is_there_already_is_not_fetched_again(tmp_path: Path) -> None:
    played = Played(located(), whole())
    folder = VideoFolder(played.client(), tmp_path / "videos")
    for _ in range(2):
        await folder.download(VideoId(FIRST), moved_to([]))
    assert folder.path(FIRST).read_bytes() == VIDEO
    assert len(played.asked) == 2

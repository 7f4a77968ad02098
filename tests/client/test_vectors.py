"""The test vectors in `tests/vectors/`: this core passes them, and they are what their generator writes."""

from pathlib import Path

import orjson
import pytest

from tests.client.replay import Replay
from tests.client.vectors import HERE, files

STORIES = sorted(path for folder in ("stories", "walks") for path in (HERE / folder).glob("*.json"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_what_follows_in_a_story_is_what_its_file_says(path: Path) -> None:
    story = orjson.loads(path.read_bytes())
    replay = Replay(story)
    assert story["steps"]
    for step in story["steps"]:
        replay.follow(step)


def test_the_files_are_what_their_generator_writes() -> None:
    there = {str(path.relative_to(HERE)): path.read_bytes() for path in HERE.rglob("*.json")}
    written = files()
    assert sorted(there) == sorted(written)
    assert [path for path in written if there[path] != written[path]] == [], "python -m tests.client.vectors"


def test_each_story_has_a_name_of_its_own() -> None:
    names = [orjson.loads(path.read_bytes())["name"] for path in STORIES]
    assert len(set(names)) == len(names)

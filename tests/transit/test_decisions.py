"""What a rule answers, and where the bytes of a video are kept."""

import pytest

from gateway.transit.decisions import VideoRef
from gateway.transit.state import ClientId, VideoId

KEY = "c/019ab000-0000-7000-8000-00000000000c/alice/bob"
REF = VideoRef(VideoId("019ab000-0000-7000-8000-00000000000c"), ClientId("alice"), ClientId("bob"))


def test_the_key_of_an_object_says_which_video_from_whom_to_whom() -> None:
    assert REF.object_key == KEY
    assert VideoRef.parse(KEY) == REF


@pytest.mark.parametrize(
    "key",
    ["", "c", KEY[2:], "d" + KEY[1:], KEY + "/more", KEY.replace("-7", "-4"), KEY + "\n", "c/x/alice/bob", KEY[:-4]],
)
def test_what_is_not_such_a_key_names_no_video(key: str) -> None:
    assert VideoRef.parse(key) is None

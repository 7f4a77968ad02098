"""What is kept of one client, and its stored form."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transit.state import (
    ClientId,
    ClientState,
    Device,
    DeviceId,
    Pair,
    Status,
    UnreadableDocument,
    Video,
    VideoId,
    decode,
    encode,
    minted_at,
    valid_id,
    valid_video_id,
)

BOB = ClientId("bob")
NOW = 1_763_914_800_000
FORWARD = {
    (Status.UPLOADED, Status.NOTIFIED),
    (Status.UPLOADED, Status.DOWNLOADED),
    (Status.UPLOADED, Status.VIEWED),
    (Status.UPLOADED, Status.EXPIRED),
    (Status.NOTIFIED, Status.DOWNLOADED),
    (Status.NOTIFIED, Status.VIEWED),
    (Status.NOTIFIED, Status.EXPIRED),
    (Status.DOWNLOADED, Status.VIEWED),
    (Status.DOWNLOADED, Status.EXPIRED),
}


def video(status: Status = Status.UPLOADED, at: int = NOW) -> Video:
    return Video(status, at, NOW, 1_048_576, "video/mp4")


@pytest.mark.parametrize(("old", "new"), list(itertools.product(Status, Status)))
def test_a_status_moves_only_forward_and_never_from_one_end_to_the_other(old: Status, new: Status) -> None:
    assert video(old).moves_to(new) is ((old, new) in FORWARD)


def test_only_viewed_and_expired_end_a_video() -> None:
    assert {status for status in Status if video(status).ended} == {Status.VIEWED, Status.EXPIRED}


def test_the_time_of_a_status_never_runs_back() -> None:
    assert video(at=NOW).moved(Status.VIEWED, NOW - 5_000).at == NOW
    assert video(at=NOW).moved(Status.VIEWED, NOW + 5_000).at == NOW + 5_000


def test_the_recipient_does_not_see_that_it_was_notified() -> None:
    notified = video().moved(Status.NOTIFIED, NOW + 1)
    assert (notified.shown_status, notified.shown_at) == (Status.UPLOADED, NOW)
    downloaded = notified.moved(Status.DOWNLOADED, NOW + 2)
    assert (downloaded.shown_status, downloaded.shown_at) == (Status.DOWNLOADED, NOW + 2)


@pytest.mark.parametrize("text", ["a", "A-b_c.9", "...", ".a", "a" * 64, "-"])
def test_ids_of_clients_and_devices(text: str) -> None:
    assert valid_id(text)


@pytest.mark.parametrize("text", ["", ".", "..", "a" * 65, "a b", "a/b", "ä", "a\n", "a:b", "\x00"])
def test_what_is_no_id(text: str) -> None:
    assert not valid_id(text)


def test_an_id_of_a_video_is_a_canonical_uuid_of_version_seven() -> None:
    good = "0199aa00-0000-7000-8000-000000000000"
    assert valid_video_id(good)
    for bad in (
        good.upper().replace("0199AA00", "0199AA0F"),
        good.replace("-7", "-4"),
        good.replace("-8", "-c"),
        good + "\n",
        good.replace("-", ""),
        "{" + good + "}",
    ):
        assert not valid_video_id(bad), bad


def test_an_id_tells_when_it_was_minted() -> None:
    assert minted_at(VideoId("019ab000-1234-7000-8000-000000000000")) == 0x019AB0001234


def test_a_client_never_heard_of_is_an_empty_document() -> None:
    assert decode(BOB, b"") == ClientState(BOB)
    assert encode(ClientState(BOB)) == b""
    assert ClientState(BOB).due is None


def test_a_client_is_due_at_the_first_of_its_times() -> None:
    row = Device("apns", "production", "key", NOW, NOW)
    rows = {DeviceId("one"): row._replace(next_at=7), DeviceId("two"): row._replace(next_at=5), DeviceId("no"): row}
    assert ClientState(BOB, devices=rows).due == 5
    assert ClientState(BOB, devices=rows, check_at=3).due == 3
    assert ClientState(BOB, devices={DeviceId("no"): row}).due is None


@pytest.mark.parametrize(
    "body",
    [
        b"what",
        b"[]",
        b"1",
        b"{}",
        b'{"f":2,"v":1}',
        b'{"f":1}',
        b'{"f":1,"v":1,"o":{"bob":7}}',
        b'{"f":1,"v":1,"o":{"bob":[1,{"id":["u",1]}]}}',
        b'{"f":1,"v":1,"o":{"bob":[1,{"id":["?",1,1,1,0]}]}}',
        b'{"f":1,"v":1,"d":{"phone":["apns"]}}',
        b'{"f":1,"v":1,"e":7}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_a_clients_document_is_said_to_be_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableDocument):
        decode(BOB, body)


_ids = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
_times = st.integers(1, 2**50)
_video_ids = st.uuids().map(lambda uuid: VideoId(str(uuid)))
_videos = st.builds(
    Video,
    st.sampled_from(Status),
    _times,
    _times,
    st.integers(1, 2**53),
    st.sampled_from(["video/mp4", "video/x"]),
    _times,
)
_pairs = st.builds(Pair, _times, st.dictionaries(_video_ids, _videos, max_size=3))
_devices = st.builds(Device, _ids, _ids, _ids, _times, _times, _times, _times, _times, _times, _times)
_states = st.builds(
    ClientState,
    _ids.map(ClientId),
    _times,
    st.dictionaries(_ids.map(ClientId), _pairs, max_size=3),
    st.dictionaries(_ids.map(ClientId), _pairs, max_size=3),
    st.lists(_video_ids, max_size=3).map(tuple),
    _video_ids,
    st.dictionaries(_ids.map(DeviceId), _devices, max_size=3),
    _times,
    _times,
)


@given(_states)
def test_a_stored_state_reads_back_as_it_was(state: ClientState) -> None:
    assert decode(state.client_id, encode(state)) == state


def test_four_videos_each_way_and_two_devices_are_about_a_kilobyte() -> None:
    def pairs(shift: int) -> dict[ClientId, Pair]:
        return {
            ClientId(f"client-{n:08}"): Pair(
                NOW, {VideoId(f"019ab000-{n:04}-7abc-8def-{shift:012}"): video()._replace(came=came)}
            )
            for n in range(4)
            for came in (NOW + n if shift else 0,)
        }

    row = Device("apns", "production", "f" * 64, NOW, NOW + 5, NOW, 1, 0, NOW + 60_000)
    state = ClientState(
        BOB,
        NOW,
        pairs(0),
        pairs(1),
        devices={
            DeviceId("3f2504e0-4f89-41d3-9a0c-0305e82c3301"): row,
            DeviceId("3f2504e0-4f89-41d3-9a0c-0305e82c3302"): row,
        },
        check_at=NOW,
    )
    size = len(encode(state))
    assert size <= 1_410, size

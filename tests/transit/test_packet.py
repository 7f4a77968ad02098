"""The info packet: the same bytes everywhere."""

import json

from gateway import packet
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Pair, Status, Video, VideoId

BOB, ALICE, CAROL = ClientId("bob"), ClientId("alice"), ClientId("carol")
FIRST = VideoId("019ab000-0000-7000-8000-00000000000a")
SECOND = VideoId("019ab000-0000-7000-8000-00000000000b")
THIRD = VideoId("019ab000-0000-7000-8000-00000000000c")
AT = 1_763_914_800_000


def video(status: Status, at: int = AT) -> Video:
    return Video(status, at, AT, 1_048_576, "video/mp4", AT)


def test_a_client_without_a_record_has_version_0_and_empty_lists() -> None:
    assert (
        packet.encode(ClientState(BOB)) == b'{"type":"info","client_id":"bob","version":0,"outgoing":[],"incoming":[]}'
    )


def test_a_packet_is_compact_json_with_its_keys_in_the_order_of_the_protocol() -> None:
    state = ClientState(
        BOB,
        1_763_914_802_117,
        {CAROL: Pair(1, {FIRST: video(Status.DOWNLOADED)})},
        {ALICE: Pair(1, {SECOND: video(Status.UPLOADED, AT)})},
    )
    assert packet.encode(state) == (
        b'{"type":"info","client_id":"bob","version":1763914802117,'
        b'"outgoing":[{"video_id":"019ab000-0000-7000-8000-00000000000a","recipient_id":"carol",'
        b'"status":"downloaded","at":1763914800000}],'
        b'"incoming":[{"video_id":"019ab000-0000-7000-8000-00000000000b","sender_id":"alice","status":"uploaded",'
        b'"url":"/v1/videos/019ab000-0000-7000-8000-00000000000b/content",'
        b'"size":1048576,"content_type":"video/mp4","at":1763914800000}]}'
    )


def test_both_lists_are_in_order_of_the_videos_whoever_they_are_from_or_for() -> None:
    pairs = {
        CAROL: Pair(1, {THIRD: video(Status.UPLOADED), FIRST: video(Status.UPLOADED)}),
        ALICE: Pair(1, {SECOND: video(Status.UPLOADED)}),
    }
    said = json.loads(packet.encode(ClientState(BOB, 1, pairs, pairs)))
    assert [entry["video_id"] for entry in said["outgoing"]] == [FIRST, SECOND, THIRD]
    assert [entry["video_id"] for entry in said["incoming"]] == [FIRST, SECOND, THIRD]


def test_the_sender_sees_every_status_the_recipient_only_two() -> None:
    for status in Status:
        pairs = {ALICE: Pair(1, {FIRST: video(status, AT + 5)})}
        said = json.loads(packet.encode(ClientState(BOB, 1, pairs, pairs)))
        assert [(entry["status"], entry["at"]) for entry in said["outgoing"]] == [(status, AT + 5)]
        shown = {
            Status.UPLOADED: [("uploaded", AT + 5)],
            Status.NOTIFIED: [("uploaded", AT)],
            Status.DOWNLOADED: [("downloaded", AT + 5)],
        }
        assert [(entry["status"], entry["at"]) for entry in said["incoming"]] == shown.get(status, [])


def test_devices_and_memories_do_not_show() -> None:
    plain = ClientState(BOB, 7)
    row = Device("apns", "production", "key", AT, AT)
    full = ClientState(
        BOB, 7, ended=(FIRST,), ended_floor=FIRST, devices={DeviceId("d"): row}, check_at=9, status_news=7
    )
    assert packet.encode(full) == packet.encode(plain)

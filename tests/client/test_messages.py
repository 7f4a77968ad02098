import httpx
import orjson
import pytest

from gateway.client import GatewayError, Outcome, Packet, Push, Remedy, Report
from gateway.transit.state import Status
from tests.client.played import FIRST, SECOND, Played, packet_of


def test_a_packet_keeps_its_bytes_and_ignores_members_that_it_does_not_know() -> None:
    outgoing = {"video_id": FIRST, "recipient_id": "carol", "status": "viewed", "at": 1, "new": []}
    incoming = {
        "video_id": SECOND,
        "sender_id": "alice",
        "status": "uploaded",
        "url": f"/v1/videos/{SECOND}/content",
        "size": 9,
        "content_type": "video/mp4",
        "at": 2,
    }
    fields = {"type": "info", "client_id": "bob", "version": 3, "outgoing": [outgoing], "incoming": [incoming]}
    body = orjson.dumps({**fields, "new": {}})
    packet = Packet.parse(body)
    assert packet.body == body
    assert (packet.client_id, packet.version) == ("bob", 3)
    sent, received = packet.sent(FIRST), packet.received(SECOND)
    assert sent is not None
    assert (sent.recipient_id, sent.status, sent.at) == ("carol", Status.VIEWED, 1)
    assert received is not None
    assert (received.sender_id, received.size, received.content_type) == ("alice", 9, "video/mp4")
    assert packet.sent(SECOND) is None
    assert packet.received(FIRST) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b'{"type":"result","client_id":"bob","version":1,"outgoing":[],"incoming":[]}',
        b'{"type":"info","client_id":"bob","version":"1","outgoing":[],"incoming":[]}',
        b'{"type":"info","client_id":"bob","version":true,"outgoing":[],"incoming":[]}',
        b'{"type":"info","client_id":7,"version":1,"outgoing":[],"incoming":[]}',
        b'{"type":"info","client_id":"bob","version":1,"outgoing":{},"incoming":[]}',
        b'{"type":"info","client_id":"bob","version":1,"outgoing":[],"incoming":[1]}',
        b'{"type":"info","client_id":"bob","version":1,"outgoing":[{"video_id":"x","status":"?"}],"incoming":[]}',
    ],
)
def test_what_is_no_packet_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not an info packet"):
        Packet.parse(body)


def test_a_push_carries_the_very_bytes_of_the_packet_or_only_its_version() -> None:
    alert = {"loc-key": "VIDEOS_WAITING", "loc-args": ["1", "alice"], "badge": 1, "sound": True}
    push = Push.parse(orjson.dumps({"version": "5", "packet": packet_of(5).decode(), "alert": alert}))
    assert push.version == 5
    assert push.packet is not None
    assert push.packet.body == packet_of(5)
    assert push.alert is not None
    assert (push.alert.loc_args, push.alert.badge, push.alert.sound) == (("1", "alice"), 1, True)
    assert Push.parse(b'{"version":"6"}') == Push(6, None, None)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"version":6}', b'{"version":"six"}', b'{"version":"6","packet":"{}"}'])
def test_what_is_no_push_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a push"):
        Push.parse(body)


async def test_a_sync_gives_each_report_its_own_result_and_the_packet_s_own_bytes() -> None:
    odd = b'{ "type":"info", "client_id":"b\\u006fb","version":5,"outgoing":[ ],"incoming":[]}'
    results = [
        {"result": "applied", "version": 5},
        {"result": "failed", "code": "not_stored", "detail": "PUT again"},
        {"result": "failed", "code": "new", "detail": "who knows"},
        {"result": "ignored", "reason": "unknown_video", "version": 5},
    ]
    body = b' {"new":{"packet":1}, "packet" : %b ,"results":%b } ' % (odd, orjson.dumps(results))
    played = Played(httpx.Response(200, content=body))
    reports = [Report(FIRST, Status.VIEWED), Report(SECOND, Status.UPLOADED, "carol")] * 2
    synced = await played.client().sync(reports)
    assert synced.packet.body == odd
    assert synced.packet.client_id == "bob"
    first, second, third, fourth = synced.results
    assert (first.video_id, first.outcome, first.version) == (FIRST, Outcome.APPLIED, 5)
    assert second.outcome is Outcome.FAILED
    assert second.error is not None
    assert second.error.remedy is Remedy.UPLOAD
    assert third.error is not None
    assert third.error.remedy is Remedy.NONE
    assert fourth.reason == "unknown_video"
    said = orjson.loads(played.asked[0].content)["statuses"]
    assert said[:2] == [
        {"video_id": FIRST, "status": "viewed"},
        {"video_id": SECOND, "status": "uploaded", "recipient_id": "carol"},
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"results":[]}',
        b'{"results":[],"packet":{}',
        b'{"results" []}',
        b'{"results":5,"packet":%b}' % packet_of(),
    ],
)
async def test_a_sync_that_was_cut_short_is_retried(body: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        await Played(httpx.Response(200, content=body)).client().sync()
    assert caught.value.remedy is Remedy.RETRY

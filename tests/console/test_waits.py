"""What a client waits for, in words."""

from dataclasses import replace

from gateway.console.waits import Wait, behind, waits
from gateway.transit.policy import Policy
from gateway.transit.state import ClientId, ClientState, Device, DeviceId, Pair, Status, Video, VideoId

BOB, ALICE = ClientId("bob"), ClientId("alice")
PHONE = DeviceId("phone")
VIDEO = VideoId("0199f0e4-7d5a-7abc-8def-000000000001")
POLICY = Policy()
TTL_MS = POLICY.video_ttl_ms


def received(status: Status, **devices: Device) -> ClientState:
    video = Video(status, at=2_000, uploaded_at=1_000, size=1, content_type="video/mp4", came=1_500)
    pairs = {ALICE: Pair(1_500, {VIDEO: video})}
    return ClientState(BOB, 1_500, incoming=pairs, devices={DeviceId(name): row for name, row in devices.items()})


def device(**given: int) -> Device:
    return Device("apns", "production", "key", registered_at=500, heard_at=500, **given)


def test_a_client_at_rest_waits_for_nothing() -> None:
    assert waits(ClientState(BOB), POLICY) == []
    assert waits(received(Status.VIEWED, phone=device()), POLICY) == []
    assert waits(received(Status.EXPIRED), POLICY) == []


def test_a_device_that_is_behind_is_named_with_what_it_lacks_and_when_it_is_pushed_to() -> None:
    state = received(Status.DOWNLOADED, phone=device(next_at=9_000), tablet=device(acked=1_500))
    assert behind(state, state.devices[PHONE], POLICY)
    assert not behind(state, state.devices[DeviceId("tablet")], POLICY)
    assert waits(state, POLICY) == [
        Wait("device phone has not acknowledged version 1500", 1_500, 9_000),
        Wait(f"video {VIDEO} from alice is downloaded, and waits to be viewed", 2_000, 1_000 + TTL_MS),
    ]


def test_it_says_how_often_a_device_was_pushed_to_and_when_that_is_over() -> None:
    pushed = waits(received(Status.NOTIFIED, phone=device(next_at=9_000, attempts=2)), POLICY)[0]
    assert pushed.text.endswith("; pushes so far: 2")
    failed = waits(received(Status.NOTIFIED, phone=device(next_at=9_000, attempts=2, failures=3)), POLICY)[0]
    assert failed.text.endswith("; pushes in a row that failed: 3")
    over = waits(received(Status.NOTIFIED, phone=device(attempts=4)), POLICY)[0]
    assert over.text.endswith("4, and is not pushed to again before there is newer news")
    assert over.next_at is None


def test_where_no_device_is_registered_that_is_said() -> None:
    first, *_ = waits(received(Status.UPLOADED), POLICY)
    assert first == Wait("there is news, and no device is registered that a push could wake", 1_500, None)


def test_each_video_says_which_step_is_missing() -> None:
    texts = [waits(received(status), POLICY)[-1].text for status in (Status.UPLOADED, Status.NOTIFIED)]
    assert [text.rpartition("waits to be ")[2] for text in texts] == ["told of", "downloaded"]


def test_what_was_sent_waits_for_its_recipient() -> None:
    sent = ClientState(ALICE)._replace(outgoing={BOB: received(Status.NOTIFIED).incoming[ALICE]})
    assert waits(sent, POLICY) == [Wait(f"video {VIDEO} to bob is notified, and waits for bob", 2_000, 1_000 + TTL_MS)]


def test_with_pushes_for_statuses_those_are_news_too() -> None:
    state = ClientState(ALICE, 3_000, devices={PHONE: device(next_at=4_000)}, status_news=3_000)
    assert waits(state, POLICY) == []
    on_status = replace(POLICY, push_on_status=True)
    assert waits(state, on_status) == [Wait("device phone has not acknowledged version 3000", 3_000, 4_000)]

"""What is remembered of what happened to clients."""

from gateway.errors import NotStored
from gateway.journal import Event, Journal, Note
from gateway.service import Said
from gateway.transit.state import ClientId, DeviceId, Status
from tests.service.conftest import ALICE, BOB, PHONE, Clock, Gateway


def journal(most: int = 3) -> tuple[Journal, Clock]:
    clock = Clock()
    return Journal(most, clock), clock


def test_what_happened_to_a_client_is_told_newest_first() -> None:
    notes, clock = journal()
    began = clock.now_ms
    notes.note(ALICE, Event.OPENED, device_id=PHONE)
    notes.note(BOB, Event.LEFT)
    clock.now_s += 1
    notes.note(ALICE, Event.CLOSED, 1006, device_id=PHONE)
    assert list(notes.of(ALICE)) == [
        Note(began + 1000, ALICE, PHONE, Event.CLOSED, (1006,)),
        Note(began, ALICE, PHONE, Event.OPENED, ()),
    ]


def test_the_oldest_makes_room_and_it_says_how_far_back_it_remembers() -> None:
    notes, clock = journal()
    began = clock.now_ms
    for _ in range(3):
        clock.now_s += 1
        assert notes.since == began
        notes.note(ALICE, Event.LEFT)
    clock.now_s += 1
    notes.note(BOB, Event.LEFT)
    assert [note.at - began for note in notes.of(ALICE)] == [3000, 2000]
    assert notes.since == began + 2000


def test_with_no_room_nothing_is_noted() -> None:
    notes, _ = journal(0)
    notes.note(ALICE, Event.LEFT)
    assert not list(notes.of(ALICE))


async def test_what_changes_a_client_is_noted_with_what_became_of_it() -> None:
    gateway = Gateway()
    notes = gateway.changes.journal = Journal(100, gateway.clock)
    ref = await gateway.send()
    await gateway.service.report(BOB, [Said(ref.video_id, Status.VIEWED), Said(ref.video_id, Status.DOWNLOADED)])
    await gateway.service.delete(ref)
    assert [(note.event, *note.what) for note in notes.of(BOB) if note.event is Event.STATUS] == [
        (Event.STATUS, ref.video_id, "downloaded", "duplicate"),
        (Event.STATUS, ref.video_id, "viewed", "applied"),
    ]
    packets = [note.what for note in notes.of(ALICE) if note.event is Event.PACKET]
    assert packets[0] == ((await gateway.state(ALICE)).version, 0)
    assert next(notes.of(ALICE)).what == (ref.video_id, "applied")


async def test_a_status_that_is_refused_is_noted_with_the_code() -> None:
    gateway = Gateway()
    notes = gateway.changes.journal = Journal(100, gateway.clock)
    announced = await gateway.service.announce(ALICE, BOB, size=1, content_type="video/mp4")
    [answer], _ = await gateway.service.report(ALICE, [Said(announced.video_id, Status.UPLOADED, BOB)])
    assert isinstance(answer, NotStored)
    assert next(notes.of(ALICE)).what == (announced.video_id, "uploaded", "not_stored")


async def test_registrations_are_noted_without_their_tokens() -> None:
    gateway = Gateway()
    notes = gateway.changes.journal = Journal(100, gateway.clock)
    device, client = DeviceId("watch"), ClientId("zoe")
    await gateway.registry.register(client, device, platform="fcm", environment="production", token="s3cret-token")
    await gateway.registry.unregister(client, device)
    found = list(notes.of(client))
    assert [(note.event, note.device_id, note.what) for note in found] == [
        (Event.UNREGISTERED, device, ()),
        (Event.REGISTERED, device, ("fcm",)),
    ]
    assert "s3cret" not in str(found)


def test_each_event_names_what_is_noted_of_it() -> None:
    assert Event.STATUS.members == ("video_id", "status", "result")
    assert Event.LEFT.members == ()
    assert Event("pushed") is Event.PUSHED

"""A process that remembers whom it wrote last: changes that follow load nothing, and whatever others wrote meanwhile,
what is answered is done, and is so."""

from collections.abc import Callable

import pytest

from gateway.changes import client_key
from gateway.service import Said, Service, UploadLimits
from gateway.transit.decisions import APPLIED, DUPLICATE, UNKNOWN, Verdict, VideoRef
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, Status
from tests.service.conftest import ALICE, BOB, CAROL, PHONE, Gateway

Loads = Callable[[], list[str]]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(recent=4)


@pytest.fixture
def loads(gateway: Gateway) -> Loads:
    """The keys that were loaded since it was asked last."""
    found: list[str] = []

    def note(method: str, keys: list[str]) -> None:
        if method == "load":
            found.extend(keys)

    def since() -> list[str]:
        now, found[:] = found[:], []
        return now

    gateway.documents.before = note  # type: ignore[assignment]
    return since


@pytest.fixture
def elsewhere(gateway: Gateway) -> Service:
    """Another process at the same store."""
    other = Gateway()
    other.changes.documents = gateway.documents.inner
    other.clock.now_s = gateway.clock.now_s
    return Service(other.changes, gateway.objects, UploadLimits())


async def said(service: Service, ref: VideoRef, status: Status) -> Verdict:
    [answer], _ = await service.report(ref.recipient_id, [Said(ref.video_id, status)])
    assert isinstance(answer, Verdict)
    return answer


async def test_a_change_that_follows_another_loads_nothing(gateway: Gateway, loads: Loads) -> None:
    ref = await gateway.send()
    loads()
    for status in (Status.NOTIFIED, Status.DOWNLOADED, Status.VIEWED):
        assert await said(gateway.service, ref, status) == APPLIED
    assert loads() == []
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.VIEWED
    assert gateway.metric("gateway_conflicts_total") == 0


async def test_an_acknowledgement_loads_nothing_either(gateway: Gateway, loads: Loads) -> None:
    ref = await gateway.send()
    version = (await gateway.state(BOB)).version
    loads()
    await gateway.service.report(BOB, [], Acknowledgement(PHONE, version))
    assert loads() == []
    assert await gateway.sent_status(ref) is Status.NOTIFIED


async def test_what_another_process_wrote_meanwhile_is_not_undone(gateway: Gateway, elsewhere: Service) -> None:
    ref = await gateway.send()
    assert await said(elsewhere, ref, Status.DOWNLOADED) == APPLIED
    assert await said(gateway.service, ref, Status.NOTIFIED) == DUPLICATE
    assert await said(gateway.service, ref, Status.VIEWED) == APPLIED
    assert await said(elsewhere, ref, Status.VIEWED) == DUPLICATE
    assert await gateway.sent_status(ref) is await gateway.received_status(ref) is Status.VIEWED


async def test_a_video_that_came_through_another_process_is_found(gateway: Gateway, elsewhere: Service) -> None:
    await gateway.send(CAROL, BOB)
    ref = await gateway.announce()
    await elsewhere.confirm(ref)
    assert await said(gateway.service, ref, Status.VIEWED) == APPLIED


async def test_what_changes_nothing_is_answered_by_what_is_stored(gateway: Gateway, elsewhere: Service) -> None:
    ref = await gateway.send()
    await elsewhere.delete(ref)
    assert await said(gateway.service, ref, Status.VIEWED) == UNKNOWN
    assert await gateway.sent_status(ref) is None


@pytest.mark.parametrize("known", [False, True])
async def test_a_poll_is_never_answered_from_memory(gateway: Gateway, elsewhere: Service, *, known: bool) -> None:
    ref = await gateway.send()
    version = (await gateway.state(BOB)).version
    await said(elsewhere, ref, Status.DOWNLOADED)
    state = await gateway.service.poll(BOB, Acknowledgement(PHONE, version), known=version if known else 0)
    assert state == await gateway.state(BOB)


async def test_so_many_are_remembered_and_the_others_are_loaded(gateway: Gateway, loads: Loads) -> None:
    refs = [await gateway.send(ALICE, BOB), await gateway.send(ALICE, CAROL)]
    for number in range(3):
        await gateway.register(ClientId(f"other-{number}"), PHONE, f"token-{number}")
    loads()
    assert len(gateway.changes._recent) == 4
    assert await said(gateway.service, refs[0], Status.VIEWED) == APPLIED
    assert client_key(BOB) in loads()


async def test_after_a_failed_write_nothing_is_remembered_of_it(gateway: Gateway, elsewhere: Service) -> None:
    ref = await gateway.send()
    await said(elsewhere, ref, Status.NOTIFIED)
    assert await said(gateway.service, ref, Status.DOWNLOADED) == APPLIED
    assert gateway.metric("gateway_conflicts_total") == 1
    assert await said(gateway.service, ref, Status.VIEWED) == APPLIED
    assert gateway.metric("gateway_conflicts_total") == 1

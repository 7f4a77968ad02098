"""How long videos take from one status to the next."""

from gateway.service import Said
from gateway.transit.state import Status
from tests.service.conftest import ALICE, BOB, Gateway


def took(gateway: Gateway) -> dict[str, tuple[float, float]]:
    """By status: how many, and their seconds together."""
    [family] = gateway.metrics.video_seconds.collect()
    found = {(sample.labels["status"], sample.name.rpartition("_")[2]): sample.value for sample in family.samples}
    return {
        status: (found[status, "count"], round(found[status, "sum"], 3)) for status in Status if found[status, "count"]
    }


async def test_each_status_counts_the_time_since_the_one_before_however_many_were_skipped() -> None:
    gateway = Gateway()
    ref = await gateway.send()
    began = took(gateway)
    for seconds, status in ((4, Status.NOTIFIED), (300, Status.VIEWED)):
        gateway.clock.now_s += seconds
        for _ in range(2):
            await gateway.service.report(BOB, [Said(ref.video_id, status)])
    assert took(gateway) == began | {"notified": (1, 4.0), "viewed": (1, 300.0)}


async def test_an_upload_counts_the_time_since_its_announcement() -> None:
    gateway = Gateway()
    ref = await gateway.announce()
    gateway.clock.now_s += 7
    await gateway.service.confirm(ref)
    assert took(gateway) == {"uploaded": (1, 7.0)}


async def test_a_video_that_expires_counts_the_time_since_its_last_status() -> None:
    gateway = Gateway()
    await gateway.send()
    gateway.clock.now_s += gateway.policy.video_ttl_ms / 1000 + 1
    await gateway.service.tend(ALICE)
    assert took(gateway)["expired"] == (1, gateway.policy.video_ttl_ms / 1000 + 1)

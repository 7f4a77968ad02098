import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import orjson
import pytest

from gateway.client import Client, DownloadError, GatewayError, Outcome, Packet, Remedy, Report
from gateway.transit.state import Status
from tests.client.played import ADDRESS, FIRST, VIDEO, Played, client_of, named, packet_of, result
from tests.running import Running, within


def test_it_is_imported_without_any_part_of_the_server() -> None:
    server = {"msgspec", "starlette", "uvicorn", "uvloop", "jwt", "prometheus_client", "storage", "push"}
    code = "import gateway.client, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not server & set(loaded.stdout.split())


async def test_only_what_was_applied_is_acknowledged() -> None:
    sync = httpx.Response(200, content=b'{"results":[],"packet":%b}' % packet_of(9))
    played = Played(httpx.Response(200, content=packet_of(5)), httpx.Response(304), result(), sync)
    client = played.client()
    packet = await client.poll()
    assert packet is not None
    await client.poll(known=packet.version)
    client.applied(packet)
    await client.report(FIRST, Status.VIEWED)
    await client.sync()
    queries = [dict(request.url.params) for request in played.asked[:3]]
    assert queries == [{"version": version, "device_id": "phone"} for version in ("0", "0", "5")]
    assert played.asked[1].headers["if-none-match"] == '"5"'
    assert orjson.loads(played.asked[3].content) == {"statuses": [], "version": 5, "device_id": "phone"}
    assert client.version == 5


async def test_packets_that_are_older_or_somebody_else_s_are_not_wanted() -> None:
    client = Client(ADDRESS, "a-token", client_id="bob")
    client.applied(Packet.parse(packet_of(5)))
    assert client.wants(Packet.parse(packet_of(5)))
    assert client.wants(Packet.parse(packet_of(6)))
    for other in (packet_of(4), packet_of(6, "carol")):
        assert not client.wants(Packet.parse(other))
        with pytest.raises(ValueError, match="to be dropped"):
            client.applied(Packet.parse(other))
    assert client.version == 5
    await client.close()


async def test_a_client_that_was_not_told_who_it_is_learns_it_from_the_gateway() -> None:
    client = Played(httpx.Response(200, content=packet_of(5))).client()
    await client.poll()
    assert client.client_id == "bob"
    assert not client.wants(Packet.parse(packet_of(6, "carol")))


async def test_a_client_without_a_device_cannot_register_one() -> None:
    async with Client(ADDRESS, "a-token") as client:
        with pytest.raises(ValueError, match="no device_id"):
            await client.register("apns", "a-push-token")


async def test_a_video_lives_its_whole_life(gw: Running, video: Path, tmp_path: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        sent = await alice.send_video(video, named(bob))
        packet = await bob.poll()
        assert packet is not None
        received = packet.received(sent.video_id)
        assert received is not None
        assert (received.sender_id, received.size, received.content_type) == (named(alice), len(VIDEO), "video/mp4")
        to = tmp_path / "received.mp4"
        assert await bob.download(sent.video_id, to) == len(VIDEO)
        assert to.read_bytes() == VIDEO
        for status in (Status.DOWNLOADED, Status.VIEWED):
            reached = await bob.report(sent.video_id, status)
            assert reached.outcome is Outcome.APPLIED
            seen = await alice.poll()
            assert seen is not None
            listed = seen.sent(sent.video_id)
            assert listed is not None
            assert listed.status is status
        assert (await bob.report(sent.video_id, Status.VIEWED)).outcome is Outcome.DUPLICATE
        with pytest.raises(DownloadError, match="404 not_tracked") as caught:
            await bob.download(sent.video_id, tmp_path / "again.mp4")
        assert caught.value.remedy is Remedy.POLL


async def test_a_held_poll_tells_of_news_and_of_none(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        packet = await bob.poll()
        assert packet is not None
        assert await bob.poll(known=packet.version) is None
        assert await bob.poll(known=packet.version, wait=1) is None
        held = asyncio.create_task(bob.poll(known=packet.version, wait=30))
        sent = await alice.send_video(video, named(bob))
        news = await within(held)
        assert news is not None
        assert news.received(sent.video_id) is not None
        polled = await bob.poll()
        assert polled is not None
        assert polled.body == news.body


async def test_a_packet_that_was_applied_has_notified_the_next_one_has_not(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        sent = await alice.send_video(video, named(bob))
        packet = await bob.poll()
        assert packet is not None
        await bob.poll(known=packet.version)
        assert await status_of(alice, sent.video_id) is Status.UPLOADED
        bob.applied(packet)
        await bob.poll(known=packet.version)
        assert await status_of(alice, sent.video_id) is Status.NOTIFIED


async def status_of(sender: Client, video_id: str) -> Status | None:
    packet = await sender.poll()
    assert packet is not None
    sent = packet.sent(video_id)
    return sent.status if sent else None


async def test_a_push_a_poll_and_a_sync_bring_the_same_bytes(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        await bob.register("fcm", f"push-token-of-{named(bob)}")
        async with bob.pushes() as pushes:
            sent = await alice.send_video(video, named(bob))
            push = await within(anext(pushes))
        assert push.packet is not None
        assert push.packet.received(sent.video_id) is not None
        assert push.alert is not None
        assert push.alert.loc_args == ("1", named(alice))
        polled = await bob.poll()
        synced = await bob.sync()
        assert polled is not None
        assert push.packet.body == polled.body == synced.packet.body
        assert push.version == polled.version
        await bob.unregister()
        with pytest.raises(GatewayError, match="404 not_found"):
            async with bob.pushes():
                pass


async def test_pushes_that_do_not_come_end_with_an_error(gw: Running) -> None:
    async with client_of(gw, "bob") as bob:
        await bob.register("apns", f"push-token-of-{named(bob)}")
        async with bob.pushes(idle_s=0.05) as pushes:
            with pytest.raises(GatewayError, match="no answer: ReadTimeout"):
                await within(anext(pushes))


async def test_a_sync_reports_and_confirms(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        sent = await alice.send_video(video, named(bob))
        synced = await bob.sync([Report(sent.video_id, Status.VIEWED), Report(sent.video_id, Status.UPLOADED)])
        viewed, nonsense = synced.results
        assert viewed.outcome is Outcome.APPLIED
        assert nonsense.error is not None
        assert (nonsense.error.code, nonsense.error.status) == ("invalid", 422)
        assert synced.packet.incoming == ()


async def test_a_video_is_cancelled_before_and_after_it_is_uploaded(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        announced = await alice.announce(named(bob), size=len(VIDEO))
        assert (await alice.delete(announced.video_id, named(bob))).outcome is Outcome.APPLIED
        await alice.upload(announced, VIDEO)
        confirmed = await alice.confirm(announced.video_id, named(bob))
        assert (confirmed.outcome, confirmed.reason) == (Outcome.IGNORED, "superseded")
        sent = await alice.send_video(video, named(bob))
        assert (await alice.delete(sent.video_id, named(bob))).outcome is Outcome.APPLIED
        assert (await alice.delete(sent.video_id, named(bob))).outcome is Outcome.DUPLICATE
        packet = await bob.poll()
        assert packet is not None
        assert packet.incoming == ()


async def test_an_account_ends(gw: Running, video: Path) -> None:
    async with client_of(gw, "alice") as alice, client_of(gw, "bob") as bob:
        sent = await alice.send_video(video, named(bob))
        await alice.register("apns", f"push-token-of-{named(alice)}")
        await alice.end()
        packet = await bob.poll()
        assert packet is not None
        assert packet.received(sent.video_id) is None
        await alice.end()

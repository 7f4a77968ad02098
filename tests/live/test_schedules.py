"""No packet is lost or stale, however devices come and go."""

from pathlib import Path

from tests.live import schedules


async def test_the_last_packet_on_every_screen_is_the_stored_one(tmp_path: Path) -> None:
    async with schedules.gateway_for_schedules(tmp_path, 1) as gw:
        await schedules.run(gw, 1, 1500)

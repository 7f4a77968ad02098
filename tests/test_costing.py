"""`scripts/cost`: what it reckons is what one reckons by hand, and every input counts."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.readings import Kind
from scripts.costing import presets
from scripts.costing.__main__ import main
from scripts.costing.bill import BYTES_OUT, Figure, Plan, tiered
from scripts.costing.demand import demand
from scripts.costing.inputs import DIVIDE, FILE, SHARES, TB, Inputs, Unreckonable
from scripts.costing.presets import OBJECTS, PRESETS, plan
from scripts.costing.told import sensitivity

Output = pytest.CaptureFixture[str]

ROOT = Path(__file__).resolve().parent.parent
COST = (ROOT / "docs" / "cost.md").read_text("utf-8")

AS_SHIPPED = Inputs.load()
MEASURED = """
    change_us_sqlite=460 change_us_redis=438 change_us_dynamodb=690 call_us=130 poll_us=60 packet_us=11 connect_us=400
    keepalive_us=1.2 push_us=1750 upload_us_per_mb=1840 download_us_per_mb=1120 connection_kb=4 kernel_kb=3.6
    process_mb=31 redis_publish_us=8.6 redis_subscribe_us=40 redis_subscription_bytes=235 redis_commit_us=28
    redis_load_us=4.3 redis_document_bytes=1700 redis_rewrite=2 redis_commits_per_s=2800 sqlite_commits_per_s=13000
    document_bytes=1000
"""
"""New measurements change what is shipped, and nothing of what is reckoned here by hand."""
INPUTS = AS_SHIPPED.changed({name: Decimal(value) for name, value in re.findall(r"(\w+)=([\d.]+)", MEASURED)})
MONTH_S = 730 * 3600
A_SECOND = Decimal(86_400)
"""Daily users who send one video a second together, if each sends one a day."""


def having(**changes: float | str) -> Inputs:
    return INPUTS.changed({name: Decimal(str(value)) for name, value in changes.items()})


def approx(value: float) -> object:
    return pytest.approx(value, rel=1e-9)


def only(figure: Figure, at: int = 0) -> float:
    return float(figure.values[at])


# --- By hand


def test_bytes_out_are_users_times_videos_times_bytes_times_the_price() -> None:
    found = plan("aws", Decimal(100_000), having(egress="0.1", downloads_per_video=2))
    expected = 100_000 * 5 * 5_000_000 * 2 * (730 / 24) / 2**30 * 0.1
    assert float(found.dollars[BYTES_OUT]) == approx(expected)
    assert float(found.share_of_bytes) == approx(expected / float(found.total))
    assert float(found.per_thousand) == approx(float(found.total) / 100)


def test_the_price_of_bytes_out_is_that_of_the_documentation() -> None:
    stated = re.search(r"\| S3: bytes out, videos of 5 MB \|.*?([\d.]+) \|", COST)
    assert stated is not None
    found = plan("aws", A_SECOND, having(videos_per_user_day=1, egress="0.09"))
    per_million = float(found.dollars[BYTES_OUT]) / MONTH_S * 1_000_000
    assert round(per_million, 2) == float(stated[1])


@pytest.mark.parametrize(
    ("tb", "dollars"),
    [
        (0, 0),
        (1, 1024 * 0.09),
        (10, 10_240 * 0.09),
        (50, 10_240 * 0.09 + 40_960 * 0.085),
        (150, 10_240 * 0.09 + 40_960 * 0.085 + 102_400 * 0.07),
        (1150, 10_240 * 0.09 + 40_960 * 0.085 + 102_400 * 0.07 + 1_024_000 * 0.05),
    ],
)
def test_more_bytes_out_are_cheaper_by_tiers(tb: int, dollars: float) -> None:
    assert float(tiered(tb * TB, INPUTS)) == approx(dollars)


def test_one_video_a_second_is_so_many_calls_changes_and_packets() -> None:
    asked = demand(A_SECOND, having(videos_per_user_day=1, polls_per_device_day=10, opens_per_device_day=5))
    average, peak = asked.average, asked.peak
    assert float(average.videos) == 1
    assert float(average.changes) == approx(4 + 0.7)
    assert float(average.publications) == approx(2 * 4.7)
    assert float(average.packets) == approx(2 * 4.7 * 0.6)
    assert float(average.polls) == approx(1.2 * 10)
    assert float(average.calls) == approx(6 + 12)
    assert float(average.opens) == approx(1.2 * 5)
    assert float(average.pushes) == approx(0.7 * 1.3 * 1.2)
    assert float(average.write_units) == approx(0.3 * 10 + 0.7 * (16 + 0.3 * 6))
    assert float(average.loads) == approx(0.3 * 11 + 0.7 * (15 + 0.3 * 3))
    assert float(asked.sockets) == approx(86_400 * 1.2 * 0.1)
    assert float(asked.average_sockets) == approx(86_400 * 1.2 * 0.1 / 3)
    assert float(asked.clients) == 3 * 86_400
    assert float(asked.kept_bytes) == 86_400 * 5_000_000
    for rate in ("videos", "calls", "packets", "commits", "bytes_out"):
        assert float(getattr(peak, rate)) == approx(3 * float(getattr(average, rate)))


def test_write_units_cost_what_a_video_takes_times_the_price() -> None:
    awake = plan("aws", A_SECOND, having(videos_per_user_day=1, online_share=1))
    asleep = plan("aws", A_SECOND, having(videos_per_user_day=1, online_share=0, reminders_per_video=0))
    assert float(awake.dollars["write units"]) == approx(10 * MONTH_S * 0.625 / 1_000_000)
    assert float(asleep.dollars["write units"]) == approx(16 * MONTH_S * 0.625 / 1_000_000)
    assert only(asleep.figures["write units a second, peak"]) == approx(3 * 16)


def test_reads_that_no_call_asks_for_are_those_of_the_documentation() -> None:
    """docs/cost.md: what is due with 8 shards, the sweep of a million clients, version checks, `/readyz`."""
    quiet = having(videos_per_user_day=0, opens_per_device_day=0, clients_per_daily_user=1, peak_factor=2)
    found = plan("aws", Decimal(1_000_000), quiet, connected=Decimal(2000))
    due, sweep, checks = 10_512_000, 1_000_000 * 3.25 * 730 / 24, 8_760 * 1000
    assert only(found.figures["read units a month"]) == approx(due + sweep + checks + 262_800)


def test_cpu_of_the_processes_is_the_sum_of_what_they_do() -> None:
    found = plan("aws", A_SECOND, having(videos_per_user_day=100, connections_per_process=1_000_000))
    videos, devices, sockets = 300, 1.2 * 3, 86_400 * 0.12
    serving = videos * 4 * 690 + videos * 2 * 130 + devices * 6 * 60 + devices * 12 * 400
    serving += videos * 4.7 * 2 * 0.6 * 11 + sockets * 1.2
    pushing = videos * 0.7 * 1.3 * 1.2 * 1750
    assert float(found.figures["cores: CPU, memory, descriptors, return"].values[0]) == approx(
        (serving + pushing) / 1e6 / 0.5
    )
    assert [only(found.figures["processes that serve, workers"], at) for at in (0, 1)] == [2, 2]


@pytest.mark.parametrize(("connected", "processes"), [(1, 1), (12_000, 1), (12_001, 2), (1_200_000, 100)])
def test_a_process_holds_so_many_sockets(connected: int, processes: int) -> None:
    found = plan("aws", Decimal(2_000_000), having(videos_per_user_day=0), connected=Decimal(connected))
    assert only(found.figures["processes that serve, workers"]) == processes


@pytest.mark.parametrize(
    ("changes", "binds"),
    [
        ({"change_us_dynamodb": 50_000}, "CPU"),
        ({"connection_kb": 4_000}, "memory"),
        ({"connections_per_process": 100}, "descriptors"),
        ({"return_s": 1}, "a return of all"),
    ],
)
def test_it_is_said_what_decides_how_many_machines_there_are(changes: dict[str, float], binds: str) -> None:
    found = plan("aws", Decimal(1_000_000), having(**changes))
    assert found.figures["gateway machines, what decides"].values[1] == binds


def test_machines_cost_their_cores_by_the_hour() -> None:
    found = plan("aws", Decimal(10_000_000), INPUTS, connected=Decimal(9_600_000))
    # 9.6 million sockets, 12,000 to a process and core, four cores to a machine, and a spare one.
    assert only(found.figures["gateway machines, what decides"]) == 201
    assert float(found.dollars["gateway machines"]) == approx(201 * 4 * 0.0408 * 730)


def test_redis_holds_documents_and_subscriptions_in_memory() -> None:
    found = plan("cluster", Decimal(10_000_000), INPUTS)
    memory = 30_000_000 * 1700 * 2 + 1_200_000 * 235
    assert only(found.figures["Redis: memory"]) == approx(memory)
    shards, binds = found.figures["Redis: shards, what decides"].values
    assert (float(shards), binds) == (-(-memory // int(2 * 4 * 2**30 * 0.7)), "memory")


def test_a_bus_is_as_many_nodes_as_its_cpu_needs() -> None:
    found = plan("aws", Decimal(100_000_000), having(redis_publish_us=100, connected_share=0))
    changes, videos = 300e6 * 5 / 86_400 * 4.7, 300e6 * 5 / 86_400
    opens, polls = 300e6 * 1.2 * 12 / 86_400, 300e6 * 1.2 * 6 / 86_400
    commits = videos * (0.3 * 4 + 0.7 * (6 + 0.3 * 2))
    loads = videos * (0.3 * 11 + 0.7 * (15 + 0.3 * 3))
    cpu = changes * 2 * 100 + opens * 2 * 40 + (loads + polls + commits * 2) * 4.3
    serving, workers = (only(found.figures["processes that serve, workers"], at) for at in (0, 1))
    nodes = cpu / (1e6 * 0.5 - (serving + workers) * 2 * 100)
    assert only(found.figures["ElastiCache: nodes, what decides"]) == int(nodes) + 1


def test_a_bus_has_room_for_subscriptions_and_half_a_minute_of_documents() -> None:
    found = plan("aws", A_SECOND, having(videos_per_user_day=1, online_share=1), connected=Decimal(12_000))
    # Three videos a second at the peak, four commits each, of two documents.
    assert only(found.figures["ElastiCache: memory"]) == approx(12_000 * 235 + 3 * 4 * 2 * 30 * 1700)


@pytest.mark.parametrize(("videos", "shards"), [(1, 8), (100, 8), (1_000, 12), (10_000, 120)])
def test_the_due_index_has_shards_for_its_writes(videos: int, shards: int) -> None:
    """Two write units of the index a video, three times as many at the peak, 500 a second to a shard."""
    found = plan("aws", A_SECOND, having(videos_per_user_day=videos, online_share=1))
    assert only(found.figures["shards of the due index"]) == shards


def test_requests_for_bytes_and_to_the_queue_are_those_of_a_video_and_of_the_sweep() -> None:
    found = plan("aws", A_SECOND, having(videos_per_user_day=1, downloads_per_video=2, kept_days=3))
    # 140,160 LIST for recent uploads; a thousandth of one for each object, daily; health checks of one process.
    lists = 140_160 + 86_400 * 3 / 1000 * 730 / 24
    gets, heads = 2 * MONTH_S, MONTH_S + 262_800
    asked = found.figures["requests for bytes: PUT, LIST; GET, HEAD"]
    assert [only(asked, at) for at in (0, 1)] == [approx(MONTH_S + lists), approx(gets + heads)]
    expected = (MONTH_S + lists) * 0.005 / 1000 + (gets + heads) * 0.0004 / 1000
    assert float(found.dollars["requests for bytes"]) == approx(expected)
    assert float(found.dollars["queue"]) == approx((MONTH_S * 1.2 + 131_400) * 0.40 / 1_000_000)
    assert float(found.dollars["bytes at rest"]) == approx(86_400 * 3 * 5_000_000 * 0.023 / 2**30)
    assert float(found.dollars["documents at rest"]) == approx(86_400 * 3 * 1000 * 0.25 / 2**30)


@pytest.mark.parametrize(
    ("changes", "units"),
    [
        ({"opens_per_device_day": 100, "polls_per_device_day": 50}, 1.2 * 150 / 25),
        ({"connected_share": 1, "opens_per_device_day": 0, "polls_per_device_day": 0}, 86_400 * 1.2 / 3 / 3000),
        ({"videos_per_user_day": 1000, "alb_rules": 10}, (6_000 + 1.2 * 18) / 10),
    ],
)
def test_a_load_balancer_is_paid_by_what_it_has_most_of(changes: dict[str, float], units: float) -> None:
    found = plan("aws", A_SECOND, having(**{"videos_per_user_day": 1, **changes}))
    assert only(found.figures["capacity units of the load balancer"]) == approx(units)
    assert float(found.dollars["load balancer"]) == approx((0.0225 + units * 0.008) * 730)


def test_an_own_store_has_machines_and_disks_for_each_copy() -> None:
    found = plan("cluster", Decimal(1_000_000), having(store_copies=3))
    a_second = 1_000_000 * 5 * 5_000_000 / 86_400 * 3
    written, read = 3 * a_second, a_second
    on_disk = (written + read) * 8 / 1e9 / 0.5 / 0.3125 / 4
    on_wire = max(written, read + 2 * a_second) * 8 / 1e9 / 0.5 / 0.469 / 4
    machines = int(max(on_disk, on_wire)) + 1
    assert only(found.figures["machines of the store of bytes"]) == machines
    assert float(found.dollars["store of bytes: machines"]) == approx(machines * 4 * 0.0408 * 730)
    kept = 1_000_000 * 5 * 5_000_000
    assert float(found.dollars["bytes at rest"]) == approx(kept * 3 / 0.7 * 0.08 / 2**30)
    bandwidth = (written + read) / 1e6 / 0.5 - machines * 125
    assert float(found.dollars["store of bytes: bandwidth of disks"]) == approx(bandwidth * 0.04)


# --- The box


def test_ten_million_users_do_not_fit_into_a_box_and_it_is_said_why() -> None:
    found = plan("box", Decimal(10_000_000), INPUTS)
    assert found.refused.startswith("does not fit: ")
    assert found.dollars == {}
    first, users = found.figures["what breaks first, at how many users"].values
    assert isinstance(first, str)
    assert first in found.refused
    assert isinstance(users, Decimal)
    assert not plan("box", users * Decimal("0.99"), INPUTS).refused
    assert plan("box", users * Decimal("1.01"), INPUTS).refused


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"change_us_sqlite": 1_000_000}, "cores"),
        ({"connection_kb": 100_000}, "memory"),
        ({"network_gbit_per_vcpu": 0.001}, "network"),
        ({"disk_gbit_per_vcpu": 0.001}, "the disk's bandwidth"),
        ({"box_disk_tb": 0.01}, "the disk's size"),
        ({"sqlite_commits_per_s": 1}, "SQLite's commits"),
    ],
)
def test_whatever_is_short_breaks_first(changes: dict[str, float], first: str) -> None:
    found = plan("box", Decimal(1_000_000), having(**changes))
    assert found.figures["what breaks first, at how many users"].values[0] == first
    assert found.refused


def test_a_box_pays_for_the_size_and_the_bandwidth_of_its_disk() -> None:
    found = plan("box", Decimal(100_000), INPUTS)
    kept = 100_000 * 5 * 5_000_000
    bandwidth = 2 * kept / 86_400 * 3 / 1e6 / 0.5
    expected = (kept / 0.7 + 300_000 * 1000) * 0.08 / 2**30 + (bandwidth - 125) * 0.04
    assert float(found.dollars["disk"]) == approx(expected)
    assert only(found.figures["vCPUs of the machine"]) == 16
    assert 8 < bandwidth * 8 / 1000 / 0.3125 < 16


def test_a_small_box_has_one_process_and_the_least_machine() -> None:
    found = plan("box", Decimal(1000), INPUTS)
    assert [only(found.figures["processes that serve, workers"], at) for at in (0, 1)] == [1, 1]
    assert float(found.dollars["machine"]) == approx(2 * 0.0408 * 730)


def test_a_cluster_of_redis_has_so_many_shards_and_no_more() -> None:
    found = plan("cluster", Decimal(10_000_000), having(redis_document_bytes=17_000))
    assert "would need more than 64 shards" in found.refused
    beats = plan("cluster", Decimal(10_000_000), having(connections_per_process=10))
    assert beats.refused


# --- More is more


@pytest.mark.parametrize(("preset", "objects"), [(name, place) for name in OBJECTS for place in OBJECTS[name]])
def test_more_users_never_cost_less(preset: str, objects: str) -> None:
    found = [plan(preset, Decimal(users), INPUTS, objects=objects) for users in steps(10_000_000)]
    totals = [each.total for each in found if not each.refused]
    assert len(totals) > 10
    assert all(before <= after for before, after in pairwise(totals))
    # What does not fit does not fit with more users either.
    assert all(after.refused or not before.refused for before, after in pairwise(found))


def steps(most: int) -> Iterator[int]:
    users = 1000
    while users <= most:
        yield users
        users = users * 5 // 4


@pytest.mark.parametrize("preset", PRESETS)
def test_more_connected_devices_never_cost_less(preset: str) -> None:
    totals = [
        plan(preset, Decimal(500_000), INPUTS, connected=Decimal(connected)).total
        for connected in range(0, 500_001, 50_000)
    ]
    assert all(before <= after for before, after in pairwise(totals))
    assert totals[0] < totals[-1]


def test_the_larger_videos_are_the_more_of_it_are_bytes() -> None:
    sizes = (0, 100_000, 1_000_000, 5_000_000)
    shares = [plan("aws", Decimal(100_000), having(bytes_per_video=size)).share_of_bytes for size in sizes]
    assert shares[0] == 0
    assert all(before < after for before, after in pairwise(shares))


@pytest.mark.parametrize("preset", PRESETS)
def test_as_shipped_the_bytes_are_most_of_it(preset: str) -> None:
    assert plan(preset, Decimal(100_000), AS_SHIPPED).share_of_bytes > 0.5


@pytest.mark.parametrize("preset", ["cluster", "aws"])
def test_a_store_that_takes_nothing_for_bytes_out_is_cheaper(preset: str) -> None:
    usual, free = (plan(preset, Decimal(1_000_000), INPUTS, objects=place) for place in (None, "r2"))
    assert free.dollars[BYTES_OUT] == 0
    assert free.total < usual.total / 2


# --- Every input


NEVER_COUNTED = {"s3.DeleteObject", "s3.DeleteObjects"}
"""They are free, and nobody counts them."""


def worlds(inputs: Inputs) -> list[Plan]:
    return [
        plan(preset, Decimal(users), inputs, objects=place)
        for preset in PRESETS
        for place in OBJECTS[preset]
        for users in (10_000, 100_000, 10_000_000)
    ]


def said(found: list[Plan]) -> list[object]:
    return [
        ([figure.values for figure in each.figures.values()], each.dollars, each.refused, each.remarks)
        for each in found
    ]


USUAL = said(worlds(INPUTS))


@pytest.mark.parametrize("name", sorted(set(INPUTS.names()) - NEVER_COUNTED))
def test_every_input_changes_something(name: str) -> None:
    value = INPUTS.value(name)
    changed = []
    for factor in ("0.5", "0.001", "1.5", "1000"):
        other = value * Decimal(factor) if value else Decimal(1)
        if name in SHARES:
            other = min(other, Decimal("0.99"))
        elif name == "peak_factor":
            other = max(other, Decimal(1))
        changed.append(said(worlds(INPUTS.changed({name: other}))))
    assert any(other != USUAL for other in changed)


def test_a_price_is_set_as_it_is_stated() -> None:
    twice = INPUTS.changed({"dynamodb.write": Decimal("1.25")})
    assert twice.value("dynamodb.write") == Decimal("1.25")
    assert twice.prices.each[Kind("units", "dynamodb", "write")] == Decimal("0.00000125")
    before, after = (plan("aws", Decimal(1000), inputs).dollars["write units"] for inputs in (INPUTS, twice))
    assert float(after) == approx(2 * float(before))


def test_what_is_doubled_most_changes_most() -> None:
    rows = list(sensitivity("aws", Decimal(1_000_000), INPUTS, None))
    changes = [abs(by) for _, _, by in rows]
    assert changes == sorted(changes, reverse=True)
    by_name = {name: by for name, _, by in rows}
    usual = plan("aws", Decimal(1_000_000), INPUTS)
    bytes_out = usual.dollars[BYTES_OUT] + usual.dollars["packets, answers, pings out"]
    assert float(by_name["egress"]) == approx(float(bytes_out / usual.total))
    assert {name for name, _, _ in rows[:4]} == {
        "egress",
        "videos_per_user_day",
        "bytes_per_video",
        "downloads_per_video",
    }


def test_each_price_says_where_it_is_from() -> None:
    blocks = FILE.read_text("utf-8").split("[[price]]")[1:]
    assert len(blocks) > 10
    for block in blocks:
        for name in ("official", "source", "confirmed"):
            assert f"\n{name} = " in block


# --- The documentation of what a video takes


def test_units_are_those_of_the_documentation() -> None:
    rows = {
        row[0]: row[1:]
        for line in COST.splitlines()
        if len(row := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    units = INPUTS.units
    online, offline = rows["recipient online"], rows["recipient offline, one push"]
    assert [first(cell) for cell in (*online[:2], *offline[:2])] == [
        units.writes_online,
        units.reads_online,
        units.writes_offline,
        units.reads_offline,
    ]
    assert [int(count) for count in (units.writes_online, units.writes_offline)] == [10, 16]
    queued = re.search(r"\| SQS: ([\d.]+) to 3 requests \|", COST)
    assert queued is not None
    assert Decimal(queued[1]) == presets.QUEUED_REQUESTS
    reminder = re.search(r"\| each reminder, if there is one \| (\d+) \| (\d+) \|", COST)
    assert reminder is not None
    assert [Decimal(text) for text in reminder.groups()] == [units.writes_reminder, units.reads_reminder]
    together = re.search(r"\| online, together \| 11 loads, 4 commits \| (\d+) `HMGET`, (\d+) `EVALSHA`", COST)
    assert together is not None
    assert [Decimal(text) for text in together.groups()] == [units.reads_online, units.commits_online]
    assert "saves up to six of the read units" in COST
    assert units.reads_cached == 6


def first(cell: str) -> Decimal:
    found = re.match(r"[\d.]+", cell)
    assert found is not None, cell
    return Decimal(found[0])


# --- The command


def printed(output: Output, *arguments: str) -> str:
    assert main(arguments) == 0
    return output.readouterr().out


def test_a_table_for_each_preset_has_at_most_forty_lines(capsys: Output) -> None:
    for preset, title in PRESETS.items():
        text = printed(capsys, "--preset", preset)
        lines = text.split("\n\nDollars by the prices")[0].splitlines()
        assert lines[0] == title
        assert len(lines) <= 42
        head = lines[2]
        for users in ("100,000", "1,000,000", "10,000,000", "10,000,000, 10,000,000 connected"):
            assert users in head
        assert len({len(line) for line in lines[2:6]}) == 1
    text = printed(capsys)
    assert all(title in text for title in PRESETS.values())
    assert "second hand" in text


def test_the_box_is_refused_in_words_and_others_are_not(capsys: Output) -> None:
    text = printed(capsys, "--preset", "box", "--users", "10_000_000")
    assert re.search(
        r"^10,000,000: does not fit: .+ would have to be [\d.]+ times what the largest box has\.$", text, re.MULTILINE
    )
    assert "does not fit" not in printed(capsys, "--preset", "aws", "--preset", "cluster")


def test_what_machines_read_is_what_was_reckoned(capsys: Output) -> None:
    (found,) = json.loads(printed(capsys, "--json", "--preset", "aws", "--users", "1000000"))
    expected = plan("aws", Decimal(1_000_000), AS_SHIPPED)
    assert found["total"] == round(float(expected.total), 2)
    assert found["total"] == pytest.approx(sum(found["dollars_a_month"].values()), abs=0.1)
    assert (found["fits"], found["daily_users"], found["connected"]) == (True, 1_000_000, 120_000)
    processes = expected.figures["processes that serve, workers"]
    assert found["figures"]["processes that serve, workers"] == [float(value) for value in processes.values]
    (box,) = json.loads(printed(capsys, "--json", "--preset", "box", "--users", "10000000"))
    assert (box["fits"], box["total"]) == (False, None)
    assert box["refused"]


def test_inputs_can_be_set(capsys: Output) -> None:
    def bytes_out(*arguments: str) -> float:
        (found,) = json.loads(printed(capsys, "--json", "--preset", "aws", "--users", "1000000", *arguments))
        return float(found["dollars_a_month"][BYTES_OUT])

    assert bytes_out("--egress-dollars-per-gb", "0.02") == bytes_out("--set", "egress=0.02")
    assert bytes_out("--set", "egress=0.02", "--set", "videos_per_user_day=10") == pytest.approx(
        2 * bytes_out("--set", "egress=0.02"), abs=0.02
    )
    assert bytes_out("--objects", "r2") == 0


def test_markdown_is_a_table(capsys: Output) -> None:
    lines = printed(capsys, "--markdown", "--preset", "aws").splitlines()
    assert lines[0].startswith("**AWS")
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6}
    assert rows[1] == "| --- | ---: | ---: | ---: | ---: |"


def test_sensitivity_and_inputs_are_listed(capsys: Output) -> None:
    lines = printed(capsys, "--sensitivity").splitlines()
    assert re.fullmatch(r"egress +0\.09 +\+\d\d\.\d%", lines[3])
    listed = printed(capsys, "--inputs", "--set", "kept_days=2").splitlines()
    assert "kept_days = 2" in listed
    assert "dynamodb.write = 0.625  # not seen at the source" in listed
    assert "r2.PutObject = 4.5" in listed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "videos=1"], "there is no input 'videos'"),
        (["--set", "s3.nothing=1"], "there is no input 's3.nothing'"),
        (["--set", "bytes_per_video=-1"], "bytes_per_video has to be a number, and not below 0"),
        (["--set", "bytes_per_video=nan"], "bytes_per_video has to be a number"),
        (["--set", "online_share=1.1"], "online_share is a share"),
        (["--set", "core_full=0"], "core_full has to be above 0"),
        (["--set", "peak_factor=0.5"], "peak_factor has to be 1 or more"),
        (["--set", "elasticache_reserved=1"], "elasticache_reserved has to leave something"),
        (["--egress-dollars-per-gb", "-1"], "egress has to be a number, and not below 0"),
        (["--users", "0"], "the number of daily users has to be above 0"),
        (["--users", "-3"], "the number of daily users has to be above 0"),
        (["--users", "inf"], "the number of daily users has to be above 0"),
        (["--users", "10", "--connected", "1000"], "10 users have no more than 12"),
        (["--preset", "box", "--objects", "r2"], "box cannot have its bytes in 'r2'"),
        (["--preset", "box", "--sensitivity", "--users", "10000000"], "box does not fit"),
    ],
)
def test_nonsense_is_a_sentence(arguments: list[str], sentence: str, capsys: Output) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scripts/cost: ")
    assert sentence in err


@pytest.mark.parametrize("wrong", [["--set", "x"], ["--set", "=1"], ["--users", "many"], ["--preset", "moon"]])
def test_arguments_that_mean_nothing_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(wrong)
    assert left.value.code == 2


@pytest.mark.parametrize("name", sorted(DIVIDE))
def test_what_divides_is_never_nothing(name: str) -> None:
    with pytest.raises(Unreckonable, match="has to be above 0"):
        INPUTS.changed({name: Decimal(0)})


def test_it_runs_from_the_project_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.costing", "--preset", "aws", "--users", "1000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("AWS: ")

"""The three presets of docs/operations.md: what each takes at a demand, and costs a month. Pure."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal

from gateway.cost import DAY_S, MONTH_S
from scripts.costing.bill import BYTES_OUT, HOURS, Figure, Plan, Sheet, millions, size, tenths
from scripts.costing.demand import Demand, Rates, demand, month, small_bytes_out
from scripts.costing.fleet import (
    MB,
    SECOND_US,
    Fleet,
    bus_and_cache,
    bus_and_documents,
    bus_cpu_us,
    byte_cpu_us,
    fleet,
    most,
)
from scripts.costing.inputs import GB, TB, Inputs, Unreckonable

DAYS = Decimal(MONTH_S) / DAY_S
SIZES = (2, 4, 8, 16, 32, 48, 64)
"""vCPUs of the machines that there are."""

DUE_SHARDS, DUE_QUERY_UNITS = 8, Decimal("0.5")
VERSIONS_S, SWEEP_S, SWEEP_LISTS = 300, 300, 16
READY_S = 10
SWEPT_UNITS = Decimal("0.25")
LISTED = 1000
QUEUED_REQUESTS = Decimal("1.2")
EMPTY_RECEIVES_S = 20
"""What runs without videos, and what a video is to the queue, which is told of it: docs/cost.md."""

GIGABIT = Decimal(1_000_000_000)


# --- One box


def box(wanted: Demand, inputs: Inputs) -> Plan:
    """SQLite and the disk; Redis beside them for the bus, where one process is not enough."""
    limits, rates = inputs.limits, wanted.peak
    sized = fleet(wanted, inputs, change_us=inputs.measured.change_us_sqlite, byte_us=byte_cpu_us(rates, inputs))
    bus = bus_cpu_us(rates, inputs) / SECOND_US / limits.core_full if sized.serving > 1 else Decimal(0)
    wires = max(rates.bytes_in, rates.bytes_out) * 8 / GIGABIT / limits.core_full
    disk = (rates.bytes_in + rates.bytes_out) * 8 / GIGABIT / limits.core_full
    # vCPUs of the family of machines that have that much.
    vcpus = {
        "cores": max(need for name, need in sized.needs.items() if name != "memory") + bus,
        "memory": sized.needs["memory"],
        "network": wires / limits.network_gbit_per_vcpu,
        "the disk's bandwidth": disk / limits.disk_gbit_per_vcpu,
    }
    needs = {name: need / limits.box_vcpus for name, need in vcpus.items()}
    space = wanted.kept_bytes / limits.memory_full
    needs["the disk's size"] = space / (limits.box_disk_tb * TB)
    needs["SQLite's commits"] = rates.commits / limits.core_full / inputs.measured.sqlite_commits_per_s
    first = most(needs)
    needed = max(vcpus.values())
    vcpu_count = next((count for count in SIZES if needed <= count <= limits.box_vcpus), int(limits.box_vcpus))
    figures = _traffic(wanted) | {
        "processes that serve, workers": Figure(sized.serving, sized.workers),
        "vCPUs: cores, memory, network, disk": Figure(*vcpus.values(), form=tenths),
        "vCPUs of the machine": Figure(vcpu_count),
        "what breaks first, at how many users": Figure(first, wanted.users / needs[first]),
    }
    if needs[first] > 1:
        reason = f"does not fit: {first} would have to be {needs[first]:,.1f} times what the largest box has"
        return Plan("box", wanted, figures, {}, refused=reason)
    sheet = Sheet(inputs)
    sheet.out(month(wanted.average.bytes_out), month(small_bytes_out(wanted, inputs)))
    sheet.machines("machine", Decimal(vcpu_count))
    stored = space + wanted.clients * inputs.measured.document_bytes
    sheet.units("disk", "ebs", "byte months", stored)
    needed_mb = (rates.bytes_in + rates.bytes_out) / MB / limits.core_full
    sheet.units("disk", "ebs", "MB per s months", max(Decimal(0), needed_mb - limits.volume_mb_per_s))
    return Plan("box", wanted, figures, sheet.dollars, remarks=("TLS in front of it is not reckoned",))


# --- A small cluster


def cluster(wanted: Demand, inputs: Inputs, objects: str = "own") -> Plan:
    """Redis for documents and bus. `objects`: `own`, a store that speaks like S3 on machines of one's own; or a name
    of one that is paid by use."""
    limits, rates = inputs.limits, wanted.peak
    sized = fleet(wanted, inputs, change_us=inputs.measured.change_us_redis)
    shards = bus_and_documents(wanted, inputs, sized.serving + sized.workers)
    proxies = max(2, math.ceil(wanted.sockets / limits.proxy_connections) + int(limits.spare_machines))
    figures = (
        _traffic(wanted)
        | _machines(sized)
        | {
            "proxies that end TLS": Figure(proxies),
            "Redis: shards, what decides": Figure(shards.count, shards.binds),
            "Redis: publications a second, peak": Figure(rates.publications),
            "Redis: commits, loads a second, peak": Figure(rates.commits, rates.loads),
            "Redis: memory": Figure(shards.memory, form=size),
        }
    )
    sheet = Sheet(inputs)
    if objects == "own":
        stores = _own_store(wanted, inputs, sheet)
        figures["machines of the store of bytes"] = Figure(stores)
    else:
        _bought_store(wanted, inputs, sheet, objects, sized)
    sheet.machines("gateway machines", sized.machines * limits.machine_vcpus)
    sheet.machines("Redis", shards.count * limits.redis_vcpus)
    sheet.units("Redis", "ebs", "byte months", shards.memory)
    sheet.machines("load balancer", proxies * limits.proxy_vcpus)
    if not 0 < shards.count <= limits.redis_shards:
        reason = f"does not fit: {shards.binds} of Redis would need more than {limits.redis_shards:,} shards"
        return Plan("cluster", wanted, figures, {}, refused=reason)
    return Plan("cluster", wanted, figures, sheet.dollars)


def _own_store(wanted: Demand, inputs: Inputs, sheet: Sheet) -> int:
    """Machines with disks: each byte comes in once, goes on to the other copies, and out. How many machines."""
    limits, rates = inputs.limits, wanted.peak
    sent = rates.bytes_out + rates.bytes_in * (limits.store_copies - 1)
    received = rates.bytes_in * limits.store_copies
    on_wire = max(sent, received) * 8 / GIGABIT / limits.core_full / limits.network_gbit_per_vcpu
    on_disk = (received + rates.bytes_out) * 8 / GIGABIT / limits.core_full / limits.disk_gbit_per_vcpu
    count = max(int(limits.store_copies), math.ceil(max(on_wire, on_disk) / limits.machine_vcpus))
    sheet.out(month(wanted.average.bytes_out), month(small_bytes_out(wanted, inputs)))
    sheet.machines("store of bytes: machines", count * limits.machine_vcpus)
    sheet.units("bytes at rest", "ebs", "byte months", wanted.kept_bytes * limits.store_copies / limits.memory_full)
    needed_mb = (received + rates.bytes_out) / MB / limits.core_full - count * limits.volume_mb_per_s
    sheet.units("store of bytes: bandwidth of disks", "ebs", "MB per s months", max(Decimal(0), needed_mb))
    return count


# --- AWS


def aws(wanted: Demand, inputs: Inputs, objects: str = "s3") -> Plan:
    """DynamoDB, S3 or another store that is paid by use, SQS, ElastiCache for bus and cache, an ALB."""
    limits, average = inputs.limits, wanted.average
    sized = fleet(wanted, inputs, change_us=inputs.measured.change_us_dynamodb)
    shards = bus_and_cache(wanted, inputs, sized.serving + sized.workers)
    balanced = _balanced(wanted, inputs)
    figures = (
        _traffic(wanted)
        | _machines(sized)
        | {
            "capacity units of the load balancer": Figure(balanced),
            "ElastiCache: nodes, what decides": Figure(shards.count, shards.binds),
            "ElastiCache: publications a second, peak": Figure(wanted.peak.publications),
            "ElastiCache: memory": Figure(shards.memory, form=size),
        }
    )
    if shards.count == 0:
        return Plan("aws", wanted, figures, {}, refused="does not fit: beats of the processes alone fill any Redis")
    sheet = Sheet(inputs)
    put, got = _bought_store(wanted, inputs, sheet, objects, sized)
    figures["requests for bytes: PUT, LIST; GET, HEAD"] = Figure(put, got, form=millions)
    units, remarks = _table(wanted, inputs, sheet, sized)
    waiting = Decimal(MONTH_S) / EMPTY_RECEIVES_S * sized.workers
    sheet.requests("queue", "sqs", "SendMessage", month(average.videos) * QUEUED_REQUESTS + waiting)
    sheet.machines("gateway machines", sized.machines * limits.machine_vcpus)
    sheet.units("Redis", "elasticache", "node hours", shards.count * HOURS)
    sheet.units("load balancer", "alb", "hours", HOURS)
    sheet.units("load balancer", "alb", "unit hours", balanced * HOURS)
    return Plan("aws", wanted, figures | units, sheet.dollars, remarks=remarks)


def _table(wanted: Demand, inputs: Inputs, sheet: Sheet, sized: Fleet) -> tuple[dict[str, Figure], tuple[str, ...]]:
    """The documents in DynamoDB: figures and remarks."""
    limits, rates, average = inputs.limits, wanted.peak, wanted.average
    due_shards = max(DUE_SHARDS, math.ceil(rates.index_units / limits.due_shard_per_s / limits.core_full))
    reads = month(_asked_reads(average, inputs) + _background_reads(wanted, inputs, sized, due_shards))
    writes, reads_peak = month(average.write_units), _asked_reads(rates, inputs)
    sheet.units("write units", "dynamodb", "write", writes)
    sheet.units("read units", "dynamodb", "read", reads)
    sheet.units("documents at rest", "dynamodb", "byte months", wanted.clients * inputs.measured.document_bytes)
    figures = {
        "write units a second, peak": Figure(rates.write_units),
        "write units a month": Figure(writes, form=millions),
        "read units a second, peak": Figure(reads_peak),
        "read units a month": Figure(reads, form=millions),
        "shards of the due index": Figure(due_shards),
    }
    # Whoever connects anew has its document read.
    highest = max(rates.write_units, reads_peak + wanted.sockets / inputs.usage.return_s)
    if highest <= limits.table_units_per_s:
        return figures, ()
    quota = f"the quota of a table, {limits.table_units_per_s:,}"
    return figures, (f"{highest:,.0f} units a second, at the peak or when all return, are above {quota}: ask for more",)


def _asked_reads(rates: Rates, inputs: Inputs) -> Decimal:
    """Read units in a second for what apps do: the cache answers some of them, and polls."""
    return max(Decimal(0), rates.loads - rates.videos * inputs.units.reads_cached) + rates.opens


def _background_reads(wanted: Demand, inputs: Inputs, sized: Fleet, due_shards: int) -> Decimal:
    """Read units in a second that no call asks for."""
    versions = wanted.average_sockets / VERSIONS_S
    due = due_shards * DUE_QUERY_UNITS * sized.workers
    sweep = wanted.clients * (SWEPT_UNITS + inputs.usage.peers_per_client) / DAY_S
    return versions + due + sweep + Decimal(sized.serving) / READY_S


def _balanced(wanted: Demand, inputs: Inputs) -> Decimal:
    """Capacity units of an ALB, on average: the largest of the four ways to count them."""
    limits, usage, rates = inputs.limits, inputs.usage, wanted.average
    # Requests are taken to be as long as answers.
    asked = (rates.calls + rates.opens) * usage.answer_bytes
    return max(
        (rates.opens + rates.polls) / limits.alb_new,
        wanted.average_sockets / limits.alb_active,
        (asked + small_bytes_out(wanted, inputs)) * 3600 / GB / limits.alb_gb,
        (rates.calls + rates.opens) / limits.alb_rules,
    )


def _bought_store(wanted: Demand, inputs: Inputs, sheet: Sheet, store: str, sized: Fleet) -> tuple[Decimal, Decimal]:
    """A store that is paid by use: how many it is asked to write or list, and to read, in a month."""
    average = wanted.average
    lists = Decimal(MONTH_S) / SWEEP_S * SWEEP_LISTS + wanted.kept_videos / LISTED * DAYS
    heads = month(average.videos) + Decimal(MONTH_S) / READY_S * sized.serving
    put, got = month(average.videos), month(average.videos * inputs.usage.downloads_per_video)
    small = month(small_bytes_out(wanted, inputs))
    if store == "s3":
        sheet.out(month(average.bytes_out), small)
    else:
        sheet.out(Decimal(0), small)
        sheet.units(BYTES_OUT, store, "bytes out", month(average.bytes_out))
    sheet.units("bytes at rest", store, "byte months", wanted.kept_bytes)
    for call, count in (("PutObject", put), ("ListObjectsV2", lists), ("GetObject", got), ("HeadObject", heads)):
        sheet.requests("requests for bytes", store, call, count)
    return put + lists, got + heads


# --- What all of them have


def _traffic(wanted: Demand) -> dict[str, Figure]:
    peak, average = wanted.peak, wanted.average
    return {
        "connected devices at the peak": Figure(wanted.sockets),
        "calls a second, peak": Figure(peak.calls),
        "calls a second, average": Figure(average.calls),
        "status changes a second, peak": Figure(peak.changes),
        "status changes a second, average": Figure(average.changes),
        "packets to sockets a second, peak": Figure(peak.packets),
        "sockets that open a second, peak": Figure(peak.opens),
        "video bytes in, out a month": Figure(month(average.bytes_in), month(average.bytes_out), form=size),
        "Gbit of videos out a second, peak": Figure(peak.bytes_out * 8 / GIGABIT, form=tenths),
    }


def _machines(sized: Fleet) -> dict[str, Figure]:
    return {
        "processes that serve, workers": Figure(sized.serving, sized.workers),
        "cores: CPU, memory, descriptors, return": Figure(*sized.needs.values(), form=tenths),
        "gateway machines, what decides": Figure(sized.machines, sized.binds),
    }


PRESETS: Mapping[str, str] = {
    "box": "one box: SQLite and the disk",
    "cluster": "a small cluster: Redis for documents and bus, a store of its own for the bytes",
    "aws": "AWS: DynamoDB, S3, SQS, ElastiCache for bus and cache",
}
OBJECTS = {"box": ("disk",), "cluster": ("own", "s3", "r2"), "aws": ("s3", "r2")}
"""Where each may have the bytes, the usual place first."""


def plan(
    preset: str,
    users: Decimal,
    inputs: Inputs,
    *,
    connected: Decimal | None = None,
    objects: str | None = None,
) -> Plan:
    """What a preset takes and costs for so many daily users. Raises Unreckonable."""
    if preset not in PRESETS:
        raise Unreckonable(f"there is no preset {preset!r}: {', '.join(PRESETS)}")
    place = objects or OBJECTS[preset][0]
    if place not in OBJECTS[preset]:
        raise Unreckonable(f"{preset} cannot have its bytes in {place!r}: {', '.join(OBJECTS[preset])}")
    wanted = demand(users, inputs, connected=connected)
    if preset == "box":
        return box(wanted, inputs)
    found: Mapping[str, Callable[[Demand, Inputs, str], Plan]] = {"cluster": cluster, "aws": aws}
    return found[preset](wanted, inputs, place)

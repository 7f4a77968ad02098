"""How many processes, machines and servers a demand needs, and which of their limits decides. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from scripts.costing.demand import Demand, Rates
from scripts.costing.inputs import GB, Inputs

SECOND_US = Decimal(1_000_000)
MB = Decimal(1_000_000)
KB = Decimal(1_000)

RETURN = "a return of all"

LEAST_MACHINES = 2
"""Of the gateway, where there is more than one box."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Processes of the gateway at the peak, and the machines for them.

    `needs`: cores, with an allowance for how full they may be, by what decides: CPU, memory (machines have a fixed part
    of it for each core), descriptors (a process holds so many connections, and a core has so many processes), and all
    devices that connect anew, after a fault. `machines`: spare ones included.
    """

    serving: int
    workers: int
    needs: Mapping[str, Decimal]
    machines: int

    @property
    def binds(self) -> str:
        return most(self.needs)


def most(needs: Mapping[str, Decimal]) -> str:
    """What decides."""
    return max(needs, key=lambda name: needs[name])


def fleet(demand: Demand, inputs: Inputs, *, change_us: Decimal, byte_us: Decimal = Decimal(0)) -> Fleet:
    """For a store on which a status change takes `change_us`. `byte_us`: for bytes of videos, in a second."""
    limits, measured = inputs.limits, inputs.measured
    serving_us = serving_cpu_us(demand, inputs, change_us=change_us) + byte_us
    pushing_us = demand.peak.pushes * measured.push_us
    per_process = limits.connections_per_process * limits.connections_full
    by_cpu = serving_us / SECOND_US / limits.core_full
    by_descriptors = demand.sockets / per_process
    by_return = demand.sockets * measured.connect_us / SECOND_US / inputs.usage.return_s
    serving = max(1, math.ceil(max(by_cpu, by_descriptors, by_return)))
    workers = max(1, math.ceil(pushing_us / SECOND_US / limits.core_full))
    memory = demand.sockets * (measured.connection_kb + measured.kernel_kb) * KB
    memory += (serving + workers) * measured.process_mb * MB
    needs = {
        "CPU": by_cpu + pushing_us / SECOND_US / limits.core_full,
        "memory": memory / GB / limits.memory_full / limits.gb_per_vcpu,
        "descriptors": by_descriptors / limits.processes_per_core,
        RETURN: by_return,
    }
    # Workers share cores with those that serve, while both have little to do.
    cores = max(*needs.values(), Decimal(1))
    machines = max(LEAST_MACHINES, math.ceil(cores / limits.machine_vcpus) + int(limits.spare_machines))
    return Fleet(serving, workers, needs, machines)


def serving_cpu_us(demand: Demand, inputs: Inputs, *, change_us: Decimal) -> Decimal:
    """CPU of all processes that serve, in a second of the peak, without bytes of videos."""
    usage, measured, rates = inputs.usage, inputs.measured, demand.peak
    return (
        rates.videos * usage.changes_per_video * change_us
        + rates.videos * usage.other_calls_per_video * measured.call_us
        + rates.polls * measured.poll_us
        + rates.opens * measured.connect_us
        + rates.packets * measured.packet_us
        + demand.sockets * measured.keepalive_us
    )


def byte_cpu_us(rates: Rates, inputs: Inputs) -> Decimal:
    """CPU for bytes of videos that go through the gateway, in a second."""
    measured = inputs.measured
    return (rates.bytes_in * measured.upload_us_per_mb + rates.bytes_out * measured.download_us_per_mb) / MB


def bus_cpu_us(rates: Rates, inputs: Inputs) -> Decimal:
    """CPU of Redis for packets and subscriptions, in a second. A socket that opens is one that closed: two commands."""
    measured = inputs.measured
    return rates.publications * measured.redis_publish_us + rates.opens * 2 * measured.redis_subscribe_us


@dataclass(frozen=True, slots=True)
class Shards:
    """Servers of Redis; 0 where no number is enough. `needs`: how many, by what decides. `memory`: bytes of all."""

    count: int
    needs: Mapping[str, Decimal]
    memory: Decimal

    @property
    def binds(self) -> str:
        return most(self.needs)


def bus_and_cache(demand: Demand, inputs: Inputs, processes: int) -> Shards:
    """ElastiCache for packets and the cache. The cache is asked as often as documents are read, and told of writes."""
    limits, measured, rates = inputs.limits, inputs.measured, demand.peak
    written = rates.commits * 2
    cpu = bus_cpu_us(rates, inputs) + (rates.loads + rates.polls + written) * measured.redis_load_us
    memory = _subscriptions(demand, inputs) + written * CACHED_S * measured.redis_document_bytes
    room = limits.elasticache_gb * (1 - limits.elasticache_reserved) * limits.memory_full
    return _shards(cpu, {"memory": memory / GB / room}, memory, demand, inputs, processes)


CACHED_S = 30
"""How long an entry of the cache lives: docs/redis.md."""


def bus_and_documents(demand: Demand, inputs: Inputs, processes: int) -> Shards:
    """Own servers for packets and documents, each commit synced."""
    limits, measured, rates = inputs.limits, inputs.measured, demand.peak
    cpu = bus_cpu_us(rates, inputs) + rates.commits * measured.redis_commit_us + rates.loads * measured.redis_load_us
    documents = demand.clients * measured.redis_document_bytes * measured.redis_rewrite
    memory = _subscriptions(demand, inputs) + documents
    others = {
        "memory": memory / GB / (limits.redis_vcpus * limits.gb_per_vcpu * limits.memory_full),
        "synced commits": rates.commits / measured.redis_commits_per_s / limits.core_full,
    }
    return _shards(cpu, others, memory, demand, inputs, processes)


def _subscriptions(demand: Demand, inputs: Inputs) -> Decimal:
    return demand.sockets * inputs.measured.redis_subscription_bytes


def _shards(
    cpu_us: Decimal,
    others: Mapping[str, Decimal],
    memory: Decimal,
    demand: Demand,
    inputs: Inputs,
    processes: int,
) -> Shards:
    """Each process pings each server and publishes a beat there, once a second, which takes of every one of them."""
    beats_us = processes * 2 * inputs.measured.redis_publish_us
    room_us = SECOND_US * inputs.limits.core_full - beats_us
    # Where beats alone fill a server, no number of them is enough.
    needs = {
        "CPU": cpu_us / room_us if room_us > 0 else Decimal("Infinity"),
        RETURN: demand.sockets * inputs.measured.redis_subscribe_us / SECOND_US / inputs.usage.return_s,
        **others,
    }
    count = max(needs.values())
    return Shards(max(1, math.ceil(count)) if count.is_finite() else 0, needs, memory)

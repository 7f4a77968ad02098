"""What is reckoned with, by name: usage, measured figures, what machines can do, prices. From `inputs.toml`."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

from gateway.cost import Prices
from gateway.readings import Kind

FILE = Path(__file__).with_name("inputs.toml")

GB, TB = Decimal(2**30), Decimal(2**40)
"""As Amazon bills."""

TIERS = ((0, "bytes out"), (10, "bytes out from 10 TB"), (50, "bytes out from 50 TB"), (150, "bytes out from 150 TB"))
"""From how many TB a month on bytes that go out have which price, named as the units of the store `s3`."""

EGRESS = "egress"
"""The name that sets all of those at once, in dollars a GB."""


class Unreckonable(Exception):
    """An input that is none: a sentence, without its end."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What people do."""

    videos_per_user_day: Decimal
    bytes_per_video: Decimal
    downloads_per_video: Decimal
    peak_factor: Decimal
    devices_per_user: Decimal
    connected_share: Decimal
    online_share: Decimal
    heard_share: Decimal
    changes_per_video: Decimal
    other_calls_per_video: Decimal
    opens_per_device_day: Decimal
    polls_per_device_day: Decimal
    reminders_per_video: Decimal
    kept_days: Decimal
    clients_per_daily_user: Decimal
    peers_per_client: Decimal
    packet_bytes: Decimal
    answer_bytes: Decimal
    ping_bytes: Decimal
    ping_s: Decimal
    return_s: Decimal


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured; `_us` are microseconds of CPU for one."""

    change_us_sqlite: Decimal
    change_us_redis: Decimal
    change_us_dynamodb: Decimal
    call_us: Decimal
    poll_us: Decimal
    packet_us: Decimal
    connect_us: Decimal
    keepalive_us: Decimal
    push_us: Decimal
    upload_us_per_mb: Decimal
    download_us_per_mb: Decimal
    connection_kb: Decimal
    kernel_kb: Decimal
    process_mb: Decimal
    redis_publish_us: Decimal
    redis_subscribe_us: Decimal
    redis_subscription_bytes: Decimal
    redis_commit_us: Decimal
    redis_load_us: Decimal
    redis_document_bytes: Decimal
    redis_rewrite: Decimal
    redis_commits_per_s: Decimal
    sqlite_commits_per_s: Decimal
    document_bytes: Decimal


@dataclass(frozen=True, slots=True)
class Units:
    """What a video takes of the store of documents: `docs/cost.md`."""

    writes_online: Decimal
    writes_offline: Decimal
    writes_reminder: Decimal
    reads_online: Decimal
    reads_offline: Decimal
    reads_reminder: Decimal
    reads_cached: Decimal
    index_online: Decimal
    index_offline: Decimal
    index_reminder: Decimal
    commits_online: Decimal
    commits_offline: Decimal
    commits_reminder: Decimal


@dataclass(frozen=True, slots=True)
class Limits:
    """What machines and services can do, and how full they may be."""

    core_full: Decimal
    memory_full: Decimal
    connections_full: Decimal
    connections_per_process: Decimal
    processes_per_core: Decimal
    spare_machines: Decimal
    gb_per_vcpu: Decimal
    network_gbit_per_vcpu: Decimal
    disk_gbit_per_vcpu: Decimal
    machine_vcpus: Decimal
    redis_vcpus: Decimal
    elasticache_gb: Decimal
    elasticache_reserved: Decimal
    box_vcpus: Decimal
    box_disk_tb: Decimal
    volume_mb_per_s: Decimal
    redis_shards: Decimal
    store_copies: Decimal
    proxy_connections: Decimal
    proxy_vcpus: Decimal
    due_shard_per_s: Decimal
    table_units_per_s: Decimal
    alb_new: Decimal
    alb_active: Decimal
    alb_gb: Decimal
    alb_rules: Decimal


SHARES = {"connected_share", "online_share", "heard_share", "core_full", "memory_full", "connections_full"}
SHARES |= {"elasticache_reserved"}
DIVIDE = {"ping_s", "return_s", "redis_commits_per_s", "sqlite_commits_per_s"}
MAY_BE_ZERO = {"spare_machines", "volume_mb_per_s", "elasticache_reserved"}
"""Of the limits; the others divide, and so do those in DIVIDE."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All of them. `per`: for how many each price is stated."""

    usage: Usage
    measured: Measured
    units: Units
    limits: Limits
    prices: Prices
    per: Mapping[Kind, Decimal]

    @classmethod
    def load(cls) -> "Inputs":
        """Those that come with the program."""
        text = FILE.read_text("utf-8")
        table = tomllib.loads(text, parse_float=Decimal)
        ours, built_in = Prices.parse(text, source=FILE.name), Prices.built_in()
        prices = replace(
            ours,
            checked=min(ours.checked, built_in.checked),
            each={**built_in.each, **ours.each},
            unconfirmed=(*built_in.unconfirmed, *ours.unconfirmed),
        )
        texts = ((files("gateway") / "prices.toml").read_text("utf-8"), text)
        per = {kind: per for source in texts for kind, per in _stated(source)}
        groups = {group: {name: Decimal(value) for name, value in table[group].items()} for group in _GROUPS}
        found = cls(
            Usage(**groups["usage"]),
            Measured(**groups["measured"]),
            Units(**groups["units"]),
            Limits(**groups["limits"]),
            prices,
            per,
        )
        return found.changed({})

    def names(self) -> list[str]:
        """What can be changed, prices last."""
        return [*self._figures(), *map(name_of, self.prices.each), EGRESS]

    def value(self, name: str) -> Decimal:
        """What is reckoned with under this name; of a price, as it is stated. Raises Unreckonable."""
        if name in (figures := self._figures()):
            return figures[name]
        kind = self._kind("s3.bytes_out" if name == EGRESS else name)
        return (self.prices.each[kind] * self.per[kind]).normalize()

    def changed(self, changes: Mapping[str, Decimal]) -> "Inputs":
        """With other values for these names. Raises Unreckonable for unknown names, and values that mean nothing."""
        figures = self._figures() | {name: value for name, value in changes.items() if name in self._figures()}
        each = dict(self.prices.each)
        for name, value in changes.items():
            if name == EGRESS:
                each |= {Kind("units", "s3", unit): value / GB for _, unit in TIERS}
            elif name not in figures:
                kind = self._kind(name)
                each[kind] = value / self.per[kind]
        for name, value in (figures | dict(changes)).items():
            _check(name, value)
        return Inputs(
            Usage(**_of(Usage, figures)),
            Measured(**_of(Measured, figures)),
            Units(**_of(Units, figures)),
            Limits(**_of(Limits, figures)),
            replace(self.prices, each=each),
            self.per,
        )

    def _figures(self) -> dict[str, Decimal]:
        return {
            field.name: getattr(group, field.name)
            for group in (self.usage, self.measured, self.units, self.limits)
            for field in fields(group)
        }

    def _kind(self, name: str) -> Kind:
        for kind in self.prices.each:
            if name_of(kind) == name:
                return kind
        raise Unreckonable(f"there is no input {name!r}: scripts/cost --inputs lists them")


_GROUPS = ("usage", "measured", "units", "limits")


def name_of(kind: Kind) -> str:
    """By what name a price is set."""
    return f"{kind.store}.{kind.what.replace(' ', '_')}"


EGRESS_NAMES = tuple(name_of(Kind("units", "s3", unit)) for _, unit in TIERS)


def _of(group: type[Usage | Measured | Units | Limits], figures: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {field.name: figures[field.name] for field in fields(group)}


def _stated(text: str) -> Iterator[tuple[Kind, Decimal]]:
    """For how many each price of a file is."""
    price: dict[str, Any]
    for price in tomllib.loads(text, parse_float=Decimal)["price"]:
        for metric, names in (("requests", "calls"), ("units", "units")):
            for what in price.get(names, ()):
                yield Kind(metric, price["store"], what), Decimal(price["per"])


def _check(name: str, value: Decimal) -> None:
    if not value.is_finite() or value < 0:
        raise Unreckonable(f"{name} has to be a number, and not below 0, not {value}")
    if name in SHARES and value > 1:
        raise Unreckonable(f"{name} is a share, and not above 1 like {value}")
    if value == 0 and name in DIVIDE | {field.name for field in fields(Limits)} - MAY_BE_ZERO:
        raise Unreckonable(f"{name} has to be above 0")
    if name == "peak_factor" and value < 1:
        raise Unreckonable(f"{name} has to be 1 or more: the peak is no less than the average")
    if name == "elasticache_reserved" and value == 1:
        raise Unreckonable(f"{name} has to leave something")

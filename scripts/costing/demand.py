"""What so many daily users ask of a gateway: how often, how much, at the peak and on average. Pure."""

from dataclasses import dataclass
from decimal import Decimal

from gateway.cost import DAY_S, MONTH_S
from scripts.costing.inputs import Inputs, Unreckonable

PUBLICATIONS = 2
"""For each status change: the packets of sender and recipient."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How often in a second. `loads`: of documents, each a read unit of DynamoDB."""

    videos: Decimal
    calls: Decimal
    changes: Decimal
    publications: Decimal
    packets: Decimal
    opens: Decimal
    polls: Decimal
    pushes: Decimal
    commits: Decimal
    loads: Decimal
    write_units: Decimal
    index_units: Decimal
    bytes_in: Decimal
    bytes_out: Decimal


@dataclass(frozen=True, slots=True)
class Demand:
    """Of `users` daily users. `sockets`: connected devices at the peak. `clients`: documents that there are.

    `given`: the number of sockets was, instead of following from its share.
    """

    users: Decimal
    sockets: Decimal
    average_sockets: Decimal
    average: Rates
    peak: Rates
    clients: Decimal
    kept_videos: Decimal
    kept_bytes: Decimal
    given: bool


def demand(users: Decimal, inputs: Inputs, *, connected: Decimal | None = None) -> Demand:
    """What they ask. `connected`: devices with a socket at the peak, where that is known better than by its share.

    Raises Unreckonable for no users, and for more devices than they have.
    """
    usage = inputs.usage
    devices = users * max(usage.devices_per_user, Decimal(1))
    if not users.is_finite() or users <= 0:
        raise Unreckonable(f"the number of daily users has to be above 0, not {users}")
    if connected is not None and not 0 <= connected <= devices:
        raise Unreckonable(f"{connected} connected devices: {users} users have no more than {devices}")
    sockets = users * usage.devices_per_user * usage.connected_share if connected is None else connected
    return Demand(
        users=users,
        sockets=sockets,
        average_sockets=sockets / usage.peak_factor,
        average=_rates(users, inputs, Decimal(1)),
        peak=_rates(users, inputs, usage.peak_factor),
        clients=users * usage.clients_per_daily_user,
        kept_videos=users * usage.videos_per_user_day * usage.kept_days,
        kept_bytes=users * usage.videos_per_user_day * usage.kept_days * usage.bytes_per_video,
        given=connected is not None,
    )


def _rates(users: Decimal, inputs: Inputs, factor: Decimal) -> Rates:
    usage, units = inputs.usage, inputs.units
    videos = users * usage.videos_per_user_day / DAY_S * factor
    devices = users * usage.devices_per_user / DAY_S * factor
    offline = 1 - usage.online_share

    def each(online: Decimal, asleep: Decimal, reminder: Decimal) -> Decimal:
        """For all videos, of what each takes with its recipient online, asleep, and for a reminder."""
        return videos * (usage.online_share * online + offline * (asleep + usage.reminders_per_video * reminder))

    # What is told of a video whose recipient is asleep: that it was pushed, besides what apps report.
    changes = videos * (usage.changes_per_video + offline)
    polls = devices * usage.polls_per_device_day
    return Rates(
        videos=videos,
        calls=videos * (usage.changes_per_video + usage.other_calls_per_video) + polls,
        changes=changes,
        publications=changes * PUBLICATIONS,
        packets=changes * PUBLICATIONS * usage.heard_share,
        opens=devices * usage.opens_per_device_day,
        polls=polls,
        pushes=videos * offline * (1 + usage.reminders_per_video) * usage.devices_per_user,
        commits=each(units.commits_online, units.commits_offline, units.commits_reminder),
        loads=each(units.reads_online, units.reads_offline, units.reads_reminder),
        write_units=each(units.writes_online, units.writes_offline, units.writes_reminder),
        index_units=each(units.index_online, units.index_offline, units.index_reminder),
        bytes_in=videos * usage.bytes_per_video,
        bytes_out=videos * usage.bytes_per_video * usage.downloads_per_video,
    )


def month(per_second: Decimal) -> Decimal:
    """Of what comes so often on average."""
    return per_second * MONTH_S


def small_bytes_out(demand: Demand, inputs: Inputs) -> Decimal:
    """Bytes that leave the gateway in a second on average, those of videos apart: packets, answers, pings."""
    usage, rates = inputs.usage, demand.average
    pings = demand.average_sockets / usage.ping_s * usage.ping_bytes
    return rates.packets * usage.packet_bytes + (rates.calls + rates.opens) * usage.answer_bytes + pings

"""What happens in one story: who there is, what users do and what breaks, and when. All of it follows from a seed.

Chance within a story (how long an answer takes, whether it gets lost while it may) comes from the seed too, but from
streams of its own for each part: so a story of which something is left out is still much the same.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.transit.policy import Policy
from tests.simulation.network import Uploads

ACCOUNTS = ("alice", "bob", "carol", "dave")
DURATION_S = 240.0
"""How long users do things, and things break. Then faults stop, and time passes."""

SECOND = 1_000


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happens: what, at what time, for how long where that matters, and two numbers to choose by."""

    at_s: float
    what: str
    a: int
    b: int
    for_s: float = 0.0

    def __str__(self) -> str:
        length = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:8.3f} s  {self.what}{length} ({self.a}, {self.b})"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is so all the time.

    `skews_s`: how far the clocks of the processes are off, of which there are one or two. `owners`: whose phones there
    are. `uploads`: how the gateway hears of bytes that were stored. `token_s`: how long a bearer token is good.
    `cached`: whether there is a cache before the documents.
    """

    policy: Policy
    skews_s: tuple[float, ...]
    owners: tuple[str, ...]
    uploads: Uploads
    with_packet: bool
    token_s: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A story to be."""

    seed: int
    setting: Setting
    happenings: tuple[Happening, ...]

    def __str__(self) -> str:
        return "\n".join([str(self.setting), *map(str, self.happenings)])


def _policy(rng: random.Random, *, skewed: bool) -> Policy:
    """Times are short: a story of minutes sees every one of them pass. But where clocks differ, what one signs has to
    live for longer than that; and a lease is over before the first reminder, as in earnest."""
    small = rng.random() < 0.3
    return Policy(
        videos_per_pair=rng.choice((1, 1, 2)),
        max_outgoing=3 if small else 256,
        max_incoming=3 if small else 256,
        max_devices=rng.choice((2, 3, 8)),
        max_ended=4 if small else 256,
        video_ttl_ms=rng.choice((60, 150, 150, 400)) * SECOND,
        ended_keep_ms=rng.choice((20, 60, 200)) * SECOND,
        viewed_keep_ms=rng.choice((0, 0, 0, 30)) * SECOND,
        upload_ttl_ms=rng.choice((200, 300) if skewed else (30, 90, 90)) * SECOND,
        ack_grace_ms=5 * SECOND,
        remind_after_ms=(100 * SECOND, 160 * SECOND, 220 * SECOND),
        push_on_status=rng.random() < 0.3,
    )


def _setting(rng: random.Random, *, cached: bool) -> Setting:
    phones = rng.choice((2, 3, 3, 4, 5))
    skews_s = rng.choice(((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0,), (0.0, 120.0), (0.0, -120.0), (0.0, 3.0)))
    return Setting(
        policy=_policy(rng, skewed=any(skews_s)),
        skews_s=skews_s,
        owners=("alice", "bob", *rng.choices(("alice", "bob", "carol"), k=phones - 2)),
        uploads=rng.choice([*Uploads]),
        with_packet=rng.random() < 0.7,
        token_s=rng.choice((3_600.0, 300.0) if any(skews_s) else (3_600.0, 3_600.0, 60.0, 20.0)),
        cached=cached,
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of happening: how often it comes, how long it lasts at most."""

    what: str
    weight: int
    most_s: float = 0.0


_USERS = (
    _Kind("send", 30),
    _Kind("view", 28),
    _Kind("delete", 9),
    _Kind("open", 16),
    _Kind("background", 9),
    _Kind("kill", 5),
    _Kind("sleep", 4, 60),
    _Kind("offline", 7, 60),
    _Kind("reinstall", 1),
    _Kind("log out", 5),
    _Kind("log in", 6),
    _Kind("end account", 1),
    _Kind("new push token", 5),
)
_FAULTS = (
    _Kind("crash", 8, 15),
    _Kind("freeze", 4, 40),
    _Kind("drain", 2, 5),
    _Kind("documents", 6, 15),
    _Kind("objects", 4, 20),
    _Kind("bus", 6, 40),
    _Kind("provider down", 8, 180),
    _Kind("provider hanging", 5, 120),
    _Kind("provider", 8, 60),
    _Kind("tokens disowned", 2, 60),
    _Kind("network", 8, 30),
    _Kind("break socket", 5),
    _Kind("half-open socket", 4),
    _Kind("stall", 3, 30),
    _Kind("full disk", 1, 10),
)
_RETURNS = (_Kind("return", 1),)
_CACHE = (_Kind("cache", 1, 120),)
_CHANGES = (_Kind("send", 3), _Kind("view", 3), _Kind("delete", 2), _Kind("open", 1))


def plan_of(seed: int) -> Plan:
    """The story of a seed."""
    rng = random.Random(f"plan {seed}")
    apart = random.Random(f"cache {seed}")
    setting = _setting(rng, cached=apart.random() < 0.7)
    users = _happenings(rng, _USERS, rng.choice((15, 30, 50, 80)))
    faults = _happenings(rng, _FAULTS, rng.choice((0, 3, 8, 16)))
    returns = _happenings(apart, _RETURNS, apart.choice((8, 30)))
    if setting.cached:
        faults += _cache_troubles(apart)
        if apart.random() < 0.4:  # whether there is room hangs on what others did just now
            few = max(setting.policy.videos_per_pair, apart.choice((1, 2)))
            setting = replace(setting, policy=replace(setting.policy, max_incoming=few, max_outgoing=3))
    happenings = sorted([*users, *faults, *returns], key=lambda happening: happening.at_s)
    return Plan(seed, setting, tuple(happenings))


def _cache_troubles(rng: random.Random) -> list[Happening]:
    """An entry is old for half a minute at most, if it was there before, and something has changed since: so all that
    comes with each trouble."""
    troubles = _happenings(rng, _CACHE, rng.choice((0, 1, 3, 5)))
    found = [*troubles]
    for kinds, from_s, to_s, count in ((_RETURNS, -3, 0, 8), (_CHANGES, 0, 10, 8), (_RETURNS, 0, 45, 20)):
        for trouble in troubles:
            for kind in rng.choices(kinds, weights=[kind.weight for kind in kinds], k=count):
                at_s = min(DURATION_S, max(0.0, trouble.at_s + rng.uniform(from_s, to_s)))
                found.append(Happening(round(at_s, 3), kind.what, rng.randrange(1_000), rng.randrange(1_000)))
    return found


def _happenings(rng: random.Random, kinds: Sequence[_Kind], count: int) -> list[Happening]:
    """In bursts, since what matters comes close together: some within moments, some within seconds."""
    draw: Callable[[], float] = rng.random
    bursts = [(draw() * DURATION_S, rng.choice((0.05, 0.4, 2.5, 2.5))) for _ in range(max(1, count // 6))]
    found = []
    for kind in rng.choices(kinds, weights=[kind.weight for kind in kinds], k=count):
        began_s, spread_s = rng.choice(bursts)
        at_s = min(DURATION_S, began_s + rng.expovariate(1 / spread_s))
        for_s = kind.most_s * draw() ** 2
        found.append(Happening(round(at_s, 3), kind.what, rng.randrange(1_000), rng.randrange(1_000), round(for_s, 1)))
    return found

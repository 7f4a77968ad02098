"""What a seed stands for: who is there, what they do and when, and how badly the network behaves meanwhile."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

ACCOUNTS = ("ann", "bob", "cleo")
PHONE, TABLET = "phone", "tablet"


class Fault(StrEnum):
    """What may go wrong with a request, a socket or a message on it. `faults.py` and `relay.py` have what each does."""

    # Any request, handshakes included.
    LOST = "lost"
    SILENT = "silent"
    UNAVAILABLE = "unavailable"
    BUSY = "busy"
    LIMITED = "limited"
    HTML = "html"
    DELAYED = "delayed"
    # Any request but a handshake.
    UNANSWERED = "unanswered"
    CUT_ANSWER = "cut answer"
    LATE = "late"
    TRICKLED = "trickled"
    TWICE = "twice"
    TIMED_OUT = "timed out"
    # Calls with a token.
    REVOKED = "revoked"
    # Calls that are answered with JSON.
    HALF_JSON = "half json"
    PORTAL = "portal"
    REDIRECTED = "redirected"
    NEW_MEMBERS = "new members"
    # Signed URLs.
    EXPIRED = "expired"
    GONE = "gone"
    CONFLICT = "conflict"
    CUT_UPLOAD = "cut upload"
    EARLY_ANSWER = "early answer"
    # Packets on a socket.
    DROPPED = "dropped"
    REPEATED = "repeated"
    OVERTAKEN = "overtaken"
    FOREIGN = "foreign"
    # Any message on a socket.
    UNKNOWN_TYPE = "unknown type"
    STRAY_ANSWER = "stray answer"
    HELD_UP = "held up"
    FRAGMENTED = "fragmented"
    CUT_FRAME = "cut frame"
    CUT_SOCKET = "cut socket"
    CLOSED = "closed"
    RESTARTED = "restarted"
    DISPLACED = "displaced"
    DEAF = "deaf"


class Deed(StrEnum):
    """What a user does, or what happens to a phone or to the gateway."""

    SEND = "send"
    VIEW = "view"
    DELETE = "delete"
    GROUND = "ground"
    NETWORK = "network"
    KILL = "kill"
    RESTART = "restart"
    DEATH = "death"


_WEIGHTS = {Deed.SEND: 10, Deed.VIEW: 9, Deed.DELETE: 2, Deed.GROUND: 4, Deed.NETWORK: 2, Deed.KILL: 2}


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that is to happen `at_s` seconds after the beginning. `device`: to whom; None: to the gateway. What it
    still has to choose it chooses by `seed`."""

    at_s: float
    deed: Deed
    device: str | None
    seed: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A story to be. `devices`: names of the form `account/device`. `videos_per_pair`: as the gateway is set up.
    `faults`: those that occur at all. `rate`: of 1 request or message, how many are met by one. `seconds`: how long."""

    seed: int
    seconds: float
    devices: tuple[str, ...]
    videos_per_pair: int
    faults: frozenset[Fault]
    rate: float
    happenings: tuple[Happening, ...]

    def __str__(self) -> str:
        faults = ", ".join(sorted(self.faults))
        pair = f"{self.videos_per_pair} video{'s' * (self.videos_per_pair > 1)} for each pair"
        return f"{', '.join(self.devices)}; {pair}; {self.rate:.0%} of {faults}"

    def chance(self, *of: object) -> Random:
        """Random numbers of one occasion: the same in each run, whatever else happens in it."""
        return Random(":".join(map(str, (self.seed, *of))))

    def fault(self, among: frozenset[Fault], *of: object) -> Fault | None:
        """What goes wrong on that occasion, of what can."""
        possible = sorted(self.faults & among)
        chance = self.chance("fault", *of)
        return chance.choice(possible) if possible and chance.random() < self.rate else None


def plan_of(seed: int, seconds: float) -> Plan:
    """The plan of a seed. Every story has its own selection of faults, so that rare ones are not drowned by others."""
    chance = Random(f"plan:{seed}")
    devices = [f"{account}/{PHONE}" for account in ACCOUNTS]
    if chance.random() < 0.3:
        devices[2] = f"{ACCOUNTS[0]}/{TABLET}"
    share = chance.choice((0.15, 0.4, 0.8))
    faults = frozenset(fault for fault in Fault if chance.random() < share)
    return Plan(
        seed=seed,
        seconds=seconds,
        devices=tuple(devices),
        videos_per_pair=chance.choice((1, 1, 3)),
        faults=faults,
        rate=chance.choice((0.1, 0.25, 0.5)),
        happenings=tuple(_happenings(chance, devices, seconds)),
    )


def _happenings(chance: Random, devices: list[str], seconds: float) -> list[Happening]:
    deeds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    happenings = []
    for device in devices:
        count = round(seconds * 3)
        chosen = [Deed.SEND, *chance.choices(deeds, weights, k=count)]
        times = sorted(chance.uniform(0, seconds) for _ in chosen)
        happenings += [
            Happening(at_s, deed, device, f"{device}:{number}")
            for number, (at_s, deed) in enumerate(zip(times, chosen, strict=True))
        ]
    for number in range(chance.choice((0, 0, 1, 2))):
        deed = chance.choice((Deed.RESTART, Deed.DEATH))
        happenings.append(Happening(chance.uniform(0.2, 0.9) * seconds, deed, None, f"gateway:{number}"))
    return sorted(happenings, key=lambda happening: happening.at_s)

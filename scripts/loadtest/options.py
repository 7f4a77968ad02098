"""What a load test is asked for: the command line, and what is refused of it."""

import argparse
import ipaddress
import resource
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

CALLS = 256
"""Connections for calls that a process of the load keeps at most."""

CONNECTIONS = 15_000
"""How many a process of a gateway takes, where its settings do not say."""

SPARE = 128
"""Descriptors of a process that are for neither: its pipes, the event loop, the files of Python."""


class Refused(Exception):
    """What was asked for cannot be done; a sentence."""


class Kind(StrEnum):
    """What a phone does all day."""

    FOREGROUND = "foreground"
    """Its app is open: it holds a socket, fetches what comes, and its user looks at it."""
    BACKGROUND = "background"
    """Its app is closed: a push wakes it, it syncs, fetches and reports."""
    FLAKY = "flaky"
    """As in the foreground, but its network is cut now and then."""
    ASLEEP = "asleep"
    """A push reaches it, but it only looks at it a long time later."""
    HALF_OPEN = "half-open"
    """As in the foreground, but now and then it is gone without its TCP connection being closed."""

    @property
    def connected(self) -> bool:
        """Whether it holds a socket."""
        return self not in {Kind.BACKGROUND, Kind.ASLEEP}

    @property
    def woken(self) -> bool:
        """Whether it is registered for pushes. Those that hold a socket steadily are not, so that what they hear they
        heard by it."""
        return self is not Kind.FOREGROUND

    @property
    def sends(self) -> bool:
        """Whether its user sends videos."""
        return self in {Kind.FOREGROUND, Kind.FLAKY}


MIX = {Kind.FOREGROUND: 70.0, Kind.BACKGROUND: 15.0, Kind.FLAKY: 10.0, Kind.ASLEEP: 3.0, Kind.HALF_OPEN: 2.0}


@dataclass(frozen=True, slots=True)
class Options:
    """All that was asked for. `rate`: videos a second, of all processes together. Times are seconds; `storm_s` and
    `restart_s` count from when all phones are there."""

    address: str | None
    anywhere: bool
    phones: int
    processes: int
    mix: Mapping[Kind, float]
    rate: float
    even: bool
    video_bytes: int
    downloads: float
    ramp_s: float
    seconds: float
    settle_s: float
    storms_s: tuple[float, ...]
    restarts_s: tuple[float, ...]
    restart_command: str | None
    seed: int
    workers: int
    settings: Mapping[str, str]
    secret_file: Path | None
    pids: tuple[int, ...]
    html: Path | None
    keep_accounts: bool

    @property
    def total_s(self) -> float:
        """How long videos begin: while the phones come, and then."""
        return self.ramp_s + self.seconds

    @property
    def longest_s(self) -> float:
        """More than it can take from the first phone's token to the last call."""
        return self.total_s + self.settle_s + 3600


def parsed(arguments: Sequence[str]) -> Options:
    """The options in a command line. Raises SystemExit, with a usage message, for one that makes no sense, and Refused
    for what is not to be done."""
    given = _parser().parse_args(arguments)
    options = Options(
        address=given.address.rstrip("/") if given.address else None,
        anywhere=given.anywhere,
        phones=given.phones,
        processes=given.processes,
        mix=given.mix,
        rate=given.rate,
        even=given.even,
        video_bytes=given.video_bytes,
        downloads=given.downloads,
        ramp_s=given.ramp if given.ramp is not None else max(2.0, given.phones / 1000),
        seconds=given.seconds,
        settle_s=given.settle,
        storms_s=tuple(sorted(given.storm)),
        restarts_s=tuple(sorted(given.restart)),
        restart_command=given.restart_command,
        seed=given.seed,
        workers=given.workers,
        settings=dict(given.set),
        secret_file=given.secret_file,
        pids=tuple(given.pid),
        html=None if given.no_html else given.html,
        keep_accounts=given.keep_accounts,
    )
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.address is not None:
        check_address(options.address, anywhere=options.anywhere)
        if options.restarts_s and options.restart_command is None:
            raise Refused(
                "--restart is for a gateway of the load test's own; for any other, --restart-command says how"
            )
        if options.workers != 1 or options.settings:
            raise Refused("--workers and --set are for a gateway of the load test's own, and an address was given")
    elif (sockets := descriptors(options, arrivals=False) * options.processes) > (room := _room(options)):
        workers = -(-sockets * options.workers // room)
        raise Refused(
            f"{options.phones} phones hold {sockets} sockets, and the gateway ({options.workers} processes) takes "
            f"{room}: --workers {workers}, or --set MAX_CONNECTIONS=N as far as file descriptors allow"
        )
    if options.phones < 2 * options.processes:
        raise Refused("each process needs two phones at least: one sends, the other receives")
    late = [at_s for at_s in (*options.storms_s, *options.restarts_s) if at_s > options.seconds]
    if late:
        raise Refused(f"--storm and --restart count from when all phones are there, and {late[0]:g} s is after the end")
    if options.pids and not all(Path(f"/proc/{pid}").exists() for pid in options.pids):
        raise Refused("--pid names a process that is not there")


def _room(options: Options) -> int:
    """How many sockets an own gateway takes, beside the connections for calls."""
    most = options.settings.get("MAX_CONNECTIONS", "")
    each = int(most) if most.isdecimal() else CONNECTIONS
    return max(1, each * options.workers - CALLS * options.processes)


def check_address(address: str, *, anywhere: bool) -> None:
    """Raises Refused for what is no address of a gateway, or not on this machine though it has to be."""
    url = urlsplit(address)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise Refused(f"{address} is no address of a gateway: that is like http://127.0.0.1:8000")
    if not anywhere and not loopback(url.hostname):
        raise Refused(
            f"{url.hostname} is not on this machine, and a load test takes down what it meets, and what stands between:"
            " --anywhere is for whoever may do that there"
        )


def loopback(host: str) -> bool:
    """Whether all that this name stands for is this machine."""
    try:
        found = {address[4][0] for address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(each).partition("%")[0]).is_loopback for each in found)


def check_descriptors(options: Options, *, arrivals: bool) -> None:
    """Raise this process's limit as far as it goes; its children inherit it. Raises Refused where that is not enough.

    `arrivals`: whether each phone that is woken holds a connection on which its pushes come.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - CALLS - SPARE
    needed = descriptors(options, arrivals=arrivals)
    if needed > room:
        processes = -(-needed * options.processes // room)
        raise Refused(
            f"{options.phones} phones need {needed} sockets in each process of the load, and the limit of file "
            f"descriptors ({hard}) leaves room for {room}: --processes {processes}, or fewer phones"
        )


def descriptors(options: Options, *, arrivals: bool) -> int:
    """How many sockets the phones of one process hold at the same time, at most."""
    total = sum(options.mix.values())
    held = sum(share for kind, share in options.mix.items() if kind.connected)
    twice = options.mix.get(Kind.HALF_OPEN, 0.0)  # the one that is gone, and the new one
    listening = sum(share for kind, share in options.mix.items() if kind.woken) if arrivals else 0.0
    phones = -(-options.phones // options.processes)
    return round(phones * (held + twice + listening) / total) + len(Kind)


def mix_of(text: str) -> dict[Kind, float]:
    """how many phones of each kind, in proportion: KIND=SHARE,...; the kinds are foreground, background, flaky, asleep
    and half-open"""
    mix: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            kind, number = Kind(name.strip()), float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no KIND=SHARE; kinds are {', '.join(Kind)}") from None
        if kind in mix or not 0 <= number < 1e9:
            raise argparse.ArgumentTypeError(f"{part!r}: a kind comes once, with a share that is not negative")
        mix[kind] = number
    if not any(share for kind, share in mix.items() if kind.sends):
        raise argparse.ArgumentTypeError("nobody sends: there must be foreground or flaky phones")
    return {kind: share for kind, share in mix.items() if share}


def shares(mix: Mapping[Kind, float], phones: int) -> list[Kind]:
    """The kinds of so many phones, spread evenly: as near to the mix as whole phones come."""
    total = sum(mix.values())
    owed = dict.fromkeys(mix, 0.0)
    kinds: list[Kind] = []
    for _ in range(phones):
        for kind, share in mix.items():
            owed[kind] += share / total
        kind = max(owed, key=lambda kind: owed[kind])
        owed[kind] -= 1
        kinds.append(kind)
    return kinds


def _number(least: float, most: float, kind: type[int] | type[float] = float) -> "_Number":
    return _Number(least, most, kind)


class _Number:
    """Reads a number within bounds."""

    def __init__(self, least: float, most: float, kind: type[int] | type[float]) -> None:
        self._least, self._most, self._kind = least, most, kind

    def __call__(self, text: str) -> float:
        try:
            number = self._kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not self._least <= number <= self._most:
            raise argparse.ArgumentTypeError(f"{text} is not from {self._least:g} to {self._most:g}")
        return number


def _setting(text: str) -> tuple[str, str]:
    """NAME=VALUE, of a setting of the gateway"""
    name, equals, value = text.partition("=")
    if not equals or not name.isupper():
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE, like RATE_CALLS=0")
    return name.removeprefix("GATEWAY_"), value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/load",
        description="Loads a gateway with simulated phones, and reports what was asked and what was served.",
    )
    parser.add_argument(
        "address", nargs="?", help="of a gateway that runs; without one, a gateway is started and stopped"
    )
    _phones(parser.add_argument_group("phones"))
    _traffic(parser.add_argument_group("traffic"))
    _gateway(parser.add_argument_group("the gateway"))
    report = parser.add_argument_group("the report")
    report.add_argument("--html", type=Path, default=Path("load-report.html"), metavar="FILE", help="(%(default)s)")
    report.add_argument("--no-html", action="store_true", help="only the text")
    return parser


def _phones(group: argparse._ArgumentGroup) -> None:
    count = _number(2, 1e6, int)
    group.add_argument("--phones", type=count, default=100, metavar="N", help="how many (%(default)s)")
    group.add_argument(
        "--mix",
        type=mix_of,
        default=MIX,
        metavar="KIND=SHARE,...",
        help="(foreground=70,background=15,flaky=10,asleep=3,half-open=2)",
    )
    group.add_argument(
        "--processes",
        type=_number(1, 200, int),
        default=1,
        metavar="P",
        help="of the load, each with an own address (%(default)s)",
    )
    group.add_argument(
        "--ramp", type=_number(0, 3600), metavar="SECONDS", help="in which they come (1 for each 1000, at least 2)"
    )
    group.add_argument("--seed", type=int, default=1, help="of all that is random (%(default)s)")


def _traffic(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate", type=_number(0.01, 1e5), default=10.0, help="videos that begin in a second (%(default)g)"
    )
    group.add_argument("--even", action="store_true", help="evenly spaced, rather than at random (Poisson)")
    group.add_argument("--seconds", type=_number(1, 86_400), default=30.0, help="for how long (%(default)g)")
    group.add_argument("--video-bytes", type=_number(64, 1e8, int), default=2000, metavar="BYTES", help="(%(default)s)")
    group.add_argument(
        "--downloads",
        type=_number(0, 1),
        default=1.0,
        metavar="SHARE",
        help="of the videos whose bytes are fetched (1)",
    )
    at = _number(0, 86_400)
    group.add_argument(
        "--storm", type=at, action="append", default=[], metavar="AT", help="cut all sockets at this second; repeatable"
    )
    group.add_argument(
        "--restart",
        type=at,
        action="append",
        default=[],
        metavar="AT",
        help="restart the gateway, one process after the other",
    )
    group.add_argument(
        "--settle",
        type=_number(1, 3600),
        default=30.0,
        metavar="SECONDS",
        help="the time to end what has begun, at most (%(default)g)",
    )


def _gateway(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=_number(1, 64, int), default=1, metavar="W", help="processes of an own gateway (%(default)s)"
    )
    group.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of an own gateway, as RATE_CALLS=0; repeatable",
    )
    group.add_argument(
        "--secret-file",
        type=Path,
        metavar="FILE",
        help="with the secret that signs tokens; else GATEWAY_JWT_SECRET, or the one in GATEWAY_DATA_DIR",
    )
    group.add_argument("--restart-command", metavar="COMMAND", help="what restarts a gateway that is not our own")
    group.add_argument(
        "--pid",
        type=int,
        action="append",
        default=[],
        help="a process of the gateway, whose CPU and memory to report; repeatable",
    )
    group.add_argument(
        "--keep-accounts", action="store_true", help="leave the phones' accounts on a gateway that is not our own"
    )
    group.add_argument(
        "--anywhere",
        action="store_true",
        help="allow an address beyond this machine. A load test is an attack on whoever did not ask for it",
    )

"""How long an upload takes to reach the push provider, and what the push costs: CPU of the gateway's process.

The gateway runs as its users run it (`gateway serve`, embedded: SQLite with synchronous=FULL, disk, worker inside), in
its own process, with authorization and metrics on, the rate limits off, and the sweep only at its start. APNs and FCM
are their simulators, over real HTTP/2 and TLS, in a process of their own. This process is the load: `--rate` uploads
begin in a second, at random times (a Poisson process) whatever has become of those before (an open loop), each to a
recipient of its own with one registered device and no connection. Latency is from just before the news is sent to the
gateway until the simulator has the whole push (CLOCK_MONOTONIC is the same for both), matched by recipient and video.

There are two loads, since embedded the news does not begin with the status call: the gateway takes the bytes in itself,
completes the upload at once, and the status call that follows is a repetition.

* `upload` is all that the sender's app does: announce, PUT, status call. The news begins with the last byte of the PUT.
  From the status call on, latency may be negative: the push was there before it.
* `status` is the status call alone, of videos that were announced, and their bytes put into the store past the gateway,
  as with S3. The news begins with the call.

Each recipient gets one video in a round, and each pair's replaces the one before. Real recipients get few videos in an
hour, and acknowledge each: here they do so when the round is over, in calls that are not measured, so that what a push
costs is the push alone. With `--acks` they do so in the round, so many seconds after the upload began, as apps do after
a push: that is one more call for each upload.

CPU is what the kernel's scheduler counted for all threads of the gateway (/proc/PID/task/*/schedstat) from the first
call until some time after the last, divided by the uploads. One push costs what is left of that without the same load
for recipients with no registered device: the claim, looking up the token, sending, writing down the outcome. What the
senders alone cost is measured in processes that do nothing else, beside aioapns and firebase-admin.

Rounds are interleaved; the tables have the median of each figure, but for the largest latency and the counts, which are
of all rounds. "Others" are the cores that all else had meanwhile, niced processes and the kernel included: on a shared
machine, only rounds with little of it say something about latency. `--quiet` waits until others take no more than that,
and repeats a load that was disturbed.
"""

import argparse
import asyncio
import itertools
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
from bench_calls import VIDEO, Connection, Pair, Server, World, request, store, stores
from load import cpu_s
from open_loop import OpenLoop, Script
from providers import Providers, Received, push_token
from senders_alone import SENDERS, Cost, cost, install

from gateway.api.calls import LAST_VERSION
from gateway.registry import Registry
from gateway.service import Service, UploadLimits
from gateway.transit.decisions import VideoRef
from gateway.transit.receiving import Acknowledgement
from gateway.transit.state import ClientId, DeviceId, VideoId
from push.sender import Platform
from storage.disk import DiskObjects

LATE_MS = 100.0
"""What is to be reached: 99 of 100 pushes are there by then."""

SETTLE_S = 2.0
"""So long after the last call began, what the calls caused still counts as theirs."""

QUIET_S = 3
"""So long nobody else may have done much before a load begins, where that is asked for."""

PATIENCE_S = 30.0
"""A push that has not come so long after that is lost."""

CONNECTIONS = 64
DEVICE = "phone"
LOADS = ("upload", "status")
BOTH = "both"
NOBODY = "none"
"""Instead of a platform: half of the recipients on each; no recipient has a device."""

AT_ONCE = (64, 1)
"""How many pushes a sender that is measured alone has under way."""


class Uploaded(NamedTuple):
    """One upload: when the request that brought the news was sent and answered, and when the status call was sent."""

    ref: VideoRef
    news_s: float
    answered_s: float
    status_s: float


class Figures(NamedTuple):
    """One load in one round. `latencies`: in ms, sorted, by what they are counted from. `cpu_us`: of the gateway's for
    each upload; `cores`: in the mean."""

    latencies: Mapping[str, Sequence[float]]
    cpu_us: float
    cores: float
    others: float


# --- Who uploads, and to whom


class People:
    """Senders and their recipients, made with the product's own parts before the gateway starts: everybody has had a
    video before, and has acknowledged it. There are `each` pairs of a kind: a platform, or NOBODY."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._pairs: dict[str, list[Pair]] = {}

    async def make(self, data: Path) -> None:
        """Write their documents and their first videos."""
        kinds = [*Platform, NOBODY]
        world = World(data)
        await world.seed(len(kinds) * self._each)
        async with stores(data) as (changes, objects):
            registry, service = Registry(changes), Service(changes, objects, UploadLimits())
            for number, kind in enumerate(kinds):
                pairs = world.pairs[number * self._each : (number + 1) * self._each]
                for start in range(0, self._each, 64):
                    some = pairs[start : start + 64]
                    await asyncio.gather(*(_equip(registry, service, pair.ref.recipient_id, kind) for pair in some))
                self._pairs[kind] = pairs

    def of(self, kind: str) -> list[Pair]:
        """The pairs of one kind; of BOTH, half of each platform."""
        if kind != BOTH:
            return self._pairs[kind]
        pairs = zip(self._pairs[Platform.APNS], self._pairs[Platform.FCM], strict=True)
        return list(itertools.chain.from_iterable(pairs))[: self._each]


async def _equip(registry: Registry, service: Service, client_id: ClientId, kind: str) -> None:
    if kind != NOBODY:
        token = push_token(Platform(kind), client_id)
        await registry.register(client_id, DeviceId(DEVICE), platform=kind, environment="production", token=token)
    await service.poll(client_id, Acknowledgement(DeviceId(DEVICE), LAST_VERSION))


# --- What their apps send


def _announce(pair: Pair) -> bytes:
    body = {"recipient_id": pair.ref.recipient_id, "size": len(VIDEO), "content_type": "video/mp4"}
    return request("POST", "/v1/videos", pair.sender_token, body)


def _put(url: str) -> bytes:
    path = "/" + url.split("/", 3)[3]
    head = f"PUT {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: video/mp4\r\nContent-Length: {len(VIDEO)}\r\n\r\n"
    return head.encode() + VIDEO


def _confirm(pair: Pair, ref: VideoRef) -> bytes:
    body = {"status": "uploaded", "recipient_id": ref.recipient_id}
    return request("POST", f"/v1/videos/{ref.video_id}/status", pair.sender_token, body)


def _uploading(pair: Pair, done: list[Uploaded]) -> Script:
    """All that a sender's app does."""
    announced = orjson.loads((yield _announce(pair)).body)
    ref = pair.ref._replace(video_id=VideoId(announced["video_id"]))
    put = yield _put(announced["upload"]["url"])
    said = yield _confirm(pair, ref)
    _check(said.body, "duplicate")
    done.append(Uploaded(ref, put.sent_s, put.answered_s, said.sent_s))


def _confirming(pair: Pair, ref: VideoRef, done: list[Uploaded]) -> Script:
    """The status call alone."""
    said = yield _confirm(pair, ref)
    _check(said.body, "applied")
    done.append(Uploaded(ref, said.sent_s, said.answered_s, said.sent_s))


def _check(body: bytes, result: str) -> None:
    """The news begins where latency does."""
    if orjson.loads(body)["result"] != result:
        raise SystemExit(f"a status call was answered {body!r}, not {result}")


def _announcing(pairs: Sequence[Pair], refs: dict[ClientId, VideoRef]) -> Script:
    for pair in pairs:
        announced = orjson.loads((yield _announce(pair)).body)
        refs[pair.ref.recipient_id] = pair.ref._replace(video_id=VideoId(announced["video_id"]))


def _acknowledging(pairs: Sequence[Pair]) -> Script:
    for pair in pairs:
        yield request("GET", f"/v1/poll?device_id={DEVICE}&version={LAST_VERSION}", pair.recipient_token)


# --- One load


class Course:
    """The loads of all rounds, on one gateway and its data. `acks_s`: as `--acks` says."""

    def __init__(self, server: Server, providers: Providers, data: Path, *, rate: float, acks_s: float | None) -> None:
        self._server = server
        self._providers = providers
        self._data = data
        self._rate = rate
        self._acks_s = acks_s
        self.tally = Counter[str]()
        """What became of the pushes of all loads so far."""

    def run(self, load: str, pairs: Sequence[Pair], *, pushed: bool, seed: int) -> Figures:
        """Each pair exchanges a video. `pushed`: whether recipients have a device; `seed`: of the times."""
        done: list[Uploaded] = []
        starts = _starts(self._rate, len(pairs), seed)
        scripts = list(zip(starts, self._senders(load, pairs, done), strict=True))
        if self._acks_s is not None:
            scripts += [(at + self._acks_s, _acknowledging([pair])) for at, pair in zip(starts, pairs, strict=True)]
        self._server.wait_until_idle()
        self._providers.received(0, wait_s=0)
        calls = OpenLoop(self._server.port, CONNECTIONS)
        meter = Meter(self._server.pid, self._providers.pid)
        calls.run(scripts)
        use = meter.read(after_s=max(at for at, _ in scripts) + SETTLE_S)
        received = self._providers.received(len(pairs) if pushed else 0, wait_s=PATIENCE_S)
        calls.close()
        self._all_at_once(_acknowledging, pairs)
        came = _matched([upload.ref for upload in done], received, pushed=pushed)
        self.tally.update(came.tally)
        return _figures(done, came, use)

    def _senders(self, load: str, pairs: Sequence[Pair], done: list[Uploaded]) -> list[Script]:
        if load == "upload":
            return [_uploading(pair, done) for pair in pairs]
        refs: dict[ClientId, VideoRef] = {}
        self._all_at_once(lambda some: _announcing(some, refs), pairs)
        asyncio.run(_store(self._data, list(refs.values())))
        return [_confirming(pair, refs[pair.ref.recipient_id], done) for pair in pairs]

    def _all_at_once(self, script: Callable[[Sequence[Pair]], Script], pairs: Sequence[Pair]) -> None:
        """What is not measured: as fast as it goes."""
        calls = OpenLoop(self._server.port, CONNECTIONS)
        calls.run((0.0, script(pairs[number::CONNECTIONS])) for number in range(min(CONNECTIONS, len(pairs))))
        calls.close()


def _starts(rate: float, count: int, seed: int) -> list[float]:
    """When each of them begins, in seconds: so many a second on average, each whenever it likes."""
    dice = random.Random(seed)
    return list(itertools.accumulate(dice.expovariate(rate) for _ in range(count)))


async def _store(data: Path, refs: Sequence[VideoRef]) -> None:
    objects = DiskObjects(data / "objects")
    for start in range(0, len(refs), 64):
        await asyncio.gather(*(store(objects, ref) for ref in refs[start : start + 64]))
    await objects.close()


class Use(NamedTuple):
    """CPU in a time: seconds of the gateway's, and how many cores it and all others had in the mean."""

    gateway_s: float
    cores: float
    others: float


class Meter:
    """Counts CPU from now on."""

    def __init__(self, gateway_pid: int, providers_pid: int) -> None:
        self._gateway_pid = gateway_pid
        self._providers_pid = providers_pid
        self._began_s = time.monotonic()
        self._before = self._now()

    def read(self, *, after_s: float) -> Use:
        """What it was, so many seconds after the beginning."""
        time.sleep(max(0.0, self._began_s + after_s - time.monotonic()))
        elapsed_s = time.monotonic() - self._began_s
        gateway_s, ours_s, all_s = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return Use(gateway_s, gateway_s / elapsed_s, max(0.0, all_s - ours_s) / elapsed_s)

    def _now(self) -> tuple[float, float, float]:
        """Seconds so far: of the gateway, of all processes here, of the machine."""
        gateway_s = cpu_s(self._gateway_pid)
        return gateway_s, gateway_s + cpu_s(self._providers_pid) + time.process_time(), _machine_s()


def _machine_s() -> float:
    """Seconds of CPU that the machine has had so far."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, *more = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[1:9])
    return user + nice + system + sum(more)


def _wait_until_quiet(cores: float) -> None:
    """Return once others take no more."""
    for_s = 0 if math.isfinite(cores) else QUIET_S
    while for_s < QUIET_S:
        before_s = _machine_s()
        time.sleep(1)
        for_s = for_s + 1 if _machine_s() - before_s <= cores else 0


class Came(NamedTuple):
    """When the push of each upload came, the first one; and how many came, or came amiss, in all."""

    at_s: Mapping[VideoRef, float]
    tally: Counter[str]


def _matched(refs: Sequence[VideoRef], received: Received, *, pushed: bool) -> Came:
    """Each upload is to be told once: to its recipient's device, by a push with this video. Others are strays."""
    wanted = {(ref.recipient_id, ref.video_id): ref for ref in refs} if pushed else {}
    at_s: dict[VideoRef, list[float]] = {}
    strays = 0
    for receipt in received.receipts:
        client_id, video_ids = ClientId(receipt.collapse_id or ""), receipt.video_ids
        ref = wanted.get((client_id, VideoId(video_ids[0]))) if len(video_ids) == 1 else None
        if ref is not None and receipt.token in {push_token(platform, client_id) for platform in Platform}:
            at_s.setdefault(ref, []).append(receipt.at_s)
        else:
            strays += 1
    twice = sum(len(times) - 1 for times in at_s.values())
    tally = Counter(pushes=len(received.receipts), lost=len(wanted) - len(at_s), twice=twice, strays=strays)
    tally["refused"] = len(received.refused)
    tally.update(f"of these {reason}" for reason in received.refused)
    return Came({ref: min(times) for ref, times in at_s.items()}, tally)


def _figures(done: Sequence[Uploaded], came: Came, use: Use) -> Figures:
    told = [(came.at_s[upload.ref], upload) for upload in done if upload.ref in came.at_s]
    return Figures(
        latencies={
            "the news": _ms(at_s - upload.news_s for at_s, upload in told),
            "its answer": _ms(at_s - upload.answered_s for at_s, upload in told),
            "the status call": _ms(at_s - upload.status_s for at_s, upload in told),
        },
        cpu_us=use.gateway_s / len(done) * 1e6,
        cores=use.cores,
        others=use.others,
    )


def _ms(seconds: Iterable[float]) -> list[float]:
    return sorted(latency * 1000 for latency in seconds)


# --- The tables


def report(
    loads: Mapping[tuple[str, str], Sequence[Figures]],
    senders: Mapping[tuple[str, int], Sequence[Cost]],
    tally: Mapping[str, float],
    arguments: argparse.Namespace,
) -> None:
    print(__doc__)
    print(f"{arguments.rounds} rounds, {arguments.rate:g} uploads a second for {arguments.seconds:g} s, ", end="")
    print(f"{'no acks' if arguments.acks is None else f'acks after {arguments.acks:g} s'}, {os.cpu_count()} cores\n")
    print("| load | phones | latency from | p50 ms | p99 ms | max ms |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for (load, kind), rounds in loads.items():
        if kind != NOBODY:
            for since in rounds[0].latencies:
                if load == "upload" or since != "the status call":  # else it is the news
                    print(f"| {load} | {kind} | {since} | {_latencies([one.latencies[since] for one in rounds])} |")
    _report_loads(loads)
    if senders:
        _report_senders(senders)
    print(f"\nIn all, disturbed rounds included: {', '.join(f'{count:g} {what}' for what, count in tally.items())}.")


def _latencies(rounds: Sequence[Sequence[float]]) -> str:
    some = [one for one in rounds if one]
    if not some:
        return " | | "
    p50, p99 = (statistics.median(one[min(len(one) - 1, len(one) * part // 100)] for one in some) for part in (50, 99))
    return f"{p50:.1f} | {p99:.1f} | {max(one[-1] for one in some):.1f}"


def _report_loads(loads: Mapping[tuple[str, str], Sequence[Figures]]) -> None:
    print(f"\n| load | phones | pushes | over {LATE_MS:g} ms ", end="")
    print("| gateway, cores | others, cores | CPU µs, each upload | one push |")
    print("| --- | --- " + "| ---: " * 6 + "|")
    for (load, kind), rounds in loads.items():
        latencies = [latency for one in rounds for latency in one.latencies["the news"]]
        late = sum(latency > LATE_MS for latency in latencies)
        cores, others, cpu = (
            statistics.median(getattr(one, name) for one in rounds) for name in ("cores", "others", "cpu_us")
        )
        print(f"| {load} | {kind} | {len(latencies)} | {late} | {cores:.2f} | {others:.2f} | {cpu:,.0f} ", end="")
        without = loads[load, NOBODY]
        push_us = statistics.median(one.cpu_us - other.cpu_us for one, other in zip(rounds, without, strict=True))
        print("| |" if kind == NOBODY else f"| {push_us:,.0f} |")


def _report_senders(senders: Mapping[tuple[str, int], Sequence[Cost]]) -> None:
    print("\n| sender alone | at a time | CPU µs, each push | pushes/s |")
    print("| --- | ---: | ---: | ---: |")
    for (name, at_once), rounds in senders.items():
        cpu, per_s = (statistics.median(getattr(one, what) for one in rounds) for what in ("cpu_us", "per_s"))
        print(f"| {name} | {at_once} | {cpu:,.0f} | {per_s:,.0f} |")


def _unusual(server: Server) -> dict[str, float]:
    """Those of the gateway's counters that should be 0 and are not."""
    connection = Connection(server.port)
    connection.send(b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n")
    while not connection.answered():
        pass
    connection.socket.close()
    found = {}
    for line in connection.body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        other = name.startswith("gateway_pushes_total{") and 'outcome="accepted"' not in name
        if (other or name.startswith(_UNUSUAL)) and float(value):
            found[name] = float(value)
    return found


_UNUSUAL = (
    "gateway_conflicts_total",
    "gateway_worker_failures_total",
    "gateway_wakeups_held_total",
    "gateway_tokens_removed_total",
    "gateway_tokens_kept_total",
)


# --- The rounds


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name, Providers() as providers:
        data, libraries = Path(name) / "data", arguments.keep or Path(name) / "libraries"
        data.mkdir()
        if arguments.alone:
            install(libraries)
        loads, tally = _loads(providers, data, arguments)
        senders = _senders(providers, libraries, arguments) if arguments.alone else {}
    report(loads, senders, tally, arguments)


def _loads(
    providers: Providers, data: Path, arguments: argparse.Namespace
) -> tuple[dict[tuple[str, str], list[Figures]], dict[str, float]]:
    """The figures of each load and kind of phones, round by round; and what became of the pushes."""
    found: dict[tuple[str, str], list[Figures]] = {}
    people = People(max(2, round(arguments.rate * arguments.seconds)))
    asyncio.run(people.make(data))
    server = Server(data, settings={**providers.settings, "GATEWAY_SWEEP_S": "86400"})
    try:
        course = Course(server, providers, data, rate=arguments.rate, acks_s=arguments.acks)
        for kind in Platform:  # connections and provider tokens are made
            course.run("upload", people.of(kind)[:100], pushed=True, seed=0)
        for number in range(arguments.rounds):
            for load, kind in itertools.product(arguments.load, (*arguments.platform, NOBODY)):
                rounds = found.setdefault((load, kind), [])
                while len(rounds) <= number:
                    _wait_until_quiet(arguments.quiet)
                    figures = course.run(load, people.of(kind), pushed=kind != NOBODY, seed=number)
                    _tell(number, load, kind, figures)
                    if figures.others <= arguments.quiet:
                        rounds.append(figures)
        return found, {**course.tally, **_unusual(server)}
    finally:
        server.stop()


def _senders(providers: Providers, libraries: Path, arguments: argparse.Namespace) -> dict[tuple[str, int], list[Cost]]:
    """What each sender costs alone, by name and how many pushes it has under way, round by round."""
    found: dict[tuple[str, int], list[Cost]] = {}
    wanted = [name for name, (platform, _) in SENDERS.items() if {platform, BOTH} & {*arguments.platform}]
    for number in range(arguments.rounds):
        for at_once, name in itertools.product(AT_ONCE, wanted):
            _wait_until_quiet(arguments.quiet)
            one = cost(name, providers.settings, libraries, count=arguments.alone, at_once=at_once)
            found.setdefault((name, at_once), []).append(one)
            providers.received(0, wait_s=0)
        print(f"round {number + 1} of the senders alone is done", file=sys.stderr)
    return found


def _tell(number: int, load: str, kind: str, figures: Figures) -> None:
    latencies = "" if kind == NOBODY else f" p50, p99, max ms: {_latencies([figures.latencies['the news']])};"
    cpu = f"{figures.cpu_us:,.0f} µs; others {figures.others:.2f} cores"
    print(f"round {number + 1}, {load}, {kind}:{latencies} {cpu}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200.0, help="uploads that begin in a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load in a round")
    parser.add_argument("--load", nargs="+", choices=LOADS, default=[*LOADS])
    parser.add_argument("--platform", nargs="+", choices=[*Platform, BOTH], default=[*Platform, BOTH])
    parser.add_argument("--acks", type=float, metavar="SECONDS", help="recipients acknowledge so long after an upload")
    parser.add_argument("--quiet", type=float, default=math.inf, metavar="CORES", help="what others may take meanwhile")
    parser.add_argument("--alone", type=int, default=3000, metavar="PUSHES", help="of each sender alone in a round")
    parser.add_argument("--keep", type=Path, help="a folder for what is installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What the processes of gateways have counted of their stores: read from their metrics, put together, compared."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_S = 10.0
"""How long a gateway may take to hand out its metrics."""
MOST_BYTES = 64 * 1024 * 1024
"""The most that is read of them."""


class Uncountable(Exception):
    """What was given is no metrics, or no prices: a sentence, without its end."""


class Kind(NamedTuple):
    """What is counted: `metric` is `requests`, `units`, `videos`, `bytes` or `downloads`. The first two are of a store,
    and of what it was asked, or what it counts."""

    metric: str
    store: str = ""
    what: str = ""


VIDEOS, BYTES, DOWNLOADS = Kind("videos"), Kind("bytes"), Kind("downloads")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one process had counted at a time (seconds since the epoch). `started_s`: None where it does not say."""

    at_s: Decimal
    started_s: Decimal | None
    counts: Mapping[Kind, Decimal]


@dataclass(frozen=True, slots=True)
class Used:
    """What was used in `seconds`, by all processes, and how fast. `per_s` is empty where that is not known."""

    seconds: Decimal | None
    processes: int
    counts: Mapping[Kind, Decimal]
    per_s: Mapping[Kind, Decimal]


_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: -?\d+)?", re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"', re.ASCII)


def parsed(text: str, *, source: str, at_s: float) -> dict[str, Reading]:
    """What the processes had counted of which `text` tells, in Prometheus' text format, by `source` and process.

    Raises Uncountable where it has no metrics of a gateway.
    """
    started: dict[str, Decimal] = {}
    counts: dict[str, dict[Kind, Decimal]] = {}
    for name, labels, value in _samples(text):
        process = f"{source} {labels.get('process', '')}".strip()
        if name.startswith("gateway_"):
            counts.setdefault(process, {})
        if name == "process_start_time_seconds":
            started[process] = value
        elif (kind := kind_of(name, labels)) is not None:
            counts[process][kind] = counts[process].get(kind, Decimal(0)) + value
    if not counts:
        raise Uncountable(f"{source} has no metrics of a gateway")
    return {process: Reading(Decimal(str(at_s)), started.get(process), counted) for process, counted in counts.items()}


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], Decimal]]:
    for line in text.splitlines():
        if line.startswith("#") or (found := _SAMPLE.fullmatch(line.strip())) is None:
            continue
        if re.fullmatch(r"[+-]?(Inf|NaN)", found["value"]):
            continue
        yield found["name"], dict(_LABEL.findall(found["labels"] or "")), Decimal(found["value"])


def kind_of(name: str, labels: Mapping[str, str]) -> Kind | None:
    """What a sample of that name and labels counts; None where that has no price."""
    match name:
        case "gateway_store_requests_total":
            return Kind("requests", labels.get("store", ""), labels.get("call", ""))
        case "gateway_store_units_total":
            return Kind("units", labels.get("store", ""), labels.get("kind", ""))
        case "gateway_videos_total" if labels.get("status") == "uploaded":
            return VIDEOS
        case "gateway_video_bytes_total":
            return BYTES
        case "gateway_calls_total" if labels.get("call") == "content" and labels.get("status") in {"200", "307"}:
            return DOWNLOADS
    return None


def since_start(readings: Mapping[str, Reading]) -> Used:
    """What the processes used since each of them started."""
    lives = [reading.at_s - reading.started_s for reading in readings.values() if reading.started_s is not None]
    per_s: dict[Kind, Decimal] = {}
    if len(lives) == len(readings):
        # Each has a rate of its own: one that was replaced lately has counted for less time.
        for reading, life in zip(readings.values(), lives, strict=True):
            _add(per_s, {kind: count / max(life, Decimal(1)) for kind, count in reading.counts.items()})
    counts = _sum(reading.counts for reading in readings.values())
    return Used(max(lives, default=None), len(readings), counts, per_s)


def between(before: Mapping[str, Reading], after: Mapping[str, Reading]) -> Used:
    """What the processes used between two readings. One that was replaced meanwhile counts from its start."""
    same = {
        process for process in before.keys() & after.keys() if before[process].started_s == after[process].started_s
    }
    seconds = max(
        (after[process].at_s - before[process].at_s for process in before.keys() & after.keys()), default=None
    )
    counts = _sum(
        {kind: count - before[process].counts.get(kind, 0) for kind, count in reading.counts.items()}
        if process in same
        else reading.counts
        for process, reading in after.items()
    )
    per_s = {kind: count / seconds for kind, count in counts.items()} if seconds else {}
    return Used(seconds, len(after), counts, per_s)


def _sum(parts: Iterable[Mapping[Kind, Decimal]]) -> dict[Kind, Decimal]:
    total: dict[Kind, Decimal] = {}
    for part in parts:
        _add(total, part)
    return total


def _add(total: dict[Kind, Decimal], part: Mapping[Kind, Decimal]) -> None:
    for kind, count in part.items():
        total[kind] = total.get(kind, Decimal(0)) + count


# --- Reading


def measured(
    sources: Sequence[str], *, token: str | None, over_s: float | None, sleep: Callable[[float], None] = time.sleep
) -> Used:
    """What the gateways at `sources` (addresses, files, - for standard input) used since they started, or in the next
    `over_s` seconds. `token`: the operator's. Raises Uncountable."""
    first = _read_all(sources, token)
    if over_s is None:
        return since_start(first)
    sleep(over_s)
    return between(first, _read_all(sources, token))


def is_address(source: str) -> bool:
    """Whether a source is the address of a gateway, not a file."""
    return source.startswith(("http://", "https://"))


def _read_all(sources: Sequence[str], token: str | None) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for source in sources:
        text, at_s = _read(source, token)
        found |= parsed(text, source=source, at_s=at_s)
    return found


def _read(source: str, token: str | None) -> tuple[str, float]:
    """The metrics, and the time of which they are."""
    try:
        if source == "-":
            return sys.stdin.read(), time.time()
        if is_address(source):
            return _fetched(source, token), time.time()
        path = Path(source)
        return path.read_text("utf-8"), path.stat().st_mtime
    except UnicodeDecodeError as error:
        raise Uncountable(f"{source} has no metrics of a gateway") from error


def _fetched(address: str, token: str | None) -> str:
    """Follows no redirect and asks no proxy: the operator's token is for whoever was named."""
    parts = urlsplit(address)
    path = parts.path if parts.path.strip("/") else "/metrics"
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection = kind(parts.netloc, timeout=ANSWER_S)
        try:
            connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(MOST_BYTES)
        finally:
            connection.close()
    except (HTTPException, OSError, ValueError) as error:
        raise Uncountable(f"{address} cannot be read: {error}") from error
    if answer.status == 401:
        raise Uncountable(f"{address} asks for the operator's token: give --token, or set GATEWAY_OPERATOR_TOKEN")
    if answer.status != 200:
        raise Uncountable(f"{address} answers with {answer.status}")
    return body.decode("utf-8")

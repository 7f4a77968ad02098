"""What is reported of a test, as tables; and all of it as text."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.loadtest.course import LOAD, SATURATED, Course, cores
from scripts.loadtest.deliveries import LOST_S
from scripts.loadtest.histogram import Histogram
from scripts.loadtest.process import kinds_of
from scripts.loadtest.tally import CALLS, Count, News, Opening

PERCENTS = (50.0, 90.0, 99.0, 99.9)
MIB = 1 << 20
NOTE_WIDTH = 100

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text, all others are numbers."""

    title: str
    heads: Row
    rows: Sequence[Row]
    note: str = ""


def verdict(course: Course) -> str:
    """Whether it went well."""
    if course.wrong:
        return f"FAILED: {', '.join(course.wrong)}."
    return "All is well: nothing was lost, nothing came twice, nothing was wrong in the end."


def circumstances(course: Course) -> list[str]:
    """What was done, in sentences."""
    options = course.options
    kinds = kinds_of(options)
    mix = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in options.mix)
    own = f"started for this test{f' with {options.workers} workers' if options.workers > 1 else ''}"
    pace = "evenly spaced" if options.even else "at random times"
    lines = [
        f"The gateway at {course.address}" + (f" ({own})" if options.address is None else ""),
        f"{options.phones:,} phones in {_many(options.processes, 'process', 'processes')}: {mix}",
        f"{options.rate:g} videos a second, {pace}, of {options.video_bytes:,} bytes; seed {options.seed}",
    ]
    lasted = f"all of it took {course.ended_s - course.began_s:.0f} s"
    lines.append(f"{options.ramp_s:g} s in which the phones came, and {options.seconds:g} s more; {lasted}")
    if course.marks:
        lines.append("; ".join(f"{what} at {at_s:.1f} s" for at_s, what in sorted(course.marks)))
    return lines


def warnings(course: Course) -> list[str]:
    """What makes the figures mean less."""
    found = []
    if course.saturated:
        found.append(
            f"In {_many(course.saturated, 'second', 'seconds')} a process of the load took more than "
            f"{SATURATED:.0%} of a core. Latencies of that time are its own as well: use more --processes, on more "
            "cores."
        )
    return found


def tables(course: Course) -> list[Table]:
    """All that was counted and measured."""
    found = [
        _asked(course),
        _latencies(course, "From call to packet, and from upload to push", News),
        _latencies(course, "Calls", CALLS),
        _latencies(course, "Sockets", Opening),
        _usage(course),
    ]
    more = [
        ("Calls that failed, and were tried again", course.failures),
        ("Sockets that the gateway closed, or lost", course.ends),
        ("Warnings in the gateway's log", course.said),
    ]
    found += [Table(title, ("", "count"), _counted(counts.items())) for title, counts in more if counts]
    return found


def _asked(course: Course) -> Table:
    counts = course.total.counts
    busy = course.busy_s
    asked, served = counts[Count.ASKED], counts[Count.SERVED]
    rows = [
        ("videos", f"{counts[Count.DUE]:,}", f"{counts[Count.DONE]:,}", f"{counts[Count.DONE] / busy:,.1f}"),
        ("calls", f"{asked:,}", f"{served:,}", f"{served / busy:,.1f}"),
        ("sockets opened", "", f"{counts[Count.OPENED]:,}", f"{counts[Count.OPENED] / busy:,.1f}"),
        ("packets by socket", "", f"{counts[Count.PACKETS]:,}", f"{counts[Count.PACKETS] / busy:,.1f}"),
        ("pushes", "", f"{counts[Count.PUSHES]:,}", f"{counts[Count.PUSHES] / busy:,.1f}"),
    ]
    note = (
        f"{_many(counts[Count.REPLACED], 'video was', 'videos were')} replaced by a newer one of the same pair, "
        f"{_many(counts[Count.LATE], 'packet', 'packets')} came more than {LOST_S:g} s late, and "
        f"{_many(counts[Count.SKIPPED], 'version was', 'versions were')} skipped for a newer one."
    )
    return Table("Asked and served", ("", "asked", "served", "a second"), rows, note)


def _latencies(course: Course, title: str, what: Iterable[str]) -> Table:
    heads = ("ms", "count", *(f"p{percent:g}" for percent in PERCENTS), "most")
    found = [(each, course.total.latencies[each]) for each in what if each in course.total.latencies]
    return Table(title, heads, [(name, f"{histogram.count:,}", *_ms(histogram)) for name, histogram in found])


def _ms(histogram: Histogram) -> list[str]:
    return [in_ms(seconds) for seconds in (*histogram.percentiles_s(PERCENTS), histogram.most_s)]


def in_ms(seconds: float) -> str:
    """In ms, as precisely as it is known."""
    ms = seconds * 1000
    if math.isnan(ms):
        return ""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:,.1f}" if ms >= 10 else f"{ms:,.2f}"


def _usage(course: Course) -> Table:
    rows = []
    for name, samples in sorted(course.usage.items(), key=lambda item: (item[0].startswith(LOAD), item[0])):
        each = cores(samples)
        used_s = samples[-1][1].cpu_s - samples[0][1].cpu_s
        mean = used_s / max(samples[-1][0] - samples[0][0], 1.0)
        most = max((each for _, each in each), default=0.0)
        resident = max(used.resident for _, used in samples)
        rows.append((name, f"{used_s:.1f}", f"{mean:.2f}", f"{most:.2f}", f"{resident / MIB:.0f}"))
    note = f"The event loops of the load were at most {in_ms(course.total.late_s)} ms behind."
    return Table("CPU and memory", ("process", "CPU s", "cores, mean", "cores, most", "MiB, most"), rows, note)


def _counted(items: Iterable[tuple[str, int]]) -> list[Row]:
    return [(name, f"{count:,}") for name, count in sorted(items, key=lambda item: -item[1])]


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def text(course: Course) -> str:
    """All of it."""
    parts = ["\n".join(circumstances(course)), *map(_aligned, tables(course)), *warnings(course)]
    if course.findings:
        parts.append("\n".join(course.findings))
    return "\n\n".join([*parts, verdict(course)])


def _aligned(table: Table) -> str:
    cells = [table.heads, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.heads))]
    lines = [table.title]
    for first, *rest in cells:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append(f"  {first:{widths[0]}}{numbers}".rstrip())
    return "\n".join([*lines, *textwrap.wrap(table.note, NOTE_WIDTH)])

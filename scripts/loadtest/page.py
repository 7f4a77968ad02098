"""The report as one HTML page, which needs nothing from elsewhere, and runs nothing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from scripts.loadtest.course import Course, cores
from scripts.loadtest.histogram import merged
from scripts.loadtest.plots import Chart, Line, Point, svg
from scripts.loadtest.report import MIB, Table, circumstances, tables, verdict, warnings
from scripts.loadtest.tally import Count, News

PERCENTS = tuple(100 * (1 - 10 ** (-step / 20)) for step in range(81))
"""From the least to p99.99, closer together the rarer."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(course: Course) -> str:
    """The whole page."""
    told = "".join(f"<p>{escape(line)}</p>" for line in circumstances(course))
    warned = "".join(f'<p class="warning">{escape(line)}</p>' for line in warnings(course))
    found = "".join(f"<li>{escape(finding)}</li>" for finding in course.findings)
    state = "bad" if course.wrong else "good"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Load test of {escape(course.address)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Load test</h1>
<p class="verdict {state}">{escape(verdict(course))}</p>
{told}{warned}
{f"<ul>{found}</ul>" if found else ""}
<section class="charts">{"".join(map(_figure, charts(course)))}</section>
{"".join(map(_table, tables(course)))}
</main>
</body>
</html>
"""


# --- What is shown


def charts(course: Course) -> list[Chart]:
    """All plots."""
    marks = sorted(course.marks)
    return [
        Chart("Calls", "a second", _counts(course, (Count.ASKED, Count.SERVED, Count.FAILED)), marks=marks),
        Chart("Videos", "a second", _counts(course, (Count.DUE, Count.ARRIVED, Count.DONE)), marks=marks),
        Chart("From call to packet", "ms", _latency_lines(course), marks=marks, log=True),
        Chart("Percentiles of latency", "ms", _distribution(course), "percentile", _PERCENTILES, log=True),
        Chart("Phones and sockets", "open", _sockets(course), marks=marks),
        Chart("CPU", "cores", _cpu(course), marks=marks),
        Chart("Memory", "MiB", _memory(course), marks=marks),
    ]


def _per_second(course: Course) -> range:
    return range(max(course.seconds, default=-1) + 1)


def _counts(course: Course, what: Sequence[Count]) -> list[Line]:
    seconds = [(at, course.seconds[at]) for at in _per_second(course) if at in course.seconds]
    return [Line(_short(each), [(float(at), float(second.counts[each])) for at, second in seconds]) for each in what]


def _short(count: Count) -> str:
    return count.rpartition(" ")[2]


def _latency_lines(course: Course) -> list[Line]:
    percents = (50.0, 99.0, 100.0)
    points: dict[float, list[Point]] = {percent: [] for percent in percents}
    for at in _per_second(course):
        second = course.seconds.get(at)
        news = merged(second.latencies[each] for each in News if each in second.latencies) if second else merged(())
        for percent, value_s in zip(percents, news.percentiles_s(percents), strict=True):
            points[percent].append((float(at), value_s * 1000))
    return [Line(name, points[percent]) for name, percent in zip(("p50", "p99", "most"), percents, strict=True)]


_PERCENTILES = tuple((float(place), f"p{name}") for place, name in enumerate(("0", "90", "99", "99.9", "99.99")))


def _distribution(course: Course) -> list[Line]:
    lines = []
    for each in News:
        histogram = course.latency(each)
        # As far out as there are values that could differ.
        percents = [percent for percent in PERCENTS if histogram.count * (100 - percent) >= 50]
        values = [value_s * 1000 for value_s in histogram.percentiles_s(percents)]
        points = [(-math.log10(1 - percent / 100), ms) for percent, ms in zip(percents, values, strict=True)]
        if points:
            lines.append(Line(each, points))
    return lines


def _sockets(course: Course) -> list[Line]:
    seconds = [(float(at), course.seconds[at]) for at in _per_second(course) if at in course.seconds]
    return [
        Line("phones", [(at, float(second.phones)) for at, second in seconds]),
        Line("sockets", [(at, float(second.sockets)) for at, second in seconds]),
    ]


def _cpu(course: Course) -> list[Line]:
    return _by_name({process: cores(samples) for process, samples in course.usage.items()})


def _memory(course: Course) -> list[Line]:
    return _by_name(
        {process: [(at_s, used.resident / MIB) for at_s, used in samples] for process, samples in course.usage.items()}
    )


def _by_name(lines: Mapping[str, Sequence[Point]]) -> list[Line]:
    """A process that took the place of another goes on with its line, behind a gap."""
    found: dict[str, list[Point]] = {}
    for process, points in sorted(lines.items(), key=lambda item: (item[0].partition(" (")[0], item[1][:1])):
        line = found.setdefault(process.partition(" (")[0], [])
        line += [(points[0][0], math.nan), *points] if line and points else points
    return [Line(name, points) for name, points in found.items()]


# --- How it is shown


def _figure(chart: Chart) -> str:
    drawn = svg(chart)
    if not drawn:
        return ""
    names = "".join(
        f'<li><span class="key c{number % 8}"></span>{escape(line.name)}</li>'
        for number, line in enumerate(chart.lines)
    )
    title = f"<figcaption><b>{escape(chart.title)}</b> {escape(chart.unit)}</figcaption>"
    return f'<figure>{title}{drawn}<ul class="keys">{names}</ul></figure>'


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    heads = _cells("th", table.heads)
    rows = "".join(f"<tr>{_cells('td', row)}</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    title = escape(table.title)
    return f"<h2>{title}</h2><div><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"


def _cells(tag: str, cells: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


_STYLE = """
:root { --ground: #fbfbfa; --card: #fff; --text: #1d2125; --faint: #646b73; --rule: #e3e5e8; --good: #1a7f4b;
  --bad: #b3261e; --warn: #9a5b00; --c0: #2f6fd0; --c1: #c2570c; --c2: #0f8a6d; --c3: #a13fa8; --c4: #8a6d00;
  --c5: #d1345b; --c6: #4b5b6b; --c7: #5b8c1a; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --card: #1c2024; --text: #e7eaed; --faint: #9aa3ad; --rule: #30363c; --good: #57c78c;
    --bad: #ff8a80; --warn: #e5ac4d; --c0: #7aa9f7; --c1: #f2a05c; --c2: #4fcfae; --c3: #d991de; --c4: #d9bd4f;
    --c5: #f58aa5; --c6: #a9b7c6; --c7: #a3d160; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 8px; }
h2 { font-size: 17px; margin: 32px 0 8px; }
p { margin: 2px 0; color: var(--faint); }
.verdict { font-size: 17px; font-weight: 600; margin: 0 0 10px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warning { color: var(--warn); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px;
  margin-top: 20px; }
figure { margin: 0; padding: 12px 12px 10px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { color: var(--faint); padding-left: 2px; } figcaption b { color: var(--text); }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); fill: none; } .mark { stroke: var(--faint); stroke-dasharray: 3 3; fill: none; }
.tick { fill: var(--faint); font-size: 12px; }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.line.c0 { stroke-width: 3.2; stroke-opacity: .6; }
.reading { fill: transparent; } .reading:hover { fill: var(--faint); fill-opacity: .15; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; margin: 6px 0 0; padding: 0; font-size: 13px; }
.key { display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle;
  background: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; background: var(--card);
  border: 1px solid var(--rule); }
th, td { padding: 4px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
th { color: var(--faint); font-weight: 600; border-top: 0; }
th:first-child, td:first-child { text-align: left; }
"""

"""Line charts as SVG, to stand in a page: their colours are the page's, by class."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 34
MOST_POINTS = 600
"""Of a line; more than that no screen shows."""

Point = tuple[float, float]
Label = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its name. Points are in order of x; NaN leaves a gap."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """What is shown, and how. `x_ticks`: where to, with what is said there; None: round numbers. `marks`: upright lines
    with a word each. `log`: the upright axis is logarithmic."""

    title: str
    unit: str
    lines: Sequence[Line]
    x_unit: str = "s"
    x_ticks: Sequence[tuple[float, str]] | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    log: bool = False


def svg(chart: Chart) -> str:
    """The chart; nothing where there is nothing to show."""
    lines = [Line(line.name, _thinned(line.points)) for line in chart.lines]
    points = [(x, y) for line in lines for x, y in line.points if math.isfinite(y) and (y > 0 or not chart.log)]
    if len({x for x, _ in points}) < 2:
        return ""
    frame = _Frame(points, log=chart.log)
    parts = [*_axes(chart, frame), *_marks(chart, frame)]
    for number, line in enumerate(lines):
        parts.append(f'<path class="line c{number % 8}" d="{_path(frame, line.points)}"/>')
    parts.extend(_readings(chart, lines, frame))
    label = escape(f"{chart.title}, {chart.unit}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Of each few points that one screen column would show, the highest."""
    step = math.ceil(len(points) / MOST_POINTS) or 1
    if step == 1:
        return list(points)
    finite = [point for point in points if math.isfinite(point[1])]
    return [max(finite[start : start + step], key=lambda point: point[1]) for start in range(0, len(finite), step)]


class _Frame:
    """From values to places."""

    def __init__(self, points: Sequence[Point], *, log: bool) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.log = log
        self.x_least, self.x_most = min(xs), max(xs)
        if log:
            self.y_least = 10 ** math.floor(math.log10(min(ys)))
            self.y_most = max(10 ** math.ceil(math.log10(max(ys))), self.y_least * 10)
        else:
            self.y_least, self.y_most = 0.0, max(max(ys) * 1.05, 1e-9)

    def x(self, value: float) -> float:
        share = (value - self.x_least) / (self.x_most - self.x_least)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        if self.log:
            value = max(value, self.y_least)
            share = math.log(value / self.y_least) / math.log(self.y_most / self.y_least)
        else:
            share = value / self.y_most
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    @property
    def y_ticks(self) -> list[float]:
        if not self.log:
            return list(_round(self.y_most, 5))
        decades = round(math.log10(self.y_most / self.y_least))
        return [self.y_least * 10**decade for decade in range(decades + 1)]


def _round(most: float, count: int) -> Iterator[float]:
    """Round numbers from 0 to that, about so many."""
    step = 10 ** math.floor(math.log10(most / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if most / (step * factor) <= count)
    return (step * number for number in range(math.floor(most / step) + 1))


def _axes(chart: Chart, frame: _Frame) -> Iterator[str]:
    for value in frame.y_ticks:
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
    ticks = chart.x_ticks
    if ticks is None:
        ticks = [(value, number(value)) for value in _round(frame.x_most, 8)]
    for value, label in ticks:
        if frame.x_least <= value <= frame.x_most:
            x, y = frame.x(value), HEIGHT - BOTTOM + 16
            yield f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>'
    yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(chart.x_unit)}</text>'


def _marks(chart: Chart, frame: _Frame) -> Iterator[str]:
    for at, word in chart.marks:
        if frame.x_least <= at <= frame.x_most:
            x = frame.x(at)
            yield f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            yield f'<text class="tick" transform="translate({x + 11:.1f} {TOP}) rotate(90)">{escape(word)}</text>'


def _path(frame: _Frame, points: Iterable[Point]) -> str:
    parts = []
    pen = "M"
    for x, y in points:
        if math.isfinite(y):
            parts.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen = "L" if math.isfinite(y) else "M"
    return "".join(parts)


def _readings(chart: Chart, lines: Sequence[Line], frame: _Frame) -> Iterator[str]:
    """What the lines show where the mouse is: a column for each place, with a title."""
    at: dict[float, list[str]] = {}
    for line in lines:
        for x, y in (point for point in line.points if math.isfinite(point[1])):
            at.setdefault(x, []).append(f"{line.name}: {number(y)} {chart.unit}")
    names = dict(chart.x_ticks or ())
    xs = sorted(at)
    edges = [frame.x_least, *((a + b) / 2 for a, b in pairwise(xs)), frame.x_most]
    for x, (left, right) in zip(xs, pairwise(edges), strict=True):
        place = names.get(x) or f"{number(x)} {chart.x_unit}"
        title = escape("\n".join([place, *at[x]]))
        width = max(frame.x(right) - frame.x(left), 0.5)
        yield (
            f'<rect class="reading" x="{frame.x(left):.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
        )


def number(value: float) -> str:
    """As short as it says something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"

"""Small charts for the page: lines, bars, dots on a logarithmic axis, and grids of cells.

A chart is a scene whose shapes carry classes (`c-pointwise`, `c-connected`, …); the page's style sheet sets their
colours, so that one chart serves the light theme, the dark theme and print. The accessible name of every chart
contains its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from onebyone.drawing.number_format import superscript, tick
from onebyone.drawing.scene import Circle, Point, Rectangle, Scene, Shape, Strokes, Text
from onebyone.drawing.svg_writer import to_inline_svg

WIDTH = 340.0
"""Width of a chart in pixels: that of a phone."""


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values outside the range are placed at its ends.

        >>> Scale(1, 100, 0, 200, log=True).at(10)
        100.0
        """
        value = min(max(value, self.low), self.high)
        low, high, v = (math.log(n) if self.log else n for n in (self.low, self.high, value))
        share = (v - low) / (high - low) if high > low else 0.0
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values to label: powers of ten on a logarithmic scale, else multiples of 1, 2 or 5 times such a power.

        >>> Scale(0, 1, 0, 1).ticks(), Scale(1e-3, 1e3, 0, 1, log=True).ticks(4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.01, 1.0, 100.0])
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first + 1) / most))
            first += (-first) % step  # so that 1 is among them if it is in the range
            powers = [float(f"1e{n}") for n in range(first, last + 1, step)]
            if len(powers) > 1:
                return powers
            finer = [float(f"{m}e{n}") for n in range(first - 2, last + 2) for m in (1, 2, 5)]
            return [v for v in finer if self.low <= v <= self.high]
        span = (self.high - self.low) / most or 1.0
        unit = 10.0 ** math.floor(math.log10(span))
        multiple = next(unit * n for n in (1, 2, 5, 10) if unit * n >= span * (1 - 1e-9))
        first = math.ceil(self.low / multiple - 1e-9)
        return [round(n * multiple, 12) for n in range(first, math.floor(self.high / multiple + 1e-9) + 1)]


@dataclass(frozen=True)
class Series:
    """A named line: its points (x, y) and its class; `marks` puts a dot at every point."""

    name: str
    points: Sequence[Point]
    css: str
    marks: bool = True


def chart(
    shapes: Sequence[Shape], height: float, label: str, css: str = "chart", width: float = WIDTH
) -> str:
    """The shapes as an SVG element of this size in pixels; `label` is its accessible name."""
    return to_inline_svg(Scene("chart", width, height, label, "", tuple(shapes)), css)


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Strokes:
    """A straight line."""
    return polyline(((x1, y1), (x2, y2)), css)


def polyline(points: Sequence[Point], css: str) -> Strokes:
    """A line through several points."""
    return Strokes((tuple(points),), "line", css=css)


def rect(
    x: float, y: float, width: float, height: float, css: str, opacity: float | None = None
) -> Rectangle:
    """A rectangle; the style sheet sets its opacity if it is None."""
    return Rectangle(x, y, width, height, opacity=opacity, css=css)


def dot(x: float, y: float, css: str, radius: float = 4) -> Circle:
    """A filled circle."""
    return Circle(x, y, radius, css=css)


def text(x: float, y: float, words: str, css: str = "", anchor: str = "middle") -> Text:
    """A line of text."""
    return Text(x, y, words, anchor=anchor, css=css)


def axes(x: Scale, y: Scale, x_name: str, y_name: str, x_ticks: Sequence[float] | None = None) -> list[Shape]:
    """Grid lines with their values, and the names of both axes."""
    shapes: list[Shape] = []
    for value in y.ticks():
        at = y.at(value)
        shapes += [
            line(x.start, at, x.end, at, "grid"),
            text(x.start - 6, at + 4, tick(value), "tick", "end"),
        ]
    for value in x.ticks() if x_ticks is None else x_ticks:
        shapes.append(text(x.at(value), y.start + 16, tick(value), "tick"))
    shapes.append(line(x.start, y.start, x.end, y.start, "axis"))
    shapes.append(text(x.end, y.start + 32, x_name, "name", "end"))
    shapes.append(text(2, y.end - 10, y_name, "name", "start"))
    return shapes


def frame(
    x_range: tuple[float, float], y_range: tuple[float, float], log: tuple[bool, bool], height: float
) -> tuple[Scale, Scale]:
    """The two scales of a chart of this height, with room for the labels of the axes."""
    x = Scale(*x_range, 44, WIDTH - 8, log[0])
    return x, Scale(*y_range, height - 40, 26, log[1])


def line_chart(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    label: str,
    log: tuple[bool, bool] = (False, False),
    height: float = 230,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over common axes, with a legend below."""
    xs = [p[0] for s in series for p in s.points]
    ys = [p[1] for s in series for p in s.points]
    x, y = frame((min(xs), max(xs)), y_range or (min(ys), max(ys)), log, height)
    shapes = axes(x, y, x_name, y_name)
    for s in series:
        points = [(x.at(u), y.at(v)) for u, v in s.points]
        shapes.append(polyline(points, f"line {s.css}"))
        shapes += [dot(*p, s.css, 3.5) for p in points] if s.marks else []
    return chart(shapes, height, label) + legend([(s.name, s.css) for s in series])


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Pairs (name, class) as a line of text with colour keys."""
    keys = "".join(f'<span><i class="key {css}"></i>{escape(name)}</span>' for name, css in names)
    return f'<p class="legend">{keys}</p>'


def bars(rows: Sequence[tuple[str, float, str, str]], label: str, longest: float | None = None) -> str:
    """Horizontal bars (name, value, value as text, class); a bar of the value `longest` has the full length."""
    longest = longest or max((value for _, value, _, _ in rows), default=0) or 1.0
    room = WIDTH - 70
    shapes: list[Shape] = []
    for number, (name, value, words, css) in enumerate(rows):
        top = 40.0 * number
        length = max(1.5, room * min(1.0, value / longest))
        shapes.append(text(0, top + 13, name, "name", "start"))
        shapes.append(rect(0, top + 18, room, 12, "rail"))
        shapes.append(rect(0, top + 18, length, 12, css))
        shapes.append(text(room + 6, top + 28, words, "value", "start"))
    return chart(shapes, 40.0 * len(rows), label)


def dots(
    rows: Sequence[tuple[str, Sequence[float], str]], label: str, mark: float = 1.0, mark_name: str = ""
) -> str:
    """Values on one logarithmic axis, a line of dots for each (name, values, class), with a vertical line at `mark`.

    Zeros are placed at the left end.
    """
    positive = [v for _, values, _ in rows for v in values if 0 < v < math.inf] + [mark]
    low = 10.0 ** math.floor(math.log10(min(positive)) - 0.5)
    high = 10.0 ** math.ceil(math.log10(max(positive)) + 0.5)
    scale = Scale(low, high, 22, WIDTH - 22, log=True)
    height = 34.0 * len(rows) + 44
    half = 3.2 * len(mark_name)  # half the width of the name, which stays inside the chart
    shapes: list[Shape] = [text(min(max(scale.at(mark), half), WIDTH - half), 11, mark_name, "tick")]
    for number, (name, values, css) in enumerate(rows):
        top = 22 + 34.0 * number
        shapes.append(text(0, top + 10, name, "name", "start"))
        shapes.append(line(scale.start, top + 22, scale.end, top + 22, "grid"))
        shapes.append(
            line(scale.at(mark), top + 16, scale.at(mark), top + 29, "rule")
        )  # not through the names
        shapes += [dot(scale.at(v if v < math.inf else high), top + 22, f"{css} part", 4.5) for v in values]
    for value in scale.ticks(6):
        shapes.append(text(scale.at(value), height - 8, _power(value), "tick"))
    return chart(shapes, height, label)


def _power(value: float) -> str:
    return "1" if value == 1 else "10" + superscript(round(math.log10(value)))


def cells(
    values: Sequence[Sequence[float]], x: float, y: float, side: float, css: str, gap: float = 1
) -> list[Rectangle]:
    """A grid of outlined squares, filled by their values in [0, 1]; a value of 0 is not filled."""
    shapes = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            square = (x + j * side, y + i * side, side - gap, side - gap)
            shapes.append(rect(*square, "cell"))
            if value > 0:
                shapes.append(rect(*square, css, round(0.25 + 0.75 * min(1.0, value), 2)))
    return shapes

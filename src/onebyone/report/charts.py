"""Small charts as inline SVG: lines, bars, dots on a logarithmic scale, grids of cells.

Colours are classes (`c-pointwise`, `c-connected`, …) that the page's style sheet sets, so that one drawing
serves the light theme, the dark one and paper. Every chart carries its numbers in words, as its title.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from onebyone.report.images import svg_text

WIDTH = 340.0
"""Of every chart, in pixels: as wide as a phone."""


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on pixels from `start` to `end`, in proportion or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are put on them.

        >>> Scale(1, 100, 0, 200, log=True).at(10)
        100.0
        """
        value = min(max(value, self.low), self.high)
        low, high, v = (math.log(n) if self.log else n for n in (self.low, self.high, value))
        share = (v - low) / (high - low) if high > low else 0.0
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values to mark: powers of ten, or multiples of 1, 2 or 5 of one.

        >>> Scale(0, 1, 0, 1).ticks(), Scale(1e-3, 1e3, 0, 1, log=True).ticks(4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.01, 1.0, 100.0])
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            apart = max(1, math.ceil((last - first + 1) / most))
            first += (-first) % apart  # so that 1 is among them, where it lies within
            found = [float(f"1e{n}") for n in range(first, last + 1, apart)]
            if len(found) > 1:
                return found
            finer = [float(f"{m}e{n}") for n in range(first - 2, last + 2) for m in (1, 2, 5)]
            return [v for v in finer if self.low <= v <= self.high]
        span = (self.high - self.low) / most or 1.0
        unit = 10.0 ** math.floor(math.log10(span))
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= span * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Series:
    """A named line: its points (x, y), and its class; `marks` puts a dot at every point."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    marks: bool = True


def drawing(body: str, height: float, label: str, css: str = "chart", width: float = WIDTH) -> str:
    """An SVG of this size in pixels, with `label` for who cannot see it."""
    return (
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-label="{escape(label)}">{body}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{x1:.5g}" y1="{y1:.5g}" x2="{x2:.5g}" y2="{y2:.5g}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, more: str = "") -> str:
    """A rectangle; `more` are further attributes."""
    return f'<rect class="{css}" x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}"{more}/>'


def dot(x: float, y: float, css: str, radius: float = 4) -> str:
    """A filled circle."""
    return f'<circle class="{css}" cx="{x:.5g}" cy="{y:.5g}" r="{radius:g}"/>'


def polyline(points: Sequence[tuple[float, float]], css: str) -> str:
    """A line through pixels."""
    return f'<polyline class="{css}" points="{" ".join(f"{x:.5g},{y:.5g}" for x, y in points)}"/>'


def short(value: float) -> str:
    """A number as an axis names it.

    >>> [short(v) for v in (0.001, 0.25, 1, 1024, 15000, 2_000_000, 1e-9, 1e12)]
    ['0.001', '0.25', '1', '1024', '15k', '2M', '10⁻⁹', '10¹²']
    """
    size = abs(value)
    if size and not 1e-3 <= size < 1e10:
        power = math.floor(math.log10(size) + 1e-9)
        digits = value / 10.0**power
        return ("" if abs(digits - 1) < 1e-9 else f"{digits:.2g}·") + "10" + superscript(power)
    if size < 1e4 and value == round(value):
        return f"{value:.0f}"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def superscript(number: int) -> str:
    """A whole number, raised.

    >>> superscript(-12)
    '⁻¹²'
    """
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def axes(x: Scale, y: Scale, x_name: str, y_name: str, x_ticks: Sequence[float] | None = None) -> str:
    """Grid lines with their values, and the names of both axes."""
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts += [
            line(x.start, at, x.end, at, "grid"),
            svg_text(x.start - 6, at + 4, short(value), "tick", "end"),
        ]
    for value in x.ticks() if x_ticks is None else x_ticks:
        parts.append(svg_text(x.at(value), y.start + 16, short(value), "tick"))
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(svg_text(x.end, y.start + 32, x_name, "name", "end"))
    parts.append(svg_text(2, y.end - 10, y_name, "name", "start"))
    return "".join(parts)


def frame(
    x_range: tuple[float, float], y_range: tuple[float, float], log: tuple[bool, bool], height: float
) -> tuple[Scale, Scale]:
    """The two scales of a chart of this height: room is left for the axes' words."""
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
    parts = [axes(x, y, x_name, y_name)]
    for s in series:
        placed = [(x.at(u), y.at(v)) for u, v in s.points]
        parts.append(polyline(placed, f"line {s.css}"))
        parts += [dot(*p, s.css, 3.5) for p in placed] if s.marks else []
    return drawing("".join(parts), height, label) + legend([(s.name, s.css) for s in series])


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours, as a line of text."""
    keys = "".join(f'<span><i class="key {css}"></i>{escape(name)}</span>' for name, css in names)
    return f'<p class="legend">{keys}</p>'


def bars(rows: Sequence[tuple[str, float, str, str]], label: str, most: float | None = None) -> str:
    """Horizontal bars: (name, value, the value in words, class) each; the longest is `most`."""
    most = most or max((value for _, value, _, _ in rows), default=0) or 1.0
    room, parts = WIDTH - 70, []
    for number, (name, value, words, css) in enumerate(rows):
        top = 40.0 * number
        parts.append(svg_text(0, top + 13, name, "name", "start"))
        length = max(1.5, room * min(1.0, value / most))
        parts.append(rect(0, top + 18, room, 12, "rail"))
        parts.append(rect(0, top + 18, length, 12, css))
        parts.append(svg_text(room + 6, top + 28, words, "value", "start"))
    return drawing("".join(parts), 40.0 * len(rows), label)


def dots(
    rows: Sequence[tuple[str, Sequence[float], str]], label: str, mark: float = 1.0, words: str = ""
) -> str:
    """Values on one logarithmic axis, a line of dots for each (name, values, class); a rule at `mark`.

    Zeros are put at the left end. `words` name the rule.
    """
    found = [v for _, values, _ in rows for v in values if 0 < v < math.inf] + [mark]
    low = 10.0 ** math.floor(math.log10(min(found)) - 0.5)
    high = 10.0 ** math.ceil(math.log10(max(found)) + 0.5)
    scale = Scale(low, high, 22, WIDTH - 22, log=True)
    height = 34.0 * len(rows) + 44
    parts = [svg_text(*_beside(scale.at(mark), words), "tick")]
    for number, (name, values, css) in enumerate(rows):
        top = 22 + 34.0 * number
        parts.append(svg_text(0, top + 10, name, "name", "start"))
        parts.append(line(scale.start, top + 22, scale.end, top + 22, "grid"))
        parts.append(line(scale.at(mark), top + 16, scale.at(mark), top + 29, "rule"))  # never through words
        parts += [dot(scale.at(v if v < math.inf else high), top + 22, f"{css} part", 4.5) for v in values]
    for value in scale.ticks(6):
        parts.append(svg_text(scale.at(value), height - 8, _power(value), "tick"))
    return drawing("".join(parts), height, label)


def _beside(x: float, words: str) -> tuple[float, float, str]:
    """Where the words of a rule stand, so that they stay inside the picture."""
    half = 3.2 * len(words)
    return min(max(x, half), WIDTH - half), 11, words


def _power(value: float) -> str:
    return "1" if value == 1 else "10" + superscript(round(math.log10(value)))


def cells(
    values: Sequence[Sequence[float]], x: float, y: float, side: float, css: str, gap: float = 1
) -> str:
    """A grid of squares, each as strong as its value in [0, 1]; a value of 0 leaves only the square's outline."""
    parts = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            place = (x + j * side, y + i * side, side - gap, side - gap)
            parts.append(rect(*place, "cell"))
            if value > 0:
                parts.append(rect(*place, css, f' fill-opacity="{0.25 + 0.75 * min(1.0, value):.2g}"'))
    return "".join(parts)

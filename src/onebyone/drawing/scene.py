"""A figure as plain shapes, before it is written in any format.

Coordinates are in points (1/72 inch) in a file and in CSS pixels on a page; x increases to the right and y down, from
the upper left corner. Shapes are drawn in order, later ones on top. Colours are names: in a file a theme maps them to
values (`theme.py`), and on a page the style sheet colours the classes `css` of the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from onebyone.drawing import fonts

SMALL, BODY, HEAD = 6.5, 7.0, 8.0
"""Text sizes in points; figures are printed at their own width, so text is never scaled down."""
LEADING = 1.28
"""Distance between lines of text, relative to the text size."""
THIN, LINE, THICK = 0.4, 0.7, 1.2
NUMBER = re.compile(r"(\d(?:[\d,.×]*\d)?(?: [kMG]\b)?)")
"""A number or a shape with its unit (`25,088`, `512×7×7`, `103 M`), which is never wrapped or shortened."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Polygon:
    """A closed polygon."""

    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = None
    line: float = LINE
    opacity: float = 1.0
    css: str = ""


@dataclass(frozen=True)
class Rectangle:
    """A rectangle; (x, y) is its upper left corner. `opacity` None leaves it to the style sheet of a page."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None = None
    stroke: str | None = None
    line: float = LINE
    opacity: float | None = None
    radius: float = 0.0
    css: str = ""

    def polygon(self) -> Polygon:
        """The same shape as a polygon, with sharp corners."""
        right, low = self.x + self.width, self.y + self.height
        corners = ((self.x, self.y), (right, self.y), (right, low), (self.x, low))
        opacity = 1.0 if self.opacity is None else self.opacity
        return Polygon(corners, self.fill, self.stroke, self.line, opacity, self.css)


@dataclass(frozen=True)
class Circle:
    """A disc of radius r around (x, y)."""

    x: float
    y: float
    r: float
    fill: str | None = None
    stroke: str | None = None
    line: float = LINE
    css: str = ""


@dataclass(frozen=True)
class Strokes:
    """Lines of one style: each is a sequence of points, or of the control points of cubic curves if `curved`."""

    paths: tuple[tuple[Point, ...], ...]
    stroke: str
    line: float = LINE
    opacity: float = 1.0
    dashes: tuple[float, ...] = ()
    curved: bool = False
    css: str = ""


@dataclass(frozen=True)
class Text:
    """One line of text; (x, y) is on its baseline, at its start, middle or end (`anchor`)."""

    x: float
    y: float
    text: str
    size: float = BODY
    fill: str = "ink"
    anchor: str = "start"
    bold: bool = False
    css: str = ""

    @property
    def width(self) -> float:
        """The width in points, in the typeface of the files."""
        return fonts.width(self.text, self.size, self.bold)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The bounding box (x1, y1, x2, y2) of the line."""
        left = self.x - self.width * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        up, down = fonts.ASCENT * self.size, fonts.DESCENT * self.size
        return left, self.y - up, left + self.width, self.y + down


@dataclass(frozen=True)
class RasterImage:
    """A PNG file, stretched to a rectangle whose upper left corner is (x, y)."""

    x: float
    y: float
    width: float
    height: float
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class ShapeGroup:
    """Shapes that belong together; `name` is unique in a figure, and `title` describes them."""

    name: str
    title: str
    shapes: tuple[Shape, ...]
    css: str = ""


Shape = Polygon | Rectangle | Circle | Strokes | Text | RasterImage | ShapeGroup


@dataclass(frozen=True)
class Scene:
    """A figure: its size, its content in one line (`title`), and a description with its numbers (`desc`)."""

    name: str
    width: float
    height: float
    title: str
    desc: str
    shapes: tuple[Shape, ...]

    def flat(self) -> Iterator[Shape]:
        """All shapes, those of groups one by one."""
        return _flat(self.shapes)


def _flat(shapes: Sequence[Shape]) -> Iterator[Shape]:
    for shape in shapes:
        if isinstance(shape, ShapeGroup):
            yield from _flat(shape.shapes)
        else:
            yield shape


def moved(shape: Shape, dx: float, dy: float) -> Shape:
    """The shape moved by (dx, dy)."""
    if isinstance(shape, ShapeGroup):
        return replace(shape, shapes=tuple(moved(s, dx, dy) for s in shape.shapes))
    if isinstance(shape, Polygon):
        return replace(shape, points=tuple((x + dx, y + dy) for x, y in shape.points))
    if isinstance(shape, Strokes):
        return replace(shape, paths=tuple(tuple((x + dx, y + dy) for x, y in p) for p in shape.paths))
    return replace(shape, x=shape.x + dx, y=shape.y + dy)


def line(*points: Point, stroke: str = "line", line: float = LINE, dashes: tuple[float, ...] = ()) -> Strokes:
    """A polyline through the points."""
    return Strokes((points,), stroke, line, dashes=dashes)


def arrow(start: Point, end: Point, stroke: str = "line", size: float = 3.2) -> tuple[Shape, ...]:
    """A straight arrow."""
    (x1, y1), (x2, y2) = start, end
    length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-9)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    bx, by = x2 - ux * size, y2 - uy * size
    head = (
        (x2, y2),
        (bx - uy * size * 0.45, by + ux * size * 0.45),
        (bx + uy * size * 0.45, by - ux * size * 0.45),
    )
    return line(start, (bx, by), stroke=stroke), Polygon(head, stroke)


SLANT, RISE = 0.62, 0.36
"""Of a length along the depth axis: how far it extends to the right, and up."""


def box(
    x: float, y: float, width: float, height: float, depth: float, colour: str, line: float = THIN
) -> tuple[Polygon, Polygon, Polygon]:
    """A box: (x, y) is the upper left corner of its front; it extends by `depth` to the upper right."""
    dx, dy = depth * SLANT, -depth * RISE
    right, low = x + width, y + height
    edge = f"{colour}.edge"
    front = Polygon(((x, y), (right, y), (right, low), (x, low)), colour, edge, line)
    top = Polygon(((x, y), (x + dx, y + dy), (right + dx, y + dy), (right, y)), f"{colour}.top", edge, line)
    side = Polygon(
        ((right, y), (right + dx, y + dy), (right + dx, low + dy), (right, low)), f"{colour}.side", edge, line
    )
    return front, top, side


def lines(
    x: float, y: float, rows: Sequence[str], size: float = BODY, fill: str = "ink", anchor: str = "start"
) -> tuple[Text, ...]:
    """Rows of text; the baseline of the first one is at y."""
    return tuple(
        Text(x, y + i * size * LEADING, fonts.shown(row), size, fill, anchor) for i, row in enumerate(rows)
    )


def wrapped(text: str, width: float, size: float = BODY) -> list[str]:
    """The text in rows no wider than `width` points; a wider word is broken at a dot, and never inside a number.

    >>> all(fonts.width(row, 7) <= 40 for row in wrapped("a few words and averylongwordwithoutend", 40, 7))
    True
    """
    rows: list[str] = []
    for word in fonts.shown(text).split():
        joined = f"{rows[-1]} {word}" if rows else word
        if rows and fonts.width(joined, size) <= width:
            rows[-1] = joined
            continue
        while fonts.width(word, size) > width and len(word) > 1:
            fitting = max((n for n in range(1, len(word)) if fonts.width(word[:n], size) <= width), default=1)
            dot = word.rfind(".", 1, fitting) + 1
            cut = _outside_numbers(word, dot if dot > fitting // 2 else fitting)
            rows.append(word[:cut])
            word = word[cut:]
        rows.append(word)
    return rows


def _outside_numbers(word: str, cut: int) -> int:
    """The last index up to `cut` that is not inside a number; after the number if the word begins with one."""
    for number in NUMBER.finditer(word):
        if number.start() < cut < number.end():
            return number.start() or number.end()
    return cut


def first_fitting(texts: Sequence[str], width: float, size: float = BODY) -> str:
    """The first of several wordings that is no wider than `width` points; if none is, the last one, shortened.

    >>> first_fitting(["the same 36,864 weights", "36,864 weights"], 60)
    '36,864 weights'
    """
    return next((t for t in texts if fonts.width(t, size) <= width), shortened(texts[-1], width, size))


def shortened(text: str, width: float, size: float = BODY) -> str:
    """The text with letters replaced by an ellipsis if it is wider than `width` points; numbers are never shortened.

    Letters are removed from the middle of the longest stretch between two numbers, one at a time. The result may stay
    wider than `width` if the numbers alone are, because a number without some of its digits would be a wrong one.

    >>> shortened("blocks.11.mlp.fc1", 400), len(shortened("blocks.11.mlp.fc1", 30)) < 12
    ('blocks.11.mlp.fc1', True)
    >>> shortened("the same 36,864 weights", 80)
    'the…e 36,864 we…hts'
    """
    stretches = NUMBER.split(fonts.shown(text))  # words and numbers alternate
    kept = [len(words) for words in stretches[::2]]
    while True:
        shown = list(stretches)
        shown[::2] = [_without_middle(w, n) for w, n in zip(stretches[::2], kept, strict=True)]
        longest = max(kept)
        if longest == 0 or fonts.width("".join(shown), size) <= width:
            return "".join(shown)
        kept[kept.index(longest)] -= 1


def _without_middle(words: str, kept: int) -> str:
    if kept == len(words):
        return words
    return words[: kept - kept // 2] + "…" + words[len(words) - kept // 2 :]

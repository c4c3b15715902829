"""A picture as plain shapes in points, before it is written in any format.

x runs to the right and y down from the upper left corner, in points (1/72 inch). Colours are names that a
theme fills in. Shapes are drawn in order, later ones above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from onebyone.drawing import fonts

SMALL, BODY, HEAD = 6.5, 7.0, 8.0
"""Sizes of text in points; a picture is printed at its own width, so none gets smaller."""
LEADING = 1.28
"""From line to line, in parts of the size."""
THIN, LINE, THICK = 0.4, 0.7, 1.2
NUMBER = re.compile(r"(\d(?:[\d,.×]*\d)?(?: [kMG]\b)?)")
"""A number or a shape with its unit (`25,088`, `512×7×7`, `103 M`): never broken or cut."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Polygon:
    """A closed shape."""

    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = None
    line: float = LINE
    opacity: float = 1.0


@dataclass(frozen=True)
class Circle:
    """A disc of radius r about (x, y)."""

    x: float
    y: float
    r: float
    fill: str | None = None
    stroke: str | None = None
    line: float = LINE


@dataclass(frozen=True)
class Strokes:
    """Lines of one look: each a row of points, bent where `curved` (three control points after the first)."""

    paths: tuple[tuple[Point, ...], ...]
    stroke: str
    line: float = LINE
    opacity: float = 1.0
    dashes: tuple[float, ...] = ()
    curved: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text; (x, y) is on its baseline, at its start, middle or end."""

    x: float
    y: float
    text: str
    size: float = BODY
    fill: str = "ink"
    anchor: str = "start"
    bold: bool = False

    @property
    def width(self) -> float:
        """In points."""
        return fonts.width(self.text, self.size, self.bold)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of the line."""
        left = self.x - self.width * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        up, down = fonts.ASCENT * self.size, fonts.DESCENT * self.size
        return left, self.y - up, left + self.width, self.y + down


@dataclass(frozen=True)
class RasterImage:
    """A PNG file stretched over a rectangle."""

    x: float
    y: float
    width: float
    height: float
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Shapes that belong together: `name` is unique in a picture, `title` says what they are."""

    name: str
    title: str
    shapes: tuple[Shape, ...]


Shape = Polygon | Circle | Strokes | Text | RasterImage | Group


@dataclass(frozen=True)
class Scene:
    """A whole picture: its size, what it is in a line (`title`) and told with its numbers (`desc`)."""

    name: str
    width: float
    height: float
    title: str
    desc: str
    shapes: tuple[Shape, ...]

    def flat(self) -> Iterator[Shape]:
        """The shapes without groups."""
        return _flat(self.shapes)


def _flat(shapes: Sequence[Shape]) -> Iterator[Shape]:
    for shape in shapes:
        if isinstance(shape, Group):
            yield from _flat(shape.shapes)
        else:
            yield shape


def moved(shape: Shape, dx: float, dy: float) -> Shape:
    """The shape, moved."""
    if isinstance(shape, Group):
        return replace(shape, shapes=tuple(moved(s, dx, dy) for s in shape.shapes))
    if isinstance(shape, Polygon):
        return replace(shape, points=tuple((x + dx, y + dy) for x, y in shape.points))
    if isinstance(shape, Strokes):
        return replace(shape, paths=tuple(tuple((x + dx, y + dy) for x, y in p) for p in shape.paths))
    return replace(shape, x=shape.x + dx, y=shape.y + dy)


def rect(
    x: float, y: float, width: float, height: float, fill: str | None, stroke: str | None = None
) -> Polygon:
    """A rectangle by its upper left corner."""
    return Polygon(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), fill, stroke)


def line(*points: Point, stroke: str = "line", line: float = LINE, dashes: tuple[float, ...] = ()) -> Strokes:
    """A line through the points."""
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
"""Of a length that runs away from the viewer: how far it goes to the right, and up."""


def box(
    x: float, y: float, width: float, height: float, depth: float, colour: str, line: float = THIN
) -> tuple[Polygon, Polygon, Polygon]:
    """A box from the front: (x, y) is its front's upper left corner; it runs `depth` away, to the upper right."""
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
    """Rows of text, the first one's baseline at y."""
    return tuple(
        Text(x, y + i * size * LEADING, fonts.shown(row), size, fill, anchor) for i, row in enumerate(rows)
    )


def wrapped(text: str, width: float, size: float = BODY) -> list[str]:
    """The text in rows no wider than `width` points; a word that is wider is broken, at a dot or outside a number.

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
            fits = max((n for n in range(1, len(word)) if fonts.width(word[:n], size) <= width), default=1)
            dot = word.rfind(".", 1, fits) + 1
            cut = _outside_numbers(word, dot if dot > fits // 2 else fits)
            rows.append(word[:cut])
            word = word[cut:]
        rows.append(word)
    return rows


def _outside_numbers(word: str, cut: int) -> int:
    """The place nearest before `cut` that is not inside a number; behind the number where the word begins with it."""
    for number in NUMBER.finditer(word):
        if number.start() < cut < number.end():
            return number.start() or number.end()
    return cut


def first_fitting(texts: Sequence[str], width: float, size: float = BODY) -> str:
    """The first of several wordings that is no wider than `width` points; the last one shortened where none is.

    >>> first_fitting(["the same 36,864 weights", "36,864 weights"], 60)
    '36,864 weights'
    """
    return next((t for t in texts if fonts.width(t, size) <= width), shortened(texts[-1], width, size))


def shortened(text: str, width: float, size: float = BODY) -> str:
    """The text with letters left out where it is wider than `width` points; every number in it stays whole.

    Letters go from the middle of the longest stretch between two numbers, one at a time. Text whose numbers alone
    are wider than `width` stays wider: a number with digits left out would be another number.

    >>> shortened("blocks.11.mlp.fc1", 400), len(shortened("blocks.11.mlp.fc1", 30)) < 12
    ('blocks.11.mlp.fc1', True)
    >>> shortened("the same 36,864 weights", 80)
    'the…e 36,864 we…hts'
    """
    stretches = NUMBER.split(fonts.shown(text))  # words and numbers in turn
    kept = [len(words) for words in stretches[::2]]
    while True:
        shown = list(stretches)
        shown[::2] = [_without_middle(w, n) for w, n in zip(stretches[::2], kept, strict=True)]
        most = max(kept)
        if most == 0 or fonts.width("".join(shown), size) <= width:
            return "".join(shown)
        kept[kept.index(most)] -= 1


def _without_middle(words: str, kept: int) -> str:
    if kept == len(words):
        return words
    return words[: kept - kept // 2] + "…" + words[len(words) - kept // 2 :]

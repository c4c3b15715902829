"""What one answer of the any-size network sees: window, stride and receptive field on an image, in its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any

from onebyone.drawing import phrases
from onebyone.drawing.data import Drawing
from onebyone.drawing.embedded_image import Photo, photo
from onebyone.drawing.scene import (
    LEADING,
    LINE,
    SMALL,
    THICK,
    THIN,
    Circle,
    Group,
    Polygon,
    RasterImage,
    Scene,
    Shape,
    Strokes,
    Text,
    arrow,
    line,
    lines,
    wrapped,
)
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

MARGIN = 6.0
TALLEST, ALONE = 230.0, 96.0  # points; an image that is the window has less to show
BAND = 26.0  # points for the height of a signal, which has none of its own
OUTSIDE = 1.0  # of the image's size, how far around it a receptive field is drawn
NEAR = 0.12  # the same where it reaches further, and arrows stand for it
MOST_DOTS = 900
DASHES = (3.0, 3.0)  # of the receptive field: where it is the window, both show
Span = tuple[float, float]


def figure(data: Drawing, width: float, image: Any = None) -> Scene:
    """The image with the window of one place, its neighbour one stride on, and the receptive field."""
    picture = None if image is None else photo(image)
    if data.geometry is None:
        return _whole(data, width, picture)
    if picture is not None and len(data.geometry.window) != 2:
        raise BadInput(
            f"image: the network slides over {len(data.geometry.window)} axes, and an image has two"
        )
    view = _View(data.geometry, width, picture)
    shapes, bottom = view.shapes()
    rows, drawn = view.legend(bottom + 9)
    notes = wrapped(_note(data.geometry, view), width - 2 * MARGIN, SMALL)
    y = bottom + 9 + rows + 3
    shapes += [*drawn, *lines(MARGIN, y, notes, SMALL, "quiet")]
    height = y + (len(notes) - 1) * SMALL * LEADING + 5
    title = f"{data.network}: the window and receptive field of one answer"
    return Scene("window", width, height, title, _desc(data.geometry, view), tuple(shapes))


@dataclass(frozen=True)
class _Scale:
    """From pixels to points, on both axes alike."""

    left: float
    top: float
    x0: float
    y0: float
    unit: float

    def corners(self, rows: Span, columns: Span) -> tuple[tuple[float, float], ...]:
        x1, x2 = (self.left + (c - self.x0) * self.unit for c in columns)
        y1, y2 = (self.top + (r - self.y0) * self.unit for r in rows)
        return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


class _View:
    """Which image, which place of it, and the scale."""

    def __init__(
        self, geometry: Geometry, width: float, picture: Photo | None, tallest: float = TALLEST
    ) -> None:
        self.g, self.width, self.picture = geometry, width, picture
        self.flat = len(geometry.window) == 1
        self.size = picture.size if picture is not None else _size_for(geometry)
        self.places = geometry.positions(self.size)
        self.index = tuple((n - 1) // 2 for n in self.places)
        self.window = self._two(geometry.window_at(self.index))
        self.field = self._two(geometry.receptive_field_at(self.index))
        self.image = self._two(tuple((0, n) for n in self.size))
        self.hull = tuple(_around(i, f) for i, f in zip(self.image, self.field, strict=True))
        room = width - 2 * MARGIN
        (y0, y1), (x0, x1) = self.hull
        unit = min(room / (x1 - x0), BAND * 3 if self.flat else tallest / (y1 - y0))
        self.scale = _Scale(MARGIN + (room - unit * (x1 - x0)) / 2, MARGIN + 12, x0, y0, unit)

    def _two(self, spans: Sequence[Span]) -> tuple[Span, Span]:
        """The last two axes; a signal gets a height."""
        if self.flat:
            high = BAND * max(self.size) / (self.width - 2 * MARGIN)
            return (0.0, high), spans[0]
        return spans[-2], spans[-1]

    def clipped(self) -> bool:
        """Whether the receptive field reaches out of the picture."""
        return any(f[0] < h[0] or f[1] > h[1] for f, h in zip(self.field, self.hull, strict=True))

    def shapes(self) -> tuple[list[Shape], float]:
        unit = self.scale.unit
        kind = "signal" if self.flat else "image"
        label = f"{kind} {phrases.shape(self.size)}, {phrases.shape(self.places)} answers"
        made: list[Shape] = [Text(MARGIN, MARGIN + 6, label, SMALL, "ink")]
        made += self._ground()
        made.append(self._dots())
        made += self._windows()
        made.append(self._field())
        rows, _ = self.hull
        return made, self.scale.top + (rows[1] - rows[0]) * unit

    def _ground(self) -> list[Shape]:
        corners = self.scale.corners(*self.image)
        (x1, y1), _, (x2, y2), _ = corners
        if self.picture is not None:
            inside: Shape = RasterImage(x1, y1, x2 - x1, y2 - y1, self.picture.png)
            return [inside, Polygon(corners, None, "line", THIN)]
        step = self.g.stride[-1]
        xs = range(0, int(self.image[1][1]) + 1, step)
        ys = () if self.flat else range(0, int(self.image[0][1]) + 1, self.g.stride[-2])
        if max(len(xs), len(ys)) > 80:
            xs, ys = range(0), ()
        grid = [
            *(((self._x(c), y1), (self._x(c), y2)) for c in xs),
            *(((x1, self._y(r)), (x2, self._y(r))) for r in ys),
        ]
        made: list[Shape] = [Polygon(corners, "panel", None)]
        if grid:
            made.append(Strokes(tuple(grid), "grid", THIN))
        return [*made, Polygon(corners, None, "line", LINE)]

    def _x(self, column: float) -> float:
        return self.scale.left + (column - self.scale.x0) * self.scale.unit

    def _y(self, row: float) -> float:
        return self.scale.top + (row - self.scale.y0) * self.scale.unit

    def _middle(self, index: Sequence[int]) -> tuple[float, float]:
        (r1, r2), (c1, c2) = self._two(self.g.window_at(index))
        return self._x((c1 + c2) / 2), self._y((r1 + r2) / 2)

    def thinned(self) -> int:
        """Every how many answers, on each axis, a dot is drawn."""
        return ceil(sqrt(prod(self.places[-2:]) / MOST_DOTS))

    def _dots(self) -> Group:
        """A dot in the middle of every window: the places of the answer."""
        rows, columns = (1, self.places[0]) if self.flat else self.places[-2:]
        head = self.index[: len(self.index) - 2]
        step = self.thinned()
        indices = [
            (i,) if self.flat else (*head, r, i)
            for r in range(0, rows, step)
            for i in range(0, columns, step)
        ]
        r = min(1.2, max(0.5, 0.18 * self.g.stride[-1] * self.scale.unit))
        dots = tuple(Circle(*self._middle(i), r, "line") for i in indices)
        return Group(
            "answers", f"{phrases.shape(self.places)} answers, each in the middle of its window", dots
        )

    def _field(self) -> Group:
        """The receptive field; where it reaches far out of the picture, an arrow to each side that it does."""
        title = f"receptive field {phrases.shape(self.g.receptive_field)} pixels"
        if not self.clipped():
            corners = _closed(self.scale.corners(*self.field))
            dashed = Strokes((corners,), "field", THICK, dashes=DASHES)
            below = (
                () if self.field == self.window else self._casing(corners)
            )  # or it would cover the window's edge
            return Group("field", title, (*below, dashed))
        x, y = self._middle(self.index)
        (x1, y1), _, (x2, y2), _ = self.scale.corners(*self.hull)
        ends = {(x1, y): self._beyond(1, 0), (x2, y): self._beyond(1, 1), (x, y1): self._beyond(0, 0)}
        ends[(x, y2)] = self._beyond(0, 1)
        arrows = [part for end, beyond in ends.items() if beyond for part in arrow((x, y), end, "field", 5.0)]
        return Group("field", title, tuple(arrows))

    def _beyond(self, axis: int, end: int) -> bool:
        field, hull = self.field[axis][end], self.hull[axis][end]
        return field < hull if end == 0 else field > hull

    def _windows(self) -> list[Shape]:
        after = (*self.index[:-1], min(self.index[-1] + 1, self.places[-1] - 1))
        spans = self._two(self.g.window_at(after))
        nearby = Strokes((_closed(self.scale.corners(*spans)),), "window", LINE, dashes=(1.6, 1.6))
        corners = self.scale.corners(*self.window)
        wash = Polygon(corners, "wash", None, opacity=0.13)
        edge = Polygon(corners, None, "window", THICK)
        inside: tuple[Shape, ...] = (wash, *self._casing(_closed(corners)), edge)
        made: list[Shape] = [Group("window", f"window {phrases.shape(self.g.window)} pixels", inside)]
        if after != self.index:
            made.insert(0, Group("next-window", f"the next window, {self.g.stride[-1]} pixels on", (nearby,)))
        return [*made, Circle(*self._middle(self.index), 1.9, "window")]

    def _casing(self, corners: tuple[tuple[float, float], ...]) -> tuple[Strokes, ...]:
        """On a photograph, paper on both sides of a line, so that it shows on every ground."""
        return (Strokes((corners,), "paper", THICK + 1.2, 0.6),) if self.picture is not None else ()

    def legend(self, y: float) -> tuple[float, list[Shape]]:
        """A line each: what is drawn how, with its numbers."""
        (r1, r2), (c1, c2) = self.window
        where = f"from {c1} to {c2}" if self.flat else f"rows {r1} to {r2}, columns {c1} to {c2}"
        stride, window, seen = (
            phrases.shape(v) for v in (self.g.stride, self.g.window, self.g.receptive_field)
        )
        rows: list[tuple[str, float, tuple[float, ...], str]] = [
            ("window", THICK, (), f"window {window}: {where}"),
            ("window", LINE, (1.6, 1.6), f"next window: stride {stride}"),
            (
                "field",
                THICK,
                (4.0, 2.4),
                f"receptive field {seen}, offset {phrases.shape(self.g.receptive_field_offset)}",
            ),
        ]
        made: list[Shape] = []
        for i, (colour, wide, dashes, text) in enumerate(rows):
            at = y + i * SMALL * 1.4
            made.append(
                Strokes((((MARGIN, at - 2.3), (MARGIN + 14, at - 2.3)),), colour, wide, dashes=dashes)
            )
            made += _legend_text(text, at, self.width)
        return len(rows) * SMALL * 1.4, made


def _legend_text(text: str, y: float, width: float) -> list[Shape]:
    rows = wrapped(text, width - 2 * MARGIN - 18, SMALL)
    return [*lines(MARGIN + 18, y, rows[:1], SMALL, "ink")]


def _closed(corners: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return (*corners, corners[0])


def _size_for(g: Geometry) -> tuple[int, ...]:
    """An image of some windows, where none is given."""
    return tuple(w + s * max(2, ceil(0.4 * w / s)) for w, s in zip(g.window, g.stride, strict=True))


def _around(image: Span, field: Span) -> Span:
    """What is drawn: the image, and the receptive field as far as it stays near."""
    size = image[1] - image[0]
    if max(image[0] - field[0], field[1] - image[1]) > OUTSIDE * size:
        return image[0] - NEAR * size, image[1] + NEAR * size
    return min(image[0], field[0]), max(image[1], field[1])


def _note(g: Geometry, view: _View) -> str:
    parts = []
    if view.thinned() > 1:
        parts.append(f"One answer in {view.thinned()} on each axis has a dot.")
    if view.clipped():
        parts.append("The receptive field reaches out of the picture, as the arrows show.")
    if len(g.window) > 2:
        parts.append("The last two axes are drawn.")
    if g.exact:
        parts.append("Every answer is the very number that cropping its window gives.")
    else:
        more = len(g.inexact_because) - 1
        others = f"; and {phrases.many(more, 'more operator')}" if more else ""
        parts.append(f"Not equal to cropping every window: {g.inexact_because[0]}{others}.")
    return " ".join(parts)


def _desc(g: Geometry, view: _View) -> str:
    return (
        f"An image of {phrases.shape(view.size)} pixels has {phrases.shape(view.places)} answers. The answer at place "
        f"{phrases.shape(view.index)} stands for the window of {phrases.shape(g.window)} pixels that begins at "
        f"{', '.join(str(a) for a, _ in g.window_at(view.index))}, and sees {phrases.shape(g.receptive_field)} pixels "
        f"from {', '.join(str(a) for a, _ in g.receptive_field_at(view.index))}. The next answer lies "
        f"{phrases.shape(g.stride)} pixels on. {_note(g, view)}"
    )


def _whole(data: Drawing, width: float, picture: Photo | None) -> Scene:
    """A network of one size: the whole image is the window, and the reasons are written below."""
    size = tuple(data.input[1:])
    view = _View(Geometry(size, size, (0,) * len(size), size, (0,) * len(size), True), width, None, ALONE)
    corners = view.scale.corners(*view.image)
    (x1, y1), _, (x2, y2), _ = corners
    made: list[Shape] = [Text(MARGIN, MARGIN + 6, f"input {phrases.shape(size)}: one window", SMALL, "ink")]
    if picture is not None:
        made.append(RasterImage(x1, y1, x2 - x1, y2 - y1, picture.png))
    made.append(Polygon(corners, None if picture else "panel", "window", THICK))
    reasons = "It takes no other size. " + " ".join(r.rstrip(".") + "." for r in data.refused)
    notes = wrapped(reasons, width - 2 * MARGIN, SMALL)
    made.append(line((MARGIN, y2 + 8), (width - MARGIN, y2 + 8), stroke="rule", line=THIN))
    made += lines(MARGIN, y2 + 18, notes, SMALL, "quiet")
    height = y2 + 18 + (len(notes) - 1) * SMALL * LEADING + 5
    title = f"{data.network}: it sees the whole image at once"
    desc = f"The window is the whole image of {phrases.shape(size)} pixels. {reasons}"
    return Scene("window", width, height, title, desc, tuple(made))

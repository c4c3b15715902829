"""What one prediction of the any-size network sees: its window, stride and receptive field on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any

from onebyone.drawing import number_format as fmt
from onebyone.drawing.data import Drawing
from onebyone.drawing.embedded_image import EmbeddedImage, embedded_image
from onebyone.drawing.scene import (
    LEADING,
    LINE,
    SMALL,
    THICK,
    THIN,
    Circle,
    Polygon,
    RasterImage,
    Scene,
    Shape,
    ShapeGroup,
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
MAX_HEIGHT, SINGLE_WINDOW_HEIGHT = 230.0, 96.0  # points, of the image
BAND = 26.0  # points for the height of a one-dimensional signal
MAX_OUTSIDE = 1.0  # how far outside the image a receptive field is drawn, relative to the image size
NEAR = 0.12  # the margin if it extends further, which arrows then indicate
MAX_DOTS = 900
DASHES = (3.0, 3.0)  # of the receptive field, so that a window of the same size shows through
Span = tuple[float, float]


def figure(data: Drawing, width: float, image: Any = None) -> Scene:
    """The image with the window of one position, the next window, and the receptive field."""
    picture = None if image is None else embedded_image(image)
    if data.geometry is None:
        return _single_window(data, width, picture)
    if picture is not None and len(data.geometry.window) != 2:
        raise BadInput(
            f"image: the network's windows have {len(data.geometry.window)} axes; an image has two"
        )
    view = _View(data.geometry, width, picture)
    shapes, bottom = view.shapes()
    rows, drawn = view.legend(bottom + 9)
    notes = wrapped(_note(data.geometry, view), width - 2 * MARGIN, SMALL)
    y = bottom + 9 + rows + 3
    shapes += [*drawn, *lines(MARGIN, y, notes, SMALL, "quiet")]
    height = y + (len(notes) - 1) * SMALL * LEADING + 5
    title = f"{data.network}: the window and receptive field of one prediction"
    return Scene("window", width, height, title, _desc(data.geometry, view), tuple(shapes))


@dataclass(frozen=True)
class _Scale:
    """Maps pixels to points, with the same scale on both axes."""

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
    """The image, the position whose window is drawn, and the scale."""

    def __init__(
        self, geometry: Geometry, width: float, picture: EmbeddedImage | None, tallest: float = MAX_HEIGHT
    ) -> None:
        self.g, self.width, self.picture = geometry, width, picture
        self.flat = len(geometry.window) == 1
        self.size = picture.size if picture is not None else _size_for(geometry)
        self.positions = geometry.positions(self.size)
        self.index = tuple((n - 1) // 2 for n in self.positions)
        self.window = self._two(geometry.window_at(self.index))
        self.field = self._two(geometry.receptive_field_at(self.index))
        self.image = self._two(tuple((0, n) for n in self.size))
        self.hull = tuple(_around(i, f) for i, f in zip(self.image, self.field, strict=True))
        room = width - 2 * MARGIN
        (y0, y1), (x0, x1) = self.hull
        unit = min(room / (x1 - x0), BAND * 3 if self.flat else tallest / (y1 - y0))
        self.scale = _Scale(MARGIN + (room - unit * (x1 - x0)) / 2, MARGIN + 12, x0, y0, unit)

    def _two(self, spans: Sequence[Span]) -> tuple[Span, Span]:
        """The last two axes; a one-dimensional signal gets a height."""
        if self.flat:
            high = BAND * max(self.size) / (self.width - 2 * MARGIN)
            return (0.0, high), spans[0]
        return spans[-2], spans[-1]

    def clipped(self) -> bool:
        """Whether the receptive field extends beyond the figure."""
        return any(f[0] < h[0] or f[1] > h[1] for f, h in zip(self.field, self.hull, strict=True))

    def shapes(self) -> tuple[list[Shape], float]:
        unit = self.scale.unit
        kind = "signal" if self.flat else "image"
        label = f"{kind} {fmt.shape(self.size)}, {fmt.shape(self.positions)} predictions"
        shapes: list[Shape] = [Text(MARGIN, MARGIN + 6, label, SMALL, "ink")]
        shapes += self._ground()
        shapes.append(self._dots())
        shapes += self._windows()
        shapes.append(self._field())
        rows, _ = self.hull
        return shapes, self.scale.top + (rows[1] - rows[0]) * unit

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
        shapes: list[Shape] = [Polygon(corners, "panel", None)]
        if grid:
            shapes.append(Strokes(tuple(grid), "grid", THIN))
        return [*shapes, Polygon(corners, None, "line", LINE)]

    def _x(self, column: float) -> float:
        return self.scale.left + (column - self.scale.x0) * self.scale.unit

    def _y(self, row: float) -> float:
        return self.scale.top + (row - self.scale.y0) * self.scale.unit

    def _middle(self, index: Sequence[int]) -> tuple[float, float]:
        (r1, r2), (c1, c2) = self._two(self.g.window_at(index))
        return self._x((c1 + c2) / 2), self._y((r1 + r2) / 2)

    def thinned(self) -> int:
        """Only every n-th prediction per axis has a dot; this is n."""
        return ceil(sqrt(prod(self.positions[-2:]) / MAX_DOTS))

    def _dots(self) -> ShapeGroup:
        """A dot in the middle of every window, one per prediction."""
        rows, columns = (1, self.positions[0]) if self.flat else self.positions[-2:]
        head = self.index[: len(self.index) - 2]
        step = self.thinned()
        indices = [
            (i,) if self.flat else (*head, r, i)
            for r in range(0, rows, step)
            for i in range(0, columns, step)
        ]
        r = min(1.2, max(0.5, 0.18 * self.g.stride[-1] * self.scale.unit))
        dots = tuple(Circle(*self._middle(i), r, "line") for i in indices)
        return ShapeGroup(
            "predictions",
            f"{fmt.shape(self.positions)} predictions, each in the middle of its window",
            dots,
        )

    def _field(self) -> ShapeGroup:
        """The receptive field, or arrows to the sides where it extends far beyond the figure."""
        title = f"receptive field {fmt.shape(self.g.receptive_field)} pixels"
        if not self.clipped():
            corners = _closed(self.scale.corners(*self.field))
            dashed = Strokes((corners,), "field", THICK, dashes=DASHES)
            below = (
                () if self.field == self.window else self._casing(corners)
            )  # a casing would cover the edge of the window
            return ShapeGroup("field", title, (*below, dashed))
        x, y = self._middle(self.index)
        (x1, y1), _, (x2, y2), _ = self.scale.corners(*self.hull)
        ends = {(x1, y): self._beyond(1, 0), (x2, y): self._beyond(1, 1), (x, y1): self._beyond(0, 0)}
        ends[(x, y2)] = self._beyond(0, 1)
        arrows = [part for end, beyond in ends.items() if beyond for part in arrow((x, y), end, "field", 5.0)]
        return ShapeGroup("field", title, tuple(arrows))

    def _beyond(self, axis: int, end: int) -> bool:
        field, hull = self.field[axis][end], self.hull[axis][end]
        return field < hull if end == 0 else field > hull

    def _windows(self) -> list[Shape]:
        after = (*self.index[:-1], min(self.index[-1] + 1, self.positions[-1] - 1))
        spans = self._two(self.g.window_at(after))
        nearby = Strokes((_closed(self.scale.corners(*spans)),), "window", LINE, dashes=(1.6, 1.6))
        corners = self.scale.corners(*self.window)
        wash = Polygon(corners, "wash", None, opacity=0.13)
        edge = Polygon(corners, None, "window", THICK)
        inside: tuple[Shape, ...] = (wash, *self._casing(_closed(corners)), edge)
        shapes: list[Shape] = [ShapeGroup("window", f"window {fmt.shape(self.g.window)} pixels", inside)]
        if after != self.index:
            shapes.insert(
                0,
                ShapeGroup("next-window", f"the next window, {self.g.stride[-1]} pixels further", (nearby,)),
            )
        return [*shapes, Circle(*self._middle(self.index), 1.9, "window")]

    def _casing(self, corners: tuple[tuple[float, float], ...]) -> tuple[Strokes, ...]:
        """On a photograph, a wider line of the background colour below a line, which makes it visible everywhere."""
        return (Strokes((corners,), "paper", THICK + 1.2, 0.6),) if self.picture is not None else ()

    def legend(self, y: float) -> tuple[float, list[Shape]]:
        """One line for each drawn item, with its numbers."""
        (r1, r2), (c1, c2) = self.window
        where = f"from {c1} to {c2}" if self.flat else f"rows {r1} to {r2}, columns {c1} to {c2}"
        stride, window, seen = (fmt.shape(v) for v in (self.g.stride, self.g.window, self.g.receptive_field))
        rows: list[tuple[str, float, tuple[float, ...], str]] = [
            ("window", THICK, (), f"window {window}: {where}"),
            ("window", LINE, (1.6, 1.6), f"next window: stride {stride}"),
            (
                "field",
                THICK,
                (4.0, 2.4),
                f"receptive field {seen}, offset {fmt.shape(self.g.receptive_field_offset)}",
            ),
        ]
        shapes: list[Shape] = []
        for i, (colour, wide, dashes, text) in enumerate(rows):
            at = y + i * SMALL * 1.4
            shapes.append(
                Strokes((((MARGIN, at - 2.3), (MARGIN + 14, at - 2.3)),), colour, wide, dashes=dashes)
            )
            shapes += _legend_text(text, at, self.width)
        return len(rows) * SMALL * 1.4, shapes


def _legend_text(text: str, y: float, width: float) -> list[Shape]:
    rows = wrapped(text, width - 2 * MARGIN - 18, SMALL)
    return [*lines(MARGIN + 18, y, rows[:1], SMALL, "ink")]


def _closed(corners: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return (*corners, corners[0])


def _size_for(g: Geometry) -> tuple[int, ...]:
    """The size of an image with several windows, used if no image is given."""
    return tuple(w + s * max(2, ceil(0.4 * w / s)) for w, s in zip(g.window, g.stride, strict=True))


def _around(image: Span, field: Span) -> Span:
    """The extent of the drawing: the image, and the receptive field unless it extends too far."""
    size = image[1] - image[0]
    if max(image[0] - field[0], field[1] - image[1]) > MAX_OUTSIDE * size:
        return image[0] - NEAR * size, image[1] + NEAR * size
    return min(image[0], field[0]), max(image[1], field[1])


def _note(g: Geometry, view: _View) -> str:
    parts = []
    if view.thinned() > 1:
        parts.append(f"Every {view.thinned()}th prediction on each axis has a dot.")
    if view.clipped():
        parts.append("The receptive field extends beyond the figure, as the arrows show.")
    if len(g.window) > 2:
        parts.append("The last two axes are drawn.")
    if g.exact:
        parts.append("Every prediction equals that of its cropped window.")
    else:
        more = len(g.inexact_because) - 1
        others = f"; and {fmt.counted(more, 'more operator')}" if more else ""
        parts.append(f"Predictions differ from those of cropped windows: {g.inexact_because[0]}{others}.")
    return " ".join(parts)


def _desc(g: Geometry, view: _View) -> str:
    return (
        f"An image of {fmt.shape(view.size)} pixels has {fmt.shape(view.positions)} predictions. The one at position "
        f"{fmt.shape(view.index)} belongs to the window of {fmt.shape(g.window)} pixels that begins at "
        f"{', '.join(str(a) for a, _ in g.window_at(view.index))}, and sees {fmt.shape(g.receptive_field)} pixels "
        f"from {', '.join(str(a) for a, _ in g.receptive_field_at(view.index))}. The next window begins "
        f"{fmt.shape(g.stride)} pixels further. {_note(g, view)}"
    )


def _single_window(data: Drawing, width: float, picture: EmbeddedImage | None) -> Scene:
    """A network that accepts one size only: the whole image is the window, with the reasons below."""
    size = tuple(data.input[1:])
    view = _View(
        Geometry(size, size, (0,) * len(size), size, (0,) * len(size), True),
        width,
        None,
        SINGLE_WINDOW_HEIGHT,
    )
    corners = view.scale.corners(*view.image)
    (x1, y1), _, (x2, y2), _ = corners
    shapes: list[Shape] = [Text(MARGIN, MARGIN + 6, f"input {fmt.shape(size)}: one window", SMALL, "ink")]
    if picture is not None:
        shapes.append(RasterImage(x1, y1, x2 - x1, y2 - y1, picture.png))
    shapes.append(Polygon(corners, None if picture else "panel", "window", THICK))
    reasons = "The network accepts no other size. " + " ".join(r.rstrip(".") + "." for r in data.refused)
    notes = wrapped(reasons, width - 2 * MARGIN, SMALL)
    shapes.append(line((MARGIN, y2 + 8), (width - MARGIN, y2 + 8), stroke="rule", line=THIN))
    shapes += lines(MARGIN, y2 + 18, notes, SMALL, "quiet")
    height = y2 + 18 + (len(notes) - 1) * SMALL * LEADING + 5
    title = f"{data.network}: the window is the whole image"
    desc = f"The window is the whole image of {fmt.shape(size)} pixels. {reasons}"
    return Scene("window", width, height, title, desc, tuple(shapes))

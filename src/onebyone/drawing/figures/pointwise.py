"""F1: a pointwise convolution with its filters; lengths along channels are to scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from onebyone.drawing import fonts
from onebyone.drawing import number_format as fmt
from onebyone.drawing.data import Drawing, PointwiseLayer
from onebyone.drawing.scene import (
    BODY,
    LEADING,
    RISE,
    SLANT,
    SMALL,
    THICK,
    THIN,
    Point,
    Polygon,
    Scene,
    Shape,
    ShapeGroup,
    Strokes,
    Text,
    arrow,
    box,
    first_fitting,
    line,
    lines,
    moved,
    shortened,
    wrapped,
)
from onebyone.errors import BadInput

MARGIN, GAP, MARK = 6.0, 17.0, 0.6
FACE = 52.0  # points for the side of the larger map
BAR = 4.6  # side of a filter, and of a map of one position
STEP = 9.4  # from filter to filter
CELL = 6.0


def choose(data: Drawing, path: str | None = None) -> PointwiseLayer:
    """The layer to draw: the one at `path`, else the ungrouped one on several positions with the most MACs.

    Pointwise convolutions of the network are preferred to converted layers.

    Raises
    ------
    BadInput
        if the network has no such layer.
    """
    if path is not None:
        layer = next((p for p in data.pointwise if p.path == path), None)
        if layer is None:
            have = ", ".join(p.path for p in data.pointwise[:5]) or "none"
            raise BadInput(
                f"layer={path!r}: not a 1×1 convolution or fully connected layer; the run called {have}"
            )
        return layer
    larger = {r.path for r in data.replaced if set(r.kernel[2:]) - {1}}  # layers that become k×k convolutions
    return max(
        data.pointwise,
        key=lambda p: (not p.twin, p.groups == 1, p.path not in larger, prod(p.size) > 1, _macs(p)),
    )


def _macs(layer: PointwiseLayer) -> int:
    return prod(layer.size) * layer.outputs * layer.per_filter


def figure(data: Drawing, width: float, layer: str | None = None) -> Scene:
    """The input map, the filters and the output map, with all lengths along channels to the same scale."""
    chosen = choose(data, layer)
    parts, bottom = _Layout(chosen, width).shapes()
    notes = wrapped(_note(chosen), width - 2 * MARGIN, SMALL)
    cells, bottom = _cells(chosen, width, bottom + 9)
    shapes = (*parts, *cells, *lines(MARGIN, bottom + 10, notes, SMALL, "quiet"))
    height = bottom + 10 + (len(notes) - 1) * SMALL * LEADING + 5
    return Scene("F1", width, height, _title(chosen), _desc(chosen), shapes)


def _title(p: PointwiseLayer) -> str:
    return f"{p.path or p.kind}: a pointwise (1×1) convolution with {fmt.counted(p.outputs, 'filter')}"


def _desc(p: PointwiseLayer) -> str:
    grouped = f" of its group ({p.groups} groups)" if p.groups > 1 else ""
    twin = f" It was converted from the fully connected layer {p.path}." if p.twin else ""
    positions = "tokens" if _are_tokens(p) else "positions"
    return (
        f"An input of {fmt.count(p.inputs)} channels on {fmt.shape(p.map[1:])} {positions} is convolved with "
        f"{fmt.counted(p.outputs, 'filter')} of 1×1×{p.per_filter}, {len(p.drawn)} of them drawn. Each filter gives "
        f"one channel of the output, {fmt.count(p.outputs)} channels on {fmt.shape(p.size)} {positions}: at each "
        f"position a weighted sum of the {fmt.count(p.per_filter)} input channels{grouped} there. "
        f"{fmt.count(p.parameters)} parameters.{twin} Lengths along channels are to scale."
    )


def _note(p: PointwiseLayer) -> str:
    twin = "Converted from a fully connected layer. " if p.twin else ""
    tokens = "Tokens are drawn as positions. " if _are_tokens(p) else ""
    stride = "" if set(p.stride) <= {1} else f"Stride {fmt.shape(p.stride)}. "
    groups = "" if p.groups == 1 else f"{p.groups} groups: each filter reads {p.per_filter} channels. "
    marked = "; the marked position is enlarged" if prod(p.size) > 1 else ""
    return (
        f"{twin}{stride}{groups}{tokens}Lengths along channels are to scale{marked}. The marked output channels "
        f"are those of the drawn filters. {fmt.count(p.parameters)} parameters."
    )


@dataclass(frozen=True)
class _Part:
    """Input, filters or output: the number of channels, height and depth of its face, and the text below."""

    name: str
    channels: int
    face: tuple[float, float]
    rows: tuple[str, str]

    def slant(self) -> float:
        return self.face[1] * SLANT

    def tall(self) -> float:
        return self.face[0] + self.face[1] * RISE

    def wide(self, unit: float) -> float:
        texts = max(fonts.width(self.rows[0], BODY), fonts.width(self.rows[1], SMALL))
        return max(self.channels * unit + self.slant(), texts)


class _Layout:
    """The positions of all parts, which follow from the scale along channels."""

    def __init__(self, layer: PointwiseLayer, width: float) -> None:
        self.layer, self.width = layer, width
        largest = max(*layer.map[1:], *layer.size, 1)
        face, face_out = (_face(size, largest) for size in (layer.map[1:], layer.size))
        unit = "tokens" if _are_tokens(layer) else "map"
        size_in, size_out = (fmt.shape(s) for s in (layer.map[1:], layer.size))
        self.parts = (
            _Part("input", layer.inputs, face, (f"input {unit}", f"{layer.inputs}×{size_in}")),
            _Part(
                "filters",
                layer.per_filter,
                (BAR, BAR),
                (fmt.counted(layer.outputs, "filter"), f"1×1×{layer.per_filter}, {_drawn(layer)}"),
            ),
            _Part("output", layer.outputs, face_out, (f"output {unit}", f"{layer.outputs}×{size_out}")),
        )
        self.unit = self._unit()
        self.filters_high = (len(layer.drawn) - 1) * STEP + BAR + (STEP if self._thinned() else 0)
        self.high = max(self.filters_high, *(p.tall() for p in self.parts))

    def _thinned(self) -> bool:
        return len(self.layer.drawn) < self.layer.outputs

    def _unit(self) -> float:
        """The largest scale, in points per channel, at which the parts fit side by side."""
        room = self.width - 2 * MARGIN - 2 * GAP
        low, high = 0.0, room / max(p.channels for p in self.parts)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(p.wide(middle) for p in self.parts) <= room else (low, middle)
        return low

    def shapes(self) -> tuple[list[Shape], float]:
        """The shapes, and the lowest point that they reach."""
        used = sum(p.wide(self.unit) for p in self.parts) + 2 * GAP
        x = (self.width - used) / 2
        shapes: list[Shape] = [*lines(MARGIN, MARGIN + 6.5, [self._head()], BODY)]
        top = MARGIN + 16
        middle = top + self.high / 2
        ends: list[tuple[float, float]] = []
        for part in self.parts:
            wide = part.wide(self.unit)
            length = part.channels * self.unit
            left = x + (wide - length - part.slant()) / 2
            drawn = (
                self._filters(left, middle) if part.name == "filters" else self._volume(part, left, middle)
            )
            shapes.append(drawn)
            centre = x + wide / 2
            below = top + self.high + 10
            shapes.append(Text(centre, below, part.rows[0], BODY, "ink", "middle"))
            shapes.append(Text(centre, below + BODY * LEADING, part.rows[1], SMALL, "quiet", "middle"))
            ends.append((x, x + wide))
            x += wide + GAP
        for before, after in pairwise(ends):
            shapes += arrow((before[1] + 3, middle), (after[0] - 3, middle))
        return shapes, top + self.high + 10 + BODY * LEADING

    def _head(self) -> str:
        kind = "as a 1×1 convolution" if self.layer.twin else "1×1 convolution"
        text = f"{self.layer.path or '(top level)'}, {kind}"
        return shortened(text, self.width - 2 * MARGIN)

    def _volume(self, part: _Part, left: float, middle: float) -> ShapeGroup:
        """A map: channels to the right, rows down, columns as depth; the marked position extends over all channels."""
        colour = "map" if part.name == "input" else "out"
        length = part.channels * self.unit
        high, depth = part.face
        front = middle - part.tall() / 2 + depth * RISE
        shapes: list[Shape] = [*box(left, front, length, high, depth, colour)]
        if part.name == "output":
            shapes.append(self._slices(left, front, part.face))
        if high > BAR:
            mark = box(left, front + high * 0.45, length, BAR, 0, "filter" if colour == "map" else "out")[0]
            shapes.append(replace(mark, stroke="mark", line=MARK))
        title = f"{part.name}: {fmt.count(part.channels)} channels"
        return ShapeGroup(part.name, title, tuple(shapes))

    def _slices(self, left: float, front: float, face: tuple[float, float]) -> Strokes:
        """The output channels of the drawn filters."""
        xs = [left + (k + 0.5) * self.unit for k in self.layer.drawn]
        dx, dy = face[1] * SLANT, -face[1] * RISE
        paths: tuple[tuple[Point, ...], ...] = tuple(
            ((x, front + face[0]), (x, front), (x + dx, front + dy)) for x in xs
        )
        return Strokes(paths, "filter.edge", min(THICK, max(THIN, 0.35 * self.unit)))

    def _filters(self, left: float, middle: float) -> ShapeGroup:
        """The drawn filters below each other, each a bar of one position over all its channels."""
        length = self.layer.per_filter * self.unit
        y = middle - self.filters_high / 2
        shapes: list[Shape] = []
        for number, k in enumerate(self.layer.drawn):
            if number == len(self.layer.drawn) - 1 and self._thinned():
                shapes.append(_dots(left + length / 2, y + STEP / 2 - (STEP - BAR) / 2))
                y += STEP
            bar = box(left, y, length, BAR, BAR, "filter")
            shapes.append(ShapeGroup(f"filter-{k}", f"filter {k + 1}: 1×1×{self.layer.per_filter}", bar))
            y += STEP
        return ShapeGroup(
            "filters",
            f"{fmt.counted(self.layer.outputs, 'filter')}, {_drawn(self.layer)}",
            tuple(shapes),
        )


def _face(size: tuple[int, ...], largest: int) -> tuple[float, float]:
    """Height and depth of a map's face, by its last two sizes; at least those of a filter."""
    rows, columns = (*size, 1)[:2] if len(size) < 2 else size[-2:]
    if largest == 1:
        return BAR, BAR
    return max(BAR, FACE * rows / largest), max(BAR, FACE * columns / largest)


def _are_tokens(p: PointwiseLayer) -> bool:
    """Whether its positions are a sequence of tokens, and not a map that is stored channels-last."""
    return p.tokens and (len(p.map) < 3 or p.map[2] == 1)


def _drawn(p: PointwiseLayer) -> str:
    return f"{len(p.drawn)} drawn" if len(p.drawn) < p.outputs else "all drawn"


def _dots(x: float, y: float) -> ShapeGroup:
    dots = tuple(moved(Text(0, 0, "⋮", SMALL, "quiet", "middle"), x, y + 2) for _ in range(1))
    return ShapeGroup("filters-left-out", "filters that are not drawn", dots)


def _cells(p: PointwiseLayer, width: float, top: float) -> tuple[list[Shape], float]:
    """The weights of the first filter as cells, coloured by sign and size."""
    values = p.filters[0]
    room = width - 2 * MARGIN
    fits = min(len(values), int(room // 3.4))
    cell = min(CELL, room / fits)
    many = f"first {fits} of {fmt.count(p.per_filter)}" if fits < p.per_filter else f"all {fits}"
    colours = "blue negative, orange positive"
    wordings = [f"weights of filter 1, {many}: {colours}", f"filter 1, {many}: {colours}"]
    label = first_fitting(wordings, room, SMALL)
    y = top + SMALL + 3
    shapes: list[Shape] = [Text(MARGIN, top + SMALL * 0.8, label, SMALL, "quiet")]
    most = max((abs(v) for v in values[:fits]), default=0.0) or 1.0
    for i, value in enumerate(values[:fits]):
        x = MARGIN + i * cell
        corners = ((x, y), (x + cell, y), (x + cell, y + CELL), (x, y + CELL))
        strength = round(abs(value) / most, 2)
        shapes.append(Polygon(corners, "negative" if value < 0 else "positive", None, opacity=strength))
    shapes.append(
        line(
            (MARGIN, y),
            (MARGIN + fits * cell, y),
            (MARGIN + fits * cell, y + CELL),
            (MARGIN, y + CELL),
            (MARGIN, y),
            line=THIN,
        )
    )
    return [ShapeGroup("weights", label, tuple(shapes))], y + CELL

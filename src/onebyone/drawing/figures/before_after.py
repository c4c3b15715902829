"""F3: the layers before and after the replacement, with shapes, weights, and the flatten that is no longer needed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from math import prod, sqrt

from onebyone.drawing import fonts
from onebyone.drawing import number_format as fmt
from onebyone.drawing.data import Drawing, ReplacedLayer
from onebyone.drawing.repeats import Run, common_path, runs
from onebyone.drawing.scene import (
    BODY,
    LEADING,
    RISE,
    SLANT,
    SMALL,
    THIN,
    Rectangle,
    Scene,
    Shape,
    ShapeGroup,
    Text,
    arrow,
    box,
    first_fitting,
    line,
    lines,
    shortened,
    wrapped,
)

MARGIN, GUTTER = 6.0, 10.0
LAYER = 29.0  # points for a layer's three lines
SHAFT, WORDS = 8.0, 15.0  # horizontal positions of arrows and of the text beside them in a lane
FLAT = 4.4  # points for the side of one position
TALLEST, LOWER = 26.0, 9.0  # of a map, and of a map in a long picture
FEW_LAYERS = 6
MAX_LAYERS = 16
"""Layers that are drawn with their values, at most, with identical layers merged; more are listed in a table."""


def figure(data: Drawing, width: float) -> Scene:
    """Two lanes: the fully connected layers on the left, the convolutions that replace them on the right."""
    items = layers(data)
    groups = runs(items, _key)
    drawn = sum(len(run.first) for run in groups)
    body = _Lanes(data, groups, width) if drawn <= MAX_LAYERS else _Table(groups, width)
    shapes, bottom = body.shapes()
    notes = wrapped(_note(data, items, drawn), width - 2 * MARGIN, SMALL)
    shapes += lines(MARGIN, bottom + 13, notes, SMALL, "quiet")
    height = bottom + 13 + (len(notes) - 1) * SMALL * LEADING + 5
    title = (
        f"{fmt.counted(len(items), 'fully connected layer')} before and after the replacement by convolutions"
    )
    return Scene("F3", width, height, title, _desc(data, groups), tuple(shapes))


def layers(data: Drawing) -> list[ReplacedLayer]:
    """The replaced fully connected layers and projections of attention, without pools."""
    return [r for r in data.replaced if not _is_pool(r)]


def _is_pool(r: ReplacedLayer) -> bool:
    return not r.kernel and "pool" in r.law


def _key(r: ReplacedLayer) -> Hashable:
    """Equal for layers that are drawn as one."""
    return r.kind, r.before, r.after, r.map, r.tokens, r.flatten is None


def _note(data: Drawing, items: Sequence[ReplacedLayer], drawn: int) -> str:
    parts = []
    if drawn < len(items):
        parts.append(f"{len(items)} layers; identical layers are drawn once, with ×.")
    if data.by == "convert":
        tokens = ", and tokens are positions" if any(r.tokens for r in items) else ""
        parts.append(f"Each layer is converted separately: a vector is an image of one position{tokens}.")
        parts += [f"Larger images are not possible: {reason.rstrip('.')}." for reason in data.refused[:1]]
    # an uneven adaptive pool becomes many pools, most of them identical
    pools = [f"{p.path or 'The global pool'} becomes a {p.after}." for p in data.replaced if _is_pool(p)]
    parts += dict.fromkeys(pools)
    if data.kept:
        parts.append(f"Not replaced: {fmt.counted(len(data.kept), 'layer')}.")
    parts.append(
        "W: shape of the weight; its values do not change. Lengths: √ of channels; sides: √ of positions."
    )
    return " ".join(parts)


def _desc(data: Drawing, groups: Sequence[Run[ReplacedLayer]]) -> str:
    parts = []
    for run in groups:
        for number, first in enumerate(run.first):
            times = f" ({run.times} identical layers)" if run.times > 1 else ""
            gone = (
                f"; the flatten of {fmt.shape(first.map)} is no longer needed"
                if first.flatten is not None
                else ""
            )
            parts.append(f"{_path(run, number)}{times}: {_before(first)} becomes {_after(first)}{gone}.")
    items = layers(data)
    return " ".join([*parts, _note(data, items, len(items))])


def _path(run: Run[ReplacedLayer], number: int) -> str:
    return common_path([repeat[number].path for repeat in run.repeats]) or "(top level)"


def _before(r: ReplacedLayer) -> str:
    if not r.weight:
        return r.before
    inputs, outputs = fmt.count(r.weight[1]), fmt.count(r.weight[0])
    return f"fully connected {inputs} to {outputs}, weight {fmt.shape(r.weight)}"


def _after(r: ReplacedLayer) -> str:
    if not r.kernel:
        return r.after
    changed = "" if _same_weights(r) else f" with {_weights_after(r)[0]}"
    return f"a {fmt.convolution(r.kernel[2:])}, weight {fmt.shape(r.kernel)}{changed}"


def _same_weights(r: ReplacedLayer) -> bool:
    """Whether the kernel consists of the weights of the layer, without zeros and without sums of weights."""
    return r.nonzero == prod(r.kernel) == r.weights


class _Value:
    """A value between layers: a vector or tokens on the left, the same values as an image on the right."""

    def __init__(self, features: int, item: ReplacedLayer) -> None:
        self.features = features
        self.positions = item.map[1:] if item.tokens else (1,) * max(1, len(item.map) - 1)
        self.tokens = item.tokens
        self.image = (features, *self.positions)
        lead = tuple(n for n in self.positions if n > 1) if item.tokens else ()
        self.left = fmt.shape((*lead, features)) if item.tokens else fmt.count(features)

    def labels(self) -> tuple[str, str]:
        return self.left, fmt.shape(self.image)


class _Lanes:
    """Values and layers in two lanes, from top to bottom."""

    def __init__(self, data: Drawing, groups: Sequence[Run[ReplacedLayer]], width: float) -> None:
        self.data, self.groups = data, groups
        times = [f"×{run.times}" for run in groups if run.times > 1]
        room = max((fonts.width(t, BODY) + 10 for t in times), default=0.0)
        self.edge = width - MARGIN - room
        self.lane = (self.edge - MARGIN - GUTTER) / 2
        self.lefts = (MARGIN, MARGIN + self.lane + GUTTER)
        self.tallest = TALLEST if sum(len(run.first) for run in groups) <= FEW_LAYERS else LOWER
        self.scale = self._scale()
        self.drawn: list[Shape] = []
        self.y = MARGIN

    def _scale(self) -> float:
        """Points per √channel, so that every value fits beside its label."""
        scales = [8.0]
        for item in (r for run in self.groups for r in run.first if r.weight):
            values = [_Value(n, item) for n in item.weight]
            for label, image in [(t, v.image) for v in values for t in v.labels()] + [(_map(item), item.map)]:
                room = self.lane - 5 - fonts.width(label, SMALL) - self._sides(image)[1] * SLANT
                scales.append(room / sqrt(image[0]))
        return max(0.05, min(scales))

    def shapes(self) -> tuple[list[Shape], float]:
        self._heads()
        previous: ReplacedLayer | None = None
        for run in self.groups:
            start = self.y
            for number, item in enumerate(run.first):
                if previous is None or not self._follows(previous, item):
                    if previous is not None:
                        self._pause()
                        start = max(start, self.y) if number == 0 else start
                    self._source(item)
                self._layer(item, _path(run, number))
                if item.weight:
                    self._value(_Value(item.weight[0], item), "out")
                previous = item
            if run.times > 1:
                self._bracket(run.times, start + 2, self.y)
        return self.drawn, self.y

    def _heads(self) -> None:
        for x, text in zip(self.lefts, ("before: fully connected", "after: convolutions"), strict=True):
            self.drawn.append(Text(x, self.y + 7, shortened(text, self.lane, BODY), BODY, "ink"))
        self.drawn.append(line((MARGIN, self.y + 12), (self.edge, self.y + 12), stroke="rule", line=THIN))
        self.y += 15

    def _follows(self, before: ReplacedLayer, after: ReplacedLayer) -> bool:
        """Whether one layer directly reads the output of the other."""
        pair = (before.path, after.path)
        return any(row[i : i + 2] == pair for row in self.data.chains for i in range(len(row) - 1))

    def _pause(self) -> None:
        """A gap with dots, for other layers between."""
        for x in self.lefts:
            self.drawn.append(Text(x + SHAFT, self.y + 8, "⋮", BODY, "quiet", "middle"))
        self.y += 12

    def _source(self, item: ReplacedLayer) -> None:
        """The input of the layer: with a flatten on the left, without on the right."""
        if item.flatten is not None:
            self._flattened(item)
        elif item.weight:
            self._value(_Value(item.weight[1], item), "map")

    def _flattened(self, item: ReplacedLayer) -> None:
        left, right = self.lefts
        tall = max(self._box(item.map, x, self.y + 3, "map", _map(item)) for x in (left, right))
        self.y += 3 + tall + 4
        self.drawn += [
            *self._arrow(left, self.y, self.y + 15),
            *self._arrow(right, self.y, self.y + 15 + 14.5),
        ]
        self.drawn.append(Text(left + WORDS, self.y + 9.5, "flatten", SMALL, "ink"))
        self.drawn.append(Text(right + WORDS, self.y + 9.5, "no flatten", SMALL, "gone"))
        self.y += 15
        self._sheet(_Value(item.weight[1], item), left, self.y + 3, "map")
        self.y += FLAT + 7

    def _value(self, value: _Value, colour: str) -> None:
        left, right = self.lefts
        up = self._sides(value.image)[1] * RISE
        tall = self._box(value.image, right, self.y + 3, colour, value.labels()[1])
        self._sheet(value, left, self.y + 3 + up, colour)
        self.y += 3 + tall + 3

    def _sheet(self, value: _Value, x: float, y: float, colour: str) -> None:
        """A vector as a bar, or tokens as a sheet."""
        wide, high = max(1.0, sqrt(value.features) * self.scale), self._sides(value.image)[0]
        title = f"{value.left} tokens" if value.tokens else f"a vector of {value.left}"
        sheet = Rectangle(x, y, wide, high, colour, f"{colour}.edge")
        self.drawn.append(ShapeGroup(f"before-{len(self.drawn)}", title, (sheet,)))
        self.drawn.append(Text(x + wide + 4, y + high / 2 + 2.3, value.left, SMALL, "quiet"))

    def _box(self, shape: Sequence[int], x: float, y: float, colour: str, label: str) -> float:
        """A map as a box: channels to the right, rows down, columns as depth; returns its height."""
        wide, (high, depth) = max(1.0, sqrt(shape[0]) * self.scale), self._sides(shape)
        up = depth * RISE
        drawn = ShapeGroup(
            f"map-{len(self.drawn)}",
            f"a map of {fmt.shape(shape)}",
            box(x, y + up, wide, high, depth, colour),
        )
        at = Text(x + wide + depth * SLANT + 4, y + up + high / 2 + 2.3, label, SMALL, "quiet")
        self.drawn += [drawn, at]
        return up + high

    def _layer(self, item: ReplacedLayer, path: str) -> None:
        """The text beside the arrows of a layer: its name, sizes and weight shapes."""
        if item.weight:
            inputs, outputs = (fmt.count(n) for n in (item.weight[1], item.weight[0]))
            before = (path, f"FC {inputs} → {outputs}", f"W {fmt.shape(item.weight)}")
            same = first_fitting(_weights_after(item), self.lane - WORDS, SMALL)
            after = (
                fmt.convolution(item.kernel[2:]),
                f"W {fmt.shape(item.kernel)}",
                same,
            )
        else:
            before, after = (path, item.kind, item.before), ("1×1 convolutions", item.after, "")
        for x, rows, strong in ((self.lefts[0], before, 2), (self.lefts[1], after, 1)):
            for i, text in enumerate(filter(None, rows)):
                row = shortened(text, self.lane - WORDS, SMALL)
                y = self.y + 8 + i * SMALL * LEADING
                self.drawn.append(Text(x + WORDS, y, row, SMALL, "ink" if i < strong else "quiet"))
            self.drawn += self._arrow(x, self.y + 1, self.y + LAYER)
        self.y += LAYER

    def _arrow(self, x: float, top: float, low: float) -> tuple[Shape, ...]:
        return arrow((x + SHAFT, top), (x + SHAFT, low))

    def _bracket(self, times: int, top: float, low: float) -> None:
        x = self.edge + 2
        self.drawn.append(line((x, top), (x + 3, top), (x + 3, low), (x, low), stroke="quiet"))
        self.drawn.append(Text(x + 6, (top + low) / 2 + 2.5, f"×{times}", BODY, "ink"))

    def _sides(self, shape: Sequence[int]) -> tuple[float, float]:
        """Height and depth of a map's box, by its positions."""
        size = shape[1:]
        if prod(size) == 1:
            return FLAT, FLAT
        if len(size) == 1 or size[1] == 1:
            return min(self.tallest, max(FLAT, 1.1 * sqrt(size[0]))), FLAT
        rows, columns = (min(self.tallest, max(FLAT, 4.4 * sqrt(n))) for n in size[-2:])
        return rows, columns


def _weights_after(item: ReplacedLayer) -> list[str]:
    """How many weights the convolution has, from the longest wording to the shortest."""
    nonzero = fmt.abbreviated(item.nonzero)
    if item.nonzero < item.weights:  # the flattened map had several copies of a value
        return [f"{nonzero} sums of weights", f"{nonzero} sums"]
    if not _same_weights(item):
        return [f"{nonzero} non-zero weights", f"{nonzero} non-zero"]
    weights = f"{fmt.abbreviated(item.weights)} weights"
    return [f"the same {weights}", f"same {weights}", weights]


def _map(item: ReplacedLayer) -> str:
    return fmt.shape(item.map)


class _Table:
    """A table for many layers: two lines each, with identical layers merged."""

    def __init__(self, groups: Sequence[Run[ReplacedLayer]], width: float) -> None:
        self.groups, self.width = groups, width

    def shapes(self) -> tuple[list[Shape], float]:
        drawn: list[Shape] = []
        y = MARGIN + SMALL
        for run in self.groups:
            for head, body in self._rows(run):
                drawn.append(Text(MARGIN, y, head, SMALL, "ink"))
                beside = Text(self.width - MARGIN, y, body, SMALL, "quiet", "end")
                if MARGIN + fonts.width(head, SMALL) + 8 > beside.x - beside.width:
                    y += SMALL * LEADING
                    beside = Text(MARGIN + 8, y, body, SMALL, "quiet")
                drawn.append(beside)
                y += SMALL * LEADING + 2
            drawn.append(line((MARGIN, y - 6.5), (self.width - MARGIN, y - 6.5), stroke="rule", line=THIN))
            y += 2
        return drawn, y - SMALL - 4

    def _rows(self, run: Run[ReplacedLayer]) -> Iterator[tuple[str, str]]:
        room = self.width - 2 * MARGIN
        times = f"  ×{run.times}" if run.times > 1 else ""
        for number, first in enumerate(run.first):
            head = shortened(_path(run, number), room - fonts.width(times, SMALL), SMALL) + times
            gone = ", no flatten" if first.flatten is not None else ""
            shapes = f"W {fmt.shape(first.weight)} → {fmt.shape(first.kernel)}{gone}"
            yield (
                head,
                shortened(shapes if first.weight else f"{first.before} → {first.after}", room - 8, SMALL),
            )

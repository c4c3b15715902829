"""The whole network as a strip of feature maps with their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import log2, prod, sqrt

from onebyone.drawing import fonts
from onebyone.drawing import number_format as fmt
from onebyone.drawing.data import MAP, TOKENS, VECTOR, Drawing, Sizes, TraceStep
from onebyone.drawing.repeats import Run, runs
from onebyone.drawing.scene import (
    LEADING,
    RISE,
    SLANT,
    SMALL,
    THIN,
    Polygon,
    Scene,
    Shape,
    ShapeGroup,
    Text,
    arrow,
    box,
    line,
    lines,
    shortened,
    wrapped,
)

MARGIN, GAP = 6.0, 11.0
TALL = 30.0  # points for the largest map's side
PER_DOUBLING = 1.55  # points for each doubling of channels
MAX_CELL_WIDTH = 78.0
SHOWN = ("convolution", "pointwise", "linear", "pool", "flatten", "attention", "join")
MAX_LINES = 4  # of the operations that lead to a value
MAX_PER_INCH = 8  # values per inch of width; if there are more, each block is drawn as one


@dataclass(frozen=True)
class StripValue:
    """A value of the strip: its layout and sizes, and the steps that lead to it without changing its size further."""

    layout: str
    sizes: Sizes
    steps: tuple[TraceStep, ...]

    @classmethod
    def of(cls, layout: str, sizes: Sizes, steps: tuple[TraceStep, ...]) -> StripValue:
        """The value; a map that is stored channels-last is shown with its channels first."""
        if layout == TOKENS and len(sizes) > 2:
            return cls(MAP, (sizes[-1], *sizes[:-1]), steps)
        return cls(layout, sizes, steps)

    @property
    def channels(self) -> int:
        """Channels, or features."""
        return self.sizes[0] if self.layout == MAP else self.sizes[-1]

    @property
    def positions(self) -> Sizes:
        """The sizes other than the channels."""
        return self.sizes[1:] if self.layout == MAP else self.sizes[:-1]

    def label(self) -> str:
        """The shape."""
        return fmt.shape(self.sizes)

    def key(self) -> Hashable:
        """Equal for values that are drawn as one."""
        return self.layout, self.sizes, tuple(_ops(self.steps))


def values(data: Drawing) -> list[StripValue]:
    """The network's values, the input first; steps that keep the size of a value are merged with the previous one."""
    first = next((s for s in data.steps if s.role in SHOWN), None)
    layout = (
        VECTOR if len(data.input) < 2 else TOKENS if first is not None and first.role == "linear" else MAP
    )
    items = [StripValue(layout, data.input, ())]
    for step in data.steps:
        if step.role not in (*SHOWN, "sum") and step.output == step.input:
            continue
        last, new = items[-1], StripValue.of(step.layout, step.output, (step,))
        if (new.layout, new.sizes) == (last.layout, last.sizes) and _together(last.steps, step):
            items[-1] = StripValue(last.layout, last.sizes, (*last.steps, step))
        elif step.role in SHOWN or (step.role == "other" and step.output != step.input):
            items.append(new)
    return items


def _together(before: Sequence[TraceStep], step: TraceStep) -> bool:
    """Whether a step that keeps the size is merged with the previous ones: in the same block, and not after a sum."""
    if not before or step.role == "sum":
        return bool(before)
    return before[-1].role != "sum" and _block(before[-1]) == _block(step)


def _holders(step: TraceStep) -> tuple[str, ...]:
    """The names of the modules that contain a step; for a function, including the module that called it."""
    names = tuple(step.path.split(".")) if step.path else ()
    return names if step.kind[:1].islower() else names[:-1]


def _block(step: TraceStep) -> str:
    """The numbered part of the network that a step belongs to: `layer1.0` of `layer1.0.conv2`."""
    names = list(_holders(step))
    while names and not names[-1].isdecimal() and any(n.isdecimal() for n in names):
        names.pop()
    return ".".join(names)


def strip_runs(items: Sequence[StripValue], limit: int) -> tuple[tuple[Run[StripValue], ...], bool]:
    """The values as runs of repeats; if there are more than about `limit`, the values of each block become one.

    Blocks are given by the leading names of the paths; the largest number of names is used with which the values fit.
    Also returns whether values were merged.
    """
    plain = runs(items, StripValue.key)
    for depth in (None, 5, 4, 3, 2, 1):
        strip = plain if depth is None else runs(_joined(items, depth), StripValue.key)
        if sum(len(run.first) for run in strip) <= limit:
            break
    return strip, sum(len(run.first) for run in strip) < sum(len(run.first) for run in plain)


def _joined(items: Sequence[StripValue], depth: int) -> list[StripValue]:
    """Merge successive values whose paths begin with the same `depth` module names; the last value is kept."""
    joined: list[StripValue] = []
    before: tuple[str, ...] = ()
    for value in items:
        block = _holders(value.steps[0])[:depth] if value.steps else ()
        if joined and len(block) == depth and block == before:
            last = joined.pop()
            joined.append(StripValue(value.layout, value.sizes, (*last.steps, *value.steps)))
        else:
            joined.append(value)
        before = block
    return joined


def figure(data: Drawing, width: float) -> Scene:
    """Boxes for maps, sheets for tokens, and bars for vectors, in rows of the width of the figure."""
    strip, joined = strip_runs(values(data), int(MAX_PER_INCH * width / 72))
    drawn_once = [(run, v) for run in strip for v in run.first]
    cells = [_Cell(v, run, number) for number, (run, v) in enumerate(drawn_once)]
    largest = max((max(c.value.positions, default=1) for c in cells), default=1)
    shapes: list[Shape] = []
    y = MARGIN
    for row in _rows(cells, width, largest):
        drawn, y = _row(row, y, width, largest)
        shapes += drawn
    notes = wrapped(_note(data, strip, joined), width - 2 * MARGIN, SMALL)
    shapes += lines(MARGIN, y + 9, notes, SMALL, "quiet")
    height = y + 9 + (len(notes) - 1) * SMALL * LEADING + 5
    return Scene(
        "strip",
        width,
        height,
        f"{data.network}: feature maps from input to output",
        _desc(data, strip, joined),
        tuple(shapes),
    )


@dataclass(frozen=True)
class _Cell:
    """One drawn value, its run, and its number in the strip."""

    value: StripValue
    run: Run[StripValue]
    number: int

    def rows(self) -> list[str]:
        """The text below: the shape, and the operations that lead to the value."""
        ops = _ops(self.value.steps) or ["input"]
        shown = (
            ops[:MAX_LINES]
            if len(ops) <= MAX_LINES
            else [*ops[: MAX_LINES - 1], f"+ {len(ops) - MAX_LINES + 1} more"]
        )
        return [self.value.label(), *shown]

    def size(self, largest: int) -> tuple[float, float, float]:
        """Width, height and depth of the box."""
        wide = 1.5 + PER_DOUBLING * log2(1 + self.value.channels)
        sides = [max(3.0, TALL * sqrt(n / largest)) for n in self.value.positions[-2:]]
        if self.value.layout == MAP and len(sides) == 2:
            return wide, sides[0], sides[1]
        if self.value.layout == TOKENS:
            return wide, max(3.0, TALL * min(1.0, sqrt(prod(self.value.positions) / max(largest, 196)))), 0.0
        return wide, sides[0] if sides else 4.0, 4.0 if self.value.layout == MAP else 0.0

    def wide(self, largest: int) -> float:
        """The width that it needs, in points."""
        wide, _, depth = self.size(largest)
        texts = max(fonts.width(t, SMALL) for t in self.rows())
        return max(wide + depth * SLANT, min(texts, MAX_CELL_WIDTH))


def _rows(cells: Sequence[_Cell], width: float, largest: int) -> list[list[_Cell]]:
    """The cells in rows that are not wider than the figure."""
    rows: list[list[_Cell]] = [[]]
    used = 0.0
    for cell in cells:
        wide = cell.wide(largest)
        if rows[-1] and used + GAP + wide > width - 2 * MARGIN:
            rows.append([])
            used = 0.0
        used += wide + (GAP if rows[-1] else 0)
        rows[-1].append(cell)
    return rows


def _row(cells: Sequence[_Cell], top: float, width: float, largest: int) -> tuple[list[Shape], float]:
    wides = [c.wide(largest) for c in cells]
    room = width - 2 * MARGIN
    free = (room - sum(wides)) / max(1, len(cells) - 1) if len(cells) > 1 else 0.0
    gap = min(free, GAP + 14)
    repeated = any(c.run.times > 1 for c in cells)
    sizes = [c.size(largest) for c in cells]
    high = max(h + d * RISE for _, h, d in sizes)
    middle = top + (10 if repeated else 0) + high / 2
    below = middle + high / 2 + 3
    shapes: list[Shape] = []
    x = MARGIN
    spans: list[tuple[float, float]] = []
    for cell, wide in zip(cells, wides, strict=True):
        shapes += _cell(cell, x, wide, middle, below, largest)
        if spans:
            shapes += arrow(
                (spans[-1][1] + gap / 2 - 3.4, middle), (spans[-1][1] + gap / 2 + 3.4, middle), size=2.6
            )
        spans.append((x, x + wide))
        x += wide + gap
    shapes += _brackets(cells, spans, top + 6)
    text_rows = max(len(c.rows()) for c in cells)
    return shapes, below + text_rows * SMALL * LEADING + 9


def _cell(cell: _Cell, x: float, wide: float, middle: float, below: float, largest: int) -> list[Shape]:
    width, height, depth = cell.size(largest)
    colour = {MAP: "map", TOKENS: "filter", VECTOR: "out"}[cell.value.layout]
    left = x + (wide - width - depth * SLANT) / 2
    top = middle - (height - depth * RISE) / 2
    if depth:
        drawn: tuple[Shape, ...] = box(left, top, width, height, depth, colour)
    else:
        corners = ((left, top), (left + width, top), (left + width, top + height), (left, top + height))
        drawn = (Polygon(corners, colour, f"{colour}.edge", THIN),)
    title = f"{cell.value.layout} {cell.value.label()}: {', '.join(_ops(cell.value.steps)) or 'input'}"
    texts = [
        Text(
            x + wide / 2,
            below + SMALL + i * SMALL * LEADING,
            shortened(t, MAX_CELL_WIDTH, SMALL),
            SMALL,
            "ink" if i == 0 else "quiet",
            "middle",
        )
        for i, t in enumerate(cell.rows())
    ]
    return [ShapeGroup(f"value-{cell.number}", title, drawn), *texts]


def _brackets(cells: Sequence[_Cell], spans: Sequence[tuple[float, float]], y: float) -> list[Shape]:
    """A line above the cells of a repeated run, with the number of repeats."""
    shapes: list[Shape] = []
    for run in dict.fromkeys(c.run for c in cells if c.run.times > 1):
        inside = [s for c, s in zip(cells, spans, strict=True) if c.run is run]
        left, right = inside[0][0] + 1, inside[-1][1] - 1
        label = Text((left + right) / 2, y + 1, f"×{run.times}", SMALL, "ink", "middle")
        room = label.width / 2 + 2
        has_start = run.first[0] is next(c.value for c in cells if c.run is run)
        has_end = run.first[-1] is [c.value for c in cells if c.run is run][-1]
        start = ((left, y + 3), (left, y - 1.3)) if has_start else ((left, y - 1.3),)
        stop = ((right, y - 1.3), (right, y + 3)) if has_end else ((right, y - 1.3),)
        if right - left > label.width + 8:
            shapes.append(line(*start, (label.x - room, y - 1.3), stroke="quiet", line=THIN))
            shapes.append(line((label.x + room, y - 1.3), *stop, stroke="quiet", line=THIN))
        shapes.append(label)
    return shapes


_NAMES = {"AdaptiveAvgPool": "average pool", "AvgPool": "average pool", "MaxPool": "max-pool", "mean": "mean"}


def _ops(steps: Sequence[TraceStep]) -> list[str]:
    """The operations of the steps in order, identical ones counted."""
    counts = Counter(_op(s) for s in steps)
    return [name if n == 1 else f"{n}× {name}" for name, n in counts.items()]


def _op(step: TraceStep) -> str:
    stride = f" /{step.stride[0]}" if step.stride and max(step.stride) > 1 else ""
    kernel = fmt.shape(step.kernel)
    if step.role in ("convolution", "pointwise"):
        deep = step.groups > 1 and step.groups == step.output[0]
        return f"{'depthwise' if deep else 'conv'} {kernel}{stride}"
    if step.role == "pool":
        name = next((v for k, v in _NAMES.items() if k.lower() in step.kind.lower().replace("_", "")), "pool")
        return f"{name} {kernel}{stride}" if step.kernel else name
    if step.role == "linear":
        return (
            "FC" if step.layout == VECTOR else "FC per token" if len(step.output) == 2 else "FC per position"
        )
    return {"join": "joined", "sum": "sum"}.get(step.role, step.role if step.role != "other" else step.kind)


def _note(data: Drawing, strip: Sequence[Run[StripValue]], joined: bool) -> str:
    kinds = {v.layout for run in strip for v in run.first}
    meaning = {MAP: "blue: maps", TOKENS: "orange: tokens", VECTOR: "green: vectors"}
    legend = ", ".join(meaning[k] for k in (MAP, TOKENS, VECTOR) if k in kinds)
    repeated = " Identical parts are drawn once, with ×." if any(run.times > 1 for run in strip) else ""
    if joined:
        repeated += " For each block, its last value is drawn."
    return (
        f"{legend[0].upper()}{legend[1:]}. Sides: √ of positions; lengths: log of channels.{repeated} "
        f"{fmt.count(data.parameters)} parameters."
    )


def _desc(data: Drawing, strip: Sequence[Run[StripValue]], joined: bool) -> str:
    parts = []
    for run in strip:
        text = ", ".join(f"{v.layout} {v.label()} ({', '.join(_ops(v.steps)) or 'input'})" for v in run.first)
        parts.append(text if run.times == 1 else f"{run.times} times: {text}")
    return f"From input to output: {'; '.join(parts)}. {_note(data, strip, joined)}"

"""F2: successive fully connected layers as neurons and edges; only some neurons are drawn, with the total counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onebyone.drawing import number_format as fmt
from onebyone.drawing.data import ConnectedLayer, Drawing, Sizes
from onebyone.drawing.scene import (
    BODY,
    LEADING,
    SMALL,
    THIN,
    Circle,
    Point,
    Scene,
    Shape,
    ShapeGroup,
    Strokes,
    Text,
    line,
    lines,
    shortened,
    wrapped,
)
from onebyone.errors import BadInput

MARGIN = 6.0
HEIGHT = 158.0  # of the columns of neurons
GAP = 16.0  # in place of neurons that are not drawn
MIN_SPACE = 56.0  # points between columns of neurons
STRENGTHS = 6  # different widths of edges
MAX_EDGE = 1.1


def choose(data: Drawing, path: str | None = None) -> list[ConnectedLayer]:
    """The layers to draw: the chain that contains `path`, else the longest chain, preferably on vectors.

    If the network has no fully connected layer, the 1×1 convolution with the most weights, converted.

    Raises
    ------
    BadInput
        if there is no such layer.
    """
    layers = {c.path: c for c in data.connected}
    if path is not None and path not in layers:
        have = ", ".join(list(layers)[:5]) or "none"
        raise BadInput(
            f"layer={path!r}: not a fully connected layer or 1×1 convolution; the run called {have}"
        )
    rows = [[layers[p] for p in chain] for chain in data.chains]
    if path is not None:
        return next((row for row in rows if any(c.path == path for c in row)), [layers[path]])
    if not rows:
        return [max(data.connected, key=lambda c: c.parameters)]
    return max(rows, key=lambda row: (row[0].places == 1, len(row), sum(c.parameters for c in row)))


def figure(data: Drawing, width: float, layer: str | None = None) -> Scene:
    """The layers as columns of neurons, with the weights between the drawn neurons as edges."""
    row = choose(data, layer)
    fits = max(1, int((width - 2 * MARGIN - 40) // MIN_SPACE))
    shown = _around(row, layer, fits)
    xs = _columns(len(shown) + 1, width)
    top = MARGIN + 25
    shapes: list[Shape] = []
    for number, (connected, (left, right)) in enumerate(zip(shown, pairwise(xs), strict=True)):
        shapes.append(_edges(number, connected, left, right, top))
    for number, x in enumerate(xs):
        shapes += _column(number, shown, x, top)
    low = top + HEIGHT + 11
    for connected, (left, right) in zip(shown, pairwise(xs), strict=True):
        shapes += _names(connected, (left + right) / 2, right - left - 4, low)
    low += (2 if any(c.activation for c in shown) else 1) * SMALL * LEADING
    legend, low = _legend(width, low + 13)
    notes = wrapped(_note(data, row, shown), width - 2 * MARGIN, SMALL)
    shapes += [*legend, *lines(MARGIN, low + 11, notes, SMALL, "quiet")]
    height = low + 11 + (len(notes) - 1) * SMALL * LEADING + 5
    return Scene("F2", width, height, _title(row), _desc(data, row, shown), tuple(shapes))


def _around(row: Sequence[ConnectedLayer], path: str | None, fits: int) -> list[ConnectedLayer]:
    """As many layers of the chain as fit: the last ones, or those from the requested layer on."""
    start = max(0, len(row) - fits)
    if path is not None:
        start = min(start, next(i for i, c in enumerate(row) if c.path == path))
    return list(row[start : start + fits])


def _columns(count: int, width: float) -> list[float]:
    side = MARGIN + 22
    return [side + i * (width - 2 * side) / (count - 1) for i in range(count)]


def _sizes(shown: Sequence[ConnectedLayer]) -> list[tuple[int, Sizes]]:
    """For each column of neurons, their number and which of them are drawn."""
    return [(shown[0].inputs, shown[0].drawn_inputs), *((c.outputs, c.drawn_outputs) for c in shown)]


def _neuron_heights(count: int, drawn: int, top: float) -> list[float]:
    """The vertical positions of the neurons of a column, with a gap in the middle if some are not drawn."""
    if drawn == count:
        space = min(14.0, HEIGHT / max(1, count))
        first = top + (HEIGHT - space * (count - 1)) / 2
        return [first + i * space for i in range(count)]
    space = (HEIGHT - GAP) / drawn
    return [top + space / 2 + i * space + (GAP if i >= drawn // 2 else 0) for i in range(drawn)]


def _radius(count: int) -> float:
    return min(3.0, 0.36 * HEIGHT / max(1, count))


def _edges(number: int, layer: ConnectedLayer, left: float, right: float, top: float) -> ShapeGroup:
    """A line for each weight between drawn neurons; the colour shows its sign, the width its size."""
    from_y = _neuron_heights(layer.inputs, len(layer.drawn_inputs), top)
    to_y = _neuron_heights(layer.outputs, len(layer.drawn_outputs), top)
    most = max((abs(w) for row in layer.weights for w in row), default=0.0) or 1.0
    looks: dict[tuple[int, str], list[tuple[Point, ...]]] = {}
    for row, y2 in zip(layer.weights, to_y, strict=True):
        for weight, y1 in zip(row, from_y, strict=True):
            strength = min(STRENGTHS, int((weight / most) ** 2 * STRENGTHS) + 1)
            look = (strength, "negative" if weight < 0 else "positive")
            if weight != 0:
                looks.setdefault(look, []).append(((left, y1), (right, y2)))
    strokes = tuple(
        Strokes(
            tuple(paths),
            colour,
            round(MAX_EDGE * s / STRENGTHS, 3),
            round(0.2 + 0.65 * (s - 1) / (STRENGTHS - 1), 2),
        )
        for (s, colour), paths in sorted(looks.items())
    )
    drawn = sum(len(row) for row in layer.weights)
    title = f"{layer.path}: {fmt.count(drawn)} of {fmt.count(layer.inputs * layer.outputs)} weights drawn"
    return ShapeGroup(f"edges-{number}", title, strokes)


def _column(number: int, shown: Sequence[ConnectedLayer], x: float, top: float) -> list[Shape]:
    count, drawn = _sizes(shown)[number]
    ys = _neuron_heights(count, len(drawn), top)
    r = _radius(len(drawn))
    colour = "map" if number == 0 else "out"
    discs = tuple(Circle(x, y, r, colour, f"{colour}.edge", THIN) for y in ys)
    gap: tuple[Shape, ...] = ()
    if len(drawn) < count:
        middle = (ys[len(drawn) // 2 - 1] + ys[len(drawn) // 2]) / 2
        gap = tuple(Circle(x, middle + d, 0.7, "quiet") for d in (-3.2, 0.0, 3.2))
    title = f"{fmt.count(count)} {'inputs' if number == 0 else 'outputs'}, {fmt.drawn_of(len(drawn), count)}"
    return [
        ShapeGroup(f"neurons-{number}", title, (*discs, *gap)),
        Text(x, MARGIN + 7, fmt.count(count), BODY, "ink", "middle", bold=True),
        Text(
            x,
            MARGIN + 7 + SMALL * 1.3,
            "all drawn" if len(drawn) == count else f"{len(drawn)} drawn",
            SMALL,
            "quiet",
            "middle",
        ),
    ]


def _names(layer: ConnectedLayer, x: float, room: float, y: float) -> list[Shape]:
    then = f"then {layer.activation}" if layer.activation else ""
    rows = [
        layer.path or layer.kind,
        f"{fmt.abbreviated(layer.inputs * layer.outputs)} weights",
        then,
    ]
    return [
        Text(
            x,
            y + i * SMALL * LEADING,
            shortened(text, room, SMALL),
            SMALL,
            "ink" if i == 0 else "quiet",
            "middle",
        )
        for i, text in enumerate(rows)
        if text
    ]


def _legend(width: float, y: float) -> tuple[list[Shape], float]:
    """A legend for the colours and widths of the edges."""
    shapes: list[Shape] = []
    x = MARGIN
    for colour, text in (("positive", "positive weight"), ("negative", "negative weight")):
        shapes.append(line((x, y - 2.3), (x + 14, y - 2.3), stroke=colour, line=MAX_EDGE))
        word = Text(x + 17, y, text, SMALL, "quiet")
        shapes.append(word)
        x += 17 + word.width + 9
    last = Text(x, y, "width: weight squared", SMALL, "quiet")
    if x + last.width > width - MARGIN:
        last = Text(MARGIN, y + SMALL * LEADING, last.text, SMALL, "quiet")
    return [*shapes, last], max(y, last.y)


def _note(data: Drawing, row: Sequence[ConnectedLayer], shown: Sequence[ConnectedLayer]) -> str:
    parts = []
    if row[0].twin:
        parts.append(
            "The network has no fully connected layer; this one was converted from a 1×1 convolution."
        )
    if len(shown) < len(row):
        parts.append(f"{len(shown)} of {len(row)} successive layers are drawn.")
    thinned = any(len(d) < n for n, d in _sizes(shown))
    if thinned:
        parts.append(
            "Dots mark neurons that are not drawn; the first and the last ones of each layer are drawn."
        )
    parts.append("Edges are weights of the network.")
    read = next((r for r in data.replaced if r.path == shown[0].path and r.flatten is not None), None)
    if read is not None:
        parts.append(f"The inputs are a flattened map of {fmt.shape(read.map)}.")
    if row[0].places > 1:
        parts.append(f"Applied at each of {fmt.count(row[0].places)} positions.")
    others = len([c for c in data.connected if not c.twin]) - len(row)
    if others > 0:
        parts.append(f"{fmt.counted(others, 'more fully connected layer')} in the network.")
    return " ".join(parts)


def _title(row: Sequence[ConnectedLayer]) -> str:
    if len(row) == 1:
        return f"{row[0].path or row[0].kind}: a fully connected layer as neurons and edges"
    return (
        f"{row[0].path} to {row[-1].path}: {len(row)} successive fully connected layers as neurons and edges"
    )


def _desc(data: Drawing, row: Sequence[ConnectedLayer], shown: Sequence[ConnectedLayer]) -> str:
    parts = [
        f"{c.path or c.kind}: {fmt.count(c.inputs)} inputs to {fmt.count(c.outputs)} outputs, "
        f"{fmt.count(c.inputs * c.outputs)} weights, of which {len(c.drawn_inputs)} × {len(c.drawn_outputs)} are "
        "drawn"
        f"{f', followed by {c.activation}' if c.activation else ''}."
        for c in shown
    ]
    return " ".join([*parts, _note(data, row, shown)])

"""The initial state of the page's three interactive views, which is also what print and pages without scripts show.

The page's JavaScript changes the elements that are drawn here, from the same plain data, which the page contains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onebyone.drawing.number_format import number
from onebyone.drawing.scene import Scene, Shape
from onebyone.drawing.svg_writer import to_inline_svg
from onebyone.laws import cost
from onebyone.report import charts
from onebyone.report.charts import Scale
from onebyone.report.claim_figures import ROLES, role_name

Data = Mapping[str, Any]
SIDES = 64
"""The largest map in the view of costs, in positions per side."""
_GRID = 156.0  # pixels of the longer side of a map


# 1: the pixel -----------------------------------------------------------------------------------------------


class PixelView(NamedTuple):
    """One layer in view 1: SVG of its input, on which a pixel is selected, SVG of its output, and the caption."""

    role: str
    name: str
    layer: str
    input: str
    output: str
    position: int
    last: int
    where: str
    result: str
    pattern: str


def pixel_views(row: Data) -> list[PixelView]:
    """The layers of D1, each with the middle pixel of its input selected."""
    influence = row["pictures"].get("influence", {})
    return [_pixel_view(role, influence[role], row["figures"][role]) for role in ROLES if role in influence]


def _pixel_view(role: str, data: Data, figures: Data) -> PixelView:
    rows = sorted({y for y, _ in data["places"]})
    columns = sorted({x for _, x in data["places"]})
    position = (len(rows) // 2) * len(columns) + len(columns) // 2
    y, x = data["places"][position]
    output = data["output"]
    amounts = dict(zip(data["moved"][position], data["amount"][position], strict=True))
    height, width = output if len(output) == 2 else (output[0], 1)
    changes = [[amounts.get(i * width + j, 0.0) for j in range(width)] for i in range(height)]
    selected = [
        [float(i * len(columns) + j == position) for j in range(len(columns))] for i in range(len(rows))
    ]
    return PixelView(
        role=role,
        name=role_name(role, figures),
        layer=f"{figures['layer']}, {figures['origin']}" if figures["layer"] else str(figures["origin"]),
        input=_squares(selected, "picked"),
        output=_squares(changes, f"c-{role}"),
        position=position,
        last=len(data["places"]) - 1,
        where=f"row {y}, column {x}",
        result=_changes(len(amounts), data),
        pattern=_pattern(data),
    )  # fmt: skip


def _squares(values: Sequence[Sequence[float]], css: str) -> str:
    """A grid as an SVG element; every square is an outline and, on top, a filled square of some opacity."""
    height, width = len(values), len(values[0])
    side = min(_GRID / max(height, width), 22.0)
    shapes: list[Shape] = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            square = (j * side, i * side, side - 1, side - 1)
            shapes += [charts.rect(*square, "cell"), charts.rect(*square, f"on {css}", opacity(value))]
    return charts.chart(shapes, height * side, "", "", width * side)


def opacity(value: float) -> float:
    """The opacity of a change in [0, 1]; the smallest change is still visible."""
    return 0.25 + 0.75 * min(1.0, value) if value > 0 else 0.0


def _changes(count: int, data: Data) -> str:
    total = math.prod(data["output"])
    outputs = "output positions" if len(data["output"]) == 2 else "examined outputs"
    return f"changes {count} of {total} {outputs}"


def _pattern(data: Data) -> str:
    pattern, output = data["pattern"], data["output"]
    measured = f"Measured at all {len(data['places'])} positions"
    if len(output) == 1:
        return f"{measured}. The output is a vector, so its values have no position."
    if pattern is None:
        return f"{measured}. The output has only {output[0]}×{output[1]} positions, so pixels share output positions."
    if not pattern["same_everywhere"]:
        return f"{measured}: the pattern of changed outputs is not the same for every pixel."
    if len(pattern["offsets"]) == 1:
        return f"{measured}: each pixel changes the output at its own position only."
    return f"{measured}: each pixel changes the same pattern of outputs around it, except beyond the border."


# 2: the order -----------------------------------------------------------------------------------------------


class WeightOrderView(NamedTuple):
    """View 2: SVG of the row and of the filter of the first neuron, and texts for the selected element."""

    row: str
    filter: str
    nearby: list[list[str]]
    explanation: str
    step: int
    last: int
    neurons: int
    formula: str
    shown: str


def weight_order_view(data: Data) -> WeightOrderView:
    """View 2 for the first neuron, with an element of the second channel selected if there is one."""
    row, at, index = data["row"][0], data["at"], data["index"]
    limit = max((abs(v) for v in row), default=0.0) or 1.0
    step = min(len(index) - 1, math.prod(data["shown"][1:]) + data["shown"][2] + 1)
    strip: list[Shape] = [charts.rect(k, 0, 1, 10, _sign(v), abs(v) / limit) for k, v in enumerate(row)]
    strip.append(charts.rect(step, 0, 1, 10, "here"))
    block, shown = data["block"], data["shown"]
    part = "all of its" if shown == block else f"channels 0 to {shown[0] - 1} of its"
    corner = "" if shown[1:] == block[1:] else f", {shown[1]}×{shown[2]} positions of each"
    return WeightOrderView(
        row=to_inline_svg(
            Scene("row", len(row), 10, "", "", tuple(strip)), "strip", {"preserveAspectRatio": "none"}
        ),
        filter=_tiles(data["filter"][0], at, shown, limit, step),
        nearby=_nearby(data, step),
        explanation=_explanation(data, step),
        step=step,
        last=len(index) - 1,
        neurons=data["neurons"],
        formula=formula(data["order"], block),
        shown=f"{part} {block[0]} channels{corner}, {len(index)} of {math.prod(block)} weights",
    )


def _explanation(data: Data, step: int) -> str:
    index, (c, y, x) = data["index"][step], data["at"][step]
    comparison = f"Both values are {weight(data['row'][0][step])}."
    if data["row"][0][step] != data["filter"][0][step]:
        comparison = (
            f"The values differ: {weight(data['row'][0][step])} and {weight(data['filter'][0][step])}."
        )
    return f"Element {index} of the row is channel {c}, row {y}, column {x} of the filter. {comparison}"


def formula(order: Sequence[int], block: Sequence[int]) -> str:
    """The index of an element of the row, computed from its position in the filter.

    >>> formula((0, 1, 2), (512, 7, 6)), formula((1, 2, 0), (512, 7, 6))
    ('(c·7 + y)·6 + x', '(y·6 + x)·512 + c')
    """
    names = [("c", "y", "x")[axis] for axis in order]
    sizes = [block[axis] for axis in order]
    return f"({names[0]}·{sizes[1]} + {names[1]})·{sizes[2]} + {names[2]}"


def _sign(value: float) -> str:
    return "negative" if value < 0 else "positive"


def _tiles(
    values: Sequence[float], at: Sequence[Sequence[int]], shown: Sequence[int], limit: float, step: int
) -> str:
    """The channels of the filter side by side, each a grid; squares are in the order of the row, `step` is framed."""
    channels, height, width = shown
    gap = 0 if height * width == 1 else 6
    side = 12.0 if width <= 7 else max(5.0, 90 / width)
    columns = _columns(channels, width * side + gap)
    margin = 2  # for the frame
    squares = [
        (
            margin + (c % columns) * (width * side + gap) + x * side,
            margin + (c // columns) * (height * side + gap) + y * side,
            side - 1,
            side - 1,
        )
        for c, y, x in at
    ]
    shapes: list[Shape] = [
        charts.rect(*square, _sign(value) + (" ahead" if k > step else ""), abs(value) / limit)
        for k, (value, square) in enumerate(zip(values, squares, strict=True))
    ]
    shapes.append(charts.rect(*squares[step], "here"))
    wide = columns * (width * side + gap) + 3
    high = -(-channels // columns) * (height * side + gap) + 3
    scene = Scene("filter", wide, high, "", "", tuple(shapes))
    return to_inline_svg(scene, "filter", {"style": f"max-width: {wide:.0f}px"})


def _columns(channels: int, wide: float, room: float = 620) -> int:
    """Tiles per row: as many as fit, distributed evenly over the rows.

    >>> _columns(12, 90), _columns(6, 66)
    (6, 6)
    """
    rows = -(-channels // max(1, int(room // wide)))
    return -(-channels // rows)


def _nearby(data: Data, step: int, around: int = 2) -> list[list[str]]:
    """For the elements around `step`: index, value in the row, position, value in the filter."""
    table = []
    for k in range(step - around, step + around + 1):
        if 0 <= k < len(data["index"]):
            position = f"({', '.join(str(n) for n in data['at'][k])})"
            cells = (weight(data["row"][0][k]), position, weight(data["filter"][0][k]))
            table.append([str(data["index"][k]), *cells])
        else:
            table.append(["", "", "", ""])
    return table


def weight(value: float) -> str:
    """A weight to five digits, with a minus sign in place of a hyphen.

    >>> weight(-0.012345678)
    '−0.012346'
    """
    return f"{value:.5g}".replace("-", "−")


# 3: the size ------------------------------------------------------------------------------------------------

_MEASURES = {
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "bytes": "bytes moved",
    "seconds": "time, in seconds",
}


_WIDTH = 256.0  # of a chart, in pixels: four fit in a row


class CostChart(NamedTuple):
    """One chart of view 3: which cost it shows, its name, and its SVG element."""

    key: str
    name: str
    html: str


def cost_counts(figures: Data, side: int) -> dict[str, dict[str, int]]:
    """The exact counts on a map of side×side positions, by measure and role (no bias, float32; see laws.cost)."""
    c, o, size = figures["channels"], figures["outputs"], (side, side)
    by_role = {
        "pointwise": cost.pointwise(1, c, o, size, bias=False),
        "connected": cost.flatten_linear(1, c, size, o, bias=False),
    }
    return {
        "parameters": {role: f.parameters for role, f in by_role.items()},
        "macs": {role: f.macs for role, f in by_role.items()},
        "bytes": {role: f.bytes_moved for role, f in by_role.items()},
    }


def cost_charts(row: Data) -> list[CostChart]:
    """The charts of D5, with their cursor at a map of 7×7."""
    figures = row["figures"]
    counts = [cost_counts(figures, n) for n in range(1, SIDES + 1)]
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {
        key: {role: [(n, c[key][role]) for n, c in enumerate(counts, 1)] for role in counts[0][key]}
        for key in counts[0]
    }
    table = figures.get("times", {}).get("table", [])
    curves["seconds"] = {
        role: [(math.sqrt(math.prod(r["size"])), r["seconds"][role]["median"]) for r in table]
        for role in ("pointwise", "connected")
    }
    return [
        _cost_chart(key, name, curves[key]) for key, name in _MEASURES.items() if curves[key]["pointwise"]
    ]


def _cost_chart(key: str, name: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> CostChart:
    values = [v for points in curves.values() for _, v in points]
    x = Scale(1, SIDES, 46, _WIDTH - 8, log=True)
    low, high = min(values), max(values)
    y = Scale(low / 1.6, high * 1.6, 190, 14, log=True)
    shapes = charts.axes(x, y, "positions per side", "", (1, 4, 16, 64))
    for role, points in curves.items():
        pixels = [(x.at(n), y.at(v)) for n, v in points]
        shapes.append(charts.polyline(pixels, f"line c-{role}"))
        if key == "seconds":
            shapes += [charts.dot(*p, f"c-{role} hollow", 4) for p in pixels]
    cursor = x.at(7)
    shapes.append(charts.line(cursor, y.end, cursor, y.start, "cursor"))
    for role, points in curves.items():
        here = [v for n, v in points if n == 7]
        shapes.append(charts.dot(cursor, y.at(here[0]) if here else y.start, f"c-{role} here", 5))
    ends = "; ".join(
        f"{role_name(role, {})} from {number(points[0][1])} to {number(points[-1][1])}"
        for role, points in curves.items()
    )
    label = f"{name} over the positions per side, both axes logarithmic. {ends}"
    scale = f"{x.start:g} {x.end:g} {SIDES} {y.start:g} {y.end:g} {y.low!r} {y.high!r}"
    scene = Scene("cost", _WIDTH, 226, label, "", tuple(shapes))
    svg = to_inline_svg(scene, "chart cost", {"data-measure": key, "data-scale": scale})
    return CostChart(key, name, svg)

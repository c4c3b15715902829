"""The three interactive views, as they stand before anyone touches them, and on paper.

The page's JavaScript moves what is drawn here; it finds the same plain data in the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onebyone.laws import cost
from onebyone.report import charts
from onebyone.report.charts import Scale
from onebyone.report.claim_figures import ROLES, role_name
from onebyone.report.number_format import number

Data = Mapping[str, Any]
SIDES = 64
"""The largest map of the view of costs, places per side."""
_GRID = 156.0  # pixels of a map's longer side


# 1: the pixel -----------------------------------------------------------------------------------------------


class Mover(NamedTuple):
    """One layer: its input, to be dragged over, its output, and the words beneath."""

    role: str
    name: str
    layer: str
    input: str
    output: str
    place: int
    last: int
    where: str
    result: str
    pattern: str


def movers(row: Data) -> list[Mover]:
    """The layers of D1, the pixel in the middle of each."""
    found = row["pictures"].get("influence", {})
    return [_mover(role, found[role], row["figures"][role]) for role in ROLES if role in found]


def _mover(role: str, data: Data, figures: Data) -> Mover:
    rows = sorted({y for y, _ in data["places"]})
    columns = sorted({x for _, x in data["places"]})
    place = (len(rows) // 2) * len(columns) + len(columns) // 2
    y, x = data["places"][place]
    output = data["output"]
    amounts = dict(zip(data["moved"][place], data["amount"][place], strict=True))
    height, width = output if len(output) == 2 else (output[0], 1)
    strong = [[amounts.get(i * width + j, 0.0) for j in range(width)] for i in range(height)]
    wide = len(columns)
    picked = [[float(i * wide + j == place) for j in range(wide)] for i in range(len(rows))]
    return Mover(
        role=role,
        name=role_name(role, figures),
        layer=f"{figures['layer']}, {figures['origin']}" if figures["layer"] else str(figures["origin"]),
        input=_squares(picked, "picked"),
        output=_squares(strong, f"c-{role}"),
        place=place,
        last=len(data["places"]) - 1,
        where=f"row {y}, column {x}",
        result=_moves(len(amounts), data),
        pattern=_pattern(data),
    )  # fmt: skip


def _squares(values: Sequence[Sequence[float]], css: str) -> str:
    """A grid of squares in an SVG of its own, one over the other: the outline, and the strength."""
    height, width = len(values), len(values[0])
    side = min(_GRID / max(height, width), 22.0)
    parts = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            place = (j * side, i * side, side - 1, side - 1)
            parts.append(charts.rect(*place, "cell"))
            parts.append(charts.rect(*place, f"on {css}", f' fill-opacity="{opacity(value):.2g}"'))
    size = f"{width * side:.5g} {height * side:.5g}"
    wide, high = size.split()
    return (
        f'<svg viewBox="0 0 {size}" width="{wide}" height="{high}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def opacity(value: float) -> float:
    """How strongly a change in [0, 1] is drawn: seen from the least on."""
    return 0.25 + 0.75 * min(1.0, value) if value > 0 else 0.0


def _moves(count: int, data: Data) -> str:
    total = math.prod(data["output"])
    what = "output places" if len(data["output"]) == 2 else "outputs examined"
    return f"moves {count} of {total} {what}"


def _pattern(data: Data) -> str:
    pattern, output = data["pattern"], data["output"]
    measured = f"Measured at all {len(data['places'])} places"
    if len(output) == 1:
        return f"{measured}. The outputs have no place: there is nothing that could move along."
    if pattern is None:
        return f"{measured}. The output has {output[0]}×{output[1]} places, so it cannot follow every pixel."
    if not pattern["same_everywhere"]:
        return f"{measured}: not every pixel moves the same pattern."
    what = (
        "moves its own place alone"
        if len(pattern["offsets"]) == 1
        else "moves the same pattern, cut at the border"
    )
    return f"{measured}: each {what}, so that one support says it all."


# 2: the order -----------------------------------------------------------------------------------------------


class Folding(NamedTuple):
    """The row and the filter of the first neuron, and the words for the element that is picked."""

    row: str
    filter: str
    near: list[list[str]]
    said: str
    step: int
    last: int
    neurons: int
    formula: str
    shown: str


def folding(data: Data) -> Folding:
    """Drawn for the first neuron, at an element of the second channel where there is one."""
    row, at, index = data["row"][0], data["at"], data["index"]
    limit = max((abs(v) for v in row), default=0.0) or 1.0
    step = min(len(index) - 1, math.prod(data["shown"][1:]) + data["shown"][2] + 1)
    strip = "".join(
        charts.rect(k, 0, 1, 10, _sign(v), f' fill-opacity="{abs(v) / limit:.2g}"') for k, v in enumerate(row)
    )
    cursor = charts.rect(step, 0, 1, 10, "here")
    block, shown = data["block"], data["shown"]
    part = "all of its" if shown == block else f"channels 0 to {shown[0] - 1} of its"
    corner = "" if shown[1:] == block[1:] else f", {shown[1]}×{shown[2]} places of each"
    return Folding(
        row=f'<svg class="strip" viewBox="0 0 {len(row)} 10" preserveAspectRatio="none" aria-hidden="true">'
        f"{strip}{cursor}</svg>",
        filter=_tiles(data["filter"][0], at, shown, limit, step),
        near=_near(data, step),
        said=_said(data, step),
        step=step,
        last=len(index) - 1,
        neurons=data["neurons"],
        formula=formula(data["order"], block),
        shown=f"{part} {block[0]} channels{corner}, {len(index)} of {math.prod(block)} weights",
    )


def _said(data: Data, step: int) -> str:
    index, (c, y, x) = data["index"][step], data["at"][step]
    held = f"Both hold {weight(data['row'][0][step])}."
    if data["row"][0][step] != data["filter"][0][step]:
        held = f"They differ: {weight(data['row'][0][step])} and {weight(data['filter'][0][step])}."
    return f"Element {index} of the row is channel {c}, row {y}, column {x} of the filter. {held}"


def formula(order: Sequence[int], block: Sequence[int]) -> str:
    """The index of an element of the row, from its place in the filter.

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
    """The filter's channels side by side, each a grid; squares in the order of the row, a frame about `step`."""
    channels, height, width = shown
    gap = 0 if height * width == 1 else 6
    side = 12.0 if width <= 7 else max(5.0, 90 / width)
    columns = _columns(channels, width * side + gap)
    parts = []
    places = [
        (
            (c % columns) * (width * side + gap) + x * side,
            (c // columns) * (height * side + gap) + y * side,
            side - 1,
            side - 1,
        )
        for c, y, x in at
    ]
    for k, (value, place) in enumerate(zip(values, places, strict=True)):
        css = _sign(value) + (" ahead" if k > step else "")
        parts.append(charts.rect(*place, css, f' fill-opacity="{abs(value) / limit:.2g}"'))
    wide = columns * (width * side + gap) + 3
    high = -(-channels // columns) * (height * side + gap) + 3
    return (
        f'<svg class="filter" viewBox="-2 -2 {wide:.5g} {high:.5g}" style="max-width: {wide:.0f}px" '
        f'aria-hidden="true">{"".join(parts)}{charts.rect(*places[step], "here")}</svg>'
    )


def _columns(channels: int, wide: float, most: float = 620) -> int:
    """Tiles in a row: as many as there is room for, shared evenly among the rows.

    >>> _columns(12, 90), _columns(6, 66)
    (6, 6)
    """
    rows = -(-channels // max(1, int(most // wide)))
    return -(-channels // rows)


def _near(data: Data, step: int, around: int = 2) -> list[list[str]]:
    """For the elements about `step`: index, the row's number, the place, the filter's number."""
    table = []
    for k in range(step - around, step + around + 1):
        if 0 <= k < len(data["index"]):
            place = f"({', '.join(str(n) for n in data['at'][k])})"
            numbers = (weight(data["row"][0][k]), place, weight(data["filter"][0][k]))
            table.append([str(data["index"][k]), *numbers])
        else:
            table.append(["", "", "", ""])
    return table


def weight(value: float) -> str:
    """A weight to five digits, the minus as it is written.

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


_WIDTH = 256.0  # of a chart, in pixels: four stand in a row


class CostChart(NamedTuple):
    """One chart of the view of costs: its name, drawing, and what it is: a formula or a measurement."""

    key: str
    name: str
    html: str


def counted(figures: Data, side: int) -> dict[str, dict[str, int]]:
    """The exact counts on a map of side×side places, by measure and role (no bias, float32): laws/cost.py."""
    c, o, size = figures["channels"], figures["outputs"], (side, side)
    found = {
        "pointwise": cost.pointwise(1, c, o, size, bias=False),
        "connected": cost.flatten_linear(1, c, size, o, bias=False),
    }
    return {
        "parameters": {role: f.parameters for role, f in found.items()},
        "macs": {role: f.macs for role, f in found.items()},
        "bytes": {role: f.bytes_moved for role, f in found.items()},
    }


def costs(row: Data) -> list[CostChart]:
    """The charts of D5, their cursor at a map of 7×7."""
    figures = row["figures"]
    counts = [counted(figures, n) for n in range(1, SIDES + 1)]
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {
        key: {role: [(n, c[key][role]) for n, c in enumerate(counts, 1)] for role in counts[0][key]}
        for key in counts[0]
    }
    table = figures.get("times", {}).get("table", [])
    curves["seconds"] = {
        role: [(math.sqrt(math.prod(r["size"])), r["seconds"][role]["median"]) for r in table]
        for role in ("pointwise", "connected")
    }
    return [_cost(key, name, curves[key]) for key, name in _MEASURES.items() if curves[key]["pointwise"]]


def _cost(key: str, name: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> CostChart:
    values = [v for points in curves.values() for _, v in points]
    x = Scale(1, SIDES, 46, _WIDTH - 8, log=True)
    low, high = min(values), max(values)
    y = Scale(low / 1.6, high * 1.6, 190, 14, log=True)
    parts = [charts.axes(x, y, "places per side", "", (1, 4, 16, 64))]
    for role, points in curves.items():
        placed = [(x.at(n), y.at(v)) for n, v in points]
        parts.append(charts.polyline(placed, f"line c-{role}"))
        if key == "seconds":
            parts += [charts.dot(*p, f"c-{role} hollow", 4) for p in placed]
    at = x.at(7)
    parts.append(charts.line(at, y.end, at, y.start, "cursor"))
    for role, points in curves.items():
        here = [v for n, v in points if n == 7]
        parts.append(charts.dot(at, y.at(here[0]) if here else y.start, f"c-{role} here", 5))
    ends = "; ".join(
        f"{role_name(role, {})} from {number(points[0][1])} to {number(points[-1][1])}"
        for role, points in curves.items()
    )
    label = f"{name} over the places per side, both axes logarithmic. {ends}"
    html = charts.drawing("".join(parts), 226, label, "chart cost", _WIDTH)
    scale = f'data-scale="{x.start:g} {x.end:g} {SIDES} {y.start:g} {y.end:g} {y.low!r} {y.high!r}"'
    return CostChart(key, name, html.replace("<svg ", f'<svg data-measure="{key}" {scale} ', 1))

"""A figure for each claim that a picture explains better than words, drawn from the plain data of its row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onebyone.drawing.number_format import counted, number, percent
from onebyone.drawing.scene import Rectangle, Shape
from onebyone.records import by
from onebyone.report import charts
from onebyone.report.charts import Series
from onebyone.report.figure_text import ClaimFigure, plain
from onebyone.report.form_figures import predictions_figure, proof_figure, sizes_figure, training_figure

Data = Mapping[str, Any]
NAMES = {"pointwise": "1×1 convolution", "connected": "fully connected", "pooled": "global pool + FC"}
ROLES = ("pointwise", "kernel", "connected", "pooled")
BOUND = "rounding bound"


def claim_figure(row: Data) -> ClaimFigure | None:
    """The figure of a row; None if the claim has none, or was not measured."""
    draw = _BY_ROW.get(row["id"])
    return draw(row["figures"], row["pictures"]) if draw and row["figures"] else None


def role_name(role: str, figures: Data) -> str:
    """The name of a layer's role; a k×k convolution is named by its kernel size."""
    return NAMES.get(role) or str(figures.get("name", role))


def _roles(figures: Data) -> list[tuple[str, Data]]:
    return [(role, figures[role]) for role in ROLES if isinstance(figures.get(role), Mapping)]


def _ratios(rows: Sequence[tuple[str, Sequence[float], str]], quantity: str) -> str:
    """Errors relative to their rounding bounds, as dots on a logarithmic axis."""
    values = "; ".join(f"{name}: {', '.join(number(v) for v in ratios[:4])}" for name, ratios, _ in rows)
    label = f"{quantity}, relative to the {BOUND}, on a logarithmic scale. {values}"
    return charts.dots(rows, label, 1.0, BOUND)


def _weighted_sum(figures: Data, _: Data) -> ClaimFigure:
    rows = []
    for name, css in (("fully connected", "c-connected"), ("pointwise", "c-pointwise")):
        layer = figures[name]
        rows.append((f"{name}: bias subtracted", [plain(layer["superposition_ratio"])], css))
        rows.append((f"{name}: with its bias", [plain(layer["with_bias_ratio"])], css))
    html = _ratios(rows, "Error of superposition")
    return ClaimFigure(
        html, "Left of the vertical line, superposition holds within rounding; right of it, it does not hold."
    )


def _combination(figures: Data, _: Data) -> ClaimFigure:
    rows = [
        (name, f["share_of_all"], percent(f["share_of_all"]), css)
        for name, css in (("fully connected", "c-connected"), ("pointwise", "c-pointwise"))
        for f in (figures[name],)
    ]
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    html = charts.bars(rows, f"Share of the input channels that reach an output channel. {values}", 1.0)
    return ClaimFigure(html, "The share of the input channels that contribute to an output channel.")


def _activation(figures: Data, _: Data) -> ClaimFigure:
    measured = (("collapse_ratio", "without"), ("activation_ratio", f"with {figures['activation']}"))
    rows = [
        (f"{words}: {form}", [plain(figures[key][form])], css)
        for key, words in measured
        for form, css in (("fully connected", "c-connected"), ("pointwise", "c-pointwise"))
    ]  # fmt: skip
    return ClaimFigure(
        _ratios(rows, "Distance of two layers from one matrix"),
        "The distance of two successive layers from the product of their matrices.",
    )


def _flexibility(figures: Data, _: Data) -> ClaimFigure:
    series = [
        Series(f"{name} head", [(p["parameters"], p["accuracy"]) for p in figures["curves"][name]], css)
        for name, css in (("pooled", "c-pointwise"), ("flattened", "c-connected"))
    ]
    values = "; ".join(
        f"{s.name}: " + ", ".join(f"{percent(a)} at {p:,.0f}" for p, a in s.points) for s in series
    )
    label = f"Held-out accuracy over parameters. {values}"
    html = charts.line_chart(
        series, "parameters of the head", "accuracy", label, (True, False), y_range=(0, 1)
    )
    runs = len(figures["curves"]["pooled"][0]["accuracies"])
    return ClaimFigure(html, f"Mean of {counted(runs, 'training run')} on real digits.")


def _scope(figures: Data, pictures: Data) -> ClaimFigure:
    support = pictures["support"]
    roles = [r for r in _roles(figures) if r[0] in support]
    shapes: list[Shape] = []
    values, top = [], 0.0
    for pair in (roles[:2], roles[2:]):
        sides = [_cell_side(support[role]) for role, _ in pair]
        for column, (role, layer) in enumerate(pair):
            x = charts.WIDTH / 2 * column
            name, words = role_name(role, layer), f"{layer['places_reached']} of {layer['places']} positions"
            shapes.append(charts.text(x, top + 14, name, "name", "start"))
            shapes.append(charts.text(x, top + 31, words, "tick", "start"))
            shapes += charts.cells(support[role], x, top + 40, sides[column], f"c-{role}")
            values.append(f"{name}: {words}")
        if pair:
            top += 56 + max(side * len(support[role]) for side, (role, _) in zip(sides, pair, strict=True))
    html = charts.chart(
        shapes, top - 14, f"Which input positions one output position reads. {'; '.join(values)}"
    )
    return ClaimFigure(
        html,
        "The support of the Jacobian: the input positions that the outputs at the middle position (or of the vector) "
        "read.",
    )


def _cell_side(grid: Sequence[Sequence[float]]) -> float:
    """The side of a cell with which the grid fits half the chart."""
    return min(14.0, 132 / max(len(grid), len(grid[0])))


def _share(figures: Data, _: Data) -> ClaimFigure:
    rows = [
        (role_name(role, f), f["share_of_inputs"], percent(f["share_of_inputs"]), f"c-{role}")
        for role, f in _roles(figures)
    ]
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    html = charts.bars(rows, f"Share of the inputs that reach one output. {values}", 1.0)
    return ClaimFigure(html, "The share of the input values that reach one output.")


def _permutation(figures: Data, _: Data) -> ClaimFigure:
    rows = []
    for role, layer in _roles(figures):
        name = role_name(role, layer)
        for key, words in (
            ("along_ratio", "against permuted outputs"),
            ("change_ratio", "against the outputs before"),
            ("undone_ratio", "weights permuted too"),
        ):
            if key in layer:
                rows.append((f"{name}: {words}", [plain(layer[key])], f"c-{role}"))
    return ClaimFigure(
        _ratios(rows, "Change of the outputs when the pixels are permuted"),
        "Left of the vertical line, the outputs agree within rounding.",
    )


def _dimensions(figures: Data, _: Data) -> ClaimFigure:
    sizes = figures["sizes"]
    largest = max(max(s["inputs"], s["outputs"]) for s in sizes)
    smallest = min(min(s["inputs"], s["outputs"]) for s in sizes)
    ends = (max(1.0, smallest / 1.5), largest * 1.5)
    x, y = charts.frame(ends, ends, (True, True), 300)
    ticks = [t for t in (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536) if ends[0] <= t <= ends[1]]
    shapes = charts.axes(x, y, "input channels", "output channels", ticks)
    shapes.append(charts.line(x.at(ends[0]), y.at(ends[0]), x.at(ends[1]), y.at(ends[1]), "mark"))
    css = {"linear": "c-connected", "pointwise": "c-pointwise"}
    shapes += [
        charts.dot(x.at(s["inputs"]), y.at(s["outputs"]), f"{css[s['kind']]} part", 4.5) for s in sizes
    ]
    kinds = (("linear", "linear layers"), ("pointwise", "1×1 convolutions"))
    values = "; ".join(
        f"{words}: {f['reduce']} reduce, {f['expand']} expand, {f['keep']} keep"
        for kind, words in kinds
        for f in (figures[kind],)
    )
    html = charts.chart(shapes, 300, f"Output channels over input channels, one dot per layer. {values}")
    html += charts.legend([(words, css[kind]) for kind, words in kinds])
    return ClaimFigure(
        html,
        "Each dot is a layer of the network. On the diagonal: equal channels in and out; above it, more out.",
    )


def _complexity(figures: Data, _: Data) -> ClaimFigure | None:
    table = figures.get("times", {}).get("table", [])
    if len(table) < 2:
        return None
    forms = {
        "pointwise": ("1×1 convolution", "c-pointwise"),
        "pointwise as linear": ("the same as a linear layer", "c-pointwise dashed"),
        "connected": ("flatten + FC", "c-connected"),
        "connected as convolution": ("the same as an h×w convolution", "c-connected dashed"),
    }
    series = [
        Series(name, [(math.prod(r["size"]), 1e3 * r["seconds"][form]["median"]) for r in table], css)
        for form, (name, css) in forms.items()
        if form in table[0]["seconds"]
    ]
    values = "; ".join(
        f"{s.name}: " + ", ".join(f"{number(v)} ms at {p:g} positions" for p, v in s.points) for s in series
    )
    milliseconds = [v for s in series for _, v in s.points]
    y_range = (min(milliseconds) / 1.5, max(milliseconds) * 1.5)
    label = f"Measured time. {values}"
    html = charts.line_chart(series, "positions of the map", "ms", label, (True, True), y_range=y_range)
    times = figures["times"]
    layer = f"{figures['channels']} input channels, {times['outputs_timed']} output channels"
    return ClaimFigure(
        html,
        f"Medians of {times['repeats']} runs; {layer}, {times['dtype']}, {counted(times['threads'], 'thread')}.",
    )


_USES = {
    "k×k convolution": "c-kernel",
    "1×1 convolution": "c-pointwise",
    "grouped 1×1 convolution": "c-pointwise faint",
    "linear layer on every token or position": "c-connected faint",
    "linear layer on a flattened map": "c-connected",
    "linear layer on a pooled map": "c-pooled",
    "linear layer on a vector": "c-other",
}
"""Classes for the uses of layers that the census distinguishes."""


def _census(figures: Data, _: Data) -> ClaimFigure:
    network, zoo = figures["network"]["uses"], figures.get("zoo") or {}
    stacks = [(of, network, "share in this network") for of in ("parameters", "macs")]
    if zoo.get("uses"):
        stacks += [(of, zoo["uses"], "mean share in the model zoo") for of in ("parameters", "macs")]
    html = _stacked(stacks)
    shown = [use for use in _USES if use in network or use in zoo.get("uses", {})]
    names = [(f"{use} ({network[use]['layers']})" if use in network else use, _USES[use]) for use in shown]
    html += charts.legend(names)
    if zoo:
        rows = [
            (words, zoo[key], f"{zoo[key]}", colour)
            for key, words, colour in (
                ("with_both", "networks with both", "c-other"),
                ("linear_only", "linear layers only", "c-connected"),
                ("pointwise_only", "1×1 convolutions only", "c-pointwise"),
            )
        ]
        values = [f"{name}: {words} of {zoo['networks']}" for name, _, words, _ in rows]
        html += f'<p class="over">Of the {zoo["networks"]} networks of the model zoo:</p>'
        html += charts.bars(rows, f"The model zoo. {'; '.join(values)}", zoo["networks"])
    return ClaimFigure(
        html, "Linear layers and convolutions by their use; in brackets, how many of them this network has."
    )


def _stacked(stacks: Sequence[tuple[str, Data, str]]) -> str:
    """Shares of the parameters or MACs by use, one stacked bar for each (quantity, uses, name of the share)."""
    shapes: list[Shape] = []
    values = []
    for row, (of, uses, share_name) in enumerate(stacks):
        top, left, key = 46.0 * row, 0.0, f"share_of_{of}"
        quantity = of.replace("macs", "MACs")
        shapes.append(charts.text(0, top + 14, f"{quantity}: {share_name}", "name", "start"))
        shapes.append(charts.rect(0, top + 20, charts.WIDTH, 16, "rail"))
        for use in [u for u in _USES if u in uses]:
            share = uses[use][key]
            width = charts.WIDTH * min(1.0, share)
            shapes.append(charts.rect(left, top + 20, max(0.0, width - 1), 16, _USES[use]))
            left += width
            values.append(f"{use}: {percent(share)} of the {quantity} ({share_name})")
    return charts.chart(shapes, 46.0 * len(stacks), f"Uses of the layers. {'; '.join(values)}")


def _shift(figures: Data, pictures: Data) -> ClaimFigure:
    rows = [
        (role_name(role, layer), [plain(e["relative"]) for e in pictures["shift_error"][role]], f"c-{role}")
        for role, layer in _roles(figures)
        if pictures["shift_error"].get(role)
    ]
    if not rows:
        return ClaimFigure("", "On a map of one position there is nothing to shift.")
    values = "; ".join(f"{name}: at most {number(max(errors))}" for name, errors, _ in rows)
    label = f"Change of the outputs in standard deviations, one dot per shift. {values}"
    return ClaimFigure(
        charts.dots(rows, label, 1.0, "one standard deviation"),
        "Difference from the shifted outputs (for vectors: from the outputs before) in standard deviations of the "
        "outputs; one dot per shift.",
    )


def _chain(figures: Data, _: Data) -> ClaimFigure:
    images, kernels = figures["images"], figures["convolution_weights"]
    layers = [{"created": "a created layer"}.get(name, name) or "layer" for name in figures["layers"]]
    rows = [("image", images[0], "c-other")]
    for name, kernel, image in zip(layers, kernels, images[1:], strict=True):
        rows += [(f"{name}, as kernels", kernel, "c-connected"), ("image", image, "c-other")]
    shapes: list[Shape] = []
    steps = []
    for index, (name, shape, css) in enumerate(rows):
        top = 46.0 * index
        shapes.append(Rectangle(0, top, charts.WIDTH, 32, radius=6, css=f"{css} box"))
        shapes.append(charts.text(12, top + 21, _shortened(name), "name", "start"))
        shapes.append(charts.text(charts.WIDTH - 12, top + 21, by(shape), "value", "end"))
        if index + 1 < len(rows):
            shapes.append(charts.text(charts.WIDTH / 2, top + 44, "↓", "tick"))
        steps.append(f"{name} {by(shape)}")
    html = charts.chart(shapes, 46.0 * len(rows), f"The two layers as kernels: {', then '.join(steps)}")
    return ClaimFigure(
        html, "Images (channels × height × width) and kernels (out × in × height × width) of this network."
    )


def _shortened(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _detection(figures: Data, _: Data) -> ClaimFigure | None:
    quality, speed = [], []
    for name in ("unpadded", "padded"):
        measured = figures.get(name)
        if not measured:
            continue
        for method, words, css in (
            ("windows", "every window cropped", "c-connected"),
            ("dense", "one dense pass", "c-pointwise"),
        ):
            precision = measured["average_precision"][method]
            quality.append((f"{name}: {words}", precision, f"{precision:.3f}", css))
        speed.append((f"digits, {name}", measured["speedup"], f"{measured['speedup']:.1f}×", "c-pointwise"))
    network = figures.get("own")
    if network:
        name = f"this network, {network['windows']} windows"
        speed.append((name, network["speedup"], f"{network['speedup']:.1f}×", "c-pointwise"))
    if not speed:
        return None
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in speed)
    html = charts.bars(speed, f"Times as fast as cropping every window. {values}")
    if not quality:  # the budget was spent before
        return ClaimFigure(html, "How many times as fast the dense pass is.")
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in quality)
    above = charts.bars(quality, f"Average precision at IoU 0.5. {values}", 1.0)
    above += '<p class="over">How many times as fast the dense pass is:</p>'
    return ClaimFigure(above + html, "Above: average precision of detecting digits, at IoU 0.5.")


_BY_ROW: dict[str, Callable[[Data, Data], ClaimFigure | None]] = {
    "S1": _weighted_sum, "S2": training_figure, "S3": _activation, "S4": _combination, "S5": _flexibility,
    "D1": _scope, "D2": sizes_figure, "D3": _permutation, "D4": _dimensions, "D5": _complexity, "D6": _census,
    "D7": _shift, "D8": _share, "R1": proof_figure, "R2": _chain, "R3": predictions_figure, "R4": _detection,
}  # fmt: skip

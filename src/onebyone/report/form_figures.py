"""Figures of the claims about both forms of one layer: training, other input sizes, and the replacement itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onebyone.drawing.number_format import number
from onebyone.drawing.scene import Shape
from onebyone.records import by
from onebyone.report import charts
from onebyone.report.charts import Series
from onebyone.report.figure_text import ClaimFigure

Data = Mapping[str, Any]
_SIDE = 34.0  # of the largest map of a row of maps, in pixels
_ROLES = {"pointwise": "1×1 convolution", "connected": "flatten + FC"}


def training_figure(figures: Data, _: Data) -> ClaimFigure:
    """S2: the parameters of both forms, and the loss while they are trained."""
    counts = figures["parameters"]
    rows = [
        (f"parameters: {name}", counts[key], f"{counts[key]:,}", css)
        for key, name, css in (
            ("linear", "fully connected", "c-connected"),
            ("convolution", "1×1 convolution", "c-pointwise"),
        )
    ]
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    html = charts.bars(rows, f"Learnable parameters. {values}")
    losses = figures["losses"]
    if len(losses) < 2:
        return ClaimFigure(html, "The number of learnable parameters of either form.")
    points = [(float(step), float(loss)) for step, loss in enumerate(losses, 1)]
    values = ", ".join(number(loss) for _, loss in points)
    name = "both forms" if figures["weights_equal"] else "fully connected"
    series = [Series(name, points, "c-connected")]
    html += charts.line_chart(series, "optimiser step", "loss", f"Loss at each step: {values}")
    difference = number(figures["largest_difference"])
    return ClaimFigure(
        html,
        f"Parameters of either form, and the loss during {len(losses)} steps. Then the weights of both forms differ by "
        f"at most {difference}.",
    )


def sizes_figure(figures: Data, _: Data) -> ClaimFigure:
    """D2: maps of several sizes, filled where a layer accepts them."""
    sweep = figures["sweep"]
    shapes: list[Shape] = []
    values = []
    for line, (role, name) in enumerate(_ROLES.items()):
        tried = [item for item in sweep if item["role"] == role]
        if not tried:
            continue
        top, pitch = 90.0 * line, charts.WIDTH / len(tried)
        unit = min(_SIDE, pitch - 8) / max(max(item["size"]) for item in tried)
        shapes.append(charts.text(0, top + 12, name, "name", "start"))
        for column, item in enumerate(tried):
            height, width = (max(3.0, n * unit) for n in item["size"][-2:])
            middle, bottom = pitch * (column + 0.5), top + 58
            place = (middle - width / 2, bottom - height, width, height)
            shapes.append(charts.rect(*place, "cell"))
            if item["ran"]:
                unnoticed = role == "connected" and not item["own_size"]
                shapes.append(charts.rect(*place, f"c-{role}", 0.45 if unnoticed else 1.0))
            mark = "✓" if item["ran"] else "✗"
            shapes.append(charts.text(middle, bottom + 14, f"{mark} {by(item['size'])}", "tick"))
        accepted = ", ".join(by(item["size"]) for item in tried if item["ran"])
        values.append(f"{name} accepts {accepted}")
    html = charts.chart(shapes, 90.0 * len(_ROLES) - 12, f"Maps of several sizes. {'; '.join(values)}")
    return ClaimFigure(
        html,
        "Filled maps are accepted, outlined ones raise an error. Pale: another size with as many elements, which is "
        "accepted without an error.",
    )


def proof_figure(figures: Data, _: Data) -> ClaimFigure | None:
    """R1: how many layers were converted, agree on integers, and how many injected faults were noticed."""
    converted, refused = figures["layers_converted"], len(figures["layers_refused"])
    counts = (
        ("layers converted", converted, converted + refused),
        ("share the original weights", figures["weights_shared"], converted),
        ("equal bit for bit on integers", figures["bitwise_equal"], figures["layers_probed"]),
        ("injected faults noticed", figures["planted_faults_caught"], figures["planted_faults"]),
    )
    rows = [
        (name, part / whole, f"{part} of {whole}", "c-pointwise") for name, part, whole in counts if whole
    ]
    if not rows:
        return None
    values = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    return ClaimFigure(
        charts.bars(rows, f"The replacement. {values}", 1.0),
        "The probes are random integers for which every sum is exact, so that equal means equal in every bit. The "
        "faults are wrong weights that the same probes must notice.",
    )


def predictions_figure(figures: Data, _: Data) -> ClaimFigure | None:
    """R3: the windows on a larger image, and the map of predictions, one for each of them."""
    image, window, stride, places = (
        figures.get(key) for key in ("larger_image", "window", "stride", "places")
    )
    if not image or not places or len(image) != 2 or not window or not stride:
        return None
    height, width = image
    unit = min(190 / width, 150 / height)
    top = 24.0
    shapes: list[Shape] = [
        charts.text(0, 12, f"windows of {by(window)}", "name", "start"),
        charts.rect(0, top, width * unit, height * unit, "cell"),
    ]
    for row in range(places[0]):
        for column in range(places[1]):
            y, x = top + row * stride[0] * unit, column * stride[1] * unit
            shapes.append(charts.rect(x, y, window[1] * unit, window[0] * unit, "c-connected", 0.12))
            shapes.append(charts.rect(x, y, window[1] * unit, window[0] * unit, "cell"))
    side = min(24.0, 110 / max(places))
    left = 226.0
    shapes.append(charts.text(left, 12, f"{by(places)} predictions", "name", "start"))
    shapes += charts.cells([[1.0] * places[1]] * places[0], left, top, side, "c-pointwise")
    shapes.append(charts.text(left - 14, top + 16, "→", "tick"))
    bottom = top + max(height * unit, side * places[0]) + 8
    label = f"{by(places)} predictions for the windows of {by(window)} on an image of {by(image)} pixels"
    caption = f"One prediction for each window of an image of {by(image)} pixels."
    if "error" in figures["original_on_larger"]:
        caption += " The original network raises an error there."
    return ClaimFigure(charts.chart(shapes, bottom, label), caption)

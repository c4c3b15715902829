"""The text of the demo's page: every figure explained in plain words, and every picture with its caption."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from onebyone.demo import data, figures, train
from onebyone.demo.average_precision import matched
from onebyone.demo.results import MAX_IOU, MIN_SCORE, REPORT, SHOWN_SCORE, DemoResults
from onebyone.drawing.number_format import superscript
from onebyone.drawing.scene import Scene, Shape
from onebyone.drawing.svg_writer import to_inline_svg
from onebyone.report import charts
from onebyone.report.html import DEMO_TITLE, data_uri
from onebyone.report.html import render as render_template
from onebyone.report.images import jpeg, png


def render(r: DemoResults, summary: dict[str, Any]) -> str:
    """The demo's page: one HTML file that loads nothing else."""
    owner = matched(r.detections, r.page)
    drawn = r.detections.scores >= SHOWN_SCORE
    right = int((owner[drawn] >= 0).sum())
    return render_template(
        "demo.html.j2",
        title=DEMO_TITLE,
        report=REPORT,
        r=r,
        s=summary,
        tiles=tiles(summary),
        rows=figure_rows(r, summary),
        lanes=_lanes(r),
        stages=figures.stages(r.trained.network, _size(r)),
        weights=_weights(r),
        page_picture=data_uri(jpeg(r.page.image), "image/jpeg"),
        page_boxes=figures.boxes(r.page, r.detections, owner, SHOWN_SCORE),
        heats=_heats(r),
        any_digit=figures.heat_over_page(
            r.timed.dense,
            figures.any_digit(r.timed.dense),
            "Probability of any digit over the page, with bright spots in the middle of the digits",
        ),
        spread=figures.SPREAD,
        thumbnail=data_uri(jpeg(r.page.image[::4, ::4], 80), "image/jpeg"),
        samples=data_uri(png(_samples(r))),
        curve=_curve(r),
        claims=_claims(r),
        counts={
            "truth": len(r.page.labels),
            "drawn": int(drawn.sum()),
            "right": right,
            "wrong": int(drawn.sum()) - right,
            "missed": len(r.page.labels) - right,
        },
        test_photographs=data.TEST_PHOTOGRAPHS,
        train_photographs=data.TRAIN_PHOTOGRAPHS,
        near=f"{train.NEAR:g}",
        far=f"{train.FAR:g}",
        thresholds={"scored": MIN_SCORE, "shown": SHOWN_SCORE, "iou": MAX_IOU},
    )


def tiles(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The most important figures: value, name, remark."""
    threads = "one CPU thread" if s["threads"] == 1 else f"{s['threads']} CPU threads"
    return [
        (
            f"{s['speedup_dense_over_windows']:.1f}×",
            "faster than cropping",
            f"{s['windows']:,} windows in {s['seconds_dense']:.2f} s",
        ),
        (
            "bit for bit" if s["integer_probe_bitwise"] else "different",
            "equal on integers",
            "both converted layers",
        ),
        (scientific(s["max_abs_difference"]), "largest difference", "rounding, over all windows"),
        (f"{s['mAP50']:.3f}", "mAP at IoU 0.5", f"{s['digits_on_page']} held-out digits"),
        (f"{100 * s['accuracy']:.1f} %", "accuracy on single digits", "held out from training"),
        (f"{s['seconds']:.0f} s", "total duration", f"on {threads}"),
    ]


def scientific(value: float) -> str:
    """A number to two digits, with a power of ten for small and large ones.

    >>> scientific(1.907e-6), scientific(1.27), scientific(0.0)
    ('1.9 × 10⁻⁶', '1.3', '0')
    """
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} × 10{superscript(int(power))}"


def figure_rows(r: DemoResults, s: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table of figures: what was measured, its value, what it means."""
    ratio = s["speedup_over_mac_ratio"]
    return [
        (
            "Accuracy on held-out digits",
            f"{100 * s['accuracy']:.2f} %",
            f"The network classifies each of the {len(r.trained.test_digits)} held-out digits, alone in a window with "
            "a plain background. The prediction “background” counts as wrong.",
        ),
        (
            "… on held-out photographs",
            f"{100 * s['accuracy_on_photographs']:.2f} %",
            "The same digits, painted over parts of photographs that were not used in training.",
        ),
        (
            "Converted layers, on integers",
            "equal bit for bit" if s["integer_probe_bitwise"] else "different",
            "Both forms were run on integers that are small enough for every sum to be exact. Outputs and gradients "
            "must then agree in every bit. Injected faults, such as a wrong flatten order, were detected.",
        ),
        (
            "Windows on the page",
            f"{s['windows']:,}",
            f"One window of {data.WINDOW}×{data.WINDOW} pixels every {r.converted.geometry.stride[0]} pixels.",
        ),
        (
            "Dense pass equals cropped windows",
            "yes" if s["dense_equals_windows"] else "no",
            f"All {r.timed.dense.scores.size:,} scores of the dense pass were compared with those of the cropped "
            "windows, each against its own bound.",
        ),
        (
            "Largest difference",
            scientific(s["max_abs_difference"]),
            "It is not zero because the two add the same products in a different order, and each addition rounds. "
            f"The predicted class is the same in {100 * s['same_class']:.4g} % of the windows.",
        ),
        (
            "Bound on the difference",
            scientific(s["bound"]),
            "The largest difference that rounding can cause if all errors add up, derived for each score from its "
            "weights and pixels (Higham, 2002); this is the smallest of these bounds. Real errors mostly cancel.",
        ),
        (
            "… in float64",
            f"{scientific(s['float64_max_abs_difference'])}, bound {scientific(s['float64_bound'])}",
            f"The same comparison on {s['float64_windows']:,} of the windows in 53-bit arithmetic, where rounding is "
            "half a billion times smaller, so that no other error could stay below the bound.",
        ),
        (
            "Computation saved",
            f"{s['mac_ratio']:.1f}×",
            f"{s['macs_windows'] / 1e9:,.0f} billion multiply-adds for all windows separately, "
            f"{s['macs_dense'] / 1e9:,.1f} billion for one dense pass including the overlap of tiles: "
            "neighbouring windows share their common part.",
        ),
        (
            "Time saved",
            f"{s['speedup_dense_over_windows']:.1f}×",
            f"{s['seconds_windows']:.2f} s against {s['seconds_dense']:.3f} s, medians of alternating runs. Windows "
            f"were run in the fastest batch size and layout. This is {100 * ratio:.0f} % of the computation saved.",
        ),
        (
            "mAP at IoU 0.5",
            f"{s['mAP50']:.3f}",
            "Mean over the ten digits of the area under the precision–recall curve, by pycocotools, with up to "
            f"{s['maxDets']} detections, so that none is left out.",
        ),
        ("Total duration", f"{s['seconds']:.0f} s", "From loading the data to the last figure."),
    ]


def _size(r: DemoResults) -> tuple[int, int]:
    height, width = r.page.image.shape
    return height, width


def _lanes(r: DemoResults) -> list[dict[str, str]]:
    stages = figures.stages(r.trained.network, _size(r))
    height, width = _size(r)
    rows, columns = r.timed.dense.positions
    return [
        {
            "title": "Before: fully connected",
            "text": f"The input is one window of {data.WINDOW}×{data.WINDOW} pixels, the output {len(data.CLASSES)} "
            "scores. The map is flattened, so the spatial position of each value is lost here.",
            "drawing": figures.diagram(stages, "before"),
        },
        {
            "title": "After: convolutions, on the same window",
            "text": "The first layer is a convolution with a kernel as large as the map, the second a 1×1 convolution. "
            "Weights, products and the eleven scores are the same.",
            "drawing": figures.diagram(stages, "after"),
        },
        {
            "title": "After: on the whole page",
            "text": f"No layer requires an input of {data.WINDOW}×{data.WINDOW} pixels any more. On {height}×{width} "
            f"pixels the output has {rows}×{columns} positions with eleven scores each, one position per window.",
            "drawing": figures.diagram(stages, "page"),
        },
    ]


def _weights(r: DemoResults) -> list[dict[str, Any]]:
    linears = [layer for layer in r.trained.network if isinstance(layer, nn.Linear)]
    kernels = figures.kernels_at_work(r.converted.model)[-len(linears) :]
    names = ("rows", "filters", "one_row", "one_filter")
    pictures = [figures.weight_pictures(*pair) for pair in zip(linears, kernels, strict=True)]
    return [{"it": p, **{name: data_uri(getattr(p, name)) for name in names}} for p in pictures]


def _heats(r: DemoResults) -> list[dict[str, Any]]:
    pictures = figures.heat_maps(r.timed.dense)
    return [
        {
            "name": data.CLASSES[digit],
            "count": int((r.page.labels == digit).sum()),
            "ap": r.score.ap50[data.CLASSES[digit]],
            "drawing": figures.heat_over_page(
                r.timed.dense,
                picture,
                f"Probability of the digit {digit} over the page, with rings around its true positions",
                figures.rings_around(r.page, digit),
            ),
        }
        for digit, picture in enumerate(pictures)
    ]


def _samples(r: DemoResults) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two windows of each digit on the page, in two rows."""
    chosen = [int(np.flatnonzero(r.page.labels == digit)[turn]) for turn in range(2) for digit in range(10)]
    crops = []
    for row in chosen:
        x, y = r.page.boxes[row, :2]
        crops.append(r.page.image[y : y + data.WINDOW, x : x + data.WINDOW])
    lines = [np.concatenate(crops[10 * turn : 10 * turn + 10], axis=1) for turn in range(2)]
    return np.concatenate(lines, axis=0)


def _claims(r: DemoResults) -> list[tuple[str, str, str]]:
    """The claims about replacing the layers, which the demo shows: id, claim and verdict in the report."""
    return [(row.id, row.statement, row.verdict) for row in r.comparison.rows if row.id.startswith("R")]


def _curve(r: DemoResults) -> str:
    """The precision–recall curve, averaged over the classes."""
    precision = r.score.precision.mean(axis=0).tolist()
    left, top, width, height = 44, 12, 300, 190
    shapes: list[Shape] = []
    for value in (0, 0.5, 1):
        y = top + height * (1 - value)
        shapes.append(charts.line(left, y, left + width, y, "grid"))
        shapes.append(charts.text(left - 6, y + 4, f"{value:g}", "tick", "end"))
        shapes.append(charts.text(left + width * value, top + height + 18, f"{value:g}", "tick"))
    shapes.append(charts.text(left + width / 2, top + height + 36, "recall", "tick"))
    shapes.append(charts.text(left + 8, top + height - 8, "precision, mean of ten digits", "tick", "start"))
    points = [(left + width * k / 100, top + height * (1 - p)) for k, p in enumerate(precision)]
    shapes.append(charts.polyline(points, "line"))
    title = f"Precision over recall; the area under the curve is {r.score.mAP50:.3f}"
    return to_inline_svg(
        Scene("curve", left + width + 16, top + height + 44, title, "", tuple(shapes)), "curve"
    )

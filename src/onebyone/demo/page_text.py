"""What the page says: every figure in plain words, every picture with its caption."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from onebyone.demo import data, figures, train
from onebyone.demo.average_precision import matched
from onebyone.demo.run import LEAST, OVERLAP, SHOWN, Results
from onebyone.report.html import data_uri
from onebyone.report.html import render as fill
from onebyone.report.images import jpeg, png, svg, svg_text


def render(r: Results, summary: dict[str, Any]) -> str:
    """The demo's page: one HTML file that loads nothing from elsewhere."""
    owner = matched(r.detections, r.page)
    drawn = r.detections.scores >= SHOWN
    right = int((owner[drawn] >= 0).sum())
    return fill(
        "demo.html.j2",
        r=r,
        s=summary,
        tiles=tiles(summary),
        rows=figure_rows(r, summary),
        lanes=_lanes(r),
        stages=figures.stages(r.trained.network, _size(r)),
        weights=_weights(r),
        page_picture=data_uri(jpeg(r.page.image), "image/jpeg"),
        page_boxes=figures.boxes(r.page, r.detections, owner, SHOWN),
        heats=_heats(r),
        any_digit=figures.heat_over_page(
            r.timed.dense,
            figures.any_digit(r.timed.dense),
            "Probability of any digit over the page: bright spots in the middle of the digits",
        ),
        spread=figures.SPREAD,
        thumbnail=data_uri(jpeg(r.page.image[::4, ::4], 80), "image/jpeg"),
        samples=data_uri(png(_samples(r))),
        curve=_curve(r),
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
        thresholds={"least": LEAST, "shown": SHOWN, "overlap": OVERLAP},
    )


def tiles(s: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that matter most: value, name, remark."""
    threads = "one processor thread" if s["threads"] == 1 else f"{s['threads']} processor threads"
    return [
        (
            f"{s['speedup_dense_over_windows']:.1f}×",
            "faster than cropping",
            f"{s['windows']:,} windows in {s['seconds_dense']:.2f} s",
        ),
        (
            "bit for bit" if s["integer_probe_bitwise"] else "differs",
            "equal on integers",
            "both converted layers",
        ),
        (scientific(s["max_abs_difference"]), "largest difference", "rounding, over all the windows"),
        (f"{s['mAP50']:.3f}", "mAP at IoU 0.5", f"{s['digits_on_page']} held-out digits"),
        (f"{100 * s['accuracy']:.1f} %", "right on single digits", "none of them trained on"),
        (f"{s['seconds']:.0f} s", "for all of this", f"on {threads}"),
    ]


def scientific(value: float) -> str:
    """A number to two figures, small ones by a power of ten.

    >>> scientific(1.907e-6), scientific(1.27), scientific(0.0)
    ('1.9 × 10⁻⁶', '1.3', '0')
    """
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits} × 10{raised}"


def figure_rows(r: Results, s: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table: what was measured, its value, what it means."""
    ratio = s["speedup_over_mac_ratio"]
    return [
        (
            "Accuracy on held-out digits",
            f"{100 * s['accuracy']:.2f} %",
            f"Each of the {len(r.trained.test_digits)} digits that were never trained on, alone in a window of plain "
            "paper. An answer of “background” counts as wrong.",
        ),
        (
            "… laid on held-out photographs",
            f"{100 * s['accuracy_on_photographs']:.2f} %",
            "The same digits painted over pieces of photographs that were never trained on.",
        ),
        (
            "Converted layers, on integers",
            "equal bit for bit" if s["integer_probe_bitwise"] else "different",
            "Both forms were given whole numbers small enough that no sum is ever rounded. "
            "Then every bit must agree, in the answers and in the gradients; it did, and planted faults were seen.",
        ),
        (
            "Windows on the page",
            f"{s['windows']:,}",
            f"One every {r.converted.geometry.stride[0]} pixels, {data.WINDOW}×{data.WINDOW} pixels each.",
        ),
        (
            "Dense equals windows",
            "yes" if s["dense_equals_windows"] else "no",
            f"All {r.timed.dense.scores.size:,} scores of the dense pass against those of every cropped window, "
            "each within its own bound.",
        ),
        (
            "Largest difference",
            scientific(s["max_abs_difference"]),
            "Not zero, because the two add up the same products in different orders, and each addition rounds. "
            f"The best class is the same in {100 * s['same_class']:.4g} % of the windows.",
        ),
        (
            "Bound on the difference",
            scientific(s["bound"]),
            "What rounding could do at worst, if every error in every layer pushed one way: derived for each score "
            "from its own weights and pixels (Higham, 2002); this is the smallest. Real errors mostly cancel.",
        ),
        (
            "… the same in float64",
            f"{scientific(s['float64_max_abs_difference'])}, bound {scientific(s['float64_bound'])}",
            f"On {s['float64_windows']:,} of the windows with 53-bit numbers, where rounding is half a billion times "
            "smaller: nothing but rounding could hide under this bound.",
        ),
        (
            "Work saved",
            f"{s['mac_ratio']:.1f}×",
            f"{s['macs_windows'] / 1e9:,.0f} billion multiply-adds for all windows apart, "
            f"{s['macs_dense'] / 1e9:,.1f} billion for one dense pass, tiles and all: "
            "neighbours share what they have in common.",
        ),
        (
            "Time saved",
            f"{s['speedup_dense_over_windows']:.1f}×",
            f"{s['seconds_windows']:.2f} s against {s['seconds_dense']:.3f} s, medians of runs taken in turn, with "
            f"windows in the batch size and layout that ran fastest here: {100 * ratio:.0f} % of the work saved.",
        ),
        (
            "mAP at IoU 0.5",
            f"{s['mAP50']:.3f}",
            "Mean over the ten digits of the area under the precision–recall curve, by pycocotools; "
            f"up to {s['maxDets']} detections looked at, so that none is cut off.",
        ),
        ("Seconds in all", f"{s['seconds']:.0f}", "From the first digit read to the last figure."),
    ]


def _size(r: Results) -> tuple[int, int]:
    height, width = r.page.image.shape
    return height, width


def _lanes(r: Results) -> list[dict[str, str]]:
    found = figures.stages(r.trained.network, _size(r))
    height, width = _size(r)
    rows, columns = r.timed.dense.positions
    return [
        {
            "title": "Before: fully connected",
            "text": f"One window of {data.WINDOW}×{data.WINDOW} pixels in, {len(data.CLASSES)} scores out. "
            "The map is flattened, and from there on no number knows where it came from.",
            "drawing": figures.diagram(found, "before"),
        },
        {
            "title": "After: convolutions, on the same window",
            "text": "The first layer is a convolution as large as the map, the second a 1×1 convolution. "
            "The same weights, the same products, the same eleven scores.",
            "drawing": figures.diagram(found, "after"),
        },
        {
            "title": "After: on the whole page",
            "text": f"Nothing in it asks for {data.WINDOW}×{data.WINDOW} any more. On {height}×{width} pixels it gives "
            f"{rows}×{columns} places with eleven scores each: one place for every window.",
            "drawing": figures.diagram(found, "page"),
        },
    ]


def _weights(r: Results) -> list[dict[str, Any]]:
    linears = [layer for layer in r.trained.network if isinstance(layer, nn.Linear)]
    kernels = figures.kernels_at_work(r.converted.model)[-len(linears) :]
    shown = []
    for linear, kernel in zip(linears, kernels, strict=True):
        twice = figures.weights_twice(linear, kernel)
        shown.append(
            {
                "it": twice,
                **{
                    name: data_uri(getattr(twice, name))
                    for name in ("rows", "filters", "one_row", "one_filter")
                },
            }
        )
    return shown


def _heats(r: Results) -> list[dict[str, Any]]:
    pictures = figures.heat_maps(r.timed.dense)
    return [
        {
            "name": data.CLASSES[digit],
            "count": int((r.page.labels == digit).sum()),
            "ap": r.score.ap50[data.CLASSES[digit]],
            "drawing": figures.heat_over_page(
                r.timed.dense,
                picture,
                f"Probability of the digit {digit} over the page, with rings where it truly is",
                figures.rings_around(r.page, digit),
            ),
        }
        for digit, picture in enumerate(pictures)
    ]


def _samples(r: Results) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two of each held-out digit on the page, as the network sees them, in a strip."""
    chosen = [int(np.flatnonzero(r.page.labels == digit)[turn]) for turn in range(2) for digit in range(10)]
    crops = []
    for row in chosen:
        x, y = r.page.boxes[row, :2]
        crops.append(r.page.image[y : y + data.WINDOW, x : x + data.WINDOW])
    lines = [np.concatenate(crops[10 * turn : 10 * turn + 10], axis=1) for turn in range(2)]
    return np.concatenate(lines, axis=0)


def _curve(r: Results) -> str:
    """Precision over recall, the mean of the classes: a small drawing."""
    mean = r.score.precision.mean(axis=0)
    left, top, width, height = 44, 12, 300, 190
    points = " ".join(
        f"{left + width * k / 100:.1f},{top + height * (1 - p):.1f}" for k, p in enumerate(mean.tolist())
    )
    levels = {v: top + height * (1 - v) for v in (0, 0.5, 1)}
    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:g}" y2="{y:g}"/>'
        + svg_text(left - 6, y + 4, f"{v:g}", "tick", "end")
        for v, y in levels.items()
    )
    ticks = "".join(svg_text(left + width * v, top + height + 18, f"{v:g}", "tick") for v in (0, 0.5, 1))
    words = svg_text(left + width / 2, top + height + 36, "recall", "tick") + svg_text(
        left + 8, top + height - 8, "precision, mean of ten digits", "tick", "start"
    )
    line = f'<polyline class="line" points="{points}"/>'
    return svg(
        grid + ticks + words + line,
        left + width + 16,
        top + height + 44,
        f"Precision over recall; its area is {r.score.mAP50:.3f}",
        "curve",
    )

"""The figures of the demo: the network before and after, its weights in both forms, heat maps, and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.demo.data import BACKGROUND, WINDOW
from onebyone.demo.digit_page import DigitPage
from onebyone.dense import ScoreMap
from onebyone.detection import Detections
from onebyone.drawing.scene import (
    RISE,
    SLANT,
    Circle,
    Polygon,
    RasterImage,
    Rectangle,
    Scene,
    Shape,
    ShapeGroup,
    Text,
)
from onebyone.drawing.svg_writer import to_inline_svg
from onebyone.report.images import png, signed, strength, tiled
from onebyone.verification.calls import observe_functions

HEAT = (255, 138, 30)
WIDTH = 1120.0
"""Of a diagram, in its own units."""
SPREAD = 7
"""Positions, in height and width, over which a small heat map spreads each probability."""


@dataclass(frozen=True)
class Stage:
    """One map of the network: the operation that computes it, before and after the conversion, and its sizes.

    `window` and `page` are its height and width for one window and for the whole page; `connected` is true for the
    output of a fully connected layer.
    """

    operation: str
    after: str
    channels: int
    window: tuple[int, int]
    page: tuple[int, int]
    connected: bool


def stages(network: nn.Sequential, page: tuple[int, int]) -> list[Stage]:
    """The network's maps in order, from the image on; activations are omitted because they change no shape."""
    window = (WINDOW, WINDOW)
    result = [Stage("image", "image", 1, window, page, connected=False)]
    for layer in network:
        last = result[-1]
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride = _square(layer.kernel_size), _square(layer.stride)
            is_pool = isinstance(layer, nn.MaxPool2d)
            name = f"{'max-pool' if is_pool else 'conv'} {kernel}×{kernel}"
            name += f", stride {stride}" if stride > 1 else ""
            channels = last.channels if is_pool else int(layer.out_channels)  # type: ignore[arg-type]
            sizes = [
                ((h - kernel) // stride + 1, (w - kernel) // stride + 1) for h, w in (last.window, last.page)
            ]
            result.append(Stage(name, name, channels, sizes[0], sizes[1], connected=False))
        elif isinstance(layer, nn.Linear):
            h, w = last.window
            name = f"FC {layer.in_features} → {layer.out_features}"
            positions = (last.page[0] - h + 1, last.page[1] - w + 1)
            result.append(Stage(name, f"conv {h}×{w}", layer.out_features, (1, 1), positions, connected=True))
    return result


def _square(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def diagram(maps: Sequence[Stage], form: str) -> str:
    """The network as a row of maps: `form` is "before", "after" (both on one window) or "page" (after, on the page)."""
    before = form == "before"
    middle = 84.0 if before else 48.0
    columns = len(maps) + before  # before the conversion, the flattened map is one more column
    columns_drawn: list[tuple[str, str, str, tuple[Shape, ...]]] = []  # operation, shape, class, drawing
    for index, stage in enumerate(maps):
        if before and stage.connected and not maps[index - 1].connected:
            x = _column(len(columns_drawn), columns)
            flat = Rectangle(x - 3, middle - 76, 6, 152, css="vector flat")
            columns_drawn.append(("flatten", str(_elements(maps[index - 1])), "flat", (flat,)))
        css = "connected" if stage.connected else ""
        drawing = _map(stage, form, _column(len(columns_drawn), columns), middle)
        operation = stage.operation if before else stage.after
        columns_drawn.append((operation, _shape(stage, form), css, drawing))
    shapes: list[Shape] = []
    for number, (operation, label, css, drawing) in enumerate(columns_drawn):
        x, low = _column(number, columns), middle + (98 if before else 68)
        shapes += [*drawing, _text(x, low, label, f"shape {css}")]
        if number:
            shapes.append(_text(x, low + 19, operation, f"operation {css}"))
    steps = ", ".join(f"{operation} to {label}" for operation, label, _, _ in columns_drawn[1:])
    title = f"The network from an image of {columns_drawn[0][1]}: {steps}"
    return _svg(shapes, WIDTH, middle + (126 if before else 96), title, "lane")


def _svg(shapes: Sequence[Shape], width: float, height: float, title: str, css: str) -> str:
    return to_inline_svg(Scene(css, width, height, title, "", tuple(shapes)), css)


def _text(x: float, y: float, words: str, css: str, anchor: str = "middle") -> Text:
    return Text(x, y, words, anchor=anchor, css=css)


def _column(number: int, columns: int) -> float:
    """The middle of a column of the diagram."""
    return (number + 0.5) * WIDTH / columns


def _elements(stage: Stage) -> int:
    return stage.channels * stage.window[0] * stage.window[1]


def _shape(stage: Stage, form: str) -> str:
    if form == "before" and stage.connected:
        return str(stage.channels)
    height, width = stage.page if form == "page" else stage.window
    return f"{stage.channels} × {height} × {width}"


def _map(stage: Stage, form: str, x: float, middle: float) -> tuple[Shape, ...]:
    """A map around (x, middle); lengths grow with the square root of sizes and channels."""
    css = "connected" if stage.connected else ""
    if form == "before" and stage.connected:
        tall = 6 + 9 * stage.channels**0.5
        return (Rectangle(x - 5, middle - tall / 2, 10, tall, css=f"vector {css}"),)
    (height, width), scale = (stage.page, 2.0) if form == "page" else (stage.window, 9.5)
    tall, wide = (max(6.0, scale * side**0.5) for side in (height, width))
    depth = 3 + 4.5 * stage.channels**0.5
    left, top = x - (wide + SLANT * depth) / 2, middle - (tall - RISE * depth) / 2
    return (_box(left, top, wide, tall, depth, f"box {css}"),)


def _box(x: float, y: float, width: float, height: float, depth: float, css: str) -> ShapeGroup:
    """A box; (x, y) is the upper left corner of its front."""
    dx, dy = depth * SLANT, -depth * RISE
    right, low = x + width, y + height
    top = ((x, y), (x + dx, y + dy), (right + dx, y + dy), (right, y))
    side = ((right, y), (right + dx, y + dy), (right + dx, low + dy), (right, low))
    front = Rectangle(x, y, width, height, css="front")
    return ShapeGroup("box", "", (Polygon(top, css="top"), Polygon(side, css="side"), front), css)


def kernels_at_work(dense: nn.Module) -> list[torch.Tensor]:
    """The weights (O, C, h, w) with which the convolutions of the dense network run, recorded in a run.

    The image has many positions, because at few positions k×k layers are computed as matrix products (see
    `laws.cost.rows_are_cheaper`).
    """
    functions = (torch.conv2d, torch.nn.functional.conv2d, torch.ops.aten.conv2d.default)
    weights: list[torch.Tensor] = []

    def record(function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        if function in functions:
            weights.append(args[1])

    with observe_functions(record), torch.inference_mode():
        dense(torch.zeros(1, 1, 3 * WINDOW, 3 * WINDOW))
    return weights


@dataclass(frozen=True)
class WeightPictures:
    """The weights of one fully connected layer in both forms, as PNG files; `same` if they are equal bit for bit."""

    rows_shape: tuple[int, ...]
    filters_shape: tuple[int, ...]
    rows: bytes
    filters: bytes
    one_row: bytes
    one_filter: bytes
    neuron: int
    same: bool


def weight_pictures(linear: nn.Linear, kernel: torch.Tensor) -> WeightPictures:
    """Draw the rows of `linear` and `kernel`, the weight of the convolution that replaced it.

    Each picture is drawn from its own tensor, with the same colour scale; the channels of a filter are side by side.
    """
    matrix, filters = linear.weight.detach().numpy(), kernel.detach().numpy()
    same = matrix.tobytes() == np.ascontiguousarray(filters).tobytes()
    limit = float(np.quantile(np.abs(matrix), 0.995))
    neuron = int(np.abs(matrix).sum(axis=1).argmax())
    pointwise = filters.shape[-1] == 1
    gap = 1
    sheet = np.concatenate([_with_gap(tiled(one, len(one), gap), gap) for one in filters])
    closeup = tiled(filters[neuron], columns=len(filters[neuron]) if pointwise else 8, gap=gap)
    return WeightPictures(
        rows_shape=tuple(matrix.shape),
        filters_shape=tuple(filters.shape),
        rows=png(signed(matrix, limit)),
        filters=png(signed(sheet, limit)),
        one_row=png(signed(matrix[neuron : neuron + 1], limit)),
        one_filter=png(signed(closeup, limit)),
        neuron=neuron,
        same=same,
    )


def _with_gap(sheet: NDArray[np.float64], gap: int) -> NDArray[np.float64]:
    return np.concatenate([sheet, np.full((gap, sheet.shape[1]), np.nan)])


def heat_maps(dense: ScoreMap) -> list[bytes]:
    """The probability of each digit over the page, as transparent PNG files with one pixel per window.

    A digit has a high probability at only about 3×3 positions, which are too small to see; so each position shows the
    largest probability of the SPREAD×SPREAD positions around it.
    """
    probabilities = torch.from_numpy(dense.probabilities()[:BACKGROUND])
    spread = nn.functional.max_pool2d(probabilities[None], SPREAD, 1, SPREAD // 2)[0].numpy()
    return [png(strength(p, HEAT, gamma=0.7), quantised=64) for p in spread]


def any_digit(dense: ScoreMap) -> bytes:
    """The probability that a window contains any digit, 1 − background, at each position."""
    return png(strength(1 - dense.probabilities()[BACKGROUND], HEAT, gamma=0.7), quantised=128)


def heat_over_page(dense: ScoreMap, picture: bytes, label: str, rings: Sequence[Circle] = ()) -> str:
    """A heat map in the pixels of the page; each position is a square in the middle of its window."""
    (y, below), (x, right) = (
        ((a0 + a1 - stride) / 2, (b0 + b1 + stride) / 2)
        for (a0, a1), (b0, b1), stride in zip(
            dense.window_at((0, 0)),
            dense.window_at((dense.positions[0] - 1, dense.positions[1] - 1)),
            dense.geometry.stride,
            strict=True,
        )
    )
    heat = RasterImage(x, y, right - x, below - y, picture)
    return _svg([heat, *rings], dense.image_size[1], dense.image_size[0], label, "heat")


def rings_around(page: DigitPage, digit: int) -> list[Circle]:
    """Rings around the true positions of `digit`, in the pixels of the page."""
    return [
        Circle((x1 + x2) / 2, (y1 + y2) / 2, 40)
        for (x1, y1, x2, y2), label in zip(page.boxes.tolist(), page.labels.tolist(), strict=True)
        if label == digit
    ]


def boxes(page: DigitPage, detections: Detections, owner: NDArray[np.int64], threshold: float) -> str:
    """The true boxes of the page and the detections with a score of at least `threshold`, drawn over the page.

    `owner` holds for each detection the row of the digit that it matches, or −1.
    """
    truth = ShapeGroup("truth", "", tuple(_outline(*box) for box in page.boxes.tolist()), "truth")
    found: list[Shape] = []
    matches = zip(detections.boxes, detections.scores, detections.labels, owner, strict=True)
    for box, score, label, row in matches:
        if score < threshold:
            continue
        x1, y1, x2, y2 = (float(v) for v in box)
        name = _text(x1, y1 - 6 if y1 > 26 else y2 + 20, str(label), "mark", "start")
        title = f"{label}, score {score:.3f}"
        shapes = (_outline(x1, y1, x2, y2), name)
        found.append(ShapeGroup("detection", title, shapes, "right" if row >= 0 else "wrong"))
    height, width = page.image.shape
    label = f"{len(page.labels)} true boxes and the detections, drawn over the page"
    return _svg([truth, ShapeGroup("found", "", tuple(found), "found")], width, height, label, "boxes")


def _outline(x1: float, y1: float, x2: float, y2: float) -> Rectangle:
    return Rectangle(x1, y1, x2 - x1, y2 - y1)

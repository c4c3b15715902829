"""The demo's pictures: the network before and after, its weights twice, the page, the heat maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from onebyone.demo.data import BACKGROUND, WINDOW
from onebyone.demo.page import Page
from onebyone.dense import ScoreMap
from onebyone.detection import Detections
from onebyone.report.html import data_uri
from onebyone.report.images import png, signed, strength, svg, svg_box, svg_text, tiled

HEAT = (255, 138, 30)
WIDTH = 1120.0
"""Of a diagram, in its own units."""
SPREAD = 7
"""Places, in height and width, over which a small heat map shows each probability."""


@dataclass(frozen=True)
class Stage:
    """One map on the way through the network: what made it, its channels and size per window, and on the page."""

    operation: str
    after: str
    channels: int
    window: tuple[int, int]
    page: tuple[int, int]
    connected: bool


def stages(network: nn.Sequential, page: tuple[int, int]) -> list[Stage]:
    """The network's maps in order, from the image; activations are left out, they change no shape."""
    window = (WINDOW, WINDOW)
    found = [Stage("image", "image", 1, window, page, connected=False)]
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride = _square(layer.kernel_size), _square(layer.stride)
            pool = isinstance(layer, nn.MaxPool2d)
            name = f"{'pool' if pool else 'conv'} {kernel}×{kernel}" + (
                f", step {stride}" if stride > 1 else ""
            )
            channels = found[-1].channels if pool else int(layer.out_channels)  # type: ignore[arg-type]
            sizes = [
                ((h - kernel) // stride + 1, (w - kernel) // stride + 1)
                for h, w in (found[-1].window, found[-1].page)
            ]
            found.append(Stage(name, name, channels, sizes[0], sizes[1], connected=False))
        elif isinstance(layer, nn.Linear):
            h, w = found[-1].window
            name = f"FC {layer.in_features} → {layer.out_features}"
            places = (found[-1].page[0] - h + 1, found[-1].page[1] - w + 1)
            found.append(Stage(name, f"conv {h}×{w}", layer.out_features, (1, 1), places, connected=True))
    return found


def _square(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def diagram(found: list[Stage], form: str) -> str:
    """One lane of the network as a drawing: `form` is "before", "after" (on a window) or "page"."""
    shapes = [(s.operation if form == "before" else s.after, s) for s in found]
    parts: list[tuple[str, str, str, str]] = []
    middle = 84.0 if form == "before" else 48.0
    columns = len(found) + (form == "before")  # before, the map is flattened: one more thing to draw
    for operation, stage in shapes:
        if form == "before" and stage.connected and not any("flatten" in part for part in parts):
            parts.append(
                ("flatten", *_flattened(found[len(parts) - 1], _column(len(parts), columns), middle))
            )
        parts.append((operation, *_drawn(stage, form, _column(len(parts), columns), middle)))
    body = []
    for number, (operation, label, part, css) in enumerate(parts):
        x, low = _column(number, columns), middle + (98 if form == "before" else 68)
        body += [part, svg_text(x, low, label, f"shape {css}")]
        if number:
            body.append(svg_text(x, low + 19, operation, f"operation {css}"))
    words = ", ".join(f"{operation} to {label}" for operation, label, _, _ in parts[1:])
    title = f"The network from an image of {parts[0][1]}: {words}"
    return svg("".join(body), WIDTH, middle + (126 if form == "before" else 96), title, "lane")


def _column(number: int, columns: int) -> float:
    """The middle of a column of the diagram."""
    return (number + 0.5) * WIDTH / columns


def _shape(stage: Stage, form: str) -> str:
    if form == "before" and stage.connected:
        return str(stage.channels)
    height, width = stage.page if form == "page" else stage.window
    return f"{stage.channels} × {height} × {width}"


def _drawn(stage: Stage, form: str, x: float, middle: float) -> tuple[str, str, str]:
    """A map's label, drawing around (x, middle), and style; sides grow as the square root of what they show."""
    css = "connected" if stage.connected else ""
    if form == "before" and stage.connected:
        tall = 6 + 9 * stage.channels**0.5
        part = f'<rect class="vector {css}" x="{x - 5:g}" y="{middle - tall / 2:g}" width="10" height="{tall:g}"/>'
        return _shape(stage, form), part, css
    (height, width), scale = (stage.page, 2.0) if form == "page" else (stage.window, 9.5)
    tall, wide = (max(6.0, scale * side**0.5) for side in (height, width))
    depth = 3 + 4.5 * stage.channels**0.5
    left, top = x - (wide + 0.7 * depth) / 2, middle - tall / 2 + 0.21 * depth
    return _shape(stage, form), svg_box(left, top, wide, tall, depth, f"box {css}"), css


def _flattened(stage: Stage, x: float, middle: float) -> tuple[str, str, str]:
    count = stage.channels * stage.window[0] * stage.window[1]
    part = f'<rect class="vector flat" x="{x - 3:g}" y="{middle - 76:g}" width="6" height="152"/>'
    return str(count), part, "flat"


class _Kernels(TorchFunctionMode):
    """Notes every weight that a convolution is given, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.conv2d, torch.nn.functional.conv2d, torch.ops.aten.conv2d.default):
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


def kernels_at_work(dense: nn.Module) -> list[torch.Tensor]:
    """The weights (O, C, h, w) that the dense network's convolutions really run with, caught as it runs.

    It runs on an image of many positions: at few, k×k layers are computed as rows (`laws.cost.rows_are_cheaper`).
    """
    caught = _Kernels()
    with caught, torch.inference_mode():
        dense(torch.zeros(1, 1, 3 * WINDOW, 3 * WINDOW))
    return caught.weights


@dataclass(frozen=True)
class WeightsTwice:
    """One fully connected layer's weights in its two forms, as PNG files; `same` if equal bit for bit."""

    rows_shape: tuple[int, ...]
    filters_shape: tuple[int, ...]
    rows: bytes
    filters: bytes
    one_row: bytes
    one_filter: bytes
    neuron: int
    same: bool


def weights_twice(linear: nn.Linear, kernel: torch.Tensor) -> WeightsTwice:
    """Draw `linear`'s rows beside `kernel`, the weight of the convolution that replaced it.

    Both are drawn from their own tensor, on one colour scale; the filters' channels lie side by side.
    """
    matrix, filters = linear.weight.detach().numpy(), kernel.detach().numpy()
    same = matrix.tobytes() == np.ascontiguousarray(filters).tobytes()
    limit = float(np.quantile(np.abs(matrix), 0.995))
    neuron = int(np.abs(matrix).sum(axis=1).argmax())
    single = filters.shape[-1] == 1
    gap = 1
    sheet = np.concatenate([_with_gap(tiled(one, len(one), gap), gap) for one in filters])
    closeup = tiled(filters[neuron], columns=len(filters[neuron]) if single else 8, gap=gap)
    return WeightsTwice(
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
    """Each digit's probability over the page, as a clear PNG of one pixel a window.

    A digit lights up some 3×3 places of hundreds, too few to see in a small picture: each place shows the
    largest probability of the SPREAD×SPREAD around it.
    """
    probabilities = torch.from_numpy(dense.probabilities()[:BACKGROUND])
    wide = nn.functional.max_pool2d(probabilities[None], SPREAD, 1, SPREAD // 2)[0].numpy()
    return [png(strength(p, HEAT, gamma=0.7), quantised=64) for p in wide]


def any_digit(dense: ScoreMap) -> bytes:
    """The probability that a window holds a digit at all, 1 − background, place by place."""
    return png(strength(1 - dense.probabilities()[BACKGROUND], HEAT, gamma=0.7), quantised=128)


def heat_over_page(dense: ScoreMap, picture: bytes, label: str, rings: str = "") -> str:
    """A heat map as a drawing in the page's own pixels, each place a square around its window's middle."""
    (y, below), (x, right) = (
        ((a0 + a1 - stride) / 2, (b0 + b1 + stride) / 2)
        for (a0, a1), (b0, b1), stride in zip(
            dense.window_at((0, 0)),
            dense.window_at((dense.positions[0] - 1, dense.positions[1] - 1)),
            dense.geometry.stride,
            strict=True,
        )
    )
    image = (
        f'<image href="{data_uri(picture)}" x="{x:g}" y="{y:g}" width="{right - x:g}" height="{below - y:g}" '
        'preserveAspectRatio="none"/>'
    )
    return svg(image + rings, dense.image_size[1], dense.image_size[0], label, "heat")


def rings_around(page: Page, digit: int) -> str:
    """Rings where the page truly has `digit`, in its pixels."""
    return "".join(
        f'<circle cx="{(x1 + x2) / 2:g}" cy="{(y1 + y2) / 2:g}" r="40"/>'
        for (x1, y1, x2, y2), label in zip(page.boxes.tolist(), page.labels.tolist(), strict=True)
        if label == digit
    )


def boxes(page: Page, found: Detections, owner: NDArray[np.int64], shown: float) -> str:
    """The page's true boxes and the detections of probability `shown` or more, as a drawing over the page."""
    height, width = page.image.shape
    parts = ['<g class="truth">']
    parts += [_rect(*box) for box in page.boxes.tolist()]
    parts.append('</g><g class="found">')
    for box, score, label, which in zip(found.boxes, found.scores, found.labels, owner, strict=True):
        if score < shown:
            continue
        x1, y1, x2, y2 = (float(v) for v in box)
        css = "right" if which >= 0 else "wrong"
        above = y1 - 6 if y1 > 26 else y2 + 20
        parts.append(
            f'<g class="{css}">{_rect(x1, y1, x2, y2)}{svg_text(x1, above, str(label), "mark", "start")}'
            f"<title>{label}, probability {score:.3f}</title></g>"
        )
    parts.append("</g>")
    label = f"{len(page.labels)} true boxes and the detections, drawn over the page"
    return svg("".join(parts), width, height, label, "boxes")


def _rect(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<rect x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"/>'

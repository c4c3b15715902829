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
from onebyone.detect import Detections
from onebyone.report.pictures import png, signed, strength, svg, svg_box, svg_text, tiled

HEAT = (214, 51, 32)


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
            name = f"{'max-pool' if pool else 'conv'} {kernel}×{kernel}" + (
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
    gap, middle = 124, 92
    # before its first fully connected layer the map is flattened: one more thing to draw
    flat = next(i for i, s in enumerate(found) if s.connected)
    shapes: list[tuple[str, str]] = []
    for number, stage in enumerate(found):
        if form == "before" and number == flat:
            shapes.append(("flatten", "flat"))
        shapes.append((stage.operation if form == "before" else stage.after, str(number)))
    body = []
    scale = 64 / (max(found[0].page) if form == "page" else WINDOW) ** 0.5
    for column, (operation, which) in enumerate(shapes):
        x = 18 + column * gap * (len(found) - 1 + 0.0) / (len(shapes) - 1 or 1)
        if which == "flat":
            label, part, css = _flattened(found[flat - 1], x, middle)
        else:
            label, part, css = _drawn(found[int(which)], form, x, middle, scale)
        body.append(part)
        body.append(svg_text(x + 26, 176, label, f"shape {css}"))
        if column:
            body.append(svg_text(x + 26, 194, operation, f"operation {css}"))
    words = ", ".join(f"{name} to {_label(found, which, form)}" for name, which in shapes)
    return svg("".join(body), gap * (len(found) - 1) + 120, 204, f"The network {form}: {words}", "lane")


def _label(found: list[Stage], which: str, form: str) -> str:
    if which == "flat":
        return "a vector"
    stage = found[int(which)]
    return _shape(stage, form)


def _shape(stage: Stage, form: str) -> str:
    if form == "before" and stage.connected:
        return str(stage.channels)
    height, width = stage.page if form == "page" else stage.window
    return f"{stage.channels} × {height} × {width}"


def _drawn(stage: Stage, form: str, x: float, middle: float, scale: float) -> tuple[str, str, str]:
    css = "connected" if stage.connected else ""
    if form == "before" and stage.connected:
        height = 6 + 9 * stage.channels**0.5
        part = f'<rect class="vector {css}" x="{x + 21:g}" y="{middle - height / 2:g}" width="10" height="{height:g}"/>'
        return _shape(stage, form), part, css
    height, width = stage.page if form == "page" else stage.window
    tall, wide = (max(5.0, scale * side**0.5) for side in (height, width))
    depth = 4 + 5 * stage.channels**0.5
    part = svg_box(
        x + 26 - (wide + 0.7 * depth) / 2, middle - tall / 2 + 0.2 * depth, wide, tall, depth, f"box {css}"
    )
    return _shape(stage, form), part, css


def _flattened(stage: Stage, x: float, middle: float) -> tuple[str, str, str]:
    count = stage.channels * stage.window[0] * stage.window[1]
    part = f'<rect class="vector flat" x="{x + 23:g}" y="{middle - 72:g}" width="6" height="144"/>'
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
    """The weights (O, C, h, w) that the dense network's convolutions really run with, caught as it runs."""
    caught = _Kernels()
    with caught, torch.inference_mode():
        dense(torch.zeros(1, 1, WINDOW, WINDOW))
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
    """Each class's probability over the page as a clear PNG of one pixel a window, redder where likelier."""
    probabilities = dense.probabilities()
    return [png(strength(p, HEAT, gamma=0.6), quantised=64) for p in probabilities]


def truth_rings(page: Page, digit: int, dense: ScoreMap) -> str:
    """Rings where the page has `digit`, over a heat map, in its coordinates of one unit a window."""
    rows, columns = dense.positions
    stride = dense.geometry.stride
    rings = [
        f'<circle cx="{x / stride[1] + 0.5:.1f}" cy="{y / stride[0] + 0.5:.1f}" r="9"/>'
        for (x, y, _, _), label in zip(page.boxes.tolist(), page.labels.tolist(), strict=True)
        if label == digit
    ]
    name = "background" if digit == BACKGROUND else f"the digit {digit}"
    label = f"{len(rings)} places where the page has {name}"
    return svg("".join(rings), columns, rows, label, "rings")


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

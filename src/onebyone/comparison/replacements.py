"""R1 to R3: that a fully connected layer can be replaced by a convolution, proven on the user's own layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison.claim_result import (
    Figures,
    Verdict,
    counted,
    holds,
    holds_when,
    not_as_said,
    not_available,
)
from onebyone.comparison.layer_calls import LINEAR, POINTWISE, Seen
from onebyone.errors import BadInput, Refused
from onebyone.laws.flatten import flatten_index, to_kernel
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.convert import convert_module
from onebyone.verification import verify
from onebyone.verification.integer_probes import integers

Convert = Callable[[nn.Module], ModuleConversion]
Lift = Callable[..., ConvolutionalizedModule]

MOST_WEIGHTS = 2**19
"""Weights of a layer that is probed whole; of a larger one, as many of its outputs are."""
MOST_LAYERS = 60


def to_conv(module: nn.Module) -> ModuleConversion:
    """What `onebyone.convert(module)` does."""
    return convert_module(module, to="conv")


# R1 ---------------------------------------------------------------------------------------------------------


def measure_replacement(
    model: nn.Module, seen: Sequence[Seen], convert: Convert = to_conv, seed: int = 0
) -> Figures:
    """Convert the whole network; then probe its linear layers on integers, one by one, with `onebyone.verify`.

    A layer of more than MOST_WEIGHTS weights is probed on its first outputs; of more than MOST_LAYERS
    layers, an even sample. `weights_shared` counts converted layers that hold the very Parameter.
    """
    conversion = convert(model)
    linears = [s for s in seen if s.kind == LINEAR]
    twins = [s for s in seen if s.kind == POINTWISE and s.groups == 1]
    probed = linears or twins  # a network without linear layers: its 1×1 convolutions as such
    step = max(1, -(-len(probed) // MOST_LAYERS))
    probes = [_probe(layer, convert, seed) for layer in probed[::step]]
    shared = sum(
        getattr(p.original, "weight", None) is getattr(p.converted, "weight", 0) for p in conversion.pairs
    )
    return {
        "layers_converted": len(conversion.changes),
        "layers_refused": [r.to_dict() for r in conversion.refused],
        "weights_shared": shared,
        "copied_bytes": conversion.copied_bytes,
        "layers_called": len(linears),
        "twins": not linears,
        "layers_probed": len(probes),
        "layers_probed_in_part": sum(p["outputs_probed"] < p["weight"][0] for p in probes),
        "bitwise_equal": sum(p["bitwise"] for p in probes),
        "planted_faults_caught": sum(p["faults_seen"] for p in probes),
        "planted_faults": sum(p["faults"] for p in probes),
        "probes": probes,
    }


def _probe(layer: Seen, convert: Convert, seed: int) -> Figures:
    weight, bias = layer.weight().flatten(1), layer.bias()
    rows = max(1, min(len(weight), MOST_WEIGHTS // weight.shape[1]))
    part = nn.Linear(weight.shape[1], rows, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        part.weight.copy_(weight[:rows])
        if bias is not None:
            part.bias.copy_(bias[:rows])
    found = verify(part, convert(part), seed=seed)
    faults = [f for check in found.layers for f in check.faults]
    return {
        "layer": layer.path,
        "weight": list(weight.shape),
        "outputs_probed": rows,
        "bitwise": bool(found.integer_probe) and found.equivalent,
        "faults": len(faults),
        "faults_seen": sum(bool(f.seen_by_integers) for f in faults),
    }


def judge_replacement(figures: Figures) -> Verdict:
    """Holds where every linear layer was converted and agreed bit for bit."""
    probed, equal = figures["layers_probed"], figures["bitwise_equal"]
    refused = figures["layers_refused"]
    if equal < probed:
        return not_as_said(f"{probed - equal} of {probed} converted layers differ on integers")
    if not probed:
        return not_available("the network calls no fully connected layer that could be replaced")
    said = (
        f"{counted(figures['layers_converted'], 'layer')} converted, {figures['weights_shared']} on the very same "
        f"weights; {equal} of {probed} probed equal bit for bit on integers, which caught "
        f"{figures['planted_faults_caught']} of {figures['planted_faults']} planted faults"
    )
    if figures["twins"]:
        said += " (the network has no linear layer: its 1×1 convolutions were taken as such)"
    if refused:
        reason = refused[0]["reason"]
        return holds_when("the layer is an ordinary one", f"{said}; {len(refused)} refused: {reason}")
    return holds(said)


# R2 ---------------------------------------------------------------------------------------------------------


def successive(seen: Sequence[Seen]) -> tuple[Seen, Seen] | None:
    """The last two linear layers on vectors of which the second reads what the first gives."""
    vectors = [s for s in seen if s.kind == LINEAR and not s.tokens]
    fitting = [(a, b) for a, b in pairwise(vectors) if b.inputs == a.outputs]
    after_map = [p for p in fitting if p[0].block is not None and prod(p[0].block[1:]) > 1]
    return after_map[-1] if after_map else (fitting[-1] if fitting else None)


def natural_order(weight: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The kernel (O, C, h, w) of a layer after a flatten (the law `flatten`)."""
    return torch.from_numpy(np.array(to_kernel(weight.numpy(), flatten_index(block), block)))


def measure_chain(
    block: tuple[int, int, int],
    hidden: int,
    outputs: int,
    kernel_of: Callable[[Tensor, tuple[int, int, int]], Tensor] = natural_order,
    paths: Sequence[str] = ("", ""),
    seed: int = 0,
) -> Figures:
    """Two fully connected layers on a map (C, h, w), and the same weights as channels and kernels, on integers.

    The first layer, over the flattened map, is an h×w convolution (1×1 on an image of one pixel), the second
    a 1×1 convolution on an image of 1×1 pixels with `hidden` channels. A ReLU stands between. Of large layers
    the first `rows` neurons are run. On a larger map the convolutions are compared with every crop.
    """
    features = prod(block)
    rows = (max(1, min(hidden, MOST_WEIGHTS // features)), min(outputs, MOST_WEIGHTS // 64))
    generator = torch.Generator().manual_seed(seed)
    limit = _exact_range(features, rows[0])
    first, bias, second, last = (
        integers(shape, limit, generator)
        for shape in ((rows[0], features), (rows[0],), (rows[1], rows[0]), (rows[1],))
    )
    kernels = kernel_of(first, block), second[:, :, None, None]

    def connected(x: Tensor) -> Tensor:
        return F.linear(F.linear(x.flatten(1), first, bias).relu(), second, last)

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernels[0], bias).relu(), kernels[1], last)

    x = integers((2, *block), limit, generator)
    larger = integers((1, block[0], block[1] + 1, block[2] + 2), limit, generator)
    dense = convolved(larger)
    crops = [
        bool(torch.equal(dense[:, :, i, j], connected(larger[:, :, i : i + block[1], j : j + block[2]])))
        for i in range(2)
        for j in range(3)
    ]
    out = convolved(x)
    return {
        "layers": list(paths),
        "images": [list(block), [hidden, 1, 1], [outputs, 1, 1]],
        "connected_weights": [[hidden, features], [outputs, hidden]],
        "convolution_weights": [[hidden, *block], [outputs, hidden, 1, 1]],
        "neurons_run": list(rows),
        "largest_integer": limit,
        "one_pixel_out": list(out.shape[2:]) == [1, 1],
        "equal_bits": bool(torch.equal(out.flatten(1), connected(x))),
        "crops_equal": sum(crops),
        "crops": len(crops),
    }


def _exact_range(features: int, hidden: int) -> int:
    """The largest m for which both layers' sums of integers in [-m, m] stay below 2^53."""
    m = 1
    while hidden * (features * (2 * m) ** 2 + 2 * m) * 2 * m + 2 * m <= 2**53:
        m *= 2
    return m


def judge_chain(figures: Figures) -> Verdict:
    """Holds where the two chains give the same bits on the map and at every crop of a larger one."""
    images = " → ".join("×".join(map(str, i)) for i in figures["images"])
    kernels = " and ".join("×".join(map(str, k)) for k in figures["convolution_weights"])
    if not (figures["equal_bits"] and figures["one_pixel_out"]):
        return not_as_said(f"the chain of kernels {kernels} does not give what the two layers give")
    if figures["crops_equal"] < figures["crops"]:
        return not_as_said("on a larger map the kernels do not give what the layers give on its crops")
    return holds(
        f"images {images} through kernels {kernels}: the same bits on integers, and on a larger map those of "
        f"all {figures['crops']} crops"
    )


# R3 ---------------------------------------------------------------------------------------------------------


class AtOneWindow(nn.Module):
    """A dense network on images of exactly one window: maps of one place as vectors."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Any:
        """(N, C, *window) to (N, classes), or what the dense network gives of these."""
        y = self.dense(x)
        return tuple(t.flatten(1) for t in y) if isinstance(y, tuple) else y.flatten(1)


def window_of(example: Any) -> Tensor:
    """The example as images (N, C, H, W).

    Raises
    ------
    BadInput
        where it is something else, which has no larger size to speak of.
    """
    given = example[0] if isinstance(example, tuple | list) and len(example) == 1 else example
    if not isinstance(given, Tensor) or given.dim() != 4:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise BadInput(f"the network takes no image (N, C, H, W) but {shape}: it has no windows")
    return given


def lifted(model: nn.Module, image: Tensor, lift: Lift = convolutionalize) -> ConvolutionalizedModule:
    """The network for images of any size; with context="window" where it needs one.

    Raises
    ------
    Refused
        with every reason.
    """
    window, channels = tuple(int(n) for n in image.shape[2:]), int(image.shape[1])
    try:
        return lift(model, window, channels)
    except Refused as plain:
        try:
            return lift(model, window, channels, context="window")
        except Refused:
            raise plain from None


def measure_classification(
    model: nn.Module, image: Tensor, dense: ConvolutionalizedModule | Refused, seed: int = 0
) -> Figures:
    """The classifier with its layers replaced: on images of its own size, and on one that is larger.

    `dense` is what `lifted` gave, or its refusal; then the network with 1×1 drop-ins is compared at its own
    size alone.
    """
    x = image[:1]
    if isinstance(dense, Refused):
        replaced: nn.Module = to_conv(model).model
        found = verify(model, replaced, x, seed=seed, gradients=False)
        larger: Figures = {"refused": [r.to_dict() for r in dense.refusals]}
    else:
        found = verify(model, AtOneWindow(dense.model), x, seed=seed, gradients=False)
        larger = _larger(model, dense, x)
    return {
        "equivalent": found.equivalent,
        "max_error": found.max_error,
        "rounding_ratio": found.rounding_ratio,
        "float64_error": found.float64_error,
        "float64_limit": found.float64_limit,
        "problems": list(found.problems),
        "unverified": list(found.unverified),
        **larger,
    }


@torch.no_grad()
def _larger(model: nn.Module, dense: ConvolutionalizedModule, x: Tensor) -> Figures:
    geometry = dense.geometry
    size = [w + s * n for w, s, n in zip(geometry.window, geometry.stride, (1, 2), strict=True)]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, x.shape[1], *size, generator=generator).to(x)
    answer = dense.model(image)
    first = answer[0] if isinstance(answer, tuple) else answer
    try:
        alone = model(image)
        original = f"answers {list(alone.shape)}" if isinstance(alone, Tensor) else "answers"
    except RuntimeError as error:
        original = f"raises: {str(error).splitlines()[0]}"
    return {
        "window": list(geometry.window),
        "stride": list(geometry.stride),
        "exact": geometry.exact,
        "context": dense.context,
        "larger_image": size,
        "places": list(first.shape[2:]),
        "original_on_larger": original,
    }


def judge_classification(figures: Figures) -> Verdict:
    """Holds where outputs agree as verify has it, and the larger image gives more than one answer."""
    if not figures["equivalent"]:
        return not_as_said(f"the converted classifier differs: {'; '.join(figures['problems'][:2])}")
    ratio = figures["rounding_ratio"]
    same = "the converted classifier computes the same"
    if ratio is not None:
        same += f" (its error is {ratio:.2g} of the original's own rounding error)"
    if "refused" in figures:
        reasons = figures["refused"]
        return holds_when(
            "the image has the size the network was built for",
            f"{same}, but cannot be carried to larger images: {counted(len(reasons), 'operator')} refused, the first "
            f"{reasons[0]['path'] or reasons[0]['kind']}: {reasons[0]['reason']}",
        )
    places = figures["places"]
    size = "×".join(map(str, figures["larger_image"]))
    if prod(places) < 2:
        return holds_when("the image has one size", f"{same}; a {size} image gives no more answers")
    return holds(
        f"{same}, and on a {size} image gives {'×'.join(map(str, places))} answers, one a window; "
        f"the original {figures['original_on_larger']}"
    )

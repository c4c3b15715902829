"""R1 to R3: claims that a fully connected layer can be replaced by a convolution, tested on the user's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.comparison.claim_result import (
    Figures,
    Verdict,
    holds,
    holds_when,
    not_as_said,
    not_available,
)
from onebyone.comparison.layer_calls import LINEAR, POINTWISE, LayerCall
from onebyone.dense.outputs import select_output
from onebyone.drawing.number_format import counted
from onebyone.errors import BadInput, Refused
from onebyone.laws.flatten import flatten_index, to_kernel
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import by
from onebyone.verification import verify
from onebyone.verification.integer_probes import integers

Convert = Callable[[nn.Module], ModuleConversion]
Lift = Callable[..., ConvolutionalizedModule]

MAX_WEIGHTS = 2**19
"""Weights, at most, of a layer that is probed; larger layers are probed on their first outputs."""
MAX_LAYERS = 60
"""Layers that are probed, at most."""


def to_conv(module: nn.Module) -> ModuleConversion:
    """The result of `onebyone.convert(module)`."""
    return convert_module(module, to="conv")


# R1 ---------------------------------------------------------------------------------------------------------


def measure_replacement(
    model: nn.Module, calls: Sequence[LayerCall], convert: Convert = to_conv, seed: int = 0
) -> Figures:
    """Convert the whole network, then probe each of its linear layers on integers with `onebyone.verify`.

    A layer with more than MAX_WEIGHTS weights is probed on its first outputs; of more than MAX_LAYERS layers, an
    evenly spaced sample is probed. `weights_shared` counts converted layers that hold the original Parameter object.
    """
    conversion = convert(model)
    linears = [c for c in calls if c.kind == LINEAR]
    convolutions = [c for c in calls if c.kind == POINTWISE and c.groups == 1]
    probed = (
        linears or convolutions
    )  # without linear layers, the 1×1 convolutions are probed as linear layers
    step = max(1, -(-len(probed) // MAX_LAYERS))
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


def _probe(layer: LayerCall, convert: Convert, seed: int) -> Figures:
    weight, bias = layer.weight().flatten(1), layer.bias()
    rows = max(1, min(len(weight), MAX_WEIGHTS // weight.shape[1]))
    part = nn.Linear(weight.shape[1], rows, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        part.weight.copy_(weight[:rows])
        if bias is not None:
            part.bias.copy_(bias[:rows])
    verification = verify(part, convert(part), seed=seed)
    faults = [f for check in verification.layers for f in check.faults]
    return {
        "layer": layer.path,
        "weight": list(weight.shape),
        "outputs_probed": rows,
        "bitwise": bool(verification.integer_probe) and verification.equivalent,
        "faults": len(faults),
        "faults_seen": sum(bool(f.seen_by_integers) for f in faults),
    }


def replacement_verdict(figures: Figures) -> Verdict:
    """Holds if every linear layer was converted and agrees bit for bit."""
    probed, equal = figures["layers_probed"], figures["bitwise_equal"]
    refused = figures["layers_refused"]
    if equal < probed:
        return not_as_said(
            f"{probed - equal} of {probed} converted layers give different results on integers"
        )
    if not probed:
        return not_available("the network calls no fully connected layer that could be replaced")
    result = (
        f"{counted(figures['layers_converted'], 'layer')} converted, of which {figures['weights_shared']} share the "
        f"original weights; {equal} of {probed} probed layers are equal bit for bit on integers, and the probes caught "
        f"{figures['planted_faults_caught']} of {figures['planted_faults']} injected faults"
    )
    if figures["twins"]:
        result += " (the network has no linear layer, so its 1×1 convolutions were probed as linear layers)"
    if refused:
        reason = refused[0]["reason"]
        return holds_when("the layer is an ordinary one", f"{result}; {len(refused)} refused: {reason}")
    return holds(result)


# R2 ---------------------------------------------------------------------------------------------------------


def successive(calls: Sequence[LayerCall]) -> tuple[LayerCall, LayerCall] | None:
    """The last two linear layers on vectors of which the second reads the outputs of the first; None without any."""
    vectors = [c for c in calls if c.kind == LINEAR and not c.tokens]
    pairs = [(a, b) for a, b in pairwise(vectors) if b.inputs == a.outputs]
    after_map = [p for p in pairs if p[0].block is not None and prod(p[0].block[1:]) > 1]
    return after_map[-1] if after_map else (pairs[-1] if pairs else None)


def natural_order(weight: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The kernel (O, C, h, w) of a layer after a channels-first flatten (see `laws.flatten`)."""
    return torch.from_numpy(np.array(to_kernel(weight.numpy(), flatten_index(block), block)))


def measure_chain(
    block: tuple[int, int, int],
    hidden: int,
    outputs: int,
    kernel_of: Callable[[Tensor, tuple[int, int, int]], Tensor] = natural_order,
    paths: Sequence[str] = ("", ""),
    seed: int = 0,
) -> Figures:
    """Two fully connected layers on a map (C, h, w) against the same weights as convolution kernels, on integers.

    The first layer, over the flattened map, becomes an h×w convolution (1×1 on an image of one pixel), the second
    a 1×1 convolution on an image of 1×1 pixels with `hidden` channels; a ReLU is between them. Of large layers only
    the first neurons are run. On a larger map the convolutions are compared with every crop.
    """
    features = prod(block)
    rows = (max(1, min(hidden, MAX_WEIGHTS // features)), min(outputs, MAX_WEIGHTS // 64))
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
    """The largest power of two m for which the sums of both layers, on integers in [-m, m], stay below 2^53."""
    m = 1
    while hidden * (features * (2 * m) ** 2 + 2 * m) * 2 * m + 2 * m <= 2**53:
        m *= 2
    return m


def chain_verdict(figures: Figures) -> Verdict:
    """Holds if both chains give identical results on the map and on every crop of a larger map."""
    images = " → ".join(by(i) for i in figures["images"])
    kernels = " and ".join(by(k) for k in figures["convolution_weights"])
    if not (figures["equal_bits"] and figures["one_pixel_out"]):
        return not_as_said(f"the kernels {kernels} do not give the results of the two layers")
    if figures["crops_equal"] < figures["crops"]:
        return not_as_said("on a larger map the kernels do not give the results of the layers on its crops")
    return holds(
        f"with kernels {kernels}, the images are {images}: on integers the results equal those of the two layers bit "
        f"for bit, also on all {figures['crops']} crops of a larger map"
    )


# R3 ---------------------------------------------------------------------------------------------------------


class SingleWindow(nn.Module):
    """A dense network on images of exactly one window; its maps of one position become vectors."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Any:
        """(N, C, *window) to (N, classes), in the structure of the network's outputs."""
        return pytree.tree_map_only(Tensor, lambda scores: scores.flatten(1), self.dense(x))


def window_of(example: Any) -> Tensor:
    """The example as images (N, C, H, W).

    Raises
    ------
    BadInput
        if it is not a single tensor of that shape.
    """
    x = example[0] if isinstance(example, tuple | list) and len(example) == 1 else example
    if not isinstance(x, Tensor) or x.dim() != 4:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"the network's input is {shape}; windows require images of shape (N, C, H, W)")
    return x


def lifted(model: nn.Module, image: Tensor, lift: Lift = convolutionalize) -> ConvolutionalizedModule:
    """The network for images of any size, with context="window" if it needs one.

    Raises
    ------
    Refused
        with every reason, if the network cannot be lifted.
    """
    window, channels = tuple(int(n) for n in image.shape[2:]), int(image.shape[1])
    try:
        return lift(model, window, channels)
    except Refused as without_context:
        try:
            return lift(model, window, channels, context="window")
        except Refused:
            raise without_context from None


def measure_classification(
    model: nn.Module, image: Tensor, dense: ConvolutionalizedModule | Refused, seed: int = 0
) -> Figures:
    """The classifier with its layers replaced, compared on images of its own size and run on a larger one.

    `dense` is the result of `lifted`, or its refusal; then the network with 1×1 drop-ins is compared at its own
    size only.
    """
    x = image[:1]
    if isinstance(dense, Refused):
        replaced: nn.Module = to_conv(model).model
        verification = verify(model, replaced, x, seed=seed, gradients=False)
        larger: Figures = {"refused": [r.to_dict() for r in dense.refusals]}
    else:
        verification = verify(model, SingleWindow(dense.model), x, seed=seed, gradients=False)
        larger = _larger(model, dense, x)
    return {
        "equivalent": verification.equivalent,
        "max_error": verification.max_error,
        "rounding_ratio": verification.rounding_ratio,
        "float64_error": verification.float64_error,
        "float64_limit": verification.float64_limit,
        "problems": list(verification.problems),
        "unverified": list(verification.unverified),
        **larger,
    }


@torch.no_grad()
def _larger(model: nn.Module, dense: ConvolutionalizedModule, x: Tensor) -> Figures:
    geometry = dense.geometry
    size = [w + s * n for w, s, n in zip(geometry.window, geometry.stride, (1, 2), strict=True)]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, x.shape[1], *size, generator=generator).to(x)
    first = select_output(dense.model(image), 0)
    try:
        original_output = model(image)
        shape = f" of shape {list(original_output.shape)}" if isinstance(original_output, Tensor) else ""
        original = f"returns an output{shape}"
    except RuntimeError as error:
        original = f"raises an error: {str(error).splitlines()[0]}"
    return {
        "window": list(geometry.window),
        "stride": list(geometry.stride),
        "exact": geometry.exact,
        "context": dense.context,
        "larger_image": size,
        "places": list(first.shape[2:]),
        "original_on_larger": original,
    }


def classification_verdict(figures: Figures) -> Verdict:
    """Holds if `verify` finds the outputs equivalent, and the larger image gives more than one prediction."""
    if not figures["equivalent"]:
        return not_as_said(f"the converted classifier differs: {'; '.join(figures['problems'][:2])}")
    ratio = figures["rounding_ratio"]
    same = "the converted classifier computes the same function"
    if ratio is not None:
        same += f" (its error is {ratio:.2g} times the original's rounding error)"
    if "refused" in figures:
        reasons = figures["refused"]
        return holds_when(
            "the image has the size the network was built for",
            f"{same}, but cannot be applied to larger images: {counted(len(reasons), 'operator')} refused, the first "
            f"at {reasons[0]['path'] or reasons[0]['kind']}: {reasons[0]['reason']}",
        )
    positions, size = figures["places"], by(figures["larger_image"])
    if prod(positions) < 2:
        return holds_when("the image has one size", f"{same}; a {size} image gives no more predictions")
    return holds(
        f"{same}, and on a {size} image it gives {by(positions)} predictions, one per window; the original "
        f"{figures['original_on_larger']}"
    )

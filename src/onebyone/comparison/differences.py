"""D1 to D4, D7 and D8: claimed differences between the two layers.

Each experiment is a pair of functions: one measures figures, the other derives the verdict from them. Operations
are passed by role: "pointwise", "connected" (flatten and a fully connected layer), and for contrast, if there are
such, "kernel" (a k×k convolution) and "pooled" (global pool and a fully connected layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.comparison.claim_result import (
    Figures,
    Verdict,
    holds,
    holds_when,
    not_as_said,
    not_available,
)
from onebyone.comparison.operation import Operation, jacobian_rows, ratio, sample, spread
from onebyone.drawing.number_format import counted
from onebyone.records import by
from onebyone.verification.calls import observe_functions

SEVERAL_POSITIONS = "the map has more than one position"
Operations = Mapping[str, Operation]
"""By role; at least "pointwise" and "connected"."""


# D1 and D8: what an output reads ----------------------------------------------------------------------------


def measure_scope(operations: Operations, max_outputs: int = 8) -> Figures:
    """The support of the Jacobian at one output position: the positions, channels and share of inputs it covers.

    `pictures` holds for each role the map (h, w) of Σ_{c,o} |∂y[o]/∂x[c]| divided by its largest value, to four
    digits; a map of more than PICTURE_SIDE positions per side is reduced to the largest value of each block.
    """
    figures, pictures = {}, {}
    for role, op in operations.items():
        rows = jacobian_rows(op, sample(len(op.weight), max_outputs)).abs()
        image = rows.sum(dim=(0, 1))
        support = image > 0
        figures[role] = op.describe() | {
            "places": op.positions,
            "places_reached": int(support.sum()),
            "channels": op.map_shape[0],
            "channels_reached": int((rows.amax(dim=(0, 2, 3)) > 0).sum()),
            "inputs": int(rows[0].numel()),
            "share_of_inputs": float((rows > 0).double().mean()),
            "outputs_examined": len(rows),
        }
        pictures[role] = _reduced(image / image.max().clamp_min(1e-300))
    return figures | {"pictures": {"support": pictures}}


PICTURE_SIDE = 32
"""Positions per side, at most, of the maps in `pictures`."""


def _reduced(image: Tensor) -> list[list[float]]:
    """A map (h, w) in [0, 1] as a picture; zeros stay zero, and positive values stay positive."""
    block = [-(-n // PICTURE_SIDE) for n in image.shape]
    image = torch.nn.functional.max_pool2d(image[None], block, ceil_mode=True)[0]
    return [[max(1e-4, round(v, 4)) if v > 0 else 0.0 for v in row] for row in image.tolist()]


def scope_verdict(figures: Figures) -> Verdict:
    """D1 holds if a pointwise output reads one position and a fully connected one all of several."""
    pointwise, connected = figures["pointwise"], figures["connected"]
    kernel = figures.get("kernel")
    contrast = f"; an output of a {kernel['name']} reads {kernel['places_reached']}" if kernel else ""
    if pointwise["places_reached"] > 1:
        return not_as_said(
            f"an output of the pointwise layer reads {pointwise['places_reached']} positions, not one"
        )
    if pointwise["places_reached"] < 1 or connected["places_reached"] < 1:
        return not_as_said("an output reads no position at all: its weights are zero")
    if connected["places"] == 1:
        return holds_when(SEVERAL_POSITIONS, "on a map of one position both read that position")
    if connected["places_reached"] < connected["places"]:
        return not_as_said(
            f"an output of the fully connected layer reads {connected['places_reached']} of {connected['places']} "
            "positions"
        )
    return holds(
        f"an output of the pointwise layer reads 1 of {pointwise['places']} positions, one of the fully connected "
        f"layer all {connected['places']}{contrast}"
    )


def share_verdict(figures: Figures) -> Verdict:
    """D8 holds if a pointwise output reads the channels of one position and a fully connected one every input."""
    pointwise, connected = figures["pointwise"], figures["connected"]
    expected = 1 / pointwise["places"]
    if pointwise["share_of_inputs"] > expected * (1 + 1e-9):
        return not_as_said(
            f"an output of the pointwise layer reads {pointwise['share_of_inputs']:.2%} of the inputs, more than one "
            f"position has ({expected:.2%})"
        )
    if pointwise["places"] == 1 or connected["places"] == 1:
        return holds_when(SEVERAL_POSITIONS, "on a map of one position both read every input")
    reason = (
        f"{pointwise['share_of_inputs']:.2%} of the inputs reach an output of the pointwise layer (the channels of "
        f"one of {pointwise['places']} positions), and {connected['share_of_inputs']:.2%} reach an output of the "
        "fully connected layer"
    )
    if connected["share_of_inputs"] < 0.5:
        return not_as_said(reason)
    if connected["share_of_inputs"] < 1 or pointwise["share_of_inputs"] < expected * (1 - 1e-9):
        return holds_when("no weight is zero", reason)
    return holds(reason)


# D2: sizes --------------------------------------------------------------------------------------------------


def sizes_to_try(size: Sequence[int]) -> list[tuple[int, int]]:
    """The map's size, sizes of equal area, and smaller and larger ones.

    >>> sizes_to_try((6, 4))
    [(6, 4), (4, 6), (1, 24), (1, 1), (3, 2), (7, 5), (12, 8), (6, 9)]
    """
    h, w = size
    sizes = [(h, w), (w, h), (1, h * w), (1, 1), (max(1, h // 2), max(1, w // 2))]
    return list(dict.fromkeys([*sizes, (h + 1, w + 1), (2 * h, 2 * w), (h, w + 5)]))


def measure_sizes(operations: Operations, leading: Callable[[Tensor], Tensor] | None = None) -> Figures:
    """Run both layers on maps of several sizes, and record whether they run, their output shape, or their error.

    `leading` is the linear layer without a flatten, (..., F) to (..., O); it is run with 0 to 3 leading axes.
    """
    sweep = []
    for role in ("pointwise", "connected"):
        op = operations[role]
        layer_size = op.map_shape[1:]
        for size in sizes_to_try(layer_size):
            x = torch.ones(1, op.map_shape[0], *size, dtype=torch.float64)
            shape, error = _try(op, x)
            sweep.append(
                {
                    "role": role,
                    "size": list(size),
                    "ran": shape is not None,
                    "output": shape,
                    "error": error,
                    "own_size": size == layer_size,
                    "same_elements": size[0] * size[1] == op.positions,
                }
            )
    features = operations["connected"].weight[0].numel()
    alone = []
    leads: tuple[tuple[int, ...], ...] = ((), (2,), (2, 3), (2, 3, 4))
    for lead in leads if leading else ():
        assert leading is not None
        out, error = _try(leading, torch.ones(*lead, features, dtype=torch.float64))
        alone.append({"leading": list(lead), "ran": out is not None, "output": out, "error": error})
    return {"sweep": sweep, "linear_alone": alone}


def _try(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[int] | None, str]:
    try:
        return list(call(x).shape), ""
    except RuntimeError as error:
        return None, str(error).splitlines()[0]


def sizes_verdict(figures: Figures) -> Verdict:
    """Holds if the convolution runs at every size and flatten + FC at its own size only."""
    sweep = figures["sweep"]
    failed = [by(s["size"]) for s in sweep if s["role"] == "pointwise" and not s["ran"]]
    connected = [s for s in sweep if s["role"] == "connected"]
    accepted = [by(s["size"]) for s in connected if s["ran"] and not s["same_elements"]]
    silent = [by(s["size"]) for s in connected if s["ran"] and s["same_elements"] and not s["own_size"]]
    if failed:
        return not_as_said(f"the pointwise layer fails on maps of {', '.join(failed)}")
    if accepted:
        return not_as_said(
            f"the layer that is claimed to need a fixed length also accepts maps of {', '.join(accepted)}"
        )
    layer_size = next(by(s["size"]) for s in connected if s["own_size"])
    alone = [s for s in figures["linear_alone"] if s["ran"]]
    leading = (
        f"; without a flatten, the linear layer accepts 0 to {len(alone) - 1} leading axes"
        if len(alone) > 1
        else ""
    )
    if silent:
        return holds_when(
            "the number of elements differs",
            f"the convolution runs at every size; flatten + FC raises an error at sizes other than {layer_size}, "
            f"except at {', '.join(silent)}, where the number of elements is the same and no error shows it{leading}",
        )
    return holds(f"the convolution runs at every size tried, flatten + FC at {layer_size} only{leading}")


# D3: permuted pixels ----------------------------------------------------------------------------------------


def measure_permutation(operations: Operations, seed: int = 0) -> Figures:
    """Permute the pixels of a map by P, and compare the outputs.

    `along_ratio` is |f(Px) − P·f(x)| over its rounding bound (for maps), `change_ratio` is |f(Px) − f(x)| over its
    bound (for vectors), and `undone_ratio` the same after permuting the columns of the weight too.
    """
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {}
    pictures: dict[str, Any] = {}
    for role, op in operations.items():
        x = op.maps(1, generator)
        order = torch.randperm(op.positions, generator=generator)
        permuted = x.flatten(2)[:, :, order].view_as(x)
        y, z = op(x), op(permuted)
        changes: Figures = {}
        if y.dim() == 4:
            if y.shape[2:] != x.shape[2:]:
                changes["along_ratio"] = float("inf")  # strided: input and output positions do not correspond
            else:
                expected = y.flatten(2)[:, :, order].view_as(y)
                changes["along_ratio"] = ratio((z - expected).abs(), op.bound(permuted))
                pictures[role] = (z - expected).abs().amax(dim=(0, 1)).tolist()
        else:
            bound = op.bound(permuted, op.positions) + op.bound(x, op.positions)
            changes["change_ratio"] = ratio((z - y).abs(), bound)
            changes["change_relative"] = float((z - y).abs().max()) / spread(y)
            if op.weight[0].numel() == x[0].numel():
                columns = op.weight.view(len(op.weight), op.map_shape[0], -1)[:, :, order]
                restored = op.with_weight(columns.reshape(op.weight.shape))(permuted)
                changes["undone_ratio"] = ratio((restored - y).abs(), op.bound(x))
        figures[role] = op.describe() | changes
    return figures | {"pictures": {"permutation_error": pictures}}


def permutation_verdict(figures: Figures) -> Verdict:
    """Holds if pointwise outputs are permuted likewise, and connected ones change unless weights are permuted too."""
    along = figures["pointwise"].get("along_ratio", float("inf"))
    connected = figures["connected"]
    if along > 1:
        return not_as_said(
            "permuting the pixels does not permute the outputs of the pointwise layer likewise: it sees neighbours"
        )
    if connected["map"][1] * connected["map"][2] == 1:
        return holds_when(SEVERAL_POSITIONS, "on one position there is nothing to permute")
    if connected["change_ratio"] <= 1:
        return not_as_said(
            "the outputs of the fully connected layer do not change when the pixels are permuted"
        )
    if connected.get("undone_ratio", float("inf")) > 1:
        return not_as_said(
            "permuting the weights too does not restore the outputs of the fully connected layer"
        )
    reason = (
        "permuting the pixels permutes the outputs of the pointwise layer likewise; the outputs of the fully connected "
        f"layer change by {connected['change_relative']:.2g} standard deviations, and are restored when the weights "
        "are permuted too, so this layer has no notion of a neighbourhood"
    )
    pooled = figures.get("pooled")
    if pooled and pooled["change_ratio"] <= 1:
        return holds_when(
            "the map is flattened",
            f"{reason}. This network pools the map before its fully connected layer, whose outputs then do not change",
        )
    return holds(reason)


# D4: dimensions ---------------------------------------------------------------------------------------------


def measure_dimensions(layers: Sequence[Mapping[str, Any]]) -> Figures:
    """How many layers of either kind reduce, expand, or keep the number of channels.

    Each layer is a mapping of `path`, `kind` ("linear" or "pointwise"), `inputs` and `outputs`.
    """
    figures: Figures = {}
    for kind in ("linear", "pointwise"):
        sizes = [(x["inputs"], x["outputs"]) for x in layers if x["kind"] == kind]
        figures[kind] = {
            "layers": len(sizes),
            "reduce": sum(o < i for i, o in sizes),
            "expand": sum(o > i for i, o in sizes),
            "keep": sum(o == i for i, o in sizes),
        }
    return figures | {"sizes": [dict(x) for x in layers]}


def dimensions_verdict(figures: Figures) -> Verdict:
    """Holds unless a fully connected layer changes the number of channels."""
    linear, pointwise = figures["linear"], figures["pointwise"]
    changed = linear["reduce"] + linear["expand"]
    counts = (
        f"of {counted(linear['layers'], 'linear layer')}, {linear['reduce']} reduce and {linear['expand']} expand the "
        f"number of channels; of {counted(pointwise['layers'], 'pointwise convolution')}, {pointwise['reduce']} and "
        f"{pointwise['expand']} do"
    )
    if changed:
        return not_as_said(f"fully connected layers do the same: {counts}")
    if linear["layers"] == 0:
        return not_available("the network calls no fully connected layer")
    return holds(f"in this network no linear layer changes the number of channels: {counts}")


# D7: shifts -------------------------------------------------------------------------------------------------


def measure_shift(operations: Operations, seed: int = 0, max_shifts: int = 16) -> Figures:
    """Shift a map cyclically, and compare the outputs.

    `equivariance_ratio` is the largest quotient of an error and its rounding bound, where f(shift x) is compared with
    shift f(x) for maps and with f(x) for vectors. `recovers_map` states whether the values that the layer multiplies
    by its weights still contain every element of the map.
    """
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {}
    pictures: dict[str, Any] = {}
    for role, op in operations.items():
        x = op.maps(1, generator)
        y = op(x)
        limit = op.bound(x, op.positions) * 2
        largest_ratio, largest_error, errors = 0.0, 0.0, []
        for shift in _shifts(op.map_shape[1:], max_shifts):
            z = op(x.roll(shift, (2, 3)))
            same = y.dim() == 4 and y.shape[2:] == x.shape[2:]
            expected = y.roll(shift, (2, 3)) if same else y
            # the bound of a map is shifted with it; that of a vector covers all inputs, wherever they are
            bound = (
                limit.roll(shift, (2, 3)) if same else op.bound(x.roll(shift, (2, 3)), op.positions) + limit
            )
            error = (z - expected).abs()
            relative = float(error.max()) / spread(y)
            largest_ratio = max(largest_ratio, ratio(error, bound))
            largest_error = max(largest_error, relative)
            errors.append({"shift": list(shift), "relative": relative})
        figures[role] = op.describe() | {
            "equivariance_ratio": largest_ratio,
            "equivariance_error": largest_error,
            "shifts": len(errors),
            "recovers_map": recovers_map(op, x),
        }
        pictures[role] = errors
    return figures | {"pictures": {"shift_error": pictures}}


def recovers_map(op: Operation, x: Tensor) -> bool:
    """Whether the map can be restored, bit for bit, from the values that the layer multiplies by its weights.

    The elements of a random map are distinct, so it suffices that all of them occur among these values.
    """
    multiplied: list[Tensor] = []

    def record(function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        if function in (F.linear, F.conv2d):
            multiplied.append(args[0])

    with observe_functions(record):
        op(x)
    values = torch.cat([tensor.flatten() for tensor in multiplied] or [x.new_empty(0)])
    return bool(torch.isin(x, values).all())


def _shifts(size: Sequence[int], limit: int) -> list[tuple[int, int]]:
    shifts = [(y, x) for y in range(size[0]) for x in range(size[1]) if (y, x) != (0, 0)]
    return [shifts[i] for i in sample(len(shifts), limit)]


def shift_verdict(figures: Figures) -> Verdict:
    """Holds if pointwise outputs shift with the map, connected ones do not, and the map cannot be restored."""
    pointwise, connected, pooled = figures["pointwise"], figures["connected"], figures.get("pooled")
    if pointwise["equivariance_ratio"] > 1:
        return not_as_said(
            "the outputs of the pointwise layer do not shift with the map: they differ by "
            f"{pointwise['equivariance_error']:.2g} standard deviations"
        )
    if connected["shifts"] == 0:
        return holds_when(SEVERAL_POSITIONS, "on one position there is nothing to shift")
    if connected["equivariance_ratio"] <= 1:
        return not_as_said("the outputs of the fully connected layer do not depend on where a pattern is")
    reason = (
        "the outputs of the pointwise layer shift with the map; those of the fully connected layer change by up to "
        f"{connected['equivariance_error']:.2g} standard deviations"
    )
    if pooled and pooled["equivariance_ratio"] <= 1:
        reason += "; after a global pool, as in this network, they do not change"
    if connected["recovers_map"]:
        return holds_when(
            "'lost' means equivariance, not information",
            f"{reason}; the flattened vector still contains the whole map, bit for bit",
        )
    return holds(reason)

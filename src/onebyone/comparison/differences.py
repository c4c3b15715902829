"""D1 to D4, D7 and D8: in what the two layers are said to differ.

Each experiment is a pair of functions: one measures and gives figures, one judges by the figures alone. The
operations come by role: "pointwise", "connected" (flatten, then a fully connected layer), and for contrast
"kernel" (a k×k convolution) and "pooled" (global pool, then a fully connected layer), where there are such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onebyone.comparison.claim_result import (
    Figures,
    Verdict,
    counted,
    holds,
    holds_when,
    not_as_said,
    not_available,
)
from onebyone.comparison.layer_function import Operation, jacobian_rows, ratio, sample, spread

Operations = Mapping[str, Operation]
"""By role: "pointwise" and "connected" at least."""


# D1 and D8: what an output reads ----------------------------------------------------------------------------


def measure_scope(operations: Operations, most: int = 8) -> Figures:
    """The support of the Jacobian of one place's outputs: which places, which channels, which share of inputs.

    `pictures` holds for each role the map (h, w) of Σ_{c,o} |∂y[o]/∂x[c]| over its largest value, to four
    digits; of a map of more than PICTURE_SIDE places per side, the largest of each block.
    """
    figures, pictures = {}, {}
    for role, op in operations.items():
        rows = jacobian_rows(op, sample(len(op.weight), most)).abs()
        image = rows.sum(dim=(0, 1))
        support = image > 0
        figures[role] = op.describe() | {
            "places": op.places,
            "places_reached": int(support.sum()),
            "channels": op.map_shape[0],
            "channels_reached": int((rows.amax(dim=(0, 2, 3)) > 0).sum()),
            "inputs": int(rows[0].numel()),
            "share_of_inputs": float((rows > 0).double().mean()),
            "outputs_examined": len(rows),
        }
        pictures[role] = _small(image / image.max().clamp_min(1e-300))
    return figures | {"pictures": {"support": pictures}}


PICTURE_SIDE = 32


def _small(image: Tensor) -> list[list[float]]:
    """A map (h, w) in [0, 1] as a picture: zeros stay zeros, and what is above them stays above."""
    block = [-(-n // PICTURE_SIDE) for n in image.shape]
    image = torch.nn.functional.max_pool2d(image[None], block, ceil_mode=True)[0]
    return [[max(1e-4, round(v, 4)) if v > 0 else 0.0 for v in row] for row in image.tolist()]


def judge_scope(figures: Figures) -> Verdict:
    """D1 holds where a pointwise output reads one place and a connected one all of several."""
    one, whole = figures["pointwise"], figures["connected"]
    kernel = figures.get("kernel")
    more = f"; a {kernel['name']} reads {kernel['places_reached']}" if kernel else ""
    if one["places_reached"] > 1:
        return not_as_said(f"the pointwise layer's output reads {one['places_reached']} places, not one")
    if one["places_reached"] < 1 or whole["places_reached"] < 1:
        return not_as_said("an output reads no place at all: its weights are zero")
    if whole["places"] == 1:
        return holds_when("the map has more than one place", "on a map of one place both read that place")
    if whole["places_reached"] < whole["places"]:
        return not_as_said(f"the connected layer reads {whole['places_reached']} of {whole['places']} places")
    return holds(
        f"a pointwise output reads 1 of {one['places']} places, a fully connected one all {whole['places']}{more}"
    )


def judge_share(figures: Figures) -> Verdict:
    """D8 holds where a pointwise output reads the channels of one place and a connected one every input."""
    one, whole = figures["pointwise"], figures["connected"]
    expected = 1 / one["places"]
    if one["share_of_inputs"] > expected * (1 + 1e-9):
        return not_as_said(
            f"the pointwise layer's output reads {one['share_of_inputs']:.2%} of the inputs, more than one "
            f"place has ({expected:.2%})"
        )
    if one["places"] == 1 or whole["places"] == 1:
        return holds_when("the map has more than one place", "on a map of one place both read every input")
    said = (
        f"{one['share_of_inputs']:.2%} of the inputs reach a pointwise output (the channels of one place of "
        f"{one['places']}), {whole['share_of_inputs']:.2%} a fully connected one"
    )
    if whole["share_of_inputs"] < 0.5:
        return not_as_said(said)
    if whole["share_of_inputs"] < 1 or one["share_of_inputs"] < expected * (1 - 1e-9):
        return holds_when("no weight is zero", said)
    return holds(said)


# D2: sizes --------------------------------------------------------------------------------------------------


def sizes_to_try(size: Sequence[int]) -> list[tuple[int, int]]:
    """The map's own size, one of equal area, and others, smaller and larger.

    >>> sizes_to_try((6, 4))
    [(6, 4), (4, 6), (1, 24), (1, 1), (3, 2), (7, 5), (12, 8), (6, 9)]
    """
    h, w = size
    tried = [(h, w), (w, h), (1, h * w), (1, 1), (max(1, h // 2), max(1, w // 2))]
    return list(dict.fromkeys([*tried, (h + 1, w + 1), (2 * h, 2 * w), (h, w + 5)]))


def measure_sizes(operations: Operations, leading: Callable[[Tensor], Tensor] | None = None) -> Figures:
    """Run both layers on maps of several sizes, and note what runs, what it gives, and what raises.

    `leading` is a linear layer alone, (..., F) to (..., O) with the connected layer's inputs, which is tried
    with 0 to 3 leading axes.
    """
    sweep = []
    for role in ("pointwise", "connected"):
        op = operations[role]
        own = op.map_shape[1:]
        for size in sizes_to_try(own):
            given = torch.ones(1, op.map_shape[0], *size, dtype=torch.float64)
            shape, error = _try(op, given)
            sweep.append(
                {
                    "role": role,
                    "size": list(size),
                    "ran": shape is not None,
                    "output": shape,
                    "error": error,
                    "own_size": size == own,
                    "same_elements": size[0] * size[1] == op.places,
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


def judge_sizes(figures: Figures) -> Verdict:
    """Holds where the convolution runs at every size and the connected layer at its own alone."""
    sweep = figures["sweep"]
    failed = [_by(s["size"]) for s in sweep if s["role"] == "pointwise" and not s["ran"]]
    connected = [s for s in sweep if s["role"] == "connected"]
    taken = [_by(s["size"]) for s in connected if s["ran"] and not s["same_elements"]]
    silent = [_by(s["size"]) for s in connected if s["ran"] and s["same_elements"] and not s["own_size"]]
    if failed:
        return not_as_said(f"the pointwise layer fails on maps of {', '.join(failed)}")
    if taken:
        return not_as_said(f"the layer said to need a fixed length also answers for {', '.join(taken)}")
    own = next(_by(s["size"]) for s in connected if s["own_size"])
    alone = [s for s in figures["linear_alone"] if s["ran"]]
    also = f"; a linear layer alone takes 0 to {len(alone) - 1} leading axes" if len(alone) > 1 else ""
    if silent:
        return holds_when(
            "the number of elements differs",
            f"the convolution runs at every size; flatten + FC raises beside {own}, but answers silently for "
            f"{', '.join(silent)}, which has as many elements{also}",
        )
    return holds(f"the convolution runs at every size tried, flatten + FC at {own} alone{also}")


# D3: permuted pixels ----------------------------------------------------------------------------------------


def measure_permutation(operations: Operations, seed: int = 0) -> Figures:
    """Shuffle the pixels of a map, and compare the answers.

    `along_ratio`: |f(Px) − P·f(x)| over its rounding bound (maps only); `change_ratio`: |f(Px) − f(x)| over
    it (vectors only); `undone_ratio`: the same with the connected weight's columns shuffled too.
    """
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {}
    pictures: dict[str, Any] = {}
    for role, op in operations.items():
        x = op.maps(1, generator)
        order = torch.randperm(op.places, generator=generator)
        shuffled = x.flatten(2)[:, :, order].view_as(x)
        y, z = op(x), op(shuffled)
        found: Figures = {}
        if y.dim() == 4:
            if y.shape[2:] != x.shape[2:]:
                found["along_ratio"] = float("inf")  # strided: the places do not even correspond
            else:
                moved = y.flatten(2)[:, :, order].view_as(y)
                found["along_ratio"] = ratio((z - moved).abs(), op.bound(shuffled))
                pictures[role] = (z - moved).abs().amax(dim=(0, 1)).tolist()
        else:
            found["change_ratio"] = ratio(
                (z - y).abs(), op.bound(shuffled, op.places) + op.bound(x, op.places)
            )
            found["change_relative"] = float((z - y).abs().max()) / spread(y)
            if op.weight[0].numel() == x[0].numel():
                columns = op.weight.view(len(op.weight), op.map_shape[0], -1)[:, :, order]
                again = op.with_weight(columns.reshape(op.weight.shape))(shuffled)
                found["undone_ratio"] = ratio((again - y).abs(), op.bound(x))
        figures[role] = op.describe() | found
    return figures | {"pictures": {"permutation_error": pictures}}


def judge_permutation(figures: Figures) -> Verdict:
    """Holds where the pointwise answers move along and the connected ones change unless weights move too."""
    along = figures["pointwise"].get("along_ratio", float("inf"))
    connected = figures["connected"]
    if along > 1:
        return not_as_said(
            "the pointwise layer's answers do not move along with the pixels: it sees neighbours"
        )
    if connected["map"][1] * connected["map"][2] == 1:
        return holds_when("the map has more than one place", "there is nothing to permute on one place")
    if connected["change_ratio"] <= 1:
        return not_as_said("the fully connected layer's answers do not change when the pixels are permuted")
    if connected.get("undone_ratio", float("inf")) > 1:
        return not_as_said("permuting the weights as well does not bring the answers back")
    said = (
        "the pointwise answers are permuted along; the fully connected ones change by "
        f"{connected['change_relative']:.2g} of their spread, and come back when the weights are permuted too: "
        "it has no notion of a neighbourhood"
    )
    pooled = figures.get("pooled")
    if pooled and pooled["change_ratio"] <= 1:
        return holds_when(
            "the map is flattened", f"{said}. Here it is pooled first, and the answers do not change"
        )
    return holds(said)


# D4: dimensions ---------------------------------------------------------------------------------------------


def measure_dimensions(layers: Sequence[Mapping[str, Any]]) -> Figures:
    """How many layers of either kind give fewer, more, or as many channels as they take.

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


def judge_dimensions(figures: Figures) -> Verdict:
    """As said, only 1×1 convolutions change the number of channels; a linear layer that does refutes it."""
    linear, pointwise = figures["linear"], figures["pointwise"]
    changed = linear["reduce"] + linear["expand"]
    said = (
        f"of {counted(linear['layers'], 'linear layer')} {linear['reduce']} reduce and {linear['expand']} "
        f"expand; of {counted(pointwise['layers'], 'pointwise convolution')} {pointwise['reduce']} and "
        f"{pointwise['expand']}"
    )
    if changed:
        return not_as_said(f"fully connected layers do it just the same: {said}")
    if linear["layers"] == 0:
        return not_available("the network calls no fully connected layer")
    return holds(f"in this network no linear layer changes the dimension: {said}")


# D7: shifts -------------------------------------------------------------------------------------------------


def measure_shift(operations: Operations, seed: int = 0, most: int = 16) -> Figures:
    """Shift a map around its edges, and compare the answers.

    `equivariance_ratio` is the largest error over its rounding bound, of f(shift x) against shift f(x) for
    maps, against f(x) for vectors; `recovers_map` says whether what the layer multiplies by its weights still
    holds every element of the map.
    """
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {}
    pictures: dict[str, Any] = {}
    for role, op in operations.items():
        x = op.maps(1, generator)
        y = op(x)
        limit = op.bound(x, op.places) * 2
        worst, largest, errors = 0.0, 0.0, []
        for shift in _shifts(op.map_shape[1:], most):
            z = op(x.roll(shift, (2, 3)))
            same = y.dim() == 4 and y.shape[2:] == x.shape[2:]
            expected = y.roll(shift, (2, 3)) if same else y
            # the bound moves along with the map; that of a vector is of all inputs, wherever they lie
            bound = limit.roll(shift, (2, 3)) if same else op.bound(x.roll(shift, (2, 3)), op.places) + limit
            error = (z - expected).abs()
            worst = max(worst, ratio(error, bound))
            largest = max(largest, float(error.max()) / spread(y))
            errors.append({"shift": list(shift), "relative": float(error.max()) / spread(y)})
        figures[role] = op.describe() | {
            "equivariance_ratio": worst,
            "equivariance_error": largest,
            "shifts": len(errors),
            "recovers_map": recovers_map(op, x),
        }
        pictures[role] = errors
    return figures | {"pictures": {"shift_error": pictures}}


def recovers_map(op: Operation, x: Tensor) -> bool:
    """Whether the map can be put together again, bit for bit, from what the layer's product is given of it.

    Elements of a random map are distinct, so it is a matter of which values are there, in whatever order.
    """
    with _Multiplied() as seen:
        op(x)
    values = torch.cat([given.flatten() for given in seen.given] or [x.new_empty(0)])
    return bool(torch.isin(x, values).all())


class _Multiplied(TorchFunctionMode):
    """Notes what products are given to multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.linear, F.conv2d):
            self.given.append(args[0])
        return func(*args, **(kwargs or {}))


def _shifts(size: Sequence[int], most: int) -> list[tuple[int, int]]:
    every = [(y, x) for y in range(size[0]) for x in range(size[1]) if (y, x) != (0, 0)]
    return [every[i] for i in sample(len(every), most)]


def judge_shift(figures: Figures) -> Verdict:
    """Kept by the one where its answers shift along; lost by the other where they do not and cannot be undone."""
    pointwise, connected, pooled = figures["pointwise"], figures["connected"], figures.get("pooled")
    if pointwise["equivariance_ratio"] > 1:
        return not_as_said(
            f"the pointwise layer does not shift along: {pointwise['equivariance_error']:.2g} of the spread"
        )
    if connected["shifts"] == 0:
        return holds_when("the map has more than one place", "there is nothing to shift on one place")
    if connected["equivariance_ratio"] <= 1:
        return not_as_said("the fully connected layer's answers do not depend on where the pattern lies")
    said = (
        "pointwise answers shift along exactly; fully connected ones change by up to "
        f"{connected['equivariance_error']:.2g} of their spread"
    )
    also = "; after a global pool, as here, they do not change" if pooled and _still(pooled) else ""
    if connected["recovers_map"]:
        return holds_when(
            "'lost' means equivariance, not information",
            f"{said}{also}; the flattened vector still holds the whole map, bit for bit",
        )
    return holds(said + also)


def _still(pooled: Mapping[str, Any]) -> bool:
    return bool(pooled["equivariance_ratio"] <= 1)


def _by(size: Sequence[int]) -> str:
    return "×".join(str(n) for n in size)

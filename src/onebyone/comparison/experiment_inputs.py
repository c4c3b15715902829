"""What the experiments are made on: the network, the chosen layers, and what several experiments share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.comparison import similarities
from onebyone.comparison.census import measure_census, read_census
from onebyone.comparison.claim_result import Figures
from onebyone.comparison.complexity import costs, measure_counts, measure_times, sizes_for, timed_part
from onebyone.comparison.dense_inference import measure_detection, measure_own
from onebyone.comparison.differences import measure_scope, measure_sizes
from onebyone.comparison.digits import DigitSplit, load_digits
from onebyone.comparison.flexibility import measure_flexibility
from onebyone.comparison.layer_calls import LINEAR, POINTWISE
from onebyone.comparison.layer_pair import ComparedLayers
from onebyone.comparison.pixel_influence import measure_influence
from onebyone.comparison.replacements import (
    lifted,
    measure_chain,
    measure_classification,
    successive,
    to_conv,
    window_of,
)
from onebyone.comparison.weight_views import row_and_filter
from onebyone.errors import BadInput, Refused
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule

_CORNER = (48, 256)  # of the two layers that are multiplied together


@dataclass(frozen=True)
class ExperimentInputs:
    """One comparison: every method gives the figures of one row."""

    model: nn.Module
    example: Any
    pair: ComparedLayers
    seed: int
    budget: float

    @cached_property
    def digits(self) -> DigitSplit:
        """The real data."""
        return load_digits(self.seed)

    @cached_property
    def image(self) -> Tensor:
        """The example, where it is images."""
        return window_of(self.example)

    @cached_property
    def dense(self) -> ConvolutionalizedModule | Refused:
        """The network for images of any size, or why there is none."""
        try:
            return lifted(self.model, self.image)
        except Refused as refusal:
            return refusal

    def learning(self) -> Figures:
        """S2, on a corner of the fully connected layer, rounded to integers, and on its own numbers."""
        op = self.pair.connected
        weight = similarities.integer_corner(op.weight)
        whole = _linear(weight, torch.arange(len(weight), dtype=torch.float64) % 7 - 3)
        real = _linear(op.weight[: len(weight), : weight.shape[1]].float(), None)
        found = similarities.measure_learning(whole, to_conv(copy.deepcopy(whole)).model, self.seed)
        own = similarities.measure_own_numbers(real, to_conv(copy.deepcopy(real)).model, self.seed)
        return op.describe() | found | {"own_numbers": own}

    def activation(self) -> Figures:
        """S3, on the fully connected layer and the one after it (a made one where there is none)."""
        op = self.pair.connected
        first = op.weight[: _CORNER[0], : _CORNER[1]]
        follows = successive(self.pair.seen)
        if follows is not None and follows[0].path == op.path:
            second = follows[1].weight()[:32, : len(first)].double().cpu()
            name = follows[1].path
        else:
            generator = torch.Generator().manual_seed(self.seed)
            second = torch.randn(32, len(first), generator=generator, dtype=torch.float64)
            name = "made (random weights)"
        module = copy.deepcopy(self.pair.activation).double().cpu().eval()
        act: Callable[[Tensor], Tensor] = module
        found = similarities.measure_activation(first, second, act, type(module).__name__, self.seed)
        return found | {"layers": [op.path, name]}

    def scope(self) -> Figures:
        """D1, and which outputs each pixel of the input moves."""
        found = measure_scope(self.pair.spatial)
        found["pictures"]["influence"] = measure_influence(self.pair.spatial)
        return found

    def sizes(self) -> Figures:
        """D2, on the layers over maps, and the linear layer alone."""
        op = self.pair.spatial["connected"]
        return measure_sizes(self.pair.spatial, lambda x: nn.functional.linear(x, op.weight, op.bias))

    def layer_sizes(self) -> list[dict[str, Any]]:
        """For D4: every linear layer and 1×1 convolution with its channels in and out."""
        return [
            {"path": s.path, "kind": s.kind, "inputs": s.inputs, "outputs": s.outputs}
            for s in self.pair.seen
            if s.kind in (LINEAR, POINTWISE)
        ]

    def complexity(self) -> Figures:
        """D5, with the channels of the pointwise layer."""
        op = self.pair.spatial["pointwise"]
        channels, outputs = op.map_shape[0], op.outputs
        sizes = sizes_for(op.map_shape[1:])
        timed, timed_sizes = timed_part(channels, outputs, sizes)
        found = measure_counts(costs(channels, outputs), sizes)
        times = measure_times(channels, timed, timed_sizes, 0.06 * self.budget, self.seed)
        return op.describe() | found | {"channels": channels, "times": times | {"outputs_timed": timed}}

    def census(self) -> Figures:
        """D6, with the census of the networks that are well known."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return measure_census(self.pair.seen, parameters, read_census())

    def chain(self) -> Figures:
        """R2, with the shapes of the network's two last linear layers in a row."""
        follows = successive(self.pair.seen)
        if follows is None:
            op = self.pair.connected
            paths = (op.path, "made")
            found = measure_chain(op.map_shape, op.outputs, 10, paths=paths, seed=self.seed)
        else:
            first, second = follows
            block = first.block or (first.inputs, 1, 1)
            paths = (first.path, second.path)
            found = measure_chain(block, first.outputs, second.outputs, paths=paths, seed=self.seed)
        return found | {"pictures": {"filter": row_and_filter(self.pair)}}

    def classification(self) -> Figures:
        """R3."""
        return measure_classification(self.model, self.image, self.dense, self.seed)

    def flexibility(self) -> Figures:
        """S5, with as many starts as the budget allows."""
        return measure_flexibility(self.digits, seeds=4 if self.budget >= 60 else 2, seed=self.seed)

    @cached_property
    def own_detection(self) -> Figures:
        """R4's part on the user's own network, as far as speed and agreement go."""
        try:
            if isinstance(self.dense, Refused):
                why = "; ".join(str(r) for r in self.dense.refusals[:3])
                return {"own": None, "own_refused": why}
            own = measure_own(self.dense, self.model, seconds=0.08 * self.budget, seed=self.seed)
            return {"own": own}
        except BadInput as error:
            return {"own": None, "own_refused": str(error)}

    def detection(self) -> Figures:
        """R4, on digits, and on the user's own network."""
        return measure_detection(self.digits, seed=self.seed) | self.own_detection


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight), bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer

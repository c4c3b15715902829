"""What the experiments run on: the network, the chosen layers, the budget, and data that several of them share."""

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
from onebyone.comparison.dense_inference import measure_detection, measure_on_network
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

_ACTIVATION_CORNER = (48, 256)  # outputs and inputs of the first of the two layers in S3
CREATED = "created"
"""Stands for the path of a layer that was created for an experiment."""


@dataclass(frozen=True)
class ExperimentInputs:
    """The inputs of one comparison; every method that is named after an experiment returns its figures."""

    model: nn.Module
    example: Any
    pair: ComparedLayers
    seed: int
    budget: float

    @cached_property
    def digits(self) -> DigitSplit:
        """Handwritten digits, the real data of S5 and R4."""
        return load_digits(self.seed)

    @cached_property
    def image(self) -> Tensor:
        """The example as images (N, C, H, W); raises BadInput if it is something else."""
        return window_of(self.example)

    @cached_property
    def dense(self) -> ConvolutionalizedModule | Refused:
        """The network for images of any size, or the refusal with the reasons why there is none."""
        try:
            return lifted(self.model, self.image)
        except Refused as refusal:
            return refusal

    def learning(self) -> Figures:
        """S2: on a corner of the fully connected layer, once rounded to integers and once with its real weights."""
        op = self.pair.connected
        weight = similarities.integer_corner(op.weight)
        exact = _linear(weight, torch.arange(len(weight), dtype=torch.float64) % 7 - 3)
        real = _linear(op.weight[: len(weight), : weight.shape[1]].float(), None)
        figures = similarities.measure_learning(exact, to_conv(copy.deepcopy(exact)).model, self.seed)
        real_figures = similarities.measure_real_learning(real, to_conv(copy.deepcopy(real)).model, self.seed)
        return op.describe() | figures | {"own_numbers": real_figures}

    def activation(self) -> Figures:
        """S3: on the fully connected layer and the one that follows it, or a random one if none follows."""
        op = self.pair.connected
        first = op.weight[: _ACTIVATION_CORNER[0], : _ACTIVATION_CORNER[1]]
        chain = successive(self.pair.calls)
        if chain is not None and chain[0].path == op.path:
            second = chain[1].weight()[:32, : len(first)].double().cpu()
            name = chain[1].path
        else:
            generator = torch.Generator().manual_seed(self.seed)
            second = torch.randn(32, len(first), generator=generator, dtype=torch.float64)
            name = f"{CREATED} (random weights)"
        module = copy.deepcopy(self.pair.activation).double().cpu().eval()
        function: Callable[[Tensor], Tensor] = module
        figures = similarities.measure_activation(first, second, function, type(module).__name__, self.seed)
        return figures | {"layers": [op.path, name]}

    def scope(self) -> Figures:
        """D1: the support of the Jacobian, and which outputs change with each pixel of the input."""
        figures = measure_scope(self.pair.spatial)
        figures["pictures"]["influence"] = measure_influence(self.pair.spatial)
        return figures

    def sizes(self) -> Figures:
        """D2: on the layers over maps, and on the linear layer without a flatten."""
        op = self.pair.spatial["connected"]
        return measure_sizes(self.pair.spatial, lambda x: nn.functional.linear(x, op.weight, op.bias))

    def layer_sizes(self) -> list[dict[str, Any]]:
        """For D4: every linear layer and 1×1 convolution with its input and output channels."""
        return [
            {"path": c.path, "kind": c.kind, "inputs": c.inputs, "outputs": c.outputs}
            for c in self.pair.calls
            if c.kind in (LINEAR, POINTWISE)
        ]

    def complexity(self) -> Figures:
        """D5: with the channels of the pointwise layer."""
        op = self.pair.spatial["pointwise"]
        channels, outputs = op.map_shape[0], op.outputs
        sizes = sizes_for(op.map_shape[1:])
        timed_outputs, timed_sizes = timed_part(channels, outputs, sizes)
        counts = measure_counts(costs(channels, outputs), sizes)
        times = measure_times(channels, timed_outputs, timed_sizes, 0.06 * self.budget, self.seed)
        times |= {"outputs_timed": timed_outputs}
        return op.describe() | counts | {"channels": channels, "times": times}

    def census(self) -> Figures:
        """D6: in this network, and in the model zoo."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return measure_census(self.pair.calls, parameters, read_census())

    def chain(self) -> Figures:
        """R2: with the shapes of two successive linear layers of the network."""
        layers = successive(self.pair.calls)
        if layers is None:
            op = self.pair.connected
            paths = (op.path, CREATED)
            figures = measure_chain(op.map_shape, op.outputs, 10, paths=paths, seed=self.seed)
        else:
            first, second = layers
            block = first.block or (first.inputs, 1, 1)
            paths = (first.path, second.path)
            figures = measure_chain(block, first.outputs, second.outputs, paths=paths, seed=self.seed)
        return figures | {"pictures": {"filter": row_and_filter(self.pair)}}

    def classification(self) -> Figures:
        """R3."""
        return measure_classification(self.model, self.image, self.dense, self.seed)

    def flexibility(self) -> Figures:
        """S5: with as many training runs as the budget allows."""
        return measure_flexibility(self.digits, seeds=4 if self.budget >= 60 else 2, seed=self.seed)

    @cached_property
    def network_detection(self) -> Figures:
        """The part of R4 on the user's network: speed, and agreement with cropping every window."""
        try:
            if isinstance(self.dense, Refused):
                return {"own": None, "own_refused": "; ".join(str(r) for r in self.dense.refusals[:3])}
            seconds = 0.08 * self.budget
            return {"own": measure_on_network(self.dense, self.model, seconds=seconds, seed=self.seed)}
        except BadInput as error:
            return {"own": None, "own_refused": str(error)}

    def detection(self) -> Figures:
        """R4: on digits, and on the user's network."""
        return measure_detection(self.digits, seed=self.seed) | self.network_detection


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight), bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer

"""The layers of a network as the example runs them, with identical layers grouped.

Layers are grouped if they have the same kind, settings, weight shape, input shape and input memory format, and their
paths differ only in numbers (`blocks.0.mlp.fc1`, `blocks.1.mlp.fc1`). Such layers belong to repeated blocks, and the
form that is best for one is best for all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.laws.cost import Cost
from onebyone.pytorch.modules.attention import why_not_attention
from onebyone.pytorch.modules.layers import CONVOLUTIONS, has_patches, kind_of, sample_weight, why_not
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.layer_forms import ATTENTION, CONV, KERNEL, LINEAR, PATCHES
from onebyone.verification.calls import first_input, observe_modules
from onebyone.verification.evaluation_context import eval_mode

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """A group of identical layers.

    `paths` are those of all its layers, and `pattern` is what they have in common. `module` is the first layer, and
    `sample` the input of its first call, in the same memory format. `weight` is the shape of the weight, `cost` that of
    one call, and `calls` the number of calls of all layers in one run. `convertible`: the layers can take other forms.
    """

    kind: str
    pattern: str
    paths: tuple[str, ...]
    module: nn.Module
    sample: Tensor
    weight: tuple[int, ...]
    cost: Cost
    calls: int
    convertible: bool = True

    @property
    def channels_last(self) -> bool:
        """Whether the input is a map in channels-last memory format."""
        x = self.sample
        return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()

    @property
    def macs(self) -> int:
        """The multiply-accumulates of all calls together."""
        return self.cost.macs * self.calls


def path_pattern(path: str) -> str:
    """Return a path with its numbers replaced by asterisks.

    >>> path_pattern("blocks.11.mlp.fc1"), path_pattern("stage1.conv"), path_pattern("3")
    ('blocks.*.mlp.fc1', 'stage1.conv', '*')
    """
    return _NUMBER.sub("*", path)


@dataclass(frozen=True)
class _GroupKey:
    """What the layers of a group have in common."""

    kind: str
    pattern: str
    weight: tuple[int, ...]
    input_shape: tuple[int, ...]
    input_strides: tuple[int, ...]
    dtype: torch.dtype
    settings: tuple[str, ...]


@dataclass
class _LayerCalls:
    """A layer's calls in one run; `sample` is kept for the first layer of a group only."""

    key: _GroupKey
    module: nn.Module
    sample: Tensor | None
    output_shape: tuple[int, ...]
    calls: int = 1


def group_layers(network: nn.Module, signature: CallSignature) -> tuple[LayerGroup, ...]:
    """Run the example once, and group every linear layer, convolution and attention, in the order of first calls."""
    kinds = {path: _kind(module) for path, module in network.named_modules()}
    layers = {path: module for path, module in network.named_modules() if kinds[path] is not None}
    calls_by_path: dict[str, _LayerCalls] = {}
    keys: set[_GroupKey] = set()

    def after(
        path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        kind, x = str(kinds[path]), first_input(args, kwargs)
        output = output[0] if kind == ATTENTION else output
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.is_nested:
            return
        if path in calls_by_path:
            calls_by_path[path].calls += 1
            return
        shape, strides = tuple(x.shape), tuple(x.stride())
        key = _GroupKey(
            kind, path_pattern(path), _weight_shape(module), shape, strides, x.dtype, _settings(module)
        )
        sample = None if key in keys else x.detach().clone()
        keys.add(key)
        calls_by_path[path] = _LayerCalls(key, module, sample, tuple(output.shape))

    with eval_mode(network), torch.inference_mode(), observe_modules(layers, after=after):
        signature.run(network)
    members: dict[_GroupKey, list[str]] = defaultdict(list)
    for path, calls in calls_by_path.items():
        members[calls.key].append(path)
    return tuple(_group(key, paths, calls_by_path) for key, paths in members.items())


def _group(key: _GroupKey, paths: list[str], calls_by_path: dict[str, _LayerCalls]) -> LayerGroup:
    first = calls_by_path[paths[0]]
    module: Any = first.module
    assert first.sample is not None
    calls = sum(calls_by_path[p].calls for p in paths)
    why_not_convertible = why_not_attention if key.kind == ATTENTION else why_not
    convertible = key.kind != KERNEL and why_not_convertible(module) is None
    cost = _cost(first.module, first.sample, key.weight, first.output_shape)
    return LayerGroup(
        key.kind, key.pattern, tuple(paths), first.module, first.sample, key.weight, cost, calls, convertible
    )


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight; for attention, of its four square projections stacked."""
    if isinstance(module, nn.MultiheadAttention):
        return (4 * module.embed_dim, module.embed_dim)
    return tuple(sample_weight(module).shape)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    kind = kind_of(module)
    if kind is not None:
        weight = sample_weight(module) if why_not(module) is None else None
        return None if weight is None else LINEAR if kind == "linear" else CONV
    if has_patches(module) and why_not(module) is None:
        return PATCHES
    return KERNEL if isinstance(module, CONVOLUTIONS) else None


def _settings(module: nn.Module) -> tuple[str, ...]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(str(getattr(module, name, "")) for name in names)


def _cost(module: nn.Module, x: Tensor, weight: tuple[int, ...], output: tuple[int, ...]) -> Cost:
    outputs, products_per_output = torch.Size(output).numel(), torch.Size(weight[1:]).numel()
    outputs *= 4 if isinstance(module, nn.MultiheadAttention) else 1
    bias = getattr(module, "bias", None)
    parameters = torch.Size(weight).numel() + (bias.numel() if isinstance(bias, Tensor) else 0)
    itemsize = x.element_size()
    bytes_read = itemsize * (x.numel() + parameters)
    return Cost(parameters, outputs * products_per_output, bytes_read, itemsize * outputs)

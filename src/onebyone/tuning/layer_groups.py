"""The layers of a network as the example runs them, in groups of alike ones.

Alike are layers of one kind with the same weights' and inputs' shapes and layouts, at paths that differ in numbers
alone (`blocks.0.mlp.fc1`, `blocks.1.mlp.fc1`): repeated blocks, in which what is best for one is best for all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.laws.cost import Cost
from onebyone.pytorch.modules.attention import why_not_attention
from onebyone.pytorch.modules.layers import CONVOLUTIONS, has_patches, kind_of, sample_weight, why_not
from onebyone.tuning.call_signature import Calling
from onebyone.tuning.layer_forms import ATTENTION, CONV, KERNEL, LINEAR, PATCHES
from onebyone.verification.evaluation_context import eval_mode

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """Alike layers: their paths, the first one's module, and the input it was called on (as it lay in memory).

    `weight` is the weight's shape; `calls` how often all of them run together; `cost` that of one call.
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
        """Whether its map lies channels last."""
        x = self.sample
        return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()

    @property
    def macs(self) -> int:
        """Of all calls together."""
        return self.cost.macs * self.calls


def pattern_of(path: str) -> str:
    """The path with its numbers left open.

    >>> pattern_of("blocks.11.mlp.fc1"), pattern_of("stage1.conv"), pattern_of("3")
    ('blocks.*.mlp.fc1', 'stage1.conv', '*')
    """
    return _NUMBER.sub("*", path)


def groups_of(network: nn.Module, calling: Calling) -> tuple[LayerGroup, ...]:
    """Run the example once and see every linear layer and convolution that is called, in order of first calls."""
    seen: dict[str, list[Any]] = {}
    first: dict[tuple[Any, ...], str] = {}

    def hook(path: str, kind: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            out = out[0] if kind == ATTENTION else out
            if not isinstance(x, Tensor) or not isinstance(out, Tensor) or x.is_nested:
                return
            if path in seen:
                seen[path][-1] += 1
                return
            weight = _weight(module)
            look = (kind, pattern_of(path), weight, tuple(x.shape), x.stride(), x.dtype, _settings(module))
            kept = None
            if look not in first:
                first[look] = path
                kept = x.detach().clone()
            seen[path] = [look, module, kept, weight, tuple(out.shape), 1]

        return after

    with ExitStack() as stack, eval_mode(network), torch.inference_mode():
        for path, module in network.named_modules():
            kind = _kind(module)
            if kind is not None:
                handle = module.register_forward_hook(hook(path, kind), with_kwargs=True)
                stack.callback(handle.remove)
        calling.run(network)
    members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for path, (look, *_rest) in seen.items():
        members[look].append(path)
    return tuple(_group(look, paths, seen) for look, paths in members.items())


def _group(look: tuple[Any, ...], paths: list[str], seen: dict[str, list[Any]]) -> LayerGroup:
    _, module, sample, weight, out, _ = seen[paths[0]]
    calls = sum(seen[p][-1] for p in paths)
    can_be = why_not_attention if look[0] == ATTENTION else why_not
    convertible = look[0] != KERNEL and can_be(module) is None
    cost = _cost(module, sample, weight, out)
    return LayerGroup(look[0], look[1], tuple(paths), module, sample, weight, cost, calls, convertible)


def _weight(module: nn.Module) -> tuple[int, ...]:
    """Its weight's shape; of an attention, the four square projections' as one."""
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


def _settings(module: nn.Module) -> tuple[Any, ...]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(str(getattr(module, name, "")) for name in names)


def _cost(module: nn.Module, x: Tensor, weight: tuple[int, ...], out: tuple[int, ...]) -> Cost:
    outputs, taps = torch.Size(out).numel(), torch.Size(weight[1:]).numel()
    outputs *= 4 if isinstance(module, nn.MultiheadAttention) else 1
    bias = getattr(module, "bias", None)
    parameters = torch.Size(weight).numel() + (bias.numel() if isinstance(bias, Tensor) else 0)
    size = x.element_size()
    return Cost(parameters, outputs * taps, size * (x.numel() + parameters), size * outputs)

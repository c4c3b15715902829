"""Record the inputs of chosen layers during a run, and find the first module whose output differs in two runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.verification.calls import first_input, observe_modules, observe_operators
from onebyone.verification.pytree import leaves, wide
from onebyone.verification.structure_checks import plain_attributes

#: A layer's bound is checked on about this many products, and on at most `POSITIONS` positions.
PRODUCTS = 2**27
POSITIONS = 128


def record_inputs(
    run: Callable[[], Any], model: nn.Module, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """The first input of each layer during `run()`, by path, reduced to a sample.

    The sample is a copy, because later operators may change the input in place (a residual `+=`). A layer that is not a
    module of the network (in an exported program), or that is never called (`nn.MultiheadAttention` reads the weights
    of its projections), is recognised by its weight: its input is the first other value of an operator that reads the
    weight. A layer that is neither called nor recognised is absent from the result.
    """
    inputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    called = {path: modules[path] for path in modules.keys() & layers.keys()}
    weight_uses = _WeightUses(model, layers)

    def keep(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_input(args, kwargs)
        if path not in inputs and isinstance(x, Tensor):
            inputs[path] = sample(x.detach(), module)

    with observe_modules(called, before=keep), observe_operators(before=weight_uses.keep):
        run()
    recognised = weight_uses.inputs.items()
    return inputs | {p: x for p, x in recognised if p not in inputs and _accepts(layers[p], x)}


def _accepts(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer runs on a value that an operator multiplied with its weight (or with its transpose)."""
    try:
        with torch.no_grad():
            layer.forward(x)  # not layer(x), which would run the user's hooks
    except Exception:
        return False
    return True


class _WeightUses:
    """Keeps, for each layer, the first value that an operator reads together with the layer's weight.

    The value must be a floating tensor that is not a weight, buffer or plain attribute of the network itself.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.inputs: dict[str, Tensor] = {}
        self.paths: dict[Any, list[str]] = {}
        for path, layer in layers.items():
            weight = vars(layer)["_parameters"].get("weight")
            if weight is not None and weight.numel():
                self.paths.setdefault(_address(weight), []).append(path)
        own = [*model.parameters(), *model.buffers(), *plain_attributes(model).values()]
        self.weights = {_address(t) for t in own}

    def keep(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before each operator, which may change its arguments in place."""
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for t in tensors if len(tensors) > 1 else ():
            for path in self.paths.get(_address(t), ()):
                values = (
                    v
                    for v in tensors
                    if v.is_floating_point() or v.is_complex()
                    if _address(v) not in self.weights
                )
                x = next(values, None)
                if x is not None and path not in self.inputs:
                    self.inputs[path] = sample(x.detach(), self.layers[path])


def _address(t: Tensor) -> Any:
    """The memory address of a tensor's values, which its transpose shares; its identity if it has no memory."""
    try:
        return t.data_ptr(), t.numel()
    except RuntimeError:
        return id(t)


def sample(x: Tensor, module: nn.Module) -> Tensor:
    """A copy of at most about `POSITIONS` positions of a layer's input (fewer for large weights), evenly spread.

    A position is a row of a linear layer's input, or a spatial position of a 1×1 convolution's. All of its features are
    kept.
    """
    weight = getattr(module, "weight", None)
    size = weight.numel() if isinstance(weight, Tensor) else 1
    allowed = max(4, min(POSITIONS, PRODUCTS // max(1, size)))
    rank = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    spatial = next((n for cls, n in rank.items() if isinstance(module, cls)), 0)
    features = x.dim() - 1 - spatial
    kernel = max(module.kernel_size) if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
    axes = [a for a in range(x.dim()) if a != features and (kernel == 1 or a < features)]
    while axes:
        positions = 1
        for a in axes:
            positions *= x.shape[a]
        longest = max(axes, key=lambda a: x.shape[a])
        if positions <= allowed or x.shape[longest] <= 2:
            break
        keep = max(2, x.shape[longest] * allowed // positions)
        where = torch.linspace(0, x.shape[longest] - 1, keep, dtype=torch.float64).round().long().to(x.device)
        x = x.index_select(longest, where)
    return x.clone()


def first_difference(
    run_original: Callable[[], Any],
    run_converted: Callable[[], Any],
    original: nn.Module,
    converted: nn.Module,
    limit: Callable[[Tensor], float],
) -> str | None:
    """The dotted path of the first module, in order of execution, whose output differs; None if none does.

    Modules that both networks have at the same path are compared call by call. Inner modules return before the modules
    around them, so that the result is the innermost one. `limit(t)` is the difference that is allowed for a tensor `t`.
    """
    original_modules, converted_modules = dict(original.named_modules()), dict(converted.named_modules())
    shared = set(original_modules) & set(converted_modules) - {""}
    record: dict[tuple[str, int], list[Tensor]] = {}
    _watch(run_original, original_modules, shared, lambda key, value: record.setdefault(key, value) is None)
    first: list[str] = []

    def compare(key: tuple[str, int], value: list[Tensor]) -> bool:
        before = record.get(key)
        if before is None:
            return False
        differs = len(before) != len(value) or any(
            a.shape != b.shape or not float((a - b).abs().max() if a.numel() else 0) <= limit(a)
            for a, b in zip(before, value, strict=False)
        )
        if differs:
            first.append(key[0])
        return differs

    _watch(run_converted, converted_modules, shared, compare)
    return first[0] if first else None


class _FirstDifferenceError(Exception):
    """Stops the second run at the first difference."""


def _watch(
    run: Callable[[], Any],
    modules: dict[str, nn.Module],
    paths: set[str],
    stop: Callable[[tuple[str, int], list[Tensor]], bool],
) -> None:
    """Call `stop((path, number of the call), outputs)` after each call of a module, until it returns True."""
    calls: defaultdict[str, Iterator[int]] = defaultdict(count)

    def after(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if stop((path, next(calls[path])), [wide(t).clone() for _, t in leaves(output)]):
            raise _FirstDifferenceError

    with suppress(_FirstDifferenceError), observe_modules({p: modules[p] for p in paths}, after=after):
        run()

"""Watching a network run: the inputs of chosen layers, and the first module whose output differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.verification.pytree import leaves, wide

# a layer's bound is checked on about this many products, and on at most this many positions
PRODUCTS = 2**27
POSITIONS = 128


def record_inputs(
    run: Callable[[], Any], model: nn.Module, layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """The first input of each layer, by its path, while `run()` runs, cut down to a sample and copied.

    Copied, because what follows may change it in place (a residual `+=`). A layer that is no module of the network
    (in an exported program) or is never called (`nn.MultiheadAttention` reads its projections' weights) is known by
    its weight: the answer has the first value that met it in an operator. Layers of which neither is seen are absent.
    """
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    meetings = _Meetings(model, layers)

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next(iter(args), None) if args else next(iter(kwargs.values()), None)
            if path not in found and isinstance(given, Tensor):
                found[path] = sample(given.detach(), module)

        return keep

    with ExitStack() as stack:
        for path in modules.keys() & layers.keys():
            handle = modules[path].register_forward_pre_hook(hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(meetings)
        run()
    return found | {p: x for p, x in meetings.found.items() if p not in found and _takes(layers[p], x)}


def _takes(layer: nn.Module, x: Tensor) -> bool:
    """Whether a value that met the layer's weight is an input of the layer, and not of its transpose for one."""
    try:
        with torch.no_grad():
            layer.forward(x)  # without the hooks of its users
    except Exception:
        return False
    return True


class _Meetings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the first value that meets each layer's weight in an operator and is no weight itself."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = layers
        self.found: dict[str, Tensor] = {}
        self.paths: dict[Any, list[str]] = {}
        for path, layer in layers.items():
            weight = vars(layer)["_parameters"].get("weight")
            if weight is not None and weight.numel():
                self.paths.setdefault(_address(weight), []).append(path)
        self.weights = {_address(t) for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [t for t in pytree.tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        for t in tensors if len(tensors) > 1 else ():
            for path in self.paths.get(_address(t), ()):
                values = (
                    v
                    for v in tensors
                    if v.is_floating_point() or v.is_complex()
                    if _address(v) not in self.weights
                )
                met = next(values, None)
                if met is not None and path not in self.found:
                    self.found[path] = sample(met.detach(), self.layers[path])
        return func(*args, **(kwargs or {}))


def _address(t: Tensor) -> Any:
    """Where a tensor's values are, the same for its transpose; itself where it has no memory of its own."""
    try:
        return t.data_ptr(), t.numel()
    except RuntimeError:
        return id(t)


def sample(x: Tensor, module: nn.Module) -> Tensor:
    """A copy of at most about `POSITIONS` positions of a layer's input (fewer for large weights), evenly
    spread.

    A position is a row of a linear layer's input or a place of a 1×1 convolution's; its features are kept
    whole.
    """
    weight = getattr(module, "weight", None)
    size = weight.numel() if isinstance(weight, Tensor) else 1
    allowed = max(4, min(POSITIONS, PRODUCTS // max(1, size)))
    rank = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    spatial = next((n for cls, n in rank.items() if isinstance(module, cls)), 0)
    features = x.dim() - 1 - spatial
    kernel = max(getattr(module, "kernel_size", (1,))) if spatial else 1
    axes = [a for a in range(x.dim()) if a != features and (kernel == 1 or a < features)]
    while axes:
        positions = 1
        for a in axes:
            positions *= x.shape[a]
        longest = max(axes, key=lambda a: x.shape[a])
        if positions <= allowed or x.shape[longest] <= 2:
            break
        keep = max(2, x.shape[longest] * allowed // positions)
        where = torch.linspace(0, x.shape[longest] - 1, keep, device=x.device).round().long()
        x = x.index_select(longest, where)
    return x.clone()


def first_difference(
    run_original: Callable[[], Any],
    run_converted: Callable[[], Any],
    original: nn.Module,
    converted: nn.Module,
    limit: Callable[[Tensor], float],
) -> str | None:
    """The dotted path of the first module, in order of execution, whose output differs; None where none does.

    Modules that both networks have under one path are compared call by call. Inner modules end before the
    ones around them, so the answer is the innermost. `limit` gives the difference allowed for a tensor's
    magnitude.
    """
    ours, theirs = _module_paths(original), _module_paths(converted)
    shared = set(ours) & set(theirs) - {""}
    record: dict[tuple[str, int], list[Tensor]] = {}
    _watch(run_original, ours, shared, lambda key, value: record.setdefault(key, value) is None)
    answer: list[str] = []

    def compare(key: tuple[str, int], value: list[Tensor]) -> bool:
        before = record.get(key)
        if before is None:
            return False
        differs = len(before) != len(value) or any(
            a.shape != b.shape or not float((a - b).abs().max() if a.numel() else 0) <= limit(a)
            for a, b in zip(before, value, strict=False)
        )
        if differs:
            answer.append(key[0])
        return differs

    _watch(run_converted, theirs, shared, compare)
    return answer[0] if answer else None


class _FoundError(Exception):
    """Stops the second run at the first difference."""


def _module_paths(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules())


def _watch(
    run: Callable[[], Any],
    modules: dict[str, nn.Module],
    paths: set[str],
    seen: Callable[[tuple[str, int], list[Tensor]], bool],
) -> None:
    calls: dict[str, int] = {}

    def hook(path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] = calls.get(path, -1) + 1
            if seen((path, calls[path]), [wide(t).clone() for _, t in leaves(output)]):
                raise _FoundError

        return after

    with ExitStack() as stack:
        for path in paths:
            stack.callback(modules[path].register_forward_hook(hook(path)).remove)
        try:
            run()
        except _FoundError:
            return

"""A converted layer as the checks see it: two functions of an input and of the original's parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from onebyone.pytorch.modules.layers import kind_of, sample_weight
from onebyone.records import first_line

Params = dict[str, Tensor]


@dataclass(frozen=True)
class ProbedLayer:
    """One layer in two forms.

    `original(x, params)` and `converted(x, params)` both take the *original's* parameters, by its names and
    in its shapes. `params` holds the real ones, `shapes` the input shapes to probe, `terms` the length of
    the sum behind one output, `map_shape` the (C, h, w) that a flatten turned into features (None: no
    flatten).
    """

    path: str
    kind: str
    law: str
    original: Callable[[Tensor, Params], Tensor]
    converted: Callable[[Tensor, Params], Tensor]
    params: Params
    shapes: tuple[tuple[int, ...], ...]
    terms: int
    map_shape: tuple[int, ...] | None = None


class UnverifiableError(Exception):
    """A layer (or a whole comparison) that a check does not apply to; the message says why."""


def module_subject(
    path: str,
    original: nn.Module,
    converted: nn.Module,
    law: str = "",
    from_original: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    names: Mapping[str, str] | None = None,
) -> ProbedLayer:
    """The subject for a pair of modules that take the same input.

    `from_original` maps a state dict of the original network; `names` gives the network's name of each of the
    original's tensors (by default `path` and the tensor's own name).

    Both are checked bare: hooks and parametrisations are left off (the whole network's comparison includes
    them), the tensors are shared and the user's modules are not touched.

    Raises
    ------
    UnverifiableError
        where the original is no plain linear map of one weight, or its parameters cannot be carried over.
    """
    before, after = bare_copy(original), bare_copy(converted)
    params = dict(before.named_parameters())
    if "weight" not in params or not set(params) <= {"weight", "bias"}:
        raise UnverifiableError(
            f"a {type(original).__name__} is not one weight and a bias: no integer probe for it"
        )
    if any(p.is_meta for p in params.values()):
        raise UnverifiableError("its weights are on the meta device and have no values")
    known = {n: f"{path}.{n}" if path else n for n in params} | dict(names or {})
    carry = _carrier(known, path, params, dict(after.named_parameters()), from_original)
    weight = params["weight"]
    return ProbedLayer(
        path=path,
        kind=type(original).__name__,
        law=law,
        original=lambda x, p: _tensor(functional_call(before, p, (x,))),
        converted=lambda x, p: _tensor(functional_call(after, carry(p), (x,))),
        params={name: p.detach() for name, p in params.items()},
        shapes=_probe_shapes(original, weight),
        terms=max(1, weight.numel() // max(1, _outputs(original, params))),
    )


def bare_copy(module: nn.Module) -> nn.Module:
    """A copy that shares every tensor, in eval mode, without hooks, its parametrised tensors made plain."""
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    for child in module.modules():
        # tensors that weight-norm and the like leave as plain attributes cannot be deep-copied
        shared |= {id(v): v for v in vars(child).values() if isinstance(v, Tensor)}
    bare = copy.deepcopy(module, shared)
    for child in bare.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(child, name).clear()
        for name in list(getattr(child, "parametrizations", {})):
            value = getattr(child, name).detach()
            _make_plain(child, name, value)
        for name in ("weight", "bias"):
            value = vars(child).get(name)
            if isinstance(value, Tensor):
                _make_plain(child, name, value.detach())
    return bare.eval()


def _make_plain(module: nn.Module, name: str, value: Tensor) -> None:
    if parametrize.is_parametrized(module, name):
        # dropping the record, not remove_parametrizations(): that writes into the shared original tensors
        del module.parametrizations[name]  # type: ignore[union-attr,operator]
        if not len(module.parametrizations):  # type: ignore[arg-type]
            del module.parametrizations
        module.__class__ = module.__class__.__bases__[0]
    vars(module).pop(name, None)
    for leftover in (f"{name}_g", f"{name}_v", f"{name}_orig"):
        module._parameters.pop(leftover, None)
    module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _outputs(module: nn.Module, params: Mapping[str, Tensor]) -> int:
    for name in ("out_features", "out_channels", "nf"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    if kind_of(module) is not None:
        return int(sample_weight(module).shape[0])
    return params["weight"].shape[0]


def _probe_shapes(module: nn.Module, weight: Tensor) -> tuple[tuple[int, ...], ...]:
    """Batches and spatial sizes above 1 and unlike one another: a mix-up of axes cannot hide behind a 1.

    Where a layer has a stride, the second size leaves a remainder that no window reads.
    """
    axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    for cls, rank in axes.items():
        if isinstance(module, cls):
            channels = weight.shape[1] * module.groups
            size = tuple(_extent(module, a) + int(module.stride[a]) * (2 + a) for a in range(rank))
            more = tuple(n + int(s) - 1 for n, s in zip(size, module.stride, strict=True))
            return ((2, channels, *size), (channels, *more))
    features = getattr(module, "in_features", None) or weight.numel() // _outputs(module, {"weight": weight})
    if weight.numel() > 2**22:  # fewer ranks where each costs a second
        return ((2, 3, features),)
    return ((2, 3, 5, features), (3, 5, features), (2, features), (features,))


def _extent(module: Any, axis: int) -> int:
    return (int(module.kernel_size[axis]) - 1) * int(module.dilation[axis]) + 1


def _carrier(
    names: Mapping[str, str],
    path: str,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    from_original: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None,
) -> Callable[[Params], Params]:
    """How the original's parameters become the converted layer's; `names` are those in the network's state dict."""
    same = {n: p.shape for n, p in before.items()} == {n: p.shape for n, p in after.items()}
    if from_original is None:
        if same:
            return dict
        if set(before) == set(after) and all(_squeezed(before[n]) == _squeezed(after[n]) for n in before):
            return lambda params: {n: p.reshape(after[n].shape) for n, p in params.items()}
        raise UnverifiableError(_no_way(before, after))
    carry, back = from_original, {name: n for n, name in names.items()}
    prefix = f"{path}." if path else ""

    def through_conversion(params: Params) -> Params:
        mapped = carry({names[n]: p for n, p in params.items()})
        return {back.get(name, name.removeprefix(prefix)): p for name, p in mapped.items()}

    try:
        mapped = through_conversion(dict(before))
    except Exception as error:
        raise UnverifiableError(f"its parameters cannot be carried over: {first_line(error)}") from error
    # equal shapes alone say nothing: a square weight may be transposed
    if {n: p.shape for n, p in mapped.items()} != {n: p.shape for n, p in after.items()}:
        raise UnverifiableError(_no_way(before, after))
    return through_conversion


def _no_way(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    return f"its parameters {sorted(after)} do not follow from the original's {sorted(before)}"


def _squeezed(t: Tensor) -> list[int]:
    return [n for n in t.shape if n != 1]


def _tensor(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise UnverifiableError(f"it returns a {type(y).__name__}, not a tensor")
    return y


def planted(params: Params, map_shape: tuple[int, ...] | None = None) -> dict[str, Callable[[], Params]]:
    """Faults a conversion could make, as makers of changed parameters; only those that the shapes allow."""
    weight, bias = params["weight"], params.get("bias")
    faults: dict[str, Callable[[], Params]] = {}
    if bias is not None:
        faults["bias dropped"] = lambda: params | {"bias": torch.zeros_like(bias)}
    axis = next(
        (a for a in (1, 0, *range(2, weight.dim())) if weight.dim() > a and weight.shape[a] > 1), None
    )
    if axis is not None:
        faults["weight order shifted by one"] = lambda: params | {"weight": weight.roll(1, axis)}
    if weight.dim() == 2 and weight.shape[0] == weight.shape[1] > 1:
        faults["weight transposed"] = lambda: params | {"weight": weight.t().contiguous()}
    if weight.dim() > 2 and weight.shape[1] > 1 and weight[0, 0].numel() > 1:
        faults["kernel order swapped (channels last)"] = lambda: (
            params | {"weight": weight.movedim(1, -1).reshape(weight.shape)}
        )
    if weight.dim() > 3 and min(weight.shape[-2:]) > 1:
        faults["kernel order swapped (height and width)"] = lambda: (
            params | {"weight": weight.transpose(-1, -2).reshape(weight.shape)}
        )
    if map_shape is not None and weight.dim() == 2 and weight.shape[1] == math.prod(map_shape):
        whole = weight.reshape(weight.shape[0], *map_shape)
        if map_shape[0] > 1 and math.prod(map_shape[1:]) > 1:
            faults["flatten order swapped (channels last)"] = lambda: (
                params | {"weight": whole.movedim(1, -1).reshape(weight.shape)}
            )
        if len(map_shape) > 2 and min(map_shape[-2:]) > 1:
            faults["flatten order swapped (height and width)"] = lambda: (
                params | {"weight": whole.transpose(-1, -2).reshape(weight.shape)}
            )
    return faults

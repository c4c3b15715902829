"""A module and the module that replaces it, as functions that the verifier can call with weights of its choice.

Both modules are checked in isolation: hooks and parametrisations are left off (the comparison of the whole networks
includes them), the tensors are shared, and the user's modules are not changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from onebyone.pytorch.modules.layers import kind_of, sample_weight, with_plain_weight
from onebyone.records import first_line
from onebyone.results.layer_pairs import LayerFunctions, UnverifiableError
from onebyone.results.protocols import StateMap

TensorDict = dict[str, Tensor]
CONVOLUTION_AXES = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
#: Weights with more elements are probed on one input shape only, because each shape costs a second.
ONE_SHAPE_FROM = 2**22


@dataclass(frozen=True)
class ModulePair:
    """One layer before and after.

    `path` is its first path in the network. `names` gives the network's name of each tensor of `original`, where it is
    not `path` followed by the tensor's own name.
    """

    path: str
    original: nn.Module
    converted: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> tuple[nn.Module, nn.Module]:
        """The two modules for a check with chosen weights.

        A layer that computes its weight at each call (standardised, or stored transposed) cannot be given a weight. For
        such a layer these are ordinary layers that hold the weight as it is now; otherwise the two modules themselves.
        """
        reader = vars(self.converted).get("weight_reader")
        if reader is None:
            return self.original, self.converted
        with torch.no_grad():
            weight = reader(self.original)
        return with_plain_weight(self.original, weight), with_plain_weight(self.converted, weight)

    def functions(self, from_original: StateMap | None = None) -> LayerFunctions:
        """The two modules as functions of an input and of the original's parameters.

        `from_original` maps a state dict of the original network to one of the converted network.

        Raises
        ------
        UnverifiableError
            if the original is not a linear map with one weight, or the converted module's parameters cannot be derived
            from the original's.

        >>> pair = ModulePair("fc", nn.Linear(3, 2), nn.Linear(3, 2))
        >>> functions = pair.functions()
        >>> ones = {name: torch.ones_like(p) for name, p in functions.params.items()}
        >>> functions.converted(torch.ones(1, 3), ones).tolist()
        [[4.0, 4.0]]
        """
        original, converted = self.plain
        if converted is not self.converted:
            from_original = None  # the ordinary layers have the same parameters
        before, after = bare_copy(original), bare_copy(converted)
        params = dict(before.named_parameters())
        if "weight" not in params or not set(params) <= {"weight", "bias"}:
            raise UnverifiableError(
                f"a {type(original).__name__} does not consist of one weight and a bias, so it has no integer probe"
            )
        if any(p.is_meta for p in params.values()):
            raise UnverifiableError("its weights are on the meta device and have no values")
        prefix = f"{self.path}." if self.path else ""
        names = {name: f"{prefix}{name}" for name in params} | dict(self.names)
        carry = _parameter_map(names, prefix, params, dict(after.named_parameters()), from_original)
        weight = params["weight"]
        return LayerFunctions(
            path=self.path,
            kind=type(original).__name__,
            original=lambda x, p: _tensor(functional_call(before, p, (x,))),
            converted=lambda x, p: _tensor(functional_call(after, carry(p), (x,))),
            params={name: p.detach() for name, p in params.items()},
            shapes=_probe_shapes(original, weight),
            terms=max(1, weight.numel() // max(1, _output_count(original, params))),
        )


def bare_copy(module: nn.Module) -> nn.Module:
    """A copy that shares every tensor, in eval mode, without hooks, with parametrised tensors as plain parameters."""
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    for child in module.modules():
        # weight normalisation and the like leave tensors as plain attributes, which deepcopy refuses to copy
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
        # the record is dropped, because remove_parametrizations() writes into the original's tensors, which are shared
        del module.parametrizations[name]  # type: ignore[union-attr,operator]
        if not len(module.parametrizations):  # type: ignore[arg-type]
            del module.parametrizations
        module.__class__ = module.__class__.__bases__[0]
    vars(module).pop(name, None)
    for leftover in (f"{name}_g", f"{name}_v", f"{name}_orig"):
        module._parameters.pop(leftover, None)
    module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _output_count(module: nn.Module, params: Mapping[str, Tensor]) -> int:
    for name in ("out_features", "out_channels", "nf"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    if kind_of(module) is not None:
        return int(sample_weight(module).shape[0])
    return params["weight"].shape[0]


def _probe_shapes(module: nn.Module, weight: Tensor) -> tuple[tuple[int, ...], ...]:
    """Input shapes whose batch and spatial sizes are above 1 and differ, so that no confusion of axes goes unseen.

    For a layer with a stride, the second shape has a remainder that no window reads.
    """
    for cls, rank in CONVOLUTION_AXES.items():
        if isinstance(module, cls):
            channels = weight.shape[1] * module.groups
            size = tuple(_extent(module, a) + int(module.stride[a]) * (2 + a) for a in range(rank))
            with_remainder = tuple(n + int(s) - 1 for n, s in zip(size, module.stride, strict=True))
            return ((2, channels, *size), (channels, *with_remainder))
    count = _output_count(module, {"weight": weight})
    features = getattr(module, "in_features", None) or weight.numel() // count
    if weight.numel() > ONE_SHAPE_FROM:
        return ((2, 3, features),)
    return ((2, 3, 5, features), (3, 5, features), (2, features), (features,))


def _extent(module: Any, axis: int) -> int:
    return (int(module.kernel_size[axis]) - 1) * int(module.dilation[axis]) + 1


def _parameter_map(
    names: Mapping[str, str],
    prefix: str,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    from_original: StateMap | None,
) -> Callable[[TensorDict], TensorDict]:
    """The function from the original layer's parameters to the converted layer's.

    `names` are the names of the original layer's parameters in the network's state dict; `prefix` is what they begin
    with there.
    """
    if from_original is None:
        if {n: p.shape for n, p in before.items()} == {n: p.shape for n, p in after.items()}:
            return dict
        if set(before) == set(after) and all(_squeezed(before[n]) == _squeezed(after[n]) for n in before):
            return lambda params: {n: p.reshape(after[n].shape) for n, p in params.items()}
        raise UnverifiableError(_not_derived(before, after))
    state_map, layer_names = from_original, {name: n for n, name in names.items()}

    def through_conversion(params: TensorDict) -> TensorDict:
        mapped = state_map({names[n]: p for n, p in params.items()})
        return {layer_names.get(name, name.removeprefix(prefix)): p for name, p in mapped.items()}

    try:
        mapped = through_conversion(dict(before))
    except Exception as error:
        raise UnverifiableError(f"its parameters cannot be carried over: {first_line(error)}") from error
    # a comparison of shapes before mapping would not do: a square weight may be transposed
    if {n: p.shape for n, p in mapped.items()} != {n: p.shape for n, p in after.items()}:
        raise UnverifiableError(_not_derived(before, after))
    return through_conversion


def _not_derived(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    return f"its parameters {sorted(after)} cannot be derived from the original's {sorted(before)}"


def _squeezed(t: Tensor) -> list[int]:
    return [n for n in t.shape if n != 1]


def _tensor(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise UnverifiableError(f"it returns a {type(y).__name__}, not a tensor")
    return y

"""Compare every tensor of the converted network with the original's, bit for bit.

A conversion renames, reshapes and reorders weights, and never changes a value. So no tolerance applies: each parameter,
buffer and plain tensor attribute, and whatever else the state dicts hold (the packed weights of a quantised layer), is
compared bit for bit. The conversion's own maps are used in both directions: `state_dict_to_original` on the converted
network's tensors, and `state_dict_from_original` on the original's. Tensors that share their memory are equal without
being read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.records import first_line
from onebyone.verification.pytree import wide
from onebyone.verification.result import WeightCheck, WeightDifference
from onebyone.verification.structure_checks import plain_attributes

Map = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    torch.qscheme,
)
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Comparison:
    compared: set[str] = field(default_factory=set)
    values: int = 0
    differing: dict[str, WeightDifference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare_weights(
    model: nn.Module,
    converted: nn.Module,
    to_original: Map | None = None,
    from_original: Map | None = None,
    layers: Collection[str] = (),
    subset: bool = False,
) -> WeightCheck:
    """Compare every tensor of `converted`, mapped to the original's names and shapes, with the same tensor of `model`.

    Parameters
    ----------
    to_original, from_original: the conversion's maps between state dicts. Without them the names are used unchanged,
        and tensors of the layers at the paths `layers` that have another name or shape are listed as not compared.
    layers: the paths of the converted layers.
    subset: whether the converted network may hold more tensors than the original (index tables of an any-size network),
        or fewer (a network written by hand).

    >>> net = nn.Linear(2, 2)
    >>> twin = nn.Linear(2, 2)
    >>> _ = twin.load_state_dict(net.state_dict())
    >>> compare_weights(net, twin).ok
    True
    >>> with torch.no_grad(): _ = twin.bias.add_(2.0**-20)
    >>> compare_weights(net, twin).problems
    ("bias differs from the original's in 2 of 2 values, by up to 9.54e-07",)
    """
    comparison = _Comparison()
    original, actual = _tensors(model), _tensors(converted)
    required = {n for n in original if n not in _optional(model)}
    try:
        mapped = actual if to_original is None else to_original(actual)
    except Exception as error:
        why = f"state_dict_to_original() fails on the converted network's weights: {first_line(error)}"
        return WeightCheck(0, 0, problems=(why,))
    for name in original:
        if name in mapped:
            _compare(name, original[name], mapped[name], comparison, _may_reshape(name, layers, to_original))
    missing = [n for n in original if n not in mapped and n in required]
    surplus = [n for n in mapped if n not in original and n not in _optional(converted)]
    problems = [] if subset else [*_one_sided(missing, surplus, layers, to_original, comparison)]
    if subset and missing:
        comparison.notes.append(
            f"{_listed(missing)}: not held by the converted network under the original's names"
        )
    if from_original is not None and not comparison.differing and not problems:
        problems = _problems_of_map(original, actual, from_original)
    return WeightCheck(
        compared=len(comparison.compared),
        values=comparison.values,
        differing=tuple(comparison.differing.values()),
        problems=(*(str(d) for d in comparison.differing.values()), *problems),
        unverified=tuple(comparison.notes),
    )


def _problems_of_map(original: Mapping[str, Any], actual: Mapping[str, Any], from_original: Map) -> list[str]:
    """One sentence for each tensor that the map from the original's weights gets wrong."""
    try:
        mapped = from_original(original)
    except Exception as error:
        return [f"state_dict_from_original() fails on the original's weights: {first_line(error)}"]
    comparison = _Comparison()
    for name in set(mapped) & set(actual):
        _compare(name, actual[name], mapped[name], comparison, False)
    return [
        f"{name}: state_dict_from_original() gives other values than the converted network holds"
        for name in sorted(comparison.differing)
    ]


def _one_sided(
    missing: list[str],
    surplus: list[str],
    layers: Collection[str],
    to_original: Map | None,
    comparison: _Comparison,
) -> Iterator[str]:
    """Problems for tensors that only one network has; notes if their layer has no map."""
    for names, where in ((missing, "original"), (surplus, "converted network")):
        for name in names:
            if _may_reshape(name, layers, to_original):
                comparison.notes.append(
                    f"{name}: only in the {where}, and the conversion has no map to compare it by"
                )
            else:
                yield f"{name} is in the {where} only"


def _may_reshape(name: str, layers: Collection[str], to_original: Map | None) -> bool:
    """Whether a tensor belongs to a converted layer, and no map describes how that layer stores it."""
    return to_original is None and any(path in ("", name) or name.startswith(f"{path}.") for path in layers)


def _tensors(model: nn.Module) -> dict[str, Any]:
    """Everything a network computes with, by name: tied tensors under each name, nested state by its path."""
    tensors: dict[str, Any] = {**plain_attributes(model)}
    with contextlib.suppress(
        Exception
    ):  # hooks of other libraries may fail; the modules' own tensors are compared nevertheless
        tensors |= _flat(model.state_dict())
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    tensors |= dict(model.named_parameters(remove_duplicate=False))
    return tensors


def _optional(model: nn.Module) -> set[str]:
    """Tensors that an exported program drops if nothing reads them: plain attributes and non-persistent buffers."""
    names = set(plain_attributes(model))
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        names |= {f"{prefix}{n}" for n in module._non_persistent_buffers_set}
    return names


def _flat(state: Any, name: str = "") -> dict[str, Any]:
    """Nested state (tuples of packed weights, dicts of extra state) as one flat dict of tensors and plain values."""
    if isinstance(state, Mapping):
        items = [(str(k), v) for k, v in state.items()]
    elif isinstance(state, tuple | list) and not isinstance(state, torch.Size):
        items = [(str(i), v) for i, v in enumerate(state)]
    else:
        return {name: state}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat


def _compare(name: str, a: Any, b: Any, comparison: _Comparison, may_reshape: bool) -> None:
    """Compare one tensor or value. `may_reshape`: the layer may store it with other axes of size one."""
    comparison.compared.add(name)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if may_reshape and a.shape != b.shape:
            if [n for n in a.shape if n != 1] != [n for n in b.shape if n != 1]:
                comparison.compared.discard(name)
                comparison.notes.append(
                    f"{name}: its shape changed, and the conversion has no map to compare it by"
                )
                return
            b = b.reshape(a.shape)
        if a.is_meta or b.is_meta or nn.parameter.is_lazy(a) or nn.parameter.is_lazy(b):
            comparison.compared.discard(name)
            if a.is_meta != b.is_meta:
                comparison.differing[name] = WeightDifference(
                    name, "is on the meta device in one network only"
                )
            else:
                comparison.notes.append(f"{name}: it has no values to compare")
            return
        comparison.values += a.numel()
    try:
        difference = _difference(name, a, b)
    except Exception as error:
        comparison.compared.discard(name)
        comparison.notes.append(f"{name}: a {type(a).__name__} that cannot be compared ({first_line(error)})")
        return
    if difference is not None:
        comparison.differing[name] = difference


def _difference(name: str, a: Any, b: Any) -> WeightDifference | None:
    if a is b:
        return None
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if not isinstance(a, _PLAIN):
            raise TypeError("only tensors and plain values are compared")
        same = type(a) is type(b) and (a == b or (a != a and b != b))  # NaN is the same as NaN
        return None if same else WeightDifference(name, f"is {b!r}, the original's is {a!r}")
    if a.shape != b.shape or a.dtype != b.dtype:
        actual, expected = (f"{tuple(t.shape)} in {str(t.dtype).removeprefix('torch.')}" for t in (b, a))
        return WeightDifference(name, f"is {actual}, the original's is {expected}")
    wrong = _unequal(a.detach(), b.detach())
    if not wrong:
        return None
    off = (wide(a) - wide(b).to(a.device)).abs()
    largest = float(off.max()) if off.numel() else 0.0
    what = f"differs from the original's in {wrong:,} of {a.numel():,} values, by up to {largest:.3g}"
    return WeightDifference(name, what, wrong, a.numel(), largest)


def _unequal(a: Tensor, b: Tensor) -> int:
    """The number of values that differ in any bit."""
    # wrapper subclasses: their inner tensors, and the context that says how these are read
    if hasattr(a, "__tensor_flatten__") and type(a) is type(b):
        (names, context), (_, other) = (t.__tensor_flatten__() for t in (a, b))  # type: ignore[attr-defined]
        inner = sum(_unequal(getattr(a, n), getattr(b, n)) for n in names)
        return inner or int(str(context) != str(other))
    if a.is_quantized:
        return 0 if torch.equal(a, b) else max(1, int((a.dequantize() != b.dequantize()).sum()))
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    # the same memory, read in the same way; wrappers without memory of their own have the address 0
    if a.data_ptr() and _layout(a) == _layout(b):
        return 0
    left, right = _bits(a), _bits(b.to(a.device))
    return 0 if torch.equal(left, right) else int((left != right).sum())


def _layout(t: Tensor) -> tuple[object, ...]:
    return t.device, t.data_ptr(), t.stride(), t.is_conj(), t.is_neg()


def _bits(t: Tensor) -> Tensor:
    """The tensor's bits as integers, so that the sign of a zero counts and NaN equals itself."""
    t = t.resolve_conj().resolve_neg()
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.view(_INTEGER[t.itemsize]) if t.is_floating_point() else t


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

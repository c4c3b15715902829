"""The weights themselves: every tensor of the converted network against the original's, bit for bit.

A conversion renames, reshapes and reorders weights; it never changes a value. So no tolerance applies: each parameter,
buffer and plain tensor attribute, and whatever else the state dicts hold (a quantised layer's packed weights), is
compared on its bits. The conversion's own maps are used in both directions: `state_dict_to_original` on what the
converted network holds, and `state_dict_from_original` on what the original holds. Tensors that share their memory are
equal without being read.
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
class _Outcome:
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
    """Every tensor that `converted` holds, under the original's names and in its shapes, against `model`'s.

    Without maps the names are taken as they are, and tensors of the layers at the paths `layers` that have another
    name or shape are listed as not compared. `subset`: the converted network may hold more tensors (index tables of a
    dense form), or none of the original's (written by hand).

    >>> net = nn.Linear(2, 2)
    >>> twin = nn.Linear(2, 2)
    >>> _ = twin.load_state_dict(net.state_dict())
    >>> compare_weights(net, twin).ok
    True
    >>> with torch.no_grad(): _ = twin.bias.add_(2.0**-20)
    >>> compare_weights(net, twin).problems
    ("bias differs from the original's in 2 of 2 values, by up to 9.54e-07",)
    """
    found = _Outcome()
    original, given = _held(model), _held(converted)
    required = {n for n in original if n not in _optional(model)}
    try:
        back = given if to_original is None else to_original(given)
    except Exception as error:
        why = f"state_dict_to_original() fails on the converted network's weights: {first_line(error)}"
        return WeightCheck(0, 0, problems=(why,))
    for name in original:
        if name in back:
            _compare(name, original[name], back[name], found, _loose(name, layers, to_original))
    missing = [n for n in original if n not in back and n in required]
    surplus = [n for n in back if n not in original and n not in _optional(converted)]
    problems = [] if subset else [*_one_sided(missing, surplus, layers, to_original, found)]
    if subset and missing:
        found.notes.append(
            f"{_listed(missing)}: not held by the converted network under the original's names"
        )
    if from_original is not None and not found.differing and not problems:
        problems += _there(original, given, from_original)
    return WeightCheck(
        compared=len(found.compared),
        values=found.values,
        differing=tuple(found.differing.values()),
        problems=(*(str(d) for d in found.differing.values()), *problems),
        unverified=tuple(found.notes),
    )


def _there(original: Mapping[str, Any], given: Mapping[str, Any], from_original: Map) -> list[str]:
    """Where the map from the original's weights gives others than the converted network holds."""
    try:
        made = from_original(original)
    except Exception as error:
        return [f"state_dict_from_original() fails on the original's weights: {first_line(error)}"]
    found = _Outcome()
    for name in set(made) & set(given):
        _compare(name, given[name], made[name], found, False)
    return [
        f"{name}: state_dict_from_original() gives other values than the converted network holds"
        for name in sorted(found.differing)
    ]


def _one_sided(
    missing: list[str], surplus: list[str], layers: Collection[str], to_original: Map | None, found: _Outcome
) -> Iterator[str]:
    """Tensors that one network alone has: problems, or notes for layers that no map leads back from."""
    for names, where in ((missing, "original"), (surplus, "converted network")):
        for name in names:
            if _loose(name, layers, to_original):
                found.notes.append(
                    f"{name}: only in the {where}, and the conversion has no map to compare it by"
                )
            else:
                yield f"{name} is in the {where} only"


def _loose(name: str, layers: Collection[str], to_original: Map | None) -> bool:
    """Whether a tensor is of a converted layer whose form no map describes."""
    return to_original is None and any(path in ("", name) or name.startswith(f"{path}.") for path in layers)


def _held(model: nn.Module) -> dict[str, Any]:
    """Everything a network computes with, by name: tied tensors under each name, nested state by its places."""
    held: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        held |= {f"{prefix}{n}": v for n, v in vars(module).items() if isinstance(v, Tensor)}
    with contextlib.suppress(
        Exception
    ):  # hooks of other libraries; what the modules hold is compared all the same
        held |= _flat(model.state_dict())
    held |= dict(model.named_buffers(remove_duplicate=False))
    held |= dict(model.named_parameters(remove_duplicate=False))
    return held


def _optional(model: nn.Module) -> set[str]:
    """Tensors that an exported program drops where nothing reads them: plain attributes, buffers of no state dict."""
    names: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        names |= {f"{prefix}{n}" for n, v in vars(module).items() if isinstance(v, Tensor)}
        names |= {f"{prefix}{n}" for n in module._non_persistent_buffers_set}
    return names


def _flat(state: Any, name: str = "") -> dict[str, Any]:
    """Nested state (tuples of packed weights, dicts of extra state) as one level, tensors and plain values."""
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


def _compare(name: str, a: Any, b: Any, found: _Outcome, loose: bool) -> None:
    """One tensor or value; `loose` where the layer may hold it in another shape, which axes of size one allow."""
    found.compared.add(name)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if loose and a.shape != b.shape:
            if [n for n in a.shape if n != 1] != [n for n in b.shape if n != 1]:
                found.compared.discard(name)
                found.notes.append(
                    f"{name}: its shape changed, and the conversion has no map to compare it by"
                )
                return
            b = b.reshape(a.shape)
        if a.is_meta or b.is_meta or nn.parameter.is_lazy(a) or nn.parameter.is_lazy(b):
            found.compared.discard(name)
            if a.is_meta != b.is_meta:
                found.differing[name] = WeightDifference(name, "is on the meta device in one network only")
            else:
                found.notes.append(f"{name}: it has no values to compare")
            return
        found.values += a.numel()
    try:
        difference = _difference(name, a, b)
    except Exception as error:
        found.compared.discard(name)
        found.notes.append(f"{name}: a {type(a).__name__} that cannot be compared ({first_line(error)})")
        return
    if difference is not None:
        found.differing[name] = difference


def _difference(name: str, a: Any, b: Any) -> WeightDifference | None:
    if a is b:
        return None
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if not isinstance(a, _PLAIN):
            raise TypeError("only tensors and plain values are compared")
        same = type(a) is type(b) and (a == b or (a != a and b != b))  # NaN is the same as NaN
        return None if same else WeightDifference(name, f"is {b!r}, the original's is {a!r}")
    if a.shape != b.shape or a.dtype != b.dtype:
        this, other = (f"{tuple(t.shape)} in {str(t.dtype).removeprefix('torch.')}" for t in (b, a))
        return WeightDifference(name, f"is {this}, the original's is {other}")
    wrong = _unequal(a.detach(), b.detach())
    if not wrong:
        return None
    off = (wide(a) - wide(b).to(a.device)).abs()
    largest = float(off.max()) if off.numel() else 0.0
    what = f"differs from the original's in {wrong:,} of {a.numel():,} values, by up to {largest:.3g}"
    return WeightDifference(name, what, wrong, a.numel(), largest)


def _unequal(a: Tensor, b: Tensor) -> int:
    """How many values differ in any bit."""
    if hasattr(a, "__tensor_flatten__") and type(a) is type(
        b
    ):  # wrappers: what is inside, and how it is read
        (names, context), (_, other) = (t.__tensor_flatten__() for t in (a, b))  # type: ignore[attr-defined]
        inner = sum(_unequal(getattr(a, n), getattr(b, n)) for n in names)
        return inner or int(str(context) != str(other))
    if a.is_quantized:
        return 0 if torch.equal(a, b) else max(1, int((a.dequantize() != b.dequantize()).sum()))
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if _layout(a) == _layout(b):  # one memory, read in one way
        return 0
    left, right = _bits(a), _bits(b.to(a.device))
    return 0 if torch.equal(left, right) else int((left != right).sum())


def _layout(t: Tensor) -> tuple[object, ...]:
    return t.device, t.data_ptr(), t.stride(), t.is_conj(), t.is_neg()


def _bits(t: Tensor) -> Tensor:
    """The tensor as integers of its width, so that a sign of zero counts and NaN equals itself."""
    t = t.resolve_conj().resolve_neg()
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.view(_INTEGER[t.itemsize]) if t.is_floating_point() else t


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

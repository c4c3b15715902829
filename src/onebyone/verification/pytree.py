"""Nests of tensors: what networks take and give (tuples, lists, dicts, named tuples, dataclasses)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from onebyone.results.example_inputs import arguments as arguments


def leaves(tree: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of a nest with its place in it, in a fixed order.

    >>> [(path, tuple(t.shape)) for path, t in leaves({"a": torch.zeros(2), "b": [torch.zeros(3), None]})]
    [('a', (2,)), ('b.0', (3,))]
    """
    if isinstance(tree, Tensor):
        return [(path, tree)]
    found: list[tuple[str, Tensor]] = []
    for name, child in _children(tree):
        found += leaves(child, f"{path}.{name}" if path else name)
    return found


def map_tensors(tree: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with `fn` applied to each tensor; whatever is not a nest or a tensor is kept as it is.

    >>> map_tensors((torch.zeros(2), "x"), torch.exp)
    (tensor([1., 1.]), 'x')
    """
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(v, fn) for v in tree))
    if type(tree) in (list, tuple):
        return type(tree)(map_tensors(v, fn) for v in tree)
    if type(tree) is dict:
        return {k: map_tensors(v, fn) for k, v in tree.items()}
    if isinstance(tree, Mapping):
        return type(tree)(**{str(k): map_tensors(v, fn) for k, v in tree.items()})
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(tree, **{k: map_tensors(v, fn) for k, v in fields.items()})
    return tree


def _children(tree: Any) -> list[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        return [(str(k), v) for k, v in tree.items()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        return [(str(i), v) for i, v in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    return []


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The nest with its real floating tensors in `dtype` and complex ones in the complex type of that width.

    Token ids, masks and other integers are left alone.

    >>> cast((torch.ones(1), torch.ones(1, dtype=torch.int64)), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor([1]))
    """
    return map_tensors(tree, lambda t: cast_tensor(t, dtype))


def cast_tensor(t: Tensor, dtype: torch.dtype) -> Tensor:
    """One tensor of `cast`."""
    if t.is_floating_point():
        return t.to(dtype)
    if t.is_complex():
        return t.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return t


def wide(t: Tensor) -> Tensor:
    """`t` detached and exactly, in float64 (complex128 where complex; integers up to 2^53), for comparing."""
    t = t.detach()
    if t.is_sparse or t.is_quantized:
        t = t.to_dense() if t.is_sparse else t.dequantize()
    return t.to(torch.complex128) if t.is_complex() else t.to(torch.float64)

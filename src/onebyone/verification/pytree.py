"""Nested containers of tensors, as networks take and return them: tuples, lists, dicts, named tuples, dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from onebyone.results.example_inputs import arguments as arguments


def leaves(tree: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of a nested container with its path in it, in a fixed order.

    >>> [(path, tuple(t.shape)) for path, t in leaves({"a": torch.zeros(2), "b": [torch.zeros(3), None]})]
    [('a', (2,)), ('b.0', (3,))]
    """
    if isinstance(tree, Tensor):
        return [(path, tree)]
    return [
        leaf for name, child in _children(tree) for leaf in leaves(child, f"{path}.{name}" if path else name)
    ]


def map_tensors(tree: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """The same container with `fn` applied to each tensor; anything else in it is kept.

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
    """The same container with real floating tensors in `dtype` and complex ones in the complex type of that precision.

    Token ids, masks and other integers are kept.

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


def plain(t: Tensor) -> Tensor:
    """`t` detached, and as a dense tensor of numbers where it is sparse or quantised."""
    t = t.detach()
    if t.is_sparse or t.is_quantized:
        t = t.to_dense() if t.is_sparse else t.dequantize()
    return t


def wide(t: Tensor) -> Tensor:
    """`t` detached and converted to float64, or complex128: exactly, except for integers beyond 2^53."""
    t = plain(t)
    return t.to(torch.complex128) if t.is_complex() else t.to(torch.float64)

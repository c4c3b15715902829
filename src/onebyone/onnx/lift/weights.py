"""Constants of an ONNX model while it is lifted: numbers that are loaded, and copied, only where that is needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Self

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

#: The most elements of a constant whose numbers rules look at.
MOST_KNOWN = 2**20


class ConstantHandle:
    """The handle of a constant: an initializer of the model, or what was computed from initializers.

    Derived weights are remembered, so that one initializer that is used in one form many times is stored once. Numbers
    are computed in float64 and rounded once, to `dtype`, where the weight is stored.

    Attributes:
        dtype: the type in which the weight is stored.
        shape: its shape.
        tensor: the tensor of the original model, where the weight is unchanged.
        name: the name under which it is stored.
    """

    def __init__(
        self,
        load: Callable[[], Array],
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
        tensor: ir.TensorProtocol | None = None,
    ) -> None:
        self._load, self._derived = load, dict[Hashable, ConstantHandle]()
        self.dtype, self.shape, self.name, self.tensor = dtype, shape, name, tensor

    @classmethod
    def of_tensor(cls, tensor: ir.TensorProtocol, name: str) -> ConstantHandle:
        """The weight of a tensor, which is not loaded yet."""
        shape = tuple(int(size) for size in tensor.shape.numpy())
        return cls(lambda: _loaded(tensor), ir.DataType(tensor.dtype), shape, name, tensor)

    @classmethod
    def of_array(cls, array: Array, name: str, dtype: ir.DataType | None = None) -> ConstantHandle:
        """The weight of an array, stored as `dtype`; by default in the array's own type."""
        kind = ir.DataType.from_numpy(array.dtype) if dtype is None else dtype
        return cls(lambda: array, kind, array.shape, name)

    @property
    def array(self) -> Array:
        """The numbers, in float64 if they were computed."""
        return np.asarray(self._load())

    @property
    def wide(self) -> Array:
        """The numbers, floating ones in float64."""
        return self.array.astype(np.float64) if self.dtype.is_floating_point() else self.array

    @property
    def stored(self) -> Array:
        """The numbers in the type in which they are stored."""
        return np.require(self.array, self.dtype.numpy(), "C")

    @property
    def known(self) -> Array | None:
        """The numbers, if they are not too many for rules to look at."""
        return self.array if int(np.prod(self.shape)) <= MOST_KNOWN else None

    def derived(self, key: Hashable, label: str, make: Callable[[], Array]) -> Self | ConstantHandle:
        """What `make` computes from this weight; the same weight for the same `key`."""
        if key not in self._derived:
            self._derived[key] = ConstantHandle.of_array(make(), f"{self.name}/{label}", self.dtype)
        return self._derived[key]


def _loaded(tensor: ir.TensorProtocol) -> Array:
    """The numbers of a tensor; those of an external file are copied, because a view of the file keeps it open."""
    array = np.asarray(tensor.numpy())
    return array.copy() if isinstance(tensor, ir.ExternalTensor) else array

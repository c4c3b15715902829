"""The values of a lifted network: maps with an index, constants, and values that a refusal made unknown.

A *handle* is what a front end's emitter takes and gives: a `torch.fx.Proxy`, the name of an ONNX value, or a NumPy
array. The code here passes handles on and never looks inside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import identity

#: What an emitter takes and gives.
Handle = Any
#: A `Lifted`, a `Const`, a plain number, or a tuple of them (the results of an operator that has several).
Value = Any


class Cannot(Exception):
    """Raised by a rule: this operator cannot be lifted, and why."""


class Deferred:
    """A handle that is made when it is first used, so that unused parameters leave no trace in the new graph."""

    def __init__(self, make: Callable[[], Handle]) -> None:
        self._make = make
        self._handle: Handle = None

    def get(self) -> Handle:
        """The handle, always the same one."""
        if self._handle is None:
            self._handle = self._make()
        return self._handle


@dataclass(frozen=True)
class Const:
    """A value that does not depend on the image: a parameter, or what is computed from parameters alone.

    `source` is its handle, or a `Deferred` one. `known` holds its numbers where they are part of the code (zeros,
    ranges, literals), so that no checkpoint and no training changes them: a NumPy array, or an array of the front
    end's own with the same `reshape`, `==`, `all` and `item`.
    """

    source: Any
    shape: tuple[int, ...]
    name: str | None = None
    known: Any = None

    @property
    def handle(self) -> Handle:
        """The handle for the emitter."""
        return self.source.get() if isinstance(self.source, Deferred) else self.source

    @property
    def single(self) -> Any:
        """The one number that fills the constant, or None where it holds others or its numbers are not known.

        >>> Const("zeros", (2,), known=np.zeros(2)).single, Const("range", (2,), known=np.arange(2)).single
        (0.0, None)
        """
        if self.known is None or not prod(self.shape):
            return None
        numbers = self.known.reshape(-1)
        return numbers[0].item() if bool((numbers == numbers[0]).all()) else None


@dataclass(frozen=True)
class Lifted:
    """A value that depends on the image: the map's handle, its grid, and the index (None: the identity).

    `pooled` holds the keys of all reductions over the window that the value, or an operand of it, came through.
    `affine` holds a scale and a shift, two handles of the value's shape, that the next linear layer absorbs; None where
    there is nothing to absorb.
    """

    handle: Handle
    grid: Grid
    index: Integers | None = None
    pooled: frozenset[str] = frozenset()
    affine: tuple[Handle, Handle] | None = None

    def indices(self) -> Integers:
        """The index, written out."""
        return identity(self.grid.shape) if self.index is None else self.index

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape in one window, without the batch."""
        return self.grid.shape if self.index is None else self.index.shape

    def with_index(self, index: Integers) -> Lifted:
        """The value with another index into the same map; the identity is stored as None."""
        is_identity = index.shape == self.grid.shape and np.array_equal(index.ravel(), np.arange(index.size))
        return replace(self, index=None if is_identity else index)


def handle_or_none(value: Value) -> Handle | None:
    """The handle of an optional constant operand, such as a bias; raises `Cannot` where it depends on the image."""
    if isinstance(value, Lifted):
        raise Cannot("a weight or a bias that depends on the image")
    return value.handle if isinstance(value, Const) else value


@dataclass(frozen=True)
class Unknown:
    """The result of a refused operator, and of everything that depends on it."""

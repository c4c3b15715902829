"""The values of a program, as the planner sees them: a name and a shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onebyone.layout.orders import Layout, Order, natural_layout, significant_axes
from onebyone.layout.sizes import Size


@dataclass(frozen=True, eq=False)
class GraphValue:
    """One value of a program: a tensor, or a list of tensors such as the result of a split.

    Values are compared by identity.

    Attributes
    ----------
    name
        The name of the value in its program, for messages.
    shape
        The sizes of the tensor, each an integer or a symbolic size (`layout.sizes`). None for a list of tensors and
        for a tensor of unknown rank: such a value is never permuted.
    origin
        The front end's own object for this value. The planner does not read it.

    >>> GraphValue("x", (1, 3, 4)).axes
    (1, 2)
    """

    name: str
    shape: tuple[Size, ...] | None
    origin: Any = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        """The number of logical axes."""
        assert self.shape is not None, f"{self.name} has no known rank"
        return len(self.shape)

    @cached_property
    def axes(self) -> Order:
        """The significant axes; empty for a list of tensors or a tensor of unknown rank."""
        return () if self.shape is None else significant_axes(self.shape)

    @cached_property
    def natural_layout(self) -> Layout:
        """The layout of the original tensor; empty for a list of tensors or a tensor of unknown rank."""
        return () if self.shape is None else natural_layout(len(self.shape), self.axes)

    def size(self, axis: int) -> Size:
        """The size of a logical axis: an integer, or a symbolic size."""
        assert self.shape is not None, f"{self.name} has no known rank"
        return self.shape[axis]

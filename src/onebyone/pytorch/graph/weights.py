"""The parameters of a converted program in their new shapes.

Names are kept, storage is shared where the new shape is a view, and state dicts are mapped in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from onebyone.layout.orders import UNIT, Layout, Order, order_of, significant_axes
from onebyone.pytorch.graph.stored_layout import to_original, to_stored


@dataclass(frozen=True)
class StoredShape:
    """How one parameter is stored: its original shape, and the layout of its new shape."""

    original: tuple[int, ...]
    layout: Layout

    @property
    def axes(self) -> Order:
        """The axes of the original that are longer than 1."""
        return significant_axes(self.original)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it is stored in."""
        return tuple(1 if axis == UNIT else self.original[axis] for axis in self.layout)

    @property
    def copied(self) -> bool:
        """Whether the new shape needs a copy, because it is not a view of the old one."""
        return order_of(self.layout) != self.axes

    def store(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor of the original shape, in the stored shape."""
        return to_stored(value, self.axes, self.layout)

    def load(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor of the stored shape, in the original shape."""
        return to_original(value, len(self.original), self.axes, self.layout)


@dataclass(frozen=True)
class StoredWeights:
    """Every parameter, buffer or constant that is not stored in its original shape, by each of its names."""

    shapes: Mapping[str, StoredShape] = field(default_factory=dict)

    def from_original(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of the original, in the shapes of the converted program."""
        return {k: self.shapes[k].store(v) if k in self.shapes else v for k, v in state.items()}

    def to_original(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of the converted program, in the shapes of the original."""
        return {k: self.shapes[k].load(v) if k in self.shapes else v for k, v in state.items()}


def tied_names(program: ExportedProgram) -> dict[str, list[str]]:
    """Name → all names of the same tensor, itself included."""
    constants = {k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}
    names: dict[int, list[str]] = {}
    for name, value in {**program.state_dict, **constants}.items():
        names.setdefault(id(value), []).append(name)
    return {name: tied for tied in names.values() for name in tied}


def tensor_named(program: ExportedProgram, name: str) -> torch.Tensor:
    """A parameter, buffer or constant of a program."""
    value = program.state_dict[name] if name in program.state_dict else program.constants[name]
    assert isinstance(value, torch.Tensor), name
    return value


def stored_tensors(
    program: ExportedProgram, shapes: Mapping[str, StoredShape]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state dict and the constants of the new program.

    Tied names remain one object, and parameters remain parameters.
    """
    stored: dict[int, torch.Tensor] = {}

    def converted(name: str, value: Any) -> Any:
        if name not in shapes:
            return value
        if id(value) not in stored:
            new = shapes[name].store(value.detach())
            is_parameter = isinstance(value, nn.Parameter)
            stored[id(value)] = nn.Parameter(new, value.requires_grad) if is_parameter else new
        return stored[id(value)]

    state = {name: converted(name, value) for name, value in program.state_dict.items()}
    return state, {name: converted(name, value) for name, value in program.constants.items()}

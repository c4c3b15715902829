"""Parameters in their new shapes: names kept, storage shared where the new shape is a view, state dicts
mapped both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from onebyone.pytorch.graph.build import original_shape, restore
from onebyone.pytorch.graph.orders import UNIT, Frame, Order, order_of, significant


@dataclass(frozen=True)
class StoredShape:
    """How one parameter is stored: its original shape, the frame of its new shape, and whether that took a
    copy.
    """

    original: tuple[int, ...]
    frame: Frame

    @property
    def axes(self) -> Order:
        """The original's axes that are longer than 1."""
        return significant(self.original)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it is stored in."""
        return tuple(1 if a == UNIT else self.original[a] for a in self.frame)

    @property
    def copied(self) -> bool:
        """Whether the new shape is no view of the old."""
        return order_of(self.frame) != self.axes

    def store(self, value: torch.Tensor) -> torch.Tensor:
        """Original shape to stored shape."""
        return restore(value, len(self.original), self.axes, self.frame)

    def load(self, value: torch.Tensor) -> torch.Tensor:
        """Stored shape to original shape."""
        return original_shape(value, len(self.original), self.axes, self.frame)


@dataclass(frozen=True)
class StoredWeights:
    """Every parameter, buffer or constant stored otherwise than in the original, by name; tied names are all
    there.
    """

    shapes: Mapping[str, StoredShape] = field(default_factory=dict)

    def from_original(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of the original, in the converted program's shapes."""
        return {k: self.shapes[k].store(v) if k in self.shapes else v for k, v in state.items()}

    def to_original(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of the converted program, in the original's shapes."""
        return {k: self.shapes[k].load(v) if k in self.shapes else v for k, v in state.items()}


def tied_names(program: ExportedProgram) -> dict[str, list[str]]:
    """Name → all names of the same tensor, itself included."""
    tensors = {
        **program.state_dict,
        **{k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)},
    }
    groups: dict[int, list[str]] = {}
    for name, value in tensors.items():
        groups.setdefault(id(value), []).append(name)
    return {name: names for names in groups.values() for name in names}


def choose_stored(
    demands: Mapping[str, Counter[Frame]],
    named: Mapping[str, str],
    weights: set[str],
    program: ExportedProgram,
) -> dict[str, Frame]:
    """The frame each constant placeholder is stored in, where it should not be its own.

    Weights of converted products take the frame their products ask for; any other constant is stored anew
    only where its own axis order serves none of its uses. Names of one tensor share one frame.
    """
    ties = tied_names(program)
    merged: dict[str, Counter[Frame]] = {}
    for placeholder, counts in demands.items():
        merged.setdefault(min(ties.get(named[placeholder], [named[placeholder]])), Counter()).update(counts)
    wanted: dict[str, set[str]] = {}
    for placeholder in named:
        wanted.setdefault(min(ties.get(named[placeholder], [named[placeholder]])), set()).add(placeholder)
    chosen: dict[str, Frame] = {}
    for first, counts in merged.items():
        shape = tuple(tensor_named(program, first).shape)
        own = significant(shape)
        moved = all(order_of(f) != own for f in counts)
        if not moved and not (wanted[first] & weights):
            continue
        best = _best(counts, own, moved)
        if best != tuple(a if a in own else UNIT for a in range(len(shape))):
            chosen.update(dict.fromkeys(wanted[first], best))
    return chosen


def _best(counts: Counter[Frame], own: Order, moved: bool) -> Frame:
    """The most wanted frame; among those of the original order where there is one, and the longest of equals."""
    fit = [f for f in counts if moved or order_of(f) == own]
    return max(fit, key=lambda f: (counts[f], len(f)))


def tensor_named(program: ExportedProgram, name: str) -> torch.Tensor:
    """A parameter, buffer or constant of a program."""
    value = program.state_dict[name] if name in program.state_dict else program.constants[name]
    assert isinstance(value, torch.Tensor), name
    return value


def stored_tensors(
    program: ExportedProgram, shapes: Mapping[str, StoredShape]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state dict and the constants of the new program; tied names stay one object, and parameters stay
    parameters.
    """
    made: dict[int, torch.Tensor] = {}

    def converted(name: str, value: Any) -> Any:
        if name not in shapes:
            return value
        if id(value) not in made:
            new = shapes[name].store(value.detach())
            made[id(value)] = (
                nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
            )
        return made[id(value)]

    state = {name: converted(name, value) for name, value in program.state_dict.items()}
    return state, {name: converted(name, value) for name, value in program.constants.items()}

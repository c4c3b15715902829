"""Moves an optimizer to the parameters of a converted program."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.optim import Optimizer

from onebyone.pytorch.graph.weights import StoredWeights
from onebyone.pytorch.modules.state import carry_optimizer, check_optimizer


def carry(
    optimizer: Optimizer, before: ExportedProgram, after: ExportedProgram, weights: StoredWeights
) -> None:
    """Replace the parameters of `before` in an optimizer by those of `after`.

    Elementwise state, such as momentum, is rearranged as the parameters were.

    Raises
    ------
    Refused
        State that depends on the shapes of the parameters; the optimizer is unchanged then.
    """
    check_optimizer(optimizer)
    successors: list[tuple[str, nn.Parameter, nn.Parameter]] = []
    states: dict[nn.Parameter, dict[str, Any]] = {}
    for name, old in before.state_dict.items():
        new = after.state_dict[name]
        if isinstance(old, nn.Parameter) and isinstance(new, nn.Parameter) and old is not new:
            successors.append((name, old, new))
            shape = weights.shapes[name]
            states[new] = {
                key: shape.store(value)
                for key, value in optimizer.state.get(old, {}).items()
                if isinstance(value, torch.Tensor) and value.shape == old.shape
            }
    carry_optimizer(optimizer, successors)
    for new, state in states.items():
        if new in optimizer.state:
            optimizer.state[new].update(state)

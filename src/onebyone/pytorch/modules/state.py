"""Carry state dicts and an optimizer's state between the original and the converted network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal

StateDict = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A tensor whose name or shape differs between the original's state dict and the converted network's.

    `transposed`: the tensor is a matrix, and the converted network stores its transpose.
    """

    original: str
    converted: str
    original_shape: tuple[int, ...]
    converted_shape: tuple[int, ...]
    transposed: bool = False

    def convert(self, value: Tensor) -> Tensor:
        """The original's tensor in the converted network's shape: a view."""
        return (value.t() if self.transposed else value).reshape(self.converted_shape)

    def restore(self, value: Tensor) -> Tensor:
        """The inverse of `convert`."""
        shape = self.original_shape
        return value.reshape(shape[::-1]).t() if self.transposed else value.reshape(shape)


def to_converted(entries: Iterable[Entry], state: StateDict) -> dict[str, Any]:
    """A state dict of the original, under the converted network's names and shapes (views, no copies)."""
    return _renamed(state, {e.original: (e.converted, e.original_shape, e.convert) for e in entries})


def to_original(entries: Iterable[Entry], state: StateDict) -> dict[str, Any]:
    """A state dict of the converted network, under the original's names and shapes (views, no copies)."""
    return _renamed(state, {e.converted: (e.original, e.converted_shape, e.restore) for e in entries})


def _renamed(
    state: StateDict, names: Mapping[str, tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]]]
) -> dict[str, Any]:
    renamed: OrderedDict[str, Any] = OrderedDict()
    for key, value in state.items():
        if key not in names:
            renamed[key] = value
            continue
        name, before, rearranged = names[key]
        if tuple(value.shape) != before:
            raise BadInput(f"state dict: {key} has shape {tuple(value.shape)}, expected {before}")
        renamed[name] = rearranged(value)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        renamed._metadata = metadata  # type: ignore[attr-defined]
    return renamed


# Optimizers that update every element in the same way, so that a reshaped parameter takes the same steps.
ELEMENTWISE = frozenset(
    f"torch.optim.{name}"
    for name in (
        "adadelta.Adadelta",
        "adagrad.Adagrad",
        "adam.Adam",
        "adamax.Adamax",
        "adamw.AdamW",
        "asgd.ASGD",
        "nadam.NAdam",
        "radam.RAdam",
        "rmsprop.RMSprop",
        "rprop.Rprop",
        "sgd.SGD",
    )
)


def carry_optimizer(
    optimizer: Optimizer,
    successors: Sequence[tuple[str, nn.Parameter, nn.Parameter]],
    transposed: Collection[int] = (),
) -> None:
    """Move `optimizer` to new parameters: `successors` holds (path, old, new) for each parameter that is replaced.

    `transposed` holds the ids of old matrices that the new parameter stores transposed. Elementwise state (momentum,
    first and second moments) is reshaped to the new parameter; everything else in the groups stays. State that depends
    on the parameter's shape (factored, orthogonalised) is refused before anything changes.

    Raises
    ------
    Refused
        with every parameter whose state cannot be carried over.
    """
    managed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    pairs = [(path, old, new) for path, old, new in successors if id(old) in managed and old is not new]
    refusals = [
        r
        for path, old, new in pairs
        if (old.shape != new.shape or id(old) in transposed)
        and (r := _why_not_carried(optimizer, path, old)) is not None
    ]
    if refusals:
        raise Refused(
            refusals, f"{type(optimizer).__name__}'s state cannot be carried to the converted network"
        )
    by_id = {id(old): new for _, old, new in pairs}
    for group in optimizer.param_groups:
        group["params"] = [by_id.get(id(p), p) for p in group["params"]]
    for _, old, new in pairs:
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                key: _reshaped(value, old, new, id(old) in transposed) for key, value in state.items()
            }


def _why_not_carried(optimizer: Optimizer, path: str, old: nn.Parameter) -> Refusal | None:
    cls = type(optimizer)
    name, state = f"{cls.__module__}.{cls.__qualname__}", optimizer.state.get(old, {})
    for key, value in state.items():
        if not isinstance(value, Tensor) and not isinstance(value, int | float | bool | type(None)):
            return Refusal(
                path, cls.__name__, f"its {key} is a {type(value).__name__}, not one number per weight"
            )
        if isinstance(value, Tensor) and value.numel() != 1 and value.shape != old.shape:
            shapes = f"{tuple(value.shape)} for a weight of shape {tuple(old.shape)}"
            return Refusal(
                path, cls.__name__, f"its {key} has shape {shapes}: it depends on the weight's shape"
            )
    if name not in ELEMENTWISE:
        return Refusal(
            path, cls.__name__, f"{name} is not known to treat every weight alike, whatever its shape"
        )
    return None


def _reshaped(value: Any, old: nn.Parameter, new: nn.Parameter, transposed: bool) -> Any:
    if isinstance(value, Tensor) and value.shape == old.shape:
        # contiguous, because fused optimizer steps rely on it
        return (value.t().contiguous() if transposed else value).reshape(new.shape)
    return value


def check_optimizer(optimizer: object) -> None:
    """Raise BadInput unless `optimizer` is None or a torch optimizer."""
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise BadInput(f"optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer")

"""The layers of a network that could be converted, found independently of the converter: by class names and weight
shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from onebyone.records import Change, Refusal

LINEAR, CONV = "linear", "conv"


@dataclass(frozen=True)
class Eligible:
    """One layer: its first dotted path, its form ("linear", or "conv" for a 1×1 convolution), and its class name."""

    path: str
    form: str
    kind: str


@dataclass(frozen=True)
class Missed:
    """An eligible layer that was not converted; the reason is empty if the converter did not report it."""

    path: str
    kind: str
    reason: str


def eligible_layers(model: nn.Module) -> list[Eligible]:
    """Return every linear layer and 1×1 convolution, each module once, at its first path.

    An `nn.MultiheadAttention` counts as one linear layer, including its projections, whose weights it reads directly.
    """
    layers, inside = [], set()
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside.add(id(module.out_proj))
            layers.append(Eligible(path, LINEAR, type(module).__name__))
        elif id(module) not in inside and (form := _form(module)):
            layers.append(Eligible(path, form, type(module).__name__))
    return layers


def _form(module: nn.Module) -> str | None:
    names = [c.__name__ for c in type(module).__mro__]
    weight = getattr(module, "weight", None)
    axes = getattr(weight, "ndim", 0)
    if any("Transpose" in n or "Bilinear" in n or "Embedding" in n for n in names):
        return None
    if any("Linear" in n or n == "Conv1D" for n in names) and axes == 2 and not _children(module):
        return LINEAR
    if any("Conv" in n for n in names) and axes >= 3 and all(n == 1 for n in weight.shape[2:]):
        return CONV
    return None


def _children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def exceptions(
    layers: Iterable[Eligible], changes: Iterable[Change], refused: Iterable[Refusal]
) -> list[Missed]:
    """Return the eligible layers that were not changed, each with the reason of its refusal."""
    done = {c.path for c in changes}
    reasons = {r.path: r.reason for r in refused}
    return [Missed(e.path, e.kind, reasons.get(e.path, "")) for e in layers if e.path not in done]

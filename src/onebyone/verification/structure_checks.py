"""What needs no run: finite weights, ties kept, converted layers really in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def not_finite(model: nn.Module, name: str, besides: Collection[int] = ()) -> list[str]:
    """Parameters that hold NaN or infinity, and buffers that hold NaN (an infinite one is often a mask)."""
    found = [
        f"{name}: weight {n} holds NaN or infinity"
        for n, p in model.named_parameters()
        if id(p) not in besides and not _finite(p)
    ]
    return found + [
        f"{name}: buffer {n} holds NaN"
        for n, b in model.named_buffers()
        if _floating(b) and not b.is_meta and bool(torch.isnan(b).any())
    ]


def _floating(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _finite(t: Tensor) -> bool:
    if not _floating(t) or t.is_meta or isinstance(t, nn.parameter.UninitializedParameter):
        return True
    # the sum of finite numbers may overflow, but a sum with NaN or infinity in it is never finite: most are settled
    # in one pass
    return bool(torch.isfinite(t.detach().sum())) or bool(torch.isfinite(t.detach()).all())


def untied(model: nn.Module, converted: nn.Module) -> tuple[list[str], list[str]]:
    """Names tied in `model` that no longer are in `converted`: (problems, notes).

    A problem where both names still hold tensors of the original's shape; where the conversion had to make
    a copy in another shape, a note.
    """
    after = dict(converted.named_parameters(remove_duplicate=False))
    before = dict(model.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = defaultdict(list)
    for name, p in before.items():
        groups[id(p)].append(name)
    problems: list[str] = []
    notes: list[str] = []
    for names in groups.values():
        held = [n for n in names if n in after]
        if len({id(after[n]) for n in held}) <= 1:
            continue
        same = [n for n in held if after[n].shape == before[n].shape]
        said = f"the weight tied under {', '.join(names)} is no longer one parameter"
        (problems if len({id(after[n]) for n in same}) > 1 else notes).append(said)
    return problems, notes


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    return bool(torch.equal(a.detach(), b.detach().to(a.device)) or _equal_with_nan(a, b))


def _equal_with_nan(a: Tensor, b: Tensor) -> bool:
    return _floating(a) and bool(((a == b.to(a.device)) | (a.isnan() & b.to(a.device).isnan())).all())


def out_of_place(pairs: Iterable[Any], model: nn.Module, converted: nn.Module) -> list[str]:
    """Pairs whose layers are not where their path says, in either network.

    A graph has no module that computes a layer: there the pair's stand-in must hold the network's own tensors.
    """
    before, after = (dict(m.named_modules(remove_duplicate=False)) for m in (model, converted))
    problems = []
    for pair in pairs:
        if after.get(pair.path) is not pair.converted and not _holds(converted, pair.path, pair.converted):
            problems.append(f"{pair.path} in the converted network is not the layer recorded for it")
        elif before.get(pair.path) is not pair.original and not _holds(model, pair.path, pair.original):
            problems.append(f"{pair.path} in the original is not the layer recorded for it")
    return problems


def _holds(network: nn.Module, path: str, stand_in: nn.Module) -> bool:
    """Whether each tensor of the stand-in is one of the network's at `path` (a module's, or a parameter itself)."""
    named = _tensors(network)
    within = path.rpartition(".")[0] if path in named else path
    held = [p for name, p in named.items() if name.startswith(within + "." if within else "")]
    return all(any(_equal(p, q) for q in held) for p in stand_in.parameters())


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    named = dict(network.named_buffers(remove_duplicate=False))
    return {**named, **dict(network.named_parameters(remove_duplicate=False))}

"""Checks that need no run: finite weights, tied weights that stay tied, converted layers at their paths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from onebyone.results import LayerPair


def not_finite(model: nn.Module, name: str, except_ids: Collection[int] = ()) -> list[str]:
    """One sentence for each parameter that holds NaN or infinity, and for each buffer that holds NaN.

    An infinite buffer is often a mask, and is allowed. Parameters whose `id` is in `except_ids` are skipped.
    """
    parameters = [
        f"{name}: weight {n} holds NaN or infinity"
        for n, p in model.named_parameters()
        if id(p) not in except_ids and not _finite(p)
    ]
    buffers = [
        f"{name}: buffer {n} holds NaN"
        for n, b in model.named_buffers()
        if _floating(b) and not b.is_meta and bool(torch.isnan(b).any())
    ]
    return parameters + buffers


def _floating(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _finite(t: Tensor) -> bool:
    if not _floating(t) or t.is_meta or isinstance(t, nn.parameter.UninitializedParameter):
        return True
    # One pass decides most tensors: a sum with NaN or infinity in it is never finite. A sum of finite numbers may
    # overflow, so that an infinite sum decides nothing.
    return bool(torch.isfinite(t.detach().sum())) or bool(torch.isfinite(t.detach()).all())


def untied(model: nn.Module, converted: nn.Module) -> tuple[list[str], list[str]]:
    """Parameters that are tied in `model` and no longer in `converted`, as (problems, notes).

    It is a problem if both names still hold tensors of the original's shape, and a note if the conversion had to copy
    the weight into another shape.
    """
    after = dict(converted.named_parameters(remove_duplicate=False))
    before = dict(model.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = defaultdict(list)
    for name, p in before.items():
        groups[id(p)].append(name)
    problems: list[str] = []
    notes: list[str] = []
    for names in groups.values():
        kept = [n for n in names if n in after]
        if len({id(after[n]) for n in kept}) <= 1:
            continue
        unchanged = [n for n in kept if after[n].shape == before[n].shape]
        sentence = f"the weight tied under {', '.join(names)} is no longer one parameter"
        (problems if len({id(after[n]) for n in unchanged}) > 1 else notes).append(sentence)
    return problems, notes


def misplaced(pairs: Iterable[LayerPair], model: nn.Module, converted: nn.Module) -> list[str]:
    """One sentence for each pair whose layer is not at its path, in either network.

    An exported program has no module for a layer. There, the pair's layer must hold the network's own tensors.
    """
    before, after = (dict(m.named_modules(remove_duplicate=False)) for m in (model, converted))
    problems = []
    for pair in pairs:
        if after.get(pair.path) is not pair.converted and not _holds(converted, pair.path, pair.converted):
            problems.append(f"{pair.path} in the converted network is not the layer recorded for it")
        elif before.get(pair.path) is not pair.original and not _holds(model, pair.path, pair.original):
            problems.append(f"{pair.path} in the original is not the layer recorded for it")
    return problems


def _holds(network: nn.Module, path: str, layer: nn.Module) -> bool:
    """Whether each tensor of `layer` equals one of the network's at `path` (of a module, or a parameter itself)."""
    named = _tensors(network)
    within = path.rpartition(".")[0] if path in named else path
    candidates = [p for name, p in named.items() if name.startswith(within + "." if within else "")]
    return all(any(_equal(p, q) for q in candidates) for p in layer.parameters())


def plain_attributes(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that modules hold as plain attributes, neither parameters nor buffers, by their dotted names."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in network.named_modules(remove_duplicate=False)
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    buffers = dict(network.named_buffers(remove_duplicate=False))
    return plain_attributes(network) | buffers | dict(network.named_parameters(remove_duplicate=False))


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    a, b = a.detach(), b.detach().to(a.device)
    return torch.equal(a, b) or (_floating(a) and bool(((a == b) | (a.isnan() & b.isnan())).all()))

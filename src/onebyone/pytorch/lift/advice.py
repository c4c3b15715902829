"""Advice on a network that is not exact: why its results may be far from those of crops, and what would be exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.errors import OnebyoneError
from onebyone.laws.geometry import Geometry
from onebyone.lifting.inexact import far_advice
from onebyone.lifting.lifter import PARTIAL
from onebyone.pytorch.lift.exported_graph import evaluating
from onebyone.records import by

_RUNS, _LIFTS = 200, 8  # windows that are tried on shapes alone, and those of them that are lifted


def advice(
    model: nn.Module | ExportedProgram,
    geometry: Geometry,
    channels: int | None,
    exact_at: Callable[[tuple[int, ...]], bool],
) -> tuple[str, ...]:
    """Sentences of advice on a result of `head="window"`; none if it is exact.

    `exact_at` tells whether the network is exact at another window; it may raise what lifting raises.
    """
    if geometry.exact:
        return ()
    said = list(far_advice(geometry))
    if all(reason.endswith(PARTIAL) for reason in geometry.inexact_because):
        near = exact_window(model, geometry, channels, exact_at)
        if near is not None:
            said.append(
                f"the network is not exact at a window of {by(geometry.window)}, where the last position of "
                f"a ceil_mode pool is partial; at a window of {by(near)} it would be"
            )
    return tuple(said)


def exact_window(
    model: nn.Module | ExportedProgram,
    geometry: Geometry,
    channels: int | None,
    exact_at: Callable[[tuple[int, ...]], bool],
) -> tuple[int, ...] | None:
    """The nearest window, less than a stride away on each axis, that gives as many numbers and is exact; or None.

    Padding is the same at every window; partial positions of ceil_mode pools are not.
    """
    if isinstance(model, ExportedProgram):
        return None  # it runs on the window that it was exported for alone
    wanted = _shapes(model, geometry.window, channels)
    offsets = product(*(range(1 - s, s) for s in geometry.stride))
    nearest = sorted(offsets, key=lambda o: (max(map(abs, o)), sum(map(abs, o)), tuple(-n for n in o)))
    sizes = (tuple(w + n for w, n in zip(geometry.window, o, strict=True)) for o in nearest[1 : _RUNS + 1])
    fitting = (size for size in sizes if min(size) > 0 and _shapes(model, size, channels) == wanted)
    for size in islice(fitting, _LIFTS):
        try:
            if exact_at(size):
                return size
        except OnebyoneError:
            continue
    return None


def _shapes(model: nn.Module, window: Sequence[int], channels: int | None) -> list[tuple[int, ...]] | None:
    """The shapes of the network's outputs for a window, on fake tensors; None where it does not run."""
    reference = next(iter(model.parameters()), torch.empty(0))
    dtype = reference.dtype if reference.is_floating_point() else torch.get_default_dtype()
    try:
        with evaluating(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            size = (2, *window) if channels is None else (2, channels, *window)
            example = torch.empty(*size, dtype=dtype, device=reference.device)
            return [tuple(t.shape) for t in pytree.tree_leaves(model(example)) if isinstance(t, torch.Tensor)]
    except Exception:
        return None

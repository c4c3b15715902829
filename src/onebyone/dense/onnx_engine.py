"""The engine in which an ONNX model runs on tiles, checked beside ONNX Runtime before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from onebyone.dense.tuned_runner import random_tile
from onebyone.dense.work import ScanWork
from onebyone.errors import BadInput
from onebyone.tuning.onnx_engines import require_known_engine

#: Positions per axis of the small tile on which an engine is compared with float64.
_POSITIONS = 4


def require_fitting_engine(engine: Any, model: Any) -> None:
    """Raise BadInput for anything but None and the name of an engine, and for models that are not of ONNX."""
    if engine is None:
        return
    require_known_engine(engine)
    if isinstance(model, nn.Module):
        raise BadInput(
            f"engine={engine!r}: expected an ONNX model; tune=True chooses that of a PyTorch network"
        )


def probe_shape(work: ScanWork, channels: int) -> tuple[int, ...]:
    """The shape (1, C, *pixels) of a small tile: of four positions per axis, or of one window to crop."""
    network, more = work.plan.network, 0 if work.windows is not None else _POSITIONS - 1
    return (1, channels, *(w + more * s for w, s in zip(network.window, network.stride, strict=True)))


def with_engine(work: ScanWork, channels: int, engine: str) -> ScanWork:
    """The same work in an engine, which is checked on a random tile of the plan and on a small one.

    Raises NotEquivalent where its scores differ from those of ONNX Runtime by more than rounding errors (see
    `onebyone.tuning.onnx_tuning`).
    """
    from onebyone.tuning.onnx_tuning import require_engine

    if engine == "onnxruntime":
        return work
    examples = [random_tile(probe_shape(work, channels), seed=0)]
    if work.windows is None:
        examples.append(random_tile((1, channels, *next(iter(work.plan)).read_shape), seed=1))
    require_engine(work.model, engine, examples, threads=torch.get_num_threads())
    return replace(work, settings=replace(work.settings, engine=engine))

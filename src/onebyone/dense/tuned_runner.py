"""Tiles in their fastest form: `tune` measures the network on the shape of a tile, and the runner uses its choice.

Engines such as the one of this package compile a network for one shape. Nearly all tiles of a plan have the same
shape, so they run in the chosen form; tiles at the borders and single windows run in PyTorch. For an ONNX model the
choice is an engine that takes every shape, so all tiles run in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.outputs import select_output
from onebyone.dense.runner import TorchRunner, TorchSettings, floating_dtype, moved_to, torch_runner
from onebyone.pytorch.lift.exported_graph import evaluating
from onebyone.tuning import TuningPlan
from onebyone.tuning import tune as tune_network

#: The engines that are tried for tiles, the last one first. Others compile for minutes, or run smaller products better.
ENGINES = ("eager", "openvino", "onnxruntime", "onebyone")

#: Seconds for tuning: at least the first number, and as many runs of the tile in PyTorch as the second. The checks of
#: the candidates take about fifty.
_LEAST_SECONDS, _RUNS = 60.0, 120.0

Tune = bool | str | os.PathLike[str] | TuningPlan


@dataclass(frozen=True)
class TunedTile:
    """The choice of `tune` for tiles of one shape.

    `model` is the network in that form. It is compiled for this process, so another process builds it from the plan.
    """

    plan: TuningPlan
    model: nn.Module | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return TunedTile, (self.plan,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (1, C, *pixels) of a tile."""
        return tuple(int(n) for n in self.plan.inputs[0].get("shape", ()))

    def to_dict(self) -> dict[str, Any]:
        """What determines the scores, as plain data."""
        choice = {key: self.plan.choice[key] for key in ("engine", "form", "dtype", "layers")}
        return {**choice, "threads": self.plan.threads, "versions": dict(self.plan.versions)}


def tuned_tile(
    model: Any,
    shape: Sequence[int],
    device: torch.device,
    tune: Tune = True,
    *,
    out: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    probe: Sequence[int] | None = None,
) -> TunedTile:
    """Choose the fastest verified form of a network for tiles of `shape` (1, C, *pixels).

    Args:
        tune: True to measure; or a plan that `tune` made for such tiles, or its path, which is applied and checked.
        out: the output of the scan. Beside it, in OUT.tuning.json, a measured plan is kept, and read again when the
            scan goes on, because another form would give other roundings.
        threads: of one run; None takes PyTorch's setting.
        probe: the shape of a smaller tile on which the engines of an ONNX model are compared with float64 too.

    Raises:
        BadInput: a plan cannot be read or built.
        Refused: the plan was made for another tile, network or machine.
    """
    example = random_tile(shape, seed=0)
    select = _selection(model, probe)
    if isinstance(model, nn.Module):
        model = moved_to(model, device)
        example = example.to(device, floating_dtype(model))
    kept = None if out is None else Path(out).with_name(f"{Path(out).name}.tuning.json")
    plan = kept if tune is True and kept is not None and kept.exists() else tune
    if plan is True:
        budget = _LEAST_SECONDS
        if isinstance(model, nn.Module):
            budget = max(budget, _RUNS * _seconds_of_run(model, example))
        tuned = select(model, example, budget=budget, threads=threads, device=device)
        if kept is not None:
            tuned.save(kept)
    else:
        assert not isinstance(plan, bool)
        tuned = select(model, example, plan=plan, threads=threads, device=device)
    return TunedTile(tuned.plan, tuned.model)


def _selection(model: Any, probe: Sequence[int] | None) -> Any:
    """The function that tunes a model of this kind."""
    if isinstance(model, nn.Module):
        return partial(tune_network, engines=ENGINES)
    from onebyone.tuning.onnx_tuning import tune_onnx

    return partial(tune_onnx, probes=() if probe is None else (random_tile(probe, seed=1),))


def random_tile(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Normally distributed pixels (N, C, *pixels), always the same for a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _seconds_of_run(model: nn.Module, example: torch.Tensor) -> float:
    start = time.perf_counter()
    with evaluating(model), torch.inference_mode():
        model(example)
        if example.device.type == "cuda":
            torch.cuda.synchronize(example.device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class TunedRunner:
    """Runs tiles of one shape in the form that `tune` chose, one after another, and all other batches by `others`."""

    tuned: nn.Module
    shape: tuple[int, ...]
    others: TorchRunner

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) to the network's output (N, channels, *positions), both float32."""
        if batch.shape[1:] != self.shape[1:]:
            return self.others(batch)
        settings, dtype = self.others.settings, floating_dtype(self.others.model)
        parts = [
            select_output(
                self.tuned(torch.from_numpy(tile[None]).to(settings.device, dtype)), settings.output
            )
            for tile in batch
        ]
        result: NDArray[np.float32] = (
            (parts[0] if len(parts) == 1 else torch.cat(parts)).float().cpu().numpy()
        )
        return result


@contextmanager
def tuned_runner(model: nn.Module, settings: TorchSettings, tile: TunedTile) -> Iterator[TunedRunner]:
    """A runner for tiles of the shape that was tuned; in a process where it was not built, the plan is applied."""
    with torch_runner(model, settings) as others:
        if tile.model is None:
            tile = tuned_tile(model, tile.shape, settings.device, tile.plan)
        assert tile.model is not None
        yield TunedRunner(tile.model, tile.shape, others)

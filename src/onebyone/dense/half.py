"""Half precision: the error that a network makes in 16 bits, measured on a tile of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.guarded_source import GuardedSource
from onebyone.dense.plan import Tile
from onebyone.dense.preprocessing import normalise
from onebyone.dense.runner import HALF, open_runner
from onebyone.dense.work import ScanWork
from onebyone.errors import BadInput
from onebyone.stores.source import ImageSource


def require_half(half: Any, model: Any) -> None:
    """Raise BadInput for anything but None, "bfloat16" and "float16", and for models that are not PyTorch's."""
    if half is None:
        return
    if half not in HALF:
        raise BadInput(f"half={half!r}: expected {' or '.join(map(repr, HALF))}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"half={half!r}: an ONNX model keeps its own types; expected a PyTorch network")


@dataclass(frozen=True)
class HalfError:
    """How far the scores of one tile in 16 bits are from those in the network's own type.

    `difference` is the largest one of a score, `largest` the largest magnitude of a score, and `same` the share of the
    positions with the same best class.
    """

    half: str
    difference: float
    largest: float
    same: float

    def __str__(self) -> str:
        return (
            f"{self.half}: on a tile from the middle of the image, scores differ from those of the network's own "
            f"type by at most {self.difference:.2g}, where the largest magnitude is {self.largest:.2g}, and "
            f"{self.same:.1%} of the positions have the same best class"
        )


def measure_half(work: ScanWork, source: ImageSource) -> HalfError:
    """Run the tile in the middle of the plan, or the next that can be read, in 16 bits and in the network's own type.

    Raises BadInput where the scores in 16 bits are not finite: float16 ends at 65,504. And where no tile can be read.
    """
    guard, tiles = GuardedSource(source), list(work.plan)
    for tile in tiles[len(tiles) // 2 :] + tiles[: len(tiles) // 2]:
        batch = normalise(guard.read(tile.read), work.labels)[None]
        if tuple(tile.read) not in guard.failures:
            break
    else:
        raise BadInput(f"half={work.settings.half!r}: no tile of the image can be read to measure its error")
    scores = _scores(work, tile, batch)
    exact = _scores(replace(work, settings=replace(work.settings, half=None)), tile, batch)
    if not np.isfinite(scores).all():
        raise BadInput(
            f"half={work.settings.half!r}: the scores are not finite; expected a network that fits its range"
        )
    return HalfError(
        str(work.settings.half),
        float(np.abs(scores - exact).max()),
        float(np.abs(exact).max()),
        float((scores.argmax(0) == exact.argmax(0)).mean()),
    )


def _scores(work: ScanWork, tile: Tile, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    with open_runner(work.model, work.settings) as run:
        return np.array(run(batch)[0][:, *(span.slice for span in tile.keep)])

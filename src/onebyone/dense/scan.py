"""The dense executor: runs a plan over an image in memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.agreement import how_many, measure
from onebyone.dense.batch_reader import Feed, made_ahead, reads_ahead
from onebyone.dense.images import load_image, warn_of_raw_pixels
from onebyone.dense.plan import PerAxis, ScanPlan, Tile, finer, plan_scan, tile_for
from onebyone.dense.runner import (
    Progress,
    chosen_output,
    device_named,
    floating_dtype,
    laid_out,
    output_of,
    place_on,
    telling,
)
from onebyone.dense.score_map import ScoreMap, kind_given
from onebyone.dense.sliding_window import scan_windows
from onebyone.errors import BadInput, InexactWarning
from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.lift.exported_graph import evaluating
from onebyone.pytorch.lift.outputs import Output
from onebyone.records import Labels

MODES = ("dense", "windows")


class Dense(Protocol):
    """What `scan` needs of a network: `convolutionalize` and `load_dense` give it."""

    @property
    def model(self) -> nn.Module:
        """(N, C, H, W) -> (N, classes, H', W'), or a tuple of such."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Where the places of the output lie in the image."""
        ...

    @property
    def labels(self) -> Labels:
        """Classes and preprocessing that the model carries."""
        ...

    @property
    def channels(self) -> int:
        """Channels the network reads."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What its outputs are called and what their numbers are; empty where that is not known."""
        ...


def scan(
    d: Dense,
    image: Any,
    *,
    labels: Labels | None = None,
    device: str | torch.device = "cpu",
    batch: int = 1,
    shifts: PerAxis = 1,
    tile: PerAxis | None = None,
    channels_last: bool | None = None,
    output: int | str = 0,
    score_kind: str | ScoreKind | None = None,
    softmax: bool | None = None,
    page: int | None = None,
    mode: str = "dense",
    compared: int | None = None,
    progress: Progress = None,
) -> ScoreMap:
    """Run a dense network over an image: one score per class for every window.

    Where the network is not exact (`Geometry.exact`), some windows are cropped and run by themselves too, and the
    result's `agreement` says how many have the same best class; fewer than 95% give a warning.

    Parameters
    ----------
    d
        what `convolutionalize` or `load_dense` gives.
    image
        a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W); for a network of signals
        or volumes the same with one or three axes in the place of H, W; see `preprocess`.
    labels
        classes and preprocessing; those that `d` carries where None.
    batch
        how many tiles of one shape run at once, at most.
    shifts
        passes per axis (a divisor of the stride): the map's stride becomes stride / shifts. Each pass runs
        over the image without its first pixels, so near the image's own edges a network with padding sees its
        padding from there.
    tile
        places of the map per tile and axis; None chooses (see `tile_for`), and a large number makes one pass
        over the whole image. Tiles carry the halo they need: tiled equals whole up to rounding.
    channels_last
        the memory order of the input; None takes channels last on a processor where a tile has 64 places or
        more, which is the faster there.
    output
        which of its outputs, for a network with several: its number from 0, or its name (the key of a
        dictionary, the field of a record).
    score_kind
        what the output's numbers are: "logits", "probabilities" or "log-probabilities", alone or followed by
        ":exclusive" or ":multi-label"; None takes what `d` carries, which `convolutionalize` read from the
        network's last operator.
    softmax
        True is short for score_kind="logits", False for score_kind="probabilities".
    page
        the page or frame, from 0, of a picture file with several; where it is None, the first is read, with a
        warning if there are more.
    mode
        "dense" runs the network once over each tile; "windows" crops every window and runs it by itself: slower,
        and exact for every network.
    compared
        how many windows are cropped to measure the agreement; None takes 8 to 64 (see `agreement.how_many`), 0 none.
    progress
        True for a bar on stderr, or a callable of (done, total) tiles (windows, where every window is cropped).

    Raises
    ------
    BadInput
        for an image smaller than the window, with other channels, or with values that are not finite; for
        shifts that do not divide the stride; for a device that is not there; for a network whose output is
        not what its geometry says.
    """
    outputs: tuple[Output, ...] = getattr(d, "outputs", ())
    output, known = chosen_output(outputs, output)
    kind = kind_given(score_kind, softmax) or (known.kind if known else None)
    labels = _labels(d, labels)
    if known is not None and len(outputs) > 1 and len(labels.classes) != known.channels:
        labels = replace(labels, classes=(), background=())  # the names are those of another output
    require_fitting(labels, [] if known is None else [known.channels])
    axes = len(d.geometry.window)
    pixels = load_image(image, channels=getattr(d, "channels", None), labels=labels, axes=axes, page=page)
    warn_of_raw_pixels(labels, pixels)
    if batch < 1:
        raise BadInput(f"batch={batch}: expected a positive integer")
    if mode not in MODES:
        raise BadInput(f"mode={mode!r}: expected 'dense' or 'windows'")
    if mode == "windows":
        return scan_windows(
            d.model, pixels, _cropped(d, shifts), labels=labels, device=device, output=output, score_kind=kind,
            batch=batch if batch > 1 else None, progress=progress,
        )  # fmt: skip
    device = device_named(device)
    on_cpu = device.type == "cpu"
    if tile is None and not d.geometry.image_wide:
        tile = tile_for(d.geometry, pixels.size, shifts=shifts, least=2**16 if on_cpu else 2**22)
    plan = plan_scan(d.geometry, pixels.size, shifts=shifts, tile=tile)
    if channels_last is None:
        channels_last = on_cpu and prod(plan.tile) >= 64 * prod(plan.shifts)
    model = place_on(d.model, device)
    runner = _Runner(model, device, floating_dtype(model), channels_last, output)
    ahead = reads_ahead(device)
    feed = Feed(pixels, labels, channels_last, buffers=2 if ahead else 1)
    start = time.perf_counter()
    with evaluating(model), torch.inference_mode(), telling(progress, len(plan), "scanning") as tell:
        scores = _run(plan, runner, made_ahead(feed, _batches(plan, batch), ahead), tell)
        seconds = time.perf_counter() - start
        agreement = None
        if not d.geometry.exact and _head(d) == "window":
            most = how_many(plan.geometry, pixels.size) if compared is None else compared
            agreement = measure(scores, plan.geometry, lambda at: pixels.read(at, labels), runner, most)
    if agreement is not None and not agreement.enough:
        warnings.warn(agreement.advice, InexactWarning, stacklevel=2)
    return ScoreMap(
        scores=scores,
        geometry=plan.geometry,
        labels=labels,
        image_size=pixels.size,
        seconds=seconds,
        kind=kind,
        device=str(device),
        passes=len(plan),
        agreement=agreement,
    )


def _head(d: Dense) -> str:
    return str(getattr(d, "head", "window"))


def _cropped(d: Dense, shifts: PerAxis) -> Geometry:
    """The geometry of a map for which every window was cropped: exact by construction."""
    if _head(d) != "window":
        raise BadInput(
            "mode='windows': a class map (head='cam') has no windows to crop; expected mode='dense'"
        )
    return replace(finer(d.geometry, shifts), exact=True, inexact_because=(), image_wide=False)


def _labels(d: Dense, given: Labels | None) -> Labels:
    carried = getattr(d, "labels", None)
    return given or carried or Labels()


@dataclass(frozen=True)
class _Runner:
    """Runs the network on tiles of one shape."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    output: int | str

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The network's places for a batch of tiles, (tiles, classes, H', W')."""
        inputs = inputs.to(self.device, self.dtype)
        return output_of(self.model(laid_out(inputs, self.channels_last)), self.output)


def _run(
    plan: ScanPlan,
    runner: _Runner,
    batches: Iterable[tuple[list[Tile], torch.Tensor]],
    tell: Callable[[int], None],
) -> NDArray[np.float32]:
    scores: NDArray[np.float32] | None = None
    done = 0
    for tiles, inputs in batches:
        result = runner(inputs)
        _check_places(result, plan, tiles[0])
        values = result.float().cpu().numpy()
        if scores is None:
            scores = np.empty((values.shape[1], *plan.positions), dtype=np.float32)
        for t, value in zip(tiles, values, strict=True):
            scores[:, *(s.slice for s in t.write)] = value[:, *(s.slice for s in t.keep)]
        done += len(tiles)
        tell(done)
    assert scores is not None  # a plan has at least one tile
    return scores


def _batches(plan: ScanPlan, batch: int) -> Iterator[list[Tile]]:
    """Runs of up to `batch` consecutive tiles of one shape."""
    waiting: list[Tile] = []
    for tile in plan:
        if waiting and (len(waiting) == batch or tile.read_shape != waiting[0].read_shape):
            yield waiting
            waiting = []
        waiting.append(tile)
    if waiting:
        yield waiting


def _check_places(result: torch.Tensor, plan: ScanPlan, tile: Tile) -> None:
    """The network must give just the places its geometry promises: one more or fewer is a wrong geometry."""
    expected = plan.network.positions(tile.read_shape)
    if tuple(result.shape[2:]) != expected:
        raise BadInput(
            f"the network gives an output of shape {tuple(result.shape)} for {tile.read_shape} pixels, "
            f"and its geometry says {expected} places"
        )

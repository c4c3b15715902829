"""Scanning an image: a network runs on every tile of a plan, and its scores become a score map."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import torch
from torch import nn

from onebyone.dense.agreement import default_sample_size, measure_agreement
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.checks import PixelCheck
from onebyone.dense.executor import LocalExecutor, TileJob, prefetch_pays, tile_batches
from onebyone.dense.images import open_image
from onebyone.dense.outputs import described_output, why_not_class_scores
from onebyone.dense.plan import PerAxis, choose_tile, finer_geometry, plan_scan
from onebyone.dense.preprocessing import normalise, warn_of_raw_pixels
from onebyone.dense.progress import Progress, progress_reporter
from onebyone.dense.runner import TorchSettings, open_runner, usable_device
from onebyone.dense.score_map import ScoreMap, resolve_kind
from onebyone.dense.sliding_window import scan_windows
from onebyone.errors import BadInput, InexactWarning
from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.results.any_size import Output
from onebyone.stores.sink import ArraySink

MODES = ("dense", "windows")

#: Pixels that a tile has at least, where that many exist: feature maps of 2^16 pixels fit a processor's caches, and
#: other devices need 2^22 to be busy.
_MIN_TILE_PIXELS_CPU, _MIN_TILE_PIXELS_OTHER = 2**16, 2**22

#: Positions per tile from which channels-last inputs are faster on a CPU.
_CHANNELS_LAST_POSITIONS = 64


class Dense(Protocol):
    """What `scan` needs of a network. `convolutionalize` and `load_dense` return such objects."""

    @property
    def model(self) -> Any:
        """(N, C, H, W) -> (N, classes, H', W'), or a tuple of such: an `nn.Module`, or an ONNX model of onnx-ir."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Which pixels each position of the output corresponds to."""
        ...

    @property
    def labels(self) -> Labels:
        """Class names and preprocessing that the model carries."""
        ...

    @property
    def channels(self) -> int:
        """Input channels."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Names and kinds of the outputs; empty where they are not known."""
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

    The image is read and checked tile by tile, and each tile's scores are written once. Where the network is not exact
    (`Geometry.exact`), a sample of windows is also cropped and run separately; the result's `agreement` is the share
    with the same best class, and there is a warning where it is below 95%.

    Parameters
    ----------
    d
        the result of `convolutionalize` or `load_dense`.
    image
        a path, a Pillow image, an array (H, W) or (H, W, C), a tensor (C, H, W), or an `ImageSource`. Networks of
        signals or volumes take one or three axes in place of H, W.
    labels
        class names and preprocessing; None takes those that `d` carries.
    device
        where the network runs.
    batch
        the largest number of tiles of one shape in a batch.
    shifts
        passes per axis, a divisor of the stride: the stride of the map becomes stride / shifts. Each pass skips the
        first pixels of the image, so a network with padding applies it there, near the image's own edges.
    tile
        positions of the map per tile and axis. None chooses the size by its cost (see `choose_tile`), and a large
        number makes one pass over the whole image. Tiles include the halo they need, so the tiled result equals
        that of one pass up to rounding.
    channels_last
        the memory order of the input. None takes channels last on a CPU where a tile has 64 positions or more, which
        is faster there.
    output
        which output of a network with several: its number from 0, or its name (the key of a dictionary, the field of
        a dataclass).
    score_kind
        what the output's numbers are: "logits", "probabilities" or "log-probabilities", alone or followed by
        ":exclusive" or ":multi-label". None takes what `d` carries, which `convolutionalize` reads from the network's
        last operator.
    softmax
        True is short for score_kind="logits", False for score_kind="probabilities".
    page
        the page or frame, from 0, of a picture file with several. None reads the first, with a warning where there
        are more.
    mode
        "dense" runs the network once on each tile; "windows" crops every window and runs it separately, which is
        slower and exact for every network.
    compared
        the number of windows that are cropped to measure the agreement. None takes 8 to 64 (see
        `agreement.default_sample_size`); 0 does not measure it.
    progress
        True for a bar on stderr, or a callable of (done, total) tiles, or windows in the mode "windows".

    Raises
    ------
    BadInput
        for an image smaller than the window, with other channels or with values that are not finite; for shifts that
        do not divide the stride; for a device that cannot be used; for a network whose output does not have the
        positions of its geometry.
    """
    outputs: tuple[Output, ...] = getattr(d, "outputs", ())
    output, described = described_output(outputs, output)
    stated_kind = resolve_kind(score_kind, softmax)
    kind = stated_kind or (described.kind if described else None)
    labels = labels or getattr(d, "labels", None) or Labels()
    comparable = not d.geometry.exact and _head(d) == "window" and compared != 0
    skipped = ""
    if comparable and not stated_kind:
        skipped = why_not_class_scores(outputs, output, len(labels.classes))
    if described is not None and len(outputs) > 1 and len(labels.classes) != described.channels:
        labels = replace(labels, classes=(), background=())  # the names are those of another output
    require_fitting(labels, [] if described is None else [described.channels])
    axes = len(d.geometry.window)
    source = open_image(image, channels=getattr(d, "channels", None), labels=labels, axes=axes, page=page)
    warn_of_raw_pixels(labels, source)
    if batch < 1:
        raise BadInput(f"batch={batch}: expected a positive integer")
    if mode not in MODES:
        raise BadInput(f"mode={mode!r}: expected 'dense' or 'windows'")
    if mode == "windows":
        return scan_windows(
            d.model, source, _windows_geometry(d, shifts), labels=labels, device=device, output=output,
            score_kind=kind, batch=batch if batch > 1 else None, progress=progress,
        )  # fmt: skip
    device = usable_device(device)
    on_cpu = device.type == "cpu"
    if tile is None and not d.geometry.image_wide:
        min_pixels = _MIN_TILE_PIXELS_CPU if on_cpu else _MIN_TILE_PIXELS_OTHER
        tile = choose_tile(d.geometry, source.size, shifts=shifts, min_pixels=min_pixels)
    plan = plan_scan(d.geometry, source.size, shifts=shifts, tile=tile)
    if channels_last is None:
        many = prod(plan.tile) >= _CHANNELS_LAST_POSITIONS * prod(plan.shifts)
        channels_last = on_cpu and many and isinstance(d.model, nn.Module)
    prefetch = prefetch_pays(on_cpu, torch.get_num_threads())
    check = PixelCheck(source, labels)
    reader = BatchReader(source, labels, channels_last, buffers=2 if prefetch else 1, check=check)
    settings = TorchSettings(device, channels_last, output)
    start = time.perf_counter()
    with open_runner(d.model, settings) as run, progress_reporter(progress, len(plan), "scanning") as report:
        job = TileJob(plan, reader, run, lambda channels: ArraySink((channels, *plan.positions)))
        done = 0
        for tiles in LocalExecutor(prefetch).execute(job, tile_batches(plan, batch)):
            done += len(tiles)
            report(done)
        check.finish()
        assert isinstance(job.sink, ArraySink)  # a plan has at least one tile
        scores = job.sink.values
        seconds = time.perf_counter() - start
        agreement = None
        if comparable and not skipped:
            size = default_sample_size(plan.geometry, source.size) if compared is None else compared
            agreement = measure_agreement(
                scores, plan.geometry, lambda window: normalise(source.read(window), labels), run, size
            )
    if agreement is not None and not agreement.enough:
        warnings.warn(agreement.advice, InexactWarning, stacklevel=2)
    return ScoreMap(
        scores=scores,
        geometry=plan.geometry,
        labels=labels,
        image_size=source.size,
        seconds=seconds,
        kind=kind,
        device=str(device),
        passes=len(plan),
        agreement=agreement,
        agreement_skipped=skipped,
    )


def _head(d: Dense) -> str:
    return str(getattr(d, "head", "window"))


def _windows_geometry(d: Dense, shifts: PerAxis) -> Geometry:
    """The geometry of a map for which every window is cropped: exact by construction."""
    if _head(d) != "window":
        raise BadInput(
            "mode='windows': a class map (head='cam') has no windows to crop; expected mode='dense'"
        )
    return replace(finer_geometry(d.geometry, shifts), exact=True, inexact_because=(), image_wide=False)

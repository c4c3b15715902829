"""Scanning an image: a network runs on every tile of a plan, and its scores become a score map."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from onebyone.dense.cluster import ImageRequest, cluster_client, compute_on_cluster, map_on_cluster
from onebyone.dense.coverage import coverage_of, may_lack_numbers, may_lack_pixels
from onebyone.dense.half import measure_half, require_half
from onebyone.dense.images import open_image
from onebyone.dense.memory_scan import scan_in_memory
from onebyone.dense.network import Dense, ScoreOutput, dilated_network, shifts_for, windows_geometry
from onebyone.dense.onnx_engine import probe_shape, require_fitting_engine, with_engine
from onebyone.dense.plan import PerAxis
from onebyone.dense.planning import Request
from onebyone.dense.preprocessing import warn_of_raw_pixels
from onebyone.dense.progress import Progress
from onebyone.dense.runner import PLAIN_PYTORCH, usable_device
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.sliding_window import scan_windows
from onebyone.dense.stored_scan import Distribution, scan_to_file
from onebyone.dense.tuned_runner import Tune, tuned_tile
from onebyone.errors import BadInput, InexactWarning
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.stores.channels import FilledSource

MODES = ("dense", "windows")
FINER = ("shifts", "dilation")


def scan(
    d: Dense,
    image: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
    device: str | torch.device = "cpu",
    batch: int = 1,
    shifts: PerAxis = 1,
    stride: PerAxis | None = None,
    finer: str = "shifts",
    tile: PerAxis | None = None,
    memory: str | int | None = None,
    channels_last: bool | None = None,
    output: int | str = 0,
    score_kind: str | ScoreKind | None = None,
    softmax: bool | None = None,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
    axes: str | None = None,
    mask: Any = None,
    nodata: float | None = None,
    resize: float = 1,
    mode: str = "dense",
    tune: Tune = False,
    engine: str | None = None,
    half: str | None = None,
    compared: int | None = None,
    progress: Progress = None,
    workers: int | None = None,
    dask: Any = None,
) -> ScoreMap:
    """Run a dense network over an image: one score per class for every window.

    The image is read and checked tile by tile, and each tile's scores are written once. With `out`, finished blocks
    are kept in a folder beside it (OUT.partial) until the file is complete: after a crash, the same call goes on where
    it stopped, and the file is the same, byte for byte, as without the crash. Where the network is not exact
    (`Geometry.exact`), a sample of windows is also cropped and run separately; the result's `agreement` is the share
    with the same best class, and there is a warning where it is below 95%.

    Parameters
    ----------
    d
        the result of `convolutionalize` or `load_dense`, or with mode="windows" a `WindowClassifier`.
    image
        a path, a Pillow image, an array (H, W) or (H, W, C), a tensor (C, H, W), or an `ImageSource`. Networks of
        signals or volumes take one or three axes in place of H, W.
    out
        the path of the score map to write; None keeps it in memory.
    labels
        class names and preprocessing; None takes those that `d` carries.
    device
        where the network runs.
    batch
        the largest number of tiles of one shape in a batch.
    shifts
        passes per axis, a divisor of the stride: the stride of the map becomes stride / shifts. Each pass skips the
        first pixels of the image, so a network with padding applies it there, near the image's own edges.
    stride
        the stride of the map in pixels, in place of `shifts`: a divisor of the network's.
    finer
        how a map of a finer `stride` is computed: "shifts" (shifted passes, for every network), or "dilation" (one pass
        whose later layers are dilated, for networks that do not pad; see `pytorch.lift.dilation`).
    tile
        positions of the map per tile and axis. None chooses the size by its cost (see `choose_tile`), and a large
        number makes one pass over the whole image. Tiles include the halo they need, so the tiled result equals
        that of one pass up to rounding.
    memory
        the memory that the process may occupy, in bytes or as a text such as "4GB"; it bounds the size of a tile. The
        map itself counts only where it is kept in memory.
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
    level, mpp
        the resolution level of a file with several (a pyramidal TIFF, a slide, OME-Zarr): its number from 0, or its
        microns per pixel, within 10 %.
    axes
        the axes of an array or a file, such as "CYX" for channels first; None takes those that the file states.
    mask
        an image or a path: windows without a pixel of it that is not zero are not scored, and blocks of such windows
        are neither read nor computed. It covers the same rectangle as the image, at any resolution. Their scores are
        NaN, and `unscored` of the result counts them.
    nodata
        the value of pixels without data; None takes the one that the image states (GeoTIFF). Windows of only such
        pixels are not scored, nor are those of only pixels that are transparent or masked in a GeoTIFF. If the value is
        not-a-number, windows with any such pixel are not scored. The image is read once more to find them.
    resize
        the factor by which the image is resized as it is read, for objects of another size than the window. `detect`
        merges the maps of several factors, with boxes in pixels of the image before it was resized.
    mode
        "dense" runs the network once on each tile; "windows" crops every window and runs it separately, which is
        slower and exact for every network.
    tune
        True to measure which form of the network is the fastest for the shape of the tiles, in PyTorch, in the engine
        of this package, and in ONNX Runtime and OpenVINO where they are installed, and to scan with it. Its outputs are
        checked as `onebyone.tune` does. This takes the time of some hundred tiles, and with `out` the plan is kept
        in OUT.tuning.json. Or a plan, or the path of one, that was made for such tiles. Of an ONNX model the engine is
        chosen.
    engine
        what runs an ONNX model: "onnxruntime", or "openvino", whose scores of two tiles are compared with those of ONNX
        Runtime first.
    half
        "bfloat16" or "float16": the network runs in 16 bits. A warning states how far the scores of a tile are from
        those in the network's own type.
    compared
        the number of windows that are cropped to measure the agreement. None takes 8 to 64 (see
        `agreement.default_sample_size`); 0 does not measure it.
    progress
        True for a bar on stderr, or a callable of (done, total) tiles, or windows in the mode "windows" without `out`.
    workers
        with `out`: the number of processes on this machine, of one thread each, that compute tiles.
    dask
        with `out`: a `distributed.Client`, or the address of a Dask scheduler, whose workers compute tiles. All of them
        must see the image and the folder of `out` under the same paths.

    Raises
    ------
    NotEquivalent
        where the chosen engine or plan does not compute the network's outputs up to rounding errors.
    BadInput
        for an image smaller than the window, with other channels or with values that are not finite; for shifts that
        do not divide the stride; for a device that cannot be used; for a network whose output does not have the
        positions of its geometry; for a memory that is too small for one tile; for unfinished results of another scan.
    Unfinished
        with `out`, where parts of the image could not be read; all others were computed and are kept.
    """
    if finer not in FINER:
        raise BadInput(f"finer={finer!r}: expected 'shifts' or 'dilation'")
    if finer == "dilation" and stride is not None and mode == "dense":
        d, stride = dilated_network(d, stride), None
    chosen = ScoreOutput.of(d, output, labels, score_kind, softmax, compared)
    labels = chosen.labels
    options: dict[str, Any] = {
        "channels": getattr(d, "channels", None),
        "labels": labels,
        "axes": len(d.geometry.window),
        "page": page,
        "level": level,
        "mpp": mpp,
        "axis_names": axes,
        "resize": resize,
    }
    source = open_image(image, **options)
    options["fill_nan"] = resize == 1 and may_lack_numbers(source, nodata)
    source = FilledSource(source) if options["fill_nan"] else source
    warn_of_raw_pixels(labels, source)
    if batch < 1:
        raise BadInput(f"batch={batch}: expected a positive integer")
    if mode not in MODES:
        raise BadInput(f"mode={mode!r}: expected 'dense' or 'windows'")
    if out is None and (workers, dask) != (None, None):
        raise BadInput("out: is missing; several workers write their scores to a file")
    shifts = shifts_for(d, shifts, stride)
    windows = mode == "windows"
    _require_compatible(windows, tune, half, engine, d.model)
    geometry = windows_geometry(d, shifts) if windows else d.geometry
    complete = mask is None and not may_lack_pixels(source, nodata)
    if windows and out is None and isinstance(d.model, nn.Module) and complete:
        scores = scan_windows(
            d.model, source, geometry, labels=labels, device=device, output=chosen.number,
            score_kind=chosen.kind, batch=batch if batch > 1 else None, progress=progress,
        )  # fmt: skip
        return replace(scores, engine=PLAIN_PYTORCH)
    request = Request(
        d,
        geometry,
        source,
        chosen,
        usable_device(device),
        batch=batch,
        shifts=1 if windows else shifts,
        windows=windows,
        memory=memory,
    )
    work = request.work(tile, False if tune is not False else channels_last, aligned=out is not None)
    coverage = coverage_of(work.plan, source, mask, nodata)
    if tune is not False:
        shape = (1, source.channels, *next(iter(work.plan)).read_shape)
        threads = None if workers is None else 1
        probe = probe_shape(work, source.channels)
        tuned = tuned_tile(d.model, shape, work.settings.device, tune, out=out, threads=threads, probe=probe)
        work = replace(work, tuned=tuned)
    if engine is not None:
        work = with_engine(work, source.channels, engine)
    if half is not None:
        work = replace(work, settings=replace(work.settings, half=half))
        warnings.warn(str(measure_half(work, source)), InexactWarning, stacklevel=2)
    if out is None:
        result = scan_in_memory(work, source, chosen, compared, progress, coverage)
    else:
        with _distributed(ImageRequest(image, options), workers, dask) as distribution:
            result = scan_to_file(
                work, source, chosen, compared, progress, out, image, distribution, coverage
            )
    if result.agreement is not None and not result.agreement.enough:
        warnings.warn(result.agreement.advice, InexactWarning, stacklevel=2)
    return replace(result, engine=work.engine)


def _require_compatible(windows: bool, tune: Tune, half: str | None, engine: str | None, model: Any) -> None:
    """Raise BadInput where the way in which the network runs does not fit the mode."""
    require_half(half, model)
    require_fitting_engine(engine, model)
    if engine is not None and tune is not False:
        raise BadInput(f"engine={engine!r} and tune were both given; expected one of them")
    if half is not None and (windows or tune is not False):
        raise BadInput(f"half={half!r}: expected mode='dense' without tune")
    if windows and tune is not False:
        raise BadInput(
            "tune: expected mode='dense', whose tiles have one shape; mode='windows' runs batches of windows"
        )


@contextmanager
def _distributed(image: ImageRequest, workers: int | None, dask: Any) -> Iterator[Distribution | None]:
    """The processes of a cluster; None without one."""
    if workers is None and dask is None:
        yield None
        return
    with cluster_client(dask, workers) as client:
        yield Distribution(
            lambda work, blocks, groups: compute_on_cluster(client, work, image, blocks, groups),
            partial(map_on_cluster, client),
        )

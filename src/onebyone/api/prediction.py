"""The public function `predict`: from a classifier and pictures to boxes, heat maps and drawings in one step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.records import Labels

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.dense import Dense
    from onebyone.prediction.result import Predictions


def predict(
    model: nn.Module | ExportedProgram | Dense | str | os.PathLike[str],
    images: Any,
    *,
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    context: str | None = None,
    labels: Labels | None = None,
    threshold: float | Mapping[str | int, float] = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    per_class: bool | None = None,
    scales: Sequence[float] = (1,),
    score_kind: str | None = None,
    save: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
    name: str | None = None,
    cache: bool = True,
    **scanning: Any,
) -> Predictions:
    """Find the objects of a classifier's classes in pictures of any size.

    The classifier becomes a network for images of any size (`convolutionalize`), which scores every window of each
    image in one pass (`scan`); boxes are the windows above the confidence threshold, after non-maximum suppression
    (`detect`).

    Args:
        model: a classifier: an `nn.Module`, an `ExportedProgram`, or the name of a source; or the result of
            `convolutionalize` or its file.
        images: a file, a folder, a pattern such as `"scans/*.png"`, an array (H, W) or (H, W, C), a Pillow image, or a
            list of these. "-" reads one picture from the standard input.
        window: the classifier's input size in pixels; None takes that of `torchvision:` and `timm:` sources.
        channels: number of image channels; None infers it from the first layer.
        context: for global pooling inside the network: pool over each "window", or over the whole "image".
        labels: class names and preprocessing; None takes those that the model or its source states.
        threshold: confidence threshold: the minimum probability of a detection; a mapping has it by class, with "*"
            for the classes that it does not name (0.5 otherwise).
        iou: IoU threshold for non-maximum suppression.
        background: classes to treat as background, in addition to those of the labels.
        per_class: whether only boxes of the same class suppress each other; None does that for independent classes,
            and lets exclusive classes suppress each other.
        scales: factors by which each image is resized before it is scanned, for objects of other sizes than the window;
            the boxes of all scales are merged. A scale at which an image is smaller than the window is left out.
        score_kind: what the network's outputs are; None infers it (see `convolutionalize`).
        save: a folder for the results of each image: boxes (`NAME.json`), the heat map (`NAME-heat.png`), the heat map
            with boxes (`NAME-detections.png`), the score map and the pixels that were scanned (`NAME-scores.npz` and
            `NAME-image.png`, which `view` shows), and `predictions.json`, one COCO file for all. None writes nothing.
        progress: a function of (done, total) images.
        name: the source that `model` comes from, for its class names, preprocessing and window; None takes `model` if
            that is a name.
        cache: whether the any-size network of a `.pt2` file is kept beside it, as `NAME.pt2.any-size.safetensors`, and
            read from there where nothing it depends on has changed; not where `name` is another source.
        scanning: device, batch, shifts, tile, output, page, mode, compared: see `onebyone.dense.scan`.

    Returns:
        `Predictions`, one `Prediction` per image with `.detections` (boxes, scores, labels) and, unless `save` is
        given, `.scores` (the score map; `.maps` has those of all scales).

    Raises:
        BadInput: the model or an image cannot be read, or the window is not known.
        Refused: the classifier cannot become a network for images of any size; `.refusals` lists every reason.

    >>> import numpy as np, torch, onebyone
    >>> bright = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Sigmoid())
    >>> image = np.full((32, 48), -9.0); image[8:16, 16:24] = 9
    >>> onebyone.predict(bright, image, window=8, channels=1, labels=onebyone.Labels(std=(1,)))[0].detections.boxes
    array([[16.,  8., 24., 16.]], dtype=float32)
    """
    from onebyone.prediction.inputs import image_files
    from onebyone.prediction.predict import predict_images
    from onebyone.viewing.scan_folder import ScanParts, write_scan_parts

    listed = image_files(images if isinstance(images, list | tuple) else [images])
    folder = None if save is None else Path(save)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise BadInput(f"save={os.fspath(folder)!r}: is a file; expected a folder")
    source = name or (os.fspath(model) if isinstance(model, str | os.PathLike) else None)
    own = name is None or (isinstance(model, str | os.PathLike) and name == os.fspath(model))
    arguments = {"window": window, "channels": channels, "context": context, "score_kind": score_kind}
    dense = _kept_or_made(model, source, arguments, cache and own)
    labels = (labels.with_preprocessing(dense.labels) if labels else None) or dense.labels
    predictions = predict_images(
        dense,
        listed,
        folder=folder,
        detection={"threshold": threshold, "iou": iou, "background": tuple(background)},
        scanning={"labels": labels, "score_kind": score_kind, **scanning},
        scales=tuple(float(f) for f in scales),
        per_class=per_class,
        report=progress,
    )
    if folder is not None:
        files = [
            (Path(p.scores_file), p.image_file and Path(p.image_file)) for p in predictions if p.scores_file
        ]
        write_scan_parts(folder, [ScanParts(scores, image or None) for scores, image in files])
    return predictions


def _kept_or_made(model: Any, source: str | None, arguments: Mapping[str, Any], cache: bool) -> Dense:
    """What `_dense` gives; for a program file, the network that is cached beside it, if there is one."""
    make: Any = partial(_dense, model, source, **arguments)
    program = Path(model) if isinstance(model, str | os.PathLike) else None
    if program is None or program.suffix != ".pt2" or not os.path.isfile(program):
        dense: Dense = make()
        return dense
    from onebyone.loading import nonfinite_notes
    from onebyone.pytorch.lift.any_size_cache import kept_or_made

    given = {key: repr(value) for key, value in arguments.items()}
    kept = kept_or_made(program, given, make) if cache else make()
    for note in nonfinite_notes(kept.model):
        warnings.warn(note, OnebyoneWarning, stacklevel=3)
    return kept


def _dense(
    model: Any,
    source: str | None,
    window: int | Sequence[int] | None,
    channels: int | None,
    context: str | None,
    score_kind: str | None,
) -> Dense:
    """The network for images of any size: `model` itself, that of a file, or what `convolutionalize` makes."""
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.api.networks import convolutionalize
    from onebyone.loading import (
        open_dense,
        opens_densely,
        preprocessing_of,
        require_network,
        window_of_source,
    )

    if not isinstance(model, nn.Module | ExportedProgram | str | os.PathLike):
        dense: Dense = model  # scan says what is missing
        return dense
    if isinstance(model, str | os.PathLike) and opens_densely(model):
        return open_dense(model, window, channels, context=context)[0]
    network = require_network(model)
    window = window or (window_of_source(source, network) if source else None)
    if window is None:
        raise BadInput(
            f"{source or type(model).__name__}: its window size is not known; give window= in pixels"
        )
    labels = preprocessing_of(source, network) if source else None
    return convolutionalize(network, window, channels, context=context, labels=labels, score_kind=score_kind)

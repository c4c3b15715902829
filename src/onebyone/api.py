"""The public verbs: they take what users have (a network, or its name) and call the part that does the work.

Nothing heavy is imported until a verb is called, so that `import onebyone` and `onebyone --help` are instant.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput, InexactWarning
from onebyone.loading import example_of, network_of, open_dense, original_of, preprocessing_of
from onebyone.records import LEAST_AGREEMENT, Labels

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.comparison import Comparison
    from onebyone.dense import Dense, ScoreMap
    from onebyone.detection import Detections
    from onebyone.drawing import Drawings
    from onebyone.results import Conversion, Convolutionalized
    from onebyone.tuning import Tuned, TuningPlan
    from onebyone.verification import Verification

    Network = nn.Module | ExportedProgram
    Source = Network | str | os.PathLike[str]


def convert(
    model: Source,
    to: str = "conv",
    *,
    level: str | None = None,
    example: Any = None,
    copy: bool = False,
    only: str | Sequence[str] | Callable[..., bool] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Conversion[Any]:
    """Re-express linear layers as 1×1 convolutions (`to="conv"`), or 1×1 convolutions as linear layers.
    At the levels "layers" and "native" convolutions whose kernel is their stride become linear layers on patches too.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or a source by name (see `onebyone --help`).
        to: "conv" or "linear".
        level: "layers" (drop-in modules that share the very parameters), "native" (real `nn.Conv2d` /
            `nn.Linear`), or "graph" (the whole exported graph; a module needs an `example`); None is "layers"
            for a module and "graph" for a program.
        example: an example input, a tuple of positional or a dict of keyword arguments, or a pair of both.
        copy: part the result's parameters from the original's.
        only: a path glob (`"*.head"`), several of them, or a function (path, module) -> bool, at "graph" (path).
        optimizer: carried over to new parameters, with its state, where there are any.

    Returns:
        A `Conversion`: `.model`, `.changes`, `.refused` with reasons; `print(c)` is a table.

    Raises:
        BadInput: not a network, or an argument that does not fit.

    >>> import torch, onebyone
    >>> c = onebyone.convert(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    >>> [change.path for change in c.changes], c.model(torch.ones(2, 4)).shape
    (['0'], torch.Size([2, 3]))
    """
    from torch import nn

    network = network_of(model, compiled=level != "graph")  # the other levels leave such a module and list it
    if level is None:
        level = "layers" if isinstance(network, nn.Module) else "graph"
    if level == "graph":
        from onebyone.pytorch.graph import convert_graph

        with warnings.catch_warnings():  # torch copies its own deprecated tree specs, with every program
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            own = deepcopy(network) if copy else network
        return convert_graph(own, to=to, example=example, only=only, optimizer=optimizer)
    if not isinstance(network, nn.Module):
        raise BadInput(
            f"level={level!r}: an exported program has no modules left to replace; expected level='graph'"
        )
    from onebyone.pytorch.modules.convert import convert_module

    return convert_module(network, to=to, level=level, copy=copy, only=only, optimizer=optimizer)


def convolutionalize(
    model: Source,
    window: int | Sequence[int],
    channels: int | None = None,
    *,
    head: str = "window",
    context: str | None = None,
    labels: Labels | None = None,
    score_kind: str | None = None,
) -> Convolutionalized[Any, Any]:
    """Turn a classifier of fixed-size windows into a network for images of any size.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or a source by name.
        window: pixels that the classifier takes, per axis; one number is that size on every axis of its first layer.
        channels: of the image; inferred where the first layer tells. An input without a channel axis is tried too.
        head: "window" (the numbers that cropping gives) or "cam" (the class map before pooling).
        context: global pooling inside the network over the "window" or the whole "image"; None refuses it.
        labels: class names and preprocessing to carry along; what they leave out of the preprocessing is that of
            the zoo, for `torchvision:` and `timm:` sources.
        score_kind: what the outputs are: "logits", "probabilities" or "log-probabilities", alone or followed by
            ":exclusive" or ":multi-label"; None reads it from the network's last operator.

    Returns:
        A `Convolutionalized`: `.model` maps (N, C, H, W) to (N, classes, H', W'), place (i, j) answering for
        the window at (i, j)·stride; `.geometry` says which pixels, and whether it equals cropping exactly.

    Raises:
        Refused: an operator does not allow it; `.refusals` holds every reason.
        BadInput: not a network, or a window it cannot take.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> onebyone.convolutionalize(m, window=(8, 8)).model(torch.randn(1, 3, 20, 31)).shape
    torch.Size([1, 10, 13, 24])
    """
    from onebyone.pytorch.lift.convolutionalize import convolutionalize as lift

    network = network_of(model)
    told = preprocessing_of(model, network)
    stated = labels.with_preprocessing(told) if labels else told
    return lift(network, window, channels, head=head, context=context, labels=stated, score_kind=score_kind)


def verify(model: Source, converted: Any, x: Any = None, *, seed: int = 0, **options: Any) -> Verification:
    """Whether `converted` computes the same function as `model`, and how that is known.

    Args:
        model: the original.
        converted: what `convert` or `convolutionalize` gave, or any callable (outputs are compared only).
        x: an example input, a tuple of positional or a dict of keyword arguments, or a pair of both; without
            one (and a program may carry one) the layers are probed by themselves.
        seed: of the probes.
        options: gradients, max_windows, min_agreement, progress: see `onebyone.verification.verify`.

    Returns:
        A `Verification`: `.equivalent`, `.max_error`, `.rounding_ratio`, `.integer_probe`, `.layers`;
        `.check()` raises `NotEquivalent`.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> onebyone.verify(m, onebyone.convert(m), torch.randn(2, 4)).equivalent
    True
    """
    from onebyone.verification import verify as prove

    original = original_of(model, converted)
    return prove(original, converted, example_of(original) if x is None else x, seed=seed, **options)


def compare(
    model: Source, example: Any = None, *, budget: float = 120.0, seed: int = 0, **options: Any
) -> Comparison:
    """Measure what is said of the two layers on this network's own: likenesses, differences, replacements.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or a source by name.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments; a program
            may carry one.
        budget: seconds to aim at.
        seed: of everything random.
        options: rows (the ids wanted, all where None), progress: see `onebyone.compare.compare`.

    Returns:
        A `Comparison`: `.rows`, each with `.id`, `.statement`, `.verdict` computed from its `.figures`, and
        `.because`; `.to_html(path)` is the report, one page; `.to_json()`, `.to_markdown()`, `.save(path)`;
        `print(r)` is readable.

    Raises:
        BadInput: no network, one that does not run on the example, or one with neither layer.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    >>> onebyone.compare(m, torch.randn(1, 3, 4, 4), rows=["R2"])["R2"].verdict
    'holds'
    """
    network, example = _runnable(model, example)
    from onebyone.comparison import compare as measure

    return measure(network, example, budget=budget, seed=seed, **options)


def draw(
    model: Source,
    example: Any = None,
    *,
    window: Sequence[int] | None = None,
    figures: Sequence[str] | None = None,
    layer: str | None = None,
    image: Any = None,
    width: str | float = "column",
) -> Drawings:
    """Draw a network for print and screen: vector pictures made from its own layers, shapes and weights.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or a source by name.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments; a program
            may carry one.
        window: pixels that the classifier takes; the example's where None.
        figures: some of "F1" (a pointwise convolution and its filters), "F2" (fully connected layers as
            neurons), "F3" (before and after the replacement), "strip" (the whole network) and "window" (what
            an answer sees); all where None.
        layer: the path of the layer that F1 and F2 show.
        image: what the window is drawn on: a path, a Pillow image or an array.
        width: "column" (3.3 inches), "page" (7), or inches.

    Returns:
        `Drawings`: `.save(folder, formats=("svg", "pdf", "png"), themes=("light", "dark"))`; `.render(figure)` gives
        bytes; `.data` is what the pictures tell; `.missing` says what could not be drawn. A notebook shows them.

    Raises:
        BadInput: no network, one that does not run on the example, or an argument that does not fit.
        Refused: none of the figures can be drawn.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    >>> print(onebyone.draw(m, torch.randn(1, 3, 4, 4), figures=["F2", "F3"]))
    figure
    ------  -----
    F2      drawn
    F3      drawn
    """
    network, example = _runnable(model, example)
    from onebyone.drawing import describe, drawings

    return drawings(describe(network, example, window=window), figures, width=width, layer=layer, image=image)


def tune(
    model: Source,
    example: Any = None,
    *,
    budget: float = 60.0,
    engines: str | Sequence[str] | None = None,
    dtypes: str | Sequence[str] | None = None,
    threads: int | None = None,
    device: str | None = None,
    dynamic_batch: bool = False,
    fast_products: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    plan: TuningPlan | str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Tuned:
    """Find the fastest form of a network on this machine that computes the same function.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or a source by name.
        example: an input as it will be: a tensor, a tuple of positional or a dict of keyword arguments; a program
            may carry one.
        budget: seconds to aim at.
        engines: some of "eager", "compile", "compile+freeze", "aot-inductor", "onednn-graph", "onebyone",
            "onnxruntime" and "openvino"; "torch" for the first six; None for all that are installed.
        dtypes: "bfloat16" to try that too; its error is told.
        threads: of every engine; None as PyTorch is set.
        device: "cpu" or "cuda"; None where the network is.
        dynamic_batch: the result must take any batch size.
        fast_products: allow products of rows together without an error bound for each row.
        seed: of everything random.
        progress: called with (done, of) after every candidate.
        plan: a plan, or its file, to be applied without measuring.
        force: apply a plan that was made for something else.

    Returns:
        A `Tuned`: `.model` is called like the original; `.plan` says what was measured and why this was chosen, and
        saves to JSON; `print(t)` shows where the time goes.

    Raises:
        BadInput: no network, one that does not run on the example, or an argument that does not fit.
        Refused: a plan made for another processor, version, network, input or number of threads.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> t = onebyone.tune(m, torch.randn(2, 8), engines="eager", budget=0.5)
    >>> t.model(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """
    from onebyone.tuning import tune as choose

    network = network_of(model)
    return choose(
        network,
        example_of(network) if example is None else example,
        budget=budget,
        engines=engines,
        dtypes=dtypes,
        threads=threads,
        device=device,
        dynamic_batch=dynamic_batch,
        fast_products=fast_products,
        seed=seed,
        progress=progress,
        plan=plan,
        force=force,
    )


def scan(
    d: Dense | str | os.PathLike[str],
    image: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    min_agreement: float = LEAST_AGREEMENT,
    **options: Any,
) -> ScoreMap:
    """Run a dense network over an image: one score per class for every window.

    Args:
        d: what `convolutionalize` gave, or the path of its saved `.pt2`.
        image: a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W).
        out: where to save the score map (`.npz`).
        min_agreement: for networks that are not exact: the least share of sampled windows that must have the same
            best class as when they are cropped (`.agreement`); below 0.95 there is a warning.
        options: labels, device, batch, shifts, tile, output, score_kind, softmax, page, mode ("dense", or "windows"
            to crop every window), compared, progress: see `onebyone.dense.scan`.

    Raises:
        BadInput: an image smaller than the window, with other channels or values that are not finite; a file
            that cannot be read or written.
        NotEquivalent: an agreement below `min_agreement`; the map has been saved by then.
    """
    from onebyone import atomic_files, dense

    if out is not None:
        if Path(out).suffix.lower() != ".npz":
            raise BadInput(f"out={os.fspath(out)!r}: a score map is saved as .npz")
        atomic_files.require_writable(out)
    network = open_dense(d)[0] if isinstance(d, str | os.PathLike) else d
    scores = dense.scan(network, image, **options)
    if out is not None:
        scores.save(out)
    if scores.agreement is not None:
        scores.agreement.require(min_agreement)
    return scores


def detect(
    scores: ScoreMap | str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    iou: float = 0.3,
    background: Sequence[str | int] = (),
    boxes: ScoreMap | str | os.PathLike[str] | None = None,
    min_agreement: float = LEAST_AGREEMENT,
    **options: Any,
) -> Detections:
    """Turn a score map into objects: boxes (x1, y1, x2, y2) in pixels, scores and labels.

    Args:
        scores: what `scan` gave, or the path of a saved one (`.npz`).
        threshold: confidence threshold, 0 to 1.
        iou: IoU threshold for non-maximum suppression (NMS).
        background: classes to treat as background, beside those that the labels name.
        min_agreement: as for `scan`, where the map carries an agreement with cropped windows.
        boxes: the box regressions of the same scan, where the network has them as another output (or its `.npz`).
        options: per_class, max_detections, refine, score_kind, box_format: see `onebyone.detection.detect`.

    Raises:
        BadInput: a file that is not a score map, or a class that does not exist.
        NotEquivalent: an agreement below `min_agreement`.
    """
    from onebyone.dense import ScoreMap
    from onebyone.detection import detect as find

    loaded = ScoreMap.load(scores) if isinstance(scores, str | os.PathLike) else scores
    if loaded.agreement is not None:
        loaded.agreement.require(min_agreement)
        if not loaded.agreement.enough:
            warnings.warn(loaded.agreement.advice, InexactWarning, stacklevel=2)
    moves = ScoreMap.load(boxes) if isinstance(boxes, str | os.PathLike) else boxes
    return find(loaded, threshold=threshold, iou=iou, background=tuple(background), boxes=moves, **options)


def _runnable(model: Source, example: Any) -> tuple[nn.Module, Any]:
    """The network as modules, and an example: the one given, or the one that a program carries."""
    from torch.export import ExportedProgram

    network = network_of(model)
    if example is None:
        example = example_of(network)
    if isinstance(network, ExportedProgram):
        from onebyone.comparison.exported_modules import with_modules

        network = with_modules(network)
    if example is None:
        raise BadInput("example: is missing; give an input such as torch.randn(1, 3, 224, 224) (--shape)")
    return network, example

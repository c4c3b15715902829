"""The public functions that measure networks and show them: compare, draw and tune.

Heavy libraries are imported inside the functions, so that `import onebyone` and `onebyone --help` are fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput
from onebyone.loading import example_of, onnx_model, require_network, runnable

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.comparison import Comparison
    from onebyone.drawing import Drawings
    from onebyone.tuning import Tuned, TuningPlan

    Source = nn.Module | ExportedProgram | str | os.PathLike[str]


def compare(
    model: Source, example: Any = None, *, budget: float = 120.0, seed: int = 0, **options: Any
) -> Comparison:
    """Test common claims about fully connected layers and 1×1 convolutions on a network's own layers.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the name of a source.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments. Optional for a
            program that stores one.
        budget: approximate time limit in seconds.
        seed: random seed.
        options: rows (ids of the claims to test; None tests all), progress: see `onebyone.comparison.compare`.

    Returns:
        A `Comparison`: `.rows`, each with `.id`, `.statement`, `.figures`, the `.verdict` computed from the figures
        and its reason `.because`; `.to_html(path)` writes a report of one page; `.to_json()`, `.to_markdown()`,
        `.save(path)`; `print(r)` shows a table.

    Raises:
        BadInput: `model` is not a network, does not run on the example, or has neither kind of layer.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    >>> onebyone.compare(m, torch.randn(1, 3, 4, 4), rows=["R2"])["R2"].verdict
    'holds'
    """
    network, example = runnable(model, example)
    _require_numbers(network)
    from onebyone.comparison import compare as run_comparison

    return run_comparison(network, example, budget=budget, seed=seed, **options)


def _require_numbers(network: nn.Module) -> None:
    """Raise BadInput if weights have no values or are complex: nothing of them can be measured or drawn."""
    for name, weight in network.named_parameters():
        if weight.is_meta:
            raise BadInput(
                f"model: {name} is on the meta device and has no values; expected weights in memory"
            )
        if weight.dtype.is_complex:
            raise BadInput(f"model: {name} is of type {weight.dtype}; expected real numbers")


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
    """Draw a network as vector graphics for print and screen, from its own layers, shapes and weights.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the name of a source.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments. Optional for a
            program that stores one.
        window: the classifier's input size in pixels; None uses the size of the example.
        figures: some of "F1" (a pointwise convolution and its filters), "F2" (fully connected layers as neurons),
            "F3" (before and after the conversion), "strip" (the whole network) and "window" (the receptive field of
            a prediction); None draws all of them.
        layer: path of the layer shown in F1 and F2.
        image: background of the "window" figure: a path, a Pillow image or an array.
        width: "column" (3.3 inches), "page" (7 inches), or a number of inches.

    Returns:
        `Drawings`: `.save(folder, formats=("svg", "pdf", "png"), themes=("light", "dark"))` writes the files;
        `.render(figure)` returns bytes; `.data` holds the data drawn; `.missing` lists the figures that could not be
        drawn, with the reason. Notebooks display the drawings.

    Raises:
        BadInput: `model` is not a network, does not run on the example, or an argument has an unsupported value.
        Refused: none of the figures can be drawn.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    >>> print(onebyone.draw(m, torch.randn(1, 3, 4, 4), figures=["F2", "F3"]))
    figure
    ------  -----
    F2      drawn
    F3      drawn
    """
    network, example = runnable(model, example)
    _require_numbers(network)
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
    """Find the fastest equivalent form of a network on this machine.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, or the name of a source. Or an ONNX model of one input, which is
            measured in ONNX Runtime and OpenVINO, where they are installed, as it is.
        example: a typical input: a tensor, a tuple of positional or a dict of keyword arguments. Optional for a
            program that stores one.
        budget: approximate time limit in seconds.
        engines: some of "eager", "compile", "compile+freeze", "aot-inductor", "onednn-graph", "onebyone",
            "onnxruntime" and "openvino"; "torch" means the first six; None tries all that are installed.
        dtypes: "bfloat16" to try that dtype too and report its error.
        threads: number of threads of every engine; None keeps PyTorch's setting.
        device: "cpu" or "cuda"; None keeps the network's device.
        dynamic_batch: the result must accept any batch size.
        fast_products: allow matrix products whose rows share an error bound, instead of one bound per row.
        seed: random seed.
        progress: called as progress(done, total) after every candidate.
        plan: a plan, or the path of a saved one, to apply without measuring.
        force: apply a plan that was made for another machine, network or input.

    Returns:
        A `Tuned`: `.model` is called like the original; `.plan` records what was measured and why this form was
        selected, and can be saved as JSON; `print(t)` shows where the time is spent.

    Raises:
        BadInput: `model` is not a network, does not run on the example, or an argument has an unsupported value.
        Refused: the plan was made for another processor, version, network, input or number of threads.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> t = onebyone.tune(m, torch.randn(2, 8), engines="eager", budget=0.5)
    >>> t.model(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """
    from onebyone.tuning import tune as select

    onnx = onnx_model(model)
    if onnx is not None:
        if dtypes or dynamic_batch or fast_products:
            raise BadInput(
                "dtypes, dynamic_batch, fast_products: an ONNX model is measured as it is; expected a PyTorch network"
            )
        from onebyone.tuning.onnx_tuning import tune_onnx

        return tune_onnx(
            onnx,
            example,
            budget=budget,
            engines=engines,
            threads=threads,
            device=device,
            seed=seed,
            progress=progress,
            plan=plan,
            force=force,
        )
    network = require_network(model)
    return select(
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

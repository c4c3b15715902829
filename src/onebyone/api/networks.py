"""The public functions that change networks: convert, verify and convolutionalize.

Each function opens what the caller names (a network object, or the name of one) and calls the package that does the
work. Heavy libraries are imported inside the functions, so that `import onebyone` and `onebyone --help` are fast.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onebyone.api.targets import convert_for_target
from onebyone.errors import BadInput
from onebyone.loading import (
    example_of,
    onnx_model,
    original_of,
    preprocessing_of,
    require_network,
    runnable,
)
from onebyone.records import Labels

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.api.targets import Target
    from onebyone.results import Conversion, Convolutionalized
    from onebyone.verification import Verification

    Source = nn.Module | ExportedProgram | str | os.PathLike[str]


def convert(
    model: Source,
    to: str | None = None,
    *,
    target: Target | Sequence[Target] | None = None,
    level: str | None = None,
    example: Any = None,
    copy: bool = False,
    only: str | Sequence[str] | Callable[..., bool] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    freeze_initialisers: bool = False,
    inline_functions: bool = False,
    dynamic_axes: Sequence[int] | None = None,
) -> Conversion[Any]:
    """Convert linear layers to 1×1 convolutions (`to="conv"`), or 1×1 convolutions to linear layers (`to="linear"`).
    With `to="linear"`, levels "layers" and "native" also convert convolutions whose kernel equals their stride.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, an ONNX model (a path that ends in .onnx, a `ModelProto` or a
            model of onnx-ir), or the name of a source (see `onebyone --help`).
        to: "conv" or "linear"; None means "conv", or only what violates the constraints of a `target`.
        target: one accelerator, or the path of a profile (.toml): rewrite the nodes that it would not take; `.refused`
            lists those that stay (see `check`). A PyTorch network is converted at level "graph".
        level: "layers" replaces layers with drop-in modules that share the parameters; "native" with `nn.Conv2d` /
            `nn.Linear`; "graph" rewrites the whole graph with few layout operators, and needs an `example` for a
            module. None selects "layers" for a module, "graph" for a program, and each layer by itself for ONNX.
        example: an example input: a tensor, a tuple of positional or a dict of keyword arguments, or a pair of both.
        copy: copy the parameters, so that the result shares none with the original.
        only: which layers to convert: a glob over layer paths (`"*.head"`), several globs, or a function
            (path, module) -> bool; at level "graph" (path) -> bool.
        freeze_initialisers: for an ONNX model whose weights are also inputs of its graph: make them constants first.
        inline_functions: for an ONNX model: replace calls of its functions by their bodies first, so that a layer whose
            weight is an argument of its function is converted too.
        dynamic_axes: axes of every input whose size stays free where a module is exported, for example (0,) for any
            batch or (0, 2, 3) for any batch, height and width: at level "graph", and by `.save("net.onnx", x)`.
        optimizer: an optimizer of the original whose parameter groups and state are moved to new parameters.

    Returns:
        A `Conversion`: `.model`, `.changes`, and `.refused` with the reasons; `print(c)` shows a table.

    Raises:
        BadInput: `model` is not a network, or an argument has an unsupported value.

    >>> import torch, onebyone
    >>> c = onebyone.convert(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    >>> [change.path for change in c.changes], c.model(torch.ones(2, 4)).shape
    (['0'], torch.Size([2, 3]))
    """
    onnx = onnx_model(model)
    if inline_functions:
        others = {"example": example, "copy": copy, "optimizer": optimizer, "dynamic_axes": dynamic_axes}
        others |= {"target": target, "level": level, "only": only, "freeze_initialisers": freeze_initialisers}
        return _convert_inlined(onnx, to, others)
    if target is not None:
        if level not in (None, "graph") or copy or optimizer is not None:
            raise BadInput("target: applies to ONNX models and to level='graph', without copy and optimizer")
        return convert_for_target(model, onnx, target, to, only, freeze_initialisers, example, dynamic_axes)
    to = to or "conv"
    if onnx is not None:
        from onebyone.onnx.convert import convert_model
        from onebyone.onnx.layout.convert import convert_with_layout

        if level not in (None, "graph"):
            raise BadInput(f"level={level!r}: an ONNX model has no modules; expected level='graph'")
        if optimizer is not None:
            raise BadInput("optimizer: an ONNX model has no parameters to train; expected None")
        if dynamic_axes is not None:
            raise BadInput("dynamic_axes: an ONNX model already fixes which sizes are free; expected None")
        return (convert_with_layout if level else convert_model)(onnx, to, only, freeze_initialisers)

    if freeze_initialisers:
        raise BadInput(
            "freeze_initialisers=True: applies to ONNX models only; expected False for a PyTorch network"
        )

    from torch import nn

    # the levels that replace modules list TorchScript parts as refused instead of failing
    network = require_network(model, allow_torchscript=level != "graph")
    if level is None:
        level = "layers" if isinstance(network, nn.Module) else "graph"
    if level == "graph":
        from onebyone.pytorch.graph import convert_graph

        with (
            warnings.catch_warnings()
        ):  # copying any exported program makes torch warn about its own LeafSpec
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            original = deepcopy(network) if copy else network
        return convert_graph(
            original, to=to, example=example, only=only, optimizer=optimizer, dynamic_axes=dynamic_axes
        )
    if not isinstance(network, nn.Module):
        raise BadInput(
            f"level={level!r}: an exported program has no modules to replace; expected level='graph'"
        )
    from onebyone.pytorch.modules.convert import convert_module

    return convert_module(
        network, to=to, level=level, copy=copy, only=only, optimizer=optimizer, dynamic_axes=dynamic_axes
    )


def _convert_inlined(onnx: Any, to: str | None, others: dict[str, Any]) -> Conversion[Any]:
    """`convert` an ONNX model whose functions are inlined first; `onnx` is None for a PyTorch network."""
    if onnx is None:
        raise BadInput(
            "inline_functions=True: applies to ONNX models only; expected False for a PyTorch network"
        )
    from onebyone.onnx.function_bodies import inlined

    source: Any = inlined(onnx)
    conversion: Any = convert(source, to, **others)
    return replace(conversion, inlined=True)


def convolutionalize(
    model: Source,
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    *,
    head: str = "window",
    context: str | None = None,
    labels: Labels | None = None,
    score_kind: str | None = None,
) -> Convolutionalized[Any, Any]:
    """Turn a classifier with a fixed input size into a network for images of any size.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, an ONNX model (a path that ends in .onnx, a `ModelProto` or a
            model of onnx-ir), or the name of a source.
        window: the classifier's input size in pixels per axis; one number is used for every axis that the first
            layer slides over. None takes the size that an ONNX model states.
        channels: number of channels of the image; inferred from the first layer if possible. Inputs without a channel
            axis are supported too.
        head: "window" pools each window's features, as on a crop; "cam" returns the class map before pooling.
        context: for global pooling inside the network: pool over each "window", or over the whole "image". None
            refuses such a network.
        labels: class names and preprocessing to store with the result. If they state no preprocessing, that of
            `torchvision:` and `timm:` sources is used.
        score_kind: what the outputs are: "logits", "probabilities" or "log-probabilities", alone or followed by
            ":exclusive" or ":multi-label". None infers it from the network's last operator.

    Returns:
        A `Convolutionalized`. `.model` maps (N, C, H, W) to (N, classes, H', W'); position (i, j) holds the scores of
        the window at pixel (i, j)·stride. `.geometry` gives window, stride and receptive field, and whether the
        scores equal those of cropping every window.

    Raises:
        Refused: an operator cannot be converted; `.refusals` lists every reason.
        BadInput: `model` is not a network, or it does not run on the window.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> onebyone.convolutionalize(m, window=(8, 8)).model(torch.randn(1, 3, 20, 31)).shape
    torch.Size([1, 10, 13, 24])
    """
    onnx = onnx_model(model)
    if onnx is not None:
        from onebyone.onnx.lift.convolutionalize import convolutionalize as lift_onnx

        source_labels = preprocessing_of(model, onnx)
        labels = labels.with_preprocessing(source_labels) if labels else source_labels
        return lift_onnx(
            onnx, window, channels, head=head, context=context, labels=labels, score_kind=score_kind
        )

    from onebyone.loading import score_kind_of
    from onebyone.pytorch.lift.convolutionalize import convolutionalize as lift

    if window is None:
        raise BadInput(
            "window: is missing; give the network's input size in pixels (only ONNX models state it)"
        )
    network = require_network(model)
    source_labels = preprocessing_of(model, network)
    labels = labels.with_preprocessing(source_labels) if labels else source_labels
    kind = score_kind or score_kind_of(model)
    return lift(network, window, channels, head=head, context=context, labels=labels, score_kind=kind)


def verify(model: Source, converted: Any, x: Any = None, *, seed: int = 0, **options: Any) -> Verification:
    """Verify that `converted` computes the same function as `model`.

    Args:
        model: the original network, or the original ONNX model.
        converted: the result of `convert` or `convolutionalize`; or any callable, an ONNX model or the name of a
            source: then only outputs are compared. Where the outputs of an ONNX model differ, for example of an export
            of `model`, the first layer that differs is named in `.first_difference`.
        x: an example input: a tensor, a tuple of positional or a dict of keyword arguments, or a pair of both.
            Without one, the example stored in a program is used; if there is none, layers are tested individually.
        seed: random seed of the probes.
        options: gradients, max_windows, min_agreement, progress: see `onebyone.verification.verify`.

    Returns:
        A `Verification` with `.equivalent`, `.max_error`, `.rounding_ratio`, `.integer_probe` and `.layers`;
        `.check()` raises `NotEquivalent` if the two differ.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> onebyone.verify(m, onebyone.convert(m), torch.randn(2, 4)).equivalent
    True
    """
    onnx = onnx_model(model)
    if onnx is not None:
        return _verify_onnx(onnx, converted, x, seed=seed, **options)

    from onebyone.pytorch.precision import tf32_warning
    from onebyone.verification import verify as run_verification

    other = onnx_model(converted)
    if other is not None:
        from onebyone.onnx.network import OnnxNetwork

        network, example = runnable(model, x)
        return run_verification(network, OnnxNetwork(other), example, seed=seed, **options)
    if isinstance(converted, str | os.PathLike):
        converted = require_network(converted)
    original = original_of(model, converted)
    example = example_of(original) if x is None else x
    proof = run_verification(original, converted, example, seed=seed, **options)
    re_expressed = getattr(converted, "changes", ())  # where no layer was, both networks round alike
    warning = tf32_warning(original) if re_expressed else None
    return proof if warning is None else replace(proof, warnings=(*proof.warnings, warning))


def _verify_onnx(
    model: Any, converted: Any, x: Any, *, seed: int, progress: Any = None, **options: Any
) -> Verification:
    """`verify` for ONNX models: a conversion layer by layer, another model by its outputs."""
    from onebyone.onnx.conversion import OnnxConversion
    from onebyone.onnx.evaluators import feeds_of
    from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx
    from onebyone.verification.onnx_models import compare_onnx, verify_onnx

    if isinstance(converted, ConvolutionalizedOnnx):
        from onebyone.verification.onnx_any_size import verify_onnx_any_size

        if "gradients" in options:
            raise BadInput("gradients: do not exist for ONNX models; expected max_windows or min_agreement")
        return verify_onnx_any_size(model, converted, x, seed=seed, progress=progress, **options)
    if options:
        raise BadInput(f"{sorted(options)[0]}: does not apply to ONNX models; expected progress only")
    feeds = None if x is None else feeds_of(model, x)
    if isinstance(converted, OnnxConversion):
        return verify_onnx(model, converted, feeds, seed=seed, progress=progress)
    other = onnx_model(converted)
    if other is None:
        kind = type(converted).__name__
        raise BadInput(f"converted: is of type {kind}; expected a conversion or an ONNX model")
    return compare_onnx(model, other, feeds)

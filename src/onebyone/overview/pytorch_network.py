"""The overview of a PyTorch network: its layers in one run, both conversions, and its form for images of any size."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from onebyone.comparison.exported_modules import with_modules
from onebyone.drawing.data import MAP, TraceStep
from onebyone.drawing.network_trace import trace
from onebyone.errors import BadInput, OnebyoneError, OnebyoneWarning, Refused
from onebyone.overview.result import AnySizeSummary, LayerSummary, NetworkOverview
from onebyone.pytorch.files.checkpoints import named_tensors
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.input_shapes import axes_of
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import Labels, Refusal, by, first_line
from onebyone.results import Conversion
from onebyone.verification.pytree import leaves

_COUNTED = ("convolution", "pointwise", "linear")

Network = nn.Module | ExportedProgram


def overview_of_network(
    network: Network,
    name: str,
    *,
    window: Sequence[int] | int | None = None,
    channels: int | None = None,
    example: Any = None,
    labels: Labels | None = None,
) -> NetworkOverview:
    """Describe a network: layers, kernels and cost, what converts, and whether it runs on images of any size.

    Parameters
    ----------
    network: the module or exported program; it is not modified.
    name: how the user named it.
    window: the input size of the classifier in pixels; None does not try the form for any size.
    channels: the number of image channels; None infers it from the first layer.
    example: an example input; None makes one of zeros from `window` and the channels, if both are known.
    labels: what is known of preprocessing and classes.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    >>> o = overview_of_network(network, "mine", window=8)
    >>> [(layer.path, layer.macs, layer.converts_to) for layer in o.layers]
    [('0', 7776, ''), ('2', 1440, 'conv')]
    >>> o.any_size.geometry.stride
    (1, 1)
    """
    any_size, dense_channels = _any_size(network, window, channels)
    module = with_modules(network) if isinstance(network, ExportedProgram) else network
    if example is None and any_size is not None:
        example = _example(module, any_size.window, dense_channels)
    steps, outputs, notes = _run(module, example)
    to_conv, to_linear = (_converted(network, to, example) for to in ("conv", "linear"))
    tensors = [tensor for _, tensor in named_tensors(network)]
    return NetworkOverview(
        name=name,
        format="exported program" if isinstance(network, ExportedProgram) else type(network).__name__,
        inputs=tuple((path or "input", by(t.shape[1:])) for path, t in leaves(example)) if steps else (),
        outputs=outputs,
        parameters=sum(p.numel() for p in module.parameters()),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()})),
        layers=_layers(module, steps, to_conv, to_linear),
        operators=(),
        to_conv=to_conv.changes,
        to_linear=to_linear.changes,
        refused=_distinct((*to_conv.refused, *to_linear.refused)),
        labels=labels or Labels(),
        any_size=any_size,
        notes=notes,
    )


def _any_size(
    network: Network, window: Sequence[int] | int | None, channels: int | None
) -> tuple[AnySizeSummary | None, int | None]:
    """The form for any size, and the number of channels that it found."""
    if window is None:
        return None, channels
    sizes = (window,) * axes_of(network) if isinstance(window, int) else tuple(window)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnebyoneWarning)  # the geometry and the advice say the same
            dense = convolutionalize(network, window, channels)
    except Refused as error:
        return AnySizeSummary(sizes, refused=error.refusals), channels
    except BadInput as error:
        return AnySizeSummary(sizes, error=first_line(error)), channels
    outputs = tuple(f"{output.name}: {output.channels} channels" for output in dense.outputs)
    return AnySizeSummary(dense.nominal, dense.geometry, outputs), dense.channels


def _example(module: nn.Module, window: Sequence[int], channels: int | None) -> torch.Tensor | None:
    if channels is None:
        first = next((m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
        if first is None:
            return None
        channels = first.in_channels
    dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
    return torch.zeros(1, channels, *window, dtype=dtypes[0] if dtypes else torch.float32)


def _run(
    module: nn.Module, example: Any
) -> tuple[tuple[TraceStep, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The steps of one run and the shapes of its outputs; nothing, with a note, if the network does not run."""
    if example is None:
        return (
            (),
            (),
            ("the network was not run, so shapes and MACs are not known: give window= or example=",),
        )
    outputs: list[tuple[str, str]] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.extend((path or "output", by(t.shape[1:])) for path, t in leaves(output))

    hook = module.register_forward_hook(keep)
    try:
        return trace(module, example), tuple(outputs), ()
    except OnebyoneError as error:
        return (), (), (first_line(error),)
    finally:
        hook.remove()


def _converted(network: Network, to: str, example: Any) -> Conversion[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        if isinstance(network, ExportedProgram):
            return convert_graph(network, to=to, example=None)
        return convert_module(network, to=to)


def _layers(
    module: nn.Module, steps: Sequence[TraceStep], to_conv: Conversion[Any], to_linear: Conversion[Any]
) -> tuple[LayerSummary, ...]:
    converts = {
        **{change.path: "linear" for change in to_linear.changes},
        **{change.path: "conv" for change in to_conv.changes},
    }
    reasons = {refusal.path: refusal.reason for c in (to_linear, to_conv) for refusal in c.refused}
    layers: dict[str, LayerSummary] = {}
    for step in (s for s in steps if s.weights):
        before = layers.get(step.path)
        layers[step.path] = (
            _layer(step) if before is None else replace(before, macs=before.macs + _macs(step))
        )
    if not steps:
        layers = {path: _uncalled(path, m) for path, m in module.named_modules() if _has_weights(m)}
    return tuple(
        replace(layer, converts_to=converts.get(path, ""), reason=reasons.get(path, ""))
        for path, layer in layers.items()
    )


def _layer(step: TraceStep) -> LayerSummary:
    return LayerSummary(
        path=step.path,
        kind=step.kind,
        kernel=step.kernel,
        stride=step.stride,
        groups=step.groups,
        input=step.input,
        output=step.output,
        parameters=step.parameters,
        macs=_macs(step),
    )


def _macs(step: TraceStep) -> int:
    """Elements of the weight times the positions that it is applied at; 0 for other kinds of layers."""
    if step.role not in _COUNTED:
        return 0
    if "Transpose" in step.kind:
        return step.weights[0].count * prod(step.input[1:])
    positions = step.output[1:] if step.layout == MAP else step.output[:-1]
    return step.weights[0].count * prod(positions)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _uncalled(path: str, module: nn.Module) -> LayerSummary:
    settings: Mapping[str, Any] = vars(module)
    return LayerSummary(
        path=path,
        kind=type(module).__name__,
        kernel=_sizes(settings.get("kernel_size")),
        stride=_sizes(settings.get("stride")),
        groups=int(settings.get("groups", 1)),
        parameters=sum(p.numel() for p in module.parameters(recurse=False)),
    )


def _sizes(value: object) -> tuple[int, ...]:
    return tuple(int(n) for n in value) if isinstance(value, tuple) else ()


def _distinct(refusals: Sequence[Refusal]) -> tuple[Refusal, ...]:
    return tuple(dict.fromkeys(refusals))

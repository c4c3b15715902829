"""Collects the data of a network's figures: one run, one conversion, and a sample of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from onebyone.drawing.data import MAP, VECTOR, ConnectedLayer, Drawing, PointwiseLayer, Sizes, TraceStep
from onebyone.drawing.network_trace import trace
from onebyone.drawing.replacement import Replacement, replace_layers
from onebyone.errors import BadInput
from onebyone.laws import pointwise
from onebyone.pytorch.modules import layers
from onebyone.verification.pytree import leaves

NEURONS = 16
"""Neurons of a layer that are drawn, at most: the first ones and the last ones, so the number is even."""
FILTERS = 8
"""Filters of a pointwise convolution that are drawn, at most."""
CHANNELS = 64
"""Weights of a filter that are stored, at most."""
FIGURES = ("F1", "F2", "F3", "strip", "window")


def describe(model: nn.Module, example: Any, *, window: Sequence[int] | None = None) -> Drawing:
    """Collect the data for all figures of a network.

    Parameters
    ----------
    model: the network; it is not modified.
    example: its input: a tensor such as (N, C, H, W), a tuple of positional or a dict of keyword arguments.
    window: the input size of the classifier in pixels, for its any-size form; None means that of the example.

    Raises
    ------
    BadInput
        if the network does not run on the example, or on the given window.

    Example
    -------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    >>> d = describe(net, torch.zeros(1, 3, 6, 6))
    >>> d.replaced[0].weight, d.replaced[0].kernel, d.replaced[0].flatten
    ((5, 128), (5, 8, 4, 4), '1')
    >>> d.geometry.stride
    (1, 1)
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    steps = trace(model, example)
    with warnings.catch_warnings():
        # raised by torch when it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        replacement = replace_layers(model, example, steps, window)
    modules = dict(model.named_modules())
    connected, pointwise_layers = _connected(steps, modules), _pointwise(steps, modules)
    shape = _input_shape(example)
    return Drawing(
        network=type(model).__name__,
        input=shape,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        connected=connected,
        chains=_chains(steps, {c.path for c in connected if not c.twin}),
        pointwise=pointwise_layers,
        replaced=replacement.replaced,
        kept=replacement.kept,
        by=replacement.by,
        refused=replacement.refused,
        geometry=replacement.geometry,
        missing=_missing(connected, pointwise_layers, replacement, shape),
    )


def first_and_last(count: int, limit: int) -> Sizes:
    """The indices of at most `limit` of `count` items: all, or the first ones and the last ones.

    >>> first_and_last(3, 4), first_and_last(100, 4)
    ((0, 1, 2), (0, 1, 98, 99))
    """
    if count <= limit:
        return tuple(range(count))
    return (*range(limit // 2), *range(count - limit // 2, count))


def evenly_spaced(count: int, limit: int) -> Sizes:
    """The indices of at most `limit` of `count` items, evenly spaced, including the first and the last.

    >>> evenly_spaced(3, 4), evenly_spaced(100, 4)
    ((0, 1, 2), (0, 33, 66, 99))
    """
    if count <= limit:
        return tuple(range(count))
    return tuple(round(i * (count - 1) / (limit - 1)) for i in range(limit))


def _input_shape(example: Any) -> Sizes:
    tensors = [t for _, t in leaves(example)]
    return tuple(int(n) for n in tensors[0].shape[1:]) if tensors else ()


def _first_calls(steps: Sequence[TraceStep], role: str) -> list[TraceStep]:
    """The first call of every layer with a role."""
    calls: dict[str, TraceStep] = {}
    for step in steps:
        if step.role == role and step.weights:
            calls.setdefault(step.path, step)
    return list(calls.values())


def _weight_of(module: nn.Module) -> Tensor:
    """The weight that is multiplied, as (O, F)."""
    rule = layers.rule_of(layers.plain_class(module))
    with torch.no_grad():
        if rule is not None and rule.weight is not None:
            return rule.weight(module).detach().flatten(1)
        return cast(Tensor, module.weight).detach().flatten(1)


def _connected(steps: Sequence[TraceStep], modules: Mapping[str, nn.Module]) -> tuple[ConnectedLayer, ...]:
    linears = [s for s in _first_calls(steps, "linear") if _has_module(s, modules)]
    convolutions = [s for s in _first_calls(steps, "pointwise") if _has_module(s, modules) and s.groups == 1]
    return (
        *(_connected_layer(s, modules[s.path], steps, False) for s in linears),
        *(_connected_layer(s, modules[s.path], steps, True) for s in convolutions),
    )


def _has_module(step: TraceStep, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the weight of the step belongs to a module."""
    module = modules.get(step.path)
    return module is not None and layers.kind_of(module) is not None and layers.why_not(module) is None


def _connected_layer(
    step: TraceStep, module: nn.Module, steps: Sequence[TraceStep], twin: bool
) -> ConnectedLayer:
    weight = _weight_of(module)
    outputs, inputs = weight.shape
    rows, columns = first_and_last(outputs, NEURONS), first_and_last(inputs, NEURONS)
    return ConnectedLayer(
        path=step.path,
        kind=step.kind,
        inputs=inputs,
        outputs=outputs,
        bias=getattr(module, "bias", None) is not None,
        places=prod(step.input[1:] if step.layout == MAP else step.input[:-1]),
        drawn_inputs=columns,
        drawn_outputs=rows,
        weights=_sample(weight[list(rows)][:, list(columns)]),
        largest=_largest(weight),
        activation=_activation_after(step, steps),
        twin=twin,
    )


def _activation_after(step: TraceStep, steps: Sequence[TraceStep]) -> str:
    """The activation that follows directly, or after normalisation and dropout only; empty if there is none."""
    for other in steps[steps.index(step) + 1 :]:
        if other.role == "activation":
            return other.kind
        if other.role not in ("identity", "normalisation"):
            break
    return ""


def _pointwise(steps: Sequence[TraceStep], modules: Mapping[str, nn.Module]) -> tuple[PointwiseLayer, ...]:
    convolutions = [s for s in _first_calls(steps, "pointwise") if _has_module(s, modules)]
    linears = [s for s in _first_calls(steps, "linear") if _has_module(s, modules)]
    return (
        *(_pointwise_layer(s, modules[s.path], s.input, False) for s in convolutions),
        *(
            _pointwise_layer(s, modules[s.path], pointwise.image_shape((1, *s.input))[1:], True)
            for s in linears
        ),
    )


def _pointwise_layer(step: TraceStep, module: nn.Module, image: Sizes, twin: bool) -> PointwiseLayer:
    weight = _weight_of(module)
    rows = evenly_spaced(len(weight), FILTERS)
    return PointwiseLayer(
        path=step.path,
        kind=step.kind,
        map=image,
        outputs=len(weight),
        size=image[1:] if twin else step.output[1:],
        stride=step.stride or (1,) * (len(image) - 1),
        groups=step.groups,
        bias=getattr(module, "bias", None) is not None,
        drawn=rows,
        filters=_sample(weight[list(rows), :CHANNELS]),
        largest=_largest(weight),
        tokens=twin and step.layout != VECTOR,
        twin=twin,
    )


def _largest(weight: Tensor) -> float:
    low, high = weight.aminmax()
    return _rounded(max(-float(low), float(high)))


def _sample(weight: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(_rounded(v) for v in row) for row in weight.double().tolist())


def _rounded(value: float) -> float:
    """The value to five digits, which is more than a figure shows; 0 for a value that is not finite."""
    return float(f"{value:.5g}") if abs(value) < float("inf") else 0.0


def _chains(steps: Sequence[TraceStep], known: set[str]) -> tuple[tuple[str, ...], ...]:
    """Successive fully connected layers, with only activations, normalisation and dropout between them."""
    chains: list[list[str]] = []
    last: TraceStep | None = None
    taken: set[str] = set()
    for step in steps:
        if step.role == "linear" and step.path in known - taken:
            joined = last is not None and last.output == step.input and last.layout == step.layout
            chains[-1].append(step.path) if joined else chains.append([step.path])
            taken.add(step.path)
            last = step
        elif step.role not in ("activation", "identity", "normalisation") or last is None:
            last = None
        else:
            last = replace(last, output=step.output)
    return tuple(tuple(c) for c in chains)


def _missing(
    connected: Sequence[ConnectedLayer],
    pointwise_layers: Sequence[PointwiseLayer],
    replacement: Replacement,
    shape: Sizes,
) -> dict[str, str]:
    neither = "the run called no fully connected layer and no 1×1 convolution"
    missing = {}
    if not pointwise_layers:
        missing["F1"] = neither
    if not connected:
        missing["F2"] = neither
    if not any(r.kernel or r.kind == "MultiheadAttention" for r in replacement.replaced):
        missing["F3"] = "the network has no fully connected layer that was replaced"
    if len(shape) < 2 or (replacement.geometry is None and len(shape) > 4):
        missing["window"] = "the network's input is not an image, signal or volume"
    return missing

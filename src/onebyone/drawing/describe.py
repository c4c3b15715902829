"""From a network to the plain data of its pictures: one run, one conversion, and a sample of the real weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from onebyone.drawing.data import MAP, VECTOR, Connected, Drawing, LayerCall, Pointwise, Sizes
from onebyone.drawing.network_trace import watch
from onebyone.drawing.replacement import Replacement, replace_layers
from onebyone.errors import BadInput
from onebyone.laws import pointwise
from onebyone.pytorch.modules import layers
from onebyone.verification.pytree import leaves

NEURONS = 16
"""Neurons of a layer that are drawn, at most; an even number: the first half and the last."""
FILTERS = 8
"""Filters of a pointwise convolution that are drawn, at most."""
CHANNELS = 64
"""Weights of a filter that are kept, at most."""
FIGURES = ("F1", "F2", "F3", "strip", "window")


def describe(model: nn.Module, example: Any, *, window: Sequence[int] | None = None) -> Drawing:
    """Read a network once, for all its pictures.

    Parameters
    ----------
    model: the network; left as it is.
    example: its input: a tensor (N, C, H, W) or other, a tuple of positional or a dict of keyword arguments.
    window: pixels that the classifier takes, for its any-size form; the example's where None.

    Raises
    ------
    BadInput
        where the network does not run on the example, or on a window that was given.

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
    steps = watch(model, example)
    with warnings.catch_warnings():
        # torch's own, met where it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        replacement = replace_layers(model, example, steps, window)
    modules = dict(model.named_modules())
    connected, points = _connected(steps, modules), _pointwise(steps, modules)
    shape = _input_shape(example)
    return Drawing(
        network=type(model).__name__,
        input=shape,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        connected=connected,
        chains=_chains(steps, {c.path for c in connected if not c.twin}),
        pointwise=points,
        replaced=replacement.replaced,
        kept=replacement.kept,
        by=replacement.by,
        refused=replacement.refused,
        geometry=replacement.geometry,
        missing=_missing(connected, points, replacement, shape),
    )


def drawn(count: int, most: int) -> Sizes:
    """Which of `count` things are drawn: all, or the first and the last half of `most`.

    >>> drawn(3, 4), drawn(100, 4)
    ((0, 1, 2), (0, 1, 98, 99))
    """
    if count <= most:
        return tuple(range(count))
    return (*range(most // 2), *range(count - most // 2, count))


def spread(count: int, most: int) -> Sizes:
    """As `drawn`, but evenly spread, with the first and the last among them.

    >>> spread(3, 4), spread(100, 4)
    ((0, 1, 2), (0, 33, 66, 99))
    """
    if count <= most:
        return tuple(range(count))
    return tuple(round(i * (count - 1) / (most - 1)) for i in range(most))


def _input_shape(example: Any) -> Sizes:
    tensors = [t for _, t in leaves(example)]
    return tuple(int(n) for n in tensors[0].shape[1:]) if tensors else ()


def _once(steps: Sequence[LayerCall], role: str) -> list[LayerCall]:
    """The first call of every layer of a role."""
    found: dict[str, LayerCall] = {}
    for step in steps:
        if step.role == role and step.weights:
            found.setdefault(step.path, step)
    return list(found.values())


def _weight_of(module: nn.Module) -> Tensor:
    """The weight as it is multiplied, (O, F)."""
    rule = layers.rule_of(layers.plain_class(module))
    with torch.no_grad():
        read = (
            rule.weight(module)
            if rule is not None and rule.weight is not None
            else cast(Tensor, module.weight)
        )
        return read.detach().flatten(1)


def _connected(steps: Sequence[LayerCall], modules: Mapping[str, nn.Module]) -> tuple[Connected, ...]:
    found = [
        _one_connected(s, modules[s.path], steps, False) for s in _once(steps, "linear") if _held(s, modules)
    ]
    twins = [s for s in _once(steps, "pointwise") if _held(s, modules) and s.groups == 1]
    return (*found, *(_one_connected(s, modules[s.path], steps, True) for s in twins))


def _held(step: LayerCall, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module holds the weight of the step."""
    module = modules.get(step.path)
    return module is not None and layers.kind_of(module) is not None and layers.why_not(module) is None


def _one_connected(step: LayerCall, module: nn.Module, steps: Sequence[LayerCall], twin: bool) -> Connected:
    weight = _weight_of(module)
    outputs, inputs = weight.shape
    rows, columns = drawn(outputs, NEURONS), drawn(inputs, NEURONS)
    places = 1
    for n in step.input[1:] if step.layout == MAP else step.input[:-1]:
        places *= n
    return Connected(
        path=step.path,
        kind=step.kind,
        inputs=inputs,
        outputs=outputs,
        bias=getattr(module, "bias", None) is not None,
        places=places,
        drawn_inputs=columns,
        drawn_outputs=rows,
        weights=_sample(weight[list(rows)][:, list(columns)]),
        largest=_largest(weight),
        activation=_activation_after(step, steps),
        twin=twin,
    )


def _activation_after(step: LayerCall, steps: Sequence[LayerCall]) -> str:
    """The activation that follows at once, through what keeps the values' meaning."""
    for other in steps[steps.index(step) + 1 :]:
        if other.role == "activation":
            return other.kind
        if other.role not in ("identity", "normalisation"):
            break
    return ""


def _pointwise(steps: Sequence[LayerCall], modules: Mapping[str, nn.Module]) -> tuple[Pointwise, ...]:
    own = [
        _one_pointwise(s, modules[s.path], s.input, False)
        for s in _once(steps, "pointwise")
        if _held(s, modules)
    ]
    twins = [s for s in _once(steps, "linear") if _held(s, modules)]
    images = [pointwise.image_shape((1, *s.input))[1:] for s in twins]
    made = [_one_pointwise(s, modules[s.path], i, True) for s, i in zip(twins, images, strict=True)]
    return (*own, *made)


def _one_pointwise(step: LayerCall, module: nn.Module, read: Sizes, twin: bool) -> Pointwise:
    weight = _weight_of(module)
    rows = spread(len(weight), FILTERS)
    return Pointwise(
        path=step.path,
        kind=step.kind,
        map=read,
        outputs=len(weight),
        size=read[1:] if twin else step.output[1:],
        stride=step.stride or (1,) * (len(read) - 1),
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
    return _short(max(-float(low), float(high)))


def _sample(weight: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(_short(v) for v in row) for row in weight.double().tolist())


def _short(value: float) -> float:
    """To five digits, which is more than a picture shows; what is not finite is drawn as nothing."""
    return float(f"{value:.5g}") if abs(value) < float("inf") else 0.0


def _chains(steps: Sequence[LayerCall], known: set[str]) -> tuple[tuple[str, ...], ...]:
    """Fully connected layers in a row: nothing between them but activations and the like."""
    chains: list[list[str]] = []
    last: LayerCall | None = None
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
    connected: Sequence[Connected], points: Sequence[Pointwise], replacement: Replacement, shape: Sizes
) -> dict[str, str]:
    neither = "the run called no fully connected layer and no 1×1 convolution"
    found = {}
    if not points:
        found["F1"] = neither
    if not connected:
        found["F2"] = neither
    if not any(r.kernel or r.kind == "MultiheadAttention" for r in replacement.replaced):
        found["F3"] = "the network has no fully connected layer that was replaced"
    if len(shape) < 2 or (replacement.geometry is None and len(shape) > 4):
        found["window"] = "the network's input is no image, signal or volume"
    return found

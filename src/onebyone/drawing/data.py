"""The data behind the figures: a network's layers and their replacement, as plain immutable records.

Shapes do not include the batch. A map is `(C, *size)`, tokens are `(T, C)`, a vector is `(F,)`. The data survive a
round trip through JSON: `Drawing.from_dict(json.loads(json.dumps(d.to_dict()))) == d`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

Sizes = tuple[int, ...]
MAP, TOKENS, VECTOR = "map", "tokens", "vector"
"""The layout of a value: channels first, channels last over positions, or features only."""


@dataclass(frozen=True)
class Weight:
    """A parameter of a step: its name in the module, and its shape."""

    name: str
    shape: Sizes

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class TraceStep:
    """One call of a layer, or of a function between layers; steps are in the order of the run.

    `role` is "convolution", "pointwise", "linear", "pool", "activation", "normalisation", "flatten", "sum", "join",
    "attention", "identity" or "other". `kind` is the module's class or the function's name, and `path` the module,
    or the one whose forward called the function. `layout` is the layout of `output`.
    """

    path: str
    kind: str
    role: str
    layout: str
    input: Sizes
    output: Sizes
    weights: tuple[Weight, ...] = ()
    kernel: Sizes = ()
    stride: Sizes = ()
    groups: int = 1

    @property
    def parameters(self) -> int:
        """The number of its weights and biases."""
        return sum(w.count for w in self.weights)


@dataclass(frozen=True)
class ConnectedLayer:
    """A fully connected layer, and the part of its weight that is drawn.

    `places` is the number of tokens or positions it acts on (1 for a vector). `weights[o][i]` is the weight from
    input `drawn_inputs[i]` to output `drawn_outputs[o]`, and `largest` the largest magnitude in the whole layer.
    `twin` is true if the network has a 1×1 convolution instead, from which this layer was converted.
    """

    path: str
    kind: str
    inputs: int
    outputs: int
    bias: bool
    places: int
    drawn_inputs: tuple[int, ...]
    drawn_outputs: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    largest: float
    activation: str = ""
    twin: bool = False

    @property
    def parameters(self) -> int:
        """The number of its weights and biases."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True)
class PointwiseLayer:
    """A 1×1 convolution with its input map `(C, *size)` and the size of its output map.

    `twin` is true if the network has a fully connected layer instead, from which this one was converted; `tokens` if
    the positions are tokens. `filters[k]` holds the first weights of filter `drawn[k]`, which has C/groups of them.
    """

    path: str
    kind: str
    map: Sizes
    outputs: int
    size: Sizes
    stride: Sizes
    groups: int
    bias: bool
    drawn: tuple[int, ...]
    filters: tuple[tuple[float, ...], ...]
    largest: float
    tokens: bool = False
    twin: bool = False

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.map[0]

    @property
    def per_filter(self) -> int:
        """Input channels of one filter."""
        return self.map[0] // self.groups

    @property
    def parameters(self) -> int:
        """The number of its weights and biases."""
        return self.outputs * (self.per_filter + self.bias)


@dataclass(frozen=True)
class ReplacedLayer:
    """One layer before and after the replacement, as the conversion describes it.

    `before` and `after` are descriptions with weight shapes. If the layer has a single weight, `weight` and `kernel`
    are its shapes before and after, (O, F) and (O, C, *k), and `nonzero` is the number of the kernel's elements that
    come from the weight; the others are zero. `map` is the input map `(C, *size)` of the new layer, with tokens as
    positions. `flatten` is the path of the flatten that is no longer needed; None if there is none.
    """

    path: str
    kind: str
    law: str
    before: str
    after: str
    weight: Sizes = ()
    kernel: Sizes = ()
    map: Sizes = ()
    tokens: bool = False
    flatten: str | None = None
    copied_bytes: int = 0
    nonzero: int = 0

    @property
    def weights(self) -> int:
        """The number of weights, without the bias; 0 if the layer has no single weight."""
        return prod(self.weight) if self.weight else 0


@dataclass(frozen=True)
class Drawing:
    """All data that the figures of one network show.

    `by` is the verb that replaced the layers, "convolutionalize" or "convert"; `refused` holds the reasons why it
    was not "convolutionalize", and is empty if it was. `chains` are successive fully connected layers, by path.
    `missing` maps the names of figures that cannot be drawn to the reason.
    """

    network: str
    input: Sizes
    parameters: int
    steps: tuple[TraceStep, ...]
    connected: tuple[ConnectedLayer, ...]
    chains: tuple[tuple[str, ...], ...]
    pointwise: tuple[PointwiseLayer, ...]
    replaced: tuple[ReplacedLayer, ...]
    kept: tuple[str, ...]
    by: str
    refused: tuple[str, ...]
    geometry: Geometry | None
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The drawing as plain data for JSON."""
        data: dict[str, Any] = _plain(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Drawing:
        """Restore the drawing from the data of `to_dict`.

        Raises
        ------
        BadInput
            if an entry is missing or has another type.
        """
        try:
            return typing.cast(Drawing, _typed(cls, data))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"not a drawing: {error!r}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Geometry):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return dict(value) if isinstance(value, Mapping) else value


def _typed(kind: Any, value: Any) -> Any:
    """Convert `value` from JSON to the annotated type `kind`."""
    origin = typing.get_origin(kind)
    if kind is Geometry:
        return Geometry.from_dict(value)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _typed(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if origin is types.UnionType:
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _typed(rest[0], value)
    if origin is tuple:
        _expect(isinstance(value, list | tuple), kind, value)
        return tuple(_typed(typing.get_args(kind)[0], v) for v in value)
    if origin is not None:
        return {str(k): str(v) for k, v in value.items()}
    if kind is float:
        return float(value)
    _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), kind, value)
    return value


def _expect(valid: bool, kind: Any, value: Any) -> None:
    if not valid:
        raise TypeError(f"{value!r} is not of type {kind}")

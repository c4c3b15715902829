"""What the pictures are made of: a network's layers and their replacement as plain, immutable data.

Shapes are without the batch. A map is `(C, *size)`, channels first; tokens are `(T, C)`; a vector is `(F,)`.
Everything goes through JSON and back: `Drawing.from_dict(json.loads(json.dumps(d.to_dict()))) == d`.
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
"""How a value lies: channels first, channels last over places, or features alone."""


@dataclass(frozen=True)
class Weight:
    """A parameter of a step: its name there, and its shape."""

    name: str
    shape: Sizes

    @property
    def count(self) -> int:
        """Its numbers."""
        return prod(self.shape)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, or of a function between layers, in the order of the run.

    `role` is "convolution", "pointwise", "linear", "pool", "activation", "normalisation", "flatten", "sum",
    "join", "attention", "identity" or "other"; `kind` the module's class or the function's name, and `path` the
    module, or the one whose forward called the function. `layout` says how `output` lies.
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
        """Numbers in its weights and biases."""
        return sum(w.count for w in self.weights)


@dataclass(frozen=True)
class Connected:
    """A fully connected layer, and the part of its weight that is drawn.

    `places` is on how many tokens or places it acts (1: on a vector). `weights[o][i]` is the real weight from
    input `drawn_inputs[i]` to output `drawn_outputs[o]`, `largest` the greatest magnitude in the whole layer.
    `twin` says that the network has a 1×1 convolution there, whose converted twin this is.
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
        """Weights and biases."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True)
class Pointwise:
    """A 1×1 convolution on the map `(C, *size)` that it reads, and the size of the map that it gives.

    `twin` says that the network has a fully connected layer there, whose converted twin this is; `tokens`
    that its places are tokens. `filters[k]` is the real weight (C/groups) of filter `drawn[k]`, from its first
    channels on.
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
        """Channels that it reads."""
        return self.map[0]

    @property
    def per_filter(self) -> int:
        """Channels that one filter reads."""
        return self.map[0] // self.groups

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.outputs * (self.per_filter + self.bias)


@dataclass(frozen=True)
class Replaced:
    """One layer before and after the replacement, as the conversion itself tells it.

    `before` and `after` are its descriptions with weight shapes; `weight` and `kernel` these shapes where it
    is a single weight: (O, F) and (O, C, *k). `map` is the map `(C, *size)` that the new layer reads, tokens
    as places. `flatten` is the path of the flatten that disappears with it; empty where there is none.
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

    @property
    def weights(self) -> int:
        """Numbers in the weight, without the bias; 0 where it is not a single one."""
        return prod(self.weight) if self.weight else 0


@dataclass(frozen=True)
class Drawing:
    """All that the pictures of one network tell.

    `by` is what made the replacement, "convolutionalize" or "convert", and `refused` why it was not the
    former (empty where it was). `chains` are fully connected layers in a row, by path. `missing` holds, for
    figures that cannot be drawn, why.
    """

    network: str
    input: Sizes
    parameters: int
    steps: tuple[LayerCall, ...]
    connected: tuple[Connected, ...]
    chains: tuple[tuple[str, ...], ...]
    pointwise: tuple[Pointwise, ...]
    replaced: tuple[Replaced, ...]
    kept: tuple[str, ...]
    by: str
    refused: tuple[str, ...]
    geometry: Geometry | None
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        data: dict[str, Any] = _plain(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Drawing:
        """The drawing that `to_dict` wrote.

        Raises
        ------
        BadInput
            where an entry is missing or not of its kind.
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
    """`value` out of JSON as the annotated type `kind`."""
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


def _expect(good: bool, kind: Any, value: Any) -> None:
    if not good:
        raise TypeError(f"{value!r} is not of type {kind}")

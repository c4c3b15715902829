"""One layer before and after a conversion, as functions that the verifier can call with weights of its choice.

Arrays are those of the front end (`torch.Tensor` for PyTorch); nothing here computes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: The parameters of a layer by name, in the shapes that the original network stores them in.
Params = dict[str, Any]


class UnverifiableError(Exception):
    """A check does not apply to a layer; the message says why."""


@dataclass(frozen=True)
class LayerFunctions:
    """One layer in two forms, each a function of an input and of the *original's* parameters.

    Attributes
    ----------
    path: the dotted path of the layer in the network.
    kind: what the layer was, for example "Linear".
    original, converted: the two forms. Both take the original's parameters, by its names and in its shapes.
    params: the real parameters.
    shapes: the input shapes to probe.
    terms: the number of products summed for one output element.
    """

    path: str
    kind: str
    original: Callable[[Any, Params], Any]
    converted: Callable[[Any, Params], Any]
    params: Params
    shapes: tuple[tuple[int, ...], ...]
    terms: int


@dataclass(frozen=True)
class WindowPair:
    """One linear layer of a window classifier, and the layer of the any-size network that computes it at every window.

    Attributes
    ----------
    path: the dotted path of the layer in the network.
    kind: the operator that the layer was.
    law: the name of the law that the conversion applied.
    map_shape: the shape `(C, h, w)` of one window's part of the feature map that the layer reads.
    step: the distance between neighbouring windows on that map, per axis.
    parameter_shapes: the shape of each parameter, by name.
    original: `original(crops, params)` runs the network's own operators on `(N, *map_shape)`, up to the layer's output.
    converted: `converted(map, params)` runs the emitted layer on a map of any size and returns `(N, H', W', *out)`: one
        result for every window position.
    unfolded: the same in the form that is used at few positions; None if the layer has one form only.
    """

    path: str
    kind: str
    law: str
    map_shape: tuple[int, ...]
    step: tuple[int, ...]
    parameter_shapes: Mapping[str, tuple[int, ...]]
    original: Callable[[Any, Params], Any]
    converted: Callable[[Any, Params], Any]
    unfolded: Callable[[Any, Params], Any] | None = None

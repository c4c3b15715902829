"""Networks that are not PyTorch modules, with the values that they compute on the way to their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class TracedValue:
    """One value that a network computed, in the order of computation.

    Attributes
    ----------
    name: its name in the network's file.
    layer: the dotted path of the layer in the network that was exported, as far as the file tells; else empty.
    value: the array.
    operands: the positions, in the trace, of the values that it was computed from.
    weights: the floating constants that it was computed from.
    """

    name: str
    layer: str
    value: Any
    operands: tuple[int, ...] = ()
    weights: tuple[Any, ...] = ()


@runtime_checkable
class TracedNetwork(Protocol):
    """A network that is called with tensors and computes in float32, and whose inner values can be read.

    The verifier compares such a network with one of another structure: outputs by their order, and where these differ,
    inner values, to name the layer.
    """

    #: The name of the engine that computes, for the report.
    evaluator: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, in the order in which the network's file lists them."""
        ...

    def trace(self, *args: Any, **kwargs: Any) -> Sequence[TracedValue]:
        """Every floating value of one run, without those inside subgraphs."""
        ...

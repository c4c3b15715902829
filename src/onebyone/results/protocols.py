"""What the verifier needs of a conversion. Every front end's results satisfy these protocols.

A conversion that was written by hand can be verified too: it needs the attributes below and no base class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from onebyone.laws.geometry import Geometry
from onebyone.records import Change, Refusal
from onebyone.results.any_size import ClassMap
from onebyone.results.layer_pairs import LayerFunctions, WindowPair

#: The named tensors of a network.
StateDict = Mapping[str, Any]


class StateMap(Protocol):
    """Maps the state dict of one network to that of another: it renames and reshapes tensors and changes no value."""

    def __call__(self, state: Any, /) -> dict[str, Any]: ...


class LayerPair(Protocol):
    """One layer before and after a conversion."""

    @property
    def path(self) -> str:
        """The dotted path of the layer in the network (the first one, if it is used several times)."""
        ...

    @property
    def original(self) -> Any:
        """The layer of the original network."""
        ...

    @property
    def converted(self) -> Any:
        """The layer that replaces it."""
        ...

    def functions(self, from_original: StateMap | None) -> LayerFunctions:
        """The two layers as functions of an input and of the original's parameters.

        `from_original` maps a state dict of the original network to one of the converted network.

        Raises
        ------
        UnverifiableError
            if the layer is not a linear map with one weight, or the converted layer's parameters cannot be derived from
            the original's.
        """
        ...


@runtime_checkable
class Converted(Protocol):
    """A network whose layers were re-expressed; it takes what the original takes."""

    @property
    def model(self) -> Any:
        """The converted network."""
        ...

    def runnable(self, network: Any) -> Any:
        """The original or the converted network as something that the verifier can call with tensors.

        The verifier computes with PyTorch. It handles `nn.Module`, `ExportedProgram` and other callables itself, so
        that PyTorch results return `network` unchanged. Other front ends wrap their networks. A wrapper that is an
        `nn.Module` with the network's weights as parameters is also run in float64, differentiated, and compared weight
        by weight.
        """
        ...

    @property
    def pairs(self) -> Sequence[LayerPair]:
        """The converted layers that can be checked one by one."""
        ...

    @property
    def changes(self) -> Sequence[Change]:
        """Every layer that was converted."""
        ...

    @property
    def refused(self) -> Sequence[Refusal]:
        """Every layer that was not converted."""
        ...

    @property
    def state_dict_to_original(self) -> StateMap | None:
        """Maps a state dict of the converted network to the original's names and shapes; None if there is no map."""
        ...

    @property
    def state_dict_from_original(self) -> StateMap | None:
        """Maps a state dict of the original to the converted network's names and shapes; None if there is no map."""
        ...


@runtime_checkable
class AnySize(Protocol):
    """A window classifier as a network that takes images of any size."""

    @property
    def model(self) -> Any:
        """The any-size network: `(N, C, H, W)` to `(N, classes, H', W')`, or several such outputs."""
        ...

    @property
    def original(self) -> Any:
        """The classifier of one window."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Which pixels each output position depends on."""
        ...

    @property
    def nominal(self) -> tuple[int, ...]:
        """The window size that the classifier was built for, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """The number of channels of the image."""
        ...

    @property
    def bare(self) -> bool:
        """Whether the classifier's own input has no channel axis."""
        ...

    @property
    def class_map(self) -> ClassMap | None:
        """Which average pool the class map leaves out; None unless the outputs are a class map (`head="cam"`)."""
        ...

    def runnable(self, network: Any) -> Any:
        """The original or the any-size network as something that the verifier can call; see `Converted.runnable`."""
        ...

    @property
    def pairs(self) -> Sequence[WindowPair]:
        """The linear layers that can be checked one by one."""
        ...

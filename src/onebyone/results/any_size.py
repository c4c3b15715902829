"""What `convolutionalize` returns in every front end: a network for images of any size, and where its outputs lie."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting, require_sound
from onebyone.laws.scores import ScoreKind, read_kind
from onebyone.records import Change, Labels, Readable, Refusal, by, html_result, html_table, table
from onebyone.results.layer_pairs import WindowPair

Model = TypeVar("Model")
Original = TypeVar("Original")
#: What `convolutionalize` takes for `head` and for `context`.
HEADS = ("window", "cam")
CONTEXTS = (None, "window", "image")
_HEADERS = ("layer", "kind", "before", "after", "bytes copied")
_NAMED_OPERATORS = 3  # nonlinear operators that a class map's reason names


@dataclass(frozen=True)
class Output:
    """One output of a network.

    `name` is its key in a dictionary, its field in a record, or its number in a tuple; `channels` the number of values
    that it gives for each window; `kind` what these values are (None if the graph does not tell).
    """

    name: str
    channels: int
    kind: ScoreKind | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        kind = None if self.kind is None else str(self.kind)
        return {"name": self.name, "channels": self.channels, "scores": kind}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Output:
        """The inverse of `to_dict`."""
        return cls(str(data["name"]), int(data["channels"]), read_kind(data["scores"]))


@dataclass(frozen=True)
class ClassMap:
    """Which average pool a class map (`head="cam"`) leaves out.

    `pool` is the number of positions that the pool averaged over, per axis. `nonlinear` names every operator after the
    pool that is not affine. If there is none, an average of the map over `pool` positions at stride 1 equals the output
    of `head="window"`.
    """

    pool: tuple[int, ...]
    nonlinear: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """What one position of the map means, as a sentence for `Geometry.inexact_because`."""
        what = (
            f"head='cam': the class evidence at each position, before the mean over {by(self.pool)} positions"
        )
        if not self.nonlinear:
            return f"{what}; means of the map over as many positions equal the outputs of cropped windows"
        more = len(self.nonlinear) - _NAMED_OPERATORS
        names = ", ".join(self.nonlinear[:_NAMED_OPERATORS]) + (f" and {more} more" if more > 0 else "")
        return f"{what}; means of the map do not equal the outputs of cropped windows, because {names} is not linear"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        """The inverse of `to_dict`."""
        return cls(tuple(int(n) for n in data["pool"]), tuple(str(n) for n in data["nonlinear"]))


@dataclass(frozen=True)
class Convolutionalized(Readable, ABC, Generic[Model, Original]):
    """A network for images of any size, and where its outputs lie in the image.

    `model(image)` takes `(N, C, H, W)` and returns `(N, classes, H', W')`, or a tuple of such arrays for a network with
    several outputs. Position `(i, j)` of an output belongs to the window `geometry.window_at((i, j))`. The parameters
    are the original's own, under the same names: a checkpoint of either network loads into the other, and training one
    trains both.

    Attributes
    ----------
    model: the any-size network.
    geometry: window, stride, receptive field, and whether the outputs equal those of cropped windows.
    changes: every layer that was re-expressed.
    original: the classifier of one window.
    channels: the number of channels of the image.
    nominal: the window size that the classifier was built for. `geometry.window` is the smallest image that `model`
        takes; it is smaller than `nominal` if `head="cam"`.
    head: "window" (the outputs of cropped windows) or "cam" (the class map before the last average pool).
    context: what global pooling inside the network pools over: "window", "image", or None.
    class_map: with `head="cam"`, how means of the map relate to the outputs of cropped windows.
    labels: class names and preprocessing that the network carries.
    outputs: the name, width and kind of each output.
    pairs: the linear layers before and after, for `verify`.
    refused: always empty, because one refusal refuses the network.
    bare: whether the classifier's own input has no channel axis, `(N, *window)`. Then `model` takes `(N, *size)`, and
        `(N, 1, *size)` too, so that images are scanned as images with one channel.
    advice: the warnings that were given.
    """

    model: Model
    geometry: Geometry
    changes: tuple[Change, ...]
    original: Original
    channels: int
    nominal: tuple[int, ...]
    head: str = "window"
    context: str | None = None
    class_map: ClassMap | None = None
    labels: Labels = field(default_factory=Labels)
    outputs: tuple[Output, ...] = ()
    pairs: tuple[WindowPair, ...] = ()
    refused: tuple[Refusal, ...] = ()
    bare: bool = False
    advice: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_sound(self.labels, self.channels)
        require_fitting(self.labels, (o.channels for o in self.outputs))

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a file, with its geometry and labels inside."""

    def runnable(self, network: Any) -> Any:
        """The original or the any-size network as something that can be called with tensors; by default itself."""
        return network

    def with_labels(self, labels: Labels) -> Self:
        """The same network with other class names and preprocessing. Raises BadInput if they do not fit it."""
        return replace(self, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON, without the network."""
        return {
            "geometry": self.geometry.to_dict(),
            "channels": self.channels,
            "bare": self.bare,
            "nominal": list(self.nominal),
            "head": self.head,
            "context": self.context,
            "class_map": None if self.class_map is None else self.class_map.to_dict(),
            "labels": self.labels.to_dict(),
            "outputs": [o.to_dict() for o in self.outputs],
            "changes": [c.to_dict() for c in self.changes],
        }

    def __str__(self) -> str:
        return "\n".join([table(_HEADERS, self._rows()), "", str(self.geometry)])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        *sizes, exact = str(self.geometry).splitlines()
        return html_result(exact, html_table(_HEADERS, self._rows()), notes=sizes)

    def _rows(self) -> list[tuple[object, ...]]:
        return [(c.path, c.kind, c.before, c.after, c.copied_bytes or "") for c in self.changes]

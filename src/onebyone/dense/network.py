"""The network that a scan applies: dense, or a classifier of one window, at the stride that the caller asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from onebyone.dense.outputs import described_output, why_not_class_scores
from onebyone.dense.plan import PerAxis, finer_geometry
from onebyone.dense.score_map import resolve_kind
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.lift.dilation import dilated
from onebyone.records import Labels
from onebyone.results.any_size import Convolutionalized, Output


class Dense(Protocol):
    """What `scan` needs of a network. `convolutionalize` and `load_dense` return such objects."""

    @property
    def model(self) -> Any:
        """(N, C, H, W) -> (N, classes, H', W'), or a tuple of such: an `nn.Module`, or an ONNX model of onnx-ir."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Which pixels each position of the output corresponds to."""
        ...

    @property
    def labels(self) -> Labels:
        """Class names and preprocessing that the model carries."""
        ...

    @property
    def channels(self) -> int:
        """Input channels."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Names and kinds of the outputs; empty where they are not known."""
        ...


@dataclass(frozen=True)
class ScoreOutput:
    """One output of a network: which one, what its numbers are, and the labels that fit it.

    `comparable` tells whether its best classes are compared with those of crops; `skipped` is the reason where an
    inexact network's output is not.
    """

    number: int | str
    kind: ScoreKind | None
    labels: Labels
    comparable: bool
    skipped: str = ""

    @classmethod
    def of(
        cls,
        d: Dense,
        output: int | str,
        labels: Labels | None,
        score_kind: str | ScoreKind | None,
        softmax: bool | None,
        compared: int | None,
    ) -> ScoreOutput:
        """The chosen output of `d`. Raises BadInput where there is no such output or the labels do not fit it."""
        outputs: tuple[Output, ...] = getattr(d, "outputs", ())
        output, described = described_output(outputs, output)
        stated_kind = resolve_kind(score_kind, softmax)
        labels = labels or getattr(d, "labels", None) or Labels()
        comparable = not d.geometry.exact and head_of(d) == "window" and compared != 0
        skipped = ""
        if comparable and not stated_kind:
            skipped = why_not_class_scores(outputs, output, len(labels.classes))
        if described is not None and len(outputs) > 1 and len(labels.classes) != described.channels:
            labels = replace(labels, classes=(), background=())  # the names are those of another output
        require_fitting(labels, [] if described is None else [described.channels])
        kind = stated_kind or (described.kind if described else None)
        return cls(output, kind, labels, comparable and not skipped, skipped)


def head_of(d: Dense) -> str:
    """Whether the network gives the outputs of windows ("window") or a class map ("cam")."""
    return str(getattr(d, "head", "window"))


def windows_geometry(d: Dense, shifts: PerAxis) -> Geometry:
    """The geometry of a map for which every window is cropped: exact by construction.

    Raises BadInput for a class map, which has no windows.
    """
    if head_of(d) != "window":
        raise BadInput(
            "mode='windows': a class map (head='cam') has no windows to crop; expected mode='dense'"
        )
    finer = finer_geometry(d.geometry, shifts)
    none = (0,) * len(finer.window)
    return replace(
        finer,
        receptive_field=finer.window,
        receptive_field_offset=none,
        exact=True,
        inexact_because=(),
        image_wide=False,
    )


def shifts_for(d: Dense, shifts: PerAxis, stride: PerAxis | None) -> PerAxis:
    """The shifted passes per axis that give a map of `stride` pixels; `shifts` itself where that is None.

    Raises BadInput where the network's stride is not a multiple of it, or both are given.
    """
    if stride is None:
        return shifts
    axes = len(d.geometry.stride)
    wanted: Sequence[Any] = (stride,) * axes if isinstance(stride, int) else tuple(stride)
    if shifts != 1:
        raise BadInput(f"stride={stride!r} and shifts={shifts!r} were both given; expected one of them")
    if len(wanted) != axes or any(
        s < 1 or own % s for s, own in zip(wanted, d.geometry.stride, strict=False)
    ):
        own = d.geometry.stride
        divisors = ", ".join(str(k) for k in range(1, own[0] + 1) if own[0] % k == 0)
        raise BadInput(f"stride={stride!r}: expected a divisor of the network's stride {own[0]}: {divisors}")
    return tuple(own // s for s, own in zip(wanted, d.geometry.stride, strict=True))


def dilated_network(d: Dense, stride: PerAxis) -> Dense:
    """The network at a finer stride by dilation. Raises Refused where it has no dilated form."""
    axes = len(d.geometry.stride)
    wanted = (stride,) * axes if isinstance(stride, int) else tuple(stride)
    if not isinstance(d, Convolutionalized):
        kind = type(d).__name__
        raise BadInput(
            f"finer='dilation': expected the result of convolutionalize, not a {kind}; use 'shifts'"
        )
    return cast("Dense", dilated(d, wanted))

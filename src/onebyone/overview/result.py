"""The result of `info`: plain records, with a table for people and data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onebyone.laws.geometry import Geometry
from onebyone.records import (
    Change,
    Labels,
    Readable,
    Refusal,
    by,
    few,
    html_result,
    html_table,
    size_of,
    table,
)

_HEADERS = ("layer", "kind", "kernel", "input", "output", "parameters", "MACs", "converts to")
Row = tuple[str, ...]


@dataclass(frozen=True)
class LayerSummary:
    """One layer with weights, at its first call.

    `kernel` and `stride` are empty for layers that do not slide. `input` and `output` are shapes without the batch;
    empty if there was no example. `macs` are the multiply-accumulate operations of all its calls on one example, 0 for
    layers whose cost is not counted (embeddings, normalisation, recurrent layers). `converts_to` is "conv", "linear" or
    empty, and `reason` says why a candidate does not convert.
    """

    path: str
    kind: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    converts_to: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class AnySizeSummary:
    """Whether a network becomes one for images of any size at `window`: its geometry, or the reasons why not."""

    window: tuple[int, ...]
    geometry: Geometry | None = None
    outputs: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return {
            "window": list(self.window),
            "geometry": None if self.geometry is None else self.geometry.to_dict(),
            "outputs": list(self.outputs),
            "refused": [r.to_dict() for r in self.refused],
            "error": self.error,
        }


@dataclass(frozen=True)
class NetworkOverview(Readable):
    """What `info` found.

    `inputs` and `outputs` are names with shapes, without the batch for PyTorch networks. `to_conv` and `to_linear` are
    the layers that each direction of `convert` changes, and `refused` those that it does not, with the reason.
    `any_size` is None if the input size is not known or the network takes no images. `macs` counts one example.
    """

    name: str
    format: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    parameters: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    layers: tuple[LayerSummary, ...]
    operators: tuple[tuple[str, int], ...]
    to_conv: tuple[Change, ...]
    to_linear: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    labels: Labels = field(default_factory=Labels)
    any_size: AnySizeSummary | None = None
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the counted layers on one example; 0 without an example."""
        return sum(layer.macs for layer in self.layers)

    @property
    def kernels(self) -> tuple[tuple[str, int], ...]:
        """Kinds of layers with their kernel sizes, and how many there are, the most frequent first."""
        names = Counter(
            f"{layer.kind} {by(layer.kernel)}" if layer.kernel else layer.kind for layer in self.layers
        )
        return tuple(names.most_common())

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The facts about the whole network, as names and values."""
        facts = [
            ("network", f"{self.name} ({self.format})"),
            ("inputs", "; ".join(f"{name} {shape}".strip() for name, shape in self.inputs)),
            ("outputs", "; ".join(f"{name} {shape}".strip() for name, shape in self.outputs)),
            ("parameters", f"{self.parameters:,} ({size_of(self.weight_bytes)}, {', '.join(self.dtypes)})"),
            ("MACs", f"{self.macs:,}" if self.macs else ""),
            ("layers", ", ".join(f"{count} {name}" for name, count in self.kernels)),
            ("operators", ", ".join(f"{count} {name}" for name, count in self.operators)),
            ("convert --to conv", _count(self.to_conv)),
            ("convert --to linear", _count(self.to_linear)),
            ("refused", str(len(self.refused)) if self.refused else ""),
            ("preprocessing", self.labels.preprocessing() if self.labels.states_preprocessing else ""),
            ("classes", few(self.labels.classes)),
            *self._any_size(),
        ]
        return tuple((name, value) for name, value in facts if value)

    def _any_size(self) -> list[tuple[str, str]]:
        if self.any_size is None:
            return [("any image size", "not tried: the input size is not known")]
        lifted = self.any_size
        if lifted.geometry is None:
            count = len(lifted.refused)
            reason = lifted.error or f"refused for {count} {'reason' if count == 1 else 'reasons'}"
            return [(f"any image size, window {by(lifted.window)}", reason)]
        geometry = lifted.geometry
        equal = "exact: equals cropping every window" if geometry.exact else "not exact: the network pads"
        facts = f"stride {by(geometry.stride)}, receptive field {by(geometry.receptive_field)}; {equal}"
        return [(f"any image size, window {by(lifted.window)}", facts)]

    def rows(self) -> tuple[Row, ...]:
        """One row per layer, under `HEADERS`."""
        return tuple(
            (
                layer.path,
                layer.kind,
                by(layer.kernel) + (f" / {by(layer.stride)}" if any(s != 1 for s in layer.stride) else ""),
                by(layer.input),
                by(layer.output),
                f"{layer.parameters:,}",
                f"{layer.macs:,}" if layer.macs else "",
                layer.converts_to or layer.reason,
            )
            for layer in self.layers
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """All refusals: of `convert`, then of `convolutionalize`."""
        return (*self.refused, *(self.any_size.refused if self.any_size else ()))

    def with_notes(self, notes: Sequence[str]) -> NetworkOverview:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to_dict(self) -> dict[str, Any]:
        """The overview as plain data for JSON."""
        return {
            "name": self.name,
            "format": self.format,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "dtypes": list(self.dtypes),
            "macs": self.macs,
            "layers": [layer.to_dict() for layer in self.layers],
            "kernels": dict(self.kernels),
            "operators": dict(self.operators),
            "to_conv": [change.to_dict() for change in self.to_conv],
            "to_linear": [change.to_dict() for change in self.to_linear],
            "refused": [refusal.to_dict() for refusal in self.refused],
            "labels": self.labels.to_dict(),
            "any_size": None if self.any_size is None else self.any_size.to_dict(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        parts = [table(["", ""], self.summary()).split("\n", 2)[2], table(_HEADERS, self.rows())]
        parts += ["\n".join(f"refused: {refusal}" for refusal in self.refusals()), *self.notes]
        return "\n\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        notes = [*(f"refused: {refusal}" for refusal in self.refusals()), *self.notes]
        return html_result(
            self.name, html_table([], self.summary()), html_table(_HEADERS, self.rows()), notes=notes
        )


HEADERS = _HEADERS


def _count(changes: Sequence[Change]) -> str:
    return f"{len(changes)} {'layer' if len(changes) == 1 else 'layers'}" if changes else "no layer"

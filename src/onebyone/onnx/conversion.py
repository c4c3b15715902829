"""What `convert` returns for an ONNX model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.onnx.model_file import save_model
from onebyone.onnx.stored_values import StoredValues
from onebyone.onnx.weight_rewriting import Step, apply_steps
from onebyone.results import Conversion


@dataclass(frozen=True)
class RewrittenLayer:
    """One converted layer. Its original and its converted form compute the value `output` from the value `data`.

    Both are named as in the original, or, where a layout was planned, by a tensor of the converted model that holds
    such a value (`OnnxConversion.stored`).

    `terms` is the number of products that are summed for one number of the output. `data_sizes` are the sizes of
    `data` as far as they are known, from its shape or from the weight; None if not even the rank is. `is_exact` says
    whether both forms agree bit for bit where no sum rounds. `scope` is the prefix of the paths in the graph or
    function that computes the output: empty for the main graph.
    """

    path: str
    kind: str
    law: str
    data: str
    output: str
    terms: int
    data_sizes: tuple[int | None, ...] | None = None
    is_exact: bool = True
    scope: str = ""


@dataclass(frozen=True, eq=False)
class OnnxConversion(Conversion[ir.Model]):
    """A converted ONNX model; `print(conversion)` is a table.

    Attributes:
        layers: the converted layers, named by the values that both forms share.
        entries: for each new constant, the constant that it was made from and the steps.
        weight_bytes: bytes of all constants before and after.
        frozen: whether initializers were removed from the graph's inputs.
        inlined: whether calls of functions were replaced by the functions' bodies.
        layout_before, layout_after: how many layout operators the two models have, by name (`layout.counting`); None
            where the layout was not planned.
        stored: the tensors of the converted model that hold each value of the original, by its name, where the layout
            was planned.
        warnings: what is right but does not run everywhere, in words.
    """

    layers: tuple[RewrittenLayer, ...] = ()
    entries: Mapping[str, tuple[str, tuple[Step, ...]]] = field(default_factory=dict, repr=False)
    weight_bytes: tuple[int, int] = (0, 0)
    frozen: bool = False
    inlined: bool = False
    warnings: tuple[str, ...] = ()
    layout_before: Counter[str] | None = None
    layout_after: Counter[str] | None = None
    stored: StoredValues = field(default_factory=dict, repr=False)

    def state_dict_from_original(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Constants of the original by name, as the converted model names and stores them."""
        found = {}
        for name in self.model.graph.initializers:
            source, steps = self.entries.get(str(name), (str(name), ()))
            if source in state:
                found[str(name)] = apply_steps(np.asarray(state[source]), steps)
        return found

    def state_dict_to_original(self, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Not available: a bias that was repeated, or a factor that was taken in, has no inverse."""
        raise BadInput("state_dict_to_original: an ONNX conversion maps constants from the original only")

    def save(self, path: str | os.PathLike[str], example: Any = None) -> Path:
        """Write the model, whole or not at all; large tensors go to `PATH.data` where the model is over 2 GB.

        Raises:
            BadInput: the suffix is not `.onnx`, or the path cannot be written.
        """
        if Path(path).suffix != ".onnx":
            raise BadInput(f"path: {os.fspath(path)!r} does not end in .onnx")
        return save_model(self.model, path)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        before, after = self.weight_bytes
        data = super().to_dict() | {"weight_bytes_before": before, "weight_bytes_after": after}
        data["warnings"] = list(self.warnings)
        if self.layout_before is not None and self.layout_after is not None:
            data |= {"layout_before": dict(self.layout_before), "layout_after": dict(self.layout_after)}
        return data

    def headline(self) -> str:
        """One line: how many layers were converted and refused, the bytes of the weights, and the layout operators."""
        before, after = self.weight_bytes
        head = f"to {self.to}: {len(self.changes)} converted, {len(self.refused)} refused"
        line = f"{head}, weights {before:,} → {after:,} bytes"
        if self.layout_before is not None and self.layout_after is not None:
            line += f", layout operators {self.layout_before.total()} → {self.layout_after.total()}"
        return "\n".join([line, *(f"warning: {warning}" for warning in self.warnings)])

"""What `convert` returns at the level of the whole graph: the converted program, and how it was made."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.pytorch.files.onnx_export import save_onnx
from onebyone.pytorch.files.program_file import save_program
from onebyone.pytorch.graph.weights import StoredWeights
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.results.conversion import Conversion
from onebyone.results.protocols import StateDict


@dataclass(frozen=True, eq=False)
class GraphConversion(Conversion[ExportedProgram]):
    """A converted exported program; `model` takes what the original takes.

    Attributes
    ----------
    layout_before, layout_after: how many layout operators the two programs have, by name (see `counting`).
    weights: which parameters are stored in another shape, by the original's names.
    """

    pairs: tuple[ModulePair, ...] = ()
    layout_before: Counter[str] = field(default_factory=Counter)
    layout_after: Counter[str] = field(default_factory=Counter)
    weights: StoredWeights = field(default_factory=StoredWeights, repr=False)

    CHANGE_COLUMNS: ClassVar[dict[str, str]] = {
        "path": "path",
        "operator": "kind",
        "before": "before",
        "after": "after",
    }
    KIND: ClassVar[str] = "operator"

    def state_dict_from_original(self, state: StateDict) -> dict[str, Any]:
        """A state dict of the original, in the shapes that the converted program's parameters have."""
        return self.weights.from_original(state)

    def state_dict_to_original(self, state: StateDict | None = None) -> dict[str, Any]:
        """A state dict of the converted program (by default its own), in the original's shapes."""
        return self.weights.to_original(self.model.state_dict if state is None else state)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            **super().to_dict(),
            "layout_before": dict(self.layout_before),
            "layout_after": dict(self.layout_after),
            "shapes": {k: [list(s.original), list(s.shape)] for k, s in self.weights.shapes.items()},
        }

    def headline(self) -> str:
        """One line: how many operators were converted and refused, what it cost, and the layout operators."""
        return f"{super().headline()}, layout operators {self.layout_before.total()} → {self.layout_after.total()}"

    def save(self, path: str | os.PathLike[str], example: Any = None) -> Path:
        """Write the program with the report inside. The file appears completely or not at all.

        `example` is ignored: a program needs no example to be saved.

        Raises
        ------
        BadInput
            if the name does not end in .pt2 or .onnx, the folder cannot be written, or PyTorch's ONNX exporter does
            not know an operator.
        """
        target = Path(path)
        if target.suffix not in (".pt2", ".onnx"):
            raise BadInput(
                f"path={str(path)!r}: an exported program is saved under a name that ends in .pt2 or .onnx"
            )
        (save_onnx if target.suffix == ".onnx" else save_program)(self.model, target, self.report())
        return target

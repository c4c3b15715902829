"""What `convert` gives back for a network: the converted network, and everything about how it came to be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onebyone.atomic_files import atomic_path, write_text
from onebyone.errors import BadInput
from onebyone.pytorch.files.exporting import export_any_batch
from onebyone.pytorch.modules.layers import with_plain_weight
from onebyone.pytorch.modules.state import Entry, StateDict, to_converted, to_original
from onebyone.records import Change, Readable, Refusal, html_result, html_table, table


@dataclass(frozen=True)
class ModulePair:
    """One layer before and after: `path` is the first place it has in the network.

    `names`: the network's name of each tensor of `original`, where that is not `path` and the tensor's own name.
    """

    path: str
    original: nn.Module
    converted: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> tuple[nn.Module, nn.Module]:
        """The two for a check on chosen weights: where the layer computes its weight at each call
        (standardised, stored transposed), ordinary layers on that weight as it is now; else the two
        themselves.
        """
        reader = vars(self.converted).get("weight_reader")
        if reader is None:
            return self.original, self.converted
        with torch.no_grad():
            weight = reader(self.original)
        return with_plain_weight(self.original, weight), with_plain_weight(self.converted, weight)


@dataclass(frozen=True, eq=False)
class Conversion(Readable):
    """A converted network: `model`, with what was changed and what was refused; `print(conversion)` is a
    table.

    >>> import onebyone.pytorch.modules.convert as convert
    >>> print(convert.convert_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), to="conv"))
    to conv (layers): 1 converted, 0 refused, 0 bytes copied
    path  before      after                law
    ----  ----------  -------------------  ------------------------------
    0     Linear 2×3  1×1 convolution 2×3  linear = pointwise convolution
    """

    model: nn.Module
    changes: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    to: str
    level: str
    pairs: tuple[ModulePair, ...] = ()
    entries: tuple[Entry, ...] = field(default=(), repr=False)

    def state_dict_from_original(self, state: StateDict) -> dict[str, Any]:
        """A state dict of the original network, renamed and reshaped so that `model.load_state_dict` takes
        it.
        """
        return to_converted(self.entries, state)

    def state_dict_to_original(self, state: StateDict | None = None) -> dict[str, Any]:
        """A state dict of `model` (by default its own), so that the original's `load_state_dict` takes it."""
        return to_original(self.entries, self.model.state_dict() if state is None else state)

    def never_called(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The converted layers that a run of `model` on this input does not call: their change has no
        effect on it.

        Code that reads a layer's weight instead of calling the layer computes the same, but not in the new
        form.

        >>> import onebyone.pytorch.modules.convert as convert
        >>> c = convert.convert_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), to="conv")
        >>> c.never_called(torch.ones(1, 3))
        ()
        """
        called: set[nn.Module] = set()
        handles = [p.converted.register_forward_pre_hook(lambda m, _: called.add(m)) for p in self.pairs]
        try:
            with torch.no_grad():
                self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(p.path for p in self.pairs if p.converted not in called)

    @property
    def copied_bytes(self) -> int:
        """New storage that the conversion needed."""
        return sum(c.copied_bytes for c in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "to": self.to,
            "level": self.level,
            "copied_bytes": self.copied_bytes,
            "changes": [c.to_dict() for c in self.changes],
            "refused": [r.to_dict() for r in self.refused],
        }

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(table(headers, rows) for headers, rows in self._tables())])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return html_result(self._headline(), *(html_table(headers, rows) for headers, rows in self._tables()))

    def _headline(self) -> str:
        head = f"to {self.to} ({self.level}): {len(self.changes)} converted, {len(self.refused)} refused"
        return f"{head}, {self.copied_bytes:,} bytes copied"

    def _tables(self) -> list[tuple[list[str], list[tuple[str, ...]]]]:
        """Headers and rows of what changed and of what was refused; what is empty is left out."""
        changes = [(c.path or "(top level)", c.before, c.after, c.law) for c in self.changes]
        refused = [(r.path or "(top level)", r.kind, r.reason) for r in self.refused]
        both = ((["path", "before", "after", "law"], changes), (["refused", "kind", "reason"], refused))
        return [(headers, list[tuple[str, ...]](rows)) for headers, rows in both if rows]

    def save(self, path: str | os.PathLike[str], example: Any = None) -> Path:
        """Write the converted network, whole or not at all.

        `.safetensors`: the state dict of `model`, with the report in the file's metadata and, for people,
        beside it as `.json`. `.pt2`: the program exported with `example` (the input, a tuple of
        positional arguments, a dict of keyword arguments, or a pair of both) for any batch size
        where the network allows that, in eval mode, the report inside it.

        Raises:
            BadInput: another suffix, a folder that cannot be written, state that the format cannot hold,
            no example.
        """
        path = Path(path)
        report = json.dumps({"onebyone": "conversion", **self.to_dict()}, indent=1)
        if path.suffix == ".safetensors":
            tensors = _storable(self.model)
            with atomic_path(path) as part:
                save_file(tensors, part, metadata={"onebyone.json": report})
            write_text(path.with_suffix(".json"), report)
        elif path.suffix == ".pt2":
            program = self._export(example)
            with atomic_path(path) as part:
                torch.export.save(program, part, extra_files={"onebyone.json": report})
        else:
            raise BadInput(f"path={str(path)!r}: expected a name that ends in .safetensors or .pt2")
        return path

    def _export(self, example: Any) -> torch.export.ExportedProgram:
        if example is None:
            raise BadInput("saving a .pt2 needs an example input: save(path, example=x)")
        return export_any_batch(self.model, example)


def _storable(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors can hold it: every name a contiguous tensor with storage of its own."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"state dict: {name} is a {type(value).__name__}; a .safetensors file holds tensors only"
            )
        if value.is_meta:
            raise BadInput(f"state dict: {name} is on the meta device and has no values to save")
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        fresh = storage._cdata not in seen and whole and value.is_contiguous()
        seen.add(storage._cdata)
        tensors[name] = value if fresh else value.clone(memory_format=torch.contiguous_format)
    return tensors

"""What `convert` returns for a module: the converted module, and everything about how it was made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.atomic_files import atomic_path, write_text
from onebyone.errors import BadInput
from onebyone.pytorch.files.exporting import export_any_batch, export_free, export_program
from onebyone.pytorch.files.onnx_export import save_onnx
from onebyone.pytorch.files.program_file import save_program
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.pytorch.modules.state import Entry, StateDict, to_converted, to_original
from onebyone.results.conversion import Conversion
from onebyone.results.note import NOTE


@dataclass(frozen=True, eq=False)
class ModuleConversion(Conversion[nn.Module]):
    """A converted module. `entries` lists the tensors whose name or shape differs from the original's.

    `dynamic_axes` are the axes of the inputs that stay free where `save` exports the module (None: see `save`).

    >>> import onebyone.pytorch.modules.convert as convert
    >>> print(convert.convert_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), to="conv"))
    to conv (layers): 1 converted, 0 refused, 0 bytes copied
    path  before      after                law
    ----  ----------  -------------------  ------------------------------
    0     Linear 2×3  1×1 convolution 2×3  linear = pointwise convolution
    """

    pairs: tuple[ModulePair, ...] = ()
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    dynamic_axes: tuple[int, ...] | None = None

    def state_dict_from_original(self, state: StateDict) -> dict[str, Any]:
        """A state dict of the original network, renamed and reshaped so that `model.load_state_dict` accepts it."""
        return to_converted(self.entries, state)

    def state_dict_to_original(self, state: StateDict | None = None) -> dict[str, Any]:
        """A state dict of `model` (by default its own), renamed and reshaped for the original's `load_state_dict`."""
        return to_original(self.entries, self.model.state_dict() if state is None else state)

    def never_called(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The converted layers that `model` does not call on this input: their conversion has no effect on it.

        Code that reads a layer's weight instead of calling the layer computes the same, but not in the new form.

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

    def save(self, path: str | os.PathLike[str], example: Any = None) -> Path:
        """Write the converted network. The file appears completely or not at all.

        `.safetensors`: the state dict of `model`, with the report in the file's metadata and, for people, in a `.json`
        file of the same name. `.pt2` and `.onnx`: the program exported in eval mode with `example` (the input, a tuple
        of positional arguments, a dict of keyword arguments, or a pair of both), with the report inside. It takes any
        size along `dynamic_axes`. Where these are None, a `.pt2` takes any batch size if the network allows that, and
        an `.onnx` has the example's sizes, which most accelerators need.

        Raises
        ------
        BadInput
            if the suffix is another one, the folder cannot be written, the state cannot be held by the format, or
            `example` is missing; or the network cannot be exported with it and with free sizes along `dynamic_axes`.
        """
        path = Path(path)
        report = self.report()
        if path.suffix == ".safetensors":
            tensors = _storable(self.model)
            with atomic_path(path) as part:
                save_file(tensors, part, metadata={NOTE: report})
            write_text(path.with_suffix(".json"), report)
        elif path.suffix in (".pt2", ".onnx"):
            if example is None:
                raise BadInput(f"saving a {path.suffix} needs an example input: save(path, example=x)")
            write = save_onnx if path.suffix == ".onnx" else save_program
            write(self._exported(example, path.suffix), path, report)
        else:
            raise BadInput(f"path={str(path)!r}: expected a name that ends in .safetensors, .pt2 or .onnx")
        return path

    def _exported(self, example: Any, suffix: str) -> ExportedProgram:
        if self.dynamic_axes is not None:
            return export_free(self.model, example, self.dynamic_axes)
        return (
            export_any_batch(self.model, example) if suffix == ".pt2" else export_program(self.model, example)
        )


def _storable(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors can hold it: each name a contiguous tensor with a storage of its own."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"state dict: {name} is a {type(value).__name__}; a .safetensors file holds tensors only"
            )
        if value.is_meta:
            raise BadInput(f"state dict: {name} is on the meta device and has no values to save")
        storage = value.untyped_storage()
        fills_storage = storage.nbytes() == value.numel() * value.element_size()
        storable = storage._cdata not in storages and fills_storage and value.is_contiguous()
        storages.add(storage._cdata)
        tensors[name] = value if storable else value.clone(memory_format=torch.contiguous_format)
    return tensors

"""Checks of the inputs of a tuned model: tensors with ordinary memory, outside of exporters and transformations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.verification.pytree import map_tensors


def require_not_tracing() -> None:
    """Raise BadInput under torch.export and torch.jit.trace, which cannot trace the compiled code of an engine."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise BadInput(
            "a tuned model cannot be exported or traced (torch.export, torch.jit, torch.onnx), because it calls "
            "compiled code: export the original network"
        )


def with_ordinary_memory(arguments: Any) -> Any:
    """Return the same arguments with lazily negated or conjugated tensors (`torch._neg_view`) materialised.

    Raises BadInput for tensors without memory of their own (sparse tensors, fake tensors, tensors under torch.vmap).

    >>> with_ordinary_memory((torch._neg_view(torch.ones(2)), 3))
    (tensor([-1., -1.]), 3)
    """
    if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], Tensor):
        return (_materialised(arguments[0]),)
    return map_tensors(arguments, _materialised)


def _materialised(tensor: Tensor) -> Tensor:
    try:
        readable = not hasattr(tensor, "fake_mode")  # data_ptr() of a FakeTensor only warns
        if readable:
            tensor.data_ptr()
    except RuntimeError:
        readable = False
    if not readable:
        raise BadInput(
            "input: a tensor without ordinary memory (sparse, FakeTensor, or under torch.vmap or torch.func); a tuned "
            "model takes dense tensors: use the original network there"
        )
    return tensor.resolve_neg().resolve_conj() if tensor.is_neg() or tensor.is_conj() else tensor

"""What a tuned model can be called with: tensors that have memory, outside of exporters and transformations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.verification.pytree import map_tensors


def require_running() -> None:
    """Raise BadInput under torch.export and torch.jit.trace: what an engine computes cannot be traced."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise BadInput(
            "a tuned model cannot be exported or traced (torch.export, torch.jit, torch.onnx), because it calls "
            "compiled code: export the original network"
        )


def plain(given: Any) -> Any:
    """The same arguments, with tensors that a bit negates or conjugates (`torch._neg_view`) written out.

    Raises BadInput for tensors without memory of their own.

    >>> plain((torch._neg_view(torch.ones(2)), 3))
    (tensor([-1., -1.]), 3)
    """
    if isinstance(given, tuple) and len(given) == 1 and isinstance(given[0], Tensor):
        return (_plain(given[0]),)
    return map_tensors(given, _plain)


def _plain(tensor: Tensor) -> Tensor:
    try:
        readable = not hasattr(tensor, "fake_mode")  # a FakeTensor only warns, and gives no memory
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

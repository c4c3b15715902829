"""Export a network with torch.export on its example call, with a dynamic batch if the call allows any batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.pytorch.files.exporting import quiet
from onebyone.tuning.call_signature import CallSignature


def export_on_example(network: nn.Module, signature: CallSignature) -> ExportedProgram:
    """Export a network; raises whatever torch.export raises."""
    shapes = None
    if signature.dynamic_batch:
        signature = with_batch_of_two(signature)
        free = pytree.tree_map(
            lambda t: {0: Dim.DYNAMIC} if isinstance(t, Tensor) else None, (signature.args, signature.kwargs)
        )
        # torch.export expects dynamic shapes by parameter name if some arguments are given by name
        shapes = dict(signature.forward_signature.bind(*free[0], **free[1]).arguments)
    with quiet():
        return torch.export.export(
            network, signature.args, signature.kwargs, dynamic_shapes=shapes, strict=False
        )


def with_batch_of_two(signature: CallSignature) -> CallSignature:
    """Return the example with a batch of at least two: torch.export treats an axis of length one as a constant."""
    return signature.mapped(lambda t: torch.cat([t, t]) if t.shape[0] == 1 else t)

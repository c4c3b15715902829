"""What engines outside PyTorch share: the exported program, and inputs and outputs as flat lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.native.unsupported import UnsupportedError as UnsupportedError
from onebyone.pytorch.files.exporting import quiet, why_not_followed
from onebyone.tuning.call_signature import Calling
from onebyone.tuning.engines.base import EngineSetting


@dataclass(frozen=True, eq=False)
class Exported:
    """A program, the names of its tensor inputs in order, and how its outputs are put together."""

    program: ExportedProgram
    names: tuple[str, ...]
    rebuild: Callable[[Sequence[Tensor]], Any]
    outputs: int


def export(network: nn.Module, calling: Calling, setting: EngineSetting) -> Exported:
    """Trace the network. Raises UnsupportedError for outputs that are no tensors, and where torch.export fails."""
    shapes = None
    if setting.dynamic_batch:
        free = pytree.tree_map(lambda t: {0: Dim.DYNAMIC} if isinstance(t, Tensor) else None, calling.args)
        named = pytree.tree_map(lambda t: {0: Dim.DYNAMIC} if isinstance(t, Tensor) else None, calling.kwargs)
        shapes = _by_name(calling, free, named)
    calling = _with_batch(calling) if setting.dynamic_batch else calling
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                network, calling.args, calling.kwargs, dynamic_shapes=shapes, strict=False
            )
        except Exception as error:
            raise UnsupportedError(f"torch.export cannot follow it: {why_not_followed(error)}") from error
        leaves, spec = pytree.tree_flatten(calling.run(network))
    tensors = [isinstance(leaf, Tensor) for leaf in leaves]
    strange = [type(v).__name__ for v in leaves if not isinstance(v, Tensor | str | bool | None)]
    if strange or not any(tensors):
        raise UnsupportedError(f"it gives a {(strange or ['nothing'])[0]}, which is no tensor")

    def rebuild(found: Sequence[Tensor]) -> Any:
        given = iter(found)
        return pytree.tree_unflatten(
            [next(given) if is_tensor else leaf for is_tensor, leaf in zip(tensors, leaves, strict=True)],
            spec,
        )

    inputs = pytree.tree_leaves((calling.args, calling.kwargs))
    names = [
        str(name)
        for leaf, name in zip(inputs, program.graph_signature.user_inputs, strict=True)
        if isinstance(leaf, Tensor)
    ]
    return Exported(program, tuple(names), rebuild, sum(tensors))


def flat_inputs(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors of a call, in order, without gradients."""
    return [t.detach() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]


def _with_batch(calling: Calling) -> Calling:
    """The example with a batch of two: torch.export takes an axis of length one for a constant."""
    return calling.mapped(lambda t: torch.cat([t, t]) if t.shape[0] == 1 else t)


def _by_name(calling: Calling, free: Any, named: Any) -> dict[str, Any]:
    """Dynamic shapes by the parameters' names, as torch.export wants them where some are given by name."""
    bound = calling.signature.bind(*free, **named).arguments
    return dict(bound)

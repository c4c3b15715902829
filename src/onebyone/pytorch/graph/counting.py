"""The definition of a layout operator, and a counter that runs on any exported program.

A layout operator only rearranges or copies a tensor:

- `permute`, `transpose`, `t`, `movedim`, `swapaxes` and the like, each of them, whether or not data is moved for it;
- `reshape`, `view`, `flatten`, `unflatten`, `contiguous` where they move data, that is, where the result does not
  share its input's storage;
- `clone`;
- `constant_pad_nd` and `pad` (padding of the original network is counted before and after).

Squeezing, unsqueezing, selecting, slicing and reshaping to a view move nothing and are not layout operators.
Rearrangements of parameters are counted, unless they were made once at conversion. `layout_operators` reads the
storages that export recorded; `copies_at_run_time` runs the program under the profiler and counts the copies that its
kernels really make, including those inside `linear` and `conv2d`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.pytorch.graph.nodes import operator_name, tensor_value

PERMUTES = frozenset(
    [
        "permute",
        "transpose",
        "t",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "numpy_T",
        "matrix_H",
        "mT",
        "mH",
        "adjoint",
        "transpose_",
        "t_",
        "permute_copy",
        "transpose_copy",
        "t_copy",
    ]
)
RESHAPES = frozenset(
    [
        "reshape",
        "view",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "reshape_as",
        "view_as",
        "contiguous",
        "ravel",
        "view_copy",
    ]
)
COPIES = frozenset(["clone", "constant_pad_nd", "pad"])


def moves_data(node: Node) -> bool:
    """Whether a reshape, flatten or contiguous copies: its recorded result shares no storage with its input."""
    source = node.args[0]
    before, after = tensor_value(source) if isinstance(source, Node) else None, tensor_value(node)
    if before is None or after is None:
        return False
    return bool(before.untyped_storage()._cdata != after.untyped_storage()._cdata)


def layout_operators(program: ExportedProgram) -> Counter[str]:
    """The layout operators of an exported program, by name; `.total()` is their number.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, x): return x.permute(0, 2, 1).reshape(2, 12)
    >>> layout_operators(torch.export.export(Net(), (torch.ones(2, 3, 4),), strict=False))
    Counter({'permute': 1, 'reshape': 1})
    """
    counts: Counter[str] = Counter()
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                name = operator_name(node)
                if name in PERMUTES or name in COPIES or (name in RESHAPES and moves_data(node)):
                    counts[name] += 1
    return counts


def copies_at_run_time(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Counter[str]:
    """The tensors copied while the program runs, including the copies that kernels make.

    These are the profiler's `aten::clone` events: every `contiguous`, reshape or clone that moves data ends in one.
    """
    module = program.module()
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(*args, **(kwargs or {}))
    return Counter(e.name for e in profile.events() if e.name == "aten::clone")

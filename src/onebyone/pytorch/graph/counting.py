"""Layout operators: the stated list, and a counter that runs on any exported program.

A layout operator is one that only rearranges a tensor that depends on the program's inputs, or copies it:

- `permute`, `transpose`, `t`, `movedim`, `swapaxes` and their like (each counts, whether or not the machine
  moves data for it);
- `reshape`, `view`, `flatten`, `unflatten` where it moves data, that is, where its result does not share its
  input's storage;
- `contiguous` where it moves data, and `clone`;
- padding to a layout: `constant_pad_nd` by a program's rewriting (the original's own padding is arithmetic
  and is in both counts).

Squeezing, unsqueezing, selecting, slicing and reshaping in place move nothing and are not layout operators.
Rearrangements of parameters alone are counted too, unless they were made once at conversion.
`layout_operators` reads the strides that export recorded; `copies_at_run_time` runs the program under the
profiler and counts the copies that its kernels really make, those hidden inside `linear` and `conv2d`
included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

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


def operator_name(node: Node) -> str:
    """`aten.permute.default` → `permute`; other callables by their name; empty for nodes that call nothing."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "_overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def moves_data(node: Node) -> bool:
    """Whether a reshape, flatten or contiguous copies: its recorded result shares no storage with its input."""
    source, result = node.args[0], node.meta.get("val")
    given = source.meta.get("val") if isinstance(source, Node) else None
    if not isinstance(given, torch.Tensor) or not isinstance(result, torch.Tensor):
        return False
    return bool(given.untyped_storage()._cdata != result.untyped_storage()._cdata)


def layout_operators(program: ExportedProgram) -> Counter[str]:
    """The layout operators of an exported program, by name; `.total()` is their number.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, x): return x.permute(0, 2, 1).reshape(2, 12)
    >>> layout_operators(torch.export.export(Net(), (torch.ones(2, 3, 4),), strict=False))
    Counter({'permute': 1, 'reshape': 1})
    """
    found: Counter[str] = Counter()
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                name = operator_name(node)
                if name in PERMUTES or name in COPIES or (name in RESHAPES and moves_data(node)):
                    found[name] += 1
    return found


def copies_at_run_time(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Counter[str]:
    """Whole tensors copied while the program runs, kernels' own copies included: the profiler's `aten::clone`
    events, which every `contiguous`, every reshape that moves data and every clone ends in.
    """
    module = program.module()
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(*args, **(kwargs or {}))
    return Counter(e.name for e in profile.events() if e.name == "aten::clone")

"""Numbers of constants that are part of the code (zeros, ranges, literals), which no checkpoint changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from onebyone.lifting.values import Const

#: The most elements of a constant whose numbers are computed while lifting.
MOST_KNOWN = 2**20


def known_numbers(node: fx.Node, target: Any, values: dict[fx.Node, Any]) -> torch.Tensor | None:
    """The numbers of an operator on constants whose own numbers are known; None where they are not."""
    operands = [values[n] for n in node.all_input_nodes]
    size = getattr(node.meta.get("val"), "numel", lambda: 0)()
    if "empty" in str(target) or not 0 < size <= MOST_KNOWN:
        return None
    if not all(isinstance(c, Const) and c.known is not None for c in operands):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n].known)
    result = target(*args, **kwargs)
    return on_processor(result) if isinstance(result, torch.Tensor) else None


def on_processor(tensor: torch.Tensor) -> torch.Tensor:
    """Where known numbers are computed with, whatever device the code names; those of the meta device stay there."""
    return tensor if tensor.device.type == "meta" else tensor.cpu()


def known_number(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The plain number of an operator on known numbers (`torch.tensor(shape).prod().item()`), else None."""
    operands = [values[n] for n in node.all_input_nodes]
    numbers = [
        v.known if isinstance(v, Const) else v if isinstance(v, (int, float)) else None for v in operands
    ]
    if not operands or isinstance(node.meta.get("val"), torch.Tensor) or any(v is None for v in numbers):
        return None
    by_node = dict(zip(node.all_input_nodes, numbers, strict=True))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: by_node[n])
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, (int, float)) else None

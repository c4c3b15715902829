"""Constants of a walk: parameters, buffers, and what is computed from them or from nothing.

The numbers of those that are part of the code (zeros, ranges, literals) are known: no checkpoint and no training
changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

#: Numbers of a constant that are computed while walking.
MOST_KNOWN = 2**20


@dataclass(frozen=True)
class Const:
    """A value that does not depend on the image: a parameter, or what is computed from parameters alone.

    `known` holds its numbers where they are part of the code (zeros, ranges, literals), so that no checkpoint and no
    training changes them.
    """

    handle: Any
    shape: tuple[int, ...]
    name: str | None = None
    known: torch.Tensor | None = None

    @property
    def single(self) -> float | None:
        """The one number that fills it, where it is known to hold no other."""
        if self.known is None or not self.known.numel():
            return None
        first = self.known.flatten()[0]
        return first.item() if bool((self.known == first).all()) else None


class Late:
    """A parameter's handle, made in the new graph when first used."""

    def __init__(self, walk: Any, name: str) -> None:
        self.walk, self.name = walk, name
        self.made: fx.Proxy | None = None

    def get(self) -> fx.Proxy:
        if self.made is None:
            self.made = self.walk.proxy(self.walk.graph.get_attr(self.name))
        return self.made


def known_numbers(node: fx.Node, target: Any, values: dict[fx.Node, Any]) -> torch.Tensor | None:
    """The numbers of an operator on constants whose own numbers are known; None where they are not."""
    given = [values[n] for n in node.all_input_nodes]
    size = getattr(node.meta.get("val"), "numel", lambda: 0)()
    if "empty" in str(target) or not 0 < size <= MOST_KNOWN:
        return None
    if not all(isinstance(c, Const) and c.known is not None for c in given):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n].known)
    result = target(*args, **kwargs)
    return result if isinstance(result, torch.Tensor) else None


def known_number(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The plain number of an operator on numbers that are known (`torch.tensor(shape).prod().item()`), else None."""
    given = [values[n] for n in node.all_input_nodes]
    numbers = [v.known if isinstance(v, Const) else v if isinstance(v, (int, float)) else None for v in given]
    if not given or isinstance(node.meta.get("val"), torch.Tensor) or any(v is None for v in numbers):
        return None
    by_node = dict(zip(node.all_input_nodes, numbers, strict=True))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: by_node[n])
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, (int, float)) else None


def handle_of(const: Const) -> Any:
    """The proxy of a constant."""
    return const.handle.get() if isinstance(const.handle, Late) else const.handle

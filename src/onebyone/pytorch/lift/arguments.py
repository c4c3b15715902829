"""Operators that slide a kernel over a map: their arguments by name and by axis, and the grid that they give."""

from __future__ import annotations

from typing import Any

from torch import fx

from onebyone.laws.geometry import Sliding
from onebyone.pytorch.lift.lifter import Cannot, Lifted, Walk

#: Why a pool with ceil_mode is not exact at a window; at another it may be.
PARTIAL = "ceil_mode makes a last place that is partial in a crop and whole in a larger image"


def arguments(node: fx.Node) -> dict[str, Any]:
    """An operator's arguments by the names in its schema, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: (a.default_value if a.has_default_value() else None) for a in schema.arguments}
    given.update({a.name: v for a, v in zip(schema.arguments, node.args, strict=False)})
    given.update(node.kwargs)
    return given


def per_axis(value: Any, axes: int) -> list[int]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (listed * axes if len(listed) == 1 else listed)]


def padding_of(a: dict[str, Any], kernel: tuple[int, ...], dilation: list[int]) -> list[tuple[int, int]]:
    padding = a["padding"]
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(p, p) for p in per_axis(padding, len(kernel))]


def slide(walk: Walk, node: fx.Node, value: Lifted, ops: list[Sliding], channels: int | None = None) -> Any:
    """The grid after sliding operators; padding and partial last places make the result inexact."""
    if any(op.padded() for op in ops):
        sides = [
            f"{op.pad_before}" if op.pad_before == op.pad_after else f"{op.pad_before}+{op.pad_after}"
            for op in ops
        ]
        amounts = sides[0] if len(set(sides)) == 1 else "×".join(sides)
        walk.not_exact(
            node, f"padding {amounts}: a crop has a border there that the middle of an image has not"
        )
    if any(op.partial_last(n) for op, n in zip(ops, value.grid.nominal, strict=True)):
        walk.not_exact(node, PARTIAL)
    grid = value.grid.through(ops, channels)
    if any(n < 1 for n in grid.nominal):
        raise Cannot("the window is too small: no place is left")
    return grid


def pooled_axes(node: fx.Node) -> int:
    return next(int(c) for c in str(node.target).partition("pool")[2] if c.isdigit())

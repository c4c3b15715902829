"""Arguments of aten operators: by the names in their schemas, and by axis."""

from __future__ import annotations

from typing import Any

from torch import fx


def arguments(node: fx.Node) -> dict[str, Any]:
    """An operator's arguments by the names in its schema, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    by_name = {a.name: (a.default_value if a.has_default_value() else None) for a in schema.arguments}
    by_name.update({a.name: v for a, v in zip(schema.arguments, node.args, strict=False)})
    by_name.update(node.kwargs)
    return by_name


def per_axis(value: Any, axes: int) -> list[int]:
    """One number for each axis, of a number or a list that may hold one for all.

    >>> per_axis(3, 2), per_axis([1, 2], 2)
    ([3, 3], [1, 2])
    """
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (listed * axes if len(listed) == 1 else listed)]


def padding_of(padding: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[tuple[int, int]]:
    """Padding before and after each axis, of numbers or of "same" or "valid".

    >>> padding_of("same", (4,), [1])
    [(1, 2)]
    """
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(p, p) for p in per_axis(padding, len(kernel))]

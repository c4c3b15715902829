"""Element-wise operators: on one value, on values and constants, on several values that are combined."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import as_gather, identity, in_layout_of
from onebyone.lifting.lifter import BY_POSITION, Lifter
from onebyone.lifting.operators import Call, Elementwise
from onebyone.lifting.rules.context import in_context
from onebyone.lifting.values import Cannot, Const, Handle, Lifted


def elementwise(lifter: Lifter, call: Call, operator: Elementwise) -> Lifted:
    """Operands, at least one of them lifted, element by element; the result has the call's shape."""
    return combined(lifter, call, operator, call.shape)


def combined(lifter: Lifter, call: Call, operator: Elementwise, shape: tuple[int, ...]) -> Lifted:
    """The operands element by element, broadcast to `shape`.

    All maps are laid out as one of them, the anchor, and cropped to their common extent; a constant becomes one number,
    or one number per channel of the anchor's map. Operands keep their order.
    """
    operands = operator.operands
    values = [v for v in operands if isinstance(v, Lifted)]
    if any(v.affine is not None for v in values):
        raise Cannot(BY_POSITION)
    if not values:
        raise Cannot("an element-wise operator on constants alone")
    anchor = _anchor(values, shape)
    if anchor.grid.image_wide and not all(v.grid.image_wide for v in values):
        raise Cannot("a value of the whole image is broadcast over windows")
    ids = [_element_ids(v, shape) if isinstance(v, Const) else None for v in operands]
    same_layout = all(
        v.grid.shape == anchor.grid.shape and v.shape == shape and _same_index(v, anchor) for v in values
    )
    if not same_layout or any(n is not None and not _one_number(n) for n in ids):
        laid_out = _with_each_element_once(lifter, anchor, shape)
        values = [laid_out if v is anchor else _in_layout(lifter, call, v, laid_out, shape) for v in values]
        anchor = laid_out
    # a value of the whole image is broadcast; all others are aligned position by position
    local = [i for i, v in enumerate(values) if v.grid.image_wide == anchor.grid.image_wide]
    maps, grid = lifter.aligned([values[i] for i in local])
    for i, value in zip(local, maps, strict=True):
        values[i] = value
    handles = iter([v.handle for v in values])
    arguments = [
        next(handles) if isinstance(v, Lifted) else v if n is None else _constant(lifter, v, n, anchor)
        for v, n in zip(operands, ids, strict=True)
    ]
    pooled: frozenset[str] = frozenset().union(*(v.pooled for v in values))
    return Lifted(
        operator.apply(*arguments), replace(grid, channels=anchor.grid.channels), anchor.index, pooled
    )


def _anchor(values: list[Lifted], shape: tuple[int, ...]) -> Lifted:
    """The operand whose layout the others take.

    One of windows before one of the image; of those, one of the result's shape, or else one of the most positions.
    """
    local = [v for v in values if not v.grid.image_wide]
    for candidates in (local, values):
        for value in candidates:
            if value.shape == shape:
                return value
    return max(local or values, key=lambda value: prod(value.grid.nominal))


def _one_number(ids: Integers) -> bool:
    return bool(ids.size and (ids == ids.flat[0]).all())


def _constant(lifter: Lifter, constant: Const, ids: Integers, anchor: Lifted) -> Handle:
    """The constant as one number for all, or as one per channel of the anchor's map."""
    if not constant.shape:
        return constant.handle
    if _one_number(ids):
        return lifter.emit.per_channel(constant.handle, ids.ravel()[:1], 0)
    ids = ids if anchor.index is None else in_layout_of(ids, anchor.index, anchor.grid)
    ids = ids.reshape(anchor.grid.channels, -1)
    if not (ids == ids[:, :1]).all():
        raise Cannot(
            "a constant that depends on the position is combined with the map (a position embedding, for example)"
        )
    return lifter.emit.per_channel(constant.handle, ids[:, 0], lifter.axes)


def _element_ids(constant: Const, shape: tuple[int, ...]) -> Integers:
    """Which element of the constant is combined with each element of a value of `shape`."""
    dims = constant.shape
    if constant.single is not None:
        return np.zeros(shape, dtype=np.int64)
    if len(dims) > len(shape):
        if dims[0] != 1 or len(dims) != len(shape) + 1:
            raise Cannot("a constant made for each sample of the batch (a position encoding, for example)")
        dims = dims[1:]
    return np.asarray(np.broadcast_to(identity(dims), shape))


def _with_each_element_once(lifter: Lifter, value: Lifted, shape: tuple[int, ...]) -> Lifted:
    """The value, broadcast to `shape`, on a map that holds each of its elements exactly once."""
    if value.index is None and value.shape == shape:
        return value
    index = np.broadcast_to(value.indices(), shape)
    return lifter.compact(value.with_index(np.ascontiguousarray(index)))


def _same_index(first: Lifted, second: Lifted) -> bool:
    """Whether two indices into grids of one shape are the same."""
    return first.index is second.index or np.array_equal(first.indices(), second.indices())


def _in_layout(lifter: Lifter, call: Call, value: Lifted, anchor: Lifted, shape: tuple[int, ...]) -> Lifted:
    """The value's elements laid out as the anchor's map is."""
    index = np.asarray(np.broadcast_to(value.indices(), shape))
    index = index if anchor.index is None else in_layout_of(index, anchor.index, anchor.grid)
    plan = as_gather(index, value.grid)
    if isinstance(plan, str):
        raise Cannot(f"two values are combined whose elements are laid out differently in the image: {plan}")
    if (plan.channels == plan.channels[0]).all() and (plan.starts == plan.starts[:, :1]).all():
        plan = replace(plan, channels=plan.channels[:1], starts=plan.starts[:, :1])  # one channel for all
    gathered = lifter.gathered(value, plan)
    if not plan.broadcast:
        return gathered
    size = [n if axis in plan.broadcast else 1 for axis, n in enumerate(anchor.grid.nominal)]
    return in_context(lifter, call, gathered, size)

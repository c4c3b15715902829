"""Shape operators act on the index alone, so that no size is fixed and no order of elements is assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import BATCH, batched, unbatched
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Concatenation, Rearrange, Stack
from onebyone.lifting.rules.fill import fill_like
from onebyone.lifting.values import Cannot, Const, Lifted, Value


def rearrange(operator: Rearrange) -> Any:
    """Run the operator on integers that number the elements of a batch: what comes out is the new index."""
    value = operator.source
    if not isinstance(value, Lifted):
        raise Cannot("a constant is reshaped to the shape of a value that depends on the image")
    size = int(np.prod(value.grid.shape))
    result = operator.run(batched(value.indices(), size, BATCH))
    if isinstance(result, (list, tuple)):
        return tuple(_rearranged(value, numbers, size) for numbers in result)
    return _rearranged(value, np.asarray(result), size)


def _rearranged(value: Lifted, numbers: Integers, size: int) -> Lifted:
    index = unbatched(numbers, size, BATCH)
    if isinstance(index, str):
        raise Cannot(index)
    if value.affine is not None and not np.array_equal(index, value.indices()):
        raise Cannot(
            "a vector with constants that depend on the position is rearranged before the next linear layer"
        )
    return value.with_index(index)


def concatenate(lifter: Lifter, _call: Call, operator: Concatenation) -> Lifted:
    """Maps side by side along the channels; the index says which of them each element of the result is."""
    parts, axis = list(operator.parts), operator.axis
    if axis == 0 and all(_is_whole_map(part, parts[0]) for part in parts):
        return lifter.concatenated(parts)
    return side_by_side(lifter, _with_filled_constants(lifter, parts, axis), axis)


def stack(lifter: Lifter, _call: Call, operator: Stack) -> Lifted:
    """As `concatenate`, along a new axis."""
    return _joined(
        lifter, list(operator.parts), lambda indices: np.stack(indices, operator.axis + 1)
    )  # after the batch


def side_by_side(lifter: Lifter, parts: Sequence[Value], axis: int) -> Lifted:
    """Values side by side along an axis."""
    return _joined(lifter, list(parts), lambda indices: np.concatenate(indices, axis + 1))


def _is_whole_map(value: Value, first: Value) -> bool:
    """Whether the value is a map as it is, of the same part of the image as the first one."""
    return (
        isinstance(value, Lifted)
        and value.index is None
        and value.affine is None
        and value.grid.nominal == first.grid.nominal
        and value.grid.image_wide == first.grid.image_wide
    )


def _with_filled_constants(lifter: Lifter, parts: list[Value], axis: int) -> list[Value]:
    """The values, with constants of one number as maps that have the positions of the first image-dependent value."""
    first = next((p for p in parts if isinstance(p, Lifted)), None)
    if first is None or axis < 0 or first.affine is not None:
        return parts
    return [fill_like(lifter, p, first, axis) if isinstance(p, Const) else p for p in parts]


def _joined(lifter: Lifter, parts: list[Value], join: Callable[[list[Integers]], Integers]) -> Lifted:
    if not all(isinstance(p, Lifted) and p.affine is None for p in parts):
        raise Cannot(
            "a constant is concatenated with values that depend on the image (a class token, for example)"
        )
    if all(p.handle is parts[0].handle for p in parts):  # parts of one map
        return _join_indices(parts[0], [p.indices() for p in parts], join)
    if len({p.grid.image_wide for p in parts}) > 1:
        raise Cannot("a value of the whole image is concatenated with values of a window")
    compact = [
        p if p.index is None or p.index.size >= int(np.prod(p.grid.shape)) else lifter.compact(p)
        for p in parts
    ]
    if len({p.grid.nominal for p in compact}) > 1:
        compact = [_at_one_position(lifter, p) for p in parts]
    whole = lifter.concatenated(compact)
    positions = int(np.prod(whole.grid.nominal))
    first, indices = 0, []
    for part in compact:
        indices.append(part.indices() + first * positions)
        first += part.grid.channels
    return _join_indices(whole, indices, join)


def _at_one_position(lifter: Lifter, value: Lifted) -> Lifted:
    at_one = lifter.at_one_position(value)
    return at_one.with_index(at_one.indices().reshape(value.shape))


def _join_indices(
    value: Lifted, indices: list[Integers], join: Callable[[list[Integers]], Integers]
) -> Lifted:
    size = int(np.prod(value.grid.shape))
    index = unbatched(join([batched(i, size, BATCH) for i in indices]), size, BATCH)
    if isinstance(index, str):
        raise Cannot(index)
    return value.with_index(index)

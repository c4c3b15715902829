"""Elements that a constant index names, where a checkpoint may change the index (it is a buffer of the network).

An index that is part of the code acts on integers, as shape operators do. This one stays a tensor: the elements
that it selects from become channels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Select
from onebyone.lifting.values import Cannot, Const, Lifted


def select(lifter: Lifter, _call: Call, operator: Select) -> Lifted:
    """The selected elements of a value."""
    value, index = lifter.lifted(operator.source), operator.index
    if not isinstance(index, Const):
        raise Cannot("an index that depends on the image")
    if len(index.shape) != 1:
        raise Cannot("an index that a checkpoint can change (a buffer), over more than one axis")
    if operator.axis < 0:
        raise Cannot("an index selects samples of the batch")
    grouped, groups = lifter.with_groups(value, (operator.axis,))
    split = lifter.emit.split_channels(grouped.handle, (groups.count, -1))
    handle = lifter.emit.merge_channels(lifter.emit.select(split, 2, index.handle), 2)
    length = index.shape[0]
    grid = replace(grouped.grid, channels=groups.count * length)
    new = np.ascontiguousarray(np.moveaxis(groups.out_index(length), -1, operator.axis))
    return Lifted(handle, grid, None, grouped.pooled).with_index(new)

"""Rearrange the axes of a value: transpose, then merge or split, with sizes that may be unknown.

An axis has a label; an arrangement is a list of groups of labels, outermost first, and each group is one axis of the
tensor: `[("n",), ("g", "k"), (), ("h", "w")]` has the channels (group g, channel k) on axis 1, an axis of size one, and
the positions (h, w) merged on the last axis. Sizes are integers, or None where they are known only at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx_ir as ir

from onebyone.onnx.graph_writer import GraphWriter

Label = str
Group = tuple[Label, ...]
Sizes = Mapping[Label, int | None]


def merged(
    writer: GraphWriter, value: ir.Value, labels: Sequence[Label], groups: Sequence[Group], sizes: Sizes
) -> ir.Value:
    """Transpose `value`, whose axes are `labels`, and merge its axes into `groups`.

    Every label stands in exactly one group.
    """
    order = [label for group in groups for label in group]
    value = _transposed(writer, value, labels, order, sizes)
    shape = [group_size(group, sizes) for group in groups]
    if all(len(group) <= 1 for group in groups):
        ones = [axis for axis, group in enumerate(groups) if not group]
        return writer.unsqueeze(value, ones, shape) if ones else value
    return writer.op("Reshape", [value, _merged_shape(writer, value, order, groups, sizes)], shape=shape)


def split(
    writer: GraphWriter,
    value: ir.Value,
    groups: Sequence[Group],
    labels: Sequence[Label],
    sizes: Sizes,
    sources: Mapping[Label, tuple[ir.Value, int]],
) -> ir.Value:
    """The inverse of `merged`: split the axes `groups` of `value` and transpose them to the order `labels`.

    `sources` gives, for each label of unknown size, a value and the axis of it that has that size.
    """
    order = [label for group in groups for label in group]
    shape = [sizes[label] for label in order]
    if all(len(group) <= 1 for group in groups):
        ones = [axis for axis, group in enumerate(groups) if not group]
        value = writer.squeeze(value, ones, shape) if ones else value
    else:
        target = _split_shape(writer, groups, order, sizes, sources)
        value = writer.op("Reshape", [value, target], shape=shape)
    return _transposed(writer, value, order, labels, sizes)


def group_size(group: Group, sizes: Sizes) -> int | None:
    """The size of a merged axis; None where a factor is unknown.

    >>> group_size(("h", "w"), {"h": 2, "w": 3}), group_size((), {}), group_size(("n",), {"n": None})
    (6, 1, None)
    """
    factors = [sizes[label] for label in group]
    return None if None in factors else prod(f for f in factors if f is not None)


def _transposed(
    writer: GraphWriter, value: ir.Value, labels: Sequence[Label], order: Sequence[Label], sizes: Sizes
) -> ir.Value:
    if list(labels) == list(order):
        return value
    permutation = [list(labels).index(label) for label in order]
    return writer.op("Transpose", [value], {"perm": permutation}, shape=[sizes[label] for label in order])


def _merged_shape(
    writer: GraphWriter, value: ir.Value, order: Sequence[Label], groups: Sequence[Group], sizes: Sizes
) -> ir.Value:
    known = [group_size(group, sizes) for group in groups]
    # A zero copies the size of the input's axis at the same index: right for a single axis that did not move.
    copied = [
        0 if size is None and axis < len(order) and group == (order[axis],) else size
        for axis, (group, size) in enumerate(zip(groups, known, strict=True))
    ]
    if copied.count(None) <= 1:
        return writer.integers([-1 if size is None else size for size in copied])
    sources = {label: (value, axis) for axis, label in enumerate(order)}
    return _computed_shape(writer, groups, sizes, sources)


def _split_shape(
    writer: GraphWriter,
    groups: Sequence[Group],
    order: Sequence[Label],
    sizes: Sizes,
    sources: Mapping[Label, tuple[ir.Value, int]],
) -> ir.Value:
    copied = [
        0 if sizes[label] is None and axis < len(groups) and groups[axis] == (label,) else sizes[label]
        for axis, label in enumerate(order)
    ]
    if copied.count(None) <= 1:
        return writer.integers([-1 if size is None else size for size in copied])
    return _computed_shape(writer, [(label,) for label in order], sizes, sources)


def _computed_shape(
    writer: GraphWriter,
    groups: Sequence[Group],
    sizes: Sizes,
    sources: Mapping[Label, tuple[ir.Value, int]],
) -> ir.Value:
    """A shape put together at run time, from the sizes of other values."""
    parts = []
    for group in groups:
        size = group_size(group, sizes)
        if size is not None:
            parts.append(writer.integers([size]))
            continue
        product: ir.Value | None = None
        for label in group:
            known = sizes[label]
            factor = writer.integers([known]) if known is not None else _size_of(writer, *sources[label])
            product = factor if product is None else writer.op("Mul", [product, factor], shape=[1])
        assert product is not None
        parts.append(product)
    return writer.op("Concat", parts, {"axis": 0}, dtype=ir.DataType.INT64, shape=[len(parts)])


def _size_of(writer: GraphWriter, value: ir.Value, axis: int) -> ir.Value:
    shape = writer.op("Shape", [value], dtype=ir.DataType.INT64)
    return writer.op("Gather", [shape, writer.integers([axis], "axis")], {"axis": 0}, shape=[1])

"""Products with a constant weight, as 1×1 convolutions or as linear layers.

y[…, o] = Σ_i W[o, i] · x[…, i] + b[o]. With the channels stored second and W of shape (O, I, 1, 1), this is a 1×1
convolution. With the channels stored last and W of shape (O, I), it is a linear layer. With the channels stored
anywhere else, W multiplies from the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import (
    UNIT,
    Layout,
    Order,
    insertions,
    operand_layout,
    operand_order,
    without_leading_units,
)
from onebyone.layout.rules import LayoutRule, OperandOrders, write_in_natural_layout
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.weight_products import WeightProduct

T = TypeVar("T")
CHANNEL = -2  # the channel axis, in an order that describes the product's input and output at once
MAX_SPATIAL = 3  # convolutions have at most three spatial axes
MERGE_PENALTIES = (1.01, 0.5, 0.04, 0.0005)
"""Costs, in layout operators, of the less plain forms of a product (`ProductRule.merge_penalty`).

A front end plans with each in turn, from the plainest products to the fewest layout operators, until a plan has few
enough of these.
"""


def image_layout(order: Order, last: bool = True) -> Layout:
    """The layout of a convolution's input: batch, channels, and at least two spatial dimensions.

    Unit dimensions come before a single spatial axis, so that (B, T, C) storage is recognisable as an image (B, C, 1,
    T) in channels-last memory; after it where `last` is False.

    >>> image_layout((0, CHANNEL, 1)), image_layout((CHANNEL, 1, 2))
    ((0, -2, -1, 1), (-1, -2, 1, 2))
    """
    leading, trailing = _around_channel(order)
    units = (UNIT,) * max(0, 2 - len(trailing))
    spatial = (*units, *trailing) if last else (*trailing, *units)
    return (*(leading or (UNIT,)), CHANNEL, *spatial)


def _around_channel(order: Order) -> tuple[Order, Order]:
    """The axes before and after `CHANNEL`."""
    position = order.index(CHANNEL)
    return order[:position], order[position + 1 :]


@dataclass(frozen=True, eq=False)
class ProductRule(LayoutRule):
    """A product that is written as a convolution (`to="conv"`) or as a linear layer (`to="linear"`).

    `convert` is False for a product that has this form already: it is written as it was where its layout allows.
    `merge_penalty` is the cost of the less plain forms: a convolution whose leading axes are merged into the batch
    axis, and a weight that multiplies from the left.
    `tokens` says where the positions of a convolution are stored. `row_penalty` is the cost of rows (N, C) in the batch
    axis, where they could be positions.
    `keep_cost` is the cost, in layout operators, of writing a product as it was instead of in one of the less plain
    forms; None where it must be converted.
    """

    product: WeightProduct
    to: str
    convert: bool
    merge_penalty: float
    tokens: TokenAxis = TokenAxis.LAST
    row_penalty: float = 0.0
    keep_cost: float | None = None

    # -- orders

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        weight = (self._weight_order(), *self._bias_order(order))
        if self._collapsed():
            return [(self.product.x.axes, *weight)] if order == self.axes else []
        joints = self._joint_orders(order)
        if self._in_the_batch():
            joints = [joint for joint in joints if joint[-1] == CHANNEL]
        inputs = dict.fromkeys(self._x_order(joint) for joint in joints)
        return [(x_order, *weight) for x_order in inputs]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        if operand != 0:
            return []
        if self._collapsed():
            return [self.axes]
        x_channel, channel = self.product.x_channel, self.product.out_channel
        if channel is None or channel not in self.axes:
            return [tuple(axis for axis in order if axis != x_channel)]
        if x_channel in order:
            return [tuple(channel if axis == x_channel else axis for axis in order)]
        return [(*order[:i], channel, *order[i:]) for i in range(len(order) + 1)]

    def preferred_orders(self) -> list[Order]:
        channel = self.product.out_channel
        if channel is None or channel not in self.axes or self._collapsed():
            return [self.axes]
        others = tuple(axis for axis in self.axes if axis != channel)
        if self.to == "linear" or self._in_the_batch():
            return [(*others, channel), self.axes]
        if self.row_penalty and others == (0,):
            return [(channel, 0), self.axes]
        batch = 1 if others[:1] == (0,) else 0
        return [(*others[:batch], channel, *others[batch:]), self.axes]

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        if self.keep_cost is not None and self.is_kept(order, operand_orders):
            return self.keep_cost
        leading, trailing = _around_channel(self._joint_order(order, operand_orders[0]))
        if self.to == "linear":
            return self.merge_penalty if trailing and self.product.groups == 1 else 0.0
        if leading in ((), (0,)):
            return self.row_penalty if leading and not trailing else 0.0
        if self._in_the_batch():
            return 0.0
        if not trailing:
            return self.merge_penalty
        return 0.0002 if len(leading) == 1 else 0.0003

    def is_kept(self, order: Order, operand_orders: OperandOrders) -> bool:
        """Whether the product is written as it was."""
        if order != self.axes or operand_orders[0] != self.product.x.axes:
            return False
        return not self.convert or (self.keep_cost is not None and not self._is_plain(order, operand_orders))

    def reshapes(self, order: Order, operand_orders: OperandOrders) -> int:
        """The number of Reshapes that are written beside the product."""
        return 0 if self.is_kept(order, operand_orders) else self._reshapes_of_form(order, operand_orders)

    def _reshapes_of_form(self, order: Order, operand_orders: OperandOrders) -> int:
        leading, trailing = _around_channel(self._joint_order(order, operand_orders[0]))
        if self.to == "conv":
            return 2 if len(leading) > 1 or len(trailing) > MAX_SPATIAL else 0
        return 2 if len(trailing) > 1 or self.product.groups > 1 else 0

    def _is_plain(self, order: Order, operand_orders: OperandOrders) -> bool:
        """Whether the converted product needs neither Reshapes nor a weight that multiplies from the left."""
        _, trailing = _around_channel(self._joint_order(order, operand_orders[0]))
        return self._reshapes_of_form(order, operand_orders) == 0 and (self.to == "conv" or not trailing)

    def _in_the_batch(self) -> bool:
        return self.to == "conv" and self.tokens == TokenAxis.BATCH

    def _collapsed(self) -> set[int]:
        """Axes of the input that a stride reduces to one position; such a product keeps the original order."""
        kept = (*self.axes, self.product.x_channel)
        return {axis for axis in self.product.x.axes if axis not in kept}

    def _joint_orders(self, order: Order) -> list[Order]:
        """The result's order with `CHANNEL` for its channel axis; at any position where it has no such axis."""
        if self.product.out_channel in order:
            return [tuple(CHANNEL if axis == self.product.out_channel else axis for axis in order)]
        return insertions(order, (CHANNEL,))

    def _joint_order(self, order: Order, x_order: Order) -> Order:
        """The order of input and output at once, with `CHANNEL` for the channel axis of either."""
        if self._collapsed():
            channel = self.product.x_channel
            return tuple(CHANNEL if axis == channel else axis for axis in sorted({*self.axes, channel}))
        return next(joint for joint in self._joint_orders(order) if self._x_order(joint) == x_order)

    def _x_order(self, joint: Order) -> Order:
        channel = self.product.x_channel
        present = channel in self.product.x.axes
        return tuple(channel if axis == CHANNEL else axis for axis in joint if axis != CHANNEL or present)

    def _weight_order(self) -> Order:
        product = self.product
        axes = (product.weight_out, product.weight_in)
        return tuple(axis for axis in axes if axis is not None and axis in product.weight.axes)

    def _bias_order(self, order: Order) -> tuple[Order, ...]:
        bias = self.product.bias
        if bias is None:
            return ()
        if self.product.has_plain_bias:
            return (bias.axes,)
        return (operand_order(order, bias.axes, self.result.rank - bias.rank),)

    # -- layouts

    def weight_layout(self, spatial: int) -> Layout:
        """The layout in which the weight is used: (O, I), and one unit dimension for each spatial axis."""
        product = self.product
        axes = (product.weight_out, product.weight_in)
        matrix = (UNIT if axis is None or axis not in product.weight.axes else axis for axis in axes)
        return (*matrix, *(UNIT,) * spatial)

    def _x_layout(self, joint: Layout) -> Layout:
        channel = self.product.x_channel if self.product.x_channel in self.product.x.axes else UNIT
        return tuple(channel if axis == CHANNEL else axis for axis in joint)

    def _result_layout(self, joint: Layout) -> Layout:
        channel = self.product.out_channel
        if channel is None or channel not in self.axes:
            channel = UNIT
        return tuple(channel if axis == CHANNEL else axis for axis in joint)

    def _bias_layout(self, spatial: int) -> Layout:
        assert self.product.bias is not None
        return (0 if self.product.bias.axes else UNIT, *(UNIT,) * spatial)

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        others = (None,) * (len(self.operands) - 1)
        if self._collapsed() or self.is_kept(order, operand_orders):
            return (self.product.x.natural_layout, *others)
        joint: Layout = self._joint_order(order, operand_orders[0])
        if self.to == "conv" and self._reshapes_of_form(order, operand_orders) == 0:
            joint = image_layout(joint, self.tokens != TokenAxis.HEIGHT)
        return (self._x_layout(joint), *others)

    # -- writing

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        if self.is_kept(order, operand_orders):
            return write_in_natural_layout(self.result, self.operands, tensors)
        joint = self._joint_order(order, operand_orders[0])
        write = self._convolution if self.to == "conv" else self._linear
        written, layout = write(tensors, joint)
        if self.product.has_plain_bias:
            return written, layout
        return self._with_scaled_bias(tensors, written, layout), layout

    def _plain_bias(self, tensors: StoredTensors[T], spatial: int = 0) -> T | None:
        bias = self.product.bias
        if bias is None or not self.product.has_plain_bias:
            return None
        return tensors.get(bias, self._bias_layout(spatial))

    def _convolution(self, tensors: StoredTensors[T], joint: Order) -> tuple[T, Layout]:
        leading, trailing = _around_channel(joint)
        if len(leading) > 1 or len(trailing) > MAX_SPATIAL:
            return self._merged_convolution(tensors, joint, leading, trailing)
        layout = image_layout(joint, self.tokens != TokenAxis.HEIGHT)
        x = tensors.get(self.product.x, self._x_layout(layout))
        weight = tensors.get(self.product.weight, self.weight_layout(max(2, len(trailing))))
        written = tensors.emitter.convolution(x, weight, self._plain_bias(tensors))
        return written, self._result_layout(layout)

    def _merged_convolution(
        self, tensors: StoredTensors[T], joint: Order, leading: Order, trailing: Order
    ) -> tuple[T, Layout]:
        """A convolution with all leading axes in the batch axis and, where they are too many, one spatial axis."""
        emitter, product = tensors.emitter, self.product
        x = tensors.get(product.x, self._x_layout(joint))
        batch = emitter.multiply_sizes([tensors.size(product.x, axis) for axis in leading])
        after = [tensors.size(product.x, axis) for axis in trailing]
        after = after if len(after) <= MAX_SPATIAL else [emitter.multiply_sizes(after)]
        spatial = max(2, len(after))
        x = emitter.reshape(x, [batch, product.inputs, *after, *[1] * (spatial - len(after))])
        weight = tensors.get(product.weight, self.weight_layout(spatial))
        written = emitter.convolution(x, weight, self._plain_bias(tensors))
        sizes = [product.outputs if axis == CHANNEL else tensors.size(product.x, axis) for axis in joint]
        return emitter.reshape(written, sizes), self._result_layout(joint)

    def _linear(self, tensors: StoredTensors[T], joint: Order) -> tuple[T, Layout]:
        leading, trailing = _around_channel(joint)
        emitter, product = tensors.emitter, self.product
        x = self._subsampled(tensors, joint)
        weight = tensors.get(product.weight, self.weight_layout(0))
        layout = self._result_layout(joint)
        if not trailing and product.groups == 1:
            return emitter.linear(x, weight, self._plain_bias(tensors)), layout
        batch, positions = self._result_sizes(tensors, leading), self._result_sizes(tensors, trailing)
        groups = [product.groups] if product.groups > 1 else []
        as_it_is = len(positions) == 1 and not groups
        if not as_it_is:
            columns = emitter.multiply_sizes(positions)
            x = emitter.reshape(x, [*batch, *groups, product.inputs // product.groups, columns])
        if groups:
            weight = emitter.split_rows(weight, product.groups)
        written = emitter.matmul(weight, x)
        if not as_it_is:
            written = emitter.reshape(written, [*batch, product.outputs, *positions])
        bias = self._plain_bias(tensors, len(positions))
        return (written if bias is None else emitter.add(written, bias)), layout

    def _steps(self) -> dict[int, int]:
        """The strides other than 1, by logical axis."""
        first = self.product.x.rank - len(self.product.stride)
        return {first + i: step for i, step in enumerate(self.product.stride) if step != 1}

    def _result_sizes(self, tensors: StoredTensors[T], axes: Order) -> list[int | T]:
        """The sizes of axes of the result, which a stride may have reduced."""
        sizes: list[int | T] = []
        for axis in axes:
            size, step = self.result.size(axis), self._steps().get(axis, 1)
            if not isinstance(size, int):
                size = tensors.size(self.product.x, axis)
                size = size if step == 1 else tensors.emitter.strided_size(size, step)
            sizes.append(size)
        return sizes

    def _subsampled(self, tensors: StoredTensors[T], joint: Order) -> T:
        """The input in the order `joint`, with every stride-th position of it."""
        x, collapsed, steps = self.product.x, self._collapsed(), self._steps()
        layout = x.natural_layout if collapsed else self._x_layout(joint)
        stored = tensors.get(x, layout)
        if not steps:
            return stored
        positions = {layout.index(axis): step for axis, step in steps.items() if axis in layout}
        image_axes = len(self.product.stride) if self._is_image(layout) else 0
        if positions:
            stored = tensors.emitter.subsample(stored, positions, image_axes)
        if not collapsed:
            return stored
        units = [
            position
            for position, axis in enumerate(layout)
            if axis in collapsed or (axis == UNIT and position != self.product.x_channel)
        ]
        return tensors.emitter.squeeze(stored, units)

    def _is_image(self, layout: Layout) -> bool:
        """Whether the spatial axes are the last dimensions, in order; one of size 1 may be a unit dimension there."""
        rank, spatial = self.product.x.rank, len(self.product.stride)
        if len(layout) not in (spatial + 1, spatial + 2):
            return False
        ends = zip(layout[-spatial:], range(rank - spatial, rank), strict=True)
        return all(have == axis or (have == UNIT and axis not in layout) for have, axis in ends)

    def _with_scaled_bias(self, tensors: StoredTensors[T], written: T, layout: Layout) -> T:
        """alpha · (x W) + beta · bias."""
        product, emitter = self.product, tensors.emitter
        assert product.bias is not None
        if product.alpha != 1:
            written = emitter.scale(written, product.alpha)
        if product.beta == 0:
            return written
        bias_layout = operand_layout(layout, product.bias.axes, self.result.rank - product.bias.rank)
        bias = tensors.get(product.bias, without_leading_units(bias_layout))
        return emitter.add(written, bias, product.beta)

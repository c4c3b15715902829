"""Products with a constant weight: finding them in an exported program, and writing them as convolutions or
as linear maps.

y[…, o] = Σ_i W[o, i] · x[…, i] + b[o]. With the channels stored second, W of shape (O, I, 1, 1) makes it a
1×1 convolution; with the channels last, W of shape (O, I) makes it a linear layer; with the channels anywhere
else, W multiplies from the left.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from onebyone.pytorch.graph.orders import (
    UNIT,
    Frame,
    Order,
    natural_frame,
    restrict_frame,
    strip_leading_units,
)
from onebyone.pytorch.graph.reshaping import reshaped, sizes_product
from onebyone.pytorch.graph.rules import Emitter, Free, Inputs, axes_of, shape, tensor

CHANNEL = -2  # the channel's place in an order that names the input's and the output's at once
aten = torch.ops.aten
POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def image_frame(full: Order) -> Frame:
    """The frame of a convolution's input: batch, channels, and at least two spatial axes, units before the
    others.

    Units in front of a single spatial axis keep (B, T, C) storage recognisable as a channels-last image (B,
    C, 1, T).

    >>> image_frame((0, CHANNEL, 1)), image_frame((CHANNEL, 1, 2))
    ((0, -2, -1, 1), (-1, -2, 1, 2))
    """
    at = full.index(CHANNEL)
    lead, trail = full[:at], full[at + 1 :]
    return (*(lead or (UNIT,)), CHANNEL, *(UNIT,) * max(0, 2 - len(trail)), *trail)


@dataclass(frozen=True)
class Product:
    """One product with a constant weight, told apart from how the graph spells it. Axes are logical ones.

    `x` is the operand that is not constant, its channels on axis `x_channel`; the result's are on
    `out_channel` (None where a vector weight leaves no such axis). `weight` is a matrix up to axes of size 1,
    outputs on `weight_out`, inputs on `weight_in`.
    """

    node: Node
    kind: str
    x: Node
    x_channel: int
    out_channel: int | None
    weight: Node
    weight_out: int | None
    weight_in: int
    bias: Node | None = None
    alpha: float = 1.0
    beta: float = 1.0
    groups: int = 1
    stride: tuple[int, ...] = ()

    @property
    def channels(self) -> tuple[Any, Any]:
        """(inputs, outputs)."""
        outs = 1 if self.out_channel is None else shape(self.node)[self.out_channel]
        return shape(self.x)[self.x_channel], outs

    @property
    def plain_bias(self) -> bool:
        """Whether the bias is one number for each output, added as it is."""
        if self.bias is None:
            return True
        size = shape(self.bias)
        return self.alpha == self.beta == 1 and len(size) == 1 and size[0] == self.channels[1]


@dataclass
class ProductRule(Free):
    """A product that is written as a convolution (`to="conv"`) or as a linear map; `convert` is False for one
    that already is.
    """

    product: Product
    to: str
    convert: bool
    merge_penalty: float = 0.05

    def _full_orders(self, out: Order) -> list[Order]:
        """`out` with CHANNEL in the channels' place; every place where the result has no such axis to tell
        it.
        """
        p = self.product
        if p.out_channel in out:
            return [tuple(CHANNEL if a == p.out_channel else a for a in out)]
        return [(*out[:i], CHANNEL, *out[i:]) for i in range(len(out), -1, -1)]

    def _x_order(self, full: Order) -> Order:
        channel = self.product.x_channel
        has = channel in axes_of(self.product.x)
        return tuple(channel if a == CHANNEL else a for a in full if a != CHANNEL or has)

    def _gone(self) -> set[int]:
        """Axes that a stride leaves a single place of; such a product is written in the original order."""
        kept = (*self.axes, self.product.x_channel)
        return {a for a in axes_of(self.product.x) if a not in kept}

    def _weight_order(self) -> Order:
        p = self.product
        return tuple(a for a in (p.weight_out, p.weight_in) if a in axes_of(p.weight))

    def _bias_order(self, out: Order) -> tuple[Order, ...]:
        bias = self.product.bias
        if bias is None:
            return ()
        if self.product.plain_bias:
            return (axes_of(bias),)
        shift = len(shape(self.node)) - len(shape(bias))
        return (tuple(a - shift for a in out if a - shift in axes_of(bias)),)

    def inputs_for(self, out: Order) -> list[Inputs]:
        if self._gone():
            return (
                [(axes_of(self.product.x), self._weight_order(), *self._bias_order(out))]
                if out == self.axes
                else []
            )
        xs = dict.fromkeys(self._x_order(full) for full in self._full_orders(out))
        return [(x, self._weight_order(), *self._bias_order(out)) for x in xs]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        if i != 0:
            return []
        if self._gone():
            return [self.axes]
        p = self.product
        if p.x_channel in order or p.out_channel not in self.axes:
            renamed = (p.out_channel if a == p.x_channel else a for a in order)
            return [tuple(a for a in renamed if a in self.axes)]
        assert p.out_channel is not None
        return [(*order[:k], p.out_channel, *order[k:]) for k in range(len(order) + 1)]

    def wanted(self) -> list[Order]:
        channel = self.product.out_channel
        if channel not in self.axes or self._gone():
            return [self.axes]
        rest = tuple(a for a in self.axes if a != channel)
        if self.to == "linear":
            return [(*rest, channel), self.axes]
        first = 1 if rest[:1] == (0,) else 0
        return [(*rest[:first], channel, *rest[first:]), self.axes]

    def penalty(self, out: Order, inputs: Inputs) -> float:
        full = self._full(out, inputs[0])
        lead, trail = full[: full.index(CHANNEL)], full[full.index(CHANNEL) + 1 :]
        if self.to == "linear":
            return self.merge_penalty if trail and self.product.groups == 1 else 0.0
        if lead in ((), (0,)):
            return 0.0
        if not trail:
            return self.merge_penalty
        return 0.0002 if len(lead) == 1 else 0.0003

    def _full(self, out: Order, x: Order) -> Order:
        if self._gone():
            channel = self.product.x_channel
            return tuple(CHANNEL if a == channel else a for a in sorted({*self.axes, channel}))
        return next(f for f in self._full_orders(out) if self._x_order(f) == x)

    # -- writing
    # ---------------------------------------------------------------------------------------------------------------

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        natural = out == self.axes and inputs[0] == axes_of(self.product.x)
        if natural and not self.convert:
            return super().emit(em, out, inputs)
        full = self._full(out, inputs[0])
        write = self._convolution if self.to == "conv" else self._linear
        bias = self.product.bias if self.product.plain_bias else None
        y, frame = write(em, full, bias)
        return (y, frame) if self.product.plain_bias else (self._scaled(em, y, frame), frame)

    def _x_frame(self, frame: Frame) -> Frame:
        """A frame with CHANNEL in it, for the input."""
        has = self.product.x_channel in axes_of(self.product.x)
        return tuple((self.product.x_channel if has else UNIT) if a == CHANNEL else a for a in frame)

    def _out_frame(self, frame: Frame) -> Frame:
        channel = self.product.out_channel
        has = channel is not None and channel in self.axes
        return tuple((channel if has else UNIT) if a == CHANNEL else a for a in frame)  # type: ignore[misc]

    def weight_frame(self, spatial: int) -> Frame:
        """The frame the weight is asked for: (O, I), and as many units as there are spatial axes."""
        p = self.product
        have = axes_of(p.weight)
        pair = tuple(UNIT if a is None or a not in have else a for a in (p.weight_out, p.weight_in))
        return (*pair, *(UNIT,) * spatial)

    def _bias(self, em: Emitter, bias: Node | None) -> Node | None:
        return None if bias is None else em.get(bias, (0,) if axes_of(bias) else (UNIT,))

    def _size(self, em: Emitter, axis: int) -> Any:
        """The size of an axis that the product leaves alone."""
        return em.size(self.product.x, axis)

    def _convolution(self, em: Emitter, full: Order, bias: Node | None) -> tuple[Node, Frame]:
        at = full.index(CHANNEL)
        lead, trail = full[:at], full[at + 1 :]
        merged = len(lead) > 1 or len(trail) > 3
        spatial = max(2, len(trail)) if len(trail) <= 3 else 2
        frame = image_frame(full)
        x = em.get(self.product.x, self._x_frame(full if merged else frame))
        if merged:
            before = sizes_product(em, [self._size(em, a) for a in lead])
            after = [self._size(em, a) for a in trail]
            after = after if len(after) <= 3 else [sizes_product(em, after)]
            x = reshaped(em, x, [before, self.product.channels[0], *after, *[1] * (spatial - len(after))])
        target = aten.conv2d.default if spatial == 2 else aten.conv3d.default
        weight = em.get(self.product.weight, self.weight_frame(spatial))
        y = em.call(target, (x, weight, self._bias(em, bias)))
        if merged:
            sizes = [self.product.channels[1] if a == CHANNEL else self._size(em, a) for a in full]
            return reshaped(em, y, sizes), self._out_frame(full)
        return y, self._out_frame(frame)

    def _linear(self, em: Emitter, full: Order, bias: Node | None) -> tuple[Node, Frame]:
        at = full.index(CHANNEL)
        lead, trail = full[:at], full[at + 1 :]
        p = self.product
        x = self._subsampled(em, full)
        weight = em.get(p.weight, self.weight_frame(0))
        if not trail and p.groups == 1:
            return em.call(aten.linear.default, (x, weight, self._bias(em, bias))), self._out_frame(full)
        inputs, outputs = p.channels
        front, spots = self._spots(em, lead), self._spots(em, trail)
        split = [p.groups] if p.groups > 1 else []
        if len(spots) != 1 or split:
            x = reshaped(em, x, [*front, *split, inputs // p.groups, sizes_product(em, spots)])
        if split:
            weight = em.call(
                aten.reshape.default, (weight, [p.groups, outputs // p.groups, inputs // p.groups])
            )
        y = em.call(aten.matmul.default, (weight, x))
        if len(spots) != 1 or split:
            y = reshaped(em, y, [*front, outputs, *spots])
        if bias is not None:
            y = em.call(
                aten.add.Tensor,
                (y, em.get(bias, (*((0,) if axes_of(bias) else (UNIT,)), *(UNIT,) * len(spots)))),
            )
        return y, self._out_frame(full)

    def _strided(self) -> dict[int, int]:
        """Steps along logical spatial axes."""
        first = len(shape(self.product.x)) - len(self.product.stride)
        return {first + i: s for i, s in enumerate(self.product.stride) if s != 1}

    def _spots(self, em: Emitter, axes: Order) -> list[Any]:
        """Sizes of axes of the result."""
        return [self._after(em, a) for a in axes]

    def _after(self, em: Emitter, axis: int) -> Any:
        size = shape(self.node)[axis]
        if isinstance(size, int):
            return size
        step = self._strided().get(axis, 1)
        given = self._size(em, axis)
        if step == 1:
            return given
        return em.call(
            operator.add, (em.call(operator.floordiv, (em.call(operator.sub, (given, 1)), step)), 1)
        )

    def _subsampled(self, em: Emitter, full: Order) -> Node:
        """The input in order `full`. A stride keeps every s-th place: a 1×1 average pool of stride s where the
        axes are those of an image, slices elsewhere.
        """
        p, gone, steps = self.product, self._gone(), self._strided()
        value = tensor(p.x)
        assert value is not None
        frame = natural_frame(value.dim(), axes_of(p.x)) if gone else self._x_frame(full)
        x = em.get(p.x, frame)
        if not steps:
            return x
        spatial = len(p.stride)
        places = range(value.dim() - spatial, value.dim())
        # an axis of size one stands anywhere as a unit, so a place that is in the frame must be at its own spot
        as_image = all(
            a == place or (a == UNIT and place not in frame)
            for a, place in zip(frame[-spatial:], places, strict=False)
        )
        if as_image and len(frame) in (spatial + 1, spatial + 2) and not value.is_complex():
            x = em.call(POOLS[spatial], (x, [1] * spatial, list(p.stride)))
        else:
            for axis, step in steps.items():
                if axis in frame:
                    x = em.call(aten.slice.Tensor, (x, frame.index(axis), 0, 2**63 - 1, step))
        units = [i for i, a in enumerate(frame) if a in gone or (a == UNIT and i != p.x_channel)]
        return em.call(aten.squeeze.dims, (x, units)) if gone else x

    def _scaled(self, em: Emitter, y: Node, frame: Frame) -> Node:
        """α·(x W) + β·bias, as addmm has it."""
        p = self.product
        assert p.bias is not None
        if p.alpha != 1:
            y = em.call(aten.mul.Tensor, (y, p.alpha))
        if p.beta == 0:
            return y
        shift = len(shape(self.node)) - len(shape(p.bias))
        bias = em.get(p.bias, strip_leading_units(restrict_frame(frame, axes_of(p.bias), shift)))
        return em.call(aten.add.Tensor, (y, bias), {"alpha": p.beta})

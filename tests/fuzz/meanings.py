"""What each operator means for single elements: functions and pixels in, functions and pixels out, or a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.fuzz.elements import (
    Illegal,
    Never,
    Numbers,
    Open,
    Value,
    fresh,
    map_steps,
    meet,
    renamed,
    row_jump,
    same_rows,
    spread,
)
from tests.fuzz.moves import MOVES


@dataclass
class Reading:
    """One reading of a description."""

    shapes: list[tuple[int, ...]]
    padded: set[int] = field(default_factory=set)


# Rules: (reading, operator number, inputs, arguments, shape of the result) -> value


def _elementwise(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    return replace(v[0], function=renamed(v[0].function[..., None]))


def _conv(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    if a.get("dims", v[0].axes) != v[0].axes:  # a convolution along something else: each window by itself
        base = v[0].pixel.reshape(-1, v[0].axes)[0]
        return _at_one_position(v[0], shape, base)
    kernel = each(a["kernel"], v[0].axes)
    dilation = each(a.get("dilation", 1), v[0].axes)
    padding = a.get("padding", 0)
    if padding == "same":
        before = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        if any(d * (k - 1) for k, d in zip(kernel, dilation, strict=True)):
            r.padded.add(n + 1)
    else:
        before = [0] * v[0].axes if padding == "valid" else each(padding, v[0].axes)
        if any(before):
            r.padded.add(n + 1)
    return _slid(v[0], shape, before, each(a.get("stride", 1), v[0].axes), fresh(shape[0]), one_start=True)


def _at_one_position(v: Value, shape: tuple[int, ...], base: Numbers) -> Value:
    function = fresh(math.prod(shape)).reshape(shape)
    return Value(function, np.broadcast_to(base, (*shape, v.axes)), v.jump)


def _slid(
    v: Value,
    shape: tuple[int, ...],
    before: list[int],
    stride: list[int],
    functions: Numbers,
    *,
    one_start: bool,
) -> Value:
    """A sliding operator over a map: place q of the result reads from place q·stride - before on."""
    steps = map_steps(v)
    start = v.pixel[(slice(None), *(0,) * v.axes)]  # (C, axes)
    start = np.broadcast_to(start[:1], (shape[0], v.axes)) if one_start else start
    where = np.stack(np.indices(shape)[1:], -1)
    origin = start.reshape(shape[0], *(1,) * v.axes, v.axes)
    pixel = origin + (where * np.asarray(stride) - np.asarray(before)) * np.asarray(steps)
    function = np.broadcast_to(functions.reshape(-1, *(1,) * v.axes), shape)
    jump = tuple(s * t for s, t in zip(steps, stride, strict=True))
    return Value(np.ascontiguousarray(function), pixel, jump)


def _pool(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    axes = v[0].axes
    if len(a["kernel"]) != axes:
        raise Open("a pool over other axes than the image's")
    kernel, stride, padding = (
        list(a["kernel"]),
        each(a["stride"] or a["kernel"], axes),
        each(a["padding"], axes),
    )
    dilation = each(a.get("dilation", 1), axes)
    if any(padding):
        r.padded.add(n + 1)
    for k, s, p, d, size, out in zip(
        kernel, stride, padding, dilation, v[0].shape[1:], shape[1:], strict=True
    ):
        last = (out - 1) * s - p + (k - 1) * d  # the last tap of the last place
        if last >= size + p:
            r.padded.add(n + 1)
    return _slid(v[0], shape, padding, stride, fresh(shape[0]), one_start=False)


def _adaptive(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    """Bin i of n places in m bins is [⌊i·n/m⌋, ⌈(i + 1)·n/m⌉): its function is told by its size."""
    if len(a["out"]) != v[0].axes:
        raise Open("a pool over other axes than the image's")
    steps = map_steps(v[0])
    sizes = v[0].shape[1:]
    if shape[1:] == sizes:
        return v[0]
    starts = [[i * s // m for i in range(m)] for s, m in zip(sizes, shape[1:], strict=True)]
    ends = [[-(-(i + 1) * s // m) for i in range(m)] for s, m in zip(sizes, shape[1:], strict=True)]
    where = np.indices(shape)
    keys = [where[0]]
    pixel = np.zeros((*shape, v[0].axes), dtype=np.int64)
    for axis, (lo, hi, step) in enumerate(zip(starts, ends, steps, strict=True)):
        q = where[axis + 1]
        keys.append((np.asarray(hi) - np.asarray(lo))[q])
        pixel[..., axis] = np.asarray(lo)[q] * step
    pixel = pixel + v[0].pixel[(slice(None), *(slice(0, 1),) * v[0].axes)]
    # bins may be held as channels of one place, or apart from others between them: constants by position do no harm
    return Value(renamed(np.stack(keys, -1)), pixel, steps, partial=True)


def _linear(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    _, pixel = same_rows(v[0], (len(v[0].shape) - 1,))
    function = np.broadcast_to(fresh(shape[-1]), shape)
    base = np.broadcast_to(pixel[..., :1, :], (*shape, v[0].axes))
    return Value(function, base, row_jump(v[0], pixel))


def _row_norm(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    """Statistics over each row, every element by itself: layer norm, softmax."""
    rank = len(v[0].shape)
    axes = (a["axis"] % rank,) if "axis" in a else tuple(range(rank - a["count"], rank))
    function, pixel = same_rows(v[0], axes)
    lead, sizes = function.shape[:-1], [v[0].shape[i] for i in axes]
    made = np.broadcast_to(fresh(function.shape[-1]), function.shape).reshape(*lead, *sizes)
    base = np.broadcast_to(pixel[..., :1, :], pixel.shape).reshape(*lead, *sizes, v[0].axes)
    made = np.moveaxis(made, range(-len(axes), 0), axes)
    base = np.moveaxis(base, range(-len(axes) - 1, -1), axes)
    return Value(made, base, row_jump(v[0], pixel))


def _reduce(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    axes = tuple(sorted(d % len(v[0].shape) for d in a["axes"]))
    function = np.moveaxis(v[0].function, axes, range(-len(axes), 0))
    lead = function.shape[: -len(axes)]
    function = function.reshape(*lead, -1)
    pixel = np.moveaxis(v[0].pixel, axes, range(-len(axes) - 1, -1)).reshape(*lead, -1, v[0].axes)
    offsets = (pixel - pixel[..., :1, :]).reshape(-1, function.shape[-1] * v[0].axes)
    by_channel = (function == function[..., :1]).all() and (offsets == offsets[:1]).all()
    if by_channel:
        made, base = renamed(function[..., :1]), pixel[..., 0, :]
        return Value(made.reshape(shape), base.reshape(*shape, v[0].axes), v[0].jump)
    try:
        function, pixel = same_rows(v[0], axes)
    except Illegal:
        _reduced_in_turn(v[0], function, pixel)
        raise
    made = np.broadcast_to(fresh(1), lead)
    return Value(made.reshape(shape), pixel[..., 0, :].reshape(*shape, v[0].axes), row_jump(v[0], pixel))


def _reduced_in_turn(v: Value, function: Numbers, pixel: Numbers) -> None:
    """Open where rows that differ may still be reduced: a reduction has no weights, so it is also its elements met one
    after another, as two values meet (the maximum over the places of two maps put end to end is that of both)."""
    columns = [(function[..., r], pixel[..., r, :]) for r in range(function.shape[-1])]
    _, holds = meet(list(columns), v)
    if holds:
        raise Open("rows that differ, reduced without weights")


def _two(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    left, right = spread(v[0], shape), spread(v[1], shape)
    made, holds = meet([(left.function, left.pixel), (right.function, right.pixel)], left)
    if not holds and _places_alike(left, right):
        raise Open("maps whose channels begin at different places")
    if not holds:
        wide = v[1].shape == shape
        pooled = (not v[0].spans() and wide) or (not v[1].spans() and v[0].shape == shape)
        context = (
            "global context"
            if pooled and not (v[0].spans() and v[1].spans())
            else "two maps that lie differently"
        )
        reason = f"meeting {context}"
        if v[0].partial or v[1].partial or (left.repeats() and right.repeats()):
            raise Open(reason)
        raise Illegal(reason)
    jump = _lattice(v[0])
    if jump != _lattice(v[1]):
        if left.spans():
            raise Open("different strides meet at one place of an axis")
        jump = _common(v)  # at one place: the windows that both have
    return Value(made, left.pixel, jump, v[0].partial or v[1].partial)


def _common(values: list[Value]) -> tuple[int, ...]:
    return tuple(map(math.lcm, *(_lattice(v) for v in values)))


def _places_alike(a: Value, b: Value) -> bool:
    """Whether both are maps, channel by channel, in the same steps: then they meet, wherever their channels begin."""
    try:
        steps = zip(map_steps(a), map_steps(b), a.shape[1:], strict=True)
        return all(x == y or places == 1 for x, y, places in steps)
    except Illegal:
        return False


def _lattice(v: Value) -> tuple[int, ...]:
    try:
        return map_steps(v)
    except Illegal:
        return v.jump


def _by_constant(v: Value, numbers: Numbers) -> tuple[Value, bool]:
    made, holds = meet([(v.function, v.pixel), (numbers, None)], v)
    same = (numbers.reshape(v.shape[0], -1) == numbers.reshape(v.shape[0], -1)[:, :1]).all()
    if not holds and same and _places_alike(v, v):
        raise Open("a map whose channels begin at different places")
    return replace(v, function=made), holds


def _constant(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    numbers = np.broadcast_to(np.arange(math.prod(a["shape"])).reshape(a["shape"]), shape)
    wide = spread(v[0], shape)
    made, holds = _by_constant(wide, numbers)
    if not holds:
        raise (Open if v[0].partial or wide.repeats() else Illegal)("a constant that depends on the position")
    return made


def _prelu(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    count = (a["count"], *(1,) * (len(shape) - 1))
    return _constant(r, n, v, {"shape": count}, shape)


def _batch_norm(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    numbers = np.broadcast_to(np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)), shape)
    made, holds = _by_constant(v[0], numbers)
    if holds:
        return made
    if len(shape) == 1:
        return replace(v[0], pending=True)
    raise (Open if v[0].partial or v[0].repeats() else Illegal)("a constant that depends on the position")


def _group_norm(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    if v[0].spans() and len(shape) > 1:
        raise Illegal("statistics over the window's places: global context")
    base = v[0].pixel.reshape(-1, v[0].axes).min(0)
    return _at_one_position(v[0], shape, base)


def _deviation(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    """A standard deviation over places, which the networks multiply each place by."""
    if v[0].spans():
        raise Never("statistics over the window's places that act on each place: global context")
    raise Open("the deviation of one number")


def _joined(v: list[Value], join: Any) -> Value:
    one = all(x.shape == () or not x.spans() or len(x.shape) == 1 for x in v)
    lattices = {_lattice(x) for x in v}
    if len(lattices) > 1 and not one:
        loose = any(x.partial for x in v) or max(v[0].shape[1:]) == 1
        raise (Open if loose else Illegal)("maps of different strides side by side")
    function, pixel = (join([getattr(x, part) for x in v]) for part in ("function", "pixel"))
    # vectors of different kinds side by side may be held at one place, where constants by position do no harm
    loose = len(function.shape) == 1 and len({x.function.tobytes() for x in v}) > 1
    return Value(function, pixel, _common(v), loose or any(x.partial for x in v))


def _cat(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    axis = a["axis"] % len(v[0].shape)
    return _joined(v, lambda parts: np.concatenate(parts, axis))


def _stack(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    axis = a["axis"] % (len(v[0].shape) + 1)
    return _joined(v, lambda parts: np.stack(parts, axis))


def _pad(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    amounts = list(a["amounts"]) + [0] * (2 * v[0].axes - len(a["amounts"]))
    before = [amounts[2 * i] for i in range(v[0].axes)][::-1]
    if any(x > 0 for x in amounts):
        r.padded.add(n + 1)
    crops = [-min(0, a) - min(0, b) for a, b in zip(amounts[0::2], amounts[1::2], strict=True)][::-1]
    if any(crop >= size for crop, size in zip(crops, v[0].shape[1:], strict=True)):
        raise Open("nothing but padding is left")
    made = _slid(v[0], shape, before, [1] * v[0].axes, fresh(shape[0]), one_start=False)
    return replace(made, partial=v[0].partial or any(crops))


def _glu(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
    axis = a["axis"] % len(v[0].shape)
    half = v[0].shape[axis] // 2
    parts = [v[0].moved(lambda x, s=s: x.take(range(s, s + half), axis)) for s in (0, half)]
    return _two(r, n, parts, a, shape)


def _move(kind: str) -> Any:
    def rule(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
        return v[0].moved(lambda ids: MOVES[kind](ids, a))

    return rule


def _never(reason: str) -> Any:
    def rule(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
        raise Never(reason)

    return rule


def _open(reason: str) -> Any:
    def rule(r: Reading, n: int, v: list[Value], a: dict[str, Any], shape: tuple[int, ...]) -> Value:
        raise Open(reason)

    return rule


def each(value: Any, axes: int) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value] * axes


RULES: dict[str, Any] = {
    **{kind: _move(kind) for kind in MOVES},
    "dropout": _elementwise,
    "activation": _elementwise,
    "in_place": _elementwise,
    "conv": _conv,
    "max_pool": _pool,
    "avg_pool": _pool,
    "adaptive": _adaptive,
    "linear": _linear,
    "matmul": _linear,
    "layer_norm": _row_norm,
    "rms_norm": _row_norm,
    "softmax": _row_norm,
    "reduce": _reduce,
    "two": _two,
    "add_": _two,
    "glu": _glu,
    "constant": _constant,
    "prelu": _prelu,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "cat": _cat,
    "stack": _stack,
    "pad": _pad,
    "transposed": _never("a transposed convolution"),
    "instance_norm": _never("global context: statistics over the window's places"),
    "batch_statistics": _never("statistics of the batch"),
    "upsample": _open("a map made finer"),
    "mix": _never("samples of the batch are mixed"),
    "merge": _open("the batch is merged with another axis for a while"),
    "attention": _never("two values that depend on the image are multiplied as matrices"),
    "std": _deviation,
}

"""Blocks on maps, drawn: mostly what networks are made of, odd parts thrown in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.drawing import Drawing
from tests.fuzz.networks import ACTIVATIONS, IN_PLACE, TWO


def _sizes(b: Drawing, x: int, high: int) -> tuple[int, ...]:
    return tuple(b.number(1, min(high, n)) for n in b.shape(x)[1:])


def _groups(b: Drawing, channels: int, out: int) -> int:
    return int(b.draw([g for g in (1, 1, 2, 3) if channels % g == 0 and out % g == 0]))


def conv(b: Drawing, x: int, kernel: tuple[int, ...] | None = None, out: int = 0, **more: Any) -> int:
    kernel = kernel or _sizes(b, x, 3)
    out = out or b.number(1, 6)
    args: dict[str, Any] = {
        "out": out,
        "kernel": kernel,
        "groups": _groups(b, b.shape(x)[0], out),
        "bias": b.chance(80),
    }
    if b.chance(30):
        args["stride"] = tuple(b.number(1, 3) for _ in kernel)
    if b.chance(15):
        args["dilation"] = tuple(b.number(1, 2) for _ in kernel)
    if b.chance(12):
        args["padding"] = b.draw([1, tuple(b.number(0, 2) for _ in kernel), "valid", "same"])
        if b.chance(20):
            args["mode"] = b.draw(["reflect", "replicate", "circular"])
    return b.put("conv", x, **{**args, **more})


def pointwise(b: Drawing, x: int) -> int:
    out = b.number(1, 6)
    args: dict[str, Any] = {"out": out, "kernel": (1,) * b.axes, "groups": _groups(b, b.shape(x)[0], out)}
    if b.chance(20):
        args["stride"] = tuple(b.number(1, 2) for _ in b.spatial)
    if b.chance(5):
        args["padding"] = 1
    return b.put("conv", x, **args)


def pool(b: Drawing, x: int) -> int:
    kernel = _sizes(b, x, 3)
    padding = tuple(b.number(0, k // 2) for k in kernel) if b.chance(12) else (0,) * b.axes
    stride = None if b.chance(40) else tuple(b.number(1, 3) for _ in kernel)
    if b.chance(50):
        dilation = tuple(b.number(1, 2) for _ in kernel) if b.chance(15) else (1,) * b.axes
        return b.put(
            "max_pool", x, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=b.chance(35)
        )
    return b.put(
        "avg_pool", x, kernel=kernel, stride=stride, padding=padding, ceil=b.chance(35), count=b.chance(50)
    )


def pointwise_operator(b: Drawing, x: int) -> int:
    """An activation, norm, dropout or slope: any rank."""
    kind = b.draw(
        ["activation", "activation", "activation", "in_place", "batch_norm", "batch_norm", "dropout", "prelu"]
    )
    if kind == "activation":
        return b.put("activation", x, name=b.draw(sorted(ACTIVATIONS)))
    if kind == "in_place":  # never on the image itself, which the caller owns
        return b.put("in_place", b.put("activation", x, name="scaled"), name=b.draw(sorted(IN_PLACE)))
    if kind == "batch_norm":
        return b.put("batch_norm", x, affine=b.chance(80))
    return b.put("prelu", x, count=b.draw([1, b.shape(x)[0]])) if kind == "prelu" else b.put("dropout", x)


def channels_last(b: Drawing, x: int) -> int:
    back = (b.axes, *range(b.axes))
    y = b.put("permute", x, order=(*b.spatial, 0))
    for _ in range(b.number(1, 3)):
        y = row_operator(b, y)
    return y if b.chance(10) else b.put("permute", y, order=back)


def row_operator(b: Drawing, x: int) -> int:
    """Something over the last axis."""
    width = b.shape(x)[-1]
    kind = b.draw(
        [
            "linear",
            "linear",
            "layer_norm",
            "activation",
            "constant",
            "softmax",
            "matmul",
            "rms_norm",
            "residual",
        ]
    )
    if kind == "linear":
        return b.put("linear", x, out=b.number(1, 6), bias=b.chance(70))
    if kind in ("layer_norm", "rms_norm"):
        return b.put(kind, x, count=2 if b.chance(8) else 1)
    if kind == "activation":
        return b.put("activation", x, name="gelu")
    if kind == "constant":
        return b.put("constant", x, shape=(width,), how=b.draw(["add", "mul"]))
    if kind == "residual":
        return b.put("two", x, b.put("linear", x, out=width), how="add")
    if kind == "softmax":
        return b.put("softmax", x, axis=len(b.shape(x)) - 1, log=b.chance(30))
    return b.put("matmul", x, out=b.number(1, 5))


def rearranged(b: Drawing, x: int) -> int:
    c, *size = b.shape(x)
    kind = b.draw(
        [
            "shuffle",
            "chunk",
            "swap",
            "flip",
            "roll",
            "strided",
            "crop",
            "unshuffle",
            "glu",
            "fold",
            "pixel_shuffle",
        ]
    )
    axis = b.draw(b.spatial)
    if kind == "shuffle":
        return b.put("shuffle", x, groups=b.draw([g for g in (2, 3, 1) if c % g == 0]))
    if kind == "chunk":
        return b.put("chunk", x, parts=2, axis=0 if b.chance(80) else axis, take=b.number(0, 1))
    if kind == "swap":
        if b.chance(20) and b.axes > 1:
            return b.put("permute", x, order=(0, 2, 1, *range(3, b.axes + 1)))
        first = b.put("chunk", x, parts=2, axis=0, take=0)
        return b.put("cat", b.put("chunk", x, parts=2, axis=0, take=1), first, axis=0)
    if kind == "flip":
        return b.put("flip", x, axes=(0,) if b.chance(60) else (axis,))
    if kind == "roll":
        return b.put("roll", x, by=1, axis=0 if b.chance(60) else axis)
    if kind == "strided":
        return b.put("slice", x, axis=axis, start=b.number(0, 1), stop=None, step=2)
    if kind == "crop":
        return cropped(b, x, tuple(max(1, n - b.number(0, 2)) for n in size))
    if kind == "unshuffle":
        return b.put("unshuffle", x, by=2) if b.axes == 2 else x
    if kind == "glu":
        return b.put("glu", x, axis=0)
    if kind == "fold":
        return b.put("reshape", x, shape=(c * size[0], *size[1:], 1))
    return b.put("pixel_shuffle", x, by=2) if b.axes == 2 and b.chance(20) else x


def cropped(b: Drawing, x: int, size: Sequence[int]) -> int:
    """A crop to a size, from the middle or from anywhere."""
    for axis, n in enumerate(size):
        have = b.shape(x)[axis + 1]
        if have > n:
            start = (have - n) // 2 if b.chance(70) else b.number(0, have - n)
            x = b.put("slice", x, axis=axis + 1, start=start, stop=start + n, step=1)
    return x


def met(b: Drawing, x: int) -> int:
    """Two branches that meet: residuals, concatenations, gates; by strides that agree or not."""
    left = block(b, x, SIMPLE) if b.chance(60) else x
    right = block(b, x, SIMPLE)
    if b.chance(30):
        right = block(b, right, SIMPLE)
    if not (b.is_map(left) and b.is_map(right)):
        return right
    size = tuple(map(min, b.shape(left)[1:], b.shape(right)[1:]))
    left, right = cropped(b, left, size), cropped(b, right, size)
    if b.chance(40):
        return b.put("cat", left, right, axis=0 if b.chance(85) else b.draw(b.spatial))
    if b.shape(left)[0] != b.shape(right)[0]:
        left = conv(b, left, (1,) * b.axes, b.shape(right)[0], stride=1, padding=0)
    return b.put("two", left, right, how=b.draw(sorted(TWO)))


def residual(b: Drawing, x: int) -> int:
    c, *size = b.shape(x)
    kernel = tuple(b.draw([1, 3]) for _ in size)
    padded = b.chance(25)
    y = conv(b, x, kernel, c, stride=1, dilation=1, padding=tuple(k // 2 for k in kernel) if padded else 0)
    y = b.put("batch_norm", y) if b.chance(40) else y
    if b.chance(30):  # the same convolution again, or another with the same weight
        last = len(b.net.description.ops) - 1
        tied = next((n for n in range(last, -1, -1) if b.net.description.ops[n].kind == "conv"), None)
        if tied is not None and b.shape(y)[0] == c:
            args = b.net.description.ops[tied].args
            share = {"share": "weight"} if b.chance(40) else {}
            y = b.put("conv", y, **{**args, **share, "tied": args.get("tied", tied)})
    x = cropped(b, x, b.shape(y)[1:]) if b.chance(90) else x
    if b.chance(15) and y > x:
        return b.put("add_", y, x)
    return b.put("two", x, y, how="add")


def constant(b: Drawing, x: int) -> int:
    """A constant: one a channel, one for all, or a position embedding."""
    shape = b.shape(x)
    how = b.draw(["add", "mul"])
    kind = b.draw(["channel", "channel", "one", "place", "axis"])
    if kind == "channel":
        return b.put("constant", x, shape=(shape[0], *(1,) * (len(shape) - 1)), how=how)
    if kind == "one":
        return b.put("constant", x, shape=(1,), how=how)
    return b.put("constant", x, shape=shape if kind == "place" else (shape[-1],), how=how)


def context(b: Drawing, x: int) -> int:
    """A value of the whole window, or of all channels, that acts on every place."""
    if b.chance(35):
        return b.put(
            "two", x, b.put("reduce", x, how=b.draw(["mean", "amax"]), axes=(0,), keep=True), how="sub"
        )
    y = b.put("reduce", x, how=b.draw(["mean", "amax"]), axes=tuple(b.spatial), keep=True)
    if b.chance(60):
        y = conv(b, y, (1,) * b.axes, b.shape(x)[0], stride=1, padding=0, dilation=1)
        y = b.put("activation", y, name="sigmoid")
    return b.put("two", x, y, how=b.draw(["mul", "sub"]))


def window_pool(b: Drawing, x: int) -> int:
    """Adaptive pools that leave several places, and pools along some axes."""
    if b.chance(60):
        out = tuple(b.number(1, n) for n in b.shape(x)[1:])
        return b.put("adaptive", x, how=b.draw(["mean", "max"]), out=out)
    return b.put(
        "reduce", x, how=b.draw(["mean", "amax", "sum", "amin"]), axes=(b.draw(b.spatial),), keep=True
    )


def padded(b: Drawing, x: int) -> int:
    amounts = tuple(b.draw([0, 1, 0, -1]) for _ in range(2 * b.axes))
    if b.chance(30) and all(n >= 0 for n in amounts):
        return b.put("pad", x, amounts=amounts, mode=b.draw(["reflect", "replicate", "circular"]))
    return b.put("pad", x, amounts=amounts)


def foreign(b: Drawing, x: int, kind: str) -> int:
    """A convolution or a pool of another number of axes than the image has."""
    if b.axes == 2:
        y = b.put("flatten", x, start=1)
        if kind == "foreign_pool":
            return b.put("max_pool", y, kernel=(2,), stride=None, padding=0, dilation=1, ceil=False)
        return b.put("conv", y, out=2, kernel=(b.number(1, 2),), dims=1)
    if kind == "foreign_pool":
        return b.put("avg_pool", x, kernel=(2, 2), stride=None, padding=0, ceil=False, count=True)
    return x


def wild(b: Drawing, x: int) -> int:
    """What should be refused, mostly."""
    kind = b.draw(["mix", "instance_norm", "group_norm", "batch_statistics", "transposed", "upsample", "merge", "std",
                   "linear", "softmax", "foreign", "foreign_pool", "layer_norm", "attention"])  # fmt: skip
    if kind == "mix":
        return b.put("mix", x, how=b.draw(["flip", "mean", "softmax", "roll"]))
    if kind == "group_norm":
        return b.put("group_norm", x, groups=b.draw([g for g in (1, 2, 3) if b.shape(x)[0] % g == 0]))
    if kind == "transposed":
        return b.put("transposed", x, out=2)
    if kind == "std":
        return b.put("two", x, b.put("std", x, axes=tuple(b.spatial)), how="mul")
    if kind == "linear":
        return b.put("linear", x, out=3)
    if kind == "softmax":
        return b.put("softmax", x, axis=b.number(0, b.axes))
    if kind == "layer_norm":
        return b.put("layer_norm", x, count=b.number(1, len(b.shape(x))))
    if "foreign" in kind:
        return foreign(b, x, kind)
    if kind == "attention":
        y = b.put("permute", b.put("flatten", x, start=1), order=(1, 0))
        return b.put("attention", y)
    return b.put(kind, x)


SIMPLE: tuple[tuple[int, Callable[[Drawing, int], int]], ...] = (
    (8, conv), (3, pointwise), (4, pool), (6, pointwise_operator), (2, rearranged),
)  # fmt: skip
BLOCKS = (
    *SIMPLE, (3, channels_last), (2, rearranged), (4, met), (4, residual), (2, constant), (1, context),
    (1, window_pool), (1, padded), (1, wild),
)  # fmt: skip


def block(b: Drawing, x: int, among: Sequence[tuple[int, Callable[[Drawing, int], int]]] = BLOCKS) -> int:
    """One block on a map."""
    return int(b.draw([f for weight, f in among for _ in range(weight)])(b, x))

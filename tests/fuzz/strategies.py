"""Hypothesis strategies that draw descriptions of networks: trunks of blocks, heads, operators on vectors."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.blocks import SIMPLE, block, conv, pointwise_operator, row_operator
from tests.fuzz.drawing import Drawing
from tests.fuzz.networks import Description, Op


def head(b: Drawing, x: int) -> int:
    """From a map to a vector."""
    kinds = ["global", "global", "adaptive", "tokens", "place", "permuted", "two steps", "multi"]
    kind = b.draw(["flatten"] * 4 + kinds)
    if kind == "global":
        keep = b.chance(40)
        y = b.put("reduce", x, how=b.draw(["mean", "mean", "amax", "sum"]), axes=tuple(b.spatial), keep=keep)
        return b.put("flatten", y, start=0) if keep else y
    if kind == "adaptive":
        y = b.put("adaptive", x, how=b.draw(["mean", "max"]), out=tuple(b.number(1, 3) for _ in b.spatial))
        return b.put("flatten", y, start=0)
    if kind == "tokens":
        y = b.put("permute", b.put("flatten", x, start=1), order=(1, 0))
        for _ in range(b.number(1, 3)):
            y = row_operator(b, y)
        if b.chance(10):
            y = b.put("constant", y, shape=b.shape(y), how="add")
        return (
            b.put("reduce", y, how="mean", axes=(0,), keep=False)
            if b.chance(60)
            else b.put("flatten", y, start=0)
        )
    if kind == "place":
        for axis in reversed(b.spatial):
            x = b.put("select", x, axis=axis, index=b.number(0, b.shape(x)[axis] - 1))
        return x
    if kind == "permuted":
        order = b.random.sample(range(len(b.shape(x))), len(b.shape(x)))
        return b.put("flatten", b.put("permute", x, order=tuple(order)), start=0)
    if kind == "multi":
        first = b.put("flatten", x, start=0)
        second = b.put(
            "reduce", block(b, x, SIMPLE), how=b.draw(["mean", "amax"]), axes=tuple(b.spatial), keep=False
        )
        return b.put("cat", first, second, axis=0)
    if kind == "two steps" and b.axes > 1:
        return b.put("flatten", b.put("flatten", x, start=1), start=0)
    return b.put("flatten", x, start=0)


def vector_operator(b: Drawing, x: int) -> int:
    """One operator on a vector."""
    return int(b.draw([f for weight, f in VECTOR for _ in range(weight)])(b, x))


def _vector_plain(b: Drawing, x: int) -> int:
    (width,) = b.shape(x)
    makers: dict[str, Callable[[], int]] = {
        "layer_norm": lambda: b.put("layer_norm", x, count=1),
        "softmax": lambda: b.put("softmax", x, axis=0),
        "constant": lambda: b.put("constant", x, shape=b.draw([(width,), (1,)]), how=b.draw(["add", "mul"])),
        "cat": lambda: b.put("cat", x, b.put("activation", x, name="neg") if b.chance(50) else x, axis=0),
        "flip": lambda: b.put("flip", x, axes=(0,)),
        "roll": lambda: b.put("roll", x, by=1, axis=0),
        "chunk": lambda: b.put("chunk", x, parts=2, axis=0, take=b.number(0, 1)),
        "glu": lambda: b.put("glu", x, axis=0),
        "matmul": lambda: b.put("matmul", x, out=b.number(1, 6)),
        "group_norm": lambda: b.put("group_norm", x, groups=b.draw([g for g in (1, 2, 3) if width % g == 0])),
        "mix": lambda: b.put("mix", x, how="mean") if b.chance(20) else x,
    }
    return makers[b.draw(sorted(makers))]()


def _vector_linear(b: Drawing, x: int) -> int:
    return b.put("linear", x, out=b.number(1, 8), bias=b.chance(80))


def _vector_residual(b: Drawing, x: int) -> int:
    y = b.put("linear", x, out=b.shape(x)[0]) if b.chance(70) else b.put("activation", x, name="tanh")
    return b.put("two", x, y, how=b.draw(["add", "mul"]))


def _vector_as_map(b: Drawing, x: int) -> int:
    y = b.put("reshape", x, shape=(b.shape(x)[0], *(1,) * b.axes))
    return b.put("flatten", conv(b, y, (1,) * b.axes, stride=1), start=0)


def _vector_norms(b: Drawing, x: int) -> int:
    """A batch norm on a vector, something that only moves elements, a linear layer."""
    y = b.put("batch_norm", x, affine=b.chance(80))
    between = b.draw(["dropout", "flip", "roll", "", "", ""])
    more: dict[str, Any] = {"flip": {"axes": (0,)}, "roll": {"by": 1, "axis": 0}}.get(between, {})
    return _vector_linear(b, b.put(between, y, **more) if between else y)


def _vector_tied(b: Drawing, x: int) -> int:
    """A linear layer that was there before, again; or another with its weight."""
    ops, layers = b.net.description.ops, b.net.layers
    plain = [n for n, op in enumerate(ops) if op.kind == "linear" and "tied" not in op.args]
    same = [n for n in plain if layers[str(n)].in_features == b.shape(x)[-1]]
    if not same:
        return x
    to = b.draw(same)
    if b.chance(60):
        return b.put("linear", x, tied=to)
    return b.put("linear", x, out=layers[str(to)].out_features, tied=to, share="weight")


VECTOR: tuple[tuple[int, Callable[[Drawing, int], int]], ...] = (
    (3, _vector_linear), (4, pointwise_operator), (7, _vector_plain), (2, _vector_residual), (1, _vector_as_map),
    (1, _vector_norms), (1, _vector_tied),
)  # fmt: skip


def descriptions() -> st.SearchStrategy[Description]:
    """Descriptions of small networks that run at their windows.

    Drawn by a generator that hypothesis seeds: choices drawn one by one repeat themselves in a quarter of the networks.
    """
    return st.randoms(use_true_random=True).map(drawn)


def drawn(random: Random) -> Description:
    """A network, by a generator of random numbers."""
    axes = random.choice([1, 1, 2, 2, 2, 2, 2, 3])
    low, high = {1: (5, 20), 2: (4, 11), 3: (3, 6)}[axes]
    window = tuple(random.randint(low, high) for _ in range(axes))
    b = Drawing(random, random.randint(1, 3), window)
    x = 0
    for _ in range(b.number(0, 5)):
        if b.is_map(x):
            x = block(b, x)
    if b.is_map(x) and not b.chance(1):
        x = head(b, x)
    elif len(b.shape(x)) > 1:
        x = b.put("flatten", x, start=0)
    for _ in range(b.number(0, 4)):
        if len(b.shape(x)) == 1:
            x = vector_operator(b, x)
    if len(b.shape(x)) == 1 and b.chance(85):
        x = b.put("linear", x, out=b.number(1, 5))
    return pruned(b.net.description, x)


def pruned(d: Description, output: int) -> Description:
    """The description without the operators that the output does not depend on, and with it as the last value."""
    needed, waiting = {output}, [output]
    while waiting:
        value = waiting.pop()
        if value:
            op = d.ops[value - 1]
            tied = [op.args["tied"] + 1] if "tied" in op.args else []
            new = [i for i in (*op.inputs, *tied) if i not in needed]
            needed |= set(new)
            waiting += new
    keep = sorted(v for v in needed if v)
    names = {0: 0, **{old: new for new, old in enumerate(keep, 1)}}
    ops = []
    for value in keep:
        op = d.ops[value - 1]
        args = {**op.args, "tied": names[op.args["tied"] + 1] - 1} if "tied" in op.args else op.args
        ops.append(Op(op.kind, tuple(names[i] for i in op.inputs), args))
    return Description(d.channels, d.window, tuple(ops))

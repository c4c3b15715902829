"""Random ONNX graphs of operators that the layout planner moves, in opset 11 and newer, for comparison bit for bit.

`python -m tests.onnx.layout_fuzz --count 2000` prints what differs. Every value is a small integer, so that sums are
exact in any order. Normalisations come last, in float64, and are compared within the rounding of their sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.evaluators import run_reference
from onebyone.onnx.layout.convert import convert_with_layout

Array = np.ndarray[Any, Any]
OPSETS = (11, 12, 13, 15, 17, 18, 20, 22, 23)


class RandomGraph:
    """A graph that grows by random nodes; its values are small integers in float64."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.shape = tuple(int(n) for n in self.rng.integers(1, 5, self.rng.integers(2, 5)))
        self.inputs = self.shape
        self.value, self.rounds = "x", False
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.earlier: list[tuple[str, tuple[int, ...]]] = [("x", self.shape)]

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def integers(self, *shape: int) -> str:
        return self.constant(self.rng.integers(-3, 4, shape).astype(np.float64))

    def indices(self, *numbers: int) -> str:
        return self.constant(np.asarray(numbers, dtype=np.int64))

    def add(
        self, op_type: str, inputs: list[str], shape: tuple[int, ...], outputs: int = 1, **attributes: Any
    ) -> str:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        self.value, self.shape = names[0], shape
        self.earlier.append((self.value, shape))
        return self.value

    def axis(self) -> int:
        return int(self.rng.integers(len(self.shape)))

    def with_axes(
        self, op_type: str, axes: list[int], first: int, shape: tuple[int, ...], **attributes: Any
    ) -> None:
        if self.opset >= first:
            self.add(op_type, [self.value, self.indices(*axes)], shape, **attributes)
        else:
            self.add(op_type, [self.value], shape, axes=axes, **attributes)


def product(g: RandomGraph) -> None:
    outputs = int(g.rng.integers(1, 5))
    g.add("MatMul", [g.value, g.integers(g.shape[-1], outputs)], (*g.shape[:-1], outputs))
    if g.rng.random() < 0.5:
        g.add("Add", [g.value, g.integers(outputs)], g.shape)


def convolution(g: RandomGraph) -> None:
    if len(g.shape) == 4:
        outputs = int(g.rng.integers(1, 5))
        weight = g.integers(outputs, g.shape[1], 1, 1)
        g.add("Conv", [g.value, weight], (g.shape[0], outputs, *g.shape[2:]), kernel_shape=[1, 1])


def residual(g: RandomGraph) -> None:
    same = [name for name, shape in g.earlier if shape == g.shape]
    g.add("Add", [g.value, str(g.rng.choice(same))], g.shape)


def attention(g: RandomGraph) -> None:
    if len(g.shape) > 1:
        value, shape = g.value, g.shape
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        turned = g.add("Transpose", [value], tuple(shape[a] for a in order), perm=order)
        g.add("MatMul", [value, turned], (*shape[:-1], shape[-2]))


def broadcast(g: RandomGraph) -> None:
    shape = tuple(size if g.rng.random() < 0.5 else 1 for size in g.shape)[
        int(g.rng.integers(len(g.shape))) :
    ]
    g.add(str(g.rng.choice(["Add", "Mul", "Max"])), [g.value, g.integers(*shape)], g.shape)


def transpose(g: RandomGraph) -> None:
    order = [int(a) for a in g.rng.permutation(len(g.shape))]
    g.add("Transpose", [g.value], tuple(g.shape[a] for a in order), perm=order)


def reshape(g: RandomGraph) -> None:
    axis = g.axis()
    size = g.shape[axis]
    if g.rng.random() < 0.5 and axis + 1 < len(g.shape):
        shape = (*g.shape[:axis], size * g.shape[axis + 1], *g.shape[axis + 2 :])
    elif size % 2 == 0:
        shape = (*g.shape[:axis], 2, size // 2, *g.shape[axis + 1 :])
    else:
        shape = (*g.shape[:axis], 1, *g.shape[axis:])
    target = list(shape)
    if g.rng.random() < 0.5:
        target[int(g.rng.integers(len(shape)))] = -1
    g.add("Reshape", [g.value, g.indices(*target)], shape)


def dynamic_reshape(g: RandomGraph) -> None:
    """A merge of two axes whose sizes are read at run time."""
    if len(g.shape) > 2:
        value, shape = g.value, g.shape
        sizes = g.add("Shape", [value], (len(shape),))
        first = g.add("Gather", [sizes, g.indices(0)], (1,), axis=0)
        merged = g.indices(-1)
        target = g.add(
            "Concat", [first, merged, g.indices(*shape[3:])] if shape[3:] else [first, merged], (2,), axis=0
        )
        del g.earlier[-3:]
        g.add("Reshape", [value, target], (shape[0], shape[1] * shape[2], *shape[3:]))


def unit(g: RandomGraph) -> None:
    axis = int(g.rng.integers(len(g.shape) + 1))
    g.with_axes("Unsqueeze", [axis], 13, (*g.shape[:axis], 1, *g.shape[axis:]))


def squeeze(g: RandomGraph) -> None:
    axis = g.axis()
    if g.shape[axis] == 1 and len(g.shape) > 1 and axis not in range(len(g.inputs)):
        g.with_axes("Squeeze", [axis], 13, (*g.shape[:axis], *g.shape[axis + 1 :]))


def reduce(g: RandomGraph) -> None:
    axis, keep = g.axis(), int(g.rng.integers(2))
    if len(g.shape) > 2:
        kept = (1,) if keep else ()
        first = 18 if (name := str(g.rng.choice(["ReduceMax", "ReduceSum"]))) == "ReduceMax" else 13
        g.with_axes(name, [axis], first, (*g.shape[:axis], *kept, *g.shape[axis + 1 :]), keepdims=keep)


def concatenate(g: RandomGraph) -> None:
    axis = g.axis()
    shape = (*g.shape[:axis], 2 * g.shape[axis], *g.shape[axis + 1 :])
    if g.shape[axis] < 5:
        g.add("Concat", [g.value, g.value], shape, axis=axis - len(shape) if g.rng.random() < 0.5 else axis)


def split(g: RandomGraph) -> None:
    axis = g.axis()
    if g.shape[axis] % 2 == 0:
        half = (*g.shape[:axis], g.shape[axis] // 2, *g.shape[axis + 1 :])
        whole, more = g.shape, {"num_outputs": 2} if g.opset >= 18 else {}
        first = g.add("Split", [g.value], half, 2, axis=axis, **more)
        g.add("Concat", [first.replace("_0", "_1"), first], whole, axis=axis)


def cut(g: RandomGraph) -> None:
    axis = g.axis()
    size = int(g.rng.integers(1, g.shape[axis] + 1))
    numbers = (g.indices(0), g.indices(size), g.indices(axis))
    g.add("Slice", [g.value, *numbers], (*g.shape[:axis], size, *g.shape[axis + 1 :]))


def gather(g: RandomGraph) -> None:
    axis = g.axis()
    index = int(g.rng.integers(g.shape[axis]))
    if len(g.shape) > 2 and g.rng.random() < 0.5:
        scalar = g.constant(np.asarray(index, dtype=np.int64))
        g.add("Gather", [g.value, scalar], (*g.shape[:axis], *g.shape[axis + 1 :]), axis=axis)
    else:
        shape = (*g.shape[:axis], 3, *g.shape[axis + 1 :])
        g.add("Gather", [g.value, g.indices(index, 0, index)], shape, axis=axis)


def expand(g: RandomGraph) -> None:
    shape = tuple(2 if size == 1 else size for size in g.shape)
    if g.shape != shape and all(n != 1 or i >= len(g.inputs) for i, n in enumerate(g.shape)):
        g.add("Expand", [g.value, g.indices(*shape)], shape)


def normalise(g: RandomGraph) -> None:
    """Softmax along any axis, or a normalisation over the last one, by the operator or as exporters write it.

    With an ε of 1 no division makes a rounding larger; a scale of 1/8 keeps results of values up to 3 below 1.
    """
    g.rounds = True
    kinds = ["Softmax", "LogSoftmax", "root mean square"]
    kinds += ["LayerNormalization"] if g.opset >= 17 else []
    kinds += ["RMSNormalization"] if g.opset >= 23 else []
    kind, shape = str(g.rng.choice(kinds)), g.shape
    scale = g.constant(g.rng.choice([-0.125, 0.125], shape[-1:]))
    if kind == "LayerNormalization" or kind == "RMSNormalization":
        g.add(kind, [g.value, scale], shape, axis=-1, epsilon=1.0)
    elif kind == "root mean square":
        x = g.value
        g.add("Mul", [x, x], shape)
        g.with_axes("ReduceMean", [len(shape) - 1], 18, (*shape[:-1], 1), keepdims=1)
        g.add("Add", [g.value, g.constant(np.float64(1))], g.shape)
        g.add("Sqrt", [g.value], g.shape)
        g.add("Div", [x, g.value], shape)
        g.add("Mul", [g.value, scale], shape)
    else:
        g.add(kind, [g.value], shape, axis=g.axis())


MOVES: list[Callable[[RandomGraph], None]] = [
    product, product, convolution, residual, attention, broadcast, transpose, transpose, reshape, dynamic_reshape, unit,
    squeeze, reduce, concatenate, split, cut, gather, expand,
]  # fmt: skip


#: The operators of networks on tokens, convolutions among them.
GUARDED = [product, convolution, residual, attention, broadcast, transpose, reshape, unit, squeeze]


def random_model(
    seed: int, moves: Sequence[Callable[[RandomGraph], None]] | None = None
) -> tuple[onnx.ModelProto, Array, bool]:
    """A random graph, or one of the given operators, an input for it, and whether its last operators round."""
    g = RandomGraph(seed)
    if moves is None:
        moves = [MOVES[int(g.rng.integers(len(MOVES)))] for _ in range(int(g.rng.integers(2, 9)))]
    for move in moves:
        move(g)
        if np.prod(g.shape) > 2000 or len(g.shape) > 6:
            break
        g.add("Clip", [g.value, g.constant(np.float64(-3)), g.constant(np.float64(3))], g.shape)
    if g.rng.random() < 0.2:
        normalise(g)
        product(g)
        transpose(g)
    free = [f"d{axis}" if g.rng.random() < 0.3 else size for axis, size in enumerate(g.inputs)]
    if not g.nodes:
        g.add("Clip", [g.value, g.constant(np.float64(-3)), g.constant(np.float64(3))], g.shape)
    graph = helper.make_graph(
        g.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, free)],
        [helper.make_tensor_value_info(g.value, TensorProto.DOUBLE, [None] * len(g.shape))],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)
    return model, g.rng.integers(-3, 4, g.inputs).astype(np.float64), g.rounds


def compare(
    seed: int, moves: Sequence[Callable[[RandomGraph], None]] | None = None, **options: Any
) -> tuple[str | None, OnnxConversion | None]:
    """What is wrong with the conversion of one random graph, or None; and the conversion."""
    model, x, rounds = random_model(seed, moves)
    expected = run_reference(model, {"x": x})[0]
    conversion = convert_with_layout(ir.serde.deserialize_model(model), **options)
    converted = ir.serde.serialize_model(conversion.model)
    onnx.checker.check_model(converted, full_check=True)
    actual = run_reference(converted, {"x": x})[0]
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return f"{seed}: {expected.shape} became {actual.shape}", conversion
    # up to 2,000 terms of sums, and 16 roundings of each elementary function, on values of at most 1 before products
    tolerance = (
        2016 * np.finfo(np.float64).eps * max(1.0, float(np.abs(expected).max(initial=0))) if rounds else 0.0
    )
    error = float(np.abs(expected - actual).max(initial=0))
    return (None if error <= tolerance else f"{seed}: differs by {error}"), conversion


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    wrong, converted = 0, 0
    for seed in range(options.first, options.first + options.count):
        try:
            problem, conversion = compare(seed, tokens=("last", "height", "batch")[seed % 3])
        except Exception as error:
            problem, conversion = f"{seed}: {type(error).__name__}: {str(error)[:300]}", None
        converted += 0 if conversion is None else len(conversion.changes)
        if problem is not None:
            wrong += 1
            print(problem, flush=True)
    print(f"{options.count} graphs, {converted} layers converted, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

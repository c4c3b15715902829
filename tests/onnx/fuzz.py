"""Random ONNX graphs: converted both ways, each must give the same integers and leave no product unmentioned.

`python -m tests.onnx.fuzz --count 2000` prints the counts. Every value is a small integer, so that sums are exact in
float32 in any order; Clip keeps them small. What is right is computed by `tests.onnx.oracle`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import NotRunnable, run_onnx_runtime, run_reference
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx import fuzz_moves, oracle

Array = np.ndarray[Any, Any]


@dataclass
class GraphBuilder:
    """A graph that grows by random nodes; `shape` is the shape of its last value."""

    rng: np.random.Generator
    shape: tuple[int, ...]
    value: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    shared: dict[tuple[int, ...], str] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    #: Functions that take data of any rank, by the shape of their weight.
    reusable: dict[tuple[int, ...], str] = field(default_factory=dict)

    def node(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        self.value = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [self.value], name=f"n{len(self.nodes)}", **attributes)
        )
        self.shape = shape
        return self.value

    def aside(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """A node whose result is not the graph's last value."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, array: Array) -> str:
        if array.dtype == np.float32 and self.rng.random() < 0.1:
            return self.aside("Constant", [], value=numpy_helper.from_array(array))
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def integers(self, shape: tuple[int, ...]) -> Array:
        return self.rng.integers(-3, 4, shape).astype(np.float32)

    def size(self) -> int:
        return int(self.rng.integers(1, 5))

    def weight(self, shape: tuple[int, ...]) -> str:
        """A constant of a shape, written in one of the ways that exporters use."""
        if shape in self.shared and self.rng.random() < 0.3:
            return self.shared[shape]
        way = self.rng.integers(8)
        if way == 0 and shape:
            permutation = self.rng.permutation(len(shape))
            stored = self.constant(self.integers(tuple(np.array(shape)[np.argsort(permutation)])))
            name = self.aside("Transpose", [stored], perm=[int(p) for p in permutation])
        elif way == 1:
            stored = self.constant(self.integers((int(np.prod(shape)),)))
            name = self.aside("Reshape", [stored, self.constant(np.array(shape, dtype=np.int64))])
        elif way == 2:
            stored = self.constant(self.integers(shape).astype(np.float16))
            name = self.aside("Cast", [stored], to=TensorProto.FLOAT)
        elif way == 3 and shape:
            axis = int(self.rng.integers(len(shape)))
            stored = self.constant(self.integers(shape).astype(np.int8))
            scale = self.constant(np.float32(2.0 ** self.rng.integers(0, 2, shape[axis])))
            name = self.aside("DequantizeLinear", [stored, scale], axis=axis)
        elif way == 4 and shape:
            stored = self.aside(
                "Cast", [self.constant(self.integers(shape).astype(np.int8))], to=TensorProto.FLOAT
            )
            scale = self.constant(np.float32(2.0 ** self.rng.integers(0, 2, shape[-1:])))
            name = self.aside("Mul", [stored, scale])
        elif way == 5:
            name = self.aside("Identity", [self.constant(self.integers(shape))])
        else:
            name = self.constant(self.integers(shape))
        self.shared[shape] = name
        return name


def matmul(b: GraphBuilder) -> None:
    shape, out = b.shape, b.size()
    if len(shape) > 1 and b.rng.random() < 0.3:  # the constant on the left
        weight = b.weight((out, shape[-2]))
        b.node("MatMul", [weight, b.value], (*shape[:-2], out, shape[-1]))
        return
    batch = shape[-3:-2] if len(shape) > 2 and b.rng.random() < 0.3 else ()
    weight = b.weight((*batch, shape[-1], out))
    b.node("MatMul", [b.value, weight], (*shape[:-1], out))


def gemm(b: GraphBuilder) -> None:
    if len(b.shape) != 2:
        return
    flags, out = b.rng.integers(0, 2, 2), b.size()
    rows, columns = reversed(b.shape) if flags[0] else b.shape
    weight = b.weight((out, columns) if flags[1] else (columns, out))
    inputs = [b.value, weight]
    if b.rng.random() < 0.7:
        shapes = [(), (1,), (out,), (1, out), (rows, 1), (rows, out)]
        inputs.append(b.weight(shapes[b.rng.integers(len(shapes))]))
    factors = {"alpha": float(b.rng.integers(0, 3)), "beta": float(b.rng.integers(0, 3))}
    b.node("Gemm", inputs, (rows, out), transA=int(flags[0]), transB=int(flags[1]), **factors)


def einsum(b: GraphBuilder) -> None:
    letters = "abcde"[: len(b.shape)]
    contracted = letters[-1] if len(letters) < 3 or b.rng.random() < 0.7 else letters[-2:]
    grouped = letters[0] if len(letters) > len(contracted) + 1 and b.rng.random() < 0.3 else ""
    weight = "".join(b.rng.permutation(list(contracted + grouped + "z")))
    output = "".join(b.rng.permutation([x for x in letters if x not in contracted] + ["z"]))
    sizes = dict(zip(letters, b.shape, strict=True)) | {"z": b.size()}
    constant = b.weight(tuple(sizes[x] for x in weight))
    shape = tuple(sizes[x] for x in output)
    if b.rng.random() < 0.5:
        b.node("Einsum", [b.value, constant], shape, equation=f"{letters},{weight}->{output}")
    else:
        b.node("Einsum", [constant, b.value], shape, equation=f"{weight},{letters}->{output}")


def bias(b: GraphBuilder) -> None:
    kept = [size if b.rng.random() < 0.5 else 1 for size in b.shape]
    constant = b.weight(tuple(kept[b.rng.integers(0, len(kept)) :]))
    b.node("Add", [b.value, constant] if b.rng.random() < 0.5 else [constant, b.value], b.shape)


def pointwise_convolution(b: GraphBuilder) -> None:
    if not 3 <= len(b.shape) <= 5:
        return
    channels = b.shape[1]
    groups = channels if b.rng.random() < 0.2 else 1
    out = groups * b.size()
    strides = [int(s) for s in b.rng.integers(1, 3, len(b.shape) - 2)]
    inputs = [b.value, b.weight((out, channels // groups, *(1 for _ in strides)))]
    if b.rng.random() < 0.5:
        inputs.append(b.constant(b.integers((out,))))
    shape = (b.shape[0], out, *(-(-n // s) for n, s in zip(b.shape[2:], strides, strict=True)))
    b.node("Conv", inputs, shape, group=groups, strides=strides)


def transpose(b: GraphBuilder) -> None:
    permutation = [int(p) for p in b.rng.permutation(len(b.shape))]
    b.node("Transpose", [b.value], tuple(b.shape[p] for p in permutation), perm=permutation)


def flatten(b: GraphBuilder) -> None:
    if len(b.shape) > 2:
        b.node("Flatten", [b.value], (b.shape[0], int(np.prod(b.shape[1:]))), axis=1)


def relu(b: GraphBuilder) -> None:
    b.node("Relu", [b.value], b.shape)


FLOATING_MOVES = (
    matmul, matmul, gemm, gemm, einsum, bias, bias, pointwise_convolution, transpose, flatten, relu,
)  # fmt: skip
MOVES = (
    *FLOATING_MOVES,
    fuzz_moves.quantised_product, fuzz_moves.quantised_product, fuzz_moves.quantised_convolution,
    fuzz_moves.quantised_group, fuzz_moves.branch, fuzz_moves.call,
)  # fmt: skip
Moves = Sequence[Callable[[GraphBuilder], None]]


def random_model(seed: int, moves: Moves = MOVES) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A random graph, and its inputs."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, rng.integers(1, 6)))
    b = GraphBuilder(rng, shape)
    for _ in range(rng.integers(2, 7)):
        moves[rng.integers(len(moves))](b)
        if b.value != "x" and rng.random() < 0.8:  # without it, an Add may follow its product
            b.node("Clip", [b.value, b.constant(np.float32(-3)), b.constant(np.float32(3))], b.shape)
    if not b.nodes:
        relu(b)
    free: list[Any] = [f"d{axis}" if rng.random() < 0.3 else size for axis, size in enumerate(shape)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)]
    feeds = {"x": rng.integers(-3, 4, shape).astype(np.float32)}
    if any(node.op_type == "If" for node in b.nodes):
        inputs.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
        feeds["condition"] = np.asarray(rng.random() < 0.5)
    graph = helper.make_graph(
        b.nodes,
        "random",
        inputs,
        [helper.make_tensor_value_info(b.value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in b.constants.items()],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    opsets = domains if b.functions else domains[:1]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=b.functions), feeds


def check(seed: int, moves: Moves = MOVES) -> Iterator[str]:
    """What happened to the graph of a seed, once for each direction; raises AssertionError where something is wrong."""
    proto, feeds = random_model(seed, moves)
    model = ir.serde.deserialize_model(proto)
    expected = oracle.outputs(proto, feeds)
    if np.abs(expected).max(initial=0) > 2**20:
        yield "not exact"
        return
    original = run_reference(proto, feeds)[0]
    assert np.array_equal(original, expected), f"seed {seed}: the oracle and ONNX differ on the original"
    # ONNX Runtime replaces some products of dequantised weights by approximate ones, in the original too, and has no
    # kernel for some combinations of bytes
    try:
        exact = np.array_equal(run_onnx_runtime(proto, feeds)[0], expected)
    except NotRunnable:
        exact = False
    for to in ("conv", "linear"):
        result = convert_model(model, to)
        named = [change.path for change in result.changes] + [refusal.path for refusal in result.refused]
        missing = fuzz_moves.eligible(proto, to) - {path.split("/")[-1] for path in named}
        assert not missing, f"seed {seed}, {to}: silent about {missing}"
        converted = ir.serde.serialize_model(result.model)
        onnx.checker.check_model(converted, full_check=True)
        for run in (run_reference, run_onnx_runtime) if exact else (run_reference,):
            found = run(converted, feeds)[0]
            assert found.shape == expected.shape, f"seed {seed}, {to}: {found.shape} for {expected.shape}"
            assert np.array_equal(found, expected), (
                f"seed {seed}, {to}: wrong by {np.abs(found - expected).max()}"
            )
        if result.changes and seed % 4 == 0:
            verification = verify_onnx(model, result)
            assert verification.equivalent, f"seed {seed}, {to}: {verification}"
        yield f"{to}: {len(result.changes)} converted"
        for refusal in result.refused:
            yield f"{to}: refused, {refusal.reason.split(' of shape ')[0][:60]}"


def main() -> int:
    """Check many seeds, and print what happened how often; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.count):
        try:
            counts.update(check(seed))
        except Exception as error:
            counts[f"WRONG: {type(error).__name__}"] += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
    for name, count in sorted(counts.items()):
        print(f"{count:6d}  {name}")
    return int(any(name.startswith("WRONG") for name in counts))


if __name__ == "__main__":
    sys.exit(main())

"""Moves of the random graphs that quantise, branch or call functions; see `tests.onnx.fuzz`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def _scale(b: Any, *shape: int) -> str:
    return str(b.constant(np.asarray(2.0 ** b.rng.integers(0, 2, shape), dtype=np.float32)))


def _zero(b: Any, kind: Any) -> str:
    """An even zero point: ONNX Runtime rounds before it adds one, the reference implementation after."""
    return str(b.constant(np.asarray(2 * b.rng.integers(0, 4), dtype=kind)))


def _bytes(b: Any, kind: Any, shape: tuple[int, ...]) -> str:
    low = 0 if kind == np.uint8 else -3
    return str(b.constant(b.rng.integers(low, 4, shape).astype(kind)))


def _quantised(b: Any) -> tuple[str, str, str, Any]:
    """The graph's last value in bytes, with its scale and zero point."""
    kind = np.uint8 if b.rng.random() < 0.6 else np.int8
    scale, zero = _scale(b), _zero(b, kind)
    return b.node("QuantizeLinear", [b.value, scale, zero], b.shape), scale, zero, kind


def quantised_product(b: Any) -> None:
    """MatMulInteger or QLinearMatMul, with the constant on either side."""
    shape, out = b.shape, b.size()
    left = len(shape) > 1 and b.rng.random() < 0.3
    q, scale, zero, kind = _quantised(b)
    kind_of_weight = np.int8 if b.rng.random() < 0.5 else kind
    weight = _bytes(b, kind_of_weight, (out, shape[-2]) if left else (shape[-1], out))
    result = (*shape[:-2], out, shape[-1]) if left else (*shape[:-1], out)
    weight_zero = _zero(b, kind_of_weight)
    if not left and b.rng.random() < 0.3:
        weight_zero = b.constant((2 * b.rng.integers(0, 2, out)).astype(kind_of_weight))
    if b.rng.random() < 0.5:
        pairs = [[q, weight], [zero, weight_zero]]
        operands = [name for pair in pairs for name in (reversed(pair) if left else pair)]
        b.node("MatMulInteger", operands, result)
        b.node("Cast", [b.value], result, to=TensorProto.FLOAT)
        return
    weight_scale = _scale(b) if left or b.rng.random() < 0.5 else _scale(b, out)
    data, constant = [q, scale, zero], [weight, weight_scale, weight_zero]
    s, z = _scale(b), _zero(b, kind)
    b.node("QLinearMatMul", [*(constant + data if left else data + constant), s, z], result)
    b.node("DequantizeLinear", [b.value, s, z], result)


def quantised_convolution(b: Any) -> None:
    """ConvInteger or QLinearConv of kernel 1×1."""
    if not 3 <= len(b.shape) <= 5:
        return
    channels, shape = b.shape[1], b.shape
    groups = channels if b.rng.random() < 0.2 else 1
    out = groups * b.size()
    strides = [int(s) for s in b.rng.integers(1, 3, len(shape) - 2)]
    q, scale, zero, kind = _quantised(b)
    kind_of_weight = np.int8 if b.rng.random() < 0.5 else kind
    weight = _bytes(b, kind_of_weight, (out, channels // groups, *(1 for _ in strides)))
    weight_zero = _zero(b, kind_of_weight)
    result = (shape[0], out, *(-(-n // s) for n, s in zip(shape[2:], strides, strict=True)))
    given = {"group": groups, "strides": strides}
    if b.rng.random() < 0.5:
        b.node("ConvInteger", [q, weight, zero, weight_zero], result, **given)
        b.node("Cast", [b.value], result, to=TensorProto.FLOAT)
        return
    s, z = _scale(b), _zero(b, kind)
    by_channel = b.rng.random() < 0.5
    weight_scale = _scale(b, out) if by_channel else _scale(b)
    if by_channel:
        weight_zero = b.constant(np.zeros(out, kind_of_weight))
    operands = [q, scale, zero, weight, weight_scale, weight_zero, s, z]
    if b.rng.random() < 0.5:
        operands.append(b.constant((b.rng.integers(-3, 4, out) * b.rng.integers(0, 2)).astype(np.int32)))
    b.node("QLinearConv", operands, result, **given)
    b.node("DequantizeLinear", [b.value, s, z], result)


def quantised_group(b: Any) -> None:
    """DequantizeLinear, MatMul, perhaps Add and Relu, and QuantizeLinear, as ONNX Runtime's quantiser writes them."""
    shape, out = b.shape, b.size()
    q, scale, zero, kind = _quantised(b)
    if len(shape) > 2 and b.rng.random() < 0.3:
        flat = (shape[0], int(np.prod(shape[1:])))
        b.node("DequantizeLinear", [q, scale, zero], shape)
        b.node("Flatten", [b.value], flat, axis=1)
        q, shape = b.node("QuantizeLinear", [b.value, scale, zero], flat), flat
    data = b.node("DequantizeLinear", [q, scale, zero], shape)
    stored = b.constant(b.integers((shape[-1], out)).astype(np.int8))
    axis = {"axis": 1}
    weight = b.aside("DequantizeLinear", [stored, _scale(b, out)], **axis)
    result = (*shape[:-1], out)
    b.node("MatMul", [data, weight], result)
    if b.rng.random() < 0.5:
        b.node("Add", [b.value, b.constant(b.integers((out,)))], result)
    if b.rng.random() < 0.3:
        b.node("Relu", [b.value], result)
    s, z = _scale(b), _zero(b, kind)
    b.node("QuantizeLinear", [b.value, s, z], result)
    b.node("DequantizeLinear", [b.value, s, z], result)


def branch(b: Any) -> None:
    """An If whose branches are products; one of them with a Constant of its own."""
    shape, out = b.shape, b.size()
    result = (*shape[:-1], out)
    outer = b.weight((shape[-1], out))
    inner = numpy_helper.from_array(b.integers((shape[-1], out)))
    k = len(b.nodes)
    then = [helper.make_node("MatMul", [b.value, outer], [f"t{k}"], name=f"then{k}")]
    other = [
        helper.make_node("Constant", [], [f"k{k}"], name=f"constant{k}", value=inner),
        helper.make_node("MatMul", [b.value, f"k{k}"], [f"e{k}"], name=f"else{k}"),
    ]
    graphs = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
        for nodes, name, output in ((then, "then", f"t{k}"), (other, "else", f"e{k}"))
    ]
    b.node("If", ["condition"], result, then_branch=graphs[0], else_branch=graphs[1])


def call(b: Any) -> None:
    """A call of a function that multiplies by a Constant of its own, or by an argument; or a call of an earlier one."""
    shape, out = b.shape, b.size()
    weight, k = b.integers((shape[-1], out)), len(b.functions)
    is_argument = b.rng.random() < 0.5
    result = (*shape[:-1], out)
    # a generator of its own: the other moves of a seed stay as they are
    rng = np.random.default_rng((k, *(int(n) + 3 for n in weight.reshape(-1))))
    if not is_argument and weight.shape in b.reusable and rng.random() < 0.7:
        b.node(b.reusable[weight.shape], [b.value], result, domain="local")
        return
    body, attribute = _body(rng, k, weight, len(shape), is_argument)
    inputs = ["x", "w"] if is_argument else ["x"]
    operands = [b.value, b.constant(weight)] if is_argument else [b.value]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    name, given = f"f{k}", {attribute: float(rng.integers(1, 3))} if attribute else {}
    b.functions.append(helper.make_function("local", name, inputs, ["y"], body, opsets, list(given)))
    if not given and rng.random() < 0.3:
        inner = [helper.make_node(name, inputs, ["y"], domain="local", name=f"through{k}")]
        name = f"outer{k}"
        b.functions.append(helper.make_function("local", name, inputs, ["y"], inner, opsets))
    if not is_argument and {node.op_type for node in body} <= {"Constant", "MatMul", "Add"}:
        b.reusable[weight.shape] = name
    b.node(name, operands, result, domain="local", **given)


def _body(
    rng: np.random.Generator, k: int, weight: Array, rank: int, is_argument: bool
) -> tuple[list[onnx.NodeProto], str | None]:
    """The nodes of a function, and the name of the attribute that a call has to give; names are those of the graph."""
    held = [] if is_argument else [_held("w", weight)]
    kinds = ["MatMul", "biased"] + ["Gemm"] * (rank == 2) + ["Conv"] * (3 <= rank <= 5 and not is_argument)
    kind = kinds[rng.integers(len(kinds))]
    name = f"in_function{k}"
    if kind == "biased":
        bias = rng.integers(-3, 4, weight.shape[1:]).astype(np.float32)
        product = helper.make_node("MatMul", ["x", "w"], ["v0"], name=name)
        return [*held, _held("c0", bias), product, helper.make_node("Add", ["v0", "c0"], ["y"])], None
    if kind == "Conv":
        kernel = np.ascontiguousarray(weight.T).reshape(*weight.shape[::-1], *[1] * (rank - 2))
        first = helper.make_node("Transpose", ["x"], ["v0"], perm=[0, rank - 1, *range(1, rank - 1)])
        last = helper.make_node("Transpose", ["v1"], ["y"], perm=[0, *range(2, rank), 1])
        layer = helper.make_node("Conv", ["v0", "w"], ["v1"], name=name)
        return [_held("w", kernel), first, layer, last], None
    node = helper.make_node(kind, ["x", "w"], ["y"], name=name)
    if kind == "Gemm" and rng.random() < 0.5:
        reference = onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="factor")
        node.attribute.append(reference)
        return [*held, node], "factor"
    return [*held, node], None


def _held(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def eligible(model: onnx.ModelProto, to: str) -> set[str]:
    """The names of nodes that must be converted or refused, found without the code under test."""
    kinds = (
        {"MatMul": (0, 1), "Gemm": (0, 1), "Einsum": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
        if to == "conv"
        else {"Conv": (1,), "ConvInteger": (1,), "QLinearConv": (3,)}
    )
    found: set[str] = set()

    def visit(nodes: Any, constants: set[str]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g.node, constants | {t.name for t in attribute.g.initializer})
            inputs = [name for name in node.input if name]
            if node.op_type == "Constant" or (inputs and set(inputs) <= constants and node.op_type != "If"):
                constants = constants | set(node.output)
            for function in model.functions:
                if (node.domain, node.op_type) == (function.domain, function.name):
                    passed = zip(function.input, node.input, strict=False)
                    visit(function.node, {name for name, given in passed if given in constants})
            operands = [node.input[i] for i in kinds.get(node.op_type, ()) if node.domain == ""]
            if any(name in constants for name in operands):
                found.add(node.name)

    visit(model.graph.node, {t.name for t in model.graph.initializer})
    return found

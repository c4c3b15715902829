"""Layers inside the functions of a model: shapes come from all calls, and weights stay in the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx import function_bodies
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_onnx_runtime
from onebyone.verification.onnx_models import verify_onnx
from tests.cli.conftest import run_command
from tests.onnx.models import Array, bytes_of, integers, model, run

LOCAL = '<domain: "local", opset_import: ["" : 20, "local" : 1]>'


def held(name: str, array: Array) -> str:
    """A Constant node of a small array, as text."""
    kind = {"float32": "float", "int8": "int8", "int64": "int64"}[array.dtype.name]
    numbers = ", ".join(str(int(n)) for n in array.reshape(-1))
    return f"{name} = Constant<value = {kind}[{','.join(map(str, array.shape))}] {{{numbers}}}>()"


def functions_with(m: ir.Model) -> list[str]:
    return [node.op_type for function in m.functions.values() for node in function.all_nodes()]


def check(m: ir.Model, x: Array, to: str = "conv", changes: int = 1) -> OnnxConversion:
    """Convert, and compare with the original in both evaluators bit for bit; each layer's probe must have run."""
    result = convert_model(m, to)
    assert len(result.changes) == changes, str(result)
    proto = ir.serde.serialize_model(result.model)
    onnx.checker.check_model(proto, full_check=True)
    before = ir.serde.serialize_model(m)
    assert len(proto.functions) == len(before.functions)
    for first, second in (
        (run(m, {"x": x}), run(result.model, {"x": x})),
        (run_onnx_runtime(before, {"x": x}), run_onnx_runtime(proto, {"x": x})),
    ):
        for expected, found in zip(first, second, strict=True):
            np.testing.assert_array_equal(found, expected)
    v = verify_onnx(m, result, {"x": x})
    assert v.equivalent, str(v)
    assert [layer.bitwise for layer in v.layers] == [True] * changes, str(v)
    assert all(fault.seen_by_integers for layer in v.layers for fault in layer.faults)
    assert any(layer.faults for layer in v.layers)
    return result


W, B = integers(2, 3), integers(3, seed=1)
LINEAR = f"{LOCAL} layer (x) => (y) {{ {held('w', W)} {held('b', B)} m = MatMul(x, w) y = Add(m, b) }}"


def test_a_product_with_its_bias() -> None:
    m = model("g (float[N,2] x) => (float[N,3] y) { y = local.layer(x) }", more=LINEAR)
    result = check(m, integers(5, 2))
    assert "MatMul" not in functions_with(result.model)
    assert functions_with(result.model).count("Conv") == 1
    whole = verify_onnx(m, result, {"x": integers(5, 2)})
    assert any(evaluator.startswith("float64") for evaluator in whole.evaluators)
    assert functions_with(result.model).count("Constant") == 4  # weight, bias, axes of Unsqueeze and Squeeze
    assert result.weight_bytes == (36, 68)
    assert not list(result.model.graph.initializers)
    assert bytes_of(result.model) < bytes_of(m) + 700


def test_calls_of_one_rank_and_other_sizes_share_the_body() -> None:
    text = """g (float[4,5,2] x) => (float[4,5,3] y, float[4,2,3] z) {
        y = local.layer(x) s = Slice(x, zero, two, one) z = local.layer(s) }"""
    weights = {"zero": np.array([0]), "two": np.array([2]), "one": np.array([1])}
    check(model(text, weights, more=LINEAR), integers(4, 5, 2))


def test_calls_of_different_ranks_are_refused_by_name() -> None:
    text = """g (float[4,2] x) => (float[4,3] y, float[1,4,3] z) {
        y = local.layer(x) u = Unsqueeze(x, zero) z = local.layer(u) }"""
    m = model(text, {"zero": np.array([0])}, more=LINEAR)
    result = convert_model(m)
    assert not result.changes
    assert [refusal.path for refusal in result.refused] == ["layer/m"]
    assert "calls of its function give it 2 and 3 axes" in result.refused[0].reason


def test_functions_that_call_functions() -> None:
    more = f"""{LINEAR}
    {LOCAL} outer (x) => (y) {{ a = local.layer(x) r = Relu(a) {held("v", integers(3, 2))} y = MatMul(r, v) }}"""
    check(
        model("g (float[N,2] x) => (float[N,2] y) { y = local.outer(x) }", more=more),
        integers(5, 2),
        changes=2,
    )


def test_values_of_a_function_and_of_the_graph_may_have_one_name() -> None:
    """Each layer is cut out of its own graph: x, w, m and y name other values in the function than in the graph."""
    text = "g (float[N,2] x) => (float[N,4] y) { m = local.layer(x) y = MatMul(m, w) }"
    m = model(text, {"w": integers(3, 4)}, more=LINEAR)
    x = integers(5, 2)
    result = check(m, x, changes=2)

    def faulty(path: str) -> set[str]:
        """The layers that the probe rejects where one function or graph has a wrong weight."""
        entries = dict(result.entries)
        name = next(name for name in entries if name.startswith(path) and "weight" in name)
        source, steps = entries[name]
        entries[name] = (source, (*steps, ("scale", (2,))))
        wrong = OnnxConversion(
            result.model, result.changes, (), to="conv", level="graph", layers=result.layers, entries=entries
        )
        return {layer.path for layer in verify_onnx(m, wrong).layers if not layer.ok}

    assert faulty("layer/") == {"layer/m"}
    assert faulty("y/") == {"y"}


def test_a_flattened_map() -> None:
    more = f"""{LOCAL} head (x) => (y) {{
        t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) {held("w", integers(12, 2))} y = MatMul(f, w) }}"""
    m = model("g (float[N,2,2,3] x) => (float[N,2] y) { y = local.head(x) }", more=more)
    result = check(m, integers(4, 2, 2, 3))
    assert "2×3 convolution" in result.changes[0].after


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_convolutions_and_quantised_weights(to: str) -> None:
    more = f"""{LOCAL} block (x) => (y) {{
        {held("k", integers(3, 2, 1, 1))} {held("b", B)} c = Conv(x, k, b) t = Transpose<perm=[0,2,3,1]>(c)
        {held("q", integers(3, 2, dtype=np.int8))} {held("s", integers(2))} f = Cast<to=1>(q)
        w = Mul(f, s) y = MatMul(t, w) }}"""
    m = model("g (float[N,2,H,W] x) => (float[N,H,W,2] y) { y = local.block(x) }", more=more)
    check(m, integers(2, 2, 3, 4), to)


def test_a_branch_in_a_function() -> None:
    more = f"""{LOCAL} either (b, x) => (y) {{ {held("w", W)}
        y = If(b) <
            then_branch = t () => (float[M,3] p) {{ p = MatMul(x, w) }},
            else_branch = e () => (float[M,3] q) {{ {held("v", integers(2, 3, seed=3))} q = MatMul(x, v) }}> }}"""
    text = """g (float[N,2] x) => (float[N,3] y) {
        s = ReduceSum<keepdims=0>(x) b = Greater(s, zero) y = local.either(b, x) }"""
    m = model(text, {"zero": np.float32(0)}, more=more)
    for sign in (1, -1):
        check(m, sign * np.abs(integers(4, 2)), changes=2)


def test_functions_of_one_name_in_two_domains() -> None:
    other = LINEAR.replace('"local"', '"other"', 1).replace("MatMul(x, w)", "MatMul(x, v)")
    other = other.replace(held("w", W), held("v", integers(2, 3, seed=5)))
    text = "g (float[N,2] x) => (float[N,3] y) { a = local.layer(x) b = other.layer(x) y = Add(a, b) }"
    m = model(text, more=f"{LINEAR}\n{other}", imports=("local", "other"))
    result = check(m, integers(4, 2), changes=2)
    assert {change.path for change in result.changes} == {"local.layer/m", "other.layer/m"}


#: Bodies in which an attribute of the call decides what is computed, and the text of the refusal.
BY_CALL = {
    "of the product": (
        f"{held('w', W)} {held('c', B)} y = Gemm<alpha: float = @a>(x, w, c)",
        "'a'",
        "a = 2.0",
    ),
    "of the weight": (
        f"{held('v', integers(3, 2))} w = Transpose<perm: ints = @a>(v) y = MatMul(x, w)",
        "'a'",
        "a = [1, 0]",
    ),
    "the weight": (
        "w = Constant<value: tensor = @a>() y = MatMul(x, w)",
        "'a'",
        "a = float[2,3] {1,2,3,4,5,6}",
    ),
}


@pytest.mark.parametrize("case", BY_CALL)
def test_what_each_call_decides_is_refused_by_name(case: str) -> None:
    body, name, given = BY_CALL[case]
    more = f"{LOCAL} layer <a> (x) => (y) {{ {body} }}"
    m = model(f"g (float[N,2] x) => (float[N,3] y) {{ y = local.layer<{given}>(x) }}", more=more)
    result = convert_model(m)
    assert not result.changes
    assert len(result.refused) == 1, str(result)
    assert f"depends on the attribute {name} of its function" in result.refused[0].reason


def test_an_order_that_the_call_decides_is_not_recovered() -> None:
    """The map is the one that the call has transposed, as it is in every call; that before it is not looked for."""
    more = f"""{LOCAL} head <a> (x) => (y) {{
        t = Transpose<perm: ints = @a>(x) f = Flatten(t) {held("w", integers(12, 2))} y = MatMul(f, w) }}"""
    m = model("g (float[N,2,2,3] x) => (float[N,2] y) { y = local.head<a = [0,2,3,1]>(x) }", more=more)
    result = check(m, integers(4, 2, 2, 3))
    assert "3×2 convolution" in result.changes[0].after


def test_a_constant_of_numbers_in_an_attribute() -> None:
    more = f"{LOCAL} layer (x) => (y) {{ w = Constant<value_floats = [3.0, -2.0]>() y = MatMul(x, w) }}"
    m = model("g (float[N,2] x) => (float[N] y) { y = local.layer(x) }", more=more)
    check(m, integers(5, 2))


def nested(depth: int) -> list[onnx.FunctionProto]:
    """Functions that each call the one before twice: the last stands for 2**depth nodes."""
    found = []
    for level in range(depth):
        called = ("Relu", "") if level == 0 else (f"f{level - 1}", "local")
        nodes = [
            onnx.helper.make_node(called[0], [a], [b], domain=called[1]) for a, b in (("x", "m"), ("m", "y"))
        ]
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("local", 1)]
        found.append(onnx.helper.make_function("local", f"f{level}", ["x"], ["y"], nodes, opsets))
    return found


def calling(functions: list[onnx.FunctionProto]) -> ir.Model:
    proto = ir.serde.serialize_model(model("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = functions[-1].name, "local"
    proto.functions.extend(functions)
    return ir.serde.deserialize_model(proto)


def test_functions_that_stand_for_too_many_nodes_are_bad_input() -> None:
    assert function_bodies._inlined_size(calling(nested(4))) == 16
    m = calling(nested(60))
    assert function_bodies._inlined_size(m) == 2**60
    with pytest.raises(BadInput, match=f"stand for {2**60:,} nodes; expected at most 131,072"):
        convert_model(m)


def test_functions_that_call_each_other_are_bad_input() -> None:
    functions = nested(3)
    functions[0].node[0].op_type, functions[0].node[0].domain = "f2", "local"
    m = calling(functions)
    assert function_bodies._inlined_size(m) is None
    for inline in (False, True):
        with pytest.raises(BadInput, match="functions that call themselves"):
            onebyone.convert(m, inline_functions=inline)


CALLED = f"""{LOCAL} layer (x, w) => (y) {{ t = Transpose(w) y = MatMul(x, t) }}
    {LOCAL} outer (x, w) => (y) {{ y = local.layer(x, w) }}
    {LOCAL} pointwise (x, w) => (y) {{ y = Conv(x, w) }}"""


@pytest.mark.parametrize("name", ["layer", "outer"])
def test_a_weight_that_is_an_argument_is_refused_by_name(name: str) -> None:
    m = model(
        f"g (float[N,2] x) => (float[N,3] y) {{ y = local.{name}(x, w) }}", {"w": integers(3, 2)}, more=CALLED
    )
    result = convert_model(m)
    assert not result.changes
    assert [refusal.path for refusal in result.refused] == ["layer/y"]
    assert "'w' is an argument of the function 'layer'" in result.refused[0].reason


def test_a_kernel_that_is_an_argument_is_refused_by_name() -> None:
    weights = {"w": integers(3, 2, 1, 1)}
    m = model(
        "g (float[N,2,4,4] x) => (float[N,3,4,4] y) { y = local.pointwise(x, w) }", weights, more=CALLED
    )
    result = convert_model(m, "linear")
    assert "'w' is an argument of the function 'pointwise'" in result.refused[0].reason


def test_a_function_that_multiplies_two_activations_has_no_layer() -> None:
    m = model("g (float[N,2] x) => (float[N,N] y) { y = local.layer(x, x) }", more=CALLED)
    result = convert_model(m)
    assert not result.changes
    assert not result.refused


#: Models whose layers need their functions inlined, and how many layers they then have.
INLINED = {
    "a weight that is an argument": (
        "g (float[N,2] x) => (float[N,3] y) { a = local.outer(x, w) b = local.layer(x, v) y = Add(a, b) }",
        CALLED,
        2,
    ),
    "calls of different ranks": (
        """g (float[N,2] x) => (float[N,3] y, float[1,N,3] z) {
            y = local.layer(x) u = Unsqueeze(x, zero) z = local.layer(u) }""",
        LINEAR,
        2,
    ),
    "a factor of the call": (
        "g (float[N,2] x) => (float[N,3] y) { y = local.layer<a = 2.0>(x) }",
        f"{LOCAL} layer <a> (x) => (y) {{ {BY_CALL['of the product'][0]} }}",
        1,
    ),
}


@pytest.mark.parametrize("name", INLINED)
def test_inlined_functions_are_converted(name: str) -> None:
    text, more, changes = INLINED[name]
    weights = {"w": integers(3, 2), "v": integers(3, 2, seed=7), "zero": np.array([0])}
    m = model(text, weights, more=more)
    before = ir.serde.serialize_model(m).SerializeToString()
    assert onebyone.convert(m).refused
    result = onebyone.convert(m, inline_functions=True)
    assert len(result.changes) == changes
    assert not result.refused
    assert not result.model.functions
    x = integers(4, 2)
    for expected, found in zip(run(m, {"x": x}), run(result.model, {"x": x}), strict=True):
        np.testing.assert_array_equal(found, expected)
    v = onebyone.verify(m, result, {"x": x})
    assert v.equivalent, str(v)
    assert [layer.bitwise for layer in v.layers] == [True] * changes
    assert any(evaluator.startswith("float64") for evaluator in v.evaluators)
    assert not v.unverified
    assert ir.serde.serialize_model(m).SerializeToString() == before


def test_functions_with_another_operator_set_are_refused_by_name() -> None:
    m = model(
        "g (float[N,2] x) => (float[N,3] y) { y = local.layer(x) }", more=LINEAR.replace('"" : 20', '"" : 18')
    )
    with pytest.raises(BadInput, match="functions cannot be inlined: Opset mismatch"):
        onebyone.convert(m, inline_functions=True)
    assert "rank of its input 'x' is not known" in convert_model(m).refused[0].reason


def test_functions_are_inlined_on_the_command_line(tmp_path: Path) -> None:
    text, more, changes = INLINED["a weight that is an argument"]
    proto = ir.serde.serialize_model(
        model(text, {"w": integers(3, 2), "v": integers(3, 2, seed=7)}, more=more)
    )
    path, target = tmp_path / "model.onnx", tmp_path / "converted.onnx"
    onnx.save(proto, path)
    without = run_command("convert", path, "--json")
    assert len(without.json["changes"]) < changes
    assert "inline" in str(without.json["refused"])
    done = run_command("convert", path, "--inline-functions", "-o", target, "--json")
    assert (done.code, len(done.json["changes"]), done.json["refused"]) == (0, changes, []), done.err
    assert not onnx.load(target).functions
    verified = run_command("verify", path, "--inline-functions", "--shape", "4,2", "--json")
    assert (verified.code, verified.json["equivalent"], verified.json["integer_probe"]) == (0, True, True)


def test_a_pytorch_network_has_no_functions_to_inline() -> None:
    with pytest.raises(BadInput, match="inline_functions=True: applies to ONNX models only"):
        onebyone.convert(torch.nn.Linear(2, 3), inline_functions=True)

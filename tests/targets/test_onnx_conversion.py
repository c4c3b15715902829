"""Conversion of ONNX models for targets: what is rewritten is the same function, and what stays is what check lists."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.targets.convert import TargetConversion
from onebyone.targets import Offender, TargetProfile, find_profile, profile_names
from tests.onnx.models import Array, graph, integers, model, operators, run
from tests.targets.small_networks import SMALL, profile, random_network


def keys(offenders: tuple[Offender, ...]) -> list[tuple[str, str, object, object]]:
    return [(o.path, o.constraint, o.found, o.allowed) for o in offenders]


def convert(m: ir.Model, target: TargetProfile | str, **options: str) -> TargetConversion:
    """Convert, and check what every conversion must keep."""
    before = ir.serde.serialize_model(m).SerializeToString()
    conversion = onebyone.convert(m, target=target, **options)
    assert isinstance(conversion, TargetConversion)
    assert ir.serde.serialize_model(m).SerializeToString() == before
    assert keys(onebyone.check(conversion.model, target).offenders) == keys(conversion.left)
    assert len(conversion.refused) == len(conversion.left)
    return conversion


def equal_on_integers(m: ir.Model, conversion: TargetConversion, feeds: dict[str, Array]) -> None:
    for expected, actual in zip(run(m, feeds), run(conversion.model, feeds), strict=True):
        assert expected.dtype == actual.dtype
        assert np.array_equal(expected, actual)


@pytest.mark.parametrize("seed", range(14))
def test_random_networks_under_a_small_target(seed: int) -> None:
    m, feeds = random_network(seed)
    conversion = convert(m, SMALL)
    equal_on_integers(m, conversion, feeds)
    assert onebyone.verify(m, conversion, feeds).equivalent
    mendable = {(o.path, o.constraint) for o in onebyone.check(m, SMALL).offenders if o.mendable}
    assert not mendable & {(o.path, o.constraint) for o in conversion.left}
    assert not conversion.left, conversion


@pytest.mark.parametrize("name", profile_names())
def test_random_networks_under_every_profile(name: str) -> None:
    for seed in (100, 101, 102):
        m, feeds = random_network(seed)
        conversion = convert(m, name)
        equal_on_integers(m, conversion, feeds)
        assert onebyone.verify(m, conversion, feeds).equivalent or not conversion.changes


def test_only_what_offends_is_rewritten() -> None:
    m = model(
        graph("1,8,4,4", "1,3,2,2", "a = Conv(x, u) b = Conv(a, v) y = Conv(b, w)"),
        {"u": integers(6, 8, 2, 2), "v": integers(4, 6, 1, 1), "w": integers(3, 4, 2, 2)},
    )
    limit = profile('kind = "layer"\noperators = ["Conv"]\nquantity = "input-channels"\nmaximum = 7')
    conversion = convert(m, limit)
    assert [change.path for change in conversion.changes] == ["a"]
    assert operators(conversion.model) == ["Slice", "Conv", "Slice", "Conv", "Add", "Conv", "Conv"]


def test_a_form_may_be_asked_for_as_well() -> None:
    m = model(graph("2,8", "2,4", "y = Gemm<transB=1>(x, w)"), {"w": integers(4, 8)})
    limit = profile('kind = "layer"\noperators = ["Conv"]\nquantity = "input-channels"\nmaximum = 5')
    assert not convert(m, limit).changes
    conversion = convert(m, limit, to="conv")
    assert [change.law for change in conversion.changes] == [
        "linear = pointwise convolution",
        "convolution = sums over input channels, concatenated over output channels",
    ]
    equal_on_integers(m, conversion, {"x": integers(2, 8, seed=1)})


def split_model() -> tuple[ir.Model, TargetConversion]:
    m = model(graph("1,6,4,4", "1,5,4,4", "y = Conv(x, w, b)"), {"w": integers(5, 6, 1, 1), "b": integers(5)})
    limit = profile(
        'kind = "layer"\noperators = ["Conv"]\nquantity = "input-channels"\nmaximum = 3',
        'kind = "layer"\noperators = ["Conv"]\nquantity = "output-channels"\nmaximum = 3',
    )
    return m, convert(m, limit)


def test_a_split_layer_is_verified_as_one_layer() -> None:
    m, conversion = split_model()
    verification = onebyone.verify(m, conversion, {"x": integers(1, 6, 4, 4, seed=2)})
    assert verification.equivalent
    assert [(layer.path, layer.bitwise) for layer in verification.layers] == [("y", True)]
    assert all(fault.seen_by_integers for layer in verification.layers for fault in layer.faults)


@pytest.mark.parametrize("fault", ["halves swapped", "bias twice", "concatenated in reverse"])
def test_a_wrong_split_is_caught(fault: str) -> None:
    m, conversion = split_model()
    convolutions = [node for node in conversion.model.graph if node.op_type == "Conv"]
    if fault == "halves swapped":
        first, second = convolutions[0], convolutions[1]
        one, other = first.inputs[0], second.inputs[0]
        first.replace_input_with(0, other)
        second.replace_input_with(0, one)
    elif fault == "bias twice":
        with_bias = next(node for node in convolutions if len(node.inputs) > 2)
        without = next(node for node in convolutions if len(node.inputs) == 2)
        without.resize_inputs(3)
        without.replace_input_with(2, with_bias.inputs[2])
    else:
        joined = next(node for node in conversion.model.graph if node.op_type == "Concat")
        left, right = joined.inputs
        joined.replace_input_with(0, right)
        joined.replace_input_with(1, left)
    verification = onebyone.verify(m, conversion)
    assert not verification.equivalent
    assert verification.first_difference == "y"


@pytest.mark.parametrize(
    ("operator", "opset", "left_out"),
    [
        ("LayerNormalization<axis=-1>(x, s, b)", 20, "LayerNormalization"),
        ("LayerNormalization<axis=2, epsilon=0.01>(x, h)", 17, "LayerNormalization"),
        ("InstanceNormalization(x, c, c)", 20, "InstanceNormalization"),
        ("GroupNormalization<num_groups=2>(x, g, g)", 20, "GroupNormalization"),
        ("GroupNormalization<num_groups=2>(x, c, c)", 21, "GroupNormalization"),
        ("Gelu(x)", 20, "Gelu"),
        ('Gelu<approximate="tanh">(x)', 20, "Gelu"),
        ("HardSwish(x)", 20, "HardSwish"),
        ("HardSigmoid<alpha=0.3>(x)", 20, "HardSigmoid"),
        ("GlobalAveragePool(x)", 20, ""),
    ],
)
def test_decompositions(operator: str, opset: int, left_out: str) -> None:
    shape = "2,4,1,1" if "Pool" in operator else "2,4,6,10"
    weights = {
        "s": integers(10),
        "b": integers(10, seed=1),
        "h": integers(6, 10),
        "c": integers(4),
        "g": integers(2),
    }
    used = {
        name: array for name, array in weights.items() if f"{name})" in operator or f" {name}," in operator
    }
    m = model(graph("2,4,6,10", shape, f"y = {operator}"), used, opset=opset)
    missing = f'kind = "missing-operator"\noperators = ["{left_out or "Relu"}"]'
    area = 'kind = "layer"\noperators = ["GlobalAveragePool"]\nquantity = "kernel-area"\nmaximum = 30'
    conversion = convert(m, profile(missing, area))
    assert not conversion.left
    assert len(conversion.changes) == 1
    assert left_out not in operators(conversion.model)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 10)).astype(np.float32)
    verification = onebyone.verify(m, conversion, {"x": x})
    assert verification.equivalent, verification
    assert [layer.arithmetic for layer in verification.layers] == ["float64"]


def test_a_wrong_decomposition_is_caught() -> None:
    m = model(graph("2,4,6", "2,4,6", "y = Gelu(x)"))
    conversion = convert(m, profile('kind = "missing-operator"\noperators = ["Gelu"]'))
    name, value = next((n, v) for n, v in conversion.model.graph.initializers.items() if "slope" in str(n))
    assert value.const_value is not None
    wrong = ir.tensor(value.const_value.numpy() * np.float32(1 + 2.0**-10), name=str(name))
    value.const_value = wrong
    assert not onebyone.verify(m, conversion).equivalent


def test_what_needs_another_missing_operator_stays() -> None:
    m = model(graph("2,4,6", "2,4,6", "y = Gelu(x)"))
    conversion = convert(m, profile('kind = "missing-operator"\noperators = ["Gelu", "Erf"]'))
    assert not conversion.changes
    assert [r.reason for r in conversion.refused] == [
        "missing-operator is Gelu, allowed not supported: its new form needs Erf, which violates the same constraint"
    ]


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("bhid,bhjd->bhij", ((2, 3, 4, 5), (2, 3, 6, 5))),
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
        ("ibd,jbd->bij", ((3, 2, 5), (4, 2, 5))),
        ("ij,jk->ki", ((3, 4), (4, 2))),
    ],
)
def test_einsum_of_two_activations(equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    known = dict(
        zip(equation.split("->")[0].replace(",", ""), [s for shape in sizes for s in shape], strict=False)
    )
    result = ",".join(str(known[label]) for label in equation.split("->")[1])
    first, second = (",".join(map(str, shape)) for shape in sizes)
    m = model(
        f"g (float[{first}] a, float[{second}] b) => (float[{result}] y) "
        f'{{ y = Einsum<equation="{equation}">(a, b) }}'
    )
    conversion = convert(m, "kneron")
    assert "Einsum" not in operators(conversion.model)
    equal_on_integers(m, conversion, {"a": integers(*sizes[0], seed=1), "b": integers(*sizes[1], seed=2)})


def test_what_cannot_be_mended_is_listed_with_its_numbers() -> None:
    m = model(graph("N,9000,4,4", "N,9000,4,4", "y = Relu(x)"))
    found = onebyone.check(m, ["rknn", "ethos-u"]).offenders
    assert [(o.target, o.path, o.constraint, o.found, o.allowed, o.mendable) for o in found] == [
        ("rknn", "x", "channels", 9000, 8192, False),
        ("rknn", "y", "channels", 9000, 8192, False),
        ("ethos-u", "x", "static-shapes", "?×9000×4×4", "fixed sizes", False),
    ]
    assert "fixed sizes" in found[2].how


def test_a_new_layout_needs_no_operator_that_the_target_lacks() -> None:
    m = model(
        graph("1,5,8", "1,5,4", "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)"),
        {"w": integers(8, 6), "v": integers(6, 4, seed=1)},
    )
    conversion = convert(m, "kneron-kl520")
    assert not conversion.left
    assert not {"MatMul", "Squeeze", "Unsqueeze"} & set(operators(conversion.model))
    feeds = {"x": integers(1, 5, 8, seed=2)}
    equal_on_integers(m, conversion, feeds)
    verification = onebyone.verify(m, conversion, feeds)
    assert verification.equivalent


def test_too_many_parts_are_refused() -> None:
    m = model(graph("1,256,2,2", "1,1,2,2", "y = Conv(x, w)"), {"w": integers(1, 256, 1, 1)})
    conversion = convert(
        m, profile('kind = "layer"\noperators = ["Conv"]\nquantity = "input-channels"\nmaximum = 3')
    )
    assert [r.reason for r in conversion.refused] == [
        "input-channels is 256, allowed 3: it would take 86 convolutions; at most 64 are written"
    ]


def test_passes_of_the_amd_dpu() -> None:
    """25088 → 4096 behind a 7×7 map needs 49 · 32 = 1568 passes; behind 7×7×1024 it needs 3136, and is split."""
    m = model(
        graph("1,1024,7,7", "1,4", "f = Flatten(x) y = Gemm<transB=1>(f, w)"), {"w": integers(4, 1024 * 49)}
    )
    conversion = convert(m, "amd-dpu")
    assert not conversion.left
    kernels = [n.attributes.get_ints("kernel_shape") for n in conversion.model.graph if n.op_type == "Conv"]
    assert kernels == [(7, 7), (7, 7)]
    equal_on_integers(m, conversion, {"x": integers(1, 1024, 7, 7, seed=1)})
    assert find_profile("amd-dpu").preferred.form == "conv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "hexagon"}, "target='hexagon': is not known"),
        ({"target": "rknn", "to": "both"}, "to='both': expected 'conv' or 'linear'"),
    ],
)
def test_bad_arguments(options: dict[str, str], message: str) -> None:
    m = model(graph("1,2", "1,2", "y = Relu(x)"))
    with pytest.raises(BadInput, match=message):
        onebyone.convert(m, **options)


def test_attention_without_squeeze_and_unsqueeze_takes_no_more_layout_operators() -> None:
    """KL520 has no MatMul of constants, Squeeze or Unsqueeze; a Gemm is not rewritten, as it violates nothing."""
    nodes = """
        p = Conv(x, r) p1 = Reshape(p, rows) p2 = Transpose<perm=[0,2,1]>(p1)
        a = MatMul(p2, u) b = Reshape(a, s) c = Transpose<perm=[2,0,3,1,4]>(b) d, e, f = Split<axis=0, num_outputs=3>(c)
        q = Squeeze(d, zero) k = Squeeze(e, zero) v = Squeeze(f, zero)
        kt = Transpose<perm=[0,1,3,2]>(k) h = MatMul(q, kt) i = MatMul(h, v) j = Transpose<perm=[0,2,1,3]>(i)
        l = Reshape(j, t) m = MatMul(l, w) n = Add(m, p2) o = ReduceMax<keepdims=0>(n, one) y = Gemm<transB=1>(o, z)
    """
    constants = {
        "u": integers(8, 24), "w": integers(8, 8, seed=1), "z": integers(3, 8), "zero": np.asarray([0], np.int64),
        "one": np.asarray([1], np.int64), "s": np.asarray([1, 6, 3, 2, 4], np.int64),
        "t": np.asarray([1, 6, 8], np.int64), "rows": np.asarray([1, 8, 6], np.int64), "r": integers(8, 3, 2, 2),
    }  # fmt: skip
    m = model(graph("1,3,3,4", "1,3", nodes), constants)
    feeds = {"x": 0.1 * integers(1, 3, 3, 4, seed=5)}
    conversion = convert(m, "kneron-kl520")
    assert onebyone.verify(m, conversion, feeds).equivalent
    assert operators(conversion.model).count("Gemm") == 1
    assert conversion.layout_before is not None
    assert conversion.layout_after is not None
    assert conversion.layout_after.total() <= conversion.layout_before.total() == 7
    assert {offender.operator for offender in conversion.left} == {"MatMul"}, "of two activations"
    assert len(conversion.left) == 2

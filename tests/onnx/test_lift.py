"""`convolutionalize` of ONNX models: layouts, operators, refusals, files, and scans in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import onebyone
from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx, load_dense
from tests.onnx.lift_networks import every_crop, run, session
from tests.verification.test_onnx_any_size import lenet

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)


def small(
    nodes: Sequence[onnx.NodeProto],
    arrays: dict[str, Any],
    size: Sequence[Any] = ("n", 3, 9, 8),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from `image` to `scores`."""
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", dtype, list(size))],
        [helper.make_tensor_value_info("scores", dtype, None)],
        constants,
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def equal_to_crops(model: onnx.ModelProto, tolerance: float = 3e-5, **options: Any) -> ConvolutionalizedOnnx:
    """Convolutionalize, and compare every window of an image with its crop: relative to the largest score.

    The tolerance is for about a hundred terms in float32, 100 · 2^-24 · 5; exact comparisons are in `test_lift_random`
    and derived ones in `tests/verification/test_onnx_any_size.py`.
    """
    d = onebyone.convolutionalize(model, **options)
    window, stride = d.geometry.window, d.geometry.stride
    size = tuple(w + 2 * s + 1 for w, s in zip(window, stride, strict=True))
    x = RNG.standard_normal((2, d.channels, *size)).astype(np.float32)
    expected = every_crop(model, x, window, stride, d.channels_last)
    for actual, wanted in zip(run(session(ir.to_proto(d.model)), x), expected, strict=True):
        assert actual.shape == wanted.shape
        assert np.abs(actual - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())
    return d


CONV = helper.make_node("Conv", ["image", "k"], ["a"], "conv")
FLAT = [helper.make_node("Flatten", ["b"], ["c"]), helper.make_node("MatMul", ["c", "w"], ["scores"], "head")]
KERNEL = {"k": floats(4, 3, 3, 3), "w": floats(4 * 7 * 6, 2)}

ELEMENTWISE = [
    ("HardSwish", 14, {}), ("Gelu", 20, {}), ("Mish", 18, {}), ("HardSigmoid", 11, {"alpha": 0.3}), ("Elu", 11, {}),
    ("LeakyRelu", 11, {"alpha": 0.2}), ("Softplus", 11, {}), ("Erf", 11, {}), ("Selu", 11, {}), ("Celu", 12, {}),
    ("Sigmoid", 11, {}), ("ThresholdedRelu", 11, {}), ("Softsign", 11, {}), ("Identity", 11, {}), ("Dropout", 11, {}),
    ("LRN", 11, {"size": 3}), ("LpNormalization", 11, {"axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "opset", "attributes"), ELEMENTWISE)
def test_operators_on_a_map(kind: str, opset: int, attributes: dict[str, Any]) -> None:
    middle = helper.make_node(kind, ["a"], ["b"], **attributes)
    model = small([CONV, middle, *FLAT], KERNEL, opset=opset)
    assert equal_to_crops(model).geometry.exact


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_over_channels_and_over_everything_until_opset_12(opset: int, kind: str) -> None:
    """Until opset 12, a softmax over axis 1 of a map normalises over channels and positions together."""
    middle = helper.make_node(kind, ["a"], ["b"], axis=1)
    model = small([CONV, middle, *FLAT], KERNEL, opset=opset)
    equal_to_crops(model)


@pytest.mark.parametrize(("axis", "opset"), [(2, 11), (3, 11), (-1, 13), (2, 13)])
def test_log_softmax_over_positions_and_over_a_pooled_map(axis: int, opset: int) -> None:
    """What it runs on has a shape that is computed: the number of its axes is known, and the sizes are not."""
    along = helper.make_node("LogSoftmax", ["a"], ["b"], axis=axis)
    equal_to_crops(small([CONV, along, *FLAT], KERNEL, opset=opset))
    pool = helper.make_node("GlobalAveragePool", ["a"], ["p"])
    along = helper.make_node("LogSoftmax", ["p"], ["b"], axis=axis)
    equal_to_crops(small([CONV, pool, along, *FLAT], KERNEL | {"w": floats(4, 2)}, opset=opset))


def test_an_instance_normalization_of_one_position_is_exact() -> None:
    """Windows of 3×3 pixels: each channel of each window is its own mean."""
    norm = helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"])
    arrays = KERNEL | {"w": floats(4, 2), "scale": floats(4), "shift": floats(4)}
    assert equal_to_crops(small([CONV, norm, *FLAT], arrays, ("n", 3, 3, 3))).geometry.exact


def test_padding_in_which_runtimes_differ_is_refused() -> None:
    conv = helper.make_node("Conv", ["image", "k"], ["a"], "conv", auto_pad="SAME_UPPER", strides=[4, 4])
    model = small(
        [conv, helper.make_node("Identity", ["a"], ["scores"])], {"k": floats(4, 3, 1, 1)}, ("n", 3, 8, 8)
    )
    with pytest.raises(
        onebyone.errors.Refused, match="a stride of 4 leaves elements out: runtimes differ in which"
    ):
        onebyone.convolutionalize(model)


@pytest.mark.parametrize(
    ("where", "rounding", "mode"),
    [
        ("asymmetric", "floor", "nearest"), ("half_pixel", "round_prefer_floor", "nearest"),
        ("half_pixel", "floor", "nearest"), ("align_corners", "round_prefer_floor", "linear"),
        ("half_pixel", "round_prefer_floor", "cubic"),
    ],
)  # fmt: skip
def test_resize_is_lifted_only_where_it_repeats_positions(where: str, rounding: str, mode: str) -> None:
    resize = helper.make_node(
        "Resize", ["a", "", "f"], ["b"], "resize", mode=mode,
        coordinate_transformation_mode=where, nearest_mode=rounding,
    )  # fmt: skip
    pool = helper.make_node("Conv", ["image", "k"], ["a"], "conv", strides=[2, 2])
    arrays = {"k": floats(4, 3, 3, 3), "f": np.asarray([1, 1, 2, 2], np.float32), "w": floats(4 * 8 * 6, 2)}
    model = small([pool, resize, *FLAT], arrays)
    if (where, rounding) in (
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
    ) and mode == "nearest":
        assert equal_to_crops(model).geometry.stride == (2, 2)
    else:
        with pytest.raises(onebyone.errors.Refused, match=r"resize \(Resize\): interpolation"):
            onebyone.convolutionalize(model)


def test_squeeze_and_excitation_is_a_named_choice() -> None:
    nodes = [
        CONV,
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Conv", ["p", "s"], ["q"]),
        helper.make_node("Sigmoid", ["q"], ["r"]),
        helper.make_node("Mul", ["a", "r"], ["b"], "scale"),
        *FLAT,
    ]
    model = small(nodes, KERNEL | {"s": floats(4, 4, 1, 1)})
    with pytest.raises(onebyone.errors.Refused, match=r"scale \(Mul\): global context"):
        onebyone.convolutionalize(model)
    for context in ("window", "image"):
        d = onebyone.convolutionalize(model, context=context)
        assert not d.geometry.exact
        x = floats(2, 3, 9, 8)
        (dense,), (original,) = run(session(ir.to_proto(d.model)), x), run(session(model), x)
        # on an image of one window, the windows around the single window and the image are the same
        assert np.allclose(dense.reshape(2, -1), original, atol=1e-4)
        assert run(session(ir.to_proto(d.model)), floats(1, 3, 14, 11))[0].shape == (1, 2, 6, 4)


def test_a_class_map_leaves_the_average_pool_out() -> None:
    nodes = [
        CONV,
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["q"]),
        helper.make_node("Gemm", ["q", "w", "b"], ["scores"], "head", alpha=0.5, beta=2.0),
    ]
    model = small(nodes, {"k": KERNEL["k"], "w": floats(4, 2), "b": floats(2)})
    equal_to_crops(model)
    d = onebyone.convolutionalize(model, head="cam")
    assert d.class_map is not None
    assert d.class_map.pool == (7, 6)
    assert d.class_map.nonlinear == ()
    assert onebyone.verify(model, d).equivalent
    with pytest.raises(onebyone.errors.Refused, match="no average pool"):
        onebyone.convolutionalize(lenet(), head="cam")


def test_functions_are_inlined_and_branches_with_a_constant_condition_are_taken() -> None:
    body = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Add", ["y", "y"], ["z"])]
    function = helper.make_function("own", "Twice", ["x"], ["z"], body, [helper.make_opsetid("", 17)])
    branches = {
        name: helper.make_graph([helper.make_node(kind, ["t"], [f"{name}_out"])], name, [],
                                [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)])
        for name, kind in (("then_branch", "Abs"), ("else_branch", "Neg"))
    }  # fmt: skip
    nodes = [
        CONV,
        helper.make_node("Twice", ["a"], ["t"], domain="own"),
        helper.make_node("If", ["yes"], ["b"], **branches),
        *FLAT,
    ]
    equal_to_crops(small(nodes, KERNEL | {"yes": np.asarray(False)}, functions=[function]))


def test_refusals_name_the_operator_and_its_node() -> None:
    nodes = [
        CONV,
        helper.make_node("NonZero", ["a"], ["z"], "where"),
        helper.make_node("ConvTranspose", ["a", "k2"], ["b"], "up"),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Cast", ["z"], ["y"], to=1),
        helper.make_node("ReduceSum", ["y"], ["u"], keepdims=0),
        helper.make_node("Add", ["c", "u"], ["scores"]),
    ]
    with pytest.raises(onebyone.errors.Refused) as caught:
        onebyone.convolutionalize(small(nodes, KERNEL | {"k2": floats(4, 2, 2, 2)}))
    reasons = {(r.path, r.kind) for r in caught.value.refusals}
    assert reasons == {("where", "NonZero"), ("up", "ConvTranspose")}


def test_numbers_that_depend_on_the_size_of_the_batch_are_refused() -> None:
    nodes = [
        CONV,
        helper.make_node("Size", ["a"], ["s"]),
        helper.make_node("Cast", ["s"], ["t"], to=1),
        helper.make_node("Div", ["a", "t"], ["b"], "by_count"),
        *FLAT,
    ]
    with pytest.raises(onebyone.errors.Refused, match=r"by_count \(Div\): the size of the batch"):
        onebyone.convolutionalize(small(nodes, KERNEL))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window": 7}, "window is 7×7; the model was made for an input of shape"),
        ({"window": (1, 2, 3, 4)}, "one to three positive whole numbers"),
        ({"channels": 4}, "channels is 4; the input 'image' has 3"),
        ({"head": "top"}, "'window' or 'cam' was expected"),
        ({"context": "all"}, "'window', 'image' or None was expected"),
    ],
)
def test_bad_arguments(change: dict[str, Any], match: str) -> None:
    model = small([CONV, helper.make_node("Relu", ["a"], ["b"]), *FLAT], KERNEL)
    with pytest.raises(onebyone.errors.BadInput, match=match):
        onebyone.convolutionalize(model, **change)


def test_bad_models() -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    with pytest.raises(onebyone.errors.BadInput, match="opset 9; expected 11 or newer"):
        onebyone.convolutionalize(small([CONV, relu, *FLAT], KERNEL, opset=9))
    with pytest.raises(onebyone.errors.BadInput, match="leaves its size free"):
        onebyone.convolutionalize(small([CONV, relu, *FLAT], KERNEL, size=("n", 3, "h", "w")))
    with pytest.raises(onebyone.errors.BadInput, match="does not run on a 3×9×9 image"):
        onebyone.convolutionalize(small([CONV, relu, *FLAT], KERNEL, size=("n", 3, "h", "w")), window=9)
    d = onebyone.convolutionalize(
        small([CONV, relu, *FLAT], KERNEL, size=("n", "c", "h", "w")), window=(9, 8)
    )
    assert d.channels == 3
    with pytest.raises(onebyone.errors.BadInput, match="window: is missing"):
        onebyone.convolutionalize(nn.Flatten())


def test_initializers_stay_shared_and_unchanged_ones_keep_their_names() -> None:
    nodes = [
        CONV,
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["one"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Flatten", ["r"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["two"]),
        helper.make_node("Add", ["one", "two"], ["scores"]),
    ]
    d = equal_to_crops(small(nodes, KERNEL))
    shapes = [tuple(v.shape) for v in d.model.graph.initializers.values()]
    assert shapes.count((2, 4, 7, 6)) == 1
    assert "k" in d.model.graph.initializers


def test_types_stay_those_of_the_model() -> None:
    for dtype, kind in ((np.float16, TensorProto.FLOAT16), (np.float64, TensorProto.DOUBLE)):
        arrays = {name: a.astype(dtype) for name, a in KERNEL.items()}
        model = small([CONV, helper.make_node("Relu", ["a"], ["b"]), *FLAT], arrays, dtype=kind)
        d = onebyone.convolutionalize(model)
        proto = ir.to_proto(d.model)
        onnx.checker.check_model(proto, full_check=True)
        assert {t.data_type for t in proto.graph.initializer} <= {kind, TensorProto.INT64}
        assert proto.graph.output[0].type.tensor_type.elem_type == kind


def test_a_file_carries_what_is_known_of_the_model(tmp_path: Path) -> None:
    labels = onebyone.Labels(classes=("a", "b", "c"), mean=(0.5, 0.4), std=(0.2, 0.3))
    onnx.save(lenet(), tmp_path / "model.onnx")
    d = onebyone.convolutionalize(tmp_path / "model.onnx", labels=labels)
    d.save(tmp_path / "dense.onnx")
    again = load_dense(tmp_path / "dense.onnx")
    assert again.to_dict() == d.to_dict()
    assert str(again.outputs[0].kind) == "probabilities:exclusive"
    with pytest.raises(onebyone.errors.BadInput, match=r"without onebyone.json"):
        load_dense(tmp_path / "model.onnx")
    with pytest.raises(onebyone.errors.BadInput, match=r"expected a name that ends in \.onnx"):
        d.save(tmp_path / "dense.pt2")


def test_a_scan_in_onnx_runtime_equals_the_crops_and_tiles_equal_the_whole(tmp_path: Path) -> None:
    d = onebyone.convolutionalize(lenet())
    d.save(tmp_path / "dense.onnx")
    image = RNG.random((47, 38, 2)).astype(np.float32)
    labels = onebyone.Labels(scale=1.0, mean=(0.0, 0.0), std=(1.0, 1.0))
    whole = onebyone.scan(tmp_path / "dense.onnx", image, labels=labels)
    tiled = onebyone.scan(d, image, labels=labels, tile=2, batch=3)
    x = np.ascontiguousarray(np.moveaxis(image, -1, 0))[None]
    (expected,) = every_crop(lenet(), x, d.geometry.window, d.geometry.stride)
    assert whole.scores.shape == expected.shape[1:]
    # probabilities: |p − q| ≤ 2 |Δ logits|, whose running error bound for this model is below 1e-4 / 2
    assert np.abs(whole.scores - expected[0]).max() < 1e-4
    assert np.abs(tiled.scores - whole.scores).max() < 1e-4
    with pytest.raises(onebyone.errors.BadInput, match="smaller than the window"):
        onebyone.scan(d, image[:19], labels=labels)
    with pytest.raises(onebyone.errors.BadInput, match="output=2"):
        onebyone.scan(d, image, labels=labels, output=2)

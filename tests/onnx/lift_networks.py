"""Random small convolutional ONNX models whose numbers are integers, so that every sum is exact in float32.

Dense results must equal those of crops bit for bit, and no tolerance is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
NEWEST_OPSET = 23
OPSETS = (11, 12, 13, 17, 18, 21, NEWEST_OPSET)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(loaded: ort.InferenceSession, x: Array) -> list[Array]:
    return [np.asarray(y) for y in loaded.run(None, {loaded.get_inputs()[0].name: x})]


def every_crop(
    original: onnx.ModelProto, x: Array, window: Sequence[int], stride: Sequence[int], last: bool = False
) -> list[Array]:
    """The outputs of a model on every crop of `x` `(N, C, H, W)`, as `(N, K, *positions)`.

    `last`: the model takes channels last.
    """
    loaded = session(original)
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape[2:], window, stride, strict=True)]
    columns: list[list[Array]] = []
    for position in itertools.product(*map(range, counts)):
        area = tuple(slice(p * s, p * s + w) for p, s, w in zip(position, stride, window, strict=True))
        crop = x[(slice(None), slice(None), *area)]
        crop = np.ascontiguousarray(np.moveaxis(crop, 1, -1) if last else crop)
        rows = [run(loaded, sample[None]) for sample in crop]
        columns.append([np.stack([row[k].reshape(-1) for row in rows]) for k in range(len(rows[0]))])
    return [
        np.stack([column[k] for column in columns], -1).reshape(len(x), -1, *counts)
        for k in range(len(columns[0]))
    ]


@dataclass
class Graph:
    """A model while it is written: the newest value, its shape `(C, H, W)`, the nodes and the constants."""

    rng: np.random.Generator
    opset: int
    shape: tuple[int, int, int]
    value: str = "image"
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.input_shape = self.shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        if self.channels_last:
            self.add("Transpose", [self.value], self.shape, perm=[0, 3, 1, 2])

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *shape: int) -> str:
        return self.constant(self.rng.integers(-2, 3, shape).astype(np.float32))

    def add(self, kind: str, operands: Sequence[str], shape: Any, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(operands), [name], f"n{len(self.nodes)}", **attributes))
        self.value, self.shape = name, shape
        return name

    def model(self, batch: int | str = "n") -> onnx.ModelProto:
        c, h, w = self.input_shape
        sizes = [batch, h, w, c] if self.channels_last else [batch, c, h, w]
        source = helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)
        result = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, ["rows", 3])
        graph = helper.make_graph(self.nodes, "random", [source], [result], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def _convolution(g: Graph, pads: bool) -> None:
    c, h, w = g.shape
    kernel = [int(g.rng.integers(1, min(4, n) + 1)) for n in (h, w)]
    dilation = [
        int(g.rng.integers(1, 3)) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, (h, w), strict=True)
    ]
    stride = [int(g.rng.integers(1, 3)) for _ in kernel]
    groups = int(g.rng.choice([1, c])) if c > 1 else 1
    out = int(g.rng.integers(1, 4)) * groups
    attributes: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups}
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(e > n for e, n in zip(extent, (h, w), strict=True)):
        return
    if pads and g.rng.random() < 0.5:
        attributes["dilations"], extent = [1, 1], kernel  # ONNX Runtime has no auto_pad with dilation
        attributes["auto_pad"] = str(g.rng.choice(["SAME_UPPER", "SAME_LOWER"]))
        size = [-(-n // s) for n, s in zip((h, w), stride, strict=True)]
    elif pads:
        amounts = [int(n) for n in g.rng.integers(0, 2, 4)]
        attributes["pads"] = amounts
        size = [
            (n + amounts[a] + amounts[a + 2] - e) // s + 1
            for a, (n, e, s) in enumerate(zip((h, w), extent, stride, strict=True))
        ]
    else:
        size = [(n - e) // s + 1 for n, e, s in zip((h, w), extent, stride, strict=True)]
    operands = [g.value, g.integers(out, c // groups, *kernel)]
    operands += [g.integers(out)] if g.rng.random() < 0.7 else []
    g.add("Conv", operands, (out, *size), **attributes)


def _pool(g: Graph) -> None:
    c, h, w = g.shape
    if min(h, w) < 2:
        return
    kind, stride = str(g.rng.choice(["MaxPool", "AveragePool"])), [int(s) for s in g.rng.integers(1, 3, 2)]
    size = [(n - 2) // s + 1 for n, s in zip((h, w), stride, strict=True)]
    g.add(kind, [g.value], (c, *size), kernel_shape=[2, 2], strides=stride)


def _elements(g: Graph) -> None:
    kind = str(g.rng.choice(["Relu", "Clip", "Add", "Mul", "PRelu", "Max", "Where"]))
    one = g.constant(np.asarray(0, dtype=np.float32))
    if kind == "Clip":
        g.add("Clip", [g.value, one, g.constant(np.asarray(50, dtype=np.float32))], g.shape)
    elif kind in ("Add", "Mul", "PRelu"):
        rank = (g.shape[0], 1, 1) if kind == "PRelu" else (1, g.shape[0], 1, 1)
        g.add(kind, [g.value, g.integers(*rank)], g.shape)
    elif kind == "Max":
        g.add("Max", [g.value, one], g.shape)
    elif kind == "Where":
        before, shape = g.value, g.shape
        condition = g.add("Less", [before, one], shape)
        g.add("Where", [condition, one, before], shape)
    else:
        g.add("Relu", [g.value], g.shape)


def _branches(g: Graph) -> None:
    """Two 1×1 or cropped branches, side by side along the channels or added."""
    start, shape = g.value, g.shape
    c, h, w = shape
    first = g.add("Conv", [start, g.integers(2, c, 1, 1)], (2, h, w))
    g.shape = shape
    second = g.add("Conv", [start, g.integers(2, c, 1, 1)], (2, h, w))
    if g.rng.random() < 0.5:
        g.add("Add", [first, second], (2, h, w))
    else:
        g.add("Concat", [first, second], (4, h, w), axis=1)


def _shuffle(g: Graph) -> None:
    """The channels regrouped by a chain of shapes that is computed from the value's own shape."""
    c, h, w = g.shape
    if c % 2:
        return
    before = g.value
    sizes = g.add("Shape", [before], ())
    batch = g.add("Gather", [sizes, g.constant(np.asarray([0]))], (), axis=0)
    rest = g.constant(np.asarray([2, c // 2, h, w]))
    split = g.add("Concat", [batch, rest], (), axis=0)
    five = g.add("Reshape", [before, split], ())
    swapped = g.add("Transpose", [five], (), perm=[0, 2, 1, 3, 4])
    g.add("Reshape", [swapped, g.constant(np.asarray([0, c, h, -1]))], (c, h, w))


def _head(g: Graph) -> None:
    c, h, w = g.shape
    kind = str(g.rng.choice(["flatten", "reshape", "pool", "sum", "nhwc"]))
    if kind == "sum" and (h * w) & (h * w - 1):
        kind = "pool"  # a sum is the mean times the count, which is exact for powers of two alone
    if kind == "pool":
        g.add("GlobalMaxPool", [g.value], (c, 1, 1))
    if kind == "sum":
        if g.opset >= 13:
            g.add("ReduceSum", [g.value, g.constant(np.asarray([2, 3]))], (c, 1, 1), keepdims=1)
        else:
            g.add("ReduceSum", [g.value], (c, 1, 1), axes=[2, 3], keepdims=1)
    if kind == "nhwc":
        g.add("Transpose", [g.value], g.shape, perm=[0, 2, 3, 1])
    size = c if kind in ("pool", "sum") else c * h * w
    if kind == "reshape":
        g.add("Reshape", [g.value, g.constant(np.asarray([-1, size]))], (size, 1, 1))
    else:
        g.add("Flatten", [g.value], (size, 1, 1))
    if g.rng.random() < 0.5:
        g.add("Gemm", [g.value, g.integers(3, size), g.integers(3)], (3, 1, 1), transB=1)
    else:
        g.add("MatMul", [g.value, g.integers(size, 3)], (3, 1, 1))
        g.add("Add", [g.value, g.integers(3)], (3, 1, 1))


def random_network(seed: int, pads: bool = False) -> tuple[Graph, tuple[int, int]]:
    """A random model, and its window."""
    rng = np.random.default_rng(seed)
    window = int(rng.integers(6, 13)), int(rng.integers(6, 13))
    shape = int(rng.integers(1, 4)), *window
    g = Graph(rng, int(rng.choice(OPSETS)), shape, channels_last=bool(rng.random() < 0.25))
    _convolution(g, pads)
    for _ in range(int(rng.integers(1, 5))):
        step = int(rng.integers(0, 6))
        if step <= 1:
            _convolution(g, pads and rng.random() < 0.5)
        elif step == 2:
            _pool(g)
        elif step == 3:
            _elements(g)
        elif step == 4:
            _branches(g)
        else:
            _shuffle(g)
    _head(g)
    return g, window

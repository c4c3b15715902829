"""`python -m bench.onnx_dense`: ONNX classifiers as any-size models, each window against its crop through the original.

Writes `bench/results/onnx_dense.json`. A model that is done is not run again, unless `--again` is given.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import onebyone
from bench.zoo.totals import machine
from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx
from onebyone.pytorch.files.sources import load_source
from onebyone.records import table
from onebyone.verification.onnx_network import CallableOnnx
from onebyone.verification.window_crops import all_windows, run_on_windows

RESULTS = Path(__file__).parent / "results" / "onnx_dense.json"
ROUNDS = 3  # of timing; the fastest of each side counts
Array = np.ndarray[Any, Any]


def exported(network: nn.Module, window: Sequence[int], path: Path, channels: int = 3) -> None:
    """A PyTorch network as an ONNX file, with a free batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(1, channels, *window),), path, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["scores"], dynamic_axes={"image": {0: "n"}, "scores": {0: "n"}},
        )  # fmt: skip


def torchvision(name: str) -> Callable[[Path], Array]:
    """A network of torchvision at 224 pixels with random weights, and an image of 2×3 windows.

    Batch norms take the statistics of random images, so that the numbers stay of order one through the network.
    """

    def make(path: Path) -> Array:
        torch.manual_seed(0)
        network = load_source(f"torchvision:{name}")
        assert isinstance(network, nn.Module)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.no_grad():
            network.train()(torch.randn(4, 3, 224, 224))
        exported(network, (224, 224), path)
        return np.random.default_rng(0).standard_normal((1, 3, 256, 288)).astype(np.float32)

    return make


def digits_lenet(path: Path) -> Array:
    """A LeNet for the digits of scikit-learn (8×8 pixels), trained here, and a page of digits."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    targets = torch.from_numpy(data.target)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(),
        nn.Linear(32, 10), nn.Softmax(1),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.nll_loss(network(images).log(), targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    exported(network, (8, 8), path, channels=1)
    page = np.zeros((1, 1, 44, 60), dtype=np.float32)
    for number, (y, x) in enumerate(np.ndindex(3, 4)):
        page[0, 0, 3 + 13 * y : 11 + 13 * y, 4 + 14 * x : 12 + 14 * x] = images[number, 0].numpy()
    return page


def keras_nhwc(path: Path) -> Array:
    """A classifier in the form in which Keras models are exported: channels last, Transposes around convolutions."""
    rng = np.random.default_rng(0)
    arrays = {
        "k1": rng.standard_normal((16, 3, 3, 3)) / 5, "b1": rng.standard_normal(16),
        "k2": rng.standard_normal((24, 16, 3, 3)) / 12,
        "scale": rng.random(24) + 0.5, "shift": rng.standard_normal(24), "mean": rng.standard_normal(24),
        "var": rng.random(24) + 0.5, "w1": rng.standard_normal((24 * 36, 32)) / 30, "b2": rng.standard_normal(32),
        "w2": rng.standard_normal((32, 10)) / 6, "b3": rng.standard_normal(10),
    }  # fmt: skip
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k1", "b1"], ["a"], auto_pad="VALID"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **pool),
        helper.make_node("Conv", ["c", "k2"], ["d"], auto_pad="VALID"),
        helper.make_node("BatchNormalization", ["d", "scale", "shift", "mean", "var"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MaxPool", ["f"], ["g"], **pool),
        helper.make_node("Transpose", ["g"], ["h"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["h", "rows"], ["i"]),
        helper.make_node("MatMul", ["i", "w1"], ["j"], "dense"),
        helper.make_node("Add", ["j", "b2"], ["k"]),
        helper.make_node("Relu", ["k"], ["l"]),
        helper.make_node("MatMul", ["l", "w2"], ["m"], "dense_1"),
        helper.make_node("Add", ["m", "b3"], ["n"]),
        helper.make_node("Softmax", ["n"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    constants.append(numpy_helper.from_array(np.asarray([-1, 24 * 36]), "rows"))
    graph = helper.make_graph(
        nodes,
        "keras",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return rng.standard_normal((1, 3, 64, 80)).astype(np.float32)


MODELS: dict[str, Callable[[Path], Array]] = {
    "LeNet on digits": digits_lenet,
    "Keras-shaped NHWC": keras_nhwc,
    "MobileNetV2": torchvision("mobilenet_v2"),
    "ResNet-18": torchvision("resnet18"),
    "VGG-11": torchvision("vgg11"),
}


def measured(name: str) -> dict[str, Any]:
    """One row: what was verified, and the time of a dense pass and of all crops in ONNX Runtime."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", onebyone.errors.OnebyoneWarning)
        path = Path(folder) / "model.onnx"
        image = MODELS[name](path)
        start = time.perf_counter()
        d = onebyone.convolutionalize(path)
        assert isinstance(d, ConvolutionalizedOnnx)
        seconds = time.perf_counter() - start
        verification = onebyone.verify(path, d, image, min_agreement=0)
        d.save(Path(folder) / "dense.onnx")
        bytes_before, bytes_after = (
            sum(f.stat().st_size for f in Path(folder).glob(f"{stem}.onnx*")) for stem in ("model", "dense")
        )
        ratio = _crops_over_dense(d, image)
    check = verification.dense
    assert check is not None
    return {
        "model": name,
        "window": list(d.geometry.window),
        "stride": list(d.geometry.stride),
        "receptive_field": list(d.geometry.receptive_field),
        "image": list(image.shape[2:]),
        "exact": d.geometry.exact,
        "inexact_because": len(d.geometry.inexact_because),
        "equivalent": verification.equivalent,
        "target": check.target,
        "windows": check.windows,
        "largest_difference": check.max_abs_difference,
        "bound": check.bound,
        "share_of_bound": check.bound_ratio,
        "float64_difference": check.float64_difference,
        "float64_limit": check.float64_limit,
        "planted_shift": check.planted_shift,
        "difference_over_spread": check.relative_to_spread,
        "same_best_class": check.class_agreement,
        "one_window_difference": verification.max_error,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "seconds_to_convert": round(seconds, 2),
        "crops_time_over_dense_time": ratio,
    }


def _crops_over_dense(d: ConvolutionalizedOnnx, image: Array) -> float:
    """The time of all crops, one by one in batches of up to 64, over that of one dense pass, in one run."""
    x = torch.from_numpy(image)
    original = CallableOnnx(d.original, channels_last=d.channels_last, bare=d.bare, batch=d.batch)
    dense = CallableOnnx(d.model)
    windows = all_windows(
        d.geometry.positions(image.shape[2:]), len(image), d.geometry.window, d.geometry.stride
    )
    best = {"crops": float("inf"), "dense": float("inf")}
    runs: dict[str, Callable[[], object]] = {
        "crops": lambda: run_on_windows(lambda c: [original(c)], x, windows, min(64, len(windows))),
        "dense": lambda: dense(x),
    }
    for _ in range(ROUNDS):
        for side, run in runs.items():
            start = time.perf_counter()
            run()
            best[side] = min(best[side], time.perf_counter() - start)
    return round(best["crops"] / best["dense"], 2)


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a model: every window against its crop through the original file."""
    headers = (
        "model", "windows", "exact", "largest difference", "bound", "float64 difference", "its limit",
        "over the spread", "same class", "equivalent", "crops / dense time",
    )  # fmt: skip
    keys = (
        "model", "windows", "exact", "largest_difference", "bound", "float64_difference", "float64_limit",
        "difference_over_spread", "same_best_class", "equivalent", "crops_time_over_dense_time",
    )  # fmt: skip

    def text(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)

    return table(headers, [tuple(text(row[key]) for key in keys) for row in rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models that are not done; return 1 if any is not equivalent."""
    parser = argparse.ArgumentParser("python -m bench.onnx_dense", description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure every model again")
    again = parser.parse_args(arguments).again
    done = {} if again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = {row["model"]: row for row in done.get("models", ())}
    for name in MODELS:
        if name not in rows:
            rows[name] = measured(name)
            page = {"machine": machine(), "models": [rows[n] for n in MODELS if n in rows]}
            RESULTS.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{name}: {rows[name]['target']}", flush=True)
    print(as_table([rows[name] for name in MODELS]))
    return int(not all(row["equivalent"] for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())

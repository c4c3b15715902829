"""Export the files of the zoo; each is kept, with an example of its inputs, until how it is made changes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bench.onnx_zoo import files, networks
from bench.onnx_zoo.files import File
from bench.zoo.models import randomised
from bench.zoo.work import ROOT

Array = np.ndarray[Any, Any]

EXPORTS = ROOT / "bench" / "work" / "onnx_zoo" / "files"
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "timm", "torchvision", "skl2onnx")


def exported(file: File) -> tuple[Path, dict[str, Array]]:
    """The path of a file, exported unless it is kept, and an example of its inputs by name."""
    folder = EXPORTS / re.sub(r"[^\w.-]+", "-", file.key).strip("-")
    mark = folder / "made_by"
    if not mark.exists() or mark.read_text(encoding="utf-8") != _mark(file):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            feeds = _export(file, folder / "model.onnx")
        np.savez(folder / "example.npz", **feeds)  # type: ignore[arg-type]
        mark.write_text(_mark(file), encoding="utf-8")
    with np.load(folder / "example.npz") as stored:
        return folder / "model.onnx", dict(stored)


@cache
def _sources() -> str:
    paths = [Path(__file__), Path(networks.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _mark(file: File) -> str:
    return json.dumps([asdict(file), _sources(), [version(name) for name in LIBRARIES]])


def _export(file: File, path: Path) -> dict[str, Array]:
    if file.exporter == files.SKLEARN:
        return _from_sklearn(file.source, path)
    network, inputs = networks.build(file.source)
    network = network.eval()
    if not isinstance(network, torch.jit.ScriptModule):
        network = randomised(network)
    if file.then == files.HALF:
        network, inputs = network.half(), tuple(x.half() for x in inputs)
    first = path if file.then in (None, files.HALF) else path.with_name("exported.onnx")
    (_by_dynamo if file.exporter == files.DYNAMO else _by_torchscript)(network, inputs, first, file.free)
    names = [value.name for value in onnx.load(first, load_external_data=False).graph.input]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    if first is not path:
        _changed(first, path, str(file.then), feeds)
        first.unlink()
    return feeds


def _by_torchscript(network: nn.Module, inputs: tuple[Tensor, ...], path: Path, free: bool) -> None:
    names = [f"x{index}" for index in range(len(inputs))]
    axes = {name: {0: "batch"} for name in names} | {"y": {0: "batch"}} if free else None
    torch.onnx.export(
        network,
        inputs,
        path,
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["y"],
        dynamic_axes=axes,
    )


def _by_dynamo(network: nn.Module, inputs: tuple[Tensor, ...], path: Path, free: bool) -> None:
    shapes: Any = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if free else None
    if shapes is not None and isinstance(network, networks.Text):
        shapes = (shapes,)  # its forward takes *values
    torch.onnx.export(
        network, inputs, path, dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
    )


def _from_sklearn(source: str, path: Path) -> dict[str, Array]:
    """A network that scikit-learn trains on its digits."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    digits, labels = load_digits(return_X_y=True)
    kind = MLPClassifier if source.endswith("classifier") else MLPRegressor
    network = kind(hidden_layer_sizes=(32, 16), max_iter=40, random_state=0).fit(digits, labels)
    example = digits[:16].astype(np.float32)
    path.write_bytes(to_onnx(network, example[:1], target_opset=17).SerializeToString())
    return {"X": example}


def _changed(source: Path, target: Path, then: str, feeds: Mapping[str, Array]) -> None:
    """Quantise or optimise a file with ONNX Runtime's tools."""
    if then == files.OPTIMISED:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    elif then == files.DYNAMIC:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(source, target)
    elif then == files.FOUR_BITS:
        _four_bits(source, target)
    else:
        _static(source, target, then, feeds)


def _static(source: Path, target: Path, then: str, feeds: Mapping[str, Array]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Four batches around the example."""

        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            floats = {name: x for name, x in feeds.items() if x.dtype.kind == "f"}
            noise = (
                {n: x + rng.normal(size=x.shape).astype(x.dtype) for n, x in floats.items()} for _ in range(4)
            )
            self.batches = iter([{**feeds, **changed} for changed in noise])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QOperator if then == files.QOPERATOR else QuantFormat.QDQ,
        per_channel=then == files.QDQ_CHANNELS,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _four_bits(source: Path, target: Path) -> None:
    """Weights of four bits with a scale for each block of 16, as DequantizeLinear and MatMul."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), block_size=16, is_symmetric=True, quant_format=QuantFormat.QDQ
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)

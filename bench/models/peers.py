"""Other engines as their users run them, independent of `onebyone.tune`; each function returns a call."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]
THREADS = torch.get_num_threads


def eager(model: nn.Module, x: Tensor) -> Call:
    """PyTorch in eager mode."""
    return lambda: model(x)


def eager_channels_last(model: nn.Module, x: Tensor) -> Call:
    """Eager mode with weights and images in channels-last format; other networks as in `eager`."""
    network = copy.deepcopy(model)
    if x.dim() == 4:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    return lambda: network(x)


def _compiled(model: nn.Module, x: Tensor, **settings: Any) -> Call:
    import torch._dynamo
    import torch._inductor.config as config

    torch._dynamo.reset()
    with config.patch(**settings), torch.inference_mode():
        compiled = torch.compile(model)
        compiled(x)
    return lambda: compiled(x)


def compile_default(model: nn.Module, x: Tensor) -> Call:
    """`torch.compile(model)`."""
    return _compiled(model, x)


def compile_freezing(model: nn.Module, x: Tensor) -> Call:
    """`torch.compile` with `TORCHINDUCTOR_FREEZING`."""
    return _compiled(model, x, freezing=True)


def export_onnx(model: nn.Module, x: Tensor, path: Path) -> None:
    """Export with `torch.onnx` to a single file."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)


def onnxruntime(model: nn.Module, x: Tensor) -> Call:
    """ONNX Runtime on the export of `torch.onnx`, with all graph optimisations (the default)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, x, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(model: nn.Module, x: Tensor) -> Call:
    """OpenVINO on the export of `torch.onnx`, in float32, optimised for latency."""
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS(),
        "NUM_STREAMS": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, x, path)
        core = ov.Core()
        request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()
    feed = {0: x.numpy()}
    return lambda: torch.from_numpy(request.infer(feed, share_inputs=True, share_outputs=True)[0])


PEERS: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": eager,
    "eager_channels_last": eager_channels_last,
    "compile": compile_default,
    "compile_freezing": compile_freezing,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
ON_GPU = ("eager", "eager_channels_last", "compile", "compile_freezing")

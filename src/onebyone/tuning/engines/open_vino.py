"""OpenVINO: the exported program, converted in memory and computed in float32."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import Engine, EngineSettings, register_engine, why_not_installed
from onebyone.tuning.engines.exported_program import Exported, UnsupportedError, export, flat_inputs


def why_unavailable(settings: EngineSettings) -> str | None:
    """Return the reason if it is not installed, or the device is not a CPU; else None."""
    if reason := why_not_installed("openvino"):
        return reason
    if settings.device.type != "cpu":
        return f"it does not run on {settings.device.type}"
    return None


def _build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    exported = export(network, signature)
    compiled = _compiled(exported, settings)
    request = compiled.create_infer_request()
    if len(compiled.inputs) != len(exported.names) or len(compiled.outputs) != exported.outputs:
        raise UnsupportedError("the conversion to OpenVINO changed its inputs or outputs")

    def call(*args: Any, **kwargs: Any) -> Any:
        feed = {i: t.contiguous().numpy() for i, t in enumerate(flat_inputs(args, kwargs))}
        # inputs are shared; outputs are copied, because the request overwrites its own with the next call
        outputs = request.infer(feed, share_inputs=True)
        return exported.rebuild([torch.from_numpy(outputs[i]) for i in range(exported.outputs)])

    return call


def _compiled(exported: Exported, settings: EngineSettings) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino as ov

        try:
            model = ov.convert_model(exported.program)
        except Exception:  # its ONNX front end may support operators that its PyTorch front end does not
            model = _through_onnx(exported)
    return compiled_model(model, settings.threads)


def compiled_model(model: Any, threads: int) -> Any:
    """A model of OpenVINO, or the path of an ONNX file, compiled for the processor: float32, `threads` threads."""
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino as ov

        return ov.Core().compile_model(model, "CPU", hints)


def _through_onnx(exported: Exported) -> Any:
    import openvino as ov

    from onebyone.tuning.engines.onnx_runtime import write_onnx

    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder:
        return ov.convert_model(write_onnx(exported, Path(folder)))


register_engine(
    Engine(
        "openvino",
        _build,
        tries_form=lambda form: form in ("original", "conv", "linear", "layers"),
        library="openvino",
        why_unavailable=why_unavailable,
    )
)

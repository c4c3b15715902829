"""OpenVINO: the exported program converted in memory, computing in float32."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import Engine, EngineSetting, not_installed, register_engine
from onebyone.tuning.engines.exported_program import Exported, UnsupportedError, export, flat_inputs


def why_not(setting: EngineSetting) -> str | None:
    """Not installed, or not on a processor."""
    if reason := not_installed("openvino"):
        return reason
    if setting.device.type != "cpu":
        return f"it does not run on {setting.device.type}"
    return None


def _build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    exported = export(network, calling, setting)
    compiled = _compiled(exported, setting)
    request = compiled.create_infer_request()
    if len(compiled.inputs) != len(exported.names) or len(compiled.outputs) != exported.outputs:
        raise UnsupportedError("its OpenVINO form has other inputs or outputs")

    def call(*args: Any, **kwargs: Any) -> Any:
        feed = {i: t.contiguous().numpy() for i, t in enumerate(flat_inputs(args, kwargs))}
        # inputs are read where they lie; outputs are copied, because the request writes over its own next time
        found = request.infer(feed, share_inputs=True)
        return exported.rebuild([torch.from_numpy(found[i]) for i in range(exported.outputs)])

    return call


def _compiled(exported: Exported, setting: EngineSetting) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino as ov

        try:
            model = ov.convert_model(exported.program)
        except Exception:  # operators that its PyTorch front end does not know, its ONNX one may
            model = _through_onnx(exported)
        hints = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": setting.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return ov.Core().compile_model(model, "CPU", hints)


def _through_onnx(exported: Exported) -> Any:
    import openvino as ov

    from onebyone.tuning.engines.onnx_runtime import write_onnx

    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder:
        return ov.convert_model(write_onnx(exported, Path(folder)))


OPENVINO = register_engine(
    Engine(
        "openvino",
        _build,
        wants=lambda form: form in ("original", "conv", "linear", "layers"),
        library="openvino",
        why_not=why_not,
    )
)

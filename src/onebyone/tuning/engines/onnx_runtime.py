"""ONNX Runtime: the network exported with `torch.onnx` to a temporary folder."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.records import first_line
from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import Engine, EngineSettings, register_engine, why_not_installed
from onebyone.tuning.engines.exported_program import Exported, UnsupportedError, export, flat_inputs

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def why_unavailable(settings: EngineSettings) -> str | None:
    """Return the reason if it is not installed, or not built for the device; else None."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if reason := why_not_installed(library):
            return reason
    import onnxruntime as ort

    if settings.device.type == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA (onnxruntime-gpu has it)"
    if settings.device.type not in ("cpu", "cuda"):
        return f"it does not run on {settings.device.type}"
    return None


def _build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    exported = export(network, signature)
    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder:
        session = _session(write_onnx(exported, Path(folder)), settings)
    missing = set(exported.names) - {i.name for i in session.get_inputs()}
    if missing:
        raise UnsupportedError(f"the export to ONNX removed the inputs {', '.join(sorted(missing))}")
    run = _on_cpu
    if settings.device.type == "cuda":
        run = _on_cuda
        for out in session.get_outputs():
            if out.type not in _TYPES or not all(isinstance(n, int) for n in out.shape):
                raise UnsupportedError(
                    f"its output {out.name} has no fixed shape and dtype: {out.type}{out.shape}"
                )

    def call(*args: Any, **kwargs: Any) -> Any:
        return exported.rebuild(run(session, exported.names, flat_inputs(args, kwargs)))

    return call


def write_onnx(exported: Exported, folder: Path) -> Path:
    """Write the program as an ONNX file with external weights into `folder`, and return its path."""
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported.program, dynamo=True, verbose=False, optimize=True)
    if program is None:
        raise UnsupportedError("torch.onnx returned no program")
    program.save(path, external_data=True)
    return path


def _session(path: Path, settings: EngineSettings) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # threads may spin during a run but not after it, where they would slow down the next candidate
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cuda = ("CUDAExecutionProvider", {"device_id": settings.device.index or 0})
    providers: list[Any] = ["CPUExecutionProvider"]
    if settings.device.type == "cuda":
        providers.insert(0, cuda)
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the exceptions of onnxruntime have no common base class
        raise UnsupportedError(first_line(error)) from error


def _on_cpu(session: Any, names: tuple[str, ...], tensors: list[Tensor]) -> list[Tensor]:
    """Run on the CPU: inputs are not copied, and PyTorch takes over the memory of the outputs."""
    feed = {name: t.contiguous().numpy() for name, t in zip(names, tensors, strict=True)}
    return [torch.from_numpy(out) for out in session.run(None, feed)]


def _on_cuda(session: Any, names: tuple[str, ...], tensors: list[Tensor]) -> list[Tensor]:
    """Run on the GPU: inputs and outputs stay on the device, and outputs are written to tensors of PyTorch."""
    binding = session.io_binding()
    inputs = [t.contiguous() for t in tensors]
    outputs = [inputs[0].new_empty(out.shape, dtype=_TYPES[out.type]) for out in session.get_outputs()]
    for names_, values, bind in (
        (names, inputs, binding.bind_input),
        ([out.name for out in session.get_outputs()], outputs, binding.bind_output),
    ):
        for name, t in zip(names_, values, strict=True):
            kind = t.new_empty(0, device="cpu").numpy().dtype
            bind(name, "cuda", t.device.index or 0, kind, tuple(t.shape), t.data_ptr())
    torch.cuda.current_stream().synchronize()  # ONNX Runtime has its own stream, so the inputs must be complete
    session.run_with_iobinding(binding)
    return outputs


register_engine(
    Engine(
        "onnxruntime",
        _build,
        tries_form=lambda form: form in ("original", "conv", "linear", "layers"),
        library="onnxruntime",
        why_unavailable=why_unavailable,
    )
)

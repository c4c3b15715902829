"""ONNX Runtime: the network exported through `torch.onnx` (in memory where it fits, else in a temporary folder)."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.records import first_line
from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import Engine, EngineSetting, not_installed, register_engine
from onebyone.tuning.engines.exported_program import Exported, UnsupportedError, export, flat_inputs

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def why_not(setting: EngineSetting) -> str | None:
    """Not installed, or not built for the device."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if reason := not_installed(library):
            return reason
    import onnxruntime as ort

    if setting.device.type == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA (onnxruntime-gpu has it)"
    if setting.device.type not in ("cpu", "cuda"):
        return f"it does not run on {setting.device.type}"
    return None


def _build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    exported = export(network, calling, setting)
    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder:
        session = _session(write_onnx(exported, Path(folder)), setting)
    missing = set(exported.names) - {i.name for i in session.get_inputs()}
    if missing:
        raise UnsupportedError(f"its ONNX form has lost the inputs {', '.join(sorted(missing))}")
    run = _on_cpu
    if setting.device.type == "cuda":
        run = _on_cuda
        for out in session.get_outputs():
            if out.type not in _TYPES or not all(isinstance(n, int) for n in out.shape):
                raise UnsupportedError(
                    f"its output {out.name} has no fixed shape and type: {out.type}{out.shape}"
                )

    def call(*args: Any, **kwargs: Any) -> Any:
        return exported.rebuild(run(session, exported.names, flat_inputs(args, kwargs)))

    return call


def write_onnx(exported: Exported, folder: Path) -> Path:
    """The program as an ONNX file in `folder`, weights beside it."""
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported.program, dynamo=True, verbose=False, optimize=True)
    if program is None:
        raise UnsupportedError("torch.onnx gave no program")
    program.save(path, external_data=True)
    return path


def _session(path: Path, setting: EngineSetting) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # threads spin within a run, as usual, but not after it: they would take the processor from whoever runs next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cuda = ("CUDAExecutionProvider", {"device_id": setting.device.index or 0})
    providers: list[Any] = ["CPUExecutionProvider"]
    if setting.device.type == "cuda":
        providers.insert(0, cuda)
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise UnsupportedError(first_line(error)) from error


def _on_cpu(session: Any, names: tuple[str, ...], tensors: list[Tensor]) -> list[Tensor]:
    """Inputs are read where they lie; outputs are arrays that PyTorch takes over."""
    feed = {name: t.contiguous().numpy() for name, t in zip(names, tensors, strict=True)}
    return [torch.from_numpy(out) for out in session.run(None, feed)]


def _on_cuda(session: Any, names: tuple[str, ...], tensors: list[Tensor]) -> list[Tensor]:
    """Inputs and outputs stay on the device: outputs are written into tensors of PyTorch's."""
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
    torch.cuda.current_stream().synchronize()  # what makes the inputs must have ended: ONNX Runtime has its own queue
    session.run_with_iobinding(binding)
    return outputs


ONNXRUNTIME = register_engine(
    Engine(
        "onnxruntime",
        _build,
        wants=lambda form: form in ("original", "conv", "linear", "layers"),
        library="onnxruntime",
        why_not=why_not,
    )
)

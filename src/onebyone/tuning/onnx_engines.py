"""ONNX models of one input in the engines that run them: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onebyone.errors import BadInput, MissingExtra
from onebyone.records import first_line
from onebyone.tuning.engines import engine_named

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_Run = Callable[[Array, Sequence[int]], list[Array]]

#: The engines that load ONNX models, and what they are called. The first is the one that is used unless told otherwise.
ONNX_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class LoadedOnnx:
    """A model of onnx-ir with one input, loaded by an engine. Call it with an array to get the outputs.

    Parameters
    ----------
    engine: "onnxruntime" or "openvino".
    device: "cpu", or "cuda" for ONNX Runtime where it has that provider.
    threads: of one call; 0 lets the engine choose.

    Raises
    ------
    MissingExtra
        the engine is not installed.
    BadInput
        the device cannot be used, the model has several inputs, or the engine does not load it.
    """

    def __init__(
        self, model: ir.Model, engine: str = "onnxruntime", *, device: str = "cpu", threads: int = 0
    ) -> None:
        from onebyone.onnx.model_file import save_model
        from onebyone.onnx_file import fed_inputs

        inputs = fed_inputs(model.graph)
        if len(inputs) != 1:
            names = ", ".join(str(v.name) for v in inputs)
            raise BadInput(f"model: has the inputs {names}; expected an ONNX model of one input")
        require_known_engine(engine)
        self.engine, self.input = engine, str(inputs[0].name)
        self.dtype = np.dtype(np.float32 if inputs[0].dtype is None else inputs[0].dtype.numpy())
        self.outputs = tuple(str(value.name) for value in model.graph.outputs)
        self._process = os.getpid()
        load = _onnx_runtime if engine == "onnxruntime" else _open_vino
        folder = tempfile.mkdtemp(prefix="onebyone-")
        # the engines map the file of the weights into memory, so that it is kept as long as the model
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # a file, because a model in memory cannot have 2 GB or tensors in other files
        self._run = load(save_model(model, Path(folder) / "model.onnx"), self, device, threads)

    def __call__(self, values: Array, outputs: Sequence[int] | None = None) -> list[Array]:
        """The outputs of these numbers, or all, for one array, which is converted to the input's type.

        Raises BadInput where the engine does not run the model on it.
        """
        if os.getpid() != self._process:
            raise BadInput(
                "an ONNX model that was loaded before a fork cannot run after it: load it in the new process"
            )
        try:
            inputs = np.ascontiguousarray(values, dtype=self.dtype)
            return self._run(inputs, range(len(self.outputs)) if outputs is None else outputs)
        except Exception as error:  # the engines have errors of several kinds
            raise BadInput(
                f"{ONNX_ENGINES[self.engine]} cannot run the model: {first_line(error)}"
            ) from error


def require_known_engine(engine: str) -> None:
    """Raise BadInput for anything but a name in `ONNX_ENGINES`."""
    if engine not in ONNX_ENGINES:
        raise BadInput(f"engine={engine!r}: expected {' or '.join(map(repr, ONNX_ENGINES))}")


def installed_engines() -> list[str]:
    """The engines of `ONNX_ENGINES` that can be imported here.

    >>> set(installed_engines()) <= set(ONNX_ENGINES)
    True
    """
    from importlib.util import find_spec

    return [name for name in ONNX_ENGINES if find_spec(engine_named(name).library) is not None]


def _onnx_runtime(path: Path, loaded: LoadedOnnx, device: str, threads: int) -> _Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "engines", "running an ONNX model") from error
    provider = _PROVIDERS.get(device.partition(":")[0])
    if provider not in onnxruntime.get_available_providers():
        raise BadInput(f"device={device!r}: cannot be used here: ONNX Runtime does not have it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # threads may spin during a run but not after it, where they would slow down whatever runs next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime has errors of several kinds
        raise BadInput(f"ONNX Runtime cannot load the model: {first_line(error)}") from error

    def run(values: Array, outputs: Sequence[int]) -> list[Array]:
        names = [loaded.outputs[k] for k in outputs]
        return [np.asarray(output) for output in session.run(names, {loaded.input: values})]

    return run


def _open_vino(path: Path, loaded: LoadedOnnx, device: str, threads: int) -> _Run:
    from onebyone.tuning.engines.open_vino import compiled_model

    if device.partition(":")[0] != "cpu":
        raise BadInput(f"device={device!r}: OpenVINO runs on the processor; expected 'cpu'")
    try:
        compiled = compiled_model(str(path), threads)
    except ImportError as error:
        raise MissingExtra("openvino", "engines", "running an ONNX model with OpenVINO") from error
    except Exception as error:  # OpenVINO has errors of several kinds
        raise BadInput(f"OpenVINO cannot load the model: {first_line(error)}") from error
    if len(compiled.inputs) != 1 or len(compiled.outputs) != len(loaded.outputs):
        raise BadInput("OpenVINO cannot load the model: its conversion changed the inputs or outputs")
    request = compiled.create_infer_request()

    def run(values: Array, outputs: Sequence[int]) -> list[Array]:
        # inputs are shared; outputs are copied, because the request overwrites its own with the next call
        results = request.infer({0: values}, share_inputs=True)
        return [np.array(results[k]) for k in outputs]

    return run

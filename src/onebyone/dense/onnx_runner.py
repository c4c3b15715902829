"""A runner for any-size ONNX models, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.outputs import output_index
from onebyone.errors import BadInput, MissingExtra
from onebyone.records import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRunner:
    """Runs a model that ONNX Runtime has loaded; made by :func:`onnx_runner`."""

    def __init__(self, session: Any, output: int | str) -> None:
        names = [value.name for value in session.get_outputs()]
        self._session, self._output = session, names[output_index(names, output)]
        (source,) = session.get_inputs()
        self._input = source.name
        self._dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(
            source.type, np.float32
        )

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) to the model's output (N, channels, *positions), both float32."""
        inputs = np.ascontiguousarray(batch, dtype=self._dtype)
        try:
            (result,) = self._session.run([self._output], {self._input: inputs})
        except Exception as error:  # ONNX Runtime has errors of several kinds
            raise BadInput(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
        return np.asarray(result, dtype=np.float32)


@contextmanager
def onnx_runner(
    model: ir.Model, *, output: int | str = 0, device: str = "cpu", threads: int = 0
) -> Iterator[OnnxRunner]:
    """A runner for an any-size model.

    Args:
        output: the output's number from 0, or its name.
        device: "cpu", or "cuda" where ONNX Runtime has that provider.
        threads: of one call; 0 lets ONNX Runtime choose.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BadInput: the device cannot be used, there is no such output, or ONNX Runtime does not load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "engines", "scanning with an ONNX model") from error
    from onebyone.onnx.model_file import save_model

    provider = _PROVIDERS.get(device.partition(":")[0])
    if provider not in onnxruntime.get_available_providers():
        raise BadInput(f"device={device!r}: cannot be used here: ONNX Runtime does not have it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    with TemporaryDirectory(prefix="onebyone-") as folder:
        # a file, because a model in memory cannot have 2 GB or tensors in other files
        path = save_model(model, Path(folder) / "model.onnx")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # ONNX Runtime has errors of several kinds
            raise BadInput(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
        yield OnnxRunner(session, output)

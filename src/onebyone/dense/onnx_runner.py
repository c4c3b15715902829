"""A runner for any-size ONNX models, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.outputs import output_index
from onebyone.tuning.onnx_engines import LoadedOnnx


@dataclass(frozen=True)
class OnnxRunner:
    """Runs a model that an engine has loaded. `output` is the output's number from 0, or its name.

    Raises BadInput where there is no such output.
    """

    loaded: LoadedOnnx
    output: int | str

    def __post_init__(self) -> None:
        output_index(self.loaded.outputs, self.output)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) to the model's output (N, channels, *positions), both float32."""
        (result,) = self.loaded(batch, [output_index(self.loaded.outputs, self.output)])
        return np.asarray(result, dtype=np.float32)

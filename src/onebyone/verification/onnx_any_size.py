"""Verify an any-size ONNX model against the classifier that it was made from, run on every cropped window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx
from onebyone.records import LEAST_AGREEMENT
from onebyone.results import ClassMap, WindowPair
from onebyone.verification.any_size_checks import verify_any_size
from onebyone.verification.onnx_running_error import AnalysedOnnx
from onebyone.verification.result import Verification


@dataclass(frozen=True)
class _AnySizeOnnx:
    """A result of `convolutionalize` as the verifier takes it: both models take images `(N, C, H, W)`."""

    model: Any
    original: Any
    geometry: Geometry
    nominal: tuple[int, ...]
    channels: int
    class_map: ClassMap | None
    bare: bool = False
    pairs: tuple[WindowPair, ...] = ()

    def runnable(self, network: Any) -> Any:
        return network


def verify_onnx_any_size(
    model: ir.Model,
    dense: ConvolutionalizedOnnx,
    x: Any = None,
    *,
    seed: int = 0,
    max_windows: int = 4096,
    min_agreement: float = LEAST_AGREEMENT,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Whether an any-size model gives for every window what the original gives for the crop.

    Both run in ONNX Runtime, and in float64 by ONNX's reference implementation. The limits are running error bounds
    (`onnx_running_error`), and a shift by one position must exceed them.

    Parameters
    ----------
    model: the original.
    dense: what `convolutionalize` returned for it.
    x: an image `(N, C, H, W)`, or a window, from which an image of several windows is made. Random without one.
    seed, max_windows, min_agreement, progress: see `verifier.verify`.

    Raises
    ------
    BadInput
        if a model does not run, or `x` is not an image for it.
    """
    try:
        original = AnalysedOnnx(
            model, channels_last=dense.channels_last, bare=dense.bare, batch=dense.batch
        ).eval()
        converted = AnalysedOnnx(dense.model).eval()
    except NotRunnable as error:
        raise BadInput(f"model: {error}") from error
    result = _AnySizeOnnx(converted, original, dense.geometry, dense.nominal, dense.channels, dense.class_map)
    if x is not None:
        x = torch.as_tensor(x, dtype=torch.float32)
    report = progress or (lambda done, total: None)
    outcome = verify_any_size(original, result, x, seed, False, max_windows, min_agreement, report)
    return replace(outcome, weights=None)

"""TorchScript with oneDNN Graph: a traced, frozen network whose products and what follows them are fused by oneDNN.

PyTorch's own way to have whole subgraphs, attention among them, run by oneDNN in float32. Built in seconds. On
processors only; in float32 only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, on_processors, register_engine
from onebyone.tuning.engines.exported_program import UnsupportedError


def _build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    if any(t.dtype != torch.float32 for t in calling.tensors if t.is_floating_point()):
        raise UnsupportedError("it fuses float32 only")
    if calling.kwargs:
        raise UnsupportedError("a trace takes its inputs by position")
    with _fusing(), torch.no_grad():
        traced = torch.jit.trace(network, calling.args, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced.eval())
        for _ in range(3):  # the first calls profile the shapes, and then the subgraphs are compiled
            calling.run(frozen)

    def call(*args: Any) -> Any:
        with torch.inference_mode():
            return frozen(*args)

    return call


@contextmanager
def _fusing() -> Iterator[None]:
    """oneDNN Graph on while tracing, and as it was afterwards."""
    before = torch.jit.onednn_fusion_enabled()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.enable_onednn_fusion(True)
        try:
            yield
        finally:
            torch.jit.enable_onednn_fusion(before)


GRAPH = register_engine(
    Engine(
        "onednn-graph",
        _build,
        group=TORCH,
        wants=lambda form: form in ("original", "conv", "winograd"),
        why_not=on_processors("a trace serves the shapes that it was made on alone"),
    )
)

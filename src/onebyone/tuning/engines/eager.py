"""Eager mode: PyTorch runs each operator separately."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import TORCH, Engine, EngineSettings, register_engine


def _build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return network(*args, **kwargs)

    return call


register_engine(Engine("eager", _build, group=TORCH, fixed_shapes=False))

"""PyTorch as it is: every operator runs by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, register_engine


def _build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return network(*args, **kwargs)

    return call


EAGER = register_engine(Engine("eager", _build, group=TORCH, fixed=False))

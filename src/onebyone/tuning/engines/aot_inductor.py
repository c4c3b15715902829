"""AOTInductor: the exported program compiled ahead of time into a library, its weights frozen and packed.

What it has over `torch.compile`: no Python at run time, and linear layers in float32 go to oneDNN with the weight
packed and the activation fused (`torch.compile` gives them to MKL, whose best kernels not every processor gets).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, register_engine
from onebyone.tuning.engines.exported_program import export
from onebyone.tuning.engines.torch_compile import own_weights


def _build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    from torch import _inductor as inductor

    program = export(network, calling, setting).program
    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "network.pt2"), inductor_configs={"freezing": True}
        )
        loaded: Any = inductor.aoti_load_package(path)  # holds what it needs from here on

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return loaded(*args, **kwargs)

    return call


def _wants(form: str) -> bool:
    return (
        own_weights(form) and form != "winograd"
    )  # a library compiled ahead cannot call a kernel of this process


AHEAD = register_engine(Engine("aot-inductor", _build, group=TORCH, wants=_wants))

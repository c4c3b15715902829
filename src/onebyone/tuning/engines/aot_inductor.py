"""AOTInductor: the exported program compiled ahead of time into a library, with its weights frozen and packed.

Compared with `torch.compile`, it needs no Python at run time, and float32 linear layers are computed by oneDNN with
packed weights and fused activations (`torch.compile` uses MKL, whose best kernels do not run on every processor).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import TORCH, Engine, EngineSettings, register_engine
from onebyone.tuning.engines.exported_program import export
from onebyone.tuning.engines.torch_compile import is_frozen_form


def _build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    from torch import _inductor as inductor

    program = export(network, signature).program
    with tempfile.TemporaryDirectory(prefix="onebyone-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "network.pt2"), inductor_configs={"freezing": True}
        )
        loaded: Any = inductor.aoti_load_package(path)  # does not need the file afterwards

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return loaded(*args, **kwargs)

    return call


def _tries_form(form: str) -> bool:
    # a library that is compiled ahead of time cannot call the Winograd kernel, which is registered in this process
    return is_frozen_form(form) and form != "winograd"


register_engine(Engine("aot-inductor", _build, group=TORCH, tries_form=_tries_form))

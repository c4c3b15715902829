"""The engine "onebyone": networks compiled to the kernels of `onebyone.native`, called once per inference.

It runs on CPUs only, in float32, for convolutional networks and transformers of one input, and takes only the shape
that it was compiled for. A network with an unsupported operator is refused with the name of that operator.
"""

from __future__ import annotations

from typing import Any

import torch

from onebyone.native import compile_network, require_compiler
from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import TORCH, Engine, EngineSettings, cpu_and_fixed_batch, register_engine
from onebyone.tuning.engines.exported_program import export


def _build(network: torch.nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
    require_compiler()  # before the export, which takes longer
    exported = export(network, signature)
    compiled = compile_network(exported.program, settings.threads, settings.fast_products)
    rebuild = exported.rebuild  # not `exported`: it would keep the original weights in memory

    def call(*args: Any, **kwargs: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        with torch.inference_mode():
            return rebuild([compiled(x)])

    def times(*args: Any, **kwargs: Any) -> dict[str, float]:
        (x,) = (*args, *kwargs.values())
        return compiled.times(x)

    call.survives_fork = True  # type: ignore[attr-defined]
    call.program, call.times = compiled.program, times  # type: ignore[attr-defined]
    return call


ENGINE = register_engine(
    Engine(
        "onebyone",
        _build,
        group=TORCH,
        tries_form=lambda form: form == "original",
        why_unavailable=cpu_and_fixed_batch("it takes only the shapes that it was compiled for"),
    )
)

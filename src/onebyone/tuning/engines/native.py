"""The engine "onebyone": networks compiled to the kernels of `onebyone.native`, called once per inference.

It runs on CPUs only, in float32, for convolutional networks and transformers of one input, and takes only the shape
that it was compiled for. A network with an unsupported operator is refused with the name of that operator.
"""

from __future__ import annotations

from typing import Any

import torch

from onebyone.native import compile_network, require_compiler
from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, on_processors, register_engine
from onebyone.tuning.engines.exported_program import export


def _build(network: torch.nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    require_compiler()  # before the export, which takes longer
    exported = export(network, calling, setting)
    compiled = compile_network(exported.program, setting.threads, setting.fast_products)
    rebuild = exported.rebuild  # not `exported`: it would keep the original weights in memory

    def call(*args: Any, **kwargs: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        with torch.inference_mode():
            return rebuild([compiled(x)])

    def times(*args: Any, **kwargs: Any) -> dict[str, float]:
        (x,) = (*args, *kwargs.values())
        return compiled.times(x)

    call.survives_fork = True  # type: ignore[attr-defined]
    call.times = times  # type: ignore[attr-defined]
    return call


ENGINE = register_engine(
    Engine(
        "onebyone",
        _build,
        group=TORCH,
        wants=lambda form: form == "original",
        why_not=on_processors("its steps serve the sizes that they were made for alone"),
    )
)

"""`torch.compile` (TorchInductor), with default settings and with weights frozen into the program.

Each candidate is compiled as a separate function. TorchDynamo stores and counts compiled variants by code object, so
forms of one network, which share the code of their classes, would otherwise displace one another. Nothing is reset,
and settings are restored after each compilation.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import TORCH, Engine, EngineSettings, register_engine

_RECOMPILE_LIMIT = 64  # per code object: resumed frames have the network's own code, which its forms share
_numbers = count()


def unshared_function(network: nn.Module) -> Call:
    """Return a function that calls the network, with a code object that no other candidate has."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return network(*args, **kwargs)

    code: CodeType = call.__code__.replace(co_name=f"candidate_{next(_numbers)}")
    return cast(Call, FunctionType(code, globals(), closure=call.__closure__))


def _builder(freezing: bool) -> Any:
    def build(network: nn.Module, signature: CallSignature, settings: EngineSettings) -> Call:
        # with dynamic=None a second batch size triggers one more compilation, for any batch size
        compiled = torch.compile(
            unshared_function(network), dynamic=None if settings.dynamic_batch else False
        )
        compiled_for: set[Hashable] = set()

        def call(*args: Any, **kwargs: Any) -> Any:
            key = _key(args, kwargs)
            if key in compiled_for:
                with torch.inference_mode():
                    return compiled(*args, **kwargs)
            out = _compile_and_call(compiled, args, kwargs, freezing)
            compiled_for.add(key)
            return out

        signature.run(call)
        return call

    return build


def _tries_form(form: str) -> bool:
    return not form.startswith("native-")  # drop-in modules and real modules have the same graph


def is_frozen_form(form: str) -> bool:
    """Return whether a form matters to an engine that packs the weights: memory formats do not, as it sets its own."""
    return _tries_form(form) and "channels_last" not in form


def _compile_and_call(compiled: Call, args: Any, kwargs: Any, freezing: bool) -> Any:
    import torch._dynamo.config
    import torch._inductor.config

    limits = torch._dynamo.config.patch(
        recompile_limit=_RECOMPILE_LIMIT, accumulated_recompile_limit=4 * _RECOMPILE_LIMIT
    )
    frozen = torch._inductor.config.patch(freezing=freezing)
    with limits, frozen, torch.inference_mode():
        return compiled(*args, **kwargs)


def _key(args: Any, kwargs: Any) -> Hashable:
    """Return the properties of the arguments on which a compiled program depends."""
    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
        x = args[0]
        return x.shape, x.dtype, x.stride()
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(
        (v.shape, v.dtype, v.stride()) if isinstance(v, Tensor) else (type(v), repr(v)) for v in leaves
    )


register_engine(
    Engine("compile", _builder(freezing=False), group=TORCH, fixed_shapes=False, tries_form=_tries_form)
)
register_engine(
    Engine(
        "compile+freeze", _builder(freezing=True), group=TORCH, fixed_shapes=False, tries_form=is_frozen_form
    )
)

"""`torch.compile` (TorchInductor), as it comes and with weights frozen into the program.

Each candidate is compiled as a function of its own: TorchDynamo keeps what it compiles with the code object and
counts it there, so forms of one network, which share their classes' code, would push one another out. Nothing is
reset, and no setting outlives a compilation.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, register_engine

_LIMIT = (
    64  # compiled variants of one code object: resumed frames are the network's own code, shared by its forms
)
_numbers = count()


def own_function(network: nn.Module) -> Call:
    """A function that calls the network, with a code object that no other candidate has."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return network(*args, **kwargs)

    code: CodeType = call.__code__.replace(co_name=f"candidate_{next(_numbers)}")
    return cast(Call, FunctionType(code, globals(), closure=call.__closure__))


def _builder(freezing: bool) -> Any:
    def build(network: nn.Module, calling: Calling, setting: EngineSetting) -> Call:
        # with dynamic=None a second batch size is compiled once more, for any; the example's keeps its own program
        compiled = torch.compile(own_function(network), dynamic=None if setting.dynamic_batch else False)
        known: set[Hashable] = set()

        def call(*args: Any, **kwargs: Any) -> Any:
            key = _key(args, kwargs)
            if key in known:
                with torch.inference_mode():
                    return compiled(*args, **kwargs)
            out = _compiling(compiled, args, kwargs, freezing)
            known.add(key)
            return out

        calling.run(call)
        return call

    return build


def _wants(form: str) -> bool:
    return not form.startswith("native-")  # drop-in and real modules are one and the same graph


def own_weights(form: str) -> bool:
    """What packs the weights lays images out itself: memory formats are one to it."""
    return _wants(form) and "channels_last" not in form


def _compiling(compiled: Call, args: Any, kwargs: Any, freezing: bool) -> Any:
    import torch._dynamo.config
    import torch._inductor.config

    limits = torch._dynamo.config.patch(recompile_limit=_LIMIT, accumulated_recompile_limit=4 * _LIMIT)
    frozen = torch._inductor.config.patch(freezing=freezing)
    with limits, frozen, torch.inference_mode():
        return compiled(*args, **kwargs)


def _key(args: Any, kwargs: Any) -> Hashable:
    """What a compiled program depends on, as far as calls differ."""
    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
        x = args[0]
        return x.shape, x.dtype, x.stride()
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(
        (v.shape, v.dtype, v.stride()) if isinstance(v, Tensor) else (type(v), repr(v)) for v in leaves
    )


COMPILE = register_engine(Engine("compile", _builder(freezing=False), group=TORCH, fixed=False, wants=_wants))
FREEZE = register_engine(
    Engine("compile+freeze", _builder(freezing=True), group=TORCH, fixed=False, wants=own_weights)
)

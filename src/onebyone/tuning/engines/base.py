"""The interface of engines: a name, whether the engine can be used, and how it builds a function from a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import Call, CallSignature

TORCH, OTHER = "torch", "other"


@dataclass(frozen=True)
class EngineSettings:
    """What candidates are built for."""

    device: torch.device
    threads: int
    dynamic_batch: bool = False
    fast_products: bool = False
    """Rows may be multiplied together without an error bound for each (`onebyone.laws.scaling`)."""


def always_available(_: EngineSettings) -> None:
    """Return None: the engine can always be used."""
    return


def cpu_and_fixed_batch(why_fixed: str) -> Callable[[EngineSettings], str | None]:
    """Return `why_unavailable` of an engine for CPUs and one batch size; `why_fixed` is the reason for the latter."""

    def why_unavailable(settings: EngineSettings) -> str | None:
        if settings.device.type != "cpu":
            return f"it does not run on {settings.device.type}"
        return why_fixed if settings.dynamic_batch else None

    return why_unavailable


def any_form(_: str) -> bool:
    """Return True: the engine is tried with every form."""
    return True


@dataclass(frozen=True)
class Engine:
    """One way to run a network. Add an engine with `register_engine`.

    Attributes
    ----------
    name: the name under which users select it.
    build: `build(network, signature, settings)` returns a function with the network's arguments, in the order of
        `signature`, and the network's outputs. It is called under `torch.inference_mode`. Any exception becomes the
        reason why the candidate is refused.
    group: "torch" for engines that need PyTorch alone.
    fixed_shapes: it takes only the example's shapes (and any batch size if built with `dynamic_batch`).
    tries_form: `tries_form(name)` is False for network forms that make no difference to the engine.
    library: the distribution whose version a plan depends on.
    why_unavailable: `why_unavailable(settings)` is the reason why the engine cannot be used (not installed, no such
        device), or None.
    """

    name: str
    build: Callable[[nn.Module, CallSignature, EngineSettings], Call]
    group: str = OTHER
    fixed_shapes: bool = True
    tries_form: Callable[[str], bool] = any_form
    library: str = "torch"
    why_unavailable: Callable[[EngineSettings], str | None] = always_available


_ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> Engine:
    """Add an engine, or replace the one of the same name. `onebyone.tune` tries it from then on."""
    _ENGINES[engine.name] = engine
    return engine


def engine_named(name: str) -> Engine:
    """Return the engine of a name. Raises BadInput if there is none."""
    if name not in _ENGINES:
        raise BadInput(f"engines={name!r}: expected some of {', '.join(_ENGINES)}, or 'torch' or 'all'")
    return _ENGINES[name]


def engines_named(names: str | Sequence[str] | None) -> tuple[Engine, ...]:
    """Return the engines by name; "torch" for those that need PyTorch alone, "all" or None for all.

    >>> [e.name for e in engines_named("torch")]
    ['eager', 'compile', 'compile+freeze', 'aot-inductor', 'onednn-graph', 'onebyone']
    """
    asked = ["all"] if names is None else [names] if isinstance(names, str) else list(names)
    if not asked or not all(isinstance(n, str) for n in asked):
        raise BadInput(f"engines={names!r}: expected names out of {', '.join(_ENGINES)}, or 'torch' or 'all'")
    engines: dict[str, Engine] = {}
    for name in asked:
        if name in ("all", TORCH):
            engines |= {n: e for n, e in _ENGINES.items() if name == "all" or e.group == TORCH}
        else:
            engines[name] = engine_named(name)
    return tuple(engines.values())


def why_not_installed(library: str) -> str | None:
    """Return the reason if a library is missing, with the command that installs it; else None."""
    if find_spec(library) is None:
        return f"{library} is not installed: pip install 'onebyone[engines]'"
    return None


def to_ordinary_tensor(value: Any) -> Any:
    """Return a tensor made in inference mode as one that can be used anywhere, sharing its memory if possible."""
    if not isinstance(value, torch.Tensor) or not value.is_inference():
        return value
    return from_dlpack(to_dlpack(value)) if _can_share_memory(value) else value.clone()


def _can_share_memory(value: torch.Tensor) -> bool:
    dense = value.layout == torch.strided and value.numel() > 0
    return dense and not value.is_conj() and not value.is_neg()

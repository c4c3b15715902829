"""What an engine is: a name, whether it can serve, and how it makes a callable from a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import Call, Calling

TORCH, OTHER = "torch", "other"


@dataclass(frozen=True)
class EngineSetting:
    """What candidates are built for."""

    device: torch.device
    threads: int
    dynamic_batch: bool = False
    fast_products: bool = False
    """Rows may be multiplied together without an error bound for each (`onebyone.laws.scaling`)."""


def serves(_: EngineSetting) -> None:
    """An engine that is always there."""
    return


def on_processors(fixed: str) -> Callable[[EngineSetting], str | None]:
    """`why_not` of an engine for processors alone, and for one shape: `fixed` says why it takes no other batch."""

    def why_not(setting: EngineSetting) -> str | None:
        if setting.device.type != "cpu":
            return f"it does not run on {setting.device.type}"
        return fixed if setting.dynamic_batch else None

    return why_not


def any_form(_: str) -> bool:
    """An engine to which every form makes a difference."""
    return True


@dataclass(frozen=True)
class Engine:
    """One way to run a network.

    `build(network, calling, setting)` gives a callable that takes what the network takes, in the order of
    `calling`, under `torch.inference_mode`, and gives what the network gives. Whatever it raises becomes the
    candidate's reason for being refused. `why_not(setting)` says why it cannot serve at all (not installed, no such
    device). `fixed`: it takes only the example's shapes (any batch, where built with `dynamic_batch`). `wants(name)`:
    whether a form makes a difference to it. `group` is "torch" for what needs PyTorch alone; `library` the distribution
    whose version a plan depends on.

    A candidate is (engine, form). Add an engine with `register_engine`, and a form with
    `onebyone.tuning.network_forms.register_form`.
    """

    name: str
    build: Callable[[nn.Module, Calling, EngineSetting], Call]
    group: str = OTHER
    fixed: bool = True
    wants: Callable[[str], bool] = any_form
    library: str = "torch"
    why_not: Callable[[EngineSetting], str | None] = serves


_ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> Engine:
    """Add an engine (or replace the one of its name): `onebyone.tune` tries it from now on."""
    _ENGINES[engine.name] = engine
    return engine


def engine_of(name: str) -> Engine:
    """The engine of a name. Raises BadInput where there is none."""
    if name not in _ENGINES:
        raise BadInput(f"engines={name!r}: expected some of {', '.join(_ENGINES)}, or 'torch' or 'all'")
    return _ENGINES[name]


def engines_of(names: str | Sequence[str] | None) -> tuple[Engine, ...]:
    """The engines meant: by name, "torch" for those of PyTorch alone, "all" or None for every one.

    >>> [e.name for e in engines_of("torch")]
    ['eager', 'compile', 'compile+freeze', 'aot-inductor', 'onednn-graph', 'onebyone']
    """
    wanted = ["all"] if names is None else [names] if isinstance(names, str) else list(names)
    if not wanted or not all(isinstance(n, str) for n in wanted):
        raise BadInput(f"engines={names!r}: expected names out of {', '.join(_ENGINES)}, or 'torch' or 'all'")
    found: dict[str, Engine] = {}
    for name in wanted:
        if name in ("all", TORCH):
            found |= {n: e for n, e in _ENGINES.items() if name == "all" or e.group == TORCH}
        else:
            found[name] = engine_of(name)
    return tuple(found.values())


def not_installed(library: str) -> str | None:
    """The reason where a library is missing."""
    if find_spec(library) is None:
        return f"{library} is not installed: pip install 'onebyone[engines]'"
    return None


def ordinary(value: Any) -> Any:
    """A tensor made in inference mode as one that may be changed in place and used anywhere: the same memory."""
    if not isinstance(value, torch.Tensor) or not value.is_inference():
        return value
    return from_dlpack(to_dlpack(value)) if _exportable(value) else value.clone()


def _exportable(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and value.numel() > 0 and not value.is_conj() and not value.is_neg()

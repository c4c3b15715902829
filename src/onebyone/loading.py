"""From what users name to what the parts take: sources opened, examples made, results written.

What the verbs and the command line share; not part of the public face. Nothing heavy is imported until it is
needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput
from onebyone.memory import require_memory
from onebyone.records import Labels

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.dense import Dense

    Network = nn.Module | ExportedProgram
    Source = Network | str | os.PathLike[str]


def open_network(
    spec: str, weights: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> tuple[Network, tuple[str, ...]]:
    """The network that `spec` names, and what a user should know about it."""
    from onebyone.pytorch.files.checkpoints import nonfinite_weights
    from onebyone.pytorch.files.sources import load_source

    network = load_source(spec, weights, seed=seed)
    return network, _notes(nonfinite_weights(network))


def open_dense(
    spec: str | os.PathLike[str],
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> tuple[Dense, tuple[str, ...]]:
    """A dense network: a saved one as it is; any other source made so, which takes its window.

    Raises BadInput where a window is given for a saved one and differs from its own.
    """
    from onebyone.pytorch.files.checkpoints import nonfinite_weights
    from onebyone.pytorch.lift.dense_file import labels_in, load_dense

    dense = Path(spec).suffix == ".pt2" and labels_in(spec) is not None
    if window is None or dense:
        if Path(spec).suffix != ".pt2":
            raise BadInput(f"{os.fspath(spec)}: its window is not known; give window= in pixels")
        if weights is not None:
            raise BadInput(f"weights={os.fspath(weights)!r}: {os.fspath(spec)} carries its own weights")
        saved = load_dense(spec)
        _require_same_window(saved.nominal, window, spec)
        return saved, _notes(nonfinite_weights(saved.model))
    network, notes = open_network(os.fspath(spec), weights, seed=seed)
    from onebyone.pytorch.lift.convolutionalize import convolutionalize as lift

    return lift(network, window, channels, labels=preprocessing_of(spec, network)), notes


def _require_same_window(
    own: tuple[int, ...], window: int | Sequence[int] | None, spec: str | os.PathLike[str]
) -> None:
    given = own if window is None else (window,) * len(own) if isinstance(window, int) else tuple(window)
    if given != own:
        sizes = "×".join(str(n) for n in own)
        raise BadInput(
            f"window={','.join(str(n) for n in given)}: {os.fspath(spec)} is a dense network of windows of {sizes}"
        )


def preprocessing_of(spec: object, network: Network) -> Labels | None:
    """The labels that a dense file carries, or a zoo's preprocessing; None for networks from elsewhere."""
    from onebyone.pytorch.files.preprocessing import zoo_preprocessing
    from onebyone.pytorch.lift.dense_file import labels_in

    if isinstance(spec, str | os.PathLike) and Path(spec).suffix == ".pt2":
        return labels_in(spec)
    return zoo_preprocessing(os.fspath(spec), network) if isinstance(spec, str | os.PathLike) else None


def example_input(network: Network, shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """A random input of `shape`, standard normal, in the type the network computes in.

    Raises BadInput where it is larger than the machine's memory.
    """
    import torch

    from onebyone.pytorch.files.checkpoints import named_tensors

    dtypes = [value.dtype for _, value in named_tensors(network) if value.is_floating_point()]
    require_memory("shape", shape, shape, 4)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtypes[0] if dtypes else torch.float32)


def labels(
    classes: Sequence[str] | None = None, *, carried: Labels | None = None, **preprocessing: Any
) -> Labels | None:
    """Labels from what was given, over those that a model carries; None where there is neither.

    A scale of 1 states that values go in as they are.
    """
    given: Mapping[str, Any] = {k: v for k, v in preprocessing.items() if v is not None}
    if classes is not None:
        given = {**given, "classes": tuple(classes)}
    if not given:
        return carried
    merged = Labels(**{**(carried.to_dict() if carried else {}), **given})
    as_they_are = "scale" in given and not merged.states_preprocessing
    return replace(merged, std=(1.0,)) if as_they_are else merged


def network_of(model: Source, *, compiled: bool = False) -> Network:
    """The network that a verb was given, or that a source names.

    Raises Refused where TorchScript compiled a part of it, unless `compiled` allows that.
    """
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.pytorch.files.sources import load_source
    from onebyone.pytorch.modules.structure import require_python

    network = load_source(model) if isinstance(model, str | os.PathLike) else model
    if isinstance(network, nn.Module | ExportedProgram):
        if not compiled:
            require_python(network)
        return network
    raise BadInput(
        f"model: is not a network but of type {type(model).__name__}; expected a torch.nn.Module, "
        f"an ExportedProgram, or the name of a source"
    )


def original_of(model: object, converted: object) -> Any:
    """The original that `verify` compares `converted` with: any callable, a network, or the network of a source.

    Raises Refused where TorchScript compiled a part of one of two bare networks.
    """
    from onebyone.pytorch.modules.structure import require_python
    from onebyone.results import AnySize, Converted

    original = network_of(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(converted, AnySize | Converted):
        require_python(original)
        require_python(converted)
    return original


def example_of(network: object) -> Any:
    """The inputs that an exported program keeps as an example (see `results.example_inputs`); None without any."""
    from torch.export import ExportedProgram

    if not isinstance(network, ExportedProgram) or not network.example_inputs:
        return None
    positional, named = network.example_inputs
    return (positional, named) if named else positional


def _notes(nonfinite: Sequence[str]) -> tuple[str, ...]:
    if not nonfinite:
        return ()
    few = ", ".join(nonfinite[:3]) + (", …" if len(nonfinite) > 3 else "")
    what = "weight tensor holds" if len(nonfinite) == 1 else "weight tensors hold"
    return (f"{len(nonfinite)} {what} NaN or infinity ({few})",)

"""Load networks, examples and labels from the sources that users name, and write converted networks.

Shared by the public functions and the command line; not part of the public interface. Heavy libraries are imported
inside the functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput, MissingExtra
from onebyone.memory import require_memory
from onebyone.records import Labels, by

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.dense import Dense

    Network = nn.Module | ExportedProgram
    Source = Network | str | os.PathLike[str]


def open_network(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[Network, tuple[str, ...]]:
    """Load the network that `spec` names. Returns it with notes for the user, such as weights that are not finite.

    `pretrained` loads the weights that torchvision or timm provides for a network of theirs.
    """
    from onebyone.pytorch.files.sources import load_source

    network = load_source(spec, weights, seed=seed, pretrained=pretrained)
    return network, nonfinite_notes(network)


def open_model(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    *,
    seed: int = 0,
    pretrained: bool = False,
    default_shape: Sequence[int] | None = None,
) -> tuple[Any, tuple[str, ...], Any]:
    """`open_with_example`, for functions that take ONNX models too: then the example is a dict by input name."""
    model = onnx_model(spec)
    if model is None:
        return open_with_example(
            spec, weights, shape, seed=seed, pretrained=pretrained, default_shape=default_shape
        )
    require_own_weights(spec, weights, pretrained)
    from onebyone.onnx.evaluators import random_feeds

    shape = shape or default_shape
    return model, (), None if shape is None else random_feeds(model, shape, seed)


def onnx_model(source: object) -> Any:
    """The onnx-ir model of a path that ends in .onnx, of a `ModelProto` or of an onnx-ir model; None for all else.

    Raises MissingExtra if onnx-ir is not installed, and BadInput if the model cannot be used.
    """
    if isinstance(source, str | os.PathLike):
        if Path(source).suffix.lower() != ".onnx":
            return None
    elif type(source).__module__.partition(".")[0] not in ("onnx", "onnx_ir"):
        return None
    try:
        from onebyone.onnx import model_file
    except ImportError as error:
        raise MissingExtra("onnx-ir", "onnx", "reading an ONNX model") from error
    return model_file.open_model(source)


def open_with_example(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    *,
    seed: int = 0,
    pretrained: bool = False,
    default_shape: Sequence[int] | None = None,
) -> tuple[Network, tuple[str, ...], torch.Tensor | None]:
    """`open_network` and a random example input of `shape`.

    Without `shape` the example has `default_shape`, except for a .pt2 program, which may store an example of its own;
    None if neither applies.
    """
    network, notes = open_network(spec, weights, seed=seed, pretrained=pretrained)
    shape = shape or (None if spec.endswith(".pt2") else default_shape)
    return network, notes, None if shape is None else example_input(network, shape, seed=seed)


def open_dense(
    spec: str | os.PathLike[str],
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    *,
    context: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[Dense, tuple[str, ...]]:
    """Load a dense network: a saved one, or any other source with its `window`, which is convolutionalized.

    `context` is that of `convolutionalize`. Raises BadInput if `window` or `context` differs from that of a saved dense
    network.
    """
    from onebyone.pytorch.lift.dense_file import load_dense

    onnx = onnx_model(spec)
    if onnx is not None:
        require_own_weights(spec, weights, pretrained)
        return _open_dense_onnx(spec, onnx, window, channels, context), ()
    if window is None or opens_densely(spec):
        if Path(spec).suffix != ".pt2":
            raise BadInput(f"{os.fspath(spec)}: its window size is not known; give window= in pixels")
        require_own_weights(spec, weights, pretrained)
        saved = load_dense(spec)
        _require_same(saved, window, context, spec)
        return saved, nonfinite_notes(saved.model)
    network, notes = open_network(os.fspath(spec), weights, seed=seed, pretrained=pretrained)
    from onebyone.pytorch.lift.convolutionalize import convolutionalize as lift

    labels = preprocessing_of(spec, network)
    return lift(network, window, channels, context=context, labels=labels), notes


def opens_densely(spec: str | os.PathLike[str]) -> bool:
    """Whether `open_dense` needs no window for a file: it is an ONNX model, or convolutionalize wrote it."""
    from onebyone.pytorch.lift.dense_file import labels_in

    suffix = Path(spec).suffix.lower()
    return suffix == ".onnx" or (suffix == ".pt2" and labels_in(spec) is not None)


def _open_dense_onnx(
    spec: str | os.PathLike[str],
    model: Any,
    window: int | Sequence[int] | None,
    channels: int | None,
    context: str | None,
) -> Dense:
    """The dense ONNX model of a file, or the classifier in it convolutionalized."""
    from onebyone.onnx.lift.convolutionalize import convolutionalize as lift
    from onebyone.onnx.lift.dense_file import is_dense, load_dense

    if not is_dense(model):
        return lift(model, window, channels, context=context)
    saved = load_dense(spec)
    _require_same(saved, window, context, spec)
    return saved


def open_windows(
    spec: str,
    window: int | Sequence[int],
    stride: int,
    channels: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[Dense, tuple[str, ...]]:
    """Load a network of one window for `scan` with mode="windows", with any stride. It is not convolutionalized.

    Raises BadInput as `open_network` and `WindowClassifier.of` do.
    """
    from torch.export import ExportedProgram

    from onebyone.comparison.exported_modules import with_modules
    from onebyone.dense import WindowClassifier

    network, notes = open_network(spec, weights, seed=seed, pretrained=pretrained)
    module = with_modules(network) if isinstance(network, ExportedProgram) else network.eval()
    sizes = window if isinstance(window, int) else tuple(window)
    labels = preprocessing_of(spec, network)
    return WindowClassifier.of(module, sizes, stride, channels, labels=labels), notes


def require_own_weights(
    spec: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None, pretrained: bool = False
) -> None:
    """Raise BadInput if other weights are given for a file that contains weights."""
    for given, argument in (
        (weights is not None, f"weights={os.fspath(weights or '')!r}"),
        (pretrained, "pretrained=True"),
    ):
        if given:
            raise BadInput(f"{argument}: {os.fspath(spec)} already contains weights")


def _require_same(
    saved: Any, window: int | Sequence[int] | None, context: str | None, spec: str | os.PathLike[str]
) -> None:
    """Raise BadInput where a saved dense network was made with another window or context than is asked for."""
    if context is not None and context != saved.context:
        raise BadInput(
            f"context={context}: {os.fspath(spec)} is a dense network that was made with context={saved.context}"
        )
    if window is None:
        return
    expected = saved.nominal
    requested = (window,) * len(expected) if isinstance(window, int) else tuple(window)
    if requested != expected:
        raise BadInput(
            f"window={','.join(str(n) for n in requested)}: {os.fspath(spec)} is a dense network "
            f"with a window of {by(expected)}"
        )


def preprocessing_of(spec: object, network: Any) -> Labels | None:
    """The labels stored in a dense file, or the preprocessing of a torchvision or timm network; None if unknown."""
    from onebyone.pytorch.files.preprocessing import zoo_labels
    from onebyone.pytorch.lift.dense_file import labels_in

    if isinstance(spec, str | os.PathLike) and Path(spec).suffix == ".pt2":
        return labels_in(spec)
    if isinstance(spec, str | os.PathLike) and Path(spec).suffix.lower() == ".onnx":
        from onebyone.onnx.lift.dense_file import note_in

        note = note_in(spec)
        return None if note is None else note.labels
    return zoo_labels(os.fspath(spec), network) if isinstance(spec, str | os.PathLike) else None


def window_of_source(spec: object, network: Network) -> tuple[int, ...] | None:
    """The input size in pixels that a dense file or a torchvision or timm network states; None if unknown."""
    from onebyone.pytorch.files.preprocessing import zoo_window
    from onebyone.pytorch.lift.dense_file import window_in

    if not isinstance(spec, str | os.PathLike):
        return None
    return window_in(spec) if Path(spec).suffix == ".pt2" else zoo_window(os.fspath(spec), network)


def score_kind_of(spec: object) -> str | None:
    """The kind of the scores that a dense file carries; None for networks from elsewhere."""
    from onebyone.pytorch.lift.dense_file import score_kind_in

    if not isinstance(spec, str | os.PathLike) or Path(spec).suffix != ".pt2":
        return None
    kind = score_kind_in(spec)
    return None if kind is None else str(kind)


def example_input(network: Network, shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """A random input of `shape`, standard normal, in the dtype of the network's first floating-point tensor.

    Raises BadInput if it does not fit into the machine's memory.
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
    """The labels `carried` by a model, with every value that is not None replaced; None if there are no labels at all.

    An explicit scale of 1 states that pixel values are used unchanged.
    """
    explicit: Mapping[str, Any] = {k: v for k, v in preprocessing.items() if v is not None}
    if classes is not None:
        explicit = {**explicit, "classes": tuple(classes)}
    if not explicit:
        return carried
    merged = Labels(**{**(carried.to_dict() if carried else {}), **explicit})
    unchanged = "scale" in explicit and not merged.states_preprocessing
    return replace(merged, std=(1.0,)) if unchanged else merged


def require_network(model: Source, *, allow_torchscript: bool = False) -> Network:
    """`model` itself, or the network of the source that it names. Raises BadInput if it is neither.

    Raises Refused if a part of it is compiled by TorchScript, unless `allow_torchscript`.
    """
    from torch import nn
    from torch.export import ExportedProgram

    from onebyone.pytorch.files.sources import load_source
    from onebyone.pytorch.modules.structure import require_python

    network = load_source(model) if isinstance(model, str | os.PathLike) else model
    if isinstance(network, nn.Module | ExportedProgram):
        if not allow_torchscript:
            require_python(network)
        return network
    if onnx_model(model) is not None:
        raise BadInput("model: is an ONNX model, which is not read here; expected a PyTorch network")
    raise BadInput(
        f"model: is not a network but of type {type(model).__name__}; expected a torch.nn.Module, "
        f"an ExportedProgram, or the name of a source"
    )


def original_of(model: object, converted: object) -> Any:
    """The original that `verify` compares `converted` with: any callable, a network, or the network of a source.

    Raises Refused if `converted` is not the result of a conversion and a part of either is compiled by TorchScript.
    """
    from onebyone.pytorch.modules.structure import require_python
    from onebyone.results import AnySize, Converted

    original = require_network(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(converted, AnySize | Converted):
        require_python(original)
        require_python(converted)
    return original


def example_of(network: object) -> Any:
    """The example inputs that an exported program stores (see `results.example_inputs`); None if it stores none."""
    from torch.export import ExportedProgram

    if not isinstance(network, ExportedProgram) or not network.example_inputs:
        return None
    positional, named = network.example_inputs
    return (positional, named) if named else positional


def runnable(model: Source, example: Any) -> tuple[nn.Module, Any]:
    """The network as an `nn.Module`, and `example`, or the one that a program stores.

    Raises BadInput if there is no example.
    """
    from torch.export import ExportedProgram

    network = require_network(model)
    if example is None:
        example = example_of(network)
    if isinstance(network, ExportedProgram):
        from onebyone.comparison.exported_modules import with_modules

        network = with_modules(network)
    if example is None:
        raise BadInput("example: is missing; expected an input such as torch.randn(1, 3, 224, 224)")
    return network, example


def nonfinite_notes(network: Network) -> tuple[str, ...]:
    """A note for the user where weights of a network are NaN or infinite."""
    from onebyone.pytorch.files.checkpoints import nonfinite_weights

    nonfinite = nonfinite_weights(network)
    if not nonfinite:
        return ()
    names = ", ".join(nonfinite[:3]) + (", …" if len(nonfinite) > 3 else "")
    what = "weight tensor holds" if len(nonfinite) == 1 else "weight tensors hold"
    return (f"{len(nonfinite)} {what} NaN or infinity ({names})",)

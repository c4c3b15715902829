"""Load networks from the sources that users name: a file, a model zoo, or a function of their own.

A source is named by one string, on the command line and in Python:

==========================  =========================================================================
`file.pt2`                  a program saved by `torch.export.save` (checked before anything is loaded)
`torchvision:NAME`          a torchvision model, random weights unless pretrained ones are asked for
`timm:NAME`                 a timm model, random weights unless pretrained ones are asked for
`package.module:factory`    a function, class or network of the user, also in the current directory
`path/file.py:factory`      the same, in a Python file
==========================  =========================================================================
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput, MissingExtra
from onebyone.pytorch.files.checkpoints import load_weights
from onebyone.pytorch.files.program_file import load_program
from onebyone.records import first_line

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
FORMS = "file.pt2, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory"
ZOOS = ("torchvision", "timm")
_ZOO_PREFIXES = ("torchvision:", "timm:")

_schemas: list[torch.library.Library] = []  # kept, because a Library removes its operators when it is deleted


def import_torchvision() -> ModuleType:
    """Import torchvision, also if its compiled operators were built for another version of torch.

    Raises
    ------
    MissingExtra
        if torchvision is not installed.
    """
    return _import_zoo("torchvision")


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision (see `import_torchvision`).

    Raises
    ------
    MissingExtra
        if timm is not installed.
    """
    return _import_zoo("timm")


def _import_zoo(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(name, "zoo", f"a {name}: source") from error
    except RuntimeError as error:
        # A torchvision wheel that was built for another torch (a CUDA wheel with a CPU torch, for example) cannot load
        # its compiled part. It then fails to register shapes for operators that this part would have declared. Models
        # and transforms do not need the compiled part, so that declaring the two operators is enough. This is done in
        # this case only, so that a working torchvision keeps its own operators.
        if "torchvision::nms does not exist" not in str(error):
            raise
    _declare_torchvision_operators()
    return importlib.import_module(name)


def _declare_torchvision_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _schemas.append(library)


def load_source(
    spec: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    pretrained: bool = False,
) -> nn.Module | ExportedProgram:
    """The network that `spec` names, in eval mode, on the CPU.

    Parameters
    ----------
    spec: `file.pt2`, `torchvision:NAME`, `timm:NAME`, `package.module:factory` or `file.py:factory`.
    weights: a checkpoint to load: `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin`.
    seed: the seed of random weights. The state of torch's generator is restored afterwards.
    pretrained: load the default pretrained weights of a torchvision or timm model, which the library downloads
        unless they are in its cache.

    Returns
    -------
    An `ExportedProgram` for a `.pt2` file, otherwise an `nn.Module`.

    Raises
    ------
    BadInput
        if the source does not exist, cannot be read or is not a network, if the weights do not fit it, or if
        pretrained weights do not exist or cannot be downloaded.
    MissingExtra
        if the model zoo is not installed.

    >>> load_source("torch.nn:Identity")
    Identity()
    """
    text = os.fspath(spec)
    if pretrained:
        _require_pretrained(text, weights)
    network = _from_file(Path(text)) if _is_file_spec(text) else _built(text, seed, pretrained)
    if weights is None:
        return network
    if isinstance(network, ExportedProgram):
        raise BadInput(
            f"weights={os.fspath(weights)!r}: {text} is a saved program, which carries its own weights"
        )
    load_weights(network, weights)
    return network


def _require_pretrained(text: str, weights: str | os.PathLike[str] | None) -> None:
    if text.partition(":")[0] not in ZOOS:
        raise BadInput(
            f"pretrained=True: {text} has no pretrained weights; expected torchvision:NAME or timm:NAME"
        )
    if weights is not None:
        raise BadInput(
            f"pretrained=True and weights={os.fspath(weights)!r} were both given; expected one of them"
        )


def _is_file_spec(text: str) -> bool:
    return Path(text).suffix in (".pt2", ".onnx", *WEIGHT_SUFFIXES)


def _from_file(path: Path) -> ExportedProgram:
    if path.suffix == ".onnx":
        raise BadInput(f"{path} is an ONNX model, which is not read here; expected {FORMS}")
    if path.suffix in WEIGHT_SUFFIXES:
        raise BadInput(
            f"{path}: holds weights, not a network; name the network ({FORMS}) and give this as its weights"
        )
    return load_program(path).program


def _built(text: str, seed: int, pretrained: bool) -> nn.Module | ExportedProgram:
    # the path of a file may contain colons, the name of a model may not
    origin, colon, name = text.partition(":") if text.startswith(_ZOO_PREFIXES) else text.rpartition(":")
    if not colon or not origin or not name:
        raise BadInput(f"{text!r} does not name a network; expected {FORMS}{_zoo_hint(text)}")
    with _seeded(seed):
        if origin == "torchvision":
            network: object = _from_torchvision(name, pretrained)
        elif origin == "timm":
            network = _from_timm(name, pretrained)
        else:
            network = _from_factory(origin, name, seed)
    if isinstance(network, ExportedProgram):
        return network
    if not isinstance(network, nn.Module):
        raise BadInput(
            f"{text}: is not a network but {_a(type(network).__name__)}; expected a torch.nn.Module"
        )
    return network.eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _from_torchvision(name: str, pretrained: bool) -> nn.Module:
    models = import_torchvision().models
    names = models.list_models()
    if name not in names:
        raise BadInput(_unknown("torchvision", name, names))
    builder = models.get_model_builder(name)
    arguments: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments["weights_backbone"] = None  # the default would download weights
    if name in ("googlenet", "inception_v3") and not pretrained:
        arguments["init_weights"] = True  # without it they warn that the default will change
    return _create(f"torchvision:{name}", pretrained, lambda: builder(**arguments))


def _from_timm(name: str, pretrained: bool) -> nn.Module:
    timm = import_timm()
    # Only names in timm's own list, because its `hf-hub:` and `local-dir:` names download configurations.
    if not timm.is_model(name) or (":" in name or "/" in name):
        raise BadInput(_unknown("timm", name, timm.list_models()))
    return _create(f"timm:{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained))


def _create(spec: str, pretrained: bool, create: Callable[[], nn.Module]) -> nn.Module:
    """The network that `create` returns; with pretrained weights a failed download becomes one sentence."""
    if not pretrained:
        return create()
    try:
        return create()
    except Exception as error:  # libraries raise many types: no such weights, no network, a damaged download
        raise BadInput(
            f"pretrained=True: the weights of {spec} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error


def _zoo_hint(name: str) -> str:
    """The zoo sources with this model name, such as `; did you mean torchvision:resnet18?`."""
    if not name.isidentifier() and not name.replace(".", "_").isidentifier():
        return ""
    found = []
    for zoo, names in (("torchvision", _torchvision_names), ("timm", _timm_names)):
        with suppress(MissingExtra):
            if name in names():
                found.append(f"{zoo}:{name}")
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _torchvision_names() -> Sequence[str]:
    names: Sequence[str] = import_torchvision().models.list_models()
    return names


def _timm_names() -> Sequence[str]:
    names: Sequence[str] = import_timm().list_models()
    return names


def _unknown(zoo: str, name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; did you mean {', '.join(close)}?" if close else f" (it has {len(names)})"
    return f"{zoo} has no model named {name!r}{hint}"


def _from_factory(module_name: str, attribute: str, seed: int) -> object:
    spec = f"{module_name}:{attribute}"
    is_file = module_name.endswith(".py")
    with _importable(Path(module_name).resolve().parent if is_file else Path.cwd()):
        module = _import_file(Path(module_name), spec) if is_file else _import_module(module_name, spec)
        torch.manual_seed(seed)  # again, because the first import of the module may have drawn random numbers
        target: object = module
        for part in attribute.split("."):
            if not hasattr(target, part):
                raise BadInput(
                    f"{spec}: module {module_name!r} has no {attribute!r}{_like(attribute, module)}"
                )
            target = getattr(target, part)
        if isinstance(target, nn.Module | ExportedProgram) or not callable(target):
            return target
        return _call(target, spec)


def _call(factory: Callable[[], object], spec: str) -> object:
    try:
        return factory()
    except Exception as error:  # the user's code may raise anything
        raise BadInput(f"{spec}: the factory raised {type(error).__name__}: {first_line(error)}") from error


def _import_file(path: Path, spec: str) -> ModuleType:
    """Import a Python file as a module of its own name that does not replace an imported one."""
    path = require_file(path).resolve()
    imported = getattr(sys.modules.get(path.stem), "__file__", None)
    name = path.stem if path.stem not in sys.modules or imported == str(path) else f"onebyone source {path}"
    definition = importlib.util.spec_from_file_location(name, path)
    assert definition is not None  # a file that ends in .py always has a loader
    assert definition.loader is not None
    module = importlib.util.module_from_spec(definition)
    sys.modules[name] = module  # dataclasses and pickling look modules up by name
    try:
        definition.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise BadInput(
            f"{spec}: importing {path} raised {type(error).__name__}: {first_line(error)}"
        ) from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise BadInput(
                f"{spec}: there is no module named {error.name!r} here or among those installed"
            ) from error
        raise BadInput(f"{spec}: module {name!r} needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise BadInput(
            f"{spec}: importing {name!r} raised {type(error).__name__}: {first_line(error)}"
        ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Make the modules of a folder importable within the block."""
    added = str(folder) not in sys.path
    if added:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and str(folder) in sys.path:
            sys.path.remove(str(folder))


def _like(attribute: str, module: ModuleType) -> str:
    close = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"

"""The network that is tuned: a twin in eval mode that shares its weights, on the device asked for, and its example."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from onebyone.errors import BadInput
from onebyone.pytorch.modules.structure import copy_structure, why_opaque
from onebyone.tuning.call_signature import Calling
from onebyone.tuning.machine import Operators


@dataclass(frozen=True, eq=False)
class TuningTarget:
    """`network` never changes: every form is made from a copy of its structure."""

    network: nn.Module
    calling: Calling
    program: ExportedProgram | None = None
    operators: str = field(default="", repr=False)

    @property
    def device(self) -> torch.device:
        """Where it is tuned."""
        return self.calling.device


def subject_of(
    model: Any, example: Any, device: str | torch.device | None = None, dynamic_batch: bool = False
) -> TuningTarget:
    """The network as it will be tuned; the user's own is not touched, and moved nowhere.

    Raises
    ------
    BadInput
        for what is no network, a device that is not there, or an example that does not fit.
    """
    if example is None:
        raise BadInput(
            "example: is missing; give an input such as torch.randn(1, 3, 224, 224) (--shape 1,3,224,224)"
        )
    program = model if isinstance(model, ExportedProgram) else None
    if program is not None:
        if dynamic_batch:
            raise BadInput(
                "dynamic_batch: an exported program has its own sizes; tune the module it came from"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = program.module()
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module or an ExportedProgram")
    _require_plain_weights(model)
    place = _device(device, model)
    network = _twin(model, program is None, place)
    calling = Calling.of(network, example, dynamic_batch).mapped(lambda t: t.detach().to(place))
    try:
        with torch.no_grad():
            operators = _fingerprint(network, calling)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"example: the network does not run on it: {said}") from error
    return TuningTarget(network, calling, None if place != _place(model) else program, operators)


def _require_plain_weights(model: nn.Module) -> None:
    """Raise BadInput for a weight that has no values, or does not hold one number for each place."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise BadInput(f"model: {name} has no shape yet; run the network once before it is tuned")
        if value.device.type == "meta":
            raise BadInput(f"model: {name} is on the meta device and has no values; nothing can be timed")
        if value.is_quantized or value.layout != torch.strided:
            kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise BadInput(f"model: {name} is {kind}; expected dense weights, one number for each element")


def _fingerprint(network: nn.Module, calling: Calling) -> str:
    """What a run computes; of one sample where any batch is to be taken, so that it is the same for all."""
    watch = Operators()
    with watch:
        calling.run(network)
    if calling.free_batch:
        watch = Operators()
        with watch:
            calling.mapped(lambda t: t[:1]).run(network)
    return watch.fingerprint


def _twin(model: nn.Module, copied: bool, place: torch.device) -> nn.Module:
    if place != _place(model) or any(why_opaque(m) for m in model.modules()):
        twin = copy.deepcopy(model).to(
            place
        )  # what cannot be rebuilt from Python would be shared, and put in eval
    else:
        twin = copy_structure(model)[0] if copied else model
    for module in twin.modules():  # by flag: exported modules forbid eval(), and users override it
        module.training = False
    return twin


def _place(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _device(asked: str | torch.device | None, model: nn.Module) -> torch.device:
    here = _place(model)
    if asked is None:
        return here
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise BadInput(f"device={asked!r}: expected 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BadInput(f"device={asked!r}: this PyTorch sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BadInput(f"device={asked!r}: there are {torch.cuda.device_count()} CUDA devices")
        device = torch.device("cuda", device.index or 0)
    elif device.type != "cpu":
        raise BadInput(f"device={asked!r}: expected 'cpu', 'cuda' or 'cuda:N'")
    return device

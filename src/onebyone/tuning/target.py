"""The network that is tuned: a copy of its structure in eval mode that shares its weights, and its example call."""

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
from onebyone.records import first_line
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.machine import OperatorFingerprint


@dataclass(frozen=True, eq=False)
class TuningTarget:
    """A network on the device it is tuned for. `network` never changes: forms are made from copies of its structure.

    `program` is the exported program if the user gave one; `operators` is a fingerprint of the operators of a run.
    """

    network: nn.Module
    signature: CallSignature
    program: ExportedProgram | None = None
    operators: str = field(default="", repr=False)

    @property
    def device(self) -> torch.device:
        """The device that it is tuned on."""
        return self.signature.device


def target_of(
    model: Any, example: Any, device: str | torch.device | None = None, dynamic_batch: bool = False
) -> TuningTarget:
    """Prepare a network for tuning. The user's own network is neither changed nor moved.

    Raises
    ------
    BadInput
        for a model that is not a network, a device that does not exist, or an example that does not fit.
    """
    if example is None:
        raise BadInput(
            "example: is missing; give an input such as torch.randn(1, 3, 224, 224) (--shape 1,3,224,224)"
        )
    program = model if isinstance(model, ExportedProgram) else None
    if program is not None:
        if dynamic_batch:
            raise BadInput(
                "dynamic_batch: the sizes of an exported program are fixed; tune the module that it was exported from"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = program.module()
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module or an ExportedProgram")
    _require_dense_weights(model)
    chosen = _parsed_device(device, model)
    network = _private_copy(model, program is not None, chosen)
    signature = CallSignature.of(network, example, dynamic_batch).mapped(lambda t: t.detach().to(chosen))
    try:
        with torch.no_grad():
            operators = _operators_of_run(network, signature)
    except Exception as error:
        raise BadInput(f"example: the network does not run on it: {first_line(error)}") from error
    return TuningTarget(network, signature, None if chosen != _device_of(model) else program, operators)


def _require_dense_weights(model: nn.Module) -> None:
    """Raise BadInput for a parameter or buffer without values, or with another storage than one number per element."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise BadInput(f"model: {name} has no shape yet; run the network once before tuning it")
        if value.device.type == "meta":
            raise BadInput(
                f"model: {name} is on the meta device and has no values; expected weights in memory"
            )
        if value.is_quantized or value.layout != torch.strided:
            kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise BadInput(f"model: {name} is {kind}; expected dense weights, one number for each element")


def _operators_of_run(network: nn.Module, signature: CallSignature) -> str:
    """Fingerprint the operators of a run; of one sample if the batch is dynamic, so that it is the same for all."""
    fingerprint = OperatorFingerprint()
    with fingerprint.recording():
        signature.run(network)
    if signature.dynamic_batch:
        fingerprint = OperatorFingerprint()
        with fingerprint.recording():
            signature.mapped(lambda t: t[:1]).run(network)
    return fingerprint.digest


def _private_copy(model: nn.Module, exported: bool, device: torch.device) -> nn.Module:
    """Copy the structure of a network (the whole of it if it moves to another device), and set eval mode."""
    if device != _device_of(model) or any(why_opaque(m) for m in model.modules()):
        # modules that cannot be rebuilt from Python would be shared with the user's network, and set to eval mode
        network = copy.deepcopy(model).to(device)
    else:
        network = model if exported else copy_structure(model)[0]
    for module in network.modules():  # by flag, because exported modules forbid eval() and users override it
        module.training = False
    return network


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _parsed_device(asked: str | torch.device | None, model: nn.Module) -> torch.device:
    if asked is None:
        return _device_of(model)
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise BadInput(f"device={asked!r}: expected 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BadInput(f"device={asked!r}: PyTorch finds no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BadInput(f"device={asked!r}: expected an index below {torch.cuda.device_count()}")
        device = torch.device("cuda", device.index or 0)
    elif device.type != "cpu":
        raise BadInput(f"device={asked!r}: expected 'cpu', 'cuda' or 'cuda:N'")
    return device

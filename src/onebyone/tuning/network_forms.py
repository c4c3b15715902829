"""The forms of a whole network, from which engines build. Each is registered under a name.

| name | the network |
|---|---|
| "original" | unchanged |
| "conv", "linear" | its layers replaced by drop-in modules of the other kind, with the same weights |
| "native-conv", "native-linear" | its layers replaced by real modules of the other kind |
| "graph-conv", "graph-linear" | its exported graph rewritten, with layouts propagated |
| the first three with "+channels_last" | convolution weights and input images in channels-last memory format |
| "layers" | each layer in the form that an assignment (path → form) gives it |
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput, Refused
from onebyone.pytorch.files.exporting import why_not_followed
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import Refusal
from onebyone.tuning.exporting import export_on_example
from onebyone.tuning.layer_forms import Assignment, assigned
from onebyone.tuning.target import TuningTarget
from onebyone.verification.pytree import map_tensors


@dataclass(frozen=True, eq=False)
class FormedNetwork:
    """A network in one form.

    `network` is what runs. `proof` is what `onebyone.verify` compares with the original: a conversion if there is one,
    since its layers are then verified one by one, else None. `fixed_shapes`: it takes only the example's shapes.
    """

    network: nn.Module
    proof: Any = None
    fixed_shapes: bool = False


Build = Callable[[TuningTarget, Assignment], FormedNetwork]


@dataclass(frozen=True)
class NetworkForm:
    """One form of a whole network.

    `build(target, assignment)` returns a `FormedNetwork`, or raises Refused (or BadInput) with the reason why the
    network has no such form. The assignment is empty for every form except "layers" and "winograd". It must not
    change `target.network`.
    """

    name: str
    build: Build


_FORMS: dict[str, NetworkForm] = {}


def register_form(form: NetworkForm) -> NetworkForm:
    """Add a form, or replace the one of the same name. `onebyone.tune` tries it from then on."""
    _FORMS[form.name] = form
    return form


def network_form(name: str) -> NetworkForm:
    """Return the form of a name. Raises BadInput if there is none."""
    if name not in _FORMS:
        raise BadInput(f"form={name!r}: expected one of {', '.join(_FORMS)}")
    return _FORMS[name]


def form_names() -> tuple[str, ...]:
    """Return the names of all forms that need no assignment, in the order in which they are tried."""
    return tuple(name for name in _FORMS if name.removesuffix(CHANNELS_LAST) != LAYERS)


def refused(reason: str) -> Refused:
    """Return the error for a network that has no such form."""
    return Refused([Refusal("", "form", reason)], "the network has no such form")


def _original(target: TuningTarget, _: Assignment) -> FormedNetwork:
    return FormedNetwork(target.network, fixed_shapes=target.program is not None)


def _converted(to: str, level: str) -> Build:
    def build(target: TuningTarget, _: Assignment) -> FormedNetwork:
        if target.program is not None:
            raise refused("an exported program has no modules that could be replaced")
        conversion = convert_module(target.network, to=to, level=level)
        if not conversion.changes:
            raise refused(f"it has no layer to convert to {to}")
        return FormedNetwork(conversion.model, conversion)

    return build


def _graph(to: str) -> Build:
    def build(target: TuningTarget, _: Assignment) -> FormedNetwork:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            conversion = convert_graph(program_of(target), to=to)
            if not conversion.changes:
                raise refused(f"its graph has no product to convert to {to}")
            return FormedNetwork(conversion.model.module(), conversion, fixed_shapes=True)

    return build


def program_of(target: TuningTarget) -> torch.export.ExportedProgram:
    """Return the user's exported program, or export the network. Raises Refused if torch.export cannot."""
    if target.program is not None:
        return target.program
    try:
        return export_on_example(target.network, target.signature)
    except Exception as error:
        raise refused(f"torch.export cannot follow it: {why_not_followed(error)}") from error


class ChannelsLastNetwork(nn.Module):
    """A copy of a network whose convolution weights and input images have the channels-last memory format."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network with its inputs (N, C, H, W) made channels-last; outputs are contiguous, as otherwise."""
        out = self.network(*map_tensors(args, _channels_last), **map_tensors(kwargs, _channels_last))
        return map_tensors(out, Tensor.contiguous)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def channels_last(build: Build) -> Build:
    """Return the builder of the same form with images and convolution weights in channels-last format."""

    def build_channels_last(target: TuningTarget, assignment: Assignment) -> FormedNetwork:
        if not any(t.dim() == 4 for t in target.signature.tensors):
            raise refused("none of its inputs is an image (N, C, H, W)")
        if not any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in target.network.modules()):
            raise refused("it has no 2-d convolution whose memory format could change")
        formed = build(target, assignment)
        network = ChannelsLastNetwork(formed.network)
        for module in network.modules():
            module.training = False
        return FormedNetwork(network, formed.proof, formed.fixed_shapes)

    return build_channels_last


def _assigned(target: TuningTarget, assignment: Assignment) -> FormedNetwork:
    if not assignment:
        return _original(target, assignment)
    conversion = assigned(target.network, assignment)
    return FormedNetwork(conversion.model, conversion)


CHANNELS_LAST = "+channels_last"
LAYERS = "layers"
for _name, _build in (
    ("original", _original),
    ("conv", _converted("conv", "layers")),
    ("linear", _converted("linear", "layers")),
):
    register_form(NetworkForm(_name, _build))
    register_form(NetworkForm(_name + CHANNELS_LAST, channels_last(_build)))
for _to in ("conv", "linear"):
    register_form(NetworkForm(f"native-{_to}", _converted(_to, "native")))
    register_form(NetworkForm(f"graph-{_to}", _graph(_to)))
register_form(NetworkForm(LAYERS, _assigned))
register_form(NetworkForm(LAYERS + CHANNELS_LAST, channels_last(_assigned)))

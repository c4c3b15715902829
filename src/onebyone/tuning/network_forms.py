"""The forms of a whole network: what an engine is given to run. Each is registered under a name.

"original"; "conv" and "linear" (drop-in modules, the very weights); "native-…" (real modules of the other kind);
"graph-…" (the exported graph rewritten, layouts propagated); any of the first three with "+channels_last"; and
"layers": each layer in the form that an assignment (path → form) gives it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput, Refused
from onebyone.pytorch.files.exporting import quiet, why_not_followed
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import Refusal
from onebyone.tuning.layer_forms import Assignment, assigned
from onebyone.tuning.target import TuningTarget
from onebyone.verification.pytree import map_tensors


@dataclass(frozen=True, eq=False)
class Formed:
    """A network in a form: `network` to be run, `proof` what `onebyone.verify` compares (a conversion where there is
    one: its layers are then probed one by one). `fixed`: it takes only the example's shapes.
    """

    network: nn.Module
    proof: Any = None
    fixed: bool = False


@dataclass(frozen=True)
class WholeForm:
    """One form of a whole network.

    `build(subject, assignment)` gives a `Formed`, or raises Refused (or BadInput) with the reason why there is none;
    the assignment is empty for all forms but "layers". It must leave `subject.network` as it is.
    """

    name: str
    build: Callable[[TuningTarget, Assignment], Formed]


_FORMS: dict[str, WholeForm] = {}


def register_form(form: WholeForm) -> WholeForm:
    """Add a form (or replace the one of its name): `onebyone.tune` tries it from now on."""
    _FORMS[form.name] = form
    return form


def form_of(name: str) -> WholeForm:
    """The form of a name. Raises BadInput where there is none."""
    if name not in _FORMS:
        raise BadInput(f"form={name!r}: expected some of {', '.join(_FORMS)}")
    return _FORMS[name]


def form_names() -> tuple[str, ...]:
    """Every form that can be built without an assignment, in the order they are tried."""
    return tuple(name for name in _FORMS if name.removesuffix(CHANNELS_LAST) != LAYERS)


def refused(reason: str) -> Refused:
    """A network that has no such form."""
    return Refused([Refusal("", "form", reason)], "the network has no such form")


def _original(subject: TuningTarget, _: Assignment) -> Formed:
    return Formed(subject.network, fixed=subject.program is not None)


def _converted(to: str, level: str) -> Callable[[TuningTarget, Assignment], Formed]:
    def build(subject: TuningTarget, _: Assignment) -> Formed:
        if subject.program is not None:
            raise refused("an exported program has no modules left to replace")
        conversion = convert_module(subject.network, to=to, level=level)
        if not conversion.changes:
            raise refused(f"it has no layer to convert to {to}")
        return Formed(conversion.model, conversion)

    return build


def _graph(to: str) -> Callable[[TuningTarget, Assignment], Formed]:
    def build(subject: TuningTarget, _: Assignment) -> Formed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            conversion = convert_graph(program_of(subject), to=to)
            if not conversion.changes:
                raise refused(f"its graph has no product to convert to {to}")
            return Formed(conversion.model.module(), conversion, fixed=True)

    return build


def program_of(subject: TuningTarget) -> torch.export.ExportedProgram:
    """The exported program: the one given, or the network's on the example. Raises Refused where it has none."""
    if subject.program is not None:
        return subject.program
    calling, shapes = subject.calling, None
    if calling.free_batch:
        calling = calling.mapped(lambda t: torch.cat([t, t]) if t.shape[0] == 1 else t)
        free = pytree.tree_map(
            lambda t: {0: Dim.DYNAMIC} if isinstance(t, Tensor) else None, (calling.args, calling.kwargs)
        )
        shapes = dict(calling.signature.bind(*free[0], **free[1]).arguments)
    try:
        with quiet():
            return torch.export.export(
                subject.network, calling.args, calling.kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise refused(f"torch.export cannot follow it: {why_not_followed(error)}") from error


class ChannelsLast(nn.Module):
    """A network whose convolution weights and input images lie channels last; the weights are a copy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same with images (N, C, H, W) given channels last; what comes out lies as it does elsewhere."""
        out = self.network(*map_tensors(args, _channels_last), **map_tensors(kwargs, _channels_last))
        return map_tensors(out, Tensor.contiguous)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def channels_last(
    build: Callable[[TuningTarget, Assignment], Formed],
) -> Callable[[TuningTarget, Assignment], Formed]:
    """The same form, its images and kernels channels last."""

    def built(subject: TuningTarget, assignment: Assignment) -> Formed:
        if not any(t.dim() == 4 for t in subject.calling.tensors):
            raise refused("its inputs are no images")
        if not any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in subject.network.modules()):
            raise refused("it has no 2-d convolution whose layout could change")
        formed = build(subject, assignment)
        network = ChannelsLast(formed.network)
        for module in network.modules():
            module.training = False
        return Formed(network, formed.proof, formed.fixed)

    return built


def _assigned(subject: TuningTarget, assignment: Assignment) -> Formed:
    if not assignment:
        return _original(subject, assignment)
    conversion = assigned(subject.network, assignment)
    return Formed(conversion.model, conversion)


CHANNELS_LAST = "+channels_last"
LAYERS = "layers"
for _name, _build in (
    ("original", _original),
    ("conv", _converted("conv", "layers")),
    ("linear", _converted("linear", "layers")),
):
    register_form(WholeForm(_name, _build))
    register_form(WholeForm(_name + CHANNELS_LAST, channels_last(_build)))
for _to in ("conv", "linear"):
    register_form(WholeForm(f"native-{_to}", _converted(_to, "native")))
    register_form(WholeForm(f"graph-{_to}", _graph(_to)))
register_form(WholeForm(LAYERS, _assigned))
register_form(WholeForm(LAYERS + CHANNELS_LAST, channels_last(_assigned)))

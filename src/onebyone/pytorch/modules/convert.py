"""`convert` for PyTorch modules at `level="layers"` and `level="native"`: the walk over the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from onebyone.errors import BadInput
from onebyone.laws import transposed
from onebyone.pytorch.modules import attention, layers, native
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.dropins import DropIn, PatchLinear, PointwiseConvolution
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.pytorch.modules.state import Entry, carry_optimizer, check_optimizer
from onebyone.pytorch.modules.structure import Successors, copy_structure, walk, why_opaque
from onebyone.records import Change, Refusal

Only = str | Sequence[str] | Callable[[str, nn.Module], bool]
SOURCE = {"conv": layers.LINEAR, "linear": layers.CONV}  # what each form is made from
ON_A_TRANSPOSE = "on a weight stored as (inputs, outputs)"
NAMES = {layers.LINEAR: "linear layer", layers.CONV: "1×1 convolution"}
ON_PATCHES = "linear layer on patches"


@dataclass
class Place:
    """One module that may be converted, at all the paths it has."""

    module: nn.Module
    paths: list[str]
    attention: Place | None = None  # whose output projection it is
    projection: Place | None = None  # the output projection of an attention

    @property
    def path(self) -> str:
        return self.paths[0]

    def matches(self, test: Callable[[str, nn.Module], bool]) -> bool:
        """Whether any path of it passes; an attention and its output projection go together."""
        both = [p for p in (self, self.attention, self.projection) if p is not None]
        return any(test(path, place.module) for place in both for path in place.paths)

    def why_not(self) -> str | None:
        """Why this layer cannot have a drop-in; None if it can."""
        if isinstance(self.module, nn.MultiheadAttention):
            return attention.why_not_attention(self.module)
        if self.attention is not None and (reason := self.attention.why_not()):
            return f"its weight is read, it is never called; by {reason}"
        return layers.why_not(self.module)

    def stays(self, to: str, level: str) -> str | None:
        """Why a layer that already is of the form asked for stays as it is; None if it changes."""
        if to == layers.LINEAR and level == "layers" and layers.transposes(self.module):
            return f'it is a linear layer already, {ON_A_TRANSPOSE}; level="native" makes an nn.Linear of it'
        return None


@dataclass
class ConversionPlan:
    """What is to be done, decided before anything is built."""

    stand_in: list[Place] = field(default_factory=list)
    restore: list[Place] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


def convert_module(
    model: nn.Module,
    *,
    to: str,
    level: str = "layers",
    copy: bool = False,
    only: Only | None = None,
    optimizer: Optimizer | None = None,
) -> ModuleConversion:
    """The network with its linear layers as 1×1 convolutions (`to="conv"`), or the other way round
    (`to="linear"`), where convolutions whose kernel is their stride become linear layers on patches too.

    `model` is left as it is: the result is a second tree of modules over the very same Parameters and
    buffers, so training one trains the other, an optimizer goes on, and state dicts load both ways;
    `copy=True` parts them. `level="layers"` puts drop-in modules, whose weights keep name and shape;
    `level="native"` real `nn.Conv2d` and `nn.Linear`, whose weights are new Parameters of the usual shape
    over the same storage.

    `only` chooses layers: a glob on dotted paths ("*.head"), several of them, or a function (path, module)
    -> bool. `optimizer` is handed over to new Parameters, with its state, where there are any (native, or
    `copy=True`).

    Raises:
        BadInput: an argument that cannot be used, among them an `only` that chooses no layer.
        Refused: the optimizer's state cannot be carried over.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> c = convert_module(net, to="conv", only="3")
    >>> [change.path for change in c.changes], c.model[3].weight is net[3].weight
    (['3'], True)
    """
    _check(model, to, level)
    check_optimizer(optimizer)
    places = _places(model)
    plan = _plan([p for p in places if _is_candidate(p.module, to)], to, level, only, places)
    plan.refused += [
        Refusal(p.path, type(p.module).__name__, r) for p in places if (r := why_opaque(p.module))
    ]
    twin, successors = copy_structure(model, copy_tensors=copy)
    builder = _Builder(successors, to, level)
    for place in plan.restore:
        builder.restore(place)
    for place in plan.stand_in:
        builder.stand_in(place)
    builder.finish(places)
    if optimizer is not None:
        builder.carry(optimizer, places)
    return ModuleConversion(
        twin,
        tuple(builder.changes),
        tuple(plan.refused),
        to,
        level,
        tuple(builder.pairs),
        tuple(builder.entries),
    )


def _check(model: object, to: object, level: object) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not isinstance(to, str) or to not in SOURCE:
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    if level not in ("layers", "native"):
        raise BadInput(f"level={level!r}: expected 'layers' or 'native' for a torch.nn.Module")


def _places(model: nn.Module) -> list[Place]:
    found: dict[int, Place] = {}
    for path, module in walk(model):
        found.setdefault(id(module), Place(module, [])).paths.append(path)
    for place in found.values():
        if isinstance(place.module, nn.MultiheadAttention):
            place.projection = found.get(id(place.module.out_proj))
            if place.projection is not None:
                place.projection.attention = place
    return list(found.values())


def _is_candidate(module: nn.Module, to: str) -> bool:
    """Whether a module is of the form to be left: a layer, or a drop-in that stands for the form wanted."""
    if isinstance(module, DropIn):
        return isinstance(module, PointwiseConvolution) == (to == "linear")
    if isinstance(module, nn.MultiheadAttention):
        return isinstance(module, attention.PointwiseAttention) == (to == "linear")
    if why_opaque(module) is not None:
        return False
    if layers.kind_of(module) == SOURCE[to]:
        return True
    return to == layers.LINEAR and (layers.transposes(module) or layers.has_patches(module))


def _plan(
    candidates: list[Place], to: str, level: str, only: Only | None, places: list[Place]
) -> ConversionPlan:
    plan = ConversionPlan()
    for place in _chosen(candidates, only, to):
        if isinstance(place.module, DropIn | attention.PointwiseAttention):
            plan.restore.append(place)
            continue
        reason = place.why_not() or place.stays(to, level)
        if reason is None:
            plan.stand_in.append(place)
        else:
            plan.refused.append(Refusal(place.path, type(place.module).__name__, reason))
    if level == "native":
        _refuse_native(plan, places)
    return plan


def _refuse_native(plan: ConversionPlan, places: list[Place]) -> None:
    """A weight shared with a layer that stays ties that layer's fate: repeat until none falls away."""
    while True:
        users = Counter(
            id(p) for place in places for p in vars(place.module)["_parameters"].values() if p is not None
        )
        for place in plan.stand_in:
            users[id(vars(place.module)["_parameters"].get("weight"))] -= 1
        reasons = [
            None
            if isinstance(p.module, nn.MultiheadAttention)
            else native.why_not_native(p.module, users[id(vars(p.module)["_parameters"].get("weight"))])
            for p in plan.stand_in
        ]
        if not any(reasons):
            return
        pairs = list(zip(plan.stand_in, reasons, strict=True))
        plan.refused += [Refusal(p.path, type(p.module).__name__, r) for p, r in pairs if r]
        plan.stand_in = [p for p, r in pairs if not r]


def _chosen(candidates: list[Place], only: Only | None, to: str) -> list[Place]:
    if only is None:
        return candidates
    if callable(only):
        chosen = [p for p in candidates if p.matches(only)]
        if not chosen:
            raise BadInput(f"only={getattr(only, '__name__', only)!r} {_none_chosen(candidates, to)}")
        return chosen
    globs = [only] if isinstance(only, str) else list(only)
    if not globs or not all(isinstance(g, str) for g in globs):
        raise BadInput(
            f"only={only!r}: expected a glob, several of them, or a function (path, module) -> bool"
        )
    matched: set[int] = set()
    for glob in globs:
        hits = [p for p in candidates if p.matches(partial(_fits, glob))]
        if not hits:
            raise BadInput(f"only={glob!r} {_none_chosen(candidates, to)}")
        matched |= {id(p) for p in hits}
    return [p for p in candidates if id(p) in matched]


def _fits(glob: str, path: str, _: nn.Module) -> bool:
    return fnmatchcase(path, glob)


def _none_chosen(candidates: list[Place], to: str) -> str:
    some = ", ".join(p.path or "(top level)" for p in candidates[:5]) + (", …" if len(candidates) > 5 else "")
    return f"matches no {NAMES[SOURCE[to]]} of the network; it has {some or 'none'}"


class _Builder:
    """Carries a plan out on the copy, and keeps the record."""

    def __init__(self, successors: Successors, to: str, level: str) -> None:
        self.successors, self.to, self.level = successors, to, level
        self.changes: list[Change] = []
        self.pairs: list[ModulePair] = []
        self.entries: list[Entry] = []
        self._reshaped: dict[int, nn.Parameter] = {}
        self._transposed: set[int] = set()  # ids of the original's weights

    def stand_in(self, place: Place) -> None:
        old, new = place.module, cast(nn.Module, self.successors.of(place.module))
        law, before = layers.law_of(old), _describe(old)
        if self.to == layers.kind_of(old):
            law = transposed.NAME
        copied = 0
        if isinstance(new, nn.MultiheadAttention):
            attention.stand_in_attention(new)
            after = f"1×1 convolution {attention.describe_attention(new)}"
        elif self.level == "native":
            if layers.transposes(old):
                self._transposed.add(id(vars(old)["_parameters"]["weight"]))
            copied = native.stand_native(new, self.to, self._reshaped)
            self.entries += [e for path in place.paths for e in _entries(path, old, new)]
            after = _describe(new.layer if isinstance(new, native.Shell) else new)
        else:
            layers.stand_in(new, layers.drop_in_for(old))
            after = f"{_form(new, NAMES[SOURCE_OF_OTHER[self.to]])} {_shape(old)}"
        self._record(place, new, law, before, after, copied)

    def restore(self, place: Place) -> None:
        new = cast(Any, self.successors.of(place.module))
        before = f"{_form(place.module, NAMES[SOURCE[self.to]])} {_shape(place.module)}"
        if isinstance(new, attention.PointwiseAttention):
            attention.restore_attention(new)
        else:
            layers.restore(new)
        self._record(place, new, layers.law_of(new), before, _describe(new), 0)

    def _record(self, place: Place, new: nn.Module, law: str, before: str, after: str, copied: int) -> None:
        kind = type(place.module).__name__
        self.changes.append(Change(place.path, kind, law, before, after, copied))
        self.pairs.append(ModulePair(place.path, place.module, new))

    def finish(self, places: list[Place]) -> None:
        """Have modules that read weights call what was put into them."""
        for place in places:
            new = self.successors.of(place.module)
            if new is not place.module:
                attention.call_what_is_inside(new, MADE)

    def carry(self, optimizer: Optimizer, places: list[Place]) -> None:
        """Hand the optimizer over to the new Parameters; raises Refused where its state cannot follow."""
        found: dict[int, tuple[str, nn.Parameter, nn.Parameter]] = {}
        for place in places:
            for name, old in vars(place.module)["_parameters"].items():
                if old is not None and id(old) not in found:
                    copied = self.successors.of(old)
                    new = self._reshaped.get(id(copied), copied)
                    found[id(old)] = (f"{place.path}.{name}" if place.path else name, old, new)
        carry_optimizer(optimizer, list(found.values()), self._transposed)


MADE = (DropIn, attention.PointwiseAttention, native.Shell)
SOURCE_OF_OTHER = {"conv": layers.CONV, "linear": layers.LINEAR}


def _form(module: nn.Module, name: str) -> str:
    """What a drop-in computes, for people: `name` unless it works on patches."""
    return ON_PATCHES if isinstance(module, PatchLinear) else name


def _shape(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return attention.describe_attention(module)
    return "×".join(map(str, layers.sample_weight(module).shape))


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__} {_shape(module)}"


def _entries(path: str, old: nn.Module, new: nn.Module) -> list[Entry]:
    layer, inner = (new.layer, f"{new.INNER}.") if isinstance(new, native.Shell) else (new, "")
    prefix, transposed_weight = f"{path}." if path else "", layers.transposes(old)
    entries = []
    for name, tensor in vars(old)["_parameters"].items():
        if tensor is not None:
            names = f"{prefix}{name}", f"{prefix}{inner}{name}"
            shapes = tuple(tensor.shape), tuple(getattr(layer, name).shape)
            entries.append(Entry(*names, *shapes, transposed_weight and name == "weight"))
    return entries

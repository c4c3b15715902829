"""`convert` for PyTorch modules, at `level="layers"` and `level="native"`."""

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
SOURCE = {"conv": layers.LINEAR, "linear": layers.CONV}  # the kind that each form is made from
ON_A_TRANSPOSE = "on a weight stored as (inputs, outputs)"
NAMES = {layers.LINEAR: "linear layer", layers.CONV: "1×1 convolution"}
ON_PATCHES = "linear layer on patches"


@dataclass
class LocatedModule:
    """A module with all of its paths in the network.

    `attention` is the attention whose output projection this module is; `projection` the output projection of this
    attention.
    """

    module: nn.Module
    paths: list[str]
    attention: LocatedModule | None = None
    projection: LocatedModule | None = None

    @property
    def path(self) -> str:
        return self.paths[0]

    def matches(self, test: Callable[[str, nn.Module], bool]) -> bool:
        """Whether one of its paths passes the test. An attention and its output projection are chosen together."""
        together = [m for m in (self, self.attention, self.projection) if m is not None]
        return any(test(path, located.module) for located in together for path in located.paths)

    def why_not(self) -> str | None:
        """Why this layer cannot have a drop-in; None if it can."""
        if isinstance(self.module, nn.MultiheadAttention):
            return attention.why_not_attention(self.module)
        if self.attention is not None and (reason := self.attention.why_not()):
            return f"its weight is read, and it is never called, by {reason}"
        return layers.why_not(self.module)

    def why_kept(self, to: str, level: str) -> str | None:
        """Why a layer that already has the requested form is not converted; None if it is converted."""
        if to == layers.LINEAR and level == "layers" and layers.transposes(self.module):
            return f'it is a linear layer already, {ON_A_TRANSPOSE}; level="native" makes an nn.Linear of it'
        return None


@dataclass
class ConversionPlan:
    """Which layers are replaced, which drop-ins are restored, and what is refused; decided before anything is built."""

    replace: list[LocatedModule] = field(default_factory=list)
    restore: list[LocatedModule] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


def convert_module(
    model: nn.Module,
    *,
    to: str,
    level: str = "layers",
    copy: bool = False,
    only: Only | None = None,
    optimizer: Optimizer | None = None,
    dynamic_axes: Sequence[int] | None = None,
) -> ModuleConversion:
    """Convert the linear layers of a network to 1×1 convolutions, or the other way round.

    `model` is not changed. The result is a second tree of modules with the same Parameter objects and buffers, so that
    training one network trains the other, an optimizer keeps working, and state dicts load in both directions.

    Parameters
    ----------
    model: the network.
    to: "conv" or "linear". With "linear", convolutions whose kernel size is their stride become linear layers on
    patches. level: "layers" (drop-in modules, whose weights keep their names and shapes) or "native" (real `nn.Conv2d`
        and `nn.Linear`, whose weights are new Parameters of the usual shape on the same storage).
    copy: copy parameters and buffers, so that the two networks are independent.
    only: which layers to convert: a glob on dotted paths ("*.head"), several globs, or a function (path, module) ->
    bool. optimizer: moved to the new Parameters, with its state, if there are any (`level="native"`, or `copy=True`).
    dynamic_axes: axes of the inputs that stay free where the result is exported (see `ModuleConversion.save`).

    Raises
    ------
    BadInput
        if an argument cannot be used, or `only` matches no layer.
    Refused
        if the optimizer's state cannot be carried over.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> c = convert_module(net, to="conv", only="3")
    >>> [change.path for change in c.changes], c.model[3].weight is net[3].weight
    (['3'], True)
    """
    _check(model, to, level)
    check_optimizer(optimizer)
    modules = _located_modules(model)
    plan = _plan([m for m in modules if _is_candidate(m.module, to)], to, level, only, modules)
    plan.refused += [
        Refusal(m.path, type(m.module).__name__, r) for m in modules if (r := why_opaque(m.module))
    ]
    twin, successors = copy_structure(model, copy_tensors=copy)
    builder = _Builder(successors, to, level)
    for located in plan.restore:
        builder.restore(located)
    for located in plan.replace:
        builder.replace(located)
    builder.call_replacements(modules)
    if optimizer is not None:
        builder.carry(optimizer, modules)
    return ModuleConversion(
        twin,
        tuple(builder.changes),
        tuple(plan.refused),
        to,
        level,
        tuple(builder.pairs),
        tuple(builder.entries),
        None if dynamic_axes is None else tuple(dynamic_axes),
    )


def _check(model: object, to: object, level: object) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not isinstance(to, str) or to not in SOURCE:
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    if level not in ("layers", "native"):
        raise BadInput(f"level={level!r}: expected 'layers' or 'native' for a torch.nn.Module")


def _located_modules(model: nn.Module) -> list[LocatedModule]:
    by_id: dict[int, LocatedModule] = {}
    for path, module in walk(model):
        by_id.setdefault(id(module), LocatedModule(module, [])).paths.append(path)
    for located in by_id.values():
        if isinstance(located.module, nn.MultiheadAttention):
            located.projection = by_id.get(id(located.module.out_proj))
            if located.projection is not None:
                located.projection.attention = located
    return list(by_id.values())


def _is_candidate(module: nn.Module, to: str) -> bool:
    """Whether a module has the form that is to be replaced: a layer, or a drop-in of the requested form's layer."""
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
    candidates: list[LocatedModule],
    to: str,
    level: str,
    only: Only | None,
    modules: list[LocatedModule],
) -> ConversionPlan:
    plan = ConversionPlan()
    for located in _chosen(candidates, only, to):
        if isinstance(located.module, DropIn | attention.PointwiseAttention):
            plan.restore.append(located)
            continue
        reason = located.why_not() or located.why_kept(to, level)
        if reason is None:
            plan.replace.append(located)
        else:
            plan.refused.append(Refusal(located.path, type(located.module).__name__, reason))
    if level == "native":
        _refuse_native(plan, modules)
    return plan


def _refuse_native(plan: ConversionPlan, modules: list[LocatedModule]) -> None:
    """Refuse the layers that cannot become native modules.

    A layer whose weight is shared with a layer that is not converted is refused too. That may leave further layers with
    such a weight, so that the test is repeated until no layer is refused.
    """
    while True:
        users = Counter(
            id(p)
            for located in modules
            for p in vars(located.module)["_parameters"].values()
            if p is not None
        )
        for located in plan.replace:
            users[id(vars(located.module)["_parameters"].get("weight"))] -= 1
        reasons = [
            None
            if isinstance(p.module, nn.MultiheadAttention)
            else native.why_not_native(p.module, users[id(vars(p.module)["_parameters"].get("weight"))])
            for p in plan.replace
        ]
        if not any(reasons):
            return
        pairs = list(zip(plan.replace, reasons, strict=True))
        plan.refused += [Refusal(p.path, type(p.module).__name__, r) for p, r in pairs if r]
        plan.replace = [p for p, r in pairs if not r]


def _chosen(candidates: list[LocatedModule], only: Only | None, to: str) -> list[LocatedModule]:
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


def _none_chosen(candidates: list[LocatedModule], to: str) -> str:
    some = ", ".join(p.path or "(top level)" for p in candidates[:5]) + (", …" if len(candidates) > 5 else "")
    kinds = {layers.CONV: "linear layer", layers.LINEAR: "1×1 convolution or convolution on patches"}
    return f"matches no {kinds[to]} of the network; it has {some or 'none'}"


class _Builder:
    """Applies a plan to the copied tree, and records the changes."""

    def __init__(self, successors: Successors, to: str, level: str) -> None:
        self.successors, self.to, self.level = successors, to, level
        self.changes: list[Change] = []
        self.pairs: list[ModulePair] = []
        self.entries: list[Entry] = []
        self._reshaped: dict[int, nn.Parameter] = {}
        self._transposed: set[int] = set()  # ids of the original's weights

    def replace(self, located: LocatedModule) -> None:
        """Replace a layer by the other form."""
        old, new = located.module, cast(nn.Module, self.successors.of(located.module))
        law, before = layers.law_of(old), _describe(old)
        if self.to == layers.kind_of(old):
            law = transposed.NAME
        copied = 0
        if isinstance(new, nn.MultiheadAttention):
            attention.install_attention(new)
            after = f"1×1 convolution {attention.describe_attention(new)}"
        elif self.level == "native":
            if layers.transposes(old):
                self._transposed.add(id(vars(old)["_parameters"]["weight"]))
            copied = native.install_native(new, self.to, self._reshaped)
            self.entries += [e for path in located.paths for e in _entries(path, old, new)]
            after = _describe(new.layer if isinstance(new, native.Shell) else new)
        else:
            layers.install_drop_in(new, layers.drop_in_for(old))
            after = f"{_form(new, NAMES[SOURCE_OF_OTHER[self.to]])} {_shape(old)}"
        self._record(located, new, law, before, after, copied)

    def restore(self, located: LocatedModule) -> None:
        """Turn a drop-in back into the layer that it replaced."""
        new = cast(Any, self.successors.of(located.module))
        before = f"{_form(located.module, NAMES[SOURCE[self.to]])} {_shape(located.module)}"
        if isinstance(new, attention.PointwiseAttention):
            attention.restore_attention(new)
        else:
            layers.restore(new)
        self._record(located, new, layers.law_of(new), before, _describe(new), 0)

    def _record(
        self, located: LocatedModule, new: nn.Module, law: str, before: str, after: str, copied: int
    ) -> None:
        kind = type(located.module).__name__
        self.changes.append(Change(located.path, kind, law, before, after, copied))
        self.pairs.append(ModulePair(located.path, located.module, new))

    def call_replacements(self, modules: list[LocatedModule]) -> None:
        """Make modules that read their children's weights call the children that were replaced."""
        for located in modules:
            new = self.successors.of(located.module)
            if new is not located.module:
                attention.call_replaced_children(new, REPLACEMENTS)

    def carry(self, optimizer: Optimizer, modules: list[LocatedModule]) -> None:
        """Move the optimizer to the new Parameters. Raises Refused if its state cannot be carried over."""
        successors: dict[int, tuple[str, nn.Parameter, nn.Parameter]] = {}
        for located in modules:
            for name, old in vars(located.module)["_parameters"].items():
                if old is not None and id(old) not in successors:
                    copied = self.successors.of(old)
                    new = self._reshaped.get(id(copied), copied)
                    successors[id(old)] = (f"{located.path}.{name}" if located.path else name, old, new)
        carry_optimizer(optimizer, list(successors.values()), self._transposed)


REPLACEMENTS = (DropIn, attention.PointwiseAttention, native.Shell)
SOURCE_OF_OTHER = {"conv": layers.CONV, "linear": layers.LINEAR}


def _form(module: nn.Module, name: str) -> str:
    """What a drop-in computes, for reports: `name`, unless it works on patches."""
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

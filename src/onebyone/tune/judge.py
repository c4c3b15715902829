"""Whether a candidate computes the network's function: its outputs against a float64 reference made once.

Each candidate is run on the example and on a second input of the same shapes (and, for any batch, on another batch),
and its error against float64 is divided by the original's own: `rounding_ratio`, as `onebyone.verify` defines it,
with the same limit √(u'/u). A bfloat16 candidate is measured by the bfloat16 error of the original form. What an
engine drops, folds or approximates shows in its outputs; that the form it was given is the same function is proven
by `onebyone.verify` before it is chosen.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.tune.calling import Call, Calling
from onebyone.verify import network
from onebyone.verify.settings import proof_settings
from onebyone.verify.trees import cast, cast_tensor, leaves

Named = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Check:
    """One candidate's outputs: `ratio` (None without a float64 reference), `max_error`, what is wrong ("": nothing)."""

    ratio: float | None
    max_error: float
    problem: str = ""


@dataclass(frozen=True)
class Reference:
    """One input, the original's outputs on it, and those of its float64 copy (None where it has none)."""

    calling: Calling
    own: Named
    wide: Named | None
    short: Named | None = None


class Judge:
    """Holds the references. Made once; the networks are left as they are.

    Raises BadInput where the original itself fails on the example, does not give finite numbers, or not the same twice.
    """

    def __init__(
        self, original: nn.Module, calling: Calling, seed: int = 0, short: torch.dtype | None = None
    ) -> None:
        self.u = network.unit(network.own_dtype(original, calling.example))
        self._short = short
        wide, narrow = _copies(original, short)
        self.references = [_reference(original, wide, narrow, calling, short)]
        self._require_steady(original)
        for other in (_elsewhere(calling, seed), _other_batch(calling)):
            if other is not None:
                made = _optional(original, wide, narrow, other, short)
                if made is not None:
                    self.references.append(made)

    def _require_steady(self, original: nn.Module) -> None:
        """Raise BadInput where a second run gives other numbers than rounding explains."""
        with torch.inference_mode():
            again = leaves(self.references[0].calling.run(original))
        for (_, y), (_, z) in zip(self.references[0].own, again, strict=True):
            if network.difference(y, z) > self._allowed(self.u) * self.u * network.size_of(y):
                raise BadInput(
                    "model: gives other numbers when it runs again (it draws random numbers, say), "
                    "so that no other form can be compared with it"
                )

    def check(self, call: Call, dtype: torch.dtype | None = None) -> Check:
        """Run a candidate on every input and judge what it gives; the worst figures, the first problem."""
        checks = [self._one(reference, call, dtype) for reference in self.references]
        ratios = [c.ratio for c in checks if c.ratio is not None]
        problems = [c.problem for c in checks if c.problem]
        return Check(
            max(ratios, default=None), max(c.max_error for c in checks), problems[0] if problems else ""
        )

    def _one(self, reference: Reference, call: Call, dtype: torch.dtype | None) -> Check:
        try:
            with torch.inference_mode():
                found = [(p, t.clone()) for p, t in leaves(reference.calling.run(call))]
        except Exception as error:
            return Check(None, math.inf, f"it fails: {type(error).__name__}: {first_line(error)}")
        shapes = [(p, tuple(t.shape)) for p, t in found]
        if shapes != [(p, tuple(t.shape)) for p, t in reference.own]:
            return Check(None, math.inf, f"its outputs have the places and shapes {shapes}")
        worst = Check(None, 0.0)
        for index, (path, z) in enumerate(found):
            worst = _worse(worst, self._output(reference, index, path, z, dtype))
        return worst

    def _output(
        self, reference: Reference, index: int, path: str, z: Tensor, dtype: torch.dtype | None
    ) -> Check:
        name, y = f"output {path}" if path else "the output", reference.own[index][1]
        if not (y.is_floating_point() or y.is_complex()):
            return Check(None, 0.0, "" if torch.equal(y, z) else f"{name} ({y.dtype}) differs")
        error = network.difference(y, z)
        if not bool(torch.isfinite(z).all()):
            return Check(None, math.inf, f"{name} holds NaN or infinity")
        if reference.wide is None:
            limit = self._allowed(self.u) * self.u * network.size_of(y)
            return Check(None, error, _beyond(name, error, limit, "differs by {:.3g}, limit {:.3g}"))
        exact = reference.wide[index][1]
        own = max(network.difference(exact, y), self.u * network.size_of(exact))
        ratio = network.quotient(network.difference(exact, z), own)
        limit = self._allowed(self.u)
        if dtype is not None and reference.short is not None:
            u = network.unit(dtype)
            short = max(network.difference(exact, reference.short[index][1]), u * network.size_of(exact))
            limit = self._allowed(u) * network.quotient(short, own)
        said = "has {:.3g} times the original's rounding error, limit {:.3g}"
        return Check(ratio, error, _beyond(name, ratio, limit, said))

    def _allowed(self, u: float) -> float:
        return math.sqrt(network.shorter(u) / u)


def _beyond(name: str, value: float, limit: float, words: str) -> str:
    return f"{name} {words.format(value, limit)}" if not value <= limit else ""


def _worse(a: Check, b: Check) -> Check:
    ratios = [r for r in (a.ratio, b.ratio) if r is not None]
    return Check(max(ratios, default=None), max(a.max_error, b.max_error), a.problem or b.problem)


def _copies(original: nn.Module, short: torch.dtype | None) -> tuple[Any, Any]:
    with warnings.catch_warnings():  # torch's own, met where it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            (wide,) = network.copies_in(torch.float64, original)
        except Exception:  # whatever copying a network raises
            return None, None
        return wide, network.copies_in(short, original)[0] if short is not None else None


def _reference(
    original: nn.Module, wide: Any, narrow: Any, calling: Calling, short: torch.dtype | None
) -> Reference:
    try:
        with torch.inference_mode():
            own = [(p, t.clone()) for p, t in leaves(calling.run(original))]
    except Exception as error:
        raise BadInput(
            f"example: the network fails on it: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not own:
        raise BadInput("model: gives no tensor on the example; there is nothing to compare candidates by")
    for path, t in own:
        if (t.is_floating_point() or t.is_complex()) and not bool(torch.isfinite(t).all()):
            raise BadInput(f"model: {path or 'the output'} holds NaN or infinity on the example")
    return Reference(calling, own, _in(wide, calling, torch.float64, own), _in(narrow, calling, short, own))


def _in(copy: Any, calling: Calling, dtype: torch.dtype | None, own: Named) -> Named | None:
    """The outputs of a copy in another type; None where it does not run or gives something else."""
    if copy is None or dtype is None:
        return None
    with proof_settings(0, copy), torch.inference_mode():
        try:
            found = leaves(calling.mapped(lambda t: cast_tensor(t, dtype)).run(copy))
        except Exception:  # it casts inside, say: then there is no such reference
            return None
    same = [(p, t.shape) for p, t in found] == [(p, t.shape) for p, t in own]
    typed = all(t.dtype == cast(t, dtype).dtype for _, t in found)
    finite = all(bool(torch.isfinite(t).all()) for _, t in found if t.is_floating_point())
    return [(p, t.clone()) for p, t in found] if same and typed and finite else None


def _optional(
    original: nn.Module, wide: Any, narrow: Any, calling: Calling, short: torch.dtype | None
) -> Reference | None:
    """A further reference, where the original runs on that input."""
    try:
        return _reference(original, wide, narrow, calling, short)
    except BadInput:
        return None


def _elsewhere(calling: Calling, seed: int) -> Calling | None:
    """The example with the values of its floating tensors in another order; None where it has none."""
    if not any(t.is_floating_point() for t in calling.tensors):
        return None
    generator = torch.Generator().manual_seed(seed)

    def shuffled(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        order = torch.randperm(t.numel(), generator=generator).to(t.device)
        return t.flatten()[order].reshape(t.shape)

    return calling.mapped(shuffled)


def _other_batch(calling: Calling) -> Calling | None:
    """The example twice and a half, where any batch is to be taken."""
    if not calling.free_batch:
        return None
    return calling.mapped(lambda t: torch.cat([t, t, t[: (t.shape[0] + 1) // 2]]))

"""Whether a candidate computes the network's function: its outputs against a float64 reference made once.

Each candidate is run on the example, on a second input of the same shapes (and, for any batch, on another batch), and
on inputs that hold a few large numbers (`outliers`); several times, since some faults show only in some calls, and
again while other threads load the processor, since races show then.

Two figures come of each output, both errors against float64 over the original's own, with the same limit √(u'/u) as in
`onebyone.verify`: `rounding_ratio`, of the largest errors of the whole output; and `row_ratio`, the largest over its
rows (samples, tokens, positions of a map), each over its own (`row_errors`), so that no row is spoilt unseen beside
larger ones. A bfloat16 candidate is measured by the bfloat16 error of the original form, on ordinary inputs. What an
engine drops, folds or approximates shows in its outputs; that the form it was given is the same function is proven
by `onebyone.verify` before it is chosen.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.tuning import accuracy_inputs, row_errors
from onebyone.tuning.background_load import loaded
from onebyone.tuning.call_signature import Call, Calling
from onebyone.verification import output_comparison
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.pytree import cast, cast_tensor, leaves

Named = list[tuple[str, Tensor]]
RUNS = 3
"""On each input: of every candidate where there is time, and of the one that is chosen."""
_ATTEMPT, _LOADED = 1.0, 5.0  # seconds for repeated runs of any candidate, and of the chosen one under load


@dataclass(frozen=True)
class Check:
    """One candidate's outputs: `ratio` (None without a float64 reference), `max_error`, what is wrong ("": nothing).

    `row_ratio`: the largest over rows; None where they are not judged.
    """

    ratio: float | None
    max_error: float
    problem: str = ""
    row_ratio: float | None = None


@dataclass(frozen=True)
class Reference:
    """One input, the original's outputs on it, and those of its float64 copy (None where it has none).

    `again`: the original's outputs on the same input with each number moved by its rounding, where rows are judged.
    `ordinary`: an input without outliers.
    """

    calling: Calling
    own: Named
    wide: Named | None
    short: Named | None = None
    again: Named | None = None
    ordinary: bool = True
    _row_errors: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    def row_errors(self, index: int, u: float, short: bool) -> Tensor | None:
        """What rounding makes of each row of an output; None where that cannot be told."""
        if self.wide is None or (self.short if short else self.again) is None:
            return None
        if (index, u) not in self._row_errors:
            runs = [self.short] if short else [self.own, self.again]
            outputs = [run[index][1] for run in runs if run is not None]
            self._row_errors[index, u] = row_errors.own_errors(self.wide[index][1], outputs, u)
        return self._row_errors[index, u]


class Judge:
    """Holds the references. Made once; the networks are left as they are.

    Raises BadInput where the original itself fails on the example, does not give finite numbers, or not the same twice.
    """

    def __init__(
        self,
        original: nn.Module,
        calling: Calling,
        seed: int = 0,
        short: torch.dtype | None = None,
        by_row: bool = True,
    ) -> None:
        self.u = output_comparison.unit(output_comparison.own_dtype(original, calling.example))
        self._short, self._by_row = short, by_row
        wide, narrow = _copies(original, short)

        def reference(calling: Calling, ordinary: bool = True) -> Reference:
            moved = accuracy_inputs.nudged(calling, self.u, seed) if by_row else None
            return _reference(original, wide, narrow if ordinary else None, calling, short, moved, ordinary)

        self.references = [reference(calling)]
        self._require_steady(original)
        for other in (accuracy_inputs.shuffled(calling, seed), accuracy_inputs.other_batch(calling)):
            self._add(reference, (other,) if other is not None else ())
        if by_row and wide is not None:
            for choices in accuracy_inputs.with_outliers(calling, seed):
                self._add(lambda c: reference(c, ordinary=False), choices)

    def _add(self, reference: Callable[[Calling], Reference], choices: Iterable[Calling]) -> None:
        """A further reference, by the first of these inputs on which the original runs and gives finite numbers."""
        for calling in choices:
            try:
                found = reference(calling)
            except BadInput:
                continue
            if found.ordinary or found.wide is not None:
                self.references.append(found)
                return

    def _require_steady(self, original: nn.Module) -> None:
        """Raise BadInput where a second run gives other numbers than rounding explains."""
        with torch.inference_mode():
            again = leaves(self.references[0].calling.run(original))
        for (_, y), (_, z) in zip(self.references[0].own, again, strict=True):
            if output_comparison.difference(y, z) > self._allowed(
                self.u
            ) * self.u * output_comparison.size_of(y):
                raise BadInput(
                    "model: gives other numbers when it runs again (it draws random numbers, say), "
                    "so that no other form can be compared with it"
                )

    def check(self, call: Call, dtype: torch.dtype | None = None, thorough: bool = False) -> Check:
        """Run a candidate on every input and judge what it gives; the worst figures, the first problem.

        The first input is run at least RUNS times, every other once. All are run RUNS times where that takes about a
        second, or `thorough` asks for it; the last time under load. Any failure is a problem.
        """
        start = time.perf_counter()
        inputs = [r for r in self.references if r.ordinary or dtype is None]
        worst = self._all(inputs + inputs[:1] * (RUNS - 1), call, dtype)
        taken = time.perf_counter() - start
        if not worst.problem and (thorough or taken * (RUNS - 1) < _ATTEMPT):
            worst = _worse(worst, self._all(inputs * (RUNS - 2), call, dtype))
            with loaded():
                worst = _worse(worst, self._all(inputs, call, dtype, _LOADED if thorough else _ATTEMPT))
        return worst

    def _all(
        self,
        references: Iterable[Reference],
        call: Call,
        dtype: torch.dtype | None,
        seconds: float = math.inf,
    ) -> Check:
        """The worst over these inputs; of those that `seconds` do not suffice for, RUNS at least."""
        start, worst = time.perf_counter(), Check(None, 0.0)
        for count, reference in enumerate(references):
            if worst.problem or (count >= RUNS and time.perf_counter() - start > seconds):
                break
            worst = _worse(worst, self._one(reference, call, dtype))
        return worst

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
            if not reference.ordinary:  # near ties, whole numbers may follow the rounding
                return Check(None, 0.0)
            return Check(None, 0.0, "" if torch.equal(y, z) else f"{name} ({y.dtype}) differs")
        error = output_comparison.difference(y, z) if reference.ordinary else 0.0
        if not bool(torch.isfinite(z).all()):
            return Check(None, math.inf, f"{name} holds NaN or infinity")
        if reference.wide is None:
            limit = self._allowed(self.u) * self.u * output_comparison.size_of(y)
            return Check(None, error, _beyond(name, error, limit, "differs by {:.3g}, limit {:.3g}"))
        rows = self._rows(reference, index, name, z, dtype)
        if not reference.ordinary:
            return rows
        exact = reference.wide[index][1]
        own = max(output_comparison.difference(exact, y), self.u * output_comparison.size_of(exact))
        ratio = output_comparison.quotient(output_comparison.difference(exact, z), own)
        limit = self._allowed(self.u)
        if dtype is not None and reference.short is not None:
            u = output_comparison.unit(dtype)
            short = max(
                output_comparison.difference(exact, reference.short[index][1]),
                u * output_comparison.size_of(exact),
            )
            limit = self._allowed(u) * output_comparison.quotient(short, own)
        said = "has {:.3g} times the original's rounding error, limit {:.3g}"
        return _worse(Check(ratio, error, _beyond(name, ratio, limit, said)), rows)

    def _rows(
        self, reference: Reference, index: int, name: str, z: Tensor, dtype: torch.dtype | None
    ) -> Check:
        """The worst row of an output, over its own error."""
        u = self.u if dtype is None else output_comparison.unit(dtype)
        own = reference.row_errors(index, u, dtype is not None) if self._by_row else None
        if own is None or reference.wide is None:
            return Check(None, 0.0)
        ratio, row = row_errors.worst_ratio(reference.wide[index][1], z, own)
        where = "" if reference.ordinary else " on an input with outliers"
        said = f"has {{:.3g}} times the original's rounding error in row {row}{where}, limit {{:.3g}}"
        return Check(None, 0.0, _beyond(name, ratio, self._allowed(u), said), ratio)

    def _allowed(self, u: float) -> float:
        return math.sqrt(output_comparison.shorter(u) / u)


def _beyond(name: str, value: float, limit: float, words: str) -> str:
    return f"{name} {words.format(value, limit)}" if not value <= limit else ""


def _worse(a: Check, b: Check) -> Check:
    def larger(*given: float | None) -> float | None:
        return max((r for r in given if r is not None), default=None)

    error, rows = max(a.max_error, b.max_error), larger(a.row_ratio, b.row_ratio)
    return Check(larger(a.ratio, b.ratio), error, a.problem or b.problem, rows)


def _copies(original: nn.Module, short: torch.dtype | None) -> tuple[Any, Any]:
    with warnings.catch_warnings():  # torch's own, met where it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            (wide,) = output_comparison.copies_in(torch.float64, original)
        except Exception:  # whatever copying a network raises
            return None, None
        return wide, output_comparison.copies_in(short, original)[0] if short is not None else None


def _reference(
    original: nn.Module,
    wide: Any,
    narrow: Any,
    calling: Calling,
    short: torch.dtype | None,
    moved: Calling | None,
    ordinary: bool,
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
    exact, brief = _in(wide, calling, torch.float64, own), _in(narrow, calling, short, own)
    again = None if moved is None or exact is None else _run(original, moved, own)
    return Reference(calling, own, exact, brief, again, ordinary)


def _run(original: nn.Module, calling: Calling, own: Named) -> Named | None:
    """The original's outputs on another input; None where they are not of the same shapes, or not finite."""
    try:
        with torch.inference_mode():
            found = [(p, t.clone()) for p, t in leaves(calling.run(original))]
    except Exception:  # whatever a network raises
        return None
    same = [(p, t.shape, t.dtype) for p, t in found] == [(p, t.shape, t.dtype) for p, t in own]
    finite = all(bool(torch.isfinite(t).all()) for _, t in found if t.is_floating_point())
    return found if same and finite else None


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

"""The accuracy check of candidates: their outputs against a float64 reference that is computed once.

Each candidate runs on the example, on a second input of the same shapes (and on another batch size if the result must
take any), and on inputs that contain a few large numbers (`accuracy_inputs.with_outliers`). It runs several times,
since some faults show only in some calls, and again while other threads load the processor, which provokes races.

Two figures are computed for each output. Both are the candidate's error against float64 ÷ the original network's own
error against float64, and both have the limit √(u'/u) of `onebyone.verify` (u the unit roundoff of the network's
dtype, u' that of the next shorter dtype):

- `rounding_ratio` compares the largest errors of the whole output;
- `row_ratio` is the largest ratio over rows (samples, tokens, positions of a map), each row compared with its own
  error (`row_errors`), so that an error of a small row is not hidden by larger rows.

A bfloat16 candidate is compared with the bfloat16 error of the original form, on inputs without outliers. This check
detects what an engine drops, folds or approximates. That the form given to the engine computes the same function is
proven separately, by `onebyone.verify`, before it is chosen.
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
from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.verification import output_comparison
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.pytree import cast, cast_tensor, leaves

Outputs = list[tuple[str, Tensor]]
"""The tensors of an output with their paths in it."""
RUNS = 3
"""Runs on each input, of the chosen candidate always, and of the others if time allows."""
_REPEAT_SECONDS = 1.0  # for repeated runs, and for runs under load, of any candidate
_LOADED_SECONDS = 5.0  # for runs of the chosen candidate under load


@dataclass(frozen=True)
class AccuracyResult:
    """The result of checking one candidate; the largest figures over all outputs and inputs.

    `rounding_ratio` is None without a float64 reference, `row_ratio` is None if rows are not checked, and `max_error`
    is the largest difference from the original's outputs. `problem` says what is wrong, and is empty if nothing is.
    """

    rounding_ratio: float | None
    max_error: float
    problem: str = ""
    row_ratio: float | None = None


@dataclass(frozen=True)
class Reference:
    """One input, the original network's outputs on it, and those of its copies in other dtypes.

    `float64` and `short` are the outputs of the copies in float64 and in the shorter dtype that candidates may use;
    None if such a copy does not run. `perturbed` are the original's outputs with each input number moved by its
    rounding error, which shows how large the error of each row may be. `ordinary` is False for inputs with outliers.
    """

    signature: CallSignature
    original: Outputs
    float64: Outputs | None
    short: Outputs | None = None
    perturbed: Outputs | None = None
    ordinary: bool = True
    _row_errors: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    def row_errors(self, index: int, u: float, short: bool) -> Tensor | None:
        """Return the rounding error of each row of one output, or None if it is not known."""
        if self.float64 is None or (self.short if short else self.perturbed) is None:
            return None
        if (index, u) not in self._row_errors:
            runs = [self.short] if short else [self.original, self.perturbed]
            outputs = [run[index][1] for run in runs if run is not None]
            self._row_errors[index, u] = row_errors.rounding_errors(self.float64[index][1], outputs, u)
        return self._row_errors[index, u]


class AccuracyChecker:
    """Computes the references once, and checks candidates against them. The network is not changed.

    `short` is the shorter dtype that candidates may use, `by_row` whether rows are checked one by one, and `now` the
    clock by which `check` decides how often to run a candidate.

    Raises BadInput if the original itself fails on the example, is nondeterministic, or has outputs that are not
    finite.
    """

    def __init__(
        self,
        original: nn.Module,
        signature: CallSignature,
        seed: int = 0,
        short: torch.dtype | None = None,
        by_row: bool = True,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.u = output_comparison.unit(output_comparison.own_dtype(original, signature.example))
        self._by_row, self._now = by_row, now
        in_float64, in_short = _copies(original, short)

        def reference(signature: CallSignature, ordinary: bool = True) -> Reference:
            perturbed = accuracy_inputs.perturbed(signature, self.u, seed) if by_row else None
            copies = (in_float64, in_short if ordinary else None)
            return _reference(original, copies, signature, short, perturbed, ordinary)

        self.references = [reference(signature)]
        self._require_deterministic(original)
        for other in (accuracy_inputs.shuffled(signature, seed), accuracy_inputs.other_batch(signature)):
            self._add(reference, (other,) if other is not None else ())
        if by_row and in_float64 is not None:
            for choices in accuracy_inputs.with_outliers(signature, seed):
                self._add(lambda s: reference(s, ordinary=False), choices)

    def _add(self, reference: Callable[[CallSignature], Reference], choices: Iterable[CallSignature]) -> None:
        """Add a reference for the first of these inputs on which the original runs and has finite outputs."""
        for signature in choices:
            try:
                added = reference(signature)
            except BadInput:
                continue
            if added.ordinary or added.float64 is not None:
                self.references.append(added)
                return

    def _require_deterministic(self, original: nn.Module) -> None:
        """Raise BadInput if a second run differs by more than rounding."""
        with torch.inference_mode():
            second = leaves(self.references[0].signature.run(original))
        for (_, y), (_, z) in zip(self.references[0].original, second, strict=True):
            limit = self._max_ratio(self.u) * self.u * output_comparison.size_of(y)
            if output_comparison.difference(y, z) > limit:
                raise BadInput(
                    "model: is nondeterministic (it may draw random numbers), so that no other form can be compared "
                    "with it"
                )

    def check(self, call: Call, dtype: torch.dtype | None = None, thorough: bool = False) -> AccuracyResult:
        """Run a candidate on every input and check its outputs. An exception counts as a problem.

        The first input is run at least RUNS times, every other input once. All are run RUNS times, the last time
        under load, if that takes about a second, or if `thorough` is set. `dtype` is the candidate's dtype if it is
        not the network's own.
        """
        start = self._now()
        inputs = [r for r in self.references if r.ordinary or dtype is None]
        worst = self._check_all(inputs + inputs[:1] * (RUNS - 1), call, dtype)
        seconds = self._now() - start
        if not worst.problem and (thorough or seconds * (RUNS - 1) < _REPEAT_SECONDS):
            worst = _worse(worst, self._check_all(inputs * (RUNS - 2), call, dtype))
            with loaded():
                limit = _LOADED_SECONDS if thorough else _REPEAT_SECONDS
                worst = _worse(worst, self._check_all(inputs, call, dtype, limit))
        return worst

    def _check_all(
        self,
        references: Iterable[Reference],
        call: Call,
        dtype: torch.dtype | None,
        seconds: float = math.inf,
    ) -> AccuracyResult:
        """Return the worst result over these inputs; at least RUNS of them, and no more after `seconds`."""
        start, worst = self._now(), AccuracyResult(None, 0.0)
        for count, reference in enumerate(references):
            if worst.problem or (count >= RUNS and self._now() - start > seconds):
                break
            worst = _worse(worst, self._check_input(reference, call, dtype))
        return worst

    def _check_input(self, reference: Reference, call: Call, dtype: torch.dtype | None) -> AccuracyResult:
        try:
            with torch.inference_mode():
                outputs = [(p, t.clone()) for p, t in leaves(reference.signature.run(call))]
        except Exception as error:
            return AccuracyResult(None, math.inf, f"it fails: {type(error).__name__}: {first_line(error)}")
        shapes = [(p, tuple(t.shape)) for p, t in outputs]
        if shapes != [(p, tuple(t.shape)) for p, t in reference.original]:
            return AccuracyResult(None, math.inf, f"its outputs have the paths and shapes {shapes}")
        worst = AccuracyResult(None, 0.0)
        for index, (path, z) in enumerate(outputs):
            worst = _worse(worst, self._check_output(reference, index, path, z, dtype))
        return worst

    def _check_output(
        self, reference: Reference, index: int, path: str, z: Tensor, dtype: torch.dtype | None
    ) -> AccuracyResult:
        name, y = f"output {path}" if path else "the output", reference.original[index][1]
        if not (y.is_floating_point() or y.is_complex()):
            if not reference.ordinary:  # near ties, integers such as an argmax may depend on rounding
                return AccuracyResult(None, 0.0)
            return AccuracyResult(None, 0.0, "" if torch.equal(y, z) else f"{name} ({y.dtype}) differs")
        error = output_comparison.difference(y, z) if reference.ordinary else 0.0
        if not bool(torch.isfinite(z).all()):
            return AccuracyResult(None, math.inf, f"{name} contains NaN or infinity")
        if reference.float64 is None:
            limit = self._max_ratio(self.u) * self.u * output_comparison.size_of(y)
            return AccuracyResult(None, error, _beyond(name, error, limit, "differs by {:.3g}, limit {:.3g}"))
        rows = self._check_rows(reference, index, name, z, dtype)
        if not reference.ordinary:
            return rows
        exact = reference.float64[index][1]
        original_error = max(
            output_comparison.difference(exact, y), self.u * output_comparison.size_of(exact)
        )
        ratio = output_comparison.quotient(output_comparison.difference(exact, z), original_error)
        limit = self._max_ratio(self.u)
        if dtype is not None and reference.short is not None:
            u = output_comparison.unit(dtype)
            short_error = max(
                output_comparison.difference(exact, reference.short[index][1]),
                u * output_comparison.size_of(exact),
            )
            limit = self._max_ratio(u) * output_comparison.quotient(short_error, original_error)
        words = "has {:.3g} times the original's rounding error, limit {:.3g}"
        return _worse(AccuracyResult(ratio, error, _beyond(name, ratio, limit, words)), rows)

    def _check_rows(
        self, reference: Reference, index: int, name: str, z: Tensor, dtype: torch.dtype | None
    ) -> AccuracyResult:
        """Return the result of the row with the largest ratio of errors."""
        u = self.u if dtype is None else output_comparison.unit(dtype)
        expected = reference.row_errors(index, u, dtype is not None) if self._by_row else None
        if expected is None or reference.float64 is None:
            return AccuracyResult(None, 0.0)
        ratio, row = row_errors.worst_ratio(reference.float64[index][1], z, expected)
        where = "" if reference.ordinary else " on an input with outliers"
        words = f"has {{:.3g}} times the original's rounding error in row {row}{where}, limit {{:.3g}}"
        return AccuracyResult(None, 0.0, _beyond(name, ratio, self._max_ratio(u), words), ratio)

    def _max_ratio(self, u: float) -> float:
        return math.sqrt(output_comparison.shorter(u) / u)


def _beyond(name: str, value: float, limit: float, words: str) -> str:
    return f"{name} {words.format(value, limit)}" if not value <= limit else ""  # NaN is beyond too


def _worse(a: AccuracyResult, b: AccuracyResult) -> AccuracyResult:
    def larger(*ratios: float | None) -> float | None:
        return max((r for r in ratios if r is not None), default=None)

    return AccuracyResult(
        larger(a.rounding_ratio, b.rounding_ratio),
        max(a.max_error, b.max_error),
        a.problem or b.problem,
        larger(a.row_ratio, b.row_ratio),
    )


def _copies(original: nn.Module, short: torch.dtype | None) -> tuple[Any, Any]:
    """Return copies of the network in float64 and in the shorter dtype; None for what cannot be made."""
    with warnings.catch_warnings():  # from torch, when it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            (in_float64,) = output_comparison.copies_in(torch.float64, original)
        except Exception:  # copying a user's network may raise anything
            return None, None
        return in_float64, output_comparison.copies_in(short, original)[0] if short is not None else None


def _reference(
    original: nn.Module,
    copies: tuple[Any, Any],
    signature: CallSignature,
    short: torch.dtype | None,
    perturbed: CallSignature | None,
    ordinary: bool,
) -> Reference:
    try:
        with torch.inference_mode():
            outputs = [(p, t.clone()) for p, t in leaves(signature.run(original))]
    except Exception as error:
        raise BadInput(
            f"example: the network does not run on it: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not outputs:
        raise BadInput("model: its output on the example contains no tensor; expected at least one")
    for path, t in outputs:
        if (t.is_floating_point() or t.is_complex()) and not bool(torch.isfinite(t).all()):
            raise BadInput(f"model: {path or 'the output'} contains NaN or infinity on the example")
    in_float64 = _outputs_in(copies[0], signature, torch.float64, outputs)
    in_short = _outputs_in(copies[1], signature, short, outputs)
    near = None
    if perturbed is not None and in_float64 is not None:
        near = _comparable_outputs(original, perturbed, outputs)
    return Reference(signature, outputs, in_float64, in_short, near, ordinary)


def _comparable_outputs(original: nn.Module, signature: CallSignature, like: Outputs) -> Outputs | None:
    """Return the original's outputs on another input; None unless they are finite and shaped like the others."""
    try:
        with torch.inference_mode():
            outputs = [(p, t.clone()) for p, t in leaves(signature.run(original))]
    except Exception:  # a user's network may raise anything
        return None
    same = [(p, t.shape, t.dtype) for p, t in outputs] == [(p, t.shape, t.dtype) for p, t in like]
    return outputs if same and _all_finite(outputs) else None


def _outputs_in(
    copy: Any, signature: CallSignature, dtype: torch.dtype | None, like: Outputs
) -> Outputs | None:
    """Return the outputs of a copy in another dtype; None if it does not run, or computes in a third dtype."""
    if copy is None or dtype is None:
        return None
    with proof_settings(0, copy), torch.inference_mode():
        try:
            outputs = leaves(signature.mapped(lambda t: cast_tensor(t, dtype)).run(copy))
        except Exception:  # for instance because it casts to a fixed dtype inside
            return None
    same = [(p, t.shape) for p, t in outputs] == [(p, t.shape) for p, t in like]
    typed = all(t.dtype == cast(t, dtype).dtype for _, t in outputs)
    return [(p, t.clone()) for p, t in outputs] if same and typed and _all_finite(outputs) else None


def _all_finite(outputs: Outputs) -> bool:
    return all(bool(torch.isfinite(t).all()) for _, t in outputs if t.is_floating_point())

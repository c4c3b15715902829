"""Candidates built, judged and kept: (engine, form), each by name."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from onebyone.errors import BadInput, OnebyoneError, Refused
from onebyone.records import first_line
from onebyone.tuning.accuracy import Check, Judge
from onebyone.tuning.call_signature import Call
from onebyone.tuning.clock import Timing
from onebyone.tuning.engines import EngineSetting, engine_of
from onebyone.tuning.layer_groups import pattern_of
from onebyone.tuning.network_forms import CHANNELS_LAST, Formed, form_of
from onebyone.tuning.target import TuningTarget
from onebyone.tuning.tuned_model import TunedModel
from onebyone.verification.pytree import cast_tensor, map_tensors

DTYPES = {"bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Candidate:
    """A way to run the network: `layers` (path, form) only for the forms that take an assignment."""

    engine: str
    form: str
    dtype: str | None = None
    layers: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`engine:form`, with the type where it is not the network's own, and how many layers were given a form."""
        parts = [self.engine, self.form + (f"({len(self.layers)})" if self.layers else "")]
        return ":".join([*parts, self.dtype] if self.dtype else parts)

    @property
    def assignment(self) -> dict[str, str]:
        """The layers as a mapping."""
        return dict(self.layers)


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of a candidate: a callable and its figures, or the reason it was refused."""

    candidate: Candidate
    name: str
    model: TunedModel | None = None
    run: Call | None = None
    """Runs the model on the example; None where it cannot be chosen."""
    formed: Formed | None = None
    timing: Timing | None = None
    share: float | None = None
    """Its time ÷ that of the network as it is, both from one interleaved run."""
    share_range: tuple[float, float] | None = None
    """Between which figures that share lies, from the last comparison."""
    ratio: float | None = None
    row_ratio: float | None = None
    max_error: float | None = None
    refused: str | None = None
    build_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As the plan holds it."""
        t = self.timing
        return {
            "name": self.name,
            "engine": self.candidate.engine,
            "form": self.candidate.form,
            "dtype": self.candidate.dtype,
            "layers": {pattern_of(path): form for path, form in self.candidate.layers},
            "median_ms": t.median_ms if t else None,
            "spread_ms": t.spread_ms if t else None,
            "runs": t.runs if t else 0,
            "rounding_ratio": self.ratio,
            "row_ratio": self.row_ratio,
            "max_error": self.max_error,
            "build_seconds": round(self.build_seconds, 3),
            "refused": self.refused,
        }


class InType(nn.Module):
    """A network computing in another type: inputs cast to it, outputs cast back to `own`'s; the weights are a copy."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, own: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype)
        self.dtype, self.own = dtype, own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same, computed in `dtype`."""
        given = map_tensors((args, kwargs), lambda t: cast_tensor(t, self.dtype))
        own = iter(self.own)
        return map_tensors(self.network(*given[0], **given[1]), lambda t: t.to(next(own)))


@dataclass
class Workshop:
    """Makes trials of candidates. What is refused is refused with its reason, never with a crash."""

    subject: TuningTarget
    judge: Judge
    setting: EngineSetting
    _formed: dict[tuple[Any, ...], Formed | str] = field(default_factory=dict)

    def attempt(self, candidate: Candidate, name: str | None = None, thorough: bool = False) -> Trial:
        """Build a candidate and compare its outputs with the original's, `thorough` as `Judge.check` says."""
        trial = Trial(candidate, name or candidate.name)
        start = time.perf_counter()
        try:
            formed, call = self.built(candidate)
        except Exception as error:  # whatever a library raises is its reason not to take the network
            return replace(trial, refused=why(error), build_seconds=time.perf_counter() - start)
        dtype = DTYPES[candidate.dtype] if candidate.dtype else None
        taken = time.perf_counter() - start
        check = self.judge.check(call, dtype, thorough)
        trial = replace(_with_figures(trial, check), build_seconds=taken)
        if check.problem:
            return replace(trial, refused=f"not equivalent: {check.problem}")
        fixed = engine_of(candidate.engine).fixed or formed.fixed
        calling = self.subject.calling
        model = TunedModel(formed.network, call, calling, fixed)
        # timed as the user will call it
        return replace(trial, model=model, run=partial(model, *calling.args, **calling.kwargs), formed=formed)

    def checked(self, trial: Trial) -> Trial:
        """A trial judged thoroughly, as what is chosen must be; refused where that finds a fault."""
        assert trial.model is not None
        dtype = DTYPES[trial.candidate.dtype] if trial.candidate.dtype else None
        check = self.judge.check(trial.model, dtype, thorough=True)
        if check.problem:
            return replace(trial, model=None, run=None, refused=f"not equivalent: {check.problem}")
        return _with_figures(trial, check)

    def built(self, candidate: Candidate) -> tuple[Formed, Call]:
        """The form and the callable of a candidate; raises whatever keeps it from being built."""
        engine = engine_of(candidate.engine)
        reason = engine.why_not(self.setting)
        if reason:
            raise BadInput(reason)
        formed = self.formed(candidate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries' advice to programmers, met while compiling
            return formed, engine.build(formed.network, self.subject.calling, self.setting)

    def formed(self, candidate: Candidate) -> Formed:
        """The network in the candidate's form; kept for the next engine unless it holds copies of all weights."""
        key = (candidate.form, candidate.dtype, candidate.layers)
        found = self._formed.get(key)
        if found is None:
            try:
                found = self._make(candidate)
            except OnebyoneError as error:
                found = why(error)
            copies = candidate.dtype is not None or candidate.form.endswith(CHANNELS_LAST) or candidate.layers
            if isinstance(found, str) or not copies:
                self._formed[key] = found
        if isinstance(found, str):
            raise BadInput(found)
        return found

    def _make(self, candidate: Candidate) -> Formed:
        formed = form_of(candidate.form).build(self.subject, candidate.assignment)
        if candidate.dtype is None:
            return formed
        own = tuple(t.dtype for _, t in self.judge.references[0].own)
        network = InType(formed.network, DTYPES[candidate.dtype], own)
        for module in network.modules():
            module.training = False
        return Formed(network, formed.proof, formed.fixed)


def _with_figures(trial: Trial, check: Check) -> Trial:
    return replace(trial, ratio=check.ratio, row_ratio=check.row_ratio, max_error=check.max_error)


def why(error: BaseException) -> str:
    """An exception as one line: a refusal's reasons, else what the error says first."""
    if isinstance(error, Refused):
        return "; ".join(r.reason for r in error.refusals[:3])
    if isinstance(error, OnebyoneError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"[:300]

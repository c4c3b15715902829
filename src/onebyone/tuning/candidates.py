"""Candidates (an engine and a form of the network), and the trials that result from building and checking them."""

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
from onebyone.tuning.accuracy import AccuracyChecker, AccuracyResult
from onebyone.tuning.call_signature import Call
from onebyone.tuning.clock import Timing
from onebyone.tuning.engines import EngineSettings, engine_named
from onebyone.tuning.layer_groups import path_pattern
from onebyone.tuning.network_forms import CHANNELS_LAST, FormedNetwork, network_form
from onebyone.tuning.target import TuningTarget
from onebyone.tuning.tuned_model import TunedModel
from onebyone.verification.pytree import cast_tensor, map_tensors

DTYPES = {"bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Candidate:
    """One way to run the network: an engine, a form, and a dtype if it is not the network's own.

    `layers` are pairs (path, form), only for the network forms that assign a form to each layer.
    """

    engine: str
    form: str
    dtype: str | None = None
    layers: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`engine:form`, with the number of layers that were assigned a form, and the dtype if it is not the own."""
        parts = [self.engine, self.form + (f"({len(self.layers)})" if self.layers else "")]
        return ":".join([*parts, self.dtype] if self.dtype else parts)

    @property
    def assignment(self) -> dict[str, str]:
        """The layers as a mapping from path to form."""
        return dict(self.layers)


@dataclass(frozen=True, eq=False)
class Trial:
    """The result of trying a candidate: a model with its figures, or the reason why it was refused."""

    candidate: Candidate
    name: str
    model: TunedModel | None = None
    run: Call | None = None
    """Runs the model on the example; None if it cannot be chosen."""
    formed: FormedNetwork | None = None
    timing: Timing | None = None
    relative_time: float | None = None
    """Its time ÷ that of the original network, from the same interleaved run."""
    relative_time_range: tuple[float, float] | None = None
    """The confidence interval of `relative_time`, from the final comparison."""
    rounding_ratio: float | None = None
    row_ratio: float | None = None
    max_error: float | None = None
    refused: str | None = None
    build_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The trial as the plan stores it."""
        t = self.timing
        return {
            "name": self.name,
            "engine": self.candidate.engine,
            "form": self.candidate.form,
            "dtype": self.candidate.dtype,
            "layers": {path_pattern(path): form for path, form in self.candidate.layers},
            "median_ms": t.median_ms if t else None,
            "spread_ms": t.spread_ms if t else None,
            "runs": t.runs if t else 0,
            "rounding_ratio": self.rounding_ratio,
            "row_ratio": self.row_ratio,
            "max_error": self.max_error,
            "build_seconds": round(self.build_seconds, 3),
            "refused": self.refused,
        }


class CastNetwork(nn.Module):
    """A copy of a network that computes in another dtype: inputs are cast to it, outputs back to `output_dtypes`."""

    def __init__(
        self, network: nn.Module, dtype: torch.dtype, output_dtypes: tuple[torch.dtype, ...]
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype)
        self.dtype, self.output_dtypes = dtype, output_dtypes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network in `dtype`; same arguments and structure of outputs."""
        cast_args, cast_kwargs = map_tensors((args, kwargs), lambda t: cast_tensor(t, self.dtype))
        dtypes = iter(self.output_dtypes)
        return map_tensors(self.network(*cast_args, **cast_kwargs), lambda t: t.to(next(dtypes)))


@dataclass
class CandidateBuilder:
    """Builds and checks candidates. Whatever fails is returned as a refused trial with the reason, never raised."""

    target: TuningTarget
    accuracy: AccuracyChecker
    settings: EngineSettings
    _formed: dict[tuple[Any, ...], FormedNetwork | str] = field(default_factory=dict)

    def attempt(self, candidate: Candidate, name: str | None = None, thorough: bool = False) -> Trial:
        """Build a candidate and check its outputs (see `AccuracyChecker.check` for `thorough`)."""
        trial = Trial(candidate, name or candidate.name)
        start = time.perf_counter()
        try:
            formed, call = self.build(candidate)
        except Exception as error:  # a library may raise anything
            return replace(trial, refused=reason_of(error), build_seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        result = self.accuracy.check(call, _dtype_of(candidate), thorough)
        trial = replace(_with_figures(trial, result), build_seconds=seconds)
        if result.problem:
            return replace(trial, refused=f"not equivalent: {result.problem}")
        fixed_shapes = engine_named(candidate.engine).fixed_shapes or formed.fixed_shapes
        signature = self.target.signature
        model = TunedModel(formed.network, call, signature, fixed_shapes)
        # the model is timed, not the engine's function, because the user calls the model
        return replace(
            trial, model=model, run=partial(model, *signature.args, **signature.kwargs), formed=formed
        )

    def check_thoroughly(self, trial: Trial) -> Trial:
        """Check a trial thoroughly, as the chosen one must be; return it refused if that finds a fault."""
        assert trial.model is not None
        result = self.accuracy.check(trial.model, _dtype_of(trial.candidate), thorough=True)
        if result.problem:
            return replace(trial, model=None, run=None, refused=f"not equivalent: {result.problem}")
        return _with_figures(trial, result)

    def build(self, candidate: Candidate) -> tuple[FormedNetwork, Call]:
        """Build the form and the function of a candidate; raises whatever prevents it."""
        engine = engine_named(candidate.engine)
        reason = engine.why_unavailable(self.settings)
        if reason:
            raise BadInput(reason)
        formed = self.form(candidate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to programmers that libraries give while compiling
            return formed, engine.build(formed.network, self.target.signature, self.settings)

    def form(self, candidate: Candidate) -> FormedNetwork:
        """Put the network in the candidate's form. The result is cached unless it holds a copy of all weights."""
        key = (candidate.form, candidate.dtype, candidate.layers)
        formed = self._formed.get(key)
        if formed is None:
            try:
                formed = self._make_form(candidate)
            except OnebyoneError as error:
                formed = reason_of(error)
            copies = candidate.dtype is not None or candidate.form.endswith(CHANNELS_LAST) or candidate.layers
            if isinstance(formed, str) or not copies:
                self._formed[key] = formed
        if isinstance(formed, str):
            raise BadInput(formed)
        return formed

    def _make_form(self, candidate: Candidate) -> FormedNetwork:
        formed = network_form(candidate.form).build(self.target, candidate.assignment)
        dtype = _dtype_of(candidate)
        if dtype is None:
            return formed
        output_dtypes = tuple(t.dtype for _, t in self.accuracy.references[0].original)
        network = CastNetwork(formed.network, dtype, output_dtypes)
        for module in network.modules():
            module.training = False
        return FormedNetwork(network, formed.proof, formed.fixed_shapes)


def _dtype_of(candidate: Candidate) -> torch.dtype | None:
    return DTYPES[candidate.dtype] if candidate.dtype else None


def _with_figures(trial: Trial, result: AccuracyResult) -> Trial:
    return replace(
        trial,
        rounding_ratio=result.rounding_ratio,
        row_ratio=result.row_ratio,
        max_error=result.max_error,
    )


def reason_of(error: BaseException) -> str:
    """Return an exception as one line: the reasons of a refusal, or the first line of any other message."""
    if isinstance(error, Refused):
        return "; ".join(r.reason for r in error.refusals[:3])
    if isinstance(error, OnebyoneError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"[:300]

"""The fastest engine for an ONNX model: ONNX Runtime or OpenVINO, measured side by side and checked.

What ONNX Runtime computes is the reference. An engine is checked as `tuning.accuracy` checks the forms of a PyTorch
network: on inputs of up to 2^17 numbers its error is compared with ONNX Runtime's own error against float64, which the
ONNX reference implementation computes, row by row too; on larger inputs the outputs may differ by √(u'/u)·u·max|y|,
with u the unit roundoff of the model's type and u' that of the next shorter one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onebyone.errors import BadInput, NotEquivalent
from onebyone.onnx.evaluators import NotRunnable, feeds_of
from onebyone.onnx_file import fed_inputs
from onebyone.tuning.accuracy import AccuracyChecker, AccuracyResult
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.clock import Clock, InterleavedTimings, NoContention
from onebyone.tuning.contention import ContentionMonitor
from onebyone.tuning.engines import engine_named
from onebyone.tuning.machine import describe_machine, describe_onnx_model, describe_versions
from onebyone.tuning.onnx_engines import ONNX_ENGINES, Array, LoadedOnnx, installed_engines
from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.result import Tuned, milliseconds
from onebyone.tuning.tuned_model import TunedModel
from onebyone.verification.onnx_network import CallableOnnx

if TYPE_CHECKING:
    import onnx_ir as ir

#: Numbers of an input up to which it is computed in float64 too: the reference implementation is slow, and copies every
#: receptive field.
_MAX_REFERENCE = 2**17
_TIMING_SHARE, _ROUNDS, _LEAST_ROUNDS = 0.5, 30, 5


class OnnxReference(CallableOnnx):
    """The model in ONNX Runtime, and on small inputs in float64."""

    def _reference(self, rows: Array) -> list[Array]:
        if rows.size > _MAX_REFERENCE:
            raise NotRunnable("the input is too large for the reference implementation")
        return super()._reference(rows)


def onnx_reference(model: ir.Model) -> OnnxReference:
    """The model in ONNX Runtime. Raises MissingExtra where it is not installed, and BadInput where it does not load."""
    try:
        return OnnxReference(model)
    except NotRunnable as error:
        raise BadInput(f"model: {error}") from error


def check_engine(
    reference: OnnxReference, call: Callable[[Tensor], Any], examples: Sequence[Tensor], *, seed: int = 0
) -> AccuracyResult:
    """Check what an engine computes for each example and others of its shape; `problem` of the result is what is wrong.

    `call` is the model in this engine: a function of one tensor that returns one, or a tuple of several.
    """
    worst = AccuracyResult(None, 0.0)
    for example in examples:
        checker = AccuracyChecker(reference, CallSignature.of(reference, example), seed)
        result = checker.check(call, thorough=True)
        worst = max(worst, result, key=lambda r: (bool(r.problem), r.rounding_ratio or 0.0, r.max_error))
        if result.problem:
            break
    return worst


def require_engine(
    model: ir.Model, engine: str, examples: Sequence[Tensor], *, threads: int = 0, seed: int = 0
) -> None:
    """Raise NotEquivalent, with what is wrong, where an engine does not compute what ONNX Runtime does."""
    call = partial(_on_tensor, LoadedOnnx(model, engine, threads=threads))
    result = check_engine(onnx_reference(model), call, examples, seed=seed)
    if result.problem:
        raise NotEquivalent(f"engine={engine!r}: beside ONNX Runtime, {result.problem}")


def tune_onnx(
    model: ir.Model,
    example: Any,
    *,
    budget: float = 60.0,
    engines: str | Sequence[str] | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    plan: TuningPlan | str | os.PathLike[str] | None = None,
    force: bool = False,
    probes: Sequence[Tensor] = (),
) -> Tuned:
    """Measure an ONNX model of one input in the engines that are installed, and choose the fastest that is right.

    Parameters
    ----------
    example: an array or tensor, or a dict with one by the input's name.
    engines: some of "onnxruntime" and "openvino"; None tries those that are installed.
    plan, force: as for `onebyone.tune`: a plan that is applied and checked without measuring.
    probes: other inputs on which engines are checked, for a model of any size.

    Raises
    ------
    BadInput
        the model has several inputs or does not run on the example, or an argument has an unsupported value.
    Refused
        the plan was made for something else.
    NotEquivalent
        the engine of the plan does not compute what ONNX Runtime does.
    """
    start = time.perf_counter()
    where = "cpu" if device is None else str(device)
    count = torch.get_num_threads() if threads is None else threads
    x = _example_tensor(model, example)
    described = [
        {"path": _input(model), "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
    ]
    attempt = partial(_attempt, onnx_reference(model), (x, *probes), count, where, seed)
    if plan is not None:
        return _applied(attempt, model, described, plan, count, where, force)
    trials: dict[str, Trial] = {}
    names = _engines(engines)
    for number, name in enumerate(names):
        trial = attempt(name)
        trials[trial.name] = trial
        if progress is not None:
            progress(number + 1, len(names))
    calls = {name: trial.run for name, trial in trials.items() if trial.run is not None}
    if not calls:
        raise BadInput(f"engines: {'; '.join(str(t.refused) for t in trials.values())}")
    monitor = NoContention() if where.startswith("cuda") else ContentionMonitor()
    timings = Clock(monitor=monitor, seed=seed).interleave(
        calls, _TIMING_SHARE * budget, rounds=_ROUNDS, least=_LEAST_ROUNDS
    )
    for name in calls:
        trials[name] = replace(trials[name], timing=timings[name])
    winner = _fastest(list(calls), timings)
    chosen = trials[winner]
    made = TuningPlan(
        machine=describe_machine(torch.device(where)),
        versions=describe_versions(),
        network=describe_onnx_model(model),
        inputs=tuple(described),
        threads=count,
        device=where,
        dynamic_batch=False,
        candidates=tuple(trial.to_dict() for trial in trials.values()),
        choice={
            "name": winner,
            "engine": chosen.candidate.engine,
            "form": "original",
            "dtype": None,
            "layers": {},
        },
        why=_why(winner, list(calls), timings),
        layers=(),
        peak_gflops=0.0,
        disturbed=timings.disturbed,
        seconds=round(time.perf_counter() - start, 2),
    )
    assert chosen.model is not None
    return Tuned(chosen.model, made)


def _attempt(
    reference: OnnxReference, examples: Sequence[Tensor], threads: int, device: str, seed: int, engine: str
) -> Trial:
    """Load the model in an engine and check it; the result runs on the first example."""
    trial = Trial(Candidate(engine, "original"), f"{engine}:original")
    start = time.perf_counter()
    try:
        loaded = LoadedOnnx(reference.model, engine, device=device, threads=threads)
    except BadInput as error:
        return replace(trial, refused=str(error))
    seconds = time.perf_counter() - start
    call = partial(_on_tensor, loaded)
    result = check_engine(reference, call, examples, seed=seed)
    trial = replace(
        trial,
        rounding_ratio=result.rounding_ratio,
        row_ratio=result.row_ratio,
        max_error=result.max_error,
        build_seconds=seconds,
    )
    if result.problem:
        return replace(trial, refused=f"not equivalent: {result.problem}")
    tuned = TunedModel(reference, call, CallSignature.of(reference, examples[0]), fixed_shapes=False)
    return replace(trial, model=tuned, run=partial(tuned, examples[0]))


def _applied(
    attempt: Callable[[str], Trial],
    model: ir.Model,
    described: list[dict[str, Any]],
    plan: TuningPlan | str | os.PathLike[str],
    threads: int,
    device: str,
    force: bool,
) -> Tuned:
    """Build the plan's choice and check it, without timing it."""
    plan = plan if isinstance(plan, TuningPlan) else TuningPlan.load(plan)
    engine = plan.choice["engine"]
    if engine not in ONNX_ENGINES:
        raise BadInput(f"plan: engine={engine!r}: expected {' or '.join(ONNX_ENGINES)} for an ONNX model")
    if not force:
        plan.check(
            machine=describe_machine(torch.device(device)),
            versions=describe_versions(),
            network=describe_onnx_model(model),
            inputs=described,
            threads=threads,
            libraries=(engine_named(engine).library,),
        )
    trial = attempt(engine)
    if trial.model is None:
        if str(trial.refused).startswith("not equivalent"):
            raise NotEquivalent(f"the plan's form {trial.name} is {trial.refused}")
        raise BadInput(f"plan: {trial.name} cannot be built here: {trial.refused}")
    return Tuned(trial.model, plan)


def _fastest(names: Sequence[str], timings: InterleavedTimings) -> str:
    """The fastest; the first, unless another is faster beyond the noise of the measurement."""
    best = min(names, key=lambda name: timings[name].median_ms)
    return best if best == names[0] or timings.ratio_interval(best, names[0])[1] < 1 else names[0]


def _why(winner: str, names: Sequence[str], timings: InterleavedTimings) -> str:
    time_of = {name: f"{milliseconds(timings[name].median_ms)} ms" for name in names}
    others = ", ".join(f"{name} {time_of[name]}" for name in names if name != winner)
    if winner == names[0]:
        faster = (
            f"no engine was faster beyond the noise of the measurement ({others})"
            if others
            else "no other engine"
        )
        return f"{winner}, {time_of[winner]}: {faster}"
    speed = f"{1 / timings.ratio(winner, names[0]):.3g} times as fast as {others}"
    return f"{winner}: {time_of[winner]}, {speed}; equivalent"


def _engines(names: str | Sequence[str] | None) -> list[str]:
    asked = [names] if isinstance(names, str) else list(names or ["all"])
    unknown = [name for name in asked if name not in ONNX_ENGINES and name != "all"]
    if unknown:
        raise BadInput(
            f"engines={unknown[0]!r}: expected some of {', '.join(ONNX_ENGINES)} for an ONNX model"
        )
    return installed_engines() if "all" in asked else [name for name in ONNX_ENGINES if name in asked]


def _input(model: ir.Model) -> str:
    return str(fed_inputs(model.graph)[0].name)


def _example_tensor(model: ir.Model, example: Any) -> Tensor:
    if example is None:
        raise BadInput(
            "example: is missing; give an input such as torch.randn(1, 3, 224, 224) (--shape 1,3,224,224)"
        )
    if isinstance(example, Mapping):
        example = example.get(_input(model), next(iter(example.values()), None))
    (value,) = feeds_of(model, example).values()
    return torch.from_numpy(np.ascontiguousarray(value))


def _on_tensor(loaded: LoadedOnnx, x: Tensor) -> Any:
    outputs = [torch.from_numpy(output) for output in loaded(x.detach().cpu().numpy())]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)

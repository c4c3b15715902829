"""The implementation of `onebyone.tune`: measure candidates, select the fastest, verify it; or apply a plan."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from onebyone.errors import BadInput, NotEquivalent
from onebyone.native.kernels.compiler import time_limit, why_generic
from onebyone.tuning import selection
from onebyone.tuning.accuracy import AccuracyChecker
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.candidates import DTYPES, Candidate, CandidateBuilder, Trial
from onebyone.tuning.clock import Clock, NoContention
from onebyone.tuning.contention import ContentionMonitor
from onebyone.tuning.engines import Engine, EngineSettings, engine_named, engines_named
from onebyone.tuning.engines.base import TORCH
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import measure_groups, peak_gflops
from onebyone.tuning.machine import describe_machine, describe_network, describe_versions
from onebyone.tuning.network_forms import FormedNetwork, form_names
from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.plan_builder import build_plan
from onebyone.tuning.result import BASELINE, Tuned, milliseconds
from onebyone.tuning.target import TuningTarget, target_of
from onebyone.tuning.time_budget import LAYER_SHARE, PEAK_SHARE, Budget
from onebyone.tuning.tuned_model import TunedModel
from onebyone.tuning.winograd_form import WINOGRAD
from onebyone.verification import verify
from onebyone.verification.result import Verification

Progress = Callable[[int, int], object]
_REPORTED_OVERRUN = 1.2  # times the budget
_TIMED_CALLS = 5  # calls whose steps are timed


def tune(
    model: Any,
    example: Any,
    *,
    budget: float = 60.0,
    engines: str | Sequence[str] | None = None,
    dtypes: str | Sequence[str] | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    dynamic_batch: bool = False,
    fast_products: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    plan: TuningPlan | str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Tuned:
    """Find the fastest equivalent form of a module or an exported program; see `onebyone.tune` for the arguments."""
    selected_engines, short_dtypes = engines_named(engines), _short_dtypes(dtypes)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise BadInput(f"budget={budget!r}: expected a positive number of seconds")
    users_threads = torch.get_num_threads()
    with _threads(threads) as count, _isolated(seed), time_limit(budget):
        target = target_of(model, example, device, dynamic_batch or _is_dynamic(plan))
        settings = EngineSettings(target.device, count, target.signature.dynamic_batch, fast_products)
        if plan is not None:
            tuned = _apply(target, settings, plan, force, seed)
        else:
            clock = Clock(seed=seed, monitor=ContentionMonitor())
            if target.device.type == "cuda":
                wait = partial(torch.cuda.synchronize, target.device)
                clock = Clock(wait=wait, monitor=NoContention(), seed=seed)
            tuned = _measure(
                target, settings, selected_engines, short_dtypes, Budget(budget), clock, seed, progress
            )
        return replace(tuned, notes=(*tuned.notes, *_thread_notes(tuned.plan, users_threads)))


def _measure(
    target: TuningTarget,
    settings: EngineSettings,
    engines: Sequence[Engine],
    short_dtypes: Sequence[str],
    budget: Budget,
    clock: Clock,
    seed: int,
    progress: Progress | None,
) -> Tuned:
    short = short_dtypes[0] if short_dtypes else None
    builder = CandidateBuilder(target, _accuracy_checker(target, settings, seed, short), settings)
    peak = peak_gflops(clock, target.device, PEAK_SHARE * budget.seconds)
    groups = group_layers(target.network, target.signature)
    times = measure_groups(groups, clock, LAYER_SHARE * budget.seconds, short)
    # a layer that is faster than the large products corrects the peak, which may have been measured under contention
    direct = ((t, form) for t in times for form in t.timings if ":" not in form and form != WINOGRAD)
    peak = max([peak, *(t.gflops(form) or 0.0 for t, form in direct)])
    contest = selection.Contest(builder.attempt, clock, budget, progress or (lambda done, of: None))
    winograd_layers = selection.layers_faster_in(WINOGRAD, times)
    forms = [f for f in form_names() if f != WINOGRAD or winograd_layers or target.program is not None]
    engines = selection.available_engines(contest, engines, forms, settings)
    selection.try_network_forms(contest, engines, forms, (None, *short_dtypes), {WINOGRAD: winograd_layers})
    selection.search_layers(contest, builder, times, engines)
    ranked = contest.final_comparison(selection.final_seconds(budget))
    winner, proof = _first_verified(builder, contest, ranked, seed)
    plan = build_plan(target, settings, contest, winner, times, peak, budget)
    assert winner.model is not None
    notes = [f"not verified: {u}" for u in proof.unverified] if proof else []
    notes += step_time_notes(winner.model, target.signature)
    notes += _compiler_notes(winner.candidate)
    if contest.final_always_disturbed:
        notes.append(
            "every round of the final comparison was disturbed by other processes, so that its figures are ranges; "
            "rerun on an idle machine"
        )
    if budget.elapsed > _REPORTED_OVERRUN * budget.seconds:
        notes.append(
            f"tuning took {budget.elapsed:.0f} s, more than its budget of {budget.seconds:g} s: a compilation and the "
            f"proof cannot be interrupted, and the final comparison needs {selection.MIN_FINAL_ROUNDS} rounds"
        )
    return Tuned(winner.model, plan, proof, tuple(notes))


def step_time_notes(model: TunedModel, signature: CallSignature) -> list[str]:
    """Return a note on the time of each kind of step, if the chosen engine can tell (they are not PyTorch's layers)."""
    runs = [model.times(*signature.args, **signature.kwargs) for _ in range(_TIMED_CALLS)]
    steps = [f"{kind} {milliseconds(median(run[kind] for run in runs))}" for kind in runs[0]]
    if not steps:
        return []
    return [f"the chosen engine has its own steps; milliseconds of one call by kind: {', '.join(steps)}"]


def _compiler_notes(winner: Candidate) -> list[str]:
    if winner.engine != "onebyone" and winner.form != WINOGRAD:
        return []
    reason = why_generic("program.cpp" if winner.engine == "onebyone" else "winograd.cpp")
    if not reason:
        return []
    return [
        f"its kernels are compiled for any processor of this architecture, not for this one, and are slower: {reason}"
    ]


def _accuracy_checker(
    target: TuningTarget, settings: EngineSettings, seed: int, dtype: str | None
) -> AccuracyChecker:
    short = DTYPES[dtype] if dtype else None
    return AccuracyChecker(target.network, target.signature, seed, short, by_row=not settings.fast_products)


def _first_verified(
    builder: CandidateBuilder, contest: selection.Contest, ranked: Sequence[Trial], seed: int
) -> tuple[Trial, Verification | None]:
    """Return the fastest trial that passes the thorough accuracy check and whose form is verified as equivalent.

    Trials that fail are refused with the reason.
    """
    for finalist in ranked:
        trial = finalist if finalist.name == BASELINE else builder.check_thoroughly(finalist)
        contest.trials[trial.name] = trial
        if trial.model is None:
            continue
        assert trial.formed is not None
        if trial.candidate.form == "original":
            return trial, None  # the form is the network itself, and the engine's outputs have been checked
        proof = verify_form(builder.target, trial.formed, seed)
        if proof.equivalent:
            return trial, proof
        reason = "; ".join(proof.problems[:3])
        contest.trials[trial.name] = replace(trial, model=None, run=None, refused=f"not equivalent: {reason}")
    raise AssertionError("the original network is among the finalists and is never refused")


def verify_form(target: TuningTarget, formed: FormedNetwork, seed: int) -> Verification:
    """Verify a form in the network's own dtype with `onebyone.verify`; layer by layer if it is a conversion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original: Any = target.network
        if target.program is not None and hasattr(formed.proof, "layout_before"):
            original = target.program
        converted = formed.network if formed.proof is None else formed.proof
        return verify(original, converted, target.signature.example, seed=seed, gradients=False)


def _apply(
    target: TuningTarget,
    settings: EngineSettings,
    plan: TuningPlan | str | os.PathLike[str],
    force: bool,
    seed: int,
) -> Tuned:
    """Build the plan's choice and check its outputs, without timing it."""
    plan = plan if isinstance(plan, TuningPlan) else TuningPlan.load(plan)
    choice = plan.choice
    candidate = Candidate(choice["engine"], choice["form"], choice["dtype"], tuple(choice["layers"].items()))
    engine = engine_named(candidate.engine)
    if candidate.dtype is not None and candidate.dtype not in DTYPES:
        raise BadInput(f"plan: dtype={candidate.dtype!r}: expected one of {', '.join(DTYPES)}, or null")
    if not force:
        plan.check(
            machine=describe_machine(target.device),
            versions=describe_versions(),
            network=describe_network(target.network, target.operators),
            inputs=target.signature.described(),
            threads=settings.threads,
            libraries=tuple(dict.fromkeys(("torch", engine.library))),
        )
    settings = replace(settings, fast_products=plan.fast_products)
    checker = _accuracy_checker(target, settings, seed, candidate.dtype)
    trial = CandidateBuilder(target, checker, settings).attempt(candidate, thorough=True)
    if trial.model is None:
        if (trial.refused or "").startswith("not equivalent"):
            raise NotEquivalent(f"the plan's form {trial.name} is {trial.refused}")
        raise BadInput(f"plan: {trial.name} cannot be built here: {trial.refused}")
    return Tuned(trial.model, plan)


def _thread_notes(plan: TuningPlan, users_threads: int) -> list[str]:
    """Return a note if PyTorch is set back to another number of threads than was measured."""
    if plan.threads == users_threads or engine_named(plan.choice["engine"]).group != TORCH:
        return []
    return [
        f"measured with {plan.threads} threads, but PyTorch is set to {users_threads}: call "
        f"torch.set_num_threads({plan.threads}) to get the measured speed"
    ]


def _short_dtypes(dtypes: str | Sequence[str] | None) -> tuple[str, ...]:
    names = () if dtypes is None else (dtypes,) if isinstance(dtypes, str) else tuple(dtypes)
    for name in names:
        if name not in DTYPES:
            raise BadInput(
                f"dtypes={dtypes!r}: expected 'bfloat16', or None for the network's own dtype alone"
            )
    return tuple(dict.fromkeys(names))


def _is_dynamic(plan: TuningPlan | str | os.PathLike[str] | None) -> bool:
    if plan is None:
        return False
    return (plan if isinstance(plan, TuningPlan) else TuningPlan.load(plan)).dynamic_batch


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    if asked is None:
        yield before
        return
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise BadInput(f"threads={asked!r}: expected a positive integer")
    torch.set_num_threads(asked)
    try:
        yield asked
    finally:
        torch.set_num_threads(before)


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seed and afterwards restore the random state, and disable autocast, so that the stated dtype is measured."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        torch.manual_seed(seed)
        yield

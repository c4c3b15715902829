"""`tune`: measure, choose, prove; or apply a plan."""

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
from onebyone.tuning.accuracy import Judge
from onebyone.tuning.call_signature import Calling
from onebyone.tuning.candidates import DTYPES, Candidate, Trial, Workshop
from onebyone.tuning.clock import Clock, Quiet
from onebyone.tuning.contention import Witness
from onebyone.tuning.engines import Engine, EngineSetting, engine_of, engines_of
from onebyone.tuning.engines.base import TORCH
from onebyone.tuning.layer_groups import groups_of
from onebyone.tuning.layer_times import measure_groups, peak_gflops
from onebyone.tuning.machine import describe_machine, describe_network, describe_versions
from onebyone.tuning.network_forms import Formed, form_names
from onebyone.tuning.plan import Plan
from onebyone.tuning.plan_builder import plan_of
from onebyone.tuning.result import BASELINE, Tuned, milliseconds
from onebyone.tuning.target import TuningTarget, subject_of
from onebyone.tuning.time_budget import LAYERS, PEAK, Budget
from onebyone.tuning.tuned_model import TunedModel
from onebyone.tuning.winograd_form import WINOGRAD
from onebyone.verification import verify
from onebyone.verification.result import Verification

Progress = Callable[[int, int], object]
_OVERRUN = 1.2  # times the budget, from where on it is said
_TOLD = 5  # calls that tell where the chosen engine's time goes


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
    plan: Plan | str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Tuned:
    """Find the fastest form of a network on this machine that computes the same function.

    Parameters
    ----------
    model: an `nn.Module` or an exported program; left as it is, in eval mode or not.
    example: an input as it will be: a tensor, a tuple of positional or a dict of keyword arguments.
    budget: seconds to aim at. Compiling cannot be interrupted, so that it may take somewhat longer.
    engines: names out of "eager", "compile", "compile+freeze", "aot-inductor", "onednn-graph", "onebyone",
        "onnxruntime" and "openvino"; "torch" for all but the last two, "all" (None) for every one that is installed.
        The network as it is, in eager mode, always takes part.
    dtypes: "bfloat16" to try that too, its error measured and told; None tries the network's own type alone.
    threads: for all engines; None: as PyTorch is set. PyTorch's own number is put back afterwards.
    device: "cpu" or "cuda"; None: where the network is. A copy is made where that is elsewhere.
    dynamic_batch: the result must take any batch; else what is fastest may take the example's shapes only.
    fast_products: allow the engine "onebyone" to multiply rows together without an error bound for each: beside rows
        of much larger numbers small ones lose digits, and an infinity or NaN reaches other rows, of other samples too.
        Candidates are then judged by the largest error of the whole output. A plan that is applied has its own setting.
    seed: of the order in which candidates run, and of the further inputs that they are judged on.
    progress: called with (done, of) after every candidate.
    plan: a `Plan` or its file: applied without measuring.
    force: apply a plan that was made for something else.

    Raises
    ------
    BadInput
        for an argument that does not fit, or an example that the network does not run on.
    Refused
        for a plan made for another processor, version, network, input or number of threads.
    NotEquivalent
        where a plan's form does not compute the network's function.

    Example
    -------
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> t = tune(net, torch.randn(2, 8), engines="eager", budget=0.5)
    >>> t.model(torch.zeros(2, 8)).shape, t.plan.choice["engine"]
    (torch.Size([2, 4]), 'eager')
    """
    chosen_engines, short = engines_of(engines), _dtypes(dtypes)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < float("inf"):
        raise BadInput(f"budget={budget!r}: expected a positive number of seconds")
    before = torch.get_num_threads()
    with _threads(threads) as count, _settled(seed), time_limit(budget):
        subject = subject_of(model, example, device, dynamic_batch or _dynamic(plan))
        setting = EngineSetting(subject.device, count, subject.calling.free_batch, fast_products)
        if plan is not None:
            tuned = _apply(subject, setting, plan, force, seed)
            return replace(tuned, notes=(*tuned.notes, *_thread_note(tuned.plan, before)))
        clock = Clock(seed=seed, watch=Witness())
        if subject.device.type == "cuda":
            clock = Clock(wait=partial(torch.cuda.synchronize, subject.device), watch=Quiet(), seed=seed)
        tuned = _measure(subject, setting, chosen_engines, short, Budget(budget), clock, seed, progress)
        return replace(tuned, notes=(*tuned.notes, *_thread_note(tuned.plan, before)))


def _measure(
    subject: TuningTarget,
    setting: EngineSetting,
    engines: Sequence[Engine],
    short: Sequence[str],
    budget: Budget,
    clock: Clock,
    seed: int,
    progress: Progress | None,
) -> Tuned:
    workshop = Workshop(subject, _judge(subject, setting, seed, short[0] if short else None), setting)
    peak = peak_gflops(clock, subject.device, PEAK * budget.seconds)
    groups = groups_of(subject.network, subject.calling)
    times = measure_groups(groups, clock, LAYERS * budget.seconds, short[0] if short else None)
    # a layer that is faster than the big products is the better witness (the machine may have been disturbed)
    direct = ((t, form) for t in times for form in t.timings if ":" not in form and form != WINOGRAD)
    peak = max([peak, *(t.gflops(form) or 0.0 for t, form in direct)])
    contest = selection.Contest(workshop.attempt, clock, budget, progress or (lambda done, of: None))
    gaining = selection.faster_as(WINOGRAD, times)
    forms = [f for f in form_names() if f != WINOGRAD or gaining or subject.program is not None]
    engines = selection.available(contest, engines, forms, setting)
    selection.run_wholes(contest, engines, forms, (None, *short), {WINOGRAD: gaining})
    selection.search_layers(contest, workshop, times, engines)
    ranked = contest.finals(selection.final_seconds(budget))
    winner, proof = _proven(workshop, contest, ranked, seed)
    plan = plan_of(subject, setting, contest, winner, times, peak, budget)
    assert winner.model is not None
    notes = [f"not verified: {u}" for u in proof.unverified] if proof else []
    notes += inside(winner.model, subject.calling)
    slow = why_generic("program.cpp" if winner.candidate.engine == "onebyone" else "winograd.cpp")
    if slow and (winner.candidate.engine == "onebyone" or winner.candidate.form == WINOGRAD):
        notes.append(
            f"its kernels are compiled for any processor of this kind, which makes them slower: {slow}"
        )
    if contest.never_quiet:
        notes.append(
            "other processes disturbed every round of the last comparison, so that its figures are ranges; "
            "rerun on an idle machine"
        )
    if budget.elapsed > _OVERRUN * budget.seconds:
        notes.append(
            f"tuning took {budget.elapsed:.0f} s, more than its budget of {budget.seconds:g} s: a compilation and the "
            f"proof cannot be interrupted, and the last comparison needs {selection.LEAST_ROUNDS} rounds"
        )
    return Tuned(winner.model, plan, proof, tuple(notes))


def inside(model: TunedModel, calling: Calling) -> list[str]:
    """Where the chosen engine's time goes, where it can tell: the layers' forms above are PyTorch's, not its own."""
    runs = [model.times(*calling.args, **calling.kwargs) for _ in range(_TOLD)]
    told = [f"{kind} {milliseconds(median(run[kind] for run in runs))}" for kind in runs[0]]
    return (
        [f"the chosen engine has steps of its own; milliseconds of one call: {', '.join(told)}"]
        if told
        else []
    )


def _judge(subject: TuningTarget, setting: EngineSetting, seed: int, dtype: str | None) -> Judge:
    short = DTYPES[dtype] if dtype else None
    return Judge(subject.network, subject.calling, seed, short, by_row=not setting.fast_products)


def _proven(
    workshop: Workshop, contest: selection.Contest, ranked: Sequence[Trial], seed: int
) -> tuple[Trial, Verification | None]:
    """The fastest that passes the judge again, on every input, several times and under load, and whose form is proven
    to be the same function; those that do not are refused with the figures.
    """
    for found in ranked:
        trial = found if found.name == BASELINE else workshop.checked(found)
        contest.trials[trial.name] = trial
        if trial.model is None:
            continue
        assert trial.formed is not None
        if trial.candidate.form == "original":
            return trial, None  # the very network: its outputs under the engine have been compared
        proof = prove(workshop.subject, trial.formed, seed)
        if proof.equivalent:
            return trial, proof
        reason = "; ".join(proof.problems[:3])
        contest.trials[trial.name] = replace(trial, model=None, run=None, refused=f"not equivalent: {reason}")
    raise AssertionError("the network as it is takes part and is never refused")


def prove(subject: TuningTarget, formed: Formed, seed: int) -> Verification:
    """`onebyone.verify` of a form in the network's own type: layer by layer where it is a conversion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original: Any = subject.network
        if subject.program is not None and hasattr(formed.proof, "layout_before"):
            original = subject.program
        converted = formed.network if formed.proof is None else formed.proof
        return verify(original, converted, subject.calling.example, seed=seed, gradients=False)


def _apply(
    subject: TuningTarget, setting: EngineSetting, plan: Plan | str | os.PathLike[str], force: bool, seed: int
) -> Tuned:
    """The plan's choice, built and compared with the network, but not timed."""
    given = plan if isinstance(plan, Plan) else Plan.load(plan)
    c = given.choice
    candidate = Candidate(c["engine"], c["form"], c["dtype"], tuple(c["layers"].items()))
    engine = engine_of(candidate.engine)
    if candidate.dtype is not None and candidate.dtype not in DTYPES:
        raise BadInput(f"plan: dtype={candidate.dtype!r}: expected one of {', '.join(DTYPES)}, or null")
    if not force:
        given.check(
            machine=describe_machine(subject.device),
            versions=describe_versions(),
            network=describe_network(subject.network, subject.operators),
            inputs=subject.calling.described(),
            threads=setting.threads,
            libraries=tuple(dict.fromkeys(("torch", engine.library))),
        )
    setting = replace(setting, fast_products=given.fast_products)
    judge = _judge(subject, setting, seed, candidate.dtype)
    trial = Workshop(subject, judge, setting).attempt(candidate, thorough=True)
    if trial.model is None:
        if (trial.refused or "").startswith("not equivalent"):
            raise NotEquivalent(f"the plan's form {trial.name} is {trial.refused}")
        raise BadInput(f"plan: {trial.name} cannot be built here: {trial.refused}")
    return Tuned(trial.model, given)


def _thread_note(plan: Plan, now: int) -> list[str]:
    """Where PyTorch goes back to another number of threads than was measured with."""
    if plan.threads == now or engine_of(plan.choice["engine"]).group != TORCH:
        return []
    return [
        f"measured with {plan.threads} threads, and PyTorch is set to {now}: "
        f"torch.set_num_threads({plan.threads}) gives what was measured"
    ]


def _dtypes(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    names = () if asked is None else (asked,) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in DTYPES:
            raise BadInput(f"dtypes={asked!r}: expected 'bfloat16', or None for the network's own type alone")
    return tuple(dict.fromkeys(names))


def _dynamic(plan: Plan | str | os.PathLike[str] | None) -> bool:
    if plan is None:
        return False
    return (plan if isinstance(plan, Plan) else Plan.load(plan)).dynamic_batch


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    """PyTorch's number of threads as asked for, and as it was afterwards."""
    before = torch.get_num_threads()
    if asked is None:
        yield before
        return
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise BadInput(f"threads={asked!r}: expected a positive whole number")
    torch.set_num_threads(asked)
    try:
        yield asked
    finally:
        torch.set_num_threads(before)


@contextmanager
def _settled(seed: int) -> Iterator[None]:
    """Random state put back afterwards, and no autocast: what is measured is the type that is stated."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        torch.manual_seed(seed)
        yield

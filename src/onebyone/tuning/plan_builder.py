"""Build the plan from the measurements: the choice, the reason for it in one sentence, and the forms of the layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from onebyone.results.conversion import Conversion
from onebyone.tuning import selection
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.engines import EngineSettings
from onebyone.tuning.layer_forms import PATCHES, layer_forms
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.machine import describe_machine, describe_network, describe_versions
from onebyone.tuning.network_forms import CHANNELS_LAST
from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.result import BASELINE, milliseconds
from onebyone.tuning.target import TuningTarget
from onebyone.tuning.time_budget import Budget

_NARROW = 1.1  # a range of speeds whose ends differ by a smaller factor is stated as one figure


def build_plan(
    target: TuningTarget,
    settings: EngineSettings,
    contest: selection.Contest,
    winner: Trial,
    times: Sequence[LayerTimes],
    peak: float,
    budget: Budget,
) -> TuningPlan:
    """Return the plan: all measurements, the choice and its reason, and what they are valid for."""
    candidate = winner.candidate
    choice = {
        "name": winner.name,
        "engine": candidate.engine,
        "form": candidate.form,
        "dtype": candidate.dtype,
        "layers": candidate.assignment,
    }
    return TuningPlan(
        machine=describe_machine(target.device),
        versions=describe_versions(),
        network=describe_network(target.network, target.operators),
        inputs=tuple(target.signature.described()),
        threads=settings.threads,
        device=str(target.device),
        dynamic_batch=settings.dynamic_batch,
        fast_products=settings.fast_products,
        candidates=tuple(t.to_dict() for t in contest.trials.values()),
        choice=choice,
        why=reason_for(winner, contest.trials),
        layers=tuple(_layer(t, winner, peak) for t in times),
        peak_gflops=round(peak, 1),
        disturbed=contest.disturbed_rounds,
        seconds=round(budget.elapsed, 2),
    )


def reason_for(winner: Trial, trials: dict[str, Trial]) -> str:
    """Return the reason for the choice in one sentence: its time, speed relative to the original, and accuracy."""
    base = trials[BASELINE].timing
    assert winner.timing is not None
    time = f"{milliseconds(winner.timing.median_ms)} ms"
    if winner.name == BASELINE or base is None:
        return f"kept the original, {time}: no candidate was faster by more than the noise of the measurement"
    accuracy = (
        "equivalent"
        if winner.rounding_ratio is None
        else f"equivalent, with {winner.rounding_ratio:.3g} times its rounding error"
    )
    if winner.candidate.dtype:
        accuracy = f"in {winner.candidate.dtype}, with a maximum error of {winner.max_error:.3g}"
    original = f"the original ({milliseconds(base.median_ms)} ms)"
    return f"{winner.name}: {time}, {_times_as_fast(winner)} times as fast as {original}; {accuracy}"


def _times_as_fast(winner: Trial) -> str:
    """Return the original's time ÷ the winner's: one figure, or a range if the measurement is uncertain by over 10 %.

    >>> trial = Trial(Candidate("eager", "conv"), "eager:conv", relative_time=0.5, relative_time_range=(0.49, 0.51))
    >>> _times_as_fast(trial)
    '2'
    >>> trial = Trial(Candidate("eager", "conv"), "eager:conv", relative_time=0.5, relative_time_range=(0.25, 0.8))
    >>> _times_as_fast(trial)
    '1.25 to 4'
    """
    assert winner.relative_time is not None
    low, high = winner.relative_time_range or (winner.relative_time, winner.relative_time)
    if high <= _NARROW * low:
        return f"{1 / winner.relative_time:.3g}"
    return f"{1 / high:.3g} to {1 / low:.3g}"


def _layer(times: LayerTimes, winner: Trial, peak: float) -> dict[str, Any]:
    group, timings = times.group, times.timings
    proof = winner.formed.proof if winner.formed else None
    converted = {change.path for change in proof.changes} if isinstance(proof, Conversion) else set()
    chosen = chosen_form(times, winner.candidate, converted)
    if winner.candidate.dtype and f"{chosen}:{winner.candidate.dtype}" in timings:
        chosen = f"{chosen}:{winner.candidate.dtype}"
    rank = {name: number for number, name in enumerate(times.ranking, 1)}
    gflops = times.gflops(chosen)
    return {
        "paths": list(group.paths),
        "pattern": group.pattern,
        "kind": group.kind,
        "shape": list(group.weight),
        "input": list(group.sample.shape),
        "macs": group.cost.macs,
        "calls": group.calls,
        "forms": [
            {
                "form": name,
                "median_ms": timings[name].median_ms,
                "spread_ms": timings[name].spread_ms,
                "predicted_rank": rank.get(name),
                **({"relative_error": times.errors[name]} if name in times.errors else {}),
            }
            for name in timings
        ],
        "chosen": chosen,
        "gflops": round(gflops, 1) if gflops else None,
        "of_peak": round(gflops / peak, 3) if gflops and peak else None,
    }


def chosen_form(times: LayerTimes, candidate: Candidate, converted: Collection[str] = ()) -> str:
    """Return the form that a candidate gives the layers of a group.

    `converted` are the paths of the layers that its form of the network converted. Only rewriting a graph needs them,
    which converts some of the convolutions on patches.
    """
    group = times.group
    names = [f.name for f in layer_forms(group.kind)]
    assigned = candidate.assignment.get(group.paths[0])
    if assigned is not None:
        return assigned
    form = selection.base_form(candidate.form)
    kept = group.kind == PATCHES and candidate.form.startswith("graph") and group.paths[0] not in converted
    if form in names and form != names[0] and group.convertible and not kept:
        return form
    last = "conv-channels-last"
    return last if candidate.form.endswith(CHANNELS_LAST) and last in times.timings else names[0]

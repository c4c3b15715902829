"""The plan that is made of what was measured: the choice, the reason for it in a sentence, and the layers' forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onebyone.tuning import selection
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.engines import EngineSetting
from onebyone.tuning.layer_forms import PATCHES, layer_forms
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.machine import describe_machine, describe_network, describe_versions
from onebyone.tuning.network_forms import CHANNELS_LAST
from onebyone.tuning.plan import Plan
from onebyone.tuning.result import BASELINE, milliseconds
from onebyone.tuning.target import TuningTarget
from onebyone.tuning.time_budget import Budget

_NARROW = 1.1  # a range of speeds whose ends differ by less is given as one figure


def plan_of(
    subject: TuningTarget,
    setting: EngineSetting,
    contest: selection.Contest,
    winner: Trial,
    times: Sequence[LayerTimes],
    peak: float,
    budget: Budget,
) -> Plan:
    """All that was measured, what was chosen and why, and for which machine, network and inputs that holds."""
    c = winner.candidate
    choice = {
        "name": winner.name,
        "engine": c.engine,
        "form": c.form,
        "dtype": c.dtype,
        "layers": c.assignment,
    }
    return Plan(
        machine=describe_machine(subject.device),
        versions=describe_versions(),
        network=describe_network(subject.network, subject.operators),
        inputs=tuple(subject.calling.described()),
        threads=setting.threads,
        device=str(subject.device),
        dynamic_batch=setting.dynamic_batch,
        fast_products=setting.fast_products,
        candidates=tuple(t.to_dict() for t in contest.trials.values()),
        choice=choice,
        why=_why(contest.trials, winner),
        layers=tuple(_layer(t, winner, peak) for t in times),
        peak_gflops=round(peak, 1),
        disturbed=contest.disturbed,
        seconds=round(budget.elapsed, 2),
    )


def _why(trials: dict[str, Trial], winner: Trial) -> str:
    base = trials[BASELINE].timing
    assert winner.timing is not None
    took = f"{milliseconds(winner.timing.median_ms)} ms"
    if winner.name == BASELINE or base is None:
        return f"kept the original, {took}: no candidate was faster by more than the noise of the measurement"
    proof = (
        "equivalent"
        if winner.ratio is None
        else f"equivalent, with {winner.ratio:.3g} times its rounding error"
    )
    if winner.candidate.dtype:
        proof = f"in {winner.candidate.dtype}, off by {winner.max_error:.3g} at most"
    original = f"the original ({milliseconds(base.median_ms)} ms)"
    return f"{winner.name}: {took}, {_times_as_fast(winner)} times as fast as {original}; {proof}"


def _times_as_fast(winner: Trial) -> str:
    """The original's time ÷ the winner's: one figure, or a range where the measurement leaves one wider than 10 %.

    >>> _times_as_fast(Trial(Candidate("eager", "conv"), "eager:conv", share=0.5, share_range=(0.49, 0.51)))
    '2'
    >>> _times_as_fast(Trial(Candidate("eager", "conv"), "eager:conv", share=0.5, share_range=(0.25, 0.8)))
    '1.25 to 4'
    """
    assert winner.share is not None
    low, high = winner.share_range or (winner.share, winner.share)
    if high <= _NARROW * low:
        return f"{1 / winner.share:.3g}"
    return f"{1 / high:.3g} to {1 / low:.3g}"


def _layer(found: LayerTimes, winner: Trial, peak: float) -> dict[str, Any]:
    group, timings = found.group, found.timings
    chosen = chosen_form(found, winner.candidate)
    if winner.candidate.dtype and f"{chosen}:{winner.candidate.dtype}" in timings:
        chosen = f"{chosen}:{winner.candidate.dtype}"
    order = {name: place for place, name in enumerate(found.ranking, 1)}
    gflops = found.gflops(chosen)
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
                "predicted_rank": order.get(name),
                **({"relative_error": found.errors[name]} if name in found.errors else {}),
            }
            for name in timings
        ],
        "chosen": chosen,
        "gflops": round(gflops, 1) if gflops else None,
        "of_peak": round(gflops / peak, 3) if gflops and peak else None,
    }


def chosen_form(found: LayerTimes, candidate: Candidate) -> str:
    """The form that a candidate gives a group's layers."""
    group = found.group
    names = [f.name for f in layer_forms(group.kind)]
    given = candidate.assignment.get(group.paths[0])
    if given is not None:
        return given
    way = selection.base_form(candidate.form)
    # rewriting the graph leaves convolutions on patches as they are
    on_graph = candidate.form.startswith("graph") and group.kind == PATCHES
    if way in names and way != names[0] and group.convertible and not on_graph:
        return way
    last = "conv-channels-last"
    return last if candidate.form.endswith(CHANNELS_LAST) and last in found.timings else names[0]

"""`compare`: every experiment on one network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from onebyone.comparison.census import judge_census
from onebyone.comparison.claim_result import Figures, Row, Verdict, not_available
from onebyone.comparison.claims import STATEMENTS
from onebyone.comparison.complexity import judge_complexity
from onebyone.comparison.dense_inference import judge_detection
from onebyone.comparison.differences import (
    judge_dimensions,
    judge_permutation,
    judge_scope,
    judge_share,
    judge_shift,
    judge_sizes,
    measure_dimensions,
    measure_permutation,
    measure_scope,
    measure_shift,
)
from onebyone.comparison.experiment_inputs import ExperimentInputs
from onebyone.comparison.flexibility import judge_flexibility
from onebyone.comparison.layer_calls import observe
from onebyone.comparison.layer_pair import choose
from onebyone.comparison.network_summary import whole_network
from onebyone.comparison.replacements import (
    judge_chain,
    judge_classification,
    judge_replacement,
    measure_replacement,
)
from onebyone.comparison.result import Comparison
from onebyone.comparison.similarities import (
    judge_activation,
    judge_learning,
    judge_mixing,
    judge_weighted_sum,
    measure_mixing,
    measure_weighted_sum,
)
from onebyone.errors import BadInput, InexactWarning, OnebyoneError
from onebyone.tuning.machine import describe_machine
from onebyone.verification.evaluation_context import eval_mode

BUDGET = 120.0
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Experiment:
    """How a row is measured and judged; `long` ones are left out once the budget is spent.

    `first` is the part of a long one that is measured before all rows, so that no budget leaves it out.
    """

    id: str
    measure: Callable[[ExperimentInputs], Figures]
    judge: Callable[[Figures], Verdict]
    long: bool = False
    first: Callable[[ExperimentInputs], Figures] | None = None


EXPERIMENTS = (
    Experiment(
        "S1", lambda s: measure_weighted_sum([s.pair.connected, s.pair.pointwise], s.seed), judge_weighted_sum
    ),
    Experiment("S2", ExperimentInputs.learning, judge_learning),
    Experiment("S3", ExperimentInputs.activation, judge_activation),
    Experiment("S4", lambda s: measure_mixing([s.pair.connected, s.pair.pointwise]), judge_mixing),
    Experiment("D1", ExperimentInputs.scope, judge_scope),
    Experiment("D2", ExperimentInputs.sizes, judge_sizes),
    Experiment("D3", lambda s: measure_permutation(s.pair.spatial, s.seed), judge_permutation),
    Experiment("D4", lambda s: measure_dimensions(s.layer_sizes()), judge_dimensions),
    Experiment("D5", ExperimentInputs.complexity, judge_complexity),
    Experiment("D6", ExperimentInputs.census, judge_census),
    Experiment("D7", lambda s: measure_shift(s.pair.spatial, s.seed), judge_shift),
    Experiment("D8", lambda s: measure_scope(s.pair.spatial), judge_share),
    Experiment("R1", lambda s: measure_replacement(s.model, s.pair.seen, seed=s.seed), judge_replacement),
    Experiment("R2", ExperimentInputs.chain, judge_chain),
    Experiment("R3", ExperimentInputs.classification, judge_classification, long=True),
    Experiment("R4", ExperimentInputs.detection, judge_detection, long=True, first=lambda s: s.own_detection),
    Experiment("S5", ExperimentInputs.flexibility, judge_flexibility, long=True),
)
"""In the order in which they are made: the quick ones first, then the long ones that tell of the network itself."""


def compare(
    model: nn.Module,
    example: Any,
    *,
    budget: float = BUDGET,
    seed: int = 0,
    rows: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure every statement about the two layers on a network's own layers.

    A fully connected layer and a pointwise convolution of the network are chosen (or the converted twin of
    one stands in for the other), as the run on `example` calls them. Experiments run in float64 on the
    layers' real shapes; of large layers the first outputs are used, which the figures say.

    Parameters
    ----------
    model: the network; left as it is.
    example: its input: a tensor (N, C, H, W) or other, a tuple of positional or a dict of keyword arguments.
    budget: seconds to aim at. The proof of the whole network and its dense pass against every window come
        first; what is measured repeatedly takes its share of the budget, and long experiments that have not
        begun by then are left out, with that reason.
    seed: of everything random.
    rows: ids of the rows wanted; all where None.
    progress: called with (done, of) after the whole network was converted and verified, and after every row.

    Raises
    ------
    BadInput
        where the network does not run on the example, has neither layer, or an argument does not fit.

    Example
    -------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    >>> r = compare(net, torch.randn(1, 3, 6, 6), rows=["D4"])
    >>> r["D4"].verdict
    'does not hold as usually said'
    """
    wanted = _wanted(rows)
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not budget > 0:
        raise BadInput(f"budget={budget}: expected a positive number of seconds")
    start = time.perf_counter()
    found: dict[str, Row] = {}
    with eval_mode(model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # torch's own, met where it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.simplefilter("ignore", InexactWarning)  # the rows tell how far dense answers are from crops
        torch.manual_seed(seed)
        setting = ExperimentInputs(model, example, choose(observe(model, example), seed), seed, budget)
        chosen = [e for e in EXPERIMENTS if e.id in wanted]
        before = int(bool(wanted & {"R1", "R2"}))  # the whole network is a step of its own
        whole = whole_network(setting, wanted, time.perf_counter() - start)
        if progress is not None and before:
            progress(before, before + len(chosen))
        early = {e.id: e.first(setting) for e in chosen if e.first is not None}
        for experiment in chosen:
            elapsed = time.perf_counter() - start
            found[experiment.id] = _row(experiment, setting, elapsed, early.get(experiment.id, {}))
            if progress is not None:
                progress(before + len(found), before + len(chosen))
    return Comparison(
        rows=tuple(found[name] for name in STATEMENTS if name in found),
        layers=setting.pair.describe(),
        about={
            "network": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seed": seed,
            "budget": budget,
            "seconds": time.perf_counter() - start,
            "threads": torch.get_num_threads(),
            "machine": describe_machine(torch.device("cpu")),
            "torch": torch.__version__,
            "onebyone": version("onebyone"),
        },
        **whole,
    )


def _wanted(rows: Collection[str] | None) -> set[str]:
    if rows is None:
        return set(STATEMENTS)
    wanted = {rows} if isinstance(rows, str) else set(rows)
    unknown = sorted(wanted - set(STATEMENTS))
    if unknown or not wanted:
        raise BadInput(f"rows: {', '.join(unknown) or 'none'}; expected some of {', '.join(STATEMENTS)}")
    return wanted


def _row(experiment: Experiment, setting: ExperimentInputs, elapsed: float, early: Figures) -> Row:
    start = time.perf_counter()
    figures: Figures = {}
    if experiment.long and elapsed > setting.budget:
        figures = dict(early)
        late = f"the budget of {setting.budget:g} s was spent before it: give a larger one"
        verdict = not_available("; ".join([late, *([experiment.judge(early).because] if early else [])]))
    else:
        try:
            figures = experiment.measure(setting)
            verdict = experiment.judge(figures)
        except OnebyoneError as error:
            verdict = not_available(str(error).splitlines()[0])
    pictures = figures.pop("pictures", {})
    return Row(
        id=experiment.id,
        statement=STATEMENTS[experiment.id],
        verdict=verdict.text,
        figures=figures,
        because=verdict.because,
        pictures=pictures,
        seconds=round(time.perf_counter() - start, 3),
    )

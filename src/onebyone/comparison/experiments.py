"""`compare`: runs every experiment on one network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from onebyone.comparison.census import census_verdict
from onebyone.comparison.claim_result import Figures, Row, Verdict, not_available
from onebyone.comparison.claims import CLAIMS
from onebyone.comparison.complexity import complexity_verdict
from onebyone.comparison.dense_inference import detection_verdict
from onebyone.comparison.differences import (
    dimensions_verdict,
    measure_dimensions,
    measure_permutation,
    measure_scope,
    measure_shift,
    permutation_verdict,
    scope_verdict,
    share_verdict,
    shift_verdict,
    sizes_verdict,
)
from onebyone.comparison.experiment_inputs import ExperimentInputs
from onebyone.comparison.flexibility import flexibility_verdict
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.comparison.layer_pair import choose_layers
from onebyone.comparison.network_summary import summarise_network
from onebyone.comparison.replacements import (
    chain_verdict,
    classification_verdict,
    measure_replacement,
    replacement_verdict,
)
from onebyone.comparison.result import Comparison
from onebyone.comparison.similarities import (
    activation_verdict,
    learning_verdict,
    measure_mixing,
    measure_weighted_sum,
    mixing_verdict,
    weighted_sum_verdict,
)
from onebyone.errors import BadInput, InexactWarning, OnebyoneError
from onebyone.tuning.machine import describe_machine
from onebyone.verification.evaluation_context import eval_mode

DEFAULT_BUDGET = 120.0
"""Seconds."""
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Experiment:
    """How the claim `id` is tested: `measure` returns figures, and `conclude` derives the verdict from them.

    A `long` experiment is skipped once the budget is spent. `early` measures a part of it before all other
    experiments, so that this part is never skipped.
    """

    id: str
    measure: Callable[[ExperimentInputs], Figures]
    conclude: Callable[[Figures], Verdict]
    long: bool = False
    early: Callable[[ExperimentInputs], Figures] | None = None


EXPERIMENTS = (
    Experiment(
        "S1",
        lambda s: measure_weighted_sum([s.pair.connected, s.pair.pointwise], s.seed),
        weighted_sum_verdict,
    ),
    Experiment("S2", ExperimentInputs.learning, learning_verdict),
    Experiment("S3", ExperimentInputs.activation, activation_verdict),
    Experiment("S4", lambda s: measure_mixing([s.pair.connected, s.pair.pointwise]), mixing_verdict),
    Experiment("D1", ExperimentInputs.scope, scope_verdict),
    Experiment("D2", ExperimentInputs.sizes, sizes_verdict),
    Experiment("D3", lambda s: measure_permutation(s.pair.spatial, s.seed), permutation_verdict),
    Experiment("D4", lambda s: measure_dimensions(s.layer_sizes()), dimensions_verdict),
    Experiment("D5", ExperimentInputs.complexity, complexity_verdict),
    Experiment("D6", ExperimentInputs.census, census_verdict),
    Experiment("D7", lambda s: measure_shift(s.pair.spatial, s.seed), shift_verdict),
    Experiment("D8", lambda s: measure_scope(s.pair.spatial), share_verdict),
    Experiment("R1", lambda s: measure_replacement(s.model, s.pair.calls, seed=s.seed), replacement_verdict),
    Experiment("R2", ExperimentInputs.chain, chain_verdict),
    Experiment("R3", ExperimentInputs.classification, classification_verdict, long=True),
    Experiment(
        "R4", ExperimentInputs.detection, detection_verdict, long=True, early=lambda s: s.network_detection
    ),
    Experiment("S5", ExperimentInputs.flexibility, flexibility_verdict, long=True),
)
"""In the order in which they run: quick ones first, then the long ones, with those on the network itself first."""


def compare(
    model: nn.Module,
    example: Any,
    *,
    budget: float = DEFAULT_BUDGET,
    seed: int = 0,
    rows: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Test common claims about fully connected layers and 1×1 convolutions on a network's own layers.

    A fully connected layer and a pointwise convolution are chosen from those that a run on `example` calls; if the
    network has only one of the two, the other is obtained by conversion. The experiments run in float64 on the
    layers' real shapes. Of large layers only the first outputs are used, and the figures say so.

    Parameters
    ----------
    model: the network; it is not modified.
    example: its input: a tensor such as (N, C, H, W), a tuple of positional or a dict of keyword arguments.
    budget: target duration in seconds. Verifying the whole network and timing its dense pass against every
        window come first. Repeated measurements take a share of the budget, and long experiments that have not
        started when it is spent are reported as not available.
    seed: random seed.
    rows: ids of the rows to compute; None computes all.
    progress: called with (done, total) after the whole network was converted and verified, and after every row.

    Raises
    ------
    BadInput
        if the network does not run on the example, has neither kind of layer, or an argument is invalid.

    Example
    -------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    >>> r = compare(net, torch.randn(1, 3, 6, 6), rows=["D4"])
    >>> r["D4"].verdict
    'does not hold as usually said'
    """
    wanted = _wanted_ids(rows)
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not budget > 0:
        raise BadInput(f"budget={budget}: expected a positive number of seconds")
    start = time.perf_counter()
    results: dict[str, Row] = {}
    with eval_mode(model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # raised by torch when it copies the graph of an exported program
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.simplefilter(
            "ignore", InexactWarning
        )  # the rows report how far dense predictions are from crops
        torch.manual_seed(seed)
        pair = choose_layers(record_layer_calls(model, example), seed)
        inputs = ExperimentInputs(model, example, pair, seed, budget)
        chosen = [e for e in EXPERIMENTS if e.id in wanted]
        summary_steps = int(bool(wanted & {"R1", "R2"}))
        summary = summarise_network(inputs, wanted, time.perf_counter() - start)
        if progress is not None and summary_steps:
            progress(summary_steps, summary_steps + len(chosen))
        early = {e.id: e.early(inputs) for e in chosen if e.early is not None}
        for experiment in chosen:
            elapsed = time.perf_counter() - start
            results[experiment.id] = _row(experiment, inputs, elapsed, early.get(experiment.id, {}))
            if progress is not None:
                progress(summary_steps + len(results), summary_steps + len(chosen))
    return Comparison(
        rows=tuple(results[name] for name in CLAIMS if name in results),
        layers=pair.describe(),
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
        **summary,
    )


def _wanted_ids(rows: Collection[str] | None) -> set[str]:
    if rows is None:
        return set(CLAIMS)
    wanted = {rows} if isinstance(rows, str) else set(rows)
    unknown = sorted(wanted - set(CLAIMS))
    if unknown or not wanted:
        raise BadInput(f"rows={','.join(unknown) or 'none'}: expected some of {', '.join(CLAIMS)}")
    return wanted


def _row(experiment: Experiment, inputs: ExperimentInputs, elapsed: float, early: Figures) -> Row:
    start = time.perf_counter()
    figures: Figures = {}
    if experiment.long and elapsed > inputs.budget:
        figures = dict(early)
        reasons = [f"the budget of {inputs.budget:g} s was already spent; increase the budget"]
        reasons += [experiment.conclude(early).because] if early else []
        verdict = not_available("; ".join(reasons))
    else:
        try:
            figures = experiment.measure(inputs)
            verdict = experiment.conclude(figures)
        except OnebyoneError as error:
            verdict = not_available(str(error).splitlines()[0])
    pictures = figures.pop("pictures", {})
    return Row(
        id=experiment.id,
        statement=CLAIMS[experiment.id],
        verdict=verdict.text,
        figures=figures,
        because=verdict.because,
        pictures=pictures,
        seconds=round(time.perf_counter() - start, 3),
    )

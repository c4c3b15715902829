"""The plan made of measurements: the form of each layer, and the reason for the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from onebyone.pytorch.graph import convert_graph
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.clock import Timing
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.network_forms import FormedNetwork
from onebyone.tuning.plan_builder import _layer, _times_as_fast, chosen_form, reason_for
from onebyone.tuning.result import BASELINE


def layer_times(layer: nn.Module, *shape: int, **milliseconds: float) -> LayerTimes:
    network = nn.Sequential(layer).eval()
    (group,) = group_layers(network, CallSignature.of(network, torch.zeros(shape)))
    timings = {name.replace("_", "-"): Timing(ms, ms / 10, 5) for name, ms in milliseconds.items()}
    return LayerTimes(group, timings, ("conv", "linear"))


LINEAR = layer_times(nn.Linear(8, 4), 2, 3, 8, linear=2.0, conv=1.0)
POINTWISE = layer_times(nn.Conv2d(8, 4, 1), 1, 8, 3, 3, conv=1.0, linear=2.0, conv_channels_last=0.5)
PATCHES = layer_times(nn.Conv2d(3, 4, 2, stride=2), 1, 3, 4, 4, conv=1.0, linear=2.0)
KERNEL = layer_times(nn.Conv2d(3, 4, 3), 1, 3, 5, 5, conv=1.0, conv_channels_last=0.5)


@pytest.mark.parametrize(
    ("times", "form", "expected"),
    [
        (LINEAR, "original", "linear"),
        (LINEAR, "conv", "conv"),
        (LINEAR, "native-conv", "conv"),
        (LINEAR, "graph-conv", "conv"),
        (LINEAR, "linear", "linear"),
        (LINEAR, "conv+channels_last", "conv"),
        (POINTWISE, "linear", "linear"),
        (POINTWISE, "conv", "conv"),
        (POINTWISE, "original+channels_last", "conv-channels-last"),
        (POINTWISE, "linear+channels_last", "linear"),
        (PATCHES, "linear", "linear"),
        (PATCHES, "graph-linear", "conv"),
        (PATCHES, "original+channels_last", "conv"),  # channels last was not measured
        (KERNEL, "linear", "conv"),
        (KERNEL, "conv+channels_last", "conv-channels-last"),
    ],
)
def test_the_form_that_a_network_form_gives_a_layer(times: LayerTimes, form: str, expected: str) -> None:
    assert chosen_form(times, Candidate("eager", form)) == expected


def test_rewriting_a_graph_converts_some_convolutions_on_patches() -> None:
    candidate = Candidate("eager", "graph-linear")
    assert chosen_form(PATCHES, candidate, {PATCHES.group.paths[0]}) == "linear"
    assert chosen_form(PATCHES, candidate, {"another"}) == "conv"
    tokens = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(2)).eval()
    whole = nn.Sequential(nn.Conv2d(3, 4, (4, 4), stride=4), nn.Flatten()).eval()
    for network, form in ((tokens, "conv"), (whole, "linear")):
        proof = convert_graph(network, to="linear", example=torch.zeros(1, 3, 4, 4))
        formed = FormedNetwork(network, proof)
        assert _layer(PATCHES, winner(candidate=candidate, formed=formed), peak=1.0)["chosen"] == form


def test_a_form_whose_proof_is_a_network() -> None:
    """As that of Winograd's tiles, which is no conversion and lists no changes."""
    formed = FormedNetwork(nn.Identity(), nn.Identity())
    layer = _layer(PATCHES, winner(candidate=Candidate("eager", "original"), formed=formed), peak=1.0)
    assert layer["chosen"] == "conv"


def test_an_assigned_form_takes_precedence() -> None:
    assigned = Candidate("eager", "layers", layers=(("0", "bmm"),))
    assert chosen_form(LINEAR, assigned) == "bmm"
    assert chosen_form(POINTWISE, replace(assigned, layers=(("1", "bmm"),))) == "conv"


def test_layers_that_cannot_be_converted_keep_their_form() -> None:
    fixed = replace(LINEAR, group=replace(LINEAR.group, convertible=False))
    assert chosen_form(fixed, Candidate("eager", "conv")) == "linear"


def winner(**changes: Any) -> Trial:
    trial = Trial(
        Candidate("eager", "conv"),
        "eager:conv",
        timing=Timing(5.0, 0.1, 9),
        relative_time=0.5,
        relative_time_range=(0.49, 0.51),
        rounding_ratio=1.25,
        max_error=0.01,
    )
    return replace(trial, **changes)


ORIGINAL = Trial(Candidate("eager", "original"), BASELINE, timing=Timing(10.0, 0.1, 9))


def test_the_reason_states_time_speed_and_accuracy() -> None:
    trials = {BASELINE: ORIGINAL}
    assert reason_for(winner(), trials) == (
        "eager:conv: 5 ms, 2 times as fast as the original (10 ms); equivalent, with 1.25 times its rounding error"
    )
    assert reason_for(winner(rounding_ratio=None), trials).endswith("(10 ms); equivalent")
    short = winner(candidate=Candidate("eager", "conv", "bfloat16"))
    assert reason_for(short, trials).endswith("in bfloat16, with a maximum error of 0.01")
    assert reason_for(ORIGINAL, trials).startswith("kept the original, 10 ms: no candidate was faster")


@pytest.mark.parametrize(
    ("relative_time_range", "words"),
    [((0.48, 0.52), "2"), ((0.45, 0.5), "2 to 2.22"), (None, "2")],
)
def test_speeds_are_ranges_if_the_interval_is_wider_than_a_tenth(
    relative_time_range: tuple[float, float] | None, words: str
) -> None:
    assert _times_as_fast(winner(relative_time_range=relative_time_range)) == words


def test_a_layer_of_the_plan() -> None:
    layer = _layer(LINEAR, winner(), peak=0.001)
    macs = 2 * 3 * 8 * 4
    assert (layer["macs"], layer["calls"], layer["shape"], layer["input"]) == (macs, 1, [4, 8], [2, 3, 8])
    assert (layer["paths"], layer["pattern"], layer["kind"], layer["chosen"]) == (
        ["0"],
        "*",
        "linear",
        "conv",
    )
    assert layer["forms"] == [
        {"form": "linear", "median_ms": 2.0, "spread_ms": 0.2, "predicted_rank": 2},
        {"form": "conv", "median_ms": 1.0, "spread_ms": 0.1, "predicted_rank": 1},
    ]
    assert layer["of_peak"] == pytest.approx(2 * macs / 1e-3 / 1e9 / 0.001, abs=1e-3)


def test_a_layer_in_a_shorter_dtype() -> None:
    timings = {**LINEAR.timings, "conv:bfloat16": Timing(0.5, 0.1, 5)}
    times = replace(LINEAR, timings=timings, errors={"conv:bfloat16": 0.002})
    layer = _layer(times, winner(candidate=Candidate("eager", "conv", "bfloat16")), peak=0.001)
    assert layer["chosen"] == "conv:bfloat16"
    assert layer["forms"][-1]["relative_error"] == 0.002
    assert "relative_error" not in layer["forms"][0]

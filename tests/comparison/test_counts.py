"""D5 and D6: counts, times and the census."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onebyone.comparison import census, complexity
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID, WHEN
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.laws import cost
from onebyone.laws.geometry import Sliding
from tests.comparison.conftest import network

SIZES = [(1, 1), (2, 2), (5, 3)]

# D5


def test_counts_are_those_of_the_modules() -> None:
    table = complexity.measure_counts(complexity.costs(6, 4), SIZES)["counts"]
    for row in table:
        modules = {
            "pointwise": nn.Conv2d(6, 4, 1, bias=False),
            "connected": nn.Linear(6 * row["places"], 4, bias=False),
        }
        for role, module in modules.items():
            assert row["parameters"][role] == sum(p.numel() for p in module.parameters())
        assert row["parameters_ratio"] == row["places"]
        assert row["macs_ratio"] == 1


def test_fewer_parameters_but_as_many_macs() -> None:
    verdict = complexity.complexity_verdict(complexity.measure_counts(complexity.costs(6, 4), SIZES))
    assert verdict.text == (
        "holds when the map has more than one position and cost means parameters, not multiply-accumulates"
    )
    assert "15 times the parameters, and as many multiply-accumulates" in verdict.because


def test_a_layer_as_small_as_the_other_refutes_it() -> None:
    counted = complexity.costs(6, 4)
    figures = complexity.measure_counts(counted | {"connected": counted["pointwise"]}, SIZES)
    assert complexity.complexity_verdict(figures).text == NOT_AS_SAID


def test_were_it_dearer_everywhere_it_would_hold_outright() -> None:
    counted = complexity.costs(6, 4)

    def dearer(size: tuple[int, int]) -> cost.Cost:
        return cost.flatten_linear(1, 6, size, 9, bias=False)

    assert (
        complexity.complexity_verdict(complexity.measure_counts(counted | {"connected": dearer}, SIZES)).text
        == HOLDS
    )


def test_a_larger_kernel_changes_the_verdict() -> None:
    def three(size: tuple[int, int]) -> cost.Cost:
        return cost.convolution(1, 6, 4, [Sliding(3, pad_before=1, pad_after=1)] * 2, size, bias=False)

    figures = complexity.measure_counts(complexity.costs(6, 4) | {"pointwise": three}, SIZES)
    verdict = complexity.complexity_verdict(figures)
    assert verdict.text.startswith(WHEN)
    assert "is not the layer that it is labelled as" in verdict.because


def test_times_are_of_the_layers_named() -> None:
    calls = complexity.forms(3, 5, (4, 2))
    values = {name: call() for name, call in calls.items()}
    tokens = values["pointwise"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(values["pointwise as linear"], tokens)
    torch.testing.assert_close(values["connected as convolution"].flatten(1), values["connected"])


def test_times_are_repeated_in_turn() -> None:
    found = complexity.measure_times(2, 3, [(1, 1), (2, 2)], seconds=0.0)
    assert found["repeats"] == complexity.MIN_REPEATS
    assert found["threads"] == torch.get_num_threads()
    for row in found["table"]:
        for spread in row["seconds"].values():
            assert 0 < spread["quartile_low"] <= spread["median"] <= spread["quartile_high"]
    told = complexity.complexity_verdict(
        complexity.measure_counts(complexity.costs(2, 3), SIZES) | {"times": found}
    )
    assert "measured, flatten + FC takes" in told.because


# D6


def test_a_convolutional_network_with_linear_layers() -> None:
    model = network()
    seen = record_layer_calls(model, torch.randn(1, 3, 8, 7))
    figures = census.measure_census(seen, sum(p.numel() for p in model.parameters()), None)
    assert census.census_verdict(figures).text == NOT_AS_SAID
    uses = figures["network"]["uses"]
    assert uses["linear layer on a flattened map"]["parameters"] == 181 * 20 - 0
    assert sum(p["parameters"] for p in uses.values()) == figures["network"]["parameters"]
    assert sum(p["share_of_macs"] for p in uses.values()) == pytest.approx(1)
    assert figures["network"]["macs"] == 8 * 6 * 5 * 27 + 6 * 6 * 5 * 8 + 180 * 20 + 80


def test_a_feed_forward_network_is_as_is_said() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    figures = census.measure_census(record_layer_calls(model, torch.randn(3, 6)), 47, None)
    assert census.census_verdict(figures).text == HOLDS
    both = census.measure_census(
        record_layer_calls(model, torch.randn(3, 6)),
        47,
        [{"key": "timm:a", "parameters": 9, "linear": 3, "pointwise": 2}],
    )
    assert census.census_verdict(both).text == NOT_AS_SAID
    tokens = census.measure_census(record_layer_calls(model, torch.randn(3, 4, 6)), 47, None)
    assert census.census_verdict(tokens).text == NOT_AS_SAID


def test_patches_make_no_convolutional_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(4 * 4 * 3, 2))
    figures = census.measure_census(record_layer_calls(model, torch.randn(1, 3, 8, 6)), 1, None)
    assert not figures["network"]["convolutional"]
    assert census.census_verdict(figures).text == HOLDS

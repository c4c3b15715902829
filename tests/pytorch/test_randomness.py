"""Operators that draw random numbers at every call are refused by name; what draws none in eval mode is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.errors import Refused
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import Apply, deviation

RANDOM: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "dropout": (F.dropout, "aten.dropout"),
    "dropout of channels": (F.dropout2d, "aten.feature_dropout"),
    "alpha dropout": (lambda x: F.alpha_dropout(x, training=True), "aten.alpha_dropout"),
    "feature alpha dropout": (
        lambda x: F.feature_alpha_dropout(x, training=True),
        "aten.feature_alpha_dropout",
    ),
    "random slopes": (lambda x: F.rrelu(x, training=True), "aten.rrelu"),
    "samples": (lambda x: torch.bernoulli(x.sigmoid()), "aten.bernoulli"),
    "uniform noise": (lambda x: x + torch.rand_like(x), "aten.rand_like"),
    "normal noise": (lambda x: x + torch.randn_like(x), "aten.randn_like"),
    "noise of one size": (lambda x: x + torch.randn(1, 4, 1, 1, dtype=x.dtype), "aten.randn"),
    "a random order": (lambda x: x[:, torch.randperm(4)], "aten.randperm"),
    "stochastic depth": (lambda x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5), "aten.bernoulli"),
    "gumbel softmax": (lambda x: F.gumbel_softmax(x, dim=1), "aten.exponential"),
}


def around(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_at_every_call_is_refused(name: str) -> None:
    function, operator = RANDOM[name]
    model, image = around(Apply(function)), torch.randn(2, 3, 8, 8)
    assert any(not torch.equal(model(image), model(image)) for _ in range(20)), "the original is random"
    with pytest.raises(Refused) as caught:
        convolutionalize(model, 8)
    (refusal,) = caught.value.refusals
    assert refusal.path == "1"
    assert refusal.kind.startswith(operator)
    assert refusal.reason.startswith("random at every call")


@pytest.mark.parametrize(
    "module", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU()]
)
def test_a_part_left_in_training_mode_is_refused_and_one_in_eval_mode_is_kept(module: nn.Module) -> None:
    model = around(module)
    module.train()
    with pytest.raises(Refused, match="random at every call"):
        convolutionalize(model, 8)
    assert module.training, "the network is left as it was"
    model.eval()
    d, error = deviation(model, 8)
    assert d.geometry.exact
    assert error < 1e-11
    model.train()
    assert convolutionalize(model, 8).geometry.exact, (
        "a network in training mode as a whole is taken in eval mode"
    )


def test_a_batch_norm_left_in_training_mode_is_refused() -> None:
    norm = nn.BatchNorm2d(4)
    model = around(norm)
    norm.train()
    with pytest.raises(Refused, match="takes its statistics from the batch"):
        convolutionalize(model, 8)


def test_a_random_number_that_nothing_reads_is_no_reason() -> None:
    def drawn(x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return x

    d, error = deviation(around(Apply(drawn)), 8)
    assert d.geometry.exact
    assert error < 1e-11

"""For every claim: a case with the usual verdict, and one with another verdict.

Both are experiments: the same code measures a correct layer and a wrong one (or a network in which the claim is
false), and the verdicts must differ. Verdicts on made-up figures are tested beside their experiments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison import census, complexity, dense_inference, flexibility
from onebyone.comparison import differences as d
from onebyone.comparison import replacements as r
from onebyone.comparison import similarities as s
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID, WHEN, Verdict
from onebyone.comparison.claims import CLAIMS
from onebyone.comparison.digits import DigitSplit, load_digits, train
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.laws import cost
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.modules.conversion import ModuleConversion
from tests.comparison.conftest import connected, kernel, network, pointwise, pooled, random

IMAGE = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1))
ROLES = {"pointwise": pointwise(), "connected": connected()}


# layers and conversions for which a claim is false ------------------------------------------------------


def squared(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias).square()


def halved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Flatten + FC on the means of pairs of columns: position matters, but half of the information is lost."""
    pairs = F.avg_pool2d(x, (1, 2))
    return F.linear(pairs.flatten(1), weight[:, : pairs[0].numel()], bias)


class Doubled(nn.Module):
    """The same outputs from weights of half the size: different gradients, so different weights after a step."""

    def __init__(self, one: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(one.weight.detach() / 2), copy.deepcopy(one.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


def linear_of_integers() -> nn.Linear:
    made = nn.Linear(9, 5, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(2 * s.integer_corner(random(5, 9)))
        made.bias.copy_(torch.arange(5) - 2)
    return made


def out_of_order(module: nn.Module) -> ModuleConversion:
    """A conversion that passes every layer its inputs in the wrong order."""
    conversion = r.to_conv(module)
    for pair in conversion.pairs:
        forward = pair.converted.forward
        pair.converted.forward = lambda x, forward=forward: forward(x.flip(-1))  # type: ignore[method-assign]
    return conversion


def learning(other: Callable[[nn.Linear], nn.Module]) -> Verdict:
    return s.learning_verdict(s.measure_learning(linear_of_integers(), other(linear_of_integers())))


def activation(between: Callable[[Tensor], Tensor]) -> Verdict:
    return s.activation_verdict(s.measure_activation(random(5, 9), random(6, 5, seed=1), between, "it"))


def scope(verdict_of: Callable[[Any], Verdict], **roles: Any) -> Verdict:
    return verdict_of(d.measure_scope(ROLES | roles))


def of_sizes(*sizes: tuple[str, int, int]) -> Verdict:
    layers = [{"path": "", "kind": kind, "inputs": i, "outputs": o} for kind, i, o in sizes]
    return d.dimensions_verdict(d.measure_dimensions(layers))


def counts(**changes: Any) -> Verdict:
    counted = complexity.costs(6, 4) | changes
    return complexity.complexity_verdict(complexity.measure_counts(counted, [(1, 1), (2, 2), (5, 3)]))


def occurring(model: nn.Module, x: Tensor, zoo: list[dict[str, Any]]) -> Verdict:
    return census.census_verdict(census.measure_census(record_layer_calls(model, x), 1, zoo))


def replacing(convert: Callable[[nn.Module], ModuleConversion]) -> Verdict:
    model = network()
    return r.replacement_verdict(r.measure_replacement(model, record_layer_calls(model, IMAGE), convert))


def classifying(other: nn.Module) -> Verdict:
    model = network()
    dense = r.lifted(other, IMAGE)
    return r.classification_verdict(r.measure_classification(model, IMAGE, dense))


def with_another_weight() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[7].weight[0, 0] += 0.01  # type: ignore[index, operator]
    return model


PLAIN = [{"key": "timm:a", "parameters": 9, "linear": 3, "pointwise": 0}]
BOTH = [{"key": "timm:a", "parameters": 9, "linear": 3, "pointwise": 2}]
PERCEPTRON = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
QUICK: dict[str, tuple[Callable[[], Verdict], str, Callable[[], Verdict], str]] = {
    "S1": (
        lambda: s.weighted_sum_verdict(s.measure_weighted_sum([connected(), pointwise()])),
        HOLDS,
        lambda: s.weighted_sum_verdict(s.measure_weighted_sum([connected(), pointwise(form=squared)])),
        NOT_AS_SAID,
    ),
    "S2": (lambda: learning(lambda one: r.to_conv(one).model), HOLDS, lambda: learning(Doubled), NOT_AS_SAID),
    "S3": (lambda: activation(torch.relu), HOLDS, lambda: activation(nn.Identity()), NOT_AS_SAID),
    "S4": (
        lambda: s.mixing_verdict(s.measure_mixing([connected(), pointwise()])),
        HOLDS,
        lambda: s.mixing_verdict(
            s.measure_mixing(
                [
                    pointwise(
                        form=lambda x, w, b: F.conv2d(x, w, b, groups=3), weight=random(6, 1, 1, 1), groups=3
                    )
                ]
            )
        ),
        NOT_AS_SAID,
    ),
    "D1": (
        lambda: scope(d.scope_verdict),
        HOLDS,
        lambda: scope(d.scope_verdict, pointwise=kernel()),
        NOT_AS_SAID,
    ),
    "D2": (
        lambda: d.sizes_verdict(d.measure_sizes(ROLES)),
        WHEN,
        lambda: d.sizes_verdict(d.measure_sizes(ROLES | {"connected": pooled()})),
        NOT_AS_SAID,
    ),
    "D3": (
        lambda: d.permutation_verdict(d.measure_permutation(ROLES)),
        HOLDS,
        lambda: d.permutation_verdict(d.measure_permutation(ROLES | {"pointwise": kernel()})),
        NOT_AS_SAID,
    ),
    "D4": (
        lambda: of_sizes(("linear", 8, 4), ("pointwise", 4, 8)),
        NOT_AS_SAID,
        lambda: of_sizes(("linear", 4, 4), ("pointwise", 4, 8)),
        HOLDS,
    ),
    "D5": (
        counts,
        WHEN,
        lambda: counts(connected=lambda size: cost.pointwise(1, 6, 4, size, bias=False)),
        NOT_AS_SAID,
    ),
    "D6": (
        lambda: occurring(PERCEPTRON, torch.randn(3, 6), BOTH),
        NOT_AS_SAID,
        lambda: occurring(PERCEPTRON, torch.randn(3, 6), PLAIN),
        HOLDS,
    ),
    "D7": (
        lambda: d.shift_verdict(d.measure_shift(ROLES)),
        WHEN,
        lambda: d.shift_verdict(d.measure_shift(ROLES | {"pointwise": kernel()})),
        NOT_AS_SAID,
    ),
    "D8": (
        lambda: scope(d.share_verdict),
        HOLDS,
        lambda: scope(d.share_verdict, pointwise=kernel()),
        NOT_AS_SAID,
    ),
    "R1": (lambda: replacing(r.to_conv), HOLDS, lambda: replacing(out_of_order), NOT_AS_SAID),
    "R2": (
        lambda: r.chain_verdict(r.measure_chain((3, 4, 5), 6, 4)),
        HOLDS,
        lambda: r.chain_verdict(r.measure_chain((3, 4, 5), 6, 4, lambda w, b: r.natural_order(w, b).flip(1))),
        NOT_AS_SAID,
    ),
    "R3": (lambda: classifying(network()), HOLDS, lambda: classifying(with_another_weight()), NOT_AS_SAID),
}
"""By claim: the usual case and its verdict, and another case and its verdict. S5 and R4 are further below."""


def test_every_row_has_its_case() -> None:
    assert {*QUICK, "S5", "R4"} == set(CLAIMS)


@pytest.mark.parametrize("row", QUICK)
def test_the_verdict_is_that_of_the_case(row: str) -> None:
    usual, expected, otherwise, other = QUICK[row]
    assert expected != other
    for case, verdict in ((usual, expected), (otherwise, other)):
        found = case()
        assert found.text == verdict or (verdict == WHEN and found.text.startswith(WHEN)), found


# S3, S5, D7, R2: causes of other verdicts ----------------------------------------------------


def test_layers_that_do_not_collapse_and_forms_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(between: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return s.measure_activation(random(5, 9), random(6, 5, seed=1), between, "it")

    torch.manual_seed(0)
    noisy = measured(lambda x: F.dropout(x, 0.5))  # is random in each call
    assert noisy["forms_agree_ratio"] > 1
    assert "acts differently" in s.activation_verdict(noisy).because
    right = s._as_pointwise
    monkeypatch.setattr(s, "_as_pointwise", lambda x, w: right(x, w) + 1e-6 * x.abs().sum())
    bent = measured(torch.relu)
    assert bent["collapse_ratio"]["fully connected"] <= 1 < bent["collapse_ratio"]["pointwise"]
    assert "do not equal the product" in s.activation_verdict(bent).because


def test_what_is_averaged_before_the_layer_is_lost() -> None:
    figures = d.measure_shift(ROLES | {"connected": connected(form=halved), "pooled": pooled()})
    assert [figures[role]["recovers_map"] for role in ("pointwise", "connected", "pooled")] == [
        True,
        False,
        False,
    ]
    assert d.shift_verdict(figures).text == HOLDS
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = connected(form=lambda x, w, b: F.linear(x.flatten(1)[:, order], w, b))
    assert d.measure_shift(ROLES | {"connected": shuffled})["connected"]["recovers_map"]


def test_a_kernel_that_is_too_small_gives_more_than_one_pixel() -> None:
    figures = r.measure_chain((3, 4, 5), 6, 4, lambda w, b: r.natural_order(w, b)[:, :, :-1])
    assert not figures["one_pixel_out"]
    assert r.chain_verdict(figures).text == NOT_AS_SAID


@pytest.fixture(scope="module")
def digits() -> DigitSplit:
    return load_digits(0)


def flexible(digits: DigitSplit) -> Verdict:
    return flexibility.flexibility_verdict(
        flexibility.measure_flexibility(digits, widths=(1, 12), seeds=2, steps=40)
    )


@pytest.mark.parametrize("stuck", [("pooled", "flattened"), ("pooled",)])
def test_width_that_is_not_used_is_no_capacity(
    digits: DigitSplit, monkeypatch: pytest.MonkeyPatch, stuck: tuple[str, ...]
) -> None:
    right = flexibility.head_of
    monkeypatch.setattr(
        flexibility, "head_of", lambda kind, width: right(kind, 3 if kind in stuck else width)
    )
    verdict = flexible(digits)
    assert verdict.text == (NOT_AS_SAID if len(stuck) == 2 else "holds when the head is the flattened one")


def test_a_head_that_answers_otherwise_in_its_other_form(
    digits: DigitSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another(network: nn.Module, *args: Any, **options: Any) -> Any:
        other = copy.deepcopy(network)
        with torch.no_grad():
            other[1][-1].bias.copy_(torch.arange(10.0))  # type: ignore[index, union-attr, operator]
        return convolutionalize(other, *args, **options)

    monkeypatch.setattr(flexibility, "convolutionalize", of_another)
    verdict = flexible(digits)
    assert verdict.text == NOT_AS_SAID
    assert "the two forms of one head predict differently" in verdict.because


# R4 ---------------------------------------------------------------------------------------------------------


class Negative(dense_inference.NoisyPage):
    """Dark digits on light paper, where the zeros of padding look like ink."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.image = 2 - self.image

    def surroundings(self) -> tuple[Tensor, Tensor]:
        """Windows with two pixels more on each side (n, 1, 12, 12), and their classes."""
        wide = self.image.unfold(0, 12, 1).unfold(1, 12, 1)
        positions = torch.cartesian_prod(*(torch.arange(n) + 2 for n in wide.shape[:2]))
        distance, nearest = (positions[:, None] - self.corners).abs().amax(2).min(1)
        kept = (distance == 0) | (distance > 2)
        labels = torch.where(distance == 0, self.labels[nearest], 10)
        return wide.reshape(-1, 1, 12, 12)[kept], labels[kept]


def trained_among_neighbours(digits: DigitSplit) -> nn.Sequential:
    """A padded detector that was trained with true neighbours in place of the zeros of padding."""
    network = dense_inference.detector(padded=True, seed=0)

    def loss(net: Any, images: Tensor, labels: Tensor) -> Tensor:
        x = F.relu(F.conv2d(images, net[0].weight, net[0].bias))
        x = F.relu(F.conv2d(x, net[2].weight, net[2].bias))
        return F.cross_entropy(net[4:](x), labels)

    made = [Negative(digits.train, n).surroundings() for n in range(12)]
    images, labels = (torch.cat(part) for part in zip(*made, strict=True))
    objects, background = (torch.nonzero((labels == 10) == wanted).flatten() for wanted in (False, True))
    some = background[torch.randperm(len(background), generator=torch.Generator().manual_seed(0))]
    rows = torch.cat([objects.repeat(20), some[: 20 * len(objects)]])
    train(network, images[rows], labels[rows], steps=300, seed=0, loss=loss)
    return network


def test_padding_can_make_one_pass_better_than_crops(digits: DigitSplit) -> None:
    pages = [Negative(digits.test, 900 + n) for n in range(2)]
    padded = dense_inference.dense_against_windows(trained_among_neighbours(digits), pages)
    verdict = dense_inference.detection_verdict({"unpadded": None, "padded": padded, "own": None})
    assert verdict.text == "holds when the layers pad, so that positions see their true neighbours"
    assert not padded["exact"]


def test_a_dense_pass_that_is_not_the_crops_is_found_out(
    digits: DigitSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another(network: nn.Module, *args: Any, **options: Any) -> Any:
        other = copy.deepcopy(network)
        with torch.no_grad():
            other[5].weight.copy_(other[5].weight.flip(1))  # type: ignore[index, union-attr, operator]
        return replace(convolutionalize(other, *args, **options), original=network)

    monkeypatch.setattr(dense_inference, "convolutionalize", of_another)
    figures = dense_inference.measure_detection(digits, steps=3, pages=1, tests=1)
    verdict = dense_inference.detection_verdict(figures | {"own": None})
    assert not figures["unpadded"]["equals_crops"]
    assert verdict.text == NOT_AS_SAID
    assert "does not give the scores of the crops" in verdict.because

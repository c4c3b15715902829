"""S5 and R4: verdicts on made-up figures, and measurements after a few steps of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onebyone.comparison import dense_inference, flexibility
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID
from onebyone.comparison.digits import DigitSplit, load_digits, train
from onebyone.comparison.replacements import lifted
from onebyone.detection import Detections
from tests.comparison.conftest import network


@pytest.fixture(scope="module")
def digits() -> DigitSplit:
    return load_digits(0)


def test_the_digits(digits: DigitSplit) -> None:
    assert digits.train.images.shape == (1200, 1, 8, 8)
    assert digits.test.images.shape == (597, 1, 8, 8)
    assert float(digits.train.ink.max()) == 1
    ids = torch.cat([digits.train.ids, digits.test.ids])
    assert sorted(ids.tolist()) == list(range(1797))
    # stratified: each class's share differs by less than one digit of the smaller part
    shares = [torch.bincount(part.labels, minlength=10) / len(part) for part in (digits.train, digits.test)]
    assert float((shares[0] - shares[1]).abs().max()) < 1 / len(digits.test)


# S5


def curves(
    pooled: list[float],
    flattened: list[float],
    forms: tuple[float, float] = (0.9, 0.9),
    spread: float = 0.0,
) -> dict[str, Any]:
    def curve(head: str, values: list[float]) -> list[dict[str, Any]]:
        return [
            {
                "width": w,
                "parameters": flexibility.head_parameters(head, w),
                "accuracy": a,
                "accuracies": [a - spread, a + spread],
            }
            for w, a in zip((2, 8, 32), values, strict=True)
        ]

    return {
        "curves": {"pooled": curve("pooled", pooled), "flattened": curve("flattened", flattened)},
        "tested_on": 600,
        "two_forms": {"accuracy": list(forms), "same_class": 1.0, "largest_difference": 1e-6},
    }


def test_the_verdict_on_flexibility_compares_gains_with_noise() -> None:
    verdict_of = flexibility.flexibility_verdict
    assert verdict_of(curves([0.5, 0.8, 0.9], [0.7, 0.9, 0.97])).text == HOLDS
    assert (
        verdict_of(curves([0.9, 0.9, 0.91], [0.7, 0.9, 0.97])).text
        == "holds when the head is the flattened one"
    )
    assert verdict_of(curves([0.9, 0.9, 0.9], [0.97, 0.96, 0.97])).text == NOT_AS_SAID
    assert verdict_of(curves([0.5, 0.8, 0.9], [0.7, 0.9, 0.97], forms=(0.9, 0.8))).text == NOT_AS_SAID
    assert verdict_of(curves([0.5, 0.8, 0.9], [0.7, 0.9, 0.97], spread=0.3)).text == NOT_AS_SAID


def test_the_cheaper_head_is_named() -> None:
    because = flexibility.flexibility_verdict(curves([0.5, 0.8, 0.9], [0.7, 0.9, 0.97])).because
    parameters = [flexibility.head_parameters("pooled", 32), flexibility.head_parameters("flattened", 8)]
    assert (
        f"requires {parameters[0]} parameters in the pooled head, {parameters[1]} in the flattened one"
        in because
    )


@pytest.mark.parametrize("kind", flexibility.HEADS)
def test_head_parameters(kind: str) -> None:
    head = flexibility.head_of(kind, 5)
    assert flexibility.head_parameters(kind, 5) == sum(p.numel() for p in head.parameters())
    assert head(flexibility.trunk()(torch.zeros(2, 1, 8, 8))).shape == (2, 10)


def test_flexibility_is_measured(digits: DigitSplit) -> None:
    figures = flexibility.measure_flexibility(digits, widths=(1, 12), seeds=2, steps=60)
    assert figures["two_forms"]["accuracy"][0] == figures["two_forms"]["accuracy"][1]
    points = figures["curves"]["flattened"]
    assert [p["width"] for p in points] == [1, 12]
    assert points[1]["accuracy"] > 0.5
    assert flexibility.flexibility_verdict(figures).text == HOLDS


# R4


def found(dense: float, windows: float, *, equal: bool = True) -> dict[str, Any]:
    return {
        "objects": 80,
        "average_precision": {"dense": dense, "windows": windows},
        "speedup": 20.0,
        "equals_crops": equal,
    }


def test_the_verdict_on_detection_compares_the_gain_with_noise() -> None:
    verdict_of = dense_inference.detection_verdict
    plain = found(0.9, 0.9)
    assert verdict_of({"unpadded": plain, "padded": found(0.88, 0.9), "own": None}).text == NOT_AS_SAID
    assert verdict_of({"unpadded": plain, "padded": found(0.92, 0.9), "own": None}).text == NOT_AS_SAID
    assert verdict_of({"unpadded": plain, "padded": found(0.95, 0.6), "own": None}).text == (
        "holds when the layers pad, so that positions see their true neighbours"
    )
    wrong = verdict_of({"unpadded": found(0.9, 0.9, equal=False), "padded": found(0.95, 0.6), "own": None})
    assert wrong.text == NOT_AS_SAID
    assert "does not give the scores of the crops" in wrong.because


def test_detection_is_measured(digits: DigitSplit) -> None:
    figures = dense_inference.measure_detection(digits, steps=60, pages=3, tests=1)
    plain, padded = figures["unpadded"], figures["padded"]
    assert plain["equals_crops"]
    assert plain["exact"]
    assert not padded["exact"]
    assert plain["max_difference"] <= plain["bound"]
    assert plain["windows"] == 65 * 113
    for way in plain["average_precision"].values():
        assert 0 < way <= 1


def test_pages_do_not_overlap(digits: DigitSplit) -> None:
    page = dense_inference.NoisyPage(digits.test, 3)
    assert len(page.labels) > 20
    apart = (page.corners[:, None] - page.corners[None]).abs().amax(2) + 100 * torch.eye(len(page.labels))
    assert float(apart.min()) >= 10
    images, labels = page.windows()
    assert int((labels != 10).sum()) == len(page.labels)
    assert images.shape[1:] == (1, 8, 8)


def test_precision_of_a_perfect_and_of_a_doubled_answer(digits: DigitSplit) -> None:
    page = dense_inference.NoisyPage(digits.test, 3)
    boxes = np.array([[x, y, x + 8, y + 8] for y, x in page.corners.tolist()], dtype=np.float32)

    def answer(labels: Any, times: int = 1) -> float:
        scores = np.linspace(1, 0.5, times * len(boxes), dtype=np.float32)
        given = Detections(
            np.concatenate([boxes] * times),
            scores,
            np.concatenate([labels] * times),
            dense_inference.CLASSES,
            (72, 120),
        )
        return dense_inference.average_precision([dense_inference.matched(given, page)], len(boxes))

    labels = page.labels.numpy()
    assert answer(labels) == answer(labels, 2) == 1
    assert answer((labels + 1) % 10) == 0


def test_the_user_s_network_is_measured() -> None:
    model = network()
    dense = lifted(model, torch.randn(1, 3, 8, 7))
    own = dense_inference.measure_on_network(dense, model, max_windows=9, seconds=0.0)
    assert own["windows"] == 9
    assert own["exact"]
    assert own["same_class"] == 1
    assert own["relative_to_spread"] < 1e-3


def test_training_gives_the_threads_back() -> None:
    """It runs on one thread, restores their number even after an error, and its result depends on the seed only."""
    before = torch.get_num_threads()
    images, labels = torch.randn(50, 1, 8, 8), torch.arange(50) % 10
    heads = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
            heads.append(train(head, images, labels, steps=3, seed=0))
            assert torch.get_num_threads() == threads
            with pytest.raises(RuntimeError):
                train(nn.Linear(3, 2), images, labels, steps=3, seed=0)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(heads[0][1].weight, heads[1][1].weight)  # type: ignore[index]

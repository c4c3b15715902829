"""Kinds of scores: probabilities by their formulas, descriptions, and what is assumed of unknown scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind, assumed_kind, read_kind

RELATIVE = 2.0**-20  # 16 float32 roundings: exp, a sum of few terms, a division


def column(*values: float) -> np.ndarray:
    """Scores (classes, 1) of one position."""
    return np.array(values, np.float32).reshape(-1, 1)


def test_softmax_and_logistic_by_their_formulas() -> None:
    z = [-3.0, 0.5, 2.0]
    total = sum(math.exp(v) for v in z)
    softmax = [math.exp(v) / total for v in z]
    logistic = [1 / (1 + math.exp(-v)) for v in z]
    for kind, expected in (
        (ScoreKind("logits"), softmax),
        (ScoreKind("logits", "exclusive"), softmax),
        (ScoreKind("logits", "multi-label"), logistic),
    ):
        np.testing.assert_allclose(kind.probabilities(column(*z)).ravel(), expected, rtol=RELATIVE)
    single = ScoreKind("logits").probabilities(column(2.0))
    np.testing.assert_allclose(single.ravel(), [1 / (1 + math.exp(-2))], rtol=RELATIVE)


def test_softmax_is_over_classes_at_each_position() -> None:
    z = np.array([[0.0, 5.0], [1.0, -700.0]], np.float32)
    p = ScoreKind("logits").probabilities(z)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=RELATIVE)
    np.testing.assert_allclose(p[:, 0], [1 / (1 + math.e), math.e / (1 + math.e)], rtol=RELATIVE)
    assert p[0, 1] == 1


@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_the_logistic_function_does_not_overflow(z: float) -> None:
    p = ScoreKind("logits", "multi-label").probabilities(column(z))
    assert p.dtype == np.float32
    assert p.ravel().tolist() == [float(z > 0)]


def test_log_probabilities_are_exponentials_of_at_most_one() -> None:
    p = ScoreKind("log-probabilities").probabilities(column(-1.0, 0.0, 2.0**-12))
    np.testing.assert_allclose(p.ravel(), [math.exp(-1), 1, 1], rtol=RELATIVE)
    assert p.max() == 1


@pytest.mark.parametrize("slack", [0.0, 2.0**-11])
def test_probabilities_may_exceed_their_range_by_half_precision_rounding(slack: float) -> None:
    scores = column(-slack, 1 + slack)
    assert ScoreKind("probabilities").probabilities(scores) is scores


@pytest.mark.parametrize("scores", [(-(2.0**-10), 0.5), (0.5, 1 + 2.0**-10)])
def test_values_that_are_no_probabilities_are_refused(scores: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="score_kind='probabilities': the scores range from"):
        ScoreKind("probabilities").probabilities(column(*scores))


def test_values_that_are_no_log_probabilities_are_refused() -> None:
    with pytest.raises(BadInput, match=r"score_kind='log-probabilities': the largest score is 0.001"):
        ScoreKind("log-probabilities").probabilities(column(-1.0, 0.001))


@pytest.mark.parametrize(
    ("kind", "count", "text"),
    [
        (ScoreKind("logits"), 1, "logits; the logistic function gives the probability of each class"),
        (
            ScoreKind("logits", "multi-label"),
            3,
            "logits; the logistic function gives the probability of each class",
        ),
        (ScoreKind("logits"), 2, "logits, treated as exclusive classes; softmax gives the probabilities"),
        (ScoreKind("probabilities"), 2, "probabilities"),
        (ScoreKind("probabilities", "exclusive"), 2, "probabilities of exclusive classes"),
        (ScoreKind("probabilities", "multi-label"), 2, "probabilities of independent classes"),
        (ScoreKind("log-probabilities"), 2, "log-probabilities; their exponential gives the probabilities"),
        (
            ScoreKind("log-probabilities", "exclusive"),
            2,
            "log-probabilities of exclusive classes; their exponential gives the probabilities",
        ),
    ],
)
def test_descriptions(kind: ScoreKind, count: int, text: str) -> None:
    assert kind.describe(count) == text


@pytest.mark.parametrize("values", ["logits", "probabilities", "log-probabilities"])
@pytest.mark.parametrize("classes", [None, "exclusive", "multi-label"])
def test_names_are_read_back(values: str, classes: str | None) -> None:
    kind = ScoreKind(values, classes)
    assert str(kind) == (values if classes is None else f"{values}:{classes}")
    assert read_kind(str(kind)) == kind
    assert read_kind(kind) is kind
    assert read_kind(None) is None


@pytest.mark.parametrize("name", ["logit", "logits:", ":exclusive", "logits:both", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        BadInput, match="expected logits, probabilities or log-probabilities, alone or followed by"
    ):
        read_kind(name)


@pytest.mark.parametrize(
    ("scores", "kind", "doubt"),
    [
        ([[0.25, 0.9], [0.75, 0.1]], "probabilities:exclusive", ""),
        ([[0.25, 0.9], [0.75, 0.2]], "probabilities", "every score is from 0 to 1"),
        ([[1.0]], "probabilities", "every score is from 0 to 1"),
        ([[0.5, 0.5]], "probabilities", "every score is from 0 to 1"),  # one class: no sum over classes
        ([[1 + 2.0**-11]], "probabilities", "every score is from 0 to 1"),
        ([[1 + 2.0**-10]], "logits", "no score is below 0, but some are above 1"),
        ([[1.5], [0.0]], "logits", "no score is below 0, but some are above 1"),
        ([[-1.0], [0.0]], "logits", "no score is above 0, as for log-probabilities"),
        ([[-1.0, -2.0]], "logits", "no score is above 0, as for log-probabilities"),
        ([[-1.0], [0.5]], "logits", ""),
        ([[-1.0], [3.0]], "logits", ""),
        (
            [[math.log(0.25)], [math.log(0.75)]],
            "logits",
            "",
        ),  # softmax of log-probabilities gives the probabilities
    ],
)
def test_what_is_assumed_of_unknown_scores(scores: list[list[float]], kind: str, doubt: str) -> None:
    assumed, reason = assumed_kind(np.array(scores, np.float32))
    assert (str(assumed), reason) == (kind, doubt)


def test_sums_to_one_up_to_the_rounding_of_half_precision() -> None:
    """10 classes: each value and each of the additions of a float16 softmax rounds once, 18 roundings are allowed."""
    limit = 18 * 2.0**-11
    for excess, kind in ((0.98 * limit, "probabilities:exclusive"), (1.02 * limit, "probabilities")):
        scores = np.full((10, 3), 0.1, np.float32)
        scores[4, 1] += excess
        assert str(assumed_kind(scores)[0]) == kind
        scores[4, 1] -= 2 * excess
        assert str(assumed_kind(scores)[0]) == kind


def test_an_empty_map_of_scores_is_possible() -> None:
    empty = np.zeros((2, 0), np.float32)
    assert ScoreKind("probabilities").probabilities(empty).shape == (2, 0)
    assert str(assumed_kind(empty)[0]) == "probabilities:exclusive"


def test_softmax_of_large_logits_at_several_positions() -> None:
    """Each position by itself: a difference of 1 has the same probabilities at 1000 and at -1000."""
    scores = np.array([[[1000.0, -1000.0]], [[999.0, -1001.0]]], np.float32)
    high = 1 / (1 + math.exp(-1))
    found = ScoreKind("logits").probabilities(scores)
    np.testing.assert_allclose(found, [[[high, high]], [[1 - high, 1 - high]]], rtol=RELATIVE)


def test_sums_of_exactly_the_allowed_excess() -> None:
    """Two classes: 10 roundings of half precision, at one position of a map with two axes."""
    scores = np.full((2, 3, 4), 0.5, np.float64)
    scores[1, 2, 1] += 10 * 2.0**-11
    assert str(assumed_kind(scores)[0]) == "probabilities:exclusive"
    scores[1, 2, 1] += 2.0**-40
    assert str(assumed_kind(scores)[0]) == "probabilities"


def test_sums_are_not_rounded_to_the_type_of_the_scores() -> None:
    """Four classes: 12 roundings of half precision, and 2⁻²⁵ more, which a sum in float32 would round away."""
    scores = column(0.25, 0.25, 0.25, 0.25 + 12 * 2.0**-11)
    assert str(assumed_kind(scores)[0]) == "probabilities:exclusive"
    scores[3] += np.float32(2.0**-25)
    assert scores.sum(axis=0) == 1 + 12 * 2.0**-11
    assert str(assumed_kind(scores)[0]) == "probabilities"


def test_log_probabilities_up_to_the_rounding_of_half_precision() -> None:
    kind = ScoreKind("log-probabilities")
    assert kind.probabilities(np.array([[2.0**-11]])).tolist() == [[1.0]]
    with pytest.raises(BadInput, match=r"the largest score is .*; expected at most 0"):
        kind.probabilities(np.array([[2.0**-11 * 1.001]]))
    assert kind.probabilities(np.zeros((2, 0), np.float32)).shape == (2, 0)

"""Rejection of windows that belong to no class, against the definitions computed window by window."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.dense import ScoreMap
from onebyone.detection.detection_picture import heat
from onebyone.detection.rejection import Rejection
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels

GEOMETRY = Geometry((4, 4), (4, 4), (0, 0), (4, 4), (0, 0), True)


def logit_map(scores: np.ndarray, kind: str = "logits:exclusive") -> ScoreMap:
    """A map of windows that do not overlap, so that nothing is suppressed."""
    size = (4 * scores.shape[1], 4 * scores.shape[2])
    values, _, classes = kind.partition(":")
    labels = Labels(classes=("a", "b", "c"))
    return ScoreMap(
        scores.astype(np.float32), GEOMETRY, labels, size, kind=ScoreKind(values, classes or None)
    )


def random_logits(seed: int, spread: float = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (3, 8, 9)).astype(np.float32)


def expected(logits: np.ndarray, threshold: float, **criteria: float) -> set[tuple[int, int, int]]:
    """(class, row, column) of the detections, by the definitions in plain Python."""
    found = set()
    for i in range(logits.shape[1]):
        for j in range(logits.shape[2]):
            z = [float(v) for v in logits[:, i, j]]
            total = sum(math.exp(v) for v in z)
            p = [math.exp(v) / total for v in z]
            entropy = -sum(v * math.log(v) for v in p) / math.log(3)
            if entropy > criteria.get("max_entropy", 1) or math.log(total) < criteria.get("min_energy", -99):
                continue
            with_reject = total + (math.exp(criteria["reject"]) if "reject" in criteria else 0)
            found |= {(k, i, j) for k in range(3) if math.exp(z[k]) / with_reject >= threshold}
    return found


def places(found: Any) -> set[tuple[int, int, int]]:
    return {
        (k, int(y1 // 4), int(x1 // 4)) for k, (x1, y1, _, _) in zip(found.labels, found.boxes, strict=True)
    }


def test_detections_are_those_of_the_definitions() -> None:
    logits = random_logits(0)
    scores = logit_map(logits)
    everything = places(onebyone.detect(scores, threshold=0.4))
    assert everything == expected(logits, 0.4)
    for criteria in ({"max_entropy": 0.5}, {"min_energy": 2.5}, {"max_entropy": 0.7, "min_energy": 1.0}):
        found = places(onebyone.detect(scores, threshold=0.4, **criteria))
        assert found == expected(logits, 0.4, **criteria)
        assert 5 < len(found) < len(everything) - 5


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_reject_class_gets_all_but_a_share_of_the_negative_windows(share: float) -> None:
    negatives = [random_logits(seed, 1) for seed in (1, 2)]
    energies = sorted(
        math.log(sum(math.exp(v) for v in z)) for n in negatives for z in n.reshape(3, -1).T.tolist()
    )
    allowed = math.floor(share * len(energies))
    logit = energies[len(energies) - 1 - allowed]
    logits = random_logits(0)
    maps = [logit_map(n) for n in negatives]
    found = onebyone.detect(logit_map(logits), threshold=0.4, negatives=maps, negative_share=share)
    assert places(found) == expected(logits, 0.4, reject=logit)
    # no class has half of a window that the reject class gets
    of_negatives = [onebyone.detect(m, threshold=0.51, negatives=maps, negative_share=share) for m in maps]
    assert sum(len(d) for d in of_negatives) <= allowed


def test_unscored_windows_of_negatives_do_not_count() -> None:
    from onebyone.detection.rejection import fitted_reject_logit

    logits = random_logits(3)
    partly = logits.copy()
    partly[:, :4] = np.nan
    assert fitted_reject_logit([logit_map(partly)], 0.1) == fitted_reject_logit(
        [logit_map(logits[:, 4:])], 0.1
    )
    with pytest.raises(BadInput, match="no window has scores"):
        fitted_reject_logit([logit_map(np.full((3, 2, 2), np.nan))])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "probabilities:exclusive",
            {"min_energy": 1.0},
            "min_energy: needs logits; the scores are probabilities",
        ),
        ("logits:multi-label", {"max_entropy": 0.5}, "max_entropy: needs exclusive classes"),
        ("logits", {"max_entropy": 1.5}, "max_entropy=1.5: expected a number from 0 to 1"),
        ("logits", {"min_energy": math.inf}, "min_energy=inf: expected a finite number"),
        ("logits", {"negative_share": 1.0}, "negative_share=1.0: expected a number from 0 to below 1"),
    ],
)
def test_criteria_that_do_not_exist_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    scores = np.full((3, 2, 2), 1 / 3) if kind.startswith("prob") else random_logits(0)
    negatives = [logit_map(random_logits(1))] if "negative_share" in options else []
    with pytest.raises(BadInput, match=message):
        onebyone.detect(logit_map(scores, kind), negatives=negatives, **options)


def test_the_command(tmp_path: Path) -> None:
    logit_map(random_logits(0)).save(tmp_path / "scores.npz")
    logit_map(random_logits(1, 1)).save(tmp_path / "empty.npz")
    words = ["detect", str(tmp_path / "scores.npz"), "--threshold", "0.4", "--json"]
    counts = {}
    for name, options in {
        "all": [],
        "entropy": ["--max-entropy", "0.5"],
        "energy": ["--min-energy", "2.5"],
        "reject": ["--negatives", str(tmp_path / "empty.npz"), "--negative-share", "0.05"],
    }.items():
        done = CliRunner().invoke(app, [*words, *options])
        assert done.exit_code == 0, done.stderr
        counts[name] = len(json.loads(done.stdout)["objects"])
    assert min(counts[name] for name in ("entropy", "energy", "reject")) > 0
    assert max(counts[name] for name in ("entropy", "energy", "reject")) < counts["all"]
    bad = CliRunner().invoke(app, [*words, "--negatives", str(tmp_path / "missing.npz")])
    assert bad.exit_code == 2
    assert len(bad.stderr.strip().splitlines()) == 1


def test_heat_maps_show_the_reject_class_and_no_rejected_window() -> None:
    """One pixel a window: the largest probability beside the reject class, 0 for windows of too large an entropy."""
    logits = random_logits(3)
    rejection = Rejection(max_entropy=0.6, reject_logit=2.0)
    shown = heat([logit_map(logits)], (8, 9), ["b"], rejection)
    kept = np.zeros((8, 9))
    for k, i, j in expected(logits, 0, max_entropy=0.6):
        z = np.exp(logits[:, i, j].astype(np.float64))
        kept[i, j] = max(kept[i, j], z[k] / (z.sum() + math.exp(2.0)) if k != 1 else 0)
    assert 10 < np.count_nonzero(kept) < 62
    np.testing.assert_allclose(shown, kept, rtol=1e-6)  # some roundings of float32, each 6e-8
    with pytest.raises(BadInput, match="reject_logit: needs logits"):
        heat([logit_map(np.full((3, 2, 2), 0.3), "probabilities:exclusive")], (2, 2), (), rejection)


def test_probabilities_that_half_precision_rounded_below_zero_count_as_zero() -> None:
    """Such a window is certain: its entropy is 0, as with a probability of exactly 0."""
    scores = np.array([[1.0, 1.0, 0.875], [-(2.0**-12), 0.0, 0.125]], np.float32)
    assert Rejection(max_entropy=0.0).accepted(scores, ScoreKind("probabilities")).tolist() == [
        True,
        True,
        False,
    ]


def test_detections_are_drawn_on_the_heat_of_the_windows_that_were_not_rejected() -> None:
    """A threshold that leaves no box, so that the picture is the heat map alone, black where it is 0."""
    scores = logit_map(random_logits(4))
    found = onebyone.detect(scores, threshold=1, max_entropy=0.5)
    drawn = np.asarray(found.draw(None, heat=[scores]))[2::4, 2::4]  # the middle of each window
    accepted = {(i, j) for _, i, j in expected(scores.scores, 0, max_entropy=0.5)}
    assert {(i, j) for i, j in np.ndindex(8, 9) if drawn[i, j].any()} == accepted
    assert 5 < len(accepted) < 67

"""`scan` and `detect`: what the scores are, which output is taken, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onebyone.dense import ScoreMap
from onebyone.laws.scores import ScoreKind
from tests.cli.conftest import Run


@pytest.fixture
def image(folder: Path) -> str:
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(12, 12, 3)).astype(np.float32))
    return "x.npy"


def test_a_sigmoid_head_from_scan_to_objects(run: Run, image: str) -> None:
    done = run("scan", ":sigmoid", image, "--window", 8, "--out", "s.npz", "--json")
    assert done.json["scores"] == "probabilities:multi-label"
    assert (done.json["counted"], done.json["classes"]) == ("probability at least 0.5", {"0": 0})
    assert run("detect", "s.npz", "--json").json["objects"] == []
    low = run("detect", "s.npz", "--threshold", 0.0005, "--iou", 1, "--json").json["objects"]
    assert len(low) == 25
    assert low[0]["score"] == pytest.approx(0.001, rel=1e-5)
    # what is said on the command line counts: the same numbers as logits are 1 / (1 + exp(-0.001))
    wrong = run("detect", "s.npz", "--scores", "logits", "--iou", 1, "--json").json["objects"]
    assert wrong[0]["score"] == pytest.approx(0.50025, rel=1e-5)


def test_scores_are_stated_when_a_network_is_made_or_scanned(run: Run, image: str) -> None:
    made = run("convolutionalize", ":plain", "--window", 16, "--scores", "logits:multi-label", "--json")
    assert made.json["outputs"] == [{"name": "0", "channels": 5, "scores": "logits:multi-label"}]
    run("scan", ":sigmoid", image, "--window", 8, "--scores", "log-probabilities", "-o", "s.npz")
    assert ScoreMap.load("s.npz").kind == ScoreKind("log-probabilities")
    refused = run("detect", "s.npz")
    assert refused.code == 2
    assert "score_kind" not in refused.err
    assert "the scores reach up to 0.001; expected at most 0" in refused.err


def test_a_map_of_unknown_scores_says_what_was_assumed(run: Run, image: str) -> None:
    run("scan", ":sigmoid", image, "--window", 8, "-o", "s.npz")
    held = ScoreMap.load("s.npz")
    ScoreMap(held.scores, held.geometry, held.labels, held.image_size).save("u.npz")
    done = run("detect", "u.npz", "--json")
    assert done.json["objects"] == []
    (note,) = done.json["notes"]
    assert "every score lies from 0 to 1, so they are taken as probabilities" in note
    assert "--scores probabilities to confirm it" in note
    assert "note:" in run("detect", "u.npz").err


@pytest.mark.parametrize(
    ("output", "channels", "kind"), [("scores", 2, "probabilities:exclusive"), ("1", 4, "logits")]
)
def test_an_output_is_chosen_by_name_or_number(
    run: Run, image: str, output: str, channels: int, kind: str
) -> None:
    words = (
        "scan",
        ":named",
        image,
        "--window",
        8,
        "--classes",
        "face,none",
        "--output",
        output,
        "-o",
        "s.npz",
    )
    assert run(*words, "--json").json["scores"] == kind
    held = ScoreMap.load("s.npz")
    assert held.scores.shape == (channels, 5, 5)
    assert held.labels.classes == (("face", "none") if channels == 2 else ())


def test_an_output_that_does_not_exist(run: Run, image: str) -> None:
    done = run("scan", ":named", image, "--window", 8, "--output", "logits")
    assert done.code == 2
    assert "--output logits, but the network gives 2 outputs: scores, boxes" in done.err

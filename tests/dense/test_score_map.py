"""Score maps: probabilities, saving and loading, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onebyone.dense import ScoreMap
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels

GEOMETRY = Geometry((4, 4), (2, 3), (0, 0), (4, 4), (0, 0), True)
LABELS = Labels(("a", "b", "c"), 0.5, (1.0,), (2.0,), "L", ("c",))


def score_map(scores: np.ndarray | None = None, **other: object) -> ScoreMap:
    if scores is None:
        scores = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
    return ScoreMap(scores, GEOMETRY, **{"labels": LABELS, "image_size": (10, 11), "seconds": 1.5, **other})


def test_probabilities_are_a_softmax_per_position() -> None:
    scores = score_map(
        np.array([1000.0, 999.0, -1000.0], np.float32)[:, None, None] * np.ones((3, 4, 3), np.float32)
    )
    p = scores.probabilities()
    e = np.exp(-1.0)
    np.testing.assert_allclose(p[:, 1, 2], [1 / (1 + e), e / (1 + e), 0], rtol=2**-20)
    again = score_map(p)
    assert again.probabilities() is p  # they sum to 1: probabilities already
    np.testing.assert_allclose(
        score_map(np.log(p + 1e-30)).probabilities(), p, atol=2**-20
    )  # log-probabilities
    assert replace(again, kind=ScoreKind("logits")).probabilities()[0, 0, 0] < p[0, 0, 0]
    with pytest.raises(BadInput, match=r"score_kind='probabilities': the scores range from -1000 to 1000"):
        replace(scores, kind=ScoreKind("probabilities")).probabilities()


def test_a_single_class_goes_through_the_logistic_function() -> None:
    values = np.array([-200.0, 0.0, 200.0], np.float32)[None, None, :] * np.ones((1, 4, 1), np.float32)
    scores = score_map(values.astype(np.float32), labels=Labels())
    np.testing.assert_array_equal(scores.probabilities()[0, 0], [np.float32(np.exp(-200.0)), 0.5, 1.0])


def test_windows_are_in_pixels_and_only_inside_the_map() -> None:
    scores = score_map()
    assert scores.window_at((3, 2)) == ((6, 10), (6, 10))
    assert (scores.positions, scores.windows, scores.classes) == ((4, 3), 12, ("a", "b", "c"))
    for index in ((4, 0), (0, -1)):
        with pytest.raises(BadInput, match="is outside the map of"):
            scores.window_at(index)


def test_a_saved_map_is_loaded_unchanged(tmp_path: Path) -> None:
    scores = score_map(kind=ScoreKind("logits", "multi-label"), device="cpu")
    scores.save(tmp_path / "map.npz")
    back = ScoreMap.load(tmp_path / "map.npz")
    np.testing.assert_array_equal(back.scores, scores.scores)
    for name in ("geometry", "labels", "image_size", "seconds", "kind", "device"):
        assert getattr(back, name) == getattr(scores, name)
    assert [p.name for p in tmp_path.iterdir()] == ["map.npz"]
    assert "12 windows (4×3 positions, 3 classes) of an image of 10×11 pixels" in str(back)


def test_files_that_are_not_a_map_are_refused(tmp_path: Path) -> None:
    score_map().save(tmp_path / "map.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "map.npz").read_bytes()[:-100])
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "code.npz", meta=np.array([object()]), scores=np.zeros(1))
    for name in ("cut", "text", "other", "code"):
        with pytest.raises(BadInput, match="is not a score map"):
            ScoreMap.load(tmp_path / f"{name}.npz")
    with pytest.raises(BadInput, match=r"the name must end in \.npz"):
        score_map().save(tmp_path / "map.txt")


def test_a_map_must_fit_its_geometry_and_labels() -> None:
    with pytest.raises(BadInput, match=r"scores have \(4, 4\) positions; expected \(4, 3\) by the geometry"):
        score_map(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(BadInput, match="labels name 3 classes and the network gives 2"):
        score_map(np.zeros((2, 4, 3), np.float32))

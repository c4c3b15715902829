"""Networks that are not exact: their agreement with crops is measured, reported, warned of and enforced."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onebyone
from onebyone.dense import ScoreMap
from onebyone.dense.agreement import Agreement, default_sample_size
from onebyone.errors import BadInput, InexactWarning, NotEquivalent
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import read_kind
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule, load_dense
from onebyone.verification import verify
from tests.pytorch.inexact_networks import pitch

TONE = np.sin(2 * np.pi * np.arange(3000) / 11).astype(np.float32)[:, None]
NOISE = np.random.default_rng(2).normal(size=(3000, 1)).astype(np.float32)


def lifted(network: torch.nn.Module) -> ConvolutionalizedModule:
    with pytest.warns(InexactWarning, match=r"962 pixels is 15 times the window of 64 \(more than 4\)"):
        return convolutionalize(network, (64,))


def cropped(network: torch.nn.Module, signal: np.ndarray[Any, Any], stride: int) -> np.ndarray[Any, Any]:
    """The network on every window, by hand: (classes, positions)."""
    starts = range(0, len(signal) - 63, stride)
    batch = torch.stack([torch.from_numpy(signal[s : s + 64, 0])[None] for s in starts])
    with torch.no_grad():
        predictions: np.ndarray[Any, Any] = network(batch).numpy().T
    return predictions


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("signal", [TONE, NOISE], ids=["tone", "noise"])
def test_a_scan_measures_its_agreement_with_crops(saved: bool, signal: Any, tmp_path: Path) -> None:
    network = pitch()
    d: Any = lifted(network)
    if saved:
        d.save(tmp_path / "pitch.pt2")
        d = load_dense(tmp_path / "pitch.pt2")
    with pytest.warns(InexactWarning, match="fewer than 95%"):
        s = onebyone.scan(d, signal, compared=10**6, min_agreement=0)
    assert s.agreement is not None
    right = cropped(network, signal, 32)
    assert s.agreement.windows == right.shape[1] == 92
    assert s.agreement.same == int((right.argmax(0) == s.scores.argmax(0)).sum())
    assert s.agreement.largest_difference == pytest.approx(np.abs(right - s.scores).max(), abs=1e-5)
    assert s.agreement.share < 0.5
    assert str(s.agreement) in str(s)
    with pytest.warns(InexactWarning), pytest.raises(NotEquivalent, match=r"min_agreement=0\.5") as error:
        onebyone.scan(d, signal, out=tmp_path / "s.npz")
    kept = ScoreMap.load(tmp_path / "s.npz")
    assert kept.agreement == error.value.verification, "the map is saved with its agreement"
    assert kept.agreement.windows == 11


@pytest.mark.parametrize("shifts", [1, 4])
def test_cropping_every_window_is_a_mode(shifts: int, tmp_path: Path) -> None:
    network = pitch()
    lifted(network).save(tmp_path / "pitch.pt2")
    d = load_dense(tmp_path / "pitch.pt2")
    s = onebyone.scan(d, TONE, mode="windows", shifts=shifts)
    right = cropped(network, TONE, 32 // shifts)
    np.testing.assert_allclose(s.scores, right, rtol=0, atol=1e-5)
    assert s.geometry.exact
    assert s.geometry.stride == (32 // shifts,)
    assert s.agreement is None
    assert s.kind == onebyone.scan(d, TONE, min_agreement=0, compared=0).kind


def test_exact_networks_and_single_classes_are_not_measured() -> None:
    exact = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    one = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 1)
    )
    for network in (exact, one):
        s = onebyone.scan(convolutionalize(network, 8), np.zeros((20, 20, 3), np.float32))
        assert s.agreement is None


def test_a_saved_map_keeps_its_agreement(tmp_path: Path) -> None:
    geometry = Geometry((4,), (2,), (0,), (8,), (2,), False, ("padding",))
    scores = np.zeros((2, 3), np.float32)
    for agreement in (None, Agreement(7, 8, 0.25)):
        s = ScoreMap(scores, geometry, onebyone.Labels(), (8,), agreement=agreement)
        s.save(tmp_path / "s.npz")
        assert ScoreMap.load(tmp_path / "s.npz").agreement == agreement


def test_detecting_reads_the_agreement(tmp_path: Path) -> None:
    geometry = Geometry((4, 4), (2, 2), (0, 0), (8, 8), (2, 2), False, ("padding",))
    scores = np.zeros((2, 3, 3), np.float32)
    s = ScoreMap(
        scores, geometry, onebyone.Labels(), (8, 8), kind=read_kind("logits"), agreement=Agreement(3, 8, 0.25)
    )
    s.save(tmp_path / "s.npz")
    with pytest.raises(NotEquivalent, match="only 3 of 8 sampled windows"):
        onebyone.detect(tmp_path / "s.npz")
    with pytest.warns(InexactWarning, match="fewer than 95%"):
        onebyone.detect(tmp_path / "s.npz", min_agreement=0.25)


@pytest.mark.parametrize(
    ("same", "warned", "refused"),
    [(20, False, False), (19, False, False), (18, True, False), (9, True, True)],
)
def test_the_thresholds_of_warning_and_refusal(same: int, warned: bool, refused: bool) -> None:
    agreement = Agreement(same, 20, 0.0)
    assert agreement.enough is not warned
    if refused:
        with pytest.raises(NotEquivalent, match=f"only {same} of 20"):
            agreement.require(0.5)
    else:
        agreement.require(0.5)
    with pytest.raises(BadInput, match=r"min_agreement=1\.5: expected a share"):
        agreement.require(1.5)


def test_the_crops_cost_little_on_large_images() -> None:
    geometry = Geometry((224, 224), (32, 32), (0, 0), (400, 400), (90, 90), False, ("padding",))
    for side in (224, 1000, 3000, 20000):
        crops = default_sample_size(geometry, (side, side))
        assert 8 <= crops <= 64
        assert crops == 8 or crops * 224**2 <= side**2 / 4


@pytest.mark.parametrize("floor", [0.5, 0.0])
def test_verify_enforces_min_agreement(floor: float) -> None:
    network = pitch()
    x = torch.from_numpy(TONE.T[None])
    v = verify(network, lifted(network), x, gradients=False, min_agreement=floor)
    assert v.dense is not None
    assert v.class_agreement is not None
    assert v.class_agreement < 0.5
    assert v.equivalent is (floor == 0)
    messages = v.problems if floor else v.warnings
    assert any("of 92 windows have the same best class as when cropped" in m for m in messages)
    assert ("warning: " in str(v)) is (floor == 0)
    assert v.to_dict()["warnings"] == list(v.warnings)


def test_no_warning_for_a_padded_network_that_agrees() -> None:
    """One bias decides the class of every window, so the scores differ and the best classes do not."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 3)
    )
    with torch.no_grad():
        network[2].bias[1] = 100.0  # type: ignore[union-attr, operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = onebyone.scan(
            convolutionalize(network, 8), np.random.default_rng(0).random((30, 30, 3)).astype(np.float32)
        )
    assert s.agreement is not None
    assert s.agreement.share == 1
    assert s.agreement.largest_difference > 0


def test_a_class_map_has_no_windows_to_crop() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3)
    )
    d = convolutionalize(network, 8, head="cam")
    image = np.zeros((20, 20, 3), np.float32)
    assert onebyone.scan(d, image).agreement is None
    with pytest.raises(BadInput, match="head='cam'"):
        onebyone.scan(d, image, mode="windows")
    with pytest.raises(BadInput, match="expected 'dense' or 'windows'"):
        onebyone.scan(d, image, mode="crops")


class TwoHeads(torch.nn.Module):
    """A padded network that gives scores and box regressions."""

    def __init__(self, probabilities: bool) -> None:
        super().__init__()
        self.trunk = torch.nn.Conv2d(1, 4, 5, padding=2)
        self.scores, self.boxes = torch.nn.Conv2d(4, 2, 8), torch.nn.Conv2d(4, 4, 8)
        self.probabilities = probabilities

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.trunk(x))
        scores = self.scores(y).flatten(1)
        return {
            "boxes": self.boxes(y).flatten(1),
            "scores": scores.softmax(1) if self.probabilities else scores,
        }


@pytest.mark.parametrize(
    ("probabilities", "classes", "reason"),
    [
        (True, (), "because output 'scores' gives probabilities"),
        (False, ("none", "face"), "because it has 4 channels for 2 named classes"),
    ],
)
def test_box_regressions_are_not_compared_by_their_largest_number(
    probabilities: bool, classes: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    d = convolutionalize(TwoHeads(probabilities), 8, labels=onebyone.Labels(classes))
    image = np.random.default_rng(0).normal(size=(30, 30, 1)).astype(np.float32)
    boxes = onebyone.scan(d, image, output="boxes", out=tmp_path / "boxes.npz")
    assert boxes.agreement is None
    assert reason in boxes.agreement_skipped
    assert f"agreement with crops: not measured; {boxes.agreement_skipped}" in str(boxes)
    assert ScoreMap.load(tmp_path / "boxes.npz").agreement_skipped == boxes.agreement_skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)  # of a small share, which is not the subject here
        scores = onebyone.scan(d, image, output="scores", min_agreement=0)
        stated = onebyone.scan(d, image, output="boxes", score_kind="logits", min_agreement=0)
    assert scores.agreement is not None
    assert scores.agreement_skipped == ""
    assert stated.agreement is not None, "numbers that are stated to be logits are compared"
    assert onebyone.scan(d, image, output="boxes", compared=0).agreement_skipped == ""


def test_two_outputs_of_logits_are_both_compared() -> None:
    d = convolutionalize(TwoHeads(False), 8)
    image = np.random.default_rng(0).normal(size=(30, 30, 1)).astype(np.float32)
    for output in ("boxes", "scores"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InexactWarning)
            assert onebyone.scan(d, image, output=output, min_agreement=0).agreement is not None

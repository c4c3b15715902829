"""Box regressions: class scores and offsets per window, as in MTCNN's networks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import ScoreMap
from onebyone.detection import detect
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels

GEOMETRY = Geometry((12, 10), (2, 3), (0, 0), (12, 10), (0, 0), True)
SIZE = (20, 31)
SHAPE = GEOMETRY.positions(SIZE)


def scores_at(*positions: tuple[int, int, int]) -> ScoreMap:
    values = np.zeros((2, *SHAPE), np.float32)
    for k, i, j in positions:
        values[k, i, j] = 0.75
    return ScoreMap(values, GEOMETRY, Labels(), SIZE, kind=ScoreKind("probabilities"))


def boxes_of(values: np.ndarray) -> ScoreMap:
    return ScoreMap(values.astype(np.float32), GEOMETRY, Labels(), SIZE)


def test_corners_by_hand() -> None:
    offsets = np.zeros((4, *SHAPE))
    offsets[:, 3, 2] = [0.5, -0.25, 0.125, 0.5]
    detections = detect(scores_at((0, 3, 2)), boxes=boxes_of(offsets))
    # the window at row 3·2 = 6 and column 2·3 = 6 is 10 wide and 12 high; y2 = 18 + 6 is clipped to 20
    np.testing.assert_array_equal(detections.boxes, [[6 + 5, 6 - 3, 16 + 1.25, 20]])
    assert detect(scores_at((0, 3, 2))).boxes.tolist() == [[6, 6, 16, 18]]


def test_centre_and_size_by_hand() -> None:
    offsets = np.zeros((4, *SHAPE))
    offsets[:, 3, 2] = [0.5, -0.25, math.log(0.5), math.log(0.25)]
    detections = detect(scores_at((0, 3, 2)), boxes=boxes_of(offsets), box_format="center-size")
    # centre (11, 12) moves to (16, 9); 10 × 12 becomes 5 × 3
    np.testing.assert_allclose(detections.boxes, [[13.5, 7.5, 18.5, 10.5]], rtol=2**-22)


def test_a_size_that_overflows_is_the_whole_image() -> None:
    """exp(1000) is infinite: the box reaches every side of the image, without a warning."""
    offsets = np.zeros((4, *SHAPE))
    offsets[2:, 3, 2] = 1000
    detections = detect(scores_at((0, 3, 2)), boxes=boxes_of(offsets), box_format="center-size")
    assert detections.boxes.tolist() == [[0, 0, SIZE[1], SIZE[0]]]


def test_each_class_has_its_own_offsets_and_suppression_compares_the_moved_boxes() -> None:
    offsets = np.zeros((8, *SHAPE))
    offsets[4:, 3, 2] = 1  # class 1 only: moved by a whole window, away from class 0
    scores = scores_at((0, 3, 2), (1, 3, 2))
    assert len(detect(scores, per_class=False)) == 1
    detections = detect(scores, boxes=boxes_of(offsets), per_class=False)
    assert sorted(detections.boxes.tolist()) == [[6, 6, 16, 18], [16, 18, 26, 20]]
    # two windows moved onto each other are one object
    offsets = np.zeros((4, *SHAPE))
    offsets[[0, 2], 1, 0], offsets[[0, 2], 1, 4] = 0.6, -0.6
    assert len(detect(scores_at((0, 1, 0), (0, 1, 4)))) == 2
    assert detect(scores_at((0, 1, 0), (0, 1, 4)), boxes=boxes_of(offsets)).boxes.tolist() == [[6, 2, 16, 14]]


def test_boxes_without_area_are_removed() -> None:
    offsets = np.zeros((4, *SHAPE))
    offsets[[0, 2], 3, 2] = -5  # to the left of the image
    offsets[:, 1, 0] = [0.5, 0.5, -0.75, -0.75]  # inside out
    assert len(detect(scores_at((0, 3, 2), (0, 1, 0)), boxes=boxes_of(offsets))) == 0


class TwoHeads(nn.Module):
    """Probabilities and offsets of windows of 12×12, by name: the form of MTCNN's P-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.PReLU(5)
        )
        self.scores, self.boxes = nn.Conv2d(5, 2, 3), nn.Conv2d(5, 4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.trunk(x)
        return {"boxes": self.boxes(y), "scores": self.scores(y).softmax(1)}


def test_a_network_with_two_heads_against_crops() -> None:
    torch.manual_seed(3)
    net = TwoHeads().eval()
    image = np.random.default_rng(5).normal(size=(20, 24, 3)).astype(np.float32)
    d = onebyone.convolutionalize(net, window=12)
    labels = Labels(("none", "face"), background=("none",))
    scores, boxes = (onebyone.scan(d, image, labels=labels, output=name) for name in ("scores", "boxes"))
    detections = detect(scores, boxes=boxes, threshold=0.5, iou=1)
    expected = []
    for y in range(0, 9, 2):
        for x in range(0, 13, 2):
            crop = torch.from_numpy(image[y : y + 12, x : x + 12]).permute(2, 0, 1)[None]
            with torch.no_grad():
                one = net(crop)
            p = one["scores"][0, 1, 0, 0].item()
            a, b, c, e = one["boxes"][0, :, 0, 0].tolist()
            box = [max(0, x + 12 * a), max(0, y + 12 * b), min(24, x + 12 + 12 * c), min(20, y + 12 + 12 * e)]
            if p >= 0.5 and box[0] < box[2] and box[1] < box[3]:
                expected.append([p, *box])
    assert 0 < len(expected) < 35
    assert set(detections.names) == {"face"}
    got = sorted([s, *b] for s, b in zip(detections.scores.tolist(), detections.boxes.tolist(), strict=True))
    np.testing.assert_allclose(got, sorted(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": boxes_of(np.zeros((5, *SHAPE)))}, "boxes: the map has 5 channels; expected 4, or 4 for each of 2"),
        ({"boxes": replace(boxes_of(np.zeros((4, *SHAPE))), geometry=replace(GEOMETRY, window=(12, 9)),
                           image_size=(20, 30))}, "has other windows than the scores"),
        ({"boxes": boxes_of(np.full((4, *SHAPE), np.nan))}, "boxes: the map has values that are not finite"),
        ({"boxes": boxes_of(np.zeros((4, *SHAPE))), "box_format": "xywh"}, "expected corners or center-size"),
    ],
)  # fmt: skip
def test_regressions_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        detect(scores_at((0, 3, 2)), **change)

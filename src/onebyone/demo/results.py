"""The results of the demo's steps, which the page shows, and the settings of its detections."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from torch import nn

from onebyone.comparison import Comparison
from onebyone.comparison.digits import Digits
from onebyone.demo.average_precision import Score
from onebyone.demo.digit_page import DigitPage
from onebyone.dense import ScoreMap
from onebyone.detection import Detections
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.verification import Verification

MIN_SCORE = 0.05
"""Confidence threshold of the detections that are scored."""
SHOWN_SCORE = 0.9
"""Confidence threshold of the detections that are drawn."""
MAX_IOU = 0.3
"""IoU threshold for non-maximum suppression over all classes, because digits do not overlap."""

REPORT = "report.html"
"""The page of the comparison, beside that of the demo; each links to the other."""


@dataclass(frozen=True)
class Trained:
    """The trained network with its batch norms folded, and the digits that it was trained and is tested on."""

    network: nn.Sequential
    losses: list[float]
    train_digits: Digits
    test_digits: Digits
    hard_crops: int
    accuracy: float
    accuracy_on_photographs: float


@dataclass(frozen=True)
class Timed:
    """The results of both scans of the page, and the seconds of every repeat."""

    dense: ScoreMap
    windows: ScoreMap
    dense_seconds: tuple[float, ...]
    windows_seconds: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """The quotient of the medians."""
        return statistics.median(self.windows_seconds) / statistics.median(self.dense_seconds)


@dataclass(frozen=True)
class Difference:
    """The comparison of the two score maps, every value against its own derived bound.

    `largest` is the largest |Δ|, `bound` the smallest bound, `ratio` the largest quotient of |Δ| and its bound, and
    `same_class` the share of windows with the same predicted class. The `fine_` fields are the same comparison in
    float64 on `fine_windows` of the windows, where rounding is so small that it cannot hide any other error.
    """

    equal: bool
    largest: float
    bound: float
    ratio: float
    same_class: float
    fine_windows: int
    fine_largest: float
    fine_bound: float


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page shows."""

    seed: int
    trained: Trained
    converted: ConvolutionalizedModule
    verification: Verification
    page: DigitPage
    timed: Timed
    difference: Difference
    detections: Detections
    score: Score
    comparison: Comparison
    macs_dense: int
    macs_windows: int
    seconds: float
    step_seconds: dict[str, float]

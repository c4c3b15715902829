"""What `evaluate` returns: average precision by class, and precision and recall over confidence thresholds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.records import Readable, html_result, html_table, table

HEADERS = (
    "class",
    "objects",
    "detections",
    "AP",
    "AP50",
    "AP75",
    "best threshold",
    "precision",
    "recall",
    "F1",
)
POINT_HEADERS = ("threshold", "precision", "recall", "F1", "correct", "wrong", "missed")


@dataclass(frozen=True)
class OperatingPoint:
    """The detections whose score reaches `threshold`, at an IoU of 0.5: `correct`, `wrong`, and objects `missed`.

    >>> OperatingPoint(0.5, correct=3, wrong=1, missed=3).f1
    0.6
    """

    threshold: float
    correct: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float | None:
        """The share of the detections that are correct; None without detections."""
        found = self.correct + self.wrong
        return self.correct / found if found else None

    @property
    def recall(self) -> float:
        """The share of the objects that were detected."""
        return self.correct / (self.correct + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall: 2·correct / (2·correct + wrong + missed)."""
        return 2 * self.correct / (2 * self.correct + self.wrong + self.missed)

    @property
    def shown_threshold(self) -> str:
        """The threshold rounded down to six decimals, so that the detection that has this score reaches it.

        >>> OperatingPoint(0.8999999761581421, 1, 0, 0).shown_threshold
        '0.899999'
        """
        return f"{math.floor(self.threshold * 1e6) / 1e6:g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}

    def cells(self) -> tuple[str, ...]:
        """The cells under `POINT_HEADERS`."""
        precision = "–" if self.precision is None else f"{self.precision:.3f}"
        counts = (str(self.correct), str(self.wrong), str(self.missed))
        return (self.shown_threshold, precision, f"{self.recall:.3f}", f"{self.f1:.3f}", *counts)


@dataclass(frozen=True)
class ClassEvaluation:
    """One class: `ap` is the mean over IoU 0.50, 0.55, …, 0.95; `ap50` and `ap75` are at one IoU.

    `best` has the threshold with the largest F1; None without detections.
    """

    name: str
    objects: int
    detections: int
    ap: float
    ap50: float
    ap75: float
    best: OperatingPoint | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "best": None if self.best is None else self.best.to_dict()}

    def cells(self) -> tuple[str, ...]:
        """The cells under `HEADERS`."""
        values = (f"{self.ap:.3f}", f"{self.ap50:.3f}", f"{self.ap75:.3f}")
        best = ("–",) * 4 if self.best is None else self.best.cells()[:4]
        return (self.name, str(self.objects), str(self.detections), *values, *best)


@dataclass(frozen=True)
class Evaluation(Readable):
    """Detections against ground truth, as COCO evaluates boxes.

    `map`, `map50` and `map75` are the means over the classes that the ground truth has objects of. `points` are
    precision and recall of all classes together at the confidence thresholds 0.00, 0.05, …, 0.95, and `best` is the
    threshold with the largest F1, of all scores that occur; None without detections. `max_detections` is the number of
    detections of each image and class that count.
    """

    map: float
    map50: float
    map75: float
    classes: tuple[ClassEvaluation, ...]
    points: tuple[OperatingPoint, ...]
    best: OperatingPoint | None
    images: int
    max_detections: int
    notes: tuple[str, ...] = ()

    def headline(self) -> str:
        """The means, in one line."""
        best = (
            ""
            if self.best is None
            else f", best F1 {self.best.f1:.3f} at threshold {self.best.shown_threshold}"
        )
        return f"mAP {self.map:.3f}, mAP50 {self.map50:.3f}, mAP75 {self.map75:.3f}{best}"

    def thresholds(self) -> dict[str, float]:
        """The threshold with the largest F1 of each class that has detections, as `detect` takes thresholds."""
        return {c.name: c.best.threshold for c in self.classes if c.best is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "mAP": self.map,
            "mAP50": self.map50,
            "mAP75": self.map75,
            "best": None if self.best is None else self.best.to_dict(),
            "classes": [c.to_dict() for c in self.classes],
            "points": [p.to_dict() for p in self.points],
            "images": self.images,
            "max_detections": self.max_detections,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = [c.cells() for c in self.classes]
        return "\n".join([self.headline(), table(HEADERS, rows), *self.notes])

    def _repr_html_(self) -> str:
        return html_result(
            self.headline(), html_table(HEADERS, [c.cells() for c in self.classes]), notes=self.notes
        )


def operating_points(
    scores: NDArray[np.float64], correct: NDArray[np.bool_], objects: int, thresholds: NDArray[np.float64]
) -> list[OperatingPoint]:
    """Precision and recall of the detections whose score reaches each threshold.

    Matching goes from the best score down, so leaving out the detections below a threshold does not change the others.

    >>> operating_points(np.array([0.9, 0.4]), np.array([True, False]), 2, np.array([0.5]))
    [OperatingPoint(threshold=0.5, correct=1, wrong=0, missed=1)]
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([[0], np.cumsum(correct[order])])
    reached = np.searchsorted(-scores[order], -thresholds, side="right")
    return [
        OperatingPoint(float(t), int(hits[n]), int(n - hits[n]), int(objects - hits[n]))
        for t, n in zip(thresholds, reached, strict=True)
    ]


def best_point(
    scores: NDArray[np.float64], correct: NDArray[np.bool_], objects: int
) -> OperatingPoint | None:
    """The point with the largest F1 of all scores that occur, the highest of equal ones; None without any.

    >>> best_point(np.array([0.9, 0.4, 0.3]), np.array([True, False, True]), 2)
    OperatingPoint(threshold=0.3, correct=2, wrong=1, missed=0)
    """
    if not len(scores) or not objects:
        return None
    thresholds = np.unique(scores)[::-1]
    return max(operating_points(scores, correct, objects, thresholds), key=lambda point: point.f1)

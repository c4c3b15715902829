"""R4: one dense pass of a classifier over a large image against cropping every window: quality and speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from onebyone.comparison.claim_result import Figures, Verdict, holds_when, not_as_said, not_available
from onebyone.comparison.digits import SIDE, Digits, DigitSplit, load_digits, train
from onebyone.dense import Dense, scan, scan_windows
from onebyone.detection import Detections, detect
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.records import Labels
from onebyone.verification import verify

CLASSES = (*(str(d) for d in range(10)), "background")
LABELS = Labels(classes=CLASSES, colour_order="L", background=("background",))
PAGE_SIZE = (72, 120)
NOISE = 0.1
STEPS = 800


class NoisyPage:
    """A noisy image with digits at random positions that do not touch.

    `image` is (H, W) in [0, 1]; `corners` (n, 2) are the upper left corners (y, x) of the digits, `labels` (n,)
    their classes.
    """

    def __init__(self, digits: Digits, seed: int, size: Sequence[int] = PAGE_SIZE) -> None:
        generator = torch.Generator().manual_seed(seed)
        ink = torch.rand(*size, generator=generator) * NOISE
        corners: list[tuple[int, int]] = []
        chosen: list[int] = []
        for row in torch.randperm(len(digits), generator=generator).tolist():
            y, x = (int(torch.randint(n - SIDE + 1, (1,), generator=generator)) for n in size)
            # at least two pixels apart, because non-maximum suppression merges overlapping boxes
            if all(max(abs(y - v), abs(x - u)) >= SIDE + 2 for v, u in corners):
                corners.append((y, x))
                chosen.append(row)
                ink[y : y + SIDE, x : x + SIDE] += digits.ink[row]
            if len(corners) * SIDE * SIDE * 4 > size[0] * size[1]:
                break
        self.image = ink.clamp(0, 1)
        self.corners = torch.tensor(corners)
        self.labels = digits.labels[torch.tensor(chosen)]

    def windows(self) -> tuple[Tensor, Tensor]:
        """Training windows (n, 1, 8, 8) and their labels: windows on a digit, and background windows.

        A window is background if no digit is within two pixels of its position; windows closer to a digit, but not
        on it, are left out.
        """
        every = self.image.unfold(0, SIDE, 1).unfold(1, SIDE, 1)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in every.shape[:2]), indexing="ij")
        positions = torch.stack([rows.flatten(), columns.flatten()], 1)
        distance, nearest = (positions[:, None] - self.corners[None]).abs().amax(2).min(1)
        labels = torch.where(distance == 0, self.labels[nearest], 10)
        kept = (distance == 0) | (distance > 2)
        return every.reshape(-1, 1, SIDE, SIDE)[kept], labels[kept]


def detector(padded: bool, seed: int) -> nn.Sequential:
    """An untrained classifier of 8×8 windows into ten digits and background, with or without padding."""
    pad = int(padded)
    side = SIDE if padded else SIDE - 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=pad),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=pad),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * side * side, 32),
            nn.ReLU(),
            nn.Linear(32, len(CLASSES)),
        )


def training_windows(digits: DigitSplit, pages: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows of several pages of training digits, half of them digits and half background."""
    windows = [NoisyPage(digits.train, seed + 1 + n).windows() for n in range(pages)]
    images, labels = (torch.cat(part) for part in zip(*windows, strict=True))
    generator = torch.Generator().manual_seed(seed)
    objects, background = ((labels == 10) == wanted for wanted in (False, True))
    rows = [torch.nonzero(mask).flatten() for mask in (objects, background)]
    sampled = rows[1][torch.randperm(len(rows[1]), generator=generator)[: 20 * len(rows[0])]]
    # digits are repeated until they are as frequent as background
    chosen = torch.cat([rows[0].repeat(-(-len(sampled) // max(1, len(rows[0])))), sampled])
    return images[chosen], labels[chosen]


def measure_detection(
    digits: DigitSplit | None = None, *, seed: int = 0, steps: int = STEPS, pages: int = 30, tests: int = 4
) -> Figures:
    """Detect digits on pages with held-out digits, by a dense pass and window by window.

    For a network without padding and one with padding: average precision at IoU 0.5 and seconds of either method,
    and the result of `onebyone.verify` for the dense pass against crops.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    digits = digits or load_digits(seed)
    images, labels = training_windows(digits, pages, seed)
    test_pages = [NoisyPage(digits.test, 900 + n) for n in range(tests)]
    figures: Figures = {}
    for name, padded in (("unpadded", False), ("padded", True)):
        network = train(detector(padded, seed), images, labels, steps=steps, seed=seed)
        figures[name] = dense_against_windows(network, test_pages)
    return figures


def dense_against_windows(network: nn.Module, pages: Sequence[NoisyPage]) -> Figures:
    """Quality and speed of both methods on some pages, and whether the dense pass equals the crops."""
    dense = convolutionalize(network, (SIDE, SIDE), 1, labels=LABELS)
    quality: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"dense": [], "windows": []}
    seconds: dict[str, list[float]] = {"dense": [], "windows": []}
    for page in pages:
        image = page.image.numpy()
        for method, run in _METHODS.items():
            scores = run(dense, network, image)
            seconds[method].append(scores.seconds)
            quality[method].append(matched(detect(scores, threshold=0.3, iou=0.2), page))
    objects = sum(len(p.labels) for p in pages)
    verification = verify(network, dense, pages[0].image[None, None, :24, :24], gradients=False)
    return {
        "objects": objects,
        "windows": scores.windows * len(pages),
        "average_precision": {m: average_precision(q, objects) for m, q in quality.items()},
        "seconds": {m: statistics.fmean(s) for m, s in seconds.items()},
        "speedup": sum(seconds["windows"]) / sum(seconds["dense"]),
        "exact": dense.geometry.exact,
        "equals_crops": verification.equivalent and dense.geometry.exact,
        "max_difference": verification.max_abs_difference,
        "bound": verification.bound,
        "windows_compared": verification.windows,
    }


def dense_scores(dense: Dense, network: nn.Module, image: Any) -> Any:
    """Scan the image in one dense pass."""
    return scan(dense, image, device=_device(network), compared=0)


def window_scores(dense: Dense, network: nn.Module, image: Any) -> Any:
    """Scan the image window by window."""
    return scan_windows(
        network,
        image,
        dense.geometry,
        labels=dense.labels,
        channels=dense.channels,
        device=_device(network),
    )


_METHODS = {"dense": dense_scores, "windows": window_scores}


def _device(network: nn.Module) -> torch.device:
    """The device of the network; a scan on another device would move it."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def matched(detections: Detections, page: NoisyPage) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scores, and whether each detection matches a digit of its class at IoU ≥ 0.5 that no better one matched."""
    boxes = np.array([[x, y, x + SIDE, y + SIDE] for y, x in page.corners.tolist()], dtype=np.float64)
    free = np.ones(len(boxes), dtype=bool)
    hits = np.zeros(len(detections), dtype=bool)
    for row in np.argsort(-detections.scores, kind="stable"):
        box = detections.boxes[row].astype(np.float64)
        sides = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
        intersection = sides.prod(1)
        overlap = intersection / (2 * SIDE * SIDE - intersection)
        overlap *= free & (page.labels.numpy() == detections.labels[row])
        best = int(overlap.argmax())
        if overlap[best] >= 0.5:
            free[best], hits[row] = False, True
    return detections.scores, hits


def average_precision(matches: Sequence[tuple[NDArray[Any], NDArray[Any]]], objects: int) -> float:
    """The area under the precision–recall curve over all classes, with non-increasing precision.

    >>> average_precision([(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))], objects=2)
    0.8333333333333333
    """
    scores = np.concatenate([s for s, _ in matches])
    hits = np.concatenate([h for _, h in matches])[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / objects)


# the user's network -------------------------------------------------------------------------------------


def measure_on_network(
    dense: Dense, network: nn.Module, *, max_windows: int = 16, seconds: float = 8.0, seed: int = 0
) -> Figures:
    """The user's network over a random image of about `max_windows` windows: one dense pass against every window.

    Both are run alternately until `seconds` are spent, at most three times. The weights may be untrained, so this
    measures speed and the difference of the predictions, not quality.
    """
    geometry = dense.geometry
    per_axis = max(2, math.isqrt(max_windows))
    size = [w + (per_axis - 1) * s for w, s in zip(geometry.window, geometry.stride, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dense.channels, *(max(2, n // 8) for n in size), generator=generator)
    image = F.interpolate(coarse, size, mode="bilinear")[0]  # smooth, like a photograph
    times: dict[str, list[float]] = {"dense": [], "windows": []}
    results: dict[str, Any] = {}
    while not times["dense"] or (len(times["dense"]) < 3 and 2 * sum(map(sum, times.values())) < seconds):
        for method, run in _METHODS.items():
            results[method] = run(dense, network, image)
            times[method].append(results[method].seconds)
    scores, expected = (results[method].scores for method in _METHODS)
    median = {method: statistics.median(t) for method, t in times.items()}
    return {
        "image": size,
        "windows": results["dense"].windows,
        "seconds": median,
        "repeats": len(times["dense"]),
        "threads": torch.get_num_threads(),
        "speedup": median["windows"] / median["dense"],
        "exact": geometry.exact,
        "max_difference": float(np.abs(scores - expected).max()),
        "relative_to_spread": float(np.abs(scores - expected).max() / (expected.std() or 1.0)),
        "same_class": float((scores.argmax(0) == expected.argmax(0)).mean()),
    }


def detection_verdict(figures: Figures) -> Verdict:
    """Holds if the dense pass detects better than crops by more than noise, which only padding can cause."""
    plain, padded, network = (figures.get(name) for name in ("unpadded", "padded", "own"))
    results = []
    if plain is not None:
        quality = plain["average_precision"]
        results.append(
            f"without padding the dense pass gives the same predictions as cropping every window (AP "
            f"{quality['dense']:.3f} and {quality['windows']:.3f}) and is {plain['speedup']:.2g} times as fast"
        )
        if not plain["equals_crops"]:
            return not_as_said("without padding, one dense pass does not give the scores of the crops")
    if padded is not None:
        quality = padded["average_precision"]
        results.append(
            f"with padding its AP is {quality['dense']:.3f}, that of cropping is {quality['windows']:.3f}"
        )
    if network is not None:
        results.append(
            f"this network scans {network['windows']} windows {network['speedup']:.2g} times as fast, with the same "
            f"predicted class in {network['same_class']:.0%} of them"
        )
    if padded is not None:
        gain = padded["average_precision"]["dense"] - padded["average_precision"]["windows"]
        if gain > _noise(padded):
            return holds_when(
                "the layers pad, so that positions see their true neighbours", "; ".join(results)
            )
    if plain is None and padded is None:
        return not_available("; ".join(results) or str(figures.get("own_refused") or "nothing was measured"))
    return not_as_said(f"it is faster, not better: {'; '.join(results)}")


def _noise(figures: Figures) -> float:
    """Two standard errors of the difference between the two average precisions, taken as shares of the objects."""
    shares = [min(1.0, max(0.0, v)) for v in figures["average_precision"].values()]
    return 2 * math.sqrt(sum(p * (1 - p) / figures["objects"] for p in shares))

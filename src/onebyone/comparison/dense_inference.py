"""R4: a classifier run once over a large image against cropping every window: quality and speed."""

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
from onebyone.comparison.digits import SIDE, DigitSplit, load_digits, train
from onebyone.dense import scan, scan_windows
from onebyone.dense.scan import Dense
from onebyone.detection import Detections, detect
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.records import Labels
from onebyone.verification import verify

CLASSES = (*(str(d) for d in range(10)), "background")
LABELS = Labels(classes=CLASSES, colour_order="L", background=("background",))
PAGE = (72, 120)
NOISE = 0.1
STEPS = 800


class DigitPage:
    """A noisy page (H, W) in [0, 1] with digits laid at random, none touching: `corners` (n, 2), `labels` (n,)."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int, size: Sequence[int] = PAGE) -> None:
        generator = torch.Generator().manual_seed(seed)
        ink = torch.rand(*size, generator=generator) * NOISE
        corners: list[tuple[int, int]] = []
        chosen: list[int] = []
        for row in torch.randperm(len(images), generator=generator).tolist()[: 4 * len(images)]:
            y, x = (int(torch.randint(n - SIDE + 1, (1,), generator=generator)) for n in size)
            # two pixels apart at the least, or overlapping boxes would be one object
            if all(max(abs(y - v), abs(x - u)) >= SIDE + 2 for v, u in corners):
                corners.append((y, x))
                chosen.append(row)
                ink[y : y + SIDE, x : x + SIDE] += images[row, 0]
            if len(corners) * SIDE * SIDE * 4 > size[0] * size[1]:
                break
        self.image = ink.clamp(0, 1)
        self.corners = torch.tensor(corners)
        self.labels = labels[torch.tensor(chosen)]

    def windows(self) -> tuple[Tensor, Tensor]:
        """Training windows (n, 1, 8, 8) and their labels: digits in place, and background that is none.

        A window is background where no digit lies within two pixels of its place; the others are left out.
        """
        every = self.image.unfold(0, SIDE, 1).unfold(1, SIDE, 1)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in every.shape[:2]), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()], 1)
        apart = (place[:, None] - self.corners[None]).abs().amax(2)
        distance, nearest = apart.min(1)
        labels = torch.where(distance == 0, self.labels[nearest], 10)
        kept = (distance == 0) | (distance > 2)
        return every.reshape(-1, 1, SIDE, SIDE)[kept], labels[kept]


def detector(padded: bool, seed: int) -> nn.Sequential:
    """A classifier of 8×8 windows into ten digits and background; its convolutions pad, or do not."""
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
    made = [DigitPage(digits.train, digits.train_labels, seed + 1 + n).windows() for n in range(pages)]
    images, labels = (torch.cat(part) for part in zip(*made, strict=True))
    generator = torch.Generator().manual_seed(seed)
    objects, background = ((labels == 10) == wanted for wanted in (False, True))
    rows = [torch.nonzero(mask).flatten() for mask in (objects, background)]
    few = rows[1][torch.randperm(len(rows[1]), generator=generator)[: 20 * len(rows[0])]]
    # a digit comes as often as background, by repeating it
    chosen = torch.cat([rows[0].repeat(-(-len(few) // max(1, len(rows[0])))), few])
    return images[chosen], labels[chosen]


def measure_detection(
    digits: DigitSplit | None = None, *, seed: int = 0, steps: int = STEPS, pages: int = 30, tests: int = 4
) -> Figures:
    """Detect digits on pages of held-out ones, with the network run densely and window by window.

    For a network without and one with padding: average precision at IoU 0.5 of either way, the seconds of
    either, and what `onebyone.verify` says of dense against crops.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    digits = digits or load_digits(seed)
    images, labels = training_windows(digits, pages, seed)
    found: Figures = {}
    for name, padded in (("unpadded", False), ("padded", True)):
        network = train(detector(padded, seed), images, labels, steps=steps, seed=seed)
        found[name] = _both_ways(
            network, [DigitPage(digits.test, digits.test_labels, 900 + n) for n in range(tests)]
        )
    return found


def _both_ways(network: nn.Module, pages: Sequence[DigitPage]) -> Figures:
    dense = convolutionalize(network, (SIDE, SIDE), 1, labels=LABELS)
    quality: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"dense": [], "windows": []}
    seconds: dict[str, list[float]] = {"dense": [], "windows": []}
    for page in pages:
        image = page.image.numpy()
        for way in ("dense", "windows"):
            run = dense_scores if way == "dense" else window_scores
            scores = run(dense, network, image)
            seconds[way].append(scores.seconds)
            quality[way].append(matched(detect(scores, threshold=0.3, iou=0.2), page))
    objects = sum(len(p.labels) for p in pages)
    proof = verify(network, dense, pages[0].image[None, None, :24, :24], gradients=False)
    return {
        "objects": objects,
        "windows": scores.windows * len(pages),
        "average_precision": {way: average_precision(q, objects) for way, q in quality.items()},
        "seconds": {way: statistics.fmean(s) for way, s in seconds.items()},
        "speedup": sum(seconds["windows"]) / sum(seconds["dense"]),
        "exact": dense.geometry.exact,
        "equals_crops": proof.equivalent and dense.geometry.exact,
        "max_difference": proof.max_abs_difference,
        "bound": proof.bound,
        "windows_compared": proof.windows,
    }


def dense_scores(dense: Dense, network: nn.Module, image: Any) -> Any:
    """The image scanned in one dense pass."""
    return scan(dense, image, device=_device(network), compared=0)


def window_scores(dense: Dense, network: nn.Module, image: Any) -> Any:
    """The image scanned window by window."""
    return scan_windows(
        network,
        image,
        dense.geometry,
        labels=dense.labels,
        channels=dense.channels,
        device=_device(network),
    )


def _device(network: nn.Module) -> torch.device:
    """Where the network lies: a scan moves it to the device it is given."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def matched(found: Detections, page: DigitPage) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores, and whether each detection found a digit of its class at IoU ≥ 0.5 that none before it had."""
    boxes = np.array([[x, y, x + SIDE, y + SIDE] for y, x in page.corners.tolist()], dtype=np.float64)
    free = np.ones(len(boxes), dtype=bool)
    hits = np.zeros(len(found), dtype=bool)
    for row in np.argsort(-found.scores, kind="stable"):
        box = found.boxes[row].astype(np.float64)
        sides = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
        shared = sides.prod(1)
        overlap = shared / (2 * SIDE * SIDE - shared)
        overlap *= free & (page.labels.numpy() == found.labels[row])
        best = int(overlap.argmax())
        if overlap[best] >= 0.5:
            free[best], hits[row] = False, True
    return found.scores, hits


def average_precision(matches: Sequence[tuple[NDArray[Any], NDArray[Any]]], objects: int) -> float:
    """The area under precision over recall, all classes together, precision made non-increasing.

    >>> average_precision([(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))], objects=2)
    0.8333333333333333
    """
    scores = np.concatenate([s for s, _ in matches])
    hits = np.concatenate([h for _, h in matches])[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / objects)


# the user's own network -------------------------------------------------------------------------------------


def measure_own(
    dense: Dense, network: nn.Module, *, most: int = 16, seconds: float = 8.0, seed: int = 0
) -> Figures:
    """The user's network over a random image of at most `most` windows: one dense pass against every window.

    Both are repeated in turn while `seconds` last, three times at most. Weights may be untrained, so this is
    about speed and about how far the answers differ, not about quality.
    """
    geometry = dense.geometry
    per_axis = max(2, math.isqrt(most))
    size = [w + (per_axis - 1) * s for w, s in zip(geometry.window, geometry.stride, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dense.channels, *(max(2, n // 8) for n in size), generator=generator)
    image = F.interpolate(coarse, size, mode="bilinear")[0]  # smooth, as pictures are
    times: dict[str, list[float]] = {"dense": [], "windows": []}
    answers: dict[str, Any] = {}
    while not times["dense"] or (len(times["dense"]) < 3 and 2 * sum(map(sum, times.values())) < seconds):
        for way, run in (("dense", dense_scores), ("windows", window_scores)):
            answers[way] = run(dense, network, image)
            times[way].append(answers[way].seconds)
    one, other = answers["dense"].scores, answers["windows"].scores
    median = {way: statistics.median(t) for way, t in times.items()}
    return {
        "image": size,
        "windows": answers["dense"].windows,
        "seconds": median,
        "repeats": len(times["dense"]),
        "threads": torch.get_num_threads(),
        "speedup": median["windows"] / median["dense"],
        "exact": geometry.exact,
        "max_difference": float(np.abs(one - other).max()),
        "relative_to_spread": float(np.abs(one - other).max() / (other.std() or 1.0)),
        "same_class": float((one.argmax(0) == other.argmax(0)).mean()),
    }


def judge_detection(figures: Figures) -> Verdict:
    """As said: for spatial context and better results. Better only where padding makes it so, by more than noise."""
    plain, padded, own = (figures.get(name) for name in ("unpadded", "padded", "own"))
    said = []
    if plain is not None:
        quality = plain["average_precision"]
        said.append(
            f"without padding the same answers as cropping every window (AP {quality['dense']:.3f} and "
            f"{quality['windows']:.3f}), {plain['speedup']:.2g} times as fast"
        )
        if not plain["equals_crops"]:
            return not_as_said("one dense pass without padding does not give the numbers of the crops")
    if padded is not None:
        quality = padded["average_precision"]
        said.append(f"with padding AP {quality['dense']:.3f} against {quality['windows']:.3f} of crops")
    if own is not None:
        said.append(
            f"this network: {own['windows']} windows {own['speedup']:.2g} times as fast, the same best class in "
            f"{own['same_class']:.0%}"
        )
    if padded is not None:
        gain = padded["average_precision"]["dense"] - padded["average_precision"]["windows"]
        if gain > _noise(padded):
            return holds_when("the layers pad, so that places see their true neighbours", "; ".join(said))
    if plain is None and padded is None:
        return not_available("; ".join(said) or str(figures.get("own_refused") or "nothing was measured"))
    return not_as_said(f"faster, not better: {'; '.join(said)}")


def _noise(found: Figures) -> float:
    """Two standard errors of the difference of two shares of so many objects."""
    shares = [min(1.0, max(0.0, v)) for v in found["average_precision"].values()]
    return 2 * math.sqrt(sum(p * (1 - p) / found["objects"] for p in shares))

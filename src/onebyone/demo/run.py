"""The whole job, step by step; each step gives plain data that the page shows."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.demo import data, network, train
from onebyone.demo.atomic_folder import atomic_folder, require_folder
from onebyone.demo.average_precision import Score, score
from onebyone.demo.page import Page, compose
from onebyone.demo.progress import Steps, bar
from onebyone.dense import ScoreMap, normalise, plan_scan, scan, scan_windows
from onebyone.detection import Detections, detect
from onebyone.laws import cost
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.records import Labels
from onebyone.verification import Verification, verify
from onebyone.verification.running_error import RunningError

DIGITS_ON_PAGE = 60
PAGE_SIDE = 1024
"""The page's shorter side, in pixels, at least."""
CROPS = 8000
"""Background crops cut from the training photographs."""
REPEATS = 3
"""How often both scans are timed, in turn."""
DENSE_TO_WINDOWS = 3
"""Dense passes timed for each pass over all windows, which takes some twenty times as long."""
LEAST = 0.05
"""The probability from which a window is a candidate when scoring; ..."""
SHOWN = 0.9
"""... from which it is drawn."""
OVERLAP = 0.3
"""Boxes that overlap a better one by more are dropped, whatever their class: one place holds one digit."""
TILE = (124, 187)
"""Places per tile of the dense pass, a quarter of the page: maps that stay below 32 MiB are faster by a third,
because they fit the last cache and their memory is reused rather than asked from the system each time."""
FINE_ROWS = 32
"""One row of windows in so many is compared in float64 too."""
EXCERPT = 160
"""Side of the part of the page on which every window is verified, gradients included."""

LABELS = Labels(
    classes=data.CLASSES,
    scale=1 / 255,
    mean=(0.5,),
    std=(0.5,),
    colour_order="L",
    background=(data.CLASSES[data.BACKGROUND],),
)


@dataclass(frozen=True)
class Trained:
    """The network, as trained and as used (batch norms folded), and what it was trained and is tested on."""

    network: nn.Sequential
    losses: list[float]
    train_digits: data.Digits
    test_digits: data.Digits
    hard_crops: int
    accuracy: float
    accuracy_on_photographs: float


@dataclass(frozen=True)
class Timed:
    """Both scans of the page, and their seconds: medians over the repeats, and every one of them."""

    dense: ScoreMap
    windows: ScoreMap
    dense_seconds: tuple[float, ...]
    windows_seconds: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """Median against median."""
        return statistics.median(self.windows_seconds) / statistics.median(self.dense_seconds)


@dataclass(frozen=True)
class Difference:
    """The two score maps against each other, every number of them: `largest` |Δ|, the least derived `bound`.

    `ratio` is the largest share any |Δ| has of its own bound, `same_class` the share of windows with the same
    best class. The `fine_` figures are the same comparison in float64, on `fine_windows` of the windows: there
    rounding is so small that no other fault could hide in it.
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
class Results:
    """Everything that the page shows."""

    seed: int
    trained: Trained
    converted: ConvolutionalizedModule
    verification: Verification
    page: Page
    timed: Timed
    difference: Difference
    detections: Detections
    score: Score
    macs_dense: int
    macs_windows: int
    seconds: float
    step_seconds: dict[str, float]


def run(out: Path | str, seed: int = 0, progress: Steps | None = None) -> dict[str, Any]:
    """Train, convert, verify, scan, detect, score; write `out`/index.html and `out`/summary.json.

    `progress(what)` is a context manager that gives a function of (done, total); None shows bars on stderr.
    Returns what summary.json holds. An interrupted run leaves no folder, or the old one.

    Raises
    ------
    MissingExtra
        if one of the libraries of onebyone[demo] is not installed.
    BadInput
        if `out` cannot be written.
    NotEquivalent
        if the converted network is not the original.
    """
    from onebyone.demo.page_text import render

    require_folder(out)
    results = measure(seed, progress or bar)
    summary = summarise(results)
    with atomic_folder(out) as folder:
        (folder / "index.html").write_text(render(results, summary), encoding="utf-8")
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / "summary.json").write_text(text, encoding="utf-8")
    return summary


def measure(seed: int, progress: Steps) -> Results:
    """All steps but writing."""
    start = time.perf_counter()
    clock: dict[str, float] = {}

    def step(what: str, work: Callable[[Any], Any]) -> Any:
        begin = time.perf_counter()
        with progress(what) as advance:
            result = work(advance)
        clock[what] = round(time.perf_counter() - begin, 2)
        return result

    trained: Trained = step("train on digits and photographs", lambda tell: learn(seed, tell))
    page = lay_out(trained.test_digits, seed)
    converted: ConvolutionalizedModule = step(
        "convert the fully connected layers",
        lambda _: convolutionalize(trained.network, data.WINDOW, labels=LABELS),
    )
    proof: Verification = step(
        "verify on integers and on real pixels",
        lambda tell: verify(trained.network, converted, excerpt(page), seed=seed, progress=tell).check(),
    )
    timed: Timed = step(
        "scan densely and window by window", lambda tell: both_scans(trained, converted, page, tell)
    )
    difference: Difference = step("compare every number", lambda _: compare(trained, converted, timed, page))
    found = detect(timed.dense, threshold=LEAST, iou=OVERLAP, per_class=False)
    scored: Score = step("score the detections", lambda _: score(found, page))
    layers = network.cost_layers(trained.network)
    tiles = plan_scan(converted.geometry, page.image.shape, tile=TILE)
    return Results(
        seed=seed,
        trained=trained,
        converted=converted,
        verification=proof,
        page=page,
        timed=timed,
        difference=difference,
        detections=found,
        score=scored,
        macs_dense=sum(cost.network(layers, tile.read_shape).macs for tile in tiles),
        macs_windows=cost.every_window(layers, (data.WINDOW,) * 2, timed.windows.positions).macs,
        seconds=time.perf_counter() - start,
        step_seconds=clock,
    )


def learn(seed: int, tell: Callable[[int, int], object]) -> Trained:
    """Train the network; while it trains, its own dense form looks for the background it mistakes."""
    digits, held_out = data.load_digits(seed)
    photographs = [data.load_photograph(name) for name in data.TRAIN_PHOTOGRAPHS]
    batches = train.Batches(digits, train.Crops(train.background_crops(photographs, CROPS, seed)), seed)
    classifier = network.build(seed)
    # it shares the classifier's weights, so it learns along
    searcher = convolutionalize(classifier.eval(), data.WINDOW, labels=LABELS)

    def search(turn: int) -> torch.Tensor:
        stride = searcher.geometry.stride[0]
        return train.hard_crops(
            photographs, lambda image: scan(searcher, image).probabilities(), stride, seed + turn
        )

    losses = train.train(classifier, batches, search, tell)
    plain = network.folded(classifier)
    tests = [data.load_photograph(name) for name in data.TEST_PHOTOGRAPHS]
    cuts = train.background_crops(tests, len(held_out), seed)
    return Trained(
        network=plain,
        losses=losses,
        train_digits=digits,
        test_digits=held_out,
        hard_crops=len(batches.crops.hard),
        accuracy=train.accuracy(plain, held_out, torch.full((1, 1, data.WINDOW, data.WINDOW), 0.9)),
        accuracy_on_photographs=train.accuracy(plain, held_out, cuts),
    )


def lay_out(digits: data.Digits, seed: int) -> Page:
    """Held-out digits on the first held-out photograph, enlarged until its shorter side is PAGE_SIDE."""
    name = data.TEST_PHOTOGRAPHS[0]
    photograph = data.load_photograph(name)
    enlarged = data.resized(photograph, PAGE_SIDE / min(photograph.shape))
    return compose(enlarged, name, digits, DIGITS_ON_PAGE, seed)


def excerpt(page: Page) -> torch.Tensor:
    """The part of the page around its first digit as the network reads it, (1, 1, EXCERPT, EXCERPT)."""
    x, y = page.boxes[0, :2]
    rows, columns = (
        max(0, min(int(at) - EXCERPT // 2, side - EXCERPT))
        for at, side in zip((y, x), page.image.shape, strict=True)
    )
    part = page.image[rows : rows + EXCERPT, columns : columns + EXCERPT]
    return torch.from_numpy(normalise(part[:, :, None], LABELS))[None]


def both_scans(
    trained: Trained, converted: ConvolutionalizedModule, page: Page, tell: Callable[[int, int], object]
) -> Timed:
    """Time both scans in turn, so that what else the machine does meanwhile falls on both."""
    dense_seconds, windows_seconds = [], []
    dense = scan(
        converted, page.image, tile=TILE
    )  # not timed: first calls compile kernels and reserve memory
    for turn in range(REPEATS):
        for _ in range(DENSE_TO_WINDOWS):
            dense = scan(converted, page.image, tile=TILE)
            dense_seconds.append(dense.seconds)
        windows = scan_windows(
            trained.network,
            page.image,
            converted.geometry,
            labels=LABELS,
            progress=partial(_part_of, tell, turn),
        )
        windows_seconds.append(windows.seconds)
    return Timed(dense, windows, tuple(dense_seconds), tuple(windows_seconds))


def _part_of(tell: Callable[[int, int], object], turn: int, done: int, total: int) -> None:
    tell(turn * total + done, REPEATS * total)


def compare(trained: Trained, converted: ConvolutionalizedModule, timed: Timed, page: Page) -> Difference:
    """Every score of every window, dense against cropped, each against its own derived bound.

    A running error bound says how far a score, its sums added in whatever order, can be from the exact one;
    so two runs of the same function differ by at most twice as much.
    """
    pixels = torch.from_numpy(normalise(page.image[:, :, None], LABELS))[None]
    a, b = timed.dense.scores.astype(np.float64), timed.windows.scores.astype(np.float64)
    bound = 2 * RunningError(converted.model, pixels)(pixels)[0][1][0].double().numpy()
    apart = np.abs(a - b)
    fine = _fine(trained.network, converted, pixels.double())
    return Difference(
        equal=a.shape == b.shape == bound.shape and bool((apart <= bound).all()) and fine[1] <= fine[2],
        largest=float(apart.max()),
        bound=float(bound.min()),
        ratio=float((apart / bound).max()),
        same_class=float((a.argmax(0) == b.argmax(0)).mean()),
        fine_windows=fine[0],
        fine_largest=fine[1],
        fine_bound=fine[2],
    )


@torch.no_grad()
def _fine(
    classifier: nn.Sequential, converted: ConvolutionalizedModule, pixels: torch.Tensor
) -> tuple[int, float, float]:
    """In float64, on one row of windows in FINE_ROWS: how many, their largest |Δ|, their least bound."""
    wide, dense = copy.deepcopy(classifier).double(), copy.deepcopy(converted.model).double()
    (height, width), (down, right) = converted.geometry.window, converted.geometry.stride
    error: RunningError | None = None  # exported once: all strips have one shape
    largest, least, count = 0.0, float("inf"), 0
    for top in range(0, pixels.shape[2] - height + 1, down * FINE_ROWS):
        strip = pixels[:, :, top : top + height]
        crops = strip[0].unfold(2, width, right).permute(2, 0, 1, 3)
        apart = (dense(strip)[0, :, 0].T - wide(crops)).abs()
        largest, count = max(largest, float(apart.max())), count + len(crops)
        error = error or RunningError(dense, strip)
        least = min(least, 2 * float(error(strip)[0][1].min()))
    return count, largest, least


def summarise(r: Results) -> dict[str, Any]:
    """The figures, as summary.json holds them."""
    seconds_dense = statistics.median(r.timed.dense_seconds)
    seconds_windows = statistics.median(r.timed.windows_seconds)
    return {
        "accuracy": r.trained.accuracy,
        "accuracy_on_photographs": r.trained.accuracy_on_photographs,
        "integer_probe_bitwise": r.verification.integer_probe is True,
        "verified_equivalent": r.verification.equivalent,
        "dense_equals_windows": r.difference.equal,
        "max_abs_difference": r.difference.largest,
        "bound": r.difference.bound,
        "largest_difference_over_bound": r.difference.ratio,
        "same_class": r.difference.same_class,
        "float64_windows": r.difference.fine_windows,
        "float64_max_abs_difference": r.difference.fine_largest,
        "float64_bound": r.difference.fine_bound,
        "windows": r.timed.dense.windows,
        "image_size": list(r.page.image.shape),
        "digits_on_page": len(r.page.labels),
        "macs_windows": r.macs_windows,
        "macs_dense": r.macs_dense,
        "mac_ratio": r.macs_windows / r.macs_dense,
        "seconds_windows": seconds_windows,
        "seconds_dense": seconds_dense,
        "speedup_dense_over_windows": r.timed.speedup,
        "speedup_over_mac_ratio": r.timed.speedup * r.macs_dense / r.macs_windows,
        "mAP50": r.score.mAP50,
        "maxDets": r.score.max_detections,
        "threads": torch.get_num_threads(),
        "seed": r.seed,
        "seconds": round(r.seconds, 2),
        "seconds_by_step": r.step_seconds,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the figures were made with."""
    import platform
    from importlib.metadata import version

    names = ("onebyone", "torch", "numpy", "scikit-learn", "scikit-image", "pycocotools")
    return {"python": platform.python_version()} | {name: version(name) for name in names}

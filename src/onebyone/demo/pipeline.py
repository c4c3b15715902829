"""The steps of the demo: train, convert, verify, scan, compare, detect, score, and write the page."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.comparison import Comparison, compare
from onebyone.comparison.digits import Digits, load_digits
from onebyone.demo import data, network, page_text, train
from onebyone.demo.atomic_folder import atomic_folder, require_folder
from onebyone.demo.average_precision import Score, score
from onebyone.demo.digit_page import DigitPage, compose
from onebyone.demo.progress import Steps, bar
from onebyone.demo.results import MAX_IOU, MIN_SCORE, REPORT, DemoResults, Difference, Timed, Trained
from onebyone.dense import normalise, plan_scan, scan, scan_windows
from onebyone.detection import detect
from onebyone.detection.overlay import save_picture
from onebyone.laws import cost
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.records import Labels
from onebyone.stores.pictures import to_rgb_picture
from onebyone.verification import Verification, verify
from onebyone.verification.running_error import RunningError
from onebyone.viewing.scan_folder import ScanParts, write_scan_parts

DIGITS_ON_PAGE = 60
PAGE_SIDE = 1024
"""The shorter side of the page, in pixels."""
HELD_OUT_DIGITS = 450
CROPS = 8000
"""Background crops from the training photographs."""
REPEATS = 3
"""How often both scans are timed, alternately."""
DENSE_PER_WINDOWS = 3
"""Dense passes that are timed for each pass over all windows, which takes about twenty times as long."""
TILE = (124, 187)
"""Positions per tile of the dense pass, a quarter of the page. Maps below 32 MiB are faster by a third, because they
fit the last-level cache and their memory is reused instead of being requested from the system each time."""
FINE_ROWS = 32
"""Every how many rows of windows one row is also compared in float64."""
EXCERPT = 160
"""Side, in pixels, of the part of the page on which every window is verified, including gradients."""

CLAIMS_SECONDS = 20.0
"""Time limit of the comparison of the two layers; what takes longer is reported as not tested."""

LABELS = Labels(
    classes=data.CLASSES,
    scale=1 / 255,
    mean=(0.5,),
    std=(0.5,),
    colour_order="L",
    background=(data.CLASSES[data.BACKGROUND],),
)


def run(out: Path | str, seed: int = 0, progress: Steps | None = None) -> dict[str, Any]:
    """Run all steps of the demo, and write `out`/index.html, `out`/report.html and `out`/summary.json.

    The report tests common claims about the two layers on the demo's network. The scan is written too (page.png,
    scores.npz, the network as dense.pt2, and viewer.json, which names them for `onebyone view`).

    `progress(description)` is a context manager that returns a function of (done, total) for one step; None shows
    bars on stderr. Returns the content of summary.json. An interrupted run leaves `out` unchanged.

    Raises
    ------
    MissingExtra
        if one of the libraries of onebyone[demo] is not installed.
    BadInput
        if `out` cannot be written.
    NotEquivalent
        if the converted network is not equivalent to the original.
    """
    require_folder(out)
    results = measure(seed, progress or bar)
    summary = summarise(results)
    with atomic_folder(out) as folder:
        (folder / "index.html").write_text(page_text.render(results, summary), encoding="utf-8")
        results.comparison.to_html(
            folder / REPORT,
            title="the demo's network",
            links=[("The demo shows this network on a whole photograph", "index.html")],
        )
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / "summary.json").write_text(text, encoding="utf-8")
        parts = ScanParts(folder / "scores.npz", folder / "page.png", folder / "dense.pt2")
        results.timed.dense.save(parts.scores)
        results.converted.save(folder / "dense.pt2")
        save_picture(
            to_rgb_picture(results.page.image[:, :, None], "the demo's photograph"), folder / "page.png"
        )
        write_scan_parts(folder, [parts])
    return summary


def measure(seed: int, progress: Steps) -> DemoResults:
    """All steps except writing the page."""
    start = time.perf_counter()
    step_seconds: dict[str, float] = {}

    def step(description: str, work: Callable[[Any], Any]) -> Any:
        begin = time.perf_counter()
        with progress(description) as advance:
            result = work(advance)
        step_seconds[description] = round(time.perf_counter() - begin, 2)
        return result

    trained: Trained = step(
        "train on digits and photographs", lambda advance: train_classifier(seed, advance)
    )
    page = compose_page(trained.test_digits, seed)
    converted: ConvolutionalizedModule = step(
        "convert the fully connected layers",
        lambda _: convolutionalize(trained.network, data.WINDOW, labels=LABELS),
    )
    verification: Verification = step(
        "verify on integers and on real pixels",
        lambda advance: verify(
            trained.network, converted, excerpt(page), seed=seed, progress=advance
        ).check(),
    )
    timed: Timed = step(
        "scan densely and window by window", lambda advance: time_scans(trained, converted, page, advance)
    )
    difference: Difference = step(
        "compare every score", lambda _: compare_scores(trained, converted, timed, page)
    )
    detections = detect(timed.dense, threshold=MIN_SCORE, iou=MAX_IOU, per_class=False)
    scored: Score = step("score the detections", lambda _: score(detections, page))
    comparison: Comparison = step(
        "test claims about the two layers",
        lambda advance: compare(
            trained.network,
            torch.from_numpy(normalise(page.image[: data.WINDOW, : data.WINDOW, None], LABELS))[None],
            budget=CLAIMS_SECONDS,
            seed=seed,
            progress=advance,
        ),
    )
    layers = network.cost_layers(trained.network)
    tiles = plan_scan(converted.geometry, page.image.shape, tile=TILE)
    return DemoResults(
        seed=seed,
        trained=trained,
        converted=converted,
        verification=verification,
        page=page,
        timed=timed,
        difference=difference,
        detections=detections,
        score=scored,
        comparison=comparison,
        macs_dense=sum(cost.network(layers, tile.read_shape).macs for tile in tiles),
        macs_windows=cost.every_window(layers, (data.WINDOW,) * 2, timed.windows.positions).macs,
        seconds=time.perf_counter() - start,
        step_seconds=step_seconds,
    )


def train_classifier(seed: int, advance: Callable[[int, int], object]) -> Trained:
    """Train the network; during training, its dense form searches for background that it mistakes for digits."""
    split = load_digits(seed, HELD_OUT_DIGITS, "the demo")
    digits, held_out = split.train, split.test
    photographs = [data.load_photograph(name) for name in data.TRAIN_PHOTOGRAPHS]
    batches = train.Batches(digits, train.Crops(train.background_crops(photographs, CROPS, seed)), seed)
    classifier = network.build(seed)
    # it shares the weights of the classifier, so it always has the current ones
    searcher = convolutionalize(classifier.eval(), data.WINDOW, labels=LABELS)

    def search(turn: int) -> torch.Tensor:
        stride = searcher.geometry.stride[0]
        return train.hard_crops(
            photographs, lambda image: scan(searcher, image).probabilities(), stride, seed + turn
        )

    losses = train.train(classifier, batches, search, advance)
    folded = network.folded(classifier)
    tests = [data.load_photograph(name) for name in data.TEST_PHOTOGRAPHS]
    test_crops = train.background_crops(tests, len(held_out), seed)
    return Trained(
        network=folded,
        losses=losses,
        train_digits=digits,
        test_digits=held_out,
        hard_crops=len(batches.crops.hard),
        accuracy=train.accuracy(folded, held_out, torch.full((1, 1, data.WINDOW, data.WINDOW), 0.9)),
        accuracy_on_photographs=train.accuracy(folded, held_out, test_crops),
    )


def compose_page(digits: Digits, seed: int) -> DigitPage:
    """Held-out digits on the first held-out photograph, which is enlarged so that its shorter side is PAGE_SIDE."""
    name = data.TEST_PHOTOGRAPHS[0]
    photograph = data.load_photograph(name)
    enlarged = data.resized(photograph, PAGE_SIDE / min(photograph.shape))
    return compose(enlarged, name, digits, DIGITS_ON_PAGE, seed)


def excerpt(page: DigitPage) -> torch.Tensor:
    """The part of the page around its first digit as the network's input, (1, 1, EXCERPT, EXCERPT)."""
    x, y = page.boxes[0, :2]
    rows, columns = (
        max(0, min(int(at) - EXCERPT // 2, side - EXCERPT))
        for at, side in zip((y, x), page.image.shape, strict=True)
    )
    part = page.image[rows : rows + EXCERPT, columns : columns + EXCERPT]
    return torch.from_numpy(normalise(part[:, :, None], LABELS))[None]


def time_scans(
    trained: Trained,
    converted: ConvolutionalizedModule,
    page: DigitPage,
    advance: Callable[[int, int], object],
) -> Timed:
    """Time both scans alternately, so that other processes on the machine affect both."""
    dense_seconds, windows_seconds = [], []
    dense = scan(converted, page.image, tile=TILE)  # warm-up: first calls compile kernels and allocate memory
    for turn in range(REPEATS):
        for _ in range(DENSE_PER_WINDOWS):
            dense = scan(converted, page.image, tile=TILE)
            dense_seconds.append(dense.seconds)
        windows = scan_windows(
            trained.network,
            page.image,
            converted.geometry,
            labels=LABELS,
            progress=partial(_advance_turn, advance, turn),
        )
        windows_seconds.append(windows.seconds)
    return Timed(dense, windows, tuple(dense_seconds), tuple(windows_seconds))


def _advance_turn(advance: Callable[[int, int], object], turn: int, done: int, total: int) -> None:
    advance(turn * total + done, REPEATS * total)


def compare_scores(
    trained: Trained, converted: ConvolutionalizedModule, timed: Timed, page: DigitPage
) -> Difference:
    """Compare every score of the dense pass with that of the cropped window, against its own derived bound.

    A running error bound limits the distance of a score from its exact value, whatever the order of summation; so two
    evaluations of the same function differ by at most twice the bound.
    """
    pixels = torch.from_numpy(normalise(page.image[:, :, None], LABELS))[None]
    dense, windows = timed.dense.scores.astype(np.float64), timed.windows.scores.astype(np.float64)
    bound = 2 * RunningError(converted.model, pixels)(pixels)[0][1][0].double().numpy()
    difference = np.abs(dense - windows)
    fine = _compare_in_float64(trained.network, converted, pixels.double())
    return Difference(
        equal=dense.shape == windows.shape == bound.shape
        and bool((difference <= bound).all())
        and fine[1] <= fine[2],
        largest=float(difference.max()),
        bound=float(bound.min()),
        ratio=float((difference / bound).max()),
        same_class=float((dense.argmax(0) == windows.argmax(0)).mean()),
        fine_windows=fine[0],
        fine_largest=fine[1],
        fine_bound=fine[2],
    )


@torch.no_grad()
def _compare_in_float64(
    classifier: nn.Sequential, converted: ConvolutionalizedModule, pixels: torch.Tensor
) -> tuple[int, float, float]:
    """On every FINE_ROWS-th row of windows in float64: the number of windows, the largest |Δ|, the smallest bound."""
    classifier64, dense64 = copy.deepcopy(classifier).double(), copy.deepcopy(converted.model).double()
    (height, width), (down, right) = converted.geometry.window, converted.geometry.stride
    error: RunningError | None = None  # exported once, because all strips have the same shape
    largest, smallest_bound, count = 0.0, float("inf"), 0
    for top in range(0, pixels.shape[2] - height + 1, down * FINE_ROWS):
        strip = pixels[:, :, top : top + height]
        crops = strip[0].unfold(2, width, right).permute(2, 0, 1, 3)
        difference = (dense64(strip)[0, :, 0].T - classifier64(crops)).abs()
        largest, count = max(largest, float(difference.max())), count + len(crops)
        error = error or RunningError(dense64, strip)
        smallest_bound = min(smallest_bound, 2 * float(error(strip)[0][1].min()))
    return count, largest, smallest_bound


def summarise(r: DemoResults) -> dict[str, Any]:
    """The content of summary.json."""
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
    """The versions of Python and of the libraries that were used."""
    import platform
    from importlib.metadata import version

    names = ("onebyone", "torch", "numpy", "scikit-learn", "scikit-image", "pycocotools")
    return {"python": platform.python_version()} | {name: version(name) for name in names}

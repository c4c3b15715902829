"""Pages of handwritten digits at known places and three sizes, composed in strips, and a light classifier for them.

A page consists of blocks. A block has one large digit, or up to four medium or sixteen small ones, at arbitrary pixels.
The box of a digit is the square of ten cells by ten in the middle of which the data set's grid of eight cells by eight
is drawn. A box of the nominal size is one window of the classifier on the page, on half of it, or on a quarter of it.

The classifier is trained on pages of the training digits, in every window of each of the three sizes of a page. Windows
that show parts of digits, or digits that are off the centre or of another size, are background.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import onebyone
from onebyone.comparison.digits import Digits, load_digits
from onebyone.demo.data import BACKGROUND, CLASSES, DIGIT, WINDOW, painted, strokes, to_bytes
from onebyone.demo.network import folded
from onebyone.detection import coco_ground_truth
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels

#: The factors by which a page is resized, so that a digit of each nominal size fills one window.
SCALES = (1.0, 0.5, 0.25)
#: Pixels of a block: a multiple of 16, so that it is a tile of a TIFF, and larger than the largest box.
BLOCK = 240
#: The actual side of a box as a share of the nominal one.
SIDES = (0.92, 1.08)
#: The share of a block's places that have a digit.
FILLED = 0.6
LABELS = Labels(classes=CLASSES, scale=1 / 255, mean=(0.88,), std=(0.25,), background=("background",))

#: Windows with at least this IoU with a digit have its class in training, and windows below `FAR` are background.
#: A window of the nearest position at stride 8 has at least 0.55, also with a box of another side within `SIDES`.
NEAR, FAR = 0.55, 0.4
#: Background windows with the largest loss that count, per window with a digit.
HARD = 3
RATE = 1e-2
_PAGE = 3 * BLOCK  # of training


@dataclass(frozen=True)
class Places:
    """Digits on a square page: boxes (K, 4) x1, y1, x2, y2, rows of the data set, rotations (radians), inks."""

    side: int
    boxes: NDArray[np.int64]
    rows: NDArray[np.int64]
    angles: NDArray[np.float64]
    inks: NDArray[np.float64]

    def strip(self, top: int) -> NDArray[np.intp]:
        """The digits of the blocks from row `top` on."""
        return np.flatnonzero((self.boxes[:, 1] >= top) & (self.boxes[:, 1] < top + BLOCK))


def places(side: int, digits: int, random: np.random.Generator) -> Places:
    """Random places of digits, drawn from `digits` rows, on a page of `side` pixels."""
    boxes = []
    for top in range(0, side - BLOCK + 1, BLOCK):
        for left in range(0, side - BLOCK + 1, BLOCK):
            factor = int(random.choice([1, 2, 4]))  # the nominal size in windows
            room = BLOCK * factor // 4
            for y in range(top, top + BLOCK, room):
                for x in range(left, left + BLOCK, room):
                    size = round(WINDOW * factor * random.uniform(*SIDES))
                    dx, dy = random.integers(0, room - size, 2)
                    if random.random() < FILLED:
                        boxes.append([x + dx, y + dy, x + dx + size, y + dy + size])
    count = len(boxes)
    return Places(
        side,
        np.array(boxes, np.int64).reshape(-1, 4),
        random.integers(0, digits, count),
        random.uniform(-0.1, 0.1, count),
        random.uniform(0, 0.25, count),
    )


def strips(page: Places, digits: Digits, seed: int) -> Iterator[NDArray[np.uint8]]:
    """The rows of a page from the first to the last, a block of them at a time: digits on uneven, noisy paper."""
    columns = torch.arange(page.side)
    for top in range(0, page.side, BLOCK):
        rows = torch.arange(top, min(top + BLOCK, page.side))
        random = np.random.default_rng((seed, top))
        paper = 0.88 + 0.05 * torch.sin(rows / 700)[:, None] * torch.cos(columns / 900)[None]
        for k in page.strip(top):
            x1, y1, x2, y2 = page.boxes[k].tolist()
            patch = paper[y1 - top : y2 - top, x1:x2]
            opacity = _stroke(digits.ink[page.rows[k]], x2 - x1, float(page.angles[k]))
            patch.copy_(painted(patch, opacity, torch.tensor(page.inks[k])))
        noise = random.integers(-4, 5, paper.shape, np.int8)
        yield np.clip(to_bytes(paper).astype(np.int16) + noise, 0, 255).astype(np.uint8)


def _stroke(ink: torch.Tensor, side: int, angle: float) -> torch.Tensor:
    """The opacity (side, side) of a digit that fills the middle of its box, rotated by an angle."""
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    return strokes(ink[None], side, (turn * (WINDOW / DIGIT)).float()[None])[0, 0]


def write_page(path: Path, page: Places, digits: Digits, seed: int) -> None:
    """Write a page as a tiled, compressed TIFF, strip by strip."""

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for strip in strips(page, digits, seed):
            for left in range(0, page.side, BLOCK):
                yield np.ascontiguousarray(strip[:, left : left + BLOCK])

    tifffile.imwrite(
        path,
        tiles(),
        shape=(page.side, page.side),
        dtype=np.uint8,
        tile=(BLOCK, BLOCK),
        photometric="minisblack",
        compression="zlib",
        compressionargs={"level": 1},
    )


def ground_truth(page: Places, digits: Digits, name: str) -> dict[str, Any]:
    """The places of a page as a COCO data set whose image is called `name`."""
    labels = digits.labels.numpy()[page.rows]
    data = coco_ground_truth(page.boxes, labels, CLASSES[:BACKGROUND], (page.side, page.side))
    data["images"][0]["file_name"] = name
    return data


def network(seed: int = 0) -> nn.Sequential:
    """An untrained network from (N, 1, H, W) to logits (N, 11, H', W'): windows of 40 pixels at stride 8, no padding.

    Its fully connected layers are convolutions, so that every window of a page is a sample of the training.

    >>> network().eval()(torch.zeros(2, 1, 40, 56)).shape
    torch.Size([2, 11, 1, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *_block(1, 16, 8, 4),  # 40 -> 9
            *_block(16, 32, 3),  # 9 -> 7
            *_block(32, 32, 3, 2),  # 7 -> 3
            *_block(32, 64, 3),  # 3 -> 1
            nn.Conv2d(64, len(CLASSES), 1),
        )


def _block(channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out_channels, kernel, stride, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def train(
    digits: Digits, steps: int, on_step: Callable[[int, float], object], seed: int = 0
) -> nn.Sequential:
    """A classifier of windows (N, 1, 40, 40), trained on `steps` pages; `on_step(step, loss)` reports progress."""
    model = network(seed).train()
    geometry = onebyone.convolutionalize(nn.Sequential(*network().eval(), nn.Flatten()), WINDOW).geometry
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.2)
    random = np.random.default_rng(seed)
    for step in range(steps):
        page = places(_PAGE, len(digits), random)
        pixels = torch.from_numpy(np.concatenate(list(strips(page, digits, int(random.integers(2**31))))))
        # the grid of windows moves over the page
        shift_y, shift_x = (int(n) for n in random.integers(0, 32, 2))
        pixels = pixels[None, None, shift_y:, shift_x:].float()
        boxes = page.boxes - [shift_x, shift_y, shift_x, shift_y]
        labels = digits.labels[page.rows]
        loss = torch.stack([_loss(model, geometry, pixels, boxes, labels, scale) for scale in SCALES]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        on_step(step, float(loss.detach()))
    return nn.Sequential(*folded(model), nn.Flatten()).eval()


def _loss(
    model: nn.Module,
    geometry: Geometry,
    pixels: torch.Tensor,
    boxes: NDArray[np.float64],
    labels: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The loss of the windows of a page resized by `scale`: those with a digit, and the hardest ones without."""
    size = [round(n * scale) for n in pixels.shape[2:]]
    image = F.interpolate(pixels, size, mode="bilinear", antialias=True) if scale != 1 else pixels
    logits = model((image / 255 - LABELS.mean[0]) / LABELS.std[0])[0]
    best, owner = _nearest(geometry, logits.shape[1:], boxes * scale)
    target = torch.where(best >= NEAR, labels[owner], BACKGROUND)
    losses = F.cross_entropy(logits.flatten(1).T, target.flatten(), reduction="none")
    near, far = losses[(best >= NEAR).flatten()], losses[(best < FAR).flatten()]
    hard = far.topk(min(len(far), HARD * max(8, len(near)))).values
    return hard.mean() + far.mean() + (near.mean() if len(near) else 0)


def _nearest(
    geometry: Geometry, positions: torch.Size, boxes: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each window the largest IoU with a box, and the number of that box; (H', W') each."""
    low = [
        torch.arange(n) * s - o
        for n, s, o in zip(positions, geometry.stride, geometry.window_offset, strict=True)
    ]
    b = torch.from_numpy(boxes).float()
    across, down = (
        (torch.minimum(start[:, None] + side, b[:, k + 2]) - torch.maximum(start[:, None], b[:, k])).clamp(0)
        for start, side, k in ((low[1], geometry.window[1], 0), (low[0], geometry.window[0], 1))
    )
    shared = down[:, None] * across[None]
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    best, owner = (shared / (geometry.window[0] * geometry.window[1] + areas - shared)).max(dim=2)
    return best, owner


def prepare(folder: Path, size: int, steps: int, seed: int = 0) -> None:
    """Write `digits.pt2`, `page.tif`, `truth.json` and the facts about them into a folder; nothing that is there."""
    facts = folder / "facts.json"
    if facts.exists():
        return
    digits = load_digits(seed)
    start = time.perf_counter()

    def on_step(step: int, loss: float) -> None:
        if step % 100 == 99:
            sys.stderr.write(f"step {step + 1} of {steps}: loss {loss:.2f}\n")

    model = train(digits.train, steps, on_step, seed)
    seconds = time.perf_counter() - start
    torch.export.save(torch.export.export(model, (torch.zeros(1, 1, WINDOW, WINDOW),)), folder / "digits.pt2")
    page = places(size, len(digits.test), np.random.default_rng(seed))
    write_page(folder / "page.tif", page, digits.test, seed)
    truth = json.dumps(ground_truth(page, digits.test, "page.tif"))
    (folder / "truth.json").write_text(truth, encoding="utf-8")
    nominal = np.rint(np.log2((page.boxes[:, 2] - page.boxes[:, 0]) / WINDOW))
    data = {
        "pixels": size * size,
        "digits": len(page.boxes),
        "digits_by_scale": {f"{scale:g}": int((nominal == -np.log2(scale)).sum()) for scale in SCALES},
        "training_steps": steps,
        "training_seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    facts.write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

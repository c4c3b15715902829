"""The demo's real data: handwritten digits and photographs that the installed packages carry, split once and for all.

Nothing is downloaded: the 1,797 digits come inside scikit-learn, the photographs inside scikit-image and
scikit-learn, and their files are opened directly, so that no fetcher of either package is ever asked.

The digits are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, 1998: 8×8 counts of ink from 0 to 16. They are split at random, per class, so a
writer's hand may occur on both sides; a photograph is on one side only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from onebyone.errors import MissingExtra

TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coins.png",
    "flower.jpg",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Photographs whose crops are the background class. `motorcycle_right.png`, the same scene, is used nowhere."""

TEST_PHOTOGRAPHS = ("china.jpg", "coffee.png", "camera.png")
"""Photographs no crop of which is ever trained on. The page is laid on the first."""

WINDOW = 40
"""Side of the square, in pixels, that the network answers for."""
DIGIT = 32
"""Side of the square, in pixels, that a digit's 8×8 grid fills in the middle of its window."""
BACKGROUND = 10
"""The class after the ten digits: no digit, or not in the middle."""
CLASSES = (*(str(digit) for digit in range(10)), "background")


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: `ink` (n, 8, 8) float32 in [0, 1], `labels` (n,) int64, `ids` (n,) rows of the data set."""

    ink: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load_digits(seed: int, held_out: float = 0.25) -> tuple[Digits, Digits]:
    """The 1,797 digits as (train, test): a stratified random split drawn with `seed`.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
        import sklearn.model_selection
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "the demo") from error
    data = sklearn.datasets.load_digits()
    ink = torch.from_numpy(np.asarray(data.images, dtype=np.float32) / 16)
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels.numpy()
    )
    train, test = (torch.from_numpy(np.sort(part)) for part in (train, test))
    return Digits(ink[train], labels[train], train), Digits(ink[test], labels[test], test)


def load_photograph(name: str) -> torch.Tensor:
    """A photograph's luminance (H, W), float32 in [0, 1], read from inside the installed package.

    Raises
    ------
    MissingExtra
        if Pillow, scikit-image or scikit-learn is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "demo", "the demo") from error
    with Image.open(_photograph_path(name)) as image:
        grey = np.asarray(image.convert("L"), dtype=np.float32)
    return torch.from_numpy(grey / 255)


def _photograph_path(name: str) -> Path:
    try:
        import skimage
        import sklearn.datasets
    except ImportError as error:
        raise MissingExtra("scikit-image and scikit-learn", "demo", "the demo") from error
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def resized(image: torch.Tensor, zoom: float) -> torch.Tensor:
    """A grey image (H, W) enlarged or reduced by `zoom`, bicubic, antialiased, clipped to [0, 1]."""
    size = [max(WINDOW, round(side * zoom)) for side in image.shape]
    return F.interpolate(image[None, None], size, mode="bicubic", antialias=True)[0, 0].clamp(0, 1)


def strokes(ink: torch.Tensor, size: int, place: torch.Tensor | None = None) -> torch.Tensor:
    """The ink of digits (n, 8, 8) enlarged to opacities (n, 1, size, size): the one way a digit is ever drawn.

    Each cell of the 8×8 grid becomes a square of DIGIT/8 pixels, bicubic in between; `place` (n, 2, 3) moves,
    turns and stretches each digit (affine_grid's convention: output to input, in half-sides); by default the
    digit is upright in the middle.
    """
    if place is None:
        place = torch.eye(2, 3).mul(size / DIGIT).expand(len(ink), 2, 3)
    grid = F.affine_grid(place, [len(ink), 1, size, size], align_corners=False)
    drawn = F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)
    # bicubic enlargement of so coarse a grid is soft: a steeper ramp gives a stroke an edge
    return ((drawn - 0.15) / 0.6).clamp(0, 1)


def painted(background: torch.Tensor, opacity: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Strokes painted over a background, shapes broadcast: ink where opaque, the photograph where not."""
    return background + opacity * (ink - background)


def contrasting_ink(background: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """An ink for each background (n, 1, H, W): near black on bright ones, near white on dark ones.

    `depth` (n,) in [0, 1] is how far from pure black or white the ink stays. Returns (n, 1, 1, 1).
    """
    mean = background.mean(dim=(1, 2, 3))
    return torch.where(mean > 0.5, depth, 1 - depth).reshape(-1, 1, 1, 1)


def to_bytes(image: torch.Tensor) -> NDArray[np.uint8]:
    """An image in [0, 1] as 8-bit pixels, the form in which a page is scanned, saved and shown."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()

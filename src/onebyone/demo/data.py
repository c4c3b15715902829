"""The demo's images: photographs from installed packages, and digits drawn on them.

Nothing is downloaded: the photographs are part of scikit-image and scikit-learn, and their files are opened directly,
so that no download function of these packages is called. A photograph is used either for training or for testing.
"""

from __future__ import annotations

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
"""Photographs whose crops are the background class. `motorcycle_right.png` shows the same scene and is not used."""

TEST_PHOTOGRAPHS = ("china.jpg", "coffee.png", "camera.png")
"""Photographs that are never used in training. The page is composed on the first one."""

WINDOW = 40
"""Side, in pixels, of the square window that the network classifies."""
DIGIT = 32
"""Side, in pixels, of the square in the middle of a window that a digit's 8×8 grid fills."""
BACKGROUND = 10
"""The class after the ten digits: no digit, or a digit that is not in the middle."""
CLASSES = (*(str(digit) for digit in range(10)), "background")


def load_photograph(name: str) -> torch.Tensor:
    """The luminance (H, W) of a photograph, float32 in [0, 1], read from the installed package.

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


def strokes(ink: torch.Tensor, size: int, transform: torch.Tensor | None = None) -> torch.Tensor:
    """The ink of digits (n, 8, 8), enlarged to opacities (n, 1, size, size); all digits are drawn by this function.

    Each cell of the 8×8 grid becomes a square of DIGIT/8 pixels, with bicubic interpolation. `transform` (n, 2, 3)
    moves, rotates and scales each digit (in the convention of `affine_grid`: from output to input, in half-sides);
    by default the digit is upright in the middle.
    """
    if transform is None:
        transform = torch.eye(2, 3).mul(size / DIGIT).expand(len(ink), 2, 3)
    grid = F.affine_grid(transform, [len(ink), 1, size, size], align_corners=False)
    drawn = F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)
    # bicubic enlargement blurs; a steeper ramp restores the edges of the strokes
    return ((drawn - 0.15) / 0.6).clamp(0, 1)


def painted(background: torch.Tensor, opacity: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Blend `ink` over `background` by `opacity`; shapes are broadcast."""
    return background + opacity * (ink - background)


def contrasting_ink(background: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """An ink for each background (n, 1, H, W): almost black on bright ones, almost white on dark ones.

    `depth` (n,) in [0, 1] is the distance of the ink from pure black or white. Returns (n, 1, 1, 1).
    """
    mean = background.mean(dim=(1, 2, 3))
    return torch.where(mean > 0.5, depth, 1 - depth).reshape(-1, 1, 1, 1)


def to_bytes(image: torch.Tensor) -> NDArray[np.uint8]:
    """An image in [0, 1] as 8-bit pixels, as which a page is scanned, saved and shown."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()

"""Arrays as pictures: colours, PNG bytes, and the small SVG parts that diagrams are made of.

Colour carries the value in its opacity, so a picture reads on a light page and on a dark one: nothing is
drawn where the value is 0.
"""

from __future__ import annotations

import io
from html import escape

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import MissingExtra

BLUE = (46, 125, 209)
ORANGE = (230, 110, 30)
"""The two ends of a signed scale: told apart in every common colour blindness, and on black and white."""


def png(pixels: NDArray[np.uint8], *, quantised: int | None = None) -> bytes:
    """Pixels (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA as the bytes of a PNG file.

    `quantised` keeps that many colours at most, which shortens the file.

    Raises
    ------
    MissingExtra
        if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "images", "drawing a picture") from error
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if quantised is not None:
        image = image.quantize(quantised, method=Image.Quantize.FASTOCTREE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def jpeg(pixels: NDArray[np.uint8], quality: int = 88) -> bytes:
    """Pixels (H, W) or (H, W, 3) as the bytes of a JPEG file: for photographs on a page.

    Raises
    ------
    MissingExtra
        if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "images", "drawing a picture") from error
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def signed(values: NDArray[np.floating], limit: float | None = None) -> NDArray[np.uint8]:
    """Values (H, W) as RGBA: blue below zero, orange above, clear at zero, full at ±`limit`.

    `limit` is the largest magnitude where it is None. NaN is clear, like 0.

    >>> signed(np.array([[-2.0, 0.0, 1.0]]))[0, :, 3].tolist()
    [255, 0, 128]
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    most = float(np.abs(values).max(initial=0.0)) if limit is None else limit
    strength = np.clip(np.abs(values) / most, 0, 1) if most > 0 else np.zeros_like(values)
    colours = np.where(values[..., None] < 0, np.array(BLUE), np.array(ORANGE))
    return np.dstack([colours, np.round(255 * strength)]).astype(np.uint8)


def strength(
    values: NDArray[np.floating], colour: tuple[int, int, int], gamma: float = 1.0
) -> NDArray[np.uint8]:
    """Values (H, W) in [0, 1] as RGBA of one colour, its opacity the value to the power `gamma`.

    >>> strength(np.array([[0.0, 1.0]]), (1, 2, 3)).tolist()
    [[[1, 2, 3, 0], [1, 2, 3, 255]]]
    """
    opacity = np.round(255 * np.clip(values, 0, 1) ** gamma)
    flat = np.broadcast_to(np.array(colour), (*values.shape, 3))
    return np.dstack([flat, opacity]).astype(np.uint8)


def tiled(tiles: NDArray[np.floating], columns: int, gap: int = 1) -> NDArray[np.float64]:
    """Tiles (n, h, w) laid out in rows of `columns`, `gap` apart; NaN between them.

    >>> tiled(np.ones((3, 1, 1)), columns=2).shape
    (3, 3)
    """
    count, height, width = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for number, tile in enumerate(tiles):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet


def svg(body: str, width: float, height: float, label: str, css: str = "") -> str:
    """An inline SVG drawing of this size, scaled to the page's width, with `label` for who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'class="{css}"><title>{escape(label)}</title>{body}</svg>'
    )


def svg_text(x: float, y: float, text: str, css: str = "", anchor: str = "middle") -> str:
    """A line of text in a drawing."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def svg_box(x: float, y: float, width: float, height: float, depth: float, css: str = "") -> str:
    """A box seen from the front left, its front `width`×`height` and its side `depth`, as feature maps are
    drawn; (x, y) is the front's upper left corner.
    """
    dx, dy = depth * 0.7, -depth * 0.42
    top = f"{x},{y} {x + dx},{y + dy} {x + width + dx},{y + dy} {x + width},{y}"
    right, low = x + width, y + height
    side = f"{right},{y} {right + dx},{y + dy} {right + dx},{low + dy} {right},{low}"
    return (
        f'<g class="{css}"><polygon class="top" points="{top}"/><polygon class="side" points="{side}"/>'
        f'<rect class="front" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/></g>'
    )
